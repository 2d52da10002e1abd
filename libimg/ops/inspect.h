/* Judging a file that a stranger sent: what the parts of it share. */
#ifndef IMG_OPS_INSPECT_H
#define IMG_OPS_INSPECT_H
#include "libimg.h"
#include "base/span.h"

struct img_file;

enum { IMG_INSPECT_HEAD = 64 * 1024, IMG_INSPECT_TAIL = 1536 };

struct img_inspection {
    struct img_verdict *v;
    struct img_file *file;
    struct img_span head, tail; /* the first and the last bytes */
    bool untrusted, no_memory;
};

enum img_weight {
    IMG_NOTE,                   /* worth telling */
    IMG_FOREIGN,                /* not from strangers */
    IMG_REJECT                  /* from nobody */
};
void img_inspect_find(struct img_inspection *in, enum img_weight weight,
                      const char *check, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* Rejects where the file is untrusted. */
void img_inspect_refer(struct img_inspection *in, const char *check,
                       const char *kind, const void *name, size_t len);
bool img_inspect_matches(const struct img_inspection *in, const char *name);

/* These look at a file that matched. */
void img_inspect_qcow2(struct img_inspection *in);
void img_inspect_vmdk(struct img_inspection *in);
void img_inspect_vhd(struct img_inspection *in);
void img_inspect_vhdx(struct img_inspection *in);
void img_inspect_gpt(struct img_inspection *in);
void img_inspect_luks(struct img_inspection *in);
/* Is it a VMDK descriptor without an image around it? */
bool img_inspect_is_vmdk_text(const struct img_inspection *in);
#endif
