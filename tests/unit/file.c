#include "unit.h"
#include "scratch.h"
#include "base/sync.h"
#include "file/file.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <signal.h>

enum { MODEL = 300000 };
static uint8_t model[MODEL], buf[MODEL];

static struct img_file *open_new(unsigned flags)
{
    struct img_file *f = NULL;
    struct img_error err;
    int r;

    unlink(in_scratch("f"));
    r = img_file_open(in_scratch("f"), IMG_FILE_WRITE | IMG_FILE_CREATE |
                      flags, &f, &err);
    if (r == -EINVAL && (flags & IMG_FILE_DIRECT))
        skip();                 /* tmpfs */
    assert_ok(r, err);
    return f;
}

static uint64_t size_of(struct img_file *f)
{
    struct img_error err;
    uint64_t size = 0;

    assert_ok(img_file_size(f, &size, &err), err);
    return size;
}

static void check_model(struct img_file *f, uint64_t len)
{
    struct img_error err;

    assert_int_equal(size_of(f), len);
    memset(buf, 0xcc, MODEL);
    assert_ok(img_file_pread(f, buf, MODEL, 0, &err), err);
    assert_memory_equal(buf, model, MODEL);
}

/* Writes scattered over several pieces of memory at odd addresses. */
static int write_scattered(struct img_file *f, uint64_t off, uint32_t len,
                           uint64_t *seed, struct img_error *err)
{
    struct iovec iov[3] = {
        { buf + 1, len / 3 }, { buf + 1 + len / 3, 0 },
        { buf + 1 + len / 3, len - len / 3 },
    };

    for (uint32_t i = 0; i < len; i++)
        model[off + i] = buf[i + 1] = (uint8_t)unit_random(seed);
    return img_file_pwritev(f, iov, 3, off, err);
}

/* Anything at any place, against a flat array. */
static void random_operations(struct img_file *f, uint64_t seed, bool punches)
{
    struct img_error err;
    uint64_t end = 0;

    memset(model, 0, MODEL);
    for (int k = 0; k < 300; k++) {
        uint64_t off = unit_random(&seed) % MODEL;
        uint32_t most = IMG_MIN(k % 3 ? 9000u : 200000u,
                                (uint32_t)(MODEL - off) - 1);
        uint32_t len = most ? unit_random(&seed) % most + 1 : 1;
        uint32_t dice = unit_random(&seed) % 10;

        if (dice < 3) {
            off &= ~511u;
            len = (uint32_t)IMG_MIN(img_round_up(len, 512), MODEL - off - 1);
        }
        if (dice < 6) {
            assert_ok(write_scattered(f, off, len, &seed, &err), err);
            end = IMG_MAX(end, off + len);
        } else if (dice < 8) {
            assert_ok(img_file_zero(f, off, len,
                                    dice == 6 ? IMG_FILE_MAY_UNMAP : 0,
                                    &err), err);
            memset(model + off, 0, len);
            end = IMG_MAX(end, off + len);
        } else if (dice == 8 && punches) {
            assert_ok(img_file_discard(f, off, len, &err), err);
            memset(model + off, 0, len);
        } else if (dice == 9 && k % 4 == 0) {
            assert_ok(img_file_truncate(f, off, &err), err);
            memset(model + off, 0, MODEL - off);
            end = off;
        }
        if (k % 20 == 0)
            check_model(f, end);
    }
    check_model(f, end);
}

static void test_random(void **state)
{
    struct img_file *f;
    struct img_error err;

    for (uint64_t seed = 0; seed < 5; seed++) {
        assert_ok(img_file_in_memory("mem", &f, &err), err);
        random_operations(f, seed, true);
        img_file_close(f);
        f = open_new(0);
        random_operations(f, seed, true);
        img_file_close(f);
    }
}

static void test_random_direct(void **state)
{
    struct img_file *f = open_new(IMG_FILE_DIRECT);

    assert_int_equal(f->align, 4096);
    random_operations(f, 1, true);
    img_file_close(f);
}

static void test_beyond_end(void **state)
{
    const unsigned flags[] = { 0, IMG_FILE_DIRECT };
    struct img_error err;
    uint8_t b[5000];

    for (size_t i = 0; i < IMG_COUNT(flags); i++) {
        struct img_file *f = open_new(flags[i]);

        assert_ok(img_file_pwrite(f, "abc", 3, 4094, &err), err);
        assert_int_equal(size_of(f), 4097);
        memset(b, 1, sizeof b);
        assert_ok(img_file_pread(f, b, 5000, 4090, &err), err);
        assert_memory_equal(b, "\0\0\0\0abc\0\0", 9);
        assert_true(b[4999] == 0);
        memset(b, 1, sizeof b);
        assert_ok(img_file_pread(f, b, 10, UINT64_MAX - 5, &err), err);
        assert_int_equal(b[9], 0);
        assert_ok(img_file_pread(f, b, 10, UINT64_C(1) << 62, &err), err);
        assert_int_equal(img_file_pwrite(f, b, 10, UINT64_MAX - 5, &err),
                         -EFBIG);
        assert_int_equal(img_file_truncate(f, UINT64_MAX, &err), -EFBIG);
        img_file_close(f);
    }
}

