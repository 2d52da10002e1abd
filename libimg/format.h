/* What the library asks of an image format.
 *
 * A format answers where guest bytes are (map) and where they may go
 * (reserve, publish).  It never reads or writes guest data, never sees the
 * layer below it and never splits a request: core/io does all that, once.
 *
 * Locks.  Core calls map from any number of threads.  reserve with fresh
 * places, publish, abandon and unmap for one guest range come only from the
 * holder of that range's exclusive lock (core/range), but from many threads
 * for different ranges; formats guard their tables themselves.  resize,
 * set_backing, amend, check, snapshot and bitmap calls come alone, with no
 * request in flight.
 */
#ifndef IMG_FORMAT_H
#define IMG_FORMAT_H
#include "libimg.h"

struct img_file;
struct img_tcache;
struct img_strings;             /* base/strings.h */
struct img_runs;                /* base/runs.h */

struct img_layer {
    const struct img_format *format;
    const char *path;           /* for messages and neighbours */
    struct img_file **files;    /* [0] is the image itself; NULL = not open */
    unsigned n_files;
    uint64_t size;              /* guest bytes */
    uint32_t cluster_bits;      /* allocation unit; also what one PACKED run
                                   inflates to */
    uint32_t block;             /* unit of fills and zeros: a subcluster, or
                                   the cluster; bytes */
    bool writable;
    bool repair;                /* IMG_OPEN_REPAIR: open what can be opened */
    bool guessed;               /* raw for want of anything better: what is
                                   written must not make that untrue */
    bool in_vm_state;           /* size reaches behind the disk's end, and
                                   what changes there is not the guest's */
    bool broken;                /* corruption was met: no more writes */
    char *backing;              /* as recorded, malloc'ed; NULL = none */
    char *backing_format;       /* as recorded, malloc'ed; NULL = not said */
    struct img_tcache *tables;  /* the disk's cache of metadata */
    void *state;                /* the format's own */

    /* Set by core before open.  Opens another file that the image names, by
     * the policy of whoever opened the disk; the layer owns it if it stores
     * it in files[]. */
    int (*open_file)(struct img_layer *, const char *name, bool writable,
                     struct img_file **, struct img_error *);
    /* Changing the files that the image is made of, by the same policy; from
     * resize, amend and set_backing alone.  -ENOTSUP where the image did not
     * come by its name.  make_file: empty, writable, without its name until
     * replace.  It is the hooks' until then.  -EEXIST: something has that
     * name. */
    int (*make_file)(struct img_layer *, const char *name, struct img_file **,
                     struct img_error *);
    /* What make_file made gets its name and goes behind the others in
     * files[]; then files[0] becomes a file of these bytes, all of it
     * durable.  A crash leaves the old image or the new one.  *done: that has
     * happened, whatever the result (it may not be durable then); else what
     * was made is gone and all is as it was.  -ENOTSUP: files[0] has to stay
     * the file it is. */
    int (*replace)(struct img_layer *, const void *buf, size_t len,
                   bool *done, struct img_error *);
    void (*unmake_files)(struct img_layer *);
    /* Closes the last of files[]; remove: and takes its name away. */
    void (*drop_file)(struct img_layer *, bool remove);
    /* Says one line to whoever opened the disk. */
    void (*warn)(struct img_layer *, const char *fmt, ...)
        __attribute__((format(printf, 2, 3)));
    void *core;                 /* core's own */
};

/* Not for users of the library: an open flag for what create has just made
 * and nobody has seen yet.  IDs that change with the content stay as given. */
enum { IMG_OPEN_NEW = 1 << 30 };

