/* Operations of two threads on one disk: what an operation refuses, it judges
 * by the chain that it then works on. */
#include "../unit/unit.h"
#include "../unit/scratch.h"
#include "libimg.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

enum { ROUNDS = 400 };

static struct img_disk *disk;
static atomic_bool over;

static void make(const char *name, const char *backing)
{
    struct img_create_options o = IMG_CREATE_OPTIONS;
    struct img_error err;

    o.format = "qcow2";
    o.flags = IMG_CREATE_NO_SYNC;
    o.disk_size = 1 << 20;
    o.has_size = !backing;
    o.backing = backing;
    o.backing_format = backing ? "qcow2" : NULL;
    assert_ok(img_create(in_scratch(name), &o, &err), err);
}

static void *rebase(void *opaque)
{
    struct img_rebase_options o = IMG_REBASE_OPTIONS;
    intptr_t failed = 0;

    o.backing_format = "qcow2";
    for (int i = 0; i < ROUNDS; i++) {
        o.backing = i % 2 ? "one" : "two";
        failed += img_rebase(disk, &o, NULL, NULL) < 0;
    }
    over = true;
    return (void *)failed;
}

/* Both bases have another overlay, so that neither may be written. */
static void *commit(void *opaque)
{
    intptr_t done = 0;

    while (!over)
        done += img_commit(disk, 1, true, NULL, NULL) != -EBUSY;
    return (void *)done;
}

static void test_commit_during_rebase(void **state)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_error err;
    pthread_t threads[2];
    void *failed, *done;

    make("one", NULL);
    make("two", NULL);
    make("beside-one", "one");
    make("beside-two", "two");
    make("over", "one");
    o.flags = IMG_OPEN_WRITE | IMG_OPEN_NO_SYNC;
    o.format = "qcow2";
    assert_ok(img_open(in_scratch("over"), &o, &disk, &err), err);
    pthread_create(&threads[0], NULL, rebase, NULL);
    pthread_create(&threads[1], NULL, commit, NULL);
    pthread_join(threads[0], &failed);
    pthread_join(threads[1], &done);
    assert_ok(img_close(disk, &err), err);
    assert_int_equal((intptr_t)failed, 0);
    assert_int_equal((intptr_t)done, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_commit_during_rebase),
    };

    return cmocka_run_group_tests(tests, scratch_begin, scratch_end);
}
