/* VDI: differencing images, built byte by byte and our own. */
#include "vdi-image.h"

enum { SIZE = 6 * 4096 };

static char warned[512];

static void on_warn(void *opaque, const char *message)
{
    snprintf(warned, sizeof warned, "%s", message);
}

/* base.vdi and diff.vdi over it; flat is what diff.vdi shows. */
static void build_pair(const char *base, const char *diff, uint8_t *flat)
{
    static const uint32_t below[] = { 0, 1, 2, 3, FREE, ZEROS };
    static const uint32_t above[] = { FREE, 1, ZEROS, FREE, 0, FREE };
    struct shape b = { SHAPE }, d = { SHAPE };

    b.size = d.size = SIZE;
    memset(flat, 0, SIZE);
    if (base)
        build_vdi(base, &b, below, flat);
    d.type = 4;
    d.uuid = 0x33;
    d.modified = 0x44;
    d.parent = b.uuid;
    d.parent_modified = b.modified;
    build_vdi(diff, &d, above, flat);
    memset(flat + 2 * 4096, 0, 4096);
}

static void start(void)
{
    char cmd[100];

    snprintf(cmd, sizeof cmd, "rm -f %s/*", folder);
    assert_int_equal(system(cmd), 0);
    *warned = 0;
}

static struct img_disk *open_with(const char *name, unsigned flags,
                                  const char *backing)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_disk *d = NULL;

    o.format = "vdi";
    o.flags = flags;
    o.warn = on_warn;
    o.backing = backing;
    o.backing_format = "vdi";
    if (img_open(in_folder(name), &o, &d, &err) < 0)
        return NULL;
    return d;
}

static void test_found(void **state)
{
    uint8_t flat[SIZE];
    struct img_disk *d;

    start();
    build_pair("base.VDI", "diff.vdi", flat);
    assert_ok(make("noise.vdi", "raw", 100, NULL, NULL, 0, NULL), err);
    d = open_with("diff.vdi", 0, NULL);
    assert_non_null(d);
    assert_reads(d, flat, SIZE);
    assert_string_equal(warned, "");
    assert_ok(img_close(d, &err), err);
}

/* Zeros and discards hide the parent, writes fill from it. */
static void test_written(void **state)
{
    uint8_t flat[SIZE], other[SIZE];
    struct img_disk *d;

    start();
    build_pair("base.vdi", "diff.vdi", flat);
    build_pair(NULL, "ignored.vdi", other);
    unlink(in_folder("ignored.vdi"));
    d = open_with("diff.vdi", IMG_OPEN_WRITE, NULL);
    assert_non_null(d);
    assert_ok(img_pwrite(d, "x", 1, 100, 0, &err), err);
    flat[100] = 'x';
    assert_reads(d, flat, SIZE);
    assert_ok(img_zero(d, 3 * 4096, 4096, IMG_MAY_UNMAP, &err), err);
    memset(flat + 3 * 4096, 0, 4096);
    assert_reads(d, flat, SIZE);
    change(d, flat, SIZE, 5, 40);
    assert_ok(img_discard(d, 4096, 4096, &err), err);
    assert_ok(img_pread(d, other, SIZE, 0, &err), err);
    memcpy(flat + 4096, other + 4096, 4096);    /* zeros or as it was */
    assert_ok(img_close(d, &err), err);
    d = open_with("diff.vdi", 0, NULL);
    assert_reads(d, flat, SIZE);
    assert_ok(img_close(d, &err), err);
    assert_sound("diff.vdi");
    assert_sound("base.vdi");
}

static void test_not_found(void **state)
{
    uint8_t flat[SIZE], buf[4096];
    struct img_disk *d;

    start();
    build_pair("base.vdi", "diff.vdi", flat);
    assert_int_equal(rename(in_folder("base.vdi"), in_folder("base.bin")), 0);
    assert_null(open_with("diff.vdi", 0, NULL));
    assert_int_equal(err.code, ENOENT);
    assert_says("11111111-1111-1111-1111-111111111111");
    d = open_with("diff.vdi", IMG_OPEN_NO_BACKING, NULL);
    assert_non_null(d);
    assert_ok(img_pread(d, buf, 4096, 4096, &err), err);
    assert_memory_equal(buf, flat + 4096, 4096);
    assert_ok(img_close(d, &err), err);
    d = open_with("diff.vdi", 0, in_folder("base.bin"));    /* given */
    assert_non_null(d);
    assert_reads(d, flat, SIZE);
    assert_ok(img_close(d, &err), err);
}

/* A given backing file is for the top layer; the one below needs its own. */
static void test_three(void **state)
{
    static const uint32_t map[] = { FREE, FREE, FREE, FREE, FREE, 0 };
    uint8_t flat[SIZE];
    struct shape s = { SHAPE };
    struct img_disk *d;

    start();
    build_pair("base.vdi", "mid.vdi", flat);
    s.type = 4;
    s.size = SIZE;
    s.uuid = 0x55;
    s.parent = 0x33;
    s.parent_modified = 0x44;
    build_vdi("top.vdi", &s, map, flat);
    d = open_with("top.vdi", 0, NULL);
    assert_non_null(d);
    assert_reads(d, flat, SIZE);
    assert_ok(img_close(d, &err), err);
    unlink(in_folder("base.vdi"));
    assert_null(open_with("top.vdi", 0, NULL));
    assert_null(open_with("top.vdi", 0, in_folder("mid.vdi")));
    assert_says("mid.vdi");
}

