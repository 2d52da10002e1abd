/* Positioned I/O on one file of an image.
 *
 * Everything above this module sees transfers that are complete or failed:
 * short counts, EINTR and O_DIRECT's alignment end here.  Any number of
 * threads may use one file.  Error messages name the file.
 */
#ifndef IMG_FILE_FILE_H
#define IMG_FILE_FILE_H
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct img_error;
struct img_file;

enum {
    IMG_FILE_WRITE = 1,
    IMG_FILE_CREATE = 2,        /* with O_EXCL: it must not exist */
    IMG_FILE_DIRECT = 4,
    IMG_FILE_NO_SYNC = 8,       /* sync does nothing */
    IMG_FILE_BY_USER = 16       /* the user gave the name, no image did: it
                                   may be an NBD server's */
};

/* Flags of img_file_zero, values as in libimg.h. */
enum { IMG_FILE_MAY_UNMAP = 2, IMG_FILE_FAST_ONLY = 4 };

/* What a kind of file has to be able to do.  NULL = -ENOTSUP, but for those
 * marked with *.  Lengths are never 0.  Ranges may lie beyond the end. */
struct img_file_ops {
    const char *kind;
    /* * Bytes beyond the end of the file read as zeros. */
    int (*preadv)(struct img_file *, const struct iovec *, int n,
                  uint64_t off, struct img_error *);
    /* The same from memory alone: -EAGAIN rather than wait for a device. */
    int (*preadv_now)(struct img_file *, const struct iovec *, int n,
                      uint64_t off);
    /* The pages themselves into a pipe, if they are in memory and fit: 0, or
     * -EAGAIN with some of them in the pipe. */
    int (*splice_now)(struct img_file *, int pipe, size_t len, uint64_t off);
    int (*pwritev)(struct img_file *, const struct iovec *, int n,
                   uint64_t off, struct img_error *);
    /* The range reads as zeros afterwards; -ENOTSUP where only writing
     * zeros would do that.  The file grows to hold it. */
    int (*zero)(struct img_file *, uint64_t off, uint64_t len,
                unsigned flags, struct img_error *);
    /* Give space back.  Reads as zeros afterwards, or -ENOTSUP. */
    int (*punch)(struct img_file *, uint64_t off, uint64_t len,
                 struct img_error *);
    /* Reserve space; content and length of the file do not change but for
     * growing to hold the range. */
    int (*allocate)(struct img_file *, uint64_t off, uint64_t len,
                    struct img_error *);
    int (*truncate)(struct img_file *, uint64_t size, struct img_error *);
    int (*sync)(struct img_file *, struct img_error *);                 /* */
    int (*size)(struct img_file *, uint64_t *size, struct img_error *); /* */
    /* How many bytes from off are all data, or all hole. */
    int (*extent)(struct img_file *, uint64_t off, uint64_t len,
                  bool *is_data, uint64_t *run, struct img_error *);
    /* Share blocks: to's range becomes from's.  No fall-back to copying. */
    int (*reflink)(struct img_file *to, uint64_t to_off,
                   struct img_file *from, uint64_t from_off, uint64_t len,
                   struct img_error *);
    int (*lock)(struct img_file *, unsigned perm, unsigned shared,
                struct img_error *);
    uint64_t (*allocated)(struct img_file *);
    void (*close)(struct img_file *);                                   /* */
};

struct img_file {
    const struct img_file_ops *ops;
    char *path;                 /* for messages, and to find neighbours */
    int fd;                     /* -1 = not a descriptor */
    bool writable, no_sync, is_device;
    bool never_now;             /* preadv_now does not work here */
    bool in_memory;             /* all of it always is: tmpfs */
    uint32_t align;             /* of offsets and lengths, 1 but for O_DIRECT
                                   and devices, a power of two */
    uint64_t device, inode;     /* 0, 0 = has none */
    void *state;                /* of ops */
};

int img_file_open(const char *path, unsigned flags, struct img_file **file,
                  struct img_error *err);
/* Takes the descriptor over, on failure too. */
int img_file_from_fd(int fd, const char *path, unsigned flags,
                     struct img_file **file, struct img_error *err);
/* A file in memory, empty and writable. */
int img_file_in_memory(const char *path, struct img_file **file,
                       struct img_error *err);
void img_file_close(struct img_file *file);     /* NULL is fine */
/* O_DIRECT writes whole blocks only, so that a file that ends within one
 * would grow.  Nobody else may be using file. */
int img_file_use_page_cache(struct img_file *file, struct img_error *err);

int img_file_pread(struct img_file *file, void *buf, size_t len, uint64_t off,
                   struct img_error *err);
int img_file_preadv(struct img_file *file, const struct iovec *iov, int n,
                    uint64_t off, struct img_error *err);
