/* Check: walk (count references), compare with the refcounts, repair.
 *
 * It shares decoding with the rest, and nothing with the allocator.  Findings
 * are counted as qemu-img counts them, so that scripts see the same numbers.
 */
#include "qcow2/check.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/error.h"
#include "file/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MEMORY = 256 << 20 };    /* for counting, unless more is asked for */

static void tell(struct qcow2_checking *c, uint64_t *counter,
                 const char *line)
{
    img_lock(&c->lock);
    ++*counter;
    if (c->opts->report)
        c->opts->report(c->opts->report_opaque, line);
    img_unlock(&c->lock);
}

void img_qcow2_finding(struct qcow2_checking *c, uint64_t *counter,
                       const char *fmt, ...)
{
    char line[512];
    va_list ap;

    if (c->quiet)
        return;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    tell(c, counter, line);
}

/* ---- comparison -------------------------------------------------------- */

static char *put_text(char *to, const char *text)
{
    size_t len = strlen(text);

    memcpy(to, text, len);
    return to + len;
}

static char *put_number(char *to, uint64_t v)
{
    char digits[20];
    size_t n = sizeof digits;

    do {
        digits[--n] = (char)('0' + v % 10);
        v /= 10;
    } while (v);
    memcpy(to, digits + n, sizeof digits - n);
    return to + sizeof digits - n;
}

/* There may be millions of these, so that they are put together by hand. */
static void wrong_count(struct qcow2_checking *c, uint64_t cluster,
                        uint64_t stored, uint64_t counted)
{
    bool leak = stored > counted;
    char line[128], *at = line;

    if (c->quiet)
        return;
    at = put_text(at, leak ? "Leaked cluster " : "ERROR cluster ");
    at = put_number(at, cluster);
    at = put_text(at, " refcount=");
    at = put_number(at, stored);
    at = put_text(at, " reference=");
    at = put_number(at, counted);
    *at = '\0';
    ++*(leak ? &c->result->leaks : &c->result->errors);
    if (c->opts->report)        /* no other thread works now */
        c->opts->report(c->opts->report_opaque, line);
}

static void compare_one(struct qcow2_checking *c, uint64_t cluster,
                        uint64_t stored, bool has_block)
{
    uint64_t counted = img_qcow2_counted(c, cluster);

    if (stored || counted)
        c->result->end_offset = (cluster + 1) << c->q->cluster_bits;
    if (counted && !has_block)
        c->no_block = true;
    if (stored != counted)
        wrong_count(c, cluster, stored, counted);
}

/* 64 refcounts of 16 bits, all v. */
static bool is_all(const uint8_t *refs, uint16_t v)
{
    uint64_t same = v * UINT64_C(0x0001000100010001), wrong = 0;

    for (unsigned i = 0; i < 128; i += 8)
        wrong |= img_get_be64(refs + i) ^ same;
    return !wrong;
}

/* What almost all clusters of almost all images are: used once, or free. */
static bool is_as_usual(struct qcow2_checking *c, uint64_t first,
                        const uint8_t *refs)
{
    uint64_t once;

    if (!img_qcow2_counted_once(c, first, &once))
        return false;
    if (!once)
        return is_all(refs, 0);
    if (once != UINT64_MAX || !is_all(refs, 1))
        return false;
    c->result->end_offset = (first + 64) << c->q->cluster_bits;
    return true;
}

static int compare_block(struct qcow2_checking *c, uint64_t range,
                         struct img_error *err)
{
    struct qcow2 *q = c->q;
    uint64_t block = img_qcow2_check_block(c, range);
    uint64_t first = range << q->refs_bits, i = 0;
    uint64_t n = IMG_MIN(c->to - first, UINT64_C(1) << q->refs_bits);
    int r = 0;

    if (block)
        r = img_file_pread(q->file, c->table, q->cluster_size, block, err);
    else
        memset(c->table, 0, q->cluster_size);
    while (r == 0 && i < n) {
        if (q->h.refcount_order == 4 && n - i >= 64 && i % 64 == 0 && block &&
            is_as_usual(c, first + i, c->table + i * 2)) {
            i += 64;
            continue;
        }
        compare_one(c, first + i,
                    img_qcow2_refs_load(c->table, q->h.refcount_order, i),
                    block);
        i++;
    }
    return r;
}

/* No block, and nothing refers to anything in its range. */
static bool is_unused(const struct qcow2_checking *c, uint64_t range)
{
    uint64_t first = range << c->q->refs_bits, once;
    uint64_t n = IMG_MIN(c->to - first, UINT64_C(1) << c->q->refs_bits);

    if (img_qcow2_check_block(c, range))
        return false;
    for (uint64_t i = 0; i < n; i += 64) {
        img_qcow2_counted_once(c, first + i, &once);
        if (once)
            return false;
    }
    return true;
}

static int compare(struct qcow2_checking *c, struct img_error *err)
{
    uint64_t range = c->from >> c->q->refs_bits;
    int r = 0;

    if (!c->from)
        c->result->end_offset = 0;
    for (; range << c->q->refs_bits < c->to && r == 0; range++)
        if (!is_unused(c, range))
            r = compare_block(c, range, err);
    return r;
}

