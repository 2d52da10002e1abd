/* Random operations on a disk and, side by side, on a flat array: they must
 * stay equal to the byte.
 *
 *   model                      the built-in matrix of images
 *   model --total N            ... with N operations in all
 *   model --format qcow2 --set cluster_size=512 --backing 1 --seed 7
 *                              one image; a failure prints such a line
 *
 * After the last operation the image is opened again, checked by the library
 * and by qemu-img, and read by qemu-img.
 */
#include "model.h"

#include <fcntl.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool peers, verbose, durable;

/* ---- opening and ending ------------------------------------------------ */

static void on_warn(void *opaque, const char *message)
{
    if (verbose)
        fprintf(stderr, "  warning: %s\n", message);
}

static void on_finding(void *opaque, const char *message)
{
    fprintf(stderr, "  check: %s\n", message);
}

static int open_disk(struct model *m, unsigned flags)
{
    static const uint64_t caches[] = { 0, 1, 65536, 1 << 20 };
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_error err;

    opts.format = m->plan->format;
    opts.flags = flags | (durable ? 0 : IMG_OPEN_NO_SYNC) |
                 (rng_below(&m->rng, 2) ? IMG_OPEN_UNMAP : 0);
    /* qcow has no room for the format of its backing file. */
    if (!strcmp(opts.format, "qcow"))
        opts.flags |= IMG_OPEN_PROBE_BACKING;
    opts.cache_bytes = caches[rng_below(&m->rng, 4)];
    opts.warn = on_warn;
    if (m->plan->backing && !strcmp(m->plan->format, "qcow"))
        opts.backing_format = m->plan->backing > 1 ? "qcow2" : "raw";
    if (img_open(m->path, &opts, &m->disk, &err) < 0)
        return fail(m, "open", 0, 0, &err);
    img_limits(m->disk, &m->limits);
    if (img_size(m->disk) != m->size)
        return fail(m, "size", 0, img_size(m->disk), NULL);
    return 0;
}

static int close_disk(struct model *m)
{
    struct img_disk *disk = m->disk;
    struct img_error err;

    m->disk = NULL;
    if (disk && img_close(disk, &err) < 0)
        return fail(m, "close", 0, 0, &err);
    return 0;
}

static int do_reopen(struct model *m)
{
    if (close_disk(m) < 0)
        return -1;
    return open_disk(m, IMG_OPEN_WRITE);
}

static int check_disk(struct model *m)
{
    const struct img_format_info *format =
        img_format_by_name(m->plan->format);
    struct img_check_options opts = IMG_CHECK_OPTIONS;
    struct img_check_result result;
    struct img_error err;

    if (!(format->features & IMG_CAN_CHECK))
        return 0;
    opts.report = on_finding;
    if (img_check(m->disk, &opts, NULL, &result, &err) < 0)
        return fail(m, "check", 0, 0, &err);
    /* qcow has no way to remember a place that is free again, nor has
     * vmfsSparse, whose grains are parts of a page. */
    if (!strcmp(m->plan->format, "qcow") ||
        (m->plan->n_settings &&
         !strcmp(m->plan->settings[0], "subformat=vmfsSparse")))
        result.leaks = 0;
    if (result.errors || result.leaks || result.check_errors)
        return fail(m, "check: errors, leaks", result.errors, result.leaks,
                    NULL);
    return 0;
}

/* qemu-img checks it and reads it. */
static int ask_peer(struct model *m)
{
    char flat[4200], out[4200];
    int r, fd;

    snprintf(out, sizeof(out), "%s/peer", m->dir);
    if (!strcmp(m->plan->format, "qcow2") || !strcmp(m->plan->format, "vdi")) {
        r = run_program(out, (const char *[]) { "qemu-img", "check", "-f",
                        m->plan->format, m->path, NULL });
        if (r) {
            run_program("/dev/stderr",
                        (const char *[]) { "tail", "-n", "5", out, NULL });
            return fail(m, "qemu-img check", 0, (uint64_t)r, NULL);
        }
    }
    snprintf(flat, sizeof(flat), "%s/flat", m->dir);
    fd = open(flat, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, m->flat, m->size) != (ssize_t)m->size)
        return fail(m, flat, 0, m->size, NULL);
    close(fd);
    r = run_program(out, (const char *[]) { "qemu-img", "compare", "-f", "raw",
                    "-F", m->plan->format, flat, m->path, NULL });
    if (r) {
        run_program("/dev/stderr", (const char *[]) { "cat", out, NULL });
        return fail(m, "qemu-img compare", 0, (uint64_t)r, NULL);
    }
    return 0;
}

