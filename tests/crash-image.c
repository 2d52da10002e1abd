/* What a power cut leaves of an image.
 *
 * A sequence of one to three operations (crash-ops.c) runs on an image all of
 * whose files keep a log.  Then, for every moment just before a sync and for
 * the end: everything that the syncs before it cover, and of the rest any
 * subset of the writes, each torn anywhere between its sectors, the files'
 * lengths apart.  Where few writes are open all subsets are tried, else random
 * ones.  Each state that was not seen before must open, have no errors but
 * leaks, and show in every sector what was there at the last flush that had
 * returned, or what was put there since; snapshots, the bitmap and the backing
 * file likewise (crash-judge.c).
 *
 *   CRASH_STATES=n    how many states in all
 *   CRASH_SEED=n      which sequences are taken, where it cannot be all
 *   CRASH_CONFIG=text only configs whose name contains it
 *   CRASH_WORKLOAD=n  only this sequence
 */
#include "crash.h"
#include "record.h"
#include "shim.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { EXHAUSTIVE = 12,         /* open writes: all subsets */
       EACH_POINT = 24 };       /* states at most, but for EXHAUSTIVE */

struct count {
    unsigned long states, workloads, qemu, dirty;
};

static struct count count;
static struct model steps[MAX_STEPS];
static struct {
    const struct operation *op;
    size_t begun, ended;        /* length of the log */
    int result;
} done[MAX_STEPS];
static int n_done;
static char work_dir[PATH_MAX], state_dir[PATH_MAX];
static bool has_qemu;

/* ---- running ----------------------------------------------------------- */

/* steps[i + 1] is what done[i] left. */
static void run_one(struct work *w, const struct operation *op,
                    const struct record *r)
{
    static const struct operation closing = { .name = "close",
                                              .how = SETTLES };
    int i = n_done++, ret;

    done[i].op = op ? op : &closing;
    done[i].begun = r->n;
    ret = op ? run_operation(w, op) : img_close(w->d, &w->err);
    if (ret < 0 && ret != -ENOTSUP)
        fail_msg("%s, %s: %s", w->c->name, done[i].op->name,
                 w->err.message);
    done[i].ended = r->n;
    done[i].result = ret;
    steps[i + 1] = w->m;
}

static void name_workload(const struct config *c, uint64_t number)
{
    fprintf(stderr, "%s, workload %lu:", c->name, (unsigned long)number);
    for (int i = 0; i < n_done; i++)
        fprintf(stderr, " [%s]", done[i].op->name);
    fputc('\n', stderr);
}

static void check_now(const struct config *c, const struct model *m,
                      uint64_t number)
{
    struct history h = { m, 0, 0, false };
    const char *wrong = judge_images(c, work_dir, &h);

    if (!wrong)
        return;
    name_workload(c, number);
    fail_msg("without a crash: %s", wrong);
}

static void run_workload(const struct config *c, uint64_t number,
                         const struct operation *const *ops, int n,
                         const struct model *first, struct record *r)
{
    static struct work w;

    memset(&w, 0, sizeof w);
    w.c = c;
    w.dir = work_dir;
    w.m = *first;
    w.tag = 1000;
    w.serial = 10;
    n_done = 0;
    steps[0] = *first;
    assert_ok(open_work(&w), w.err);
    shim_record = r;
    for (int i = 0; i < n; i++)
        run_one(&w, ops[i], r);
    run_one(&w, NULL, r);
    shim_record = NULL;
    check_now(c, &w.m, number);
}

/* ---- states ------------------------------------------------------------ */

struct choice {
    uint64_t seed;
    unsigned percent;           /* of the sectors are there */
    const size_t *open;         /* a subset of these instead */
    size_t n_open;
    uint32_t subset;
};

static bool choose(void *opaque, size_t entry, int64_t sector)
{
    const struct choice *c = opaque;
    uint64_t mixed = c->seed + entry * 7919 + (uint64_t)sector * 104729;

    for (size_t i = 0; i < c->n_open; i++)
        if (c->open[i] == entry)
            return c->subset >> i & 1;
    unit_random(&mixed);
    return unit_random(&mixed) % 100 < c->percent;
}

/* A power cut when the log had n entries. */
static struct history history_at(size_t n)
{
    struct history h = { steps, 0, 0, false };

    for (int i = 0; i < n_done && done[i].begun < n; i++) {
        h.to = i + 1;
        h.switches = done[i].op->how == SWITCHES && done[i].result == 0 &&
                     done[i].ended >= n;
        if (done[i].op->how != LATER && done[i].result == 0 &&
            done[i].ended <= n)
            h.from = i + 1;
    }
    if (h.from == h.to)
        h.switches = false;
    return h;
}

