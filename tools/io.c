/* vimg io: reads and writes single places of an image, in qemu-io's words.
 *
 * Commands come from -c or from standard input, one per line. */
#include "io.h"
#include "open.h"
#include "vimg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_WORDS = 1024 };

static struct {
    struct open_how how;
    struct option_list commands;
    const char *aio, *trace;
    bool read_only, scratch, no_cache, copy_on_read, misalign, native;
    bool version;
} args;

static const struct option_def options[] = {
    { OPTION_LIST, 'c', "cmd", "COMMAND",
      "do this instead of reading commands from standard input; \"-c help\" "
      "lists them", &args.commands },
    OPEN_FORMAT_ROW(&args.how),
    { OPTION_FLAG, 'r', "read-only", NULL, "do not write to the image",
      &args.read_only },
    { OPTION_FLAG, 's', "snapshot", NULL,
      "write to a temporary overlay, which is thrown away", &args.scratch },
    { OPTION_FLAG, 'n', "nocache", NULL, "the same as --cache=none",
      &args.no_cache },
    { OPTION_FLAG, 'C', "copy-on-read", NULL,
      "copy what is read from a backing file into the image",
      &args.copy_on_read },
    OPEN_CACHE_ROW('t', "cache", &args.how),
    { OPTION_TEXT, 'd', "discard", "MODE",
      "ignore, or unmap: discards give space back to the file system",
      &args.how.discard },
    { OPTION_TEXT, 'i', "aio", "AIO",
      "threads, native or io_uring; accepted for qemu-io's sake", &args.aio },
    { OPTION_FLAG, 'k', "native-aio", NULL, "the same as --aio=native",
      &args.native },
    { OPTION_FLAG, 'm', "misalign", NULL, "accepted for qemu-io's sake",
      &args.misalign },
    { OPTION_TEXT, 'T', "trace", "EVENTS",
      "accepted for qemu-io's sake: there are no trace events",
      &args.trace },
    OPEN_SHARE_ROW(&args.how),
    OPEN_IMAGE_OPTS_ROW(&args.how),
    OPTIONS_OBJECT_ROW(&args.how.objects),
    OPEN_CONFINE_ROWS,
    { OPTION_FLAG, 'V', "version", NULL, "show the version and exit",
      &args.version },
    OPTIONS_HELP_ROW,
    { 0 }
};

static int quit(struct io *io, int argc, char **argv)
{
    io->quit = true;
    return 0;
}

void io_usage(const struct io_command *cmd)
{
    printf("%s %s%s-- %s\n", cmd->name, cmd->usage, *cmd->usage ? " " : "",
           cmd->summary);
}

static int help(struct io *io, int argc, char **argv)
{
    const struct io_command *cmd;

    if (argc < 2) {
        for (cmd = io_commands; cmd->name; cmd++)
            io_usage(cmd);
        puts("\nUse 'help commandname' for extended help.");
        return 0;
    }
    cmd = io_find(argv[1]);
    if (!cmd) {
        printf("command %s not found\n", argv[1]);
        return 0;
    }
    io_usage(cmd);
    if (cmd->details)
        puts(cmd->details);
    return 0;
}

#define STATISTICS " -C, statistics that are easy to parse\n"
#define QUIET " -q, no statistics\n"

