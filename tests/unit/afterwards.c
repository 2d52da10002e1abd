/* What a call that failed leaves behind: the next one, on the same handle,
 * finds nothing that is untrue. */
#include "../shim.h"
#include "folder.h"
#include "core/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

enum { K = 1024, M = 1024 * K };

static struct shim_fault fault;

/* From call number n of these kinds on, all fail; 0 = none. */
static void fail_from(unsigned kinds, long n)
{
    memset(&fault, 0, sizeof fault);
    fault.kinds = kinds;
    fault.code = kinds == SHIM_MEMORY ? ENOMEM : ENOSPC;
    fault.for_ever = true;
    atomic_store(&fault.left, n);
    shim_fault = n ? &fault : NULL;
}

/* Only call number n. */
static void fail_at(unsigned kinds, long n)
{
    fail_from(kinds, n);
    fault.for_ever = false;
}

static bool has_failed(void)
{
    bool failed = atomic_load(&fault.failed);

    shim_fault = NULL;
    return failed;
}

static void assert_sound(const char *name)
{
    struct img_disk *d = open_as(name, "qcow2", 0);
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_check_result result = { 0 };

    assert_ok(img_check(d, &o, NULL, &result, &err), err);
    assert_int_equal(result.errors, 0);
    assert_ok(img_close(d, &err), err);
}

static void assert_magic(const char *name)
{
    int fd = open(in_folder(name), O_RDONLY);
    char magic[4] = "";

    assert_int_equal(pread(fd, magic, 4, 0), 4);
    assert_memory_equal(magic, "QFI\xfb", 4);
    close(fd);
}

/* ---- bitmaps --------------------------------------------------------------- */

/* A new bitmap whose bits were stored, and no more, has no place in the file
 * where its flags could be set: that place would be the header's. */
static void test_bitmap_not_added(void **state)
{
    long n;

    for (n = 1;; n++) {
        struct img_disk *d;
        int r;

        assert_ok(make("a0", "qcow2", M, NULL, NULL, 0, NULL), err);
        d = open_as("a0", "qcow2", IMG_OPEN_WRITE);
        fail_at(SHIM_WRITE, n);
        r = img_bitmap_edit(d, "x", IMG_BITMAP_ADD, 0, &err);
        if (!has_failed()) {
            assert_ok(r, err);
            assert_ok(img_close(d, &err), err);
            break;
        }
        assert_int_equal(r, -ENOSPC);
        assert_ok(img_pwrite(d, "x", 1, 0, 0, &err), err);
        assert_magic("a0");
        assert_ok(img_flush(d, &err), err);
        assert_ok(img_close(d, &err), err);
        assert_sound("a0");
    }
    assert_true(n > 3);
}

static bool is_dirty(struct img_disk *d, const char *name)
{
    struct img_extent e;

    assert_ok(img_bitmap_map(d, name, 0, 1, &e, &err), err);
    return e.dirty;
}

/* Clearing that failed has cleared nothing, not later either. */
static void test_bitmap_not_cleared(void **state)
{
    struct img_disk *d;
    long n;

    for (n = 1;; n++) {
        int r;

        assert_ok(make("a1", "qcow2", M, NULL, NULL, 0, NULL), err);
        d = open_as("a1", "qcow2", IMG_OPEN_WRITE);
        assert_ok(img_bitmap_edit(d, "x", IMG_BITMAP_ADD, 0, &err), err);
        assert_ok(img_pwrite(d, "x", 1, 0, 0, &err), err);
        fail_at(SHIM_WRITE, n);
        r = img_bitmap_edit(d, "x", IMG_BITMAP_CLEAR, 0, &err);
        if (!has_failed()) {
            assert_ok(r, err);
            assert_false(is_dirty(d, "x"));
            break;
        }
        assert_int_equal(r, -ENOSPC);
        assert_true(is_dirty(d, "x"));
        assert_ok(img_close(d, &err), err);
        assert_sound("a1");
        d = open_as("a1", "qcow2", 0);
        assert_true(is_dirty(d, "x"));
        assert_ok(img_close(d, &err), err);
    }
    assert_true(n > 3);
    assert_ok(img_close(d, &err), err);
}

/* The mark of the first bitmap was set, that of the second was not: the write
 * is refused, and both are good when the disk closes. */
