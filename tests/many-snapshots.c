/* A thousand snapshots of one image: taken, listed, applied and deleted.
 *
 *   many-snapshots [COUNT]
 *
 * Snapshot i is the disk after write i, which puts the number i in slot i %
 * SLOTS, so that any of them is known by heart.  qemu-img checks the image
 * full of snapshots and empty of them, and applies one.  Taking and deleting
 * may not become dearer by the snapshot, but for the table that names them.
 */
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SLOTS = 64, SLOT = 4096 };

static struct img_error err;
static char dir[256], path[300];

static bool fail(const char *what, unsigned i)
{
    fprintf(stderr, "FAIL: %s, snapshot %u: %s\n", what, i, err.message);
    return false;
}

static double cpu(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static const char *name_of(unsigned i)
{
    static char name[32];

    snprintf(name, sizeof name, "s%u", i);
    return name;
}

static struct img_disk *open_disk(void)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_disk *disk = NULL;

    opts.flags = IMG_OPEN_WRITE | IMG_OPEN_NO_SYNC;
    opts.format = "qcow2";
    if (img_open(path, &opts, &disk, &err) < 0)
        fail("opening", 0);
    return disk;
}

static bool take(struct img_disk *d, unsigned i)
{
    uint32_t slot[SLOT / 4];

    for (size_t k = 0; k < SLOT / 4; k++)
        slot[k] = i;
    if (img_pwrite(d, slot, SLOT, (uint64_t)(i % SLOTS) * SLOT, 0, &err) < 0)
        return fail("writing", i);
    if (img_snapshot_create(d, name_of(i), &err) < 0)
        return fail("taking", i);
    return true;
}

/* Is the disk what it was after write i? */
static bool shows(struct img_disk *d, unsigned i)
{
    for (unsigned s = 0; s < SLOTS; s++) {
        unsigned back = (i + SLOTS - s) % SLOTS;
        uint32_t want = i >= back ? i - back : 0, slot[SLOT / 4];

        if (img_pread(d, slot, SLOT, (uint64_t)s * SLOT, &err) < 0)
            return fail("reading", i);
        for (size_t k = 0; k < SLOT / 4; k++)
            if (slot[k] != want) {
                fprintf(stderr, "FAIL: snapshot %u: slot %u is %u, not %u\n",
                        i, s, slot[k], want);
                return false;
            }
    }
    return true;
}

static bool apply(struct img_disk *d, unsigned i)
{
    if (img_snapshot_apply(d, name_of(i), &err) < 0)
        return fail("applying", i);
    return shows(d, i);
}

static bool count_is(struct img_disk *d, size_t want)
{
    struct img_info *info;
    size_t n;

    if (img_info_get(d, &info, &err) < 0)
        return fail("listing", 0);
    n = info->n_snapshots;
    img_info_free(info);
    if (n != want)
        fprintf(stderr, "FAIL: %zu snapshots are listed, not %zu\n", n, want);
    return n == want;
}

static bool peer(const char *what, const char *const *argv)
{
    int code;

    if (!have_program("qemu-img"))
        return true;
    code = run_program(NULL, argv);
    if (code)
        fprintf(stderr, "FAIL: qemu-img %s: exit %d\n", what, code);
    return code == 0;
}

static bool peer_checks(void)
{
    const char *const argv[] = { "qemu-img", "check", "-q", path, NULL };

    return peer("check", argv);
}

static bool peer_applies(unsigned i)
{
    const char *const argv[] = { "qemu-img", "snapshot", "-a", name_of(i),
                                 path, NULL };

    return peer("snapshot -a", argv);
}

/* The second half of the work against the first; noise is allowed for. */
static bool is_linear(const char *what, double began, double half)
{
    double first = half - began, second = cpu() - half;

    printf("%s: %.2f s, then %.2f s\n", what, first, second);
    if (second < first * 3 + 0.2)
        return true;
    fprintf(stderr, "FAIL: %s becomes dearer by the snapshot\n", what);
    return false;
}

static bool take_all(struct img_disk *d, unsigned count)
{
    double began = cpu(), half = began;

    for (unsigned i = 1; i <= count; i++) {
        if (!take(d, i))
            return false;
        if (i == count / 2)
            half = cpu();
    }
    return is_linear("taking", began, half) && count_is(d, count);
}

/* Every third first, then the rest from the last one on. */
static bool delete_all(struct img_disk *d, unsigned count)
{
    double began = cpu(), half = began;
    unsigned gone = 0;

    for (unsigned i = 3; i <= count; i += 3, gone++)
        if (img_snapshot_delete(d, name_of(i), &err) < 0)
            return fail("deleting", i);
    half = cpu();
    for (unsigned i = count; i; i--)
        if (i % 3 && img_snapshot_delete(d, name_of(i), &err) < 0)
            return fail("deleting", i);
    printf("deleting: %.2f s, then %.2f s\n", half - began, cpu() - half);
    return count_is(d, 0);
}

static bool with_disk(bool act(struct img_disk *, unsigned), unsigned n)
{
    struct img_disk *d = open_disk();
    bool ok = d && act(d, n);

    if (d && img_close(d, ok ? &err : NULL) < 0 && ok)
        ok = fail("closing", n);
    return ok && peer_checks();
}

static bool apply_some(struct img_disk *d, unsigned count)
{
    const unsigned some[] = { 1, count / 2, count / 3, count, SLOTS, 1 };

    for (size_t i = 0; i < sizeof some / sizeof some[0]; i++)
        if (!apply(d, some[i]))
            return false;
    return true;
}

static bool test(unsigned count)
{
    struct img_create_options opts = IMG_CREATE_OPTIONS;
    const char *settings[] = { "cluster_size=4k", NULL };

    opts.format = "qcow2";
    opts.disk_size = SLOTS * SLOT;
    opts.settings = settings;
    opts.flags = IMG_CREATE_NO_SYNC;
    if (img_create(path, &opts, &err) < 0)
        return fail("creating", 0);
    if (!with_disk(take_all, count) || !with_disk(apply_some, count))
        return false;
    if (have_program("qemu-img") &&
        (!peer_applies(count / 4 + SLOTS) ||
         !with_disk(shows, count / 4 + SLOTS)))
        return false;
    return with_disk(delete_all, count);
}

int main(int argc, char **argv)
{
    unsigned count = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1000;
    bool ok;

    if (count < 2 * SLOTS) {
        fprintf(stderr, "at least %d\n", 2 * SLOTS);
        return 1;
    }
    snprintf(path, sizeof path, "%s/a.qcow2", make_scratch(dir, sizeof dir));
    ok = test(count);
    remove_scratch(dir);
    return ok ? 0 : 1;
}
