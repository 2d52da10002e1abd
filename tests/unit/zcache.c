#include "unit.h"
#include "base/sync.h"
#include "cache/zcache.h"
#include "file/file.h"

#include <stdatomic.h>

enum { CLUSTER = 16384, CLUSTERS = 32, PLACE = 2 * CLUSTER };

/* A file that counts its reads. */
struct counted {
    struct img_file file;
    struct img_file *inner;
    atomic_int reads, fail;
};

static int counted_preadv(struct img_file *f, const struct iovec *iov, int n,
                          uint64_t off, struct img_error *err)
{
    struct counted *c = f->state;

    atomic_fetch_add(&c->reads, 1);
    if (atomic_load(&c->fail))
        return img_fail(err, EIO, "%s: reading", f->path);
    return img_file_preadv(c->inner, iov, n, off, err);
}

static const struct img_file_ops counted_ops = {
    .kind = "counted", .preadv = counted_preadv,
};

static uint8_t byte_of(unsigned version, unsigned i, unsigned at)
{
    return (uint8_t)(at / 64 * 3 + i * 5 + version * 7 + at % 13);
}

static void put_cluster(struct counted *c, unsigned i, unsigned version)
{
    uint8_t plain[CLUSTER], packed[PLACE];
    struct img_packer *p;
    struct img_error err;
    size_t len;

    for (unsigned at = 0; at < CLUSTER; at++)
        plain[at] = byte_of(version, i, at);
    assert_ok(img_packer_new(IMG_CODEC_DEFLATE, 0, 0, &p, &err), err);
    len = img_pack(p, plain, CLUSTER, packed, PLACE);
    assert_true(len > 0);
    assert_ok(img_file_pwrite(c->inner, packed, len, i * PLACE, &err), err);
    img_packer_free(p);
}

static void begin(struct counted *c, struct img_zcache **z, unsigned budget)
{
    struct img_error err;

    memset(c, 0, sizeof *c);
    assert_ok(img_file_in_memory("mem", &c->inner, &err), err);
    for (unsigned i = 0; i < CLUSTERS; i++)
        put_cluster(c, i, 0);
    c->file = (struct img_file){ .ops = &counted_ops, .path = "packed.img",
                                 .fd = -1, .align = 1, .state = c };
    assert_ok(img_zcache_new(budget * CLUSTER, z, &err), err);
}

static void end(struct counted *c, struct img_zcache *z)
{
    img_zcache_free(z);
    img_file_close(c->inner);
}

static int fetch(struct img_zcache *z, struct counted *c, unsigned i,
                 uint32_t skip, uint32_t len, uint8_t *to,
                 struct img_error *err)
{
    struct iovec iov[] = { { to, len / 3 }, { to + len / 3, len - len / 3 } };
    struct img_run run = {
        .kind = IMG_RUN_PACKED, .host = i * PLACE, .host_max = PLACE,
        .codec = IMG_CODEC_DEFLATE,
    };

    return img_zcache_read(z, &c->file, &run, CLUSTER, skip, len, iov, 2, 0,
                           err);
}

static int whole(struct img_zcache *z, struct counted *c, unsigned i,
                 uint8_t *to, struct img_error *err)
{
    struct iovec iov[] = { { to, 10 }, { to + 10, CLUSTER } };
    struct img_run run = {
        .kind = IMG_RUN_PACKED, .host = i * PLACE, .host_max = PLACE,
        .codec = IMG_CODEC_DEFLATE,
    };

    return img_zcache_read(z, &c->file, &run, CLUSTER, 0, CLUSTER, iov, 2, 10,
                           err);
}

static void check(const uint8_t *got, unsigned version, unsigned i,
                  uint32_t skip, uint32_t len)
{
    for (uint32_t k = 0; k < len; k++)
        assert_int_equal(got[k], byte_of(version, i, skip + k));
}

