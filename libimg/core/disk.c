/* The public handle: opening, closing, shape, and the data functions, which
 * take the structure lock and do the request. */
#include "core/disk.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/options.h"
#include "file/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TRANSFER = 1 << 30 };

unsigned img_version(void)
{
    return IMG_VERSION;
}

const struct img_format_info *img_format(size_t index)
{
    for (size_t i = 0; img_formats[i]; i++)
        if (i == index)
            return &img_formats[i]->info;
    return NULL;
}

const struct img_format_info *img_format_by_name(const char *name)
{
    const struct img_format *format = img_format_find(name);

    return format ? &format->info : NULL;
}

int img_probe(const char *path, const char **format, struct img_error *err)
{
    const struct img_format *found = NULL;
    struct img_file *file;
    int r = img_file_open(path, IMG_FILE_BY_USER, &file, err);

    if (r < 0)
        return r;
    r = img_chain_probe(file, &found, err);
    img_file_close(file);
    if (r == 0)
        *format = found->info.name;
    return r;
}

/* ---- opening ----------------------------------------------------------- */

int img_disk_open(const char *path, int fd, struct img_file *file,
                  const struct img_open_options *opts,
                  struct img_disk **disk, struct img_error *err)
{
    struct img_disk *d = calloc(1, sizeof *d);
    int r = 0;

    if (d)
        d->path = strdup(path);
    if (!d || !d->path) {
        if (fd >= 0)
            close(fd);
        img_file_close(file);
        free(d);
        return img_fail_nomem(err);
    }
    r = img_chain_open(path, fd, file, opts, &d->chain, err);
    if (r < 0) {
        free(d->path);
        free(d);
        return r;
    }
    d->size = img_disk_size(d);
    img_io_init(&d->io, d->chain);
    img_rwlock_init(&d->structure);
    img_mutex_init(&d->crew_lock);
    *disk = d;
    return 0;
}

int img_open(const char *path, const struct img_open_options *opts,
             struct img_disk **disk, struct img_error *err)
{
    struct img_open_options all;
    int r = img_options_take(&all, sizeof all, opts, err);

    return r < 0 ? r : img_disk_open(path, -1, NULL, &all, disk, err);
}

int img_open_fd(int fd, const struct img_open_options *opts,
                struct img_disk **disk, struct img_error *err)
{
    struct img_open_options all;
    char name[32];
    int r = img_options_take(&all, sizeof all, opts, err);

    if (fd < 0)
        return img_fail(err, EBADF, "descriptor %d is not open", fd);
    if (r < 0) {
        close(fd);
        return r;
    }
    snprintf(name, sizeof name, "descriptor %d", fd);
    return img_disk_open(name, fd, NULL, &all, disk, err);
}

int img_close(struct img_disk *d, struct img_error *err)
{
    int r;

    if (!d)
        return 0;
    img_crew_end(d->crew);
    r = img_chain_close(d->chain, err);
    img_io_destroy(&d->io);
    img_rwlock_destroy(&d->structure);
    img_mutex_destroy(&d->crew_lock);
    free(d->path);
    free(d);
    return r;
}

/* ---- shape ------------------------------------------------------------- */

/* The lock is no part of what is promised to be constant. */
static struct img_disk *lock_shape(const struct img_disk *disk)
{
    struct img_disk *d = (struct img_disk *)disk;

    img_read_lock(&d->structure);
    return d;
}

uint64_t img_disk_size(const struct img_disk *disk)
{
    return disk->chain->layers[0]->size;
}

uint64_t img_size(const struct img_disk *disk)
{
    return disk->size;
}

void img_disk_change_begin(struct img_disk *d)
{
    img_write_lock(&d->structure);
}

void img_disk_change_end(struct img_disk *d)
{
    d->size = img_disk_size(d);
    img_rw_unlock(&d->structure);
}

