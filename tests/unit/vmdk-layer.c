/* VMDK layers in memory, built byte by byte from the published layouts:
 * what QEMU cannot make, what is damaged, and what must be refused. */
#include "vmdk-image.h"

static void test_sparse(void **state)
{
    struct img_file *f = small_sparse("a.vmdk", MONOLITHIC);
    struct img_layer l;

    entry(f, 0, 16, 16);
    entry(f, 1, 24, 24);
    entry(f, 2, 1, 1);
    entry(f, 4, 32, 32);
    assert_ok(open_layer(&l, f, 0), err);
    assert_int_equal(l.size, 64 * SECTOR);
    assert_int_equal(l.cluster_bits, 12);
    expect(&l, 100, IMG_RUN_DATA, 0, 16 * SECTOR + 100, 16 * SECTOR - 100);
    expect(&l, 8192, IMG_RUN_ZERO, 0, 0, 4096);
    expect(&l, 12288, IMG_RUN_ABSENT, 0, 0, 4096);
    expect(&l, 16384, IMG_RUN_DATA, 0, 32 * SECTOR, 4096);
    expect(&l, 20480, IMG_RUN_ABSENT, 0, 0, 12288);
    close_layer(&l);
}

/* Mixed kinds in one descriptor, and a hole where nothing is stored. */
static void test_mixed(void **state)
{
    struct img_file *flat = new_file("flat.bin"), *d;
    struct img_layer l;
    struct img_run run;

    assert_ok(img_file_truncate(flat, 30 * SECTOR, &err), err);
    entry(small_sparse("s.vmdk", NULL), 7, 16, 16);
    d = text_file("d.vmdk",
                  "version=1\nCID=7\nparentCID=ffffffff\n"
                  "createType=\"custom\"\nRW 16 FLAT \"flat.bin\" 4\n"
                  "RW 8 ZERO\nRW 64 SPARSE \"s.vmdk\"\n"
                  "RDONLY 3 FLAT \"flat.bin\" 27\nNOACCESS 5 FLAT \"q\" 0\n");
    assert_ok(open_layer(&l, d, IMG_OPEN_WRITE), err);
    assert_int_equal(l.size, (16 + 8 + 64 + 3 + 5) * SECTOR);
    assert_int_equal(l.n_files, 4);
    expect(&l, 512, IMG_RUN_DATA, 1, 5 * SECTOR, 15 * SECTOR);
    expect(&l, 16 * SECTOR, IMG_RUN_ZERO, 0, 0, 8 * SECTOR);
    expect(&l, 24 * SECTOR, IMG_RUN_ABSENT, 0, 0, 56 * SECTOR);
    expect(&l, 80 * SECTOR, IMG_RUN_DATA, 2, 16 * SECTOR, 8 * SECTOR);
    expect(&l, 88 * SECTOR, IMG_RUN_DATA, 3, 27 * SECTOR, 3 * SECTOR);
    assert_int_equal(img_vmdk_map(&l, 91 * SECTOR, 512, 0, &run, &err),
                     -EACCES);
    for (unsigned at = 88; at < 92; at += 3) {
        struct img_want want = { .off = at * SECTOR, .len = 512 };
        struct img_place place;

        assert_int_equal(img_vmdk_reserve(&l, &want, &place, &err), -EROFS);
    }
    close_layer(&l);
}

