/* libimg: disk images as block devices.
 *
 * A disk (struct img_disk) is an open image with everything below it: its
 * backing files, external data files and extents.  Reads fall through the
 * backing chain, writes go to the top image.
 *
 * Errors.  Every function that can fail returns 0 (or a count) on success and
 * a negative errno value on failure, and explains itself in *err if err is
 * not NULL.  The codes are -EINVAL, -ENOTSUP, -ENOENT, -EACCES, -EROFS,
 * -EBUSY (locked by another program, or others depend on it), -ENOSPC, -EFBIG,
 * -EIO, -ENOMEM, -ECANCELED, -EEXIST and -IMG_ECORRUPT; the operating system
 * may add others for a file that cannot be opened.
 *
 * Threads.  Any number of threads may use one disk at once, except where a
 * function says otherwise.  img_close must be the last call.
 *
 * No function prints, exits, changes a signal handler or keeps process-wide
 * state.  Options structures start with their own size; zero is the default
 * of every field.  Sizes and offsets are in bytes.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef LIBIMG_H
#define LIBIMG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define IMG_VERSION 100         /* 0.1.0 */

struct img_disk;                /* an open image and everything below it */
struct img_queue;               /* requests in flight on one disk */

/* ---- errors ------------------------------------------------------------ */

struct img_error {
    int code;                   /* errno value, positive; 0 = no error */
    char message[508];          /* one line, no newline, names the file */
};

#define IMG_ECORRUPT 117        /* EUCLEAN: the image contradicts its format */

/* ---- library ----------------------------------------------------------- */

struct img_option_info {
    const char *name;           /* "cluster_size"; NULL ends a list */
    const char *values;         /* "size", "on|off", "str", "num", "a|b|c" */
    const char *summary;        /* one line */
    unsigned flags;             /* IMG_OPTION_* */
};
enum { IMG_OPTION_AMEND = 1 };  /* img_amend takes it too */

struct img_format_info {
    const char *name;           /* "qcow2" */
    unsigned features;          /* IMG_CAN_* */
    const struct img_option_info *create_options;
};
enum {
    IMG_CAN_WRITE = 1, IMG_CAN_CREATE = 2, IMG_CAN_BACK = 4,
    IMG_CAN_RESIZE = 8, IMG_CAN_COMPRESS = 16, IMG_CAN_SNAPSHOT = 32,
    IMG_CAN_BITMAP = 64, IMG_CAN_CHECK = 128, IMG_SEQUENTIAL = 256,
    IMG_CAN_AMEND = 512
};

unsigned img_version(void);
const struct img_format_info *img_format(size_t index);   /* NULL = past end */
const struct img_format_info *img_format_by_name(const char *name);

/* ---- opening ----------------------------------------------------------- */

/* Asked for every file an image refers to: backing files, data files,
 * extents.  referrer is the path of the image that names it, name is the
 * name as the image has it.  Returns an open descriptor, which the library
 * then owns, or a negative errno. */
typedef int img_resolve_fn(void *opaque, const char *referrer,
                           const char *name, bool writable);

/* Told of what is odd but no error: an overlay that records no backing
 * format, a base changed since the overlay was made.  One line. */
typedef void img_warn_fn(void *opaque, const char *message);

enum { IMG_CHAIN_MAX = 1024 };  /* layers; longer chains are not opened */

