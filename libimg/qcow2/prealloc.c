/* Preallocation: a place for every cluster, content unchanged. */
#include "qcow2/qcow2.h"
#include "base/checked.h"
#include "base/error.h"
#include "file/file.h"

struct run {                    /* clusters just placed */
    uint64_t host, n;
    bool zeroed;
};

static int fill_run(struct qcow2 *q, const struct run *run,
                    enum img_prealloc prealloc, struct img_error *err)
{
    struct img_file *f = q->layer->files[q->data];
    uint64_t len = run->n << q->cluster_bits;
    int r = 0;

    /* In an external data file the place may hold anything; a new one, or
     * the part behind its end, reads as zeros. */
    if (!run->zeroed)
        r = img_file_zero(f, run->host, len, 0, err);
    if (r == 0 && prealloc == IMG_PREALLOC_FALLOC)
        r = img_file_allocate(f, run->host, len, err);
    if (r == 0 && prealloc == IMG_PREALLOC_FULL)
        r = img_file_write_zeros(f, run->host, len, err);
    return r;
}

/* Places the unused clusters at the cursor, at most max; *n counts how many
 * entries were dealt with, placed or not. */
static int place_run(struct qcow2 *q, const struct qcow2_cursor *c,
                     uint64_t max, enum img_prealloc prealloc, uint64_t *n,
                     struct img_error *err)
{
    uint64_t bitmap = q->layer->backing ? 0 : UINT32_MAX, want = 0;
    struct run run = { 0 };
    struct qcow2_entry e;
    int r = 0;

    max = IMG_MIN(max, (uint64_t)c->left);
    for (*n = 0; *n < max; ++*n) {
        r = img_qcow2_entry_decode(q, img_qcow2_cursor_entry(q, c,
                                                          (uint32_t)*n),
                                   c->cluster + *n, &e, err);
        if (r < 0)
            return r;
        if (e.kind != QCOW2_UNUSED || e.has_host)
            break;
    }
    want = *n;
    if (!want) {
        *n = 1;                 /* has its place, or is zeros */
        return 0;
    }
    run.host = c->cluster << q->cluster_bits;
    run.n = want;
    if (!q->data)
        r = img_qcow2_take(q, want, &run.host, &run.n, &run.zeroed, err);
    if (r < 0)
        return r;
    /* Before anybody can see it. */
    r = fill_run(q, &run, prealloc, err);
    if (r < 0) {
        if (!q->data)
            img_qcow2_give_back(q, run.host, run.n << q->cluster_bits, NULL);
        return r;
    }
    for (uint64_t i = 0; i < run.n && r == 0; i++) {
        uint8_t *at = img_qcow2_cursor_entry(q, c, (uint32_t)i);

        /* Subclusters that are zeros stay so; decoded before, no error. */
        r = img_qcow2_entry_decode(q, at, c->cluster + i, &e, err);
        if (r == 0)
            img_qcow2_entry_store(q, at,
                                  (run.host + (i << q->cluster_bits)) |
                                  QCOW2_COPIED,
                                  img_qcow2_has_subclusters(q) && e.bitmap
                                      ? e.bitmap : bitmap);
    }
    img_qcow2_cursor_dirty(q, c, 0, (uint32_t)run.n);
    *n = run.n;
    return r;
}

int img_qcow2_preallocate(struct qcow2 *q, uint64_t off, uint64_t len,
                          enum img_prealloc prealloc, struct img_error *err)
{
    uint64_t at = img_round_down(off, q->cluster_size), end = off + len;
    int r = 0;

    while (at < end && r == 0) {
        uint64_t max = img_div_up(end - at, q->cluster_size), n = 0;
        struct qcow2_cursor c;

        img_lock(&q->lock);
        r = img_qcow2_cursor_get_writable(q, at, &c, err);
        if (r == 0) {
            r = place_run(q, &c, max, prealloc, &n, err);
            img_qcow2_cursor_put(q, &c);
        }
        img_unlock(&q->lock);
        if (r == 0)
            r = img_qcow2_relieve(q, err);
        at += n << q->cluster_bits;
    }
    return r;
}
