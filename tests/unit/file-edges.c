/* file/ at its edges: files that can do little, files in memory, ranges that
 * no file has, descriptors of every kind. */
#include "unit.h"
#include "scratch.h"
#include "file/file.h"
#include "../shim.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/uio.h>

static struct img_error err;

#define assert_says(words) do {                                           \
        if (!strstr(err.message, words))                                  \
            fail_msg("\"%s\" does not say \"%s\"", err.message, words);   \
    } while (0)

static struct img_file *new_file(const char *name)
{
    struct img_file *f;

    unlink(in_scratch(name));
    assert_ok(img_file_open(in_scratch(name),
                            IMG_FILE_WRITE | IMG_FILE_CREATE, &f, &err), err);
    return f;
}

/* ---- what every kind may leave out ------------------------------------- */

static uint64_t written, written_to;

static int bare_preadv(struct img_file *f, const struct iovec *iov, int n,
                       uint64_t off, struct img_error *e)
{
    return 0;
}

static int bare_pwritev(struct img_file *f, const struct iovec *iov, int n,
                        uint64_t off, struct img_error *e)
{
    for (int i = 0; i < n; i++) {
        const char *at = iov[i].iov_base;

        for (size_t k = 0; k < iov[i].iov_len; k++)
            assert_int_equal(at[k], 0);
        written += iov[i].iov_len;
    }
    written_to = off + iov[n - 1].iov_len;
    return off < 1 << 30 ? 0 : -EIO;
}

static void test_bare(void **state)
{
    static const struct img_file_ops none = {
        .kind = "none", .preadv = bare_preadv
    };
    static const struct img_file_ops plain = {
        .kind = "plain", .preadv = bare_preadv, .pwritev = bare_pwritev
    };
    char path[] = "bare";
    struct img_file f = { .ops = &none, .path = path, .writable = true,
                          .fd = -1, .align = 1 };
    struct iovec iov = { path, 1 };
    uint64_t run = 0;
    bool data = false;

    assert_int_equal(img_file_pwrite(&f, "x", 1, 0, &err), -EROFS);
    assert_int_equal(img_file_truncate(&f, 1, &err), -ENOTSUP);
    assert_says("cannot change its size");
    assert_int_equal(img_file_allocate(&f, 0, 1, &err), -ENOTSUP);
    assert_says("cannot reserve space here");
    assert_ok(img_file_allocate(&f, 0, 0, &err), err);
    assert_ok(img_file_discard(&f, 0, 1, &err), err);
    assert_ok(img_file_zero(&f, 0, 0, 0, &err), err);
    assert_int_equal(img_file_zero(&f, 0, 1, IMG_FILE_FAST_ONLY, &err),
                     -ENOTSUP);
    assert_says("can only be written out");
    assert_int_equal(img_file_reflink(&f, 0, &f, 0, 1, &err), -ENOTSUP);
    assert_int_equal(img_file_preadv_now(&f, &iov, 1, 0), -EAGAIN);
    assert_false(img_file_is_cached(&f));
    assert_ok(img_file_extent(&f, 5, 10, &data, &run, &err), err);
    assert_true(data && run == 10);
    assert_ok(img_file_lock(&f, IMG_PERM_ALL, 0, &err), err);
    assert_true(img_file_allocated(&f) == UINT64_MAX);
    assert_int_equal(img_file_modified(&f), 0);

    f.ops = &plain;
    written = 0;
    assert_ok(img_file_zero(&f, 7, (2 << 20) + 5, 0, &err), err);
    assert_int_equal(written, (2 << 20) + 5);
    assert_int_equal(written_to, 7 + (2 << 20) + 5);
    assert_int_equal(img_file_write_zeros(&f, (1 << 30) - 1, 2 << 20, &err),
                     -EIO);
    f.writable = false;
    assert_int_equal(img_file_zero(&f, 0, 1, 0, &err), -EROFS);
    assert_int_equal(img_file_allocate(&f, 0, 1, &err), -EROFS);
    assert_int_equal(img_file_truncate(&f, 1, &err), -EROFS);
    assert_ok(img_file_discard(&f, 0, 1, &err), err);
    img_file_close(NULL);
}

