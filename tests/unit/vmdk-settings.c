/* Settings of new VMDK images: what each combination makes of the image, and
 * which are refused in which words; the sink for streams, asked for what it
 * cannot do. */
#include "unit.h"
#include "base/strings.h"
#include "file/file.h"
#include "vmdk/vmdk.h"

static struct img_error err;

static void assert_says(const char *words)
{
    if (!strstr(err.message, words))
        fail_msg("\"%s\" does not say \"%s\"", err.message, words);
}

enum { SETTINGS = 6 };

static int parse(const char *const *settings, uint64_t size,
                 const char *backing, const char *fmt,
                 struct vmdk_options *o)
{
    struct img_create_options opts = IMG_CREATE_OPTIONS;

    memset(&err, 0, sizeof err);
    opts.format = "vmdk";
    opts.disk_size = size;
    opts.settings = settings;
    opts.backing = backing;
    opts.backing_format = fmt;
    return img_vmdk_options(&opts, o, &err);
}

static void test_good(void **state)
{
    static const struct {
        const char *set[SETTINGS], *adapter, *hardware, *tools;
        enum vmdk_subformat subformat;
    } rows[] = {
        { { NULL }, "ide", "4", "2147483647", VMDK_MONOLITHIC_SPARSE },
        { { "hwversion=undefined", "toolsversion=9" }, "ide", "4", "9",
          VMDK_MONOLITHIC_SPARSE },
        { { "compat6" }, "ide", "6", "2147483647", VMDK_MONOLITHIC_SPARSE },
        { { "compat6=on", "hwversion=undefined" }, "ide", "6", "2147483647",
          VMDK_MONOLITHIC_SPARSE },
        { { "target=esxi" }, "lsilogic", "13", "2147483647", VMDK_STREAM },
        { { "target=esxi", "subformat=vmfs" }, "lsilogic", "13",
          "2147483647", VMDK_VMFS },
        { { "target=esxi", "subformat=monolithicFlat", "hwversion=8",
            "adapter_type=ide" }, "ide", "8", "2147483647",
          VMDK_MONOLITHIC_FLAT },
        { { "target=workstation", "compat6=on" }, "lsilogic", "6",
          "2147483647", VMDK_MONOLITHIC_SPARSE },
        { { "target=virtualbox", "adapter_type=buslogic" }, "buslogic", "4",
          "2147483647", VMDK_MONOLITHIC_SPARSE },
        { { "target=workstation", "zeroed_grain=on",
            "subformat=twoGbMaxExtentSparse" }, "lsilogic", "13",
          "2147483647", VMDK_SPLIT_SPARSE },
    };
    struct vmdk_options o;

    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        assert_ok(parse(rows[i].set, 1000, NULL, NULL, &o), err);
        assert_int_equal(o.size, 1024);
        assert_string_equal(o.adapter, rows[i].adapter);
        assert_string_equal(o.hardware, rows[i].hardware);
        assert_string_equal(o.tools, rows[i].tools);
        assert_int_equal(o.subformat, rows[i].subformat);
        assert_int_equal(o.parent_cid, VMDK_NO_PARENT);
        assert_true(o.cid && o.cid < VMDK_NO_PARENT - 1);
    }
}

