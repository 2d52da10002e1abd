/* Making the refcounts agree with what was counted. */
#include "qcow2/check.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

static int too_many(const struct qcow2_checking *c, uint64_t cluster,
                    uint64_t want, struct img_error *err)
{
    return img_fail(err, ENOTSUP, "%s: cluster %llu needs a refcount of %llu, "
                    "which does not fit into %u bits", c->q->layer->path,
                    (unsigned long long)cluster, (unsigned long long)want,
                    1u << c->q->h.refcount_order);
}

static int fix_block(struct qcow2_checking *c, uint64_t range, bool up,
                     struct img_error *err)
{
    struct qcow2 *q = c->q;
    uint64_t block = img_qcow2_check_block(c, range);
    uint64_t first = range << q->refs_bits;
    bool changed = false;
    int r;

    if (!block)
        return 0;
    r = img_file_pread(q->file, c->table, q->cluster_size, block, err);
    if (r < 0)
        return r;
    for (uint64_t i = 0; i < UINT64_C(1) << q->refs_bits; i++) {
        uint64_t stored = img_qcow2_refs_load(c->table, q->h.refcount_order,
                                              i);
        uint64_t want = img_qcow2_counted(c, first + i);

        if (stored == want || (stored < want && !up))
            continue;
        if (want > q->max_refcount)
            return too_many(c, first + i, want, err);
        img_qcow2_refs_store(c->table, q->h.refcount_order, i, want);
        if (want == 1)
            c->mended_to_one = true;
        changed = true;
    }
    return changed ? img_file_pwrite(q->file, c->table, q->cluster_size,
                                     block, err) : 0;
}

int img_qcow2_check_fix_refs(struct qcow2_checking *c, bool up,
                             struct img_error *err)
{
    uint64_t range = c->from >> c->q->refs_bits;
    int r = 0;

    /* What lies beyond the file's end is not used, whatever a block says. */
    for (; range < c->q->reftable_entries && r == 0 &&
         (range << c->q->refs_bits < c->to || c->to == c->n); range++)
        r = fix_block(c, range, up, err);
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

/* The blocks of the window, and of what follows the file's end. */
static int write_blocks(struct qcow2_checking *c, const struct layout *l,
                        struct img_error *err)
{
    struct qcow2 *q = c->q;
    uint64_t per_block = UINT64_C(1) << q->refs_bits;
    uint64_t end = l->first + l->blocks + l->table;
    uint64_t to = c->to == c->n ? l->blocks : c->to / per_block;
    int r = 0;

    for (uint64_t b = c->from / per_block; b < to && r == 0; b++) {
        memset(c->table, 0, q->cluster_size);
        for (uint64_t i = 0; i < per_block; i++) {
            uint64_t cluster = b * per_block + i;
            uint64_t want = img_qcow2_counted(c, cluster);

            if (cluster >= l->first && cluster < end)
                want = 1;
            if (want > q->max_refcount)
                return too_many(c, cluster, want, err);
            img_qcow2_refs_store(c->table, q->h.refcount_order, i, want);
        }
        r = img_file_pwrite(q->file, c->table, q->cluster_size,
                            (l->first + b) << q->cluster_bits, err);
    }
    return r;
}

/* Counts without the old structure, which is then no longer referred to.
 * Windows in which there is nothing are passed over: their blocks are zeros,
 * behind the end of the file.  The last one is always looked at, for the new
 * structure's own. */
static int count_and_write(struct qcow2_checking *c, const struct layout *l,
                           struct img_error *err)
{
    int more, r = 0;

    c->skip_refs = true;
    more = img_qcow2_window_first(c, err);
    while (more > 0 && r == 0) {
        r = img_qcow2_check_walk(c, err);
        if (r == 0)
            r = write_blocks(c, l, err);
        if (r == 0 && c->to < c->n && c->beyond > c->n - 1)
            c->beyond = c->n - 1;
        if (r == 0)
            more = img_qcow2_window_next(c, err);
    }
    c->skip_refs = false;
    return r < 0 ? r : more;
}

int img_qcow2_check_rebuild(struct qcow2_checking *c, struct img_error *err)
{
    struct qcow2 *q = c->q;
    struct layout l = lay_out(c);
    uint64_t entries = l.table * (q->cluster_size / 8);
    img_autofree uint64_t *table = calloc(entries, sizeof *table);
    uint64_t off = (l.first + l.blocks) << q->cluster_bits;
    struct qcow2_header old = q->h;
    int r;

    if (!table)
        return img_fail_nomem(err);
    r = count_and_write(c, &l, err);
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
    c->rebuild = c->no_block = false;

    /* The file has grown by the new structure. */
    c->n = l.first + l.blocks + l.table;
    c->file_end = c->n << q->cluster_bits;
    q->end = IMG_MAX(q->end, c->n << q->cluster_bits);
    return 0;
}
