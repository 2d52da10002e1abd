/* Probing, opening and closing: from a header or a descriptor to extents. */
#include "vmdk/vmdk.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

int img_vmdk_probe(const uint8_t *head, size_t len, const char *path)
{
    static const char first[] = "# Disk DescriptorFile";
    enum vmdk_kind kind;

    if (img_vmdk_is_sparse(head, len, &kind))
        return 100;
    if (len >= sizeof first - 1 && !memcmp(head, first, sizeof first - 1))
        return 100;
    return img_vmdk_looks_like_text(head, len) ? 90 : 0;
}

bool img_vmdk_name_stays(const char *name)
{
    const char *p = name;

    if (*p == '/' || strpbrk(p, "\\:"))
        return false;
    while (*p) {
        size_t part = strcspn(p, "/");

        if (part == 2 && p[0] == '.' && p[1] == '.')
            return false;
        p += part;
        p += *p == '/';
    }
    return true;
}

static int add_file(struct img_layer *layer, struct img_file *file,
                    struct img_error *err)
{
    struct img_file **list;

    list = realloc(layer->files, (layer->n_files + 1) * sizeof *list);
    if (!list) {
        img_file_close(file);
        return img_fail_nomem(err);
    }
    layer->files = list;
    list[layer->n_files++] = file;
    return 0;
}

bool img_vmdk_same_file(const struct img_file *a, const struct img_file *b)
{
    if (a->inode || b->inode)
        return a->inode == b->inode && a->device == b->device;
    return !strcmp(a->path, b->path);
}

/* Sparse extents allocate, so none may share its file with anything.  Files
 * that are the same have passed this: the first one speaks for all. */
static int check_shared(struct img_layer *layer, unsigned file, bool sparse,
                        struct img_error *err)
{
    struct vmdk_state *st = layer->state;

    for (unsigned i = 0; i < file; i++) {
        bool other = !i;

        if (!img_vmdk_same_file(layer->files[i], layer->files[file]))
            continue;
        for (size_t j = 0; j < st->n_extents; j++)
            other |= st->extents[j].file == i && st->extents[j].sparse;
        if (sparse || other)
            return img_fail(err, IMG_ECORRUPT, "%s: the descriptor names %s "
                            "for two things", layer->path,
                            layer->files[file]->path);
        break;
    }
    return 0;
}

/* The file of an earlier flat extent of the same name: opened again, it would
 * be locked by ourselves. */
static bool reuse_file(struct vmdk_state *st, const struct vmdk_extent_line *e,
                       struct vmdk_extent *x)
{
    for (size_t i = 0; i + 1 < st->n_extents; i++) {
        const struct vmdk_extent *other = &st->extents[i];
        const struct vmdk_extent_line *o = &st->text->extents[other->line];

        if (other->kind != VMDK_FLAT || other->access != e->access ||
            o->type != e->type || strcmp(o->name, e->name))
            continue;
        x->file = other->file;
        return true;
    }
    return false;
}

/* Extents of one file that are written lie beside each other. */
static int check_overlap(struct img_layer *layer, const struct vmdk_extent *x,
                         struct img_error *err)
{
    const struct vmdk_state *st = layer->state;

    for (const struct vmdk_extent *o = st->extents; o < x; o++)
        if (o->kind == VMDK_FLAT && o->file == x->file &&
            o->host < x->host + x->len && x->host < o->host + o->len)
            return img_fail(err, IMG_ECORRUPT, "%s: descriptor lines %zu and "
                            "%zu: their extents overlap in %s", layer->path,
                            st->text->extents[o->line].line + 1,
                            st->text->extents[x->line].line + 1,
                            layer->files[x->file]->path);
    return 0;
}

static int open_named(struct img_layer *layer,
                      const struct vmdk_extent_line *e, struct vmdk_extent *x,
                      struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct img_file *file = NULL;
    int r = 0;

    if (!st->free_names && !img_vmdk_name_stays(e->name))
        return img_fail(err, EACCES, "%s: extent \"%s\" is not in the folder "
                        "of the descriptor (free-names=on allows that)",
                        layer->path, e->name);
    if (!st->closed)
        r = layer->open_file(layer, e->name, layer->writable &&
                             e->access == VMDK_RW, &file, err);
    if (r)
        return img_fail_prefix(err, r, "%s: descriptor line %zu: extent "
                               "\"%s\"", layer->path, e->line + 1, e->name);
    r = add_file(layer, file, err);
    if (r)
        return r;
    x->file = layer->n_files - 1;
    if (file && file->is_device && !st->free_devices)
        return img_fail(err, EACCES, "%s: extent \"%s\" is a device",
                        layer->path, e->name);
    return 0;
}