void img_limits(const struct img_disk *disk, struct img_limits *limits)
{
    struct img_disk *d = lock_shape(disk);
    const struct img_layer *l = d->chain->layers[0];

    *limits = (struct img_limits){
        .block = 1,
        .cluster = (uint32_t)IMG_MIN(UINT64_C(1) << l->cluster_bits,
                                     UINT64_C(1) << 31),
        .discard = l->block,
        .memory_align = d->chain->align,
        .max_transfer = MAX_TRANSFER,
        .writable = l->writable,
        .zero_is_cheap = l->format->unmap != NULL,
    };
    img_rw_unlock(&d->structure);
}

const char *img_format_name(const struct img_disk *disk)
{
    return disk->chain->layers[0]->format->info.name;
}

const char *img_path(const struct img_disk *disk)
{
    return disk->path;
}

const char *img_file_name(const struct img_disk *disk, unsigned depth,
                          unsigned file)
{
    struct img_disk *d = lock_shape(disk);
    const struct img_chain *c = d->chain;
    const char *name = NULL;

    if (depth < c->n && file < c->layers[depth]->n_files &&
        c->layers[depth]->files[file])
        name = c->layers[depth]->files[file]->path;
    img_rw_unlock(&d->structure);
    return name;
}

/* ---- data -------------------------------------------------------------- */

int img_preadv(struct img_disk *d, const struct iovec *iov, int iovcnt,
               uint64_t off, struct img_error *err)
{
    int r;

    img_read_lock(&d->structure);
    r = img_io_read(&d->io, 0, iov, iovcnt, off, err);
    img_rw_unlock(&d->structure);
    return r;
}

int img_pread(struct img_disk *d, void *buf, size_t len, uint64_t off,
              struct img_error *err)
{
    struct iovec iov = { buf, len };

    return img_preadv(d, &iov, 1, off, err);
}

int img_pread_now(struct img_disk *d, void *buf, size_t len, uint64_t off)
{
    struct iovec iov = { buf, len };
    int r;

    if (!img_try_read_lock(&d->structure))
        return -EAGAIN;
    r = img_io_read_now(&d->io, &iov, 1, off);
    img_rw_unlock(&d->structure);
    return r;
}

int img_splice_now(struct img_disk *d, int pipe, size_t len, uint64_t off)
{
    int r;

    if (!img_try_read_lock(&d->structure))
        return -EAGAIN;
    r = img_io_splice_now(&d->io, pipe, len, off);
    img_rw_unlock(&d->structure);
    return r;
}

int img_pwrite_now(struct img_disk *d, const void *buf, size_t len,
                   uint64_t off)
{
    struct iovec iov = { (void *)buf, len };
    int r;

    if (!img_try_read_lock(&d->structure))
        return -EAGAIN;
    r = img_io_write_now(&d->io, &iov, 1, off);
    img_rw_unlock(&d->structure);
    return r;
}

int img_pwritev(struct img_disk *d, const struct iovec *iov, int iovcnt,
                uint64_t off, unsigned flags, struct img_error *err)
{
    int r;

    img_read_lock(&d->structure);
    r = img_io_write(&d->io, 0, iov, iovcnt, off, flags, err);
    img_rw_unlock(&d->structure);
    return r;
}

int img_pwrite(struct img_disk *d, const void *buf, size_t len, uint64_t off,
               unsigned flags, struct img_error *err)
{
    struct iovec iov = { (void *)buf, len };

    return img_pwritev(d, &iov, 1, off, flags, err);
}

int img_zero(struct img_disk *d, uint64_t off, uint64_t len, unsigned flags,
             struct img_error *err)
{
    int r;

    img_read_lock(&d->structure);
    r = img_io_zero(&d->io, 0, off, len, flags, err);
    img_rw_unlock(&d->structure);
    return r;
}

int img_discard(struct img_disk *d, uint64_t off, uint64_t len,
                struct img_error *err)
{
    int r;

    img_read_lock(&d->structure);
    r = img_io_discard(&d->io, 0, off, len, err);
    img_rw_unlock(&d->structure);
    return r;
}

int img_flush(struct img_disk *d, struct img_error *err)
{
    int r;

    img_read_lock(&d->structure);
    r = img_io_flush(&d->io, 0, err);
    img_rw_unlock(&d->structure);
    return r;
}
