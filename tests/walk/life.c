/* Snapshots, commit, rebase, amend, bitmaps, repair. */
#include "walk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- snapshots --------------------------------------------------------- */

static int pick_snapshot(struct walk *w, const char **name)
{
    struct layer *top = top_of(w);
    int i;

    if (!top->n_snaps)
        return -1;
    i = (int)rng_below(&w->rng, (uint64_t)top->n_snaps);
    *name = chance(w, 2) ? top->snaps[i].id : top->snaps[i].name;
    return i;
}

/* By the library or by qemu-img: 1 = refused. */
static int on_snapshot(struct walk *w, const char *verb, const char *name,
                       int (*call)(struct img_disk *, const char *,
                                   struct img_error *))
{
    int r;

    /* Where a refcount would overflow, QEMU leaves leaks. */
    if (top_of(w)->refcount_bits > 8 && chance(w, 3)) {
        if (close_top(w) < 0)
            return -1;
        if (run(w, "qemu-img|snapshot|%s|%s|" UNSYNCED "%s", verb, name,
                top_of(w)->path)) {
            refused(w);
            return 1;
        }
        return 0;
    }
    note(w, "snapshot %s %s", verb, name);
    if (open_top(w) < 0)
        return -1;
    r = call(w->disk, name, &w->err);
    if (r == -EINVAL && top_of(w)->refcount_bits <= 8)
        r = -ENOTSUP;           /* a refcount would overflow */
    if (r < 0)
        mark_maybe(top_of(w));  /* done before that was found */
    return outcome(w, "snapshot", r);
}

int step_snapshot_create(struct walk *w)
{
    struct layer *top = top_of(w);
    struct snap *snap = &top->snaps[top->n_snaps];
    unsigned id = 0;
    char name[16];
    int r;

    if (!is_qcow2(top) || top->n_snaps == MAX_SNAPS)
        return 1;
    for (int i = 0; i < top->n_snaps; i++)
        if (strtoul(top->snaps[i].id, NULL, 10) > id)
            id = (unsigned)strtoul(top->snaps[i].id, NULL, 10);
    snprintf(name, sizeof(name), "s%llu", (unsigned long long)w->step);
    r = on_snapshot(w, "-c", name, img_snapshot_create);
    if (r)
        return r < 0 ? r : 0;
    snprintf(snap->id, sizeof(snap->id), "%u", id + 1);
    snprintf(snap->name, sizeof(snap->name), "%s", name);
    view_copy(&snap->view, &top->view);
    top->n_snaps++;
    return 0;
}

int step_snapshot_apply(struct walk *w)
{
    struct layer *top = top_of(w);
    uint64_t old = top->view.size;
    struct view before = { 0 };
    const char *name;
    int i = pick_snapshot(w, &name), r;

    if (i < 0)
        return 1;
    r = on_snapshot(w, "-a", name, img_snapshot_apply);
    if (r)
        return r < 0 ? r : 0;
    view_copy(&before, &top->view);
    view_copy(&top->view, &top->snaps[i].view);
    for (int k = 0; k < top->n_bitmaps; k++)
        bitmap_fit(&top->bitmaps[k], old, top->view.size);
    mark_changes(top, &before);
    view_free(&before);
    return 0;
}

int step_snapshot_delete(struct walk *w)
{
    struct layer *top = top_of(w);
    const char *name;
    int i = pick_snapshot(w, &name), r;

    if (i < 0)
        return 1;
    r = on_snapshot(w, "-d", name, img_snapshot_delete);
    if (r)
        return r < 0 ? r : 0;
    view_free(&top->snaps[i].view);
    top->n_snaps--;
    memmove(&top->snaps[i], &top->snaps[i + 1],
            sizeof(*top->snaps) * (size_t)(top->n_snaps - i));
    top->snaps[top->n_snaps] = (struct snap) { 0 };
    return 0;
}

/* ---- commit ------------------------------------------------------------ */

