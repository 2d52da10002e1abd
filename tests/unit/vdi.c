/* VDI: shapes that QEMU does not make, resizing, compacting, repair. */
#include "vdi-image.h"

enum { K = 1024 };

/* ---- every shape reads, and is written in place -------------------------- */

static void one_shape(const struct shape *s, const uint32_t *map)
{
    uint8_t *flat = calloc(1, s->size);
    struct img_disk *d;
    uint64_t used = 0;

    build_vdi("shape.vdi", s, map, flat);
    d = open_as("shape.vdi", "vdi", 0);
    assert_reads(d, flat, s->size);
    assert_ok(img_close(d, &err), err);
    assert_sound("shape.vdi");

    d = open_as("shape.vdi", "vdi", IMG_OPEN_WRITE);
    change(d, flat, s->size, s->size + s->extra, 60);
    assert_reads(d, flat, s->size);
    assert_ok(img_close(d, &err), err);
    d = open_as("shape.vdi", "vdi", 0);
    assert_reads(d, flat, s->size);
    assert_ok(img_close(d, &err), err);
    assert_sound("shape.vdi");

    /* The count is what others append at; no block ends behind the file. */
    used = header32("shape.vdi", 388);
    assert_true(used * (s->block_size + s->extra) + s->data_off <=
                file_length("shape.vdi"));
    assert_int_equal(header32("shape.vdi", 68), s->version);
    free(flat);
}

static void test_shapes(void **state)
{
    static const uint32_t map[] = { 1, FREE, 0, ZEROS, 2 };
    static const uint32_t map_off[] = { 512, 472 };
    static const uint32_t sizes[] = { 512, 4096, 65536, 1 << 20 };
    static const uint32_t data_offs[] = { 1024, 1536, 4096, 1 << 20 };

    for (size_t b = 0; b < 4; b++)
        for (size_t o = 0; o < 4; o++)
            for (int extra = 0; extra < 2; extra++) {
                struct shape s = { SHAPE };

                s.block_size = sizes[b];
                s.map_off = map_off[o % 2];
                s.data_off = data_offs[o];
                s.extra = extra ? 512 : 0;
                /* No multiple of the block, but of a sector. */
                s.size = 5ull * sizes[b] - (b ? 1536 : 0);
                one_shape(&s, map);
            }
}

static void test_old_header(void **state)
{
    static const uint32_t map[] = { 2, 0, FREE, 1 };
    struct shape s = { SHAPE };

    s.version = 0x10000;
    s.header_len = 384;
    s.map_off = 456;
    s.size = 4 * 4096;
    s.text = "<<< innotek VirtualBox Disk Image >>>\n";
    one_shape(&s, map);
    s.text = "<<< Oracle VirtualBox Disk Image >>>\n";
    s.blocks = 4;
    s.size = 3 * 4096 + 512;    /* more blocks than needed are fine */
    one_shape(&s, map);
}

static void test_static(void **state)
{
    static const uint32_t map[] = { 0, 1, 2, 3, 4 };
    struct shape s = { SHAPE };

    s.type = 2;
    s.block_size = 2048;
    s.size = 5 * 2048 - 512;
    one_shape(&s, map);
}

/* Odd sizes, as VBoxManage convertfromraw makes them, end with a sector. */
static void test_odd_size(void **state)
{
    static const uint32_t map[] = { 0 };
    uint8_t flat[1024];
    struct shape s = { SHAPE };
    struct img_disk *d;

    s.size = 513;
    build_vdi("odd.vdi", &s, map, NULL);
    for (unsigned i = 0; i < sizeof flat; i++)
        flat[i] = content(0, i);
    d = open_as("odd.vdi", "vdi", 0);
    assert_reads(d, flat, 1024);
    assert_ok(img_close(d, &err), err);
}

/* ---- what is refused, and in which words --------------------------------- */

