/* The n-th call fails, for n = 1, 2, 3 ... until a run gets through: reading,
 * writing, syncing, space, looking, memory; once or for ever; and calls that
 * are interrupted or do only a part, which nobody may notice.
 *
 * Whatever fails: there is an error with its cause, memory and descriptors
 * come back, the handle still shows what it should, and the image is as
 * consistent as after a crash (crash-judge.c).
 *
 *   FAULT_SHARE=n     of the operations every n-th for each config; 1 = all
 *   FAULT_CONFIG=text only configs whose name contains it
 */
#include "crash.h"
#include "shim.h"

#include <errno.h>

static struct model steps[MAX_STEPS];
static unsigned long runs, faults;
static char dir[PATH_MAX];

static const struct kind {
    const char *name;
    struct shim_fault fault;
    bool unseen;                /* must not be noticed */
} kinds[] = {
    { "EIO", { .kinds = SHIM_FILES, .code = EIO }, false },
    { "EIO for ever",
      { .kinds = SHIM_CHANGE, .code = EIO, .for_ever = true }, false },
    { "ENOSPC, torn",
      { .kinds = SHIM_WRITE | SHIM_SPACE, .code = ENOSPC, .torn = true },
      false },
    { "EINTR",
      { .kinds = SHIM_READ | SHIM_WRITE | SHIM_SYNC | SHIM_SPACE,
        .code = EINTR }, true },
    { "a part", { .kinds = SHIM_READ | SHIM_WRITE }, true },
    { "no memory", { .kinds = SHIM_MEMORY, .code = ENOMEM }, false },
};

struct run {
    const struct config *c;
    const struct kind *kind;
    const struct operation *const *ops;
    int n_ops;
    long n;
};

static void wrong(const struct run *run, const char *what)
{
    fprintf(stderr, "%s, %s %ld:", run->c->name, run->kind->name, run->n);
    for (int i = 0; i < run->n_ops; i++)
        fprintf(stderr, " [%s]", run->ops[i]->name);
    fprintf(stderr, ": %s\n", what);
    fail();
}

/* Without a fault: what each step leaves. */
static bool rehearse(const struct run *run, struct work *w,
                     const struct model *first)
{
    w->m = steps[0] = *first;
    assert_ok(open_work(w), w->err);
    for (int i = 0; i < run->n_ops; i++) {
        int r = run_operation(w, run->ops[i]);

        if (r != -ENOTSUP)      /* does not apply now */
            assert_ok(r, w->err);
        steps[i + 1] = w->m;
    }
    steps[run->n_ops + 1] = w->m;
    return img_close(w->d, &w->err) == 0;
}

static void look(const struct run *run, struct work *w,
                 const struct history *h)
{
    static struct view v;
    const char *what;

    if (read_disk(w->d, &v, &w->err) < 0) {
        wrong(run, w->err.message);
        return;
    }
    what = judge_view(&v, h);
    if (what)
        wrong(run, what);
}

/* What is written and flushed after an error is there as ever.  Where that
 * fails too, the sectors are old or new. */
static void go_on(struct work *w, struct history *h)
{
    static struct model after[3 * (MAX_STEPS + 2)];
    uint64_t sectors = IMG_MIN(img_size(w->d) / SECTOR, MAX_SECTORS);
    const uint32_t tag = 5000;
    int n = h->to - h->from + 1, r = 0;

    for (uint64_t s = 0; s < sectors && r == 0; s += sectors / 8)
        r = write_sector(w, s, tag);
    if (r == 0)
        r = img_flush(w->d, &w->err);
    for (int i = 0; i < n; i++) {
        struct model *m = &after[2 * n + i];

        *m = after[i] = h->steps[h->from + i];
        if (m->has_bitmap)
            read_bits(w->d, m->bits, &w->err);
        after[n + i] = *m;
        for (uint64_t s = 0; s < sectors; s += sectors / 8)
            if (s < m->disk.size / SECTOR)
                m->disk.tags[s] = tag;
    }
    *h = (struct history){ after, r == 0 ? 2 * n : 0, 3 * n - 1,
                           h->switches && r == 0 };
}

/* Runs until an operation fails; closes.  h: what may be seen then. */
static void perform(const struct run *run, struct work *w,
                    struct shim_fault *fault, struct history *h)
{
    int i, r = 0;