/* ---- one image --------------------------------------------------------- */

static int create_by_peer(struct model *m, const char *const *settings,
                          const char *backing, const char *backing_format)
{
    const char *argv[2 * MAX_SETTINGS + 20] = {
        "qemu-img", "create", "-q", "-f", m->plan->format
    };
    char size[32], out[4200];
    int n = 5;

    for (int i = 0; settings[i]; i++) {
        argv[n++] = "-o";
        argv[n++] = settings[i];
    }
    if (backing) {
        argv[n++] = "-b";
        argv[n++] = backing;
        argv[n++] = "-F";
        argv[n++] = backing_format;
    }
    snprintf(size, sizeof(size), "%llu", (unsigned long long)m->size);
    argv[n++] = m->path;
    argv[n++] = size;
    argv[n] = NULL;
    snprintf(out, sizeof(out), "%s/peer", m->dir);
    if (run_program(out, argv)) {
        run_program("/dev/stderr", (const char *[]) { "cat", out, NULL });
        return fail(m, "qemu-img create", 0, m->size, NULL);
    }
    return 0;
}

static int create(struct model *m, const char *path, const char *format,
                  const char *const *settings, const char *backing,
                  const char *backing_format, uint64_t size)
{
    struct img_create_options opts = IMG_CREATE_OPTIONS;
    struct img_error err;

    opts.format = format;
    opts.disk_size = size;
    opts.has_size = true;
    opts.backing = backing;
    opts.backing_format = backing_format;
    opts.settings = settings;
    opts.flags = IMG_CREATE_NO_SYNC;
    if (img_create(path, &opts, &err) < 0)
        return fail(m, "create", 0, size, &err);
    return 0;
}

/* Content for a layer below: islands of random bytes, also in the array. */
static int fill_layer(struct model *m, const char *path, const char *format,
                      uint64_t size)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_disk *disk;
    struct img_error err;
    int r = 0;

    opts.format = format;
    opts.flags = IMG_OPEN_WRITE | IMG_OPEN_NO_SYNC;
    if (img_open(path, &opts, &disk, &err) < 0)
        return fail(m, "open a base", 0, 0, &err);
    for (int i = 0; i < 40 && r >= 0; i++) {
        uint64_t off = rng_below(&m->rng, size);
        uint64_t len = 1 + rng_below(&m->rng, 200000);

        if (len > size - off)
            len = size - off;
        if (len > m->buf_size)
            len = m->buf_size;
        make_content(m, off, len);
        r = img_pwrite(disk, m->buf, len, off, 0, &err);
        memcpy(m->flat + off, m->buf, len);
    }
    if (r < 0) {
        img_close(disk, NULL);
        return fail(m, "write to a base", 0, 0, &err);
    }
    if (img_close(disk, &err) < 0)
        return fail(m, "close a base", 0, 0, &err);
    return 0;
}

/* VDI images find their parents by that. */
static const char *suffix_of(const struct plan *plan)
{
    return strcmp(plan->format, "vdi") ? "" : ".vdi";
}

/* The lowest layer is raw and shorter than the disk, as a disk grown by its
 * overlay is. */
static int make_image(struct model *m)
{
    const struct plan *plan = m->plan;
    const char *settings[MAX_SETTINGS + 2];
    char name[64], below[64] = "", path[4200], data[4200];
    const char *below_format = NULL;
    int n = 0;

    for (int i = 0; i < plan->backing; i++) {
        /* Only VMDK goes over VMDK, only VDI over VDI. */
        const char *format = plan->format[0] == 'v' ? plan->format
                             : i ? "qcow2" : "raw";
        uint64_t size = i ? m->size
                          : m->size / 1024 * 3 / 4 * 1024 + 512;

        snprintf(name, sizeof(name), "base%d%s", i, suffix_of(plan));
        snprintf(path, sizeof(path), "%s/%s", m->dir, name);
        if (create(m, path, format, NULL, below_format ? below : NULL,
                   below_format, size) < 0 ||
            fill_layer(m, path, format, size) < 0)
            return -1;
        strcpy(below, name);
        below_format = format;
    }
    for (; n < plan->n_settings; n++)
        settings[n] = plan->settings[n];
    if (plan->data_file) {
        snprintf(data, sizeof(data), "data_file=%s/data", m->dir);
        settings[n++] = data;
    }
    settings[n] = NULL;
    if (plan->peer)
        return create_by_peer(m, settings, below_format ? below : NULL,
                              below_format);
    return create(m, m->path, plan->format, settings,
                  below_format ? below : NULL, below_format, m->size);
}

