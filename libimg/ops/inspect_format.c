/* Rules for single formats: see inspect.c, which says whose they are. */
#include "ops/inspect.h"
#include "base/checked.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

/* ---- qcow2 ------------------------------------------------------------- */

/* QEMU's docs/interop/qcow2.txt. */
enum {
    Q_VERSION = 4, Q_BACKING = 8, Q_BACKING_LEN = 16, Q_SIZE = 24,
    Q_CRYPT = 32, Q_INCOMPATIBLE = 72, Q_AUTOCLEAR = 88,
    Q_HEADER_LEN = 100, Q_V2_HEADER = 72, Q_V3_HEADER = 104,
    Q_DATA_FILE = 4, Q_EXTENDED_L2 = 16, Q_KNOWN = 31, Q_AUTOCLEAR_KNOWN = 3,
    Q_EXT_DATA_FILE = 0x44415441, Q_NAME_MAX = 1023
};

/* The name of the data file is a header extension. */
static void find_data_file(struct img_inspection *in, uint32_t header_len)
{
    uint64_t off = header_len;
    uint32_t type = 0, len = 0;

    while (img_span_be32(in->head, (size_t)off, &type) &&
           img_span_be32(in->head, (size_t)off + 4, &len) && type) {
        struct img_span name;

        off += 8;
        if (type == Q_EXT_DATA_FILE &&
            img_span_part(in->head, (size_t)off, len, &name)) {
            img_inspect_refer(in, "data_file", "data-file", name.data,
                              name.len);
            return;
        }
        off += img_round_up(len, 8);
    }
    img_inspect_find(in, IMG_FOREIGN, "data_file", "has a data file, but "
                     "does not say its name");
}

static void check_features(struct img_inspection *in, uint32_t version)
{
    uint64_t bits = 0, autoclear = 0;
    uint32_t header_len = 0;

    if (version != 2 && version != 3) {
        img_inspect_find(in, IMG_REJECT, "unknown_features", "qcow2 version "
                         "%u is not known", version);
        return;
    }
    img_span_be64(in->head, Q_INCOMPATIBLE, &bits);
    if (version == 2) {
        /* What OpenStack's inspector takes for that bit: it does not look
         * at the version. */
        if (bits & Q_DATA_FILE)
            img_inspect_find(in, IMG_FOREIGN, "data_file", "may be taken for "
                             "an image with a data file");
        if (bits & ~(uint64_t)Q_KNOWN)
            img_inspect_find(in, IMG_FOREIGN, "unknown_features", "has, where "
                             "version 3 has its features, 0x%llx",
                             (unsigned long long)bits);
        return;
    }
    img_span_be64(in->head, Q_AUTOCLEAR, &autoclear);
    img_span_be32(in->head, Q_HEADER_LEN, &header_len);
    if (bits & Q_DATA_FILE)
        find_data_file(in, header_len);
    if (bits & ~(uint64_t)Q_KNOWN)
        img_inspect_find(in, IMG_REJECT, "unknown_features", "has unknown "
                         "incompatible features 0x%llx", (unsigned long long)
                         (bits & ~(uint64_t)Q_KNOWN));
    /* OpenStack's inspector knows bits 0 to 3. */
    if (bits & Q_EXTENDED_L2)
        img_inspect_find(in, IMG_FOREIGN, "unknown_features", "has extended "
                         "L2 entries, which many programs do not know");
    if (autoclear & ~(uint64_t)Q_AUTOCLEAR_KNOWN)
        img_inspect_find(in, IMG_NOTE, "unknown_autoclear", "has unknown "
                         "autoclear features 0x%llx", (unsigned long long)
                         (autoclear & ~(uint64_t)Q_AUTOCLEAR_KNOWN));
    if (header_len < Q_V3_HEADER || header_len > in->head.len)
        img_inspect_find(in, IMG_REJECT, "header_length", "says that its "
                         "header has %u bytes", header_len);
}

void img_inspect_qcow2(struct img_inspection *in)
{
    uint32_t version = 0, crypt = 0, len = 0;
    uint64_t backing = 0;
    struct img_span name;

    if (in->head.len < Q_V2_HEADER) {
        img_inspect_find(in, IMG_REJECT, "header", "is cut off within its "
                         "header");
        return;
    }
    img_span_be32(in->head, Q_VERSION, &version);
    img_span_be64(in->head, Q_BACKING, &backing);
    img_span_be32(in->head, Q_BACKING_LEN, &len);
    img_span_be32(in->head, Q_CRYPT, &crypt);
    img_span_be64(in->head, Q_SIZE, &in->v->size);
    if (backing && len && len <= Q_NAME_MAX && backing <= in->head.len &&
        img_span_part(in->head, (size_t)backing, len, &name))
        img_inspect_refer(in, "backing_file", "backing-file", name.data,
                          name.len);
    else if (backing)
        img_inspect_find(in, IMG_REJECT, "backing_file", "has a backing "
                         "file whose name is not in the header");
    if (crypt) {
        in->v->encrypted = true;
        img_inspect_find(in, IMG_NOTE, "encryption", "is encrypted; what is "
                         "behind the header was not looked at");
    }
    check_features(in, version);
}

/* ---- VHD --------------------------------------------------------------- */

