/* The scheduler.
 *
 * A coroutine is ready, or waits for something that can be looked up (a
 * mutex to be free, a thread to end): so who can go on is worked out anew at
 * every choice, and nobody has to be woken.  Waiting for a condition is the
 * exception: signals turn it into waiting for the mutex, the longest waiting
 * first.
 *
 * Schedules are walked depth first.  A run follows the choices recorded by
 * the one before up to the last that has another way to go, takes that, and
 * is on its own from there: the current coroutine as long as it can.
 */
#include "sched.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <ucontext.h>

enum { THREADS = 16, STACK = 512 << 10, CHOICES = 1 << 16, STIRRED = 16 };

enum state { FREE, READY, FOR_MUTEX, FOR_SIGNAL, FOR_READ, FOR_WRITE,
             FOR_END, ENDED };

struct thread {
    ucontext_t context;
    char *stack;
    enum state state;
    void *(*fn)(void *);
    void *arg, *result;
    void *what;                 /* it waits for */
    struct mutex *mutex;        /* of the condition */
    bool timed, timed_out;
    uint64_t since;
};

/* What lies in the bytes of the pthread objects: all zero is unused. */
struct mutex { unsigned owner; };       /* thread + 1 */
struct rwlock { unsigned readers, writer; };

struct choice {
    uint8_t n, picked;
    bool preemptive;            /* the first is the current one, and can */
};

static struct {
    struct thread threads[THREADS];
    unsigned current;
    bool choosing;
    uint64_t clock;
    struct choice *choices;     /* of this run */
    unsigned n, prefix;
    bool random;
    unsigned stir;              /* choices left that are anyone's */
    uint64_t rng;
    const char *name;
    unsigned long total;
} s;

/* ---- complaining ------------------------------------------------------- */

static void print_schedule(void)
{
    unsigned last = 0;

    for (unsigned i = 0; i < s.n; i++)
        if (s.choices[i].picked)
            last = i + 1;
    fprintf(stderr, "race: %s: schedule ", s.name);
    for (unsigned i = 0; i < last; i++)
        fputc('0' + s.choices[i].picked, stderr);
    fputs(last ? "\n" : "-\n", stderr);
}

static void die(const char *why)
{
    fprintf(stderr, "race: %s\n", why);
    for (unsigned i = 0; i < THREADS; i++)
        if (s.threads[i].state != FREE)
            fprintf(stderr, "  thread %u: state %d, waits for %p\n", i,
                    s.threads[i].state, s.threads[i].what);
    print_schedule();
    exit(1);
}

/* ---- choosing ---------------------------------------------------------- */

static bool can_go(const struct thread *t)
{
    const struct mutex *m = t->what;
    const struct rwlock *l = t->what;
    const struct thread *other = t->what;

    switch (t->state) {
    case READY: return true;
    case FOR_MUTEX: return !m->owner;
    case FOR_READ: return !l->writer;
    case FOR_WRITE: return !l->writer && !l->readers;
    case FOR_END: return other->state == ENDED;
    default: return false;
    }
}

/* Who can go on, the current thread first. */
static unsigned candidates(unsigned *who)
{
    unsigned n = 0;

    if (can_go(&s.threads[s.current]))
        who[n++] = s.current;
    for (unsigned i = 0; i < THREADS; i++)
        if (i != s.current && can_go(&s.threads[i]))
            who[n++] = i;
    return n;
}

/* Nobody can go on: the first that waits for a time only. */
static unsigned end_a_wait(unsigned *who)
{
    for (unsigned i = 0; i < THREADS; i++) {
        struct thread *t = &s.threads[i];

        if (t->state != FOR_SIGNAL || !t->timed || t->mutex->owner)
            continue;
        t->timed_out = true;
        t->state = FOR_MUTEX;
        t->what = t->mutex;
        *who = i;
        return 1;
    }
    die("deadlock");
    return 0;
}

static unsigned pick_random(unsigned n, bool preemptive)
{
    s.rng = s.rng * 6364136223846793005u + 1442695040888963407u;
    if (preemptive && (s.rng >> 33) % (s.stir ? 2 : 8))
        return 0;
    return (unsigned)((s.rng >> 40) % n);
}

