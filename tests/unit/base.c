/* Settings as text, options of other versions, runs, teams: every way to
 * write each of them, and every way to get it wrong. */
#include "unit.h"
#include "base/info.h"
#include "base/options.h"
#include "base/runs.h"
#include "base/span.h"
#include "base/strings.h"
#include "base/team.h"

static struct img_error err;

static void assert_says(const char *words)
{
    if (!strstr(err.message, words))
        fail_msg("\"%s\" does not say \"%s\"", err.message, words);
}

/* ---- settings -------------------------------------------------------------- */

static void test_setting(void **state)
{
    static const char *const s[] = {
        "sizes=1", "siz=2", "size=3", "flag", "empty=", "size=4", NULL
    };

    assert_string_equal(img_setting(s, "size"), "4");   /* the last one */
    assert_string_equal(img_setting(s, "sizes"), "1");
    assert_string_equal(img_setting(s, "siz"), "2");
    assert_string_equal(img_setting(s, "flag"), "on");
    assert_string_equal(img_setting(s, "empty"), "");
    assert_null(img_setting(s, "si"));
    assert_null(img_setting(s, "flags"));
    assert_null(img_setting(NULL, "size"));
}

static void test_bool(void **state)
{
    static const struct { const char *text; int value; } rows[] = {
        { "b=on", 1 }, { "b=yes", 1 }, { "b=true", 1 }, { "b=y", 1 },
        { "b", 1 }, { "b=off", 0 }, { "b=no", 0 }, { "b=false", 0 },
        { "b=n", 0 }, { "b=", -1 }, { "b=1", -1 }, { "b=ON", -1 },
        { "b=one", -1 }, { "b=nope", -1 },
    };

    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        const char *s[] = { rows[i].text, NULL };
        bool before = i % 2, value = before;
        int r = img_setting_bool(s, "b", &value, &err);

        assert_int_equal(r, rows[i].value < 0 ? -EINVAL : 0);
        assert_int_equal(value, rows[i].value < 0 ? before : rows[i].value);
        if (r < 0)
            assert_says("Parameter 'b' expects 'on' or 'off'");
    }
}

static void test_size(void **state)
{
    static const struct { const char *text; uint64_t value; bool good; }
    rows[] = {
        { "0", 0, true }, { "1", 1, true }, { "1b", 1, true },
        { "010", 10, true }, { "0x10", 16, true }, { "0X1F", 31, true },
        { "0x10k", 16384, true }, { "3k", 3072, true }, { "3K", 3072, true },
        { "2m", 2 << 20, true }, { "2M", 2 << 20, true },
        { "1g", 1 << 30, true }, { "1T", UINT64_C(1) << 40, true },
        { "1P", UINT64_C(1) << 50, true }, { "1E", UINT64_C(1) << 60, true },
        { "15e", UINT64_C(15) << 60, true }, { "1.5k", 1536, true },
        { "1.25M", 1310720, true }, { "0.5G", 1 << 29, true },
        { "1.0", 1, true }, { "1.000", 1, true }, { "1.0b", 1, true },
        { "18446744073709551615", UINT64_MAX, true },
        { "0xffffffffffffffff", UINT64_MAX, true },
        { "18446744073709551616", 0, false }, { "16E", 0, false },
        { "15.9999999999999999999E", 0, false },
        { "17179869184G", 0, false }, { "1.5", 0, false },
        { "1.5b", 0, false }, { "1.", 0, false }, { "1.k", 0, false },
        { "1.-5k", 0, false }, { "", 0, false }, { "k", 0, false },
        { ".5k", 0, false }, { "-1", 0, false }, { "+1", 0, false },
        { " 1", 0, false }, { "1 ", 0, false }, { "1x", 0, false },
        { "1kb", 0, false }, { "1KiB", 0, false }, { "1e3", 0, false },
        { "0x", 0, false }, { "0xg", 0, false }, { "1k1", 0, false },
    };

    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        char text[64];
        const char *s[] = { text, NULL };
        uint64_t v = 77;

        snprintf(text, sizeof text, "s=%s", rows[i].text);
        if (rows[i].good) {
            assert_ok(img_setting_size(s, "s", &v, &err), err);
            assert_true(v == rows[i].value);
        } else {
            if (img_setting_size(s, "s", &v, &err) != -EINVAL)
                fail_msg("'%s' is %llu", text, (unsigned long long)v);
            assert_says("Parameter 's' expects a size");
        }
        v = 77;
        assert_ok(img_setting_size(s, "t", &v, &err), err);
        assert_int_equal(v, 77);
    }
}

