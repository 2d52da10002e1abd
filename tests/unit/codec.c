#include "unit.h"
#include "codec/codec.h"

#include <limits.h>
#include <zlib.h>
#ifdef HAVE_ZSTD
#include <zstd.h>
#endif

enum { LEN = 65536, ROOM = LEN + 1024 };

static uint8_t plain[LEN], packed[2 * ROOM], out[LEN + 1];

/* Content that packs well and content that does not. */
static void fill(int kind)
{
    uint64_t seed = (uint64_t)kind;

    for (size_t i = 0; i < LEN; i++) {
        uint32_t v = unit_random(&seed);

        switch (kind) {
        case 0: plain[i] = 0; break;
        case 1: plain[i] = (uint8_t)v; break;
        case 2: plain[i] = "the quick brown fox"[v % 19]; break;
        default: plain[i] = v % 50 || i < 30000 ? (uint8_t)v
                                                : plain[i - 30000]; break;
        }
    }
    if (kind == 3)
        memcpy(plain + 40000, plain + 9000, 20000);
}

static size_t pack(enum img_codec codec, int level, uint32_t window,
                   size_t room)
{
    struct img_packer *p;
    struct img_error err;
    size_t len;

    assert_ok(img_packer_new(codec, level, window, &p, &err), err);
    len = img_pack(p, plain, LEN, packed, room);
    if (len) {                  /* contexts give the same every time */
        memcpy(packed + ROOM, packed, len);
        assert_int_equal(img_pack(p, plain, LEN, packed, room), len);
        assert_memory_equal(packed, packed + ROOM, len);
    }
    img_packer_free(p);
    return len;
}

static int unpack(struct img_unpacker *u, enum img_codec codec, size_t in_len,
                  size_t out_len, struct img_error *err)
{
    memset(out, 0xee, sizeof out);
    memset(err, 0, sizeof *err);
    return img_unpack(u, codec, packed, in_len, out, out_len, err);
}

static void check_codec(enum img_codec codec, int level, uint32_t window)
{
    struct img_unpacker *u;
    struct img_error err;
    size_t len;

    assert_ok(img_unpacker_new(&u, &err), err);
    for (int kind = 0; kind < 4; kind++) {
        fill(kind);
        len = pack(codec, level, window, ROOM);
        assert_true(len > 0);
        assert_true(kind != 0 || len < 400);
        assert_int_equal(pack(codec, level, window, len - 1), 0);
        assert_int_equal(pack(codec, level, window, 1), 0);
        assert_int_equal(pack(codec, level, window, ROOM), len);

        assert_ok(unpack(u, codec, len, LEN, &err), err);
        assert_memory_equal(out, plain, LEN);
        assert_int_equal(out[LEN], 0xee);

        /* Junk behind it. */
        memset(packed + len, 0x5a, 600);
        assert_ok(unpack(u, codec, len + 600, LEN, &err), err);
        assert_memory_equal(out, plain, LEN);

        /* Shorter than asked for. */
        assert_int_equal(unpack(u, codec, len, LEN + 1, &err),
                         -IMG_ECORRUPT);
        assert_true(err.message[0]);
        /* Cut in two. */
        assert_int_equal(unpack(u, codec, len / 2, LEN, &err), -IMG_ECORRUPT);
        assert_int_equal(unpack(u, codec, 0, LEN, &err), -IMG_ECORRUPT);
        /* And usable after all that. */
        assert_ok(unpack(u, codec, len, LEN, &err), err);
        assert_memory_equal(out, plain, LEN);
    }
    img_unpacker_free(u);
}

static void test_deflate(void **state)
{
    check_codec(IMG_CODEC_DEFLATE, 0, 0);
    check_codec(IMG_CODEC_DEFLATE, 9, 0);
    check_codec(IMG_CODEC_DEFLATE, 0, 4096);
}

static void test_zlib(void **state)
{
    check_codec(IMG_CODEC_ZLIB, 0, 0);
    check_codec(IMG_CODEC_ZLIB, 6, 4096);
}