static unsigned choose(unsigned n, bool preemptive)
{
    struct choice *c;

    s.total++;
    s.clock++;
    if (!s.choosing || n == 1)
        return 0;
    if (s.n == CHOICES)
        die("too many choices");
    c = &s.choices[s.n];
    if (s.n < s.prefix && c->n == n && c->preemptive == preemptive) {
        s.n++;
        return c->picked;
    }
    if (s.n < s.prefix)
        s.prefix = s.n;         /* it did not come out as recorded */
    s.n++;
    *c = (struct choice){ (uint8_t)n, 0, preemptive };
    if (s.random)
        c->picked = (uint8_t)pick_random(n, preemptive);
    s.stir -= s.stir > 0;
    return c->picked;
}

static void go_on(void)
{
    struct thread *from = &s.threads[s.current], *to;
    unsigned who[THREADS], n = candidates(who);

    if (!n)
        n = end_a_wait(who);
    to = &s.threads[who[choose(n, who[0] == s.current)]];
    s.current = (unsigned)(to - s.threads);
    to->state = READY;
    if (to != from)
        swapcontext(&from->context, &to->context);
}

static void wait_for(enum state state, void *what)
{
    struct thread *t = &s.threads[s.current];

    t->state = state;
    t->what = what;
    go_on();
    t->what = NULL;
}

void sched_point(void)
{
    if (s.choosing)
        go_on();
}

bool sched_is_choosing(void)
{
    return s.choosing;
}

void sched_stir(void)
{
    s.stir = STIRRED;
}

/* ---- threads ----------------------------------------------------------- */

static void begin(void)
{
    struct thread *t = &s.threads[s.current];

    t->result = t->fn(t->arg);
    wait_for(ENDED, NULL);
    die("a thread that ended goes on");
}

static struct thread *spawn(void *(*fn)(void *), void *arg)
{
    struct thread *t = s.threads;

    while (t < s.threads + THREADS && t->state != FREE)
        t++;
    if (t == s.threads + THREADS)
        die("too many threads");
    if (!t->stack && !(t->stack = malloc(STACK)))
        die("no memory");
    t->fn = fn;
    t->arg = arg;
    t->state = READY;
    getcontext(&t->context);
    t->context.uc_stack.ss_sp = t->stack;
    t->context.uc_stack.ss_size = STACK;
    t->context.uc_link = NULL;
    makecontext(&t->context, begin, 0);
    return t;
}

static void *join(struct thread *t)
{
    wait_for(FOR_END, t);
    t->state = FREE;
    return t->result;
}

void sched_together(void *(*fn)(void *), void **args, unsigned n)
{
    struct thread *t[THREADS];

    for (unsigned i = 0; i < n; i++)
        t[i] = spawn(fn, args[i]);
    s.choosing = true;
    for (unsigned i = 0; i < n; i++)
        join(t[i]);
    s.choosing = false;
}

/* ---- exploring --------------------------------------------------------- */

/* The next schedule in depth-first order; false = there is none. */
static bool advance(unsigned preemptions)
{
    unsigned used = 0;

    for (unsigned i = 0; i < s.n; i++)
        used += s.choices[i].preemptive && s.choices[i].picked;
    for (unsigned i = s.n; i--; ) {
        struct choice *c = &s.choices[i];

        used -= c->preemptive && c->picked;
        if (c->picked + 1 < c->n && used + c->preemptive <= preemptions) {
            c->picked++;
            s.prefix = i + 1;
            return true;
        }
    }
    return false;
}

static bool run(bool fn(void *), void *opaque)
{
    bool ok;

    s.n = 0;
    s.current = 0;
    s.stir = 0;
    s.choosing = false;
    s.threads[0].state = READY;
    ok = fn(opaque);
    for (unsigned i = 1; i < THREADS; i++)
        if (s.threads[i].state != FREE)
            die("a thread was left behind");
    if (!ok)
        print_schedule();
    return ok;
}

