/* Workers on a step function, with progress, cancel and the first error. */
#ifndef IMG_BASE_TEAM_H
#define IMG_BASE_TEAM_H
#include "libimg.h"
#include "base/sync.h"

/* Who comes next: makes the order of one short step independent of threads.
 * A ticket is passed on exactly once, by its holder. */
struct img_turns {
    struct img_mutex lock;
    struct img_cond moved;
    uint64_t next;
    bool stopped;               /* waiters give up */
};

struct img_team {
    struct img_mutex lock;      /* protects all below but turns */
    struct img_cond changed;
    uint64_t done, total;
    unsigned running;
    bool stop;                  /* error, cancel or result is known */
    int result;
    struct img_error error;
    struct timespec started;
    uint64_t bytes_per_second;
    struct img_turns turns;
};

/* One piece of work by worker number `worker`.  Returns 1 = there may be
 * more, 0 = nothing is left for this worker, negative = stop everything. */
typedef int img_team_step(struct img_team *team, void *opaque,
                          unsigned worker, struct img_error *err);

/* How many workers to use: what the job says, or min(cpus, most).  Those that
 * wait for a server are more than there are processors. */
unsigned img_team_size(const struct img_job *job, unsigned most, bool waiting);

/* Runs step in n threads until it is done everywhere; with n = 1 on the
 * calling thread itself.  total is for progress. */
int img_team_run(const struct img_job *job, unsigned n, uint64_t total,
                 img_team_step *step, void *opaque, struct img_error *err);

/* Long work on the calling thread. */
struct img_pace {
    const struct img_job *job;
    uint64_t done, total;
    struct timespec told;       /* begins as zeros */
};

/* Tells the job, not too often; -ECANCELED: it wants no more. */
int img_pace_tell(struct img_pace *pace, struct img_error *err);

/* For step: so many more bytes are done; keeps to the job's rate. */
void img_team_add(struct img_team *team, uint64_t bytes);
bool img_team_stopped(struct img_team *team);

/* For step: waits for its turn.  -ECANCELED: the team stops; then there is
 * nothing to pass on. */
int img_team_turn(struct img_team *team, uint64_t ticket);
void img_team_pass(struct img_team *team, uint64_t ticket);
#endif