/* Answer of map: one run of guest bytes with one answer. */
enum img_codec {
    IMG_CODEC_DEFLATE,          /* raw deflate, qcow and qcow2 */
    IMG_CODEC_ZLIB,             /* with zlib header, VMDK grains */
    IMG_CODEC_ZSTD
};
enum img_run_kind {
    IMG_RUN_ABSENT,             /* ask the layer below */
    IMG_RUN_ZERO,
    IMG_RUN_DATA,
    IMG_RUN_PACKED
};
struct img_run {
    uint64_t off, len;
    enum img_run_kind kind;
    unsigned file;
    bool sparse;                /* ZERO, asked EXACT: is data, in a hole of
                                   the file */
    uint64_t host;              /* DATA: of byte off.  ZERO: of the place it
                                   keeps, or ~0.  PACKED: of the packed
                                   cluster that holds off */
    uint32_t host_max;          /* PACKED: at most this many bytes; the codec
                                   knows where its own data ends */
    enum img_codec codec;       /* PACKED; len then ends with the cluster */
    uint32_t unpacked_min;      /* PACKED: the content may end after so many
                                   bytes, zeros follow (QEMU packs the last
                                   grain of a VMDK short); 0 = it is whole */
};
enum {
    IMG_RUN_EXACT = 1,          /* ask the file system for holes too */
    IMG_RUN_CACHED = 2,         /* -EAGAIN rather than read metadata */
    IMG_RUN_PLACES = 4          /* host of ABSENT: the place that waits for
                                   it, or ~0; else it says nothing */
};

/* Question and answer of reserve: where the next bytes of a write go. */
struct img_want {
    uint64_t off, len;
    bool in_place;              /* only where bytes already live: len 0 = no */
    uint32_t packed;            /* > 0: room for one packed cluster of so many
                                   bytes; off is cluster aligned */
};
struct img_place {
    uint64_t off, len;          /* guest run served by this place, from
                                   want.off on; at least 1 unless in_place */
    unsigned file;
    uint64_t host;              /* where byte off goes */
    bool fresh;                 /* not visible yet: fill, write, publish */
    bool zeroed;                /* fresh: what is there reads as zeros already,
                                   so a fill of zeros need not be written */
    uint64_t fill_off, fill_len;/* fresh: guest range that must be complete,
                                   block aligned (or ends with the disk).
                                   fill_off's place is host - (off -
                                   fill_off) */
    uint32_t packed;            /* as wanted */
    uint64_t token;             /* the format's own */
};

/* unmap: what the range, block aligned or ending with the disk, becomes. */
enum img_unmap {
    IMG_UNMAP_ZERO,             /* zeros; may give its place back */
    IMG_UNMAP_ZERO_OWN,         /* the same, and zeros they stay when a backing
                                   file comes to lie below */
    IMG_UNMAP_ZERO_KEEP,        /* zeros; keeps its place where it has one */
    IMG_UNMAP_DISCARD,          /* zeros, or as it was; gives its place back */
    IMG_UNMAP_DROP              /* ABSENT: what is below shows through */
};

/* A new image in the making. */
struct img_build {
    const struct img_create_options *opts;  /* format, disk_size and
                                   backing_format are filled in */
    const char *path;           /* where it will appear */
    struct img_file *file;      /* empty; a device may hold old bytes */
    const struct img_layer *backing;    /* opened read-only; NULL = none, or
                                   not to be opened */
    /* Makes one more file beside the image, e.g. an extent.  It appears
     * together with the image.  Owned by the build. */
    int (*add_file)(struct img_build *, const char *name, struct img_file **,
                    struct img_error *);
    /* Opens a file that must be there already, to be read; owned likewise. */
    int (*open_file)(struct img_build *, const char *name,
                     struct img_file **, struct img_error *);
    void *core;
};

struct img_snapshot_ops {
    int (*create)(struct img_layer *, const char *name, struct img_error *);
    int (*apply)(struct img_layer *, const char *name, struct img_error *);
    int (*remove)(struct img_layer *, const char *name, struct img_error *);
};

struct img_bitmap_ops {
    int (*edit)(struct img_layer *, const char *name, enum img_bitmap_verb,
                uint32_t granularity, struct img_error *);
    /* One run of equal bits; dirty is the answer. */
    int (*map)(struct img_layer *, const char *name, uint64_t off,
               uint64_t len, uint64_t *run, bool *dirty, struct img_error *);
    /* Sets all bits that touch the range. */
    int (*mark)(struct img_layer *, const char *name, uint64_t off,
                uint64_t len, struct img_error *);
};

