/* Rebase: another backing file under the overlay.
 *
 * Safe mode keeps what the guest sees: where the overlay has nothing and the
 * old and the new view differ, the old view's bytes go into the overlay.
 * Only when they are durable does the overlay name the new file.  Until then
 * it rests on the old one and shows the same as ever, so that an interrupted
 * rebase can simply be run again.
 */
#include "core/disk.h"
#include "core/path.h"
#include "ops/convert.h"
#include "ops/dependants.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/options.h"
#include "file/file.h"

#include <string.h>
#include <sys/stat.h>

enum { SPARSE = 4096 };

struct rebase {
    struct img_rebase_options opts;
    struct img_disk *disk;
    struct img_disk *base;      /* the new one, open; NULL = none */
    const char *name, *format;  /* as they will be recorded */
};

static struct img_layer *top_of(const struct rebase *rb)
{
    return rb->disk->chain->layers[0];
}

static int refuse_loop(const struct rebase *rb, struct img_error *err)
{
    const struct img_layer *top = top_of(rb);
    const struct img_chain *below = rb->base->chain;

    for (unsigned d = 0; d < below->n; d++)
        if (img_file_is_same(top->files[0], below->layers[d]->files[0]))
            return img_fail(err, EINVAL, "%s: cannot rest on %s, which rests "
                            "on it", top->path, rb->name);
    return 0;
}

static int refuse_doubt(const struct rebase *rb, struct img_error *err)
{
    const struct img_layer *l = rb->base->chain->layers[0];

    return l->guessed ? img_chain_refuse_doubt(l->files[0], top_of(rb)->path,
                                               rb->name, err) : 0;
}

static int open_base(struct rebase *rb, struct img_error *err)
{
    const struct img_open_options *had = &rb->disk->chain->opts;
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    img_autofree char *path = NULL;
    int r;

    opts.flags = had->flags & (IMG_OPEN_DIRECT | IMG_OPEN_NO_LOCK |
                               IMG_OPEN_PROBE_BACKING);
    opts.format = rb->opts.backing_format;
    if (!opts.format)
        opts.flags |= IMG_OPEN_PROBE;
    opts.resolve = had->resolve;
    opts.resolve_opaque = had->resolve_opaque;
    opts.warn = had->warn;
    opts.warn_opaque = had->warn_opaque;
    opts.allow_files = had->allow_files;
    opts.allow_dir = had->allow_dir;
    if (had->resolve) {
        int fd = had->resolve(had->resolve_opaque, top_of(rb)->path,
                              rb->name, false);

        if (fd < 0)
            return img_fail_errno(err, -fd, "%s: opening '%s'",
                                  top_of(rb)->path, rb->name);
        r = img_open_fd(fd, &opts, &rb->base, err);
    } else {
        path = img_path_beside(top_of(rb)->path, rb->name);
        if (!path)
            return img_fail_nomem(err);
        r = img_open(path, &opts, &rb->base, err);
    }
    if (r < 0)
        return r;
    rb->format = img_format_name(rb->base);
    r = refuse_loop(rb, err);
    return r == 0 ? refuse_doubt(rb, err) : r;
}

/* Brings the bytes over that would change. */
static int copy_up(struct rebase *rb, const struct img_job *job,
                   struct img_error *err)
{
    struct img_layer *top = top_of(rb);
    struct img_source base = { 0 };
    struct img_copy c = {
        .min_depth = 1, .max_depth = UINT32_MAX, .target_zero = !rb->base,
        .force_zero = true, .ordered = true,
        .outlet = &img_outlet_disk, .to = &rb->disk->io,
        .unit = 1u << top->cluster_bits, .pack = rb->opts.compress,
    };
    int r = 0;

