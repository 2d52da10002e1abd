/* What codec.c is made of: one pair of contexts for each family of codecs. */
#ifndef IMG_CODEC_PARTS_H
#define IMG_CODEC_PARTS_H
#include "codec/codec.h"

struct img_inflater;
int img_inflater_new(struct img_inflater **i, struct img_error *err);
void img_inflater_free(struct img_inflater *i);
int img_inflate(struct img_inflater *i, enum img_codec codec, const void *in,
                size_t in_len, void *out, size_t out_len, size_t min_len,
                struct img_error *err);

struct img_deflater;
int img_deflater_new(enum img_codec codec, int level, uint32_t window,
                     struct img_deflater **d, struct img_error *err);
void img_deflater_free(struct img_deflater *d);
size_t img_deflate(struct img_deflater *d, const void *in, size_t in_len,
                   void *out, size_t out_len);

struct img_unzstd;
int img_unzstd_new(struct img_unzstd **u, struct img_error *err);
void img_unzstd_free(struct img_unzstd *u);
int img_unzstd(struct img_unzstd *u, const void *in, size_t in_len, void *out,
               size_t out_len, struct img_error *err);

struct img_zstd;
int img_zstd_new(int level, uint32_t window, struct img_zstd **z,
                 struct img_error *err);
void img_zstd_free(struct img_zstd *z);
size_t img_zstd(struct img_zstd *z, const void *in, size_t in_len, void *out,
                size_t out_len);
#endif
