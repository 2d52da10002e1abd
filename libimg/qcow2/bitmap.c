/* The bitmap directory: load, describe, visit. */
#include "qcow2/bitmap.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/info.h"
#include "base/span.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_BITMAPS = 65535, MAX_DIRECTORY = 64 << 20, /* QEMU's limits */
    MIN_GRANULARITY = 9, MAX_GRANULARITY = 31
};

void img_qcow2_bitmap_free(struct qcow2_bitmap *b)
{
    free(b->name);
    free(b->extra);
    free(b->bits);
}

void img_qcow2_bitmaps_free(struct qcow2 *q)
{
    if (!q->bitmaps)
        return;
    for (uint32_t i = 0; i < q->bitmaps->n; i++)
        img_qcow2_bitmap_free(&q->bitmaps->list[i]);
    img_mutex_destroy(&q->bitmaps->lock);
    free(q->bitmaps->list);
    free(q->bitmaps);
    q->bitmaps = NULL;
}

struct qcow2_bitmap *img_qcow2_bitmap_find(struct qcow2 *q, const char *name)
{
    for (uint32_t i = 0; q->bitmaps && i < q->bitmaps->n; i++)
        if (!strcmp(q->bitmaps->list[i].name, name))
            return &q->bitmaps->list[i];
    return NULL;
}

uint64_t img_qcow2_bitmap_bits(const struct qcow2_bitmap *b, uint64_t size)
{
    return img_div_up(size, UINT64_C(1) << b->granularity_bits);
}

void img_qcow2_bitmaps_update(struct qcow2 *q)
{
    bool recording = false;

    for (uint32_t i = 0; i < q->bitmaps->n; i++)
        recording |= (q->bitmaps->list[i].flags & BITMAP_AUTO) &&
                     !q->bitmaps->list[i].broken;
    q->bitmaps->recording = recording;
}

/* ---- load -------------------------------------------------------------- */

static int bad(struct qcow2 *q, uint32_t index, const char *what,
               struct img_error *err)
{
    return img_fail(err, IMG_ECORRUPT, "%s: bitmap directory, entry %u: %s",
                    q->layer->path, index, what);
}

static int check_entry(struct qcow2 *q, uint32_t index,
                       const struct qcow2_bitmap *b, struct img_error *err)
{
    uint64_t table_bytes = (uint64_t)b->table_size * 8;
    uint64_t per_cluster = (uint64_t)q->cluster_size * 8;

    if (b->granularity_bits < MIN_GRANULARITY ||
        b->granularity_bits > MAX_GRANULARITY)
        return bad(q, index, "its granularity is out of range", err);
    if (!img_is_aligned(b->table_off, q->cluster_size) ||
        b->table_off >= q->end || !img_inside(b->table_off, table_bytes,
                                              q->end))
        return bad(q, index, "its table lies outside the file", err);
    if (b->n_bits / 8 > BITMAP_MAX_BYTES)
        return bad(q, index, "it has too many bits", err);
    if (!b->broken && b->table_size != img_div_up(b->n_bits, per_cluster))
        return bad(q, index, "its table does not go with the disk's size",
                   err);
    return 0;
}

static int parse_entry(struct qcow2 *q, uint32_t index, struct img_span s,
                       struct qcow2_bitmap *b, size_t *used,
                       struct img_error *err)
{
    struct img_span name, extra;
    uint16_t name_len;

    if (s.len < BITMAP_FIXED)
        return bad(q, index, "the directory ends in it", err);
    img_span_be64(s, 0, &b->table_off);
    img_span_be32(s, 8, &b->table_size);
    img_span_be32(s, 12, &b->flags);
    b->granularity_bits = s.data[17];
    img_span_be16(s, 18, &name_len);
    img_span_be32(s, 20, &b->extra_len);
    if (s.data[16] != BITMAP_DIRTY_TRACKING)
        return bad(q, index, "its type is unknown", err);
    if (!name_len || name_len > BITMAP_MAX_NAME ||
        !img_span_part(s, BITMAP_FIXED, b->extra_len, &extra) ||
        !img_span_part(s, BITMAP_FIXED + (size_t)b->extra_len, name_len,
                       &name))
        return bad(q, index, "its name reaches beyond the directory", err);
    if (b->extra_len && !(b->flags & BITMAP_EXTRA_COMPATIBLE))
        return bad(q, index, "it has extra data that are not understood",
                   err);
    *used = (size_t)img_round_up(BITMAP_FIXED + (uint64_t)b->extra_len +
                                 name_len, 8);
    b->broken = b->flags & BITMAP_IN_USE;
    if (b->granularity_bits < 64)
        b->n_bits = img_qcow2_bitmap_bits(b, q->h.size);
    b->name = strndup((const char *)name.data, name.len);
    b->extra = malloc(extra.len + 1);
    if (!b->name || !b->extra)
        return img_fail_nomem(err);
    memcpy(b->extra, extra.data, extra.len);
    return check_entry(q, index, b, err);
}