/* Virtual Hard Disk Image Format Specification 1.0. */
void img_inspect_vhd(struct img_inspection *in)
{
    enum { SIZE_AT = 48, TYPE_AT = 60, DIFFERENCING = 4 };
    uint32_t type = 0;

    if (!img_span_be32(in->head, TYPE_AT, &type))
        img_inspect_find(in, IMG_REJECT, "header", "is cut off within its "
                         "footer");
    img_span_be64(in->head, SIZE_AT, &in->v->size);
    if (type == DIFFERENCING)
        img_inspect_find(in, IMG_FOREIGN, "backing_file", "is a differencing "
                         "disk, which rests on another file");
}

/* ---- VHDX -------------------------------------------------------------- */

/* [MS-VHDX] 2.2.3 and 2.6: the region table at 192 KiB leads to the metadata
 * table, whose entries lead to the items. */
static const uint8_t *find_entry(const uint8_t *table, size_t len,
                                 size_t first, uint32_t n,
                                 const uint8_t id[16])
{
    for (uint32_t i = 0; i < n; i++) {
        size_t at = first + (size_t)i * 32;

        if (at + 32 > len)
            return NULL;
        if (!memcmp(table + at, id, 16))
            return table + at;
    }
    return NULL;
}

static const uint8_t *read_piece(struct img_inspection *in, uint8_t *buf,
                                 uint64_t off, size_t len)
{
    return img_inside(off, len, in->v->file_length) &&
           img_file_pread(in->file, buf, len, off, NULL) == 0 ? buf : NULL;
}

void img_inspect_vhdx(struct img_inspection *in)
{
    enum { TABLE = 64 * 1024, REGIONS_AT = 192 * 1024, MAX = 2047 };
    static const uint8_t metadata[16] = {   /* 8B7CA206-4790-4B9A-... */
        0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b,
        0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e };
    static const uint8_t parameters[16] = { /* CAA16737-FA36-4D43-... */
        0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d,
        0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b };
    static const uint8_t disk_size[16] = {  /* 2FA54224-CD1B-4876-... */
        0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48,
        0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8 };
    uint8_t *buf = malloc(TABLE), item[8];
    const uint8_t *t = NULL, *e = NULL, *size = NULL;
    uint64_t off = 0;

    if (!buf) {
        in->no_memory = true;
        return;
    }
    t = read_piece(in, buf, REGIONS_AT, TABLE);
    if (t && !memcmp(t, "regi", 4) && img_get_le32(t + 8) <= MAX)
        e = find_entry(t, TABLE, 16, img_get_le32(t + 8), metadata);
    off = e ? img_get_le64(e + 16) : 0;
    e = NULL;
    t = off ? read_piece(in, buf, off, TABLE) : NULL;
    if (t && !memcmp(t, "metadata", 8) && img_get_le16(t + 10) <= MAX) {
        e = find_entry(t, TABLE, 32, img_get_le16(t + 10), parameters);
        size = find_entry(t, TABLE, 32, img_get_le16(t + 10), disk_size);
    }
    if (size && read_piece(in, item, off + img_get_le32(size + 16), 8))
        in->v->size = img_get_le64(item);
    if (!e || !read_piece(in, item, off + img_get_le32(e + 16), 8))
        img_inspect_find(in, IMG_REJECT, "header", "has no readable VHDX "
                         "metadata");
    else if (img_get_le32(item + 4) & 2)    /* HasParent */
        img_inspect_find(in, IMG_FOREIGN, "backing_file", "is a differencing "
                         "disk, which rests on another file");
    free(buf);
}

/* ---- partition tables -------------------------------------------------- */

/* The boot record of a disk: UEFI 2.10, 5.2.  One of no disk may be there to
 * deceive whoever looks for one. */
void img_inspect_gpt(struct img_inspection *in)
{
    enum { ENTRY_AT = 446, ENTRY = 16, PROTECTIVE = 0xee };
    unsigned used = 0;
    bool gpt = false;

    for (unsigned i = 0; i < 4; i++) {
        const uint8_t *e = in->head.data + ENTRY_AT + i * ENTRY;

        if (e[0] != 0 && e[0] != 0x80)
            img_inspect_find(in, IMG_FOREIGN, "mbr", "partition %u has the "
                             "boot flag 0x%x", i + 1, e[0]);
        if (e[4])
            used |= 1u << i;
        if (e[4] != PROTECTIVE)
            continue;
        gpt = true;
        if (e[1] != 0 || e[2] != 2 || e[3] != 0 || img_get_le32(e + 8) != 1)
            img_inspect_find(in, IMG_FOREIGN, "mbr", "the protective "
                             "partition does not begin at block 1");
    }
    if (gpt && used != 1)
        img_inspect_find(in, IMG_FOREIGN, "mbr", "there are partitions beside "
                         "the protective one");
    if (!used)
        img_inspect_find(in, IMG_FOREIGN, "mbr", "the boot record has no "
                         "partitions");
}

/* ---- LUKS -------------------------------------------------------------- */

void img_inspect_luks(struct img_inspection *in)
{
    enum { VERSION_AT = 6 };
    uint16_t version = 0;

    in->v->encrypted = true;
    img_span_be16(in->head, VERSION_AT, &version);
    if (version != 1)
        img_inspect_find(in, IMG_FOREIGN, "version", "LUKS version %u is not "
                         "supported", version);
}