/* ESX server sparse over its like: the delta of a snapshot. */
static void test_vmfs_sparse(void **state)
{
    struct img_file *f = new_file("x-delta.vmdk"), *d;
    struct img_want want = { .off = 5 * SECTOR, .len = 2 * SECTOR };
    struct img_place place;
    struct img_layer l;
    uint8_t raw[4];

    put32(f, VMDK_COWD_MAGIC, 0);
    put32(f, 1, 4);
    put32(f, 3, 8);
    put32(f, 10000, 12);
    put32(f, 1, 16);
    put32(f, 4, 20);
    put32(f, 3, 24);
    put32(f, 5 + 32 + 1, 28);           /* freeSector */
    put32(f, 5, 4 * SECTOR);            /* table 0 at sector 5 */
    put32(f, 37, 5 * SECTOR + 4 * 3);   /* grain 3 */
    assert_ok(img_file_truncate(f, 38 * SECTOR, &err), err);
    d = text_file("x.vmdk", "version=1\nCID=7\nparentCID=1\n"
                  "createType=\"vmfsSparse\"\nparentFileNameHint=\"b.vmdk\"\n"
                  "RW 10000 VMFSSPARSE \"x-delta.vmdk\"\n");
    assert_ok(open_layer(&l, d, IMG_OPEN_WRITE), err);
    assert_string_equal(l.backing, "b.vmdk");
    assert_string_equal(l.backing_format, "vmdk");
    assert_int_equal(l.cluster_bits, 9);
    expect(&l, 0, IMG_RUN_ABSENT, 0, 0, 3 * SECTOR);
    expect(&l, 3 * SECTOR, IMG_RUN_DATA, 1, 37 * SECTOR, SECTOR);
    expect(&l, 4 * SECTOR, IMG_RUN_ABSENT, 0, 0, 4092 * SECTOR);
    expect(&l, 4096 * SECTOR, IMG_RUN_ABSENT, 0, 0, 5904 * SECTOR);

    assert_ok(img_vmdk_reserve(&l, &want, &place, &err), err);
    assert_true(place.fresh);
    assert_int_equal(place.len, 2 * SECTOR);
    assert_int_equal(place.host, 38 * SECTOR);
    assert_ok(img_vmdk_publish(&l, &place, &err), err);
    expect(&l, 5 * SECTOR, IMG_RUN_DATA, 1, 38 * SECTOR, 2 * SECTOR);
    want.off = 9000 * SECTOR;           /* where there is no table yet */
    assert_ok(img_vmdk_reserve(&l, &want, &place, &err), err);
    assert_ok(img_vmdk_publish(&l, &place, &err), err);
    assert_ok(img_vmdk_sync(&l, &err), err);
    expect(&l, 9000 * SECTOR, IMG_RUN_DATA, 1, 72 * SECTOR, 2 * SECTOR);
    assert_ok(img_file_pread(l.files[1], raw, 4, 28, &err), err);
    assert_int_equal(img_get_le32(raw), 74);
    assert_ok(img_file_pread(l.files[1], raw, 4, 4 * SECTOR + 8, &err), err);
    assert_int_equal(img_get_le32(raw), 40);
    close_layer(&l);
}

/* seSparse, after the constants QEMU documents. */
static struct img_file *se_sparse(const char *name)
{
    struct img_file *f = new_file(name);

    assert_ok(img_file_truncate(f, 64 << 10, &err), err);
    put64(f, 0xcafebabe, 0);
    put64(f, UINT64_C(0x200000001), 8);
    put64(f, 4096 * 8 * 2, 16);         /* two tables' reach */
    put64(f, 8, 24);
    put64(f, 64, 32);
    put64(f, 1, 80);
    put64(f, 2, 128);                   /* directory: sector 2, 1 sector */
    put64(f, 1, 136);
    put64(f, 4, 144);                   /* tables: sector 4 */
    put64(f, 72, 192);                  /* grains: sector 72 */
    put64(f, 0xcafecafe, SECTOR);
    put64(f, UINT64_C(0x1000000000000000), 2 * SECTOR + 8);
    put64(f, UINT64_C(0x3000000000000000), 4 * SECTOR);
    put64(f, UINT64_C(0x3002000000000000), 4 * SECTOR + 8);
    put64(f, UINT64_C(0x2000000000000000), 4 * SECTOR + 16);
    put64(f, UINT64_C(0x1000000000000000), 4 * SECTOR + 24);
    return f;
}

