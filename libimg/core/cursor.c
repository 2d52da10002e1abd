/* Where guest bytes are, through all layers.
 *
 * One step asks the layers from the top down until one knows; each answer
 * shortens what the next layer is asked for.  Steps that continue each other
 * are joined.  Deep chains are asked through core/flat, which remembers what
 * the layers below the top said together.
 */
#include "core/chain.h"
#include "core/flat.h"
#include "base/checked.h"
#include "base/error.h"

void img_layer_break(struct img_layer *layer)
{
    __atomic_store_n(&layer->broken, true, __ATOMIC_RELAXED);
}

bool img_layer_is_broken(const struct img_layer *layer)
{
    return __atomic_load_n(&layer->broken, __ATOMIC_RELAXED);
}

static int ask(struct img_layer *l, uint64_t off, uint64_t len,
               unsigned flags, struct img_run *run, struct img_error *err)
{
    int r;

    *run = (struct img_run){ .off = off };  /* what a format leaves out is 0 */
    r = l->format->map(l, off, len, flags, run, err);

    if (r == -IMG_ECORRUPT && l->writable)
        img_layer_break(l);
    if (r < 0)
        return r;
    if (run->off != off || !run->len || run->len > len ||
        ((run->kind == IMG_RUN_DATA || run->kind == IMG_RUN_PACKED) &&
         (run->file >= l->n_files || !l->files[run->file])))
        return img_fail(err, EIO, "%s: no place is known for the %llu bytes "
                        "at %llu", l->path, (unsigned long long)len,
                        (unsigned long long)off);
    return 0;
}

int img_layer_ask(struct img_layer *l, uint64_t off, uint64_t len,
                  unsigned flags, struct img_run *run, struct img_error *err)
{
    if (off < l->size)
        return ask(l, off, IMG_MIN(len, l->size - off), flags, run, err);
    *run = (struct img_run){
        .off = off, .len = len, .kind = IMG_RUN_ZERO, .host = UINT64_MAX,
    };
    return 0;
}

/* Which place an absent run has all the same; formats that know of none leave
 * the field as it comes. */
static uint64_t place_of(const struct img_layer *l, const struct img_run *run,
                         unsigned flags)
{
    return (flags & IMG_RUN_PLACES) && l->format->tells_places ? run->host
                                                               : UINT64_MAX;
}

/* The run at off as far as one answer of each layer reaches. */
static int step(struct img_chain *c, unsigned from, uint64_t off,
                uint64_t len, unsigned flags, struct img_run *run,
                unsigned *depth, struct img_error *err)
{
    bool flat = img_flat_tells(c->flat, flags);
    uint64_t place = UINT64_MAX;

    for (unsigned d = from; d < c->n; d++) {
        int r;

        if (d == 1 && flat &&
            img_flat_map(c->flat, c, off, len, flags & IMG_RUN_CACHED, run,
                         depth)) {
            /* What is data is for its layer to say more exactly. */
            if (!(flags & IMG_RUN_EXACT) || run->kind != IMG_RUN_DATA)
                return 0;
            return img_layer_ask(c->layers[*depth], off, run->len, flags,
                                 run, err);
        }
        /* Asking the layers now would put off for ever that flat learns. */
        if (d == 1 && flat && (flags & IMG_RUN_CACHED))
            return -EAGAIN;
        *depth = d;
        r = img_layer_ask(c->layers[d], off, len, flags, run, err);
        if (r < 0)
            return r;
        if (run->kind != IMG_RUN_ABSENT) {
            if (off >= c->layers[d]->size)
                run->host = place;
            return 0;
        }
        place = place_of(c->layers[d], run, flags);
        len = run->len;
    }
    *depth = c->n;
    *run = (struct img_run){
        .off = off, .len = len, .kind = IMG_RUN_ABSENT, .host = place,
    };
    return 0;
}

bool img_run_continues(const struct img_run *a, unsigned a_depth,
                       const struct img_run *b, unsigned b_depth)
{
    if (a->kind != b->kind || a_depth != b_depth)
        return false;
    switch (a->kind) {
    case IMG_RUN_PACKED:
        return false;
    case IMG_RUN_ABSENT:
    case IMG_RUN_ZERO:
        if (a->sparse != b->sparse)
            return false;
        if (a->host == UINT64_MAX || b->host == UINT64_MAX)
            return a->host == b->host;
        break;
    case IMG_RUN_DATA:
        break;
    }
    return a->file == b->file && a->host + a->len == b->host;
}

void img_run_skip(struct img_run *run, uint64_t bytes)
{
    run->off += bytes;
    run->len -= bytes;
    if (run->kind == IMG_RUN_DATA ||
        (run->kind != IMG_RUN_PACKED && run->host != UINT64_MAX))
        run->host += bytes;
}

void img_cursor_init(struct img_cursor *c, struct img_chain *chain,
                     unsigned from, uint64_t off, uint64_t len,
                     unsigned flags)
{
    c->chain = chain;
    c->from = from;
    c->flags = flags;
    c->off = off;
    c->end = off + len;
    c->ahead = false;
}

int img_cursor_next(struct img_cursor *c, struct img_run *run,
                    unsigned *depth, struct img_error *err)
{
    int r;

    if (c->ahead) {
        *run = c->next;
        *depth = c->next_depth;
        c->ahead = false;
    } else {
        r = step(c->chain, c->from, c->off, c->end - c->off, c->flags, run,
                 depth, err);
        if (r < 0)
            return r;
    }
    c->off = run->off + run->len;
    while (c->off < c->end && run->kind != IMG_RUN_PACKED) {
        /* What is wrong further on is reported when its turn comes. */
        r = step(c->chain, c->from, c->off, c->end - c->off, c->flags,
                 &c->next, &c->next_depth, NULL);
        if (r < 0)
            break;
        if (!img_run_continues(run, *depth, &c->next, c->next_depth)) {
            c->ahead = true;
            break;
        }
        run->len += c->next.len;
        c->off += c->next.len;
    }
    return 0;
}

int img_chain_map(struct img_chain *chain, unsigned from, uint64_t off,
                  uint64_t len, unsigned flags, struct img_run *run,
                  unsigned *depth, struct img_error *err)
{
    struct img_cursor c;

    img_cursor_init(&c, chain, from, off, len, flags);
    return img_cursor_next(&c, run, depth, err);
}
