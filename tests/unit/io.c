/* The requests of core/ on a chain of three tiny images over a raw one, against
 * flat arrays. */
#include "folder.h"
#include "tiny.h"
#include "core/disk.h"
#include "file/file.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

/* Not whole clusters, and each layer larger than the one below. */
enum { RAW_SIZE = 40 * 1024, MID_SIZE = 64 * 1024 + 512,
       SIZE = 96 * 1024 + 1536 };

static unsigned char flat[SIZE];

static struct img_disk *reopen(const char *name, unsigned flags)
{
    return open_as(name, "tiny", flags | IMG_OPEN_NO_SYNC);
}

/* top -> mid -> low -> raw, with something in each but low. */
static void make_chain(uint64_t seed)
{
    static unsigned char buf[RAW_SIZE];
    struct img_disk *d;

    memset(flat, 0, sizeof flat);
    assert_ok(make("raw", "raw", RAW_SIZE, NULL, NULL, 0, NULL), err);
    d = open_as("raw", "raw", IMG_OPEN_WRITE);
    for (size_t i = 0; i < sizeof buf; i++)
        buf[i] = (unsigned char)unit_random(&seed);
    assert_ok(img_pwrite(d, buf, sizeof buf, 0, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    memcpy(flat, buf, RAW_SIZE);

    assert_ok(make("low", "tiny", MID_SIZE - TINY_CLUSTER, "raw", NULL, 0,
                   NULL), err);
    assert_ok(make("mid", "tiny", MID_SIZE, "low", NULL, 0, NULL), err);
    d = reopen("mid", IMG_OPEN_WRITE);
    assert_ok(img_pwrite(d, "middle", 6, 5000, 0, &err), err);
    memcpy(flat + 5000, "middle", 6);
    assert_ok(img_pwrite(d, "end", 3, MID_SIZE - 3, 0, &err), err);
    memcpy(flat + MID_SIZE - 3, "end", 3);
    assert_ok(img_zero(d, 9000, 9000, 0, &err), err);
    memset(flat + 9000, 0, 9000);
    assert_ok(img_close(d, &err), err);
    assert_ok(make("top", "tiny", SIZE, "mid", NULL, 0, NULL), err);
}

static void check_all(struct img_disk *d)
{
    static unsigned char buf[SIZE];

    assert_int_equal(img_size(d), SIZE);
    assert_ok(img_pread(d, buf, SIZE, 0, &err), err);
    for (size_t i = 0; i < SIZE; i++)
        if (buf[i] != flat[i])
            fail_msg("byte %zu is 0x%02x, should be 0x%02x", i, buf[i],
                     flat[i]);
}

static void pick(uint64_t *seed, uint64_t from, uint64_t to, uint64_t *off,
                 size_t *len)
{
    static const unsigned units[] = { 1, 512, TINY_BLOCK, TINY_CLUSTER };
    unsigned unit = units[unit_random(seed) % 4];

    *off = from + unit_random(seed) % (to - from);
    *off = IMG_MAX(*off / unit * unit, from);
    *len = 1 + unit_random(seed) % (3 * TINY_CLUSTER);
    *len = img_div_up(*len, unit) * unit;
    *len = IMG_MIN(*len, to - *off);
}

static void scatter_write(struct img_disk *d, unsigned char *data, size_t len,
                          uint64_t off, uint64_t *seed)
{
    struct iovec iov[20];
    size_t at = 0;
    int n = 0;

    while (at < len && n < 19) {
        size_t part = unit_random(seed) % (len - at + 1);

        iov[n++] = (struct iovec){ data + at, part };
        at += part;
    }
    iov[n++] = (struct iovec){ data + at, len - at };
    assert_ok(img_pwritev(d, iov, n, off, 0, &err), err);
}

/* A discarded range holds zeros or what it held, block by block. */
static void after_discard(struct img_disk *d, uint64_t off, size_t len)
{
    unsigned char *buf = malloc(len + 1);

    assert_ok(img_pread(d, buf, len, off, &err), err);
    for (size_t i = 0; i < len; i++)
        if (buf[i] && buf[i] != flat[off + i])
            fail_msg("discarded byte %zu is 0x%02x", (size_t)off + i, buf[i]);
    memcpy(flat + off, buf, len);
    free(buf);
}

static void one_step(struct img_disk *d, uint64_t *seed, uint64_t from,
                     uint64_t to)
{
    unsigned char data[3 * TINY_CLUSTER + TINY_CLUSTER];
    uint64_t off;
    size_t len;
    int r;

    pick(seed, from, to, &off, &len);
    switch (unit_random(seed) % 10) {
    case 0: case 1: case 2:
        for (size_t i = 0; i < len; i++)
            data[i] = (unsigned char)unit_random(seed);
        scatter_write(d, data, len, off, seed);
        memcpy(flat + off, data, len);
        break;
    case 3:
        assert_ok(img_zero(d, off, len,
                           unit_random(seed) % 2 ? IMG_MAY_UNMAP : 0, &err),
                  err);
        memset(flat + off, 0, len);
        break;
    case 4:
        assert_ok(img_discard(d, off, len, &err), err);
        after_discard(d, off, len);
        break;
    case 5:
        off = img_round_up(off, TINY_CLUSTER);
        if (off >= to)
            break;
        len = IMG_MIN(2 * TINY_CLUSTER, to - off);
        if (off + len != SIZE)
            len = img_round_down(len, TINY_CLUSTER);
        for (size_t i = 0; i < len; i++)
            data[i] = (unsigned char)(unit_random(seed) % 3);
        assert_ok(img_pwrite(d, data, len, off, IMG_COMPRESS, &err), err);
        memcpy(flat + off, data, len);
        break;
    case 6:
        assert_ok(img_pread(d, data, len, off, &err), err);
        assert_memory_equal(data, flat + off, len);
        break;
    case 7:                     /* without waiting, else as usual */
        for (size_t i = 0; i < len; i++)
            data[i] = (unsigned char)unit_random(seed);
        r = img_pwrite_now(d, data, len, off);
        assert_true(r == 0 || r == -EAGAIN);
        if (r < 0)
            assert_ok(img_pwrite(d, data, len, off, 0, &err), err);
        memcpy(flat + off, data, len);
        break;
    case 8:
        r = img_pread_now(d, data, len, off);
        assert_true(r == 0 || r == -EAGAIN);
        if (r == 0)
            assert_memory_equal(data, flat + off, len);
        break;
    default:
        assert_ok(img_flush(d, &err), err);
    }
}

static void test_model(void **state)
{
    enum { ROUNDS = 40, STEPS = 60 };
    uint64_t seed = 7;
    struct img_disk *d;

    for (int round = 0; round < ROUNDS; round++) {
        if (round % 10 == 0)
            make_chain((uint64_t)round);
        d = reopen("top", IMG_OPEN_WRITE);
        if (round % 4 == 3)
            tiny_share(d->chain->layers[0]);
        check_all(d);
        for (int i = 0; i < STEPS; i++)
            one_step(d, &seed, 0, SIZE);
        check_all(d);
        assert_ok(img_close(d, &err), err);
    }
    d = reopen("top", 0);
    check_all(d);
    assert_ok(img_close(d, &err), err);
}

struct worker {
    pthread_t thread;
    struct img_disk *disk;
    uint64_t seed, from, to;
};

static void *work(void *opaque)
{
    struct worker *w = opaque;

    for (int i = 0; i < 300; i++)
        one_step(w->disk, &w->seed, w->from, w->to);
    return NULL;
}

/* Each thread has its own part, but the parts meet within blocks. */
static void test_threads(void **state)
{
    enum { N = 4 };
    struct worker w[N];
    struct img_disk *d;

    make_chain(99);
    d = reopen("top", IMG_OPEN_WRITE);
    for (unsigned i = 0; i < N; i++) {
        w[i] = (struct worker){ .disk = d, .seed = i + 1 };
        w[i].from = i ? w[i - 1].to : 0;
        w[i].to = i == N - 1 ? SIZE : (i + 1) * (SIZE / N) + 7 * i;
        pthread_create(&w[i].thread, NULL, work, &w[i]);
    }
    for (unsigned i = 0; i < N; i++)
        pthread_join(w[i].thread, NULL);
    check_all(d);
    assert_ok(img_close(d, &err), err);
    d = reopen("top", 0);
    check_all(d);
    assert_ok(img_close(d, &err), err);
}

static void test_limits_of_requests(void **state)
{
    char buf[16];
    struct img_disk *d;

    make_chain(1);
    d = reopen("top", 0);
    assert_int_equal(img_pwrite(d, buf, 1, 0, 0, &err), -EROFS);
    assert_non_null(strstr(err.message, "top"));
    assert_int_equal(img_zero(d, 0, 1, 0, &err), -EROFS);
    assert_int_equal(img_discard(d, 0, 4096, &err), -EROFS);
    assert_int_equal(img_flush(d, &err), 0);
    assert_int_equal(img_pread(d, buf, 1, SIZE, &err), -EINVAL);
    assert_int_equal(img_pread(d, buf, 2, SIZE - 1, &err), -EINVAL);
    assert_int_equal(img_pread(d, buf, 2, UINT64_MAX, &err), -EINVAL);
    assert_int_equal(img_pread(d, buf, 0, SIZE, &err), 0);
    img_close(d, NULL);
    d = reopen("top", IMG_OPEN_WRITE);
    assert_int_equal(img_pwrite(d, buf, 2, SIZE - 1, 0, &err), -EINVAL);
    assert_int_equal(img_pwrite(d, buf, 1, 0, IMG_COMPRESS, &err), -EINVAL);
    assert_int_equal(img_zero(d, 1, UINT64_MAX, 0, &err), -EINVAL);
    assert_int_equal(img_discard(d, SIZE, 1, &err), -EINVAL);
    assert_int_equal(img_pwrite(d, buf, 0, 0, 0, &err), 0);
    assert_int_equal(img_zero(d, SIZE, 0, 0, &err), 0);
    /* The first block is full of data: part of it cannot become zeros but
     * by writing. */
    assert_int_equal(img_zero(d, 10, 10, IMG_FAST_ONLY, &err), -ENOTSUP);
    assert_int_equal(img_zero(d, 0, TINY_BLOCK, IMG_FAST_ONLY, &err), 0);
    memset(flat, 0, TINY_BLOCK);
    check_all(d);
    img_close(d, NULL);
}

/* What is empty stays empty. */
static void test_nothing_is_allocated(void **state)
{
    struct img_disk *d;

    memset(flat, 0, sizeof flat);
    assert_ok(make("alone", "tiny", SIZE, NULL, NULL, 0, NULL), err);
    d = reopen("alone", IMG_OPEN_WRITE);
    assert_ok(img_zero(d, 0, SIZE, 0, &err), err);
    assert_ok(img_zero(d, 5, 50, 0, &err), err);
    assert_ok(img_discard(d, 0, SIZE, &err), err);
    assert_int_equal(tiny_used(d->chain->layers[0]), 0);
    assert_ok(img_pwrite(d, "x", 1, 3000, 0, &err), err);
    assert_int_equal(tiny_used(d->chain->layers[0]), 1);
    /* All but zeros already: the block can go as a whole. */
    assert_ok(img_zero(d, 2990, 4000, IMG_MAY_UNMAP, &err), err);
    assert_ok(img_zero(d, 0, SIZE, IMG_MAY_UNMAP, &err), err);
    assert_int_equal(tiny_used(d->chain->layers[0]), 0);
    check_all(d);
    assert_ok(img_close(d, &err), err);
}

static void test_broken(void **state)
{
    char buf[16];
    struct img_disk *d;

    make_chain(3);
    d = reopen("top", IMG_OPEN_WRITE);
    tiny_corrupt = 1;
    assert_int_equal(img_pwrite(d, "x", 1, 0, 0, &err), -IMG_ECORRUPT);
    assert_non_null(strstr(err.message, "on demand"));
    assert_int_equal(img_pwrite(d, "x", 1, 0, 0, &err), -IMG_ECORRUPT);
    assert_non_null(strstr(err.message, "not written any more"));
    assert_int_equal(img_zero(d, 0, 1, 0, &err), -IMG_ECORRUPT);
    assert_ok(img_pread(d, buf, 16, 0, &err), err);
    check_all(d);
    img_close(d, NULL);
    /* Met while reading: no more writes either. */
    d = reopen("top", IMG_OPEN_WRITE);
    tiny_corrupt = 1;
    assert_int_equal(img_pread(d, buf, 1, 0, &err), -IMG_ECORRUPT);
    assert_int_equal(img_pwrite(d, "x", 1, 0, 0, &err), -IMG_ECORRUPT);
    img_close(d, NULL);
    tiny_corrupt = 0;
}

/* As commit does it: into the layer below, then drop what is above. */
static void test_lower_layer(void **state)
{
    static unsigned char buf[MID_SIZE];
    struct iovec iov = { buf, MID_SIZE };
    uint64_t seed = 5;
    struct img_disk *d;

    make_chain(5);
    d = reopen("top", IMG_OPEN_WRITE);
    for (int i = 0; i < 40; i++)
        one_step(d, &seed, 0, MID_SIZE);
    assert_int_equal(img_io_write(&d->io, 1, &iov, 1, 0, 0, &err), -EROFS);
    assert_ok(img_chain_reopen(d->chain, 1, true, &err), err);
    check_all(d);
    assert_ok(img_io_read(&d->io, 0, &iov, 1, 0, &err), err);
    assert_ok(img_io_write(&d->io, 1, &iov, 1, 0, 0, &err), err);
    assert_ok(img_io_flush(&d->io, 1, &err), err);
    assert_ok(img_io_unmap(&d->io, 0, 0, SIZE, IMG_UNMAP_DROP, &err), err);
    assert_int_equal(tiny_used(d->chain->layers[0]), 0);
    check_all(d);
    assert_ok(img_chain_reopen(d->chain, 1, false, &err), err);
    check_all(d);
    assert_ok(img_close(d, &err), err);
}

/* The steps that convert takes apart. */
static void test_places(void **state)
{
    enum { MAX = 4 };
    static unsigned char data[SIZE];
    struct img_place places[MAX];
    uint64_t seed = 11, off = 0;
    struct img_disk *d;
    unsigned n;

    assert_ok(make("alone", "tiny", SIZE, NULL, NULL, 0, NULL), err);
    d = reopen("alone", IMG_OPEN_WRITE);
    for (size_t i = 0; i < SIZE; i++)
        flat[i] = (unsigned char)unit_random(&seed);
    memcpy(data, flat, SIZE);
    while (off < SIZE) {
        assert_ok(img_io_reserve(&d->io, 0, off, SIZE - off, places, MAX, &n,
                                 &err), err);
        assert_true(n > 0);
        for (unsigned i = n; i-- > 0;)
            assert_ok(img_io_put(&d->io, 0, &places[i], data + places[i].off,
                                 &err), err);
        off = places[n - 1].off + places[n - 1].len;
    }
    check_all(d);
    assert_ok(img_close(d, &err), err);
    d = reopen("alone", 0);
    check_all(d);
    assert_ok(img_close(d, &err), err);
}

/* What is done at once, and what is left to somebody who may wait. */
static void test_without_waiting(void **state)
{
    static unsigned char data[TINY_CLUSTER], buf[TINY_CLUSTER];
    const uint64_t nothing = 80 * 1024;         /* in no layer */
    struct img_range range;
    struct img_disk *d;

    make_chain(7);
    d = reopen("top", IMG_OPEN_WRITE);
    memset(data, 'x', sizeof data);
    /* What the layers below the top say together is not known yet; once it
     * has been read it stays so. */
    assert_int_equal(img_pread_now(d, buf, 16, nothing), -EAGAIN);
    assert_ok(img_pread(d, buf, 16, nothing, &err), err);
    assert_int_equal(img_pread_now(d, buf, 16, nothing), 0);
    /* Where nothing is nothing has to be read to fill the cluster up. */
    assert_int_equal(img_pwrite_now(d, data, 100, nothing + 50), 0);
    assert_int_equal(img_pwrite_now(d, data, 100, nothing + 3000), 0);
    memset(flat + nothing + 50, 'x', 100);
    memset(flat + nothing + 3000, 'x', 100);
    check_all(d);               /* which brings all of it into memory */
    assert_int_equal(img_pread_now(d, buf, sizeof buf, nothing), 0);
    assert_memory_equal(buf, flat + nothing, sizeof buf);
    /* Copying from below may take its time. */
    assert_int_equal(img_pwrite_now(d, data, 100, 5000), -EAGAIN);
    /* Nobody is waited for, and nothing wrong is explained. */
    img_range_lock(&d->io.ranges, &range, nothing, 1, true);
    assert_int_equal(img_pread_now(d, buf, 512, nothing), -EAGAIN);
    assert_int_equal(img_pwrite_now(d, data, 512, nothing), -EAGAIN);
    img_range_unlock(&d->io.ranges, &range);
    assert_int_equal(img_pread_now(d, buf, 2, SIZE - 1), -EAGAIN);
    assert_int_equal(img_pwrite_now(d, data, 2, SIZE - 1), -EAGAIN);
    check_all(d);
    assert_ok(img_close(d, &err), err);
    d = reopen("top", 0);
    assert_int_equal(img_pwrite_now(d, data, 1, nothing), -EAGAIN);
    assert_ok(img_close(d, &err), err);
}

/* How many bytes there are in the pipe: these, of the flat array. */
static void drain(int pipe, uint64_t off, size_t len)
{
    static unsigned char buf[SIZE];

    assert_int_equal(read(pipe, buf, sizeof buf), (int)len);
    assert_memory_equal(buf, flat + off, len);
}

/* Pages leave only where their place cannot come to hold other bytes. */
static void test_pages(void **state)
{
    struct img_range range;
    struct img_disk *d;
    int p[2];

    make_chain(8);
    assert_int_equal(pipe(p), 0);
    d = open_as("raw", "raw", IMG_OPEN_WRITE | IMG_OPEN_NO_SYNC);
    assert_int_equal(img_splice_now(d, p[1], 8192, 20480), 0);
    drain(p[0], 20480, 8192);
    assert_int_equal(img_splice_now(d, p[1], 1000, 22001), 0);
    drain(p[0], 22001, 1000);
    img_range_lock(&d->io.ranges, &range, 22500, 1, true);
    assert_int_equal(img_splice_now(d, p[1], 1000, 22001), -EAGAIN);
    img_range_unlock(&d->io.ranges, &range);
    assert_int_equal(img_splice_now(d, p[1], 0, 0), -EAGAIN);
    assert_int_equal(img_splice_now(d, p[1], 2, RAW_SIZE - 1), -EAGAIN);
    assert_int_equal(img_splice_now(d, p[0], 512, 0), -EAGAIN);
    assert_int_equal(fcntl(p[1], F_SETPIPE_SZ, 4096), 4096);
    assert_int_equal(img_splice_now(d, p[1], 4096, 20480), 0);
    drain(p[0], 20480, 4096);
    assert_int_equal(img_splice_now(d, p[1], 4096, 20481), -EAGAIN);
    assert_ok(img_close(d, &err), err);

    d = reopen("top", IMG_OPEN_WRITE);
    check_all(d);               /* which learns where everything is */
    assert_int_equal(img_splice_now(d, p[1], 512, 2048), 0);    /* raw */
    drain(p[0], 2048, 512);
    assert_int_equal(img_splice_now(d, p[1], 4, 5001), 0);      /* middle */
    drain(p[0], 5001, 4);
    assert_int_equal(img_splice_now(d, p[1], 16, 13000), -EAGAIN); /* zeros */
    assert_true(fcntl(p[1], F_SETPIPE_SZ, 65536) >= 65536);
    assert_int_equal(img_splice_now(d, p[1], 2000, 3000), -EAGAIN);
    assert_ok(img_pwrite(d, "top", 3, 2048, 0, &err), err);
    memcpy(flat + 2048, "top", 3);
    assert_int_equal(img_splice_now(d, p[1], 512, 2048), -EAGAIN);
    check_all(d);
    assert_ok(img_close(d, &err), err);
    d = reopen("top", 0);
    check_all(d);
    assert_int_equal(img_splice_now(d, p[1], 512, 2048), 0);
    drain(p[0], 2048, 512);
    assert_ok(img_close(d, &err), err);
    close(p[0]);
    close(p[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_limits_of_requests),
        cmocka_unit_test(test_nothing_is_allocated),
        cmocka_unit_test(test_broken),
        cmocka_unit_test(test_lower_layer),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_without_waiting),
        cmocka_unit_test(test_pages),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
