/* Resizing a disk that is split into files (twoGbMaxExtent...): extents come
 * and go with it.
 *
 * Growing: new extents are written before they have names, the last one that
 * was there is made as long as all but the last are, and then the descriptor
 * is replaced.  Shrinking: first the descriptor, then the files go.
 */
#include "vmdk/vmdk.h"
#include "base/cleanup.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool img_vmdk_is_split(const struct vmdk_state *st)
{
    size_t len = 0;
    const char *type = st->text ? img_vmdk_text_look(st->text, "createType",
                                                     &len) : NULL;

    return type && memmem(type, len, "GbMaxExtent", 11) && !st->text_room &&
           st->text->n_extents == st->n_extents;
}

/* How long extents are: as the first one, which VMware makes a bit shorter
 * than QEMU does. */
static uint64_t unit(const struct img_layer *layer)
{
    const struct vmdk_state *st = layer->state;
    uint64_t first = st->extents[0].len;

    if (st->n_extents > 1 && first >= VMDK_SPLIT / 2 && first <= VMDK_SPLIT &&
        img_is_aligned(first, layer->block))
        return first;
    return VMDK_SPLIT;
}

uint64_t img_vmdk_split_room(const struct img_layer *layer)
{
    const struct vmdk_state *st = layer->state;
    const struct vmdk_extent *last = &st->extents[st->n_extents - 1];

    return last->start + IMG_MAX(img_round_up(last->len, layer->block),
                                 unit(layer));
}

/* "x-s003.vmdk" and 2 -> "x-s005.vmdk"; else by the descriptor's name. */
static char *name_behind(const struct img_layer *layer, const char *last,
                         char letter, unsigned n)
{
    const char *dot = last ? strrchr(last, '.') : NULL, *p;
    char part[24], *name = NULL;
    unsigned number;

    for (p = dot; p && p > last && isdigit((unsigned char)p[-1]); p--)
        ;
    if (dot && dot - p >= 3 && dot - p <= 6 && p - last >= 2 &&
        p[-1] == letter && p[-2] == '-') {
        number = (unsigned)strtoul(p, NULL, 10) + n;
        if (asprintf(&name, "%.*s%0*u%s", (int)(p - last), last,
                     (int)(dot - p), number, dot) < 0)
            return NULL;
        return name;
    }
    snprintf(part, sizeof part, "%c%03u", letter, n);
    return img_vmdk_extent_name(layer->path, part);
}

/* What is to be added, and what the disk becomes by that. */
struct plan {
    struct img_layer *layer;
    struct vmdk_text *text;
    struct vmdk_extent *extents;    /* all of them */
    size_t n, had;
    uint64_t full;                  /* of the last one that was there */
    enum img_prealloc prealloc;
    unsigned number;                /* of the last name that was tried */
};

/* Names that something has already are passed over. */
static int make_named(struct plan *p, const struct vmdk_extent_line *last,
                      char letter, char **name, struct img_file **file,
                      struct img_error *err)
{
    enum { TRIES = 1000 };
    int r = -EEXIST;

    for (int i = 0; i < TRIES && r == -EEXIST; i++) {
        free(*name);
        *name = name_behind(p->layer, last->name, letter, ++p->number);
        if (!*name)
            return img_fail_nomem(err);
        r = p->layer->make_file(p->layer, *name, file, err);
    }
    return r;
}

static int fill_extent(struct plan *p, struct vmdk_extent *x,
                       struct img_file *file, struct img_error *err)
{
    const struct vmdk_state *st = p->layer->state;
    const struct vmdk_extent *like = &st->extents[p->had - 1];
    struct vmdk_extent none = { .kind = VMDK_FLAT };
    int r;

    if (!like->sparse)
        return img_vmdk_grow_flat(file, &none, x->len, p->prealloc, err);
    r = img_vmdk_make_sparse(file, &like->sparse->h, x->len, NULL, err);
    return r ? r : img_vmdk_sparse_open(p->layer, file, &x->sparse, err);
}

static int add_extent(struct plan *p, uint64_t start, uint64_t len,
                      struct img_error *err)
{
    const struct vmdk_state *st = p->layer->state;
    const struct vmdk_extent_line *last = &st->text->extents[p->had - 1];
    struct vmdk_extent *x = &p->extents[p->n];
    img_autofree char *name = NULL;
    struct img_file *file;
    int r;

    *x = (struct vmdk_extent){
        .kind = st->extents[p->had - 1].kind, .access = VMDK_RW,
        .start = start, .len = len, .line = p->n,
        .file = p->layer->n_files + (unsigned)(p->n - p->had),
    };
    r = make_named(p, last, last->type == VMDK_TYPE_FLAT ? 'f' : 's', &name,
                   &file, err);
    if (r)
        return r;
    p->n++;
    r = fill_extent(p, x, file, err);
    return r ? r : img_vmdk_text_add_extent(p->text, last->type,
                                            len / VMDK_SECTOR, name, err);
}

static int make_all(struct plan *p, uint64_t size, struct img_error *err)
{
    const struct vmdk_state *st = p->layer->state;
    uint64_t at = st->extents[p->had - 1].start + p->full, len;
    uint64_t each = unit(p->layer);
    uint64_t count = img_div_up(size - at, each);
    int r = 0;

    if (count > VMDK_TEXT_MAX / 32)
        return img_fail(err, EFBIG, "%s: %llu bytes would be too many "
                        "extents", p->layer->path, (unsigned long long)size);
    p->extents = calloc(p->had + (size_t)count, sizeof *p->extents);
    if (!p->extents)
        return img_fail_nomem(err);
    memcpy(p->extents, st->extents, p->had * sizeof *p->extents);
    for (; at < size && r == 0; at += len) {
        len = IMG_MIN(size - at, each);
        r = add_extent(p, at, len, err);
    }
    return r;
}

