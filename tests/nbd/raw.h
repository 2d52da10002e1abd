/* A client that sends whatever bytes a test wants. */
#ifndef TESTS_NBD_RAW_H
#define TESTS_NBD_RAW_H
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "../../nbd/wire.h"

#define FAIL(...) do { \
    fprintf(stderr, "%s:%d: ", __func__, __LINE__); \
    fprintf(stderr, __VA_ARGS__); \
    fputc('\n', stderr); \
    exit(1); \
} while (0)

static inline int raw_dial(const char *path)
{
    struct sockaddr_un sun = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    snprintf(sun.sun_path, sizeof sun.sun_path, "%s", path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&sun, sizeof sun) < 0)
        FAIL("%s: %s", path, strerror(errno));
    return fd;
}

/* False: the other side has closed. */
static inline bool raw_send(int fd, const void *buf, size_t len)
{
    const char *p = buf;

    while (len) {
        ssize_t r = send(fd, p, len, MSG_NOSIGNAL);

        if (r < 0)
            return false;
        p += r;
        len -= (size_t)r;
    }
    return true;
}

/* False: the end came first.  Nothing for 20 s is a failure. */
static inline bool raw_recv(int fd, void *buf, size_t len)
{
    char *p = buf;

    while (len) {
        struct pollfd pfd = { .fd = fd, .events = POLLIN };
        ssize_t r;

        if (poll(&pfd, 1, 20000) <= 0)
            FAIL("no answer");
        r = recv(fd, p, len, 0);
        if (r <= 0)
            return false;
        p += r;
        len -= (size_t)r;
    }
    return true;
}

/* Connected, and flags exchanged. */
static inline int raw_greet(const char *path)
{
    int fd = raw_dial(path);
    uint8_t b[18];

    if (!raw_recv(fd, b, sizeof b) || nbd_get64(b) != NBD_MAGIC)
        FAIL("no greeting");
    nbd_put32(b, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    raw_send(fd, b, 4);
    return fd;
}

static inline bool raw_option(int fd, uint32_t option, const void *data,
                              uint32_t len)
{
    uint8_t h[NBD_OPTION_SIZE];

    nbd_put64(h, NBD_OPTS_MAGIC);
    nbd_put32(h + 8, option);
    nbd_put32(h + 12, len);
    return raw_send(fd, h, sizeof h) && raw_send(fd, data, len);
}

/* The type of the next option reply; 0 = the other side has closed.  Its
 * payload, at most 64 KiB, into data unless NULL. */
static inline uint32_t raw_answer(int fd, uint8_t *data, uint32_t *len)
{
    static uint8_t scratch[65536];
    uint8_t h[NBD_OPT_REPLY_SIZE];
    uint32_t n;

    if (!raw_recv(fd, h, sizeof h))
        return 0;
    n = nbd_get32(h + 16);
    if (nbd_get64(h) != NBD_OPT_REPLY_MAGIC || n > sizeof scratch)
        FAIL("bad option reply");
    if (!raw_recv(fd, data ? data : scratch, n))
        return 0;
    if (len)
        *len = n;
    return nbd_get32(h + 12);
}

/* Skips informative replies. */
static inline uint32_t raw_verdict(int fd)
{
    uint32_t type;

    do
        type = raw_answer(fd, NULL, NULL);
    while (type == NBD_REP_INFO || type == NBD_REP_SERVER ||
           type == NBD_REP_META_CONTEXT);
    return type;
}

/* GO to the export "".  Returns the descriptor. */
static inline int raw_go(const char *path, uint32_t first_option)
{
    static const uint8_t nothing[6];
    int fd = raw_greet(path);

    if (first_option) {
        raw_option(fd, first_option, "", 0);
        if (raw_verdict(fd) != NBD_REP_ACK)
            FAIL("option %u refused", first_option);
    }
    raw_option(fd, NBD_OPT_GO, nothing, sizeof nothing);
    if (raw_verdict(fd) != NBD_REP_ACK)
        FAIL("GO refused");
    return fd;
}

static inline bool raw_request(int fd, uint16_t flags, uint16_t type,
                               uint64_t cookie, uint64_t off, uint32_t len)
{
    uint8_t r[NBD_REQUEST_SIZE];

    nbd_put32(r, NBD_REQUEST_MAGIC);
    nbd_put16(r + 4, flags);
    nbd_put16(r + 6, type);
    nbd_put64(r + 8, cookie);
    nbd_put64(r + 16, off);
    nbd_put32(r + 24, len);
    return raw_send(fd, r, sizeof r);
}

/* The error of a simple reply; -1 = closed. */
static inline int64_t raw_simple(int fd, uint64_t *cookie)
{
    uint8_t r[NBD_SIMPLE_SIZE];

    if (!raw_recv(fd, r, sizeof r))
        return -1;
    if (nbd_get32(r) != NBD_SIMPLE_MAGIC)
        FAIL("bad reply magic %x", nbd_get32(r));
    if (cookie)
        *cookie = nbd_get64(r + 8);
    return nbd_get32(r + 4);
}
#endif
