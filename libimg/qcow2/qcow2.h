/* qcow2, versions 2 and 3: what the files of this folder share.
 *
 * The layout is that of QEMU's published description, docs/interop/qcow2.txt
 * (called "the description" in comments here).
 *
 *   header.c  the header cluster: parse, check, write anew
 *   open.c    a layer's life: open, close, the format table
 *   entry.c   one L2 entry: what it means, and back
 *   table.c   L1 and L2 tables: find, pin, make writable
 *   map.c     where guest bytes are
 *   refs.c    refcounts: read, add, the table's growth
 *   alloc.c   which clusters are free: take, give back
 *   write.c   reserve, publish, abandon
 *   unmap.c   zeros, discards
 *   sync.c    write-back in the order that keeps every crash leak-only
 *   create.c  new images          stream.c   the same, from front to back
 *   resize.c  another size
 *   backing.c the link to the backing file, identity.c what that was like
 *   snapshot.c bitmap.c check.c amend.c describe.c   as named
 *   downgrade.c  amend: from version 3 to 2
 *
 * Locks, in this order: flush_lock (one write-back at a time, held during
 * I/O), then lock (everything below it in the struct and the bytes of all
 * cached slices; dropped while an L2 slice is read).
 */
#ifndef IMG_QCOW2_QCOW2_H
#define IMG_QCOW2_QCOW2_H
#include "format.h"
#include "base/bytes.h"
#include "base/sync.h"
#include "cache/tcache.h"

enum {
    QCOW2_MAGIC = 0x514649fb,   /* "QFI\xfb" */
    QCOW2_V2_HEADER = 72, QCOW2_V3_HEADER = 104, QCOW2_OUR_HEADER = 112,

    QCOW2_MIN_CLUSTER_BITS = 9, QCOW2_MAX_CLUSTER_BITS = 21,
    QCOW2_SUBCLUSTERS = 32,

    QCOW2_MAX_L1_BYTES = 32 << 20,      /* QEMU's limits */
    QCOW2_MAX_REFTABLE_BYTES = 8 << 20,
    QCOW2_MAX_SNAPSHOTS = 65536,
    QCOW2_MAX_SNAPSHOT_BYTES = 64 << 20,

    QCOW2_SECTOR = 512,         /* what a disk writes whole or not at all */
    QCOW2_SLICE = 16384,        /* cached piece of an L2 table or refcount
                                   block; a cluster if that is smaller */
    QCOW2_KIND_L2 = 1, QCOW2_KIND_REFS = 2
};

/* incompatible, compatible and autoclear feature bits */
#define QCOW2_DIRTY             (UINT64_C(1) << 0)
#define QCOW2_CORRUPT           (UINT64_C(1) << 1)
#define QCOW2_DATA_FILE         (UINT64_C(1) << 2)
#define QCOW2_COMPRESSION       (UINT64_C(1) << 3)
#define QCOW2_EXTENDED_L2       (UINT64_C(1) << 4)
#define QCOW2_INCOMPAT_KNOWN    UINT64_C(0x1f)
#define QCOW2_LAZY_REFCOUNTS    (UINT64_C(1) << 0)
#define QCOW2_BITMAPS           (UINT64_C(1) << 0)
#define QCOW2_DATA_FILE_RAW     (UINT64_C(1) << 1)
#define QCOW2_AUTOCLEAR_KNOWN   UINT64_C(3)

/* header extensions */
#define QCOW2_EXT_END           0x00000000u
#define QCOW2_EXT_BACKING       0xe2792acau
#define QCOW2_EXT_FEATURES      0x6803f857u
#define QCOW2_EXT_BITMAPS       0x23852875u
#define QCOW2_EXT_LUKS          0x0537be77u
#define QCOW2_EXT_DATA_FILE     0x44415441u
/* Ours: identity of the backing file when the link was made ("vimg"). */
#define QCOW2_EXT_BASE_ID       0x76696d67u

/* table entries */
#define QCOW2_COPIED            (UINT64_C(1) << 63)
#define QCOW2_PACKED            (UINT64_C(1) << 62)
#define QCOW2_ZERO              (UINT64_C(1) << 0)
#define QCOW2_OFFSET_MASK       UINT64_C(0x00fffffffffffe00)