static void test_zstd(void **state)
{
#ifdef HAVE_ZSTD
    check_codec(IMG_CODEC_ZSTD, 0, 0);
    check_codec(IMG_CODEC_ZSTD, 12, 4096);
#else
    struct img_unpacker *u;
    struct img_packer *p;
    struct img_error err;

    assert_int_equal(img_packer_new(IMG_CODEC_ZSTD, 0, 0, &p, &err),
                     -ENOTSUP);
    assert_ok(img_unpacker_new(&u, &err), err);
    assert_int_equal(unpack(u, IMG_CODEC_ZSTD, 10, LEN, &err), -ENOTSUP);
    img_unpacker_free(u);
#endif
}

static size_t by_zlib(int bits, int level, int strategy, int flush)
{
    z_stream z = { .next_in = plain, .avail_in = LEN,
                   .next_out = packed, .avail_out = 2 * ROOM };

    assert_int_equal(deflateInit2(&z, level, Z_DEFLATED, bits, 9, strategy),
                     Z_OK);
    deflate(&z, flush);
    deflateEnd(&z);
    return z.total_out;
}

/* What QEMU and others write, with all of zlib's ways. */
static void test_from_zlib(void **state)
{
    struct img_unpacker *u;
    struct img_error err;
    size_t len;

    assert_ok(img_unpacker_new(&u, &err), err);
    for (int kind = 0; kind < 4; kind++) {
        fill(kind);
        for (int level = 0; level <= 9; level += 3)
            for (int strategy = 0; strategy <= Z_FIXED; strategy++) {
                by_zlib(-12, level, strategy, Z_FINISH);
                assert_ok(unpack(u, IMG_CODEC_DEFLATE, 2 * ROOM, LEN, &err),
                          err);
                assert_memory_equal(out, plain, LEN);
                len = by_zlib(15, level, strategy, Z_FINISH);
                assert_ok(unpack(u, IMG_CODEC_ZLIB, len, LEN, &err), err);
                assert_memory_equal(out, plain, LEN);
            }
    }
    img_unpacker_free(u);
}

/* All bytes are there but the stream has no end, or goes on. */
static void test_open_end(void **state)
{
    struct img_unpacker *u;
    struct img_error err;
    size_t len;

    assert_ok(img_unpacker_new(&u, &err), err);
    for (int kind = 0; kind < 4; kind++) {
        fill(kind);
        len = by_zlib(-12, 6, 0, Z_SYNC_FLUSH);
        assert_ok(unpack(u, IMG_CODEC_DEFLATE, len, LEN, &err), err);
        assert_memory_equal(out, plain, LEN);
        assert_ok(unpack(u, IMG_CODEC_DEFLATE, len, LEN / 2, &err), err);
        assert_memory_equal(out, plain, LEN / 2);
        assert_int_equal(out[LEN / 2], 0xee);
        len = by_zlib(15, 6, 0, Z_SYNC_FLUSH);
        assert_int_equal(unpack(u, IMG_CODEC_ZLIB, len, LEN, &err),
                         -IMG_ECORRUPT);
        len = by_zlib(15, 6, 0, Z_FINISH);
        assert_int_equal(unpack(u, IMG_CODEC_ZLIB, len, LEN / 2, &err),
                         -IMG_ECORRUPT);
        packed[len - 1] ^= 1;   /* the checksum */
        assert_int_equal(unpack(u, IMG_CODEC_ZLIB, len, LEN, &err),
                         -IMG_ECORRUPT);
    }
    img_unpacker_free(u);
}

