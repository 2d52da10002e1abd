/* Exports, and the images below them.
 *
 * One image is opened once, however many exports show parts of it, so that
 * all connections see the same bytes and a flush on one covers the writes of
 * all.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "export.h"
#include "objects.h"
#include "partition.h"

/* ---- images ------------------------------------------------------------ */

static void say(void *opaque, const char *message)
{
    (void)opaque;
    fprintf(stderr, "vimg-nbd: warning: %s\n", message);
}

static bool same_text(const char *a, const char *b)
{
    return a && b ? !strcmp(a, b) : a == b;
}

static void image_free(struct nbd_image *image)
{
    if (!image)
        return;
    free(image->path);
    free(image->snapshot);
    free(image);
}

/* A scratch overlay of the image, without a name by the time this returns;
 * its path is freed by the caller. */
static int make_overlay(const char *real,
                        const struct img_open_options *open, char **overlay,
                        struct img_error *err)
{
    struct img_create_options create = IMG_CREATE_OPTIONS;
    const char *folder = getenv("TMPDIR");
    int fd, ret;

    if (asprintf(overlay, "%s/vimg-nbd.XXXXXX",
                 folder && *folder ? folder : "/var/tmp") < 0) {
        *overlay = NULL;
        return nbd_fail(err, ENOMEM, "no memory");
    }
    fd = mkostemp(*overlay, O_CLOEXEC);
    if (fd < 0) {
        ret = nbd_fail(err, errno, "%s: %s", *overlay, strerror(errno));
        free(*overlay);
        *overlay = NULL;
    } else {
        close(fd);
        create.format = "qcow2";
        create.backing = real;
        create.backing_format = open->backing_format;
        create.allow_files = open->allow_files;
        create.allow_dir = open->allow_dir;
        create.flags = IMG_CREATE_NO_SYNC | IMG_CREATE_IN_PLACE;
        ret = img_create(*overlay, &create, err);
    }
    return ret;
}

static int open_temporary(const char *path,
                          const struct nbd_image_options *o,
                          struct img_open_options *open,
                          struct img_disk **disk, struct img_error *err)
{
    char *overlay = NULL;
    char *real = strncmp(path, "nbd", 3) ? NULL : strdup(path);
    int ret = 0;

    if (!real)
        real = realpath(path, NULL);
    if (!real)
        return nbd_fail(err, errno, "%s: %s", path, strerror(errno));
    open->backing = real;
    open->backing_format = o->format;
    if (!o->format)
        ret = img_probe(path, &open->backing_format, err);
    if (ret == 0)
        ret = make_overlay(real, open, &overlay, err);
    if (ret == 0) {
        open->format = "qcow2";
        open->flags &= ~(unsigned)IMG_OPEN_PROBE;
        open->flags |= IMG_OPEN_NO_SYNC;
        ret = img_open(overlay, open, disk, err);
    }
    if (overlay)
        unlink(overlay);
    free(overlay);
    free(real);
    return ret;
}

/* beside: this process has the image open already and holds its locks.  What
 * a snapshot shows does not change under a writer: clusters and tables that
 * it shares are copied first. */
static int open_image(struct nbd_image *image, bool beside,
                      const struct nbd_image_options *o,
                      struct img_error *err)
{
    struct img_open_options open = IMG_OPEN_OPTIONS;
    int ret;

    image->writable = !o->read_only && !image->snapshot;
    open.flags = o->open_flags | IMG_OPEN_PROBE_BACKING;
    open.flags |= image->writable ? IMG_OPEN_WRITE : 0;
    open.flags |= o->format ? 0 : IMG_OPEN_PROBE;
    open.flags |= o->discard ? IMG_OPEN_UNMAP : 0;
    open.flags |= beside && image->snapshot ? IMG_OPEN_NO_LOCK : 0;
    open.format = o->format;
    open.snapshot = image->snapshot;
    open.window_offset = o->window_offset;
    open.window_size = o->window_size;
    open.warn = say;
    open.allow_files = o->allow_files;
    open.allow_dir = o->allow_dir;
    if (o->temporary && image->writable)
        return open_temporary(image->path, o, &open, &image->disk, err);
    ret = img_open(image->path, &open, &image->disk, err);
    if (ret < 0)
        return ret;
    if (!o->format && image->writable &&
        !strcmp(img_format_name(image->disk), "raw"))
        fprintf(stderr, "vimg-nbd: warning: %s: no format was given and "
                "nothing was recognised: served as raw; what would make it "
                "look like another format is refused. Use -f raw.\n",
                image->path);
    return 0;
}

