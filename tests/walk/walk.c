/* Random operations on a chain of images, each followed by a full look at it:
 * qemu-img check, every byte as QEMU and as libimg read it, every snapshot,
 * every bitmap.
 *
 *   walk [--steps N] [--seed S] [--jobs J]
 *                                 N steps in chapters of 250 (1,500, or
 *                                 WALK_STEPS), each with a chain of its own,
 *                                 J of them (3) at a time, for QEMU's
 *                                 programs sleep more than they work
 *   walk --chapter S --steps N [--skip 3,17] [-v]
 *                                 one chapter; a failure prints such a line
 *
 * Every step draws from a source of its own, so that with steps left out the
 * others do what they did as far as they still can: that is how a failure is
 * made short by hand.  KEEP=1 leaves the folder.
 *
 * Three chapters of four are walked in memory (/dev/shm), where there is some
 * and TMPDIR is not set; the fourth on a disk, with its holes and its blocks.
 */
#include "walk.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHAPTER = 250, MEMORY_NEEDED = 1 << 29 };

static bool verbose;
static char *skip;              /* ",3,17," */

static struct step_kind kinds[] = {
    { .name = "write", .weight = 26, .run = step_write },
    { .name = "qemu write", .weight = 10, .run = step_peer_write },
    { .name = "resize", .weight = 7, .run = step_resize },
    { .name = "snapshot create", .weight = 9, .run = step_snapshot_create },
    { .name = "snapshot apply", .weight = 5, .run = step_snapshot_apply },
    { .name = "snapshot delete", .weight = 5, .run = step_snapshot_delete },
    { .name = "commit", .weight = 6, .run = step_commit },
    { .name = "rebase", .weight = 5, .run = step_rebase },
    { .name = "rename base", .weight = 1, .run = step_rename_base },
    { .name = "amend", .weight = 5, .run = step_amend },
    { .name = "bitmap", .weight = 6, .run = step_bitmap },
    { .name = "bitmap merge", .weight = 2, .run = step_bitmap_merge },
    { .name = "create", .weight = 1, .run = step_create },
    { .name = "overlay", .weight = 6, .run = step_overlay },
    { .name = "drop", .weight = 2, .run = step_drop },
    { .name = "convert", .weight = 3, .run = step_convert },
    { .name = "copy", .weight = 1, .run = step_copy },
    { .name = "compare", .weight = 2, .run = step_compare },
    { .name = "repair", .weight = 3, .run = step_repair },
};
enum { N_KINDS = sizeof(kinds) / sizeof(kinds[0]) };
static struct step_kind *current;

/* What the chapters did, all processes together. */
static struct tally {
    unsigned long done, refused;
} *tallies;

static struct tally *tally(void)
{
    return &tallies[current - kinds];
}

/* ---- words ------------------------------------------------------------- */

void note(struct walk *w, const char *fmt, ...)
{
    va_list args;
    char line[2048];

    va_start(args, fmt);
    vsnprintf(line, sizeof(line), fmt, args);
    va_end(args);
    fprintf(w->log, "%llu: %s\n", (unsigned long long)w->step, line);
    if (verbose)
        fprintf(stderr, "%llu: %s\n", (unsigned long long)w->step, line);
}

int wrong(struct walk *w, const char *fmt, ...)
{
    va_list args;
    char line[2048];

    va_start(args, fmt);
    vsnprintf(line, sizeof(line), fmt, args);
    va_end(args);
    fflush(w->log);
    if (!verbose)
        run_program("/dev/stderr", (const char *[]) { "tail", "-n", "30",
                    "log", NULL });
    fprintf(stderr, "FAIL: step %llu: %s\n  walk --chapter %llu --steps %llu%s"
            "%s\n", (unsigned long long)w->step, line,
            (unsigned long long)w->seed, (unsigned long long)w->step,
            skip ? " --skip " : "", skip ? skip : "");
    return -1;
}

int run(struct walk *w, const char *fmt, ...)
{
    const char *argv[64];
    char line[4096];
    va_list args;
    int n = 0, r;

    va_start(args, fmt);
    vsnprintf(line, sizeof(line), fmt, args);
    va_end(args);
    note(w, "%s", line);
    for (char *p = line; p && n < 63; n++) {
        char *end = strchr(p, '|');

        if (end)
            *end++ = '\0';
        argv[n] = p;
        p = end;
    }
    argv[n] = NULL;
    r = run_program("peer.out", argv);
    if (r && verbose)
        run_program("/dev/stderr", (const char *[]) { "cat", "peer.out",
                    NULL });
    return r;
}

void refused(struct walk *w)
{
    (void)w;
    __atomic_fetch_add(&tally()->refused, 1, __ATOMIC_RELAXED);
}

int outcome(struct walk *w, const char *what, int r)
{
    if (r >= 0)
        return 0;
    if (r == -ENOTSUP) {
        note(w, "refused: %s", w->err.message);
        refused(w);
        return 1;
    }
    return wrong(w, "%s: %s (%d)", what, w->err.message, r);
}

/* ---- a chapter --------------------------------------------------------- */

