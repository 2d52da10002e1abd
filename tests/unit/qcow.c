/* qcow version 1: bounds of the header, repair, resizing; and the names of
 * formats that are not read. */
#include "qcow-image.h"
#include "file/file.h"
#include "foreign.h"
#include "qcow/qcow.h"

static void refuse32(unsigned at, uint32_t value, int code, const char *words)
{
    new_image(4 * K * K);
    poke32("q", at, value);
    assert_int_equal(try_open("q", "qcow", 0), -code);
    assert_says(words);
    assert_says("/q: ");
}

static void refuse64(unsigned at, uint64_t value, int code, const char *words)
{
    new_image(4 * K * K);
    poke64("q", at, value);
    assert_int_equal(try_open("q", "qcow", 0), -code);
    assert_says(words);
}

static void test_refused(void **state)
{
    refuse32(0, 0, EINVAL, "not a qcow image");
    refuse32(4, 2, EINVAL, "qcow2");
    refuse32(4, 9, EINVAL, "qcow2");
    refuse32(36, 1, ENOTSUP, "encrypted");
    refuse32(36, 2, ENOTSUP, "encryption method 2");
    refuse64(40, 8, IMG_ECORRUPT, "L1 table");
    refuse64(40, UINT64_MAX, IMG_ECORRUPT, "L1 table");
    refuse64(40, 4096, IMG_ECORRUPT, "L1 table");
}

/* CVE-2014-0222: L2 tables of any size were allocated. */
static void test_cve_2014_0222(void **state)
{
    refuse32(32, 0x0c0e0000, IMG_ECORRUPT, "2^14 entries");
    refuse32(32, 0x0cff0000, IMG_ECORRUPT, "2^255 entries");
    refuse32(32, 0x0c050000, IMG_ECORRUPT, "2^5 entries");
    refuse32(32, 0x00090000, IMG_ECORRUPT, "clusters of 2^0");
    refuse32(32, 0x11090000, IMG_ECORRUPT, "clusters of 2^17");
}

/* CVE-2014-0223: the size of the L1 table overflowed. */
static void test_cve_2014_0223(void **state)
{
    refuse64(24, UINT64_MAX, EFBIG, "18446744073709551615");
    refuse64(24, UINT64_C(1) << 62, EFBIG, "4611686018427387904");
    refuse64(24, UINT64_C(1) << 44, IMG_ECORRUPT, "L1 table");
}

static void test_backing_name(void **state)
{
    new_image(4 * K * K);
    poke64("q", 8, 48);
    poke32("q", 16, 1024);
    assert_int_equal(try_open("q", "qcow", 0), -IMG_ECORRUPT);
    assert_says("1024 bytes");
    poke32("q", 16, 1000);
    assert_int_equal(try_open("q", "qcow", 0), -IMG_ECORRUPT);
    assert_says("beyond the end");
    poke32("q", 16, 0);
    assert_int_equal(try_open("q", "qcow", 0), 0);
}

static void fill(struct img_disk *d, uint8_t *flat, uint64_t size,
                 uint64_t seed)
{
    uint8_t buf[16 * K];

    for (int i = 0; i < 40; i++) {
        uint64_t off = unit_random(&seed) % size;
        uint64_t len = IMG_MIN(1 + unit_random(&seed) % sizeof buf,
                               size - off);

        memset(buf, (int)unit_random(&seed), len);
        memcpy(flat + off, buf, len);
        assert_ok(img_pwrite(d, buf, len, off, 0, &err), err);
    }
}

