/* The engine under convert, commit and rebase: from a source into an outlet,
 * in parallel, in a layout that does not depend on the number of threads.
 *
 * Each worker claims a range of the source that needs work (whole units of
 * the target, with a ticket), reads it, decides unit by unit, packs, waits
 * for its ticket's turn to place what it has, and writes outside the turn.
 */
#ifndef IMG_OPS_COPY_H
#define IMG_OPS_COPY_H
#include "base/team.h"
#include "base/runs.h"
#include "ops/source.h"
#include "codec/codec.h"

enum img_piece_kind { IMG_PIECE_ZERO, IMG_PIECE_PLAIN, IMG_PIECE_PACKED,
                      IMG_PIECE_SHARED };

struct img_piece {
    enum img_piece_kind kind;
    uint64_t off, len;          /* guest range; PACKED: one unit */
    const uint8_t *data;        /* PLAIN, PACKED */
    uint32_t packed;            /* PACKED: bytes at data */
    struct img_file *file;      /* SHARED: blocks to share, */
    uint64_t host;              /* from here */
};

/* What one worker has in hand. */
struct img_batch {
    struct img_piece *pieces;
    unsigned n, max;
    struct img_place *places;
    unsigned n_places, max_places;
    uint64_t off, len;          /* the claim */
    uint64_t ticket;
    uint8_t *in;                /* claim_max bytes, from the source */
    uint8_t *below;             /* what the target shows; only with base */
    uint64_t below_to;          /* as far as it was read */
    bool differs;               /* the unit that was looked at last */
    uint8_t *out;               /* packed pieces, one behind the other */
    size_t out_room;
    struct img_packer *packer;
};

struct img_copy;
struct img_outlet_ops {
    /* In turn, in the order of guest offsets. */
    int (*place)(struct img_copy *, struct img_batch *, struct img_error *);
    /* In parallel, after place; also cleans up where place failed half-way
     * (then failed is true, and nothing is to be written).  NULL = place
     * does it all. */
    int (*put)(struct img_copy *, struct img_batch *, bool failed,
               struct img_error *);
};
extern const struct img_outlet_ops img_outlet_disk;
extern const struct img_outlet_ops img_outlet_raw_stream;
extern const struct img_outlet_ops img_outlet_sink;

typedef int img_write_fn(void *opaque, const void *buf, size_t len,
                         struct img_error *err);

struct img_copy {
    /* Set by the user of the engine. */
    struct img_source source;
    unsigned min_depth, max_depth;  /* of answers that matter; what other
                                   layers answer is there already */
    struct img_source *base;    /* what the target shows where nothing is
                                   written; NULL = zeros if target_zero, else
                                   nobody knows */
    bool force_zero;            /* what reads as zeros now may do so only for
                                   what lies below, which will change */
    bool target_zero;           /* zeros need not be written */
    bool all;                   /* everything is written, zeros too */
    const struct img_runs *plan;    /* what the target's tables say already,
                                   in units: it is what is written, whatever
                                   the data are like; NULL = nothing yet */
    bool pack;
    bool share;                 /* the file system can share blocks */
    bool ordered;               /* place needs the turnstile */
    enum img_codec codec;
    uint32_t slack;             /* a packed unit may be so much longer than
                                   the unit; 0 = must be shorter */
    uint32_t unit;              /* of the target, a power of two */
    uint32_t sparse;            /* zeros this long and so aligned are not
                                   written where zeros are; 0 = write all */
    bool salvage;
    img_warn_fn *warn;
    void *warn_opaque;

    const struct img_outlet_ops *outlet;
    struct img_io *to;          /* outlet_disk */
    unsigned to_layer;
    img_write_fn *write;        /* outlet_raw_stream */
    void *write_opaque;
    const struct img_sink_ops *sink_ops;    /* outlet_sink */
    struct img_sink *sink;

    /* The engine's own. */
    struct img_mutex lock;      /* protects the claim state below */
    uint64_t pos, tickets;
    struct img_stretch now, now_base;
    struct img_runs_at planned; /* of plan, */
    uint64_t planned_end;       /* where that run ends */
    uint32_t claim_max;
    struct img_batch *batches;  /* one per worker */
    unsigned n_batches;
};

/* Copies; leaves the target's metadata unflushed.  Frees nothing of what the
 * user has set. */
int img_copy_run(struct img_copy *copy, const struct img_job *job,
                 struct img_error *err);

/* claim.c: what the maps say that has to be done from off on, a multiple of
 * the unit; so is *end, unless it is the end of the source.  A unit of which
 * parts need different things is data. */
int img_copy_look(struct img_copy *copy, uint64_t off, uint64_t *end,
                  enum img_content *need, struct img_error *err);

/* plan.c: all that the maps say.  -EFBIG: it takes too much memory. */
int img_plan_make(struct img_copy *copy, struct img_pace *pace,
                  struct img_runs *plan, struct img_error *err);
/* After copying by a plan: -EIO where the source has something now that the
 * plan does not know of. */
int img_plan_still_holds(struct img_copy *copy, struct img_pace *pace,
                         struct img_error *err);

/* claim.c: the next claim; *len 0 = none is left.  shared says that the
 * claim is one stretch of blocks to share (*st), zero that it is all
 * zeros.  *skipped bytes before it need nothing. */
struct img_claim {
    uint64_t off, len, ticket, skipped;
    bool zero, shared;
    struct img_stretch from;    /* shared */
};
int img_copy_claim(struct img_copy *copy, struct img_claim *claim,
                   struct img_error *err);
#endif
