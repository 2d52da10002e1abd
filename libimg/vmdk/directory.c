/* Grain directories and grain tables of sparse extents.
 *
 * Directories are in memory, bounded by the length of the file and by one
 * ceiling for all extents of an image; tables go through the cache, one
 * slice each.
 */
#include "vmdk/vmdk.h"
#include "cache/tcache.h"

#include <stdlib.h>

void img_vmdk_sparse_free(struct vmdk_sparse *s)
{
    if (!s)
        return;
    free(s->gd);
    free(s->rgd);
    free(s->freed.list);
    free(s->free.list);
    free(s);
}

/* seSparse: the top nibble says whether there is a table, the low half is
 * its number. */
static int se_entry(struct vmdk_sparse *s, size_t i, uint64_t v,
                    uint32_t *out, struct img_error *err)
{
    if (!v)
        return 0;
    if (v >> 32 != 0x10000000 || (uint32_t)v == UINT32_MAX)
        return img_fail(err, IMG_ECORRUPT, "%s: grain directory entry %zu is "
                        "0x%llx", s->file->path, i, (unsigned long long)v);
    *out = (uint32_t)v + 1;
    return 0;
}

static int read_directory(struct img_layer *layer, struct vmdk_sparse *s,
                          uint64_t sector, uint32_t **gd,
                          struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    unsigned width = s->entry;
    uint64_t len = s->n_gd * (uint64_t)width, off = sector * VMDK_SECTOR;
    uint32_t *list = NULL;
    uint8_t *raw = NULL;
    int r;

    if (!sector || sector > s->file_len / VMDK_SECTOR + 1 ||
        !img_inside(off, len, s->file_len))
        return img_fail(err, IMG_ECORRUPT, "%s: grain directory of %zu "
                        "entries at sector %llu does not lie in the file "
                        "(%llu bytes)", s->file->path, s->n_gd,
                        (unsigned long long)sector,
                        (unsigned long long)s->file_len);
    if (len > VMDK_DIRECTORY_MAX - st->directory_bytes)
        return img_fail(err, EFBIG, "%s: grain directory of %llu bytes is "
                        "too large", s->file->path, (unsigned long long)len);
    st->directory_bytes += len;
    raw = malloc(len ? (size_t)len : 1);
    list = calloc(s->n_gd ? s->n_gd : 1, sizeof *list);
    r = raw && list ? 0 : img_fail_nomem(err);
    if (r == 0 && len)
        r = img_file_pread(s->file, raw, (size_t)len, off, err);
    for (size_t i = 0; i < s->n_gd && r == 0; i++) {
        if (width == 8)
            r = se_entry(s, i, img_get_le64(raw + 8 * i), &list[i], err);
        else
            list[i] = img_get_le32(raw + 4 * i);
    }
    free(raw);
    if (r) {
        free(list);
        return r;
    }
    *gd = list;
    return 0;
}

static int compare_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

/* Are the tables in order, each behind the end of the one before? */
static bool are_ordered(const struct vmdk_sparse *s, const uint32_t *gd)
{
    uint32_t step = s->gt_len / VMDK_SECTOR, last = 0;

    for (size_t i = 0; i < s->n_gd; i++) {
        if (!gd[i])
            continue;
        if (last && (gd[i] <= last || gd[i] - last < step))
            return false;
        last = gd[i];
    }
    return true;
}

int img_vmdk_tables_shared(const struct vmdk_sparse *s, const uint32_t *gd,
                           uint32_t **shared, size_t *n, struct img_error *err)
{
    uint32_t step = s->gt_len / VMDK_SECTOR, *sorted;
    size_t all = 0;

    *shared = NULL;
    *n = 0;
    if (are_ordered(s, gd))
        return 0;
    sorted = malloc(s->n_gd * sizeof *sorted);
    if (!sorted)
        return img_fail_nomem(err);
    for (size_t i = 0; i < s->n_gd; i++)
        if (gd[i])
            sorted[all++] = gd[i];
    qsort(sorted, all, sizeof *sorted, compare_u32);
    for (size_t i = 0, before = 0; i < all; i++) {
        uint32_t v = sorted[i];
        bool meets = (i && v - before < step) ||
                     (i + 1 < all && sorted[i + 1] - v < step);

        before = v;
        if (meets)
            sorted[(*n)++] = v;
    }
    *shared = sorted;
    return 0;
}

