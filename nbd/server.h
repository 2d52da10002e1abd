/* Accepting clients, one thread for each, until told to stop. */
#ifndef NBD_SERVER_H
#define NBD_SERVER_H
#include "listen.h"
#include "session.h"

struct nbd_server_options {
    unsigned max_clients;
    bool persistent;            /* go on after the last client has left */
};

/* Signals SIGTERM, SIGINT and SIGHUP must be blocked; signal_fd reads them.
 * Returns when one comes, or when the last client has left. */
int nbd_server_run(struct nbd_service *, const struct nbd_listeners *,
                   int signal_fd, const struct nbd_server_options *,
                   struct img_error *);
/* Likewise, for descriptors that are in the transmission phase already.
 * They are closed at the end. */
int nbd_server_transmit(struct nbd_service *, struct nbd_export *,
                        const int *fds, unsigned n, int signal_fd,
                        void (*on_signal)(void *opaque), void *opaque,
                        struct img_error *);
#endif
