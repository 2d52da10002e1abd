/* The sandbox of the server. */
#ifndef NBD_ENTER_H
#define NBD_ENTER_H
#include "options.h"

/* Nothing but what these options need is possible any more.  Called before
 * the first image is opened and before there are threads. */
void nbd_enter(const struct nbd_options *);
#endif
