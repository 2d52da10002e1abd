/* A piece of memory with its length; reads beyond its end give false. */
#ifndef IMG_BASE_SPAN_H
#define IMG_BASE_SPAN_H
#include "base/bytes.h"
#include "base/checked.h"

struct img_span {
    const uint8_t *data;
    size_t len;
};

static inline bool img_span_part(struct img_span s, size_t off, size_t len,
                                 struct img_span *part)
{
    if (!img_inside(off, len, s.len))
        return false;
    *part = (struct img_span){ s.data + off, len };
    return true;
}

#define IMG_SPAN_READ(bits, order)                                        \
    static inline bool img_span_##order##bits(struct img_span s,          \
                                              size_t off,                 \
                                              uint##bits##_t *v)          \
    {                                                                     \
        if (!img_inside(off, bits / 8, s.len))                            \
            return false;                                                 \
        *v = img_get_##order##bits(s.data + off);                         \
        return true;                                                      \
    }
IMG_SPAN_READ(16, be)
IMG_SPAN_READ(32, be)
IMG_SPAN_READ(64, be)
IMG_SPAN_READ(16, le)
IMG_SPAN_READ(32, le)
IMG_SPAN_READ(64, le)
#undef IMG_SPAN_READ
#endif
