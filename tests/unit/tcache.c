#include "unit.h"
#include "base/sync.h"
#include "cache/tcache.h"
#include "file/file.h"

#include <stdatomic.h>

enum { SLICE = 4096, SLICES = 64 };

/* ---- a file that counts, and fails or waits on request ----------------- */

struct spy {
    struct img_file file;
    struct img_file *inner;
    atomic_int reads, writes, fail_reads, fail_writes;
    struct img_mutex lock;
    struct img_cond cond;
    bool hold, held;            /* writes wait while hold */
    uint64_t last_off, last_len;
};

static int spy_preadv(struct img_file *f, const struct iovec *iov, int n,
                      uint64_t off, struct img_error *err)
{
    struct spy *s = f->state;

    atomic_fetch_add(&s->reads, 1);
    if (atomic_load(&s->fail_reads) > 0 &&
        atomic_fetch_sub(&s->fail_reads, 1) > 0)
        return img_fail(err, EIO, "%s: reading", f->path);
    return img_file_preadv(s->inner, iov, n, off, err);
}

static int spy_pwritev(struct img_file *f, const struct iovec *iov, int n,
                       uint64_t off, struct img_error *err)
{
    struct spy *s = f->state;

    img_lock(&s->lock);
    s->last_off = off;
    s->last_len = iov->iov_len;
    s->held = s->hold;
    img_wake_all(&s->cond);
    while (s->hold)
        img_wait(&s->cond, &s->lock);
    img_unlock(&s->lock);
    atomic_fetch_add(&s->writes, 1);
    if (atomic_load(&s->fail_writes) > 0 &&
        atomic_fetch_sub(&s->fail_writes, 1) > 0)
        return img_fail(err, EIO, "%s: writing", f->path);
    return img_file_pwritev(s->inner, iov, n, off, err);
}

static const struct img_file_ops spy_ops = {
    .kind = "spy", .preadv = spy_preadv, .pwritev = spy_pwritev,
};

static char word(uint64_t off)
{
    return (char)(off / 512 * 7 + off % 251 + 1);
}

/* A file of SLICES slices with content, and a cache of `slices` of them. */
static void begin(struct spy *s, struct img_tcache **c, size_t slices)
{
    struct img_error err;
    char buf[SLICE];

    memset(s, 0, sizeof *s);
    assert_ok(img_file_in_memory("mem", &s->inner, &err), err);
    for (uint64_t i = 0; i < SLICES; i++) {
        for (uint64_t j = 0; j < SLICE; j++)
            buf[j] = word(i * SLICE + j);
        assert_ok(img_file_pwrite(s->inner, buf, SLICE, i * SLICE, &err),
                  err);
    }
    s->file.ops = &spy_ops;
    s->file.path = "spy";
    s->file.fd = -1;
    s->file.writable = true;
    s->file.align = 1;
    s->file.state = s;
    img_mutex_init(&s->lock);
    img_cond_init(&s->cond);
    assert_ok(img_tcache_new(slices * (SLICE + 200), c, &err), err);
}

static void end(struct spy *s, struct img_tcache *c)
{
    img_tcache_free(c);
    img_file_close(s->inner);
    img_cond_destroy(&s->cond);
    img_mutex_destroy(&s->lock);
}

static struct img_slice *get(struct spy *s, struct img_tcache *c, int i)
{
    struct img_slice *slice = NULL;
    struct img_error err;

    assert_ok(img_tcache_get(c, &s->file, (uint64_t)i * SLICE, SLICE, 1,
                             &slice, &err), err);
    return slice;
}

static void touch(struct spy *s, struct img_tcache *c, int i)
{
    img_tcache_put(c, get(s, c, i));
}

static void change(struct spy *s, struct img_tcache *c, int i, uint32_t from,
                   uint32_t len, char v)
{
    struct img_slice *slice = get(s, c, i);

    memset(slice->data + from, v, len);
    img_tcache_dirty(c, slice, from, len);
    img_tcache_put(c, slice);
}

static struct img_stage *stage(struct spy *s, struct img_tcache *c,
                               uint32_t kind)
{
    struct img_stage *st = NULL;
    struct img_error err;

    assert_ok(img_tcache_stage(c, &s->file, kind, &st, &err), err);
    return st;
}

static int write_back(struct spy *s, struct img_tcache *c)
{
    struct img_stage *st = stage(s, c, 1);
    struct img_error err;
    int r = img_stage_write(st, &err);

    img_stage_done(st, r == 0);
    return r;
}

static char on_disk(struct spy *s, uint64_t off)
{
    char b = 0;

    img_file_pread(s->inner, &b, 1, off, NULL);
    return b;
}