static void test_number(void **state)
{
    static const struct { const char *text; uint64_t value; bool good; }
    rows[] = {
        { "0", 0, true }, { "12", 12, true }, { "0x1f", 31, true },
        { "010", 8, true }, { "18446744073709551615", UINT64_MAX, true },
        { "18446744073709551616", 0, false }, { "", 0, false },
        { "-1", 0, false }, { "+1", 0, false }, { " 1", 0, false },
        { "1k", 0, false }, { "x", 0, false },
    };

    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        char text[64];
        const char *s[] = { text, NULL };
        uint64_t v = 77;
        int r;

        snprintf(text, sizeof text, "n=%s", rows[i].text);
        r = img_setting_number(s, "n", &v, &err);
        assert_int_equal(r, rows[i].good ? 0 : -EINVAL);
        assert_true(v == (rows[i].good ? rows[i].value : 77));
        if (r < 0)
            assert_says("Parameter 'n' expects a number");
        assert_ok(img_setting_number(s, "m", &v, &err), err);
    }
}

static void test_choice(void **state)
{
    static const char *const names[] = { "off", "some", "all", NULL };
    static const char *const s[] = { "a=all", "b=none", "c=", NULL };
    unsigned v = 7;

    assert_ok(img_setting_choice(s, "z", names, &v, &err), err);
    assert_int_equal(v, 7);
    assert_ok(img_setting_choice(s, "a", names, &v, &err), err);
    assert_int_equal(v, 2);
    assert_int_equal(img_setting_choice(s, "b", names, &v, &err), -EINVAL);
    assert_says("Invalid parameter 'none' for 'b'");
    assert_int_equal(img_setting_choice(s, "c", names, &v, &err), -EINVAL);
    assert_int_equal(v, 2);
}

static void test_known(void **state)
{
    static const struct img_option_info known[] = {
        { "size", "size", "", 0 }, { "flag", "on|off", "", 0 },
        { NULL, NULL, NULL, 0 }
    };
    static const char *const good[] = { "size=1", "flag", "size=2", NULL };
    static const char *const bad[] = { "sizes", "siz=1", "=1", "", "fla" };

    assert_ok(img_settings_check(good, known, "f", &err), err);
    assert_ok(img_settings_check(NULL, known, "f", &err), err);
    assert_int_equal(img_settings_check(good, NULL, "f", &err), -EINVAL);
    for (size_t i = 0; i < IMG_COUNT(bad); i++) {
        const char *s[] = { "size=1", bad[i], NULL };

        assert_int_equal(img_settings_check(s, known, "f", &err), -EINVAL);
        assert_says("Format 'f' has no option '");
    }
}

/* ---- errors, options, spans -------------------------------------------------- */

static void test_one_line(void **state)
{
    assert_int_equal(img_fail(&err, EIO, "a\nb\rc\r\n"), -EIO);
    assert_string_equal(err.message, "a b c  ");
    assert_int_equal(img_fail_errno(NULL, EIO, "nobody hears"), -EIO);
}

struct small { size_t size, a; };
struct large { size_t size, a, b; char rest[8]; };

/* Programs that were built against older and newer headers. */
static void test_options(void **state)
{
    struct large l = { sizeof l, 1, 2, "" }, got;
    struct small s = { sizeof s, 3 }, small;
    size_t tiny = 4;

    assert_ok(img_options_take(&got, sizeof got, &l, &err), err);
    assert_int_equal(got.b, 2);
    assert_ok(img_options_take(&got, sizeof got, &s, &err), err);
    assert_int_equal(got.a, 3);
    assert_int_equal(got.b, 0);
    assert_int_equal(got.size, sizeof got);
    assert_ok(img_options_take(&got, sizeof got, NULL, &err), err);
    assert_int_equal(got.a, 0);
    assert_int_equal(got.size, sizeof got);
    assert_int_equal(img_options_take(&small, sizeof small, &l, &err),
                     -EINVAL);
    assert_says("an option is set that this version");
    l.b = 0;
    memset(l.rest, 0, sizeof l.rest);
    assert_ok(img_options_take(&small, sizeof small, &l, &err), err);
    assert_int_equal(small.a, 1);
    assert_int_equal(small.size, sizeof small);
    assert_int_equal(img_options_take(&small, sizeof small, &tiny, &err),
                     -EINVAL);
    assert_says("says that it has 4 bytes");
}

