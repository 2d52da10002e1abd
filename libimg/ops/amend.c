/* Amending: the backing file and the size have functions of their own, the
 * rest is the format's. */
#include "core/disk.h"
#include "base/team.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/strings.h"

#include <string.h>

static bool is_ours(const char *setting)
{
    static const char *const ours[] = { "backing_file", "backing_fmt",
                                        "size" };
    size_t n = strcspn(setting, "=");

    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        if (strlen(ours[i]) == n && !strncmp(setting, ours[i], n))
            return true;
    return false;
}

static int amend_format(struct img_disk *d, const char *const *settings,
                        const struct img_job *job, struct img_error *err)
{
    struct img_layer *l = d->chain->layers[0];
    struct img_strings rest = { 0 };
    int r = 0;

    for (; settings && *settings && r == 0; settings++)
        if (!is_ours(*settings))
            r = img_strings_addf(&rest, err, "%s", *settings);
    if (r == 0 && rest.n && !l->format->amend)
        r = img_fail(err, ENOTSUP, "%s: format %s cannot be amended",
                     l->path, l->format->info.name);
    if (r == 0 && rest.n) {
        img_disk_change_begin(d);
        r = img_io_flush(&d->io, 0, err);
        if (r == 0)
            r = l->format->amend(l, (const char *const *)rest.list, job,
                                 err);
        if (r == 0)
            r = img_io_flush(&d->io, 0, err);
        img_disk_change_end(d);
    }
    img_strings_free(&rest);
    return r;
}

static int amend_backing(struct img_disk *d, const char *const *settings,
                         struct img_error *err)
{
    const char *name = img_setting(settings, "backing_file");
    const char *format = img_setting(settings, "backing_fmt");
    const struct img_layer *l = d->chain->layers[0];
    struct img_rebase_options opts = IMG_REBASE_OPTIONS;
    img_autofree char *same = NULL;
    bool has = false;

    if (!name && !format)
        return 0;
    if (!name) {
        img_read_lock(&d->structure);
        has = l->backing != NULL;
        same = has ? strdup(l->backing) : NULL;
        img_rw_unlock(&d->structure);
        name = same;
    }
    if (has && !name)
        return img_fail_nomem(err);
    if (!name)
        return img_fail(err, EINVAL, "%s: has no backing file whose format "
                        "could be recorded", l->path);
    opts.backing = name;
    opts.backing_format = format;
    opts.unsafe = true;
    return img_rebase(d, &opts, NULL, err);
}

int img_amend(struct img_disk *d, const char *const *settings,
              const struct img_job *job, struct img_error *err)
{
    const struct img_layer *l = d->chain->layers[0];
    bool resized = img_setting(settings, "size");
    uint64_t size = 0;
    int r = img_layer_may_change(l, err);

    if (r < 0)
        return r;
    if (!l->format->amend)
        return img_fail(err, ENOTSUP, "%s: format %s cannot be amended",
                        l->path, l->format->info.name);
    r = img_setting_size(settings, "size", &size, err);
    if (r == 0)
        r = amend_format(d, settings, job, err);
    if (r == 0)
        r = amend_backing(d, settings, err);
    if (r == 0 && resized && size != img_size(d))
        r = img_resize(d, size, false, IMG_PREALLOC_OFF, job, err);
    return r;
}
