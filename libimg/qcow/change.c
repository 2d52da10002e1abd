/* qcow version 1: resizing, and another backing file.
 *
 * Both come alone.  New tables and names go to the end of the file; writing
 * the header, within one sector, makes them valid.
 */
#include "qcow/qcow.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "cache/tcache.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

static int switch_header(struct img_layer *layer,
                         const uint8_t header[QCOW_HEADER_LEN],
                         struct img_error *err)
{
    struct img_qcow *q = layer->state;
    int r = img_file_sync(layer->files[0], err);

    if (r == 0)
        r = img_file_pwrite(layer->files[0], header, QCOW_HEADER_LEN, 0, err);
    if (r == 0)
        r = img_file_sync(layer->files[0], err);
    if (r == 0)
        memcpy(q->header, header, QCOW_HEADER_LEN);
    return r;
}

/* Takes what lies at or behind size out of the tables; in the cluster that
 * size cuts, out of the cluster. */
static int clear_from(struct img_layer *layer, uint64_t size,
                      struct img_error *err)
{
    struct img_qcow *q = layer->state;
    uint64_t end = q->l1_n << q->reach_bits, n, host;
    uint64_t at = img_round_up(size, q->cluster_size);
    uint64_t reach = UINT64_C(1) << q->reach_bits;
    struct img_slice *table;
    int r = 0;

    for (; at < end && r == 0; at = img_round_down(at, reach) + reach) {
        r = img_qcow_table(layer, at, false, &table, err);
        if (r < 0 || !table)
            continue;
        img_write_lock(&q->lock);
        for (uint32_t i = img_qcow_l2_index(q, at);
             i < UINT32_C(1) << q->l2_bits; i++)
            if (img_get_be64(table->data + i * 8))
                img_qcow_set(layer, table, i, 0);
        img_rw_unlock(&q->lock);
        img_tcache_put(layer->tables, table);
        if (img_tcache_is_full(layer->tables))
            r = img_qcow_sync(layer, err);
    }
    n = size & (q->cluster_size - 1);
    if (r == 0 && n && size < end) {
        r = img_qcow_table(layer, size, false, &table, err);
        if (r == 0 && table) {
            struct img_qcow_entry e = img_qcow_decode(q, img_get_be64(
                table->data + img_qcow_l2_index(q, size) * 8));

            img_tcache_put(layer->tables, table);
            host = e.host + n;
            if (e.kind == QCOW_PLAIN && host < q->end)
                r = img_file_zero(layer->files[0], host,
                                  IMG_MIN(q->cluster_size - n, q->end - host),
                                  0, err);
        }
    }
    return r < 0 ? r : img_qcow_sync(layer, err);
}

/* Writes an L1 table of n entries to the end of the file. */
static int write_l1(struct img_layer *layer, const uint64_t *l1, uint64_t n,
                    uint64_t at, struct img_error *err)
{
    enum { PART = 8192 };
    img_autofree uint8_t *buf = malloc(PART * 8);
    int r = 0;

    if (!buf)
        return img_fail_nomem(err);
    for (uint64_t i = 0; i < n && r == 0; i += PART) {
        uint64_t part = IMG_MIN(n - i, (uint64_t)PART);

        for (uint64_t k = 0; k < part; k++)
            img_put_be64(buf + k * 8, l1[i + k]);
        r = img_file_pwrite(layer->files[0], buf, (size_t)part * 8,
                            at + i * 8, err);
    }
    return r;
}

static int longer_l1(struct img_layer *layer, uint64_t n,
                     uint8_t header[QCOW_HEADER_LEN], struct img_error *err)
{
    struct img_qcow *q = layer->state;
    uint64_t *l1 = realloc(q->l1, (size_t)n * 8), at;
    int r;

    if (!l1)
        return img_fail_nomem(err);
    q->l1 = l1;
    memset(l1 + q->l1_n, 0, (size_t)(n - q->l1_n) * 8);
    r = img_qcow_append(layer, n * 8, &at, err);
    if (r == 0)
        r = write_l1(layer, l1, n, at, err);
    if (r == 0)
        img_put_be64(header + QCOW_L1_OFF_AT, at);
    return r;
}

/* What is cut off goes after the size, for without it the disk would show what
 * lies below there; who grows clears first, whatever a cut has left. */
int img_qcow_resize(struct img_layer *layer, uint64_t size,
                    enum img_prealloc prealloc, struct img_error *err)
{
    struct img_qcow *q = layer->state;
    uint8_t header[QCOW_HEADER_LEN];
    uint64_t n, old = layer->size;
    int r;

    if (prealloc != IMG_PREALLOC_OFF)
        return img_fail(err, ENOTSUP, "%s: qcow has no preallocation",
                        layer->path);
    if (!size || size > INT64_MAX - 512)
        return img_fail(err, EINVAL, "%s: a disk of %llu bytes", layer->path,
                        (unsigned long long)size);
    size = img_round_up(size, 512);
    n = img_div_up(size, UINT64_C(1) << q->reach_bits);
    if (n > QCOW_L1_MAX)
        return img_fail(err, EFBIG, "%s: a disk of %llu bytes is too large",
                        layer->path, (unsigned long long)size);
    r = img_qcow_sync(layer, err);
    if (r == 0 && size >= old)
        r = clear_from(layer, old, err);
    if (r < 0)
        return r;
    memcpy(header, q->header, sizeof header);
    img_put_be64(header + QCOW_SIZE_AT, size);
    if (n > q->l1_n)
        r = longer_l1(layer, n, header, err);
    if (r == 0)
        r = switch_header(layer, header, err);
    if (r < 0)
        return r;
    q->l1_off = img_get_be64(header + QCOW_L1_OFF_AT);
    q->l1_n = n;
    layer->size = size;
    return size < old ? clear_from(layer, size, err) : 0;
}

int img_qcow_set_backing(struct img_layer *layer, const char *name,
                         const char *fmt, const struct img_layer *base,
                         struct img_error *err)
{
    uint8_t header[QCOW_HEADER_LEN];
    struct img_qcow *q = layer->state;
    size_t len = name ? strlen(name) : 0;
    char *copy = NULL, *format = NULL;
    uint64_t at = 0;
    int r;

    if (len > QCOW_BACKING_MAX)
        return img_fail(err, EINVAL, "%s: the name of the backing file has "
                        "%zu bytes, at most %d are possible", layer->path,
                        len, QCOW_BACKING_MAX);
    if (len)
        copy = strdup(name);
    if (len && fmt)
        format = strdup(fmt);
    if (len && (!copy || (fmt && !format))) {
        free(copy);
        free(format);
        return img_fail_nomem(err);
    }
    r = img_qcow_sync(layer, err);
    if (r == 0 && len)
        r = img_qcow_append(layer, len, &at, err);
    if (r == 0 && len)
        r = img_file_pwrite(layer->files[0], name, len, at, err);
    if (r == 0) {
        memcpy(header, q->header, sizeof header);
        img_put_be64(header + QCOW_BACKING_OFF_AT, at);
        img_put_be32(header + QCOW_BACKING_LEN_AT, (uint32_t)len);
        r = switch_header(layer, header, err);
    }
    if (r < 0) {
        free(copy);
        free(format);
        return r;
    }
    free(layer->backing);
    free(layer->backing_format);
    layer->backing = copy;
    layer->backing_format = format;
    return 0;
}
