/* Settings of new VMDK images: names, defaults, and what follows from them.
 *
 * Defaults are QEMU 7.2's, whose images VMware's and VirtualBox's products
 * import.  The content ID is random, for an overlay knows its parent by it;
 * it is made from the settings where that is asked for, or where a UUID says
 * which disk it is: then equal commands make equal bytes.
 */
#include "vmdk/vmdk.h"
#include "base/strings.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

static const char *const subformat_names[] = {
    "monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat", "streamOptimized", "vmfs", "vmfsSparse", NULL
};
static const char *const adapter_names[] = {
    "ide", "lsilogic", "buslogic", "legacyESX", NULL
};
static const char *const target_names[] = {
    "esxi", "workstation", "virtualbox", NULL
};

const struct img_option_info img_vmdk_create_options[] = {
    { "adapter_type", "ide|lsilogic|buslogic|legacyESX",
      "Virtual adapter type", IMG_OPTION_AMEND },
    { "backing_file", "str", "File name of a base image", 0 },
    { "backing_fmt", "str", "Must be 'vmdk' if present", 0 },
    { "cid", "hex", "Content ID, or derived[:WORD]; random if not given",
      IMG_OPTION_AMEND },
    { "compat6", "on|off", "VMDK version 6 image", 0 },
    { "ddb", "NAME=VALUE", "Entry of the disk data base", IMG_OPTION_AMEND },
    { "hwversion", "str", "VMDK hardware version", IMG_OPTION_AMEND },
    { "parent_cid", "hex", "Content ID of the parent", IMG_OPTION_AMEND },
    { "size", "size", "Virtual disk size", 0 },
    { "subformat", "monolithicSparse|monolithicFlat|twoGbMaxExtentSparse|"
      "twoGbMaxExtentFlat|streamOptimized|vmfs|vmfsSparse",
      "VMDK flat extent format", 0 },
    { "target", "esxi|workstation|virtualbox",
      "Defaults that this product takes, and a check that it does", 0 },
    { "toolsversion", "str", "VMware guest tools version", IMG_OPTION_AMEND },
    { "uuid", "uuid", "UUID of the image (ddb.uuid), or derived[:WORD]; then "
      "the same input makes the same file", IMG_OPTION_AMEND },
    { "zeroed_grain", "on|off",
      "Enable efficient zero writes using the zeroed-grain GTE feature", 0 },
    { NULL, NULL, NULL, 0 }
};

const char *img_vmdk_subformat_name(enum vmdk_subformat subformat)
{
    return subformat_names[subformat];
}

bool img_vmdk_uuid(const char *text, char *out)
{
    size_t n = 0;
    char *o = out;

    for (; *text; text++) {
        if (*text == ' ' || *text == '-')
            continue;
        if (!isxdigit((unsigned char)*text) || n == 32)
            return false;
        if (n && n % 2 == 0)
            *o++ = n == 16 ? '-' : ' ';
        *o++ = (char)tolower((unsigned char)*text);
        n++;
    }
    *o = 0;
    return n == 32;
}

/* FNV-1a, mixed at the end. */
static uint64_t hash(uint64_t h, const char *text)
{
    for (; text && *text; text++)
        h = (h ^ (uint8_t)*text) * UINT64_C(0x100000001b3);
    h ^= h >> 31;
    h *= UINT64_C(0x9e3779b97f4a7c15);
    return h ^ h >> 29;
}

/* From all that tells this image from another, and the user's own word. */
static uint64_t derive(const struct vmdk_options *o, const char *what,
                       const char *word)
{
    uint64_t h = hash(UINT64_C(0xcbf29ce484222325), what);
    char number[64];

    snprintf(number, sizeof number, "%llu %d %x %d",
             (unsigned long long)o->size, (int)o->subformat,
             (unsigned)o->parent_cid, o->zeroed_grain);
    h = hash(h, number);
    h = hash(h, o->adapter);
    h = hash(h, o->hardware);
    h = hash(h, o->uuid);
    h = hash(h, o->backing);
    return hash(h, word);
}

/* "", "derived" or "derived:WORD". */
bool img_vmdk_is_derived(const char *text, const char **word)
{
    if (!text || (*text && strcmp(text, "derived") &&
                  strncmp(text, "derived:", 8)))
        return false;
    *word = strchr(text, ':');
    *word = *word ? *word + 1 : "";
    return true;
}

/* RFC 9562: version 8 is for UUIDs of one's own making. */
static void derive_uuid(struct vmdk_options *o, const char *word)
{
    unsigned long long high = derive(o, "high", word);
    unsigned long long low = derive(o, "low", word);
    char text[40];

    high = (high & ~0xf000ull) | 0x8000;
    low = (low & ~(3ull << 62)) | 2ull << 62;
    snprintf(text, sizeof text, "%016llx%016llx", high, low);
    img_vmdk_uuid(text, o->uuid);
}

uint32_t img_vmdk_usable_cid(uint64_t h)
{
    uint32_t cid = (uint32_t)(h ^ h >> 32);

    return cid && cid < VMDK_NO_PARENT - 1 ? cid : 1;
}

