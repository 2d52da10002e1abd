/* VDI: the parent of a differencing image.
 *
 * The image records no name, only the parent's UUIDs: that of the image and
 * that of its last modification.  VirtualBox keeps a register of names; here
 * the parent is looked for among the files *.vdi of the image's own folder.
 * An image whose parent is not found, or is not given by whoever opens it,
 * does not open: without its parent it would show wrong bytes.
 */
#include "vdi/vdi.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "file/file.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

enum { FOLDER_MAX = 4096 };     /* files *.vdi that are looked at */

static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    if (!slash)
        return strdup(".");
    return strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

static bool is_vdi_name(const char *name)
{
    size_t len = strlen(name);

    return len > 4 && !strcasecmp(name + len - 4, ".vdi");
}

/* Reads the header of a neighbour. */
static int read_header(struct img_layer *layer, const char *name,
                       uint8_t header[VDI_HEADER_BYTES],
                       struct img_error *err)
{
    struct img_file *file;
    uint64_t size;
    int r = layer->open_file(layer, name, false, &file, err);

    if (r < 0)
        return r;
    r = img_file_size(file, &size, err);
    if (r == 0 && size < VDI_HEADER_BYTES)
        r = img_fail(err, EINVAL, "%s: not a VDI image", file->path);
    if (r == 0)
        r = img_file_pread(file, header, VDI_HEADER_BYTES, 0, err);
    if (r == 0 && (!img_vdi_is_vdi(header, VDI_HEADER_BYTES) ||
                   img_get_le32(header + VDI_VERSION_AT) >> 16 != 1))
        r = img_fail(err, EINVAL, "%s: not a VDI image of version 1",
                     file->path);
    img_file_close(file);
    return r;
}

/* What the search has found so far. */
struct search {
    char *name;                 /* NULL = nothing */
    char *other;                /* as good as name */
    bool current;               /* not modified since the image was made */
    unsigned looked_at;
    struct img_error trouble;   /* of the last file that did not open */
};

static int consider(struct img_layer *layer, const char *name,
                    struct search *s, struct img_error *err)
{
    const struct img_vdi *v = layer->state;
    uint8_t header[VDI_HEADER_BYTES];
    const uint8_t *modified = v->header + VDI_PARENT_MODIFIED_AT;
    bool current;
    char *copy;

    s->looked_at++;
    if (read_header(layer, name, header, &s->trouble) < 0)
        return 0;
    if (memcmp(header + VDI_UUID_AT, v->header + VDI_PARENT_AT,
               VDI_UUID_LEN))
        return 0;
    current = img_vdi_uuid_is_nil(modified) ||
              !memcmp(header + VDI_MODIFIED_AT, modified, VDI_UUID_LEN);
    if (s->name && s->current && !current)
        return 0;
    copy = strdup(name);
    if (!copy)
        return img_fail_nomem(err);
    free(s->other);
    s->other = NULL;
    if (s->name && s->current == current)
        s->other = s->name;
    else
        free(s->name);
    s->name = copy;
    s->current = current;
    return 0;
}

static int look_through(struct img_layer *layer, struct search *s,
                        struct img_error *err)
{
    img_autofree char *folder = folder_of(layer->path);
    const char *slash = strrchr(layer->path, '/');
    const char *self = slash ? slash + 1 : layer->path;
    struct dirent *entry;
    DIR *dir;
    int r = 0;

    if (!folder)
        return img_fail_nomem(err);
    dir = opendir(folder);
    if (!dir) {
        img_fail_errno(&s->trouble, errno, "%s", folder);
        return 0;
    }
    while (r == 0 && s->looked_at < FOLDER_MAX && (entry = readdir(dir))) {
        char name[sizeof entry->d_name + 2];
        struct stat st;

        if (!is_vdi_name(entry->d_name) || !strcmp(entry->d_name, self) ||
            fstatat(dirfd(dir), entry->d_name, &st, 0) < 0 ||
            !S_ISREG(st.st_mode))
            continue;
        /* "a:b.vdi" alone would be taken for a protocol. */
        snprintf(name, sizeof name, "%s%s",
                 strchr(entry->d_name, ':') ? "./" : "", entry->d_name);
        r = consider(layer, name, s, err);
    }
    closedir(dir);
    return r;
}

