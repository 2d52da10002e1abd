/* Headers of sparse extents: hosted sparse ("KDMV"), ESX server sparse
 * ("COWD") and seSparse.
 *
 * Everything a header says is checked here against the format's own limits;
 * whether tables lie inside the file is for whoever reads them.
 */
#include "vmdk/vmdk.h"

#include <string.h>

/* QEMU's constants of the one seSparse version there is. */
#define SE_MAGIC UINT64_C(0xcafebabe)
#define SE_VOLATILE_MAGIC UINT64_C(0xcafecafe)
#define SE_VERSION UINT64_C(0x0000000200000001)

enum {
    GRAIN_MAX = 1 << 17,            /* sectors: 64 MiB */
    PACKED_GRAIN_MAX = 1 << 12      /* 2 MiB */
};

bool img_vmdk_is_sparse(const uint8_t *head, size_t len, enum vmdk_kind *kind)
{
    if (len < 8)
        return false;
    if (img_get_le32(head) == VMDK_MAGIC)
        *kind = VMDK_SPARSE;
    else if (img_get_le32(head) == VMDK_COWD_MAGIC)
        *kind = VMDK_COWD;
    else if (img_get_le64(head) == SE_MAGIC)
        *kind = VMDK_SE;
    else
        return false;
    return true;
}

void img_vmdk_header_put(uint8_t *to, const struct vmdk_header *h)
{
    static const uint8_t newlines[] = { '\n', ' ', '\r', '\n' };

    memset(to, 0, VMDK_SECTOR);
    img_put_le32(to, VMDK_MAGIC);
    img_put_le32(to + 4, h->version);
    img_put_le32(to + 8, h->flags);
    img_put_le64(to + 12, h->capacity);
    img_put_le64(to + 20, h->grain);
    img_put_le64(to + 28, h->text_off);
    img_put_le64(to + 36, h->text_len);
    img_put_le32(to + 44, h->gt_entries);
    img_put_le64(to + 48, h->rgd_off);
    img_put_le64(to + 56, h->gd_off);
    img_put_le64(to + 64, h->overhead);
    to[72] = h->unclean;
    memcpy(to + 73, newlines, sizeof newlines);
    img_put_le16(to + 77, h->compressed);
}

static int bad(struct img_file *f, struct img_error *err, const char *what,
               uint64_t value)
{
    return img_fail(err, IMG_ECORRUPT, "%s: VMDK header: %s %llu", f->path,
                    what, (unsigned long long)value);
}

static int check_common(struct img_file *f, const struct vmdk_header *h,
                        struct img_error *err)
{
    if (h->capacity > VMDK_SIZE_MAX / VMDK_SECTOR)
        return bad(f, err, "capacity in sectors is", h->capacity);
    if (!img_is_pow2(h->grain) || h->grain > GRAIN_MAX)
        return bad(f, err, "sectors of a grain are", h->grain);
    if (!img_is_pow2(h->gt_entries) || h->gt_entries > 4096)
        return bad(f, err, "entries of a grain table are", h->gt_entries);
    return 0;
}

/* Bytes 0..511 of the header, or of its footer. */
static int parse_hosted(struct img_file *f, const uint8_t *b,
                        struct vmdk_header *h, struct img_error *err)
{
    static const uint8_t newlines[] = { '\n', ' ', '\r', '\n' };
    unsigned algorithm;

