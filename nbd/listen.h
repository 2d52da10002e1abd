/* Where clients come from: sockets to listen on. */
#ifndef NBD_LISTEN_H
#define NBD_LISTEN_H
#include <stdbool.h>
#include <sys/socket.h>

struct img_error;

enum { NBD_LISTENERS_MAX = 16 };

struct nbd_listeners {
    int fds[NBD_LISTENERS_MAX];
    unsigned n;
    char *unlink;               /* the socket's path, removed at the end */
};

/* A socket that nobody listens on any more is left from a server that was
 * killed.  Anything else at the path stays. */
void nbd_remove_stale(const char *path);
/* These add sockets. */
int nbd_listen_unix(struct nbd_listeners *, const char *path,
                    struct img_error *);
int nbd_listen_tcp(struct nbd_listeners *, const char *host, const char *port,
                   struct img_error *);
int nbd_listen_vsock(struct nbd_listeners *, const char *cid,
                     const char *port, struct img_error *);
/* Those that systemd passed (LISTEN_PID, LISTEN_FDS); none is no error. */
int nbd_listen_activated(struct nbd_listeners *, struct img_error *);
void nbd_listen_close(struct nbd_listeners *);

/* For the other side.  Returns a descriptor or a negative errno. */
int nbd_connect_unix(const char *path, struct img_error *);
int nbd_connect_tcp(const char *host, const char *port, struct img_error *);

/* Label of the sockets that are made from now on (SELinux). */
int nbd_listen_label(const char *label, struct img_error *);
#endif
