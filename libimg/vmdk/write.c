/* Writing: places for new grains, and the tables that point to them.
 *
 * New grains go to the end of the file, or where a grain was given back
 * before the last write-back.  The order in which all this reaches the disk
 * is in sync.c.
 */
#include "vmdk/vmdk.h"
#include "cache/tcache.h"

#include <stdlib.h>
#include <string.h>

/* Table entries are 32-bit sectors. */
#define HOST_MAX ((uint64_t)VMDK_SECTOR << 32)

int img_vmdk_grow_file(struct vmdk_sparse *s, uint64_t len,
                       struct img_error *err)
{
    int r;

    if (len > HOST_MAX)
        return img_fail(err, EFBIG, "%s: a sparse VMDK extent holds at most "
                        "2 TiB of data", s->file->path);
    if (len <= s->file_len)
        return 0;
    if (s->file->is_device)
        return img_fail(err, ENOSPC, "%s: the device has %llu bytes, %llu "
                        "are needed", s->file->path,
                        (unsigned long long)s->file_len,
                        (unsigned long long)len);
    r = img_file_truncate(s->file, len, err);
    if (r == 0)
        s->file_len = len;
    return r;
}

/* Called with the lock held for writing. */
int img_vmdk_take_grains(struct vmdk_sparse *s, uint32_t n, uint64_t *host,
                       bool *zeroed, struct img_error *err)
{
    uint64_t len = (uint64_t)n << s->grain_bits;
    int r;

    *zeroed = false;
    if (img_vmdk_free_take(s, len, host))
        return 0;
    r = img_vmdk_grow_file(s, s->next + len, err);
    if (r)
        return r;
    *host = s->next;
    *zeroed = !s->file->is_device;
    s->next += len;
    return 0;
}

void img_vmdk_directory_changed(struct vmdk_sparse *s, size_t g)
{
    if (s->gd_from == s->gd_to) {
        s->gd_from = g;
        s->gd_to = g + 1;
    } else {
        s->gd_from = IMG_MIN(s->gd_from, g);
        s->gd_to = IMG_MAX(s->gd_to, g + 1);
    }
}

static int new_table(struct img_layer *layer, struct vmdk_sparse *s,
                     uint64_t off, uint32_t kind, struct img_error *err)
{
    struct img_slice *slice;
    int r = img_tcache_new_slice(layer->tables, s->file, off, s->gt_len, kind,
                                 &slice, err);

    if (r == 0) {
        img_tcache_dirty(layer->tables, slice, 0, s->gt_len);
        img_tcache_put(layer->tables, slice);
    }
    return r;
}

/* A table, and its second copy, where directory entry g has none.  Each copy
 * may be missing on its own. */
static int make_tables(struct img_layer *layer, struct vmdk_sparse *s,
                       size_t g, struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    uint64_t unit = UINT64_C(1) << s->grain_bits, off, end;
    int r = 0;

    img_write_lock(&st->lock);
    off = s->next;
    end = img_round_up(off + s->gt_len * (UINT64_C(1) + (s->rgd != NULL)),
                       unit);
    if (!s->gd[g] || (s->rgd && !s->rgd[g])) {
        r = img_vmdk_grow_file(s, end, err);
        if (r == 0)
            s->next = end;
        if (r == 0 && s->rgd && !s->rgd[g]) {
            r = new_table(layer, s, off, VMDK_KIND_RGT, err);
            if (r == 0)
                s->rgd[g] = (uint32_t)(off / VMDK_SECTOR);
            off += s->gt_len;
        }
        if (r == 0 && !s->gd[g]) {
            r = new_table(layer, s, off, VMDK_KIND_GT, err);
            if (r == 0)
                s->gd[g] = (uint32_t)(off / VMDK_SECTOR);
        }
        img_vmdk_directory_changed(s, g);
    }
    img_rw_unlock(&st->lock);
    return r;
}

static bool needs_tables(struct img_layer *layer, struct vmdk_sparse *s,
                         size_t g)
{
    struct vmdk_state *st = layer->state;
    bool needs;

    img_read_lock(&st->lock);
    needs = !s->gd[g] || (s->rgd && !s->rgd[g]);
    img_rw_unlock(&st->lock);
    return needs;
}

