/* Refcounts.  Everything here is called with q->lock held.
 *
 * Invariants of our own placement (images of others may differ, and work):
 * a refcount block lies in the range that it describes, or, where several
 * are made at once for a row of clusters, right before that row.
 *
 * Refcounts in the cache only ever grow while a write-back is outstanding:
 * what is dropped waits in q->frees until the tables that referred to it are
 * durable (sync.c).  So a refcount block may be written at any moment, and a
 * crash leaves leaks at most.
 */
#include "qcow2/qcow2.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/error.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

/* ---- one piece of a refcount block ------------------------------------- */

struct piece {                  /* of a block, pinned */
    struct img_slice *slice;    /* NULL: there is no block */
    uint64_t index;             /* of the cluster in the slice */
    uint64_t left;              /* clusters from there to the slice's end,
                                   or to the end of the missing block */
};

static uint64_t block_offset(const struct qcow2 *q, uint64_t range)
{
    return range < q->reftable_entries
           ? q->reftable[range] & QCOW2_OFFSET_MASK : 0;
}

static int piece_get(struct qcow2 *q, uint64_t cluster, struct piece *p,
                     struct img_error *err)
{
    uint64_t range = cluster >> q->refs_bits;
    uint64_t in_block = cluster & ((UINT64_C(1) << q->refs_bits) - 1);
    uint64_t per_slice = (UINT64_C(8) << q->slice_bits) >>
                         q->h.refcount_order;
    uint64_t slice = in_block / per_slice, block;
    int r = img_qcow2_need_reftable(q, err);

    if (r < 0)
        return r;
    block = block_offset(q, range);
    p->slice = NULL;
    p->index = in_block % per_slice;
    p->left = (UINT64_C(1) << q->refs_bits) - in_block;
    if (!block)
        return 0;
    if (!img_is_aligned(block, q->cluster_size) || block >= q->end)
        return img_fail(err, IMG_ECORRUPT, "%s: refcount table entry %llu: "
                        "refcount block at 0x%llx", q->layer->path,
                        (unsigned long long)range,
                        (unsigned long long)block);
    p->left = per_slice - p->index;
    return img_tcache_get(q->tables, q->file,
                          block + (slice << q->slice_bits),
                          1u << q->slice_bits, QCOW2_KIND_REFS, &p->slice,
                          err);
}

static void piece_put(struct qcow2 *q, struct piece *p)
{
    if (p->slice)
        img_tcache_put(q->tables, p->slice);
}

static void piece_dirty(struct qcow2 *q, const struct piece *p, uint64_t n)
{
    uint64_t from = p->index << q->h.refcount_order >> 3;
    uint64_t to = (((p->index + n) << q->h.refcount_order) + 7) >> 3;

    img_tcache_dirty(q->tables, p->slice, (uint32_t)from,
                     (uint32_t)(to - from));
}

int img_qcow2_refs_get(struct qcow2 *q, uint64_t cluster, uint64_t *count,
                       struct img_error *err)
{
    struct piece p;
    int r = piece_get(q, cluster, &p, err);

    if (r < 0)
        return r;
    *count = p.slice ? img_qcow2_refs_load(p.slice->data,
                                           q->h.refcount_order, p.index) : 0;
    piece_put(q, &p);
    return 0;
}

int img_qcow2_refs_get_row(struct qcow2 *q, uint64_t cluster, uint64_t max,
                           uint64_t *counts, uint64_t *n,
                           struct img_error *err)
{
    struct piece p;
    int r = piece_get(q, cluster, &p, err);

    if (r < 0)
        return r;
    *n = IMG_MIN(max, p.left);
    for (uint64_t i = 0; i < *n; i++)
        counts[i] = p.slice ? img_qcow2_refs_load(p.slice->data,
                                                  q->h.refcount_order,
                                                  p.index + i) : 0;
    piece_put(q, &p);
    return 0;
}

/* ---- adding ------------------------------------------------------------ */

static int check_sum(struct qcow2 *q, uint64_t cluster, uint64_t old,
                     int64_t delta, struct img_error *err)
{
    unsigned long long off = cluster << q->cluster_bits;

    if (delta < 0 && old < (uint64_t)-delta)
        return img_fail(err, IMG_ECORRUPT, "%s: refcount of the cluster at "
                        "0x%llx is %llu and would drop below 0",
                        q->layer->path, off, (unsigned long long)old);
    if (delta > 0 && q->max_refcount - old < (uint64_t)delta)
        return img_fail(err, EINVAL, "%s: refcount of the cluster at 0x%llx "
                        "is %llu and has only %u bits", q->layer->path, off,
                        (unsigned long long)old, 1u << q->h.refcount_order);
    return 0;
}

