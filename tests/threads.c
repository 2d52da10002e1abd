/* Eight threads on one disk.
 *
 * The first half of the disk is cut into odd-sized stripes, each the property
 * of one thread, which knows every byte of them: neighbours share clusters,
 * so a lost update or a copy-on-write that is not atomic shows as a wrong
 * byte.  In the second half everybody writes everywhere; a byte there may
 * only be zero or one of the values that belong to its offset.
 *
 *   threads [--format F] [--set k=v]... [--backing] [--seed N] [--ops N]
 *
 * Without arguments: a small matrix.  Meant to be run under ThreadSanitizer
 * too.
 */
#include "support.h"

#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { THREADS = 8, STRIPE = 3000, MAX_LEN = 150000, MAX_SETTINGS = 8 };

struct plan {
    const char *format;
    const char *settings[MAX_SETTINGS + 1];
    bool backing;
    uint64_t size, seed, ops;
    uint64_t cache;
};

struct shared {
    const struct plan *plan;
    struct img_disk *disk;
    uint64_t half;              /* where the second half begins */
    uint8_t *flat;              /* of the first half; by stripes */
    atomic_bool failed;
};

struct worker {
    struct shared *s;
    unsigned number;
    struct rng rng;
    uint8_t *buf;
    pthread_t thread;
};

static bool fail(struct shared *s, const char *what, uint64_t off,
                 const struct img_error *err)
{
    const struct plan *plan = s->plan;

    if (atomic_exchange(&s->failed, true))
        return false;
    fprintf(stderr, "FAIL: %s at %llu%s%s\n  threads --format %s", what,
            (unsigned long long)off, err ? ": " : "",
            err ? err->message : "", plan->format);
    for (int i = 0; plan->settings[i]; i++)
        fprintf(stderr, " --set %s", plan->settings[i]);
    fprintf(stderr, "%s --size %llu --cache %llu --seed %llu --ops %llu\n",
            plan->backing ? " --backing" : "",
            (unsigned long long)plan->size,
            (unsigned long long)plan->cache, (unsigned long long)plan->seed,
            (unsigned long long)plan->ops);
    return false;
}

/* What `who` writes at an offset of the second half; THREADS is the content
 * that was there before. */
static uint8_t mark(uint64_t off, unsigned who)
{
    uint64_t x = (off ^ ((uint64_t)who << 56)) * 0x9e3779b97f4a7c15u;

    return (uint8_t)(x >> 40) | 1;
}

static bool is_mark(uint64_t off, uint8_t byte)
{
    if (!byte)
        return true;
    for (unsigned who = 0; who <= THREADS; who++)
        if (mark(off, who) == byte)
            return true;
    return false;
}

/* ---- one thread's own stripes ------------------------------------------ */

/* A range inside one of the thread's stripes. */
static void pick_own(struct worker *w, uint64_t *off, uint64_t *len)
{
    uint64_t groups = w->s->half / STRIPE / THREADS;
    uint64_t group = rng_below(&w->rng, groups);
    uint64_t at = rng_below(&w->rng, STRIPE);

    *off = (group * THREADS + w->number) * STRIPE + at;
    *len = 1 + rng_below(&w->rng, STRIPE - at);
    if (!rng_below(&w->rng, 4)) {
        *off -= at;
        *len = STRIPE;
    }
}

static bool own_read(struct worker *w, uint64_t off, uint64_t len)
{
    struct img_error err;

    memset(w->buf, 0xa5, len);
    if (img_pread(w->s->disk, w->buf, len, off, &err) < 0)
        return fail(w->s, "read", off, &err);
    for (uint64_t i = 0; i < len; i++)
        if (w->buf[i] != w->s->flat[off + i]) {
            fprintf(stderr, "thread %u: byte is %02x, should be %02x\n",
                    w->number, w->buf[i], w->s->flat[off + i]);
            return fail(w->s, "own stripe", off + i, NULL);
        }
    return true;
}

static bool own_discard(struct worker *w, uint64_t off, uint64_t len)
{
    struct img_error err;

    if (img_discard(w->s->disk, off, len, &err) < 0)
        return fail(w->s, "discard", off, &err);
    if (img_pread(w->s->disk, w->buf, len, off, &err) < 0)
        return fail(w->s, "read", off, &err);
    for (uint64_t i = 0; i < len; i++)
        if (w->buf[i] && w->buf[i] != w->s->flat[off + i])
            return fail(w->s, "neither zero nor old after discard", off + i,
                        NULL);
    memcpy(w->s->flat + off, w->buf, len);
    return true;
}

