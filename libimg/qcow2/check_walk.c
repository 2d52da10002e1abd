/* Counting the references that the header and the tables hold.
 *
 * The L2 tables of an L1 table are shared out to threads, several at a time.
 * Repair of entries is done by one thread alone.
 */
#include "qcow2/check.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/team.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

#define L1_RESERVED     UINT64_C(0x7f000000000001ff)
#define L2_RESERVED     UINT64_C(0x3f000000000001fe)
#define REFTABLE_RESERVED UINT64_C(0x1ff)

enum {
    CHUNK = 16,                 /* L1 entries that a worker takes at once */
    THREADS_MAX = 8, FEW_TABLES = 32,
};

struct l1_walk {                /* all of one L1 table */
    struct qcow2_checking *c;
    const uint64_t *l1;
    uint64_t l1_off, l1_size;
    bool active, stats;
    uint64_t chunk;             /* the next to take */
    uint8_t *tables[THREADS_MAX];
};

struct worker {                 /* one thread, with one chunk */
    struct l1_walk *w;
    struct qcow2_checking *c;
    uint8_t *table;
    uint64_t next;              /* where this table's data would go on */
    uint64_t allocated, fragmented, compressed;
    uint64_t first, n;          /* host clusters in a row, to be counted */
    bool copied;                /* their flag */
};

/* What does not depend on the window is told once. */
#define structural(c, ...) do {                                           \
        if (img_qcow2_is_first(c))                                        \
            img_qcow2_finding(c, &(c)->result->errors, __VA_ARGS__);      \
    } while (0)

/* Adds references to [off, off + len).  The last cluster may be there only in
 * part; that a whole one is missing is an error. */
static int count(struct qcow2_checking *c, uint64_t off, uint64_t len,
                 enum qcow2_use use, struct img_error *err)
{
    uint64_t first = off >> c->q->cluster_bits;
    uint64_t last = (off + len - 1) >> c->q->cluster_bits;

    if (!len)
        return 0;
    if (!img_inside(off, len, INT64_MAX) ||
        off + len >= c->file_end + c->q->cluster_size) {
        structural(c, "ERROR: a reference to %llu bytes at 0x%llx reaches "
                   "beyond the end of the file", (unsigned long long)len,
                   (unsigned long long)off);
        return 0;
    }
    if (c->fixing_entries)
        return 0;
    return img_qcow2_count(c, first, IMG_MIN(last + 1, c->n) - first, use,
                           err);
}

static int count_alone(struct qcow2_checking *c, uint64_t off, uint64_t len,
                       struct img_error *err)
{
    int r;

    img_read_lock(&c->gate);
    r = count(c, off, len, QCOW2_USE_ANY, err);
    img_rw_unlock(&c->gate);
    return r;
}

/* ---- COPIED ------------------------------------------------------------ */

static void wrong_flag(struct qcow2_checking *c, uint64_t raw, bool copied)
{
    img_qcow2_finding(c, img_qcow2_errors_at(c, (raw & QCOW2_OFFSET_MASK) >>
                                                c->q->cluster_bits),
                      "ERROR OFLAG_COPIED data cluster: l2_entry=%llx: its "
                      "refcount is %s1",
                      (unsigned long long)raw, copied ? "not " : "");
}

static int compare_flag(struct qcow2_checking *c, uint64_t raw,
                        struct img_error *err)
{
    uint64_t off = raw & QCOW2_OFFSET_MASK;
    bool known = false, single, copied = raw & QCOW2_COPIED;
    int r = 0;

    if ((raw & QCOW2_PACKED) || c->q->data || !off || c->fixing_entries ||
        !img_is_aligned(off, c->q->cluster_size))
        return 0;
    if (off >> c->q->cluster_bits >= c->n) {
        if (copied && img_qcow2_is_first(c))
            wrong_flag(c, raw, copied);
        return 0;
    }
    r = img_qcow2_is_single(c, off >> c->q->cluster_bits, &known, &single,
                            err);
    if (r == 0 && known && single != copied)
        wrong_flag(c, raw, copied);
    return r;
}

/* ---- the plain case: clusters in a row --------------------------------- */

