/* VDI images built byte by byte from the published layout (VirtualBox's
 * VDICore.h), for what QEMU cannot make, and a model of their content. */
#ifndef TESTS_UNIT_VDI_IMAGE_H
#define TESTS_UNIT_VDI_IMAGE_H
#include "folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FREE = 0xffffffff, ZEROS = 0xfffffffe };

struct shape {
    uint32_t version, header_len, type, map_off, data_off, block_size, extra;
    uint64_t size;
    uint32_t blocks;            /* 0 = as many as size needs */
    uint32_t count;             /* allocated; 0 = as many as there are */
    const char *text;
    uint8_t uuid, modified, parent, parent_modified;    /* all its bytes */
};

/* What a 1.1 image looks like unless a test says otherwise. */
#define SHAPE .version = 0x10001, .header_len = 400, .type = 1,             \
              .map_off = 512, .data_off = 4096, .block_size = 4096,         \
              .uuid = 0x11, .modified = 0x22

/* One byte of a block that tells where it is. */
static inline uint8_t content(uint32_t place, uint64_t at)
{
    return (uint8_t)(place * 37 + at / 512 * 5 + at % 251 + 1);
}

static inline void build_vdi(const char *name, const struct shape *s,
                             const uint32_t *map, uint8_t *flat)
{
    uint32_t blocks = s->blocks ? s->blocks : (uint32_t)
                      ((s->size + s->block_size - 1) / s->block_size);
    uint64_t stride = (uint64_t)s->block_size + s->extra;
    int fd = open(in_folder(name), O_CREAT | O_TRUNC | O_RDWR, 0600);
    uint8_t h[512] = { 0 }, *block = malloc(stride), entry[4];
    uint32_t used = 0;

    assert_true(fd >= 0 && block);
    for (uint32_t i = 0; i < blocks; i++) {
        uint64_t begin = (uint64_t)i * s->block_size;

        img_put_le32(entry, map[i]);
        assert_int_equal(pwrite(fd, entry, 4, s->map_off + i * 4), 4);
        if (map[i] >= ZEROS)
            continue;
        used++;
        memset(block, 0xee, s->extra);
        for (uint64_t k = 0; k < s->block_size; k++)
            block[s->extra + k] = content(map[i], k);
        assert_int_equal(pwrite(fd, block, stride, (off_t)(s->data_off +
                         map[i] * stride)), stride);
        if (flat && begin < s->size)
            memcpy(flat + begin, block + s->extra,
                   IMG_MIN(s->size - begin, (uint64_t)s->block_size));
    }
    snprintf((char *)h, 64, "%s", s->text ? s->text :
             "<<< Oracle VM VirtualBox Disk Image >>>\n");
    img_put_le32(h + 64, 0xbeda107f);
    img_put_le32(h + 68, s->version);
    img_put_le32(h + 72, s->header_len);
    img_put_le32(h + 76, s->type);
    img_put_le32(h + 340, s->map_off);
    img_put_le32(h + 344, s->data_off);
    img_put_le32(h + 360, 512);
    img_put_le64(h + 368, s->size);
    img_put_le32(h + 376, s->block_size);
    img_put_le32(h + 380, s->extra);
    img_put_le32(h + 384, blocks);
    img_put_le32(h + 388, s->count ? s->count : used);
    memset(h + 392, s->uuid, 16);
    memset(h + 408, s->modified, 16);
    memset(h + 424, s->parent, 16);
    memset(h + 440, s->parent_modified, 16);
    assert_int_equal(pwrite(fd, h, 72 + 384, 0), 72 + 384);
    if (s->map_off >= 512)
        assert_int_equal(pwrite(fd, h, 512, 0), 512);
    free(block);
    close(fd);
}

static inline uint32_t header32(const char *name, unsigned at)
{
    uint8_t p[4];
    int fd = open(in_folder(name), O_RDONLY);

    assert_int_equal(pread(fd, p, 4, at), 4);
    close(fd);
    return img_get_le32(p);
}

static inline void poke(const char *name, uint64_t at, const void *data,
                        size_t len)
{
    int fd = open(in_folder(name), O_WRONLY);

    assert_int_equal(pwrite(fd, data, len, (off_t)at), len);
    close(fd);
}

static inline void poke32(const char *name, uint64_t at, uint32_t value)
{
    uint8_t p[4];

    img_put_le32(p, value);
    poke(name, at, p, 4);
}

static inline uint64_t file_length(const char *name)
{
    struct stat st;

    assert_int_equal(stat(in_folder(name), &st), 0);
    return (uint64_t)st.st_size;
}

static inline void assert_reads(struct img_disk *d, const uint8_t *flat,
                                uint64_t size)
{
    uint8_t *got = malloc(size);

    assert_int_equal(img_size(d), size);
    assert_ok(img_pread(d, got, size, 0, &err), err);
    for (uint64_t i = 0; i < size; i++)
        if (got[i] != flat[i])
            fail_msg("byte %llu is %02x, should be %02x",
                     (unsigned long long)i, got[i], flat[i]);
    free(got);
}

/* Random writes, zeros and discards on both. */
static inline void change(struct img_disk *d, uint8_t *flat, uint64_t size,
                          uint64_t seed, int n)
{
    static uint8_t buf[70000];

    while (n--) {
        uint64_t off = unit_random(&seed) % size;
        uint64_t len = 1 + unit_random(&seed) %
                       IMG_MIN(size - off, (uint64_t)sizeof buf);

        if (unit_random(&seed) % 4 == 0) {
            assert_ok(img_zero(d, off, len, unit_random(&seed) % 2 ?
                               IMG_MAY_UNMAP : 0, &err), err);
            memset(flat + off, 0, len);
            continue;
        }
        memset(buf, (int)unit_random(&seed), len);
        assert_ok(img_pwrite(d, buf, len, off, 0, &err), err);
        memcpy(flat + off, buf, len);
        if (unit_random(&seed) % 8 == 0)
            assert_ok(img_flush(d, &err), err);
    }
}

static inline struct img_check_result check_it(const char *name,
                                               unsigned repair)
{
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_check_result result;
    struct img_disk *d = open_as(name, "vdi", repair ? IMG_OPEN_WRITE |
                                 IMG_OPEN_REPAIR : IMG_OPEN_NO_BACKING);

    o.repair = repair;
    memset(&result, 0, sizeof result);
    assert_ok(img_check(d, &o, NULL, &result, &err), err);
    assert_ok(img_close(d, &err), err);
    return result;
}

static inline void assert_sound(const char *name)
{
    struct img_check_result r = check_it(name, 0);

    assert_int_equal(r.errors, 0);
    assert_int_equal(r.leaks, 0);
}

static inline void assert_holds(const char *name, const uint8_t *flat,
                                uint64_t size)
{
    struct img_disk *d = open_as(name, "vdi", 0);

    assert_reads(d, flat, size);
    assert_ok(img_close(d, &err), err);
    assert_sound(name);
}

/* A progress function that says no at its call number `last`. */
struct calls {
    int n, last;                /* 0 = never: say no with this one */
};

static inline int count_calls(void *opaque, uint64_t done, uint64_t total)
{
    struct calls *c = opaque;

    assert_true(done <= total);
    return ++c->n == c->last;
}
#endif
