/* Rows of headers and descriptors of VMDK: each says what must come of
 * opening it, and what info tells of those that open. */
#include "vmdk-image.h"

static void assert_says(const char *words)
{
    if (!strstr(err.message, words))
        fail_msg("\"%s\" does not say \"%s\"", err.message, words);
}

/* One number of a file that opens is another one: refused with these words,
 * or (words NULL) of no consequence. */
struct change { unsigned off, bytes; uint64_t value; int want;
                const char *words; };

static void refuse_changes(struct img_file *f, struct img_file *open,
                           const struct change *rows, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct img_layer l;
        uint8_t had[8], raw[8];
        int r;

        assert_ok(img_file_pread(f, had, 8, rows[i].off, &err), err);
        img_put_le64(raw, rows[i].value);
        put(f, raw, rows[i].bytes, rows[i].off);
        r = open_layer(&l, open, 0);
        if (r != -rows[i].want)
            fail_msg("row %zu: %d, %s", i, r, err.message);
        if (rows[i].want)
            assert_says(rows[i].words);
        close_layer(&l);
        put(f, had, rows[i].bytes, rows[i].off);
    }
}

static void test_hosted_header(void **state)
{
    static const struct change rows[] = {
        { 4, 4, 0, ENOTSUP, "VMDK version 0" },
        { 4, 4, 4, ENOTSUP, "VMDK version 4" },
        { 4, 4, 1, 0, NULL },
        { 73, 1, '\r', IMG_ECORRUPT, "line ends were changed" },
        { 12, 8, UINT64_C(1) << 54, IMG_ECORRUPT, "capacity" },
        { 20, 8, 3, IMG_ECORRUPT, "sectors of a grain" },
        { 20, 8, 1 << 18, IMG_ECORRUPT, "sectors of a grain" },
        { 44, 4, 0, IMG_ECORRUPT, "entries of a grain table" },
        { 44, 4, 8192, IMG_ECORRUPT, "entries of a grain table" },
        { 44, 4, 48, IMG_ECORRUPT, "entries of a grain table" },
        { 36, 8, 2049, IMG_ECORRUPT, "sectors of the descriptor" },
        { 28, 8, 100, IMG_ECORRUPT, "descriptor at sector 100" },
        { 28, 8, UINT64_C(1) << 60, IMG_ECORRUPT, "does not lie" },
        { 36, 8, 100, IMG_ECORRUPT, "does not lie" },
        { 28, 8, 0, 0, NULL },              /* no descriptor */
        { 8, 4, 7 | VMDK_FLAG_COMPRESSED, ENOTSUP, "algorithm 0" },
        { 8, 4, 6, 0, NULL },               /* line ends are not looked at */
        { 56, 8, UINT64_MAX, IMG_ECORRUPT, "does not end with a footer" },
    };
    struct img_file *f = small_sparse("a.vmdk", MONOLITHIC);

    refuse_changes(f, f, rows, IMG_COUNT(rows));
    put32(f, 0, 0);
    refused(f, 0, EINVAL);
    assert_says("not a VMDK image");
    assert_int_equal(img_vmdk_probe((const uint8_t *)"COWD\1\0\0\0", 8, ""),
                     100);
    assert_int_equal(img_vmdk_probe((const uint8_t *)"COWD", 4, ""), 0);
}

