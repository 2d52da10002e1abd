/* Refcounts and COPIED flags of whole L1 tables. */
#include "qcow2/shared.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "file/file.h"

#include <stdlib.h>

/* Host clusters in a row. */
struct row {
    uint64_t first, n;
};

/* Does an entry say nothing but that its data follows the row? */
static bool is_next(const struct qcow2 *q, const struct row *row,
                    uint64_t raw)
{
    uint64_t next = (row->first + row->n) << q->cluster_bits;

    return (raw & ~QCOW2_COPIED) == next && next < q->end;
}

/* What one L2 table refers to, neighbours merged; rows has room for one for
 * each entry. */
static int rows_of(struct qcow2 *q, const uint8_t *table, uint64_t l1_index,
                   struct row *rows, size_t *n, struct img_error *err)
{
    bool quick = !q->data && !img_qcow2_has_subclusters(q);

    *n = 0;
    for (uint64_t i = 0; i < UINT64_C(1) << q->l2_bits; i++) {
        struct qcow2_entry e;
        uint64_t first, count = 1, raw = img_get_be64(table +
                                                      i * q->entry_size);
        int r;

        if (quick && *n && is_next(q, &rows[*n - 1], raw)) {
            rows[*n - 1].n++;
            continue;
        }
        r = img_qcow2_entry_decode(q, table + i * q->entry_size,
                                       (l1_index << q->l2_bits) + i, &e,
                                       err);
        if (r < 0)
            return r;
        if (!e.has_host)
            continue;
        first = e.host >> q->cluster_bits;
        if (e.kind == QCOW2_PACKED_RUN)
            count = ((e.host + e.packed_len - 1) >> q->cluster_bits) -
                    first + 1;
        if (*n && rows[*n - 1].first + rows[*n - 1].n == first) {
            rows[*n - 1].n += count;
            continue;
        }
        rows[(*n)++] = (struct row){ first, count };
    }
    return 0;
}

static int add_rows(struct qcow2 *q, const struct row *rows, size_t n,
                    int64_t delta, struct img_error *err)
{
    size_t done = 0;
    int r = 0;

    img_lock(&q->lock);
    while (done < n && r == 0) {
        r = img_qcow2_refs_add(q, rows[done].first, rows[done].n, delta,
                               err);
        done += r == 0;
    }
    for (size_t i = 0; r < 0 && i < done; i++)
        img_qcow2_refs_add(q, rows[i].first, rows[i].n, -delta, NULL);
    img_unlock(&q->lock);
    return r;
}

static int add_table(struct qcow2 *q, uint64_t entry, uint64_t l1_index,
                     uint8_t *table, struct row *rows, int64_t delta,
                     struct img_error *err)
{
    uint64_t off = entry & QCOW2_OFFSET_MASK;
    size_t n = 0;
    int r;

    if (!img_is_aligned(off, q->cluster_size) || off >= q->end)
        return img_fail(err, IMG_ECORRUPT, "%s: L1 entry %llu: L2 table at "
                        "0x%llx", q->layer->path,
                        (unsigned long long)l1_index,
                        (unsigned long long)off);
    r = img_file_pread(q->file, table, q->cluster_size, off, err);
    if (r == 0)
        r = rows_of(q, table, l1_index, rows, &n, err);
    if (r < 0)
        return r;
    rows[n++] = (struct row){ off >> q->cluster_bits, 1 };
    r = add_rows(q, rows, n, delta, err);
    return r == 0 ? img_qcow2_relieve(q, err) : r;
}

