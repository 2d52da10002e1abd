/* qcow2: headers, snapshot tables and bitmap directories that contradict
 * themselves, or stand at the limits of the format. */
#include "qcow2-layer.h"

enum { CLUSTER = 4096, DISK = 19 * 65536 };

static uint8_t *good;
static uint64_t good_len;
static uint64_t snaps_at, directory_at, extension_at;

static void store(const char *name, const uint8_t *data, uint64_t len)
{
    struct img_file *f;

    remove(in_folder(name));
    assert_ok(img_file_open(in_folder(name), IMG_FILE_WRITE | IMG_FILE_CREATE,
                            &f, &err), err);
    assert_ok(img_file_pwrite(f, data, len, 0, &err), err);
    img_file_close(f);
}

static void load(const char *name)
{
    struct img_file *f;

    free(good);
    assert_ok(img_file_open(in_folder(name), 0, &f, &err), err);
    assert_ok(img_file_size(f, &good_len, &err), err);
    good = malloc(good_len);
    assert_ok(img_file_pread(f, good, good_len, 0, &err), err);
    img_file_close(f);
    snaps_at = img_get_be64(good + 64);
    for (extension_at = 112; img_get_be32(good + extension_at) !=
         QCOW2_EXT_BITMAPS; extension_at += 8)
        assert_true(extension_at < CLUSTER);
    directory_at = img_get_be64(good + extension_at + 24);
}

/* Two snapshots, a bitmap. */
static void make_good(void)
{
    static uint8_t data[3 * CLUSTER];
    struct img_disk *d;

    if (good)
        return;
    assert_ok(make("good", "qcow2", DISK, NULL, NULL, 0, "cluster_size=4k"),
              err);
    d = open_as("good", "qcow2", IMG_OPEN_WRITE);
    memset(data, 7, sizeof data);
    assert_ok(img_pwrite(d, data, sizeof data, 8192, 0, &err), err);
    assert_ok(img_snapshot_create(d, "one", &err), err);
    assert_ok(img_bitmap_edit(d, "bits", IMG_BITMAP_ADD, 65536, &err), err);
    assert_ok(img_pwrite(d, data, sizeof data, 65536, 0, &err), err);
    assert_ok(img_snapshot_create(d, "two", &err), err);
    assert_ok(img_close(d, &err), err);
    load("good");
}

/* ---- one field at a time ------------------------------------------------- */

enum where { HEADER, SNAPSHOT, BITMAP, EXTENSION };

struct row {
    enum where where;
    unsigned at, width;
    uint64_t value;
    int code;
    const char *words;          /* ~: QEMU looks at it later, or never */
};

