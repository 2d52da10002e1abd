/* Fuzz target: a sound qcow2 image in which numbers of its tables were
 * changed, so that the parser is passed and what is behind it is reached.
 *
 * Input: a byte that chooses the image, then changes of 8 bytes each: which
 * table, how the value is made, index (2), value (4).  An offset is made
 * from the image's own ones as often as from nothing. */
#include "fuzz.h"
#include "base/bytes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX = 1 << 20, N_BASES = 6, CHANGE = 8, DISK = 300 * 1024 };

static struct base { uint8_t *data; size_t len; } bases[N_BASES];

static struct img_disk *open_path(const char *path, unsigned flags)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_disk *disk = NULL;

    opts.format = "qcow2";
    opts.flags = flags | IMG_OPEN_NO_SYNC | IMG_OPEN_NO_LOCK;
    FUZZ_ASSERT(img_open(path, &opts, &disk, NULL) == 0);
    return disk;
}

/* Data, a packed cluster, zeros, a snapshot and a bitmap. */
static void fill(const char *path, bool v3)
{
    static uint8_t buf[65536];
    struct img_disk *disk = open_path(path, IMG_OPEN_WRITE);
    struct img_limits limits;

    img_limits(disk, &limits);
    memset(buf, 7, sizeof buf);
    FUZZ_ASSERT(img_pwrite(disk, buf, 20000, 1000, 0, NULL) == 0);
    FUZZ_ASSERT(img_pwrite(disk, buf, limits.cluster, 2 * limits.cluster *
                           (65536 / limits.cluster), IMG_COMPRESS,
                           NULL) == 0);
    FUZZ_ASSERT(img_snapshot_create(disk, "s", NULL) == 0);
    FUZZ_ASSERT(img_pwrite(disk, buf, 5000, 3000, 0, NULL) == 0);
    FUZZ_ASSERT(img_zero(disk, 9000, 9000, 0, NULL) == 0);
    if (v3)
        FUZZ_ASSERT(img_bitmap_edit(disk, "b", IMG_BITMAP_ADD, 65536,
                                    NULL) == 0);
    FUZZ_ASSERT(img_close(disk, NULL) == 0);
}

static const struct base *get_base(unsigned which)
{
    static const char *const settings[N_BASES][3] = {
        { "cluster_size=512" }, { "cluster_size=4k" }, { "compat=0.10" },
        { "cluster_size=16k", "extended_l2=on" },
        { "cluster_size=512", "refcount_bits=1" },
        { "cluster_size=512", "refcount_bits=64" },
    };
    struct img_create_options create = IMG_CREATE_OPTIONS;
    struct base *b = &bases[which % N_BASES];
    char path[] = "/tmp/fuzz-structure.XXXXXX";
    ssize_t n;
    int fd;

    if (b->data)
        return b;
    fd = mkstemp(path);
    FUZZ_ASSERT(fd >= 0);
    create.format = "qcow2";
    create.disk_size = DISK;
    create.settings = settings[which % N_BASES];
    create.flags = IMG_CREATE_NO_SYNC | IMG_CREATE_IN_PLACE;
    FUZZ_ASSERT(img_create(path, &create, NULL) == 0);
    if (which % N_BASES != 4)       /* one bit counts no snapshots */
        fill(path, which % N_BASES != 2);
    b->data = malloc(MAX);
    n = b->data ? pread(fd, b->data, MAX, 0) : -1;
    FUZZ_ASSERT(n > 0);
    b->len = (size_t)n;
    unlink(path);
    close(fd);
    return b;
}

/* Offset of the table and bytes of an entry. */
static size_t find_table(const uint8_t *p, size_t len, unsigned which,
                         unsigned *width)
{
    uint64_t off = 0, mask = UINT64_C(0x00fffffffffffe00);

    *width = 8;
    switch (which % 8) {
    case 0:
        *width = 4;             /* the header */
        return 0;
    case 1:
        off = img_get_be64(p + 40);     /* L1 */
        break;
    case 2:
        off = img_get_be64(p + 40);     /* L2 */
        off = off + 8 <= len ? img_get_be64(p + off) & mask : 0;
        break;
    case 3:
        off = img_get_be64(p + 48);     /* refcount table */
        break;
    case 4:
        off = img_get_be64(p + 48);     /* refcount block */
        off = off + 8 <= len ? img_get_be64(p + off) & mask : 0;
        *width = 2;
        break;
    case 5:
        off = img_get_be64(p + 64);     /* snapshots */
        *width = 4;
        break;
    case 6:
        off = 104;                      /* extensions */
        *width = 4;
        break;
    default:
        off = img_get_be64(p + 40) + 512;   /* whatever is there */
        break;
    }
    return off < len ? (size_t)off : 0;
}

