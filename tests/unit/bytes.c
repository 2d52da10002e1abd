#include "unit.h"
#include "base/span.h"

static void test_orders(void **state)
{
    uint8_t b[] = { 0xff, 1, 2, 3, 4, 5, 6, 7, 8 };

    assert_int_equal(img_get_be16(b + 1), 0x0102);
    assert_int_equal(img_get_le16(b + 1), 0x0201);
    assert_int_equal(img_get_be32(b + 1), 0x01020304);
    assert_int_equal(img_get_le32(b + 1), 0x04030201);
    assert_true(img_get_be64(b + 1) == UINT64_C(0x0102030405060708));
    assert_true(img_get_le64(b + 1) == UINT64_C(0x0807060504030201));
    img_put_be32(b + 1, 0xa0b0c0d0);
    assert_int_equal(b[1], 0xa0);
    assert_int_equal(b[4], 0xd0);
    img_put_le64(b + 1, 1);
    assert_int_equal(b[1], 1);
    assert_int_equal(b[8], 0);
    assert_int_equal(b[0], 0xff);
}

static void test_checked(void **state)
{
    uint64_t v;

    assert_true(img_add(UINT64_MAX - 1, 1, &v));
    assert_true(v == UINT64_MAX);
    assert_false(img_add(UINT64_MAX, 1, &v));
    assert_false(img_mul(UINT64_C(1) << 32, UINT64_C(1) << 32, &v));
    assert_true(img_mul(UINT64_C(1) << 32, (UINT64_C(1) << 32) - 1, &v));
    assert_true(img_inside(0, 10, 10));
    assert_true(img_inside(10, 0, 10));
    assert_false(img_inside(11, 0, 10));
    assert_false(img_inside(1, UINT64_MAX, 10));
    assert_false(img_is_pow2(0));
    assert_true(img_is_pow2(UINT64_C(1) << 63));
    assert_false(img_is_pow2(6));
    assert_true(img_round_up(513, 512) == 1024);
    assert_true(img_round_up(512, 512) == 512);
    assert_true(img_round_down(1023, 512) == 512);
    assert_true(img_div_up(UINT64_MAX, 2) == UINT64_C(1) << 63);
    assert_int_equal(img_log2(UINT64_C(1) << 40), 40);
}

static void test_span(void **state)
{
    const uint8_t b[] = { 1, 2, 3, 4 };
    struct img_span s = { b, sizeof b }, part;
    uint16_t v16;
    uint32_t v32;
    uint64_t v64;

    assert_true(img_span_be32(s, 0, &v32));
    assert_int_equal(v32, 0x01020304);
    assert_false(img_span_be32(s, 1, &v32));
    assert_false(img_span_le64(s, 0, &v64));
    assert_true(img_span_le16(s, 2, &v16));
    assert_int_equal(v16, 0x0403);
    assert_false(img_span_be16(s, SIZE_MAX, &v16));
    assert_true(img_span_part(s, 1, 3, &part));
    assert_ptr_equal(part.data, b + 1);
    assert_true(img_span_part(s, 4, 0, &part));
    assert_false(img_span_part(s, 2, 3, &part));
    assert_false(img_span_part(s, 2, SIZE_MAX, &part));
}

static void test_error(void **state)
{
    struct img_error err = { 0 };

    assert_int_equal(img_fail(&err, EINVAL, "%s: a\nb", "f"), -EINVAL);
    assert_string_equal(err.message, "f: a b");
    assert_int_equal(err.code, EINVAL);
    assert_int_equal(img_fail_prefix(&err, -EIO, "p%d", 1), -EIO);
    assert_string_equal(err.message, "p1: f: a b");
    assert_int_equal(err.code, EIO);
    assert_int_equal(img_fail_errno(&err, ENOSPC, "x"), -ENOSPC);
    assert_string_equal(err.message, "x: No space left on device");
    assert_int_equal(img_fail(NULL, EIO, "nobody"), -EIO);
    assert_int_equal(img_fail_prefix(NULL, -EIO, "nobody"), -EIO);
    assert_int_equal(img_fail(&err, EIO, "%0700d", 1), -EIO);
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
    assert_int_equal(img_fail_errno(&err, EIO, "%0700d", 1), -EIO);
    assert_int_equal(img_fail_prefix(&err, -EIO, "%0700d", 1), -EIO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_orders),
        cmocka_unit_test(test_checked),
        cmocka_unit_test(test_span),
        cmocka_unit_test(test_error),
    };

    return cmocka_run_group_tests_name("bytes", tests, NULL, NULL);
}