/* ---- reading ----------------------------------------------------------- */

static void test_hit(void **state)
{
    struct img_slice *a, *b;
    struct img_tcache *c;
    struct spy s;

    begin(&s, &c, 8);
    assert_null(img_tcache_peek(c, &s.file, 0));
    a = get(&s, c, 0);
    b = get(&s, c, 0);
    assert_ptr_equal(a, b);
    assert_int_equal(s.reads, 1);
    for (int i = 0; i < SLICE; i++)
        assert_int_equal((char)a->data[i], word((uint64_t)i));
    assert_int_equal(a->kind, 1);
    assert_int_equal(a->len, SLICE);
    img_tcache_put(c, a);
    img_tcache_put(c, b);
    b = img_tcache_peek(c, &s.file, 0);
    assert_ptr_equal(a, b);
    img_tcache_put(c, b);
    img_tcache_put(c, NULL);
    end(&s, c);
}

static void test_beyond_end(void **state)
{
    struct img_tcache *c;
    struct img_slice *a;
    struct img_error err;
    struct spy s;

    begin(&s, &c, 8);
    assert_ok(img_tcache_get(c, &s.file, SLICES * SLICE - 512, SLICE, 1, &a,
                             &err), err);
    for (int i = 0; i < SLICE; i++)
        assert_int_equal((char)a->data[i],
                         i < 512 ? word(SLICES * SLICE - 512 + (unsigned)i)
                                 : 0);
    img_tcache_put(c, a);
    end(&s, c);
}

static void test_budget(void **state)
{
    struct img_slice *pinned[16];
    struct img_tcache *c;
    struct spy s;

    begin(&s, &c, 4);
    for (int round = 0; round < 3; round++)
        for (int i = 0; i < 4; i++)
            touch(&s, c, i);
    assert_int_equal(s.reads, 4);
    for (int i = 0; i < SLICES; i++)
        touch(&s, c, i);
    s.reads = 0;
    for (int i = 0; i < SLICES; i++) {
        struct img_slice *p = img_tcache_peek(c, &s.file,
                                              (uint64_t)i * SLICE);

        s.reads += p != NULL;
        img_tcache_put(c, p);
    }
    assert_int_equal(s.reads, 4);

    /* More pins than budget: all stay, and go again afterwards. */
    for (int i = 0; i < 16; i++)
        pinned[i] = get(&s, c, i);
    for (int i = 0; i < 16; i++) {
        assert_int_equal((char)pinned[i]->data[5],
                         word((uint64_t)i * SLICE + 5));
        img_tcache_put(c, pinned[i]);
    }
    touch(&s, c, 60);
    s.reads = 0;
    for (int i = 0; i < 16; i++)
        touch(&s, c, i);
    assert_true(s.reads >= 12);
    end(&s, c);
}

/* What is used again and again survives a scan. */
static void test_scan(void **state)
{
    struct img_tcache *c;
    struct spy s;

    begin(&s, &c, 8);
    for (int i = 0; i < SLICES; i++) {
        touch(&s, c, 0);
        touch(&s, c, i);
    }
    assert_int_equal(s.reads, SLICES);
    end(&s, c);
}

static void test_read_error(void **state)
{
    struct img_slice *a = NULL;
    struct img_tcache *c;
    struct img_error err;
    struct spy s;

    begin(&s, &c, 8);
    s.fail_reads = 1;
    assert_int_equal(img_tcache_get(c, &s.file, 0, SLICE, 1, &a, &err), -EIO);
    assert_string_equal(err.message, "spy: reading");
    assert_null(img_tcache_peek(c, &s.file, 0));
    touch(&s, c, 0);
    assert_int_equal(s.reads, 2);
    end(&s, c);
}

static void test_mismatch(void **state)
{
    struct img_slice *a = NULL;
    struct img_tcache *c;
    struct img_error err;
    struct spy s;

    begin(&s, &c, 8);
    touch(&s, c, 1);
    assert_int_equal(img_tcache_get(c, &s.file, SLICE, SLICE, 2, &a, &err),
                     -IMG_ECORRUPT);
    assert_int_equal(img_tcache_get(c, &s.file, SLICE, SLICE * 2, 1, &a,
                                    &err), -IMG_ECORRUPT);
    assert_non_null(strstr(err.message, "0x1000"));
    touch(&s, c, 1);
    end(&s, c);
}

/* ---- writing ----------------------------------------------------------- */

