/* Converting: options, targets that are files or open disks.
 *
 * The target appears whole or not at all: everything happens in an image in
 * the making, which is abandoned on any error.
 */
#include "ops/convert.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/options.h"
#include "base/strings.h"
#include "file/file.h"
#include "file/nbd.h"

#include <string.h>

enum { SPARSE_DEFAULT = 4096, SPARSE_MIN = 512, SPARSE_MAX = 1 << 20 };

/* ---- beginning --------------------------------------------------------- */

static int check_options(struct img_convert *cv, struct img_error *err)
{
    struct img_create_options *c = &cv->create;
    int r;

    if (!cv->n_from)
        return img_fail(err, EINVAL, "Nothing to convert");
    if (cv->opts.bitmaps && cv->n_from > 1)
        return img_fail(err, ENOTSUP, "Copying bitmaps is only possible with "
                        "a single source");
    r = img_options_take(c, sizeof *c, cv->opts.create, err);
    if (r < 0)
        return r;
    if (!c->format)
        c->format = "raw";
    cv->format = img_format_find(c->format);
    if (!cv->format)
        return img_fail(err, ENOTSUP, "Unknown format '%s'", c->format);
    /* What the backing file shows decides what is written. */
    c->flags &= ~(unsigned)IMG_CREATE_NO_OPEN_BACKING;
    if (cv->opts.no_sync)
        c->flags |= IMG_CREATE_NO_SYNC;
    if (cv->opts.direct)
        c->flags |= IMG_CREATE_DIRECT;
    return 0;
}

int img_convert_check_size(struct img_convert *cv, struct img_error *err)
{
    uint64_t size = cv->copy.source.size;
    struct img_create_options *c = &cv->create;
    int r = 0;

    if (!c->has_size && !c->disk_size) {
        c->disk_size = size;
        r = img_setting_size(c->settings, "size", &c->disk_size, err);
    }
    c->has_size = true;
    if (r == 0 && c->disk_size < size)
        return img_fail(err, EINVAL, "The target, %llu bytes, is smaller "
                        "than the source, %llu bytes",
                        (unsigned long long)c->disk_size,
                        (unsigned long long)size);
    return r;
}

static int cut_source(struct img_convert *cv, struct img_error *err)
{
    const struct img_convert_options *o = &cv->opts;

    if (!o->has_range)
        return 0;
    if (!img_inside(o->offset, o->length, cv->copy.source.size))
        return img_fail(err, EINVAL, "%llu bytes at %llu are not in the "
                        "source, which has %llu",
                        (unsigned long long)o->length,
                        (unsigned long long)o->offset,
                        (unsigned long long)cv->copy.source.size);
    if (o->bitmaps)
        return img_fail(err, EINVAL, "Bitmaps go with the whole source, not "
                        "with a part of it");
    img_source_cut(&cv->copy.source, o->offset, o->length);
    return 0;
}

int img_convert_begin(struct img_convert *cv, struct img_disk *const *from,
                      size_t n_from, const struct img_convert_options *opts,
                      const struct img_job *job, struct img_error *err)
{
    struct img_copy *c = &cv->copy;
    int r;

    memset(cv, 0, sizeof *cv);
    cv->job = job;
    r = img_options_take(&cv->opts, sizeof cv->opts, opts, err);
    if (r < 0)
        return r;
    cv->from = from;
    cv->n_from = n_from;
    for (size_t i = 0; i < n_from; i++)
        img_read_lock(&from[i]->structure);
    r = check_options(cv, err);
    if (r == 0)
        r = img_source_join(&c->source, from, n_from, err);
    if (r == 0)
        r = cut_source(cv, err);
    if (r < 0)
        return r;
    c->max_depth = UINT32_MAX;
    c->all = cv->opts.no_sparse;
    c->pack = cv->opts.compress;
    c->salvage = cv->opts.salvage;
    c->warn = cv->opts.warn;
    c->warn_opaque = cv->opts.warn_opaque;
    c->sparse = cv->opts.sparse_bytes ? cv->opts.sparse_bytes
                                      : SPARSE_DEFAULT;
    c->sparse = IMG_MAX(c->sparse, (uint32_t)SPARSE_MIN);
    c->sparse = IMG_MIN(c->sparse, (uint32_t)SPARSE_MAX);
    while (!img_is_pow2(c->sparse))
        c->sparse &= c->sparse - 1;
    return 0;
}

void img_convert_end(struct img_convert *cv)
{
    for (size_t i = 0; i < cv->n_from; i++)
        img_rw_unlock(&cv->from[i]->structure);
    img_source_free(&cv->copy.source);
}

