/* One client, on one thread.
 *
 * Requests are taken from a buffer that one recv fills with as many as are
 * there; each is carried out on this very thread, and the replies gather in
 * a second buffer that goes out in one send: when no complete request is
 * left, when it is full, or when the oldest reply in it has waited for
 * BATCH_NS.  So a small read of cached data costs a fraction of a system
 * call and no change of thread.
 *
 * A client that has several requests outstanding on a disk that turns out to
 * be slow has its short reads done by the library's queue instead, so that
 * the disk sees many at once; so are flushes always, for they take long
 * wherever they mean something.  (Not under TLS, where a readable socket says
 * nothing.)
 *
 * Memory per client: the two buffers; for the length of a long read that must
 * go out in one piece, that read (at most NBD_ENOUGH); and what flight.c has.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "flight.h"
#include "request.h"
#include "session.h"
#include "tls.h"

enum {
    IN_SIZE = 256 << 10,
    PIECE = 256 << 10,          /* long reads and writes are done in these */
    OUT_SIZE = PIECE + 4096,
    BATCH_NS = 100 * 1000,
    SLOW_NS = 80 * 1000,        /* a short read that took so long waited */
    DEEP = 256,                 /* reads by the queue after one that did */
    LOOK_FOR_HOLES = 64 << 10,  /* in reads at least this long */
    MAX_EXTENTS = 8192          /* in one reply to BLOCK_STATUS */
};

struct session {
    struct nbd_service *service;
    struct nbd_stream *stream;
    struct nbd_export *export;
    enum nbd_mode mode;
    uint16_t flags;             /* of the export, as agreed on */
    const bool *selected;       /* contexts, NULL = none */
    uint8_t *in, *out;
    size_t in_pos, in_len;      /* in[in_pos .. in_len) is not used up yet */
    size_t out_len;
    int64_t out_since;          /* when the first reply came in, ns */
    int64_t last;               /* when the last request was done, ns */
    struct nbd_flight *flight;  /* NULL = not needed yet */
    unsigned deep;              /* so many short reads go there */
    unsigned slow;              /* so many in a row were slow here */
    bool no_flight;             /* TLS, or no memory for it */
    bool short_read;            /* the last request was one, done here */
};

/* ---- buffers ----------------------------------------------------------- */

static int64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Sends what has gathered, and len bytes of data behind it. */
static bool send_with(struct session *s, const void *data, size_t len)
{
    struct iovec iov[2] = {
        { s->out, s->out_len },
        { (void *)(uintptr_t)data, len }
    };
    bool skip = s->out_len == 0;

    s->out_len = 0;
    if (skip && !len)
        return true;
    return s->stream->send(s->stream, iov + skip, (len ? 2 : 1) - skip);
}

static bool flush_out(struct session *s)
{
    return send_with(s, NULL, 0);
}

/* n bytes in a row at the end of out; NULL = the client is gone.  They count
 * once out_len is raised. */
static uint8_t *room(struct session *s, size_t n)
{
    if (n > OUT_SIZE - s->out_len && !flush_out(s))
        return NULL;
    return s->out + s->out_len;
}

static bool land(struct session *s, bool wait);
static bool launch(struct session *s, const struct nbd_request *r);

/* Until the client's next bytes are there, replies to what lands meanwhile
 * go out. */
static bool wait_for_bytes(struct session *s)
{
    for (;;) {
        struct pollfd p[2] = {
            { .fd = s->stream->fd, .events = POLLIN },
            { .events = POLLIN }
        };

        if (!land(s, false) || !flush_out(s))
            return false;
        if (!s->flight || !nbd_flight_busy(s->flight))
            return true;
        p[1].fd = nbd_flight_fd(s->flight);
        if (poll(p, 2, -1) < 0 && errno != EINTR)
            return false;
        if (p[0].revents)
            return true;
    }
}

/* Reads until at least n bytes (at most IN_SIZE) are there. */
static bool need(struct session *s, size_t n)
{
    if (s->in_pos == s->in_len)
        s->in_pos = s->in_len = 0;
    while (s->in_len - s->in_pos < n) {
        ssize_t r;

        if (n > IN_SIZE - s->in_pos) {
            memmove(s->in, s->in + s->in_pos, s->in_len - s->in_pos);
            s->in_len -= s->in_pos;
            s->in_pos = 0;
        }
        if (!wait_for_bytes(s))
            return false;
        r = s->stream->recv(s->stream, s->in + s->in_len,
                            IN_SIZE - s->in_len);
        if (r <= 0)
            return false;
        s->in_len += (size_t)r;
    }
    return true;
}

