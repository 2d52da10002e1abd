/* What changes a VMDK layer in memory: its descriptor, its parent, places
 * for plain and for packed grains, what is given back; and what is refused
 * with the image as it was. */
#include "vmdk-image.h"

#include <zlib.h>

static void assert_says(const char *words)
{
    if (!strstr(err.message, words))
        fail_msg("\"%s\" does not say \"%s\"", err.message, words);
}

static struct vmdk_text *text_of(struct img_layer *l)
{
    return ((struct vmdk_state *)l->state)->text;
}

/* NULL = the key is not to be there. */
static void value_is(struct img_layer *l, const char *key, const char *want)
{
    char *v;

    assert_ok(img_vmdk_text_get(text_of(l), key, &v, &err), err);
    if (want)
        assert_string_equal(v ? v : "(none)", want);
    else
        assert_null(v);
    free(v);
}

static int amend(struct img_layer *l, const char *setting)
{
    const char *const settings[] = { setting, NULL };

    memset(&err, 0, sizeof err);
    return img_vmdk_amend(l, settings, NULL, &err);
}

static void test_amend(void **state)
{
    static const struct { const char *setting, *key, *value; } good[] = {
        { "adapter_type=lsilogic", "ddb.adapterType", "lsilogic" },
        { "hwversion=21", "ddb.virtualHWVersion", "21" },
        { "toolsversion=7", "ddb.toolsVersion", "7" },
        { "cid=aBc", "CID", "00000abc" },
        { "parent_cid=fffffffe", "parentCID", "fffffffe" },
        { "ddb=note=two words", "ddb.note", "two words" },
        { "ddb=note=", "ddb.note", NULL },
        { "ddb=never.there=", "ddb.never.there", NULL },
        { "uuid=00112233-4455-6677-8899-AABBCCDDEEFF", "ddb.uuid",
          "00 11 22 33 44 55 66 77-88 99 aa bb cc dd ee ff" },
    };
    static const struct { const char *setting; int want; const char *words; }
    bad[] = {
        { "cid=", EINVAL, "hexadecimal" }, { "cid", EINVAL, "hexadecimal" },
        { "cid=123456789", EINVAL, "hexadecimal" },
        { "parent_cid=12g", EINVAL, "hexadecimal" },
        { "uuid=0011", EINVAL, "32 hexadecimal" },
        { "uuid=00112233-4455-6677-8899-AABBCCDDEEFFF", EINVAL, "32" },
        { "ddb", EINVAL, "NAME=VALUE" }, { "ddb==x", EINVAL, "NAME=VALUE" },
        { "ddb=a b=x", EINVAL, "NAME=VALUE" },
        { "ddb=#a=x", EINVAL, "NAME=VALUE" },
        { "ddb=a=\"", EINVAL, "quotes" }, { "hwversion=1\n2", EINVAL, "line" },
        { "subformat=vmfs", ENOTSUP, "'subformat' cannot be changed" },
        { "size=1", ENOTSUP, "cannot" }, { "", ENOTSUP, "cannot" },
        { "ciddy=1", ENOTSUP, "cannot" }, { "xyz=1", ENOTSUP, "cannot" },
        { "uuie=1", ENOTSUP, "cannot" }, { "parent_cit=1", ENOTSUP, "cannot" },
        { "hwversiom=1", ENOTSUP, "cannot" },
    };
    struct img_file *f = small_sparse("a.vmdk", MONOLITHIC), *mended;
    struct img_layer l;
    char *before, *now;
    size_t len;

    assert_ok(open_layer(&l, f, IMG_OPEN_WRITE), err);
    for (size_t i = 0; i < IMG_COUNT(good); i++) {
        assert_ok(amend(&l, good[i].setting), err);
        value_is(&l, good[i].key, good[i].value);
    }
    assert_int_equal(((struct vmdk_state *)l.state)->cid, 0xabc);
    assert_int_equal(((struct vmdk_state *)l.state)->parent_cid, 0xfffffffe);
    value_is(&l, "ddb.uuid.image", NULL);
    /* VirtualBox's entry follows where it is. */
    assert_ok(amend(&l, "ddb=uuid.image=old"), err);
    assert_ok(amend(&l, "uuid=ff112233 44556677-8899aabbccddeeff"), err);
    value_is(&l, "ddb.uuid.image", "ff112233-4455-6677-8899-aabbccddeeff");
    before = img_vmdk_text_print(text_of(&l), &len);
    for (size_t i = 0; i < IMG_COUNT(bad); i++) {
        assert_int_equal(amend(&l, bad[i].setting), -bad[i].want);
        assert_says(bad[i].words);
        now = img_vmdk_text_print(text_of(&l), &len);
        assert_string_equal(now, before);
        free(now);
    }
    assert_ok(img_vmdk_amend(&l, NULL, NULL, &err), err);
    mended = copy_of(l.files[0]);
    close_layer(&l);
    /* On disk it is the same. */
    assert_int_equal(open_layer(&l, mended, IMG_OPEN_NO_BACKING), 0);
    now = img_vmdk_text_print(text_of(&l), &len);
    assert_string_equal(now, before);
    free(now);
    free(before);
    close_layer(&l);
    img_file_close(mended);
}

