/* System calls that a test listens to, or lets fail.
 *
 * Linked into a test program, or preloaded into any program (shim-preload.c),
 * this stands between the library and the C library: files, names and memory.
 * Nothing happens unless one of the pointers is set. */
#ifndef TESTS_SHIM_H
#define TESTS_SHIM_H
#include <stdatomic.h>
#include <stdbool.h>

enum {
    SHIM_READ = 1, SHIM_WRITE = 2, SHIM_SYNC = 4,
    SHIM_SPACE = 8,             /* fallocate, ftruncate */
    SHIM_LOOK = 16,             /* fstat, lseek */
    SHIM_NAME = 32,             /* open, link, rename, unlink */
    SHIM_MEMORY = 64,
    SHIM_CHANGE = SHIM_WRITE | SHIM_SYNC | SHIM_SPACE,
    SHIM_FILES = 63,

    SHIM_KILL = -9              /* for a code */
};

struct shim_fault {
    unsigned kinds;             /* SHIM_*: what counts */
    int code;                   /* errno; 0 = only a part is done, KILL =
                                   kill -9 before it */
    bool for_ever;              /* everything after it fails, too, */
    long times;                 /* but no more than so often; 0 = no bound */
    bool torn;                  /* of a write that fails half is done */
    atomic_long left;           /* the call that fails: 1 = next; 0 = none */
    atomic_long seen;           /* calls that counted so far */
    atomic_long failed;
};

/* What other kernels and file systems would say: asked before a call of that
 * name ("open", "link", "fallocate", "ioctl" ...); flags are its flags, mode
 * or command.  Answers the errno that it fails with, 0 = it is done as ever,
 * SHIM_DONE = it has been done already. */
enum { SHIM_DONE = -1 };
typedef int shim_answer(const char *call, int fd, unsigned long flags,
                        void *arg);
extern shim_answer *shim_answers;

struct record;

extern struct shim_fault *shim_fault;
extern struct record *shim_record;
/* Blocks of memory that are in use; unchanging under a sanitizer, which has
 * its own malloc. */
extern atomic_long shim_blocks;
/* Descriptors of this process: one that is kept shows. */
int shim_descriptors(void);

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SHIM_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SHIM_SANITIZED 1
#endif
#endif
#endif
