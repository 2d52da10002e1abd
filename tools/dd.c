/* vimg dd: copies a disk, or a part of it, into a new image: img_convert, in
 * dd's words. */
#include "open.h"
#include "progress.h"
#include "size.h"
#include "vimg.h"

#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static struct {
    struct open_how how;
    const char *format;
} args;

static const struct option_def options[] = {
    OPEN_FORMAT_ROW(&args.how),
    { OPTION_TEXT, 'O', "target-format", "FMT",
      "format of the new image; raw when not given", &args.format },
    OPEN_SHARE_ROW(&args.how),
    OPEN_IMAGE_OPTS_ROW(&args.how),
    OPTIONS_OBJECT_ROW(&args.how.objects),
    OPEN_CONFINE_ROWS,
    OPTIONS_HELP_ROW,
    { 0 }
};

struct dd {
    const char *in, *out;
    uint64_t bs, count, skip;
    bool has_count;
    uint64_t start, length;     /* what to copy, in bytes */
    uint64_t size;              /* of the new disk */
};

static bool operand(struct dd *dd, char *text)
{
    char *value = strchr(text, '=');
    size_t len = value ? (size_t)(value - text) : strlen(text);

    if (value)
        value++;
    if (value && len == 2 && !strncmp(text, "if", len)) {
        dd->in = value;
    } else if (value && len == 2 && !strncmp(text, "of", len)) {
        dd->out = value;
    } else if (value && len == 2 && !strncmp(text, "bs", len)) {
        if (!size_argument(value, "bs", &dd->bs))
            return false;
        if (dd->bs < 1 || dd->bs > INT32_MAX) {
            complain("Invalid bs specified. Must be between 1 and %d.",
                     INT32_MAX);
            return false;
        }
    } else if (value && len == 5 && !strncmp(text, "count", len)) {
        dd->has_count = true;
        return size_argument(value, "count", &dd->count);
    } else if (value && len == 4 && !strncmp(text, "skip", len)) {
        return size_argument(value, "skip", &dd->skip);
    } else {
        complain("unrecognized operand %.*s", (int)len, text);
        return false;
    }
    return true;
}

static uint64_t times(uint64_t n, uint64_t bs)
{
    return n > INT64_MAX / bs ? INT64_MAX : n * bs;
}

static void lay_out(struct dd *dd, struct img_disk *from)
{
    uint64_t size = img_size(from), most;

    dd->start = times(dd->skip, dd->bs);
    if (dd->start > size) {
        /* qemu-img's words; it makes an empty image and ends with 0. */
        complain("%s: cannot skip to specified offset", dd->in);
        dd->start = size;
    }
    dd->length = size - dd->start;
    most = times(dd->count, dd->bs);
    if (dd->has_count && dd->length > most)
        dd->length = most;
    dd->size = (dd->length + 511) & ~UINT64_C(511);
}

/* A pipe gets the bytes that were asked for; files have whole sectors. */
static uint64_t new_size(const struct dd *dd, const char *format,
                         bool to_stdout)
{
    return to_stdout && !strcmp(format, "raw") ? dd->length : dd->size;
}

static int copy(const struct dd *dd, struct img_disk *from, bool to_stdout,
                struct img_error *err)
{
    struct img_create_options create = IMG_CREATE_OPTIONS;
    struct img_convert_options opts = IMG_CONVERT_OPTIONS;
    int r;

    create.format = args.format ? args.format : "raw";
    create.disk_size = new_size(dd, create.format, to_stdout);
    create.has_size = true;
    opts.create = &create;
    opts.warn = warn_line;
    opts.scratch = confine_scratch();
    opts.has_range = true;
    opts.offset = dd->start;
    opts.length = dd->length;
    if (to_stdout)
        r = img_convert_fd(&from, 1, STDOUT_FILENO, &opts,
                           progress_begin(false), err);
    else
        r = img_convert(&from, 1, open_plain_path(dd->out), &opts,
                        progress_begin(false), err);
    progress_end(r == 0);
    return r;
}

static int transfer(struct dd *dd, struct img_disk *from)
{
    bool to_stdout = !strcmp(dd->out, "-");
    struct img_error err;
    int r;

    lay_out(dd, from);
    if (!to_stdout && open_uses_file(from, open_plain_path(dd->out))) {
        complain("%s is read by %s, and writing to it would destroy what is "
                 "being read; copy to another name and rename that "
                 "afterwards", dd->out, dd->in);
        return 1;
    }
    if (to_stdout)
        signal(SIGPIPE, SIG_IGN);   /* an error with words instead */
    r = copy(dd, from, to_stdout, &err);
    if (r < 0)
        complain("%s: %s", dd->out, err.message);
    return r < 0 ? 1 : 0;
}

static int run(int argc, char **argv)
{
    struct dd dd = { .bs = 512 };
    struct img_disk *from;
    int code;

    for (int i = 0; i < argc; i++)
        if (!operand(&dd, argv[i]))
            return 1;
    if (!dd.in || !dd.out) {
        complain("Must specify both input and output files");
        return 1;
    }
    if (!open_check(&args.how))
        return 1;
    if (args.format && !img_format_by_name(args.format)) {
        complain("Unknown file format '%s'", args.format);
        return 1;
    }
    if (strcmp(dd.in, "-") || args.how.image_opts)
        open_expect(dd.in, &args.how, 0, 0);
    else
        confine_temporary();
    if (strcmp(dd.out, "-"))
        open_expect_output(dd.out, NULL);
    else
        confine_temporary();
    open_enter();
    from = strcmp(dd.in, "-") || args.how.image_opts
               ? open_image(dd.in, &args.how, 0) : open_stdin();
    if (!from)
        return 1;
    code = transfer(&dd, from);
    if (!close_image(from))
        code = 1;
    return progress_exit(code);
}

const struct command command_dd = {
    "dd", "if=FILE of=FILE [bs=SIZE] [count=N] [skip=N]",
    "Copy a disk, or a part of it, into a new image", options, run, false
};
