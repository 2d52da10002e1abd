/* Which of the files that an image names may be opened.
 *
 * The one place that decides.  Where a folder is the limit, symbolic links
 * are looked through first and what they lead to is opened, so that the name
 * that was judged is the name that is used.
 */
#include "core/policy.h"
#include "core/path.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "file/nbd.h"

#include <stdlib.h>
#include <string.h>

int img_policy_check(unsigned allow_files, const char *allow_dir,
                     struct img_error *err)
{
    if (allow_files > IMG_FILES_ANY)
        return img_fail(err, EINVAL, "unknown policy %u for the files that "
                        "an image names", allow_files);
    if (allow_files == IMG_FILES_UNDER && (!allow_dir || !*allow_dir))
        return img_fail(err, EINVAL, "no folder is given that files may be "
                        "opened in");
    return 0;
}

static bool is_inside(const char *folder, const char *path)
{
    size_t n = strlen(folder);

    if (!strcmp(folder, "/"))
        return true;
    return !strncmp(path, folder, n) && path[n] == '/';
}

static int ask_folder(const char *folder, const char *referrer,
                      const char *name, const char *path, char **real,
                      struct img_error *err)
{
    img_autofree char *limit = realpath(folder, NULL);
    img_autofree char *found = NULL;

    if (!limit)
        return img_fail_errno(err, errno, "Could not open '%s'", folder);
    found = realpath(path, NULL);
    if (!found)
        return img_fail_errno(err, errno, "Could not open '%s'", path);
    if (!is_inside(limit, found))
        return img_fail(err, EACCES, "%s: it names '%s', which is not in the "
                        "folder '%s'", referrer, name, limit);
    *real = found;
    found = NULL;
    return 0;
}

int img_policy_ask(const struct img_open_options *opts, const char *referrer,
                   const char *name, const char *path, char **real,
                   struct img_error *err)
{
    bool local = !img_path_has_protocol(name) || !strncmp(name, "file:", 5);
    img_autofree char *beside = NULL;

    *real = NULL;
    switch (opts->allow_files) {
    case IMG_FILES_NONE:
        return img_fail(err, EACCES, "%s: it names '%s', and no other file "
                        "may be opened", referrer, name);
    case IMG_FILES_ANY:
        if (local || img_nbd_is_uri(name))
            return 0;
        break;
    case IMG_FILES_LOCAL:
        if (local)
            return 0;
        break;
    default:
        if (!local)
            break;
        if (opts->allow_files == IMG_FILES_UNDER)
            return ask_folder(opts->allow_dir, referrer, name, path, real,
                              err);
        beside = img_path_beside(referrer, ".");
        return beside ? ask_folder(beside, referrer, name, path, real, err)
                      : img_fail_nomem(err);
    }
    return img_fail(err, ENOTSUP, "%s: it names '%s'; only files are "
                    "opened, no other protocols", referrer, name);
}

int img_policy_ask_new(const struct img_open_options *opts,
                       const char *referrer, const char *name,
                       const char *path, struct img_error *err)
{
    const char *slash = strrchr(path, '/');
    img_autofree char *folder = slash
        ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    img_autofree char *beside = img_path_beside(referrer, ".");
    img_autofree char *limit = NULL;
    img_autofree char *found = NULL;

    if (!folder || !beside)
        return img_fail_nomem(err);
    if (opts->allow_files == IMG_FILES_ANY ||
        opts->allow_files == IMG_FILES_LOCAL)
        return 0;
    if (opts->allow_files == IMG_FILES_NONE)
        return img_fail(err, EACCES, "%s: no other file may be made",
                        referrer);
    limit = realpath(opts->allow_files == IMG_FILES_UNDER ? opts->allow_dir
                                                          : beside, NULL);
    found = realpath(folder, NULL);
    if (!limit || !found)
        return img_fail_errno(err, errno, "Could not open '%s'", folder);
    if (strcmp(limit, found) && !is_inside(limit, found))
        return img_fail(err, EACCES, "%s: '%s' would not be in the folder "
                        "'%s'", referrer, name, limit);
    return 0;
}