/* Both copies of table g, made if need be; slices[1] is NULL where there is
 * no second copy. */
int img_vmdk_tables_get(struct img_layer *layer, struct vmdk_sparse *s,
                      size_t g, struct img_slice *slices[2],
                      struct img_error *err)
{
    int r = 0;

    slices[0] = slices[1] = NULL;
    if (needs_tables(layer, s, g))
        r = make_tables(layer, s, g, err);
    if (r == 0)
        r = img_vmdk_table_get(layer, s, g, false, &slices[0], err);
    if (r == 0 && s->rgd) {
        r = img_vmdk_table_get(layer, s, g, true, &slices[1], err);
        if (r)
            img_tcache_put(layer->tables, slices[0]);
    }
    return r;
}

void img_vmdk_tables_put(struct img_layer *layer, struct img_slice *slices[2])
{
    img_tcache_put(layer->tables, slices[0]);
    if (slices[1])
        img_tcache_put(layer->tables, slices[1]);
}

/* Called with the lock held for writing. */
void img_vmdk_set_entry(struct img_layer *layer, struct img_slice *slices[2],
                      uint32_t i, uint32_t v)
{
    for (int c = 0; c < 2 && slices[c]; c++) {
        img_put_le32(slices[c]->data + 4 * (size_t)i, v);
        img_tcache_dirty(layer->tables, slices[c], 4 * i, 4);
    }
}

int img_vmdk_codec(struct img_layer *layer, enum img_codec *codec,
                   struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_sparse *s = st->n_extents == 1 ? st->extents->sparse : NULL;

    if (!s || !s->h.compressed || s->h.footer)
        return img_fail(err, ENOTSUP, "%s: compressed grains are for "
                        "streamOptimized images", layer->path);
    *codec = IMG_CODEC_ZLIB;
    return 0;
}

static int reserve_in_place(struct img_layer *layer, struct vmdk_extent *x,
                            const struct img_want *want,
                            struct img_place *place, struct img_error *err)
{
    struct img_run run;
    int r;

    r = img_vmdk_map(layer, want->off, want->len, 0, &run, err);
    if (r)
        return r;
    *place = (struct img_place){ .off = want->off, .file = x->file };
    if (run.kind == IMG_RUN_DATA) {
        place->len = run.len;
        place->host = run.host;
    }
    return 0;
}

/* One packed grain behind its marker, which publish writes. */
static int reserve_packed(struct img_layer *layer, struct vmdk_extent *x,
                          const struct img_want *want,
                          struct img_place *place, struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_sparse *s = x->sparse;
    uint64_t grain = UINT64_C(1) << s->grain_bits, at, end;
    struct img_run run;
    int r;

    if (!s->h.compressed || s->h.footer || !s->markers)
        return img_fail(err, ENOTSUP, "%s: compressed grains cannot be "
                        "written into this image", layer->path);
    r = img_vmdk_map(layer, want->off, 1, 0, &run, err);
    if (r == 0 && run.kind == IMG_RUN_PACKED)
        r = img_fail(err, EROFS, "%s: the grain at %llu is there already; "
                     "streamOptimized images are written once", layer->path,
                     (unsigned long long)want->off);
    if (r)
        return r;
    img_write_lock(&st->lock);
    at = s->next;
    end = img_round_up(at + VMDK_GRAIN_MARKER + want->packed, VMDK_SECTOR);
    r = img_vmdk_grow_file(s, end, err);
    if (r == 0)
        s->next = end;
    img_rw_unlock(&st->lock);
    *place = (struct img_place){
        .off = want->off, .file = x->file, .host = at + VMDK_GRAIN_MARKER,
        .len = IMG_MIN(grain, x->start + x->len - want->off),
        .fresh = true, .fill_off = want->off, .packed = want->packed,
    };
    place->fill_len = place->len;
    return r;
}

/* An entry that was cleared and not written back must not get another grain
 * in the same write-back: a crash between the two copies of its table would
 * leave two grains, and no way to tell which was meant. */
