/* qcow version 1: is the image sound, and making it so.
 *
 * The file's sectors are counted: "owned" ones lie whole in something, "used"
 * ones are touched by something.  Two things in one owned sector are an
 * error.  Clusters of the file that nothing touches are no leaks: whatever is
 * written anew leaves them behind, and the format cannot use them again.
 *
 * Repair takes bad entries out; two guest clusters in one place are parted,
 * each gets what both have shown.  What nothing touches is given back to the
 * file system.
 */
#include "qcow/qcow.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "cache/tcache.h"
#include "file/file.h"

#include <stdio.h>
#include <stdlib.h>

enum { SECTOR = 512, CHUNK_BITS = 19, CHUNK_BYTES = 1 << (CHUNK_BITS - 3) };
#define FILE_MAX (UINT64_C(1) << 50)

/* A set of sectors, in chunks that are made when they are touched. */
struct sectors {
    uint64_t **chunks;
    uint64_t n;
};

struct checking {
    struct img_layer *layer;
    const struct img_check_options *opts;
    struct img_check_result *result;
    struct sectors owned, used;
    uint64_t length;            /* of the file */
    bool repair;
};

static int sectors_init(struct sectors *s, uint64_t length,
                        struct img_error *err)
{
    s->n = img_div_up(length, (uint64_t)SECTOR << CHUNK_BITS) + 1;
    s->chunks = calloc((size_t)s->n, sizeof *s->chunks);
    return s->chunks ? 0 : img_fail_nomem(err);
}

static void sectors_free(struct sectors *s)
{
    for (uint64_t i = 0; s->chunks && i < s->n; i++)
        free(s->chunks[i]);
    free(s->chunks);
}

static bool has(const struct sectors *s, uint64_t sector)
{
    const uint64_t *chunk = s->chunks[sector >> CHUNK_BITS];
    uint64_t bit = sector & ((1 << CHUNK_BITS) - 1);

    return chunk && chunk[bit / 64] >> bit % 64 & 1;
}

static int add(struct sectors *s, uint64_t sector, struct img_error *err)
{
    uint64_t **chunk = &s->chunks[sector >> CHUNK_BITS];
    uint64_t bit = sector & ((1 << CHUNK_BITS) - 1);

    if (!*chunk)
        *chunk = calloc(1, CHUNK_BYTES);
    if (!*chunk)
        return img_fail_nomem(err);
    (*chunk)[bit / 64] |= UINT64_C(1) << bit % 64;
    return 0;
}

/* Marks [at, at + len), which is in the file; *free says whether it was. */
static int mark(struct checking *c, uint64_t at, uint64_t len, bool *is_free,
                struct img_error *err)
{
    uint64_t first = img_div_up(at, SECTOR), end = (at + len) / SECTOR;
    int r = 0;

    *is_free = true;
    for (uint64_t s = first; s < end && *is_free; s++)
        *is_free = !has(&c->owned, s);
    if (!*is_free)
        return 0;
    for (uint64_t s = first; s < end && r == 0; s++)
        r = add(&c->owned, s, err);
    for (uint64_t s = at / SECTOR; s * SECTOR < at + len && r == 0; s++)
        r = add(&c->used, s, err);
    return r;
}

__attribute__((format(printf, 2, 3)))
static void report(const struct checking *c, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    if (!c->opts->report)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    c->opts->report(c->opts->report_opaque, text);
}

static void note(struct checking *c, uint64_t off, uint64_t at,
                 const char *what)
{
    report(c, "%s guest offset 0x%llx: %s at 0x%llx",
           c->repair ? "Repairing" : "ERROR", (unsigned long long)off, what,
           (unsigned long long)at);
    if (c->repair)
        c->result->errors_fixed++;
    else
        c->result->errors++;
}

/* Gives the guest cluster at off a place of its own. */
static int part(struct checking *c, struct img_slice *table, uint64_t off,
                const struct img_qcow_entry *e, struct img_error *err)
{
    struct img_qcow *q = c->layer->state;
    uint64_t len = e->kind == QCOW_PLAIN ? q->cluster_size : e->len, at;
    img_autofree uint8_t *buf = malloc((size_t)len);
    uint64_t raw;
    int r;

    if (!buf)
        return img_fail_nomem(err);
    r = img_qcow_append(c->layer, len, &at, err);
    if (r == 0)
        r = img_file_pread(c->layer->files[0], buf, (size_t)len, e->host,
                           err);
    if (r == 0)
        r = img_file_pwrite(c->layer->files[0], buf, (size_t)len, at, err);
    raw = at;
    if (e->kind == QCOW_DEFLATED)
        raw |= QCOW_PACKED | (uint64_t)e->len << (63 - q->cluster_bits);
    if (r == 0)
        img_qcow_set(c->layer, table, img_qcow_l2_index(q, off), raw);
    return r;
}

static int look_at_entry(struct checking *c, struct img_slice *table,
                         uint64_t off, struct img_error *err)
{
    struct img_qcow *q = c->layer->state;
    uint32_t index = img_qcow_l2_index(q, off);
    uint64_t raw = img_get_be64(table->data + index * 8), len;
    struct img_qcow_entry e = img_qcow_decode(q, raw);
    bool is_free, bad;
    int r;

    if (e.kind == QCOW_ABSENT)
        return 0;
    len = e.kind == QCOW_PLAIN ? q->cluster_size : e.len;
    bad = e.host < QCOW_HEADER_LEN || !len || e.host >= c->length ||
          (e.kind == QCOW_PLAIN && e.host % SECTOR);
    /* The last cluster of a file may be cut where the disk ends. */
    if (!bad)
        bad = !img_inside(e.host, e.kind == QCOW_PLAIN && off < c->layer->size
                          ? IMG_MIN(len, c->layer->size - off) : len,
                          c->length);
    if (bad) {
        note(c, off, e.host, "no cluster can be");
        if (c->repair)
            img_qcow_set(c->layer, table, index, 0);
        return 0;
    }
    c->result->allocated++;
    c->result->compressed += e.kind == QCOW_DEFLATED;
    r = mark(c, e.host, IMG_MIN(len, c->length - e.host), &is_free, err);
    if (r == 0 && !is_free) {
        note(c, off, e.host, "something else is in the place of the cluster");
        if (c->repair)
            r = part(c, table, off, &e, err);
    }
    return r;
}

