/* Changing a disk's size.
 *
 * What growing adds reads as zeros.  Two things speak against that: a backing
 * file that is longer than the overlay was, and old bytes behind the end in
 * the last cluster.  Both are cleared before the file says the new size, where
 * the format can do that, so that a crash shows neither.
 */
#include "ops/resize.h"
#include "core/disk.h"
#include "base/checked.h"
#include "base/error.h"
#include "file/file.h"
#include "ops/convert.h"
#include "ops/dependants.h"

/* Must this run of [from, end) be cleared?  Data of the layer itself only
 * where the old last cluster goes on: behind that it is preallocated. */
static bool is_stale(const struct img_run *run, unsigned depth, unsigned own,
                     uint64_t cluster_end)
{
    if (run->kind == IMG_RUN_ABSENT || run->kind == IMG_RUN_ZERO)
        return false;
    return depth > own || run->off < cluster_end;
}

static int clear_growth(struct img_io *io, unsigned depth, uint64_t from,
                        struct img_error *err)
{
    const struct img_layer *l = io->chain->layers[depth];
    uint64_t cluster = UINT64_C(1) << l->cluster_bits;
    uint64_t cluster_end = img_round_up(from, cluster);
    uint64_t off = from;
    int r = 0;

    while (r == 0 && off < l->size) {
        struct img_run run = { 0 };
        unsigned at;
        uint64_t end;

        r = img_chain_map(io->chain, depth, off, l->size - off, 0, &run, &at,
                          err);
        if (r < 0)
            break;
        end = off + run.len;
        if (at == depth && off < cluster_end)
            end = IMG_MIN(end, cluster_end);
        if (!is_stale(&run, at, depth, cluster_end)) {
            off = end;
            continue;
        }
        /* Whole clusters: the rest of one that is written in part would be
         * filled with what lies below. */
        end = IMG_MIN(img_round_up(end, cluster), l->size);
        r = img_io_zero(io, depth, off, end - off, IMG_MAY_UNMAP, err);
        off = end;
    }
    return r;
}

/* Bytes of a file that ends before them are zeros already. */
static int lies_in_file(const struct img_layer *l, const struct img_run *run,
                        bool *inside, struct img_error *err)
{
    uint64_t size = UINT64_MAX;
    int r = 0;

    if (run->kind == IMG_RUN_DATA)
        r = img_file_size(l->files[run->file], &size, err);
    *inside = run->host < size;
    return r;
}

/* The rest of the last cluster, behind the end that the disk has by now.  No
 * request is in flight, so that for a moment it may end with its cluster. */
static int clear_tail(struct img_io *io, unsigned depth,
                      struct img_error *err)
{
    struct img_layer *l = io->chain->layers[depth];
    uint64_t size = l->size, off = size;
    int r = 0;

    l->size = img_round_up(size, UINT64_C(1) << l->cluster_bits);
    while (r == 0 && off < l->size) {
        struct img_run run = { 0 };
        bool inside = false;
        unsigned at;

        r = img_chain_map(io->chain, depth, off, l->size - off, 0, &run, &at,
                          err);
        if (r == 0 && at == depth &&
            (run.kind == IMG_RUN_DATA || run.kind == IMG_RUN_PACKED))
            r = lies_in_file(l, &run, &inside, err);
        if (r == 0 && inside)
            r = img_io_zero(io, depth, off, run.len, IMG_MAY_UNMAP, err);
        off += run.len;
    }
    l->size = size;
    return r;
}

int img_resize_layer(struct img_io *io, unsigned depth, uint64_t size,
                     enum img_prealloc prealloc, struct img_error *err)
{
    struct img_layer *l = io->chain->layers[depth];
    uint64_t old = l->size;
    int r;

    if (!l->format->resize)
        return img_fail(err, ENOTSUP, "%s: format %s cannot change its size",
                        l->path, l->format->info.name);
    r = img_layer_may_change(l, err);
    if (r < 0)
        return r;
    if (size > INT64_MAX)
        return img_fail(err, EFBIG, "%s: %llu bytes are too many", l->path,
                        (unsigned long long)size);
    if (size > old && l->format->grow) {
        r = l->format->grow(l, size, err);
        if (r == 0)
            r = clear_growth(io, depth, old, err);
        if (r == 0)
            r = img_io_flush(io, depth, err);
        if (r < 0) {
            l->size = old;
            return r;
        }
    }
    r = l->format->resize(l, size, prealloc, err);
    if (r == 0 && size < old && l->format->clear_tail)
        r = clear_tail(io, depth, err);
    if (r == 0 && size > old && !l->format->grow &&
        !img_format_is_identity(l->format))
        r = clear_growth(io, depth, old, err);
    return r;
}

int img_resize(struct img_disk *d, uint64_t size, bool shrink,
               enum img_prealloc prealloc, const struct img_job *job,
               struct img_error *err)
{
    struct img_layer *l = d->chain->layers[0];
    int r = 0;

    img_disk_change_begin(d);
    if (size < l->size && shrink)
        r = img_dependants_refuse(d, 0, 0, "cutting that off", err);
    if (r == 0 && size < l->size && !shrink)
        r = img_fail(err, EINVAL, "%s: what is beyond %llu bytes would be "
                     "lost; shrinking has to be asked for (--shrink)",
                     l->path, (unsigned long long)size);
    else if (r == 0 && size < l->size && prealloc != IMG_PREALLOC_OFF)
        r = img_fail(err, EINVAL, "%s: preallocation is not possible when "
                     "shrinking", l->path);
    else if (r == 0)
        r = img_resize_layer(&d->io, 0, size, prealloc, err);
    if (r == 0)
        r = img_io_flush(&d->io, 0, err);
    img_disk_change_end(d);
    return r;
}
