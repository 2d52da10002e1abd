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
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_SETTINGS = 12, MAX_BELOW = 4 };

struct plan {
    const char *format;
    const char *settings[MAX_SETTINGS + 1];
    int n_settings;
    bool data_file;
    int backing;                /* layers below, 0 = none */
    uint64_t size, seed, ops;
};

struct model {
    const struct plan *plan;
    struct rng rng;
    const char *dir;
    char path[4096];
    struct img_disk *disk;
    struct img_limits limits;
    uint8_t *flat, *buf;
    size_t buf_size;
    uint64_t size, hot;
    uint64_t op;                /* number of the current operation */
    bool can_compress;
};

static bool peers, verbose, durable;

static void print_plan(FILE *f, const struct plan *plan)
{
    fprintf(f, "model --format %s", plan->format);
    for (int i = 0; i < plan->n_settings; i++)
        fprintf(f, " --set %s", plan->settings[i]);
    if (plan->data_file)
        fprintf(f, " --data-file");
    fprintf(f, " --backing %d --size %llu --ops %llu --seed %llu\n",
            plan->backing, (unsigned long long)plan->size,
            (unsigned long long)plan->ops, (unsigned long long)plan->seed);
}

/* All complaints end here: what, where, and how to see it again. */
static int fail(const struct model *m, const char *what, uint64_t off,
                uint64_t len, const struct img_error *err)
{
    fprintf(stderr, "FAIL: %s at %llu+%llu, operation %llu%s%s\n  ", what,
            (unsigned long long)off, (unsigned long long)len,
            (unsigned long long)m->op, err ? ": " : "",
            err ? err->message : "");
    print_plan(stderr, m->plan);
    return -1;
}

static int differ(const struct model *m, const char *what, const uint8_t *got,
                  uint64_t off, uint64_t len)
{
    uint64_t i = 0;

    while (i < len && got[i] == m->flat[off + i])
        i++;
    fprintf(stderr, "byte %llu is %02x, should be %02x\n",
            (unsigned long long)(off + i), got[i], m->flat[off + i]);
    return fail(m, what, off, len, NULL);
}

/* ---- where ------------------------------------------------------------- */

/* Mostly near where the last ones were, and on or next to edges. */
static uint64_t pick_offset(struct model *m)
{
    uint64_t off, unit = m->limits.cluster ? m->limits.cluster : 65536;

    switch (rng_below(&m->rng, 8)) {
    case 0:
        m->hot = rng_below(&m->rng, m->size);
        off = m->hot;
        break;
    case 1:
        off = m->size - 1 - rng_below(&m->rng, unit < m->size ? unit : 1);
        break;
    default:
        off = m->hot + rng_below(&m->rng, 4 * unit);
        break;
    }
    off %= m->size;
    switch (rng_below(&m->rng, 6)) {
    case 0:
        return off - off % unit;
    case 1:
        return off - off % (unit / 32 ? unit / 32 : 1);
    case 2:
    case 3:
        return off - off % 512;
    default:
        return off;
    }
}

static uint64_t pick_length(struct model *m, uint64_t off)
{
    uint64_t unit = m->limits.cluster ? m->limits.cluster : 65536;
    uint64_t len;

    switch (rng_below(&m->rng, 16)) {
    case 0:
        len = 1 + rng_below(&m->rng, 16);
        break;
    case 1:
        len = 1 + rng_below(&m->rng, m->buf_size);
        break;
    case 2:
    case 3:
        len = unit * (1 + rng_below(&m->rng, 3));
        break;
    case 4:
        len = unit - off % unit;
        break;
    case 5:
    case 6:
        len = 1 + rng_below(&m->rng, 3000);
        break;
    default:
        len = 512 * (1 + rng_below(&m->rng, 24));
        break;
    }
    if (len > m->buf_size)
        len = m->buf_size;
    return len < m->size - off ? len : m->size - off;
}

/* Splits buf into up to four vectors. */
static int pick_iov(struct model *m, struct iovec *iov, uint8_t *buf,
                    uint64_t len)
{
    int n = 0;

    while (n < 3 && len > 1 && rng_below(&m->rng, 3)) {
        uint64_t part = 1 + rng_below(&m->rng, len - 1);

        iov[n++] = (struct iovec) { buf, part };
        buf += part;
        len -= part;
    }
    iov[n++] = (struct iovec) { buf, len };
    return n;
}

/* ---- operations -------------------------------------------------------- */

static int read_and_compare(struct model *m, uint64_t off, uint64_t len)
{
    struct img_error err;
    struct iovec iov[4];
    int n, r;

    memset(m->buf, 0xa5, len);
    if (rng_below(&m->rng, 2)) {
        r = img_pread(m->disk, m->buf, len, off, &err);
    } else {
        n = pick_iov(m, iov, m->buf, len);
        r = img_preadv(m->disk, iov, n, off, &err);
    }
    if (r < 0)
        return fail(m, "read", off, len, &err);
    if (memcmp(m->buf, m->flat + off, len))
        return differ(m, "read", m->buf, off, len);
    return 0;
}

