/* Write-back, in the order that keeps every crash leak-only:
 *
 *   refcount blocks | refcount table | L2 tables | L1 table | freed clusters
 *
 * where each bar is a sync of the files (guest data included), left out where
 * there is nothing on one side of it.  What is written is a copy, taken at one
 * moment under q->lock; writers go on meanwhile, and what they change is left
 * for the next write-back.  References are dropped only after the tables that
 * held them are durable, so no cluster is reused while an old table on the
 * disk still refers to it.
 */
#include "qcow2/qcow2.h"
#include "base/checked.h"
#include "base/error.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

enum {
    MANY_FREES = 4096,          /* clusters that wait for a write-back */
    ROW = 1024                  /* refcounts looked at at once */
};

struct part {                   /* of an in-memory table */
    uint64_t *entries;
    uint64_t from, n;
};

struct writing {
    struct img_stage *refs, *tables;
    struct part reftable, l1;
    struct qcow2_ranges frees;
    uint64_t reftable_off;
};

static int copy_part(const uint64_t *table, uint64_t *from, uint64_t *to,
                     struct part *p, struct img_error *err)
{
    p->from = *from;
    p->n = *to - *from;
    p->entries = NULL;
    if (!p->n)
        return 0;
    p->entries = malloc(p->n * sizeof *p->entries);
    if (!p->entries)
        return img_fail_nomem(err);
    memcpy(p->entries, table + p->from, p->n * sizeof *p->entries);
    *from = *to = 0;
    return 0;
}

static void put_part_back(const struct part *p, uint64_t *from, uint64_t *to)
{
    if (!p->entries)
        return;
    *from = *from == *to ? p->from : IMG_MIN(*from, p->from);
    *to = IMG_MAX(*to, p->from + p->n);
}

/* With q->lock held. */
static int begin(struct qcow2 *q, struct writing *w, struct img_error *err)
{
    int r = img_tcache_stage(q->tables, q->file, QCOW2_KIND_REFS, &w->refs,
                             err);

    if (r == 0)
        r = img_tcache_stage(q->tables, q->file, QCOW2_KIND_L2, &w->tables,
                             err);
    if (r == 0)
        r = copy_part(q->reftable, &q->reftable_dirty_from,
                      &q->reftable_dirty_to, &w->reftable, err);
    if (r == 0)
        r = copy_part(q->l1, &q->l1_dirty_from, &q->l1_dirty_to, &w->l1,
                      err);
    if (r < 0)
        return r;
    w->frees = q->frees;
    q->frees = (struct qcow2_ranges){ 0 };
    w->reftable_off = q->h.reftable_offset;
    return 0;
}

static int sync_files(struct qcow2 *q, struct img_error *err)
{
    int r = q->data ? img_file_sync(q->layer->files[q->data], err) : 0;

    return r == 0 ? img_file_sync(q->file, err) : r;
}

/* The file covers every cluster in use, so that nothing that the tables name
 * lies beyond its end.  Under the lock, for then no write in flight reaches
 * beyond q->end, and none is cut off.  QEMU leaves files that end within a
 * cluster; as long as nothing is to be written they are let alone. */
static int extend(struct qcow2 *q, bool changed, struct img_error *err)
{
    uint64_t size;
    int r;

    if (!q->zeros_beyond_end)
        return 0;
    img_lock(&q->lock);
    r = img_file_size(q->file, &size, err);
    if (!changed)
        size = img_round_up(size, q->cluster_size);
    if (r == 0 && size < q->end)
        r = img_file_truncate(q->file, q->end, err);
    img_unlock(&q->lock);
    return r;
}

static int write_phases(struct qcow2 *q, struct writing *w, bool durable,
                        struct img_error *err)
{
    bool tables = !img_stage_is_empty(w->tables) || w->l1.n;
    bool changed = tables || w->reftable.n || !img_stage_is_empty(w->refs);
    int r = extend(q, changed, err);

    if (r == 0)
        r = img_stage_write(w->refs, err);
    if (r == 0 && w->reftable.n) {
        r = img_file_sync(q->file, err);
        if (r == 0)
            r = img_qcow2_write_table(q, w->reftable_off +
                                      w->reftable.from * 8,
                                      w->reftable.entries, w->reftable.n,
                                      err);
    }
    if (r == 0 && tables) {
        r = sync_files(q, err);
        if (r == 0)
            r = img_stage_write(w->tables, err);
        if (r == 0 && w->l1.n && !img_stage_is_empty(w->tables))
            r = img_file_sync(q->file, err);
        if (r == 0 && w->l1.n)
            r = img_qcow2_write_table(q, q->h.l1_offset + w->l1.from * 8,
                                      w->l1.entries, w->l1.n, err);
    }
    if (r == 0 && (durable || w->frees.n))
        r = sync_files(q, err);
    return r;
}

