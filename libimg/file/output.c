/* Outputs that appear whole or not at all.
 *
 * The new file has no name while it is written (O_TMPFILE) where the file
 * system allows that, so that even SIGKILL leaves nothing behind; else a
 * hidden name beside the target.  It takes the target's name after its
 * content is durable, and then the folder is made durable.  A target that was
 * there is locked meanwhile; one that was not must not have come up.
 *
 * Devices are written in place, and so are files that cannot be replaced: in
 * a folder where we may not write, or mounted one by one.
 */
#include "file/file.h"
#include "file/lock.h"
#include "file/nbd.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/cleanup.h"

#include <dirent.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

struct img_output {
    struct img_file *file;
    struct img_file *old;       /* the target that is there, locked */
    char *path;                 /* where it is to appear */
    char *folder;
    char *temp;                 /* its name until then; NULL = none */
    bool in_place, no_sync;
    bool created;               /* in place, and not there before */
    bool named;                 /* it has its name */
};

static void output_free(struct img_output *out)
{
    if (out->temp)
        unlink(out->temp);
    if (out->created)
        unlink(out->path);
    img_file_close(out->file);
    img_file_close(out->old);
    free(out->path);
    free(out->folder);
    free(out->temp);
    free(out);
}

static char *random_name(const char *path)
{
    img_autofree char *copy = strdup(path);
    uint64_t number = 0;
    char *name = NULL;

    if (!copy || getrandom(&number, sizeof number, 0) != sizeof number)
        return NULL;
    if (asprintf(&name, "%.*s/.%.200s.%016llx.part",
                 (int)(strrchr(path, '/') - path), path, basename(copy),
                 (unsigned long long)number) < 0)
        return NULL;
    return name;
}

/* path without symbolic links but perhaps in its last part, which need not
 * exist. */
static char *real_folder(const char *path)
{
    img_autofree char *a = strdup(path), *b = strdup(path), *folder = NULL;
    char *name = NULL;

    if (!a || !b)
        return NULL;
    folder = realpath(dirname(a), NULL);
    if (!folder)
        return NULL;
    if (asprintf(&name, "%s/%s", strcmp(folder, "/") ? folder : "",
                 basename(b)) < 0)
        return NULL;
    return name;
}

/* Where a link leads, which lies at the real path `link`. */
static char *link_target(const char *link)
{
    char text[PATH_MAX], *path = NULL;
    ssize_t n = readlink(link, text, sizeof text - 1);

    if (n < 0)
        return NULL;
    text[n] = 0;
    if (text[0] == '/')
        return strdup(text);
    if (asprintf(&path, "%.*s/%s", (int)(strrchr(link, '/') - link), link,
                 text) < 0)
        return NULL;
    return path;
}

/* Where the name really leads, also where a link leads to what is not there
 * yet. */
static char *real_target(const char *path)
{
    enum { LINKS_MAX = 40 };
    char *real = realpath(path, NULL);
    img_autofree char *next = NULL;
    struct stat st;

    if (real || errno != ENOENT)
        return real;
    real = real_folder(path);
    for (int i = 0; real && i < LINKS_MAX; i++) {
        if (lstat(real, &st) < 0 || !S_ISLNK(st.st_mode))
            return real;
        free(next);
        next = link_target(real);
        free(real);
        real = next ? real_folder(next) : NULL;
    }
    if (real)
        errno = ELOOP;
    free(real);
    return NULL;
}

static int open_old(struct img_output *out, unsigned flags, bool held,
                    struct img_error *err)
{
    int r = img_file_open(out->path, flags, &out->old, err);

    if (r < 0 || held)
        return r;
    return img_file_lock(out->old, IMG_PERM_WRITE | IMG_PERM_RESIZE,
                         0, err);
}

