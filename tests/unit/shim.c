/* The calls that fail and the files that remember. */
#include "unit.h"
#include "scratch.h"
#include "file/file.h"
#include "../record.h"
#include "../shim.h"

#include <errno.h>
#include <fcntl.h>

static struct img_file *new_file(void)
{
    struct img_file *f;
    struct img_error err;

    unlink(in_scratch("file"));
    assert_ok(img_file_open(in_scratch("file"),
                            IMG_FILE_WRITE | IMG_FILE_CREATE, &f, &err), err);
    return f;
}

/* Which of these calls fails first; 4 = none. */
static int one_round(struct img_file *f, struct img_error *err)
{
    char b[2048] = "new";
    uint64_t size;

    if (img_file_pwrite(f, b, sizeof b, 0, err) < 0)
        return 0;
    if (img_file_pread(f, b, 3, 0, err) < 0)
        return 1;
    if (img_file_size(f, &size, err) < 0)
        return 2;
    return img_file_truncate(f, 5000, err) < 0 ? 3 : 4;
}

static void test_fault(void **state)
{
    struct shim_fault t = { .kinds = SHIM_FILES, .code = EFBIG };
    struct img_file *f = new_file();
    struct img_error err;

    shim_fault = &t;
    assert_int_equal(one_round(f, &err), 4);
    assert_int_equal(t.seen, 4);
    for (int i = 0; i < 4; i++) {
        t.left = i + 1;
        assert_int_equal(one_round(f, &err), i);
        assert_int_equal(err.code, EFBIG);
        assert_non_null(strstr(err.message, "/file"));
        assert_int_equal(one_round(f, &err), 4);
    }
    t.for_ever = true;
    t.kinds = SHIM_SPACE;
    t.left = 1;
    t.failed = 0;
    assert_int_equal(one_round(f, &err), 3);
    assert_int_equal(one_round(f, &err), 3);
    shim_fault = NULL;
    img_file_close(f);
}

/* Neither an interruption nor a part of the bytes is seen above. */
static void test_unseen(void **state)
{
    struct shim_fault t = { .kinds = SHIM_READ | SHIM_WRITE, .code = EINTR };
    struct img_file *f = new_file();
    struct img_error err;

    shim_fault = &t;
    for (long i = 1; i <= 4; i++) {
        t.code = i % 2 ? EINTR : 0;
        t.left = (i + 1) / 2;
        t.failed = 0;
        assert_int_equal(one_round(f, &err), 4);
        assert_int_equal(t.failed, 1);
    }
    shim_fault = NULL;
    img_file_close(f);
}

static void test_torn(void **state)
{
    struct shim_fault t = { .kinds = SHIM_WRITE, .code = EIO, .torn = true,
                       .left = 1 };
    struct img_file *f = new_file();
    struct img_error err;
    uint64_t size;
    char b[2048];

    memset(b, 't', sizeof b);
    shim_fault = &t;
    assert_int_equal(img_file_pwrite(f, b, sizeof b, 100, &err), -EIO);
    assert_ok(img_file_size(f, &size, &err), err);
    assert_int_equal(size, 1124);
    shim_fault = NULL;
    img_file_close(f);
}

/* ---- recording --------------------------------------------------------- */

static bool all(void *opaque, size_t entry, int64_t sector)
{
    return true;
}

static bool none(void *opaque, size_t entry, int64_t sector)
{
    return false;
}

static bool odd_sectors(void *opaque, size_t entry, int64_t sector)
{
    return sector == RECORD_LENGTH || (sector & 1);
}

static bool no_length(void *opaque, size_t entry, int64_t sector)
{
    return sector != RECORD_LENGTH;
}

static void expect(struct record *r, size_t n, record_choose_fn *choose,
                   uint64_t len, const char *at_sectors)
{
    struct record_point point;
    uint8_t *data;
    uint64_t got;

    record_point_begin(&point, r, 0, n);
    record_state(&point, choose, NULL, &data, &got);
    record_point_end(&point);
    assert_int_equal(got, len);
    for (uint64_t i = 0; at_sectors[i]; i++)
        assert_int_equal(data[i * 512 + 511],
                         at_sectors[i] == '.' ? 0 : at_sectors[i]);
    free(data);
}