/* An extent without its descriptor. */
static void test_no_text(void **state)
{
    struct img_layer l;
    char *v;

    assert_ok(open_layer(&l, small_sparse("s.vmdk", NULL), IMG_OPEN_WRITE),
              err);
    assert_int_equal(warned, 1);
    assert_int_equal(amend(&l, "cid=1"), -ENOTSUP);
    assert_says("no descriptor");
    assert_int_equal(img_vmdk_set_backing(&l, "b", NULL, NULL, &err),
                     -ENOTSUP);
    assert_says("no descriptor");
    assert_ok(img_vmdk_touch(&l, 0, 1, &err), err);
    assert_int_equal(((struct vmdk_state *)l.state)->parent_cid,
                     VMDK_NO_PARENT);
    close_layer(&l);
    /* A descriptor without an ID: nothing can be told from it. */
    small_sparse("t.vmdk", NULL);
    assert_ok(open_layer(&l, text_file("d.vmdk", "version=1\n"
                         "RW 64 SPARSE \"t.vmdk\"\n"), IMG_OPEN_WRITE), err);
    assert_ok(img_vmdk_touch(&l, 0, 1, &err), err);
    assert_ok(img_vmdk_text_get(text_of(&l), "CID", &v, &err), err);
    assert_null(v);
    close_layer(&l);
}

/* What the parent is known by, with the parent open or only by its name. */
static void test_set_backing(void **state)
{
    static const struct img_format other;
    static const struct { const char *name, *fmt; int want;
                          const char *words; } rows[] = {
        { "flat.vmdk", NULL, 0, "" }, { "own.vmdk", "vmdk", 0, "" },
        { "own.vmdk", "raw", EINVAL, "not raw" },
        { "bare.vmdk", NULL, EINVAL, "has no descriptor" },
        { "noid.vmdk", NULL, IMG_ECORRUPT, "no CID" },
        { "cowd.vmdk", NULL, EINVAL, "has no descriptor" },
        { "large", NULL, EINVAL, "not a VMDK image" },
        { "gone", NULL, ENOENT, "content ID of the backing file is needed" },
        { "own\".vmdk", NULL, EINVAL, "quotes" },
    };
    struct img_file *f = small_sparse("a.vmdk", MONOLITHIC), *cowd;
    struct img_layer l, base;
    static char long_name[4 * SECTOR];
    char raw[4 * SECTOR + 1] = { 0 };

    text_file("flat.vmdk", "version=1\nCID=12\nRW 1 FLAT \"x\" 0\n");
    put32(text_file("noid.vmdk", "version=1\nRW 1 FLAT \"x\" 0\n"), 0, 200);
    text_file("own\".vmdk", "version=1\nCID=13\nRW 1 FLAT \"x\" 0\n");
    cowd = new_file("cowd.vmdk");
    put32(cowd, VMDK_COWD_MAGIC, 0);
    put32(cowd, 1, 4);
    put32(cowd, 1, 16);
    put32(cowd, 0, 512);
    assert_ok(img_file_truncate(new_file("large"), VMDK_TEXT_MAX + 1, &err),
              err);
    small_sparse("own.vmdk", MONOLITHIC);
    small_sparse("bare.vmdk", NULL);
    assert_ok(open_layer(&l, f, IMG_OPEN_WRITE), err);
    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        memset(&err, 0, sizeof err);
        assert_int_equal(img_vmdk_set_backing(&l, rows[i].name, rows[i].fmt,
                                              NULL, &err), -rows[i].want);
        assert_says(rows[i].words);
        if (rows[i].want == 0) {
            assert_string_equal(l.backing, rows[i].name);
            assert_string_equal(l.backing_format, "vmdk");
            value_is(&l, "parentFileNameHint", rows[i].name);
            value_is(&l, "parentCID", i ? "00000007" : "00000012");
        }
    }
    /* The last that was right is what there is. */
    value_is(&l, "parentFileNameHint", "own.vmdk");
    assert_string_equal(l.backing, "own.vmdk");

    assert_ok(open_layer(&base, folder[0].file, 0), err);
    ((struct vmdk_state *)base.state)->cid = 0x77;
    base.format = &other;
    assert_int_equal(img_vmdk_set_backing(&l, "own.vmdk", NULL, &base, &err),
                     -EINVAL);
    base.format = l.format;
    assert_ok(img_vmdk_set_backing(&l, "x", "vmdk", &base, &err), err);
    value_is(&l, "parentCID", "00000077");

    /* Too long a name: the file and what is written next are as before. */
    memset(long_name, 'n', sizeof long_name - 1);
    assert_int_equal(img_vmdk_set_backing(&l, long_name, NULL, &base, &err),
                     -ENOSPC);
    assert_ok(img_vmdk_touch(&l, 0, 1, &err), err);
    assert_ok(img_file_pread(l.files[0], raw, 4 * SECTOR, 12 * SECTOR, &err),
              err);
    assert_non_null(strstr(raw, "parentFileNameHint=\"x\""));
    assert_non_null(strstr(raw, "parentCID=00000077"));

    assert_ok(img_vmdk_set_backing(&l, "", NULL, NULL, &err), err);
    assert_null(l.backing);
    assert_null(l.backing_format);
    value_is(&l, "parentCID", "ffffffff");
    value_is(&l, "parentFileNameHint", NULL);
    assert_ok(img_vmdk_set_backing(&l, NULL, "raw", NULL, &err), err);
    close_layer(&base);
    close_layer(&l);
}