static void make_content(struct model *m, uint64_t off, uint64_t len)
{
    struct rng content = { rng_next(&m->rng) };

    switch (rng_below(&m->rng, 8)) {
    case 0:
        memset(m->buf, 0, len);
        break;
    case 1:
        memset(m->buf, (int)(m->op & 0xff), len);
        break;
    case 2:
        memcpy(m->buf, m->flat + off, len);
        break;
    default:
        rng_fill(&content, m->buf, len);
        break;
    }
}

static int do_write(struct model *m)
{
    uint64_t off = pick_offset(m), len = pick_length(m, off);
    unsigned flags = rng_below(&m->rng, 32) ? 0 : IMG_FUA;
    struct img_error err;
    struct iovec iov[4];
    int n, r;

    make_content(m, off, len);
    memcpy(m->flat + off, m->buf, len);
    if (rng_below(&m->rng, 2)) {
        r = img_pwrite(m->disk, m->buf, len, off, flags, &err);
    } else {
        n = pick_iov(m, iov, m->buf, len);
        r = img_pwritev(m->disk, iov, n, off, flags, &err);
    }
    if (r < 0)
        return fail(m, "write", off, len, &err);
    if (memcmp(m->flat + off, m->buf, len))
        return differ(m, "write changed the caller's buffer", m->buf, off,
                      len);
    return 0;
}

static int do_write_compressed(struct model *m)
{
    uint64_t unit = m->limits.cluster, off = pick_offset(m), len;
    struct rng content = { rng_next(&m->rng) };
    struct img_error err;

    off -= off % unit;
    len = unit < m->size - off ? unit : m->size - off;
    if (rng_below(&m->rng, 8))
        memset(m->buf, (int)content.state, len);
    rng_fill(&content, m->buf, rng_below(&content, len / 4 + 1));
    if (img_pwrite(m->disk, m->buf, len, off, IMG_COMPRESS, &err) < 0)
        return fail(m, "compressed write", off, len, &err);
    memcpy(m->flat + off, m->buf, len);
    return 0;
}

/* Each byte of the range may be what it was or zero; from now on it must be
 * what it is. */
static int adopt(struct model *m, uint64_t off, uint64_t len)
{
    struct img_error err;

    while (len) {
        uint64_t n = len < m->buf_size ? len : m->buf_size;

        if (img_pread(m->disk, m->buf, n, off, &err) < 0)
            return fail(m, "read after discard", off, n, &err);
        for (uint64_t i = 0; i < n; i++)
            if (m->buf[i] && m->buf[i] != m->flat[off + i])
                return differ(m, "neither zero nor old after discard",
                              m->buf, off, n);
        memcpy(m->flat + off, m->buf, n);
        off += n;
        len -= n;
    }
    return 0;
}

static uint64_t pick_long(struct model *m, uint64_t off, uint64_t len)
{
    if (rng_below(&m->rng, 32))
        return len;
    return 1 + rng_below(&m->rng, m->size - off);
}

static int do_zero(struct model *m)
{
    uint64_t off = pick_offset(m);
    uint64_t len = pick_long(m, off, pick_length(m, off));
    unsigned flags = 0;
    struct img_error err;
    int r;

    if (rng_below(&m->rng, 2))
        flags |= IMG_MAY_UNMAP;
    if (!rng_below(&m->rng, 8))
        flags |= IMG_FAST_ONLY;
    r = img_zero(m->disk, off, len, flags, &err);
    if (r == -ENOTSUP && (flags & IMG_FAST_ONLY))
        return adopt(m, off, len);
    if (r < 0)
        return fail(m, "zero", off, len, &err);
    memset(m->flat + off, 0, len);
    return 0;
}

static int do_discard(struct model *m)
{
    uint64_t off = pick_offset(m);
    uint64_t len = pick_long(m, off, pick_length(m, off));
    struct img_error err;

    if (img_discard(m->disk, off, len, &err) < 0)
        return fail(m, "discard", off, len, &err);
    return adopt(m, off, len);
}

/* What the map calls zeros must be zeros, and what it says is in a file must
 * be there. */
static int check_extent(struct model *m, const struct img_extent *e)
{
    const char *name;
    int fd;
    uint64_t n = e->len < m->buf_size ? e->len : m->buf_size;
    ssize_t got;

    if ((e->kind == IMG_HOLE || e->kind == IMG_ZEROS) &&
        !all_zero(m->flat + e->off, e->len))
        return fail(m, "map says zeros", e->off, e->len, NULL);
    if (e->kind != IMG_DATA || e->host_off == UINT64_MAX)
        return 0;
    name = img_file_name(m->disk, e->depth, e->file);
    if (!name)
        return fail(m, "map names no file", e->off, e->len, NULL);
    fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail(m, name, e->off, e->len, NULL);
    memset(m->buf, 0, n);
    got = pread(fd, m->buf, n, (off_t)e->host_off);
    close(fd);
    if (got < 0 || memcmp(m->buf, m->flat + e->off, n))
        return differ(m, "map: the file holds something else", m->buf,
                      e->off, n);
    return 0;
}

