/* Persistent dirty bitmaps in memory (the description, "Bitmaps").
 *
 *   bitmap.c       the directory: load, describe, visit
 *   bitmap_bits.c  the bits: load, record writes, look up, edit
 *   bitmap_save.c  writing bitmaps and the directory anew
 *
 * A bitmap whose bits in the file may be out of date has IN_USE set there,
 * durably, before the first write that it should record; saving makes it
 * good again.  Whoever finds IN_USE at opening knows that the bits are lost.
 */
#ifndef IMG_QCOW2_BITMAP_H
#define IMG_QCOW2_BITMAP_H
#include "qcow2/qcow2.h"

enum { BITMAP_IN_USE = 1, BITMAP_AUTO = 2, BITMAP_EXTRA_COMPATIBLE = 4 };
enum { BITMAP_DIRTY_TRACKING = 1, BITMAP_FIXED = 24, BITMAP_MAX_NAME = 1023,
       BITMAP_MAX_BYTES = 512 << 20 };  /* of one bitmap's bits; QEMU's limit
                                           for its clusters */

struct qcow2_bitmap {
    char *name;
    uint64_t table_off;         /* in the file; 0 = nothing is stored yet */
    uint32_t table_size;        /* entries */
    uint32_t flags;             /* as they shall be when saved */
    uint8_t granularity_bits;
    uint8_t *extra;
    uint32_t extra_len;
    bool broken;                /* IN_USE was found at opening */
    bool changed;               /* bits differ from those in the file */
    uint8_t *bits;              /* NULL = not loaded */
    uint64_t n_bits;
    uint64_t flags_at;          /* file offset of the flags field */
};

struct qcow2_bitmaps {
    struct img_mutex lock;      /* protects bits and changed */
    struct qcow2_bitmap *list;
    uint32_t n;
    bool marked;                /* IN_USE is set in the file */
    bool recording;             /* some bitmap is enabled */
    bool dirty;                 /* the directory must be saved */
};

struct qcow2_bitmap *img_qcow2_bitmap_find(struct qcow2 *q,
                                           const char *name);
void img_qcow2_bitmap_free(struct qcow2_bitmap *b);
uint64_t img_qcow2_bitmap_bits(const struct qcow2_bitmap *b, uint64_t size);
int img_qcow2_bitmap_load_bits(struct qcow2 *q, struct qcow2_bitmap *b,
                               struct img_error *err);
void img_qcow2_bitmaps_update(struct qcow2 *q);
/* Sets IN_USE of what will change, durably; once. */
int img_qcow2_bitmaps_mark(struct qcow2 *q, struct img_error *err);
/* Takes b out of the list and the file. */
int img_qcow2_bitmap_remove(struct qcow2 *q, struct qcow2_bitmap *b,
                            struct img_error *err);
/* Everything that a bitmap's stored form uses. */
int img_qcow2_bitmap_visit(struct qcow2 *q, const struct qcow2_bitmap *b,
                           int visit(void *, uint64_t off, uint64_t len),
                           void *opaque, struct img_error *err);
#endif