/* Reads only what is in memory already: 0, or -EAGAIN with nothing promised
 * about the buffers. */
int img_file_preadv_now(struct img_file *file, const struct iovec *iov, int n,
                        uint64_t off);
/* Puts the pages with these bytes into a pipe, without copying them: what is
 * written to them afterwards is seen at its other end.  0, or -EAGAIN, where
 * some of it may be in the pipe. */
int img_file_splice_now(struct img_file *file, int pipe, size_t len,
                        uint64_t off);
/* Do writes end in the page cache, without waiting for a device? */
bool img_file_is_cached(const struct img_file *file);
int img_file_pwrite(struct img_file *file, const void *buf, size_t len,
                    uint64_t off, struct img_error *err);
int img_file_pwritev(struct img_file *file, const struct iovec *iov, int n,
                     uint64_t off, struct img_error *err);
/* Writes zeros where the file cannot do better, unless FAST_ONLY. */
int img_file_zero(struct img_file *file, uint64_t off, uint64_t len,
                  unsigned flags, struct img_error *err);
/* Writes them out, whatever the file could do better. */
int img_file_write_zeros(struct img_file *file, uint64_t off, uint64_t len,
                         struct img_error *err);
/* A hint: gives space back if the file can; only real errors are reported. */
int img_file_discard(struct img_file *file, uint64_t off, uint64_t len,
                     struct img_error *err);
int img_file_allocate(struct img_file *file, uint64_t off, uint64_t len,
                      struct img_error *err);
int img_file_truncate(struct img_file *file, uint64_t size,
                      struct img_error *err);
int img_file_sync(struct img_file *file, struct img_error *err);
int img_file_size(struct img_file *file, uint64_t *size,
                  struct img_error *err);
/* All data where the file cannot tell. */
int img_file_extent(struct img_file *file, uint64_t off, uint64_t len,
                    bool *is_data, uint64_t *run, struct img_error *err);
int img_file_reflink(struct img_file *to, uint64_t to_off,
                     struct img_file *from, uint64_t from_off, uint64_t len,
                     struct img_error *err);
/* When it was written to last, ns since 1970; 0 = not known. */
uint64_t img_file_modified(const struct img_file *file);
/* Bytes on the disk; UINT64_MAX = nobody knows. */
uint64_t img_file_allocated(struct img_file *file);

/* ---- QEMU's image locks ------------------------------------------------
 *
 * QEMU 7.2's file driver holds a shared open-file-description lock on byte
 * 100 + i for permission i that it uses, and on byte 200 + i for permission
 * i that it does not let others use (found with lslocks on running QEMUs;
 * the permissions are numbered as in its block layer's documentation). */
enum {
    IMG_PERM_READ = 1, IMG_PERM_WRITE = 2, IMG_PERM_WRITE_UNCHANGED = 4,
    IMG_PERM_RESIZE = 8, IMG_PERM_ALL = 15
};
/* Uses perm, lets others use shared.  -EBUSY: somebody else has it open in a
 * way that does not go with that.  Replaces what was locked before, which
 * stays where this fails. */
int img_file_lock(struct img_file *file, unsigned perm, unsigned shared,
                  struct img_error *err);

/* ---- outputs that appear whole or not at all --------------------------- */

struct img_output;

enum {
    IMG_OUTPUT_IN_PLACE = 1, IMG_OUTPUT_NO_SYNC = 2, IMG_OUTPUT_DIRECT = 4,
    IMG_OUTPUT_HELD = 8,        /* the caller has locked what is there; it is
                                   replaced or nothing is done */
    IMG_OUTPUT_NEW = 16         /* nothing may be there: -EEXIST */
};
/* Opens a file to write what is to appear at path: one beside it, without a
 * name where the file system can, or path itself where that is a device.
 * A file that is there must not be locked by anybody. */
int img_output_begin(const char *path, unsigned flags, struct img_output **out,
                     struct img_error *err);
/* Owned by the output. */
struct img_file *img_output_file(struct img_output *out);
/* Makes it durable and gives it its name.  Frees out, on failure too. */
int img_output_finish(struct img_output *out, struct img_error *err);
/* The same, and the file stays open, still locked, the caller's now.  After a
 * failure *file tells whether it has its name all the same: it is NULL, or
 * only its durability is not certain. */
int img_output_keep(struct img_output *out, struct img_file **file,
                    struct img_error *err);
/* Was nothing there before? */
bool img_output_is_new(const struct img_output *out);
/* Removes what was kept under this name; false: that is another file now, or
 * it cannot be. */
bool img_output_remove(const struct img_file *kept, const char *path);
/* The target stays as it was.  NULL is fine. */
void img_output_abandon(struct img_output *out);
#endif