static void compare_row(struct worker *w)
{
    struct qcow2_checking *c = w->c;
    uint64_t at = IMG_MAX(w->first, c->from), end = w->first + w->n;

    for (uint64_t n; at < end && at < c->to; at += n) {
        uint64_t mask, wrong;

        n = IMG_MIN(64 - at % 64, end - at);
        mask = (n == 64 ? UINT64_MAX : (UINT64_C(1) << n) - 1) << at % 64;
        wrong = (img_qcow2_singles(c, at) ^ (w->copied ? mask : 0)) & mask;
        for (; wrong; wrong &= wrong - 1) {
            uint64_t i = img_round_down(at, 64) +
                         (unsigned)__builtin_ctzll(wrong);

            if (i < c->to)
                wrong_flag(c, i << c->q->cluster_bits |
                           (w->copied ? QCOW2_COPIED : 0), w->copied);
        }
    }
}

static int end_row(struct worker *w, struct img_error *err)
{
    int r = 0;

    if (w->n)
        r = img_qcow2_count(w->c, w->first, w->n, QCOW2_USE_ANY, err);
    if (r == 0 && w->n && w->w->active)
        compare_row(w);
    w->n = 0;
    return r;
}

static void note_place(struct worker *w, uint64_t host)
{
    w->allocated++;
    if (w->next && host != w->next)
        w->fragmented++;
    w->next = host + w->c->q->cluster_size;
}

/* An entry that says nothing but where a data cluster is. */
static bool is_plain(const struct qcow2_checking *c, uint64_t raw)
{
    uint64_t host = raw & QCOW2_OFFSET_MASK;

    return !(raw & ~(QCOW2_OFFSET_MASK | QCOW2_COPIED)) && host &&
           img_is_aligned(host, c->q->cluster_size) && host < c->q->end &&
           host >> c->q->cluster_bits < c->n;
}

static int walk_plain(struct worker *w, uint64_t raw, struct img_error *err)
{
    uint64_t host = raw & QCOW2_OFFSET_MASK;
    uint64_t cluster = host >> w->c->q->cluster_bits;
    bool copied = raw & QCOW2_COPIED;
    int r = 0;

    if (w->n && (cluster != w->first + w->n || copied != w->copied))
        r = end_row(w, err);
    if (!w->n) {
        w->first = cluster;
        w->copied = copied;
    }
    w->n++;
    note_place(w, host);
    return r;
}

/* ---- L2 tables --------------------------------------------------------- */

static int count_packed(struct worker *w, const struct qcow2_entry *e,
                        struct img_error *err)
{
    struct qcow2_checking *c = w->c;

    if (e->raw & QCOW2_COPIED)
        structural(c, "ERROR: L2 entry 0x%llx: the copied flag is set on "
                   "compressed data", (unsigned long long)e->raw);
    if (e->bitmap)
        structural(c, "ERROR: L2 entry 0x%llx: compressed data with "
                   "subclusters", (unsigned long long)e->raw);
    w->compressed++;
    w->allocated++;
    /* Compressed data are read one by one: all count as fragments. */
    w->fragmented++;
    return count(c, e->host, e->packed_len, QCOW2_USE_ANY, err);
}

static int count_plain(struct worker *w, const struct qcow2_entry *e,
                       struct img_error *err)
{
    struct qcow2_checking *c = w->c;
    int r = 0;

    if (e->raw & L2_RESERVED)
        structural(c, "ERROR: L2 entry 0x%llx: reserved bits are set",
                   (unsigned long long)e->raw);
    if (!e->has_host)
        return 0;
    note_place(w, e->host);
    if (!c->q->data)
        r = count(c, e->host, c->q->cluster_size, QCOW2_USE_ANY, err);
    return r;
}

