/* One client, on its own thread.
 *
 * Requests are taken from a buffer that one recv fills with as many as are
 * there.  Each is carried out on this very thread if nothing has to be waited
 * for, and the replies gather in a second buffer that goes out in one send:
 * when no complete request is left, when it is full, or when the oldest reply
 * in it has waited for BATCH_NS.  So a small read of cached data costs a
 * fraction of a system call and no change of thread.
 *
 * Whatever would have to wait - for a device, for room in the image, for an
 * inflated cluster - goes to the client's crew (crew.c), so that what comes
 * behind it does not wait too and a disk sees many requests at once.  The one
 * exception are writes longer than KEEP: they are written in pieces as they
 * come, for nobody is to make us keep them.
 *
 * Memory per client: the two buffers, and what the crew has.
 */
#include <errno.h>
#include <stdlib.h>
#include "crew.h"
#include "session.h"
#include "tls.h"

enum {
    IN_SIZE = 256 << 10,
    KEEP = 2 << 20,             /* longest payload for the crew */
    BATCH_NS = 100 * 1000
};

struct session {
    struct nbd_link link;
    struct nbd_out out;
    uint8_t *in;
    size_t in_pos, in_len;      /* in[in_pos .. in_len) is not used up yet */
    unsigned gathered;          /* requests since something was received */
    int64_t out_since;          /* when the first reply came in, ns */
    struct nbd_crew *crew;      /* NULL = not needed yet */
    bool alone;                 /* without a crew */
};

/* ---- input ------------------------------------------------------------- */

/* Each session needs a processor for the other side, too: with more of them
 * whoever waits awake keeps others from working.  And where several requests
 * came at once, it is better that several gather again. */
static int64_t awake(const struct session *s)
{
    struct nbd_service *service = s->link.service;
    unsigned n = atomic_load_explicit(&service->n_sessions,
                                      memory_order_relaxed);

    return s->gathered <= 1 && n * 2 <= service->processors
        ? service->awake_us * 1000 : 0;
}

/* At most len bytes, once there are any. */
static size_t receive(struct session *s, void *buf, size_t len)
{
    ssize_t r;

    if (!nbd_out_flush(&s->out))
        return 0;
    s->link.stream->awake = awake(s);
    s->gathered = 0;
    r = s->link.stream->recv(s->link.stream, buf, len);
    return r < 0 ? 0 : (size_t)r;
}