enum {
    IMG_OPEN_WRITE = 1,         /* default is read-only */
    IMG_OPEN_PROBE = 2,         /* find the format out; never for guest data.
                                   When it is raw, writes that would change
                                   the answer fail with -EPERM */
    IMG_OPEN_PROBE_BACKING = 4, /* likewise an undeclared backing format */
    IMG_OPEN_NO_BACKING = 8,    /* top layer alone; holes read as zeros */
    IMG_OPEN_DIRECT = 16,       /* bypass the page cache */
    IMG_OPEN_NO_SYNC = 32,      /* flush does nothing; scratch images */
    IMG_OPEN_NO_LOCK = 64,      /* somebody else may have it open (-U) */
    IMG_OPEN_REPAIR = 128,      /* for img_check: open what is too damaged
                                   to be read or written otherwise */
    IMG_OPEN_WRITETHROUGH = 256,/* every write is durable on return */
    IMG_OPEN_UNMAP = 512,       /* discards give space back to the file
                                   system (-d unmap) */
    IMG_OPEN_FREE_NAMES = 1024, /* VMDK extents may lie outside the image's
                                   folder; for images that are trusted */
    IMG_OPEN_DESCRIBE = 2048,   /* for img_info_get alone, read-only: a qcow2
                                   image's data file stays closed, and so do
                                   VMDK extents under IMG_FILES_NONE; what is
                                   in them cannot be read.  With NO_BACKING a
                                   VDI image's parent is not looked for */
    IMG_OPEN_FORCE = 4096       /* img_commit, img_resize, img_rebase and
                                   img_snapshot_apply may change what an
                                   image shows even though other images in
                                   its folder rest on it; else -EBUSY */
};

/* Which of the files that an image names may be opened: backing files, data
 * files, extents.  Names inside an image are data, whoever wrote them; what
 * the caller names himself (path, backing) is not asked about. */
enum img_files {
    IMG_FILES_LOCAL,            /* what the owner of the image set up: any
                                   path, but no URL and no option list; VMDK
                                   extents only in the image's folder */
    IMG_FILES_NONE,             /* the image is one file, or is refused */
    IMG_FILES_BESIDE,           /* in the folder of the file that names them,
                                   or below it */
    IMG_FILES_UNDER,            /* in the folder allow_dir, or below it */
    IMG_FILES_ANY               /* NBD servers too */
};

struct img_open_options {
    size_t size;
    unsigned flags;             /* IMG_OPEN_* */
    const char *format;         /* NULL only with IMG_OPEN_PROBE */
    const char *snapshot;       /* read-only view of this internal snapshot,
                                   an ID or a name */
    uint64_t cache_bytes;       /* all caches of the whole chain; 0 = 40 MiB */
    img_resolve_fn *resolve;    /* NULL = open paths next to the referrer */
    void *resolve_opaque;
    img_warn_fn *warn;          /* NULL = nobody wants to know */
    void *warn_opaque;
    const char *backing;        /* use this file instead of the recorded one;
                                   "" = none; relative to the process */
    const char *backing_format; /* of it; or of the recorded one, if that
                                   declares none */
    uint64_t window_offset;     /* raw only: the disk is this part of the */
    uint64_t window_size;       /* file; 0 = up to its end */
    unsigned allow_files;       /* enum img_files; BESIDE and UNDER look at
                                   where symbolic links lead */
    const char *allow_dir;      /* for IMG_FILES_UNDER */
};
#define IMG_OPEN_OPTIONS { .size = sizeof(struct img_open_options) }

/* Finds out which format the file has ("raw" when nothing is recognised).
 * *format is a constant string. */
int img_probe(const char *path, const char **format, struct img_error *err);

int img_open(const char *path, const struct img_open_options *opts,
             struct img_disk **disk, struct img_error *err);

/* Takes the descriptor over, on failure too. */
int img_open_fd(int fd, const struct img_open_options *opts,
                struct img_disk **disk, struct img_error *err);

/* Flushes, writes back what is cached and frees, whatever it returns.
 * NULL is fine. */
int img_close(struct img_disk *disk, struct img_error *err);

/* ---- creating ---------------------------------------------------------- */

enum {
    IMG_CREATE_NO_OPEN_BACKING = 1, /* -u: trust the given size and format */
    IMG_CREATE_NO_SYNC = 2,     /* neither the file nor its folder is synced */
    IMG_CREATE_IN_PLACE = 4,    /* write over the target instead of beside
                                   it; block devices always are */
    IMG_CREATE_DIRECT = 8       /* bypass the page cache */
};