/* The layer is what the plan says from now on. */
static void adopt(struct plan *p, uint64_t size)
{
    struct vmdk_state *st = p->layer->state;

    img_vmdk_text_free(st->text);
    free(st->extents);
    st->text = p->text;
    st->extents = p->extents;
    st->extents[p->had - 1].len = p->full;
    st->n_extents = p->n;
    p->layer->size = size;
}

static void drop_plan(struct plan *p)
{
    for (size_t i = p->had; p->extents && i < p->n; i++)
        img_vmdk_sparse_free(p->extents[i].sparse);
    free(p->extents);
    img_vmdk_text_free(p->text);
}

int img_vmdk_split_grow(struct img_layer *layer, uint64_t size,
                        enum img_prealloc prealloc, struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_extent *last = &st->extents[st->n_extents - 1];
    struct plan p = {
        .layer = layer, .n = st->n_extents, .had = st->n_extents,
        .full = img_vmdk_split_room(layer) - last->start,
        .prealloc = prealloc,
    };
    bool done = false, grown = false;
    int r;

    r = img_vmdk_sync(layer, err);
    if (r == 0)
        r = img_vmdk_text_copy(st->text, &p.text, err);
    if (r == 0)
        r = img_vmdk_text_set_extent(p.text, p.had - 1,
                                     p.full / VMDK_SECTOR, err);
    if (r == 0)
        r = img_vmdk_set_cylinders(p.text, size, err);
    if (r == 0)
        r = make_all(&p, size, err);
    if (r == 0) {
        grown = p.full > last->len;
        r = grown ? img_vmdk_grow_last(layer, p.full, prealloc, err) : 0;
    }
    if (r == 0)
        r = img_vmdk_text_replace(layer, p.text, &done, err);
    if (done) {
        adopt(&p, size);
        return r;
    }
    layer->unmake_files(layer);
    if (grown)
        img_vmdk_cut_last(layer, last->len, NULL);
    drop_plan(&p);
    return r;
}

/* A file that is nothing but this extent of that descriptor.  What else it may
 * be is not ours to remove. */
static bool is_own(const struct img_layer *layer,
                   const struct vmdk_text *text, const struct vmdk_extent *x)
{
    const char *name = text->extents[x->line].name;
    struct img_file *f = layer->files[x->file];
    uint64_t len;

    if (x->access != VMDK_RW || f->is_device || !img_vmdk_name_stays(name))
        return false;
    for (unsigned i = 0; i < x->file; i++)
        if (img_vmdk_same_file(layer->files[i], f))
            return false;
    return x->sparse || (!x->host && img_file_size(f, &len, NULL) == 0 &&
                         len == x->len);
}

/* The last extent goes, and its file unless another one lies there too: the
 * first of those has opened it, and nobody a file behind it who is still
 * there.  text: the descriptor that names it. */
static void drop_last(struct img_layer *layer, const struct vmdk_text *text,
                      bool remove)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_extent *gone = &st->extents[--st->n_extents];
    bool used = gone->kind == VMDK_ZERO;

    for (size_t i = 0; i < st->n_extents; i++)
        used |= st->extents[i].kind != VMDK_ZERO &&
                st->extents[i].file == gone->file;
    remove = remove && !used && is_own(layer, text, gone);
    img_vmdk_sparse_free(gone->sparse);
    gone->sparse = NULL;
    if (!used)
        layer->drop_file(layer, remove);
}

/* May the last extent that stays become shorter?  The others go whole. */
static int check_cut(struct img_layer *layer, const struct vmdk_extent *x,
                     uint64_t size, struct img_error *err)
{
    if (size == x->start + x->len)
        return 0;
    if (x->access != VMDK_RW)
        return img_fail(err, EROFS, "%s: the extent at %llu is not for "
                        "writing", layer->path, (unsigned long long)x->start);
    if (x->sparse && (x->kind != VMDK_SPARSE || x->sparse->h.compressed))
        return img_fail(err, ENOTSUP, "%s: the extent at %llu cannot be "
                        "resized", layer->path,
                        (unsigned long long)x->start);
    return 0;
}

int img_vmdk_split_drop(struct img_layer *layer, uint64_t size,
                        struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_text *text = NULL, *was = NULL;
    size_t keep = st->n_extents;
    struct vmdk_extent *x;
    bool done = false;
    int r;

    while (keep > 1 && st->extents[keep - 1].start >= size)
        keep--;
    x = &st->extents[keep - 1];
    r = check_cut(layer, x, size, err);
    if (r == 0)
        r = img_vmdk_sync(layer, err);
    if (r == 0)
        r = img_vmdk_text_copy(st->text, &was, err);
    if (r == 0)
        r = img_vmdk_text_copy(st->text, &text, err);
    if (r == 0) {
        img_vmdk_text_keep_extents(text, keep);
        r = img_vmdk_text_set_extent(text, keep - 1,
                                     (size - x->start) / VMDK_SECTOR, err);
    }
    if (r == 0)
        r = img_vmdk_set_cylinders(text, size, err);
    if (r == 0)
        r = img_vmdk_text_store(layer, text, VMDK_MOVE, &done, err);
    else
        img_vmdk_text_free(text);
    if (!done) {
        img_vmdk_text_free(was);
        return r;
    }
    /* No file is removed when the old descriptor may come back. */
    while (st->n_extents > keep)
        drop_last(layer, was, r == 0);
    img_vmdk_text_free(was);
    layer->size = x->start + x->len;
    if (r == 0 && size < layer->size)
        r = img_vmdk_cut_last(layer, size - x->start, err);
    x->len = size - x->start;
    layer->size = size;
    return r;
}
