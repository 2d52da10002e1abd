/* Files that keep a log of all changes, and the states a disk may be in if
 * the power fails.
 *
 * Of what a finished sync covers, all is there.  Of what came later, any
 * sectors of any writes may be, in the order in which they were written, and
 * the length of the file on its own.  A name that was given to another file
 * leads to that one for certain when the folder was synced. */
#ifndef TESTS_RECORD_H
#define TESTS_RECORD_H
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

enum { RECORD_FILES = 16, RECORD_NAMES = 2, RECORD_SECTOR = 512 };

enum record_kind {
    RECORD_WRITE, RECORD_ZERO, RECORD_TRUNCATE, RECORD_SYNC,
    RECORD_RENAME               /* file: the folder; off: number of the name;
                                   len: of the file that gets it */
};

struct record_entry {
    enum record_kind kind;
    unsigned file;
    bool grows;                 /* a ZERO that makes the file longer */
    uint64_t off, len;          /* TRUNCATE: len is the new length */
    uint8_t *data;              /* of WRITE */
    size_t begun, ended;        /* when; ended 0: it has not, or it failed */
};

struct record {
    pthread_mutex_t lock;       /* protects all below */
    struct record_entry *log;
    size_t n, room;
    size_t clock;
    unsigned n_files;
    dev_t device[RECORD_FILES];         /* which files they are */
    ino_t inode[RECORD_FILES];
    uint8_t *first[RECORD_FILES];       /* content before the first entry */
    uint64_t first_len[RECORD_FILES];
    unsigned n_names;
    char *name[RECORD_NAMES];
    unsigned folder[RECORD_NAMES], had[RECORD_NAMES];   /* files' numbers */
};

void record_begin(struct record *r);
void record_end(struct record *r);
/* From now on changes of this file are noted; its number is returned. */
int record_watch(struct record *r, const char *path);
/* And which file has this name, given as the library will; `file` does now.
 * New files are watched from then on, whatever their names. */
int record_watch_name(struct record *r, const char *path, int file);

/* What the shim calls around a system call.  NONE: the file is not watched,
 * or r is NULL. */
enum { RECORD_NONE = -1 };
size_t record_begin_write(struct record *r, int fd, const struct iovec *iov,
                          int n, off_t off);
size_t record_begin_space(struct record *r, int fd, int mode, off_t off,
                          off_t len);
size_t record_begin_truncate(struct record *r, int fd, off_t len);
size_t record_begin_sync(struct record *r, int fd);
size_t record_begin_rename(struct record *r, const char *from,
                           const char *to);
void record_new_file(struct record *r, int fd);
void record_ended(struct record *r, size_t i, bool done);

/* Was it written to at all? */
bool record_has_changed(const struct record *r, unsigned file);
/* Is entry i certain to be there once the first n entries have been? */
bool record_is_durable(const struct record *r, size_t i, size_t n);

/* Asked for each sector of each entry that is not certain; sector
 * RECORD_LENGTH: does the change of the file's length happen? */
enum { RECORD_LENGTH = -1 };
typedef bool record_choose_fn(void *opaque, size_t entry, int64_t sector);

/* The states after the first n entries, for one file: what is certain is
 * worked out once. */
struct record_point {
    const struct record *r;
    unsigned file;
    size_t n, from;             /* entries before `from` are applied */
    uint8_t *data;
    uint64_t len;
    size_t open;                /* entries that are not certain */
};
void record_point_begin(struct record_point *p, const struct record *r,
                        unsigned file, size_t n);
void record_point_end(struct record_point *p);
/* Content of the file if the power fails there.  *data is the caller's. */
void record_state(const struct record_point *p, record_choose_fn *choose,
                  void *opaque, uint8_t **data, uint64_t *len);
/* The number of the file that has the name then. */
unsigned record_named(const struct record *r, unsigned name, size_t n,
                      record_choose_fn *choose, void *opaque);
#endif
