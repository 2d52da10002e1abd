/* Files whose n-th operation fails.
 *
 * fault_wrap puts itself between an open file and its users; what counts,
 * and which operation fails, is shared by all files of one struct fault. */
#ifndef TESTS_FAULT_FILE_H
#define TESTS_FAULT_FILE_H
#include "file/file.h"

#include <stdatomic.h>

enum {
    FAULT_READ = 1, FAULT_WRITE = 2, FAULT_SYNC = 4,
    FAULT_SPACE = 8,            /* zero, punch, allocate, truncate */
    FAULT_LOOK = 16,            /* size, extent */
    FAULT_CHANGE = FAULT_WRITE | FAULT_SPACE | FAULT_SYNC,
    FAULT_ALL = 31
};

struct fault {
    unsigned kinds;             /* FAULT_*: what counts */
    int code;                   /* errno of a failure: EIO, ENOSPC ... */
    bool for_ever;              /* everything after it fails, too */
    bool torn;                  /* of a write that fails half is done */
    atomic_long left;           /* the operation that fails: 1 = next; 0 =
                                   none */
    atomic_long seen;           /* operations that counted so far */
    atomic_long failed;
};

int fault_wrap(struct img_file *file, struct fault *fault);
#endif
