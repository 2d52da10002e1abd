/* Joined sources.  Parts follow each other without gaps; a stretch never
 * crosses from one part into the next. */
#include "ops/source.h"
#include "ops/convert.h"
#include "core/disk.h"
#include "base/checked.h"
#include "base/error.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

/* How long the files of the layers from `from` down are now.  What is open
 * for writing changes by our own doing. */
static int note_lengths(struct img_source *s, const struct img_io *io,
                        unsigned from, struct img_error *err)
{
    const struct img_chain *chain = io->chain;
    size_t n = s->n_lengths;
    struct img_length *more;

    for (unsigned d = from; d < chain->n; d++)
        n += chain->layers[d]->n_files;
    more = realloc(s->lengths, (n ? n : 1) * sizeof *more);
    if (!more)
        return img_fail_nomem(err);
    s->lengths = more;
    for (unsigned d = from; d < chain->n; d++)
        for (unsigned i = 0; i < chain->layers[d]->n_files; i++) {
            struct img_file *f = chain->layers[d]->files[i];
            struct img_length *l = &s->lengths[s->n_lengths];
            int r;

            if (!f || f->writable)
                continue;
            l->file = f;
            r = img_file_size(f, &l->bytes, err);
            if (r < 0)
                return r;
            s->n_lengths++;
        }
    return 0;
}

int img_source_join(struct img_source *s, struct img_disk *const *disks,
                    size_t n, struct img_error *err)
{
    memset(s, 0, sizeof *s);
    s->flags = IMG_RUN_EXACT;
    s->parts = calloc(n ? n : 1, sizeof *s->parts);
    if (!s->parts)
        return img_fail_nomem(err);
    for (size_t i = 0; i < n; i++) {
        struct img_part *p = &s->parts[s->n++];
        int r = note_lengths(s, &disks[i]->io, 0, err);

        if (r < 0)
            return r;
        p->io = &disks[i]->io;
        p->start = s->size;
        p->size = img_disk_size(disks[i]);
        if (!img_add(s->size, p->size, &s->size) || s->size > INT64_MAX)
            return img_fail(err, EFBIG, "%s: the joined images are too "
                            "large", img_path(disks[i]));
    }
    return 0;
}

int img_source_one(struct img_source *s, struct img_io *io, unsigned from,
                   uint64_t size, struct img_error *err)
{
    memset(s, 0, sizeof *s);
    s->flags = IMG_RUN_EXACT;
    s->parts = calloc(1, sizeof *s->parts);
    if (!s->parts)
        return img_fail_nomem(err);
    s->n = 1;
    s->size = size;
    s->parts[0] = (struct img_part){ .io = io, .from = from, .size = size };
    return note_lengths(s, io, from, err);
}

void img_source_cut(struct img_source *s, uint64_t off, uint64_t len)
{
    size_t n = 0;

    for (size_t i = 0; i < s->n; i++) {
        struct img_part p = s->parts[i];
        uint64_t from = IMG_MAX(p.start, off);
        uint64_t to = IMG_MIN(p.start + p.size, off + len);

        if (to <= from)
            continue;
        p.skip += from - p.start;
        p.size = to - from;
        p.start = from - off;
        s->parts[n++] = p;
    }
    s->n = n;
    s->size = len;
}

void img_source_free(struct img_source *s)
{
    free(s->parts);
    free(s->lengths);
    s->parts = NULL;
    s->lengths = NULL;
    s->n = s->n_lengths = 0;
}

/* The part that holds off, which is below size. */
static const struct img_part *part_at(const struct img_source *s,
                                      uint64_t off)
{
    const struct img_part *p = s->parts;

    while (off - p->start >= p->size)
        p++;
    return p;
}

/* How much of the part its topmost layer has: a backing file may be shorter
 * than what lies on it, and beyond its end are zeros. */
static uint64_t visible(const struct img_part *p)
{
    const struct img_chain *chain = p->io->chain;

    uint64_t size = p->from < chain->n ? chain->layers[p->from]->size : 0;

    return size > p->skip ? IMG_MIN(p->size, size - p->skip) : 0;
}

int img_source_map(const struct img_source *s, uint64_t off,
                   struct img_stretch *st, struct img_error *err)
{
    const struct img_part *p;
    struct img_run run = { 0 };
    struct img_layer *layer;
    uint64_t start;
    unsigned depth;
    int r;

