/* qcow2 from front to back: what comes out is the image that was planned, or
 * an error; and version 3 to 2 when the user stops it. */
#include "qcow2-layer.h"
#include "base/runs.h"

enum { UNITS = 90 };

struct out {
    struct img_file *file;
    uint64_t len;
    unsigned left;              /* calls until one fails; 0 = none does */
};

static int take(void *opaque, const void *buf, size_t len,
                struct img_error *e)
{
    struct out *o = opaque;

    if (o->left && !--o->left)
        return img_fail(e, ENOSPC, "the output is full");
    assert_ok(img_file_pwrite(o->file, buf, len, o->len, &err), err);
    o->len += len;
    return 0;
}

static enum img_content kind_of(unsigned unit)
{
    if (unit % 7 < 3)
        return IMG_CONTENT_DATA;
    return unit % 7 < 5 ? IMG_CONTENT_ZEROS : IMG_CONTENT_NONE;
}

enum wrong { NOTHING, TOO_FEW, BACKWARDS, PACKED };

/* Everything that is put, in units of a cluster; the last one is short. */
static int put_all(struct img_sink *s, uint32_t cluster, enum wrong wrong)
{
    uint8_t *data = malloc(cluster);
    int r = 0;

    for (unsigned i = 0; i < UNITS && r == 0; i++) {
        size_t len = i == UNITS - 1 ? 512 : cluster;
        uint64_t off = (uint64_t)i * cluster;

        memset(data, (int)i + 1, cluster);
        if (wrong == TOO_FEW && i == 1)
            continue;
        if (wrong == BACKWARDS && i == 2)
            off -= cluster;
        if (kind_of(i) == IMG_CONTENT_DATA)
            r = img_qcow2.sink->put(s, off, data, len,
                                    wrong == PACKED && i == 2, &err);
        else if (kind_of(i) == IMG_CONTENT_ZEROS)
            r = img_qcow2.sink->put(s, off, NULL, len, false, &err);
    }
    free(data);
    return r;
}

static int stream(struct out *o, uint32_t cluster, const char *const *settings,
                  enum wrong wrong)
{
    struct img_create_options opts = IMG_CREATE_OPTIONS;
    struct img_build b = { .opts = &opts, .path = "stream" };
    struct img_runs plan = { .most = 1 << 20 };
    struct img_sink *s = NULL;
    int r;

    opts.disk_size = (uint64_t)(UNITS - 1) * cluster + 512;
    opts.settings = settings;
    r = img_qcow2.sink->begin(&b, take, o, &s, &err);
    if (r < 0)
        return r;
    assert_int_equal(img_qcow2.sink->cluster_size(s), cluster);
    for (unsigned i = 0; i < UNITS; i++)
        assert_ok(img_runs_add(&plan, 1, kind_of(i), &err), err);
    assert_ok(img_runs_end(&plan, &err), err);
    r = img_qcow2.sink->plan(s, &plan, &err);
    if (r == 0)
        r = put_all(s, cluster, wrong);
    if (r == 0)
        r = img_qcow2.sink->finish(s, &err);
    img_qcow2.sink->free(s);
    img_runs_free(&plan);
    return r;
}

static void begin(struct out *o, unsigned left)
{
    remove(in_folder("out"));
    assert_ok(img_file_open(in_folder("out"), IMG_FILE_WRITE |
                            IMG_FILE_CREATE, &o->file, &err), err);
    o->len = 0;
    o->left = left;
}

static void assert_shows(uint32_t cluster)
{
    uint8_t *data = malloc(cluster);
    struct img_disk *d = open_as("out", "qcow2", 0);

    assert_int_equal(img_size(d), (uint64_t)(UNITS - 1) * cluster + 512);
    for (unsigned i = 0; i < UNITS; i++) {
        size_t len = i == UNITS - 1 ? 512 : cluster;
        int byte = kind_of(i) == IMG_CONTENT_DATA ? (int)i + 1 : 0;

        assert_ok(img_pread(d, data, len, (uint64_t)i * cluster, &err),
                  err);
        for (size_t k = 0; k < len; k++)
            assert_int_equal(data[k], byte);
    }
    assert_ok(img_close(d, &err), err);
    assert_check("out", 0, true);
    free(data);
}

