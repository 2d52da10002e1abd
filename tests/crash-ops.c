/* The tables of crash.h: configs and operations. */
#include "crash.h"

enum { Q = HAS_SNAPSHOTS | HAS_PACKED | HAS_AMEND | HAS_REPAIR | HAS_SIZES |
           HAS_TABLES | HAS_DISCARD,
       Q3 = Q | HAS_V3 | HAS_BITMAPS };

const struct config configs[] = {
    { "qcow2, 512-byte clusters", "qcow2", { "cluster_size=512" },
      64 << 10, 512, Q3 },
    { "qcow2, 64 KiB clusters", "qcow2", { NULL }, 2 << 20, 65536, Q3 },
    { "qcow2, 4 KiB clusters over a base", "qcow2", { "cluster_size=4k" },
      512 << 10, 4096, Q3 | HAS_BASE },
    { "qcow2, 64 KiB clusters over a base", "qcow2", { NULL },
      2 << 20, 65536, Q3 | HAS_BASE },
    { "qcow2, subclusters", "qcow2",
      { "extended_l2=on", "cluster_size=16k" },
      512 << 10, 16384, Q3 },
    { "qcow2, subclusters over a base", "qcow2",
      { "extended_l2=on", "cluster_size=16k" },
      512 << 10, 16384, Q3 | HAS_BASE },
    { "qcow2, lazy refcounts", "qcow2",
      { "cluster_size=1k", "lazy_refcounts=on" },
      128 << 10, 1024, Q3 },
    { "qcow2, version 2", "qcow2", { "compat=0.10", "cluster_size=2k" },
      128 << 10, 2048, Q },
    { "qcow2, 1-bit refcounts", "qcow2",
      { "refcount_bits=1", "cluster_size=512" },
      64 << 10, 512, (Q3 | HAS_FEW_ENTRIES) & ~HAS_SNAPSHOTS },
    { "qcow2, 64-bit refcounts", "qcow2",
      { "refcount_bits=64", "cluster_size=512" },
      64 << 10, 512, Q3 | HAS_FEW_ENTRIES },
    { "qcow2, data file", "qcow2",
      { "cluster_size=4k", "data_file=data" },
      256 << 10, 4096,
      Q3 & ~(unsigned)(HAS_SNAPSHOTS | HAS_PACKED | HAS_DISCARD) },
    { "vdi", "vdi", { "block_size=4096" }, 256 << 10, 4096,
      HAS_SIZES | HAS_DISCARD },
    { "vmdk", "vmdk", { NULL }, 2 << 20, 65536, HAS_SIZES },
    { "vmdk, zero grains", "vmdk", { "zeroed_grain=on" }, 2 << 20, 65536,
      HAS_SIZES | HAS_DISCARD },
    { "raw", "raw", { NULL }, 128 << 10, 4096, HAS_SIZES | HAS_DISCARD },
};
const size_t n_configs = IMG_COUNT(configs);

/* ---- where ------------------------------------------------------------- */

/* Four clusters each; a sector of each is changed, or parts, or all. */
enum { PLAIN, PACKED, ZEROS, SHARED, HOLE, FAR };

static uint64_t first_of(const struct work *w, int region)
{
    uint64_t all = w->m.disk.size, at = (uint64_t)region * 4 * w->c->cluster;

    if (region == FAR)          /* another L2 table where clusters are small */
        at = img_round_down(all * 5 / 8, w->c->cluster);
    return at + w->c->cluster <= all ? at : 0;
}

static uint8_t buf[MAX_SECTORS * SECTOR];

static void fill(uint64_t off, uint64_t len, uint32_t tag)
{
    for (uint64_t i = 0; i < len; i += 8) {
        img_put_be32(buf + i, tag);
        img_put_be32(buf + i + 4,
                     tag ? (uint32_t)((off + i) / SECTOR) : 0);
    }
}

static void expect(struct work *w, uint64_t off, uint64_t len, uint32_t tag)
{
    for (uint64_t s = off / SECTOR; s < (off + len) / SECTOR; s++)
        w->m.disk.tags[s] = tag;
}

/* ---- data -------------------------------------------------------------- */

/* What part of the region an operation covers, and how. */
enum {
    PART = 0x100, WHOLE = 0x200, ACROSS = 0x300, FULL = 0x400,
    SHAPE = 0x700,
    UNMAP = 0x1000, FUA = 0x2000, COMPRESS = 0x4000
};

