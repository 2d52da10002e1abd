/* A layer's life, and the format's table of hooks. */
#include "qcow2/qcow2.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_READ = 4096, TABLE_PIECE = 1 << 20 };

int img_qcow2_result(struct qcow2 *q, int r)
{
    uint8_t bits[8];

    if (r != -IMG_ECORRUPT || !q->layer->writable || q->layer->repair)
        return r;
    img_lock(&q->lock);
    q->layer->broken = true;
    if (q->h.version >= 3 && !(q->h.incompatible & QCOW2_CORRUPT)) {
        q->h.incompatible |= QCOW2_CORRUPT;
        img_put_be64(bits, q->h.incompatible);
        /* The corruption itself is reported; this is a courtesy. */
        img_file_pwrite(q->file, bits, sizeof bits, 72, NULL);
    }
    img_unlock(&q->lock);
    return r;
}

int img_qcow2_read_table(struct qcow2 *q, uint64_t off, uint64_t entries,
                         uint64_t **table, struct img_error *err)
{
    uint64_t *t = malloc(entries ? entries * sizeof *t : 1);
    int r = 0;

    if (!t)
        return img_fail_nomem(err);
    if (entries)
        r = img_file_pread(q->file, t, entries * sizeof *t, off, err);
    if (r < 0) {
        free(t);
        return r;
    }
    for (uint64_t i = 0; i < entries; i++)
        t[i] = img_get_be64(&t[i]);
    *table = t;
    return 0;
}

int img_qcow2_write_table(struct qcow2 *q, uint64_t off,
                          const uint64_t *table, uint64_t entries,
                          struct img_error *err)
{
    uint64_t room = IMG_MIN(entries, (uint64_t)TABLE_PIECE / 8);
    img_autofree uint8_t *buf = malloc(room ? room * 8 : 1);
    int r = 0;

    if (!buf)
        return img_fail_nomem(err);
    for (uint64_t done = 0; r == 0 && done < entries;) {
        uint64_t n = IMG_MIN(entries - done, room);

        for (uint64_t i = 0; i < n; i++)
            img_put_be64(buf + i * 8, table[done + i]);
        r = img_file_pwrite(q->file, buf, (size_t)n * 8, off + done * 8,
                            err);
        done += n;
    }
    return r;
}

/* What lies behind the first sector comes first, where nothing refers to it
 * yet: the new backing name, or all that differs if extensions reach there. */
static int write_behind(struct qcow2 *q, const uint8_t *old,
                        const uint8_t *buf, struct img_error *err)
{
    size_t from = QCOW2_SECTOR, to = q->cluster_size;
    int r;

    while (to > from && !buf[to - 1])
        to--;
    while (from < to && old[from] == buf[from])
        from++;
    if (from >= to)
        return 0;
    r = img_file_pwrite(q->file, buf + from, to - from, from, err);
    return r == 0 ? img_file_sync(q->file, err) : r;
}

/* The header has the new bytes, or the old ones again; or nobody knows. */
static int switch_bytes(struct qcow2 *q, const uint8_t *old,
                        const uint8_t *now, size_t len, uint64_t at,
                        struct img_error *err)
{
    int r = img_file_pwrite(q->file, now, len, at, err);

    if (r == 0)
        r = img_file_sync(q->file, err);
    if (r < 0 && (img_file_pwrite(q->file, old, len, at, NULL) < 0 ||
                  img_file_sync(q->file, NULL) < 0)) {
        __atomic_store_n(&q->lost, true, __ATOMIC_RELAXED);
        __atomic_store_n(&q->layer->broken, true, __ATOMIC_RELAXED);
    }
    return r;
}

static int write_header(struct qcow2 *q, const struct qcow2_header *h,
                        struct img_error *err)
{
    img_autofree uint8_t *buf = malloc(q->cluster_size);
    img_autofree uint8_t *old = malloc(q->cluster_size);
    int r;

    if (!buf || !old)
        return img_fail_nomem(err);
    r = img_file_pread(q->file, old, q->cluster_size, 0, err);
    if (r < 0)
        return r;
    r = img_qcow2_header_build(q->layer->path, h, old, buf, err);
    if (r == 0)
        r = write_behind(q, old, buf, err);
    return r == 0 ? switch_bytes(q, old, buf, QCOW2_SECTOR, 0, err) : r;
}

