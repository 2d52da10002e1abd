/* The state of a virtual machine, which some formats keep behind the end of
 * the disk, in tables and clusters like the disk's own.
 *
 * The disk is kept to itself meanwhile: for that moment the layer reaches as
 * far as the state, so that requests go there like anywhere else. */
#include "core/disk.h"
#include "base/checked.h"
#include "base/error.h"

static int place_of(struct img_layer *l, uint64_t off, size_t len, bool write,
                    uint64_t *start, uint64_t *end, struct img_error *err)
{
    uint64_t cluster = UINT64_C(1) << l->cluster_bits;
    int r = 0;

    if (!l->format->vm_state)
        return img_fail(err, ENOTSUP, "%s: format %s has no place for the "
                        "state of a virtual machine", l->path,
                        l->format->info.name);
    if (write)
        r = img_layer_may_change(l, err);
    if (r < 0)
        return r;
    if (!img_add(off, len, end))
        *end = UINT64_MAX;
    r = l->format->vm_state(l, write ? *end : 0, start, err);
    if (r < 0)
        return r;
    if (!img_add(*start, *end, end) || *end > INT64_MAX - cluster)
        return img_fail(err, EFBIG, "%s: %llu is too far into the state of a "
                        "virtual machine", l->path, (unsigned long long)off);
    *end = img_round_up(*end, cluster);
    return 0;
}

static int transfer(struct img_disk *d, struct iovec *iov, uint64_t off,
                    bool write, struct img_error *err)
{
    struct img_layer *l = d->chain->layers[0];
    uint64_t size, start, end = 0;
    int r;

    img_write_lock(&d->structure);
    size = l->size;
    r = place_of(l, off, iov->iov_len, write, &start, &end, err);
    if (r == 0) {
        l->size = end;
        l->in_vm_state = true;
        r = write ? img_io_write(&d->io, 0, iov, 1, start + off, 0, err)
                  : img_io_read(&d->io, 0, iov, 1, start + off, err);
        l->in_vm_state = false;
        l->size = size;
    }
    img_rw_unlock(&d->structure);
    return r;
}

int img_vmstate_pread(struct img_disk *d, void *buf, size_t len, uint64_t off,
                      struct img_error *err)
{
    struct iovec iov = { buf, len };

    return transfer(d, &iov, off, false, err);
}

int img_vmstate_pwrite(struct img_disk *d, const void *buf, size_t len,
                       uint64_t off, struct img_error *err)
{
    struct iovec iov = { (void *)buf, len };

    return transfer(d, &iov, off, true, err);
}
