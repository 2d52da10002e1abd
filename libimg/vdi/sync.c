/* VDI: bringing the map and the header to the disk, and closing gaps.
 *
 * Order of a sync: the header's count of blocks (it only rises here), the
 * blocks' data; then the map.  So at every moment a block that the map on the
 * disk names is whole, and other programs that append at the count cannot hit
 * one in use.  A crash leaves a count that is too high.
 */
#include "vdi/vdi.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

/* Pages of the map on their way to the disk. */
struct batch {
    uint32_t *pages;            /* numbers, ascending */
    uint8_t *data;              /* their bytes, little-endian */
    size_t n;
    size_t freed;               /* entries of v->freed that become free */
};

static void batch_free(struct batch *b)
{
    free(b->pages);
    free(b->data);
}

/* Bytes of the map in page number `page`. */
static size_t page_len(const struct img_vdi *v, size_t page)
{
    return IMG_MIN((size_t)VDI_PAGE, (size_t)v->blocks * 4 - page * VDI_PAGE);
}

/* Copies what is dirty and marks it clean; v->lock is held. */
static int collect(struct img_vdi *v, struct batch *b, struct img_error *err)
{
    size_t pages = img_vdi_pages(v->blocks), words = (pages + 63) / 64;

    *b = (struct batch){ .freed = v->freed.n };
    if (!v->map_dirty)
        return 0;
    for (size_t i = 0; i < words; i++)
        b->n += (size_t)__builtin_popcountll(v->dirty[i]);
    b->pages = malloc(b->n * sizeof *b->pages);
    b->data = malloc(b->n * VDI_PAGE);
    if (!b->pages || !b->data) {
        batch_free(b);
        return img_fail_nomem(err);
    }
    b->n = 0;
    for (size_t i = 0; i < words; i++) {
        for (uint64_t left = v->dirty[i]; left; left &= left - 1) {
            size_t page = i * 64 + (size_t)__builtin_ctzll(left);
            uint8_t *to = b->data + b->n * VDI_PAGE;

            for (size_t k = 0; k < page_len(v, page) / 4; k++)
                img_put_le32(to + k * 4, v->map[page * (VDI_PAGE / 4) + k]);
            b->pages[b->n++] = (uint32_t)page;
        }
        v->dirty[i] = 0;
    }
    v->map_dirty = false;
    return 0;
}

static int write_pages(struct img_layer *layer, const struct batch *b,
                       struct img_error *err)
{
    struct img_vdi *v = layer->state;
    size_t i = 0;
    int r = 0;

    while (i < b->n && r == 0) {
        size_t n = 1, len;

        while (i + n < b->n && b->pages[i + n] == b->pages[i] + n)
            n++;
        len = (n - 1) * VDI_PAGE + page_len(v, b->pages[i + n - 1]);
        r = img_file_pwrite(layer->files[0], b->data + i * VDI_PAGE, len,
                            v->map_off + (uint64_t)b->pages[i] * VDI_PAGE,
                            err);
        i += n;
    }
    return r;
}

/* The batch is on the disk, or was not written and is dirty again. */
static void settle(struct img_vdi *v, const struct batch *b, bool written)
{
    img_lock(&v->lock);
    if (!written) {
        for (size_t i = 0; i < b->n; i++)
            v->dirty[b->pages[i] / 64] |= UINT64_C(1) << b->pages[i] % 64;
        v->map_dirty |= b->n > 0;
    } else {
        size_t i = 0;

        while (i < b->freed &&
               img_vdi_list_push(&v->free, v->freed.at[i]) == 0)
            i++;
        v->freed.n -= i;
        if (v->freed.n)
            memmove(v->freed.at, v->freed.at + i,
                    v->freed.n * sizeof(uint32_t));
    }
    img_unlock(&v->lock);
}

int img_vdi_write_header(struct img_layer *layer, struct img_error *err)
{
    struct img_vdi *v = layer->state;
    uint8_t header[VDI_HEADER_BYTES];
    size_t len;
    int r;

    img_lock(&v->lock);
    memcpy(header, v->header, sizeof header);
    v->header_dirty = false;
    img_unlock(&v->lock);
    /* An image of another program may have its map right behind a short
     * header. */
    len = IMG_MIN(sizeof header, v->map_off);
    r = img_file_pwrite(layer->files[0], header, len, 0, err);
    if (r < 0) {
        img_lock(&v->lock);
        v->header_dirty = true;
        img_unlock(&v->lock);
    }
    return r;
}