static int fail_not_found(struct img_layer *layer, const struct search *s,
                          struct img_error *err)
{
    const struct img_vdi *v = layer->state;
    int code = s->trouble.code;
    char uuid[VDI_UUID_TEXT];

    img_vdi_uuid_print(v->header + VDI_PARENT_AT, uuid);
    /* EINVAL: no VDI image, so it is not the parent. */
    return img_fail(err, code && code != EINVAL ? code : ENOENT,
                    "%s: its parent, the VDI image with UUID %s, "
                    "is not among the %u other files *.vdi beside it%s%.200s",
                    layer->path, uuid, s->looked_at, code ? "; " : "",
                    code ? s->trouble.message : "");
}

int img_vdi_find_parent(struct img_layer *layer,
                        const struct img_open_options *opts,
                        struct img_error *err)
{
    struct search s = { 0 };
    bool needed = !(opts->flags & IMG_OPEN_NO_BACKING);
    int r;

    if (opts->backing)
        return 0;               /* given: check_base looks at it */
    if ((opts->flags & IMG_OPEN_DESCRIBE) && !needed)
        return 0;               /* its UUID is all that the image knows */
    r = look_through(layer, &s, err);
    if (r == 0 && !s.name && needed)
        r = fail_not_found(layer, &s, err);
    if (r == 0 && s.other && needed)
        r = img_fail(err, EEXIST, "%s: both '%s' and '%s' have the UUID of "
                     "its parent", layer->path, s.name, s.other);
    if (r == 0 && s.name) {
        layer->backing_format = strdup("vdi");
        if (layer->backing_format) {
            layer->backing = s.name;
            s.name = NULL;
        } else {
            r = img_fail_nomem(err);
        }
    }
    free(s.name);
    free(s.other);
    return r;
}

int img_vdi_check_base(struct img_layer *layer, const struct img_layer *base,
                       struct img_error *err)
{
    const struct img_vdi *v = layer->state, *b = base->state;
    const uint8_t *modified = v->header + VDI_PARENT_MODIFIED_AT;
    char want[VDI_UUID_TEXT], have[VDI_UUID_TEXT];

    if (v->type != VDI_DIFF)
        return 0;
    if (base->format != &img_format_vdi) {
        layer->warn(layer, "%s: nothing tells whether %s is the parent it "
                    "was made over", layer->path, base->path);
        return 0;
    }
    if (memcmp(b->header + VDI_UUID_AT, v->header + VDI_PARENT_AT,
               VDI_UUID_LEN)) {
        img_vdi_uuid_print(v->header + VDI_PARENT_AT, want);
        img_vdi_uuid_print(b->header + VDI_UUID_AT, have);
        return img_fail(err, EINVAL, "%s: its parent has UUID %s, but %s has "
                        "%s", layer->path, want, base->path, have);
    }
    if (!img_vdi_uuid_is_nil(modified) &&
        memcmp(b->header + VDI_MODIFIED_AT, modified, VDI_UUID_LEN))
        layer->warn(layer, "%s: its parent %s was modified after it was made",
                    layer->path, base->path);
    return 0;
}

/* ---- giving it another parent ------------------------------------------- */

static int same_folder(const char *path, const char *name, bool *same,
                       struct img_error *err)
{
    img_autofree char *folder = folder_of(path), *other = NULL;
    char *whole = NULL;
    struct stat a, b;

    if (!folder)
        return img_fail_nomem(err);
    if (*name == '/')
        whole = strdup(name);
    else if (asprintf(&whole, "%s/%s", folder, name) < 0)
        whole = NULL;
    if (whole)
        other = folder_of(whole);
    free(whole);
    if (!other)
        return img_fail_nomem(err);
    *same = stat(folder, &a) == 0 && stat(other, &b) == 0 &&
            a.st_dev == b.st_dev && a.st_ino == b.st_ino;
    return 0;
}

