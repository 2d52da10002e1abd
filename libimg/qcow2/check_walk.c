/* Counting the references that the header and the tables hold. */
#include "qcow2/check.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

#define L1_RESERVED     UINT64_C(0x7f000000000001ff)
#define L2_RESERVED     UINT64_C(0x3f000000000001fe)
#define REFTABLE_RESERVED UINT64_C(0x1ff)

struct stats {                  /* of the active tables */
    uint64_t next;              /* where contiguous data would go on */
    bool count;
};

/* Adds references to [off, off + len).  The last cluster of a file may be
 * there only in part; more than that is an error. */
static void count(struct qcow2_checking *c, uint64_t off, uint64_t len)
{
    uint64_t first = off >> c->q->cluster_bits;
    uint64_t last;

    if (!len)
        return;
    if (!img_inside(off, len, INT64_MAX) ||
        (last = (off + len - 1) >> c->q->cluster_bits) > c->n) {
        img_qcow2_finding(c, &c->result->errors, "ERROR: a reference to "
                          "%llu bytes at 0x%llx reaches beyond the end of "
                          "the file", (unsigned long long)len,
                          (unsigned long long)off);
        return;
    }
    for (uint64_t i = first; i <= last && i < c->n; i++)
        if (c->counted[i] < UINT32_MAX)
            c->counted[i]++;
}

/* ---- L2 tables --------------------------------------------------------- */

static void count_packed(struct qcow2_checking *c,
                         const struct qcow2_entry *e, struct stats *s)
{
    if (e->raw & QCOW2_COPIED)
        img_qcow2_finding(c, &c->result->errors, "ERROR: L2 entry 0x%llx: "
                          "the copied flag is set on compressed data",
                          (unsigned long long)e->raw);
    if (e->bitmap)
        img_qcow2_finding(c, &c->result->errors, "ERROR: L2 entry 0x%llx: "
                          "compressed data with subclusters",
                          (unsigned long long)e->raw);
    count(c, e->host, e->packed_len);
    if (s->count) {
        c->result->compressed++;
        c->result->allocated++;
        /* Compressed data are read one by one: all count as fragments. */
        c->result->fragmented++;
    }
}

static void count_plain(struct qcow2_checking *c, const struct qcow2_entry *e,
                        struct stats *s)
{
    struct qcow2 *q = c->q;

    if (!e->has_host)
        return;
    if (e->raw & L2_RESERVED)
        img_qcow2_finding(c, &c->result->errors, "ERROR: L2 entry 0x%llx: "
                          "reserved bits are set",
                          (unsigned long long)e->raw);
    if (s->count) {
        c->result->allocated++;
        if (s->next && e->host != s->next)
            c->result->fragmented++;
        s->next = e->host + q->cluster_size;
    }
    if (!q->data)
        count(c, e->host, q->cluster_size);
}