/* What a cluster of a new image is to be. */
enum img_content {
    IMG_CONTENT_NONE,           /* what lies below shows it already, or it
                                   reads as zeros with nothing below */
    IMG_CONTENT_ZEROS,
    IMG_CONTENT_DATA
};

/* Images that can only be written from front to back, to a file or a pipe.
 * Calls come one after the other, in guest order; put writes data or keeps
 * it for later, as the format needs. */
struct img_sink;
struct img_sink_ops {
    /* write is called with consecutive bytes of the output.  -ENOTSUP: the
     * options ask for an image that is created and then written in place. */
    int (*begin)(struct img_build *,
                 int (*write)(void *opaque, const void *buf, size_t len,
                              struct img_error *), void *opaque,
                 struct img_sink **, struct img_error *);
    /* For formats that have their tables in front: called before the first
     * put, with what each cluster will be (enum img_content), which then is
     * put, all of it and in this order.  NULL = needs no plan. */
    int (*plan)(struct img_sink *, const struct img_runs *,
                struct img_error *);
    /* packed: data is one packed cluster, else plain cluster content: of one
     * cluster, or with a plan of any number of them; NULL = zeros. */
    int (*put)(struct img_sink *, uint64_t off, const void *data, size_t len,
               bool packed, struct img_error *);
    int (*finish)(struct img_sink *, struct img_error *);
    void (*free)(struct img_sink *);
    enum img_codec codec;       /* of packed clusters; with a plan there are
                                   none */
    uint32_t (*cluster_size)(const struct img_sink *);
    /* Do these settings ask for an image that only the sink can write, to a
     * file too?  NULL = begin tells. */
    bool (*needed)(const struct img_create_options *);
};

struct img_format {
    struct img_format_info info;

    /* How sure, 0 to 100, given the first bytes of the file (at least 4 KiB
     * unless it is shorter). */
    int (*probe)(const uint8_t *head, size_t len, const char *path);

    /* The name of the backing file, as recorded, by the first bytes of an
     * image of this format alone: *name is malloc'ed, NULL = there is none.
     * -EAGAIN: they do not tell.  NULL = they never do. */
    int (*peek)(const uint8_t *head, size_t len, char **name);

    /* layer: path, files[0], writable, tables and the hooks are set.  Sets
     * size, cluster_bits, block, backing, backing_format, state, and adds
     * files.  close is called after a failed open too (state may be NULL);
     * core frees the layer's own fields and files. */
    int (*open)(struct img_layer *, const struct img_open_options *,
                struct img_error *);
    void (*close)(struct img_layer *);
    /* Before a writable layer is closed: writes back what sync may leave for
     * later.  NULL = sync. */
    int (*finish)(struct img_layer *, struct img_error *);
    /* The layer below is open too: is it the one this image was made over?
     * Called once after open, before any map; NULL = any will do.  What the
     * opener gave instead of what the image names is looked at only where
     * checks_given is set. */
    int (*check_base)(struct img_layer *, const struct img_layer *base,
                      struct img_error *);
    bool checks_given;
    /* What the image notes of the backing file's first file; false = nothing.
     * modified: ns since 1970, 0 = not known.  May be NULL. */
    bool (*noted_base)(const struct img_layer *, uint64_t *length,
                       uint64_t *modified);
    int (*create)(struct img_build *, struct img_error *);
    /* Which codec -c uses in this image, and whether it has one at all.
     * NULL = -ENOTSUP. */
    int (*codec)(struct img_layer *, enum img_codec *, struct img_error *);

    /* Reading.  The only thing a read-only format has to have.  off + len is
     * within size. */
    int (*map)(struct img_layer *, uint64_t off, uint64_t len, unsigned flags,
               struct img_run *, struct img_error *);

