/* Zeros and discards.
 *
 * Whole blocks become zeros in the map; what is left at the edges is written,
 * unless the rest of its block shows zeros too: then the block becomes zeros
 * as a whole.  The range is locked exclusively, piece by piece.
 */
#include "core/request.h"
#include "base/checked.h"
#include "base/error.h"

#include <stdlib.h>

#define PIECE (UINT64_C(1) << 30)
enum { ZERO_BUFFER = 1 << 20 };
#define DISCARD (1u << 31)     /* among the flags: discard, do not zero */

/* Zeros that are written out, where the map cannot say it. */
static int write_zeros(struct img_io *io, unsigned to, uint64_t off,
                       uint64_t len, struct img_error *err)
{
    struct iovec iov = { NULL, (size_t)IMG_MIN(len, (uint64_t)ZERO_BUFFER) };
    struct img_scatter s;
    int r;

    if (!len)
        return 0;
    iov.iov_base = calloc(1, iov.iov_len);
    if (!iov.iov_base)
        return img_fail_nomem(err);
    r = img_scatter_init(&s, &iov, 1, err);
    while (len && r == 0) {
        size_t part = (size_t)IMG_MIN(len, (uint64_t)iov.iov_len);

        r = img_write_locked(io, to, &s, 0, off, part, err);
        off += part;
        len -= part;
    }
    free(iov.iov_base);
    return r;
}

static int unmap(struct img_io *io, unsigned to, uint64_t off, uint64_t len,
                 enum img_unmap mode, struct img_error *err)
{
    struct img_layer *l = io->chain->layers[to];

    if (!l->format->unmap)
        return img_fail(err, ENOTSUP, "%s: format %s has no zeros but "
                        "written ones", l->path, l->format->info.name);
    while (len) {
        uint64_t done = 0;
        int r = img_note(io, to, l->format->unmap(l, off, len, mode, &done,
                                                  err));

        if (r == 0 && (!done || done > len))
            r = img_fail(err, EIO, "%s: %llu bytes at %llu could not be "
                         "changed", l->path, (unsigned long long)len,
                         (unsigned long long)off);
        if (r < 0)
            return r;
        off += done;
        len -= done;
    }
    return 0;
}

/* Is there nothing to do?  True of holes that no layer fills, and of zeros
 * that are this layer's own and keep no place that could be given back. */
static bool is_done(const struct img_io *io, unsigned to, unsigned flags,
                    const struct img_run *run, unsigned depth)
{
    const struct img_chain *c = io->chain;

    if (run->kind == IMG_RUN_ABSENT)
        return depth == c->n && !c->layers[c->n - 1]->backing;
    return run->kind == IMG_RUN_ZERO && depth == to &&
           (run->host == UINT64_MAX || !(flags & IMG_MAY_UNMAP));
}

static int change_run(struct img_io *io, unsigned to, uint64_t off,
                      uint64_t end, unsigned flags, struct img_error *err)
{
    enum img_unmap mode = flags & DISCARD ? IMG_UNMAP_DISCARD
                          : flags & IMG_MAY_UNMAP ? IMG_UNMAP_ZERO
                          : IMG_UNMAP_ZERO_KEEP;
    int r = unmap(io, to, off, end - off, mode, err);

    if (r == -ENOTSUP && (flags & DISCARD))
        r = 0;                  /* a hint, not an order */
    else if (r == -ENOTSUP && !(flags & IMG_FAST_ONLY))
        r = write_zeros(io, to, off, end - off, err);
    return r;
}

/* Whole blocks, or up to the end of the disk. */
static int change_blocks(struct img_io *io, unsigned to, uint64_t off,
                         uint64_t end, unsigned flags, struct img_error *err)
{
    uint64_t cluster = UINT64_C(1) << io->chain->layers[to]->cluster_bits;
    struct img_cursor c;

    img_cursor_init(&c, io->chain, to, off, end - off, 0);
    while (off < end && c.off < end) {
        struct img_run run;
        unsigned depth;
        uint64_t from, upto;
        int r = img_cursor_next(&c, &run, &depth, err);

        if (r < 0)
            return r;
        if (!is_done(io, to, flags, &run, depth))
            continue;
        /* Only whole clusters are passed over: what is left of a cluster
         * may be all that keeps its place from being given back, and a
         * lower layer's runs need not end where a block does. */
        from = img_round_up(run.off, cluster);
        upto = run.off + run.len;
        if (upto < end)
            upto = img_round_down(upto, cluster);
        if (from >= upto)
            continue;
        if (off < from)
            r = change_run(io, to, off, from, flags, err);
        if (r < 0)
            return r;
        off = upto;
    }
    return off < end ? change_run(io, to, off, end, flags, err) : 0;
}

/* What becomes of a request's part [from, to) of the block [start, end). */
enum edge_need { EDGE_NOTHING, EDGE_WRITE, EDGE_WHOLE };

static int look_at_edge(struct img_io *io, unsigned layer, uint64_t start,
                        uint64_t from, uint64_t to, uint64_t end,
                        enum edge_need *need, struct img_error *err)
{
    bool inside, before = true, after = true;
    int r = img_shows_zeros(io, layer, from, to - from, &inside, err);

    *need = EDGE_NOTHING;
    if (r < 0 || inside)
        return r;
    r = img_shows_zeros(io, layer, start, from - start, &before, err);
    if (r == 0)
        r = img_shows_zeros(io, layer, to, end - to, &after, err);
    *need = before && after ? EDGE_WHOLE : EDGE_WRITE;
    return r;
}

