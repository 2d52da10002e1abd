/* Commit: what the layers above have goes into a lower one.
 *
 * Crash safety: everything is written below and made durable before the
 * overlay is emptied.  At any moment the overlay shows what it showed: what
 * has been copied is the same in both.  So an interrupted commit can simply
 * be run again.
 */
#include "core/disk.h"
#include "ops/convert.h"
#include "ops/dependants.h"
#include "ops/resize.h"
#include "base/checked.h"
#include "base/error.h"

enum { SPARSE = 4096 };

static int copy_down(struct img_disk *d, unsigned depth,
                     const struct img_job *job, struct img_error *err)
{
    struct img_layer *lower = d->chain->layers[depth];
    bool identity = img_format_is_identity(lower->format);
    struct img_copy c = {
        .max_depth = depth, .outlet = &img_outlet_disk, .to = &d->io,
        .to_layer = depth, .ordered = !identity, .sparse = SPARSE,
        .unit = identity ? SPARSE : 1u << lower->cluster_bits,
    };
    int r;

    if (!lower->format->reserve)
        return img_fail(err, ENOTSUP, "%s: format %s cannot be written in "
                        "place", lower->path, lower->format->info.name);
    r = img_source_one(&c.source, &d->io, 0, img_disk_size(d), err);
    if (r == 0)
        r = img_copy_run(&c, job, err);
    img_source_free(&c.source);
    return r;
}

/* The overlay has nothing of its own any more.  Formats that cannot forget
 * keep their data, which is the same as what lies below by now. */
static int empty_top(struct img_disk *d, struct img_error *err)
{
    struct img_layer *top = d->chain->layers[0];
    int r = -ENOTSUP;

    if (top->format->unmap)
        r = img_io_unmap(&d->io, 0, 0, top->size, IMG_UNMAP_DROP, err);
    if (r == -ENOTSUP)
        return 0;
    return r < 0 ? r : img_io_flush(&d->io, 0, err);
}

static int commit(struct img_disk *d, unsigned depth, bool empty,
                  const struct img_job *job, struct img_error *err)
{
    struct img_layer *lower = d->chain->layers[depth];
    int r = 0;

    if (lower->size < img_disk_size(d))
        r = img_resize_layer(&d->io, depth, img_disk_size(d),
                             IMG_PREALLOC_OFF, err);
    /* A raw file's length is its size: the new one, or still the old. */
    if (r == 0)
        r = img_io_flush(&d->io, depth, err);
    if (r == 0)
        r = copy_down(d, depth, job, err);
    if (r == 0)
        r = img_io_flush(&d->io, depth, err);
    if (r == 0 && empty)
        r = empty_top(d, err);
    return r;
}

/* The overlay may have noted what its backing file was like; that has changed
 * now, on purpose, even if not all could be moved. */
static int note_new_base(struct img_disk *d, struct img_error *err)
{
    struct img_layer *top = d->chain->layers[0];
    int r;

    if (!top->writable || !top->backing || d->chain->backing_given ||
        !top->format->set_backing)
        return 0;
    r = top->format->set_backing(top, top->backing, top->backing_format,
                                 d->chain->layers[1], err);
    return r < 0 ? r : img_io_flush(&d->io, 0, err);
}

static int refuse(struct img_disk *d, unsigned depth, bool empty,
                  struct img_error *err)
{
    const struct img_layer *top = d->chain->layers[0];
    int r = 0;

    if (depth < 1 || depth >= d->chain->n)
        return img_fail(err, EINVAL, d->chain->n < 2
                        ? "%s: has no backing file to commit to"
                        : "%s: has no such layer below it", top->path);
    if (empty)
        r = img_layer_may_change(top, err);
    return r == 0 ? img_dependants_refuse(d, 1, depth, "committing into that",
                                          err) : r;
}

int img_commit(struct img_disk *d, unsigned depth, bool keep,
               const struct img_job *job, struct img_error *err)
{
    bool empty = !keep && depth == 1, was_writable, begun = false;
    int r, back = 0;

    img_disk_change_begin(d);
    r = refuse(d, depth, empty, err);
    was_writable = r < 0 || d->chain->layers[depth]->writable;
    if (r == 0)
        r = img_io_flush(&d->io, 0, err);
    if (r == 0 && !was_writable)
        r = img_chain_reopen(d->chain, depth, true, err);
    if (r == 0) {
        begun = true;
        r = commit(d, depth, empty, job, err);
        if (!was_writable)
            back = img_chain_reopen(d->chain, depth, false,
                                    r < 0 ? NULL : err);
    }
    if (r == 0)
        r = back;
    if (begun && depth == 1) {
        back = note_new_base(d, r < 0 ? NULL : err);
        r = r < 0 ? r : back;
    }
    img_disk_change_end(d);
    return r;
}