const struct io_command io_commands[] = {
    { "aio_flush", NULL, 0, 0, true, "",
      "waits for all requests in flight", NULL, io_aio_flush },
    { "aio_read", NULL, 2, -1, true, "[-Ciqv] [-P pattern] off len [len..]",
      "starts reading",
      "\n aio_flush waits for it.  Errors do not count as the command's.\n"
      STATISTICS " -i, an invalid request: it is not sent\n"
      " -P, every byte must be pattern\n" QUIET " -v, dump what was read\n",
      io_aio_read },
    { "aio_write", NULL, 2, -1, true,
      "[-Cfiquz] [-P pattern] off len [len..]", "starts writing",
      "\n aio_flush waits for it.  Errors do not count as the command's.\n"
      STATISTICS " -f, durable when complete\n"
      " -i, an invalid request: it is not sent\n"
      " -P, write pattern and not 0xcd\n" QUIET
      " -u, with -z: space may be given back\n -z, write zeroes\n",
      io_aio_write },
    { "alloc", NULL, 1, 2, true, "offset [count]",
      "tells how much of a range the image itself has", NULL, io_alloc },
    { "close", NULL, 0, 0, true, "", "closes the image", NULL, io_close },
    { "discard", NULL, 2, -1, true, "[-Cq] off len", "discards a range",
      "\n" STATISTICS QUIET, io_discard },
    { "flush", "f", 0, 0, true, "", "makes everything durable", NULL,
      io_flush },
    { "help", "?", 0, 1, false, "[command]", "helps", NULL, help },
    { "info", "i", 0, 0, true, "", "describes the image", NULL, io_info },
    { "length", "l", 0, 0, true, "", "tells the size of the disk", NULL,
      io_length_command },
    { "map", NULL, 0, 0, true, "",
      "lists what the image itself has and has not", NULL, io_map },
    { "open", "o", 0, -1, false,
      "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
      "opens an image",
      "\n -r, read-only\n -s, write to a temporary overlay\n"
      " -C, copy on read\n -n, short for -t none\n -U, force share\n"
      " -k, -i AIO, accepted for qemu-io's sake\n -t, cache mode\n"
      " -d, discard mode\n -o, options such as driver=raw\n", io_open },
    { "quit", "q", 0, 0, false, "", "ends", NULL, quit },
    { "read", "r", 2, -1, true,
      "[-abCqv] [-P pattern [-s off] [-l len]] off len", "reads a range",
      "\n -b, the state of a virtual machine, behind the disk\n"
      STATISTICS " -l, with -P: length of what is compared\n"
      " -P, every byte must be pattern\n" QUIET
      " -s, with -P: where comparing begins\n -v, dump what was read\n",
      io_read },
    { "readv", "rv", 2, -1, true, "[-Cqv] [-P pattern] off len [len..]",
      "reads a range into several buffers",
      "\n" STATISTICS " -P, every byte must be pattern\n" QUIET
      " -v, dump what was read\n", io_readv },
    { "reopen", NULL, 0, -1, true, "[(-r|-w)] [-c cache] [-o options]",
      "closes the image and opens it with other options",
      "\n -r, read-only\n -w, read and write\n -c, cache mode\n"
      " -o, options such as discard=unmap\n", io_reopen },
    { "sleep", NULL, 1, 1, false, "ms", "waits for so many milliseconds",
      NULL, io_sleep },
    { "truncate", "t", 1, 3, true, "[-m prealloc_mode] off",
      "makes the disk larger or smaller", NULL, io_truncate },
    { "write", "w", 2, -1, true,
      "[-bcCfnquz] [-P pattern | -s source_file] off len", "writes a range",
      "\n -b, the state of a virtual machine, behind the disk\n"
      " -c, compressed\n" STATISTICS " -f, durable when complete\n"
      " -n, with -z: fail rather than write real zeroes\n"
      " -P, write pattern and not 0xcd\n" QUIET
      " -s, write the file's content, again and again\n"
      " -u, with -z: space may be given back\n -z, write zeroes\n",
      io_write },
    { "writev", "wv", 2, -1, true, "[-Cfq] [-P pattern] off len [len..]",
      "writes a range from several buffers",
      "\n" STATISTICS " -f, durable when complete\n"
      " -P, write pattern and not 0xcd\n" QUIET, io_writev },
    { 0 }
};

const struct io_command *io_find(const char *name)
{
    for (const struct io_command *c = io_commands; c->name; c++)
        if (!strcmp(c->name, name) || (c->other && !strcmp(c->other, name)))
            return c;
    return NULL;
}

static bool check_count(const struct io_command *cmd, int n)
{
    if (n >= cmd->min_args && (cmd->max_args < 0 || n <= cmd->max_args))
        return true;
    fflush(stdout);
    if (cmd->max_args < 0)
        fprintf(stderr, "bad argument count %d to %s, expected at least %d "
                "arguments\n", n, cmd->name, cmd->min_args);
    else if (cmd->min_args == cmd->max_args)
        fprintf(stderr, "bad argument count %d to %s, expected %d "
                "arguments\n", n, cmd->name, cmd->min_args);
    else
        fprintf(stderr, "bad argument count %d to %s, expected between %d "
                "and %d arguments\n", n, cmd->name, cmd->min_args,
                cmd->max_args);
    return false;
}

