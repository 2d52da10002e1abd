/* Which images of a folder rest on which. */
#ifndef FAMILY_H
#define FAMILY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct member {
    char *path, *format;        /* format NULL = could not be looked at */
    uint64_t size;
    char *backing;              /* as recorded; NULL = none */
    struct member *base;        /* what it rests on; NULL = nothing */
    char *note;                 /* what is wrong with it */
    dev_t dev;
    ino_t ino;
    bool outside;               /* not below the folder, or not there */
    bool stranger;              /* raw, and nothing rests on it */
};

struct family {
    struct member **members;
    size_t n;
};

/* Images below folder; deep: in the folders in it too.  Raw files count only
 * when something rests on them.  false: the user was told. */
bool family_scan(const char *folder, bool deep, struct family *family);
void family_free(struct family *family);
/* Whether m rests on base, directly or not. */
bool family_rests_on(const struct member *m, const struct member *base);

#endif
