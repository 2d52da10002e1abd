/* The header cluster of a qcow2 image: fixed fields, header extensions, the
 * name of the backing file.  Everything in it is checked here, against the
 * format's bounds and the file's length, before anybody else uses it. */
#include "qcow2/qcow2.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/span.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BACKING_NAME = 1023 };   /* the description's limit */

int img_qcow2_header_copy_text(char **to, const char *from,
                               struct img_error *err)
{
    char *copy = NULL;

    if (from) {
        copy = strdup(from);
        if (!copy)
            return img_fail_nomem(err);
    }
    free(*to);
    *to = copy;
    return 0;
}

void img_qcow2_header_free(struct qcow2_header *h)
{
    for (size_t i = 0; i < h->n_extensions; i++)
        free(h->extensions[i].data);
    free(h->extensions);
    free(h->backing);
    free(h->backing_format);
    free(h->data_file);
    free(h->more);
    memset(h, 0, sizeof *h);
}

/* ---- extensions -------------------------------------------------------- */

struct qcow2_extension *
img_qcow2_extension_find(const struct qcow2_header *h, uint32_t type)
{
    for (size_t i = 0; i < h->n_extensions; i++)
        if (h->extensions[i].type == type)
            return &h->extensions[i];
    return NULL;
}

static int extension_add(struct qcow2_header *h, uint32_t type,
                         const void *data, uint32_t len,
                         struct img_error *err)
{
    struct qcow2_extension *list, *e;

    list = realloc(h->extensions, (h->n_extensions + 1) * sizeof *list);
    if (!list)
        return img_fail_nomem(err);
    h->extensions = list;
    e = &list[h->n_extensions];
    e->type = type;
    e->len = len;
    e->data = malloc(len ? len : 1);
    if (!e->data)
        return img_fail_nomem(err);
    memcpy(e->data, data, len);
    h->n_extensions++;
    return 0;
}

int img_qcow2_extension_set(struct qcow2_header *h, uint32_t type,
                            const void *data, uint32_t len,
                            struct img_error *err)
{
    struct qcow2_extension *e = img_qcow2_extension_find(h, type);

    if (e) {
        free(e->data);
        *e = h->extensions[--h->n_extensions];
    }
    return len ? extension_add(h, type, data, len, err) : 0;
}

static int text_of(const char *path, const char *what, struct img_span s,
                   char **text, struct img_error *err)
{
    if (memchr(s.data, 0, s.len))
        return img_fail(err, IMG_ECORRUPT, "%s: header: the %s has a NUL "
                        "byte in it", path, what);
    free(*text);
    *text = strndup((const char *)s.data, s.len);
    return *text ? 0 : img_fail_nomem(err);
}

static int parse_bitmaps(const char *path, struct img_span s,
                         struct qcow2_header *h, struct img_error *err)
{
    if (!img_span_be32(s, 0, &h->n_bitmaps) ||
        !img_span_be64(s, 8, &h->bitmaps_size) ||
        !img_span_be64(s, 16, &h->bitmaps_offset) || s.len != 24)
        return img_fail(err, IMG_ECORRUPT, "%s: bitmaps extension: %zu bytes "
                        "long, should be 24", path, s.len);
    return 0;
}

static int parse_extension(const char *path, uint32_t type, struct img_span s,
                           struct qcow2_header *h, struct img_error *err)
{
    switch (type) {
    case QCOW2_EXT_BACKING:
        return text_of(path, "backing format", s, &h->backing_format, err);
    case QCOW2_EXT_DATA_FILE:
        return text_of(path, "data file's name", s, &h->data_file, err);
    case QCOW2_EXT_BITMAPS:
        /* Not understood by whoever wrote last: gone, the format says. */
        if (!(h->autoclear & QCOW2_BITMAPS))
            return 0;
        return parse_bitmaps(path, s, h, err);
    default:
        return extension_add(h, type, s.data, (uint32_t)s.len, err);
    }
}

static int parse_extensions(const char *path, struct img_span head,
                            size_t from, size_t end, struct qcow2_header *h,
                            struct img_error *err)
{
    size_t at = from;

    while (at + 8 <= end) {
        struct img_span body;
        uint32_t type, len;
        int r;

        if (!img_span_be32(head, at, &type) ||
            !img_span_be32(head, at + 4, &len))
            break;
        if (type == QCOW2_EXT_END)
            return 0;
        if (!img_inside(at + 8, len, end) ||
            !img_span_part(head, at + 8, len, &body))
            return img_fail(err, IMG_ECORRUPT, "%s: header extension 0x%08x "
                            "at %zu: %u bytes reach beyond %zu", path, type,
                            at, len, end);
        r = parse_extension(path, type, body, h, err);
        if (r < 0)
            return r;
        at += 8 + (size_t)img_round_up(len, 8);
    }
    return 0;
}