static int open_flat(struct img_layer *layer,
                     const struct vmdk_extent_line *e, struct vmdk_extent *x,
                     struct img_error *err)
{
    struct img_file *file = layer->files[x->file];
    uint64_t len;
    int r;

    x->kind = VMDK_FLAT;
    x->host = e->offset * VMDK_SECTOR;
    r = img_file_size(file, &len, err);
    if (r)
        return r;
    if (!img_inside(x->host, x->len, len) && !layer->repair)
        return img_fail(err, IMG_ECORRUPT, "%s: %s has %llu bytes, the extent "
                        "needs %llu from %llu on", layer->path, file->path,
                        (unsigned long long)len, (unsigned long long)x->len,
                        (unsigned long long)x->host);
    return 0;
}

static int open_sparse(struct img_layer *layer,
                       const struct vmdk_extent_line *e,
                       struct vmdk_extent *x, struct img_error *err)
{
    struct img_file *file = layer->files[x->file];
    int r;

    r = img_vmdk_sparse_open(layer, file, &x->sparse, err);
    if (r)
        return r;
    x->kind = x->sparse->h.kind;
    if ((e->type == VMDK_TYPE_SESPARSE) != (x->kind == VMDK_SE))
        return img_fail(err, IMG_ECORRUPT, "%s: %s is no %s extent",
                        layer->path, file->path,
                        img_vmdk_type_name(e->type));
    if (x->sparse->h.capacity < e->sectors)
        return img_fail(err, IMG_ECORRUPT, "%s: %s is for %llu sectors, the "
                        "descriptor says %llu", layer->path, file->path,
                        (unsigned long long)x->sparse->h.capacity,
                        (unsigned long long)e->sectors);
    return 0;
}

static int open_extent(struct img_layer *layer, size_t i,
                       struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    const struct vmdk_extent_line *e = &st->text->extents[i];
    struct vmdk_extent *x = &st->extents[st->n_extents];
    bool flat, reused;
    int r = 0;

    *x = (struct vmdk_extent){ .access = e->access, .line = i,
                               .start = layer->size,
                               .len = e->sectors * VMDK_SECTOR };
    st->n_extents++;
    if (x->len > VMDK_SIZE_MAX - layer->size)
        return img_fail(err, IMG_ECORRUPT, "%s: the extents are too large "
                        "together", layer->path);
    layer->size += x->len;
    x->kind = VMDK_ZERO;
    if (e->type == VMDK_TYPE_ZERO || e->access == VMDK_NOACCESS)
        return 0;
    if (e->type == VMDK_TYPE_VMFSRDM || e->type == VMDK_TYPE_VMFSRAW)
        return img_fail(err, ENOTSUP, "%s: extents of type %s are disks of "
                        "their own on ESXi", layer->path,
                        img_vmdk_type_name(e->type));
    flat = e->type == VMDK_TYPE_FLAT || e->type == VMDK_TYPE_VMFS;
    reused = flat && !st->closed && reuse_file(st, e, x);
    if (!reused)
        r = open_named(layer, e, x, err);
    if (r)
        return r;
    x->kind = VMDK_FLAT;
    if (st->closed)
        return 0;
    if (flat)
        r = open_flat(layer, e, x, err);
    else
        r = open_sparse(layer, e, x, err);
    if (r == 0 && layer->writable && flat && x->access == VMDK_RW)
        r = check_overlap(layer, x, err);
    return r || reused ? r : check_shared(layer, x->file, x->sparse != NULL,
                                          err);
}

static int open_extents(struct img_layer *layer, struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    size_t n = st->text->n_extents;
    int r = 0;

    if (!n)
        return img_fail(err, IMG_ECORRUPT, "%s: the VMDK descriptor names no "
                        "extents", layer->path);
    st->extents = calloc(n, sizeof *st->extents);
    if (!st->extents)
        return img_fail_nomem(err);
    for (size_t i = 0; i < n && r == 0; i++)
        r = open_extent(layer, i, err);
    return r;
}

static int read_text(struct img_layer *layer, uint64_t off, uint64_t len,
                     struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    char *buf;
    int r;

    buf = malloc(len ? (size_t)len : 1);
    if (!buf)
        return img_fail_nomem(err);
    r = img_file_pread(layer->files[0], buf, (size_t)len, off, err);
    if (r == 0)
        r = img_vmdk_text_parse(layer->path, buf, (size_t)len, &st->text,
                                err);
    free(buf);
    return r;
}

