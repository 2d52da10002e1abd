#include "folder.h"
#include "core/disk.h"
#include "file/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { K = 1024 };

static void put_file(const char *name, const void *data, size_t len)
{
    int fd = open(in_folder(name), O_RDWR | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, len), len);
    close(fd);
}

static uint64_t length(const char *name)
{
    struct stat st;

    assert_int_equal(stat(in_folder(name), &st), 0);
    return (uint64_t)st.st_size;
}

static uint64_t used(const char *name)
{
    struct stat st;

    assert_int_equal(stat(in_folder(name), &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

/* The size counts whole sectors; what the file lacks is zeros. */
static void test_odd_size(void **state)
{
    struct img_disk *d;
    char buf[512];

    memset(buf, 'a', sizeof buf);
    put_file("odd", buf, 500);
    d = open_as("odd", "raw", 0);
    assert_int_equal(img_size(d), 512);
    assert_ok(img_pread(d, buf, 512, 0, &err), err);
    assert_int_equal(buf[499], 'a');
    for (int i = 500; i < 512; i++)
        assert_int_equal(buf[i], 0);
    img_close(d, NULL);
    d = open_as("odd", "raw", IMG_OPEN_WRITE);
    assert_ok(img_pwrite(d, "z", 1, 511, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_int_equal(length("odd"), 512);
    put_file("empty", "", 0);
    d = open_as("empty", "raw", 0);
    assert_int_equal(img_size(d), 0);
    assert_ok(img_pread(d, buf, 0, 0, &err), err);
    img_close(d, NULL);
}

static void test_map_exact(void **state)
{
    struct img_disk *d;
    struct img_extent e;

    assert_ok(make("sparse", "raw", 1024 * K, NULL, NULL, 0, NULL), err);
    d = open_as("sparse", "raw", IMG_OPEN_WRITE);
    assert_ok(img_pwrite(d, "x", 1, 512 * K, 0, &err), err);
    assert_ok(img_map(d, 0, 1024 * K, 0, &e, &err), err);
    assert_int_equal(e.kind, IMG_DATA);
    assert_int_equal(e.len, 1024 * K);
    assert_ok(img_map(d, 0, 1024 * K, IMG_MAP_EXACT, &e, &err), err);
    if (e.kind == IMG_DATA)
        skip();                 /* the file system keeps no holes */
    assert_int_equal(e.kind, IMG_ZEROS);
    assert_int_equal(e.len, 512 * K);
    assert_int_equal(e.host_off, 0);
    assert_ok(img_map(d, 512 * K, 512 * K, IMG_MAP_EXACT, &e, &err), err);
    assert_int_equal(e.kind, IMG_DATA);
    assert_int_equal(e.host_off, 512 * K);
    assert_ok(img_close(d, &err), err);
}

static void test_window(void **state)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_disk *d;
    char buf[8];

    assert_ok(make("whole", "raw", 64 * K, NULL, NULL, 0, NULL), err);
    o.format = "raw";
    o.flags = IMG_OPEN_WRITE;
    o.window_offset = 1000;
    o.window_size = 8 * K;
    assert_ok(img_open(in_folder("whole"), &o, &d, &err), err);
    assert_int_equal(img_size(d), 8 * K);
    assert_ok(img_pwrite(d, "begin", 5, 0, 0, &err), err);
    assert_ok(img_pwrite(d, "end", 3, 8 * K - 3, 0, &err), err);
    assert_int_equal(img_pwrite(d, "x", 1, 8 * K, 0, &err), -EINVAL);
    assert_ok(img_zero(d, 2, 1, IMG_MAY_UNMAP, &err), err);
    assert_ok(img_close(d, &err), err);
    o.window_size = 0;
    assert_ok(img_open(in_folder("whole"), &o, &d, &err), err);
    assert_int_equal(img_size(d), 64 * K - 1000);
    img_close(d, NULL);
    o.window_size = 64 * K;
    assert_int_equal(img_open(in_folder("whole"), &o, &d, &err), -EINVAL);
    d = open_as("whole", "raw", 0);
    assert_ok(img_pread(d, buf, 8, 999, &err), err);
    assert_memory_equal(buf, "\0be\0in\0\0", 8);
    assert_ok(img_pread(d, buf, 4, 1000 + 8 * K - 3, &err), err);
    assert_memory_equal(buf, "end", 4);
    img_close(d, NULL);
}

static void test_space(void **state)
{
    static char data[1024 * K];
    struct img_disk *d;
    char buf[K];

    memset(data, 1, sizeof data);
    assert_ok(make("full", "raw", sizeof data, NULL, NULL, 0,
                   "preallocation=full"), err);
    assert_true(used("full") >= sizeof data);
    assert_ok(make("falloc", "raw", sizeof data, NULL, NULL, 0,
                   "preallocation=falloc"), err);
    assert_int_equal(length("falloc"), sizeof data);
    assert_true(used("falloc") >= sizeof data);
    assert_int_equal(make("bad", "raw", 1, NULL, NULL, 0,
                          "preallocation=metadata"), -EINVAL);
    put_file("data", data, sizeof data);
    d = open_as("data", "raw", IMG_OPEN_WRITE);
    assert_ok(img_discard(d, 0, sizeof data, &err), err);
    assert_ok(img_pread(d, buf, K, 0, &err), err);
    assert_memory_equal(buf, data, K);          /* discards are ignored */
    assert_ok(img_zero(d, 256 * K, 256 * K, IMG_MAY_UNMAP, &err), err);
    assert_true(used("data") >= sizeof data);   /* and so is MAY_UNMAP */
    assert_ok(img_close(d, &err), err);
    d = open_as("data", "raw", IMG_OPEN_WRITE | IMG_OPEN_UNMAP);
    assert_ok(img_discard(d, 512 * K, 512 * K, &err), err);
    assert_ok(img_zero(d, 0, 512 * K, IMG_MAY_UNMAP, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_true(used("data") < sizeof data);
    assert_int_equal(length("data"), sizeof data);
}

static void test_resize(void **state)
{
    static const enum img_prealloc modes[] = {
        IMG_PREALLOC_OFF, IMG_PREALLOC_FALLOC, IMG_PREALLOC_FULL,
    };
    struct img_disk *d;
    struct img_layer *l;
    char buf[4];

    assert_ok(make("grow", "raw", 8 * K, NULL, NULL, 0, NULL), err);
    d = open_as("grow", "raw", IMG_OPEN_WRITE);
    l = d->chain->layers[0];
    assert_ok(img_pwrite(d, "keep", 4, 4 * K, 0, &err), err);
    for (unsigned i = 0; i < 3; i++) {
        assert_ok(l->format->resize(l, (i + 2) * 64 * K, modes[i], &err),
                  err);
        assert_int_equal(l->size, (i + 2) * 64 * K);
        assert_int_equal(length("grow"), (i + 2) * 64 * K);
    }
    assert_int_equal(l->format->resize(l, 1024 * K, IMG_PREALLOC_METADATA,
                                       &err), -ENOTSUP);
    assert_int_equal(l->format->resize(l, 4 * K, IMG_PREALLOC_FULL, &err),
                     -EINVAL);
    assert_int_equal(l->size, 4 * 64 * K);
    assert_ok(l->format->resize(l, 4 * K + 4, IMG_PREALLOC_OFF, &err), err);
    assert_int_equal(length("grow"), 4 * K + 4);
    assert_ok(img_pread(d, buf, 4, 4 * K, &err), err);
    assert_memory_equal(buf, "keep", 4);
    assert_ok(img_close(d, &err), err);
}

/* Past the page cache, in pieces that no device takes. */
static void test_direct(void **state)
{
    static unsigned char flat[64 * K], buf[64 * K];
    uint64_t seed = 3;
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_disk *d;
    int r;

    assert_ok(make("direct", "raw", sizeof flat, NULL, NULL, 0, NULL), err);
    o.format = "raw";
    o.flags = IMG_OPEN_WRITE | IMG_OPEN_DIRECT;
    r = img_open(in_folder("direct"), &o, &d, &err);
    if (r == -EINVAL)
        skip();                 /* not on this file system */
    assert_ok(r, err);
    for (int i = 0; i < 100; i++) {
        size_t off = unit_random(&seed) % sizeof flat;
        size_t len = unit_random(&seed) % IMG_MIN(sizeof flat - off, 9000u);

        for (size_t b = 0; b < len; b++)
            buf[b] = (unsigned char)unit_random(&seed);
        if (i % 4) {
            memcpy(flat + off, buf, len);
            assert_ok(img_pwrite(d, buf, len, off, 0, &err), err);
        } else {
            memset(flat + off, 0, len);
            assert_ok(img_zero(d, off, len, 0, &err), err);
        }
    }
    assert_ok(img_pread(d, buf, sizeof buf, 0, &err), err);
    assert_memory_equal(buf, flat, sizeof buf);
    assert_ok(img_close(d, &err), err);
    /* A file that ends within a block keeps its length. */
    put_file("direct", flat, 5 * 512);
    assert_ok(img_open(in_folder("direct"), &o, &d, &err), err);
    assert_ok(img_pwrite(d, "last", 4, 5 * 512 - 4, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_int_equal(length("direct"), 5 * 512);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_odd_size),
        cmocka_unit_test(test_map_exact),
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_space),
        cmocka_unit_test(test_resize),
        cmocka_unit_test(test_direct),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
