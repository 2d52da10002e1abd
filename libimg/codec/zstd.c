/* Zstandard (RFC 8878). */
#include "base/checked.h"
#include "base/error.h"
#include "codec/parts.h"

#include <stdlib.h>

#ifdef HAVE_ZSTD
#include <zstd.h>

enum { DEFAULT_LEVEL = 3 };

struct img_unzstd {
    ZSTD_DCtx *ctx;
};

struct img_zstd {
    ZSTD_CCtx *ctx;
};

int img_unzstd_new(struct img_unzstd **unzstd, struct img_error *err)
{
    struct img_unzstd *u = calloc(1, sizeof *u);

    if (u)
        u->ctx = ZSTD_createDCtx();
    if (!u || !u->ctx) {
        free(u);
        return img_fail_nomem(err);
    }
    *unzstd = u;
    return 0;
}

void img_unzstd_free(struct img_unzstd *u)
{
    if (!u)
        return;
    ZSTD_freeDCtx(u->ctx);
    free(u);
}

/* Frame by frame, until there is enough: where the packed data ends is not
 * known before, and what is behind it may be anything. */
int img_unzstd(struct img_unzstd *u, const void *in, size_t in_len, void *out,
               size_t out_len, struct img_error *err)
{
    const char *from = in;
    char *to = out;
    size_t have = 0;

    while (have < out_len) {
        size_t len = ZSTD_findFrameCompressedSize(from, in_len), made;

        if (ZSTD_isError(len))
            return img_fail(err, IMG_ECORRUPT, have ? "zstd data ends after "
                            "%zu of %zu bytes" : "zstd frame is damaged",
                            have, out_len);
        made = ZSTD_decompressDCtx(u->ctx, to + have, out_len - have, from,
                                   len);
        if (ZSTD_isError(made))
            return img_fail(err, IMG_ECORRUPT, "zstd frame is damaged: %s",
                            ZSTD_getErrorName(made));
        have += made;
        from += len;
        in_len -= len;
    }
    return 0;
}

int img_zstd_new(int level, uint32_t window, struct img_zstd **zstd,
                 struct img_error *err)
{
    struct img_zstd *z;
    int log = window ? (int)img_log2(window) : 0;

    if (level < 0 || level > ZSTD_maxCLevel())
        return img_fail(err, EINVAL, "zstd: level %d is not between 1 and %d",
                        level, ZSTD_maxCLevel());
    if (window && (log < 10 || !img_is_pow2(window)))
        return img_fail(err, EINVAL, "zstd: a window of %u bytes", window);
    z = calloc(1, sizeof *z);
    if (z)
        z->ctx = ZSTD_createCCtx();
    if (!z || !z->ctx) {
        free(z);
        return img_fail_nomem(err);
    }
    if (ZSTD_isError(ZSTD_CCtx_setParameter(z->ctx, ZSTD_c_compressionLevel,
                                            level ? level : DEFAULT_LEVEL)) ||
        ZSTD_isError(ZSTD_CCtx_setParameter(z->ctx, ZSTD_c_windowLog, log))) {
        img_zstd_free(z);
        return img_fail(err, EINVAL, "zstd: level %d, window %u", level,
                        window);
    }
    *zstd = z;
    return 0;
}

void img_zstd_free(struct img_zstd *z)
{
    if (!z)
        return;
    ZSTD_freeCCtx(z->ctx);
    free(z);
}

size_t img_zstd(struct img_zstd *z, const void *in, size_t in_len, void *out,
                size_t out_len)
{
    size_t len = ZSTD_compress2(z->ctx, out, out_len, in, in_len);

    return ZSTD_isError(len) ? 0 : len;
}

#else

static int refuse(struct img_error *err)
{
    return img_fail(err, ENOTSUP, "zstd: not built into this libimg");
}

int img_unzstd_new(struct img_unzstd **u, struct img_error *err)
{
    return refuse(err);
}

void img_unzstd_free(struct img_unzstd *u)
{
}

int img_unzstd(struct img_unzstd *u, const void *in, size_t in_len, void *out,
               size_t out_len, struct img_error *err)
{
    return refuse(err);
}

int img_zstd_new(int level, uint32_t window, struct img_zstd **z,
                 struct img_error *err)
{
    return refuse(err);
}

void img_zstd_free(struct img_zstd *z)
{
}

size_t img_zstd(struct img_zstd *z, const void *in, size_t in_len, void *out,
                size_t out_len)
{
    return 0;
}
#endif
