/* What a guest does to its disk, and its disk's size. */
#include "walk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static uint64_t pick_range(struct walk *w, uint64_t *len)
{
    struct layer *top = top_of(w);
    uint64_t size = top->view.size, off = rng_below(&w->rng, size);
    uint64_t unit = top->cluster ? top->cluster : 65536;

    switch (rng_below(&w->rng, 6)) {
    case 0:
        *len = unit * (1 + rng_below(&w->rng, 4));
        off -= off % unit;
        break;
    case 1:
        *len = 1 + rng_below(&w->rng, size);
        break;
    case 2:
        *len = 1 + rng_below(&w->rng, 2000);
        break;
    case 3:
        off -= off % 512;
        *len = 512 * (1 + rng_below(&w->rng, 300));
        break;
    case 4:
        off -= off % (unit / 32 < 512 ? 512 : unit / 32);
        *len = unit / 32 * (1 + rng_below(&w->rng, 40));
        break;
    default:
        *len = 1 + rng_below(&w->rng, 100000);
        break;
    }
    if (*len > size - off)
        *len = size - off;
    return off;
}

/* Each byte of the range is now what it was, or zero. */
static int adopt_discard(struct walk *w, struct img_disk *disk, uint64_t off,
                         uint64_t len)
{
    struct view *view = &top_of(w)->view;

    if (img_pread(disk, w->buf, len, off, &w->err) < 0)
        return wrong(w, "read after discard: %s", w->err.message);
    for (uint64_t i = 0; i < len; i++) {
        if (w->buf[i] == view->data[off + i])
            continue;
        if (w->buf[i])
            return wrong(w, "byte %llu is %02x after discard, was %02x",
                         (unsigned long long)(off + i), w->buf[i],
                         view->data[off + i]);
        view->data[off + i] = 0;
        mark_range(top_of(w), off + i, 1);
    }
    memset(view->own + off, 0, len);
    mark_maybe(top_of(w));
    return 0;
}

static void put_zeros(struct walk *w, uint64_t off, uint64_t len)
{
    memset(top_of(w)->view.data + off, 0, len);
    memset(top_of(w)->view.own + off, 0, len);
    mark_range(top_of(w), off, len);
}

static int write_compressed(struct walk *w)
{
    struct layer *top = top_of(w);
    uint64_t unit = top->cluster, off, len;
    int r;

    off = rng_below(&w->rng, top->view.size);
    off -= off % unit;
    len = unit < top->view.size - off ? unit : top->view.size - off;
    memset(w->buf, (int)rng_next(&w->rng), len);
    rng_fill(&w->rng, w->buf, rng_below(&w->rng, len / 4 + 1));
    note(w, "write -c %llu %llu", (unsigned long long)off,
         (unsigned long long)len);
    r = img_pwrite(w->disk, w->buf, len, off, IMG_COMPRESS, &w->err);
    if (r == -ENOTSUP && *top->data_file) {
        mark_maybe(top);
        return 0;
    }
    if (r < 0)
        return wrong(w, "compressed write: %s", w->err.message);
    put_bytes(top_of(w), off, w->buf, len);
    return 0;
}

static int write_once(struct walk *w)
{
    uint64_t len, off = pick_range(w, &len);
    unsigned kind = (unsigned)rng_below(&w->rng, 16);
    unsigned flags = chance(w, 2) ? IMG_MAY_UNMAP : 0;

    if (kind < 3 && is_qcow2(top_of(w)))
        return write_compressed(w);
    if (kind < 6) {
        note(w, "zero %llu %llu flags %u", (unsigned long long)off,
             (unsigned long long)len, flags);
        if (img_zero(w->disk, off, len, flags, &w->err) < 0)
            return wrong(w, "zero: %s", w->err.message);
        put_zeros(w, off, len);
        return 0;
    }
    if (kind < 8) {
        note(w, "discard %llu %llu", (unsigned long long)off,
             (unsigned long long)len);
        if (img_discard(w->disk, off, len, &w->err) < 0)
            return wrong(w, "discard: %s", w->err.message);
        return adopt_discard(w, w->disk, off, len);
    }
    note(w, "write %llu %llu", (unsigned long long)off,
         (unsigned long long)len);
    if (kind == 8)
        memset(w->buf, 0, len);
    else
        rng_fill(&w->rng, w->buf, len);
    if (img_pwrite(w->disk, w->buf, len, off, 0, &w->err) < 0)
        return wrong(w, "write: %s", w->err.message);
    put_bytes(top_of(w), off, w->buf, len);
    return 0;
}

int step_write(struct walk *w)
{
    int n = 1 + (int)rng_below(&w->rng, 6), r = open_top(w);

    while (n-- && r >= 0)
        r = write_once(w);
    return r;
}

