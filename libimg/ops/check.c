/* Checking and repairing: alone on the disk, then the format's work. */
#include "core/disk.h"
#include "base/team.h"
#include "base/error.h"
#include "base/options.h"

#include <string.h>

int img_check(struct img_disk *d, const struct img_check_options *opts,
              const struct img_job *job, struct img_check_result *result,
              struct img_error *err)
{
    struct img_layer *l = d->chain->layers[0];
    struct img_check_options known;
    int r;

    memset(result, 0, sizeof *result);
    r = img_options_take(&known, sizeof known, opts, err);
    if (r < 0)
        return r;
    if (d->chain->opts.flags & IMG_OPEN_DESCRIBE)
        return img_fail(err, EINVAL, "%s: was opened to be described, not "
                        "checked", l->path);
    if (!l->format->check)
        return img_fail(err, ENOTSUP, "%s: format %s has no checks", l->path,
                        l->format->info.name);
    if (known.repair & ~(unsigned)IMG_REPAIR_ALL)
        return img_fail(err, EINVAL, "%s: unknown kind of repair 0x%x",
                        l->path, known.repair);
    if (known.repair && !l->writable)
        return img_fail(err, EROFS, "%s: not open for writing", l->path);
    img_disk_change_begin(d);
    r = img_io_flush(&d->io, 0, err);
    if (r == 0)
        r = l->format->check(l, &known, job, result, err);
    img_disk_change_end(d);
    return r;
}
