/* vimg io: open, close, reopen. */
#include "io.h"
#include "vimg.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *absolute(const char *path)
{
    char *full = realpath(path, NULL);

    return full ? full : need_memory(strdup(path));
}

/* A throw-away overlay, so that the image itself stays as it is. */
static char *make_scratch(const char *backing, const char *format)
{
    struct img_create_options opts = IMG_CREATE_OPTIONS;
    char *path = format_text("%s/vimg.XXXXXX", confine_scratch());
    struct img_error err;
    int fd = mkstemp(path);

    opts.format = "qcow2";
    opts.backing = backing;
    opts.backing_format = format;
    opts.allow_files = open_files_policy(&opts.allow_dir);
    opts.flags = IMG_CREATE_NO_SYNC;
    if (fd < 0)
        complain("%s: %s", path, strerror(errno));
    if (fd < 0 || img_create(path, &opts, &err) < 0) {
        if (fd >= 0) {
            complain("%s", err.message);
            unlink(path);
        }
        free(path);
        path = NULL;
    }
    if (fd >= 0)
        close(fd);
    return path;
}

static int open_scratch(struct io *io)
{
    char *backing = absolute(img_path(io->disk));
    struct open_how how = {
        .format = "qcow2", .cache = "unsafe", .backing = backing,
        .backing_format = img_format_name(io->disk)
    };

    io->scratch = make_scratch(backing, how.backing_format);
    img_close(io->disk, NULL);
    io->disk = io->scratch ? open_image(io->scratch, &how, IMG_OPEN_WRITE)
                           : NULL;
    free(backing);
    return io->disk ? 0 : -1;
}

int io_open_named(struct io *io, const char *name, bool scratch)
{
    if (io->disk) {
        complain("file open already, try 'help close'");
        return -1;
    }
    if (io->how.cache != io->cache) {
        free(io->cache);
        io->cache = io->how.cache ? need_memory(strdup(io->how.cache)) : NULL;
        io->how.cache = io->cache;
    }
    io->how.failing = "can't open device";
    /* Truncating asks as little as writing whether others rest on it. */
    io->disk = open_image(name, &io->how,
                          io->read_only || scratch ? 0 : IMG_OPEN_WRITE |
                          IMG_OPEN_FORCE);
    if (!io->disk)
        return -1;
    if (name != io->name) {
        free(io->name);
        io->name = need_memory(strdup(name));
    }
    if (!scratch)
        return 0;
    io->read_only = false;
    return open_scratch(io);
}

int io_close(struct io *io, int argc, char **argv)
{
    int r;

    io_aio_close(io);
    r = io->disk && !close_image(io->disk) ? -1 : 0;
    io->disk = NULL;
    if (io->scratch)
        unlink(io->scratch);
    free(io->scratch);
    io->scratch = NULL;
    return r;
}

int io_open(struct io *io, int argc, char **argv)
{
    struct open_how how = { .share = false };
    const char *list = NULL;
    bool scratch = false, read_only = false, copy = false;
    char *made = NULL;
    int c, r;

    while ((c = getopt(argc, argv, "snCro:ki:t:d:U")) != -1) {
        scratch |= c == 's';
        read_only |= c == 'r';
        copy |= c == 'C';
        how.share |= c == 'U';
        if (c == 'n')
            how.cache = "none";
        else if (c == 't')
            how.cache = optarg;
        else if (c == 'd')
            how.discard = !strcmp(optarg, "unmap") ? "unmap"
                          : !strcmp(optarg, "on") ? "on"
                          : !strcmp(optarg, "off") ? "off"
                          : !strcmp(optarg, "ignore") ? "ignore"
                          : "(neither ignore nor unmap)";
        else if (c == 'o')
            list = optarg;
        else if (c == '?') {
            io_usage(io_find("open"));
            return -1;
        }
    }
    if (optind < argc - 1 || (optind == argc && !list)) {
        io_usage(io_find("open"));
        return -1;
    }
    if (io->disk) {
        complain("file open already, try 'help close'");
        return -1;
    }
    if (list) {
        how.image_opts = true;
        made = optind < argc ? format_text("%s,file.filename=%s", list,
                                           argv[optind])
                             : need_memory(strdup(list));
    }
    io->how = how;
    io->read_only = read_only;
    io->copy_on_read = copy;
    r = io_open_named(io, made ? made : argv[optind], scratch);
    free(made);
    return r;
}

/* ---- reopen ------------------------------------------------------------ */

