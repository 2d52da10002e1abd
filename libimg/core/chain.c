/* Opening and closing the layers of a disk.
 *
 * Every file that an image names is opened by one function here, by the
 * policy of whoever opened the disk: the resolve callback if there is one,
 * else plain paths beside the image, and nothing at all for an image that
 * came as a descriptor.  The list of layers changes only while no request is
 * in flight.
 */
#include "core/chain.h"
#include "core/beside.h"
#include "core/flat.h"
#include "core/path.h"
#include "core/policy.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "cache/tcache.h"
#include "cache/zcache.h"
#include "file/file.h"
#include "file/nbd.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Seven tenths for tables, two for what is inflated, one for core/flat. */
#define DEFAULT_CACHE (UINT64_C(40) << 20)

static uint64_t cache_budget(const struct img_open_options *opts)
{
    return opts->cache_bytes ? opts->cache_bytes : DEFAULT_CACHE;
}

/* ---- files ------------------------------------------------------------- */

static unsigned file_flags(const struct img_chain *c, bool writable)
{
    return (writable ? IMG_FILE_WRITE : 0) |
           (c->opts.flags & IMG_OPEN_DIRECT ? IMG_FILE_DIRECT : 0) |
           (c->opts.flags & IMG_OPEN_NO_SYNC ? IMG_FILE_NO_SYNC : 0);
}

int img_chain_lock(const struct img_chain *c, struct img_file *f,
                   bool writable, struct img_error *err)
{
    unsigned perm = IMG_PERM_READ;

    if (c->opts.flags & IMG_OPEN_NO_LOCK)
        return 0;
    if (writable)
        perm |= IMG_PERM_WRITE | IMG_PERM_RESIZE;
    return img_file_lock(f, perm, IMG_PERM_READ | IMG_PERM_WRITE_UNCHANGED,
                         err);
}

static int open_resolved(const struct img_chain *c,
                         const struct img_layer *by, const char *name,
                         const char *path, bool writable,
                         struct img_file **file, struct img_error *err)
{
    int fd = c->opts.resolve(c->opts.resolve_opaque, by->path, name,
                             writable);

    if (fd < 0)
        return img_fail_errno(err, -fd, "%s: opening '%s', which it names",
                              by->path, name);
    return img_file_from_fd(fd, path, file_flags(c, writable), file, err);
}

/* As img_file_open; what is opened is `real`, if there is one, and path stays
 * the name that others are seen from. */
static int open_judged(const char *path, const char *real, unsigned flags,
                       struct img_file **file, struct img_error *err)
{
    char *name;
    int r = img_file_open(real ? real : path, flags, file, err);

    if (r < 0 || !real)
        return r;
    name = strdup(path);
    if (!name) {
        img_file_close(*file);
        return img_fail_nomem(err);
    }
    free((*file)->path);
    (*file)->path = name;
    return 0;
}

/* Opens a file that an image names. */
static int open_named(const struct img_chain *c, const struct img_layer *by,
                      const char *name, bool writable, struct img_file **file,
                      struct img_error *err)
{
    bool any = c->opts.allow_files == IMG_FILES_ANY;
    /* What has just been made names what its maker was told to. */
    bool told = by == c->layers[0] &&
                ((c->opts.flags & IMG_OPEN_NEW) ||
                 (c->told && !strcmp(c->told, name)));
    img_autofree char *path = img_path_beside(by->path, name);
    img_autofree char *real = NULL;
    int r = 0;

    if (!path)
        return img_fail_nomem(err);
    if (c->from_fd && by == c->layers[0] && !c->opts.resolve)
        return img_fail(err, EACCES, "%s: it names '%s', but the image came "
                        "as a descriptor and nothing says where its other "
                        "files are", by->path, name);
    if (!told && (!c->opts.resolve || c->opts.allow_files))
        r = img_policy_ask(&c->opts, by->path, name, path, &real, err);
    if (r < 0)
        return r;
    if (c->opts.resolve && !(told && img_nbd_is_uri(name)))
        return open_resolved(c, by, name, path, writable, file, err);
    return open_judged(path, real, file_flags(c, writable) |
                       (any || told ? IMG_FILE_BY_USER : 0), file, err);
}

static int layer_open_file(struct img_layer *l, const char *name,
                           bool writable, struct img_file **file,
                           struct img_error *err)
{
    struct img_chain *c = l->core;
    struct img_file *f;
    int r = open_named(c, l, name, writable, &f, err);

