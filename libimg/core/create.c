/* Images in the making: options resolved, backing file looked at, outputs
 * begun; all files get their names together at the end.
 *
 * Settings named "size", "backing_file" and "backing_fmt" are the options of
 * that meaning in qemu-img's -o form; what has a field of its own in
 * struct img_create_options is taken from there first.
 */
#include "core/create.h"
#include "core/chain.h"
#include "core/disk.h"
#include "core/path.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/options.h"
#include "base/strings.h"
#include "file/file.h"
#include "file/nbd.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

struct extra {
    struct img_output *out;     /* NULL = it was there already, and is only
                                   read */
    struct img_file *file;
    char *name;                 /* as the image has it */
    bool is_new;                /* it has got its name, and nothing else had
                                   it before */
};

struct making {
    struct img_making pub;
    struct img_create_options opts;
    struct img_output *out;
    struct img_chain *backing;
    struct extra *extras;
    size_t n_extras;
    bool is_stream;
};

/* ---- options ----------------------------------------------------------- */

static int check_options(struct making *m, struct img_error *err)
{
    struct img_create_options *o = &m->opts;
    const char *text;
    int r = 0;

    if (!o->format)
        return img_fail(err, EINVAL, "%s: no format was given",
                        m->pub.build.path);
    m->pub.format = img_format_find(o->format);
    if (!m->pub.format)
        return img_fail(err, ENOTSUP, "Unknown file format '%s'", o->format);
    if (!(m->pub.format->info.features & IMG_CAN_CREATE))
        return img_fail(err, ENOTSUP, "Format '%s' cannot be created",
                        o->format);
    r = img_settings_check(o->settings, m->pub.format->info.create_options,
                           o->format, err);
    text = img_setting(o->settings, "size");
    if (r == 0 && text && !o->has_size && !o->disk_size) {
        r = img_setting_size(o->settings, "size", &o->disk_size, err);
        o->has_size = true;
    }
    if (!o->backing)
        o->backing = img_setting(o->settings, "backing_file");
    if (!o->backing_format)
        o->backing_format = img_setting(o->settings, "backing_fmt");
    if (o->backing && !*o->backing)
        o->backing = NULL;
    if (!o->backing)
        o->backing_format = NULL;
    if (r == 0 && o->backing &&
        !(m->pub.format->info.features & IMG_CAN_BACK))
        r = img_fail(err, ENOTSUP, "Backing file not supported for file "
                     "format '%s'", o->format);
    if (r == 0 && o->backing_format && !img_format_find(o->backing_format))
        r = img_fail(err, ENOTSUP, "Unknown backing file format '%s'",
                     o->backing_format);
    return r;
}

/* ---- the backing file -------------------------------------------------- */

static bool is_file(const struct img_file *f, const struct stat *st)
{
    if (S_ISBLK(st->st_mode))
        return f->is_device && f->device == st->st_rdev;
    return !f->is_device && f->device == st->st_dev &&
           f->inode == st->st_ino;
}

static int refuse_itself(const struct making *m, struct img_error *err)
{
    const char *path = m->pub.build.path;
    const struct img_chain *c = m->backing;
    struct stat st;

    if (m->is_stream || stat(path, &st) < 0)
        return 0;
    for (unsigned d = 0; d < c->n; d++)
        for (unsigned i = 0; i < c->layers[d]->n_files; i++)
            if (c->layers[d]->files[i] &&
                is_file(c->layers[d]->files[i], &st))
                return img_fail(err, EINVAL, "%s: is a backing file of the "
                                "new image itself", path);
    return 0;
}

static int refuse_doubt(const struct making *m, struct img_error *err)
{
    const struct img_layer *l = m->backing->layers[0];

    return l->guessed ? img_chain_refuse_doubt(l->files[0], m->pub.build.path,
                                               m->opts.backing, err) : 0;
}

static int open_backing(struct making *m, struct img_error *err)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    img_autofree char *path = NULL;
    int r;

    if (img_path_has_protocol(m->opts.backing) &&
        strncmp(m->opts.backing, "file:", 5) &&
        !img_nbd_is_uri(m->opts.backing))
        return img_fail(err, ENOTSUP, "%s: the backing file '%s' is neither "
                        "a plain file nor an NBD server", m->pub.build.path,
                        m->opts.backing);
    path = img_path_beside(m->pub.build.path, m->opts.backing);
    if (!path)
        return img_fail_nomem(err);
    opts.flags = IMG_OPEN_PROBE | IMG_OPEN_PROBE_BACKING;
    opts.format = m->opts.backing_format;
    opts.allow_files = m->opts.allow_files;
    opts.allow_dir = m->opts.allow_dir;
    r = img_chain_open(path, -1, NULL, &opts, &m->backing, err);
    if (r == 0)
        r = refuse_doubt(m, err);
    return r < 0 ? r : refuse_itself(m, err);
}