static bool is_skipped(uint64_t step)
{
    char word[32];

    snprintf(word, sizeof(word), ",%llu,", (unsigned long long)step);
    return skip && strstr(skip, word);
}

static int one_step(struct walk *w)
{
    unsigned total = 0;
    int r = 1;

    w->rng.state = w->seed * 1000003 + w->step;
    rng_next(&w->rng);
    for (int i = 0; i < w->n; i++)
        w->layers[i].touched = i == w->n - 1;
    for (int i = 0; i < N_KINDS; i++)
        total += kinds[i].weight;
    while (r == 1) {
        unsigned x = (unsigned)rng_below(&w->rng, total);

        for (current = kinds; x >= current->weight; current++)
            x -= current->weight;
        if (!w->n && current->run != step_create)
            continue;
        r = current->run(w);
    }
    if (r < 0)
        return r;
    __atomic_fetch_add(&tally()->done, 1, __ATOMIC_RELAXED);
    return verify(w);
}

static void choose_folder(uint64_t seed)
{
    struct statvfs st;

    if (!getenv("TMPDIR") && seed % 4 && statvfs("/dev/shm", &st) == 0 &&
        st.f_bavail * st.f_bsize >= MEMORY_NEEDED)
        setenv("TMPDIR", "/dev/shm", 1);
}

static int run_chapter(uint64_t seed, uint64_t steps)
{
    struct walk w = { .seed = seed };
    char dir[4000], home[4000];
    int r = 0;

    if (!getcwd(home, sizeof(home)))
        return -1;
    choose_folder(seed);
    make_scratch(dir, sizeof(dir));
    if (chdir(dir) < 0 || !(w.log = fopen("log", "w")))
        return -1;
    w.buf = must_alloc(MAX_SIZE);
    w.layers = must_alloc(sizeof(*w.layers) * MAX_LAYERS);
    for (w.step = 1; w.step <= steps && r >= 0; w.step++)
        if (!is_skipped(w.step))
            r = one_step(&w);
    if (w.disk && img_close(w.disk, &w.err) < 0 && r >= 0)
        r = wrong(&w, "close: %s", w.err.message);
    for (int i = 0; i < w.n; i++)
        free_layer(&w.layers[i]);
    free(w.layers);
    free(w.buf);
    fclose(w.log);
    if (chdir(home) < 0)
        return -1;
    if (getenv("KEEP"))
        fprintf(stderr, "kept: %s\n", dir);
    else
        remove_scratch(dir);
    return r;
}

/* Waits for one chapter; returns 1 if it failed. */
static int reap(void)
{
    int status;

    return wait(&status) < 0 || !WIFEXITED(status) || WEXITSTATUS(status);
}

static int run_book(uint64_t seed, uint64_t steps, unsigned jobs)
{
    unsigned under_way = 0;
    int failed = 0;

    for (uint64_t i = 0; i < steps; i += CHAPTER) {
        uint64_t n = steps - i < CHAPTER ? steps - i : CHAPTER;
        pid_t pid;

        if (under_way == jobs)
            failed += reap();
        else
            under_way++;
        pid = fork();
        if (pid == 0)
            exit(run_chapter(seed + i / CHAPTER, n) < 0);
        if (pid < 0) {
            perror("fork");
            exit(99);
        }
    }
    while (under_way--)
        failed += reap();
    for (int i = 0; i < N_KINDS; i++)
        printf("%-16s %6lu, refused %lu\n", kinds[i].name, tallies[i].done,
               tallies[i].refused);
    printf("seed %llu: %llu steps, %d chapters failed\n",
           (unsigned long long)seed, (unsigned long long)steps, failed);
    return failed != 0;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "steps", required_argument, NULL, 'n' },
        { "seed", required_argument, NULL, 's' },
        { "jobs", required_argument, NULL, 'j' },
        { "chapter", required_argument, NULL, 'c' },
        { "skip", required_argument, NULL, 'x' },
        { NULL, 0, NULL, 0 }
    };
    const char *steps = getenv("WALK_STEPS"), *chapter = NULL;
    uint64_t seed = 1, jobs = 3;
    int c;

    while ((c = getopt_long(argc, argv, "v", options, NULL)) != -1) {
        switch (c) {
        case 'n': steps = optarg; break;
        case 's': seed = strtoull(optarg, NULL, 0); break;
        case 'j': jobs = strtoull(optarg, NULL, 0); break;
        case 'c': chapter = optarg; break;
        case 'x':
            if (asprintf(&skip, ",%s,", optarg) < 0)
                return 99;
            break;
        case 'v': verbose = true; break;
        default: return 2;
        }
    }
    if (!have_program("qemu-img") || !have_program("qemu-io"))
        return 77;
    if (!steps || !*steps)
        steps = "1500";
    tallies = mmap(NULL, sizeof(*tallies) * N_KINDS, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (tallies == MAP_FAILED) {
        perror("mmap");
        return 99;
    }
    if (chapter)
        return run_chapter(strtoull(chapter, NULL, 0),
                           strtoull(steps, NULL, 0)) < 0;
    return run_book(seed, strtoull(steps, NULL, 0),
                    jobs ? (unsigned)jobs : 1);
}