/* ---- the acts ---------------------------------------------------------- */

typedef int act_fn(struct qcow2_checking *c, struct img_error *err);

/* Counts the references to each window's clusters and acts on them. */
static int each_window(struct qcow2_checking *c, act_fn *act,
                       struct img_error *err)
{
    int more = img_qcow2_window_first(c, err), r = 0;

    while (more > 0) {
        r = img_qcow2_check_walk(c, err);
        if (r == 0)
            r = act(c, err);
        if (r < 0)
            return r;
        if (c->to == c->n)
            return 0;           /* what was counted stays */
        more = img_qcow2_window_next(c, err);
    }
    return more;
}

static int fix_leaks(struct qcow2_checking *c, struct img_error *err)
{
    return img_qcow2_check_fix_refs(c, false, err);
}

static int fix_all(struct qcow2_checking *c, struct img_error *err)
{
    return img_qcow2_check_fix_refs(c, true, err);
}

/* counted: the look that found it out is still there, for the whole file. */
static int repair_refs(struct qcow2_checking *c, bool counted,
                       struct img_error *err)
{
    bool all = (c->opts->repair & IMG_REPAIR_ALL) == IMG_REPAIR_ALL;
    act_fn *fix = all ? fix_all : fix_leaks;
    int r;

    if (all && (c->rebuild || c->no_block))
        r = img_qcow2_check_rebuild(c, err);
    else
        r = counted ? fix(c, err) : each_window(c, fix, err);
    if (r < 0)
        return r;
    c->result->leaks_fixed += c->result->leaks;
    c->result->leaks = 0;
    if (all) {
        c->result->errors_fixed += c->result->errors - c->overlaps;
        c->result->errors = c->overlaps;
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

/* Entries that cannot be read go first: what they seem to refer to is then
 * counted no more. */
static int fix_entries(struct qcow2_checking *c, struct img_error *err)
{
    int r;

    img_qcow2_window_close(c);
    c->fixing_entries = true;
    r = img_qcow2_check_walk(c, err);
    c->fixing_entries = false;
    return r == 0 ? img_file_sync(c->q->file, err) : r;
}

static int fix_flags(struct qcow2_checking *c, struct img_error *err)
{
    int more = img_qcow2_window_first(c, err);

    while (more > 0) {
        int r = img_qcow2_check_fix_copied(c, err);

        if (r < 0)
            return r;
        more = img_qcow2_window_next(c, err);
    }
    return more;
}

static int repair(struct qcow2_checking *c, struct img_error *err)
{
    bool all = (c->opts->repair & IMG_REPAIR_ALL) == IMG_REPAIR_ALL;
    bool errors = c->result->errors || c->rebuild;
    bool counted = c->from == 0 && c->to == c->n;
    int r = 0;

    c->quiet = true;            /* all is known by now */
    if (all && c->result->errors) {
        r = fix_entries(c, err);
        counted = false;
    }
    if (r == 0 && (errors || c->result->leaks))
        r = repair_refs(c, counted, err);
    if (r == 0 && all && (errors || c->mended_to_one))
        r = fix_flags(c, err);
    if (r == 0)
        r = img_file_sync(c->q->file, err);
    c->quiet = false;
    return r == 0 && all ? clear_marks(c, err) : r;
}

static int check(struct qcow2_checking *c, struct img_error *err)
{
    int r = each_window(c, compare, err);

    c->result->total = img_div_up(c->q->h.size, c->q->cluster_size);
    return r == 0 && c->opts->repair ? repair(c, err) : r;
}

/* Clusters up to the end of the file, and those behind it that a refcount or
 * a table may speak of are out of range. */
static int prepare(struct qcow2_checking *c, struct img_error *err)
{
    struct qcow2 *q = c->q;
    uint64_t size;
    int r = img_file_size(q->file, &size, err);

    img_mutex_init(&c->lock);
    img_rwlock_init(&c->gate);
    c->memory_max = c->opts->memory ? c->opts->memory : MEMORY;
    if (r == 0)
        r = img_qcow2_need_reftable(q, err);
    if (r == 0 && q->data && q->layer->files[q->data])
        r = img_qcow2_measure_data(q, err);
    if (r < 0)
        return r;
    c->n = img_div_up(size, q->cluster_size);
    c->file_end = size;
    c->table = malloc(q->cluster_size);
    if (!c->table)
        return img_fail_nomem(err);
    c->total = q->h.l1_size;
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
    img_qcow2_window_close(c);
    free(c->table);
    img_rwlock_destroy(&c->gate);
    img_mutex_destroy(&c->lock);
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

    if (r < 0)
        return r;
    r = prepare(&c, err);
    if (r == 0)
        r = each_window(&c, compare, err);
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
    int r = layer->writable ? img_qcow2_settle(q, err) : 0, end;

    if (r < 0)
        return r;
    r = prepare(&c, err);
    if (r == 0)
        r = check(&c, err);
    if (opts->repair) {         /* also what was repaired by half */
        end = reload(q, r < 0 ? NULL : err);
        r = r < 0 ? r : end;
    }
    release(&c);
    return r;
}