/* Reads until at least n bytes (at most IN_SIZE) are there. */
static bool need(struct session *s, size_t n)
{
    if (s->in_pos == s->in_len)
        s->in_pos = s->in_len = 0;
    while (s->in_len - s->in_pos < n) {
        size_t r;

        if (n > IN_SIZE - s->in_pos) {
            memmove(s->in, s->in + s->in_pos, s->in_len - s->in_pos);
            s->in_len -= s->in_pos;
            s->in_pos = 0;
        }
        r = receive(s, s->in + s->in_len, IN_SIZE - s->in_len);
        if (!r)
            return false;
        s->in_len += r;
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

/* The next len bytes into memory of their own.  NULL and *gone unchanged:
 * there is none. */
static uint8_t *keep(struct session *s, size_t len, bool *gone)
{
    uint8_t *p = malloc(len);
    size_t n = s->in_len - s->in_pos;

    if (!p)
        return NULL;
    n = n < len ? n : len;
    memcpy(p, s->in + s->in_pos, n);
    s->in_pos += n;
    while (n < len) {
        size_t r = receive(s, p + n, len - n);

        if (!r) {
            *gone = true;
            free(p);
            return NULL;
        }
        n += r;
    }
    return p;
}

/* ---- requests ---------------------------------------------------------- */

/* Has it carried out by somebody who may wait: the crew, or else us.  Chunks
 * of its reply that are in our buffer go out first: the last chunk, which the
 * crew sends, ends the reply. */
static bool hand_over(struct session *s, struct nbd_work *w)
{
    bool ok, begun = w->request.type == NBD_CMD_READ &&
                     w->at != w->request.off;

    if (!s->alone && !s->crew)
        s->alone = !(s->crew = nbd_crew_new(&s->link));
    if (!s->alone) {
        if ((begun || nbd_crew_is_full(s->crew, w)) &&
            !nbd_out_flush(&s->out)) {
            free(w->payload);
            return false;
        }
        if (nbd_crew_take(s->crew, w))
            return true;
    }
    ok = nbd_work_do(&s->out, w);
    free(w->payload);
    return ok;
}

/* How much of a write is looked at next.  Pieces of a long one begin at
 * multiples of their length, so that they are whole clusters. */
static size_t piece_of(const struct nbd_work *w)
{
    uint64_t left = w->request.off + w->request.len - w->at;
    uint64_t n = NBD_PIECE - w->at % NBD_PIECE;

    return (size_t)(w->request.len <= IN_SIZE || left < n ? left : n);
}

/* Pieces are written as they come.  From the first one that would have to
 * wait, the rest goes to the crew; while that is too long to be kept, we wait
 * ourselves.  After an error the rest is dropped; the reply tells. */
static bool do_write(struct session *s, struct nbd_work *w)
{
    const struct nbd_request *r = &w->request;
    struct nbd_export *e = s->link.export;
    uint64_t end = r->off + r->len;
    bool fua = r->flags & NBD_FLAG_FUA, gone = false;
    struct img_error err = { 0 };
    int ret = 0;

    while (w->at < end) {
        size_t n = piece_of(w);

        if (!need(s, n))
            return false;
        if (ret == 0 && (fua || nbd_export_write_now(e, s->in + s->in_pos, n,
                                                     w->at) < 0)) {
            if (end - w->at <= KEEP && !s->alone &&
                (w->payload = keep(s, (size_t)(end - w->at), &gone)))
                return hand_over(s, w);
            if (gone)
                return false;
            ret = nbd_export_write(e, s->in + s->in_pos, n, w->at, false,
                                   &err);
        }
        s->in_pos += n;
        w->at += n;
    }
    if (ret == 0 && fua)
        ret = img_flush(e->disk, &err);
    return nbd_reply_result(&s->out, r, ret, &err);
}

static bool carry_out(struct session *s, struct nbd_work *w, uint64_t payload)
{
    bool gone = false;

    if (w->request.type == NBD_CMD_WRITE && w->request.len)
        return do_write(s, w);
    if (payload > NBD_PIECE)
        return drop(s, payload) &&
               nbd_reply_error(&s->out, &w->request, NBD_EINVAL,
                               "the payload is malformed");
    if (payload && !(w->payload = keep(s, payload, &gone)))
        return !gone && drop(s, payload) &&
               nbd_reply_error(&s->out, &w->request, NBD_ENOMEM,
                               "no memory");
    switch (nbd_work_now(&s->out, w)) {
    case NBD_DONE:
        free(w->payload);
        return true;
    case NBD_WAITS:
        return hand_over(s, w);
    case NBD_GONE:
        free(w->payload);
        break;
    }
    return false;
}

static bool one_request(struct session *s)
{
    struct nbd_link *l = &s->link;
    struct nbd_request r;
    struct nbd_work w;
    const char *why;
    uint64_t payload;
    uint32_t error;

    if (!need(s, nbd_request_size(l->mode)) ||
        !nbd_request_parse(s->in + s->in_pos, l->mode, &r))
        return false;
    s->in_pos += nbd_request_size(l->mode);
    s->gathered++;
    if (r.type == NBD_CMD_DISC)
        return false;
    payload = nbd_request_payload(&r, l->mode);
    if (payload > NBD_ENOUGH)
        return false;
    error = nbd_request_check(&r, l->mode, l->export->view.size, l->flags,
                              &why);
    if (error)
        return drop(s, payload) && nbd_reply_error(&s->out, &r, error, why);
    nbd_work_begin(&w, &r);
    return carry_out(s, &w, payload);
}

/* Replies do not wait behind a long row of requests. */
static bool in_time(struct session *s, bool was_empty)
{
    int64_t now;

    if (!s->out.len || s->in_len - s->in_pos < NBD_REQUEST_SIZE)
        return true;            /* or need() will send them */
    now = nbd_now_ns();
    if (was_empty)
        s->out_since = now;
    else if (now - s->out_since > BATCH_NS)
        return nbd_out_flush(&s->out);
    return true;
}

static void requests(struct session *s)
{
    bool go_on = true;

    atomic_fetch_add(&s->link.service->n_sessions, 1);
    while (go_on && !atomic_load_explicit(&s->link.service->stopping,
                                          memory_order_relaxed)) {
        bool was_empty = s->out.len == 0;

        go_on = one_request(s) && in_time(s, was_empty);
    }
    nbd_out_flush(&s->out);
    nbd_crew_end(s->crew);
    atomic_fetch_sub(&s->link.service->n_sessions, 1);
}

/* ---- handshake --------------------------------------------------------- */

static bool send_bytes(struct session *s, struct nbd_bytes *bytes)
{
    struct iovec iov = { bytes->data, bytes->len };

    if (bytes->failed)
        return false;
    bytes->len = 0;
    return !iov.iov_len || s->link.stream->send(s->link.stream, &iov, 1);
}

/* Bytes that came before TLS was up may be somebody else's. */
static bool start_tls(struct session *s, struct nbd_handshake *h)
{
    if (s->in_pos != s->in_len ||
        !nbd_tls_accept(s->link.service->tls, s->link.stream))
        return false;
    nbd_handshake_secured(h);
    return true;
}

static bool shake_hands(struct session *s, struct nbd_handshake *h,
                        struct nbd_bytes *out)
{
    nbd_handshake_begin(h, s->link.service->catalog, out);
    while (!atomic_load(&s->link.service->stopping)) {
        size_t used;
        enum nbd_next next;

        next = nbd_handshake_step(h, s->in + s->in_pos,
                                  s->in_len - s->in_pos, &used, out);
        s->in_pos += used;
        if (next == NBD_NEXT_AGAIN && out->len < NBD_PIECE)
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

static bool begin(struct session *s, struct nbd_service *service,
                  struct nbd_stream *stream)
{
    *s = (struct session){ .alone = stream->fd < 0 };
    nbd_link_init(&s->link, service, stream);
    return nbd_out_init(&s->out, &s->link) && (s->in = malloc(IN_SIZE));
}

static void end(struct session *s)
{
    free(s->in);
    nbd_out_end(&s->out);
    nbd_link_destroy(&s->link);
}

bool nbd_session_run(struct nbd_service *service, struct nbd_stream *stream)
{
    struct nbd_bytes out = { 0 };
    struct nbd_handshake h;
    struct session s;
    bool ready;

    if (service->handshake_ms)
        stream->deadline = nbd_now() + service->handshake_ms;
    ready = begin(&s, service, stream) && shake_hands(&s, &h, &out);
    nbd_bytes_free(&out);
    if (ready) {
        stream->deadline = 0;
        s.link.export = nbd_export_of(h.chosen);
        s.link.mode = h.mode;
        s.link.flags = nbd_handshake_flags(&h, h.chosen);
        s.link.selected = h.meta_export ? h.selected : NULL;
        requests(&s);
    }
    end(&s);
    return ready;
}

bool nbd_session_transmit(struct nbd_service *service,
                          struct nbd_stream *stream,
                          struct nbd_export *export)
{
    struct session s;
    bool ok = begin(&s, service, stream);

    if (ok) {
        s.link.export = export;
        s.link.flags = export->view.flags;
        requests(&s);
    }
    end(&s);
    return ok;
}
