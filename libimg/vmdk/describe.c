/* What `info` says of a VMDK image: qemu-img's keys, then the disk data
 * base. */
#include "vmdk/vmdk.h"
#include "base/info.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool add_text(struct vmdk_state *st, struct img_value *to,
                     const char *name, const char *key)
{
    char *v = NULL;
    bool ok = !st->text || img_vmdk_text_get(st->text, key, &v, NULL) == 0;

    ok = ok && (!v || img_value_text(to, name, v));
    free(v);
    return ok;
}

static bool add_extent(struct img_layer *layer, const struct vmdk_extent *x,
                       struct img_value *list)
{
    struct vmdk_state *st = layer->state;
    struct img_value *g = img_value_group(list, NULL);
    const char *type = "";
    bool ok;

    if (!g)
        return false;
    /* As QEMU: no type where the disk is one file. */
    if (x->line != SIZE_MAX && (layer->n_files > 1 || !x->sparse))
        type = img_vmdk_type_name(st->text->extents[x->line].type);
    ok = !x->sparse || !x->sparse->h.compressed ||
         img_value_bool(g, "compressed", true);
    ok = ok && img_value_uint(g, "virtual-size", x->len);
    if (x->kind != VMDK_ZERO && !layer->files[x->file])
        ok = ok && img_value_text(g, "filename",
                                  st->text->extents[x->line].name);
    else if (x->kind != VMDK_ZERO)
        ok = ok && img_value_text(g, "filename", layer->files[x->file]->path);
    if (x->sparse)
        ok = ok && img_value_uint(g, "cluster-size",
                                  UINT64_C(1) << x->sparse->grain_bits);
    return ok && img_value_text(g, "format", type);
}

/* All ddb entries, by their own names. */
static bool add_data_base(struct vmdk_state *st, struct img_value *specific)
{
    struct img_value *g = NULL;
    bool ok = true;

    for (size_t i = 0; st->text && i < st->text->n_lines && ok; i++) {
        const char *line = st->text->lines[i];
        size_t n = strcspn(line, " \t=");
        char *key;

        if (strncasecmp(line, "ddb.", 4) || !strchr(line, '='))
            continue;
        if (!g)
            g = img_value_group(specific, "ddb");
        key = strndup(line, n);
        ok = g && key && add_text(st, g, key + 4, key);
        free(key);
    }
    return ok;
}

static bool describe(struct img_layer *layer, struct img_info *info)
{
    struct vmdk_state *st = layer->state;
    struct img_value *v = img_info_specific(info), *list;
    bool ok = v != NULL;

    for (size_t i = 0; i < st->n_extents; i++)
        if (st->extents[i].sparse) {
            info->cluster_size = 1u << layer->cluster_bits;
            info->dirty |= st->extents[i].sparse->h.unclean;
        }
    ok = ok && img_value_uint(v, "cid", st->cid) &&
         img_value_uint(v, "parent-cid", st->parent_cid);
    if (ok && !st->text)
        ok = img_value_text(v, "create-type", "");
    ok = ok && add_text(st, v, "create-type", "createType");
    list = ok ? img_value_list(v, "extents") : NULL;
    for (size_t i = 0; i < st->n_extents && list; i++)
        if (!add_extent(layer, &st->extents[i], list))
            list = NULL;
    return list && add_text(st, v, "encoding", "encoding") &&
           add_text(st, v, "uuid", "ddb.uuid") && add_data_base(st, v);
}

int img_vmdk_describe(struct img_layer *layer, struct img_info *info,
                      struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    bool ok;

    img_lock(&st->sync_lock);       /* a first write changes the text */
    ok = describe(layer, info);
    img_unlock(&st->sync_lock);
    return ok ? 0 : img_fail_nomem(err);
}
