/* Raw images: the file is the disk, or a window of the file is.
 *
 * Nothing is ever fresh: every byte has its place from the beginning.  The
 * size is rounded up to whole sectors, as QEMU does; the bytes that the file
 * lacks then read as zeros.
 */
#include "raw/raw.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/strings.h"
#include "file/file.h"

#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>

enum { SECTOR = 512, PAGE_BITS = 12 };

struct raw {
    uint64_t start;             /* of the window, in the file */
    bool has_window;
    bool unmap;                 /* IMG_OPEN_UNMAP */
};

static int raw_probe(const uint8_t *head, size_t len, const char *path)
{
    return 1;                   /* anything is raw if it is nothing else */
}

/* The file's length is the disk's size and must not grow by itself. */
static int keep_length(struct img_layer *l, uint64_t length,
                       struct img_error *err)
{
    struct img_file *f = l->files[0];

    if (!l->writable || f->is_device || img_is_aligned(length, f->align))
        return 0;
    l->warn(l, "%s: its length is no multiple of %u, so that the page cache "
            "cannot be bypassed", l->path, f->align);
    return img_file_use_page_cache(f, err);
}

static int raw_open(struct img_layer *l, const struct img_open_options *opts,
                    struct img_error *err)
{
    struct raw *raw = calloc(1, sizeof *raw);
    uint64_t length;
    int r;

    if (!raw)
        return img_fail_nomem(err);
    l->state = raw;
    if (opts->snapshot)
        return img_fail(err, ENOTSUP, "%s: a raw image has no snapshots",
                        l->path);
    r = img_file_size(l->files[0], &length, err);
    if (r < 0)
        return r;
    if (length > INT64_MAX - SECTOR)
        return img_fail(err, EFBIG, "%s: %llu bytes are too many", l->path,
                        (unsigned long long)length);
    raw->unmap = opts->flags & IMG_OPEN_UNMAP;
    raw->start = opts->window_offset;
    raw->has_window = opts->window_offset || opts->window_size;
    l->size = img_round_up(length, SECTOR);
    if (raw->has_window) {
        if (!img_inside(opts->window_offset, opts->window_size, l->size))
            return img_fail(err, EINVAL, "%s: the window of %llu bytes at "
                            "%llu is not within its %llu bytes", l->path,
                            (unsigned long long)opts->window_size,
                            (unsigned long long)opts->window_offset,
                            (unsigned long long)l->size);
        l->size = opts->window_size ? opts->window_size
                                    : l->size - opts->window_offset;
    }
    r = keep_length(l, length, err);
    if (r < 0)
        return r;
    l->block = l->files[0]->align;
    l->cluster_bits = IMG_MAX(img_log2(l->block), (unsigned)PAGE_BITS);
    return 0;
}

static void raw_close(struct img_layer *l)
{
    free(l->state);
}

static int raw_map(struct img_layer *l, uint64_t off, uint64_t len,
                   unsigned flags, struct img_run *run, struct img_error *err)
{
    const struct raw *raw = l->state;
    bool is_data = true;
    int r = 0;

    *run = (struct img_run){
        .off = off, .len = len, .kind = IMG_RUN_DATA,
        .host = off + raw->start,
    };
    if (flags & IMG_RUN_EXACT)
        r = img_file_extent(l->files[0], run->host, len, &is_data, &run->len,
                            err);
    if (!is_data)
        run->kind = IMG_RUN_ZERO;
    return r;
}

static int raw_reserve(struct img_layer *l, const struct img_want *want,
                       struct img_place *place, struct img_error *err)
{
    const struct raw *raw = l->state;

    if (want->packed)
        return img_fail(err, ENOTSUP, "%s: a raw image cannot hold "
                        "compressed data", l->path);
    *place = (struct img_place){
        .off = want->off, .len = want->len, .host = want->off + raw->start,
    };
    return 0;
}

static int raw_unmap(struct img_layer *l, uint64_t off, uint64_t len,
                     enum img_unmap mode, uint64_t *done,
                     struct img_error *err)
{
    const struct raw *raw = l->state;
    struct img_file *f = l->files[0];
    unsigned flags = IMG_FILE_FAST_ONLY;

    *done = len;
    off += raw->start;
    switch (mode) {
    case IMG_UNMAP_DISCARD:
        return raw->unmap ? img_file_discard(f, off, len, err) : 0;
    case IMG_UNMAP_ZERO:
    case IMG_UNMAP_ZERO_OWN:
        if (raw->unmap)
            flags |= IMG_FILE_MAY_UNMAP;
        return img_file_zero(f, off, len, flags, err);
    case IMG_UNMAP_ZERO_KEEP:
        return img_file_zero(f, off, len, flags, err);
    case IMG_UNMAP_DROP:
        break;
    }
    return img_fail(err, ENOTSUP, "%s: nothing is below a raw image",
                    l->path);
}

static int raw_sync(struct img_layer *l, struct img_error *err)
{
    return img_file_sync(l->files[0], err);
}

/* ---- creating and resizing --------------------------------------------- */

static int write_out_zeros(struct img_file *f, uint64_t off, uint64_t len,
                           struct img_error *err)
{
    enum { PIECE = 1 << 20 };
    char *zeros = calloc(1, PIECE);
    int r = 0;

    if (!zeros)
        return img_fail_nomem(err);
    while (len && r == 0) {
        size_t part = (size_t)IMG_MIN(len, (uint64_t)PIECE);

        r = img_file_pwrite(f, zeros, part, off, err);
        off += part;
        len -= part;
    }
    free(zeros);
    return r;
}

