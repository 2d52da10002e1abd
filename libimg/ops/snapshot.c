/* Internal snapshots: alone on the disk, then the format's work. */
#include "ops/dependants.h"
#include "base/error.h"

enum verb { CREATE, APPLY, REMOVE };

static int call(struct img_layer *l, enum verb verb, const char *name,
                struct img_error *err)
{
    const struct img_snapshot_ops *ops = l->format->snapshots;

    switch (verb) {
    case CREATE:
        return ops->create(l, name, err);
    case APPLY:
        return ops->apply(l, name, err);
    default:
        return ops->remove(l, name, err);
    }
}

static int snapshot(struct img_disk *d, enum verb verb, const char *name,
                    struct img_error *err)
{
    struct img_layer *l = d->chain->layers[0];
    int r;

    if (!l->format->snapshots)
        return img_fail(err, ENOTSUP, "%s: format %s has no internal "
                        "snapshots", l->path, l->format->info.name);
    r = img_layer_may_change(l, err);
    if (r < 0)
        return r;
    img_disk_change_begin(d);
    if (verb == APPLY)
        r = img_dependants_refuse(d, 0, 0, "going back to a snapshot of that",
                                  err);
    if (r == 0)
        r = img_io_flush(&d->io, 0, err);
    if (r == 0)
        r = call(l, verb, name, err);
    img_disk_change_end(d);
    return r;
}

int img_snapshot_create(struct img_disk *d, const char *name,
                        struct img_error *err)
{
    return snapshot(d, CREATE, name, err);
}

int img_snapshot_apply(struct img_disk *d, const char *name,
                       struct img_error *err)
{
    return snapshot(d, APPLY, name, err);
}

int img_snapshot_delete(struct img_disk *d, const char *name,
                        struct img_error *err)
{
    return snapshot(d, REMOVE, name, err);
}
