/* Replies of the transmission phase, gathered in a buffer. */
#ifndef NBD_REPLY_H
#define NBD_REPLY_H
#include <pthread.h>
#include "export.h"
#include "request.h"
#include "stream.h"

enum {
    NBD_PIECE = 256 << 10,      /* long reads and writes are done in these */
    NBD_OUT_SIZE = NBD_PIECE + 4096
};

struct nbd_service;

/* One client, as all threads that work for it see it. */
struct nbd_link {
    struct nbd_service *service;
    struct nbd_stream *stream;
    struct nbd_export *export;
    enum nbd_mode mode;
    uint16_t flags;             /* of the export, as agreed on */
    const bool *selected;       /* contexts, NULL = none */
    pthread_mutex_t sending;    /* held from a message's first byte to its
                                   last one */
    bool broken;                /* a send failed: no more */
};

void nbd_link_init(struct nbd_link *, struct nbd_service *,
                   struct nbd_stream *);
void nbd_link_destroy(struct nbd_link *);

/* One thread's replies that have not been sent.  Functions that return bool:
 * false = the client is gone. */
struct nbd_out {
    struct nbd_link *link;
    uint8_t *data;              /* NBD_OUT_SIZE */
    size_t len;
    int pipe[2];                /* for pages on their way; -1 = none */
    size_t pipe_room;           /* bytes, if they begin with a page */
};

bool nbd_out_init(struct nbd_out *, struct nbd_link *);
void nbd_out_end(struct nbd_out *);
/* The end of an empty pipe that takes len bytes, or -1. */
int nbd_out_pipe(struct nbd_out *, size_t len);
/* What is in the pipe is not wanted. */
void nbd_out_drop_pipe(struct nbd_out *);
/* Sends what has gathered, and len bytes that the pipe holds behind it. */
bool nbd_out_send_pipe(struct nbd_out *, size_t len);
bool nbd_out_flush(struct nbd_out *);
/* Sends what has gathered, and len bytes of data behind it. */
bool nbd_out_send_with(struct nbd_out *, const void *data, size_t len);
/* n bytes in a row at the end; NULL = the client is gone.  They count once
 * len is raised. */
uint8_t *nbd_out_room(struct nbd_out *, size_t n);

/* A chunk's header at p; returns its size. */
size_t nbd_put_chunk(const struct nbd_out *, uint8_t *p,
                     const struct nbd_request *, uint16_t flags,
                     uint16_t type, size_t payload);
/* What comes before the data of a read that is answered in one piece. */
size_t nbd_put_data_head(const struct nbd_out *, uint8_t *p,
                         const struct nbd_request *);
bool nbd_reply_done(struct nbd_out *, const struct nbd_request *);
bool nbd_reply_error(struct nbd_out *, const struct nbd_request *,
                     uint32_t error, const char *why);
/* The disk's answer: 0, or a negative errno that *err explains. */
bool nbd_reply_result(struct nbd_out *, const struct nbd_request *, int ret,
                      const struct img_error *err);
#endif
