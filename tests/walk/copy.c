/* New images: created, laid over, converted, copied into; and comparing. */
#include "walk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Whole MiB for those that count in larger units than sectors. */
static uint64_t fit_size(const char *format, uint64_t size)
{
    return *format == 'v' ? (size >> 20 << 20) + (1 << 20) : size;
}

int step_create(struct walk *w)
{
    static const char *const formats[] = { "qcow2", "qcow2", "qcow2", "qcow2",
                                           "raw", "vdi", "vmdk" };
    const char *format = formats[rng_below(&w->rng, 7)];
    struct layer *layer;

    if (close_top(w) < 0)
        return -1;
    while (w->n)
        drop_layer(w, w->n - 1);
    layer = push_layer(w, format, fit_size(format, random_size(w)));
    if (create_file(w, layer, random_settings(w, layer), NULL,
                    chance(w, 3)) < 0)
        return -1;
    return fill_layer(w, layer);
}

/* An overlay shows what lies below it. */
static void show_through(struct layer *layer, const struct view *below)
{
    uint64_t n = below->size < layer->view.size ? below->size
                                                : layer->view.size;

    memset(layer->view.data, 0, layer->view.size);
    memset(layer->view.own, 0, layer->view.size);
    memcpy(layer->view.data, below->data, n);
}

int step_overlay(struct walk *w)
{
    struct layer *below = top_of(w), *layer;
    uint64_t size = chance(w, 2) ? random_size(w) : below->view.size;

    if (w->n > MAX_LAYERS - 2)
        return 1;
    if (close_top(w) < 0)
        return -1;
    layer = push_layer(w, "qcow2", size);
    show_through(layer, &below->view);
    return create_file(w, layer, random_settings(w, layer), below,
                       chance(w, 3));
}

int step_drop(struct walk *w)
{
    if (w->n < 2)
        return 1;
    if (close_top(w) < 0)
        return -1;
    note(w, "drop %s", top_of(w)->path);
    drop_layer(w, w->n - 1);
    return 0;
}

/* ---- convert ----------------------------------------------------------- */

struct conversion {
    struct layer *from, *to, *below;
    const struct snap *snap;
    const char *settings;
    bool compress, bitmaps;
    unsigned sparse;
};

static int convert_by_peer(struct walk *w, const struct conversion *c)
{
    char line[512];
    int n = sprintf(line, "qemu-img|convert|-q|-t|unsafe|-f|%s|-O|%s|",
                    c->from->format, c->to->format);

    if (*c->settings)
        n += sprintf(line + n, "-o|%s|", c->settings);
    if (c->below)
        n += sprintf(line + n, "-B|%s|-F|%s|", c->below->path,
                     c->below->format);
    if (c->snap)
        n += sprintf(line + n, "-l|snapshot.id=%s|", c->snap->id);
    if (c->compress)
        n += sprintf(line + n, "-c|");
    if (c->bitmaps)
        n += sprintf(line + n, "--bitmaps|");
    if (close_top(w) < 0)
        return -1;
    if (run(w, "%s%s|%s", line, c->from->path, c->to->path)) {
        refused(w);
        return 1;
    }
    return 0;
}

static int convert_by_libimg(struct walk *w, const struct conversion *c)
{
    struct img_create_options create = IMG_CREATE_OPTIONS;
    struct img_convert_options opts = IMG_CONVERT_OPTIONS;
    struct img_job job = random_job(w);
    struct img_disk *from = c->snap ? NULL : w->disk;
    const char *words[16];
    char text[256];
    int r;

    note(w, "convert %s%s%s to %s %s %s over %s%s%s sparse %u threads %u",
         c->from->path, c->snap ? " snapshot " : "",
         c->snap ? c->snap->id : "", c->to->format, c->to->path, c->settings,
         c->below ? c->below->path : "-", c->compress ? " -c" : "",
         c->bitmaps ? " --bitmaps" : "", c->sparse, job.threads);
    snprintf(text, sizeof(text), "%s", c->settings);
    split_settings(text, words, 16);
    create.format = c->to->format;
    create.settings = words;
    create.flags = IMG_CREATE_NO_SYNC;
    if (c->below) {
        create.backing = c->below->path;
        create.backing_format = c->below->format;
    }
    opts.create = &create;
    opts.no_sync = true;
    opts.compress = c->compress;
    opts.bitmaps = c->bitmaps;
    opts.sparse_bytes = c->sparse;
    opts.no_sparse = chance(w, 8);
    if (!from) {
        if (close_top(w) < 0)
            return -1;
        from = open_view(w, c->from, c->snap ? c->snap->id : NULL, 0);
        if (!from)
            return -1;
    }
    r = img_convert(&from, 1, c->to->path, &opts, &job, &w->err);
    if (from != w->disk)
        img_close(from, NULL);
    return outcome(w, "convert", r);
}

static void copy_bitmaps(struct layer *to, const struct layer *from)
{
    for (int i = 0; i < from->n_bitmaps; i++) {
        const struct bitmap *f = &from->bitmaps[i];
        struct bitmap *t = &to->bitmaps[to->n_bitmaps++];
        uint64_t bits = bitmap_bits(f, from->view.size);

        *t = *f;
        t->must = t->may = NULL;
        bitmap_fit(t, 0, to->view.size);
        memcpy(t->must, f->must, bits);
        memcpy(t->may, f->may, bits);
    }
}

/* The new image is the last in the array; what it does not need goes. */
static void take_over(struct walk *w, bool over_base)
{
    drop_layer(w, w->n - 2);
    while (!over_base && w->n > 1)
        drop_layer(w, 0);
}

