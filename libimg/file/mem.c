/* A file in memory: the twin of posix.c for tests and for images built
 * before they are streamed. */
#include "file/file.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/iov.h"
#include "base/sync.h"

#include <stdlib.h>
#include <string.h>

struct memory {
    struct img_mutex lock;      /* protects all below */
    char *data;
    size_t len, room;
};

static int grow(struct img_file *f, struct memory *m, uint64_t len,
                struct img_error *err)
{
    size_t room;
    char *data;

    if (len <= m->len)
        return 0;
    if (len > (UINT64_C(1) << 40))
        return img_fail(err, EFBIG, "%s: %llu bytes in memory", f->path,
                        (unsigned long long)len);
    if (len > m->room) {
        room = IMG_MAX((size_t)len, m->room * 2);
        data = realloc(m->data, room);
        if (!data)
            return img_fail_nomem(err);
        m->data = data;
        m->room = room;
    }
    memset(m->data + m->len, 0, (size_t)len - m->len);
    m->len = (size_t)len;
    return 0;
}

static int mem_preadv(struct img_file *f, const struct iovec *iov, int n,
                      uint64_t off, struct img_error *err)
{
    struct memory *m = f->state;
    size_t total = img_iov_total(iov, n), have = 0;

    img_lock(&m->lock);
    if (off < m->len)
        have = IMG_MIN(total, m->len - (size_t)off);
    if (have)
        img_iov_fill(iov, n, 0, m->data + off, have);
    img_iov_clear(iov, n, have, total - have);
    img_unlock(&m->lock);
    return 0;
}

static int mem_pwritev(struct img_file *f, const struct iovec *iov, int n,
                       uint64_t off, struct img_error *err)
{
    struct memory *m = f->state;
    size_t total = img_iov_total(iov, n);
    uint64_t end;
    int r;

    if (!img_add(off, total, &end))
        return img_fail(err, EFBIG, "%s: writing at 0x%llx", f->path,
                        (unsigned long long)off);
    img_lock(&m->lock);
    r = grow(f, m, end, err);
    if (r == 0)
        img_iov_gather(iov, n, 0, m->data + off, total);
    img_unlock(&m->lock);
    return r;
}

static int mem_zero(struct img_file *f, uint64_t off, uint64_t len,
                    unsigned flags, struct img_error *err)
{
    struct memory *m = f->state;
    uint64_t end;
    int r;

    if (!img_add(off, len, &end))
        return img_fail(err, EFBIG, "%s: zeros at 0x%llx", f->path,
                        (unsigned long long)off);
    img_lock(&m->lock);
    r = grow(f, m, end, err);
    if (r == 0)
        memset(m->data + off, 0, (size_t)len);
    img_unlock(&m->lock);
    return r;
}

static int mem_punch(struct img_file *f, uint64_t off, uint64_t len,
                     struct img_error *err)
{
    struct memory *m = f->state;

    img_lock(&m->lock);
    if (off < m->len)
        memset(m->data + off, 0, (size_t)IMG_MIN(len, m->len - off));
    img_unlock(&m->lock);
    return 0;
}

static int mem_truncate(struct img_file *f, uint64_t size,
                        struct img_error *err)
{
    struct memory *m = f->state;
    int r = 0;

    img_lock(&m->lock);
    if (size <= m->len)
        m->len = (size_t)size;
    else
        r = grow(f, m, size, err);
    img_unlock(&m->lock);
    return r;
}

static int mem_sync(struct img_file *f, struct img_error *err)
{
    return 0;
}

static int mem_size(struct img_file *f, uint64_t *size, struct img_error *err)
{
    struct memory *m = f->state;

    img_lock(&m->lock);
    *size = m->len;
    img_unlock(&m->lock);
    return 0;
}

static void mem_close(struct img_file *f)
{
    struct memory *m = f->state;

    img_mutex_destroy(&m->lock);
    free(m->data);
    free(m);
}

static const struct img_file_ops mem_ops = {
    .kind = "memory", .preadv = mem_preadv, .pwritev = mem_pwritev,
    .zero = mem_zero, .punch = mem_punch, .truncate = mem_truncate,
    .sync = mem_sync, .size = mem_size, .close = mem_close,
};

int img_file_in_memory(const char *path, struct img_file **file,
                       struct img_error *err)
{
    struct img_file *f = calloc(1, sizeof *f);
    struct memory *m = calloc(1, sizeof *m);

    if (f)
        f->path = strdup(path);
    if (!f || !m || !f->path) {
        if (f)
            free(f->path);
        free(m);
        free(f);
        return img_fail_nomem(err);
    }
    img_mutex_init(&m->lock);
    f->ops = &mem_ops;
    f->fd = -1;
    f->align = 1;
    f->writable = true;
    f->state = m;
    *file = f;
    return 0;
}
