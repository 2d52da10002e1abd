/* Whole-image work by the library: what is refused and in which words, and
 * what a target comes out as where options meet. */
#include "folder.h"
#include "core/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

enum { K = 1024, M = 1024 * K };

/* A new disk of 1 MiB, full of what seed says where data is set. */
static void put(const char *name, const char *format, uint64_t size,
                unsigned char seed)
{
    static unsigned char buf[64 * K];
    struct img_disk *d;

    assert_ok(make(name, format, size, NULL, NULL, 0, NULL), err);
    if (!seed)
        return;
    d = open_as(name, format, IMG_OPEN_WRITE);
    for (uint64_t off = 0; off < size; off += sizeof buf) {
        memset(buf, seed + (int)(off / sizeof buf % 50), sizeof buf);
        assert_ok(img_pwrite(d, buf, IMG_MIN(sizeof buf, size - off), off, 0,
                             &err), err);
    }
    assert_ok(img_close(d, &err), err);
}

static void assert_same_disk(const char *a, const char *a_format,
                             const char *b, const char *b_format)
{
    struct img_disk *x = open_as(a, a_format, 0), *y = open_as(b, b_format, 0);
    uint64_t at = 0;
    int r = img_compare(x, y, false, NULL, &at, &err);

    if (r)
        fail_msg("%s and %s: %d at %llu", a, b, r, (unsigned long long)at);
    img_close(x, NULL);
    img_close(y, NULL);
}

static uint64_t length_of(const char *name)
{
    struct stat st = { 0 };

    return stat(in_folder(name), &st) < 0 ? 0 : (uint64_t)st.st_size;
}

/* ---- making ------------------------------------------------------------ */

static const struct {
    const char *format;
    uint64_t size;
    const char *backing, *backing_format;
    unsigned flags;
    const char *setting;
    int ret;
    const char *says;
} makes[] = {
    { NULL, M, NULL, NULL, 0, NULL, -EINVAL, "no format was given" },
    { "qcow9", M, NULL, NULL, 0, NULL, -ENOTSUP, "Unknown file format" },
    { "raw", M, "base", NULL, 0, NULL, -ENOTSUP, "not supported for file" },
    { "raw", M, NULL, NULL, 0, "backing_file=base", -EINVAL,
      "has no option 'backing_file'" },
    { "qcow2", M, NULL, NULL, 0, "backing_file=", 0, NULL },
    { "qcow2", M, "", "qcow9", 0, NULL, 0, NULL },
    { "qcow2", M, "base", "qcow9", 0, NULL, -ENOTSUP,
      "Unknown backing file format 'qcow9'" },
    { "qcow2", 0, NULL, NULL, 0, NULL, -EINVAL, "needs a size" },
    { "qcow2", 0, NULL, NULL, 0, "size=0", 0, NULL },
    { "qcow2", 0, NULL, NULL, 0, "size=x", -EINVAL, "size" },
    { "raw", INT64_MAX, NULL, NULL, 0, NULL, -EFBIG, "less than 8 EiB" },
    { "raw", INT64_MAX - (UINT64_C(1) << 30) + 1, NULL, NULL, 0, NULL,
      -EFBIG, "less than 8 EiB" },
    { "qcow2", 0, "json:{}", "qcow2", 0, NULL, -ENOTSUP,
      "neither a plain file nor an NBD server" },
    { "qcow2", 0, "ssh://h/x", "raw", 0, NULL, -ENOTSUP, "ssh://h/x" },
    { "qcow2", 0, "file:base", NULL, 0, NULL, 0, NULL },
    { "qcow2", 0, "none", NULL, 0, NULL, -ENOENT, "none" },
    { "qcow2", M, "none", NULL, IMG_CREATE_NO_OPEN_BACKING, NULL, -EINVAL,
      "was not given and cannot be found out" },
    { "qcow2", M, "none", "raw", IMG_CREATE_NO_OPEN_BACKING, NULL, 0, NULL },
    { "qcow2", M, "base", NULL, IMG_CREATE_NO_OPEN_BACKING, NULL, 0, NULL },
    { "qcow2", 0, "base", "qcow2", IMG_CREATE_NO_OPEN_BACKING, NULL, -EINVAL,
      "needs a size" },
    { "qcow2", 0, "odd", NULL, 0, NULL, -EINVAL, "has to be given" },
    { "qcow2", 0, "odd", "raw", 0, NULL, 0, NULL },
};