int img_qcow2_header_write(struct qcow2 *q, struct img_error *err)
{
    return write_header(q, &q->h, err);
}

int img_qcow2_header_switch(struct qcow2 *q, const uint8_t *field, size_t len,
                            uint64_t at, struct img_error *err)
{
    uint8_t old[32];
    int r = img_file_pread(q->file, old, len, at, err);

    return r == 0 ? switch_bytes(q, old, field, len, at, err) : r;
}

/* Version 2 has no such bit: as long as the mark is on, the header says
 * version 3.  Where its longer header finds no room, there is no mark. */
static int mark_v2(struct qcow2 *q, bool dirty, struct img_error *err)
{
    struct qcow2_header h = q->h;
    int r;

    if (!dirty)
        return write_header(q, &q->h, err);
    h.version = 3;
    h.header_length = QCOW2_OUR_HEADER;
    h.incompatible = QCOW2_DIRTY;
    r = write_header(q, &h, err);
    return r == -EINVAL ? 0 : r;
}

int img_qcow2_header_mark(struct qcow2 *q, bool dirty, struct img_error *err)
{
    uint64_t bits = q->h.incompatible & ~QCOW2_DIRTY;
    uint8_t field[8];
    int r;

    if (q->h.version < 3)
        return mark_v2(q, dirty, err);
    bits |= dirty ? QCOW2_DIRTY : 0;
    img_put_be64(field, bits);
    r = img_qcow2_header_switch(q, field, sizeof field, 72, err);
    if (r == 0)
        q->h.incompatible = bits;
    return r;
}

void img_qcow2_shape(struct qcow2 *q)
{
    q->cluster_bits = q->h.cluster_bits;
    q->cluster_size = 1u << q->cluster_bits;
    q->entry_size = q->h.incompatible & QCOW2_EXTENDED_L2 ? 16 : 8;
    q->l2_bits = q->cluster_bits - img_log2(q->entry_size);
    q->slice_bits = img_log2(IMG_MIN(q->cluster_size,
                                     (uint32_t)QCOW2_SLICE));
    q->block_bits = q->cluster_bits - (q->entry_size == 16 ? 5 : 0);
    q->refs_bits = q->cluster_bits + 3 - q->h.refcount_order;
    q->max_refcount = q->h.refcount_order == 6 ? UINT64_MAX :
                      (UINT64_C(1) << (1u << q->h.refcount_order)) - 1;
}

uint64_t img_qcow2_l1_needed(const struct qcow2 *q, uint64_t disk_size)
{
    return img_div_up(img_div_up(disk_size, q->cluster_size),
                      UINT64_C(1) << q->l2_bits);
}

void img_qcow2_refresh_layer(struct qcow2 *q)
{
    q->layer->size = q->h.size;
    q->layer->cluster_bits = q->cluster_bits;
    q->layer->block = 1u << q->block_bits;
}

/* ---- open -------------------------------------------------------------- */

/* Would a header that is read in full say the same?  So it is if the names
 * and the extensions end before len does. */
static bool header_ends(const uint8_t *head, size_t len)
{
    uint64_t name = img_get_be64(head + 8);
    bool v3 = img_get_be32(head + 4) >= 3;
    size_t at = v3 ? img_get_be32(head + 100) : QCOW2_V2_HEADER;

    if (at > len)
        return false;
    if (name)
        return img_inside(name, img_get_be32(head + 16), len);
    while (at + 8 <= len) {
        uint32_t body = img_get_be32(head + at + 4);

        if (img_get_be32(head + at) == QCOW2_EXT_END)
            return true;
        if (!img_inside(at + 8, body, len))
            return false;
        at += 8 + (size_t)img_round_up(body, 8);
    }
    return false;
}

static int read_header(struct qcow2 *q, uint64_t file_size,
                       struct img_error *err)
{
    size_t len = (size_t)IMG_MIN(file_size, (uint64_t)FIRST_READ);
    img_autofree uint8_t *buf = malloc(FIRST_READ);
    uint32_t bits;
    int r;

