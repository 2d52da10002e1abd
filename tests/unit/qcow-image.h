/* qcow images to be damaged, and what they show. */
#ifndef TESTS_UNIT_QCOW_IMAGE_H
#define TESTS_UNIT_QCOW_IMAGE_H
#include "folder.h"

#include <fcntl.h>
#include <unistd.h>

enum { K = 1024 };

static inline void poke(const char *name, uint64_t at, const void *data,
                        size_t len)
{
    int fd = open(in_folder(name), O_CREAT | O_WRONLY, 0600);

    assert_int_equal(pwrite(fd, data, len, (off_t)at), len);
    close(fd);
}

static inline void poke64(const char *name, uint64_t at, uint64_t value)
{
    uint8_t p[8];

    img_put_be64(p, value);
    poke(name, at, p, 8);
}

static inline void poke32(const char *name, uint64_t at, uint32_t value)
{
    uint8_t p[4];

    img_put_be32(p, value);
    poke(name, at, p, 4);
}

static inline uint64_t peek64(const char *name, uint64_t at)
{
    int fd = open(in_folder(name), O_RDONLY);
    uint8_t p[8];

    assert_int_equal(pread(fd, p, 8, (off_t)at), 8);
    close(fd);
    return img_get_be64(p);
}

static inline void new_image(uint64_t size)
{
    assert_ok(make("q", "qcow", size, NULL, NULL, 0, NULL), err);
}

static inline struct img_check_result check_it(unsigned repair)
{
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_check_result result;
    struct img_disk *d = open_as("q", "qcow", repair ? IMG_OPEN_WRITE |
                                 IMG_OPEN_REPAIR : 0);

    o.repair = repair;
    memset(&result, 0, sizeof result);
    assert_ok(img_check(d, &o, NULL, &result, &err), err);
    assert_ok(img_close(d, &err), err);
    return result;
}

static inline void assert_reads(const uint8_t *flat, uint64_t size)
{
    struct img_disk *d = open_as("q", "qcow", 0);
    uint8_t *got = malloc(size);

    assert_int_equal(img_size(d), size);
    assert_ok(img_pread(d, got, size, 0, &err), err);
    assert_memory_equal(got, flat, size);
    free(got);
    assert_ok(img_close(d, &err), err);
}
#endif