static int settle(struct img_layer *layer, struct vmdk_sparse *s,
                  uint64_t first, uint64_t n, struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    bool cleared;

    img_read_lock(&st->lock);
    cleared = s->rgd && s->freed.n && first < s->freed_to &&
              first + n > s->freed_from;
    img_rw_unlock(&st->lock);
    return cleared ? img_vmdk_write_back(layer, err) : 0;
}

static int reserve_fresh(struct img_layer *layer, struct vmdk_extent *x,
                         const struct img_want *want,
                         struct img_place *place, struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_sparse *s = x->sparse;
    uint64_t rel = want->off - x->start;
    uint64_t grain = UINT64_C(1) << s->grain_bits, skip = rel & (grain - 1);
    uint32_t i = (uint32_t)(rel >> s->grain_bits) & (s->h.gt_entries - 1);
    uint64_t len = IMG_MIN(want->len, x->len - rel), host = 0;
    uint32_t n = (uint32_t)IMG_MIN((uint64_t)(s->h.gt_entries - i),
                                   img_div_up(skip + len, grain));
    unsigned bits = s->grain_bits + s->gt_bits;
    struct img_slice *slices[2];
    enum vmdk_grain_kind kind;
    uint32_t count = 0;
    bool zeroed = false;
    int r;

    r = settle(layer, s, rel >> s->grain_bits, n, err);
    if (r == 0)
        r = img_vmdk_tables_get(layer, s, (size_t)(rel >> bits), slices, err);
    if (r)
        return r;
    img_write_lock(&st->lock);
    while (count < n) {
        kind = img_vmdk_grain(s, slices[0]->data, i + count, &host);
        if (kind == VMDK_GRAIN_DATA || kind == VMDK_GRAIN_BAD)
            break;
        count++;
    }
    if (count)
        r = img_vmdk_take_grains(s, count, &host, &zeroed, err);
    img_rw_unlock(&st->lock);
    img_vmdk_tables_put(layer, slices);
    if (r)
        return r;
    if (!count)                     /* it has one by now, or is broken */
        return reserve_in_place(layer, x, want, place, err);
    *place = (struct img_place){
        .off = want->off, .len = IMG_MIN(len, count * grain - skip),
        .file = x->file, .host = host + skip, .fresh = true,
        .zeroed = zeroed, .fill_off = want->off - skip,
        .fill_len = IMG_MIN(count * grain, x->len - (rel - skip)),
        .token = host,
    };
    return 0;
}

static int check_may_write(struct img_layer *layer, struct vmdk_extent *x,
                           uint64_t off, struct img_error *err)
{
    if (x && x->access == VMDK_RW && x->kind != VMDK_ZERO)
        return 0;
    if (!x)
        return img_fail(err, EINVAL, "%s: no extent at %llu", layer->path,
                        (unsigned long long)off);
    return img_fail(err, EROFS, "%s: the extent at %llu is %s", layer->path,
                    (unsigned long long)off,
                    x->access == VMDK_RW ? "of zeros" : "not for writing");
}

int img_vmdk_reserve(struct img_layer *layer, const struct img_want *want,
                     struct img_place *place, struct img_error *err)
{
    struct vmdk_extent *x = img_vmdk_find(layer->state, want->off);
    int r = check_may_write(layer, x, want->off, err);

    if (r)
        return r;
    if (x->kind == VMDK_FLAT) {
        if (want->packed)
            return img_fail(err, ENOTSUP, "%s: flat extents hold no "
                            "compressed grains", layer->path);
        *place = (struct img_place){
            .off = want->off, .file = x->file,
            .len = IMG_MIN(want->len, x->len - (want->off - x->start)),
            .host = x->host + (want->off - x->start),
        };
        return 0;
    }
    if (want->packed)
        return reserve_packed(layer, x, want, place, err);
    if (x->sparse->h.compressed)
        return img_fail(err, EROFS, "%s: streamOptimized images are written "
                        "once, from front to back", layer->path);
    if (want->in_place)
        return reserve_in_place(layer, x, want, place, err);
    return reserve_fresh(layer, x, want, place, err);
}

