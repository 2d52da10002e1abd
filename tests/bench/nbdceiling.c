/* nbdceiling: the least that can answer NBD requests, as a limit for what a
 * server may reach: a raw file, read and written by pread and pwrite, many
 * requests per recv and many replies per send, a thread for each connection;
 * nothing is checked.  For nbdload alone.
 *
 *   nbdceiling SOCKET FILE
 * runs until it is killed. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "../../nbd/wire.h"

enum { ROOM = 2 << 20, BATCH = 256 << 10 };

static int file;
static uint64_t size;

struct conn {
    int fd;
    uint8_t in[ROOM], out[ROOM];
    size_t pos, len, ready;
};

static bool send_all(int fd, const uint8_t *p, size_t len)
{
    while (len) {
        ssize_t r = send(fd, p, len, MSG_NOSIGNAL);

        if (r <= 0)
            return false;
        p += r;
        len -= (size_t)r;
    }
    return true;
}

static bool flush(struct conn *c)
{
    bool ok = send_all(c->fd, c->out, c->ready);

    c->ready = 0;
    return ok;
}

/* n bytes in a row; NULL = the client is gone. */
static uint8_t *need(struct conn *c, size_t n)
{
    while (c->len - c->pos < n) {
        ssize_t r;

        if (c->pos && (c->pos == c->len || c->pos + n > ROOM)) {
            memmove(c->in, c->in + c->pos, c->len - c->pos);
            c->len -= c->pos;
            c->pos = 0;
        }
        if (!flush(c))
            return NULL;
        r = recv(c->fd, c->in + c->len, ROOM - c->len, 0);
        if (r <= 0)
            return NULL;
        c->len += (size_t)r;
    }
    c->pos += n;
    return c->in + c->pos - n;
}

static uint8_t *put_reply(struct conn *c, uint32_t option, uint32_t type,
                          uint32_t len)
{
    uint8_t *p = c->out + c->ready;

    nbd_put64(p, NBD_OPT_REPLY_MAGIC);
    nbd_put32(p + 8, option);
    nbd_put32(p + 12, type);
    nbd_put32(p + 16, len);
    c->ready += NBD_OPT_REPLY_SIZE + len;
    return p + NBD_OPT_REPLY_SIZE;
}

/* As far as GO; other options are not known. */
static bool greet(struct conn *c)
{
    uint8_t *p = c->out;
    uint32_t option;

    nbd_put64(p, NBD_MAGIC);
    nbd_put64(p + 8, NBD_OPTS_MAGIC);
    nbd_put16(p + 16, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    c->ready = 18;
    if (!need(c, 4))
        return false;
    do {
        if (!(p = need(c, NBD_OPTION_SIZE)))
            return false;
        option = nbd_get32(p + 8);
        if (!need(c, nbd_get32(p + 12)))
            return false;
        if (option == NBD_OPT_GO) {
            p = put_reply(c, option, NBD_REP_INFO, 12);
            nbd_put16(p, NBD_INFO_EXPORT);
            nbd_put64(p + 2, size);
            nbd_put16(p + 10, NBD_HAS_FLAGS | NBD_CAN_MULTI_CONN);
            put_reply(c, option, NBD_REP_ACK, 0);
        } else {
            put_reply(c, option, NBD_REP_ERR_UNSUP, 0);
        }
    } while (option != NBD_OPT_GO);
    return true;
}

static bool answer(struct conn *c)
{
    uint8_t *p = need(c, NBD_REQUEST_SIZE), *out;
    uint64_t cookie, off;
    uint32_t len;
    uint16_t type;
    bool done;

    if (!p)
        return false;
    type = nbd_get16(p + 6);
    cookie = nbd_get64(p + 8);
    off = nbd_get64(p + 16);
    len = nbd_get32(p + 24);
    if (type > NBD_CMD_WRITE || len > 1 << 20)
        return false;
    if (c->ready > BATCH && !flush(c))
        return false;
    if (type == NBD_CMD_WRITE && !(p = need(c, len)))
        return false;
    out = c->out + c->ready;
    nbd_put32(out, NBD_SIMPLE_MAGIC);
    nbd_put32(out + 4, 0);
    nbd_put64(out + 8, cookie);
    c->ready += NBD_SIMPLE_SIZE + (type == NBD_CMD_READ ? len : 0);
    done = type == NBD_CMD_READ ?
        pread(file, out + NBD_SIMPLE_SIZE, len, (off_t)off) == (ssize_t)len :
        pwrite(file, p, len, (off_t)off) == (ssize_t)len;
    return done;
}

static void *serve(void *opaque)
{
    struct conn *c = opaque;

    if (greet(c))
        while (answer(c))
            ;
    close(c->fd);
    free(c);
    return NULL;
}

int main(int argc, char **argv)
{
    struct sockaddr_un sun = { .sun_family = AF_UNIX };
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    struct stat st;

    if (argc != 3 || (file = open(argv[2], O_RDWR)) < 0 ||
        fstat(file, &st) < 0)
        return 1;
    size = (uint64_t)st.st_size;
    snprintf(sun.sun_path, sizeof sun.sun_path, "%s", argv[1]);
    if (bind(listener, (struct sockaddr *)&sun, sizeof sun) < 0 ||
        listen(listener, 16) < 0)
        return 1;
    for (;;) {
        struct conn *c = calloc(1, sizeof *c);
        pthread_t thread;

        if (!c || (c->fd = accept(listener, NULL, NULL)) < 0 ||
            pthread_create(&thread, NULL, serve, c))
            return 1;
        pthread_detach(thread);
    }
}
