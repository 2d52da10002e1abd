/* Connections to one NBD server, by libnbd.
 *
 * There is one, and up to CONNS where the server says that it keeps them
 * coherent (multi-conn); more are opened only when requests meet.  Any
 * number of requests is in flight on a connection: whoever waits for one
 * becomes the connection's reader if it has none, and moves everybody's
 * bytes; the others sleep until their request is done or the reader leaves.
 *
 * A broken connection stays broken, and its requests fail, for nobody knows
 * which writes were done.  With a reconnect delay it is made anew and the
 * requests are sent again.  A server that was started anew may have forgotten
 * what was not flushed, so with a delay each write is sent with FUA; of a
 * server that does not know FUA no flush succeeds any more once a connection
 * with unflushed writes was lost.
 *
 * Locks: conn.lock protects the handle and the requests on it; the reader
 * lets go of it while it polls.  link.lock protects the list of connections.
 */
#include "file/nbd.h"
#include "base/error.h"

#ifdef HAVE_LIBNBD

#include "base/checked.h"
#include "base/sync.h"
#include "file/nbd_lib.h"
#include "file/nbd_link.h"
#include "libimg.h"

#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum {
    CONNS = 4,
    BUSY = 2,                   /* requests on each before one more is made */
    DIAL_MS = 1000,             /* for connections beyond the first */
    AGAIN_MS = 100,             /* between two attempts */
    FOR_EVER = -1
};

static const struct img_nbd_lib *const nbd = &img_nbd_lib;

struct conn {
    struct img_mutex lock;
    struct img_cond moved;      /* requests are done, or the reader left */
    struct nbd_handle *h;
    int kick;                   /* eventfd: the reader must look again */
    bool reading;               /* somebody is the reader */
    unsigned generation;        /* of the handle */
    uint64_t lost_ms, tried_ms; /* when; 0 = it is fine */
    atomic_uint busy;
};

struct img_nbd_link {
    struct img_mutex lock;
    struct conn *conns[CONNS];
    unsigned n;
    bool more;                  /* further connections may be tried */
    bool durable;               /* writes are sent with FUA */
    struct img_nbd_name name;
    struct img_nbd_facts facts;
    atomic_ulong written;       /* begins and ends of writes, with a delay and
                                   without FUA */
    atomic_ulong flushed;       /* as many of them a flush has covered */
    atomic_bool doubt;          /* others may be gone */
    struct img_mutex flushing;  /* one flush at a time; before all others */
    bool failed;                /* under flushing: the server could not flush:
                                   what it dropped is not in a later one */
};

static uint64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000 + 1;
}

static int fail_nbd(struct img_error *err, const char *path, int fall_back)
{
    int code = nbd->get_errno();
    const char *text = nbd->get_error();

    return img_fail(err, code > 0 ? code : fall_back, "%s: %s", path,
                    text ? text : "unknown error");
}

/* ---- handles ----------------------------------------------------------- */

static bool is_dead(struct nbd_handle *h)
{
    return !h || nbd->aio_is_dead(h) || nbd->aio_is_closed(h);
}

/* limit_ms: FOR_EVER = as long as the system takes. */
static struct nbd_handle *dial(const char *uri, int limit_ms,
                               const char *path, struct img_error *err)
{
    struct nbd_handle *h = nbd->create();
    uint64_t until = now_ms() + (uint64_t)limit_ms;
    int r = -1;

    if (!h || nbd->set_uri_allow_local_file(h, true) < 0 ||
        nbd->add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0) {
        fail_nbd(err, path, ENOMEM);
    } else if (limit_ms == FOR_EVER) {
        r = nbd->connect_uri(h, uri);
        if (r < 0)
            fail_nbd(err, path, EIO);
    } else {
        r = nbd->aio_connect_uri(h, uri);
        while (r >= 0 && nbd->aio_is_connecting(h) == 1 && now_ms() < until)
            r = nbd->poll(h, 50);
        if (r < 0 || is_dead(h))
            fail_nbd(err, path, EIO);
        else if (nbd->aio_is_ready(h) != 1)
            img_fail(err, ETIMEDOUT, "%s: the server does not answer", path);
        r = nbd->aio_is_ready(h) == 1 ? 0 : -1;
    }
    if (r < 0 && h) {
        nbd->close(h);
        h = NULL;
    }
    return h;
}

static int learn(struct nbd_handle *h, const char *path,
                 struct img_nbd_facts *f, struct img_error *err)
{
    int64_t size = nbd->get_size(h);
    int64_t align = nbd->get_block_size(h, LIBNBD_SIZE_MINIMUM);
    int64_t most = nbd->get_block_size(h, LIBNBD_SIZE_MAXIMUM);