/* Reached already from the same workload? */
static bool is_new(uint64_t hash)
{
    static uint64_t seen[65536];
    static unsigned long workload;

    if (workload != count.workloads)
        memset(seen, 0, sizeof seen);
    workload = count.workloads;
    for (unsigned i = 0; i < 16; i++) {
        uint64_t *slot = &seen[(hash + i) % IMG_COUNT(seen)];

        if (*slot == hash)
            return false;
        if (!*slot) {
            *slot = hash;
            break;
        }
    }
    return true;
}

static uint64_t hash_of(uint64_t hash, const uint8_t *data, uint64_t len)
{
    uint64_t i = 0, part;

    for (; i + 8 <= len; i += 8) {
        memcpy(&part, data + i, 8);
        hash = (hash ^ part) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 29;
    }
    for (; i < len; i++)
        hash = (hash ^ data[i]) * UINT64_C(0x100000001b3);
    return hash * 31 + len + 1;
}

static void keep_evidence(void)
{
    char command[2 * PATH_MAX + 100];

    snprintf(command, sizeof command, "rm -rf /tmp/crash-evidence; "
             "cp -r '%s' /tmp/crash-evidence", state_dir);
    if (system(command) != 0)
        fprintf(stderr, "no evidence\n");
}

static void ask_qemu(const struct config *c, uint64_t number)
{
    char command[2 * PATH_MAX + 100];
    int r;

    snprintf(command, sizeof command,
             "cd '%s' && qemu-img check -q -f %s image >/dev/null 2>&1",
             state_dir, c->format);
    r = WEXITSTATUS(system(command));
    count.qemu++;
    if (r == 0 || r == 3 || r == 63)    /* leaks; nothing to check */
        return;
    keep_evidence();
    name_workload(c, number);
    fail_msg("qemu-img check finds errors (exit %d)", r);
}

static void check_state(const struct config *c, uint64_t number,
                        const struct record_point *points, unsigned n_files,
                        char *const *names, struct choice *choice)
{
    struct history h = history_at(points->n);
    uint8_t *data[RECORD_FILES];
    uint64_t len[RECORD_FILES], hash = 1;
    const char *wrong;

    for (unsigned f = 0; f < n_files; f++) {
        data[f] = NULL;
        if (!record_has_changed(points->r, f))
            continue;           /* it lies there from the beginning */
        record_state(&points[f], choose, choice, &data[f], &len[f]);
        hash = hash_of(hash, data[f], len[f]);
    }
    if (is_new(hash)) {
        for (unsigned f = 0; f < n_files; f++)
            if (data[f])
                put_file(state_dir, names[f], data[f], len[f]);
        wrong = judge_images(c, state_dir, &h);
        if (wrong) {
            fprintf(stderr, "after %zu of %zu changes, steps %d to %d: %s\n",
                    points->n, points->r->n, h.from, h.to, wrong);
            for (unsigned f = 0; f < n_files; f++)
                if (data[f])
                    put_file(state_dir, names[f], data[f], len[f]);
            keep_evidence();
            name_workload(c, number);
            fail();
        }
        if (has_qemu && count.states % 300 == 0 &&
            !strcmp(c->format, "qcow2"))
            ask_qemu(c, number);
        count.states++;
    }
    for (unsigned f = 0; f < n_files; f++)
        free(data[f]);
}

static size_t open_entries(const struct record *r, size_t n, size_t *open,
                           size_t max)
{
    size_t k = 0;

    for (size_t i = 0; i < n; i++)
        if (r->log[i].kind != RECORD_SYNC && !record_is_durable(r, i, n) &&
            k++ < max)
            open[k - 1] = i;
    return k;
}

static void crash_at(const struct config *c, uint64_t number, size_t n,
                     const struct record *r, char *const *names)
{
    static const unsigned percents[] = { 0, 10, 50, 90, 100 };
    struct record_point points[RECORD_FILES];
    size_t open[EXHAUSTIVE], n_open = open_entries(r, n, open, EXHAUSTIVE);
    struct choice choice = { .open = open };

    for (unsigned f = 0; f < r->n_files; f++)
        record_point_begin(&points[f], r, f, n);
    if (n_open <= EXHAUSTIVE) {
        choice.n_open = n_open;
        for (; choice.subset < 1u << n_open; choice.subset++) {
            /* All of the small ones, some of the large ones. */
            if (n_open > 4 && unit_random(&choice.seed) % (1u << n_open) >
                EACH_POINT)
                continue;
            check_state(c, number, points, r->n_files, names, &choice);
        }
        choice.n_open = 0;
    }
    for (unsigned i = 0; n_open && i < EACH_POINT; i++) {
        choice.seed = number * 1000003 + n * 1009 + i;
        choice.percent = percents[i % IMG_COUNT(percents)];
        check_state(c, number, points, r->n_files, names, &choice);
    }
    for (unsigned f = 0; f < r->n_files; f++)
        record_point_end(&points[f]);
}

