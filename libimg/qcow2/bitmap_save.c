/* Writing bitmaps and the directory anew.
 *
 * New clusters hold the new bits, tables and directory; the header switches
 * to them when they are durable; then the old ones are given back.  A crash
 * before the switch leaves the old directory, IN_USE marks included.
 */
#include "qcow2/bitmap.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

struct freeing {
    struct qcow2 *q;
    struct img_error *err;
};

static int free_old(void *opaque, uint64_t off, uint64_t len)
{
    const struct freeing *f = opaque;
    int r;

    /* Of a bitmap that cannot be used nobody has looked at the table: what is
     * no place is left to a check, as a leak at most. */
    if (!img_is_aligned(off, f->q->cluster_size) || off >= f->q->end)
        return 0;
    img_lock(&f->q->lock);
    r = img_qcow2_free_later(f->q, off, len, true, f->err);
    img_unlock(&f->q->lock);
    return r;
}

static int take(struct qcow2 *q, uint64_t len, uint64_t *host,
                struct img_error *err)
{
    int r;

    img_lock(&q->lock);
    r = img_qcow2_take_row(q, img_div_up(len, q->cluster_size), host, err);
    img_unlock(&q->lock);
    return r;
}

/* A piece of bits in whole clusters; zero where it need not be stored. */
static int store_piece(struct qcow2 *q, const uint8_t *bits, uint64_t len,
                       uint64_t *entry, struct img_error *err)
{
    int r = 0;

    *entry = 0;
    if (img_is_zero(bits, len))
        return 0;
    r = take(q, q->cluster_size, entry, err);
    if (r == 0)
        r = img_file_pwrite(q->file, bits, len, *entry, err);
    if (r == 0 && len < q->cluster_size)
        r = img_file_zero(q->file, *entry + len, q->cluster_size - len, 0,
                          err);
    return r;
}

static int store_bits(struct qcow2 *q, struct qcow2_bitmap *b,
                      struct img_error *err)
{
    uint64_t bytes = img_div_up(b->n_bits, 8);
    uint64_t n = img_div_up(bytes, q->cluster_size), off;
    img_autofree uint64_t *table = calloc(n + 1, sizeof *table);
    int r = 0;

    if (!table)
        return img_fail_nomem(err);
    for (uint64_t i = 0; i < n && r == 0; i++) {
        uint64_t at = i << q->cluster_bits;

        r = store_piece(q, b->bits + at,
                        IMG_MIN(bytes - at, (uint64_t)q->cluster_size),
                        &table[i], err);
    }
    if (r == 0)
        r = take(q, IMG_MAX(n, UINT64_C(1)) * 8, &off, err);
    if (r == 0)
        r = img_qcow2_write_table(q, off, table, n, err);
    if (r == 0) {
        b->table_off = off;
        b->table_size = (uint32_t)n;
    }
    return r;
}

static size_t entry_bytes(const struct qcow2_bitmap *b)
{
    return (size_t)img_round_up(BITMAP_FIXED + b->extra_len +
                                strlen(b->name), 8);
}

static void build_entry(const struct qcow2_bitmap *b, uint8_t *at)
{
    size_t name_len = strlen(b->name);

    img_put_be64(at, b->table_off);
    img_put_be32(at + 8, b->table_size);
    img_put_be32(at + 12, b->flags | (b->broken ? BITMAP_IN_USE : 0));
    at[16] = BITMAP_DIRTY_TRACKING;
    at[17] = b->granularity_bits;
    img_put_be16(at + 18, (uint16_t)name_len);
    img_put_be32(at + 20, b->extra_len);
    if (b->extra_len)
        memcpy(at + BITMAP_FIXED, b->extra, b->extra_len);
    memcpy(at + BITMAP_FIXED + b->extra_len, b->name, name_len);
}

static int store_directory(struct qcow2 *q, uint64_t *off, uint64_t *len,
                           struct img_error *err)
{
    struct qcow2_bitmaps *m = q->bitmaps;
    img_autofree uint8_t *buf = NULL;
    size_t at = 0;
    int r;

    *off = *len = 0;
    for (uint32_t i = 0; i < m->n; i++)
        *len += entry_bytes(&m->list[i]);
    if (!*len)
        return 0;
    buf = calloc(1, *len);
    if (!buf)
        return img_fail_nomem(err);
    r = take(q, *len, off, err);
    for (uint32_t i = 0; i < m->n && r == 0; i++) {
        build_entry(&m->list[i], buf + at);
        at += entry_bytes(&m->list[i]);
    }
    return r == 0 ? img_file_pwrite(q->file, buf, *len, *off, err) : r;
}

