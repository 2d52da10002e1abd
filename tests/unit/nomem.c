/* Want of memory in what all formats rest on: each allocation fails once.
 * Then it is -ENOMEM and nothing is kept, or it worked all the same, and what
 * comes out is right. */
#include "../shim.h"
#include "unit.h"
#include "base/info.h"
#include "base/runs.h"
#include "base/strings.h"
#include "base/team.h"
#include "cache/tcache.h"
#include "cache/zcache.h"
#include "file/file.h"

#include <zlib.h>

enum { LEN = 65536, ROOM = LEN + 1024 };

/* A sanitizer has its own malloc: there the operations only work. */
#ifdef SHIM_SANITIZED
#define FAILS false
#else
#define FAILS true
#endif

static uint8_t plain[LEN], packed[ROOM], out[LEN];
static size_t packed_len = ROOM;
static struct img_file *mem;

typedef int operation(int arg, struct img_error *err);

/* Lets each allocation of op fail, one after the other. */
static void each(const char *name, operation *op, int arg)
{
    struct img_error err;
    long n = 1, refused = 0;
    int r;

    assert_ok(op(arg, &err), err);              /* it works at all */
    for (;; n++) {
        struct shim_fault f = { .kinds = SHIM_MEMORY, .code = ENOMEM };
        long blocks = shim_blocks;

        atomic_store(&f.left, n);
        memset(&err, 0, sizeof err);
        shim_fault = &f;
        r = op(arg, &err);
        shim_fault = NULL;
        if (!atomic_load(&f.failed))
            break;
        if (r < 0) {
            assert_int_equal(r, -ENOMEM);
            assert_int_equal(err.code, ENOMEM);
            assert_non_null(strstr(err.message, "emory"));
            refused++;
        }
        if (shim_blocks != blocks)
            fail_msg("%s(%d), allocation %ld: %ld blocks are kept", name, arg,
                     n, (long)shim_blocks - blocks);
    }
    assert_ok(r, err);
    if (!refused && FAILS)
        fail_msg("%s(%d) never refused: %ld allocations", name, arg, n - 1);
}

#define EACH(op, arg) each(#op, op, arg)

/* ---- codecs ---------------------------------------------------------------- */

static const struct { enum img_codec codec; uint32_t window; } packers[] = {
    { IMG_CODEC_DEFLATE, 0 }, { IMG_CODEC_DEFLATE, 4096 },
    { IMG_CODEC_ZLIB, 0 }, { IMG_CODEC_ZLIB, 4096 },
#ifdef HAVE_ZSTD
    { IMG_CODEC_ZSTD, 0 },
#endif
};

/* 0: it did not get smaller, which is no error. */
static int pack(int arg, struct img_error *err)
{
    struct img_packer *p;
    int r = img_packer_new(packers[arg].codec, 0, packers[arg].window, &p,
                           err);
    size_t len;

    if (r < 0)
        return r;
    len = img_pack(p, plain, LEN, packed, ROOM);
    img_packer_free(p);
    assert_true(len < LEN);
    return 0;
}

static int unpack(int arg, struct img_error *err)
{
    struct img_unpacker *u;
    int r = img_unpacker_new(&u, err);

    if (r < 0)
        return r;
    memset(out, 0, LEN);
    r = img_unpack(u, packers[arg].codec, packed, packed_len, out, LEN,
                   err);
    img_unpacker_free(u);
    if (r == 0)
        assert_memory_equal(out, plain, LEN);
    return r;
}

/* A stream without an end, for which there is only the slow way. */
static int unpack_open(int arg, struct img_error *err)
{
    return unpack(0, err);
}

static void test_codecs(void **state)
{
    z_stream z = { .next_in = plain, .avail_in = LEN,
                   .next_out = packed, .avail_out = ROOM };

    for (int i = 0; i < (int)IMG_COUNT(packers); i++) {
        struct img_packer *p;
        struct img_error err;

        EACH(pack, i);
        assert_ok(img_packer_new(packers[i].codec, 0, packers[i].window, &p,
                                 &err), err);
        assert_true(img_pack(p, plain, LEN, packed, ROOM) > 0);
        img_packer_free(p);
        EACH(unpack, i);
    }
    assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, -12, 9, 0), Z_OK);
    deflate(&z, Z_SYNC_FLUSH);
    packed_len = z.total_out;
    deflateEnd(&z);
    EACH(unpack_open, 0);
}

/* ---- base ------------------------------------------------------------------ */

static int add_strings(int arg, struct img_error *err)
{
    struct img_strings s = { 0 };
    int r = 0;

    for (int i = 0; i < arg && r == 0; i++)
        r = img_strings_addf(&s, err, "number %d of %s", i, "them");
    for (size_t i = 0; i < s.n; i++)
        assert_non_null(strstr(s.list[i], "number"));
    img_strings_free(&s);
    return r;
}

static int describe(int arg, struct img_error *err)
{
    struct img_info *info = img_info_new();
    struct img_snapshot_info *s;
    struct img_value *g;
    bool ok;

    if (!info)
        return img_fail_nomem(err);
    g = img_info_specific(info);
    ok = g && img_value_bool(g, "a", true) && img_value_uint(g, "b", 1) &&
         img_value_text(g, "c", "text") &&
         img_value_text(img_value_list(g, "d"), NULL, "item") &&
         img_value_text(img_value_group(g, "e"), "f", "member") &&
         img_info_add_bitmap(info);
    s = ok ? img_info_add_snapshot(info) : NULL;
    ok = s && img_info_text(&s->name, "name", err) == 0 &&
         img_info_text(&info->path, "path", err) == 0;
    if (s)
        assert_true(s->icount == UINT64_MAX);
    img_info_free(info);
    return ok ? 0 : img_fail_nomem(err);
}