static bool drop(struct session *s, uint64_t len)
{
    while (len) {
        size_t n = len < IN_SIZE ? (size_t)len : IN_SIZE;

        if (!need(s, n))
            return false;
        s->in_pos += n;
        len -= n;
    }
    return true;
}

/* ---- replies ----------------------------------------------------------- */

/* A chunk's header; returns its size. */
static size_t put_chunk(const struct session *s, uint8_t *p,
                        const struct nbd_request *r, uint16_t flags,
                        uint16_t type, size_t payload)
{
    bool extended = s->mode == NBD_MODE_EXTENDED;

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

static bool reply_done(struct session *s, const struct nbd_request *r)
{
    uint8_t *p = room(s, NBD_EXT_CHUNK_SIZE);

    if (!p)
        return false;
    s->out_len += s->mode == NBD_MODE_EXTENDED || r->type == NBD_CMD_READ ?
        put_chunk(s, p, r, NBD_REPLY_DONE, NBD_REPLY_NONE, 0) :
        put_simple(p, r, 0);
    return true;
}

static bool reply_error(struct session *s, const struct nbd_request *r,
                        uint32_t error, const char *why)
{
    size_t len = strlen(why), head;
    uint8_t *p = room(s, NBD_EXT_CHUNK_SIZE + 6 + len);

    if (!p)
        return false;
    if (s->mode == NBD_MODE_SIMPLE) {
        s->out_len += put_simple(p, r, error);
        return true;
    }
    head = put_chunk(s, p, r, NBD_REPLY_DONE, NBD_REPLY_ERROR, 6 + len);
    nbd_put32(p + head, error);
    nbd_put16(p + head + 4, (uint16_t)len);
    memcpy(p + head + 6, why, len);
    s->out_len += head + 6 + len;
    return true;
}

/* The disk failed.  The client gets the code; paths on this machine are not
 * its business. */
static bool reply_failed(struct session *s, const struct nbd_request *r,
                         int code, const struct img_error *err)
{
    char why[80];

    if (s->service->verbose)
        fprintf(stderr, "vimg-nbd: %s\n", err->message);
    snprintf(why, sizeof why, "the disk failed: error %d", code);
    return reply_error(s, r, nbd_error_of(code), why);
}

static bool reply_result(struct session *s, const struct nbd_request *r,
                         int ret, const struct img_error *err)
{
    return ret < 0 ? reply_failed(s, r, -ret, err) : reply_done(s, r);
}

/* ---- READ -------------------------------------------------------------- */

/* What comes before the data of a read that is answered in one piece. */
static size_t put_data_head(const struct session *s, uint8_t *p,
                            const struct nbd_request *r)
{
    size_t head;

    if (s->mode == NBD_MODE_SIMPLE)
        return put_simple(p, r, 0);
    head = put_chunk(s, p, r, NBD_REPLY_DONE, NBD_REPLY_OFFSET_DATA,
                     8 + r->len);
    nbd_put64(p + head, r->off);
    return head + 8;
}

/* Into the reply itself. */
static bool read_small(struct session *s, const struct nbd_request *r)
{
    uint8_t *p = room(s, NBD_EXT_CHUNK_SIZE + 8 + r->len);
    struct img_error err = { 0 };
    size_t head;
    int ret;

    if (!p)
        return false;
    head = put_data_head(s, p, r);
    ret = nbd_export_read(s->export, p + head, r->len, r->off, &err);
    if (ret < 0)
        return reply_failed(s, r, -ret, &err);
    s->out_len += head + r->len;
    return true;
}

/* One piece of it, whatever its length: a client without structured replies
 * must not be told of success before all is read. */
static bool read_whole(struct session *s, const struct nbd_request *r)
{
    struct img_error err = { 0 };
    uint8_t *data = malloc(r->len), *p;
    bool ok;
    int ret;

    if (!data)
        return reply_error(s, r, NBD_ENOMEM, "no memory");
    ret = nbd_export_read(s->export, data, r->len, r->off, &err);
    if (ret < 0) {
        ok = reply_failed(s, r, -ret, &err);
    } else if (!(p = room(s, NBD_EXT_CHUNK_SIZE + 8))) {
        ok = false;
    } else {
        s->out_len += put_data_head(s, p, r);
        ok = send_with(s, data, r->len);
    }
    free(data);
    return ok;
}

static bool chunk_hole(struct session *s, const struct nbd_request *r,
                       uint64_t off, uint64_t len)
{
    uint8_t *p = room(s, NBD_EXT_CHUNK_SIZE + 12);
    size_t head;

    if (!p)
        return false;
    head = put_chunk(s, p, r, 0, NBD_REPLY_OFFSET_HOLE, 12);
    nbd_put64(p + head, off);
    nbd_put32(p + head + 8, (uint32_t)len);
    s->out_len += head + 12;
    return true;
}

static bool chunk_data(struct session *s, const struct nbd_request *r,
                       uint64_t off, uint64_t len, int *ret,
                       struct img_error *err)
{
    uint8_t *p = room(s, NBD_EXT_CHUNK_SIZE + 8 + len);
    size_t head;

    if (!p)
        return false;
    head = put_chunk(s, p, r, 0, NBD_REPLY_OFFSET_DATA, 8 + len);
    nbd_put64(p + head, off);
    *ret = nbd_export_read(s->export, p + head + 8, len, off, err);
    if (*ret == 0)
        s->out_len += head + 8 + len;
    return true;
}

/* In chunks: holes as such, data in pieces that stay in the processor's
 * cache on their way from the image to the socket. */
static bool read_pieces(struct session *s, const struct nbd_request *r)
{
    uint64_t off = r->off, end = r->off + r->len, data = 0;
    struct img_error err = { 0 };
    int ret = 0;

    while (off < end && ret == 0) {
        uint64_t n;

        if (!data) {
            n = nbd_export_hole(s->export, off, end - off, &data);
            if (n) {
                if (!chunk_hole(s, r, off, n))
                    return false;
                off += n;
                continue;
            }
        }
        n = data < PIECE ? data : PIECE;
        if (!chunk_data(s, r, off, n, &ret, &err))
            return false;
        off += n;
        data -= n;
    }
    return ret < 0 ? reply_failed(s, r, -ret, &err) : reply_done(s, r);
}

static bool do_read(struct session *s, const struct nbd_request *r)
{
    bool pieces = s->mode != NBD_MODE_SIMPLE && !(r->flags & NBD_FLAG_DF);

    if (!r->len && s->mode != NBD_MODE_SIMPLE)
        return reply_done(s, r);
    s->short_read = r->len && r->len <= NBD_FLIGHT_BYTES;
    if (s->deep && s->short_read) {
        s->deep--;
        s->short_read = false;
        if (launch(s, r))
            return true;
    }
    if (pieces && r->len >= LOOK_FOR_HOLES)
        return read_pieces(s, r);
    if (r->len <= PIECE)
        return read_small(s, r);
    return read_whole(s, r);
}

/* ---- what changes the disk --------------------------------------------- */

/* The payload is written as it comes.  After an error the rest is dropped;
 * the reply tells. */
static bool do_write(struct session *s, const struct nbd_request *r)
{
    bool fua = r->flags & NBD_FLAG_FUA, whole = r->len <= IN_SIZE;
    uint64_t off = r->off, end = r->off + r->len;
    struct img_error err = { 0 };
    int ret = 0;

    while (off < end) {
        /* Pieces begin at multiples of their length, so that they are whole
         * clusters. */
        uint64_t n = whole ? r->len : PIECE - off % PIECE;

        if (n > end - off)
            n = end - off;
        if (!need(s, n))
            return false;
        if (ret == 0)
            ret = nbd_export_write(s->export, s->in + s->in_pos, n, off,
                                   fua && whole, &err);
        s->in_pos += n;
        off += n;
    }
    if (ret == 0 && fua && !whole)
        ret = img_flush(s->export->disk, &err);
    return reply_result(s, r, ret, &err);
}

static bool do_simple(struct session *s, const struct nbd_request *r)
{
    struct img_error err = { 0 };
    int ret;

    if (r->type == NBD_CMD_FLUSH && launch(s, r))
        return true;
    if (r->type == NBD_CMD_FLUSH)
        ret = img_flush(s->export->disk, &err);
    else if (r->type == NBD_CMD_TRIM)
        ret = nbd_export_trim(s->export, r->off, r->len,
                              r->flags & NBD_FLAG_FUA, &err);
    else
        ret = nbd_export_zero(s->export, r->off, r->len, r->flags, &err);
    return reply_result(s, r, ret, &err);
}

/* Reading it brings it into the page cache. */
static bool do_cache(struct session *s, const struct nbd_request *r)
{
    uint64_t off = r->off, end = r->off + r->len;
    struct img_error err = { 0 };
    int ret = 0;

    if (!flush_out(s))
        return false;
    while (off < end && ret == 0 && !atomic_load(&s->service->stopping)) {
        uint64_t n = end - off < PIECE ? end - off : PIECE;

        ret = nbd_export_read(s->export, s->out, n, off, &err);
        off += n;
    }
    return reply_result(s, r, ret, &err);
}

/* ---- BLOCK_STATUS ------------------------------------------------------ */

/* The extents of one context, each 8 or 16 bytes, into data, which has room
 * for max of them.  Returns how many, or a negative errno. */
static int extents(struct session *s, const struct nbd_request *r,
                   unsigned context, uint64_t length, int max, uint8_t *data,
                   struct img_error *err)
{
    bool extended = s->mode == NBD_MODE_EXTENDED;
    uint64_t off = r->off, end = r->off + length, last_len = 0;
    uint32_t last = 0;
    int n = 0, ret;

    while (off < end) {
        uint64_t run;
        uint32_t flags;

        ret = nbd_export_status(s->export, context, off, end - off, &run,
                                &flags, err);
        if (ret < 0)
            return n ? n : ret;
        if (n && flags == last) {
            last_len += run;
        } else if (n == max) {
            break;
        } else {
            last = flags;
            last_len = run;
            n++;
        }
        if (extended) {
            nbd_put64(data + (n - 1) * 16, last_len);
            nbd_put64(data + (n - 1) * 16 + 8, last);
        } else {
            nbd_put32(data + (n - 1) * 8, (uint32_t)last_len);
            nbd_put32(data + (n - 1) * 8 + 4, last);
        }
        off += run;
    }
    return n;
}

static bool status_chunk(struct session *s, const struct nbd_request *r,
                         unsigned context, uint64_t length, bool last,
                         int *ret, struct img_error *err)
{
    bool extended = s->mode == NBD_MODE_EXTENDED;
    size_t head = extended ? 8 : 4, each = extended ? 16 : 8, size, h;
    int max = r->flags & NBD_FLAG_REQ_ONE ? 1 : MAX_EXTENTS;
    uint8_t *p = room(s, NBD_EXT_CHUNK_SIZE + head + each * (size_t)max);
    uint8_t *data;

    if (!p)
        return false;
    data = p + (extended ? NBD_EXT_CHUNK_SIZE : NBD_CHUNK_SIZE);
    *ret = extents(s, r, context, length, max, data + head, err);
    if (*ret < 0)
        return true;
    size = head + each * (size_t)*ret;
    h = put_chunk(s, p, r, last ? NBD_REPLY_DONE : 0,
                  extended ? NBD_REPLY_BLOCK_STATUS_EXT :
                  NBD_REPLY_BLOCK_STATUS, size);
    nbd_put32(data, context);
    if (extended)
        nbd_put32(data + 4, (uint32_t)*ret);
    s->out_len += h + size;
    return true;
}

static bool send_status(struct session *s, const struct nbd_request *r,
                        const bool *wanted, uint64_t length)
{
    unsigned n = s->export->view.n_contexts, last = n;
    struct img_error err = { 0 };
    int ret = 0;

    for (unsigned i = 0; i < n; i++)
        if (wanted[i])
            last = i;
    if (last == n)
        return reply_error(s, r, NBD_EINVAL, "no context was agreed on");
    if (!length)
        return reply_error(s, r, NBD_EINVAL, "the request has no length");
    for (unsigned i = 0; i <= last && ret >= 0; i++)
        if (wanted[i] &&
            !status_chunk(s, r, i, length, i == last, &ret, &err))
            return false;
    return ret < 0 ? reply_failed(s, r, -ret, &err) : true;
}

/* With a payload: the length that is meant, and the IDs of the contexts that
 * are wanted of those agreed on. */
static bool status_payload(struct session *s, const struct nbd_request *r)
{
    bool wanted[NBD_MAX_CONTEXTS] = { false }, bad = false;
    uint64_t length;
    const uint8_t *p;

    if (r->len < 8 || r->len % 4 || r->len > 8 + 4 * NBD_MAX_CONTEXTS)
        return drop(s, r->len) &&
               reply_error(s, r, NBD_EINVAL, "the payload is malformed");
    if (!need(s, (size_t)r->len))
        return false;
    p = s->in + s->in_pos;
    s->in_pos += (size_t)r->len;
    length = nbd_get64(p);
    for (size_t i = 8; i < r->len; i += 4) {
        uint32_t id = nbd_get32(p + i);

        if (id >= s->export->view.n_contexts || !s->selected ||
            !s->selected[id] || wanted[id])
            bad = true;
        else
            wanted[id] = true;
    }
    if (bad || r->off > s->export->view.size ||
        length > s->export->view.size - r->off)
        return reply_error(s, r, NBD_EINVAL, "the payload is malformed");
    return send_status(s, r, wanted, length);
}

static bool do_status(struct session *s, const struct nbd_request *r)
{
    static const bool none[NBD_MAX_CONTEXTS];

    if (r->flags & NBD_FLAG_PAYLOAD_LEN)
        return status_payload(s, r);
    return send_status(s, r, s->selected ? s->selected : none, r->len);
}

/* ---- requests under way ------------------------------------------------- */

/* False: it must be done here. */
static bool launch(struct session *s, const struct nbd_request *r)
{
    struct nbd_export *e = s->export;

    if (s->no_flight)
        return false;
    if (!s->flight && !(s->flight = nbd_flight_new(e->disk))) {
        s->no_flight = true;
        return false;
    }
    return nbd_flight_launch(s->flight, r, e->base + r->off);
}

static bool reply_landed(struct session *s, const struct nbd_landed *l)
{
    const struct nbd_request *r = &l->request;
    struct img_error err = { 0 };
    uint8_t *p;
    size_t head;

    if (l->result < 0) {
        snprintf(err.message, sizeof err.message, "%s", l->message);
        return reply_failed(s, r, -l->result, &err);
    }
    if (r->type != NBD_CMD_READ)
        return reply_done(s, r);
    p = room(s, NBD_EXT_CHUNK_SIZE + 8 + r->len);
    if (!p)
        return false;
    head = put_data_head(s, p, r);
    memcpy(p + head, l->data, r->len);
    s->out_len += head + r->len;
    return true;
}

/* Replies to all that have landed; wait: to all that are under way. */
static bool land(struct session *s, bool wait)
{
    struct nbd_landed l;
    bool ok = true;

    while (ok && s->flight && nbd_flight_land(s->flight, wait, &l)) {
        ok = reply_landed(s, &l);
        nbd_flight_let_go(s->flight, &l);
    }
    return ok;
}

/* ---- requests ---------------------------------------------------------- */

static bool carry_out(struct session *s, const struct nbd_request *r)
{
    switch (r->type) {
    case NBD_CMD_READ:
        return do_read(s, r);
    case NBD_CMD_WRITE:
        return do_write(s, r);
    case NBD_CMD_CACHE:
        return do_cache(s, r);
    case NBD_CMD_BLOCK_STATUS:
        return do_status(s, r);
    default:
        return do_simple(s, r);
    }
}

static bool one_request(struct session *s)
{
    struct nbd_request r;
    const char *why;
    uint64_t payload;
    uint32_t error;

    if (!need(s, nbd_request_size(s->mode)) ||
        !nbd_request_parse(s->in + s->in_pos, s->mode, &r))
        return false;
    s->in_pos += nbd_request_size(s->mode);
    if (r.type == NBD_CMD_DISC)
        return false;
    payload = nbd_request_payload(&r, s->mode);
    if (payload > NBD_ENOUGH)
        return false;
    error = nbd_request_check(&r, s->mode, s->export->view.size, s->flags,
                              &why);
    if (error)
        return drop(s, payload) && reply_error(s, &r, error, why);
    return carry_out(s, &r);
}

/* Replies do not wait behind a long row of requests. */
static bool in_time(struct session *s, bool was_empty)
{
    int64_t now;

    if (s->in_len - s->in_pos < NBD_REQUEST_SIZE) {
        s->last = 0;
        return true;            /* need() will send them */
    }
    if (!s->out_len)
        return true;
    now = now_ns();
    if (s->short_read && s->last)
        s->slow = now - s->last > SLOW_NS ? s->slow + 1 : 0;
    if (s->slow == 2) {         /* one may just have lost the processor */
        s->slow = 0;
        s->deep = DEEP;
    }
    s->last = now;
    if (was_empty)
        s->out_since = now;
    else if (now - s->out_since > BATCH_NS)
        return flush_out(s);
    return true;
}

static void requests(struct session *s)
{
    bool go_on = true;

    while (go_on && !atomic_load_explicit(&s->service->stopping,
                                          memory_order_relaxed)) {
        bool was_empty = s->out_len == 0;

        s->short_read = false;
        go_on = one_request(s) && in_time(s, was_empty);
    }
    if (land(s, true))
        flush_out(s);
    nbd_flight_free(s->flight);
}

/* ---- handshake --------------------------------------------------------- */

static bool send_bytes(struct session *s, struct nbd_bytes *bytes)
{
    struct iovec iov = { bytes->data, bytes->len };

    if (bytes->failed)
        return false;
    bytes->len = 0;
    return !iov.iov_len || s->stream->send(s->stream, &iov, 1);
}

/* Bytes that came before TLS was up may be somebody else's. */
static bool start_tls(struct session *s, struct nbd_handshake *h)
{
    if (s->in_pos != s->in_len ||
        !nbd_tls_accept(s->service->tls, s->stream))
        return false;
    nbd_handshake_secured(h);
    return true;
}

static bool shake_hands(struct session *s, struct nbd_handshake *h,
                        struct nbd_bytes *out)
{
    nbd_handshake_begin(h, s->service->catalog, out);
    while (!atomic_load(&s->service->stopping)) {
        size_t used;
        enum nbd_next next;

        next = nbd_handshake_step(h, s->in + s->in_pos,
                                  s->in_len - s->in_pos, &used, out);
        s->in_pos += used;
        if (next == NBD_NEXT_AGAIN && out->len < PIECE)
            continue;
        if (!send_bytes(s, out))
            return false;
        if (next == NBD_NEXT_READY)
            return true;
        if (next == NBD_NEXT_CLOSE ||
            (next == NBD_NEXT_TLS && !start_tls(s, h)))
            return false;
        if (next == NBD_NEXT_MORE &&
            !need(s, s->in_len - s->in_pos + 1))
            return false;
    }
    return false;
}

static bool buffers(struct session *s)
{
    return (s->in = malloc(IN_SIZE)) && (s->out = malloc(OUT_SIZE));
}

bool nbd_session_run(struct nbd_service *service, struct nbd_stream *stream)
{
    struct session s = { .service = service, .stream = stream };
    struct nbd_bytes out = { 0 };
    struct nbd_handshake h;
    bool ready;

    if (service->handshake_ms)
        stream->deadline = nbd_now() + service->handshake_ms;
    ready = buffers(&s) && shake_hands(&s, &h, &out);
    nbd_bytes_free(&out);
    if (ready) {
        stream->deadline = 0;
        s.export = nbd_export_of(h.chosen);
        s.mode = h.mode;
        s.flags = nbd_handshake_flags(&h, h.chosen);
        s.selected = h.meta_export ? h.selected : NULL;
        s.no_flight = stream->tls || stream->fd < 0;
        requests(&s);
    }
    free(s.in);
    free(s.out);
    return ready;
}

bool nbd_session_transmit(struct nbd_service *service,
                          struct nbd_stream *stream,
                          struct nbd_export *export)
{
    struct session s = {
        .service = service, .stream = stream, .export = export,
        .flags = export->view.flags
    };
    bool ok = buffers(&s);

    if (ok)
        requests(&s);
    free(s.in);
    free(s.out);
    return ok;
}
