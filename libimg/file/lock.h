/* QEMU's image locks on a descriptor; see file.h. */
#ifndef IMG_FILE_LOCK_H
#define IMG_FILE_LOCK_H
#include <stdbool.h>

struct img_error;

/* Does the file system have locks?  For a descriptor that holds none. */
bool img_lock_is_possible(int fd);
/* What was locked before stays so where this fails. */
int img_lock_apply(int fd, const char *path, unsigned old_perm,
                   unsigned old_shared, unsigned perm, unsigned shared,
                   struct img_error *err);
#endif