static void test_memory(void **state)
{
    static const uint64_t much = (UINT64_C(1) << 40) + 1;
    struct img_file *f;
    char b[16];
    uint64_t size;

    assert_ok(img_file_in_memory("memory", &f, &err), err);
    assert_ok(img_file_pwrite(f, "text", 4, 10, &err), err);
    memset(b, 'x', sizeof b);
    assert_ok(img_file_pread(f, b, 16, 8, &err), err);
    assert_memory_equal(b, "\0\0text\0\0\0\0\0\0\0\0\0\0", 16);
    memset(b, 'x', sizeof b);
    assert_ok(img_file_pread(f, b, 4, 100, &err), err);
    assert_memory_equal(b, "\0\0\0\0xxxx", 8);
    assert_ok(img_file_pread(f, b, 0, 0, &err), err);
    assert_int_equal(img_file_pwrite(f, b, 1, much, &err), -EFBIG);
    assert_says("in memory");
    assert_int_equal(img_file_pwrite(f, b, 2, UINT64_MAX, &err), -EFBIG);
    assert_int_equal(img_file_zero(f, much, 1, 0, &err), -EFBIG);
    assert_int_equal(img_file_zero(f, UINT64_MAX, 2, 0, &err), -EFBIG);
    assert_int_equal(img_file_truncate(f, much, &err), -EFBIG);
    assert_ok(img_file_discard(f, 100, 5, &err), err);
    assert_ok(img_file_discard(f, 11, 100, &err), err);
    assert_ok(img_file_size(f, &size, &err), err);
    assert_int_equal(size, 14);
    assert_ok(img_file_zero(f, 12, 10, 0, &err), err);
    /* Cut off and grown again it is zeros. */
    assert_ok(img_file_truncate(f, 10, &err), err);
    assert_ok(img_file_truncate(f, 20, &err), err);
    assert_ok(img_file_pread(f, b, 10, 10, &err), err);
    assert_memory_equal(b, "\0\0\0\0\0\0\0\0\0\0", 10);
    assert_ok(img_file_sync(f, &err), err);
    assert_ok(img_file_use_page_cache(f, &err), err);
    img_file_close(f);
}

/* ---- far out ----------------------------------------------------------- */

static void test_far(void **state)
{
    struct img_file *f = new_file("a");
    struct iovec one[2000];
    char b[4] = "abc";
    uint64_t run;
    bool data;

    assert_ok(img_file_pread(f, b, 4, UINT64_MAX - 2, &err), err);
    assert_memory_equal(b, "\0\0\0\0", 4);
    strcpy(b, "abc");
    assert_ok(img_file_pread(f, b, 4, INT64_MAX - 1, &err), err);
    assert_memory_equal(b, "\0\0\0\0", 4);
    assert_int_equal(img_file_pwrite(f, b, 4, UINT64_MAX - 2, &err), -EFBIG);
    assert_says("too far");
    assert_int_equal(img_file_pwrite(f, b, 4, INT64_MAX - 1, &err), -EFBIG);
    assert_int_equal(img_file_truncate(f, UINT64_MAX, &err), -EFBIG);
    assert_says("are too many");
    assert_int_equal(img_file_zero(f, UINT64_MAX - 5, 4, IMG_FILE_FAST_ONLY,
                                   &err), -ENOTSUP);
    assert_int_equal(img_file_zero(f, INT64_MAX - 5, 10, IMG_FILE_FAST_ONLY,
                                   &err), -ENOTSUP);
    assert_ok(img_file_extent(f, INT64_MAX, 4, &data, &run, &err), err);
    assert_true(!data && run == 4);
    /* More pieces than the kernel takes at once. */
    for (int i = 0; i < 2000; i++)
        one[i] = (struct iovec){ b, 1 };
    b[0] = 'z';
    assert_int_equal(img_file_preadv_now(f, one, 2000, 0), -EAGAIN);
    assert_int_equal(img_file_preadv_now(f, one, 1, UINT64_MAX), -EAGAIN);
    assert_ok(img_file_pwritev(f, one, 2000, 0, &err), err);
    for (int i = 0; i < 2000; i++)
        one[i] = (struct iovec){ b + i % 2, 1 };
    assert_ok(img_file_preadv(f, one, 2000, 0, &err), err);
    assert_memory_equal(b, "zz", 2);
    assert_int_equal(img_file_preadv_now(f, one, 3, 1998), -EAGAIN);
    img_file_close(f);
}

/* ---- what is opened ---------------------------------------------------- */

static const struct { int mode; unsigned flags; int ret; const char *says; }
    modes[] = {
    { O_RDONLY, 0, 0, NULL },
    { O_RDWR, IMG_FILE_WRITE, 0, NULL },
    { O_RDONLY, IMG_FILE_WRITE, -EACCES, "for reading and writing" },
    { O_WRONLY, IMG_FILE_WRITE, -EACCES, "for reading and writing" },
    { O_WRONLY, 0, -EACCES, "is not open for reading" },
    { O_PATH, 0, -EACCES, "is not open for reading" },
    { O_RDWR | O_APPEND, IMG_FILE_WRITE, -EINVAL, "for appending" },
    { O_RDWR | O_APPEND, 0, 0, NULL },
};

