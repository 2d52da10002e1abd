/* Requests of one client that are on their way while it is served further:
 * reads from a slow disk, and flushes. */
#ifndef NBD_FLIGHT_H
#define NBD_FLIGHT_H
#include <libimg.h>
#include "request.h"

enum {
    NBD_FLIGHT_DEPTH = 32,
    NBD_FLIGHT_BYTES = 64 << 10 /* longest read that goes this way */
};

struct nbd_flight;

struct nbd_landed {
    struct nbd_request request;
    int result;                 /* 0 or a negative errno */
    const char *message;        /* of a failure */
    const uint8_t *data;        /* of a read; until it is let go */
    unsigned slot;
};

/* NULL: there is no memory; everything can be done without. */
struct nbd_flight *nbd_flight_new(struct img_disk *disk);
void nbd_flight_free(struct nbd_flight *);      /* waits; NULL is fine */
/* off: where in the disk.  False: DEPTH are under way, or out of memory. */
bool nbd_flight_launch(struct nbd_flight *, const struct nbd_request *,
                       uint64_t off);
/* One that is complete; waits for it if wait is set and any is under way.
 * False: there is none. */
bool nbd_flight_land(struct nbd_flight *, bool wait, struct nbd_landed *);
void nbd_flight_let_go(struct nbd_flight *, const struct nbd_landed *);
unsigned nbd_flight_busy(const struct nbd_flight *);
/* Readable: one has landed. */
int nbd_flight_fd(const struct nbd_flight *);
#endif
