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
    char cmd[200];

    snprintf(cmd, sizeof cmd, "rm -rf %s/* %s/.vdi", folder, folder);
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

/* ---- which parent ---------------------------------------------------------- */

static struct img_disk *open_given(const char *backing, const char *format)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_disk *d = NULL;

    *warned = 0;
    o.format = "vdi";
    o.warn = on_warn;
    o.backing = in_folder(backing);
    o.backing_format = format;
    return img_open(in_folder("diff.vdi"), &o, &d, &err) < 0 ? NULL : d;
}

/* Whoever gives the parent may be wrong too. */
static void test_given(void **state)
{
    uint8_t flat[SIZE], zero[16] = { 0 };
    struct img_disk *d;

    start();
    build_pair("base.vdi", "diff.vdi", flat);
    assert_int_equal(rename(in_folder("base.vdi"), in_folder("b.bin")), 0);
    d = open_given("b.bin", "vdi");
    assert_non_null(d);
    assert_string_equal(warned, "");
    assert_reads(d, flat, SIZE);
    assert_ok(img_close(d, &err), err);

    poke32("b.bin", 408, 5);            /* modified since */
    d = open_given("b.bin", "vdi");
    assert_non_null(d);
    assert_non_null(strstr(warned, "was modified after it was made"));
    assert_ok(img_close(d, &err), err);
    poke("diff.vdi", 440, zero, 16);    /* not noted */
    d = open_given("b.bin", "vdi");
    assert_non_null(d);
    assert_string_equal(warned, "");
    assert_reads(d, flat, SIZE);
    assert_ok(img_close(d, &err), err);

    poke32("b.bin", 392, 5);            /* another image */
    assert_null(open_given("b.bin", "vdi"));
    assert_int_equal(err.code, EINVAL);
    assert_says("has UUID 11111111-1111-1111-1111-111111111111");
    assert_says("has 00000005-1111-1111-1111-111111111111");
    /* A base of another format: nobody can tell. */
    assert_ok(make("b.raw", "raw", SIZE, NULL, NULL, 0, NULL), err);
    d = open_given("b.raw", "raw");
    assert_non_null(d);
    assert_non_null(strstr(warned, "nothing tells"));
    assert_ok(img_close(d, &err), err);
}

/* An image that is no differencing one takes what it is given. */
static void test_given_to_other(void **state)
{
    static const uint32_t map[] = { 0, FREE };
    struct shape s = { SHAPE };
    uint8_t flat[2 * 4096] = { 0 };
    struct img_disk *d;

    start();
    s.size = sizeof flat;
    build_vdi("diff.vdi", &s, map, flat);
    assert_ok(make("b.raw", "raw", SIZE, NULL, NULL, 0, NULL), err);
    d = open_given("b.raw", "raw");
    assert_non_null(d);
    assert_string_equal(warned, "");
    assert_reads(d, flat, sizeof flat);
    assert_ok(img_close(d, &err), err);
}

/* What lies in the folder and is not the parent does no harm. */
static void test_odd_folder(void **state)
{
    uint8_t flat[SIZE];
    char here[256];
    struct img_disk *d;

    start();
    build_pair("a:b.vdi", "diff.vdi", flat);
    assert_int_equal(mkdir(in_folder("folder.vdi"), 0700), 0);
    assert_int_equal(symlink("nowhere", in_folder("link.vdi")), 0);
    assert_ok(make("short.vdi", "raw", 512, NULL, NULL, 0, NULL), err);
    assert_int_equal(truncate(in_folder("short.vdi"), 400), 0);
    build_pair("old.vdi", "other.vdi", flat);
    poke32("old.vdi", 68, 1);           /* version 0.1 */
    assert_ok(make(".vdi", "raw", 512, NULL, NULL, 0, NULL), err);
    d = open_with("diff.vdi", 0, NULL);
    assert_non_null(d);
    assert_reads(d, flat, SIZE);
    assert_ok(img_close(d, &err), err);

    /* By a name without a folder. */
    assert_non_null(getcwd(here, sizeof here));
    assert_int_equal(chdir(folder), 0);
    {
        struct img_open_options o = IMG_OPEN_OPTIONS;

        o.format = "vdi";
        assert_ok(img_open("diff.vdi", &o, &d, &err), err);
    }
    assert_int_equal(chdir(here), 0);
    assert_reads(d, flat, SIZE);
    assert_ok(img_close(d, &err), err);

    assert_int_equal(unlink(in_folder("a:b.vdi")), 0);
    assert_null(open_with("diff.vdi", 0, NULL));
    assert_int_equal(err.code, ENOENT);
    assert_says("among the 3 other files *.vdi beside it; ");
    assert_says("not a VDI image");
    snprintf(here, sizeof here, "rm -r %s/*.vdi", folder);
    build_pair(NULL, "/alone.bin", flat);
    assert_int_equal(system(here), 0);
    assert_null(open_with("alone.bin", 0, NULL));
    assert_says("among the 0 other files *.vdi beside it");
    assert_null(strstr(err.message, "beside it;"));
    d = open_with("alone.bin", IMG_OPEN_NO_BACKING | IMG_OPEN_DESCRIBE, NULL);
    assert_non_null(d);
    assert_ok(img_close(d, &err), err);
}

