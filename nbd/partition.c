/* Partition tables, as the UEFI specification (5.3: GPT) and common practice
 * (MBR) have them.  All numbers come from the guest: whatever does not lie
 * inside the disk is left out. */
#include <endian.h>
#include <errno.h>
#include <libimg.h>
#include <stdlib.h>
#include <string.h>
#include "partition.h"

enum { SECTOR = 512, MBR_TABLE = 446, MBR_SIGN = 510, GPT_HEAD = 92 };

static uint32_t le32(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof v);
    return le32toh(v);
}

static uint64_t le64(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof v);
    return le64toh(v);
}

struct table {
    struct img_disk *disk;
    struct nbd_partition *list;
    int n;
};

static void add(struct table *t, unsigned number, uint64_t first,
                uint64_t count, uint32_t sector)
{
    uint64_t end = img_size(t->disk) / sector;

    if (!count || first >= end || t->n == NBD_PARTITIONS_MAX)
        return;
    if (count > end - first)
        count = end - first;
    t->list[t->n++] = (struct nbd_partition){
        number, first * sector, count * sector
    };
}

static bool is_extended(uint8_t type)
{
    return type == 0x05 || type == 0x0f || type == 0x85;
}

/* Logical partitions: a chain of tables, each with one partition and the
 * place of the next table. */
static int logical(struct table *t, uint64_t start, struct img_error *err)
{
    uint64_t at = start;
    uint8_t s[SECTOR];

    for (unsigned number = 5; number < 64; number++) {
        const uint8_t *e = s + MBR_TABLE;
        int ret;

        if (at >= img_size(t->disk) / SECTOR)
            return 0;
        ret = img_pread(t->disk, s, sizeof s, at * SECTOR, err);
        if (ret < 0)
            return ret;
        if (s[MBR_SIGN] != 0x55 || s[MBR_SIGN + 1] != 0xaa)
            return 0;
        if (e[4])
            add(t, number, at + le32(e + 8), le32(e + 12), SECTOR);
        if (!is_extended(e[16 + 4]) || !le32(e + 16 + 8))
            return 0;
        at = start + le32(e + 16 + 8);
    }
    return 0;
}

static int gpt_entries(struct table *t, const uint8_t *head, uint32_t sector,
                       struct img_error *err)
{
    uint64_t lba = le64(head + 72);
    uint32_t n = le32(head + 80), size = le32(head + 84);
    static const uint8_t unused[16];
    uint8_t e[128];

    if (size < sizeof e || size > 4096 || lba > img_size(t->disk) / sector)
        return 0;
    if (n > NBD_PARTITIONS_MAX)
        n = NBD_PARTITIONS_MAX;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t off = lba * sector + (uint64_t)i * size, first, last;
        int ret;

        if (off > img_size(t->disk) ||
            sizeof e > img_size(t->disk) - off)
            return 0;
        ret = img_pread(t->disk, e, sizeof e, off, err);
        if (ret < 0)
            return ret;
        first = le64(e + 32);
        last = le64(e + 40);
        if (memcmp(e, unused, sizeof unused) && last >= first &&
            last - first < UINT64_MAX)
            add(t, i + 1, first, last - first + 1, sector);
    }
    return 0;
}

/* 1 = there is one. */
static int gpt(struct table *t, struct img_error *err)
{
    static const uint32_t sectors[] = { 512, 4096 };
    uint8_t head[GPT_HEAD];

    for (unsigned i = 0; i < 2; i++) {
        int ret;

        if (img_size(t->disk) < (uint64_t)sectors[i] + sizeof head)
            return 0;
        ret = img_pread(t->disk, head, sizeof head, sectors[i], err);
        if (ret < 0)
            return ret;
        if (memcmp(head, "EFI PART", 8))
            continue;
        ret = gpt_entries(t, head, sectors[i], err);
        return ret < 0 ? ret : 1;
    }
    return 0;
}

int nbd_partitions(struct img_disk *disk, struct nbd_partition *list,
                   struct img_error *err)
{
    struct table t = { disk, list, 0 };
    uint8_t s[SECTOR];
    int ret;

    if (img_size(disk) < SECTOR)
        return 0;
    ret = gpt(&t, err);
    if (ret)
        return ret < 0 ? ret : t.n;
    ret = img_pread(disk, s, sizeof s, 0, err);
    if (ret < 0)
        return ret;
    if (s[MBR_SIGN] != 0x55 || s[MBR_SIGN + 1] != 0xaa)
        return 0;
    for (unsigned i = 0; i < 4; i++) {
        const uint8_t *e = s + MBR_TABLE + i * 16;

        if (e[4] && !is_extended(e[4]))
            add(&t, i + 1, le32(e + 8), le32(e + 12), SECTOR);
    }
    for (unsigned i = 0; i < 4 && ret >= 0; i++) {
        const uint8_t *e = s + MBR_TABLE + i * 16;

        if (is_extended(e[4]))
            ret = logical(&t, le32(e + 8), err);
    }
    return ret < 0 ? ret : t.n;
}
