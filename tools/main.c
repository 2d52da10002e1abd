/* vimg: makes, shows, converts and repairs disk images.
 *
 * A table of commands and what they all need; see options.h for how a
 * command describes itself. */
#include "standard.h"
#include "vimg.h"
#include "../nbd/spawn.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct command *const commands[] = {
    &command_create, &command_info, &command_convert, &command_resize,
    &command_map, &command_check, &command_snapshot, &command_commit,
    &command_rebase, &command_compare, &command_measure, &command_inspect, &command_amend,
    &command_bitmap, &command_dd, &command_bench, &command_io, &command_tree,
    &command_mount, &command_umount, &command_completion,
    NULL
};

static void message(const char *kind, const char *fmt, va_list ap)
{
    fflush(stdout);
    fprintf(stderr, "vimg: %s", kind);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
}

static bool muted;

void complain_not(bool mute)
{
    muted = mute;
}

void complain(const char *fmt, ...)
{
    va_list ap;

    if (muted)
        return;
    va_start(ap, fmt);
    message("", fmt, ap);
    va_end(ap);
}

int usage_error(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    message("", fmt, ap);
    va_end(ap);
    fputs("Try 'vimg --help' for more information\n", stderr);
    return 1;
}

void warn_line(void *opaque, const char *text)
{
    fflush(stdout);
    fprintf(stderr, "vimg: warning: %s\n", text);
}

void *need_memory(void *p)
{
    if (!p) {
        complain("out of memory");
        exit(1);
    }
    return p;
}

char *format_text(const char *fmt, ...)
{
    va_list ap;
    char *text;

    va_start(ap, fmt);
    if (vasprintf(&text, fmt, ap) < 0)
        text = need_memory(NULL);
    va_end(ap);
    return text;
}

int finish_output(int code)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return code;
    complain("could not write to standard output: %s", strerror(errno));
    return code ? code : 1;
}

static int help(void)
{
    puts("Usage: vimg COMMAND [OPTION]... [ARGUMENT]...\n"
         "Make, show, convert and repair disk images.\n\n"
         "  -h, --help     show this help and exit\n"
         "  -T, --trace    accepted for qemu-img's sake; there are no trace "
         "events\n"
         "  -V, --version  show the version and exit\n\n"
         "Commands:");
    for (size_t i = 0; commands[i]; i++)
        printf("  %-11s %s\n", commands[i]->name, commands[i]->summary);
    fputs("\nSupported formats:", stdout);
    for (size_t i = 0; img_format(i); i++)
        printf(" %s", img_format(i)->name);
    puts("\n\n'vimg COMMAND --help' describes a command; so does "
         "vimg-COMMAND(1).");
    return 0;
}

int show_version(void)
{
    unsigned v = img_version();

    printf("vimg version %u.%u.%u\n", v / 10000, v / 100 % 100, v % 100);
    return 0;
}

void no_trace_events(void)
{
    warn_line(NULL, "there are no trace events; --trace does nothing");
}

/* How many words "-T EVENTS", in any of its spellings, takes at argv[at]. */
static int trace_words(int argc, char **argv, int at)
{
    const char *word = argv[at];

    if (!strncmp(word, "--trace=", 8) || (!strncmp(word, "-T", 2) && word[2]))
        return 1;
    if (strcmp(word, "-T") && strcmp(word, "--trace"))
        return 0;
    return at + 1 < argc ? 2 : 0;
}

static int run(const struct command *cmd, int argc, char **argv)
{
    struct img_error err;

    if (nbd_spawn_servers(&argc, &argv, &err) < 0) {
        complain("%s", err.message);
        return 1;
    }
    switch (options_parse(cmd, &argc, &argv)) {
    case OPTIONS_HELP:
        options_help(cmd);
        return 0;
    case OPTIONS_BAD:
        return 1;
    default:
        return cmd->run(argc, argv);
    }
}

static const struct command *find_command(const char *name)
{
    for (size_t i = 0; commands[i]; i++)
        if (!strcmp(commands[i]->name, name))
            return commands[i];
    return NULL;
}

static int dispatch(int argc, char **argv)
{
    const struct command *cmd;
    const char *word;
    int n;

    while (argc > 1 && (n = trace_words(argc, argv, 1)) > 0) {
        no_trace_events();
        argc -= n;
        argv += n;
    }
    word = argc > 1 ? argv[1] : NULL;
    if (!word)
        return usage_error("Not enough arguments");
    if (!strcmp(word, "-h") || !strcmp(word, "--help") ||
        !strcmp(word, "help")) {
        cmd = argc > 2 ? find_command(argv[2]) : NULL;
        if (!cmd)
            return help();
        options_help(cmd);
        return 0;
    }
    if (!strcmp(word, "-V") || !strcmp(word, "--version"))
        return show_version();
    if (*word == '-')
        return usage_error("unrecognized option '%s'", word);
    cmd = find_command(word);
    if (!cmd)
        return usage_error("Command not found: %s", word);
    return run(cmd, argc - 1, argv + 1);
}

int main(int argc, char **argv)
{
    const char *slash = argc ? strrchr(argv[0], '/') : NULL;
    int code;

    if (standard_take() < 0)
        return 1;
    signal(SIGXFSZ, SIG_IGN);   /* ulimit -f: an error with words instead */
    /* A link of that name stands in for qemu-io in scripts. */
    if (argc && !strcmp(slash ? slash + 1 : argv[0], "qemu-io"))
        code = run(&command_io, argc, argv);
    else
        code = dispatch(argc, argv);
    nbd_spawn_end();
    return finish_output(code);
}