/* An entry that makes no sense; repair gives its guest cluster up. */
static void broken_entry(struct qcow2_checking *c, uint8_t *at,
                         uint64_t index, const char *why, bool *changed)
{
    struct qcow2 *q = c->q;
    bool quiet = c->quiet;
    uint64_t none = 0;

    if (!c->fixing_entries) {
        structural(c, "ERROR: %s", why);
        return;
    }
    c->quiet = false;
    img_qcow2_finding(c, &none, "Lost: guest bytes %llu to %llu (%s)",
                      (unsigned long long)(index << q->cluster_bits),
                      (unsigned long long)((index + 1) << q->cluster_bits),
                      why);
    c->quiet = quiet;
    c->lost += q->cluster_size;
    if (img_qcow2_has_subclusters(q))
        img_qcow2_entry_store(q, at, 0, UINT64_C(0xffffffff) << 32);
    else
        img_qcow2_entry_store(q, at, q->h.version >= 3 ? QCOW2_ZERO : 0, 0);
    *changed = true;
}

/* What decoding allows but should not be there. */
static void fix_odd_entry(struct qcow2_checking *c, uint8_t *at,
                          const struct qcow2_entry *e, bool *changed)
{
    uint64_t raw = e->raw;

    if (!c->fixing_entries)
        return;
    if (e->kind == QCOW2_PACKED_RUN) {
        if (!(raw & QCOW2_COPIED) && !e->bitmap)
            return;
        img_qcow2_entry_store(c->q, at, raw & ~QCOW2_COPIED, 0);
    } else {
        if (!(raw & L2_RESERVED))
            return;
        img_qcow2_entry_store(c->q, at, raw & ~L2_RESERVED, e->bitmap);
    }
    *changed = true;
}

static int walk_entry(struct worker *w, uint8_t *at, uint64_t index,
                      bool *changed, struct img_error *err)
{
    struct qcow2_checking *c = w->c;
    struct qcow2_entry e;
    struct img_error why;
    int r;

    if (img_qcow2_entry_decode(c->q, at, index, &e, &why) < 0) {
        broken_entry(c, at, index, why.message, changed);
        e.raw = img_get_be64(at);
        return w->w->active ? compare_flag(c, e.raw, err) : 0;
    }
    if (img_qcow2_entry_needs(c->q, index, &e) > c->q->data_end &&
        c->q->layer->files[c->q->data] && !c->fixing_entries)
        structural(c, "ERROR: guest offset 0x%llx: its bytes lie beyond the "
                   "end of the data file",
                   (unsigned long long)(index << c->q->cluster_bits));
    r = e.kind == QCOW2_PACKED_RUN ? count_packed(w, &e, err)
                                   : count_plain(w, &e, err);
    if (r == 0 && w->w->active)
        r = compare_flag(c, e.raw, err);
    fix_odd_entry(c, at, &e, changed);
    return r;
}

static int walk_l2(struct worker *w, uint64_t l1_index, uint64_t table,
                   struct img_error *err)
{
    struct qcow2 *q = w->c->q;
    uint64_t entries = UINT64_C(1) << q->l2_bits;
    bool quick = !q->data && !img_qcow2_has_subclusters(q) &&
                 !w->c->fixing_entries;
    bool changed = false;
    int r = img_file_pread(q->file, w->table, q->cluster_size, table, err);

    w->next = 0;
    for (uint64_t i = 0; i < entries && r == 0; i++) {
        uint8_t *at = w->table + i * q->entry_size;
        uint64_t raw = img_get_be64(at);

        if (quick && is_plain(w->c, raw))
            r = walk_plain(w, raw, err);
        else if (raw || img_qcow2_has_subclusters(q))
            r = walk_entry(w, at, (l1_index << q->l2_bits) + i, &changed,
                           err);
    }
    if (r == 0)
        r = end_row(w, err);
    if (r == 0 && changed)
        r = img_file_pwrite(q->file, w->table, q->cluster_size, table, err);
    return r;
}

/* ---- L1 tables --------------------------------------------------------- */

static bool is_bad_table(const struct qcow2_checking *c, uint64_t off)
{
    return !img_is_aligned(off, c->q->cluster_size) ||
           off >> c->q->cluster_bits >= c->n;
}

static int drop_table(struct qcow2_checking *c, uint64_t l1_off, uint64_t i,
                      struct img_error *err)
{
    struct qcow2 *q = c->q;
    uint64_t reach = UINT64_C(1) << (q->l2_bits + q->cluster_bits), none = 0;
    uint64_t zero = 0;
    bool quiet = c->quiet;