/* Two that were both modified, then a third one that was not. */
static void test_modified_candidates(void **state)
{
    uint8_t flat[SIZE];
    struct img_disk *d;

    start();
    build_pair("a.vdi", "diff.vdi", flat);
    build_pair("b.vdi", "diff.vdi", flat);
    build_pair("c.vdi", "diff.vdi", flat);
    poke32("a.vdi", 408, 7);
    poke32("b.vdi", 408, 8);
    d = open_with("diff.vdi", 0, NULL);
    assert_non_null(d);
    assert_string_equal(warned, "");
    assert_string_equal(strrchr(img_file_name(d, 1, 0), '/'), "/c.vdi");
    assert_ok(img_close(d, &err), err);
    assert_int_equal(unlink(in_folder("c.vdi")), 0);
    assert_null(open_with("diff.vdi", 0, NULL));
    assert_int_equal(err.code, EEXIST);
    /* To see it alone either will do. */
    d = open_with("diff.vdi", IMG_OPEN_NO_BACKING, NULL);
    assert_non_null(d);
    assert_ok(img_close(d, &err), err);
    assert_int_equal(unlink(in_folder("a.vdi")), 0);
    d = open_with("diff.vdi", 0, NULL);
    assert_non_null(d);
    assert_non_null(strstr(warned, "modified"));
    assert_reads(d, flat, SIZE);
    assert_ok(img_close(d, &err), err);
}

/* ---- making and linking ----------------------------------------------------- */

#define PARENT "11111111-1111-1111-1111-111111111111"

static void test_create_by_uuid(void **state)
{
    uint8_t flat[SIZE], noted[16];
    struct img_disk *d;
    int fd;

    start();
    build_pair("base.vdi", "diff.vdi", flat);
    assert_int_equal(make("x.vdi", "vdi", SIZE, "base.vdi", "vdi",
                          IMG_CREATE_NO_OPEN_BACKING, NULL), -EINVAL);
    assert_says("its UUID must be given as parent_uuid");
    assert_int_equal(make("x.vdi", "vdi", 0, "base.vdi", "vdi", 0,
                          "parent_uuid=21111111-1111-1111-1111-111111111111"),
                     -EINVAL);
    assert_says("is not the UUID of 'base.vdi'");
    assert_int_equal(make("x.vdi", "vdi", SIZE, "base.vdi", "raw",
                          IMG_CREATE_NO_OPEN_BACKING, "parent_uuid=" PARENT),
                     -ENOTSUP);
    assert_int_equal(make("x.vdi", "vdi", SIZE, NULL, NULL, 0,
                          "parent_uuid=00000000-0000-0000-0000-000000000000"),
                     -EINVAL);
    /* With the right one, opened or not, or only the UUID. */
    for (int i = 0; i < 3; i++) {
        static const uint8_t zero[16];

        assert_ok(make("x.vdi", "vdi", SIZE, i == 2 ? NULL : "base.vdi",
                       i == 2 ? NULL : "vdi", i == 1 ?
                       IMG_CREATE_NO_OPEN_BACKING : 0,
                       "parent_uuid=" PARENT), err);
        assert_int_equal(header32("x.vdi", 76), 4);
        fd = open(in_folder("x.vdi"), O_RDONLY);
        assert_int_equal(pread(fd, noted, 16, 440), 16);
        close(fd);
        if (i == 0)
            assert_int_equal(noted[5], 0x22);
        else
            assert_memory_equal(noted, zero, 16);
        d = open_with("x.vdi", 0, NULL);
        assert_non_null(d);
        assert_string_equal(strrchr(img_file_name(d, 1, 0), '/'),
                            "/base.vdi");
        assert_ok(img_close(d, &err), err);
    }
    assert_int_equal(make("x.vdi", "vdi", SIZE, NULL, NULL, 0,
                          "parent_uuid=" PARENT), 0);
}

static void rebase(const char *backing, const char *format, int result,
                   const char *words)
{
    struct img_rebase_options o = IMG_REBASE_OPTIONS;
    struct img_disk *d = open_with("x.vdi", IMG_OPEN_WRITE |
                                   IMG_OPEN_NO_BACKING, NULL);

    assert_non_null(d);
    o.backing = backing;
    o.backing_format = format;
    o.unsafe = true;
    assert_int_equal(img_rebase(d, &o, NULL, &err), result);
    if (result < 0)
        assert_says(words);
    assert_ok(img_close(d, &err), err);
}

