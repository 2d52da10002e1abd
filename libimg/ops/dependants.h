/* Images that rest on one which is about to change. */
#ifndef IMG_OPS_DEPENDANTS_H
#define IMG_OPS_DEPENDANTS_H
#include "core/disk.h"

/* Refuses with -EBUSY when an image that is not of this chain rests on one of
 * its layers from..to, going by the files in the folders of layers 0..to.
 * what: "committing into it".  Nothing is refused with IMG_OPEN_FORCE, and
 * nobody is looked for where a resolve callback says which files there are. */
int img_dependants_refuse(struct img_disk *d, unsigned from, unsigned to,
                          const char *what, struct img_error *err);
#endif