static void test_refused(void **state)
{
    static const char big[] = "hwversion=012345678901234567890123";
    static const struct {
        const char *set[SETTINGS];
        uint64_t size;
        const char *backing, *fmt;
        int want;
        const char *words;
    } rows[] = {
        { { "subformat=x" }, 0, NULL, NULL, EINVAL, "subformat" },
        { { "adapter_type=x" }, 0, NULL, NULL, EINVAL, "adapter_type" },
        { { "zeroed_grain=maybe" }, 0, NULL, NULL, EINVAL, "zeroed_grain" },
        { { "compat6=maybe" }, 0, NULL, NULL, EINVAL, "compat6" },
        { { "compat6", "hwversion=5" }, 0, NULL, NULL, EINVAL, "compat6" },
        { { big }, 0, NULL, NULL, EINVAL, "short words" },
        { { "hwversion=a\"" }, 0, NULL, NULL, EINVAL, "short words" },
        { { "toolsversion=a\nb" }, 0, NULL, NULL, EINVAL, "short words" },
        { { "toolsversion=012345678901234567890123" }, 0, NULL, NULL, EINVAL,
          "short words" },
        { { "target=x" }, 0, NULL, NULL, EINVAL, "target" },
        { { "target=esxi", "subformat=monolithicSparse" }, 0, NULL, NULL,
          EINVAL, "target=esxi takes" },
        { { "target=workstation", "subformat=vmfs" }, 0, NULL, NULL, EINVAL,
          "does not take vmfs" },
        { { "target=virtualbox", "subformat=vmfsSparse" }, 0, NULL, NULL,
          EINVAL, "does not take vmfsSparse" },
        { { "target=virtualbox", "zeroed_grain=on" }, 0, NULL, NULL, EINVAL,
          "does not take zeroed_grain" },
        { { "subformat=monolithicFlat" }, 0, "b", NULL, ENOTSUP, "backing" },
        { { "subformat=vmfs" }, 0, "b", NULL, ENOTSUP, "backing" },
        { { "subformat=twoGbMaxExtentFlat", "zeroed_grain=on" }, 0, NULL,
          NULL, ENOTSUP, "zeroed grain" },
        { { "subformat=vmfsSparse", "zeroed_grain=on" }, 0, NULL, NULL,
          ENOTSUP, "no zeroed grains" },
        { { "subformat=vmfsSparse" }, (UINT64_C(2) << 40) + 512, NULL, NULL,
          EFBIG, "2 TiB" },
        { { NULL }, VMDK_SIZE_MAX + 1, NULL, NULL, EFBIG, "too many" },
        { { NULL }, UINT64_MAX, NULL, NULL, EFBIG, "too many" },
        { { NULL }, 0, "a\"b", NULL, EINVAL, "cannot hold" },
        { { NULL }, 0, "a", "qcow2", EINVAL, "must be a vmdk" },
        { { "uuid=12" }, 0, NULL, NULL, EINVAL, "32 hexadecimal" },
        { { "cid=-1" }, 0, NULL, NULL, EINVAL, "cid is up to 8" },
        { { "parent_cid=0x1" }, 0, NULL, NULL, EINVAL,
          "parent_cid is up to 8" },
    };
    struct vmdk_options o;

    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        int r = parse(rows[i].set, rows[i].size, rows[i].backing,
                      rows[i].fmt, &o);

        if (r != -rows[i].want)
            fail_msg("row %zu: %d, %s", i, r, err.message);
        assert_says(rows[i].words);
    }
    /* An empty name is none. */
    assert_ok(parse((const char *const[]){ "subformat=vmfs", NULL }, 512, "",
                    "qcow2", &o), err);
    assert_null(o.backing);
}

/* IDs that follow from the settings: equal for equal ones, else not. */
static void test_derived(void **state)
{
    static const char *const sets[][SETTINGS] = {
        { "uuid=derived" }, { "uuid=derived:a" }, { "uuid=derived:b" },
        { "uuid=derived:a", "zeroed_grain=on" },
        { "uuid=derived:a", "hwversion=9" }, { "uuid=" },
        { "uuid=derived", "parent_cid=1" },
    };
    struct vmdk_options o[IMG_COUNT(sets)], again, other;

    for (size_t i = 0; i < IMG_COUNT(sets); i++) {
        assert_ok(parse(sets[i], 1 << 20, NULL, NULL, &o[i]), err);
        assert_ok(parse(sets[i], 1 << 20, NULL, NULL, &again), err);
        assert_string_equal(again.uuid, o[i].uuid);
        assert_int_equal(again.cid, o[i].cid);
        assert_int_equal(strlen(o[i].uuid), 47);
        assert_int_equal(o[i].uuid[18], '8');   /* RFC 9562: version 8 */
        assert_ok(parse(sets[i], 2 << 20, NULL, NULL, &other), err);
        assert_string_not_equal(other.uuid, o[i].uuid);
        for (size_t k = 0; k < i; k++)
            assert_int_equal(!strcmp(o[i].uuid, o[k].uuid),
                             i == 5 && k == 0);
    }
    assert_ok(parse((const char *const[]){ "cid=derived", NULL }, 512, NULL,
                    NULL, &again), err);
    assert_ok(parse((const char *const[]){ "cid=derived:x", NULL }, 512,
                    NULL, NULL, &other), err);
    assert_int_not_equal(again.cid, other.cid);
    assert_string_equal(again.uuid, "");
    assert_int_equal(parse((const char *const[]){ "cid=derivedx", NULL },
                           512, NULL, NULL, &other), -EINVAL);
    assert_ok(parse((const char *const[]){ "uuid=00112233445566778899"
                    "AABBCCDDEEFF", "cid=12", NULL }, 512, NULL, NULL,
                    &other), err);
    assert_int_equal(other.cid, 0x12);
    assert_string_equal(other.uuid, "00 11 22 33 44 55 66 77-88 99 aa bb cc "
                        "dd ee ff");
    /* IDs that mean something else are not given. */
    assert_int_equal(img_vmdk_usable_cid(0), 1);
    assert_int_equal(img_vmdk_usable_cid(UINT32_MAX), 1);
    assert_int_equal(img_vmdk_usable_cid(UINT32_MAX - 1), 1);
    assert_int_equal(img_vmdk_usable_cid(UINT32_MAX - 2), UINT32_MAX - 2);
}

