/* VDI: what is legal and rare, and what is refused on the way: places that
 * are given up, devices, sizes at the edges, cancelling. */
#include "vdi-image.h"
#include "core/disk.h"
#include "file/file.h"
#include "vdi/vdi.h"

#include <limits.h>

enum { K = 1024, B = 4096, BLOCKS = 6, SIZE = BLOCKS * B };

static struct img_layer *layer_of(struct img_disk *d)
{
    return d->chain->layers[0];
}

static void fill(uint8_t *flat, uint64_t size, unsigned seed)
{
    for (uint64_t i = 0; i < size; i++)
        flat[i] = (uint8_t)(i / 512 * 7 + i % 251 + seed);
}

/* ---- places -------------------------------------------------------------- */

static struct img_place reserve(struct img_layer *l, uint64_t off,
                                uint64_t len)
{
    struct img_want want = { .off = off, .len = len };
    struct img_place p;

    assert_ok(l->format->reserve(l, &want, &p, &err), err);
    assert_true(p.fresh);
    return p;
}

/* Bytes written to a place that was given up are never seen. */
static void test_abandoned(void **state)
{
    uint8_t flat[SIZE] = { 0 }, junk[2 * B];
    struct img_place a, b, c;
    struct img_disk *d;
    struct img_layer *l;

    memset(junk, 0xdb, sizeof junk);
    assert_ok(make("a.vdi", "vdi", SIZE, NULL, NULL, 0, "block_size=4096"),
              err);
    d = open_as("a.vdi", "vdi", IMG_OPEN_WRITE);
    l = layer_of(d);
    /* The last ones: the room is taken again, but is no longer zeros. */
    a = reserve(l, 0, 2 * B);
    assert_int_equal(a.fill_len, 2 * B);
    assert_true(a.zeroed);
    assert_ok(img_file_pwrite(l->files[0], junk, 2 * B, a.host, &err), err);
    l->format->abandon(l, &a);
    b = reserve(l, 0, B);
    assert_int_equal(b.host, a.host);
    assert_false(b.zeroed);
    /* One in the middle goes to the list of free ones. */
    c = reserve(l, B, B);
    assert_false(c.zeroed);
    l->format->abandon(l, &b);
    assert_ok(img_pwrite(d, "x", 1, 3 * B + 100, 0, &err), err);
    flat[3 * B + 100] = 'x';
    assert_ok(l->format->publish(l, &c, &err), err);
    assert_ok(img_zero(d, B, B, 0, &err), err);
    assert_reads(d, flat, SIZE);
    /* Nothing that has a place already is given up or published. */
    c = (struct img_place){ .off = 3 * B, .len = 1, .token = 3 };
    l->format->abandon(l, &c);
    assert_ok(l->format->publish(l, &c, &err), err);
    assert_reads(d, flat, SIZE);
    assert_ok(img_close(d, &err), err);
    assert_holds("a.vdi", flat, SIZE);
    assert_int_equal(header32("a.vdi", 388), 2);
}

static void test_no_room(void **state)
{
    struct img_want want = { .len = 1 };
    struct img_place p, a, b;
    struct img_disk *d;
    struct img_layer *l;

    assert_ok(make("n.vdi", "vdi", 2 * B, NULL, NULL, 0, "block_size=4096"),
              err);
    d = open_as("n.vdi", "vdi", IMG_OPEN_WRITE);
    l = layer_of(d);
    a = reserve(l, 0, B);
    b = reserve(l, B, B);
    assert_int_equal(l->format->reserve(l, &want, &p, &err), -ENOSPC);
    assert_says("all 2 blocks are in use");
    want.packed = 100;
    assert_int_equal(l->format->reserve(l, &want, &p, &err), -ENOTSUP);
    assert_says("no compression");
    l->format->abandon(l, &a);
    l->format->abandon(l, &b);
    assert_ok(img_close(d, &err), err);
    assert_sound("n.vdi");
}