struct zeroing {
    struct img_io *io;
    unsigned to, flags;
    uint64_t off, end;          /* whole blocks that remain */
    uint64_t edge[2][2];        /* what has to be written */
    int n_edges;
};

/* Takes the part [from, upto) of one block off the request. */
static int plan_edge(struct zeroing *z, uint64_t from, uint64_t upto,
                     struct img_error *err)
{
    const struct img_layer *l = z->io->chain->layers[z->to];
    uint64_t start = img_round_down(from, l->block);
    uint64_t end = IMG_MIN(start + l->block, l->size);
    enum edge_need need;
    int r = look_at_edge(z->io, z->to, start, from, upto, end, &need, err);

    if (r < 0)
        return r;
    if (need == EDGE_WHOLE) {
        z->off = from == z->off ? start : z->off;
        z->end = upto == z->end ? end : z->end;
        return 0;
    }
    if (need == EDGE_WRITE) {
        z->edge[z->n_edges][0] = from;
        z->edge[z->n_edges++][1] = upto;
    }
    if (from == z->off)
        z->off = upto;
    else
        z->end = from;
    return 0;
}

static int plan_edges(struct zeroing *z, struct img_error *err)
{
    const struct img_layer *l = z->io->chain->layers[z->to];
    uint64_t first_end = img_round_up(z->off, l->block), last;
    int r = 0;

    if (!img_is_aligned(z->off, l->block))
        r = plan_edge(z, z->off, IMG_MIN(first_end, z->end), err);
    last = img_round_down(z->end, l->block);
    if (r == 0 && z->off < z->end && last != z->end && z->end != l->size)
        r = plan_edge(z, IMG_MAX(last, z->off), z->end, err);
    if (r == 0 && z->n_edges && (z->flags & IMG_FAST_ONLY))
        r = img_fail(err, ENOTSUP, "%s: zeros can only be written out here",
                     l->path);
    return r;
}

static int zero_piece(struct img_io *io, unsigned to, uint64_t off,
                      uint64_t end, unsigned flags, struct img_error *err)
{
    struct zeroing z = {
        .io = io, .to = to, .flags = flags, .off = off, .end = end,
    };
    struct img_range range;
    int r;

    img_lock_map(io, to, &range, off, end - off);
    r = plan_edges(&z, err);
    for (int i = 0; i < z.n_edges && r == 0; i++)
        r = write_zeros(io, to, z.edge[i][0], z.edge[i][1] - z.edge[i][0],
                        err);
    if (r == 0 && z.off < z.end)
        r = change_blocks(io, to, z.off, z.end, flags, err);
    img_range_unlock(&io->ranges, &range);
    return r;
}

int img_io_zero(struct img_io *io, unsigned to, uint64_t off, uint64_t len,
                unsigned flags, struct img_error *err)
{
    int r = img_begin_change(io, to, off, len, err);
    uint64_t from = off, end = off + len;

    if (r == 0)
        r = img_head_lock(io, to, NULL, 0, off, len, err);
    if (r < 0)
        return r;
    while (off < end && r == 0) {
        uint64_t upto = IMG_MIN(img_round_down(off, PIECE) + PIECE, end);

        r = zero_piece(io, to, off, upto, flags, err);
        off = upto;
    }
    img_head_unlock(io, to, from, len);
    return img_end_change(io, to, flags, r, err);
}

int img_io_unmap(struct img_io *io, unsigned to, uint64_t off, uint64_t len,
                 enum img_unmap mode, struct img_error *err)
{
    const struct img_layer *l = io->chain->layers[to];
    uint64_t from = off, end;
    int r = img_begin_change(io, to, off, len, err);

    if (r < 0 || !len)
        return r;
    end = off + len;
    if (!img_is_aligned(off, l->block) ||
        (!img_is_aligned(end, l->block) && end != l->size))
        return img_fail(err, EINVAL, "%s: %llu bytes at %llu are not whole "
                        "blocks of %u", l->path, (unsigned long long)len,
                        (unsigned long long)off, l->block);
    r = img_head_lock(io, to, NULL, 0, off, len, err);
    if (r < 0)
        return r;
    while (off < end && r == 0) {
        uint64_t upto = IMG_MIN(img_round_down(off, PIECE) + PIECE, end);
        struct img_range range;

        img_lock_map(io, to, &range, off, upto - off);
        r = unmap(io, to, off, upto - off, mode, err);
        img_range_unlock(&io->ranges, &range);
        off = upto;
    }
    img_head_unlock(io, to, from, len);
    return img_end_change(io, to, 0, r, err);
}

int img_io_discard(struct img_io *io, unsigned to, uint64_t off, uint64_t len,
                   struct img_error *err)
{
    const struct img_layer *l = io->chain->layers[to];
    uint64_t from = off, end = off + len;
    int r = img_begin_change(io, to, off, len, err);

    if (r == 0)
        r = img_head_lock(io, to, NULL, 0, off, len, err);
    if (r < 0)
        return r;
    off = img_round_up(off, l->block);
    if (end != l->size)
        end = img_round_down(end, l->block);
    while (off < end && r == 0) {
        uint64_t upto = IMG_MIN(img_round_down(off, PIECE) + PIECE, end);
        struct img_range range;

        img_lock_map(io, to, &range, off, upto - off);
        r = change_blocks(io, to, off, upto, DISCARD | IMG_MAY_UNMAP, err);
        img_range_unlock(&io->ranges, &range);
        off = upto;
    }
    img_head_unlock(io, to, from, len);
    return img_end_change(io, to, 0, r, err);
}
