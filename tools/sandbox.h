/* Giving up what a program does not need, for good: Landlock for files and
 * TCP, seccomp for sockets, programs and what only an intruder would call.
 * Where the kernel has them; threads that exist already are not held. */
#ifndef SANDBOX_H
#define SANDBOX_H

#include <stdbool.h>
#include <stddef.h>

enum {
    SANDBOX_READ = 1,           /* a file, or all files in a folder */
    SANDBOX_WRITE = 2,          /* likewise, into what is there */
    SANDBOX_LIST = 4,           /* the names in a folder */
    SANDBOX_MAKE = 8,           /* make, rename and remove files in a folder */
    SANDBOX_SOCKET = 16         /* likewise sockets */
};

struct sandbox_rule {
    char *path;                 /* not there: no rule */
    unsigned rights;            /* SANDBOX_*; of a folder, for all below it */
};

enum {
    SANDBOX_SOCKETS = 1,        /* may make sockets, and listen on them */
    SANDBOX_CONNECT = 2         /* may connect to others */
};

struct sandbox_state {
    int landlock;               /* version of its interface, 0 = not held */
    bool seccomp;
};

/* Nothing but what the rules and flags (SANDBOX_SOCKETS ...) say is possible
 * any more. */
struct sandbox_state sandbox_enter(const struct sandbox_rule *rules, size_t n,
                                   unsigned flags);

#endif
