/* Converting to what can only be written from front to back. */
#include "ops/convert.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/strings.h"
#include "base/runs.h"
#include "file/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct fd_writer {
    int fd;
    bool workers;               /* they write; and somebody else watches */
    struct img_pace pace;
};

static int write_to_fd(void *opaque, const void *buf, size_t len,
                       struct img_error *err)
{
    struct fd_writer *w = opaque;
    const char *from = buf;

    while (len) {
        int r = w->workers ? 0 : img_pace_tell(&w->pace, err);
        ssize_t n;

        if (r < 0)
            return r;
        n = write(w->fd, from, len);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return img_fail_errno(err, errno, "Writing to the stream");
        from += n;
        len -= (size_t)n;
    }
    return 0;
}

static const char *backing_of(const struct img_convert *cv)
{
    const char *name = cv->create.backing;

    if (!name)
        name = img_setting(cv->create.settings, "backing_file");
    return name && *name ? name : NULL;
}

/* The workers write meanwhile. */
static int copy_to_fd(struct img_convert *cv, struct fd_writer *w,
                      struct img_error *err)
{
    int r;

    w->workers = true;
    r = img_copy_run(&cv->copy, cv->job, err);
    w->workers = false;
    w->pace.done = w->pace.total;
    return r;
}

/* What a stream carries has no folder. */
static int refuse_relative(const struct img_convert *cv, struct img_error *err)
{
    const char *name = backing_of(cv);

    if (!name || *name == '/')
        return 0;
    return img_fail(err, EINVAL, "A stream has no folder: the backing file "
                    "'%s' must be an absolute path", name);
}

/* Deflate never makes a cluster longer by more than a few bytes a block. */
static uint32_t packing_slack(uint32_t unit)
{
    return unit / 16 + 1024;
}

static void prepare_sink(struct img_convert *cv)
{
    const struct img_sink_ops *ops = cv->format->sink;
    struct img_copy *c = &cv->copy;

    c->sink_ops = ops;
    c->outlet = &img_outlet_sink;
    c->ordered = true;
    c->target_zero = true;
    c->pack = !ops->plan;
    c->codec = ops->codec;
    c->unit = ops->cluster_size(c->sink);
    c->slack = packing_slack(c->unit);
}

int img_convert_to_sink(struct img_convert *cv, struct img_making *making,
                        img_write_fn *write, void *opaque, bool *begun,
                        struct img_error *err)
{
    const struct img_sink_ops *ops = cv->format->sink;
    struct img_copy *c = &cv->copy;
    int r = ops->begin(&making->build, write, opaque, &c->sink, err);

    if (r < 0)
        return r;
    *begun = true;
    prepare_sink(cv);
    if (cv->opts.bitmaps)
        r = img_fail(err, ENOTSUP, "%s: format %s has no bitmaps",
                     making->build.path, cv->format->info.name);
    if (r == 0)
        r = img_copy_run(c, cv->job, err);
    if (r == 0)
        r = ops->finish(c->sink, err);
    ops->free(c->sink);
    c->sink = NULL;
    return r;
}

/* ---- by a plan --------------------------------------------------------- */

/* Is the file a layer below some source's top?  Then the maps tell what the
 * source has of its own; else only reading does. */
static bool rests_on(const struct img_convert *cv, const struct img_layer *l)
{
    for (size_t i = 0; i < cv->n_from; i++) {
        const struct img_chain *chain = cv->from[i]->chain;

        for (unsigned d = 0; d < chain->n; d++)
            if (img_file_is_same(chain->layers[d]->files[0], l->files[0]))
                return true;
    }
    return false;
}

/* Does nothing take a second look at what was read or written?  (Behind the
 * source's end a larger target has nothing; over a backing file it would have
 * to be zeros.) */
static bool maps_will_do(const struct img_convert *cv,
                         const struct img_making *m)
{
    const struct img_layer *base = m->build.backing;

    return !cv->opts.compress && !cv->opts.bitmaps && !cv->opts.sparse_bytes &&
           (!base || (m->build.opts->disk_size == cv->copy.source.size &&
                      rests_on(cv, base)));
}

static int write_by_plan(struct img_convert *cv, struct fd_writer *w,
                         const struct img_runs *plan, struct img_error *err)
{
    struct img_copy *c = &cv->copy;
    int r = c->sink_ops->plan(c->sink, plan, err);

    if (r < 0)
        return r;
    c->plan = plan;
    r = copy_to_fd(cv, w, err);
    if (r == 0 && !c->salvage)
        r = img_plan_still_holds(c, &w->pace, err);
    if (r == 0)
        r = c->sink_ops->finish(c->sink, err);
    c->plan = NULL;
    return r;
}

/* Not *begun: nothing is written; then -ENOTSUP: a file has to be made
 * first. */
static int plan_and_write(struct img_convert *cv, struct img_making *m,
                          struct fd_writer *w, bool *begun,
                          struct img_error *err)
{
    enum { PLAN_MAX = 64 << 20 };
    const struct img_sink_ops *ops = cv->format->sink;
    struct img_runs plan = { .most = PLAN_MAX };
    struct img_copy *c = &cv->copy;
    int r;

    if (!maps_will_do(cv, m))
        return -ENOTSUP;
    r = ops->begin(&m->build, write_to_fd, w, &c->sink, err);
    if (r < 0)
        return r;
    prepare_sink(cv);
    r = img_plan_make(c, &w->pace, &plan, err);
    *begun = r == 0;
    if (r == -EFBIG)
        r = -ENOTSUP;
    else if (r == 0)
        r = write_by_plan(cv, w, &plan, err);
    img_runs_free(&plan);
    ops->free(c->sink);
    c->sink = NULL;
    return r;
}

