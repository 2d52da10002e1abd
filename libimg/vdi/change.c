/* VDI: resizing, changing UUIDs, giving unused blocks back.
 *
 * All of it comes alone.  Each step leaves an image that is whole: what the
 * header says changes by writing its one sector, last.
 */
#include "vdi/vdi.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"
#include "base/strings.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

enum { BUFFER = 1 << 20 };

/* Writes the header with another shape. */
static int switch_shape(struct img_layer *layer, uint64_t size,
                        uint32_t blocks, struct img_error *err)
{
    struct img_vdi *v = layer->state;
    uint8_t old[VDI_HEADER_BYTES];
    int r;

    memcpy(old, v->header, sizeof old);
    img_put_le64(v->header + VDI_SIZE_AT, size);
    img_put_le32(v->header + VDI_BLOCKS_AT, blocks);
    img_put_le32(v->header + VDI_ALLOCATED_AT, v->next);
    img_put_le32(v->header + VDI_MAP_OFF_AT, v->map_off);
    img_put_le32(v->header + VDI_DATA_OFF_AT, v->data_off);
    r = img_file_sync(layer->files[0], err);
    if (r == 0)
        r = img_vdi_write_header(layer, err);
    if (r == 0)
        r = img_file_sync(layer->files[0], err);
    if (r == 0) {
        layer->size = size;
    } else {
        /* What the old header says is whole still. */
        memcpy(v->header, old, sizeof old);
        v->header_dirty = true;
    }
    return r;
}

/* What lies behind the end of the disk in its last block would be seen when
 * the disk grows. */
static int clear_tail(struct img_layer *layer, uint64_t size,
                      struct img_error *err)
{
    struct img_vdi *v = layer->state;
    uint64_t used = size & (v->block_size - 1);
    uint32_t entry;

    if (!used)
        return 0;
    entry = v->map[size >> v->block_bits];
    if (!img_vdi_is_place(entry))
        return 0;
    return img_file_zero(layer->files[0], img_vdi_host(v, entry) + used,
                         v->block_size - used, IMG_FILE_MAY_UNMAP, err);
}

static int shrink(struct img_layer *layer, uint64_t size, uint32_t blocks,
                  struct img_error *err)
{
    struct img_vdi *v = layer->state;
    int r = 0;

    img_lock(&v->lock);
    for (uint32_t i = blocks; i < v->blocks && r == 0; i++) {
        if (img_vdi_is_place(v->map[i]))
            r = img_vdi_list_push(&v->freed, v->map[i]);
        if (r == 0 && v->map[i] != VDI_FREE)
            img_vdi_set(v, i, VDI_FREE);
    }
    img_unlock(&v->lock);
    if (r < 0)
        return img_fail_nomem(err);
    r = img_vdi_sync(layer, err);
    if (r == 0)
        r = clear_tail(layer, size, err);
    if (r == 0)
        r = switch_shape(layer, size, blocks, err);
    if (r < 0)
        return r;
    v->blocks = blocks;
    return img_vdi_pack(layer, NULL, err);
}

/* ---- growing ------------------------------------------------------------ */

/* More entries in memory; the new ones are VDI_FREE. */
static int widen(struct img_vdi *v, uint32_t blocks, struct img_error *err)
{
    size_t words = (img_vdi_pages(blocks) + 63) / 64 + 1;
    size_t had = (img_vdi_pages(v->blocks) + 63) / 64 + 1;
    uint32_t *map = realloc(v->map, IMG_MAX((size_t)blocks, 1) * 4);
    uint64_t *dirty;

    if (map)
        v->map = map;
    dirty = map ? realloc(v->dirty, words * sizeof *dirty) : NULL;
    if (!dirty)
        return img_fail_nomem(err);
    v->dirty = dirty;
    memset(dirty + had, 0, (words - had) * sizeof *dirty);
    memset(v->map + v->blocks, 0xff, ((size_t)blocks - v->blocks) * 4);
    return 0;
}

static int write_map_at(struct img_layer *layer, uint64_t at,
                        const uint32_t *map, uint32_t first, uint32_t end,
                        struct img_error *err)
{
    img_autofree uint8_t *buf = malloc(BUFFER);
    int r = 0;

    if (!buf)
        return img_fail_nomem(err);
    while (first < end && r == 0) {
        uint32_t n = IMG_MIN(end - first, (uint32_t)BUFFER / 4);

        for (uint32_t i = 0; i < n; i++)
            img_put_le32(buf + i * 4, map[first + i]);
        r = img_file_pwrite(layer->files[0], buf, (size_t)n * 4,
                            at + (uint64_t)first * 4, err);
        first += n;
    }
    return r;
}

static int hold(struct img_layer *layer, uint64_t end, struct img_error *err)
{
    struct img_vdi *v = layer->state;
    int r;

    if (end <= v->file_len)
        return 0;
    if (layer->files[0]->is_device)
        return img_fail(err, ENOSPC, "%s: the device has %llu bytes, %llu are "
                        "needed", layer->path,
                        (unsigned long long)v->file_len,
                        (unsigned long long)end);
    r = img_file_truncate(layer->files[0], end, err);
    if (r == 0)
        v->file_len = end;
    return r;
}

