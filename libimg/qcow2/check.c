/* Check: walk (count references), compare with the refcounts, repair.
 *
 * It shares decoding with the rest, and nothing with the allocator.  Findings
 * are counted as qemu-img counts them, so that scripts see the same numbers.
 */
#include "qcow2/check.h"
#include "base/checked.h"
#include "base/error.h"
#include "file/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void img_qcow2_finding(struct qcow2_checking *c, uint64_t *counter,
                       const char *fmt, ...)
{
    char line[512];
    va_list ap;

    if (c->quiet)
        return;
    ++*counter;
    if (!c->opts->report)
        return;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    c->opts->report(c->opts->report_opaque, line);
}

int img_qcow2_check_progress(struct qcow2_checking *c, struct img_error *err)
{
    c->done++;
    if (!c->job || !c->job->progress || (c->done & 63))
        return 0;
    if (c->job->progress(c->job->opaque, IMG_MIN(c->done, c->total),
                         c->total))
        return img_fail(err, ECANCELED, "%s: check was cancelled",
                        c->q->layer->path);
    return 0;
}

/* ---- comparison -------------------------------------------------------- */

static void compare_one(struct qcow2_checking *c, uint64_t cluster,
                        uint64_t stored)
{
    uint64_t counted = c->counted[cluster];

    if (stored == 1)
        c->single[cluster / 8] |= (uint8_t)(1u << cluster % 8);
    if (stored || counted)
        c->result->end_offset = (cluster + 1) << c->q->cluster_bits;
    if (stored == counted)
        return;
    if (stored < counted)
        img_qcow2_finding(c, &c->result->errors,
                          "ERROR cluster %llu refcount=%llu reference=%llu",
                          (unsigned long long)cluster,
                          (unsigned long long)stored,
                          (unsigned long long)counted);
    else
        img_qcow2_finding(c, &c->result->leaks,
                          "Leaked cluster %llu refcount=%llu reference=%llu",
                          (unsigned long long)cluster,
                          (unsigned long long)stored,
                          (unsigned long long)counted);
}

/* The common width, without a call for each. */
static void compare_block16(struct qcow2_checking *c, uint64_t first,
                            uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        uint32_t stored = (uint32_t)c->table[i * 2] << 8 |
                          c->table[i * 2 + 1];

        if (stored == 1 && c->counted[first + i] == 1) {
            c->single[(first + i) / 8] |= (uint8_t)(1u << (first + i) % 8);
            c->result->end_offset = (first + i + 1) << c->q->cluster_bits;
        } else if (stored | c->counted[first + i]) {
            compare_one(c, first + i, stored);
        }
    }
}

static int compare_block(struct qcow2_checking *c, uint64_t range,
                         struct img_error *err)
{
    struct qcow2 *q = c->q;
    uint64_t block = q->reftable[range] & QCOW2_OFFSET_MASK;
    uint64_t first = range << q->refs_bits;
    uint64_t n = IMG_MIN(c->n - first, UINT64_C(1) << q->refs_bits);
    int r = 0;

    if (block && img_is_aligned(block, q->cluster_size) &&
        block >> q->cluster_bits < c->n)
        r = img_file_pread(q->file, c->table, q->cluster_size, block, err);
    else
        memset(c->table, 0, q->cluster_size);
    if (r < 0)
        return r;
    if (q->h.refcount_order == 4) {
        compare_block16(c, first, n);
        return 0;
    }
    for (uint64_t i = 0; i < n; i++)
        compare_one(c, first + i,
                    img_qcow2_refs_load(c->table, q->h.refcount_order, i));
    return 0;
}

static int compare(struct qcow2_checking *c, struct img_error *err)
{
    uint64_t ranges = img_div_up(c->n, UINT64_C(1) << c->q->refs_bits);
    int r = 0;

    memset(c->single, 0, c->n / 8 + 1);
    c->result->end_offset = 0;
    for (uint64_t i = 0; i < ranges && r == 0; i++) {
        if (i < c->q->reftable_entries) {
            r = compare_block(c, i, err);
            continue;
        }
        for (uint64_t k = i << c->q->refs_bits; k < c->n; k++)
            if (c->counted[k])
                compare_one(c, k, 0);
        break;
    }
    return r;
}

/* ---- the acts ---------------------------------------------------------- */

static int walk_and_compare(struct qcow2_checking *c, struct img_error *err)
{
    int r = img_qcow2_check_walk(c, err);

    return r == 0 ? compare(c, err) : r;
}

/* What the first look found is known; what is left after repair is looked
 * for anew, without saying it again. */
static int look_again(struct qcow2_checking *c, struct img_error *err)
{
    int r;

    c->quiet = true;
    r = walk_and_compare(c, err);
    c->quiet = false;
    return r;
}

static int repair_refs(struct qcow2_checking *c, struct img_error *err)
{
    bool all = (c->opts->repair & IMG_REPAIR_ALL) == IMG_REPAIR_ALL;
    uint64_t errors = c->result->errors, leaks = c->result->leaks;
    int r;

    if (all && c->rebuild)
        r = img_qcow2_check_rebuild(c, err);
    else
        r = img_qcow2_check_fix_refs(c, all, err);
    if (r < 0)
        return r;
    c->result->leaks_fixed += leaks;
    c->result->leaks = 0;
    if (all) {
        c->result->errors_fixed += errors;
        c->result->errors = 0;
    }
    return 0;
}

