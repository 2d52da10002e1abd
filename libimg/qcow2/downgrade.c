/* From version 3 down to version 2, which has no zero clusters: they become
 * holes, or clusters full of zeros over a backing file, in the tables of the
 * snapshots too.
 *
 * A snapshot's table is changed as if it were the active one, which it takes
 * the place of meanwhile: what it shares with others is copied first.  The
 * active tables may be the only users of something after that, so their
 * COPIED flags are made to fit at the end; the dirty bit says so till then.
 */
#include "qcow2/shared.h"
#include "base/error.h"
#include "file/file.h"

#include <stdlib.h>

static const char *only_in_v3(const struct qcow2 *q)
{
    if (q->h.refcount_order != 4)
        return "its refcounts do not have 16 bits";
    if (q->data)
        return "it has an external data file";
    if (q->h.compression)
        return "it is compressed with zstd";
    if (img_qcow2_has_subclusters(q))
        return "it has extended L2 entries";
    if (q->h.n_bitmaps)
        return "it has bitmaps";
    /* Version 2 has no field for either, only extra data that its readers
     * may not know. */
    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        const struct qcow2_snapshot *s = &q->snapshots[i];

        if (s->vm_state_size > UINT32_MAX)
            return "a snapshot's machine state has 4 GiB or more";
        if (s->has_size && s->disk_size != q->h.size)
            return "a snapshot's disk has another size";
    }
    return NULL;
}

/* Does nobody but this entry use the host cluster? */
static int is_alone(struct qcow2 *q, const struct qcow2_entry *e, bool *alone,
                    struct img_error *err)
{
    uint64_t count = 0;
    int r = 0;

    if (e->has_host)
        r = img_qcow2_refs_get(q, e->host >> q->cluster_bits, &count, err);
    *alone = e->copied && count == 1;
    return r;
}

/* A zero cluster over a backing file becomes a cluster full of zeros. */
static int write_zero_cluster(struct qcow2 *q, struct qcow2_cursor *c,
                              const struct qcow2_entry *e,
                              struct img_error *err)
{
    uint64_t host = e->host, got;
    bool zeroed, alone;
    int r = is_alone(q, e, &alone, err);

    if (r == 0 && !alone) {
        r = img_qcow2_frees_room(q, 1, err);
        if (r == 0)
            r = img_qcow2_take(q, 1, &host, &got, &zeroed, err);
    }
    if (r == 0)
        r = img_file_zero(q->file, host, q->cluster_size, 0, err);
    if (r < 0)
        return r;
    if (e->has_host && !alone)
        img_qcow2_entry_free(q, e, false, NULL);
    img_qcow2_entry_store(q, img_qcow2_cursor_entry(q, c, 0),
                          host | QCOW2_COPIED, 0);
    img_qcow2_cursor_dirty(q, c, 0, 1);
    return 0;
}

static int expand_at(struct qcow2 *q, uint64_t off, struct img_error *err)
{
    struct qcow2_cursor c;
    struct qcow2_entry e;
    int r;

    img_lock(&q->lock);
    r = img_qcow2_cursor_get_writable(q, off, &c, err);
    if (r == 0) {
        r = img_qcow2_entry_decode(q, img_qcow2_cursor_entry(q, &c, 0),
                                   c.cluster, &e, err);
        if (r == 0 && e.kind == QCOW2_ZEROS)
            r = write_zero_cluster(q, &c, &e, err);
        img_qcow2_cursor_put(q, &c);
    }
    img_unlock(&q->lock);
    return r == 0 ? img_qcow2_relieve(q, err) : r;
}

/* All that the L1 table reaches: a machine's state lies behind the disk. */
static int expand_zeros(struct qcow2 *q, const struct img_job *job,
                        struct img_error *err)
{
    uint64_t end_of_all = (uint64_t)q->h.l1_size <<
                          (q->l2_bits + q->cluster_bits);
    uint64_t at = 0;
    int r = 0;

