/* Two or three threads on one small disk, in every order.
 *
 *   race [--bound N] [--most N] [--random N] [--seed N] [--work NAME]
 *        [--shape NAME] [--faults N] [--fault-most N] [--fault-random N]
 *        [--fault N] [--replay SCHEDULE]
 *
 * Each workload (works.c) runs over each shape of image under the scheduler
 * of sched.h: all schedules with up to `bound` preemptions, as far as `most`
 * of them, then `random` others.  After each: every byte that was read, that
 * the disk shows, that a snapshot shows and that was flushed is one that some
 * order of the operations explains, and check finds nothing.
 *
 * Then with a file operation that fails: up to `faults` different ones of
 * those that the workload does (twice as many where the library's own
 * threads are at work), each with `fault-most` and `fault-random`
 * schedules.
 */
#include "race.h"
#include "fault.h"
#include "sched.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options {
    struct sched_plan plan;
    const char *work, *shape;
    unsigned long faults, fault_most, fault_random;
    unsigned long fault;        /* only this one */
};

struct totals { unsigned long runs; unsigned pairs, failed; };

static unsigned long faults_that_came;

static void usage(void)
{
    fprintf(stderr, "usage: race [--bound N] [--most N] [--random N] "
            "[--seed N]\n            [--work NAME] [--shape NAME] "
            "[--faults N] [--fault-most N]\n"
            "            [--fault-random N] [--fault N] "
            "[--replay SCHEDULE]\n");
    exit(2);
}

static void take_options(int argc, char **argv, struct options *o)
{
    static const struct option longs[] = {
        { "bound", 1, NULL, 'b' }, { "most", 1, NULL, 'm' },
        { "random", 1, NULL, 'r' }, { "seed", 1, NULL, 's' },
        { "work", 1, NULL, 'w' }, { "shape", 1, NULL, 'i' },
        { "faults", 1, NULL, 'f' }, { "fault-most", 1, NULL, 'M' },
        { "fault-random", 1, NULL, 'R' }, { "fault", 1, NULL, 'n' },
        { "replay", 1, NULL, 'p' }, { NULL, 0, NULL, 0 },
    };
    int c;

    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1)
        switch (c) {
        case 'b': o->plan.preemptions = (unsigned)atoi(optarg); break;
        case 'm': o->plan.most = strtoul(optarg, NULL, 0); break;
        case 'r': o->plan.random = strtoul(optarg, NULL, 0); break;
        case 's': o->plan.seed = strtoull(optarg, NULL, 0); break;
        case 'w': o->work = optarg; break;
        case 'i': o->shape = optarg; break;
        case 'f': o->faults = strtoul(optarg, NULL, 0); break;
        case 'M': o->fault_most = strtoul(optarg, NULL, 0); break;
        case 'R': o->fault_random = strtoul(optarg, NULL, 0); break;
        case 'n': o->fault = strtoul(optarg, NULL, 0); break;
        case 'p': o->plan.replay = optarg; break;
        default: usage();
        }
    if (optind < argc)
        usage();
}

static bool wanted(const char *name, const char *only)
{
    return !only || !strcmp(name, only);
}

static bool bench_count(void *bench)
{
    bool ok = bench_run(bench);

    faults_that_came += fault_came() != NULL;
    return ok;
}

/* How many file operations there are in the first schedule. */
static unsigned long count_operations(struct bench *b)
{
    struct sched_plan first = { .name = "the first", .most = 1 };
    struct sched_count count;

    fault_plan(0);
    return sched_explore(&first, bench_run, b, &count) ? fault_seen() : 0;
}

static bool explore_fault(const struct options *o, struct bench *b,
                          const char *name, unsigned long n,
                          struct totals *t)
{
    struct sched_plan plan = o->plan;
    struct sched_count count;
    char with[140];
    bool ok;

    snprintf(with, sizeof with, "%s --fault %lu", name, n);
    plan.name = with;
    plan.most = o->fault_most;
    plan.random = o->fault_random;
    plan.seed += n;
    fault_plan(n);
    ok = sched_explore(&plan, bench_count, b, &count);
    fault_plan(0);
    t->runs += count.runs;
    return ok;
}

static bool explore_kept(const struct options *o, struct bench *b,
                         const struct shape *shape, const struct work *work,
                         const char *name, struct totals *t)
{
    bool ok = true;

    for (const struct kept *k = kept; k->shape && ok; k++)
        if (!strcmp(k->shape, shape->name) && !strcmp(k->work, work->name))
            ok = explore_fault(o, b, name, k->fault, t);
    return ok;
}

/* A different share of the operations in each workload. */
static bool explore_faults(const struct options *o, struct bench *b,
                           const struct work *work, const char *name,
                           struct totals *t)
{
    unsigned long n, stride, all, most = o->faults;
    bool ok = true;

    if (o->fault)
        return explore_fault(o, b, name, o->fault, t);
    if (!o->faults)
        return true;
    all = count_operations(b);
    if (work->whole)
        most *= 2;              /* more threads are at work */
    stride = (all + most - 1) / most;
    for (n = 1 + t->pairs % (stride ? stride : 1); n <= all && ok; n += stride)
        ok = explore_fault(o, b, name, n, t);
    return ok;
}

static void explore(const struct options *o, const struct shape *shape,
                    const struct work *work, struct totals *t)
{
    struct sched_count count = { 0 };
    struct sched_plan plan = o->plan;
    struct bench *b = bench_new(shape, work);
    unsigned long before = t->runs;
    char name[100];
    bool ok = true;

    snprintf(name, sizeof name, "--shape %s --work %s", shape->name,
             work->name);
    plan.name = name;
    if (work->whole) {          /* longer ones */
        plan.most = (plan.most + 1) / 2;
        plan.random = (plan.random + 1) / 2;
    }
    fault_plan(0);
    if (!o->fault)
        ok = sched_explore(&plan, bench_run, b, &count);
    t->runs += count.runs;
    if (ok && !o->fault && o->faults)
        ok = explore_kept(o, b, shape, work, name, t);
    ok = ok && explore_faults(o, b, work, name, t);
    printf("%-10s %-28s %7lu schedules%s%s\n", shape->name, work->name,
           t->runs - before, count.complete ? ", all" : "",
           ok ? "" : " FAILED");
    bench_free(b);
    t->pairs++;
    t->failed += !ok;
}

static bool fits(const struct work *w, const struct shape *s)
{
    return (!w->snapshots || s->snapshots) &&
           (!w->commits || s->backing) &&
           (!w->rebases || (s->backing && s->snapshots)) &&
           (w->whole || !s->quarter);
}

int main(int argc, char **argv)
{
    struct options o = {
        .plan = { .preemptions = 2, .most = 40, .random = 12, .seed = 1 },
        .faults = 3, .fault_most = 1, .fault_random = 5,
    };
    struct totals t = { 0 };

    take_options(argc, argv, &o);
    for (const struct shape *s = shapes; s->name; s++)
        for (const struct work *w = works; w->name; w++)
            if (wanted(s->name, o.shape) && wanted(w->name, o.work) &&
                fits(w, s))
                explore(&o, s, w, &t);
    printf("race: %lu schedules, %lu with an operation that failed, "
           "%u failed\n", t.runs, faults_that_came, t.failed);
    return t.failed ? 1 : t.runs ? 0 : 2;
}
