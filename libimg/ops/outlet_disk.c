/* Copying into a layer of an open disk.
 *
 * place, in turn, makes every decision that the layout depends on: it
 * reserves, and does what has no place of its own (zeros, ranges that end
 * inside a block).  put, in parallel, writes and publishes.  Packed clusters
 * are written byte-exact: the next one may begin in the same sector.
 */
#include "ops/copy.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/iov.h"
#include "cache/zcache.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

static struct img_layer *target(const struct img_copy *c)
{
    return c->to->chain->layers[c->to_layer];
}

/* ---- placing ----------------------------------------------------------- */

static int room_for_places(struct img_batch *b, struct img_error *err)
{
    unsigned max = b->max_places * 2;
    struct img_place *places;

    if (b->n_places < b->max_places)
        return 0;
    places = realloc(b->places, max * sizeof *places);
    if (!places)
        return img_fail_nomem(err);
    b->places = places;
    b->max_places = max;
    return 0;
}

/* Nobody fills a fresh place up here: what is written has to be all of it. */
static int check_fill(struct img_copy *c, const struct img_place *p,
                      uint64_t off, struct img_error *err)
{
    if (!p->fresh ||
        (p->fill_off >= off && p->fill_len <= p->off + p->len - p->fill_off))
        return 0;
    return img_fail(err, EIO, "%s: offset %llu: the place reserved does not "
                    "fit what is to be written", target(c)->path,
                    (unsigned long long)off);
}

static int reserve(struct img_copy *c, struct img_batch *b,
                   const struct img_piece *piece, struct img_error *err)
{
    uint64_t off = piece->off, end = off + piece->len;

    while (off < end) {
        unsigned n = 0;
        int r = room_for_places(b, err);

        if (r < 0)
            return r;
        r = img_io_reserve(c->to, c->to_layer, off, end - off,
                           b->places + b->n_places,
                           b->max_places - b->n_places, &n, err);
        if (r < 0)
            return r;
        for (; n; n--) {
            const struct img_place *p = &b->places[b->n_places++];

            r = check_fill(c, p, off, err);
            if (r < 0) {
                b->n_places += n - 1;   /* put gives them back */
                return r;
            }
            off += p->len;
        }
    }
    return 0;
}

static int reserve_packed(struct img_copy *c, struct img_batch *b,
                          const struct img_piece *piece,
                          struct img_error *err)
{
    int r = room_for_places(b, err);

    if (r == 0)
        r = img_io_reserve_packed(c->to, c->to_layer, piece->off,
                                  piece->packed, &b->places[b->n_places],
                                  err);
    if (r == 0)
        b->n_places++;
    return r;
}

/* A piece that ends inside a block which goes on in the target. */
static bool is_partial(const struct img_copy *c, const struct img_piece *p)
{
    uint64_t end = p->off + p->len;

    return !img_is_aligned(end, c->unit) && end != target(c)->size;
}

static int place_plain(struct img_copy *c, struct img_batch *b,
                       struct img_piece *p, struct img_error *err)
{
    bool guarded = img_head_is_guarded(c->to, c->to_layer, p->off, p->len);
    uint64_t whole = guarded ? 0 : img_round_down(p->len, c->unit);
    struct iovec iov;
    int r = 0;

    if (!guarded && !is_partial(c, p))
        return reserve(c, b, p, err);
    iov = (struct iovec){ (void *)(p->data + whole),
                          (size_t)(p->len - whole) };
    r = img_io_write(c->to, c->to_layer, &iov, 1, p->off + whole, 0, err);
    p->len = whole;
    return r < 0 || !whole ? r : reserve(c, b, p, err);
}

static int write_zeros(struct img_copy *c, uint64_t off, uint64_t len,
                       struct img_error *err)
{
    enum { PIECE = 1 << 20 };
    struct iovec iov = { NULL, (size_t)IMG_MIN(len, (uint64_t)PIECE) };
    int r = 0;

