/* Where whole-image work reads from: one disk, or several joined, each seen
 * from one of its layers down. */
#ifndef IMG_OPS_SOURCE_H
#define IMG_OPS_SOURCE_H
#include "core/io.h"

struct img_part {
    struct img_io *io;
    unsigned from;              /* topmost layer that is looked at */
    uint64_t start, size;       /* in the source */
    uint64_t skip;              /* of the disk, before what is in the source */
};

/* A file that is only read, and how long it was at first. */
struct img_length {
    struct img_file *file;
    uint64_t bytes;
};

struct img_source {
    struct img_part *parts;
    size_t n;
    struct img_length *lengths;
    size_t n_lengths;
    uint64_t size;              /* beyond it are zeros */
    unsigned flags;             /* of map: IMG_RUN_EXACT */
};

/* A run of the source with one answer; off is the source's. */
struct img_stretch {
    uint64_t off, end;
    enum img_run_kind kind;     /* ABSENT = nobody has it: zeros */
    unsigned depth;
    struct img_file *file;      /* DATA, PACKED */
    uint64_t host;
    uint64_t start;             /* off - start is the guest's, modulo 2^64 */
};


int img_source_join(struct img_source *source, struct img_disk *const *disks,
                    size_t n, struct img_error *err);
int img_source_one(struct img_source *source, struct img_io *io,
                   unsigned from, uint64_t size, struct img_error *err);
/* Leaves len bytes from off on, which are there. */
void img_source_cut(struct img_source *source, uint64_t off, uint64_t len);
void img_source_free(struct img_source *source);

/* After an error the stretch is empty: whoever shares it with other threads
 * must not take for zeros what could not be looked up. */
int img_source_map(const struct img_source *source, uint64_t off,
                   struct img_stretch *stretch, struct img_error *err);
int img_source_read(const struct img_source *source, void *buf, size_t len,
                    uint64_t off, struct img_error *err);

/* After reading: a file that has become shorter meanwhile read as zeros there,
 * which nobody wanted. */
int img_source_still_whole(const struct img_source *source,
                           struct img_error *err);

/* Whether reading waits for a server rather than for this machine. */
bool img_source_is_remote(const struct img_source *source);
bool img_chain_is_remote(const struct img_chain *chain);

static inline bool img_stretch_is_zero(const struct img_stretch *s)
{
    return s->kind == IMG_RUN_ABSENT || s->kind == IMG_RUN_ZERO;
}

/* Do both show the same bytes of the same file at off?  (Then there is no
 * need to read them.) */
bool img_stretch_is_same(const struct img_stretch *a,
                         const struct img_stretch *b, uint64_t off);
bool img_file_is_same(const struct img_file *a, const struct img_file *b);
#endif