/* The backing file of the new image shows through what is not written. */
static int stream_planned(struct img_convert *cv, struct img_making *m,
                          struct fd_writer *w, bool *begun,
                          struct img_error *err)
{
    struct img_copy *c = &cv->copy;
    struct img_source base = { 0 };
    struct img_io io;
    int r;

    if (!m->build.backing)
        return plan_and_write(cv, m, w, begun, err);
    img_io_init(&io, img_making_backing(m));
    r = img_source_one(&base, &io, 0, c->source.size, err);
    c->base = &base;
    if (r == 0)
        r = plan_and_write(cv, m, w, begun, err);
    c->base = NULL;
    img_source_free(&base);
    img_io_destroy(&io);
    return r;
}

static int zeros_to_fd(struct fd_writer *w, uint64_t len,
                       struct img_error *err)
{
    static const uint8_t zeros[64 << 10];
    int r = 0;

    for (uint64_t n; r == 0 && len; len -= n) {
        n = IMG_MIN(len, (uint64_t)sizeof zeros);
        r = write_to_fd(w, zeros, (size_t)n, err);
    }
    return r;
}

/* Where the disk is its own image, its bytes are the stream. */
static int stream_raw(struct img_convert *cv, struct fd_writer *w,
                      struct img_error *err)
{
    struct img_copy *c = &cv->copy;
    int r;

    if (cv->opts.compress)
        return img_fail(err, ENOTSUP, "Format %s cannot be compressed",
                        cv->format->info.name);
    c->outlet = &img_outlet_raw_stream;
    c->ordered = true;
    c->unit = 64 << 10;
    c->write = write_to_fd;
    c->write_opaque = w;
    r = copy_to_fd(cv, w, err);
    return r == 0 ? zeros_to_fd(w, cv->create.disk_size - c->source.size, err)
                  : r;
}

static int stream_file(struct img_file *f, struct fd_writer *w,
                       struct img_error *err)
{
    enum { PIECE = 1 << 20 };
    char *buf = malloc(PIECE);
    uint64_t size, off = 0;
    int r = buf ? img_file_size(f, &size, err) : img_fail_nomem(err);

    while (r == 0 && off < size) {
        size_t now = (size_t)IMG_MIN(size - off, (uint64_t)PIECE);

        r = img_file_pread(f, buf, now, off, err);
        if (r == 0)
            r = write_to_fd(w, buf, now, err);
        off += now;
    }
    free(buf);
    return r;
}

/* What a stream carries is one file. */
static int no_more_files(struct img_build *b, const char *name,
                         struct img_file **file, struct img_error *err)
{
    return img_fail(err, ENOTSUP, "Such an image is more than one file ('%s' "
                    "too), which a stream cannot carry", name);
}

static int begin_temporary(struct img_convert *cv, struct img_making **m,
                           struct img_error *err)
{
    const char *folder = cv->opts.scratch;
    img_autofree char *path = NULL;

    if (asprintf(&path, "%s/vimg-stream",
                 folder ? folder : "/var/tmp") < 0) {
        path = NULL;
        return img_fail_nomem(err);
    }
    return img_making_begin(path, &cv->create, m, err);
}

/* Any other format: made in a file without a name, then streamed. */
static int stream_made(struct img_convert *cv, struct fd_writer *w,
                       struct img_error *err)
{
    struct img_disk *to = NULL;
    struct img_making *m = NULL;
    int r, closed;

    cv->create.flags |= IMG_CREATE_NO_SYNC;
    cv->opts.no_sync = true;
    r = begin_temporary(cv, &m, err);
    if (r < 0)
        return r;
    m->build.add_file = no_more_files;
    r = img_making_create(m, err);
    if (r == 0)
        r = img_making_open(m, &to, err);
    if (r == 0) {
        r = img_convert_to_disk(cv, to, true, err);
        w->pace.done = w->pace.total;
        closed = img_close(to, r < 0 ? NULL : err);
        r = r < 0 ? r : closed;
    }
    if (r == 0)
        r = stream_file(m->build.file, w, err);
    img_making_abandon(m);
    return r;
}

static int convert_stream(struct img_convert *cv, struct fd_writer *w,
                          struct img_error *err)
{
    struct img_making *m = NULL;
    bool begun = false;
    int r;

    r = img_convert_check_size(cv, err);
    if (r < 0)
        return r;
    if (img_format_is_identity(cv->format))
        return stream_raw(cv, w, err);
    r = refuse_relative(cv, err);
    if (r < 0)
        return r;
    if (!cv->format->sink)
        return stream_made(cv, w, err);
    r = img_making_begin(NULL, &cv->create, &m, err);
    if (r < 0)
        return r;
    if (cv->format->sink->plan) {
        r = stream_planned(cv, m, w, &begun, err);
    } else {
        w->workers = true;
        r = img_convert_to_sink(cv, m, write_to_fd, w, &begun, err);
    }
    w->workers = false;
    img_making_abandon(m);
    return r == -ENOTSUP && !begun ? stream_made(cv, w, err) : r;
}

int img_convert_fd(struct img_disk *const *from, size_t n_from, int fd,
                   const struct img_convert_options *opts,
                   const struct img_job *job, struct img_error *err)
{
    struct fd_writer w = { .fd = fd, .pace = { .job = job } };
    struct img_convert cv;
    struct stat st;
    int r = img_convert_begin(&cv, from, n_from, opts, job, err);

    if (r == 0 && fstat(fd, &st) == 0)
        r = img_convert_refuse_source(&cv, &st, "the output", err);
    w.pace.total = cv.copy.source.size;
    if (r == 0)
        r = convert_stream(&cv, &w, err);
    img_convert_end(&cv);
    return r;
}
