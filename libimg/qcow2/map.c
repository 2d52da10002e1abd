/* Where guest bytes are. */
#include "qcow2/qcow2.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/error.h"
#include "file/file.h"

#include <string.h>
#include <sys/types.h>

/* What one block (cluster or subcluster) says. */
struct answer {
    enum img_run_kind kind;
    uint64_t host;
    uint32_t packed_len;
};

static struct answer answer_of(const struct qcow2 *q,
                               const struct qcow2_entry *e, unsigned sub,
                               unsigned flags)
{
    uint64_t in = (uint64_t)sub << q->block_bits;

    switch (img_qcow2_entry_sub(q, e, sub)) {
    case QCOW2_NORMAL:
        return (struct answer){ IMG_RUN_DATA, e->host + in, 0 };
    case QCOW2_ZEROS:
        return (struct answer){ IMG_RUN_ZERO,
                                e->has_host ? e->host + in : UINT64_MAX, 0 };
    case QCOW2_PACKED_RUN:
        return (struct answer){ IMG_RUN_PACKED, e->host, e->packed_len };
    default:
        return (struct answer){ IMG_RUN_ABSENT,
                                (flags & IMG_RUN_PLACES) && e->has_host
                                    ? e->host + in : UINT64_MAX, 0 };
    }
}

static bool continues(const struct answer *first, const struct answer *next,
                      uint64_t distance)
{
    if (next->kind != first->kind || next->kind == IMG_RUN_PACKED)
        return false;
    if (first->host == UINT64_MAX || next->host == UINT64_MAX)
        return first->host == next->host;
    return next->host == first->host + distance;
}

/* How many entries behind number i, of those up to n, go on from it in the
 * plainest way: each the next host cluster, or all the same nothing.  Only
 * what a look at each by itself would accept too. */
static uint32_t plain_entries(const struct qcow2 *q,
                              const struct qcow2_cursor *c, uint32_t i,
                              uint32_t n, const struct qcow2_entry *e)
{
    enum { SAME = 64 };         /* entries at once */
    const uint8_t *at = img_qcow2_cursor_entry(q, c, i);
    uint64_t step = e->has_host ? q->cluster_size : 0;
    uint64_t most = n - i - 1, next = e->raw;
    uint32_t k = 0;

    if (img_qcow2_has_subclusters(q) || q->data ||
        e->kind == QCOW2_PACKED_RUN)
        return 0;
    if (step)
        most = IMG_MIN(most, (q->end - 1 - e->host) / step);
    while (!step && most - k >= SAME &&
           !memcmp(at + k * 8, at + (k + 1) * 8, SAME * 8))
        k += SAME;
    while (k < most && img_get_be64(at + (k + 1) * 8) == next + step) {
        next += step;
        k++;
    }
    return k;
}

/* Walks blocks from off on as long as the answer continues. */
static int map_slice(struct qcow2 *q, const struct qcow2_cursor *c,
                     uint64_t off, uint64_t len, unsigned flags,
                     struct img_run *run, struct img_error *err)
{
    uint64_t block = UINT64_C(1) << q->block_bits;
    unsigned subs = 1u << (q->cluster_bits - q->block_bits);
    uint64_t start = img_round_down(off, block), at = start;
    unsigned sub = (unsigned)((start >> q->block_bits) & (subs - 1));
    struct answer first = { IMG_RUN_ABSENT, 0, 0 };
    struct qcow2_entry e = { 0 };
    uint32_t more;

    for (uint32_t i = 0; i < c->left && at < off + len; i++, sub = 0) {
        int r = img_qcow2_entry_decode(q, img_qcow2_cursor_entry(q, c, i),
                                       c->cluster + i, &e, err);
        if (r == 0)
            r = img_qcow2_entry_is_there(q, c->cluster + i, &e, err);
        if (r < 0 && at == start)
            return r;
        if (r < 0)
            goto out;           /* an error further on is for later */
        for (; sub < subs && at < off + len; sub++, at += block) {
            struct answer now = answer_of(q, &e, sub, flags);

            if (at == start)
                first = now;
            else if (!continues(&first, &now, at - start))
                goto out;
            if (now.kind == IMG_RUN_PACKED) {
                at = ((c->cluster + i + 1) << q->cluster_bits);
                goto out;
            }
        }
        more = plain_entries(q, c, i, c->left, &e);
        at += (uint64_t)more << q->cluster_bits;
        i += more;
    }
out:
    run->off = off;
    run->len = IMG_MIN(at - off, len);
    run->kind = first.kind;
    run->file = q->data;
    run->host = first.host;
    if (first.kind == IMG_RUN_DATA ||
        (first.kind != IMG_RUN_PACKED && first.host != UINT64_MAX))
        run->host += off - start;
    run->host_max = first.packed_len;
    run->codec = q->h.compression == QCOW2_ZSTD ? IMG_CODEC_ZSTD
                                                : IMG_CODEC_DEFLATE;
    return 0;
}