static int write_marker(struct vmdk_sparse *s, uint64_t rel,
                        const struct img_place *place, struct img_error *err)
{
    uint8_t marker[VMDK_GRAIN_MARKER];

    img_put_le64(marker, rel / VMDK_SECTOR);
    img_put_le32(marker + 8, place->packed);
    return img_file_pwrite(s->file, marker, sizeof marker,
                           place->host - VMDK_GRAIN_MARKER, err);
}

int img_vmdk_publish(struct img_layer *layer, const struct img_place *place,
                     struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_extent *x = img_vmdk_find(st, place->off);
    uint64_t host = place->host - (place->off - place->fill_off), rel;
    struct vmdk_sparse *s = x->sparse;
    struct img_slice *slices[2];
    uint32_t i, n;
    int r = 0;

    if (!place->fresh)
        return 0;
    rel = place->fill_off - x->start;
    i = (uint32_t)(rel >> s->grain_bits) & (s->h.gt_entries - 1);
    n = (uint32_t)img_div_up(place->fill_len, UINT64_C(1) << s->grain_bits);

    /* Before the entries change: whoever publishes in vain gives the grains
     * back. */
    if (img_tcache_is_full(layer->tables))
        r = img_vmdk_write_back(layer, err);
    if (r == 0 && place->packed) {
        r = write_marker(s, rel, place, err);
        host = place->host - VMDK_GRAIN_MARKER;
        n = 1;
    }
    if (r == 0)
        r = img_vmdk_tables_get(layer, s,
                       (size_t)(rel >> (s->grain_bits + s->gt_bits)), slices,
                       err);
    if (r)
        return r;
    img_write_lock(&st->lock);
    for (uint32_t k = 0; k < n; k++)
        img_vmdk_set_entry(layer, slices, i + k,
                  (uint32_t)((host + ((uint64_t)k << s->grain_bits)) /
                             VMDK_SECTOR));
    img_rw_unlock(&st->lock);
    img_vmdk_tables_put(layer, slices);
    return 0;
}

void img_vmdk_abandon(struct img_layer *layer, const struct img_place *place)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_extent *x = img_vmdk_find(st, place->off);
    uint64_t host = place->host - (place->off - place->fill_off);

    if (!place->fresh || place->packed)     /* packed: a leak, no more */
        return;
    img_write_lock(&st->lock);
    img_vmdk_free_add(x->sparse, host,
                      img_round_up(place->fill_len,
                                   UINT64_C(1) << x->sparse->grain_bits));
    img_rw_unlock(&st->lock);
}

/* Would an absent entry show something else than zeros? */
static bool shows_below(struct img_layer *layer, enum img_unmap how)
{
    return how == IMG_UNMAP_ZERO_OWN || img_vmdk_has_below(layer);
}

/* What entries become: 0 = absent, 1 = zeros.  false: they stay. */
static bool unmapped_entry(struct img_layer *layer,
                           const struct vmdk_sparse *s, enum img_unmap how,
                           uint32_t *v)
{
    *v = how != IMG_UNMAP_DROP && s->zero_grain;
    return *v || how == IMG_UNMAP_DROP || !shows_below(layer, how);
}

static int note_freed(struct vmdk_sparse *s, size_t g, uint32_t i,
                      uint64_t host)
{
    uint64_t at = ((uint64_t)g << s->gt_bits) + i;

    s->freed_from = s->freed.n ? IMG_MIN(s->freed_from, at) : at;
    s->freed_to = s->freed.n ? IMG_MAX(s->freed_to, at + 1) : at + 1;
    return img_vmdk_list_add(&s->freed, host);
}

