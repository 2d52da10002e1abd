/* Image formats that libimg does not read, by their signatures.
 *
 * Whoever finds out a file's format asks here before calling it raw: a disk
 * inside one of these read as raw would be the container's bytes, and written
 * as raw it would be lost.
 *
 * ISO 9660 and other file systems are not in the list: their files are the
 * disk's bytes themselves, so raw is right for them.
 */
#include "foreign.h"
#include "base/bytes.h"
#include "base/checked.h"

#include <stdbool.h>
#include <string.h>

/* Signatures at offset 0, as the formats' own descriptions print them. */
static const struct signature {
    const char *bytes;
    size_t len;
    const char *name;
} signatures[] = {
#define AT_START(text, name) { text, sizeof(text) - 1, name }
    AT_START("vhdxfile", "a VHDX image (Hyper-V)"),
    AT_START("WithoutFreeSpace", "a Parallels image"),
    AT_START("WithouFreSpacExt", "a Parallels image"),
    AT_START("QED\0", "a QED image"),
    AT_START("LUKS\xba\xbe", "a LUKS-encrypted disk"),
    AT_START("Bochs Virtual HD Image", "a Bochs image"),
    AT_START("#!/bin/sh\n#V2.0 Format\nmodprobe cloop",
             "a compressed loop (cloop) image"),
    AT_START("EVF\x09\x0d\x0a\xff\x00", "an EnCase (E01) image"),
    AT_START("EVF2\x0d\x0a\x81\x00", "an EnCase (Ex01) image"),
    AT_START("sprs\0\0\0\x03", "an Apple sparse image"),
    AT_START("encrcdsa", "an encrypted Apple disk image (DMG)"),
#undef AT_START
};

enum { VHD_FOOTER = 512, DMG_TRAILER = 512 };

/* Microsoft's Virtual Hard Disk Image Format Specification 1.0: a footer of
 * 512 bytes at the end of the file (511 from before Virtual PC 2004), of
 * which dynamic and differencing disks have a copy at the start. */
static const char *vhd_name(const uint8_t *p, size_t len)
{
    enum { TYPE_AT = 60, DIFFERENCING = 4 };

    if (len < 8 || memcmp(p, "conectix", 8))
        return NULL;
    if (len >= TYPE_AT + 4 && img_get_be32(p + TYPE_AT) == DIFFERENCING)
        return "a Hyper-V differencing disk (VHD), which is nothing without "
               "its parent";
    return "a VHD image (Virtual PC, Hyper-V)";
}

/* UDIF's trailer: magic, version 4, its own length, big-endian. */
static bool is_dmg(const uint8_t *tail, size_t len)
{
    return len >= DMG_TRAILER &&
           !memcmp(tail + len - DMG_TRAILER, "koly", 4) &&
           img_get_be32(tail + len - DMG_TRAILER + 8) == DMG_TRAILER;
}

const char *img_foreign_name(const uint8_t *head, size_t head_len,
                             const uint8_t *tail, size_t tail_len)
{
    const char *name = vhd_name(head, head_len);

    for (size_t i = 0; !name && i < IMG_COUNT(signatures); i++)
        if (head_len >= signatures[i].len &&
            !memcmp(head, signatures[i].bytes, signatures[i].len))
            name = signatures[i].name;
    if (!name && tail_len >= VHD_FOOTER)
        name = vhd_name(tail + tail_len - VHD_FOOTER, VHD_FOOTER);
    if (!name && tail_len >= VHD_FOOTER)
        name = vhd_name(tail + tail_len - VHD_FOOTER + 1, VHD_FOOTER - 1);
    if (!name && is_dmg(tail, tail_len))
        name = "an Apple disk image (DMG)";
    return name;
}
