/* Where guest bytes are: extents, grain directories, grain tables.
 *
 * An answer never reaches beyond one grain table or one extent; core joins
 * neighbours.  Tables are read before the lock is taken.
 */
#include "vmdk/vmdk.h"
#include "cache/tcache.h"

bool img_vmdk_has_below(const struct img_layer *layer)
{
    const struct vmdk_state *st = layer->state;

    return layer->backing || st->given_below;
}

/* Extents are in order and without gaps; empty ones are never found. */
struct vmdk_extent *img_vmdk_find(const struct vmdk_state *st, uint64_t off)
{
    size_t low = 0, high = st->n_extents;

    while (low < high) {
        size_t mid = low + (high - low) / 2;
        struct vmdk_extent *x = &st->extents[mid];

        if (off < x->start)
            high = mid;
        else if (off - x->start >= x->len)
            low = mid + 1;
        else
            return x;
    }
    return NULL;
}

bool img_vmdk_in_file(struct img_layer *layer, struct vmdk_sparse *s,
                      uint64_t host, uint64_t len)
{
    struct vmdk_state *st = layer->state;
    uint64_t now;
    bool inside;

    img_read_lock(&st->lock);
    inside = img_inside(host, len, s->file_len);
    img_rw_unlock(&st->lock);
    if (inside || layer->writable)
        return inside;
    /* Somebody else may be writing it. */
    if (img_file_size(s->file, &now, NULL) || !img_inside(host, len, now))
        return false;
    img_write_lock(&st->lock);
    s->file_len = IMG_MAX(s->file_len, now);
    img_rw_unlock(&st->lock);
    return true;
}

/* seSparse entries: the top nibble is 0 = absent, 1 = unmapped, 2 = zeros,
 * 3 = data, whose place has its upper 12 bits behind the nibble and is
 * counted in grains. */
static enum vmdk_grain_kind se_grain(const struct vmdk_sparse *s, uint64_t v,
                                     uint64_t *host)
{
    uint64_t n;

    switch (v >> 60) {
    case 0:
        return v ? VMDK_GRAIN_BAD : VMDK_GRAIN_ABSENT;
    case 1:
    case 2:
        return VMDK_GRAIN_ZERO;
    case 3:
        n = (v >> 48 & 0xfff) | (v & UINT64_C(0xffffffffffff)) << 12;
        if (n >= VMDK_SIZE_MAX >> s->grain_bits)
            return VMDK_GRAIN_BAD;
        *host = s->h.grains_off * VMDK_SECTOR + (n << s->grain_bits);
        return VMDK_GRAIN_DATA;
    }
    return VMDK_GRAIN_BAD;
}

enum vmdk_grain_kind img_vmdk_grain(const struct vmdk_sparse *s,
                                    const uint8_t *table, uint32_t i,
                                    uint64_t *host)
{
    uint32_t v;

    if (s->entry == 8)
        return se_grain(s, img_get_le64(table + 8 * (size_t)i), host);
    v = img_get_le32(table + 4 * (size_t)i);
    if (!v)
        return VMDK_GRAIN_ABSENT;
    if (v == 1 && s->zero_grain)
        return VMDK_GRAIN_ZERO;
    *host = (uint64_t)v * VMDK_SECTOR;
    /* Not over the header; COWD's has 4 sectors. */
    return v < (s->h.kind == VMDK_COWD ? 4 : 2) ? VMDK_GRAIN_BAD
                                                : VMDK_GRAIN_DATA;
}

/* Grain markers are at the beginning of a sector.  The cache keeps them, as a
 * run is mapped more than once on its way. */
static int read_marker(struct img_layer *layer, struct vmdk_sparse *s,
                       uint64_t host, uint64_t *lba, uint32_t *size,
                       struct img_error *err)
{
    struct img_slice *slice;
    int r;

    r = img_tcache_get(layer->tables, s->file, host, VMDK_SECTOR,
                       VMDK_KIND_MARKER, &slice, err);
    if (r)
        return r;
    *lba = img_get_le64(slice->data);
    *size = img_get_le32(slice->data + 8);
    img_tcache_put(layer->tables, slice);
    return 0;
}

