/* Copying to what can only be written from front to back: raw bytes to a
 * pipe, or an image through its format's sink.  Everything happens in turn,
 * in the order of guest offsets. */
#include "ops/copy.h"
#include "base/checked.h"
#include "base/error.h"

#include <stdlib.h>

static const uint8_t zeros[64 << 10];

static int write_zeros(struct img_copy *c, uint64_t len,
                       struct img_error *err)
{
    int r = 0;

    while (len && r == 0) {
        size_t now = (size_t)IMG_MIN(len, (uint64_t)sizeof zeros);

        r = c->write(c->write_opaque, zeros, now, err);
        len -= now;
    }
    return r;
}

static int raw_place(struct img_copy *c, struct img_batch *b,
                     struct img_error *err)
{
    int r = 0;

    for (unsigned i = 0; i < b->n && r == 0; i++) {
        const struct img_piece *p = &b->pieces[i];

        if (p->kind == IMG_PIECE_ZERO)
            r = write_zeros(c, p->len, err);
        else
            r = c->write(c->write_opaque, p->data, (size_t)p->len, err);
    }
    return r;
}

static int sink_place(struct img_copy *c, struct img_batch *b,
                      struct img_error *err)
{
    int r = 0;

    for (unsigned i = 0; i < b->n && r == 0; i++) {
        const struct img_piece *p = &b->pieces[i];
        bool packed = p->kind == IMG_PIECE_PACKED;

        if (c->plan) {
            r = c->sink_ops->put(c->sink, p->off, p->data, (size_t)p->len,
                                 false, err);
            continue;
        }
        if (p->kind == IMG_PIECE_ZERO)
            continue;           /* what is not put reads as zeros */
        if (packed) {
            r = c->sink_ops->put(c->sink, p->off, p->data, p->packed, true,
                                 err);
            continue;
        }
        for (uint64_t at = 0; at < p->len && r == 0; at += c->unit) {
            size_t now = (size_t)IMG_MIN((uint64_t)c->unit, p->len - at);

            r = c->sink_ops->put(c->sink, p->off + at, p->data + at, now,
                                 false, err);
        }
    }
    return r;
}

const struct img_outlet_ops img_outlet_raw_stream = { .place = raw_place };
const struct img_outlet_ops img_outlet_sink = { .place = sink_place };
