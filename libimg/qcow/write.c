/* qcow version 1: where the bytes of a write go, and bringing tables to the
 * disk.
 *
 * Clusters and tables are taken from the end of the file, plain clusters from
 * those given up in this session first.  Order of a sync: the clusters; then
 * the L2 tables that name them; then the L1 entries of new L2 tables.  So what
 * a table on the disk names is whole, and a crash only loses room.
 *
 * Locks: q->lock; map and others look at tables with it held for reading.
 */
#include "qcow/qcow.h"
#include "base/checked.h"
#include "base/error.h"
#include "cache/tcache.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

enum {
    GROW = 1 << 20,             /* the file grows by so much at least */
    PLACE_MAX = 4 << 20         /* fresh bytes in one answer */
};

int img_qcow_list_push(struct img_qcow_list *list, uint64_t value)
{
    if (list->n == list->room) {
        size_t room = list->room ? list->room * 2 : 64;
        uint64_t *at = realloc(list->at, room * sizeof *at);

        if (!at)
            return -ENOMEM;
        list->at = at;
        list->room = room;
    }
    list->at[list->n++] = value;
    return 0;
}

/* Room of len bytes at `at`, the end of what is in use. */
static int take_end(struct img_layer *layer, uint64_t at, uint64_t len,
                    struct img_error *err)
{
    struct img_qcow *q = layer->state;
    uint64_t end = at + len, want;
    int r;

    if (end >> (63 - q->cluster_bits))
        return img_fail(err, EFBIG, "%s: the file is full", layer->path);
    if (end > q->file_len) {
        want = IMG_MAX(end, q->file_len + GROW);
        r = img_file_truncate(layer->files[0], want, err);
        if (r < 0)
            return r;
        __atomic_store_n(&q->file_len, want, __ATOMIC_RELEASE);
        q->grown = true;
    }
    q->end = end;
    return 0;
}

int img_qcow_append(struct img_layer *layer, uint64_t len, uint64_t *at,
                    struct img_error *err)
{
    struct img_qcow *q = layer->state;

    *at = img_round_up(q->end, q->cluster_size);
    return take_end(layer, *at, len, err);
}

/* Makes the L2 table that serves off, if there is none. */
static int make_table(struct img_layer *layer, uint64_t off,
                      struct img_slice **table, struct img_error *err)
{
    struct img_qcow *q = layer->state;
    uint64_t i = off >> q->reach_bits, at;
    int r = 0;

    *table = NULL;
    img_write_lock(&q->lock);
    if (!q->l1[i]) {
        r = img_qcow_append(layer, q->l2_bytes, &at, err);
        if (r == 0)
            r = img_tcache_new_slice(layer->tables, layer->files[0], at,
                                     q->l2_bytes, 0, table, err);
        if (r == 0) {
            img_tcache_dirty(layer->tables, *table, 0, q->l2_bytes);
            __atomic_store_n(&q->l1[i], at, __ATOMIC_RELEASE);
            if (q->l1_from >= q->l1_upto) {
                q->l1_from = i;
                q->l1_upto = i + 1;
            }
            q->l1_from = IMG_MIN(q->l1_from, i);
            q->l1_upto = IMG_MAX(q->l1_upto, i + 1);
        }
    }
    img_rw_unlock(&q->lock);
    if (r == 0 && !*table)
        r = img_qcow_table(layer, off, false, table, err);
    return r;
}

/* Clusters from off on that have no plain place, for at most len bytes. */
static uint64_t count_fresh(const struct img_qcow *q, struct img_slice *table,
                            uint64_t off, uint64_t len)
{
    uint32_t i = img_qcow_l2_index(q, off), end = UINT32_C(1) << q->l2_bits;
    uint64_t skip = off & (q->cluster_size - 1);
    uint64_t max = img_div_up(IMG_MIN(skip + len, (uint64_t)PLACE_MAX),
                              q->cluster_size), n = 1;

    while (n < max && i + n < end &&
           img_qcow_decode(q, img_get_be64(table->data + (i + n) * 8)).kind !=
           QCOW_PLAIN)
        n++;
    return n;
}