static void change(uint8_t *p, size_t len, const uint8_t *c)
{
    static const uint64_t odd[] = {
        0, 1, 2, UINT64_MAX, UINT64_C(1) << 63, UINT64_C(1) << 62,
        UINT64_C(3) << 62, UINT64_C(0x00fffffffffffe00), INT64_MAX,
        UINT32_MAX
    };
    unsigned width, index = c[2] | (unsigned)c[3] << 8;
    size_t off = find_table(p, len, c[0], &width);
    uint64_t value = img_get_be32(c + 4), old;

    off += (size_t)(index % 128) * width;
    if (off + width > len)
        return;
    old = width == 8 ? img_get_be64(p + off) : 0;
    switch (c[1] % 6) {
    case 0:
        value = odd[value % (sizeof odd / sizeof odd[0])];
        break;
    case 1:                             /* a place in the file, or behind */
        value = (value % (len / 512 + 3) * 512) | (old & UINT64_C(3) << 62);
        break;
    case 2:
        value = old ^ UINT64_C(1) << value % 64;
        break;
    case 3:
        value = old + (int32_t)value;
        break;
    case 4:                             /* another entry's */
        value = value % len + 8 <= len ? img_get_be64(p + value % len) : 0;
        break;
    default:
        break;
    }
    if (width == 8)
        img_put_be64(p + off, value);
    else if (width == 4)
        img_put_be32(p + off, (uint32_t)value);
    else
        img_put_be16(p + off, (uint16_t)value);
}

static void use(struct img_disk *disk, bool writable)
{
    static uint8_t buf[DISK];
    uint64_t size = img_size(disk) < DISK ? img_size(disk) : DISK;
    struct img_check_options check = IMG_CHECK_OPTIONS;
    struct img_check_result result;
    struct img_error err = { 0 };

    if (size && img_pread(disk, buf, size, 0, &err) < 0)
        FUZZ_ASSERT(err.message[0]);
    if (writable && size) {
        for (uint64_t off = 0; off + 3000 <= size; off += 40000)
            img_pwrite(disk, buf, 3000, off, 0, NULL);
        img_discard(disk, 0, size, NULL);
        img_snapshot_apply(disk, "s", NULL);
        img_snapshot_delete(disk, "s", NULL);
        img_bitmap_edit(disk, "b", IMG_BITMAP_CLEAR, 0, NULL);
        img_flush(disk, NULL);
    }
    check.repair = writable ? IMG_REPAIR_ALL : 0;
    if (img_check(disk, &check, NULL, &result, &err) < 0)
        FUZZ_ASSERT(err.message[0]);
}

/* One repair may find what the next one mends, but it leaves an image that
 * can be looked at again. */
static void repair(struct img_disk *disk)
{
    struct img_check_options check = IMG_CHECK_OPTIONS;
    struct img_check_result result;

    check.repair = IMG_REPAIR_ALL;
    if (img_check(disk, &check, NULL, &result, NULL) < 0)
        return;
    check.repair = 0;
    FUZZ_ASSERT(img_check(disk, &check, NULL, &result, NULL) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    const struct base *b = get_base(len ? data[0] : 0);
    uint8_t *image = malloc(b->len);
    struct img_disk *disk;

    FUZZ_ASSERT(image);
    memcpy(image, b->data, b->len);
    for (size_t at = 1; at + CHANGE <= len; at += CHANGE)
        change(image, b->len, data + at);
    disk = fuzz_open("qcow2", 0, image, b->len);
    if (disk)
        use(disk, false);
    img_close(disk, NULL);
    disk = fuzz_open("qcow2", IMG_OPEN_WRITE, image, b->len);
    if (disk)
        use(disk, true);
    img_close(disk, NULL);
    disk = fuzz_open("qcow2", IMG_OPEN_WRITE | IMG_OPEN_REPAIR, image,
                     b->len);
    if (disk)
        repair(disk);
    img_close(disk, NULL);
    free(image);
    return 0;
}