/* What rests on layer `lower`, which has changed: what is not its own shows
 * through.  The top shows what it showed. */
static int settle_above(struct walk *w, int lower)
{
    for (int i = lower + 1; i < w->n; i++) {
        struct layer *layer = &w->layers[i];
        const struct view *below = &w->layers[i - 1].view;

        layer->touched = true;
        if (i < w->n - 1 && adopt_view(w, layer, NULL, below) < 0)
            return -1;
        for (int k = 0; k < layer->n_snaps; k++)
            if (adopt_view(w, layer, &layer->snaps[k], below) < 0)
                return -1;
    }
    return 0;
}

/* The target shows what the top shows, and keeps what is longer. */
static void merge_views(struct layer *to, const struct view *from)
{
    struct view old = { 0 };
    uint64_t had = to->view.size;

    view_copy(&old, &to->view);
    if (from->size > had) {
        view_resize(&to->view, from->size);
        for (int i = 0; i < to->n_bitmaps; i++)
            bitmap_fit(&to->bitmaps[i], had, from->size);
    }
    for (uint64_t i = 0; i < from->size; i++)
        if (to->view.data[i] != from->data[i]) {
            to->view.data[i] = from->data[i];
            to->view.own[i] = from->data[i] != 0;
        }
    mark_changes(to, &old);
    view_free(&old);
    to->touched = true;
}

static int commit_by_peer(struct walk *w, int target)
{
    if (close_top(w) < 0)
        return -1;
    if (run(w, "qemu-img|commit|-q|-t|unsafe|-f|%s|%s%s|%s", top_of(w)->format,
            chance(w, 3) ? "-d|-b|" : "-b|", w->layers[target].path,
            top_of(w)->path)) {
        refused(w);
        return 1;
    }
    return 0;
}

int step_commit(struct walk *w)
{
    struct img_job job = random_job(w);
    int target, r;
    unsigned depth;
    bool keep = chance(w, 3);

    if (w->n < 2)
        return 1;
    depth = 1 + (unsigned)rng_below(&w->rng, (uint64_t)(w->n - 1));
    target = w->n - 1 - (int)depth;
    if (chance(w, 3)) {
        r = commit_by_peer(w, target);
    } else {
        note(w, "commit depth %u keep %d threads %u", depth, keep,
             job.threads);
        if (open_top(w) < 0)
            return -1;
        r = outcome(w, "commit", img_commit(w->disk, depth, keep, &job,
                                            &w->err));
    }
    w->layers[target].touched = true;
    if (r)
        return r < 0 ? r : 0;
    merge_views(&w->layers[target], &top_of(w)->view);
    if (depth == 1)
        memset(top_of(w)->view.own, 0, top_of(w)->view.size);
    mark_maybe(top_of(w));
    /* They are opened one by one. */
    return close_top(w) < 0 ? -1 : settle_above(w, target);
}

/* ---- rebase ------------------------------------------------------------ */

static int settle_snapshots(struct walk *w)
{
    struct layer *top = top_of(w);
    const struct view *below = w->n > 1 ? &w->layers[w->n - 2].view : NULL;

    if (close_top(w) < 0)
        return -1;
    for (int i = 0; i < top->n_snaps; i++)
        if (adopt_view(w, top, &top->snaps[i], below) < 0)
            return -1;
    return 0;
}

