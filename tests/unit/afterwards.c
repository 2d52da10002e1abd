/* What a call that failed leaves behind: the next one, on the same handle,
 * finds nothing that is untrue. */
#include "../shim.h"
#include "folder.h"
#include "core/disk.h"
#include "qcow2/qcow2.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
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

/* What changes an image as a whole. */
static int create_snapshot(struct img_disk *d)
{
    return img_snapshot_create(d, "s", &err);
}

static int apply_snapshot(struct img_disk *d)
{
    return img_snapshot_apply(d, "old", &err);
}

static int delete_snapshot(struct img_disk *d)
{
    return img_snapshot_delete(d, "old", &err);
}

static int grow(struct img_disk *d)
{
    return img_resize(d, 64 * M, false, IMG_PREALLOC_OFF, NULL, &err);
}

static int to_version_2(struct img_disk *d)
{
    const char *settings[] = { "compat=0.10", NULL };

    return img_amend(d, settings, NULL, &err);
}

static int add_bitmap(struct img_disk *d)
{
    return img_bitmap_edit(d, "x", IMG_BITMAP_ADD, 512, &err);
}

static struct img_disk *open_fast(const char *name)
{
    return open_as(name, "qcow2", IMG_OPEN_WRITE | IMG_OPEN_NO_SYNC);
}

/* n clusters from off on. */
static void put(struct img_disk *d, char what, uint64_t off, unsigned n)
{
    char b[512];

    memset(b, what, sizeof b);
    for (unsigned i = 0; i < n; i++)
        assert_ok(img_pwrite(d, b, sizeof b, off + i * 512, 0, &err), err);
}

static void expect(struct img_disk *d, char what, uint64_t off, unsigned n)
{
    char b[512], got[512];

    memset(b, what, sizeof b);
    for (unsigned i = 0; i < n; i++) {
        assert_ok(img_pread(d, got, sizeof b, off + i * 512, &err), err);
        assert_memory_equal(b, got, sizeof b);
    }
}

/* The snapshot that was there before still shows what it showed. */
static void expect_old(const char *name, unsigned n)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_disk *d;

    o.format = "qcow2";
    o.snapshot = "old";
    if (img_open(in_folder(name), &o, &d, &err) == -ENOENT)
        return;
    assert_non_null(d);
    expect(d, 'o', 0, n);
    expect(d, 0, 2 * M, 8);
    assert_ok(img_close(d, &err), err);
}

/* The file system is full when op comes to its n-th write, for `times` writes,
 * and then no more; 0: half of the write is done.  False: it does not write as
 * often. */
static bool with_full_disk(int op(struct img_disk *), unsigned used,
                           bool has_old, long n, long times)
{
    char now = has_old ? 'a' : 'o';
    struct img_disk *d;
    bool failed;

    assert_ok(make("f", "qcow2", 4 * M, NULL, NULL, 0, "cluster_size=512"),
              err);
    d = open_fast("f");
    put(d, 'o', 0, used);
    put(d, 'z', 2 * M, 8);
    assert_ok(img_zero(d, 2 * M, 4096, 0, &err), err);
    if (has_old) {
        assert_ok(img_snapshot_create(d, "old", &err), err);
        put(d, 'a', 0, used);
    }
    assert_ok(img_close(d, &err), err);
    d = open_fast("f");
    fail_from(SHIM_WRITE, n);
    fault.times = times;
    fault.torn = !times;
    fault.for_ever = times;
    op(d);
    failed = has_failed();
    if (op == apply_snapshot) {
        char b = 0;

        assert_ok(img_pread(d, &b, 1, 0, &err), err);
        now = b;
    }
    expect(d, now, 0, used);
    if (img_layer_may_change(d->chain->layers[0], NULL) == 0) {
        put(d, 'n', 3 * M, 64);
        put(d, 'n', 2 * M, 8);
        assert_ok(img_flush(d, &err), err);
        expect(d, now, 0, used);
    }
    img_close(d, NULL);
    expect_old("f", used);
    d = open_fast("f");         /* mends flags */
    expect(d, now, 0, used);
    assert_ok(img_close(d, &err), err);
    assert_sound("f");
    expect_old("f", used);
    return failed;
}

/* With so many clusters in use that a new refcount block is needed, where that
 * matters. */