static void test_flat_has_no_parent(void **state)
{
    struct img_want want = { .len = 512, .packed = 100 };
    struct img_place place;
    enum img_codec codec;
    struct img_layer l;
    uint64_t done = 0;

    assert_ok(img_file_truncate(new_file("f"), 2 * SECTOR, &err), err);
    assert_ok(open_layer(&l, text_file("d.vmdk", "version=1\nCID=1\n"
                         "RW 2 FLAT \"f\" 0\nRW 2 ZERO\n"
                         "NOACCESS 2 FLAT \"q\" 0\n"), IMG_OPEN_WRITE), err);
    assert_int_equal(img_vmdk_set_backing(&l, "x", NULL, NULL, &err),
                     -ENOTSUP);
    assert_says("hide what is below");
    assert_ok(img_vmdk_set_backing(&l, NULL, NULL, NULL, &err), err);
    assert_int_equal(img_vmdk_codec(&l, &codec, &err), -ENOTSUP);
    assert_int_equal(img_vmdk_reserve(&l, &want, &place, &err), -ENOTSUP);
    assert_says("flat extents hold no compressed");
    assert_int_equal(img_vmdk_unmap(&l, 0, 512, IMG_UNMAP_DROP, &done, &err),
                     -ENOTSUP);
    /* Zeros are zeros already; what has no access is not changed, and behind
     * the last there is nothing. */
    assert_ok(img_vmdk_unmap(&l, 3 * SECTOR, 5 * SECTOR, IMG_UNMAP_DISCARD,
                             &done, &err), err);
    assert_int_equal(done, SECTOR);
    assert_int_equal(img_vmdk_unmap(&l, 2 * SECTOR, 512, IMG_UNMAP_DROP,
                                    &done, &err), -EROFS);
    assert_says("of zeros");
    assert_int_equal(img_vmdk_unmap(&l, 4 * SECTOR, 512, IMG_UNMAP_ZERO,
                                    &done, &err), -EROFS);
    assert_says("not for writing");
    assert_int_equal(img_vmdk_unmap(&l, 6 * SECTOR, 512, IMG_UNMAP_ZERO,
                                    &done, &err), -EINVAL);
    assert_int_equal(img_vmdk_map(&l, 6 * SECTOR, 512, 0,
                                  &(struct img_run){ 0 }, &err), -EINVAL);
    for (int how = IMG_UNMAP_ZERO; how < IMG_UNMAP_DROP; how++) {
        int r = img_vmdk_unmap(&l, 512, 4096, (enum img_unmap)how, &done,
                               &err);

        assert_true(r == 0 || r == -ENOTSUP);
        if (r == 0)
            assert_int_equal(done, 512);
    }
    close_layer(&l);
}

/* ---- what is given back -------------------------------------------------- */