static void test_se_sparse(void **state)
{
    struct img_file *f = se_sparse("x-sesparse.vmdk"), *d;
    struct img_layer l;
    struct img_run run;

    d = text_file("x.vmdk", "version=1\nCID=7\nparentCID=ffffffff\n"
                  "createType=\"seSparse\"\n"
                  "RW 65536 SESPARSE \"x-sesparse.vmdk\"\n");
    assert_ok(open_layer(&l, d, 0), err);
    expect(&l, 0, IMG_RUN_ABSENT, 0, 0, 16 << 20);
    expect(&l, 16 << 20, IMG_RUN_DATA, 1, 72 * SECTOR, 4096);
    expect(&l, (16 << 20) + 4096, IMG_RUN_DATA, 1, 72 * SECTOR + 2 * 4096,
           4096);
    expect(&l, (16 << 20) + 8192, IMG_RUN_ZERO, 0, 0, 8192);
    expect(&l, (16 << 20) + 16384, IMG_RUN_ABSENT, 0, 0,
           (16 << 20) - 16384);
    close_layer(&l);

    refused(d, IMG_OPEN_WRITE, EROFS);
    put64(f, UINT64_C(0x4000000000000000), 4 * SECTOR);
    put64(f, 1, 4 * SECTOR + 32);
    assert_ok(open_layer(&l, d, 0), err);
    assert_int_equal(img_vmdk_map(&l, 16 << 20, 512, 0, &run, &err),
                     -IMG_ECORRUPT);
    assert_int_equal(img_vmdk_map(&l, (16 << 20) + 16384, 512, 0, &run, &err),
                     -IMG_ECORRUPT);
    close_layer(&l);
    put64(f, 1, SECTOR + 24);           /* a journal to be replayed */
    refused(d, 0, ENOTSUP);
    put64(f, 0, SECTOR + 24);
    put64(f, 1, 136 - 8);
    put64(f, UINT64_MAX, 144);
    refused(d, 0, IMG_ECORRUPT);
}

/* CVE-2022-47951 and its kind: a descriptor that names what is not its own. */
static void test_cve_2022_47951_names(void **state)
{
    static const char *const names[] = {
        "/etc/passwd", "../secret", "a/../../secret", "..", "/dev/sda",
        "a/..", "\\\\.\\PhysicalDrive0", "nbd://host/x", "json:{}"
    };
    char text[200];

    for (size_t i = 0; i < IMG_COUNT(names); i++) {
        struct img_file *d;

        snprintf(text, sizeof text, "version=1\nCID=7\nparentCID=ffffffff\n"
                 "RW 1 FLAT \"%s\" 0\n", names[i]);
        d = text_file("d.vmdk", text);
        refused(d, 0, EACCES);
        img_file_close(d);
        n_folder--;
    }
    /* Dots that climb nowhere. */
    new_file("..a/b..vmdk");
    put(folder[0].file, text, 100, 511);
    refused(text_file("d.vmdk", "version=1\nCID=7\nparentCID=ffffffff\n"
                      "RW 2 FLAT \"..a/b..vmdk\" 0\n"), 0, IMG_ECORRUPT);
}

/* CVE-2014-0144: numbers of the header that were used unchecked; and what a
 * fuzzer found: a grain directory far too large. */
static void test_cve_2014_0144_header(void **state)
{
    static const struct { unsigned off; uint64_t value; int want; } bad[] = {
        { 4, 4, ENOTSUP }, { 20, 0, IMG_ECORRUPT }, { 20, 3, IMG_ECORRUPT },
        { 20, UINT64_C(1) << 40, IMG_ECORRUPT }, { 12, UINT64_MAX, IMG_ECORRUPT },
        { 12, UINT64_C(1) << 50, IMG_ECORRUPT },
        { 36, UINT64_C(1) << 54, IMG_ECORRUPT }, { 28, UINT64_MAX, IMG_ECORRUPT },
        { 56, UINT64_MAX - 1, IMG_ECORRUPT }, { 56, 39, 0 },
        { 56, 41, IMG_ECORRUPT }, { 56, 0, IMG_ECORRUPT },
    };
    struct img_file *f = small_sparse("a.vmdk", MONOLITHIC);
    uint8_t head[SECTOR], changed[SECTOR];

    /* With a second copy of the directory there would be a way out. */
    put32(f, VMDK_FLAG_NEWLINES | VMDK_FLAG_ZERO_GRAIN, 8);
    assert_ok(img_file_pread(f, head, sizeof head, 0, &err), err);
    for (size_t i = 0; i < IMG_COUNT(bad); i++) {
        struct img_layer l;

        memcpy(changed, head, sizeof head);
        if (bad[i].off == 4)
            img_put_le32(changed + 4, (uint32_t)bad[i].value);
        else
            img_put_le64(changed + bad[i].off, bad[i].value);
        put(f, changed, sizeof changed, 0);
        if (bad[i].want) {
            refused(f, 0, bad[i].want);
            continue;
        }
        assert_ok(open_layer(&l, f, 0), err);
        close_layer(&l);
    }
    for (uint32_t n = 0; n < 8200; n += n < 4 ? 1 : 1365) {
        memcpy(changed, head, sizeof head);
        img_put_le32(changed + 44, n);
        put(f, changed, sizeof changed, 0);
        if (!img_is_pow2(n) || n > 4096)
            refused(f, 0, IMG_ECORRUPT);
    }
}