/* A differencing image over nothing that is opened: its own blocks. */
static void build_diff(const char *name, uint8_t *flat)
{
    static const uint32_t map[BLOCKS] = { 3, 0, 1, 5, 2, 4 };
    struct shape s = { SHAPE };

    s.size = SIZE;
    s.type = 4;
    s.parent = 0x77;
    memset(flat, 0, SIZE);
    build_vdi(name, &s, map, flat);
}

/* All blocks are taken, some are dropped: who wants one right then gets it
 * after the map on the disk has let it go. */
static void test_freed_at_once(void **state)
{
    uint8_t flat[SIZE];
    struct img_disk *d;
    struct img_layer *l;
    uint64_t done;

    build_diff("f.vdi", flat);
    d = open_as("f.vdi", "vdi", IMG_OPEN_WRITE | IMG_OPEN_NO_BACKING);
    l = layer_of(d);
    assert_ok(l->format->unmap(l, B, 3 * B, IMG_UNMAP_DROP, &done, &err),
              err);
    assert_int_equal(done, 3 * B);
    memset(flat + B, 0, 3 * B);
    assert_reads(d, flat, SIZE);
    /* Not written yet: the map on the disk has the old places. */
    assert_int_equal(header32("f.vdi", 512 + 4), 0);
    for (unsigned i = 1; i < 4; i++) {
        assert_ok(img_pwrite(d, "new", 3, i * B + 50, 0, &err), err);
        memcpy(flat + i * B + 50, "new", 3);
        if (i == 1)
            assert_int_equal(header32("f.vdi", 512 + 4), FREE);
    }
    assert_reads(d, flat, SIZE);
    assert_ok(img_close(d, &err), err);
    assert_int_equal(header32("f.vdi", 388), BLOCKS);
    d = open_as("f.vdi", "vdi", IMG_OPEN_NO_BACKING);
    assert_reads(d, flat, SIZE);
    assert_ok(img_close(d, &err), err);
    assert_sound("f.vdi");
}

/* What an entry without a place becomes, by what is asked for. */
static void test_placeless(void **state)
{
    static const struct {
        uint32_t type, before;
        enum img_unmap kind;
        uint32_t after;
    } rows[] = {
        { 1, FREE, IMG_UNMAP_ZERO, FREE },
        { 1, FREE, IMG_UNMAP_DISCARD, FREE },
        { 1, FREE, IMG_UNMAP_ZERO_OWN, ZEROS },
        { 1, ZEROS, IMG_UNMAP_ZERO_OWN, ZEROS },
        { 1, ZEROS, IMG_UNMAP_DROP, FREE },
        { 4, FREE, IMG_UNMAP_ZERO, ZEROS },
        { 4, FREE, IMG_UNMAP_ZERO_KEEP, ZEROS },
        { 4, FREE, IMG_UNMAP_DISCARD, ZEROS },
        { 4, FREE, IMG_UNMAP_DROP, FREE },
        { 4, ZEROS, IMG_UNMAP_DROP, FREE },
    };

    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        uint32_t map[4] = { 0, rows[i].before, rows[i].before, 1 };
        struct shape s = { SHAPE };
        struct img_layer *l;
        struct img_disk *d;
        uint64_t done;

        s.size = 4 * B;
        s.type = rows[i].type;
        s.parent = s.type == 4 ? 0x77 : 0;
        build_vdi("p.vdi", &s, map, NULL);
        d = open_as("p.vdi", "vdi", IMG_OPEN_WRITE | IMG_OPEN_NO_BACKING);
        l = layer_of(d);
        assert_ok(l->format->unmap(l, B, 2 * B, rows[i].kind, &done, &err),
                  err);
        assert_int_equal(done, 2 * B);
        assert_ok(img_close(d, &err), err);
        assert_int_equal(header32("p.vdi", 512), 0);
        assert_int_equal(header32("p.vdi", 516), rows[i].after);
        assert_int_equal(header32("p.vdi", 520), rows[i].after);
        assert_int_equal(header32("p.vdi", 524), 1);
    }
}

