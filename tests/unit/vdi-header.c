/* VDI: headers of others, UUIDs as text, what create refuses, what check
 * says. */
#include "vdi-image.h"
#include "vdi/vdi.h"

enum { B = 4096 };

static void test_uuid_texts(void **state)
{
    static const char *const bad[] = {
        "", "0", "0123456789ab-cdef-0123-456789abcdef0000",
        "01234567-89ab-cdef-0123-456789abcde",
        "01234567-89ab-cdef-0123-456789abcdef0",
        "01234567-89ab-cdef-0123-456789abcde ",
        "01234567-89ab-cdef-0123_456789abcdef",
        "0123456g-89ab-cdef-0123-456789abcdef",
        "0123456G-89ab-cdef-0123-456789abcdef",
        "/1234567-89ab-cdef-0123-456789abcdef",
        ":1234567-89ab-cdef-0123-456789abcdef",
        "@1234567-89ab-cdef-0123-456789abcdef",
        "`1234567-89ab-cdef-0123-456789abcdef",
        "{01234567-89ab-cdef-0123-456789abcdef",
        "{01234567-89ab-cdef-0123-456789abcdef}x",
        "{01234567-89ab-cdef-0123-456789abcdefx",
        "01234567-89ab-cdef-0123-456789abcdef}",
    };
    uint8_t uuid[16];
    bool given;

    for (size_t i = 0; i < IMG_COUNT(bad); i++) {
        char text[80];
        const char *settings[] = { text, NULL };

        snprintf(text, sizeof text, "parent_uuid=%s", bad[i]);
        assert_int_equal(img_vdi_uuid_setting(settings, "parent_uuid", uuid,
                                              &given, &err), -EINVAL);
        assert_true(given);
        assert_says("expects a UUID");
        assert_says(bad[i]);
    }
    assert_ok(img_vdi_uuid_setting((const char *[]){
        "u={ABCDEF01-2345-6789-abcd-ef0123456789}", NULL }, "u", uuid,
        &given, &err), err);
    assert_memory_equal(uuid, "\x01\xef\xcd\xab\x45\x23\x89\x67\xab\xcd\xef"
                              "\x01\x23\x45\x67\x89", 16);
    assert_ok(img_vdi_uuid_setting(NULL, "u", uuid, &given, &err), err);
    assert_false(given);
}

/* A UUID that follows from the shape and a word, at birth and later. */
static void test_derived(void **state)
{
    static const char *const same[] = { "uuid=", "uuid=derived",
                                        "uuid=derived:" };
    uint8_t first[16], uuid[16];

    for (size_t i = 0; i < 6; i++) {
        const char *setting = i < 3 ? same[i] : i == 3 ? "uuid=derived:a" :
                              i == 4 ? "uuid=derived:b" : same[1];
        int fd;

        assert_ok(make("d.vdi", "vdi", i == 5 ? 3 << 20 : 2 << 20, NULL, NULL,
                       0, i % 2 ? NULL : setting), err);
        if (i % 2) {
            struct img_disk *d = open_as("d.vdi", "vdi", IMG_OPEN_WRITE);

            assert_ok(img_amend(d, (const char *[]){ setting, NULL }, NULL,
                                &err), err);
            assert_ok(img_close(d, &err), err);
        }
        fd = open(in_folder("d.vdi"), O_RDONLY);
        assert_int_equal(pread(fd, uuid, 16, 392), 16);
        close(fd);
        assert_int_equal(uuid[7] >> 4, 8);
        assert_int_equal(uuid[8] >> 6, 2);
        if (i == 0)
            memcpy(first, uuid, 16);
        assert_int_equal(!memcmp(first, uuid, 16), i < 3);
        memcpy(first, uuid, i == 3 ? 16 : 0);
    }
    assert_int_equal(make("d.vdi", "vdi", 1 << 20, NULL, NULL, 0,
                          "uuid=deriving"), -EINVAL);
    assert_says("deriving");
}