int step_convert(struct walk *w)
{
    static const char *const formats[] = { "qcow2", "qcow2", "qcow2", "raw",
                                           "vdi", "vmdk" };
    struct conversion c = { .from = top_of(w) };
    unsigned mode = (unsigned)rng_below(&w->rng, 3);
    const struct view *view = &c.from->view;
    bool peer;
    int r;

    if (mode == 1 && w->n > 1)
        c.below = top_of(w) - 1;
    if (mode == 2 && c.from->n_snaps) {
        c.snap = &c.from->snaps[rng_below(&w->rng,
                                          (uint64_t)c.from->n_snaps)];
        view = &c.snap->view;
    }
    c.to = push_layer(w, c.below ? "qcow2" : formats[rng_below(&w->rng, 6)],
                      view->size);
    c.settings = random_settings(w, c.to);
    c.compress = is_qcow2(c.to) && !*c.to->data_file && chance(w, 2);
    c.bitmaps = is_qcow2(c.to) && !strstr(c.settings, "0.10") && !c.snap &&
                is_qcow2(c.from) && !c.from->old_version && chance(w, 2);
    c.sparse = chance(w, 2) ? 0 : 512u << rng_below(&w->rng, 8);
    /* QEMU shows a snapshot in the disk's present size. */
    peer = chance(w, 3) && view->size == c.from->view.size;
    w->n--;                     /* the top is the old one until then */
    r = peer ? convert_by_peer(w, &c) : convert_by_libimg(w, &c);
    if (r >= 0 && close_top(w) < 0)
        r = -1;
    w->n++;
    if (r) {
        drop_layer(w, w->n - 1);
        return r < 0 ? r : 0;
    }
    view_copy(&c.to->view, view);
    for (uint64_t i = 0; i < view->size; i++)
        c.to->view.own[i] = !c.below && view->data[i];
    if (c.bitmaps)
        copy_bitmaps(c.to, c.from);
    take_over(w, c.below);
    return 0;
}

/* ---- copy, compare ----------------------------------------------------- */

static int copy_into(struct walk *w, struct layer *from, struct layer *to,
                     bool peer)
{
    struct img_convert_options opts = IMG_CONVERT_OPTIONS;
    struct img_job job = random_job(w);
    struct img_disk *source, *target;
    int r;

    if (peer) {
        if (run(w, "qemu-img|convert|-q|-n|-f|%s|-O|%s|%s|%s", from->format,
                to->format, from->path, to->path))
            return wrong(w, "qemu-img convert -n");
        return 0;
    }
    opts.compress = is_qcow2(to) && !*to->data_file && chance(w, 3);
    opts.sparse_bytes = chance(w, 2) ? 0 : 512u << rng_below(&w->rng, 8);
    note(w, "copy %s to %s%s threads %u", from->path, to->path,
         opts.compress ? " -c" : "", job.threads);
    source = open_view(w, from, NULL, 0);
    target = open_view(w, to, NULL, IMG_OPEN_WRITE);
    r = !source || !target ? -1 : img_copy(&source, 1, target, &opts, &job,
                                           &w->err);
    if (r < 0 && source && target)
        wrong(w, "copy: %s", w->err.message);
    img_close(source, NULL);
    if (img_close(target, &w->err) < 0 && r >= 0)
        r = wrong(w, "close: %s", w->err.message);
    return r;
}

/* Into an image that has content already, and may have a base. */
int step_copy(struct walk *w)
{
    struct layer *from = top_of(w), *to, *below = NULL;
    uint64_t size = from->view.size + (chance(w, 2) ? 0 : 512 *
                                       rng_below(&w->rng, 3000));

    if (size > MAX_SIZE)
        size = from->view.size;
    if (close_top(w) < 0)
        return -1;
    if (w->n > 1 && chance(w, 2))
        below = from - 1;
    to = push_layer(w, chance(w, 4) && !below ? "raw" : "qcow2", size);
    if (below)
        show_through(to, &below->view);
    if (create_file(w, to, random_settings(w, to), below, false) < 0 ||
        read_properties(w, to) < 0 || fill_layer(w, to) < 0 ||
        copy_into(w, from, to, chance(w, 3)) < 0)
        return -1;
    memcpy(to->view.data, from->view.data, from->view.size);
    for (uint64_t i = 0; i < from->view.size; i++)
        to->view.own[i] = !below && to->view.data[i];
    take_over(w, below);
    return 0;
}

static int compare_once(struct walk *w, int expect, uint64_t expect_at)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_job job = random_job(w);
    struct view *view = &top_of(w)->view;
    FILE *f = fopen("flat", "w");
    struct img_disk *flat;
    uint64_t at = 0;
    int r;

    if (!f || fwrite(view->data, 1, view->size, f) != view->size ||
        fclose(f))
        return wrong(w, "flat");
    opts.format = "raw";
    if (img_open("flat", &opts, &flat, &w->err) < 0)
        return wrong(w, "%s", w->err.message);
    r = img_compare(w->disk, flat, false, &job, &at, &w->err);
    img_close(flat, NULL);
    if (r != expect || (r && at != expect_at))
        return wrong(w, "compare is %d at %llu, not %d at %llu", r,
                     (unsigned long long)at, expect,
                     (unsigned long long)expect_at);
    return 0;
}

int step_compare(struct walk *w)
{
    struct view *view = &top_of(w)->view;
    uint64_t at = rng_below(&w->rng, view->size);
    int r;

    note(w, "compare, byte %llu", (unsigned long long)at);
    if (open_top(w) < 0 || compare_once(w, 0, 0) < 0)
        return -1;
    view->data[at] ^= 1;
    r = compare_once(w, 1, at);
    view->data[at] ^= 1;
    return r;
}