    if (r < 0)
        return r;
    r = img_chain_lock(c, f, writable, err);
    if (r < 0) {
        img_file_close(f);
        return r;
    }
    *file = f;
    return 0;
}

static void layer_warn(struct img_layer *l, const char *fmt, ...)
{
    const struct img_chain *c = l->core;
    char text[512];
    va_list ap;

    if (!c->opts.warn)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    c->opts.warn(c->opts.warn_opaque, text);
}

/* ---- formats ----------------------------------------------------------- */

/* Old images name QEMU's way of opening a file where the format belongs. */
static const struct img_format *find_format(const char *name)
{
    if (!strcmp(name, "file") || !strcmp(name, "host_device"))
        name = "raw";
    return img_format_find(name);
}

static int choose_format(const char *name, bool may_probe,
                         struct img_file *file,
                         const struct img_format **format,
                         struct img_error *err)
{
    if (!name && may_probe)
        return img_chain_probe(file, format, err);
    if (!name)
        return img_fail(err, EINVAL, "%s: its format was not given and is "
                        "not to be guessed", file->path);
    *format = find_format(name);
    if (!*format)
        return img_fail(err, ENOTSUP, "%s: unknown format '%s'", file->path,
                        name);
    return 0;
}

/* ---- layers ------------------------------------------------------------ */

static int layer_finish(struct img_layer *l, struct img_error *err)
{
    if (l->format->finish)
        return l->format->finish(l, err);
    return l->format->sync ? l->format->sync(l, err) : 0;
}

static void layer_free(struct img_layer *l)
{
    if (l->format)
        l->format->close(l);
    for (unsigned i = 0; i < l->n_files; i++)
        img_file_close(l->files[i]);
    free(l->files);
    free((char *)l->path);
    free(l->backing);
    free(l->backing_format);
    free(l);
}

/* The same, while the disk stays open: the caches know files by address. */
static void layer_drop(struct img_layer *l)
{
    const struct img_chain *c = l->core;

    for (unsigned i = 0; i < l->n_files; i++) {
        if (!l->files[i])
            continue;
        img_tcache_forget(c->tables, l->files[i], 0, UINT64_MAX);
        img_zcache_forget_file(c->inflated, l->files[i]);
    }
    layer_free(l);
}

/* Owns file, on failure too. */
static struct img_layer *layer_new(struct img_chain *c, struct img_file *file,
                                   bool writable)
{
    struct img_layer *l = calloc(1, sizeof *l);

    if (l) {
        l->files = malloc(sizeof *l->files);
        l->path = strdup(file->path);
    }
    if (!l || !l->files || !l->path) {
        img_file_close(file);
        if (l)
            layer_free(l);
        return NULL;
    }
    l->files[0] = file;
    l->n_files = 1;
    l->writable = writable;
    l->tables = c->tables;
    l->open_file = layer_open_file;
    img_beside_hooks(l);
    l->warn = layer_warn;
    l->core = c;
    return l;
}

static int check_shape(const struct img_layer *l, struct img_error *err)
{
    if (l->size > INT64_MAX || l->cluster_bits < 9 || l->cluster_bits > 31 ||
        !img_is_pow2(l->block) || l->block >> l->cluster_bits > 1)
        return img_fail(err, EFBIG, "%s: a disk of %llu bytes in units of "
                        "2^%u is not supported", l->path,
                        (unsigned long long)l->size, l->cluster_bits);
    return 0;
}

static int layer_open(struct img_layer *l, const struct img_format *format,
                      const struct img_open_options *opts,
                      struct img_error *err)
{
    int r;

    if (l->writable && !(format->info.features & IMG_CAN_WRITE))
        return img_fail(err, ENOTSUP, "%s: format %s cannot be written",
                        l->path, format->info.name);
    if ((opts->window_offset || opts->window_size) &&
        strcmp(format->info.name, "raw"))
        return img_fail(err, EINVAL, "%s: only a raw image can have a window",
                        l->path);
    l->format = format;
    l->repair = opts->flags & IMG_OPEN_REPAIR;
    r = format->open(l, opts, err);
    return r < 0 ? img_chain_name_mistake(l, r, err) : check_shape(l, err);
}

static bool same_file(const struct img_file *a, const struct img_file *b)
{
    return (a->device || a->inode) && a->device == b->device &&
           a->inode == b->inode;
}

