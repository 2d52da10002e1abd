/* The public handle. */
#ifndef IMG_CORE_DISK_H
#define IMG_CORE_DISK_H
#include "core/io.h"
#include "base/sync.h"

struct img_disk {
    struct img_rwlock structure;    /* requests: shared; changes of layers,
                                       sizes, snapshots: exclusive */
    struct img_io io;
    struct img_chain *chain;
    char *path;
};
#endif