/* Changes n entries from i on and notes the grains they had. */
static int unmap_entries(struct img_layer *layer, struct vmdk_sparse *s,
                         size_t g, uint32_t i, uint32_t n, uint32_t v,
                         enum img_unmap how, uint32_t *done,
                         struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct img_slice *slices[2];
    enum vmdk_grain_kind kind;
    uint64_t host;
    uint32_t k;
    int r;

    r = img_vmdk_tables_get(layer, s, g, slices, err);
    if (r)
        return r;
    img_write_lock(&st->lock);
    for (k = 0; k < n; k++) {
        kind = img_vmdk_grain(s, slices[0]->data, i + k, &host);
        if (kind == VMDK_GRAIN_BAD ||
            (how == IMG_UNMAP_ZERO_KEEP && kind == VMDK_GRAIN_DATA))
            break;
        if (kind == VMDK_GRAIN_DATA && note_freed(s, g, i + k, host)) {
            r = img_fail_nomem(err);
            break;
        }
        /* With nothing below, absent is zeros already. */
        if (kind == VMDK_GRAIN_DATA || (v && shows_below(layer, how)) ||
            (!v && kind == VMDK_GRAIN_ZERO))
            img_vmdk_set_entry(layer, slices, i + k, v);
    }
    img_rw_unlock(&st->lock);
    img_vmdk_tables_put(layer, slices);
    *done = k;
    if (r == 0 && k == 0)
        r = img_fail(err, ENOTSUP, "%s: grain table %zu, entry %u keeps its "
                     "place", s->file->path, g, i);
    return r;
}

static int unmap_sparse(struct img_layer *layer, struct vmdk_extent *x,
                        uint64_t rel, uint64_t len, enum img_unmap how,
                        uint64_t *done, struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_sparse *s = x->sparse;
    unsigned bits = s->grain_bits + s->gt_bits;
    size_t g = (size_t)(rel >> bits);
    uint32_t i = (uint32_t)(rel >> s->grain_bits) & (s->h.gt_entries - 1);
    uint32_t v, n, count;
    bool absent;
    int r;

    if (s->h.compressed || !unmapped_entry(layer, s, how, &v)) {
        if (how == IMG_UNMAP_DISCARD) {
            *done = len;
            return 0;
        }
        return img_fail(err, ENOTSUP, "%s: has no way to say that a grain is "
                        "zeros", layer->path);
    }
    len = IMG_MIN(len, ((uint64_t)(g + 1) << bits) - rel);
    n = (uint32_t)img_div_up(len, UINT64_C(1) << s->grain_bits);
    img_read_lock(&st->lock);
    absent = !s->gd[g];
    img_rw_unlock(&st->lock);
    if (absent && (!v || !shows_below(layer, how))) {
        *done = len;
        return 0;
    }
    r = unmap_entries(layer, s, g, i, n, v, how, &count, err);
    if (r == 0)
        *done = IMG_MIN(len, (uint64_t)count << s->grain_bits);
    return r;
}

static int unmap_flat(struct img_layer *layer, struct vmdk_extent *x,
                      uint64_t rel, uint64_t len, enum img_unmap how,
                      struct img_error *err)
{
    struct img_file *file = layer->files[x->file];
    uint64_t host = x->host + rel;

    switch (how) {
    case IMG_UNMAP_ZERO:
    case IMG_UNMAP_ZERO_OWN:
        return img_file_zero(file, host, len,
                             IMG_FILE_FAST_ONLY | IMG_FILE_MAY_UNMAP, err);
    case IMG_UNMAP_ZERO_KEEP:
        return img_file_zero(file, host, len, IMG_FILE_FAST_ONLY, err);
    case IMG_UNMAP_DISCARD:
        return img_file_discard(file, host, len, err);
    case IMG_UNMAP_DROP:
        break;
    }
    return img_fail(err, ENOTSUP, "%s: flat extents hide what is below",
                    layer->path);
}

int img_vmdk_unmap(struct img_layer *layer, uint64_t off, uint64_t len,
                   enum img_unmap how, uint64_t *done, struct img_error *err)
{
    struct vmdk_extent *x = img_vmdk_find(layer->state, off);
    uint64_t rel;
    int r;

    if (x && x->kind == VMDK_ZERO && x->access != VMDK_NOACCESS &&
        how != IMG_UNMAP_DROP) {
        *done = IMG_MIN(len, x->len - (off - x->start));
        return 0;
    }
    r = check_may_write(layer, x, off, err);
    if (r)
        return r;
    rel = off - x->start;
    len = IMG_MIN(len, x->len - rel);
    if (x->kind != VMDK_FLAT)
        return unmap_sparse(layer, x, rel, len, how, done, err);
    r = unmap_flat(layer, x, rel, len, how, err);
    if (r == 0)
        *done = len;
    return r;
}

