/* Requests of the transmission phase: reading them from bytes and judging
 * them, without a socket or a disk. */
#ifndef NBD_REQUEST_H
#define NBD_REQUEST_H
#include <stdbool.h>
#include <stddef.h>
#include "wire.h"

struct nbd_request {
    uint16_t flags, type;
    uint64_t cookie, off, len;
};

/* The longest payload and the longest read that are served.  More than is
 * advertised, because some clients do not look. */
enum { NBD_ENOUGH = 64 << 20 };

static inline size_t nbd_request_size(enum nbd_mode mode)
{
    return mode == NBD_MODE_EXTENDED ? NBD_EXT_REQUEST_SIZE
                                     : NBD_REQUEST_SIZE;
}

/* p has nbd_request_size bytes.  False: that is no request, and where the
 * next one begins is not known. */
bool nbd_request_parse(const uint8_t *p, enum nbd_mode mode,
                       struct nbd_request *request);
/* How many bytes follow the header. */
uint64_t nbd_request_payload(const struct nbd_request *, enum nbd_mode);
/* 0, or the NBD error that the request deserves, and in *why the reason.
 * size and flags are the export's. */
uint32_t nbd_request_check(const struct nbd_request *, enum nbd_mode,
                           uint64_t size, uint16_t flags, const char **why);
/* The protocol's code for an errno value. */
uint32_t nbd_error_of(int code);
#endif
