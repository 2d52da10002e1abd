/* Resizing within the last extent; split.c adds and drops extents.
 *
 * Growing makes everything new durable before the descriptor or, where there
 * is none beside the image, the header says that it is there; shrinking says
 * so first.  What lies behind the end of the disk, in its last grain or in
 * the rest of its last grain table, is cleared when the disk grows over it.
 */
#include "vmdk/vmdk.h"
#include "base/strings.h"
#include "cache/tcache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t number(const struct vmdk_text *t, const char *key)
{
    size_t len;
    const char *v = img_vmdk_text_look(t, key, &len);

    return v ? strtoull(v, NULL, 10) : 0;
}

int img_vmdk_set_cylinders(struct vmdk_text *text, uint64_t size,
                           struct img_error *err)
{
    uint64_t heads = number(text, "ddb.geometry.heads");
    uint64_t sectors = number(text, "ddb.geometry.sectors");
    char value[24];

    if (!heads || !sectors || heads > UINT16_MAX || sectors > UINT16_MAX)
        return 0;
    snprintf(value, sizeof value, "%llu",
             (unsigned long long)(size / VMDK_SECTOR / (heads * sectors)));
    return img_vmdk_text_set(text, "ddb.geometry.cylinders", value, err);
}

/* The descriptor for the new size: its last extent's length, and the
 * cylinders that go with it.  *text is NULL where there is none. */
static int change_text(const struct vmdk_state *st,
                       const struct vmdk_extent *x, uint64_t size,
                       struct vmdk_text **text, struct img_error *err)
{
    int r;

    *text = NULL;
    if (!st->text)
        return 0;
    r = img_vmdk_text_copy(st->text, text, err);
    if (r == 0 && x->line != SIZE_MAX)
        r = img_vmdk_text_set_extent(*text, x->line,
                                     (size - x->start) / VMDK_SECTOR, err);
    return r ? r : img_vmdk_set_cylinders(*text, size, err);
}

int img_vmdk_grow_flat(struct img_file *f, const struct vmdk_extent *x,
                       uint64_t len, enum img_prealloc prealloc,
                       struct img_error *err)
{
    uint64_t had, from = x->host + x->len, to = x->host + len;
    int r;

    r = img_file_size(f, &had, err);
    if (r == 0 && had < to)
        r = img_file_truncate(f, to, err);
    if (r == 0 && had > from)
        r = img_file_zero(f, from, IMG_MIN(had, to) - from,
                          IMG_FILE_MAY_UNMAP, err);
    if (r == 0 && prealloc == IMG_PREALLOC_FALLOC)
        r = img_file_allocate(f, from, to - from, err);
    for (uint64_t at = from; r == 0 && prealloc == IMG_PREALLOC_FULL &&
                             at < to; ) {
        static const char zeros[65536];
        size_t part = (size_t)IMG_MIN(to - at, (uint64_t)sizeof zeros);

        r = img_file_pwrite(f, zeros, part, at, err);
        at += part;
    }
    return r ? r : img_file_sync(f, err);
}

/* Capacity and directories in the header: one sector, written at once. */
int img_vmdk_write_header(struct vmdk_sparse *s, uint64_t capacity,
                          uint64_t gd_off, uint64_t rgd_off,
                          struct img_error *err)
{
    uint8_t b[VMDK_SECTOR];
    int r;

    r = img_file_sync(s->file, err);
    if (r == 0)
        r = img_file_pread(s->file, b, sizeof b, 0, err);
    if (r)
        return r;
    img_put_le64(b + 12, capacity);
    if (s->h.flags & VMDK_FLAG_REDUNDANT)
        img_put_le64(b + 48, (rgd_off ? rgd_off : gd_off) / VMDK_SECTOR);
    img_put_le64(b + 56, gd_off / VMDK_SECTOR);
    r = img_file_pwrite(s->file, b, sizeof b, 0, err);
    return r ? r : img_file_sync(s->file, err);
}

/* Clears what lies behind the end: the tail of the last grain, the rest of
 * the last table. */
