/* L1 and L2 tables.  Everything here is called with q->lock held.
 *
 * Invariant: a table that the L1 marks COPIED is referred to by the active
 * L1 alone, so it may be changed in place; any other is copied first. */
#include "qcow2/qcow2.h"
#include "base/checked.h"
#include "base/error.h"

#include <string.h>
#include <sys/types.h>

static int check_table_offset(struct qcow2 *q, uint64_t index, uint64_t off,
                              struct img_error *err)
{
    if (!img_is_aligned(off, q->cluster_size))
        return img_fail(err, IMG_ECORRUPT, "%s: L1 entry %llu: L2 table at "
                        "0x%llx is not cluster aligned", q->layer->path,
                        (unsigned long long)index, (unsigned long long)off);
    if (off >= q->end)
        return img_fail(err, IMG_ECORRUPT, "%s: L1 entry %llu: L2 table at "
                        "0x%llx lies beyond the end of the file",
                        q->layer->path, (unsigned long long)index,
                        (unsigned long long)off);
    return 0;
}

/* No table: how many clusters until there may be one. */
static void skip_empty(struct qcow2 *q, uint64_t index, uint64_t want,
                       struct qcow2_cursor *c)
{
    uint64_t per_table = UINT64_C(1) << q->l2_bits;

    c->slice = NULL;
    c->skip = per_table - (c->cluster & (per_table - 1));
    while (++index < q->h.l1_size && c->skip < want &&
           !(q->l1[index] & QCOW2_OFFSET_MASK))
        c->skip += per_table;
    if (index >= q->h.l1_size && c->skip < want)
        c->skip = want;
}

int img_qcow2_cursor_get(struct qcow2 *q, uint64_t off, uint64_t want,
                         bool cached, struct qcow2_cursor *c,
                         struct img_error *err)
{
    uint32_t slice_len = 1u << q->slice_bits;
    uint64_t index, entry, table, in_table, slice_off;
    int r;

    c->cluster = off >> q->cluster_bits;
    index = c->cluster >> q->l2_bits;
    in_table = (c->cluster & ((UINT64_C(1) << q->l2_bits) - 1)) *
               q->entry_size;
    for (;;) {
        entry = index < q->h.l1_size ? q->l1[index] : 0;
        table = entry & QCOW2_OFFSET_MASK;
        if (!table) {
            skip_empty(q, index, want, c);
            return 0;
        }
        r = check_table_offset(q, index, table, err);
        if (r < 0)
            return r;
        slice_off = table + img_round_down(in_table, slice_len);
        c->slice = img_tcache_peek(q->tables, q->file, slice_off);
        if (c->slice)
            break;
        if (cached)
            return -EAGAIN;
        img_unlock(&q->lock);
        r = img_tcache_get(q->tables, q->file, slice_off, slice_len,
                           QCOW2_KIND_L2, &c->slice, err);
        img_lock(&q->lock);
        if (r < 0)
            return r;
        if (q->l1[index] == entry)
            break;
        img_tcache_put(q->tables, c->slice);    /* the table moved */
    }
    c->at = (uint32_t)(in_table & (slice_len - 1));
    c->left = (slice_len - c->at) / q->entry_size;
    return 0;
}

void img_qcow2_cursor_put(struct qcow2 *q, struct qcow2_cursor *c)
{
    if (c->slice)
        img_tcache_put(q->tables, c->slice);
    c->slice = NULL;
}

void img_qcow2_cursor_dirty(struct qcow2 *q, const struct qcow2_cursor *c,
                            uint32_t from, uint32_t n)
{
    img_tcache_dirty(q->tables, c->slice, c->at + from * q->entry_size,
                     n * q->entry_size);
}

void img_qcow2_l1_set(struct qcow2 *q, uint64_t index, uint64_t entry)
{
    q->l1[index] = entry;
    if (q->l1_dirty_from == q->l1_dirty_to) {
        q->l1_dirty_from = index;
        q->l1_dirty_to = index + 1;
    }
    q->l1_dirty_from = IMG_MIN(q->l1_dirty_from, index);
    q->l1_dirty_to = IMG_MAX(q->l1_dirty_to, index + 1);
}

static int copy_slice(struct qcow2 *q, uint64_t from, uint64_t to,
                      struct img_error *err)
{
    uint32_t len = 1u << q->slice_bits;
    struct img_slice *old, *new;
    int r;

    r = img_tcache_get(q->tables, q->file, from, len, QCOW2_KIND_L2, &old,
                       err);
    if (r < 0)
        return r;
    r = img_tcache_new_slice(q->tables, q->file, to, len, QCOW2_KIND_L2,
                             &new, err);
    if (r == 0) {
        memcpy(new->data, old->data, len);
        img_tcache_dirty(q->tables, new, 0, len);
        img_tcache_put(q->tables, new);
    }
    img_tcache_put(q->tables, old);
    return r;
}

/* Gives the L1 entry a table of its own: a copy of the old one, or zeros. */
static int own_table(struct qcow2 *q, uint64_t index, struct img_error *err)
{
    uint64_t old = q->l1[index] & QCOW2_OFFSET_MASK, new;
    int r;

    if (old) {
        r = check_table_offset(q, index, old, err);
        if (r < 0)
            return r;
    }
    r = img_qcow2_take_table(q, &new, err);
    if (r < 0)
        return r;
    for (uint64_t at = 0; old && r == 0 && at < q->cluster_size;
         at += UINT64_C(1) << q->slice_bits)
        r = copy_slice(q, old + at, new + at, err);
    if (r == 0 && old)
        r = img_qcow2_free_later(q, old, q->cluster_size, false, err);
    if (r < 0) {
        img_tcache_forget(q->tables, q->file, new, q->cluster_size);
        img_qcow2_give_back(q, new, q->cluster_size, NULL);
        return r;
    }
    img_qcow2_l1_set(q, index, new | QCOW2_COPIED);
    return 0;
}

int img_qcow2_cursor_get_writable(struct qcow2 *q, uint64_t off,
                                  struct qcow2_cursor *c,
                                  struct img_error *err)
{
    uint64_t index = off >> (q->cluster_bits + q->l2_bits);
    int r = 0;

    if (index >= q->h.l1_size)
        return img_fail(err, EINVAL, "%s: guest offset 0x%llx is beyond the "
                        "L1 table", q->layer->path, (unsigned long long)off);
    if (!(q->l1[index] & QCOW2_COPIED) ||
        !(q->l1[index] & QCOW2_OFFSET_MASK))
        r = own_table(q, index, err);
    return r < 0 ? r : img_qcow2_cursor_get(q, off, 1, false, c, err);
}