/* ---- creating ------------------------------------------------------------- */

static void test_create_refused(void **state)
{
    static const struct { const char *setting; int code; const char *words; }
    rows[] = {
        { "block_size=3000", EINVAL, "power of two from 512 to 64M" },
        { "block_size=256", EINVAL, "power of two" },
        { "block_size=128M", EINVAL, "power of two" },
        { "block_size=0", EINVAL, "power of two" },
        { "block_size=big", EINVAL, "'block_size'" },
        { "block_size=512", EFBIG, "use a larger block_size" },
        { "static=maybe", EINVAL, "'static'" },
        { "compact=on", EINVAL, "for existing images" },
        { "modification_uuid=01234567-89ab-cdef-0123-456789abcdef", EINVAL,
          "for existing images" },
        { "parent_modification_uuid=01234567-89ab-cdef-0123-456789abcdef",
          EINVAL, "needs parent_uuid" },
        { "parent_modification_uuid=0", EINVAL, "expects a UUID" },
        { "parent_uuid=0", EINVAL, "expects a UUID" },
        { "uuid=0", EINVAL, "expects a UUID" },
        { "shape=round", EINVAL, "no option 'shape'" },
    };

    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        assert_int_equal(make("no.vdi", "vdi", UINT64_C(1) << 40, NULL, NULL,
                              0, rows[i].setting), -rows[i].code);
        assert_says(rows[i].words);
        assert_int_equal(access(in_folder("no.vdi"), F_OK), -1);
    }
    assert_int_equal(make("no.vdi", "vdi", INT64_MAX, NULL, NULL, 0, NULL),
                     -EFBIG);
}

/* What create and measure would use. */
static void test_resolve(void **state)
{
    const char *settings[] = { "block_size=65536", "static=yes", NULL };
    struct img_create_options o = IMG_CREATE_OPTIONS;
    struct img_measure m;
    char **got;

    o.format = "vdi";
    o.disk_size = 10 << 20;
    o.settings = settings;
    assert_ok(img_create_resolve(in_folder("m.vdi"), &o, &got, &err), err);
    assert_non_null(got[0]);
    for (char **p = got; *p; p++)
        if (!strncmp(*p, "static=", 7))
            assert_string_equal(*p, "static=on");
    img_settings_free(got);
    assert_ok(img_measure(NULL, &o, &m, &err), err);
    assert_int_equal(m.required, (2 << 20) + (10 << 20));
    assert_int_equal(m.fully_allocated, m.required);
    settings[1] = NULL;
    assert_ok(img_measure(NULL, &o, &m, &err), err);
    assert_int_equal(m.required, 2 << 20);
    assert_int_equal(m.fully_allocated, (2 << 20) + (10 << 20));
    o.disk_size = UINT64_MAX;
    assert_int_equal(img_measure(NULL, &o, &m, &err), -EFBIG);
    o.disk_size = 10 << 20;
    settings[0] = "block_size=1";
    assert_int_equal(img_measure(NULL, &o, &m, &err), -EINVAL);
}

/* ---- headers of others ------------------------------------------------------ */

static void test_more_refused(void **state)
{
    static const struct { unsigned at; uint32_t value; int code;
                          const char *words; } rows[] = {
        { 376, 256, ENOTSUP, "blocks of 256 bytes" },
        { 380, 8192, ENOTSUP, "8192 extra bytes" },
        { 384, 500, IMG_ECORRUPT, NULL },
    };
    static const uint32_t map[] = { 0, FREE };
    struct shape s = { SHAPE };

    s.size = 2 * B;
    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        build_vdi("bad.vdi", &s, map, NULL);
        poke32("bad.vdi", rows[i].at, rows[i].value);
        if (!rows[i].words) {           /* the map ends behind the file */
            assert_int_equal(truncate(in_folder("bad.vdi"), 1024), 0);
            assert_int_equal(try_open("bad.vdi", "vdi", 0), -IMG_ECORRUPT);
            assert_says("goes beyond the end of the file (1024)");
            continue;
        }
        assert_int_equal(try_open("bad.vdi", "vdi", 0), -rows[i].code);
        assert_says(rows[i].words);
    }
    assert_int_equal(truncate(in_folder("bad.vdi"), 511), 0);
    assert_int_equal(try_open("bad.vdi", "vdi", 0), -EINVAL);
    assert_says("511 bytes are too short");
}