/* A stream: header, and its last three sectors. */
static void test_stream_header(void **state)
{
    enum { FOOT = 8 * SECTOR };     /* marker, footer, end */
    static const struct change rows[] = {
        { FOOT, 8, 2, IMG_ECORRUPT, "cut off" },
        { FOOT + 8, 4, 1, IMG_ECORRUPT, "cut off" },
        { FOOT + 12, 4, 2, IMG_ECORRUPT, "cut off" },
        { FOOT + SECTOR, 4, 0, IMG_ECORRUPT, "cut off" },
        { FOOT + 2 * SECTOR + 8, 4, 1, IMG_ECORRUPT, "cut off" },
        { FOOT + 2 * SECTOR + 12, 4, 1, IMG_ECORRUPT, "cut off" },
        { FOOT + SECTOR + 4, 4, 9, ENOTSUP, "VMDK version 9" },
        { FOOT + SECTOR + 56, 8, UINT64_MAX, IMG_ECORRUPT, "contradicts" },
        { FOOT + SECTOR + 12, 8, 128, IMG_ECORRUPT, "contradicts" },
        { FOOT + SECTOR + 20, 8, 16, IMG_ECORRUPT, "contradicts" },
        { FOOT + SECTOR + 44, 4, 256, IMG_ECORRUPT, "contradicts" },
        { FOOT + SECTOR + 8, 4, 0x20001, IMG_ECORRUPT, "contradicts" },
        { FOOT + SECTOR + 56, 8, 100, IMG_ECORRUPT, "grain directory of 1" },
        { 77, 2, 2, ENOTSUP, "algorithm 2" },
        { 20, 8, 8192, IMG_ECORRUPT, "packed grain" },
    };
    struct vmdk_header h = {
        .version = 3, .capacity = 64, .grain = 8, .gt_entries = 512,
        .flags = VMDK_FLAG_NEWLINES | VMDK_FLAG_COMPRESSED |
                 VMDK_FLAG_MARKERS,
        .text_off = 1, .text_len = 4, .gd_off = VMDK_GD_AT_END,
        .overhead = 5, .compressed = true,
    };
    struct img_file *f = new_file("s.vmdk");
    struct img_layer l;
    enum img_codec codec;
    uint8_t head[SECTOR];

    img_vmdk_header_put(head, &h);
    put(f, head, sizeof head, 0);
    put(f, MONOLITHIC, strlen(MONOLITHIC), SECTOR);
    h.gd_off = 7;
    img_vmdk_header_put(head, &h);
    put(f, head, sizeof head, FOOT + SECTOR);
    put64(f, 1, FOOT);
    put32(f, VMDK_MARK_FOOTER, FOOT + 12);
    assert_ok(img_file_truncate(f, FOOT + 3 * SECTOR, &err), err);
    refuse_changes(f, f, rows, IMG_COUNT(rows));
    assert_ok(open_layer(&l, f, 0), err);
    expect(&l, 0, IMG_RUN_ABSENT, 0, 0, 64 * SECTOR);
    assert_int_equal(img_vmdk_codec(&l, &codec, &err), -ENOTSUP);
    close_layer(&l);
    /* Cut off: only for who makes a new footer. */
    assert_ok(img_file_truncate(f, FOOT, &err), err);
    refused(f, 0, IMG_ECORRUPT);
    refused(f, IMG_OPEN_WRITE, IMG_ECORRUPT);
    refused(f, IMG_OPEN_REPAIR, IMG_ECORRUPT);
    assert_ok(open_layer(&l, f, IMG_OPEN_WRITE | IMG_OPEN_REPAIR), err);
    assert_int_equal(img_vmdk_map(&l, 0, 512, 0, &(struct img_run){ 0 },
                                  &err), -IMG_ECORRUPT);
    assert_says("directory is lost");
    close_layer(&l);
    assert_ok(img_file_truncate(f, 3 * SECTOR, &err), err);
    put32(f, 0, 28);                    /* no descriptor either */
    refused(f, 0, IMG_ECORRUPT);
    assert_says("1536 bytes has no footer");
    assert_ok(img_file_truncate(f, 100, &err), err);
    refused(f, 0, IMG_ECORRUPT);
    assert_says("only 100 bytes");
}