static int add_runs(int arg, struct img_error *err)
{
    struct img_runs runs = { .most = 1 << 20 };
    struct img_runs_at at = { .runs = &runs };
    int r = 0, n = 0;

    while (n < arg && r == 0) {
        r = img_runs_add(&runs, UINT32_MAX, (unsigned)n % 2, err);
        n += r == 0;
    }
    if (r == 0)
        r = img_runs_end(&runs, err);
    for (n = 0; img_runs_more(&at); n++)
        at.left = 0;
    if (r == 0)
        assert_int_equal(n, arg);
    img_runs_free(&runs);
    return r;
}

static int one_step(struct img_team *team, void *opaque, unsigned worker,
                    struct img_error *err)
{
    __atomic_fetch_add((int *)opaque, 1, __ATOMIC_RELAXED);
    return 0;
}

/* Threads have memory of their own, which is the C library's to keep. */
static void test_team(void **state)
{
    struct shim_fault f = { .kinds = SHIM_MEMORY, .code = ENOMEM };
    struct img_error err;
    int n = 0, r;

    atomic_store(&f.left, 1);
    shim_fault = &f;
    r = img_team_run(NULL, 4, 1, one_step, &n, &err);
    shim_fault = NULL;
    assert_int_equal(r, FAILS ? -ENOMEM : 0);
    assert_int_equal(n, FAILS ? 0 : 4);
    n = 0;
    assert_ok(img_team_run(NULL, 4, 1, one_step, &n, &err), err);
    assert_int_equal(n, 4);
}

static void test_base(void **state)
{
    EACH(add_strings, 5);
    EACH(describe, 0);
    EACH(add_runs, 3000);
}

/* ---- caches ---------------------------------------------------------------- */

static int read_tables(int arg, struct img_error *err)
{
    struct img_slice *slice, *fresh;
    struct img_stage *stage;
    struct img_tcache *c;
    uint8_t byte = 0;
    int r = img_tcache_new(1 << 20, &c, err);

    if (r < 0)
        return r;
    r = img_tcache_get(c, mem, 4096, 4096, 0, &slice, err);
    if (r == 0) {
        assert_memory_equal(slice->data, plain + 4096, 4096);
        img_tcache_put(c, slice);
        r = img_tcache_new_slice(c, mem, LEN + 4096, 4096, 0, &fresh, err);
    }
    if (r == 0) {
        memset(fresh->data, arg, 4096);
        img_tcache_put(c, fresh);
        r = img_tcache_stage(c, mem, 0, &stage, err);
    }
    if (r == 0) {
        r = img_stage_write(stage, err);
        img_stage_done(stage, r == 0);
    }
    if (r == 0) {
        assert_int_equal(img_file_pread(mem, &byte, 1, LEN + 4096, err), 0);
        assert_int_equal(byte, arg);
    }
    img_tcache_forget(c, mem, 0, UINT64_MAX);
    img_tcache_free(c);
    return r;
}

static int read_packed(int arg, struct img_error *err)
{
    struct iovec iov = { out, arg ? LEN : 100 };
    struct img_run run = { .kind = IMG_RUN_PACKED, .host = 8 * LEN,
                           .host_max = LEN, .codec = IMG_CODEC_DEFLATE };
    struct img_zcache *c;
    int r = img_zcache_new(1 << 20, &c, err);

    if (r < 0)
        return r;
    memset(out, 0, LEN);
    r = img_zcache_read(c, mem, &run, LEN, 0, (uint32_t)iov.iov_len, &iov, 1,
                        0, err);
    if (r == 0)
        assert_memory_equal(out, plain, iov.iov_len);
    img_zcache_free(c);
    return r;
}

static void test_caches(void **state)
{
    struct img_packer *p;
    struct img_error err;

    assert_ok(img_packer_new(IMG_CODEC_DEFLATE, 0, 0, &p, &err), err);
    assert_true(img_pack(p, plain, LEN, packed, ROOM) > 0);
    img_packer_free(p);
    assert_ok(img_file_pwrite(mem, plain, LEN, 0, &err), err);
    assert_ok(img_file_pwrite(mem, packed, LEN, 8 * LEN, &err), err);
    assert_ok(img_file_truncate(mem, 16 * LEN, &err), err);
    EACH(read_tables, 0x5a);
    EACH(read_packed, 0);
    EACH(read_packed, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_codecs),
        cmocka_unit_test(test_base),
        cmocka_unit_test(test_team),
        cmocka_unit_test(test_caches),
    };
    struct img_error err;
    int r;

    for (unsigned i = 0; i < LEN; i++)
        plain[i] = (uint8_t)(i / 64 * 3 + i % 13);
    if (img_file_in_memory("mem", &mem, &err) < 0)
        return 1;
    r = cmocka_run_group_tests_name("nomem", tests, NULL, NULL);
    img_file_close(mem);
    return r;
}
