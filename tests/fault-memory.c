/* The n-th allocation fails, for n = 1, 2, 3 ... until a run gets through:
 * an error comes back, nothing is leaked, and the image has no errors. */
#include "image-ops.h"

#include <malloc.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

#ifndef SANITIZED
#include <stdatomic.h>

static atomic_long left, live, failed;

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
void __libc_free(void *);

static bool may_have(void)
{
    if (atomic_load(&left) > 0 && atomic_fetch_sub(&left, 1) == 1) {
        atomic_fetch_add(&failed, 1);
        errno = ENOMEM;
        return false;
    }
    return true;
}

static void *count(void *p)
{
    if (p)
        atomic_fetch_add(&live, 1);
    return p;
}

void *malloc(size_t n)
{
    return may_have() ? count(__libc_malloc(n)) : NULL;
}

void *calloc(size_t n, size_t size)
{
    return may_have() ? count(__libc_calloc(n, size)) : NULL;
}

void *realloc(void *p, size_t n)
{
    if (!may_have())
        return NULL;
    return p ? __libc_realloc(p, n) : count(__libc_malloc(n));
}

void *aligned_alloc(size_t align, size_t n)
{
    return may_have() ? count(__libc_memalign(align, n)) : NULL;
}

int posix_memalign(void **p, size_t align, size_t n)
{
    void *got = may_have() ? count(__libc_memalign(align, n)) : NULL;

    if (!got)
        return ENOMEM;
    *p = got;
    return 0;
}

void free(void *p)
{
    if (p)
        atomic_fetch_sub(&live, 1);
    __libc_free(p);
}

static void told(void *opaque, const char *message)
{
}

/* A bit of everything; fails or not. */
static void work(const struct config *c)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_check_options check = IMG_CHECK_OPTIONS;
    struct img_check_result result;
    struct img_info *info = NULL;
    struct img_extent extent;
    struct img_disk *d;
    uint64_t seed = 9;

    o.flags = IMG_OPEN_WRITE;
    o.format = c->format;
    o.cache_bytes = 65536;
    if (img_open(in_scratch("image"), &o, &d, &err) < 0)
        return;
    for (uint32_t i = 0; i < 25; i++) {
        uint64_t first = img_round_down(unit_random(&seed) % c->size,
                                        i % 3 ? SECTOR : c->cluster);
        uint64_t len = i % 3 ? SECTOR * 3 : c->cluster;

        len = IMG_MIN(len, c->size - first);
        fill_sectors(first / SECTOR, len / SECTOR, 2000 + i);
        if (i % 7 == 6)
            img_flush(d, &err);
        else if (i % 7 == 5)
            img_zero(d, first, len, IMG_MAY_UNMAP, &err);
        else
            img_pwrite(d, buf, len, first,
                       i % 6 == 3 ? IMG_COMPRESS : 0, &err);
        img_pread(d, buf, c->size / 2, SECTOR, &err);
    }
    img_map(d, 0, c->size, 0, &extent, &err);
    if (img_info_get(d, &info, &err) == 0)
        img_info_free(info);
    img_check(d, &check, NULL, &result, &err);
    img_close(d, &err);
}

static void must_be_sound(const struct config *c, long n)
{
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_check_result result = { 0 };
    struct img_disk *d = open_image(in_scratch("image"), c,
                                    c->repair ? IMG_OPEN_WRITE : 0);

    if (c->repair)
        o.repair = IMG_REPAIR_ALL;
    o.report = told;
    assert_ok(img_check(d, &o, NULL, &result, &err), err);
    if ((result.errors && !c->repair) || result.check_errors)
        fail_msg("%s, allocation %ld: %lu errors", c->name, n,
                 (unsigned long)result.errors);
    assert_ok(img_pread(d, buf, c->size, 0, &err), err);
    assert_ok(img_close(d, &err), err);
}

static uint64_t runs;

static void test_memory(void **state)
{
    const struct config *c = *state;
    struct img_create_options o = IMG_CREATE_OPTIONS;

    make_base();
    make_image(c);
    work(c);                    /* libc's own buffers are there now */
    o.format = c->format;
    o.disk_size = c->size;
    o.has_size = true;
    o.settings = c->settings;
    o.flags = IMG_CREATE_NO_SYNC;
    for (long n = 1, done = 0; !done; n++) {
        long before;

        make_image(c);
        before = live;
        failed = 0;
        left = n;
        work(c);
        done = left > 0;
        left = 0;
        if (live != before)
            fail_msg("%s, allocation %ld: %ld not freed", c->name, n,
                     live - before);
        must_be_sound(c, n);

        before = live;
        left = n;
        if (img_create(in_scratch("image2"), &o, &err) < 0)
            assert_int_equal(access(in_scratch("image2"), F_OK), -1);
        left = 0;
        unlink(in_scratch("image2"));
        assert_int_equal(live, before);
        runs++;
    }
}

int main(void)
{
    struct CMUnitTest tests[IMG_COUNT(configs)];
    int r;

    if (!getenv("TMPDIR") && access("/dev/shm", W_OK) == 0)
        setenv("TMPDIR", "/dev/shm", 1);
    for (size_t i = 0; i < IMG_COUNT(configs); i++)
        tests[i] = (struct CMUnitTest) {
            configs[i].name, test_memory, NULL, NULL, (void *)&configs[i]
        };
    r = cmocka_run_group_tests_name("memory", tests, scratch_begin,
                                    scratch_end);
    printf("%lu runs\n", (unsigned long)runs);
    return r;
}

#else

int main(void)
{
    return 77;                  /* the sanitizer has its own malloc */
}
#endif
