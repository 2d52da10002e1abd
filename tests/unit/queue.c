#include "folder.h"
#include "core/disk.h"

#include <poll.h>
#include <pthread.h>
#include <unistd.h>

enum { K = 1024, SIZE = 256 * K, BLOCK = 4 * K, BLOCKS = SIZE / BLOCK };

static bool is_readable(const struct img_queue *q)
{
    struct pollfd fd = { .fd = img_queue_fd(q), .events = POLLIN };

    return poll(&fd, 1, 0) == 1;
}

static struct img_disk *new_disk(void)
{
    assert_ok(make("disk", "raw", SIZE, NULL, NULL, 0, NULL), err);
    return open_as("disk", "raw", IMG_OPEN_WRITE | IMG_OPEN_NO_SYNC);
}

static void test_one(void **state)
{
    char out[] = "hello", in[5];
    struct iovec w = { out, 5 }, r = { in, 5 };
    struct img_request req = { .op = IMG_WRITE, .off = 100, .iov = &w,
                               .iovcnt = 1, .user = out };
    struct img_completion done[4];
    struct img_disk *d = new_disk();
    struct img_queue *q;

    assert_ok(img_queue_open(d, 8, &q, &err), err);
    assert_false(is_readable(q));
    assert_int_equal(img_queue_reap(q, done, 1, 4, -1), 0); /* none there */
    assert_int_equal(img_queue_submit(q, &req, 1), 1);
    assert_int_equal(img_queue_reap(q, done, 1, 4, -1), 1);
    assert_ptr_equal(done[0].user, out);
    assert_int_equal(done[0].result, 0);
    assert_null(done[0].message);
    assert_false(is_readable(q));
    req.op = IMG_READ;
    req.iov = &r;
    img_queue_submit(q, &req, 1);
    assert_int_equal(img_queue_reap(q, done, 1, 4, 10000), 1);
    assert_memory_equal(in, "hello", 5);
    req = (struct img_request){ .op = IMG_ZERO, .off = 101, .len = 2 };
    img_queue_submit(q, &req, 1);
    req = (struct img_request){ .op = IMG_FLUSH };
    img_queue_submit(q, &req, 1);
    req = (struct img_request){ .op = IMG_DISCARD, .off = 0, .len = 10 };
    img_queue_submit(q, &req, 1);
    assert_int_equal(img_queue_reap(q, done, 3, 4, -1), 3);
    assert_ok(img_pread(d, in, 5, 100, &err), err);
    assert_memory_equal(in, "h\0\0lo", 5);
    img_queue_close(q);
    img_queue_close(NULL);
    assert_ok(img_close(d, &err), err);
}

static void test_errors(void **state)
{
    struct img_request req = { .op = IMG_ZERO, .off = SIZE, .len = 1 };
    struct img_request odd = { .op = (enum img_op)99 };
    struct img_completion done[4];
    struct img_disk *d = new_disk();
    struct img_queue *q;

    assert_int_equal(img_queue_open(d, 0, &q, &err), -EINVAL);
    assert_ok(img_queue_open(d, 2, &q, &err), err);
    img_queue_submit(q, &req, 1);
    assert_int_equal(img_queue_reap(q, done, 1, 1, -1), 1);
    assert_int_equal(done[0].result, -EINVAL);
    assert_non_null(strstr(done[0].message, "disk"));
    img_queue_submit(q, &odd, 1);
    assert_int_equal(img_queue_reap(q, done, 1, 1, -1), 1);
    assert_int_equal(done[0].result, -EINVAL);
    img_queue_close(q);
    assert_ok(img_close(d, &err), err);
}

/* No more than depth are taken, and what is not reaped is not lost. */
static void test_depth(void **state)
{
    enum { DEPTH = 4 };
    struct img_request req[6] = { 0 };
    struct img_completion done[6];
    struct img_disk *d = new_disk();
    struct img_queue *q;
    int got = 0;

    for (int i = 0; i < 6; i++)
        req[i].op = IMG_FLUSH;
    assert_ok(img_queue_open(d, DEPTH, &q, &err), err);
    assert_int_equal(img_queue_submit(q, req, 6), DEPTH);
    assert_int_equal(img_queue_submit(q, req, 1), 0);
    assert_int_equal(img_queue_reap(q, done, 1, 1, -1), 1);
    assert_int_equal(img_queue_submit(q, req, 6), 1);
    while (got < DEPTH) {
        int n = img_queue_reap(q, done, 1, 2, -1);

        assert_true(n == 1 || n == 2);
        got += n;
    }
    assert_int_equal(got, DEPTH);
    assert_int_equal(img_queue_reap(q, done, 0, 6, 0), 0);
    assert_false(is_readable(q));
    /* Closing waits for what is in flight. */
    img_queue_submit(q, req, 4);
    img_queue_close(q);
    assert_ok(img_close(d, &err), err);
}

/* A request that has to wait for another: who reaps waits as long as he said,
 * and later it is there. */
