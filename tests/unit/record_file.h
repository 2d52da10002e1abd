/* Files that keep a log of all changes, and the states a disk may be in if
 * the power fails.
 *
 * Of what a finished sync covers, all is there.  Of what came later, any
 * sectors of any writes may be, in the order in which they were written, and
 * the length of the file on its own. */
#ifndef TESTS_RECORD_FILE_H
#define TESTS_RECORD_FILE_H
#include "base/sync.h"
#include "file/file.h"

enum { RECORD_FILES = 8, RECORD_SECTOR = 512 };

enum record_kind { RECORD_WRITE, RECORD_ZERO, RECORD_TRUNCATE, RECORD_SYNC };

struct record_entry {
    enum record_kind kind;
    unsigned file;
    bool grows;                 /* a ZERO that makes the file longer */
    uint64_t off, len;          /* TRUNCATE: len is the new length */
    uint8_t *data;              /* of WRITE */
    size_t begun, ended;        /* when; ended 0: it has not, or it failed */
};

struct record {
    struct img_mutex lock;      /* protects all below */
    struct record_entry *log;
    size_t n, room;
    size_t clock;
    unsigned n_files;
    uint8_t *first[RECORD_FILES];       /* content before the first entry */
    uint64_t first_len[RECORD_FILES];
};

void record_begin(struct record *r);
void record_end(struct record *r);
/* Puts itself between file and its users; the file's number is returned. */
int record_wrap(struct img_file *file, struct record *r);

/* Is entry i certain to be there once the first n entries have been? */
bool record_is_durable(const struct record *r, size_t i, size_t n);

/* Asked for each sector of each entry that is not certain; sector
 * RECORD_LENGTH: does the change of the file's length happen? */
enum { RECORD_LENGTH = -1 };
typedef bool record_choose_fn(void *opaque, size_t entry, int64_t sector);

/* Content of a file if the power fails after the first n entries.  *data is
 * the caller's. */
int record_state(const struct record *r, unsigned file, size_t n,
                 record_choose_fn *choose, void *opaque, uint8_t **data,
                 uint64_t *len);
#endif