static void test_other_headers(void **state)
{
    static const struct change cowd[] = {
        { 4, 4, 2, ENOTSUP, "COWD version 2" },
        { 16, 4, 3, IMG_ECORRUPT, "sectors of a grain" },
        { 24, 4, 1, IMG_ECORRUPT, "has 1 entries, 2 are needed" },
        { 12, 4, 100, IMG_ECORRUPT, "descriptor says 5000" },
        { 20, 4, 0, IMG_ECORRUPT, "grain directory of 2" },
    };
    static const struct change se[] = {
        { 8, 8, 1, ENOTSUP, "seSparse version" },
        { 24, 8, 16, IMG_ECORRUPT, "seSparse grain are 16" },
        { 32, 8, 32, IMG_ECORRUPT, "grain table are 32" },
        { 40, 8, 1, ENOTSUP, "seSparse flags" },
        { 136, 8, UINT64_C(1) << 40, IMG_ECORRUPT, "of the directory" },
        { 80, 8, 0, IMG_ECORRUPT, "volatile" },
        { 80, 8, UINT64_C(1) << 33, IMG_ECORRUPT, "volatile" },
        { SECTOR, 8, 1, IMG_ECORRUPT, "magic of the volatile" },
        { SECTOR + 24, 8, 1, ENOTSUP, "journal" },
        { 16, 8, UINT64_C(1) << 60, IMG_ECORRUPT, "capacity" },
        { 144, 8, 1 << 20, IMG_ECORRUPT, "tables at" },
        { 192, 8, 1 << 20, IMG_ECORRUPT, "tables at" },
        { 136, 8, 0, IMG_ECORRUPT, "has 0 entries" },
        { 2 * SECTOR, 8, 1, IMG_ECORRUPT, "directory entry 0" },
        { 2 * SECTOR, 8, UINT64_C(0x10000000ffffffff), IMG_ECORRUPT,
          "directory entry 0" },
    };
    struct img_file *c = new_file("c"), *s = new_file("s"), *dc, *ds;
    struct img_layer l;

    put32(c, VMDK_COWD_MAGIC, 0);
    put32(c, 1, 4);
    put32(c, 5000, 12);
    put32(c, 1, 16);
    put32(c, 4, 20);
    put32(c, 2, 24);
    assert_ok(img_file_truncate(c, 8 * SECTOR, &err), err);
    dc = text_file("dc", "version=1\nCID=1\nRW 5000 VMFSSPARSE \"c\"\n");
    refuse_changes(c, dc, cowd, IMG_COUNT(cowd));
    assert_ok(open_layer(&l, dc, 0), err);
    close_layer(&l);

    put64(s, 0xcafebabe, 0);
    put64(s, UINT64_C(0x200000001), 8);
    put64(s, 8, 16);
    put64(s, 8, 24);
    put64(s, 64, 32);
    put64(s, 1, 80);
    put64(s, 2, 128);
    put64(s, 1, 136);
    put64(s, 3, 144);
    put64(s, 3, 192);
    put64(s, 0xcafecafe, SECTOR);
    assert_ok(img_file_truncate(s, 8 * SECTOR, &err), err);
    ds = text_file("ds", "version=1\nCID=1\nRW 8 SESPARSE \"s\"\n");
    refuse_changes(s, ds, se, IMG_COUNT(se));
    assert_ok(open_layer(&l, ds, 0), err);
    expect(&l, 0, IMG_RUN_ABSENT, 0, 0, 8 * SECTOR);
    close_layer(&l);
    refused(text_file("dx", "version=1\nCID=1\nRW 8 SPARSE \"s\"\n"), 0,
            IMG_ECORRUPT);
    assert_says("is no SPARSE extent");
    refused(text_file("dy", "version=1\nCID=1\nRW 8 SESPARSE \"c\"\n"), 0,
            IMG_ECORRUPT);
    assert_says("is no SESPARSE extent");
}