enum qcow2_compression { QCOW2_DEFLATE = 0, QCOW2_ZSTD = 1 };

struct qcow2_extension {        /* one that is kept as it is */
    uint32_t type, len;
    uint8_t *data;
};

/* The header in memory; header.c turns it into bytes and back. */
struct qcow2_header {
    uint32_t version;
    uint32_t cluster_bits;
    uint64_t size;
    uint32_t crypt_method;
    uint32_t l1_size;           /* entries */
    uint64_t l1_offset;
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint32_t n_snapshots;
    uint64_t snapshots_offset;
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order;
    uint32_t header_length;
    uint8_t compression;
    char *backing, *backing_format, *data_file;
    struct qcow2_extension *extensions;
    size_t n_extensions;
    uint8_t *more;              /* header fields beyond those known */
    size_t more_len;
    uint32_t n_bitmaps;         /* bitmaps extension */
    uint64_t bitmaps_size, bitmaps_offset;
};

struct qcow2_snapshot {
    char *id, *name;
    uint64_t l1_offset;
    uint32_t l1_size;
    uint64_t vm_state_size, disk_size, vm_clock_nsec, icount;
    uint32_t date_sec, date_nsec;
    bool has_size, has_icount;
    uint8_t *more;              /* extra data beyond the known fields */
    uint32_t more_len;
};

struct qcow2_range {            /* host bytes, cluster aligned */
    uint64_t off, len;
    bool discard;               /* the file may give the space back */
};
struct qcow2_ranges {
    struct qcow2_range *list;
    size_t n, room;
    uint64_t clusters;
};

struct qcow2_bitmaps;           /* bitmap.c */

extern const struct img_format img_qcow2;

struct qcow2 {
    struct img_layer *layer;
    struct img_file *file;      /* layer->files[0] */
    struct img_tcache *tables;
    bool discard;               /* IMG_OPEN_UNMAP */
    bool is_snapshot_view;
    bool lost;                  /* which of two tables the header names is not
                                   known: no more writes; atomic */

    /* shape, constant while requests are in flight */
    uint32_t cluster_bits, cluster_size;
    uint32_t l2_bits;           /* log2 of the entries of an L2 table */
    uint32_t entry_size;        /* 8, or 16 with subclusters */
    uint32_t slice_bits;        /* log2 of the bytes of a slice */
    uint32_t block_bits;        /* log2 of a subcluster, or a cluster */
    uint32_t refs_bits;         /* log2 of the refcounts in a block */
    uint64_t max_refcount;
    unsigned data;              /* files[] index of guest data */
    uint64_t data_end;          /* of an external data file, in whole sectors,
                                   when it was last looked at */

    struct img_mutex flush_lock;
    struct img_mutex lock;

    struct qcow2_header h;
    uint64_t *l1;               /* host order, with flags */
    uint64_t l1_dirty_from, l1_dirty_to;        /* entries */
    uint64_t *reftable;         /* host order; NULL and no entries: not
                                   read yet */
    uint64_t reftable_entries;
    uint64_t reftable_dirty_from, reftable_dirty_to;

    uint64_t hint;              /* no cluster below it is free */
    uint64_t end;               /* no byte from here on was ever used */
    bool zeros_beyond_end;      /* and they read as zeros */
    bool looked_for_holes, has_holes;   /* does guest data lie in holes of
                                   the file? */
    uint64_t packed_at;         /* where the next packed cluster may begin;
                                   0 = in a new cluster */
    struct qcow2_ranges frees;  /* references that may be dropped once the
                                   L2 tables are durable */

    struct qcow2_snapshot *snapshots;
    uint32_t n_snapshots;
    uint64_t snapshots_bytes;   /* of the table in the file, which others may
                                   have written with shorter entries */
    struct qcow2_bitmaps *bitmaps;
};

static inline struct qcow2 *img_qcow2_of(const struct img_layer *layer)
{
    return layer->state;
}

static inline bool img_qcow2_has_subclusters(const struct qcow2 *q)
{
    return q->entry_size == 16;
}