static int open_text(struct img_layer *layer, struct img_error *err)
{
    uint64_t len;
    int r;

    r = img_file_size(layer->files[0], &len, err);
    if (r)
        return r;
    if (len > VMDK_TEXT_MAX)
        return img_fail(err, IMG_ECORRUPT, "%s: %llu bytes are too many for "
                        "a VMDK descriptor", layer->path,
                        (unsigned long long)len);
    r = read_text(layer, 0, len, err);
    return r ? r : open_extents(layer, err);
}

/* files[0] is a sparse extent: the disk itself, or, with no capacity, a
 * descriptor in a wrapper. */
static int open_header(struct img_layer *layer, uint64_t file_len,
                       struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_extent *x;
    struct vmdk_header h;
    int r;

    r = img_vmdk_header_read(layer->files[0], file_len,
                             layer->repair && layer->writable, &h, err);
    if (r)
        return r;
    st->text_off = h.text_off * VMDK_SECTOR;
    st->text_room = h.text_off ? h.text_len * VMDK_SECTOR : 0;
    if (st->text_room) {
        if (h.text_off > file_len ||
            !img_inside(st->text_off, st->text_room, file_len))
            return img_fail(err, IMG_ECORRUPT, "%s: the descriptor at sector "
                            "%llu does not lie in the file", layer->path,
                            (unsigned long long)h.text_off);
        r = read_text(layer, st->text_off, st->text_room, err);
        if (r)
            return r;
    }
    if (!h.capacity && st->text && !h.grain)
        return open_extents(layer, err);
    st->extents = calloc(1, sizeof *st->extents);
    if (!st->extents)
        return img_fail_nomem(err);
    st->n_extents = 1;
    x = st->extents;
    x->kind = h.kind;
    x->len = layer->size = h.capacity * VMDK_SECTOR;
    x->line = st->text && st->text->n_extents == 1 ? 0 : SIZE_MAX;
    if (!st->text)
        layer->warn(layer, "%s: has no descriptor; it may be a part of a "
                    "disk", layer->path);
    else if (x->line == 0 && st->text->extents[0].sectors != h.capacity)
        layer->warn(layer, "%s: the descriptor says %llu sectors, the header "
                    "%llu", layer->path,
                    (unsigned long long)st->text->extents[0].sectors,
                    (unsigned long long)h.capacity);
    return img_vmdk_sparse_open(layer, layer->files[0], &x->sparse, err);
}

/* The parent, by name and content ID. */
static int read_parent(struct img_layer *layer,
                       const struct img_open_options *opts,
                       struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    int r;

    st->parent_cid = VMDK_NO_PARENT;
    if (!st->text)
        return 0;
    img_vmdk_text_get_id(st->text, "CID", &st->cid);
    img_vmdk_text_get_id(st->text, "parentCID", &st->parent_cid);
    r = img_vmdk_text_get(st->text, "parentFileNameHint", &layer->backing,
                          err);
    if (r)
        return r;
    if (layer->backing && !*layer->backing) {
        free(layer->backing);
        layer->backing = NULL;
    }
    if (layer->backing) {
        layer->backing_format = strdup("vmdk");
        return layer->backing_format ? 0 : img_fail_nomem(err);
    }
    if (st->parent_cid != VMDK_NO_PARENT && !st->given_below &&
        !layer->repair && !(opts->flags & IMG_OPEN_NO_BACKING))
        return img_fail(err, IMG_ECORRUPT, "%s: holds what changed since "
                        "parent %08x, but does not name that parent",
                        layer->path, (unsigned)st->parent_cid);
    return 0;
}

/* Clusters of the layer: the largest grain.  Core locks and fills by them,
 * so a grain must never straddle two. */
static int set_clusters(struct img_layer *layer, struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    unsigned bits = 0;

    for (size_t i = 0; i < st->n_extents; i++)
        if (st->extents[i].sparse)
            bits = IMG_MAX(bits, st->extents[i].sparse->grain_bits);
    layer->cluster_bits = bits ? bits : 16;
    layer->block = bits ? 1u << bits : VMDK_SECTOR;
    for (size_t i = 0; i < st->n_extents; i++) {
        struct vmdk_extent *x = &st->extents[i];

        if (!x->sparse)
            continue;
        if (x->sparse->h.compressed &&
            (x->sparse->grain_bits != bits ||
             !img_is_aligned(x->start, layer->block)))
            return img_fail(err, ENOTSUP, "%s: packed extents with other "
                            "grains beside them", layer->path);
        if (layer->writable && !img_is_aligned(x->start, layer->block))
            return img_fail(err, EROFS, "%s: a sparse extent begins within a "
                            "grain; such an image is only read",
                            layer->path);
    }
    return 0;
}

