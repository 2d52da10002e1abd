/* Compressed writes, and places whose parts are done apart.
 *
 * Locks: pack_lock guards the one spare packer, no more.
 */
#include "core/request.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/iov.h"
#include "cache/zcache.h"
#include "codec/codec.h"
#include "file/file.h"

#include <stdlib.h>

/* QEMU inflates qcow2 clusters with zlib's window of 2^12 bytes. */
enum { DEFLATE_WINDOW = 4096 };

static int take_packer(struct img_io *io, enum img_codec codec,
                       struct img_packer **packer, struct img_error *err)
{
    struct img_packer *p;

    img_lock(&io->pack_lock);
    p = io->packer && io->packer_codec == codec ? io->packer : NULL;
    if (p)
        io->packer = NULL;
    img_unlock(&io->pack_lock);
    if (p) {
        *packer = p;
        return 0;
    }
    return img_packer_new(codec, 0,
                          codec == IMG_CODEC_DEFLATE ? DEFLATE_WINDOW : 0,
                          packer, err);
}

static void give_packer(struct img_io *io, enum img_codec codec,
                        struct img_packer *p)
{
    struct img_packer *old;

    img_lock(&io->pack_lock);
    old = io->packer;
    io->packer = p;
    io->packer_codec = codec;
    img_unlock(&io->pack_lock);
    img_packer_free(old);
}

/* What was inflated from that place before is history. */
static int put_packed(struct img_io *io, unsigned to,
                      const struct img_place *p, const void *data,
                      struct img_error *err)
{
    struct img_layer *l = io->chain->layers[to];
    int r = img_file_pwrite(l->files[p->file], data, p->packed, p->host, err);

    if (r < 0) {
        l->format->abandon(l, p);
        return r;
    }
    img_zcache_forget(io->chain->inflated, l->files[p->file], p->host);
    return img_note(io, to, l->format->publish(l, p, err));
}

/* One cluster, in `plain`, of which the first len bytes are the disk's. */
static int pack_cluster(struct img_io *io, unsigned to,
                        struct img_packer *packer, const char *plain,
                        size_t cluster, char *packed, uint64_t off,
                        size_t len, struct img_error *err)
{
    struct iovec iov = { (void *)plain, len };
    size_t n = img_pack(packer, plain, cluster, packed, cluster - 1);
    struct img_place place;
    struct img_scatter s;
    int r;

    if (n) {
        r = img_io_reserve_packed(io, to, off, (uint32_t)n, &place, err);
        return r < 0 ? r : put_packed(io, to, &place, packed, err);
    }
    r = img_scatter_init(&s, &iov, 1, err);
    return r < 0 ? r : img_write_locked(io, to, &s, 0, off, len, err);
}

int img_write_packed(struct img_io *io, unsigned to, struct img_scatter *s,
                     uint64_t off, size_t len, struct img_error *err)
{
    struct img_layer *l = io->chain->layers[to];
    size_t cluster = (size_t)1 << l->cluster_bits;
    struct img_packer *packer = NULL;
    enum img_codec codec;
    char *buf;
    int r;

    if (!l->format->codec)
        return img_fail(err, ENOTSUP, "%s: format %s has no compressed "
                        "clusters", l->path, l->format->info.name);
    r = l->format->codec(l, &codec, err);
    if (r == 0)
        r = take_packer(io, codec, &packer, err);
    if (r < 0)
        return r;
    buf = malloc(2 * cluster);
    if (!buf)
        r = img_fail_nomem(err);
    for (size_t at = 0; r == 0 && at < len; at += cluster) {
        size_t part = IMG_MIN(cluster, len - at);

        img_iov_gather(s->iov, s->n, at, buf, part);
        for (size_t i = part; i < cluster; i++)
            buf[i] = 0;
        r = pack_cluster(io, to, packer, buf, cluster, buf + cluster,
                         off + at, part, err);
    }
    free(buf);
    give_packer(io, codec, packer);
    return r;
}

int img_io_put(struct img_io *io, unsigned to, const struct img_place *place,
               const void *data, struct img_error *err)
{
    struct iovec iov = { (void *)data, (size_t)place->len };
    struct img_scatter s;
    int r;

    if (place->packed)
        return put_packed(io, to, place, data, err);
    r = img_scatter_init(&s, &iov, 1, err);
    return r < 0 ? r : img_write_place(io, to, &s, 0, place, err);
}
