/* VDI: new images.
 *
 * They are laid out as VirtualBox does it: the map at 1 MiB, the blocks at the
 * next whole MiB behind it, so that blocks are aligned in the file too.
 */
#include "vdi/vdi.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/strings.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

enum { MIB = 1 << 20, FILL = 64 * 1024 };

const struct img_option_info img_vdi_options[] = {
    { "backing_file", "str", "File name of a base image, a VDI image in the "
      "same folder", 0 },
    { "backing_fmt", "str", "Format of the backing image: vdi", 0 },
    { "block_size", "size", "Bytes of a block (a power of two, default 1M, "
      "the only one that QEMU takes)", 0 },
    { "compact", "on|off", "Give blocks full of zeros back (amend only)",
      IMG_OPTION_AMEND },
    { "modification_uuid", "str", "UUID of the last modification (amend "
      "only)", IMG_OPTION_AMEND },
    { "parent_modification_uuid", "str", "Modification UUID of the parent",
      IMG_OPTION_AMEND },
    { "parent_uuid", "str", "UUID of the parent; makes a differencing image",
      IMG_OPTION_AMEND },
    { "size", "size", "Virtual disk size", 0 },
    { "static", "on|off", "VDI static (pre-allocated) image", 0 },
    { "uuid", "str", "UUID of the image, or derived[:WORD]; then the same "
      "input makes the same file", IMG_OPTION_AMEND },
    { NULL, NULL, NULL, 0 }
};

/* What is to be made. */
struct plan {
    enum vdi_type type;
    uint64_t size;              /* rounded up to a sector */
    uint32_t block_size, blocks, data_off;
    uint8_t uuid[VDI_UUID_LEN], modified[VDI_UUID_LEN];
    uint8_t parent[VDI_UUID_LEN], parent_modified[VDI_UUID_LEN];
};

static int plan_shape(const struct img_create_options *o, uint64_t size,
                      struct plan *p, struct img_error *err)
{
    uint64_t block = MIB, blocks;
    bool is_static = false;
    int r = img_setting_bool(o->settings, "static", &is_static, err);

    if (r == 0)
        r = img_setting_size(o->settings, "block_size", &block, err);
    if (r < 0)
        return r;
    if (!img_is_pow2(block) || block < 512 || block > VDI_MAX_BLOCK)
        return img_fail(err, EINVAL, "block_size must be a power of two from "
                        "512 to 64M");
    p->type = is_static ? VDI_STATIC : VDI_DYNAMIC;
    p->size = size > UINT64_MAX - 511 ? UINT64_MAX : img_round_up(size, 512);
    blocks = img_div_up(p->size, block);
    if (blocks > VDI_MAX_BLOCKS)
        return img_fail(err, EFBIG, "A VDI image of %llu bytes would have "
                        "%llu blocks, more than %u; use a larger block_size",
                        (unsigned long long)size, (unsigned long long)blocks,
                        VDI_MAX_BLOCKS);
    p->block_size = (uint32_t)block;
    p->blocks = (uint32_t)blocks;
    p->data_off = (uint32_t)img_round_up(MIB + blocks * 4, MIB);
    return 0;
}

static int plan_parent(const struct img_build *b, struct plan *p,
                       struct img_error *err)
{
    const struct img_create_options *o = b->opts;
    const struct img_vdi *base = b->backing ? b->backing->state : NULL;
    bool given = false, modified = false;
    int r = img_vdi_uuid_setting(o->settings, "parent_uuid", p->parent,
                                 &given, err);

    if (r == 0)
        r = img_vdi_uuid_setting(o->settings, "parent_modification_uuid",
                                 p->parent_modified, &modified, err);
    if (r < 0)
        return r;
    if (modified && !given)
        return img_fail(err, EINVAL, "parent_modification_uuid needs "
                        "parent_uuid");
    if (o->backing) {
        if (strcmp(o->backing_format, "vdi"))
            return img_fail(err, ENOTSUP, "Only a VDI image can be below a "
                            "VDI image, not %s", o->backing_format);
        r = img_vdi_beside(b->path, o->backing, err);
        if (r < 0)
            return r;
        if (!b->backing && !given)
            return img_fail(err, EINVAL, "Without looking into '%s' its UUID "
                            "must be given as parent_uuid", o->backing);
    }
    if (base && given && memcmp(p->parent, base->header + VDI_UUID_AT,
                                VDI_UUID_LEN))
        return img_fail(err, EINVAL, "parent_uuid is not the UUID of '%s', so "
                        "that the image would not find it", o->backing);
    if (base && !given)
        memcpy(p->parent, base->header + VDI_UUID_AT, VDI_UUID_LEN);
    if (base && !modified)
        memcpy(p->parent_modified, base->header + VDI_MODIFIED_AT,
               VDI_UUID_LEN);
    given |= base != NULL;
    if (given && p->type == VDI_STATIC)
        return img_fail(err, EINVAL, "A static VDI image cannot have a "
                        "backing file");
    if (given)
        p->type = VDI_DIFF;
    return 0;
}

static int plan_uuids(const struct img_create_options *o, struct plan *p,
                      struct img_error *err)
{
    bool given = img_vdi_uuid_derived(o->settings, p->type, p->size,
                                      p->block_size, p->parent, p->uuid);
    int r = 0;

    if (!given)
        r = img_vdi_uuid_setting(o->settings, "uuid", p->uuid, &given, err);
    if (r < 0)
        return r;
    if (given) {
        img_vdi_uuid_derive(p->uuid, "created", p->modified);
        return 0;
    }
    r = img_vdi_uuid_random(p->uuid, err);
    return r < 0 ? r : img_vdi_uuid_random(p->modified, err);
}