/* ---- parsing ----------------------------------------------------------- */

/* The name that the image's own feature table gives to an unknown bit. */
static void feature_name(struct qcow2_header *h, unsigned bit, char *name,
                         size_t room)
{
    const struct qcow2_extension *e =
        img_qcow2_extension_find(h, QCOW2_EXT_FEATURES);

    snprintf(name, room, "unknown incompatible feature %u", bit);
    for (uint32_t i = 0; e && i + 48 <= e->len; i += 48) {
        if (e->data[i] == 0 && e->data[i + 1] == bit && e->data[i + 2])
            snprintf(name, room, "%.46s", (const char *)e->data + i + 2);
    }
}

static int check_features(const char *path, struct qcow2_header *h,
                          struct img_error *err)
{
    uint64_t unknown = h->incompatible & ~QCOW2_INCOMPAT_KNOWN;
    char names[256] = "";
    size_t used = 0;

    for (unsigned bit = 0; bit < 64; bit++) {
        char name[64];

        if (!(unknown >> bit & 1) || used > sizeof names - 80)
            continue;
        feature_name(h, bit, name, sizeof name);
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s",
                                 used ? ", " : "", name);
    }
    if (unknown)
        return img_fail(err, ENOTSUP, "%s: Unsupported qcow2 feature(s): %s",
                        path, names);
    if (h->compression > QCOW2_ZSTD)
        return img_fail(err, ENOTSUP, "%s: header: compression type %u is "
                        "unknown", path, h->compression);
    if ((h->compression != QCOW2_DEFLATE) !=
        !!(h->incompatible & QCOW2_COMPRESSION))
        return img_fail(err, IMG_ECORRUPT, "%s: header: compression type %u "
                        "contradicts the compression feature bit", path,
                        h->compression);
    return 0;
}

static int parse_v3(const char *path, struct img_span head,
                    struct qcow2_header *h, struct img_error *err)
{
    if (!img_span_be64(head, 72, &h->incompatible) ||
        !img_span_be64(head, 80, &h->compatible) ||
        !img_span_be64(head, 88, &h->autoclear) ||
        !img_span_be32(head, 96, &h->refcount_order) ||
        !img_span_be32(head, 100, &h->header_length))
        return img_fail(err, IMG_ECORRUPT, "%s: header: the file ends in it",
                        path);
    if (h->header_length < QCOW2_V3_HEADER ||
        h->header_length > head.len ||
        !img_is_aligned(h->header_length, 8))
        return img_fail(err, IMG_ECORRUPT, "%s: header: its length is %u",
                        path, h->header_length);
    if (h->refcount_order > 6)
        return img_fail(err, IMG_ECORRUPT, "%s: header: refcount order %u, "
                        "at most 6", path, h->refcount_order);
    if (h->header_length > QCOW2_V3_HEADER)
        h->compression = head.data[104];
    if (h->header_length > QCOW2_OUR_HEADER) {
        h->more_len = h->header_length - QCOW2_OUR_HEADER;
        h->more = malloc(h->more_len);
        if (!h->more)
            return img_fail_nomem(err);
        memcpy(h->more, head.data + QCOW2_OUR_HEADER, h->more_len);
    }
    return 0;
}

/* Tables must begin inside the file, at a cluster, and be of bearable size. */
static int check_table(const char *path, const char *what, uint64_t off,
                       uint64_t entries, uint64_t entry_size,
                       uint64_t max_bytes, const struct qcow2_header *h,
                       uint64_t file_size, struct img_error *err)
{
    uint64_t cluster = UINT64_C(1) << h->cluster_bits;

    if (entries > max_bytes / entry_size)
        return img_fail(err, EFBIG, "%s: header: %s of %llu entries is too "
                        "large", path, what, (unsigned long long)entries);
    if (!img_is_aligned(off, cluster) ||
        !img_inside(off, entries * entry_size, INT64_MAX))
        return img_fail(err, IMG_ECORRUPT, "%s: header: %s at 0x%llx is not "
                        "cluster aligned", path, what,
                        (unsigned long long)off);
    if (entries && !img_inside(off, entries * entry_size,
                               img_round_up(file_size, cluster)))
        return img_fail(err, IMG_ECORRUPT, "%s: header: %s at 0x%llx with "
                        "%llu entries reaches beyond the end of the file",
                        path, what, (unsigned long long)off,
                        (unsigned long long)entries);
    return 0;
}