static void unmap_is(struct img_layer *l, unsigned grain, enum img_unmap how,
                     int want, unsigned grains)
{
    uint64_t done = 0;

    assert_int_equal(img_vmdk_unmap(l, grain * 4096, grains * 4096, how,
                                    &done, &err), -want);
    if (!want)
        assert_int_equal(done, grains * 4096);
}

/* zero_grain: a version 2 extent, else one that knows no zeros. */
static struct img_file *given_back(bool zero_grain, const char *text)
{
    struct img_file *f = small_sparse("a.vmdk", text);

    if (!zero_grain) {
        put32(f, 1, 4);
        put32(f, VMDK_FLAG_NEWLINES | VMDK_FLAG_REDUNDANT, 8);
    }
    entry(f, 0, 16, 16);
    entry(f, 1, 24, 24);
    entry(f, 2, 32, 32);
    return f;
}

#define OVER \
    "version=1\nCID=7\nparentCID=1\nparentFileNameHint=\"b\"\n" \
    "RW 64 SPARSE \"a.vmdk\"\n"

static void test_unmap(void **state)
{
    struct img_layer l;

    assert_ok(open_layer(&l, given_back(true, MONOLITHIC), IMG_OPEN_WRITE),
              err);
    unmap_is(&l, 0, IMG_UNMAP_ZERO_KEEP, ENOTSUP, 1);
    assert_says("keeps its place");
    unmap_is(&l, 3, IMG_UNMAP_ZERO_KEEP, 0, 2);     /* absent: zeros */
    expect(&l, 3 * 4096, IMG_RUN_ABSENT, 0, 0, 5 * 4096);
    unmap_is(&l, 0, IMG_UNMAP_ZERO, 0, 1);
    expect(&l, 0, IMG_RUN_ZERO, 0, 0, 4096);
    unmap_is(&l, 0, IMG_UNMAP_DROP, 0, 1);
    expect(&l, 0, IMG_RUN_ABSENT, 0, 0, 4096);
    unmap_is(&l, 4, IMG_UNMAP_ZERO_OWN, 0, 1);
    expect(&l, 4 * 4096, IMG_RUN_ZERO, 0, 0, 4096);
    close_layer(&l);
    empty_folder();

    assert_ok(open_layer(&l, given_back(false, MONOLITHIC), IMG_OPEN_WRITE),
              err);
    unmap_is(&l, 0, IMG_UNMAP_ZERO_OWN, ENOTSUP, 1);
    assert_says("no way to say");
    unmap_is(&l, 0, IMG_UNMAP_ZERO, 0, 1);
    expect(&l, 0, IMG_RUN_ABSENT, 0, 0, 4096);
    close_layer(&l);

    empty_folder();
    assert_ok(open_layer(&l, given_back(false, OVER), IMG_OPEN_WRITE), err);
    unmap_is(&l, 0, IMG_UNMAP_ZERO, ENOTSUP, 1);
    unmap_is(&l, 0, IMG_UNMAP_DISCARD, 0, 3);       /* stays as it was */
    expect(&l, 0, IMG_RUN_DATA, 0, 16 * SECTOR, 3 * 4096);
    unmap_is(&l, 0, IMG_UNMAP_DROP, 0, 1);
    expect(&l, 0, IMG_RUN_ABSENT, 0, 0, 4096);
    close_layer(&l);

    empty_folder();
    assert_ok(open_layer(&l, given_back(true, OVER), IMG_OPEN_WRITE), err);
    unmap_is(&l, 0, IMG_UNMAP_DISCARD, 0, 4);
    expect(&l, 0, IMG_RUN_ZERO, 0, 0, 4 * 4096);
    close_layer(&l);
}

/* A broken entry is neither read nor written over. */
static void test_bad_entry(void **state)
{
    struct img_file *f = given_back(false, MONOLITHIC);
    struct img_want want = { .off = 3 * 4096, .len = 4096 };
    struct img_place place;
    struct img_layer l;

    entry(f, 3, 1, 1);
    entry(f, 4, 60, 60);                /* not in the file */
    assert_ok(open_layer(&l, f, IMG_OPEN_WRITE), err);
    for (unsigned i = 3; i < 5; i++) {
        want.off = i * 4096;
        want.in_place = false;
        assert_int_equal(img_vmdk_reserve(&l, &want, &place, &err),
                         -IMG_ECORRUPT);
        want.in_place = true;
        assert_int_equal(img_vmdk_reserve(&l, &want, &place, &err),
                         -IMG_ECORRUPT);
    }
    unmap_is(&l, 3, IMG_UNMAP_ZERO, ENOTSUP, 1);
    want.off = 5 * 4096;
    assert_ok(img_vmdk_reserve(&l, &want, &place, &err), err);
    assert_int_equal(place.len, 0);     /* in place: nothing there */
    close_layer(&l);
}

