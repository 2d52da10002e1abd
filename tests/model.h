/* A disk, the array that it must equal, and the plan of what happens to them;
 * see model.c. */
#ifndef TESTS_MODEL_H
#define TESTS_MODEL_H
#include "support.h"

#include <stdio.h>

enum { MAX_SETTINGS = 12, MAX_BELOW = 4 };

struct plan {
    const char *format;
    const char *settings[MAX_SETTINGS + 1];
    int n_settings;
    bool data_file;
    bool peer;                  /* qemu-img creates it */
    int backing;                /* layers below, 0 = none */
    uint64_t size, seed, ops;
};

struct model {
    const struct plan *plan;
    struct rng rng;
    const char *dir;
    char path[4096];
    struct img_disk *disk;
    struct img_limits limits;
    uint8_t *flat, *buf;
    size_t buf_size;
    uint64_t size, hot;
    uint64_t op;                /* number of the current operation */
    bool can_compress;
};

/* In model-ops.c. */
void print_plan(FILE *f, const struct plan *plan);
/* All complaints end there: what, where, and how to see it again. */
int fail(const struct model *m, const char *what, uint64_t off, uint64_t len,
         const struct img_error *err);
int compare_all(struct model *m);
/* len bytes for off into m->buf; the array does not change. */
void make_content(struct model *m, uint64_t off, uint64_t len);
/* One random operation of all but reopening. */
int one_operation(struct model *m);

/* In model-queue.c. */
int do_queue(struct model *m);

#endif