/* The packed grain at host: its marker says how long it is and whose. */
static int map_packed(struct img_layer *layer, struct vmdk_extent *x,
                      uint64_t rel, struct img_run *run,
                      struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_sparse *s = x->sparse;
    uint64_t grain = UINT64_C(1) << s->grain_bits;
    uint64_t first = img_round_down(rel, grain), host = run->host;
    uint64_t lba, room;
    uint32_t size;
    int r;

    run->kind = IMG_RUN_PACKED;
    run->codec = IMG_CODEC_ZLIB;
    run->len = IMG_MIN(run->len, grain - (rel - first));
    run->unpacked_min = x->len - first < grain ? (uint32_t)(x->len - first)
                                               : 0;
    if (!img_vmdk_in_file(layer, s, host, VMDK_GRAIN_MARKER + 1))
        goto outside;
    if (!s->markers) {
        img_read_lock(&st->lock);
        room = s->file_len - host;
        img_rw_unlock(&st->lock);
        run->host_max = (uint32_t)IMG_MIN(room, 2 * grain);
        return 0;
    }
    r = read_marker(layer, s, host, &lba, &size, err);
    if (r)
        return r;
    if (lba != first / VMDK_SECTOR)
        return img_fail(err, IMG_ECORRUPT, "%s: the packed grain at 0x%llx is "
                        "of sector %llu, not of %llu", s->file->path,
                        (unsigned long long)host, (unsigned long long)lba,
                        (unsigned long long)(first / VMDK_SECTOR));
    if (!size || size > 2 * grain)
        return img_fail(err, IMG_ECORRUPT, "%s: the packed grain at 0x%llx "
                        "has %u bytes", s->file->path,
                        (unsigned long long)host, size);
    if (!img_vmdk_in_file(layer, s, host, VMDK_GRAIN_MARKER + size))
        goto outside;
    run->host = host + VMDK_GRAIN_MARKER;
    run->host_max = size;
    return 0;
outside:
    return img_fail(err, IMG_ECORRUPT, "%s: the packed grain at 0x%llx does "
                    "not lie in the file", s->file->path,
                    (unsigned long long)host);
}

/* Like entries from i on; called with the lock held. */
static enum vmdk_grain_kind scan(const struct vmdk_sparse *s,
                                 const uint8_t *table, uint32_t i,
                                 uint32_t n, uint64_t *host, uint32_t *count)
{
    uint64_t grain = UINT64_C(1) << s->grain_bits, next = 0;
    enum vmdk_grain_kind kind = img_vmdk_grain(s, table, i, host);
    uint32_t same = 1;

    if (kind == VMDK_GRAIN_DATA && s->h.compressed)
        n = 1;
    while (same < n && img_vmdk_grain(s, table, i + same, &next) == kind &&
           (kind != VMDK_GRAIN_DATA || next == *host + same * grain))
        same++;
    *count = same;
    return kind;
}

/* An empty directory entry, and how many follow. */
static bool map_no_table(struct vmdk_state *st, struct vmdk_sparse *s,
                         uint64_t rel, uint64_t len, struct img_run *run)
{
    unsigned bits = s->grain_bits + s->gt_bits;
    size_t g = (size_t)(rel >> bits), end;
    size_t last = (size_t)((rel + len - 1) >> bits);

    img_read_lock(&st->lock);
    for (end = g; end <= last && !s->gd[end]; end++)
        ;
    img_rw_unlock(&st->lock);
    if (end == g)
        return false;
    run->kind = IMG_RUN_ABSENT;
    run->len = IMG_MIN(len, ((uint64_t)end << bits) - rel);
    return true;
}