/* Grains that were given back or not used after all are used again, joined
 * with their neighbours and cut as needed. */
static void test_reuse(void **state)
{
    struct img_want want = { .off = 3 * 4096, .len = 3 * 4096 };
    struct img_place first, second, third;
    struct img_layer l;

    assert_ok(open_layer(&l, given_back(true, MONOLITHIC), IMG_OPEN_WRITE),
              err);
    assert_ok(img_vmdk_reserve(&l, &want, &first, &err), err);
    assert_int_equal(first.host, 40 * SECTOR);
    assert_true(first.zeroed);
    img_vmdk_abandon(&l, &first);
    want.len = 4096;
    assert_ok(img_vmdk_reserve(&l, &want, &second, &err), err);
    assert_int_equal(second.host, 40 * SECTOR);
    assert_false(second.zeroed);
    want.off = 4 * 4096 + 512;
    want.len = 512;
    assert_ok(img_vmdk_reserve(&l, &want, &third, &err), err);
    assert_int_equal(third.host, 48 * SECTOR + 512);
    assert_int_equal(third.fill_off, 4 * 4096);
    assert_int_equal(third.fill_len, 4096);
    img_vmdk_abandon(&l, &third);
    img_vmdk_abandon(&l, &second);
    unmap_is(&l, 0, IMG_UNMAP_ZERO, 0, 3);
    assert_ok(img_vmdk_sync(&l, &err), err);    /* now they are free */
    want.off = 0;
    want.len = 6 * 4096;
    assert_ok(img_vmdk_reserve(&l, &want, &first, &err), err);
    assert_int_equal(first.host, 16 * SECTOR);
    assert_int_equal(first.len, 6 * 4096);
    assert_ok(img_vmdk_publish(&l, &first, &err), err);
    assert_ok(img_vmdk_sync(&l, &err), err);
    expect(&l, 0, IMG_RUN_DATA, 0, 16 * SECTOR, 6 * 4096);
    want.in_place = true;
    assert_ok(img_vmdk_reserve(&l, &want, &second, &err), err);
    assert_false(second.fresh);
    assert_int_equal(second.host, 16 * SECTOR);
    assert_ok(img_vmdk_publish(&l, &second, &err), err);    /* nothing to do */
    img_vmdk_abandon(&l, &second);
    close_layer(&l);
}

/* A grain that was given back and is written again before that came to the
 * disk: there never is a table that names the one and a copy that names the
 * other. */
static void test_settle(void **state)
{
    struct img_want want = { .off = 4096, .len = 4096 };
    struct img_place place;
    struct img_layer l;
    uint8_t raw[4];

    assert_ok(open_layer(&l, given_back(true, MONOLITHIC), IMG_OPEN_WRITE),
              err);
    unmap_is(&l, 1, IMG_UNMAP_ZERO, 0, 1);
    want.off = 3 * 4096;            /* another: nothing has to be settled */
    assert_ok(img_vmdk_reserve(&l, &want, &place, &err), err);
    assert_int_equal(place.host, 40 * SECTOR);
    assert_ok(img_file_pread(l.files[0], raw, 4, 7 * SECTOR + 4, &err), err);
    assert_int_equal(img_get_le32(raw), 24);
    want.off = 0;
    want.len = 2 * 4096;
    want.in_place = true;
    assert_ok(img_vmdk_reserve(&l, &want, &place, &err), err);
    assert_int_equal(place.len, 4096);
    want.off = 4096;
    want.len = 4096;
    want.in_place = false;
    assert_ok(img_vmdk_reserve(&l, &want, &place, &err), err);
    for (unsigned table = 2; table <= 7; table += 5) {
        assert_ok(img_file_pread(l.files[0], raw, 4, table * SECTOR + 4,
                                 &err), err);
        assert_int_equal(img_get_le32(raw), 1);     /* zeros, on disk */
    }
    assert_int_equal(place.host, 24 * SECTOR);      /* free by now */
    close_layer(&l);
}

/* What an embedded descriptor says of access means nothing. */
static void test_embedded_access(void **state)
{
    struct img_want want = { .off = 3 * 4096, .len = 4096 };
    struct img_place place;
    struct img_layer l;

    assert_ok(open_layer(&l, small_sparse("a.vmdk", "version=1\nCID=1\n"
                         "RDONLY 64 SPARSE \"a.vmdk\"\n"), IMG_OPEN_WRITE),
              err);
    assert_ok(img_vmdk_reserve(&l, &want, &place, &err), err);
    assert_true(place.fresh);
    img_vmdk_abandon(&l, &place);
    assert_ok(img_vmdk_resize(&l, 128 * SECTOR, IMG_PREALLOC_OFF, &err), err);
    assert_int_equal(l.size, 128 * SECTOR);
    close_layer(&l);
}

