/* What a power cut leaves of a chain in the middle of commit or rebase.
 *
 * The operation runs on images whose files keep one log.  Then, many times:
 * any prefix of the log, and of what no sync covers any sectors of any
 * writes.  Each such state must open, be sound but for leaks, and show what
 * the top image showed before.  The operation, run again, must succeed and
 * leave what it leaves when nothing interrupts it.
 *
 * CRASH_CHAIN_STATES=n: how many states in all; CRASH_SEED=n: where to begin.
 */
#include "unit/unit.h"
#include "unit/scratch.h"
#include "record.h"
#include "shim.h"

#include <fcntl.h>

enum { SECTOR = 512 };
enum { TOP, MID, BASE, OTHER, N_FILES };
static const char *const names[N_FILES] = { "top", "mid", "base", "other" };

#define TEN(text) text text text text text text text text text text
#define LONG_NAME TEN("a-name-of-twenty-two-c")

enum what { COMMIT, COMMIT_KEEP, COMMIT_TWO, REBASE, REBASE_NONE, REBASE_LONG,
            REBASE_PACKED, N_WHATS };
static const char *const whats[N_WHATS] = {
    "commit", "commit -d", "commit -b", "rebase", "rebase to none",
    "rebase to a long name", "rebase -c"
};

static const struct shape {
    const char *name, *top_settings[3], *base_format;
    uint64_t base_size, top_size;
    uint32_t cluster;
} shapes[] = {
    { "64 KiB clusters over qcow2", { NULL }, "qcow2",
      1 << 20, 1 << 20, 65536 },
    { "4 KiB clusters over a short raw", { "cluster_size=4k" }, "raw",
      300 << 10, 512 << 10, 4096 },
    { "512-byte clusters over a short qcow2", { "cluster_size=512" }, "qcow2",
      60 << 10, 128 << 10, 512 },
    { "subclusters over a long raw",
      { "extended_l2=on", "cluster_size=16k" }, "raw",
      1 << 20, 400 << 10, 16384 },
    { "version 2", { "compat=0.10", "cluster_size=8k" }, "qcow2",
      512 << 10, 512 << 10, 8192 },
};

static uint8_t buf[2 << 20], before[2 << 20], now[2 << 20];
static struct img_error err;
static uint64_t states, want_states = 1400, seed0 = 1;
static bool has_qemu;

/* ---- the chain --------------------------------------------------------- */

static const char *at(const char *folder, const char *name)
{
    static char paths[8][PATH_MAX];
    static int next;
    char *path = paths[next++ % 8];

    snprintf(path, PATH_MAX, "%s/%s%s", scratch, folder, name);
    return path;
}

static struct img_disk *open_disk(const char *path, const char *format,
                                  unsigned flags)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_disk *d;

    o.flags = flags;
    o.format = format;
    assert_ok(img_open(path, &o, &d, &err), err);
    return d;
}

static void make(const char *name, const char *format, uint64_t size,
                 const char *base, const char *base_format,
                 const char *const *settings)
{
    struct img_create_options o = IMG_CREATE_OPTIONS;

    o.format = format;
    o.disk_size = size;
    o.has_size = true;
    o.settings = settings;
    o.backing = base;
    o.backing_format = base_format;
    o.flags = IMG_CREATE_NO_SYNC;
    assert_ok(img_create(at("", name), &o, &err), err);
}

static void scribble(const char *name, const char *format, uint64_t *seed,
                     int n, uint32_t cluster)
{
    struct img_disk *d = open_disk(at("", name), format,
                                   IMG_OPEN_WRITE | IMG_OPEN_NO_SYNC);
    uint64_t size = img_size(d);

    for (int i = 0; i < n; i++) {
        uint64_t off = unit_random(seed) % size / SECTOR * SECTOR;
        uint64_t len = (unit_random(seed) % (3 * cluster) / SECTOR + 1) *
                       SECTOR;

        len = IMG_MIN(len, size - off);
        memset(buf, (int)(unit_random(seed) % 255 + 1), len);
        if (unit_random(seed) % 5)
            assert_ok(img_pwrite(d, buf, len, off, 0, &err), err);
        else
            assert_ok(img_zero(d, off, len, IMG_MAY_UNMAP, &err), err);
    }
    assert_ok(img_close(d, &err), err);
}