/* ---- header.c ---- */
/* head: the first cluster or as much of it as there is; file_size bounds what
 * it may point to. */
int img_qcow2_header_parse(const char *path, const uint8_t *head, size_t len,
                           uint64_t file_size, struct qcow2_header *h,
                           struct img_error *err);
/* Builds the header cluster (extensions, backing name) in buf, cluster_size
 * bytes.  old: the one that the image has now, or NULL; its backing name stays
 * readable.  EINVAL where it does not fit. */
int img_qcow2_header_build(const char *path, const struct qcow2_header *h,
                           const uint8_t *old, uint8_t *buf,
                           struct img_error *err);
/* Writes the header anew, by one write of one sector as far as a reader can
 * tell, unless others' extensions do not fit into that; durable.  After an
 * error it has the old values; where it is not known which it has, nothing
 * more is written to the image: whatever one of two tables said from then on
 * might be lost with it. */
int img_qcow2_header_write(struct qcow2 *q, struct img_error *err);
/* The same for len bytes, 32 at most, of the header's first sector. */
int img_qcow2_header_switch(struct qcow2 *q, const uint8_t *field, size_t len,
                            uint64_t at, struct img_error *err);
/* Sets or clears the dirty bit, durably. */
int img_qcow2_header_mark(struct qcow2 *q, bool dirty, struct img_error *err);
void img_qcow2_header_free(struct qcow2_header *h);
int img_qcow2_header_copy_text(char **to, const char *from,
                               struct img_error *err);
struct qcow2_extension *
img_qcow2_extension_find(const struct qcow2_header *h, uint32_t type);
/* Adds or replaces; len 0 removes. */
int img_qcow2_extension_set(struct qcow2_header *h, uint32_t type,
                            const void *data, uint32_t len,
                            struct img_error *err);

/* ---- create.c ---- */
/* The header of a new, empty image.  img_qcow2_header_free is due, on failure
 * too. */
int img_qcow2_header_new(struct img_build *b, struct qcow2_header *h,
                         bool *prealloc, struct img_error *err);

/* ---- identity.c ---- */
/* Notes what the base of h->backing is like; base NULL: nothing is known. */
int img_qcow2_identity_note(struct qcow2_header *h,
                            const struct img_layer *base,
                            struct img_error *err);

/* ---- open.c ---- */
/* What every hook returns through: corruption met on a writable image sets
 * its corrupt bit, so that nobody writes to it before it is repaired. */
int img_qcow2_result(struct qcow2 *q, int r);
/* Of an image that is only read the refcount table is read when it is first
 * asked for: a chain is opened for its data.  q->lock is held, or nobody else
 * has the layer. */
int img_qcow2_need_reftable(struct qcow2 *q, struct img_error *err);
/* Reads a table of be64 into host order. */
int img_qcow2_read_table(struct qcow2 *q, uint64_t off, uint64_t entries,
                         uint64_t **table, struct img_error *err);
int img_qcow2_write_table(struct qcow2 *q, uint64_t off,
                          const uint64_t *table, uint64_t entries,
                          struct img_error *err);
/* Sets shape fields from q->h. */
void img_qcow2_shape(struct qcow2 *q);
uint64_t img_qcow2_l1_needed(const struct qcow2 *q, uint64_t disk_size);
void img_qcow2_refresh_layer(struct qcow2 *q);
/* Sets data_end, of an external data file that is open. */
int img_qcow2_measure_data(struct qcow2 *q, struct img_error *err);

/* ---- entry.c ---- */
enum qcow2_kind { QCOW2_UNUSED, QCOW2_ZEROS, QCOW2_NORMAL, QCOW2_PACKED_RUN };
struct qcow2_entry {            /* of a whole cluster */
    enum qcow2_kind kind;       /* with subclusters: NORMAL if it has a host
                                   cluster, else UNUSED; see bitmap */
    bool has_host, copied;
    uint64_t host;              /* bytes; PACKED: not aligned */
    uint32_t packed_len;        /* PACKED: bytes to read at most */
    uint64_t raw, bitmap;
};
/* index: the guest cluster's number, for messages. */
int img_qcow2_entry_decode(struct qcow2 *q, const uint8_t *at, uint64_t index,
                           struct qcow2_entry *e, struct img_error *err);
