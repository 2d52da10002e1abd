/* Workloads, shapes of images, and what makes one run of them. */
#ifndef TESTS_RACE_RACE_H
#define TESTS_RACE_RACE_H
#include <stdbool.h>
#include <stdint.h>

enum { ACTORS = 3, STEPS = 4, QUARTERS = 128 };

enum what {
    NOTHING, WRITE, ZERO, DISCARD, READ, FLUSH, SNAPSHOT, APPLY, FORGET, GROW,
    SHRINK, PACK, COMMIT, COPY, COPY_PACKED, REBASE, COMPARE
};

/* Offsets and lengths are in quarters of a cluster, the disk has QUARTERS of
 * them. */
struct step { enum what what; unsigned off, len; };

struct work {
    const char *name;
    bool snapshots;             /* needs a format that has them */
    bool commits;               /* needs a backing file */
    bool rebases;               /* ... and a format that can be rebased */
    bool whole;                 /* also on wide shapes, and with others open
                                   to copy from and to compare with */
    struct step before[6];      /* alone, before the others */
    struct step actors[ACTORS][STEPS];
};
extern const struct work works[];

struct shape {
    const char *name, *format;
    const char *settings[4];
    unsigned cluster;           /* bytes */
    bool backing, snapshots, tiny_cache;
    bool image_below;           /* the backing file is no raw one */
    unsigned quarter;           /* wide: a quarter has so many bytes */
};
extern const struct shape shapes[];

/* Operations that are among those that fail in any case: each has found
 * something. */
struct kept { const char *shape, *work; unsigned long fault; };
extern const struct kept kept[];

/* What a run needs; the image as it is before the actors begin is made
 * once. */
struct bench;
struct bench *bench_new(const struct shape *shape, const struct work *work);
void bench_free(struct bench *b);
bool bench_run(void *bench);

#endif