static void refuse(unsigned at, uint32_t value, int code, const char *words)
{
    static const uint32_t map[] = { 0, 1, FREE, 2 };
    struct shape s = { SHAPE };

    s.size = 4 * 4096;
    build_vdi("bad.vdi", &s, map, NULL);
    poke32("bad.vdi", at, value);
    assert_int_equal(try_open("bad.vdi", "vdi", 0), -code);
    assert_says(words);
    assert_says("bad.vdi");
}

static void test_refused(void **state)
{
    refuse(64, 0, EINVAL, "not a VDI image");
    refuse(68, 0x00000001, ENOTSUP, "version 0.1");
    refuse(68, 0x00010002, ENOTSUP, "version 1.2");
    refuse(68, 0x00020000, ENOTSUP, "version 2.0");
    refuse(72, 383, IMG_ECORRUPT, "length is 383");
    refuse(76, 3, ENOTSUP, "undo");
    refuse(76, 0, ENOTSUP, "type 0");
    refuse(76, 5, ENOTSUP, "type 5");
    refuse(76, 4, IMG_ECORRUPT, "without the UUID of its parent");
    refuse(340, 100, IMG_ECORRUPT, "block map");
    refuse(344, 516, IMG_ECORRUPT, "lie in the block map");
    refuse(360, 4096, ENOTSUP, "sectors of 4096");
    refuse(376, 0, ENOTSUP, "blocks of 0");
    refuse(376, 3 * 4096, ENOTSUP, "blocks of 12288");
    refuse(376, 1u << 31, ENOTSUP, "blocks of 2147483648");
    refuse(380, 100, ENOTSUP, "extra");
    refuse(384, 0xffffffff, EFBIG, "4294967295 blocks");
    refuse(384, 3, IMG_ECORRUPT, "in 3 blocks");
    refuse(372, 1, IMG_ECORRUPT, "in 4 blocks");
}

/* CVE-2014-0144: the sizes in VDI's header were not checked against each
 * other: blocks that are not 1 MiB, a block map larger than memory, a disk
 * larger than its map. */
static void test_cve_2014_0144(void **state)
{
    refuse(384, 0x7fffffff, EFBIG, "2147483647 blocks");
    refuse(384, 0x00ffffff, IMG_ECORRUPT, "block map");
    refuse(376, 0x80000000, ENOTSUP, "blocks of");
    refuse(372, 0x7fffffff, IMG_ECORRUPT, "a disk of");
}

static void test_bad_entries(void **state)
{
    uint32_t map[] = { 0, 1, FREE, 2 };
    uint8_t buf[4096];
    struct shape s = { SHAPE };
    struct img_disk *d;

    s.size = 4 * 4096;
    build_vdi("entry.vdi", &s, map, NULL);
    poke32("entry.vdi", 512, 3);            /* right behind the file */
    d = open_as("entry.vdi", "vdi", 0);
    assert_ok(img_pread(d, buf, 4096, 4096, &err), err);
    assert_int_equal(img_pread(d, buf, 1, 0, &err), -IMG_ECORRUPT);
    assert_says("entry 0");
    assert_ok(img_close(d, NULL), err);
    assert_int_equal(try_open("entry.vdi", "vdi", IMG_OPEN_WRITE),
                     -IMG_ECORRUPT);
    poke32("entry.vdi", 512, 1);            /* in use already */
    assert_int_equal(try_open("entry.vdi", "vdi", IMG_OPEN_WRITE),
                     -IMG_ECORRUPT);
    assert_says("another entry");
    /* A file that was cut is never taken for zeros. */
    poke32("entry.vdi", 512, 0);
    assert_int_equal(truncate(in_folder("entry.vdi"), 4096 * 4 - 1), 0);
    d = open_as("entry.vdi", "vdi", 0);
    assert_int_equal(img_pread(d, buf, 4096, 3 * 4096, &err), -IMG_ECORRUPT);
    assert_ok(img_close(d, NULL), err);
}

/* ---- check and repair ---------------------------------------------------- */

