/* What a crash leaves of a VDI, VMDK or qcow image.
 *
 * A layer is driven through the hooks of its format over a file that keeps a
 * log.  Then, many times: everything up to some fdatasync, and any sectors of
 * what was written behind it, make an image that must be sound (lost room is
 * fine) and show in every sector what was there at the last flush of the
 * layer, or what was written since.
 */
#include "unit.h"
#include "format.h"
#include "base/iov.h"
#include "cache/tcache.h"
#include "file/file.h"

#include <stdbool.h>

enum { SECTOR = 512, MAX_LOG = 20000, MAX_SIZE = 512 * 1024 };

static struct img_error err;

/* ---- a file with a log --------------------------------------------------- */

struct entry {
    enum { WRITE, CUT, SYNC } kind;
    uint64_t off, len;
    uint8_t *data;              /* NULL = zeros */
};

static struct entry entries[MAX_LOG];
static size_t n_entries;
static struct img_file *inner;

static void note(int kind, uint64_t off, uint64_t len,
                 const struct iovec *iov, int n)
{
    struct entry *e = &entries[n_entries++];

    assert_true(n_entries < MAX_LOG);
    *e = (struct entry){ kind, off, len, NULL };
    if (iov) {
        e->data = malloc(len);
        img_iov_gather(iov, n, 0, e->data, len);
    }
}

static int log_preadv(struct img_file *f, const struct iovec *iov, int n,
                      uint64_t off, struct img_error *e)
{
    return img_file_preadv(inner, iov, n, off, e);
}

static int log_pwritev(struct img_file *f, const struct iovec *iov, int n,
                       uint64_t off, struct img_error *e)
{
    note(WRITE, off, img_iov_total(iov, n), iov, n);
    return img_file_pwritev(inner, iov, n, off, e);
}

static int log_zero(struct img_file *f, uint64_t off, uint64_t len,
                    unsigned flags, struct img_error *e)
{
    note(WRITE, off, len, NULL, 0);
    return img_file_zero(inner, off, len, flags, e);
}

static int log_truncate(struct img_file *f, uint64_t size,
                        struct img_error *e)
{
    note(CUT, size, 0, NULL, 0);
    return img_file_truncate(inner, size, e);
}

static int log_sync(struct img_file *f, struct img_error *e)
{
    note(SYNC, 0, 0, NULL, 0);
    return 0;
}

static int log_size(struct img_file *f, uint64_t *size, struct img_error *e)
{
    return img_file_size(inner, size, e);
}

static void log_close(struct img_file *f)
{
}

static const struct img_file_ops log_ops = {
    .kind = "log", .preadv = log_preadv, .pwritev = log_pwritev,
    .zero = log_zero, .truncate = log_truncate, .sync = log_sync,
    .size = log_size, .close = log_close,
};

static struct img_file log_file = {
    .ops = &log_ops, .path = "image", .fd = -1, .writable = true, .align = 1,
};

/* ---- a layer over it ----------------------------------------------------- */

static void no_warning(struct img_layer *l, const char *fmt, ...)
{
}

static void layer_open(struct img_layer *l, const struct img_format *format,
                       struct img_file **file, bool writable, unsigned flags)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;

    o.flags = flags;
    *l = (struct img_layer){ .format = format, .path = "image",
                             .files = file, .n_files = 1,
                             .writable = writable, .warn = no_warning };
    assert_ok(img_tcache_new(1 << 20, &l->tables, &err), err);
    assert_ok(format->open(l, &o, &err), err);
}

static void layer_close(struct img_layer *l)
{
    if (l->writable && l->format->finish)
        assert_ok(l->format->finish(l, &err), err);
    l->format->close(l);
    img_tcache_free(l->tables);
    free(l->backing);
    free(l->backing_format);
}

