/* Requests and their answers.  Whatever takes `now` returns NBD_WAITS rather
 * than wait for a device, a table, a lock, or room in the image; what it has
 * put into the reply until then stays valid. */
#include <errno.h>
#include <stdlib.h>
#include "session.h"
#include "work.h"

enum {
    SPLICE_MIN = 64 << 10,      /* in reads at least this long, copying costs
                                   more than handling pages */
    LOOK_FOR_HOLES = 64 << 10,  /* in reads at least this long */
    MAX_EXTENTS = 8192          /* in one reply to BLOCK_STATUS */
};

void nbd_work_begin(struct nbd_work *w, const struct nbd_request *r)
{
    *w = (struct nbd_work){ .request = *r, .at = r->off };
}

static enum nbd_progress progress(bool ok)
{
    return ok ? NBD_DONE : NBD_GONE;
}

/* ---- READ -------------------------------------------------------------- */

static bool in_pieces(const struct nbd_link *l, const struct nbd_request *r)
{
    return l->mode != NBD_MODE_SIMPLE && !(r->flags & NBD_FLAG_DF) &&
           r->len >= LOOK_FOR_HOLES;
}

static int read_disk(struct nbd_out *o, void *buf, size_t len, uint64_t off,
                     bool now, struct img_error *err)
{
    return now ? nbd_export_read_now(o->link->export, buf, len, off) :
        nbd_export_read(o->link->export, buf, len, off, err);
}

/* Long reads of what is in the page cache, without copying it.  False: it has
 * to be copied. */
static bool fill_pipe(struct nbd_out *o, size_t len, uint64_t off, bool now)
{
    int pipe = now && len >= SPLICE_MIN ? nbd_out_pipe(o, len) : -1;

    if (pipe < 0)
        return false;
    if (nbd_export_splice_now(o->link->export, pipe, len, off) == 0)
        return true;
    nbd_out_drop_pipe(o);
    return false;
}

/* Into the reply itself. */
static enum nbd_progress read_small(struct nbd_out *o,
                                    const struct nbd_request *r, bool now)
{
    uint8_t *p = nbd_out_room(o, NBD_EXT_CHUNK_SIZE + 8 + r->len);
    struct img_error err = { 0 };
    size_t head;
    int ret;

    if (!p)
        return NBD_GONE;
    head = nbd_put_data_head(o, p, r);
    ret = read_disk(o, p + head, r->len, r->off, now, &err);
    if (ret == -EAGAIN && now)
        return NBD_WAITS;
    if (ret < 0)
        return progress(nbd_reply_result(o, r, ret, &err));
    o->len += head + r->len;
    return NBD_DONE;
}

/* One piece of it, whatever its length: a client without structured replies
 * must not be told of success before all is read. */
static enum nbd_progress read_whole(struct nbd_out *o,
                                    const struct nbd_request *r, bool now)
{
    struct img_error err = { 0 };
    enum nbd_progress done = NBD_GONE;
    uint8_t *data = malloc(r->len), *p;
    int ret;

    if (!data)
        return progress(nbd_reply_error(o, r, NBD_ENOMEM, "no memory"));
    ret = read_disk(o, data, r->len, r->off, now, &err);
    if (ret == -EAGAIN && now) {
        done = NBD_WAITS;
    } else if (ret < 0) {
        done = progress(nbd_reply_result(o, r, ret, &err));
    } else if ((p = nbd_out_room(o, NBD_EXT_CHUNK_SIZE + 8))) {
        o->len += nbd_put_data_head(o, p, r);
        done = progress(nbd_out_send_with(o, data, r->len));
    }
    free(data);
    return done;
}

/* The head of the one piece, and the pages behind it. */
static enum nbd_progress send_pages(struct nbd_out *o,
                                    const struct nbd_request *r)
{
    uint8_t *p = nbd_out_room(o, NBD_EXT_CHUNK_SIZE + 8);

    if (!p)
        return NBD_GONE;
    o->len += nbd_put_data_head(o, p, r);
    return progress(nbd_out_send_pipe(o, r->len));
}

static bool chunk_hole(struct nbd_out *o, const struct nbd_request *r,
                       uint64_t off, uint64_t len)
{
    uint8_t *p = nbd_out_room(o, NBD_EXT_CHUNK_SIZE + 12);
    size_t head;

    if (!p)
        return false;
    head = nbd_put_chunk(o, p, r, 0, NBD_REPLY_OFFSET_HOLE, 12);
    nbd_put64(p + head, off);
    nbd_put32(p + head + 8, (uint32_t)len);
    o->len += head + 12;
    return true;
}

/* *ret: what the disk said; nothing is in the reply unless that is 0. */
static bool chunk_data(struct nbd_out *o, const struct nbd_request *r,
                       uint64_t off, uint64_t len, bool now, int *ret,
                       struct img_error *err)
{
    uint8_t *p = nbd_out_room(o, NBD_EXT_CHUNK_SIZE + 8 + len);
    size_t head;

