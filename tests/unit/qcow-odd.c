/* qcow version 1: what is rare: headers at the edges, tables that overlap,
 * places that are given up, compressed clusters, a cache that is too small. */
#include "qcow-image.h"
#include "core/disk.h"
#include "file/file.h"
#include "qcow/qcow.h"

#include <sys/stat.h>

enum { C = 4096, SIZE = 64 * K };

static struct img_layer *layer_of(struct img_disk *d)
{
    return d->chain->layers[0];
}

static struct img_disk *open_q(unsigned flags)
{
    return open_as("q", "qcow", flags);
}

static void assert_disk(struct img_disk *d, const uint8_t *flat,
                        uint64_t size)
{
    uint8_t *got = malloc(size);

    assert_int_equal(img_size(d), size);
    assert_ok(img_pread(d, got, size, 0, &err), err);
    assert_memory_equal(got, flat, size);
    free(got);
}

static void close_sound(struct img_disk *d, const uint8_t *flat,
                        uint64_t size)
{
    assert_disk(d, flat, size);
    assert_ok(img_close(d, &err), err);
    assert_reads(flat, size);
    assert_int_equal(check_it(0).errors, 0);
}

/* A full image of SIZE bytes, cluster i all i + 1. */
static void full_image(uint8_t *flat)
{
    struct img_disk *d;

    new_image(SIZE);
    for (unsigned i = 0; i < SIZE; i++)
        flat[i] = (uint8_t)(i / C + 1);
    d = open_q(IMG_OPEN_WRITE);
    assert_ok(img_pwrite(d, flat, SIZE, 0, 0, &err), err);
    assert_ok(img_close(d, &err), err);
}

/* ---- headers --------------------------------------------------------------- */