static void test_defaults(void **state)
{
    static const char *const set[] = {
        "zeroed_grain=on", "adapter_type=ide", "uuid=derived", NULL
    };
    static const char *const want[] = {
        "adapter_type=ide", "compat6=off", "hwversion=undefined",
        "uuid=derived", "zeroed_grain=on"
    };
    struct img_create_options opts = IMG_CREATE_OPTIONS;
    struct img_strings out = { 0 };

    opts.settings = set;
    assert_ok(img_vmdk_defaults(&opts, &out, &err), err);
    assert_int_equal(out.n, IMG_COUNT(want));
    for (size_t i = 0; i < out.n; i++)
        assert_string_equal(out.list[i], want[i]);
    img_strings_free(&out);
    opts.settings = (const char *const[]){ "subformat=x", NULL };
    assert_int_equal(img_vmdk_defaults(&opts, &out, &err), -EINVAL);
    assert_int_equal(out.n, 0);
}

static uint64_t three_clusters(void *opaque, uint32_t cluster)
{
    *(uint32_t *)opaque = cluster;
    return 3;
}

/* What measure says is enough for what create makes, and not much more. */
static void test_measure(void **state)
{
    static const struct { const char *set; uint64_t size, overhead_max;
                          uint32_t grain; } rows[] = {
        { "subformat=monolithicSparse", UINT64_C(10) << 30, 3 << 20, 65536 },
        { "subformat=vmfsSparse", UINT64_C(1) << 30, 9 << 20, 512 },
        { "subformat=streamOptimized", 5 << 20, 1 << 17, 65536 },
        { "subformat=monolithicFlat", (5 << 20) + 1, 0, 0 },
        { "subformat=twoGbMaxExtentFlat", UINT64_C(5) << 30, 0, 0 },
        { "subformat=vmfs", 512, 0, 0 },
    };

    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        struct img_create_options opts = IMG_CREATE_OPTIONS;
        const char *const set[] = { rows[i].set, NULL };
        uint64_t whole = img_round_up(rows[i].size, 512);
        struct img_measure m = { 0 };
        uint32_t grain = 0;

        opts.settings = set;
        assert_ok(img_vmdk_measure(&opts, rows[i].size, three_clusters,
                                   &grain, &m, &err), err);
        assert_int_equal(grain, rows[i].grain);
        assert_true(m.fully_allocated >= whole);
        if (!grain) {
            assert_int_equal(m.required, whole);
            assert_int_equal(m.fully_allocated, whole);
            continue;
        }
        assert_true(m.required > 3 * grain);
        assert_true(m.required <= 3 * grain + rows[i].overhead_max);
        assert_int_equal(m.fully_allocated - m.required,
                         img_round_up(whole, grain) - 3 * grain);
    }
}

/* ---- streams ------------------------------------------------------------- */

static uint64_t written;

