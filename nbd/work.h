/* Carrying requests out: on the client's own thread as long as nothing has to
 * be waited for, else on one that may wait. */
#ifndef NBD_WORK_H
#define NBD_WORK_H
#include "reply.h"

struct nbd_work {
    struct nbd_request request;
    uint64_t at;                /* READ and WRITE: how far it is done */
    uint8_t *payload;           /* malloc'ed; NULL = none.  WRITE: from at */
};

enum nbd_progress {
    NBD_DONE,                   /* the reply is out, or in the buffer */
    NBD_WAITS,                  /* it would have to wait: nbd_work_do */
    NBD_GONE                    /* the client is */
};

void nbd_work_begin(struct nbd_work *, const struct nbd_request *);
/* As far as it goes without waiting.  Not for WRITE. */
enum nbd_progress nbd_work_now(struct nbd_out *, struct nbd_work *);
/* To the end.  False: the client is gone. */
bool nbd_work_do(struct nbd_out *, struct nbd_work *);
/* How much memory that takes, roughly. */
uint64_t nbd_work_cost(const struct nbd_link *, const struct nbd_work *);
#endif
