/* How commands open images: by path, by --image-opts, by "json:{...}". */
#ifndef OPEN_H
#define OPEN_H

#include <stdbool.h>
#include <libimg.h>

#include "confine.h"
#include "options.h"

/* What the command line says about one image; destinations of options. */
struct open_how {
    const char *format;         /* -f */
    bool image_opts;            /* --image-opts */
    bool share;                 /* -U */
    const char *cache;          /* -t or -T: none, writeback ... */
    const char *discard;        /* -d: ignore or unmap */
    const char *snapshot;       /* -l: ID, name, or snapshot.id=... */
    bool hush;                  /* no warnings: they were given already */
    const char *failing;        /* what to complain; NULL = "Could not open"
                                   and the name in quotes */
    const char *backing, *backing_format;   /* as in libimg.h */
    struct option_list objects; /* --object */
};

/* Common rows of option tables. */
#define OPEN_FORMAT_ROW(how) \
    { OPTION_TEXT, 'f', "format", "FMT", \
      "format of the image; guessed when not given", &(how)->format }
#define OPEN_IMAGE_OPTS_ROW(how) \
    { OPTION_FLAG, 0, "image-opts", NULL, \
      "FILE is a list driver=FMT,file.filename=PATH,... and no file name", \
      &(how)->image_opts }
#define OPEN_SHARE_ROW(how) \
    { OPTION_FLAG, 'U', "force-share", NULL, \
      "read the image even while another program writes to it", \
      &(how)->share }
#define OPEN_CACHE_ROW(letter, long_name, how) \
    { OPTION_TEXT, letter, long_name, "CACHE", \
      "none, writeback, writethrough, directsync or unsafe", &(how)->cache }

/* Of the whole command, however many images it opens. */
struct open_confine {
    const char *files;          /* --allow-files; NULL = not given */
    bool no_sandbox;
};
extern struct open_confine open_confine;
#define OPEN_CONFINE_ROWS \
    { OPTION_TEXT, 0, "allow-files", "WHICH", \
      "of the files that an image names, open none, those in the same-dir, " \
      "those in the folder WHICH, or any; local ones when not given", \
      &open_confine.files }, \
    OPEN_SANDBOX_ROW
#define OPEN_SANDBOX_ROW \
    { OPTION_FLAG, 0, "no-sandbox", NULL, \
      "do without Landlock and seccomp", &open_confine.no_sandbox }

/* What --allow-files says; dir is for IMG_FILES_UNDER. */
unsigned open_files_policy(const char **dir);

/* The library's flags for a cache mode; NULL adds none.  what: "cache option"
 * in the complaint. */
bool open_cache_flags(const char *mode, const char *what, unsigned *flags);
/* Looks at -f, --image-opts and --object, before anything is opened. */
bool open_check(const struct open_how *how);

/* What is going to be opened, said before open_enter; arguments as for
 * open_image, and confine: CONFINE_*. */
void open_expect(const char *name, const struct open_how *how, unsigned flags,
                 unsigned confine);
/* A backing file that the command line names, relative to the image name. */
void open_expect_below(const char *name, const struct open_how *how,
                       const char *backing, const char *format);
/* A file that is made, and its data file, if these settings ask for one. */
void open_expect_output(const char *path, const char *const *settings);
/* From here on nothing else can be opened. */
void open_enter(void);

/* NULL: the user was told. */
struct img_disk *open_image(const char *name, const struct open_how *how,
                            unsigned flags);
/* Warns of backing files, on every level, that were changed since the link
 * to them was made; for commands that do without them.  Whatever else is
 * wrong with the chain is no matter.  false: the name is no name, as the user
 * was told. */
bool open_warn_of_base(const char *name, const struct open_how *how);
/* Closes and tells of failure; false then. */
bool close_image(struct img_disk *disk);
/* The path that an image is made at or looked for by: "file:x" is x. */
const char *open_plain_path(const char *name);
/* Whether the two names are one file, or one server. */
bool open_same_file(const char *a, const char *b);
/* Whether path is a file of the disk: its own, or one below it. */
bool open_uses_file(struct img_disk *disk, const char *path);
/* Reads standard input to its end into a nameless file and opens that as a
 * raw image. */
struct img_disk *open_stdin(void);

#endif