static int refuse_loop(const struct img_chain *c, unsigned again,
                       struct img_error *err)
{
    char text[300];
    size_t used = 0;

    text[0] = 0;
    for (unsigned d = again; d < c->n && used < sizeof text; d++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s -> ",
                                 c->layers[d]->path);
    return img_fail(err, EINVAL, "%s: the chain of backing files is a loop: "
                    "%s%s", c->layers[again]->path, text,
                    used < sizeof text ? c->layers[again]->path : "...");
}

/* Owns file, on failure too. */
static int push_layer(struct img_chain *c, struct img_file *file,
                      const struct img_format *format, bool writable,
                      const struct img_open_options *opts,
                      struct img_error *err)
{
    unsigned room = c->room ? 2 * c->room : 4;
    struct img_layer *l, **more;
    int r = 0;

    for (unsigned d = 0; d < c->n && r == 0; d++)
        if (same_file(c->layers[d]->files[0], file))
            r = refuse_loop(c, d, err);
    if (r == 0 && c->n == IMG_CHAIN_MAX)
        r = img_fail(err, EINVAL, "%s: the chain of backing files is longer "
                     "than %d", c->layers[0]->path, IMG_CHAIN_MAX);
    if (r == 0 && c->n == c->room) {
        more = realloc(c->layers, room * sizeof *more);
        if (more) {
            c->layers = more;
            c->room = room;
        } else {
            r = img_fail_nomem(err);
        }
    }
    if (r < 0) {
        img_file_close(file);
        return r;
    }
    l = layer_new(c, file, writable);
    if (!l)
        return img_fail_nomem(err);
    c->layers[c->n++] = l;      /* open_file looks there */
    r = layer_open(l, format, opts, err);
    if (r < 0) {
        c->n--;
        layer_drop(l);
    }
    return r;
}

/* After every change of the list of layers. */
static void look_over(struct img_chain *c)
{
    img_flat_free(c->flat);
    c->flat = img_flat_new(c, cache_budget(&c->opts) / 5);
    c->writable = false;
    c->align = 1;
    for (unsigned d = 0; d < c->n; d++) {
        const struct img_layer *l = c->layers[d];

        c->writable |= l->writable;
        for (unsigned i = 0; i < l->n_files; i++)
            if (l->files[i] && l->files[i]->align > c->align)
                c->align = l->files[i]->align;
    }
}

/* ---- opening ----------------------------------------------------------- */

/* Tells the last layer how its format came to be known. */
static int note_guess(struct img_chain *c, const char *given,
                      struct img_error *err)
{
    struct img_layer *l = c->layers[c->n - 1];
    const char *name;
    int r;

    l->guessed = !given && !strcmp(l->format->info.name, "raw");
    if (!l->guessed)
        return 0;
    r = img_chain_doubt(l->files[0], &name, err);
    if (r == 0 && name)
        l->warn(l, "%s: ends as %s does, but it is taken for a raw disk, byte "
                "by byte; with its format given there is no doubt", l->path,
                name);
    return r;
}

/* Owns file, which may be NULL. */
static int open_top(struct img_chain *c, const char *path, int fd,
                    struct img_file *file, struct img_error *err)
{
    bool writable = c->opts.flags & IMG_OPEN_WRITE;
    const struct img_format *format = NULL;
    int r = 0;

    if (fd >= 0)
        r = img_file_from_fd(fd, path, file_flags(c, writable), &file, err);
    else if (!file)
        r = img_file_open(path, file_flags(c, writable) | IMG_FILE_BY_USER,
                          &file, err);
    if (r < 0)
        return r;
    r = choose_format(c->opts.format, c->opts.flags & IMG_OPEN_PROBE, file,
                      &format, err);
    if (r == 0)
        r = img_chain_lock(c, file, writable, err);
    if (r < 0) {
        img_file_close(file);
        return r;
    }
    r = push_layer(c, file, format, writable, &c->opts, err);
    if (r == 0)
        r = note_guess(c, c->opts.format, err);
    return r;
}

/* Which file is below the layer, if any, and in which format. */
struct below {
    const char *name;           /* NULL = none */
    const char *format;         /* NULL = not said */
    bool recorded;              /* by the image, not by the caller */
};