/* CVE-2014-0148 was a division by zero and an endless loop in VHDX; these
 * are this format's ways to the same. */
static void test_cve_2014_0148_loops(void **state)
{
    struct img_file *f = new_file("x.vmdk"), *d;

    put32(f, VMDK_COWD_MAGIC, 0);
    put32(f, 1, 4);
    put32(f, UINT32_MAX, 12);
    put32(f, 0, 16);                    /* grains of nothing */
    put32(f, 4, 20);
    assert_ok(img_file_truncate(f, 8192, &err), err);
    refused(f, 0, IMG_ECORRUPT);
    put32(f, 1, 16);
    put32(f, UINT32_MAX, 24);
    refused(f, 0, IMG_ECORRUPT);
    d = text_file("d.vmdk", "version=1\nCID=1\nparentCID=ffffffff\n"
                  "RW 1 SPARSE \"d.vmdk\"\n");
    refused(d, 0, IMG_ECORRUPT);        /* its own extent */
}

static void count_report(void *opaque, const char *line)
{
    ++*(int *)opaque;
}

static void check(struct img_layer *l, unsigned repair, uint64_t errors,
                  uint64_t leaks)
{
    struct img_check_options opts = IMG_CHECK_OPTIONS;
    struct img_check_result res = { 0 };
    int lines = 0;

    opts.repair = repair;
    opts.report = count_report;
    opts.report_opaque = &lines;
    assert_ok(img_vmdk_check(l, &opts, NULL, &res, &err), err);
    assert_int_equal(res.errors, errors);
    assert_int_equal(res.leaks, leaks);
    assert_int_equal(res.errors_fixed,
                     repair == IMG_REPAIR_ALL ? errors : 0);
    assert_true(!errors || lines);
}

static void test_check(void **state)
{
    struct img_file *f = small_sparse("a.vmdk", MONOLITHIC);
    struct img_layer l;
    uint8_t block[4096];

    memset(block, 0xaa, sizeof block);
    put(f, block, sizeof block, 16 * SECTOR);
    entry(f, 0, 16, 16);
    entry(f, 1, 16, 16);                /* twice */
    entry(f, 2, 24, 32);                /* the copies disagree */
    entry(f, 3, 5000, 5000);            /* out of the file */
    entry(f, 4, 3, 3);                  /* over a table */
    entry(f, 5, 32, 0);                 /* the second is behind */
    assert_ok(open_layer(&l, f, IMG_OPEN_WRITE | IMG_OPEN_REPAIR), err);
    check(&l, 0, 4, 1);
    check(&l, IMG_REPAIR_LEAKS, 4, 1);
    check(&l, IMG_REPAIR_ALL, 4, 0);
    check(&l, 0, 0, 0);
    expect(&l, 0, IMG_RUN_DATA, 0, 16 * SECTOR, 4096);
    expect(&l, 4096, IMG_RUN_DATA, 0, 40 * SECTOR, 4096);
    assert_ok(img_file_pread(l.files[0], block, sizeof block, 40 * SECTOR,
                             &err), err);
    for (size_t i = 0; i < sizeof block; i++)
        assert_int_equal(block[i], 0xaa);
    expect(&l, 8192, IMG_RUN_DATA, 0, 24 * SECTOR, 4096);
    expect(&l, 12288, IMG_RUN_ABSENT, 0, 0, 4096);
    close_layer(&l);
}

/* A directory that points nowhere is mended from its copy. */
static void test_check_directory(void **state)
{
    struct img_file *f = small_sparse("a.vmdk", MONOLITHIC);
    struct img_layer l;
    struct img_run run;

    entry(f, 0, 16, 16);
    put32(f, 100000, 6 * SECTOR);
    assert_ok(open_layer(&l, f, 0), err);
    assert_int_equal(img_vmdk_map(&l, 0, 512, 0, &run, &err), -IMG_ECORRUPT);
    close_layer(&l);
    assert_ok(open_layer(&l, f, IMG_OPEN_WRITE | IMG_OPEN_REPAIR), err);
    check(&l, IMG_REPAIR_ALL, 1, 2);    /* two grains are nobody's */
    check(&l, 0, 0, 2);
    expect(&l, 0, IMG_RUN_DATA, 0, 16 * SECTOR, 4096);
    close_layer(&l);
}

