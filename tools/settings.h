/* -o key=value,... of create, convert, measure, amend and dd. */
#ifndef SETTINGS_H
#define SETTINGS_H

#include <stdbool.h>
#include <stdint.h>
#include <libimg.h>

#include "options.h"

struct settings {
    const char **list;          /* "key=value", ends with NULL */
    size_t n;
    char *backing, *backing_format; /* taken out of the list */
    bool has_size;
    uint64_t size;              /* likewise */
    bool help;                  /* -o help */
};

enum settings_kind {
    SETTINGS_CREATE,            /* backing file and size are taken out */
    SETTINGS_AMEND              /* everything stays in the list */
};

/* false: the user was told.  Lives as long as the program. */
bool settings_parse(const struct option_list *uses, enum settings_kind kind,
                    struct settings *settings);
/* --target: the setting of that name, and VMDK where no format is given. */
#define SETTINGS_TARGET_ROW(to) \
    { OPTION_TEXT, 0, "target", "PRODUCT", \
      "make a VMDK that esxi, workstation or virtualbox takes; the same as " \
      "-o target=PRODUCT", (to) }
void settings_target(struct settings *settings, const char *product,
                     const char **format);
/* "Supported qcow2 options: ..."; amend: only those that can be changed.
 * Returns the exit code. */
int settings_help(const char *format, enum settings_kind kind, bool with_file);
/* Whether format is known and has each of the settings; else the user is
 * told.  prefix: "FILE: " or "". */
bool settings_check(const struct settings *settings, const char *format,
                    const char *prefix);
/* "Formatting 'x', fmt=..." */
void settings_print(const char *path, const char *format, char **settings);

#endif
