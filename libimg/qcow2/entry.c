/* One L2 entry: what it means (the description, "Cluster mapping"). */
#include "qcow2/qcow2.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/error.h"
#include "file/file.h"

static int fail(struct qcow2 *q, uint64_t index, const char *why,
                const struct qcow2_entry *e, struct img_error *err)
{
    return img_fail(err, IMG_ECORRUPT, "%s: L2 entry 0x%llx of guest offset "
                    "0x%llx: %s", q->layer->path, (unsigned long long)e->raw,
                    (unsigned long long)(index << q->cluster_bits), why);
}

static int decode_packed(struct qcow2 *q, uint64_t index,
                         struct qcow2_entry *e, struct img_error *err)
{
    unsigned offset_bits = 62 - (q->cluster_bits - 8);
    uint64_t sectors = (e->raw & ~(QCOW2_COPIED | QCOW2_PACKED)) >>
                       offset_bits;

    if (q->data)
        return fail(q, index, "compressed, in an image with an external "
                    "data file", e, err);
    e->kind = QCOW2_PACKED_RUN;
    e->has_host = true;
    e->copied = false;
    e->host = e->raw & ((UINT64_C(1) << offset_bits) - 1);
    e->packed_len = (uint32_t)((sectors + 1) * 512 - (e->host & 511));
    if (!e->host || e->host >= q->end)
        return fail(q, index, "compressed data beyond the end of the file",
                    e, err);
    return 0;
}

static int decode_sub(struct qcow2 *q, uint64_t index, struct qcow2_entry *e,
                      struct img_error *err)
{
    uint32_t allocated = (uint32_t)e->bitmap;
    uint32_t zeros = (uint32_t)(e->bitmap >> 32);

    if (allocated & zeros)
        return fail(q, index, "a subcluster is both allocated and zero", e,
                    err);
    if (allocated && !e->has_host)
        return fail(q, index, "subclusters are allocated without a host "
                    "cluster", e, err);
    e->kind = e->has_host ? QCOW2_NORMAL : QCOW2_UNUSED;
    return 0;
}

int img_qcow2_entry_decode(struct qcow2 *q, const uint8_t *at, uint64_t index,
                           struct qcow2_entry *e, struct img_error *err)
{
    e->raw = img_get_be64(at);
    e->bitmap = img_qcow2_has_subclusters(q) ? img_get_be64(at + 8) : 0;
    e->packed_len = 0;
    if (e->raw & QCOW2_PACKED)
        return decode_packed(q, index, e, err);

    e->host = e->raw & QCOW2_OFFSET_MASK;
    e->copied = e->raw & QCOW2_COPIED;
    /* Offset 0 is a place only in an external data file. */
    e->has_host = e->host || (q->data && e->copied);
    if (!img_is_aligned(e->host, q->cluster_size))
        return fail(q, index, "the host offset is not cluster aligned", e,
                    err);
    if (e->has_host && !q->data && e->host >= q->end)
        return fail(q, index, "the host cluster lies beyond the end of the "
                    "file", e, err);
    if (e->has_host && q->data && e->host != index << q->cluster_bits &&
        (q->h.autoclear & QCOW2_DATA_FILE_RAW))
        return fail(q, index, "the host offset differs from the guest's, in "
                    "a raw data file", e, err);
    if (img_qcow2_has_subclusters(q))
        return decode_sub(q, index, e, err);
    if ((e->raw & QCOW2_ZERO) && q->h.version >= 3)
        e->kind = QCOW2_ZEROS;
    else
        e->kind = e->has_host ? QCOW2_NORMAL : QCOW2_UNUSED;
    return 0;
}

uint64_t img_qcow2_entry_needs(const struct qcow2 *q, uint64_t index,
                               const struct qcow2_entry *e)
{
    uint64_t guest = index << q->cluster_bits, len = q->cluster_size;

    if (!q->data || e->kind != QCOW2_NORMAL)
        return 0;
    if (img_qcow2_has_subclusters(q)) {
        uint32_t allocated = (uint32_t)e->bitmap;

        if (!allocated)
            return 0;
        len = (UINT64_C(32) - (unsigned)__builtin_clz(allocated))
              << q->block_bits;
    }
    if (guest >= q->h.size)
        return e->host + 1;     /* no guest's, but state that was saved */
    return e->host + IMG_MIN(len, q->h.size - guest);
}

int img_qcow2_entry_is_there(struct qcow2 *q, uint64_t index,
                             const struct qcow2_entry *e,
                             struct img_error *err)
{
    uint64_t needed = img_qcow2_entry_needs(q, index, e);
    int r;

    if (needed <= q->data_end || !q->layer->files[q->data])
        return 0;
    r = img_qcow2_measure_data(q, err);
    if (r < 0 || needed <= q->data_end)
        return r;
    /* Nothing is wrong with the image, which may get its file back. */
    return img_fail(err, EIO, "%s: the bytes of guest offset 0x%llx lie "
                    "beyond the end of the data file %s", q->layer->path,
                    (unsigned long long)(index << q->cluster_bits),
                    q->layer->files[q->data]->path);
}

enum qcow2_kind img_qcow2_entry_sub(const struct qcow2 *q,
                                    const struct qcow2_entry *e, unsigned sub)
{
    if (e->kind == QCOW2_PACKED_RUN || !img_qcow2_has_subclusters(q))
        return e->kind;
    if (e->bitmap >> (32 + sub) & 1)
        return QCOW2_ZEROS;
    return e->bitmap >> sub & 1 ? QCOW2_NORMAL : QCOW2_UNUSED;
}

void img_qcow2_entry_store(struct qcow2 *q, uint8_t *at, uint64_t raw,
                           uint64_t bitmap)
{
    img_put_be64(at, raw);
    if (img_qcow2_has_subclusters(q))
        img_put_be64(at + 8, bitmap);
}

uint64_t img_qcow2_entry_packed(const struct qcow2 *q, uint64_t host,
                                uint32_t len)
{
    unsigned offset_bits = 62 - (q->cluster_bits - 8);
    uint64_t sectors = (host + len - 1) / 512 - host / 512;

    return QCOW2_PACKED | sectors << offset_bits | host;
}
