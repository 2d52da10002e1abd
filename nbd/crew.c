/* The threads that wait.  One thread, the client's own, hands work over; up to
 * THREADS take it, oldest first, and send its reply themselves.
 *
 * The lock protects everything; it is not held while work is done.  Bounds
 * for each client: THREADS reply buffers, QUEUED requests, COST bytes for
 * payloads and for reads that are answered in one piece (one that is longer
 * goes alone).
 */
#include <stdlib.h>
#include "crew.h"

enum {
    THREADS = 16, QUEUED = 64, COST = 32 << 20,
    STACK = 1 << 20
};

struct hand {
    pthread_t thread;
    struct nbd_crew *crew;
    struct nbd_out out;
};

struct nbd_crew {
    struct nbd_link *link;
    pthread_mutex_t lock;
    pthread_cond_t work_came, work_went;
    struct nbd_work queue[QUEUED];
    unsigned first, queued;     /* of queue */
    unsigned busy;              /* handed over and not done */
    uint64_t cost;              /* of those */
    bool stop;
    unsigned n, idle;           /* threads, and those that have nothing */
    struct hand hands[THREADS];
};

struct nbd_crew *nbd_crew_new(struct nbd_link *link)
{
    struct nbd_crew *c = calloc(1, sizeof *c);

    if (!c)
        return NULL;
    c->link = link;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->work_came, NULL);
    pthread_cond_init(&c->work_went, NULL);
    return c;
}

/* The lock is held.  False: there is no more to do. */
static bool next(struct nbd_crew *c, struct nbd_work *w)
{
    while (!c->queued && !c->stop) {
        c->idle++;
        pthread_cond_wait(&c->work_came, &c->lock);
        c->idle--;
    }
    if (!c->queued)
        return false;
    *w = c->queue[c->first];
    c->first = (c->first + 1) % QUEUED;
    c->queued--;
    return true;
}

static void *run(void *opaque)
{
    struct hand *h = opaque;
    struct nbd_crew *c = h->crew;
    struct nbd_work w;

    pthread_mutex_lock(&c->lock);
    while (next(c, &w)) {
        uint64_t cost = nbd_work_cost(c->link, &w);

        pthread_mutex_unlock(&c->lock);
        /* Nothing is told to a client that is gone, but what it asked for
         * is done. */
        if (nbd_work_do(&h->out, &w))
            nbd_out_flush(&h->out);
        free(w.payload);
        pthread_mutex_lock(&c->lock);
        c->busy--;
        c->cost -= cost;
        pthread_cond_signal(&c->work_went);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

/* The lock is held. */
static void one_more(struct nbd_crew *c)
{
    struct hand *h = &c->hands[c->n];
    pthread_attr_t attr;

    if (c->n == THREADS || pthread_attr_init(&attr) != 0)
        return;
    h->crew = c;
    pthread_attr_setstacksize(&attr, STACK);
    if (nbd_out_init(&h->out, c->link) &&
        pthread_create(&h->thread, &attr, run, h) == 0)
        c->n++;
    else
        nbd_out_end(&h->out);
    pthread_attr_destroy(&attr);
}

static bool is_full(const struct nbd_crew *c, uint64_t cost)
{
    return c->queued == QUEUED || (c->busy && c->cost + cost > COST);
}

bool nbd_crew_is_full(struct nbd_crew *c, const struct nbd_work *w)
{
    bool full;

    pthread_mutex_lock(&c->lock);
    full = is_full(c, nbd_work_cost(c->link, w));
    pthread_mutex_unlock(&c->lock);
    return full;
}

bool nbd_crew_take(struct nbd_crew *c, const struct nbd_work *w)
{
    uint64_t cost = nbd_work_cost(c->link, w);
    bool ok;

    pthread_mutex_lock(&c->lock);
    if (c->idle <= c->queued)
        one_more(c);
    ok = c->n > 0;
    while (ok && is_full(c, cost))
        pthread_cond_wait(&c->work_went, &c->lock);
    if (ok) {
        c->queue[(c->first + c->queued++) % QUEUED] = *w;
        c->busy++;
        c->cost += cost;
        if (c->idle)
            pthread_cond_signal(&c->work_came);
    }
    pthread_mutex_unlock(&c->lock);
    return ok;
}

void nbd_crew_end(struct nbd_crew *c)
{
    if (!c)
        return;
    pthread_mutex_lock(&c->lock);
    c->stop = true;
    pthread_cond_broadcast(&c->work_came);
    pthread_mutex_unlock(&c->lock);
    for (unsigned i = 0; i < c->n; i++) {
        pthread_join(c->hands[i].thread, NULL);
        nbd_out_end(&c->hands[i].out);
    }
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->work_came);
    pthread_cond_destroy(&c->work_went);
    free(c);
}
