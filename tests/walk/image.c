/* Views, layers and their files. */
#include "walk.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- views ------------------------------------------------------------- */

static uint8_t *resize_array(uint8_t *p, uint64_t old, uint64_t size)
{
    uint8_t *new = must_alloc(size);

    memset(new, 0, size);
    if (p)
        memcpy(new, p, old < size ? old : size);
    free(p);
    return new;
}

void view_resize(struct view *view, uint64_t size)
{
    view->data = resize_array(view->data, view->size, size);
    view->own = resize_array(view->own, view->size, size);
    view->size = size;
}

void view_free(struct view *view)
{
    free(view->data);
    free(view->own);
    *view = (struct view) { 0 };
}

void view_copy(struct view *to, const struct view *from)
{
    view_free(to);
    view_resize(to, from->size);
    memcpy(to->data, from->data, from->size);
    memcpy(to->own, from->own, from->size);
}

/* ---- bitmaps ----------------------------------------------------------- */

uint64_t bitmap_bits(const struct bitmap *bitmap, uint64_t size)
{
    return (size + bitmap->granularity - 1) / bitmap->granularity;
}

/* What is new may be marked. */
void bitmap_fit(struct bitmap *bitmap, uint64_t old, uint64_t size)
{
    uint64_t had = bitmap_bits(bitmap, old);
    uint64_t has = bitmap_bits(bitmap, size);

    bitmap->must = resize_array(bitmap->must, had, has);
    bitmap->may = resize_array(bitmap->may, had, has);
    for (uint64_t i = had; i < has; i++)
        bitmap->may[i] = bitmap->enabled;
}

void bitmap_free(struct bitmap *bitmap)
{
    free(bitmap->must);
    free(bitmap->may);
    *bitmap = (struct bitmap) { 0 };
}

void mark_range(struct layer *layer, uint64_t off, uint64_t len)
{
    for (int i = 0; i < layer->n_bitmaps; i++) {
        struct bitmap *b = &layer->bitmaps[i];

        for (uint64_t k = off / b->granularity;
             b->enabled && k <= (off + len - 1) / b->granularity; k++)
            b->must[k] = b->may[k] = 1;
    }
}

void mark_maybe(struct layer *layer)
{
    for (int i = 0; i < layer->n_bitmaps; i++)
        if (layer->bitmaps[i].enabled)
            memset(layer->bitmaps[i].may, 1,
                   bitmap_bits(&layer->bitmaps[i], layer->view.size));
}

void put_bytes(struct layer *layer, uint64_t off, const uint8_t *data,
               uint64_t len)
{
    memcpy(layer->view.data + off, data, len);
    for (uint64_t i = 0; i < len; i++)
        layer->view.own[off + i] = data[i] != 0;
    mark_range(layer, off, len);
}

void mark_changes(struct layer *layer, const struct view *before)
{
    const struct view *now = &layer->view;

    mark_maybe(layer);
    for (int i = 0; i < layer->n_bitmaps; i++) {
        struct bitmap *b = &layer->bitmaps[i];

        if (!b->enabled)
            continue;
        for (uint64_t k = 0; k < now->size && k < before->size; k++)
            if (now->data[k] != before->data[k])
                b->must[k / b->granularity] = 1;
    }
}

/* ---- layers ------------------------------------------------------------ */

uint64_t random_size(struct walk *w)
{
    uint64_t size = (1 + rng_below(&w->rng, 4)) << 20;

    switch (rng_below(&w->rng, 4)) {
    case 0:
        return size;
    case 1:
        return size + 512 * (1 + rng_below(&w->rng, 7));
    default:
        return (1 << 18) + 512 * rng_below(&w->rng, 10000);
    }
}

struct layer *push_layer(struct walk *w, const char *format, uint64_t size)
{
    struct layer *layer = &w->layers[w->n++];

    memset(layer, 0, sizeof(*layer));
    snprintf(layer->path, sizeof(layer->path), "i%u", ++w->serial);
    snprintf(layer->format, sizeof(layer->format), "%s", format);
    view_resize(&layer->view, size);
    layer->touched = true;
    return layer;
}

void free_layer(struct layer *layer)
{
    view_free(&layer->view);
    for (int i = 0; i < layer->n_snaps; i++)
        view_free(&layer->snaps[i].view);
    for (int i = 0; i < layer->n_bitmaps; i++)
        bitmap_free(&layer->bitmaps[i]);
    memset(layer, 0, sizeof(*layer));
}

void drop_layer(struct walk *w, int i)
{
    struct layer *layer = &w->layers[i];

    unlink(layer->path);
    if (*layer->data_file)
        unlink(layer->data_file);
    free_layer(layer);
    memmove(layer, layer + 1, sizeof(*layer) * (size_t)(w->n - i - 1));
    w->n--;
}

/* "a=b,c=d"; notes the data file's name.  Valid until the next call. */
const char *random_settings(struct walk *w, struct layer *layer)
{
    static char text[256];
    static const char *const sizes[] = { "512", "1k", "4k", "4k", "16k",
                                         "64k", "64k", "2M" };
    unsigned n_sizes = chance(w, 8) ? 8 : 7;
    int n, bits;

    if (!is_qcow2(layer))
        return "";
    if (chance(w, 6)) {
        snprintf(text, sizeof(text), "compat=0.10,cluster_size=%s",
                 sizes[rng_below(&w->rng, n_sizes)]);
        return text;
    }
    bits = 1 << rng_below(&w->rng, 7);
    if (bits == 1 && chance(w, 2))
        bits = 16;
    if (chance(w, 4))
        n = sprintf(text, "extended_l2=on,cluster_size=%s",
                    sizes[4 + rng_below(&w->rng, n_sizes - 4)]);
    else
        n = sprintf(text, "cluster_size=%s",
                    sizes[rng_below(&w->rng, n_sizes)]);
    n += sprintf(text + n, ",refcount_bits=%d", bits);
    if (chance(w, 5))
        n += sprintf(text + n, ",lazy_refcounts=on");
    if (chance(w, 7)) {
        snprintf(layer->data_file, sizeof(layer->data_file), "d%u",
                 w->serial);
        n += sprintf(text + n, ",data_file=%s", layer->data_file);
        if (w->n < 2 && chance(w, 2))
            n += sprintf(text + n, ",data_file_raw=on");
    } else if (chance(w, 4)) {
        n += sprintf(text + n, ",compression_type=zstd");
    }
    if (w->n < 2 && chance(w, 8))
        sprintf(text + n, ",preallocation=%s",
                chance(w, 2) ? "metadata" : "falloc");
    return text;
}