static bool own_operation(struct worker *w)
{
    struct rng content = { rng_next(&w->rng) };
    struct img_error err;
    uint64_t off, len;

    pick_own(w, &off, &len);
    switch (rng_below(&w->rng, 10)) {
    case 0: case 1: case 2: case 3:
        rng_fill(&content, w->buf, len);
        memcpy(w->s->flat + off, w->buf, len);
        if (img_pwrite(w->s->disk, w->buf, len, off, 0, &err) < 0)
            return fail(w->s, "write", off, &err);
        return true;
    case 4:
        memset(w->s->flat + off, 0, len);
        if (img_zero(w->s->disk, off, len,
                     rng_below(&w->rng, 2) ? IMG_MAY_UNMAP : 0, &err) < 0)
            return fail(w->s, "zero", off, &err);
        return true;
    case 5:
        return own_discard(w, off, len);
    default:
        return own_read(w, off, len);
    }
}

/* ---- the half where everybody writes ----------------------------------- */

static bool shared_read(struct worker *w, uint64_t off, uint64_t len)
{
    struct img_error err;

    if (img_pread(w->s->disk, w->buf, len, off, &err) < 0)
        return fail(w->s, "read", off, &err);
    for (uint64_t i = 0; i < len; i++)
        if (!is_mark(off + i, w->buf[i])) {
            fprintf(stderr, "byte is %02x, which nobody wrote there\n",
                    w->buf[i]);
            return fail(w->s, "shared half", off + i, NULL);
        }
    return true;
}

static bool shared_operation(struct worker *w)
{
    uint64_t room = w->s->plan->size - w->s->half;
    uint64_t off = rng_below(&w->rng, room), len;
    struct img_extent e;
    struct img_error err;

    len = 1 + rng_below(&w->rng, rng_below(&w->rng, 8) ? 9000 : MAX_LEN);
    if (len > room - off)
        len = room - off;
    off += w->s->half;
    switch (rng_below(&w->rng, 12)) {
    case 0: case 1: case 2: case 3: case 4:
        for (uint64_t i = 0; i < len; i++)
            w->buf[i] = mark(off + i, w->number);
        if (img_pwrite(w->s->disk, w->buf, len, off, 0, &err) < 0)
            return fail(w->s, "write", off, &err);
        return true;
    case 5:
        if (img_zero(w->s->disk, off, len, IMG_MAY_UNMAP, &err) < 0)
            return fail(w->s, "zero", off, &err);
        return true;
    case 6:
        if (img_discard(w->s->disk, off, len, &err) < 0)
            return fail(w->s, "discard", off, &err);
        return true;
    case 7:
        if (img_map(w->s->disk, off, len, 0, &e, &err) < 0)
            return fail(w->s, "map", off, &err);
        return true;
    case 8:
        if (!rng_below(&w->rng, 8) && img_flush(w->s->disk, &err) < 0)
            return fail(w->s, "flush", 0, &err);
        return true;
    default:
        return shared_read(w, off, len);
    }
}

static void *work(void *opaque)
{
    struct worker *w = opaque;

    for (uint64_t i = 0; i < w->s->plan->ops / THREADS; i++) {
        bool ok = rng_below(&w->rng, 2) ? own_operation(w)
                                        : shared_operation(w);

        if (!ok || atomic_load(&w->s->failed))
            break;
    }
    return NULL;
}

/* ---- one image --------------------------------------------------------- */

static bool open_disk(struct shared *s, const char *path, const char *format)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_error err;

    opts.format = format;
    opts.flags = IMG_OPEN_WRITE | IMG_OPEN_NO_SYNC;
    opts.cache_bytes = s->plan->cache;
    if (s->plan->backing && !strcmp(format, "qcow"))
        opts.backing_format = "raw";
    if (img_open(path, &opts, &s->disk, &err) < 0)
        return fail(s, "open", 0, &err);
    return true;
}

static bool close_disk(struct shared *s)
{
    struct img_disk *disk = s->disk;
    struct img_error err;

    s->disk = NULL;
    if (img_close(disk, &err) < 0)
        return fail(s, "close", 0, &err);
    return true;
}

/* Only VMDK goes over VMDK, only VDI over VDI. */
static const char *base_format(const struct plan *plan)
{
    return plan->format[0] == 'v' ? plan->format : "raw";
}

static bool create(struct shared *s, const char *path, const char *format,
                   const char *const *settings, const char *backing)
{
    struct img_create_options opts = IMG_CREATE_OPTIONS;
    struct img_error err;

    opts.format = format;
    opts.disk_size = s->plan->size;
    opts.has_size = true;
    opts.backing = backing;
    opts.backing_format = backing ? base_format(s->plan) : NULL;
    opts.settings = settings;
    opts.flags = IMG_CREATE_NO_SYNC;
    if (img_create(path, &opts, &err) < 0)
        return fail(s, "create", 0, &err);
    return true;
}

