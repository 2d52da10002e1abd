/* A list of runs, each so many units of one kind, from front to back: what
 * is where on a disk, in a byte or two for a run. */
#ifndef IMG_BASE_RUNS_H
#define IMG_BASE_RUNS_H
#include "libimg.h"

struct img_runs {
    uint8_t *code;              /* numbers of 7 bits a byte, the low ones
                                   first: length times 4, plus the kind */
    size_t n, room;
    size_t most;                /* bytes */
    uint64_t units;             /* the last run, which may yet grow */
    unsigned kind;
};

struct img_runs_at {            /* a place in such a list; begins as zeros but
                                   for runs */
    const struct img_runs *runs;
    size_t at;
    uint64_t left;              /* units of the run that are yet to come */
    unsigned kind;
};

/* Appends; kind is 0 to 3.  -EFBIG: it would take more than most bytes. */
int img_runs_add(struct img_runs *runs, uint64_t units, unsigned kind,
                 struct img_error *err);
/* After the last one. */
int img_runs_end(struct img_runs *runs, struct img_error *err);
void img_runs_free(struct img_runs *runs);

/* Is anything left?  Then at->left is not 0, and whoever takes units of it
 * counts it down. */
bool img_runs_more(struct img_runs_at *at);
#endif
