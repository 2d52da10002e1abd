/* A format for tests: 4 KiB clusters of four 1 KiB blocks, backing files,
 * packed clusters, clusters that are shared and must be copied.  Freed
 * clusters are used again at once, so that whoever looks at one too late sees
 * something else. */
#ifndef TESTS_UNIT_TINY_H
#define TESTS_UNIT_TINY_H
#include "format.h"

enum { TINY_BITS = 12, TINY_CLUSTER = 1 << TINY_BITS, TINY_BLOCK = 1024,
       TINY_BLOCKS = TINY_CLUSTER / TINY_BLOCK };

extern const struct img_format tiny_format;
/* The programs that use it bring their own table: tiny and raw. */

/* Makes every cluster shared, as an internal snapshot would. */
void tiny_share(struct img_layer *l);
/* How many clusters are in use. */
unsigned tiny_used(struct img_layer *l);
/* The next publish, reserve, map or unmap reports corruption. */
extern int tiny_corrupt;
/* What a format must not say, said by every map, reserve or unmap. */
enum tiny_lie {
    TINY_TRUE, TINY_MAP_NOTHING, TINY_MAP_LONG, TINY_MAP_ELSEWHERE,
    TINY_MAP_NO_FILE, TINY_PLACE_NOTHING, TINY_PLACE_LONG,
    TINY_PLACE_ELSEWHERE, TINY_PLACE_NO_FILE, TINY_PLACE_FILLS_LATE,
    TINY_PLACE_FILLS_LITTLE, TINY_PLACE_BEFORE_FILE, TINY_UNMAP_NOTHING,
    TINY_UNMAP_LONG
};
extern enum tiny_lie tiny_lie;
#endif