bool img_vmdk_is_shared(const uint32_t *shared, size_t n, uint32_t table)
{
    return n && bsearch(&table, shared, n, sizeof *shared, compare_u32);
}

/* Two directory entries with one table: a write to one guest range would
 * show up in another. */
static int tables_apart(struct vmdk_sparse *s, const uint32_t *gd,
                        struct img_error *err)
{
    uint32_t *shared;
    size_t n;
    int r = img_vmdk_tables_shared(s, gd, &shared, &n, err);

    free(shared);
    if (r == 0 && n)
        r = img_fail(err, IMG_ECORRUPT, "%s: two entries of the grain "
                     "directory share a grain table", s->file->path);
    return r;
}

static void set_shape(struct vmdk_sparse *s)
{
    const struct vmdk_header *h = &s->h;
    uint64_t tables;

    s->grain_bits = img_log2(h->grain * VMDK_SECTOR);
    s->gt_bits = img_log2(h->gt_entries);
    s->entry = h->kind == VMDK_SE ? 8 : 4;
    s->gt_len = (uint32_t)img_round_up(h->gt_entries * s->entry, VMDK_SECTOR);
    s->markers = h->flags & VMDK_FLAG_MARKERS;
    s->zero_grain = h->kind == VMDK_SPARSE &&
                    (h->flags & VMDK_FLAG_ZERO_GRAIN);
    tables = img_div_up(h->capacity, h->grain << s->gt_bits);
    s->n_gd = (size_t)tables;
}

static int check_places(const struct vmdk_sparse *s, struct img_error *err)
{
    const struct vmdk_header *h = &s->h;
    uint64_t limit = s->file_len / VMDK_SECTOR + 1;

    if (h->tables_off > limit || h->grains_off > limit)
        return img_fail(err, IMG_ECORRUPT, "%s: VMDK header: tables at "
                        "sector %llu do not lie in the file (%llu bytes)",
                        s->file->path, (unsigned long long)
                        IMG_MAX(h->tables_off, h->grains_off),
                        (unsigned long long)s->file_len);
    if (h->kind != VMDK_SPARSE && h->gd_max < s->n_gd)
        return img_fail(err, IMG_ECORRUPT, "%s: grain directory has %llu "
                        "entries, %zu are needed", s->file->path,
                        (unsigned long long)h->gd_max, s->n_gd);
    return 0;
}

/* One copy will do for reading, and for mending the other.  Who writes needs
 * both. */
static int read_both(struct img_layer *layer, struct vmdk_sparse *s,
                     struct img_error *err)
{
    bool one_will_do = !layer->writable || layer->repair;
    struct img_error first = { 0 };
    int r = read_directory(layer, s, s->h.gd_off, &s->gd, &first);

    if (r && (r != -IMG_ECORRUPT || !one_will_do || !s->h.rgd_off))
        goto out;
    s->gd_broken = r;
    if (s->h.rgd_off && s->h.rgd_off != s->h.gd_off) {
        r = read_directory(layer, s, s->h.rgd_off, &s->rgd, err);
        if (s->gd_broken) {
            if (r) {
                r = -IMG_ECORRUPT;
                goto out;
            }
            s->gd = s->rgd;
            s->rgd = NULL;
            layer->warn(layer, "%s; its redundant copy is used",
                        first.message);
        } else if (r == -IMG_ECORRUPT && one_will_do) {
            s->rgd_broken = true;
            r = 0;
        }
    }
    return r;
out:
    if (err)
        *err = first;
    return r;
}

