/* Connections to one NBD server, and requests on them. */
#ifndef IMG_FILE_NBD_LINK_H
#define IMG_FILE_NBD_LINK_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct img_error;

/* ---- names ------------------------------------------------------------- */

struct img_nbd_name {
    char *uri;                  /* as libnbd takes it */
    unsigned reconnect_ms;      /* requests wait so long for a server that
                                   went away; 0 = they fail */
    unsigned open_ms;           /* likewise for the first connection */
};
int img_nbd_name_parse(const char *path, struct img_nbd_name *name,
                       struct img_error *err);

/* ---- connections ------------------------------------------------------- */

/* What a server says of its disk.  It must say the same on every
 * connection. */
struct img_nbd_facts {
    uint64_t size;
    uint64_t align, most;       /* of requests; 0 = nothing was said */
    bool read_only, multi_conn, can_flush, can_fua, can_zero, can_fast_zero,
         can_trim, has_status;
};

struct img_nbd_extents {
    uint64_t off;
    uint32_t *len;              /* room for `room`, n are there */
    bool *data;
    unsigned n, room;
};

struct img_nbd_request {
    enum { IMG_NBD_READ, IMG_NBD_WRITE, IMG_NBD_ZERO, IMG_NBD_TRIM,
           IMG_NBD_FLUSH, IMG_NBD_STATUS } op;
    void *buf;
    uint64_t off, len;
    uint32_t flags;             /* LIBNBD_CMD_FLAG_* */
    struct img_nbd_extents *extents;    /* STATUS */
    /* The rest is the link's. */
    bool done, lost;
    int error;
    atomic_ulong *count;        /* of writes that no flush covers yet */
};

struct img_nbd_link;

/* Takes what name holds, on failure too.  path is for messages. */
int img_nbd_link_open(struct img_nbd_name *name, const char *path,
                      bool writable, struct img_nbd_link **link,
                      struct img_nbd_facts *facts, struct img_error *err);
/* No request may be in flight. */
void img_nbd_link_close(struct img_nbd_link *link);
/* Does it and waits for the answer.  Any number of threads.  r->error is
 * what the server answered. */
int img_nbd_run(struct img_nbd_link *link, const char *path,
                struct img_nbd_request *r, struct img_error *err);
#endif
