/* Bitmaps through the library: what is recorded, merged, copied by convert, and
 * refused in which words. */
#include "folder.h"
#include "core/disk.h"

#include <errno.h>

enum { K = 1024, M = 1024 * K };

static char warned[512];

static void warn(void *opaque, const char *message)
{
    snprintf(warned, sizeof warned, "%s", message);
}

static void test_bitmaps(void **state)
{
    struct img_convert_options o = IMG_CONVERT_OPTIONS;
    struct img_create_options c = IMG_CREATE_OPTIONS;
    struct img_disk *a, *b, *raw;
    struct img_extent e;

    assert_ok(make("a", "qcow2", M, NULL, NULL, 0, NULL), err);
    assert_ok(make("b", "qcow2", M / 2, NULL, NULL, 0, NULL), err);
    assert_ok(make("raw", "raw", M, NULL, NULL, 0, NULL), err);
    a = open_as("a", "qcow2", IMG_OPEN_WRITE);
    b = open_as("b", "qcow2", 0);
    raw = open_as("raw", "raw", IMG_OPEN_WRITE);
    assert_int_equal(img_bitmap_edit(raw, "x", IMG_BITMAP_ADD, 0, &err),
                     -ENOTSUP);
    assert_says("format raw has no bitmaps");
    assert_int_equal(img_bitmap_edit(b, "x", IMG_BITMAP_ADD, 0, &err),
                     -EROFS);
    assert_says("not open for writing");
    assert_ok(img_bitmap_edit(a, "x", IMG_BITMAP_ADD, 65536, &err), err);
    assert_ok(img_bitmap_edit(a, "y", IMG_BITMAP_ADD, 65536, &err), err);
    assert_ok(img_pwrite(a, "x", 1, 200 * K, 0, &err), err);
    assert_ok(img_bitmap_edit(a, "x", IMG_BITMAP_DISABLE, 0, &err), err);
    assert_ok(img_bitmap_map(a, "x", 0, M, &e, &err), err);
    assert_true(!e.dirty && e.len == 192 * K);
    assert_ok(img_bitmap_map(a, "x", 192 * K, M - 192 * K, &e, &err), err);
    assert_true(e.dirty && e.len == 64 * K && e.off == 192 * K);
    assert_int_equal(img_bitmap_map(a, "x", 0, 0, &e, &err), -EINVAL);
    assert_int_equal(img_bitmap_map(a, "x", M, 1, &e, &err), -EINVAL);
    assert_says("not inside");
    assert_int_equal(img_bitmap_map(raw, "x", 0, 1, &e, &err), -ENOTSUP);
    assert_true(img_bitmap_map(a, "none", 0, 1, &e, &err) < 0);
    assert_int_equal(img_bitmap_merge(raw, "x", a, "x", &err), -ENOTSUP);
    assert_int_equal(img_bitmap_merge(a, "x", raw, "x", &err), -ENOTSUP);
    assert_int_equal(img_bitmap_merge(b, "x", a, "x", &err), -EROFS);
    img_close(b, NULL);
    b = open_as("b", "qcow2", IMG_OPEN_WRITE);
    assert_int_equal(img_bitmap_merge(b, "x", a, "x", &err), -EINVAL);
    assert_says("is smaller than");
    assert_ok(img_bitmap_merge(a, "y", a, "x", &err), err);

    /* The copy has both, and knows which one records no more. */
    o.create = &c;
    o.bitmaps = true;
    c.format = "qcow2";
    assert_ok(img_convert(&a, 1, in_folder("to"), &o, NULL, &err), err);
    assert_int_equal(img_convert(&raw, 1, in_folder("to2"), &o, NULL, &err),
                     -ENOTSUP);
    assert_says("has no bitmaps");
    img_close(b, NULL);
    b = open_as("to", "qcow2", IMG_OPEN_WRITE);
    assert_ok(img_pwrite(b, "x", 1, 0, 0, &err), err);
    assert_ok(img_bitmap_map(b, "x", 0, M, &e, &err), err);
    assert_true(!e.dirty && e.len == 192 * K);
    assert_ok(img_bitmap_map(b, "y", 0, M, &e, &err), err);
    assert_true(e.dirty && e.len == 64 * K);
    img_close(b, NULL);
    img_close(a, NULL);
    img_close(raw, NULL);
}

/* A bitmap that a killed QEMU left in use. */
static void test_broken_bitmap(void **state)
{
    struct img_convert_options o = IMG_CONVERT_OPTIONS;
    struct img_create_options c = IMG_CREATE_OPTIONS;
    struct img_disk *d = NULL;
    struct img_info *info;
    struct img_measure m;
    char cmd[400];

    assert_ok(make("a", "qcow2", M, NULL, NULL, 0, NULL), err);
    d = open_as("a", "qcow2", IMG_OPEN_WRITE);
    assert_ok(img_bitmap_edit(d, "x", IMG_BITMAP_ADD, 65536, &err), err);
    assert_ok(img_close(d, &err), err);
    snprintf(cmd, sizeof cmd, "cd %s && command -v qemu-io >/dev/null && "
             "(qemu-io -f qcow2 -c 'write 0 1' -c abort a "
             ">/dev/null 2>&1 || true)", folder);
    if (system(cmd) != 0)
        skip();
    o.create = &c;
    o.bitmaps = true;
    o.warn = warn;
    c.format = "qcow2";
    d = open_as("a", "qcow2", 0);
    assert_int_equal(img_convert(&d, 1, in_folder("to"), &o, NULL, &err),
                     -EINVAL);
    assert_says("bitmap 'x' is inconsistent");
    o.skip_broken_bitmaps = true;
    assert_ok(img_convert(&d, 1, in_folder("to"), &o, NULL, &err), err);
    assert_non_null(strstr(warned, "leaving out inconsistent bitmap 'x'"));
    o.warn = NULL;
    assert_ok(img_convert(&d, 1, in_folder("to"), &o, NULL, &err), err);
    assert_ok(img_measure(d, &c, &m, &err), err);
    assert_true(m.has_bitmaps && m.bitmaps == 0);
    img_close(d, NULL);
    d = open_as("to", "qcow2", 0);
    assert_ok(img_info_get(d, &info, &err), err);
    assert_int_equal(info->n_bitmaps, 0);
    img_info_free(info);
    img_close(d, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bitmaps), cmocka_unit_test(test_broken_bitmap),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