static void test_record(void **state)
{
    struct img_file *f = new_file();
    struct record r;
    char b[2048];

    memset(b, 'a', sizeof b);
    assert_int_equal(img_file_pwrite(f, b, 2048, 0, NULL), 0);
    record_begin(&r);
    record_watch(&r, in_scratch("file"));
    shim_record = &r;
    memset(b, 'b', sizeof b);
    assert_int_equal(img_file_pwrite(f, b, 1024, 512, NULL), 0);
    assert_int_equal(img_file_sync(f, NULL), 0);
    memset(b, 'c', sizeof b);
    assert_int_equal(img_file_pwrite(f, b, 2048, 1024, NULL), 0);
    assert_int_equal(img_file_discard(f, 0, 512, NULL), 0);
    memset(b, 0, sizeof b);
    assert_int_equal(img_file_pwrite(f, b, 512, 3072, NULL), 0);
    assert_int_equal(img_file_truncate(f, 1536, NULL), 0);
    assert_int_equal(r.n, 6);

    expect(&r, 0, none, 2048, "aaaa");
    expect(&r, 1, none, 2048, "aaaa");
    expect(&r, 1, odd_sectors, 2048, "abaa");
    expect(&r, 1, all, 2048, "abba");
    expect(&r, 2, none, 2048, "abba");
    expect(&r, 3, none, 2048, "abba");
    expect(&r, 3, all, 3072, "abcccc");
    expect(&r, 3, odd_sectors, 3072, "abbc.c");
    expect(&r, 3, no_length, 2048, "abcc");
    expect(&r, 4, all, 3072, ".bcccc");
    expect(&r, 5, all, 3584, ".bcccc.");
    expect(&r, 6, all, 1536, ".bc");
    expect(&r, 6, no_length, 2048, ".bcc");
    assert_int_equal(img_file_sync(f, NULL), 0);
    expect(&r, 7, none, 1536, ".bc");
    img_file_close(f);
    shim_record = NULL;
    record_end(&r);
}

/* With everything chosen the replay is what the file is. */
static void test_replay(void **state)
{
    struct img_file *f = new_file();
    struct record_point point;
    struct record r;
    uint64_t seed = 3, size, len;
    uint8_t b[9000], *data;

    record_begin(&r);
    record_watch(&r, in_scratch("file"));
    shim_record = &r;
    for (int i = 0; i < 300; i++) {
        uint64_t off = unit_random(&seed) % 50000;
        uint32_t n = unit_random(&seed) % sizeof b + 1;

        memset(b, i, sizeof b);
        switch (unit_random(&seed) % 6) {
        case 0: img_file_zero(f, off, n, 0, NULL); break;
        case 1: img_file_discard(f, off, n, NULL); break;
        case 2: img_file_truncate(f, off, NULL); break;
        case 3: img_file_sync(f, NULL); break;
        default: img_file_pwrite(f, b, n, off, NULL); break;
        }
        if (i % 10)
            continue;
        record_point_begin(&point, &r, 0, r.n);
        record_state(&point, all, NULL, &data, &len);
        record_point_end(&point);
        assert_int_equal(img_file_size(f, &size, NULL), 0);
        assert_int_equal(size, len);
        for (uint64_t at = 0; at < size; at += sizeof b) {
            assert_int_equal(img_file_pread(f, b, sizeof b, at, NULL), 0);
            assert_memory_equal(b, data + at, IMG_MIN(size - at, sizeof b));
        }
        free(data);
    }
    img_file_close(f);
    shim_record = NULL;
    record_end(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fault),
        cmocka_unit_test(test_unseen),
        cmocka_unit_test(test_torn),
        cmocka_unit_test(test_record),
        cmocka_unit_test(test_replay),
    };

    return cmocka_run_group_tests_name("shim", tests, scratch_begin,
                                       scratch_end);
}