struct img_create_options {
    size_t size;
    const char *format;
    uint64_t disk_size;         /* 0 = that of the backing file, if there is
                                   one and has_size is false */
    bool has_size;              /* disk_size is meant, even 0 */
    const char *backing;        /* as it will be recorded; relative to the
                                   new image */
    const char *backing_format; /* NULL = found out and recorded */
    const char *const *settings;/* "key=value", ends with NULL */
    unsigned flags;             /* IMG_CREATE_* */
    unsigned allow_files;       /* enum img_files: what the backing file */
    const char *allow_dir;      /* names in turn */
};
#define IMG_CREATE_OPTIONS { .size = sizeof(struct img_create_options) }

/* Makes a new image.  An existing file of that name is replaced, but only
 * when the new one is complete, and never while somebody has it locked
 * (-EBUSY). */
int img_create(const char *path, const struct img_create_options *opts,
               struct img_error *err);

/* The settings that img_create would use, after defaults and what the backing
 * file says: an array of "key=value" strings, ends with NULL, in the order in
 * which qemu-img lists them; "size", "backing_file" and "backing_fmt" among
 * them.  Free it with img_settings_free. */
int img_create_resolve(const char *path, const struct img_create_options *opts,
                       char ***settings, struct img_error *err);
void img_settings_free(char **settings);

/* ---- shape ------------------------------------------------------------- */

struct img_limits {
    uint32_t block;             /* smallest addressable unit, bytes */
    uint32_t cluster;           /* allocation unit; whole ones write fastest */
    uint32_t discard;           /* smaller discards are ignored */
    uint32_t memory_align;
    uint64_t max_transfer;
    bool writable, zero_is_cheap;
    uint64_t reserved[4];
};

uint64_t img_size(const struct img_disk *disk);
void img_limits(const struct img_disk *disk, struct img_limits *limits);
const char *img_format_name(const struct img_disk *disk);
const char *img_path(const struct img_disk *disk);

/* ---- data, blocking.  Any number of threads. --------------------------- */

enum {
    IMG_FUA = 1,                /* durable before returning */
    IMG_MAY_UNMAP = 2,          /* zeroing may give space back */
    IMG_FAST_ONLY = 4,          /* -ENOTSUP rather than write real zeros */
    IMG_COMPRESS = 8            /* store compressed; whole clusters only, see
                                   img_limits.  A read-modify-write of a
                                   compressed cluster makes it plain again */
};

/* Ranges beyond the end of the disk are -EINVAL. */
int img_pread(struct img_disk *disk, void *buf, size_t len, uint64_t off,
              struct img_error *err);
int img_preadv(struct img_disk *disk, const struct iovec *iov, int iovcnt,
               uint64_t off, struct img_error *err);
int img_pwrite(struct img_disk *disk, const void *buf, size_t len,
               uint64_t off, unsigned flags, struct img_error *err);
int img_pwritev(struct img_disk *disk, const struct iovec *iov, int iovcnt,
                uint64_t off, unsigned flags, struct img_error *err);
/* For servers that must not be held up: 0, or -EAGAIN where a device, a lock,
 * inflating or making room would have to be waited for, and for whatever is
 * wrong: then img_pread or img_pwrite, on another thread, does it and says
 * what.  Some of it may have been read or written. */
int img_pread_now(struct img_disk *disk, void *buf, size_t len, uint64_t off);
int img_pwrite_now(struct img_disk *disk, const void *buf, size_t len,
                   uint64_t off);
/* As img_pread_now, for long reads that go on to a socket: puts the pages with
 * these bytes into a pipe without copying them, for splice(2).  -EAGAIN also
 * where the range is not all data of one piece of one file, or where its place
 * might come to hold other bytes of the disk (a qcow2 open for writing), and
 * where the pipe is too small; some of it may be in the pipe then.
 *
 * Whoever reads the pipe later sees what was written to these bytes of the
 * disk meanwhile.  So it goes with reads and writes that overlap in time;
 * where the order matters, do not use it.  No commit, rebase or
 * snapshot operation of this disk before the pipe's reader has all of it. */