    if (size < 0)
        return fail_nbd(err, path, EIO);
    *f = (struct img_nbd_facts){
        .size = (uint64_t)size,
        .align = align > 0 ? (uint64_t)align : 0,
        .most = most > 0 ? (uint64_t)most : 0,
        .read_only = nbd->is_read_only(h) == 1,
        .multi_conn = nbd->can_multi_conn(h) == 1,
        .can_flush = nbd->can_flush(h) == 1,
        .can_fua = nbd->can_fua(h) == 1,
        .can_zero = nbd->can_zero(h) == 1,
        .can_fast_zero = nbd->can_fast_zero(h) == 1,
        .can_trim = nbd->can_trim(h) == 1,
        .has_status =
            nbd->can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1,
    };
    return 0;
}

/* A further connection, or one made anew, must be to the same thing. */
static struct nbd_handle *dial_same(const struct img_nbd_link *l,
                                    int limit_ms)
{
    struct nbd_handle *h = dial(l->name.uri, limit_ms, "", NULL);
    const struct img_nbd_facts *a = &l->facts;
    struct img_nbd_facts b;

    if (h && learn(h, "", &b, NULL) == 0 && a->size == b.size &&
        a->align == b.align && a->most == b.most &&
        a->read_only == b.read_only && a->can_flush == b.can_flush &&
        a->can_fua == b.can_fua && a->can_zero == b.can_zero &&
        a->can_fast_zero == b.can_fast_zero && a->can_trim == b.can_trim &&
        a->has_status == b.has_status)
        return h;
    if (h)
        nbd->close(h);
    return NULL;
}

/* ---- connections ------------------------------------------------------- */

static void conn_free(struct conn *c)
{
    if (!c)
        return;
    if (c->h)
        nbd->close(c->h);
    if (c->kick >= 0)
        close(c->kick);
    img_mutex_destroy(&c->lock);
    img_cond_destroy(&c->moved);
    free(c);
}

/* Takes h over, on failure too. */
static struct conn *conn_new(struct nbd_handle *h)
{
    struct conn *c = h ? calloc(1, sizeof *c) : NULL;

    if (!c) {
        if (h)
            nbd->close(h);
        return NULL;
    }
    img_mutex_init(&c->lock);
    img_cond_init(&c->moved);
    c->h = h;
    c->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c->kick >= 0)
        return c;
    conn_free(c);
    return NULL;
}

/* The least busy connection; perhaps a new one. */
static struct conn *pick(struct img_nbd_link *l)
{
    struct conn *best;

    img_lock(&l->lock);
    best = l->conns[0];
    for (unsigned i = 1; i < l->n; i++)
        if (atomic_load(&l->conns[i]->busy) < atomic_load(&best->busy))
            best = l->conns[i];
    if (l->more && atomic_load(&best->busy) >= BUSY) {
        /* A server may say multi-conn and yet take no further client. */
        struct conn *c = conn_new(dial_same(l, DIAL_MS));

        if (c)
            best = l->conns[l->n++] = c;
        l->more = c && l->n < CONNS;
    }
    atomic_fetch_add(&best->busy, 1);
    img_unlock(&l->lock);
    return best;
}

/* ---- requests ---------------------------------------------------------- */

static int completed(void *opaque, int *error)
{
    struct img_nbd_request *r = opaque;

    r->error = *error;
    r->done = true;
    if (r->count)
        atomic_fetch_add(r->count, 1);
    return 1;                   /* libnbd forgets the request */
}

static int told_extents(void *opaque, const char *context, uint64_t off,
                        uint32_t *entries, size_t n, int *error)
{
    struct img_nbd_extents *k = ((struct img_nbd_request *)opaque)->extents;

    if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION))
        return 0;
    k->off = off;
    k->n = 0;
    for (size_t i = 0; i + 1 < n && k->n < k->room; i += 2) {
        k->len[k->n] = entries[i];
        k->data[k->n++] = !(entries[i + 1] & LIBNBD_STATE_ZERO);
    }
    return 0;
}

static int64_t issue(struct conn *c, struct img_nbd_request *r)
{
    nbd_completion_callback done = { .callback = completed, .user_data = r };
    nbd_extent_callback extent = { .callback = told_extents, .user_data = r };

    switch (r->op) {
    case IMG_NBD_READ:
        return nbd->aio_pread(c->h, r->buf, r->len, r->off, done, r->flags);
    case IMG_NBD_WRITE:
        return nbd->aio_pwrite(c->h, r->buf, r->len, r->off, done, r->flags);
    case IMG_NBD_ZERO:
        return nbd->aio_zero(c->h, r->len, r->off, done, r->flags);
    case IMG_NBD_TRIM:
        return nbd->aio_trim(c->h, r->len, r->off, done, r->flags);
    case IMG_NBD_FLUSH:
        return nbd->aio_flush(c->h, done, r->flags);
    case IMG_NBD_STATUS:
        return nbd->aio_block_status(c->h, r->len, r->off, extent, done,
                                    r->flags);
    }
    return -1;
}

