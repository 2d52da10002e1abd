/* vimg bitmap: changes an image's persistent bitmaps. */
#include "open.h"
#include "size.h"
#include "vimg.h"

#include <stdio.h>
#include <string.h>

static struct {
    struct open_how how, source;
    struct option_list actions;
    const char *granularity, *source_file;
} args;

static const struct option_def options[] = {
    OPEN_FORMAT_ROW(&args.how),
    { OPTION_LIST, 0, "add", NULL, "make BITMAP", &args.actions },
    { OPTION_LIST, 0, "remove", NULL, "remove BITMAP", &args.actions },
    { OPTION_LIST, 0, "clear", NULL, "clear all bits of BITMAP",
      &args.actions },
    { OPTION_LIST, 0, "enable", NULL, "BITMAP records writes",
      &args.actions },
    { OPTION_LIST, 0, "disable", NULL, "BITMAP records nothing any more",
      &args.actions },
    { OPTION_LIST, 0, "merge", "SOURCE",
      "set every bit in BITMAP that is set in SOURCE", &args.actions },
    { OPTION_TEXT, 'b', "source-file", "FILE",
      "--merge finds SOURCE in this image", &args.source_file },
    { OPTION_TEXT, 'F', "source-format", "FMT", "format of that image",
      &args.source.format },
    { OPTION_TEXT, 'g', "granularity", "SIZE",
      "with --add: bytes of the disk per bit, 64k when not given",
      &args.granularity },
    OPEN_IMAGE_OPTS_ROW(&args.how),
    OPTIONS_OBJECT_ROW(&args.how.objects),
    OPEN_CONFINE_ROWS,
    OPTIONS_HELP_ROW,
    { 0 }
};

static bool has(const char *name)
{
    for (size_t i = 0; i < args.actions.n; i++)
        if (!strcmp(args.actions.uses[i].name, name))
            return true;
    return false;
}

static bool check_combination(int argc)
{
    const char *wrong = NULL;

    if (argc != 2)
        wrong = "Expecting filename and bitmap name";
    else if (args.actions.n == 0)
        wrong = "Need at least one of --add, --remove, --clear, --enable, "
                "--disable, or --merge";
    else if (args.granularity && !has("add"))
        wrong = "granularity only supported with --add";
    else if (args.source.format && !args.source_file)
        wrong = "-F only supported with -b";
    else if (args.source_file && !has("merge"))
        wrong = "Merge bitmap source file only supported with --merge";
    if (wrong)
        complain("%s", wrong);
    return !wrong;
}

static int act(struct img_disk *disk, struct img_disk *source,
               const char *bitmap, const struct option_use *action,
               uint32_t granularity)
{
    static const char *const verbs[] = {
        [IMG_BITMAP_ADD] = "add", [IMG_BITMAP_REMOVE] = "remove",
        [IMG_BITMAP_CLEAR] = "clear", [IMG_BITMAP_ENABLE] = "enable",
        [IMG_BITMAP_DISABLE] = "disable",
    };
    struct img_error err;
    unsigned verb = 0;
    int r;

    if (!strcmp(action->name, "merge")) {
        r = img_bitmap_merge(disk, bitmap, source, action->text, &err);
    } else {
        while (strcmp(verbs[verb], action->name))
            verb++;
        r = img_bitmap_edit(disk, bitmap, (enum img_bitmap_verb)verb,
                            granularity, &err);
    }
    if (r < 0)
        complain("Operation %s on bitmap %s failed: %s", action->name, bitmap,
                 err.message);
    return r < 0 ? 1 : 0;
}

static int run(int argc, char **argv)
{
    struct img_disk *disk, *source = NULL;
    uint64_t granularity = 0;
    int code = 0;

    if (args.granularity &&
        !size_argument(args.granularity, "granularity", &granularity))
        return 1;
    if (!check_combination(argc) || !open_check(&args.how))
        return 1;
    if (args.granularity && (granularity < 512 || granularity >> 31 ||
                             (granularity & (granularity - 1)))) {
        complain("Operation add on bitmap %s failed: Granularity must be "
                 "power of 2 and at least 512", argv[1]);
        return 1;
    }
    open_expect(argv[0], &args.how, IMG_OPEN_WRITE | IMG_OPEN_NO_BACKING, 0);
    if (args.source_file)
        open_expect(args.source_file, &args.source, IMG_OPEN_NO_BACKING, 0);
    open_enter();
    disk = open_image(argv[0], &args.how,
                      IMG_OPEN_WRITE | IMG_OPEN_NO_BACKING);
    if (!disk)
        return 1;
    if (args.source_file &&
        !(source = open_image(args.source_file, &args.source,
                              IMG_OPEN_NO_BACKING)))
        code = 1;
    for (size_t i = 0; code == 0 && i < args.actions.n; i++)
        code = act(disk, source ? source : disk, argv[1],
                   &args.actions.uses[i], (uint32_t)granularity);
    img_close(source, NULL);
    return close_image(disk) ? code : 1;
}

const struct command command_bitmap = {
    "bitmap", "FILE BITMAP", "Change an image's persistent bitmaps", options,
    run, false
};
