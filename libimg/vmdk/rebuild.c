/* Packed extents whose tables are damaged or cut off: new tables from the
 * grains themselves.
 *
 * Each packed grain lies behind a marker that says whose it is and how long
 * (VMware's "Virtual Disk Format 5.0", grain markers), and zlib tells whether
 * it is whole.  What was found is not moved; the tables, and the footer of a
 * stream, are written behind the last of it.  Done again it gives the same,
 * so a crash amid it does no harm.
 */
#include "vmdk/vmdk.h"
#include "base/cleanup.h"
#include "cache/tcache.h"
#include "codec/codec.h"

#include <stdlib.h>
#include <string.h>

struct rebuild {
    struct img_layer *layer;
    struct vmdk_extent *x;
    struct vmdk_sparse *s;
    uint32_t *map;                  /* sectors, by grain; 0 = not found */
    uint32_t *named;                /* what the old tables say */
    uint64_t n;                     /* grains of the disk */
    uint64_t end;                   /* bytes: behind the last one found */
    uint8_t *packed, *plain;
    struct img_unpacker *unpacker;
    uint32_t *gd;
    bool stream;                    /* the directory is found by a footer */
};

struct marker {
    uint64_t value;                 /* first sector of the grain; or how many
                                       sectors follow */
    uint32_t size, type;            /* size 0: metadata of this type */
    uint64_t next;                  /* byte behind what it is for */
};

/* false: there is none at this place. */
static bool read_marker(const struct rebuild *b, uint64_t at,
                        struct marker *m, struct img_error *err, int *result)
{
    const struct vmdk_sparse *s = b->s;
    uint64_t grain = UINT64_C(1) << s->grain_bits, sectors = 0;
    uint8_t raw[VMDK_GRAIN_MARKER + 4];

    *result = 0;
    if (!img_inside(at, sizeof raw, s->file_len))
        return false;
    *result = img_file_pread(s->file, raw, sizeof raw, at, err);
    if (*result)
        return false;
    m->value = img_get_le64(raw);
    m->size = img_get_le32(raw + 8);
    m->type = img_get_le32(raw + 12);
    if (m->size) {
        m->next = img_round_up(at + VMDK_GRAIN_MARKER + m->size, VMDK_SECTOR);
        /* RFC 1950: the first two bytes of what zlib packs. */
        return m->value < s->h.capacity &&
               img_is_aligned(m->value, s->h.grain) && m->size <= 2 * grain &&
               (raw[12] & 15) == 8 && (raw[12] << 8 | raw[13]) % 31 == 0 &&
               img_inside(at, VMDK_GRAIN_MARKER + m->size, s->file_len);
    }
    if (m->type == VMDK_MARK_GT)
        sectors = s->gt_len / VMDK_SECTOR;
    else if (m->type == VMDK_MARK_GD)
        sectors = img_div_up(s->n_gd * UINT64_C(4), VMDK_SECTOR);
    else if (m->type == VMDK_MARK_FOOTER)
        sectors = 1;
    m->next = at + (1 + sectors) * VMDK_SECTOR;
    return sectors && m->value == sectors;
}

static bool is_whole(struct rebuild *b, uint64_t at, const struct marker *m,
                     struct img_error *err, int *result)
{
    size_t grain = (size_t)1 << b->s->grain_bits, min = grain;
    uint64_t left = b->x->len - IMG_MIN(b->x->len, m->value * VMDK_SECTOR);

    *result = img_file_pread(b->s->file, b->packed, m->size,
                             at + VMDK_GRAIN_MARKER, err);
    if (left < min)
        min = (size_t)left;
    return *result == 0 &&
           img_unpack_short(b->unpacker, IMG_CODEC_ZLIB, b->packed, m->size,
                            b->plain, grain, min, NULL) == 0;
}

/* Of two that say they are the same grain, the one that the old tables name,
 * if it can be read; else the first. */
static void found(struct rebuild *b, uint64_t at, const struct marker *m,
                  bool whole)
{
    uint64_t i = m->value / b->s->h.grain;

    if (!b->map[i] || (whole && at / VMDK_SECTOR == b->named[i]))
        b->map[i] = (uint32_t)(at / VMDK_SECTOR);
    b->end = IMG_MAX(b->end, m->next);
}