static void test_dirty_ranges(void **state)
{
    struct img_stage *st;
    struct img_tcache *c;
    struct spy s;

    begin(&s, &c, 16);
    change(&s, c, 3, 1030, 8, 'x');
    /* As somebody else's doing: only what changed may be written. */
    for (uint64_t i = 0; i < SLICE; i++)
        img_file_pwrite(s.inner, "?", 1, 3 * SLICE + i, NULL);
    assert_int_equal(write_back(&s, c), 0);
    assert_int_equal(s.writes, 1);
    assert_int_equal(s.last_off, 3 * SLICE + 1024);
    assert_int_equal(s.last_len, 512);
    assert_int_equal(on_disk(&s, 3 * SLICE + 1023), '?');
    assert_int_equal(on_disk(&s, 3 * SLICE + 1024), word(3 * SLICE + 1024));
    assert_int_equal(on_disk(&s, 3 * SLICE + 1030), 'x');
    assert_int_equal(on_disk(&s, 3 * SLICE + 1536), '?');
    assert_int_equal(write_back(&s, c), 0);
    assert_int_equal(s.writes, 1);

    /* Neighbours become one write; others and other kinds do not. */
    change(&s, c, 7, SLICE - 1, 1, 'y');
    change(&s, c, 6, 100, SLICE - 100, 'y');
    change(&s, c, 8, 0, 1, 'y');
    st = stage(&s, c, 2);
    assert_true(img_stage_is_empty(st));
    img_stage_done(st, true);
    s.writes = 0;
    assert_int_equal(write_back(&s, c), 0);
    assert_int_equal(s.writes, 2);
    assert_int_equal(on_disk(&s, 8 * SLICE - 1), 'y');
    assert_int_equal(on_disk(&s, 8 * SLICE), 'y');
    end(&s, c);
}

static void test_whole_slices_merge(void **state)
{
    struct img_tcache *c;
    struct spy s;

    begin(&s, &c, 64);
    for (int i = 40; i >= 20; i--)
        change(&s, c, i, 0, SLICE, (char)i);
    assert_int_equal(write_back(&s, c), 0);
    assert_int_equal(s.writes, 1);
    assert_int_equal(s.last_len, 21 * SLICE);
    for (int i = 20; i <= 40; i++)
        assert_int_equal(on_disk(&s, (uint64_t)i * SLICE + 77), i);
    end(&s, c);
}

static void test_odd_sizes(void **state)
{
    struct img_slice *a;
    struct img_tcache *c;
    struct img_error err;
    struct spy s;

    begin(&s, &c, 64);
    assert_ok(img_tcache_get(c, &s.file, 48, 700, 1, &a, &err), err);
    a->data[699] = 'z';
    img_tcache_dirty(c, a, 699, 1);
    img_tcache_dirty(c, a, 5, 0);
    img_tcache_put(c, a);
    assert_int_equal(write_back(&s, c), 0);
    assert_int_equal(s.last_off, 48 + 512);
    assert_int_equal(s.last_len, 188);
    assert_int_equal(on_disk(&s, 747), 'z');
    assert_int_equal(on_disk(&s, 748), word(748));

    /* Gaps too large to write across, in a slice of many words of bits. */
    assert_ok(img_tcache_get(c, &s.file, 65536, 131072, 1, &a, &err), err);
    for (uint32_t i = 0; i < 131072; i += 8192) {
        a->data[i] = 'g';
        img_tcache_dirty(c, a, i, 1);
    }
    img_tcache_put(c, a);
    s.writes = 0;
    assert_int_equal(write_back(&s, c), 0);
    assert_int_equal(s.writes, 16);
    for (uint32_t i = 0; i < 131072; i += 8192)
        assert_int_equal(on_disk(&s, 65536 + i), 'g');
    end(&s, c);
}

/* A file of whole blocks gets whole blocks. */
static void test_blocks(void **state)
{
    struct img_slice *a;
    struct img_tcache *c;
    struct img_error err;
    struct spy s;

    begin(&s, &c, 64);
    s.file.align = 4096;
    change(&s, c, 3, 1030, 8, 'x');
    assert_int_equal(write_back(&s, c), 0);
    assert_int_equal(s.last_off, 3 * SLICE);
    assert_int_equal(s.last_len, 4096);
    assert_ok(img_tcache_get(c, &s.file, 65536 + 512, 65536, 1, &a, &err),
              err);
    for (uint32_t i = 0; i < 65536; i += 6000)
        img_tcache_dirty(c, a, i, 1);
    img_tcache_put(c, a);
    assert_int_equal(write_back(&s, c), 0);
    for (uint64_t i = 0; i < 3 * 65536; i++)
        assert_int_equal(on_disk(&s, i), i == 3 * SLICE + 1030 ||
                         i - (3 * SLICE + 1030) < 8 ? 'x' : word(i));
    assert_ok(img_tcache_get(c, &s.file, 65536 + 512, 65536, 1, &a, &err),
              err);
    img_tcache_dirty(c, a, 0, 1);
    img_tcache_put(c, a);
    assert_int_equal(write_back(&s, c), 0);
    assert_int_equal(s.last_off, 65536 + 512);
    assert_int_equal(s.last_len, 4096 - 512);
    end(&s, c);
}