static int check_tables(const char *path, const struct qcow2_header *h,
                        uint64_t file_size, struct img_error *err)
{
    uint64_t cluster = UINT64_C(1) << h->cluster_bits;
    uint64_t entries_per_l2 = cluster /
        (h->incompatible & QCOW2_EXTENDED_L2 ? 16 : 8);
    uint64_t need = img_div_up(img_div_up(h->size, cluster), entries_per_l2);
    int r;

    r = check_table(path, "L1 table", h->l1_offset, h->l1_size, 8,
                    QCOW2_MAX_L1_BYTES, h, file_size, err);
    if (r < 0)
        return r;
    if (need > h->l1_size)
        return img_fail(err, IMG_ECORRUPT, "%s: header: L1 table has %u "
                        "entries, the disk needs %llu", path, h->l1_size,
                        (unsigned long long)need);
    if (!h->reftable_clusters || !h->reftable_offset)
        return img_fail(err, IMG_ECORRUPT, "%s: header: there is no refcount "
                        "table", path);
    r = check_table(path, "refcount table", h->reftable_offset,
                    h->reftable_clusters * (cluster / 8), 8,
                    IMG_MAX((uint64_t)QCOW2_MAX_REFTABLE_BYTES, cluster), h,
                    file_size, err);
    if (r < 0)
        return r;
    if (h->n_snapshots > QCOW2_MAX_SNAPSHOTS)
        return img_fail(err, EFBIG, "%s: header: %u snapshots are too many",
                        path, h->n_snapshots);
    if (h->n_snapshots && !img_is_aligned(h->snapshots_offset, cluster))
        return img_fail(err, IMG_ECORRUPT, "%s: header: snapshot table at "
                        "0x%llx is not cluster aligned", path,
                        (unsigned long long)h->snapshots_offset);
    return 0;
}

static int parse_fixed(const char *path, struct img_span head,
                       struct qcow2_header *h, struct img_error *err)
{
    uint32_t magic;

    if (head.len < QCOW2_V2_HEADER)
        return img_fail(err, IMG_ECORRUPT, "%s: header: the file has only "
                        "%zu bytes", path, head.len);
    img_span_be32(head, 0, &magic);
    img_span_be32(head, 4, &h->version);
    img_span_be32(head, 20, &h->cluster_bits);
    img_span_be64(head, 24, &h->size);
    img_span_be32(head, 32, &h->crypt_method);
    img_span_be32(head, 36, &h->l1_size);
    img_span_be64(head, 40, &h->l1_offset);
    img_span_be64(head, 48, &h->reftable_offset);
    img_span_be32(head, 56, &h->reftable_clusters);
    img_span_be32(head, 60, &h->n_snapshots);
    img_span_be64(head, 64, &h->snapshots_offset);
    if (magic != QCOW2_MAGIC)
        return img_fail(err, EINVAL, "%s: Image is not in qcow2 format",
                        path);
    if (h->version != 2 && h->version != 3)
        return img_fail(err, ENOTSUP, "%s: header: Unsupported qcow2 version "
                        "%u", path, h->version);
    if (h->cluster_bits < QCOW2_MIN_CLUSTER_BITS ||
        h->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
        return img_fail(err, IMG_ECORRUPT, "%s: header: Unsupported cluster "
                        "size: 2^%u", path, h->cluster_bits);
    if (h->size > INT64_MAX)
        return img_fail(err, EFBIG, "%s: header: disk size %llu", path,
                        (unsigned long long)h->size);
    return 0;
}

static int parse_backing(const char *path, struct img_span head,
                         struct qcow2_header *h, struct img_error *err)
{
    uint64_t off = img_get_be64(head.data + 8);
    uint32_t len = img_get_be32(head.data + 16);
    uint64_t cluster = UINT64_C(1) << h->cluster_bits;
    struct img_span name;

    if (!off)
        return 0;
    if (!img_inside(off, len, cluster) || len > MAX_BACKING_NAME ||
        !img_span_part(head, (size_t)off, len, &name))
        return img_fail(err, IMG_ECORRUPT, "%s: header: backing file name of "
                        "%u bytes at 0x%llx", path, len,
                        (unsigned long long)off);
    return len ? text_of(path, "backing file's name", name, &h->backing, err)
               : 0;
}

static int parse(const char *path, struct img_span head, uint64_t file_size,
                 struct qcow2_header *h, struct img_error *err)
{
    uint64_t ext_end;
    int r = parse_fixed(path, head, h, err);

