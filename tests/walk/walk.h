/* A random walk over everything that can be done to a chain of images, by
 * libimg and by QEMU in turn, beside a model that says what every image, every
 * snapshot and every bitmap must show; see walk.c. */
#ifndef TESTS_WALK_H
#define TESTS_WALK_H
#include "../support.h"

#include <stdio.h>

enum { MAX_LAYERS = 5, MAX_SNAPS = 5, MAX_BITMAPS = 3, MAX_SIZE = 6 << 20 };

/* What a disk shows.  own[i]: the layer itself is known to hold byte i, so
 * that no change below may show through. */
struct view {
    uint64_t size;
    uint8_t *data, *own;
};

struct snap {
    char id[24], name[32];
    struct view view;
};

/* One byte for each bit: it must be set, it may be set. */
struct bitmap {
    char name[16];
    uint32_t granularity;
    bool enabled;
    uint8_t *must, *may;
};

struct layer {
    char path[32], format[8], data_file[32];
    struct view view;
    struct snap snaps[MAX_SNAPS];
    int n_snaps;
    struct bitmap bitmaps[MAX_BITMAPS];
    int n_bitmaps;
    bool touched;               /* by the current step */
    /* As the file says, after every step. */
    bool old_version, data_raw, extended;
    unsigned refcount_bits;
    uint32_t cluster;
};

struct walk {
    uint64_t seed, step;
    struct rng rng;
    struct layer *layers;       /* the base first */
    int n;
    unsigned serial;            /* of file names */
    struct img_disk *disk;      /* the top one, while it is open */
    uint8_t *buf;               /* MAX_SIZE */
    FILE *log;
    struct img_error err;
};

struct step_kind {
    const char *name;
    unsigned weight;
    int (*run)(struct walk *w); /* 1: not here, 0: done, -1: wrong */
};

/* A qcow2 image of that name, in the words of programs that have no -t. */
#define UNSYNCED "--image-opts|driver=qcow2,cache.no-flush=on,file.filename="

/* Logs one line of the current step. */
void note(struct walk *w, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* Says what is wrong and returns -1. */
int wrong(struct walk *w, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* Words of a command line, separated by '|'; its exit code. */
int run(struct walk *w, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* The current step was refused, with good reason. */
void refused(struct walk *w);
/* A result of the library: 0 done, 1 refused (-ENOTSUP), -1 wrong. */
int outcome(struct walk *w, const char *what, int r);

static inline bool chance(struct walk *w, unsigned one_in)
{
    return rng_below(&w->rng, one_in) == 0;
}

static inline struct layer *top_of(struct walk *w)
{
    return &w->layers[w->n - 1];
}

static inline bool is_qcow2(const struct layer *layer)
{
    return layer->format[0] == 'q';
}

/* image.c: views, layers, opening. */
void view_resize(struct view *view, uint64_t size);
void view_copy(struct view *to, const struct view *from);
void view_free(struct view *view);
uint64_t bitmap_bits(const struct bitmap *bitmap, uint64_t size);
void bitmap_fit(struct bitmap *bitmap, uint64_t old, uint64_t size);
void bitmap_free(struct bitmap *bitmap);
/* The layer's bytes [off, off+len) are written: bits must be set. */
void mark_range(struct layer *layer, uint64_t off, uint64_t len);
/* Any bit of an enabled bitmap may be set now; those of bytes that are not
 * what they were must be. */
void mark_changes(struct layer *layer, const struct view *before);
/* Any bit of an enabled bitmap may be set now. */
void mark_maybe(struct layer *layer);
/* The layer itself holds these bytes now. */
void put_bytes(struct layer *layer, uint64_t off, const uint8_t *data,
               uint64_t len);
uint64_t random_size(struct walk *w);
const char *random_settings(struct walk *w, struct layer *layer);
/* The words of "a=b,c=d" as the library takes them; text is cut up. */
void split_settings(char *text, const char **settings, int max);
/* An empty layer of a new name, on top of the others, not yet created. */
struct layer *push_layer(struct walk *w, const char *format, uint64_t size);
/* Forgets the layer and removes its files. */
void drop_layer(struct walk *w, int i);
void free_layer(struct layer *layer);
int create_file(struct walk *w, struct layer *layer, const char *settings,
                const struct layer *below, bool peer);
int open_top(struct walk *w);
int close_top(struct walk *w);
struct img_disk *open_view(struct walk *w, const struct layer *layer,
                           const char *snapshot, unsigned flags);
int read_all(struct walk *w, struct img_disk *disk, uint64_t size);
int read_properties(struct walk *w, struct layer *layer);
struct img_job random_job(struct walk *w);

/* verify.c */
/* Each byte must be what it was or, unless it is the layer's own, what is
 * below now; it stays what it is from here on. */
int adopt_view(struct walk *w, struct layer *layer, struct snap *snap,
               const struct view *below);
int verify(struct walk *w);

/* Some content of its own for a new image that is not open. */
int fill_layer(struct walk *w, struct layer *layer);

/* guest.c, life.c, copy.c: the steps. */
int step_write(struct walk *w);
int step_peer_write(struct walk *w);
int step_resize(struct walk *w);
int step_snapshot_create(struct walk *w);
int step_snapshot_apply(struct walk *w);
int step_snapshot_delete(struct walk *w);
int step_commit(struct walk *w);
int step_rebase(struct walk *w);
int step_rename_base(struct walk *w);
int step_amend(struct walk *w);
int step_bitmap(struct walk *w);
int step_bitmap_merge(struct walk *w);
int step_create(struct walk *w);
int step_overlay(struct walk *w);
int step_drop(struct walk *w);
int step_convert(struct walk *w);
int step_copy(struct walk *w);
int step_compare(struct walk *w);
int step_repair(struct walk *w);

#endif
