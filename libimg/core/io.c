/* What all requests of a disk share, and what frames every change.
 *
 * A layer in which corruption was met is not changed any more: each change
 * begins with a look at that.
 */
#include "core/request.h"
#include "base/checked.h"
#include "base/error.h"
#include "codec/codec.h"

void img_io_init(struct img_io *io, struct img_chain *chain)
{
    *io = (struct img_io){ .chain = chain };
    img_ranges_init(&io->ranges);
    img_mutex_init(&io->pack_lock);
    img_mutex_init(&io->head_lock);
}

void img_io_destroy(struct img_io *io)
{
    img_packer_free(io->packer);
    img_mutex_destroy(&io->pack_lock);
    img_mutex_destroy(&io->head_lock);
    img_ranges_destroy(&io->ranges);
}

int img_note(struct img_io *io, unsigned to, int r)
{
    if (r == -IMG_ECORRUPT)
        img_layer_break(io->chain->layers[to]);
    return r;
}

int img_begin_change(struct img_io *io, unsigned to, uint64_t off,
                     uint64_t len, struct img_error *err)
{
    struct img_layer *l = io->chain->layers[to];
    int r = img_layer_may_change(l, err);

    if (r < 0)
        return r;
    if (!img_inside(off, len, l->size))
        return img_fail(err, EINVAL, "%s: writing %llu bytes at %llu: the "
                        "disk has %llu", l->path, (unsigned long long)len,
                        (unsigned long long)off,
                        (unsigned long long)l->size);
    if (!len || !l->format->touch)
        return 0;
    return img_note(io, to, l->format->touch(l, off, len, err));
}

int img_end_change(struct img_io *io, unsigned to, unsigned flags, int r,
                   struct img_error *err)
{
    if (r == 0 && ((flags & IMG_FUA) ||
                   (io->chain->opts.flags & IMG_OPEN_WRITETHROUGH)))
        r = img_io_flush(io, to, err);
    return r;
}

int img_io_flush(struct img_io *io, unsigned to, struct img_error *err)
{
    struct img_layer *l = io->chain->layers[to];

    if (!l->writable || !l->format->sync)
        return 0;
    return img_note(io, to, l->format->sync(l, err));
}
