/* Which files a command needs: see confine.h. */
#include "confine.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_NAMES = 4 * IMG_CHAIN_MAX };     /* from one scout */

struct image {
    char *path, *format, *backing, *backing_format, *allow_dir;
    struct img_open_options opts;
    unsigned how;
};

static struct {
    struct sandbox_rule *rules;
    size_t n_rules;
    struct image *images;
    size_t n_images;
    unsigned flags;
    const char *off;
    char short_of[320];
    bool failed, entered;
    struct sandbox_state state;
} c;

/* Without memory there is no sandbox to be had; entering says so. */
static void *grow(void *list, size_t n, size_t size)
{
    void *more = realloc(list, (n + 1) * size);

    c.failed |= !more;
    return more;
}

static char *copy(const char *text)
{
    char *made = text ? strdup(text) : NULL;

    c.failed |= text && !made;
    return made;
}

void confine_off(const char *why)
{
    c.off = why;
}

void confine_path(const char *path, unsigned rights)
{
    struct sandbox_rule *more = grow(c.rules, c.n_rules, sizeof *more);

    if (!more)
        return;
    c.rules = more;
    more[c.n_rules].path = copy(path);
    more[c.n_rules].rights = rights;
    if (more[c.n_rules].path)
        c.n_rules++;
}

static void folder_of(const char *path, unsigned rights)
{
    const char *slash = strrchr(path, '/');
    char folder[PATH_MAX];

    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) + 1 : 1,
             slash ? path : ".");
    confine_path(folder, rights);
}

/* Where the name is, and where the file is that it leads to. */
static void folders_of(const char *path)
{
    char real[PATH_MAX];

    folder_of(path, SANDBOX_READ | SANDBOX_LIST);
    if (realpath(path, real))
        folder_of(real, SANDBOX_READ | SANDBOX_LIST);
}

static bool is_url(const char *path)
{
    return !strncasecmp(path, "nbd:", 4) || !strncasecmp(path, "nbds:", 5) ||
           !strncasecmp(path, "nbd+", 4) || !strncasecmp(path, "nbds+", 5);
}

void confine_output(const char *path)
{
    const unsigned all = SANDBOX_READ | SANDBOX_WRITE | SANDBOX_LIST |
                         SANDBOX_MAKE;
    char real[PATH_MAX], link[PATH_MAX];
    struct stat st;
    ssize_t n;

    if (is_url(path)) {
        confine_network();
        return;
    }
    if (realpath(path, real)) {
        confine_path(real, SANDBOX_READ | SANDBOX_WRITE);
        if (stat(real, &st) == 0 && !S_ISREG(st.st_mode))
            return;             /* a device is written in place */
        folder_of(real, all);
        return;
    }
    /* A link to what is not there yet: it is made there. */
    n = readlink(path, link, sizeof link - 1);
    if (n > 0) {
        const char *slash = strrchr(path, '/');

        link[n] = 0;
        if (snprintf(real, sizeof real, "%.*s%s", link[0] == '/' || !slash ? 0
                     : (int)(slash - path) + 1, path, link) <
            (int)sizeof real)
            folder_of(real, all);
    }
    folder_of(path, all);
}

void confine_image(const char *path, const struct img_open_options *opts,
                   unsigned how)
{
    struct image *more, *i;

    if (is_url(path))
        confine_network();
    more = grow(c.images, c.n_images, sizeof *more);
    if (!more)
        return;
    c.images = more;
    i = &more[c.n_images++];
    *i = (struct image){
        .path = copy(path), .format = copy(opts->format),
        .backing = copy(opts->backing),
        .backing_format = copy(opts->backing_format),
        .allow_dir = copy(opts->allow_dir), .opts = *opts, .how = how
    };
    if (opts->backing && is_url(opts->backing))
        confine_network();
    if (opts->allow_files == IMG_FILES_ANY &&
        !(opts->flags & IMG_OPEN_NO_BACKING))
        confine_network();
}

void confine_below(const char *beside, const char *name,
                   const struct img_open_options *opts)
{
    const char *slash = strrchr(beside, '/');
    char path[PATH_MAX];

    if (!strncmp(name, "file:", 5))
        name += 5;
    if (is_url(name) || *name == '/' || !slash)
        confine_image(name, opts, 0);
    else if (snprintf(path, sizeof path, "%.*s/%s", (int)(slash - beside),
                      beside, name) < (int)sizeof path)
        confine_image(path, opts, 0);
}

const char *confine_scratch(void)
{
    const char *folder = getenv("TMPDIR");

    return folder && *folder ? folder : "/var/tmp";
}

void confine_temporary(void)
{
    confine_path(confine_scratch(), SANDBOX_READ | SANDBOX_WRITE |
                 SANDBOX_LIST | SANDBOX_MAKE);
}

void confine_sockets(unsigned flags)
{
    c.flags |= flags;
}

void confine_network(void)
{
    if (c.flags & SANDBOX_CONNECT)
        return;
    confine_sockets(SANDBOX_SOCKETS | SANDBOX_CONNECT);
    /* The resolver's and TLS's settings, modules and certificates. */
    confine_path("/", SANDBOX_READ | SANDBOX_LIST);
}