/* What the old file keeps to itself the new one must, too. */
static int keep_mode(struct img_output *out, struct img_error *err)
{
    struct stat was, is;
    int r;

    if (!out->old)
        return 0;
    r = fstat(out->old->fd, &was);
    if (r == 0 && fchmod(out->file->fd, was.st_mode & 07777) < 0) {
        r = fstat(out->file->fd, &is);
        if (r == 0 && (is.st_mode & ~was.st_mode & 0777)) {
            errno = EPERM;
            r = -1;
        }
    }
    return r == 0 ? 0 : img_fail_errno(err, errno, "%s: keeping its mode",
                                       out->path);
}

/* Changing the owner takes rights away from us, so it comes late.  Where the
 * owner is not ours to give away, the mode must not mean others' rights. */
static int keep_owner(struct img_output *out, struct img_error *err)
{
    struct stat was, is;

    if (!out->old)
        return 0;
    if (fstat(out->old->fd, &was) < 0 || fstat(out->file->fd, &is) < 0)
        return img_fail_errno(err, errno, "%s", out->path);
    if (was.st_uid == is.st_uid && was.st_gid == is.st_gid)
        return 0;
    if (fchown(out->file->fd, was.st_uid, was.st_gid) < 0) {
        fchmod(out->file->fd, was.st_mode & 0777);
        return 0;
    }
    return keep_mode(out, err);
}

/* ---- what killed runs left --------------------------------------------- */

/* .NAME.0123456789abcdef.part, as random_name makes them. */
static bool is_ours(const char *entry, const char *name)
{
    size_t len = strlen(name) < 200 ? strlen(name) : 200;

    return entry[0] == '.' && !strncmp(entry + 1, name, len) &&
           entry[1 + len] == '.' &&
           strspn(entry + 2 + len, "0123456789abcdef") == 16 &&
           !strcmp(entry + 18 + len, ".part");
}

/* A file that is being written is locked; where nothing can be locked, nobody
 * knows.  Only a regular file is opened, and nothing is changed but its name,
 * so whatever else it is stays. */
static void remove_stray(int folder, const char *entry)
{
    int fd = openat(folder, entry, O_RDWR | O_CLOEXEC | O_NOFOLLOW |
                    O_NONBLOCK);
    struct img_file *file;

    if (fd < 0 || img_file_from_fd(fd, entry, IMG_FILE_WRITE, &file, NULL) < 0)
        return;
    if (!file->is_device && img_lock_is_possible(fd) &&
        img_file_lock(file, IMG_PERM_WRITE, 0, NULL) == 0)
        unlinkat(folder, entry, 0);
    img_file_close(file);
}

static void remove_strays(const struct img_output *out)
{
    const char *name = strrchr(out->path, '/') + 1;
    DIR *folder = opendir(out->folder);
    struct dirent *e;

    if (!folder)
        return;
    while ((e = readdir(folder)))
        if (is_ours(e->d_name, name) &&
            (!out->temp || strcmp(strrchr(out->temp, '/') + 1, e->d_name)))
            remove_stray(dirfd(folder), e->d_name);
    closedir(folder);
}

static bool has_proc(void)
{
    return access("/proc/self/fd", X_OK) == 0;
}

static int open_beside(struct img_output *out, unsigned file_flags,
                       struct img_error *err)
{
    int mode = O_RDWR | O_CLOEXEC |
               (file_flags & IMG_FILE_DIRECT ? O_DIRECT : 0);
    int fd = has_proc() ? open(out->folder, mode | O_TMPFILE, 0666) : -1;
    int r;

    if (fd < 0) {
        out->temp = random_name(out->path);
        if (!out->temp)
            return img_fail_nomem(err);
        fd = open(out->temp, mode | O_CREAT | O_EXCL, 0666);
    }
    if (fd < 0) {
        int code = errno;

        free(out->temp);
        out->temp = NULL;
        return img_fail_errno(err, code, "Could not create '%s'", out->path);
    }
    r = img_file_from_fd(fd, out->path, file_flags, &out->file, err);
    if (r == 0)
        r = img_file_lock(out->file, IMG_PERM_WRITE | IMG_PERM_RESIZE, 0,
                          err);
    if (r < 0)
        return r;
    remove_strays(out);
    return keep_mode(out, err);
}

/* Is the file mounted by itself, as containers do?  Then its name cannot be
 * given to another file. */
