/* Grains that were given back, for the allocator to use again.
 *
 * Runs are in order of their place and never touch: neighbours are joined,
 * so that whole pages can be given back to the file system even where grains
 * are smaller than pages.
 */
#include "vmdk/vmdk.h"

#include <stdlib.h>
#include <string.h>

int img_vmdk_list_add(struct vmdk_list *l, uint64_t host)
{
    if (l->n == l->room) {
        size_t room = l->room ? l->room * 2 : 64;
        uint64_t *list = realloc(l->list, room * sizeof *list);

        if (!list)
            return -ENOMEM;
        l->list = list;
        l->room = room;
    }
    l->list[l->n++] = host;
    return 0;
}

/* The first run that ends at or behind off. */
static size_t find(const struct vmdk_runs *f, uint64_t off)
{
    size_t low = 0, high = f->n;

    while (low < high) {
        size_t mid = low + (high - low) / 2;

        if (f->list[mid].off + f->list[mid].len < off)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static void remove_at(struct vmdk_runs *f, size_t i)
{
    f->n--;
    memmove(f->list + i, f->list + i + 1, (f->n - i) * sizeof *f->list);
}

/* Takes the neighbours of *run out and makes it one with them. */
static void join(struct vmdk_runs *f, struct vmdk_run *run)
{
    size_t i = find(f, run->off);

    while (i < f->n && f->list[i].off <= run->off + run->len) {
        uint64_t end = IMG_MAX(run->off + run->len,
                               f->list[i].off + f->list[i].len);

        run->off = IMG_MIN(run->off, f->list[i].off);
        run->len = end - run->off;
        remove_at(f, i);
    }
}

int img_vmdk_free_add(struct vmdk_sparse *s, uint64_t off, uint64_t len)
{
    struct vmdk_runs *f = &s->free;
    struct vmdk_run run = { off, len };
    size_t i;

    join(f, &run);
    if (f->n == f->room) {
        size_t room = f->room ? f->room * 2 : 16;
        struct vmdk_run *list = realloc(f->list, room * sizeof *list);

        if (!list)
            return -ENOMEM;
        f->list = list;
        f->room = room;
    }
    i = find(f, off);
    memmove(f->list + i + 1, f->list + i, (f->n - i) * sizeof *f->list);
    f->list[i] = run;
    f->n++;
    return 0;
}

bool img_vmdk_free_take(struct vmdk_sparse *s, uint64_t len, uint64_t *host)
{
    struct vmdk_runs *f = &s->free;
    size_t i = 0;

    while (i < f->n && f->list[i].len < len)
        i++;
    if (i == f->n)
        return false;
    *host = f->list[i].off;
    f->list[i].off += len;
    f->list[i].len -= len;
    if (!f->list[i].len)
        remove_at(f, i);
    return true;
}

static int by_place(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* A run is out of the allocator's reach while its space is given back. */
static void release_run(struct img_layer *layer, struct vmdk_sparse *s,
                        struct vmdk_run run)
{
    struct vmdk_state *st = layer->state;

    img_write_lock(&st->lock);
    join(&s->free, &run);
    img_rw_unlock(&st->lock);
    img_file_discard(s->file, run.off, run.len, NULL);
    img_write_lock(&st->lock);
    img_vmdk_free_add(s, run.off, run.len);     /* else: a leak */
    img_rw_unlock(&st->lock);
}

void img_vmdk_release(struct img_layer *layer, struct vmdk_sparse *s,
                      struct vmdk_list *gone)
{
    uint64_t grain = UINT64_C(1) << s->grain_bits;
    struct vmdk_run run = { 0, 0 };

    if (!gone->n)
        return;
    qsort(gone->list, gone->n, sizeof *gone->list, by_place);
    for (size_t i = 0; i < gone->n; i++) {
        if (run.len && gone->list[i] == run.off + run.len) {
            run.len += grain;
            continue;
        }
        if (run.len)
            release_run(layer, s, run);
        run = (struct vmdk_run){ gone->list[i], grain };
    }
    release_run(layer, s, run);
}