/* A replayed schedule has no widths: they are found in a first run each
 * time one more choice is followed. */
static bool run_replay(const char *text, bool fn(void *), void *opaque)
{
    size_t len = strspn(text, "0123456789");
    bool ok = run(fn, opaque);

    for (size_t i = 0; i < len && i < s.n && ok; i++) {
        unsigned wanted = (unsigned)(text[i] - '0');

        if (!wanted)
            continue;
        if (wanted >= s.choices[i].n)
            die("the schedule does not fit");
        s.choices[i].picked = (uint8_t)wanted;
        s.prefix = (unsigned)i + 1;
        ok = run(fn, opaque);
    }
    return ok;
}

bool sched_explore(const struct sched_plan *plan, bool fn(void *),
                   void *opaque, struct sched_count *count)
{
    bool ok, more = true;

    *count = (struct sched_count){ 0 };
    s.name = plan->name;
    s.rng = plan->seed;
    s.random = false;
    s.prefix = 0;
    s.total = 0;
    if (!s.choices)
        s.choices = calloc(CHOICES, sizeof *s.choices);
    if (!s.choices)
        die("no memory");
    if (plan->replay)
        return run_replay(plan->replay, fn, opaque);
    for (ok = true; ok && more && count->runs < plan->most; count->runs++) {
        ok = run(fn, opaque);
        more = ok && advance(plan->preemptions);
    }
    count->complete = !more;
    s.random = true;
    for (unsigned long i = 0; ok && i < plan->random; i++, count->runs++) {
        s.prefix = 0;
        ok = run(fn, opaque);
    }
    count->choices = s.total;
    return ok;
}

/* ---- what the linker puts under the library ---------------------------- */

int __wrap_pthread_mutex_init(pthread_mutex_t *, const pthread_mutexattr_t *);
int __wrap_pthread_mutex_destroy(pthread_mutex_t *);
int __wrap_pthread_mutex_lock(pthread_mutex_t *);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *);
int __wrap_pthread_cond_init(pthread_cond_t *, const pthread_condattr_t *);
int __wrap_pthread_cond_destroy(pthread_cond_t *);
int __wrap_pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *);
int __wrap_pthread_cond_clockwait(pthread_cond_t *, pthread_mutex_t *,
                                  clockid_t, const struct timespec *);
int __wrap_pthread_cond_signal(pthread_cond_t *);
int __wrap_pthread_cond_broadcast(pthread_cond_t *);
int __wrap_pthread_rwlock_init(pthread_rwlock_t *,
                               const pthread_rwlockattr_t *);
int __wrap_pthread_rwlock_destroy(pthread_rwlock_t *);
int __wrap_pthread_rwlock_rdlock(pthread_rwlock_t *);
int __wrap_pthread_rwlock_tryrdlock(pthread_rwlock_t *);
int __wrap_pthread_rwlock_wrlock(pthread_rwlock_t *);
int __wrap_pthread_rwlock_unlock(pthread_rwlock_t *);
int __wrap_pthread_create(pthread_t *, const pthread_attr_t *,
                          void *(*)(void *), void *);
int __wrap_pthread_join(pthread_t, void **);

int __wrap_pthread_mutex_init(pthread_mutex_t *m,
                              const pthread_mutexattr_t *attr)
{
    (void)attr;
    memset(m, 0, sizeof *m);
    return 0;
}

int __wrap_pthread_mutex_destroy(pthread_mutex_t *m)
{
    if (((struct mutex *)m)->owner)
        die("a locked mutex is destroyed");
    return 0;
}

static void take(struct mutex *m)
{
    while (m->owner) {
        if (m->owner == s.current + 1)
            die("a thread locks a mutex that it holds");
        wait_for(FOR_MUTEX, m);
    }
    m->owner = s.current + 1;
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *m)
{
    sched_point();
    take((struct mutex *)m);
    return 0;
}

static void release(struct mutex *m)
{
    if (m->owner != s.current + 1)
        die("a thread unlocks a mutex that it does not hold");
    m->owner = 0;
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *m)
{
    release((struct mutex *)m);
    return 0;
}