/* The state of subcluster sub (0 where there are none). */
/* Where in the external data file the bytes end that the entry says are there:
 * QEMU and we write whole blocks, up to the disk's end.  0 = nothing is. */
uint64_t img_qcow2_entry_needs(const struct qcow2 *, uint64_t index,
                               const struct qcow2_entry *);
/* Fails where the data file is too short for that.  Under lock. */
int img_qcow2_entry_is_there(struct qcow2 *, uint64_t index,
                             const struct qcow2_entry *, struct img_error *);
enum qcow2_kind img_qcow2_entry_sub(const struct qcow2 *q,
                                    const struct qcow2_entry *e,
                                    unsigned sub);
void img_qcow2_entry_store(struct qcow2 *q, uint8_t *at, uint64_t raw,
                           uint64_t bitmap);
uint64_t img_qcow2_entry_packed(const struct qcow2 *q, uint64_t host,
                                uint32_t len);

/* ---- table.c: all with q->lock held ---- */
struct qcow2_cursor {           /* an L2 entry of a guest cluster, pinned */
    struct img_slice *slice;    /* NULL: there is no L2 table */
    uint32_t at;                /* byte offset of the entry in the slice */
    uint32_t left;              /* clusters from here to the slice's end */
    uint64_t cluster;           /* guest cluster number */
    uint64_t skip;              /* no table: clusters up to where the next
                                   one may be */
};
/* May drop and retake q->lock to read.  cached: -EAGAIN rather than read.
 * skip is counted only as far as want clusters. */
int img_qcow2_cursor_get(struct qcow2 *q, uint64_t off, uint64_t want,
                         bool cached, struct qcow2_cursor *c,
                         struct img_error *err);
/* The same, after making sure that there is a table which only the active
 * L1 refers to. */
int img_qcow2_cursor_get_writable(struct qcow2 *q, uint64_t off,
                                  struct qcow2_cursor *c,
                                  struct img_error *err);
void img_qcow2_cursor_put(struct qcow2 *q, struct qcow2_cursor *c);
static inline uint8_t *img_qcow2_cursor_entry(const struct qcow2 *q,
                                              const struct qcow2_cursor *c,
                                              uint32_t i)
{
    return c->slice->data + c->at + i * q->entry_size;
}
void img_qcow2_cursor_dirty(struct qcow2 *q, const struct qcow2_cursor *c,
                            uint32_t from, uint32_t n);
void img_qcow2_l1_set(struct qcow2 *q, uint64_t index, uint64_t entry);

/* ---- refs.c: all with q->lock held ---- */
/* Number index of a block whose refcounts have 2^order bits. */
static inline uint64_t img_qcow2_refs_load(const uint8_t *block,
                                           uint32_t order, uint64_t index)
{
    switch (order) {
    case 3: return block[index];
    case 4: return img_get_be16(block + index * 2);
    case 5: return img_get_be32(block + index * 4);
    case 6: return img_get_be64(block + index * 8);
    default: {
        unsigned bits = 1u << order, per_byte = 8 >> order;

        return block[index / per_byte] >> (index % per_byte * bits) &
               ((1u << bits) - 1);
    }
    }
}

static inline void img_qcow2_refs_store(uint8_t *block, uint32_t order,
                                        uint64_t index, uint64_t value)
{
    switch (order) {
    case 3: block[index] = (uint8_t)value; break;
    case 4: img_put_be16(block + index * 2, (uint16_t)value); break;
    case 5: img_put_be32(block + index * 4, (uint32_t)value); break;
    case 6: img_put_be64(block + index * 8, value); break;
    default: {
        unsigned bits = 1u << order, per_byte = 8 >> order;
        unsigned shift = (unsigned)(index % per_byte) * bits;
        unsigned mask = ((1u << bits) - 1) << shift;
        uint8_t *p = &block[index / per_byte];

        *p = (uint8_t)((*p & ~mask) | ((unsigned)value << shift));
    }
    }
}