/* ---- the scout --------------------------------------------------------- */

/* One record for each file: how deep it is found, then its path. */
static void tell(FILE *to, unsigned depth, const char *path)
{
    fputc(depth ? '1' : '0', to);
    fwrite(path, 1, strlen(path) + 1, to);
}

/* Tells the files of one layer.  The name of what is below it, malloc'ed. */
static char *look_at(FILE *to, unsigned depth, const char *path,
                     const struct img_open_options *opts, char **format)
{
    struct img_disk *disk = NULL;
    struct img_info *info = NULL;
    const char *name;
    char *below = NULL;

    if (img_open(path, opts, &disk, NULL) < 0)
        return NULL;
    for (unsigned i = 1; (name = img_file_name(disk, 0, i)); i++)
        tell(to, depth, name);
    if (img_info_get(disk, &info, NULL) == 0 && info->backing_path) {
        below = strdup(info->backing_path);
        *format = info->backing_format ? strdup(info->backing_format) : NULL;
    }
    /* A VMDK of several files: they come and go with its size, and its
     * descriptor is replaced. */
    if (info && !strcmp(info->format, "vmdk") && img_file_name(disk, 0, 1)) {
        fputc(depth ? 'S' : 's', to);
        fwrite(path, 1, strlen(path) + 1, to);
    }
    /* VDI: the parent is searched for, among the files beside it. */
    if (below && !strcmp(info->format, "vdi")) {
        name = strrchr(path, '/');
        fputc('f', to);
        fwrite(path, 1, name ? (size_t)(name - path) + 1 : 0, to);
        fputs(".", to);
        fputc(0, to);
    }
    img_info_free(info);
    img_close(disk, NULL);
    return below;
}

static void scout_image(FILE *to, const struct image *image)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    char *path = strdup(image->path), *format = NULL;

    opts.format = image->format;
    opts.allow_files = image->opts.allow_files;
    opts.allow_dir = image->allow_dir;
    opts.flags = IMG_OPEN_NO_BACKING | IMG_OPEN_NO_LOCK | IMG_OPEN_NO_SYNC |
                 IMG_OPEN_REPAIR |
                 (image->opts.flags & IMG_OPEN_FREE_NAMES);
    if (image->opts.flags & IMG_OPEN_NO_BACKING)
        opts.flags |= image->opts.flags & IMG_OPEN_DESCRIBE;
    /* One layer too many is told, so that the library can say what is wrong. */
    for (unsigned depth = 0; path && depth <= IMG_CHAIN_MAX; depth++) {
        char *below, *below_format = NULL;

        if (depth)
            tell(to, depth, path);
        if (is_url(path))
            break;
        if (!opts.format)
            opts.flags |= IMG_OPEN_PROBE;
        below = look_at(to, depth, path, &opts, &below_format);
        if (image->opts.flags & IMG_OPEN_NO_BACKING) {
            free(below);
            below = NULL;
        } else if (depth == 0 && image->backing) {
            free(below);
            below = *image->backing ? strdup(image->backing) : NULL;
            free(below_format);
            below_format = image->backing_format ?
                strdup(image->backing_format) : NULL;
        }
        free(path);
        free(format);
        path = below;
        format = below_format;
        opts.format = format;
        if (format && !img_format_by_name(format))
            opts.format = NULL;
    }
    free(path);
    free(format);
}

static void scout(const struct image *image, int fd)
{
    struct sandbox_rule everything = { "/", SANDBOX_READ | SANDBOX_LIST };
    FILE *to = fdopen(fd, "w");

    sandbox_enter(&everything, 1, 0);
    if (to) {
        scout_image(to, image);
        fflush(to);
    }
    _exit(0);
}

static bool is_inside(const char *folder, const char *path)
{
    char limit[PATH_MAX], real[PATH_MAX];
    size_t n;

    if (!realpath(folder, limit) || !realpath(path, real))
        return false;
    n = strlen(limit);
    return !strcmp(limit, "/") || (!strncmp(real, limit, n) && real[n] == '/');
}

/* Would the policy let the image have this file?  Looser than the library,
 * which looks at each name by itself. */
static bool permitted(const struct image *image, const char *path)
{
    const char *from = image->backing && *image->backing ? image->backing
                                                         : image->path;
    const char *slash;
    char folder[PATH_MAX];

    switch (image->opts.allow_files) {
    case IMG_FILES_UNDER:
        if (is_inside(image->allow_dir, path))
            return true;
        break;
    case IMG_FILES_BESIDE:
        slash = strrchr(from, '/');
        snprintf(folder, sizeof folder, "%.*s", slash ?
                 (int)(slash - from) + 1 : 1, slash ? from : ".");
        if (is_inside(folder, path))
            return true;
        break;
    case IMG_FILES_NONE:
        break;
    default:
        return true;
    }
    return image->backing && !strcmp(path, image->backing);
}

