/* Outputs that appear whole or not at all.
 *
 * The new file has no name while it is written (O_TMPFILE) where the file
 * system allows that, so that even SIGKILL leaves nothing behind; else a
 * hidden name beside the target.  It takes the target's name by rename, after
 * its content is durable, and then the folder is made durable.
 */
#include "file/file.h"
#include "file/nbd.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/cleanup.h"

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
};

static void output_free(struct img_output *out)
{
    if (out->temp)
        unlink(out->temp);
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
    if (asprintf(&name, "%.*s/.%s.%016llx.part",
                 (int)(strrchr(path, '/') - path), path, basename(copy),
                 (unsigned long long)number) < 0)
        return NULL;
    return name;
}

/* Where the name really leads: through symbolic links, as an absolute path
 * whose last part need not exist. */
static char *real_target(const char *path)
{
    char *real = realpath(path, NULL), *name = NULL;
    img_autofree char *a = NULL, *b = NULL, *folder = NULL;

    if (real || errno != ENOENT)
        return real;
    a = strdup(path);
    b = strdup(path);
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

static int lock_old(struct img_output *out, unsigned flags,
                    struct img_error *err)
{
    int r = img_file_open(out->path, flags, &out->old, err);

    if (r < 0)
        return r;
    return img_file_lock(out->old, IMG_PERM_WRITE | IMG_PERM_RESIZE,
                         0, err);
}

static int open_beside(struct img_output *out, unsigned file_flags,
                       struct img_error *err)
{
    int mode = O_RDWR | O_CLOEXEC |
               (file_flags & IMG_FILE_DIRECT ? O_DIRECT : 0);
    int fd = open(out->folder, mode | O_TMPFILE, 0666);

    if (fd >= 0)
        return img_file_from_fd(fd, out->path, file_flags, &out->file, err);
    out->temp = random_name(out->path);
    if (!out->temp)
        return img_fail_nomem(err);
    fd = open(out->temp, mode | O_CREAT | O_EXCL, 0666);
    if (fd < 0) {
        int code = errno;

        free(out->temp);
        out->temp = NULL;
        return img_fail_errno(err, code, "Could not create '%s'", out->path);
    }
    return img_file_from_fd(fd, out->path, file_flags, &out->file, err);
}

static int keep_owner(struct img_output *out)
{
    struct stat st;

    if (!out->old || fstat(out->old->fd, &st) < 0)
        return 0;
    if (fchown(out->file->fd, st.st_uid, st.st_gid) < 0)
        st.st_mode &= 0777;     /* not ours to give away */
    return fchmod(out->file->fd, st.st_mode & 07777);
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
    out->in_place = (flags & IMG_OUTPUT_IN_PLACE) ||
                    (exists && S_ISBLK(st.st_mode));
    if (!out->in_place) {
        r = exists ? lock_old(out, IMG_FILE_WRITE, err) : 0;
        return r < 0 ? r : open_beside(out, file_flags, err);
    }
    r = img_file_open(out->path,
                      file_flags | (exists ? 0 : IMG_FILE_CREATE),
                      &out->file, err);
    if (r == 0)
        r = img_file_lock(out->file, IMG_PERM_WRITE | IMG_PERM_RESIZE, 0,
                          err);
    if (r == 0 && !out->file->is_device)
        r = img_file_truncate(out->file, 0, err);
    return r;
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

/* A file without a name cannot be renamed over another one; it gets a hidden
 * name for that moment. */
static int give_temp_name(struct img_output *out, struct img_error *err)
{
    char proc[64];

    if (out->temp)
        return 0;
    out->temp = random_name(out->path);
    if (!out->temp)
        return img_fail_nomem(err);
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", out->file->fd);
    if (linkat(AT_FDCWD, proc, AT_FDCWD, out->temp, AT_SYMLINK_FOLLOW) < 0) {
        int code = errno;

        free(out->temp);
        out->temp = NULL;
        return img_fail_errno(err, code, "Could not create '%s'", out->path);
    }
    return 0;
}

static int sync_folder(const char *folder, struct img_error *err)
{
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int r = 0;

    if (fd < 0)
        return img_fail_errno(err, errno, "%s", folder);
    if (fsync(fd) < 0 && errno != EINVAL)
        r = img_fail_errno(err, errno, "%s: making it durable", folder);
    close(fd);
    return r;
}

static int finish(struct img_output *out, struct img_error *err)
{
    int r = out->no_sync ? 0 : img_file_sync(out->file, err);

    if (r < 0 || out->in_place)
        return r;
    if (keep_owner(out) < 0)
        return img_fail_errno(err, errno, "%s: keeping its owner and mode",
                              out->path);
    r = give_temp_name(out, err);
    if (r < 0)
        return r;
    if (rename(out->temp, out->path) < 0)
        return img_fail_errno(err, errno, "%s: renaming %s to it", out->path,
                              out->temp);
    free(out->temp);
    out->temp = NULL;
    return out->no_sync ? 0 : sync_folder(out->folder, err);
}

int img_output_finish(struct img_output *out, struct img_error *err)
{
    int r = finish(out, err);

    output_free(out);
    return r;
}

void img_output_abandon(struct img_output *out)
{
    if (out)
        output_free(out);
}
