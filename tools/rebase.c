/* vimg rebase: puts an overlay on another backing file. */
#include "open.h"
#include "progress.h"
#include "vimg.h"

#include <stdio.h>
#include <string.h>

static struct {
    struct open_how how;
    const char *backing, *backing_format, *source_cache;
    bool unsafe, compress, force, progress, quiet;
} args;

static const struct option_def options[] = {
    OPEN_FORMAT_ROW(&args.how),
    { OPTION_TEXT, 'b', "backing", "BACKING",
      "the new backing file; \"\" for none", &args.backing },
    { OPTION_TEXT, 'F', "backing-format", "FMT",
      "format of BACKING; found out and recorded when not given",
      &args.backing_format },
    { OPTION_FLAG, 'u', "backing-unsafe", NULL,
      "change only the name; what the guest sees may change",
      &args.unsafe },
    { OPTION_FLAG, 'c', "compress", NULL,
      "compress what has to be copied into the overlay", &args.compress },
    { OPTION_FLAG, 0, "force", NULL,
      "with -u, even though overlays rest on FILE, and spoil them", &args.force },
    OPEN_CACHE_ROW('t', "cache", &args.how),
    { OPTION_TEXT, 'T', "backing-cache", "CACHE",
      "likewise, of the backing files", &args.source_cache },
    { OPTION_FLAG, 'p', "progress", NULL, "show progress", &args.progress },
    { OPTION_FLAG, 'q', "quiet", NULL, "print nothing but errors",
      &args.quiet },
    OPEN_SHARE_ROW(&args.how),
    OPEN_IMAGE_OPTS_ROW(&args.how),
    OPTIONS_OBJECT_ROW(&args.how.objects),
    OPEN_CONFINE_ROWS,
    OPTIONS_HELP_ROW,
    { 0 }
};

static int rebase(struct img_disk *disk)
{
    struct img_rebase_options opts = IMG_REBASE_OPTIONS;
    struct img_error err;
    int r;

    opts.backing = args.backing;
    opts.backing_format = args.backing_format;
    opts.unsafe = args.unsafe;
    opts.compress = args.compress;
    r = img_rebase(disk, &opts, progress_begin(args.progress && !args.quiet),
                   &err);
    progress_end(r == 0);
    if (r < 0)
        complain("Could not change the backing file to '%s': %s",
                 args.backing ? args.backing : "", err.message);
    return r < 0 ? 1 : 0;
}

static int run(int argc, char **argv)
{
    struct img_disk *disk;
    unsigned unused = 0;
    int code;

    if (argc != 1)
        return usage_error("Expecting one image file name");
    if (!args.unsafe && !args.backing)
        return usage_error("Must specify backing file (-b) or use unsafe mode "
                           "(-u)");
    if (!open_check(&args.how) ||
        !open_cache_flags(args.how.cache, "cache option", &unused) ||
        !open_cache_flags(args.source_cache, "source cache option", &unused))
        return 1;
    if (args.backing_format && !img_format_by_name(args.backing_format)) {
        complain("Invalid format name: '%s'", args.backing_format);
        return 1;
    }
    /* What is written to is locked all the same, as by qemu-img. */
    args.how.share = false;
    open_expect(argv[0], &args.how, IMG_OPEN_WRITE,
                CONFINE_FOLDERS | CONFINE_SPLIT);
    if (args.backing && *args.backing)
        open_expect_below(argv[0], &args.how, args.backing,
                          args.backing_format);
    open_enter();
    disk = open_image(argv[0], &args.how, IMG_OPEN_WRITE | IMG_OPEN_UNMAP |
                      (args.unsafe ? IMG_OPEN_NO_BACKING : 0) |
                      (args.force ? IMG_OPEN_FORCE : 0));
    if (!disk)
        return 1;
    code = rebase(disk);
    if (!close_image(disk))
        code = 1;
    return progress_exit(code);
}

const struct command command_rebase = {
    "rebase", "FILE", "Put an overlay on another backing file", options, run,
    false
};