/* Moves bytes until r is done.  Called, and returns, with the lock held. */
static void be_reader(struct conn *c, const struct img_nbd_request *r)
{
    c->reading = true;
    while (!r->done) {
        unsigned way = nbd->aio_get_direction(c->h);
        struct pollfd p[2] = {
            { .fd = nbd->aio_get_fd(c->h) },
            { .fd = c->kick, .events = POLLIN }
        };
        uint64_t count;

        if (p[0].fd < 0 || is_dead(c->h))
            break;
        p[0].events = (way & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                      (way & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
        img_unlock(&c->lock);
        poll(p, 2, -1);
        img_lock(&c->lock);
        if (p[1].revents && read(c->kick, &count, sizeof count) < 0)
            continue;           /* somebody else was kicked */
        way = nbd->aio_get_direction(c->h);
        if ((way & LIBNBD_AIO_DIRECTION_READ) &&
            (p[0].revents & (POLLIN | POLLHUP | POLLERR)))
            nbd->aio_notify_read(c->h);
        else if ((way & LIBNBD_AIO_DIRECTION_WRITE) &&
                 (p[0].revents & (POLLOUT | POLLHUP | POLLERR)))
            nbd->aio_notify_write(c->h);
        img_wake_all(&c->moved);
    }
    c->reading = false;
    img_wake_all(&c->moved);
}

static void kick(struct conn *c)
{
    uint64_t one = 1;

    /* It fails only when it is full, and then it is readable already. */
    if (write(c->kick, &one, sizeof one) < 0)
        return;
}

static void give_up(struct img_nbd_request *r, int error)
{
    r->done = true;
    r->error = error;
}

/* r->lost: there is no connection any more, and nobody knows whether the
 * server did it. */
static int run_on(struct conn *c, const char *path, struct img_nbd_request *r,
                  struct img_error *err)
{
    unsigned generation;
    int ret = 0;

    img_lock(&c->lock);
    generation = c->generation;
    if (is_dead(c->h)) {
        ret = img_fail(err, ENOTCONN, "%s: the connection to the server is "
                       "broken", path);
        r->done = true;
    } else if (issue(c, r) < 0) {
        ret = fail_nbd(err, path, EIO);
        r->done = true;
    }
    if (c->reading)
        kick(c);
    while (!r->done) {
        if (generation != c->generation) {
            give_up(r, ENOTCONN);
        } else if (c->reading) {
            img_wait(&c->moved, &c->lock);
        } else {
            be_reader(c, r);
            if (!r->done)
                give_up(r, ENOTCONN);
        }
    }
    if (ret == 0 && r->error)
        ret = img_fail_errno(err, r->error, "%s: the server failed a request "
                             "at %llu", path, (unsigned long long)r->off);
    r->lost = ret < 0 && (generation != c->generation || is_dead(c->h));
    if (r->lost && generation == c->generation && !c->lost_ms)
        c->lost_ms = now_ms();
    img_unlock(&c->lock);
    return ret;
}

/* ---- reconnecting ------------------------------------------------------ */

static void wait_a_moment(unsigned ms)
{
    struct timespec t = { .tv_nsec = (long)ms * 1000000 };

    nanosleep(&t, NULL);
}

/* Makes the broken connection anew.  Until the delay has passed since it
 * broke this is tried again and again, later once a second at most.  Others
 * whose requests were lost wait for the lock meanwhile. */
static bool revive(struct img_nbd_link *l, struct conn *c)
{
    struct nbd_handle *h = NULL;
    uint64_t until;

    img_lock(&c->lock);
    while (c->reading)
        img_wait(&c->moved, &c->lock);
    until = c->lost_ms + l->name.reconnect_ms;
    while (is_dead(c->h) && !h) {
        uint64_t now = now_ms();

        if (c->tried_ms && now >= until && now < c->tried_ms + DIAL_MS)
            break;
        h = dial_same(l, DIAL_MS);
        c->tried_ms = now_ms();
        if (h || c->tried_ms >= until)
            break;
        wait_a_moment(AGAIN_MS);
    }
    if (h) {
        if (atomic_load(&l->written) != atomic_load(&l->flushed))
            atomic_store(&l->doubt, true);
        nbd->close(c->h);
        c->h = h;
        c->generation++;
        c->lost_ms = c->tried_ms = 0;
    }
    img_wake_all(&c->moved);
    h = is_dead(c->h) ? NULL : c->h;
    img_unlock(&c->lock);
    return h;
}

static int refuse_doubt(const char *path, struct img_error *err)
{
    return img_fail(err, EIO, "%s: the connection was lost with writes that "
                    "were not flushed; the server may have lost them", path);
}

static int run(struct img_nbd_link *l, const char *path,
               struct img_nbd_request *r, struct img_error *err)
{
    bool writes = r->op == IMG_NBD_WRITE || r->op == IMG_NBD_ZERO;
    unsigned long before = atomic_load(&l->written);
    int ret = 0;

    r->count = NULL;
    if (writes && l->durable && l->facts.can_fua)
        r->flags |= LIBNBD_CMD_FLAG_FUA;
    else if (writes && l->durable)
        r->count = &l->written;
    if (r->count)
        atomic_fetch_add(r->count, 1);
    while (r->op != IMG_NBD_FLUSH || l->facts.can_flush) {
        struct conn *c = pick(l);
        bool again;

        r->done = r->lost = false;
        r->error = 0;
        ret = run_on(c, path, r, err);
        again = r->lost && l->name.reconnect_ms && revive(l, c);
        atomic_fetch_sub(&c->busy, 1);
        if (!again)
            break;
    }
    if (r->op == IMG_NBD_FLUSH && ret == 0 && atomic_load(&l->doubt))
        ret = refuse_doubt(path, err);
    if (r->op == IMG_NBD_FLUSH && ret == 0)
        atomic_store(&l->flushed, before);
    return ret;
}

/* Whoever writes pages back tells of a lost write once.  A flush beside the one
 * that hears of it must not say that all is well. */
static int flush(struct img_nbd_link *l, const char *path,
                 struct img_nbd_request *r, struct img_error *err)
{
    int ret;

    img_lock(&l->flushing);
    ret = run(l, path, r, err);
    if (ret == 0 && l->failed)
        ret = img_fail(err, EIO, "%s: an earlier write was lost", path);
    else if (ret < 0 && r->error && !r->lost)
        l->failed = true;
    img_unlock(&l->flushing);
    return ret;
}

int img_nbd_run(struct img_nbd_link *l, const char *path,
                struct img_nbd_request *r, struct img_error *err)
{
    return r->op == IMG_NBD_FLUSH ? flush(l, path, r, err)
                                  : run(l, path, r, err);
}

/* ---- opening and closing ----------------------------------------------- */

static struct conn *dial_first(const struct img_nbd_name *name,
                               const char *path, struct img_error *err)
{
    uint64_t until = now_ms() + name->open_ms;
    struct nbd_handle *h;
    struct conn *c;

    if (!name->open_ms)
        h = dial(name->uri, FOR_EVER, path, err);
    else
        while (!(h = dial(name->uri, DIAL_MS, path, err)) &&
               now_ms() < until)
            wait_a_moment(AGAIN_MS);
    c = conn_new(h);
    if (h && !c)
        img_fail_nomem(err);
    return c;
}

void img_nbd_link_close(struct img_nbd_link *l)
{
    for (unsigned i = 0; i < l->n; i++) {
        if (!is_dead(l->conns[i]->h))
            nbd->shutdown(l->conns[i]->h, 0);
        conn_free(l->conns[i]);
    }
    img_mutex_destroy(&l->flushing);
    img_mutex_destroy(&l->lock);
    free(l->name.uri);
    free(l);
}

int img_nbd_link_open(struct img_nbd_name *name, const char *path,
                      bool writable, struct img_nbd_link **link,
                      struct img_nbd_facts *facts, struct img_error *err)
{
    struct img_nbd_link *l = calloc(1, sizeof *l);
    struct img_error own = { 0 };
    int ret = 0;

    if (!l) {
        free(name->uri);
        return img_fail_nomem(err);
    }
    if (!err)
        err = &own;
    img_mutex_init(&l->lock);
    atomic_init(&l->written, 0);
    atomic_init(&l->flushed, 0);
    img_mutex_init(&l->flushing);
    atomic_init(&l->doubt, false);
    l->name = *name;
    l->durable = writable && name->reconnect_ms;
    ret = img_nbd_lib_load(path, err);
    if (ret == 0)
        l->conns[0] = dial_first(name, path, err);
    if (l->conns[0])
        l->n = 1;
    if (ret == 0)
        ret = l->conns[0] ? learn(l->conns[0]->h, path, &l->facts, err)
                          : -err->code;
    if (ret < 0) {
        img_nbd_link_close(l);
        return ret;
    }
    l->more = l->facts.multi_conn;
    *facts = l->facts;
    *link = l;
    return 0;
}
#endif