int img_vdi_beside(const char *path, const char *name, struct img_error *err)
{
    bool same = true;
    int r = 0;

    if (strchr(name, '/'))
        r = same_folder(path, name, &same, err);
    if (r == 0 && (!same || !is_vdi_name(name)))
        r = img_fail(err, EINVAL, "%s: a VDI image records the UUID of its "
                     "parent, not its name, and finds only files *.vdi in "
                     "its own folder; '%s' is none of them", path, name);
    return r;
}

/* An image that had no parent keeps its zeros. */
static void free_to_zero(struct img_vdi *v)
{
    img_lock(&v->lock);
    for (uint32_t i = 0; i < v->blocks; i++)
        if (v->map[i] == VDI_FREE)
            img_vdi_set(v, i, VDI_ZERO);
    img_unlock(&v->lock);
}

static int base_header(struct img_layer *layer, const char *name,
                       const struct img_layer *base,
                       uint8_t header[VDI_HEADER_BYTES],
                       struct img_error *err)
{
    const struct img_vdi *b;

    if (!base)
        return read_header(layer, name, header, err);
    if (base->format != &img_format_vdi)
        return img_fail(err, ENOTSUP, "%s: only a VDI image can be below a "
                        "VDI image, %s is %s", layer->path, base->path,
                        base->format->info.name);
    b = base->state;
    memcpy(header, b->header, VDI_HEADER_BYTES);
    return 0;
}

static int link_to(struct img_layer *layer, const char *name,
                   const struct img_layer *base, struct img_error *err)
{
    struct img_vdi *v = layer->state;
    uint8_t header[VDI_HEADER_BYTES];
    int r = img_vdi_beside(layer->path, name, err);

    if (r == 0)
        r = base_header(layer, name, base, header, err);
    if (r < 0)
        return r;
    if (v->type != VDI_DIFF) {
        free_to_zero(v);
        r = img_vdi_sync(layer, err);
        if (r < 0)
            return r;
    }
    v->type = VDI_DIFF;
    memcpy(v->header + VDI_PARENT_AT, header + VDI_UUID_AT, VDI_UUID_LEN);
    memcpy(v->header + VDI_PARENT_MODIFIED_AT, header + VDI_MODIFIED_AT,
           VDI_UUID_LEN);
    return 0;
}

int img_vdi_set_backing(struct img_layer *layer, const char *name,
                        const char *fmt, const struct img_layer *base,
                        struct img_error *err)
{
    struct img_vdi *v = layer->state;
    char *new_name = NULL, *new_format = NULL;
    enum vdi_type type = v->type;
    uint8_t old[VDI_HEADER_BYTES];
    bool some = name && *name;
    int r = 0;

    memcpy(old, v->header, sizeof old);
    if (some && fmt && strcmp(fmt, "vdi"))
        return img_fail(err, ENOTSUP, "%s: only a VDI image can be below a "
                        "VDI image, not %s", layer->path, fmt);
    if (some) {
        new_name = strdup(name);
        new_format = strdup("vdi");
        r = new_name && new_format ? link_to(layer, name, base, err)
                                   : img_fail_nomem(err);
    } else if (v->type == VDI_DIFF) {
        v->type = VDI_DYNAMIC;
        memset(v->header + VDI_PARENT_AT, 0, VDI_UUID_LEN);
        memset(v->header + VDI_PARENT_MODIFIED_AT, 0, VDI_UUID_LEN);
    }
    if (r == 0) {
        img_put_le32(v->header + VDI_TYPE_AT, v->type);
        v->header_dirty = true;
        r = img_vdi_sync(layer, err);
    }
    if (r < 0) {
        memcpy(v->header, old, sizeof old);
        v->header_dirty = true;
        v->type = type;
        free(new_name);
        free(new_format);
        return r;
    }
    free(layer->backing);
    free(layer->backing_format);
    layer->backing = new_name;
    layer->backing_format = new_format;
    return 0;
}