static const struct row rows[] = {
    { HEADER, 0, 4, 0, EINVAL, "" },
    { HEADER, 4, 4, 1, EINVAL, "is no qcow2 image, but qcow" },
    { HEADER, 4, 4, 4, ENOTSUP, "version 4" },
    { HEADER, 20, 4, 8, IMG_ECORRUPT, "cluster" },
    { HEADER, 20, 4, 22, IMG_ECORRUPT, "cluster" },
    { HEADER, 24, 8, UINT64_MAX, EFBIG, "disk size 1844" },
    { HEADER, 32, 4, 1, ENOTSUP, "~AES" },
    { HEADER, 32, 4, 2, ENOTSUP, "LUKS" },
    { HEADER, 32, 4, 3, ENOTSUP, "" },
    { HEADER, 36, 4, 0, IMG_ECORRUPT, "the disk needs 1" },
    { HEADER, 36, 4, 5 << 20, EFBIG, "L1 table of 5242880 entries" },
    { HEADER, 40, 8, 0x1200, IMG_ECORRUPT, "L1 table at 0x1200 is not" },
    { HEADER, 40, 8, 1 << 30, IMG_ECORRUPT, "~beyond the end of the file" },
    { HEADER, 48, 8, 0, IMG_ECORRUPT, "~no refcount table" },
    { HEADER, 48, 8, 0x1200, IMG_ECORRUPT, "refcount table at 0x1200" },
    { HEADER, 56, 4, 0, IMG_ECORRUPT, "no refcount table" },
    { HEADER, 56, 4, 4096, EFBIG, "refcount table of" },
    { HEADER, 60, 4, 65537, EFBIG, "65537 snapshots are too many" },
    { HEADER, 64, 8, 0x1200, IMG_ECORRUPT, "snapshot table at 0x1200" },
    { HEADER, 64, 8, 1 << 30, IMG_ECORRUPT, "~ends beyond the end" },
    { HEADER, 72, 8, 1 << 10, ENOTSUP, "unknown incompatible feature 10" },
    { HEADER, 72, 8, UINT64_MAX << 5, ENOTSUP, "feature 5, unknown" },
    { HEADER, 72, 8, 8, IMG_ECORRUPT, "compression" },
    { HEADER, 96, 4, 7, IMG_ECORRUPT, "refcount order 7" },
    { HEADER, 100, 4, 96, IMG_ECORRUPT, "its length is 96" },
    { HEADER, 100, 4, 108, IMG_ECORRUPT, "its length is 108" },
    { HEADER, 100, 4, 1 << 20, IMG_ECORRUPT, "its length is" },
    { HEADER, 104, 1, 1, IMG_ECORRUPT, "contradicts" },
    { HEADER, 104, 1, 2, ENOTSUP, "compression type 2" },
    { SNAPSHOT, 0, 8, 0x1200, IMG_ECORRUPT, "~L1 table is not" },
    { SNAPSHOT, 0, 8, 1 << 30, IMG_ECORRUPT, "~L1 table lies beyond" },
    { SNAPSHOT, 8, 4, 5 << 20, IMG_ECORRUPT, "~L1 table is too" },
    { SNAPSHOT, 36, 4, 1025, IMG_ECORRUPT, "extra data is too large" },
    { SNAPSHOT, 48, 8, UINT64_MAX, IMG_ECORRUPT, "~disk size is" },
    { BITMAP, 0, 8, 0x1200, IMG_ECORRUPT, "outside the file" },
    { BITMAP, 0, 8, 1 << 30, IMG_ECORRUPT, "~outside the file" },
    { BITMAP, 8, 4, 2, IMG_ECORRUPT, "does not go with" },
    { BITMAP, 16, 1, 2, IMG_ECORRUPT, "its type" },
    { BITMAP, 17, 1, 8, IMG_ECORRUPT, "granularity is out of" },
    { BITMAP, 17, 1, 32, IMG_ECORRUPT, "granularity is out of" },
    { BITMAP, 17, 1, 64, IMG_ECORRUPT, "granularity is out of" },
    { BITMAP, 18, 2, 0, IMG_ECORRUPT, "its name reaches" },
    { BITMAP, 18, 2, 1024, IMG_ECORRUPT, "its name reaches" },
    { BITMAP, 18, 2, 9, IMG_ECORRUPT, "its name reaches" },
    { BITMAP, 20, 4, 4, IMG_ECORRUPT, "extra data that are not" },
    { BITMAP, 20, 4, 5, IMG_ECORRUPT, "its name reaches" },
    { BITMAP, 20, 4, UINT32_MAX, IMG_ECORRUPT, "its name reaches" },
    { EXTENSION, 4, 4, 16, IMG_ECORRUPT, "should be 24" },
    { EXTENSION, 4, 4, 1 << 20, IMG_ECORRUPT, "reach beyond" },
    { EXTENSION, 8, 4, 65536, IMG_ECORRUPT, "65536 bitmaps in" },
    { EXTENSION, 8, 4, 2, IMG_ECORRUPT, "the directory ends in it" },
    { EXTENSION, 16, 8, (64 << 20) + 8, IMG_ECORRUPT, "1 bitmaps in" },
    { EXTENSION, 16, 8, 1 << 20, IMG_ECORRUPT, "1 bitmaps in" },
    { EXTENSION, 16, 8, 8, IMG_ECORRUPT, "the directory ends in it" },
    { EXTENSION, 24, 8, 0x1200, IMG_ECORRUPT, "1 bitmaps in" },
    { EXTENSION, 24, 8, 1 << 30, IMG_ECORRUPT, "1 bitmaps in" },
};

static void put(uint8_t *at, unsigned width, uint64_t value)
{
    for (unsigned i = 0; i < width; i++)
        at[i] = (uint8_t)(value >> 8 * (width - 1 - i));
}

