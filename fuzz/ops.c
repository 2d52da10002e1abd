/* Fuzz target: random operations on a random qcow2.  The first bytes are
 * operations, the rest is the image.  Where check found the image sound, it
 * must behave as a flat array does, and be sound afterwards.
 *
 * Input: a byte n, n operations of 6 bytes (what, offset 3, length 2), the
 * image. */
#include "fuzz.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW = 1 << 20, OP_BYTES = 6 };
static uint8_t flat[WINDOW], buf[WINDOW];

static void count_flags(void *count, const char *line)
{
    if (strstr(line, "OFLAG_COPIED data cluster") &&
        strstr(line, "refcount is 1"))
        ++*(uint64_t *)count;
}

/* The number of entries that do without a COPIED flag they may have is left
 * in *flags; nothing else must be wrong. */
static bool sound(struct img_disk *disk, uint64_t *flags, uint64_t *packed)
{
    struct img_check_options opts = IMG_CHECK_OPTIONS;
    struct img_check_result result;

    *flags = 0;
    opts.report = count_flags;
    opts.report_opaque = flags;
    if (img_check(disk, &opts, NULL, &result, NULL) < 0)
        return false;
    if (packed)
        *packed = result.compressed;
    return result.errors == *flags && !result.check_errors;
}

static int by_place(const void *a, const void *b)
{
    const struct img_extent *x = a, *y = b;

    return (x->host_off > y->host_off) - (x->host_off < y->host_off);
}

/* Does a place in the file show in two places of the disk, or are there too
 * many to know?  Writing to one of them leaves the other's COPIED flag
 * behind, as with QEMU. */
static bool shares(struct img_disk *disk)
{
    static struct img_extent extents[4096];
    uint64_t size = img_size(disk), off = 0;
    size_t n = 0;

    while (off < size) {
        struct img_extent *e = &extents[n];

        if (n == sizeof extents / sizeof *extents ||
            img_map(disk, off, size - off, 0, e, NULL) < 0)
            return true;
        off += e->len;
        n += e->kind == IMG_DATA;
    }
    qsort(extents, n, sizeof *extents, by_place);
    for (size_t i = 1; i < n; i++)
        if (extents[i - 1].host_off + extents[i - 1].len >
            extents[i].host_off)
            return true;
    return false;
}

/* What this part of the window reads as from now on. */
static void adopt(struct img_disk *disk, uint64_t off, uint64_t len,
                  bool trust)
{
    if (img_pread(disk, buf, len, off, NULL) < 0)
        return;
    for (uint64_t i = 0; trust && i < len; i++)
        FUZZ_ASSERT(!buf[i] || buf[i] == flat[off + i]);
    memcpy(flat + off, buf, len);
}

static void operate(struct img_disk *disk, const uint8_t *op, uint64_t size,
                    bool trust)
{
    uint64_t off = (op[1] | op[2] << 8 | (uint64_t)op[3] << 16) % size;
    uint64_t len = 1 + (op[4] | (uint64_t)op[5] << 8);
    int r;

    if (len > size - off)
        len = size - off;
    switch (op[0] % 6) {
    case 0:
        memset(buf, op[0], len);
        r = img_pwrite(disk, buf, len, off, 0, NULL);
        if (r >= 0)
            memset(flat + off, op[0], len);
        break;
    case 1:
        r = img_zero(disk, off, len, op[0] & 64 ? IMG_MAY_UNMAP : 0, NULL);
        if (r >= 0)
            memset(flat + off, 0, len);
        break;
    case 2:
        r = img_discard(disk, off, len, NULL);
        if (r >= 0)
            adopt(disk, off, len, trust);
        break;
    case 3:
        r = img_flush(disk, NULL);
        break;
    default:
        r = img_pread(disk, buf, len, off, NULL);
        FUZZ_ASSERT(!trust || r < 0 || !memcmp(buf, flat + off, len));
        break;
    }
    FUZZ_ASSERT(!trust || r >= 0 || r == -EFBIG || r == -ENOTSUP ||
                r == -ENOSPC);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct img_disk *disk;
    size_t n_ops;
    uint64_t size, flags = 0, packed = 0;
    bool trust;

    if (!len)
        return 0;
    n_ops = data[0];
    if (1 + n_ops * OP_BYTES > len)
        n_ops = (len - 1) / OP_BYTES;
    disk = fuzz_open("qcow2", IMG_OPEN_WRITE, data + 1 + n_ops * OP_BYTES,
                     len - 1 - n_ops * OP_BYTES);
    if (!disk)
        return 0;
    size = img_size(disk) < WINDOW ? img_size(disk) : WINDOW;
    trust = size && sound(disk, &flags, &packed) && !flags &&
            !shares(disk) && img_pread(disk, flat, size, 0, NULL) >= 0;
    for (size_t i = 0; size && i < n_ops; i++)
        operate(disk, data + 1 + i * OP_BYTES, size, trust);
    if (trust) {
        FUZZ_ASSERT(img_pread(disk, buf, size, 0, NULL) >= 0);
        FUZZ_ASSERT(!memcmp(buf, flat, size));
        FUZZ_ASSERT(sound(disk, &flags, NULL));
        /* A packed cluster may lie in one that shows elsewhere, too. */
        FUZZ_ASSERT(packed || !flags);
    }
    img_close(disk, NULL);
    return 0;
}
