/* Cache of metadata tables.
 *
 * Entries hang in hash chains.  A group of chains has a lock of its own, so
 * that hits from several threads meet rarely; a pin is a count that is only
 * raised under that lock and may be lowered without any.  Everything else
 * (the CLOCK, what is dirty, stages, putting into chains and taking out of
 * them) is under the one lock `lock`, which comes before the groups' locks.
 *
 * An entry is in one of three places: in the ring of clean ones, in the list
 * of dirty ones, or, clean but not yet written, only in its stage.  Only
 * those in the ring can be evicted.  An entry that was forgotten while it is
 * pinned is in no place any more (ORPHAN); its last user frees it.
 */
#include "cache/tcache.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/sync.h"
#include "file/file.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    GROUPS = 64,                /* of chains, a power of two */
    UNIT = 512,                 /* of what is dirty */
    BRIDGE = 4096               /* clean bytes written rather than skipped */
};
#define ORPHAN 0x80000000u

struct entry {
    struct img_slice slice;     /* the first member: callers hold this */
    struct entry *chain;
    struct entry *next, *prev;  /* in the ring or in the dirty list */
    atomic_uint pins;           /* and ORPHAN */
    atomic_bool used;           /* since the CLOCK's hand came by */
    bool loading;               /* under the group's lock */
    bool dirty;                 /* the rest: under cache->lock */
    struct img_stage *stage;    /* that has not been written */
    uint32_t cost;
    uint32_t n_words;
    uint64_t changed[];         /* a bit for each UNIT */
};

struct group {
    _Alignas(128) struct img_mutex lock;
    struct img_cond loaded;
    unsigned waiting;
};

struct ring {
    struct entry *first;        /* NULL = empty; circular */
    size_t n;
};

struct img_tcache {
    struct group groups[GROUPS];
    struct entry **chains;
    uint64_t mask;              /* number of chains - 1 */
    struct img_mutex lock;
    struct img_cond written;
    struct ring clean;          /* first is where the CLOCK's hand is */
    struct ring dirty;
    uint64_t budget, bytes;
    size_t n;                   /* entries in chains */
    uint64_t align;             /* divides all offsets and lengths */
    atomic_uint_fast64_t held;  /* bytes that wait to be written */
};

struct piece {
    struct entry *entry;        /* NULL = forgotten meanwhile */
    uint64_t off;
    uint32_t len;
    size_t at;                  /* in the stage's buffer */
};

struct img_stage {
    struct img_tcache *cache;
    struct img_file *file;
    struct piece *pieces;       /* ascending */
    size_t n;
    char *data;
    bool writing;               /* under cache->lock */
};

/* ---- rings, chains ----------------------------------------------------- */

static void ring_add(struct ring *ring, struct entry *e)
{
    struct entry *first = ring->first;

    if (first) {
        e->next = first;
        e->prev = first->prev;
        e->prev->next = first->prev = e;
    } else {
        ring->first = e->next = e->prev = e;
    }
    ring->n++;
}

static void ring_remove(struct ring *ring, struct entry *e)
{
    if (ring->first == e)
        ring->first = e->next == e ? NULL : e->next;
    e->prev->next = e->next;
    e->next->prev = e->prev;
    ring->n--;
}

static uint64_t hash(const struct img_file *file, uint64_t off)
{
    uint64_t h = off ^ ((uint64_t)(uintptr_t)file << 20);

    h = (h ^ (h >> 32)) * UINT64_C(0x9e3779b97f4a7c15);
    return h ^ (h >> 29);
}

static struct group *group_of(struct img_tcache *c, uint64_t h)
{
    return &c->groups[h & (GROUPS - 1)];
}

static struct entry *find(struct img_tcache *c, uint64_t h,
                          const struct img_file *file, uint64_t off)
{
    struct entry *e = c->chains[h & c->mask];

    while (e && (e->slice.off != off || e->slice.file != file))
        e = e->chain;
    return e;
}