static int run_operations(struct model *m)
{
    if (make_image(m) < 0 || open_disk(m, IMG_OPEN_WRITE) < 0 ||
        compare_all(m) < 0)
        return -1;
    for (m->op = 1; m->op <= m->plan->ops; m->op++)
        if ((rng_below(&m->rng, 250) ? one_operation(m) : do_reopen(m)) < 0)
            return -1;
    if (compare_all(m) < 0 || close_disk(m) < 0 || open_disk(m, 0) < 0 ||
        compare_all(m) < 0 || check_disk(m) < 0 || close_disk(m) < 0)
        return -1;
    return peers && qemu_reads(m->plan->format, m->plan->settings,
                               m->plan->backing) ? ask_peer(m) : 0;
}

static int run_plan(const struct plan *plan)
{
    const struct img_format_info *format = img_format_by_name(plan->format);
    struct model m = { .plan = plan, .rng = { plan->seed } };
    char dir[4000];
    int r;

    if (!format) {
        fprintf(stderr, "no format %s\n", plan->format);
        return -1;
    }
    m.size = plan->size;
    m.buf_size = 3 << 20;
    m.flat = must_alloc(m.size);
    m.buf = must_alloc(m.buf_size);
    memset(m.flat, 0, m.size);
    m.can_compress = (format->features & IMG_CAN_COMPRESS) &&
                     !plan->data_file;
    m.dir = make_scratch(dir, sizeof(dir));
    snprintf(m.path, sizeof(m.path), "%s/disk%s", dir, suffix_of(plan));

    r = run_operations(&m);
    if (m.disk)
        img_close(m.disk, NULL);
    if (r < 0 && getenv("KEEP"))
        fprintf(stderr, "kept: %s\n", dir);
    else
        remove_scratch(dir);
    free(m.flat);
    free(m.buf);
    return r;
}

/* ---- the matrix -------------------------------------------------------- */

enum { MAX_PLANS = 512 };
static struct plan plans[MAX_PLANS];
static int n_plans;

static struct plan *add_plan(const char *format, uint64_t size, int backing)
{
    struct plan *plan = &plans[n_plans++];

    *plan = (struct plan) { .format = format, .size = size,
                            .backing = backing };
    return plan;
}

static void set(struct plan *plan, const char *setting)
{
    plan->settings[plan->n_settings++] = setting;
}

static void add_qcow2(void)
{
    static const char *const clusters[] = {
        "cluster_size=512", "cluster_size=4096", "cluster_size=65536",
        "cluster_size=2097152"
    };
    static const uint64_t sizes[] = {
        (1 << 20) + 512, (3 << 20) + 1536, (8 << 20) + 512,
        (24 << 20) + 1024
    };
    static const char *const widths[] = {
        "refcount_bits=1", "refcount_bits=2", "refcount_bits=4",
        "refcount_bits=8", "refcount_bits=16", "refcount_bits=32",
        "refcount_bits=64"
    };

    for (int c = 0; c < 4; c++)
        for (int backing = 0; backing < 2; backing++) {
            struct plan *plan = add_plan("qcow2", sizes[c], backing * 2);

            set(plan, "compat=0.10");
            set(plan, clusters[c]);
        }
    /* Subclusters need clusters of 16 KiB at least. */
    for (int i = 0; i < 4 * 7 * 2 * 2 * 2; i++) {
        int c = i % 4, w = i / 4 % 7, data = i / 28 % 2;
        int backing = i / 56 % 2, extended = i / 112 % 2;
        struct plan *plan;

        if (extended && c < 2)
            continue;
        plan = add_plan("qcow2", sizes[c], backing ? 1 + w % 3 : 0);
        set(plan, "compat=1.1");
        set(plan, clusters[c]);
        set(plan, widths[w]);
        if (extended)
            set(plan, "extended_l2=on");
        plan->data_file = data;
        if (!data && w == 3)
            set(plan, "compression_type=zstd");
        if (w == 4)
            set(plan, "lazy_refcounts=on");
        if (data && !backing && w == 5)
            set(plan, "data_file_raw=on");
    }
}

