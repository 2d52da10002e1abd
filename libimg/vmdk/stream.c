/* Writing streamOptimized images in one pass, as VMware lays them out:
 * header, descriptor, then for each grain table the packed grains, each
 * behind a marker, and the table; at the end the directory, a footer that
 * says where it is, and the end-of-stream marker.  Nothing is ever written
 * twice, so that a pipe will do.
 */
#include "vmdk/vmdk.h"
#include "base/cleanup.h"
#include "codec/codec.h"

#include <stdlib.h>
#include <string.h>

enum { GRAIN = 65536, ENTRIES = 512, ROOM = GRAIN + GRAIN / 8 + 2048 };
enum { OVERHEAD = 128 };            /* sectors before the first grain */

struct img_sink {
    int (*write)(void *, const void *, size_t, struct img_error *);
    void *opaque;
    uint64_t at;                    /* bytes written: whole sectors */
    struct vmdk_header h;
    uint32_t *gd;
    size_t n_gd, table;             /* table: the one that gt belongs to */
    uint32_t gt[ENTRIES];
    bool gt_used;
    uint64_t next;                  /* guest offset; nothing before it */
    struct img_packer *packer;      /* made when first needed */
    uint8_t *grain, *out;           /* GRAIN; ROOM */
};

static int emit(struct img_sink *s, const void *buf, size_t len,
                struct img_error *err)
{
    int r = s->write(s->opaque, buf, len, err);

    s->at += len;
    return r;
}

/* A metadata marker: so many sectors of this type follow. */
static int emit_marker(struct img_sink *s, uint64_t sectors, uint32_t type,
                       struct img_error *err)
{
    uint8_t b[VMDK_SECTOR] = { 0 };

    img_put_le64(b, sectors);
    img_put_le32(b + 12, type);
    return emit(s, b, sizeof b, err);
}

/* 32-bit numbers behind a marker, in whole sectors. */
static int emit_list(struct img_sink *s, const uint32_t *list, size_t n,
                     uint32_t type, struct img_error *err)
{
    size_t len = (size_t)img_round_up(n * 4, VMDK_SECTOR);
    img_autofree uint8_t *raw = calloc(1, len ? len : 1);
    int r;

    if (!raw)
        return img_fail_nomem(err);
    for (size_t i = 0; i < n; i++)
        img_put_le32(raw + 4 * i, list[i]);
    r = emit_marker(s, len / VMDK_SECTOR, type, err);
    return r || !len ? r : emit(s, raw, len, err);
}

static int flush_table(struct img_sink *s, struct img_error *err)
{
    int r;

    if (!s->gt_used)
        return 0;
    s->gd[s->table] = (uint32_t)(s->at / VMDK_SECTOR + 1);
    r = emit_list(s, s->gt, ENTRIES, VMDK_MARK_GT, err);
    memset(s->gt, 0, sizeof s->gt);
    s->gt_used = false;
    return r;
}

static int emit_head(struct img_sink *s, const char *text,
                     struct img_error *err)
{
    uint8_t *head = calloc(OVERHEAD, VMDK_SECTOR);
    int r;

    if (!head)
        return img_fail_nomem(err);
    img_vmdk_header_put(head, &s->h);
    memcpy(head + VMDK_SECTOR, text, strlen(text));
    r = emit(s, head, OVERHEAD * VMDK_SECTOR, err);
    free(head);
    return r;
}

static void sink_free(struct img_sink *s)
{
    if (!s)
        return;
    img_packer_free(s->packer);
    free(s->gd);
    free(s->grain);
    free(s->out);
    free(s);
}

static int start(struct img_sink *s, struct img_build *b,
                 const struct vmdk_options *o, struct img_error *err)
{
    img_autofree char *line = img_vmdk_own_line(o, b->path);
    char *text = NULL;
    int r;

    s->h = (struct vmdk_header){
        .version = 3, .capacity = o->size / VMDK_SECTOR,
        .flags = VMDK_FLAG_NEWLINES | VMDK_FLAG_COMPRESSED |
                 VMDK_FLAG_MARKERS |
                 (o->zeroed_grain ? VMDK_FLAG_ZERO_GRAIN : 0),
        .grain = GRAIN / VMDK_SECTOR, .gt_entries = ENTRIES,
        .text_off = 1, .text_len = VMDK_TEXT_SECTORS,
        .gd_off = VMDK_GD_AT_END, .overhead = OVERHEAD, .compressed = true,
    };
    s->n_gd = (size_t)img_div_up(o->size, (uint64_t)GRAIN * ENTRIES);
    if (s->n_gd * 4 > VMDK_DIRECTORY_MAX / 2)
        return img_fail(err, EFBIG, "%s: %llu bytes are too many for a "
                        "sparse VMDK extent", b->path,
                        (unsigned long long)o->size);
    s->gd = calloc(s->n_gd ? s->n_gd : 1, sizeof *s->gd);
    s->out = malloc(ROOM);
    if (!s->gd || !s->out || !line)
        return img_fail_nomem(err);
    r = img_vmdk_build_text(b, o, line, &text, err);
    if (r)
        return r;
    if (strlen(text) >= VMDK_TEXT_SECTORS * VMDK_SECTOR)
        r = img_fail(err, ENOSPC, "%s: the VMDK descriptor does not fit into "
                     "%d sectors", b->path, VMDK_TEXT_SECTORS);
    else
        r = emit_head(s, text, err);
    free(text);
    return r;
}