static int clear_behind(struct img_layer *layer, struct vmdk_extent *x,
                        struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_sparse *s = x->sparse;
    uint64_t grain = UINT64_C(1) << s->grain_bits, tail = x->len & (grain - 1);
    uint64_t n = img_div_up(x->len, grain), host;
    uint32_t i = (uint32_t)n & (s->h.gt_entries - 1);
    struct img_slice *slices[2];
    struct img_run run;
    int r;

    if (!x->len)
        return 0;
    if (tail) {
        r = img_vmdk_map(layer, x->start + x->len - 1, 1, 0, &run, err);
        if (r)
            return r;
        host = run.host + 1;
        img_write_lock(&st->lock);
        if (run.kind == IMG_RUN_DATA)
            r = img_vmdk_grow_file(s, host + grain - tail, err);
        img_rw_unlock(&st->lock);
        if (r == 0 && run.kind == IMG_RUN_DATA)
            r = img_file_zero(s->file, host, grain - tail, 0, err);
        if (r)
            return r;
    }
    if (!i)
        return 0;
    r = img_vmdk_tables_get(layer, s, (size_t)(n >> s->gt_bits), slices, err);
    if (r)
        return r;
    img_write_lock(&st->lock);
    for (; i < s->h.gt_entries; i++)
        img_vmdk_set_entry(layer, slices, i, 0);
    img_rw_unlock(&st->lock);
    img_vmdk_tables_put(layer, slices);
    return img_vmdk_sync(layer, err);
}

/* A copy of a directory with new tables behind the old ones, written to
 * `at`. */
static int new_directory(struct vmdk_sparse *s, const uint32_t *old, size_t n,
                         uint64_t tables, uint64_t at, uint32_t **gd,
                         struct img_error *err)
{
    size_t len = (size_t)img_round_up(n * 4, VMDK_SECTOR);
    uint32_t *list = calloc(n, sizeof *list);
    uint8_t *raw = calloc(1, len);
    int r;

    if (!list || !raw) {
        free(list);
        free(raw);
        return img_fail_nomem(err);
    }
    for (size_t i = 0; i < n; i++) {
        list[i] = i < s->n_gd ? old[i]
                  : (uint32_t)((tables + (i - s->n_gd) * s->gt_len) /
                               VMDK_SECTOR);
        img_put_le32(raw + 4 * i, list[i]);
    }
    r = img_file_pwrite(s->file, raw, len, at, err);
    free(raw);
    if (r) {
        free(list);
        return r;
    }
    *gd = list;
    return 0;
}

/* The new directories stay where they are if their last sector has room for
 * the new entries, else they move to the end of the file. */
static int grow_tables(struct vmdk_sparse *s, uint64_t capacity,
                       struct img_error *err)
{
    size_t n = (size_t)img_div_up(capacity, s->h.grain << s->gt_bits);
    uint64_t room = img_round_up(s->n_gd * 4, VMDK_SECTOR);
    uint64_t len = img_round_up(n * 4, VMDK_SECTOR);
    uint64_t tables = (n - s->n_gd) * (uint64_t)s->gt_len, at = s->next, end;
    uint64_t gd_off = s->gd_off, rgd_off = s->rgd_off;
    uint32_t *gd = NULL, *rgd = NULL;
    bool move = len > room;
    int r = 0;

    end = at + (tables + (move ? len : 0)) * (s->rgd ? 2 : 1);
    end = img_round_up(end, UINT64_C(1) << s->grain_bits);
    if (n > s->n_gd)
        r = img_vmdk_grow_file(s, end, err);
    if (r == 0 && n > s->n_gd && s->file->is_device)
        r = img_file_write_zeros(s->file, at, end - at, err);
    if (r == 0 && n > s->n_gd && s->rgd) {
        rgd_off = move ? at : rgd_off;
        at += move ? len : 0;
        r = new_directory(s, s->rgd, n, at, rgd_off, &rgd, err);
        at += tables;
    }
    if (r == 0 && n > s->n_gd) {
        gd_off = move ? at : gd_off;
        at += move ? len : 0;
        r = new_directory(s, s->gd, n, at, gd_off, &gd, err);
    }
    if (r == 0)
        r = img_vmdk_write_header(s, capacity, gd_off, rgd_off, err);
    if (r) {
        /* Not zeros any more, and perhaps the header names it. */
        if (n > s->n_gd && s->file_len >= end)
            s->next = end;
        free(gd);
        free(rgd);
        return r;
    }
    if (n > s->n_gd) {
        free(s->gd);
        s->gd = gd;
        if (rgd)
            free(s->rgd);
        s->rgd = rgd ? rgd : s->rgd;
        s->n_gd = n;
        s->next = end;
    }
    s->gd_off = gd_off;
    s->rgd_off = rgd_off;
    s->h.capacity = capacity;
    return 0;
}