/* Makes the file end at `to`; what is between is preallocated. */
static int grow(struct img_file *f, uint64_t from, uint64_t to,
                enum img_prealloc prealloc, struct img_error *err)
{
    switch (prealloc) {
    case IMG_PREALLOC_OFF:
        return img_file_truncate(f, to, err);
    case IMG_PREALLOC_FALLOC:
        return img_file_allocate(f, from, to - from, err);
    case IMG_PREALLOC_FULL:
        return write_out_zeros(f, from, to - from, err);
    case IMG_PREALLOC_METADATA:
        break;
    }
    return img_fail(err, ENOTSUP, "%s: a raw image has no metadata to "
                    "preallocate", f->path);
}

static int raw_resize(struct img_layer *l, uint64_t size,
                      enum img_prealloc prealloc, struct img_error *err)
{
    const struct raw *raw = l->state;
    struct img_file *f = l->files[0];
    uint64_t length;
    int r;

    if (raw->has_window)
        return img_fail(err, ENOTSUP, "%s: a window of a file cannot be "
                        "resized", l->path);
    if (f->is_device)
        return img_fail(err, ENOTSUP, "%s: a device cannot be resized",
                        l->path);
    if (size > INT64_MAX - SECTOR)
        return img_fail(err, EFBIG, "%s: %llu bytes are too many", l->path,
                        (unsigned long long)size);
    r = img_file_size(f, &length, err);
    if (r < 0)
        return r;
    if (size < length && prealloc != IMG_PREALLOC_OFF)
        return img_fail(err, EINVAL, "%s: what is cut off cannot be "
                        "preallocated", l->path);
    if (size < length)
        r = img_file_truncate(f, size, err);
    else if (size > length)
        r = grow(f, length, size, prealloc, err);
    if (r < 0 && size > length)
        img_file_truncate(f, length, NULL);     /* the disk is no longer */
    if (r == 0)
        r = keep_length(l, size, err);
    if (r == 0)
        l->size = img_round_up(size, SECTOR);
    return r;
}

/* Only some file systems know these two hints. */
static int give_hints(struct img_build *b, struct img_error *err)
{
    const char *const *settings = b->opts->settings;
    uint64_t hint = 0;
    bool nocow = false;
    int fd = b->file->fd, flags = 0;
    struct fsxattr attr;
    int r;

    r = img_setting_bool(settings, "nocow", &nocow, err);
    if (r == 0)
        r = img_setting_size(settings, "extent_size_hint", &hint, err);
    if (r == 0 && hint > UINT32_MAX)
        r = img_fail(err, EINVAL, "Extent size hint %llu is too large",
                     (unsigned long long)hint);
    if (r < 0 || fd < 0 || b->file->is_device)
        return r;
    if (nocow && ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0) {
        flags |= FS_NOCOW_FL;
        (void)ioctl(fd, FS_IOC_SETFLAGS, &flags);
    }
    if (hint && ioctl(fd, FS_IOC_FSGETXATTR, &attr) == 0) {
        attr.fsx_xflags |= FS_XFLAG_EXTSIZE;
        attr.fsx_extsize = (uint32_t)hint;
        (void)ioctl(fd, FS_IOC_FSSETXATTR, &attr);
    }
    return 0;
}

static int raw_create(struct img_build *b, struct img_error *err)
{
    static const char *const names[] = { "off", "falloc", "full", NULL };
    static const enum img_prealloc modes[] = {
        IMG_PREALLOC_OFF, IMG_PREALLOC_FALLOC, IMG_PREALLOC_FULL,
    };
    unsigned choice = 0;
    int r;

    r = img_setting_choice(b->opts->settings, "preallocation", names, &choice,
                           err);
    if (r == 0)
        r = give_hints(b, err);
    if (r < 0)
        return r;
    if (!b->opts->disk_size)
        return img_file_truncate(b->file, 0, err);
    return grow(b->file, 0, b->opts->disk_size, modes[choice], err);
}

static int raw_measure(const struct img_create_options *opts, uint64_t size,
                       uint64_t data_clusters_of(void *, uint32_t),
                       void *opaque, struct img_measure *m,
                       struct img_error *err)
{
    m->required = m->fully_allocated = size;
    return 0;
}

static int raw_defaults(const struct img_create_options *opts,
                        struct img_strings *out, struct img_error *err)
{
    static const char *const keys[] = { "preallocation", "nocow" };
    uint64_t hint;
    int r = img_strings_addf(out, err, "size=%llu",
                             (unsigned long long)opts->disk_size);

    for (size_t i = 0; r == 0 && i < IMG_COUNT(keys); i++) {
        const char *value = img_setting(opts->settings, keys[i]);

        if (value)
            r = img_strings_addf(out, err, "%s=%s", keys[i], value);
    }
    if (r == 0 && img_setting(opts->settings, "extent_size_hint")) {
        r = img_setting_size(opts->settings, "extent_size_hint", &hint, err);
        if (r == 0)
            r = img_strings_addf(out, err, "extent_size_hint=%llu",
                                 (unsigned long long)hint);
    }
    return r;
}

static const struct img_option_info raw_options[] = {
    { "size", "size", "Virtual disk size", 0 },
    { "preallocation", "off|falloc|full", "Preallocation mode", 0 },
    { "nocow", "on|off", "Turn off copy-on-write (valid only on btrfs)", 0 },
    { "extent_size_hint", "size",
      "Extent size hint for the image file, 0 to disable", 0 },
    { NULL, NULL, NULL, 0 }
};

const struct img_format img_format_raw = {
    .info = { "raw", IMG_CAN_WRITE | IMG_CAN_CREATE | IMG_CAN_RESIZE,
              raw_options },
    .probe = raw_probe, .open = raw_open, .close = raw_close,
    .create = raw_create, .map = raw_map, .reserve = raw_reserve,
    .unmap = raw_unmap, .sync = raw_sync, .resize = raw_resize,
    .measure = raw_measure, .defaults = raw_defaults,
};
