/* Requests in flight on a queue, for model.c.  Those of one batch do not
 * overlap, so that the array knows what comes out. */
#include "model.h"

#include <string.h>

enum { SLOTS = 12, SLOT = 40000 };

struct slot {
    struct img_request req;
    struct iovec iov;
    uint64_t off, len;
    bool done;
};

static void make_slot(struct model *m, struct slot *s, unsigned i)
{
    static const enum img_op ops[] = { IMG_READ, IMG_WRITE, IMG_ZERO };
    uint8_t *buf = m->buf + (size_t)i * SLOT;
    struct rng content = { rng_next(&m->rng) };

    s->req = (struct img_request) { .op = ops[rng_below(&m->rng, 3)],
                                    .off = s->off, .user = s };
    if (s->req.op == IMG_ZERO) {
        s->req.len = s->len;
        memset(m->flat + s->off, 0, s->len);
        return;
    }
    s->iov = (struct iovec) { buf, s->len };
    s->req.iov = &s->iov;
    s->req.iovcnt = 1;
    if (s->req.op == IMG_WRITE) {
        rng_fill(&content, buf, s->len);
        memcpy(m->flat + s->off, buf, s->len);
    } else {
        memset(buf, 0xa5, s->len);
    }
}

/* One after the other on the disk, with gaps. */
static unsigned make_batch(struct model *m, struct slot *slots)
{
    uint64_t off = rng_below(&m->rng, m->size);
    unsigned n = 0;

    while (n < SLOTS && off < m->size) {
        uint64_t len = 1 + rng_below(&m->rng, SLOT);

        if (len > m->size - off)
            len = m->size - off;
        slots[n].off = off;
        slots[n].len = len;
        make_slot(m, &slots[n], n);
        off += len + rng_below(&m->rng, 5000);
        n++;
    }
    return n;
}

static int finish(struct model *m, const struct img_completion *c)
{
    struct slot *s = c->user;
    struct img_error err = { 0 };

    if (c->message)
        strncpy(err.message, c->message, sizeof(err.message) - 1);
    if (s->done)
        return fail(m, "queue: completed twice", s->off, s->len, NULL);
    s->done = true;
    if (c->result < 0)
        return fail(m, "queued request", s->off, s->len, &err);
    if (s->req.op == IMG_READ &&
        memcmp(s->iov.iov_base, m->flat + s->off, s->len))
        return fail(m, "queued read", s->off, s->len, NULL);
    return 0;
}

static int run_batch(struct model *m, struct img_queue *queue,
                     struct slot *slots, unsigned n)
{
    struct img_completion done[SLOTS];
    unsigned sent = 0, back = 0;

    while (back < n) {
        int got;

        while (sent < n && img_queue_submit(queue, &slots[sent].req, 1) == 1)
            sent++;
        got = img_queue_reap(queue, done, 1, SLOTS, 60000);
        if (got < 1)
            return fail(m, "queue: nothing came back", 0, sent - back, NULL);
        for (int i = 0; i < got; i++)
            if (finish(m, &done[i]) < 0)
                return -1;
        back += (unsigned)got;
    }
    return 0;
}

int do_queue(struct model *m)
{
    unsigned depth = 1 + (unsigned)rng_below(&m->rng, SLOTS);
    struct slot slots[SLOTS] = { 0 };
    struct img_queue *queue;
    struct img_error err;
    unsigned n;
    int r;

    if (img_queue_open(m->disk, depth, &queue, &err) < 0)
        return fail(m, "queue", 0, depth, &err);
    n = make_batch(m, slots);
    r = run_batch(m, queue, slots, n);
    img_queue_close(queue);
    return r;
}