static void test_bitmap_half_marked(void **state)
{
    struct img_disk *d;

    assert_ok(make("a2", "qcow2", M, NULL, NULL, 0, NULL), err);
    d = open_as("a2", "qcow2", IMG_OPEN_WRITE);
    assert_ok(img_bitmap_edit(d, "x", IMG_BITMAP_ADD, 0, &err), err);
    assert_ok(img_bitmap_edit(d, "y", IMG_BITMAP_ADD, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    d = open_as("a2", "qcow2", IMG_OPEN_WRITE);
    fail_at(SHIM_WRITE, 2);
    assert_int_equal(img_pwrite(d, "x", 1, 0, 0, &err), -ENOSPC);
    assert_true(has_failed());
    assert_ok(img_close(d, &err), err);
    d = open_as("a2", "qcow2", 0);
    assert_false(is_dirty(d, "x"));
    assert_false(is_dirty(d, "y"));
    assert_ok(img_close(d, &err), err);
}

static size_t count_bitmaps(struct img_disk *d)
{
    struct img_info *info;
    size_t n;

    assert_ok(img_info_get(d, &info, &err), err);
    n = info->n_bitmaps;
    img_info_free(info);
    return n;
}

/* A copy of a bitmap that could not be read to its end is no copy. */
static void test_bitmap_half_copied(void **state)
{
    struct img_convert_options o = IMG_CONVERT_OPTIONS;
    struct img_disk *a, *b;
    bool failed = true;
    long n, refused = 0;

    assert_ok(make("a3", "qcow2", M, NULL, NULL, 0, NULL), err);
    a = open_as("a3", "qcow2", IMG_OPEN_WRITE);
    assert_ok(img_bitmap_edit(a, "x", IMG_BITMAP_ADD, 0, &err), err);
    assert_ok(img_pwrite(a, "x", 1, 0, 0, &err), err);
    assert_ok(img_close(a, &err), err);
    o.bitmaps = true;
    for (n = 1; failed; n++) {
        int r;

        assert_ok(make("b3", "qcow2", M, NULL, NULL, 0, NULL), err);
        a = open_as("a3", "qcow2", 0);
        b = open_as("b3", "qcow2", IMG_OPEN_WRITE);
        fail_at(SHIM_READ, n);
        r = img_copy(&a, 1, b, &o, NULL, &err);
        failed = has_failed();
        refused += r < 0;
        assert_int_equal(count_bitmaps(b), r < 0 ? 0 : 1);
        assert_true(r < 0 || is_dirty(b, "x"));
        assert_ok(img_close(b, &err), err);
        assert_ok(img_close(a, &err), err);
        assert_sound("b3");
    }
    assert_true(refused > 1);
}

/* ---- tables ---------------------------------------------------------------- */

/* Half of a new L2 table, for which there was no memory, is not written over
 * what takes its place. */
static void test_half_a_table(void **state)
{
    struct img_disk *d;
    bool failed = true;
    char b[64 * K], got[64 * K];

    for (long n = 1; failed; n++) {
        assert_ok(make("t", "qcow2", 2048 * (uint64_t)M, NULL, NULL, 0, NULL),
                  err);
        d = open_as("t", "qcow2", IMG_OPEN_WRITE);
        memset(b, 'x', sizeof b);
        assert_ok(img_pwrite(d, b, sizeof b, 0, 0, &err), err);
        assert_ok(img_flush(d, &err), err);
        fail_at(SHIM_MEMORY, n);
        img_pwrite(d, b, sizeof b, 1024 * (uint64_t)M, 0, &err);
        failed = has_failed();
        for (unsigned i = 1; i < 4; i++)
            assert_ok(img_pwrite(d, b, sizeof b, i * sizeof b, 0, &err), err);
        assert_ok(img_flush(d, &err), err);
        for (unsigned i = 0; i < 4; i++) {
            assert_ok(img_pread(d, got, sizeof b, i * sizeof b, &err), err);
            assert_memory_equal(b, got, sizeof b);
        }
        assert_ok(img_close(d, &err), err);
        assert_sound("t");
    }
}

static int create_snapshot(struct img_disk *d)
{
    return img_snapshot_create(d, "s", &err);
}

/* The file system is full while op runs, and then no more. */
static void with_full_disk(int op(struct img_disk *), unsigned from,
                           unsigned to)
{
    char b[512], got[512];

    for (unsigned used = from; used < to; used++) {
        bool failed = true;

        for (long n = 1; failed; n++) {
            struct img_disk *d;

            assert_ok(make("f", "qcow2", 4 * M, NULL, NULL, 0,
                           "cluster_size=512"), err);
            d = open_as("f", "qcow2", IMG_OPEN_WRITE | IMG_OPEN_NO_SYNC);
            memset(b, 'a', sizeof b);
            for (unsigned i = 0; i < used; i++)
                assert_ok(img_pwrite(d, b, sizeof b, i * sizeof b, 0, &err),
                          err);
            assert_ok(img_flush(d, &err), err);
            fail_from(SHIM_WRITE, n);
            op(d);
            failed = has_failed();
            if (img_pwrite(d, b, sizeof b, 2 * M, 0, &err) == 0) {
                for (unsigned i = 0; i < 64; i++)
                    assert_ok(img_pwrite(d, b, sizeof b, 3 * M + i * 512, 0,
                                         &err), err);
                assert_ok(img_flush(d, &err), err);
                for (unsigned i = 0; i < used; i++) {
                    assert_ok(img_pread(d, got, sizeof b, i * sizeof b,
                                        &err), err);
                    assert_memory_equal(b, got, sizeof b);
                }
            }
            img_close(d, NULL);
            d = open_as("f", "qcow2",     /* mends flags */
                        IMG_OPEN_WRITE | IMG_OPEN_NO_SYNC);
            for (unsigned i = 0; i < used; i++) {
                assert_ok(img_pread(d, got, sizeof b, i * sizeof b, &err),
                          err);
                assert_memory_equal(b, got, sizeof b);
            }
            assert_ok(img_close(d, &err), err);
            assert_sound("f");
        }
    }
}

static void test_full_snapshot(void **state)
{
    with_full_disk(create_snapshot, 244, 248);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bitmap_not_added),
        cmocka_unit_test(test_bitmap_not_cleared),
        cmocka_unit_test(test_bitmap_half_marked),
        cmocka_unit_test(test_bitmap_half_copied),
        cmocka_unit_test(test_half_a_table),
        cmocka_unit_test(test_full_snapshot),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
