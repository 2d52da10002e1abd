/* Measuring: how large would the image be?  Counts the clusters that are not
 * zeros, by the map alone, and asks the target's format. */
#include "core/disk.h"
#include "base/team.h"
#include "ops/source.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/options.h"
#include "base/info.h"
#include "base/strings.h"

#include <string.h>

struct count {
    struct img_source source;   /* n == 0: an empty disk */
    int result;
    struct img_error *err;
};

/* Clusters of that size with data in them. */
static uint64_t data_clusters(void *opaque, uint32_t cluster)
{
    struct count *c = opaque;
    uint64_t off = 0, n = 0, counted = 0;   /* clusters below it are */

    if (!c->source.n || !cluster)
        return 0;
    while (off < c->source.size && c->result == 0) {
        struct img_stretch st;

        c->result = img_source_map(&c->source, off, &st, c->err);
        if (c->result < 0)
            return 0;
        if (!img_stretch_is_zero(&st)) {
            uint64_t first = IMG_MAX(off / cluster, counted);
            uint64_t end = img_div_up(IMG_MIN(st.end, c->source.size),
                                      cluster);

            if (end > first)
                n += end - first;
            counted = IMG_MAX(counted, end);
        }
        off = st.end;
    }
    return n;
}

/* What the bitmaps take in the target: their bits and tables in whole
 * clusters, and one directory (section "Bitmaps extension" of the qcow2
 * format description: 24 bytes and the name, to a multiple of 8). */
static uint64_t bitmap_bytes(const struct img_info *info, uint64_t size,
                             uint64_t cluster)
{
    uint64_t sum = 0, directory = 0;

    for (size_t i = 0; i < info->n_bitmaps; i++) {
        const struct img_bitmap_info *b = &info->bitmaps[i];
        uint64_t bits, clusters;

        if (b->inconsistent || !b->granularity)
            continue;
        bits = img_div_up(size, b->granularity);
        clusters = img_div_up(img_div_up(bits, 8), cluster);
        sum += clusters * cluster + img_round_up(clusters * 8, cluster);
        directory += img_round_up(24 + strlen(b->name), 8);
    }
    return sum + img_round_up(directory, cluster);
}

static bool is_old(const char *compat)
{
    return compat && (!strcmp(compat, "0.10") || !strcmp(compat, "v2"));
}

/* Old versions of a format have none. */
static bool has_room_for_bitmaps(const struct img_info *info)
{
    const struct img_value *v = info->specific;

    for (size_t i = 0; v && i < v->n_items; i++)
        if (v->items[i].name && !strcmp(v->items[i].name, "compat"))
            return !is_old(v->items[i].text);
    return true;
}

static int measure_bitmaps(struct img_disk *from,
                           const struct img_format *format,
                           const char *const *settings,
                           struct img_measure *result, struct img_error *err)
{
    struct img_layer *l = from->chain->layers[0];
    uint64_t cluster = 65536;
    struct img_info *info;
    int r;

    if (!l->format->bitmaps || !format->bitmaps ||
        is_old(img_setting(settings, "compat")))
        return 0;
    r = img_setting_size(settings, "cluster_size", &cluster, err);
    if (r < 0 || !img_is_pow2(cluster))
        return r;
    info = img_info_new();
    r = info ? l->format->describe(l, info, err) : img_fail_nomem(err);
    if (r == 0 && has_room_for_bitmaps(info)) {
        result->has_bitmaps = true;
        result->bitmaps = bitmap_bytes(info, l->size, cluster);
    }
    img_info_free(info);
    return r;
}

int img_measure(struct img_disk *from, const struct img_create_options *opts,
                struct img_measure *result, struct img_error *err)
{
    struct img_create_options known;
    const struct img_format *format;
    struct count c = { .err = err };
    uint64_t size;
    int r = img_options_take(&known, sizeof known, opts, err);

    memset(result, 0, sizeof *result);
    if (r < 0)
        return r;
    format = img_format_find(known.format ? known.format : "raw");
    if (!format)
        return img_fail(err, ENOTSUP, "Unknown format '%s'", known.format);
    if (!format->measure)
        return img_fail(err, ENOTSUP, "Format %s cannot be measured",
                        format->info.name);
    size = from && !known.has_size && !known.disk_size ? img_size(from)
                                                       : known.disk_size;
    if (from) {
        img_read_lock(&from->structure);
        r = img_source_join(&c.source, &from, 1, err);
    }
    if (r == 0)
        r = format->measure(&known, size, data_clusters, &c, result, err);
    if (c.result < 0)
        r = c.result;
    if (r == 0 && from)
        r = measure_bitmaps(from, format, known.settings, result, err);
    if (from)
        img_rw_unlock(&from->structure);
    img_source_free(&c.source);
    return r;
}