static int reserve_plain(struct img_layer *layer, struct img_slice *table,
                         const struct img_want *want, struct img_place *place,
                         struct img_error *err)
{
    struct img_qcow *q = layer->state;
    uint64_t begin = img_round_down(want->off, q->cluster_size), n, at;
    int r = 0;

    img_write_lock(&q->lock);
    n = count_fresh(q, table, want->off, want->len);
    if (q->free.n) {
        at = q->free.at[--q->free.n];
        n = 1;
    } else {
        r = img_qcow_append(layer, n << q->cluster_bits, &at, err);
        place->zeroed = r == 0 && at >= q->zero_from;
    }
    img_rw_unlock(&q->lock);
    if (r < 0)
        return r;
    place->fresh = true;
    place->off = want->off;
    place->fill_off = begin;
    place->fill_len = IMG_MIN(n << q->cluster_bits, layer->size - begin);
    place->len = IMG_MIN(want->len, begin + place->fill_len - want->off);
    place->host = at + (want->off - begin);
    return 0;
}

static int reserve_packed(struct img_layer *layer,
                          const struct img_want *want,
                          struct img_place *place, struct img_error *err)
{
    struct img_qcow *q = layer->state;
    int r;

    if (want->packed >= q->cluster_size)
        return img_fail(err, EINVAL, "%s: a compressed cluster of %u bytes "
                        "is no smaller than a plain one", layer->path,
                        want->packed);
    img_write_lock(&q->lock);
    place->host = q->end;
    r = take_end(layer, place->host, want->packed, err);
    img_rw_unlock(&q->lock);
    place->fresh = true;
    place->packed = want->packed;
    place->off = place->fill_off = want->off;
    place->fill_len = IMG_MIN(q->cluster_size, layer->size - want->off);
    place->len = IMG_MIN(want->len, place->fill_len);
    return r;
}

static int in_place(struct img_layer *layer, const struct img_want *want,
                    struct img_slice *table, struct img_place *place,
                    struct img_error *err)
{
    struct img_qcow *q = layer->state;
    struct img_qcow_entry e;
    uint64_t run;
    int r = img_qcow_run(layer, table, want->off, want->len, &e, &run, err);

    if (r == 0 && e.kind == QCOW_PLAIN) {
        place->len = run;
        place->host = e.host + (want->off & (q->cluster_size - 1));
    }
    return r;
}

int img_qcow_reserve(struct img_layer *layer, const struct img_want *want,
                     struct img_place *place, struct img_error *err)
{
    struct img_slice *table;
    int r;

    *place = (struct img_place){ .off = want->off };
    if (!want->in_place && img_tcache_is_full(layer->tables)) {
        r = img_qcow_sync(layer, err);
        if (r < 0)
            return r;
    }
    if (want->in_place)
        r = img_qcow_table(layer, want->off, false, &table, err);
    else
        r = make_table(layer, want->off, &table, err);
    if (r < 0 || !table)
        return r;
    if (want->packed)
        r = reserve_packed(layer, want, place, err);
    else
        r = in_place(layer, want, table, place, err);
    if (r == 0 && !place->len && !want->in_place)
        r = reserve_plain(layer, table, want, place, err);
    img_tcache_put(layer->tables, table);
    return r;
}

int img_qcow_publish(struct img_layer *layer, const struct img_place *place,
                     struct img_error *err)
{
    struct img_qcow *q = layer->state;
    uint64_t n = img_div_up(place->fill_len, q->cluster_size);
    uint64_t host = place->host - (place->off - place->fill_off);
    struct img_slice *table;
    uint32_t first;
    int r;

    if (!place->fresh)
        return 0;
    r = img_qcow_table(layer, place->fill_off, false, &table, err);
    if (r == 0 && !table)
        r = img_fail(err, EIO, "%s: no L2 table", layer->path);
    if (r < 0)
        return r;
    first = img_qcow_l2_index(q, place->fill_off);
    img_write_lock(&q->lock);
    for (uint32_t i = 0; i < n; i++) {
        uint8_t *at = table->data + (first + i) * 8;
        struct img_qcow_entry old = img_qcow_decode(q, img_get_be64(at));
        uint64_t raw = host + ((uint64_t)i << q->cluster_bits);

        if (place->packed)
            raw = QCOW_PACKED | host |
                  (uint64_t)place->packed << (63 - q->cluster_bits);
        /* Without memory the cluster is lost, as after a crash. */
        if (old.kind == QCOW_PLAIN)
            img_qcow_list_push(&q->freed, old.host);
        img_qcow_set(layer, table, first + i, raw);
    }
    img_rw_unlock(&q->lock);
    img_tcache_put(layer->tables, table);
    return 0;
}

