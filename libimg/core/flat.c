/* The layers below the top as one.
 *
 * The disk is seen in windows.  A window is painted once, from the top down:
 * each layer is walked through the parts that no layer above it has, so that
 * it costs one walk of each layer, not one of each layer for every run.  The
 * runs that come out are kept, oldest windows going first.
 *
 * Invariant: layers 1..n-1 are not writable and not exchanged as long as the
 * struct lives; core/chain.c frees it before it changes one.
 * Locks: lock guards the table and what is in it; painting is done without.
 */
#include "core/flat.h"
#include "base/checked.h"
#include "base/sync.h"

#include <stdlib.h>
#include <string.h>

enum {
    LAYERS_MIN = 4,             /* fewer are asked one by one */
    WINDOW_MIN_BITS = 16, WINDOW_MAX_BITS = 27,
    CLUSTERS_BITS = 11,         /* in a window, of the smallest size */
    PARTS_MAX = 4096,
    BUCKETS = 256,
};

struct part {
    uint64_t off, host;
    uint32_t len, host_max, unpacked_min;
    uint16_t depth, file;
    uint8_t kind, codec;
};

struct window {
    struct window *next;        /* in its bucket */
    struct window *younger;
    uint64_t number;
    unsigned n;                 /* 0 = too many: the layers are asked */
    struct part parts[];
};

struct img_flat {
    struct img_mutex lock;
    struct window *buckets[BUCKETS];
    struct window *oldest, *youngest;
    uint64_t used, budget;
    unsigned window_bits;
    bool places;                /* absent blocks may have places */
};

/* A subcluster has a place when others of its cluster are there. */
static bool has_places(const struct img_layer *l)
{
    return l->format->tells_places &&
           l->block < UINT32_C(1) << l->cluster_bits;
}

struct img_flat *img_flat_new(struct img_chain *c, uint64_t budget)
{
    unsigned bits = WINDOW_MAX_BITS - CLUSTERS_BITS;
    struct img_flat *f;

    if (c->n < LAYERS_MIN)
        return NULL;
    for (unsigned d = 1; d < c->n; d++) {
        const struct img_layer *l = c->layers[d];

        if (l->writable)
            return NULL;
        if (!l->format->publish)
            continue;           /* raw: one run, whatever its blocks are */
        bits = IMG_MIN(bits, l->cluster_bits);
        if (l->block)
            bits = IMG_MIN(bits, img_log2(l->block));
    }
    f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    img_mutex_init(&f->lock);
    f->budget = budget;
    for (unsigned d = 0; d < c->n; d++)
        f->places |= has_places(c->layers[d]);
    f->window_bits = IMG_MAX(bits + CLUSTERS_BITS, (unsigned)WINDOW_MIN_BITS);
    return f;
}

void img_flat_free(struct img_flat *f)
{
    if (!f)
        return;
    while (f->oldest) {
        struct window *w = f->oldest;

        f->oldest = w->younger;
        free(w);
    }
    img_mutex_destroy(&f->lock);
    free(f);
}

/* ---- painting ---------------------------------------------------------- */

struct gap {
    uint64_t off, end;
};

/* A window in the making.  Gaps are what no layer has had so far, in order;
 * each layer leaves a new list of them. */
struct canvas {
    struct window *w;
    struct gap *gaps, *left;
    unsigned n_gaps, n_left;
    bool full;
};

static bool add_part(struct canvas *c, const struct img_run *run,
                     unsigned depth)
{
    if (c->w->n == PARTS_MAX || depth > UINT16_MAX ||
        run->file > UINT16_MAX) {
        c->full = true;
        return false;
    }
    c->w->parts[c->w->n++] = (struct part){
        .off = run->off, .len = (uint32_t)run->len, .host = run->host,
        .host_max = run->host_max, .unpacked_min = run->unpacked_min,
        .depth = (uint16_t)depth, .file = (uint16_t)run->file,
        .kind = (uint8_t)run->kind, .codec = (uint8_t)run->codec,
    };
    return true;
}