/* Is it a file that the sources are read from? */
static int refuse_source(const struct img_convert *cv,
                         const struct img_file *target, const char *path,
                         struct img_error *err)
{
    for (size_t i = 0; i < cv->n_from; i++) {
        const struct img_chain *chain = cv->from[i]->chain;

        for (unsigned d = 0; d < chain->n; d++)
            for (unsigned k = 0; k < chain->layers[d]->n_files; k++) {
                const struct img_file *f = chain->layers[d]->files[k];

                if (f && img_file_is_same(f, target))
                    return img_fail(err, EBUSY, "%s: is a file that the "
                                    "source %s is read from", path,
                                    img_path(cv->from[i]));
            }
    }
    return 0;
}

int img_convert_refuse_source(const struct img_convert *cv,
                              const struct stat *st, const char *path,
                              struct img_error *err)
{
    bool is_device = S_ISBLK(st->st_mode);
    struct img_file target = {
        .is_device = is_device, .device = is_device ? st->st_rdev : st->st_dev,
        .inode = is_device ? 0 : st->st_ino,
    };

    return refuse_source(cv, &target, path, err);
}

static int refuse_own_file(const struct img_convert *cv, const char *path,
                           struct img_error *err)
{
    struct img_file server = { 0 };
    struct stat st;

    if (img_nbd_is_uri(path)) {
        img_nbd_identify(path, &server);
        return refuse_source(cv, &server, path, err);
    }
    return stat(path, &st) < 0
           ? 0 : img_convert_refuse_source(cv, &st, path, err);
}

/* What is below the target is not written to. */
static int refuse_own_disk(const struct img_convert *cv,
                           const struct img_disk *to, struct img_error *err)
{
    const struct img_layer *l = to->chain->layers[0];
    int r = 0;

    for (unsigned i = 0; i < l->n_files && r == 0; i++)
        if (l->files[i])
            r = refuse_source(cv, l->files[i], l->files[i]->path, err);
    return r;
}

/* ---- into an open disk ------------------------------------------------- */

/* Nothing but zeros, to judge by the map alone? */
static int is_zero_by_map(struct img_disk *to, bool *zero,
                          struct img_error *err)
{
    struct img_source s;
    struct img_stretch st;
    uint64_t off = 0;
    int r = img_source_one(&s, &to->io, 0, img_disk_size(to), err);

    *zero = true;
    while (r == 0 && *zero && off < s.size) {
        r = img_source_map(&s, off, &st, err);
        if (r == 0)
            *zero = img_stretch_is_zero(&st);
        off = st.end;
    }
    img_source_free(&s);
    return r;
}

static bool is_on_device(const struct img_layer *layer)
{
    for (unsigned i = 0; i < layer->n_files; i++)
        if (layer->files[i] && layer->files[i]->is_device)
            return true;
    return false;
}

/* Does the file system share blocks between the two?  Tried out behind the
 * target's end, before anything is written, so that the answer (and with it
 * the size of claims) is the same for every number of threads. */
static int try_sharing(struct img_file *to, struct img_file *from,
                       bool *share, struct img_error *err)
{
    uint64_t size, has = 0;
    int r = img_file_size(to, &size, err);

    *share = false;
    if (r == 0)
        r = img_file_size(from, &has, err);
    if (r < 0 || to->is_device || from->is_device || has < 4096)
        return r;
    if (img_file_reflink(to, img_round_up(size, 1 << 20), from, 0, 4096,
                         NULL) < 0)
        return 0;
    *share = true;
    return img_file_truncate(to, size, err);
}

static int prepare_packing(struct img_convert *cv, struct img_layer *layer,
                           struct img_error *err)
{
    if (!cv->copy.pack)
        return 0;
    if (!layer->format->codec)
        return img_fail(err, ENOTSUP, "%s: format %s cannot be compressed",
                        layer->path, layer->format->info.name);
    return layer->format->codec(layer, &cv->copy.codec, err);
}

static int prepare_disk(struct img_convert *cv, struct img_disk *to,
                        bool made, struct img_error *err)
{
    struct img_layer *layer = to->chain->layers[0];
    struct img_copy *c = &cv->copy;
    bool identity = img_format_is_identity(layer->format);
    int r = prepare_packing(cv, layer, err);

    if (r < 0)
        return r;
    if (!layer->writable || !layer->format->reserve)
        return img_fail(err, EROFS, "%s: cannot be written", layer->path);
    if (cv->opts.bitmaps && !layer->format->bitmaps)
        return img_fail(err, ENOTSUP, "%s: format %s has no bitmaps",
                        layer->path, layer->format->info.name);
    c->to = &to->io;
    c->outlet = &img_outlet_disk;
    c->ordered = !identity;
    c->unit = identity ? c->sparse : (uint32_t)1 << layer->cluster_bits;
    if (c->all)
        c->sparse = 0;
    if (!made)
        c->target_zero = cv->opts.target_is_zero;
    else if (to->chain->n > 1)
        c->target_zero = false;
    else if (!is_on_device(layer))
        c->target_zero = true;
    else
        r = is_zero_by_map(to, &c->target_zero, err);
    if (r == 0 && made && !c->pack && !c->all && !c->salvage)
        r = try_sharing(layer->files[0],
                        cv->from[0]->chain->layers[0]->files[0], &c->share,
                        err);
    return r;
}

