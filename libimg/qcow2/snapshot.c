/* The snapshot table: load, find, write (the description, "Snapshots"). */
#include "qcow2/qcow2.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/span.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

enum {
    FIXED = 40,                 /* bytes before the extra data */
    MAX_EXTRA = 1024,           /* of one snapshot; QEMU's limit */
    READ_AHEAD = 65536
};

void img_qcow2_snapshots_free(struct qcow2 *q)
{
    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        free(q->snapshots[i].id);
        free(q->snapshots[i].name);
        free(q->snapshots[i].more);
    }
    free(q->snapshots);
    q->snapshots = NULL;
    q->n_snapshots = 0;
}

const struct qcow2_snapshot *img_qcow2_snapshot_find(const struct qcow2 *q,
                                                     const char *name)
{
    for (uint32_t i = 0; i < q->n_snapshots; i++)
        if (!strcmp(q->snapshots[i].id, name))
            return &q->snapshots[i];
    for (uint32_t i = 0; i < q->n_snapshots; i++)
        if (!strcmp(q->snapshots[i].name, name))
            return &q->snapshots[i];
    return NULL;
}

static char *text_of(struct img_span s)
{
    return strndup((const char *)s.data, s.len);
}

static int bad(struct qcow2 *q, uint32_t index, const char *what,
               struct img_error *err)
{
    return img_fail(err, IMG_ECORRUPT, "%s: snapshot table, entry %u: %s",
                    q->layer->path, index, what);
}

static int check_entry(struct qcow2 *q, uint32_t index,
                       const struct qcow2_snapshot *s, struct img_error *err)
{
    if (s->l1_size > QCOW2_MAX_L1_BYTES / 8)
        return bad(q, index, "its L1 table is too large", err);
    if (!img_is_aligned(s->l1_offset, q->cluster_size))
        return bad(q, index, "its L1 table is not cluster aligned", err);
    if (s->l1_size && (s->l1_offset >= q->end ||
                       !img_inside(s->l1_offset, (uint64_t)s->l1_size * 8,
                                   q->end)))
        return bad(q, index, "its L1 table lies beyond the end of the file",
                   err);
    if (s->has_size && s->disk_size > INT64_MAX)
        return bad(q, index, "its disk size is too large", err);
    return 0;
}

/* One entry at the beginning of s; *used is its length with padding.
 * -EAGAIN: s is too short. */
static int parse_entry(struct qcow2 *q, uint32_t index, struct img_span s,
                       struct qcow2_snapshot *snap, size_t *used,
                       struct img_error *err)
{
    uint32_t extra_len, vm_state_32;
    uint16_t id_len, name_len;
    struct img_span extra, id, name;

    if (s.len < FIXED)
        return -EAGAIN;
    img_span_be64(s, 0, &snap->l1_offset);
    img_span_be32(s, 8, &snap->l1_size);
    img_span_be16(s, 12, &id_len);
    img_span_be16(s, 14, &name_len);
    img_span_be32(s, 16, &snap->date_sec);
    img_span_be32(s, 20, &snap->date_nsec);
    img_span_be64(s, 24, &snap->vm_clock_nsec);
    img_span_be32(s, 32, &vm_state_32);
    img_span_be32(s, 36, &extra_len);
    snap->vm_state_size = vm_state_32;
    if (extra_len > MAX_EXTRA)
        return bad(q, index, "its extra data is too large", err);
    if (!img_span_part(s, FIXED, extra_len, &extra) ||
        !img_span_part(s, FIXED + extra_len, id_len, &id) ||
        !img_span_part(s, FIXED + extra_len + id_len, name_len, &name))
        return -EAGAIN;
    if (extra_len >= 8)
        img_span_be64(extra, 0, &snap->vm_state_size);
    snap->has_size = img_span_be64(extra, 8, &snap->disk_size);
    snap->has_icount = img_span_be64(extra, 16, &snap->icount);
    *used = (size_t)img_round_up(FIXED + extra_len + id_len + name_len, 8);
    snap->id = text_of(id);
    snap->name = text_of(name);
    if (!snap->id || !snap->name)
        return img_fail_nomem(err);
    if (extra_len > 24) {
        snap->more_len = extra_len - 24;
        snap->more = malloc(snap->more_len);
        if (!snap->more)
            return img_fail_nomem(err);
        memcpy(snap->more, extra.data + 24, snap->more_len);
    }
    return check_entry(q, index, snap, err);
}

/* The table's length is known only from its entries: read in growing
 * pieces. */
static int read_more(struct qcow2 *q, uint8_t **buf, size_t *len,
                     uint64_t file_size, struct img_error *err)
{
    uint64_t room = file_size > q->h.snapshots_offset
                    ? file_size - q->h.snapshots_offset : 0;
    size_t want = (size_t)IMG_MIN(*len ? *len * 2 : READ_AHEAD, room);
    uint8_t *more;
    int r;

    if (want <= *len)
        return img_fail(err, IMG_ECORRUPT, "%s: the snapshot table at 0x%llx "
                        "ends beyond the end of the file", q->layer->path,
                        (unsigned long long)q->h.snapshots_offset);
    if (want > QCOW2_MAX_SNAPSHOT_BYTES)
        return img_fail(err, EFBIG, "%s: the snapshot table is too large",
                        q->layer->path);
    more = realloc(*buf, want);
    if (!more)
        return img_fail_nomem(err);
    *buf = more;
    r = img_file_pread(q->file, more + *len, want - *len,
                       q->h.snapshots_offset + *len, err);
    *len = want;
    return r;
}

int img_qcow2_snapshots_load(struct qcow2 *q, struct img_error *err)
{
    img_autofree uint8_t *buf = NULL;
    uint64_t file_size;
    size_t len = 0, at = 0;
    int r;

    if (!q->h.n_snapshots)
        return 0;
    r = img_file_size(q->file, &file_size, err);
    if (r < 0)
        return r;
    q->snapshots = calloc(q->h.n_snapshots, sizeof *q->snapshots);
    if (!q->snapshots)
        return img_fail_nomem(err);
    while (q->n_snapshots < q->h.n_snapshots) {
        size_t used = 0;

        r = parse_entry(q, q->n_snapshots,
                        (struct img_span){ buf ? buf + at : NULL, len - at },
                        &q->snapshots[q->n_snapshots], &used, err);
        if (r == -EAGAIN) {
            r = read_more(q, &buf, &len, file_size, err);
            if (r < 0)
                return r;
            continue;
        }
        q->n_snapshots++;       /* frees what it holds, on failure too */
        if (r < 0)
            return r;
        at = IMG_MIN(at + used, len);
    }
    q->snapshots_bytes = at;
    return 0;
}