static bool is_mounted(const char *path, const char *folder)
{
#ifdef STATX_MNT_ID
    struct statx a, b;

    return statx(AT_FDCWD, path, 0, STATX_MNT_ID, &a) == 0 &&
           statx(AT_FDCWD, folder, 0, STATX_MNT_ID, &b) == 0 &&
           (a.stx_mask & b.stx_mask & STATX_MNT_ID) &&
           a.stx_mnt_id != b.stx_mnt_id;
#else
    struct stat a, b;

    return stat(path, &a) == 0 && stat(folder, &b) == 0 &&
           a.st_dev != b.st_dev;
#endif
}

static bool must_stay(const struct img_output *out, const struct stat *st)
{
    return S_ISBLK(st->st_mode) || is_mounted(out->path, out->folder) ||
           (access(out->folder, W_OK | X_OK) < 0 &&
            (errno == EACCES || errno == EROFS));
}

static int open_in_place(struct img_output *out, unsigned file_flags,
                         bool exists, struct img_error *err)
{
    int r = img_file_open(out->path,
                          file_flags | (exists ? 0 : IMG_FILE_CREATE),
                          &out->file, err);

    if (r < 0)
        return r;
    out->created = !exists;
    r = img_file_lock(out->file, IMG_PERM_WRITE | IMG_PERM_RESIZE, 0, err);
    if (r == 0 && !out->file->is_device)
        r = img_file_truncate(out->file, 0, err);
    return r;
}

static int begin(struct img_output *out, const char *path, unsigned flags,
                 struct img_error *err)
{
    unsigned file_flags = IMG_FILE_WRITE;
    struct stat st;
    bool exists;
    int r;

    if (flags & IMG_OUTPUT_DIRECT)
        file_flags |= IMG_FILE_DIRECT;
    out->no_sync = flags & IMG_OUTPUT_NO_SYNC;
    if (img_nbd_is_uri(path)) {
        out->in_place = true;
        return img_file_open(path, file_flags | IMG_FILE_BY_USER, &out->file,
                             err);
    }
    out->path = real_target(path);
    if (!out->path)
        return img_fail_errno(err, errno, "Could not create '%s'", path);
    out->folder = strdup(out->path);
    if (!out->folder)
        return img_fail_nomem(err);
    dirname(out->folder);
    exists = stat(out->path, &st) == 0;
    if (exists && !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return img_fail(err, EINVAL, "%s: neither a file nor a block device",
                        path);
    if (exists && (flags & IMG_OUTPUT_NEW))
        return img_fail(err, EEXIST, "%s: is there already", path);
    out->in_place = (flags & IMG_OUTPUT_IN_PLACE) ||
                    (exists && must_stay(out, &st));
    if (out->in_place && (flags & IMG_OUTPUT_HELD))
        return img_fail(err, EACCES, "%s: cannot be replaced where it is",
                        path);
    if (out->in_place)
        return open_in_place(out, file_flags, exists, err);
    if (exists)
        r = open_old(out, IMG_FILE_WRITE, flags & IMG_OUTPUT_HELD, err);
    else
        r = 0;
    return r < 0 ? r : open_beside(out, file_flags, err);
}

int img_output_begin(const char *path, unsigned flags, struct img_output **out,
                     struct img_error *err)
{
    struct img_output *o = calloc(1, sizeof *o);
    int r;

