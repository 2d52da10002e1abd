/* Files beside an image that come and go with it, e.g. extents.
 *
 * New ones have no name until all of them are written; then they get their
 * names, and only then the file that refers to them is replaced: a crash
 * leaves the old image, perhaps with files beside it that nothing refers to,
 * or the new one.  Nothing that is there already is ever opened for this.
 *
 * Locks: the file that replaces another is locked as that is before it has
 * the name, and the other one stays locked, so that nobody gets the image
 * meanwhile, by its name or as it was opened before.
 *
 * Called by one thread, with no request in flight.
 */
#include "core/beside.h"
#include "core/chain.h"
#include "core/path.h"
#include "core/policy.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "cache/tcache.h"
#include "cache/zcache.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

struct img_made {
    struct img_output *out;     /* NULL = it has its name */
    struct img_file *file;      /* then: this */
    char *path;
};

static unsigned output_flags(const struct img_chain *c)
{
    return (c->opts.flags & IMG_OPEN_NO_SYNC ? IMG_OUTPUT_NO_SYNC : 0) |
           (c->opts.flags & IMG_OPEN_DIRECT ? IMG_OUTPUT_DIRECT : 0);
}

static bool is_link(const char *path)
{
    struct stat st;

    return lstat(path, &st) == 0 && S_ISLNK(st.st_mode);
}

/* Who may not read the image may not read what is added to it. */
static int keep_rights(const struct img_layer *l, struct img_file *file,
                       struct img_error *err)
{
    const struct img_file *like = l->files[l->n_files - 1];
    struct stat st;

    if (fstat(like->fd, &st) < 0 ||
        fchmod(file->fd, st.st_mode & 0666) < 0)
        return img_fail_errno(err, errno, "%s: keeping the mode of %s",
                              file->path, like->path);
    if (fchown(file->fd, st.st_uid, st.st_gid) < 0 && errno != EPERM)
        return img_fail_errno(err, errno, "%s: keeping the owner of %s",
                              file->path, like->path);
    return 0;
}

static int make_file(struct img_layer *l, const char *name,
                     struct img_file **file, struct img_error *err)
{
    struct img_chain *c = l->core;
    img_autofree char *path = img_path_beside(l->path, name);
    struct img_output *out;
    struct img_made *more;
    int r;

    if (!path)
        return img_fail_nomem(err);
    if (c->opts.resolve || (c->from_fd && l == c->layers[0]))
        return img_fail(err, ENOTSUP, "%s: needs a new file '%s' beside it, "
                        "but its files come from whoever opened it", l->path,
                        name);
    r = img_policy_ask_new(&c->opts, l->path, name, path, err);
    if (r < 0)
        return r;
    if (is_link(path))
        return img_fail(err, EEXIST, "%s: is there already", path);
    more = realloc(c->made, (c->n_made + 1) * sizeof *more);
    if (!more)
        return img_fail_nomem(err);
    c->made = more;
    r = img_output_begin(path, output_flags(c) | IMG_OUTPUT_NEW, &out, err);
    if (r < 0)
        return r;
    *file = img_output_file(out);
    (*file)->no_sync = c->opts.flags & IMG_OPEN_NO_SYNC;
    more[c->n_made++] = (struct img_made){ .out = out, .path = path };
    path = NULL;
    return keep_rights(l, *file, err);
}

static void unmake_files(struct img_layer *l)
{
    struct img_chain *c = l->core;

    while (c->n_made) {
        struct img_made *m = &c->made[--c->n_made];

        img_output_abandon(m->out);
        if (m->file)
            img_output_remove(m->file, m->path);
        img_file_close(m->file);
        free(m->path);
    }
}

/* As it is known by: messages and neighbours go by that name. */
static void set_path(struct img_file *file, char *path)
{
    free(file->path);
    file->path = path;
}

static int name_all(struct img_chain *c, struct img_error *err)
{
    int r = 0;

    for (unsigned i = 0; i < c->n_made && r == 0; i++) {
        struct img_made *m = &c->made[i];
        struct img_output *out = m->out;

        m->out = NULL;
        r = img_output_keep(out, &m->file, err);
    }
    return r;
}

/* Labels and access lists; -errno where one of them cannot be kept. */
static int keep_attributes(int from, int to)
{
    enum { NAMES_MAX = 65536, VALUE_MAX = 65536 };
    img_autofree char *names = malloc(NAMES_MAX + VALUE_MAX);
    char *value;
    ssize_t n, len;

    if (!names)
        return -ENOMEM;
    value = names + NAMES_MAX;
    /* From the folder's default; the old file may have none. */
    fremovexattr(to, "system.posix_acl_access");
    n = flistxattr(from, names, NAMES_MAX);
    if (n < 0)
        return errno == ENOTSUP ? 0 : -errno;
    for (const char *name = names; name < names + n;
         name += strlen(name) + 1) {
        len = fgetxattr(from, name, value, VALUE_MAX);
        if (len < 0 || fsetxattr(to, name, value, (size_t)len, 0) < 0)
            return -errno;
    }
    return 0;
}

/* May another file take the place of the image's own?  It has to be known by
 * that name and no other, and to be of the same owner. */
