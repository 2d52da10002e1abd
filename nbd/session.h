/* One client: its handshake, then its requests. */
#ifndef NBD_SESSION_H
#define NBD_SESSION_H
#include <stdatomic.h>
#include "export.h"
#include "stream.h"

struct nbd_tls_server;

struct nbd_service {            /* what all sessions share */
    const struct nbd_catalog *catalog;
    struct nbd_tls_server *tls; /* NULL = none */
    int handshake_ms;           /* 0 = no limit */
    atomic_bool stopping;       /* requests begun are finished, others not
                                   looked at */
    bool verbose;
    int64_t awake_us;           /* how long a session may wait awake for the
                                   next request; 0 = it sleeps */
    unsigned processors;
    atomic_uint n_sessions;     /* in the transmission phase */
};

/* Runs until the client is gone.  Returns whether it came as far as the
 * transmission phase.  The descriptor is the caller's. */
bool nbd_session_run(struct nbd_service *, struct nbd_stream *);
/* The transmission phase alone, for a client that needs no handshake. */
bool nbd_session_transmit(struct nbd_service *, struct nbd_stream *,
                          struct nbd_export *);
#endif
