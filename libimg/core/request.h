/* What the files of core/ that move guest bytes share. */
#ifndef IMG_CORE_REQUEST_H
#define IMG_CORE_REQUEST_H
#include "core/io.h"

/* The buffers of a request, and room to describe a part of them. */
struct img_scatter {
    const struct iovec *iov;
    int n;
    struct iovec *part;         /* n + IMG_SCATTER_EDGES */
    struct iovec few[10];
};
enum { IMG_SCATTER_EDGES = 2 };

int img_scatter_init(struct img_scatter *s, const struct iovec *iov, int n,
                     struct img_error *err);
void img_scatter_free(struct img_scatter *s);

/* Reads [off, off + len) into the buffers from their byte `at` on.  The
 * caller sees to it that the map does not change meanwhile. */
int img_read_range(struct img_io *io, unsigned from, struct img_scatter *s,
                   size_t at, uint64_t off, size_t len,
                   struct img_error *err);

/* Refuses what cannot be written, and tells the format. */
int img_begin_change(struct img_io *io, unsigned to, uint64_t off,
                     uint64_t len, struct img_error *err);
int img_end_change(struct img_io *io, unsigned to, unsigned flags, int r,
                   struct img_error *err);
/* Notes corruption that a call of layer `to` met; returns r. */
int img_note(struct img_io *io, unsigned to, int r);

/* core/head.c.  Around every change of layer `to`, before any range is locked;
 * iov NULL = the bytes become zeros.  Refuses with -EPERM, and is not locked
 * then, what would make a raw image whose format was guessed look like
 * another format. */
int img_head_lock(struct img_io *io, unsigned to, const struct iovec *iov,
                  int n, uint64_t off, uint64_t len, struct img_error *err);
void img_head_unlock(struct img_io *io, unsigned to, uint64_t off,
                     uint64_t len);

/* Takes the range, widened to whole clusters, for a change of the map. */
void img_lock_map(struct img_io *io, unsigned to, struct img_range *range,
                  uint64_t off, uint64_t len);

/* Writes wherever the format says; img_lock_map is held. */
int img_write_locked(struct img_io *io, unsigned to, struct img_scatter *s,
                     size_t at, uint64_t off, size_t len,
                     struct img_error *err);
/* Fills, writes and publishes one place. */
int img_write_place(struct img_io *io, unsigned to, struct img_scatter *s,
                    size_t at, const struct img_place *place,
                    struct img_error *err);
/* Whole clusters, packed where that saves space; img_lock_map is held. */
int img_write_packed(struct img_io *io, unsigned to, struct img_scatter *s,
                     uint64_t off, size_t len, struct img_error *err);
/* Does the range read as zeros, going by the map alone?  A hole that only
 * a file system knows of does not count. */
int img_shows_zeros(struct img_io *io, unsigned from, uint64_t off,
                    uint64_t len, bool *zeros, struct img_error *err);
#endif
