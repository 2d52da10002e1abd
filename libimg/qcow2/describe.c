/* What `info` tells about a qcow2 image, in qemu-img's names and order. */
#include "qcow2/qcow2.h"
#include "base/error.h"
#include "base/info.h"

static int add_snapshots(struct qcow2 *q, struct img_info *info,
                         struct img_error *err)
{
    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        const struct qcow2_snapshot *s = &q->snapshots[i];
        struct img_snapshot_info *to = img_info_add_snapshot(info);
        int r;

        if (!to)
            return img_fail_nomem(err);
        r = img_info_text(&to->id, s->id, err);
        if (r == 0)
            r = img_info_text(&to->name, s->name, err);
        if (r < 0)
            return r;
        to->vm_state_size = s->vm_state_size;
        to->date_sec = s->date_sec;
        to->date_nsec = s->date_nsec;
        to->vm_clock_nsec = s->vm_clock_nsec;
        to->icount = s->has_icount ? s->icount : UINT64_MAX;
        to->disk_size = s->has_size ? s->disk_size : q->h.size;
    }
    return 0;
}

static int add_facts(struct qcow2 *q, struct img_info *info,
                     struct img_error *err)
{
    struct img_value *v = img_info_specific(info);
    bool v3 = q->h.version >= 3;
    bool ok = img_value_text(v, "compat", v3 ? "1.1" : "0.10") &&
              img_value_text(v, "compression-type",
                             q->h.compression ? "zstd" : "zlib");

    if (v3)
        ok = ok && img_value_bool(v, "lazy-refcounts",
                                  q->h.compatible & QCOW2_LAZY_REFCOUNTS);
    if (ok) {
        int r = img_qcow2_bitmaps_describe(q, info, err);

        if (r < 0)
            return r;
    }
    ok = ok && img_value_uint(v, "refcount-bits",
                              UINT64_C(1) << q->h.refcount_order);
    if (ok && q->h.data_file && q->data)
        ok = img_value_text(v, "data-file", q->h.data_file) &&
             img_value_bool(v, "data-file-raw",
                            q->h.autoclear & QCOW2_DATA_FILE_RAW);
    if (v3)
        ok = ok && img_value_bool(v, "corrupt",
                                  q->h.incompatible & QCOW2_CORRUPT) &&
             img_value_bool(v, "extended-l2", img_qcow2_has_subclusters(q));
    return ok ? 0 : img_fail_nomem(err);
}

int img_qcow2_describe(struct img_layer *layer, struct img_info *info,
                       struct img_error *err)
{
    struct qcow2 *q = img_qcow2_of(layer);
    int r;

    info->cluster_size = q->cluster_size;
    info->dirty = q->h.incompatible & QCOW2_DIRTY;
    info->corrupt = q->h.incompatible & QCOW2_CORRUPT;
    r = add_snapshots(q, info, err);
    return r == 0 ? add_facts(q, info, err) : r;
}
