/* Writing.
 *
 * Where a byte already has a place of its own it is written there: the map
 * does not change, and writers share the range like readers do.  From the
 * first byte on that has none, the rest of the request is locked exclusively,
 * widened to whole clusters: new places are filled up with what was visible
 * around the data, written, and only then published.
 */
#include "core/request.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/iov.h"
#include "file/file.h"

#include <stdlib.h>

static void widen(const struct img_io *io, unsigned to, uint64_t off,
                  uint64_t len, uint64_t *from, uint64_t *end)
{
    const struct img_layer *l = io->chain->layers[to];
    uint64_t unit = IMG_MAX(UINT64_C(1) << l->cluster_bits,
                            (uint64_t)io->chain->align);

    *from = img_round_down(off, unit);
    *end = img_round_up(off + len, unit);
    /* A window or an extent need not begin where a block of its file does. */
    if (io->chain->align > 1) {
        *from -= IMG_MIN(*from, (uint64_t)io->chain->align);
        *end += io->chain->align;
    }
}

void img_lock_map(struct img_io *io, unsigned to, struct img_range *range,
                  uint64_t off, uint64_t len)
{
    uint64_t from, end;

    widen(io, to, off, len, &from, &end);
    img_range_lock(&io->ranges, range, from, end - from, true);
}

static int check_place(const struct img_layer *l, const struct img_want *want,
                       const struct img_place *p, struct img_error *err)
{
    bool ok = p->off == want->off && p->len <= want->len &&
              (p->len || want->in_place) &&
              p->file < l->n_files && l->files[p->file];

    if (ok && p->len && p->fresh)
        ok = p->fill_off <= p->off &&
             p->off + p->len <= p->fill_off + p->fill_len &&
             p->host >= p->off - p->fill_off;
    if (ok)
        return 0;
    return img_fail(err, EIO, "%s: no place was given to the %llu bytes at "
                    "%llu", l->path, (unsigned long long)want->len,
                    (unsigned long long)want->off);
}

static int reserve(struct img_io *io, unsigned to,
                   const struct img_want *want, struct img_place *place,
                   struct img_error *err)
{
    struct img_layer *l = io->chain->layers[to];
    int r = img_note(io, to, l->format->reserve(l, want, place, err));

    if (r < 0 || (want->in_place && !place->len))
        return r;
    r = check_place(l, want, place, err);
    if (r < 0 && place->fresh)
        l->format->abandon(l, place);
    return r;
}

/* ---- filling ----------------------------------------------------------- */

/* The bytes beside the data, within a fresh place. */
struct edge {
    char *buf;                  /* NULL = nothing to write */
    size_t len;
};

static int load_edge(struct img_io *io, unsigned to,
                     const struct img_place *place, uint64_t off, size_t len,
                     struct edge *edge, struct img_error *err)
{
    struct iovec iov = { NULL, len };
    struct img_scatter s;
    bool zeros;
    int r;

    *edge = (struct edge){ NULL, 0 };
    if (!len)
        return 0;
    r = img_shows_zeros(io, to, off, len, &zeros, err);
    if (r < 0 || (zeros && place->zeroed))
        return r;
    edge->len = len;
    edge->buf = calloc(1, len);
    if (!edge->buf)
        return img_fail_nomem(err);
    if (zeros)
        return 0;
    iov.iov_base = edge->buf;
    r = img_scatter_init(&s, &iov, 1, err);
    if (r == 0)
        r = img_read_range(io, to, &s, 0, off, len, err);
    return r;
}

static int write_fresh(struct img_io *io, unsigned to, struct img_scatter *s,
                       size_t at, const struct img_place *p,
                       struct img_error *err)
{
    struct img_layer *l = io->chain->layers[to];
    uint64_t end = p->off + p->len;
    struct edge head = { NULL, 0 }, tail = { NULL, 0 };
    int n = 0, r;

    r = load_edge(io, to, p, p->fill_off, (size_t)(p->off - p->fill_off),
                  &head, err);
    if (r == 0)
        r = load_edge(io, to, p, end,
                      (size_t)(p->fill_off + p->fill_len - end), &tail, err);
    if (r == 0) {
        if (head.len)
            s->part[n++] = (struct iovec){ head.buf, head.len };
        n += img_iov_slice(s->iov, s->n, at, (size_t)p->len, s->part + n);
        if (tail.len)
            s->part[n++] = (struct iovec){ tail.buf, tail.len };
        r = img_file_pwritev(l->files[p->file], s->part, n,
                             p->host - head.len, err);
    }
    free(head.buf);
    free(tail.buf);
    if (r == 0)
        r = img_note(io, to, l->format->publish(l, p, err));
    else
        l->format->abandon(l, p);
    return r;
}