/* Both locks are held. */
static void unchain(struct img_tcache *c, uint64_t h, struct entry *e)
{
    struct entry **p = &c->chains[h & c->mask];

    while (*p != e)
        p = &(*p)->chain;
    *p = e->chain;
    c->n--;
    c->bytes -= e->cost;
}

static void use(struct entry *e)
{
    atomic_fetch_add_explicit(&e->pins, 1, memory_order_relaxed);
    if (!atomic_load_explicit(&e->used, memory_order_relaxed))
        atomic_store_explicit(&e->used, true, memory_order_relaxed);
}

/* ---- making room ------------------------------------------------------- */

/* cache->lock is held. */
static bool evict(struct img_tcache *c, struct entry *e)
{
    uint64_t h = hash(e->slice.file, e->slice.off);
    struct group *g = group_of(c, h);
    bool idle;

    img_lock(&g->lock);
    idle = !atomic_load_explicit(&e->pins, memory_order_acquire);
    if (idle) {
        ring_remove(&c->clean, e);
        unchain(c, h, e);
    }
    img_unlock(&g->lock);
    if (idle)
        free(e);
    return idle;
}

static void make_room(struct img_tcache *c, uint64_t cost)
{
    size_t tries = 2 * c->clean.n;

    while (tries-- && c->clean.n && c->bytes + cost > c->budget) {
        struct entry *e = c->clean.first;

        if (atomic_load_explicit(&e->pins, memory_order_relaxed) ||
            atomic_exchange_explicit(&e->used, false, memory_order_relaxed) ||
            !evict(c, e))
            c->clean.first = e->next;
    }
}

static struct entry *entry_new(struct img_file *file, uint64_t off,
                               uint32_t len, uint32_t kind)
{
    uint32_t words = (uint32_t)img_div_up(img_div_up(len, UNIT), 64);
    size_t head = sizeof(struct entry) + words * sizeof(uint64_t);
    struct entry *e;

    head = img_round_up(head, 16);
    e = malloc(head + len);
    if (!e)
        return NULL;
    memset(e, 0, head);
    e->slice.data = (uint8_t *)e + head;
    e->slice.off = off;
    e->slice.len = len;
    e->slice.kind = kind;
    e->slice.file = file;
    e->n_words = words;
    e->cost = (uint32_t)IMG_MIN(head + len, (size_t)UINT32_MAX);
    atomic_init(&e->pins, 1);
    return e;
}

/* cache->lock and the group's lock are held. */
static void add(struct img_tcache *c, uint64_t h, struct entry *e)
{
    uint64_t low = e->slice.off | e->slice.len | c->align;

    e->chain = c->chains[h & c->mask];
    c->chains[h & c->mask] = e;
    c->n++;
    c->bytes += e->cost;
    c->align = low & -low;
    ring_add(&c->clean, e);
}

/* ---- forgetting -------------------------------------------------------- */

/* Takes e out of its stage.  False: it is being written, wait. */
static bool leave_stage(struct entry *e)
{
    struct img_stage *s = e->stage;

    if (!s)
        return true;
    if (s->writing)
        return false;
    for (size_t i = 0; i < s->n; i++)
        if (s->pieces[i].entry == e) {
            s->pieces[i].entry = NULL;
            s->pieces[i].len = 0;
        }
    return true;
}

/* cache->lock is held.  False: it was released meanwhile, look again. */
static bool drop(struct img_tcache *c, uint64_t h, struct entry *e)
{
    struct group *g = group_of(c, h);
    unsigned pins;

    if (!leave_stage(e)) {
        img_wait(&c->written, &c->lock);
        return false;
    }
    if (e->dirty)
        ring_remove(&c->dirty, e);
    else if (!e->stage)
        ring_remove(&c->clean, e);
    if (e->dirty || e->stage)
        atomic_fetch_sub(&c->held, e->slice.len);
    e->dirty = false;
    e->stage = NULL;
    img_lock(&g->lock);
    unchain(c, h, e);
    pins = atomic_fetch_or(&e->pins, ORPHAN);
    img_unlock(&g->lock);
    if (!pins)
        free(e);
    return true;
}