static void test_full(void **state)
{
    static const struct {
        int (*op)(struct img_disk *);
        unsigned used;
        bool has_old;
    } ops[] = {
        { create_snapshot, 237, false }, { create_snapshot, 245, false },
        { apply_snapshot, 111, true }, { delete_snapshot, 111, true },
        { grow, 237, false }, { to_version_2, 110, true },
        { add_bitmap, 237, false },
    };
    static const long times[] = { 0, 1, 2, 1000 };

    for (size_t i = 0; i < IMG_COUNT(ops); i++)
        for (size_t k = 0; k < IMG_COUNT(times); k++)
            for (long n = 1; with_full_disk(ops[i].op, ops[i].used,
                                            ops[i].has_old, n, times[k]); n++)
                continue;
}

/* Growing into clusters that were used before, which cannot be cleared: they
 * are not shown. */
static void test_not_preallocated(void **state)
{
    char b[64 * K];
    bool failed = true;

    for (long n = 1; failed; n++) {
        struct img_disk *d;

        assert_ok(make("p", "qcow2", M, NULL, NULL, 0, NULL), err);
        d = open_fast("p");
        put(d, 'o', 0, 1024);
        assert_ok(img_discard(d, 0, M, &err), err);
        assert_ok(img_flush(d, &err), err);
        fail_at(SHIM_SPACE, n);
        img_resize(d, 2 * M, false, IMG_PREALLOC_METADATA, NULL, &err);
        failed = has_failed();
        for (unsigned k = 0; k < 2; k++) {
            for (uint64_t off = M; off < img_size(d); off += sizeof b) {
                assert_ok(img_pread(d, b, sizeof b, off, &err), err);
                for (size_t i = 0; i < sizeof b; i++)
                    assert_int_equal(b[i], 0);
            }
            assert_ok(img_close(d, &err), err);
            d = open_fast("p");
        }
        assert_ok(img_close(d, &err), err);
        assert_sound("p");
        assert_true(failed || n > 1);
    }
}

/* ---- the header ------------------------------------------------------------ */

static void test_data_file_stays_raw(void **state)
{
    const char *create[] = { "data_file_raw=on", NULL, NULL };
    const char *amend[] = { "data_file_raw=off", NULL };
    struct img_create_options c = IMG_CREATE_OPTIONS;
    struct img_rebase_options o = IMG_REBASE_OPTIONS;
    struct img_disk *d;
    char name[200];

    snprintf(name, sizeof name, "data_file=%s", in_folder("raw"));
    create[1] = name;
    c.format = "qcow2";
    c.disk_size = M;
    c.settings = create;
    assert_ok(img_create(in_folder("h"), &c, &err), err);
    d = open_fast("h");
    fail_at(SHIM_WRITE, 1);
    assert_int_equal(img_amend(d, amend, NULL, &err), -ENOSPC);
    assert_true(has_failed());
    o.backing = "nothing";
    o.backing_format = "raw";
    o.unsafe = true;
    assert_int_equal(img_rebase(d, &o, NULL, &err), -EINVAL);
    assert_says("data_file_raw");
    assert_ok(img_close(d, &err), err);
}

/* ---- the chain ------------------------------------------------------------- */

/* A list of layers that could not be made longer is not taken for longer. */
static void test_chain_room(void **state)
{
    struct img_rebase_options o = IMG_REBASE_OPTIONS;
    struct img_disk *d;
    char name[8], below[8] = "";
    bool failed = true;

    for (char i = '0'; i < '6'; i++) {
        snprintf(name, sizeof name, "l%c", i);
        assert_ok(make(name, "qcow2", M, *below ? below : NULL,
                       *below ? "qcow2" : NULL, 0, NULL), err);
        memcpy(below, name, sizeof below);
    }
    o.backing = "l5";
    o.backing_format = "qcow2";
    for (long n = 1; failed; n++) {
        assert_ok(make("top", "qcow2", M, "l0", "qcow2", 0, NULL), err);
        d = open_fast("top");
        fail_at(SHIM_MEMORY, n);
        img_rebase(d, &o, NULL, &err);
        failed = has_failed();
        assert_true(malloc_usable_size(d->chain->layers) >=
                    d->chain->room * sizeof *d->chain->layers);
        assert_ok(img_close(d, &err), err);
    }
}

/* ---- check ----------------------------------------------------------------- */

/* Tables in memory do not outlive a repair that failed: it may have changed
 * those in the file. */
static void test_half_a_repair(void **state)
{
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_check_result result;
    bool failed = true;

    o.repair = IMG_REPAIR_ALL;
    for (long n = 1; failed; n++) {
        struct img_layer *l;
        struct qcow2 *q;
        struct img_slice *slice;
        struct img_disk *d;

        assert_ok(make("c", "qcow2", M, NULL, NULL, 0, NULL), err);
        d = open_fast("c");
        put(d, 'x', 0, 1);
        assert_ok(img_flush(d, &err), err);
        l = d->chain->layers[0];
        q = img_qcow2_of(l);
        fail_at(SHIM_READ, n);
        img_check(d, &o, NULL, &result, &err);
        failed = has_failed();
        slice = img_tcache_peek(l->tables, l->files[0],
                                q->l1[0] & QCOW2_OFFSET_MASK);
        assert_null(slice);
        assert_ok(img_close(d, &err), err);
    }
}