void img_qcow_abandon(struct img_layer *layer, const struct img_place *place)
{
    struct img_qcow *q = layer->state;
    uint64_t n = img_div_up(place->fill_len, q->cluster_size);
    uint64_t host = place->host - (place->off - place->fill_off);

    /* The room of a packed cluster is lost, as after a crash. */
    if (!place->fresh || place->packed)
        return;
    img_write_lock(&q->lock);
    while (n-- && img_qcow_list_push(&q->free,
                                     host + (n << q->cluster_bits)) == 0)
        ;
    img_rw_unlock(&q->lock);
}

/* ---- zeros and discards ------------------------------------------------- */

static int drop(struct img_layer *layer, struct img_slice *table,
                uint64_t off, uint64_t len, struct img_error *err)
{
    struct img_qcow *q = layer->state;
    uint32_t i = img_qcow_l2_index(q, off);
    uint32_t end = i + (uint32_t)img_div_up(len, q->cluster_size);
    int r = 0;

    img_write_lock(&q->lock);
    for (; i < end && r == 0; i++) {
        uint64_t raw = img_get_be64(table->data + i * 8);
        struct img_qcow_entry old = img_qcow_decode(q, raw);

        if (old.kind == QCOW_PLAIN)
            r = img_qcow_list_push(&q->freed, old.host);
        if (r == 0 && raw)
            img_qcow_set(layer, table, i, 0);
    }
    img_rw_unlock(&q->lock);
    return r < 0 ? img_fail_nomem(err) : 0;
}

/* Plain clusters keep their place and get a hole; the format has no way to
 * say that a cluster is zeros. */
static int punch(struct img_layer *layer, uint64_t host, uint64_t len,
                 enum img_unmap kind, struct img_error *err)
{
    unsigned flags = IMG_FILE_FAST_ONLY;
    int r;

    if (kind != IMG_UNMAP_ZERO_KEEP)
        flags |= IMG_FILE_MAY_UNMAP;
    r = img_file_zero(layer->files[0], host, len, flags, err);
    return r == -ENOTSUP && kind == IMG_UNMAP_DISCARD ? 0 : r;
}

/* One run from off on; *n says how long it is. */
static int unmap_run(struct img_layer *layer, uint64_t off, uint64_t len,
                     enum img_unmap kind, uint64_t *n, struct img_error *err)
{
    struct img_qcow *q = layer->state;
    struct img_qcow_entry e = { QCOW_ABSENT, 0, 0 };
    struct img_slice *table;
    int r = img_qcow_table(layer, off, false, &table, err);

    if (r < 0)
        return r;
    *n = IMG_MIN(len, img_round_down(off, UINT64_C(1) << q->reach_bits) +
                      (UINT64_C(1) << q->reach_bits) - off);
    if (table)
        r = img_qcow_run(layer, table, off, *n, &e, n, err);
    if (r == 0 && kind == IMG_UNMAP_DROP && e.kind != QCOW_ABSENT)
        r = drop(layer, table, off, *n, err);
    else if (r == 0 && kind != IMG_UNMAP_DROP && e.kind == QCOW_PLAIN)
        r = punch(layer, e.host, *n, kind, err);
    else if (r == 0 && kind != IMG_UNMAP_DROP && kind != IMG_UNMAP_DISCARD)
        r = img_fail(err, ENOTSUP, "%s: qcow has no zeros but written ones",
                     layer->path);
    if (table)
        img_tcache_put(layer->tables, table);
    return r;
}

int img_qcow_unmap(struct img_layer *layer, uint64_t off, uint64_t len,
                   enum img_unmap kind, uint64_t *done, struct img_error *err)
{
    uint64_t at = off, end = off + len, n;
    int r = 0;

