/* The cache of tables, by one thread and with a file that waits. */
#include "spy.h"

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

static bool is_there(struct spy *s, struct img_tcache *c, int i)
{
    struct img_slice *p = img_tcache_peek(c, &s->file, (uint64_t)i * SLICE);

    img_tcache_put(c, p);
    return p != NULL;
}

static void test_put_last(void **state)
{
    struct img_slice *a, *b;
    struct img_stage *st;
    struct img_tcache *c;
    struct spy s;

    begin(&s, &c, 8);
    img_tcache_put_last(c, get(&s, c, 0));
    assert_false(is_there(&s, c, 0));

    a = get(&s, c, 1);          /* somebody else still uses it */
    b = get(&s, c, 1);
    img_tcache_put_last(c, b);
    assert_true(is_there(&s, c, 1));
    assert_int_equal((char)a->data[7], word(SLICE + 7));
    img_tcache_put_last(c, a);
    assert_false(is_there(&s, c, 1));

    a = get(&s, c, 2);          /* forgotten before */
    img_tcache_forget(c, &s.file, 2 * SLICE, SLICE);
    img_tcache_put_last(c, a);
    a = get(&s, c, 2);          /* another one is there by now */
    img_tcache_forget(c, &s.file, 2 * SLICE, SLICE);
    b = get(&s, c, 2);
    img_tcache_put_last(c, a);
    assert_ptr_equal(b, img_tcache_peek(c, &s.file, 2 * SLICE));
    img_tcache_put(c, b);
    img_tcache_put(c, b);

    a = get(&s, c, 3);          /* it has yet to be written */
    a->data[0] = 'x';
    img_tcache_dirty(c, a, 0, 1);
    img_tcache_put_last(c, a);
    assert_true(is_there(&s, c, 3));
    st = stage(&s, c, 1);
    img_tcache_put_last(c, get(&s, c, 3));
    assert_true(is_there(&s, c, 3));
    assert_int_equal(img_stage_write(st, NULL), 0);
    img_stage_done(st, true);
    assert_int_equal(on_disk(&s, 3 * SLICE), 'x');
    end(&s, c);
}

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
        cmocka_unit_test(test_put_last),
        cmocka_unit_test(test_forget),
        cmocka_unit_test(test_forget_waits),
    };

    return cmocka_run_group_tests_name("tcache", tests, NULL, NULL);
}