    c->quiet = false;
    img_qcow2_finding(c, &none, "Lost: guest bytes %llu to %llu (their L2 "
                      "table)", (unsigned long long)(i * reach),
                      (unsigned long long)((i + 1) * reach));
    c->quiet = quiet;
    c->lost += reach;
    if (l1_off == q->h.l1_offset)
        q->l1[i] = 0;
    return img_file_pwrite(q->file, &zero, sizeof zero, l1_off + i * 8, err);
}

static int compare_l1_flag(struct qcow2_checking *c, uint64_t entry,
                           uint64_t i, struct img_error *err)
{
    bool known, single, copied = entry & QCOW2_COPIED;
    uint64_t off = entry & QCOW2_OFFSET_MASK;
    int r = img_qcow2_is_single(c, off >> c->q->cluster_bits, &known,
                                &single, err);

    if (r == 0 && known && single != copied)
        img_qcow2_finding(c, img_qcow2_errors_at(c, off >>
                                                    c->q->cluster_bits),
                          "ERROR OFLAG_COPIED L2 cluster: l1_index=%llu "
                          "l1_entry=%llx: its refcount is %s1",
                          (unsigned long long)i,
                          (unsigned long long)entry, copied ? "not " : "");
    return r;
}

static int walk_l1_entry(struct worker *w, uint64_t i, struct img_error *err)
{
    struct qcow2_checking *c = w->c;
    uint64_t entry = w->w->l1[i], off = entry & QCOW2_OFFSET_MASK;
    int r;

    if (!off)
        return 0;
    if (entry & L1_RESERVED)
        structural(c, "ERROR: L1 entry %llu (0x%llx): reserved bits are set",
                   (unsigned long long)i, (unsigned long long)entry);
    if (!is_bad_table(c, off)) {
        img_read_lock(&c->gate);
        r = count(c, off, c->q->cluster_size, w->w->active
                  ? QCOW2_USE_ACTIVE_TABLE : QCOW2_USE_TABLE, err);
        if (r == 0 && w->w->active && !c->fixing_entries)
            r = compare_l1_flag(c, entry, i, err);
        if (r == 0)
            r = walk_l2(w, i, off, err);
        img_rw_unlock(&c->gate);
        return r;
    }
    structural(c, "ERROR: L1 entry %llu: no L2 table can be at 0x%llx",
               (unsigned long long)i, (unsigned long long)off);
    return c->fixing_entries ? drop_table(c, w->w->l1_off, i, err) : 0;
}

static void add_stats(struct qcow2_checking *c, const struct worker *w)
{
    img_lock(&c->lock);
    c->result->allocated += w->allocated;
    c->result->fragmented += w->fragmented;
    c->result->compressed += w->compressed;
    img_unlock(&c->lock);
}

static int step(struct img_team *team, void *opaque, unsigned number,
                struct img_error *err)
{
    struct l1_walk *walk = opaque;
    uint64_t chunk = __atomic_fetch_add(&walk->chunk, 1, __ATOMIC_RELAXED);
    struct worker w = {
        .w = walk, .c = walk->c, .table = walk->tables[number],
    };
    uint64_t from = chunk * CHUNK;
    uint64_t to = IMG_MIN(from + CHUNK, walk->l1_size);
    int r = 0;

    if (from >= walk->l1_size)
        return 0;
    for (uint64_t i = from; i < to && r == 0; i++)
        r = walk_l1_entry(&w, i, err);
    if (r == 0 && walk->stats)
        add_stats(walk->c, &w);
    img_team_add(team, to - from);
    return r < 0 ? r : 1;
}

static int progress(void *opaque, uint64_t done, uint64_t total)
{
    struct qcow2_checking *c = opaque;

    done = IMG_MIN(c->done + done, c->total);
    return c->job->progress(c->job->opaque, done, c->total);
}

static uint64_t used_entries(const uint64_t *l1, uint64_t n)
{
    uint64_t used = 0;

    for (uint64_t i = 0; i < n; i++)
        used += l1[i] != 0;
    return used;
}

