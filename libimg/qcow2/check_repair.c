/* Making the refcounts agree with what was counted. */
#include "qcow2/check.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

static uint64_t wanted(const struct qcow2_checking *c, uint64_t cluster)
{
    return cluster < c->n ? c->counted[cluster] : 0;
}

static int fix_block(struct qcow2_checking *c, uint64_t range, bool up,
                     struct img_error *err)
{
    struct qcow2 *q = c->q;
    uint64_t block = q->reftable[range] & QCOW2_OFFSET_MASK;
    uint64_t first = range << q->refs_bits;
    bool changed = false;
    int r;

    if (!block || !img_is_aligned(block, q->cluster_size) ||
        block >> q->cluster_bits >= c->n)
        return 0;
    r = img_file_pread(q->file, c->table, q->cluster_size, block, err);
    if (r < 0)
        return r;
    for (uint64_t i = 0; i < UINT64_C(1) << q->refs_bits; i++) {
        uint64_t stored = img_qcow2_refs_load(c->table, q->h.refcount_order,
                                              i);
        uint64_t want = wanted(c, first + i);

        if (stored == want || (stored < want && !up))
            continue;
        if (want > q->max_refcount)
            return img_fail(err, ENOTSUP, "%s: cluster %llu needs a refcount "
                            "of %llu, which does not fit into %u bits",
                            q->layer->path, (unsigned long long)(first + i),
                            (unsigned long long)want,
                            1u << q->h.refcount_order);
        img_qcow2_refs_store(c->table, q->h.refcount_order, i, want);
        changed = true;
    }
    return changed ? img_file_pwrite(q->file, c->table, q->cluster_size,
                                     block, err) : 0;
}

/* A used cluster without a block cannot be mended in place. */
static bool has_all_blocks(const struct qcow2_checking *c)
{
    const struct qcow2 *q = c->q;

    for (uint64_t i = 0; i < c->n; i++) {
        uint64_t range = i >> q->refs_bits;

        if (!c->counted[i])
            continue;
        if (range >= q->reftable_entries ||
            !(q->reftable[range] & QCOW2_OFFSET_MASK))
            return false;
    }
    return true;
}

int img_qcow2_check_fix_refs(struct qcow2_checking *c, bool up,
                             struct img_error *err)
{
    int r = 0;

    if (up && !has_all_blocks(c))
        return img_qcow2_check_rebuild(c, err);
    for (uint64_t i = 0; i < c->q->reftable_entries && r == 0; i++)
        r = fix_block(c, i, up, err);
    return r;
}

/* ---- rebuilding -------------------------------------------------------- */

struct layout {                 /* of the new structure, behind the file's end */
    uint64_t first;             /* cluster: blocks, then the table */
    uint64_t blocks, table;
};

static struct layout lay_out(const struct qcow2_checking *c)
{
    const struct qcow2 *q = c->q;
    uint64_t per_block = UINT64_C(1) << q->refs_bits;
    struct layout l = { .first = c->n, .blocks = 1, .table = 1 };

    for (;;) {
        uint64_t end = l.first + l.blocks + l.table;
        uint64_t blocks = img_div_up(end, per_block);
        uint64_t table = img_div_up(blocks * 8, q->cluster_size);

        if (blocks <= l.blocks && table <= l.table)
            return l;
        l.blocks = IMG_MAX(blocks, l.blocks);
        l.table = IMG_MAX(table, l.table);
    }
}

/* The old structure is no longer referred to. */
static void uncount_old(struct qcow2_checking *c)
{
    struct qcow2 *q = c->q;
    uint64_t first = q->h.reftable_offset >> q->cluster_bits;

    for (uint64_t i = 0; i < q->h.reftable_clusters; i++)
        if (first + i < c->n && c->counted[first + i])
            c->counted[first + i]--;
    for (uint64_t i = 0; i < q->reftable_entries; i++) {
        uint64_t off = q->reftable[i] & QCOW2_OFFSET_MASK;
        uint64_t at = off >> q->cluster_bits;

        if (!q->reftable[i] || (q->reftable[i] & 0x1ff) ||
            !img_is_aligned(off, q->cluster_size) || at >= c->n)
            continue;
        if (c->counted[at])
            c->counted[at]--;
    }
}

static int write_blocks(struct qcow2_checking *c, const struct layout *l,
                        struct img_error *err)
{
    struct qcow2 *q = c->q;
    uint64_t per_block = UINT64_C(1) << q->refs_bits;
    uint64_t end = l->first + l->blocks + l->table;
    int r = 0;

    for (uint64_t b = 0; b < l->blocks && r == 0; b++) {
        memset(c->table, 0, q->cluster_size);
        for (uint64_t i = 0; i < per_block; i++) {
            uint64_t cluster = b * per_block + i;
            uint64_t want = wanted(c, cluster);

            if (cluster >= l->first && cluster < end)
                want = 1;
            if (want > q->max_refcount)
                return img_fail(err, ENOTSUP, "%s: cluster %llu needs a "
                                "refcount of %llu, which does not fit into "
                                "%u bits", q->layer->path,
                                (unsigned long long)cluster,
                                (unsigned long long)want,
                                1u << q->h.refcount_order);
            img_qcow2_refs_store(c->table, q->h.refcount_order, i, want);
        }
        r = img_file_pwrite(q->file, c->table, q->cluster_size,
                            (l->first + b) << q->cluster_bits, err);
    }
    return r;
}

int img_qcow2_check_rebuild(struct qcow2_checking *c, struct img_error *err)
{
    struct qcow2 *q = c->q;
    struct layout l = lay_out(c);
    uint64_t entries = l.table * (q->cluster_size / 8);
    img_autofree uint64_t *table = calloc(entries, sizeof *table);
    uint64_t off = (l.first + l.blocks) << q->cluster_bits;
    struct qcow2_header old = q->h;
    uint32_t *counted;
    uint8_t *single;
    int r;

    if (!table)
        return img_fail_nomem(err);
    uncount_old(c);
    r = write_blocks(c, &l, err);
    for (uint64_t b = 0; b < l.blocks; b++)
        table[b] = (l.first + b) << q->cluster_bits;
    if (r == 0)
        r = img_qcow2_write_table(q, off, table, entries, err);
    if (r == 0)
        r = img_file_sync(q->file, err);
    if (r < 0)
        return r;
    q->h.reftable_offset = off;
    q->h.reftable_clusters = (uint32_t)l.table;
    r = img_qcow2_header_write(q, err);
    if (r < 0) {
        q->h.reftable_offset = old.reftable_offset;
        q->h.reftable_clusters = old.reftable_clusters;
        return r;
    }
    free(q->reftable);
    q->reftable = table;
    q->reftable_entries = entries;
    table = NULL;
    c->rebuild = false;

    /* The file has grown by the new structure. */
    c->n = l.first + l.blocks + l.table;
    q->end = IMG_MAX(q->end, c->n << q->cluster_bits);
    counted = realloc(c->counted, (c->n + 1) * sizeof *counted);
    if (!counted)
        return img_fail_nomem(err);
    c->counted = counted;
    single = realloc(c->single, c->n / 8 + 1);
    if (!single)
        return img_fail_nomem(err);
    c->single = single;
    return 0;
}
