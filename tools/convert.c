/* vimg convert: copies images into a new one, or into one that exists. */
#include "open.h"
#include "progress.h"
#include "settings.h"
#include "size.h"
#include "vimg.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct {
    struct open_how from, to;   /* to.format is -O */
    const char *backing, *backing_format, *sparse, *rate, *threads, *product;
    struct option_list settings;
    bool compress, no_create, target_is_zero, bitmaps, skip_broken, salvage,
         out_of_order, copy_range, progress, quiet;
} args;

static const struct option_def options[] = {
    { OPTION_TEXT, 'f', "source-format", "FMT",
      "format of the sources; guessed when not given", &args.from.format },
    { OPTION_TEXT, 'O', "target-format", "FMT",
      "format of the target; raw when not given", &args.to.format },
    { OPTION_LIST, 'o', "target-options", "LIST",
      "settings of the target's format, key=value,...; \"-o help\" lists them",
      &args.settings },
    SETTINGS_TARGET_ROW(&args.product),
    { OPTION_FLAG, 'c', "compress", NULL, "compress the target",
      &args.compress },
    { OPTION_TEXT, 'B', "backing", "BACKING",
      "make the target an overlay of this image", &args.backing },
    { OPTION_TEXT, 'F', "backing-format", "FMT", "format of BACKING",
      &args.backing_format },
    { OPTION_TEXT, 'l', "snapshot", "SNAPSHOT",
      "copy this internal snapshot: an ID, a name, or "
      "snapshot.id=ID,snapshot.name=NAME", &args.from.snapshot },
    { OPTION_TEXT, 'S', "sparse-size", "SIZE",
      "runs of zeros this long become holes, 4k when not given; 0 writes "
      "everything out", &args.sparse },
    { OPTION_FLAG, 'n', "no-create", NULL,
      "write into an existing target", &args.no_create },
    { OPTION_FLAG, 0, "target-is-zero", NULL,
      "with -n: the target reads as zeros, do not zero it",
      &args.target_is_zero },
    { OPTION_FLAG, 0, "bitmaps", NULL, "copy the source's bitmaps too",
      &args.bitmaps },
    { OPTION_FLAG, 0, "skip-broken-bitmaps", NULL,
      "with --bitmaps: leave out bitmaps that are not consistent",
      &args.skip_broken },
    { OPTION_FLAG, 0, "salvage", NULL,
      "what cannot be read becomes zeros, and is reported", &args.salvage },
    { OPTION_TEXT, 'm', "parallel", "THREADS",
      "work on so many pieces at a time, 1 to 16", &args.threads },
    { OPTION_FLAG, 'W', "out-of-order", NULL,
      "write as the pieces become ready", &args.out_of_order },
    { OPTION_FLAG, 'C', "copy-range-offloading", NULL,
      "let the file system copy", &args.copy_range },
    { OPTION_TEXT, 'r', "rate-limit", "RATE", "bytes per second",
      &args.rate },
    { OPTION_FLAG, 'p', "progress", NULL, "show progress", &args.progress },
    { OPTION_FLAG, 'q', "quiet", NULL, "print nothing but errors",
      &args.quiet },
    OPEN_CACHE_ROW('T', "source-cache", &args.from),
    OPEN_CACHE_ROW('t', "target-cache", &args.to),
    OPEN_SHARE_ROW(&args.from),
    OPEN_IMAGE_OPTS_ROW(&args.from),
    { OPTION_FLAG, 0, "target-image-opts", NULL,
      "TARGET is a list driver=FMT,file.filename=PATH,...; needs -n",
      &args.to.image_opts },
    OPTIONS_OBJECT_ROW(&args.from.objects),
    OPEN_CONFINE_ROWS,
    OPTIONS_HELP_ROW,
    { 0 }
};

static bool fill_numbers(struct img_convert_options *opts,
                         uint64_t *threads, uint64_t *rate)
{
    enum { MAX_SPARSE = 16 << 20 };
    uint64_t sparse;

    if (args.sparse) {
        if (!size_argument(args.sparse, "buffer size for sparse output",
                           &sparse))
            return false;
        if (sparse % 512 || sparse > MAX_SPARSE) {
            complain("Invalid buffer size for sparse output specified. Valid "
                     "sizes are multiples of 512 up to %d. Select 0 to "
                     "disable sparse detection (fully allocates output).",
                     MAX_SPARSE);
            return false;
        }
        opts->no_sparse = sparse == 0;
        opts->sparse_bytes = (uint32_t)sparse;
    }
    if (args.rate && !size_argument(args.rate, "rate limit", rate))
        return false;
    if (!args.threads)
        return true;
    *threads = strtoull(args.threads, NULL, 10);
    if (*threads < 1 || *threads > 16 ||
        args.threads[strspn(args.threads, "0123456789")]) {
        complain("Invalid number of coroutines. Allowed number of coroutines "
                 "is between 1 and 16");
        return false;
    }
    return true;
}