static struct below look_below(const struct img_chain *c,
                               const struct img_layer *l)
{
    struct below b = { l->backing, l->backing_format, true };
    bool top = l == c->layers[0];

    if (top && c->opts.backing) {
        b.name = *c->opts.backing ? c->opts.backing : NULL;
        b.format = c->opts.backing_format;
        b.recorded = false;
    } else if (top && !b.format) {
        b.format = c->opts.backing_format;
    }
    if (c->opts.flags & IMG_OPEN_NO_BACKING)
        b.name = NULL;
    return b;
}

static int open_below(struct img_chain *c, struct img_layer *l,
                      const struct below *b, struct img_error *err)
{
    unsigned probing = IMG_OPEN_PROBE_BACKING |
                       (b->recorded ? 0 : IMG_OPEN_PROBE);
    bool may_probe = c->opts.flags & probing;
    struct img_open_options opts = c->opts;
    const struct img_format *format = NULL;
    struct img_file *file;
    int r;

    if (!b->format && !may_probe)
        return img_fail(err, EINVAL, "%s: no format is recorded for its "
                        "backing file '%s', and it is not to be guessed",
                        l->path, b->name);
    if (b->recorded)
        r = open_named(c, l, b->name, false, &file, err);
    else
        r = img_file_open(b->name, file_flags(c, false) | IMG_FILE_BY_USER,
                          &file, err);
    if (r < 0)
        return b->recorded ? img_fail_prefix(err, r, "%s: backing file",
                                             l->path) : r;
    r = choose_format(b->format, may_probe, file, &format, err);
    if (r == 0)
        r = img_chain_lock(c, file, false, err);
    if (r < 0) {
        img_file_close(file);
        return r;
    }
    if (!b->format && b->recorded)
        l->warn(l, "%s: no format is recorded for its backing file '%s'; it "
                "looks like %s", l->path, b->name, format->info.name);
    opts.flags &= ~(unsigned)(IMG_OPEN_WRITE | IMG_OPEN_REPAIR);
    opts.snapshot = NULL;
    opts.backing = opts.backing_format = NULL;  /* were for the top */
    opts.window_offset = opts.window_size = 0;
    r = push_layer(c, file, format, false, &opts, err);
    if (r == 0)
        r = note_guess(c, b->format, err);
    if (r == 0 && l->format->check_base &&
        (b->recorded || l->format->checks_given))
        r = l->format->check_base(l, c->layers[c->n - 1], err);
    return r;
}

/* Layer after layer below the last one. */
static int open_rest(struct img_chain *c, struct img_error *err)
{
    int r = 0;

    while (r == 0) {
        struct img_layer *l = c->layers[c->n - 1];
        struct below b = look_below(c, l);

        if (!b.name)
            break;
        r = open_below(c, l, &b, err);
    }
    return r;
}

static int open_all(struct img_chain *c, const char *path, int fd,
                    struct img_file *file, struct img_error *err)
{
    int r = open_top(c, path, fd, file, err);

    if (r == 0)
        r = open_rest(c, err);
    look_over(c);
    return r;
}

int img_chain_open(const char *path, int fd, struct img_file *file,
                   const struct img_open_options *opts,
                   struct img_chain **chain, struct img_error *err)
{
    uint64_t budget = cache_budget(opts);
    struct img_chain *c = calloc(1, sizeof *c);
    int r;

    r = c ? img_tcache_new(budget / 5 * 3, &c->tables, err)
          : img_fail_nomem(err);
    if (r == 0)
        r = img_zcache_new(budget / 5, &c->inflated, err);
    if (r == 0)
        r = img_policy_check(opts->allow_files, opts->allow_dir, err);
    if (r == 0 && opts->snapshot && (opts->flags & IMG_OPEN_WRITE))
        r = img_fail(err, EINVAL, "%s: a snapshot can only be read", path);
    if (r == 0 && (opts->flags & IMG_OPEN_DESCRIBE) &&
        (opts->flags & IMG_OPEN_WRITE))
        r = img_fail(err, EINVAL, "%s: what is only described is not written",
                     path);
    if (r == 0 && opts->allow_dir) {
        c->allow_dir = strdup(opts->allow_dir);
        r = c->allow_dir ? 0 : img_fail_nomem(err);
    }
    if (r < 0) {
        if (fd >= 0)
            close(fd);
        img_file_close(file);
    } else {
        c->opts = *opts;
        c->opts.allow_dir = c->allow_dir;
        c->from_fd = fd >= 0;
        c->backing_given = opts->backing;
        r = open_all(c, path, fd, file, err);
    }
    if (r < 0) {
        if (c)
            img_chain_close(c, NULL);
        return r;
    }
    /* The strings are the caller's and may go. */
    c->opts.format = c->opts.snapshot = NULL;
    c->opts.backing = c->opts.backing_format = NULL;
    *chain = c;
    return 0;
}

