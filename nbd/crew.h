/* Threads that carry out what one client's own thread would have to wait for,
 * so that it can go on with the client's other requests. */
#ifndef NBD_CREW_H
#define NBD_CREW_H
#include "work.h"

struct nbd_crew;

/* NULL: there is no memory; everything can be done without.  No thread is
 * begun before there is work for it. */
struct nbd_crew *nbd_crew_new(struct nbd_link *);
/* Would nbd_crew_take have to wait? */
bool nbd_crew_is_full(struct nbd_crew *, const struct nbd_work *);
/* Takes the work and its payload over.  False: no thread can be had, and the
 * work is still the caller's. */
bool nbd_crew_take(struct nbd_crew *, const struct nbd_work *);
/* Waits until all work is done.  NULL is fine. */
void nbd_crew_end(struct nbd_crew *);
#endif