/* Combinations that qemu-img refuses, in its order. */
static bool check_combination(const struct settings *settings)
{
    const char *wrong = NULL;

    if (args.skip_broken && !args.bitmaps)
        wrong = "Use of --skip-broken-bitmaps requires --bitmaps";
    else if (args.to.image_opts && args.to.format)
        wrong = "--image-opts and --format are mutually exclusive";
    else if (args.to.image_opts && !args.no_create)
        wrong = "--target-image-opts requires use of -n flag";
    else if (args.target_is_zero && !args.no_create)
        wrong = "--target-is-zero requires use of -n flag";
    else if (args.copy_range && args.compress)
        wrong = "Cannot enable copy offloading when -c is used";
    else if (args.copy_range && args.sparse)
        wrong = "Cannot enable copy offloading when -S is used";
    else if (args.no_create && (settings->n || settings->has_size ||
                                settings->backing))
        wrong = "-o has no effect when skipping image creation";
    else if (args.no_create && args.backing)
        wrong = "-B cannot be used with -n: the target has its backing file "
                "already";
    if (wrong)
        complain("%s", wrong);
    return !wrong;
}

static bool fill_create(struct img_create_options *create,
                        const struct settings *settings, size_t n_from)
{
    const struct img_format_info *info;

    create->format = args.to.format ? args.to.format : "raw";
    if (!settings_check(settings, create->format, ""))
        return false;
    info = img_format_by_name(create->format);
    if (args.compress && !(info->features & IMG_CAN_COMPRESS)) {
        complain("Compression not supported for this file format");
        return false;
    }
    if (args.bitmaps && !(info->features & IMG_CAN_BITMAP)) {
        complain("Format driver '%s' does not support bitmaps",
                 create->format);
        return false;
    }
    create->settings = settings->list;
    create->backing = args.backing ? args.backing : settings->backing;
    create->backing_format = args.backing_format ? args.backing_format
                                                 : settings->backing_format;
    if (create->backing && n_from > 1) {
        complain("Having a backing file for the target makes no sense when "
                 "concatenating multiple input images");
        return false;
    }
    if (create->backing && !(info->features & IMG_CAN_BACK)) {
        complain("Backing file not supported for file format '%s'",
                 create->format);
        return false;
    }
    if (create->backing && !create->backing_format) {
        complain("Use of backing file requires explicit backing format");
        return false;
    }
    if (create->backing_format && !create->backing) {
        complain("Backing format cannot be used without backing file");
        return false;
    }
    create->has_size = settings->has_size;
    create->disk_size = settings->size;
    return true;
}

static struct img_disk *open_source(const char *name)
{
    if (strcmp(name, "-") || args.from.image_opts)
        return open_image(name, &args.from, 0);
    if (args.from.format && strcmp(args.from.format, "raw")) {
        complain("Only a raw image can be read from standard input");
        return NULL;
    }
    return open_stdin();
}

/* A target that one of the sources is made of would be lost to them. */
static bool target_is_free(struct img_disk *const *from, size_t n,
                           const char *target)
{
    for (size_t i = 0; i < n; i++) {
        if (!open_uses_file(from[i], target))
            continue;
        complain("%s is read by %s, and writing to it would destroy what is "
                 "being read; convert to another name and rename that "
                 "afterwards", target, img_path(from[i]));
        return false;
    }
    return true;
}

static int into_existing(struct img_disk *const *from, size_t n,
                         const char *target,
                         const struct img_convert_options *opts,
                         const struct img_job *job)
{
    struct img_disk *to = open_image(target, &args.to, IMG_OPEN_WRITE |
                                     (opts->no_sparse ? 0 : IMG_OPEN_UNMAP));
    struct img_error err;
    uint64_t total = 0;
    int r = -1;

    if (!to)
        return -1;
    for (size_t i = 0; i < n; i++)
        total += img_size(from[i]);
    if (img_size(to) < total) {
        complain("output file is smaller than input file");
    } else if (target_is_free(from, n, img_path(to))) {
        r = img_copy(from, n, to, opts, job, &err);
        if (r < 0)
            complain("error while converting: %s", err.message);
    }
    return close_image(to) ? r : -1;
}