/* The folder of an image that is split into files: where its name is, and
 * where that leads to. */
static void take_split(const struct image *image, bool top, const char *path)
{
    const unsigned all = SANDBOX_READ | SANDBOX_WRITE | SANDBOX_LIST |
                         SANDBOX_MAKE;
    char real[PATH_MAX];

    if (!(image->how & CONFINE_SPLIT) ||
        !(image->how & (top ? CONFINE_WRITE | CONFINE_WRITE_ALL
                            : CONFINE_WRITE_ALL)))
        return;
    if (top)
        path = image->path;
    else if (!permitted(image, path))
        return;
    folder_of(path, all);
    if (realpath(path, real))
        folder_of(real, all);
}

static void take_names(const struct image *image, FILE *from)
{
    char *line = NULL;
    size_t room = 0;
    int n = 0;

    while (getdelim(&line, &room, 0, from) > 1) {
        unsigned rights = SANDBOX_READ;

        if (n++ == MAX_NAMES) {
            snprintf(c.short_of, sizeof c.short_of, "%.160s: of the files that "
                     "it and those below it name, only %d can be opened in "
                     "the sandbox; --no-sandbox does without one",
                     image->path, MAX_NAMES);
            break;
        }

        if (line[0] == 'f') {
            confine_path(line + 1, SANDBOX_READ | SANDBOX_LIST);
            continue;
        }
        if (line[0] == 's' || line[0] == 'S') {
            take_split(image, line[0] == 's', line + 1);
            continue;
        }
        if (!permitted(image, line + 1))
            continue;
        if (image->how & CONFINE_WRITE_ALL ||
            (line[0] == '0' && (image->how & CONFINE_WRITE)))
            rights |= SANDBOX_WRITE;
        confine_path(line + 1, rights);
        if (image->how & CONFINE_FOLDERS)
            folders_of(line + 1);
    }
    free(line);
}

/* Raw images name nothing, and NONE allows nothing to be named. */
static bool names_files(const struct image *image)
{
    if (image->backing && *image->backing)
        return true;
    return image->opts.allow_files != IMG_FILES_NONE &&
           !(image->format && !strcmp(image->format, "raw"));
}

static void send_scout(const struct image *image)
{
    int p[2];
    FILE *from;
    pid_t pid;

    if (!names_files(image) || pipe2(p, O_CLOEXEC) < 0)
        return;
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        close(p[0]);
        scout(image, p[1]);
    }
    close(p[1]);
    from = pid > 0 ? fdopen(p[0], "r") : NULL;
    if (from) {
        take_names(image, from);
        fclose(from);
    } else {
        close(p[0]);
    }
    while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
}

/* ---- entering ---------------------------------------------------------- */

static void add_image(const struct image *image)
{
    unsigned write = image->how & (CONFINE_WRITE | CONFINE_WRITE_ALL) ?
        SANDBOX_WRITE : 0;

    confine_path(image->path, SANDBOX_READ | write);
    if (image->how & CONFINE_FOLDERS)
        folders_of(image->path);
    send_scout(image);
}

static void forget(void)
{
    for (size_t i = 0; i < c.n_images; i++) {
        free(c.images[i].path);
        free(c.images[i].format);
        free(c.images[i].backing);
        free(c.images[i].backing_format);
        free(c.images[i].allow_dir);
    }
    for (size_t i = 0; i < c.n_rules; i++)
        free(c.rules[i].path);
    free(c.images);
    free(c.rules);
    c.images = NULL;
    c.rules = NULL;
    c.n_images = c.n_rules = 0;
}

void confine_enter(void)
{
#ifdef NO_SANDBOX
    confine_off("not in this kind of build");
#endif
    if (c.entered)
        return;
    c.entered = true;
    for (size_t i = 0; i < c.n_images && !c.off && !c.failed; i++)
        add_image(&c.images[i]);
    tzset();                    /* reads a file, once */
    confine_path("/dev/urandom", SANDBOX_READ); /* libraries' hash tables */
    if (!c.off && c.failed)
        confine_off("out of memory");
    if (!c.off)
        c.state = sandbox_enter(c.rules, c.n_rules, c.flags);
    forget();
}

bool confine_held(void)
{
    return c.state.landlock && c.state.seccomp;
}

const char *confine_short_of(void)
{
    return *c.short_of ? c.short_of : NULL;
}

const char *confine_state(void)
{
    static char text[80];

    if (c.off)
        snprintf(text, sizeof text, "no (%s)", c.off);
    else if (!c.state.landlock && !c.state.seccomp)
        snprintf(text, sizeof text, "no (the kernel has neither Landlock nor "
                 "seccomp)");
    else if (!c.state.landlock)
        snprintf(text, sizeof text, "partly (seccomp; the kernel has no "
                 "Landlock)");
    else
        snprintf(text, sizeof text, "%s (Landlock %d%s)", c.state.seccomp ?
                 "yes" : "partly", c.state.landlock, c.state.seccomp ?
                 ", seccomp" : "; no seccomp");
    return text;
}
