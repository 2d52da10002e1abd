/* FNV-1a with 64 bits (Fowler, Noll, Vo; draft-eastlake-fnv): to tell states
 * of a file apart, no protection against somebody who wants them alike. */
#ifndef IMG_BASE_HASH_H
#define IMG_BASE_HASH_H
#include "base/bytes.h"

#include <stddef.h>

#define IMG_HASH_START UINT64_C(0xcbf29ce484222325)

static inline uint64_t img_hash(uint64_t sum, const void *data, size_t len)
{
    const uint8_t *p = data;

    for (size_t i = 0; i < len; i++)
        sum = (sum ^ p[i]) * UINT64_C(0x100000001b3);
    return sum;
}

/* The number's eight bytes, the highest first. */
static inline uint64_t img_hash_number(uint64_t sum, uint64_t number)
{
    uint8_t bytes[8];

    img_put_be64(bytes, number);
    return img_hash(sum, bytes, sizeof bytes);
}
#endif
