/* What the images show is held against the model. */
#include "walk.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int hold(struct walk *w, const char *who, const struct view *view)
{
    uint64_t i = 0;

    if (!memcmp(w->buf, view->data, view->size))
        return 0;
    while (w->buf[i] == view->data[i])
        i++;
    return wrong(w, "%s: byte %llu is %02x, should be %02x", who,
                 (unsigned long long)i, w->buf[i], view->data[i]);
}

int adopt_view(struct walk *w, struct layer *layer, struct snap *snap,
               const struct view *below)
{
    struct view *view = snap ? &snap->view : &layer->view;
    struct img_disk *disk = open_view(w, layer, snap ? snap->id : NULL, 0);
    int r = disk ? read_all(w, disk, view->size) : -1;

    if (disk)
        img_close(disk, NULL);
    for (uint64_t i = 0; r >= 0 && i < view->size; i++) {
        uint8_t other = below && i < below->size ? below->data[i] : 0;

        if (w->buf[i] != view->data[i] &&
            (view->own[i] || w->buf[i] != other))
            return wrong(w, "%s, %s: byte %llu is %02x, was %02x%s",
                         layer->path, snap ? snap->id : "itself",
                         (unsigned long long)i, w->buf[i], view->data[i],
                         view->own[i] ? " of its own" : "");
    }
    if (r >= 0)
        memcpy(view->data, w->buf, view->size);
    return r;
}

/* ---- through libimg ---------------------------------------------------- */

static void on_finding(void *opaque, const char *message)
{
    note(opaque, "check: %s", message);
}

static int verify_bitmap(struct walk *w, struct img_disk *disk,
                         const struct bitmap *b, uint64_t size)
{
    struct img_extent e;

    for (uint64_t off = 0; off < size; off += e.len) {
        if (img_bitmap_map(disk, b->name, off, size - off, &e, &w->err) < 0)
            return wrong(w, "bitmap %s: %s", b->name, w->err.message);
        if (e.off != off || !e.len || e.len > size - off)
            return wrong(w, "bitmap %s: bad extent at %llu", b->name,
                         (unsigned long long)off);
        for (uint64_t i = off / b->granularity;
             i <= (off + e.len - 1) / b->granularity; i++)
            if (e.dirty ? !b->may[i] : b->must[i])
                return wrong(w, "bitmap %s: bit %llu is %d", b->name,
                             (unsigned long long)i, e.dirty);
    }
    return 0;
}

static int verify_lists(struct walk *w, const struct layer *layer,
                        const struct img_info *info)
{
    if ((int)info->n_snapshots != layer->n_snaps ||
        (int)info->n_bitmaps != layer->n_bitmaps)
        return wrong(w, "%zu snapshots, not %d; %zu bitmaps, not %d",
                     info->n_snapshots, layer->n_snaps, info->n_bitmaps,
                     layer->n_bitmaps);
    for (int i = 0; i < layer->n_snaps; i++)
        if (strcmp(info->snapshots[i].id, layer->snaps[i].id) ||
            strcmp(info->snapshots[i].name, layer->snaps[i].name) ||
            info->snapshots[i].disk_size != layer->snaps[i].view.size)
            return wrong(w, "snapshot %d is %s (%s), not %s (%s)", i,
                         info->snapshots[i].id, info->snapshots[i].name,
                         layer->snaps[i].id, layer->snaps[i].name);
    for (int i = 0; i < layer->n_bitmaps; i++) {
        const struct img_bitmap_info *b = info->bitmaps;
        size_t k = 0;

        while (k < info->n_bitmaps &&
               strcmp(b[k].name, layer->bitmaps[i].name))
            k++;
        if (k == info->n_bitmaps || b[k].inconsistent ||
            b[k].granularity != layer->bitmaps[i].granularity ||
            b[k].enabled != layer->bitmaps[i].enabled)
            return wrong(w, "bitmap %s is not as it was",
                         layer->bitmaps[i].name);
    }
    return 0;
}

static int verify_open(struct walk *w, struct layer *layer,
                       struct img_disk *disk)
{
    struct img_check_options opts = IMG_CHECK_OPTIONS;
    struct img_job job = random_job(w);
    struct img_check_result result;
    struct img_info *info;
    int r;

    if (read_all(w, disk, layer->view.size) < 0 ||
        hold(w, "libimg", &layer->view) < 0)
        return -1;
    if (!is_qcow2(layer))
        return 0;
    opts.report = on_finding;
    opts.report_opaque = w;
    if (img_check(disk, &opts, &job, &result, &w->err) < 0)
        return wrong(w, "check: %s", w->err.message);
    if (result.errors || result.leaks || result.check_errors)
        return wrong(w, "check: %llu errors, %llu leaks",
                     (unsigned long long)result.errors,
                     (unsigned long long)result.leaks);
    if (img_info_get(disk, &info, &w->err) < 0)
        return wrong(w, "info: %s", w->err.message);
    r = verify_lists(w, layer, info);
    img_info_free(info);
    for (int i = 0; i < layer->n_bitmaps && r >= 0; i++)
        r = verify_bitmap(w, disk, &layer->bitmaps[i], layer->view.size);
    return r;
}