static void layer_read(struct img_layer *l, struct img_file *file,
                       uint8_t *to, uint64_t size)
{
    struct img_run run;

    for (uint64_t at = 0; at < size; at += run.len) {
        assert_ok(l->format->map(l, at, size - at, 0, &run, &err), err);
        assert_true(run.len > 0 && run.len <= size - at);
        if (run.kind == IMG_RUN_DATA)
            assert_ok(img_file_pread(file, to + at, run.len, run.host, &err),
                      err);
        else
            memset(to + at, 0, run.len);
    }
}

/* As core does it: what is not written of a fresh place is filled with what
 * was there before. */
static void layer_write(struct img_layer *l, const uint8_t *shown,
                        uint64_t off, uint64_t len)
{
    while (len) {
        struct img_want want = { .off = off, .len = len };
        struct img_place p = { 0 };

        assert_ok(l->format->reserve(l, &want, &p, &err), err);
        if (p.fresh)
            assert_ok(img_file_pwrite(l->files[0], shown + p.fill_off,
                                      p.fill_len, p.host - (p.off -
                                      p.fill_off), &err), err);
        else
            assert_ok(img_file_pwrite(l->files[0], shown + off, p.len,
                                      p.host, &err), err);
        assert_ok(l->format->publish(l, &p, &err), err);
        off += p.len;
        len -= p.len;
    }
}

/* ---- a history ----------------------------------------------------------- */

/* What each sector has shown, with the length of the log before it did. */
struct version {
    size_t when;
    uint64_t sector;
    uint8_t value;              /* all its bytes; 0xff = anything goes */
};

static struct version versions[200000];
static size_t n_versions;
static size_t flushes[1000], n_flushes; /* lengths of the log behind them */

static void flush(struct img_layer *l)
{
    assert_ok(l->format->sync(l, &err), err);
    assert_true(n_flushes < IMG_COUNT(flushes));
    flushes[n_flushes++] = n_entries;
}

static void set(uint8_t *shown, uint64_t off, uint64_t len, uint8_t value)
{
    memset(shown + off, value, len);
    for (uint64_t s = off / SECTOR; s < (off + len) / SECTOR; s++) {
        assert_true(n_versions < IMG_COUNT(versions));
        versions[n_versions++] = (struct version){ n_entries, s, value };
    }
}

struct job {
    const struct img_format *format;
    const char *setting;
    uint64_t size;
    bool drops, resizes, compacts;
    bool tight;                 /* VDI: no room behind the map */
    bool small;                 /* VMDK: grains of 4 KiB */
};

static uint8_t *start(const struct job *job, struct img_layer *l,
                      size_t *first)
{
    static struct img_file *files[1];
    const char *settings[] = { job->setting, NULL };
    struct img_create_options o = IMG_CREATE_OPTIONS;
    struct img_build b = { .opts = &o, .path = "image", .file = &log_file };

    n_entries = n_versions = n_flushes = 0;
    assert_ok(img_file_in_memory("image", &inner, &err), err);
    o.disk_size = job->size;
    o.settings = settings;
    assert_ok(job->format->create(&b, &err), err);
    if (job->tight) {
        uint8_t at[4];

        img_put_le32(at, (1 << 20) + 512);
        assert_ok(img_file_pwrite(&log_file, at, 4, 344, &err), err);
    }
    if (job->small) {
        uint8_t grain[4];

        img_put_le32(grain, 8);
        assert_ok(img_file_pwrite(&log_file, grain, 4, 20, &err), err);
    }
    note(SYNC, 0, 0, NULL, 0);
    *first = n_entries;
    files[0] = &log_file;
    layer_open(l, job->format, files, true, 0);
    return calloc(1, job->size);
}

