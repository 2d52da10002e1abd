/* The bits of bitmaps: load, record writes, look up, edit. */
#include "qcow2/bitmap.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/error.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

static int load_cluster(struct qcow2 *q, struct qcow2_bitmap *b,
                        uint64_t entry, uint64_t at, uint64_t len,
                        struct img_error *err)
{
    uint64_t off = entry & QCOW2_OFFSET_MASK;

    if (!off) {
        memset(b->bits + at, entry & 1 ? 0xff : 0, (size_t)len);
        return 0;
    }
    if (!img_is_aligned(off, q->cluster_size) || off >= q->end)
        return img_fail(err, IMG_ECORRUPT, "%s: bitmap '%s': table entry "
                        "0x%llx", q->layer->path, b->name,
                        (unsigned long long)entry);
    return img_file_pread(q->file, b->bits + at, (size_t)len, off, err);
}

int img_qcow2_bitmap_load_bits(struct qcow2 *q, struct qcow2_bitmap *b,
                               struct img_error *err)
{
    uint64_t bytes = img_div_up(b->n_bits, 8), *table = NULL;
    int r;

    if (b->bits)
        return 0;
    b->bits = calloc(1, bytes + 1);
    if (!b->bits)
        return img_fail_nomem(err);
    if (!b->table_off)
        return 0;
    r = img_qcow2_read_table(q, b->table_off, b->table_size, &table, err);
    for (uint64_t i = 0; r == 0 && i < b->table_size; i++) {
        uint64_t at = i << q->cluster_bits;

        if (at < bytes)
            r = load_cluster(q, b, table[i], at,
                             IMG_MIN(bytes - at, (uint64_t)q->cluster_size),
                             err);
    }
    free(table);
    /* Behind the last bit is what the disk may yet grow by. */
    if (r == 0 && b->n_bits % 8)
        b->bits[bytes - 1] &= (uint8_t)((1u << b->n_bits % 8) - 1);
    if (r < 0) {
        free(b->bits);
        b->bits = NULL;
    }
    return r;
}

static bool get_bit(const struct qcow2_bitmap *b, uint64_t i)
{
    return b->bits[i / 8] >> i % 8 & 1;
}

static void set_bits(struct qcow2_bitmap *b, uint64_t off, uint64_t len)
{
    uint64_t first = off >> b->granularity_bits;
    uint64_t last = (off + len - 1) >> b->granularity_bits;

    for (uint64_t i = first; i <= last && i < b->n_bits;) {
        if (i % 8 == 0 && i + 7 <= last) {
            b->bits[i / 8] = 0xff;
            i += 8;
            continue;
        }
        b->bits[i / 8] |= (uint8_t)(1u << i % 8);
        i++;
    }
    b->changed = true;
}

/* With bitmaps->lock held. */
static int write_in_use(struct qcow2 *q, struct img_error *err)
{
    struct qcow2_bitmaps *m = q->bitmaps;
    int r = 0;

    m->dirty = true;            /* or those that got it kept it */
    for (uint32_t i = 0; i < m->n && r == 0; i++) {
        struct qcow2_bitmap *b = &m->list[i];
        uint8_t flags[4];

        if (b->broken)
            continue;
        r = img_qcow2_bitmap_load_bits(q, b, err);
        if (r < 0 || !b->table_off)
            continue;           /* not in the file yet */
        img_put_be32(flags, b->flags | BITMAP_IN_USE);
        r = img_file_pwrite(q->file, flags, sizeof flags, b->flags_at, err);
    }
    if (r == 0)
        r = img_file_sync(q->file, err);
    if (r == 0)
        m->marked = true;
    return r;
}

int img_qcow2_bitmaps_mark(struct qcow2 *q, struct img_error *err)
{
    int r = 0;

    img_lock(&q->bitmaps->lock);
    if (!q->bitmaps->marked)
        r = write_in_use(q, err);
    img_unlock(&q->bitmaps->lock);
    return r;
}

int img_qcow2_bitmaps_touch(struct qcow2 *q, uint64_t off, uint64_t len,
                            struct img_error *err)
{
    struct qcow2_bitmaps *m = q->bitmaps;
    int r;

    if (!m || !m->recording || !len)
        return 0;
    r = img_qcow2_bitmaps_mark(q, err);
    if (r < 0)
        return r;
    img_lock(&m->lock);
    for (uint32_t i = 0; i < m->n; i++)
        if ((m->list[i].flags & BITMAP_AUTO) && !m->list[i].broken)
            set_bits(&m->list[i], off, len);
    img_unlock(&m->lock);
    return 0;
}