struct change {
    bool r, w;
    const char *cache;          /* -c */
    char *list;                 /* -o without read-only; NULL = nothing */
    bool has_read_only, read_only, has_cache, has_discard, has_share;
};

static int add_option(void *opaque, char *key, char *value)
{
    struct change *ch = opaque;
    char *longer;

    if (!strcmp(key, "read-only")) {
        if (value && strcmp(value, "on") && strcmp(value, "off")) {
            complain("Parameter 'read-only' expects 'on' or 'off'");
            return 1;
        }
        ch->has_read_only = true;
        ch->read_only = !value || !strcmp(value, "on");
        return 0;
    }
    ch->has_cache |= !strncmp(key, "cache.", 6);
    ch->has_discard |= !strcmp(key, "discard");
    ch->has_share |= !strcmp(key, "force-share");
    longer = format_text("%s,%s=%s", ch->list ? ch->list : "", key,
                         value ? value : "on");
    free(ch->list);
    ch->list = longer;
    return 0;
}

static bool parse_change(struct change *ch, int argc, char **argv)
{
    unsigned unused = 0;
    int c;

    while ((c = getopt(argc, argv, "c:o:rw")) != -1) {
        ch->r |= c == 'r';
        ch->w |= c == 'w';
        if (c == 'c') {
            if (!open_cache_flags(optarg, "cache option", &unused))
                return false;
            ch->cache = optarg;
        } else if (c == 'o' && options_split(optarg, add_option, ch)) {
            return false;
        } else if (c == '?') {
            io_usage(io_find("reopen"));
            return false;
        }
    }
    if (ch->r && ch->w)
        complain("Only one -r/-w option may be given");
    else if ((ch->r || ch->w) && ch->has_read_only)
        complain("Cannot set both -r/-w and 'read-only'");
    else if (ch->cache && ch->has_cache)
        complain("Cannot set both -c and the cache options");
    else
        return true;
    return false;
}

/* The image's name with further options; what comes last counts. */
static char *name_with(const struct io *io, const char *list)
{
    char *doubled, *made;
    const char *in = io->name;

    if (io->how.image_opts)
        return format_text("%s%s", io->name, list);
    if (!strncmp(io->name, "json:", 5)) {
        complain("an image that was opened as json: takes no options here");
        return NULL;
    }
    doubled = need_memory(calloc(2, strlen(in) + 1));
    for (char *out = doubled; *in; in++) {
        *out++ = *in;
        if (*in == ',')
            *out++ = ',';
    }
    made = format_text("driver=%s,file.filename=%s%s",
                       img_format_name(io->disk), doubled, list);
    free(doubled);
    return made;
}

/* Closes the image and opens it as how says; as it was, if that fails. */
static int open_anew(struct io *io, const struct open_how *how, bool read_only,
                     const char *name)
{
    struct open_how had = io->how;
    bool had_read_only = io->read_only;
    char *cache = io->cache ? need_memory(strdup(io->cache)) : NULL;
    int r;

    io_aio_close(io);
    r = close_image(io->disk) ? 0 : -1;
    io->disk = NULL;
    if (r == 0) {
        io->how = *how;
        io->read_only = read_only;
        r = io_open_named(io, name, false);
        if (r < 0) {
            had.cache = cache;
            io->how = had;
            io->read_only = had_read_only;
            io_open_named(io, io->name, false);
        }
    }
    free(cache);
    return r;
}

/* The image is closed and opened again, since the library has no way to
 * change how an open one is used. */
int io_reopen(struct io *io, int argc, char **argv)
{
    struct change ch = { .r = false };
    struct open_how how = io->how;
    bool read_only = io->read_only;
    char *made = NULL;
    int r = -1;

    if (parse_change(&ch, argc, argv)) {
        if (ch.r || ch.w)
            read_only = ch.r;
        if (ch.has_read_only)
            read_only = ch.read_only;
        if (ch.cache)
            how.cache = ch.cache;
        if (ch.has_discard)
            how.discard = NULL; /* the list says it anew */
        if (ch.has_share)
            how.share = false;
        if (io->scratch) {
            io->read_only = read_only;
            r = 0;
        } else if (!ch.list) {
            r = open_anew(io, &how, read_only, io->name);
        } else if ((made = name_with(io, ch.list))) {
            how.image_opts = true;
            how.format = NULL;
            r = open_anew(io, &how, read_only, made);
        }
    }
    free(made);
    free(ch.list);
    return r;
}