static void run(const struct job *job, uint64_t seed, size_t *first)
{
    struct img_layer l;
    uint8_t *shown = start(job, &l, first);
    const char *compact[] = { "compact=on", NULL };

    for (int i = 0; i < 120; i++) {
        uint64_t off = unit_random(&seed) % (job->size / SECTOR) * SECTOR;
        uint64_t len = (1 + unit_random(&seed) % 24) * SECTOR;
        uint64_t unit = l.block, done;
        unsigned what = unit_random(&seed) % 16;

        len = IMG_MIN(len, job->size - off);
        if (what < 10) {
            set(shown, off, len, (uint8_t)(1 + unit_random(&seed) % 200));
            layer_write(&l, shown, off, len);
        } else if (what == 10 && job->drops) {
            off = img_round_down(off, unit);
            len = IMG_MIN(unit, job->size - off);
            set(shown, off, len, 0);
            assert_ok(l.format->unmap(&l, off, len, IMG_UNMAP_DROP, &done,
                                      &err), err);
        } else if (what == 11 && job->compacts) {
            assert_ok(l.format->amend(&l, compact, NULL, &err), err);
        } else if (what == 12 && job->resizes) {
            if (job->tight)     /* the map has to move */
                assert_ok(l.format->resize(&l, 5 * job->size + l.size,
                                           IMG_PREALLOC_OFF, &err), err);
            if (job->tight)
                continue;
            /* Smaller and back: the tail becomes zeros. */
            set(shown, off, job->size - off, 0);
            if (off)
                assert_ok(l.format->resize(&l, off, IMG_PREALLOC_OFF, &err),
                          err);
            if (off)
                assert_ok(l.format->resize(&l, job->size, IMG_PREALLOC_OFF,
                                           &err), err);
            else
                layer_write(&l, shown, 0, job->size);
        } else if (what >= 13) {
            flush(&l);
        }
    }
    flush(&l);
    layer_close(&l);
    free(shown);
}

/* ---- crashes ------------------------------------------------------------- */

static void apply(struct img_file *f, const struct entry *e, uint64_t off,
                  uint64_t len)
{
    if (e->kind == CUT)
        assert_ok(img_file_truncate(f, e->off, &err), err);
    else if (e->kind == WRITE && e->data)
        assert_ok(img_file_pwrite(f, e->data + (off - e->off), len, off,
                                  &err), err);
    else if (e->kind == WRITE)
        assert_ok(img_file_zero(f, off, len, 0, &err), err);
}

/* Any sectors of a write may have reached the disk. */
static void apply_torn(struct img_file *f, const struct entry *e,
                       uint64_t *seed)
{
    uint64_t end = e->off + e->len;

    if (e->kind == CUT && unit_random(seed) % 2)
        apply(f, e, 0, 0);
    for (uint64_t at = e->off; e->kind == WRITE && at < end;) {
        uint64_t upto = IMG_MIN(end, at / SECTOR * SECTOR + SECTOR);

        if (unit_random(seed) % 2)
            apply(f, e, at, upto - at);
        at = upto;
    }
}

/* Was it there at the last flush before the crash, or written since? */
static bool may_show(uint64_t sector, const uint8_t *got, size_t crash)
{
    size_t i, flushed = 0;
    uint8_t last = 0;           /* at the flush */

    for (i = 0; i < n_flushes && flushes[i] <= crash; i++)
        flushed = flushes[i];

    for (i = 1; i < SECTOR; i++)
        if (got[i] != got[0])
            return false;
    for (i = 0; i < n_versions && versions[i].when < crash; i++) {
        if (versions[i].sector != sector)
            continue;
        if (versions[i].when < flushed)
            last = versions[i].value;
        else if (versions[i].value == got[0])
            return true;
    }
    return got[0] == last;
}

static unsigned found;

static void on_report(void *opaque, const char *message)
{
    if (!strncmp(message, "ERROR", 5) && found++ < 3)
        print_message("  %s\n", message);
}