int __wrap_pthread_cond_init(pthread_cond_t *c,
                             const pthread_condattr_t *attr)
{
    (void)attr;
    memset(c, 0, sizeof *c);
    return 0;
}

int __wrap_pthread_cond_destroy(pthread_cond_t *c)
{
    for (unsigned i = 0; i < THREADS; i++)
        if (s.threads[i].state == FOR_SIGNAL && s.threads[i].what == c)
            die("a condition that is waited for is destroyed");
    return 0;
}

static bool wait_signal(pthread_cond_t *c, struct mutex *m, bool timed)
{
    struct thread *t = &s.threads[s.current];

    release(m);
    t->mutex = m;
    t->timed = timed;
    t->timed_out = false;
    t->since = s.clock;
    wait_for(FOR_SIGNAL, c);
    take(m);
    return t->timed_out;
}

int __wrap_pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m)
{
    wait_signal(c, (struct mutex *)m, false);
    return 0;
}

int __wrap_pthread_cond_clockwait(pthread_cond_t *c, pthread_mutex_t *m,
                                  clockid_t clock,
                                  const struct timespec *until)
{
    (void)clock;
    (void)until;
    return wait_signal(c, (struct mutex *)m, true) ? 110 /* ETIMEDOUT */ : 0;
}

static bool wake_longest(pthread_cond_t *c)
{
    struct thread *first = NULL;

    for (unsigned i = 0; i < THREADS; i++) {
        struct thread *t = &s.threads[i];

        if (t->state == FOR_SIGNAL && t->what == c &&
            (!first || t->since < first->since))
            first = t;
    }
    if (!first)
        return false;
    first->state = FOR_MUTEX;
    first->what = first->mutex;
    return true;
}

int __wrap_pthread_cond_signal(pthread_cond_t *c)
{
    wake_longest(c);
    return 0;
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *c)
{
    while (wake_longest(c))
        ;
    return 0;
}

int __wrap_pthread_rwlock_init(pthread_rwlock_t *l,
                               const pthread_rwlockattr_t *attr)
{
    (void)attr;
    memset(l, 0, sizeof *l);
    return 0;
}

int __wrap_pthread_rwlock_destroy(pthread_rwlock_t *l)
{
    const struct rwlock *rw = (struct rwlock *)l;

    if (rw->readers || rw->writer)
        die("a locked rwlock is destroyed");
    return 0;
}

int __wrap_pthread_rwlock_rdlock(pthread_rwlock_t *l)
{
    struct rwlock *rw = (struct rwlock *)l;

    sched_point();
    while (rw->writer)
        wait_for(FOR_READ, rw);
    rw->readers++;
    return 0;
}

int __wrap_pthread_rwlock_tryrdlock(pthread_rwlock_t *l)
{
    struct rwlock *rw = (struct rwlock *)l;

    sched_point();
    if (rw->writer)
        return 16;              /* EBUSY */
    rw->readers++;
    return 0;
}

int __wrap_pthread_rwlock_wrlock(pthread_rwlock_t *l)
{
    struct rwlock *rw = (struct rwlock *)l;

    sched_point();
    while (rw->writer || rw->readers)
        wait_for(FOR_WRITE, rw);
    rw->writer = s.current + 1;
    return 0;
}

int __wrap_pthread_rwlock_unlock(pthread_rwlock_t *l)
{
    struct rwlock *rw = (struct rwlock *)l;

    if (rw->writer)
        rw->writer = 0;
    else if (rw->readers)
        rw->readers--;
    else
        die("an rwlock is unlocked that nobody holds");
    return 0;
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr,
                          void *(*fn)(void *), void *arg)
{
    struct thread *t = spawn(fn, arg);

    (void)attr;
    *thread = (pthread_t)(t - s.threads);
    return 0;
}

int __wrap_pthread_join(pthread_t thread, void **result)
{
    void *value = join(&s.threads[thread]);

    if (result)
        *result = value;
    return 0;
}