int img_splice_now(struct img_disk *disk, int pipe, size_t len, uint64_t off);
/* Reads as zeros afterwards.  Any alignment. */
int img_zero(struct img_disk *disk, uint64_t off, uint64_t len, unsigned flags,
             struct img_error *err);
/* A hint: what is read afterwards is zeros or the old content, never what a
 * backing file holds there. */
int img_discard(struct img_disk *disk, uint64_t off, uint64_t len,
                struct img_error *err);
/* All writes that returned before it are durable after it. */
int img_flush(struct img_disk *disk, struct img_error *err);

/* The state of a virtual machine that QEMU keeps in the image, behind the
 * disk's end: what is there now, not what snapshots have.  What was never
 * written reads as zeros.  -ENOTSUP: the format has no place for it.  For
 * debugging: no other request is served meanwhile. */
int img_vmstate_pread(struct img_disk *disk, void *buf, size_t len,
                      uint64_t off, struct img_error *err);
int img_vmstate_pwrite(struct img_disk *disk, const void *buf, size_t len,
                       uint64_t off, struct img_error *err);

/* ---- data, queued.  One thread per queue, many queues per disk. -------- */

enum img_op { IMG_READ, IMG_WRITE, IMG_ZERO, IMG_DISCARD, IMG_FLUSH };

struct img_request {
    enum img_op op;
    unsigned flags;
    uint64_t off, len;          /* len is ignored where iov is given */
    const struct iovec *iov;    /* must live until the completion */
    int iovcnt;
    void *user;
};

struct img_completion {
    void *user;
    int result;                 /* 0 or negative errno */
    const char *message;        /* NULL on success; valid until next reap */
};

int img_queue_open(struct img_disk *disk, unsigned depth,
                   struct img_queue **queue, struct img_error *err);
/* Returns how many of the n were taken: all, unless depth are in flight. */
int img_queue_submit(struct img_queue *queue, const struct img_request *reqs,
                     int n);
/* Waits until min are complete or timeout_ms have passed (-1 = for ever);
 * returns how many of at most max were stored. */
int img_queue_reap(struct img_queue *queue, struct img_completion *done,
                   int min, int max, int timeout_ms);
int img_queue_fd(const struct img_queue *queue);    /* readable: reap */
void img_queue_close(struct img_queue *queue); /* waits for all in flight */

/* ---- what is where ----------------------------------------------------- */

enum img_kind { IMG_DATA, IMG_ZEROS, IMG_COMPRESSED, IMG_HOLE };

struct img_extent {
    uint64_t off, len;
    enum img_kind kind;         /* HOLE: no layer that was looked at has it;
                                   it reads as zeros */
    unsigned depth;             /* layer it comes from, 0 = top */
    uint64_t host_off;          /* where in that layer's file, also of ZEROS
                                   that keep their place; else ~0.  See
                                   IMG_MAP_PLACES */
    unsigned file;              /* which file of that layer */
    bool dirty;                 /* img_bitmap_map only */
    bool sparse;                /* ZEROS, with IMG_MAP_EXACT: data to the
                                   format, a hole to the file system */
    uint64_t reserved[4];
};
enum {
    IMG_MAP_TOP = 1,            /* do not look below the top layer */
    IMG_MAP_EXACT = 2,          /* ask the file system for holes too */
    IMG_MAP_NOW = 4,            /* -EAGAIN rather than read tables */
    IMG_MAP_PLACES = 8          /* tell of the places of holes, too:
                                   subclusters whose cluster has one */
};

/* The longest run beginning at off, at most len, with one answer. */
int img_map(struct img_disk *disk, uint64_t off, uint64_t len, unsigned flags,
            struct img_extent *extent, struct img_error *err);
/* As many of them, one after the other, as there is room for; at least one.
 * Quicker than one by one where there are many. */
int img_map_list(struct img_disk *disk, uint64_t off, uint64_t len,
                 unsigned flags, struct img_extent *extents, size_t room,
                 size_t *n, struct img_error *err);