static void test_read(void **state)
{
    uint8_t buf[CLUSTER + 10];
    struct img_zcache *z;
    struct img_error err;
    struct counted c;

    begin(&c, &z, 4);
    assert_ok(fetch(z, &c, 3, 100, 4000, buf, &err), err);
    check(buf, 0, 3, 100, 4000);
    assert_ok(fetch(z, &c, 3, CLUSTER - 1, 1, buf, &err), err);
    check(buf, 0, 3, CLUSTER - 1, 1);
    assert_int_equal(c.reads, 1);
    assert_ok(fetch(z, &c, 3, 0, CLUSTER, buf, &err), err);
    check(buf, 0, 3, 0, CLUSTER);
    assert_int_equal(c.reads, 1);
    assert_int_equal(fetch(z, &c, 3, 1, CLUSTER, buf, &err), -EINVAL);

    /* A whole cluster in one piece comes from the cache, but does not go
     * there. */
    assert_ok(whole(z, &c, 3, buf, &err), err);
    check(buf + 10, 0, 3, 0, CLUSTER);
    assert_int_equal(c.reads, 1);
    assert_ok(whole(z, &c, 4, buf, &err), err);
    check(buf + 10, 0, 4, 0, CLUSTER);
    assert_ok(whole(z, &c, 4, buf, &err), err);
    assert_int_equal(c.reads, 3);
    end(&c, z);
}

static void test_budget(void **state)
{
    uint8_t buf[CLUSTER];
    struct img_zcache *z;
    struct img_error err;
    struct counted c;

    for (unsigned budget = 0; budget <= 4; budget += 2) {
        unsigned kept = budget ? budget : 1;

        begin(&c, &z, budget);
        for (unsigned i = 0; i < CLUSTERS; i++) {
            assert_ok(fetch(z, &c, i, 5, 100, buf, &err), err);
            check(buf, 0, i, 5, 100);
        }
        c.reads = 0;
        for (unsigned i = CLUSTERS - kept; i < CLUSTERS; i++)
            assert_ok(fetch(z, &c, i, 5, 100, buf, &err), err);
        assert_int_equal(c.reads, 0);
        assert_ok(fetch(z, &c, CLUSTERS - kept - 1, 5, 100, buf, &err), err);
        assert_int_equal(c.reads, 1);
        end(&c, z);
    }
}

static void test_forget(void **state)
{
    uint8_t buf[CLUSTER];
    struct img_zcache *z;
    struct img_error err;
    struct counted c;

    begin(&c, &z, 4);
    assert_ok(fetch(z, &c, 1, 0, 50, buf, &err), err);
    assert_ok(fetch(z, &c, 2, 0, 50, buf, &err), err);
    put_cluster(&c, 1, 1);
    img_zcache_forget(z, &c.file, 1 * PLACE);
    img_zcache_forget(z, &c.file, 7 * PLACE);
    assert_ok(fetch(z, &c, 1, 0, 50, buf, &err), err);
    check(buf, 1, 1, 0, 50);
    assert_int_equal(c.reads, 3);
    img_zcache_forget_file(z, &c.file);
    assert_ok(fetch(z, &c, 1, 0, 50, buf, &err), err);
    assert_ok(fetch(z, &c, 2, 0, 50, buf, &err), err);
    assert_int_equal(c.reads, 5);
    end(&c, z);
}

static void test_errors(void **state)
{
    uint8_t buf[CLUSTER], junk[PLACE];
    struct img_run run = { .kind = IMG_RUN_PACKED, .host = PLACE,
                           .host_max = 0, .codec = IMG_CODEC_DEFLATE };
    struct iovec iov = { buf, 10 };
    struct img_zcache *z;
    struct img_error err;
    struct counted c;

    begin(&c, &z, 4);
    memset(junk, 0xff, sizeof junk);
    assert_ok(img_file_pwrite(c.inner, junk, PLACE, 5 * PLACE, &err), err);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(fetch(z, &c, 5, 0, 10, buf, &err), -IMG_ECORRUPT);
        assert_non_null(strstr(err.message, "packed.img: "));
        assert_non_null(strstr(err.message, "0x28000"));
    }
    assert_int_equal(whole(z, &c, 5, junk, &err), -IMG_ECORRUPT);
    assert_int_equal(fetch(z, &c, CLUSTERS + 1, 0, 10, buf, &err),
                     -IMG_ECORRUPT);
    c.fail = 1;
    assert_int_equal(fetch(z, &c, 6, 0, 10, buf, &err), -EIO);
    assert_string_equal(err.message, "packed.img: reading");
    c.fail = 0;
    assert_ok(fetch(z, &c, 6, 0, 10, buf, &err), err);
    check(buf, 0, 6, 0, 10);

    assert_int_equal(img_zcache_read(z, &c.file, &run, CLUSTER, 0, 10, &iov,
                                     1, 0, &err), -IMG_ECORRUPT);
    run.host_max = UINT32_MAX;
    assert_int_equal(img_zcache_read(z, &c.file, &run, CLUSTER, 0, 10, &iov,
                                     1, 0, &err), -IMG_ECORRUPT);
    /* The same place as a cluster of another size. */
    run.host_max = PLACE;
    assert_ok(fetch(z, &c, 1, 0, 10, buf, &err), err);
    assert_ok(img_zcache_read(z, &c.file, &run, CLUSTER / 2, 0, 10, &iov, 1,
                              0, &err), err);
    check(buf, 0, 1, 0, 10);
    assert_int_equal(img_zcache_read(z, &c.file, &run, CLUSTER, CLUSTER, 1,
                                     &iov, 1, 0, &err), -EINVAL);
    end(&c, z);
}