static int rebase_onto(struct walk *w, const struct layer *base, bool unsafe,
                       bool peer)
{
    struct img_rebase_options opts = IMG_REBASE_OPTIONS;
    struct img_job job = random_job(w);
    struct layer *top = top_of(w);

    if (peer) {
        if (close_top(w) < 0)
            return -1;
        if (base ? run(w, "qemu-img|rebase|-q|-t|unsafe|-f|%s|%s-b|%s|-F|%s|%s",
                       top->format, unsafe ? "-u|" : "", base->path,
                       base->format, top->path)
                 : run(w, "qemu-img|rebase|-q|-t|unsafe|-f|%s|-b||%s", top->format,
                       top->path)) {
            refused(w);
            return 1;
        }
        return 0;
    }
    opts.backing = base ? base->path : NULL;
    opts.backing_format = base ? base->format : NULL;
    opts.unsafe = unsafe;
    opts.compress = !unsafe && !*top->data_file && chance(w, 4);
    note(w, "rebase %s%s%s threads %u", base ? base->path : "none",
         unsafe ? " unsafe" : "", opts.compress ? " -c" : "", job.threads);
    return outcome(w, "rebase", img_rebase(w->disk, &opts, &job, &w->err));
}

/* A new image between the top and the rest. */
static struct layer *slip_under(struct walk *w)
{
    struct layer *other = push_layer(w, chance(w, 3) ? "raw" : "qcow2",
                                     random_size(w));
    struct layer top = other[-1];
    const char *settings = random_settings(w, other);

    other[-1] = *other;
    *other = top;
    other--;
    if (create_file(w, other, settings, NULL, chance(w, 3)) < 0 ||
        fill_layer(w, other) < 0)
        return NULL;
    return other;
}

int step_rebase(struct walk *w)
{
    int keep = (int)rng_below(&w->rng, 3), first = 0, r;
    bool peer = chance(w, 3);
    struct layer *base = NULL;

    /* QEMU 7.2 puts a version 2 image that had no base over one without
     * writing the zeros that it showed, and up to 8.1 there are overlays,
     * longer than what they rest on, with which it never ends. */
    if (w->n < 2 || top_of(w)->view.size > w->layers[w->n - 2].view.size)
        peer = false;
    if (!is_qcow2(top_of(w)) || top_of(w)->data_raw || open_top(w) < 0)
        return 1;
    if (keep == 1 && w->n > 1) {
        int to = (int)rng_below(&w->rng, (uint64_t)w->n - 1);

        base = &w->layers[to];
        first = to + 1;
    } else if (keep == 2) {
        base = slip_under(w);
        if (!base)
            return -1;
    } else if (w->n < 2) {
        return 1;
    }
    r = rebase_onto(w, base, false, peer);
    if (r < 0)
        return r;
    if (r) {
        if (keep == 2)
            drop_layer(w, w->n - 2);
        return 0;
    }
    if (keep == 2) {
        while (w->n > 2)
            drop_layer(w, 0);
    } else {
        while (w->n - 1 > first)
            drop_layer(w, first);
    }
    mark_maybe(top_of(w));
    return settle_snapshots(w);
}

int step_rename_base(struct walk *w)
{
    struct layer *base = top_of(w) - 1;
    char path[32];
    int r;

    if (w->n < 2 || open_top(w) < 0)
        return 1;
    snprintf(path, sizeof(path), "r%u", ++w->serial);
    note(w, "mv %s %s", base->path, path);
    if (rename(base->path, path) < 0)
        return wrong(w, "rename");
    strcpy(base->path, path);
    r = rebase_onto(w, base, true, chance(w, 3));
    return r ? wrong(w, "an unsafe rebase was refused") : 0;
}

/* ---- amend ------------------------------------------------------------- */

int step_amend(struct walk *w)
{
    struct layer *top = top_of(w);
    struct img_job job = random_job(w);
    const char *settings[2] = { NULL, NULL };
    char text[64];
    int r;

    if (!is_qcow2(top))
        return 1;
    switch (rng_below(&w->rng, 5)) {
    case 0:
        strcpy(text, "compat=0.10");
        break;
    case 1:
        strcpy(text, "compat=1.1");
        break;
    case 2:
        snprintf(text, sizeof(text), "lazy_refcounts=%s",
                 chance(w, 2) ? "on" : "off");
        break;
    default:
        snprintf(text, sizeof(text), "refcount_bits=%d",
                 1 << rng_below(&w->rng, 7));
        break;
    }
    /* With 2 MiB clusters QEMU takes minutes for another refcount width. */
    if (chance(w, 3) && (*text != 'r' || top->cluster <= 65536)) {
        if (close_top(w) < 0)
            return -1;
        if (run(w, "qemu-img|amend|-q|-t|unsafe|-f|qcow2|-o|%s|%s", text, top->path))
            refused(w);
        return 0;
    }
    note(w, "amend %s", text);
    settings[0] = text;
    if (open_top(w) < 0)
        return -1;
    r = img_amend(w->disk, settings, &job, &w->err);
    if (r == -EINVAL)
        r = -ENOTSUP;
    return outcome(w, "amend", r) < 0 ? -1 : 0;
}

