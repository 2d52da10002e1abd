/* vimg create: a new image. */
#include "open.h"
#include "settings.h"
#include "size.h"
#include "vimg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct {
    bool quiet, unsafe;
    const char *format, *backing, *backing_format, *target;
    struct option_list settings;
    struct open_how how;        /* --object only */
} args;

static const struct option_def options[] = {
    { OPTION_TEXT, 'f', "format", "FMT",
      "format of the new image; when not given, qcow2 for an overlay, else by "
      "the suffix of FILE (.qcow2 .vdi .vmdk .img .raw), else raw",
      &args.format },
    { OPTION_TEXT, 'b', "backing", "BACKING",
      "make an overlay that holds only what differs from this image",
      &args.backing },
    { OPTION_TEXT, 'F', "backing-format", "FMT",
      "format of the backing file; found out and recorded when not given",
      &args.backing_format },
    { OPTION_FLAG, 'u', "backing-unsafe", NULL,
      "do not look at the backing file; needs SIZE and -F", &args.unsafe },
    { OPTION_LIST, 'o', "options", "LIST",
      "settings of the format, key=value,...; \"-o help\" lists them",
      &args.settings },
    SETTINGS_TARGET_ROW(&args.target),
    { OPTION_FLAG, 'q', "quiet", NULL, "print nothing but errors",
      &args.quiet },
    OPTIONS_OBJECT_ROW(&args.how.objects),
    OPEN_CONFINE_ROWS,
    OPTIONS_HELP_ROW,
    { 0 }
};

static const char *format_by_suffix(const char *path)
{
    static const struct { const char *suffix, *format; } known[] = {
        { ".qcow2", "qcow2" }, { ".vdi", "vdi" }, { ".vmdk", "vmdk" },
    };
    const char *dot = strrchr(path, '.');

    for (size_t i = 0; dot && i < sizeof known / sizeof known[0]; i++)
        if (!strcmp(dot, known[i].suffix) &&
            img_format_by_name(known[i].format))
            return known[i].format;
    return "raw";
}

/* Whether the backing file, which is named relative to the new image, is the
 * file that would be replaced. */
static bool is_own_backing(const char *path, const char *backing)
{
    const char *slash = strrchr(path, '/');
    char *full;
    bool same;

    if (!slash || *backing == '/')
        return open_same_file(path, backing);
    full = format_text("%.*s/%s", (int)(slash - path), path, backing);
    same = open_same_file(path, full);
    free(full);
    return same;
}

static bool fill_size(struct img_create_options *opts, const char *path,
                      const struct settings *settings, const char *text)
{
    if (text && settings->has_size) {
        complain("%s: The image size must be specified only once", path);
        return false;
    }
    opts->disk_size = settings->size;
    opts->has_size = settings->has_size || text;
    if (text && !size_argument(text, "image size", &opts->disk_size))
        return false;
    if (!opts->has_size && (!opts->backing || args.unsafe)) {
        complain("%s: Image creation needs a size parameter", path);
        return false;
    }
    return true;
}

static bool fill_backing(struct img_create_options *opts, const char *path,
                         const struct settings *settings)
{
    opts->backing = args.backing ? args.backing : settings->backing;
    opts->backing_format = args.backing_format ? args.backing_format
                                               : settings->backing_format;
    if (opts->backing && !*opts->backing)
        opts->backing = NULL;
    if (opts->backing_format && !opts->backing) {
        complain("%s: Backing format cannot be used without backing file",
                 path);
        return false;
    }
    if (!opts->backing)
        return true;
    if (args.unsafe && !opts->backing_format) {
        complain("%s: Backing file specified without backing format", path);
        return false;
    }
    if (is_own_backing(path, opts->backing)) {
        complain("%s: Error: Trying to create an image with the same filename "
                 "as the backing file", path);
        return false;
    }
    return true;
}

static int make(const char *path, const struct img_create_options *opts)
{
    struct img_error err;
    char **resolved = NULL;

    if (img_create_resolve(path, opts, &resolved, &err) < 0) {
        complain("%s: %s", path, err.message);
        return 1;
    }
    if (!args.quiet)
        settings_print(path, opts->format, resolved);
    img_settings_free(resolved);
    if (img_create(path, opts, &err) < 0) {
        complain("%s: %s", path, err.message);
        return 1;
    }
    return 0;
}

static int run(int argc, char **argv)
{
    struct img_create_options opts = IMG_CREATE_OPTIONS;
    const struct img_format_info *info;
    static struct settings settings;
    const char *path;
    char *prefix;

    if (!settings_parse(&args.settings, SETTINGS_CREATE, &settings) ||
        !open_check(&args.how))
        return 1;
    opts.allow_files = open_files_policy(&opts.allow_dir);
    settings_target(&settings, args.target, &args.format);
    if (settings.help)
        return settings_help(args.format ? args.format : "raw",
                             SETTINGS_CREATE, argc > 0);
    if (argc < 1)
        return usage_error("Expecting image file name");
    if (argc > 2)
        return usage_error("Unexpected argument: %s", argv[2]);
    path = open_plain_path(argv[0]);
    opts.format = args.format;
    if (!opts.format)
        opts.format = args.backing || settings.backing
                          ? "qcow2" : format_by_suffix(path);
    opts.settings = settings.list;
    opts.flags = args.unsafe ? IMG_CREATE_NO_OPEN_BACKING : 0;
    prefix = format_text("%s: ", path);
    info = settings_check(&settings, opts.format, prefix)
               ? img_format_by_name(opts.format) : NULL;
    free(prefix);
    if (!info)
        return 1;
    if (!(info->features & IMG_CAN_BACK) && (args.backing ||
                                             settings.backing)) {
        complain("%s: Backing file not supported for file format '%s'", path,
                 opts.format);
        return 1;
    }
    open_expect_output(path, opts.settings);
    if (args.backing || settings.backing)
        open_expect_below(path, &(struct open_how){ 0 }, args.backing ?
                          args.backing : settings.backing,
                          args.backing_format ? args.backing_format :
                          settings.backing_format);
    open_enter();
    if (!fill_backing(&opts, path, &settings) ||
        !fill_size(&opts, path, &settings, argv[1]))
        return 1;
    return make(path, &opts);
}

const struct command command_create = {
    "create", "FILE [SIZE]", "Make a new disk image", options, run, false
};