/* 0 where there is no refcount block. */
int img_qcow2_refs_get(struct qcow2 *q, uint64_t cluster, uint64_t *count,
                       struct img_error *err);
/* Of clusters in a row, 1 to max of them. */
int img_qcow2_refs_get_row(struct qcow2 *q, uint64_t cluster, uint64_t max,
                           uint64_t *counts, uint64_t *n,
                           struct img_error *err);
/* Adds delta, 1 or -1, to n clusters that have a block. */
int img_qcow2_refs_add(struct qcow2 *q, uint64_t cluster, uint64_t n,
                       int64_t delta, struct img_error *err);
/* The first free cluster at or after from, and how many follow it without a
 * gap, at most max.  Makes refcount blocks as it goes, growing the table if
 * need be. */
int img_qcow2_refs_find_free(struct qcow2 *q, uint64_t from, uint64_t max,
                             uint64_t *first, uint64_t *n,
                             struct img_error *err);
/* Places n free clusters in a row at or after from, with refcount blocks for
 * all of them before the row; nothing is counted yet. */
int img_qcow2_refs_place_row(struct qcow2 *q, uint64_t from, uint64_t n,
                             uint64_t *first, struct img_error *err);

/* ---- alloc.c: all with q->lock held ---- */
/* 1 to n clusters in a row, refcount 1.  zeroed: they read as zeros. */
int img_qcow2_take(struct qcow2 *q, uint64_t n, uint64_t *host, uint64_t *got,
                   bool *zeroed, struct img_error *err);
/* Host bytes come into use; returns whether they read as zeros. */
bool img_qcow2_claim(struct qcow2 *q, uint64_t host, uint64_t len);
/* Slices of zeros for a new table at host, where zeroed says whether the
 * file reads so already. */
int img_qcow2_clear_table(struct qcow2 *q, uint64_t host, uint32_t kind,
                          bool zeroed, struct img_error *err);
/* Does a range that is to be used overlap what must never be? */
int img_qcow2_check_free(struct qcow2 *q, uint64_t host, uint64_t len,
                         struct img_error *err);
/* Exactly n in a row. */
int img_qcow2_take_row(struct qcow2 *q, uint64_t n, uint64_t *host,
                       struct img_error *err);
/* A cluster of zeros for a table. */
int img_qcow2_take_table(struct qcow2 *q, uint64_t *host,
                         struct img_error *err);
/* Room for a packed cluster of len bytes. */
int img_qcow2_take_bytes(struct qcow2 *q, uint32_t len, uint64_t *host,
                         struct img_error *err);
/* Drops references at once; for what nothing on the disk refers to. */
int img_qcow2_give_back(struct qcow2 *q, uint64_t host, uint64_t len,
                        struct img_error *err);
/* Makes room for n calls of free_later, which then cannot fail. */
int img_qcow2_frees_room(struct qcow2 *q, size_t n, struct img_error *err);
/* Drops references once the L2 tables are durable. */
int img_qcow2_free_later(struct qcow2 *q, uint64_t host, uint64_t len,
                         bool discard, struct img_error *err);
/* Drops what an entry refers to, later. */
int img_qcow2_entry_free(struct qcow2 *q, const struct qcow2_entry *e,
                         bool discard, struct img_error *err);

/* ---- sync.c: without q->lock ---- */
int img_qcow2_write_back(struct qcow2 *q, bool durable,
                         struct img_error *err);
/* Writes back until nothing is left, freed clusters included. */
int img_qcow2_settle(struct qcow2 *q, struct img_error *err);
/* Writes back if the cache says it is full. */
int img_qcow2_relieve(struct qcow2 *q, struct img_error *err);

/* ---- prealloc.c ---- */
/* Gives every cluster of the guest range that has no place one; its content
 * stays what it was, with metadata: zeros.  Without q->lock. */
int img_qcow2_preallocate(struct qcow2 *q, uint64_t off, uint64_t len,
                          enum img_prealloc prealloc, struct img_error *err);

/* ---- downgrade.c ---- */
int img_qcow2_lower_version(struct qcow2 *q, const struct img_job *job,
                            struct img_error *err);