static void test_descriptors(void **state)
{
    static const struct { const char *text; unsigned flags; int want;
                          const char *words; } rows[] = {
        { "CID=1\n", 0, EINVAL, "not a VMDK" },
        { "version=4\n", 0, EINVAL, "not a VMDK" },
        { "version=1\n", 0, IMG_ECORRUPT, "names no extents" },
        { "version=12\nRW 1 ZERO\n", 0, ENOTSUP, "version \"12\"" },
        { "version=3\nRW 1 ZERO\n", 0, 0, NULL },
        { "# c\n\n \t\r\nVERSION=2\nRW 1 ZERO\n", 0, 0, NULL },
        { "version=1\nRW 1 VMFSRDM \"f\"\n", 0, ENOTSUP, "VMFSRDM" },
        { "version=1\nRW 1 VMFSRAW \"f\"\n", 0, ENOTSUP, "VMFSRAW" },
        { "version=1\nRW 1 PIPE \"f\"\n", 0, ENOTSUP, "\"PIPE\"" },
        { "version=1\nRW 1 FLAT \"f\"\n", 0, IMG_ECORRUPT, "line 2" },
        { "version=1\nRW 1 FLAT f 0\n", 0, IMG_ECORRUPT, "line 2" },
        { "version=1\nRW 1 FLAT \"\" 0\n", 0, IMG_ECORRUPT, "line 2" },
        { "version=1\nRW 1 FLAT \"f 0\n", 0, IMG_ECORRUPT, "line 2" },
        { "version=1\nRW x FLAT \"f\" 0\n", 0, IMG_ECORRUPT, "line 2" },
        { "version=1\nRW 1x FLAT \"f\" 0\n", 0, IMG_ECORRUPT, "line 2" },
        { "version=1\nRW 99999999999999999999 ZERO\n", 0, IMG_ECORRUPT, "2" },
        { "version=1\nRW 9007199254740993 ZERO\n", 0, IMG_ECORRUPT, "2" },
        { "version=1\nRW\n", 0, IMG_ECORRUPT, "line 2" },
        { "version=1\nRW 1\n", 0, IMG_ECORRUPT, "line 2" },
        { "version=1\nRW 1 FLAT \"f\" 1x\n", 0, IMG_ECORRUPT, "line 2" },
        { "version=1\nRW 1 FLAT \"f\" 9007199254740993\n", 0, IMG_ECORRUPT,
          "line 2" },
        { "version=1\nRW 9007199254740992 ZERO\nRW 1 ZERO\n", 0,
          IMG_ECORRUPT, "too large together" },
        { "version=1\nRW 1 FLAT \"gone\" 0\n", 0, ENOENT, "line 2" },
        { "version=1\nRW 3 FLAT \"f\" 0\n", 0, IMG_ECORRUPT, "needs 1536" },
        { "version=1\nRW 1 FLAT \"f\" 2\n", 0, IMG_ECORRUPT, "from 1024" },
        { "version=1\nRW 3 FLAT \"f\" 0\n", IMG_OPEN_REPAIR, 0, NULL },
        { "version=1\nRW 0 FLAT \"f\" 2\nRW 1 ZERO\n", 0, 0, NULL },
        { "version=1\nRW 2 FLAT \"f\" 0\nRW 1 FLAT \"f\" 1\n", 0, 0, NULL },
        { "version=1\nRW 2 FLAT \"f\" 0\nRW 1 FLAT \"f\" 1\n", IMG_OPEN_WRITE,
          IMG_ECORRUPT, "overlap" },
        { "version=1\nRW 1 FLAT \"f\" 1\nRW 1 VMFS \"f\"\n", IMG_OPEN_WRITE,
          0, NULL },
        { "version=1\nRW 1 FLAT \"f\" 1\nRDONLY 1 FLAT \"f\" 0\n",
          IMG_OPEN_WRITE, 0, NULL },
        { "version=1\nRW 64 SPARSE \"s\"\nRW 64 SPARSE \"s\"\n", 0,
          IMG_ECORRUPT, "for two things" },
        { "version=1\nRW 64 SPARSE \"s\"\nRW 1 FLAT \"s\" 0\n", 0,
          IMG_ECORRUPT, "for two things" },
        { "version=1\nRW 1 FLAT \"s\" 0\nRW 64 SPARSE \"s\"\n", 0,
          IMG_ECORRUPT, "for two things" },
        { "version=1\nRW 1 FLAT \"d\" 0\n", 0, IMG_ECORRUPT, "the extent" },
        { "version=1\nRW 0 FLAT \"d\" 0\n", 0, IMG_ECORRUPT, "two things" },
        { "version=1\nRW 65 SPARSE \"s\"\n", 0, IMG_ECORRUPT,
          "is for 64 sectors, the descriptor says 65" },
        { "version=1\nRW 4 ZERO\nRW 64 SPARSE \"s\"\n", 0, 0, NULL },
        { "version=1\nRW 4 ZERO\nRW 64 SPARSE \"s\"\n", IMG_OPEN_WRITE,
          EROFS, "within a grain" },
        { "version=1\nencryption.keySafe = \"x\"\nRW 1 ZERO\n", 0, ENOTSUP,
          "encrypted" },
        { "version=1\nparentCID=1\nRW 1 ZERO\n", 0, IMG_ECORRUPT,
          "does not name that parent" },
        { "version=1\nparentCID=1\nRW 1 ZERO\n", IMG_OPEN_NO_BACKING, 0,
          NULL },
        { "version=1\nparentCID=1\nRW 1 ZERO\n", IMG_OPEN_REPAIR, 0, NULL },
        { "version=1\nparentCID=fffffffff\nRW 1 ZERO\n", 0, 0, NULL },
        { "version=1\nparentFileNameHint=\"\"\nRW 1 ZERO\n", 0, 0, NULL },
    };
    struct img_layer l;

    assert_ok(img_file_truncate(new_file("f"), 2 * SECTOR, &err), err);
    small_sparse("s", NULL);
    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        struct img_file *d = text_file("d", rows[i].text);
        int r = open_layer(&l, d, rows[i].flags);

        if (r != -rows[i].want)
            fail_msg("row %zu: %d, %s", i, r, err.message);
        if (rows[i].want)
            assert_says(rows[i].words);
        else
            assert_null(l.backing);
        close_layer(&l);
        img_file_close(d);
        n_folder--;
    }
    assert_ok(img_file_truncate(text_file("long", "version=1\nRW 1 ZERO\n"),
                                VMDK_TEXT_MAX + 1, &err), err);
    refused(folder[2].file, 0, IMG_ECORRUPT);
    assert_says("too many for a VMDK descriptor");
    assert_ok(img_file_truncate(folder[2].file, VMDK_TEXT_MAX, &err), err);
    assert_ok(open_layer(&l, folder[2].file, 0), err);
    close_layer(&l);
    new_file("empty");
    refused(folder[3].file, 0, EINVAL);
}

