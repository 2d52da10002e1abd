/* The cache of tables, used by several threads at once. */
#include "spy.h"

enum { THREADS = 4, ROUNDS = 20000 };

struct crew {
    struct spy *s;
    struct img_tcache *c;
    struct img_rwlock bytes;    /* protects the slices' bytes and model */
    struct img_mutex flushing;
    uint32_t model[SLICES][2];
    atomic_int bad;
    pthread_barrier_t start;
};

struct member {
    struct crew *crew;
    uint64_t seed;
};

static void *same_slice(void *arg)
{
    struct crew *w = arg;
    struct img_slice *a = NULL;

    for (int i = 0; i < SLICES; i++) {
        pthread_barrier_wait(&w->start);
        if (img_tcache_get(w->c, &w->s->file, (uint64_t)i * SLICE, SLICE, 1,
                           &a, NULL) < 0 ||
            (char)a->data[9] != word((uint64_t)i * SLICE + 9))
            atomic_fetch_add(&w->bad, 1);
        else
            img_tcache_put(w->c, a);
    }
    return NULL;
}

static void test_single_flight(void **state)
{
    pthread_t threads[THREADS];
    struct crew w = { 0 };
    struct spy s;

    begin(&s, &w.c, 2 * SLICES);
    w.s = &s;
    pthread_barrier_init(&w.start, NULL, THREADS);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, same_slice, &w),
                         0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&w.start);
    assert_int_equal(w.bad, 0);
    assert_int_equal(s.reads, SLICES);
    end(&s, w.c);
}

static void one_change(struct crew *w, uint32_t i, uint64_t *seed)
{
    uint32_t at = unit_random(seed) % 2;
    struct img_slice *a;

    if (img_tcache_get(w->c, &w->s->file, (uint64_t)i * SLICE, SLICE, 1, &a,
                       NULL) < 0)
        return;                 /* a failed read, as ordered */
    img_write_lock(&w->bytes);
    if (img_get_be32(a->data + at * 2048) != w->model[i][at])
        atomic_fetch_add(&w->bad, 1);
    w->model[i][at] = unit_random(seed);
    img_put_be32(a->data + at * 2048, w->model[i][at]);
    img_tcache_dirty(w->c, a, at * 2048, 4);
    img_rw_unlock(&w->bytes);
    img_tcache_put(w->c, a);
}

static void one_flush(struct crew *w)
{
    struct img_stage *st = NULL;
    int r;

    img_lock(&w->flushing);
    img_write_lock(&w->bytes);
    r = img_tcache_stage(w->c, &w->s->file, 1, &st, NULL);
    img_rw_unlock(&w->bytes);
    if (r == 0) {
        r = img_stage_write(st, NULL);
        img_stage_done(st, r == 0);
    } else {
        atomic_fetch_add(&w->bad, 1);
    }
    img_unlock(&w->flushing);
}

/* No slice is dirty: all of them may be dropped, even those in use. */
static void one_forget(struct crew *w, uint32_t i)
{
    struct img_stage *st = NULL;

    img_lock(&w->flushing);
    img_write_lock(&w->bytes);
    if (img_tcache_stage(w->c, &w->s->file, 1, &st, NULL) == 0 &&
        img_stage_write(st, NULL) == 0) {
        img_stage_done(st, true);
        st = NULL;
        img_tcache_forget(w->c, &w->s->file, (uint64_t)(SLICES + i) * SLICE,
                          SLICES * SLICE);
    }
    img_stage_done(st, false);
    img_rw_unlock(&w->bytes);
    img_unlock(&w->flushing);
}

static void *mixed(void *arg)
{
    struct member *m = arg;
    struct crew *w = m->crew;
    struct img_slice *a;

    for (int k = 0; k < ROUNDS; k++) {
        uint32_t dice = unit_random(&m->seed) % 100;
        uint32_t i = unit_random(&m->seed) % SLICES;

        if (dice < 40) {
            one_change(w, i, &m->seed);
        } else if (dice < 90) {
            uint64_t off = (uint64_t)(i + (dice < 50 ? SLICES : 0)) * SLICE;

            if (img_tcache_get(w->c, &w->s->file, off, SLICE, 1, &a, NULL) < 0)
                continue;
            img_read_lock(&w->bytes);
            if (img_get_be32(a->data) != (dice < 50 ? 0 : w->model[i][0]))
                atomic_fetch_add(&w->bad, 1);
            img_rw_unlock(&w->bytes);
            img_tcache_put(w->c, a);
        } else if (dice < 94) {
            one_flush(w);
        } else if (dice < 96) {
            one_forget(w, i);
        } else if (dice == 96) {
            atomic_fetch_add(&w->s->fail_writes, 1);
        } else if (dice == 97) {
            atomic_fetch_add(&w->s->fail_reads, 1);
        } else {
            img_tcache_is_full(w->c);
        }
    }
    return NULL;
}

static void test_threads(void **state)
{
    struct member members[THREADS];
    pthread_t threads[THREADS];
    struct crew w = { 0 };
    char b[4];
    struct spy s;

    begin(&s, &w.c, 20);
    w.s = &s;
    img_rwlock_init(&w.bytes);
    img_mutex_init(&w.flushing);
    for (uint64_t i = 0; i < SLICES * 2; i++) {
        assert_int_equal(img_file_pread(s.inner, b, 4, i * 2048, NULL), 0);
        w.model[i / 2][i % 2] = img_get_be32(b);
    }
    for (int i = 0; i < THREADS; i++) {
        members[i] = (struct member){ &w, (uint64_t)i };
        assert_int_equal(pthread_create(&threads[i], NULL, mixed,
                                        &members[i]), 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    s.fail_writes = s.fail_reads = 0;
    assert_int_equal(write_back(&s, w.c), 0);
    assert_int_equal(w.bad, 0);
    assert_false(img_tcache_is_full(w.c));
    for (uint64_t i = 0; i < SLICES * 2; i++) {
        assert_int_equal(img_file_pread(s.inner, b, 4, i * 2048, NULL), 0);
        assert_int_equal(w.model[i / 2][i % 2], img_get_be32(b));
    }
    img_mutex_destroy(&w.flushing);
    img_rwlock_destroy(&w.bytes);
    end(&s, w.c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_single_flight),
        cmocka_unit_test(test_threads),
    };

    return cmocka_run_group_tests_name("tcache-threads", tests, NULL, NULL);
}