/* ---- VDI, raw -------------------------------------------------------------- */

static void put_mib(struct img_disk *d, char what, unsigned at)
{
    static char b[M];

    memset(b, what, M);
    assert_ok(img_pwrite(d, b, M, (uint64_t)at * M, 0, &err), err);
}

static void expect_byte(struct img_disk *d, char what, uint64_t off)
{
    char b;

    assert_ok(img_pread(d, &b, 1, off, &err), err);
    assert_int_equal(b, what);
}

/* Blocks were moved down, but the file still holds what was in them: it is
 * not shown when they are used again. */
static void test_vdi_not_cut(void **state)
{
    const char *compact[] = { "compact=on", NULL };
    bool failed = true;

    for (long n = 1; failed; n++) {
        struct img_disk *d;

        assert_ok(make("v", "vdi", 8 * M, NULL, NULL, 0, NULL), err);
        d = open_as("v", "vdi", IMG_OPEN_WRITE | IMG_OPEN_NO_SYNC);
        put_mib(d, 0, 0);
        put_mib(d, 'x', 1);
        put_mib(d, 'y', 2);
        fail_at(SHIM_SPACE | SHIM_WRITE, n);
        img_amend(d, compact, NULL, &err);
        failed = has_failed();
        assert_ok(img_pwrite(d, "n", 1, 5 * M, 0, &err), err);
        for (unsigned k = 0; k < 2; k++) {
            expect_byte(d, 0, 0);
            expect_byte(d, 'x', M);
            expect_byte(d, 'y', 3 * M - 1);
            expect_byte(d, 'n', 5 * M);
            expect_byte(d, 0, 5 * M + 1);
            expect_byte(d, 0, 6 * M - 1);
            assert_ok(img_close(d, &err), err);
            d = open_as("v", "vdi", IMG_OPEN_WRITE | IMG_OPEN_NO_SYNC);
        }
        assert_ok(img_close(d, &err), err);
    }
}

/* A link to no parent that was not written is none. */
static void test_vdi_not_linked(void **state)
{
    struct img_rebase_options o = IMG_REBASE_OPTIONS;
    struct img_disk *d;

    assert_ok(make("base.vdi", "vdi", 2 * M, NULL, NULL, 0, NULL), err);
    d = open_as("base.vdi", "vdi", IMG_OPEN_WRITE);
    put_mib(d, 'b', 0);
    assert_ok(img_close(d, &err), err);
    assert_ok(make("diff.vdi", "vdi", 2 * M, "base.vdi", "vdi", 0, NULL),
              err);
    d = open_as("diff.vdi", "vdi", IMG_OPEN_WRITE);
    o.backing = "";
    o.unsafe = true;
    fail_at(SHIM_WRITE, 1);
    assert_int_equal(img_rebase(d, &o, NULL, &err), -ENOSPC);
    assert_true(has_failed());
    expect_byte(d, 'b', 0);
    assert_ok(img_close(d, &err), err);
    d = open_as("diff.vdi", "vdi", 0);
    expect_byte(d, 'b', 0);
    assert_ok(img_close(d, &err), err);
}

/* What is not written any more is not flushed either. */
static void test_broken(void **state)
{
    static const char *const formats[] = { "vdi", "qcow", "vmdk" };

    for (size_t i = 0; i < IMG_COUNT(formats); i++)
        for (unsigned flushed = 0; flushed < 2; flushed++) {
            struct img_disk *d;
            int r;

            assert_ok(make("w", formats[i], 8 * M, NULL, NULL, 0, NULL), err);
            d = open_as("w", formats[i], IMG_OPEN_WRITE);
            put_mib(d, 'x', 0);
            if (flushed)
                assert_ok(img_flush(d, &err), err);
            img_layer_break(d->chain->layers[0]);
            r = img_flush(d, &err);
            assert_int_equal(r < 0, img_close(d, NULL) < 0);
            d = open_as("w", formats[i], 0);
            if (r == 0)
                expect_byte(d, 'x', 0);
            assert_true(r == 0 || !flushed);
            assert_ok(img_close(d, &err), err);
        }
}

