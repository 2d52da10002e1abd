/* vimg-nbd -L: what another server exports. */
#ifndef NBD_LIST_H
#define NBD_LIST_H
#include "stream.h"

struct img_error;
struct nbd_tls_client;

/* Speaks the client's half of the handshake and prints what qemu-nbd -L
 * prints.  tls may be NULL. */
int nbd_list(struct nbd_stream *, struct nbd_tls_client *tls,
             struct img_error *);
#endif
