/* Writing an image from front to back, in one pass: header, refcount table,
 * refcount blocks, L1 table, L2 tables, then the data clusters in the order of
 * the disk.  Where everything goes follows from the plan alone, of which each
 * table is made when its turn comes: none but the one at hand is in memory.
 *
 * All clusters of the file have one reference.  A new image without any
 * allocated cluster is as long as one that create.c makes.
 */
#include "qcow2/qcow2.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/runs.h"

#include <stdlib.h>
#include <string.h>

enum { ROOM = 256 << 10 };

struct img_sink {
    int (*write)(void *, const void *, size_t, struct img_error *);
    void *opaque;
    const char *path;
    struct qcow2_header h;
    uint64_t cluster, entry;    /* bytes */
    uint64_t tables, data;      /* clusters: L2 tables, data */
    uint64_t blocks, total;     /* clusters: refcount blocks, the whole file */
    uint64_t host;              /* of the data cluster whose entry is next */
    uint64_t next;              /* guest offset; nothing before it */
    uint64_t put;               /* data clusters written */
    uint8_t *table;             /* a cluster */
    uint8_t *buf;               /* ROOM, of which fill are to be written */
    size_t fill;
};

/* ---- output ------------------------------------------------------------ */

static int flush(struct img_sink *s, struct img_error *err)
{
    int r = s->fill ? s->write(s->opaque, s->buf, s->fill, err) : 0;

    s->fill = 0;
    return r;
}

static int emit(struct img_sink *s, const void *data, size_t len,
                struct img_error *err)
{
    int r = 0;

    if (len > ROOM - s->fill)
        r = flush(s, err);
    if (r < 0)
        return r;
    if (len > ROOM)
        return s->write(s->opaque, data, len, err);
    memcpy(s->buf + s->fill, data, len);
    s->fill += len;
    return 0;
}

static int emit_entry(struct img_sink *s, uint64_t entry,
                      struct img_error *err)
{
    uint8_t b[8];

    img_put_be64(b, entry);
    return emit(s, b, sizeof b, err);
}

static int emit_zeros(struct img_sink *s, uint64_t len, struct img_error *err)
{
    static const uint8_t zeros[4096];
    int r = 0;

    while (len && r == 0) {
        size_t now = (size_t)IMG_MIN(len, (uint64_t)sizeof zeros);

        r = emit(s, zeros, now, err);
        len -= now;
    }
    return r;
}

/* ---- layout ------------------------------------------------------------ */

/* Version 2 has no clusters of zeros but those that hold them. */
static bool is_data(const struct img_sink *s, unsigned kind)
{
    return kind == IMG_CONTENT_DATA ||
           (kind == IMG_CONTENT_ZEROS && s->h.version < 3);
}

static void store_entry(struct img_sink *s, uint8_t *at, bool data)
{
    bool extended = s->entry == 16;

    if (data) {
        img_put_be64(at, s->host | QCOW2_COPIED);
        s->host += s->cluster;
    } else if (!extended) {
        img_put_be64(at, QCOW2_ZERO);
    }
    /* Subclusters: all allocated, or all zeros; the upper half of the bits
     * says which are zeros (description, "Extended L2 Entries"). */
    if (extended)
        img_put_be64(at + 8, data ? UINT64_C(0xffffffff)
                                  : UINT64_C(0xffffffff) << 32);
}

/* The content of the next L2 table, into s->table if fill; returns how many
 * data clusters it has.  *used: there has to be one at all. */
static uint64_t take_table(struct img_sink *s, struct img_runs_at *at,
                           bool fill, bool *used)
{
    uint64_t n = s->cluster / s->entry, data = 0;

    *used = false;
    if (fill)
        memset(s->table, 0, s->cluster);
    for (uint64_t i = 0; i < n && img_runs_more(at);) {
        uint64_t now = IMG_MIN(n - i, at->left);
        bool has = is_data(s, at->kind);

        *used = *used || at->kind != IMG_CONTENT_NONE;
        data += has ? now : 0;
        for (uint64_t k = i; fill && at->kind != IMG_CONTENT_NONE &&
             k < i + now; k++)
            store_entry(s, s->table + k * s->entry, has);
        at->left -= now;
        i += now;
    }
    return data;
}