static bool leave_gap(struct canvas *c, uint64_t off, uint64_t end)
{
    struct gap *last = c->n_left ? &c->left[c->n_left - 1] : NULL;

    if (last && last->end == off) {
        last->end = end;
        return true;
    }
    if (c->n_left == PARTS_MAX) {
        c->full = true;
        return false;
    }
    c->left[c->n_left++] = (struct gap){ off, end };
    return true;
}

/* What of a layer's run lies in the gaps from number *i on, which ends past
 * those that it fills. */
static bool paint_run(struct canvas *c, const struct img_run *run,
                      unsigned depth, unsigned *i)
{
    uint64_t to = run->off + run->len;

    for (; *i < c->n_gaps && c->gaps[*i].off < to; ++*i) {
        uint64_t off = IMG_MAX(c->gaps[*i].off, run->off);
        uint64_t end = IMG_MIN(c->gaps[*i].end, to);
        struct img_run part = *run;
        bool ok;

        img_run_skip(&part, off - run->off);
        part.len = end - off;
        if (run->kind == IMG_RUN_ABSENT)
            ok = leave_gap(c, off, end);
        else
            ok = add_part(c, &part, depth);
        if (!ok)
            return false;
        if (c->gaps[*i].end > to)
            break;
    }
    return true;
}

/* A layer is asked past the gaps' ends: what it lacks is often far more than
 * one gap. */
static bool paint_layer(struct canvas *c, struct img_layer *l, unsigned depth)
{
    uint64_t off = c->gaps[0].off, end = c->gaps[c->n_gaps - 1].end;
    struct gap *swap = c->gaps;
    unsigned i = 0;

    c->n_left = 0;
    while (i < c->n_gaps) {
        struct img_run run;

        off = IMG_MAX(off, c->gaps[i].off);
        if (img_layer_ask(l, off, end - off, 0, &run, NULL) < 0)
            return false;
        off += run.len;
        if (run.kind == IMG_RUN_ABSENT && run.off == c->gaps[0].off &&
            off == end)
            return true;
        if (!paint_run(c, &run, depth, &i))
            return false;
    }
    c->gaps = c->left;
    c->left = swap;
    c->n_gaps = c->n_left;
    return true;
}

static bool paint(struct canvas *c, struct img_chain *chain)
{
    uint64_t off = c->gaps[0].off, len = c->gaps[0].end - off;

    for (unsigned d = 1; d < chain->n && c->n_gaps; d++) {
        struct img_layer *l = chain->layers[d];

        if (!paint_layer(c, l, d))
            return false;
        if (l->format->passed)
            l->format->passed(l, off, len);
    }
    for (unsigned i = 0; i < c->n_gaps; i++) {
        struct img_run run = {
            .off = c->gaps[i].off, .len = c->gaps[i].end - c->gaps[i].off,
            .kind = IMG_RUN_ABSENT, .host = UINT64_MAX,
        };

        if (!add_part(c, &run, chain->n))
            return false;
    }
    return true;
}

static int by_offset(const void *a, const void *b)
{
    uint64_t x = ((const struct part *)a)->off;
    uint64_t y = ((const struct part *)b)->off;

    return (x > y) - (x < y);
}

static struct img_run to_run(const struct part *p)
{
    return (struct img_run){
        .off = p->off, .len = p->len, .kind = p->kind, .file = p->file,
        .host = p->host, .host_max = p->host_max, .codec = p->codec,
        .unpacked_min = p->unpacked_min,
    };
}

/* Joins what goes on; the parts are in order. */
static void join_parts(struct window *w)
{
    unsigned n = 0;

    for (unsigned i = 1; i < w->n; i++) {
        struct img_run a = to_run(&w->parts[n]), b = to_run(&w->parts[i]);

        if (img_run_continues(&a, w->parts[n].depth, &b, w->parts[i].depth))
            w->parts[n].len += w->parts[i].len;
        else
            w->parts[++n] = w->parts[i];
    }
    w->n = n + 1;
}

