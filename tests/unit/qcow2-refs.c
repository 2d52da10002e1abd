/* qcow2: refcounts and free clusters where they end: of a block, of the
 * table, of the format. */
#include "qcow2-layer.h"

static uint64_t count_of(struct qcow2 *q, uint64_t cluster)
{
    uint64_t count = 0;

    assert_ok(img_qcow2_refs_get(q, cluster, &count, &err), err);
    return count;
}

static int take_row(struct qcow2 *q, uint64_t n, uint64_t *off)
{
    int r;

    img_lock(&q->lock);
    r = img_qcow2_take_row(q, n, off, &err);
    img_unlock(&q->lock);
    return r;
}

/* ---- the table's growth -------------------------------------------------- */

/* The second of the new blocks fails: what lies behind the old table stays as
 * it is, and the next try has everything. */
static void test_failed_growth(void **state)
{
    static const struct shape s = { 9, 6, 43, 43 * 64 * 64 + 100 };
    uint8_t before[512], after[512];
    struct img_layer l;
    struct qcow2 *q;
    uint64_t off;

    build("failed", &s);
    q = layer_open(&l, "failed");
    assert_int_equal(q->reftable_entries, 43 * 64);
    assert_ok(img_file_pread(below, before, 512, 44 * 512, &err), err);
    fail_zero = 2;
    assert_int_equal(take_row(q, 1, &off), -EIO);
    assert_int_equal(fail_zero, 0);
    assert_int_equal(q->reftable_entries, 43 * 64);
    /* Nor is the first block written over what comes there. */
    assert_null(img_tcache_peek(q->tables, q->file, 43 * 64 * 64 * 512));
    assert_ok(img_qcow2_settle(q, &err), err);
    assert_ok(img_file_pread(below, after, 512, 44 * 512, &err), err);
    assert_memory_equal(before, after, 512);

    assert_ok(take_row(q, 1, &off), err);
    assert_int_equal(q->reftable_entries, 65 * 64);
    assert_int_equal(count_of(q, off >> 9), 1);
    assert_ok(img_qcow2_settle(q, &err), err);
    layer_close(&l);
    assert_check("failed", 1, true);
}

/* A table that cannot become half as large again may still become larger, up
 * to what readers take, and no further. */
static void test_largest_table(void **state)
{
    static const struct shape most = { 9, 6, 16384, UINT64_C(16384) << 12 };
    static const struct shape s = { 9, 6, 11000, UINT64_C(11000) << 12 };
    struct img_layer l;
    struct qcow2 *q;
    uint64_t off;

    build("large", &s);
    q = layer_open(&l, "large");
    assert_ok(take_row(q, 3, &off), err);
    assert_int_equal(q->reftable_entries, QCOW2_MAX_REFTABLE_BYTES / 8);
    assert_ok(img_qcow2_settle(q, &err), err);
    layer_close(&l);
    assert_check("large", 3, false);

    build("most", &most);
    q = layer_open(&l, "most");
    assert_int_equal(take_row(q, 3, &off), -EFBIG);
    assert_says("refcount table of 10");
    assert_int_equal(q->reftable_entries, QCOW2_MAX_REFTABLE_BYTES / 8);
    assert_ok(img_qcow2_settle(q, &err), err);
    layer_close(&l);
    assert_check("most", 0, false);
}

/* ---- rows ---------------------------------------------------------------- */

/* Rows of clusters, over ranges without blocks and behind the table. */
static void test_rows(void **state)
{
    static const struct { struct shape s; uint64_t n; } rows[] = {
        { { 12, 4, 1, 5 }, 1 }, { { 12, 4, 1, 5 }, 5000 },
        { { 12, 4, 1, 2047 }, 1 }, { { 12, 4, 1, 2048 }, 2048 },
        { { 12, 4, 1, 25000 }, 5000 }, { { 9, 4, 1, 5 }, 20000 },
        { { 9, 4, 1, 16384 }, 1 }, { { 9, 4, 1, 16383 }, 300 },
        { { 9, 6, 1, 4096 }, 5000 }, { { 9, 0, 1, 5 }, 9000 },
        { { 16, 2, 1, 5 }, 3 },
    };

    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        uint64_t off, first, n = rows[i].n;
        struct img_layer l;
        struct qcow2 *q;

        build("row", &rows[i].s);
        q = layer_open(&l, "row");
        assert_ok(take_row(q, n, &off), err);
        first = off >> q->cluster_bits;
        assert_true(first >= rows[i].s.clusters);
        for (uint64_t k = 0; k < n; k++)
            assert_int_equal(count_of(q, first + k), 1);
        assert_ok(img_qcow2_settle(q, &err), err);
        layer_close(&l);
        assert_check("row", n, true);
        assert_int_equal(remove(in_folder("row")), 0);
    }
}