static void range_of(const struct work *w, int arg, uint64_t *off,
                     uint64_t *len)
{
    uint64_t per = w->c->cluster, size = w->m.disk.size;

    *off = first_of(w, arg & 0xff);
    *len = per;
    if ((arg & SHAPE) == PART) {
        *off += per > SECTOR ? SECTOR : 0;
        *len = per > 3 * SECTOR ? 2 * SECTOR : SECTOR;
    } else if ((arg & SHAPE) == ACROSS) {
        *off += SECTOR;
        *len = 2 * per;
    }
    if ((arg & SHAPE) == FULL)
        *len = 4 * per;
    size = IMG_MIN(size, (uint64_t)MAX_SECTORS * SECTOR);   /* have tags */
    *off = IMG_MIN(*off, size - SECTOR);
    *len = IMG_MIN(*len, size - *off);
}

static int op_write(struct work *w, int arg)
{
    unsigned flags = (arg & FUA ? IMG_FUA : 0) |
                     (arg & COMPRESS ? IMG_COMPRESS : 0);
    uint64_t off, len;

    range_of(w, arg, &off, &len);
    fill(off, len, ++w->tag);
    expect(w, off, len, w->tag);
    return img_pwrite(w->d, buf, len, off, flags, &w->err);
}

int write_sector(struct work *w, uint64_t sector, uint32_t tag)
{
    fill(sector * SECTOR, SECTOR, tag);
    return img_pwrite(w->d, buf, SECTOR, sector * SECTOR, 0, &w->err);
}

static int op_zero(struct work *w, int arg)
{
    uint64_t off, len;

    range_of(w, arg, &off, &len);
    expect(w, off, len, 0);
    return img_zero(w->d, off, len, arg & UNMAP ? IMG_MAY_UNMAP : 0,
                    &w->err);
}

/* A hint: it shows zeros, or what it showed. */
static int op_discard(struct work *w, int arg)
{
    struct view was = w->m.disk;
    uint64_t off, len;
    int r;

    range_of(w, arg, &off, &len);
    r = img_discard(w->d, off, len, &w->err);
    if (r == 0)
        r = read_disk(w->d, &w->m.disk, &w->err);
    for (uint64_t s = 0; r == 0 && s < MAX_SECTORS; s++)
        if (w->m.disk.tags[s] != was.tags[s])
            assert_true(w->m.disk.tags[s] == 0 &&
                        s - off / SECTOR < len / SECTOR);
    if (r < 0)
        expect(w, off, len, 0);
    return r;
}

static int op_flush(struct work *w, int arg)
{
    return img_flush(w->d, &w->err);
}

/* ---- snapshots --------------------------------------------------------- */

static int op_snapshot(struct work *w, int arg)
{
    unsigned n = w->m.n_snapshots;

    if (n == MAX_SNAPSHOTS)
        return -ENOTSUP;
    snprintf(w->m.snapshots[n].name, sizeof w->m.snapshots[n].name, "s%u",
             ++w->serial);
    w->m.snapshots[n].view = w->m.disk;
    w->m.snapshots[n].rests = false;
    w->m.n_snapshots++;
    return img_snapshot_create(w->d, w->m.snapshots[n].name, &w->err);
}

static int op_apply(struct work *w, int arg)
{
    unsigned n = w->m.n_snapshots;

    if (!n || w->m.snapshots[arg % n].rests)
        return -ENOTSUP;
    w->m.disk = w->m.snapshots[arg % n].view;
    return img_snapshot_apply(w->d, w->m.snapshots[arg % n].name, &w->err);
}

static int op_forget(struct work *w, int arg)
{
    unsigned n = w->m.n_snapshots;
    char name[16];

    if (!n)
        return -ENOTSUP;
    arg %= n;
    strcpy(name, w->m.snapshots[arg].name);
    memmove(&w->m.snapshots[arg], &w->m.snapshots[arg + 1],
            (n - (unsigned)arg - 1) * sizeof w->m.snapshots[0]);
    w->m.n_snapshots--;
    return img_snapshot_delete(w->d, name, &w->err);
}

/* ---- sizes ------------------------------------------------------------- */

static int resize(struct work *w, uint64_t size, enum img_prealloc prealloc)
{
    for (uint64_t s = IMG_MIN(size, w->m.disk.size) / SECTOR;
         s < MAX_SECTORS; s++)
        w->m.disk.tags[s] = 0;
    w->m.disk.size = size;
    return img_resize(w->d, size, true, prealloc, NULL, &w->err);
}