static void test_streams(void **state)
{
    static const struct { uint32_t cluster; const char *settings[3]; } rows[] =
    {
        { 512, { "cluster_size=512", "refcount_bits=64", NULL } },
        { 512, { "cluster_size=512", "compat=0.10", NULL } },
        { 4096, { "cluster_size=4k", "refcount_bits=1", NULL } },
        { 16384, { "cluster_size=16k", "extended_l2=on", NULL } },
        { 524288, { "cluster_size=512k", "compat=0.10", NULL } },
    };
    struct out o;

    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        unsigned fail = 1;
        int r;

        /* The n-th write fails, until there is none. */
        for (;; fail += fail / 4 + 1) {
            begin(&o, fail);
            r = stream(&o, rows[i].cluster, rows[i].settings, NOTHING);
            img_file_close(o.file);
            if (r == 0)
                break;
            assert_int_equal(r, -ENOSPC);
            assert_says("the output is full");
        }
        assert_true(fail > 1);
        assert_int_equal(o.len % rows[i].cluster, 0);
        assert_shows(rows[i].cluster);
    }
}

static void test_misuse(void **state)
{
    static const char *const v3[] = { "cluster_size=4k", NULL };
    static const char *const refused[][2] = {
        { "preallocation=metadata", NULL }, { "data_file=x", NULL },
        { "cluster_size=5", NULL },
    };
    static const int codes[] = { -ENOTSUP, -ENOTSUP, -EINVAL };
    struct out o;

    begin(&o, 0);
    assert_int_equal(stream(&o, 4096, v3, TOO_FEW), -EIO);
    assert_says("promised");
    assert_int_equal(stream(&o, 4096, v3, BACKWARDS), -EINVAL);
    assert_says("cannot be put at 4096");
    assert_int_equal(stream(&o, 4096, v3, PACKED), -EINVAL);
    img_file_close(o.file);
    begin(&o, 0);
    for (size_t i = 0; i < IMG_COUNT(refused); i++)
        assert_int_equal(stream(&o, 65536, refused[i], NOTHING), codes[i]);
    assert_int_equal(o.len, 0);
    img_file_close(o.file);
}

/* ---- version 3 to 2 ------------------------------------------------------- */

static int calls;

static int stop(void *opaque, uint64_t done, uint64_t total)
{
    return ++calls > *(int *)opaque;
}

/* Wherever it is stopped, the image is sound and shows the same. */
static void test_stopped(void **state)
{
    static const char *const settings[] = { "compat=0.10", NULL };
    static uint8_t data[200 << 10], got[sizeof data];
    struct img_job job = IMG_JOB;
    struct img_disk *d;
    int at = 0, r;

    memset(data, 3, sizeof data);
    assert_ok(make("base", "qcow2", sizeof data, NULL, NULL, 0, NULL), err);
    d = open_as("base", "qcow2", IMG_OPEN_WRITE);
    assert_ok(img_pwrite(d, data, sizeof data, 0, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_ok(make("top", "qcow2", 0, in_folder("base"), "qcow2", 0,
                   "cluster_size=4k"), err);
    d = open_as("top", "qcow2", IMG_OPEN_WRITE);
    assert_ok(img_zero(d, 8192, 65536, 0, &err), err);
    assert_ok(img_snapshot_create(d, "one", &err), err);
    assert_ok(img_zero(d, 102400, 40960, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    memset(data + 8192, 0, 65536);
    memset(data + 102400, 0, 40960);
    job.progress = stop;
    job.opaque = &at;
    for (;; at++) {
        calls = 0;
        d = open_as("top", "qcow2", IMG_OPEN_WRITE);
        r = img_amend(d, settings, &job, &err);
        assert_ok(img_pread(d, got, sizeof got, 0, &err), err);
        assert_memory_equal(got, data, sizeof got);
        assert_ok(img_close(d, &err), err);
        assert_check("top", 0, true);
        if (r == 0)
            break;
        assert_int_equal(r, -ECANCELED);
    }
    assert_true(at > 2);
    d = open_as("top", "qcow2", IMG_OPEN_WRITE);
    assert_ok(img_snapshot_apply(d, "one", &err), err);
    memset(data + 102400, 3, 40960);
    assert_ok(img_pread(d, got, sizeof got, 0, &err), err);
    assert_memory_equal(got, data, sizeof got);
    assert_ok(img_close(d, &err), err);
    assert_check("top", 0, true);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_misuse),
        cmocka_unit_test(test_stopped),
    };

    return cmocka_run_group_tests_name("qcow2-stream", tests, folder_set_up,
                                       folder_tear_down);
}