    if (img_tcache_is_full(layer->tables))
        r = img_qcow_sync(layer, err);
    while (at < end && r == 0) {
        r = unmap_run(layer, at, end - at, kind, &n, err);
        if (r == 0)
            at += n;
    }
    *done = at - off;
    return r < 0 && !*done ? r : 0;
}

/* ---- sync --------------------------------------------------------------- */

/* Everything dirty, copied out. */
struct batch {
    struct img_stage *stage;
    uint8_t *l1;                /* NULL = no entry */
    uint64_t from, upto;
    size_t freed;               /* of q->freed */
};

static int collect(struct img_layer *layer, struct batch *b,
                   struct img_error *err)
{
    struct img_qcow *q = layer->state;
    int r = 0;

    *b = (struct batch){ .freed = q->freed.n };
    if (q->l1_from < q->l1_upto) {
        b->from = q->l1_from;
        b->upto = q->l1_upto;
        b->l1 = malloc((size_t)(b->upto - b->from) * 8);
        if (!b->l1)
            return img_fail_nomem(err);
        for (uint64_t i = b->from; i < b->upto; i++)
            img_put_be64(b->l1 + (i - b->from) * 8, q->l1[i]);
    }
    r = img_tcache_stage(layer->tables, layer->files[0], 0, &b->stage, err);
    if (r < 0)
        free(b->l1);
    else
        q->l1_from = q->l1_upto = 0;
    return r;
}

static int write_batch(struct img_layer *layer, struct batch *b,
                       struct img_error *err)
{
    struct img_qcow *q = layer->state;
    struct img_file *file = layer->files[0];
    bool tables = !img_stage_is_empty(b->stage);
    int r = img_file_sync(file, err);

    if (r == 0 && tables)
        r = img_stage_write(b->stage, err);
    if (r == 0 && tables)
        r = img_file_sync(file, err);
    if (r == 0 && b->l1) {
        r = img_file_pwrite(file, b->l1, (size_t)(b->upto - b->from) * 8,
                            q->l1_off + b->from * 8, err);
        if (r == 0)
            r = img_file_sync(file, err);
    }
    return r;
}

static void settle(struct img_qcow *q, struct batch *b, bool written)
{
    size_t i = 0;

    img_write_lock(&q->lock);
    img_stage_done(b->stage, written);
    if (!written && b->l1) {
        if (q->l1_from >= q->l1_upto) {
            q->l1_from = b->from;
            q->l1_upto = b->upto;
        }
        q->l1_from = IMG_MIN(q->l1_from, b->from);
        q->l1_upto = IMG_MAX(q->l1_upto, b->upto);
    }
    while (written && i < b->freed &&
           img_qcow_list_push(&q->free, q->freed.at[i]) == 0)
        i++;
    q->freed.n -= i;
    if (i)
        memmove(q->freed.at, q->freed.at + i, q->freed.n * 8);
    img_rw_unlock(&q->lock);
    free(b->l1);
}

/* Their space goes back to the file system until they are used again. */
static void discard_freed(struct img_layer *layer, size_t n)
{
    struct img_qcow *q = layer->state;

    img_read_lock(&q->lock);
    n = IMG_MIN(n, q->free.n);
    for (size_t i = q->free.n - n; i < q->free.n; i++)
        img_file_discard(layer->files[0], q->free.at[i], q->cluster_size,
                         NULL);
    img_rw_unlock(&q->lock);
}

int img_qcow_sync(struct img_layer *layer, struct img_error *err)
{
    struct img_qcow *q = layer->state;
    struct batch b;
    int r;

    if (!layer->writable)
        return 0;
    img_lock(&q->sync_lock);
    img_write_lock(&q->lock);
    r = collect(layer, &b, err);
    img_rw_unlock(&q->lock);
    if (r == 0) {
        if (layer->broken && (b.l1 || !img_stage_is_empty(b.stage)))
            r = img_fail(err, EIO, "%s: was found to be corrupt and is not "
                         "written any more; what was written since the last "
                         "flush is lost", layer->path);
        else
            r = write_batch(layer, &b, err);
        settle(q, &b, r == 0);
        if (r == 0 && b.freed)
            discard_freed(layer, b.freed);
    }
    img_unlock(&q->sync_lock);
    return r;
}
