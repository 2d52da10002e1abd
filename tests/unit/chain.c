#include "folder.h"
#include "tiny.h"
#include "core/disk.h"
#include "file/file.h"

#include <fcntl.h>
#include <unistd.h>

enum { K = 1024 };

static char warned[512];

static void warn(void *opaque, const char *message)
{
    snprintf(warned, sizeof warned, "%s", message);
}

static struct img_run ask(struct img_disk *d, uint64_t off, uint64_t len,
                          unsigned *depth)
{
    struct img_run run;

    assert_ok(img_chain_map(d->chain, 0, off, len, 0, &run, depth, &err),
              err);
    return run;
}

/* Layers of 32, 16 and 64 KiB; what is where. */
static void test_map(void **state)
{
    struct img_disk *d;
    struct img_run run;
    unsigned depth;

    assert_ok(make("base", "tiny", 32 * K, NULL, NULL, 0, NULL), err);
    d = open_as("base", "tiny", IMG_OPEN_WRITE);
    assert_ok(img_pwrite(d, "b", 1, 30 * K, 0, &err), err);
    assert_ok(img_zero(d, 4 * K, 4 * K, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_ok(make("mid", "tiny", 16 * K, "base", NULL, 0, NULL), err);
    assert_ok(make("top", "tiny", 64 * K, "mid", "tiny", 0, NULL), err);
    d = open_as("top", "tiny", IMG_OPEN_WRITE);
    assert_int_equal(d->chain->n, 3);

    run = ask(d, 0, 64 * K, &depth);        /* nobody has it, up to 16K */
    assert_int_equal(run.kind, IMG_RUN_ABSENT);
    assert_int_equal(run.len, 16 * K);
    assert_int_equal(depth, 3);
    run = ask(d, 20 * K, 44 * K, &depth);   /* behind mid's end: its zeros */
    assert_int_equal(run.kind, IMG_RUN_ZERO);
    assert_int_equal(run.len, 44 * K);
    assert_int_equal(depth, 1);
    assert_true(run.host == UINT64_MAX);

    /* Eight clusters of data in a row are one run. */
    for (unsigned i = 0; i < 8; i++)
        assert_ok(img_pwrite(d, "t", 1, (8 + i) * 4 * K, 0, &err), err);
    assert_ok(img_zero(d, 32 * K, 1, 0, &err), err);
    for (unsigned i = 0; i < 8; i++)
        assert_ok(img_pwrite(d, err.message, 300, (8 + i) * 4 * K, 0, &err),
                  err);
    {
        static char full[32 * K];

        memset(full, 1, sizeof full);
        assert_ok(img_pwrite(d, full, sizeof full, 32 * K, 0, &err), err);
    }
    run = ask(d, 32 * K + 5, 20 * K, &depth);
    assert_int_equal(run.kind, IMG_RUN_DATA);
    assert_int_equal(run.len, 20 * K);
    assert_int_equal(depth, 0);
    run = ask(d, 28 * K, 36 * K, &depth);
    assert_int_equal(run.kind, IMG_RUN_ZERO);
    assert_int_equal(run.len, 4 * K);
    assert_ok(img_close(d, &err), err);
}

static void test_extents(void **state)
{
    struct img_disk *d = open_as("top", "tiny", IMG_OPEN_NO_LOCK);
    struct img_extent e;

    assert_ok(img_map(d, 0, 64 * K, 0, &e, &err), err);
    assert_int_equal(e.kind, IMG_HOLE);
    assert_int_equal(e.len, 16 * K);
    assert_true(e.host_off == UINT64_MAX);
    assert_ok(img_map(d, 0, 64 * K, IMG_MAP_TOP, &e, &err), err);
    assert_int_equal(e.kind, IMG_HOLE);
    assert_int_equal(e.len, 32 * K);
    assert_int_equal(e.depth, 1);
    assert_ok(img_map(d, 33 * K, 1, 0, &e, &err), err);
    assert_int_equal(e.kind, IMG_DATA);
    assert_string_equal(img_file_name(d, e.depth, e.file), in_folder("top"));
    assert_null(img_file_name(d, 3, 0));
    assert_null(img_file_name(d, 0, 1));
    assert_int_equal(img_map(d, 64 * K, 1, 0, &e, &err), -EINVAL);
    assert_int_equal(img_map(d, 0, 0, 0, &e, &err), -EINVAL);
    img_close(d, NULL);
}

/* Compressed clusters of one layer are one extent. */
static void test_packed_extents(void **state)
{
    static char zeros[12 * K];
    struct img_disk *d;
    struct img_extent e;

    assert_ok(make("packed", "tiny", 20 * K, NULL, NULL, 0, NULL), err);
    d = open_as("packed", "tiny", IMG_OPEN_WRITE);
    assert_ok(img_pwrite(d, zeros, 12 * K, 0, IMG_COMPRESS, &err), err);
    assert_ok(img_map(d, 5, 15 * K, 0, &e, &err), err);
    assert_int_equal(e.kind, IMG_COMPRESSED);
    assert_int_equal(e.len, 12 * K - 5);
    assert_true(e.host_off == UINT64_MAX);
    assert_ok(img_close(d, &err), err);
}

static void test_formats(void **state)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    const char *name;
    struct img_disk *d;

    assert_ok(make("plain", "raw", 8 * K, NULL, NULL, 0, NULL), err);
    assert_ok(img_probe(in_folder("plain"), &name, &err), err);
    assert_string_equal(name, "raw");
    assert_ok(img_probe(in_folder("base"), &name, &err), err);
    assert_string_equal(name, "tiny");
    assert_int_equal(img_probe(in_folder("none"), &name, &err), -ENOENT);
    assert_int_equal(try_open("base", NULL, 0), -EINVAL);
    assert_says("base");
    assert_int_equal(try_open("base", "qcow9", 0), -ENOTSUP);
    assert_int_equal(try_open("plain", "tiny", 0), -EINVAL);
    assert_int_equal(try_open("base", NULL, IMG_OPEN_PROBE), 0);
    d = open_as("base", "raw", 0);          /* told so: not guessed */
    assert_string_equal(img_format_name(d), "raw");
    img_close(d, NULL);

    /* An undeclared backing format. */
    assert_ok(make("silent", "tiny", 0, "base", NULL, 0, "forget=on"), err);
    assert_int_equal(try_open("silent", "tiny", 0), -EINVAL);
    assert_says("base");
    assert_int_equal(try_open("silent", NULL, IMG_OPEN_PROBE), -EINVAL);
    o.format = "tiny";
    o.flags = IMG_OPEN_PROBE_BACKING;
    o.warn = warn;
    assert_ok(img_open(in_folder("silent"), &o, &d, &err), err);
    img_close(d, NULL);
    assert_non_null(strstr(warned, "looks like tiny"));
    o.flags = 0;
    o.backing_format = "raw";
    assert_ok(img_open(in_folder("silent"), &o, &d, &err), err);
    assert_string_equal(d->chain->layers[1]->format->info.name, "raw");
    img_close(d, NULL);
    assert_int_equal(try_open("silent", "tiny", IMG_OPEN_NO_BACKING), 0);

    /* A file in a format that nobody here reads is not raw. */
    d = open_as("plain", "raw", IMG_OPEN_WRITE);
    assert_ok(img_pwrite(d, "vhdxfile", 8, 0, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_int_equal(img_probe(in_folder("plain"), &name, &err), -ENOTSUP);
    assert_says("VHDX");
    assert_int_equal(try_open("plain", "raw", 0), 0);
}

static void test_overrides(void **state)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_disk *d;
    unsigned depth;

    assert_ok(make("other", "tiny", 8 * K, NULL, NULL, 0, NULL), err);
    o.format = "tiny";
    o.backing = "";
    assert_ok(img_open(in_folder("mid"), &o, &d, &err), err);
    assert_int_equal(d->chain->n, 1);
    assert_int_equal(ask(d, 0, 16 * K, &depth).kind, IMG_RUN_ABSENT);
    assert_int_equal(depth, 1);
    img_close(d, NULL);
    o.backing = in_folder("other");
    assert_int_equal(img_open(in_folder("mid"), &o, &d, &err), -EINVAL);
    o.backing_format = "tiny";
    assert_ok(img_open(in_folder("mid"), &o, &d, &err), err);
    assert_string_equal(img_file_name(d, 1, 0), in_folder("other"));
    img_close(d, NULL);
}

static void test_names(void **state)
{
    unsigned trust = IMG_CREATE_NO_OPEN_BACKING;

    assert_ok(make("a1", "tiny", 8 * K, "file:base", "tiny", trust, NULL),
              err);
    assert_int_equal(try_open("a1", "tiny", 0), 0);
    assert_ok(make("a2", "tiny", 8 * K, "json:{\"file\":1}", "tiny", trust,
                   NULL), err);
    assert_int_equal(try_open("a2", "tiny", 0), -ENOTSUP);
    assert_says("json:");
    assert_ok(make("a3", "tiny", 8 * K, "nbd://host/x", "raw", trust, NULL),
              err);
    assert_int_equal(try_open("a3", "tiny", 0), -ENOTSUP);
    assert_ok(make("a4", "tiny", 8 * K, "gone", "raw", trust, NULL), err);
    assert_int_equal(try_open("a4", "tiny", 0), -ENOENT);
    assert_says("a4");
    assert_says("gone");
    assert_int_equal(make("a5", "tiny", 8 * K, "gone", NULL, trust, NULL),
                     -EINVAL);
    assert_ok(make("a6", "tiny", 8 * K, in_folder("base"), NULL, 0, NULL),
              err);
    assert_int_equal(try_open("a6", "tiny", 0), 0);
}

/* A raw disk that ends as a fixed VHD does is not recorded as raw unasked. */
static void test_doubt(void **state)
{
    static const char footer[512] = "conectix";
    FILE *f = fopen(in_folder("maybe"), "w");

    assert_non_null(f);
    assert_int_equal(fseek(f, 8 * K - (long)sizeof footer, SEEK_SET), 0);
    assert_int_equal(fwrite(footer, sizeof footer, 1, f), 1);
    assert_int_equal(fclose(f), 0);
    for (unsigned flags = 0; flags <= IMG_CREATE_NO_OPEN_BACKING;
         flags += IMG_CREATE_NO_OPEN_BACKING) {
        assert_int_equal(make("doubt", "tiny", 8 * K, "maybe", NULL, flags,
                              NULL), -EINVAL);
        assert_says("maybe");
        assert_says("VHD");
        assert_ok(make("doubt", "tiny", 8 * K, "maybe", "raw", flags, NULL),
                  err);
    }
}

static void test_loops(void **state)
{
    unsigned trust = IMG_CREATE_NO_OPEN_BACKING;

    assert_ok(make("l1", "tiny", 8 * K, "l2", "tiny", trust, NULL), err);
    assert_ok(make("l2", "tiny", 8 * K, "l3", "tiny", trust, NULL), err);
    assert_int_equal(symlink("l1", in_folder("l3")), 0);
    assert_int_equal(try_open("l1", "tiny", 0), -EINVAL);
    assert_says("loop");
    assert_says("l1 -> ");
    assert_says("l2 -> ");
    assert_ok(make("l4", "tiny", 8 * K, "l4", "tiny", trust, NULL), err);
    assert_int_equal(try_open("l4", "tiny", 0), -EINVAL);
    assert_says("loop");
    /* And one cannot be made without force. */
    assert_int_equal(make("base", "tiny", 8 * K, "mid", NULL, 0, NULL),
                     -EINVAL);
    assert_int_equal(try_open("mid", "tiny", 0), 0);
}

static void test_depth(void **state)
{
    enum { DEEP = IMG_CHAIN_MAX + 1 };
    char name[16], below[16];
    struct img_disk *d;
    struct img_run run;
    unsigned depth;

    assert_ok(make("d0", "tiny", 4 * K, NULL, NULL, 0, NULL), err);
    for (int i = 1; i < DEEP; i++) {
        snprintf(name, sizeof name, "d%d", i);
        snprintf(below, sizeof below, "d%d", i - 1);
        assert_ok(make(name, "tiny", 4 * K, below, "tiny",
                       IMG_CREATE_NO_OPEN_BACKING, NULL), err);
    }
    snprintf(below, sizeof below, "d%d", DEEP - 2);
    d = open_as(below, "tiny", 0);
    assert_int_equal(d->chain->n, IMG_CHAIN_MAX);
    run = ask(d, 0, 4 * K, &depth);
    assert_int_equal(run.kind, IMG_RUN_ABSENT);
    assert_int_equal(depth, IMG_CHAIN_MAX);
    img_close(d, NULL);
    assert_int_equal(try_open(name, "tiny", 0), -EINVAL);
    assert_says("longer");
}

static void test_locks(void **state)
{
    struct img_disk *d = open_as("base", "tiny", IMG_OPEN_WRITE), *e;

    assert_int_equal(try_open("base", "tiny", IMG_OPEN_WRITE), -EBUSY);
    assert_int_equal(try_open("base", "tiny", 0), -EBUSY);
    assert_int_equal(try_open("mid", "tiny", 0), -EBUSY);
    assert_int_equal(try_open("base", "tiny", IMG_OPEN_NO_LOCK), 0);
    assert_int_equal(make("base", "raw", 8 * K, NULL, NULL, 0, NULL), -EBUSY);
    img_close(d, NULL);
    d = open_as("mid", "tiny", IMG_OPEN_WRITE);
    e = open_as("base", "tiny", 0);
    assert_int_equal(try_open("base", "tiny", IMG_OPEN_WRITE), -EBUSY);
    img_close(e, NULL);
    assert_int_equal(try_open("base", "tiny", IMG_OPEN_WRITE), -EBUSY);
    img_close(d, NULL);
    assert_int_equal(try_open("base", "tiny", IMG_OPEN_WRITE), 0);
}

/* What is remembered of many layers is what asking each of them gives. */
static void test_flat(void **state)
{
    enum { LAYERS = 7, BIG = 3300 * K };
    static char data[40 * K];
    struct img_open_options o = IMG_OPEN_OPTIONS;
    uint64_t seed = 21;
    char name[16], below[16] = "";
    struct img_disk *d;
    struct img_flat *flat;

    for (int i = 0; i < LAYERS; i++) {
        uint64_t size = BIG - unit_random(&seed) % (i == 3 ? 2000 * K : 1);

        snprintf(name, sizeof name, "f%d", i);
        assert_ok(make(name, "tiny", size, i ? below : NULL, NULL, 0, NULL),
                  err);
        d = open_as(name, "tiny", IMG_OPEN_WRITE);
        for (int k = 0; k < 60; k++) {
            size_t len = unit_random(&seed) % sizeof data;
            uint64_t off = unit_random(&seed) % (size - len);

            if (k % 3 == 0)
                assert_ok(img_zero(d, off, len, 0, &err), err);
            else if (k % 3 == 1)
                assert_ok(img_pwrite(d, data, len, off, 0, &err), err);
            else
                assert_ok(img_pwrite(d, data, 8 * K,
                                     IMG_MIN(off, size - 12 * K) / 4096 *
                                     4096, IMG_COMPRESS, &err), err);
        }
        assert_ok(img_close(d, &err), err);
        strcpy(below, name);
    }
    o.format = "tiny";
    o.cache_bytes = 100 * K;            /* windows come and go */
    assert_ok(img_open(in_folder(name), &o, &d, &err), err);
    flat = d->chain->flat;
    assert_non_null(flat);
    for (int i = 0; i < 3000; i++) {
        uint64_t off = unit_random(&seed) % BIG;
        uint64_t len = 1 + unit_random(&seed) % (BIG - off);
        unsigned from = unit_random(&seed) % 3, da, db;
        struct img_run a, b;

        assert_ok(img_chain_map(d->chain, from, off, len, 0, &a, &da, &err),
                  err);
        d->chain->flat = NULL;
        assert_ok(img_chain_map(d->chain, from, off, len, 0, &b, &db, &err),
                  err);
        d->chain->flat = flat;
        assert_int_equal(da, db);
        assert_int_equal(a.off, b.off);
        assert_int_equal(a.len, b.len);
        assert_int_equal(a.kind, b.kind);
        assert_int_equal(a.file, b.file);
        assert_true(a.host == b.host);
        assert_int_equal(a.host_max, b.host_max);
        assert_int_equal(a.codec, b.codec);
    }
    assert_ok(img_close(d, &err), err);
}

static char asked[256];

static int resolve(void *opaque, const char *referrer, const char *name,
                   bool writable)
{
    snprintf(asked, sizeof asked, "%s|%s|%d", referrer, name, writable);
    return opaque ? open(opaque, O_RDONLY | O_CLOEXEC) : -EPERM;
}

static void test_resolve(void **state)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    char wanted[256];
    struct img_disk *d = NULL;
    int fd;

    o.format = "tiny";
    o.resolve = resolve;
    assert_int_equal(img_open(in_folder("mid"), &o, &d, &err), -EPERM);
    snprintf(wanted, sizeof wanted, "%s|base|0", in_folder("mid"));
    assert_string_equal(asked, wanted);
    assert_says("base");
    o.resolve_opaque = in_folder("base");
    assert_ok(img_open(in_folder("mid"), &o, &d, &err), err);
    assert_int_equal(d->chain->n, 2);
    img_close(d, NULL);

    /* As a descriptor: nothing is opened but through resolve. */
    o.resolve = NULL;
    fd = open(in_folder("mid"), O_RDONLY | O_CLOEXEC);
    assert_int_equal(img_open_fd(fd, &o, &d, &err), -EACCES);
    assert_int_equal(fcntl(fd, F_GETFD), -1);       /* it was taken over */
    assert_int_equal(img_open_fd(-1, &o, &d, &err), -EBADF);
    o.resolve = resolve;
    fd = open(in_folder("mid"), O_RDONLY | O_CLOEXEC);
    assert_ok(img_open_fd(fd, &o, &d, &err), err);
    assert_int_equal(d->chain->n, 2);
    img_close(d, NULL);
}

static void test_options(void **state)
{
    struct { struct img_open_options o; char more[16]; } newer;
    struct img_disk *d;
    size_t old = offsetof(struct img_open_options, snapshot);

    memset(&newer, 0, sizeof newer);
    newer.o.size = sizeof newer;
    newer.o.format = "tiny";
    assert_ok(img_open(in_folder("base"), &newer.o, &d, &err), err);
    img_close(d, NULL);
    newer.more[7] = 1;
    assert_int_equal(img_open(in_folder("base"), &newer.o, &d, &err),
                     -EINVAL);
    newer.o.size = old;
    newer.o.snapshot = "not looked at";
    assert_ok(img_open(in_folder("base"), &newer.o, &d, &err), err);
    img_close(d, NULL);
    newer.o.size = 4;
    assert_int_equal(img_open(in_folder("base"), &newer.o, &d, &err),
                     -EINVAL);
    assert_int_equal(img_open(in_folder("base"), NULL, &d, &err), -EINVAL);
    assert_ok(img_close(NULL, &err), err);
}

static void test_info(void **state)
{
    struct img_disk *d = open_as("top", "tiny", 0);
    struct img_info *info;

    assert_ok(img_info_get(d, &info, &err), err);
    assert_string_equal(info->format, "tiny");
    assert_int_equal(info->size, 64 * K);
    assert_string_equal(info->backing, "mid");
    assert_string_equal(info->backing_format, "tiny");
    assert_string_equal(info->backing_path, in_folder("mid"));
    assert_non_null(info->below);
    assert_string_equal(info->below->path, in_folder("mid"));
    assert_null(info->below->below->below);
    img_info_free(info);
    img_close(d, NULL);
}

static void test_create(void **state)
{
    struct img_create_options o = IMG_CREATE_OPTIONS;
    const char *const settings[] = { "size=3K", NULL };
    const char *const backed[] = { "backing_file=base", NULL };
    char **list;

    assert_int_equal(make("x", "tiny", 0, NULL, NULL, 0, NULL), -EINVAL);
    assert_says("size");
    assert_int_equal(make("x", "raw", 8 * K, "base", NULL, 0, NULL),
                     -ENOTSUP);
    assert_int_equal(make("x", "tiny", 8 * K, "base", "odd", 0, NULL),
                     -ENOTSUP);
    assert_int_equal(make("x", "raw", 8 * K, NULL, NULL, 0, "odd=1"),
                     -EINVAL);
    assert_int_equal(make("x", "tiny", 8 * K, "gone", NULL, 0, NULL),
                     -ENOENT);
    assert_int_equal(access(in_folder("x"), F_OK), -1);
    o.format = "raw";
    o.settings = settings;
    assert_ok(img_create_resolve(in_folder("x"), &o, &list, &err), err);
    assert_string_equal(list[0], "size=3072");
    assert_null(list[1]);
    img_settings_free(list);
    o.format = "tiny";
    o.settings = backed;
    assert_ok(img_create(in_folder("x"), &o, &err), err);
    {
        struct img_disk *d = open_as("x", "tiny", 0);

        assert_int_equal(img_size(d), 32 * K);
        assert_int_equal(d->chain->n, 2);
        img_close(d, NULL);
    }
    o.settings = NULL;
    o.has_size = true;
    assert_ok(img_create(in_folder("x"), &o, &err), err);
    assert_int_equal(try_open("x", "tiny", 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_map),
        cmocka_unit_test(test_extents),
        cmocka_unit_test(test_packed_extents),
        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_overrides),
        cmocka_unit_test(test_names), cmocka_unit_test(test_doubt),
        cmocka_unit_test(test_loops),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_locks),
        cmocka_unit_test(test_flat),
        cmocka_unit_test(test_resolve),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_info),
        cmocka_unit_test(test_create),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