int fill_layer(struct walk *w, struct layer *layer)
{
    struct img_disk *disk = open_view(w, layer, NULL, IMG_OPEN_WRITE);
    uint64_t size = layer->view.size;
    int r = disk ? 0 : -1;

    for (int i = 0; i < 6 && r >= 0; i++) {
        uint64_t off = rng_below(&w->rng, size);
        uint64_t len = 1 + rng_below(&w->rng, 200000);

        if (len > size - off)
            len = size - off;
        rng_fill(&w->rng, w->buf, len);
        r = img_pwrite(disk, w->buf, len, off, 0, &w->err);
        put_bytes(layer, off, w->buf, len);
    }
    if (disk && img_close(disk, &w->err) < 0)
        r = -1;
    return r < 0 ? wrong(w, "fill %s: %s", layer->path, w->err.message) : 0;
}

/* ---- by qemu-io -------------------------------------------------------- */

static int peer_write_once(struct walk *w, char *line)
{
    uint64_t len, off = pick_range(w, &len);
    int byte = 1 + (int)rng_below(&w->rng, 255);

    if (chance(w, 6)) {
        put_zeros(w, off, len);
        return sprintf(line, "-c|write -q -z %s%llu %llu|",
                       chance(w, 2) ? "-u " : "", (unsigned long long)off,
                       (unsigned long long)len);
    }
    memset(w->buf, byte, len);
    put_bytes(top_of(w), off, w->buf, len);
    return sprintf(line, "-c|write -q -P %d %llu %llu|", byte,
                   (unsigned long long)off, (unsigned long long)len);
}

/* QEMU refuses to pack a cluster that it finds allocated. */
static int peer_compressed(struct walk *w)
{
    struct layer *top = top_of(w);
    uint64_t off = rng_below(&w->rng, top->view.size), len;
    int byte = 1 + (int)rng_below(&w->rng, 255);

    off -= off % top->cluster;
    len = top->view.size - off;
    if (len > top->cluster)
        len = top->cluster;
    if (run(w, "qemu-io|-t|unsafe|-f|qcow2|-c|write -q -c -P %d %llu %llu|%s",
            byte, (unsigned long long)off, (unsigned long long)len,
            top->path)) {
        refused(w);
        mark_maybe(top);
        return 0;
    }
    memset(w->buf, byte, len);
    put_bytes(top, off, w->buf, len);
    return 0;
}

/* The last one may be a discard: what it leaves is seen afterwards. */
int step_peer_write(struct walk *w)
{
    uint64_t len = 0, off = 0;
    struct img_disk *disk;
    char line[2048];
    int n = 1 + (int)rng_below(&w->rng, 5), at = 0, r;

    if (close_top(w) < 0)
        return -1;
    if (is_qcow2(top_of(w)) && !*top_of(w)->data_file && chance(w, 5))
        return peer_compressed(w);
    while (n--)
        at += peer_write_once(w, line + at);
    if (chance(w, 4)) {
        off = pick_range(w, &len);
        at += sprintf(line + at, "-c|discard -q %llu %llu|",
                      (unsigned long long)off, (unsigned long long)len);
    }
    if (run(w, "qemu-io|-d|%s|-t|unsafe|-f|%s|%s%s",
            chance(w, 2) ? "unmap" : "ignore", top_of(w)->format, line,
            top_of(w)->path))
        return wrong(w, "qemu-io");
    if (!len)
        return 0;
    disk = open_view(w, top_of(w), NULL, 0);
    r = disk ? adopt_discard(w, disk, off, len) : -1;
    img_close(disk, NULL);
    return r;
}

/* ---- size -------------------------------------------------------------- */

int step_resize(struct walk *w)
{
    struct layer *top = top_of(w);
    struct img_job job = random_job(w);
    enum img_prealloc prealloc = IMG_PREALLOC_OFF;
    uint64_t size = random_size(w), old = top->view.size;
    int r;

    if (top->format[0] == 'v')
        return 1;
    if (size > old && chance(w, 4))
        prealloc = is_qcow2(top) && chance(w, 2) ? IMG_PREALLOC_METADATA
                                                 : IMG_PREALLOC_FULL;
    if (chance(w, 4)) {
        if (close_top(w) < 0)
            return -1;
        if (is_qcow2(top))
            r = run(w, "qemu-img|resize|-q|--shrink|" UNSYNCED "%s|%llu",
                    top->path, (unsigned long long)size);
        else
            r = run(w, "qemu-img|resize|-q|--shrink|-f|raw|%s|%llu",
                    top->path, (unsigned long long)size);
        if (r) {
            refused(w);
            return 0;
        }
    } else {
        note(w, "resize %llu prealloc %d", (unsigned long long)size, prealloc);
        if (open_top(w) < 0)
            return -1;
        r = outcome(w, "resize", img_resize(w->disk, size, true, prealloc,
                                            &job, &w->err));
        if (r)
            return r < 0 ? r : 0;
    }
    view_resize(&top->view, size);
    for (int i = 0; i < top->n_bitmaps; i++) {
        struct bitmap *b = &top->bitmaps[i];

        bitmap_fit(b, old, size);
        /* What was behind the new end has been cleared. */
        b->may[bitmap_bits(b, size) - 1] |= b->enabled;
    }
    return 0;
}