    if (!top->format->reserve)
        return img_fail(err, ENOTSUP, "%s: format %s cannot be written in "
                        "place", top->path, top->format->info.name);
    if (c.pack && !top->format->codec)
        return img_fail(err, ENOTSUP, "%s: format %s cannot be compressed",
                        top->path, top->format->info.name);
    if (c.pack)
        r = top->format->codec(top, &c.codec, err);
    if (r == 0)
        r = img_source_one(&c.source, &rb->disk->io, 0, top->size, err);
    if (r == 0 && rb->base) {
        r = img_source_one(&base, &rb->base->io, 0, top->size, err);
        c.base = &base;
    }
    if (r == 0)
        r = img_copy_run(&c, job, err);
    if (r == 0)
        r = img_io_flush(&rb->disk->io, 0, err);
    img_source_free(&base);
    img_source_free(&c.source);
    return r;
}

/* In unsafe mode the file need not even be there, if its format is given. */
static int look_for_base(struct rebase *rb, struct img_error *err)
{
    struct img_error why;
    int r;

    if (!rb->name)
        return 0;
    r = open_base(rb, &why);
    if (r < 0 && rb->opts.unsafe && rb->opts.backing_format && !rb->base) {
        rb->format = rb->opts.backing_format;
        return 0;
    }
    if (r < 0 && err)
        *err = why;
    return r;
}

static bool stat_beside(const struct img_layer *l, const char *name,
                        struct stat *st)
{
    img_autofree char *path = img_path_beside(l->path, name);

    return path && stat(path, st) == 0;
}

/* Does unsafe mode put another file below the image?  Nothing can be made
 * worse where the old one is gone. */
static bool is_other_base(const struct rebase *rb)
{
    const struct img_layer *top = top_of(rb);
    struct stat old, new;

    if (!top->backing || !stat_beside(top, top->backing, &old))
        return false;
    return !rb->name || !stat_beside(top, rb->name, &new) ||
           old.st_dev != new.st_dev || old.st_ino != new.st_ino;
}

static int rebase(struct rebase *rb, const struct img_job *job,
                  struct img_error *err)
{
    struct img_layer *top = top_of(rb);
    int r = look_for_base(rb, err);

    if (r == 0 && rb->format && !img_format_find(rb->format))
        r = img_fail(err, ENOTSUP, "%s: unknown backing format '%s'",
                     top->path, rb->format);
    if (r == 0 && rb->opts.unsafe && is_other_base(rb))
        r = img_dependants_refuse(rb->disk, 0, 0, "another file below that",
                                  err);
    if (r == 0)
        r = img_io_flush(&rb->disk->io, 0, err);
    if (r == 0 && !rb->opts.unsafe)
        r = copy_up(rb, job, err);
    if (r == 0)
        r = top->format->set_backing(top, rb->name, rb->format,
                                     rb->base ? rb->base->chain->layers[0]
                                              : NULL, err);
    if (r == 0)
        r = img_io_flush(&rb->disk->io, 0, err);
    return r;
}

/* The new backing file need not be there in unsafe mode; then the disk goes
 * on with the old one until it is closed. */
static int look_below_anew(struct rebase *rb, struct img_error *err)
{
    struct img_disk *d = rb->disk;
    struct img_error why;
    int r;

    d->chain->told = rb->name;
    r = img_chain_reopen_below(d->chain, &why);
    d->chain->told = NULL;
    if (r == 0 || rb->opts.unsafe)
        return 0;
    if (err)
        *err = why;
    return r;
}

int img_rebase(struct img_disk *d, const struct img_rebase_options *opts,
               const struct img_job *job, struct img_error *err)
{
    struct img_layer *top = d->chain->layers[0];
    struct rebase rb = { .disk = d };
    int r = img_options_take(&rb.opts, sizeof rb.opts, opts, err);

    if (r < 0)
        return r;
    if (!top->format->set_backing)
        return img_fail(err, ENOTSUP, "%s: format %s has no backing files",
                        top->path, top->format->info.name);
    r = img_layer_may_change(top, err);
    if (r < 0)
        return r;
    if (rb.opts.backing && *rb.opts.backing)
        rb.name = rb.opts.backing;
    img_disk_change_begin(d);
    r = rebase(&rb, job, err);
    img_close(rb.base, NULL);
    if (r == 0 && !(d->chain->opts.flags & IMG_OPEN_NO_BACKING))
        r = look_below_anew(&rb, err);
    img_disk_change_end(d);
    return r;
}
