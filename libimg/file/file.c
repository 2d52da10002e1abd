/* What is common to all kinds of files: fall-backs and simple forms. */
#include "file/file.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/iov.h"

#include <stdlib.h>

int img_file_pread(struct img_file *file, void *buf, size_t len, uint64_t off,
                   struct img_error *err)
{
    struct iovec iov = { buf, len };

    return img_file_preadv(file, &iov, 1, off, err);
}

int img_file_preadv(struct img_file *file, const struct iovec *iov, int n,
                    uint64_t off, struct img_error *err)
{
    return file->ops->preadv(file, iov, n, off, err);
}

int img_file_preadv_now(struct img_file *file, const struct iovec *iov, int n,
                        uint64_t off)
{
    if (!file->ops->preadv_now ||
        __atomic_load_n(&file->never_now, __ATOMIC_RELAXED))
        return -EAGAIN;
    return file->ops->preadv_now(file, iov, n, off);
}

int img_file_splice_now(struct img_file *file, int pipe, size_t len,
                        uint64_t off)
{
    return file->ops->splice_now ? file->ops->splice_now(file, pipe, len, off)
                                 : -EAGAIN;
}

bool img_file_is_cached(const struct img_file *file)
{
    return file->ops->preadv_now && file->align <= 1;
}

int img_file_pwrite(struct img_file *file, const void *buf, size_t len,
                    uint64_t off, struct img_error *err)
{
    struct iovec iov = { (void *)buf, len };

    return img_file_pwritev(file, &iov, 1, off, err);
}

int img_file_pwritev(struct img_file *file, const struct iovec *iov, int n,
                     uint64_t off, struct img_error *err)
{
    if (!file->writable || !file->ops->pwritev)
        return img_fail(err, EROFS, "%s: not open for writing", file->path);
    return file->ops->pwritev(file, iov, n, off, err);
}

int img_file_write_zeros(struct img_file *file, uint64_t off, uint64_t len,
                         struct img_error *err)
{
    enum { PIECE = 1 << 20 };
    size_t piece = (size_t)IMG_MIN(len, (uint64_t)PIECE);
    char *zeros = calloc(1, piece);
    int r = 0;

    if (!zeros)
        return img_fail_nomem(err);
    while (len && r == 0) {
        size_t part = (size_t)IMG_MIN(len, (uint64_t)piece);

        r = img_file_pwrite(file, zeros, part, off, err);
        off += part;
        len -= part;
    }
    free(zeros);
    return r;
}

int img_file_zero(struct img_file *file, uint64_t off, uint64_t len,
                  unsigned flags, struct img_error *err)
{
    int r = -ENOTSUP;

    if (!len)
        return 0;
    if (!file->writable)
        return img_fail(err, EROFS, "%s: not open for writing", file->path);
    if (file->ops->zero)
        r = file->ops->zero(file, off, len, flags, err);
    if (r == -ENOTSUP && !(flags & IMG_FILE_FAST_ONLY))
        r = img_file_write_zeros(file, off, len, err);
    else if (r == -ENOTSUP)
        img_fail(err, ENOTSUP, "%s: zeros can only be written out here",
                 file->path);
    return r;
}

int img_file_discard(struct img_file *file, uint64_t off, uint64_t len,
                     struct img_error *err)
{
    int r;

    if (!len || !file->ops->punch || !file->writable)
        return 0;
    r = file->ops->punch(file, off, len, err);
    return r == -ENOTSUP ? 0 : r;
}

int img_file_allocate(struct img_file *file, uint64_t off, uint64_t len,
                      struct img_error *err)
{
    if (!len)
        return 0;
    if (!file->writable)
        return img_fail(err, EROFS, "%s: not open for writing", file->path);
    if (!file->ops->allocate)
        return img_fail(err, ENOTSUP, "%s: cannot reserve space here",
                        file->path);
    return file->ops->allocate(file, off, len, err);
}

int img_file_truncate(struct img_file *file, uint64_t size,
                      struct img_error *err)
{
    if (!file->writable)
        return img_fail(err, EROFS, "%s: not open for writing", file->path);
    if (!file->ops->truncate)
        return img_fail(err, ENOTSUP, "%s: cannot change its size",
                        file->path);
    return file->ops->truncate(file, size, err);
}

int img_file_sync(struct img_file *file, struct img_error *err)
{
    return file->no_sync ? 0 : file->ops->sync(file, err);
}

int img_file_size(struct img_file *file, uint64_t *size,
                  struct img_error *err)
{
    return file->ops->size(file, size, err);
}

int img_file_extent(struct img_file *file, uint64_t off, uint64_t len,
                    bool *is_data, uint64_t *run, struct img_error *err)
{
    int r = -ENOTSUP;

    if (file->ops->extent)
        r = file->ops->extent(file, off, len, is_data, run, err);
    if (r == -ENOTSUP) {
        *is_data = true;
        *run = len;
        r = 0;
    }
    return r;
}

int img_file_reflink(struct img_file *to, uint64_t to_off,
                     struct img_file *from, uint64_t from_off, uint64_t len,
                     struct img_error *err)
{
    if (!to->writable || !to->ops->reflink || to->ops != from->ops)
        return img_fail(err, ENOTSUP, "%s: cannot share blocks with %s",
                        to->path, from->path);
    return to->ops->reflink(to, to_off, from, from_off, len, err);
}

int img_file_lock(struct img_file *file, unsigned perm, unsigned shared,
                  struct img_error *err)
{
    return file->ops->lock ? file->ops->lock(file, perm, shared, err) : 0;
}

uint64_t img_file_allocated(struct img_file *file)
{
    return file->ops->allocated ? file->ops->allocated(file) : UINT64_MAX;
}

void img_file_close(struct img_file *file)
{
    if (!file)
        return;
    file->ops->close(file);
    free(file->path);
    free(file);
}
