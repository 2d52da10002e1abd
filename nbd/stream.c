/* A client's bytes over a plain socket. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include "stream.h"

int64_t nbd_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t nbd_now(void)
{
    return nbd_now_ns() / 1000000;
}

bool nbd_stream_wait(const struct nbd_stream *s, short events)
{
    struct pollfd p = { .fd = s->fd, .events = events };

    for (;;) {
        int64_t left = s->deadline ? s->deadline - nbd_now() : -1;
        int r;

        if (s->deadline && left <= 0)
            return false;
        r = poll(&p, 1, (int)left);
        if (r > 0)
            return true;
        if (r < 0 && errno != EINTR)
            return false;
    }
}

/* Being woken takes longer than answering.  A client that was quick to ask is
 * waited for awake; when it was not, the next wait is asleep, and tells whether
 * it is quick again. */
static ssize_t recv_awake(struct nbd_stream *s, void *buf, size_t len)
{
    int64_t began = nbd_now_ns();
    ssize_t r;

    do {
        r = recv(s->fd, buf, len, MSG_DONTWAIT);
        if (r >= 0 || errno != EAGAIN)
            return r;
    } while (s->quick && nbd_now_ns() - began < s->awake);
    r = recv(s->fd, buf, len, 0);
    s->quick = nbd_now_ns() - began <= s->awake;
    return r;
}

static ssize_t plain_recv(struct nbd_stream *s, void *buf, size_t len)
{
    for (;;) {
        ssize_t r;

        if (s->deadline && !nbd_stream_wait(s, POLLIN))
            return -1;
        r = s->awake && !s->deadline ? recv_awake(s, buf, len)
            : recv(s->fd, buf, len, s->deadline ? MSG_DONTWAIT : 0);
        if (r >= 0)
            return r;
        if (errno != EINTR && !(s->deadline && errno == EAGAIN))
            return -1;
    }
}

static bool send_all(struct nbd_stream *s, struct iovec *iov, int n, int flags)
{
    flags |= MSG_NOSIGNAL | (s->deadline ? MSG_DONTWAIT : 0);

    while (n > 0) {
        struct msghdr m = { .msg_iov = iov, .msg_iovlen = (size_t)n };
        ssize_t r;

        if (s->deadline && !nbd_stream_wait(s, POLLOUT))
            return false;
        r = sendmsg(s->fd, &m, flags);
        if (r < 0 && (errno == EINTR || (s->deadline && errno == EAGAIN)))
            continue;
        if (r < 0)
            return false;
        while (n > 0 && (size_t)r >= iov->iov_len) {
            r -= (ssize_t)iov->iov_len;
            iov++;
            n--;
        }
        if (n > 0) {
            iov->iov_base = (char *)iov->iov_base + r;
            iov->iov_len -= (size_t)r;
        }
    }
    return true;
}

static bool plain_send(struct nbd_stream *s, struct iovec *iov, int n)
{
    return send_all(s, iov, n, 0);
}

/* Only after the handshake, when there is no deadline. */
static bool plain_send_pipe(struct nbd_stream *s, struct iovec *iov, int n,
                            int pipe, size_t len)
{
    if (!send_all(s, iov, n, MSG_MORE))
        return false;
    while (len) {
        ssize_t r = splice(pipe, NULL, s->fd, NULL, len, SPLICE_F_MOVE);

        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0)
            return false;
        len -= (size_t)r;
    }
    return true;
}

static bool is_local(int fd)
{
    int domain = 0;
    socklen_t len = sizeof domain;

    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 &&
           domain == AF_UNIX;
}

/* Over TCP pages cost as much as copies, and may leave late.  A long reply
 * should fit into the socket, so that both sides work at once; TCP finds a
 * size by itself. */
void nbd_stream_plain(struct nbd_stream *s, int fd)
{
    const int room = 1 << 20;

    *s = (struct nbd_stream){
        .recv = plain_recv, .send = plain_send, .fd = fd
    };
    if (!is_local(fd))
        return;
    s->send_pipe = plain_send_pipe;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
}
