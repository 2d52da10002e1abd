/* What the files of the check share.
 *
 *   check.c         the acts in order, the comparison, findings
 *   check_count.c   numbers of references, in windows of bounded memory
 *   check_walk.c    counts the references that the tables hold
 *   check_repair.c  makes the image agree with what was counted
 *
 * The check reads the file itself, not the cache; the caller has written
 * everything back and no request is in flight.
 *
 * The file's clusters are looked at in windows, most often one.  In each the
 * whole image is walked, and what lies in the window is counted, compared and
 * mended; what the tables themselves get wrong is told in the first.
 */
#ifndef IMG_QCOW2_CHECK_H
#define IMG_QCOW2_CHECK_H
#include "qcow2/qcow2.h"

struct qcow2_page;

struct qcow2_checking {
    struct qcow2 *q;
    const struct img_check_options *opts;
    const struct img_job *job;
    struct img_check_result *result;

    uint64_t n;                 /* host clusters that the file has */
    uint64_t file_end;          /* bytes, at most those of n clusters */
    uint8_t *table;             /* a cluster to read tables into */
    uint64_t done, total;       /* tables, for progress */
    bool quiet;                 /* findings are known */
    bool fixing_entries;        /* this walk clears what it cannot read, and
                                   counts nothing */
    bool skip_refs;             /* the refcount structure is not counted, nor
                                   read */
    bool rebuild;               /* the refcount structure itself is bad */
    bool no_block;              /* used clusters have no refcount block */
    bool mended_to_one;         /* COPIED flags have to follow */
    uint64_t lost;              /* guest bytes given up */
    uint64_t overlaps;          /* errors that no repair mends */

    /* check_count.c: */
    struct img_mutex lock;
    struct img_rwlock gate;
    uint64_t from, to;          /* the window */
    uint64_t beyond;            /* the first cluster from `to` on that was
                                   seen */
    struct qcow2_page **pages;
    uint64_t n_slots;
    uint64_t memory, memory_max;
};

/* One finding; counts as an error of the image unless it is a leak. */
void img_qcow2_finding(struct qcow2_checking *c, uint64_t *counter,
                       const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Windows: 1 = there is one, 0 = that was all. */
int img_qcow2_window_first(struct qcow2_checking *c, struct img_error *err);
int img_qcow2_window_next(struct qcow2_checking *c, struct img_error *err);
void img_qcow2_window_close(struct qcow2_checking *c);
/* Is what does not depend on the window to be told now? */
static inline bool img_qcow2_is_first(const struct qcow2_checking *c)
{
    return c->from == 0 && !c->quiet;
}

/* An L2 table is nothing else, and a snapshot may share it, but one L1 table
 * has it once.  The active tables are counted first. */
enum qcow2_use { QCOW2_USE_ANY, QCOW2_USE_ACTIVE_TABLE, QCOW2_USE_TABLE };

/* A reference to each of n clusters, or those in the window.  c->gate is held
 * for reading, and may have been given up meanwhile. */
int img_qcow2_count(struct qcow2_checking *c, uint64_t first, uint64_t n,
                    enum qcow2_use use, struct img_error *err);
/* For findings about this cluster while references are counted: they are
 * forgotten when the window's end is given up before it, for the next window
 * has it. */
uint64_t *img_qcow2_errors_at(struct qcow2_checking *c, uint64_t cluster);
/* All is counted: adds those up. */
void img_qcow2_count_end(struct qcow2_checking *c);
/* Is the stored refcount 1?  Not known outside of the window.  Gate as
 * above. */
int img_qcow2_is_single(struct qcow2_checking *c, uint64_t cluster,
                        bool *known, bool *single, struct img_error *err);
/* The same of the 64 clusters around one that was counted. */
uint64_t img_qcow2_singles(const struct qcow2_checking *c, uint64_t cluster);
/* Once all is counted: */
uint64_t img_qcow2_counted(const struct qcow2_checking *c, uint64_t cluster);
/* Bits of 64 clusters from first on, a multiple of 64 in the window; true if
 * none has more than one reference. */
bool img_qcow2_counted_once(const struct qcow2_checking *c, uint64_t first,
                            uint64_t *once);

/* Where the refcount block of a range lies; 0 = nowhere that can be. */
uint64_t img_qcow2_check_block(const struct qcow2_checking *c,
                               uint64_t range);

/* Counts what lies in the window, and compares the COPIED flags of the active
 * tables with the stored refcounts. */
int img_qcow2_check_walk(struct qcow2_checking *c, struct img_error *err);
/* Mends COPIED flags, by the stored refcounts. */
int img_qcow2_check_fix_copied(struct qcow2_checking *c,
                               struct img_error *err);

/* Refcount blocks in place: stored = counted where they differ; only
 * downwards unless up. */
int img_qcow2_check_fix_refs(struct qcow2_checking *c, bool up,
                             struct img_error *err);
/* A new refcount structure for what the tables refer to, in q's width, then
 * the header. */
int img_qcow2_check_rebuild(struct qcow2_checking *c, struct img_error *err);
/* Refcounts of 2^order bits from now on; the image must be sound. */
int img_qcow2_check_change_width(struct qcow2 *q, uint32_t order,
                                 const struct img_job *job,
                                 struct img_error *err);
#endif