static int get_image(struct nbd_exports *all, const char *path,
                     const char *snapshot, const struct nbd_image_options *o,
                     struct nbd_image **out, struct img_error *err)
{
    struct nbd_image *image;
    bool beside = false;
    int ret;

    for (image = all->images; image; image = image->next) {
        if (strcmp(image->path, path))
            continue;
        beside = true;
        if (same_text(image->snapshot, snapshot)) {
            *out = image;
            return 0;
        }
    }
    image = calloc(1, sizeof *image);
    if (!image)
        return nbd_fail(err, ENOMEM, "no memory");
    image->path = strdup(path);
    image->snapshot = snapshot ? strdup(snapshot) : NULL;
    ret = image->path && (!snapshot || image->snapshot) ? 0 :
        nbd_fail(err, ENOMEM, "no memory");
    if (ret == 0)
        ret = open_image(image, beside, o, err);
    if (ret < 0) {
        image_free(image);
        return ret;
    }
    image->next = all->images;
    all->images = image;
    *out = image;
    return 0;
}

/* ---- making exports ---------------------------------------------------- */

static void export_free(struct nbd_export *e)
{
    if (!e)
        return;
    for (unsigned i = 0; i < e->view.n_contexts; i++)
        free((char *)(uintptr_t)e->view.contexts[i]);
    for (unsigned i = 0; i < NBD_MAX_CONTEXTS; i++)
        free(e->bitmaps[i]);
    free((char *)(uintptr_t)e->view.name);
    free((char *)(uintptr_t)e->view.description);
    free(e);
}

static int find_partition(struct img_disk *disk, unsigned number,
                          uint64_t *off, uint64_t *len,
                          struct img_error *err)
{
    struct nbd_partition *list = calloc(NBD_PARTITIONS_MAX, sizeof *list);
    int n, ret = 0;

    if (!list)
        return nbd_fail(err, ENOMEM, "no memory");
    n = nbd_partitions(disk, list, err);
    if (n < 0) {
        ret = n;
    } else {
        ret = nbd_fail(err, ENOENT, "%s: there is no partition %u",
                   img_path(disk), number);
        for (int i = 0; i < n; i++)
            if (list[i].number == number) {
                *off = list[i].off;
                *len = list[i].len;
                ret = 0;
            }
    }
    free(list);
    return ret;
}

static int place(struct nbd_export *e, const struct nbd_image_options *o,
                 struct img_error *err)
{
    uint64_t size = img_size(e->disk), off = 0;
    int ret;

    if (o->partition) {
        ret = find_partition(e->disk, o->partition, &off, &size, err);
        if (ret < 0)
            return ret;
    }
    if (o->offset > size)
        return nbd_fail(err, EINVAL, "%s: the offset %llu is beyond the end, "
                    "%llu", img_path(e->disk), (unsigned long long)o->offset,
                    (unsigned long long)size);
    e->base = off + o->offset;
    e->view.size = size - o->offset;
    return 0;
}

static int add_context(struct nbd_export *e, const char *prefix,
                       const char *name, struct img_error *err)
{
    char *text;

    if (e->view.n_contexts == NBD_MAX_CONTEXTS)
        return nbd_fail(err, EINVAL, "too many bitmaps");
    if (asprintf(&text, "%s%s", prefix, name) < 0)
        return nbd_fail(err, ENOMEM, "no memory");
    e->view.contexts[e->view.n_contexts++] = text;
    return 0;
}

/* Bitmaps are looked for in the top image; one that another program left in
 * use does not say the truth. */
static int add_bitmap(struct nbd_export *e, const char *name,
                      struct img_error *err)
{
    unsigned i = e->view.n_contexts - e->first_bitmap;
    struct img_info *info;
    int ret = img_info_get(e->disk, &info, err);

    if (ret < 0)
        return ret;
    ret = nbd_fail(err, ENOENT, "%s: there is no bitmap '%s'",
               img_path(e->disk), name);
    for (size_t k = 0; k < info->n_bitmaps; k++) {
        if (strcmp(info->bitmaps[k].name, name))
            continue;
        ret = info->bitmaps[k].inconsistent ?
            nbd_fail(err, EINVAL, "%s: the bitmap '%s' is inconsistent",
                 img_path(e->disk), name) : 0;
    }
    img_info_free(info);
    if (ret == 0)
        ret = add_context(e, "qemu:dirty-bitmap:", name, err);
    if (ret == 0 && !(e->bitmaps[i] = strdup(name)))
        ret = nbd_fail(err, ENOMEM, "no memory");
    return ret;
}

