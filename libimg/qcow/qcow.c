/* qcow version 1: opening and closing. */
#include "qcow/qcow.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/info.h"
#include "base/strings.h"
#include "cache/tcache.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

static int qcow_probe(const uint8_t *head, size_t len, const char *path)
{
    return len >= QCOW_HEADER_LEN && img_get_be32(head) == QCOW_MAGIC &&
           img_get_be32(head + QCOW_VERSION_AT) == 1 ? 100 : 0;
}

static int check_header(struct img_layer *layer, struct img_qcow *q,
                        struct img_error *err)
{
    uint32_t version = img_get_be32(q->header + QCOW_VERSION_AT);
    uint32_t crypt = img_get_be32(q->header + QCOW_CRYPT_AT);

    q->cluster_bits = q->header[QCOW_CLUSTER_BITS_AT];
    q->l2_bits = q->header[QCOW_L2_BITS_AT];
    if (img_get_be32(q->header) != QCOW_MAGIC)
        return img_fail(err, EINVAL, "%s: not a qcow image (magic 0x%08x)",
                        layer->path, img_get_be32(q->header));
    if (version != 1)
        return img_fail(err, version == 2 || version == 3 ? EINVAL : ENOTSUP,
                        "%s: qcow version %u%s", layer->path, version,
                        version == 2 || version == 3 ?
                        ": that is format qcow2" : " is not known");
    if (q->cluster_bits < 9 || q->cluster_bits > 16)
        return img_fail(err, IMG_ECORRUPT, "%s: header: clusters of 2^%u "
                        "bytes, 2^9 to 2^16 are possible", layer->path,
                        q->cluster_bits);
    if (q->l2_bits < 6 || q->l2_bits > 13)
        return img_fail(err, IMG_ECORRUPT, "%s: header: L2 tables of 2^%u "
                        "entries, 2^6 to 2^13 are possible", layer->path,
                        q->l2_bits);
    if (crypt == 1)
        return img_fail(err, ENOTSUP, "%s: the image is encrypted (AES), "
                        "which is not supported", layer->path);
    if (crypt)
        return img_fail(err, ENOTSUP, "%s: header: encryption method %u is "
                        "not known", layer->path, crypt);
    return 0;
}

static int check_tables(struct img_layer *layer, struct img_qcow *q,
                        struct img_error *err)
{
    uint64_t size = img_get_be64(q->header + QCOW_SIZE_AT);

    q->cluster_size = UINT64_C(1) << q->cluster_bits;
    q->l2_bytes = 8u << q->l2_bits;
    q->reach_bits = q->cluster_bits + q->l2_bits;
    q->l1_off = img_get_be64(q->header + QCOW_L1_OFF_AT);
    q->l1_n = img_div_up(size, UINT64_C(1) << q->reach_bits);
    if (size > INT64_MAX || q->l1_n > QCOW_L1_MAX)
        return img_fail(err, EFBIG, "%s: header: a disk of %llu bytes is too "
                        "large", layer->path, (unsigned long long)size);
    if (q->l1_off < QCOW_HEADER_LEN ||
        !img_inside(q->l1_off, q->l1_n * 8, q->file_len))
        return img_fail(err, IMG_ECORRUPT, "%s: header: the L1 table, %llu "
                        "entries at 0x%llx, goes beyond the end of the file "
                        "(%llu)", layer->path, (unsigned long long)q->l1_n,
                        (unsigned long long)q->l1_off,
                        (unsigned long long)q->file_len);
    layer->size = size;
    layer->cluster_bits = q->cluster_bits;
    layer->block = (uint32_t)q->cluster_size;
    return 0;
}

static int load_l1(struct img_layer *layer, struct img_qcow *q,
                   struct img_error *err)
{
    size_t len = (size_t)q->l1_n * 8;
    int r;

    q->l1 = malloc(IMG_MAX(len, 8));
    if (!q->l1)
        return img_fail_nomem(err);
    r = len ? img_file_pread(layer->files[0], q->l1, len, q->l1_off, err) : 0;
    for (uint64_t i = 0; i < q->l1_n && r == 0; i++)
        q->l1[i] = img_get_be64(&q->l1[i]);
    return r;
}

static int load_backing(struct img_layer *layer, struct img_qcow *q,
                        struct img_error *err)
{
    uint64_t at = img_get_be64(q->header + QCOW_BACKING_OFF_AT);
    uint32_t len = img_get_be32(q->header + QCOW_BACKING_LEN_AT);
    char *name;
    int r;

    if (!at)
        return 0;
    if (len > QCOW_BACKING_MAX)
        return img_fail(err, IMG_ECORRUPT, "%s: header: a backing file name "
                        "of %u bytes, %d are possible", layer->path, len,
                        QCOW_BACKING_MAX);
    if (!len)
        return 0;
    if (!img_inside(at, len, q->file_len))
        return img_fail(err, IMG_ECORRUPT, "%s: header: the backing file "
                        "name, %u bytes at 0x%llx, goes beyond the end of "
                        "the file", layer->path, len, (unsigned long long)at);
    name = calloc(1, len + 1);
    if (!name)
        return img_fail_nomem(err);
    r = img_file_pread(layer->files[0], name, len, at, err);
    if (r < 0 || !*name) {
        free(name);
        return r;
    }
    layer->backing = name;
    return 0;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* L2 tables that overlap would be changed behind each other's back. */
static int check_apart(struct img_layer *layer, struct img_qcow *q,
                       struct img_error *err)
{
    uint64_t *sorted = malloc(IMG_MAX((size_t)q->l1_n, 1) * 8);
    uint64_t end = IMG_MAX(q->l1_off + q->l1_n * 8,
                           (uint64_t)QCOW_HEADER_LEN);
    int r = 0;