/* By so many 16ths of what it is. */
static int op_resize(struct work *w, int sixteenths)
{
    uint64_t size = img_round_up(w->m.disk.size * (uint64_t)sixteenths / 16,
                                 SECTOR);

    if (size > UINT64_C(1) << 40 || size < SECTOR * 8)
        return -ENOTSUP;
    return resize(w, size, IMG_PREALLOC_OFF);
}

static int op_preallocate(struct work *w, int times)
{
    uint64_t size = w->c->size * (uint64_t)times;

    if (size <= w->m.disk.size)
        return -ENOTSUP;
    return resize(w, size, IMG_PREALLOC_METADATA);
}

/* By two more L2 tables, each of a cluster. */
static int op_long_table(struct work *w, int arg)
{
    uint64_t covers = (uint64_t)w->c->cluster * (w->c->cluster / 8);

    return resize(w, w->m.disk.size + 2 * covers, IMG_PREALLOC_OFF);
}

/* ---- bitmaps ----------------------------------------------------------- */

static int op_bitmap(struct work *w, int verb)
{
    if (w->m.has_bitmap == (verb == IMG_BITMAP_ADD))
        return -ENOTSUP;
    if (verb == IMG_BITMAP_ADD || verb == IMG_BITMAP_REMOVE)
        w->m.has_bitmap = verb == IMG_BITMAP_ADD;
    memset(w->m.bits, 0, sizeof w->m.bits);
    return img_bitmap_edit(w->d, "bitmap", (enum img_bitmap_verb)verb,
                           SECTOR, &w->err);
}

/* ---- chains ------------------------------------------------------------ */

/* What snapshots have not of their own changes with the backing file, as it
 * does with qemu-img. */
static void loosen_snapshots(struct work *w)
{
    for (unsigned i = 0; i < w->m.n_snapshots; i++)
        w->m.snapshots[i].rests = true;
}

static bool rests_on_base(const struct work *w)
{
    struct img_info *info;
    bool does;

    if (img_info_get(w->d, &info, NULL) < 0)
        return false;
    does = info->backing && !strcmp(info->backing, "base");
    img_info_free(info);
    return does;
}

/* What is above goes into the base, which grows if need be. */
static int op_commit(struct work *w, int keep)
{
    uint64_t size = w->m.disk.size;
    struct img_job job = IMG_JOB;

    if (!rests_on_base(w) || size > (uint64_t)MAX_SECTORS * SECTOR)
        return -ENOTSUP;
    job.threads = 1;
    loosen_snapshots(w);
    memcpy(w->m.base, w->m.disk.tags, size / SECTOR * 4);
    w->m.base_size = IMG_MAX(w->m.base_size, size);
    return img_commit(w->d, 1, keep, &job, &w->err);
}

static int op_rebase(struct work *w, int arg)
{
    static const char *const names[] = {
        "", "other", "a-backing-file-whose-name-is-a-bit-longer-than-usual"
    };
    struct img_rebase_options o = IMG_REBASE_OPTIONS;
    struct img_job job = IMG_JOB;

    job.threads = 1;
    loosen_snapshots(w);
    o.backing = names[arg];
    o.backing_format = *names[arg] ? "raw" : NULL;
    return img_rebase(w->d, &o, &job, &w->err);
}

/* ---- format ------------------------------------------------------------ */

static const char *const amendments[] = {
    "compat=1.1", "lazy_refcounts=on", "lazy_refcounts=off",
    "refcount_bits=8", "refcount_bits=64"
};

static int op_amend(struct work *w, int arg)
{
    const char *settings[] = { amendments[arg], NULL };

    return img_amend(w->d, settings, NULL, &w->err);
}

static int op_repair(struct work *w, int arg)
{
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_check_result result = { 0 };
    int r;

    o.repair = IMG_REPAIR_ALL;
    r = img_check(w->d, &o, NULL, &result, &w->err);
    return r < 0 ? r : img_flush(w->d, &w->err);
}

/* ---- the table --------------------------------------------------------- */

#define D HAS_DISCARD
#define S HAS_SNAPSHOTS
#define P HAS_PACKED
#define B HAS_BITMAPS

