/* Images that rest on one which is about to change.
 *
 * An overlay shows a mixture after its backing file was changed, and nothing
 * in the file says who rests on it.  So before an operation changes what an
 * image shows, the folders are looked through in which the chain's images
 * are.  Of each file a few KiB are read; of at most MAX_FILES.  It is help
 * against mistakes, no proof: overlays elsewhere are not found.
 */
#include "ops/dependants.h"
#include "core/path.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "file/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_FILES = 4096, MAX_FOLDERS = 64, HEAD = 4096, MIN_SCORE = 2 };

struct folder {
    dev_t device;
    ino_t inode;
};

struct search {
    const struct img_chain *chain;
    unsigned from, to;          /* layers that will change */
    unsigned looked_at;
    struct folder seen[MAX_FOLDERS];
    size_t n_seen;
    char *found;                /* the image that rests on ... */
    unsigned on;                /* ... this layer */
};

static bool is_file_of(const struct img_layer *l, const struct stat *st)
{
    const struct img_file *f = l->files[0];

    if (S_ISBLK(st->st_mode))
        return f->is_device && f->device == st->st_rdev;
    return S_ISREG(st->st_mode) && !f->is_device && (f->device || f->inode) &&
           f->device == st->st_dev && f->inode == st->st_ino;
}

static bool is_of_chain(const struct search *s, const struct stat *st)
{
    for (unsigned d = 0; d < s->chain->n; d++)
        if (is_file_of(s->chain->layers[d], st))
            return true;
    return false;
}

/* ---- what one image rests on ------------------------------------------- */

/* For formats that cannot tell by the first bytes. */
static char *ask_layer(const struct search *s, const char *path,
                       const char *format)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_chain *c;
    char *name = NULL;

    opts.flags = IMG_OPEN_NO_BACKING | IMG_OPEN_NO_LOCK;
    opts.format = format;
    opts.allow_files = s->chain->opts.allow_files;
    opts.allow_dir = s->chain->opts.allow_dir;
    if (img_chain_open(path, -1, NULL, &opts, &c, NULL) < 0)
        return NULL;
    if (c->layers[0]->backing)
        name = strdup(c->layers[0]->backing);
    img_chain_close(c, NULL);
    return name;
}

/* As the image has it, malloc'ed; NULL = nothing, or nothing that is known. */
static char *backing_of(const struct search *s, const char *path,
                        const uint8_t *head, size_t len)
{
    const struct img_format *format = NULL;
    char *name = NULL;
    int best = MIN_SCORE - 1;

    for (size_t i = 0; img_formats[i]; i++) {
        int score = img_formats[i]->probe(head, len, path);

        if (score > best) {
            best = score;
            format = img_formats[i];
        }
    }
    if (!format || !(format->info.features & IMG_CAN_BACK))
        return NULL;
    if (format->peek && format->peek(head, len, &name) == 0)
        return name;
    return ask_layer(s, path, format->info.name);
}

/* ---- looking through folders ------------------------------------------- */

/* QEMU takes a whole description for a name: the file that it names first.
 * As long as nothing is escaped but quotes and slashes. */
static bool take_json_name(char *name)
{
    const char *from = strstr(name, "filename\"");
    char *to = name;

    if (!from)
        return false;
    from += strlen("filename\"");
    from += strspn(from, " \t\n:");
    if (*from++ != '"')
        return false;
    while (*from && *from != '"') {
        if (*from == '\\')
            from++;
        *to++ = *from;
        from += *from != 0;
    }
    *to = 0;
    return true;
}

static void consider(struct search *s, const char *path, int fd)
{
    uint8_t head[HEAD] = { 0 };
    ssize_t len = pread(fd, head, sizeof head, 0);
    img_autofree char *name = NULL;
    img_autofree char *base = NULL;
    struct stat st;

    if (len > 0)
        name = backing_of(s, path, head, (size_t)len);
    if (name && !strncmp(name, "json:", 5) && !take_json_name(name))
        return;
    if (name)
        base = img_path_beside(path, name);
    if (!base || stat(base, &st) < 0)
        return;
    for (unsigned d = s->from; d <= s->to && !s->found; d++)
        if (is_file_of(s->chain->layers[d], &st)) {
            s->found = strdup(path);
            s->on = d;
        }
}

static void look_at(struct search *s, int folder, const char *folder_name,
                    const char *name)
{
    img_autofree char *path = NULL;
    struct stat st;
    int fd;

    if (fstatat(folder, name, &st, 0) < 0 || !S_ISREG(st.st_mode) ||
        !st.st_size || is_of_chain(s, &st))
        return;
    s->looked_at++;
    if (asprintf(&path, "%s%s%s", folder_name, *folder_name ? "/" : "",
                 name) < 0) {
        path = NULL;
        return;
    }
    fd = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return;
    consider(s, path, fd);
    close(fd);
}

/* folder "" is the current one. */
static void look_through(struct search *s, const char *folder)
{
    DIR *dir = opendir(*folder ? folder : ".");
    struct dirent *entry;

    while (dir && !s->found && s->looked_at < MAX_FILES &&
           (entry = readdir(dir)))
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            look_at(s, dirfd(dir), folder, entry->d_name);
    if (dir)
        closedir(dir);
}

/* Of a path, without the slash; "" = the current one.  malloc'ed. */
static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    if (!slash)
        return strdup("");
    return slash == path ? strdup("/.")
                         : strndup(path, (size_t)(slash - path));
}

static bool has_folder(const struct img_chain *c, unsigned depth)
{
    const struct img_file *f = c->layers[depth]->files[0];

    return !f->is_device && f->inode && !(depth == 0 && c->from_fd);
}

static void look_once(struct search *s, const char *folder)
{
    struct stat st;

    if (s->found || stat(*folder ? folder : ".", &st) < 0)
        return;
    for (size_t i = 0; i < s->n_seen; i++)
        if (s->seen[i].device == st.st_dev && s->seen[i].inode == st.st_ino)
            return;
    if (s->n_seen < MAX_FOLDERS)
        s->seen[s->n_seen++] = (struct folder){ st.st_dev, st.st_ino };
    look_through(s, folder);
}

/* Where the name is, and where the file is that it leads to. */
static void look_around(struct search *s, const char *path)
{
    img_autofree char *folder = folder_of(path);
    img_autofree char *real = realpath(path, NULL);
    img_autofree char *beyond = real ? folder_of(real) : NULL;

    if (folder)
        look_once(s, folder);
    if (beyond)
        look_once(s, beyond);
}

int img_dependants_refuse(struct img_disk *d, unsigned from, unsigned to,
                          const char *what, struct img_error *err)
{
    const struct img_chain *c = d->chain;
    struct search s = { .chain = c, .from = from, .to = to };
    int r = 0;

    if ((c->opts.flags & IMG_OPEN_FORCE) || c->opts.resolve)
        return 0;
    for (unsigned depth = 0; depth <= to && !s.found; depth++)
        if (has_folder(c, depth))
            look_around(&s, c->layers[depth]->path);
    if (s.found)
        r = img_fail(err, EBUSY, "%s rests on %s too, and %s would change "
                     "what it holds; rebase it first, or insist (--force)",
                     s.found, c->layers[s.on]->path, what);
    free(s.found);
    return r;
}
