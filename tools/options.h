/* Command line options as tables.
 *
 * A table row says everything: names, argument, help, destination.  Parsing,
 * --help, shell completion and the test against the manual pages all read the
 * same rows. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

enum option_kind {
    OPTION_END,
    OPTION_FLAG,                /* to: bool */
    OPTION_TEXT,                /* to: const char *; the last one wins */
    OPTION_LIST                 /* to: struct option_list, in order; without
                                   an argument the option's name is text */
};

struct option_def {
    enum option_kind kind;
    char letter;                /* 0 = none */
    const char *name;           /* long name */
    const char *argument;       /* "FMT"; NULL = takes none */
    const char *help;
    void *to;
};

struct option_use {
    const char *name, *text;
};

struct option_list {
    struct option_use *uses;
    size_t n;
};

struct command;

enum { OPTIONS_OK, OPTIONS_HELP, OPTIONS_BAD };

/* Sets every destination; *argc and *argv become what is left over.  argv[0]
 * is skipped.  BAD: the user was told. */
int options_parse(const struct command *cmd, int *argc, char ***argv);
void options_help(const struct command *cmd);

/* Splits "a=1,b=2,,3,c" at single commas; ",," stands for one.  Each part is
 * handed over as key and value; value is NULL where there is no '='.  The
 * function returns nonzero to stop.  -1 = empty text or empty part. */
int options_split(const char *text,
                  int (*part)(void *opaque, char *key, char *value),
                  void *opaque);

#define OPTIONS_HELP_ROW \
    { OPTION_FLAG, 'h', "help", NULL, "show this help and exit", NULL }
#define OPTIONS_OBJECT_ROW(list) \
    { OPTION_LIST, 0, "object", "DEF", \
      "define a secret,id=ID,... or tls-creds-x509,id=ID,dir=DIR,... or "       \
      "tls-creds-psk,...", list }

#endif
