/* vimg snapshot: lists, makes, applies and deletes internal snapshots. */
#include "open.h"
#include "show.h"
#include "vimg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct {
    struct open_how how;
    struct option_list actions;
    bool quiet, force;
} args;

static const struct option_def options[] = {
    OPEN_FORMAT_ROW(&args.how),
    { OPTION_LIST, 'l', "list", NULL, "list the snapshots (the default)",
      &args.actions },
    { OPTION_LIST, 'c', "create", "NAME", "make a snapshot", &args.actions },
    { OPTION_LIST, 'a', "apply", "SNAPSHOT",
      "make the disk what it was, by ID or name", &args.actions },
    { OPTION_LIST, 'd', "delete", "NAME",
      "delete a snapshot, by name", &args.actions },
    { OPTION_FLAG, 0, "force", NULL,
      "apply even though overlays rest on FILE, and spoil them", &args.force },
    { OPTION_FLAG, 'q', "quiet", NULL, "print nothing but errors",
      &args.quiet },
    OPEN_SHARE_ROW(&args.how),
    OPEN_IMAGE_OPTS_ROW(&args.how),
    OPTIONS_OBJECT_ROW(&args.how.objects),
    OPEN_CONFINE_ROWS,
    OPTIONS_HELP_ROW,
    { 0 }
};

static int list(struct img_disk *disk)
{
    struct img_info *info = NULL;
    struct img_error err;
    int r = img_info_get(disk, &info, &err);

    if (r < 0)
        complain("%s", err.message);
    else
        show_snapshots(info);
    img_info_free(info);
    return r < 0 ? 1 : 0;
}

/* qemu-img deletes by name only, also where that name is another snapshot's
 * ID; img_snapshot_delete would take the ID.  NULL: the user was told. */
static char *id_of(struct img_disk *disk, const char *name)
{
    struct img_info *info = NULL;
    struct img_error err;
    char *id = NULL;

    if (img_info_get(disk, &info, &err) < 0) {
        complain("%s", err.message);
        return NULL;
    }
    for (size_t i = 0; !id && i < info->n_snapshots; i++)
        if (!strcmp(info->snapshots[i].name, name))
            id = need_memory(strdup(info->snapshots[i].id));
    if (!id)
        complain("Could not delete snapshot '%s': snapshot not found", name);
    img_info_free(info);
    return id;
}

static int act(struct img_disk *disk, const struct option_use *action)
{
    struct img_error err;
    char *id;
    int r;

    if (!strcmp(action->name, "list"))
        return list(disk);
    if (!strcmp(action->name, "create")) {
        r = img_snapshot_create(disk, action->text, &err);
    } else if (!strcmp(action->name, "apply")) {
        r = img_snapshot_apply(disk, action->text, &err);
    } else if ((id = id_of(disk, action->text))) {
        r = img_snapshot_delete(disk, id, &err);
        free(id);
    } else {
        return 1;
    }
    if (r < 0)
        complain("Could not %s snapshot '%s': %s", action->name, action->text,
                 err.message);
    return r < 0 ? 1 : 0;
}

static int run(int argc, char **argv)
{
    struct option_use action = { "list", "list" };
    struct img_disk *disk;
    unsigned flags = IMG_OPEN_NO_BACKING;
    int code;

    if (args.actions.n > 1)
        return usage_error("Cannot mix '-l', '-a', '-c', '-d'");
    if (argc != 1)
        return usage_error("Expecting one image file name");
    if (!open_check(&args.how))
        return 1;
    if (args.actions.n)
        action = args.actions.uses[0];
    if (strcmp(action.name, "list"))
        flags |= IMG_OPEN_WRITE | (args.force ? IMG_OPEN_FORCE : 0);
    open_expect(argv[0], &args.how, flags, CONFINE_FOLDERS);
    open_enter();
    disk = open_image(argv[0], &args.how, flags);
    if (!disk)
        return 1;
    code = act(disk, &action);
    return close_image(disk) ? code : 1;
}

const struct command command_snapshot = {
    "snapshot", "FILE", "List, make, apply and delete internal snapshots",
    options, run, false
};