static struct entry *find_in_chain(struct img_tcache *c, size_t i,
                                   const struct img_file *file, uint64_t off,
                                   uint64_t end)
{
    struct entry *e = c->chains[i];

    while (e && (e->slice.file != file || e->slice.off < off ||
                 !img_inside(e->slice.off, e->slice.len, end)))
        e = e->chain;
    return e;
}

void img_tcache_forget(struct img_tcache *c, struct img_file *file,
                       uint64_t off, uint64_t len)
{
    uint64_t end = len <= UINT64_MAX - off ? off + len : UINT64_MAX;
    struct entry *e;

    img_lock(&c->lock);
    if (end <= INT64_MAX && (end - off) / c->align < c->mask) {
        for (uint64_t at = img_round_up(off, c->align); at < end;
             at += c->align) {
            uint64_t h = hash(file, at);

            do
                e = find(c, h, file, at);
            while (e && img_inside(at, e->slice.len, end) && !drop(c, h, e));
        }
    } else {
        for (size_t i = 0; i <= c->mask && c->n; i++)
            while ((e = find_in_chain(c, i, file, off, end)))
                drop(c, hash(file, e->slice.off), e);
    }
    img_unlock(&c->lock);
}

/* ---- getting ----------------------------------------------------------- */

/* The group's lock is held, and is again when it returns.  Pins what is
 * there, after waiting for whoever is reading it. */
static struct entry *find_loaded(struct img_tcache *c, uint64_t h,
                                 const struct img_file *file, uint64_t off)
{
    struct group *g = group_of(c, h);
    struct entry *e;

    while ((e = find(c, h, file, off)) && e->loading) {
        g->waiting++;
        img_wait(&g->loaded, &g->lock);
        g->waiting--;
    }
    if (e)
        use(e);
    return e;
}

static int load(struct img_tcache *c, uint64_t h, struct entry *e,
                struct img_error *err)
{
    struct group *g = group_of(c, h);
    int r = img_file_pread(e->slice.file, e->slice.data, e->slice.len,
                           e->slice.off, err);

    if (r < 0) {
        img_lock(&c->lock);
        if (!(atomic_load(&e->pins) & ORPHAN))
            drop(c, h, e);
    }
    img_lock(&g->lock);
    e->loading = false;
    if (g->waiting)
        img_wake_all(&g->loaded);
    img_unlock(&g->lock);
    if (r < 0) {
        img_unlock(&c->lock);
        img_tcache_put(c, &e->slice);
    }
    return r;
}

/* Puts a new entry there and reads it, unless somebody else was faster. */
static int miss(struct img_tcache *c, uint64_t h, struct entry **entry,
                struct img_error *err)
{
    struct entry *e = *entry, *other;
    struct group *g = group_of(c, h);

    img_lock(&c->lock);
    make_room(c, e->cost);
    img_lock(&g->lock);
    other = find(c, h, e->slice.file, e->slice.off);
    if (!other) {
        e->loading = true;
        add(c, h, e);
    }
    img_unlock(&c->lock);
    if (other)
        other = find_loaded(c, h, e->slice.file, e->slice.off);
    else
        other = e;
    img_unlock(&g->lock);
    if (other == e)
        return load(c, h, e, err);
    *entry = other;             /* NULL: the other one's reading failed */
    free(e);
    return 0;
}

/* A damaged image can have two tables at one place. */
static int check_match(struct img_tcache *c, struct entry *e, uint32_t len,
                       uint32_t kind, struct img_error *err)
{
    uint64_t off = e->slice.off;
    struct img_file *file = e->slice.file;

    if (e->slice.len == len && e->slice.kind == kind)
        return 0;
    img_tcache_put(c, &e->slice);
    return img_fail(err, IMG_ECORRUPT, "%s: two tables of different kinds "
                    "at offset 0x%llx", file->path, (unsigned long long)off);
}

int img_tcache_get(struct img_tcache *c, struct img_file *file, uint64_t off,
                   uint32_t len, uint32_t kind, struct img_slice **slice,
                   struct img_error *err)
{
    uint64_t h = hash(file, off);
    struct group *g = group_of(c, h);
    struct entry *e;
    int r;