/* The base: random bytes in every other 64 KiB of the first half, marks in
 * those of the second. */
static bool make_base(struct shared *s, const char *path)
{
    struct rng rng = { s->plan->seed ^ 0x626173 };
    uint8_t *buf = must_alloc(65536);
    struct img_error err;
    const char *format = base_format(s->plan);
    bool ok = create(s, path, format, NULL, NULL) &&
              open_disk(s, path, format);

    for (uint64_t off = 0; ok && off < s->plan->size; off += 131072) {
        uint64_t n = s->plan->size - off < 65536 ? s->plan->size - off
                                                 : 65536;

        rng_fill(&rng, buf, n);
        for (uint64_t i = 0; i < n; i++) {
            if (off + i < s->half)
                s->flat[off + i] = buf[i];
            else
                buf[i] = mark(off + i, THREADS);
        }
        if (img_pwrite(s->disk, buf, n, off, 0, &err) < 0)
            ok = fail(s, "write to the base", off, &err);
    }
    free(buf);
    return s->disk ? close_disk(s) && ok : ok;
}

static bool run_workers(struct shared *s)
{
    struct worker workers[THREADS];

    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker) { .s = s, .number = i,
                                       .rng = { s->plan->seed * 64 + i },
                                       .buf = must_alloc(MAX_LEN) };
        pthread_create(&workers[i].thread, NULL, work, &workers[i]);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        free(workers[i].buf);
    }
    return !atomic_load(&s->failed);
}

/* With everybody gone, all of the disk. */
static bool verify(struct shared *s)
{
    struct worker w = { .s = s, .number = THREADS,
                        .buf = must_alloc(MAX_LEN) };
    bool ok = true;

    for (uint64_t off = 0; ok && off < s->plan->size;) {
        uint64_t end = off < s->half ? s->half : s->plan->size;
        uint64_t n = end - off < MAX_LEN ? end - off : MAX_LEN;

        ok = off < s->half ? own_read(&w, off, n) : shared_read(&w, off, n);
        off += n;
    }
    free(w.buf);
    return ok;
}

static bool check(struct shared *s)
{
    const char *format = s->plan->format;
    struct img_check_options opts = IMG_CHECK_OPTIONS;
    struct img_check_result result;
    struct img_error err;

    if (!(img_format_by_name(format)->features & IMG_CAN_CHECK))
        return true;
    if (img_check(s->disk, &opts, NULL, &result, &err) < 0)
        return fail(s, "check", 0, &err);
    if (!strcmp(format, "qcow"))
        result.leaks = 0;       /* it cannot remember what is free again */
    if (result.errors || result.leaks || result.check_errors)
        return fail(s, "check: errors or leaks",
                    result.errors + result.leaks, NULL);
    return true;
}

/* qemu-img checks the image and reads from it what we read. */
static bool ask_peer(struct shared *s, const char *path, const char *flat)
{
    const struct plan *plan = s->plan;
    uint8_t *buf = must_alloc(MAX_LEN);
    FILE *f = fopen(flat, "wb");
    struct img_error err;
    bool ok = f != NULL;

    for (uint64_t off = 0; ok && off < plan->size; off += MAX_LEN) {
        uint64_t n = plan->size - off < MAX_LEN ? plan->size - off : MAX_LEN;

        ok = img_pread(s->disk, buf, n, off, &err) == 0 &&
             fwrite(buf, 1, n, f) == n;
    }
    free(buf);
    ok = f && fclose(f) == 0 && ok;
    if (!close_disk(s) || !ok)
        return ok ? false : fail(s, "writing what was read", 0, NULL);
    if (!have_program("qemu-img") ||
        !qemu_reads(plan->format, plan->settings, plan->backing))
        return true;
    /* It has no check of raw, qcow and flat images, exit 63. */
    if ((!strcmp(plan->format, "qcow2") || !strcmp(plan->format, "vdi")) &&
        run_program("/dev/stderr", (const char *[]) { "qemu-img", "check",
                    "-q", "-f", plan->format, path, NULL }))
        return fail(s, "qemu-img check", 0, NULL);
    if (run_program("/dev/stderr", (const char *[]) { "qemu-img", "compare",
                    "-q", "-f", "raw", "-F", plan->format, flat, path,
                    NULL }))
        return fail(s, "qemu-img compare", 0, NULL);
    return true;
}