    *h = (struct vmdk_header){
        .kind = VMDK_SPARSE,
        .version = img_get_le32(b + 4), .flags = img_get_le32(b + 8),
        .capacity = img_get_le64(b + 12), .grain = img_get_le64(b + 20),
        .text_off = img_get_le64(b + 28), .text_len = img_get_le64(b + 36),
        .gt_entries = img_get_le32(b + 44),
        .rgd_off = img_get_le64(b + 48), .gd_off = img_get_le64(b + 56),
        .overhead = img_get_le64(b + 64), .unclean = b[72],
    };
    if (!h->version || h->version > 3)
        return img_fail(err, ENOTSUP, "%s: VMDK version %u", f->path,
                        h->version);
    if ((h->flags & VMDK_FLAG_NEWLINES) &&
        memcmp(b + 73, newlines, sizeof newlines))
        return img_fail(err, IMG_ECORRUPT, "%s: VMDK header: line ends were "
                        "changed, as by a transfer as text", f->path);
    algorithm = img_get_le16(b + 77);
    h->compressed = h->flags & VMDK_FLAG_COMPRESSED;
    if (h->compressed && algorithm != 1)
        return img_fail(err, ENOTSUP, "%s: VMDK compression algorithm %u",
                        f->path, algorithm);
    /* Capacity 0: only the descriptor inside counts. */
    if (h->capacity || h->grain || h->gt_entries) {
        int r = check_common(f, h, err);

        if (r)
            return r;
    }
    if (h->compressed && h->grain > PACKED_GRAIN_MAX)
        return bad(f, err, "sectors of a packed grain are", h->grain);
    if (!(h->flags & VMDK_FLAG_REDUNDANT))
        h->rgd_off = 0;
    if (h->text_len > VMDK_TEXT_MAX / VMDK_SECTOR)
        return bad(f, err, "sectors of the descriptor are", h->text_len);
    return 0;
}

/* The last three sectors of a stream: footer marker, footer, end marker. */
static int read_footer(struct img_file *f, uint64_t file_len,
                       struct vmdk_header *h, struct img_error *err)
{
    uint8_t b[3 * VMDK_SECTOR];
    struct vmdk_header front = *h;
    int r;

    if (file_len < 4 * VMDK_SECTOR)
        return img_fail(err, IMG_ECORRUPT, "%s: a VMDK stream of %llu bytes "
                        "has no footer", f->path,
                        (unsigned long long)file_len);
    file_len = img_round_down(file_len, VMDK_SECTOR);
    r = img_file_pread(f, b, sizeof b, file_len - sizeof b, err);
    if (r)
        return r;
    if (img_get_le64(b) != 1 || img_get_le32(b + 8) ||
        img_get_le32(b + 12) != VMDK_MARK_FOOTER ||
        img_get_le32(b + VMDK_SECTOR) != VMDK_MAGIC ||
        img_get_le32(b + 2 * VMDK_SECTOR + 8) ||
        img_get_le32(b + 2 * VMDK_SECTOR + 12) != VMDK_MARK_EOS)
        return img_fail(err, IMG_ECORRUPT, "%s: the VMDK stream is cut off: "
                        "it does not end with a footer (check -r all makes "
                        "one for what is there)", f->path);
    r = parse_hosted(f, b + VMDK_SECTOR, h, err);
    if (r)
        return r;
    if (h->gd_off == VMDK_GD_AT_END || h->capacity != front.capacity ||
        h->grain != front.grain || h->gt_entries != front.gt_entries ||
        h->compressed != front.compressed)
        return img_fail(err, IMG_ECORRUPT, "%s: the VMDK stream's footer "
                        "contradicts its header", f->path);
    h->footer = true;
    h->text_off = front.text_off;
    h->text_len = front.text_len;
    return 0;
}

/* ESX server sparse: all numbers have 32 bits, tables 4096 entries. */
static int parse_cowd(struct img_file *f, const uint8_t *b,
                      struct vmdk_header *h, struct img_error *err)
{
    *h = (struct vmdk_header){
        .kind = VMDK_COWD,
        .version = img_get_le32(b + 4), .flags = img_get_le32(b + 8),
        .capacity = img_get_le32(b + 12), .grain = img_get_le32(b + 16),
        .gt_entries = 4096, .gd_off = img_get_le32(b + 20),
        .gd_max = img_get_le32(b + 24), .free_sector = img_get_le32(b + 28),
    };
    if (h->version != 1)
        return img_fail(err, ENOTSUP, "%s: COWD version %u", f->path,
                        h->version);
    return check_common(f, h, err);
}