static int contexts(struct nbd_export *e, const struct nbd_image_options *o,
                    struct img_error *err)
{
    int ret = add_context(e, "base:", "allocation", err);

    e->depth_context = -1;
    if (ret == 0 && o->depth) {
        e->depth_context = 1;
        ret = add_context(e, "qemu:", "allocation-depth", err);
    }
    e->first_bitmap = e->view.n_contexts;
    for (unsigned i = 0; i < o->n_bitmaps && ret == 0; i++)
        ret = add_bitmap(e, o->bitmaps[i], err);
    return ret;
}

static void describe(struct nbd_export *e, const struct nbd_image_options *o)
{
    struct img_limits limits;

    img_limits(e->disk, &limits);
    e->discard = o->discard;
    e->detect_zeroes = o->detect_zeroes || o->detect_unmap;
    e->detect_unmap = o->detect_unmap;
    e->view.min_block = 1;
    e->view.preferred_block = 4096;
    e->view.flags = NBD_HAS_FLAGS | NBD_SEND_FLUSH | NBD_SEND_FUA |
                    NBD_SEND_CACHE;
    if (o->multi_conn)
        e->view.flags |= NBD_CAN_MULTI_CONN;
    if (limits.writable && e->image->writable)
        e->view.flags |= NBD_SEND_TRIM | NBD_SEND_WRITE_ZEROES |
                         NBD_SEND_FAST_ZERO;
    else
        e->view.flags |= NBD_READ_ONLY;
}

static int enlist(struct nbd_exports *all, struct nbd_export *e,
                  struct img_error *err)
{
    unsigned n = all->catalog.n;
    struct nbd_export **list;
    const struct nbd_export_view **views;

    for (unsigned i = 0; i < n; i++)
        if (!strcmp(all->list[i]->view.name, e->view.name))
            return nbd_fail(err, EEXIST, "two exports have the name '%s'",
                        e->view.name);
    list = realloc(all->list, (n + 1) * sizeof *list);
    if (list)
        all->list = list;
    views = realloc(all->views, (n + 1) * sizeof *views);
    if (views)
        all->views = views;
    if (!list || !views)
        return nbd_fail(err, ENOMEM, "no memory");
    list[n] = e;
    views[n] = &e->view;
    all->catalog.exports = views;
    all->catalog.n = n + 1;
    return 0;
}

int nbd_exports_add(struct nbd_exports *all, const char *name,
                    const char *description, const char *path,
                    const struct nbd_image_options *o, struct img_error *err)
{
    struct nbd_export *e;
    int ret;

    if (strlen(name) > NBD_MAX_STRING ||
        (description && strlen(description) > NBD_MAX_STRING))
        return nbd_fail(err, EINVAL, "an export's name and description have at "
                    "most %d bytes", NBD_MAX_STRING);
    e = calloc(1, sizeof *e);
    if (!e)
        return nbd_fail(err, ENOMEM, "no memory");
    e->view.name = strdup(name);
    e->view.description = description ? strdup(description) : NULL;
    ret = e->view.name && (!description || e->view.description) ? 0 :
        nbd_fail(err, ENOMEM, "no memory");
    if (ret == 0)
        ret = get_image(all, path, o->snapshot, o, &e->image, err);
    if (ret == 0) {
        e->disk = e->image->disk;
        ret = place(e, o, err);
    }
    if (ret == 0)
        ret = contexts(e, o, err);
    if (ret == 0) {
        describe(e, o);
        ret = enlist(all, e, err);
    }
    if (ret < 0)
        export_free(e);
    return ret;
}

int nbd_exports_close(struct nbd_exports *all, struct img_error *err)
{
    struct img_error other;
    int ret = 0;

    for (unsigned i = 0; i < all->catalog.n; i++)
        export_free(all->list[i]);
    while (all->images) {
        struct nbd_image *image = all->images;
        int r = img_close(image->disk, ret ? &other : err);

        all->images = image->next;
        ret = ret ? ret : r;
        image_free(image);
    }
    free(all->list);
    free(all->views);
    *all = (struct nbd_exports){ 0 };
    return ret;
}

/* ---- requests ---------------------------------------------------------- */

int nbd_export_read(struct nbd_export *e, void *buf, size_t len, uint64_t off,
                    struct img_error *err)
{
    return len ? img_pread(e->disk, buf, len, e->base + off, err) : 0;
}