/* -u: the file need not be there, but a format has to be known. */
static int guess_backing_format(struct making *m, struct img_error *err)
{
    img_autofree char *path = img_path_beside(m->pub.build.path,
                                              m->opts.backing);
    const struct img_format *format = NULL;
    struct img_file *file = NULL;
    int r;

    if (!path)
        return img_fail_nomem(err);
    r = img_file_open(path, IMG_FILE_BY_USER, &file, NULL);
    if (r == 0)
        r = img_chain_probe(file, &format, NULL);
    if (r < 0)
        r = img_fail(err, EINVAL, "%s: the format of its backing file '%s' "
                     "was not given and cannot be found out",
                     m->pub.build.path, m->opts.backing);
    else if (!strcmp(format->info.name, "raw"))
        r = img_chain_refuse_doubt(file, m->pub.build.path, m->opts.backing,
                                   err);
    if (r == 0)
        m->opts.backing_format = format->info.name;
    img_file_close(file);
    return r;
}

/* The same for a backing file that is not opened, and so never was a chain. */
static int refuse_own_name(const struct making *m, struct img_error *err)
{
    img_autofree char *path = img_path_beside(m->pub.build.path,
                                              m->opts.backing);
    struct stat a, b;

    if (!path)
        return img_fail_nomem(err);
    if (m->is_stream || stat(path, &a) < 0 ||
        stat(m->pub.build.path, &b) < 0 || a.st_dev != b.st_dev ||
        a.st_ino != b.st_ino)
        return 0;
    return img_fail(err, EINVAL, "%s: is a backing file of the new image "
                    "itself", m->pub.build.path);
}

static int resolve(struct making *m, struct img_error *err)
{
    struct img_create_options *o = &m->opts;
    int r = check_options(m, err);

    if (r == 0 && o->backing) {
        if (!(o->flags & IMG_CREATE_NO_OPEN_BACKING))
            r = open_backing(m, err);
        else
            r = refuse_own_name(m, err);
        if (r == 0 && !m->backing && !o->backing_format)
            r = guess_backing_format(m, err);
    }
    if (r < 0)
        return r;
    if (m->backing) {
        const struct img_layer *l = m->backing->layers[0];

        m->pub.build.backing = l;
        if (!o->backing_format)
            o->backing_format = l->format->info.name;
        if (!o->disk_size && !o->has_size)
            o->disk_size = l->size;
    } else if (!o->disk_size && !o->has_size) {
        return img_fail(err, EINVAL, "%s: Image creation needs a size "
                        "parameter", m->pub.build.path);
    }
    o->has_size = true;
    if (o->disk_size > INT64_MAX - (UINT64_C(1) << 30))
        return img_fail(err, EFBIG, "%s: Image size must be less than 8 EiB!",
                        m->pub.build.path);
    return 0;
}

/* ---- files ------------------------------------------------------------- */

static unsigned output_flags(const struct making *m)
{
    return (m->opts.flags & IMG_CREATE_IN_PLACE ? IMG_OUTPUT_IN_PLACE : 0) |
           (m->opts.flags & IMG_CREATE_NO_SYNC ? IMG_OUTPUT_NO_SYNC : 0) |
           (m->opts.flags & IMG_CREATE_DIRECT ? IMG_OUTPUT_DIRECT : 0);
}

static int keep_extra(struct making *m, const char *name,
                      struct img_output *out, struct img_file *file,
                      struct img_error *err)
{
    struct extra *more = realloc(m->extras,
                                 (m->n_extras + 1) * sizeof *more);
    char *copy = strdup(name);

    if (more)
        m->extras = more;
    if (!more || !copy) {
        free(copy);
        return img_fail_nomem(err);
    }
    more[m->n_extras++] = (struct extra){ out, file, copy, false };
    return 0;
}

static int build_add_file(struct img_build *b, const char *name,
                          struct img_file **file, struct img_error *err)
{
    struct making *m = b->core;
    img_autofree char *path = img_path_beside(b->path, name);
    struct img_output *out = NULL;
    int r;

