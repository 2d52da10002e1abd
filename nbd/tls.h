/* TLS for both sides, by gnutls; without it every call fails. */
#ifndef NBD_TLS_H
#define NBD_TLS_H
#include "stream.h"

struct img_error;
struct nbd_objects;
struct nbd_tls_server;
struct nbd_tls_client;

/* Credentials from the object of that id (--tls-creds), and whom to admit
 * (--tls-authz; NULL = everybody with a valid certificate or key). */
int nbd_tls_server_new(const struct nbd_objects *, const char *id,
                       const char *authz, struct nbd_tls_server **,
                       struct img_error *);
void nbd_tls_server_free(struct nbd_tls_server *);
/* Turns a plain stream into one over TLS. */
bool nbd_tls_accept(struct nbd_tls_server *, struct nbd_stream *);

/* hostname is checked against an x509 server's certificate. */
int nbd_tls_client_new(const struct nbd_objects *, const char *id,
                       const char *hostname, struct nbd_tls_client **,
                       struct img_error *);
void nbd_tls_client_free(struct nbd_tls_client *);
int nbd_tls_connect(struct nbd_tls_client *, struct nbd_stream *,
                    struct img_error *);

/* Says goodbye and frees what accept or connect made; the descriptor stays
 * open.  Fine on a plain stream. */
void nbd_tls_end(struct nbd_stream *);
#endif
