/* vimg commit: moves what an overlay holds into an image below it. */
#include "open.h"
#include "progress.h"
#include "size.h"
#include "vimg.h"

#include <stdio.h>
#include <string.h>

static struct {
    struct open_how how;
    const char *base, *rate;
    bool drop, force, progress, quiet;
} args;

static const struct option_def options[] = {
    OPEN_FORMAT_ROW(&args.how),
    { OPTION_TEXT, 'b', "base", "BASE",
      "the image that takes it in; the backing file of FILE when not given",
      &args.base },
    { OPTION_FLAG, 'd', "drop", NULL, "do not empty FILE afterwards",
      &args.drop },
    { OPTION_FLAG, 0, "force", NULL,
      "commit even though other overlays rest on the same base, and spoil "
      "them", &args.force },
    { OPTION_TEXT, 'r', "rate-limit", "RATE", "bytes per second",
      &args.rate },
    OPEN_CACHE_ROW('t', "cache", &args.how),
    { OPTION_FLAG, 'p', "progress", NULL, "show progress", &args.progress },
    { OPTION_FLAG, 'q', "quiet", NULL, "print nothing but errors",
      &args.quiet },
    OPEN_IMAGE_OPTS_ROW(&args.how),
    OPTIONS_OBJECT_ROW(&args.how.objects),
    OPEN_CONFINE_ROWS,
    OPTIONS_HELP_ROW,
    { 0 }
};

/* 0: the user was told. */
static unsigned find_depth(struct img_disk *disk, const char *name)
{
    const char *file;

    if (!img_file_name(disk, 1, 0)) {
        complain("Image does not have a backing file");
        return 0;
    }
    if (!args.base)
        return 1;
    for (unsigned depth = 1; (file = img_file_name(disk, depth, 0)); depth++)
        if (!strcmp(file, args.base) || open_same_file(file, args.base))
            return depth;
    complain("Did not find '%s' in the backing chain of '%s'", args.base,
             name);
    return 0;
}

static int commit(struct img_disk *disk, const char *name, uint64_t rate)
{
    unsigned depth = find_depth(disk, name);
    struct img_error err;
    struct img_job *job;
    int r;

    if (depth == 0)
        return 1;
    job = progress_begin(args.progress && !args.quiet);
    job->bytes_per_second = rate;
    r = img_commit(disk, depth, args.drop || args.base, job, &err);
    progress_end(r == 0);
    if (r < 0)
        complain("%s", err.message);
    else if (!args.quiet)
        puts("Image committed.");
    return r < 0 ? 1 : 0;
}

static int run(int argc, char **argv)
{
    struct img_disk *disk;
    unsigned unused = 0;
    uint64_t rate = 0;
    int code;

    if (args.rate && !size_argument(args.rate, "rate limit", &rate))
        return 1;
    if (argc != 1)
        return usage_error("Expecting one image file name");
    if (!open_check(&args.how) ||
        !open_cache_flags(args.how.cache, "cache option", &unused))
        return 1;
    open_expect(argv[0], &args.how, IMG_OPEN_WRITE,
                CONFINE_WRITE_ALL | CONFINE_FOLDERS | CONFINE_SPLIT);
    open_enter();
    disk = open_image(argv[0], &args.how, IMG_OPEN_WRITE | IMG_OPEN_UNMAP |
                      (args.force ? IMG_OPEN_FORCE : 0));
    if (!disk)
        return 1;
    code = commit(disk, argv[0], rate);
    if (!close_image(disk))
        code = 1;
    return progress_exit(code);
}

const struct command command_commit = {
    "commit", "FILE", "Move what an overlay holds into an image below it",
    options, run, false
};