static int check_writable(struct img_layer *layer, struct img_error *err)
{
    struct vmdk_state *st = layer->state;

    for (size_t i = 0; i < st->n_extents && layer->writable; i++) {
        struct vmdk_sparse *s = st->extents[i].sparse;

        if (!s)
            continue;
        if (s->h.kind == VMDK_SE)
            return img_fail(err, EROFS, "%s: seSparse extents are only read",
                            layer->path);
        /* Version 3 without compression means changed-block tracking
         * (VMware KB 2064959), which writes would make wrong. */
        if (s->h.version == 3 && !s->h.compressed)
            return img_fail(err, EROFS, "%s: VMDK version 3 with "
                            "changed-block tracking is only read",
                            layer->path);
    }
    return 0;
}

static bool has_encryption(const struct vmdk_state *st)
{
    size_t len;

    return st->text && img_vmdk_text_look(st->text, "encryption.keySafe",
                                          &len);
}

int img_vmdk_open(struct img_layer *layer,
                  const struct img_open_options *opts, struct img_error *err)
{
    struct vmdk_state *st = calloc(1, sizeof *st);
    uint8_t head[4096] = { 0 };
    enum vmdk_kind kind;
    uint64_t len;
    int r;

    if (!st)
        return img_fail_nomem(err);
    img_rwlock_init(&st->lock);
    img_mutex_init(&st->sync_lock);
    layer->state = st;
    layer->size = 0;
    st->free_devices = (opts->flags & IMG_OPEN_FREE_NAMES) ||
                       opts->allow_files == IMG_FILES_ANY ||
                       (opts->resolve && !(opts->flags & IMG_OPEN_NEW));
    st->closed = (opts->flags & IMG_OPEN_DESCRIBE) &&
                 opts->allow_files == IMG_FILES_NONE;
    /* Core looks at names where a folder is their limit. */
    st->free_names = st->free_devices || st->closed ||
                     opts->allow_files == IMG_FILES_BESIDE ||
                     opts->allow_files == IMG_FILES_UNDER;
    st->touched = opts->flags & IMG_OPEN_NEW;
    st->given_below = opts->backing && *opts->backing;
    r = img_file_size(layer->files[0], &len, err);
    if (r == 0 && len)
        r = img_file_pread(layer->files[0], head,
                           (size_t)IMG_MIN(len, (uint64_t)sizeof head), 0,
                           err);
    if (r)
        return r;
    if (img_vmdk_is_sparse(head, sizeof head, &kind))
        r = open_header(layer, len, err);
    else if (img_vmdk_looks_like_text(head, sizeof head))
        r = open_text(layer, err);
    else
        r = img_fail(err, EINVAL, "%s: not a VMDK image", layer->path);
    if (r == 0 && has_encryption(st))
        r = img_fail(err, ENOTSUP, "%s: encrypted VMDK images are not read",
                     layer->path);
    if (r == 0)
        r = read_parent(layer, opts, err);
    if (r == 0)
        r = check_writable(layer, err);
    return r ? r : set_clusters(layer, err);
}

void img_vmdk_close(struct img_layer *layer)
{
    struct vmdk_state *st = layer->state;

    if (!st)
        return;
    for (size_t i = 0; i < st->n_extents; i++)
        img_vmdk_sparse_free(st->extents[i].sparse);
    free(st->extents);
    img_vmdk_text_free(st->text);
    img_rwlock_destroy(&st->lock);
    img_mutex_destroy(&st->sync_lock);
    free(st);
    layer->state = NULL;
}

int img_vmdk_check_base(struct img_layer *layer, const struct img_layer *base,
                        struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    const struct vmdk_state *below = base->state;

    if (base->format != layer->format) {
        if (st->given_below)
            return 0;
        return img_fail(err, EINVAL, "%s: its parent %s is no VMDK image",
                        layer->path, base->path);
    }
    if (below->cid == st->parent_cid)
        return 0;
    if (st->given_below || layer->repair) {
        layer->warn(layer, "%s: parentCID is %08x, but the CID of %s is %08x",
                    layer->path, (unsigned)st->parent_cid, base->path,
                    (unsigned)below->cid);
        return 0;
    }
    return img_fail(err, IMG_ECORRUPT, "%s: parentCID is %08x, but the CID of "
                    "%s is %08x: it has changed since the overlay was made",
                    layer->path, (unsigned)st->parent_cid, base->path,
                    (unsigned)below->cid);
}
