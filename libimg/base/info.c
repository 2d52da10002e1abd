#include "base/info.h"
#include "base/error.h"

#include <stdlib.h>
#include <string.h>

struct img_info *img_info_new(void)
{
    return calloc(1, sizeof(struct img_info));
}

int img_info_text(const char **field, const char *text, struct img_error *err)
{
    if (!text)
        return 0;
    *field = strdup(text);
    return *field ? 0 : img_fail_nomem(err);
}

static struct img_value *append(struct img_value *to, const char *name,
                                enum img_value_type type)
{
    struct img_value *items, *v;

    if (!to)
        return NULL;
    items = realloc(to->items, (to->n_items + 1) * sizeof *items);
    if (!items)
        return NULL;
    to->items = items;
    v = &items[to->n_items];
    memset(v, 0, sizeof *v);
    v->type = type;
    if (name) {
        v->name = strdup(name);
        if (!v->name)
            return NULL;
    }
    to->n_items++;
    return v;
}

struct img_value *img_value_bool(struct img_value *to, const char *name,
                                 bool flag)
{
    struct img_value *v = append(to, name, IMG_VALUE_BOOL);

    if (v)
        v->flag = flag;
    return v;
}

struct img_value *img_value_uint(struct img_value *to, const char *name,
                                 uint64_t number)
{
    struct img_value *v = append(to, name, IMG_VALUE_UINT);

    if (v)
        v->number = number;
    return v;
}

struct img_value *img_value_text(struct img_value *to, const char *name,
                                 const char *text)
{
    struct img_value *v = append(to, name, IMG_VALUE_STRING);

    if (v)
        v->text = strdup(text);
    return v && v->text ? v : NULL;
}

struct img_value *img_value_list(struct img_value *to, const char *name)
{
    return append(to, name, IMG_VALUE_LIST);
}

struct img_value *img_value_group(struct img_value *to, const char *name)
{
    return append(to, name, IMG_VALUE_GROUP);
}

struct img_value *img_info_specific(struct img_info *info)
{
    if (!info->specific) {
        info->specific = calloc(1, sizeof *info->specific);
        if (info->specific)
            info->specific->type = IMG_VALUE_GROUP;
    }
    return info->specific;
}

struct img_snapshot_info *img_info_add_snapshot(struct img_info *info)
{
    struct img_snapshot_info *list, *s;

    list = realloc(info->snapshots, (info->n_snapshots + 1) * sizeof *list);
    if (!list)
        return NULL;
    info->snapshots = list;
    s = &list[info->n_snapshots++];
    memset(s, 0, sizeof *s);
    s->icount = UINT64_MAX;
    return s;
}

struct img_bitmap_info *img_info_add_bitmap(struct img_info *info)
{
    struct img_bitmap_info *list, *b;

    list = realloc(info->bitmaps, (info->n_bitmaps + 1) * sizeof *list);
    if (!list)
        return NULL;
    info->bitmaps = list;
    b = &list[info->n_bitmaps++];
    memset(b, 0, sizeof *b);
    return b;
}

static void free_value(struct img_value *v)
{
    for (size_t i = 0; i < v->n_items; i++)
        free_value(&v->items[i]);
    free(v->items);
    free((char *)v->name);
    free((char *)v->text);
}

void img_info_free(struct img_info *info)
{
    while (info) {
        struct img_info *below = info->below;

        for (size_t i = 0; i < info->n_snapshots; i++) {
            free((char *)info->snapshots[i].id);
            free((char *)info->snapshots[i].name);
        }
        for (size_t i = 0; i < info->n_bitmaps; i++)
            free((char *)info->bitmaps[i].name);
        if (info->specific)
            free_value(info->specific);
        free(info->specific);
        free(info->snapshots);
        free(info->bitmaps);
        free((char *)info->path);
        free((char *)info->format);
        free((char *)info->backing);
        free((char *)info->backing_path);
        free((char *)info->backing_format);
        free(info);
        info = below;
    }
}
