/* The server's half of the handshake, as a pure function of state and bytes:
 * no socket, no clock, no disk. */
#ifndef NBD_HANDSHAKE_H
#define NBD_HANDSHAKE_H
#include <stdbool.h>
#include <stddef.h>
#include "wire.h"

enum {
    NBD_MAX_OPTION = 65536,     /* longest option that is looked at */
    NBD_MAX_CONTEXTS = 64       /* of one export */
};

/* What clients are told of an export. */
struct nbd_export_view {
    const char *name, *description;         /* description may be NULL */
    uint64_t size;
    uint16_t flags;                         /* without SEND_DF */
    uint32_t min_block, preferred_block;
    const char *contexts[NBD_MAX_CONTEXTS]; /* [i] has the ID i */
    unsigned n_contexts;
};

struct nbd_catalog {
    const struct nbd_export_view *const *exports;
    unsigned n;
    bool tls;                   /* nothing is served without it */
};

/* Bytes to send.  Grows as needed; failed = there was no memory. */
struct nbd_bytes {
    uint8_t *data;
    size_t len, room;
    bool failed;
};
void nbd_bytes_free(struct nbd_bytes *);

struct nbd_handshake {
    const struct nbd_catalog *catalog;
    bool has_flags;             /* the client's flags have come */
    bool no_zeroes, secured;
    enum nbd_mode mode;
    uint64_t skip;              /* of an option too long to look at */
    const struct nbd_export_view *meta_export;  /* of the contexts; or NULL */
    bool selected[NBD_MAX_CONTEXTS];
    const struct nbd_export_view *chosen;       /* once READY */
};

enum nbd_next {
    NBD_NEXT_MORE,              /* the message is not complete: read on */
    NBD_NEXT_AGAIN,             /* one message was handled */
    NBD_NEXT_TLS,               /* send out, then speak TLS; whatever else was
                                   read is an attack */
    NBD_NEXT_READY,             /* transmission phase begins */
    NBD_NEXT_CLOSE              /* send out, then close */
};

/* Puts the greeting into out. */
void nbd_handshake_begin(struct nbd_handshake *, const struct nbd_catalog *,
                         struct nbd_bytes *out);
/* Handles at most one message.  *used says how much of in was taken.  A
 * buffer of NBD_OPTION_SIZE + NBD_MAX_OPTION bytes is always large enough. */
enum nbd_next nbd_handshake_step(struct nbd_handshake *, const uint8_t *in,
                                 size_t len, size_t *used,
                                 struct nbd_bytes *out);
/* TLS is up: all that was agreed on before is forgotten. */
void nbd_handshake_secured(struct nbd_handshake *);
/* The flags of the export as the client's choices make them. */
uint16_t nbd_handshake_flags(const struct nbd_handshake *,
                             const struct nbd_export_view *);
#endif