    if (!p)
        return false;
    head = nbd_put_chunk(o, p, r, 0, NBD_REPLY_OFFSET_DATA, 8 + len);
    nbd_put64(p + head, off);
    if (fill_pipe(o, len, off, now)) {
        o->len += head + 8;
        *ret = 0;
        return nbd_out_send_pipe(o, len);
    }
    *ret = read_disk(o, p + head + 8, len, off, now, err);
    if (*ret == 0)
        o->len += head + 8 + len;
    return true;
}

/* In chunks: holes as such, data in pieces that stay in the processor's
 * cache on their way from the image to the socket. */
static enum nbd_progress read_pieces(struct nbd_out *o, struct nbd_work *w,
                                     bool now)
{
    const struct nbd_request *r = &w->request;
    uint64_t end = r->off + r->len, hole, data = 0;
    struct img_error err = { 0 };
    int ret = 0;

    while (w->at < end && ret == 0) {
        uint64_t n;

        if (!data) {
            if (!nbd_export_hole(o->link->export, w->at, end - w->at, now,
                                 &hole, &data))
                return NBD_WAITS;
            if (hole && !chunk_hole(o, r, w->at, hole))
                return NBD_GONE;
            w->at += hole;
            continue;
        }
        n = data < NBD_PIECE ? data : NBD_PIECE;
        if (!chunk_data(o, r, w->at, n, now, &ret, &err))
            return NBD_GONE;
        if (ret == -EAGAIN && now)
            return NBD_WAITS;
        w->at += n;
        data -= n;
    }
    return progress(nbd_reply_result(o, r, ret, &err));
}

static enum nbd_progress do_read(struct nbd_out *o, struct nbd_work *w,
                                 bool now)
{
    const struct nbd_request *r = &w->request;

    if (!r->len && o->link->mode != NBD_MODE_SIMPLE)
        return progress(nbd_reply_done(o, r));
    if (in_pieces(o->link, r))
        return read_pieces(o, w, now);
    if (fill_pipe(o, r->len, r->off, now))
        return send_pages(o, r);
    if (r->len <= NBD_PIECE)
        return read_small(o, r, now);
    return read_whole(o, r, now);
}

/* ---- what changes the disk --------------------------------------------- */

static bool do_change(struct nbd_out *o, const struct nbd_work *w)
{
    const struct nbd_request *r = &w->request;
    struct nbd_export *e = o->link->export;
    struct img_error err = { 0 };
    bool fua = r->flags & NBD_FLAG_FUA;
    int ret;

    switch (r->type) {
    case NBD_CMD_WRITE:
        ret = nbd_export_write(e, w->payload, r->off + r->len - w->at, w->at,
                               fua, &err);
        break;
    case NBD_CMD_TRIM:
        ret = nbd_export_trim(e, r->off, r->len, fua, &err);
        break;
    case NBD_CMD_WRITE_ZEROES:
        ret = nbd_export_zero(e, r->off, r->len, r->flags, &err);
        break;
    default:
        ret = img_flush(e->disk, &err);
    }
    return nbd_reply_result(o, r, ret, &err);
}

/* ---- CACHE ------------------------------------------------------------- */

/* Reading it brings it into the page cache. */
static bool do_cache(struct nbd_out *o, const struct nbd_request *r)
{
    uint64_t off = r->off, end = r->off + r->len;
    struct img_error err = { 0 };
    int ret = 0;

    if (!nbd_out_flush(o))
        return false;
    while (off < end && ret == 0 &&
           !atomic_load(&o->link->service->stopping)) {
        uint64_t n = end - off < NBD_PIECE ? end - off : NBD_PIECE;

        ret = nbd_export_read(o->link->export, o->data, n, off, &err);
        off += n;
    }
    return nbd_reply_result(o, r, ret, &err);
}

/* ---- BLOCK_STATUS ------------------------------------------------------ */

/* The extents of one context, each 8 or 16 bytes, into data, which has room
 * for max of them.  Returns how many, or a negative errno. */
static int extents(const struct nbd_link *l, const struct nbd_request *r,
                   unsigned context, uint64_t length, int max, uint8_t *data,
                   struct img_error *err)
{
    bool extended = l->mode == NBD_MODE_EXTENDED;
    uint64_t off = r->off, end = r->off + length, last_len = 0;
    uint32_t last = 0;
    int n = 0, ret;

