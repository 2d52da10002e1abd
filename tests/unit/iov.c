#include "unit.h"
#include "base/iov.h"

static void test_slice(void **state)
{
    char a[10], b[1], c[7];
    struct iovec iov[] = { { a, 10 }, { NULL, 0 }, { b, 1 }, { c, 7 } };
    struct iovec out[4];

    assert_int_equal(img_iov_total(iov, 4), 18);
    assert_int_equal(img_iov_slice(iov, 4, 0, 18, out), 3);
    assert_int_equal(img_iov_slice(iov, 4, 9, 3, out), 3);
    assert_ptr_equal(out[0].iov_base, a + 9);
    assert_int_equal(out[0].iov_len, 1);
    assert_ptr_equal(out[1].iov_base, b);
    assert_ptr_equal(out[2].iov_base, c);
    assert_int_equal(out[2].iov_len, 1);
    assert_int_equal(img_iov_slice(iov, 4, 10, 1, out), 1);
    assert_ptr_equal(out[0].iov_base, b);
    assert_int_equal(img_iov_slice(iov, 4, 5, 0, out), 0);
    assert_int_equal(img_iov_slice(iov, 4, 18, 1, out), 0);
}

/* Every cut of a scattered buffer against a flat one. */
static void test_copies(void **state)
{
    enum { N = 20 };
    char flat[N], other[N], parts[N];
    struct iovec iov[] = {
        { parts, 3 }, { parts + 3, 0 }, { parts + 3, 8 }, { parts + 11, 9 },
    };

    for (size_t off = 0; off <= N; off++)
        for (size_t len = 0; len <= N - off; len++) {
            for (size_t i = 0; i < N; i++)
                flat[i] = parts[i] = (char)i;
            for (size_t i = 0; i < len; i++)
                other[i] = flat[off + i] = (char)(100 + i);
            img_iov_fill(iov, 4, off, other, len);
            assert_memory_equal(flat, parts, N);
            memset(other, 0, N);
            img_iov_gather(iov, 4, off, other, len);
            assert_memory_equal(other, flat + off, len);
            img_iov_clear(iov, 4, off, len);
            memset(flat + off, 0, len);
            assert_memory_equal(flat, parts, N);
        }
}

static void test_zero(void **state)
{
    char buf[4096 + 40] = { 0 };
    struct iovec iov[] = { { buf, 100 }, { buf + 100, 200 } };

    for (size_t len = 0; len < 70; len++) {
        assert_true(img_is_zero(buf + len % 3, len));
        for (size_t i = 0; i < len; i++) {
            buf[len % 3 + i] = 1;
            assert_false(img_is_zero(buf + len % 3, len));
            buf[len % 3 + i] = 0;
        }
        buf[len % 3 + len] = 1;
        assert_true(img_is_zero(buf + len % 3, len));
        buf[len % 3 + len] = 0;
    }
    assert_true(img_is_zero(buf, sizeof buf));
    buf[sizeof buf - 1] = 1;
    assert_false(img_is_zero(buf, sizeof buf));
    assert_true(img_iov_is_zero(iov, 2));
    buf[299] = 1;
    assert_false(img_iov_is_zero(iov, 2));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slice),
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_zero),
    };

    return cmocka_run_group_tests_name("iov", tests, NULL, NULL);
}