    iov.iov_base = calloc(1, iov.iov_len);
    if (!iov.iov_base)
        return img_fail_nomem(err);
    for (; len && r == 0; off += iov.iov_len, len -= iov.iov_len) {
        iov.iov_len = IMG_MIN(iov.iov_len, len);
        r = img_io_write(c->to, c->to_layer, &iov, 1, off, 0, err);
    }
    free(iov.iov_base);
    return r;
}

/* Zeros where there are none yet, also by what the file system knows. */
static int add_zeros(struct img_copy *c, uint64_t off, uint64_t len,
                     struct img_error *err)
{
    int r = 0;

    while (len && r == 0) {
        struct img_run run = { 0 };
        unsigned depth;

        r = img_chain_map(c->to->chain, c->to_layer, off, len, IMG_RUN_EXACT,
                          &run, &depth, err);
        if (r == 0 && run.kind != IMG_RUN_ABSENT && run.kind != IMG_RUN_ZERO)
            r = img_io_zero(c->to, c->to_layer, off, run.len, IMG_MAY_UNMAP,
                            err);
        off += run.len;
        len -= run.len;
    }
    return r;
}

static int place_zeros(struct img_copy *c, const struct img_piece *p,
                       struct img_error *err)
{
    int r;

    if (!c->force_zero)
        return add_zeros(c, p->off, p->len, err);
    r = img_io_unmap(c->to, c->to_layer, p->off, p->len, IMG_UNMAP_ZERO_OWN,
                     err);
    return r == -ENOTSUP ? write_zeros(c, p->off, p->len, err) : r;
}

static int disk_place(struct img_copy *c, struct img_batch *b,
                      struct img_error *err)
{
    int r = 0;

    for (unsigned i = 0; i < b->n && r == 0; i++) {
        struct img_piece *p = &b->pieces[i];

        switch (p->kind) {
        case IMG_PIECE_ZERO:
            r = place_zeros(c, p, err);
            break;
        case IMG_PIECE_PACKED:
            r = reserve_packed(c, b, p, err);
            break;
        case IMG_PIECE_PLAIN:
            r = place_plain(c, b, p, err);
            break;
        case IMG_PIECE_SHARED:
            r = reserve(c, b, p, err);
            break;
        }
    }
    return r;
}

/* ---- writing ----------------------------------------------------------- */

/* Writes what is not zeros, in steps of c->sparse. */
static int write_sparsely(struct img_copy *c, struct img_file *f,
                          const uint8_t *data, uint64_t off, size_t len,
                          uint64_t host, struct img_error *err)
{
    size_t done = 0, from = 0;
    int r = 0;

    while (done < len && r == 0) {
        size_t step = c->sparse - (size_t)((off + done) & (c->sparse - 1u));

        step = IMG_MIN(step, len - done);
        if (img_is_zero(data + done, step)) {
            if (done > from)
                r = img_file_pwrite(f, data + from, done - from, host + from,
                                    err);
            from = done + step;
        }
        done += step;
    }
    if (r == 0 && len > from)
        r = img_file_pwrite(f, data + from, len - from, host + from, err);
    return r;
}

static bool may_leave_holes(const struct img_copy *c,
                            const struct img_place *p)
{
    if (!c->sparse)
        return false;
    return p->fresh ? p->zeroed : c->target_zero;
}

/* How many bytes the place takes, and where its data are. */
static size_t place_bytes(const struct img_place *p)
{
    return p->packed ? p->packed : (size_t)p->len;
}

static const uint8_t *place_data(const struct img_piece *piece,
                                 const struct img_place *p)
{
    return piece->data + (p->packed ? 0 : p->off - piece->off);
}

static int write_run(struct img_copy *c, const struct img_place *p,
                     const uint8_t *data, size_t len, struct img_error *err)
{
    struct img_file *f = target(c)->files[p->file];

    if (!p->packed && may_leave_holes(c, p))
        return write_sparsely(c, f, data, p->off, len, p->host, err);
    return img_file_pwrite(f, data, len, p->host, err);
}

