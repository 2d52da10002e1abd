/* Zeros and discards: entries that lose their place, or keep it unread. */
#include "qcow2/qcow2.h"
#include "base/checked.h"
#include "base/error.h"

#include <sys/types.h>

/* What a block becomes. */
enum becomes { BECOMES_SAME, BECOMES_ABSENT, BECOMES_ZERO, BECOMES_ZERO_KEEP };

static enum becomes becomes(const struct qcow2 *q, enum qcow2_kind now,
                            enum img_unmap mode)
{
    bool backed = q->layer->backing != NULL;
    bool zeros = q->h.version >= 3;

    switch (mode) {
    case IMG_UNMAP_DROP:
        return now == QCOW2_UNUSED ? BECOMES_SAME : BECOMES_ABSENT;
    case IMG_UNMAP_DISCARD:
        if (!backed)
            return now == QCOW2_UNUSED ? BECOMES_SAME : BECOMES_ABSENT;
        return zeros ? BECOMES_ZERO : BECOMES_SAME;
    default:
        if (!backed && mode != IMG_UNMAP_ZERO_OWN && now == QCOW2_UNUSED)
            return BECOMES_SAME;
        if (!zeros)
            return BECOMES_ABSENT;      /* not backed: reads as zeros */
        return mode == IMG_UNMAP_ZERO_KEEP ? BECOMES_ZERO_KEEP : BECOMES_ZERO;
    }
}

static void change_cluster(struct qcow2 *q, uint8_t *at,
                           const struct qcow2_entry *e, enum becomes to,
                           bool discard)
{
    bool keep = to == BECOMES_ZERO_KEEP && e->has_host && e->copied &&
                e->kind != QCOW2_PACKED_RUN;
    uint64_t raw = keep ? e->host | QCOW2_COPIED : 0;
    uint64_t bitmap = 0;

    if (to != BECOMES_ABSENT && img_qcow2_has_subclusters(q))
        bitmap = UINT64_C(0xffffffff) << 32;
    else if (to != BECOMES_ABSENT)
        raw |= QCOW2_ZERO;
    img_qcow2_entry_store(q, at, raw, bitmap);
    if (!keep)
        img_qcow2_entry_free(q, e, discard, NULL);
}

static void change_subs(struct qcow2 *q, uint8_t *at,
                        const struct qcow2_entry *e, unsigned from,
                        unsigned to, enum img_unmap mode)
{
    uint64_t bitmap = e->bitmap;

    for (unsigned sub = from; sub < to; sub++) {
        enum becomes b = becomes(q, img_qcow2_entry_sub(q, e, sub), mode);

        if (b == BECOMES_SAME)
            continue;
        bitmap &= ~(UINT64_C(1) << sub | UINT64_C(1) << (sub + 32));
        if (b != BECOMES_ABSENT)
            bitmap |= UINT64_C(1) << (sub + 32);
    }
    img_qcow2_entry_store(q, at, e->raw, bitmap);
}

/* One cluster's part of the range, [off, end). */
static int change(struct qcow2 *q, const struct qcow2_cursor *c, uint32_t i,
                  uint64_t off, uint64_t end, enum img_unmap mode,
                  struct img_error *err)
{
    uint64_t start = (c->cluster + i) << q->cluster_bits;
    bool whole = off == start && (end == start + q->cluster_size ||
                                  end == q->layer->size);
    uint8_t *at = img_qcow2_cursor_entry(q, c, i);
    struct qcow2_entry e;
    enum becomes to;
    int r = img_qcow2_entry_decode(q, at, c->cluster + i, &e, err);

    if (r == 0)
        r = img_qcow2_frees_room(q, 1, err);
    if (r < 0)
        return r;
    if (whole) {
        to = becomes(q, img_qcow2_has_subclusters(q) && e.bitmap
                        ? QCOW2_NORMAL : e.kind, mode);
        if (to != BECOMES_SAME)
            change_cluster(q, at, &e, to, q->discard);
    } else if (!img_qcow2_has_subclusters(q) ||
               e.kind == QCOW2_PACKED_RUN) {
        return img_fail(err, ENOTSUP, "%s: part of the cluster at guest "
                        "offset 0x%llx can only be written", q->layer->path,
                        (unsigned long long)start);
    } else {
        change_subs(q, at, &e, (unsigned)((off - start) >> q->block_bits),
                    (unsigned)img_div_up(end - start,
                                         UINT64_C(1) << q->block_bits),
                    mode);
    }
    img_qcow2_cursor_dirty(q, c, i, 1);
    return 0;
}

static int unmap(struct qcow2 *q, uint64_t off, uint64_t len,
                 enum img_unmap mode, uint64_t *done, struct img_error *err)
{
    uint64_t clusters = ((off + len - 1) >> q->cluster_bits) -
                        (off >> q->cluster_bits) + 1;
    uint64_t at = off, next;
    struct qcow2_cursor c;
    int r = img_qcow2_cursor_get(q, off, clusters, false, &c, err);

    if (r < 0)
        return r;
    if (!c.slice && becomes(q, QCOW2_UNUSED, mode) == BECOMES_SAME) {
        next = (c.cluster + c.skip) << q->cluster_bits;
        *done = IMG_MIN(next - off, len);
        return 0;
    }
    img_qcow2_cursor_put(q, &c);
    r = img_qcow2_cursor_get_writable(q, off, &c, err);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < c.left && at < off + len; i++, at = next) {
        next = IMG_MIN((c.cluster + i + 1) << q->cluster_bits, off + len);
        r = change(q, &c, i, at, next, mode, err);
        if (r < 0)
            break;
    }
    img_qcow2_cursor_put(q, &c);
    *done = at - off;
    return *done ? 0 : r;
}

int img_qcow2_unmap(struct img_layer *layer, uint64_t off, uint64_t len,
                    enum img_unmap mode, uint64_t *done,
                    struct img_error *err)
{
    struct qcow2 *q = img_qcow2_of(layer);
    int r;

    /* What a raw data file holds is what the guest sees, up to its end. */
    if (q->data && (q->h.autoclear & QCOW2_DATA_FILE_RAW) &&
        off < q->h.size) {
        if (mode != IMG_UNMAP_DISCARD)
            return img_fail(err, ENOTSUP, "%s: zeros must be written to a "
                            "raw data file", layer->path);
        *done = len;
        return 0;
    }
    if (q->h.version < 3 &&
        (mode == IMG_UNMAP_ZERO_OWN ||
         (layer->backing &&
          (mode == IMG_UNMAP_ZERO || mode == IMG_UNMAP_ZERO_KEEP))))
        return img_fail(err, ENOTSUP, "%s: version 2 has no zero clusters",
                        layer->path);
    img_lock(&q->lock);
    r = unmap(q, off, len, mode, done, err);
    img_unlock(&q->lock);
    if (r == 0)
        img_qcow2_relieve(q, NULL);     /* what fails stays for the flush */
    return img_qcow2_result(q, r);
}