int img_vmdk_random_cid(uint32_t *cid, struct img_error *err)
{
    uint64_t h;

    if (getrandom(&h, sizeof h, 0) != sizeof h)
        return img_fail_errno(err, errno, "random numbers for a content ID");
    *cid = img_vmdk_usable_cid(h);
    return 0;
}

/* What a product takes: ESXi's importers want streams or its own flat disks
 * on a SCSI adapter, see VMware KB 1028943 and the OVF tool's guide. */
static int apply_target(const struct img_create_options *opts,
                        struct vmdk_options *o, struct img_error *err)
{
    static const struct {
        enum vmdk_subformat subformat;
        const char *adapter, *hardware;
    } defaults[] = {
        { VMDK_STREAM, "lsilogic", "13" },
        { VMDK_MONOLITHIC_SPARSE, "lsilogic", "13" },
        { VMDK_MONOLITHIC_SPARSE, "ide", "4" },
    };
    unsigned target = IMG_COUNT(defaults);
    int r;

    r = img_setting_choice(opts->settings, "target", target_names, &target,
                           err);
    if (r || target == IMG_COUNT(defaults))
        return r;
    if (!img_setting(opts->settings, "subformat"))
        o->subformat = defaults[target].subformat;
    if (!img_setting(opts->settings, "adapter_type"))
        o->adapter = defaults[target].adapter;
    if (!img_setting(opts->settings, "hwversion") &&
        !img_setting(opts->settings, "compat6"))
        snprintf(o->hardware, sizeof o->hardware, "%s",
                 defaults[target].hardware);
    if (target == 0 && o->subformat != VMDK_STREAM &&
        o->subformat != VMDK_VMFS && o->subformat != VMDK_MONOLITHIC_FLAT)
        return img_fail(err, EINVAL, "target=esxi takes streamOptimized, "
                        "monolithicFlat and vmfs, not %s",
                        subformat_names[o->subformat]);
    if (target && (o->subformat == VMDK_VMFS ||
                   o->subformat == VMDK_VMFS_SPARSE))
        return img_fail(err, EINVAL, "target=%s does not take %s",
                        target_names[target], subformat_names[o->subformat]);
    if (o->zeroed_grain && target == 2)
        return img_fail(err, EINVAL, "target=virtualbox does not take "
                        "zeroed_grain=on");
    return 0;
}

static int hardware_version(const struct img_create_options *opts,
                            struct vmdk_options *o, struct img_error *err)
{
    const char *given = img_setting(opts->settings, "hwversion");
    const char *tools = img_setting(opts->settings, "toolsversion");
    bool compat6 = false;
    int r;

    r = img_setting_bool(opts->settings, "compat6", &compat6, err);
    if (r)
        return r;
    if (given && !strcmp(given, "undefined"))   /* QEMU's word for none */
        given = NULL;
    if (compat6 && given)
        return img_fail(err, EINVAL, "compat6 cannot be enabled with "
                        "hwversion set");
    if (!given)
        given = compat6 ? "6" : "4";
    if (!tools)
        tools = "2147483647";
    if (strlen(given) >= sizeof o->hardware || strpbrk(given, "\"\r\n") ||
        strlen(tools) >= sizeof o->tools || strpbrk(tools, "\"\r\n"))
        return img_fail(err, EINVAL, "hwversion and toolsversion are short "
                        "words");
    snprintf(o->hardware, sizeof o->hardware, "%s", given);
    snprintf(o->tools, sizeof o->tools, "%s", tools);
    return 0;
}

static int id_setting(const struct img_create_options *opts, const char *key,
                      uint32_t *id, struct img_error *err)
{
    const char *text = img_setting(opts->settings, key);

    if (text && !img_vmdk_id(text, strlen(text), id))
        return img_fail(err, EINVAL, "%s is up to 8 hexadecimal digits, not "
                        "'%s'", key, text);
    return 0;
}

static int check_shape(const struct vmdk_options *o, struct img_error *err)
{
    bool flat = o->subformat == VMDK_MONOLITHIC_FLAT ||
                o->subformat == VMDK_SPLIT_FLAT || o->subformat == VMDK_VMFS;

    if (flat && o->backing)
        return img_fail(err, ENOTSUP, "Flat image can't have backing file");
    if (flat && o->zeroed_grain)
        return img_fail(err, ENOTSUP, "Flat image can't enable zeroed grain");
    if (o->subformat == VMDK_VMFS_SPARSE && o->zeroed_grain)
        return img_fail(err, ENOTSUP, "vmfsSparse has no zeroed grains");
    if (o->size > VMDK_SIZE_MAX)
        return img_fail(err, EFBIG, "%llu bytes are too many for a VMDK "
                        "image", (unsigned long long)o->size);
    if (o->subformat == VMDK_VMFS_SPARSE &&
        o->size / VMDK_SECTOR > UINT32_MAX)
        return img_fail(err, EFBIG, "vmfsSparse holds at most 2 TiB");
    if (o->backing && strpbrk(o->backing, "\"\r\n"))
        return img_fail(err, EINVAL, "a VMDK descriptor cannot hold the name "
                        "of this backing file");
    return 0;
}