/* An entry that makes no sense; repair gives its guest cluster up. */
static void broken_entry(struct qcow2_checking *c, uint8_t *at,
                         uint64_t index, const char *why, bool *changed)
{
    struct qcow2 *q = c->q;
    bool quiet = c->quiet;
    uint64_t none = 0;

    if (!c->fixing_entries) {
        img_qcow2_finding(c, &c->result->errors, "ERROR: %s", why);
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

static int walk_l2(struct qcow2_checking *c, uint64_t l1_index,
                   uint64_t table, struct stats *s, struct img_error *err)
{
    struct qcow2 *q = c->q;
    uint64_t entries = UINT64_C(1) << q->l2_bits;
    bool changed = false;
    int r = img_file_pread(q->file, c->table, q->cluster_size, table, err);

    if (r < 0)
        return r;
    s->next = 0;
    for (uint64_t i = 0; i < entries; i++) {
        uint8_t *at = c->table + i * q->entry_size;
        uint64_t index = (l1_index << q->l2_bits) + i;
        struct img_error why;
        struct qcow2_entry e;

        if (!img_get_be64(at) && !img_qcow2_has_subclusters(q))
            continue;
        if (img_qcow2_entry_decode(q, at, index, &e, &why) < 0) {
            broken_entry(c, at, index, why.message, &changed);
            continue;
        }
        if (e.kind == QCOW2_PACKED_RUN)
            count_packed(c, &e, s);
        else
            count_plain(c, &e, s);
        fix_odd_entry(c, at, &e, &changed);
    }
    if (changed)
        r = img_file_pwrite(q->file, c->table, q->cluster_size, table, err);
    return r == 0 ? img_qcow2_check_progress(c, err) : r;
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

static int walk_l1(struct qcow2_checking *c, const uint64_t *l1,
                   uint64_t l1_off, uint64_t l1_size, bool active,
                   struct img_error *err)
{
    struct stats s = { .count = active && !c->quiet };
    int r = 0;

    count(c, l1_off, l1_size * 8);
    for (uint64_t i = 0; i < l1_size && r == 0; i++) {
        uint64_t off = l1[i] & QCOW2_OFFSET_MASK;

        if (!off)
            continue;
        if (l1[i] & L1_RESERVED)
            img_qcow2_finding(c, &c->result->errors, "ERROR: L1 entry %llu "
                              "(0x%llx): reserved bits are set",
                              (unsigned long long)i,
                              (unsigned long long)l1[i]);
        if (!is_bad_table(c, off)) {
            count(c, off, c->q->cluster_size);
            r = walk_l2(c, i, off, &s, err);
            continue;
        }
        img_qcow2_finding(c, &c->result->errors, "ERROR: L1 entry %llu: no "
                          "L2 table can be at 0x%llx", (unsigned long long)i,
                          (unsigned long long)off);
        if (c->fixing_entries)
            r = drop_table(c, l1_off, i, err);
    }
    return r;
}

static uint64_t snapshot_bytes(const struct qcow2_snapshot *s)
{
    uint64_t extra = s->has_icount ? 24 + s->more_len : s->has_size ? 16 : 8;

    return img_round_up(40 + extra + strlen(s->id) + strlen(s->name), 8);
}

static int walk_snapshots(struct qcow2_checking *c, struct img_error *err)
{
    struct qcow2 *q = c->q;
    uint64_t bytes = 0;
    int r = 0;

    for (uint32_t i = 0; i < q->n_snapshots && r == 0; i++) {
        const struct qcow2_snapshot *s = &q->snapshots[i];
        uint64_t *l1;

        bytes += snapshot_bytes(s);
        r = img_qcow2_read_table(q, s->l1_offset, s->l1_size, &l1, err);
        if (r < 0)
            break;
        r = walk_l1(c, l1, s->l1_offset, s->l1_size, false, err);
        free(l1);
    }
    if (r == 0 && bytes)
        count(c, q->h.snapshots_offset, bytes);
    return r;
}

/* ---- the rest ---------------------------------------------------------- */

static void walk_reftable(struct qcow2_checking *c)
{
    struct qcow2 *q = c->q;

    count(c, q->h.reftable_offset,
          (uint64_t)q->h.reftable_clusters << q->cluster_bits);
    for (uint64_t i = 0; i < q->reftable_entries; i++) {
        uint64_t off = q->reftable[i] & QCOW2_OFFSET_MASK;

        if (!q->reftable[i])
            continue;
        if ((q->reftable[i] & REFTABLE_RESERVED) ||
            !img_is_aligned(off, q->cluster_size) ||
            off >> q->cluster_bits >= c->n) {
            img_qcow2_finding(c, &c->result->errors, "ERROR: refcount table "
                              "entry %llu: no block can be at 0x%llx",
                              (unsigned long long)i,
                              (unsigned long long)q->reftable[i]);
            c->rebuild = true;
            continue;
        }
        count(c, off, q->cluster_size);
        if (c->counted[off >> q->cluster_bits] != 1) {
            img_qcow2_finding(c, &c->result->errors, "ERROR: refcount block "
                              "%llu at 0x%llx is used for something else "
                              "too", (unsigned long long)i,
                              (unsigned long long)off);
            c->rebuild = true;
        }
    }
}

static int count_visited(void *opaque, uint64_t off, uint64_t len)
{
    count(opaque, off, len);
    return 0;
}

int img_qcow2_check_walk(struct qcow2_checking *c, struct img_error *err)
{
    struct qcow2 *q = c->q;
    int r;

    memset(c->counted, 0, (c->n + 1) * sizeof *c->counted);
    count(c, 0, q->cluster_size);
    r = walk_l1(c, q->l1, q->h.l1_offset, q->h.l1_size, true, err);
    if (r == 0)
        r = walk_snapshots(c, err);
    if (r == 0)
        r = img_qcow2_bitmaps_visit(q, count_visited, c, err);
    if (r == 0)
        walk_reftable(c);
    return r;
}

/* ---- COPIED ------------------------------------------------------------ */

static bool is_single(const struct qcow2_checking *c, uint64_t off)
{
    uint64_t i = off >> c->q->cluster_bits;

    return i < c->n && c->single[i / 8] >> i % 8 & 1;
}

static int copied_l2(struct qcow2_checking *c, uint64_t table, bool fix,
                     struct img_error *err)
{
    struct qcow2 *q = c->q;
    uint64_t entries = UINT64_C(1) << q->l2_bits;
    bool changed = false;
    int r = img_file_pread(q->file, c->table, q->cluster_size, table, err);

    if (r < 0)
        return r;
    for (uint64_t i = 0; i < entries; i++) {
        uint8_t *at = c->table + i * q->entry_size;
        uint64_t raw = img_get_be64(at), off = raw & QCOW2_OFFSET_MASK;
        bool copied = raw & QCOW2_COPIED;

        if ((raw & QCOW2_PACKED) || q->data || !off ||
            !img_is_aligned(off, q->cluster_size) ||
            is_single(c, off) == copied)
            continue;
        img_qcow2_finding(c, &c->result->errors, "ERROR OFLAG_COPIED data "
                          "cluster: l2_entry=%llx: its refcount is %s1",
                          (unsigned long long)raw, copied ? "not " : "");
        img_put_be64(at, raw ^ QCOW2_COPIED);
        changed = true;
    }
    if (changed && fix)
        r = img_file_pwrite(q->file, c->table, q->cluster_size, table, err);
    return r == 0 ? img_qcow2_check_progress(c, err) : r;
}

int img_qcow2_check_copied(struct qcow2_checking *c, bool fix,
                           struct img_error *err)
{
    struct qcow2 *q = c->q;
    int r = 0;

    for (uint64_t i = 0; i < q->h.l1_size && r == 0; i++) {
        uint64_t off = q->l1[i] & QCOW2_OFFSET_MASK;
        bool copied = q->l1[i] & QCOW2_COPIED;

        if (!off || is_bad_table(c, off))
            continue;
        if (is_single(c, off) != copied) {
            img_qcow2_finding(c, &c->result->errors, "ERROR OFLAG_COPIED L2 "
                              "cluster: l1_index=%llu l1_entry=%llx: its "
                              "refcount is %s1", (unsigned long long)i,
                              (unsigned long long)q->l1[i],
                              copied ? "not " : "");
            if (fix)
                q->l1[i] ^= QCOW2_COPIED;
            if (fix)
                r = img_qcow2_write_table(q, q->h.l1_offset + i * 8,
                                          &q->l1[i], 1, err);
        }
        if (r == 0)
            r = copied_l2(c, off, fix, err);
    }
    return r;
}