/* A row for which only some of the blocks could be made: those that the table
 * names are in use. */
static void test_half_a_row(void **state)
{
    static const struct shape s = { 9, 6, 1, 100 };

    for (int n = 1, r = -1; r < 0; n++) {
        uint64_t off, host;
        struct img_layer l;
        struct qcow2 *q;

        build("half", &s);
        q = layer_open(&l, "half");
        q->zeros_beyond_end = false;
        fail_zero = n;
        r = take_row(q, 1000, &off);
        assert_true(r == -EIO || n > 10);
        for (uint64_t i = 0; i < q->reftable_entries; i++) {
            host = q->reftable[i] & QCOW2_OFFSET_MASK;
            assert_int_equal(host ? count_of(q, host >> 9) : 1, 1);
        }
        q->zeros_beyond_end = true;
        assert_ok(img_qcow2_settle(q, &err), err);
        if (r < 0)
            assert_ok(take_row(q, 1000, &off), err);
        assert_ok(img_qcow2_settle(q, &err), err);
        layer_close(&l);
        assert_check("half", 1000, false);
        assert_int_equal(remove(in_folder("half")), 0);
    }
}

/* Refcounts of clusters behind the end of the file: a row goes around them,
 * wherever in the row they lie. */
static void test_row_around(void **state)
{
    static const struct shape s = { 12, 4, 1, 5 };
    struct img_layer l;
    struct qcow2 *q;
    uint64_t off;

    for (uint64_t at = 10; at < 14; at++) {
        build("around", &s);
        q = layer_open(&l, "around");
        img_lock(&q->lock);
        assert_ok(img_qcow2_refs_add(q, at, 1, 1, &err), err);
        img_unlock(&q->lock);
        assert_ok(take_row(q, 9, &off), err);
        assert_int_equal(off >> 12, at < 14 ? at + 1 : 5);
        assert_int_equal(count_of(q, at), 1);
        layer_close(&l);
        assert_int_equal(remove(in_folder("around")), 0);
    }
}

/* ---- counts -------------------------------------------------------------- */

static int add(struct qcow2 *q, uint64_t cluster, uint64_t n, int delta)
{
    int r;

    img_lock(&q->lock);
    r = img_qcow2_refs_add(q, cluster, n, delta, &err);
    img_unlock(&q->lock);
    return r;
}

/* Every width counts up to its limit, and neighbours see nothing of it. */
static void test_widths(void **state)
{
    for (uint32_t order = 0; order <= 6; order++) {
        const struct shape s = { 12, order, 1, 100 };
        uint64_t limit = order == 6 ? UINT64_MAX
                                    : (UINT64_C(1) << (1 << order)) - 1;
        uint64_t index = 37, count;
        uint8_t *block;
        struct img_layer l;
        struct qcow2 *q;

        build("width", &s);
        block = calloc(1, 4096);
        for (uint64_t i = 0; i < 64; i++)
            img_qcow2_refs_store(block, order, i, i < 4);
        img_qcow2_refs_store(block, order, index, limit - 1);
        assert_ok(img_file_pwrite(below, block, 4096, 2 << 12, &err), err);
        q = layer_open(&l, "width");
        assert_int_equal(q->max_refcount, limit);
        assert_ok(add(q, index, 1, 1), err);
        assert_true(count_of(q, index) == limit);
        assert_int_equal(count_of(q, index - 1), 0);
        assert_int_equal(count_of(q, index + 1), 0);
        /* None of the three changes. */
        assert_int_equal(add(q, index - 1, 3, 1), -EINVAL);
        assert_says("and has only");
        assert_int_equal(count_of(q, index - 1), 0);
        assert_true(count_of(q, index) == limit);
        assert_int_equal(add(q, index, 2, -1), -IMG_ECORRUPT);
        assert_says("would drop below 0");
        assert_true(count_of(q, index) == limit);
        assert_ok(add(q, index, 1, -1), err);
        count = count_of(q, index);
        assert_true(count == limit - 1);
        assert_ok(img_qcow2_settle(q, &err), err);
        assert_ok(img_file_pread(below, block, 4096, 2 << 12, &err), err);
        assert_true(img_qcow2_refs_load(block, order, index) == limit - 1);
        free(block);
        layer_close(&l);
        assert_int_equal(remove(in_folder("width")), 0);
    }
}

