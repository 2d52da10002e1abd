/* vimg amend: changes settings of an image. */
#include "open.h"
#include "progress.h"
#include "settings.h"
#include "vimg.h"

#include <stdio.h>
#include <string.h>

static struct {
    struct open_how how;
    struct option_list settings;
    bool progress, quiet, force;
} args;

static const struct option_def options[] = {
    OPEN_FORMAT_ROW(&args.how),
    { OPTION_LIST, 'o', "options", "LIST",
      "settings to change, key=value,...; \"-o help\" lists them",
      &args.settings },
    { OPTION_FLAG, 0, "force", NULL,
      "change backing_file even though overlays rest on FILE, and spoil them",
      &args.force },
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

/* Every setting must be one that can be changed afterwards. */
static bool check(const struct settings *settings, const char *format)
{
    const struct img_format_info *info = img_format_by_name(format);

    if (!info || !(info->features & IMG_CAN_AMEND)) {
        complain("Format driver '%s' does not support option amendment",
                 format);
        return false;
    }
    if (!settings_check(settings, format, ""))
        return false;
    for (size_t i = 0; i < settings->n; i++) {
        size_t len = strcspn(settings->list[i], "=");

        for (const struct img_option_info *o = info->create_options; o->name;
             o++) {
            if (strlen(o->name) != len || (o->flags & IMG_OPTION_AMEND) ||
                strncmp(o->name, settings->list[i], len))
                continue;
            complain("Invalid parameter '%s'", o->name);
            fputs("This option is only supported for image creation\n",
                  stderr);
            return false;
        }
    }
    return true;
}

static int amend(struct img_disk *disk, const struct settings *settings)
{
    struct img_error err;
    int r;

    if (!check(settings, img_format_name(disk)))
        return 1;
    r = img_amend(disk, settings->list,
                  progress_begin(args.progress && !args.quiet), &err);
    progress_end(r == 0);
    if (r < 0)
        complain("%s", err.message);
    return r < 0 ? 1 : 0;
}

static int run(int argc, char **argv)
{
    static struct settings settings;
    struct img_disk *disk;
    unsigned unused = 0;
    int code;

    if (args.settings.n == 0)
        return usage_error("Must specify options (-o)");
    if (!settings_parse(&args.settings, SETTINGS_AMEND, &settings) ||
        !open_check(&args.how) ||
        !open_cache_flags(args.how.cache, "cache option", &unused))
        return 1;
    if (settings.help && args.how.format)
        return settings_help(args.how.format, SETTINGS_AMEND, true);
    if (argc != 1) {
        complain("Expecting one image file name");
        return 1;
    }
    open_expect(argv[0], &args.how, IMG_OPEN_WRITE,
                CONFINE_FOLDERS | CONFINE_SPLIT);
    for (size_t i = 0; i < settings.n; i++)
        if (!strncmp(settings.list[i], "backing_file=", 13))
            open_expect_below(argv[0], &args.how, settings.list[i] + 13,
                              NULL);
    open_enter();
    if (settings.help) {
        disk = open_image(argv[0], &args.how, IMG_OPEN_NO_BACKING);
        code = disk ? settings_help(img_format_name(disk), SETTINGS_AMEND,
                                    true) : 1;
        img_close(disk, NULL);
        return code;
    }
    disk = open_image(argv[0], &args.how, IMG_OPEN_WRITE |
                      (args.force ? IMG_OPEN_FORCE : 0));
    if (!disk)
        return 1;
    code = amend(disk, &settings);
    if (!close_image(disk))
        code = 1;
    return progress_exit(code);
}

const struct command command_amend = {
    "amend", "FILE", "Change settings of a disk image", options, run, false
};