static uint64_t header_word(struct img_layer *l, uint64_t off)
{
    uint8_t raw[8];

    assert_ok(img_file_pread(l->files[0], raw, 8, off, &err), err);
    return img_get_le64(raw);
}

/* The header's pointer to a directory is damaged: the other copy serves for
 * reading and for mending. */
static void spare_directory(uint64_t field, uint64_t value)
{
    struct img_file *f = small_sparse("a.vmdk", MONOLITHIC), *mended;
    struct img_want want = { .off = 12288, .len = 4096 };
    struct img_place place;
    struct img_layer l;

    entry(f, 0, 16, 16);
    entry(f, 1, 24, 24);
    entry(f, 2, 32, 32);
    put64(f, value, field);
    warned = 0;
    assert_ok(open_layer(&l, f, 0), err);
    assert_int_equal(warned, field == 56);
    expect(&l, 0, IMG_RUN_DATA, 0, 16 * SECTOR, 3 * 4096);
    close_layer(&l);
    refused(f, IMG_OPEN_WRITE, IMG_ECORRUPT);

    assert_ok(open_layer(&l, f, IMG_OPEN_WRITE | IMG_OPEN_REPAIR), err);
    check(&l, IMG_REPAIR_ALL, 1, 0);
    assert_true(header_word(&l, 48) >= 40 || header_word(&l, 56) >= 40);
    mended = copy_of(l.files[0]);
    close_layer(&l);
    assert_ok(open_layer(&l, mended, IMG_OPEN_WRITE), err);
    check(&l, 0, 0, 0);
    expect(&l, 0, IMG_RUN_DATA, 0, 16 * SECTOR, 3 * 4096);
    assert_ok(img_vmdk_reserve(&l, &want, &place, &err), err);
    assert_true(place.fresh && place.host >= 40 * SECTOR);
    assert_ok(img_vmdk_publish(&l, &place, &err), err);
    assert_ok(img_vmdk_sync(&l, &err), err);
    check(&l, 0, 0, 0);
    close_layer(&l);
    img_file_close(mended);
    img_file_close(f);
    n_folder--;
}

static void test_spare_directory(void **state)
{
    spare_directory(56, 100000);
    spare_directory(56, UINT64_MAX - 7);
    spare_directory(56, 0);
    spare_directory(48, 100000);
    spare_directory(48, UINT64_C(1) << 60);
}

/* A directory that was overwritten with zeros. */
static void test_missing_table(void **state)
{
    struct img_file *f = small_sparse("a.vmdk", MONOLITHIC);
    struct img_layer l;

    entry(f, 0, 16, 16);
    put32(f, 0, 6 * SECTOR);
    assert_ok(open_layer(&l, f, IMG_OPEN_WRITE | IMG_OPEN_REPAIR), err);
    check(&l, 0, 0, 4);                 /* and three grains */
    check(&l, IMG_REPAIR_ALL, 0, 3);
    expect(&l, 0, IMG_RUN_DATA, 0, 16 * SECTOR, 4096);
    close_layer(&l);
}

static void test_unclean(void **state)
{
    struct img_file *f = small_sparse("a.vmdk", MONOLITHIC);
    struct img_layer l;

    for (unsigned i = 0; i < 3; i++)
        entry(f, i, 16 + 8 * i, 16 + 8 * i);
    put(f, "\1", 1, 72);
    assert_ok(open_layer(&l, f, IMG_OPEN_WRITE), err);
    assert_int_equal(warned, 1);
    close_layer(&l);
    assert_ok(open_layer(&l, f, IMG_OPEN_WRITE | IMG_OPEN_REPAIR), err);
    check(&l, 0, 0, 0);
    assert_int_equal(header_word(&l, 72) & 255, 1);
    check(&l, IMG_REPAIR_ALL, 0, 0);
    assert_int_equal(header_word(&l, 72) & 255, 0);
    close_layer(&l);
}

