/* The first bytes of a raw image whose format was guessed.
 *
 * A guest may write what it likes into a raw disk.  If that were another
 * format's header, the next program that guesses would follow it, to a
 * backing file of the guest's choice for example.  So nothing is written that
 * would make the guess come out otherwise.  QEMU does so for block 0; here it
 * holds for all bytes that guessing looks at, which are the first ones alone:
 * what is at the end of the file (a fixed VHD's footer) only makes a warning.
 *
 * head_lock is held from the look to the end of the write, so that two writes
 * cannot do together what neither may do alone; it comes before any range.
 */
#include "core/request.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

/* Where the layer's byte 0 is in its file: the disk may be a window. */
static int window_start(struct img_layer *l, uint64_t *start,
                        struct img_error *err)
{
    struct img_run run = { 0 };
    int r = l->format->map(l, 0, 1, 0, &run, err);

    *start = run.host;
    return r;
}

/* The head as the write would leave it.  iov NULL = zeros. */
static void put_over(uint8_t *head, const struct iovec *iov, int n,
                     size_t at, size_t len)
{
    if (!iov)
        memset(head + at, 0, len);
    for (int i = 0; iov && i < n && len; i++) {
        size_t part = IMG_MIN(iov[i].iov_len, len);

        memcpy(head + at, iov[i].iov_base, part);
        at += part;
        len -= part;
    }
}

static int look(struct img_layer *l, const struct iovec *iov, int n,
                uint64_t off, uint64_t len, struct img_error *err)
{
    img_autofree uint8_t *head = NULL;
    const char *name = NULL;
    uint64_t start = 0, size = 0, at;
    int r = window_start(l, &start, err);

    if (r == 0)
        r = img_file_size(l->files[0], &size, err);
    at = start + off;
    if (r < 0 || at >= IMG_PROBE_BYTES)
        return r;
    head = calloc(1, IMG_PROBE_BYTES);
    if (!head)
        return img_fail_nomem(err);
    len = IMG_MIN(len, IMG_PROBE_BYTES - at);
    size = IMG_MIN(IMG_MAX(size, at + len), (uint64_t)IMG_PROBE_BYTES);
    r = img_file_pread(l->files[0], head, (size_t)size, 0, err);
    if (r < 0)
        return r;
    put_over(head, iov, n, (size_t)at, (size_t)len);
    name = img_chain_recognise(head, (size_t)size, l->path);
    if (!name)
        return 0;
    return img_fail(err, EPERM, "%s: its format was guessed to be raw, and "
                    "this write would make it look like %s; with the format "
                    "given it is allowed", l->path, name);
}

bool img_head_is_guarded(const struct img_io *io, unsigned to, uint64_t off,
                         uint64_t len)
{
    return io->chain->layers[to]->guessed && len && off < IMG_PROBE_BYTES;
}

int img_head_lock(struct img_io *io, unsigned to, const struct iovec *iov,
                  int n, uint64_t off, uint64_t len, struct img_error *err)
{
    int r;

    if (!img_head_is_guarded(io, to, off, len))
        return 0;
    img_lock(&io->head_lock);
    r = look(io->chain->layers[to], iov, n, off, len, err);
    if (r < 0)
        img_unlock(&io->head_lock);
    return r;
}

void img_head_unlock(struct img_io *io, unsigned to, uint64_t off,
                     uint64_t len)
{
    if (img_head_is_guarded(io, to, off, len))
        img_unlock(&io->head_lock);
}