static void examine(const struct job *job, struct img_file *f, size_t sync,
                    size_t crash)
{
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_check_result result = { 0 };
    uint8_t *got = calloc(1, job->size);
    struct img_layer l;

    /* It opens for writing, too. */
    layer_open(&l, job->format, &f, true, 0);
    l.writable = false;
    o.report = on_report;
    found = 0;
    assert_ok(l.format->check(&l, &o, NULL, &result, &err), err);
    if (result.errors)
        fail_msg("crash at %zu, synced up to %zu: %llu errors", crash, sync,
                 (unsigned long long)result.errors);
    layer_read(&l, f, got, IMG_MIN(l.size, job->size));
    for (uint64_t s = 0; s < job->size / SECTOR; s++)
        if (!may_show(s, got + s * SECTOR, crash))
            fail_msg("crash at %zu, synced up to %zu: sector %llu shows %02x",
                     crash, sync, (unsigned long long)s, got[s * SECTOR]);
    layer_close(&l);
    free(got);
}

static void crash_at(const struct job *job, size_t first, size_t crash,
                     uint64_t *seed)
{
    struct img_file *f;
    size_t sync = first;

    for (size_t i = first; i < crash; i++)
        if (entries[i].kind == SYNC)
            sync = i + 1;
    assert_ok(img_file_in_memory("image", &f, &err), err);
    for (size_t i = 0; i < sync; i++)
        apply(f, &entries[i], entries[i].off, entries[i].len);
    for (size_t i = sync; i < crash; i++)
        apply_torn(f, &entries[i], seed);
    examine(job, f, sync, crash);
    img_file_close(f);
}

static void test_job(const struct job *job, int runs)
{
    uint64_t seed = 42;

    for (int i = 0; i < runs; i++) {
        size_t first;

        run(job, (uint64_t)i + 1, &first);
        for (size_t crash = first; crash <= n_entries; crash++)
            crash_at(job, first, crash, &seed);
        while (n_entries)
            free(entries[--n_entries].data);
        img_file_close(inner);
    }
}

static void test_vdi(void **state)
{
    struct job j = {
        .format = img_format_find("vdi"), .setting = "block_size=2048",
        .size = 64 * 1024,
    };

    test_job(&j, 3);
}

static void test_vdi_dropping(void **state)
{
    struct job j = {
        .format = img_format_find("vdi"), .setting = "block_size=1024",
        .size = 64 * 1024, .drops = true, .compacts = true,
    };

    test_job(&j, 3);
}

static void test_vdi_resizing(void **state)
{
    struct job j = {
        .format = img_format_find("vdi"), .setting = "block_size=1024",
        .size = 64 * 1024, .drops = true, .resizes = true, .compacts = true,
    };

    test_job(&j, 3);
}

static void test_vdi_moving_map(void **state)
{
    struct job j = {
        .format = img_format_find("vdi"), .setting = "block_size=1024",
        .size = 64 * 1024, .drops = true, .resizes = true, .tight = true,
    };

    test_job(&j, 4);
}

static void test_qcow(void **state)
{
    struct job j = {
        .format = img_format_find("qcow"), .setting = "cluster_size=512",
        .size = 512 * 1024, .drops = true,
    };

    test_job(&j, 3);
}

static void test_qcow_resizing(void **state)
{
    struct job j = {
        .format = img_format_find("qcow"), .setting = "cluster_size=512",
        .size = 512 * 1024, .drops = true, .resizes = true,
    };

    test_job(&j, 2);
}

static void test_vmdk(void **state)
{
    struct job j = {
        .format = img_format_find("vmdk"), .setting = "zeroed_grain=off",
        .size = 256 * 1024, .small = true,
    };

    test_job(&j, 3);
    j.setting = "zeroed_grain=on";
    j.drops = true;
    test_job(&j, 3);
}

static void test_vmdk_resizing(void **state)
{
    struct job j = {
        .format = img_format_find("vmdk"), .setting = "zeroed_grain=off",
        .size = 256 * 1024, .drops = true, .resizes = true, .small = true,
    };

    test_job(&j, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vdi),
        cmocka_unit_test(test_vdi_dropping),
        cmocka_unit_test(test_vdi_resizing),
        cmocka_unit_test(test_vdi_moving_map),
        cmocka_unit_test(test_vmdk),
        cmocka_unit_test(test_vmdk_resizing),
        cmocka_unit_test(test_qcow),
        cmocka_unit_test(test_qcow_resizing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