static int verify_by_libimg(struct walk *w, struct layer *layer)
{
    unsigned flags = w->disk ? IMG_OPEN_NO_LOCK : 0;
    struct img_disk *disk;
    int r;

    if (w->disk && layer == top_of(w))
        return verify_open(w, layer, w->disk);
    disk = open_view(w, layer, NULL, flags);
    r = disk ? verify_open(w, layer, disk) : -1;
    if (disk)
        img_close(disk, NULL);
    return r;
}

static int verify_snapshots(struct walk *w, struct layer *layer)
{
    int r = 0;

    for (int i = 0; i < layer->n_snaps && r >= 0; i++) {
        struct snap *snap = &layer->snaps[i];
        struct img_disk *disk = open_view(w, layer, snap->id,
                                          w->disk ? IMG_OPEN_NO_LOCK : 0);

        r = disk ? read_all(w, disk, snap->view.size) : -1;
        if (disk)
            img_close(disk, NULL);
        if (r >= 0)
            r = hold(w, snap->name, &snap->view);
    }
    return r;
}

/* ---- through QEMU ------------------------------------------------------ */

static int hold_peer(struct walk *w, const char *who, const struct view *view)
{
    FILE *f = fopen("flat", "r");
    size_t n = f ? fread(w->buf, 1, MAX_SIZE, f) : 0;

    if (f)
        fclose(f);
    if (n != view->size)
        return wrong(w, "%s: QEMU reads %zu bytes", who, n);
    return hold(w, who, view);
}

static void show_peer(void)
{
    run_program("/dev/stderr",
                (const char *[]) { "tail", "-n", "5", "peer.out", NULL });
}

static int verify_by_peer(struct walk *w, struct layer *layer)
{
    const char *share = w->disk ? "-U" : "-q";

    if (is_qcow2(layer) || layer->format[1] == 'd') {
        const char *const argv[] = { "qemu-img", "check", "-q", share, "-f",
                                     layer->format, layer->path, NULL };

        int r = run_program("peer.out", argv);

        /* 3: leaks.  References are dropped after the tables that no longer
         * have them are on the disk, so that the next flush writes them. */
        if (r && (r != 3 || !w->disk)) {
            show_peer();
            return wrong(w, "qemu-img check %s", layer->path);
        }
    }
    if (run_program("peer.out", (const char *[]) { "qemu-img", "convert",
                    share, "-t", "unsafe", "-f", layer->format, "-O", "raw",
                    layer->path, "flat", NULL })) {
        show_peer();
        return wrong(w, "QEMU cannot read %s", layer->path);
    }
    return hold_peer(w, "QEMU", &layer->view);
}

static int verify_snapshot_by_peer(struct walk *w, struct layer *layer)
{
    struct snap *snap;
    char id[64];

    if (!layer->n_snaps || !chance(w, 4))
        return 0;
    snap = &layer->snaps[rng_below(&w->rng, (uint64_t)layer->n_snaps)];
    if (snap->view.size != layer->view.size)
        return 0;               /* QEMU shows it in the disk's present size */
    snprintf(id, sizeof(id), "snapshot.id=%s", snap->id);
    if (run_program("peer.out", (const char *[]) { "qemu-img", "convert", "-t",
                    "unsafe", "-f", layer->format, "-l", id, "-O", "raw",
                    w->disk ? "-U" : "-q", layer->path, "flat", NULL })) {
        show_peer();
        return wrong(w, "QEMU cannot read snapshot %s", snap->id);
    }
    return hold_peer(w, "QEMU, snapshot", &snap->view);
}

int verify(struct walk *w)
{
    if (w->disk && chance(w, 2)) {
        if (img_flush(w->disk, &w->err) < 0)
            return wrong(w, "flush: %s", w->err.message);
    } else if (close_top(w) < 0) {
        return -1;
    }
    for (int i = 0; i < w->n; i++) {
        struct layer *layer = &w->layers[i];

        if (layer->touched &&
            (read_properties(w, layer) < 0 || verify_by_peer(w, layer) < 0 ||
             verify_by_libimg(w, layer) < 0 ||
             verify_snapshots(w, layer) < 0 ||
             verify_snapshot_by_peer(w, layer) < 0))
            return -1;
    }
    return 0;
}