    if (!path)
        return img_fail_nomem(err);
    r = img_output_begin(path, output_flags(m), &out, err);
    if (r == 0)
        r = keep_extra(m, name, out, img_output_file(out), err);
    if (r < 0) {
        img_output_abandon(out);
        return r;
    }
    *file = img_output_file(out);
    return 0;
}

static int build_open_file(struct img_build *b, const char *name,
                           struct img_file **file, struct img_error *err)
{
    struct making *m = b->core;
    img_autofree char *path = img_path_beside(b->path, name);
    struct img_file *f = NULL;
    int r;

    if (!path)
        return img_fail_nomem(err);
    r = img_file_open(path, 0, &f, err);
    if (r == 0)
        r = img_file_lock(f, IMG_PERM_READ,
                          IMG_PERM_READ | IMG_PERM_WRITE_UNCHANGED, err);
    if (r == 0)
        r = keep_extra(m, name, NULL, f, err);
    if (r < 0) {
        img_file_close(f);
        return r;
    }
    *file = f;
    return 0;
}

/* ---- making ------------------------------------------------------------ */

static struct making *making_new(const char *path, struct img_error *err)
{
    struct making *m = calloc(1, sizeof *m);

    if (m)
        m->pub.build.path = strdup(path ? path : "-");
    if (!m || !m->pub.build.path) {
        free(m);
        img_fail_nomem(err);
        return NULL;
    }
    m->is_stream = !path;
    m->pub.build.opts = &m->opts;
    m->pub.build.add_file = build_add_file;
    m->pub.build.open_file = build_open_file;
    m->pub.build.core = m;
    return m;
}

static int begin(struct making *m, const struct img_create_options *opts,
                 struct img_error *err)
{
    int r = img_options_take(&m->opts, sizeof m->opts, opts, err);

    if (r == 0)
        r = resolve(m, err);
    if (r < 0 || m->is_stream)
        return r;
    r = img_output_begin(m->pub.build.path, output_flags(m), &m->out, err);
    if (r == 0)
        m->pub.build.file = img_output_file(m->out);
    return r;
}

int img_making_begin(const char *path, const struct img_create_options *opts,
                     struct img_making **making, struct img_error *err)
{
    struct making *m = making_new(path, err);
    int r;

    if (!m)
        return -ENOMEM;
    r = begin(m, opts, err);
    if (r < 0) {
        img_making_abandon(&m->pub);
        return r;
    }
    *making = &m->pub;
    return 0;
}

struct img_chain *img_making_backing(struct img_making *making)
{
    return ((struct making *)making->build.core)->backing;
}

int img_making_create(struct img_making *making, struct img_error *err)
{
    if (!making->format->create)
        return img_fail(err, ENOTSUP, "%s: format %s can only be written "
                        "from front to back", making->build.path,
                        making->format->info.name);
    return making->format->create(&making->build, err);
}