    *st = (struct img_stretch){ .off = off, .end = UINT64_MAX,
                                .kind = IMG_RUN_ABSENT, .depth = UINT32_MAX };
    if (off >= s->size)
        return 0;
    p = part_at(s, off);
    start = p->start - p->skip;
    st->start = start;
    if (off - p->start >= visible(p)) {
        st->end = p->start + p->size;
        return 0;
    }
    r = img_chain_map(p->io->chain, p->from, off - start,
                      p->start + visible(p) - off, s->flags, &run, &depth,
                      err);
    if (r < 0) {
        *st = (struct img_stretch){ 0 };
        return r;
    }
    st->depth = depth;
    st->end = off + run.len;
    st->kind = run.kind;
    if (st->depth >= p->io->chain->n)
        st->kind = IMG_RUN_ABSENT;
    if (img_stretch_is_zero(st))
        return 0;
    layer = p->io->chain->layers[st->depth];
    st->file = layer->files[run.file];
    st->host = run.host;
    return 0;
}

int img_source_read(const struct img_source *s, void *buf, size_t len,
                    uint64_t off, struct img_error *err)
{
    char *to = buf;

    while (len) {
        const struct img_part *p;
        struct iovec iov;
        uint64_t seen;
        size_t now;
        int r;

        if (off >= s->size) {
            memset(to, 0, len);
            return 0;
        }
        p = part_at(s, off);
        now = (size_t)IMG_MIN((uint64_t)len, p->start + p->size - off);
        seen = off - p->start < visible(p) ? visible(p) - (off - p->start)
                                           : 0;
        if (seen) {
            now = (size_t)IMG_MIN((uint64_t)now, seen);
            iov = (struct iovec){ to, now };
            r = img_io_read(p->io, p->from, &iov, 1, off - p->start + p->skip,
                            err);
            if (r < 0)
                return r;
        } else {
            memset(to, 0, now);
        }
        to += now;
        off += now;
        len -= now;
    }
    return 0;
}

bool img_file_is_same(const struct img_file *a, const struct img_file *b)
{
    if (a == b)
        return true;
    return a && b && (a->device || a->inode) && a->device == b->device &&
           a->inode == b->inode && a->is_device == b->is_device;
}

bool img_stretch_is_same(const struct img_stretch *a,
                         const struct img_stretch *b, uint64_t off)
{
    if (a->kind != b->kind || !img_file_is_same(a->file, b->file))
        return false;
    if (a->kind == IMG_RUN_DATA)
        return a->host + (off - a->off) == b->host + (off - b->off);
    /* One packed cluster of one file, at the same guest offset. */
    return a->kind == IMG_RUN_PACKED && a->host == b->host &&
           a->start == b->start;
}

bool img_chain_is_remote(const struct img_chain *chain)
{
    for (unsigned d = 0; d < chain->n; d++)
        for (unsigned i = 0; i < chain->layers[d]->n_files; i++)
            if (chain->layers[d]->files[i] &&
                chain->layers[d]->files[i]->fd < 0)
                return true;
    return false;
}

bool img_source_is_remote(const struct img_source *source)
{
    for (size_t i = 0; i < source->n; i++)
        if (img_chain_is_remote(source->parts[i].io->chain))
            return true;
    return false;
}

static int refuse_short(const char *path, uint64_t len, uint64_t wanted,
                        struct img_error *err)
{
    return img_fail(err, EIO, "%s: has become shorter while it was read: "
                    "%llu bytes of %llu", path, (unsigned long long)len,
                    (unsigned long long)wanted);
}

/* A raw disk as it was opened. */
static int still_whole(struct img_layer *l, struct img_error *err)
{
    struct img_run run = { 0 };
    uint64_t len;
    int r;

    if (!img_format_is_identity(l->format) || !l->size)
        return 0;
    r = img_file_size(l->files[0], &len, err);
    if (r == 0)                 /* it may be a window */
        r = l->format->map(l, 0, 1, 0, &run, err);
    if (r < 0 || img_round_up(len, UINT64_C(512)) >= run.host + l->size)
        return r;
    return refuse_short(l->path, len, run.host + l->size, err);
}

int img_source_still_whole(const struct img_source *source,
                           struct img_error *err)
{
    int r = 0;

    for (size_t i = 0; i < source->n && r == 0; i++) {
        const struct img_part *p = &source->parts[i];

        for (unsigned d = p->from; d < p->io->chain->n && r == 0; d++)
            r = still_whole(p->io->chain->layers[d], err);
    }
    for (size_t i = 0; i < source->n_lengths && r == 0; i++) {
        const struct img_length *l = &source->lengths[i];
        uint64_t now;

        r = img_file_size(l->file, &now, err);
        if (r == 0 && now < l->bytes)
            r = refuse_short(l->file->path, now, l->bytes, err);
    }
    return r;
}
