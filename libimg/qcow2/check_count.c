/* How many references each host cluster has, within a bound of memory.
 *
 * Clusters are counted in pages, made when something first refers to one of
 * their clusters: a bit each for "has a reference", and numbers for what more
 * there are only where there are more.  A file that is mostly hole so costs
 * nothing for its length.
 *
 * Where memory does not do for the whole file, a window of it is counted at a
 * time, [from, to).  Nobody knows beforehand how much fits: when the memory is
 * used up the pages at the window's end are dropped, what is left of it has
 * been counted in full, and the dropped part is the next window's.
 *
 * Locks: gate is held for reading by whoever counts, and for writing to make
 * the window smaller; lock guards what is made and the sum of memory.  Bits
 * and numbers are changed atomically.
 */
#include "qcow2/check.h"
#include "base/checked.h"
#include "base/bytes.h"
#include "base/error.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

enum {
    PAGE_BITS = 16, PAGE = 1 << PAGE_BITS,
    SLOTS_MAX = 1 << 18,
    MORE_BYTES = PAGE * sizeof(uint32_t)
};

struct qcow2_page {
    uint64_t once[PAGE / 64];   /* bit: has a reference */
    uint64_t single[PAGE / 64]; /* bit: the stored refcount is 1 */
    uint64_t tables[PAGE / 64]; /* bit: is an L2 table */
    uint32_t *more;             /* references beyond the first */
    uint64_t errors, overlaps;  /* that were found of its clusters */
};

/* ---- pages ------------------------------------------------------------- */

#define PIECE (sizeof(struct qcow2_page) + PAGE * sizeof(uint32_t))

static uint64_t slot_of(const struct qcow2_checking *c, uint64_t cluster)
{
    return (cluster - c->from) >> PAGE_BITS;
}

static struct qcow2_page *page_at(const struct qcow2_checking *c,
                                  uint64_t slot)
{
    return __atomic_load_n(&c->pages[slot], __ATOMIC_ACQUIRE);
}

static bool reserve(struct qcow2_checking *c, uint64_t bytes)
{
    bool fits;

    img_lock(&c->lock);
    fits = c->memory + bytes <= c->memory_max;
    if (fits)
        c->memory += bytes;
    img_unlock(&c->lock);
    return fits;
}

static void unreserve(struct qcow2_checking *c, uint64_t bytes)
{
    img_lock(&c->lock);
    c->memory -= bytes;
    img_unlock(&c->lock);
}

/* The bits of n clusters from number `at` of the page on, whose refcounts
 * begin at number `index` of the block. */
static void note_singles(const struct qcow2 *q, struct qcow2_page *p,
                         uint64_t at, const uint8_t *block, uint64_t index,
                         uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (img_qcow2_refs_load(block, q->h.refcount_order, index + i) == 1)
            p->single[(at + i) / 64] |= UINT64_C(1) << (at + i) % 64;
}

/* The same for the common width, 64 at a time. */
static void note_singles16(struct qcow2_page *p, uint64_t at,
                           const uint8_t *block, uint64_t n)
{
    for (uint64_t i = 0; i < n; i += 64) {
        uint64_t bits = 0;

        for (unsigned k = 0; k < 64; k++)
            bits |= (uint64_t)(block[(i + k) * 2] == 0 &&
                               block[(i + k) * 2 + 1] == 1) << k;
        p->single[(at + i) / 64] = bits;
    }
}

static int load_singles(struct qcow2_checking *c, struct qcow2_page *p,
                        uint64_t first, struct img_error *err)
{
    struct qcow2 *q = c->q;
    uint64_t per_block = UINT64_C(1) << q->refs_bits;
    uint8_t *buf = malloc(q->cluster_size);
    int r = buf ? 0 : img_fail_nomem(err);

    for (uint64_t at = 0, n; r == 0 && at < PAGE; at += n) {
        uint64_t index = (first + at) & (per_block - 1);
        uint64_t block = img_qcow2_check_block(c, (first + at) >>
                                                  q->refs_bits);

        n = IMG_MIN(per_block - index, PAGE - at);
        if (!block)
            continue;
        r = img_file_pread(q->file, buf, q->cluster_size, block, err);
        if (r == 0 && q->h.refcount_order == 4 && n % 64 == 0)
            note_singles16(p, at, buf + index * 2, n);
        else if (r == 0)
            note_singles(q, p, at, buf, index, n);
    }
    free(buf);
    return r;
}

