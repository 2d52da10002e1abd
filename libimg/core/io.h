/* Requests on a chain: read, write with fill, zero, discard, flush.
 * Everything that moves guest bytes is here, once for all formats. */
#ifndef IMG_CORE_IO_H
#define IMG_CORE_IO_H
#include "core/chain.h"
#include "core/range.h"

struct img_packer;

/* What requests share; part of struct img_disk. */
struct img_io {
    struct img_chain *chain;
    struct img_ranges ranges;
    struct img_mutex pack_lock;
    struct img_packer *packer;  /* one that nobody uses; may be NULL */
    enum img_codec packer_codec;
    struct img_mutex head_lock; /* core/head.c */
};

void img_io_init(struct img_io *, struct img_chain *);
void img_io_destroy(struct img_io *);

/* Reads what layers from..n-1 show. */
int img_io_read(struct img_io *, unsigned from, const struct iovec *, int n,
                uint64_t off, struct img_error *);
/* The same from the top, if tables and data are all in memory and nobody has
 * to be waited for; else -EAGAIN. */
int img_io_read_now(struct img_io *, const struct iovec *, int n,
                    uint64_t off);
/* img_splice_now. */
int img_io_splice_now(struct img_io *, int pipe, size_t len, uint64_t off);
/* These change layer `to` (0 but for commit), filling from it and below. */
int img_io_write(struct img_io *, unsigned to, const struct iovec *, int n,
                 uint64_t off, unsigned flags, struct img_error *);
/* The same for layer 0, if every byte has its place in the page cache and
 * nobody has to be waited for; else -EAGAIN, and some may have been
 * written. */
int img_io_write_now(struct img_io *, const struct iovec *, int n,
                     uint64_t off);
int img_io_zero(struct img_io *, unsigned to, uint64_t off, uint64_t len,
                unsigned flags, struct img_error *);
/* The range is block aligned or ends with the layer. */
int img_io_unmap(struct img_io *, unsigned to, uint64_t off, uint64_t len,
                 enum img_unmap, struct img_error *);
/* Any alignment: only whole blocks are given back. */
int img_io_discard(struct img_io *, unsigned to, uint64_t off, uint64_t len,
                   struct img_error *);
int img_io_flush(struct img_io *, unsigned to, struct img_error *);

/* Is it watched what is written there?  Then it has to be img_io_write that
 * does it, and not the steps below. */
bool img_head_is_guarded(const struct img_io *, unsigned to, uint64_t off,
                         uint64_t len);

/* One packed cluster into layer `to`: the three steps apart, so that convert
 * can order the first and run the others in parallel.  The caller is the only
 * writer of that guest range. */
int img_io_reserve_packed(struct img_io *, unsigned to, uint64_t off,
                          uint32_t packed, struct img_place *,
                          struct img_error *);
/* Likewise for plain data, whole clusters: places[] gets as many as are
 * needed, at most max; *n says how many. */
int img_io_reserve(struct img_io *, unsigned to, uint64_t off, uint64_t len,
                   struct img_place *places, unsigned max, unsigned *n,
                   struct img_error *);
/* Writes data at the place and publishes it; abandons it on error. */
int img_io_put(struct img_io *, unsigned to, const struct img_place *,
               const void *data, struct img_error *);
#endif
