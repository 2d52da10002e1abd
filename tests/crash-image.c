/* What a power cut leaves of an image.
 *
 * Random operations run on an image whose file keeps a log.  Then, many
 * times: any prefix of the log, and of what no sync covers any sectors of any
 * writes.  Each such state must open, have no errors but leaks, and show in
 * every sector what was there at the last flush that had returned, or what
 * was put there since.
 *
 * CRASH_STATES=n: how many states in all; CRASH_SEED=n: where to begin.
 */
#include "image-ops.h"
#include "unit/record_file.h"

struct op {
    const char *verb;
    size_t begun, ended;        /* length of the log */
    bool flush, discard;
    uint64_t first, n;          /* sectors */
    uint32_t tag;               /* what they hold then; 0 = zeros */
    uint32_t *became;           /* of a discard: each sector */
};

static struct op ops[MAX_OPS];
static int n_ops;
static uint32_t first_tags[MAX_SECTORS];
static uint64_t states, qemu_states, seed0 = 1, want_states = 4000;
static bool has_qemu;

/* ---- operations -------------------------------------------------------- */

static void one_op(struct img_disk *d, const struct config *c,
                   const struct record *r, uint64_t *seed, uint32_t tag)
{
    uint64_t all = c->size / SECTOR, per = c->cluster / SECTOR;
    uint32_t dice = unit_random(seed) % 100;
    struct op *op = &ops[n_ops++];
    uint64_t off, len;

    *op = (struct op){ .begun = r ? r->n : 0, .tag = tag };
    op->first = unit_random(seed) % all;
    op->n = unit_random(seed) % (dice % 3 ? per + 2 : 6 * per) + 1;
    if (dice % 4 == 0)
        op->first = img_round_down(op->first, per);
    op->n = IMG_MIN(op->n, all - op->first);
    if (dice >= 60 && dice < 75) {      /* packed: one whole cluster */
        op->first = img_round_down(op->first, per);
        op->n = IMG_MIN(per, all - op->first);
    }
    off = op->first * SECTOR;
    len = op->n * SECTOR;
    if (dice < 60) {
        op->verb = "write";
        fill_sectors(op->first, op->n, tag);
        assert_ok(img_pwrite(d, buf, len, off, 0, &err), err);
    } else if (dice < 75) {
        op->verb = "packed write";
        fill_sectors(op->first, op->n, tag);
        assert_ok(img_pwrite(d, buf, len, off, IMG_COMPRESS, &err), err);
    } else if (dice < 83) {
        op->verb = "zero";
        op->tag = 0;
        assert_ok(img_zero(d, off, len, dice & 1 ? IMG_MAY_UNMAP : 0, &err),
                  err);
    } else if (dice < 90) {
        op->verb = "discard";
        op->discard = true;
        assert_ok(img_discard(d, off, len, &err), err);
    } else {
        op->verb = "flush";
        op->flush = true;
        assert_ok(img_flush(d, &err), err);
    }
    op->ended = r ? r->n : 0;
    if (op->flush)
        return;
    if (op->discard) {
        assert_ok(img_pread(d, buf, c->size, 0, &err), err);
        op->became = calloc(op->n, sizeof *op->became);
        for (uint64_t s = op->first; s < op->first + op->n; s++) {
            uint32_t is = tag_of(s);

            assert_true(is == 0 || is == now_tags[s]);
            now_tags[s] = op->became[s - op->first] = is;
        }
    } else {
        for (uint64_t s = op->first; s < op->first + op->n; s++)
            now_tags[s] = op->tag;
    }
}

