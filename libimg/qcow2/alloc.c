/* Which host clusters are free.  Everything here is called with q->lock
 * held; callers never retry.
 *
 * q->hint: no cluster below it is free, so the search starts there.  It only
 * goes back when a refcount drops to 0.
 */
#include "qcow2/qcow2.h"
#include "base/checked.h"
#include "base/error.h"
#include "file/file.h"

#include <stdlib.h>

bool img_qcow2_claim(struct qcow2 *q, uint64_t host, uint64_t len)
{
    bool zeroed = q->zeros_beyond_end && host >= q->end;

    q->end = IMG_MAX(q->end, host + len);
    return zeroed;
}

int img_qcow2_clear_table(struct qcow2 *q, uint64_t host, uint32_t kind,
                          bool zeroed, struct img_error *err)
{
    uint32_t len = 1u << q->slice_bits;
    int r = 0;

    if (!zeroed)
        r = img_file_zero(q->file, host, q->cluster_size, 0, err);
    for (uint64_t at = 0; r == 0 && at < q->cluster_size; at += len) {
        struct img_slice *slice;

        r = img_tcache_new_slice(q->tables, q->file, host + at, len, kind,
                                 &slice, err);
        if (r == 0)
            img_tcache_put(q->tables, slice);
    }
    /* Whatever comes to lie there must not be overwritten with these. */
    if (r < 0)
        img_tcache_forget(q->tables, q->file, host, q->cluster_size);
    return r;
}

static bool overlaps(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
    return a < b + b_len && b < a + a_len;
}

int img_qcow2_check_free(struct qcow2 *q, uint64_t host, uint64_t len,
                         struct img_error *err)
{
    const struct { const char *what; uint64_t off, len; } used[] = {
        { "header", 0, q->cluster_size },
        { "L1 table", q->h.l1_offset, (uint64_t)q->h.l1_size * 8 },
        { "refcount table", q->h.reftable_offset,
          (uint64_t)q->h.reftable_clusters << q->cluster_bits },
    };

    for (size_t i = 0; i < IMG_COUNT(used); i++)
        if (used[i].len && overlaps(host, len, used[i].off, used[i].len))
            return img_fail(err, IMG_ECORRUPT, "%s: refcounts say that the "
                            "cluster at 0x%llx is free, but it holds the %s",
                            q->layer->path, (unsigned long long)host,
                            used[i].what);
    if (host + len > (UINT64_C(1) << 55))
        return img_fail(err, EFBIG, "%s: host offset 0x%llx is too far",
                        q->layer->path, (unsigned long long)host);
    return 0;
}

int img_qcow2_take(struct qcow2 *q, uint64_t n, uint64_t *host, uint64_t *got,
                   bool *zeroed, struct img_error *err)
{
    uint64_t first, run, len;
    int r = img_qcow2_refs_find_free(q, q->hint, n, &first, &run, err);

    if (r < 0)
        return r;
    len = run << q->cluster_bits;
    *host = first << q->cluster_bits;
    *got = run;
    r = img_qcow2_check_free(q, *host, len, err);
    if (r == 0)
        r = img_qcow2_refs_add(q, first, run, 1, err);
    if (r < 0)
        return r;
    q->hint = first + run;
    /* A run that begins below the end is not zeros throughout. */
    *zeroed = img_qcow2_claim(q, *host, len);
    return 0;
}

int img_qcow2_take_row(struct qcow2 *q, uint64_t n, uint64_t *host,
                       struct img_error *err)
{
    uint64_t first;
    int r = img_qcow2_refs_place_row(q, img_div_up(q->end, q->cluster_size),
                                     n, &first, err);

    if (r == 0)
        r = img_qcow2_refs_add(q, first, n, 1, err);
    if (r < 0)
        return r;
    *host = first << q->cluster_bits;
    img_qcow2_claim(q, *host, n << q->cluster_bits);
    return 0;
}

int img_qcow2_take_table(struct qcow2 *q, uint64_t *host,
                         struct img_error *err)
{
    uint64_t got;
    bool zeroed;
    int r = img_qcow2_take(q, 1, host, &got, &zeroed, err);

    if (r < 0)
        return r;
    r = img_qcow2_clear_table(q, *host, QCOW2_KIND_L2, zeroed, err);
    if (r < 0)
        img_qcow2_give_back(q, *host, q->cluster_size, NULL);
    return r;
}

/* Goes on behind the last packed cluster where its last host cluster has
 * room, and where one more reference to it fits. */