/* Path of file number `file` of the layer at `depth`; NULL = there is none.
 * Valid until the disk is closed, resized, committed or rebased. */
const char *img_file_name(const struct img_disk *disk, unsigned depth,
                          unsigned file);

/* ---- description ------------------------------------------------------- */

enum img_value_type {
    IMG_VALUE_BOOL, IMG_VALUE_UINT, IMG_VALUE_STRING,
    IMG_VALUE_LIST, IMG_VALUE_GROUP
};

/* A format-specific fact.  Names are qemu-img's JSON keys ("lazy-refcounts");
 * human output replaces '-' by ' '. */
struct img_value {
    const char *name;           /* NULL inside a list */
    enum img_value_type type;
    bool flag;
    uint64_t number;
    const char *text;
    struct img_value *items;    /* of LIST and GROUP */
    size_t n_items;
};

struct img_snapshot_info {
    const char *id, *name;
    uint64_t vm_state_size;
    uint64_t date_sec;          /* since 1970 */
    uint32_t date_nsec;
    uint64_t vm_clock_nsec;
    uint64_t icount;            /* ~0 = not recorded */
    uint64_t disk_size;
};

struct img_bitmap_info {
    const char *name;
    uint32_t granularity;       /* guest bytes per bit */
    bool enabled;               /* "auto": records writes */
    bool inconsistent;          /* "in-use": not saved after the last use */
    bool persistent;
};

/* Is the file at backing_path as the image notes it, by its length and time
 * alone?  Opening it tells more, by way of img_warn_fn. */
enum img_base_state {
    IMG_BASE_UNKNOWN,           /* nothing is noted, or it is not there */
    IMG_BASE_SAME,
    IMG_BASE_TOUCHED,           /* its time of modification is another */
    IMG_BASE_CHANGED            /* its length is */
};

struct img_info {
    const char *path, *format;
    uint64_t size;              /* of the guest's disk */
    uint64_t allocated;         /* on the host's disk, all files; ~0 = an NBD
                                   server does not tell */
    uint64_t file_length;       /* of the image file */
    uint32_t cluster_size;      /* 0 = the format has none */
    bool dirty, corrupt, encrypted, compressed;
    const char *backing;        /* as recorded; NULL = none */
    const char *backing_path;   /* as it would be opened */
    const char *backing_format; /* as recorded; NULL = not recorded */
    struct img_snapshot_info *snapshots;
    size_t n_snapshots;
    struct img_bitmap_info *bitmaps;
    size_t n_bitmaps;
    struct img_value *specific; /* a GROUP, NULL = nothing to say */
    struct img_info *below;     /* the backing file's, if it was opened */
    enum img_base_state base_state;
};

/* The whole chain, top first (->below).  Free with img_info_free. */
int img_info_get(struct img_disk *disk, struct img_info **info,
                 struct img_error *err);
void img_info_free(struct img_info *info);

/* ---- files from strangers ---------------------------------------------- */

struct img_finding {
    const char *check;          /* "backing_file", "polyglot" ... */
    const char *text;           /* one line */
    bool rejects;               /* it is why the file is not safe */
};

struct img_reference {          /* to another file; none is opened */
    const char *kind;           /* "backing-file", "data-file", "extent",
                                   "parent" */
    const char *name;           /* as recorded, whatever bytes it has */
};

struct img_verdict {
    bool safe;
    const char *format;         /* "raw" for whatever is no container; a
                                   constant string */
    const char **matches;       /* everything the bytes look like, "gpt",
                                   "iso" and formats that are not read too;
                                   constant strings, raw never */
    size_t n_matches;
    uint64_t size;              /* of the disk; 0 = not known */
    uint64_t file_length;
    bool encrypted;
    struct img_finding *findings;
    size_t n_findings;
    struct img_reference *references;
    size_t n_references;
};

struct img_inspect_options {
    size_t size;
    const char *expect;         /* a format, "raw" or "iso"; NULL = any */
    bool untrusted;             /* references to other files and odd features
                                   reject too */
    uint64_t max_size;          /* a larger disk is rejected; 0 = no limit */
};
#define IMG_INSPECT_OPTIONS { .size = sizeof(struct img_inspect_options) }