static int parse_se(struct img_file *f, const uint8_t *b,
                    struct vmdk_header *h, struct img_error *err)
{
    uint8_t v[VMDK_SECTOR];
    uint64_t gd_sectors, off;
    int r;

    *h = (struct vmdk_header){
        .kind = VMDK_SE, .version = 1,
        .capacity = img_get_le64(b + 16), .grain = img_get_le64(b + 24),
        .gt_entries = 4096, .gd_off = img_get_le64(b + 128),
        .tables_off = img_get_le64(b + 144),
        .grains_off = img_get_le64(b + 192),
    };
    if (img_get_le64(b + 8) != SE_VERSION)
        return img_fail(err, ENOTSUP, "%s: seSparse version 0x%llx", f->path,
                        (unsigned long long)img_get_le64(b + 8));
    if (h->grain != 8)
        return bad(f, err, "sectors of an seSparse grain are", h->grain);
    if (img_get_le64(b + 32) != 64)
        return bad(f, err, "sectors of an seSparse grain table are",
                   img_get_le64(b + 32));
    if (img_get_le64(b + 40))
        return img_fail(err, ENOTSUP, "%s: seSparse flags 0x%llx", f->path,
                        (unsigned long long)img_get_le64(b + 40));
    gd_sectors = img_get_le64(b + 136);
    if (gd_sectors > VMDK_DIRECTORY_MAX / VMDK_SECTOR)
        return bad(f, err, "sectors of the directory are", gd_sectors);
    h->gd_max = gd_sectors * (VMDK_SECTOR / 8);
    off = img_get_le64(b + 80);     /* of the volatile header */
    if (!off || off > UINT32_MAX)
        return bad(f, err, "sector of the volatile seSparse header is", off);
    r = img_file_pread(f, v, sizeof v, off * VMDK_SECTOR, err);
    if (r)
        return r;
    if (img_get_le64(v) != SE_VOLATILE_MAGIC)
        return bad(f, err, "magic of the volatile seSparse header is",
                   img_get_le64(v));
    if (img_get_le64(v + 24))
        return img_fail(err, ENOTSUP, "%s: the seSparse journal has to be "
                        "replayed first, by ESXi", f->path);
    return check_common(f, h, err);
}

int img_vmdk_header_read(struct img_file *f, uint64_t file_len,
                         bool lenient, struct vmdk_header *h,
                         struct img_error *err)
{
    struct vmdk_header front;
    uint8_t b[VMDK_SECTOR];
    enum vmdk_kind kind;
    int r;

    if (file_len < VMDK_SECTOR)
        return img_fail(err, IMG_ECORRUPT, "%s: no sparse extent of VMDK: "
                        "only %llu bytes", f->path,
                        (unsigned long long)file_len);
    r = img_file_pread(f, b, sizeof b, 0, err);
    if (r)
        return r;
    if (!img_vmdk_is_sparse(b, sizeof b, &kind))
        return img_fail(err, IMG_ECORRUPT, "%s: no sparse extent of VMDK: it "
                        "begins with 0x%08x", f->path, img_get_le32(b));
    if (kind == VMDK_COWD)
        return parse_cowd(f, b, h, err);
    if (kind == VMDK_SE)
        return parse_se(f, b, h, err);
    r = parse_hosted(f, b, h, err);
    if (r || h->gd_off != VMDK_GD_AT_END || !h->capacity)
        return r;
    front = *h;
    r = read_footer(f, file_len, h, err);
    if ((r == -IMG_ECORRUPT || r == -ENOTSUP) && lenient &&
        front.compressed && (front.flags & VMDK_FLAG_MARKERS)) {
        *h = front;
        r = 0;
    }
    return r;
}