static int check_replaceable(const struct img_layer *l, struct img_file *by,
                             struct img_error *err)
{
    const struct img_file *f = l->files[0];
    struct stat st, named, is;
    int r;

    if (f->fd < 0 || fstat(f->fd, &st) < 0 || fstat(by->fd, &is) < 0 ||
        stat(l->path, &named) < 0 || named.st_dev != st.st_dev ||
        named.st_ino != st.st_ino)
        return img_fail(err, ENOTSUP, "%s: is not the file that was opened",
                        l->path);
    if (st.st_nlink != 1)
        return img_fail(err, ENOTSUP, "%s: has another name", l->path);
    if ((st.st_uid != is.st_uid || st.st_gid != is.st_gid) &&
        fchown(by->fd, st.st_uid, st.st_gid) < 0)
        return img_fail(err, ENOTSUP, "%s: another file would not have its "
                        "owner", l->path);
    r = fchmod(by->fd, st.st_mode & 07777) < 0 ? -errno :
        keep_attributes(f->fd, by->fd);
    if (r == -ENOMEM)
        return img_fail_nomem(err);
    if (r < 0)
        return img_fail(err, ENOTSUP, "%s: another file would not have its "
                        "attributes", l->path);
    return 0;
}

static int write_new(const struct img_chain *c, const struct img_layer *l,
                     const void *buf, size_t len, struct img_output **out,
                     struct img_error *err)
{
    unsigned flags = output_flags(c) & ~(unsigned)IMG_OUTPUT_DIRECT;
    int r = img_output_begin(l->path, flags | IMG_OUTPUT_HELD, out, err);

    if (r < 0) {
        *out = NULL;
        return r;
    }
    /* With new files beside it nothing but a new one will do. */
    r = check_replaceable(l, img_output_file(*out), c->n_made ? NULL : err);
    if (r < 0 && !c->n_made)
        return r;
    return img_file_pwrite(img_output_file(*out), buf, len, 0, err);
}

/* It stays open, and so locked. */
static void put_by(struct img_chain *c, struct img_file *file)
{
    struct img_file **slot = &c->replaced[c->n_replaced++ %
                                          IMG_REPLACED_MAX];

    img_file_close(*slot);
    *slot = file;
}

/* The layer's from now on; there is room for them. */
static void adopt(struct img_chain *c, struct img_layer *l,
                  struct img_file *first)
{
    set_path(first, l->files[0]->path);
    l->files[0]->path = NULL;
    first->no_sync = l->files[0]->no_sync;
    img_tcache_forget(c->tables, l->files[0], 0, UINT64_MAX);
    img_zcache_forget_file(c->inflated, l->files[0]);
    put_by(c, l->files[0]);
    l->files[0] = first;
    /* Shares more than the locks they were made with, so cannot fail for
     * anybody else's. */
    img_chain_lock(c, first, true, NULL);
    for (unsigned i = 0; i < c->n_made; i++) {
        struct img_made *m = &c->made[i];

        set_path(m->file, m->path);
        img_chain_lock(c, m->file, true, NULL);
        c->align = IMG_MAX(c->align, m->file->align);
        l->files[l->n_files++] = m->file;
    }
    c->n_made = 0;
}

static int replace(struct img_layer *l, const void *buf, size_t len,
                   bool *done, struct img_error *err)
{
    struct img_chain *c = l->core;
    struct img_output *out = NULL;
    struct img_file *first = NULL, **more;
    int r;

    *done = false;
    if (c->opts.resolve || (c->from_fd && l == c->layers[0]))
        return img_fail(err, ENOTSUP, "%s: cannot be replaced, its files "
                        "come from whoever opened it", l->path);
    more = realloc(l->files, (l->n_files + c->n_made) * sizeof *more);
    if (more)
        l->files = more;
    r = more ? write_new(c, l, buf, len, &out, err) : img_fail_nomem(err);
    if (r == 0)
        r = name_all(c, err);
    if (r == 0) {
        r = img_output_keep(out, &first, err);
        out = NULL;
    }
    img_output_abandon(out);
    if (!first) {
        unmake_files(l);
        return r;
    }
    *done = true;
    adopt(c, l, first);
    return r;
}

static void drop_file(struct img_layer *l, bool remove)
{
    struct img_chain *c = l->core;
    struct img_file *file = l->files[--l->n_files];

    img_tcache_forget(c->tables, file, 0, UINT64_MAX);
    img_zcache_forget_file(c->inflated, file);
    if (!remove)
        l->warn(l, "%s: is no part of %s any more, but stays", file->path,
                l->path);
    else if (!img_output_remove(file, file->path))
        l->warn(l, "%s: is no part of %s any more, but could not be removed",
                file->path, l->path);
    img_file_close(file);
}

void img_beside_free(struct img_chain *c)
{
    for (unsigned i = 0; i < IMG_REPLACED_MAX; i++)
        img_file_close(c->replaced[i]);
    free(c->made);
}

void img_beside_hooks(struct img_layer *l)
{
    l->make_file = make_file;
    l->replace = replace;
    l->unmake_files = unmake_files;
    l->drop_file = drop_file;
}
