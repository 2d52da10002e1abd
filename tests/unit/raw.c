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

/* ---- what is refused ------------------------------------------------------ */

static void test_refused(void **state)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_want want = { .len = K, .packed = 100 };
    struct img_place place;
    struct img_layer *l;
    struct img_disk *d;
    uint64_t done;

    assert_ok(make("no", "raw", 64 * K, NULL, NULL, 0, NULL), err);
    o.format = "raw";
    o.snapshot = "one";
    assert_int_equal(img_open(in_folder("no"), &o, &d, &err), -ENOTSUP);
    assert_says("a raw image has no snapshots");
    o.snapshot = NULL;
    o.flags = IMG_OPEN_WRITE;
    o.window_size = 4 * K;              /* from the beginning */
    assert_ok(img_open(in_folder("no"), &o, &d, &err), err);
    assert_int_equal(img_size(d), 4 * K);
    l = d->chain->layers[0];
    assert_int_equal(img_resize(d, 8 * K, false, IMG_PREALLOC_OFF, NULL,
                                &err), -ENOTSUP);
    assert_says("a window of a file cannot be resized");
    assert_int_equal(l->format->reserve(l, &want, &place, &err), -ENOTSUP);
    assert_says("cannot hold compressed data");
    assert_int_equal(l->format->unmap(l, 0, K, IMG_UNMAP_DROP, &done, &err),
                     -ENOTSUP);
    assert_says("nothing is below a raw image");
    assert_ok(img_close(d, &err), err);
    d = open_as("no", "raw", IMG_OPEN_WRITE);
    l = d->chain->layers[0];
    assert_int_equal(l->format->resize(l, INT64_MAX, IMG_PREALLOC_OFF, &err),
                     -EFBIG);
    assert_says("9223372036854775807 bytes are too many");
    assert_ok(l->format->resize(l, 64 * K, IMG_PREALLOC_FULL, &err), err);
    l->files[0]->is_device = true;
    assert_int_equal(l->format->resize(l, K, IMG_PREALLOC_OFF, &err),
                     -ENOTSUP);
    assert_says("a device cannot be resized");
    l->files[0]->is_device = false;
    assert_ok(img_close(d, &err), err);
    assert_int_equal(length("no"), 64 * K);
}

/* By each kind: what is read afterwards, and whether space is given back. */
static void test_kinds(void **state)
{
    static const struct { enum img_unmap kind; unsigned flags; bool zeros,
                          less; } rows[] = {
        { IMG_UNMAP_ZERO, 0, true, false },
        { IMG_UNMAP_ZERO_OWN, 0, true, false },
        { IMG_UNMAP_ZERO_KEEP, 0, true, false },
        { IMG_UNMAP_DISCARD, 0, false, false },
        { IMG_UNMAP_ZERO, IMG_OPEN_UNMAP, true, true },
        { IMG_UNMAP_ZERO_OWN, IMG_OPEN_UNMAP, true, true },
        { IMG_UNMAP_ZERO_KEEP, IMG_OPEN_UNMAP, true, false },
        { IMG_UNMAP_DISCARD, IMG_OPEN_UNMAP, true, true },
    };
    static char data[256 * K], buf[256 * K];

    memset(data, 3, sizeof data);
    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        struct img_layer *l;
        struct img_disk *d;
        uint64_t done;
        int r;

        put_file("kind", data, sizeof data);
        d = open_as("kind", "raw", IMG_OPEN_WRITE | rows[i].flags);
        l = d->chain->layers[0];
        r = l->format->unmap(l, 64 * K, 128 * K, rows[i].kind, &done, &err);
        if (r == -ENOTSUP)
            skip();             /* the file system cannot do it quickly */
        assert_ok(r, err);
        assert_int_equal(done, 128 * K);
        assert_ok(img_pread(d, buf, sizeof buf, 0, &err), err);
        assert_memory_equal(buf, data, 64 * K);
        assert_memory_equal(buf + 192 * K, data, 64 * K);
        for (size_t k = 64 * K; k < 192 * K; k++)
            assert_int_equal(buf[k], rows[i].zeros ? 0 : 3);
        assert_ok(img_close(d, &err), err);
        assert_int_equal(used("kind") < sizeof data, rows[i].less);
        assert_int_equal(length("kind"), sizeof data);
    }
}