static void check_now(struct img_disk *d, const struct config *c)
{
    assert_ok(img_pread(d, buf, c->size, 0, &err), err);
    for (uint64_t s = 0; s < c->size / SECTOR; s++)
        if (tag_of(s) != now_tags[s])
            fail_msg("%s: sector %lu is %u, not %u", c->name,
                     (unsigned long)s, tag_of(s), now_tags[s]);
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

/* A flush since which nothing is certain, as an index of ops. */
static int last_flush(size_t n)
{
    int last = -1;

    for (int i = 0; i < n_ops; i++)
        if (ops[i].flush && ops[i].ended <= n)
            last = i;
    return last;
}

static bool is_allowed(uint64_t s, uint32_t tag, size_t n, int flush,
                       const uint32_t *flushed)
{
    if (tag == flushed[s])
        return true;
    for (int i = flush + 1; i < n_ops && ops[i].begun < n; i++)
        if (!ops[i].flush && s - ops[i].first < ops[i].n &&
            tag == (ops[i].discard ? 0 : ops[i].tag))
            return true;
    return false;
}

static void told(void *opaque, const char *message)
{
    if (!strncmp(message, "ERROR", 5))
        fprintf(stderr, "    %s\n", message);
}

static bool is_sound(const char *path, const struct config *c)
{
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_check_result result = { 0 };
    struct img_disk *d;
    int r;

    if (c->repair) {
        d = open_image(path, c, IMG_OPEN_WRITE | IMG_OPEN_REPAIR);
        o.repair = IMG_REPAIR_ALL;
        r = img_check(d, &o, NULL, &result, &err);
        img_close(d, NULL);
        if (r < 0)
            return false;
        o.repair = 0;
    }
    memset(&result, 0, sizeof result);
    d = open_image(path, c, 0);
    o.report = told;
    r = img_check(d, &o, NULL, &result, &err);
    img_close(d, NULL);
    return r == 0 && !result.errors && !result.check_errors;
}

static void keep_evidence(const char *path, const struct config *c,
                          const char *what, uint64_t seed, size_t n)
{
    char command[2 * PATH_MAX + 100];

    fprintf(stderr, "%s: %s; CRASH_SEED=%lu, after %zu changes\n", c->name,
            what, (unsigned long)seed, n);
    snprintf(command, sizeof command, "cp '%s' /tmp/crash-evidence.%s", path,
             c->format);
    if (system(command) != 0)
        fprintf(stderr, "no evidence\n");
    fail();
}

static void ask_qemu(const char *path, const struct config *c, uint64_t seed,
                     size_t n)
{
    char command[PATH_MAX + 100];
    int r;

    snprintf(command, sizeof command,
             "qemu-img check -q -f %s '%s' >/dev/null 2>&1", c->format, path);
    r = system(command);
    if (r != 0 && r != 3 << 8)
        keep_evidence(path, c, "qemu-img check finds errors", seed, n);
    qemu_states++;
}

static void check_state(const struct config *c, const struct record *r,
                        uint64_t seed, size_t n, unsigned percent)
{
    static uint32_t flushed[MAX_SECTORS];
    struct choice choice = { seed * 1000003 + n, percent };
    const char *path = in_scratch("state");
    int flush = last_flush(n), fd;
    struct img_disk *d;
    uint8_t *data;
    uint64_t len;

    assert_int_equal(record_state(r, 0, n, choose, &choice, &data, &len), 0);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0 && write(fd, data, len) == (ssize_t)len);
    close(fd);
    free(data);

    memcpy(flushed, first_tags, sizeof flushed);
    for (int i = 0; i < flush; i++)
        for (uint64_t s = ops[i].first; !ops[i].flush &&
             s < ops[i].first + ops[i].n; s++)
            flushed[s] = ops[i].discard ? ops[i].became[s - ops[i].first]
                                        : ops[i].tag;
    if (!is_sound(path, c))
        keep_evidence(path, c, "check finds errors", seed, n);
    d = open_image(path, c, 0);
    assert_ok(img_pread(d, buf, c->size, 0, &err), err);
    img_close(d, NULL);
    for (uint64_t s = 0; s < c->size / SECTOR; s++)
        if (!is_allowed(s, tag_of(s), n, flush, flushed)) {
            fprintf(stderr, "sector %lu is %u, was %u\n", (unsigned long)s,
                    tag_of(s), flushed[s]);
            keep_evidence(path, c, "wrong content", seed, n);
        }
    if (has_qemu && states % 300 == 0 && !c->repair)
        ask_qemu(path, c, seed, n);
    states++;
}

static void forget_ops(void)
{
    for (int i = 0; i < n_ops; i++)
        free(ops[i].became);
    n_ops = 0;
}

static void one_workload(const struct config *c, uint64_t seed, unsigned many)
{
    const unsigned percents[] = { 0, 10, 50, 90, 100 };
    uint64_t state = seed * 77 + 5;
    struct img_disk *d;
    struct record r;

    make_image(c);
    d = open_image(in_scratch("image"), c, IMG_OPEN_WRITE);
    forget_ops();
    for (uint32_t i = 0; i < seed % 30; i++)
        one_op(d, c, NULL, &state, 1000 + i);
    assert_ok(img_close(d, &err), err);
    memcpy(first_tags, now_tags, sizeof first_tags);

    d = open_image(in_scratch("image"), c, IMG_OPEN_WRITE);
    record_begin(&r);
    assert_int_equal(record_wrap(d->chain->layers[0]->files[0], &r), 0);
    forget_ops();
    for (uint32_t i = 0; i < 40; i++)
        one_op(d, c, &r, &state, 2000 + i);
    check_now(d, c);
    assert_ok(img_close(d, &err), err);
    for (unsigned i = 0; i < many; i++)
        check_state(c, &r, seed, unit_random(&state) % (r.n + 1),
                    percents[unit_random(&state) % IMG_COUNT(percents)]);
    record_end(&r);
}

static void test_crash(void **state)
{
    const struct config *c = *state;
    uint64_t until = states + want_states / IMG_COUNT(configs);

    make_base();
    for (uint64_t seed = seed0; states < until; seed++)
        one_workload(c, seed, 40);
}

static uint64_t number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);

    return text ? strtoull(text, NULL, 10) : otherwise;
}

int main(void)
{
    struct CMUnitTest tests[IMG_COUNT(configs)];
    int r;

    if (!getenv("TMPDIR") && access("/dev/shm", W_OK) == 0)
        setenv("TMPDIR", "/dev/shm", 1);
    seed0 = number("CRASH_SEED", seed0);
    want_states = number("CRASH_STATES", want_states);
    has_qemu = system("command -v qemu-img >/dev/null") == 0;
    for (size_t i = 0; i < IMG_COUNT(configs); i++)
        tests[i] = (struct CMUnitTest) {
            configs[i].name, test_crash, NULL, NULL, (void *)&configs[i]
        };
    r = cmocka_run_group_tests_name("crash", tests, scratch_begin,
                                    scratch_end);
    printf("%lu crash states, %lu of them given to qemu-img check\n",
           (unsigned long)states, (unsigned long)qemu_states);
    return r;
}