/* Far apart in a long map, so that its pages are written one by one. */
static void test_long_map(void **state)
{
    enum { N = 9000, LONG = N * 512 };
    uint8_t *flat = calloc(1, LONG);
    struct img_disk *d;
    uint64_t seed = 4;

    assert_ok(make("l.vdi", "vdi", LONG, NULL, NULL, 0, "block_size=512"),
              err);
    for (int turn = 0; turn < 3; turn++) {
        d = open_as("l.vdi", "vdi", IMG_OPEN_WRITE);
        for (int i = 0; i < 5; i++) {
            uint64_t at = (unit_random(&seed) % N) * 512;

            memset(flat + at, i + 1, 512);
            assert_ok(img_pwrite(d, flat + at, 512, at, 0, &err), err);
        }
        /* And a run across the end of a page. */
        memset(flat + (1020 + turn * 1024) * 512, 0x99, 10 * 512);
        assert_ok(img_pwrite(d, flat + (1020 + turn * 1024) * 512, 10 * 512,
                             (1020 + turn * 1024) * 512, 0, &err), err);
        assert_ok(img_close(d, &err), err);
        assert_holds("l.vdi", flat, LONG);
    }
    free(flat);
}

/* ---- devices, whose size is what it is ------------------------------------ */

static int device_size(struct img_file *file, uint64_t *size,
                       struct img_error *e)
{
    struct stat st;

    assert_int_equal(fstat(file->fd, &st), 0);
    *size = (uint64_t)st.st_size;
    return 0;
}

/* As a device is that knows no quick zeros, without being root. */
static void call_it_device(struct img_file *file)
{
    static struct img_file_ops ops;

    ops = *file->ops;
    ops.zero = NULL;
    ops.punch = NULL;
    ops.truncate = NULL;
    ops.size = device_size;
    file->ops = &ops;
    file->is_device = true;
}

static void test_device(void **state)
{
    static const uint32_t map[] = { 1, FREE, 0, FREE };
    uint8_t flat[4 * B] = { 0 };
    struct shape s = { SHAPE };
    struct img_layer *l;
    struct img_disk *d;
    uint64_t done;

    s.size = 4 * B;
    build_vdi("dev.vdi", &s, map, flat);
    d = open_as("dev.vdi", "vdi", IMG_OPEN_WRITE);
    l = layer_of(d);
    call_it_device(l->files[0]);
    assert_int_equal(img_pwrite(d, "x", 1, B, 0, &err), -ENOSPC);
    assert_says("no room for block 2");
    assert_int_equal(img_resize(d, 40 * B, false, IMG_PREALLOC_OFF, NULL,
                                &err), 0);      /* room in the map */
    assert_int_equal(img_resize(d, 4000 * B, false, IMG_PREALLOC_OFF, NULL,
                                &err), -ENOSPC);
    assert_says("the device has 12288 bytes");
    assert_int_equal(img_size(d), 40 * B);
    assert_ok(img_resize(d, 4 * B, true, IMG_PREALLOC_OFF, NULL, &err), err);
    /* What is given back is not cut off, and is zeros when it is wanted. */
    assert_ok(l->format->unmap(l, 0, B, IMG_UNMAP_DROP, &done, &err), err);
    memset(flat, 0, B);
    assert_ok(img_flush(d, &err), err);
    assert_ok(img_pwrite(d, "y", 1, 3 * B + 7, 0, &err), err);
    flat[3 * B + 7] = 'y';
    assert_reads(d, flat, 4 * B);
    assert_ok(l->format->unmap(l, 3 * B, B, IMG_UNMAP_DROP, &done, &err),
              err);
    memset(flat + 3 * B, 0, B);
    assert_ok(img_close(d, &err), err);
    assert_int_equal(file_length("dev.vdi"), 3 * B);
    assert_int_equal(header32("dev.vdi", 388), 1);
    assert_holds("dev.vdi", flat, 4 * B);
}