static void add_others(void)
{
    static const char *const subformats[] = {
        "subformat=monolithicSparse", "subformat=twoGbMaxExtentSparse",
        "subformat=monolithicFlat", "subformat=twoGbMaxExtentFlat",
        "subformat=vmfs", "subformat=vmfsSparse"
    };

    add_plan("raw", (5 << 20) + 512, 0);
    if (img_format_by_name("vdi")) {
        add_plan("vdi", 16 << 20, 0);
        set(add_plan("vdi", 16 << 20, 0), "static=on");
        set(add_plan("vdi", (8 << 20) + 512, 0), "block_size=4k");
        add_plan("vdi", 16 << 20, 1);
        set(add_plan("vdi", (8 << 20) + 1024, 2), "block_size=64k");
    }
    if (img_format_by_name("vmdk")) {
        for (int i = 0; i < 6; i++)
            set(add_plan("vmdk", 8 << 20, 0), subformats[i]);
        for (int i = 0; i < 2; i++) {
            set(add_plan("vmdk", 8 << 20, 2), subformats[i]);
            set(add_plan("vmdk", (8 << 20) + 512, i), "zeroed_grain=on");
        }
        set(add_plan("vmdk", 4 << 20, 2), "subformat=vmfsSparse");
    }
    if (img_format_by_name("qcow")) {
        add_plan("qcow", 4 << 20, 0);
        add_plan("qcow", 4 << 20, 1);
        add_plan("qcow", (4 << 20) + 512, 2);
    }
}

/* Small clusters get more of the operations: theirs are quick. */
static unsigned weight(const struct plan *plan)
{
    return plan->size < 4 << 20 ? 6 : plan->size < 16 << 20 ? 3 : 1;
}

/* Only images of `only`, if that is not NULL. */
static int run_matrix(const char *only, uint64_t total, uint64_t seed)
{
    uint64_t done = 0, chosen = 0;
    int failed = 0, run = 0;

    if (img_format_by_name("qcow2"))
        add_qcow2();
    add_others();
    for (int i = 0; i < n_plans; i++)
        if (!only || !strcmp(only, plans[i].format))
            chosen += weight(&plans[i]);
    for (int i = 0; i < n_plans; i++) {
        struct plan *plan = &plans[i];

        if (only && strcmp(only, plan->format))
            continue;
        plan->seed = seed + (uint64_t)i;
        plan->peer = peers && plan->seed % 3 == 0 &&
                     qemu_creates(plan->format, plan->settings,
                                  plan->backing);
        plan->ops = total * weight(plan) / chosen + 1;
        if (verbose)
            print_plan(stderr, plan);
        failed += run_plan(plan) < 0;
        done += plan->ops;
        run++;
    }
    printf("%d images, %llu operations, %d failed%s\n", run,
           (unsigned long long)done, failed,
           peers ? "" : " (without qemu-img)");
    return failed || !run ? 1 : 0;
}

int main(int argc, char **argv)
{
    enum { FORMAT = 1000, SET, DATA_FILE, BACKING, SIZE, OPS, SEED, TOTAL,
           ONLY, PEER };
    static const struct option options[] = {
        { "format", 1, NULL, FORMAT }, { "set", 1, NULL, SET },
        { "data-file", 0, NULL, DATA_FILE }, { "backing", 1, NULL, BACKING },
        { "size", 1, NULL, SIZE }, { "ops", 1, NULL, OPS },
        { "seed", 1, NULL, SEED }, { "total", 1, NULL, TOTAL },
        { "only", 1, NULL, ONLY }, { "peer", 0, NULL, PEER },
        { "verbose", 0, NULL, 'v' },
        { "durable", 0, NULL, 'd' }, { NULL, 0, NULL, 0 }
    };
    const char *env = getenv("MODEL_OPS"), *only = NULL;
    uint64_t total = env ? strtoull(env, NULL, 0) : 200000;
    struct plan plan = { .size = (4 << 20) + 512, .seed = 1, .ops = 5000 };
    int c;

    while ((c = getopt_long(argc, argv, "vd", options, NULL)) != -1) {
        switch (c) {
        case FORMAT: plan.format = optarg; break;
        case SET:
            if (plan.n_settings < MAX_SETTINGS)
                plan.settings[plan.n_settings++] = optarg;
            break;
        case DATA_FILE: plan.data_file = true; break;
        case BACKING: plan.backing = atoi(optarg) % (MAX_BELOW + 1); break;
        case SIZE: plan.size = strtoull(optarg, NULL, 0); break;
        case OPS: plan.ops = strtoull(optarg, NULL, 0); break;
        case SEED: plan.seed = strtoull(optarg, NULL, 0); break;
        case TOTAL: total = strtoull(optarg, NULL, 0); break;
        case PEER: plan.peer = true; break;
        case ONLY: only = optarg; break;
        case 'v': verbose = true; break;
        case 'd': durable = true; break;
        default: return 2;
        }
    }
    peers = have_program("qemu-img");
    if (plan.format)
        return run_plan(&plan) < 0;
    return run_matrix(only, total, plan.seed);
}