    if (!o)
        return img_fail_nomem(err);
    r = begin(o, path, flags, err);
    if (r < 0) {
        output_free(o);
        return r;
    }
    *out = o;
    return 0;
}

struct img_file *img_output_file(struct img_output *out)
{
    return out->file;
}

static int link_as(struct img_output *out, const char *name)
{
    char proc[64];

    snprintf(proc, sizeof proc, "/proc/self/fd/%d", out->file->fd);
    return linkat(AT_FDCWD, proc, AT_FDCWD, name, AT_SYMLINK_FOLLOW);
}

/* A file without a name cannot be renamed over another one; it gets a hidden
 * name for that moment. */
static int give_temp_name(struct img_output *out, struct img_error *err)
{
    if (out->temp)
        return 0;
    out->temp = random_name(out->path);
    if (!out->temp)
        return img_fail_nomem(err);
    if (link_as(out, out->temp) < 0) {
        int code = errno;

        free(out->temp);
        out->temp = NULL;
        return img_fail_errno(err, code, "Could not create '%s'", out->path);
    }
    return 0;
}

/* The poorest file systems, without links and RENAME_NOREPLACE: there is a
 * moment between looking and renaming. */
static int rename_if_free(const struct img_output *out)
{
    struct stat st;

    if (lstat(out->path, &st) == 0) {
        errno = EEXIST;
        return -1;
    }
    return errno == ENOENT ? rename(out->temp, out->path) : -1;
}

/* Nothing was there, and nothing may be there now: what came up since is
 * somebody else's. */
static int appear(struct img_output *out, struct img_error *err)
{
    int r;

    if (!out->temp) {
        r = link_as(out, out->path);
    } else {
        r = renameat2(AT_FDCWD, out->temp, AT_FDCWD, out->path,
                      RENAME_NOREPLACE);
        if (r < 0 && (errno == EINVAL || errno == ENOSYS)) {
            r = link(out->temp, out->path);
            if (r == 0)
                unlink(out->temp);
            else if (errno == EPERM || errno == EOPNOTSUPP ||
                     errno == ENOSYS)
                r = rename_if_free(out);
        }
    }
    return r == 0 ? 0 : img_fail_errno(err, errno, "Could not create '%s'",
                                       out->path);
}

static int replace(struct img_output *out, struct img_error *err)
{
    struct stat was, is;
    int r = give_temp_name(out, err);

    if (r == 0)
        r = keep_owner(out, err);
    if (r < 0)
        return r;
    if (fstat(out->old->fd, &was) == 0 && stat(out->path, &is) == 0 &&
        (was.st_dev != is.st_dev || was.st_ino != is.st_ino))
        return img_fail(err, EBUSY, "%s: another file took its place "
                        "meanwhile", out->path);
    if (rename(out->temp, out->path) < 0)
        return img_fail_errno(err, errno, "%s: renaming %s to it", out->path,
                              out->temp);
    return 0;
}

/* A folder that may not be read can only be synced with all the rest. */
static int sync_folder(struct img_output *out, struct img_error *err)
{
    int fd = open(out->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int r = 0;

    if ((fd < 0 ? syncfs(out->file->fd) : fsync(fd)) < 0 && errno != EINVAL)
        r = img_fail_errno(err, errno, "%s: making it durable", out->folder);
    if (fd >= 0)
        close(fd);
    return r;
}

static int finish(struct img_output *out, struct img_error *err)
{
    bool named = !out->in_place || out->created;
    int r = out->no_sync ? 0 : img_file_sync(out->file, err);

    if (r < 0)
        return r;
    if (!out->in_place)
        r = out->old ? replace(out, err) : appear(out, err);
    if (r < 0)
        return r;
    out->named = true;
    out->created = false;
    free(out->temp);
    out->temp = NULL;
    return out->no_sync || !named ? 0 : sync_folder(out, err);
}

int img_output_finish(struct img_output *out, struct img_error *err)
{
    int r = finish(out, err);

    output_free(out);
    return r;
}

int img_output_keep(struct img_output *out, struct img_file **file,
                    struct img_error *err)
{
    int r = finish(out, err);

    *file = out->named ? out->file : NULL;
    if (out->named)
        out->file = NULL;
    output_free(out);
    return r;
}

bool img_output_is_new(const struct img_output *out)
{
    return out->in_place ? out->created : !out->old;
}

bool img_output_remove(const struct img_file *kept, const char *path)
{
    struct stat st;

    return lstat(path, &st) == 0 && S_ISREG(st.st_mode) &&
           st.st_dev == kept->device && st.st_ino == kept->inode &&
           unlink(path) == 0;
}

void img_output_abandon(struct img_output *out)
{
    if (out)
        output_free(out);
}