    do {
        img_lock(&g->lock);
        e = find_loaded(c, h, file, off);
        img_unlock(&g->lock);
        if (!e) {
            e = entry_new(file, off, len, kind);
            if (!e)
                return img_fail_nomem(err);
            r = miss(c, h, &e, err);
            if (r < 0)
                return r;
        }
    } while (!e);
    r = check_match(c, e, len, kind, err);
    if (r == 0)
        *slice = &e->slice;
    return r;
}

struct img_slice *img_tcache_peek(struct img_tcache *c, struct img_file *file,
                                  uint64_t off)
{
    uint64_t h = hash(file, off);
    struct group *g = group_of(c, h);
    struct entry *e;

    img_lock(&g->lock);
    e = find(c, h, file, off);
    if (e && e->loading)
        e = NULL;
    if (e)
        use(e);
    img_unlock(&g->lock);
    return e ? &e->slice : NULL;
}

int img_tcache_new_slice(struct img_tcache *c, struct img_file *file,
                         uint64_t off, uint32_t len, uint32_t kind,
                         struct img_slice **slice, struct img_error *err)
{
    uint64_t h = hash(file, off);
    struct group *g = group_of(c, h);
    struct entry *e = entry_new(file, off, len, kind), *old;

    if (!e)
        return img_fail_nomem(err);
    memset(e->slice.data, 0, len);
    img_lock(&c->lock);
    make_room(c, e->cost);
    while ((old = find(c, h, file, off)))
        drop(c, h, old);
    img_lock(&g->lock);
    add(c, h, e);
    img_unlock(&g->lock);
    img_unlock(&c->lock);
    img_tcache_dirty(c, &e->slice, 0, len);
    *slice = &e->slice;
    return 0;
}

void img_tcache_put(struct img_tcache *c, struct img_slice *slice)
{
    struct entry *e = (struct entry *)slice;
    unsigned old;

    if (!slice)
        return;
    old = atomic_fetch_sub_explicit(&e->pins, 1, memory_order_acq_rel);
    if (old == (ORPHAN | 1))
        free(e);
}

void img_tcache_put_last(struct img_tcache *c, struct img_slice *slice)
{
    struct img_file *file = slice->file;
    uint64_t off = slice->off;
    struct entry *e;

    img_tcache_put(c, slice);
    img_lock(&c->lock);
    e = find(c, hash(file, off), file, off);
    if (e && !e->dirty && !e->stage)
        evict(c, e);
    img_unlock(&c->lock);
}

/* ---- what is dirty ----------------------------------------------------- */

/* cache->lock is held. */
static void mark(struct img_tcache *c, struct entry *e, uint32_t from,
                 uint32_t len)
{
    uint32_t last = (from + len - 1) / UNIT;

    if (atomic_load(&e->pins) & ORPHAN)
        return;
    for (uint32_t i = from / UNIT; i <= last; i++)
        e->changed[i / 64] |= UINT64_C(1) << (i % 64);
    if (e->dirty)
        return;
    if (!e->stage) {
        ring_remove(&c->clean, e);
        atomic_fetch_add(&c->held, e->slice.len);
    }
    e->dirty = true;
    ring_add(&c->dirty, e);
}

void img_tcache_dirty(struct img_tcache *c, struct img_slice *slice,
                      uint32_t from, uint32_t len)
{
    assert(img_inside(from, len, slice->len));
    if (!len)
        return;
    img_lock(&c->lock);
    mark(c, (struct entry *)slice, from, len);
    img_unlock(&c->lock);
}

bool img_tcache_is_full(struct img_tcache *c)
{
    return atomic_load_explicit(&c->held, memory_order_relaxed) >=
           c->budget / 2;
}

/* ---- stages ------------------------------------------------------------ */

/* Whole blocks of the file, as far as the slice has them: O_DIRECT would have
 * to read the rest of them. */
