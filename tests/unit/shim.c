/* The files that fail and the files that remember. */
#include "unit.h"
#include "fault_file.h"
#include "record_file.h"

static struct img_file *in_memory(void)
{
    struct img_file *f;
    struct img_error err;

    assert_ok(img_file_in_memory("mem", &f, &err), err);
    return f;
}

static int one_round(struct img_file *f, int *which)
{
    struct img_error err = { 0 };
    uint64_t size;
    char b[2048] = "new";
    int r;

    *which = 0;
    r = img_file_pwrite(f, b, sizeof b, 0, &err);
    if (r == 0 && ++*which)
        r = img_file_pread(f, b, 3, 0, &err);
    if (r == 0 && ++*which)
        r = img_file_size(f, &size, &err);
    if (r == 0 && ++*which)
        r = img_file_zero(f, 4096, 100, 0, &err);
    if (r == 0 && ++*which)
        r = img_file_discard(f, 4096, 100, &err);
    if (r == 0 && ++*which)
        r = img_file_truncate(f, 5000, &err);
    if (r == 0 && ++*which)
        r = img_file_sync(f, &err);
    if (r < 0)
        assert_non_null(strstr(err.message, "mem: "));
    return r;
}

static void test_fault(void **state)
{
    struct fault t = { .kinds = FAULT_ALL, .code = ENOSPC };
    struct img_file *f = in_memory();
    int which;

    assert_int_equal(fault_wrap(f, &t), 0);
    assert_int_equal(one_round(f, &which), 0);
    assert_int_equal(t.seen, 7);
    for (int i = 0; i < 7; i++) {
        t.left = i + 1;
        assert_int_equal(one_round(f, &which), -ENOSPC);
        assert_int_equal(which, i);
        assert_int_equal(one_round(f, &which), 0);
    }
    t.left = 8;
    assert_int_equal(one_round(f, &which), 0);
    t.for_ever = true;
    t.kinds = FAULT_SYNC;
    t.left = t.failed = 0;
    assert_int_equal(one_round(f, &which), 0);
    t.left = 1;
    assert_int_equal(one_round(f, &which), -ENOSPC);
    assert_int_equal(one_round(f, &which), -ENOSPC);
    img_file_close(f);
}

static void test_torn(void **state)
{
    struct fault t = { .kinds = FAULT_WRITE, .code = EIO, .torn = true,
                       .left = 1 };
    struct img_file *f = in_memory();
    struct img_error err;
    uint64_t size;
    char b[2048];

    memset(b, 't', sizeof b);
    assert_int_equal(fault_wrap(f, &t), 0);
    assert_int_equal(img_file_pwrite(f, b, sizeof b, 100, &err), -EIO);
    assert_ok(img_file_size(f, &size, &err), err);
    assert_int_equal(size, 1124);
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
    uint8_t *data;
    uint64_t got;

    assert_int_equal(record_state(r, 0, n, choose, NULL, &data, &got), 0);
    assert_int_equal(got, len);
    for (uint64_t i = 0; at_sectors[i]; i++)
        assert_int_equal(data[i * 512 + 511],
                         at_sectors[i] == '.' ? 0 : at_sectors[i]);
    free(data);
}

static void test_record(void **state)
{
    struct img_file *f = in_memory();
    struct record r;
    char b[2048];

    memset(b, 'a', sizeof b);
    assert_int_equal(img_file_pwrite(f, b, 2048, 0, NULL), 0);
    record_begin(&r);
    assert_int_equal(record_wrap(f, &r), 0);
    memset(b, 'b', sizeof b);
    assert_int_equal(img_file_pwrite(f, b, 1024, 512, NULL), 0);
    assert_int_equal(img_file_sync(f, NULL), 0);
    memset(b, 'c', sizeof b);
    assert_int_equal(img_file_pwrite(f, b, 2048, 1024, NULL), 0);
    assert_int_equal(img_file_discard(f, 0, 512, NULL), 0);
    assert_int_equal(img_file_zero(f, 3072, 512, 0, NULL), 0);
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
    record_end(&r);
}

/* With everything chosen the replay is what the file is. */
static void test_replay(void **state)
{
    struct img_file *f = in_memory();
    struct record r;
    uint64_t seed = 3, size, len;
    uint8_t b[9000], *data;

    record_begin(&r);
    assert_int_equal(record_wrap(f, &r), 0);
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
        assert_int_equal(record_state(&r, 0, r.n, all, NULL, &data, &len), 0);
        assert_int_equal(img_file_size(f, &size, NULL), 0);
        assert_int_equal(size, len);
        for (uint64_t at = 0; at < size; at += sizeof b) {
            assert_int_equal(img_file_pread(f, b, sizeof b, at, NULL), 0);
            assert_memory_equal(b, data + at, IMG_MIN(size - at, sizeof b));
        }
        free(data);
    }
    img_file_close(f);
    record_end(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fault),
        cmocka_unit_test(test_torn),
        cmocka_unit_test(test_record),
        cmocka_unit_test(test_replay),
    };

    return cmocka_run_group_tests_name("wrapped", tests, NULL, NULL);
}