static int sync_locked(struct img_layer *layer, struct img_error *err)
{
    struct img_vdi *v = layer->state;
    struct batch b;
    bool header;
    int r;

    img_lock(&v->lock);
    if (v->next > img_get_le32(v->header + VDI_ALLOCATED_AT)) {
        img_put_le32(v->header + VDI_ALLOCATED_AT, v->next);
        v->header_dirty = true;
    }
    header = v->header_dirty;
    r = collect(v, &b, err);
    img_unlock(&v->lock);
    if (r < 0)
        return r;
    if (header)
        r = img_vdi_write_header(layer, err);
    if (r == 0)
        r = img_file_sync(layer->files[0], err);
    if (r == 0 && b.n) {
        r = write_pages(layer, &b, err);
        if (r == 0)
            r = img_file_sync(layer->files[0], err);
    }
    settle(v, &b, r == 0);
    batch_free(&b);
    return r;
}

int img_vdi_sync(struct img_layer *layer, struct img_error *err)
{
    struct img_vdi *v = layer->state;
    int r;

    if (!layer->writable)
        return 0;
    img_lock(&v->sync_lock);
    if (!layer->broken)
        r = sync_locked(layer, err);
    else if (v->map_dirty || v->header_dirty)
        r = img_fail(err, EIO, "%s: was found to be corrupt and is not "
                     "written any more; what was written since the last flush "
                     "is lost", layer->path);
    else
        r = img_file_sync(layer->files[0], err);
    img_unlock(&v->sync_lock);
    return r;
}

/* A differencing image knows the modification UUID of its parent; so the
 * first write after opening makes a new one.  In an image that was created
 * with a given UUID and never written it follows from that: what is created
 * so and filled once is the same every time. */
int img_vdi_touch(struct img_layer *layer, uint64_t off, uint64_t len,
                  struct img_error *err)
{
    struct img_vdi *v = layer->state;
    uint8_t *modified = v->header + VDI_MODIFIED_AT;
    uint8_t uuid[VDI_UUID_LEN], pristine[VDI_UUID_LEN];
    int r = 0;

    if (__atomic_load_n(&v->touched, __ATOMIC_ACQUIRE))
        return 0;
    img_lock(&v->sync_lock);
    if (!v->touched) {
        img_lock(&v->lock);
        img_vdi_uuid_derive(v->header + VDI_UUID_AT, "created", pristine);
        if (!memcmp(modified, pristine, VDI_UUID_LEN))
            img_vdi_uuid_derive(modified, "written", uuid);
        else
            r = img_vdi_uuid_random(uuid, err);
        if (r == 0)
            memcpy(modified, uuid, VDI_UUID_LEN);
        img_unlock(&v->lock);
        if (r == 0)
            r = img_vdi_write_header(layer, err);
        /* Before any byte of what others rest on is another. */
        if (r == 0)
            r = img_file_sync(layer->files[0], err);
        if (r == 0)
            __atomic_store_n(&v->touched, true, __ATOMIC_RELEASE);
    }
    img_unlock(&v->sync_lock);
    return r;
}

/* ---- closing gaps ------------------------------------------------------- */

int img_vdi_copy_block(struct img_layer *layer, uint32_t from, uint32_t to,
                       void *buf, size_t buf_len, struct img_error *err)
{
    struct img_vdi *v = layer->state;
    uint64_t src = v->data_off + from * v->stride;
    uint64_t dst = v->data_off + to * v->stride, done = 0;
    int r = 0;

    while (done < v->stride && r == 0) {
        size_t n = (size_t)IMG_MIN(buf_len, v->stride - done);

        r = img_file_pread(layer->files[0], buf, n, src + done, err);
        if (r == 0 && img_is_zero(buf, n))
            r = img_file_zero(layer->files[0], dst + done, n,
                              IMG_FILE_MAY_UNMAP, err);
        else if (r == 0)
            r = img_file_pwrite(layer->files[0], buf, n, dst + done, err);
        done += n;
    }
    return r;
}

/* owner[i]: the guest block that has block i of the file, or VDI_FREE. */
static uint32_t *owners(const struct img_vdi *v, uint32_t *used,
                        struct img_error *err)
{
    uint32_t *owner = malloc(IMG_MAX((size_t)v->next, 1) * sizeof *owner);

    *used = 0;
    if (!owner) {
        img_fail_nomem(err);
        return NULL;
    }
    memset(owner, 0xff, (size_t)v->next * sizeof *owner);
    for (uint32_t i = 0; i < v->blocks; i++) {
        uint32_t entry = v->map[i];

        if (img_vdi_is_place(entry) && entry < v->next) {
            owner[entry] = i;
            (*used)++;
        }
    }
    return owner;
}

