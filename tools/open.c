/* How commands open images, see open.h. */
#include "open.h"
#include "location.h"
#include "server.h"
#include "vimg.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool open_cache_flags(const char *mode, const char *what, unsigned *flags)
{
    static const struct { const char *name; unsigned flags; } modes[] = {
        { "none", IMG_OPEN_DIRECT }, { "off", IMG_OPEN_DIRECT },
        { "writeback", 0 }, { "writethrough", IMG_OPEN_WRITETHROUGH },
        { "directsync", IMG_OPEN_DIRECT | IMG_OPEN_WRITETHROUGH },
        { "unsafe", IMG_OPEN_NO_SYNC },
    };

    if (!mode)
        return true;
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        if (strcmp(modes[i].name, mode))
            continue;
        *flags |= modes[i].flags;
        return true;
    }
    complain("Invalid %s: %s", what, mode);
    return false;
}

struct open_confine open_confine;

unsigned open_files_policy(const char **dir)
{
    static const struct { const char *name; unsigned policy; } words[] = {
        { "local", IMG_FILES_LOCAL }, { "none", IMG_FILES_NONE },
        { "same-dir", IMG_FILES_BESIDE }, { "any", IMG_FILES_ANY },
    };

    *dir = NULL;
    if (!open_confine.files)
        return IMG_FILES_LOCAL;
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (!strcmp(open_confine.files, words[i].name))
            return words[i].policy;
    *dir = open_confine.files;
    return IMG_FILES_UNDER;
}

struct object { bool secret, id; };

static int object_part(void *opaque, char *key, char *value)
{
    struct object *object = opaque;

    if (!value || !strcmp(key, "qom-type"))
        object->secret |= !strcmp(value ? value : key, "secret");
    else
        object->id |= !strcmp(key, "id");
    return 0;
}

static bool check_object(const char *text)
{
    struct object object = { 0 };

    if (options_split(text, object_part, &object) < 0) {
        complain("Invalid object definition: %s", text);
        return false;
    }
    if (!object.secret)
        return server_add_object(text);
    if (!object.id)
        complain("Parameter 'id' is missing");
    return object.id;
}

bool open_check(const struct open_how *how)
{
    if (how->image_opts && how->format) {
        complain("--image-opts and --format are mutually exclusive");
        return false;
    }
    for (size_t i = 0; i < how->objects.n; i++)
        if (!check_object(how->objects.uses[i].text))
            return false;
    return true;
}

/* ---- internal snapshots ------------------------------------------------ */

struct snapshot_name { char *id, *name; };

static int snapshot_part(void *opaque, char *key, char *value)
{
    struct snapshot_name *want = opaque;
    char **to = !strcmp(key, "snapshot.id") ? &want->id :
                !strcmp(key, "snapshot.name") ? &want->name : NULL;

    if (!to || !value) {
        complain("Invalid parameter '%s'", key);
        return 1;
    }
    free(*to);
    *to = need_memory(strdup(value));
    return 0;
}

/* The ID of the snapshot that has the wanted id, name, or both. */
static char *find_snapshot(const char *path, struct img_open_options opts,
                           const struct snapshot_name *want)
{
    struct img_info *info = NULL;
    struct img_disk *disk = NULL;
    struct img_error err;
    char *found = NULL;
    int r;

    opts.snapshot = NULL;
    opts.flags |= IMG_OPEN_NO_BACKING;
    r = img_open(path, &opts, &disk, &err);
    if (r == 0)
        r = img_info_get(disk, &info, &err);
    if (r < 0)
        complain("Could not open '%s': %s", path, err.message);
    for (size_t i = 0; r == 0 && !found && i < info->n_snapshots; i++) {
        const struct img_snapshot_info *s = &info->snapshots[i];

        if ((!want->id || !strcmp(want->id, s->id)) &&
            (!want->name || !strcmp(want->name, s->name)))
            found = need_memory(strdup(s->id));
    }
    if (r == 0 && !found)
        complain("Failed to load snapshot: Can't find snapshot");
    img_info_free(info);
    img_close(disk, NULL);
    return found;
}

/* "snapshot.id=1,snapshot.name=x" becomes an ID; anything else is an ID or a
 * name already.  *owned is to be freed. */
