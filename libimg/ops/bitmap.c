/* Bitmaps: edit, merge, copy, ask.  What a bitmap is, only the format
 * knows. */
#include "ops/convert.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/info.h"

#include <stdio.h>
#include <string.h>

static struct img_layer *top(const struct img_disk *d)
{
    return d->chain->layers[0];
}

static int need_bitmaps(const struct img_layer *l, struct img_error *err)
{
    if (l->format->bitmaps)
        return 0;
    return img_fail(err, ENOTSUP, "%s: format %s has no bitmaps", l->path,
                    l->format->info.name);
}

int img_bitmap_edit(struct img_disk *d, const char *name,
                    enum img_bitmap_verb verb, uint32_t granularity,
                    struct img_error *err)
{
    struct img_layer *l = top(d);
    int r = need_bitmaps(l, err);

    if (r == 0)
        r = img_layer_may_change(l, err);
    if (r < 0)
        return r;
    img_write_lock(&d->structure);
    r = l->format->bitmaps->edit(l, name, verb, granularity, err);
    img_rw_unlock(&d->structure);
    return r;
}

/* Marks in `to` what is set in `from`; both are locked. */
static int merge(struct img_layer *to, const char *to_name,
                 struct img_layer *from, const char *from_name,
                 struct img_error *err)
{
    uint64_t off = 0, run = 0, end = IMG_MIN(from->size, to->size);
    int r = 0;

    while (r == 0 && off < end) {
        bool dirty = false;

        r = from->format->bitmaps->map(from, from_name, off, end - off, &run,
                                       &dirty, err);
        if (r == 0 && !run)
            r = img_fail(err, EIO, "%s: bitmap %s: no answer for offset %llu",
                         from->path, from_name, (unsigned long long)off);
        if (r == 0 && dirty)
            r = to->format->bitmaps->mark(to, to_name, off, run, err);
        off += run;
    }
    return r;
}

int img_bitmap_merge(struct img_disk *to, const char *to_name,
                     struct img_disk *from, const char *from_name,
                     struct img_error *err)
{
    struct img_layer *t = top(to), *f = top(from);
    int r = need_bitmaps(t, err);

    if (r == 0)
        r = need_bitmaps(f, err);
    if (r == 0)
        r = img_layer_may_change(t, err);
    if (r == 0 && f->size > t->size)
        r = img_fail(err, EINVAL, "%s: is smaller than %s: bitmap '%s' does "
                     "not fit into '%s'", t->path, f->path, from_name,
                     to_name);
    if (r < 0)
        return r;
    img_write_lock(&to->structure);
    if (from != to)
        img_read_lock(&from->structure);
    r = merge(t, to_name, f, from_name, err);
    if (from != to)
        img_rw_unlock(&from->structure);
    img_rw_unlock(&to->structure);
    return r;
}

int img_bitmap_map(struct img_disk *d, const char *name, uint64_t off,
                   uint64_t len, struct img_extent *extent,
                   struct img_error *err)
{
    struct img_layer *l = top(d);
    uint64_t run = 0;
    bool dirty = false;
    int r = need_bitmaps(l, err);

    if (r == 0 && (!len || !img_inside(off, len, l->size)))
        r = img_fail(err, EINVAL, "%s: %llu bytes at %llu are not inside the "
                     "disk", l->path, (unsigned long long)len,
                     (unsigned long long)off);
    if (r < 0)
        return r;
    img_read_lock(&d->structure);
    r = l->format->bitmaps->map(l, name, off, len, &run, &dirty, err);
    img_rw_unlock(&d->structure);
    if (r < 0)
        return r;
    *extent = (struct img_extent){
        .off = off, .len = run, .kind = IMG_DATA, .host_off = UINT64_MAX,
        .dirty = dirty,
    };
    return 0;
}

/* ---- convert --bitmaps ------------------------------------------------- */

static int skip_broken(const struct img_convert_options *opts,
                       const struct img_bitmap_info *b, const char *path,
                       struct img_error *err)
{
    char line[512];

    if (!opts->skip_broken_bitmaps)
        return img_fail(err, EINVAL, "%s: bitmap '%s' is inconsistent and "
                        "cannot be copied", path, b->name);
    snprintf(line, sizeof line, "%s: leaving out inconsistent bitmap '%s'",
             path, b->name);
    if (opts->warn)
        opts->warn(opts->warn_opaque, line);
    return 0;
}

static int copy_one(struct img_layer *from, struct img_layer *to,
                    const struct img_bitmap_info *b, struct img_error *err)
{
    const struct img_bitmap_ops *ops = to->format->bitmaps;
    int r = ops->edit(to, b->name, IMG_BITMAP_ADD, b->granularity, err);
    bool added = r == 0;

    if (r == 0)
        r = merge(to, b->name, from, b->name, err);
    if (r == 0 && !b->enabled)
        r = ops->edit(to, b->name, IMG_BITMAP_DISABLE, 0, err);
    /* Half of the bits are worse than none. */
    if (r < 0 && added)
        ops->edit(to, b->name, IMG_BITMAP_REMOVE, 0, NULL);
    return r;
}

/* The structure of both disks is locked. */
int img_bitmaps_copy(struct img_disk *from, struct img_disk *to,
                     const struct img_convert_options *opts,
                     struct img_error *err)
{
    struct img_layer *f = top(from), *t = top(to);
    struct img_info *info;
    int r = need_bitmaps(f, err);

    if (r == 0)
        r = need_bitmaps(t, err);
    if (r < 0)
        return r;
    info = img_info_new();
    r = info ? f->format->describe(f, info, err) : img_fail_nomem(err);
    for (size_t i = 0; r == 0 && i < info->n_bitmaps; i++) {
        const struct img_bitmap_info *b = &info->bitmaps[i];

        if (b->inconsistent)
            r = skip_broken(opts, b, f->path, err);
        else
            r = copy_one(f, t, b, err);
    }
    img_info_free(info);
    return r;
}
