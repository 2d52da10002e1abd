/* VMDK layers in memory: a folder of files, an image built byte by byte from
 * the published layout, and what asks about it. */
#ifndef TESTS_UNIT_VMDK_IMAGE_H
#define TESTS_UNIT_VMDK_IMAGE_H
#include "unit.h"
#include "cache/tcache.h"
#include "file/file.h"
#include "vmdk/vmdk.h"

enum { FILES = 10, SECTOR = 512 };

/* A folder in memory. */
static struct { const char *name; struct img_file *file; } folder[FILES];
static int n_folder, warned;
static bool on_device;          /* what is opened seems to be a device */
static struct img_tcache *cache;
static struct img_error err;

static inline struct img_file *new_file(const char *name)
{
    assert_true(n_folder < FILES);
    assert_ok(img_file_in_memory(name, &folder[n_folder].file, &err), err);
    folder[n_folder].name = name;
    return folder[n_folder++].file;
}

/* Layers close what they open, so each gets a copy. */
static inline struct img_file *copy_of(struct img_file *from)
{
    struct img_file *to;
    uint64_t len;
    void *buf;

    assert_ok(img_file_in_memory(from->path, &to, &err), err);
    assert_ok(img_file_size(from, &len, &err), err);
    buf = malloc(len + 1);
    assert_ok(img_file_pread(from, buf, len, 0, &err), err);
    assert_ok(img_file_pwrite(to, buf, len, 0, &err), err);
    free(buf);
    return to;
}

static inline int hook_open(struct img_layer *l, const char *name,
                            bool writable, struct img_file **file,
                            struct img_error *e)
{
    for (int i = 0; i < n_folder; i++)
        if (!strcmp(folder[i].name, name)) {
            *file = copy_of(folder[i].file);
            (*file)->writable = writable;
            return 0;
        }
    return img_fail(e, ENOENT, "%s: no such file", name);
}

static inline void hook_warn(struct img_layer *l, const char *fmt, ...)
{
    warned++;
}

static inline int open_layer(struct img_layer *l, struct img_file *file,
                             unsigned flags)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;

    memset(l, 0, sizeof *l);
    memset(&err, 0, sizeof err);
    opts.flags = flags;
    l->format = &img_format_vmdk;
    l->path = file->path;
    l->files = malloc(sizeof *l->files);
    l->files[0] = copy_of(file);
    l->files[0]->writable = flags & IMG_OPEN_WRITE;
    l->files[0]->is_device = on_device;
    l->n_files = 1;
    l->writable = flags & IMG_OPEN_WRITE;
    l->repair = flags & IMG_OPEN_REPAIR;
    l->tables = cache;
    l->open_file = hook_open;
    l->warn = hook_warn;
    return img_vmdk_open(l, &opts, &err);
}

static inline void close_layer(struct img_layer *l)
{
    for (unsigned i = 0; i < l->n_files; i++)
        img_tcache_forget(cache, l->files[i], 0, UINT64_MAX);
    img_vmdk_close(l);
    for (unsigned i = 0; i < l->n_files; i++)
        img_file_close(l->files[i]);
    free(l->files);
    free(l->backing);
    free(l->backing_format);
}

static inline void refused(struct img_file *file, unsigned flags, int want)
{
    struct img_layer l;

    assert_int_equal(open_layer(&l, file, flags), -want);
    assert_true(err.message[0]);
    close_layer(&l);
}

static inline void put(struct img_file *f, const void *buf, size_t len,
                       uint64_t off)
{
    assert_ok(img_file_pwrite(f, buf, len, off, &err), err);
}

static inline void put32(struct img_file *f, uint32_t v, uint64_t off)
{
    uint8_t raw[4];

    img_put_le32(raw, v);
    put(f, raw, sizeof raw, off);
}

static inline void put64(struct img_file *f, uint64_t v, uint64_t off)
{
    uint8_t raw[8];

    img_put_le64(raw, v);
    put(f, raw, sizeof raw, off);
}

static inline struct img_file *text_file(const char *name, const char *text)
{
    struct img_file *f = new_file(name);

    put(f, text, strlen(text), 0);
    return f;
}

static inline void expect(struct img_layer *l, uint64_t off,
                          enum img_run_kind kind, unsigned file,
                          uint64_t host, uint64_t len)
{
    struct img_run run;

    assert_ok(img_vmdk_map(l, off, l->size - off, 0, &run, &err), err);
    assert_int_equal(run.off, off);
    assert_int_equal(run.kind, kind);
    assert_int_equal(run.len, len);
    if (kind == IMG_RUN_DATA) {
        assert_int_equal(run.file, file);
        assert_int_equal(run.host, host);
    }
}

static inline int setup(void **state)
{
    n_folder = warned = 0;
    on_device = false;
    return img_tcache_new(1 << 20, &cache, &err);
}

static inline void empty_folder(void)
{
    while (n_folder)
        img_file_close(folder[--n_folder].file);
}

static inline int teardown(void **state)
{
    empty_folder();
    img_tcache_free(cache);
    return 0;
}

/* A hosted sparse extent of 64 sectors with grains of 8: 2 copies of one
 * table of 512 entries, at sectors 2 and 7; grains from sector 16 on. */
static inline struct img_file *small_sparse(const char *name,
                                            const char *text)
{
    struct vmdk_header h = {
        .version = 2, .capacity = 64, .grain = 8, .gt_entries = 512,
        .flags = VMDK_FLAG_NEWLINES | VMDK_FLAG_REDUNDANT |
                 VMDK_FLAG_ZERO_GRAIN,
        .rgd_off = 1, .gd_off = 6, .overhead = 16,
        .text_off = text ? 12 : 0, .text_len = text ? 4 : 0,
    };
    struct img_file *f = new_file(name);
    uint8_t head[SECTOR];

    img_vmdk_header_put(head, &h);
    put(f, head, sizeof head, 0);
    assert_ok(img_file_truncate(f, 40 * SECTOR, &err), err);
    put32(f, 2, 1 * SECTOR);
    put32(f, 7, 6 * SECTOR);
    if (text)
        put(f, text, strlen(text), 12 * SECTOR);
    return f;
}

static inline void entry(struct img_file *f, unsigned i, uint32_t first,
                         uint32_t second)
{
    put32(f, first, 7 * SECTOR + 4 * i);
    put32(f, second, 2 * SECTOR + 4 * i);
}

#define MONOLITHIC \
    "version=1\nCID=7\nparentCID=ffffffff\n" \
    "createType=\"monolithicSparse\"\nRW 64 SPARSE \"a.vmdk\"\n"
#endif