static int walk_l1(struct qcow2_checking *c, const uint64_t *l1,
                   uint64_t l1_off, uint64_t l1_size, bool active,
                   struct img_error *err)
{
    struct l1_walk walk = {
        .c = c, .l1 = l1, .l1_off = l1_off, .l1_size = l1_size,
        .active = active, .stats = active && img_qcow2_is_first(c),
    };
    struct img_job job = IMG_JOB;
    unsigned n = 1, made = 0;
    int r = count_alone(c, l1_off, l1_size * 8, err);

    if (r < 0 || !used_entries(l1, l1_size))
        return r;
    if (c->job && c->job->progress)
        job.progress = progress;
    job.opaque = c;
    job.threads = c->job ? c->job->threads : 0;
    if (!c->fixing_entries && used_entries(l1, l1_size) > FEW_TABLES)
        n = IMG_MIN(img_team_size(&job, THREADS_MAX, false),
                    (unsigned)THREADS_MAX);
    for (; made < n; made++) {
        walk.tables[made] = malloc(c->q->cluster_size);
        if (!walk.tables[made])
            break;
    }
    r = made == n
        ? img_team_run(&job, n, l1_size, step, &walk, err)
        : img_fail_nomem(err);
    while (made)
        free(walk.tables[--made]);
    c->done += l1_size;
    return r;
}

static int walk_snapshots(struct qcow2_checking *c, struct img_error *err)
{
    struct qcow2 *q = c->q;
    int r = 0;

    for (uint32_t i = 0; i < q->n_snapshots && r == 0; i++) {
        const struct qcow2_snapshot *s = &q->snapshots[i];
        uint64_t *l1;

        r = img_qcow2_read_table(q, s->l1_offset, s->l1_size, &l1, err);
        if (r < 0)
            break;
        r = walk_l1(c, l1, s->l1_offset, s->l1_size, false, err);
        free(l1);
    }
    if (r == 0 && q->snapshots_bytes)
        r = count_alone(c, q->h.snapshots_offset, q->snapshots_bytes, err);
    return r;
}

/* ---- the rest ---------------------------------------------------------- */

uint64_t img_qcow2_check_block(const struct qcow2_checking *c,
                               uint64_t range)
{
    const struct qcow2 *q = c->q;
    uint64_t off;

    if (range >= q->reftable_entries)
        return 0;
    off = q->reftable[range] & QCOW2_OFFSET_MASK;
    return img_is_aligned(off, q->cluster_size) &&
           off >> q->cluster_bits < c->n ? off : 0;
}

static int walk_reftable(struct qcow2_checking *c, struct img_error *err)
{
    struct qcow2 *q = c->q;
    int r = count_alone(c, q->h.reftable_offset,
                        (uint64_t)q->h.reftable_clusters << q->cluster_bits,
                        err);

    for (uint64_t i = 0; i < q->reftable_entries && r == 0; i++) {
        uint64_t off = q->reftable[i] & QCOW2_OFFSET_MASK;
        uint64_t cluster = off >> q->cluster_bits;

        if (!q->reftable[i])
            continue;
        if ((q->reftable[i] & REFTABLE_RESERVED) ||
            !img_is_aligned(off, q->cluster_size) || cluster >= c->n) {
            structural(c, "ERROR: refcount table entry %llu: no block can "
                       "be at 0x%llx", (unsigned long long)i,
                       (unsigned long long)q->reftable[i]);
            c->rebuild = true;
            continue;
        }
        r = count_alone(c, off, q->cluster_size, err);
        if (r == 0 && img_qcow2_counted(c, cluster) > 1) {
            img_qcow2_finding(c, &c->result->errors, "ERROR: refcount block "
                              "%llu at 0x%llx is used for something else "
                              "too", (unsigned long long)i,
                              (unsigned long long)off);
            c->rebuild = true;
        }
    }
    return r;
}

struct visit {
    struct qcow2_checking *c;
    struct img_error *err;
};

static int count_visited(void *opaque, uint64_t off, uint64_t len)
{
    struct visit *v = opaque;
    struct qcow2_checking *c = v->c;

    if (!img_is_aligned(off, c->q->cluster_size)) {
        structural(c, "ERROR: a bitmap's cluster at 0x%llx is not aligned",
                   (unsigned long long)off);
        return 0;
    }
    return count_alone(c, off, len, v->err);
}

