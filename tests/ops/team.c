/* The team: everything is done once, turns come in order, the first error
 * wins, progress cancels, one thread runs inline. */
#include "base/team.h"
#include "base/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(what) do { if (!(what)) { \
    fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what); \
    exit(1); } } while (0)

enum { STEPS = 1000 };

struct work {
    struct img_mutex lock;
    uint64_t next;
    unsigned placed[STEPS], n_placed;
    unsigned fail_at;           /* step that fails before its turn */
    pthread_t caller;
    bool all_inline;
};

static int step(struct img_team *team, void *opaque, unsigned worker,
                struct img_error *err)
{
    struct work *w = opaque;
    uint64_t ticket;
    int r;

    img_lock(&w->lock);
    if (!pthread_equal(pthread_self(), w->caller))
        w->all_inline = false;
    ticket = w->next++;
    img_unlock(&w->lock);
    if (ticket >= STEPS)
        return 0;
    if (ticket == w->fail_at)
        return img_fail(err, EIO, "step %u", w->fail_at);
    r = img_team_turn(team, ticket);
    if (r < 0)
        return r;
    w->placed[w->n_placed++] = (unsigned)ticket;    /* the turn is a lock */
    img_team_pass(team, ticket);
    img_team_add(team, 1);
    return 1;
}

static void init(struct work *w)
{
    memset(w, 0, sizeof *w);
    img_mutex_init(&w->lock);
    w->fail_at = ~0u;
    w->caller = pthread_self();
    w->all_inline = true;
}

static uint64_t last_done;
static int count_progress(void *opaque, uint64_t done, uint64_t total)
{
    CHECK(total == STEPS && done >= last_done && done <= total);
    last_done = done;
    return 0;
}

static int stop_at_once(void *opaque, uint64_t done, uint64_t total)
{
    return 1;
}

static void test_order(unsigned n)
{
    struct img_job job = IMG_JOB;
    struct img_error err = { 0 };
    struct work w;

    init(&w);
    job.progress = count_progress;
    last_done = 0;
    CHECK(img_team_run(&job, n, STEPS, step, &w, &err) == 0);
    CHECK(w.n_placed == STEPS);
    for (unsigned i = 0; i < STEPS; i++)
        CHECK(w.placed[i] == i);
    CHECK(last_done == STEPS);
    CHECK(w.all_inline == (n == 1));
}

static void test_error(unsigned n)
{
    struct img_error err = { 0 };
    struct work w;

    init(&w);
    w.fail_at = 17;
    CHECK(img_team_run(NULL, n, STEPS, step, &w, &err) == -EIO);
    CHECK(!strcmp(err.message, "step 17"));
    CHECK(w.n_placed == 17);    /* nobody came after it */
}

static int endless(struct img_team *team, void *opaque, unsigned worker,
                   struct img_error *err)
{
    return 1;
}

static void test_cancel(unsigned n)
{
    struct img_job job = IMG_JOB;
    struct img_error err = { 0 };

    job.progress = stop_at_once;
    CHECK(img_team_run(&job, n, 1, endless, NULL, &err) == -ECANCELED);
    CHECK(err.code == ECANCELED);
}

int main(void)
{
    static const unsigned sizes[] = { 1, 2, 5, 16 };

    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        test_order(sizes[i]);
        test_error(sizes[i]);
        test_cancel(sizes[i]);
    }
    return 0;
}