/* ---- bitmaps ----------------------------------------------------------- */

static void edit_bitmap(struct layer *top, struct bitmap *b,
                        enum img_bitmap_verb verb)
{
    uint64_t bits = bitmap_bits(b, top->view.size);

    switch (verb) {
    case IMG_BITMAP_CLEAR:
        memset(b->must, 0, bits);
        memset(b->may, 0, bits);
        break;
    case IMG_BITMAP_REMOVE:
        bitmap_free(b);
        top->n_bitmaps--;
        memmove(b, b + 1, sizeof(*b) *
                (size_t)(top->bitmaps + top->n_bitmaps - b));
        memset(&top->bitmaps[top->n_bitmaps], 0, sizeof(*b));
        break;
    default:
        b->enabled = verb != IMG_BITMAP_DISABLE;
        break;
    }
}

int step_bitmap(struct walk *w)
{
    static const char *const words[] = { "add", "remove", "clear", "enable",
                                         "disable" };
    struct layer *top = top_of(w);
    enum img_bitmap_verb verb = (enum img_bitmap_verb)rng_below(&w->rng, 5);
    uint32_t granularity = 512u << rng_below(&w->rng, 9);
    struct bitmap *b = &top->bitmaps[top->n_bitmaps];
    int r;

    if (!is_qcow2(top) || top->old_version ||
        (verb == IMG_BITMAP_ADD ? top->n_bitmaps == MAX_BITMAPS
                                : top->n_bitmaps == 0))
        return 1;
    if (verb == IMG_BITMAP_ADD)
        snprintf(b->name, sizeof(b->name), "b%llu",
                 (unsigned long long)w->step);
    else
        b = &top->bitmaps[rng_below(&w->rng, (uint64_t)top->n_bitmaps)];
    if (chance(w, 3)) {
        char size[32] = "";

        if (verb == IMG_BITMAP_ADD)
            snprintf(size, sizeof(size), "-g|%u|", granularity);
        if (close_top(w) < 0)
            return -1;
        r = run(w, "qemu-img|bitmap|--%s|%s" UNSYNCED "%s|%s", words[verb], size,
                top->path, b->name);
        if (r)
            return wrong(w, "qemu-img bitmap");
    } else {
        note(w, "bitmap %s %s %u", words[verb], b->name, granularity);
        if (open_top(w) < 0)
            return -1;
        r = outcome(w, "bitmap", img_bitmap_edit(w->disk, b->name, verb,
                                                 granularity, &w->err));
        if (r)
            return r < 0 ? r : 0;
    }
    if (verb == IMG_BITMAP_ADD) {
        b->granularity = granularity;
        bitmap_fit(b, 0, top->view.size);
        edit_bitmap(top, b, IMG_BITMAP_CLEAR);
        top->n_bitmaps++;
    }
    edit_bitmap(top, b, verb == IMG_BITMAP_ADD ? IMG_BITMAP_ENABLE : verb);
    return 0;
}