    h->refcount_order = 4;
    h->header_length = QCOW2_V2_HEADER;
    if (r == 0)
        head.len = (size_t)IMG_MIN((uint64_t)head.len,
                                   UINT64_C(1) << h->cluster_bits);
    if (r == 0 && h->version == 3)
        r = parse_v3(path, head, h, err);
    if (r < 0)
        return r;
    ext_end = img_get_be64(head.data + 8);
    if (!ext_end || ext_end > head.len)
        ext_end = head.len;
    r = parse_extensions(path, head, h->header_length, (size_t)ext_end, h,
                         err);
    if (r == 0)
        r = check_features(path, h, err);
    if (r == 0 && h->crypt_method)
        r = img_fail(err, ENOTSUP, "%s: the image is encrypted (%s), which "
                     "is not supported", path,
                     h->crypt_method == 1 ? "AES" :
                     h->crypt_method == 2 ? "LUKS" : "unknown method");
    if (r == 0)
        r = parse_backing(path, head, h, err);
    if (r == 0 && (h->incompatible & QCOW2_EXTENDED_L2) &&
        h->cluster_bits < 14)
        r = img_fail(err, IMG_ECORRUPT, "%s: header: extended L2 entries "
                     "with clusters of %u bytes", path,
                     1u << h->cluster_bits);
    return r == 0 ? check_tables(path, h, file_size, err) : r;
}

int img_qcow2_header_parse(const char *path, const uint8_t *head, size_t len,
                           uint64_t file_size, struct qcow2_header *h,
                           struct img_error *err)
{
    int r;

    memset(h, 0, sizeof *h);
    r = parse(path, (struct img_span){ head, len }, file_size, h, err);
    if (r < 0)
        img_qcow2_header_free(h);
    return r;
}

/* ---- building ---------------------------------------------------------- */

struct builder {
    uint8_t *buf;
    size_t at, room;
    bool full;
};

static void put_extension(struct builder *b, uint32_t type, const void *data,
                          size_t len)
{
    size_t need = 8 + (size_t)img_round_up(len, 8);

    if (b->full || need > b->room - b->at) {
        b->full = true;
        return;
    }
    img_put_be32(b->buf + b->at, type);
    img_put_be32(b->buf + b->at + 4, (uint32_t)len);
    if (len)
        memcpy(b->buf + b->at + 8, data, len);
    b->at += need;
}

/* Is there room for an extension, the end mark and, somewhere in the cluster,
 * the backing file's name? */
static bool fits_in_sector(const struct builder *b, size_t len,
                           size_t name_len)
{
    size_t end = b->at + 8 + (size_t)img_round_up(len, 8) + 8;

    return end <= QCOW2_SECTOR && end + name_len <= b->room;
}

/* The names of the features without which the image cannot be read, for
 * programs that do not know them. */
static void put_features(struct builder *b, uint64_t incompatible,
                         size_t name_len)
{
    static const struct { uint8_t bit; const char *name; } names[] = {
        { 2, "external data file" }, { 3, "compression type" },
        { 4, "extended L2 entries" },
    };
    uint8_t table[IMG_COUNT(names) * 48] = { 0 };
    size_t len = 0;

    for (size_t i = 0; i < IMG_COUNT(names); i++) {
        if (!(incompatible >> names[i].bit & 1))
            continue;
        table[len + 1] = names[i].bit;
        memcpy(table + len + 2, names[i].name, strlen(names[i].name));
        len += 48;
    }
    if (len && fits_in_sector(b, len, name_len))
        put_extension(b, QCOW2_EXT_FEATURES, table, len);
}

static bool is_courtesy(const struct qcow2_extension *e)
{
    return e->type == QCOW2_EXT_FEATURES || e->type == QCOW2_EXT_BASE_ID;
}

/* What is left out where the first sector has no room for it. */
static void put_courtesies(struct builder *b, const struct qcow2_header *h,
                           size_t name_len)
{
    for (size_t i = 0; i < h->n_extensions; i++) {
        const struct qcow2_extension *e = &h->extensions[i];

        if (e->type == QCOW2_EXT_BASE_ID && h->backing &&
            fits_in_sector(b, e->len, name_len))
            put_extension(b, e->type, e->data, e->len);
    }
    if (h->version >= 3)
        put_features(b, h->incompatible, name_len);
}

static void put_bitmaps(struct builder *b, const struct qcow2_header *h)
{
    uint8_t ext[24] = { 0 };

    img_put_be32(ext, h->n_bitmaps);
    img_put_be64(ext + 8, h->bitmaps_size);
    img_put_be64(ext + 16, h->bitmaps_offset);
    put_extension(b, QCOW2_EXT_BITMAPS, ext, sizeof ext);
}

static void put_fixed(const struct qcow2_header *h, uint8_t *buf)
{
    img_put_be32(buf, QCOW2_MAGIC);
    img_put_be32(buf + 4, h->version);
    img_put_be32(buf + 20, h->cluster_bits);
    img_put_be64(buf + 24, h->size);
    img_put_be32(buf + 32, h->crypt_method);
    img_put_be32(buf + 36, h->l1_size);
    img_put_be64(buf + 40, h->l1_offset);
    img_put_be64(buf + 48, h->reftable_offset);
    img_put_be32(buf + 56, h->reftable_clusters);
    img_put_be32(buf + 60, h->n_snapshots);
    img_put_be64(buf + 64, h->snapshots_offset);
    if (h->version < 3)
        return;
    img_put_be64(buf + 72, h->incompatible);
    img_put_be64(buf + 80, h->compatible);
    img_put_be64(buf + 88, h->autoclear);
    img_put_be32(buf + 96, h->refcount_order);
    img_put_be32(buf + 100, (uint32_t)(QCOW2_OUR_HEADER + h->more_len));
    buf[104] = h->compression;
    if (h->more_len)
        memcpy(buf + QCOW2_OUR_HEADER, h->more, h->more_len);
}

/* Where the header that is there has its name; len 0 = nowhere that matters. */
static struct qcow2_range name_in(const struct builder *b, const uint8_t *old)
{
    struct qcow2_range r = { 0 };