static int map_sparse(struct img_layer *layer, struct vmdk_extent *x,
                      uint64_t rel, uint64_t len, unsigned flags,
                      struct img_run *run, struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_sparse *s = x->sparse;
    uint64_t grain = UINT64_C(1) << s->grain_bits, skip = rel & (grain - 1);
    size_t g = (size_t)(rel >> (s->grain_bits + s->gt_bits));
    uint32_t i = (uint32_t)(rel >> s->grain_bits) & (s->h.gt_entries - 1);
    uint32_t n = s->h.gt_entries - i, count;
    enum vmdk_grain_kind kind;
    struct img_slice *slice;
    uint64_t host = 0, off;
    int r;

    if (s->lost)
        return img_fail(err, IMG_ECORRUPT, "%s: its grain directory is lost",
                        s->file->path);
    if (map_no_table(st, s, rel, len, run))
        return 0;
    if (flags & IMG_RUN_CACHED) {
        img_read_lock(&st->lock);
        off = img_vmdk_table_off(s, s->gd, g);
        img_rw_unlock(&st->lock);
        slice = img_tcache_peek(layer->tables, s->file, off);
        if (!slice)
            return -EAGAIN;
        if (slice->len != s->gt_len || slice->kind != VMDK_KIND_GT) {
            img_tcache_put(layer->tables, slice);
            return -EAGAIN;         /* which then is an error */
        }
    } else {
        r = img_vmdk_table_get(layer, s, g, false, &slice, err);
        if (r)
            return r;
    }
    n = (uint32_t)IMG_MIN((uint64_t)n, img_div_up(skip + len, grain));
    img_read_lock(&st->lock);
    kind = scan(s, slice->data, i, n, &host, &count);
    img_rw_unlock(&st->lock);
    img_tcache_put(layer->tables, slice);
    run->len = IMG_MIN(len, count * grain - skip);
    switch (kind) {
    case VMDK_GRAIN_ABSENT:
        run->kind = IMG_RUN_ABSENT;
        return 0;
    case VMDK_GRAIN_ZERO:
        run->kind = IMG_RUN_ZERO;
        return 0;
    case VMDK_GRAIN_BAD:
        return img_fail(err, IMG_ECORRUPT, "%s: grain table %zu, entry %u is "
                        "no place for a grain", s->file->path, g, i);
    case VMDK_GRAIN_DATA:
        break;
    }
    if (s->h.compressed) {
        if (flags & IMG_RUN_CACHED)
            return -EAGAIN;
        run->host = host;
        return map_packed(layer, x, rel, run, err);
    }
    if (!img_vmdk_in_file(layer, s, host, skip + run->len))
        return img_fail(err, IMG_ECORRUPT, "%s: grain table %zu, entry %u: "
                        "grain at 0x%llx does not lie in the file",
                        s->file->path, g, i, (unsigned long long)host);
    run->kind = IMG_RUN_DATA;
    run->host = host + skip;
    return 0;
}

static int map_flat(struct img_layer *layer, struct vmdk_extent *x,
                    uint64_t rel, unsigned flags, struct img_run *run,
                    struct img_error *err)
{
    bool is_data;
    int r;

    run->kind = IMG_RUN_DATA;
    run->host = x->host + rel;
    if (!(flags & IMG_RUN_EXACT) || !layer->files[x->file])
        return 0;
    r = img_file_extent(layer->files[x->file], run->host, run->len, &is_data,
                        &run->len, err);
    if (r == 0 && !is_data)
        run->kind = IMG_RUN_ZERO;
    return r;
}

int img_vmdk_map(struct img_layer *layer, uint64_t off, uint64_t len,
                 unsigned flags, struct img_run *run, struct img_error *err)
{
    struct vmdk_extent *x = img_vmdk_find(layer->state, off);
    uint64_t rel;

    if (!x)
        return img_fail(err, EINVAL, "%s: no extent at %llu", layer->path,
                        (unsigned long long)off);
    rel = off - x->start;
    len = IMG_MIN(len, x->len - rel);
    *run = (struct img_run){ .off = off, .len = len, .file = x->file,
                             .host = UINT64_MAX, .kind = IMG_RUN_ZERO };
    if (x->access == VMDK_NOACCESS)
        return img_fail(err, EACCES, "%s: the extent at %llu is marked "
                        "NOACCESS", layer->path, (unsigned long long)off);
    if (x->kind == VMDK_ZERO)
        return 0;
    if (x->kind == VMDK_FLAT)
        return map_flat(layer, x, rel, flags, run, err);
    return map_sparse(layer, x, rel, len, flags, run, err);
}
