/* Creating, applying and deleting snapshots.
 *
 * A snapshot shares every cluster with the active tables until one side is
 * written to; its price is one reference more for each.  References are added
 * before a table that needs them is named by the header, and dropped after
 * the last one that needed them is gone, so a crash leaks at most.  In
 * between the COPIED flags do not fit the refcounts: version 3 images carry
 * the dirty bit for that time, and whoever opens one repairs it.
 */
#include "qcow2/shared.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "file/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- the table --------------------------------------------------------- */

static uint32_t extra_bytes(const struct qcow2_snapshot *s)
{
    return s->has_icount ? 24 + s->more_len : s->has_size ? 16 : 8;
}

static size_t entry_bytes(const struct qcow2_snapshot *s)
{
    return (size_t)img_round_up(40 + extra_bytes(s) + strlen(s->id) +
                                strlen(s->name), 8);
}

static void build_entry(const struct qcow2_snapshot *s, uint8_t *at)
{
    size_t id_len = strlen(s->id), name_len = strlen(s->name);
    uint32_t extra = extra_bytes(s);

    img_put_be64(at, s->l1_offset);
    img_put_be32(at + 8, s->l1_size);
    img_put_be16(at + 12, (uint16_t)id_len);
    img_put_be16(at + 14, (uint16_t)name_len);
    img_put_be32(at + 16, s->date_sec);
    img_put_be32(at + 20, s->date_nsec);
    img_put_be64(at + 24, s->vm_clock_nsec);
    img_put_be32(at + 32, (uint32_t)IMG_MIN(s->vm_state_size,
                                            (uint64_t)UINT32_MAX));
    img_put_be32(at + 36, extra);
    img_put_be64(at + 40, s->vm_state_size);
    if (extra >= 16)
        img_put_be64(at + 48, s->disk_size);
    if (extra >= 24)
        img_put_be64(at + 56, s->icount);
    if (extra > 24)
        memcpy(at + 64, s->more, s->more_len);
    memcpy(at + 40 + extra, s->id, id_len);
    memcpy(at + 40 + extra + id_len, s->name, name_len);
}

static int take_row(struct qcow2 *q, uint64_t bytes, uint64_t *off,
                    struct img_error *err)
{
    int r;

    img_lock(&q->lock);
    r = img_qcow2_take_row(q, img_div_up(bytes, q->cluster_size), off, err);
    img_unlock(&q->lock);
    return r;
}

/* Writes the list in q->snapshots to a new place, switches the header to it
 * and gives the old place back. */
static int write_table(struct qcow2 *q, struct img_error *err)
{
    uint64_t bytes = 0, off = 0, old = q->h.snapshots_offset;
    uint64_t old_bytes = q->snapshots_bytes;
    img_autofree uint8_t *buf = NULL;
    uint8_t field[12], *at;
    int r = 0;

    for (uint32_t i = 0; i < q->n_snapshots; i++)
        bytes += entry_bytes(&q->snapshots[i]);
    if (bytes > QCOW2_MAX_SNAPSHOT_BYTES)
        return img_fail(err, EFBIG, "%s: the snapshot table would be too "
                        "large", q->layer->path);
    at = buf = calloc(1, bytes + 1);
    if (!buf)
        return img_fail_nomem(err);
    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        build_entry(&q->snapshots[i], at);
        at += entry_bytes(&q->snapshots[i]);
    }
    if (bytes)
        r = take_row(q, bytes, &off, err);
    if (r == 0 && bytes)
        r = img_file_pwrite(q->file, buf, bytes, off, err);
    if (r == 0)
        r = img_qcow2_write_back(q, true, err);
    if (r < 0)
        return r;
    img_put_be32(field, q->n_snapshots);
    img_put_be64(field + 4, off);
    r = img_file_pwrite(q->file, field, sizeof field, 60, err);
    if (r < 0)
        return r;
    /* From here on the header may name the new list, even if the sync fails:
     * no reference that either list needs may be dropped then. */
    q->h.n_snapshots = q->n_snapshots;
    q->h.snapshots_offset = off;
    q->snapshots_bytes = bytes;
    r = img_file_sync(q->file, err);
    if (r < 0)
        return r;
    img_lock(&q->lock);
    r = old_bytes ? img_qcow2_give_back(q, old, old_bytes, err) : 0;
    img_unlock(&q->lock);
    return r;
}