static int parse(struct qcow2 *q, struct img_span s, struct img_error *err)
{
    struct qcow2_bitmaps *m = q->bitmaps;
    size_t at = 0, used = 0;
    int r = 0;

    m->list = calloc(q->h.n_bitmaps, sizeof *m->list);
    if (!m->list)
        return img_fail_nomem(err);
    while (m->n < q->h.n_bitmaps && r == 0) {
        struct qcow2_bitmap *b = &m->list[m->n];
        struct img_span rest = { s.data + at, s.len - at };

        b->flags_at = q->h.bitmaps_offset + at + 12;
        r = parse_entry(q, m->n++, rest, b, &used, err);
        if (r == 0)
            at = IMG_MIN(at + used, s.len);
    }
    return r;
}

int img_qcow2_bitmaps_load(struct qcow2 *q, struct img_error *err)
{
    img_autofree uint8_t *buf = NULL;
    int r;

    if (!q->h.n_bitmaps)
        return 0;
    if (q->h.n_bitmaps > MAX_BITMAPS || q->h.bitmaps_size > MAX_DIRECTORY ||
        !img_is_aligned(q->h.bitmaps_offset, q->cluster_size) ||
        !img_inside(q->h.bitmaps_offset, q->h.bitmaps_size, q->end))
        return img_fail(err, IMG_ECORRUPT, "%s: bitmaps extension: %u "
                        "bitmaps in %llu bytes at 0x%llx", q->layer->path,
                        q->h.n_bitmaps,
                        (unsigned long long)q->h.bitmaps_size,
                        (unsigned long long)q->h.bitmaps_offset);
    q->bitmaps = calloc(1, sizeof *q->bitmaps);
    buf = malloc(q->h.bitmaps_size ? q->h.bitmaps_size : 1);
    if (!q->bitmaps || !buf) {
        free(q->bitmaps);
        q->bitmaps = NULL;
        return img_fail_nomem(err);
    }
    img_mutex_init(&q->bitmaps->lock);
    r = img_file_pread(q->file, buf, q->h.bitmaps_size, q->h.bitmaps_offset,
                       err);
    if (r == 0)
        r = parse(q, (struct img_span){ buf, q->h.bitmaps_size }, err);
    if (r == 0)
        img_qcow2_bitmaps_update(q);
    return r;
}

/* ---- describe ---------------------------------------------------------- */

static bool describe_one(const struct qcow2_bitmap *b, struct img_value *list)
{
    struct img_value *v = img_value_group(list, NULL), *flags;
    bool ok = true;

    flags = v ? img_value_list(v, "flags") : NULL;
    if (!flags)
        return false;
    if (b->broken)
        ok = img_value_text(flags, NULL, "in-use");
    if (b->flags & BITMAP_AUTO)
        ok = ok && img_value_text(flags, NULL, "auto");
    return ok && img_value_text(v, "name", b->name) &&
           img_value_uint(v, "granularity",
                          UINT64_C(1) << b->granularity_bits);
}

static int add_info(const struct qcow2_bitmap *b, struct img_info *info,
                    struct img_error *err)
{
    struct img_bitmap_info *to = img_info_add_bitmap(info);

    if (!to)
        return img_fail_nomem(err);
    to->granularity = UINT32_C(1) << b->granularity_bits;
    to->enabled = b->flags & BITMAP_AUTO;
    to->inconsistent = b->broken;
    to->persistent = true;
    return img_info_text(&to->name, b->name, err);
}

int img_qcow2_bitmaps_describe(struct qcow2 *q, struct img_info *info,
                               struct img_error *err)
{
    struct img_value *list;
    int r = 0;

    if (!q->bitmaps || !q->bitmaps->n)
        return 0;
    list = img_value_list(img_info_specific(info), "bitmaps");
    if (!list)
        return img_fail_nomem(err);
    for (uint32_t i = 0; i < q->bitmaps->n && r == 0; i++) {
        if (!describe_one(&q->bitmaps->list[i], list))
            return img_fail_nomem(err);
        r = add_info(&q->bitmaps->list[i], info, err);
    }
    return r;
}

/* ---- visit ------------------------------------------------------------- */

int img_qcow2_bitmap_visit(struct qcow2 *q, const struct qcow2_bitmap *b,
                           int visit(void *, uint64_t off, uint64_t len),
                           void *opaque, struct img_error *err)
{
    uint64_t *table;
    int r;

    if (!b->table_off)
        return 0;
    r = img_qcow2_read_table(q, b->table_off, b->table_size, &table, err);
    if (r < 0)
        return r;
    if (b->table_size)
        r = visit(opaque, b->table_off, (uint64_t)b->table_size * 8);
    for (uint32_t i = 0; i < b->table_size && r == 0; i++)
        if (table[i] & QCOW2_OFFSET_MASK)
            r = visit(opaque, table[i] & QCOW2_OFFSET_MASK, q->cluster_size);
    free(table);
    return r;
}

int img_qcow2_bitmaps_visit(struct qcow2 *q,
                            int visit(void *, uint64_t off, uint64_t len),
                            void *opaque, struct img_error *err)
{
    int r = 0;

    if (!q->bitmaps || !q->bitmaps->n)
        return 0;
    r = visit(opaque, q->h.bitmaps_offset, q->h.bitmaps_size);
    for (uint32_t i = 0; i < q->bitmaps->n && r == 0; i++)
        r = img_qcow2_bitmap_visit(q, &q->bitmaps->list[i], visit, opaque,
                                   err);
    return r;
}