/* An image with such a bitmap could not be opened any more. */
static int refuse_bits(const struct qcow2 *q, const char *name, uint64_t n,
                       uint32_t granularity, struct img_error *err)
{
    if (n / 8 <= BITMAP_MAX_BYTES)
        return 0;
    return img_fail(err, EFBIG, "%s: bitmap '%s' would have %llu bits of %u "
                    "bytes, which is too many; a larger granularity needs "
                    "fewer", q->layer->path, name, (unsigned long long)n,
                    granularity);
}

int img_qcow2_bitmaps_grow(struct qcow2 *q, uint64_t size,
                           struct img_error *err)
{
    struct qcow2_bitmaps *m = q->bitmaps;
    int r;

    if (!m || !m->n)
        return 0;
    for (uint32_t i = 0; i < m->n; i++)
        if (m->list[i].broken)
            return img_fail(err, ENOTSUP, "%s: cannot be resized while its "
                            "bitmap '%s' is inconsistent", q->layer->path,
                            m->list[i].name);
    r = img_qcow2_bitmaps_mark(q, err);
    for (uint32_t i = 0; i < m->n && r == 0; i++) {
        struct qcow2_bitmap *b = &m->list[i];
        uint64_t n = img_qcow2_bitmap_bits(b, size);
        uint64_t old = img_div_up(b->n_bits, 8), now = img_div_up(n, 8);
        uint8_t *bits;

        if (n <= b->n_bits)
            continue;
        r = refuse_bits(q, b->name, n, 1u << b->granularity_bits, err);
        if (r < 0)
            return r;
        bits = realloc(b->bits, now + 1);
        if (!bits)
            return img_fail_nomem(err);
        memset(bits + old, 0, now - old);
        b->bits = bits;
        b->n_bits = n;
        b->changed = true;
    }
    return r;
}

void img_qcow2_bitmaps_fit(struct qcow2 *q)
{
    struct qcow2_bitmaps *m = q->bitmaps;

    for (uint32_t i = 0; m && i < m->n; i++) {
        struct qcow2_bitmap *b = &m->list[i];
        uint64_t n = img_qcow2_bitmap_bits(b, q->h.size);

        if (b->broken || n >= b->n_bits)
            continue;
        for (uint64_t k = n; k % 8 && k < b->n_bits; k++)
            b->bits[k / 8] &= (uint8_t)~(1u << k % 8);
        b->n_bits = n;
        b->changed = true;
    }
}

/* ---- the hooks --------------------------------------------------------- */

static struct qcow2_bitmap *usable(struct qcow2 *q, const char *name,
                                   struct img_error *err)
{
    struct qcow2_bitmap *b = img_qcow2_bitmap_find(q, name);

    if (!b)
        img_fail(err, ENOENT, "%s: Dirty bitmap '%s' not found",
                 q->layer->path, name);
    else if (b->broken)
        img_fail(err, EINVAL, "%s: Bitmap '%s' is inconsistent and cannot be "
                 "used (it can only be removed)", q->layer->path, name);
    else
        return b;
    return NULL;
}

static int bitmap_map(struct img_layer *layer, const char *name, uint64_t off,
                      uint64_t len, uint64_t *run, bool *dirty,
                      struct img_error *err)
{
    struct qcow2 *q = img_qcow2_of(layer);
    struct qcow2_bitmap *b = usable(q, name, err);
    uint64_t i, end;
    int r;

    if (!b)
        return err ? -err->code : -EINVAL;
    img_lock(&q->bitmaps->lock);
    r = img_qcow2_bitmap_load_bits(q, b, err);
    if (r == 0) {
        i = off >> b->granularity_bits;
        *dirty = get_bit(b, i);
        do
            end = ++i << b->granularity_bits;
        while (end < off + len && i < b->n_bits && get_bit(b, i) == *dirty);
        *run = IMG_MIN(end - off, len);
    }
    img_unlock(&q->bitmaps->lock);
    return r;
}

static int bitmap_mark(struct img_layer *layer, const char *name,
                       uint64_t off, uint64_t len, struct img_error *err)
{
    struct qcow2 *q = img_qcow2_of(layer);
    struct qcow2_bitmap *b = usable(q, name, err);
    int r;

    if (!b)
        return err ? -err->code : -EINVAL;
    r = img_qcow2_bitmaps_mark(q, err);
    if (r < 0)
        return r;
    img_lock(&q->bitmaps->lock);
    set_bits(b, off, len);
    img_unlock(&q->bitmaps->lock);
    return 0;
}

static int add(struct qcow2 *q, const char *name, uint32_t granularity,
               struct img_error *err)
{
    struct qcow2_bitmaps *m = q->bitmaps;
    struct qcow2_bitmap *list, *b;
    int r;