static bool run_plan(const struct plan *plan)
{
    struct shared s = { .plan = plan };
    char dir[4000], path[4100], base[4100], flat[4100];
    const char *suffix = strcmp(plan->format, "vdi") ? "" : ".vdi";
    bool ok;

    make_scratch(dir, sizeof(dir));
    snprintf(path, sizeof(path), "%s/disk%s", dir, suffix);
    snprintf(base, sizeof(base), "%s/base%s", dir, suffix);
    snprintf(flat, sizeof(flat), "%s/flat", dir);
    s.half = plan->size / 2 / (STRIPE * THREADS) * (STRIPE * THREADS);
    s.flat = must_alloc(s.half);
    memset(s.flat, 0, s.half);
    ok = (!plan->backing || make_base(&s, base)) &&
         create(&s, path, plan->format, plan->settings,
                plan->backing ? base + strlen(dir) + 1 : NULL) &&
         open_disk(&s, path, plan->format) && run_workers(&s) && verify(&s);
    if (s.disk)
        ok = close_disk(&s) && ok;
    ok = ok && open_disk(&s, path, plan->format) && verify(&s) && check(&s);
    ok = ok && ask_peer(&s, path, flat);
    if (s.disk)
        ok = close_disk(&s) && ok;
    free(s.flat);
    remove_scratch(dir);
    return ok;
}

static int run_matrix(uint64_t ops, uint64_t seed)
{
    static const struct plan plans[] = {
        { "qcow2", { "cluster_size=512" }, true, 2 << 20, 0, 0, 0 },
        { "qcow2", { "cluster_size=4096", "compat=0.10" }, true, 4 << 20, 0,
          0, 1 },
        { "qcow2", { NULL }, true, 16 << 20, 0, 0, 0 },
        { "qcow2", { NULL }, false, 16 << 20, 0, 0, 1 },
        { "qcow2", { "extended_l2=on" }, true, 16 << 20, 0, 0, 0 },
        { "qcow2", { "cluster_size=2M", "refcount_bits=1" }, true, 32 << 20,
          0, 0, 0 },
        { "raw", { NULL }, false, 8 << 20, 0, 0, 0 },
        { "vdi", { NULL }, false, 16 << 20, 0, 0, 0 },
        { "vmdk", { NULL }, false, 16 << 20, 0, 0, 0 },
        { "vmdk", { "zeroed_grain=on" }, true, 16 << 20, 0, 0, 1 },
        { "vdi", { "static=on" }, false, 8 << 20, 0, 0, 0 },
        { "vdi", { "block_size=64k" }, true, 8 << 20, 0, 0, 1 },
        { "vmdk", { NULL }, true, 8 << 20, 0, 0, 0 },
        { "vmdk", { "subformat=twoGbMaxExtentSparse" }, false, 8 << 20, 0, 0,
          0 },
        { "vmdk", { "subformat=twoGbMaxExtentFlat" }, false, 8 << 20, 0, 0,
          0 },
        { "vmdk", { "subformat=vmfsSparse" }, true, 4 << 20, 0, 0, 0 },
        { "qcow", { NULL }, false, 8 << 20, 0, 0, 1 },
        { "qcow", { NULL }, true, 8 << 20, 0, 0, 0 },
    };
    int run = 0, failed = 0;

    for (size_t i = 0; i < sizeof(plans) / sizeof(plans[0]); i++) {
        struct plan plan = plans[i];

        if (!img_format_by_name(plan.format))
            continue;
        plan.seed = seed + i;
        plan.ops = ops;
        run++;
        failed += !run_plan(&plan);
    }
    printf("%d images, %llu operations each by %d threads, %d failed\n", run,
           (unsigned long long)ops, THREADS, failed);
    return failed || !run;
}

int main(int argc, char **argv)
{
    enum { FORMAT = 1000, SET, BACKING, SIZE, OPS, SEED, CACHE };
    static const struct option options[] = {
        { "format", 1, NULL, FORMAT }, { "set", 1, NULL, SET },
        { "backing", 0, NULL, BACKING }, { "size", 1, NULL, SIZE },
        { "ops", 1, NULL, OPS }, { "seed", 1, NULL, SEED },
        { "cache", 1, NULL, CACHE }, { NULL, 0, NULL, 0 }
    };
    const char *env = getenv("THREADS_OPS");
    struct plan plan = { .size = 8 << 20, .seed = 1,
                         .ops = env ? strtoull(env, NULL, 0) : 12000 };
    int c, n = 0;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case FORMAT: plan.format = optarg; break;
        case SET:
            if (n < MAX_SETTINGS)
                plan.settings[n++] = optarg;
            break;
        case BACKING: plan.backing = true; break;
        case SIZE: plan.size = strtoull(optarg, NULL, 0); break;
        case OPS: plan.ops = strtoull(optarg, NULL, 0); break;
        case SEED: plan.seed = strtoull(optarg, NULL, 0); break;
        case CACHE: plan.cache = strtoull(optarg, NULL, 0); break;
        default: return 2;
        }
    }
    if (plan.format)
        return !run_plan(&plan);
    return run_matrix(plan.ops, plan.seed);
}
