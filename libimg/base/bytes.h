/* Integers in memory in a given byte order, at any alignment. */
#ifndef IMG_BASE_BYTES_H
#define IMG_BASE_BYTES_H
#include <endian.h>
#include <stdint.h>
#include <string.h>

#define IMG_BYTES(bits, order, from, to)                                  \
    static inline uint##bits##_t img_get_##order##bits(const void *p)     \
    {                                                                     \
        uint##bits##_t v;                                                 \
        memcpy(&v, p, sizeof v);                                          \
        return from(v);                                                   \
    }                                                                     \
    static inline void img_put_##order##bits(void *p, uint##bits##_t v)   \
    {                                                                     \
        v = to(v);                                                        \
        memcpy(p, &v, sizeof v);                                          \
    }
IMG_BYTES(16, be, be16toh, htobe16)
IMG_BYTES(32, be, be32toh, htobe32)
IMG_BYTES(64, be, be64toh, htobe64)
IMG_BYTES(16, le, le16toh, htole16)
IMG_BYTES(32, le, le32toh, htole32)
IMG_BYTES(64, le, le64toh, htole64)
#undef IMG_BYTES
#endif