const struct operation operations[] = {
    { "prepare, data",       op_write, PLAIN | FULL, 0, LATER },
    { "prepare, compressed", op_write, PACKED | FULL | COMPRESS, P, LATER },
    { "prepare, zeros",      op_zero, ZEROS | FULL, 0, LATER },
    { "prepare, to be shared", op_write, SHARED | FULL, 0, LATER },

    { "write, in place",              op_write, PLAIN | PART, 0, LATER },
    { "write, into a hole",           op_write, HOLE | PART, 0, LATER },
    { "write, whole clusters",        op_write, HOLE | WHOLE, 0, LATER },
    { "write, across clusters",       op_write, HOLE | ACROSS, 0, LATER },
    { "write, new table",             op_write, FAR | ACROSS, 0, LATER },
    { "write, over zeros",            op_write, ZEROS | PART, 0, LATER },
    { "write, over compressed",       op_write, PACKED | PART, P, LATER },
    { "write, over shared",           op_write, SHARED | ACROSS, S, LATER },
    { "write, durable",     op_write, HOLE | ACROSS | FUA, 0, SETTLES },
    { "write compressed", op_write, HOLE | WHOLE | COMPRESS, P, LATER },
    { "write compressed, over data",
                          op_write, PLAIN | WHOLE | COMPRESS, P, LATER },
    { "zero, part",                   op_zero, PLAIN | PART, 0, LATER },
    { "zero, whole",                  op_zero, PLAIN | WHOLE, 0, LATER },
    { "zero, unmap",        op_zero, PLAIN | ACROSS | UNMAP, 0, LATER },
    { "zero, over compressed", op_zero, PACKED | WHOLE | UNMAP, P, LATER },
    { "zero, over shared",  op_zero, SHARED | WHOLE | UNMAP, S, LATER },
    { "discard",                   op_discard, PLAIN | WHOLE, D, LATER },
    { "discard, compressed",   op_discard, PACKED | ACROSS, D | P, LATER },
    { "discard, shared",        op_discard, SHARED | WHOLE, D | S, LATER },
    { "flush",                        op_flush, 0, 0, SETTLES },
    { "snapshot",                     op_snapshot, 0, S, SWITCHES },
    { "snapshot, apply the first",    op_apply, 0, S, SWITCHES },
    { "snapshot, apply the second",   op_apply, 1, S, SWITCHES },
    { "snapshot, delete",             op_forget, 0, S, SWITCHES },
    { "resize, up",                op_resize, 23, HAS_SIZES, SETTLES },
    { "resize, down",              op_resize, 11, HAS_SIZES, SETTLES },
    { "resize, far down",          op_resize, 5, HAS_SIZES, SETTLES },
    { "resize, preallocated", op_preallocate, 3, HAS_TABLES, SETTLES },
    { "resize, longer L1 table", op_long_table, 0, HAS_TABLES, SETTLES },
    { "resize, longer refcount table",
                       op_preallocate, 36, HAS_FEW_ENTRIES, SETTLES },
    { "bitmap, add",          op_bitmap, IMG_BITMAP_ADD, B, SETTLES },
    { "bitmap, clear",        op_bitmap, IMG_BITMAP_CLEAR, B, SETTLES },
    { "bitmap, remove",       op_bitmap, IMG_BITMAP_REMOVE, B, SETTLES },
    { "commit",                       op_commit, 0, HAS_BASE, SETTLES },
    { "commit, keep the overlay",     op_commit, 1, HAS_BASE, SETTLES },
    { "rebase, to another file",      op_rebase, 1, HAS_BASE, SETTLES },
    { "rebase, to a longer name",     op_rebase, 2, HAS_BASE, SETTLES },
    { "rebase, to nothing",           op_rebase, 0, HAS_BASE, SETTLES },
    { "amend, version 3",       op_amend, 0, HAS_AMEND, SETTLES },
    { "amend, lazy refcounts",  op_amend, 1, HAS_V3, SETTLES },
    { "amend, not lazy",        op_amend, 2, HAS_V3, SETTLES },
    { "amend, 8-bit refcounts", op_amend, 3, HAS_V3, SETTLES },
    { "amend, 64-bit refcounts", op_amend, 4, HAS_V3, SETTLES },
    { "repair",                 op_repair, 0, HAS_REPAIR, SETTLES },
};
const size_t n_operations = IMG_COUNT(operations);

int run_operation(struct work *w, const struct operation *op)
{
    struct model was = w->m;
    int r;

    memset(&w->err, 0, sizeof w->err);
    r = op->run(w, op->arg);
    if (r == -ENOTSUP)
        w->m = was;             /* does not apply now: nothing has changed */
    if (r == 0 && w->m.has_bitmap)
        r = read_bits(w->d, w->m.bits, &w->err);
    return r;
}