/* Takes the line apart.  Returns 0, or -1 when the command failed. */
static int execute(struct io *io, char *line)
{
    const struct io_command *cmd;
    char *words[MAX_WORDS + 1];
    int n = 0, r;

    for (char *w = strtok(line, " \t\n"); w && n < MAX_WORDS;
         w = strtok(NULL, " \t\n"))
        words[n++] = w;
    words[n] = NULL;
    if (n == 0)
        return 0;
    cmd = io_find(words[0]);
    fflush(stdout);
    if (!cmd) {
        fprintf(stderr, "command \"%s\" not found\n", words[0]);
        return -1;
    }
    if (cmd->needs_disk && !io->disk) {
        fprintf(stderr, "no file open, try 'help open'\n");
        return -1;
    }
    if (!check_count(cmd, n - 1))
        return -1;
    optind = 0;
    r = cmd->run(io, n, words);
    io_aio_poll(io, false);
    return r;
}

static int interactive(struct io *io)
{
    char *line = NULL;
    size_t size = 0;
    int r = 0;

    while (!io->quit) {
        fputs("qemu-io> ", stdout);
        fflush(stdout);
        if (getline(&line, &size, stdin) < 0)
            break;
        if (execute(io, line) < 0)
            r = -1;
    }
    free(line);
    return r;
}

static int given(struct io *io)
{
    int r = 0;

    for (size_t i = 0; i < args.commands.n && !io->quit; i++) {
        char *line = need_memory(strdup(args.commands.uses[i].text));

        if (execute(io, line) < 0)
            r = -1;
        free(line);
    }
    return r;
}

/* Do the commands have this word?  Nobody knows what will be typed. */
static bool may_say(const char *word)
{
    for (size_t i = 0; i < args.commands.n; i++)
        if (strstr(args.commands.uses[i].text, word))
            return true;
    return args.commands.n == 0;
}

/* Is this one of the commands, by whichever of its names? */
static bool may_run(const char *name)
{
    for (size_t i = 0; i < args.commands.n; i++) {
        char *line = need_memory(strdup(args.commands.uses[i].text));
        char *word = strtok(line, " \t\n");
        const struct io_command *cmd = word ? io_find(word) : NULL;
        bool found = cmd && !strcmp(cmd->name, name);

        free(line);
        if (found)
            return true;
    }
    return args.commands.n == 0;
}

/* Is there an option s, alone (-s) or with others (-qs)? */
static bool has_pattern_file(const char *line)
{
    for (; (line = strchr(line, '-')); line++) {
        size_t len = strcspn(line, " \t\n");

        if (memchr(line, 's', len))
            return true;
    }
    return false;
}

static bool may_read_pattern(void)
{
    for (size_t i = 0; i < args.commands.n; i++)
        if (has_pattern_file(args.commands.uses[i].text))
            return true;
    return false;
}

/* Commands that come one after the other may open anything. */
static void enter(const struct io *io, const char *name)
{
    if (may_run("open") || may_run("reopen") || may_read_pattern())
        confine_path("/", SANDBOX_READ | SANDBOX_WRITE | SANDBOX_LIST |
                     SANDBOX_MAKE);
    if (may_say("nbd"))
        confine_network();
    if (name)
        open_expect(name, &io->how, args.read_only || args.scratch ? 0 :
                    IMG_OPEN_WRITE, may_run("truncate") ? CONFINE_SPLIT : 0);
    if (args.scratch)
        confine_temporary();
    open_enter();
}

static int run(int argc, char **argv)
{
    struct io io = { .read_only = args.read_only,
                     .copy_on_read = args.copy_on_read };
    int r = 0;

    if (args.version)
        return show_version();
    if (args.trace)
        no_trace_events();
    if (argc > 1)
        return usage_error("Expecting one image file name");
    if (!open_check(&args.how))
        return 1;
    io.how = args.how;
    if (args.no_cache)
        io.how.cache = "none";
    enter(&io, argc == 1 ? argv[0] : NULL);
    if (argc == 1 && io_open_named(&io, argv[0], args.scratch) < 0)
        r = 1;
    if (r == 0)
        r = args.commands.n ? given(&io) : interactive(&io);
    if (io_close(&io, 0, NULL) < 0)
        r = 1;
    free(io.name);
    free(io.cache);
    return r ? 1 : 0;
}

const struct command command_io = {
    "io", "[FILE]", "Read and write single places of an image", options, run,
    false
};