    if (!old)
        return r;
    r.off = img_get_be64(old + 8);
    r.len = img_get_be32(old + 16);
    if (!img_inside(r.off, r.len, b->room) || r.off < QCOW2_SECTOR ||
        r.off < b->at)
        r.len = 0;
    return r;
}

/* The name goes into the first sector, or to where none has been: whoever
 * reads the old first sector then finds the old name, and whoever reads the
 * new one the new name. */
static void put_name(struct builder *b, const char *name, const uint8_t *old)
{
    struct qcow2_range had = name_in(b, old);
    size_t len = strlen(name), at = b->at;

    if (at + len > QCOW2_SECTOR && at + len <= b->room) {
        size_t behind = IMG_MAX((size_t)QCOW2_SECTOR,
                                (size_t)img_round_up(at, 8));

        if (had.len && had.off < behind + len)
            behind = (size_t)img_round_up(had.off + had.len, 8);
        if (behind + len <= b->room)
            at = behind;
    }
    if (len > MAX_BACKING_NAME || at + len > b->room) {
        b->full = true;
        return;
    }
    if (had.len && (at + len <= had.off || at >= had.off + had.len))
        memcpy(b->buf + had.off, old + had.off, (size_t)had.len);
    img_put_be64(b->buf + 8, at);
    img_put_be32(b->buf + 16, (uint32_t)len);
    memcpy(b->buf + at, name, len);
}

int img_qcow2_header_build(const char *path, const struct qcow2_header *h,
                           const uint8_t *old, uint8_t *buf,
                           struct img_error *err)
{
    size_t cluster = (size_t)1 << h->cluster_bits;
    struct builder b = { .buf = buf, .room = cluster };
    size_t name_len = h->backing ? strlen(h->backing) : 0;

    memset(buf, 0, cluster);
    put_fixed(h, buf);
    b.at = h->version < 3 ? QCOW2_V2_HEADER : QCOW2_OUR_HEADER + h->more_len;
    if (h->backing_format)
        put_extension(&b, QCOW2_EXT_BACKING, h->backing_format,
                      strlen(h->backing_format));
    if (h->data_file && (h->incompatible & QCOW2_DATA_FILE))
        put_extension(&b, QCOW2_EXT_DATA_FILE, h->data_file,
                      strlen(h->data_file));
    if (h->n_bitmaps && h->version >= 3)
        put_bitmaps(&b, h);
    for (size_t i = 0; i < h->n_extensions; i++)
        if (!is_courtesy(&h->extensions[i]))
            put_extension(&b, h->extensions[i].type, h->extensions[i].data,
                          h->extensions[i].len);
    put_courtesies(&b, h, name_len);
    put_extension(&b, QCOW2_EXT_END, NULL, 0);
    if (h->backing && *h->backing && !b.full)
        put_name(&b, h->backing, old);
    if (b.full)
        return img_fail(err, EINVAL, "%s: header: the extensions and the "
                        "backing file's name do not fit into a cluster of "
                        "%zu bytes", path, cluster);
    return 0;
}