static void test_bad_entries(void **state)
{
    enum { SIZE = 64 * K };
    uint8_t flat[SIZE] = { 0 };
    uint64_t l1, l2, first;
    struct img_disk *d;

    new_image(SIZE);
    for (unsigned i = 0; i < SIZE; i++)
        flat[i] = (uint8_t)(i / 512 + 1);
    d = open_as("q", "qcow", IMG_OPEN_WRITE);
    assert_ok(img_pwrite(d, flat, SIZE, 0, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    l1 = peek64("q", 40);
    l2 = peek64("q", l1);
    first = peek64("q", l2);
    assert_int_equal(check_it(0).errors, 0);

    poke64("q", l2 + 8, first);                     /* 1: twice */
    memcpy(flat + 4 * K, flat, 4 * K);
    poke64("q", l2 + 16, UINT64_C(1) << 50);        /* 2: nowhere */
    poke64("q", l2 + 24, first + 100);              /* 3: unaligned */
    poke64("q", l2 + 32, l2);                       /* 4: the table itself */
    poke64("q", l2 + 40, UINT64_C(1) << 63 | first);    /* 5: of no bytes */
    d = open_as("q", "qcow", 0);
    for (uint64_t i = 2; i < 6; i++) {
        uint8_t buf[K];
        int r = img_pread(d, buf, K, i * 4 * K, &err);

        assert_int_equal(r, i == 4 ? 0 : -IMG_ECORRUPT);
    }
    assert_ok(img_close(d, &err), err);
    assert_int_equal(check_it(0).errors, 5);
    /* 4 keeps what it shows, in a place of its own. */
    assert_int_equal(check_it(IMG_REPAIR_ALL).errors_fixed, 5);
    assert_int_equal(check_it(0).errors, 0);
    memset(flat + 8 * K, 0, 8 * K);
    memset(flat + 20 * K, 0, 4 * K);
    d = open_as("q", "qcow", 0);
    assert_ok(img_pread(d, flat + 16 * K, 4 * K, 16 * K, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_reads(flat, SIZE);

    /* A table that is the L1 table is not written to. */
    poke64("q", l1, l1);
    assert_int_equal(try_open("q", "qcow", IMG_OPEN_WRITE), -IMG_ECORRUPT);
    assert_says("not safe to write");
}

static void test_resize(void **state)
{
    enum { BIG = 9 * K * K, SMALL = 3 * K * K - 512 };
    uint8_t *flat = calloc(1, BIG);
    struct img_disk *d;

    new_image(SMALL);
    d = open_as("q", "qcow", IMG_OPEN_WRITE);
    fill(d, flat, SMALL, 1);
    assert_ok(img_resize(d, BIG, false, IMG_PREALLOC_OFF, NULL, &err), err);
    fill(d, flat, BIG, 2);
    assert_ok(img_close(d, &err), err);
    assert_reads(flat, BIG);
    d = open_as("q", "qcow", IMG_OPEN_WRITE);
    assert_ok(img_resize(d, SMALL, true, IMG_PREALLOC_OFF, NULL, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_reads(flat, SMALL);
    d = open_as("q", "qcow", IMG_OPEN_WRITE);
    assert_ok(img_resize(d, BIG, false, IMG_PREALLOC_OFF, NULL, &err), err);
    assert_ok(img_close(d, &err), err);
    memset(flat + SMALL, 0, BIG - SMALL);
    assert_reads(flat, BIG);
    assert_int_equal(check_it(0).errors, 0);
    free(flat);
}

/* ---- creating ---------------------------------------------------------------------- */

static void test_create(void **state)
{
    enum { SIZE = 64 * K };
    static const struct { uint64_t size; const char *setting; int code;
                          const char *words; } rows[] = {
        { SIZE, "cluster_size=256", EINVAL, "power of two" },
        { SIZE, "cluster_size=128k", EINVAL, "power of two" },
        { SIZE, "cluster_size=5000", EINVAL, "power of two" },
        { SIZE, "cluster_size=x", EINVAL, "'cluster_size'" },
        { SIZE, "encryption=on", ENOTSUP, "Encrypted" },
        { SIZE, "encryption=x", EINVAL, "'encryption'" },
        { SIZE, "colour=red", EINVAL, "no option 'colour'" },
        { 0, "size=0", EINVAL, "cannot be zero length" },
        { UINT64_C(1) << 60, NULL, EFBIG, "for clusters of 4096" },
        { INT64_MAX, NULL, EFBIG, "" },
    };
    struct img_create_options o = IMG_CREATE_OPTIONS;
    const char *settings[] = { "cluster_size=64k", NULL };
    struct img_build b = { .opts = &o };
    char name[1100], **got;
    struct img_measure m;
    bool found = false;

    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        assert_int_equal(make("no", "qcow", rows[i].size, NULL, NULL, 0,
                              rows[i].setting), -rows[i].code);
        assert_says(rows[i].words);
        assert_int_equal(access(in_folder("no"), F_OK), -1);
    }
    memset(name, 'n', sizeof name);
    name[1024] = 0;
    assert_int_equal(make("no", "qcow", SIZE, name, "raw",
                          IMG_CREATE_NO_OPEN_BACKING, NULL), -EINVAL);
    assert_says("1024 bytes, at most 1023");
    /* Over a base the clusters are of 512 bytes, unless they are not. */
    assert_ok(make("q", "qcow", SIZE, "b", "raw", IMG_CREATE_NO_OPEN_BACKING,
                   NULL), err);
    assert_int_equal(peek64("q", 32) >> 48, 9 << 8 | 12);
    assert_ok(make("q", "qcow", SIZE, "b", "raw", IMG_CREATE_NO_OPEN_BACKING,
                   "cluster_size=1k"), err);
    assert_int_equal(peek64("q", 32) >> 48, 10 << 8 | 9);

    /* A device does not grow. */
    b.path = in_folder("on");
    assert_ok(img_file_open(b.path, IMG_FILE_WRITE | IMG_FILE_CREATE, &b.file,
                            &err), err);
    b.file->is_device = true;
    o.format = "qcow";
    o.disk_size = SIZE;
    assert_int_equal(img_format_qcow.create(&b, &err), -ENOTSUP);
    assert_says("a device does not");
    img_file_close(b.file);

    o.settings = settings;
    assert_ok(img_create_resolve(in_folder("q"), &o, &got, &err), err);
    for (char **p = got; *p; p++)
        found |= !strcmp(*p, "cluster_size=64k");
    assert_true(found);
    img_settings_free(got);
    assert_ok(img_measure(NULL, &o, &m, &err), err);
    assert_true(m.fully_allocated >= m.required + SIZE);
    o.disk_size = INT64_MAX;
    assert_int_equal(img_measure(NULL, &o, &m, &err), -EFBIG);
    assert_says("9223372036854775807 is too large");
    o.disk_size = SIZE;
    settings[0] = "cluster_size=3";
    assert_int_equal(img_measure(NULL, &o, &m, &err), -EINVAL);
}

/* ---- formats that are not read ------------------------------------------- */

static void test_foreign(void **state)
{
    static const struct { size_t at, len; const char *bytes, *name; } f[] = {
        { 0, 8, "vhdxfile", "VHDX" },
        { 0, 8, "conectix", "VHD" },
        { 0, 16, "WithoutFreeSpace", "Parallels" },
        { 0, 16, "WithouFreSpacExt", "Parallels" },
        { 0, 4, "QED", "QED" },
        { 0, 6, "LUKS\xba\xbe", "LUKS" },
    };
    static const struct { size_t at, len; const char *bytes, *name; } end[] = {
        { 512, 12, "koly\0\0\0\x04\0\0\x02\0", "DMG" },
        { 512, 8, "conectix", "VHD" },
        { 511, 8, "conectix", "VHD" },
    };
    const char *format;
    uint8_t buf[8192];

    for (size_t i = 0; i < IMG_COUNT(f); i++) {
        memset(buf, 0, sizeof buf);
        memcpy(buf + f[i].at, f[i].bytes, f[i].len);
        poke("foreign", 0, buf, sizeof buf);
        assert_int_equal(img_probe(in_folder("foreign"), &format, &err),
                         -ENOTSUP);
        assert_says(f[i].name);
        assert_says("foreign");
        assert_int_equal(try_open("foreign", NULL, IMG_OPEN_PROBE),
                         -ENOTSUP);
        /* Who says raw means it. */
        assert_int_equal(try_open("foreign", "raw", 0), 0);
    }
    /* Known by its end alone: named, and no obstacle to the guess. */
    for (size_t i = 0; i < IMG_COUNT(end); i++) {
        memset(buf, 0, sizeof buf);
        memcpy(buf + sizeof buf - end[i].at, end[i].bytes, end[i].len);
        assert_non_null(strstr(img_foreign_name(NULL, 0, buf + sizeof buf -
                                                512, 512), end[i].name));
        poke("foreign", 0, buf, sizeof buf);
        assert_ok(img_probe(in_folder("foreign"), &format, &err), err);
        assert_string_equal(format, "raw");
        assert_int_equal(try_open("foreign", NULL, IMG_OPEN_PROBE), 0);
    }
    /* A differencing VHD says so. */
    memset(buf, 0, sizeof buf);
    memcpy(buf, "conectix", 8);
    buf[63] = 4;
    assert_non_null(strstr(img_foreign_name(buf, sizeof buf, NULL, 0),
                           "differencing"));
    /* Raw disks: empty, an ISO 9660 image, a signature further in. */
    memset(buf, 0, sizeof buf);
    assert_null(img_foreign_name(buf, sizeof buf, buf, 512));
    assert_null(img_foreign_name(buf, 0, NULL, 0));
    memcpy(buf + 4096, "vhdxfile", 8);
    memcpy(buf + 4096 + 64, "\x7f\x10\xda\xbe", 4);
    memcpy(buf + 5000, "koly", 4);
    poke("foreign", 0, buf, sizeof buf);
    assert_ok(img_probe(in_folder("foreign"), &format, &err), err);
    assert_string_equal(format, "raw");
    /* Two formats at once. */
    new_image(4 * K * K);
    poke("q", 64, "\x7f\x10\xda\xbe", 4);
    assert_int_equal(img_probe(in_folder("q"), &format, &err), -EINVAL);
    assert_says("looks like qcow and like vdi");
    memset(buf, 0, sizeof buf);
    memcpy(buf, "<<< ", 4);
    memcpy(buf + 64, "\x7f\x10\xda\xbe\1\0\1\0", 8);
    memcpy(buf + 512, "# Disk DescriptorFile\n", 22);
    poke("two", 0, buf, sizeof buf);
    assert_ok(img_probe(in_folder("two"), &format, &err), err);
    assert_string_equal(format, "vdi");
    poke("iso", 32768, "\1CD001\1", 7);
    poke("iso", 65536 + 511, "", 1);
    assert_ok(img_probe(in_folder("iso"), &format, &err), err);
    assert_string_equal(format, "raw");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_cve_2014_0222),
        cmocka_unit_test(test_cve_2014_0223),
        cmocka_unit_test(test_backing_name),
        cmocka_unit_test(test_bad_entries),
        cmocka_unit_test(test_resize),
        cmocka_unit_test(test_create),
        cmocka_unit_test(test_foreign),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