static int count_bytes(void *opaque, const void *buf, size_t len,
                       struct img_error *e)
{
    written += len;
    return 0;
}

static int begin(const char *const *settings, uint64_t size, bool device,
                 struct img_sink **sink)
{
    struct img_create_options opts = IMG_CREATE_OPTIONS;
    struct img_build b = { .opts = &opts, .path = "-" };
    int r;

    opts.disk_size = size;
    opts.settings = settings;
    written = 0;
    memset(&err, 0, sizeof err);
    *sink = NULL;
    assert_ok(img_file_in_memory("s.vmdk", &b.file, &err), err);
    b.file->is_device = device;
    r = img_vmdk_sink.begin(&b, count_bytes, NULL, sink, &err);
    img_file_close(b.file);
    return r;
}

static void test_stream_refused(void **state)
{
    static char note[12000] = "ddb=note=";
    static const char *const stream[] = { "subformat=streamOptimized", NULL };
    const char *const noted[] = { stream[0], note, NULL };
    const char *const wrong[] = { stream[0], "ddb=x", NULL };
    struct img_sink *s;

    memset(note + 9, 'n', sizeof note - 10);
    assert_int_equal(begin(NULL, 512, false, &s), -ENOTSUP);
    assert_says("monolithicSparse is not written in one pass");
    assert_int_equal(begin((const char *const[]){ "cid=x", NULL }, 512,
                           false, &s), -EINVAL);
    assert_int_equal(begin(stream, 512, true, &s), -EINVAL);
    assert_says("cannot be written to a device");
    assert_int_equal(begin(stream, UINT64_C(1) << 60, false, &s), -EFBIG);
    assert_says("too many");
    assert_int_equal(begin(noted, 512, false, &s), -ENOSPC);
    assert_says("does not fit into 20 sectors");
    assert_int_equal(begin(wrong, 512, false, &s), -EINVAL);
    assert_says("NAME=VALUE");
    assert_int_equal(written, 0);
}

static void test_stream_order(void **state)
{
    static const char *const stream[] = { "subformat=streamOptimized", NULL };
    static const uint8_t grain[2 * 65536];
    static const struct { uint64_t off; size_t len; bool packed; int want; }
    rows[] = {
        { 65536, 65536, false, 0 },
        { 65536, 65536, false, EINVAL },        /* again */
        { 0, 65536, false, EINVAL },            /* behind */
        { 131072 + 512, 512, false, EINVAL },   /* within a grain */
        { 131072, 65537, false, EINVAL },       /* more than a grain */
        { 131072, 80000, true, EINVAL },        /* more than fits */
        { 131072, 100, true, 0 },
        { UINT64_C(3) << 25, 65536, false, EINVAL },    /* no such table */
        { UINT64_C(2) << 25, 512, false, 0 },   /* the last, short */
    };
    const struct img_sink_ops *ops = &img_vmdk_sink;
    struct img_sink *s;

    assert_ok(begin(stream, (UINT64_C(2) << 25) + 512, false, &s), err);
    assert_int_equal(ops->cluster_size(s), 65536);
    assert_int_equal(written, 65536);
    for (size_t i = 0; i < IMG_COUNT(rows); i++)
        assert_int_equal(ops->put(s, rows[i].off, grain, rows[i].len,
                                  rows[i].packed, &err), -rows[i].want);
    assert_ok(ops->finish(s, &err), err);
    /* Whole sectors: 3 grains, 2 tables with markers, directory with marker,
     * footer with marker and the end. */
    assert_int_equal(written % 512, 0);
    assert_true(written >= 65536 + 512 * (3 + 2 * 5 + 2 + 3));
    assert_true(written <= 65536 + 512 * (6 + 2 * 5 + 2 + 3));
    ops->free(s);
    ops->free(NULL);

    /* A disk of nothing. */
    assert_ok(begin(stream, 0, false, &s), err);
    assert_int_equal(ops->put(s, 0, grain, 512, false, &err), -EINVAL);
    assert_ok(ops->finish(s, &err), err);
    assert_int_equal(written, 65536 + 512 * 4);
    ops->free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_derived), cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_measure), cmocka_unit_test(test_stream_refused),
        cmocka_unit_test(test_stream_order),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