/* The common width and step, in a form that compilers turn into vector
 * instructions.  Changes nothing where one count could not take it. */
static bool piece_add16(struct qcow2 *q, const struct piece *p,
                        uint64_t cluster, uint64_t n, int delta)
{
    uint8_t *at = p->slice->data + p->index * 2;
    uint16_t limit = delta > 0 ? UINT16_MAX : 0, left = UINT16_MAX;
    unsigned bad = 0;

    for (uint64_t i = 0; i < n; i++)
        bad |= img_get_be16(at + i * 2) == limit;
    if (bad)
        return false;
    for (uint64_t i = 0; i < n; i++) {
        uint16_t count = (uint16_t)(img_get_be16(at + i * 2) + delta);

        img_put_be16(at + i * 2, count);
        left = IMG_MIN(left, count);
    }
    for (uint64_t i = 0; !left && i < n; i++)
        if (!img_get_be16(at + i * 2)) {
            q->hint = IMG_MIN(q->hint, cluster + i);
            break;
        }
    return true;
}

/* Checks all n of a piece before it changes any. */
static int piece_add(struct qcow2 *q, const struct piece *p, uint64_t cluster,
                     uint64_t n, int64_t delta, struct img_error *err)
{
    uint32_t order = q->h.refcount_order;
    uint8_t *data = p->slice->data;

    if (order == 4 && piece_add16(q, p, cluster, n, (int)delta)) {
        piece_dirty(q, p, n);
        return 0;
    }
    for (uint64_t i = 0; i < n; i++) {
        int r = check_sum(q, cluster + i,
                          img_qcow2_refs_load(data, order, p->index + i),
                          delta, err);
        if (r < 0)
            return r;
    }
    for (uint64_t i = 0; i < n; i++) {
        uint64_t count = img_qcow2_refs_load(data, order, p->index + i) +
                         (uint64_t)delta;

        img_qcow2_refs_store(data, order, p->index + i, count);
        if (!count)
            q->hint = IMG_MIN(q->hint, cluster + i);
    }
    piece_dirty(q, p, n);
    return 0;
}

static int add_once(struct qcow2 *q, uint64_t cluster, uint64_t n,
                    int64_t delta, uint64_t *done, struct img_error *err)
{
    *done = 0;
    while (*done < n) {
        uint64_t part;
        struct piece p;
        int r = piece_get(q, cluster + *done, &p, err);

        if (r == 0 && !p.slice)
            r = img_fail(err, IMG_ECORRUPT, "%s: the cluster at 0x%llx is "
                         "used but has no refcount", q->layer->path,
                         (unsigned long long)((cluster + *done) <<
                                              q->cluster_bits));
        if (r < 0)
            return r;
        part = IMG_MIN(n - *done, p.left);
        r = piece_add(q, &p, cluster + *done, part, delta, err);
        piece_put(q, &p);
        if (r < 0)
            return r;
        *done += part;
    }
    return 0;
}

int img_qcow2_refs_add(struct qcow2 *q, uint64_t cluster, uint64_t n,
                       int64_t delta, struct img_error *err)
{
    uint64_t done, undone;
    int r = add_once(q, cluster, n, delta, &done, err);

    /* Undoing can fail only where reading fails: then counts stay too high,
     * a leak. */
    if (r < 0 && done && delta > 0)
        add_once(q, cluster, done, -delta, &undone, NULL);
    return r;
}

/* ---- blocks and the table ---------------------------------------------- */

static void reftable_set(struct qcow2 *q, uint64_t range, uint64_t off)
{
    q->reftable[range] = off;
    if (q->reftable_dirty_from == q->reftable_dirty_to) {
        q->reftable_dirty_from = range;
        q->reftable_dirty_to = range + 1;
    }
    q->reftable_dirty_from = IMG_MIN(q->reftable_dirty_from, range);
    q->reftable_dirty_to = IMG_MAX(q->reftable_dirty_to, range + 1);
}

/* Puts a block for range at the free cluster `at`, counts it and enters it.
 * It lies in its own range or in one that has its block. */
static int place_block(struct qcow2 *q, uint64_t range, uint64_t at,
                       struct img_error *err)
{
    uint64_t host = at << q->cluster_bits;
    bool own = at >> q->refs_bits == range, zeroed;
    int r = img_qcow2_check_free(q, host, q->cluster_size, err);

    if (r < 0)
        return r;
    zeroed = img_qcow2_claim(q, host, q->cluster_size);
    r = img_qcow2_clear_table(q, host, QCOW2_KIND_REFS, zeroed, err);
    if (r < 0)
        return r;
    if (!own)
        r = img_qcow2_refs_add(q, at, 1, 1, err);
    if (r < 0) {
        img_tcache_forget(q->tables, q->file, host, q->cluster_size);
        return r;
    }
    reftable_set(q, range, host);
    return own ? img_qcow2_refs_add(q, at, 1, 1, err) : 0;
}

