/* VDI: where the bytes of a write go.
 *
 * New blocks are taken from the list of free ones, then from the end.  The
 * number of a block in the file stays below the number of blocks of the disk,
 * for other programs size their tables by that.
 *
 * A block that is given up (only DROP does that) goes to `freed`, and from
 * there to `free` once a sync has taken its old entry from the disk.  Zeros
 * and discards leave a block its place and only punch a hole there: so the
 * blocks stay without gaps, and nothing has to be moved or ordered.
 *
 * Locks: v->lock for everything but looking at the map.
 */
#include "vdi/vdi.h"
#include "base/checked.h"
#include "base/error.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

enum {
    GROW = 1 << 20,             /* the file grows by so much at least */
    PLACE_MAX = 16 << 20        /* fresh bytes in one answer */
};

int img_vdi_list_push(struct img_vdi_list *list, uint32_t value)
{
    if (list->n == list->room) {
        size_t room = list->room ? list->room * 2 : 64;
        uint32_t *at = realloc(list->at, room * sizeof *at);

        if (!at)
            return -ENOMEM;
        list->at = at;
        list->room = room;
    }
    list->at[list->n++] = value;
    return 0;
}

void img_vdi_set(struct img_vdi *v, uint32_t block, uint32_t entry)
{
    size_t page = (size_t)block * 4 / VDI_PAGE;

    __atomic_store_n(&v->map[block], entry, __ATOMIC_RELEASE);
    v->dirty[page / 64] |= UINT64_C(1) << page % 64;
    v->map_dirty = true;
}

uint64_t img_vdi_run(const struct img_vdi *v, uint64_t off, uint64_t len)
{
    uint64_t end = off + len, at = (off >> v->block_bits) + 1;
    uint32_t entry = img_vdi_entry(v, (uint32_t)(at - 1));
    bool place = img_vdi_is_place(entry);

    if (place && v->extra)
        return IMG_MIN(len, (at << v->block_bits) - off);
    for (; at << v->block_bits < end; at++) {
        uint32_t next = img_vdi_entry(v, (uint32_t)at);

        if (next != entry + place || img_vdi_is_place(next) != place)
            break;
        entry = next;
    }
    return IMG_MIN(end, at << v->block_bits) - off;
}

static void in_place(const struct img_vdi *v, const struct img_want *want,
                     uint32_t entry, struct img_place *place)
{
    place->off = want->off;
    place->len = img_vdi_run(v, want->off, want->len);
    place->host = img_vdi_host(v, entry) +
                  (want->off & (v->block_size - 1));
}

/* How many blocks from `block` on are not allocated, for at most len bytes
 * from off. */
static uint32_t count_fresh(const struct img_vdi *v, uint32_t block,
                            uint64_t off, uint64_t len)
{
    uint32_t max = v->extra ? 1 : IMG_MAX(PLACE_MAX >> v->block_bits, 1);
    uint32_t n = 1;

    while (n < max &&
           (uint64_t)(block + n) << v->block_bits < off + len &&
           !img_vdi_is_place(img_vdi_entry(v, block + n)))
        n++;
    return n;
}

/* Makes the file hold blocks 0 .. n - 1; v->lock is held. */
static int grow_file(struct img_layer *layer, struct img_vdi *v, uint32_t n,
                     struct img_error *err)
{
    struct img_file *file = layer->files[0];
    uint64_t end = v->data_off + n * v->stride, want;
    int r;

    if (end <= v->file_len)
        return 0;
    if (file->is_device)
        return img_fail(err, ENOSPC, "%s: the device has no room for block "
                        "%u, which would end at %llu", layer->path, n - 1,
                        (unsigned long long)end);
    want = IMG_MAX(end, IMG_MIN(v->file_len + GROW,
                                v->data_off + v->blocks * v->stride));
    r = img_file_truncate(file, want, err);
    if (r < 0)
        return r;
    __atomic_store_n(&v->file_len, want, __ATOMIC_RELEASE);
    v->grown = true;
    return 0;
}

/* Takes up to *n blocks that lie behind each other; v->lock is held. */
static int take(struct img_layer *layer, struct img_vdi *v, uint32_t *n,
                uint32_t *index, bool *zeroed, struct img_error *err)
{
    int r;

    if (v->free.n) {
        *index = v->free.at[--v->free.n];
        *n = 1;
        *zeroed = false;
        return 0;
    }
    if (v->next >= v->blocks)
        return img_fail(err, ENOSPC, "%s: all %u blocks are in use",
                        layer->path, v->blocks);
    *n = IMG_MIN(*n, v->blocks - v->next);
    r = grow_file(layer, v, v->next + *n, err);
    if (r < 0)
        return r;
    *index = v->next;
    v->next += *n;
    *zeroed = v->data_off + *index * v->stride >= v->zero_from;
    return 0;
}

static int reserve_fresh(struct img_layer *layer, const struct img_want *want,
                         struct img_place *place, struct img_error *err)
{
    struct img_vdi *v = layer->state;
    uint32_t block = (uint32_t)(want->off >> v->block_bits), index = 0, n;
    uint64_t begin = (uint64_t)block << v->block_bits;
    int r;

    n = count_fresh(v, block, want->off, want->len);
    img_lock(&v->lock);
    while (v->next >= v->blocks && !v->free.n && v->freed.n) {
        /* Every block is taken or waits for the map on the disk. */
        img_unlock(&v->lock);
        r = img_vdi_sync(layer, err);
        if (r < 0)
            return r;
        img_lock(&v->lock);
    }
    r = take(layer, v, &n, &index, &place->zeroed, err);
    img_unlock(&v->lock);
    if (r < 0)
        return r;
    place->fresh = true;
    place->off = want->off;
    place->fill_off = begin;
    place->fill_len = IMG_MIN((uint64_t)n << v->block_bits,
                              layer->size - begin);
    place->len = IMG_MIN(want->len, place->fill_off + place->fill_len -
                                    want->off);
    place->host = img_vdi_host(v, index) + (want->off - begin);
    place->token = index;
    return 0;
}