static void make_chain(const struct shape *s, uint64_t *seed)
{
    make("base", s->base_format, s->base_size, NULL, NULL, NULL);
    scribble("base", s->base_format, seed, 12, s->cluster);
    make("mid", "qcow2", s->top_size, "base", s->base_format, NULL);
    scribble("mid", "qcow2", seed, 4, s->cluster);
    make("top", "qcow2", s->top_size, "mid", "qcow2", s->top_settings);
    scribble("top", "qcow2", seed, 12, s->cluster);
    make("other", "qcow2", s->top_size, NULL, NULL, NULL);
    scribble("other", "qcow2", seed, 10, s->cluster);
    unlink(at("", LONG_NAME));
    assert_int_equal(link(at("", "other"), at("", LONG_NAME)), 0);
}

/* ---- the operations ---------------------------------------------------- */

static unsigned commit_depth(enum what what)
{
    return what == COMMIT_TWO ? 2 : 1;
}

static bool is_commit(enum what what)
{
    return what <= COMMIT_TWO;
}

static int run(struct img_disk *d, enum what what)
{
    struct img_rebase_options o = IMG_REBASE_OPTIONS;
    struct img_job job = IMG_JOB;

    job.threads = 1;
    if (is_commit(what))
        return img_commit(d, commit_depth(what), what != COMMIT, &job, &err);
    o.backing = what == REBASE_NONE ? "" :
                what == REBASE_LONG ? LONG_NAME : "other";
    o.backing_format = what == REBASE_NONE ? NULL : "qcow2";
    o.compress = what == REBASE_PACKED;
    return img_rebase(d, &o, &job, &err);
}

static void read_all(const char *folder, const char *name,
                     const char *format, uint8_t *to, uint64_t size)
{
    struct img_disk *d = open_disk(at(folder, name), format, 0);

    assert_true(img_size(d) >= size);
    assert_ok(img_pread(d, to, size, 0, &err), err);
    img_close(d, NULL);
}

/* ---- states ------------------------------------------------------------ */

struct choice {
    uint64_t seed;
    unsigned percent;
};

static bool choose(void *opaque, size_t entry, int64_t sector)
{
    const struct choice *c = opaque;
    uint64_t mixed = c->seed + entry * 7919 + (uint64_t)sector * 104729;

    unit_random(&mixed);
    return unit_random(&mixed) % 100 < c->percent;
}

static void must(bool ok, const char *problem, const struct shape *s,
                 enum what what, uint64_t seed, size_t n)
{
    char command[2 * PATH_MAX];

    if (ok)
        return;
    snprintf(command, sizeof command, "rm -rf /tmp/crash-chain-evidence; "
             "cp -r '%s/state' /tmp/crash-chain-evidence", scratch);
    if (system(command) != 0)
        fprintf(stderr, "no evidence\n");
    fail_msg("%s, %s, CRASH_SEED=%lu, after %zu entries: %s (%s)", s->name,
             whats[what], (unsigned long)seed, n, problem, err.message);
}

static bool is_sound(const char *path)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_check_options c = IMG_CHECK_OPTIONS;
    struct img_check_result result = { 0 };
    struct img_disk *d;
    int r;

    o.flags = IMG_OPEN_NO_BACKING;
    o.format = "qcow2";
    if (img_open(path, &o, &d, &err) < 0)
        return false;
    r = img_check(d, &c, NULL, &result, &err);
    img_close(d, NULL);
    return r == 0 && !result.errors && !result.check_errors;
}

static bool shows(const char *name, const char *format, uint64_t size)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_disk *d;
    int r;

    o.format = format;
    if (img_open(at("state/", name), &o, &d, &err) < 0)
        return false;
    r = img_pread(d, now, size, 0, &err);
    img_close(d, NULL);
    return r == 0 && !memcmp(now, before, size);
}

static void write_state(const struct record *r, size_t n,
                        struct choice *choice)
{
    for (unsigned i = 0; i < N_FILES; i++) {
        struct record_point p;
        uint8_t *data;
        uint64_t len;
        int fd;

        record_point_begin(&p, r, i, n);
        record_state(&p, choose, choice, &data, &len);
        record_point_end(&p);
        fd = open(at("state/", names[i]), O_RDWR | O_CREAT | O_TRUNC, 0600);
        assert_true(fd >= 0 && write(fd, data, len) == (ssize_t)len);
        close(fd);
        free(data);
    }
    unlink(at("state/", LONG_NAME));
    assert_int_equal(link(at("state/", "other"), at("state/", LONG_NAME)), 0);
}

