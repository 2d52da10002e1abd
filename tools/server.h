/* NBD servers as lists of options describe them: driver=nbd,server.type=...,
 * and the --object that holds the keys for TLS. */
#ifndef SERVER_H
#define SERVER_H

#include <stdbool.h>

struct server {
    bool wanted;                /* driver=nbd */
    char *type, *host, *port, *socket, *cid, *export_name, *tls_creds,
         *reconnect, *open_timeout;
};

/* Takes note of an --object tls-creds-...; false: the user was told. */
bool server_add_object(const char *text);

/* Whether key (without "file." or "backing.") is one of a server's. */
bool server_set(struct server *server, const char *key, const char *value);
/* Whether anything was set. */
bool server_is_set(const struct server *server);
/* malloc'ed.  NULL: the user was told. */
char *server_uri(const struct server *server);
void server_free(struct server *server);

#endif
