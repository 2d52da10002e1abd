#include "unit.h"
#include "core/range.h"

#include <pthread.h>
#include <sched.h>

static struct img_ranges ranges;
static struct img_mutex log_lock;
static char order[8];

static void note(char who)
{
    size_t n;

    img_lock(&log_lock);
    n = strlen(order);
    order[n] = who;
    order[n + 1] = 0;
    img_unlock(&log_lock);
}

static void wait_until_waiting(unsigned n)
{
    for (;;) {
        unsigned now;

        img_lock(&ranges.lock);
        now = ranges.waiting;
        img_unlock(&ranges.lock);
        if (now == n)
            return;
        sched_yield();
    }
}

struct one {
    pthread_t thread;
    char name;
    uint64_t off, len;
    bool exclusive;
};

static void *take_and_go(void *opaque)
{
    struct one *o = opaque;
    struct img_range r;

    img_range_lock(&ranges, &r, o->off, o->len, o->exclusive);
    note(o->name);
    img_range_unlock(&ranges, &r);
    return NULL;
}

static void test_free_ways(void **state)
{
    struct img_range a, b, c, d, e;

    img_ranges_init(&ranges);
    img_range_lock(&ranges, &a, 0, 100, false);
    img_range_lock(&ranges, &b, 50, 100, false);    /* shared beside shared */
    img_range_lock(&ranges, &c, 150, 10, true);     /* touches, no overlap */
    img_range_lock(&ranges, &d, 155, 0, true);      /* nothing at all */
    img_range_lock(&ranges, &e, UINT64_MAX - 5, 5, true);
    img_range_unlock(&ranges, &b);
    img_range_unlock(&ranges, &a);
    img_range_unlock(&ranges, &e);
    img_range_unlock(&ranges, &d);
    img_range_unlock(&ranges, &c);
    assert_null(ranges.first);
    assert_null(ranges.last);
    img_ranges_destroy(&ranges);
}

/* A reader that comes after a waiting writer does not overtake it; one that
 * is elsewhere does. */
static void test_fair(void **state)
{
    struct one writer = { .name = 'w', .off = 0, .len = 10,
                          .exclusive = true };
    struct one reader = { .name = 'r', .off = 5, .len = 1 };
    struct one far = { .name = 'f', .off = 10, .len = 1, .exclusive = true };
    struct img_range mine;

    img_ranges_init(&ranges);
    img_mutex_init(&log_lock);
    order[0] = 0;
    img_range_lock(&ranges, &mine, 0, 10, false);
    pthread_create(&writer.thread, NULL, take_and_go, &writer);
    wait_until_waiting(1);
    pthread_create(&reader.thread, NULL, take_and_go, &reader);
    wait_until_waiting(2);
    pthread_create(&far.thread, NULL, take_and_go, &far);
    pthread_join(far.thread, NULL);
    img_range_unlock(&ranges, &mine);
    pthread_join(writer.thread, NULL);
    pthread_join(reader.thread, NULL);
    assert_string_equal(order, "fwr");
    img_mutex_destroy(&log_lock);
    img_ranges_destroy(&ranges);
}

enum { CELLS = 16, ROUNDS = 3000, THREADS = 4 };
static int cells[CELLS];        /* not atomic: the locks must do */
static int readers[CELLS];

static void *hammer(void *opaque)
{
    uint64_t seed = (uintptr_t)opaque;

    for (int i = 0; i < ROUNDS; i++) {
        unsigned off = unit_random(&seed) % CELLS;
        unsigned len = 1 + unit_random(&seed) % (CELLS - off);
        bool exclusive = unit_random(&seed) % 2;
        struct img_range r;

        img_range_lock(&ranges, &r, off, len, exclusive);
        for (unsigned c = off; c < off + len; c++) {
            if (exclusive) {
                assert_int_equal(__atomic_load_n(&readers[c],
                                                 __ATOMIC_RELAXED), 0);
                cells[c]++;
            } else {
                __atomic_fetch_add(&readers[c], 1, __ATOMIC_RELAXED);
            }
        }
        for (unsigned c = off; c < off + len && !exclusive; c++)
            __atomic_fetch_sub(&readers[c], 1, __ATOMIC_RELAXED);
        for (unsigned c = off; c < off + len && exclusive; c++)
            cells[c]--;
        img_range_unlock(&ranges, &r);
    }
    return NULL;
}

static void test_hammer(void **state)
{
    pthread_t threads[THREADS];

    img_ranges_init(&ranges);
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, hammer, (void *)(uintptr_t)(i + 1));
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < CELLS; i++)
        assert_int_equal(cells[i], 0);
    img_ranges_destroy(&ranges);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_free_ways),
        cmocka_unit_test(test_fair),
        cmocka_unit_test(test_hammer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