static void test_spans(void **state)
{
    const uint8_t b[] = { 1, 2, 3, 4, 5, 6, 7, 8, 9 };
    struct img_span s = { b, sizeof b };
    uint16_t v16 = 0;
    uint32_t v32 = 0;
    uint64_t v64 = 0;

    assert_true(img_span_be16(s, 7, &v16) && v16 == 0x0809);
    assert_false(img_span_be16(s, 8, &v16));
    assert_true(img_span_le16(s, 7, &v16) && v16 == 0x0908);
    assert_false(img_span_le16(s, 8, &v16));
    assert_true(img_span_le32(s, 5, &v32) && v32 == 0x09080706);
    assert_false(img_span_le32(s, 6, &v32));
    assert_true(img_span_be64(s, 1, &v64) &&
                v64 == UINT64_C(0x0203040506070809));
    assert_false(img_span_be64(s, 2, &v64));
    assert_true(img_span_le64(s, 1, &v64) &&
                v64 == UINT64_C(0x0908070605040302));
    assert_false(img_span_le64(s, SIZE_MAX - 2, &v64));
}

static void test_values(void **state)
{
    struct img_info *info = img_info_new();
    struct img_value *g = img_info_specific(info), *list;

    assert_non_null(img_value_bool(g, "yes", true));
    assert_non_null(img_value_uint(g, "number", UINT64_MAX));
    assert_non_null(img_value_text(g, "text", "words"));
    list = img_value_list(g, "list");
    assert_non_null(list);
    assert_non_null(img_value_text(list, NULL, "first"));
    assert_int_equal(g->n_items, 4);
    assert_true(g->items[0].flag);
    assert_true(g->items[1].number == UINT64_MAX);
    assert_string_equal(g->items[3].items[0].text, "first");
    assert_null(g->items[3].items[0].name);
    /* One failure makes those below it fail, too. */
    assert_null(img_value_bool(NULL, "x", true));
    assert_null(img_value_uint(NULL, "x", 1));
    assert_null(img_value_text(NULL, "x", "y"));
    assert_null(img_value_group(NULL, "x"));
    assert_ptr_equal(img_info_specific(info), g);
    assert_ok(img_info_text(&info->path, NULL, &err), err);
    assert_null(info->path);
    img_info_free(info);
    img_info_free(NULL);
}

/* ---- runs ----------------------------------------------------------------------- */

static void test_runs(void **state)
{
    static const uint64_t units[] = {
        1, 31, 32, 4095, 4096, UINT32_MAX, UINT64_MAX >> 2, 5
    };
    struct img_runs r = { .most = 4096 };
    struct img_runs_at at = { .runs = &r };
    size_t n = 0;

    assert_false(img_runs_more(&at));
    for (size_t i = 0; i < IMG_COUNT(units); i++) {
        if (units[i] > 1 && units[i] <= UINT32_MAX) {   /* in two parts */
            assert_ok(img_runs_add(&r, 1, i % 4, &err), err);
            assert_ok(img_runs_add(&r, units[i] - 1, i % 4, &err), err);
        } else {
            assert_ok(img_runs_add(&r, units[i], i % 4, &err), err);
        }
    }
    assert_int_equal(img_runs_add(&r, UINT64_MAX >> 2, 3, &err), -EFBIG);
    assert_says("too many units");
    assert_ok(img_runs_end(&r, &err), err);
    while (img_runs_more(&at)) {
        assert_true(n < IMG_COUNT(units));
        assert_true(at.left == units[n]);
        assert_int_equal(at.kind, n % 4);
        assert_true(img_runs_more(&at) && at.left == units[n]);
        at.left = 0;
        n++;
    }
    assert_int_equal(n, IMG_COUNT(units));
    img_runs_free(&r);

    /* No more bytes than are allowed. */
    r = (struct img_runs){ .most = 300 };
    n = 0;
    while (img_runs_add(&r, UINT64_C(1) << 50, n % 2, &err) == 0)
        assert_true(++n < 300);
    assert_says("takes more than 300 bytes");
    assert_true(r.n <= 300 && n > 30);
    img_runs_free(&r);
}