static struct window *new_window(const struct img_flat *f,
                                 struct img_chain *chain, uint64_t number)
{
    size_t gaps = PARTS_MAX * sizeof(struct gap);
    struct canvas c = {
        .w = malloc(sizeof *c.w + PARTS_MAX * sizeof(struct part)),
        .gaps = malloc(gaps), .left = malloc(gaps), .n_gaps = 1,
    };
    struct window *w = NULL;

    if (c.w && c.gaps && c.left) {
        c.w->n = 0;
        c.w->number = number;
        c.gaps[0].off = number << f->window_bits;
        c.gaps[0].end = (number + 1) << f->window_bits;
        if (paint(&c, chain) && c.w->n) {
            qsort(c.w->parts, c.w->n, sizeof(struct part), by_offset);
            join_parts(c.w);
        } else {
            c.w->n = 0;
        }
        if (c.w->n || c.full) {
            w = realloc(c.w, sizeof *w + c.w->n * sizeof(struct part));
            c.w = w ? NULL : c.w;
        }
    }
    free(c.w);
    free(c.gaps);
    free(c.left);
    return w;
}

/* ---- remembering ------------------------------------------------------- */

static struct window **bucket_of(struct img_flat *f, uint64_t number)
{
    return &f->buckets[number % BUCKETS];
}

static struct window *find(struct img_flat *f, uint64_t number)
{
    struct window *w = *bucket_of(f, number);

    while (w && w->number != number)
        w = w->next;
    return w;
}

static uint64_t cost_of(const struct window *w)
{
    return sizeof *w + w->n * sizeof(struct part);
}

static void drop_oldest(struct img_flat *f)
{
    struct window *w = f->oldest;
    struct window **p = bucket_of(f, w->number);

    while (*p != w)
        p = &(*p)->next;
    *p = w->next;
    f->oldest = w->younger;
    if (!f->oldest)
        f->youngest = NULL;
    f->used -= cost_of(w);
    free(w);
}

/* Somebody else may have painted the same window meanwhile. */
static struct window *keep(struct img_flat *f, struct window *w)
{
    struct window *other = find(f, w->number);
    struct window **p = bucket_of(f, w->number);

    if (other) {
        free(w);
        return other;
    }
    w->next = *p;
    *p = w;
    w->younger = NULL;
    if (f->youngest)
        f->youngest->younger = w;
    else
        f->oldest = w;
    f->youngest = w;
    f->used += cost_of(w);
    while (f->used > f->budget && f->oldest != w)
        drop_oldest(f);
    return w;
}

static void answer(const struct window *w, uint64_t off, uint64_t len,
                   struct img_run *run, unsigned *depth)
{
    unsigned low = 0, high = w->n - 1;

    while (low < high) {
        unsigned mid = (low + high + 1) / 2;

        if (w->parts[mid].off <= off)
            low = mid;
        else
            high = mid - 1;
    }
    *run = to_run(&w->parts[low]);
    *depth = w->parts[low].depth;
    img_run_skip(run, off - run->off);
    run->len = IMG_MIN(run->len, len);
}

bool img_flat_map(struct img_flat *f, struct img_chain *chain, uint64_t off,
                  uint64_t len, bool cached, struct img_run *run,
                  unsigned *depth)
{
    uint64_t number = off >> f->window_bits;
    struct window *w;
    bool known;

    img_lock(&f->lock);
    w = find(f, number);
    if (!w && !cached) {
        img_unlock(&f->lock);
        w = new_window(f, chain, number);
        img_lock(&f->lock);
        if (w)
            w = keep(f, w);
    }
    known = w && w->n;
    if (known)
        answer(w, off, len, run, depth);
    img_unlock(&f->lock);
    return known;
}

bool img_flat_tells(const struct img_flat *f, unsigned flags)
{
    return f && !(f->places && (flags & IMG_RUN_PLACES));
}
