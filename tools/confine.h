/* Which files a command needs, and the sandbox made of that.
 *
 * A command first says everything that the user named, then enters; only then
 * it opens images.  What images name in turn is found by a scout: a child
 * that can write nothing and reach nobody follows the backing files and tells
 * their names, so that what is allowed afterwards is a list of files. */
#ifndef CONFINE_H
#define CONFINE_H

#include <stdbool.h>
#include <libimg.h>

#include "sandbox.h"

enum {
    CONFINE_WRITE = 1,          /* the image itself is written */
    CONFINE_WRITE_ALL = 2,      /* so are the images below it */
    CONFINE_FOLDERS = 4,        /* the folders of all of them are read */
    CONFINE_SPLIT = 8           /* the size of those that are written may
                                   change, or what they say of themselves:
                                   files come and go beside one that is split
                                   into files */
};

/* --no-sandbox, or a command that cannot work inside one; why is for
 * confine_state.  It holds for what is said later too. */
void confine_off(const char *why);

void confine_path(const char *path, unsigned rights);
/* A file that is made, perhaps in place of one that is there. */
void confine_output(const char *path);
/* opts as for img_open; format, backing, backing_format and allow_dir are
 * copied. */
void confine_image(const char *path, const struct img_open_options *opts,
                   unsigned how);
/* The image `path` beside which `name` is found. */
void confine_below(const char *beside, const char *name,
                   const struct img_open_options *opts);
/* The folder for scratch files: $TMPDIR or /var/tmp; and that it is used. */
const char *confine_scratch(void);
void confine_temporary(void);
/* NBD servers, and what is read to find and trust them. */
void confine_network(void);
void confine_sockets(unsigned flags);       /* SANDBOX_SOCKETS ... */

void confine_enter(void);

bool confine_held(void);        /* wholly */
/* What was left out that the command may need, in words; NULL = nothing. */
const char *confine_short_of(void);
/* "yes (Landlock 7, seccomp)", "no (--no-sandbox)" ... */
const char *confine_state(void);

#endif