static int write_header_table_fields(struct qcow2 *q, struct img_error *err)
{
    uint8_t field[12];

    img_put_be64(field, q->h.reftable_offset);
    img_put_be32(field + 8, q->h.reftable_clusters);
    return img_qcow2_header_switch(q, field, sizeof field, 48, err);
}

/* Writes what the new blocks hold now; they are new, so no write-back has
 * them in hand. */
static int write_new_blocks(struct qcow2 *q, uint64_t from,
                            struct img_error *err)
{
    uint32_t len = 1u << q->slice_bits;
    int r = 0;

    for (uint64_t i = from; i < q->reftable_entries; i++) {
        uint64_t block = block_offset(q, i);

        for (uint64_t at = 0; block && r == 0 && at < q->cluster_size;
             at += len) {
            struct img_slice *s;

            r = img_tcache_get(q->tables, q->file, block + at, len,
                               QCOW2_KIND_REFS, &s, err);
            if (r < 0)
                break;
            r = img_file_pwrite(q->file, s->data, len, block + at, err);
            img_tcache_put(q->tables, s);
        }
    }
    return r;
}

/* Where the old table names a block that is not on the disk yet, the new one
 * must not name it either: its entries are what the disk has. */
static int write_new_table(struct qcow2 *q, uint64_t old_entries,
                           uint64_t host, struct img_error *err)
{
    uint64_t *old;
    int r = img_qcow2_read_table(q, q->h.reftable_offset, old_entries, &old,
                                 err);

    if (r < 0)
        return r;
    r = img_qcow2_write_table(q, host, old, old_entries, err);
    free(old);
    return r < 0 ? r : img_qcow2_write_table(q, host + old_entries * 8,
                                             q->reftable + old_entries,
                                             q->reftable_entries -
                                             old_entries, err);
}

/* The blocks that describe the new table, then the table, then the header:
 * each durable before what points to it.  Entries that a write-back has in
 * hand for the old table are written to the new one by the next.  The old
 * table is given back only after a write-back that may be under way on it has
 * ended. */
static int switch_table(struct qcow2 *q, uint64_t old_entries, uint64_t host,
                        struct img_error *err)
{
    struct qcow2_header old = q->h;
    int r = img_qcow2_frees_room(q, 1, err);

    if (r == 0 && q->zeros_beyond_end)
        r = img_file_truncate(q->file, q->end, err);
    if (r == 0)
        r = write_new_blocks(q, old_entries, err);
    if (r == 0)
        r = write_new_table(q, old_entries, host, err);
    if (r == 0)
        r = img_file_sync(q->file, err);
    if (r < 0)
        return r;
    q->h.reftable_offset = host;
    q->h.reftable_clusters =
        (uint32_t)(q->reftable_entries * 8 >> q->cluster_bits);
    r = write_header_table_fields(q, err);
    if (r < 0) {
        q->h.reftable_offset = old.reftable_offset;
        q->h.reftable_clusters = old.reftable_clusters;
        return r;
    }
    q->reftable_dirty_from = 0;
    q->reftable_dirty_to = old_entries;
    return img_qcow2_free_later(q, old.reftable_offset,
                                (uint64_t)old.reftable_clusters <<
                                q->cluster_bits, false, err);
}

/* Nothing on the disk knows the blocks of a table that was not switched to,
 * and what lies behind the old one is not its: forget them. */
static void forget_blocks(struct qcow2 *q, uint64_t old_entries)
{
    for (uint64_t i = old_entries; i < q->reftable_entries; i++)
        if (block_offset(q, i))
            img_tcache_forget(q->tables, q->file, block_offset(q, i),
                              q->cluster_size);
    q->reftable_entries = old_entries;
    q->reftable_dirty_to = IMG_MIN(q->reftable_dirty_to, old_entries);
    q->reftable_dirty_from = IMG_MIN(q->reftable_dirty_from,
                                     q->reftable_dirty_to);
}

/* A larger refcount table, in the first clusters that the old one could not
 * describe: blocks for the new ranges first, then the table. */