int img_qcow2_share_add(struct qcow2 *q, const uint64_t *l1, uint64_t n,
                        int64_t delta, struct img_error *err)
{
    size_t entries = (size_t)1 << q->l2_bits;
    img_autofree uint8_t *table = malloc(q->cluster_size);
    img_autofree struct row *rows = malloc((entries + 1) * sizeof *rows);
    uint64_t i = 0;
    int r = 0;

    if (!table || !rows)
        return img_fail_nomem(err);
    for (; i < n && r == 0; i++)
        if (l1[i] & QCOW2_OFFSET_MASK)
            r = add_table(q, l1[i], i, table, rows, delta, err);
    /* The failed one took back what it did; what came before is left. */
    for (uint64_t k = 0; r < 0 && k + 1 < i; k++)
        if (l1[k] & QCOW2_OFFSET_MASK)
            add_table(q, l1[k], k, table, rows, -delta, NULL);
    return r;
}

/* ---- flags ------------------------------------------------------------- */

/* Refcounts are looked up for as many clusters in a row as the table has. */
enum { ROW_MAX = 1024 };

struct lookup {
    uint64_t first, n;
    uint64_t counts[ROW_MAX];
};

static int count_of(struct qcow2 *q, struct lookup *l, uint64_t cluster,
                    uint64_t *count, struct img_error *err)
{
    int r = 0;

    if (cluster < l->first || cluster >= l->first + l->n) {
        l->first = cluster;
        l->n = 0;
        img_lock(&q->lock);
        r = img_qcow2_refs_get_row(q, cluster, ROW_MAX, l->counts, &l->n,
                                   err);
        img_unlock(&q->lock);
    }
    if (r == 0)
        *count = l->counts[cluster - l->first];
    return r;
}

static int flag_table(struct qcow2 *q, uint64_t off, uint8_t *table,
                      struct lookup *l, struct img_error *err)
{
    uint64_t low = UINT64_MAX, high = 0, count;
    int r = img_file_pread(q->file, table, q->cluster_size, off, err);

    for (uint64_t i = 0; r == 0 && i < UINT64_C(1) << q->l2_bits; i++) {
        uint8_t *at = table + i * q->entry_size;
        uint64_t raw = img_get_be64(at), host = raw & QCOW2_OFFSET_MASK;

        if ((raw & QCOW2_PACKED) || !host)
            continue;
        r = count_of(q, l, host >> q->cluster_bits, &count, err);
        if (r == 0 && (count == 1) != !!(raw & QCOW2_COPIED)) {
            img_put_be64(at, raw ^ QCOW2_COPIED);
            low = IMG_MIN(low, i);
            high = i + 1;
        }
    }
    if (r == 0 && high)
        r = img_file_pwrite(q->file, table + low * q->entry_size,
                            (high - low) * q->entry_size,
                            off + low * q->entry_size, err);
    return r;
}

int img_qcow2_share_flags(struct qcow2 *q, const uint64_t *before,
                          uint64_t n, struct img_error *err)
{
    img_autofree uint8_t *table = malloc(q->cluster_size);
    img_autofree struct lookup *l = calloc(1, sizeof *l);
    struct lookup *tables;
    uint64_t count;
    int r = img_qcow2_write_back(q, true, err);

    /* What is dirty still is nowhere but in the cache. */
    if (r < 0)
        return r;
    if (!table || !l)
        return img_fail_nomem(err);
    tables = calloc(1, sizeof *tables);
    if (!tables)
        return img_fail_nomem(err);
    for (uint64_t i = 0; r == 0 && i < q->h.l1_size; i++) {
        uint64_t off = q->l1[i] & QCOW2_OFFSET_MASK;

        if (!off || (i < n && (before[i] & QCOW2_OFFSET_MASK) == off))
            continue;
        r = count_of(q, tables, off >> q->cluster_bits, &count, err);
        if (r == 0)
            r = flag_table(q, off, table, l, err);
        if (r == 0)
            q->l1[i] = off | (count == 1 ? QCOW2_COPIED : 0);
    }
    free(tables);
    /* The cached slices are what they were before. */
    img_tcache_forget(q->tables, q->file, 0, UINT64_MAX);
    if (r == 0)
        r = img_qcow2_write_table(q, q->h.l1_offset, q->l1, q->h.l1_size,
                                  err);
    return r == 0 ? img_file_sync(q->file, err) : r;
}
