/* Every place where a thread of the library can block on another one.
 *
 * Thin names over pthreads, in one file so that a test build can put a
 * deterministic scheduler under them.  Errors of these calls are the
 * programmer's own mistakes; a thread that takes a rwlock which it holds is
 * one that the calls report.
 */
#ifndef IMG_BASE_SYNC_H
#define IMG_BASE_SYNC_H
#include <assert.h>
#include <pthread.h>
#include <stdbool.h>
#include <time.h>

struct img_mutex { pthread_mutex_t m; };
struct img_cond { pthread_cond_t c; };
struct img_rwlock { pthread_rwlock_t l; };

static inline void img_mutex_init(struct img_mutex *m)
{
    pthread_mutex_init(&m->m, NULL);
}

static inline void img_mutex_destroy(struct img_mutex *m)
{
    pthread_mutex_destroy(&m->m);
}

static inline void img_lock(struct img_mutex *m)
{
    pthread_mutex_lock(&m->m);
}

static inline void img_unlock(struct img_mutex *m)
{
    pthread_mutex_unlock(&m->m);
}

static inline void img_cond_init(struct img_cond *c)
{
    pthread_cond_init(&c->c, NULL);
}

static inline void img_cond_destroy(struct img_cond *c)
{
    pthread_cond_destroy(&c->c);
}

static inline void img_wait(struct img_cond *c, struct img_mutex *m)
{
    pthread_cond_wait(&c->c, &m->m);
}

/* Waits at most that long. */
static inline void img_wait_ms(struct img_cond *c, struct img_mutex *m,
                               unsigned ms)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += ms / 1000;
    t.tv_nsec += (long)(ms % 1000) * 1000000;
    if (t.tv_nsec >= 1000000000) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000;
    }
    pthread_cond_clockwait(&c->c, &m->m, CLOCK_MONOTONIC, &t);
}

static inline void img_wake_one(struct img_cond *c)
{
    pthread_cond_signal(&c->c);
}

static inline void img_wake_all(struct img_cond *c)
{
    pthread_cond_broadcast(&c->c);
}

static inline void img_rwlock_init(struct img_rwlock *l)
{
    pthread_rwlock_init(&l->l, NULL);
}

static inline void img_rwlock_destroy(struct img_rwlock *l)
{
    pthread_rwlock_destroy(&l->l);
}

static inline void img_read_lock(struct img_rwlock *l)
{
    int r = pthread_rwlock_rdlock(&l->l);

    assert(r == 0);
    (void)r;
}

static inline bool img_try_read_lock(struct img_rwlock *l)
{
    return pthread_rwlock_tryrdlock(&l->l) == 0;
}

static inline void img_write_lock(struct img_rwlock *l)
{
    int r = pthread_rwlock_wrlock(&l->l);

    assert(r == 0);
    (void)r;
}

static inline void img_rw_unlock(struct img_rwlock *l)
{
    pthread_rwlock_unlock(&l->l);
}
#endif
