/* Locks on ranges of guest bytes: shared or exclusive, first come first
 * served. */
#ifndef IMG_CORE_RANGE_H
#define IMG_CORE_RANGE_H
#include "base/sync.h"
#include <stdbool.h>
#include <stdint.h>

struct img_range {              /* on the holder's stack */
    struct img_range *next, *prev;
    uint64_t off, end;
    bool exclusive;
};

struct img_ranges {
    struct img_mutex lock;      /* protects the list */
    struct img_cond gone;
    struct img_range *first, *last; /* in the order of arrival */
    unsigned waiting;
};

void img_ranges_init(struct img_ranges *);
void img_ranges_destroy(struct img_ranges *);
/* Waits until no earlier range overlaps in a way that conflicts. */
void img_range_lock(struct img_ranges *, struct img_range *, uint64_t off,
                    uint64_t len, bool exclusive);
/* The same if nobody has to be waited for; false = not locked. */
bool img_range_try(struct img_ranges *, struct img_range *, uint64_t off,
                   uint64_t len, bool exclusive);
void img_range_unlock(struct img_ranges *, struct img_range *);
#endif
