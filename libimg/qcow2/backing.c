/* The link to the backing file. */
#include "qcow2/qcow2.h"
#include "base/error.h"

#include <stdlib.h>

int img_qcow2_set_backing(struct img_layer *layer, const char *name,
                          const char *fmt, const struct img_layer *base,
                          struct img_error *err)
{
    struct qcow2 *q = img_qcow2_of(layer);
    char *old_name = q->h.backing, *old_fmt = q->h.backing_format;
    int r;

    if (name && *name && (q->h.autoclear & QCOW2_DATA_FILE_RAW))
        return img_fail(err, EINVAL, "%s: an image with data_file_raw cannot "
                        "have a backing file", layer->path);
    q->h.backing = q->h.backing_format = NULL;
    r = img_qcow2_header_copy_text(&q->h.backing, name && *name ? name : NULL,
                                   err);
    if (r == 0)
        r = img_qcow2_header_copy_text(&q->h.backing_format,
                                       q->h.backing ? fmt : NULL, err);
    if (r == 0)
        r = img_qcow2_identity_note(&q->h, base, err);
    if (r == 0)
        r = img_qcow2_write_back(q, true, err);
    if (r == 0)
        r = img_qcow2_header_write(q, err);
    if (r < 0) {
        free(q->h.backing);
        free(q->h.backing_format);
        q->h.backing = old_name;
        q->h.backing_format = old_fmt;
        img_qcow2_identity_note(&q->h, NULL, NULL);
        return r;
    }
    free(old_name);
    free(old_fmt);
    r = img_qcow2_header_copy_text(&layer->backing, q->h.backing, err);
    return r == 0 ? img_qcow2_header_copy_text(&layer->backing_format,
                                               q->h.backing_format, err) : r;
}