    if (!buf)
        return img_fail_nomem(err);
    memset(buf, 0, FIRST_READ);
    r = img_file_pread(q->file, buf, len, 0, err);
    if (r < 0)
        return r;
    bits = img_get_be32(buf + 20);
    if (bits <= QCOW2_MAX_CLUSTER_BITS && (UINT64_C(1) << bits) > len &&
        file_size > len && !header_ends(buf, len)) {
        uint8_t *more;

        len = (size_t)IMG_MIN(file_size, UINT64_C(1) << bits);
        more = realloc(buf, len);
        if (!more)
            return img_fail_nomem(err);
        buf = more;
        r = img_file_pread(q->file, buf, len, 0, err);
        if (r < 0)
            return r;
    }
    return img_qcow2_header_parse(q->layer->path, buf, len, file_size, &q->h,
                                  err);
}

/* With describe set its place stays empty: nothing can be read there. */
static int open_data_file(struct qcow2 *q, bool describe,
                          struct img_error *err)
{
    struct img_layer *layer = q->layer;
    struct img_file **files, *file = NULL;
    int r = 0;

    if (!(q->h.incompatible & QCOW2_DATA_FILE))
        return 0;
    if (!q->h.data_file)
        return img_fail(err, EINVAL, "%s: the image has an external data "
                        "file but does not say its name", layer->path);
    files = realloc(layer->files, 2 * sizeof *files);
    if (!files)
        return img_fail_nomem(err);
    layer->files = files;
    if (!describe)
        r = layer->open_file(layer, q->h.data_file, layer->writable, &file,
                             err);
    if (r < 0)
        return r;
    files[1] = file;
    layer->n_files = 2;
    q->data = 1;
    return 0;
}

int img_qcow2_measure_data(struct qcow2 *q, struct img_error *err)
{
    uint64_t len;
    int r = img_file_size(q->layer->files[q->data], &len, err);

    if (r == 0)
        q->data_end = img_round_up(len, UINT64_C(512));
    return r;
}

/* What was written would make the file longer, and what it has lost look like
 * holes. */
static int refuse_lost_data(struct qcow2 *q, struct img_error *err)
{
    struct img_run run = { 0 };
    uint64_t off = img_round_down(q->data_end, q->cluster_size);
    int r = 0;

    for (; off < q->h.size && r == 0; off += run.len)
        r = img_qcow2_map(q->layer, off, q->h.size - off, 0, &run, err);
    return r;
}

/* Who made the data file made it as long as the disk. */
static int check_data_file(struct qcow2 *q, struct img_error *err)
{
    struct img_layer *l = q->layer;
    int r;

    if (!q->data || !l->files[q->data])
        return 0;
    r = img_qcow2_measure_data(q, err);
    if (r < 0 || q->data_end >= q->h.size || l->repair)
        return r;
    if (q->h.autoclear & QCOW2_DATA_FILE_RAW)
        return img_fail(err, EIO, "%s: its data file %s, which is "
                        "the disk byte by byte, ends before its %llu bytes",
                        l->path, l->files[q->data]->path,
                        (unsigned long long)q->h.size);
    l->warn(l, "%s: its data file %s is shorter than the disk of %llu bytes",
            l->path, l->files[q->data]->path, (unsigned long long)q->h.size);
    return l->writable ? refuse_lost_data(q, err) : 0;
}

int img_qcow2_need_reftable(struct qcow2 *q, struct img_error *err)
{
    uint64_t n = (uint64_t)q->h.reftable_clusters * (q->cluster_size / 8);
    int r = 0;

    if (!q->reftable)
        r = img_qcow2_read_table(q, q->h.reftable_offset, n, &q->reftable,
                                 err);
    if (r == 0 && !q->reftable_entries)
        q->reftable_entries = n;
    return r;
}

static int load_tables(struct qcow2 *q, struct img_error *err)
{
    int r = img_qcow2_read_table(q, q->h.l1_offset, q->h.l1_size, &q->l1,
                                 err);

    if (r == 0 && q->layer->writable)
        r = img_qcow2_need_reftable(q, err);
    if (r == 0)
        r = img_qcow2_snapshots_load(q, err);
    return r == 0 ? img_qcow2_bitmaps_load(q, err) : r;
}

