/* Persistent dirty bitmaps.
 *
 * Writes are not recorded yet, so the first one withdraws the bitmaps in the
 * way the format provides for: the autoclear bit that vouches for them goes.
 */
#include "qcow2/qcow2.h"
#include "base/bytes.h"
#include "file/file.h"

int img_qcow2_bitmaps_load(struct qcow2 *q, struct img_error *err)
{
    return 0;
}

int img_qcow2_bitmaps_touch(struct qcow2 *q, uint64_t off, uint64_t len,
                            struct img_error *err)
{
    uint8_t bits[8];
    int r = 0;

    img_lock(&q->lock);
    if (q->h.autoclear & QCOW2_BITMAPS) {
        q->h.autoclear &= ~QCOW2_BITMAPS;
        img_put_be64(bits, q->h.autoclear);
        r = img_file_pwrite(q->file, bits, sizeof bits, 88, err);
        if (r == 0)
            r = img_file_sync(q->file, err);
        if (r < 0)
            q->h.autoclear |= QCOW2_BITMAPS;
        else
            q->h.n_bitmaps = 0;
    }
    img_unlock(&q->lock);
    return r;
}

int img_qcow2_bitmaps_save(struct qcow2 *q, struct img_error *err)
{
    return 0;
}

void img_qcow2_bitmaps_free(struct qcow2 *q)
{
}

int img_qcow2_bitmaps_resize(struct qcow2 *q, uint64_t size,
                             struct img_error *err)
{
    return img_qcow2_bitmaps_touch(q, 0, 0, err);
}

int img_qcow2_bitmaps_describe(struct qcow2 *q, struct img_info *info,
                               struct img_error *err)
{
    return 0;
}

int img_qcow2_bitmaps_visit(struct qcow2 *q,
                            int visit(void *, uint64_t off, uint64_t len),
                            void *opaque, struct img_error *err)
{
    return 0;
}
