/* Requests of the transmission phase. */
#include <errno.h>
#include <libimg.h>
#include "request.h"

bool nbd_request_parse(const uint8_t *p, enum nbd_mode mode,
                       struct nbd_request *r)
{
    bool extended = mode == NBD_MODE_EXTENDED;

    if (nbd_get32(p) != (extended ? NBD_EXT_REQUEST_MAGIC
                                  : NBD_REQUEST_MAGIC))
        return false;
    r->flags = nbd_get16(p + 4);
    r->type = nbd_get16(p + 6);
    r->cookie = nbd_get64(p + 8);
    r->off = nbd_get64(p + 16);
    r->len = extended ? nbd_get64(p + 24) : nbd_get32(p + 24);
    return true;
}

uint64_t nbd_request_payload(const struct nbd_request *r, enum nbd_mode mode)
{
    if (r->type == NBD_CMD_WRITE)
        return r->len;
    return mode == NBD_MODE_EXTENDED && (r->flags & NBD_FLAG_PAYLOAD_LEN) ?
        r->len : 0;
}

/* Flags that go with each command; bits of commands that are not known are
 * all wrong. */
static uint16_t valid_flags(const struct nbd_request *r, enum nbd_mode mode)
{
    bool extended = mode == NBD_MODE_EXTENDED;

    switch (r->type) {
    case NBD_CMD_READ:
        return mode == NBD_MODE_SIMPLE ? NBD_FLAG_FUA
                                       : NBD_FLAG_FUA | NBD_FLAG_DF;
    case NBD_CMD_WRITE:
        return extended ? NBD_FLAG_FUA | NBD_FLAG_PAYLOAD_LEN : NBD_FLAG_FUA;
    case NBD_CMD_WRITE_ZEROES:
        return NBD_FLAG_FUA | NBD_FLAG_NO_HOLE | NBD_FLAG_FAST_ZERO;
    case NBD_CMD_BLOCK_STATUS:
        return NBD_FLAG_FUA | NBD_FLAG_REQ_ONE |
               (extended ? NBD_FLAG_PAYLOAD_LEN : 0);
    default:
        return NBD_FLAG_FUA;
    }
}

static uint16_t needed_flag(uint16_t type)
{
    switch (type) {
    case NBD_CMD_FLUSH:
        return NBD_SEND_FLUSH;
    case NBD_CMD_TRIM:
        return NBD_SEND_TRIM;
    case NBD_CMD_CACHE:
        return NBD_SEND_CACHE;
    case NBD_CMD_WRITE_ZEROES:
        return NBD_SEND_WRITE_ZEROES;
    default:
        return NBD_HAS_FLAGS;
    }
}

static bool changes(uint16_t type)
{
    return type == NBD_CMD_WRITE || type == NBD_CMD_TRIM ||
           type == NBD_CMD_WRITE_ZEROES;
}

uint32_t nbd_request_check(const struct nbd_request *r, enum nbd_mode mode,
                           uint64_t size, uint16_t flags, const char **why)
{
    bool status_payload = r->type == NBD_CMD_BLOCK_STATUS &&
                          (r->flags & NBD_FLAG_PAYLOAD_LEN);

    *why = "the command is not known here";
    if (r->type > NBD_CMD_BLOCK_STATUS || r->type == NBD_CMD_DISC)
        return NBD_EINVAL;
    *why = "the flags do not go with the command";
    if (r->flags & ~valid_flags(r, mode))
        return NBD_EINVAL;
    *why = "the export is read-only";
    if (changes(r->type) && (flags & NBD_READ_ONLY))
        return NBD_EPERM;
    *why = "the command was not offered";
    if (!(flags & needed_flag(r->type)))
        return NBD_EINVAL;
    if (r->type == NBD_CMD_FLUSH || status_payload)
        return 0;
    *why = "the range ends beyond the export";
    if (r->off > size || r->len > size - r->off)
        return r->type == NBD_CMD_WRITE || r->type == NBD_CMD_WRITE_ZEROES ?
            NBD_ENOSPC : NBD_EINVAL;
    *why = "the request is too long";
    if (r->type == NBD_CMD_READ && r->len > NBD_ENOUGH)
        return NBD_EINVAL;
    *why = "";
    return 0;
}

uint32_t nbd_error_of(int code)
{
    switch (code) {
    case EPERM:
    case EROFS:
    case EACCES:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EFBIG:
    case EDQUOT:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case ENOTSUP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}