static int view_snapshot(struct qcow2 *q, const char *name,
                         struct img_error *err)
{
    const struct qcow2_snapshot *s = img_qcow2_snapshot_find(q, name);
    uint64_t *l1;
    int r;

    if (!s)
        return img_fail(err, ENOENT, "%s: Can't find the snapshot '%s'",
                        q->layer->path, name);
    if (q->layer->writable)
        return img_fail(err, EINVAL, "%s: a snapshot can only be read",
                        q->layer->path);
    q->h.size = s->has_size ? s->disk_size : q->h.size;
    if (img_qcow2_l1_needed(q, q->h.size) > s->l1_size)
        return img_fail(err, IMG_ECORRUPT, "%s: snapshot '%s': L1 table of "
                        "%u entries is too short", q->layer->path, name,
                        s->l1_size);
    r = img_qcow2_read_table(q, s->l1_offset, s->l1_size, &l1, err);
    if (r < 0)
        return r;
    free(q->l1);
    q->l1 = l1;
    q->h.l1_size = s->l1_size;
    q->h.l1_offset = s->l1_offset;
    q->is_snapshot_view = true;
    return 0;
}

static int allow_writing(struct qcow2 *q, struct img_error *err)
{
    uint64_t unknown = q->h.autoclear & ~QCOW2_AUTOCLEAR_KNOWN;
    struct img_check_options repair = IMG_CHECK_OPTIONS;
    struct img_check_result result;
    int r;

    if (!q->layer->writable || q->layer->repair)
        return 0;
    if (q->h.incompatible & QCOW2_CORRUPT)
        return img_fail(err, EACCES, "%s: Image is corrupt; cannot be opened "
                        "read/write (vimg check -r all may repair it)",
                        q->layer->path);
    if (q->h.incompatible & QCOW2_DIRTY) {
        /* The refcounts are not up to date; the tables are. */
        repair.repair = IMG_REPAIR_ALL;
        memset(&result, 0, sizeof result);
        r = img_qcow2_check(q->layer, &repair, NULL, &result, err);
        if (r == 0 && result.errors)
            r = img_fail(err, IMG_ECORRUPT, "%s: was not closed cleanly and "
                         "has %llu errors that cannot be repaired",
                         q->layer->path, (unsigned long long)result.errors);
        return r;
    }
    if (!unknown)
        return 0;
    q->h.autoclear &= QCOW2_AUTOCLEAR_KNOWN;
    return img_qcow2_header_write(q, err);
}

static int open_image(struct qcow2 *q, const struct img_open_options *opts,
                      struct img_error *err)
{
    struct img_layer *layer = q->layer;
    uint64_t file_size;
    int r = img_file_size(q->file, &file_size, err);

    if (r == 0)
        r = read_header(q, file_size, err);
    if (r < 0)
        return r;
    img_qcow2_shape(q);
    q->end = img_round_up(file_size, q->cluster_size);
    q->zeros_beyond_end = !q->file->is_device;
    q->discard = opts->flags & IMG_OPEN_UNMAP;
    r = img_qcow2_header_copy_text(&layer->backing, q->h.backing, err);
    if (r == 0)
        r = img_qcow2_header_copy_text(&layer->backing_format,
                                       q->h.backing_format, err);
    if (r == 0)
        r = open_data_file(q, opts->flags & IMG_OPEN_DESCRIBE, err);
    if (r == 0)
        r = load_tables(q, err);
    if (r == 0 && opts->snapshot)
        r = view_snapshot(q, opts->snapshot, err);
    if (r < 0)
        return r;
    img_qcow2_refresh_layer(q);
    r = check_data_file(q, err);
    return r < 0 ? r : allow_writing(q, err);
}

static int qcow2_open(struct img_layer *layer,
                      const struct img_open_options *opts,
                      struct img_error *err)
{
    struct qcow2 *q = calloc(1, sizeof *q);