/* Where packed grains may be found without a directory, and shall be. */
static int lose_directory(struct img_layer *layer, struct vmdk_sparse *s,
                          struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    uint64_t len = s->n_gd * UINT64_C(4);

    if (len > VMDK_DIRECTORY_MAX - st->directory_bytes)
        return img_fail(err, EFBIG, "%s: grain directory of %llu bytes is "
                        "too large", s->file->path, (unsigned long long)len);
    st->directory_bytes += len;
    s->gd = calloc(s->n_gd + 1, sizeof *s->gd);
    s->lost = true;
    return s->gd ? 0 : img_fail_nomem(err);
}

static int read_directories(struct img_layer *layer, struct vmdk_sparse *s,
                            struct img_error *err)
{
    int r;

    if (s->h.kind != VMDK_SPARSE)
        s->h.rgd_off = 0;
    r = check_places(s, err);
    if (r == 0)
        r = read_both(layer, s, err);
    if (r == -IMG_ECORRUPT && layer->repair && layer->writable &&
        s->h.compressed && s->markers)
        return lose_directory(layer, s, err);
    if (r)
        return r;
    s->gd_off = (s->gd_broken ? s->h.rgd_off : s->h.gd_off) * VMDK_SECTOR;
    /* One for both: no second copy. */
    s->rgd_off = s->rgd ? s->h.rgd_off * VMDK_SECTOR : 0;
    if (r == 0 && layer->writable && !layer->repair && s->entry == 4) {
        r = tables_apart(s, s->gd, err);
        if (r == 0 && s->rgd)
            r = tables_apart(s, s->rgd, err);
    }
    return r;
}

/* ---- on a device: what is in use, by units of a grain -------------------- */

enum { UNITS_MAX = 1 << 28 };       /* 32 MiB of bits */

struct usage {
    uint8_t *units;                 /* NULL = too many: only the end counts */
    uint64_t n;
};

static void use(struct vmdk_sparse *s, struct usage *u, uint64_t off,
                uint64_t len)
{
    if (!len || !img_inside(off, len, s->file_len))
        return;
    s->next = IMG_MAX(s->next, off + len);
    for (uint64_t i = off >> s->grain_bits;
         u->units && i <= (off + len - 1) >> s->grain_bits; i++)
        u->units[i / 8] |= (uint8_t)(1u << i % 8);
}

static int use_tables(struct img_layer *layer, struct vmdk_sparse *s,
                      struct usage *u, bool second, struct img_error *err)
{
    const uint32_t *gd = second ? s->rgd : s->gd;
    struct img_slice *slice;
    uint64_t host;
    int r = 0;

    for (size_t g = 0; gd && g < s->n_gd && r == 0; g++) {
        uint64_t off = img_vmdk_table_off(s, gd, g);

        if (off < VMDK_SECTOR || !img_inside(off, s->gt_len, s->file_len))
            continue;
        use(s, u, off, s->gt_len);
        r = img_vmdk_table_get(layer, s, g, second, &slice, err);
        if (r)
            return r;
        for (uint32_t i = 0; i < s->h.gt_entries; i++)
            if (img_vmdk_grain(s, slice->data, i, &host) == VMDK_GRAIN_DATA)
                use(s, u, host, UINT64_C(1) << s->grain_bits);
        img_tcache_put(layer->tables, slice);
    }
    return r;
}

static int free_the_rest(struct vmdk_sparse *s, const struct usage *u)
{
    uint64_t end = s->next >> s->grain_bits, from;

    for (uint64_t i = 0; u->units && i < end; i++) {
        for (from = i; i < end && !(u->units[i / 8] >> i % 8 & 1); i++)
            ;
        if (i > from && img_vmdk_free_add(s, from << s->grain_bits,
                                          (i - from) << s->grain_bits))
            return -ENOMEM;
    }
    return 0;
}

int img_vmdk_find_end(struct img_layer *layer, struct vmdk_sparse *s,
                      struct img_error *err)
{
    uint64_t len = img_round_up(s->n_gd * (uint64_t)s->entry, VMDK_SECTOR);
    struct usage u = { .n = (s->file_len >> s->grain_bits) + 1 };
    int r;

