/* Reading: runs of the map become transfers, one each.
 *
 * Locks: the request's range, shared, unless no layer is writable: then the
 * map cannot change.
 */
#include "core/request.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/iov.h"
#include "cache/zcache.h"
#include "file/file.h"

#include <stdlib.h>

int img_scatter_init(struct img_scatter *s, const struct iovec *iov, int n,
                     struct img_error *err)
{
    s->iov = iov;
    s->n = n;
    s->part = s->few;
    if ((size_t)n + IMG_SCATTER_EDGES > IMG_COUNT(s->few))
        s->part = malloc(((size_t)n + IMG_SCATTER_EDGES) * sizeof *s->part);
    return s->part ? 0 : img_fail_nomem(err);
}

void img_scatter_free(struct img_scatter *s)
{
    if (s->part != s->few)
        free(s->part);
}

static int read_run(struct img_io *io, unsigned depth,
                    const struct img_run *run, struct img_scatter *s,
                    size_t at, struct img_error *err)
{
    const struct img_layer *l;
    uint64_t cluster, skip;
    int n;

    if (run->kind == IMG_RUN_ABSENT || run->kind == IMG_RUN_ZERO) {
        img_iov_clear(s->iov, s->n, at, (size_t)run->len);
        return 0;
    }
    l = io->chain->layers[depth];
    if (run->kind == IMG_RUN_DATA) {
        n = img_iov_slice(s->iov, s->n, at, (size_t)run->len, s->part);
        return img_file_preadv(l->files[run->file], s->part, n, run->host,
                               err);
    }
    cluster = UINT64_C(1) << l->cluster_bits;
    skip = run->off & (cluster - 1);
    if (skip + run->len > cluster)
        return img_fail(err, EIO, "%s: a packed run of %llu bytes at %llu "
                        "leaves its cluster", l->path,
                        (unsigned long long)run->len,
                        (unsigned long long)run->off);
    return img_zcache_read(io->chain->inflated, l->files[run->file], run,
                           (uint32_t)cluster, (uint32_t)skip,
                           (uint32_t)run->len, s->iov, s->n, at, err);
}

int img_read_range(struct img_io *io, unsigned from, struct img_scatter *s,
                   size_t at, uint64_t off, size_t len, struct img_error *err)
{
    struct img_cursor c;
    int r = 0;

    img_cursor_init(&c, io->chain, from, off, len, 0);
    while (len && r == 0) {
        struct img_run run;
        unsigned depth;

        r = img_cursor_next(&c, &run, &depth, err);
        if (r < 0)
            break;
        r = read_run(io, depth, &run, s, at, err);
        at += (size_t)run.len;
        len -= (size_t)run.len;
    }
    return r;
}

int img_shows_zeros(struct img_io *io, unsigned from, uint64_t off,
                    uint64_t len, bool *zeros, struct img_error *err)
{
    struct img_cursor c;

    *zeros = true;
    img_cursor_init(&c, io->chain, from, off, len, 0);
    while (len) {
        struct img_run run;
        unsigned depth;
        int r = img_cursor_next(&c, &run, &depth, err);

        if (r < 0)
            return r;
        if (run.kind != IMG_RUN_ABSENT && run.kind != IMG_RUN_ZERO) {
            *zeros = false;
            return 0;
        }
        len -= run.len;
    }
    return 0;
}

int img_io_read(struct img_io *io, unsigned from, const struct iovec *iov,
                int n, uint64_t off, struct img_error *err)
{
    const struct img_layer *l = io->chain->layers[from];
    size_t len = img_iov_total(iov, n);
    bool locking = io->chain->writable;
    struct img_scatter s;
    struct img_range range;
    int r;

    if (!img_inside(off, len, l->size))
        return img_fail(err, EINVAL, "%s: reading %zu bytes at %llu: the disk "
                        "has %llu", l->path, len, (unsigned long long)off,
                        (unsigned long long)l->size);
    r = img_scatter_init(&s, iov, n, err);
    if (r < 0)
        return r;
    if (locking)
        img_range_lock(&io->ranges, &range, off, len, false);
    r = img_read_range(io, from, &s, 0, off, len, err);
    if (locking)
        img_range_unlock(&io->ranges, &range);
    img_scatter_free(&s);
    return r;
}