static bool fetch_now(struct img_zcache *z, struct img_file *file,
                      unsigned i, enum img_codec codec, uint32_t size,
                      uint32_t skip, uint32_t len, uint8_t *to)
{
    struct iovec iov = { to, len };
    struct img_run run = {
        .kind = IMG_RUN_PACKED, .host = i * PLACE, .host_max = PLACE,
        .codec = codec,
    };

    memset(to, 0xee, CLUSTER);
    return img_zcache_read_now(z, file, &run, size, skip, len, &iov, 1, 0);
}

/* Without waiting: only what is there already, and as it is asked for. */
static void test_now(void **state)
{
    uint8_t buf[CLUSTER];
    struct img_zcache *z;
    struct img_error err;
    struct counted c, other;

    begin(&c, &z, 4);
    other = c;
    assert_false(fetch_now(z, &c.file, 1, IMG_CODEC_DEFLATE, CLUSTER, 9, 90,
                           buf));
    assert_int_equal(c.reads, 0);
    assert_int_equal(buf[0], 0xee);
    assert_ok(fetch(z, &c, 1, 0, 50, buf, &err), err);
    assert_true(fetch_now(z, &c.file, 1, IMG_CODEC_DEFLATE, CLUSTER, 9, 90,
                          buf));
    check(buf, 0, 1, 9, 90);
    assert_int_equal(buf[90], 0xee);
    assert_int_equal(c.reads, 1);
    assert_false(fetch_now(z, &c.file, 2, IMG_CODEC_DEFLATE, CLUSTER, 9, 90,
                           buf));
    assert_false(fetch_now(z, &other.file, 1, IMG_CODEC_DEFLATE, CLUSTER, 9,
                           90, buf));
    assert_false(fetch_now(z, &c.file, 1, IMG_CODEC_DEFLATE, CLUSTER,
                           CLUSTER - 9, 10, buf));
    assert_true(fetch_now(z, &c.file, 1, IMG_CODEC_DEFLATE, CLUSTER,
                          CLUSTER - 9, 9, buf));
    check(buf, 0, 1, CLUSTER - 9, 9);
    /* Asked for as something else it is not what was there. */
    assert_false(fetch_now(z, &c.file, 1, IMG_CODEC_ZLIB, CLUSTER, 9, 90,
                           buf));
    assert_false(fetch_now(z, &c.file, 1, IMG_CODEC_DEFLATE, CLUSTER, 9, 90,
                           buf));
    end(&c, z);
}

/* Two files with clusters at the same places; one is forgotten. */
static void test_two_files(void **state)
{
    struct counted c, d;
    struct img_zcache *z, *unused;
    uint8_t buf[CLUSTER];
    struct img_error err;

    begin(&c, &z, 64);
    begin(&d, &unused, 1);
    for (unsigned i = 0; i < 8; i++)
        put_cluster(&d, i, 1);
    for (unsigned i = 0; i < 8; i++) {
        assert_ok(fetch(z, &c, i, 0, 500, buf, &err), err);
        check(buf, 0, i, 0, 500);
        assert_ok(fetch(z, &d, i, 0, 500, buf, &err), err);
        check(buf, 1, i, 0, 500);
    }
    img_zcache_forget_file(z, &c.file);
    c.reads = d.reads = 0;
    for (unsigned i = 0; i < 8; i++) {
        assert_ok(fetch(z, &d, i, 0, 500, buf, &err), err);
        check(buf, 1, i, 0, 500);
        assert_ok(fetch(z, &c, i, 0, 500, buf, &err), err);
        check(buf, 0, i, 0, 500);
    }
    assert_int_equal(d.reads, 0);
    assert_int_equal(c.reads, 8);
    end(&c, z);
    end(&d, unused);
    img_zcache_free(NULL);
}