/* With q->lock held. */
static void end(struct qcow2 *q, struct writing *w, bool written)
{
    if (!written) {
        put_part_back(&w->reftable, &q->reftable_dirty_from,
                      &q->reftable_dirty_to);
        put_part_back(&w->l1, &q->l1_dirty_from, &q->l1_dirty_to);
    }
    if (w->refs)
        img_stage_done(w->refs, written);
    if (w->tables)
        img_stage_done(w->tables, written);
    free(w->reftable.entries);
    free(w->l1.entries);
}

/* Nothing on the disk refers to these any more. */
static int drop_frees(struct qcow2 *q, struct qcow2_ranges *frees,
                      struct img_error *err)
{
    int first = 0;

    for (size_t i = 0; i < frees->n; i++) {
        const struct qcow2_range *f = &frees->list[i];
        int r;

        img_lock(&q->lock);
        r = img_qcow2_give_back(q, f->off, f->len, first ? NULL : err);
        img_unlock(&q->lock);
        if (r < 0 && !first)
            first = r;
    }
    free(frees->list);
    return first;
}

/* How many clusters from `first` on, up to max, are alike in whether one
 * reference is left. */
static int alike(struct qcow2 *q, uint64_t first, uint64_t max,
                 bool *last_one, uint64_t *n, struct img_error *err)
{
    uint64_t counts[ROW], row = 1;
    int r = 0;

    for (*n = 0; *n < max; *n += row) {
        img_lock(&q->lock);
        r = img_qcow2_refs_get_row(q, first + *n,
                                   IMG_MIN(max - *n, (uint64_t)ROW), counts,
                                   &row, err);
        img_unlock(&q->lock);
        if (r < 0)
            return r;
        if (!*n)
            *last_one = counts[0] == 1;
        for (uint64_t i = 0; i < row; i++)
            if ((counts[i] == 1) != *last_one) {
                *n += i;
                return 0;
            }
    }
    return 0;
}

/* Space goes back to the file system before the clusters can be reused:
 * only those whose last reference this is. */
static int discard_frees(struct qcow2 *q, const struct qcow2_ranges *frees,
                         struct img_error *err)
{
    int r = 0;

    for (size_t i = 0; i < frees->n && r == 0; i++) {
        const struct qcow2_range *f = &frees->list[i];
        uint64_t at = f->off >> q->cluster_bits, n;
        uint64_t end = at + (f->len >> q->cluster_bits);

        for (; f->discard && r == 0 && at < end; at += n) {
            bool last_one = false;

            r = alike(q, at, end - at, &last_one, &n, err);
            if (r == 0 && last_one)
                r = img_file_discard(q->file, at << q->cluster_bits,
                                     n << q->cluster_bits, err);
        }
    }
    return r;
}

static int write_back(struct qcow2 *q, bool durable, struct img_error *err)
{
    struct writing w = { 0 };
    int r;

    img_lock(&q->lock);
    r = begin(q, &w, err);
    if (r < 0)
        end(q, &w, false);
    img_unlock(&q->lock);
    if (r < 0)
        return r;
    r = write_phases(q, &w, durable, err);
    img_lock(&q->lock);
    end(q, &w, r == 0);
    if (r < 0) {
        /* The references stay counted: a leak at worst, never a reuse. */
        struct qcow2_ranges now = q->frees;

        q->frees = w.frees;
        for (size_t i = 0; i < now.n; i++)
            img_qcow2_free_later(q, now.list[i].off, now.list[i].len,
                                 now.list[i].discard, NULL);
        free(now.list);
    }
    img_unlock(&q->lock);
    if (r < 0)
        return r;
    r = discard_frees(q, &w.frees, err);
    if (r < 0) {
        drop_frees(q, &w.frees, NULL);
        return r;
    }
    return drop_frees(q, &w.frees, err);
}

int img_qcow2_write_back(struct qcow2 *q, bool durable,
                         struct img_error *err)
{
    int r;

    if (__atomic_load_n(&q->lost, __ATOMIC_RELAXED))
        return img_fail(err, EIO, "%s: writing the header failed, and which "
                        "tables it names is not known; nothing more is "
                        "written", q->layer->path);
    img_lock(&q->flush_lock);
    r = write_back(q, durable, err);
    img_unlock(&q->flush_lock);
    return r;
}

int img_qcow2_settle(struct qcow2 *q, struct img_error *err)
{
    bool more = true;
    int r = 0;

    while (more && r == 0) {
        img_lock(&q->lock);
        more = q->frees.n > 0;
        img_unlock(&q->lock);
        r = img_qcow2_write_back(q, true, err);
    }
    return r;
}

int img_qcow2_relieve(struct qcow2 *q, struct img_error *err)
{
    bool needed;

    img_lock(&q->lock);
    needed = q->frees.clusters > MANY_FREES ||
             img_tcache_is_full(q->tables);
    img_unlock(&q->lock);
    return needed ? img_qcow2_write_back(q, false, err) : 0;
}

int img_qcow2_sync(struct img_layer *layer, struct img_error *err)
{
    struct qcow2 *q = img_qcow2_of(layer);

    return img_qcow2_result(q, img_qcow2_write_back(q, true, err));
}
