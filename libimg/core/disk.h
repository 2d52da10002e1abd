/* The public handle. */
#ifndef IMG_CORE_DISK_H
#define IMG_CORE_DISK_H
#include "core/io.h"
#include "base/sync.h"

struct img_crew;

struct img_disk {
    struct img_rwlock structure;    /* requests: shared; changes of layers,
                                       sizes, snapshots: exclusive */
    _Atomic uint64_t size;          /* of the top layer when structure was
                                       last given back; read without it */
    struct img_io io;
    struct img_chain *chain;
    char *path;
    struct img_mutex crew_lock;     /* guards crew */
    struct img_crew *crew;          /* the queues' helpers; NULL = none yet */
};

/* opts are complete (img_options_take).  Takes fd over if it is not -1, and
 * file, which may be given instead, if it is not NULL. */
int img_disk_open(const char *path, int fd, struct img_file *file,
                  const struct img_open_options *opts,
                  struct img_disk **disk, struct img_error *err);
/* Of the disk, in bytes; the caller holds structure. */
uint64_t img_disk_size(const struct img_disk *disk);
/* Structure, exclusive: for what may change the size, which img_size tells
 * from the end on. */
void img_disk_change_begin(struct img_disk *disk);
void img_disk_change_end(struct img_disk *disk);
/* core/queue.c: ends the helpers.  NULL is fine. */
void img_crew_end(struct img_crew *crew);
#endif
