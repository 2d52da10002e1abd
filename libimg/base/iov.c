#include "base/iov.h"
#include "base/checked.h"

#include <string.h>

size_t img_iov_total(const struct iovec *iov, int n)
{
    size_t total = 0;

    for (int i = 0; i < n; i++)
        total += iov[i].iov_len;
    return total;
}

int img_iov_slice(const struct iovec *iov, int n, size_t off, size_t len,
                  struct iovec *out)
{
    int used = 0;

    for (int i = 0; i < n && len; i++) {
        size_t part;

        if (off >= iov[i].iov_len) {
            off -= iov[i].iov_len;
            continue;
        }
        part = IMG_MIN(iov[i].iov_len - off, len);
        out[used].iov_base = (char *)iov[i].iov_base + off;
        out[used++].iov_len = part;
        len -= part;
        off = 0;
    }
    return used;
}

enum how { FILL, GATHER, CLEAR };

static void each(const struct iovec *iov, int n, size_t off, char *other,
                 size_t len, enum how how)
{
    for (int i = 0; i < n && len; i++) {
        size_t part;
        char *here;

        if (off >= iov[i].iov_len) {
            off -= iov[i].iov_len;
            continue;
        }
        part = IMG_MIN(iov[i].iov_len - off, len);
        here = (char *)iov[i].iov_base + off;
        if (how == FILL)
            memcpy(here, other, part);
        else if (how == GATHER)
            memcpy(other, here, part);
        else
            memset(here, 0, part);
        other = other ? other + part : NULL;
        len -= part;
        off = 0;
    }
}

void img_iov_fill(const struct iovec *iov, int n, size_t off,
                  const void *from, size_t len)
{
    each(iov, n, off, (char *)from, len, FILL);
}

void img_iov_gather(const struct iovec *iov, int n, size_t off, void *to,
                    size_t len)
{
    each(iov, n, off, to, len, GATHER);
}

void img_iov_clear(const struct iovec *iov, int n, size_t off, size_t len)
{
    each(iov, n, off, NULL, len, CLEAR);
}

bool img_is_zero(const void *buf, size_t len)
{
    const unsigned char *p = buf;

    if (len < 16) {
        for (size_t i = 0; i < len; i++)
            if (p[i])
                return false;
        return true;
    }
    /* The first 16 bytes are zero, and each byte equals the one 16 before. */
    for (size_t i = 0; i < 16; i++)
        if (p[i])
            return false;
    return !memcmp(p, p + 16, len - 16);
}

bool img_iov_is_zero(const struct iovec *iov, int n)
{
    for (int i = 0; i < n; i++)
        if (!img_is_zero(iov[i].iov_base, iov[i].iov_len))
            return false;
    return true;
}
