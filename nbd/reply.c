/* Replies.  Each thread gathers its own; a message, once begun, is sent to
 * its end before another thread's. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include "reply.h"
#include "session.h"

void nbd_link_init(struct nbd_link *l, struct nbd_service *service,
                   struct nbd_stream *stream)
{
    *l = (struct nbd_link){ .service = service, .stream = stream };
    pthread_mutex_init(&l->sending, NULL);
}

void nbd_link_destroy(struct nbd_link *l)
{
    pthread_mutex_destroy(&l->sending);
}

/* ---- the buffer -------------------------------------------------------- */

bool nbd_out_init(struct nbd_out *o, struct nbd_link *link)
{
    *o = (struct nbd_out){
        .link = link, .data = malloc(NBD_OUT_SIZE), .pipe = { -1, -1 }
    };
    return o->data;
}

void nbd_out_end(struct nbd_out *o)
{
    nbd_out_drop_pipe(o);
    free(o->data);
}

/* Whoever waits for the client's next request learns that it is gone. */
static void give_up(struct nbd_link *l)
{
    l->broken = true;
    if (l->stream->fd >= 0)
        shutdown(l->stream->fd, SHUT_RDWR);
}

/* n buffers, then so many bytes of the pipe. */
static bool send_all(struct nbd_out *o, struct iovec *iov, int n, size_t piped)
{
    struct nbd_link *l = o->link;
    struct nbd_stream *s = l->stream;
    bool ok;

    pthread_mutex_lock(&l->sending);
    if (!l->broken &&
        !(piped ? s->send_pipe(s, iov, n, o->pipe[0], piped)
                : s->send(s, iov, n)))
        give_up(l);
    ok = !l->broken;
    pthread_mutex_unlock(&l->sending);
    return ok;
}

bool nbd_out_send_with(struct nbd_out *o, const void *data, size_t len)
{
    struct iovec iov[2] = {
        { o->data, o->len }, { (void *)(uintptr_t)data, len }
    };
    bool skip = o->len == 0;

    o->len = 0;
    if (skip && !len)
        return true;
    return send_all(o, iov + skip, (len ? 2 : 1) - skip, 0);
}

bool nbd_out_flush(struct nbd_out *o)
{
    return nbd_out_send_with(o, NULL, 0);
}

uint8_t *nbd_out_room(struct nbd_out *o, size_t n)
{
    if (n > NBD_OUT_SIZE - o->len && !nbd_out_flush(o))
        return NULL;
    return o->data + o->len;
}

/* ---- the pipe ---------------------------------------------------------- */

enum { PIPE_ROOM = 1 << 20 };   /* what Linux gives to anybody */

static bool open_pipe(struct nbd_out *o)
{
    int room;

    if (pipe2(o->pipe, O_CLOEXEC) < 0) {
        o->pipe[0] = o->pipe[1] = -1;
        return false;
    }
    room = fcntl(o->pipe[1], F_SETPIPE_SZ, PIPE_ROOM);
    if (room < 0)
        room = fcntl(o->pipe[1], F_GETPIPE_SZ);
    o->pipe_room = room < 0 ? 0 : (size_t)room;
    return true;
}

int nbd_out_pipe(struct nbd_out *o, size_t len)
{
    if (!o->link->stream->send_pipe || len > PIPE_ROOM ||
        (o->pipe[0] < 0 && !open_pipe(o)))
        return -1;
    return len <= o->pipe_room ? o->pipe[1] : -1;
}

void nbd_out_drop_pipe(struct nbd_out *o)
{
    if (o->pipe[0] < 0)
        return;
    close(o->pipe[0]);
    close(o->pipe[1]);
    o->pipe[0] = o->pipe[1] = -1;
}

bool nbd_out_send_pipe(struct nbd_out *o, size_t len)
{
    struct iovec iov = { o->data, o->len };
    bool ok;

    o->len = 0;
    ok = send_all(o, &iov, 1, len);
    if (!ok)
        nbd_out_drop_pipe(o);
    return ok;
}

/* ---- replies ----------------------------------------------------------- */

size_t nbd_put_chunk(const struct nbd_out *o, uint8_t *p,
                     const struct nbd_request *r, uint16_t flags,
                     uint16_t type, size_t payload)
{
    bool extended = o->link->mode == NBD_MODE_EXTENDED;

    nbd_put32(p, extended ? NBD_EXT_CHUNK_MAGIC : NBD_CHUNK_MAGIC);
    nbd_put16(p + 4, flags);
    nbd_put16(p + 6, type);
    nbd_put64(p + 8, r->cookie);
    if (!extended) {
        nbd_put32(p + 16, (uint32_t)payload);
        return NBD_CHUNK_SIZE;
    }
    nbd_put64(p + 16, r->off);
    nbd_put64(p + 24, payload);
    return NBD_EXT_CHUNK_SIZE;
}

static size_t put_simple(uint8_t *p, const struct nbd_request *r,
                         uint32_t error)
{
    nbd_put32(p, NBD_SIMPLE_MAGIC);
    nbd_put32(p + 4, error);
    nbd_put64(p + 8, r->cookie);
    return NBD_SIMPLE_SIZE;
}

size_t nbd_put_data_head(const struct nbd_out *o, uint8_t *p,
                         const struct nbd_request *r)
{
    size_t head;

    if (o->link->mode == NBD_MODE_SIMPLE)
        return put_simple(p, r, 0);
    head = nbd_put_chunk(o, p, r, NBD_REPLY_DONE, NBD_REPLY_OFFSET_DATA,
                         8 + r->len);
    nbd_put64(p + head, r->off);
    return head + 8;
}

bool nbd_reply_done(struct nbd_out *o, const struct nbd_request *r)
{
    uint8_t *p = nbd_out_room(o, NBD_EXT_CHUNK_SIZE);

    if (!p)
        return false;
    o->len += o->link->mode == NBD_MODE_EXTENDED || r->type == NBD_CMD_READ ?
        nbd_put_chunk(o, p, r, NBD_REPLY_DONE, NBD_REPLY_NONE, 0) :
        put_simple(p, r, 0);
    return true;
}

bool nbd_reply_error(struct nbd_out *o, const struct nbd_request *r,
                     uint32_t error, const char *why)
{
    size_t len = strlen(why), head;
    uint8_t *p = nbd_out_room(o, NBD_EXT_CHUNK_SIZE + 6 + len);

    if (!p)
        return false;
    if (o->link->mode == NBD_MODE_SIMPLE) {
        o->len += put_simple(p, r, error);
        return true;
    }
    head = nbd_put_chunk(o, p, r, NBD_REPLY_DONE, NBD_REPLY_ERROR, 6 + len);
    nbd_put32(p + head, error);
    nbd_put16(p + head + 4, (uint16_t)len);
    memcpy(p + head + 6, why, len);
    o->len += head + 6 + len;
    return true;
}

/* The client gets the code; paths on this machine are not its business. */
bool nbd_reply_result(struct nbd_out *o, const struct nbd_request *r, int ret,
                      const struct img_error *err)
{
    char why[80];

    if (ret >= 0)
        return nbd_reply_done(o, r);
    if (o->link->service->verbose)
        fprintf(stderr, "vimg-nbd: %s\n", err->message);
    snprintf(why, sizeof why, "the disk failed: error %d", -ret);
    return nbd_reply_error(o, r, nbd_error_of(-ret), why);
}