#ifdef HAVE_ZSTD
static void test_zstd_frames(void **state)
{
    struct img_unpacker *u;
    struct img_error err;
    size_t a, b;

    assert_ok(img_unpacker_new(&u, &err), err);
    fill(3);
    a = ZSTD_compress(packed, sizeof packed, plain, 1000, 3);
    b = ZSTD_compress(packed + a, sizeof packed - a, plain + 1000,
                      LEN - 1000, 3);
    assert_ok(unpack(u, IMG_CODEC_ZSTD, a + b + 77, LEN, &err), err);
    assert_memory_equal(out, plain, LEN);
    assert_int_equal(unpack(u, IMG_CODEC_ZSTD, a, LEN, &err), -IMG_ECORRUPT);
    assert_int_equal(unpack(u, IMG_CODEC_ZSTD, a + b, 999, &err),
                     -IMG_ECORRUPT);
    packed[0] ^= 1;
    assert_int_equal(unpack(u, IMG_CODEC_ZSTD, a + b, LEN, &err),
                     -IMG_ECORRUPT);
    img_unpacker_free(u);
}
#endif

/* Damage never leads outside the buffers (for ASan) nor to success with too
 * few bytes; a checksum sees all of it. */
static void test_damage(void **state)
{
    const enum img_codec codecs[] = {
        IMG_CODEC_DEFLATE, IMG_CODEC_ZLIB,
#ifdef HAVE_ZSTD
        IMG_CODEC_ZSTD,
#endif
    };
    struct img_unpacker *u;
    struct img_error err;
    uint64_t seed = 1;

    assert_ok(img_unpacker_new(&u, &err), err);
    fill(3);
    for (size_t k = 0; k < IMG_COUNT(codecs); k++) {
        size_t len = pack(codecs[k], 0, 0, ROOM);
        uint8_t *tight = malloc(len), *room = malloc(LEN);

        for (int i = 0; i < 300; i++) {
            memcpy(tight, packed, len);
            tight[unit_random(&seed) % len] ^=
                (uint8_t)(1u << unit_random(&seed) % 8);
            if (img_unpack(u, codecs[k], tight, len, room, LEN, &err) == 0 &&
                codecs[k] == IMG_CODEC_ZLIB)
                assert_memory_equal(room, plain, LEN);
        }
        free(tight);
        free(room);
    }
    img_unpacker_free(u);
}

static void test_arguments(void **state)
{
    struct img_packer *p = NULL;
    struct img_error err;

    assert_int_equal(img_packer_new(IMG_CODEC_DEFLATE, 13, 0, &p, &err),
                     -EINVAL);
    assert_int_equal(img_packer_new(IMG_CODEC_DEFLATE, 10, 4096, &p, &err),
                     -EINVAL);
    assert_int_equal(img_packer_new(IMG_CODEC_ZLIB, -1, 0, &p, &err),
                     -EINVAL);
    assert_int_equal(img_packer_new(IMG_CODEC_DEFLATE, 1, 5000, &p, &err),
                     -EINVAL);
#ifdef HAVE_ZSTD
    assert_int_equal(img_packer_new(IMG_CODEC_ZSTD, 99, 0, &p, &err),
                     -EINVAL);
    assert_int_equal(img_packer_new(IMG_CODEC_ZSTD, 0, 512, &p, &err),
                     -EINVAL);
#endif
    assert_int_equal(img_packer_new(IMG_CODEC_DEFLATE, 1, 256, &p, &err),
                     -EINVAL);
#ifdef HAVE_ZSTD
    assert_int_equal(img_packer_new(IMG_CODEC_ZSTD, -1, 0, &p, &err),
                     -EINVAL);
    assert_int_equal(img_packer_new(IMG_CODEC_ZSTD, 0, 5000, &p, &err),
                     -EINVAL);
#endif
    assert_null(p);
    img_packer_free(NULL);
    img_unpacker_free(NULL);
}

/* Every window that is possible, and the smallest levels. */
static void test_windows(void **state)
{
    for (uint32_t window = 512; window <= 1 << 17; window *= 2) {
        check_codec(IMG_CODEC_DEFLATE, 1, window);
        check_codec(IMG_CODEC_ZLIB, 1, window);
    }
}