static void test_headers(void **state)
{
    uint8_t byte;
    const char *format;
    struct img_disk *d;

    new_image(SIZE);
    poke32("q", 4, 0);
    assert_int_equal(try_open("q", "qcow", 0), -ENOTSUP);
    assert_says("qcow version 0 is not known");
    poke32("q", 4, 3);
    assert_int_equal(try_open("q", "qcow", 0), -EINVAL);
    assert_says("is no qcow image, but qcow2");
    new_image(SIZE);
    assert_int_equal(truncate(in_folder("q"), 47), 0);
    assert_int_equal(try_open("q", "qcow", 0), -EINVAL);
    assert_says("47 bytes are too short");
    assert_ok(img_probe(in_folder("q"), &format, &err), err);
    assert_string_equal(format, "raw");

    /* A disk of nothing. */
    new_image(SIZE);
    poke64("q", 24, 0);
    d = open_q(0);
    assert_int_equal(img_size(d), 0);
    assert_ok(img_pread(d, &byte, 0, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_int_equal(check_it(0).errors, 0);
    /* A name of nothing is none. */
    assert_ok(make("q", "qcow", SIZE, "base.raw", "raw",
                   IMG_CREATE_NO_OPEN_BACKING, NULL), err);
    assert_true(try_open("q", "qcow", 0) < 0);
    poke("q", 48, "", 1);
    assert_int_equal(try_open("q", "qcow", 0), 0);
}

/* ---- tables ---------------------------------------------------------------- */

/* L1 entries that no writer may follow, and what a reader says of them. */
static void test_l1(void **state)
{
    static const struct { uint64_t first, second; int read; } rows[] = {
        { 16, 0, -IMG_ECORRUPT },               /* in the header */
        { 512, 0, 0 },
        { 1000000, 0, -IMG_ECORRUPT },          /* behind the end */
        { UINT64_MAX - 100, 0, -IMG_ECORRUPT },
        { 8192, 8192 + 512, 0 },                /* in each other */
        { 8192, 8192, 0 },
        { 12288, 8192, 0 },                     /* good */
    };
    uint8_t buf[512];

    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        struct img_disk *d;
        uint64_t l1;
        int writable;

        new_image(4 * K * K);                   /* two L2 tables */
        assert_int_equal(truncate(in_folder("q"), 64 * K), 0);
        l1 = peek64("q", 40);
        poke64("q", l1, rows[i].first);
        poke64("q", l1 + 8, rows[i].second);
        d = open_q(0);
        assert_int_equal(img_pread(d, buf, 512, 0, &err), rows[i].read);
        if (rows[i].read)
            assert_says("L1 table, entry 0: the L2 table at");
        assert_ok(img_close(d, &err), err);
        writable = try_open("q", "qcow", IMG_OPEN_WRITE);
        if (rows[i].first == 12288 || rows[i].first == 512) {
            assert_int_equal(writable, 0);
            continue;
        }
        assert_int_equal(writable, -IMG_ECORRUPT);
        assert_says("it is not safe to write");
        assert_true(check_it(0).errors > 0);
        assert_true(check_it(IMG_REPAIR_ALL).errors_fixed > 0);
        assert_int_equal(check_it(0).errors, 0);
        assert_int_equal(try_open("q", "qcow", IMG_OPEN_WRITE), 0);
    }
    /* One that lies over the L1 table. */
    new_image(4 * K * K);
    assert_int_equal(truncate(in_folder("q"), 64 * K), 0);
    poke64("q", 40, 8192);
    poke64("q", 8192, 8192 - 4096 + 8);
    assert_int_equal(try_open("q", "qcow", IMG_OPEN_WRITE), -IMG_ECORRUPT);
    poke64("q", 8192, 8192 - 4096);
    assert_int_equal(try_open("q", "qcow", IMG_OPEN_WRITE), 0);
}

/* Entries of clusters: what each one reads as. */
static void test_l2(void **state)
{
    uint8_t flat[SIZE], buf[C];
    uint64_t l1, l2, end;
    struct stat st;

    for (int i = 0; i < 8; i++) {
        struct img_disk *d;
        uint64_t raw;

        full_image(flat);
        assert_int_equal(stat(in_folder("q"), &st), 0);
        end = (uint64_t)st.st_size;
        l1 = peek64("q", 40);
        l2 = peek64("q", l1);
        raw = i == 0 ? 16 : i == 1 ? end : i == 2 ? end - C + 512 :
              i == 3 ? end - 300 :
              i == 4 ? QCOW_PACKED | 100 :          /* of no bytes */
              i == 5 ? QCOW_PACKED | UINT64_C(9) << 51 | 16 :
              i == 6 ? QCOW_PACKED | UINT64_C(9) << 51 | (end - 8) :
                       QCOW_PACKED | UINT64_C(9) << 51 | 100;
        poke64("q", l2 + 8, raw);
        d = open_q(0);
        assert_int_equal(img_pread(d, buf, C, C, &err), -IMG_ECORRUPT);
        if (i < 7)
            assert_says("guest offset 0x1000");
        if (i < 4)
            assert_says(i == 0 || i == 3 ? "is no place for one" :
                        "goes beyond the end");
        else if (i < 7)
            assert_says("the compressed cluster of");
        /* What lies beside it is there. */
        assert_ok(img_pread(d, buf, C, 0, &err), err);
        assert_memory_equal(buf, flat, C);
        assert_ok(img_pread(d, buf, C, 2 * C, &err), err);
        assert_memory_equal(buf, flat + 2 * C, C);
        assert_ok(img_close(d, &err), err);
        assert_int_equal(check_it(0).errors, i < 7);
    }
    /* A run whose last cluster the file has in part. */
    full_image(flat);
    assert_int_equal(truncate(in_folder("q"), (off_t)end - 100), 0);
    {
        struct img_disk *d = open_q(0);
        uint8_t all[SIZE];

        assert_int_equal(img_pread(d, all, SIZE, 0, &err), -IMG_ECORRUPT);
        assert_says("guest offset 0xf000");
        assert_ok(img_pread(d, all, SIZE - C, 0, &err), err);
        assert_memory_equal(all, flat, SIZE - C);
        assert_ok(img_close(d, &err), err);
    }
}

/* Without reading tables: what is not in the cache is told another time. */
static void test_now(void **state)
{
    uint8_t flat[SIZE], buf[C];
    struct img_extent e;
    struct img_disk *d;

    full_image(flat);
    d = open_q(0);
    assert_int_equal(img_map(d, 0, SIZE, IMG_MAP_NOW, &e, &err), -EAGAIN);
    assert_int_equal(img_pread_now(d, buf, C, 0), -EAGAIN);
    assert_ok(img_pread(d, buf, C, 0, &err), err);
    assert_ok(img_map(d, 0, SIZE, IMG_MAP_NOW, &e, &err), err);
    assert_int_equal(e.kind, IMG_DATA);
    assert_int_equal(e.len, SIZE);
    assert_ok(img_close(d, &err), err);
}

/* ---- places ---------------------------------------------------------------- */

static struct img_place reserve(struct img_layer *l, uint64_t off,
                                uint64_t len, uint32_t packed)
{
    struct img_want want = { .off = off, .len = len, .packed = packed };
    struct img_place p;

    assert_ok(l->format->reserve(l, &want, &p, &err), err);
    assert_true(p.fresh);
    return p;
}

static void test_abandoned(void **state)
{
    uint8_t flat[SIZE] = { 0 }, junk[3 * C];
    struct img_want want = { .len = C, .packed = C };
    struct img_place a, b;
    struct img_disk *d;
    struct img_layer *l;

    memset(junk, 0xdb, sizeof junk);
    new_image(SIZE);
    d = open_q(IMG_OPEN_WRITE);
    l = layer_of(d);
    a = reserve(l, 0, 3 * C, 0);
    assert_true(a.zeroed);
    assert_int_equal(a.fill_len, 3 * C);
    assert_ok(img_file_pwrite(l->files[0], junk, 3 * C, a.host, &err), err);
    l->format->abandon(l, &a);
    for (unsigned i = 0; i < 3; i++) {          /* all three are used again */
        assert_ok(img_pwrite(d, "x", 1, i * C + 9, 0, &err), err);
        flat[i * C + 9] = 'x';
    }
    b = reserve(l, 5 * C, C, 0);
    assert_true(b.host >= a.host + 3 * C);
    assert_disk(d, flat, SIZE);
    /* Packed room is lost; what was not fresh has no room to give. */
    b = reserve(l, 6 * C, C, 100);
    assert_int_equal(b.packed, 100);
    l->format->abandon(l, &b);
    b = (struct img_place){ .off = 0, .len = 1 };
    l->format->abandon(l, &b);
    assert_ok(l->format->publish(l, &b, &err), err);
    assert_int_equal(l->format->reserve(l, &want, &b, &err), -EINVAL);
    assert_says("is no smaller than a plain one");
    close_sound(d, flat, SIZE);
}

/* A place beyond what an entry can say is refused before it is taken. */
static void test_full(void **state)
{
    struct img_want want = { .off = 2 * C, .len = C };
    uint8_t flat[SIZE];
    struct img_place p;
    struct img_layer *l;
    struct img_disk *d;
    uint64_t end;

    full_image(flat);
    assert_ok(make("q", "qcow", SIZE, NULL, NULL, 0, NULL), err);
    d = open_q(IMG_OPEN_WRITE);
    l = layer_of(d);
    assert_ok(img_pwrite(d, "a", 1, 0, 0, &err), err);
    end = ((struct img_qcow *)l->state)->end;
    ((struct img_qcow *)l->state)->end = (UINT64_C(1) << 51) - C;
    assert_int_equal(l->format->reserve(l, &want, &p, &err), -EFBIG);
    assert_says("the file is full");
    ((struct img_qcow *)l->state)->end = end;
    memset(flat, 0, SIZE);
    flat[0] = 'a';
    close_sound(d, flat, SIZE);
}

/* Clusters that are given up are used again, once the tables on the disk have
 * let them go: the file does not grow. */
static void test_reused(void **state)
{
    uint8_t flat[SIZE], buf[C];
    struct img_layer *l;
    struct img_disk *d;
    uint64_t done, end;
    struct stat st;

    full_image(flat);
    d = open_q(IMG_OPEN_WRITE);
    l = layer_of(d);
    end = ((struct img_qcow *)l->state)->end;
    assert_ok(l->format->unmap(l, 2 * C, 5 * C, IMG_UNMAP_DROP, &done, &err),
              err);
    assert_int_equal(done, 5 * C);
    assert_ok(l->format->unmap(l, 2 * C, 3 * C, IMG_UNMAP_DROP, &done, &err),
              err);                             /* there is nothing left */
    assert_int_equal(done, 3 * C);
    memset(flat + 2 * C, 0, 5 * C);
    assert_disk(d, flat, SIZE);
    assert_ok(img_flush(d, &err), err);
    for (unsigned i = 2; i < 7; i++) {
        memset(buf, 0x40 + (int)i, 100);
        assert_ok(img_pwrite(d, buf, 100, i * C + 50, 0, &err), err);
        memcpy(flat + i * C + 50, buf, 100);
    }
    assert_int_equal(((struct img_qcow *)l->state)->end, end);
    close_sound(d, flat, SIZE);
    assert_int_equal(stat(in_folder("q"), &st), 0);
    assert_int_equal(st.st_size, end);
}

/* ---- zeros and compressed clusters ------------------------------------------ */

static void compress(struct img_disk *d, uint8_t *flat, uint64_t off,
                     int value)
{
    memset(flat + off, value, C);
    memset(flat + off, value + 1, 77);
    assert_ok(img_pwrite(d, flat + off, C, off, IMG_COMPRESS, &err), err);
}

static void test_packed(void **state)
{
    uint8_t flat[SIZE] = { 0 }, random[C];
    uint64_t seed = 8, done;
    struct img_layer *l;
    struct img_disk *d;

    new_image(SIZE);
    d = open_q(IMG_OPEN_WRITE);
    l = layer_of(d);
    for (unsigned i = 0; i < 8; i++)
        compress(d, flat, i * C, 0x10 + (int)i);
    for (unsigned i = 0; i < C; i++)            /* does not get smaller */
        random[i] = (uint8_t)unit_random(&seed);
    assert_ok(img_pwrite(d, random, C, 8 * C, IMG_COMPRESS, &err), err);
    memcpy(flat + 8 * C, random, C);
    assert_disk(d, flat, SIZE);
    /* Over a plain one, and over each other. */
    compress(d, flat, 8 * C, 0x30);
    compress(d, flat, C, 0x31);
    assert_ok(img_pwrite(d, random, 3 * C / 4, 2 * C + 7, 0, &err), err);
    memcpy(flat + 2 * C + 7, random, 3 * C / 4);
    /* Discards leave them, zeros do not, and drop drops. */
    assert_ok(l->format->unmap(l, 3 * C, C, IMG_UNMAP_DISCARD, &done, &err),
              err);
    assert_disk(d, flat, SIZE);
    assert_int_equal(l->format->unmap(l, 3 * C, C, IMG_UNMAP_ZERO, &done,
                                      &err), -ENOTSUP);
    assert_says("no zeros but written ones");
    assert_ok(img_zero(d, 3 * C, 2 * C + 100, IMG_MAY_UNMAP, &err), err);
    memset(flat + 3 * C, 0, 2 * C + 100);
    assert_ok(l->format->unmap(l, 6 * C, C, IMG_UNMAP_DROP, &done, &err),
              err);
    memset(flat + 6 * C, 0, C);
    close_sound(d, flat, SIZE);
}

/* By each kind: a plain cluster, then one that is not there. */
static void test_kinds(void **state)
{
    static const enum img_unmap kinds[] = {
        IMG_UNMAP_ZERO, IMG_UNMAP_ZERO_OWN, IMG_UNMAP_ZERO_KEEP,
        IMG_UNMAP_DISCARD, IMG_UNMAP_DROP
    };
    uint8_t flat[SIZE];

    for (size_t i = 0; i < IMG_COUNT(kinds); i++) {
        bool zeros = kinds[i] <= IMG_UNMAP_ZERO_KEEP;
        struct img_layer *l;
        struct img_disk *d;
        uint64_t done;

        full_image(flat);
        d = open_q(IMG_OPEN_WRITE);
        l = layer_of(d);
        assert_ok(l->format->unmap(l, 4 * C, C, IMG_UNMAP_DROP, &done, &err),
                  err);
        memset(flat + 4 * C, 0, C);
        assert_ok(l->format->unmap(l, 3 * C, 2 * C, kinds[i], &done, &err),
                  err);
        /* What cannot be done ends it early, and is no error then. */
        assert_int_equal(done, zeros ? C : 2 * C);
        assert_int_equal(l->format->unmap(l, 4 * C, C, kinds[i], &done,
                                          &err), zeros ? -ENOTSUP : 0);
        if (kinds[i] != IMG_UNMAP_DISCARD)
            memset(flat + 3 * C, 0, C);
        else
            assert_ok(img_pread(d, flat + 3 * C, C, 3 * C, &err), err);
        close_sound(d, flat, SIZE);
    }
}

/* ---- more tables than the cache may hold ------------------------------------- */

static void test_small_cache(void **state)
{
    enum { TABLES = 300 };
    static const uint64_t reach = 512 * 512;
    struct img_open_options o = IMG_OPEN_OPTIONS;
    uint64_t size = TABLES * reach, done;
    struct img_check_result result;
    struct img_disk *d;
    char buf[9];

    o.format = "qcow";
    o.flags = IMG_OPEN_WRITE;
    o.cache_bytes = 256 * K;
    assert_ok(make("q", "qcow", size, NULL, NULL, 0, "cluster_size=512"),
              err);
    assert_ok(img_open(in_folder("q"), &o, &d, &err), err);
    for (uint64_t i = 0; i < TABLES; i++) {
        snprintf(buf, sizeof buf, "%08u", (unsigned)i);
        assert_ok(img_pwrite(d, buf, 8, i * reach + i % 512 * 512, 0, &err),
                  err);
    }
    for (uint64_t i = 0; i < TABLES; i += 2) {
        struct img_layer *l = layer_of(d);

        assert_ok(l->format->unmap(l, i * reach, reach, IMG_UNMAP_DROP, &done,
                                   &err), err);
        assert_int_equal(done, reach);
    }
    /* Cut off half of it and make it longer again. */
    assert_ok(img_resize(d, size / 2 + 700, true, IMG_PREALLOC_OFF, NULL,
                         &err), err);
    assert_ok(img_resize(d, size, false, IMG_PREALLOC_OFF, NULL, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_int_equal(check_it(0).errors, 0);
    o.flags = IMG_OPEN_WRITE | IMG_OPEN_REPAIR;
    assert_ok(img_open(in_folder("q"), &o, &d, &err), err);
    for (uint64_t i = 0; i < TABLES; i++) {
        char want[9] = { 0 };

        if (i % 2 && i < TABLES / 2)
            snprintf(want, sizeof want, "%08u", (unsigned)i);
        assert_ok(img_pread(d, buf, 8, i * reach + i % 512 * 512, &err),
                  err);
        assert_memory_equal(buf, want, 8);
    }
    {
        struct img_check_options c = IMG_CHECK_OPTIONS;

        c.repair = IMG_REPAIR_ALL;
        memset(&result, 0, sizeof result);
        assert_ok(img_check(d, &c, NULL, &result, &err), err);
        assert_int_equal(result.errors + result.errors_fixed, 0);
        assert_int_equal(result.allocated, TABLES / 4);
    }
    assert_ok(img_close(d, &err), err);
}

/* ---- sizes ------------------------------------------------------------------- */

static void test_sizes(void **state)
{
    static const struct { uint64_t size; enum img_prealloc p; int code;
                          const char *words; } rows[] = {
        { 2 * SIZE, IMG_PREALLOC_FULL, ENOTSUP, "qcow has no preallocation" },
        { 0, IMG_PREALLOC_OFF, EINVAL, "a disk of 0 bytes" },
        { INT64_MAX, IMG_PREALLOC_OFF, EINVAL, "9223372036854775807" },
        { UINT64_C(1) << 60, IMG_PREALLOC_OFF, EFBIG, "is too large" },
    };
    uint8_t flat[SIZE];
    struct img_disk *d;

    full_image(flat);
    d = open_q(IMG_OPEN_WRITE);
    for (size_t i = 0; i < IMG_COUNT(rows); i++) {
        assert_int_equal(img_resize(d, rows[i].size, true, rows[i].p, NULL,
                                    &err), -rows[i].code);
        assert_says(rows[i].words);
    }
    close_sound(d, flat, SIZE);
}

/* Nothing old comes back behind the end: out of a cluster that is plain,
 * compressed or not there; and of a longer base. */
static void test_tail(void **state)
{
    enum { CUT = 5 * C + 1536 };
    uint8_t flat[SIZE], base[SIZE];

    for (int what = 0; what < 5; what++) {
        struct img_disk *d;
        uint64_t done;

        full_image(flat);
        if (what > 2) {
            memset(base, 0xbb, SIZE);
            assert_ok(make("base", "raw", SIZE, NULL, NULL, 0, NULL), err);
            d = open_as("base", "raw", IMG_OPEN_WRITE);
            assert_ok(img_pwrite(d, base, SIZE, 0, 0, &err), err);
            assert_ok(img_close(d, &err), err);
            assert_ok(make("q", "qcow", SIZE, "base", "raw", 0,
                           what == 3 ? NULL : "cluster_size=4096"), err);
            memset(flat, 0xbb, SIZE);
        }
        if (what > 2) {
            struct img_open_options o = IMG_OPEN_OPTIONS;

            o.format = "qcow";
            o.backing_format = "raw";
            o.flags = IMG_OPEN_WRITE;
            assert_ok(img_open(in_folder("q"), &o, &d, &err), err);
        } else {
            d = open_q(IMG_OPEN_WRITE);
        }
        if (what == 1)
            compress(d, flat, 5 * C, 0x55);
        if (what == 2)
            assert_ok(layer_of(d)->format->unmap(layer_of(d), 5 * C, C,
                      IMG_UNMAP_DROP, &done, &err), err);
        assert_ok(img_resize(d, CUT, true, IMG_PREALLOC_OFF, NULL, &err),
                  err);
        assert_ok(img_resize(d, SIZE, false, IMG_PREALLOC_OFF, NULL, &err),
                  err);
        memset(flat + CUT, 0, SIZE - CUT);
        if (what == 2)
            memset(flat + 5 * C, 0, C);
        assert_disk(d, flat, SIZE);
        assert_ok(img_close(d, &err), err);
        d = open_q(IMG_OPEN_NO_BACKING);
        assert_ok(img_pread(d, base, SIZE - CUT, CUT, &err), err);
        assert_memory_equal(base, flat + CUT, SIZE - CUT);
        assert_ok(img_close(d, &err), err);
    }
}

/* A file that ends with the disk's last byte, not with its last cluster: what
 * is written next lies behind that cluster, and growing completes it. */
static void test_short_file(void **state)
{
    enum { SHORT = 5 * C + 2048 };
    uint8_t flat[SIZE];

    for (int what = 0; what < 4; what++) {
        struct img_disk *d;
        uint64_t l2;

        memset(flat, 0, SIZE);
        memset(flat + C, 0x77, SHORT - C);
        new_image(SHORT);
        d = open_q(IMG_OPEN_WRITE);
        assert_ok(img_pwrite(d, flat + C, SHORT - C, C, 0, &err), err);
        assert_ok(img_close(d, &err), err);
        l2 = peek64("q", peek64("q", 40));
        assert_int_equal(truncate(in_folder("q"), (off_t)
                                  peek64("q", l2 + 5 * 8) + 2048), 0);
        assert_int_equal(check_it(0).errors, 0);
        assert_reads(flat, SHORT);
        d = open_q(IMG_OPEN_WRITE);
        if (what == 0)
            compress(d, flat, 0, 0x21);
        if (what == 1) {
            assert_ok(img_pwrite(d, "x", 1, 0, 0, &err), err);
            flat[0] = 'x';
        }
        if (what < 3)
            assert_ok(img_resize(d, SIZE, false, IMG_PREALLOC_OFF, NULL,
                                 &err), err);
        close_sound(d, flat, what < 3 ? SIZE : SHORT);
    }
}

/* ---- other backing files -------------------------------------------------------- */

static void test_set_backing(void **state)
{
    struct img_layer *l;
    uint8_t flat[SIZE];
    struct img_disk *d;
    char name[1100];

    full_image(flat);
    d = open_q(IMG_OPEN_WRITE);
    l = layer_of(d);
    memset(name, 'n', sizeof name);
    name[1024] = 0;
    assert_int_equal(l->format->set_backing(l, name, NULL, NULL, &err),
                     -EINVAL);
    assert_says("1024 bytes, at most 1023");
    assert_null(l->backing);
    name[1023] = 0;
    assert_ok(l->format->set_backing(l, name, "raw", NULL, &err), err);
    assert_string_equal(l->backing, name);
    assert_string_equal(l->backing_format, "raw");
    assert_ok(l->format->set_backing(l, "other", NULL, NULL, &err), err);
    assert_string_equal(l->backing, "other");
    assert_null(l->backing_format);
    assert_ok(img_close(d, &err), err);
    d = open_q(IMG_OPEN_WRITE | IMG_OPEN_NO_BACKING);
    assert_string_equal(layer_of(d)->backing, "other");
    assert_disk(d, flat, SIZE);
    l = layer_of(d);
    assert_ok(l->format->set_backing(l, NULL, NULL, NULL, &err), err);
    assert_null(l->backing);
    close_sound(d, flat, SIZE);
}

/* ---- check ------------------------------------------------------------------------ */

static char said[3000];

static void on_report(void *opaque, const char *text)
{
    size_t n = strlen(said);

    snprintf(said + n, sizeof said - n, "%s\n", text);
}

static int say_no(void *opaque, uint64_t done, uint64_t total)
{
    return 1;
}

static void test_check(void **state)
{
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_job job = IMG_JOB;
    struct img_check_result r = { 0 };
    uint8_t flat[SIZE];
    struct img_disk *d;
    uint64_t l1, l2, host;

    full_image(flat);
    d = open_q(IMG_OPEN_WRITE);
    compress(d, flat, 9 * C, 0x44);
    assert_ok(img_close(d, &err), err);
    l1 = peek64("q", 40);
    l2 = peek64("q", l1);
    host = peek64("q", l2 + 9 * 8);
    assert_true(host & QCOW_PACKED);
    /* A copy's entry: plain ones and packed ones are parted.  The packed one
     * is 70 sectors long now, so that it owns some. */
    poke64("q", l2 + 2 * 8, peek64("q", l2 + 3 * 8));
    memcpy(flat + 2 * C, flat + 3 * C, C);
    d = open_q(0);
    o.report = on_report;
    *said = 0;
    job.progress = say_no;
    assert_int_equal(img_check(d, &o, &job, &r, &err), -ECANCELED);
    assert_ok(img_check(d, &o, NULL, &r, &err), err);
    assert_int_equal(r.errors, 1);
    if (!strstr(said, "ERROR guest offset 0x3000: something else is in"))
        fail_msg("%s", said);
    o.repair = IMG_REPAIR_LEAKS;
    assert_int_equal(img_check(d, &o, NULL, &r, &err), -EROFS);
    assert_says("not open for writing");
    assert_ok(img_close(d, &err), err);
    /* Leaks alone: the error stays, and nothing is given back. */
    d = open_q(IMG_OPEN_WRITE | IMG_OPEN_REPAIR);
    memset(&r, 0, sizeof r);
    assert_ok(img_check(d, &o, NULL, &r, &err), err);
    assert_int_equal(r.errors, 1);
    assert_int_equal(r.errors_fixed, 0);
    o.repair = IMG_REPAIR_ALL;
    *said = 0;
    memset(&r, 0, sizeof r);
    assert_ok(img_check(d, &o, NULL, &r, &err), err);
    assert_int_equal(r.errors_fixed, 1);
    assert_int_equal(r.compressed, 1);
    assert_int_equal(r.allocated, SIZE / C);
    if (!strstr(said, "Repairing guest offset 0x3000"))
        fail_msg("%s", said);
    close_sound(d, flat, SIZE);
    /* A file that is longer than can be looked at. */
    d = open_q(0);
    ((struct img_qcow *)layer_of(d)->state)->end = (UINT64_C(1) << 50) + 1;
    o.repair = 0;
    assert_int_equal(img_check(d, &o, NULL, &r, &err), -EFBIG);
    assert_says("too long to be checked");
    assert_ok(img_close(d, &err), err);
}

/* Two entries with one compressed cluster that owns whole sectors, in a file
 * with a hole of 300 MiB and clusters that nothing names. */
static void test_check_packed(void **state)
{
    enum { BIG = 65536 };
    uint8_t *flat = calloc(1, 4 * BIG), *piece = malloc(BIG);
    uint64_t l2, raw, seed = 2, at;
    struct img_disk *d;
    struct stat st;

    assert_ok(make("q", "qcow", 4 * BIG, NULL, NULL, 0, "cluster_size=65536"),
              err);
    d = open_q(IMG_OPEN_WRITE);
    for (unsigned i = 0; i < BIG; i++)          /* packs to about a quarter */
        flat[i] = (uint8_t)(unit_random(&seed) % 4);
    assert_ok(img_pwrite(d, flat, BIG, 0, IMG_COMPRESS, &err), err);
    assert_ok(img_close(d, &err), err);
    l2 = peek64("q", peek64("q", 40));
    raw = peek64("q", l2);
    assert_true(raw & QCOW_PACKED);
    assert_true((raw >> 47 & 0xffff) > 2048);
    poke64("q", l2 + 16, raw);                  /* cluster 2 is 0's too */
    memcpy(flat + 2 * BIG, flat, BIG);
    at = 300 * (uint64_t)(K * K);
    memset(piece, 0x11, BIG);
    poke("q", at, piece, BIG);
    poke("q", at + 2 * BIG, piece, BIG);
    poke64("q", l2 + 24, at);
    memset(flat + 3 * BIG, 0x11, BIG);
    assert_reads(flat, 4 * BIG);
    assert_int_equal(check_it(0).errors, 1);
    assert_int_equal(check_it(IMG_REPAIR_ALL).errors_fixed, 1);
    assert_int_equal(check_it(0).errors, 0);
    assert_reads(flat, 4 * BIG);
    assert_int_not_equal(peek64("q", l2 + 16), raw);
    assert_int_equal(peek64("q", l2), raw);
    /* What nothing names went back to the file system. */
    d = open_as("q", "raw", 0);
    assert_ok(img_pread(d, piece, BIG, at + 2 * BIG, &err), err);
    assert_int_equal(piece[100], 0);
    assert_ok(img_close(d, &err), err);
    assert_int_equal(stat(in_folder("q"), &st), 0);
    assert_true(st.st_blocks * 512 < 1 << 20);
    free(flat);
    free(piece);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_l1),
        cmocka_unit_test(test_l2),
        cmocka_unit_test(test_now),
        cmocka_unit_test(test_abandoned),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_reused),
        cmocka_unit_test(test_packed),
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_small_cache),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_tail),
        cmocka_unit_test(test_short_file),
        cmocka_unit_test(test_set_backing),
        cmocka_unit_test(test_check),
        cmocka_unit_test(test_check_packed),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
