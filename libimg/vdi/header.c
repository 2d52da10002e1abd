/* VDI: the header, its UUIDs, and describing them. */
#include "vdi/vdi.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/info.h"
#include "base/strings.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

static uint32_t get(const struct img_vdi *v, unsigned at)
{
    return img_get_le32(v->header + at);
}

bool img_vdi_is_vdi(const uint8_t *head, size_t len)
{
    return len >= VDI_HEADER_SIZE_AT &&
           img_get_le32(head + VDI_SIGNATURE_AT) == VDI_SIGNATURE;
}

static int check_version(struct img_layer *layer, const struct img_vdi *v,
                         struct img_error *err)
{
    uint32_t version = get(v, VDI_VERSION_AT);

    if (version >> 16 == 0)
        return img_fail(err, ENOTSUP, "%s: VDI version 0.%u is not supported "
                        "(VirtualBox converts such images when it clones "
                        "them)", layer->path, version & 0xffff);
    if (version >> 16 != 1 || (version & 0xffff) > 1)
        return img_fail(err, ENOTSUP, "%s: VDI version %u.%u is not known",
                        layer->path, version >> 16, version & 0xffff);
    return 0;
}

static int check_type(struct img_layer *layer, struct img_vdi *v,
                      struct img_error *err)
{
    uint32_t type = get(v, VDI_TYPE_AT);

    if (type == VDI_UNDO)
        return img_fail(err, ENOTSUP, "%s: VDI undo images are not supported",
                        layer->path);
    if (type < VDI_DYNAMIC || type > VDI_DIFF)
        return img_fail(err, ENOTSUP, "%s: VDI image type %u is not known",
                        layer->path, type);
    v->type = type;
    /* QEMU takes a link for a reason to refuse, VirtualBox ignores it in
     * base images. */
    if (type == VDI_DIFF && img_vdi_uuid_is_nil(v->header + VDI_PARENT_AT))
        return img_fail(err, IMG_ECORRUPT, "%s: header: a differencing image "
                        "without the UUID of its parent", layer->path);
    return 0;
}

static int check_geometry(struct img_layer *layer, struct img_vdi *v,
                          struct img_error *err)
{
    uint32_t sector = get(v, VDI_SECTOR_SIZE_AT);

    v->block_size = get(v, VDI_BLOCK_SIZE_AT);
    v->extra = get(v, VDI_BLOCK_EXTRA_AT);
    v->blocks = get(v, VDI_BLOCKS_AT);
    if (sector != 512)
        return img_fail(err, ENOTSUP, "%s: header: sectors of %u bytes, only "
                        "512 are known", layer->path, sector);
    if (!img_is_pow2(v->block_size) || v->block_size < 512 ||
        v->block_size > VDI_MAX_BLOCK)
        return img_fail(err, ENOTSUP, "%s: header: blocks of %u bytes, only "
                        "powers of two from 512 to %u are supported",
                        layer->path, v->block_size, VDI_MAX_BLOCK);
    if (v->extra % 512 || v->extra > v->block_size)
        return img_fail(err, ENOTSUP, "%s: header: %u extra bytes in each "
                        "block", layer->path, v->extra);
    if (v->blocks > VDI_MAX_BLOCKS)
        return img_fail(err, EFBIG, "%s: header: %u blocks, at most %u are "
                        "supported", layer->path, v->blocks, VDI_MAX_BLOCKS);
    v->block_bits = img_log2(v->block_size);
    v->stride = (uint64_t)v->block_size + v->extra;
    return 0;
}

static int check_places(struct img_layer *layer, struct img_vdi *v,
                        struct img_error *err)
{
    uint32_t len = get(v, VDI_HEADER_SIZE_AT);
    uint64_t map_len = (uint64_t)v->blocks * 4;

    v->map_off = get(v, VDI_MAP_OFF_AT);
    v->data_off = get(v, VDI_DATA_OFF_AT);
    if (len < VDI_HEADER_MIN)
        return img_fail(err, IMG_ECORRUPT, "%s: header: its length is %u, at "
                        "least %u is needed", layer->path, len,
                        VDI_HEADER_MIN);
    if (v->map_off < (uint64_t)VDI_HEADER_SIZE_AT + len)
        return img_fail(err, IMG_ECORRUPT, "%s: header: the block map at "
                        "0x%x lies in the header of %u bytes", layer->path,
                        v->map_off, len);
    if (v->data_off < v->map_off + map_len)
        return img_fail(err, IMG_ECORRUPT, "%s: header: the data at 0x%x lie "
                        "in the block map, %llu bytes at 0x%x", layer->path,
                        v->data_off, (unsigned long long)map_len, v->map_off);
    if (!img_inside(v->map_off, map_len, v->file_len))
        return img_fail(err, IMG_ECORRUPT, "%s: the block map, %llu bytes at "
                        "0x%x, goes beyond the end of the file (%llu)",
                        layer->path, (unsigned long long)map_len, v->map_off,
                        (unsigned long long)v->file_len);
    return 0;
}