static void test_probe(void **state)
{
    static const uint32_t map[] = { FREE };
    struct shape s = { SHAPE };
    const char *format;

    s.size = B;
    s.text = "a text of another writer";
    build_vdi("probe", &s, map, NULL);
    assert_ok(img_probe(in_folder("probe"), &format, &err), err);
    assert_string_equal(format, "vdi");
    assert_int_equal(truncate(in_folder("probe"), 71), 0);
    assert_ok(img_probe(in_folder("probe"), &format, &err), err);
    assert_string_equal(format, "raw");
}

/* A comment is shown as UTF-8 without control characters, whatever it is. */
static void test_comment(void **state)
{
    static const struct { const char *raw, *shown; } rows[] = {
        { "plain text", "plain text" },
        { "tab\there, \x7f and \x1b[2J", "tab?here, ? and ?[2J" },
        { "\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80",
          "\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80" },
        { "\xc3(", "?(" },              /* no continuation */
        { "\xc1\x81", "??" },           /* too long a form */
        { "\xe0\x80\x80.", "???." },
        { "\xe0\xa0\x80.", "\xe0\xa0\x80." },
        { "\xed\xa0\x80.", "???." },    /* half of a surrogate pair */
        { "\xed\x9f\xbf.", "\xed\x9f\xbf." },
        { "\xf0\x80\x80\x80.", "????." },
        { "\xf0\x90\x80\x80.", "\xf0\x90\x80\x80." },
        { "\xf4\x90\x80\x80.", "????." },   /* beyond U+10FFFF */
        { "\xf4\x8f\xbf\xbf.", "\xf4\x8f\xbf\xbf." },
        { "\xf5\x80\x80\x80.", "????." },
        { "\x80", "?" },
        { "\xff", "?" },
        { "\xe2\x82", "??" },           /* ends too early */
        { "", NULL },
    };
    static const uint32_t map[] = { FREE };
    char full[257];

    for (size_t i = 0; i <= IMG_COUNT(rows); i++) {
        struct shape s = { SHAPE };
        const char *raw, *shown, *got = NULL;
        struct img_info *info;
        struct img_disk *d;

        memset(full, 'x', 256);         /* no end but the field's */
        full[256] = 0;
        raw = i < IMG_COUNT(rows) ? rows[i].raw : full;
        shown = i < IMG_COUNT(rows) ? rows[i].shown : full;
        s.size = B;
        build_vdi("comment.vdi", &s, map, NULL);
        poke("comment.vdi", 84, raw, strlen(raw));
        d = open_as("comment.vdi", "vdi", 0);
        assert_ok(img_info_get(d, &info, &err), err);
        for (size_t k = 0; k < info->specific->n_items; k++)
            if (!strcmp(info->specific->items[k].name, "comment"))
                got = info->specific->items[k].text;
        if (shown)
            assert_string_equal(got, shown);
        else
            assert_null(got);
        img_info_free(info);
        assert_ok(img_close(d, &err), err);
    }
}

/* ---- checking ------------------------------------------------------------- */

static char said[2000];

static void on_report(void *opaque, const char *text)
{
    size_t n = strlen(said);

    snprintf(said + n, sizeof said - n, "%s\n", text);
}

