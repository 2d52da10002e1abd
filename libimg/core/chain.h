/* The layers of a disk, and where guest bytes are through all of them. */
#ifndef IMG_CORE_CHAIN_H
#define IMG_CORE_CHAIN_H
#include "format.h"

enum { IMG_CHAIN_MAX = 1024 };  /* layers */

struct img_chain {
    struct img_layer **layers;  /* [0] is the top */
    unsigned n;
    struct img_tcache *tables;
    struct img_open_options opts;
    /* ... core/chain.c's own fields may follow */
};

/* Takes fd over if it is not -1; path then is its name in messages. */
int img_chain_open(const char *path, int fd,
                   const struct img_open_options *opts,
                   struct img_chain **chain, struct img_error *err);
/* Closes all layers; the first error of writing back is returned. */
int img_chain_close(struct img_chain *chain, struct img_error *err);

/* The longest run from off with one answer, looking at layers from..n-1.
 * Beyond the end of a lower layer is ZERO.  *depth is the layer that
 * answered; n where none has it (kind ABSENT: reads as zeros). */
int img_chain_map(struct img_chain *chain, unsigned from, uint64_t off,
                  uint64_t len, unsigned flags, struct img_run *run,
                  unsigned *depth, struct img_error *err);
#endif