/* -EAGAIN: there is no room. */
static int page_get(struct qcow2_checking *c, uint64_t cluster,
                    struct qcow2_page **page, struct img_error *err)
{
    uint64_t slot = slot_of(c, cluster);
    struct qcow2_page *p = page_at(c, slot);
    int r = 0;

    *page = p;
    if (p)
        return 0;
    if (!reserve(c, sizeof *p))
        return -EAGAIN;
    p = calloc(1, sizeof *p);
    if (!p)
        r = img_fail_nomem(err);
    if (r == 0 && !c->skip_refs)
        r = load_singles(c, p, c->from + (slot << PAGE_BITS), err);
    img_lock(&c->lock);
    if (r == 0 && !c->pages[slot]) {
        __atomic_store_n(&c->pages[slot], p, __ATOMIC_RELEASE);
        p = NULL;
    } else {
        c->memory -= sizeof *p;
    }
    *page = c->pages[slot];
    img_unlock(&c->lock);
    free(p);
    return r;
}

static int more_get(struct qcow2_checking *c, struct qcow2_page *p,
                    uint32_t **more, struct img_error *err)
{
    uint32_t *made;

    *more = __atomic_load_n(&p->more, __ATOMIC_ACQUIRE);
    if (*more)
        return 0;
    if (!reserve(c, MORE_BYTES))
        return -EAGAIN;
    made = calloc(1, MORE_BYTES);
    if (!made) {
        unreserve(c, MORE_BYTES);
        return img_fail_nomem(err);
    }
    img_lock(&c->lock);
    if (!p->more) {
        __atomic_store_n(&p->more, made, __ATOMIC_RELEASE);
        made = NULL;
    } else {
        c->memory -= MORE_BYTES;
    }
    *more = p->more;
    img_unlock(&c->lock);
    free(made);
    return 0;
}

static void drop_page(struct qcow2_checking *c, uint64_t slot)
{
    struct qcow2_page *p = c->pages[slot];

    if (!p)
        return;
    c->memory -= sizeof *p + (p->more ? MORE_BYTES : 0);
    free(p->more);
    free(p);
    c->pages[slot] = NULL;
}

/* ---- windows ----------------------------------------------------------- */

/* Windows begin and end with pages and with refcount blocks. */
static uint64_t unit(const struct qcow2_checking *c)
{
    return IMG_MAX((uint64_t)PAGE, UINT64_C(1) << c->q->refs_bits);
}

/* Gives the window's end up until half of the memory is free, and `need` bytes
 * of it.  The caller holds gate for reading, and holds it again afterwards. */
static int make_room(struct qcow2_checking *c, uint64_t need,
                     struct img_error *err)
{
    uint64_t slot, to;
    int r = 0;

    img_rw_unlock(&c->gate);
    img_write_lock(&c->gate);
    slot = img_div_up(c->to - c->from, PAGE);
    to = c->to;
    while (slot && (c->memory > c->memory_max / 2 ||
                    c->memory + need > c->memory_max)) {
        drop_page(c, --slot);
        to = img_round_down(c->from + (slot << PAGE_BITS), unit(c));
    }
    for (; slot && c->from + (slot << PAGE_BITS) > to; slot--)
        drop_page(c, slot - 1);
    /* The largest piece does not fit into half of it: no use in trying. */
    if (to <= c->from || (to == c->to && c->memory_max / 2 < PIECE))
        r = img_fail(err, ENOMEM, "%s: %llu bytes of memory are too few to "
                     "check the image", c->q->layer->path,
                     (unsigned long long)c->memory_max);
    else if (to < c->to)
        c->to = c->beyond = to;
    img_rw_unlock(&c->gate);
    img_read_lock(&c->gate);
    return r;
}