static int map(struct qcow2 *q, uint64_t off, uint64_t len, unsigned flags,
               struct img_run *run, struct img_error *err)
{
    uint64_t clusters = ((off + len - 1) >> q->cluster_bits) -
                        (off >> q->cluster_bits) + 1;
    struct qcow2_cursor c;
    uint64_t end;
    int r = img_qcow2_cursor_get(q, off, clusters, flags & IMG_RUN_CACHED, &c,
                                 err);

    if (r < 0)
        return r;
    if (!c.slice) {
        end = (c.cluster + c.skip) << q->cluster_bits;
        *run = (struct img_run){ .off = off, .len = IMG_MIN(end - off, len),
                                 .kind = IMG_RUN_ABSENT, .host = UINT64_MAX };
        return 0;
    }
    r = map_slice(q, &c, off, len, flags, run, err);
    img_qcow2_cursor_put(q, &c);
    return r;
}

/* Slices of L2 tables that end in this range. */
void img_qcow2_passed(struct img_layer *layer, uint64_t off, uint64_t len)
{
    struct qcow2 *q = img_qcow2_of(layer);
    uint64_t reach = ((UINT64_C(1) << q->slice_bits) / q->entry_size)
                     << q->cluster_bits;

    img_lock(&q->lock);
    for (uint64_t at = img_round_down(off, reach); at + reach <= off + len;
         at += reach) {
        struct qcow2_cursor c;

        if (img_qcow2_cursor_get(q, at, 1, true, &c, NULL) == 0 && c.slice)
            img_tcache_put_last(q->tables, c.slice);
    }
    img_unlock(&q->lock);
}

/* ---- holes of the file ------------------------------------------------- */

enum { ROW = 1024 };

/* Are more clusters counted than the file has blocks for?  A tenth is
 * allowed for, so that clusters written in part do not make runs short; that
 * is where QEMU draws the line too. */
static bool is_sparse(struct qcow2 *q)
{
    uint64_t there = img_file_allocated(q->file) >> q->cluster_bits;
    uint64_t enough = IMG_MAX(there + there / 9, there + 2);
    uint64_t n = img_div_up(q->end, q->cluster_size), used = 0, at = 0;
    uint64_t counts[ROW];

    while (at < n && used < enough && n - at >= enough - used) {
        uint64_t row;

        if (img_qcow2_refs_get_row(q, at, IMG_MIN(n - at, (uint64_t)ROW),
                                   counts, &row, NULL) < 0)
            return false;
        for (uint64_t i = 0; i < row; i++)
            used += counts[i] != 0;
        at += row;
    }
    return used >= enough;
}

/* Looked at once: a file that is filled later is asked in vain. */
bool img_qcow2_may_be_sparse(struct img_layer *layer)
{
    struct qcow2 *q = img_qcow2_of(layer);
    bool may;

    img_lock(&q->lock);
    if (!q->looked_for_holes)
        q->has_holes = !q->data && is_sparse(q);
    q->looked_for_holes = true;
    may = q->has_holes;
    img_unlock(&q->lock);
    return may;
}

int img_qcow2_map(struct img_layer *layer, uint64_t off, uint64_t len,
                  unsigned flags, struct img_run *run, struct img_error *err)
{
    struct qcow2 *q = img_qcow2_of(layer);
    int r;

    img_lock(&q->lock);
    r = map(q, off, len, flags, run, err);
    img_unlock(&q->lock);
    return img_qcow2_result(q, r);
}