/* ---- threads ----------------------------------------------------------- */

enum { THREADS = 4, ROUNDS = 2000 };

struct crew {
    struct counted *c;
    struct img_zcache *z;
    struct img_rwlock place[CLUSTERS];  /* as core's range locks */
    unsigned version[CLUSTERS];
    atomic_int bad;
    pthread_barrier_t start;
};

struct member {
    struct crew *crew;
    uint64_t seed;
};

static void *same_cluster(void *arg)
{
    struct crew *w = arg;
    uint8_t b;

    for (unsigned i = 0; i < CLUSTERS; i++) {
        pthread_barrier_wait(&w->start);
        if (fetch(w->z, w->c, i, 77, 1, &b, NULL) < 0 ||
            b != byte_of(0, i, 77))
            atomic_fetch_add(&w->bad, 1);
    }
    return NULL;
}

static void test_single_flight(void **state)
{
    pthread_t threads[THREADS];
    struct crew w = { 0 };
    struct counted c;

    begin(&c, &w.z, CLUSTERS);
    w.c = &c;
    pthread_barrier_init(&w.start, NULL, THREADS);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, same_cluster, &w),
                         0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&w.start);
    assert_int_equal(w.bad, 0);
    assert_int_equal(c.reads, CLUSTERS);
    end(&c, w.z);
}

static void *mixed(void *arg)
{
    struct member *m = arg;
    struct crew *w = m->crew;
    uint8_t buf[CLUSTER + 10];

    for (int k = 0; k < ROUNDS; k++) {
        uint32_t i = unit_random(&m->seed) % CLUSTERS;
        uint32_t dice = unit_random(&m->seed) % 100;
        uint32_t skip = unit_random(&m->seed) % CLUSTER;
        uint32_t len = IMG_MIN((uint32_t)CLUSTER - skip, 3000u);
        int r = 0;

        if (dice < 6) {
            img_write_lock(&w->place[i]);
            put_cluster(w->c, i, ++w->version[i]);
            img_zcache_forget(w->z, &w->c->file, (uint64_t)i * PLACE);
            img_rw_unlock(&w->place[i]);
            continue;
        }
        if (dice == 6)
            img_zcache_forget_file(w->z, &w->c->file);
        img_read_lock(&w->place[i]);
        if (dice < 80) {
            r = fetch(w->z, w->c, i, skip, len, buf, NULL);
        } else {
            r = whole(w->z, w->c, i, buf, NULL);
            memmove(buf, buf + 10 + skip, len);
        }
        for (uint32_t b = 0; b < len && r == 0; b += 61)
            r = buf[b] == byte_of(w->version[i], i, skip + b) ? 0 : -1;
        img_rw_unlock(&w->place[i]);
        if (r < 0)
            atomic_fetch_add(&w->bad, 1);
    }
    return NULL;
}

static void test_threads(void **state)
{
    struct member members[THREADS];
    pthread_t threads[THREADS];
    struct crew w = { 0 };
    struct counted c;

    begin(&c, &w.z, 6);
    w.c = &c;
    for (int i = 0; i < CLUSTERS; i++)
        img_rwlock_init(&w.place[i]);
    for (int i = 0; i < THREADS; i++) {
        members[i] = (struct member){ &w, (uint64_t)i };
        assert_int_equal(pthread_create(&threads[i], NULL, mixed,
                                        &members[i]), 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(w.bad, 0);
    for (int i = 0; i < CLUSTERS; i++)
        img_rwlock_destroy(&w.place[i]);
    end(&c, w.z);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_forget),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_now),
        cmocka_unit_test(test_two_files),
        cmocka_unit_test(test_single_flight),
        cmocka_unit_test(test_threads),
    };

    return cmocka_run_group_tests_name("zcache", tests, NULL, NULL);
}