/* The file system could not share these blocks after all. */
static int copy_blocks(struct img_copy *c, struct img_batch *b,
                       const struct img_piece *piece,
                       const struct img_place *p, struct img_error *err)
{
    struct img_file *f = target(c)->files[p->file];
    uint64_t done = 0;
    int r = 0;

    while (done < p->len && r == 0) {
        size_t now = (size_t)IMG_MIN(p->len - done, (uint64_t)c->claim_max);

        r = img_file_pread(piece->file, b->in, now,
                           piece->host + (p->off - piece->off) + done, err);
        if (r == 0)
            r = img_file_pwrite(f, b->in, now, p->host + done, err);
        done += now;
    }
    return r;
}

static int share_blocks(struct img_copy *c, struct img_batch *b,
                        const struct img_piece *piece,
                        const struct img_place *p, struct img_error *err)
{
    struct img_error ignored;
    int r = img_file_reflink(target(c)->files[p->file], p->host, piece->file,
                             piece->host + (p->off - piece->off), p->len,
                             &ignored);

    if (r == -ENOTSUP)
        return copy_blocks(c, b, piece, p, err);
    if (r < 0 && err)
        *err = ignored;
    return r;
}

static int publish(struct img_copy *c, const struct img_place *places,
                   unsigned n, unsigned *done, struct img_error *err)
{
    struct img_layer *layer = target(c);
    int r = 0;

    for (*done = 0; *done < n && r == 0; ++*done) {
        const struct img_place *p = &places[*done];

        /* Another cluster may have been inflated from here before. */
        if (p->packed)
            img_zcache_forget(c->to->chain->inflated, layer->files[p->file],
                              p->host);
        if (p->fresh || p->packed)
            r = layer->format->publish(layer, p, err);
    }
    return r;
}

static void give_back(struct img_copy *c, struct img_batch *b, unsigned from)
{
    struct img_layer *layer = target(c);

    for (unsigned i = from; i < b->n_places; i++)
        if ((b->places[i].fresh || b->places[i].packed) &&
            layer->format->abandon)
            layer->format->abandon(layer, &b->places[i]);
}

/* The piece that place number i belongs to; *at moves forward only. */
static const struct img_piece *piece_of(const struct img_batch *b,
                                        unsigned i, unsigned *at)
{
    while (b->pieces[*at].kind == IMG_PIECE_ZERO ||
           b->places[i].off >= b->pieces[*at].off + b->pieces[*at].len)
        ++*at;
    return &b->pieces[*at];
}

/* Writes places i..: as many as lie one behind the other both in memory and
 * in the file.  *n says how many. */
static int put_run(struct img_copy *c, struct img_batch *b, unsigned i,
                   unsigned *at, unsigned *n, struct img_error *err)
{
    const struct img_piece *piece = piece_of(b, i, at);
    const struct img_place *p = &b->places[i];
    size_t len = place_bytes(p);
    const uint8_t *data;

    *n = 1;
    if (piece->kind == IMG_PIECE_SHARED)
        return share_blocks(c, b, piece, p, err);
    data = place_data(piece, p);
    for (unsigned k = i + 1; k < b->n_places; k++, ++*n) {
        const struct img_place *q = &b->places[k];
        unsigned look = *at;

        piece = piece_of(b, k, &look);
        if (q->file != p->file || q->host != p->host + len ||
            !q->packed != !p->packed || q->fresh != p->fresh ||
            q->zeroed != p->zeroed || piece->kind == IMG_PIECE_SHARED ||
            place_data(piece, q) != data + len)
            break;
        len += place_bytes(q);
        *at = look;
    }
    return write_run(c, p, data, len, err);
}

static int disk_put(struct img_copy *c, struct img_batch *b, bool failed,
                    struct img_error *err)
{
    unsigned at = 0, i = 0, n, done;
    int r = failed ? -ECANCELED : 0;

    while (i < b->n_places && r == 0) {
        r = put_run(c, b, i, &at, &n, err);
        if (r < 0)
            break;
        r = publish(c, b->places + i, n, &done, err);
        i += done;
    }
    if (r < 0)
        give_back(c, b, i);
    return r;
}

const struct img_outlet_ops img_outlet_disk = {
    .place = disk_place, .put = disk_put,
};
