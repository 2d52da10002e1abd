/* Another size for the guest's disk.  No request is in flight. */
#include "qcow2/qcow2.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/error.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

/* The new L1 table is durable before the header names it; the old one goes
 * after that. */
static int grow_l1(struct qcow2 *q, uint64_t need, struct img_error *err)
{
    uint64_t old_off = q->h.l1_offset, old_size = q->h.l1_size, off, *l1;
    uint64_t clusters = img_div_up(need * 8, q->cluster_size);
    uint8_t field[12];
    int r;

    if (need > QCOW2_MAX_L1_BYTES / 8)
        return img_fail(err, EFBIG, "%s: the disk would be too large for "
                        "clusters of %u bytes", q->layer->path,
                        q->cluster_size);
    l1 = calloc(clusters * (q->cluster_size / 8), sizeof *l1);
    if (!l1)
        return img_fail_nomem(err);
    img_lock(&q->lock);
    memcpy(l1, q->l1, old_size * sizeof *l1);
    r = img_qcow2_take_row(q, clusters, &off, err);
    img_unlock(&q->lock);
    if (r == 0)
        r = img_qcow2_write_table(q, off, l1,
                                  clusters * (q->cluster_size / 8), err);
    if (r == 0)
        r = img_qcow2_write_back(q, true, err);
    if (r < 0) {
        free(l1);
        return r;
    }
    img_put_be32(field, (uint32_t)need);
    img_put_be64(field + 4, off);
    r = img_qcow2_header_switch(q, field, sizeof field, 36, err);
    if (r < 0) {
        free(l1);
        return r;
    }
    img_lock(&q->lock);
    free(q->l1);
    q->l1 = l1;
    q->h.l1_offset = off;
    q->h.l1_size = (uint32_t)need;
    r = old_size ? img_qcow2_give_back(q, old_off, old_size * 8, err) : 0;
    img_unlock(&q->lock);
    return r;
}

/* Drops L2 tables, and what they refer to, that lie wholly behind size. */
static int cut_tables(struct qcow2 *q, uint64_t size, struct img_error *err)
{
    uint64_t keep = img_qcow2_l1_needed(q, size);
    int r = 0;

    img_lock(&q->lock);
    for (uint64_t i = keep; i < q->h.l1_size && r == 0; i++) {
        uint64_t table = q->l1[i] & QCOW2_OFFSET_MASK;

        if (!table)
            continue;
        r = img_qcow2_free_later(q, table, q->cluster_size, true, err);
        if (r == 0)
            img_qcow2_l1_set(q, i, 0);
    }
    img_unlock(&q->lock);
    return r;
}

/* Drops what lies behind size, which is the disk's already: the guest never
 * sees it change. */
static int cut(struct qcow2 *q, uint64_t size, struct img_error *err)
{
    uint64_t from = img_round_up(size, UINT64_C(1) << q->block_bits);
    uint64_t end = (uint64_t)q->h.l1_size << (q->l2_bits + q->cluster_bits);
    int r = 0;

    while (from < end && r == 0) {
        uint64_t done = 0;

        r = img_qcow2_unmap(q->layer, from, end - from, IMG_UNMAP_DROP,
                            &done, err);
        from += done;
        if (r == -ENOTSUP && from < img_round_up(from, q->cluster_size)) {
            from = img_round_up(from, q->cluster_size);
            r = 0;              /* the rest of a packed cluster stays */
        }
    }
    if (r == 0)
        r = cut_tables(q, size, err);
    return r == 0 ? img_qcow2_settle(q, err) : r;
}

static int set_size(struct qcow2 *q, uint64_t size, struct img_error *err)
{
    uint8_t field[8];
    int r;

    img_put_be64(field, size);
    r = img_qcow2_header_switch(q, field, sizeof field, 24, err);
    if (r < 0)
        return r;
    q->h.size = size;
    img_qcow2_refresh_layer(q);
    return 0;
}

