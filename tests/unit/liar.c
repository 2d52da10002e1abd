/* A format that says what it must not: core/ and ops/ find it out before
 * anything is written where it should not be. */
#include "folder.h"
#include "tiny.h"
#include "core/disk.h"
#include "ops/convert.h"
#include "ops/copy.h"

#include <errno.h>
#include <unistd.h>

enum { K = 1024, SIZE = 64 * K };

static unsigned char flat[SIZE];

static struct img_disk *make_disk(void)
{
    struct img_disk *d;

    tiny_lie = TINY_TRUE;
    for (unsigned i = 0; i < SIZE; i++)
        flat[i] = i < SIZE / 2 ? (unsigned char)(i % 251) : 0;
    assert_ok(make("disk", "tiny", SIZE, NULL, NULL, 0, NULL), err);
    d = open_as("disk", "tiny", IMG_OPEN_WRITE);
    assert_ok(img_pwrite(d, flat, SIZE / 2, 0, 0, &err), err);
    return d;
}

static void check_disk(struct img_disk *d)
{
    static unsigned char now[SIZE];

    tiny_lie = TINY_TRUE;
    assert_ok(img_pread(d, now, SIZE, 0, &err), err);
    assert_memory_equal(now, flat, SIZE);
}

static const struct { enum tiny_lie lie; bool data; } maps[] = {
    { TINY_MAP_NOTHING, false }, { TINY_MAP_LONG, false },
    { TINY_MAP_ELSEWHERE, false }, { TINY_MAP_NO_FILE, true },
};

static void test_maps(void **state)
{
    struct img_disk *d = make_disk(), *other;
    struct img_extent e;
    uint64_t at;
    char b[8];

    assert_ok(make("other", "raw", SIZE, NULL, NULL, 0, NULL), err);
    other = open_as("other", "raw", 0);
    for (unsigned i = 0; i < sizeof maps / sizeof maps[0]; i++) {
        uint64_t off = maps[i].data ? 5000 : SIZE - 100;

        tiny_lie = maps[i].lie;
        assert_int_equal(img_pread(d, b, 8, off, &err), -EIO);
        assert_says("no place is known for the");
        assert_says("disk");
        assert_int_equal(img_map(d, off, 8, 0, &e, &err), -EIO);
        assert_int_equal(img_pread_now(d, b, 8, off), -EAGAIN);
        assert_int_equal(img_compare(d, other, false, NULL, &at, &err), -EIO);
        check_disk(d);
    }
    /* Of holes nobody asks which file they are in. */
    tiny_lie = TINY_MAP_NO_FILE;
    assert_ok(img_pread(d, b, 8, SIZE - 100, &err), err);
    img_close(other, NULL);
    assert_ok(img_close(d, &err), err);
}

static const enum tiny_lie places[] = {
    TINY_PLACE_NOTHING, TINY_PLACE_LONG, TINY_PLACE_ELSEWHERE,
    TINY_PLACE_NO_FILE, TINY_PLACE_FILLS_LATE, TINY_PLACE_FILLS_LITTLE,
    TINY_PLACE_BEFORE_FILE,
};

static void test_places(void **state)
{
    static unsigned char data[8 * K];
    struct img_disk *d = make_disk();

    memset(data, 1, sizeof data);
    for (unsigned i = 0; i < sizeof places / sizeof places[0]; i++) {
        struct img_place some[4];
        unsigned n = 9;

        tiny_lie = places[i];
        if (img_pwrite(d, data, 8 * K, 40 * K + 3, 0, &err) != -EIO)
            fail_msg("%u: written", i);
        assert_says("no place was given to the");
        assert_int_equal(img_io_reserve(&d->io, 0, 40 * K + 3, 8 * K, some, 4,
                                        &n, &err), -EIO);
        assert_int_equal(n, 0);
        assert_int_equal(img_pwrite_now(d, data, 100, 41 * K), -EAGAIN);
        check_disk(d);
    }
    /* Where bytes have their place already. */
    for (unsigned i = 1; i < 4; i++) {
        tiny_lie = places[i];
        assert_int_equal(img_pwrite(d, data, 100, 4 * K, 0, &err), -EIO);
        check_disk(d);
    }
    assert_ok(img_pwrite(d, data, 8 * K, 40 * K + 3, 0, &err), err);
    memcpy(flat + 40 * K + 3, data, 8 * K);
    check_disk(d);
    assert_ok(img_close(d, &err), err);
    d = open_as("disk", "tiny", 0);
    check_disk(d);
    assert_ok(img_close(d, &err), err);
}