static void widen(const struct img_slice *s, uint32_t *from, uint32_t *len)
{
    uint64_t first = img_round_down(s->off + *from, s->file->align);
    uint64_t end = img_round_up(s->off + *from + *len, s->file->align);

    first = IMG_MAX(first, s->off);
    end = IMG_MIN(end, s->off + s->len);
    *from = (uint32_t)(first - s->off);
    *len = (uint32_t)(end - first);
}

/* The next changed run of e from *from on, small gaps included. */
static bool next_run(const struct entry *e, uint32_t *from, uint32_t *len)
{
    uint32_t n = (uint32_t)img_div_up(e->slice.len, UNIT);
    uint32_t i = (uint32_t)img_div_up(*from, UNIT), first = n, last = 0;

    for (; i < n; i++) {
        if (!(e->changed[i / 64] >> (i % 64) & 1))
            continue;
        if (first < n && (i - last - 1) * UNIT >= BRIDGE)
            break;
        first = IMG_MIN(first, i);
        last = i;
    }
    if (first == n)
        return false;
    *from = first * UNIT;
    *len = IMG_MIN((last + 1) * UNIT, e->slice.len) - *from;
    if (e->slice.file->align > 1)
        widen(&e->slice, from, len);
    return true;
}

static int by_offset(const void *a, const void *b)
{
    const struct entry *x = *(struct entry *const *)a;
    const struct entry *y = *(struct entry *const *)b;

    return x->slice.off < y->slice.off ? -1 : x->slice.off > y->slice.off;
}

/* How many pieces and bytes the entries need; with s, also fills it in. */
static void take_pieces(struct entry **list, size_t n, struct img_stage *s,
                        size_t *n_pieces, size_t *bytes)
{
    *n_pieces = *bytes = 0;
    for (size_t i = 0; i < n; i++) {
        struct entry *e = list[i];
        uint32_t from = 0, len;

        for (; next_run(e, &from, &len); from += len) {
            if (s) {
                s->pieces[*n_pieces] = (struct piece) {
                    e, e->slice.off + from, len, *bytes
                };
                memcpy(s->data + *bytes, e->slice.data + from, len);
            }
            ++*n_pieces;
            *bytes += len;
        }
    }
}

/* cache->lock is held. */
static int fill_stage(struct img_stage *s, struct entry **list, size_t n,
                      struct img_error *err)
{
    struct img_tcache *c = s->cache;
    size_t bytes;

    if (!n)
        return 0;
    qsort(list, n, sizeof *list, by_offset);
    take_pieces(list, n, NULL, &s->n, &bytes);
    s->pieces = malloc(s->n * sizeof *s->pieces);
    s->data = malloc(bytes);
    if (!s->pieces || !s->data)
        return img_fail_nomem(err);
    take_pieces(list, n, s, &s->n, &bytes);
    for (size_t i = 0; i < n; i++) {
        struct entry *e = list[i];

        memset(e->changed, 0, e->n_words * sizeof e->changed[0]);
        ring_remove(&c->dirty, e);
        e->dirty = false;
        e->stage = s;
    }
    return 0;
}

static int collect(struct img_tcache *c, struct img_file *file, uint32_t kind,
                   struct entry **list, size_t *n, struct img_error *err)
{
    struct entry *e = c->dirty.first;

    for (size_t i = 0; i < c->dirty.n; i++, e = e->next) {
        if (e->slice.file != file || e->slice.kind != kind)
            continue;
        if (e->stage)
            return img_fail(err, EBUSY, "%s: the table at 0x%llx is being "
                            "written already", file->path,
                            (unsigned long long)e->slice.off);
        list[(*n)++] = e;
    }
    return 0;
}

static void stage_free(struct img_stage *s)
{
    if (!s)
        return;
    free(s->pieces);
    free(s->data);
    free(s);
}

int img_tcache_stage(struct img_tcache *c, struct img_file *file,
                     uint32_t kind, struct img_stage **stage,
                     struct img_error *err)
{
    struct img_stage *s = calloc(1, sizeof *s);
    struct entry **list = NULL;
    size_t n = 0;
    int r = 0;