static void test_read_only(void **state)
{
    struct img_file *f = open_new(0);
    struct img_error err;

    img_file_close(f);
    assert_ok(img_file_open(in_scratch("f"), 0, &f, &err), err);
    assert_int_equal(img_file_pwrite(f, "a", 1, 0, &err), -EROFS);
    assert_int_equal(img_file_zero(f, 0, 1, 0, &err), -EROFS);
    assert_int_equal(img_file_truncate(f, 9, &err), -EROFS);
    assert_int_equal(img_file_allocate(f, 0, 9, &err), -EROFS);
    assert_ok(img_file_discard(f, 0, 1, &err), err);
    assert_int_equal(size_of(f), 0);
    img_file_close(f);
}

static void test_refused(void **state)
{
    struct img_file *f = NULL;
    struct img_error err;

    assert_int_equal(img_file_open(scratch, 0, &f, &err), -EISDIR);
    assert_int_equal(img_file_open(in_scratch("none"), 0, &f, &err), -ENOENT);
    assert_non_null(strstr(err.message, "none"));
    assert_int_equal(mkfifo(in_scratch("fifo"), 0600), 0);
    assert_int_equal(img_file_open(in_scratch("fifo"), IMG_FILE_WRITE, &f,
                                   &err), -EINVAL);
    assert_int_equal(img_file_open("/dev/null", 0, &f, &err), -EINVAL);
    img_file_close(open_new(0));
    assert_int_equal(img_file_open(in_scratch("f"), IMG_FILE_WRITE |
                                   IMG_FILE_CREATE, &f, &err), -EEXIST);
    assert_int_equal(img_file_from_fd(open(in_scratch("f"), O_RDWR |
                                           O_APPEND), "fd", IMG_FILE_WRITE,
                                      &f, &err), -EINVAL);
    assert_int_equal(img_file_from_fd(open(in_scratch("f"), O_RDONLY), "fd",
                                      IMG_FILE_WRITE, &f, &err), -EACCES);
    assert_int_equal(img_file_from_fd(open(in_scratch("f"), O_WRONLY), "fd",
                                      0, &f, &err), -EACCES);
    assert_null(f);
    img_file_close(NULL);
}

static void test_extents(void **state)
{
    struct img_file *f = open_new(0);
    struct img_error err;
    bool is_data;
    uint64_t run;

    assert_ok(img_file_truncate(f, 1 << 20, &err), err);
    assert_ok(img_file_pwrite(f, "x", 1, 512 << 10, &err), err);
    assert_ok(img_file_extent(f, 0, 1 << 20, &is_data, &run, &err), err);
    if (is_data)
        skip();                 /* a file system that cannot tell */
    assert_true(run <= 512 << 10);
    assert_ok(img_file_extent(f, 512 << 10, 1 << 20, &is_data, &run, &err),
              err);
    assert_true(is_data && run < 512 << 10);
    assert_ok(img_file_extent(f, 2 << 20, 77, &is_data, &run, &err), err);
    assert_true(!is_data && run == 77);
    assert_true(img_file_allocated(f) < 512 << 10);
    img_file_close(f);
}

static void test_same_file(void **state)
{
    struct img_file *a = open_new(0), *b;
    struct img_error err;

    assert_ok(img_file_open(in_scratch("f"), 0, &b, &err), err);
    assert_true(a->device == b->device && a->inode == b->inode && a->inode);
    img_file_close(a);
    img_file_close(b);
}

static void test_too_large(void **state)
{
    struct rlimit old, small;
    struct img_file *f = open_new(0);
    struct img_error err;

    memset(buf, 3, 100000);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 50000;
    setrlimit(RLIMIT_FSIZE, &small);
    assert_int_equal(img_file_pwrite(f, buf, 100000, 0, &err), -EFBIG);
    assert_int_equal(img_file_truncate(f, 60000, &err), -EFBIG);
    assert_true(img_file_zero(f, 49000, 10000, IMG_FILE_MAY_UNMAP, &err) < 0);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_non_null(strstr(err.message, in_scratch("f")));
    img_file_close(f);
}

/* ---- threads ----------------------------------------------------------- */

enum { THREADS = 4, ROUNDS = 200, STEP = 700 };

struct growing {
    struct img_file *f;
    atomic_uint next;
    atomic_int failed;
};

/* Neighbouring pieces, in turn written, or zeroed so that the file grows:
 * what one does must not undo what another did. */
