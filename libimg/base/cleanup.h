/* Variables that free what they hold when they go out of scope. */
#ifndef IMG_BASE_CLEANUP_H
#define IMG_BASE_CLEANUP_H
#include <stdlib.h>

static inline void img_autofree_cleanup(void *p)
{
    free(*(void **)p);
}
#define img_autofree __attribute__((cleanup(img_autofree_cleanup)))
#endif