static void drop_table(struct checking *c, uint64_t i)
{
    struct img_qcow *q = c->layer->state;

    q->l1[i] = 0;
    if (q->l1_from >= q->l1_upto) {
        q->l1_from = i;
        q->l1_upto = i + 1;
    }
    q->l1_from = IMG_MIN(q->l1_from, i);
    q->l1_upto = IMG_MAX(q->l1_upto, i + 1);
}

/* All tables are marked before any cluster: they win. */
static int look_at_l1(struct checking *c, struct img_error *err)
{
    struct img_qcow *q = c->layer->state;
    int r = 0;

    for (uint64_t i = 0; i < q->l1_n && r == 0; i++) {
        uint64_t at = q->l1[i];
        bool is_free = false;

        if (!at)
            continue;
        if (at >= QCOW_HEADER_LEN && img_inside(at, q->l2_bytes, c->length))
            r = mark(c, at, q->l2_bytes, &is_free, err);
        if (r == 0 && !is_free) {
            note(c, i << q->reach_bits, at, "no L2 table can be");
            if (c->repair)
                drop_table(c, i);
        }
    }
    return r;
}

static int look_at_l2(struct checking *c, const struct img_job *job,
                      struct img_error *err)
{
    struct img_qcow *q = c->layer->state;
    uint64_t reach = UINT64_C(1) << q->reach_bits;
    int r = 0;

    for (uint64_t i = 0; i < q->l1_n && r == 0; i++) {
        struct img_slice *table;
        uint64_t off = i << q->reach_bits;

        if (job && job->progress &&
            job->progress(job->opaque, i, q->l1_n))
            return img_fail(err, ECANCELED, "cancelled");
        r = img_qcow_table(c->layer, off, false, &table, err);
        if (r == -IMG_ECORRUPT)
            r = 0;              /* look_at_l1 has said so */
        if (r < 0 || !table)
            continue;
        for (uint64_t k = 0; k < reach && r == 0; k += q->cluster_size)
            r = look_at_entry(c, table, off + k, err);
        img_tcache_put(c->layer->tables, table);
        if (r == 0 && img_tcache_is_full(c->layer->tables))
            r = img_qcow_sync(c->layer, err);
    }
    return r;
}

static int give_back(struct checking *c, struct img_error *err)
{
    struct img_qcow *q = c->layer->state;
    uint64_t size = q->cluster_size, per = size / SECTOR;
    struct img_file *file = c->layer->files[0];
    uint64_t at = 0, known = 0, n = 0;
    bool is_data = true;
    int r = 0;

    while (at + size <= c->length && r == 0) {
        uint64_t s = at / SECTOR, k = 0;

        if (at >= known) {
            r = img_file_extent(file, at, c->length - at, &is_data, &n, err);
            known = at + n;
        }
        if (r == 0 && !is_data && known - at >= size) {
            at += img_round_down(known - at, size);
            continue;
        }
        while (k < per && !has(&c->used, s + k))
            k++;
        if (r == 0 && k == per)
            r = img_file_discard(file, at, size, err);
        at += size;
    }
    return r;
}

static int mark_fixed(struct checking *c, struct img_error *err)
{
    struct img_qcow *q = c->layer->state;
    uint64_t name = img_get_be64(q->header + QCOW_BACKING_OFF_AT);
    uint32_t len = img_get_be32(q->header + QCOW_BACKING_LEN_AT);
    bool is_free;
    int r = mark(c, 0, QCOW_HEADER_LEN, &is_free, err);

    if (r == 0 && q->l1_n)
        r = mark(c, q->l1_off, q->l1_n * 8, &is_free, err);
    if (r == 0 && name && len)
        r = mark(c, name, len, &is_free, err);
    return r;
}

int img_qcow_check(struct img_layer *layer,
                   const struct img_check_options *opts,
                   const struct img_job *job, struct img_check_result *result,
                   struct img_error *err)
{
    struct img_qcow *q = layer->state;
    struct checking c = {
        .layer = layer, .opts = opts, .result = result,
        .length = q->end,
        .repair = opts->repair == IMG_REPAIR_ALL,
    };
    int r = 0;

    if (c.length > FILE_MAX)
        return img_fail(err, EFBIG, "%s: a file of %llu bytes is too long to "
                        "be checked", layer->path,
                        (unsigned long long)c.length);
    r = sectors_init(&c.owned, c.length, err);
    if (r == 0)
        r = sectors_init(&c.used, c.length, err);
    if (r == 0)
        r = mark_fixed(&c, err);
    if (r == 0)
        r = look_at_l1(&c, err);
    if (r == 0)
        r = look_at_l2(&c, job, err);
    result->total = img_div_up(layer->size, q->cluster_size);
    result->end_offset = c.length;
    if (r == 0 && opts->repair)
        r = img_qcow_sync(layer, err);
    if (r == 0 && opts->repair & IMG_REPAIR_LEAKS && !result->errors)
        r = give_back(&c, err);
    sectors_free(&c.owned);
    sectors_free(&c.used);
    return r;
}