    if (!s)
        return img_fail_nomem(err);
    s->cache = c;
    s->file = file;
    img_lock(&c->lock);
    if (c->dirty.n) {
        list = malloc(c->dirty.n * sizeof *list);
        r = list ? collect(c, file, kind, list, &n, err) : img_fail_nomem(err);
        if (r == 0)
            r = fill_stage(s, list, n, err);
    }
    img_unlock(&c->lock);
    free(list);
    if (r < 0) {
        stage_free(s);
        return r;
    }
    *stage = s;
    return 0;
}

bool img_stage_is_empty(const struct img_stage *s)
{
    return !s->n;
}

/* How many pieces from i on lie one behind the other, in file and buffer. */
static size_t run_of_pieces(const struct img_stage *s, size_t i, size_t *len)
{
    const struct piece *p = &s->pieces[i];
    size_t n = 1;

    *len = p->len;
    while (*len && i + n < s->n && p[n].off == p->off + *len && p[n].len)
        *len += p[n++].len;
    return n;
}

int img_stage_write(struct img_stage *s, struct img_error *err)
{
    struct img_tcache *c = s->cache;
    size_t len;
    int r = 0;

    img_lock(&c->lock);
    s->writing = true;
    img_unlock(&c->lock);
    for (size_t i = 0; i < s->n && r == 0; ) {
        const struct piece *p = &s->pieces[i];

        i += run_of_pieces(s, i, &len);
        if (len)
            r = img_file_pwrite(s->file, s->data + p->at, len, p->off, err);
    }
    img_lock(&c->lock);
    s->writing = false;
    img_wake_all(&c->written);
    img_unlock(&c->lock);
    return r;
}

void img_stage_done(struct img_stage *s, bool written)
{
    struct img_tcache *c;

    if (!s)
        return;
    c = s->cache;
    img_lock(&c->lock);
    for (size_t i = 0; i < s->n && !written; i++) {
        struct piece *p = &s->pieces[i];

        if (p->entry)
            mark(c, p->entry, (uint32_t)(p->off - p->entry->slice.off),
                 p->len);
    }
    for (size_t i = 0; i < s->n; i++) {
        struct entry *e = s->pieces[i].entry;

        if (!e || !e->stage)
            continue;
        e->stage = NULL;
        if (!e->dirty) {
            ring_add(&c->clean, e);
            atomic_fetch_sub(&c->held, e->slice.len);
        }
    }
    img_unlock(&c->lock);
    stage_free(s);
}

/* ---- the cache itself -------------------------------------------------- */

int img_tcache_new(uint64_t budget, struct img_tcache **cache,
                   struct img_error *err)
{
    struct img_tcache *c = NULL;
    uint64_t n = GROUPS;

    while (n < 65536 && n * 2048 < budget)
        n *= 2;
    if (posix_memalign((void **)&c, _Alignof(struct img_tcache), sizeof *c))
        return img_fail_nomem(err);
    memset(c, 0, sizeof *c);
    c->chains = calloc(n, sizeof *c->chains);
    if (!c->chains) {
        free(c);
        return img_fail_nomem(err);
    }
    c->mask = n - 1;
    c->budget = budget;
    c->align = UINT64_C(1) << 20;
    img_mutex_init(&c->lock);
    img_cond_init(&c->written);
    for (int i = 0; i < GROUPS; i++) {
        img_mutex_init(&c->groups[i].lock);
        img_cond_init(&c->groups[i].loaded);
    }
    *cache = c;
    return 0;
}

void img_tcache_free(struct img_tcache *c)
{
    if (!c)
        return;
    for (size_t i = 0; i <= c->mask && c->n; i++)
        while (c->chains[i]) {
            struct entry *e = c->chains[i];

            c->chains[i] = e->chain;
            c->n--;
            free(e);
        }
    for (int i = 0; i < GROUPS; i++) {
        img_mutex_destroy(&c->groups[i].lock);
        img_cond_destroy(&c->groups[i].loaded);
    }
    img_cond_destroy(&c->written);
    img_mutex_destroy(&c->lock);
    free(c->chains);
    free(c);
}
