/* The server: one thread that accepts, one thread per client.
 *
 * The lock protects the list of clients.  A client's thread shuts its socket
 * down and marks itself as done; the accepting thread joins it, closes the
 * descriptor and frees it, so nobody ever uses a descriptor that has become
 * somebody else's.
 */
#include <errno.h>
#include <libimg.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "objects.h"
#include "server.h"
#include "tls.h"

enum {
    STACK = 1 << 20,
    GRACE_MS = 10 * 1000,       /* for requests in flight, at the end */
    PAUSE_MS = 100              /* after accept failed for want of memory or
                                   descriptors */
};

struct server;

struct client {
    struct client *next;
    struct server *server;
    struct nbd_export *export;  /* NULL = it will choose one */
    int fd;
    pthread_t thread;
    bool done, served;
};

struct server {
    struct nbd_service *service;
    pthread_mutex_t lock;
    struct client *clients;
    unsigned n;
    int gone;                   /* eventfd: a client is done */
    bool served;                /* at least one of them, once */
};

static void *client_main(void *opaque)
{
    struct client *c = opaque;
    struct nbd_stream stream;
    uint64_t one = 1;
    bool served;

    nbd_stream_plain(&stream, c->fd);
    served = c->export ?
        nbd_session_transmit(c->server->service, &stream, c->export) :
        nbd_session_run(c->server->service, &stream);
    nbd_tls_end(&stream);
    shutdown(c->fd, SHUT_RDWR);
    pthread_mutex_lock(&c->server->lock);
    c->done = true;
    c->served = served;
    pthread_mutex_unlock(&c->server->lock);
    while (write(c->server->gone, &one, sizeof one) < 0 && errno == EINTR)
        ;
    return NULL;
}

/* Takes fd over. */
static bool client_start(struct server *s, int fd, struct nbd_export *export)
{
    struct client *c = calloc(1, sizeof *c);
    pthread_attr_t attr;
    bool ok = false;

    if (c && pthread_attr_init(&attr) == 0) {
        *c = (struct client){ .server = s, .export = export, .fd = fd };
        pthread_attr_setstacksize(&attr, STACK);
        pthread_mutex_lock(&s->lock);
        ok = pthread_create(&c->thread, &attr, client_main, c) == 0;
        if (ok) {
            c->next = s->clients;
            s->clients = c;
            s->n++;
        }
        pthread_mutex_unlock(&s->lock);
        pthread_attr_destroy(&attr);
    }
    if (!ok) {
        free(c);
        close(fd);
    }
    return ok;
}

/* Joins and frees the clients that are done. */
static void reap(struct server *s)
{
    struct client **p = &s->clients, *done = NULL;
    uint64_t n;

    while (read(s->gone, &n, sizeof n) < 0 && errno == EINTR)
        ;
    pthread_mutex_lock(&s->lock);
    while (*p) {
        struct client *c = *p;

        if (!c->done) {
            p = &c->next;
            continue;
        }
        *p = c->next;
        c->next = done;
        done = c;
        s->n--;
        s->served |= c->served;
    }
    pthread_mutex_unlock(&s->lock);
    while (done) {
        struct client *c = done;

        done = c->next;
        pthread_join(c->thread, NULL);
        close(c->fd);
        free(c);
    }
}

static void shut(struct server *s, int how)
{
    pthread_mutex_lock(&s->lock);
    for (struct client *c = s->clients; c; c = c->next)
        shutdown(c->fd, how);
    pthread_mutex_unlock(&s->lock);
}

static void wait_gone(struct server *s, int timeout)
{
    struct pollfd p = { .fd = s->gone, .events = POLLIN };

    if (poll(&p, 1, timeout) > 0)
        reap(s);
}

/* Requests in flight are finished; a client that does not take its replies
 * is cut off. */
static void stop(struct server *s)
{
    int64_t end = nbd_now() + GRACE_MS;

    atomic_store(&s->service->stopping, true);
    shut(s, SHUT_RD);
    while (s->n && nbd_now() < end)
        wait_gone(s, (int)(end - nbd_now()) + 1);
    shut(s, SHUT_RDWR);
    while (s->n)
        wait_gone(s, -1);
}

static int begin(struct server *s, struct nbd_service *service,
                 struct img_error *err)
{
    *s = (struct server){ .service = service };
    pthread_mutex_init(&s->lock, NULL);
    s->gone = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return s->gone < 0 ? nbd_fail(err, errno, "eventfd: %s",
                                  strerror(errno)) : 0;
}

static void end(struct server *s)
{
    stop(s);
    close(s->gone);
    pthread_mutex_destroy(&s->lock);
}

/* False: out of memory or descriptors for now. */
static bool accept_one(struct server *s, int listener)
{
    int one = 1;
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0)
        return errno != EMFILE && errno != ENFILE && errno != ENOMEM &&
               errno != ENOBUFS;
    /* It fails on sockets that are not TCP, and that is fine. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    return client_start(s, fd, NULL);
}

int nbd_server_run(struct nbd_service *service, const struct nbd_listeners *l,
                   int signal_fd, const struct nbd_server_options *o,
                   struct img_error *err)
{
    struct pollfd p[2 + NBD_LISTENERS_MAX];
    struct server s;
    bool paused = false;
    int ret = begin(&s, service, err);

    if (ret < 0)
        return ret;
    p[0] = (struct pollfd){ .fd = signal_fd, .events = POLLIN };
    p[1] = (struct pollfd){ .fd = s.gone, .events = POLLIN };
    for (unsigned i = 0; i < l->n; i++)
        p[2 + i] = (struct pollfd){ .fd = l->fds[i], .events = POLLIN };
    while (!s.served || s.n || o->persistent) {
        bool full = paused || s.n >= o->max_clients;

        if (poll(p, full ? 2 : 2 + l->n, paused ? PAUSE_MS : -1) < 0 &&
            errno != EINTR)
            break;
        paused = false;
        if (p[0].revents)
            break;
        if (p[1].revents)
            reap(&s);
        for (unsigned i = 0; !full && i < l->n; i++)
            if (p[2 + i].revents && s.n < o->max_clients &&
                !accept_one(&s, l->fds[i]))
                paused = true;
    }
    end(&s);
    return 0;
}

int nbd_server_transmit(struct nbd_service *service,
                        struct nbd_export *export, const int *fds,
                        unsigned n, int signal_fd,
                        void (*on_signal)(void *opaque), void *opaque,
                        struct img_error *err)
{
    struct pollfd p[2];
    struct server s;
    int ret = begin(&s, service, err);

    for (unsigned i = 0; i < n; i++) {
        if (ret < 0)
            close(fds[i]);
        else if (!client_start(&s, fds[i], export))
            ret = nbd_fail(err, EAGAIN, "cannot start a thread");
    }
    if (ret < 0 && s.gone < 0)
        return ret;
    p[0] = (struct pollfd){ .fd = signal_fd, .events = POLLIN };
    p[1] = (struct pollfd){ .fd = s.gone, .events = POLLIN };
    while (ret == 0 && s.n) {
        if (poll(p, 2, -1) < 0 && errno != EINTR)
            break;
        if (p[0].revents) {
            on_signal(opaque);
            p[0].fd = -1;
        }
        if (p[1].revents)
            reap(&s);
    }
    end(&s);
    return ret;
}