/* The length of a device says nothing of where the next grain may go. */
static void test_device(void **state)
{
    struct img_file *f = small_sparse("a.vmdk", MONOLITHIC);
    struct img_want want = { .off = 12288, .len = 4096 };
    struct img_place place;
    struct img_layer l;

    entry(f, 0, 16, 16);
    assert_ok(img_file_truncate(f, 40 * SECTOR, &err), err);
    on_device = true;
    assert_ok(open_layer(&l, f, IMG_OPEN_WRITE), err);
    check(&l, 0, 0, 0);
    for (unsigned i = 0; i < 2; i++) {
        assert_ok(img_vmdk_reserve(&l, &want, &place, &err), err);
        assert_true(place.fresh && !place.zeroed);
        assert_int_equal(place.host, (24 + 8 * i) * SECTOR);
        assert_ok(img_vmdk_publish(&l, &place, &err), err);
        want.off += 4096;
    }
    assert_int_equal(img_vmdk_reserve(&l, &want, &place, &err), -ENOSPC);
    assert_ok(img_vmdk_sync(&l, &err), err);
    check(&l, 0, 0, 0);
    close_layer(&l);
}

static void test_content_id(void **state)
{
    struct img_file *f = small_sparse("a.vmdk", MONOLITHIC);
    struct img_layer l, base;
    struct vmdk_state *st;
    uint32_t cid;

    assert_ok(open_layer(&l, f, IMG_OPEN_WRITE), err);
    st = l.state;
    assert_int_equal(st->cid, 7);
    assert_ok(img_vmdk_touch(&l, 0, 1, &err), err);
    cid = st->cid;
    assert_int_not_equal(cid, 7);
    assert_ok(img_vmdk_touch(&l, 0, 1, &err), err);
    assert_int_equal(st->cid, cid);
    assert_ok(img_vmdk_read_cid(l.files[0], &cid, &err), err);
    assert_int_equal(st->cid, cid);
    close_layer(&l);

    text_file("o.vmdk", "version=1\nCID=9\nparentCID=8\n"
              "parentFileNameHint=\"a.vmdk\"\nRW 64 SPARSE \"s.vmdk\"\n");
    small_sparse("s.vmdk", NULL);
    assert_ok(open_layer(&base, f, 0), err);
    assert_ok(open_layer(&l, folder[1].file, 0), err);
    assert_int_equal(img_vmdk_check_base(&l, &base, &err), -IMG_ECORRUPT);
    ((struct vmdk_state *)base.state)->cid = 8;
    assert_ok(img_vmdk_check_base(&l, &base, &err), err);
    close_layer(&l);
    close_layer(&base);

    /* A difference that does not say to what. */
    refused(text_file("p.vmdk", "version=1\nCID=9\nparentCID=8\n"
                      "RW 64 SPARSE \"s.vmdk\"\n"), 0, IMG_ECORRUPT);
}

static void test_writable(void **state)
{
    struct img_file *f = small_sparse("a.vmdk", MONOLITHIC);
    struct img_want want = { .len = 4096 };
    struct img_place place;
    struct img_layer l;

    put32(f, 3, 4);                     /* changed-block tracking */
    assert_ok(open_layer(&l, f, 0), err);
    close_layer(&l);
    refused(f, IMG_OPEN_WRITE, EROFS);
    put32(f, 1, 4);
    put32(f, 7, 1 * SECTOR);            /* one table in both directories */
    assert_ok(open_layer(&l, f, IMG_OPEN_WRITE), err);
    assert_int_equal(img_vmdk_reserve(&l, &want, &place, &err),
                     -IMG_ECORRUPT);
    close_layer(&l);
    put32(f, 2, 1 * SECTOR);
    put32(f, 6, 48);                    /* one directory: no second copy */
    assert_ok(open_layer(&l, f, IMG_OPEN_WRITE), err);
    assert_ok(img_vmdk_reserve(&l, &want, &place, &err), err);
    assert_ok(img_vmdk_publish(&l, &place, &err), err);
    expect(&l, 0, IMG_RUN_DATA, 0, place.host, 4096);
    close_layer(&l);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_sparse), T(test_mixed), T(test_vmfs_sparse),
        T(test_se_sparse), T(test_cve_2022_47951_names),
        T(test_cve_2014_0144_header), T(test_cve_2014_0148_loops),
        T(test_check), T(test_check_directory), T(test_spare_directory),
        T(test_missing_table), T(test_unclean), T(test_device),
        T(test_content_id), T(test_writable),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