static int create_on(uint64_t room, const char *setting)
{
    const char *settings[] = { setting, NULL };
    struct img_create_options o = IMG_CREATE_OPTIONS;
    struct img_build b = { .opts = &o, .path = in_folder("on.vdi") };
    uint8_t old[B];
    int r;

    memset(old, 0x55, B);
    unlink(b.path);
    assert_ok(img_file_open(b.path, IMG_FILE_WRITE | IMG_FILE_CREATE, &b.file,
                            &err), err);
    for (uint64_t at = 0; at < room; at += B)
        assert_ok(img_file_pwrite(b.file, old, B, at, &err), err);
    call_it_device(b.file);
    o.format = "vdi";
    o.disk_size = 2 << 20;
    o.settings = settings;
    r = img_format_vdi.create(&b, &err);
    img_file_close(b.file);
    assert_int_equal(file_length("on.vdi"), room);
    return r;
}

static void test_create_on_device(void **state)
{
    static uint8_t zeros[2 << 20];

    assert_int_equal(create_on(1 << 20, "static=off"), -ENOSPC);
    assert_says("the device has 1048576 bytes, the image needs 2097152");
    assert_int_equal(create_on(3 << 20, "static=on"), -ENOSPC);
    assert_says("needs 4194304");
    assert_ok(create_on(2 << 20, "static=off"), err);
    assert_holds("on.vdi", zeros, sizeof zeros);
    assert_ok(create_on(5 << 20, "static=on"), err);
    assert_holds("on.vdi", zeros, sizeof zeros);
}

/* ---- sizes ---------------------------------------------------------------- */

static void refuse_size(struct img_disk *d, uint64_t size, bool shrink,
                        enum img_prealloc prealloc, int code,
                        const char *words)
{
    uint64_t before = img_size(d);

    assert_int_equal(img_resize(d, size, shrink, prealloc, NULL, &err),
                     -code);
    assert_says(words);
    assert_int_equal(img_size(d), before);
}

