/* What the ways of converting share. */
#ifndef IMG_OPS_CONVERT_H
#define IMG_OPS_CONVERT_H
#include "core/create.h"
#include "core/disk.h"
#include "ops/copy.h"

#include <sys/stat.h>

struct img_convert {
    struct img_convert_options opts;
    struct img_create_options create;
    const struct img_format *format;    /* of the target */
    struct img_disk *const *from;
    size_t n_from;
    const struct img_job *job;
    struct img_copy copy;
};

/* Checks and copies the options, joins the sources, locks their structure.
 * img_convert_end is due afterwards, on failure too. */
int img_convert_begin(struct img_convert *cv, struct img_disk *const *from,
                      size_t n_from, const struct img_convert_options *opts,
                      const struct img_job *job, struct img_error *err);
/* The target's size: the source's if none was asked for, never less. */
int img_convert_check_size(struct img_convert *cv, struct img_error *err);
/* Refuses what the sources are read from as a target; path is for the
 * message. */
int img_convert_refuse_source(const struct img_convert *cv,
                              const struct stat *st, const char *path,
                              struct img_error *err);
void img_convert_end(struct img_convert *cv);

/* Fills layer 0 of an open disk.  made: it was created just now. */
int img_convert_to_disk(struct img_convert *cv, struct img_disk *to,
                        bool made, struct img_error *err);
/* Through the format's sink.  -ENOTSUP from begin: not with these options;
 * *begun says whether it came further than that. */
int img_convert_to_sink(struct img_convert *cv, struct img_making *making,
                        img_write_fn *write, void *opaque, bool *begun,
                        struct img_error *err);

/* bitmap.c: gives `to` the bitmaps of `from`. */
int img_bitmaps_copy(struct img_disk *from, struct img_disk *to,
                     const struct img_convert_options *opts,
                     struct img_error *err);
/* Places need no order where they are where the guest bytes are. */
static inline bool img_format_is_identity(const struct img_format *f)
{
    return f->reserve && !f->publish;
}
#endif