void split_settings(char *text, const char **settings, int max)
{
    int n = 0;

    for (char *p = strtok(text, ","); p && n < max - 1; p = strtok(NULL, ","))
        settings[n++] = p;
    settings[n] = NULL;
}

static int create_by_peer(struct walk *w, const struct layer *layer,
                          const char *settings, const struct layer *below)
{
    char line[512];
    int n = sprintf(line, "qemu-img|create|-q|-f|%s|", layer->format);

    if (*settings)
        n += sprintf(line + n, "-o|%s|", settings);
    if (below)
        n += sprintf(line + n, "-b|%s|-F|%s|", below->path, below->format);
    sprintf(line + n, "%s|%llu", layer->path,
            (unsigned long long)layer->view.size);
    if (run(w, "%s", line))
        return wrong(w, "qemu-img create");
    return 0;
}

int create_file(struct walk *w, struct layer *layer, const char *settings,
                const struct layer *below, bool peer)
{
    struct img_create_options opts = IMG_CREATE_OPTIONS;
    const char *words[16];
    char text[256];

    if (peer)
        return create_by_peer(w, layer, settings, below);
    note(w, "create %s %s %s %llu over %s", layer->format, layer->path,
         settings, (unsigned long long)layer->view.size,
         below ? below->path : "-");
    snprintf(text, sizeof(text), "%s", settings);
    split_settings(text, words, 16);
    opts.format = layer->format;
    opts.disk_size = layer->view.size;
    opts.has_size = true;
    opts.settings = words;
    opts.flags = IMG_CREATE_NO_SYNC;
    if (below) {
        opts.backing = below->path;
        opts.backing_format = below->format;
    }
    if (img_create(layer->path, &opts, &w->err) < 0)
        return wrong(w, "create: %s", w->err.message);
    return 0;
}

/* ---- opening ----------------------------------------------------------- */

struct img_job random_job(struct walk *w)
{
    struct img_job job = IMG_JOB;

    job.threads = (unsigned)(1 + rng_below(&w->rng, 4));
    return job;
}

struct img_disk *open_view(struct walk *w, const struct layer *layer,
                           const char *snapshot, unsigned flags)
{
    static const uint64_t caches[] = { 0, 0, 1, 65536 };
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_disk *disk = NULL;

    opts.format = layer->format;
    opts.snapshot = snapshot;
    opts.flags = flags | IMG_OPEN_NO_SYNC;
    opts.cache_bytes = caches[rng_below(&w->rng, 4)];
    if (img_open(layer->path, &opts, &disk, &w->err) < 0) {
        wrong(w, "open %s: %s", layer->path, w->err.message);
        return NULL;
    }
    return disk;
}

int open_top(struct walk *w)
{
    if (!w->disk)
        w->disk = open_view(w, top_of(w), NULL, IMG_OPEN_WRITE |
                            (chance(w, 2) ? IMG_OPEN_UNMAP : 0));
    if (!w->disk)
        return -1;
    if (img_size(w->disk) != top_of(w)->view.size)
        return wrong(w, "the open disk has %llu bytes, not %llu",
                     (unsigned long long)img_size(w->disk),
                     (unsigned long long)top_of(w)->view.size);
    return 0;
}

int close_top(struct walk *w)
{
    struct img_disk *disk = w->disk;

    w->disk = NULL;
    if (disk && img_close(disk, &w->err) < 0)
        return wrong(w, "close: %s", w->err.message);
    return 0;
}

/* All of the disk into w->buf. */
int read_all(struct walk *w, struct img_disk *disk, uint64_t size)
{
    if (img_size(disk) != size)
        return wrong(w, "%s has %llu bytes, not %llu", img_path(disk),
                     (unsigned long long)img_size(disk),
                     (unsigned long long)size);
    memset(w->buf, 0xa5, size);
    if (img_pread(disk, w->buf, size, 0, &w->err) < 0)
        return wrong(w, "read: %s", w->err.message);
    return 0;
}

static uint64_t get_be(const uint8_t *p, int n)
{
    uint64_t x = 0;

    while (n--)
        x = x << 8 | *p++;
    return x;
}

/* From the header, as docs/interop/qcow2.txt of QEMU lays it out. */
int read_properties(struct walk *w, struct layer *layer)
{
    uint8_t header[112] = { 0 };
    int fd = open(layer->path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : pread(fd, header, sizeof(header), 0);

    if (fd >= 0)
        close(fd);
    if (n < 0)
        return wrong(w, "%s cannot be read", layer->path);
    if (!is_qcow2(layer))
        return 0;
    layer->old_version = get_be(header + 4, 4) == 2;
    layer->cluster = 1u << header[23];
    layer->refcount_bits = 16;
    layer->extended = layer->data_raw = false;
    if (!layer->old_version) {
        layer->refcount_bits = 1u << header[99];
        layer->extended = header[79] & 16;
        layer->data_raw = header[95] & 2;
    }
    return 0;
}
