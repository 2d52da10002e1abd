/* Small images of many kinds, whose sectors say what was written to them. */
#ifndef TESTS_IMAGE_OPS_H
#define TESTS_IMAGE_OPS_H
#include "unit/unit.h"
#include "unit/scratch.h"
#include "core/disk.h"

#include <fcntl.h>

enum { SECTOR = 512, MAX_SECTORS = 8192, MAX_OPS = 80 };

struct config {
    const char *name, *format;
    const char *settings[4];
    uint64_t size;
    uint32_t cluster;
    bool backing;
    bool repair;                /* errors are expected, and repaired */
};

static const struct config configs[] = {
    { "qcow2, 512-byte clusters", "qcow2", { "cluster_size=512" },
      192 << 10, 512, false, false },
    { "qcow2, 64 KiB clusters", "qcow2", { NULL },
      4 << 20, 65536, false, false },
    { "qcow2, subclusters", "qcow2",
      { "extended_l2=on", "cluster_size=16k" },
      1 << 20, 16384, false, false },
    { "qcow2, 4 KiB clusters over a base", "qcow2", { "cluster_size=4k" },
      1 << 20, 4096, true, false },
    { "qcow2, lazy refcounts", "qcow2",
      { "cluster_size=1k", "lazy_refcounts=on" },
      256 << 10, 1024, false, true },
    { "qcow2, version 2", "qcow2",
      { "compat=0.10", "cluster_size=2k" }, 512 << 10, 2048, false, false },
    { "qcow2, 1-bit refcounts", "qcow2",
      { "refcount_bits=1", "cluster_size=512" },
      192 << 10, 512, false, false },
};

static uint32_t now_tags[MAX_SECTORS];      /* what the disk holds */
static uint8_t buf[MAX_SECTORS * SECTOR];
static struct img_error err;

/* ---- content ----------------------------------------------------------- */

static inline void fill_sectors(uint64_t first, uint64_t n, uint32_t tag)
{
    for (uint64_t s = 0; s < n; s++)
        for (uint64_t i = 0; i < SECTOR; i += 8) {
            uint8_t *p = buf + (s * SECTOR + i);

            img_put_be32(p, tag);
            img_put_be32(p + 4, tag ? (uint32_t)(first + s) : 0);
        }
}

/* The tag of sector s of buf; ~0 = a mixture. */
static inline uint32_t tag_of(uint64_t s)
{
    uint32_t tag = img_get_be32(buf + s * SECTOR);

    for (uint64_t i = 0; i < SECTOR; i += 8) {
        const uint8_t *p = buf + (s * SECTOR + i);

        if (img_get_be32(p) != tag ||
            img_get_be32(p + 4) != (tag ? (uint32_t)s : 0))
            return UINT32_MAX;
    }
    return tag;
}

static inline struct img_disk *open_image(const char *path, const struct config *c,
                                   unsigned flags)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_disk *d;

    o.flags = flags;
    o.format = c->format;
    assert_ok(img_open(path, &o, &d, &err), err);
    return d;
}

static inline void make_base(void)
{
    int fd = open(in_scratch("base"), O_RDWR | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    fill_sectors(0, MAX_SECTORS / 4, 7);
    assert_int_equal(write(fd, buf, MAX_SECTORS / 4 * SECTOR),
                     MAX_SECTORS / 4 * SECTOR);
    close(fd);
}

static inline void make_image(const struct config *c)
{
    struct img_create_options o = IMG_CREATE_OPTIONS;

    o.format = c->format;
    o.disk_size = c->size;
    o.has_size = true;
    o.settings = c->settings;
    if (c->backing) {
        o.backing = in_scratch("base");
        o.backing_format = "raw";
    }
    o.flags = IMG_CREATE_NO_SYNC;
    assert_ok(img_create(in_scratch("image"), &o, &err), err);
    for (uint64_t s = 0; s < c->size / SECTOR; s++)
        now_tags[s] = c->backing && s < MAX_SECTORS / 4 ? 7 : 0;
}
#endif