    if (u.n <= UNITS_MAX && !(u.units = calloc(1, (size_t)(u.n / 8 + 1))))
        return img_fail_nomem(err);
    s->next = 0;
    use(s, &u, 0, 4 * VMDK_SECTOR);
    use(s, &u, 0, IMG_MIN(s->h.overhead, s->file_len / VMDK_SECTOR) *
                  VMDK_SECTOR);
    use(s, &u, s->h.text_off * VMDK_SECTOR, s->h.text_len * VMDK_SECTOR);
    use(s, &u, s->gd_off, len);
    use(s, &u, s->rgd_off, s->rgd ? len : 0);
    r = use_tables(layer, s, &u, false, err);
    if (r == 0)
        r = use_tables(layer, s, &u, true, err);
    s->next = img_round_up(IMG_MAX(s->next, s->h.free_sector * VMDK_SECTOR),
                           UINT64_C(1) << s->grain_bits);
    s->next = IMG_MIN(s->next, img_round_up(s->file_len, UINT64_C(1) <<
                                                         s->grain_bits));
    if (r == 0 && free_the_rest(s, &u))
        r = img_fail_nomem(err);
    free(u.units);
    return r;
}

int img_vmdk_sparse_open(struct img_layer *layer, struct img_file *file,
                         struct vmdk_sparse **sparse, struct img_error *err)
{
    struct vmdk_sparse *s = calloc(1, sizeof *s);
    uint64_t unit;
    int r;

    if (!s)
        return img_fail_nomem(err);
    s->file = file;
    r = img_file_size(file, &s->file_len, err);
    if (r == 0)
        r = img_vmdk_header_read(file, s->file_len,
                                 layer->repair && layer->writable, &s->h,
                                 err);
    if (r == 0 && !s->h.grain)
        r = img_fail(err, IMG_ECORRUPT, "%s: a VMDK extent without grains",
                     file->path);
    if (r == 0) {
        set_shape(s);
        /* A whole grain apart, so that direct I/O to grains is aligned;
         * packed grains begin with any sector. */
        unit = s->h.compressed ? VMDK_SECTOR : UINT64_C(1) << s->grain_bits;
        s->next = img_round_up(s->file_len, unit);
        if (s->h.kind == VMDK_COWD)
            s->next = IMG_MAX(s->next, s->h.free_sector * VMDK_SECTOR);
        r = read_directories(layer, s, err);
    }
    if (r == 0 && file->is_device && layer->writable &&
        !s->h.compressed && s->entry == 4)
        r = img_vmdk_find_end(layer, s, err);
    if (r == 0 && s->h.unclean && layer->writable && !layer->repair)
        layer->warn(layer, "%s: was not closed by the program that wrote it "
                    "last; check tells whether that did harm", file->path);
    if (r) {
        img_vmdk_sparse_free(s);
        return r;
    }
    *sparse = s;
    return 0;
}

uint64_t img_vmdk_table_off(const struct vmdk_sparse *s, const uint32_t *gd,
                            size_t g)
{
    if (!gd[g])
        return 0;
    if (s->h.kind == VMDK_SE)
        return s->h.tables_off * VMDK_SECTOR +
               (uint64_t)(gd[g] - 1) * s->gt_len;
    return (uint64_t)gd[g] * VMDK_SECTOR;
}

int img_vmdk_table_get(struct img_layer *layer, struct vmdk_sparse *s,
                       size_t g, bool second, struct img_slice **slice,
                       struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    uint64_t off;

    img_read_lock(&st->lock);
    off = img_vmdk_table_off(s, second ? s->rgd : s->gd, g);
    img_rw_unlock(&st->lock);
    if (off < VMDK_SECTOR || !img_vmdk_in_file(layer, s, off, s->gt_len))
        return img_fail(err, IMG_ECORRUPT, "%s: %s entry %zu: grain table at "
                        "0x%llx does not lie in the file", s->file->path,
                        second ? "redundant grain directory"
                               : "grain directory", g,
                        (unsigned long long)off);
    return img_tcache_get(layer->tables, s->file, off, s->gt_len,
                          second ? VMDK_KIND_RGT : VMDK_KIND_GT, slice, err);
}
