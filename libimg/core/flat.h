/* What the layers below the top answer together, remembered: they do not
 * change while they are open, so that a deep chain need not be asked layer by
 * layer each time. */
#ifndef IMG_CORE_FLAT_H
#define IMG_CORE_FLAT_H
#include "core/chain.h"

struct img_flat;

/* For layers 1..n-1 of the chain; NULL = is not worth it, or no memory. */
struct img_flat *img_flat_new(struct img_chain *chain, uint64_t budget);
void img_flat_free(struct img_flat *flat);

/* The run at off below the top layer, at most len; false = not known (a
 * layer could not be read, or the answer has too many parts).  cached: only
 * what is known already. */
bool img_flat_map(struct img_flat *flat, struct img_chain *chain,
                  uint64_t off, uint64_t len, bool cached,
                  struct img_run *run, unsigned *depth);

/* Does it know what is asked for with these flags? */
bool img_flat_tells(const struct img_flat *flat, unsigned flags);

/* core/cursor.c: asks one layer, and what of the range is beyond its end. */
int img_layer_ask(struct img_layer *l, uint64_t off, uint64_t len,
                  unsigned flags, struct img_run *run, struct img_error *err);
/* Does b go on where a ends? */
bool img_run_continues(const struct img_run *a, unsigned a_depth,
                       const struct img_run *b, unsigned b_depth);
/* Cuts off the run's first bytes. */
void img_run_skip(struct img_run *run, uint64_t bytes);
#endif
