/* The layers of a disk, and where guest bytes are through all of them. */
#ifndef IMG_CORE_CHAIN_H
#define IMG_CORE_CHAIN_H
#include "format.h"

enum {
    IMG_PROBE_BYTES = 64 * 1024,/* that guessing a format looks at */
    IMG_REPLACED_MAX = 8
};

struct img_chain {
    struct img_layer **layers;  /* [0] is the top */
    unsigned n;
    struct img_tcache *tables;
    struct img_zcache *inflated;
    struct img_flat *flat;      /* NULL = layers are asked one by one */
    struct img_open_options opts;   /* its strings are NULL after open */
    bool writable;              /* some layer is */
    bool from_fd;               /* the top came as a descriptor: its path is
                                   for messages only */
    bool backing_given;         /* by the caller, not by the image */
    const char *told;           /* the name of the backing file that the
                                   caller just gave the image; NULL = none */
    uint32_t align;             /* the widest of any file; 1 = none cares */
    unsigned room;              /* of layers[] */
    char *allow_dir;            /* opts points to it */
    struct img_made *made;      /* core/beside.c's: files without a name yet */
    unsigned n_made;
    /* What files were before they were replaced: still locked, for somebody
     * may have opened one and lock it yet.  The oldest go first. */
    struct img_file *replaced[IMG_REPLACED_MAX];
    unsigned n_replaced;
};

/* Takes fd over if it is not -1, and file if it is not NULL (one of them may
 * be given); path then is its name in messages. */
int img_chain_open(const char *path, int fd, struct img_file *file,
                   const struct img_open_options *opts,
                   struct img_chain **chain, struct img_error *err);
/* Closes all layers; the first error of writing back is returned. */
int img_chain_close(struct img_chain *chain, struct img_error *err);

/* Opens layer `depth` anew, for writing or no longer for writing (commit).
 * No request may be in flight.  On failure the layer is as it was. */
int img_chain_reopen(struct img_chain *chain, unsigned depth, bool writable,
                     struct img_error *err);

/* Closes what is below the top and opens what the top names now (rebase).  No
 * request may be in flight.  On failure the layers are as they were. */
int img_chain_reopen_below(struct img_chain *chain, struct img_error *err);

/* The locks that a file of this disk has, by how it was opened. */
int img_chain_lock(const struct img_chain *chain, struct img_file *file,
                   bool writable, struct img_error *err);

/* The format that the file most probably has; raw when nothing else. */
int img_chain_probe(struct img_file *file, const struct img_format **format,
                    struct img_error *err);

/* What did not open as its layer's format may be something else altogether:
 * then that is what to say. */
int img_chain_name_mistake(const struct img_layer *layer, int result,
                           struct img_error *err);
/* Of a file that was guessed to be raw.  *name: what it ends as; NULL =
 * nothing. */
int img_chain_doubt(struct img_file *file, const char **name,
                    struct img_error *err);
/* The same, and an error if it is anything: the guess would be recorded in the
 * image at path, which names it so, and nobody be warned of it ever after. */
int img_chain_refuse_doubt(struct img_file *file, const char *path,
                           const char *backing, struct img_error *err);

/* What a file that begins so would be taken for, in words; NULL = raw. */
const char *img_chain_recognise(const uint8_t *head, size_t len,
                                const char *path);

/* The longest run from off with one answer, looking at layers from..n-1.
 * Beyond the end of a lower layer is ZERO, of that layer.  *depth is the
 * layer that answered; n where none has it (kind ABSENT: reads as zeros). */
int img_chain_map(struct img_chain *chain, unsigned from, uint64_t off,
                  uint64_t len, unsigned flags, struct img_run *run,
                  unsigned *depth, struct img_error *err);

/* Holes of the file that was asked last, in its order.  Others may fill them,
 * so they are known only while one question is being answered. */
struct img_holes {
    const struct img_file *file;
    unsigned n;
    struct { uint64_t from, to; } list[512];
};

/* The runs of [off, end) one after the other, each as long as it gets; a run
 * is looked up once. */
struct img_cursor {
    struct img_chain *chain;
    struct img_holes *holes;    /* NULL: every time the file is asked */
    unsigned from, flags;
    uint64_t off, end;
    bool ahead;                 /* next is the run at off */
    struct img_run next;
    unsigned next_depth;
};
void img_cursor_init(struct img_cursor *c, struct img_chain *chain,
                     unsigned from, uint64_t off, uint64_t len,
                     unsigned flags);
int img_cursor_next(struct img_cursor *c, struct img_run *run,
                    unsigned *depth, struct img_error *err);

/* Corruption was met in this layer: it is not written any more. */
void img_layer_break(struct img_layer *layer);
bool img_layer_is_broken(const struct img_layer *layer);
/* 0 if it is open for writing and not broken. */
int img_layer_may_change(const struct img_layer *layer,
                         struct img_error *err);
#endif