int step_bitmap_merge(struct walk *w)
{
    struct layer *top = top_of(w);
    struct bitmap *from = &top->bitmaps[0], *to = &top->bitmaps[1];
    int r;

    if (top->n_bitmaps < 2)
        return 1;
    if (chance(w, 2)) {
        if (close_top(w) < 0)
            return -1;
        r = run(w, "qemu-img|bitmap|--merge|%s|" UNSYNCED "%s|%s", from->name,
                top->path, to->name);
        if (r)
            return wrong(w, "qemu-img bitmap --merge");
    } else {
        note(w, "merge %s into %s", from->name, to->name);
        if (open_top(w) < 0)
            return -1;
        if (img_bitmap_merge(w->disk, to->name, w->disk, from->name,
                             &w->err) < 0)
            return wrong(w, "merge: %s", w->err.message);
    }
    for (uint64_t i = 0; i < bitmap_bits(from, top->view.size); i++) {
        uint64_t start = i * from->granularity;
        uint64_t end = start + from->granularity;

        if (end > top->view.size)
            end = top->view.size;
        /* A coarse bit that must be set may stand for one fine bit only. */
        for (uint64_t k = start / to->granularity;
             k <= (end - 1) / to->granularity; k++) {
            to->may[k] |= from->may[i];
            to->must[k] |= from->must[i];
        }
    }
    return 0;
}

/* ---- repair ------------------------------------------------------------ */

static uint64_t read_be(int fd, uint64_t off, unsigned n)
{
    uint8_t b[8] = { 0 };
    uint64_t x = 0;

    if (pread(fd, b, n, (off_t)off) != (ssize_t)n)
        return 0;
    for (unsigned i = 0; i < n; i++)
        x = x << 8 | b[i];
    return x;
}

/* Some refcounts become something else. */
static int damage(struct walk *w)
{
    struct layer *top = top_of(w);
    int fd = open(top->path, O_RDWR | O_CLOEXEC);
    uint64_t table, block, bytes = top->refcount_bits / 8;
    uint64_t n = top->cluster / bytes, clusters;

    if (fd < 0)
        return wrong(w, "open");
    table = read_be(fd, 48, 8);
    clusters = (uint64_t)lseek(fd, 0, SEEK_END) / top->cluster;
    for (int i = 1 + (int)rng_below(&w->rng, 4); i > 0; i--) {
        uint64_t at = rng_below(&w->rng, clusters);
        uint8_t value[8] = { 0 };

        block = read_be(fd, table + at / n * 8, 8);
        if (!block)
            continue;
        value[bytes - 1] = (uint8_t)rng_below(&w->rng, 4);
        note(w, "refcount of cluster %llu = %u", (unsigned long long)at,
             value[bytes - 1]);
        if (pwrite(fd, value, bytes, (off_t)(block + at % n * bytes)) < 0)
            return wrong(w, "pwrite");
    }
    close(fd);
    return 0;
}

int step_repair(struct walk *w)
{
    struct img_check_options opts = IMG_CHECK_OPTIONS;
    struct img_job job = random_job(w);
    struct img_check_result result;
    struct img_disk *disk;
    int r;

    if (!is_qcow2(top_of(w)) || top_of(w)->refcount_bits < 8)
        return 1;
    if (close_top(w) < 0 || damage(w) < 0)
        return -1;
    /* QEMU 7.2 loses the snapshots of an image that has bitmaps when it
     * repairs: opening such an image writes the header before the snapshots
     * are read. */
    if (!(top_of(w)->n_snaps && top_of(w)->n_bitmaps) && chance(w, 4)) {
        if (run(w, "qemu-img|check|-q|-r|all|-f|qcow2|%s", top_of(w)->path))
            return wrong(w, "qemu-img check -r");
        return 0;
    }
    note(w, "repair");
    disk = open_view(w, top_of(w), NULL, IMG_OPEN_WRITE | IMG_OPEN_REPAIR);
    if (!disk)
        return -1;
    opts.repair = IMG_REPAIR_ALL;
    r = img_check(disk, &opts, &job, &result, &w->err);
    if (r < 0)
        wrong(w, "repair: %s", w->err.message);
    return img_close(disk, &w->err) < 0 ? wrong(w, "%s", w->err.message) : r;
}
