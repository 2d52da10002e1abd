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
#include "file/file.h"

#include <string.h>

void img_layer_break(struct img_layer *layer)
{
    __atomic_store_n(&layer->broken, true, __ATOMIC_RELAXED);
}

bool img_layer_is_broken(const struct img_layer *layer)
{
    return __atomic_load_n(&layer->broken, __ATOMIC_RELAXED);
}

int img_layer_may_change(const struct img_layer *l, struct img_error *err)
{
    if (!l->writable)
        return img_fail(err, EROFS, "%s: not open for writing", l->path);
    if (img_layer_is_broken(l))
        return img_fail(err, IMG_ECORRUPT, "%s: is not written any more: it "
                        "was found to be corrupt, or writing its header "
                        "failed", l->path);
    return 0;
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

/* ---- holes of files ---------------------------------------------------- */

/* Where the first hole is that begins behind off. */
static unsigned hole_behind(const struct img_holes *h, uint64_t off)
{
    unsigned from = 0, to = h->n;

    while (from < to) {
        unsigned middle = (from + to) / 2;

        if (h->list[middle].from <= off)
            from = middle + 1;
        else
            to = middle;
    }
    return from;
}

/* How many bytes of a known hole there are from off. */
static uint64_t known_hole(const struct img_holes *h,
                           const struct img_file *file, uint64_t off)
{
    unsigned i;

    if (!h || !h->n || h->file != file)
        return 0;
    i = hole_behind(h, off);
    return i && off < h->list[i - 1].to ? h->list[i - 1].to - off : 0;
}

/* It was not known.  A file tells how far a hole reaches, not where it
 * began. */
static void learn_hole(struct img_holes *h, const struct img_file *file,
                       uint64_t from, uint64_t to)
{
    const unsigned room = sizeof h->list / sizeof h->list[0];
    unsigned i;

    if (!h)
        return;
    if (h->file != file || h->n == room)
        h->n = 0;
    h->file = file;
    i = hole_behind(h, from);
    if (i == h->n || h->list[i].from > to) {
        memmove(&h->list[i + 1], &h->list[i],
                (h->n - i) * sizeof h->list[0]);
        h->list[i].to = to;
        h->n++;
    }
    h->list[i].from = from;
}

static int look_for_hole(struct img_layer *l, struct img_run *run,
                         struct img_holes *holes, struct img_error *err)
{
    struct img_file *f = l->files[run->file];
    uint64_t n = known_hole(holes, f, run->host);
    bool is_data = false;
    int r;

    if (!n) {
        r = img_file_extent(f, run->host, INT64_MAX - run->host, &is_data,
                            &n, err);
        if (r < 0)
            return r;
        if (!is_data)
            learn_hole(holes, f, run->host, run->host + n);
    }
    run->len = IMG_MIN(run->len, n);
    if (is_data)
        return 0;
    run->kind = IMG_RUN_ZERO;
    run->sparse = true;
    return 0;
}

/* ---- layers ------------------------------------------------------------ */

/* What is data for the format may be a hole of its file. */
static int look_closer(struct img_layer *l, unsigned flags,
                       struct img_run *run, struct img_holes *holes,
                       struct img_error *err)
{
    if (!(flags & IMG_RUN_EXACT) || (flags & IMG_RUN_CACHED) ||
        run->kind != IMG_RUN_DATA || !l->format->may_be_sparse ||
        !l->format->may_be_sparse(l))
        return 0;
    return look_for_hole(l, run, holes, err);
}

static int ask_layer(struct img_layer *l, uint64_t off, uint64_t len,
                     unsigned flags, struct img_run *run,
                     struct img_holes *holes, struct img_error *err)
{
    int r = img_layer_ask(l, off, len, flags, run, err);

    return r < 0 ? r : look_closer(l, flags, run, holes, err);
}

/* The run at off as far as one answer of each layer reaches. */
static int step(struct img_cursor *cursor, struct img_run *run,
                unsigned *depth, struct img_error *err)
{
    struct img_chain *c = cursor->chain;
    uint64_t place = UINT64_MAX, off = cursor->off, len = cursor->end - off;
    unsigned flags = cursor->flags;
    bool flat = img_flat_tells(c->flat, flags);

    for (unsigned d = cursor->from; d < c->n; d++) {
        int r;

        if (d == 1 && flat &&
            img_flat_map(c->flat, c, off, len, flags & IMG_RUN_CACHED, run,
                         depth)) {
            struct img_layer *l;

            if (!(flags & IMG_RUN_EXACT) || run->kind != IMG_RUN_DATA)
                return 0;
            l = c->layers[*depth];
            return l->format->may_be_sparse
                ? look_closer(l, flags, run, cursor->holes, err)
                : ask_layer(l, off, run->len, flags, run, NULL, err);
        }
        /* Asking the layers now would put off for ever that flat learns. */
        if (d == 1 && flat && (flags & IMG_RUN_CACHED))
            return -EAGAIN;
        *depth = d;
        r = ask_layer(c->layers[d], off, len, flags, run, cursor->holes, err);
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
    c->holes = NULL;
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
        r = step(c, run, depth, err);
        if (r < 0)
            return r;
    }
    c->off = run->off + run->len;
    while (c->off < c->end && run->kind != IMG_RUN_PACKED) {
        /* What is wrong further on is reported when its turn comes. */
        r = step(c, &c->next, &c->next_depth, NULL);
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
