/* Exports: disks, or parts of them, under a name. */
#ifndef NBD_EXPORT_H
#define NBD_EXPORT_H
#include <libimg.h>
#include <pthread.h>
#include "handshake.h"

/* How images are opened; from the command line. */
struct nbd_image_options {
    const char *format;         /* NULL = find it out */
    const char *snapshot;
    unsigned open_flags;        /* IMG_OPEN_DIRECT and the like */
    bool read_only, temporary;  /* temporary: writes go to a scratch overlay */
    bool discard;               /* give space back */
    bool detect_zeroes, detect_unmap;
    uint64_t offset;            /* of the export in the disk */
    uint64_t window_offset, window_size;    /* as in libimg.h */
    unsigned partition;         /* from 1; 0 = the whole disk */
    const char *const *bitmaps;
    unsigned n_bitmaps;
    bool depth;                 /* qemu:allocation-depth */
    bool multi_conn;
    bool verbose;
    unsigned allow_files;       /* enum img_files */
    const char *allow_dir;
};

/* An open image.  Exports of one image share it, so that they agree. */
struct nbd_image {
    struct nbd_image *next;
    char *path, *snapshot;
    struct img_disk *disk;
    unsigned uses;
    bool writable;
};

struct nbd_export {
    struct nbd_export_view view;
    struct nbd_image *image;
    struct img_disk *disk;
    uint64_t base;              /* where in the disk it begins */
    bool discard, detect_zeroes, detect_unmap;
    int depth_context;          /* its ID, -1 = none */
    unsigned first_bitmap;      /* ID of the first bitmap's context */
    char *bitmaps[NBD_MAX_CONTEXTS];        /* [0] is the first one */
};

struct nbd_exports {
    struct nbd_image *images;
    struct nbd_export **list;
    const struct nbd_export_view **views;
    struct nbd_catalog catalog;
};

/* name and description are copied. */
int nbd_exports_add(struct nbd_exports *, const char *name,
                    const char *description, const char *path,
                    const struct nbd_image_options *, struct img_error *);
/* Flushes and closes all images; returns the first error. */
int nbd_exports_close(struct nbd_exports *, struct img_error *);

static inline struct nbd_export *
nbd_export_of(const struct nbd_export_view *view)
{
    return (struct nbd_export *)(uintptr_t)view;    /* its first member */
}

/* Ranges are inside the export.  These return 0 or a negative errno. */
int nbd_export_read(struct nbd_export *, void *buf, size_t len, uint64_t off,
                    struct img_error *);
int nbd_export_write(struct nbd_export *, const void *buf, size_t len,
                     uint64_t off, bool fua, struct img_error *);
int nbd_export_zero(struct nbd_export *, uint64_t off, uint64_t len,
                    uint16_t flags, struct img_error *);
int nbd_export_trim(struct nbd_export *, uint64_t off, uint64_t len, bool fua,
                    struct img_error *);
/* Without waiting for anything: -EAGAIN where that cannot be, or where
 * something is wrong. */
int nbd_export_read_now(struct nbd_export *, void *buf, size_t len,
                        uint64_t off);
/* Into a pipe, where that can be done without copying. */
int nbd_export_splice_now(struct nbd_export *, int pipe, size_t len,
                          uint64_t off);
int nbd_export_write_now(struct nbd_export *, const void *buf, size_t len,
                         uint64_t off);
/* How many bytes from off read as zeros because nothing is there, *hole;
 * where that is 0, how many may be something else, *data.  False (only if
 * now): tables would have to be read. */
bool nbd_export_hole(struct nbd_export *, uint64_t off, uint64_t len,
                     bool now, uint64_t *hole, uint64_t *data);
/* One run of equal status in the context of that ID. */
int nbd_export_status(struct nbd_export *, unsigned context, uint64_t off,
                      uint64_t len, uint64_t *run, uint32_t *flags,
                      struct img_error *);
#endif