/* ---- the format's hooks ---- */
bool img_qcow2_may_be_sparse(struct img_layer *);
void img_qcow2_passed(struct img_layer *, uint64_t off, uint64_t len);
int img_qcow2_map(struct img_layer *, uint64_t off, uint64_t len,
                  unsigned flags, struct img_run *, struct img_error *);
int img_qcow2_reserve(struct img_layer *, const struct img_want *,
                      struct img_place *, struct img_error *);
int img_qcow2_publish(struct img_layer *, const struct img_place *,
                      struct img_error *);
void img_qcow2_abandon(struct img_layer *, const struct img_place *);
int img_qcow2_unmap(struct img_layer *, uint64_t off, uint64_t len,
                    enum img_unmap, uint64_t *done, struct img_error *);
int img_qcow2_sync(struct img_layer *, struct img_error *);
int img_qcow2_touch(struct img_layer *, uint64_t off, uint64_t len,
                    struct img_error *);
int img_qcow2_create(struct img_build *, struct img_error *);
int img_qcow2_defaults(const struct img_create_options *,
                       struct img_strings *, struct img_error *);
int img_qcow2_measure(const struct img_create_options *, uint64_t size,
                      uint64_t data_clusters_of(void *, uint32_t),
                      void *, struct img_measure *, struct img_error *);
int img_qcow2_grow(struct img_layer *, uint64_t size, struct img_error *);
int img_qcow2_vm_state(struct img_layer *, uint64_t len, uint64_t *start,
                       struct img_error *);
int img_qcow2_resize(struct img_layer *, uint64_t size, enum img_prealloc,
                     struct img_error *);
int img_qcow2_set_backing(struct img_layer *, const char *name,
                          const char *fmt, const struct img_layer *base,
                          struct img_error *);
int img_qcow2_check_base(struct img_layer *, const struct img_layer *base,
                         struct img_error *);
bool img_qcow2_noted_base(const struct img_layer *, uint64_t *length,
                          uint64_t *modified);
void img_qcow2_fingerprint(const struct img_layer *, uint64_t *content,
                           uint64_t *rest);
int img_qcow2_amend(struct img_layer *, const char *const *settings,
                    const struct img_job *, struct img_error *);
int img_qcow2_check(struct img_layer *, const struct img_check_options *,
                    const struct img_job *, struct img_check_result *,
                    struct img_error *);
int img_qcow2_describe(struct img_layer *, struct img_info *,
                       struct img_error *);
extern const struct img_snapshot_ops img_qcow2_snapshot_ops;
extern const struct img_bitmap_ops img_qcow2_bitmap_ops;
extern const struct img_sink_ops img_qcow2_sink;
extern const struct img_option_info img_qcow2_options[];

/* ---- snapshot.c ---- */
int img_qcow2_snapshots_load(struct qcow2 *q, struct img_error *err);
void img_qcow2_snapshots_free(struct qcow2 *q);
const struct qcow2_snapshot *img_qcow2_snapshot_find(const struct qcow2 *q,
                                                     const char *name);
/* ---- bitmap.c ---- */
int img_qcow2_bitmaps_load(struct qcow2 *q, struct img_error *err);
/* Guest bytes are about to change. */
int img_qcow2_bitmaps_touch(struct qcow2 *q, uint64_t off, uint64_t len,
                            struct img_error *err);
/* Saves what was recorded; before the layer closes. */
int img_qcow2_bitmaps_save(struct qcow2 *q, struct img_error *err);
void img_qcow2_bitmaps_free(struct qcow2 *q);
int img_qcow2_bitmaps_describe(struct qcow2 *q, struct img_info *info,
                               struct img_error *err);
/* The guest's disk may have another size soon: from here on there are bits
 * for the longer of the two. */
int img_qcow2_bitmaps_grow(struct qcow2 *q, uint64_t size,
                           struct img_error *err);
/* It has the size that the header says, whatever was tried. */
void img_qcow2_bitmaps_fit(struct qcow2 *q);
/* Every host range that bitmaps use: check.c counts references with it. */
int img_qcow2_bitmaps_visit(struct qcow2 *q,
                            int visit(void *, uint64_t off, uint64_t len),
                            void *opaque, struct img_error *err);
#endif