static int do_map(struct model *m)
{
    uint64_t off = pick_offset(m), end;
    unsigned flags = rng_below(&m->rng, 2) ? IMG_MAP_EXACT : 0;
    struct img_extent e;
    struct img_error err;

    end = off + pick_length(m, off);
    while (off < end) {
        if (img_map(m->disk, off, end - off, flags, &e, &err) < 0)
            return fail(m, "map", off, end - off, &err);
        if (e.off != off || !e.len || e.len > end - off)
            return fail(m, "map: not the range asked for", e.off, e.len,
                        NULL);
        if (check_extent(m, &e) < 0)
            return -1;
        off += e.len;
    }
    return 0;
}

static int compare_all(struct model *m)
{
    for (uint64_t off = 0; off < m->size; off += m->buf_size) {
        uint64_t n = m->size - off;

        if (read_and_compare(m, off, n < m->buf_size ? n : m->buf_size) < 0)
            return -1;
    }
    return 0;
}

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
    opts.cache_bytes = caches[rng_below(&m->rng, 4)];
    opts.warn = on_warn;
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
        const char *format = i ? "qcow2" : "raw";
        uint64_t size = i ? m->size
                          : m->size / 1024 * 3 / 4 * 1024 + 512;

        snprintf(name, sizeof(name), "base%d", i);
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
    return create(m, m->path, plan->format, settings,
                  below_format ? below : NULL, below_format, m->size);
}

static int one_operation(struct model *m)
{
    uint64_t x = rng_below(&m->rng, 1000), off;

    if (x < 380)
        return do_write(m);
    if (x < 430 && m->can_compress)
        return do_write_compressed(m);
    if (x < 760) {
        off = pick_offset(m);
        return read_and_compare(m, off, pick_length(m, off));
    }
    if (x < 840)
        return do_zero(m);
    if (x < 900)
        return do_discard(m);
    if (x < 980)
        return do_map(m);
    if (x < 996)
        return img_flush(m->disk, NULL) < 0
                   ? fail(m, "flush", 0, 0, NULL) : 0;
    return do_reopen(m);
}

static int run_operations(struct model *m)
{
    if (make_image(m) < 0 || open_disk(m, IMG_OPEN_WRITE) < 0 ||
        compare_all(m) < 0)
        return -1;
    for (m->op = 1; m->op <= m->plan->ops; m->op++)
        if (one_operation(m) < 0)
            return -1;
    if (compare_all(m) < 0 || close_disk(m) < 0 || open_disk(m, 0) < 0 ||
        compare_all(m) < 0 || check_disk(m) < 0 || close_disk(m) < 0)
        return -1;
    return peers ? ask_peer(m) : 0;
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
    snprintf(m.path, sizeof(m.path), "%s/disk", dir);

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
        "subformat=monolithicFlat", "subformat=twoGbMaxExtentFlat"
    };

    add_plan("raw", (5 << 20) + 512, 0);
    if (img_format_by_name("vdi")) {
        add_plan("vdi", 16 << 20, 0);
        set(add_plan("vdi", 16 << 20, 0), "preallocation=metadata");
    }
    if (img_format_by_name("vmdk")) {
        for (int i = 0; i < 4; i++)
            set(add_plan("vmdk", 8 << 20, 0), subformats[i]);
    }
    if (img_format_by_name("qcow")) {
        add_plan("qcow", 4 << 20, 0);
        add_plan("qcow", 4 << 20, 1);
    }
}

/* Only images of `only`, if that is not NULL. */
static int run_matrix(const char *only, uint64_t total, uint64_t seed)
{
    uint64_t done = 0;
    int failed = 0, run = 0, chosen = 0;

    if (img_format_by_name("qcow2"))
        add_qcow2();
    add_others();
    for (int i = 0; i < n_plans; i++)
        chosen += !only || !strcmp(only, plans[i].format);
    for (int i = 0; i < n_plans; i++) {
        struct plan *plan = &plans[i];

        if (only && strcmp(only, plan->format))
            continue;
        plan->seed = seed + (uint64_t)i;
        plan->ops = total / (uint64_t)chosen + 1;
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
           ONLY };
    static const struct option options[] = {
        { "format", 1, NULL, FORMAT }, { "set", 1, NULL, SET },
        { "data-file", 0, NULL, DATA_FILE }, { "backing", 1, NULL, BACKING },
        { "size", 1, NULL, SIZE }, { "ops", 1, NULL, OPS },
        { "seed", 1, NULL, SEED }, { "total", 1, NULL, TOTAL },
        { "only", 1, NULL, ONLY }, { "verbose", 0, NULL, 'v' },
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
