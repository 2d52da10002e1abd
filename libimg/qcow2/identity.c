/* Which state the backing file was in when the link to it was made.
 *
 * An overlay holds differences, so a base that is changed under it makes it
 * show a mixture.  A header extension of ours notes what the base was like,
 * and opening compares.  It is a hint for people: nothing is ever refused
 * because of it, and it may be missing.
 *
 * The extension, type 0x76696d67 ("vimg"), 48 bytes, big-endian:
 *
 *    0  u32  layout, 1; readers skip any other
 *    4  u32  which link it is about: the lower half of the FNV-1a sum of the
 *            backing file's name, a zero byte, and its format.  QEMU keeps
 *            extensions it does not know when it changes the link; then this
 *            does not fit, and the rest means nothing
 *    8  u64  length of the base's file
 *   16  u64  when it was modified, in ns since 1970; 0 = not known, as of
 *            devices
 *   24  u64  FNV-1a sum that changes with what the base holds: its size, a
 *            few samples of its bytes, what its format adds
 *   32  u64  FNV-1a sum of what may change the file's length besides, such
 *            as snapshots; 0 = nothing
 *   40  u64  FNV-1a sum of the lengths and times of the base's other files
 *            (extents, a data file); 0 = it has none
 */
#include "qcow2/qcow2.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/hash.h"
#include "file/file.h"

#include <string.h>

enum {
    LAYOUT = 1, LAYOUT_LEN = 48, SAMPLE = 4096, SPREAD = 8,
    /* QEMU's header needs the room of a small cluster for itself. */
    MIN_CLUSTER_BITS = 12
};

struct identity {
    uint32_t link;
    uint64_t length, modified, content, rest, others;
};

static uint32_t link_sum(const char *name, const char *format)
{
    uint64_t sum = img_hash(IMG_HASH_START, name, strlen(name) + 1);

    return (uint32_t)(format ? img_hash(sum, format, strlen(format)) : sum);
}

/* ---- looking at a base ------------------------------------------------- */

static int look_at_files(const struct img_layer *base, struct identity *id)
{
    int r = img_file_size(base->files[0], &id->length, NULL);

    id->modified = img_file_modified(base->files[0]);
    for (unsigned i = 1; i < base->n_files && r == 0; i++) {
        uint64_t length = 0;

        if (!base->files[i])
            continue;
        r = img_file_size(base->files[i], &length, NULL);
        if (!id->others)
            id->others = IMG_HASH_START;
        id->others = img_hash_number(id->others, length);
        id->others = img_hash_number(id->others,
                                     img_file_modified(base->files[i]));
    }
    return r;
}

/* One place of the disk; what cannot be read counts as such. */
static uint64_t add_sample(struct img_layer *base, uint64_t off, uint64_t sum)
{
    uint64_t len = IMG_MIN((uint64_t)SAMPLE, base->size - off);
    struct img_run run = { 0 };
    uint8_t bytes[SAMPLE];

    if (base->format->map(base, off, len, 0, &run, NULL) < 0)
        return img_hash_number(sum, UINT64_MAX);
    sum = img_hash_number(sum, run.kind);
    if (run.kind == IMG_RUN_PACKED)
        return img_hash_number(sum, run.host);
    if (run.kind != IMG_RUN_DATA)
        return sum;
    len = IMG_MIN(len, run.len);
    if (img_file_pread(base->files[run.file], bytes, (size_t)len, run.host,
                       NULL) < 0)
        return img_hash_number(sum, UINT64_MAX);
    return img_hash(sum, bytes, (size_t)len);
}

/* Both ends, where partition tables are; 1 MiB, where the first partition
 * begins as a rule, with a file system's superblock in it; and in between. */
static uint64_t add_samples(struct img_layer *base, uint64_t sum)
{
    uint64_t first = UINT64_C(1) << 20;

    sum = img_hash_number(sum, base->size);
    if (!base->size)
        return sum;
    for (uint64_t i = 0; i < SPREAD; i++)
        sum = add_sample(base, img_round_down(base->size / SPREAD * i,
                                              SAMPLE), sum);
    if (base->size > first)
        sum = add_sample(base, first, sum);
    return add_sample(base, img_round_down(base->size - 1, SAMPLE), sum);
}

static void look_inside(struct img_layer *base, struct identity *id)
{
    id->content = add_samples(base, IMG_HASH_START);
    if (base->format->fingerprint)
        base->format->fingerprint(base, &id->content, &id->rest);
}

