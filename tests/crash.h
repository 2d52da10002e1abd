/* Small images of many kinds, what can be done to them, and what they must
 * show afterwards.  For crash-image.c and fault-image.c.
 *
 * Every sector of 512 bytes says which write it comes from (its tag) and
 * where it belongs. */
#ifndef TESTS_CRASH_H
#define TESTS_CRASH_H
#include "unit/unit.h"
#include "unit/scratch.h"
#include "libimg.h"

enum { SECTOR = 512, MAX_SECTORS = 4096, MAX_SNAPSHOTS = 4, MAX_STEPS = 8,
       BASE_TAG = 7, OTHER_TAG = 8, BASE_SECTORS = MAX_SECTORS / 4 };

#define MIXED UINT32_MAX        /* the tag of a sector that is of no write */

/* What a config or an operation has, or needs. */
enum {
    HAS_BASE = 1, HAS_SNAPSHOTS = 2, HAS_BITMAPS = 4, HAS_PACKED = 8,
    HAS_AMEND = 16, HAS_V3 = 32, HAS_REPAIR = 64, HAS_SIZES = 128,
    HAS_TABLES = 256,           /* an L1 table that can grow */
    HAS_FEW_ENTRIES = 512,      /* a refcount table that can, too */
    HAS_DISCARD = 1024,
};

struct config {
    const char *name, *format;
    const char *settings[5];
    uint64_t size;
    uint32_t cluster;
    unsigned has;
};

extern const struct config configs[];
extern const size_t n_configs;

struct view {                   /* what the guest sees */
    uint64_t size;
    uint32_t tags[MAX_SECTORS]; /* of what lies behind: zeros */
};

struct model {
    struct view disk;
    uint32_t base[MAX_SECTORS]; /* of the backing file */
    uint64_t base_size;
    struct {
        char name[16];
        bool rests;             /* on a backing file that has changed */
        struct view view;
    } snapshots[MAX_SNAPSHOTS];
    unsigned n_snapshots;
    bool has_bitmap;
    uint8_t bits[MAX_SECTORS];
};

struct work {                   /* an image under way */
    const struct config *c;
    const char *dir;
    struct img_disk *d;
    struct model m;             /* after the last operation */
    uint32_t tag;
    unsigned serial;
    struct img_error err;
};

/* What one row of the table of operations says. */
struct operation {
    const char *name;
    int (*run)(struct work *w, int arg);
    int arg;
    unsigned needs;             /* HAS_* */
    enum {
        LATER,                  /* durable after the next flush */
        SETTLES,                /* all is durable when it returns */
        SWITCHES,               /* that, and in one step: old or new */
    } how;
};

extern const struct operation operations[];
extern const size_t n_operations;

/* The images of config c in dir, made with a bit of everything in them. */
void make_images(const struct config *c, const char *dir, struct model *m);
/* What lies there, file by file. */
struct saved {
    char *names[6];
    uint8_t *data[6];
    size_t len[6];
    unsigned n;
};
void save_images(const char *dir, struct saved *s);
void restore_images(const char *dir, const struct saved *s);
void free_saved(struct saved *s);
void put_file(const char *dir, const char *name, const uint8_t *data,
              size_t len);

int open_work(struct work *w);
/* Runs it, and fills w->m with what is expected now. */
int run_operation(struct work *w, const struct operation *op);
/* Outside the table; w->m does not learn of it. */
int write_sector(struct work *w, uint64_t sector, uint32_t tag);
int read_disk(struct img_disk *d, struct view *v, struct img_error *err);
int read_bits(struct img_disk *d, uint8_t *bits, struct img_error *err);

/* What an image may show: what it did after any of steps[from .. to], sector
 * by sector; where the last step switches, all as after that one, or all as
 * after those before it. */
struct history {
    const struct model *steps;
    int from, to;
    bool switches;
};

extern unsigned long dirty_images;  /* that were judged, once repaired */

/* These say what is wrong, or NULL. */
const char *judge_view(const struct view *v, const struct history *h);
const char *judge_images(const struct config *c, const char *dir,
                         const struct history *h);
uint64_t number_of(const char *name, uint64_t otherwise);
#endif
