/* A deterministic scheduler: the threads of a run are coroutines of one real
 * thread, and every place where one of them could lose the processor to
 * another (taking a lock, waiting, transferring bytes) is a choice.
 *
 * It is put under the library by the linker (--wrap), so the library that is
 * explored is the one that is shipped.  Atomics are not choices; what they
 * order is ThreadSanitizer's work.
 */
#ifndef TESTS_RACE_SCHED_H
#define TESTS_RACE_SCHED_H
#include <stdbool.h>
#include <stdint.h>

/* Calls fn once for each schedule: at first all with at most `preemptions`
 * switches away from a thread that could have gone on, as far as `most` runs
 * allow, then `random` more picked by a generator.  False: fn, or the
 * scheduler itself (a deadlock), said that something is wrong; the schedule
 * has been printed. */
struct sched_plan {
    const char *name;
    unsigned preemptions;
    unsigned long most, random;
    uint64_t seed;
    const char *replay;         /* a printed schedule: only this one */
};
struct sched_count { unsigned long runs, choices; bool complete; };

bool sched_explore(const struct sched_plan *plan, bool fn(void *),
                   void *opaque, struct sched_count *count);

/* Within fn: run these threads until all have ended, with choices. */
void sched_together(void *(*fn)(void *), void **args, unsigned n);

/* Where another thread may get in between, if there are choices now. */
void sched_point(void);
bool sched_is_choosing(void);
/* Something has happened after which random schedules shall switch often. */
void sched_stir(void);
#endif
