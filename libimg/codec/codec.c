/* One face for all codecs; contexts are made when they are first needed. */
#include "codec/codec.h"
#include "base/error.h"
#include "codec/parts.h"

#include <stdlib.h>

struct img_unpacker {
    struct img_inflater *inflater;
    struct img_unzstd *unzstd;
};

struct img_packer {
    struct img_deflater *deflater;  /* one of the two */
    struct img_zstd *zstd;
};

int img_unpacker_new(struct img_unpacker **u, struct img_error *err)
{
    *u = calloc(1, sizeof **u);
    return *u ? 0 : img_fail_nomem(err);
}

void img_unpacker_free(struct img_unpacker *u)
{
    if (!u)
        return;
    img_inflater_free(u->inflater);
    img_unzstd_free(u->unzstd);
    free(u);
}

int img_unpack(struct img_unpacker *u, enum img_codec codec, const void *in,
               size_t in_len, void *out, size_t out_len,
               struct img_error *err)
{
    return img_unpack_short(u, codec, in, in_len, out, out_len, out_len, err);
}

int img_unpack_short(struct img_unpacker *u, enum img_codec codec,
                     const void *in, size_t in_len, void *out, size_t out_len,
                     size_t min_len, struct img_error *err)
{
    int r = 0;

    if (codec == IMG_CODEC_ZSTD) {
        if (!u->unzstd)
            r = img_unzstd_new(&u->unzstd, err);
        return r < 0 ? r : img_unzstd(u->unzstd, in, in_len, out, out_len,
                                      err);
    }
    if (!u->inflater)
        r = img_inflater_new(&u->inflater, err);
    return r < 0 ? r : img_inflate(u->inflater, codec, in, in_len, out,
                                   out_len, min_len, err);
}

int img_packer_new(enum img_codec codec, int level, uint32_t window,
                   struct img_packer **packer, struct img_error *err)
{
    struct img_packer *p = calloc(1, sizeof *p);
    int r;

    if (!p)
        return img_fail_nomem(err);
    if (codec == IMG_CODEC_ZSTD)
        r = img_zstd_new(level, window, &p->zstd, err);
    else
        r = img_deflater_new(codec, level, window, &p->deflater, err);
    if (r < 0) {
        free(p);
        return r;
    }
    *packer = p;
    return 0;
}

void img_packer_free(struct img_packer *p)
{
    if (!p)
        return;
    img_deflater_free(p->deflater);
    img_zstd_free(p->zstd);
    free(p);
}

size_t img_pack(struct img_packer *p, const void *in, size_t in_len,
                void *out, size_t out_len)
{
    return p->zstd ? img_zstd(p->zstd, in, in_len, out, out_len)
                   : img_deflate(p->deflater, in, in_len, out, out_len);
}