/* From marker to marker; where that ends, sector by sector to the next.  A
 * grain that is not whole counts if the next marker is where it should be: it
 * is better to fail when it is read than to read as zeros. */
static int scan(struct rebuild *b, const struct img_job *job,
                struct img_error *err)
{
    uint64_t at = VMDK_SECTOR, len = b->s->file_len, said = 0;
    struct marker m, next;
    bool whole;
    int r = 0;

    while (r == 0 && at < len && at / VMDK_SECTOR < UINT32_MAX) {
        if (job && job->progress && at - said > UINT64_C(64) << 20) {
            said = at;
            if (job->progress(job->opaque, at, len))
                return img_fail(err, ECANCELED, "%s: check was stopped",
                                b->layer->path);
        }
        if (!read_marker(b, at, &m, err, &r)) {
            at += VMDK_SECTOR;
            continue;
        }
        whole = m.size && is_whole(b, at, &m, err, &r);
        if (!m.size) {
            at = m.next;
        } else if (whole ||
                   (r == 0 && read_marker(b, m.next, &next, err, &r))) {
            found(b, at, &m, whole);
            at = m.next;
        } else {
            at += VMDK_SECTOR;
        }
    }
    return r;
}

static void read_old(struct rebuild *b)
{
    struct vmdk_sparse *s = b->s;
    struct img_slice *slice;
    uint64_t host;

    for (size_t g = 0; g < s->n_gd; g++) {
        uint32_t *to = b->named + ((uint64_t)g << s->gt_bits);

        if (!s->gd[g] ||
            img_vmdk_table_get(b->layer, s, g, false, &slice, NULL))
            continue;
        for (uint32_t k = 0; k < s->h.gt_entries; k++)
            if (img_vmdk_grain(s, slice->data, k, &host) == VMDK_GRAIN_DATA)
                to[k] = (uint32_t)(host / VMDK_SECTOR);
        img_tcache_put(b->layer->tables, slice);
    }
}

/* What the old tables say and no marker led to, but what has a marker that
 * agrees. */
static int keep_old(struct rebuild *b, struct img_error *err)
{
    struct marker m;
    int r = 0;

    for (uint64_t i = 0; i < b->n && r == 0; i++) {
        uint64_t host = b->named[i] * (uint64_t)VMDK_SECTOR;

        if (host && !b->map[i] && read_marker(b, host, &m, err, &r) &&
            m.size && m.value / b->s->h.grain == i)
            found(b, host, &m, false);
    }
    return r;
}

static int write_sectors(struct rebuild *b, const void *buf, size_t len,
                         struct img_error *err)
{
    int r = img_file_pwrite(b->s->file, buf, len, b->end, err);

    b->end += len;
    return r;
}

static int write_list(struct rebuild *b, const uint32_t *list, size_t n,
                      uint32_t type, struct img_error *err)
{
    size_t len = (size_t)img_round_up(n * 4, VMDK_SECTOR);
    img_autofree uint8_t *raw = calloc(1, VMDK_SECTOR + len);

    if (!raw)
        return img_fail_nomem(err);
    img_put_le64(raw, len / VMDK_SECTOR);
    img_put_le32(raw + 12, type);
    for (size_t i = 0; i < n; i++)
        img_put_le32(raw + VMDK_SECTOR + 4 * i, list[i]);
    return write_sectors(b, raw, VMDK_SECTOR + len, err);
}

static int write_tables(struct rebuild *b, struct img_error *err)
{
    struct vmdk_sparse *s = b->s;
    uint32_t each = s->h.gt_entries;
    int r = 0;

    for (size_t g = 0; g < s->n_gd && r == 0; g++) {
        const uint32_t *list = b->map + (uint64_t)g * each;
        bool used = false;

        for (uint32_t i = 0; i < each; i++)
            used |= list[i];
        if (!used)
            continue;
        if (b->end / VMDK_SECTOR >= UINT32_MAX)
            return img_fail(err, EFBIG, "%s: no room for new tables",
                            s->file->path);
        b->gd[g] = (uint32_t)(b->end / VMDK_SECTOR + 1);
        r = write_list(b, list, each, VMDK_MARK_GT, err);
    }
    return r;
}