    while (at < end_of_all && r == 0) {
        struct img_run run;
        uint64_t end, done;

        r = img_qcow2_map(q->layer, at, end_of_all - at, 0, &run, err);
        if (r < 0)
            return r;
        end = at + run.len;
        if (run.kind == IMG_RUN_ZERO && !q->layer->backing)
            for (uint64_t p = at; p < end && r == 0; p += done)
                r = img_qcow2_unmap(q->layer, p, end - p, IMG_UNMAP_DROP,
                                    &done, err);
        else if (run.kind == IMG_RUN_ZERO)
            for (uint64_t p = at; p < end && r == 0; p += q->cluster_size)
                r = expand_at(q, p, err);
        at = end;
        if (r == 0 && job && job->progress &&
            job->progress(job->opaque, at, end_of_all))
            r = img_fail(err, ECANCELED, "%s: amending was cancelled",
                         q->layer->path);
    }
    return r == 0 ? img_qcow2_settle(q, err) : r;
}

/* ---- snapshots --------------------------------------------------------- */

static int expand_snapshot(struct qcow2 *q, const struct qcow2_snapshot *s,
                           const struct img_job *job, struct img_error *err)
{
    uint64_t *active = q->l1, active_at = q->h.l1_offset, *l1;
    uint32_t active_size = q->h.l1_size;
    int r = img_qcow2_read_table(q, s->l1_offset, s->l1_size, &l1, err), end;

    if (r < 0)
        return r;
    /* Whoever applies the snapshot looks at the refcounts, not at these. */
    for (uint32_t i = 0; i < s->l1_size; i++)
        l1[i] &= ~QCOW2_COPIED;
    q->l1 = l1;
    q->h.l1_offset = s->l1_offset;
    q->h.l1_size = s->l1_size;
    r = expand_zeros(q, job, err);
    end = r < 0 ? img_qcow2_settle(q, NULL) : 0;
    /* The snapshot's table in the file names these still; the one that does
     * not is lost with l1.  They leak. */
    if (end < 0)
        q->frees.n = q->frees.clusters = 0;
    for (uint32_t i = 0; i < s->l1_size; i++)
        l1[i] &= ~QCOW2_COPIED;
    if (r == 0)
        r = img_qcow2_write_table(q, s->l1_offset, l1, s->l1_size, err);
    q->l1 = active;
    q->h.l1_offset = active_at;
    q->h.l1_size = active_size;
    free(l1);
    return r < 0 ? r : end;
}

static int expand_snapshots(struct qcow2 *q, const struct img_job *job,
                            struct img_error *err)
{
    int r, end;

    if (!q->n_snapshots)
        return 0;
    r = img_qcow2_header_mark(q, true, err);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < q->n_snapshots && r == 0; i++)
        r = expand_snapshot(q, &q->snapshots[i], job, err);
    end = img_qcow2_share_flags(q, NULL, 0, r < 0 ? NULL : err);
    if (end == 0)
        end = img_qcow2_settle(q, r < 0 ? NULL : err);
    if (end == 0)
        end = img_qcow2_header_mark(q, false, r < 0 ? NULL : err);
    return r < 0 ? r : end;
}

int img_qcow2_lower_version(struct qcow2 *q, const struct img_job *job,
                            struct img_error *err)
{
    const char *why = only_in_v3(q);
    struct qcow2_header old;
    int r;

    if (why)
        return img_fail(err, ENOTSUP, "%s: cannot become compat 0.10: %s",
                        q->layer->path, why);
    r = expand_snapshots(q, job, err);
    if (r == 0)
        r = expand_zeros(q, job, err);
    if (r < 0)
        return r;
    old = q->h;
    q->h.version = 2;
    q->h.incompatible = q->h.compatible = q->h.autoclear = 0;
    q->h.header_length = QCOW2_V2_HEADER;
    r = img_qcow2_header_write(q, err);
    if (r < 0)
        q->h = old;
    return r;
}