static int sink_begin(struct img_build *b,
                      int (*write)(void *, const void *, size_t,
                                   struct img_error *), void *opaque,
                      struct img_sink **sink, struct img_error *err)
{
    struct vmdk_options o;
    struct img_sink *s;
    int r;

    r = img_vmdk_options(b->opts, &o, err);
    if (r)
        return r;
    if (o.subformat != VMDK_STREAM)
        return img_fail(err, ENOTSUP, "%s: %s is not written in one pass",
                        b->path, img_vmdk_subformat_name(o.subformat));
    if (b->file && b->file->is_device)
        return img_fail(err, EINVAL, "%s: a streamOptimized image ends with "
                        "its file, so it cannot be written to a device",
                        b->path);
    r = img_vmdk_build_parent(b, &o, err);
    if (r)
        return r;
    s = calloc(1, sizeof *s);
    if (!s)
        return img_fail_nomem(err);
    s->write = write;
    s->opaque = opaque;
    r = start(s, b, &o, err);
    if (r) {
        sink_free(s);
        return r;
    }
    *sink = s;
    return 0;
}

/* A plain cluster, packed behind room for its marker; the last one of a disk
 * is filled up with zeros. */
static int pack_plain(struct img_sink *s, const void *data, size_t len,
                      size_t *packed, struct img_error *err)
{
    int r = 0;

    if (!s->packer)
        r = img_packer_new(IMG_CODEC_ZLIB, 0, 0, &s->packer, err);
    if (r)
        return r;
    if (len < GRAIN) {
        if (!s->grain)
            s->grain = malloc(GRAIN);
        if (!s->grain)
            return img_fail_nomem(err);
        memcpy(s->grain, data, len);
        memset(s->grain + len, 0, GRAIN - len);
        data = s->grain;
    }
    *packed = img_pack(s->packer, data, GRAIN, s->out + VMDK_GRAIN_MARKER,
                       ROOM - VMDK_GRAIN_MARKER - VMDK_SECTOR);
    if (!*packed)
        return img_fail(err, EIO, "a VMDK grain could not be packed");
    return 0;
}

static int sink_put(struct img_sink *s, uint64_t off, const void *data,
                    size_t len, bool packed, struct img_error *err)
{
    size_t table = (size_t)(off / ((uint64_t)GRAIN * ENTRIES)), total;
    int r = 0;

    if (off % GRAIN || off < s->next || table >= s->n_gd ||
        (!packed && len > GRAIN) ||
        (packed && len > ROOM - VMDK_GRAIN_MARKER - VMDK_SECTOR))
        return img_fail(err, EINVAL, "streamOptimized: %zu bytes cannot be "
                        "put at %llu", len, (unsigned long long)off);
    if (table != s->table)
        r = flush_table(s, err);
    if (r)
        return r;
    s->table = table;
    if (packed)
        memcpy(s->out + VMDK_GRAIN_MARKER, data, len);
    else
        r = pack_plain(s, data, len, &len, err);
    if (r)
        return r;
    if (s->at / VMDK_SECTOR > UINT32_MAX - 4096)
        return img_fail(err, EFBIG, "a streamOptimized image holds at most "
                        "2 TiB");
    img_put_le64(s->out, off / VMDK_SECTOR);
    img_put_le32(s->out + 8, (uint32_t)len);
    total = (size_t)img_round_up(VMDK_GRAIN_MARKER + len, VMDK_SECTOR);
    memset(s->out + VMDK_GRAIN_MARKER + len, 0,
           total - VMDK_GRAIN_MARKER - len);
    s->gt[off / GRAIN % ENTRIES] = (uint32_t)(s->at / VMDK_SECTOR);
    s->gt_used = true;
    s->next = off + GRAIN;
    return emit(s, s->out, total, err);
}

static int sink_finish(struct img_sink *s, struct img_error *err)
{
    uint8_t footer[VMDK_SECTOR];
    int r;

    r = flush_table(s, err);
    if (r)
        return r;
    s->h.gd_off = s->at / VMDK_SECTOR + 1;
    r = emit_list(s, s->gd, s->n_gd, VMDK_MARK_GD, err);
    if (r == 0)
        r = emit_marker(s, 1, VMDK_MARK_FOOTER, err);
    if (r)
        return r;
    img_vmdk_header_put(footer, &s->h);
    r = emit(s, footer, sizeof footer, err);
    return r ? r : emit_marker(s, 0, VMDK_MARK_EOS, err);
}

static uint32_t sink_cluster_size(const struct img_sink *s)
{
    return GRAIN;
}

const struct img_sink_ops img_vmdk_sink = {
    .begin = sink_begin, .put = sink_put, .finish = sink_finish,
    .free = sink_free, .codec = IMG_CODEC_ZLIB,
    .cluster_size = sink_cluster_size,
};
