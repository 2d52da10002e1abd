/* vimg resize: makes a disk larger or smaller. */
#include "open.h"
#include "progress.h"
#include "size.h"
#include "vimg.h"

#include <stdio.h>
#include <string.h>

static struct {
    struct open_how how;
    const char *preallocation;
    bool quiet, shrink, force;
} args;

static const struct option_def options[] = {
    OPEN_FORMAT_ROW(&args.how),
    { OPTION_FLAG, 0, "shrink", NULL,
      "allow a smaller size; what lies behind it is lost", &args.shrink },
    { OPTION_TEXT, 0, "preallocation", "MODE",
      "off, metadata, falloc or full, for what is added",
      &args.preallocation },
    { OPTION_FLAG, 0, "force", NULL,
      "shrink even though overlays rest on FILE, and spoil them", &args.force },
    { OPTION_FLAG, 'q', "quiet", NULL, "print nothing but errors",
      &args.quiet },
    OPEN_IMAGE_OPTS_ROW(&args.how),
    OPTIONS_OBJECT_ROW(&args.how.objects),
    OPEN_CONFINE_ROWS,
    OPTIONS_HELP_ROW,
    { 0 }
};

static bool parse_prealloc(const char *text, enum img_prealloc *mode)
{
    static const char *const names[] = { "off", "metadata", "falloc", "full" };

    for (int i = 0; i < 4; i++) {
        if (strcmp(names[i], text))
            continue;
        *mode = (enum img_prealloc)i;
        return true;
    }
    complain("Invalid preallocation mode '%s'", text);
    return false;
}

/* "+10G", "-5G" or "20G"; text was looked at before anything was opened. */
static bool new_size(uint64_t old, char sign, uint64_t amount, uint64_t *size)
{
    *size = amount;
    if (sign == '+')
        *size = old + amount;
    else if (sign == '-')
        *size = old > amount ? old - amount : 0;
    if (*size == 0 || *size > INT64_MAX) {
        complain("New image size must be positive");
        return false;
    }
    return true;
}

static int resize(struct img_disk *disk, char sign, uint64_t amount,
                  enum img_prealloc mode)
{
    uint64_t size, old = img_size(disk);
    struct img_error err;
    int r;

    if (!new_size(old, sign, amount, &size))
        return 1;
    if (size <= old && mode != IMG_PREALLOC_OFF) {
        complain("Preallocation can only be used for growing images");
        return 1;
    }
    if (size < old && !args.shrink) {
        complain("Use the --shrink option to perform a shrink operation.");
        complain("warning: Shrinking an image will delete all data beyond the "
                 "shrunken image's end. Before performing such an operation, "
                 "make sure there is no important data there.");
        return 1;
    }
    r = img_resize(disk, size, args.shrink, mode, progress_begin(false), &err);
    progress_end(r == 0);
    if (r < 0) {
        complain("%s", err.message);
        return 1;
    }
    if (!args.quiet)
        puts("Image resized.");
    return 0;
}

static int run(int argc, char **argv)
{
    enum img_prealloc mode = IMG_PREALLOC_OFF;
    struct img_disk *disk;
    uint64_t amount;
    const char *text;
    char sign = 0;
    int code;

    if (argc < 2)
        return usage_error("Not enough arguments");
    if (argc > 2)
        return usage_error("Expecting image file name and size");
    if (args.preallocation && !parse_prealloc(args.preallocation, &mode))
        return 1;
    if (!open_check(&args.how))
        return 1;
    text = argv[1];
    if (*text == '+' || *text == '-')
        sign = *text++;
    if (size_parse(text, &amount) < 0) {
        complain("Parameter 'size' expects a non-negative number below 2^64");
        fputs("Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, "
              "tera-, peta-\nand exabytes, respectively.\n", stderr);
        return 1;
    }
    open_expect(argv[0], &args.how, IMG_OPEN_WRITE,
                CONFINE_FOLDERS | CONFINE_SPLIT);
    open_enter();
    disk = open_image(argv[0], &args.how, IMG_OPEN_WRITE |
                      (args.force ? IMG_OPEN_FORCE : 0));
    if (!disk)
        return 1;
    code = resize(disk, sign, amount, mode);
    if (!close_image(disk))
        code = 1;
    return progress_exit(code);
}

const struct command command_resize = {
    "resize", "FILE [+|-]SIZE", "Make a disk larger or smaller", options, run,
    true
};