static void test_unmaps(void **state)
{
    struct img_disk *d = make_disk();

    for (unsigned i = 0; i < 2; i++) {
        uint64_t off = i * 16 * K;

        tiny_lie = i ? TINY_UNMAP_LONG : TINY_UNMAP_NOTHING;
        assert_int_equal(img_zero(d, off, 4 * K, 0, &err), -EIO);
        assert_says("could not be changed");
        assert_int_equal(img_discard(d, off + 4 * K, 4 * K, &err), -EIO);
        memset(flat + off, 0, 8 * K);       /* tiny has done it */
        check_disk(d);
    }
    assert_ok(img_close(d, &err), err);
}

/* A conversion into it fails, and there is no target. */
static void test_convert(void **state)
{
    struct img_convert_options o = IMG_CONVERT_OPTIONS;
    struct img_create_options c = IMG_CREATE_OPTIONS;
    struct img_disk *d = make_disk();

    c.format = "tiny";
    o.create = &c;
    for (unsigned i = 0; i < sizeof places / sizeof places[0]; i++) {
        tiny_lie = places[i];
        assert_int_equal(img_convert(&d, 1, in_folder("to"), &o, NULL, &err),
                         -EIO);
        assert_int_equal(access(in_folder("to"), F_OK), -1);
    }
    for (int pack = 0; pack < 2; pack++) {
        struct img_disk *to;
        uint64_t at;

        tiny_lie = TINY_TRUE;
        o.compress = pack;
        assert_ok(img_convert(&d, 1, in_folder("to"), &o, NULL, &err), err);
        to = open_as("to", "tiny", 0);
        assert_int_equal(img_compare(d, to, false, NULL, &at, &err), 0);
        img_close(to, NULL);
    }
    assert_ok(img_close(d, &err), err);
}

/* What one worker could not look up is not zeros for the next one, who would
 * write them over what lies below. */
static void test_claims(void **state)
{
    struct img_disk *d = make_disk();
    struct img_copy c = { .max_depth = 1, .unit = TINY_CLUSTER,
                          .claim_max = 4 * TINY_CLUSTER };
    struct img_claim claim;

    assert_ok(img_source_one(&c.source, &d->io, 0, SIZE, &err), err);
    for (unsigned i = 0; i < 2; i++) {
        tiny_lie = TINY_MAP_NOTHING;
        assert_int_equal(img_copy_claim(&c, &claim, &err), -EIO);
        assert_int_equal(c.now.end, 0);
        assert_int_equal(img_copy_claim(&c, &claim, &err), -EIO);
        tiny_lie = TINY_TRUE;
        assert_ok(img_copy_claim(&c, &claim, &err), err);
        assert_false(claim.zero);
        assert_int_equal(claim.off, i * 4 * TINY_CLUSTER);
        assert_int_equal(claim.len, 4 * TINY_CLUSTER);
        c.now = (struct img_stretch){ 0 };
    }
    img_source_free(&c.source);
    assert_ok(img_close(d, &err), err);
}

/* Where a format's answers would mean places beyond 2^63. */
static void test_far(void **state)
{
    struct img_disk *d = make_disk();
    unsigned char b[4] = "";

    assert_int_equal(img_pread(d, b, 4, SIZE - 3, &err), -EINVAL);
    assert_int_equal(img_pwrite(d, b, 4, UINT64_MAX - 1, 0, &err), -EINVAL);
    assert_int_equal(img_vmstate_pread(d, b, 4, 0, &err), -ENOTSUP);
    assert_ok(img_close(d, &err), err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_maps), cmocka_unit_test(test_places),
        cmocka_unit_test(test_unmaps), cmocka_unit_test(test_convert),
        cmocka_unit_test(test_claims), cmocka_unit_test(test_far),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