static int work(struct img_disk *const *from, size_t n, const char *target,
                const struct img_convert_options *opts,
                const struct img_job *job)
{
    struct img_error err;
    int r;

    if (args.no_create)
        return into_existing(from, n, target, opts, job);
    if (!strcmp(target, "-")) {
        signal(SIGPIPE, SIG_IGN);   /* an error with words instead */
        r = img_convert_fd(from, n, STDOUT_FILENO, opts, job, &err);
    } else {
        target = open_plain_path(target);
        if (!target_is_free(from, n, target))
            return -1;
        r = img_convert(from, n, target, opts, job, &err);
    }
    if (r < 0)
        complain("%s: error while converting %s: %s", target,
                 opts->create->format, err.message);
    return r;
}

/* What will be opened, before anything is. */
static void expect(char **names, size_t n, const char *target,
                   const struct img_create_options *create)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(names[i], "-") || args.from.image_opts)
            open_expect(names[i], &args.from, 0, 0);
        else
            confine_temporary();
    }
    if (args.no_create)
        open_expect(target, &args.to, IMG_OPEN_WRITE, 0);
    else if (strcmp(target, "-"))
        open_expect_output(target, create->settings);
    else
        confine_temporary();    /* for formats that do not stream */
    if (create->backing)
        open_expect_below(target, &(struct open_how){ 0 }, create->backing,
                          create->backing_format);
    open_enter();
}

static int convert(char **names, size_t n, const char *target,
                   const struct img_convert_options *opts, uint64_t threads,
                   uint64_t rate)
{
    struct img_disk **from = need_memory(calloc(n, sizeof from[0]));
    bool to_stdout = !args.no_create && !strcmp(target, "-");
    struct img_job *job;
    size_t opened = 0;
    int r = -1;

    for (; opened < n; opened++)
        if (!(from[opened] = open_source(names[opened])))
            break;
    if (opened == n) {
        job = progress_begin(args.progress && !args.quiet && !to_stdout);
        job->threads = (unsigned)threads;
        job->bytes_per_second = rate;
        r = work(from, n, target, opts, job);
        progress_end(r == 0);
    }
    while (opened > 0)
        if (!close_image(from[--opened]))
            r = -1;
    free(from);
    return progress_exit(r < 0 ? 1 : 0);
}

static int run(int argc, char **argv)
{
    struct img_create_options create = IMG_CREATE_OPTIONS;
    struct img_convert_options opts = IMG_CONVERT_OPTIONS;
    uint64_t threads = 0, rate = 0;
    static struct settings settings;
    unsigned cache = 0, unused = 0;

    if (!settings_parse(&args.settings, SETTINGS_CREATE, &settings))
        return 1;
    create.allow_files = open_files_policy(&create.allow_dir);
    opts.scratch = confine_scratch();
    settings_target(&settings, args.product, &args.to.format);
    if (settings.help)
        return settings_help(args.to.format ? args.to.format : "raw",
                             SETTINGS_CREATE, argc > 1);
    if (!fill_numbers(&opts, &threads, &rate) || !open_check(&args.from) ||
        !check_combination(&settings))
        return 1;
    if (!open_cache_flags(args.to.cache, "cache option", &cache) ||
        !open_cache_flags(args.from.cache, "source cache option", &unused))
        return 1;
    if (argc < 2) {
        complain("Must specify image file name");
        return 1;
    }
    if (args.from.snapshot && argc > 2) {
        complain("No support for concatenating multiple snapshot");
        return 1;
    }
    if (!args.no_create && !fill_create(&create, &settings,
                                        (size_t)argc - 1))
        return 1;
    expect(argv, (size_t)argc - 1, argv[argc - 1], &create);
    opts.create = &create;
    opts.compress = args.compress;
    opts.target_exists = args.no_create;
    opts.target_is_zero = args.target_is_zero;
    opts.bitmaps = args.bitmaps;
    opts.skip_broken_bitmaps = args.skip_broken;
    opts.salvage = args.salvage;
    opts.out_of_order = args.out_of_order;
    opts.copy_range = args.copy_range;
    opts.no_sync = cache & IMG_OPEN_NO_SYNC;
    opts.direct = cache & IMG_OPEN_DIRECT;
    opts.warn = args.quiet ? NULL : warn_line;
    return convert(argv, (size_t)argc - 1, argv[argc - 1], &opts, threads,
                   rate);
}

const struct command command_convert = {
    "convert", "SOURCE... TARGET", "Copy disk images into another",
    options, run, false
};
