/* Telling what a disk is made of: img_map and img_info_get. */
#include "core/disk.h"
#include "core/path.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/info.h"
#include "file/file.h"

#include <stdlib.h>
#include <sys/stat.h>

/* ---- what is where ----------------------------------------------------- */

static void to_extent(const struct img_run *run, unsigned depth,
                      struct img_extent *e)
{
    static const enum img_kind kinds[] = {
        [IMG_RUN_ABSENT] = IMG_HOLE, [IMG_RUN_ZERO] = IMG_ZEROS,
        [IMG_RUN_DATA] = IMG_DATA, [IMG_RUN_PACKED] = IMG_COMPRESSED,
    };

    *e = (struct img_extent){
        .off = run->off, .len = run->len, .kind = kinds[run->kind],
        .depth = depth, .file = run->file, .host_off = UINT64_MAX,
        .sparse = run->kind == IMG_RUN_ZERO && run->sparse,
    };
    if (run->kind != IMG_RUN_PACKED)
        e->host_off = run->host;
}

/* Packed clusters have no place of their own in the answer, so that those
 * that follow each other are one extent. */
static bool joins(const struct img_extent *e, const struct img_run *run,
                  unsigned depth)
{
    return run->kind == IMG_RUN_PACKED && e->kind == IMG_COMPRESSED &&
           depth == e->depth && run->file == e->file;
}

/* What is wrong further on is reported when it is what is asked for. */
static int list(struct img_cursor *c, struct img_extent *extents,
                size_t room, size_t *n, struct img_error *err)
{
    struct img_run run;
    unsigned depth;

    *n = 0;
    while (c->ahead || c->off < c->end) {
        int r = img_cursor_next(c, &run, &depth, *n ? NULL : err);

        if (r < 0)
            return *n ? 0 : r;
        if (*n && joins(&extents[*n - 1], &run, depth))
            extents[*n - 1].len += run.len;
        else if (*n == room)
            break;
        else
            to_extent(&run, depth, &extents[(*n)++]);
        if (*n == room && run.kind != IMG_RUN_PACKED)
            break;
    }
    return 0;
}

static int map(struct img_disk *d, uint64_t off, uint64_t len,
               unsigned flags, struct img_extent *extents, size_t room,
               size_t *n, struct img_error *err)
{
    struct img_chain view = *d->chain;
    struct img_cursor c;
    int r;

    if (!len || !img_inside(off, len, view.layers[0]->size))
        return img_fail(err, EINVAL, "%s: mapping %llu bytes at %llu: the "
                        "disk has %llu", d->path, (unsigned long long)len,
                        (unsigned long long)off,
                        (unsigned long long)view.layers[0]->size);
    if (flags & IMG_MAP_TOP)
        view.n = 1;
    img_cursor_init(&c, &view, 0, off, len,
                    (flags & IMG_MAP_EXACT ? IMG_RUN_EXACT : 0) |
                    (flags & IMG_MAP_NOW ? IMG_RUN_CACHED : 0) |
                    (flags & IMG_MAP_PLACES ? IMG_RUN_PLACES : 0));
    if ((flags & IMG_MAP_EXACT) && room > 1) {
        c.holes = calloc(1, sizeof *c.holes);   /* it goes without, too */
    }
    r = list(&c, extents, room, n, err);
    free(c.holes);
    return r;
}

/* No range is locked: formats answer each map call from one consistent state,
 * and what is said may be old by the time that it arrives. */
int img_map_list(struct img_disk *d, uint64_t off, uint64_t len,
                 unsigned flags, struct img_extent *extents, size_t room,
                 size_t *n, struct img_error *err)
{
    int r;

    if (!room)
        return img_fail(err, EINVAL, "%s: mapping into no extents", d->path);
    if (!(flags & IMG_MAP_NOW))
        img_read_lock(&d->structure);
    else if (!img_try_read_lock(&d->structure))
        return -EAGAIN;
    r = map(d, off, len, flags, extents, room, n, err);
    img_rw_unlock(&d->structure);
    return r;
}

int img_map(struct img_disk *d, uint64_t off, uint64_t len, unsigned flags,
            struct img_extent *extent, struct img_error *err)
{
    size_t n;

    return img_map_list(d, off, len, flags, extent, 1, &n, err);
}

/* ---- what it is -------------------------------------------------------- */

static int backing_path(const struct img_chain *c, unsigned depth,
                        struct img_info *info, struct img_error *err)
{
    const struct img_layer *l = c->layers[depth];
    char *path;
    int r;

    if (depth + 1 < c->n)
        return img_info_text(&info->backing_path, c->layers[depth + 1]->path,
                             err);
    if (!l->backing)
        return 0;
    path = img_path_beside(l->path, l->backing);
    if (!path)
        return img_fail_nomem(err);
    r = img_info_text(&info->backing_path, path, err);
    free(path);
    return r;
}

/* Only looked at from outside: who describes an image does not want what it
 * names to be opened. */
static enum img_base_state base_state(const struct img_chain *c,
                                      unsigned depth, const char *path)
{
    const struct img_layer *l = c->layers[depth];
    uint64_t length, modified, now;
    struct stat st;

    if (!path || !l->format->noted_base || c->opts.resolve ||
        (c->opts.allow_files != IMG_FILES_LOCAL &&
         c->opts.allow_files != IMG_FILES_ANY) || (depth == 0 && c->from_fd))
        return IMG_BASE_UNKNOWN;
    if (!l->format->noted_base(l, &length, &modified) ||
        stat(path, &st) < 0 || !S_ISREG(st.st_mode))
        return IMG_BASE_UNKNOWN;
    now = (uint64_t)st.st_mtim.tv_sec * 1000000000 +
          (uint64_t)st.st_mtim.tv_nsec;
    return (uint64_t)st.st_size != length ? IMG_BASE_CHANGED
           : now != modified ? IMG_BASE_TOUCHED : IMG_BASE_SAME;
}

static int describe(const struct img_chain *c, unsigned depth,
                    struct img_info *info, struct img_error *err)
{
    struct img_layer *l = c->layers[depth];
    int r;

    info->size = l->size;
    for (unsigned i = 0; i < l->n_files; i++) {
        uint64_t n = l->files[i] ? img_file_allocated(l->files[i]) : 0;

        info->allocated = n == UINT64_MAX || info->allocated == UINT64_MAX
                              ? UINT64_MAX : info->allocated + n;
    }
    r = img_file_size(l->files[0], &info->file_length, err);
    if (r == 0)
        r = img_info_text(&info->path, l->path, err);
    if (r == 0)
        r = img_info_text(&info->format, l->format->info.name, err);
    if (r == 0)
        r = img_info_text(&info->backing, l->backing, err);
    if (r == 0)
        r = img_info_text(&info->backing_format, l->backing_format, err);
    if (r == 0)
        r = backing_path(c, depth, info, err);
    info->base_state = base_state(c, depth, info->backing_path);
    if (r == 0 && l->format->describe)
        r = l->format->describe(l, info, err);
    return r;
}

int img_info_get(struct img_disk *d, struct img_info **info,
                 struct img_error *err)
{
    struct img_info *below = NULL;
    int r = 0;

    img_read_lock(&d->structure);
    for (unsigned depth = d->chain->n; depth-- > 0 && r == 0;) {
        struct img_info *i = img_info_new();

        if (!i) {
            r = img_fail_nomem(err);
            break;
        }
        i->below = below;
        below = i;
        r = describe(d->chain, depth, i, err);
    }
    img_rw_unlock(&d->structure);
    if (r < 0) {
        img_info_free(below);
        return r;
    }
    *info = below;
    return 0;
}