int img_vdi_parse(struct img_layer *layer, struct img_vdi *v,
                  uint64_t *disk_size, struct img_error *err)
{
    uint64_t size = img_get_le64(v->header + VDI_SIZE_AT), room;
    int r;

    if (!img_vdi_is_vdi(v->header, sizeof v->header))
        return img_fail(err, EINVAL, "%s: not a VDI image (signature 0x%08x)",
                        layer->path, get(v, VDI_SIGNATURE_AT));
    r = check_version(layer, v, err);
    if (r == 0)
        r = check_type(layer, v, err);
    if (r == 0)
        r = check_geometry(layer, v, err);
    if (r == 0)
        r = check_places(layer, v, err);
    if (r < 0)
        return r;
    room = (uint64_t)v->blocks << v->block_bits;
    if (size > room)
        return img_fail(err, IMG_ECORRUPT, "%s: header: a disk of %llu bytes "
                        "in %u blocks of %u", layer->path,
                        (unsigned long long)size, v->blocks, v->block_size);
    /* VBoxManage convertfromraw makes disks of odd sizes; as in QEMU they end
     * with a whole sector. */
    *disk_size = img_round_up(size, 512);
    return 0;
}

/* ---- UUIDs: the first three fields are little-endian in the file -------- */

static const uint8_t text_order[VDI_UUID_LEN] = {
    3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15
};

bool img_vdi_uuid_is_nil(const uint8_t *uuid)
{
    static const uint8_t nil[VDI_UUID_LEN];

    return !memcmp(uuid, nil, sizeof nil);
}

static void set_version(uint8_t *uuid, unsigned version)
{
    uuid[7] = (uint8_t)((uuid[7] & 0x0f) | version << 4);
    uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
}

int img_vdi_uuid_random(uint8_t *uuid, struct img_error *err)
{
    if (getrandom(uuid, VDI_UUID_LEN, 0) != VDI_UUID_LEN)
        return img_fail_errno(err, errno, "random numbers for a UUID");
    set_version(uuid, 4);
    return 0;
}

/* RFC 9562 keeps version 8 for UUIDs of one's own making. */
void img_vdi_uuid_derive(const uint8_t *from, const char *word, uint8_t *uuid)
{
    uint64_t half[2];

    for (unsigned i = 0; i < 2; i++) {
        uint64_t h = UINT64_C(0xcbf29ce484222325) + i;

        for (unsigned k = 0; k < VDI_UUID_LEN; k++)
            h = (h ^ from[k]) * UINT64_C(0x100000001b3);
        for (const char *p = word; *p; p++)
            h = (h ^ (uint8_t)*p) * UINT64_C(0x100000001b3);
        /* FNV-1a leaves the upper bits weak for short input. */
        h ^= h >> 31;
        h *= UINT64_C(0x9e3779b97f4a7c15);
        h ^= h >> 29;
        half[i] = h;
    }
    img_put_le64(uuid, half[0]);
    img_put_le64(uuid + 8, half[1]);
    set_version(uuid, 8);
}

bool img_vdi_uuid_derived(const char *const *settings, enum vdi_type type,
                          uint64_t size, uint32_t block_size,
                          const uint8_t *parent, uint8_t *uuid)
{
    const char *text = img_setting(settings, "uuid");
    char word[256];

    if (!text || (*text && strcmp(text, "derived") &&
                  strncmp(text, "derived:", 8)))
        return false;
    text = strchr(text, ':');
    snprintf(word, sizeof word, "VDI %u, %llu bytes by %u: %s",
             (unsigned)type, (unsigned long long)size, block_size,
             text ? text + 1 : "");
    img_vdi_uuid_derive(parent, word, uuid);
    return true;
}

