/* Changing the descriptor of an open image: content ID, parent, entries of
 * the disk data base.
 *
 * When writing it (store.c) fails the one in memory is as it was.
 */
#include "vmdk/vmdk.h"
#include "base/strings.h"

#include <stdlib.h>
#include <string.h>

/* A content ID that no copy of this image can have come to have: an overlay
 * knows its parent by it.  Only the digits in mask are other ones. */
static int another_cid(const struct vmdk_state *st, uint32_t mask,
                       uint32_t *cid, struct img_error *err)
{
    int r;

    do {
        r = img_vmdk_random_cid(cid, err);
        *cid = (*cid & mask) | (st->cid & ~mask);
    } while (r == 0 && *cid == st->cid);
    return r;
}

/* Where the ID lies across two sectors, or is shorter than 8 digits, so that
 * all behind it would move, one is wanted that changes one sector.  12 bits
 * are enough to be another one. */
static int change_cid(const struct vmdk_state *st, struct vmdk_text **text,
                      uint32_t *cid, struct img_error *err)
{
    size_t digits = 0;
    uint32_t all, low, masks[5];
    bool near = false;
    int r = 0;

    img_vmdk_text_look(st->text, "CID", &digits);
    all = digits < 8 ? (UINT32_C(1) << 4 * digits) - 1 : UINT32_MAX;
    low = (UINT32_C(1) << 4 * (digits / 2)) - 1;
    masks[0] = masks[4] = UINT32_MAX;
    masks[1] = all;
    masks[2] = all & ~low;
    masks[3] = low;
    *text = NULL;
    for (size_t i = 0; i < IMG_COUNT(masks) && r == 0 && !near; i++) {
        if (__builtin_popcount(masks[i]) < 12)
            continue;
        img_vmdk_text_free(*text);
        *text = NULL;
        r = another_cid(st, masks[i], cid, err);
        if (r == 0)
            r = img_vmdk_text_copy(st->text, text, err);
        if (r == 0)
            r = img_vmdk_text_set_id(*text, "CID", *cid, err);
        if (r == 0)
            r = img_vmdk_text_is_near(st->text, *text, &near, err);
    }
    if (r) {
        img_vmdk_text_free(*text);
        *text = NULL;
    }
    return r;
}

int img_vmdk_touch(struct img_layer *layer, uint64_t off, uint64_t len,
                   struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_text *text;
    uint32_t cid;
    bool done;
    int r = 0;

    img_lock(&st->sync_lock);
    if (!st->touched && st->text &&
        img_vmdk_text_get_id(st->text, "CID", &cid)) {
        r = change_cid(st, &text, &cid, err);
        /* Durable before any byte of what overlays rest on is another. */
        if (r == 0) {
            r = img_vmdk_text_store(layer, text, VMDK_STAY, &done, err);
            st->cid = done ? cid : st->cid;
        }
    }
    st->touched |= r == 0;
    img_unlock(&st->sync_lock);
    return r;
}

int img_vmdk_read_cid(struct img_file *file, uint32_t *cid,
                      struct img_error *err)
{
    struct vmdk_text *text;
    struct vmdk_header h = { 0 };
    uint64_t len, off = 0;
    uint8_t head[VMDK_SECTOR] = { 0 };
    enum vmdk_kind kind;
    char *buf;
    int r;

    r = img_file_size(file, &len, err);
    if (r == 0)
        r = img_file_pread(file, head, sizeof head, 0, err);
    if (r == 0 && img_vmdk_is_sparse(head, sizeof head, &kind)) {
        r = img_vmdk_header_read(file, len, false, &h, err);
        if (r == 0 && (kind != VMDK_SPARSE || !h.text_off ||
                       h.text_off > len / VMDK_SECTOR))
            r = img_fail(err, EINVAL, "%s: has no descriptor", file->path);
        off = h.text_off * VMDK_SECTOR;
        len = h.text_len * VMDK_SECTOR;
    }
    if (r)
        return r;
    if (len > VMDK_TEXT_MAX)
        return img_fail(err, EINVAL, "%s: not a VMDK image", file->path);
    buf = calloc(1, (size_t)len + 1);
    if (!buf)
        return img_fail_nomem(err);
    r = img_file_pread(file, buf, (size_t)len, off, err);
    if (r == 0)
        r = img_vmdk_text_parse(file->path, buf, (size_t)len, &text, err);
    free(buf);
    if (r)
        return r;
    if (!img_vmdk_text_get_id(text, "CID", cid))
        r = img_fail(err, IMG_ECORRUPT, "%s: the descriptor has no CID",
                     file->path);
    img_vmdk_text_free(text);
    return r;
}

static int base_cid(struct img_layer *layer, const char *name,
                    const struct img_layer *base, uint32_t *cid,
                    struct img_error *err)
{
    struct img_file *file;
    int r;

    if (base && base->format != layer->format)
        return img_fail(err, EINVAL, "%s: the backing file of a VMDK image "
                        "must be one too", base->path);
    if (base) {
        *cid = ((const struct vmdk_state *)base->state)->cid;
        return 0;
    }
    r = layer->open_file(layer, name, false, &file, err);
    if (r == 0) {
        r = img_vmdk_read_cid(file, cid, err);
        img_file_close(file);
    }
    return r ? img_fail_prefix(err, r, "%s: the content ID of the backing "
                               "file is needed", layer->path) : 0;
}