static void test_repair(void **state)
{
    /* Entries 1 and 4 are one place, 5 is nowhere, place 2 is lost, the last
     * block is there in part. */
    static const uint32_t map[] = { 0, 1, FREE, 3, 1, 900, 4 };
    uint8_t *flat = calloc(1, 7 * 4096);
    struct img_check_result r;
    struct shape s = { SHAPE };
    struct img_disk *d;

    s.size = 7 * 4096;
    build_vdi("fix.vdi", &s, map, flat);
    assert_int_equal(truncate(in_folder("fix.vdi"), 4096 + 4 * 4096 + 100),
                     0);
    poke32("fix.vdi", 388, 2);
    r = check_it("fix.vdi", 0);
    assert_int_equal(r.errors, 4);          /* twice, outside, part, count */
    assert_int_equal(check_it("fix.vdi", IMG_REPAIR_LEAKS).errors, 4);
    assert_int_equal(header32("fix.vdi", 388), 2);
    r = check_it("fix.vdi", IMG_REPAIR_ALL);
    assert_int_equal(r.errors, 0);
    assert_int_equal(r.errors_fixed, 4);
    assert_sound("fix.vdi");
    assert_int_equal(header32("fix.vdi", 388), 5);
    assert_int_equal(file_length("fix.vdi"), 4096 + 5 * 4096);
    memset(flat + 5 * 4096, 0, 4096);
    memset(flat + 6 * 4096 + 100, 0, 4096 - 100);
    d = open_as("fix.vdi", "vdi", IMG_OPEN_WRITE);
    assert_reads(d, flat, 7 * 4096);
    change(d, flat, 7 * 4096, 3, 50);
    assert_reads(d, flat, 7 * 4096);
    assert_ok(img_close(d, &err), err);
    assert_sound("fix.vdi");
    free(flat);
}

/* A count that is too high is what a crash leaves: lost room, no more. */
static void test_leaks(void **state)
{
    static const uint32_t map[] = { 3, FREE, 0, FREE };
    uint8_t *flat = calloc(1, 4 * 4096);
    struct img_check_result r;
    struct shape s = { SHAPE };
    struct img_disk *d;

    s.size = 4 * 4096;
    s.count = 4;
    build_vdi("leak.vdi", &s, map, flat);
    r = check_it("leak.vdi", 0);
    assert_int_equal(r.errors, 0);
    assert_int_equal(r.leaks, 2);
    r = check_it("leak.vdi", IMG_REPAIR_LEAKS);
    assert_int_equal(r.leaks, 0);
    assert_int_equal(r.leaks_fixed, 2);
    assert_sound("leak.vdi");
    assert_int_equal(file_length("leak.vdi"), 4096 + 2 * 4096);
    d = open_as("leak.vdi", "vdi", 0);
    assert_reads(d, flat, 4 * 4096);
    assert_ok(img_close(d, &err), err);
    free(flat);
}

/* ---- resizing ------------------------------------------------------------ */

static void grow_to(const char *name, uint64_t size, bool shrink)
{
    struct img_disk *d = open_as(name, "vdi", IMG_OPEN_WRITE);

    assert_ok(img_resize(d, size, shrink, IMG_PREALLOC_OFF, NULL, &err), err);
    assert_int_equal(img_size(d), size);
    assert_ok(img_close(d, &err), err);
    assert_sound(name);
}

static void resize_shape(const struct shape *s, const uint32_t *map)
{
    enum { BIG = 700 * 512 };
    uint8_t *flat = calloc(1, BIG);
    struct img_disk *d;

    build_vdi("size.vdi", s, map, flat);
    grow_to("size.vdi", BIG, false);        /* the map has to move */
    d = open_as("size.vdi", "vdi", IMG_OPEN_WRITE);
    assert_reads(d, flat, BIG);
    change(d, flat, BIG, 9, 40);
    assert_reads(d, flat, BIG);
    assert_ok(img_close(d, &err), err);
    assert_sound("size.vdi");

    grow_to("size.vdi", 1536, true);
    memset(flat + 1536, 0, BIG - 1536);
    d = open_as("size.vdi", "vdi", 0);
    assert_reads(d, flat, 1536);
    assert_ok(img_close(d, &err), err);
    grow_to("size.vdi", BIG, false);        /* nothing old comes back */
    d = open_as("size.vdi", "vdi", IMG_OPEN_WRITE);
    assert_reads(d, flat, BIG);
    change(d, flat, BIG, 10, 40);
    assert_ok(img_close(d, &err), err);
    d = open_as("size.vdi", "vdi", 0);
    assert_reads(d, flat, BIG);
    assert_ok(img_close(d, &err), err);
    assert_sound("size.vdi");
    free(flat);
}

