/* Queues: requests in flight, done by helper threads that all queues of a
 * disk share.
 *
 * A request travels: the queue's free list, the crew's list of work, a
 * helper, the queue's list of what is done, and back.  The event descriptor
 * is readable exactly while that last list is not empty.  Short reads of what
 * is in memory are done on the way in: copying takes less time than waking
 * another thread.
 *
 * Locks: crew->lock guards the work, queue->lock what is done; no thread
 * holds both, and neither is held while a request runs.  Everything else in a
 * queue belongs to the one thread that uses it.
 */
#include "core/disk.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/iov.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { HELPERS = 16, DEPTH_MAX = 1 << 16, SHORT_READ = 64 << 10 };

struct slot {
    struct slot *next;
    struct img_queue *queue;
    struct img_request req;
    int result;
    char *message;              /* malloc'ed; NULL = success, or no memory */
};

struct list {
    struct slot *first, *last;
};

struct img_crew {
    struct img_mutex lock;
    struct img_cond work_came;
    struct list work;
    unsigned idle;
    bool stop;
    unsigned n;                 /* threads that run */
    pthread_t threads[HELPERS];
    struct img_disk *disk;
};

struct img_queue {
    struct img_disk *disk;
    struct img_crew *crew;
    struct slot *slots;         /* depth of them */
    struct slot *free;
    unsigned depth, in_flight;  /* submitted and not reaped */
    char **kept;                /* messages given out by the last reap */
    unsigned n_kept;
    int fd;
    struct img_mutex lock;
    struct list done;
};

static void append(struct list *list, struct slot *s)
{
    s->next = NULL;
    if (list->last)
        list->last->next = s;
    else
        list->first = s;
    list->last = s;
}

static struct slot *take_first(struct list *list)
{
    struct slot *s = list->first;

    if (s) {
        list->first = s->next;
        if (!list->first)
            list->last = NULL;
    }
    return s;
}

/* ---- helpers ----------------------------------------------------------- */

static int run(struct img_disk *d, const struct img_request *q,
               struct img_error *err)
{
    switch (q->op) {
    case IMG_READ:
        return img_preadv(d, q->iov, q->iovcnt, q->off, err);
    case IMG_WRITE:
        return img_pwritev(d, q->iov, q->iovcnt, q->off, q->flags, err);
    case IMG_ZERO:
        return img_zero(d, q->off, q->len, q->flags, err);
    case IMG_DISCARD:
        return img_discard(d, q->off, q->len, err);
    case IMG_FLUSH:
        return img_flush(d, err);
    }
    return img_fail(err, EINVAL, "%s: request %d is unknown", img_path(d),
                    (int)q->op);
}

static void join(struct list *to, const struct list *more)
{
    if (to->last)
        to->last->next = more->first;
    else
        to->first = more->first;
    to->last = more->last;
}

static void complete(struct img_queue *q, const struct list *more)
{
    bool first;

    img_lock(&q->lock);
    first = !q->done.first;
    join(&q->done, more);
    if (first)
        (void)!eventfd_write(q->fd, 1);
    img_unlock(&q->lock);
}

static void *helper(void *opaque)
{
    struct img_crew *crew = opaque;
    struct img_error err;
    struct slot *s;

    img_lock(&crew->lock);
    for (;;) {
        while (!crew->work.first && !crew->stop) {
            crew->idle++;
            img_wait(&crew->work_came, &crew->lock);
            crew->idle--;
        }
        s = take_first(&crew->work);
        if (!s)
            break;
        img_unlock(&crew->lock);
        err.message[0] = 0;
        s->result = run(crew->disk, &s->req, &err);
        if (s->result < 0)
            s->message = strdup(err.message);
        s->next = NULL;
        complete(s->queue, &(struct list){ s, s });
        img_lock(&crew->lock);
    }
    img_unlock(&crew->lock);
    return NULL;
}

void img_crew_end(struct img_crew *crew)
{
    if (!crew)
        return;
    img_lock(&crew->lock);
    crew->stop = true;
    img_wake_all(&crew->work_came);
    img_unlock(&crew->lock);
    for (unsigned i = 0; i < crew->n; i++)
        pthread_join(crew->threads[i], NULL);
    img_cond_destroy(&crew->work_came);
    img_mutex_destroy(&crew->lock);
    free(crew);
}