/* Grains wholly behind the new end are given back. */
static int shrink_sparse(struct img_layer *layer, struct vmdk_extent *x,
                         uint64_t len, struct img_error *err)
{
    struct vmdk_sparse *s = x->sparse;
    uint64_t grain = UINT64_C(1) << s->grain_bits, done = 0;
    uint64_t off = x->start + img_round_up(len, grain);
    uint64_t end = x->start + x->len;
    int r;

    r = img_vmdk_sync(layer, err);
    if (r == 0)
        r = img_vmdk_write_header(s, len / VMDK_SECTOR, s->gd_off,
                                  s->rgd_off, err);
    if (r == 0)
        s->h.capacity = len / VMDK_SECTOR;
    while (off < end && r == 0) {
        r = img_vmdk_unmap(layer, off, end - off, IMG_UNMAP_DROP, &done, err);
        off += done;
    }
    if (r == 0)
        r = img_vmdk_sync(layer, err);
    if (r)
        return r;
    s->n_gd = (size_t)img_div_up(s->h.capacity, s->h.grain << s->gt_bits);
    return 0;
}

/* Shrinking that did not come to its end leaves an extent that is longer than
 * the descriptor says, with grains that nobody should see again. */
static int drop_behind(struct img_layer *layer, struct vmdk_extent *x,
                       struct img_error *err)
{
    uint64_t len = x->len;
    int r = 0;

    if (x->sparse->h.capacity > len / VMDK_SECTOR) {
        x->len = x->sparse->h.capacity * VMDK_SECTOR;
        r = shrink_sparse(layer, x, len, err);
        x->len = len;
    }
    return r;
}

static int grow_sparse(struct img_layer *layer, struct vmdk_extent *x,
                       uint64_t len, struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_sparse *s = x->sparse;
    int r;

    if (img_div_up(len, UINT64_C(1) << (s->grain_bits + s->gt_bits)) * 4 >
        VMDK_DIRECTORY_MAX / 2)
        return img_fail(err, EFBIG, "%s: %llu bytes are too many for a "
                        "sparse VMDK extent", layer->path,
                        (unsigned long long)len);
    r = img_vmdk_sync(layer, err);
    if (r == 0)
        r = drop_behind(layer, x, err);
    if (r == 0)
        r = clear_behind(layer, x, err);
    if (r)
        return r;
    img_write_lock(&st->lock);
    r = grow_tables(s, len / VMDK_SECTOR, err);
    img_rw_unlock(&st->lock);
    return r;
}

/* The end of a file that another extent lies in is not there for growing, and
 * not to be cut off. */
static bool is_shared(const struct img_layer *layer,
                      const struct vmdk_extent *x)
{
    const struct vmdk_state *st = layer->state;

    for (size_t i = 0; i < st->n_extents; i++) {
        const struct vmdk_extent *other = &st->extents[i];

        if (other != x && other->kind == VMDK_FLAT &&
            other->host + other->len > x->host &&
            img_vmdk_same_file(layer->files[other->file],
                               layer->files[x->file]))
            return true;
    }
    return false;
}

int img_vmdk_grow_last(struct img_layer *layer, uint64_t len,
                       enum img_prealloc prealloc, struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_extent *x = &st->extents[st->n_extents - 1];

    if (x->sparse)
        return grow_sparse(layer, x, len, err);
    if (x->kind != VMDK_FLAT)
        return 0;
    if (is_shared(layer, x))
        return img_fail(err, ENOTSUP, "%s: another extent lies behind the "
                        "last one in %s", layer->path,
                        layer->files[x->file]->path);
    return img_vmdk_grow_flat(layer->files[x->file], x, len, prealloc, err);
}