static void run_again(const struct shape *s, enum what what, uint64_t seed,
                      size_t n)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_disk *d;
    bool ok;

    o.flags = IMG_OPEN_WRITE | IMG_OPEN_FORCE;
    o.format = "qcow2";
    ok = img_open(at("state/", "top"), &o, &d, &err) == 0;
    must(ok, "does not open again", s, what, seed, n);
    ok = run(d, what) == 0;
    must(ok, "cannot be run again", s, what, seed, n);
    must(img_close(d, &err) == 0, "does not close", s, what, seed, n);
    must(is_sound(at("state/", "top")), "unsound when run again", s, what,
         seed, n);
    must(shows("top", "qcow2", s->top_size), "other content when run again",
         s, what, seed, n);
    if (what == COMMIT_TWO)
        must(shows("base", s->base_format, s->top_size),
             "not committed when run again", s, what, seed, n);
    else if (is_commit(what))
        must(shows("mid", "qcow2", s->top_size),
             "not committed when run again", s, what, seed, n);
}

static void ask_qemu(const struct shape *s, enum what what, uint64_t seed,
                     size_t n)
{
    char command[2 * PATH_MAX];
    int r;

    if (!has_qemu || states % 40)
        return;
    snprintf(command, sizeof command, "cd '%s/state' && qemu-img check -q -f "
             "qcow2 top >/dev/null 2>&1", scratch);
    r = system(command);
    must(r == 0 || r == 3 << 8, "qemu-img check finds errors", s, what, seed,
         n);
}

static void check_state(const struct shape *s, enum what what,
                        const struct record *r, uint64_t seed, size_t n,
                        unsigned percent)
{
    struct choice choice = { seed * 1000003 + n, percent };

    write_state(r, n, &choice);
    must(is_sound(at("state/", "top")), "unsound", s, what, seed, n);
    if (what == COMMIT || what == COMMIT_KEEP)
        must(is_sound(at("state/", "mid")), "mid is unsound", s, what, seed,
             n);
    must(shows("top", "qcow2", s->top_size), "other content", s, what, seed,
         n);
    ask_qemu(s, what, seed, n);
    run_again(s, what, seed, n);
    states++;
}

/* ---- one interrupted operation ----------------------------------------- */

static void one(const struct shape *s, enum what what, uint64_t seed,
                unsigned many)
{
    const unsigned percents[] = { 0, 10, 50, 90, 100 };
    uint64_t state = seed * 77 + 5;
    struct img_disk *d;
    struct record r;

    make_chain(s, &state);
    read_all("", "top", "qcow2", before, s->top_size);
    d = open_disk(at("", "top"), "qcow2", IMG_OPEN_WRITE | IMG_OPEN_FORCE);
    record_begin(&r);
    for (int i = 0; i < N_FILES; i++)
        assert_int_equal(record_watch(&r, at("", names[i])), i);
    shim_record = &r;
    assert_ok(run(d, what), err);
    assert_ok(img_close(d, &err), err);
    shim_record = NULL;
    for (unsigned i = 0; i < many; i++)
        check_state(s, what, &r, seed,
                    i == 0 ? r.n : unit_random(&state) % (r.n + 1),
                    percents[unit_random(&state) % IMG_COUNT(percents)]);
    record_end(&r);
}

static void test_shape(void **state)
{
    const struct shape *s = *state;
    uint64_t until = states + want_states / IMG_COUNT(shapes);

    mkdir(at("", "state"), 0700);
    for (uint64_t seed = seed0; states < until; seed++)
        for (int what = 0; what < N_WHATS; what++)
            one(s, (enum what)what, seed, 10);
}

static uint64_t number_of(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);

    return text ? strtoull(text, NULL, 10) : otherwise;
}

int main(void)
{
    struct CMUnitTest tests[IMG_COUNT(shapes)];
    int r;

    if (!getenv("TMPDIR") && access("/dev/shm", W_OK) == 0)
        setenv("TMPDIR", "/dev/shm", 1);
    seed0 = number_of("CRASH_SEED", seed0);
    want_states = number_of("CRASH_CHAIN_STATES", want_states);
    has_qemu = system("command -v qemu-img >/dev/null") == 0;
    for (size_t i = 0; i < IMG_COUNT(shapes); i++)
        tests[i] = (struct CMUnitTest) {
            shapes[i].name, test_shape, NULL, NULL, (void *)&shapes[i]
        };
    r = cmocka_run_group_tests_name("crash-chain", tests, scratch_begin,
                                    scratch_end);
    printf("%lu crash states\n", (unsigned long)states);
    return r;
}