int img_vdi_reserve(struct img_layer *layer, const struct img_want *want,
                    struct img_place *place, struct img_error *err)
{
    struct img_vdi *v = layer->state;
    uint32_t entry;

    *place = (struct img_place){ .off = want->off };
    if (want->packed)
        return img_fail(err, ENOTSUP, "%s: VDI has no compression",
                        layer->path);
    entry = img_vdi_entry(v, (uint32_t)(want->off >> v->block_bits));
    if (img_vdi_is_place(entry))
        in_place(v, want, entry, place);
    else if (!want->in_place)
        return reserve_fresh(layer, want, place, err);
    return 0;
}

int img_vdi_publish(struct img_layer *layer, const struct img_place *place,
                    struct img_error *err)
{
    struct img_vdi *v = layer->state;
    uint32_t block = (uint32_t)(place->fill_off >> v->block_bits);
    uint32_t n = (uint32_t)img_div_up(place->fill_len, v->block_size);

    if (!place->fresh)
        return 0;
    img_lock(&v->lock);
    for (uint32_t i = 0; i < n; i++)
        img_vdi_set(v, block + i, (uint32_t)place->token + i);
    img_unlock(&v->lock);
    return 0;
}

void img_vdi_abandon(struct img_layer *layer, const struct img_place *place)
{
    struct img_vdi *v = layer->state;
    uint32_t n = (uint32_t)img_div_up(place->fill_len, v->block_size);
    uint32_t index = (uint32_t)place->token;

    if (!place->fresh)
        return;
    img_lock(&v->lock);
    if (index + n == v->next) {
        v->next = index;
        /* Something may have been written there. */
        v->zero_from = IMG_MAX(v->zero_from,
                               v->data_off + (index + n) * v->stride);
    } else {
        /* Where there is no memory the block is lost until the next check
         * or clean close, as after a crash. */
        for (uint32_t i = 0; i < n; i++)
            if (img_vdi_list_push(&v->free, index + i) < 0)
                break;
    }
    img_unlock(&v->lock);
}

/* ---- zeros, discards ---------------------------------------------------- */

/* The blocks of [off, off + len) have no place; they become ZERO or FREE. */
static void unmap_placeless(struct img_vdi *v, uint64_t off, uint64_t len,
                            enum img_unmap kind)
{
    uint32_t block = (uint32_t)(off >> v->block_bits);
    uint32_t end = (uint32_t)img_div_up(off + len, v->block_size);
    uint32_t entry = kind == IMG_UNMAP_DROP ? VDI_FREE : VDI_ZERO;

    if (img_vdi_entry(v, block) == entry ||
        (v->type != VDI_DIFF && entry == VDI_ZERO &&
         kind != IMG_UNMAP_ZERO_OWN))
        return;                 /* reads as wanted already */
    img_lock(&v->lock);
    for (; block < end; block++)
        img_vdi_set(v, block, entry);
    img_unlock(&v->lock);
}

static int drop(struct img_layer *layer, struct img_vdi *v, uint64_t off,
                uint64_t len, struct img_error *err)
{
    uint32_t block = (uint32_t)(off >> v->block_bits);
    uint32_t end = (uint32_t)img_div_up(off + len, v->block_size);
    int r = 0;

    img_lock(&v->lock);
    for (; block < end && r == 0; block++) {
        r = img_vdi_list_push(&v->freed, img_vdi_entry(v, block));
        if (r == 0)
            img_vdi_set(v, block, VDI_FREE);
    }
    img_unlock(&v->lock);
    return r < 0 ? img_fail_nomem(err) : 0;
}

static int punch(struct img_layer *layer, struct img_vdi *v, uint64_t off,
                 uint64_t len, enum img_unmap kind, struct img_error *err)
{
    uint32_t entry = img_vdi_entry(v, (uint32_t)(off >> v->block_bits));
    unsigned flags = IMG_FILE_FAST_ONLY;
    int r;

    if (kind != IMG_UNMAP_ZERO_KEEP)
        flags |= IMG_FILE_MAY_UNMAP;
    r = img_file_zero(layer->files[0], img_vdi_host(v, entry) +
                      (off & (v->block_size - 1)), len, flags, err);
    if (r == -ENOTSUP && kind == IMG_UNMAP_DISCARD)
        return 0;               /* only a hint, and it cannot be taken */
    return r;
}

int img_vdi_unmap(struct img_layer *layer, uint64_t off, uint64_t len,
                  enum img_unmap kind, uint64_t *done, struct img_error *err)
{
    struct img_vdi *v = layer->state;
    uint64_t at = off, end = off + len, n;
    int r = 0;

    *done = 0;
    while (at < end) {
        n = img_vdi_run(v, at, end - at);
        if (!img_vdi_is_place(img_vdi_entry(v, (uint32_t)(at >>
                                                          v->block_bits))))
            unmap_placeless(v, at, n, kind);
        else if (kind == IMG_UNMAP_DROP)
            r = drop(layer, v, at, n, err);
        else
            r = punch(layer, v, at, n, kind, err);
        if (r < 0)
            break;
        at += n;
    }
    *done = at - off;
    return r < 0 && *done == 0 ? r : 0;
}