static void test_dirty_is_kept(void **state)
{
    struct img_tcache *c;
    struct spy s;

    begin(&s, &c, 4);
    assert_false(img_tcache_is_full(c));
    for (int i = 0; i < 8; i++)
        change(&s, c, i, 0, 1, 'd');
    assert_true(img_tcache_is_full(c));
    for (int i = 8; i < SLICES; i++)
        touch(&s, c, i);
    s.reads = 0;
    for (int i = 0; i < 8; i++) {
        struct img_slice *a = get(&s, c, i);

        assert_int_equal(a->data[0], 'd');
        img_tcache_put(c, a);
    }
    assert_int_equal(s.reads, 0);
    assert_int_equal(write_back(&s, c), 0);
    assert_false(img_tcache_is_full(c));
    touch(&s, c, 30);
    for (int i = 0; i < 8; i++)
        touch(&s, c, i);
    assert_true(s.reads > 4);
    end(&s, c);
}

static void test_stage_is_kept(void **state)
{
    struct img_stage *st;
    struct img_tcache *c;
    struct img_slice *a;
    struct img_error err;
    struct spy s;

    begin(&s, &c, 2);
    change(&s, c, 0, 0, 1, 'a');
    st = stage(&s, c, 1);
    assert_false(img_stage_is_empty(st));
    for (int i = 1; i < SLICES; i++)
        touch(&s, c, i);
    a = get(&s, c, 0);
    assert_int_equal(a->data[0], 'a');  /* not read from the file again */
    img_tcache_put(c, a);

    /* Changed while it is staged: the stage writes the old bytes, and it
     * stays dirty. */
    change(&s, c, 0, 0, 1, 'b');
    assert_ok(img_stage_write(st, &err), err);
    assert_int_equal(on_disk(&s, 0), 'a');
    img_stage_done(st, true);
    for (int i = 1; i < SLICES; i++)
        touch(&s, c, i);
    s.reads = 0;
    a = get(&s, c, 0);
    assert_int_equal(s.reads, 0);
    assert_int_equal(a->data[0], 'b');
    img_tcache_put(c, a);
    assert_int_equal(write_back(&s, c), 0);
    assert_int_equal(on_disk(&s, 0), 'b');
    end(&s, c);
}

static void test_failed_write(void **state)
{
    struct img_stage *st, *other = NULL;
    struct img_tcache *c;
    struct img_error err;
    struct spy s;

    begin(&s, &c, 2);
    change(&s, c, 0, 600, 1, 'a');
    change(&s, c, 5, 4000, 1, 'a');
    st = stage(&s, c, 1);
    s.fail_writes = 1;
    assert_int_equal(img_stage_write(st, &err), -EIO);
    change(&s, c, 5, 4000, 1, 'b');
    assert_int_equal(img_tcache_stage(c, &s.file, 1, &other, &err), -EBUSY);
    img_stage_done(st, false);
    for (int i = 6; i < SLICES; i++)
        touch(&s, c, i);
    assert_int_equal(write_back(&s, c), 0);
    assert_int_equal(on_disk(&s, 600), 'a');
    assert_int_equal(on_disk(&s, 5 * SLICE + 4000), 'b');
    s.writes = 0;
    st = stage(&s, c, 1);
    assert_true(img_stage_is_empty(st));
    assert_ok(img_stage_write(st, &err), err);
    img_stage_done(st, true);
    assert_int_equal(s.writes, 0);
    img_stage_done(NULL, true);
    end(&s, c);
}

static void test_new_slice(void **state)
{
    struct img_slice *a, *old;
    struct img_tcache *c;
    struct img_error err;
    struct spy s;

    begin(&s, &c, 8);
    change(&s, c, 2, 0, 1, 'o');
    old = get(&s, c, 2);
    s.reads = 0;
    assert_ok(img_tcache_new_slice(c, &s.file, 2 * SLICE, SLICE, 1, &a, &err),
              err);
    assert_int_equal(s.reads, 0);
    assert_ptr_not_equal(a, old);
    assert_int_equal(old->data[0], 'o');    /* still its user's */
    img_tcache_dirty(c, old, 0, 1);
    img_tcache_put(c, old);
    for (int i = 0; i < SLICE; i++)
        assert_int_equal(a->data[i], 0);
    img_tcache_put(c, a);
    assert_int_equal(write_back(&s, c), 0);
    assert_int_equal(s.last_len, SLICE);
    for (uint64_t i = 0; i < SLICE; i++)
        assert_int_equal(on_disk(&s, 2 * SLICE + i), 0);
    end(&s, c);
}