/* ---- teams ------------------------------------------------------------------------ */

static void test_team_size(void **state)
{
    struct img_job job = IMG_JOB;
    unsigned all = img_team_size(NULL, 1000, false);

    assert_true(all >= 1);
    assert_int_equal(img_team_size(NULL, 1, false), 1);
    assert_int_equal(img_team_size(NULL, 0, false), 1);
    assert_true(img_team_size(&job, 2, false) <= 2);
    assert_int_equal(img_team_size(&job, 1, true), 8);
    assert_int_equal(img_team_size(NULL, 1, true), 8);
    job.threads = 3;
    assert_int_equal(img_team_size(&job, 1, true), 3);
    job.threads = 1000000;
    assert_int_equal(img_team_size(&job, 1, false), 64);
}

struct work {
    int n, calls, last;
    uint64_t told;
};

static int one_step(struct img_team *team, void *opaque, unsigned worker,
                    struct img_error *e)
{
    struct work *w = opaque;

    if (!w->n)
        return 0;
    w->n--;
    img_team_add(team, 100);
    return 1;
}

static int bad_step(struct img_team *team, void *opaque, unsigned worker,
                    struct img_error *e)
{
    return img_fail(e, ENOSPC, "no room for %u", worker);
}

static int tell(void *opaque, uint64_t done, uint64_t total)
{
    struct work *w = opaque;

    assert_true(done <= total);
    w->told = done;
    return ++w->calls == w->last;
}

/* Alone, at a rate: it takes its time and tells how far it is. */
static void test_rate(void **state)
{
    struct work w = { .n = 12 };
    struct img_job job = IMG_JOB;
    struct timespec a, b;
    uint64_t ms;

    job.progress = tell;
    job.opaque = &w;
    job.bytes_per_second = 8000;        /* 1200 bytes: 150 ms */
    clock_gettime(CLOCK_MONOTONIC, &a);
    assert_ok(img_team_run(&job, 1, 1200, one_step, &w, &err), err);
    clock_gettime(CLOCK_MONOTONIC, &b);
    ms = (uint64_t)(b.tv_sec - a.tv_sec) * 1000 +
         (uint64_t)(b.tv_nsec / 1000000) - (uint64_t)(a.tv_nsec / 1000000);
    assert_true(ms >= 140);
    assert_true(w.calls >= 3);
    assert_int_equal(w.told, 1200);
    /* And stops when it is told so, before and on the way. */
    for (int last = 1; last < 3; last++) {
        w = (struct work){ .n = 100, .last = last };
        assert_int_equal(img_team_run(&job, 1, 10000, one_step, &w, &err),
                         -ECANCELED);
        assert_says("Stopped on request");
        assert_true(w.n > (last == 1 ? 99 : 50));
    }
}

static void test_team_fails(void **state)
{
    struct work w = { .last = 1 };
    struct img_job job = IMG_JOB;

    for (unsigned n = 1; n < 4; n += 2) {
        assert_int_equal(img_team_run(NULL, n, 1, bad_step, &w, &err),
                         -ENOSPC);
        assert_says("no room for ");
        assert_int_equal(img_team_run(NULL, n, 1, bad_step, &w, NULL),
                         -ENOSPC);
        assert_int_equal(img_team_run(&job, n, 1, bad_step, &w, &err),
                         -ENOSPC);
        assert_ok(img_team_run(&job, n, 1, one_step, &w, &err), err);
    }
    job.progress = tell;
    job.opaque = &w;
    w.n = 5;
    assert_int_equal(img_team_run(&job, 1, 1, one_step, &w, NULL),
                     -ECANCELED);
    assert_int_equal(w.n, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_setting),
        cmocka_unit_test(test_bool),
        cmocka_unit_test(test_size),
        cmocka_unit_test(test_number),
        cmocka_unit_test(test_choice),
        cmocka_unit_test(test_known),
        cmocka_unit_test(test_one_line),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_spans),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_runs),
        cmocka_unit_test(test_team_size),
        cmocka_unit_test(test_rate),
        cmocka_unit_test(test_team_fails),
    };

    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
