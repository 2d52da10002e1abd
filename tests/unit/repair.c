/* Repair that is interrupted: each call fails once while a damaged VDI or
 * qcow image is repaired; repaired again it shows what it would have shown,
 * and nothing that was sound is lost on the way. */
#include "../shim.h"
#include "vdi-image.h"

enum { B = 4096, SIZE = 16 * B };

static uint8_t flat[SIZE];

struct kind {
    const char *format;
    void (*build)(void);
    uint64_t errors;
};

static void poke64(uint64_t at, uint64_t value)
{
    uint8_t p[8];

    img_put_be64(p, value);
    poke("i", at, p, 8);
}

static uint64_t peek64(uint64_t at)
{
    int fd = open(in_folder("i"), O_RDONLY);
    uint8_t p[8];

    assert_int_equal(pread(fd, p, 8, (off_t)at), 8);
    close(fd);
    return img_get_be64(p);
}

/* Two entries in one place, one nowhere, a place that is lost, a wrong
 * count, a last block that is there in part. */
static void build_damaged_vdi(void)
{
    static const uint32_t map[16] = {
        0, 1, FREE, 3, 1, 900, FREE, 5, ZEROS, 6, FREE, FREE, 7, 8, 5, 9
    };
    struct shape s = { SHAPE };

    s.size = SIZE;
    memset(flat, 0, SIZE);
    build_vdi("i", &s, map, flat);
    assert_int_equal(truncate(in_folder("i"), B + 9 * B + 100), 0);
    poke32("i", 388, 2);
    memset(flat + 5 * B, 0, B);
    memset(flat + 15 * B + 100, 0, B - 100);
}

/* Two entries in one cluster, one nowhere, one unaligned, one that is packed
 * and has no bytes; an L2 table that lies on another one. */
static void build_damaged_qcow(void)
{
    struct img_disk *d;
    uint64_t l1, l2;

    assert_ok(make("i", "qcow", SIZE + (4 << 20), NULL, NULL, 0, NULL), err);
    for (unsigned i = 0; i < SIZE; i++)
        flat[i] = (uint8_t)(i / 512 + 1);
    d = open_as("i", "qcow", IMG_OPEN_WRITE | IMG_OPEN_NO_SYNC);
    assert_ok(img_pwrite(d, flat, SIZE, 0, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    l1 = peek64(40);
    l2 = peek64(l1);
    poke64(l2 + 8, peek64(l2));
    poke64(l2 + 24, UINT64_C(1) << 50);
    poke64(l2 + 32, peek64(l2) + 100);
    poke64(l2 + 40, UINT64_C(1) << 63 | peek64(l2));
    poke64(l1 + 8, l2 + 512);
    memcpy(flat + B, flat, B);
    memset(flat + 3 * B, 0, 3 * B);
}

static const struct kind kinds[] = {
    { "vdi", build_damaged_vdi, 5 }, { "qcow", build_damaged_qcow, 5 },
};

static int check_now(const struct kind *k, unsigned flags,
                     struct img_check_result *r)
{
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_open_options oo = IMG_OPEN_OPTIONS;
    struct img_disk *d = NULL;
    struct img_error e;
    int ret, closed;

    oo.format = k->format;
    oo.flags = IMG_OPEN_WRITE | IMG_OPEN_REPAIR | flags;
    o.repair = IMG_REPAIR_ALL;
    memset(r, 0, sizeof *r);
    ret = img_open(in_folder("i"), &oo, &d, &e);
    if (ret == 0)
        ret = img_check(d, &o, NULL, r, &e);
    closed = img_close(d, &e);
    return ret < 0 ? ret : closed;
}

static void assert_shows(const struct kind *k)
{
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_check_result r = { 0 };
    struct img_disk *d = open_as("i", k->format, IMG_OPEN_WRITE |
                                 IMG_OPEN_NO_SYNC);
    static uint8_t got[SIZE];

    assert_ok(img_pread(d, got, SIZE, 0, &err), err);
    assert_memory_equal(got, flat, SIZE);
    assert_ok(img_check(d, &o, NULL, &r, &err), err);
    assert_int_equal(r.errors + r.leaks, 0);
    assert_ok(img_close(d, &err), err);
}

static void interrupted(const struct kind *k, unsigned what, int code)
{
    struct img_check_result r;
    unsigned failed = 0;

    for (long n = 1;; n++) {
        struct shim_fault f = { .kinds = what, .code = code };
        int ret;

        k->build();
        atomic_store(&f.left, n);
        shim_fault = &f;
        ret = check_now(k, 0, &r);
        shim_fault = NULL;
        if (!atomic_load(&f.failed))
            break;
        failed += ret < 0;
        if (ret == 0)           /* what failed was not needed */
            assert_shows(k);
        assert_int_equal(check_now(k, IMG_OPEN_NO_SYNC, &r), 0);
        assert_shows(k);
    }
    assert_true(failed > 3);
}

static void test_repair(void **state)
{
    for (size_t i = 0; i < IMG_COUNT(kinds); i++) {
        struct img_check_result r;

        kinds[i].build();
        assert_int_equal(check_now(&kinds[i], 0, &r), 0);
        assert_int_equal(r.errors, 0);
        assert_int_equal(r.errors_fixed, kinds[i].errors);
        assert_shows(&kinds[i]);
    }
}

static void test_io_fails(void **state)
{
    for (size_t i = 0; i < IMG_COUNT(kinds); i++)
        interrupted(&kinds[i], SHIM_READ | SHIM_CHANGE, EIO);
}

static void test_no_memory(void **state)
{
#ifdef SHIM_SANITIZED
    skip();                     /* it has its own malloc */
#endif
    for (size_t i = 0; i < IMG_COUNT(kinds); i++)
        interrupted(&kinds[i], SHIM_MEMORY, ENOMEM);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_repair),
        cmocka_unit_test(test_io_fails),
        cmocka_unit_test(test_no_memory),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