/* What is never shared: a second reference means that it is two things. */
static void alone(struct qcow2_checking *c, uint64_t off, uint64_t len,
                  const char *what)
{
    uint64_t first = off >> c->q->cluster_bits;
    uint64_t end = img_div_up(off + len, c->q->cluster_size);

    for (uint64_t i = first; len && i < end && !c->quiet; i++)
        if (img_qcow2_counted(c, i) > 1) {
            c->overlaps++;
            img_qcow2_finding(c, &c->result->errors, "ERROR: cluster %llu is "
                              "of %s and something else",
                              (unsigned long long)i, what);
        }
}

static void look_for_overlaps(struct qcow2_checking *c)
{
    const struct qcow2 *q = c->q;

    alone(c, 0, q->cluster_size, "the header");
    alone(c, q->h.l1_offset, (uint64_t)q->h.l1_size * 8, "the L1 table");
    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        const struct qcow2_snapshot *s = &q->snapshots[i];

        alone(c, s->l1_offset, (uint64_t)s->l1_size * 8,
              "a snapshot's L1 table");
    }
    alone(c, q->h.snapshots_offset, q->snapshots_bytes,
          "the snapshot table");
}

int img_qcow2_check_walk(struct qcow2_checking *c, struct img_error *err)
{
    struct qcow2 *q = c->q;
    struct visit v = { c, err };
    int r;

    c->done = 0;
    r = count_alone(c, 0, q->cluster_size, err);
    if (r == 0)
        r = walk_l1(c, q->l1, q->h.l1_offset, q->h.l1_size, true, err);
    if (r == 0)
        r = walk_snapshots(c, err);
    if (r == 0)
        r = img_qcow2_bitmaps_visit(q, count_visited, &v, err);
    if (r == 0 && !c->skip_refs && !c->fixing_entries)
        r = walk_reftable(c, err);
    if (r == 0 && !c->fixing_entries) {
        img_qcow2_count_end(c);
        look_for_overlaps(c);
    }
    return r;
}

/* ---- mending COPIED ---------------------------------------------------- */

static int fix_flag(struct qcow2_checking *c, uint64_t *entry, bool *changed,
                    struct img_error *err)
{
    uint64_t off = *entry & QCOW2_OFFSET_MASK;
    bool known, single;
    int r;

    if (!off || is_bad_table(c, off))
        return 0;
    r = img_qcow2_is_single(c, off >> c->q->cluster_bits, &known, &single,
                            err);
    if (r == 0 && known && single != !!(*entry & QCOW2_COPIED)) {
        *entry ^= QCOW2_COPIED;
        *changed = true;
    }
    return r;
}

static int fix_l2_flags(struct qcow2_checking *c, uint64_t table,
                        struct img_error *err)
{
    struct qcow2 *q = c->q;
    bool changed = false;
    int r = img_file_pread(q->file, c->table, q->cluster_size, table, err);

    for (uint64_t i = 0; i < UINT64_C(1) << q->l2_bits && r == 0; i++) {
        uint8_t *at = c->table + i * q->entry_size;
        uint64_t raw = img_get_be64(at);

        if ((raw & QCOW2_PACKED) || q->data)
            continue;
        r = fix_flag(c, &raw, &changed, err);
        img_put_be64(at, raw);
    }
    if (r == 0 && changed)
        r = img_file_pwrite(q->file, c->table, q->cluster_size, table, err);
    return r;
}

int img_qcow2_check_fix_copied(struct qcow2_checking *c,
                               struct img_error *err)
{
    struct qcow2 *q = c->q;
    int r = 0;

    img_read_lock(&c->gate);
    for (uint64_t i = 0; i < q->h.l1_size && r == 0; i++) {
        uint64_t off = q->l1[i] & QCOW2_OFFSET_MASK;
        bool changed = false;

        if (!off || is_bad_table(c, off))
            continue;
        r = fix_flag(c, &q->l1[i], &changed, err);
        if (r == 0 && changed)
            r = img_qcow2_write_table(q, q->h.l1_offset + i * 8, &q->l1[i],
                                      1, err);
        if (r == 0)
            r = fix_l2_flags(c, off, err);
    }
    img_rw_unlock(&c->gate);
    return r;
}