void img_qcow2_window_close(struct qcow2_checking *c)
{
    for (uint64_t i = 0; c->pages && i < c->n_slots; i++)
        drop_page(c, i);
    free(c->pages);
    c->pages = NULL;
    c->n_slots = 0;
    c->from = c->to = 0;
}

int img_qcow2_window_first(struct qcow2_checking *c, struct img_error *err)
{
    c->beyond = 0;
    c->from = c->to = 0;
    return img_qcow2_window_next(c, err);
}

/* Where the next refcount block's clusters begin. */
static uint64_t next_block(const struct qcow2_checking *c, uint64_t from)
{
    const struct qcow2 *q = c->q;

    for (uint64_t i = from >> q->refs_bits;
         !c->skip_refs && i < q->reftable_entries; i++)
        if (q->reftable[i])
            return i << q->refs_bits;
    return UINT64_MAX;
}

int img_qcow2_window_next(struct qcow2_checking *c, struct img_error *err)
{
    uint64_t to = c->to, from = IMG_MIN(c->beyond, next_block(c, to));

    img_qcow2_window_close(c);
    if (from >= c->n || to >= c->n)
        return 0;
    from = img_round_down(from, unit(c));
    c->n_slots = IMG_MIN(img_div_up(c->n - from, PAGE), (uint64_t)SLOTS_MAX);
    c->n_slots = img_round_up(c->n_slots, unit(c) / PAGE);
    c->pages = calloc(c->n_slots, sizeof(struct qcow2_page *));
    if (!c->pages)
        return img_fail_nomem(err);
    c->from = from;
    c->to = IMG_MIN(c->n, from + (c->n_slots << PAGE_BITS));
    c->beyond = UINT64_MAX;
    return 1;
}

/* ---- counting ---------------------------------------------------------- */