/* Blocks 0 .. n - 1 of the file go to its end. */
static int move_up(struct img_layer *layer, uint32_t n, struct img_error *err)
{
    struct img_vdi *v = layer->state;
    img_autofree uint8_t *buf = malloc(BUFFER);
    img_autofree uint32_t *moved = malloc(IMG_MAX((size_t)n, 1) *
                                          sizeof *moved);
    uint32_t to = IMG_MAX(v->next, n), count = 0;
    int r;

    if (!buf || !moved)
        return img_fail_nomem(err);
    for (uint32_t i = 0; i < v->blocks; i++)
        if (img_vdi_is_place(v->map[i]) && v->map[i] < n)
            moved[count++] = i;
    r = hold(layer, v->data_off + (to + (uint64_t)count) * v->stride, err);
    for (uint32_t k = 0; k < count && r == 0; k++)
        r = img_vdi_copy_block(layer, v->map[moved[k]], to + k, buf, BUFFER,
                               err);
    if (r < 0)
        return r;
    img_lock(&v->lock);
    for (uint32_t k = 0; k < count; k++)
        img_vdi_set(v, moved[k], to + k);
    v->next = to + count;
    img_unlock(&v->lock);
    return img_vdi_sync(layer, err);
}

/* Lays out a longer map where the first blocks were. */
static int move_map(struct img_layer *layer, uint64_t size, uint32_t blocks,
                    struct img_error *err)
{
    struct img_vdi *v = layer->state;
    uint32_t n = (uint32_t)img_div_up((uint64_t)blocks * 4, v->stride);
    uint64_t data_off = v->data_off + n * v->stride;
    img_autofree uint32_t *map = NULL;
    uint32_t old_map = v->map_off, old_data = v->data_off;
    int r;

    if (data_off > UINT32_MAX)
        return img_fail(err, EFBIG, "%s: the blocks would begin at %llu, "
                        "which the header cannot say", layer->path,
                        (unsigned long long)data_off);
    r = move_up(layer, n, err);
    if (r == 0)
        r = hold(layer, data_off, err);
    map = malloc((size_t)blocks * 4);
    if (r == 0 && !map)
        r = img_fail_nomem(err);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < blocks; i++)
        map[i] = img_vdi_is_place(v->map[i]) ? v->map[i] - n : v->map[i];
    r = write_map_at(layer, v->data_off, map, 0, blocks, err);
    if (r < 0)
        return r;
    v->map_off = v->data_off;
    v->data_off = (uint32_t)data_off;
    v->next -= n;
    r = switch_shape(layer, size, blocks, err);
    if (r < 0) {
        v->map_off = old_map;
        v->data_off = old_data;
        v->next += n;
        return r;
    }
    memcpy(v->map, map, (size_t)blocks * 4);
    v->free.n = 0;
    return 0;
}

/* A static image has a place for every block. */
static int allocate_from(struct img_layer *layer, uint32_t block,
                         struct img_error *err)
{
    struct img_vdi *v = layer->state;
    uint64_t n = v->blocks - block;
    int r = hold(layer, v->data_off + (v->next + n) * v->stride, err);

    if (r < 0)
        return r;
    img_lock(&v->lock);
    for (; block < v->blocks; block++)
        img_vdi_set(v, block, v->next++);
    img_unlock(&v->lock);
    return img_vdi_sync(layer, err);
}

static int grow(struct img_layer *layer, uint64_t size, uint32_t blocks,
                struct img_error *err)
{
    struct img_vdi *v = layer->state;
    uint32_t had = v->blocks;
    int r = widen(v, blocks, err);

    if (r == 0)
        r = clear_tail(layer, layer->size, err);
    /* From here on the file ends with the last block. */
    if (r == 0)
        r = img_vdi_pack(layer, NULL, err);
    if (r < 0)
        return r;
    if (v->map_off + (uint64_t)blocks * 4 > v->data_off) {
        r = move_map(layer, size, blocks, err);
    } else {
        r = write_map_at(layer, v->map_off, v->map, had, blocks, err);
        if (r == 0)
            r = switch_shape(layer, size, blocks, err);
    }
    if (r == 0) {
        v->blocks = blocks;
        img_vdi_count(v);
    } else {
        img_vdi_recount(v);
    }
    if (!layer->files[0]->is_device)
        v->zero_from = v->file_len;
    return r == 0 && v->type == VDI_STATIC ? allocate_from(layer, had, err)
                                           : r;
}

int img_vdi_resize(struct img_layer *layer, uint64_t size,
                   enum img_prealloc prealloc, struct img_error *err)
{
    struct img_vdi *v = layer->state;
    uint64_t blocks;
    int r;

