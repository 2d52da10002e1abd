/* Workers on a step function.
 *
 * The calling thread sleeps and reports progress; the workers call step until
 * it says that nothing is left.  The first error wins and stops everybody;
 * so does a progress function that returns nonzero.  A worker holds no lock
 * of the team while it works.  Lock order: team->lock before turns.lock.
 */
#include "base/team.h"
#include "base/checked.h"
#include "base/error.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { REPORT_MS = 50, MAX_THREADS = 64, WAITING = 8 };

struct worker {
    struct img_team *team;
    img_team_step *step;
    void *opaque;
    unsigned number;
    pthread_t thread;
};

unsigned img_team_size(const struct img_job *job, unsigned most, bool waiting)
{
    cpu_set_t set;
    long cpus = 1;

    if (job && job->threads)
        return IMG_MIN(job->threads, (unsigned)MAX_THREADS);
    if (waiting)
        return WAITING;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        cpus = CPU_COUNT(&set);
    else
        cpus = sysconf(_SC_NPROCESSORS_ONLN);
    return (unsigned)IMG_MAX(1, IMG_MIN(cpus, (long)most));
}

/* ---- stopping ---------------------------------------------------------- */

static void stop(struct img_team *c, int result, const struct img_error *err)
{
    img_lock(&c->lock);
    if (!c->stop && result < 0) {
        c->result = result;
        c->error = *err;
    }
    c->stop = true;
    img_wake_all(&c->changed);
    img_unlock(&c->lock);
    img_lock(&c->turns.lock);
    c->turns.stopped = true;
    img_wake_all(&c->turns.moved);
    img_unlock(&c->turns.lock);
}

bool img_team_stopped(struct img_team *c)
{
    bool stopped;

    img_lock(&c->lock);
    stopped = c->stop;
    img_unlock(&c->lock);
    return stopped;
}

/* ---- turns ------------------------------------------------------------- */

int img_team_turn(struct img_team *c, uint64_t ticket)
{
    int r = 0;

    img_lock(&c->turns.lock);
    while (c->turns.next != ticket && !c->turns.stopped)
        img_wait(&c->turns.moved, &c->turns.lock);
    if (c->turns.next != ticket)
        r = -ECANCELED;
    img_unlock(&c->turns.lock);
    return r;
}

void img_team_pass(struct img_team *c, uint64_t ticket)
{
    img_lock(&c->turns.lock);
    c->turns.next = ticket + 1;
    img_wake_all(&c->turns.moved);
    img_unlock(&c->turns.lock);
}

/* ---- progress ---------------------------------------------------------- */

static uint64_t elapsed_ms(const struct timespec *since)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)(now.tv_sec - since->tv_sec) * 1000 +
           (uint64_t)(now.tv_nsec / 1000000) -
           (uint64_t)(since->tv_nsec / 1000000);
}

/* How long to wait until the rate allows for what is done; the lock is
 * held. */
static uint64_t ahead_ms(struct img_team *c)
{
    uint64_t due, now;

    if (!c->bytes_per_second)
        return 0;
    due = (uint64_t)((double)c->done * 1000 / (double)c->bytes_per_second);
    now = elapsed_ms(&c->started);
    return due > now ? due - now : 0;
}

void img_team_add(struct img_team *c, uint64_t bytes)
{
    uint64_t ms;

    img_lock(&c->lock);
    c->done += bytes;
    while (!c->stop && c->running && (ms = ahead_ms(c)) > 0)
        img_wait_ms(&c->changed, &c->lock, (unsigned)IMG_MIN(ms, 1000u));
    img_unlock(&c->lock);
}

/* Returns nonzero if the caller wants no more. */
static int report(struct img_team *c, const struct img_job *job)
{
    uint64_t done, total;

    if (!job || !job->progress)
        return 0;
    img_lock(&c->lock);
    total = c->total;
    done = IMG_MIN(c->done, total);
    img_unlock(&c->lock);
    return job->progress(job->opaque, done, total);
}

static int refuse_to_go_on(struct img_error *err)
{
    return img_fail(err, ECANCELED, "Stopped on request");
}

static void cancel(struct img_team *c)
{
    struct img_error why;
    int r = refuse_to_go_on(&why);

    stop(c, r, &why);
}