static void note_beyond(struct qcow2_checking *c, uint64_t cluster)
{
    uint64_t now = __atomic_load_n(&c->beyond, __ATOMIC_RELAXED);

    while (cluster < now &&
           !__atomic_compare_exchange_n(&c->beyond, &now, cluster, true,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        continue;
}

/* A further reference to each cluster of word w whose bit is set. */
static int count_more(struct qcow2_checking *c, struct qcow2_page *p,
                      uint64_t w, uint64_t bits, struct img_error *err)
{
    uint32_t *more = NULL;
    int r = more_get(c, p, &more, err);

    for (; r == 0 && bits; bits &= bits - 1) {
        uint32_t *at = &more[w * 64 + (unsigned)__builtin_ctzll(bits)];

        /* It stays at the top: threads are fewer than the distance. */
        if (__atomic_load_n(at, __ATOMIC_RELAXED) < UINT32_MAX - 4096)
            __atomic_fetch_add(at, 1, __ATOMIC_RELAXED);
    }
    return r;
}

/* Tables are marked before they are counted: whoever comes second sees both
 * marks, and only he reports. */
static uint64_t mark(struct qcow2_page *p, uint64_t w, uint64_t mask,
                     enum qcow2_use use, uint64_t *again)
{
    uint64_t tables = use != QCOW2_USE_ANY
        ? __atomic_fetch_or(&p->tables[w], mask, __ATOMIC_SEQ_CST) : 0;

    *again = mask & __atomic_fetch_or(&p->once[w], mask, __ATOMIC_SEQ_CST);
    if (use == QCOW2_USE_ACTIVE_TABLE)
        return *again;
    if (use == QCOW2_USE_TABLE)
        return *again & ~tables;
    return *again ? *again & __atomic_load_n(&p->tables[w], __ATOMIC_SEQ_CST)
                  : 0;
}

static void overlap(struct qcow2_checking *c, struct qcow2_page *p,
                    uint64_t first, uint64_t bits)
{
    for (; bits; bits &= bits - 1) {
        uint64_t cluster = first + (unsigned)__builtin_ctzll(bits);

        img_qcow2_finding(c, &p->overlaps, "ERROR: cluster %llu is an L2 "
                          "table and something else",
                          (unsigned long long)cluster);
    }
}

/* n clusters from first on, all of one word. */
static int count_word(struct qcow2_checking *c, uint64_t first, uint64_t n,
                      enum qcow2_use use, struct img_error *err)
{
    uint64_t at = first & (PAGE - 1), again, both;
    uint64_t mask = (n == 64 ? UINT64_MAX : (UINT64_C(1) << n) - 1)
                    << at % 64;
    struct qcow2_page *p = NULL;
    int r;

    while ((r = page_get(c, first, &p, err)) == -EAGAIN) {
        r = make_room(c, sizeof *p, err);
        if (r < 0)
            return r;
        if (first >= c->to)
            return 0;
    }
    if (r < 0)
        return r;
    both = mark(p, at / 64, mask, use, &again);
    overlap(c, p, img_round_down(first, 64), both);
    while (again && (r = count_more(c, p, at / 64, again, err)) == -EAGAIN) {
        r = make_room(c, MORE_BYTES, err);
        if (r < 0 || first >= c->to)
            return r;
    }
    return r;
}

int img_qcow2_count(struct qcow2_checking *c, uint64_t first, uint64_t n,
                    enum qcow2_use use, struct img_error *err)
{
    uint64_t end = first + n;
    int r = 0;

    first = IMG_MAX(first, c->from);
    while (first < end && first < c->to && r == 0) {
        uint64_t part = IMG_MIN(64 - first % 64, end - first);

        part = IMG_MIN(part, c->to - first);
        r = count_word(c, first, part, use, err);
        first += part;
    }
    if (r == 0 && end > first && end > c->to)
        note_beyond(c, IMG_MAX(first, c->to));
    return r;
}

uint64_t *img_qcow2_errors_at(struct qcow2_checking *c, uint64_t cluster)
{
    struct qcow2_page *p = cluster >= c->from && cluster < c->to
                           ? page_at(c, slot_of(c, cluster)) : NULL;

    return p ? &p->errors : &c->result->errors;
}

void img_qcow2_count_end(struct qcow2_checking *c)
{
    for (uint64_t i = 0; c->pages && i < c->n_slots; i++) {
        struct qcow2_page *p = c->pages[i];

        if (!p)
            continue;
        c->result->errors += p->errors + p->overlaps;
        c->overlaps += p->overlaps;
        p->errors = p->overlaps = 0;
    }
}

uint64_t img_qcow2_counted(const struct qcow2_checking *c, uint64_t cluster)
{
    const struct qcow2_page *p = cluster >= c->from && cluster < c->to
                                 ? page_at(c, slot_of(c, cluster)) : NULL;
    uint64_t at = cluster & (PAGE - 1);

    if (!p || !(p->once[at / 64] >> at % 64 & 1))
        return 0;
    return p->more ? UINT64_C(1) + p->more[at] : 1;
}

bool img_qcow2_counted_once(const struct qcow2_checking *c, uint64_t first,
                            uint64_t *once)
{
    const struct qcow2_page *p = page_at(c, slot_of(c, first));

    *once = p ? p->once[(first & (PAGE - 1)) / 64] : 0;
    return !p || !p->more;
}

int img_qcow2_is_single(struct qcow2_checking *c, uint64_t cluster,
                        bool *known, bool *single, struct img_error *err)
{
    uint64_t at = cluster & (PAGE - 1);
    struct qcow2_page *p;
    int r;

    *known = false;
    if (cluster < c->from)
        return 0;
    if (cluster >= c->to) {
        note_beyond(c, cluster);
        return 0;
    }
    while ((r = page_get(c, cluster, &p, err)) == -EAGAIN) {
        r = make_room(c, sizeof *p, err);
        if (r < 0 || cluster >= c->to)
            return r;
    }
    if (r < 0)
        return r;
    *known = true;
    *single = p->single[at / 64] >> at % 64 & 1;
    return 0;
}

uint64_t img_qcow2_singles(const struct qcow2_checking *c, uint64_t cluster)
{
    const struct qcow2_page *p = cluster >= c->from && cluster < c->to
                                 ? page_at(c, slot_of(c, cluster)) : NULL;

    return p ? p->single[(cluster & (PAGE - 1)) / 64] : 0;
}