/* The descriptor with another parent; name NULL = none. */
static int name_parent(const struct vmdk_state *st, const char *name,
                       uint32_t cid, struct vmdk_text **text,
                       struct img_error *err)
{
    int r = img_vmdk_text_copy(st->text, text, err);

    if (r == 0)
        r = img_vmdk_text_set_id(*text, "parentCID", cid, err);
    if (r == 0)
        r = img_vmdk_text_set(*text, "parentFileNameHint", name, err);
    return r;
}

int img_vmdk_set_backing(struct img_layer *layer, const char *name,
                         const char *fmt, const struct img_layer *base,
                         struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_text *text = NULL;
    char *backing = NULL, *backing_format = NULL;
    uint32_t cid = VMDK_NO_PARENT;
    bool done = false;
    int r = 0;

    if (name && !*name)
        name = NULL;
    if (!st->text)
        return img_fail(err, ENOTSUP, "%s: has no descriptor", layer->path);
    if (name && fmt && strcmp(fmt, "vmdk"))
        return img_fail(err, EINVAL, "%s: the backing file of a VMDK image "
                        "must be one too, not %s", layer->path, fmt);
    for (size_t i = 0; i < st->n_extents && name; i++)
        if (!st->extents[i].sparse)
            return img_fail(err, ENOTSUP, "%s: flat extents hide what is "
                            "below", layer->path);
    if (name) {
        r = base_cid(layer, name, base, &cid, err);
        backing = strdup(name);
        backing_format = strdup("vmdk");
        if (r == 0 && (!backing || !backing_format))
            r = img_fail_nomem(err);
    }
    if (r == 0)
        r = name_parent(st, name, cid, &text, err);
    if (r == 0)
        r = img_vmdk_text_store(layer, text, VMDK_MAY_MOVE, &done, err);
    else
        img_vmdk_text_free(text);
    if (!done) {
        free(backing);
        free(backing_format);
        return r;
    }
    free(layer->backing);
    free(layer->backing_format);
    layer->backing = backing;
    layer->backing_format = backing_format;
    st->parent_cid = cid;
    st->given_below = false;
    return r;
}

static int amend_id(struct vmdk_text *text, const char *key,
                    const char *value, struct img_error *err)
{
    uint32_t id;

    if (!img_vmdk_id(value, strlen(value), &id))
        return img_fail(err, EINVAL, "%s is up to 8 hexadecimal digits, not "
                        "'%s'", key, value);
    return img_vmdk_text_set_id(text, key, id, err);
}

/* VMware's entry, and VirtualBox's where the image has that. */
static int amend_uuid(struct vmdk_text *text, const char *value,
                      struct img_error *err)
{
    char vmware[48], plain[40];
    size_t n = 0, len;
    int r;

    if (!img_vmdk_uuid(value, vmware))
        return img_fail(err, EINVAL, "uuid is 32 hexadecimal digits, not "
                        "'%s'", value);
    r = img_vmdk_text_set(text, "ddb.uuid", vmware, err);
    if (r || !img_vmdk_text_look(text, "ddb.uuid.image", &len))
        return r;
    for (const char *p = vmware; *p; p++) {
        if (*p == ' ' || *p == '-')
            continue;
        plain[n++] = *p;
        if (n == 8 || n == 13 || n == 18 || n == 23)
            plain[n++] = '-';
    }
    plain[n] = 0;
    return img_vmdk_text_set(text, "ddb.uuid.image", plain, err);
}

static int amend_one(struct vmdk_text *text, const char *setting,
                     struct img_error *err)
{
    static const struct { const char *name, *key; } entries[] = {
        { "adapter_type", "ddb.adapterType" },
        { "hwversion", "ddb.virtualHWVersion" },
        { "toolsversion", "ddb.toolsVersion" },
    };
    const char *value = strchr(setting, '=');
    size_t len = value ? (size_t)(value - setting) : strlen(setting);

    value = value ? value + 1 : "";
    for (size_t i = 0; i < IMG_COUNT(entries); i++)
        if (strlen(entries[i].name) == len &&
            !strncmp(entries[i].name, setting, len))
            return img_vmdk_text_set(text, entries[i].key, value, err);
    if (len == 4 && !strncmp(setting, "uuid", len))
        return amend_uuid(text, value, err);
    if (len == 3 && !strncmp(setting, "ddb", len))
        return img_vmdk_text_set_ddb(text, value, err);
    if (len == 3 && !strncmp(setting, "cid", len))
        return amend_id(text, "CID", value, err);
    if (len == 10 && !strncmp(setting, "parent_cid", len))
        return amend_id(text, "parentCID", value, err);
    return img_fail(err, ENOTSUP, "VMDK option '%.*s' cannot be changed "
                    "afterwards", (int)len, setting);
}

int img_vmdk_amend(struct img_layer *layer, const char *const *settings,
                   const struct img_job *job, struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct vmdk_text *text;
    bool done = false;
    int r;

    if (!st->text)
        return img_fail(err, ENOTSUP, "%s: has no descriptor", layer->path);
    r = img_vmdk_text_copy(st->text, &text, err);
    for (; settings && *settings && r == 0; settings++)
        r = amend_one(text, *settings, err);
    if (r == 0)
        r = img_vmdk_text_store(layer, text, VMDK_MAY_MOVE, &done, err);
    else
        img_vmdk_text_free(text);
    if (done) {
        img_vmdk_text_get_id(st->text, "CID", &st->cid);
        img_vmdk_text_get_id(st->text, "parentCID", &st->parent_cid);
    }
    return r ? r : img_vmdk_sync(layer, err);
}