int img_write_place(struct img_io *io, unsigned to, struct img_scatter *s,
                    size_t at, const struct img_place *place,
                    struct img_error *err)
{
    const struct img_layer *l = io->chain->layers[to];
    int n;

    if (place->fresh)
        return write_fresh(io, to, s, at, place, err);
    n = img_iov_slice(s->iov, s->n, at, (size_t)place->len, s->part);
    return img_file_pwritev(l->files[place->file], s->part, n, place->host,
                            err);
}

/* ---- requests ---------------------------------------------------------- */

/* As far as bytes are where they will stay; *done says how far. */
static int write_in_place(struct img_io *io, unsigned to,
                          struct img_scatter *s, uint64_t off, size_t len,
                          size_t *done, struct img_error *err)
{
    *done = 0;
    while (*done < len) {
        struct img_want want = {
            .off = off + *done, .len = len - *done, .in_place = true,
        };
        struct img_place place = { 0 };
        int r = reserve(io, to, &want, &place, err);

        if (r == 0 && !place.len)
            break;
        if (r == 0)
            r = img_write_place(io, to, s, *done, &place, err);
        if (r < 0)
            return r;
        *done += (size_t)place.len;
    }
    return 0;
}

int img_write_locked(struct img_io *io, unsigned to, struct img_scatter *s,
                     size_t at, uint64_t off, size_t len,
                     struct img_error *err)
{
    while (len) {
        struct img_want want = { .off = off, .len = len };
        struct img_place place = { 0 };
        int r = reserve(io, to, &want, &place, err);

        if (r == 0)
            r = img_write_place(io, to, s, at, &place, err);
        if (r < 0)
            return r;
        at += (size_t)place.len;
        off += place.len;
        len -= (size_t)place.len;
    }
    return 0;
}

static int write_plain(struct img_io *io, unsigned to, struct img_scatter *s,
                       uint64_t off, size_t len, struct img_error *err)
{
    struct img_range range;
    size_t done = 0;
    int r = 0;

    /* A part of a block is read, changed and written back by the file. */
    if (img_is_aligned(off | len, io->chain->align)) {
        img_range_lock(&io->ranges, &range, off, len, false);
        r = write_in_place(io, to, s, off, len, &done, err);
        img_range_unlock(&io->ranges, &range);
    }
    if (r < 0 || done == len)
        return r;
    img_lock_map(io, to, &range, off + done, len - done);
    r = img_write_locked(io, to, s, done, off + done, len - done, err);
    img_range_unlock(&io->ranges, &range);
    return r;
}

static int write_compressed(struct img_io *io, unsigned to,
                            struct img_scatter *s, uint64_t off, size_t len,
                            struct img_error *err)
{
    const struct img_layer *l = io->chain->layers[to];
    uint64_t cluster = UINT64_C(1) << l->cluster_bits;
    struct img_range range;
    int r;

    if (!img_is_aligned(off, cluster) ||
        (!img_is_aligned(len, cluster) && off + len != l->size))
        return img_fail(err, EINVAL, "%s: only whole clusters of %llu bytes "
                        "can be written compressed", l->path,
                        (unsigned long long)cluster);
    img_lock_map(io, to, &range, off, len);
    r = img_write_packed(io, to, s, off, len, err);
    img_range_unlock(&io->ranges, &range);
    return r;
}

int img_io_write(struct img_io *io, unsigned to, const struct iovec *iov,
                 int n, uint64_t off, unsigned flags, struct img_error *err)
{
    size_t len = img_iov_total(iov, n);
    struct img_scatter s;
    int r = img_begin_change(io, to, off, len, err);

    if (r == 0)
        r = img_scatter_init(&s, iov, n, err);
    if (r < 0)
        return r;
    r = img_head_lock(io, to, iov, n, off, len, err);
    if (r == 0) {
        if (flags & IMG_COMPRESS)
            r = write_compressed(io, to, &s, off, len, err);
        else
            r = write_plain(io, to, &s, off, len, err);
        img_head_unlock(io, to, off, len);
    }
    img_scatter_free(&s);
    return img_end_change(io, to, flags, r, err);
}

/* ---- without waiting --------------------------------------------------- */

static bool is_cached(const struct img_layer *l)
{
    for (unsigned i = 0; i < l->n_files; i++)
        if (!l->files[i] || !img_file_is_cached(l->files[i]))
            return false;
    return true;
}

