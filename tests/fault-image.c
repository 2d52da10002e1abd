/* Failing disks: the n-th access to an image's file fails, for n = 1, 2, 3
 * ... until a run gets through.
 *
 * Whatever fails: what was written before a flush that succeeded is there
 * afterwards, each sector written since is old or new, the image has no
 * errors but leaks, and the rest of the disk is as it was.
 */
#include "image-ops.h"
#include "shim.h"

#include <dirent.h>

enum { OPS = 40 };

static uint32_t flushed[MAX_SECTORS];   /* at the last good flush */
static bool since[MAX_SECTORS][MAX_OPS + 1];    /* tag 2000 + i was put there;
                                                   the last is zero */
static uint64_t op_first, op_n;         /* what the last one touched */
static uint64_t runs, faults;

static int one_op(struct img_disk *d, const struct config *c, uint64_t *seed,
                  uint32_t i)
{
    uint64_t all = c->size / SECTOR, per = c->cluster / SECTOR;
    uint32_t dice = unit_random(seed) % 100;
    uint64_t first = unit_random(seed) % all;
    uint64_t n = unit_random(seed) % (dice % 3 ? per + 2 : 6 * per) + 1;
    uint32_t put = i;
    int r;

    if (dice % 4 == 0 || (dice >= 60 && dice < 75))
        first = img_round_down(first, per);
    if (dice >= 60 && dice < 75)
        n = per;
    n = IMG_MIN(n, all - first);
    op_first = first;
    op_n = n;
    memset(&err, 0, sizeof err);
    if (dice >= 88) {
        r = img_flush(d, &err);
        if (r < 0 && dice & 1)
            r = img_flush(d, &err);     /* a second try may work */
        op_n = 0;
        if (r == 0) {
            memcpy(flushed, now_tags, sizeof flushed);
            memset(since, 0, sizeof since);
        }
        return r;
    }
    if (dice < 75) {
        fill_sectors(first, n, 2000 + i);
        r = img_pwrite(d, buf, n * SECTOR, first * SECTOR,
                       dice < 60 ? 0 : IMG_COMPRESS, &err);
    } else if (dice < 83) {
        put = MAX_OPS;
        r = img_zero(d, first * SECTOR, n * SECTOR,
                     dice & 1 ? IMG_MAY_UNMAP : 0, &err);
    } else {
        put = MAX_OPS;
        r = img_discard(d, first * SECTOR, n * SECTOR, &err);
    }
    for (uint64_t s = first; s < first + n; s++)
        since[s][put] = true;
    return r;
}

/* What may sector s hold? */
static bool is_allowed(uint64_t s, uint32_t tag)
{
    if (tag == flushed[s])
        return true;
    if (tag == 0)
        return since[s][MAX_OPS];
    return tag >= 2000 && tag < 2000 + MAX_OPS && since[s][tag - 2000];
}

static void check_content(struct img_disk *d, const struct config *c,
                          uint64_t first, uint64_t n, long fault)
{
    assert_ok(img_pread(d, buf + first * SECTOR, n * SECTOR, first * SECTOR,
                        &err), err);
    for (uint64_t s = first; s < first + n; s++) {
        now_tags[s] = tag_of(s);
        if (!is_allowed(s, now_tags[s]))
            fail_msg("%s, fault %ld: sector %lu is %u, was %u", c->name,
                     fault, (unsigned long)s, now_tags[s], flushed[s]);
    }
}

static void told(void *opaque, const char *message)
{
    if (!strncmp(message, "ERROR", 5))
        fprintf(stderr, "    %s\n", message);
}

static void check_after(const struct config *c, long n)
{
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_check_result result = { 0 };
    struct img_disk *d;

    if (c->repair) {
        d = open_image(in_scratch("image"), c,
                       IMG_OPEN_WRITE | IMG_OPEN_REPAIR);
        o.repair = IMG_REPAIR_ALL;
        assert_ok(img_check(d, &o, NULL, &result, &err), err);
        assert_ok(img_close(d, &err), err);
        o.repair = 0;
    }
    memset(&result, 0, sizeof result);
    o.report = told;
    d = open_image(in_scratch("image"), c, 0);
    assert_ok(img_check(d, &o, NULL, &result, &err), err);
    if (result.errors || result.check_errors)
        fail_msg("%s, fault %ld: %lu errors", c->name, n,
                 (unsigned long)result.errors);
    check_content(d, c, 0, c->size / SECTOR, n);
    assert_ok(img_close(d, &err), err);
}