static void *grow_file(void *arg)
{
    struct growing *g = arg;
    unsigned i;
    int r;

    while ((i = atomic_fetch_add(&g->next, 1)) < THREADS * ROUNDS) {
        uint64_t off = (uint64_t)i * STEP;
        char piece[STEP];

        memset(piece, (int)(i % 255 + 1), STEP);
        if (i % 3)
            r = img_file_pwrite(g->f, piece, STEP, off, NULL);
        else
            r = img_file_zero(g->f, off, STEP, IMG_FILE_MAY_UNMAP, NULL);
        if (r < 0)
            atomic_fetch_add(&g->failed, 1);
    }
    return NULL;
}

static void growing(unsigned flags)
{
    struct growing g = { .f = open_new(flags) };
    pthread_t threads[THREADS];
    struct img_error err;
    char piece[STEP];

    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, grow_file, &g), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(g.failed, 0);
    assert_int_equal(size_of(g.f), THREADS * ROUNDS * STEP);
    for (unsigned i = 0; i < THREADS * ROUNDS; i++) {
        assert_ok(img_file_pread(g.f, piece, STEP, (uint64_t)i * STEP, &err),
                  err);
        for (int k = 0; k < STEP; k++)
            assert_int_equal((uint8_t)piece[k], i % 3 ? i % 255 + 1 : 0);
    }
    img_file_close(g.f);
}

static void test_growing(void **state)
{
    for (int i = 0; i < 20; i++)
        growing(0);
}

static void test_growing_direct(void **state)
{
    growing(IMG_FILE_DIRECT);
}

/* ---- syncs at the same time --------------------------------------------- */

/* The first sync stays in the kernel until told, then fails or not; later
 * ones find nothing to complain of, as the kernel tells an error once. */
static struct {
    struct img_mutex lock;
    struct img_cond moved;
    bool on, entered, leave;
    int calls, error;
} kernel;

int fdatasync(int fd)
{
    int r = 0;

    if (!kernel.on)
        return (int)syscall(SYS_fdatasync, fd);
    img_lock(&kernel.lock);
    if (kernel.calls++ == 0) {
        kernel.entered = true;
        img_wake_all(&kernel.moved);
        while (!kernel.leave)
            img_wait(&kernel.moved, &kernel.lock);
        errno = kernel.error;
        r = kernel.error ? -1 : 0;
    }
    img_unlock(&kernel.lock);
    return r;
}

struct syncer {
    pthread_t thread;
    struct img_file *f;
    int result;
    bool done;
};

static void *sync_file(void *opaque)
{
    struct syncer *s = opaque;
    int r = img_file_sync(s->f, NULL);

    img_lock(&kernel.lock);
    s->result = r;
    s->done = true;
    img_wake_all(&kernel.moved);
    img_unlock(&kernel.lock);
    return NULL;
}

/* One sync is in the kernel; another is asked for, and must not be answered
 * before the first one is. */
static void two_syncs(int error, struct syncer s[2])
{
    struct img_file *f = open_new(0);
    bool early;

    kernel.on = true;
    kernel.entered = kernel.leave = false;
    kernel.calls = 0;
    kernel.error = error;
    img_mutex_init(&kernel.lock);
    img_cond_init(&kernel.moved);
    s[0] = s[1] = (struct syncer){ .f = f };
    pthread_create(&s[0].thread, NULL, sync_file, &s[0]);
    img_lock(&kernel.lock);
    while (!kernel.entered)
        img_wait(&kernel.moved, &kernel.lock);
    img_unlock(&kernel.lock);
    pthread_create(&s[1].thread, NULL, sync_file, &s[1]);
    img_lock(&kernel.lock);
    img_wait_ms(&kernel.moved, &kernel.lock, 100);
    early = s[1].done;
    kernel.leave = true;
    img_wake_all(&kernel.moved);
    img_unlock(&kernel.lock);
    for (int i = 0; i < 2; i++)
        pthread_join(s[i].thread, NULL);
    kernel.on = false;
    img_file_close(f);
    assert_false(early);
}

static void test_syncs_lost(void **state)
{
    struct syncer s[2];

    two_syncs(EIO, s);
    assert_int_equal(s[0].result, -EIO);
    assert_int_equal(s[1].result, -EIO);
}

/* What is asked for while one runs is not covered by that one. */
static void test_syncs_cover(void **state)
{
    struct syncer s[2];

    two_syncs(0, s);
    assert_int_equal(s[0].result, 0);
    assert_int_equal(s[1].result, 0);
    assert_int_equal(kernel.calls, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_random_direct),
        cmocka_unit_test(test_beyond_end),
        cmocka_unit_test(test_read_only),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_extents),
        cmocka_unit_test(test_same_file),
        cmocka_unit_test(test_too_large),
        cmocka_unit_test(test_growing),
        cmocka_unit_test(test_growing_direct),
        cmocka_unit_test(test_syncs_lost),
        cmocka_unit_test(test_syncs_cover),
    };

    return cmocka_run_group_tests_name("file", tests, scratch_begin,
                                       scratch_end);
}