/* ---- packed grains ------------------------------------------------------- */

/* A streamOptimized image that is written in place: 3 grains of 4 KiB and a
 * bit. */
static struct img_file *packed_image(const char *name, unsigned flags)
{
    struct vmdk_header like = {
        .version = 3, .grain = 8, .gt_entries = 512, .compressed = true,
        .flags = VMDK_FLAG_COMPRESSED | flags,
    };
    struct img_file *f = new_file(name);

    assert_ok(img_vmdk_make_sparse(f, &like, 25 * SECTOR, MONOLITHIC, &err),
              err);
    return f;
}

static void put_packed(struct img_layer *l, unsigned grain, uint8_t fill)
{
    struct img_want want = { .off = grain * 4096, .len = 4096 };
    uint8_t plain[4096], packed[4096], back[4096];
    uLongf len = sizeof packed, back_len = sizeof back;
    struct img_place place;
    struct img_run run;

    memset(plain, fill, sizeof plain);
    assert_int_equal(compress(packed, &len, plain, sizeof plain), Z_OK);
    want.packed = (uint32_t)len;
    assert_ok(img_vmdk_reserve(l, &want, &place, &err), err);
    assert_true(place.fresh);
    assert_int_equal(place.packed, len);
    assert_int_equal(place.len, grain == 3 ? 512 : 4096);
    assert_ok(img_file_pwrite(l->files[0], packed, len, place.host, &err),
              err);
    assert_ok(img_vmdk_publish(l, &place, &err), err);
    assert_ok(img_vmdk_map(l, want.off + 100, 10, 0, &run, &err), err);
    assert_int_equal(run.kind, IMG_RUN_PACKED);
    assert_int_equal(run.host, place.host);
    assert_int_equal(run.host_max, len);
    assert_int_equal(run.unpacked_min, grain == 3 ? 512 : 0);
    assert_ok(img_file_pread(l->files[0], packed, run.host_max, run.host,
                             &err), err);
    assert_int_equal(uncompress(back, &back_len, packed, len), Z_OK);
    assert_memory_equal(back, plain, sizeof plain);
}

static void test_packed(void **state)
{
    struct img_want want = { .off = 4096, .len = 4096, .packed = 50 };
    struct img_check_options opts = IMG_CHECK_OPTIONS;
    struct img_check_result res = { 0 };
    struct img_place place;
    struct img_layer l;
    struct img_file *f;
    enum img_codec codec;
    uint64_t done = 0, marker;
    struct img_run run;

    assert_ok(open_layer(&l, packed_image("p.vmdk", VMDK_FLAG_MARKERS),
                         IMG_OPEN_WRITE), err);
    assert_ok(img_vmdk_codec(&l, &codec, &err), err);
    assert_int_equal(codec, IMG_CODEC_ZLIB);
    put_packed(&l, 3, 3);
    put_packed(&l, 1, 1);
    /* Once only; and plain ones not at all. */
    assert_int_equal(img_vmdk_reserve(&l, &want, &place, &err), -EROFS);
    assert_says("there already");
    want.packed = 0;
    assert_int_equal(img_vmdk_reserve(&l, &want, &place, &err), -EROFS);
    assert_says("front to back");
    want.off = 0;
    want.packed = 700;
    assert_ok(img_vmdk_reserve(&l, &want, &place, &err), err);
    img_vmdk_abandon(&l, &place);       /* a leak, nothing else */
    put_packed(&l, 2, 2);
    expect(&l, 0, IMG_RUN_ABSENT, 0, 0, 4096);
    assert_ok(img_vmdk_unmap(&l, 4096, 4096, IMG_UNMAP_DISCARD, &done, &err),
              err);
    assert_int_equal(img_vmdk_unmap(&l, 4096, 4096, IMG_UNMAP_ZERO, &done,
                                    &err), -ENOTSUP);
    assert_ok(img_vmdk_sync(&l, &err), err);
    assert_ok(img_vmdk_check(&l, &opts, NULL, &res, &err), err);
    assert_int_equal(res.errors, 0);
    assert_int_equal(res.compressed, 3);
    f = copy_of(l.files[0]);
    close_layer(&l);

    /* Opened again it is the same; a marker of another grain is told. */
    assert_ok(open_layer(&l, f, 0), err);
    assert_ok(img_vmdk_map(&l, 8192, 10, 0, &run, &err), err);
    marker = run.host - VMDK_GRAIN_MARKER;
    assert_int_equal(img_vmdk_map(&l, 8192, 10, IMG_RUN_CACHED, &run, &err),
                     -EAGAIN);
    close_layer(&l);
    put64(f, 8, marker);
    assert_ok(open_layer(&l, f, 0), err);
    assert_int_equal(img_vmdk_map(&l, 8192, 10, 0, &run, &err),
                     -IMG_ECORRUPT);
    assert_says("is of sector 8, not of 16");
    close_layer(&l);
    put64(f, 16, marker);
    for (uint32_t size = 0; size <= 8193; size += 8193) {
        put32(f, size, marker + 8);
        assert_ok(open_layer(&l, f, 0), err);
        assert_int_equal(img_vmdk_map(&l, 8192, 10, 0, &run, &err),
                         -IMG_ECORRUPT);
        close_layer(&l);
    }
    img_file_close(f);
}