static int open_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int n = 0;

    while (dir && readdir(dir))
        n++;
    if (dir)
        closedir(dir);
    return n;
}

/* Looks at the disk without a fault. */
static void look(struct img_disk *d, const struct config *c, struct shim_fault *f,
                 bool everywhere, long n)
{
    shim_fault = NULL;

    if (everywhere)
        check_content(d, c, 0, c->size / SECTOR, n);
    else if (op_n)
        check_content(d, c, op_first, op_n, n);
    shim_fault = f;
}

/* What a flush said is durable is in the file now, also after faults. */
static void check_file(const struct config *c, long n)
{
    struct shim_fault *planned = shim_fault;
    struct img_disk *d;

    shim_fault = NULL;
    d = open_image(in_scratch("image"), c, IMG_OPEN_NO_LOCK);
    check_content(d, c, 0, c->size / SECTOR, n);
    img_close(d, NULL);
    shim_fault = planned;
}

/* Returns whether the fault came. */
static bool one_run(const struct config *c, uint64_t seed, struct shim_fault *f,
                    long n)
{
    uint64_t state = seed * 77 + 5;
    int descriptors = open_descriptors(), r;
    struct img_disk *d;

    make_image(c);
    memcpy(flushed, now_tags, sizeof flushed);
    memset(since, 0, sizeof since);
    f->seen = f->failed = f->left = 0;
    d = open_image(in_scratch("image"), c, IMG_OPEN_WRITE);
    f->left = n;
    shim_fault = f;
    for (uint32_t i = 0; i < OPS; i++) {
        r = one_op(d, c, &state, i);
        if (r < 0 && !f->failed)
            fail_msg("%s, fault %ld: %s", c->name, n, err.message);
        if (r < 0 && !err.message[0])
            fail_msg("%s, fault %ld: no words for %d", c->name, n, r);
        if (op_n || r < 0)
            look(d, c, f, i % 8 == 7, n);
        else if (f->failed)
            check_file(c, n);
    }
    r = img_close(d, &err);
    shim_fault = NULL;
    if (r < 0 && !f->failed)
        fail_msg("%s, fault %ld: closing: %s", c->name, n, err.message);
    if (r == 0) {
        memcpy(flushed, now_tags, sizeof flushed);
        memset(since, 0, sizeof since);
    }
    assert_int_equal(open_descriptors(), descriptors);
    runs++;
    faults += f->failed > 0;
    check_after(c, n);
    return f->failed > 0;
}

static void test_faults(void **state)
{
    const struct config *c = *state;
    struct shim_fault kinds[] = {
        { .kinds = SHIM_FILES, .code = EIO },
        { .kinds = SHIM_WRITE | SHIM_SPACE, .code = ENOSPC, .torn = true },
        { .kinds = SHIM_CHANGE, .code = EIO, .for_ever = true },
    };
    const char *text = getenv("FAULT_SEEDS");
    uint64_t seeds = text ? strtoull(text, NULL, 10) : 1;

    make_base();
    for (uint64_t seed = 1; seed <= seeds; seed++)
        for (size_t k = 0; k < IMG_COUNT(kinds); k++)
            for (long n = 1; one_run(c, seed, &kinds[k], n); n++)
                ;
}

int main(void)
{
    struct CMUnitTest tests[IMG_COUNT(configs)];
    int r;

    if (!getenv("TMPDIR") && access("/dev/shm", W_OK) == 0)
        setenv("TMPDIR", "/dev/shm", 1);
    for (size_t i = 0; i < IMG_COUNT(configs); i++)
        tests[i] = (struct CMUnitTest) {
            configs[i].name, test_faults, NULL, NULL, (void *)&configs[i]
        };
    r = cmocka_run_group_tests_name("faults", tests, scratch_begin,
                                    scratch_end);
    printf("%lu runs, %lu of them with a fault\n", (unsigned long)runs,
           (unsigned long)faults);
    return r;
}
