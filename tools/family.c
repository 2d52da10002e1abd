/* Which images of a folder rest on which. */
#include "family.h"
#include "open.h"
#include "vimg.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static char *copy(const char *text)
{
    return text ? need_memory(strdup(text)) : NULL;
}

static struct member *add(struct family *f, const char *path,
                          const struct stat *st)
{
    struct member *m = need_memory(calloc(1, sizeof *m));

    f->members = need_memory(realloc(f->members, (f->n + 1) *
                                     sizeof f->members[0]));
    f->members[f->n++] = m;
    m->path = copy(path);
    if (st) {
        m->dev = st->st_dev;
        m->ino = st->st_ino;
    }
    return m;
}

static struct member *find(const struct family *f, const char *path,
                           const struct stat *st)
{
    for (size_t i = 0; i < f->n; i++) {
        struct member *m = f->members[i];

        if (st ? m->dev == st->st_dev && m->ino == st->st_ino
               : !m->ino && !strcmp(m->path, path))
            return m;
    }
    return NULL;
}

static void note_warning(void *opaque, const char *message)
{
    struct member *m = opaque;

    if (!m->note)
        m->note = copy(message);
}

/* Fills in what the image says about itself; *backing_path is what it rests
 * on, to be freed. */
static void describe(struct member *m, char **backing_path)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_info *info = NULL;
    struct img_disk *disk = NULL;
    struct img_error err;
    int r;

    *backing_path = NULL;
    opts.flags = IMG_OPEN_PROBE | IMG_OPEN_NO_BACKING | IMG_OPEN_NO_LOCK;
    opts.allow_files = open_files_policy(&opts.allow_dir);
    r = img_open(m->path, &opts, &disk, &err);
    if (r == 0)
        r = img_info_get(disk, &info, &err);
    if (r == 0) {
        m->format = copy(info->format);
        m->size = info->size;
        m->backing = copy(info->backing);
        *backing_path = copy(info->backing_path ? info->backing_path
                                                : info->backing);
    } else {
        m->note = copy(err.message);
    }
    img_info_free(info);
    img_close(disk, NULL);
}

/* An overlay is opened with what is below it: that tells of a base that is
 * missing or was changed. */
static void look_below(struct member *m)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_disk *disk = NULL;
    struct img_error err;

    if (!m->backing || m->note)
        return;
    opts.flags = IMG_OPEN_PROBE | IMG_OPEN_PROBE_BACKING | IMG_OPEN_NO_LOCK;
    opts.allow_files = open_files_policy(&opts.allow_dir);
    opts.warn = note_warning;
    opts.warn_opaque = m;
    if (img_open(m->path, &opts, &disk, &err) < 0) {
        free(m->note);
        m->note = copy(err.message);
    }
    img_close(disk, NULL);
}

/* Members are added at the end while this walks, so that what is found
 * outside is described too. */
static void link_all(struct family *f)
{
    for (size_t i = 0; i < f->n; i++) {
        struct member *m = f->members[i];
        struct stat st;
        char *path;
        bool there;

        if (m->outside && !m->ino)
            continue;
        describe(m, &path);
        if (!path)
            continue;
        there = stat(path, &st) == 0;
        m->base = find(f, path, there ? &st : NULL);
        if (!m->base) {
            m->base = add(f, path, there ? &st : NULL);
            m->base->outside = true;
            if (!there)
                m->base->note = copy("there is no such file");
        }
        free(path);
    }
}

static bool has_overlay(const struct family *f, const struct member *base)
{
    for (size_t i = 0; i < f->n; i++)
        if (f->members[i]->base == base)
            return true;
    return false;
}

static void free_member(struct member *m)
{
    free(m->path);
    free(m->format);
    free(m->backing);
    free(m->note);
    free(m);
}

/* Whatever else lies in the folder looks like a raw image. */
static void drop_strangers(struct family *f)
{
    size_t kept = 0;

    for (size_t i = 0; i < f->n; i++) {
        struct member *m = f->members[i];
        bool image = m->format && strcmp(m->format, "raw");

        m->stranger = !image && !has_overlay(f, m);
    }
    for (size_t i = 0; i < f->n; i++) {
        struct member *m = f->members[i];

        if (m->stranger)
            free_member(m);
        else
            f->members[kept++] = m;
    }
    f->n = kept;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static char *beside(const char *folder, const char *name)
{
    const char *slash = folder[strlen(folder) - 1] == '/' ? "" : "/";
    char *path;

    if (!strcmp(folder, "."))
        return copy(name);
    return need_memory(asprintf(&path, "%s%s%s", folder, slash, name) < 0
                       ? NULL : path);
}

static bool scan_folder(struct family *, const char *folder, bool deep);

static bool scan_entry(struct family *f, const char *path, bool deep)
{
    struct stat st;

    if (lstat(path, &st) < 0) {
        if (errno == ENOENT)
            return true;        /* gone meanwhile */
        complain("%s: %s", path, strerror(errno));
        return false;
    }
    if (S_ISREG(st.st_mode) && !find(f, path, &st))
        add(f, path, &st);
    return !S_ISDIR(st.st_mode) || !deep || scan_folder(f, path, deep);
}

/* How deep folders lie in each other is bounded by the length of a path. */
static bool scan_folder(struct family *f, const char *folder, bool deep)
{
    struct dirent **list;
    int n = scandir(folder, &list, NULL, by_name);
    bool ok = n >= 0;

    if (!ok)
        complain("%s: %s", folder, strerror(errno));
    for (int i = 0; i < n; i++) {
        if (strcmp(list[i]->d_name, ".") && strcmp(list[i]->d_name, "..")) {
            char *path = beside(folder, list[i]->d_name);

            ok &= scan_entry(f, path, deep);
            free(path);
        }
        free(list[i]);
    }
    if (n >= 0)
        free(list);
    return ok;
}

bool family_scan(const char *folder, bool deep, struct family *family)
{
    bool ok;

    while (!strncmp(folder, "./", 2)) {
        folder += 1 + strspn(folder + 1, "/");
        folder = *folder ? folder : ".";
    }
    *family = (struct family){ 0 };
    ok = scan_folder(family, folder, deep);
    link_all(family);
    drop_strangers(family);
    for (size_t i = 0; i < family->n; i++)
        look_below(family->members[i]);
    return ok;
}

void family_free(struct family *family)
{
    for (size_t i = 0; i < family->n; i++)
        free_member(family->members[i]);
    free(family->members);
    *family = (struct family){ 0 };
}

bool family_rests_on(const struct member *m, const struct member *base)
{
    /* A loop of backing files must not hang us; 64 is the library's limit. */
    for (int depth = 0; m->base && depth < 64; depth++) {
        if (m->base == base)
            return true;
        m = m->base;
    }
    return false;
}