/* ---- workloads --------------------------------------------------------- */

struct rows {                   /* operations that apply to a config */
    const struct operation *list[100];
    uint64_t n;
};

static void rows_for(const struct config *c, struct rows *rows)
{
    rows->n = 0;
    for (size_t i = 0; i < n_operations; i++)
        if ((operations[i].needs & c->has) == operations[i].needs &&
            strncmp(operations[i].name, "prepare", 7))
            rows->list[rows->n++] = &operations[i];
}

/* All sequences of one come first, then those of two, then of three. */
static int sequence(const struct rows *rows, uint64_t number,
                    const struct operation **ops)
{
    uint64_t of_n = rows->n;
    int n = 1;

    while (number >= of_n && n < 3) {
        number -= of_n;
        of_n *= rows->n;
        n++;
    }
    for (int i = 0; i < n; i++, number /= rows->n)
        ops[i] = rows->list[number % rows->n];
    return n;
}

static void one_workload(const struct config *c, uint64_t number,
                         const struct rows *rows, const struct saved *saved,
                         const struct model *first)
{
    const struct operation *ops[3];
    int n = sequence(rows, number, ops);
    struct record r;

    restore_images(work_dir, saved);
    restore_images(state_dir, saved);
    record_begin(&r);
    for (unsigned i = 0; i < saved->n; i++) {
        char path[PATH_MAX + 256];

        snprintf(path, sizeof path, "%s/%s", work_dir, saved->names[i]);
        record_watch(&r, path);
    }
    count.workloads++;
    run_workload(c, number, ops, n, first, &r);
    for (size_t at = 0; at < r.n; at++)
        if (r.log[at].kind == RECORD_SYNC)
            crash_at(c, number, at, &r, saved->names);
    crash_at(c, number, r.n, &r, saved->names);
    record_end(&r);
}

static void clear(const char *dir)
{
    nftw(dir, scratch_remove, 20, FTW_DEPTH | FTW_PHYS);
    assert_int_equal(mkdir(dir, 0700), 0);
}

static void test_config(void **state)
{
    const struct config *c = *state;
    uint64_t until = count.states +
                     number_of("CRASH_STATES", 3000) / n_configs;
    uint64_t seed = number_of("CRASH_SEED", 1), all;
    uint64_t only = number_of("CRASH_WORKLOAD", UINT64_MAX);
    static struct model first;
    struct saved saved;
    struct rows rows;

    snprintf(work_dir, sizeof work_dir, "%s", in_scratch("work"));
    snprintf(state_dir, sizeof state_dir, "%s", in_scratch("state"));
    clear(work_dir);
    clear(state_dir);
    make_images(c, work_dir, &first);
    save_images(work_dir, &saved);
    rows_for(c, &rows);
    all = rows.n + rows.n * rows.n + rows.n * rows.n * rows.n;
    if (only != UINT64_MAX)
        one_workload(c, only, &rows, &saved, &first);
    /* Those of one always; the others in an order that is not theirs. */
    for (uint64_t i = 0; only == UINT64_MAX && i < all &&
         (i < rows.n || count.states < until); i++)
        one_workload(c, i < rows.n ? i : rows.n + (i * 1000003 + seed - 1) %
                     (all - rows.n), &rows, &saved, &first);
    free_saved(&saved);
}

int main(void)
{
    struct CMUnitTest tests[32];
    const char *only = getenv("CRASH_CONFIG");
    size_t n = 0;
    int r;

    if (!getenv("TMPDIR") && access("/dev/shm", W_OK) == 0)
        setenv("TMPDIR", "/dev/shm", 1);
    has_qemu = system("command -v qemu-img >/dev/null") == 0;
    for (size_t i = 0; i < n_configs; i++)
        if (!only || strstr(configs[i].name, only))
            tests[n++] = (struct CMUnitTest) {
                configs[i].name, test_config, NULL, NULL,
                (void *)&configs[i]
            };
    r = _cmocka_run_group_tests("crash", tests, n, scratch_begin,
                                scratch_end);
    printf("%lu crash states of %lu workloads: %lu were marked dirty and "
           "repaired when opened, %lu given to qemu-img check\n",
           count.states, count.workloads, dirty_images, count.qemu);
    return r;
}