int img_chain_close(struct img_chain *c, struct img_error *err)
{
    int first = 0;

    for (unsigned d = 0; d < c->n; d++) {
        struct img_layer *l = c->layers[d];
        int r = 0;

        if (l->writable)
            r = layer_finish(l, first ? NULL : err);
        if (first == 0)
            first = r;
        layer_free(l);
    }
    img_flat_free(c->flat);
    img_tcache_free(c->tables);
    img_zcache_free(c->inflated);
    img_beside_free(c);
    free(c->layers);
    free(c->allow_dir);
    free(c);
    return first;
}

/* ---- opening a layer anew ---------------------------------------------- */

static int open_again(const struct img_chain *c, unsigned d, bool writable,
                      struct img_file **file, struct img_error *err)
{
    const struct img_layer *l = c->layers[d];
    unsigned flags = file_flags(c, writable);
    struct img_file *f;
    int r;

    if (l->files[0]->fd < 0)
        flags |= IMG_FILE_BY_USER;      /* it is a server already */
    if (d == 0 && c->from_fd)
        return img_fail(err, EACCES, "%s: came as a descriptor and cannot be "
                        "opened anew", l->path);
    if (d == 0 || !c->opts.resolve || (d == 1 && c->backing_given))
        r = img_file_open(l->path, flags, &f, err);
    else
        r = open_named(c, c->layers[d - 1], c->layers[d - 1]->backing,
                       writable, &f, err);
    if (r < 0)
        return r;
    if (!same_file(f, l->files[0])) {
        img_file_close(f);
        return img_fail(err, EBUSY, "%s: another file has this name now",
                        l->path);
    }
    *file = f;
    return 0;
}

static void lock_layer(const struct img_chain *c, const struct img_layer *l,
                       bool hold)
{
    for (unsigned i = 0; i < l->n_files; i++)
        if (l->files[i] && hold)
            img_chain_lock(c, l->files[i], l->files[i]->writable, NULL);
        else if (l->files[i])
            img_file_lock(l->files[i], 0, IMG_PERM_ALL, NULL);
}

int img_chain_reopen(struct img_chain *c, unsigned d, bool writable,
                     struct img_error *err)
{
    struct img_layer *old = c->layers[d], *l;
    struct img_open_options opts = c->opts;
    struct img_file *file = NULL;
    int r = 0;

    opts.flags &= ~(unsigned)(IMG_OPEN_WRITE | IMG_OPEN_REPAIR);
    opts.flags |= writable ? IMG_OPEN_WRITE : 0;
    if (old->writable)
        r = layer_finish(old, err);
    if (r == 0)
        r = open_again(c, d, writable, &file, err);
    if (r < 0)
        return r;
    lock_layer(c, old, false);
    r = img_chain_lock(c, file, writable, err);
    l = layer_new(c, file, writable);
    if (!l)
        r = img_fail_nomem(err);
    else if (r == 0)
        r = layer_open(l, old->format, &opts, err);
    if (r < 0) {
        if (l)
            layer_drop(l);
        lock_layer(c, old, true);
        return r;
    }
    l->guessed = old->guessed;
    layer_drop(old);
    c->layers[d] = l;
    look_over(c);
    return 0;
}

int img_chain_reopen_below(struct img_chain *c, struct img_error *err)
{
    unsigned n_old = c->n - 1;
    img_autofree struct img_layer **old = calloc(n_old + 1, sizeof *old);
    bool was_given = c->backing_given;
    int r;

    if (!old)
        return img_fail_nomem(err);
    img_flat_free(c->flat);
    c->flat = NULL;
    memcpy(old, c->layers + 1, n_old * sizeof *old);
    c->n = 1;
    c->backing_given = false;
    r = open_rest(c, err);
    if (r < 0) {
        while (c->n > 1)
            layer_drop(c->layers[--c->n]);
        /* The array has had room for these before. */
        memcpy(c->layers + 1, old, n_old * sizeof *old);
        c->n = n_old + 1;
        c->backing_given = was_given;
    } else {
        for (unsigned d = 0; d < n_old; d++)
            layer_drop(old[d]);
    }
    look_over(c);
    return r;
}