static int check_as(const char *name, unsigned open_flags, unsigned repair,
                    int last, struct img_check_result *r)
{
    struct calls c = { 0, last };
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_job job = IMG_JOB;
    struct img_disk *d = open_as(name, "vdi", open_flags);
    int ret;

    *said = 0;
    o.repair = repair;
    o.report = on_report;
    job.progress = count_calls;
    job.opaque = &c;
    memset(r, 0, sizeof *r);
    memset(&err, 0, sizeof err);
    ret = img_check(d, &o, &job, r, &err);
    img_close(d, NULL);
    return ret;
}

static void assert_said(const char *words)
{
    if (!strstr(said, words))
        fail_msg("\"%s\" does not say \"%s\"", said, words);
}

static void test_check_says(void **state)
{
    /* 1 and 2 in one place, 4 nowhere, place 2 lost; and entries of blocks
     * that the disk does not have. */
    static const uint32_t map[] = { 0, 1, 1, FREE, 77, 3, 4 };
    struct img_check_result r;
    struct shape s = { SHAPE };
    uint8_t flat[5 * B] = { 0 };

    s.size = 5 * B;
    s.blocks = 7;
    s.count = 3;
    build_vdi("c.vdi", &s, map, flat);
    assert_int_equal(truncate(in_folder("c.vdi"), B + 5 * B), 0);
    assert_ok(check_as("c.vdi", 0, 0, 0, &r), err);
    assert_int_equal(r.errors, 3);
    assert_int_equal(r.leaks, 0);
    assert_said("ERROR block map, entry 2: block 1 is in use by another");
    assert_said("ERROR block map, entry 4: block 77 lies beyond the end");
    assert_said("ERROR header: 3 blocks are in use, but block 4 is among");
    /* Leaks alone are not mended while there are errors. */
    assert_ok(check_as("c.vdi", IMG_OPEN_WRITE | IMG_OPEN_REPAIR,
                       IMG_REPAIR_LEAKS, 0, &r), err);
    assert_int_equal(r.errors, 3);
    assert_int_equal(r.errors_fixed, 0);
    poke32("c.vdi", 388, 9);
    assert_ok(check_as("c.vdi", IMG_OPEN_WRITE | IMG_OPEN_REPAIR,
                       IMG_REPAIR_LEAKS, 0, &r), err);
    assert_int_equal(r.errors, 2);
    assert_int_equal(r.leaks, 5);
    assert_int_equal(r.leaks_fixed, 0);
    assert_int_equal(header32("c.vdi", 388), 9);
    assert_int_equal(check_as("c.vdi", 0, IMG_REPAIR_ALL, 0, &r), -EROFS);
    assert_int_equal(check_as("c.vdi", 0, 0, 1, &r), -ECANCELED);
    assert_ok(check_as("c.vdi", IMG_OPEN_WRITE | IMG_OPEN_REPAIR,
                       IMG_REPAIR_ALL, 0, &r), err);
    assert_int_equal(r.errors, 0);
    assert_int_equal(r.errors_fixed, 2);
    assert_int_equal(r.leaks_fixed, 5);
    assert_said("Repairing block map, entry 2");
    assert_said("Repairing header: 9 blocks are in use, but the map has 4");
    memset(flat + 4 * B, 0, B);
    assert_holds("c.vdi", flat, 5 * B);
    /* A sound one has nothing to be mended. */
    assert_ok(check_as("c.vdi", IMG_OPEN_WRITE | IMG_OPEN_REPAIR,
                       IMG_REPAIR_ALL, 0, &r), err);
    assert_string_equal(said, "");
    assert_int_equal(r.errors_fixed, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_uuid_texts),
        cmocka_unit_test(test_derived),
        cmocka_unit_test(test_create_refused),
        cmocka_unit_test(test_resolve),
        cmocka_unit_test(test_more_refused),
        cmocka_unit_test(test_probe),
        cmocka_unit_test(test_comment),
        cmocka_unit_test(test_check_says),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