/* ---- writing it down --------------------------------------------------- */

int img_qcow2_identity_note(struct qcow2_header *h,
                            const struct img_layer *base,
                            struct img_error *err)
{
    uint8_t ext[LAYOUT_LEN];
    struct identity id = { 0 };

    /* map needs more than a const layer; it changes nothing but caches. */
    if (!base || !h->backing || h->cluster_bits < MIN_CLUSTER_BITS ||
        look_at_files(base, &id) < 0)
        return img_qcow2_extension_set(h, QCOW2_EXT_BASE_ID, NULL, 0, err);
    look_inside((struct img_layer *)base, &id);
    img_put_be32(ext, LAYOUT);
    img_put_be32(ext + 4, link_sum(h->backing, h->backing_format));
    img_put_be64(ext + 8, id.length);
    img_put_be64(ext + 16, id.modified);
    img_put_be64(ext + 24, id.content);
    img_put_be64(ext + 32, id.rest);
    img_put_be64(ext + 40, id.others);
    return img_qcow2_extension_set(h, QCOW2_EXT_BASE_ID, ext, sizeof ext,
                                   err);
}

/* ---- comparing --------------------------------------------------------- */

static bool read_noted(const struct qcow2 *q, struct identity *id)
{
    const struct qcow2_extension *e =
        img_qcow2_extension_find(&q->h, QCOW2_EXT_BASE_ID);

    if (!e || e->len < LAYOUT_LEN || img_get_be32(e->data) != LAYOUT ||
        !q->h.backing)
        return false;
    id->link = img_get_be32(e->data + 4);
    id->length = img_get_be64(e->data + 8);
    id->modified = img_get_be64(e->data + 16);
    id->content = img_get_be64(e->data + 24);
    id->rest = img_get_be64(e->data + 32);
    id->others = img_get_be64(e->data + 40);
    return id->link == link_sum(q->h.backing, q->h.backing_format);
}

int img_qcow2_check_base(struct img_layer *layer,
                         const struct img_layer *base, struct img_error *err)
{
    struct qcow2 *q = img_qcow2_of(layer);
    struct identity was, is = { 0 };

    if (!read_noted(q, &was) || look_at_files(base, &is) < 0)
        return 0;
    if (was.length == is.length && was.modified == is.modified &&
        was.others == is.others && is.modified)
        return 0;
    look_inside((struct img_layer *)base, &is);
    if (was.content != is.content ||
        (was.length != is.length && was.rest == is.rest))
        layer->warn(layer, "%s: its backing file %s was changed since the "
                    "link to it was made; what %s shows may be wrong (vimg "
                    "rebase -u accepts the change)", layer->path, base->path,
                    layer->path);
    else if (was.length != is.length || was.modified != is.modified ||
             was.others != is.others)
        layer->warn(layer, "%s: its backing file %s was copied or written to "
                    "since the link to it was made; a quick look finds no "
                    "difference in what it holds", layer->path, base->path);
    return 0;
}

bool img_qcow2_noted_base(const struct img_layer *layer, uint64_t *length,
                          uint64_t *modified)
{
    struct identity was;

    if (!read_noted(img_qcow2_of(layer), &was))
        return false;
    *length = was.length;
    *modified = was.modified;
    return true;
}

/* ---- what a qcow2 image adds as a base --------------------------------- */

/* Which L2 tables there are says what is allocated; snapshots and flags move
 * none of them.  The rest is what makes the file longer without a change of
 * what the disk holds. */
void img_qcow2_fingerprint(const struct img_layer *layer, uint64_t *content,
                           uint64_t *rest)
{
    const struct qcow2 *q = img_qcow2_of(layer);
    uint64_t sum = *content;

    for (uint64_t i = 0; i < q->h.l1_size; i++)
        sum = img_hash_number(sum, q->l1[i] & QCOW2_OFFSET_MASK);
    *content = sum;
    sum = img_hash_number(IMG_HASH_START, q->h.version);
    sum = img_hash_number(sum, q->h.refcount_order);
    sum = img_hash_number(sum, q->h.reftable_offset);
    sum = img_hash_number(sum, q->h.n_snapshots);
    sum = img_hash_number(sum, q->h.snapshots_offset);
    sum = img_hash_number(sum, q->h.bitmaps_offset);
    *rest = img_hash_number(sum, q->h.bitmaps_size);
}