    while (off < end) {
        uint64_t run;
        uint32_t flags;

        ret = nbd_export_status(l->export, context, off, end - off, &run,
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

static bool status_chunk(struct nbd_out *o, const struct nbd_request *r,
                         unsigned context, uint64_t length, bool last,
                         int *ret, struct img_error *err)
{
    bool extended = o->link->mode == NBD_MODE_EXTENDED;
    size_t head = extended ? 8 : 4, each = extended ? 16 : 8, size, h;
    int max = r->flags & NBD_FLAG_REQ_ONE ? 1 : MAX_EXTENTS;
    uint8_t *p = nbd_out_room(o, NBD_EXT_CHUNK_SIZE + head +
                              each * (size_t)max);
    uint8_t *data;

    if (!p)
        return false;
    data = p + (extended ? NBD_EXT_CHUNK_SIZE : NBD_CHUNK_SIZE);
    *ret = extents(o->link, r, context, length, max, data + head, err);
    if (*ret < 0)
        return true;
    size = head + each * (size_t)*ret;
    h = nbd_put_chunk(o, p, r, last ? NBD_REPLY_DONE : 0,
                      extended ? NBD_REPLY_BLOCK_STATUS_EXT :
                      NBD_REPLY_BLOCK_STATUS, size);
    nbd_put32(data, context);
    if (extended)
        nbd_put32(data + 4, (uint32_t)*ret);
    o->len += h + size;
    return true;
}

static bool send_status(struct nbd_out *o, const struct nbd_request *r,
                        const bool *wanted, uint64_t length)
{
    unsigned n = o->link->export->view.n_contexts, last = n;
    struct img_error err = { 0 };
    int ret = 0;

    for (unsigned i = 0; i < n; i++)
        if (wanted[i])
            last = i;
    if (last == n)
        return nbd_reply_error(o, r, NBD_EINVAL,
                               "no context was agreed on");
    if (!length)
        return nbd_reply_error(o, r, NBD_EINVAL,
                               "the request has no length");
    for (unsigned i = 0; i <= last && ret >= 0; i++)
        if (wanted[i] &&
            !status_chunk(o, r, i, length, i == last, &ret, &err))
            return false;
    return ret < 0 ? nbd_reply_result(o, r, ret, &err) : true;
}

/* With a payload: the length that is meant, and the IDs of the contexts that
 * are wanted of those agreed on. */
static bool status_payload(struct nbd_out *o, const struct nbd_work *w)
{
    const struct nbd_request *r = &w->request;
    const struct nbd_link *l = o->link;
    const uint8_t *p = w->payload;
    bool wanted[NBD_MAX_CONTEXTS] = { false }, bad = false;
    uint64_t length, size = l->export->view.size;

    if (r->len < 8 || r->len % 4 || r->len > 8 + 4 * NBD_MAX_CONTEXTS)
        return nbd_reply_error(o, r, NBD_EINVAL, "the payload is malformed");
    length = nbd_get64(p);
    for (size_t i = 8; i < r->len; i += 4) {
        uint32_t id = nbd_get32(p + i);

        if (id >= l->export->view.n_contexts || !l->selected ||
            !l->selected[id] || wanted[id])
            bad = true;
        else
            wanted[id] = true;
    }
    if (bad || r->off > size || length > size - r->off)
        return nbd_reply_error(o, r, NBD_EINVAL, "the payload is malformed");
    return send_status(o, r, wanted, length);
}

static bool do_status(struct nbd_out *o, const struct nbd_work *w)
{
    static const bool none[NBD_MAX_CONTEXTS];
    const struct nbd_request *r = &w->request;

    if (r->flags & NBD_FLAG_PAYLOAD_LEN)
        return status_payload(o, w);
    return send_status(o, r, o->link->selected ? o->link->selected : none,
                       r->len);
}

/* ---- all of them ------------------------------------------------------- */

enum nbd_progress nbd_work_now(struct nbd_out *o, struct nbd_work *w)
{
    const struct nbd_request *r = &w->request;

    switch (r->type) {
    case NBD_CMD_READ:
        return do_read(o, w, true);
    case NBD_CMD_TRIM:
        if (!o->link->export->discard && !(r->flags & NBD_FLAG_FUA))
            return progress(nbd_reply_done(o, r));
        break;
    }
    return NBD_WAITS;
}

bool nbd_work_do(struct nbd_out *o, struct nbd_work *w)
{
    switch (w->request.type) {
    case NBD_CMD_READ:
        return do_read(o, w, false) == NBD_DONE;
    case NBD_CMD_CACHE:
        return do_cache(o, &w->request);
    case NBD_CMD_BLOCK_STATUS:
        return do_status(o, w);
    default:
        return do_change(o, w);
    }
}

uint64_t nbd_work_cost(const struct nbd_link *l, const struct nbd_work *w)
{
    const struct nbd_request *r = &w->request;

    if (r->type == NBD_CMD_READ)
        return in_pieces(l, r) || r->len <= NBD_PIECE ? 0 : r->len;
    return w->payload ? r->len : 0;
}