static void test_link(void **state)
{
    static const uint32_t map[] = { 0, FREE, ZEROS, 1, FREE, FREE };
    uint8_t flat[SIZE], own[SIZE] = { 0 };
    struct shape s = { SHAPE };
    struct img_disk *d;
    char path[200];

    start();
    build_pair("base.vdi", "diff.vdi", flat);
    s.size = SIZE;
    s.uuid = 0x66;
    build_vdi("x.vdi", &s, map, own);
    assert_int_equal(mkdir(in_folder("sub"), 0700), 0);
    assert_ok(make("b.raw", "raw", SIZE, NULL, NULL, 0, NULL), err);
    assert_ok(make("raw.vdi", "raw", SIZE, NULL, NULL, 0, NULL), err);
    rebase("b.raw", "raw", -ENOTSUP, "only a VDI image");
    rebase("b.raw", "vdi", -EINVAL, "'b.raw' is none of them");
    rebase("raw.vdi", "vdi", -EINVAL, "not a VDI image");
    rebase("sub/base.vdi", "vdi", -EINVAL, "is none of them");
    rebase("nowhere/base.vdi", "vdi", -EINVAL, "is none of them");
    rebase("/base.vdi", "vdi", -EINVAL, "is none of them");
    rebase("none.vdi", "vdi", -ENOENT, "none.vdi");
    rebase(NULL, NULL, 0, NULL);        /* it has none */
    assert_int_equal(header32("x.vdi", 76), 1);
    d = open_with("x.vdi", 0, NULL);
    assert_reads(d, own, SIZE);
    assert_ok(img_close(d, &err), err);
    /* In the same folder by three names; what it showed stays. */
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s%s/base.vdi", i == 2 ? folder : "",
                 i == 0 ? "." : i == 1 ? "sub/.." : "");
        build_vdi("x.vdi", &s, map, NULL);
        rebase(path, "vdi", 0, NULL);
        assert_int_equal(header32("x.vdi", 76), 4);
        d = open_with("x.vdi", 0, NULL);
        assert_non_null(d);
        assert_string_equal(warned, "");
        assert_reads(d, own, SIZE);
        assert_ok(img_close(d, &err), err);
        assert_sound("x.vdi");
    }
    rebase(NULL, NULL, 0, NULL);
    assert_int_equal(header32("x.vdi", 76), 1);
    assert_int_equal(header32("x.vdi", 424), 0);
    d = open_with("x.vdi", 0, NULL);
    assert_reads(d, own, SIZE);
    assert_ok(img_close(d, &err), err);
}

/* An image's own UUID can follow from its parent's: that of the parent which
 * it has afterwards, in whatever order they are given. */
static void test_amend_parent(void **state)
{
    static const char *const both[] = {
        "uuid=derived", "parent_uuid=" PARENT,
        "parent_modification_uuid=22222222-2222-2222-2222-222222222222", NULL
    };
    uint8_t flat[SIZE], made[16], amended[16];
    struct img_disk *d;
    int fd;

    start();
    build_pair("base.vdi", "diff.vdi", flat);
    poke32("diff.vdi", 424, 9);         /* another parent */
    assert_null(open_with("diff.vdi", 0, NULL));
    d = open_with("diff.vdi", IMG_OPEN_WRITE | IMG_OPEN_NO_BACKING, NULL);
    assert_non_null(d);
    assert_ok(img_amend(d, both, NULL, &err), err);
    assert_ok(img_close(d, &err), err);
    d = open_with("diff.vdi", 0, NULL);
    assert_non_null(d);
    assert_string_equal(warned, "");
    assert_reads(d, flat, SIZE);
    assert_ok(img_close(d, &err), err);
    fd = open(in_folder("diff.vdi"), O_RDONLY);
    assert_int_equal(pread(fd, amended, 16, 392), 16);
    close(fd);
    /* What create would have made of it. */
    {
        const char *settings[] = { "uuid=derived", "block_size=4096", NULL };
        struct img_create_options o = IMG_CREATE_OPTIONS;

        o.format = "vdi";
        o.backing = "base.vdi";
        o.backing_format = "vdi";
        o.settings = settings;
        assert_ok(img_create(in_folder("new.vdi"), &o, &err), err);
    }
    fd = open(in_folder("new.vdi"), O_RDONLY);
    assert_int_equal(pread(fd, made, 16, 392), 16);
    close(fd);
    assert_memory_equal(made, amended, 16);
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
        cmocka_unit_test(test_given),
        cmocka_unit_test(test_given_to_other),
        cmocka_unit_test(test_odd_folder),
        cmocka_unit_test(test_modified_candidates),
        cmocka_unit_test(test_create_by_uuid),
        cmocka_unit_test(test_link),
        cmocka_unit_test(test_amend_parent),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