static void test_making(void **state)
{
    struct img_disk *d;

    put("base", "qcow2", M, 0);
    put("odd", "raw", M, 0);
    d = open_as("odd", "raw", IMG_OPEN_WRITE);      /* as a fixed VHD ends */
    assert_ok(img_pwrite(d, "conectix", 8, M - 512, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    for (unsigned i = 0; i < sizeof makes / sizeof makes[0]; i++) {
        int r;

        unlink(in_folder("new"));
        r = make("new", makes[i].format, makes[i].size, makes[i].backing,
                 makes[i].backing_format, makes[i].flags, makes[i].setting);
        if (r != makes[i].ret)
            fail_msg("%u: %d, %s", i, r, r < 0 ? err.message : "");
        if (r < 0)
            assert_says(makes[i].says);
        assert_int_equal(access(in_folder("new"), F_OK), r < 0 ? -1 : 0);
    }
    /* Nothing becomes its own backing file, by no name. */
    assert_ok(make("mid", "qcow2", 0, "base", NULL, 0, NULL), err);
    assert_int_equal(link(in_folder("base"), in_folder("twin")), 0);
    for (unsigned flags = 0; flags <= IMG_CREATE_NO_OPEN_BACKING; flags++) {
        assert_int_equal(make("base", "qcow2", M, "twin", "qcow2", flags,
                              NULL), -EINVAL);
        assert_says("is a backing file of the new image itself");
    }
    assert_int_equal(make("base", "qcow2", M, "mid", "qcow2", 0, NULL),
                     -EINVAL);
    assert_int_equal(length_of("base"), length_of("twin"));
}

/* A VMDK notes its parent's content ID, which is read from it, opened as a
 * layer or not. */
static void test_parent(void **state)
{
    const unsigned trust = IMG_CREATE_NO_OPEN_BACKING;
    struct img_disk *d;

    put("p.vmdk", "vmdk", M, 7);
    assert_ok(make("c.vmdk", "vmdk", M, "p.vmdk", "vmdk", trust, NULL), err);
    assert_same_disk("p.vmdk", "vmdk", "c.vmdk", "vmdk");
    assert_int_equal(make("c2.vmdk", "vmdk", M, "none", "vmdk", trust, NULL),
                     -ENOENT);
    assert_says("content ID of the backing file is needed");
    assert_int_equal(access(in_folder("c2.vmdk"), F_OK), -1);
    assert_ok(make("c2.vmdk", "vmdk", M, "none", "vmdk", trust,
                   "parent_cid=12345678"), err);
    d = open_as("p.vmdk", "vmdk", IMG_OPEN_WRITE);
    assert_int_equal(make("c3.vmdk", "vmdk", M, "p.vmdk", "vmdk", trust,
                          NULL), -EBUSY);
    assert_ok(img_close(d, &err), err);
}

static void assert_setting(char **settings, const char *line)
{
    for (size_t i = 0; settings[i]; i++)
        if (!strcmp(settings[i], line))
            return;
    fail_msg("no %s", line);
}

/* What would be made, in the words of qemu-img. */
static void test_settings(void **state)
{
    const char *given[] = { "size=3M", "backing_file=base", NULL };
    struct img_create_options o = IMG_CREATE_OPTIONS;
    char **made = NULL;

    put("base", "qcow2", M, 0);
    o.format = "qcow2";
    o.settings = given;
    assert_ok(img_create_resolve(in_folder("x"), &o, &made, &err), err);
    assert_setting(made, "size=3145728");
    assert_setting(made, "backing_file=base");
    assert_setting(made, "backing_fmt=qcow2");
    img_settings_free(made);
    img_settings_free(NULL);
    o.disk_size = 2 * M;                    /* a field goes first */
    assert_ok(img_create_resolve(in_folder("x"), &o, &made, &err), err);
    assert_setting(made, "size=2097152");
    img_settings_free(made);
    o.format = "vdi";
    given[1] = NULL;
    assert_ok(img_create_resolve(NULL, &o, &made, &err), err);
    assert_setting(made, "size=2097152");
    img_settings_free(made);
    o.format = "none";
    assert_int_equal(img_create_resolve(in_folder("x"), &o, &made, &err),
                     -ENOTSUP);
    o.size = 1;
    assert_int_equal(img_create_resolve(in_folder("x"), &o, &made, &err),
                     -EINVAL);
}

/* ---- converting -------------------------------------------------------- */

struct how {
    const char *format;         /* of the target */
    const char *setting[3];
    bool bitmaps, compress, exists, range;
    uint64_t offset, length, size;
    int ret;
    const char *says;
};

static const struct how refusals[] = {
    { .format = "qcow9", .ret = -ENOTSUP, .says = "Unknown format 'qcow9'" },
    { .format = "raw", .exists = true, .ret = -EINVAL,
      .says = "given to img_copy" },
    { .format = "raw", .compress = true, .ret = -ENOTSUP,
      .says = "cannot be compressed" },
    { .format = "vdi", .compress = true, .ret = -ENOTSUP,
      .says = "cannot be compressed" },
    { .format = "raw", .bitmaps = true, .ret = -ENOTSUP,
      .says = "has no bitmaps" },
    { .format = "vmdk", .bitmaps = true, .setting = { "subformat="
      "streamOptimized" }, .ret = -ENOTSUP, .says = "has no bitmaps" },
    { .format = "qcow2", .range = true, .offset = M, .length = 1,
      .ret = -EINVAL, .says = "are not in the source" },
    { .format = "qcow2", .range = true, .length = M + 1, .ret = -EINVAL,
      .says = "are not in the source" },
    { .format = "qcow2", .range = true, .length = K, .bitmaps = true,
      .ret = -EINVAL, .says = "not with a part" },
    { .format = "raw", .size = M - 512, .ret = -EINVAL,
      .says = "is smaller than the source" },
    { .format = "raw", .setting = { "size=512K" }, .ret = -EINVAL,
      .says = "smaller" },
    { .format = "qcow2", .setting = { "size=512K" }, .ret = -EINVAL,
      .says = "smaller" },
    { .format = "vmdk", .setting = { "size=512K", "subformat="
      "streamOptimized" }, .ret = -EINVAL, .says = "smaller" },
    { .format = "qcow2", .setting = { "cluster_size=3" }, .ret = -EINVAL,
      .says = "luster" },
};

static int convert(const char *from, const char *from_format,
                   const struct how *how, const char *to, int fd)
{
    struct img_disk *d = open_as(from, from_format, 0);
    struct img_convert_options o = IMG_CONVERT_OPTIONS;
    struct img_create_options c = IMG_CREATE_OPTIONS;
    int r;

    c.format = how->format;
    c.settings = how->setting;
    c.disk_size = how->size;
    o.create = &c;
    o.bitmaps = how->bitmaps;
    o.compress = how->compress;
    o.target_exists = how->exists;
    o.has_range = how->range;
    o.offset = how->offset;
    o.length = how->length;
    o.no_sync = true;
    o.scratch = folder;
    if (to)
        r = img_convert(&d, 1, in_folder(to), &o, NULL, &err);
    else
        r = img_convert_fd(&d, 1, fd, &o, NULL, &err);
    img_close(d, NULL);
    return r;
}

static int stream(const char *from, const char *from_format,
                  const struct how *how, const char *to)
{
    int fd = open(in_folder(to), O_WRONLY | O_CREAT | O_TRUNC, 0600), r;

    assert_true(fd >= 0);
    r = convert(from, from_format, how, NULL, fd);
    close(fd);
    return r;
}

static void test_refusals(void **state)
{
    put("from", "qcow2", M, 7);
    unlink(in_folder("new"));
    for (unsigned i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        int r = convert("from", "qcow2", &refusals[i], "new", -1);

        if (r != refusals[i].ret)
            fail_msg("%u: %d, %s", i, r, r < 0 ? err.message : "");
        assert_says(refusals[i].says);
        assert_int_equal(access(in_folder("new"), F_OK), -1);
    }
}

/* The same to a stream, and nothing is written to it. */
static const struct how stream_refusals[] = {
    { .format = "raw", .compress = true, .ret = -ENOTSUP,
      .says = "cannot be compressed" },
    { .format = "raw", .setting = { "size=512K" }, .ret = -EINVAL,
      .says = "smaller" },
    { .format = "qcow2", .setting = { "size=512K" }, .ret = -EINVAL,
      .says = "smaller" },
    { .format = "vdi", .setting = { "size=512K" }, .ret = -EINVAL,
      .says = "smaller" },
    { .format = "vmdk", .setting = { "size=512K", "subformat="
      "streamOptimized" }, .ret = -EINVAL, .says = "smaller" },
    { .format = "qcow2", .setting = { "backing_file=base" }, .ret = -EINVAL,
      .says = "must be an absolute path" },
    { .format = "vdi", .setting = { "backing_file=base" }, .ret = -EINVAL,
      .says = "must be an absolute path" },
    { .format = "vmdk", .setting = { "subformat=monolithicFlat" },
      .ret = -ENOTSUP, .says = "more than one file" },
    { .format = "vmdk", .bitmaps = true, .setting = { "subformat="
      "streamOptimized" }, .ret = -ENOTSUP, .says = "has no bitmaps" },
};

static void test_stream_refusals(void **state)
{
    put("from", "qcow2", M, 7);
    put("base", "raw", M, 0);
    for (unsigned i = 0;
         i < sizeof stream_refusals / sizeof stream_refusals[0]; i++) {
        int r = stream("from", "qcow2", &stream_refusals[i], "out");

        if (r != stream_refusals[i].ret)
            fail_msg("%u: %d, %s", i, r, r < 0 ? err.message : "");
        assert_says(stream_refusals[i].says);
    }
}

/* A larger target: zeros behind the source, in a file and in a stream. */
static void test_larger(void **state)
{
    static const struct how hows[] = {
        { .format = "raw", .setting = { "size=3M" } },
        { .format = "raw", .size = 3 * M },
        { .format = "qcow2", .setting = { "size=3M" } },
        { .format = "qcow2", .size = 3 * M },
        { .format = "vdi", .setting = { "size=3M" } },
        { .format = "vmdk", .setting = { "size=3M" } },
        { .format = "vmdk", .setting = { "size=3M",
                                         "subformat=streamOptimized" } },
    };
    struct img_disk *d;

    put("from", "qcow2", M, 7);
    for (unsigned i = 0; i < sizeof hows / sizeof hows[0]; i++)
        for (int streamed = 0; streamed < 2; streamed++) {
            if (streamed)
                assert_ok(stream("from", "qcow2", &hows[i], "to"), err);
            else
                assert_ok(convert("from", "qcow2", &hows[i], "to", -1), err);
            assert_same_disk("from", "qcow2", "to", hows[i].format);
            d = open_as("to", hows[i].format, 0);
            assert_int_equal(img_size(d), 3 * M);
            img_close(d, NULL);
        }
}

static void test_many(void **state)
{
    struct img_convert_options o = IMG_CONVERT_OPTIONS;
    struct img_create_options c = IMG_CREATE_OPTIONS;
    struct img_disk *from[4];
    struct stat st;
    int fd;

    put("from", "qcow2", M, 7);
    assert_ok(make("huge", "qcow2", UINT64_C(1) << 61, NULL, NULL, 0,
                   "cluster_size=2M"), err);
    o.create = &c;
    assert_int_equal(img_convert(NULL, 0, in_folder("new"), &o, NULL, &err),
                     -EINVAL);
    assert_says("Nothing to convert");
    from[0] = from[1] = open_as("from", "qcow2", 0);
    o.bitmaps = true;
    assert_int_equal(img_convert(from, 2, in_folder("new"), &o, NULL, &err),
                     -ENOTSUP);
    assert_says("a single source");
    o.bitmaps = false;
    o.size = 3;
    assert_int_equal(img_convert(from, 1, in_folder("new"), &o, NULL, &err),
                     -EINVAL);
    o.size = sizeof o;
    c.size = 3;
    assert_int_equal(img_convert(from, 1, in_folder("new"), &o, NULL, &err),
                     -EINVAL);
    c.size = sizeof c;
    assert_int_equal(img_copy(from, 1, from[0], &o, NULL, &err), -EINVAL);
    assert_says("is source and target");

    /* The stream is the source's own file. */
    fd = open(in_folder("from"), O_WRONLY);
    assert_int_equal(img_convert_fd(from, 1, fd, &o, NULL, &err), -EBUSY);
    assert_says("the output: is a file that the source");
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_size, length_of("from"));
    close(fd);
    img_close(from[0], NULL);

    from[0] = open_as("huge", "qcow2", 0);
    from[1] = from[2] = from[3] = from[0];
    assert_int_equal(img_convert(from, 4, in_folder("new"), &o, NULL, &err),
                     -EFBIG);
    assert_says("too large");
    img_close(from[0], NULL);
}

/* -S in all its sizes, whatever is asked for. */
static void test_sparse(void **state)
{
    static const uint32_t sizes[] = { 1, 513, 4096, 5000, 1 << 20, 1 << 30 };
    struct img_convert_options o = IMG_CONVERT_OPTIONS;
    struct img_create_options c = IMG_CREATE_OPTIONS;
    struct img_disk *d;

    put("from", "qcow2", 2 * M, 0);
    d = open_as("from", "qcow2", IMG_OPEN_WRITE);
    for (uint64_t off = 0; off < 2 * M; off += 70000)
        assert_ok(img_pwrite(d, "few", 3, off, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    d = open_as("from", "qcow2", 0);
    o.create = &c;
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        o.sparse_bytes = sizes[i];
        assert_ok(img_convert(&d, 1, in_folder("to"), &o, NULL, &err), err);
        assert_same_disk("from", "qcow2", "to", "raw");
    }
    img_close(d, NULL);
}

static void test_copy(void **state)
{
    struct img_convert_options o = IMG_CONVERT_OPTIONS;
    struct img_disk *from, *to;

    put("from", "qcow2", M, 7);
    put("small", "qcow2", M - 512, 0);
    assert_ok(make("over", "qcow2", 0, "from", "qcow2", 0, NULL), err);
    from = open_as("from", "qcow2", 0);
    to = open_as("small", "qcow2", IMG_OPEN_WRITE);
    assert_int_equal(img_copy(&from, 1, to, &o, NULL, &err), -EINVAL);
    assert_says("too few");
    img_close(to, NULL);
    to = open_as("over", "qcow2", 0);
    assert_int_equal(img_copy(&from, 1, to, &o, NULL, &err), -EROFS);
    assert_says("over");
    img_close(to, NULL);
    img_close(from, NULL);

    /* Onto what it is read from. */
    from = open_as("from", "qcow2", IMG_OPEN_NO_LOCK);
    to = open_as("from", "qcow2", IMG_OPEN_WRITE | IMG_OPEN_NO_LOCK);
    assert_int_equal(img_copy(&from, 1, to, &o, NULL, &err), -EBUSY);
    assert_says("is a file that the source");
    img_close(to, NULL);
    img_close(from, NULL);
}

struct aside { struct img_disk *to; unsigned asked, served; };

static int ask_aside(void *opaque, uint64_t done, uint64_t total)
{
    struct aside *a = opaque;
    char byte;

    if (done == total)
        return 0;
    a->asked++;
    a->served += img_pread_now(a->to, &byte, 1, 0) == 0;
    return 0;
}

/* Who discards and writes while places are being filled would find the copy's
 * bytes in his own. */
static void test_copy_alone(void **state)
{
    struct img_convert_options o = IMG_CONVERT_OPTIONS;
    struct img_disk *from, *to;
    struct aside a = { 0 };
    struct img_job job = { .size = sizeof job, .progress = ask_aside,
                           .opaque = &a, .threads = 1 };
    char byte;

    put("source", "raw", M, 5);
    put("target", "qcow2", M, 0);
    from = open_as("source", "raw", 0);
    a.to = to = open_as("target", "qcow2", IMG_OPEN_WRITE);
    assert_ok(img_pread_now(to, &byte, 1, 0), err);
    assert_ok(img_copy(&from, 1, to, &o, &job, &err), err);
    assert_in_range(a.asked, 1, UINT_MAX);
    assert_int_equal(a.served, 0);
    assert_ok(img_close(to, &err), err);
    img_close(from, NULL);
    assert_same_disk("source", "raw", "target", "qcow2");
}

/* ---- compressed clusters that both share ------------------------------- */

/* What is equal because it is the same packed cluster of the same file needs
 * no second look; what is not, does. */
static void test_packed_below(void **state)
{
    const struct how pack = { .format = "qcow2", .compress = true };
    struct img_convert_options o = IMG_CONVERT_OPTIONS;
    struct img_create_options c = IMG_CREATE_OPTIONS;
    struct img_disk *a, *b;
    uint64_t at = 0;

    put("from", "raw", 4 * M, 7);
    assert_ok(convert("from", "raw", &pack, "base", -1), err);
    assert_ok(make("a", "qcow2", 0, "base", "qcow2", 0, NULL), err);
    assert_ok(make("b", "qcow2", 0, "base", "qcow2", 0, NULL), err);
    b = open_as("b", "qcow2", IMG_OPEN_WRITE);
    assert_ok(img_pwrite(b, "another", 7, 3 * M + 5, 0, &err), err);
    assert_ok(img_close(b, &err), err);
    a = open_as("a", "qcow2", 0);
    b = open_as("b", "qcow2", 0);
    assert_int_equal(img_compare(a, b, false, NULL, &at, &err), 1);
    assert_int_equal(at, 3 * M + 5);
    assert_int_equal(img_compare(a, b, true, NULL, &at, &err), 1);
    c.format = "qcow2";
    c.backing = "base";
    c.backing_format = "qcow2";
    o.create = &c;
    assert_ok(img_convert(&b, 1, in_folder("to"), &o, NULL, &err), err);
    assert_same_disk("b", "qcow2", "to", "qcow2");
    assert_true(length_of("to") < 500 * K);     /* one cluster */
    img_close(a, NULL);
    img_close(b, NULL);
}

/* ---- the rest ---------------------------------------------------------- */

static void test_measure(void **state)
{
    struct img_create_options c = IMG_CREATE_OPTIONS;
    const char *old[] = { "compat=0.10", NULL };
    const char *odd[] = { "cluster_size=5000", NULL };
    const char *bad[] = { "cluster_size=x", NULL };
    struct img_measure m;
    struct img_disk *d;

    put("from", "qcow2", M, 7);
    d = open_as("from", "qcow2", IMG_OPEN_WRITE);
    assert_ok(img_bitmap_edit(d, "b", IMG_BITMAP_ADD, 65536, &err), err);
    c.format = "none";
    assert_int_equal(img_measure(d, &c, &m, &err), -ENOTSUP);
    assert_says("Unknown format 'none'");
    c.format = NULL;
    assert_ok(img_measure(d, &c, &m, &err), err);
    assert_int_equal(m.required, M);            /* raw */
    assert_false(m.has_bitmaps);
    c.format = "qcow2";
    assert_ok(img_measure(d, &c, &m, &err), err);
    /* One cluster of bits, one of their table, one of the directory. */
    assert_true(m.has_bitmaps);
    assert_int_equal(m.bitmaps, 3 * 65536);
    assert_true(m.required >= M && m.required <= m.fully_allocated);
    c.settings = old;
    assert_ok(img_measure(d, &c, &m, &err), err);
    assert_false(m.has_bitmaps);
    c.settings = odd;
    assert_int_equal(img_measure(d, &c, &m, &err), -EINVAL);
    c.settings = bad;
    assert_int_equal(img_measure(d, &c, &m, &err), -EINVAL);
    c.settings = NULL;
    c.disk_size = 16 * M;
    assert_ok(img_measure(d, &c, &m, &err), err);
    assert_true(m.fully_allocated > 16 * M);
    assert_ok(img_measure(NULL, &c, &m, &err), err);
    assert_true(m.required < M && m.fully_allocated > 16 * M);
    c.disk_size = 0;
    assert_ok(img_measure(NULL, &c, &m, &err), err);
    c.size = 2;
    assert_int_equal(img_measure(NULL, &c, &m, &err), -EINVAL);
    assert_ok(img_close(d, &err), err);
}

static void test_rebase_and_amend(void **state)
{
    struct img_rebase_options o = IMG_REBASE_OPTIONS;
    const char *fmt[] = { "backing_fmt=raw", NULL };
    const char *gone[] = { "backing_file=", NULL };
    const char *sized[] = { "size=1M", NULL };
    const char *odd[] = { "size=x", NULL };
    struct img_disk *d;

    put("base", "raw", M, 7);
    put("raw", "raw", M, 0);
    put("alone", "qcow2", M, 0);
    put("disk.vdi", "vdi", M, 0);
    assert_ok(make("top", "qcow2", 0, "base", "raw", 0, NULL), err);
    d = open_as("raw", "raw", IMG_OPEN_WRITE);
    assert_int_equal(img_rebase(d, &o, NULL, &err), -ENOTSUP);
    assert_says("has no backing files");
    assert_int_equal(img_amend(d, sized, NULL, &err), -ENOTSUP);
    assert_says("cannot be amended");
    img_close(d, NULL);
    d = open_as("top", "qcow2", 0);
    assert_int_equal(img_rebase(d, &o, NULL, &err), -EROFS);
    assert_int_equal(img_amend(d, sized, NULL, &err), -EROFS);
    img_close(d, NULL);
    d = open_as("alone", "qcow2", IMG_OPEN_WRITE);
    assert_int_equal(img_amend(d, fmt, NULL, &err), -EINVAL);
    assert_says("whose format could be recorded");
    assert_int_equal(img_amend(d, odd, NULL, &err), -EINVAL);
    assert_ok(img_amend(d, NULL, NULL, &err), err);
    assert_ok(img_amend(d, sized, NULL, &err), err);
    img_close(d, NULL);

    d = open_as("top", "qcow2", IMG_OPEN_WRITE);
    assert_ok(img_amend(d, fmt, NULL, &err), err);      /* of what is there */
    o.size = 1;
    assert_int_equal(img_rebase(d, &o, NULL, &err), -EINVAL);
    o.size = sizeof o;
    o.backing = "none";
    assert_int_equal(img_rebase(d, &o, NULL, &err), -ENOENT);
    o.backing = "top";
    o.backing_format = "qcow2";
    assert_true(img_rebase(d, &o, NULL, &err) < 0);
    o.unsafe = true;
    o.backing = "none";
    o.backing_format = "qcow9";
    assert_int_equal(img_rebase(d, &o, NULL, &err), -ENOTSUP);
    assert_says("unknown backing format 'qcow9'");
    o.backing_format = NULL;
    assert_int_equal(img_rebase(d, &o, NULL, &err), -ENOENT);
    o.backing_format = "raw";
    assert_ok(img_rebase(d, &o, NULL, &err), err);
    o.backing = "base";
    assert_ok(img_rebase(d, &o, NULL, &err), err);
    /* Packed, into the top. */
    o = (struct img_rebase_options)IMG_REBASE_OPTIONS;
    o.compress = true;
    assert_ok(img_rebase(d, &o, NULL, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_same_disk("base", "raw", "top", "qcow2");
    assert_true(length_of("top") < 700 * K);
    d = open_as("top", "qcow2", IMG_OPEN_WRITE);
    assert_ok(img_amend(d, gone, NULL, &err), err);
    img_close(d, NULL);
}

static void test_commit(void **state)
{
    struct img_disk *d;

    put("lower", "raw", M, 7);
    assert_ok(make("upper", "qcow2", 0, "lower", "raw", 0, NULL), err);
    d = open_as("upper", "qcow2", 0);
    assert_int_equal(img_commit(d, 0, true, NULL, &err), -EINVAL);
    assert_int_equal(img_commit(d, 2, true, NULL, &err), -EINVAL);
    assert_int_equal(img_commit(d, 1, false, NULL, &err), -EROFS);
    assert_ok(img_commit(d, 1, true, NULL, &err), err);     /* kept as it is */
    img_close(d, NULL);
    d = open_as("lower", "raw", IMG_OPEN_WRITE);
    assert_int_equal(img_commit(d, 1, true, NULL, &err), -EINVAL);
    img_close(d, NULL);
}

static void test_check(void **state)
{
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_check_result res;
    struct img_disk *d;

    put("raw", "raw", M, 0);
    put("q", "qcow2", M, 0);
    d = open_as("raw", "raw", 0);
    assert_int_equal(img_check(d, &o, NULL, &res, &err), -ENOTSUP);
    img_close(d, NULL);
    d = open_as("q", "qcow2", 0);
    o.repair = 4;
    assert_int_equal(img_check(d, &o, NULL, &res, &err), -EINVAL);
    o.repair = IMG_REPAIR_ALL;
    assert_int_equal(img_check(d, &o, NULL, &res, &err), -EROFS);
    o.size = 1;
    assert_int_equal(img_check(d, &o, NULL, &res, &err), -EINVAL);
    img_close(d, NULL);
    o = (struct img_check_options)IMG_CHECK_OPTIONS;
    d = open_as("q", "qcow2", IMG_OPEN_DESCRIBE);
    assert_true(img_check(d, &o, NULL, &res, &err) < 0);
    img_close(d, NULL);
}

static void test_resize(void **state)
{
    struct img_disk *d;

    put("q", "qcow2", M, 7);
    d = open_as("q", "qcow2", 0);
    assert_int_equal(img_resize(d, 2 * M, false, IMG_PREALLOC_OFF, NULL,
                                &err), -EROFS);
    img_close(d, NULL);
    d = open_as("q", "qcow2", IMG_OPEN_WRITE);
    assert_int_equal(img_resize(d, UINT64_MAX, false, IMG_PREALLOC_OFF, NULL,
                                &err), -EFBIG);
    assert_true(img_resize(d, K, false, IMG_PREALLOC_OFF, NULL, &err) < 0);
    assert_true(img_resize(d, K, true, IMG_PREALLOC_FULL, NULL, &err) < 0);
    assert_int_equal(img_size(d), M);
    img_close(d, NULL);
}

static void test_compare(void **state)
{
    struct img_disk *a, *b;
    uint64_t at;

    put("a", "raw", M, 7);
    put("b", "qcow2", M, 7);
    put("c", "raw", 2 * M, 0);
    b = open_as("b", "qcow2", IMG_OPEN_WRITE);
    a = open_as("a", "raw", 0);
    assert_int_equal(img_compare(a, b, true, NULL, NULL, &err), 0);
    assert_ok(img_pwrite(b, "x", 1, M - 1, 0, &err), err);
    assert_int_equal(img_compare(a, b, false, NULL, &at, &err), 1);
    assert_int_equal(at, M - 1);
    assert_int_equal(img_compare(a, b, false, NULL, NULL, &err), 1);
    assert_ok(img_zero(b, 0, M, 0, &err), err);
    assert_int_equal(img_compare(b, a, false, NULL, &at, &err), 1);
    assert_int_equal(at, 0);
    img_close(a, NULL);
    a = open_as("c", "raw", 0);
    assert_int_equal(img_compare(a, b, false, NULL, &at, &err), 0);
    assert_int_equal(img_compare(a, b, true, NULL, &at, &err), 2);
    assert_int_equal(at, M);
    img_close(a, NULL);
    img_close(b, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_making), cmocka_unit_test(test_settings),
        cmocka_unit_test(test_parent),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_stream_refusals),
        cmocka_unit_test(test_larger), cmocka_unit_test(test_many),
        cmocka_unit_test(test_sparse), cmocka_unit_test(test_copy),
        cmocka_unit_test(test_copy_alone),
        cmocka_unit_test(test_packed_below), cmocka_unit_test(test_measure),
        cmocka_unit_test(test_rebase_and_amend),
        cmocka_unit_test(test_commit), cmocka_unit_test(test_check),
        cmocka_unit_test(test_resize), cmocka_unit_test(test_compare),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
