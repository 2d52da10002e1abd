/* What the files of the check share.
 *
 *   check.c         the acts in order, the comparison, findings
 *   check_walk.c    counts the references that the tables hold
 *   check_repair.c  makes the image agree with what was counted
 *
 * The check reads the file itself, not the cache; the caller has written
 * everything back and no request is in flight.
 */
#ifndef IMG_QCOW2_CHECK_H
#define IMG_QCOW2_CHECK_H
#include "qcow2/qcow2.h"

struct qcow2_checking {
    struct qcow2 *q;
    const struct img_check_options *opts;
    const struct img_job *job;
    struct img_check_result *result;

    uint64_t n;                 /* host clusters that the file has */
    uint32_t *counted;          /* references found, for each */
    uint8_t *single;            /* bit: the stored refcount is 1 */
    uint8_t *table;             /* a cluster to read tables into */
    uint64_t done, total;       /* tables, for progress */
    bool quiet;                 /* a second walk: findings are known */
    bool fixing_entries;        /* this walk clears what it cannot read */
    bool rebuild;               /* the refcount structure itself is bad */
    uint64_t lost;              /* guest bytes given up */
};

/* One finding; counts as an error of the image unless it is a leak. */
void img_qcow2_finding(struct qcow2_checking *c, uint64_t *counter,
                       const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
int img_qcow2_check_progress(struct qcow2_checking *c,
                             struct img_error *err);

/* Fills c->counted. */
int img_qcow2_check_walk(struct qcow2_checking *c, struct img_error *err);
/* Compares COPIED flags with the stored refcounts (c->single), and mends
 * them if fix. */
int img_qcow2_check_copied(struct qcow2_checking *c, bool fix,
                           struct img_error *err);

/* Refcount blocks in place: stored = counted where they differ; only
 * downwards unless up. */
int img_qcow2_check_fix_refs(struct qcow2_checking *c, bool up,
                             struct img_error *err);
/* A new refcount structure from c->counted, in q's width, then the header. */
int img_qcow2_check_rebuild(struct qcow2_checking *c, struct img_error *err);
/* Refcounts of 2^order bits from now on; the image must be sound. */
int img_qcow2_check_change_width(struct qcow2 *q, uint32_t order,
                                 const struct img_job *job,
                                 struct img_error *err);
#endif
