/* Two or three threads on one small disk, in every order.
 *
 *   race [--bound N] [--most N] [--random N] [--seed N] [--work NAME]
 *        [--shape NAME] [--replay SCHEDULE]
 *
 * Each workload (work.h) runs over each shape of image under the scheduler
 * of sched.h: all schedules with up to `bound` preemptions, as far as `most`
 * of them, then `random` others.  After each: every byte that was read, that
 * the disk shows, that a snapshot shows and that was flushed is one that some
 * order of the operations explains, and check finds nothing.
 */
#include "race.h"
#include "sched.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options {
    struct sched_plan plan;
    const char *work, *shape;
};

static void usage(void)
{
    fprintf(stderr, "usage: race [--bound N] [--most N] [--random N] "
            "[--seed N]\n            [--work NAME] [--shape NAME] "
            "[--replay SCHEDULE]\n");
    exit(2);
}

static void take_options(int argc, char **argv, struct options *o)
{
    static const struct option longs[] = {
        { "bound", 1, NULL, 'b' }, { "most", 1, NULL, 'm' },
        { "random", 1, NULL, 'r' }, { "seed", 1, NULL, 's' },
        { "work", 1, NULL, 'w' }, { "shape", 1, NULL, 'i' },
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

static bool explore(struct options *o, const struct shape *shape,
                    const struct work *work, unsigned long *total)
{
    struct sched_count count;
    struct bench *b = bench_new(shape, work);
    char name[100];
    bool ok;

    snprintf(name, sizeof name, "--shape %s --work %s", shape->name,
             work->name);
    o->plan.name = name;
    ok = sched_explore(&o->plan, bench_run, b, &count);
    *total += count.runs;
    printf("%-10s %-28s %7lu schedules%s%s\n", shape->name, work->name,
           count.runs, count.complete ? ", all" : "", ok ? "" : " FAILED");
    bench_free(b);
    return ok;
}

int main(int argc, char **argv)
{
    struct options o = {
        .plan = { .preemptions = 2, .most = 50, .random = 15, .seed = 1 },
    };
    unsigned long total = 0;
    unsigned failed = 0;

    take_options(argc, argv, &o);
    for (const struct shape *s = shapes; s->name; s++)
        for (const struct work *w = works; w->name; w++)
            if (wanted(s->name, o.shape) && wanted(w->name, o.work) &&
                (!w->snapshots || s->snapshots) &&
                (!w->commits || s->backing))
                failed += !explore(&o, s, w, &total);
    printf("race: %lu schedules, %u failed\n", total, failed);
    return failed ? 1 : total ? 0 : 2;
}