static void test_two_candidates(void **state)
{
    uint8_t flat[SIZE];
    struct img_disk *d;

    start();
    build_pair("base.vdi", "diff.vdi", flat);
    build_pair("copy.vdi", "diff.vdi", flat);
    assert_null(open_with("diff.vdi", 0, NULL));
    assert_says("base.vdi");
    assert_says("copy.vdi");
    /* One was modified since: the other one is it. */
    poke32("copy.vdi", 408, 7);
    poke32("copy.vdi", 4096, 0);
    d = open_with("diff.vdi", 0, NULL);
    assert_non_null(d);
    assert_reads(d, flat, SIZE);
    assert_string_equal(warned, "");
    assert_ok(img_close(d, &err), err);
}

static void test_parent_modified(void **state)
{
    uint8_t flat[SIZE];
    struct img_disk *d;

    start();
    build_pair("base.vdi", "diff.vdi", flat);
    d = open_with("base.vdi", IMG_OPEN_WRITE, NULL);
    assert_ok(img_pwrite(d, "!", 1, 5 * 4096, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    d = open_with("diff.vdi", 0, NULL);
    assert_non_null(d);
    if (!strstr(warned, "modified"))
        fail_msg("no warning, but \"%s\"", warned);
    assert_ok(img_close(d, &err), err);
}

static void test_create(void **state)
{
    uint8_t flat[SIZE] = { 0 };
    struct img_disk *d;

    start();
    assert_ok(make("b.vdi", "vdi", SIZE, NULL, NULL, 0, "block_size=4096"),
              err);
    d = open_with("b.vdi", IMG_OPEN_WRITE, NULL);
    change(d, flat, SIZE, 8, 30);
    assert_ok(img_close(d, &err), err);
    assert_ok(make("o.vdi", "vdi", 0, "b.vdi", "vdi", 0, "block_size=4096"),
              err);
    assert_int_equal(header32("o.vdi", 76), 4);
    d = open_with("o.vdi", IMG_OPEN_WRITE, NULL);
    assert_non_null(d);
    assert_reads(d, flat, SIZE);
    change(d, flat, SIZE, 9, 30);
    assert_ok(img_close(d, &err), err);
    d = open_with("o.vdi", 0, NULL);
    assert_reads(d, flat, SIZE);
    assert_string_equal(warned, "");
    assert_ok(img_close(d, &err), err);
    assert_sound("o.vdi");

    assert_int_equal(make("x.vdi", "vdi", 0, "b.vdi", "vdi", 0, "static=on"),
                     -EINVAL);
    assert_ok(make("r.raw", "raw", SIZE, NULL, NULL, 0, NULL), err);
    assert_true(make("x.vdi", "vdi", 0, "r.raw", "raw", 0, NULL) < 0);
    assert_says("VDI");
    assert_true(make("x.vdi", "vdi", SIZE, "/tmp/else.vdi", "vdi",
                     IMG_CREATE_NO_OPEN_BACKING, NULL) < 0);
    assert_says("own folder");
}

/* Emptying an overlay and giving it another parent. */
static void test_commit_and_rebase(void **state)
{
    struct img_rebase_options o = IMG_REBASE_OPTIONS;
    uint8_t flat[SIZE];
    struct img_disk *d;

    start();
    build_pair("base.vdi", "diff.vdi", flat);
    d = open_with("diff.vdi", IMG_OPEN_WRITE, NULL);
    assert_ok(img_commit(d, 1, false, NULL, &err), err);
    assert_reads(d, flat, SIZE);
    assert_ok(img_close(d, &err), err);
    d = open_with("base.vdi", 0, NULL);
    assert_reads(d, flat, SIZE);
    assert_ok(img_close(d, &err), err);
    assert_sound("diff.vdi");
    assert_int_equal(header32("diff.vdi", 388), 0);
    assert_int_equal(file_length("diff.vdi"), 4096);

    d = open_with("diff.vdi", IMG_OPEN_WRITE, NULL);
    assert_ok(img_rebase(d, &o, NULL, &err), err);
    assert_ok(img_close(d, &err), err);
    unlink(in_folder("base.vdi"));
    assert_int_equal(header32("diff.vdi", 76), 1);
    d = open_with("diff.vdi", 0, NULL);
    assert_non_null(d);
    assert_reads(d, flat, SIZE);
    assert_ok(img_close(d, &err), err);

    /* Over a base of ones: what it has, zeros too, stays. */
    assert_ok(make("ones.vdi", "vdi", SIZE, NULL, NULL, 0, NULL), err);
    d = open_with("ones.vdi", IMG_OPEN_WRITE, NULL);
    {
        uint8_t ones[SIZE];

        memset(ones, 1, SIZE);
        assert_ok(img_pwrite(d, ones, SIZE, 0, 0, &err), err);
    }
    assert_ok(img_close(d, &err), err);
    o.backing = "ones.vdi";
    o.backing_format = "vdi";
    d = open_with("diff.vdi", IMG_OPEN_WRITE, NULL);
    assert_ok(img_rebase(d, &o, NULL, &err), err);
    assert_ok(img_close(d, &err), err);
    d = open_with("diff.vdi", 0, NULL);
    assert_non_null(d);
    assert_reads(d, flat, SIZE);
    assert_ok(img_close(d, &err), err);
    assert_sound("diff.vdi");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_found),
        cmocka_unit_test(test_written),
        cmocka_unit_test(test_not_found),
        cmocka_unit_test(test_three),
        cmocka_unit_test(test_two_candidates),
        cmocka_unit_test(test_parent_modified),
        cmocka_unit_test(test_create),
        cmocka_unit_test(test_commit_and_rebase),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