/* The header's copy that says where the directory is, and the end marker. */
static int write_footer(struct rebuild *b, uint64_t gd_sector,
                        struct img_error *err)
{
    uint8_t raw[3 * VMDK_SECTOR] = { 0 };
    int r = img_file_pread(b->s->file, raw + VMDK_SECTOR, VMDK_SECTOR, 0,
                           err);

    img_put_le64(raw, 1);
    img_put_le32(raw + 12, VMDK_MARK_FOOTER);
    img_put_le64(raw + VMDK_SECTOR + 56, gd_sector);
    return r ? r : write_sectors(b, raw, sizeof raw, err);
}

static int write_all(struct rebuild *b, struct img_error *err)
{
    struct vmdk_sparse *s = b->s;
    uint64_t gd_off;
    int r = write_tables(b, err);

    gd_off = b->end + VMDK_SECTOR;
    if (r == 0)
        r = write_list(b, b->gd, s->n_gd, VMDK_MARK_GD, err);
    if (r == 0 && b->stream)
        r = write_footer(b, gd_off / VMDK_SECTOR, err);
    if (r == 0)
        r = img_file_truncate(s->file, b->end, err);
    if (r == 0)
        r = img_file_sync(s->file, err);
    if (r == 0 && !b->stream)
        r = img_vmdk_write_header(s, s->h.capacity, gd_off, 0, err);
    if (r)
        return r;
    img_tcache_forget(b->layer->tables, s->file, 0, UINT64_MAX);
    free(s->gd);
    free(s->rgd);
    s->gd = b->gd;
    s->rgd = NULL;
    b->gd = NULL;
    s->gd_off = gd_off;
    s->rgd_off = 0;
    s->file_len = s->next = b->end;
    s->h.footer = b->stream;
    s->lost = s->gd_broken = s->rgd_broken = false;
    return 0;
}

int img_vmdk_rebuild(struct img_layer *layer, struct vmdk_extent *x,
                     const struct img_job *job, struct img_error *err)
{
    struct vmdk_sparse *s = x->sparse;
    size_t grain = (size_t)1 << s->grain_bits;
    struct rebuild b = {
        .layer = layer, .x = x, .s = s,
        .n = (uint64_t)s->n_gd << s->gt_bits,
        .end = img_round_up(s->file_len, VMDK_SECTOR),
        .stream = s->h.footer || s->h.gd_off == VMDK_GD_AT_END,
    };
    uint64_t sectors = b.end / VMDK_SECTOR, front = 1;
    int r;

    /* Not over what is before the first grain. */
    if (s->h.overhead < sectors)
        front = IMG_MAX(front, s->h.overhead);
    if (img_inside(s->h.text_off, s->h.text_len, sectors))
        front = IMG_MAX(front, s->h.text_off + s->h.text_len);
    b.end = front * VMDK_SECTOR;
    if (b.n * 4 > VMDK_DIRECTORY_MAX)
        return img_fail(err, EFBIG, "%s: too large to be rebuilt in memory",
                        s->file->path);
    b.map = calloc((size_t)b.n + 1, sizeof *b.map);
    b.named = calloc((size_t)b.n + 1, sizeof *b.named);
    b.gd = calloc(s->n_gd + 1, sizeof *b.gd);
    b.packed = malloc(2 * grain);
    b.plain = malloc(grain);
    r = b.map && b.named && b.gd && b.packed && b.plain
            ? 0 : img_fail_nomem(err);
    if (r == 0)
        r = img_unpacker_new(&b.unpacker, err);
    if (r == 0)
        read_old(&b);
    if (r == 0)
        r = scan(&b, job, err);
    if (r == 0)
        r = keep_old(&b, err);
    if (r == 0)
        r = write_all(&b, err);
    img_unpacker_free(b.unpacker);
    free(b.map);
    free(b.named);
    free(b.gd);
    free(b.packed);
    free(b.plain);
    return r;
}