/* A raw disk that could not grow is as long as it was. */
static void test_raw_not_grown(void **state)
{
    struct img_disk *d;

    assert_ok(make("r", "raw", M, NULL, NULL, 0, NULL), err);
    d = open_as("r", "raw", IMG_OPEN_WRITE);
    fail_at(SHIM_WRITE, 2);
    assert_int_equal(img_resize(d, 4 * M, false, IMG_PREALLOC_FULL, NULL,
                                &err), -ENOSPC);
    assert_true(has_failed());
    assert_int_equal(img_size(d), M);
    assert_ok(img_close(d, &err), err);
    d = open_as("r", "raw", 0);
    assert_int_equal(img_size(d), M);
    assert_ok(img_close(d, &err), err);
}

/* ---- VMDK ------------------------------------------------------------------ */

/* A grain directory that moved for a larger disk, which did not come about,
 * is not shown by the grain that takes its place. */
static void test_vmdk_not_grown(void **state)
{
    bool failed = true;

    for (long n = 1; failed; n++) {
        struct img_disk *d;
        char b[64 * K];

        assert_ok(make("g", "vmdk", 4096 * (uint64_t)M, NULL, NULL, 0, NULL),
                  err);
        d = open_as("g", "vmdk", IMG_OPEN_WRITE | IMG_OPEN_NO_SYNC);
        put_mib(d, 'x', 0);
        assert_ok(img_flush(d, &err), err);
        fail_at(SHIM_WRITE, n);
        img_resize(d, 8192 * (uint64_t)M, false, IMG_PREALLOC_OFF, NULL,
                   &err);
        failed = has_failed();
        for (unsigned i = 0; i < 4; i++)
            assert_ok(img_pwrite(d, "n", 1, (2 + i) * M, 0, &err), err);
        for (unsigned k = 0; k < 2; k++) {
            for (unsigned i = 0; i < 4; i++) {
                assert_ok(img_pread(d, b, sizeof b, (2 + i) * M, &err), err);
                assert_int_equal(b[0], 'n');
                for (size_t c = 1; c < sizeof b; c++)
                    assert_int_equal(b[c], 0);
            }
            expect_byte(d, 'x', M - 1);
            assert_ok(img_close(d, &err), err);
            d = open_as("g", "vmdk", IMG_OPEN_WRITE | IMG_OPEN_NO_SYNC);
        }
        assert_ok(img_close(d, &err), err);
    }
}

/* Of a descriptor that was written by half, the old one is there again. */
static void test_vmdk_half_a_text(void **state)
{
    const char *amend[] = { "toolsversion=1234567890", "cid=12345678", NULL };
    struct img_rebase_options o = IMG_REBASE_OPTIONS;
    char base[206];

    memset(base, 'b', 200);
    memcpy(base + 200, ".vmdk", 6);
    assert_ok(make(base, "vmdk", 2 * M, NULL, NULL, 0, NULL), err);
    o.backing = "";
    o.unsafe = true;
    for (size_t i = 0; i < 2; i++) {
        struct img_disk *d = open_as(base, "vmdk", IMG_OPEN_WRITE);
        char was[8192] = "", is[8192] = "";
        int fd;

        put_mib(d, 'b', 0);
        assert_ok(img_close(d, &err), err);
        assert_ok(make("o.vmdk", "vmdk", 2 * M, base, "vmdk", 0, NULL), err);
        fd = open(in_folder("o.vmdk"), O_RDONLY);
        assert_true(pread(fd, was, sizeof was, 512) > 0);
        assert_true(strlen(was) > 512);
        d = open_as("o.vmdk", "vmdk", IMG_OPEN_WRITE);
        fail_at(SHIM_WRITE, 1);
        fault.torn = true;
        assert_int_equal(i ? img_amend(d, amend, NULL, &err)
                           : img_rebase(d, &o, NULL, &err), -ENOSPC);
        assert_true(has_failed());
        expect_byte(d, 'b', 0);
        assert_ok(img_close(d, &err), err);
        assert_true(pread(fd, is, sizeof is, 512) > 0);
        assert_string_equal(was, is);
        close(fd);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bitmap_not_added),
        cmocka_unit_test(test_bitmap_not_cleared),
        cmocka_unit_test(test_bitmap_half_marked),
        cmocka_unit_test(test_bitmap_half_copied),
        cmocka_unit_test(test_half_a_table),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_not_preallocated),
        cmocka_unit_test(test_data_file_stays_raw),
        cmocka_unit_test(test_chain_room),
        cmocka_unit_test(test_half_a_repair),
        cmocka_unit_test(test_vdi_not_cut),
        cmocka_unit_test(test_vdi_not_linked),
        cmocka_unit_test(test_broken),
        cmocka_unit_test(test_raw_not_grown),
        cmocka_unit_test(test_vmdk_not_grown),
        cmocka_unit_test(test_vmdk_half_a_text),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