/* A range whose end has no block: what was added before it is taken back. */
static void test_taken_back(void **state)
{
    static const struct shape s = { 12, 4, 1, 5 };
    struct img_layer l;
    struct qcow2 *q;

    build("back", &s);
    q = layer_open(&l, "back");
    assert_int_equal(add(q, 2040, 20, 1), -IMG_ECORRUPT);
    assert_says("is used but has no refcount");
    for (uint64_t i = 2040; i < 2048; i++)
        assert_int_equal(count_of(q, i), 0);
    assert_int_equal(q->hint, 2040 < q->hint ? 2040 : q->hint);
    layer_close(&l);
}

/* ---- tables that contradict themselves ----------------------------------- */

static int take(struct qcow2 *q, uint64_t *host)
{
    uint64_t got;
    bool zeroed;
    int r;

    img_lock(&q->lock);
    r = img_qcow2_take(q, 1, host, &got, &zeroed, &err);
    img_unlock(&q->lock);
    return r;
}

/* What is said to be free and is not is not taken. */
static void test_not_free(void **state)
{
    static const struct shape s = { 12, 4, 1, 5 };
    static const struct { uint64_t cluster; const char *words; } rows[] = {
        { 0, "holds the header" }, { 1, "holds the refcount table" },
        { 3, "holds the L1 table" },
    };

    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        static const uint8_t none[2];
        struct img_layer l;
        struct qcow2 *q;
        uint64_t host;

        build("free", &s);
        assert_ok(img_file_pwrite(below, none, 2, (2 << 12) +
                                  rows[i].cluster * 2, &err), err);
        q = layer_open(&l, "free");
        assert_int_equal(take(q, &host), -IMG_ECORRUPT);
        assert_says(rows[i].words);
        assert_int_equal(count_of(q, rows[i].cluster), 0);
        layer_close(&l);
        assert_int_equal(remove(in_folder("free")), 0);
    }
}

static void test_bad_blocks(void **state)
{
    static const struct shape s = { 12, 4, 1, 100 };
    static const uint64_t entries[] = { 0x2200, 100 << 12, UINT64_C(1) << 50 };

    for (size_t i = 0; i < IMG_COUNT(entries); i++) {
        uint8_t at[8];
        struct img_layer l;
        struct qcow2 *q;
        uint64_t host, off, n, counts[4];

        build("block", &s);
        img_put_be64(at, entries[i]);
        assert_ok(img_file_pwrite(below, at, 8, 1 << 12, &err), err);
        q = layer_open(&l, "block");
        assert_int_equal(take(q, &host), -IMG_ECORRUPT);
        assert_says("refcount table entry 0: refcount block at 0x");
        assert_int_equal(take_row(q, 2, &off), -IMG_ECORRUPT);
        assert_int_equal(add(q, 50, 1, 1), -IMG_ECORRUPT);
        img_lock(&q->lock);
        assert_int_equal(img_qcow2_refs_get(q, 50, &n, &err), -IMG_ECORRUPT);
        assert_int_equal(img_qcow2_refs_get_row(q, 50, 4, counts, &n, &err),
                         -IMG_ECORRUPT);
        img_unlock(&q->lock);
        layer_close(&l);
        assert_int_equal(remove(in_folder("block")), 0);
    }
}

/* Entries have 56 bits for offsets; QEMU takes no more than 55. */
static void test_too_far(void **state)
{
    static const struct shape s = { 21, 0, 1, 5 };
    struct img_layer l;
    struct qcow2 *q;
    uint64_t off;

    build("far", &s);
    q = layer_open(&l, "far");
    q->end = (UINT64_C(1) << 55) - (1 << 21);
    assert_int_equal(take_row(q, 2, &off), -EFBIG);
    assert_says("is too far");
    layer_close(&l);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_failed_growth),
        cmocka_unit_test(test_largest_table),
        cmocka_unit_test(test_half_a_row),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_row_around),
        cmocka_unit_test(test_widths),
        cmocka_unit_test(test_taken_back),
        cmocka_unit_test(test_not_free),
        cmocka_unit_test(test_bad_blocks),
        cmocka_unit_test(test_too_far),
    };

    return cmocka_run_group_tests_name("qcow2-refs", tests, folder_set_up,
                                       folder_tear_down);
}