void img_vdi_count(struct img_vdi *v)
{
    img_autofree uint32_t *owner = NULL;
    uint32_t used;

    v->next = 0;
    v->free.n = v->freed.n = 0;
    for (uint32_t i = 0; i < v->blocks; i++)
        if (img_vdi_is_place(v->map[i]) && v->map[i] >= v->next)
            v->next = v->map[i] + 1;
    owner = owners(v, &used, NULL);
    /* Without memory the holes stay what they are: lost space. */
    for (uint32_t i = v->next; owner && i-- > 0;)
        if (owner[i] == VDI_FREE && img_vdi_list_push(&v->free, i) < 0)
            break;
}

/* The same where the map on the disk may not be the one in memory: no block
 * that it names is free before the next sync. */
void img_vdi_recount(struct img_vdi *v)
{
    uint32_t next = v->next;
    struct img_vdi_list all;

    img_vdi_count(v);
    for (uint32_t i = v->next; i < next; i++)
        if (img_vdi_list_push(&v->free, i) < 0)
            break;
    v->next = IMG_MAX(v->next, next);
    all = v->free;
    v->free = v->freed;
    v->freed = all;
}

/* Copies every block from `used` on to a hole below, then says so in the
 * map. */
static int move_down(struct img_layer *layer, struct img_vdi *v,
                     uint32_t *owner, uint32_t used,
                     const struct img_job *job, struct img_error *err)
{
    enum { BUFFER = 1 << 20, BATCH = 256 };
    img_autofree uint8_t *buf = malloc(BUFFER);
    uint32_t hole = 0, moved[BATCH], to[BATCH], n = 0, done = 0;
    int r = 0;

    if (!buf)
        return img_fail_nomem(err);
    for (uint32_t i = used; i < v->next && r == 0; i++) {
        if (owner[i] != VDI_FREE) {
            while (owner[hole] != VDI_FREE)
                hole++;
            r = img_vdi_copy_block(layer, i, hole, buf, BUFFER, err);
            moved[n] = owner[i];
            to[n++] = hole++;
        }
        if (r == 0 && n && (n == BATCH || i + 1 == v->next)) {
            img_lock(&v->lock);
            for (uint32_t k = 0; k < n; k++)
                img_vdi_set(v, moved[k], to[k]);
            img_unlock(&v->lock);
            r = sync_locked(layer, err);
            n = 0;
        }
        if (r == 0 && job && job->progress && ++done % 16 == 0 &&
            job->progress(job->opaque, i - used, v->next - used))
            r = img_fail(err, ECANCELED, "cancelled");
    }
    return r;
}

/* Lowers the count, then cuts the file behind the last block. */
static int cut(struct img_layer *layer, struct img_vdi *v, uint32_t used,
               struct img_error *err)
{
    uint64_t end = v->data_off + used * v->stride, size;
    int r;

    /* As long as the file is not cut. */
    v->zero_from = IMG_MAX(v->zero_from, v->data_off + v->next * v->stride);
    v->next = used;
    v->free.n = v->freed.n = 0;
    if (img_get_le32(v->header + VDI_ALLOCATED_AT) != used) {
        img_put_le32(v->header + VDI_ALLOCATED_AT, used);
        r = img_vdi_write_header(layer, err);
        if (r == 0)
            r = img_file_sync(layer->files[0], err);
        if (r < 0)
            return r;
    }
    r = img_file_size(layer->files[0], &size, err);
    if (r < 0 || layer->files[0]->is_device || size <= end)
        return r;
    r = img_file_truncate(layer->files[0], end, err);
    if (r == 0) {
        __atomic_store_n(&v->file_len, end, __ATOMIC_RELEASE);
        v->zero_from = end;
    }
    return r;
}

int img_vdi_pack(struct img_layer *layer, const struct img_job *job,
                 struct img_error *err)
{
    struct img_vdi *v = layer->state;
    img_autofree uint32_t *owner = NULL;
    uint32_t used;
    int r;

    img_lock(&v->sync_lock);
    r = sync_locked(layer, err);
    if (r == 0) {
        owner = owners(v, &used, err);
        r = owner ? 0 : -ENOMEM;
    }
    if (r == 0)
        r = move_down(layer, v, owner, used, job, err);
    if (r == 0)
        r = cut(layer, v, used, err);
    else
        img_vdi_recount(v);     /* some holes may have been filled */
    img_unlock(&v->sync_lock);
    return r;
}