static void count(struct img_sink *s, const struct img_runs *plan)
{
    struct img_runs_at at = { .runs = plan };
    bool used;

    for (uint32_t i = 0; i < s->h.l1_size; i++) {
        s->data += take_table(s, &at, false, &used);
        s->tables += used;
    }
}

static int lay_out(struct img_sink *s, struct img_error *err)
{
    struct qcow2_header *h = &s->h;
    uint64_t refs = s->cluster * 8 >> h->refcount_order, blocks = 1;
    uint64_t l1 = img_div_up((uint64_t)h->l1_size * 8, s->cluster);
    uint64_t reftable;

    do {
        s->blocks = blocks;
        reftable = img_div_up(s->blocks * 8, s->cluster);
        s->total = 1 + reftable + s->blocks + l1 + s->tables + s->data;
        blocks = img_div_up(s->total, refs);
    } while (blocks > s->blocks);
    if (reftable * s->cluster > QCOW2_MAX_REFTABLE_BYTES ||
        s->total > INT64_MAX / s->cluster ||
        s->total * s->cluster > QCOW2_OFFSET_MASK)
        return img_fail(err, EFBIG, "%s: an image of %llu clusters of %llu "
                        "bytes is too large", s->path,
                        (unsigned long long)s->total,
                        (unsigned long long)s->cluster);
    h->reftable_offset = s->cluster;
    h->reftable_clusters = (uint32_t)reftable;
    h->l1_offset = (1 + reftable + s->blocks) * s->cluster;
    s->host = h->l1_offset + (l1 + s->tables) * s->cluster;
    return 0;
}

/* ---- tables ------------------------------------------------------------ */

static int write_refcounts(struct img_sink *s, struct img_error *err)
{
    uint64_t at = s->h.reftable_offset +
                  (uint64_t)s->h.reftable_clusters * s->cluster;
    uint64_t refs = s->cluster * 8 >> s->h.refcount_order, n, stored = 0;
    uint64_t left = s->total;
    int r = 0;

    for (uint64_t i = 0; r == 0 && i < s->blocks; i++)
        r = emit_entry(s, at + i * s->cluster, err);
    if (r == 0)
        r = emit_zeros(s, s->h.reftable_clusters * s->cluster -
                       s->blocks * 8, err);
    for (uint64_t i = 0; r == 0 && i < s->blocks; i++, left -= n) {
        n = IMG_MIN(left, refs);
        if (n != stored) {
            memset(s->table, 0, s->cluster);
            for (uint64_t k = 0; k < n; k++)
                img_qcow2_refs_store(s->table, s->h.refcount_order, k, 1);
            stored = n;
        }
        r = emit(s, s->table, s->cluster, err);
    }
    return r;
}

static int write_l1(struct img_sink *s, const struct img_runs *plan,
                    struct img_error *err)
{
    uint64_t len = img_round_up((uint64_t)s->h.l1_size * 8, s->cluster);
    uint64_t at = s->h.l1_offset + len;
    struct img_runs_at from = { .runs = plan };
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < s->h.l1_size; i++) {
        bool used;

        take_table(s, &from, false, &used);
        r = emit_entry(s, used ? at | QCOW2_COPIED : 0, err);
        at += used ? s->cluster : 0;
    }
    return r == 0 ? emit_zeros(s, len - (uint64_t)s->h.l1_size * 8, err) : r;
}

