/* vimg measure: how large a new image will be. */
#include "open.h"
#include "settings.h"
#include "show.h"
#include "size.h"
#include "vimg.h"

#include <inttypes.h>
#include <stdio.h>

static struct {
    struct open_how how;
    const char *output, *format, *size;
    struct option_list settings;
} args;

static const struct option_def options[] = {
    { OPTION_TEXT, 'f', "source-format", "FMT",
      "format of FILE; guessed when not given", &args.how.format },
    { OPTION_TEXT, 'O', "target-format", "FMT",
      "format of the new image; raw when not given", &args.format },
    { OPTION_LIST, 'o', "options", "LIST",
      "settings of the new image, key=value,...; \"-o help\" lists them",
      &args.settings },
    { OPTION_TEXT, 's', "size", "SIZE", "size of a new, empty disk",
      &args.size },
    { OPTION_TEXT, 'l', "snapshot", "SNAPSHOT",
      "look at this internal snapshot: an ID, a name, or "
      "snapshot.id=ID,snapshot.name=NAME", &args.how.snapshot },
    { OPTION_TEXT, 0, "output", "HOW", "human or json", &args.output },
    OPEN_SHARE_ROW(&args.how),
    OPEN_IMAGE_OPTS_ROW(&args.how),
    OPTIONS_OBJECT_ROW(&args.how.objects),
    OPEN_CONFINE_ROWS,
    OPTIONS_HELP_ROW,
    { 0 }
};

static void show(const struct img_measure *m, bool json)
{
    json_t *o;

    if (!json) {
        printf("required size: %" PRIu64 "\n", m->required);
        printf("fully allocated size: %" PRIu64 "\n", m->fully_allocated);
        if (m->has_bitmaps)
            printf("bitmaps size: %" PRIu64 "\n", m->bitmaps);
        return;
    }
    o = json_new_object();
    json_put_number(o, "required", m->required);
    json_put_number(o, "fully-allocated", m->fully_allocated);
    if (m->has_bitmaps)
        json_put_number(o, "bitmaps", m->bitmaps);
    json_print(o);
}

static bool check_source(int argc)
{
    const char *wrong = NULL;

    if (argc > 1)
        wrong = "At most one filename argument is allowed.";
    else if (argc == 0 && (args.how.image_opts || args.how.format ||
                           args.how.snapshot))
        wrong = "--image-opts, -f, and -l require a filename argument.";
    else if (argc == 0 && !args.size)
        wrong = "Either --size N or one filename must be specified.";
    else if (argc == 1 && args.size)
        wrong = "--size N cannot be used together with a filename.";
    if (wrong)
        complain("%s", wrong);
    return !wrong;
}

static int run(int argc, char **argv)
{
    enum output output = output_argument(args.output);
    struct img_create_options opts = IMG_CREATE_OPTIONS;
    struct img_measure measure = { 0 };
    struct img_disk *disk = NULL;
    static struct settings settings;
    struct img_error err;
    int r;

    opts.format = args.format ? args.format : "raw";
    if (output == OUTPUT_BAD ||
        !settings_parse(&args.settings, SETTINGS_CREATE, &settings))
        return 1;
    if (settings.help)
        return settings_help(opts.format, SETTINGS_CREATE, false);
    if (args.size && !size_argument(args.size, "image size", &opts.disk_size))
        return 1;
    if (!open_check(&args.how) || !check_source(argc) ||
        !settings_check(&settings, opts.format, ""))
        return 1;
    opts.has_size = args.size;
    opts.settings = settings.list;
    opts.backing = settings.backing;
    opts.backing_format = settings.backing_format;
    if (argc == 1)
        open_expect(argv[0], &args.how, 0, 0);
    open_enter();
    if (argc == 1 && !(disk = open_image(argv[0], &args.how, 0)))
        return 1;
    r = img_measure(disk, &opts, &measure, &err);
    if (r < 0)
        complain("%s", err.message);
    else
        show(&measure, output == OUTPUT_JSON);
    if (!close_image(disk))
        return 1;
    return r < 0 ? 1 : 0;
}

const struct command command_measure = {
    "measure", "{--size=SIZE | FILE}", "Tell how large a new image will be",
    options, run, false
};
