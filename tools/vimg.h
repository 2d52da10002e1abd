/* What every part of vimg shares: commands, messages, exit codes. */
#ifndef VIMG_H
#define VIMG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <libimg.h>

#include "options.h"

struct command {
    const char *name;
    const char *arguments;      /* "FILE [SIZE]" */
    const char *summary;        /* one line */
    const struct option_def *options;
    /* argv holds what the options left over; ends with NULL.  Returns the
     * exit code. */
    int (*run)(int argc, char **argv);
    /* The last argument may be "-5G"; it is no option. */
    bool signed_last;
};

extern const struct command *const commands[];  /* ends with NULL */
extern const struct command
    command_amend, command_bench, command_bitmap, command_check,
    command_commit, command_compare, command_completion, command_convert,
    command_create, command_dd, command_info, command_inspect, command_io, command_map,
    command_measure, command_mount, command_rebase, command_resize, command_snapshot,
    command_tree, command_umount;

/* "vimg: ..." on standard error. */
void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* complain says nothing until it is told otherwise. */
void complain_not(bool mute);
/* The same, followed by where to find help.  Returns 1. */
int usage_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* img_warn_fn: one line on standard error, "vimg: warning: ...". */
void warn_line(void *opaque, const char *message);

int show_version(void);         /* 0 */
void no_trace_events(void);     /* says that --trace does nothing */

void *need_memory(void *p);     /* exits when p is NULL */
char *format_text(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Standard output is what the user asked for: a full disk must not go
 * unnoticed.  Returns code, or 1 with a complaint. */
int finish_output(int code);

#endif