int img_convert_to_disk(struct img_convert *cv, struct img_disk *to,
                        bool made, struct img_error *err)
{
    struct img_copy *c = &cv->copy;
    struct img_source base = { 0 };
    int r;

    if (img_disk_size(to) < c->source.size)
        return img_fail(err, EINVAL, "%s: %llu bytes are too few for the "
                        "source's %llu", img_path(to),
                        (unsigned long long)img_disk_size(to),
                        (unsigned long long)c->source.size);
    r = prepare_disk(cv, to, made, err);
    if (r == 0 && made && to->chain->n > 1) {
        r = img_source_one(&base, &to->io, 1, img_disk_size(to), err);
        c->base = &base;
    }
    if (r == 0)
        r = img_copy_run(c, cv->job, err);
    /* Behind the source's end the backing file must not show through. */
    if (r == 0 && c->base && img_disk_size(to) > c->source.size)
        r = img_io_zero(&to->io, 0, c->source.size,
                        img_disk_size(to) - c->source.size, IMG_MAY_UNMAP,
                        err);
    if (r == 0 && cv->opts.bitmaps)
        r = img_bitmaps_copy(cv->from[0], to, &cv->opts, err);
    if (r == 0 && !cv->opts.no_sync)
        r = img_io_flush(&to->io, 0, err);
    c->base = NULL;
    img_source_free(&base);
    return r;
}

int img_copy(struct img_disk *const *from, size_t n_from, struct img_disk *to,
             const struct img_convert_options *opts,
             const struct img_job *job, struct img_error *err)
{
    struct img_convert cv;
    int r;

    for (size_t i = 0; i < n_from; i++)
        if (from[i] == to)
            return img_fail(err, EINVAL, "%s: is source and target",
                            img_path(to));
    r = img_convert_begin(&cv, from, n_from, opts, job, err);
    if (r == 0) {
        /* Alone: between finding a place and writing to it, a discard could
         * give the place to others. */
        img_disk_change_begin(to);
        r = refuse_own_disk(&cv, to, err);
        if (r == 0)
            r = img_convert_to_disk(&cv, to, false, err);
        img_disk_change_end(to);
    }
    img_convert_end(&cv);
    return r;
}

/* ---- into a new file --------------------------------------------------- */

struct file_writer { struct img_file *file; uint64_t at; };

static int write_to_file(void *opaque, const void *buf, size_t len,
                         struct img_error *err)
{
    struct file_writer *w = opaque;
    int r = img_file_pwrite(w->file, buf, len, w->at, err);

    w->at += len;
    return r;
}

static bool wants_sink(const struct img_convert *cv)
{
    const struct img_sink_ops *s = cv->format->sink;

    return s && (!s->needed || s->needed(&cv->create));
}

static int fill_file(struct img_convert *cv, struct img_making *m,
                     struct img_error *err)
{
    struct file_writer w = { .file = m->build.file };
    struct img_disk *to = NULL;
    bool begun = false;
    int r, closed;

    if (wants_sink(cv)) {
        r = img_convert_to_sink(cv, m, write_to_file, &w, &begun, err);
        if (r == 0 || r != -ENOTSUP || begun)
            return r;
    }
    r = img_making_create(m, err);
    if (r == 0)
        r = img_making_open(m, &to, err);
    if (r < 0)
        return r;
    r = img_convert_to_disk(cv, to, true, err);
    closed = img_close(to, r < 0 ? NULL : err);
    return r < 0 ? r : closed;
}

static int convert_file(struct img_convert *cv, const char *to,
                        struct img_error *err)
{
    struct img_making *m = NULL;
    int r = img_convert_check_size(cv, err);

    if (r == 0)
        r = refuse_own_file(cv, to, err);
    if (r == 0)
        r = img_making_begin(to, &cv->create, &m, err);
    if (r < 0)
        return r;
    r = fill_file(cv, m, err);
    if (r == 0)
        return img_making_finish(m, err);
    img_making_abandon(m);
    return r;
}

int img_convert(struct img_disk *const *from, size_t n_from, const char *to,
                const struct img_convert_options *opts,
                const struct img_job *job, struct img_error *err)
{
    struct img_convert cv;
    int r = img_convert_begin(&cv, from, n_from, opts, job, err);

    if (r == 0 && cv.opts.target_exists)
        r = img_fail(err, EINVAL, "%s: an existing target is opened and "
                     "given to img_copy", to);
    if (r == 0)
        r = convert_file(&cv, to, err);
    img_convert_end(&cv);
    return r;
}