static int grow(struct qcow2 *q, uint64_t need, struct img_error *err)
{
    uint64_t per_cluster = q->cluster_size / 8;
    uint64_t per_block = UINT64_C(1) << q->refs_bits;
    uint64_t old_entries = q->reftable_entries, entries, blocks = 1;
    uint64_t first = old_entries << q->refs_bits, clusters, *table;
    uint64_t most = QCOW2_MAX_REFTABLE_BYTES / 8;
    int r = 0;

    need = IMG_MAX(need, IMG_MIN(old_entries + old_entries / 2, most - 1)) + 1;
    for (;;) {
        entries = img_round_up(IMG_MAX(need, old_entries + blocks),
                               per_cluster);
        clusters = entries / per_cluster;
        if (img_div_up(blocks + clusters, per_block) <= blocks)
            break;
        blocks++;
    }
    if (entries > most)
        return img_fail(err, EFBIG, "%s: the image file would need a "
                        "refcount table of %llu entries", q->layer->path,
                        (unsigned long long)entries);
    table = calloc(entries, sizeof *table);
    if (!table)
        return img_fail_nomem(err);
    memcpy(table, q->reftable, old_entries * sizeof *table);
    free(q->reftable);
    q->reftable = table;
    q->reftable_entries = entries;
    for (uint64_t i = 0; i < blocks && r == 0; i++)
        r = place_block(q, old_entries + i, first + i, err);
    if (r == 0)
        r = img_qcow2_refs_add(q, first + blocks, clusters, 1, err);
    if (r == 0) {
        img_qcow2_claim(q, (first + blocks) << q->cluster_bits,
                        clusters << q->cluster_bits);
        r = switch_table(q, old_entries,
                         (first + blocks) << q->cluster_bits, err);
    }
    if (r < 0)
        forget_blocks(q, old_entries);
    return r;
}

/* ---- finding free clusters --------------------------------------------- */

int img_qcow2_refs_find_free(struct qcow2 *q, uint64_t from, uint64_t max,
                             uint64_t *first, uint64_t *n,
                             struct img_error *err)
{
    uint32_t order = q->h.refcount_order;

    for (uint64_t c = from;;) {
        uint64_t range = c >> q->refs_bits, i = 0, run = 0;
        struct piece p;
        int r = 0;

        if (range >= q->reftable_entries)
            r = grow(q, range + 1, err);
        else if (!block_offset(q, range))
            r = place_block(q, range, c, err);
        if (r == 0)
            r = piece_get(q, c, &p, err);
        if (r < 0)
            return r;
        while (i < p.left &&
               img_qcow2_refs_load(p.slice->data, order, p.index + i))
            i++;
        while (run < max && i + run < p.left &&
               !img_qcow2_refs_load(p.slice->data, order, p.index + i + run))
            run++;
        piece_put(q, &p);
        if (run) {
            *first = c + i;
            *n = run;
            return 0;
        }
        c += i;
    }
}

/* Are the n clusters from c all free?  If not, *used is the last that is
 * not. */
static int row_is_free(struct qcow2 *q, uint64_t c, uint64_t n, bool *is_free,
                       uint64_t *used, struct img_error *err)
{
    *is_free = true;
    for (uint64_t i = 0; i < n;) {
        uint64_t part;
        struct piece p;
        int r = piece_get(q, c + i, &p, err);

        if (r < 0)
            return r;
        part = IMG_MIN(p.left, n - i);
        for (uint64_t k = 0; p.slice && k < part; k++) {
            if (img_qcow2_refs_load(p.slice->data, q->h.refcount_order,
                                    p.index + k)) {
                *is_free = false;
                *used = c + i + k;
            }
        }
        piece_put(q, &p);
        i += part;
    }
    return 0;
}

static uint64_t missing_blocks(const struct qcow2 *q, uint64_t c, uint64_t n)
{
    uint64_t missing = 0;

    for (uint64_t r = c >> q->refs_bits; r <= (c + n - 1) >> q->refs_bits;
         r++)
        missing += !block_offset(q, r);
    return missing;
}

int img_qcow2_refs_place_row(struct qcow2 *q, uint64_t from, uint64_t n,
                             uint64_t *first, struct img_error *err)
{
    uint64_t c = from, blocks = 0, at, last;
    int r;

    for (;;) {
        bool is_free;
        uint64_t used;

        blocks = 0;
        while (missing_blocks(q, c, blocks + n) > blocks)
            blocks++;
        last = (c + blocks + n - 1) >> q->refs_bits;
        if (last >= q->reftable_entries) {
            r = grow(q, last + 1, err);
            if (r < 0)
                return r;
            continue;
        }
        r = row_is_free(q, c, blocks + n, &is_free, &used, err);
        if (r < 0)
            return r;
        if (is_free)
            break;
        c = used + 1;
    }
    at = c;
    for (uint64_t range = c >> q->refs_bits; range <= last; range++) {
        if (block_offset(q, range))
            continue;
        r = place_block(q, range, at++, err);
        if (r < 0)
            return r;
    }
    *first = at;
    return 0;
}