static void test_rows(void **state)
{
    bool qemu = !system("command -v qemu-img >/dev/null");

    make_good();
    assert_ok(try_open("good", "qcow2", 0), err);
    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        const struct row *r = &rows[i];
        uint64_t base = r->where == SNAPSHOT ? snaps_at
                      : r->where == BITMAP ? directory_at
                      : r->where == EXTENSION ? extension_at : 0;
        bool qemu_opens = *r->words == '~';
        uint8_t *bad = malloc(good_len);
        char cmd[200];
        int code;

        memcpy(bad, good, good_len);
        put(bad + base + r->at, r->width, r->value);
        store("bad", bad, good_len);
        free(bad);
        code = try_open("bad", "qcow2", 0);
        if (code != -r->code || !strstr(err.message, r->words + qemu_opens))
            fail_msg("row %zu: %d, %s", i, code, code ? err.message : "");
        /* A file that was refused is as it was. */
        assert_int_equal(try_open("bad", "qcow2", IMG_OPEN_WRITE), code);
        snprintf(cmd, sizeof cmd, "qemu-img info -f qcow2 %s >/dev/null 2>&1",
                 in_folder("bad"));
        if (qemu && !system(cmd) != qemu_opens)
            fail_msg("row %zu: qemu-img %s it", i,
                     qemu_opens ? "refuses" : "opens");
    }
}

/* ---- bitmaps ------------------------------------------------------------- */

static uint64_t dirty_bytes(struct img_disk *d, const char *name)
{
    uint64_t size = img_size(d), sum = 0;
    struct img_extent e;

    for (uint64_t at = 0; at < size; at += e.len) {
        assert_ok(img_bitmap_map(d, name, at, size - at, &e, &err), err);
        sum += e.dirty ? e.len : 0;
    }
    return sum;
}

/* "All bits are set" says nothing of what the disk has not got yet. */
static void test_all_ones(void **state)
{
    uint64_t table;
    struct img_disk *d;
    uint8_t *image;

    make_good();
    table = img_get_be64(good + directory_at);
    image = malloc(good_len);
    memcpy(image, good, good_len);
    img_put_be64(image + table, 1);
    store("ones", image, good_len);
    free(image);
    d = open_as("ones", "qcow2", IMG_OPEN_WRITE);
    assert_int_equal(dirty_bytes(d, "bits"), DISK);
    assert_ok(img_resize(d, DISK + 3 * 65536, false, IMG_PREALLOC_OFF, NULL,
                         &err), err);
    assert_int_equal(dirty_bytes(d, "bits"), DISK);
    assert_ok(img_close(d, &err), err);
    d = open_as("ones", "qcow2", 0);
    assert_int_equal(dirty_bytes(d, "bits"), DISK);
    assert_ok(img_close(d, &err), err);
    assert_check("ones", 1, true);      /* what the entry named */
}

