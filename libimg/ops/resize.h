/* Changing the size of one layer. */
#ifndef IMG_OPS_RESIZE_H
#define IMG_OPS_RESIZE_H
#include "core/io.h"

/* Growing adds zeros, whatever lies below.  The caller is alone. */
int img_resize_layer(struct img_io *io, unsigned depth, uint64_t size,
                     enum img_prealloc prealloc, struct img_error *err);
#endif