    for (i = 0; i < run->n_ops && r == 0; i++) {
        h->to = i + 1;
        shim_fault = fault;
        r = run_operation(w, run->ops[i]);
        shim_fault = NULL;
        if (r == -ENOTSUP && (run->kind->unseen || !fault->failed ||
                              !w->err.message[0]))
            r = 0;              /* does not apply now */
        h->switches = run->ops[i]->how == SWITCHES && r < 0;
        if (r == 0 && run->ops[i]->how != LATER)
            h->from = i + 1;
    }
    if (r < 0 && (!fault->failed || run->kind->unseen))
        wrong(run, w->err.message[0] ? w->err.message : "failed");
    if (r < 0 && !w->err.message[0])
        wrong(run, "no words");
    if (r < 0) {
        look(run, w, h);
        go_on(w, h);
    }
    shim_fault = fault;
    r = img_close(w->d, &w->err);
    shim_fault = NULL;
    if (r < 0 && (!fault->failed || run->kind->unseen))
        wrong(run, w->err.message);
}

/* Returns whether the fault came. */
static bool one_run(const struct run *run, const struct saved *saved,
                    const struct model *first)
{
    struct shim_fault fault = run->kind->fault;
    struct history h = { steps, 0, 0, false };
    static struct work w;
    const char *what;
    long blocks;
    int files;

    memset(&w, 0, sizeof w);
    w.c = run->c;
    w.dir = dir;
    w.tag = 1000;
    w.serial = 10;
    w.m = *first;
    restore_images(dir, saved);
    files = shim_descriptors();
    blocks = shim_blocks;
    atomic_store(&fault.left, run->n);
    assert_ok(open_work(&w), w.err);
    perform(run, &w, &fault, &h);
    if (shim_blocks != blocks)
        wrong(run, "memory is not freed");
    if (shim_descriptors() != files)
        wrong(run, "a descriptor is left open");
    what = judge_images(run->c, dir, &h);
    if (what)
        wrong(run, what);
    runs++;
    faults += fault.failed > 0;
    return fault.failed > 0;
}

static void all_faults(struct run *run, const struct saved *saved,
                       const struct model *first)
{
    static struct work w;

    memset(&w, 0, sizeof w);
    w.c = run->c;
    w.dir = dir;
    w.tag = 1000;
    w.serial = 10;
    restore_images(dir, saved);
    assert_true(rehearse(run, &w, first));
    for (size_t k = 0; k < IMG_COUNT(kinds); k++) {
        run->kind = &kinds[k];
        for (run->n = 1; one_run(run, saved, first); run->n++)
            ;
    }
}

static void test_config(void **state)
{
    const struct config *c = *state;
    uint64_t share = number_of("FAULT_SHARE", 8);
    uint64_t turn = (uint64_t)(c - configs);
    const struct operation *flush = operations;
    static struct model first;
    struct saved saved;

    while (strcmp(flush->name, "flush"))
        flush++;
    snprintf(dir, sizeof dir, "%s/%lu", scratch, (unsigned long)turn);
    assert_int_equal(mkdir(dir, 0700), 0);
    make_images(c, dir, &first);
    save_images(dir, &saved);
    for (size_t i = 0; i < n_operations; i++) {
        const struct operation *ops[] = { &operations[i], flush,
                                          &operations[i] };
        struct run run = { .c = c, .ops = ops, .n_ops = 3 };

        if ((operations[i].needs & c->has) == operations[i].needs &&
            strncmp(operations[i].name, "prepare", 7) &&
            (i + turn) % share == 0)
            all_faults(&run, &saved, &first);
    }
    free_saved(&saved);
}

int main(void)
{
    struct CMUnitTest tests[32];
    const char *only = getenv("FAULT_CONFIG");
    size_t n = 0;
    int r;

    if (!getenv("TMPDIR") && access("/dev/shm", W_OK) == 0)
        setenv("TMPDIR", "/dev/shm", 1);
    for (size_t i = 0; i < n_configs; i++)
        if (!only || strstr(configs[i].name, only))
            tests[n++] = (struct CMUnitTest) {
                configs[i].name, test_config, NULL, NULL,
                (void *)&configs[i]
            };
    r = _cmocka_run_group_tests("faults of operations", tests, n,
                                scratch_begin, scratch_end);
    printf("%lu runs, %lu of them with a fault\n", runs, faults);
    return r;
}
