/* vimg compare: whether two images hold the same disk. */
#include "open.h"
#include "progress.h"
#include "vimg.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { EQUAL = 0, DIFFERENT = 1, OPEN_FAILED = 2, READ_FAILED = 4 };

static struct {
    struct open_how a, b;
    bool strict, progress, quiet;
} args;

static const struct option_def options[] = {
    { OPTION_TEXT, 'f', "a-format", "FMT",
      "format of FILE1; guessed when not given", &args.a.format },
    { OPTION_TEXT, 'F', "b-format", "FMT",
      "format of FILE2; guessed when not given", &args.b.format },
    { OPTION_FLAG, 's', "strict", NULL,
      "size and allocation must be the same too", &args.strict },
    OPEN_CACHE_ROW('T', "cache", &args.a),
    { OPTION_FLAG, 'p', "progress", NULL, "show progress", &args.progress },
    { OPTION_FLAG, 'q', "quiet", NULL, "print nothing but errors",
      &args.quiet },
    { OPTION_FLAG, 'U', "force-share", NULL,
      "read the images even while another program writes to them",
      &args.a.share },
    { OPTION_FLAG, 0, "image-opts", NULL,
      "FILE1 and FILE2 are lists driver=FMT,file.filename=PATH,...",
      &args.a.image_opts },
    OPTIONS_OBJECT_ROW(&args.a.objects),
    OPEN_CONFINE_ROWS,
    OPTIONS_HELP_ROW,
    { 0 }
};

static void tell(const char *fmt, uint64_t at)
{
    if (!args.quiet)
        printf(fmt, at);
}

static int compare(struct img_disk *a, struct img_disk *b)
{
    bool same_size = img_size(a) == img_size(b);
    uint64_t end = img_size(a) < img_size(b) ? img_size(a) : img_size(b);
    struct img_error err;
    uint64_t at = 0;
    int r;

    if (!same_size && args.strict) {
        tell("Strict mode: Image size mismatch!\n", 0);
        return DIFFERENT;
    }
    r = img_compare(a, b, args.strict,
                    progress_begin(args.progress && !args.quiet), &at, &err);
    progress_end(r == 0);
    if (r < 0) {
        complain("%s", err.message);
        return READ_FAILED;
    }
    at &= ~(uint64_t)511;       /* qemu-img names the sector */
    if (!same_size && (r == 0 || at >= end))
        tell("Warning: Image size mismatch!\n", 0);
    if (r == 0)
        tell("Images are identical.\n", 0);
    else if (r == 2)
        tell("Strict mode: Offset %" PRIu64 " block status mismatch!\n", at);
    else
        tell("Content mismatch at offset %" PRIu64 "!\n", at);
    return r == 0 ? EQUAL : DIFFERENT;
}

static int run(int argc, char **argv)
{
    struct img_disk *a, *b;
    unsigned unused = 0;
    int code;

    if (argc != 2)
        return usage_error("Expecting two image file names");
    args.b.share = args.a.share;
    args.b.cache = args.a.cache;
    args.b.image_opts = args.a.image_opts;
    if (!open_check(&args.a) || !open_check(&args.b) ||
        !open_cache_flags(args.a.cache, "source cache option", &unused))
        return OPEN_FAILED;
    open_expect(argv[0], &args.a, 0, 0);
    open_expect(argv[1], &args.b, 0, 0);
    open_enter();
    a = open_image(argv[0], &args.a, 0);
    b = a ? open_image(argv[1], &args.b, 0) : NULL;
    code = b ? compare(a, b) : OPEN_FAILED;
    img_close(a, NULL);
    img_close(b, NULL);
    return progress_exit(code);
}

const struct command command_compare = {
    "compare", "FILE1 FILE2", "Tell whether two images hold the same disk",
    options, run, false
};