static int make_plan(const struct img_build *b, struct plan *p,
                     struct img_error *err)
{
    const struct img_create_options *o = b->opts;
    int r = img_settings_check(o->settings, img_vdi_options, "vdi", err);

    *p = (struct plan){ .type = VDI_DYNAMIC };
    if (r == 0 && (img_setting(o->settings, "compact") ||
                   img_setting(o->settings, "modification_uuid")))
        r = img_fail(err, EINVAL, "Options compact and modification_uuid are "
                     "for existing images");
    if (r == 0)
        r = plan_shape(o, o->disk_size, p, err);
    if (r == 0)
        r = plan_parent(b, p, err);
    return r < 0 ? r : plan_uuids(o, p, err);
}

static void make_header(const struct plan *p, uint8_t h[VDI_HEADER_BYTES])
{
    static const char text[] = "<<< Oracle VM VirtualBox Disk Image >>>\n";

    memset(h, 0, VDI_HEADER_BYTES);
    memcpy(h, text, sizeof text);
    img_put_le32(h + VDI_SIGNATURE_AT, VDI_SIGNATURE);
    img_put_le32(h + VDI_VERSION_AT, VDI_VERSION);
    img_put_le32(h + VDI_HEADER_SIZE_AT, VDI_HEADER_LEN);
    img_put_le32(h + VDI_TYPE_AT, p->type);
    img_put_le32(h + VDI_MAP_OFF_AT, MIB);
    img_put_le32(h + VDI_DATA_OFF_AT, p->data_off);
    img_put_le32(h + VDI_SECTOR_SIZE_AT, 512);
    img_put_le64(h + VDI_SIZE_AT, p->size);
    img_put_le32(h + VDI_BLOCK_SIZE_AT, p->block_size);
    img_put_le32(h + VDI_BLOCKS_AT, p->blocks);
    img_put_le32(h + VDI_ALLOCATED_AT,
                 p->type == VDI_STATIC ? p->blocks : 0);
    memcpy(h + VDI_UUID_AT, p->uuid, VDI_UUID_LEN);
    memcpy(h + VDI_MODIFIED_AT, p->modified, VDI_UUID_LEN);
    memcpy(h + VDI_PARENT_AT, p->parent, VDI_UUID_LEN);
    memcpy(h + VDI_PARENT_MODIFIED_AT, p->parent_modified, VDI_UUID_LEN);
    img_put_le32(h + VDI_LCHS_SECTOR_SIZE_AT, 512);
}

static int write_map(struct img_file *file, const struct plan *p,
                     struct img_error *err)
{
    img_autofree uint8_t *buf = malloc(FILL);
    uint64_t len = (uint64_t)p->blocks * 4, done = 0;
    uint32_t next = 0;
    int r = 0;

    if (!buf)
        return img_fail_nomem(err);
    memset(buf, 0xff, FILL);    /* VDI_FREE */
    while (done < len && r == 0) {
        size_t n = (size_t)IMG_MIN(len - done, (uint64_t)FILL);

        for (size_t i = 0; p->type == VDI_STATIC && i < n; i += 4)
            img_put_le32(buf + i, next++);
        r = img_file_pwrite(file, buf, n, MIB + done, err);
        done += n;
    }
    return r;
}

static int make_room(struct img_file *file, const struct plan *p,
                     struct img_error *err)
{
    uint64_t blocks = (uint64_t)p->blocks * p->block_size, size;
    uint64_t len = p->data_off + (p->type == VDI_STATIC ? blocks : 0);
    int r;

    if (!file->is_device)
        return img_file_truncate(file, len, err);
    r = img_file_size(file, &size, err);
    if (r == 0 && size < len)
        r = img_fail(err, ENOSPC, "%s: the device has %llu bytes, the image "
                     "needs %llu", file->path, (unsigned long long)size,
                     (unsigned long long)len);
    /* A device may hold old bytes. */
    if (r == 0 && p->type == VDI_STATIC)
        r = img_file_zero(file, p->data_off, blocks, IMG_FILE_MAY_UNMAP, err);
    return r;
}

int img_vdi_create(struct img_build *build, struct img_error *err)
{
    uint8_t header[VDI_HEADER_BYTES];
    struct plan p;
    int r = make_plan(build, &p, err);

    if (r == 0)
        r = make_room(build->file, &p, err);
    if (r == 0)
        r = write_map(build->file, &p, err);
    if (r < 0)
        return r;
    make_header(&p, header);
    return img_file_pwrite(build->file, header, sizeof header, 0, err);
}

int img_vdi_defaults(const struct img_create_options *opts,
                     struct img_strings *out, struct img_error *err)
{
    bool is_static = false;
    int r = img_setting_bool(opts->settings, "static", &is_static, err);

    if (r == 0)
        r = img_strings_addf(out, err, "static=%s", is_static ? "on" : "off");
    for (const struct img_option_info *o = img_vdi_options;
         r == 0 && o->name; o++) {
        const char *value = img_setting(opts->settings, o->name);

        if (value && strcmp(o->name, "static") && strcmp(o->name, "size") &&
            strncmp(o->name, "backing_", 8))
            r = img_strings_addf(out, err, "%s=%s", o->name, value);
    }
    return r;
}

int img_vdi_measure(const struct img_create_options *opts, uint64_t size,
                    uint64_t data_clusters_of(void *, uint32_t), void *opaque,
                    struct img_measure *result, struct img_error *err)
{
    struct plan p;
    uint64_t data;
    int r = plan_shape(opts, size, &p, err);

    if (r < 0)
        return r;
    data = p.type == VDI_STATIC ? p.blocks
                                : data_clusters_of(opaque, p.block_size);
    result->required = p.data_off + data * p.block_size;
    result->fully_allocated = p.data_off +
                              (uint64_t)p.blocks * p.block_size;
    return 0;
}