/* Whether it was read. */
static bool read_run_now(struct img_io *io, unsigned depth,
                         const struct img_run *run, struct img_scatter *s,
                         size_t at)
{
    const struct img_layer *l;
    uint64_t cluster, skip;
    int n;

    if (run->kind == IMG_RUN_ABSENT || run->kind == IMG_RUN_ZERO) {
        img_iov_clear(s->iov, s->n, at, (size_t)run->len);
        return true;
    }
    l = io->chain->layers[depth];
    if (run->kind == IMG_RUN_DATA) {
        n = img_iov_slice(s->iov, s->n, at, (size_t)run->len, s->part);
        return img_file_preadv_now(l->files[run->file], s->part, n,
                                   run->host) == 0;
    }
    cluster = UINT64_C(1) << l->cluster_bits;
    skip = run->off & (cluster - 1);
    return skip + run->len <= cluster &&
           img_zcache_read_now(io->chain->inflated, l->files[run->file], run,
                               (uint32_t)cluster, (uint32_t)skip,
                               (uint32_t)run->len, s->iov, s->n, at);
}

static int read_range_now(struct img_io *io, struct img_scatter *s,
                          uint64_t off, size_t len)
{
    struct img_cursor c;
    size_t at = 0;

    img_cursor_init(&c, io->chain, 0, off, len, IMG_RUN_CACHED);
    while (at < len) {
        struct img_run run;
        unsigned depth;

        if (img_cursor_next(&c, &run, &depth, NULL) < 0 ||
            !read_run_now(io, depth, &run, s, at))
            return -EAGAIN;
        at += (size_t)run.len;
    }
    return 0;
}

int img_io_read_now(struct img_io *io, const struct iovec *iov, int n,
                    uint64_t off)
{
    size_t len = img_iov_total(iov, n);
    bool locking = io->chain->writable;
    struct img_scatter s;
    struct img_range range;
    int r;

    if (!img_inside(off, len, io->chain->layers[0]->size) ||
        img_scatter_init(&s, iov, n, NULL) < 0)
        return -EAGAIN;
    r = -EAGAIN;
    if (!locking || img_range_try(&io->ranges, &range, off, len, false)) {
        r = read_range_now(io, &s, off, len);
        if (locking)
            img_range_unlock(&io->ranges, &range);
    }
    img_scatter_free(&s);
    return r;
}

/* May bytes that have left this layer in the shape of its pages be read there
 * later?  Not where their place may come to hold other guest bytes. */
static bool places_stay(const struct img_layer *l)
{
    return !l->writable || (l->format->reserve && !l->format->publish);
}

int img_io_splice_now(struct img_io *io, int pipe, size_t len, uint64_t off)
{
    bool locking = io->chain->writable;
    const struct img_layer *l;
    struct img_cursor c;
    struct img_range range;
    struct img_run run;
    unsigned depth;
    int r;

    if (!len || !img_inside(off, len, io->chain->layers[0]->size) ||
        (locking && !img_range_try(&io->ranges, &range, off, len, false)))
        return -EAGAIN;
    img_cursor_init(&c, io->chain, 0, off, len, IMG_RUN_CACHED);
    r = img_cursor_next(&c, &run, &depth, NULL);
    if (r == 0 && run.kind == IMG_RUN_DATA && run.len == len) {
        l = io->chain->layers[depth];
        if (places_stay(l))
            r = img_file_splice_now(l->files[run.file], pipe, len, run.host);
        else
            r = -EAGAIN;
    } else {
        r = -EAGAIN;
    }
    if (locking)
        img_range_unlock(&io->ranges, &range);
    return r;
}