/* Going by tables that are in memory. */
static bool is_in_place(struct img_io *io, uint64_t off, size_t len)
{
    struct img_chain top = *io->chain;
    struct img_cursor c;

    top.n = 1;
    img_cursor_init(&c, &top, 0, off, len, IMG_RUN_CACHED);
    while (len) {
        struct img_run run;
        unsigned depth;

        if (img_cursor_next(&c, &run, &depth, NULL) < 0 ||
            run.kind != IMG_RUN_DATA)
            return false;
        len -= (size_t)run.len;
    }
    return true;
}

/* Likewise: nothing would have to be read to fill new places up. */
static bool is_nowhere(struct img_io *io, uint64_t off, size_t len)
{
    const struct img_layer *l = io->chain->layers[0];
    uint64_t end = IMG_MIN(img_round_up(off + len, (uint64_t)l->block),
                           l->size);
    struct img_cursor c;

    off = img_round_down(off, (uint64_t)l->block);
    img_cursor_init(&c, io->chain, 0, off, end - off, IMG_RUN_CACHED);
    while (off < end) {
        struct img_run run;
        unsigned depth;

        if (img_cursor_next(&c, &run, &depth, NULL) < 0 ||
            (run.kind != IMG_RUN_ABSENT && run.kind != IMG_RUN_ZERO))
            return false;
        off += run.len;
    }
    return true;
}

static bool change_in_place(struct img_io *io, struct img_scatter *s,
                            uint64_t off, size_t len)
{
    struct img_range range;
    size_t done;
    int r;

    if (!img_range_try(&io->ranges, &range, off, len, false))
        return false;
    r = write_in_place(io, 0, s, off, len, &done, NULL);
    img_range_unlock(&io->ranges, &range);
    return r == 0 && done == len;
}

static bool add_new(struct img_io *io, struct img_scatter *s, uint64_t off,
                    size_t len)
{
    struct img_range range;
    uint64_t from, end;
    bool ok;

    widen(io, 0, off, len, &from, &end);
    if (!img_range_try(&io->ranges, &range, from, end - from, true))
        return false;
    ok = is_nowhere(io, off, len) &&
         img_write_locked(io, 0, s, 0, off, len, NULL) == 0;
    img_range_unlock(&io->ranges, &range);
    return ok;
}

int img_io_write_now(struct img_io *io, const struct iovec *iov, int n,
                     uint64_t off)
{
    size_t len = img_iov_total(iov, n);
    struct img_scatter s;
    bool ok;

    if ((io->chain->opts.flags & IMG_OPEN_WRITETHROUGH) ||
        !is_cached(io->chain->layers[0]) ||
        !img_inside(off, len, io->chain->layers[0]->size) ||
        !img_is_aligned(off | len, io->chain->align) ||
        img_head_is_guarded(io, 0, off, len) ||
        img_begin_change(io, 0, off, len, NULL) < 0 ||
        img_scatter_init(&s, iov, n, NULL) < 0)
        return -EAGAIN;
    ok = is_in_place(io, off, len) ? change_in_place(io, &s, off, len) :
        add_new(io, &s, off, len);
    img_scatter_free(&s);
    return ok ? 0 : -EAGAIN;
}

/* ---- the steps apart --------------------------------------------------- */

int img_io_reserve_packed(struct img_io *io, unsigned to, uint64_t off,
                          uint32_t packed, struct img_place *place,
                          struct img_error *err)
{
    const struct img_layer *l = io->chain->layers[to];
    uint64_t cluster = UINT64_C(1) << l->cluster_bits;
    struct img_want want = { .off = off, .packed = packed };
    int r;

    if (off >= l->size)
        return img_fail(err, EINVAL, "%s: %llu is beyond its end", l->path,
                        (unsigned long long)off);
    want.len = IMG_MIN(cluster, l->size - off);
    r = img_begin_change(io, to, off, want.len, err);
    if (r < 0)
        return r;
    *place = (struct img_place){ 0 };
    return reserve(io, to, &want, place, err);
}

int img_io_reserve(struct img_io *io, unsigned to, uint64_t off, uint64_t len,
                   struct img_place *places, unsigned max, unsigned *n,
                   struct img_error *err)
{
    struct img_layer *l = io->chain->layers[to];
    int r = img_begin_change(io, to, off, len, err);

    *n = 0;
    while (r == 0 && len && *n < max) {
        struct img_want want = { .off = off, .len = len };

        places[*n] = (struct img_place){ 0 };
        r = reserve(io, to, &want, &places[*n], err);
        if (r < 0)
            break;
        off += places[*n].len;
        len -= places[*n].len;
        (*n)++;
    }
    while (r < 0 && *n) {
        (*n)--;
        if (places[*n].fresh)
            l->format->abandon(l, &places[*n]);
    }
    return r;
}
