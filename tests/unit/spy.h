/* A file under the cache of tables that counts, and fails or waits on
 * request. */
#ifndef TESTS_SPY_H
#define TESTS_SPY_H
#include "unit.h"
#include "base/sync.h"
#include "cache/tcache.h"
#include "file/file.h"

#include <stdatomic.h>

enum { SLICE = 4096, SLICES = 64 };

struct spy {
    struct img_file file;
    struct img_file *inner;
    atomic_int reads, writes, fail_reads, fail_writes;
    struct img_mutex lock;
    struct img_cond cond;
    bool hold, held;            /* writes wait while hold */
    uint64_t last_off, last_len;
};

static int spy_preadv(struct img_file *f, const struct iovec *iov, int n,
                      uint64_t off, struct img_error *err)
{
    struct spy *s = f->state;

    atomic_fetch_add(&s->reads, 1);
    if (atomic_load(&s->fail_reads) > 0 &&
        atomic_fetch_sub(&s->fail_reads, 1) > 0)
        return img_fail(err, EIO, "%s: reading", f->path);
    return img_file_preadv(s->inner, iov, n, off, err);
}

static int spy_pwritev(struct img_file *f, const struct iovec *iov, int n,
                       uint64_t off, struct img_error *err)
{
    struct spy *s = f->state;

    img_lock(&s->lock);
    s->last_off = off;
    s->last_len = iov->iov_len;
    s->held = s->hold;
    img_wake_all(&s->cond);
    while (s->hold)
        img_wait(&s->cond, &s->lock);
    img_unlock(&s->lock);
    atomic_fetch_add(&s->writes, 1);
    if (atomic_load(&s->fail_writes) > 0 &&
        atomic_fetch_sub(&s->fail_writes, 1) > 0)
        return img_fail(err, EIO, "%s: writing", f->path);
    return img_file_pwritev(s->inner, iov, n, off, err);
}

static const struct img_file_ops spy_ops = {
    .kind = "spy", .preadv = spy_preadv, .pwritev = spy_pwritev,
};

static char word(uint64_t off)
{
    return (char)(off / 512 * 7 + off % 251 + 1);
}

/* A file of SLICES slices with content, and a cache of `slices` of them. */
static void begin(struct spy *s, struct img_tcache **c, size_t slices)
{
    struct img_error err;
    char buf[SLICE];

    memset(s, 0, sizeof *s);
    assert_ok(img_file_in_memory("mem", &s->inner, &err), err);
    for (uint64_t i = 0; i < SLICES; i++) {
        for (uint64_t j = 0; j < SLICE; j++)
            buf[j] = word(i * SLICE + j);
        assert_ok(img_file_pwrite(s->inner, buf, SLICE, i * SLICE, &err),
                  err);
    }
    s->file.ops = &spy_ops;
    s->file.path = "spy";
    s->file.fd = -1;
    s->file.writable = true;
    s->file.align = 1;
    s->file.state = s;
    img_mutex_init(&s->lock);
    img_cond_init(&s->cond);
    assert_ok(img_tcache_new(slices * (SLICE + 200), c, &err), err);
}

static void end(struct spy *s, struct img_tcache *c)
{
    img_tcache_free(c);
    img_file_close(s->inner);
    img_cond_destroy(&s->cond);
    img_mutex_destroy(&s->lock);
}

static struct img_stage *stage(struct spy *s, struct img_tcache *c,
                               uint32_t kind)
{
    struct img_stage *st = NULL;
    struct img_error err;

    assert_ok(img_tcache_stage(c, &s->file, kind, &st, &err), err);
    return st;
}

static int write_back(struct spy *s, struct img_tcache *c)
{
    struct img_stage *st = stage(s, c, 1);
    struct img_error err;
    int r = img_stage_write(st, &err);

    img_stage_done(st, r == 0);
    return r;
}
#endif
