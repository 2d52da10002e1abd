/* QEMU's image locks.
 *
 * A holder takes its own bytes first and then looks whether anybody else
 * holds a byte that speaks against it; of two that start at once at least
 * one sees the other.  All locks are shared ones: two holders of the same
 * permission do not exclude each other by taking the same byte.
 */
#include "file/lock.h"
#include "file/file.h"
#include "base/error.h"

#include <fcntl.h>
#include <stdbool.h>
#include <unistd.h>

enum { USED_BASE = 100, DENIED_BASE = 200, PERMS = 4 };

static const char *const perm_names[PERMS] = {
    "consistent read", "write", "write unchanged", "resize",
};

static int set_byte(int fd, int byte, bool locked)
{
    struct flock lock = {
        .l_type = locked ? F_RDLCK : F_UNLCK, .l_whence = SEEK_SET,
        .l_start = byte, .l_len = 1,
    };

    return fcntl(fd, F_OFD_SETLK, &lock) == 0 ? 0 : -errno;
}

static bool is_held_by_others(int fd, int byte)
{
    struct flock lock = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET,
        .l_start = byte, .l_len = 1,
    };

    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static int refuse(struct img_error *err, const char *path, const char *kind,
                  int perm)
{
    return img_fail(err, EBUSY, "%s: Failed to get %s\"%s\" lock: "
                    "is another process using the image?", path, kind,
                    perm_names[perm]);
}

static int take(int fd, const char *path, unsigned perm, unsigned shared,
                struct img_error *err)
{
    for (int i = 0; i < PERMS; i++) {
        int r = 0;

        if (perm & (1u << i))
            r = set_byte(fd, USED_BASE + i, true);
        if (r == 0 && !(shared & (1u << i)))
            r = set_byte(fd, DENIED_BASE + i, true);
        if (r == -EAGAIN || r == -EACCES)
            return refuse(err, path, "", i);
        if (r == -ENOLCK || r == -EINVAL || r == -EOPNOTSUPP)
            return 0;           /* the file system has no locks */
        if (r < 0)
            return img_fail_errno(err, -r, "%s: locking", path);
    }
    for (int i = 0; i < PERMS; i++) {
        if ((perm & (1u << i)) && is_held_by_others(fd, DENIED_BASE + i))
            return refuse(err, path, "", i);
        if (!(shared & (1u << i)) && is_held_by_others(fd, USED_BASE + i))
            return refuse(err, path, "shared ", i);
    }
    return 0;
}

bool img_lock_is_possible(int fd)
{
    int r = set_byte(fd, USED_BASE, true);

    if (r == 0)
        set_byte(fd, USED_BASE, false);
    return r == 0;
}

static void keep_only(int fd, unsigned perm, unsigned shared)
{
    for (int i = 0; i < PERMS; i++) {
        if (!(perm & (1u << i)))
            set_byte(fd, USED_BASE + i, false);
        if (shared & (1u << i))
            set_byte(fd, DENIED_BASE + i, false);
    }
}

int img_lock_apply(int fd, const char *path, unsigned old_perm,
                   unsigned old_shared, unsigned perm, unsigned shared,
                   struct img_error *err)
{
    int r = take(fd, path, perm, shared, err);

    if (r < 0)
        keep_only(fd, old_perm, old_shared);
    else
        keep_only(fd, perm, shared);
    return r;
}
