/* A qcow2 layer without a disk around it, over an image file of any shape of
 * refcount table, whose calls fail on request. */
#ifndef TESTS_UNIT_QCOW2_LAYER_H
#define TESTS_UNIT_QCOW2_LAYER_H
#include "folder.h"
#include "qcow2/qcow2.h"
#include "file/file.h"

struct shape {
    uint32_t cluster_bits, order;
    uint64_t table;             /* clusters of the refcount table */
    uint64_t clusters;          /* how long the file is */
};

/* Counts down; the call that finds it at 1 fails. */
static int fail_zero;
static struct img_file *below;

static int on_preadv(struct img_file *f, const struct iovec *iov, int n,
                     uint64_t off, struct img_error *e)
{
    return img_file_preadv(below, iov, n, off, e);
}

static int on_pwritev(struct img_file *f, const struct iovec *iov, int n,
                      uint64_t off, struct img_error *e)
{
    return img_file_pwritev(below, iov, n, off, e);
}

static int on_zero(struct img_file *f, uint64_t off, uint64_t len,
                   unsigned flags, struct img_error *e)
{
    if (fail_zero && !--fail_zero)
        return img_fail(e, EIO, "%s: zeroing", f->path);
    return img_file_zero(below, off, len, flags, e);
}

static int on_truncate(struct img_file *f, uint64_t size, struct img_error *e)
{
    return img_file_truncate(below, size, e);
}

static int on_size(struct img_file *f, uint64_t *size, struct img_error *e)
{
    return img_file_size(below, size, e);
}

static int on_sync(struct img_file *f, struct img_error *e)
{
    return 0;
}

static void on_close(struct img_file *f)
{
}

static const struct img_file_ops failing_ops = {
    .kind = "failing", .preadv = on_preadv, .pwritev = on_pwritev,
    .zero = on_zero, .truncate = on_truncate, .size = on_size,
    .sync = on_sync, .close = on_close,
};
static struct img_file failing = {
    .ops = &failing_ops, .path = "image", .fd = -1, .writable = true,
    .align = 1,
};
static struct img_file *files[] __attribute__((unused)) = { &failing };

static inline void no_warning(struct img_layer *l, const char *fmt, ...)
{
}

static inline struct qcow2 *layer_open(struct img_layer *l, const char *name)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;

    if (!below)
        assert_ok(img_file_open(in_folder(name), IMG_FILE_WRITE, &below,
                                &err), err);
    *l = (struct img_layer){ .format = &img_qcow2, .path = "image",
                             .files = files, .n_files = 1, .writable = true,
                             .warn = no_warning };
    assert_ok(img_tcache_new(4 << 20, &l->tables, &err), err);
    assert_ok(img_qcow2.open(l, &o, &err), err);
    return img_qcow2_of(l);
}

/* Without a flush: the test has its own. */
static inline void layer_close(struct img_layer *l)
{
    img_qcow2.close(l);
    img_tcache_free(l->tables);
    free(l->backing);
    free(l->backing_format);
    img_file_close(below);
    below = NULL;
    fail_zero = 0;
}

/* Header, refcount table, blocks for what is used, an L1 table of one
 * entry. */
static inline void build(const char *name, const struct shape *s)
{
    uint64_t cluster = UINT64_C(1) << s->cluster_bits;
    uint64_t per_block = cluster * 8 >> s->order, blocks = 1, used;
    uint8_t *buf = calloc(1, cluster), at[8];
    struct qcow2_header h = {
        .version = 3, .cluster_bits = s->cluster_bits, .size = 1 << 16,
        .refcount_order = s->order, .l1_size = 1,
        .reftable_offset = cluster, .reftable_clusters = (uint32_t)s->table,
        .header_length = QCOW2_OUR_HEADER,
    };

    h.size = 16 << s->cluster_bits;
    for (;; blocks++) {
        used = 1 + s->table + blocks + 1;
        if (used <= blocks * per_block)
            break;
    }
    h.l1_offset = (used - 1) * cluster;
    assert_ok(img_file_open(in_folder(name), IMG_FILE_WRITE | IMG_FILE_CREATE,
                            &below, &err), err);
    assert_ok(img_qcow2_header_build(name, &h, NULL, buf, &err), err);
    assert_ok(img_file_pwrite(below, buf, cluster, 0, &err), err);
    for (uint64_t b = 0; b < blocks; b++) {
        uint64_t host = (1 + s->table + b) * cluster;

        img_put_be64(at, host);
        assert_ok(img_file_pwrite(below, at, 8, cluster + b * 8, &err), err);
        memset(buf, 0, cluster);
        for (uint64_t i = 0; i < per_block && b * per_block + i < used; i++)
            img_qcow2_refs_store(buf, s->order, i, 1);
        assert_ok(img_file_pwrite(below, buf, cluster, host, &err), err);
    }
    free(buf);
    assert_true(s->clusters >= used);
    assert_ok(img_file_truncate(below, s->clusters * cluster, &err), err);
}

/* What a check finds; QEMU, where it has memory enough, finds the same. */
static inline void assert_check(const char *name, uint64_t leaks, bool qemu)
{
    struct img_disk *d = open_as(name, "qcow2", 0);
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_check_result result = { 0 };
    char cmd[300];
    int r;

    assert_ok(img_check(d, &o, NULL, &result, &err), err);
    assert_int_equal(result.errors, 0);
    assert_int_equal(result.leaks, leaks);
    assert_ok(img_close(d, &err), err);
    if (!qemu || system("command -v qemu-img >/dev/null"))
        return;
    snprintf(cmd, sizeof cmd, "qemu-img check -f qcow2 %s 2>/dev/null | "
             "grep -q '^%llu leaked clusters'", in_folder(name),
             (unsigned long long)leaks);
    if (!leaks)
        snprintf(cmd, sizeof cmd, "qemu-img check -q -f qcow2 %s >/dev/null",
                 in_folder(name));
    r = system(cmd);
    if (r)
        fail_msg("%s ends with %d", cmd, r);
}
#endif