int img_pace_tell(struct img_pace *p, struct img_error *err)
{
    if (!p->job || !p->job->progress || elapsed_ms(&p->told) < REPORT_MS)
        return 0;
    clock_gettime(CLOCK_MONOTONIC, &p->told);
    return p->job->progress(p->job->opaque, p->done, p->total)
           ? refuse_to_go_on(err) : 0;
}

/* ---- running ----------------------------------------------------------- */

static void *work(void *arg)
{
    struct worker *w = arg;
    struct img_team *c = w->team;
    struct img_error err = { 0 };
    int r = 1;

    while (r > 0 && !img_team_stopped(c))
        r = w->step(c, w->opaque, w->number, &err);
    if (r < 0)
        stop(c, r, &err);
    img_lock(&c->lock);
    c->running--;
    img_wake_all(&c->changed);
    img_unlock(&c->lock);
    return NULL;
}

static void run_inline(struct img_team *c, const struct img_job *job,
                       img_team_step *step, void *opaque)
{
    struct img_error err = { 0 };
    struct timespec last = c->started;
    int r = 1;

    if (report(c, job))
        cancel(c);
    while (r > 0 && !img_team_stopped(c)) {
        r = step(c, opaque, 0, &err);
        if (elapsed_ms(&last) < REPORT_MS)
            continue;
        clock_gettime(CLOCK_MONOTONIC, &last);
        if (r >= 0 && report(c, job))
            cancel(c);
    }
    if (r < 0)
        stop(c, r, &err);
}

static void watch(struct img_team *c, const struct img_job *job)
{
    bool canceled = false;

    img_lock(&c->lock);
    while (c->running) {
        if (!canceled) {
            img_unlock(&c->lock);
            canceled = report(c, job);
            if (canceled)
                cancel(c);
            img_lock(&c->lock);
        }
        if (!c->running)
            break;
        if (job && job->progress)
            img_wait_ms(&c->changed, &c->lock, REPORT_MS);
        else
            img_wait(&c->changed, &c->lock);
    }
    img_unlock(&c->lock);
}

static void run_threads(struct img_team *c, const struct img_job *job,
                        unsigned n, img_team_step *step, void *opaque)
{
    struct worker *w = calloc(n, sizeof *w);
    struct img_error err;
    unsigned started = 0;
    int r;

    if (!w) {
        stop(c, img_fail_nomem(&err), &err);
        return;
    }
    img_lock(&c->lock);
    c->running = n;
    img_unlock(&c->lock);
    for (; started < n; started++) {
        w[started] = (struct worker){ .team = c, .step = step,
            .opaque = opaque, .number = started };
        r = pthread_create(&w[started].thread, NULL, work, &w[started]);
        if (r) {
            img_fail_errno(&err, r, "Starting a thread");
            stop(c, -r, &err);
            break;
        }
    }
    img_lock(&c->lock);
    c->running -= n - started;
    img_unlock(&c->lock);
    watch(c, job);
    for (unsigned i = 0; i < started; i++)
        pthread_join(w[i].thread, NULL);
    free(w);
}

int img_team_run(const struct img_job *job, unsigned n, uint64_t total,
                 img_team_step *step, void *opaque, struct img_error *err)
{
    struct img_team c = { .total = total };
    int r;

    c.bytes_per_second = job ? job->bytes_per_second : 0;
    clock_gettime(CLOCK_MONOTONIC, &c.started);
    img_mutex_init(&c.lock);
    img_cond_init(&c.changed);
    img_mutex_init(&c.turns.lock);
    img_cond_init(&c.turns.moved);
    if (n <= 1) {
        c.running = 1;
        run_inline(&c, job, step, opaque);
    } else {
        run_threads(&c, job, n, step, opaque);
    }
    r = c.result;
    if (r == 0 && job && job->progress)
        job->progress(job->opaque, total, total);
    else if (r < 0 && err)
        *err = c.error;
    img_cond_destroy(&c.turns.moved);
    img_mutex_destroy(&c.turns.lock);
    img_cond_destroy(&c.changed);
    img_mutex_destroy(&c.lock);
    return r;
}
