/* Changing settings of an image that exists.  No request is in flight. */
#include "qcow2/check.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/strings.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

/* What create can set and amend cannot: the same value is fine. */
static int refuse_change(struct qcow2 *q, const char *const *s,
                         struct img_error *err)
{
    uint64_t cluster = q->cluster_size;
    bool extended = img_qcow2_has_subclusters(q), wanted = extended;
    const char *type = img_setting(s, "compression_type");
    int r = img_setting_size(s, "cluster_size", &cluster, err);

    if (r == 0)
        r = img_setting_bool(s, "extended_l2", &wanted, err);
    if (r < 0)
        return r;
    if (cluster != q->cluster_size)
        return img_fail(err, ENOTSUP, "%s: Changing the cluster size is not "
                        "supported", q->layer->path);
    if (wanted != extended)
        return img_fail(err, ENOTSUP, "%s: Toggling extended L2 entries is "
                        "not supported", q->layer->path);
    if (type && strcmp(type, q->h.compression ? "zstd" : "zlib"))
        return img_fail(err, ENOTSUP, "%s: Changing the compression type is "
                        "not supported", q->layer->path);
    if (img_setting(s, "preallocation") || img_setting(s, "encryption") ||
        img_setting(s, "nocow"))
        return img_fail(err, ENOTSUP, "%s: Cannot change the preallocation, "
                        "encryption or nocow setting", q->layer->path);
    return 0;
}

/* ---- compat ------------------------------------------------------------ */

static int raise_version(struct qcow2 *q, struct img_error *err)
{
    int r;

    q->h.version = 3;
    q->h.header_length = QCOW2_OUR_HEADER;
    r = img_qcow2_header_write(q, err);
    if (r < 0)
        q->h.version = 2;
    return r;
}

/* ---- the other settings ------------------------------------------------ */

static int set_lazy(struct qcow2 *q, bool lazy, struct img_error *err)
{
    uint64_t old = q->h.compatible;
    int r;

    if (lazy == !!(old & QCOW2_LAZY_REFCOUNTS))
        return 0;
    q->h.compatible ^= QCOW2_LAZY_REFCOUNTS;
    r = img_qcow2_header_write(q, err);
    if (r < 0)
        q->h.compatible = old;
    return r;
}

static int set_data_file(struct qcow2 *q, const char *const *s,
                         struct img_error *err)
{
    const char *name = img_setting(s, "data_file");
    bool is_raw = q->h.autoclear & QCOW2_DATA_FILE_RAW, raw = is_raw;
    uint64_t old = q->h.autoclear;
    char *had = NULL;
    int r = img_setting_bool(s, "data_file_raw", &raw, err);

    if (r < 0 || (!name && raw == is_raw))
        return r;
    if (name && !q->data)
        return img_fail(err, EINVAL, "%s: data-file can only be set for "
                        "images that use an external data file",
                        q->layer->path);
    /* Nobody could open it again but by naming the file. */
    if (name && !*name)
        return img_fail(err, EINVAL, "%s: the data file needs a name",
                        q->layer->path);
    if (raw && !is_raw)
        return img_fail(err, EINVAL, "%s: data-file-raw cannot be set on "
                        "existing images", q->layer->path);
    r = img_qcow2_header_copy_text(&had, q->h.data_file, err);
    if (r < 0)
        return r;
    if (!raw)
        q->h.autoclear &= ~QCOW2_DATA_FILE_RAW;
    if (name)
        r = img_qcow2_header_copy_text(&q->h.data_file, name, err);
    if (r == 0)
        r = img_qcow2_header_write(q, err);
    if (r < 0) {
        q->h.autoclear = old;
        free(q->h.data_file);
        q->h.data_file = had;
        return r;
    }
    free(had);
    return 0;
}

static int set_refcount_bits(struct qcow2 *q, uint64_t bits,
                             const struct img_job *job,
                             struct img_error *err)
{
    if (!img_is_pow2(bits) || bits > 64)
        return img_fail(err, EINVAL, "Refcount width must be a power of two "
                        "and may not exceed 64 bits");
    if (bits == UINT64_C(1) << q->h.refcount_order)
        return 0;
    return img_qcow2_check_change_width(q, img_log2(bits), job, err);
}

/* What version 2 cannot have, before anything changes. */
static int refuse_v2(const struct qcow2 *q, bool lazy, uint64_t bits,
                     struct img_error *err)
{
    if (lazy)
        return img_fail(err, EINVAL, "%s: Lazy refcounts only supported with "
                        "compatibility level 1.1 and above (use compat=1.1 "
                        "or greater)", q->layer->path);
    if (bits != 16)
        return img_fail(err, EINVAL, "%s: Different refcount widths than 16 "
                        "bits require compatibility level 1.1 or above (use "
                        "compat=1.1 or greater)", q->layer->path);
    return 0;
}

int img_qcow2_amend(struct img_layer *layer, const char *const *s,
                    const struct img_job *job, struct img_error *err)
{
    static const char *const compats[] = { "0.10", "v2", "1.1", "v3", NULL };
    struct qcow2 *q = img_qcow2_of(layer);
    unsigned compat = q->h.version < 3 ? 0 : 2;
    bool lazy = q->h.compatible & QCOW2_LAZY_REFCOUNTS;
    uint64_t bits = UINT64_C(1) << q->h.refcount_order;
    int r = refuse_change(q, s, err);

    if (r == 0)
        r = img_setting_choice(s, "compat", compats, &compat, err);
    if (r == 0)
        r = img_setting_bool(s, "lazy_refcounts", &lazy, err);
    if (r == 0)
        r = img_setting_number(s, "refcount_bits", &bits, err);
    if (r == 0 && compat < 2)
        r = refuse_v2(q, img_setting(s, "lazy_refcounts") && lazy,
                      img_setting(s, "refcount_bits") ? bits : 16, err);
    if (r == 0)
        r = img_qcow2_settle(q, err);
    if (r == 0 && compat >= 2 && q->h.version < 3)
        r = raise_version(q, err);
    if (r == 0)
        r = set_refcount_bits(q, bits, job, err);
    if (r == 0 && (compat >= 2 || img_setting(s, "lazy_refcounts")))
        r = set_lazy(q, lazy, err);
    if (r == 0)
        r = set_data_file(q, s, err);
    if (r == 0 && compat < 2 && q->h.version >= 3)
        r = img_qcow2_lower_version(q, job, err);
    return img_qcow2_result(q, r);
}