static void test_packed_refused(void **state)
{
    struct img_want want = { .len = 4096, .packed = 50 };
    struct img_place place;
    enum img_codec codec;
    struct img_layer l;

    assert_ok(open_layer(&l, packed_image("p.vmdk", 0), IMG_OPEN_WRITE), err);
    assert_int_equal(img_vmdk_reserve(&l, &want, &place, &err), -ENOTSUP);
    assert_says("cannot be written into this image");
    close_layer(&l);
    assert_ok(open_layer(&l, small_sparse("a.vmdk", MONOLITHIC),
                         IMG_OPEN_WRITE), err);
    assert_int_equal(img_vmdk_reserve(&l, &want, &place, &err), -ENOTSUP);
    assert_int_equal(img_vmdk_codec(&l, &codec, &err), -ENOTSUP);
    assert_says("streamOptimized");
    close_layer(&l);
    /* Packed grains beside others: what is inflated would straddle. */
    text_file("d.vmdk", "version=1\nCID=1\nRW 25 SPARSE \"p.vmdk\"\n"
              "RW 25 SPARSE \"p2.vmdk\"\n");
    packed_image("p2.vmdk", VMDK_FLAG_MARKERS);
    refused(folder[2].file, 0, ENOTSUP);
    assert_says("packed extents with other grains");
}

/* ---- directories --------------------------------------------------------- */

/* 4 tables of 1 entry each: directory at sector 1 and 2, tables from 3 on. */
static struct img_file *four_tables(const uint32_t *gd, const uint32_t *rgd)
{
    struct vmdk_header h = {
        .version = 1, .capacity = 4 * 512 * 8, .grain = 8, .gt_entries = 512,
        .flags = VMDK_FLAG_NEWLINES | (rgd ? VMDK_FLAG_REDUNDANT : 0),
        .rgd_off = 1, .gd_off = 2, .overhead = 40,
    };
    struct img_file *f = new_file("t.vmdk");
    uint8_t head[SECTOR];

    img_vmdk_header_put(head, &h);
    put(f, head, sizeof head, 0);
    assert_ok(img_file_truncate(f, 80 * SECTOR, &err), err);
    for (unsigned i = 0; i < 4; i++) {
        put32(f, gd[i], 2 * SECTOR + 4 * i);
        if (rgd)
            put32(f, rgd[i], SECTOR + 4 * i);
    }
    return f;
}

static void test_tables_apart(void **state)
{
    static const struct { uint32_t gd[4], rgd[4]; bool apart; } rows[] = {
        { { 3, 7, 11, 15 }, { 19, 23, 27, 31 }, true },
        { { 15, 11, 7, 3 }, { 31, 19, 27, 23 }, true },
        { { 15, 0, 7, 3 }, { 0, 0, 27, 23 }, true },
        { { 0, 0, 0, 0 }, { 0, 0, 0, 0 }, true },
        { { 3, 7, 3, 15 }, { 19, 23, 27, 31 }, false },
        { { 3, 6, 11, 15 }, { 19, 23, 27, 31 }, false },
        { { 15, 14, 7, 3 }, { 19, 23, 27, 31 }, false },
        { { 3, 7, 11, 15 }, { 19, 23, 19, 31 }, false },
        { { 3, 7, 11, 15 }, { 31, 23, 19, 22 }, false },
    };
    struct img_layer l;

    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        struct img_file *f = four_tables(rows[i].gd, rows[i].rgd);

        /* Nobody is harmed by reading. */
        assert_ok(open_layer(&l, f, 0), err);
        close_layer(&l);
        if (rows[i].apart) {
            assert_ok(open_layer(&l, f, IMG_OPEN_WRITE), err);
            close_layer(&l);
        } else {
            refused(f, IMG_OPEN_WRITE, IMG_ECORRUPT);
            assert_says("share a grain table");
        }
        img_file_close(f);
        n_folder--;
    }
}