/* Looks at a file by strict rules, those of OpenStack's format inspector
 * among them, and opens nothing else.  Less than 0 only where nothing can be
 * said; a file that is damaged gets a verdict. */
int img_inspect(const char *path, const struct img_inspect_options *opts,
                struct img_verdict **verdict, struct img_error *err);
void img_verdict_free(struct img_verdict *verdict);

/* ---- snapshots and bitmaps --------------------------------------------- */

/* Snapshots are named by ID or by name, an ID first.  apply makes the disk
 * what it was; its size may change. */
int img_snapshot_create(struct img_disk *disk, const char *name,
                        struct img_error *err);
int img_snapshot_apply(struct img_disk *disk, const char *name,
                       struct img_error *err);
int img_snapshot_delete(struct img_disk *disk, const char *name,
                        struct img_error *err);

enum img_bitmap_verb { IMG_BITMAP_ADD, IMG_BITMAP_REMOVE, IMG_BITMAP_CLEAR,
                       IMG_BITMAP_ENABLE, IMG_BITMAP_DISABLE };
/* granularity: guest bytes per bit, a power of two from 512; 0 = 64 KiB.
 * Only ADD looks at it. */
int img_bitmap_edit(struct img_disk *disk, const char *name,
                    enum img_bitmap_verb verb, uint32_t granularity,
                    struct img_error *err);
/* Sets in `to_name` every bit that is set in `from_name`.  As with img_copy,
 * not in both directions at once. */
int img_bitmap_merge(struct img_disk *to, const char *to_name,
                     struct img_disk *from, const char *from_name,
                     struct img_error *err);
int img_bitmap_map(struct img_disk *disk, const char *name, uint64_t off,
                   uint64_t len, struct img_extent *extent,
                   struct img_error *err);

/* ---- whole-image work -------------------------------------------------- */

/* Shared by all of these.  progress is called on the calling thread only, at
 * least ten times a second while there is work; nonzero means stop, and the
 * operation then returns -ECANCELED with the images consistent.  Of the disks
 * that are worked on it may ask img_size (as it was before), img_path and
 * img_format_name, and nothing else. */
struct img_job {
    size_t size;
    int (*progress)(void *opaque, uint64_t done, uint64_t total);
    void *opaque;
    unsigned threads;           /* 0 = choose */
    uint64_t bytes_per_second;  /* 0 = as fast as possible (-r) */
};
#define IMG_JOB { .size = sizeof(struct img_job) }

struct img_convert_options {
    size_t size;
    const struct img_create_options *create;
    bool no_sparse;             /* -S 0: write zeros out */
    uint32_t sparse_bytes;      /* runs of zeros this long become holes;
                                   0 = 4096 */
    bool compress;
    bool target_exists;         /* -n: write into it, do not create */
    bool target_is_zero;        /* the existing target reads as zeros */
    bool bitmaps;               /* copy the source's bitmaps */
    bool skip_broken_bitmaps;   /* leave out inconsistent ones, not fail */
    bool salvage;               /* read errors become zeros; reported by warn */
    bool out_of_order;          /* -W; layout stays reproducible all the same */
    bool copy_range;            /* -C: let the file system copy */
    bool no_sync;               /* the target need not be durable */
    bool direct;                /* target: bypass the page cache */
    img_warn_fn *warn;
    void *warn_opaque;
    bool has_range;             /* only these bytes of the source; not with */
    uint64_t offset, length;    /* bitmaps */
    const char *scratch;        /* folder of a nameless file, where one is
                                   needed; NULL = /var/tmp */
};
#define IMG_CONVERT_OPTIONS { .size = sizeof(struct img_convert_options) }

struct img_check_result {
    uint64_t errors, leaks, errors_fixed, leaks_fixed;
    uint64_t allocated, fragmented, compressed, total; /* clusters */
    uint64_t end_offset;        /* first byte behind the last used cluster */
    uint64_t check_errors;      /* places that could not be looked at */
    bool corrupt_bit_cleared;
    uint64_t reserved[4];
};
enum { IMG_REPAIR_LEAKS = 1, IMG_REPAIR_ALL = 3 };