static int identity(const struct img_create_options *opts,
                    struct vmdk_options *o, struct img_error *err)
{
    const char *uuid = img_setting(opts->settings, "uuid"), *word = NULL;
    const char *cid = img_setting(opts->settings, "cid");
    int r = id_setting(opts, "parent_cid", &o->parent_cid, err);

    if (r)
        return r;
    if (img_vmdk_is_derived(uuid, &word))
        derive_uuid(o, word);
    else if (uuid && !img_vmdk_uuid(uuid, o->uuid))
        return img_fail(err, EINVAL, "uuid is 32 hexadecimal digits, not "
                        "'%s'", uuid);
    if (img_vmdk_is_derived(cid, &word) || (uuid && !cid))
        o->cid = img_vmdk_usable_cid(derive(o, "content", word));
    else if (!cid)
        return img_vmdk_random_cid(&o->cid, err);
    else
        return id_setting(opts, "cid", &o->cid, err);
    return 0;
}

int img_vmdk_options(const struct img_create_options *opts,
                     struct vmdk_options *o, struct img_error *err)
{
    unsigned subformat = VMDK_MONOLITHIC_SPARSE, adapter = 0;
    int r;

    *o = (struct vmdk_options){ .parent_cid = VMDK_NO_PARENT };
    if (opts->disk_size > VMDK_SIZE_MAX)
        return img_fail(err, EFBIG, "%llu bytes are too many for a VMDK "
                        "image", (unsigned long long)opts->disk_size);
    o->size = img_round_up(opts->disk_size, VMDK_SECTOR);
    o->backing = opts->backing && *opts->backing ? opts->backing : NULL;
    r = img_setting_choice(opts->settings, "subformat", subformat_names,
                           &subformat, err);
    if (r == 0)
        r = img_setting_choice(opts->settings, "adapter_type", adapter_names,
                               &adapter, err);
    if (r == 0)
        r = img_setting_bool(opts->settings, "zeroed_grain",
                             &o->zeroed_grain, err);
    o->subformat = (enum vmdk_subformat)subformat;
    o->adapter = adapter_names[adapter];
    if (r == 0)
        r = hardware_version(opts, o, err);
    if (r == 0)
        r = apply_target(opts, o, err);
    if (r == 0)
        r = check_shape(o, err);
    if (r)
        return r;
    if (o->backing && opts->backing_format &&
        strcmp(opts->backing_format, "vmdk"))
        return img_fail(err, EINVAL, "backing_file must be a vmdk image");
    return identity(opts, o, err);
}

/* QEMU lists what has a default or was given, by name. */
int img_vmdk_defaults(const struct img_create_options *opts,
                      struct img_strings *out, struct img_error *err)
{
    static const char *const names[] = {
        "adapter_type", "cid", "compat6", "ddb", "hwversion", "parent_cid",
        "subformat", "target", "toolsversion", "uuid", "zeroed_grain"
    };
    struct vmdk_options o;
    int r;

    r = img_vmdk_options(opts, &o, err);
    for (size_t i = 0; i < IMG_COUNT(names) && r == 0; i++) {
        const char *v = img_setting(opts->settings, names[i]);

        if (!v && !strcmp(names[i], "compat6"))
            v = "off";
        if (!v && !strcmp(names[i], "hwversion"))
            v = "undefined";
        if (v)
            r = img_strings_addf(out, err, "%s=%s", names[i], v);
    }
    return r;
}

static uint64_t count_tables(const struct vmdk_options *o, uint64_t reach)
{
    return img_div_up(o->size, reach);
}

int img_vmdk_measure(const struct img_create_options *opts, uint64_t size,
                     uint64_t data_clusters_of(void *, uint32_t),
                     void *opaque, struct img_measure *result,
                     struct img_error *err)
{
    struct img_create_options sized = *opts;
    uint32_t grain = 65536;
    uint64_t tables, meta, data;
    struct vmdk_options o;
    int r;

    sized.disk_size = size;
    r = img_vmdk_options(&sized, &o, err);
    if (r)
        return r;
    if (o.subformat == VMDK_MONOLITHIC_FLAT ||
        o.subformat == VMDK_SPLIT_FLAT || o.subformat == VMDK_VMFS) {
        result->required = result->fully_allocated = o.size;
        return 0;
    }
    if (o.subformat == VMDK_VMFS_SPARSE)
        grain = VMDK_SECTOR;
    tables = count_tables(&o, grain == VMDK_SECTOR
                                  ? UINT64_C(4096) * VMDK_SECTOR
                                  : UINT64_C(512) << 16);
    meta = grain == VMDK_SECTOR
               ? 2048 + img_round_up(tables * 4, VMDK_SECTOR) + tables * 16384
               : 2 * (tables * 2048 + img_round_up(tables * 4, VMDK_SECTOR)) +
                     (1 + VMDK_TEXT_SECTORS) * VMDK_SECTOR;
    meta = img_round_up(meta, 65536);
    data = data_clusters_of(opaque, grain);
    result->required = meta + data * grain;
    result->fully_allocated = meta + img_round_up(o.size, grain);
    return 0;
}