/* Where tables of one directory meet, what the other one says is what there
 * is: nothing that it tells is lost to repair. */
static void test_mend_shared(void **state)
{
    static const struct { uint32_t gd[4], rgd[4]; bool mended; } rows[] = {
        { { 3, 3, 11, 15 }, { 19, 23, 27, 31 }, true },
        { { 3, 3, 3, 3 }, { 19, 23, 27, 31 }, true },
        { { 15, 7, 11, 9 }, { 31, 27, 23, 19 }, true },
        { { 3, 7, 11, 15 }, { 19, 23, 23, 31 }, true },
        { { 3, 7, 11, 15 }, { 19, 21, 23, 31 }, true },
        { { 3, 3, 11, 15 }, { 19, 19, 27, 31 }, false },
    };
    struct img_check_options opts = IMG_CHECK_OPTIONS;
    struct img_layer l;

    opts.repair = IMG_REPAIR_ALL;
    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        struct img_check_result res = { 0 }, again = { 0 };
        struct img_file *f = four_tables(rows[i].gd, rows[i].rgd), *mended;
        bool first = rows[i].rgd[1] == 23 && rows[i].rgd[2] == 27;

        first |= rows[i].rgd[0] == 31;
        /* Each copy that is not shared knows its grain. */
        for (unsigned g = 0; g < 4; g++)
            put32(f, 40 + 8 * g,
                  (first ? rows[i].rgd[g] : rows[i].gd[g]) * SECTOR);
        assert_ok(img_file_truncate(f, 72 * SECTOR, &err), err);
        assert_ok(open_layer(&l, f, IMG_OPEN_WRITE | IMG_OPEN_REPAIR), err);
        assert_ok(img_vmdk_check(&l, &opts, NULL, &res, &err), err);
        assert_true(res.errors > 0);
        mended = copy_of(l.files[0]);
        close_layer(&l);
        if (rows[i].mended) {
            assert_ok(open_layer(&l, mended, IMG_OPEN_WRITE), err);
            for (unsigned g = 0; g < 4; g++)
                expect(&l, g * 512 * UINT64_C(4096), IMG_RUN_DATA, 0,
                       (40 + 8 * g) * SECTOR, 4096);
            opts.repair = 0;
            assert_ok(img_vmdk_check(&l, &opts, NULL, &again, &err), err);
            assert_int_equal(again.errors, 0);
            opts.repair = IMG_REPAIR_ALL;
            close_layer(&l);
        } else {
            assert_true(res.errors > res.errors_fixed);
        }
        img_file_close(mended);
        img_file_close(f);
        n_folder--;
    }
}

/* On a device, with one copy and with two, in no order, with entries that
 * lead nowhere: what is free is found between what is used. */
static void test_device_gaps(void **state)
{
    static const uint32_t gd[] = { 60, 1000, 3, 0 }, rgd[] = { 64, 0, 7, 0 };
    struct img_want want = { .off = 2 * 512 * 4096, .len = 4096 };
    struct img_place place;
    struct img_layer l;
    struct img_file *f;

    for (int two = 0; two < 2; two++) {
        f = four_tables(gd, two ? rgd : NULL);
        put32(f, 48, 3 * SECTOR + 4);
        put32(f, 100000, 3 * SECTOR + 8);
        on_device = true;
        assert_ok(open_layer(&l, f, IMG_OPEN_WRITE), err);
        assert_ok(img_vmdk_reserve(&l, &want, &place, &err), err);
        /* 40..47 is free, 48 is a grain, tables are at 60 (and 64). */
        assert_int_equal(place.host, 40 * SECTOR);
        assert_false(place.zeroed);
        assert_ok(img_vmdk_publish(&l, &place, &err), err);
        close_layer(&l);
        n_folder--;
        img_file_close(f);
    }
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_amend), T(test_no_text), T(test_set_backing),
        T(test_flat_has_no_parent), T(test_unmap), T(test_bad_entry),
        T(test_reuse), T(test_settle),
        T(test_embedded_access), T(test_packed), T(test_packed_refused),
        T(test_tables_apart), T(test_mend_shared), T(test_device_gaps),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