/* ---- create ------------------------------------------------------------ */

static int fill_entry(struct qcow2 *q, struct qcow2_snapshot *s,
                      const char *name, struct img_error *err)
{
    unsigned long long id = 0;
    struct timespec now;
    char text[32];

    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        unsigned long long n = strtoull(q->snapshots[i].id, NULL, 10);

        id = IMG_MAX(id, n);
    }
    snprintf(text, sizeof text, "%llu", id + 1);
    clock_gettime(CLOCK_REALTIME, &now);
    memset(s, 0, sizeof *s);
    s->id = strdup(text);
    s->name = strdup(name);
    s->l1_size = q->h.l1_size;
    s->disk_size = q->h.size;
    s->icount = UINT64_MAX;
    s->has_size = s->has_icount = true;
    s->date_sec = (uint32_t)now.tv_sec;
    s->date_nsec = (uint32_t)now.tv_nsec;
    if (s->id && s->name)
        return 0;
    free(s->id);
    free(s->name);
    return img_fail_nomem(err);
}

static int append_entry(struct qcow2 *q, const struct qcow2_snapshot *s,
                        struct img_error *err)
{
    struct qcow2_snapshot *list;

    list = realloc(q->snapshots, (q->n_snapshots + 1) * sizeof *list);
    if (!list)
        return img_fail_nomem(err);
    q->snapshots = list;
    list[q->n_snapshots++] = *s;
    return 0;
}

static void free_entry(struct qcow2_snapshot *s)
{
    free(s->id);
    free(s->name);
    free(s->more);
}

/* References and a copy of the L1 table for s, durable. */
static int share_active(struct qcow2 *q, struct qcow2_snapshot *s,
                        struct img_error *err)
{
    uint64_t n = q->h.l1_size;
    img_autofree uint64_t *l1 = malloc(n * sizeof *l1 + 1);
    int r;

    if (!l1)
        return img_fail_nomem(err);
    for (uint64_t i = 0; i < n; i++)
        l1[i] = q->l1[i] & ~QCOW2_COPIED;
    r = take_row(q, n * 8, &s->l1_offset, err);
    if (r < 0)
        return r;
    r = img_qcow2_write_table(q, s->l1_offset, l1, n, err);
    if (r == 0)
        r = img_qcow2_share_add(q, q->l1, n, 1, err);
    if (r < 0) {
        img_lock(&q->lock);
        img_qcow2_give_back(q, s->l1_offset, n * 8, NULL);
        img_unlock(&q->lock);
    }
    return r;
}

static int unshare_active(struct qcow2 *q, const struct qcow2_snapshot *s)
{
    int r = img_qcow2_share_add(q, q->l1, q->h.l1_size, -1, NULL);

    img_lock(&q->lock);
    img_qcow2_give_back(q, s->l1_offset, (uint64_t)s->l1_size * 8, NULL);
    img_unlock(&q->lock);
    return r;
}

static int create(struct qcow2 *q, const char *name, struct img_error *err)
{
    struct qcow2_snapshot s;
    int r;

    if (q->n_snapshots >= QCOW2_MAX_SNAPSHOTS)
        return img_fail(err, EFBIG, "%s: has %u snapshots already",
                        q->layer->path, q->n_snapshots);
    if (strlen(name) > UINT16_MAX)
        return img_fail(err, EINVAL, "the snapshot's name is too long");
    r = fill_entry(q, &s, name, err);
    if (r < 0)
        return r;
    r = share_active(q, &s, err);
    if (r < 0) {
        free_entry(&s);
        return r;
    }
    r = append_entry(q, &s, err);
    if (r < 0) {
        unshare_active(q, &s);
        free_entry(&s);
        return r;
    }
    r = img_qcow2_write_back(q, true, err);
    if (r == 0)
        r = img_qcow2_share_flags(q, NULL, 0, err);
    if (r == 0)
        r = write_table(q, err);
    if (r < 0 && q->h.n_snapshots < q->n_snapshots) {
        /* The header does not name it: the references can go again. */
        q->n_snapshots--;
        unshare_active(q, &s);
        free_entry(&s);
        img_qcow2_share_flags(q, NULL, 0, NULL);
    }
    return r;
}