/* The files that have no name yet are found here, all others beside. */
static int resolve_made(void *opaque, const char *referrer, const char *name,
                        bool writable)
{
    const struct making *m = opaque;
    img_autofree char *path = NULL;
    int fd = -1;

    for (size_t i = 0; i < m->n_extras; i++)
        if (!strcmp(m->extras[i].name, name) && m->extras[i].file->fd >= 0) {
            fd = fcntl(m->extras[i].file->fd, F_DUPFD_CLOEXEC, 3);
            return fd < 0 ? -errno : fd;
        }
    if (img_path_has_protocol(name) && strncmp(name, "file:", 5))
        return -ENOTSUP;
    path = img_path_beside(strcmp(referrer, "") ? referrer
                                                : m->pub.build.path, name);
    if (!path)
        return -ENOMEM;
    fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

int img_making_open(struct img_making *making, struct img_disk **disk,
                    struct img_error *err)
{
    struct making *m = making->build.core;
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_file *file = making->build.file, *shared = NULL;
    int fd = -1, r = 0;

    if (file->fd < 0)
        r = img_nbd_share(file, &shared, err);
    else if ((fd = fcntl(file->fd, F_DUPFD_CLOEXEC, 3)) < 0)
        r = img_fail_errno(err, errno, "%s", making->build.path);
    if (r < 0)
        return r;
    opts.flags = IMG_OPEN_WRITE | IMG_OPEN_UNMAP | IMG_OPEN_PROBE_BACKING |
                 IMG_OPEN_NEW;
    opts.format = making->format->info.name;
    opts.resolve = resolve_made;
    opts.resolve_opaque = m;
    opts.allow_files = m->opts.allow_files;
    opts.allow_dir = m->opts.allow_dir;
    if (m->opts.flags & IMG_CREATE_NO_SYNC)
        opts.flags |= IMG_OPEN_NO_SYNC;
    if (m->opts.flags & IMG_CREATE_NO_OPEN_BACKING)
        opts.flags |= IMG_OPEN_NO_BACKING;
    return img_disk_open(making->build.path, fd, shared, &opts, disk, err);
}

static void making_free(struct making *m)
{
    for (size_t i = 0; i < m->n_extras; i++) {
        if (m->extras[i].out)
            img_output_abandon(m->extras[i].out);
        else
            img_file_close(m->extras[i].file);
        free(m->extras[i].name);
    }
    free(m->extras);
    img_output_abandon(m->out);
    if (m->backing)
        img_chain_close(m->backing, NULL);
    free((char *)m->pub.build.path);
    free(m);
}

static int finish_extra(struct extra *e, struct img_error *err)
{
    struct img_output *out = e->out;
    bool is_new;
    int r;

    if (!out)
        return 0;
    is_new = img_output_is_new(out);
    e->out = NULL;
    e->file = NULL;
    r = img_output_keep(out, &e->file, err);
    e->is_new = is_new && e->file;
    return r;
}

/* What it refers to first, the image itself last: an image that is there has
 * all its files.  Without it, none of those stays. */
static int finish(struct making *m, struct img_error *err)
{
    struct img_file *image = NULL;
    int r = 0;

    for (size_t i = 0; i < m->n_extras && r == 0; i++)
        r = finish_extra(&m->extras[i], err);
    if (r == 0 && m->out) {
        r = img_output_keep(m->out, &image, err);
        m->out = NULL;
    }
    for (size_t i = 0; i < m->n_extras && r < 0 && !image; i++)
        if (m->extras[i].is_new)
            img_output_remove(m->extras[i].file, m->extras[i].file->path);
    img_file_close(image);
    return r;
}

int img_making_finish(struct img_making *making, struct img_error *err)
{
    struct making *m = making->build.core;
    int r = finish(m, err);

    making_free(m);
    return r;
}

void img_making_abandon(struct img_making *making)
{
    if (making)
        making_free(making->build.core);
}

int img_create(const char *path, const struct img_create_options *opts,
               struct img_error *err)
{
    struct img_making *m;
    int r = img_making_begin(path, opts, &m, err);

    if (r < 0)
        return r;
    r = img_making_create(m, err);
    if (r < 0) {
        img_making_abandon(m);
        return r;
    }
    return img_making_finish(m, err);
}

/* ---- what would be made ------------------------------------------------ */

/* Puts one line before those that a format gave. */
static int put_first(struct img_strings *s, size_t at, const char *key,
                     const char *value, struct img_error *err)
{
    char *made;
    int r;

    if (!value || img_setting((const char *const *)s->list, key))
        return 0;
    r = img_strings_addf(s, err, "%s=%s", key, value);
    if (r < 0)
        return r;
    made = s->list[s->n - 1];
    memmove(&s->list[at + 1], &s->list[at],
            (s->n - 1 - at) * sizeof s->list[0]);
    s->list[at] = made;
    return 0;
}

/* A format that has no place of its own for them leaves the size and the
 * backing file to us; qemu-img lists them first. */
static int add_common(const struct img_create_options *o,
                      struct img_strings *out, struct img_error *err)
{
    char size[24];
    int r;

    snprintf(size, sizeof size, "%llu", (unsigned long long)o->disk_size);
    r = put_first(out, 0, "size", size, err);
    if (r == 0)
        r = put_first(out, 1, "backing_file", o->backing, err);
    if (r == 0 && o->backing)
        r = put_first(out, 2, "backing_fmt", o->backing_format, err);
    return r;
}

int img_create_resolve(const char *path, const struct img_create_options *opts,
                       char ***settings, struct img_error *err)
{
    struct making *m = making_new(path, err);
    struct img_strings out = { NULL, 0 };
    int r;

    if (!m)
        return -ENOMEM;
    r = img_options_take(&m->opts, sizeof m->opts, opts, err);
    if (r == 0)
        r = resolve(m, err);
    if (r == 0 && m->pub.format->defaults)
        r = m->pub.format->defaults(&m->opts, &out, err);
    if (r == 0)
        r = add_common(&m->opts, &out, err);
    making_free(m);
    if (r < 0) {
        img_strings_free(&out);
        return r;
    }
    *settings = out.list;
    return 0;
}

void img_settings_free(char **settings)
{
    for (size_t i = 0; settings && settings[i]; i++)
        free(settings[i]);
    free(settings);
}