    if (!sorted)
        return img_fail_nomem(err);
    memcpy(sorted, q->l1, (size_t)q->l1_n * 8);
    qsort(sorted, (size_t)q->l1_n, 8, compare);
    for (uint64_t i = 0, before = 0; i < q->l1_n && r == 0; i++) {
        uint64_t at = sorted[i];

        if (!at)
            continue;
        if (at < before || (at < end && at + q->l2_bytes > q->l1_off) ||
            at < QCOW_HEADER_LEN ||
            !img_inside(at, q->l2_bytes, q->file_len))
            r = img_fail(err, IMG_ECORRUPT, "%s: L1 table: the L2 table at "
                         "0x%llx overlaps something else or goes beyond the "
                         "end of the file; it is not safe to write",
                         layer->path, (unsigned long long)at);
        before = at + q->l2_bytes;
    }
    free(sorted);
    return r;
}

/* A file may end where the disk ends, in the middle of a cluster: the rest of
 * that cluster is in use all the same. */
static int find_end(struct img_layer *layer, struct img_qcow *q,
                    struct img_error *err)
{
    struct img_slice *table = NULL;
    struct img_qcow_entry e;
    uint64_t run;
    int r = 0;

    if (layer->size & (q->cluster_size - 1))
        r = img_qcow_table(layer, layer->size - 1, false, &table, err);
    if (r < 0 || !table)
        return r;
    /* Damage is for whoever reads there, or checks. */
    if (img_qcow_run(layer, table, layer->size - 1, 1, &e, &run, NULL) == 0 &&
        e.kind == QCOW_PLAIN)
        q->end = IMG_MAX(q->end, e.host + q->cluster_size);
    img_tcache_put(layer->tables, table);
    return 0;
}

static int qcow_open(struct img_layer *layer,
                     const struct img_open_options *opts,
                     struct img_error *err)
{
    struct img_qcow *q = calloc(1, sizeof *q);
    struct img_file *file = layer->files[0];
    int r;

    if (!q)
        return img_fail_nomem(err);
    layer->state = q;
    img_mutex_init(&q->sync_lock);
    img_rwlock_init(&q->lock);
    r = img_file_size(file, &q->file_len, err);
    if (r == 0 && q->file_len < QCOW_HEADER_LEN)
        r = img_fail(err, EINVAL, "%s: not a qcow image: %llu bytes are too "
                     "short for its header", layer->path,
                     (unsigned long long)q->file_len);
    if (r == 0)
        r = img_file_pread(file, q->header, sizeof q->header, 0, err);
    if (r == 0)
        r = check_header(layer, q, err);
    if (r == 0)
        r = check_tables(layer, q, err);
    if (r == 0)
        r = load_l1(layer, q, err);
    if (r == 0)
        r = load_backing(layer, q, err);
    if (r < 0)
        return r;
    q->end = q->zero_from = q->file_len;
    if (layer->writable && file->is_device)
        return img_fail(err, ENOTSUP, "%s: a qcow image on a device cannot "
                        "be written, for it grows with its file",
                        layer->path);
    if (!layer->writable || layer->repair)
        return 0;
    r = check_apart(layer, q, err);
    return r < 0 ? r : find_end(layer, q, err);
}

/* Cuts what the file has grown by beyond the last cluster. */
static int qcow_finish(struct img_layer *layer, struct img_error *err)
{
    struct img_qcow *q = layer->state;
    int r = img_qcow_sync(layer, err);

    if (r < 0 || layer->broken || !q->grown || q->file_len <= q->end)
        return r;
    r = img_file_truncate(layer->files[0], q->end, err);
    if (r == 0)
        __atomic_store_n(&q->file_len, q->end, __ATOMIC_RELEASE);
    return r;
}

static void qcow_close(struct img_layer *layer)
{
    struct img_qcow *q = layer->state;

    if (!q)
        return;
    img_mutex_destroy(&q->sync_lock);
    img_rwlock_destroy(&q->lock);
    free(q->free.at);
    free(q->freed.at);
    free(q->l1);
    free(q);
    layer->state = NULL;
}

static int qcow_codec(struct img_layer *layer, enum img_codec *codec,
                      struct img_error *err)
{
    *codec = IMG_CODEC_DEFLATE;
    return 0;
}

static int qcow_describe(struct img_layer *layer, struct img_info *info,
                         struct img_error *err)
{
    struct img_qcow *q = layer->state;

    info->cluster_size = (uint32_t)q->cluster_size;
    return 0;
}

const struct img_format img_format_qcow = {
    .info = {
        .name = "qcow",
        .features = IMG_CAN_WRITE | IMG_CAN_CREATE | IMG_CAN_BACK |
                    IMG_CAN_RESIZE | IMG_CAN_COMPRESS | IMG_CAN_CHECK,
        .create_options = img_qcow_options,
    },
    .probe = qcow_probe,
    .open = qcow_open,
    .finish = qcow_finish,
    .close = qcow_close,
    .create = img_qcow_create,
    .codec = qcow_codec,
    .map = img_qcow_map,
    .reserve = img_qcow_reserve,
    .publish = img_qcow_publish,
    .abandon = img_qcow_abandon,
    .unmap = img_qcow_unmap,
    .sync = img_qcow_sync,
    .resize = img_qcow_resize,
    .set_backing = img_qcow_set_backing,
    .check = img_qcow_check,
    .measure = img_qcow_measure,
    .describe = qcow_describe,
    .defaults = img_qcow_defaults,
};