/* The data file is the disk, byte by byte; the tables say nothing else. */
static bool is_raw(const struct qcow2 *q)
{
    return q->data && (q->h.autoclear & QCOW2_DATA_FILE_RAW);
}

/* Before anything changes. */
static int refuse_size(struct qcow2 *q, uint64_t size, struct img_error *err)
{
    if (q->h.version < 3 && q->n_snapshots)
        return img_fail(err, ENOTSUP, "%s: Can't resize a v2 image which has "
                        "snapshots", q->layer->path);
    if (size > INT64_MAX)
        return img_fail(err, EFBIG, "%s: %llu bytes", q->layer->path,
                        (unsigned long long)size);
    return 0;
}

/* What an interrupted shrinking, or a virtual machine's state, has left
 * behind the end would be seen. */
int img_qcow2_grow(struct img_layer *layer, uint64_t size,
                   struct img_error *err)
{
    struct qcow2 *q = img_qcow2_of(layer);
    uint64_t need = img_qcow2_l1_needed(q, size);
    int r = refuse_size(q, size, err);

    if (r == 0)
        r = img_qcow2_bitmaps_grow(q, size, err);
    if (r == 0)
        r = cut(q, q->h.size, err);
    if (r == 0 && need > q->h.l1_size)
        r = grow_l1(q, need, err);
    if (r == 0)
        layer->size = size;
    return img_qcow2_result(q, r);
}

/* QEMU has it in the L2 tables behind the disk's last one. */
int img_qcow2_vm_state(struct img_layer *layer, uint64_t len, uint64_t *start,
                       struct img_error *err)
{
    struct qcow2 *q = img_qcow2_of(layer);
    unsigned table_bits = q->l2_bits + q->cluster_bits;
    uint64_t first = img_qcow2_l1_needed(q, q->h.size), need;
    int r = 0;

    *start = first << table_bits;
    if (!len)
        return 0;
    if (is_raw(q))
        return img_fail(err, ENOTSUP, "%s: its data file is the disk, and "
                        "has no room for the state of a virtual machine",
                        layer->path);
    need = first + img_div_up(len, UINT64_C(1) << table_bits);
    if (need > q->h.l1_size)
        r = grow_l1(q, need, err);
    return img_qcow2_result(q, r);
}

static int resize(struct qcow2 *q, uint64_t size, enum img_prealloc prealloc,
                  struct img_error *err)
{
    struct img_layer *layer = q->layer;
    uint64_t old = q->h.size, from = old;
    int r = refuse_size(q, size, err);

    if (r < 0)
        return r;
    r = img_qcow2_bitmaps_grow(q, size, err);
    if (r == 0 && q->data && size > old)
        r = img_file_truncate(layer->files[q->data], size, err);
    if (r == 0)
        r = set_size(q, size, err);
    if (r == 0 && size < old)
        r = cut(q, size, err);
    if (r == 0 && size < old && is_raw(q))
        r = img_file_truncate(layer->files[q->data], size, err);
    if (r == 0 && size > old && is_raw(q) && prealloc == IMG_PREALLOC_OFF)
        prealloc = IMG_PREALLOC_METADATA;
    /* A place for the cluster that the disk ended in would hide what the
     * backing file has there. */
    if (layer->backing)
        from = img_round_up(old, q->cluster_size);
    if (r == 0 && size > from && prealloc != IMG_PREALLOC_OFF) {
        r = img_qcow2_preallocate(q, from, size - from, prealloc, err);
        if (r == 0)
            r = img_qcow2_settle(q, err);
    }
    return r;
}

int img_qcow2_resize(struct img_layer *layer, uint64_t size,
                     enum img_prealloc prealloc, struct img_error *err)
{
    struct qcow2 *q = img_qcow2_of(layer);
    int r = resize(q, size, prealloc, err);

    layer->size = q->h.size;
    img_qcow2_bitmaps_fit(q);
    return img_qcow2_result(q, r);
}