static void test_patience(void **state)
{
    char in[8];
    struct iovec r = { in, 8 };
    struct img_request reqs[] = {
        { .op = IMG_READ, .off = 0, .iov = &r, .iovcnt = 1 },
        { .op = IMG_WRITE, .off = 0, .iov = &r, .iovcnt = 1 },
    };
    struct img_completion done[4];
    struct img_disk *d = new_disk();
    struct img_range range;
    struct img_queue *q;

    assert_int_equal(img_queue_open(d, 1 << 30, &q, &err), -EINVAL);
    assert_says("a queue for 1073741824 requests");
    assert_ok(img_queue_open(d, 4, &q, &err), err);
    /* The disk is being changed as a whole: not even a read is done now. */
    img_write_lock(&d->structure);
    assert_int_equal(img_queue_submit(q, &reqs[0], 1), 1);
    assert_int_equal(img_queue_reap(q, done, 1, 4, 0), 0);
    assert_int_equal(img_queue_reap(q, done, 1, 4, 20), 0);
    assert_false(is_readable(q));
    img_rw_unlock(&d->structure);
    assert_int_equal(img_queue_reap(q, done, 1, 4, 100000), 1);
    assert_int_equal(done[0].result, 0);
    /* A range is. */
    img_range_lock(&d->io.ranges, &range, 0, 4096, true);
    assert_int_equal(img_queue_submit(q, &reqs[1], 1), 1);
    assert_int_equal(img_queue_reap(q, done, 1, 4, 5), 0);
    img_range_unlock(&d->io.ranges, &range);
    assert_int_equal(img_queue_reap(q, done, 1, 4, -1), 1);
    assert_int_equal(done[0].result, 0);
    img_queue_close(q);
    assert_ok(img_close(d, &err), err);
}

struct user {
    pthread_t thread;
    struct img_disk *disk;
    unsigned number;
};

enum { USERS = 3, IN_FLIGHT = 16, REQUESTS = 600 };
static unsigned char buffers[USERS][BLOCKS][BLOCK];
static unsigned char written[BLOCKS];

/* Each user has every third block; writes a value, or reads it back. */
static void *use(void *opaque)
{
    struct user *u = opaque;
    struct iovec iov[BLOCKS];
    struct img_completion done[IN_FLIGHT];
    bool busy[BLOCKS] = { false };
    unsigned char expect[BLOCKS] = { 0 };
    uint64_t seed = u->number + 1;
    unsigned submitted = 0, completed = 0;
    struct img_queue *q;
    struct img_error e;

    assert_ok(img_queue_open(u->disk, IN_FLIGHT, &q, &e), e);
    while (completed < REQUESTS) {
        unsigned b = unit_random(&seed) % BLOCKS / USERS * USERS + u->number;

        if (b < BLOCKS && submitted < REQUESTS && !busy[b] &&
            submitted - completed < IN_FLIGHT) {
            unsigned char *buf = buffers[u->number][b];
            struct img_request req = {
                .op = unit_random(&seed) % 2 ? IMG_WRITE : IMG_READ,
                .off = (uint64_t)b * BLOCK, .iov = &iov[b], .iovcnt = 1,
                .user = (void *)(uintptr_t)(b + 1),
            };

            iov[b] = (struct iovec){ buf, BLOCK };
            if (req.op == IMG_WRITE) {
                expect[b] = (unsigned char)unit_random(&seed);
                memset(buf, expect[b], BLOCK);
            } else {
                memset(buf, ~expect[b], BLOCK);
            }
            busy[b] = true;
            assert_int_equal(img_queue_submit(q, &req, 1), 1);
            submitted++;
        }
        int n = img_queue_reap(q, done,
                               submitted - completed == IN_FLIGHT ||
                               submitted == REQUESTS, IN_FLIGHT, -1);
        for (int i = 0; i < n; i++) {
            unsigned at = (unsigned)(uintptr_t)done[i].user - 1;

            assert_int_equal(done[i].result, 0);
            assert_int_equal(buffers[u->number][at][0], expect[at]);
            assert_int_equal(buffers[u->number][at][BLOCK - 1], expect[at]);
            busy[at] = false;
        }
        completed += (unsigned)n;
    }
    for (unsigned b = u->number; b < BLOCKS; b += USERS)
        written[b] = expect[b];
    img_queue_close(q);
    return NULL;
}

static void test_many(void **state)
{
    struct img_disk *d = new_disk();
    struct user users[USERS];
    unsigned char buf[BLOCK];

    for (unsigned i = 0; i < USERS; i++) {
        users[i] = (struct user){ .disk = d, .number = i };
        pthread_create(&users[i].thread, NULL, use, &users[i]);
    }
    for (unsigned i = 0; i < USERS; i++)
        pthread_join(users[i].thread, NULL);
    for (unsigned b = 0; b < BLOCKS; b++) {
        assert_ok(img_pread(d, buf, BLOCK, (uint64_t)b * BLOCK, &err), err);
        assert_int_equal(buf[0], written[b]);
        assert_int_equal(buf[BLOCK - 1], written[b]);
    }
    assert_ok(img_close(d, &err), err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_depth), cmocka_unit_test(test_patience),
        cmocka_unit_test(test_many),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