static bool resolve_snapshot(const char *path, const char *text,
                             struct img_open_options *opts, char **owned)
{
    struct snapshot_name want = { 0 };

    *owned = NULL;
    if (strncmp(text, "snapshot.", 9)) {
        opts->snapshot = text;
        return true;
    }
    if (options_split(text, snapshot_part, &want) == 0)
        *owned = find_snapshot(path, *opts, &want);
    else
        complain("Failed in parsing snapshot param '%s'", text);
    free(want.id);
    free(want.name);
    opts->snapshot = *owned;
    return *owned;
}

/* ---- opening ----------------------------------------------------------- */

static void warn_probed_raw(const char *name)
{
    fflush(stdout);
    fprintf(stderr,
            "WARNING: Image format was not specified for '%s' and probing "
            "guessed raw.\n"
            "         Automatically detecting the format is dangerous for raw "
            "images, write operations on block 0 will be restricted.\n"
            "         Specify the 'raw' format explicitly to remove the "
            "restrictions.\n", name);
}

/* What the command line adds to what the name itself asks for. */
static bool add_how(struct img_open_options *opts, const struct open_how *how,
                    unsigned flags)
{
    opts->flags |= flags | IMG_OPEN_PROBE_BACKING;
    opts->allow_files = open_files_policy(&opts->allow_dir);
    opts->warn = how->hush ? NULL : warn_line;
    if (how->share)
        opts->flags |= IMG_OPEN_NO_LOCK;
    if (how->discard) {
        if (!strcmp(how->discard, "unmap") || !strcmp(how->discard, "on")) {
            opts->flags |= IMG_OPEN_UNMAP;
        } else if (strcmp(how->discard, "ignore") &&
                   strcmp(how->discard, "off")) {
            complain("Invalid discard option: %s", how->discard);
            return false;
        }
    }
    if (!open_cache_flags(how->cache, "cache option", &opts->flags))
        return false;
    if (how->backing) {
        opts->backing = how->backing;
        opts->backing_format = how->backing_format;
    }
    if (how->format)
        opts->format = how->format;
    if (!opts->format)
        opts->flags |= IMG_OPEN_PROBE;
    return true;
}

/* ---- the sandbox ------------------------------------------------------- */

/* Complaints about the name come when it is opened. */
static bool locate(const char *name, const struct open_how *how,
                   unsigned flags, struct location *loc)
{
    bool ok;

    complain_not(true);
    ok = location_parse(name, how->image_opts, loc) &&
         add_how(&loc->opts, how, flags);
    complain_not(false);
    return ok;
}

void open_expect(const char *name, const struct open_how *how, unsigned flags,
                 unsigned confine)
{
    struct location loc;

    if (flags & IMG_OPEN_WRITE)
        confine |= CONFINE_WRITE;
    if (locate(name, how, flags, &loc))
        confine_image(loc.path, &loc.opts, confine);
    location_free(&loc);
}

void open_expect_below(const char *name, const struct open_how *how,
                       const char *backing, const char *format)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct location loc;

    opts.format = format;
    opts.allow_files = open_files_policy(&opts.allow_dir);
    if (locate(name, how, 0, &loc))
        confine_below(loc.path, backing, &opts);
    location_free(&loc);
}

void open_expect_output(const char *path, const char *const *settings)
{
    const char *slash = strrchr(path, '/');

    path = open_plain_path(path);
    confine_output(path);
    for (; settings && *settings; settings++) {
        const char *data = *settings + 10;
        char *beside;

        if (strncmp(*settings, "data_file=", 10))
            continue;
        beside = format_text("%.*s%s", *data == '/' || !slash ? 0 :
                             (int)(slash - path) + 1, path, data);
        confine_output(beside);
        free(beside);
    }
}

void open_enter(void)
{
    if (open_confine.no_sandbox)
        confine_off("--no-sandbox");
    confine_enter();
    if (confine_short_of())
        warn_line(NULL, confine_short_of());
}

/* ---- opening ----------------------------------------------------------- */