/* Signals are for the program's own threads. */
static int start_helpers(struct img_crew *crew)
{
    sigset_t all, old;
    int r = 0;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (crew->n < HELPERS && r == 0) {
        r = pthread_create(&crew->threads[crew->n], NULL, helper, crew);
        if (r == 0)
            crew->n++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return crew->n ? 0 : -r;
}

static int crew_of(struct img_disk *d, struct img_crew **out,
                   struct img_error *err)
{
    struct img_crew *crew;
    int r = 0;

    img_lock(&d->crew_lock);
    crew = d->crew;
    if (!crew) {
        crew = calloc(1, sizeof *crew);
        if (!crew) {
            r = img_fail_nomem(err);
        } else {
            crew->disk = d;
            img_mutex_init(&crew->lock);
            img_cond_init(&crew->work_came);
            r = start_helpers(crew);
            if (r < 0) {
                img_fail_errno(err, -r, "%s: starting helper threads",
                               d->path);
                img_crew_end(crew);
                crew = NULL;
            }
        }
        d->crew = crew;
    }
    img_unlock(&d->crew_lock);
    *out = crew;
    return r;
}

/* ---- queues ------------------------------------------------------------ */

int img_queue_open(struct img_disk *d, unsigned depth,
                   struct img_queue **queue, struct img_error *err)
{
    struct img_queue *q;
    int r;

    if (!depth || depth > DEPTH_MAX)
        return img_fail(err, EINVAL, "%s: a queue for %u requests", d->path,
                        depth);
    q = calloc(1, sizeof *q);
    if (!q)
        return img_fail_nomem(err);
    q->disk = d;
    q->depth = depth;
    img_mutex_init(&q->lock);
    q->slots = calloc(depth, sizeof *q->slots);
    q->kept = calloc(depth, sizeof *q->kept);
    q->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!q->slots || !q->kept)
        r = img_fail_nomem(err);
    else if (q->fd < 0)
        r = img_fail_errno(err, errno, "%s: eventfd", d->path);
    else
        r = crew_of(d, &q->crew, err);
    if (r < 0) {
        img_queue_close(q);
        return r;
    }
    for (unsigned i = 0; i < depth; i++) {
        q->slots[i].queue = q;
        q->slots[i].next = q->free;
        q->free = &q->slots[i];
    }
    *queue = q;
    return 0;
}

static bool is_done_now(struct img_disk *d, const struct img_request *req)
{
    int r;

    if (req->op != IMG_READ ||
        img_iov_total(req->iov, req->iovcnt) > SHORT_READ ||
        !img_try_read_lock(&d->structure))
        return false;
    r = img_io_read_now(&d->io, req->iov, req->iovcnt, req->off);
    img_rw_unlock(&d->structure);
    return r == 0;
}

static void hand_over(struct img_crew *crew, const struct list *batch, int n)
{
    img_lock(&crew->lock);
    join(&crew->work, batch);
    for (int i = 0; i < n && i < (int)crew->idle; i++)
        img_wake_one(&crew->work_came);
    img_unlock(&crew->lock);
}

int img_queue_submit(struct img_queue *q, const struct img_request *reqs,
                     int n)
{
    struct list batch = { NULL, NULL }, now = { NULL, NULL };
    int taken, n_batch = 0;

    for (taken = 0; taken < n && q->free; taken++) {
        struct slot *s = q->free;

        q->free = s->next;
        s->req = reqs[taken];
        s->message = NULL;
        s->result = 0;
        if (is_done_now(q->disk, &s->req)) {
            append(&now, s);
        } else {
            append(&batch, s);
            n_batch++;
        }
    }
    q->in_flight += (unsigned)taken;
    if (n_batch)
        hand_over(q->crew, &batch, n_batch);
    if (now.first)
        complete(q, &now);
    return taken;
}

static void forget_messages(struct img_queue *q)
{
    while (q->n_kept)
        free(q->kept[--q->n_kept]);
}

/* Takes at most max; the descriptor says afterwards whether more is there. */
static int take_done(struct img_queue *q, struct img_completion *done, int max)
{
    eventfd_t count;
    int n = 0;

    img_lock(&q->lock);
    while (n < max && q->done.first) {
        struct slot *s = take_first(&q->done);

        done[n++] = (struct img_completion){
            s->req.user, s->result, s->message,
        };
        if (s->message)
            q->kept[q->n_kept++] = s->message;
        else if (s->result < 0)
            done[n - 1].message = "out of memory";
        s->next = q->free;
        q->free = s;
        q->in_flight--;
    }
    if (n && !q->done.first)
        (void)!eventfd_read(q->fd, &count);
    img_unlock(&q->lock);
    return n;
}

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int img_queue_reap(struct img_queue *q, struct img_completion *done,
                   int min, int max, int timeout_ms)
{
    struct pollfd fd = { .fd = q->fd, .events = POLLIN };
    int64_t until = timeout_ms > 0 ? now_ms() + timeout_ms : 0;
    int n = 0;

    /* The messages of one reap stay, so that one takes no more than depth. */
    max = IMG_MIN(max, (int)q->depth);
    min = IMG_MIN(min, IMG_MIN(max, (int)q->in_flight));
    forget_messages(q);
    for (;;) {
        int64_t left = -1;

        n += take_done(q, done + n, max - n);
        if (n >= min || timeout_ms == 0)
            return n;
        if (timeout_ms > 0) {
            left = until - now_ms();
            if (left <= 0)
                return n;
        }
        poll(&fd, 1, (int)left);
    }
}

int img_queue_fd(const struct img_queue *q)
{
    return q->fd;
}

void img_queue_close(struct img_queue *q)
{
    struct img_completion done[16];

    if (!q)
        return;
    while (q->in_flight)
        img_queue_reap(q, done, 1, (int)IMG_COUNT(done), -1);
    forget_messages(q);
    if (q->fd >= 0)
        close(q->fd);
    img_mutex_destroy(&q->lock);
    free(q->kept);
    free(q->slots);
    free(q);
}