void img_vdi_uuid_print(const uint8_t *uuid, char text[VDI_UUID_TEXT])
{
    char *p = text;

    for (unsigned i = 0; i < VDI_UUID_LEN; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *p++ = '-';
        p += sprintf(p, "%02x", uuid[text_order[i]]);
    }
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

static bool uuid_parse(const char *text, uint8_t *uuid)
{
    bool braces = *text == '{';

    text += braces;
    for (unsigned i = 0; i < VDI_UUID_LEN; i++) {
        int high, low;

        if ((i == 4 || i == 6 || i == 8 || i == 10) && *text++ != '-')
            return false;
        high = hex_digit(text[0]);
        low = high < 0 ? -1 : hex_digit(text[1]);
        if (low < 0)
            return false;
        uuid[text_order[i]] = (uint8_t)(high << 4 | low);
        text += 2;
    }
    return braces ? text[0] == '}' && !text[1] : !text[0];
}

int img_vdi_uuid_setting(const char *const *settings, const char *key,
                         uint8_t *uuid, bool *given, struct img_error *err)
{
    const char *text = img_setting(settings, key);

    *given = text != NULL;
    if (!text)
        return 0;
    if (!uuid_parse(text, uuid))
        return img_fail(err, EINVAL, "Parameter '%s' expects a UUID such as "
                        "01234567-89ab-cdef-0123-456789abcdef, not '%s'",
                        key, text);
    if (img_vdi_uuid_is_nil(uuid))
        return img_fail(err, EINVAL, "Parameter '%s': the UUID of zeros "
                        "stands for none", key);
    return 0;
}

/* ---- describing --------------------------------------------------------- */

static const char *type_name(enum vdi_type type)
{
    switch (type) {
    case VDI_STATIC:
        return "static";
    case VDI_DIFF:
        return "differencing";
    default:
        return "dynamic";
    }
}

/* How many bytes the UTF-8 character at p has; 0 = it is none. */
static unsigned utf8_len(const uint8_t *p)
{
    unsigned n = *p < 0x80 ? 1 : *p >= 0xc2 && *p < 0xe0 ? 2 :
                 *p >> 4 == 14 ? 3 : *p >= 0xf0 && *p < 0xf5 ? 4 : 0;

    for (unsigned i = 1; i < n; i++)
        if (p[i] >> 6 != 2)
            return 0;
    if ((n == 3 && ((*p == 0xe0 && p[1] < 0xa0) ||
                    (*p == 0xed && p[1] > 0x9f))) ||
        (n == 4 && ((*p == 0xf0 && p[1] < 0x90) ||
                    (*p == 0xf4 && p[1] > 0x8f))))
        return 0;
    return n;
}

/* The comment as text that any printer takes. */
static void get_comment(const uint8_t *header, char text[VDI_COMMENT_LEN + 1])
{
    uint8_t *p = (uint8_t *)text;

    memcpy(text, header + VDI_COMMENT_AT, VDI_COMMENT_LEN);
    text[VDI_COMMENT_LEN] = 0;
    while (*p) {
        unsigned n = utf8_len(p);

        if (n == 0 || *p < 0x20 || *p == 0x7f) {
            *p = '?';
            n = 1;
        }
        p += n;
    }
}

static bool add_uuid(struct img_value *to, const char *name,
                     const uint8_t *uuid)
{
    char text[VDI_UUID_TEXT];

    img_vdi_uuid_print(uuid, text);
    return img_value_text(to, name, text);
}

int img_vdi_describe(struct img_layer *layer, struct img_info *info,
                     struct img_error *err)
{
    struct img_vdi *v = layer->state;
    struct img_value *s = img_info_specific(info);
    char comment[VDI_COMMENT_LEN + 1], version[16];
    uint8_t header[VDI_HEADER_BYTES];
    uint32_t n;
    bool ok;

    img_lock(&v->lock);
    memcpy(header, v->header, sizeof header);
    img_unlock(&v->lock);
    info->cluster_size = v->block_size;
    n = img_get_le32(header + VDI_VERSION_AT);
    snprintf(version, sizeof version, "%u.%u", n >> 16, n & 0xffff);
    get_comment(header, comment);
    ok = s && img_value_text(s, "image-type", type_name(v->type)) &&
         img_value_text(s, "version", version) &&
         add_uuid(s, "uuid", header + VDI_UUID_AT) &&
         add_uuid(s, "modification-uuid", header + VDI_MODIFIED_AT);
    if (ok && !img_vdi_uuid_is_nil(header + VDI_PARENT_AT))
        ok = add_uuid(s, "parent-uuid", header + VDI_PARENT_AT) &&
             add_uuid(s, "parent-modification-uuid",
                      header + VDI_PARENT_MODIFIED_AT);
    ok = ok && img_value_uint(s, "block-size", v->block_size) &&
         img_value_uint(s, "blocks", v->blocks) &&
         img_value_uint(s, "blocks-allocated",
                        img_get_le32(header + VDI_ALLOCATED_AT)) &&
         img_value_uint(s, "map-offset", v->map_off) &&
         img_value_uint(s, "data-offset", v->data_off);
    if (ok && comment[0])
        ok = img_value_text(s, "comment", comment);
    return ok ? 0 : img_fail_nomem(err);
}