static int write_l2(struct img_sink *s, const struct img_runs *plan,
                    struct img_error *err)
{
    struct img_runs_at from = { .runs = plan };
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < s->h.l1_size; i++) {
        bool used;

        take_table(s, &from, true, &used);
        if (used)
            r = emit(s, s->table, s->cluster, err);
    }
    return r;
}

static int sink_plan(struct img_sink *s, const struct img_runs *plan,
                     struct img_error *err)
{
    int r;

    count(s, plan);
    r = lay_out(s, err);
    if (r == 0)
        r = img_qcow2_header_build(s->path, &s->h, NULL, s->table, err);
    if (r == 0)
        r = emit(s, s->table, s->cluster, err);
    if (r == 0)
        r = write_refcounts(s, err);
    if (r == 0)
        r = write_l1(s, plan, err);
    return r == 0 ? write_l2(s, plan, err) : r;
}

/* ---- life -------------------------------------------------------------- */

static void sink_free(struct img_sink *s)
{
    if (!s)
        return;
    img_qcow2_header_free(&s->h);
    free(s->table);
    free(s->buf);
    free(s);
}

static int start(struct img_sink *s, struct img_build *b,
                 struct img_error *err)
{
    bool prealloc;
    int r = img_qcow2_header_new(b, &s->h, &prealloc, err);

    if (r < 0)
        return r;
    if (prealloc || (s->h.incompatible & QCOW2_DATA_FILE))
        return img_fail(err, ENOTSUP, "%s: an image with a data file or "
                        "preallocation is not written in one pass", s->path);
    s->cluster = UINT64_C(1) << s->h.cluster_bits;
    s->entry = s->h.incompatible & QCOW2_EXTENDED_L2 ? 16 : 8;
    s->table = malloc(s->cluster);
    s->buf = malloc(ROOM);
    return s->table && s->buf ? 0 : img_fail_nomem(err);
}

static int sink_begin(struct img_build *b,
                      int (*write)(void *, const void *, size_t,
                                   struct img_error *), void *opaque,
                      struct img_sink **sink, struct img_error *err)
{
    struct img_sink *s = calloc(1, sizeof *s);
    int r;

    if (!s)
        return img_fail_nomem(err);
    s->write = write;
    s->opaque = opaque;
    s->path = b->path;
    r = start(s, b, err);
    if (r < 0) {
        sink_free(s);
        return r;
    }
    *sink = s;
    return 0;
}

static int sink_put(struct img_sink *s, uint64_t off, const void *data,
                    size_t len, bool packed, struct img_error *err)
{
    uint64_t clusters = img_div_up(len, s->cluster);
    int r;

    if (packed || off % s->cluster || off < s->next)
        return img_fail(err, EINVAL, "%s: %zu bytes cannot be put at %llu",
                        s->path, len, (unsigned long long)off);
    s->next = off + clusters * s->cluster;
    if (!data && !is_data(s, IMG_CONTENT_ZEROS))
        return 0;
    s->put += clusters;
    if (!data)
        return emit_zeros(s, clusters * s->cluster, err);
    r = emit(s, data, len, err);
    return r == 0 ? emit_zeros(s, clusters * s->cluster - len, err) : r;
}

static int sink_finish(struct img_sink *s, struct img_error *err)
{
    if (s->put != s->data)
        return img_fail(err, EIO, "%s: %llu clusters of data were put, and "
                        "%llu promised", s->path, (unsigned long long)s->put,
                        (unsigned long long)s->data);
    return flush(s, err);
}

static uint32_t sink_cluster_size(const struct img_sink *s)
{
    return (uint32_t)s->cluster;
}

/* Files are written in place, where clusters of zeros are found out. */
static bool sink_needed(const struct img_create_options *o)
{
    return false;
}

const struct img_sink_ops img_qcow2_sink = {
    .begin = sink_begin, .plan = sink_plan, .put = sink_put,
    .finish = sink_finish, .free = sink_free,
    .cluster_size = sink_cluster_size, .needed = sink_needed,
};