/* ---- forgetting -------------------------------------------------------- */

static void test_forget(void **state)
{
    const uint64_t ends[] = { 6 * SLICE, UINT64_MAX };
    struct img_slice *pinned;
    struct img_stage *st;
    struct img_tcache *c;
    struct img_error err;
    struct spy s;

    for (int i = 0; i < 2; i++) {
        begin(&s, &c, 64);
        for (int k = 0; k < 8; k++)
            change(&s, c, k, 0, 1, 'f');
        st = stage(&s, c, 1);
        change(&s, c, 4, 0, 1, 'g');
        pinned = get(&s, c, 5);
        img_tcache_forget(c, &s.file, 2 * SLICE, ends[i] - 2 * SLICE);
        img_tcache_put(c, pinned);
        assert_null(img_tcache_peek(c, &s.file, 5 * SLICE));
        assert_ok(img_stage_write(st, &err), err);
        img_stage_done(st, true);
        assert_int_equal(write_back(&s, c), 0);
        for (uint64_t k = 0; k < 8; k++)
            assert_int_equal(on_disk(&s, k * SLICE),
                             k < 2 || k * SLICE >= ends[i] ? 'f'
                                                           : word(k * SLICE));
        change(&s, c, 1, 0, 1, 'h');
        st = stage(&s, c, 1);
        img_tcache_forget(c, &s.file, 0, 2 * SLICE);
        img_stage_done(st, false);
        assert_false(img_tcache_is_full(c));
        assert_int_equal(write_back(&s, c), 0);
        assert_int_equal(on_disk(&s, SLICE), 'f');
        end(&s, c);
    }
}

struct writing {
    struct img_stage *stage;
    int result;
};

static void *write_stage(void *arg)
{
    struct writing *w = arg;

    w->result = img_stage_write(w->stage, NULL);
    return NULL;
}

struct forgetting {
    struct spy *s;
    struct img_tcache *c;
    int writes;
};

static void *forget_first(void *arg)
{
    struct forgetting *f = arg;

    img_tcache_forget(f->c, &f->s->file, 0, SLICE);
    f->writes = f->s->writes;
    return NULL;
}

/* A write under way when its table is forgotten is over when forget
 * returns: what is put there next is not overwritten. */
static void test_forget_waits(void **state)
{
    struct forgetting f;
    struct writing w;
    struct img_tcache *c;
    pthread_t writer, forgetter;
    struct spy s;

    begin(&s, &c, 8);
    change(&s, c, 0, 0, 1, 'w');
    w.stage = stage(&s, c, 1);
    s.hold = true;
    assert_int_equal(pthread_create(&writer, NULL, write_stage, &w), 0);
    img_lock(&s.lock);
    while (!s.held)
        img_wait(&s.cond, &s.lock);
    img_unlock(&s.lock);
    f = (struct forgetting){ &s, c, -1 };
    assert_int_equal(pthread_create(&forgetter, NULL, forget_first, &f), 0);
    img_lock(&s.lock);
    s.hold = false;
    img_wake_all(&s.cond);
    img_unlock(&s.lock);
    pthread_join(writer, NULL);
    pthread_join(forgetter, NULL);
    assert_int_equal(w.result, 0);
    assert_int_equal(f.writes, 1);
    assert_null(img_tcache_peek(c, &s.file, 0));
    img_stage_done(w.stage, true);
    end(&s, c);
}

/* ---- threads ----------------------------------------------------------- */

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
        cmocka_unit_test(test_hit),
        cmocka_unit_test(test_beyond_end),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_scan),
        cmocka_unit_test(test_read_error),
        cmocka_unit_test(test_mismatch),
        cmocka_unit_test(test_dirty_ranges),
        cmocka_unit_test(test_whole_slices_merge),
        cmocka_unit_test(test_odd_sizes),
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_dirty_is_kept),
        cmocka_unit_test(test_stage_is_kept),
        cmocka_unit_test(test_failed_write),
        cmocka_unit_test(test_new_slice),
        cmocka_unit_test(test_forget),
        cmocka_unit_test(test_forget_waits),
        cmocka_unit_test(test_single_flight),
        cmocka_unit_test(test_threads),
    };

    return cmocka_run_group_tests_name("tcache", tests, NULL, NULL);
}
