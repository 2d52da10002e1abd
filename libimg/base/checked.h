/* Arithmetic on numbers that may come from a hostile image. */
#ifndef IMG_BASE_CHECKED_H
#define IMG_BASE_CHECKED_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IMG_MIN(a, b) ((a) < (b) ? (a) : (b))
#define IMG_MAX(a, b) ((a) > (b) ? (a) : (b))
#define IMG_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* These return false where the result does not fit. */
static inline bool img_add(uint64_t a, uint64_t b, uint64_t *sum)
{
    return !__builtin_add_overflow(a, b, sum);
}

static inline bool img_mul(uint64_t a, uint64_t b, uint64_t *product)
{
    return !__builtin_mul_overflow(a, b, product);
}

/* Does [off, off + len) lie inside [0, end)? */
static inline bool img_inside(uint64_t off, uint64_t len, uint64_t end)
{
    return off <= end && len <= end - off;
}

static inline bool img_is_pow2(uint64_t v)
{
    return v && !(v & (v - 1));
}

/* unit is a power of two. */
static inline uint64_t img_round_down(uint64_t v, uint64_t unit)
{
    return v & ~(unit - 1);
}

/* v is at most 2^64 - unit. */
static inline uint64_t img_round_up(uint64_t v, uint64_t unit)
{
    return (v + unit - 1) & ~(unit - 1);
}

static inline bool img_is_aligned(uint64_t v, uint64_t unit)
{
    return !(v & (unit - 1));
}

static inline uint64_t img_div_up(uint64_t v, uint64_t unit)
{
    return v / unit + (v % unit != 0);
}

/* v is a power of two. */
static inline unsigned img_log2(uint64_t v)
{
    return (unsigned)__builtin_ctzll(v);
}
#endif