static void test_resize(void **state)
{
    static const uint32_t map[] = { 2, FREE, 0, ZEROS, 1 };
    static const uint32_t whole[] = { 0, 1, 2, 3, 4 };
    static const uint32_t none[] = { FREE, FREE, FREE, FREE, FREE };
    struct shape s = { SHAPE };

    for (int big = 0; big < 2; big++) {
        s.block_size = big ? 4096 : 512;
        s.size = 5 * s.block_size - (big ? 1024 : 0);
        s.data_off = 532 + 108;             /* room for 32 entries */
        s.type = 1;
        resize_shape(&s, map);
        resize_shape(&s, none);
        s.extra = 512;
        resize_shape(&s, map);
        s.extra = 0;
        s.type = 2;
        resize_shape(&s, whole);
        assert_int_equal(header32("size.vdi", 388),
                         header32("size.vdi", 384));
    }
}

/* ---- giving blocks back -------------------------------------------------- */

static void amend(const char *name, const char *setting)
{
    const char *settings[] = { setting, NULL };
    struct img_disk *d = open_as(name, "vdi", IMG_OPEN_WRITE);

    assert_ok(img_amend(d, settings, NULL, &err), err);
    assert_ok(img_close(d, &err), err);
}

static void test_compact(void **state)
{
    enum { SIZE = 64 * 4096 };
    uint8_t *flat = calloc(1, SIZE);
    struct img_disk *d;

    assert_ok(make("c.vdi", "vdi", SIZE, NULL, NULL, 0, "block_size=4096"),
              err);
    d = open_as("c.vdi", "vdi", IMG_OPEN_WRITE);
    memset(flat, 0x5a, SIZE);
    assert_ok(img_pwrite(d, flat, SIZE, 0, 0, &err), err);
    for (unsigned i = 0; i < 64; i += 3) {
        memset(flat + i * 4096, 0, 4096);
        /* Half of them by zeros that are written. */
        if (i % 2)
            assert_ok(img_pwrite(d, flat + i * 4096, 4096, i * 4096, 0, &err),
                      err);
        else
            assert_ok(img_zero(d, i * 4096, 4096, IMG_MAY_UNMAP, &err), err);
        memset(flat + (i + 1) % 64 * 4096, (int)i, 4096);
        assert_ok(img_pwrite(d, flat + (i + 1) % 64 * 4096, 4096,
                             (i + 1) % 64 * 4096, 0, &err), err);
    }
    assert_ok(img_close(d, &err), err);
    assert_int_equal(header32("c.vdi", 388), 64);
    amend("c.vdi", "compact=on");
    assert_sound("c.vdi");
    assert_true(header32("c.vdi", 388) < 44);
    assert_int_equal(file_length("c.vdi"), (2 << 20) +
                     header32("c.vdi", 388) * 4096);
    d = open_as("c.vdi", "vdi", IMG_OPEN_WRITE);
    assert_reads(d, flat, SIZE);
    change(d, flat, SIZE, 77, 40);
    assert_ok(img_close(d, &err), err);
    d = open_as("c.vdi", "vdi", 0);
    assert_reads(d, flat, SIZE);
    assert_ok(img_close(d, &err), err);
    assert_sound("c.vdi");
    free(flat);
}

/* ---- UUIDs --------------------------------------------------------------- */

static void read_uuid(const char *name, unsigned at, uint8_t uuid[16])
{
    int fd = open(in_folder(name), O_RDONLY);

    assert_int_equal(pread(fd, uuid, 16, at), 16);
    close(fd);
}