/* Lengths that zlib cannot count are refused before they are looked at. */
static void test_too_long(void **state)
{
    const size_t too_long = (size_t)UINT_MAX + 1;
    struct img_unpacker *u;
    struct img_packer *p;
    struct img_error err;
    size_t len;

    if (sizeof too_long == 4)
        skip();
    fill(2);
    assert_ok(img_unpacker_new(&u, &err), err);
    assert_int_equal(img_unpack(u, IMG_CODEC_DEFLATE, packed, too_long, out,
                                LEN, &err), -IMG_ECORRUPT);
    assert_non_null(strstr(err.message, "4294967296 bytes"));
    assert_int_equal(img_unpack(u, IMG_CODEC_ZLIB, packed, 10, out, too_long,
                                &err), -IMG_ECORRUPT);
    assert_ok(img_packer_new(IMG_CODEC_DEFLATE, 1, 4096, &p, &err), err);
    assert_int_equal(img_pack(p, plain, too_long, packed, ROOM), 0);
    len = img_pack(p, plain, LEN, packed, too_long);
    assert_true(len > 0 && len < LEN);
    assert_ok(unpack(u, IMG_CODEC_DEFLATE, len, LEN, &err), err);
    assert_memory_equal(out, plain, LEN);
    img_packer_free(p);
    img_unpacker_free(u);
}

/* A stream may be short of the cluster by so much, zeros follow; not by
 * more. */
static void test_short(void **state)
{
    const enum img_codec codecs[] = { IMG_CODEC_DEFLATE, IMG_CODEC_ZLIB };
    enum { HALF = LEN / 2 };
    struct img_unpacker *u;
    struct img_error err;

    fill(3);
    assert_ok(img_unpacker_new(&u, &err), err);
    for (size_t i = 0; i < IMG_COUNT(codecs); i++) {
        struct img_packer *p;
        size_t len;

        assert_ok(img_packer_new(codecs[i], 0, 0, &p, &err), err);
        len = img_pack(p, plain, HALF, packed, ROOM);
        img_packer_free(p);
        for (unsigned min = HALF - 1; min <= HALF + 1; min++) {
            int r;

            memset(out, 0xee, sizeof out);
            r = img_unpack_short(u, codecs[i], packed, len + 99, out, LEN,
                                 min, &err);
            assert_int_equal(r, min <= HALF ? 0 : -IMG_ECORRUPT);
            if (r < 0) {
                assert_non_null(strstr(err.message,
                                       "32768 bytes instead of 65536"));
                continue;
            }
            assert_memory_equal(out, plain, HALF);
            for (size_t k = HALF; k < LEN; k++)
                assert_int_equal(out[k], 0);
            assert_int_equal(out[LEN], 0xee);
        }
    }
    img_unpacker_free(u);
}

/* A window of 4096 bytes: no distance beyond it.  zlib's inflate refuses
 * one when it gets the output in small pieces. */
static void test_window(void **state)
{
    z_stream z = { .next_in = packed };
    int r = Z_OK;

    fill(3);
    z.avail_in = (uInt)pack(IMG_CODEC_DEFLATE, 9, 4096, ROOM);
    assert_int_equal(inflateInit2(&z, -12), Z_OK);
    while (r == Z_OK) {
        z.next_out = out;
        z.avail_out = 100;
        r = inflate(&z, Z_NO_FLUSH);
    }
    assert_int_equal(r, Z_STREAM_END);
    assert_int_equal(z.total_out, LEN);
    inflateEnd(&z);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deflate),
        cmocka_unit_test(test_zlib),
        cmocka_unit_test(test_zstd),
        cmocka_unit_test(test_from_zlib),
        cmocka_unit_test(test_open_end),
#ifdef HAVE_ZSTD
        cmocka_unit_test(test_zstd_frames),
#endif
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_too_long),
        cmocka_unit_test(test_short),
    };

    return cmocka_run_group_tests_name("codec", tests, NULL, NULL);
}
