/* Bringing tables to the disk.
 *
 * What is dirty is copied under the lock; then, without it: content of the
 * grains durable, redundant tables, tables, everything durable before the
 * directories that point to new tables.  So a crash can leave grains that
 * nobody points to and a redundant copy that is ahead of the first, nothing
 * else.  Grains that were given back are used again only after that.
 */
#include "vmdk/vmdk.h"
#include "cache/tcache.h"

#include <stdlib.h>

/* Directory entries [from, to) of both copies, as they were when the tables
 * were staged. */
struct directory_part {
    uint8_t *copies;                /* n entries, then those of rgd */
    size_t from, n;
    uint64_t next;                  /* the allocator's */
};

static int stage_directory(struct vmdk_sparse *s, struct directory_part *d,
                           struct img_error *err)
{
    *d = (struct directory_part){ .from = s->gd_from, .next = s->next,
                                  .n = s->gd_to - s->gd_from };
    if (!d->n)
        return 0;
    d->copies = calloc(d->n * 2, 4);
    if (!d->copies)
        return img_fail_nomem(err);
    for (size_t i = 0; i < d->n; i++) {
        img_put_le32(d->copies + 4 * i, s->gd[d->from + i]);
        if (s->rgd)
            img_put_le32(d->copies + 4 * (d->n + i), s->rgd[d->from + i]);
    }
    s->gd_from = s->gd_to = 0;
    return 0;
}

static int write_directory(struct vmdk_sparse *s,
                           const struct directory_part *d,
                           struct img_error *err)
{
    int r;

    if (!d->n)
        return 0;
    r = img_file_sync(s->file, err);
    if (r == 0 && s->rgd)
        r = img_file_pwrite(s->file, d->copies + 4 * d->n, 4 * d->n,
                            s->rgd_off + 4 * d->from, err);
    if (r == 0)
        r = img_file_pwrite(s->file, d->copies, 4 * d->n,
                            s->gd_off + 4 * d->from, err);
    return r;
}

/* freeSector, at byte 28 of COWD's header. */
static int write_free_sector(struct vmdk_sparse *s, uint64_t next,
                             struct img_error *err)
{
    uint8_t raw[4];
    int r;

    next /= VMDK_SECTOR;
    if (s->h.kind != VMDK_COWD || s->h.free_sector == next)
        return 0;
    img_put_le32(raw, (uint32_t)next);
    r = img_file_pwrite(s->file, raw, sizeof raw, 28, err);
    if (r == 0)
        s->h.free_sector = next;
    return r;
}

static int write_staged(struct vmdk_sparse *s, struct img_stage *second,
                        struct img_stage *first,
                        const struct directory_part *d,
                        struct img_error *err)
{
    int r = img_file_sync(s->file, err);

    if (r == 0)
        r = img_stage_write(second, err);
    if (r == 0)
        r = img_stage_write(first, err);
    if (r == 0)
        r = write_directory(s, d, err);
    if (r == 0)
        r = write_free_sector(s, d->next, err);
    return r ? r : img_file_sync(s->file, err);
}

/* Called with sync_lock held. */
static int write_back(struct img_layer *layer, struct vmdk_sparse *s,
                      struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct img_stage *first = NULL, *second = NULL;
    struct directory_part d = { 0 };
    struct vmdk_list gone = { 0 };
    bool nothing;
    int r;

    img_write_lock(&st->lock);
    r = img_tcache_stage(layer->tables, s->file, VMDK_KIND_RGT, &second, err);
    if (r == 0)
        r = img_tcache_stage(layer->tables, s->file, VMDK_KIND_GT, &first,
                             err);
    if (r == 0)
        r = stage_directory(s, &d, err);
    if (r == 0) {
        gone = s->freed;
        s->freed = (struct vmdk_list){ 0 };
    }
    img_rw_unlock(&st->lock);
    nothing = r || (img_stage_is_empty(first) && img_stage_is_empty(second) &&
                    !d.n);
    if (!nothing)
        r = write_staged(s, second, first, &d, err);
    if (first)
        img_stage_done(first, r == 0);
    if (second)
        img_stage_done(second, r == 0);
    if (r == 0) {
        img_vmdk_release(layer, s, &gone);
    } else if (!nothing) {
        img_write_lock(&st->lock);
        if (d.n) {
            img_vmdk_directory_changed(s, d.from);
            img_vmdk_directory_changed(s, d.from + d.n - 1);
        }
        for (size_t i = 0; i < gone.n; i++)
            if (img_vmdk_list_add(&s->freed, gone.list[i]))
                break;
        s->freed_from = 0;
        s->freed_to = UINT64_MAX;
        img_rw_unlock(&st->lock);
    }
    free(gone.list);
    free(d.copies);
    return r;
}

int img_vmdk_write_back(struct img_layer *layer, struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    int r = 0;

    img_lock(&st->sync_lock);
    for (size_t i = 0; i < st->n_extents && r == 0; i++)
        if (st->extents[i].sparse && st->extents[i].sparse->file->writable)
            r = write_back(layer, st->extents[i].sparse, err);
    img_unlock(&st->sync_lock);
    return r;
}

int img_vmdk_sync(struct img_layer *layer, struct img_error *err)
{
    int r = img_vmdk_write_back(layer, err);

    for (unsigned i = 0; i < layer->n_files && r == 0; i++)
        if (layer->files[i]->writable)
            r = img_file_sync(layer->files[i], err);
    return r;
}