static void assert_same_file(const char *a, const char *b, bool same)
{
    char cmd[300];

    snprintf(cmd, sizeof cmd, "cmp -s %s %s", in_folder(a), in_folder(b));
    assert_int_equal(system(cmd) == 0, same);
}

static void test_reproducible(void **state)
{
    const char *names[] = { "r1.vdi", "r2.vdi", "r3.vdi" };
    uint8_t first[16], second[16], third[16];
    struct img_disk *d;

    for (int i = 0; i < 3; i++) {
        assert_ok(make(names[i], "vdi", 8 << 20, NULL, NULL, 0, i == 2 ? NULL
                       : "uuid=01234567-89ab-cdef-0123-456789ABCDEF"), err);
        d = open_as(names[i], "vdi", IMG_OPEN_WRITE);
        assert_ok(img_pwrite(d, "data", 4, 5 << 20, 0, &err), err);
        assert_ok(img_close(d, &err), err);
    }
    assert_same_file("r1.vdi", "r2.vdi", true);
    assert_same_file("r1.vdi", "r3.vdi", false);
    read_uuid("r1.vdi", 392, first);
    assert_memory_equal(first, "\x67\x45\x23\x01\xab\x89\xef\xcd"
                               "\x01\x23\x45\x67\x89\xab\xcd\xef", 16);

    /* Reading changes nothing, the next writer makes a new one. */
    read_uuid("r1.vdi", 408, first);
    d = open_as("r1.vdi", "vdi", IMG_OPEN_WRITE);
    assert_ok(img_pread(d, second, 1, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_same_file("r1.vdi", "r2.vdi", true);
    for (int i = 0; i < 2; i++) {
        d = open_as(names[i], "vdi", IMG_OPEN_WRITE);
        assert_ok(img_pwrite(d, "more", 4, 0, 0, &err), err);
        assert_ok(img_close(d, &err), err);
    }
    read_uuid("r1.vdi", 408, second);
    read_uuid("r2.vdi", 408, third);
    assert_memory_not_equal(first, second, 16);
    assert_memory_not_equal(second, third, 16);
    assert_int_equal(second[7] >> 4, 4);
}

static void test_amend_uuid(void **state)
{
    const char *no_parent[] = {
        "parent_uuid=01234567-89ab-cdef-0123-456789abcdef", NULL
    };
    const char *no_uuid[] = { "uuid=0123", NULL };
    struct img_info *info;
    struct img_disk *d;
    bool found = false;

    assert_ok(make("u.vdi", "vdi", 1 << 20, NULL, NULL, 0, NULL), err);
    amend("u.vdi", "uuid={01234567-89ab-cdef-0123-456789abcdef}");
    amend("u.vdi", "modification_uuid=11111111-2222-3333-4444-555555555555");
    d = open_as("u.vdi", "vdi", IMG_OPEN_WRITE);
    assert_int_equal(img_amend(d, no_parent, NULL, &err), -EINVAL);
    assert_int_equal(img_amend(d, no_uuid, NULL, &err), -EINVAL);
    assert_says("0123");
    assert_ok(img_info_get(d, &info, &err), err);
    for (size_t i = 0; i < info->specific->n_items; i++)
        found |= !strcmp(info->specific->items[i].name, "uuid") &&
                 !strcmp(info->specific->items[i].text,
                         "01234567-89ab-cdef-0123-456789abcdef");
    assert_true(found);
    img_info_free(info);
    assert_ok(img_close(d, &err), err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_old_header),
        cmocka_unit_test(test_static),
        cmocka_unit_test(test_odd_size),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_cve_2014_0144),
        cmocka_unit_test(test_bad_entries),
        cmocka_unit_test(test_repair),
        cmocka_unit_test(test_leaks),
        cmocka_unit_test(test_resize),
        cmocka_unit_test(test_compact),
        cmocka_unit_test(test_reproducible),
        cmocka_unit_test(test_amend_uuid),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