/* The bitmaps, and where they are stored, before they are written anew. */
struct old {
    struct qcow2_bitmap *list;
    uint32_t n;
    uint64_t directory_off, directory_len;
};

static int remember(struct qcow2 *q, struct old *old, struct img_error *err)
{
    struct qcow2_bitmaps *m = q->bitmaps;

    old->list = calloc(m->n + 1, sizeof *old->list);
    if (!old->list)
        return img_fail_nomem(err);
    old->directory_off = q->h.bitmaps_offset;
    old->directory_len = q->h.n_bitmaps ? q->h.bitmaps_size : 0;
    old->n = m->n;
    for (uint32_t i = 0; i < m->n; i++)
        old->list[i] = m->list[i];
    return 0;
}

/* The header still names the old directory: what was stored for a new one is
 * nowhere.  (It leaks.) */
static void take_back(struct qcow2_bitmaps *m, const struct old *old)
{
    for (uint32_t i = 0; i < old->n; i++) {
        m->list[i].table_off = old->list[i].table_off;
        m->list[i].table_size = old->list[i].table_size;
    }
}

static int forget_old(struct qcow2 *q, const struct old *old,
                      struct img_error *err)
{
    struct freeing f = { q, err };
    int r = 0;

    for (uint32_t i = 0; i < old->n && r == 0; i++)
        if (old->list[i].changed)
            r = img_qcow2_bitmap_visit(q, &old->list[i], free_old, &f, err);
    if (r == 0 && old->directory_len)
        r = free_old(&f, old->directory_off, old->directory_len);
    return r;
}

static int switch_header(struct qcow2 *q, uint64_t off, uint64_t len,
                         struct img_error *err)
{
    struct qcow2_bitmaps *m = q->bitmaps;
    struct qcow2_header old = q->h;
    int r = img_qcow2_write_back(q, true, err);

    if (r < 0)
        return r;
    q->h.n_bitmaps = m->n;
    q->h.bitmaps_offset = off;
    q->h.bitmaps_size = len;
    if (m->n)
        q->h.autoclear |= QCOW2_BITMAPS;
    else
        q->h.autoclear &= ~QCOW2_BITMAPS;
    r = img_qcow2_header_write(q, err);
    if (r < 0) {
        q->h = old;
        return r;
    }
    off += 12;
    for (uint32_t i = 0; i < m->n; i++) {
        m->list[i].flags_at = off;
        off += entry_bytes(&m->list[i]);
    }
    return 0;
}

int img_qcow2_bitmaps_save(struct qcow2 *q, struct img_error *err)
{
    struct qcow2_bitmaps *m = q->bitmaps;
    struct old old = { 0 };
    uint64_t off = 0, len = 0;
    int r;

    if (!m || !m->dirty)
        return 0;
    img_qcow2_bitmaps_fit(q);
    r = remember(q, &old, err);
    for (uint32_t i = 0; i < m->n && r == 0; i++)
        if (m->list[i].changed)
            r = store_bits(q, &m->list[i], err);
    if (r == 0)
        r = store_directory(q, &off, &len, err);
    if (r == 0)
        r = switch_header(q, off, len, err);
    if (r == 0) {
        for (uint32_t i = 0; i < m->n; i++)
            m->list[i].changed = false;
        m->dirty = m->marked = false;
        r = forget_old(q, &old, err);
    } else {
        take_back(m, &old);
    }
    free(old.list);
    return r;
}

int img_qcow2_bitmap_remove(struct qcow2 *q, struct qcow2_bitmap *b,
                            struct img_error *err)
{
    struct qcow2_bitmaps *m = q->bitmaps;
    struct qcow2_bitmap gone = *b;
    struct freeing f = { q, err };
    size_t behind = (size_t)(&m->list[m->n] - (b + 1)) * sizeof *b;
    int r;

    memmove(b, b + 1, behind);
    m->n--;
    m->dirty = true;
    img_qcow2_bitmaps_update(q);
    r = img_qcow2_bitmaps_save(q, err);
    if (r < 0) {
        /* The header names it still: it goes on recording. */
        memmove(b + 1, b, behind);
        *b = gone;
        m->n++;
        img_qcow2_bitmaps_update(q);
        return r;
    }
    r = img_qcow2_bitmap_visit(q, &gone, free_old, &f, err);
    if (r == 0)
        r = img_qcow2_settle(q, err);
    img_qcow2_bitmap_free(&gone);
    return r;
}