    /* Writing: reserve, core writes the data, publish or abandon.  reserve
     * makes all allocations, tables included, so that the layout follows
     * from the order of the reserve calls alone; publish makes the place
     * visible to map. */
    int (*reserve)(struct img_layer *, const struct img_want *,
                   struct img_place *, struct img_error *);
    int (*publish)(struct img_layer *, const struct img_place *,
                   struct img_error *);
    void (*abandon)(struct img_layer *, const struct img_place *);
    /* May stop early: *done says how far it came (at least one block).
     * -ENOTSUP: write zeros instead. */
    int (*unmap)(struct img_layer *, uint64_t off, uint64_t len,
                 enum img_unmap, uint64_t *done, struct img_error *);
    /* Metadata and data durable, in the order that keeps every crash
     * leak-only. */
    int (*sync)(struct img_layer *, struct img_error *);
    /* Called before guest bytes change in any way (bitmaps, CIDs).  NULL =
     * does not care. */
    int (*touch)(struct img_layer *, uint64_t off, uint64_t len,
                 struct img_error *);

    bool tells_places;          /* map heeds IMG_RUN_PLACES */
    /* A walk has come past this range; the tables whose part of the disk ends
     * there are hardly wanted again.  NULL = has none, or keeps them. */
    void (*passed)(struct img_layer *, uint64_t off, uint64_t len);
    /* Asked EXACT: may what map says is data be a hole of the file?  Then
     * whoever asks looks there.  NULL = map itself looks. */
    bool (*may_be_sparse)(struct img_layer *);

    /* Whole image.  grow: tables for a larger disk; layer->size is the new
     * one from then on, but the file still says the old one, so that what the
     * disk gains can be cleared before anybody sees it.  resize follows, or
     * the caller sets the old size again.  NULL: resize does it all. */
    int (*grow)(struct img_layer *, uint64_t size, struct img_error *);
    /* The guest offset at which the state of a virtual machine begins, behind
     * the disk's end; with tables for len bytes of it (0 = read only).  NULL =
     * there is no such thing. */
    int (*vm_state)(struct img_layer *, uint64_t len, uint64_t *start,
                    struct img_error *);
    /* clear_tail: resize takes any size, and what shrinking leaves of the
     * last cluster has to be zeros, since others make the disk longer without
     * looking at it. */
    bool clear_tail;
    int (*resize)(struct img_layer *, uint64_t size, enum img_prealloc,
                  struct img_error *);
    /* base: the new backing file, opened; NULL = not opened or none. */
    int (*set_backing)(struct img_layer *, const char *name, const char *fmt,
                       const struct img_layer *base, struct img_error *);
    int (*amend)(struct img_layer *, const char *const *settings,
                 const struct img_job *, struct img_error *);
    int (*check)(struct img_layer *, const struct img_check_options *,
                 const struct img_job *, struct img_check_result *,
                 struct img_error *);
    int (*measure)(const struct img_create_options *, uint64_t size,
                   uint64_t data_clusters_of(void *opaque,
                                             uint32_t cluster_size),
                   void *opaque, struct img_measure *, struct img_error *);
    /* Of a backing file: changes *content with what tells its content from
     * another's by metadata in memory alone, *rest with what else may make
     * its files longer or shorter (see qcow2/identity.c).  NULL = nothing. */
    void (*fingerprint)(const struct img_layer *, uint64_t *content,
                        uint64_t *rest);
    /* Fills specific, snapshots, bitmaps, flags and cluster_size; everything
     * with base/info's helpers. */
    int (*describe)(struct img_layer *, struct img_info *,
                    struct img_error *);
    /* The settings create would use, appended in qemu-img's order. */
    int (*defaults)(const struct img_create_options *, struct img_strings *,
                    struct img_error *);

    const struct img_snapshot_ops *snapshots;   /* NULL = none */
    const struct img_bitmap_ops *bitmaps;
    const struct img_sink_ops *sink;
};

/* formats.c */
extern const struct img_format *const img_formats[];    /* ends with NULL */
const struct img_format *img_format_find(const char *name);
#endif