    if (prealloc != IMG_PREALLOC_OFF)
        return img_fail(err, ENOTSUP, "%s: VDI has no preallocation when "
                        "resizing", layer->path);
    if (size > UINT64_MAX - 511)
        return img_fail(err, EFBIG, "%s: a disk of %llu bytes", layer->path,
                        (unsigned long long)size);
    size = img_round_up(size, 512);
    blocks = img_div_up(size, v->block_size);
    if (blocks > VDI_MAX_BLOCKS)
        return img_fail(err, EFBIG, "%s: a disk of %llu bytes would have %llu "
                        "blocks, more than %u", layer->path,
                        (unsigned long long)size, (unsigned long long)blocks,
                        VDI_MAX_BLOCKS);
    r = img_vdi_sync(layer, err);
    if (r < 0)
        return r;
    if (size < layer->size)
        return shrink(layer, size, (uint32_t)blocks, err);
    return grow(layer, size, IMG_MAX((uint32_t)blocks, v->blocks), err);
}

/* ---- amend -------------------------------------------------------------- */

static int block_is_zero(struct img_layer *layer, uint32_t entry,
                         uint8_t *buf, bool *zero, struct img_error *err)
{
    struct img_vdi *v = layer->state;
    uint64_t at = img_vdi_host(v, entry), done = 0, n;
    bool is_data;
    int r = 0;

    *zero = true;
    while (*zero && done < v->block_size && r == 0) {
        r = img_file_extent(layer->files[0], at + done, v->block_size - done,
                            &is_data, &n, err);
        n = IMG_MIN(n, v->block_size - done);
        if (r == 0 && is_data) {
            n = IMG_MIN(n, (uint64_t)BUFFER);
            r = img_file_pread(layer->files[0], buf, (size_t)n, at + done,
                               err);
            *zero = r == 0 && img_is_zero(buf, (size_t)n);
        }
        done += n;
    }
    return r;
}

static int compact(struct img_layer *layer, const struct img_job *job,
                   struct img_error *err)
{
    struct img_vdi *v = layer->state;
    img_autofree uint8_t *buf = malloc(BUFFER);
    bool zero;
    int r = 0;

    if (!buf)
        return img_fail_nomem(err);
    if (v->type == VDI_STATIC)
        return img_fail(err, ENOTSUP, "%s: a static VDI image cannot be "
                        "compacted", layer->path);
    for (uint32_t i = 0; i < v->blocks && r == 0; i++) {
        uint32_t entry = v->map[i];

        if (job && job->progress && i % 16 == 0 &&
            job->progress(job->opaque, i, v->blocks))
            return img_fail(err, ECANCELED, "cancelled");
        if (!img_vdi_is_place(entry))
            continue;
        r = block_is_zero(layer, entry, buf, &zero, err);
        if (r < 0 || !zero)
            continue;
        img_lock(&v->lock);
        r = img_vdi_list_push(&v->freed, entry);
        if (r == 0)
            img_vdi_set(v, i, VDI_ZERO);
        img_unlock(&v->lock);
        if (r < 0)
            return img_fail_nomem(err);
    }
    return r < 0 ? r : img_vdi_pack(layer, job, err);
}

static int change_uuids(struct img_layer *layer, const char *const *settings,
                        struct img_error *err)
{
    static const struct { const char *key; unsigned at; bool parent; } k[] = {
        { "parent_uuid", VDI_PARENT_AT, true },
        { "parent_modification_uuid", VDI_PARENT_MODIFIED_AT, true },
        { "modification_uuid", VDI_MODIFIED_AT, false },
        { "uuid", VDI_UUID_AT, false },
    };
    struct img_vdi *v = layer->state;
    uint8_t header[VDI_HEADER_BYTES];
    bool given, any = false;
    int r = 0;

    memcpy(header, v->header, sizeof header);
    /* From the parent that the image then has, so the parent's come first. */
    for (size_t i = 0; i < IMG_COUNT(k) && r == 0; i++) {
        if (k[i].at == VDI_UUID_AT &&
            img_vdi_uuid_derived(settings, v->type, layer->size,
                                 v->block_size, header + VDI_PARENT_AT,
                                 header + VDI_UUID_AT)) {
            any = true;
            continue;
        }
        r = img_vdi_uuid_setting(settings, k[i].key, header + k[i].at, &given,
                                 err);
        if (r == 0 && given && k[i].parent && v->type != VDI_DIFF)
            r = img_fail(err, EINVAL, "%s: %s: it is no differencing image",
                         layer->path, k[i].key);
        any |= given;
    }
    if (r < 0 || !any)
        return r;
    memcpy(v->header, header, sizeof header);
    v->header_dirty = true;
    return img_vdi_sync(layer, err);
}

int img_vdi_amend(struct img_layer *layer, const char *const *settings,
                  const struct img_job *job, struct img_error *err)
{
    bool want = false;
    int r = img_settings_check(settings, img_vdi_options, "vdi", err);

    for (const struct img_option_info *o = img_vdi_options;
         r == 0 && o->name; o++)
        if (!(o->flags & IMG_OPTION_AMEND) && img_setting(settings, o->name))
            r = img_fail(err, ENOTSUP, "%s: option '%s' cannot be changed in "
                         "an existing VDI image", layer->path, o->name);
    if (r == 0)
        r = img_setting_bool(settings, "compact", &want, err);
    if (r == 0)
        r = change_uuids(layer, settings, err);
    return r < 0 || !want ? r : compact(layer, job, err);
}
