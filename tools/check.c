/* vimg check: looks for damage and repairs it. */
#include "open.h"
#include "progress.h"
#include "show.h"
#include "size.h"
#include "vimg.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { CLEAN = 0, FAILED = 1, CORRUPT = 2, LEAKS = 3, UNSUPPORTED = 63 };

static struct {
    struct open_how how;
    const char *output, *repair, *memory;
    uint64_t memory_bytes;
    bool quiet;
} args;

static const struct option_def options[] = {
    OPEN_FORMAT_ROW(&args.how),
    { OPTION_TEXT, 'r', "repair", "WHAT",
      "leaks: give back space that nothing uses; all: mend everything",
      &args.repair },
    { OPTION_TEXT, 0, "output", "HOW", "human or json", &args.output },
    { OPTION_TEXT, 0, "memory", "SIZE",
      "count references within this much memory; 256M by default",
      &args.memory },
    { OPTION_FLAG, 'q', "quiet", NULL, "print nothing but errors",
      &args.quiet },
    OPEN_CACHE_ROW('T', "cache", &args.how),
    OPEN_SHARE_ROW(&args.how),
    OPEN_IMAGE_OPTS_ROW(&args.how),
    OPTIONS_OBJECT_ROW(&args.how.objects),
    OPEN_CONFINE_ROWS,
    OPTIONS_HELP_ROW,
    { 0 }
};

/* A leaking image has millions of findings. */
static struct {
    char text[65536];
    size_t used;
} lines;

static void show_lines(void)
{
    fflush(stdout);
    fwrite(lines.text, 1, lines.used, stderr);
    lines.used = 0;
}

static void report(void *opaque, const char *line)
{
    size_t len = strlen(line);

    if (len + 1 > sizeof lines.text - lines.used)
        show_lines();
    len = len < sizeof lines.text ? len : sizeof lines.text - 1;
    memcpy(lines.text + lines.used, line, len);
    lines.text[lines.used + len] = '\n';
    lines.used += len + 1;
}

static void show_text(const struct img_check_result *r)
{
    if (!r->errors && !r->leaks && !r->check_errors)
        puts("No errors were found on the image.");
    if (r->errors)
        printf("\n%" PRIu64 " errors were found on the image.\n"
               "Data may be corrupted, or further writes to the image may "
               "corrupt it.\n", r->errors);
    if (r->leaks)
        printf("\n%" PRIu64 " leaked clusters were found on the image.\n"
               "This means waste of disk space, but no harm to data.\n",
               r->leaks);
    if (r->check_errors)
        printf("\n%" PRIu64 " internal errors have occurred during the "
               "check.\n", r->check_errors);
    if (r->total && r->allocated)
        printf("%" PRIu64 "/%" PRIu64 " = %0.2f%% allocated, %0.2f%% "
               "fragmented, %0.2f%% compressed clusters\n", r->allocated,
               r->total, (double)r->allocated * 100 / (double)r->total,
               (double)r->fragmented * 100 / (double)r->allocated,
               (double)r->compressed * 100 / (double)r->allocated);
    if (r->end_offset)
        printf("Image end offset: %" PRIu64 "\n", r->end_offset);
}

static void show_json(const struct img_check_result *r, const char *path,
                      const char *format)
{
    const struct { const char *key; uint64_t value; } optional[] = {
        { "image-end-offset", r->end_offset },
        { "corruptions", r->errors }, { "leaks", r->leaks },
        { "corruptions-fixed", r->errors_fixed },
        { "leaks-fixed", r->leaks_fixed },
        { "total-clusters", r->total },
        { "allocated-clusters", r->allocated },
        { "fragmented-clusters", r->fragmented },
        { "compressed-clusters", r->compressed },
    };
    json_t *o = json_new_object();

    json_put_text(o, "filename", path);
    json_put_text(o, "format", format);
    json_put_number(o, "check-errors", r->check_errors);
    for (size_t i = 0; i < sizeof optional / sizeof optional[0]; i++)
        if (optional[i].value)
            json_put_number(o, optional[i].key, optional[i].value);
    json_print(o);
}

/* One pass; the counts of repairs are kept from an earlier one. */
static int pass(struct img_disk *disk, unsigned repair,
                struct img_check_result *result)
{
    struct img_check_options opts = IMG_CHECK_OPTIONS;
    struct img_check_result before = *result;
    struct img_error err;
    int r;

    opts.repair = repair;
    opts.report = report;
    opts.memory = args.memory_bytes;
    *result = (struct img_check_result){ 0 };
    r = img_check(disk, &opts, progress_begin(false), result, &err);
    show_lines();
    progress_end(r == 0);
    if (r < 0)
        complain("Check failed: %s", err.message);
    result->errors_fixed += before.errors_fixed;
    result->leaks_fixed += before.leaks_fixed;
    return r;
}

static int check(struct img_disk *disk, const char *path, unsigned repair,
                 bool text)
{
    struct img_check_result r = { 0 };

    if (pass(disk, repair, &r) < 0)
        return FAILED;
    if (r.errors_fixed || r.leaks_fixed) {
        if (text)
            printf("The following inconsistencies were found and repaired:"
                   "\n\n    %" PRIu64 " leaked clusters\n    %" PRIu64
                   " corruptions\n\nDouble checking the fixed image now...\n",
                   r.leaks_fixed, r.errors_fixed);
        if (pass(disk, 0, &r) < 0)
            return FAILED;
    }
    if (text)
        show_text(&r);
    else if (!args.quiet)
        show_json(&r, path, img_format_name(disk));
    return r.check_errors ? FAILED : r.errors ? CORRUPT :
           r.leaks ? LEAKS : CLEAN;
}

static int run(int argc, char **argv)
{
    enum output output = output_argument(args.output);
    const struct img_format_info *info;
    struct img_disk *disk;
    unsigned repair = 0;
    int code;

    if (output == OUTPUT_BAD)
        return FAILED;
    if (args.repair) {
        if (!strcmp(args.repair, "leaks"))
            repair = IMG_REPAIR_LEAKS;
        else if (!strcmp(args.repair, "all"))
            repair = IMG_REPAIR_ALL;
        else
            return usage_error("Unknown option value for -r (expecting "
                               "'leaks' or 'all'): %s", args.repair);
    }
    if (args.memory && !size_argument(args.memory, "memory size",
                                      &args.memory_bytes))
        return FAILED;
    if (argc != 1)
        return usage_error("Expecting one image file name");
    if (!open_check(&args.how))
        return FAILED;
    open_expect(argv[0], &args.how, repair ? IMG_OPEN_WRITE : 0, 0);
    open_enter();
    if (!args.quiet && !open_warn_of_base(argv[0], &args.how))
        return FAILED;
    args.how.hush = true;
    disk = open_image(argv[0], &args.how, IMG_OPEN_NO_BACKING |
                      IMG_OPEN_REPAIR | (repair ? IMG_OPEN_WRITE : 0));
    if (!disk)
        return FAILED;
    info = img_format_by_name(img_format_name(disk));
    if (info && !(info->features & IMG_CAN_CHECK)) {
        complain("This image format does not support checks");
        code = UNSUPPORTED;
    } else {
        code = check(disk, argv[0], repair,
                     output == OUTPUT_TEXT && !args.quiet);
    }
    if (!close_image(disk) && code == CLEAN)
        code = FAILED;
    return progress_exit(code);
}

const struct command command_check = {
    "check", "FILE", "Look for damage in a disk image and repair it",
    options, run, false
};
