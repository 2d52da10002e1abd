/* Options structures that begin with their own size, so that programs built
 * against an older or a newer header can be understood. */
#ifndef IMG_BASE_OPTIONS_H
#define IMG_BASE_OPTIONS_H
#include <stddef.h>

struct img_error;

/* Copies what the caller knows of the structure; the rest of to becomes
 * zeros.  Refuses fields that are set and that this library does not know.
 * from NULL = all defaults. */
int img_options_take(void *to, size_t known, const void *from,
                     struct img_error *err);
#endif