static void test_sizes(void **state)
{
    uint8_t *flat = calloc(1, 1 << 20);
    struct img_disk *d;

    assert_ok(make("s.vdi", "vdi", 10 * B, NULL, NULL, 0, "block_size=4096"),
              err);
    d = open_as("s.vdi", "vdi", IMG_OPEN_WRITE);
    fill(flat, 10 * B, 1);
    assert_ok(img_pwrite(d, flat, 10 * B, 0, 0, &err), err);
    refuse_size(d, 20 * B, false, IMG_PREALLOC_FULL, ENOTSUP,
                "no preallocation when resizing");
    refuse_size(d, (uint64_t)B << 27, false, IMG_PREALLOC_OFF, EFBIG,
                "134217728 blocks");
    assert_int_equal(layer_of(d)->format->resize(layer_of(d), UINT64_MAX - 5,
                     IMG_PREALLOC_OFF, &err), -EFBIG);
    assert_says("a disk of 18446744073709551610 bytes");
    assert_reads(d, flat, 10 * B);
    /* To the size that it has, within a block, to nothing, and back. */
    assert_ok(img_resize(d, 10 * B, false, IMG_PREALLOC_OFF, NULL, &err),
              err);
    assert_reads(d, flat, 10 * B);
    assert_ok(img_resize(d, 9 * B + 100, true, IMG_PREALLOC_OFF, NULL, &err),
              err);
    memset(flat + 9 * B + 512, 0, B - 512);
    assert_reads(d, flat, 9 * B + 512);
    assert_ok(img_resize(d, 9 * B + 1024, false, IMG_PREALLOC_OFF, NULL,
                         &err), err);
    assert_reads(d, flat, 9 * B + 1024);
    assert_ok(img_close(d, &err), err);
    assert_holds("s.vdi", flat, 9 * B + 1024);
    d = open_as("s.vdi", "vdi", IMG_OPEN_WRITE);
    assert_ok(img_resize(d, 0, true, IMG_PREALLOC_OFF, NULL, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_int_equal(header32("s.vdi", 384), 0);
    assert_int_equal(header32("s.vdi", 388), 0);
    assert_int_equal(file_length("s.vdi"), header32("s.vdi", 344));
    assert_sound("s.vdi");
    d = open_as("s.vdi", "vdi", IMG_OPEN_WRITE);
    assert_int_equal(img_size(d), 0);
    assert_ok(img_resize(d, 1 << 20, false, IMG_PREALLOC_OFF, NULL, &err),
              err);
    memset(flat, 0, 1 << 20);
    assert_reads(d, flat, 1 << 20);
    change(d, flat, 1 << 20, 3, 20);
    assert_ok(img_close(d, &err), err);
    assert_holds("s.vdi", flat, 1 << 20);
    free(flat);
}

/* The map would have to go where the header cannot point to. */
static void test_map_too_far(void **state)
{
    static const uint32_t map[] = { 0, FREE, 1 };
    uint8_t flat[3 * B] = { 0 };
    struct shape s = { SHAPE };
    struct img_disk *d;

    s.size = sizeof flat;
    s.map_off = 0xfffff000 - B;
    s.data_off = 0xfffff000;
    build_vdi("far.vdi", &s, map, flat);
    assert_holds("far.vdi", flat, sizeof flat);
    d = open_as("far.vdi", "vdi", IMG_OPEN_WRITE);
    refuse_size(d, 4000 * B, false, IMG_PREALLOC_OFF, EFBIG,
                "the header cannot say");
    assert_reads(d, flat, sizeof flat);
    change(d, flat, sizeof flat, 4, 20);
    assert_ok(img_close(d, &err), err);
    assert_holds("far.vdi", flat, sizeof flat);
    unlink(in_folder("far.vdi"));
}

/* A file that ends with the disk's last byte, not with its last block. */
static void test_short_file(void **state)
{
    static const uint32_t map[] = { 1, 0, 2 };
    enum { SHORT = 2 * B + 1024, LONG = 2000 * B };
    uint8_t *flat = calloc(1, LONG);

    for (int what = 0; what < 4; what++) {
        struct shape s = { SHAPE };
        struct img_disk *d;

        memset(flat, 0, LONG);
        s.size = SHORT;
        build_vdi("short.vdi", &s, map, flat);
        assert_int_equal(truncate(in_folder("short.vdi"), B + SHORT), 0);
        assert_sound("short.vdi");
        d = open_as("short.vdi", "vdi", IMG_OPEN_WRITE);
        assert_reads(d, flat, SHORT);
        switch (what) {
        case 0:
        case 1:                         /* 1: the map has to move */
            assert_ok(img_resize(d, what ? LONG : 3 * B, false,
                                 IMG_PREALLOC_OFF, NULL, &err), err);
            assert_reads(d, flat, what ? LONG : 3 * B);
            change(d, flat, 3 * B, 5, 10);
            assert_ok(img_close(d, &err), err);
            assert_holds("short.vdi", flat, what ? LONG : 3 * B);
            break;
        case 2:                         /* a block of zeros, and a move */
            memset(flat + B, 0, B);
            assert_ok(img_pwrite(d, flat + B, B, B, 0, &err), err);
            assert_ok(img_amend(d, (const char *[]){ "compact=on", NULL },
                                NULL, &err), err);
            assert_ok(img_close(d, &err), err);
            assert_int_equal(header32("short.vdi", 388), 2);
            assert_holds("short.vdi", flat, SHORT);
            break;
        default:
            change(d, flat, SHORT, 6, 30);
            assert_ok(img_close(d, &err), err);
            assert_holds("short.vdi", flat, SHORT);
        }
    }
    free(flat);
}

static void test_static_grows(void **state)
{
    uint8_t *flat = calloc(1, 4000 * B);
    struct img_disk *d;

    assert_ok(make("st.vdi", "vdi", 10 * B, NULL, NULL, 0, "static=on"), err);
    d = open_as("st.vdi", "vdi", IMG_OPEN_WRITE);
    change(d, flat, 10 * B, 2, 20);
    assert_ok(img_resize(d, 4000 * B, false, IMG_PREALLOC_OFF, NULL, &err),
              err);
    assert_ok(img_close(d, &err), err);
    assert_int_equal(header32("st.vdi", 388), header32("st.vdi", 384));
    assert_holds("st.vdi", flat, 4000 * B);
    free(flat);
}

/* ---- giving back, and saying no ------------------------------------------- */

/* 700 blocks, of which every other one is zeros. */
static void every_other(uint8_t *flat, uint64_t size)
{
    struct img_disk *d;

    assert_ok(make("g.vdi", "vdi", size, NULL, NULL, 0, "block_size=4096"),
              err);
    fill(flat, size, 3);
    for (uint64_t at = 0; at < size; at += 2 * B)
        memset(flat + at, 0, B);
    d = open_as("g.vdi", "vdi", IMG_OPEN_WRITE);
    assert_ok(img_pwrite(d, flat, size, 0, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_int_equal(header32("g.vdi", 388), size / B);
}

static void test_compact_cancelled(void **state)
{
    static const char *const compact[] = { "compact=on", NULL };
    enum { BIG = 1400 * B };
    uint8_t *flat = malloc(BIG);
    struct img_job job = IMG_JOB;
    int calls = INT_MAX;

    /* At some of its calls, until it comes through. */
    for (int last = 1; calls >= last; last += 33) {
        struct calls c = { 0, last };
        struct img_disk *d;
        int r;

        every_other(flat, BIG);
        job.progress = count_calls;
        job.opaque = &c;
        d = open_as("g.vdi", "vdi", IMG_OPEN_WRITE);
        r = img_amend(d, compact, &job, &err);
        if (c.n < last)
            calls = c.n;
        assert_int_equal(r, c.n < last ? 0 : -ECANCELED);
        assert_reads(d, flat, BIG);
        change(d, flat, BIG, 7, 5);
        assert_reads(d, flat, BIG);
        assert_ok(img_close(d, &err), err);
        assert_holds("g.vdi", flat, BIG);
        assert_int_equal(file_length("g.vdi"), header32("g.vdi", 344) +
                         header32("g.vdi", 388) * B);
    }
    assert_true(calls > 100);
    assert_true(header32("g.vdi", 388) < 720);
    free(flat);
}

static void refuse_amend(struct img_disk *d, const char *setting, int code,
                         const char *words)
{
    const char *settings[] = { setting, NULL };

    assert_int_equal(img_amend(d, settings, NULL, &err), -code);
    assert_says(words);
}

static void test_amend_refused(void **state)
{
    struct img_disk *d;

    assert_ok(make("r.vdi", "vdi", 2 << 20, NULL, NULL, 0, "static=on"), err);
    d = open_as("r.vdi", "vdi", IMG_OPEN_WRITE);
    refuse_amend(d, "compact=on", ENOTSUP, "a static VDI image cannot");
    refuse_amend(d, "compact=perhaps", EINVAL, "'compact'");
    refuse_amend(d, "static=off", ENOTSUP, "option 'static' cannot");
    refuse_amend(d, "block_size=4096", ENOTSUP, "option 'block_size'");
    refuse_amend(d, "colour=blue", EINVAL, "no option 'colour'");
    refuse_amend(d, "parent_modification_uuid="
                 "01234567-89ab-cdef-0123-456789abcdef", EINVAL,
                 "no differencing image");
    refuse_amend(d, "uuid=00000000-0000-0000-0000-000000000000", EINVAL,
                 "zeros stands for none");
    assert_ok(img_amend(d, (const char *[]){ "compact=off", NULL }, NULL,
                        &err), err);
    assert_ok(img_close(d, &err), err);
    assert_sound("r.vdi");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_abandoned),
        cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_freed_at_once),
        cmocka_unit_test(test_placeless),
        cmocka_unit_test(test_long_map),
        cmocka_unit_test(test_device),
        cmocka_unit_test(test_create_on_device),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_map_too_far),
        cmocka_unit_test(test_short_file),
        cmocka_unit_test(test_static_grows),
        cmocka_unit_test(test_compact_cancelled),
        cmocka_unit_test(test_amend_refused),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
