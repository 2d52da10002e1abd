/* VDI: opening, closing, and where guest bytes are.
 *
 * The whole map is in memory; map reads it without a lock.
 */
#include "vdi/vdi.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/error.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

static int vdi_probe(const uint8_t *head, size_t len, const char *path)
{
    if (!img_vdi_is_vdi(head, len))
        return 0;
    /* All writers begin with such a text, but nothing checks it. */
    return memcmp(head, "<<< ", 4) ? 60 : 100;
}

static int load_map(struct img_layer *layer, struct img_vdi *v,
                    struct img_error *err)
{
    size_t len = (size_t)v->blocks * 4;
    int r;

    v->map = malloc(IMG_MAX(len, 4));
    v->dirty = calloc((img_vdi_pages(v->blocks) + 63) / 64 + 1,
                      sizeof *v->dirty);
    if (!v->map || !v->dirty)
        return img_fail_nomem(err);
    r = len ? img_file_pread(layer->files[0], v->map, len, v->map_off, err)
            : 0;
    for (uint32_t i = 0; r == 0 && i < v->blocks; i++)
        v->map[i] = img_get_le32(&v->map[i]);
    return r;
}

static int vdi_open(struct img_layer *layer,
                    const struct img_open_options *opts,
                    struct img_error *err)
{
    struct img_vdi *v = calloc(1, sizeof *v);
    struct img_file *file = layer->files[0];
    uint64_t len;
    int r;

    if (!v)
        return img_fail_nomem(err);
    layer->state = v;
    img_mutex_init(&v->lock);
    img_mutex_init(&v->sync_lock);
    r = img_file_size(file, &len, err);
    if (r == 0 && len < VDI_HEADER_BYTES)
        r = img_fail(err, EINVAL, "%s: not a VDI image: %llu bytes are too "
                     "short for its header", layer->path,
                     (unsigned long long)len);
    if (r == 0)
        r = img_file_pread(file, v->header, sizeof v->header, 0, err);
    if (r < 0)
        return r;
    v->file_len = len;
    v->zero_from = file->is_device ? UINT64_MAX : len;
    r = img_vdi_parse(layer, v, &layer->size, err);
    if (r == 0)
        r = load_map(layer, v, err);
    if (r < 0)
        return r;
    layer->cluster_bits = v->block_bits;
    layer->block = v->block_size;
    if (v->type == VDI_DIFF)
        r = img_vdi_find_parent(layer, opts, err);
    if (r == 0 && layer->writable && !layer->repair)
        r = img_vdi_scan(layer, err);
    if (r == 0 && layer->writable && !layer->repair)
        img_vdi_count(v);
    return r;
}

/* Leaves the blocks without a hole, for whoever appends next. */
static int vdi_finish(struct img_layer *layer, struct img_error *err)
{
    struct img_vdi *v = layer->state;
    uint64_t end = v->data_off + v->next * v->stride;

    if (!layer->repair && !layer->broken && (v->free.n || v->freed.n ||
                           (v->grown && v->file_len > end)))
        return img_vdi_pack(layer, NULL, err);
    return img_vdi_sync(layer, err);
}

static void vdi_close(struct img_layer *layer)
{
    struct img_vdi *v = layer->state;

    if (!v)
        return;
    img_mutex_destroy(&v->lock);
    img_mutex_destroy(&v->sync_lock);
    free(v->free.at);
    free(v->freed.at);
    free(v->dirty);
    free(v->map);
    free(v);
    layer->state = NULL;
}

/* Is [host, host + len) in the file?  It may have grown since we looked,
 * when somebody else writes it. */
static bool in_file(struct img_layer *layer, uint64_t host, uint64_t len)
{
    struct img_vdi *v = layer->state;
    uint64_t size;

    if (img_inside(host, len, __atomic_load_n(&v->file_len,
                                              __ATOMIC_ACQUIRE)))
        return true;
    return img_file_size(layer->files[0], &size, NULL) == 0 &&
           img_inside(host, len, size);
}

/* Zeros where the file has a hole, as far as the file's answer reaches. */
static int ask_file(struct img_layer *layer, struct img_run *run,
                    struct img_error *err)
{
    uint64_t n;
    bool is_data;
    int r = img_file_extent(layer->files[0], run->host, run->len, &is_data,
                            &n, err);

    if (r < 0)
        return r;
    run->len = IMG_MIN(run->len, n);
    if (!is_data)
        run->kind = IMG_RUN_ZERO;
    return 0;
}

static int vdi_map(struct img_layer *layer, uint64_t off, uint64_t len,
                   unsigned flags, struct img_run *run, struct img_error *err)
{
    struct img_vdi *v = layer->state;
    uint32_t block = (uint32_t)(off >> v->block_bits);
    uint32_t entry = img_vdi_entry(v, block);

    *run = (struct img_run){ .off = off, .len = img_vdi_run(v, off, len),
                             .host = UINT64_MAX };
    if (!img_vdi_is_place(entry)) {
        run->kind = entry == VDI_FREE && v->type == VDI_DIFF ?
                    IMG_RUN_ABSENT : IMG_RUN_ZERO;
        return 0;
    }
    run->kind = IMG_RUN_DATA;
    run->host = img_vdi_host(v, entry) + (off & (v->block_size - 1));
    if (!in_file(layer, run->host, run->len)) {
        /* Perhaps it is only the last of several blocks. */
        run->len = IMG_MIN(run->len, v->block_size -
                                     (off & (v->block_size - 1)));
        if (!in_file(layer, run->host, run->len))
            return img_fail(err, IMG_ECORRUPT, "%s: block map, entry %u: "
                            "block %u at 0x%llx goes beyond the end of the "
                            "file (%llu)", layer->path, block, entry,
                            (unsigned long long)img_vdi_host(v, entry),
                            (unsigned long long)v->file_len);
    }
    /* As in QEMU: what a dynamic image holds is data. */
    return flags & IMG_RUN_EXACT && v->type == VDI_STATIC ?
           ask_file(layer, run, err) : 0;
}

const struct img_format img_format_vdi = {
    .info = {
        .name = "vdi",
        .features = IMG_CAN_WRITE | IMG_CAN_CREATE | IMG_CAN_BACK |
                    IMG_CAN_RESIZE | IMG_CAN_CHECK | IMG_CAN_AMEND,
        .create_options = img_vdi_options,
    },
    .probe = vdi_probe,
    .open = vdi_open,
    .finish = vdi_finish,
    .close = vdi_close,
    .check_base = img_vdi_check_base,
    .checks_given = true,
    .create = img_vdi_create,
    .map = vdi_map,
    .reserve = img_vdi_reserve,
    .publish = img_vdi_publish,
    .abandon = img_vdi_abandon,
    .unmap = img_vdi_unmap,
    .sync = img_vdi_sync,
    .touch = img_vdi_touch,
    .resize = img_vdi_resize,
    .set_backing = img_vdi_set_backing,
    .amend = img_vdi_amend,
    .check = img_vdi_check,
    .measure = img_vdi_measure,
    .describe = img_vdi_describe,
    .defaults = img_vdi_defaults,
};