static void test_descriptors(void **state)
{
    struct img_file *f = new_file("a");

    img_file_close(f);
    for (unsigned i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        int fd = open(in_scratch("a"), modes[i].mode | O_CLOEXEC);
        int r = img_file_from_fd(fd, "name", modes[i].flags, &f, &err);

        if (r != modes[i].ret)
            fail_msg("%u: %d", i, r);
        if (r < 0)
            assert_says(modes[i].says);
        else
            img_file_close(f);
        assert_int_equal(fcntl(fd, F_GETFD), -1);
    }
    assert_int_equal(img_file_from_fd(-1, "name", 0, &f, &err), -EBADF);
    assert_int_equal(img_file_open(scratch, 0, &f, &err), -EISDIR);
    assert_int_equal(img_file_open("/dev/null", 0, &f, &err), -EINVAL);
    assert_says("neither a file nor a block device");
    assert_int_equal(img_file_open(in_scratch("a"), IMG_FILE_CREATE, &f,
                                   &err), -EEXIST);
    assert_int_equal(img_file_open(in_scratch("none"), 0, &f, &err),
                     -ENOENT);
}

static int refuse_direct(const char *call, int fd, unsigned long flags,
                         void *arg)
{
    return !strcmp(call, "open") && (flags & O_DIRECT) ? EINVAL : 0;
}

static void test_direct(void **state)
{
    struct img_file *f = new_file("a");
    char b[8] = "";
    int r;

    assert_ok(img_file_pwrite(f, "0123456789", 10, 0, &err), err);
    assert_ok(img_file_use_page_cache(f, &err), err);       /* it does */
    img_file_close(f);
    shim_answers = refuse_direct;
    r = img_file_open(in_scratch("a"), IMG_FILE_WRITE | IMG_FILE_DIRECT, &f,
                      &err);
    shim_answers = NULL;
    assert_int_equal(r, -EINVAL);
    assert_says("cannot bypass the page cache");
    r = img_file_open(in_scratch("a"), IMG_FILE_WRITE | IMG_FILE_DIRECT, &f,
                      &err);
    if (r == -EINVAL)
        skip();
    assert_ok(r, err);
    assert_false(img_file_is_cached(f));
    assert_int_equal(img_file_preadv_now(f, &(struct iovec){ b, 1 }, 1, 0),
                     -EAGAIN);
    assert_ok(img_file_pread(f, b, 3, 4, &err), err);
    assert_string_equal(b, "456");
    memset(b, 'x', 7);
    assert_ok(img_file_pread(f, b, 7, 8, &err), err);
    assert_memory_equal(b, "89\0\0\0\0\0", 7);
    assert_ok(img_file_pread(f, b, 7, 5000, &err), err);
    assert_memory_equal(b, "\0\0\0\0\0\0\0", 7);
    assert_ok(img_file_use_page_cache(f, &err), err);
    assert_int_equal(f->align, 1);
    assert_ok(img_file_pwrite(f, "X", 1, 9, &err), err);
    assert_ok(img_file_pread(f, b, 3, 8, &err), err);
    assert_memory_equal(b, "8X\0", 3);
    img_file_close(f);
}

static void test_times(void **state)
{
    const struct timespec old[2] = { { .tv_sec = 0 }, { .tv_sec = 0 } };
    const struct timespec then[2] = { { .tv_sec = 1 },
                                      { .tv_sec = 1, .tv_nsec = 5 } };
    struct img_file *f = new_file("a");

    assert_true(img_file_modified(f) > UINT64_C(1000000000) * 1000000000);
    assert_int_equal(futimens(f->fd, then), 0);
    assert_int_equal(img_file_modified(f), 1000000005);
    assert_int_equal(futimens(f->fd, old), 0);
    assert_int_equal(img_file_modified(f), 0);
    assert_ok(img_file_allocate(f, 0, 65536, &err), err);
    assert_true(img_file_allocated(f) >= 65536);
    img_file_close(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bare), cmocka_unit_test(test_memory),
        cmocka_unit_test(test_far), cmocka_unit_test(test_descriptors),
        cmocka_unit_test(test_direct), cmocka_unit_test(test_times),
    };

    return cmocka_run_group_tests_name("file-edges", tests, scratch_begin,
                                       scratch_end);
}
