/* A new image on its way: created, opened, filled, then finished or
 * abandoned.  img_create is begin, format->create, finish; convert opens the
 * image in between, or writes it through the format's sink instead of
 * creating it. */
#ifndef IMG_CORE_CREATE_H
#define IMG_CORE_CREATE_H
#include "format.h"

struct img_chain;

struct img_making {
    struct img_build build;     /* as format->create and sink->begin want it;
                                   build.opts are resolved: format, size and
                                   backing format filled in */
    const struct img_format *format;
    /* ... core/create.c's own fields may follow */
};

/* Checks and resolves opts, opens the backing file (unless it is told not
 * to) and the output.  path NULL = a stream: there is no file, build.path is
 * "-".  Writes nothing yet. */
int img_making_begin(const char *path, const struct img_create_options *opts,
                     struct img_making **making, struct img_error *err);
/* The chain that build.backing is the top of; NULL = none is open. */
struct img_chain *img_making_backing(struct img_making *making);
/* Calls format->create. */
int img_making_create(struct img_making *making, struct img_error *err);
/* Opens what create made, for reading and writing, with its backing chain
 * and with the files that have no name yet.  The caller closes the disk
 * before finish or abandon. */
int img_making_open(struct img_making *making, struct img_disk **disk,
                    struct img_error *err);
/* Makes all files durable and gives them their names.  Frees making, on
 * failure too (then nothing has appeared). */
int img_making_finish(struct img_making *making, struct img_error *err);
/* Nothing appears.  NULL is fine. */
void img_making_abandon(struct img_making *making);
#endif