    if (q->h.version < 3)
        return img_fail(err, ENOTSUP, "%s: bitmaps need compat 1.1",
                        q->layer->path);
    if (!granularity)
        granularity = IMG_MIN(IMG_MAX(q->cluster_size, 4096u), 65536u);
    if (!img_is_pow2(granularity) || granularity < 512)
        return img_fail(err, EINVAL, "Granularity must be a power of two of "
                        "at least 512, not %u", granularity);
    if (!*name || strlen(name) > BITMAP_MAX_NAME)
        return img_fail(err, EINVAL, "A bitmap's name has 1 to 1023 bytes");
    if (img_qcow2_bitmap_find(q, name))
        return img_fail(err, EEXIST, "%s: Bitmap already exists: %s",
                        q->layer->path, name);
    if (!m) {
        m = q->bitmaps = calloc(1, sizeof *m);
        if (!m)
            return img_fail_nomem(err);
        img_mutex_init(&m->lock);
    }
    list = realloc(m->list, (m->n + 1) * sizeof *list);
    if (!list)
        return img_fail_nomem(err);
    m->list = list;
    b = &list[m->n];
    memset(b, 0, sizeof *b);
    b->granularity_bits = (uint8_t)img_log2(granularity);
    b->flags = BITMAP_AUTO;
    b->n_bits = img_qcow2_bitmap_bits(b, q->h.size);
    r = refuse_bits(q, name, b->n_bits, granularity, err);
    if (r < 0)
        return r;
    b->name = strdup(name);
    if (!b->name)
        return img_fail_nomem(err);
    r = img_qcow2_bitmap_load_bits(q, b, err);
    if (r < 0) {
        img_qcow2_bitmap_free(b);
        return r;
    }
    b->changed = true;
    m->n++;
    return 0;
}

/* *had: the bits that were cleared, malloc'ed. */
static int edit(struct qcow2 *q, struct qcow2_bitmap *b,
                enum img_bitmap_verb verb, uint8_t **had,
                struct img_error *err)
{
    uint8_t *bits;
    int r;

    switch (verb) {
    case IMG_BITMAP_CLEAR:
        r = img_qcow2_bitmap_load_bits(q, b, err);
        if (r < 0)
            return r;
        bits = calloc(1, img_div_up(b->n_bits, 8) + 1);
        if (!bits)
            return img_fail_nomem(err);
        *had = b->bits;
        b->bits = bits;
        b->changed = true;
        return 0;
    case IMG_BITMAP_ENABLE:
        b->flags |= BITMAP_AUTO;
        return 0;
    case IMG_BITMAP_DISABLE:
        b->flags &= ~(uint32_t)BITMAP_AUTO;
        return 0;
    default:
        return img_fail(err, EINVAL, "unknown bitmap operation");
    }
}

static int bitmap_edit(struct img_layer *layer, const char *name,
                       enum img_bitmap_verb verb, uint32_t granularity,
                       struct img_error *err)
{
    struct qcow2 *q = img_qcow2_of(layer);
    struct qcow2_bitmap *b = NULL;
    uint8_t *had = NULL;
    uint32_t flags = 0;
    int r = 0;

    if (verb == IMG_BITMAP_ADD) {
        r = add(q, name, granularity, err);
    } else if (verb == IMG_BITMAP_REMOVE) {
        b = img_qcow2_bitmap_find(q, name);
        if (!b)
            return img_fail(err, ENOENT, "%s: Dirty bitmap '%s' not found",
                            layer->path, name);
        return img_qcow2_bitmap_remove(q, b, err);
    } else {
        b = usable(q, name, err);
        flags = b ? b->flags : 0;
        r = b ? edit(q, b, verb, &had, err) : err ? -err->code : -EINVAL;
    }
    if (r < 0)
        return r;
    q->bitmaps->dirty = true;
    img_qcow2_bitmaps_update(q);
    r = img_qcow2_bitmaps_save(q, err);
    if (r < 0 && verb == IMG_BITMAP_DISABLE) {
        b->flags = flags;       /* as the file has it: it goes on recording */
        img_qcow2_bitmaps_update(q);
    }
    if (r < 0 && verb == IMG_BITMAP_ADD) {
        img_qcow2_bitmap_free(&q->bitmaps->list[--q->bitmaps->n]);
        q->bitmaps->dirty = true;
        img_qcow2_bitmaps_update(q);
    }
    if (r < 0 && had) {
        free(b->bits);          /* nor is it cleared when it closes */
        b->bits = had;
        b->changed = q->bitmaps->dirty = true;
        had = NULL;
    }
    free(had);
    return r;
}

const struct img_bitmap_ops img_qcow2_bitmap_ops = {
    .edit = bitmap_edit, .map = bitmap_map, .mark = bitmap_mark,
};