static int clear_marks(struct qcow2_checking *c, struct img_error *err)
{
    struct qcow2 *q = c->q;
    uint64_t marks = q->h.incompatible & (QCOW2_CORRUPT | QCOW2_DIRTY);

    if (c->result->errors || c->result->check_errors || !marks)
        return 0;
    c->result->corrupt_bit_cleared = marks & QCOW2_CORRUPT;
    q->h.incompatible &= ~marks;
    q->layer->broken = false;
    return img_qcow2_header_write(q, err);
}

static int repair(struct qcow2_checking *c, struct img_error *err)
{
    bool all = (c->opts->repair & IMG_REPAIR_ALL) == IMG_REPAIR_ALL;
    int r = 0;

    if (all && c->result->errors) {
        /* Entries that cannot be read go first: what they seem to refer to
         * is then counted no more. */
        c->quiet = true;
        c->fixing_entries = true;
        r = img_qcow2_check_walk(c, err);
        c->fixing_entries = false;
        if (r == 0)
            r = img_file_sync(c->q->file, err);
        c->quiet = false;
    }
    if (r == 0 && (c->result->errors || c->result->leaks || c->rebuild))
        r = repair_refs(c, err);
    if (r == 0 && all)
        r = look_again(c, err);
    if (r == 0 && all) {
        c->quiet = true;
        r = img_qcow2_check_copied(c, true, err);
        c->quiet = false;
    }
    if (r == 0)
        r = img_file_sync(c->q->file, err);
    return r == 0 && all ? clear_marks(c, err) : r;
}

static int check(struct qcow2_checking *c, struct img_error *err)
{
    struct qcow2 *q = c->q;
    int r = walk_and_compare(c, err);

    if (r == 0)
        r = img_qcow2_check_copied(c, false, err);
    c->result->total = img_div_up(q->h.size, q->cluster_size);
    if (r == 0 && c->opts->repair)
        r = repair(c, err);
    return r;
}

/* Clusters up to the end of the file, and those behind it that a refcount or
 * a table may speak of are out of range. */
static int prepare(struct qcow2_checking *c, struct img_error *err)
{
    struct qcow2 *q = c->q;
    uint64_t size;
    int r = img_file_size(q->file, &size, err);

    if (r < 0)
        return r;
    c->n = img_div_up(size, q->cluster_size);
    c->counted = calloc(c->n + 1, sizeof *c->counted);
    c->single = calloc(1, c->n / 8 + 1);
    c->table = malloc(q->cluster_size);
    if (!c->counted || !c->single || !c->table)
        return img_fail_nomem(err);
    c->total = 2 * (uint64_t)q->h.l1_size;
    for (uint32_t i = 0; i < q->n_snapshots; i++)
        c->total += q->snapshots[i].l1_size;
    return 0;
}

/* The cache and the tables in memory follow what was repaired. */
static int reload(struct qcow2 *q, struct img_error *err)
{
    uint64_t *l1, *reftable;
    int r;

    img_tcache_forget(q->tables, q->file, 0, UINT64_MAX);
    r = img_qcow2_read_table(q, q->h.l1_offset, q->h.l1_size, &l1, err);
    if (r < 0)
        return r;
    free(q->l1);
    q->l1 = l1;
    r = img_qcow2_read_table(q, q->h.reftable_offset,
                             (uint64_t)q->h.reftable_clusters *
                             (q->cluster_size / 8), &reftable, err);
    if (r < 0)
        return r;
    free(q->reftable);
    q->reftable = reftable;
    q->reftable_entries = (uint64_t)q->h.reftable_clusters *
                          (q->cluster_size / 8);
    q->hint = 0;
    q->packed_at = 0;
    return 0;
}

static void release(struct qcow2_checking *c)
{
    free(c->counted);
    free(c->single);
    free(c->table);
}

static int change_width(struct qcow2_checking *c, uint32_t order,
                        struct img_error *err)
{
    struct qcow2 *q = c->q;
    uint32_t old = q->h.refcount_order;
    int r;

    q->h.refcount_order = order;
    img_qcow2_shape(q);
    r = img_qcow2_check_rebuild(c, err);
    if (r < 0) {
        q->h.refcount_order = old;
        img_qcow2_shape(q);
    }
    return r;
}

int img_qcow2_check_change_width(struct qcow2 *q, uint32_t order,
                                 const struct img_job *job,
                                 struct img_error *err)
{
    struct img_check_options opts = IMG_CHECK_OPTIONS;
    struct img_check_result result = { 0 };
    struct qcow2_checking c = {
        .q = q, .opts = &opts, .job = job, .result = &result,
    };
    int r = img_qcow2_settle(q, err);

    if (r == 0)
        r = prepare(&c, err);
    if (r == 0)
        r = walk_and_compare(&c, err);
    if (r == 0 && (result.errors || result.leaks))
        r = img_fail(err, IMG_ECORRUPT, "%s: has %llu errors and %llu leaked "
                     "clusters; repair it first", q->layer->path,
                     (unsigned long long)result.errors,
                     (unsigned long long)result.leaks);
    if (r == 0)
        r = change_width(&c, order, err);
    if (r == 0)
        r = reload(q, err);
    release(&c);
    return r;
}

int img_qcow2_check(struct img_layer *layer,
                    const struct img_check_options *opts,
                    const struct img_job *job,
                    struct img_check_result *result, struct img_error *err)
{
    struct qcow2 *q = img_qcow2_of(layer);
    struct qcow2_checking c = {
        .q = q, .opts = opts, .job = job, .result = result,
    };
    int r = layer->writable ? img_qcow2_settle(q, err) : 0;

    if (r == 0)
        r = prepare(&c, err);
    if (r == 0)
        r = check(&c, err);
    if (r == 0 && opts->repair)
        r = reload(q, err);
    release(&c);
    return r;
}