/* ---- files of other kinds -------------------------------------------------- */

static int huge(struct img_file *file, uint64_t *size, struct img_error *e)
{
    *size = INT64_MAX - 511;
    return 0;
}

/* Not a descriptor, large blocks, a fixed size, and one that is too long. */
static void test_other_files(void **state)
{
    const struct img_format *raw = img_format_find("raw");
    const char *settings[] = { "nocow=on", "extent_size_hint=64k", NULL };
    struct img_create_options c = IMG_CREATE_OPTIONS;
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_build b = { .opts = &c, .path = "mem" };
    struct img_layer l = { .path = "mem", .files = &b.file, .n_files = 1,
                           .writable = true };
    struct img_file_ops ops;
    uint64_t size;

    assert_ok(img_file_in_memory("mem", &b.file, &err), err);
    c.settings = settings;
    c.disk_size = 64 * K + 512;
    assert_ok(raw->create(&b, &err), err);
    assert_ok(img_file_size(b.file, &size, &err), err);
    assert_int_equal(size, 64 * K + 512);
    b.file->align = 8192;
    b.file->is_device = true;
    assert_ok(raw->open(&l, &o, &err), err);
    assert_int_equal(l.size, 64 * K + 512);
    assert_int_equal(l.block, 8192);
    assert_int_equal(l.cluster_bits, 13);
    raw->close(&l);
    b.file->align = 512;
    assert_ok(raw->open(&l, &o, &err), err);
    assert_int_equal(l.cluster_bits, 12);
    raw->close(&l);
    ops = *b.file->ops;
    ops.size = huge;
    b.file->ops = &ops;
    assert_int_equal(raw->open(&l, &o, &err), -EFBIG);
    assert_says("mem: 9223372036854775296 bytes are too many");
    raw->close(&l);
    img_file_close(b.file);
}

/* ---- hints ---------------------------------------------------------------- */

static void test_hints(void **state)
{
    static const char *const good[] = {
        "nocow=on", "nocow=off", "extent_size_hint=0",
        "extent_size_hint=64k", "extent_size_hint=1M"
    };
    static const char *const bad[] = {
        "nocow=perhaps", "extent_size_hint=x", "extent_size_hint=8G",
        "preallocation=some"
    };
    const char *settings[] = { "nocow=on", "extent_size_hint=64k",
                               "preallocation=falloc", NULL };
    struct img_create_options o = IMG_CREATE_OPTIONS;
    unsigned found = 0;
    char **got;

    for (size_t i = 0; i < IMG_COUNT(good); i++) {
        assert_ok(make("hint", "raw", 64 * K, NULL, NULL, 0, good[i]), err);
        assert_int_equal(length("hint"), 64 * K);
    }
    unlink(in_folder("hint"));
    for (size_t i = 0; i < IMG_COUNT(bad); i++) {
        assert_int_equal(make("hint", "raw", 64 * K, NULL, NULL, 0, bad[i]),
                         -EINVAL);
        assert_int_equal(access(in_folder("hint"), F_OK), -1);
    }
    assert_int_equal(make("hint", "raw", 64 * K, NULL, NULL, 0, bad[2]),
                     -EINVAL);
    assert_says("hint 8589934592 is too large");
    /* A disk of nothing needs no space. */
    o.format = "raw";
    o.has_size = true;
    o.settings = settings;
    assert_ok(img_create(in_folder("hint"), &o, &err), err);
    assert_int_equal(length("hint"), 0);
    assert_ok(img_create_resolve(in_folder("hint"), &o, &got, &err), err);
    for (char **p = got; *p; p++)
        found += !strcmp(*p, "nocow=on") + !strcmp(*p, "size=0") +
                 !strcmp(*p, "extent_size_hint=65536") +
                 !strcmp(*p, "preallocation=falloc");
    assert_int_equal(found, 4);
    img_settings_free(got);
    settings[1] = bad[1];
    assert_int_equal(img_create_resolve(in_folder("hint"), &o, &got, &err),
                     -EINVAL);
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
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_other_files),
        cmocka_unit_test(test_hints),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