static bool is_zero(const void *buf, size_t len)
{
    const uint8_t *p = buf;

    return len && !p[0] && !memcmp(p, p + 1, len - 1);
}

static int write_bytes(struct nbd_export *e, const void *buf, size_t len,
                       uint64_t off, unsigned flags, struct img_error *err)
{
    if (e->detect_zeroes && is_zero(buf, len)) {
        unsigned z = flags | (e->detect_unmap ? IMG_MAY_UNMAP : 0);

        return img_zero(e->disk, off, len, z, err);
    }
    return img_pwrite(e->disk, buf, len, off, flags, err);
}

int nbd_export_write(struct nbd_export *e, const void *buf, size_t len,
                     uint64_t off, bool fua, struct img_error *err)
{
    unsigned flags = fua ? IMG_FUA : 0;

    off += e->base;
    if (!len)
        return fua ? img_flush(e->disk, err) : 0;
    return write_bytes(e, buf, len, off, flags, err);
}

int nbd_export_read_now(struct nbd_export *e, void *buf, size_t len,
                        uint64_t off)
{
    return len ? img_pread_now(e->disk, buf, len, e->base + off) : 0;
}

int nbd_export_splice_now(struct nbd_export *e, int pipe, size_t len,
                          uint64_t off)
{
    return img_splice_now(e->disk, pipe, len, e->base + off);
}

int nbd_export_write_now(struct nbd_export *e, const void *buf, size_t len,
                         uint64_t off)
{
    off += e->base;
    if (!len)
        return 0;
    if (e->detect_zeroes && is_zero(buf, len))
        return -EAGAIN;
    return img_pwrite_now(e->disk, buf, len, off);
}

int nbd_export_zero(struct nbd_export *e, uint64_t off, uint64_t len,
                    uint16_t flags, struct img_error *err)
{
    unsigned f = flags & NBD_FLAG_FUA ? IMG_FUA : 0;

    if (e->discard && !(flags & NBD_FLAG_NO_HOLE))
        f |= IMG_MAY_UNMAP;
    if (flags & NBD_FLAG_FAST_ZERO)
        f |= IMG_FAST_ONLY;
    if (!len)
        return f & IMG_FUA ? img_flush(e->disk, err) : 0;
    return img_zero(e->disk, e->base + off, len, f, err);
}

int nbd_export_trim(struct nbd_export *e, uint64_t off, uint64_t len,
                    bool fua, struct img_error *err)
{
    int ret = 0;

    if (e->discard && len)
        ret = img_discard(e->disk, e->base + off, len, err);
    if (ret == 0 && fua)
        ret = img_flush(e->disk, err);
    return ret;
}

bool nbd_export_hole(struct nbd_export *e, uint64_t off, uint64_t len,
                     bool now, uint64_t *hole, uint64_t *data)
{
    struct img_extent x;
    int ret;

    /* Not EXACT: SEEK_HOLE may walk the whole file, for every read. */
    ret = img_map(e->disk, e->base + off, len, now ? IMG_MAP_NOW : 0, &x,
                  NULL);
    *hole = 0;
    *data = len;
    if (ret < 0)                /* the read will say what is wrong */
        return !now;
    *data = x.kind == IMG_ZEROS || x.kind == IMG_HOLE ? 0 : x.len;
    *hole = x.len - *data;
    return true;
}

int nbd_export_status(struct nbd_export *e, unsigned context, uint64_t off,
                      uint64_t len, uint64_t *run, uint32_t *flags,
                      struct img_error *err)
{
    struct img_extent x;
    bool depth = (int)context == e->depth_context;
    int ret;

    off += e->base;
    if (context >= e->first_bitmap)
        ret = img_bitmap_map(e->disk, e->bitmaps[context - e->first_bitmap],
                             off, len, &x, err);
    else
        ret = img_map(e->disk, off, len, depth ? 0 : IMG_MAP_EXACT, &x, err);
    if (ret < 0)
        return ret;
    *run = x.len;
    if (context >= e->first_bitmap)
        *flags = x.dirty ? NBD_STATE_DIRTY : 0;
    else if (depth)
        *flags = x.kind == IMG_HOLE ? 0 : x.depth + 1;
    else
        *flags = x.kind == IMG_ZEROS || x.kind == IMG_HOLE ?
            (x.sparse ? 0 : NBD_STATE_HOLE) | NBD_STATE_ZERO : 0;
    return 0;
}
