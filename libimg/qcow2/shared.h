/* Adjusting what whole L1 tables refer to, a table at a time; used by
 * snapshots.  No request is in flight, everything is written back. */
#ifndef IMG_QCOW2_SHARED_H
#define IMG_QCOW2_SHARED_H
#include "qcow2/qcow2.h"

/* Adds delta to the refcount of every L2 table of l1 and of every cluster
 * that these refer to.  All or nothing. */
int img_qcow2_share_add(struct qcow2 *q, const uint64_t *l1, uint64_t n,
                        int64_t delta, struct img_error *err);
/* Makes the COPIED flags of the active tables fit the refcounts; durable
 * after the next sync.  Tables that stand in the same place in before, n
 * entries, are as they should be. */
int img_qcow2_share_flags(struct qcow2 *q, const uint64_t *before,
                          uint64_t n, struct img_error *err);
#endif