static int append_bytes(struct qcow2 *q, uint32_t len, bool *fits,
                        struct img_error *err)
{
    uint64_t cluster = q->packed_at >> q->cluster_bits, count, next;
    uint64_t room = ((cluster + 1) << q->cluster_bits) - q->packed_at;
    int r;

    *fits = false;
    if (!q->packed_at || img_is_aligned(q->packed_at, q->cluster_size))
        return 0;
    r = img_qcow2_refs_get(q, cluster, &count, err);
    if (r < 0 || !count || count >= q->max_refcount)
        return r;
    if (len > room) {
        if ((cluster + 1) >> q->refs_bits != cluster >> q->refs_bits)
            return 0;           /* may have no refcount block yet */
        r = img_qcow2_refs_get(q, cluster + 1, &next, err);
        if (r < 0 || next)
            return r;
        r = img_qcow2_check_free(q, (cluster + 1) << q->cluster_bits,
                                 q->cluster_size, err);
        if (r == 0)
            r = img_qcow2_refs_add(q, cluster + 1, 1, 1, err);
        if (r < 0)
            return r;
        img_qcow2_claim(q, (cluster + 1) << q->cluster_bits,
                        q->cluster_size);
    }
    r = img_qcow2_refs_add(q, cluster, 1, 1, err);
    *fits = r == 0;
    return r;
}

int img_qcow2_take_bytes(struct qcow2 *q, uint32_t len, uint64_t *host,
                         struct img_error *err)
{
    uint64_t got;
    bool fits, zeroed;
    int r = append_bytes(q, len, &fits, err);

    if (r < 0)
        return r;
    if (!fits) {
        r = img_qcow2_take(q, 1, &q->packed_at, &got, &zeroed, err);
        if (r < 0) {
            q->packed_at = 0;
            return r;
        }
    }
    *host = q->packed_at;
    q->packed_at += len;
    if (*host >= UINT64_C(1) << (62 - (q->cluster_bits - 8)))
        return img_fail(err, EFBIG, "%s: compressed data at 0x%llx is too "
                        "far", q->layer->path, (unsigned long long)*host);
    return 0;
}

int img_qcow2_give_back(struct qcow2 *q, uint64_t host, uint64_t len,
                        struct img_error *err)
{
    uint64_t first = host >> q->cluster_bits;
    uint64_t last = (host + len - 1) >> q->cluster_bits;

    /* The cluster that packed data would go on in must not be reused. */
    if (q->packed_at && q->packed_at - 1 >= first << q->cluster_bits &&
        (q->packed_at - 1) >> q->cluster_bits <= last)
        q->packed_at = 0;
    return img_qcow2_refs_add(q, first, last - first + 1, -1, err);
}

int img_qcow2_frees_room(struct qcow2 *q, size_t n, struct img_error *err)
{
    struct qcow2_ranges *f = &q->frees;
    size_t room = IMG_MAX(f->n + n, f->room * 2);
    struct qcow2_range *list;

    if (f->room - f->n >= n)
        return 0;
    list = realloc(f->list, room * sizeof *list);
    if (!list)
        return img_fail_nomem(err);
    f->list = list;
    f->room = room;
    return 0;
}

int img_qcow2_free_later(struct qcow2 *q, uint64_t host, uint64_t len,
                         bool discard, struct img_error *err)
{
    struct qcow2_ranges *f = &q->frees;
    uint64_t from = img_round_down(host, q->cluster_size);
    uint64_t to = img_round_up(host + len, q->cluster_size);
    int r;

    if (f->n) {
        struct qcow2_range *last = &f->list[f->n - 1];

        if (last->off + last->len == from && last->discard == discard) {
            last->len += to - from;
            f->clusters += (to - from) >> q->cluster_bits;
            return 0;
        }
    }
    r = img_qcow2_frees_room(q, 1, err);
    if (r < 0)
        return r;
    f->clusters += (to - from) >> q->cluster_bits;
    f->list[f->n++] = (struct qcow2_range){ from, to - from, discard };
    return 0;
}

int img_qcow2_entry_free(struct qcow2 *q, const struct qcow2_entry *e,
                         bool discard, struct img_error *err)
{
    if (!e->has_host || q->data)
        return 0;
    if (e->kind == QCOW2_PACKED_RUN)
        return img_qcow2_free_later(q, e->host, e->packed_len, false, err);
    return img_qcow2_free_later(q, e->host, q->cluster_size, discard, err);
}
