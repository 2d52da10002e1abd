/* Names of images that are no paths: option lists and "json:{...}". */
#ifndef LOCATION_H
#define LOCATION_H

#include <stdbool.h>
#include <stddef.h>
#include <libimg.h>

#include "server.h"

struct location {
    struct img_open_options opts;   /* what the name asks for */
    const char *path;
    bool read_only;
    uint64_t on;                    /* switches, a bit for each key */
    char **owned;                   /* texts that opts points to */
    size_t n_owned;
    struct server server, below;    /* driver=nbd, of the backing file too */
};

/* name as on the command line; image_opts: it is an option list.  false: the
 * user was told.  Free in either case. */
bool location_parse(const char *name, bool image_opts, struct location *loc);
void location_free(struct location *loc);

#endif
