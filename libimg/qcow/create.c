/* qcow version 1: new images, laid out as QEMU does it: header, name of the
 * backing file, L1 table; small clusters over a backing file, so that less
 * has to be copied. */
#include "qcow/qcow.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/strings.h"
#include "file/file.h"

#include <string.h>

const struct img_option_info img_qcow_options[] = {
    { "backing_file", "str", "File name of a base image", 0 },
    { "backing_fmt", "str", "Format of the backing image", 0 },
    { "cluster_size", "size", "Bytes of a cluster, 512 to 64k (default 4k, "
      "512 with a backing file)", 0 },
    { "encryption", "on|off", "Encrypt the image (not supported)", 0 },
    { "size", "size", "Virtual disk size", 0 },
    { NULL, NULL, NULL, 0 }
};

struct plan {
    uint64_t size, l1_off, l1_n;
    unsigned cluster_bits, l2_bits;
    size_t name_len;
};

static int make_plan(const struct img_create_options *o, uint64_t size,
                     struct plan *p, struct img_error *err)
{
    bool backed = o->backing, encrypt = false;
    uint64_t cluster = backed ? 512 : 4096;
    int r = img_settings_check(o->settings, img_qcow_options, "qcow", err);

    if (r == 0)
        r = img_setting_bool(o->settings, "encryption", &encrypt, err);
    if (r == 0)
        r = img_setting_size(o->settings, "cluster_size", &cluster, err);
    if (r < 0)
        return r;
    if (encrypt)
        return img_fail(err, ENOTSUP, "Encrypted qcow images are not "
                        "supported");
    if (!img_is_pow2(cluster) || cluster < 512 || cluster > 65536)
        return img_fail(err, EINVAL, "cluster_size must be a power of two "
                        "from 512 to 64k");
    if (!size)
        return img_fail(err, EINVAL, "Image size is too small, cannot be "
                        "zero length");
    *p = (struct plan){ .cluster_bits = img_log2(cluster),
                        .l2_bits = backed && cluster == 512 ? 12 : 9 };
    p->name_len = backed ? strlen(o->backing) : 0;
    if (p->name_len > QCOW_BACKING_MAX)
        return img_fail(err, EINVAL, "The name of the backing file has %zu "
                        "bytes, at most %d are possible", p->name_len,
                        QCOW_BACKING_MAX);
    if (size > INT64_MAX - 512)
        return img_fail(err, EFBIG, "Image size %llu is too large",
                        (unsigned long long)size);
    p->size = img_round_up(size, 512);
    p->l1_off = img_round_up(QCOW_HEADER_LEN + p->name_len, 8);
    p->l1_n = img_div_up(p->size, UINT64_C(1) << (p->cluster_bits +
                                                  p->l2_bits));
    if (p->l1_n > QCOW_L1_MAX)
        return img_fail(err, EFBIG, "Image size %llu is too large for "
                        "clusters of %llu bytes", (unsigned long long)size,
                        (unsigned long long)cluster);
    return 0;
}

int img_qcow_create(struct img_build *build, struct img_error *err)
{
    const struct img_create_options *o = build->opts;
    struct img_file *file = build->file;
    uint8_t header[QCOW_HEADER_LEN] = { 0 };
    uint64_t end;
    struct plan p;
    int r = make_plan(o, o->disk_size, &p, err);

    if (r < 0)
        return r;
    if (file->is_device)
        return img_fail(err, ENOTSUP, "%s: a qcow image grows with its file, "
                        "a device does not", file->path);
    end = p.l1_off + img_round_up(p.l1_n * 8, 512);
    img_put_be32(header, QCOW_MAGIC);
    img_put_be32(header + QCOW_VERSION_AT, 1);
    if (p.name_len) {
        img_put_be64(header + QCOW_BACKING_OFF_AT, QCOW_HEADER_LEN);
        img_put_be32(header + QCOW_BACKING_LEN_AT, (uint32_t)p.name_len);
    }
    img_put_be64(header + QCOW_SIZE_AT, p.size);
    header[QCOW_CLUSTER_BITS_AT] = (uint8_t)p.cluster_bits;
    header[QCOW_L2_BITS_AT] = (uint8_t)p.l2_bits;
    img_put_be64(header + QCOW_L1_OFF_AT, p.l1_off);
    r = img_file_truncate(file, end, err);
    if (r == 0 && p.name_len)
        r = img_file_pwrite(file, o->backing, p.name_len, QCOW_HEADER_LEN,
                            err);
    if (r == 0)
        r = img_file_pwrite(file, header, sizeof header, 0, err);
    return r;
}

int img_qcow_defaults(const struct img_create_options *opts,
                      struct img_strings *out, struct img_error *err)
{
    const char *value = img_setting(opts->settings, "cluster_size");

    return value ? img_strings_addf(out, err, "cluster_size=%s", value) : 0;
}

int img_qcow_measure(const struct img_create_options *opts, uint64_t size,
                     uint64_t data_clusters_of(void *, uint32_t),
                     void *opaque, struct img_measure *result,
                     struct img_error *err)
{
    uint64_t cluster, tables, all;
    struct plan p;
    int r = make_plan(opts, IMG_MAX(size, 1), &p, err);

    if (r < 0)
        return r;
    cluster = UINT64_C(1) << p.cluster_bits;
    /* Data may be spread so that every L2 table is needed. */
    tables = p.l1_off + p.l1_n * 8 + cluster +
             p.l1_n * img_round_up(UINT64_C(8) << p.l2_bits, cluster);
    all = img_div_up(p.size, cluster);
    result->required = tables + cluster *
        data_clusters_of(opaque, (uint32_t)cluster);
    result->fully_allocated = tables + all * cluster;
    return 0;
}