struct img_check_options {
    size_t size;
    unsigned repair;            /* 0, IMG_REPAIR_LEAKS, IMG_REPAIR_ALL */
    img_warn_fn *report;        /* each finding, one line */
    void *report_opaque;
    uint64_t memory;            /* for counting, at most; 0 = 256 MiB.  What
                                   does not fit takes further passes */
};
#define IMG_CHECK_OPTIONS { .size = sizeof(struct img_check_options) }

struct img_measure { uint64_t required, fully_allocated, bitmaps;
                     bool has_bitmaps; uint64_t reserved[4]; };

enum img_prealloc {
    IMG_PREALLOC_OFF, IMG_PREALLOC_METADATA, IMG_PREALLOC_FALLOC,
    IMG_PREALLOC_FULL
};

/* Several sources are joined, one after the other.  `to` appears whole or not
 * at all. */
int img_convert(struct img_disk *const *from, size_t n_from, const char *to,
                const struct img_convert_options *opts,
                const struct img_job *job, struct img_error *err);
/* Writes the image to a descriptor that need not be seekable: raw, qcow2 and
 * streamOptimized VMDK in one pass where the options allow it, others by way
 * of a nameless file in the folder opts->scratch.  The caller ignores SIGPIPE. */
int img_convert_fd(struct img_disk *const *from, size_t n_from, int fd,
                   const struct img_convert_options *opts,
                   const struct img_job *job, struct img_error *err);
/* Into an open disk, which must be at least as large (convert -n).  It serves
 * no other request meanwhile; the sources do.  Two disks must not be copied
 * into each other at once: each call would wait for the other one. */
int img_copy(struct img_disk *const *from, size_t n_from, struct img_disk *to,
             const struct img_convert_options *opts,
             const struct img_job *job, struct img_error *err);

/* Returns 0 = equal, 1 = they differ, first at *differ_at; 2 = (strict only)
 * the size differs (*differ_at is the smaller one), or one has nothing where
 * the other one has data or zeros, first at *differ_at.  Without strict the
 * longer disk's tail must be zeros. */
int img_compare(struct img_disk *a, struct img_disk *b, bool strict,
                const struct img_job *job, uint64_t *differ_at,
                struct img_error *err);

/* Moves everything above layer to_depth (at least 1) into that layer.
 * keep: leave the layers above as they are; else the top one is emptied.
 * With to_depth above 1 they stay as they are in any case, for an emptied top
 * would show what the layers between have. */
int img_commit(struct img_disk *disk, unsigned to_depth, bool keep,
               const struct img_job *job, struct img_error *err);

/* backing "" or NULL = none.  unsafe: change only the name.  compress: -c. */
struct img_rebase_options {
    size_t size;
    const char *backing, *backing_format;
    bool unsafe, compress;
};
#define IMG_REBASE_OPTIONS { .size = sizeof(struct img_rebase_options) }
int img_rebase(struct img_disk *disk, const struct img_rebase_options *opts,
               const struct img_job *job, struct img_error *err);

/* Shrinking needs shrink, for what is cut off is lost. */
int img_resize(struct img_disk *disk, uint64_t size, bool shrink,
               enum img_prealloc prealloc, const struct img_job *job,
               struct img_error *err);
/* Fills *result as far as it came, on failure too. */
int img_check(struct img_disk *disk, const struct img_check_options *opts,
              const struct img_job *job, struct img_check_result *result,
              struct img_error *err);
/* from may be NULL: then an empty disk of opts->disk_size. */
int img_measure(struct img_disk *from, const struct img_create_options *opts,
                struct img_measure *result, struct img_error *err);
int img_amend(struct img_disk *disk, const char *const *settings,
              const struct img_job *job, struct img_error *err);

#ifdef __cplusplus
}
#endif
#endif
