/* qcow version 1: finding guest bytes. */
#include "qcow/qcow.h"
#include "base/checked.h"
#include "base/error.h"
#include "cache/tcache.h"
#include "file/file.h"

struct img_qcow_entry img_qcow_decode(const struct img_qcow *q, uint64_t raw)
{
    unsigned shift = 63 - q->cluster_bits;
    struct img_qcow_entry e = { QCOW_ABSENT, 0, 0 };

    if (raw & QCOW_PACKED) {
        e.kind = QCOW_DEFLATED;
        e.host = raw & ((UINT64_C(1) << shift) - 1);
        e.len = (uint32_t)(raw >> shift) & (uint32_t)(q->cluster_size - 1);
    } else if (raw) {
        e.kind = QCOW_PLAIN;
        e.host = raw;
    }
    return e;
}

bool img_qcow_in_file(struct img_layer *layer, uint64_t host, uint64_t len)
{
    struct img_qcow *q = layer->state;
    uint64_t size;

    if (img_inside(host, len, __atomic_load_n(&q->file_len,
                                              __ATOMIC_ACQUIRE)))
        return true;
    /* Somebody else may be writing the image. */
    return img_file_size(layer->files[0], &size, NULL) == 0 &&
           img_inside(host, len, size);
}

int img_qcow_table(struct img_layer *layer, uint64_t off, bool cached,
                   struct img_slice **table, struct img_error *err)
{
    struct img_qcow *q = layer->state;
    uint64_t i = off >> q->reach_bits, at = img_qcow_l1(q, i);
    int r;

    *table = NULL;
    if (!at)
        return 0;
    if (at < QCOW_HEADER_LEN || !img_qcow_in_file(layer, at, q->l2_bytes))
        return img_fail(err, IMG_ECORRUPT, "%s: L1 table, entry %llu: the L2 "
                        "table at 0x%llx goes beyond the end of the file "
                        "(%llu)", layer->path, (unsigned long long)i,
                        (unsigned long long)at,
                        (unsigned long long)q->file_len);
    if (cached) {
        *table = img_tcache_peek(layer->tables, layer->files[0], at);
        return *table ? 0 : -EAGAIN;
    }
    r = img_tcache_get(layer->tables, layer->files[0], at, q->l2_bytes, 0,
                       table, err);
    return r < 0 ? img_fail_prefix(err, r, "%s: L2 table", layer->path) : 0;
}

void img_qcow_set(struct img_layer *layer, struct img_slice *table,
                  uint32_t index, uint64_t raw)
{
    img_put_be64(table->data + index * 8, raw);
    img_tcache_dirty(layer->tables, table, index * 8, 8);
}

/* The guest bytes of a run of plain clusters have to be in the file. */
static int check_plain(struct img_layer *layer, uint64_t off, uint64_t len,
                       uint64_t host, struct img_error *err)
{
    struct img_qcow *q = layer->state;
    uint64_t skip = off & (q->cluster_size - 1);
    const char *what = "goes beyond the end of the file";

    if (host < QCOW_HEADER_LEN || host % 512 ||
        (host < q->l1_off + q->l1_n * 8 && host + skip + len > q->l1_off))
        what = "is no place for one";
    else if (img_qcow_in_file(layer, host + skip, len))
        return 0;
    return img_fail(err, IMG_ECORRUPT, "%s: L2 table, guest offset 0x%llx: "
                    "the cluster at 0x%llx %s", layer->path,
                    (unsigned long long)off, (unsigned long long)host, what);
}

static int check_packed(struct img_layer *layer, uint64_t off,
                        const struct img_qcow_entry *e,
                        struct img_error *err)
{
    if (e->len && e->host >= QCOW_HEADER_LEN &&
        img_qcow_in_file(layer, e->host, e->len))
        return 0;
    return img_fail(err, IMG_ECORRUPT, "%s: L2 table, guest offset 0x%llx: "
                    "the compressed cluster of %u bytes at 0x%llx goes beyond "
                    "the end of the file", layer->path,
                    (unsigned long long)off, e->len,
                    (unsigned long long)e->host);
}

int img_qcow_run(struct img_layer *layer, struct img_slice *table,
                 uint64_t off, uint64_t len, struct img_qcow_entry *first,
                 uint64_t *run, struct img_error *err)
{
    struct img_qcow *q = layer->state;
    uint32_t i = img_qcow_l2_index(q, off), n = UINT32_C(1) << q->l2_bits;
    uint64_t end = off + len;
    uint64_t at = img_round_down(off, q->cluster_size) + q->cluster_size;
    uint64_t next;

    img_read_lock(&q->lock);
    *first = img_qcow_decode(q, img_get_be64(table->data + i * 8));
    next = first->host;
    while (first->kind != QCOW_DEFLATED && at < end && ++i < n) {
        uint64_t raw = img_get_be64(table->data + i * 8);

        if (first->kind == QCOW_PLAIN)
            next += q->cluster_size;
        if (raw != next)
            break;
        at += q->cluster_size;
    }
    img_rw_unlock(&q->lock);
    *run = IMG_MIN(at, end) - off;
    if (first->kind == QCOW_DEFLATED)
        return check_packed(layer, off, first, err);
    if (first->kind == QCOW_PLAIN) {
        uint64_t one = q->cluster_size - (off & (q->cluster_size - 1));

        if (*run > one &&
            check_plain(layer, off, *run, first->host, NULL) == 0)
            return 0;
        *run = IMG_MIN(*run, one);
        return check_plain(layer, off, *run, first->host, err);
    }
    return 0;
}

/* Guest bytes from off on that have no L2 table. */
static uint64_t no_table(const struct img_qcow *q, uint64_t off, uint64_t len)
{
    uint64_t i = off >> q->reach_bits, last = (off + len - 1) >> q->reach_bits;

    while (i < last && !img_qcow_l1(q, i + 1))
        i++;
    return i == last ? len : ((i + 1) << q->reach_bits) - off;
}

int img_qcow_map(struct img_layer *layer, uint64_t off, uint64_t len,
                 unsigned flags, struct img_run *run, struct img_error *err)
{
    struct img_qcow *q = layer->state;
    struct img_slice *table;
    struct img_qcow_entry e;
    int r;

    *run = (struct img_run){ .off = off, .len = len,
                             .kind = IMG_RUN_ABSENT, .host = UINT64_MAX };
    r = img_qcow_table(layer, off, flags & IMG_RUN_CACHED, &table, err);
    if (r < 0)
        return r;
    if (!table) {
        run->len = no_table(q, off, len);
        return 0;
    }
    r = img_qcow_run(layer, table, off, len, &e, &run->len, err);
    img_tcache_put(layer->tables, table);
    if (r < 0 || e.kind == QCOW_ABSENT)
        return r;
    if (e.kind == QCOW_DEFLATED) {
        run->kind = IMG_RUN_PACKED;
        run->host = e.host;
        run->host_max = e.len;
        run->codec = IMG_CODEC_DEFLATE;
        return 0;
    }
    run->kind = IMG_RUN_DATA;
    run->host = e.host + (off & (q->cluster_size - 1));
    return 0;
}
