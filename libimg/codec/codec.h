/* Packing and unpacking one cluster, with contexts that are reused. */
#ifndef IMG_CODEC_CODEC_H
#define IMG_CODEC_CODEC_H
#include "format.h"

struct img_unpacker;            /* for one thread at a time, any codec */
struct img_packer;

int img_unpacker_new(struct img_unpacker **u, struct img_error *err);
void img_unpacker_free(struct img_unpacker *u);
/* Inflates exactly out_len bytes from in, which may have junk behind the
 * packed data.  Shorter content is -IMG_ECORRUPT; the message has no file
 * name (img_fail_prefix adds it). */
int img_unpack(struct img_unpacker *u, enum img_codec codec, const void *in,
               size_t in_len, void *out, size_t out_len,
               struct img_error *err);
/* The same, but the content may end after min_len bytes; then zeros follow. */
int img_unpack_short(struct img_unpacker *u, enum img_codec codec,
                     const void *in, size_t in_len, void *out, size_t out_len,
                     size_t min_len, struct img_error *err);

/* level 0 = the codec's default.  window: distances reach at most so many
 * bytes back; 0 = no limit (qcow2 for strict readers: 4096). */
int img_packer_new(enum img_codec codec, int level, uint32_t window,
                   struct img_packer **p, struct img_error *err);
void img_packer_free(struct img_packer *p);
/* Returns the packed length, or 0 where it does not fit into out_len. */
size_t img_pack(struct img_packer *p, const void *in, size_t in_len,
                void *out, size_t out_len);
#endif