/* A descriptor in a header that has no grains of its own; and one that says
 * other things than the header. */
static void test_wrapped(void **state)
{
    static const char text[] = "version=1\nCID=1\nRW 2 FLAT \"f\" 0\n"
                               "RW 6 ZERO\n";
    struct vmdk_header h = {
        .version = 1, .flags = VMDK_FLAG_NEWLINES, .text_off = 1,
        .text_len = 2,
    };
    struct img_file *f = new_file("w.vmdk");
    struct img_layer l;
    uint8_t head[SECTOR];

    assert_ok(img_file_truncate(new_file("f"), 2 * SECTOR, &err), err);
    img_vmdk_header_put(head, &h);
    put(f, head, sizeof head, 0);
    put(f, text, strlen(text), SECTOR);
    assert_ok(img_file_truncate(f, 3 * SECTOR, &err), err);
    assert_ok(open_layer(&l, f, IMG_OPEN_WRITE), err);
    assert_int_equal(l.size, 8 * SECTOR);
    assert_int_equal(l.n_files, 2);
    expect(&l, 512, IMG_RUN_DATA, 1, 512, 512);
    assert_ok(img_vmdk_resize(&l, 9 * SECTOR, IMG_PREALLOC_OFF, &err), err);
    assert_int_equal(l.size, 9 * SECTOR);
    close_layer(&l);
    /* Without a descriptor it is nothing. */
    put64(f, 0, 28);
    refused(f, 0, IMG_ECORRUPT);
    assert_says("without grains");

    warned = 0;
    f = small_sparse("b.vmdk", "version=1\nCID=1\nRW 32 SPARSE \"b\"\n");
    assert_ok(open_layer(&l, f, 0), err);
    assert_int_equal(warned, 1);
    assert_int_equal(l.size, 64 * SECTOR);
    close_layer(&l);
    f = small_sparse("c.vmdk", "version=1\nCID=1\nRW 32 SPARSE \"b\"\n"
                               "RW 32 SPARSE \"c\"\n");
    assert_ok(open_layer(&l, f, 0), err);
    assert_int_equal(l.size, 64 * SECTOR);
    assert_int_equal(l.n_files, 1);
    close_layer(&l);
}

static void test_base(void **state)
{
    static const struct img_format other = { .info.name = "raw" };
    struct img_layer l, base;
    struct vmdk_state *st;

    small_sparse("s", NULL);
    text_file("o", "version=1\nCID=9\nparentCID=8\n"
              "parentFileNameHint=\"b\"\nRW 64 SPARSE \"s\"\n");
    text_file("b", "version=1\nCID=7\nRW 64 ZERO\n");
    assert_ok(open_layer(&base, folder[2].file, 0), err);
    assert_ok(open_layer(&l, folder[1].file, 0), err);
    st = l.state;
    assert_int_equal(img_vmdk_check_base(&l, &base, &err), -IMG_ECORRUPT);
    assert_says("parentCID is 00000008, but the CID of b is 00000007");
    l.repair = true;
    assert_ok(img_vmdk_check_base(&l, &base, &err), err);
    assert_int_equal(warned, 1);
    l.repair = false;
    base.format = &other;
    assert_int_equal(img_vmdk_check_base(&l, &base, &err), -EINVAL);
    assert_says("is no VMDK image");
    /* Whoever opened it gave another base. */
    st->given_below = true;
    assert_ok(img_vmdk_check_base(&l, &base, &err), err);
    base.format = l.format;
    assert_ok(img_vmdk_check_base(&l, &base, &err), err);
    assert_int_equal(warned, 2);
    assert_true(img_vmdk_has_below(&l));
    close_layer(&l);
    close_layer(&base);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_hosted_header), T(test_stream_header), T(test_other_headers),
        T(test_descriptors), T(test_wrapped), T(test_base),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
