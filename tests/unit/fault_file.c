#include "fault_file.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/iov.h"

#include <stdlib.h>

struct wrapped {
    struct img_file inner;      /* what the file was */
    struct img_file_ops ops;    /* those of the wrapper that inner has */
    struct fault *fault;
};

static bool fails(struct img_file *f, unsigned kind)
{
    struct fault *t = ((struct wrapped *)f->state)->fault;
    bool now;
    long left;

    if (!(t->kinds & kind))
        return false;
    atomic_fetch_add(&t->seen, 1);
    left = atomic_load(&t->left);
    while (left > 0 && !atomic_compare_exchange_weak(&t->left, &left,
                                                     left - 1))
        ;
    now = left == 1 || (left == 0 && t->for_ever && t->failed);
    if (now)
        atomic_fetch_add(&t->failed, 1);
    return now;
}

static struct img_file *inner_of(struct img_file *f)
{
    return &((struct wrapped *)f->state)->inner;
}

static int fault(struct img_file *f, const char *what, struct img_error *err)
{
    struct fault *t = ((struct wrapped *)f->state)->fault;

    return img_fail_errno(err, t->code, "%s: %s (a planned fault)", f->path,
                          what);
}

static int fault_preadv(struct img_file *f, const struct iovec *iov, int n,
                        uint64_t off, struct img_error *err)
{
    struct img_file *inner = inner_of(f);

    if (fails(f, FAULT_READ))
        return fault(f, "reading", err);
    return inner->ops->preadv(inner, iov, n, off, err);
}

static int fault_pwritev(struct img_file *f, const struct iovec *iov, int n,
                         uint64_t off, struct img_error *err)
{
    struct wrapped *w = f->state;
    size_t half = img_round_down(img_iov_total(iov, n) / 2, 512);
    struct iovec *part;

    if (!fails(f, FAULT_WRITE))
        return w->inner.ops->pwritev(&w->inner, iov, n, off, err);
    part = w->fault->torn && half ? calloc((size_t)n, sizeof *part) : NULL;
    if (part)
        w->inner.ops->pwritev(&w->inner, part,
                              img_iov_slice(iov, n, 0, half, part), off,
                              NULL);
    free(part);
    return fault(f, "writing", err);
}

static int fault_zero(struct img_file *f, uint64_t off, uint64_t len,
                      unsigned flags, struct img_error *err)
{
    struct img_file *inner = inner_of(f);

    if (fails(f, FAULT_SPACE))
        return fault(f, "zeroing", err);
    return inner->ops->zero(inner, off, len, flags, err);
}

static int fault_punch(struct img_file *f, uint64_t off, uint64_t len,
                       struct img_error *err)
{
    struct img_file *inner = inner_of(f);

    if (fails(f, FAULT_SPACE))
        return fault(f, "punching a hole", err);
    return inner->ops->punch(inner, off, len, err);
}

static int fault_allocate(struct img_file *f, uint64_t off, uint64_t len,
                          struct img_error *err)
{
    struct img_file *inner = inner_of(f);

    if (fails(f, FAULT_SPACE))
        return fault(f, "reserving space", err);
    return inner->ops->allocate(inner, off, len, err);
}

static int fault_truncate(struct img_file *f, uint64_t size,
                          struct img_error *err)
{
    struct img_file *inner = inner_of(f);

    if (fails(f, FAULT_SPACE))
        return fault(f, "setting its size", err);
    return inner->ops->truncate(inner, size, err);
}

static int fault_sync(struct img_file *f, struct img_error *err)
{
    struct img_file *inner = inner_of(f);

    if (fails(f, FAULT_SYNC))
        return fault(f, "making it durable", err);
    return inner->ops->sync(inner, err);
}

static int fault_size(struct img_file *f, uint64_t *size,
                      struct img_error *err)
{
    struct img_file *inner = inner_of(f);

    if (fails(f, FAULT_LOOK))
        return fault(f, "its size", err);
    return inner->ops->size(inner, size, err);
}

static int fault_extent(struct img_file *f, uint64_t off, uint64_t len,
                        bool *is_data, uint64_t *run, struct img_error *err)
{
    struct img_file *inner = inner_of(f);

    if (fails(f, FAULT_LOOK))
        return fault(f, "looking for holes", err);
    return inner->ops->extent(inner, off, len, is_data, run, err);
}

static int fault_lock(struct img_file *f, unsigned perm, unsigned shared,
                      struct img_error *err)
{
    struct img_file *inner = inner_of(f);

    return inner->ops->lock(inner, perm, shared, err);
}

static uint64_t fault_allocated(struct img_file *f)
{
    struct img_file *inner = inner_of(f);

    return inner->ops->allocated(inner);
}

static void fault_close(struct img_file *f)
{
    struct wrapped *w = f->state;

    w->inner.ops->close(&w->inner);
    free(w);
}

int fault_wrap(struct img_file *file, struct fault *t)
{
    struct wrapped *w = calloc(1, sizeof *w);
    const struct img_file_ops *has = file->ops;

    if (!w)
        return -ENOMEM;
    w->inner = *file;
    w->fault = t;
    /* Blocks are not shared: a wrapped file is of another kind than one
     * that is not. */
    w->ops = (struct img_file_ops) {
        .kind = has->kind,
        .preadv = fault_preadv,
        .pwritev = has->pwritev ? fault_pwritev : NULL,
        .zero = has->zero ? fault_zero : NULL,
        .punch = has->punch ? fault_punch : NULL,
        .allocate = has->allocate ? fault_allocate : NULL,
        .truncate = has->truncate ? fault_truncate : NULL,
        .sync = fault_sync,
        .size = fault_size,
        .extent = has->extent ? fault_extent : NULL,
        .lock = has->lock ? fault_lock : NULL,
        .allocated = has->allocated ? fault_allocated : NULL,
        .close = fault_close,
    };
    file->ops = &w->ops;
    file->state = w;
    return 0;
}