/* ---- delete ------------------------------------------------------------ */

static int remove_entry(struct qcow2 *q, struct qcow2_snapshot *s,
                        struct img_error *err)
{
    uint64_t index = (uint64_t)(s - q->snapshots);
    struct qcow2_snapshot gone = *s;
    uint64_t *l1;
    int r = img_qcow2_read_table(q, s->l1_offset, s->l1_size, &l1, err);

    if (r < 0)
        return r;
    memmove(s, s + 1, (q->n_snapshots - index - 1) * sizeof *s);
    q->n_snapshots--;
    r = write_table(q, err);
    if (r < 0 && q->h.n_snapshots > q->n_snapshots) {
        memmove(s + 1, s, (q->n_snapshots - index) * sizeof *s);
        *s = gone;
        q->n_snapshots++;
        free(l1);
        return r;
    }
    if (r == 0)
        r = img_qcow2_share_add(q, l1, gone.l1_size, -1, err);
    img_lock(&q->lock);
    if (r == 0 && gone.l1_size)
        r = img_qcow2_give_back(q, gone.l1_offset,
                                (uint64_t)gone.l1_size * 8, err);
    img_unlock(&q->lock);
    if (r == 0)
        r = img_qcow2_share_flags(q, NULL, 0, err);
    free_entry(&gone);
    free(l1);
    return r;
}

/* ---- apply ------------------------------------------------------------- */

static int switch_l1(struct qcow2 *q, uint64_t *l1, uint64_t n, uint64_t off,
                     uint64_t size, struct img_error *err)
{
    uint8_t field[24];
    int r;

    img_put_be64(field, size);
    img_put_be32(field + 8, q->h.crypt_method);
    img_put_be32(field + 12, (uint32_t)n);
    img_put_be64(field + 16, off);
    r = img_qcow2_header_switch(q, field, sizeof field, 24, err);
    if (r < 0)
        return r;
    free(q->l1);
    q->l1 = l1;
    q->h.l1_size = (uint32_t)n;
    q->h.l1_offset = off;
    q->h.size = size;
    img_qcow2_refresh_layer(q);
    return 0;
}

/* Entries of l1 whose table is not at the same place in other too: what both
 * share needs no reference more, nor one less. */
static void take_others(uint64_t *others, const uint64_t *l1, uint64_t n,
                        const uint64_t *other, uint64_t n_other)
{
    for (uint64_t i = 0; i < n; i++) {
        bool same = i < n_other && !((l1[i] ^ other[i]) & QCOW2_OFFSET_MASK);

        others[i] = same ? 0 : l1[i];
    }
}

/* The active tables become a copy of the snapshot's L1 table; what only the
 * old ones referred to goes. */
static int apply(struct qcow2 *q, const struct qcow2_snapshot *s,
                 struct img_error *err)
{
    uint64_t size = s->has_size ? s->disk_size : q->h.size;
    uint64_t n = IMG_MAX((uint64_t)s->l1_size,
                         img_qcow2_l1_needed(q, size));
    uint64_t old_off = q->h.l1_offset, old_n = q->h.l1_size, off;
    uint64_t *old = NULL, *l1 = NULL, *grown;
    img_autofree uint64_t *others = NULL;
    int r = img_qcow2_read_table(q, s->l1_offset, s->l1_size, &l1, err);

