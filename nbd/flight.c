/* Requests under way on an img_queue.  Used by the client's thread alone.
 * Buffers are made when a slot is first used and kept: at most DEPTH x BYTES
 * for each client that needs them. */
#include <stdlib.h>
#include "flight.h"

struct slot {
    struct nbd_request request;
    struct iovec iov;
    uint8_t *data;
    bool used;
};

struct nbd_flight {
    struct img_queue *queue;
    struct slot slots[NBD_FLIGHT_DEPTH];
    unsigned busy;              /* launched and not landed */
};

struct nbd_flight *nbd_flight_new(struct img_disk *disk)
{
    struct nbd_flight *f = calloc(1, sizeof *f);

    if (f && img_queue_open(disk, NBD_FLIGHT_DEPTH, &f->queue, NULL) < 0) {
        free(f);
        return NULL;
    }
    return f;
}

void nbd_flight_free(struct nbd_flight *f)
{
    if (!f)
        return;
    img_queue_close(f->queue);
    for (unsigned i = 0; i < NBD_FLIGHT_DEPTH; i++)
        free(f->slots[i].data);
    free(f);
}

static struct slot *free_slot(struct nbd_flight *f)
{
    for (unsigned i = 0; i < NBD_FLIGHT_DEPTH; i++)
        if (!f->slots[i].used)
            return &f->slots[i];
    return NULL;
}

bool nbd_flight_launch(struct nbd_flight *f, const struct nbd_request *r,
                       uint64_t off)
{
    struct slot *s = free_slot(f);
    struct img_request q = { .op = IMG_FLUSH, .user = s };

    if (!s)
        return false;
    if (r->type == NBD_CMD_READ) {
        if (!s->data)
            s->data = malloc(NBD_FLIGHT_BYTES);
        if (!s->data)
            return false;
        s->iov = (struct iovec){ s->data, r->len };
        q.op = IMG_READ;
        q.off = off;
        q.iov = &s->iov;
        q.iovcnt = 1;
    }
    s->request = *r;
    if (img_queue_submit(f->queue, &q, 1) != 1)
        return false;
    s->used = true;
    f->busy++;
    return true;
}

bool nbd_flight_land(struct nbd_flight *f, bool wait, struct nbd_landed *l)
{
    struct img_completion done;
    struct slot *s;

    if (!f->busy ||
        img_queue_reap(f->queue, &done, wait, 1, wait ? -1 : 0) != 1)
        return false;
    f->busy--;
    s = done.user;
    *l = (struct nbd_landed){
        .request = s->request, .result = done.result,
        .message = done.message ? done.message : "", .data = s->data,
        .slot = (unsigned)(s - f->slots)
    };
    return true;
}

void nbd_flight_let_go(struct nbd_flight *f, const struct nbd_landed *l)
{
    f->slots[l->slot].used = false;
}

unsigned nbd_flight_busy(const struct nbd_flight *f)
{
    return f->busy;
}

int nbd_flight_fd(const struct nbd_flight *f)
{
    return img_queue_fd(f->queue);
}