struct img_disk *open_image(const char *name, const struct open_how *how,
                            unsigned flags)
{
    struct img_disk *disk = NULL;
    struct img_error err;
    struct location loc;
    char *owned = NULL;

    if (!location_parse(name, how->image_opts, &loc) ||
        !add_how(&loc.opts, how, flags))
        goto out;
    if (loc.opts.format && !img_format_by_name(loc.opts.format)) {
        complain("Could not open '%s': Unknown driver '%s'", name,
                 loc.opts.format);
        goto out;
    }
    if (loc.read_only && (flags & IMG_OPEN_WRITE)) {
        complain("Could not open '%s': read-only=on, and this command "
                 "writes", name);
        goto out;
    }
    if (how->share && (flags & IMG_OPEN_WRITE)) {
        complain("Could not open '%s': force-share=on can only be used with "
                 "read-only images", name);
        goto out;
    }
    if (how->snapshot && !resolve_snapshot(loc.path, how->snapshot, &loc.opts,
                                           &owned))
        goto out;
    if (img_open(loc.path, &loc.opts, &disk, &err) < 0) {
        if (how->failing)
            complain("%s %s: %s", how->failing, name, err.message);
        else
            complain("Could not open '%s': %s", name, err.message);
        disk = NULL;
    } else if (!loc.opts.format && (flags & IMG_OPEN_WRITE) &&
               !strcmp(img_format_name(disk), "raw")) {
        warn_probed_raw(name);
    }
out:
    free(owned);
    location_free(&loc);
    return disk;
}

bool open_warn_of_base(const char *name, const struct open_how *how)
{
    struct img_disk *disk = NULL;
    struct location loc;
    struct stat st;
    bool ok = location_parse(name, how->image_opts, &loc) &&
              add_how(&loc.opts, how, IMG_OPEN_NO_LOCK | IMG_OPEN_REPAIR);

    /* A server may end with its first client. */
    if (ok && stat(loc.path, &st) == 0 &&
        img_open(loc.path, &loc.opts, &disk, NULL) == 0)
        img_close(disk, NULL);
    location_free(&loc);
    return ok;
}

bool close_image(struct img_disk *disk)
{
    struct img_error err;

    if (img_close(disk, &err) == 0)
        return true;
    complain("%s", err.message);
    return false;
}

const char *open_plain_path(const char *name)
{
    return strncmp(name, "file:", 5) ? name : name + 5;
}

bool open_same_file(const char *a, const char *b)
{
    struct stat x, y;

    if (!strncmp(a, "nbd", 3) && !strcmp(a, b))
        return true;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev &&
           x.st_ino == y.st_ino;
}

bool open_uses_file(struct img_disk *disk, const char *path)
{
    const char *name;

    for (unsigned depth = 0; img_file_name(disk, depth, 0); depth++)
        for (unsigned file = 0; (name = img_file_name(disk, depth, file));
             file++)
            if (open_same_file(name, path))
                return true;
    return false;
}

/* ---- standard input ---------------------------------------------------- */

static bool all_zero(const char *buf, size_t len)
{
    return len == 0 || (buf[0] == 0 && !memcmp(buf, buf + 1, len - 1));
}

/* Holes for blocks of zeros.  0 or -errno. */
static int spool(int from, int to)
{
    static char buf[65536];
    uint64_t at = 0;
    ssize_t n;

    while ((n = read(from, buf, sizeof buf)) != 0) {
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        for (ssize_t done = 0; done < n && !all_zero(buf, (size_t)n);) {
            ssize_t w = pwrite(to, buf + done, (size_t)(n - done),
                               (off_t)at + done);

            if (w < 0 && errno != EINTR)
                return -errno;
            done += w > 0 ? w : 0;
        }
        at += (uint64_t)n;
    }
    return ftruncate(to, (off_t)((at + 511) & ~UINT64_C(511))) < 0 ? -errno
                                                                   : 0;
}

struct img_disk *open_stdin(void)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_disk *disk = NULL;
    struct img_error err;
    char *path = format_text("%s/vimg.XXXXXX", confine_scratch());
    int fd = mkstemp(path), r;

    if (fd < 0) {
        complain("%s: %s", path, strerror(errno));
        free(path);
        return NULL;
    }
    unlink(path);
    free(path);
    r = spool(STDIN_FILENO, fd);
    if (r < 0) {
        complain("standard input: %s", strerror(-r));
        close(fd);
        return NULL;
    }
    opts.format = "raw";
    if (img_open_fd(fd, &opts, &disk, &err) < 0) {
        complain("standard input: %s", err.message);
        return NULL;
    }
    return disk;
}
