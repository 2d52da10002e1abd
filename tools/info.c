/* vimg info: what an image is. */
#include "open.h"
#include "show.h"
#include "vimg.h"

#include <stdio.h>
#include <stdlib.h>

static struct {
    struct open_how how;
    const char *output;
    bool chain, verbose;
} args;

static const struct option_def options[] = {
    OPEN_FORMAT_ROW(&args.how),
    { OPTION_TEXT, 0, "output", "HOW", "human or json", &args.output },
    { OPTION_FLAG, 0, "backing-chain", NULL,
      "describe every image below this one too", &args.chain },
    { OPTION_FLAG, 'v', "verbose", NULL,
      "say whether the sandbox held", &args.verbose },
    OPEN_SHARE_ROW(&args.how),
    OPEN_IMAGE_OPTS_ROW(&args.how),
    OPTIONS_OBJECT_ROW(&args.how.objects),
    OPEN_CONFINE_ROWS,
    OPTIONS_HELP_ROW,
    { 0 }
};

static json_t *chain_json(const struct img_info *info)
{
    json_t *list = json_new_array();

    for (; info; info = info->below)
        json_add(list, show_info_json(info, NULL));
    return list;
}

/* With the whole chain open the library has told already, and more. */
static void warn_of_base(const struct img_info *info)
{
    const char *what = info->base_state == IMG_BASE_CHANGED ? "changed" :
                       info->base_state == IMG_BASE_TOUCHED
                       ? "copied or written to" : NULL;
    char *line;

    if (!what || args.chain)
        return;
    line = format_text("%s: its backing file %s was %s since the link to it "
                       "was made", info->path, info->backing_path, what);
    warn_line(NULL, line);
    free(line);
}

static int run(int argc, char **argv)
{
    enum output output = output_argument(args.output);
    struct img_info *info = NULL;
    struct img_disk *disk;
    struct img_error err;
    unsigned flags;
    int code = 1;

    if (output == OUTPUT_BAD)
        return 1;
    if (argc != 1)
        return usage_error("Expecting one image file name");
    if (!open_check(&args.how))
        return 1;
    flags = IMG_OPEN_DESCRIBE | (args.chain ? 0 : IMG_OPEN_NO_BACKING);
    open_expect(argv[0], &args.how, flags, 0);
    open_enter();
    disk = open_image(argv[0], &args.how, flags);
    if (!disk)
        return 1;
    if (img_info_get(disk, &info, &err) < 0) {
        complain("%s", err.message);
        goto out;
    }
    warn_of_base(info);
    if (args.verbose)
        fprintf(stderr, "vimg: confined: %s\n", confine_state());
    if (output == OUTPUT_TEXT)
        show_info(info, NULL, args.chain);
    else
        json_print(args.chain ? chain_json(info)
                              : show_info_json(info, NULL));
    code = 0;
out:
    img_info_free(info);
    return close_image(disk) ? code : 1;
}

const struct command command_info = {
    "info", "FILE", "Describe a disk image", options, run, false
};
