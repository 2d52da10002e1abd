/* Bytes to and from a client: a socket, or TLS on one. */
#ifndef NBD_STREAM_H
#define NBD_STREAM_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct nbd_stream {
    /* At least one byte; 0 = the client is gone, -1 = error or time is up. */
    ssize_t (*recv)(struct nbd_stream *, void *buf, size_t len);
    /* All of it, or false.  Changes iov. */
    bool (*send)(struct nbd_stream *, struct iovec *iov, int n);
    /* The same, then len bytes out of a pipe that holds them; NULL = it
     * cannot. */
    bool (*send_pipe)(struct nbd_stream *, struct iovec *iov, int n, int pipe,
                      size_t len);
    int fd;
    int64_t deadline;           /* nbd_now() at which waiting ends; 0 = never */
    int64_t awake;              /* how long recv may wait awake, in ns */
    bool quick;                 /* the last wait was no longer than that */
    void *tls;                  /* tls.c's own */
    void *opaque;
};

void nbd_stream_plain(struct nbd_stream *, int fd);
/* False: the deadline passed, or the socket is broken. */
bool nbd_stream_wait(const struct nbd_stream *, short events);
int64_t nbd_now(void);          /* milliseconds that never jump, */
int64_t nbd_now_ns(void);       /* and nanoseconds */
#endif