    if (!q)
        return img_fail_nomem(err);
    q->layer = layer;
    q->file = layer->files[0];
    q->tables = layer->tables;
    img_mutex_init(&q->flush_lock);
    img_mutex_init(&q->lock);
    layer->state = q;
    return open_image(q, opts, err);
}

static void qcow2_close(struct img_layer *layer)
{
    struct qcow2 *q = img_qcow2_of(layer);

    if (!q)
        return;
    img_qcow2_snapshots_free(q);
    img_qcow2_bitmaps_free(q);
    img_qcow2_header_free(&q->h);
    img_mutex_destroy(&q->flush_lock);
    img_mutex_destroy(&q->lock);
    free(q->l1);
    free(q->reftable);
    free(q->frees.list);
    free(q);
    layer->state = NULL;
}

/* Before close: freed clusters and bitmaps go out too. */
static int qcow2_finish(struct img_layer *layer, struct img_error *err)
{
    struct qcow2 *q = img_qcow2_of(layer);
    int r = img_qcow2_bitmaps_save(q, err);

    if (r == 0)
        r = img_qcow2_settle(q, err);
    return img_qcow2_result(q, r);
}

static int qcow2_probe(const uint8_t *head, size_t len, const char *path)
{
    if (len < 8 || img_get_be32(head) != QCOW2_MAGIC)
        return 0;
    return img_get_be32(head + 4) >= 2 ? 100 : 0;
}

static int qcow2_peek(const uint8_t *head, size_t len, char **name)
{
    uint64_t off;
    uint32_t name_len;

    *name = NULL;
    if (len < 20)
        return -EAGAIN;
    off = img_get_be64(head + 8);
    name_len = img_get_be32(head + 16);
    if (!off || !name_len)
        return 0;
    if (!img_inside(off, name_len, len))
        return -EAGAIN;
    *name = strndup((const char *)head + off, name_len);
    return *name ? 0 : -ENOMEM;
}

static int qcow2_codec(struct img_layer *layer, enum img_codec *codec,
                       struct img_error *err)
{
    struct qcow2 *q = img_qcow2_of(layer);

    if (q->data)
        return img_fail(err, ENOTSUP, "%s: an image with an external data "
                        "file cannot hold compressed clusters", layer->path);
    *codec = q->h.compression == QCOW2_ZSTD ? IMG_CODEC_ZSTD
                                            : IMG_CODEC_DEFLATE;
    return 0;
}

const struct img_format img_qcow2 = {
    .info = {
        .name = "qcow2",
        .features = IMG_CAN_WRITE | IMG_CAN_CREATE | IMG_CAN_BACK |
                    IMG_CAN_RESIZE | IMG_CAN_COMPRESS | IMG_CAN_SNAPSHOT |
                    IMG_CAN_BITMAP | IMG_CAN_CHECK | IMG_CAN_AMEND,
        .create_options = img_qcow2_options,
    },
    .probe = qcow2_probe, .peek = qcow2_peek, .open = qcow2_open,
    .finish = qcow2_finish, .close = qcow2_close,
    .create = img_qcow2_create, .codec = qcow2_codec, .map = img_qcow2_map,
    .may_be_sparse = img_qcow2_may_be_sparse, .passed = img_qcow2_passed,
    .reserve = img_qcow2_reserve, .publish = img_qcow2_publish,
    .abandon = img_qcow2_abandon, .unmap = img_qcow2_unmap,
    .sync = img_qcow2_sync, .touch = img_qcow2_touch,
    .tells_places = true, .clear_tail = true, .grow = img_qcow2_grow,
    .resize = img_qcow2_resize,
    .set_backing = img_qcow2_set_backing,
    .check_base = img_qcow2_check_base, .noted_base = img_qcow2_noted_base,
    .fingerprint = img_qcow2_fingerprint,
    .amend = img_qcow2_amend, .check = img_qcow2_check,
    .measure = img_qcow2_measure, .describe = img_qcow2_describe,
    .defaults = img_qcow2_defaults,
    .snapshots = &img_qcow2_snapshot_ops, .bitmaps = &img_qcow2_bitmap_ops,
    .sink = &img_qcow2_sink, .vm_state = img_qcow2_vm_state,
};
