/* A disk as a folder: "disk", and "p1", "p2" ... for its partitions. */
#ifndef MOUNTFS_H
#define MOUNTFS_H
#include <stdbool.h>
#include <libimg.h>

/* Serves the disk at the folder until it is unmounted; in the background
 * unless foreground, where this returns in the child only.  The disk is
 * flushed, not closed.  0 = all went well; else the user was told. */
int mountfs_serve(struct img_disk *disk, const char *folder, bool writable,
                  bool foreground);
#endif