/* Extra data that every reader may pass over are kept. */
static void test_extra_data(void **state)
{
    uint8_t *image, *entry, extra[8] = "unknown";
    struct img_disk *d;

    make_good();
    image = malloc(good_len);
    memcpy(image, good, good_len);
    entry = image + directory_at;
    img_put_be32(entry + 20, 8);
    memcpy(entry + 24, extra, 8);
    memcpy(entry + 32, "bits", 4);
    img_put_be64(image + extension_at + 16, 40);
    store("extra", image, good_len);
    assert_int_equal(try_open("extra", "qcow2", 0), -IMG_ECORRUPT);
    assert_says("extra data that are not understood");
    img_put_be32(entry + 12, 2 | 4);
    store("extra", image, good_len);
    free(image);

    d = open_as("extra", "qcow2", IMG_OPEN_WRITE);
    assert_ok(img_bitmap_edit(d, "more", IMG_BITMAP_ADD, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    free(good);
    good = NULL;
    load("extra");
    assert_int_equal(img_get_be32(good + directory_at + 20), 8);
    assert_memory_equal(good + directory_at + 24, extra, 8);
    assert_memory_equal(good + directory_at + 32, "bits", 4);
    free(good);
    good = NULL;
}

static void test_bitmap_edit(void **state)
{
    char name[1100];
    struct img_disk *d;
    struct img_extent e;
    uint8_t *image;

    assert_ok(make("two", "qcow2", DISK, NULL, NULL, 0, "compat=0.10"), err);
    d = open_as("two", "qcow2", IMG_OPEN_WRITE);
    assert_int_equal(img_bitmap_edit(d, "b", IMG_BITMAP_ADD, 0, &err),
                     -ENOTSUP);
    assert_ok(img_close(d, &err), err);

    make_good();
    store("edit", good, good_len);
    d = open_as("edit", "qcow2", IMG_OPEN_WRITE);
    memset(name, 'n', sizeof name);
    name[1024] = 0;
    assert_int_equal(img_bitmap_edit(d, name, IMG_BITMAP_ADD, 0, &err),
                     -EINVAL);
    assert_says("1 to 1023 bytes");
    name[1023] = 0;
    assert_ok(img_bitmap_edit(d, name, IMG_BITMAP_ADD, 1u << 31, &err), err);
    assert_int_equal(img_bitmap_edit(d, "", IMG_BITMAP_ADD, 0, &err),
                     -EINVAL);
    assert_int_equal(img_bitmap_edit(d, "g", IMG_BITMAP_ADD, 256, &err),
                     -EINVAL);
    assert_int_equal(img_bitmap_edit(d, "g", IMG_BITMAP_ADD, 3 << 16, &err),
                     -EINVAL);
    assert_int_equal(img_bitmap_edit(d, "g", (enum img_bitmap_verb)17, 0,
                                     &err), -ENOENT);
    assert_int_equal(img_bitmap_edit(d, "bits", (enum img_bitmap_verb)17, 0,
                                     &err), -EINVAL);
    assert_int_equal(img_bitmap_edit(d, "bits", IMG_BITMAP_ADD, 0, &err),
                     -EEXIST);
    assert_int_equal(img_bitmap_map(d, "gone", 0, 512, &e, &err), -ENOENT);
    assert_int_equal(img_bitmap_map(d, "gone", 0, 512, &e, NULL) < 0, true);
    assert_int_equal(img_bitmap_edit(d, "gone", IMG_BITMAP_CLEAR, 0, NULL) <
                     0, true);
    assert_ok(img_close(d, &err), err);
    assert_check("edit", 0, true);

    /* In use: it can be removed, and that is all; nor can the disk grow. */
    image = malloc(good_len);
    memcpy(image, good, good_len);
    img_put_be32(image + directory_at + 12, 3);
    store("in-use", image, good_len);
    free(image);
    d = open_as("in-use", "qcow2", IMG_OPEN_WRITE);
    assert_int_equal(img_bitmap_map(d, "bits", 0, 512, &e, &err), -EINVAL);
    assert_says("inconsistent");
    assert_int_equal(img_bitmap_edit(d, "bits", IMG_BITMAP_ENABLE, 0, &err),
                     -EINVAL);
    assert_int_equal(img_resize(d, 2 * DISK, false, IMG_PREALLOC_OFF, NULL,
                                &err), -ENOTSUP);
    assert_ok(img_pwrite(d, name, 512, 0, 0, &err), err);
    assert_ok(img_bitmap_edit(d, "other", IMG_BITMAP_ADD, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    d = open_as("in-use", "qcow2", IMG_OPEN_WRITE);
    assert_int_equal(img_bitmap_map(d, "bits", 0, 512, &e, &err), -EINVAL);
    assert_int_equal(dirty_bytes(d, "other"), 0);
    assert_ok(img_bitmap_edit(d, "bits", IMG_BITMAP_REMOVE, 0, &err), err);
    assert_ok(img_resize(d, 2 * DISK, false, IMG_PREALLOC_OFF, NULL, &err),
              err);
    assert_ok(img_close(d, &err), err);
    assert_check("in-use", 0, true);
}

/* ---- snapshot tables at the limits --------------------------------------- */

/* n entries without an L1 table of `bytes` each, behind the end of "good". */
static void many(const char *name, uint32_t n, uint32_t bytes)
{
    uint64_t at = img_round_up(good_len, CLUSTER);
    uint64_t len = at + (uint64_t)n * bytes;
    uint8_t *image = calloc(1, len), *e = image + at;
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_check_result result = { 0 };
    struct img_disk *d;

    memcpy(image, good, good_len);
    img_put_be32(image + 60, n);
    img_put_be64(image + 64, at);
    for (uint32_t i = 0; i < n; i++, e += bytes) {
        img_put_be16(e + 12, 1);
        img_put_be16(e + 14, (uint16_t)(bytes - 57));
        img_put_be32(e + 36, 16);
        img_put_be64(e + 48, DISK);
        memset(e + 56, 'x', bytes - 56);
    }
    store(name, image, len);
    free(image);
    o.repair = IMG_REPAIR_ALL;
    d = open_as(name, "qcow2", IMG_OPEN_WRITE | IMG_OPEN_REPAIR);
    assert_ok(img_check(d, &o, NULL, &result, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_check(name, 0, false);
}

static void test_many_snapshots(void **state)
{
    char *name = malloc(65537);
    struct img_disk *d;

    make_good();
    memset(name, 'y', 65537);
    name[65536] = 0;
    store("long", good, good_len);
    d = open_as("long", "qcow2", IMG_OPEN_WRITE);
    assert_int_equal(img_snapshot_create(d, name, &err), -EINVAL);
    assert_says("too long");
    name[65535] = 0;
    assert_ok(img_snapshot_create(d, name, &err), err);
    assert_ok(img_close(d, &err), err);
    d = open_as("long", "qcow2", IMG_OPEN_WRITE);
    assert_ok(img_snapshot_delete(d, name, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_check("long", 0, true);

    many("many", QCOW2_MAX_SNAPSHOTS, 64);
    d = open_as("many", "qcow2", IMG_OPEN_WRITE);
    assert_int_equal(img_snapshot_create(d, "z", &err), -EFBIG);
    assert_says("has 65536 snapshots already");
    assert_ok(img_snapshot_delete(d, "x", &err), err);
    assert_ok(img_snapshot_create(d, "z", &err), err);
    assert_ok(img_close(d, &err), err);
    assert_check("many", 0, false);

    /* 1 KiB less than 64 MiB. */
    many("much", 65535, 1024);
    d = open_as("much", "qcow2", IMG_OPEN_WRITE);
    name[2000] = 0;
    assert_int_equal(img_snapshot_create(d, name, &err), -EFBIG);
    assert_says("snapshot table would be too large");
    assert_ok(img_close(d, &err), err);
    assert_check("much", 0, false);
    free(name);
}

/* ---- a check with little memory ------------------------------------------ */

/* Windows of any size find the same. */
static void test_little_memory(void **state)
{
    static const uint64_t memory[] = { 0, 25 << 10, 60 << 10, 100 << 10,
                                       300 << 10, 700 << 10, 2 << 20 };
    static const char *const settings[] = {
        "cluster_size=512", "preallocation=metadata", NULL
    };
    struct img_create_options c = IMG_CREATE_OPTIONS;
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_check_result first, result;
    struct img_disk *d;
    struct img_file *f;
    uint8_t none[400] = { 0 }, three[2] = { 0, 3 }, b[8];
    int r;

    c.format = "qcow2";
    c.disk_size = 96 << 20;
    c.settings = settings;
    assert_ok(img_create(in_folder("wide"), &c, &err), err);
    d = open_as("wide", "qcow2", IMG_OPEN_WRITE);
    assert_ok(img_snapshot_create(d, "one", &err), err);
    assert_ok(img_pwrite(d, none, 400, 1 << 20, 0, &err), err);
    assert_ok(img_pwrite(d, none, 400, 90 << 20, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_check("wide", 0, true);
    /* Refcounts of far apart clusters are wrong. */
    assert_ok(img_file_open(in_folder("wide"), IMG_FILE_WRITE, &f, &err),
              err);
    for (unsigned range = 3; range < 600; range += 97) {
        uint64_t table;

        assert_ok(img_file_pread(f, b, 8, 48, &err), err);
        table = img_get_be64(b);
        assert_ok(img_file_pread(f, b, 8, table + range * 8, &err), err);
        assert_ok(img_file_pwrite(f, none, 6, img_get_be64(b) + 20, &err),
                  err);
        assert_ok(img_file_pwrite(f, three, 2, img_get_be64(b) + 60, &err),
                  err);
    }
    img_file_close(f);
    for (size_t i = 0; i < IMG_COUNT(memory); i++) {
        memset(&result, 0, sizeof result);
        o.memory = memory[i];
        d = open_as("wide", "qcow2", 0);
        r = img_check(d, &o, NULL, &result, &err);
        if (memory[i] && memory[i] < 600 << 10 && r == -ENOMEM) {
            assert_says("are too few to check");
        } else {
            assert_ok(r, err);
            assert_true(!memory[i] || memory[i] > 30 << 10);
            if (!i)
                first = result;
            assert_int_equal(result.errors, first.errors);
            assert_int_equal(result.leaks, first.leaks);
            assert_true(result.errors >= 21 && result.leaks >= 7);
        }
        assert_ok(img_close(d, &err), err);
    }
    /* And mend the same. */
    o.memory = 700 << 10;
    o.repair = IMG_REPAIR_ALL;
    memset(&result, 0, sizeof result);
    d = open_as("wide", "qcow2", IMG_OPEN_WRITE | IMG_OPEN_REPAIR);
    assert_ok(img_check(d, &o, NULL, &result, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_check("wide", 0, true);
}

static int tear_down(void **state)
{
    free(good);
    return folder_tear_down(state);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_all_ones),
        cmocka_unit_test(test_extra_data),
        cmocka_unit_test(test_bitmap_edit),
        cmocka_unit_test(test_many_snapshots),
        cmocka_unit_test(test_little_memory),
    };

    return cmocka_run_group_tests_name("qcow2-bad", tests, folder_set_up,
                                       tear_down);
}