int img_vmdk_cut_last(struct img_layer *layer, uint64_t len,
                      struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_extent *x = &st->extents[st->n_extents - 1];

    if (x->sparse)
        return shrink_sparse(layer, x, len, err);
    if (x->kind != VMDK_FLAT || is_shared(layer, x))
        return 0;
    return img_file_truncate(layer->files[x->file], x->host + len, err);
}

static int check_kind(struct img_layer *layer, struct vmdk_extent *x,
                      uint64_t size, enum img_prealloc prealloc,
                      struct img_error *err)
{
    struct vmdk_state *st = layer->state;

    if (x->sparse && (x->kind != VMDK_SPARSE || x->sparse->h.compressed))
        return img_fail(err, ENOTSUP, "%s: this sort of VMDK image cannot be "
                        "resized", layer->path);
    if (x->sparse && prealloc != IMG_PREALLOC_OFF)
        return img_fail(err, ENOTSUP, "%s: sparse VMDK extents know no "
                        "preallocation", layer->path);
    if (prealloc == IMG_PREALLOC_METADATA)
        return img_fail(err, ENOTSUP, "%s: flat extents have no metadata to "
                        "allocate", layer->path);
    if (x->access != VMDK_RW)
        return img_fail(err, EROFS, "%s: its last extent is not for writing",
                        layer->path);
    if (size % VMDK_SECTOR || size > VMDK_SIZE_MAX)
        return img_fail(err, EINVAL, "%s: %llu bytes are not whole sectors",
                        layer->path, (unsigned long long)size);
    if (size <= x->start && st->n_extents > 1 && !img_vmdk_is_split(st))
        return img_fail(err, ENOTSUP, "%s: only its last extent, from %llu "
                        "on, can be resized", layer->path,
                        (unsigned long long)x->start);
    return 0;
}

/* Where it is the header that counts, it may say less by now. */
static void settle_size(struct img_layer *layer, struct vmdk_extent *x)
{
    if (x->sparse && x->len > x->sparse->h.capacity * VMDK_SECTOR) {
        x->len = x->sparse->h.capacity * VMDK_SECTOR;
        layer->size = x->start + x->len;
    }
}

/* The header of a file that is the whole image says its size, the descriptor
 * inside repeats it. */
static bool header_counts(const struct vmdk_state *st,
                          const struct vmdk_extent *x)
{
    return st->text_room && x->sparse && !x->file;
}

static int resize_last(struct img_layer *layer, struct vmdk_extent *x,
                       uint64_t size, enum img_prealloc prealloc,
                       struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    bool grows = size > layer->size, header_first = header_counts(st, x);
    uint64_t len = size - x->start;
    struct vmdk_text *text;
    bool done = true;
    int r;

    r = change_text(st, x, size, &text, err);
    if (r == 0 && grows)
        r = img_vmdk_grow_last(layer, len, prealloc, err);
    if (r == 0 && !grows && header_first)
        r = img_vmdk_cut_last(layer, len, err);
    if (r) {
        img_vmdk_text_free(text);
        settle_size(layer, x);
        return r;
    }
    if (text)
        r = img_vmdk_text_store(layer, text, VMDK_MAY_MOVE, &done, err);
    if (!done) {
        if (grows)
            img_vmdk_cut_last(layer, x->len, NULL);
        settle_size(layer, x);
        return img_fail_prefix(err, r, "%s: its descriptor could not follow "
                               "the new size", layer->path);
    }
    if (r == 0 && !grows && !header_first)
        r = img_vmdk_cut_last(layer, len, err);
    x->len = len;
    layer->size = size;
    return r;
}

int img_vmdk_resize(struct img_layer *layer, uint64_t size,
                    enum img_prealloc prealloc, struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_extent *x = &st->extents[st->n_extents - 1];
    bool split = img_vmdk_is_split(st);
    int r;

    r = check_kind(layer, x, size, prealloc, err);
    if (r || size == layer->size)
        return r;
    if (split && size > img_vmdk_split_room(layer) && x->kind != VMDK_ZERO)
        return img_vmdk_split_grow(layer, size, prealloc, err);
    if (split && size <= x->start && st->n_extents > 1)
        return img_vmdk_split_drop(layer, size, err);
    return resize_last(layer, x, size, prealloc, err);
}