    if (r < 0)
        return r;
    n = IMG_MAX(n, UINT64_C(1));
    grown = realloc(l1, n * sizeof *l1);
    old = malloc(old_n * sizeof *old + 1);
    others = malloc(IMG_MAX(n, old_n) * sizeof *others);
    if (!grown || !old || !others) {
        free(grown ? grown : l1);
        free(old);
        return img_fail_nomem(err);
    }
    l1 = grown;
    memset(l1 + s->l1_size, 0, (n - s->l1_size) * sizeof *l1);
    memcpy(old, q->l1, old_n * sizeof *old);
    take_others(others, l1, n, old, old_n);
    r = img_qcow2_share_add(q, others, n, 1, err);
    if (r == 0)
        r = take_row(q, n * 8, &off, err);
    for (uint64_t i = 0; i < n; i++)
        l1[i] &= ~QCOW2_COPIED;
    if (r == 0)
        r = img_qcow2_write_table(q, off, l1, n, err);
    if (r == 0)
        r = img_qcow2_write_back(q, true, err);
    if (r == 0)
        r = switch_l1(q, l1, n, off, size, err);
    if (r < 0) {
        free(l1);
        free(old);
        return r;
    }
    take_others(others, old, old_n, l1, n);
    r = img_qcow2_share_add(q, others, old_n, -1, err);
    img_lock(&q->lock);
    if (r == 0)
        r = img_qcow2_give_back(q, old_off, old_n * 8, err);
    img_unlock(&q->lock);
    if (r == 0)
        r = img_qcow2_share_flags(q, old, old_n, err);
    free(old);
    return r;
}

/* ---- hooks ------------------------------------------------------------- */

enum verb { CREATE, APPLY, REMOVE };

static int run(struct qcow2 *q, enum verb verb, const char *name,
               const struct qcow2_snapshot *s, struct img_error *err)
{
    switch (verb) {
    case CREATE:
        return create(q, name, err);
    case APPLY:
        return apply(q, s, err);
    default:
        return remove_entry(q, (struct qcow2_snapshot *)s, err);
    }
}

static int snapshot(struct img_layer *layer, enum verb verb,
                    const char *name, struct img_error *err)
{
    struct qcow2 *q = img_qcow2_of(layer);
    const struct qcow2_snapshot *s = NULL;
    uint64_t size = q->h.size, then = size;
    int r, flags = 0, end;

    /* Before anything is touched: the refcounts say nothing of data in
     * another file, and the flags that follow from them would be wrong. */
    if (verb == CREATE && q->data)
        return img_fail(err, ENOTSUP, "%s: an image with an external data "
                        "file cannot have snapshots", q->layer->path);
    if (verb != CREATE)
        s = img_qcow2_snapshot_find(q, name);
    if (verb != CREATE && !s)
        return img_fail(err, ENOENT, "%s: Can't find the snapshot '%s'",
                        q->layer->path, name);
    if (verb == APPLY && s->has_size)
        then = s->disk_size;
    if (s && img_qcow2_l1_needed(q, then) > QCOW2_MAX_L1_BYTES / 8)
        return img_fail(err, IMG_ECORRUPT, "%s: snapshot '%s': its disk of "
                        "%llu bytes is too large", q->layer->path, s->name,
                        (unsigned long long)then);
    r = img_qcow2_settle(q, err);
    if (r == 0 && then != size)
        r = img_qcow2_bitmaps_grow(q, then, err);
    if (r == 0 && verb == APPLY)
        r = img_qcow2_touch(layer, 0, IMG_MAX(size, then), err);
    if (r == 0)
        r = img_qcow2_header_mark(q, true, err);
    if (r < 0)
        return img_qcow2_result(q, r);
    r = run(q, verb, name, s, err);
    if (then != size)
        img_qcow2_bitmaps_fit(q);
    /* The mark goes only when the flags are known to be right. */
    if (r < 0)
        flags = img_qcow2_share_flags(q, NULL, 0, NULL);
    end = img_qcow2_settle(q, r < 0 ? NULL : err);
    if (end == 0 && flags == 0)
        end = img_qcow2_header_mark(q, false, r < 0 ? NULL : err);
    return img_qcow2_result(q, r < 0 ? r : end);
}

static int snapshot_create(struct img_layer *l, const char *name,
                           struct img_error *err)
{
    return snapshot(l, CREATE, name, err);
}

static int snapshot_apply(struct img_layer *l, const char *name,
                          struct img_error *err)
{
    return snapshot(l, APPLY, name, err);
}

static int snapshot_remove(struct img_layer *l, const char *name,
                           struct img_error *err)
{
    return snapshot(l, REMOVE, name, err);
}

const struct img_snapshot_ops img_qcow2_snapshot_ops = {
    .create = snapshot_create, .apply = snapshot_apply,
    .remove = snapshot_remove,
};
