/* VMDK: what the files of this folder share.
 *
 * The layouts are those of VMware's "Virtual Disk Format 5.0" technical note:
 * a text descriptor, alone or embedded, names extents; sparse extents find
 * their grains through a grain directory and grain tables.  seSparse is not
 * in that note; its layout is what QEMU's documentation of the read-only
 * support says.
 *
 * Locks: vmdk_state.lock protects grain directories, the bytes of grain
 * tables and the allocators; no I/O is done while it is held, but for the
 * growing of a file.  sync_lock protects the descriptor, lets one write-back
 * run at a time and is taken first.
 */
#ifndef IMG_VMDK_VMDK_H
#define IMG_VMDK_VMDK_H
#include "base/bytes.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/sync.h"
#include "file/file.h"
#include "format.h"

enum {
    VMDK_SECTOR = 512,
    VMDK_TEXT_MAX = 1 << 20,        /* bytes of a descriptor */
    VMDK_TEXT_SECTORS = 20          /* room for an embedded one */
};
#define VMDK_DIRECTORY_MAX (UINT64_C(128) << 20)    /* bytes, all extents */
#define VMDK_SIZE_MAX (UINT64_C(1) << 62)           /* guest bytes */
#define VMDK_NO_PARENT UINT32_MAX                   /* parentCID of a base */
#define VMDK_SPLIT (UINT64_C(1) << 31)      /* an extent of twoGbMaxExtent... */

/* ---- descriptor.c: text -> struct and back; knows nothing of files ------ */

enum vmdk_access { VMDK_RW, VMDK_RDONLY, VMDK_NOACCESS };
enum vmdk_type {
    VMDK_TYPE_FLAT, VMDK_TYPE_SPARSE, VMDK_TYPE_ZERO, VMDK_TYPE_VMFS,
    VMDK_TYPE_VMFSSPARSE, VMDK_TYPE_SESPARSE, VMDK_TYPE_VMFSRDM,
    VMDK_TYPE_VMFSRAW
};

struct vmdk_extent_line {
    enum vmdk_access access;
    enum vmdk_type type;
    uint64_t sectors, offset;       /* offset: in sectors, FLAT and VMFS */
    char *name;                     /* NULL for ZERO */
    size_t line;
};

/* A descriptor, line by line as it was, so that what nobody asked to change
 * goes back as it came. */
struct vmdk_text {
    char **lines;                   /* each with its line end */
    size_t n_lines;
    struct vmdk_extent_line *extents;
    size_t n_extents;
};

int img_vmdk_text_parse(const char *path, const void *buf, size_t len,
                        struct vmdk_text **text, struct img_error *err);
void img_vmdk_text_free(struct vmdk_text *text);
/* Where the line has the value of a key, without quotes; NULL = the key is
 * not there.  Keys have no case. */
const char *img_vmdk_text_look(const struct vmdk_text *text, const char *key,
                               size_t *len);
/* The same, malloc'ed; *value is NULL where the key is not there. */
int img_vmdk_text_get(const struct vmdk_text *text, const char *key,
                      char **value, struct img_error *err);
/* Up to 8 hexadecimal digits and nothing else; a line may go on behind len. */
bool img_vmdk_id(const char *text, size_t len, uint32_t *id);
/* False where it is not there or no number. */
bool img_vmdk_text_get_id(const struct vmdk_text *text, const char *key,
                          uint32_t *id);
/* NULL value = remove the key. */
int img_vmdk_text_set(struct vmdk_text *text, const char *key,
                      const char *value, struct img_error *err);
/* With as many digits as it has now, where they are enough. */
int img_vmdk_text_set_id(struct vmdk_text *text, const char *key, uint32_t id,
                         struct img_error *err);
/* entry: NAME=VALUE of the disk data base; an empty value removes it. */
int img_vmdk_text_set_ddb(struct vmdk_text *text, const char *entry,
                          struct img_error *err);
int img_vmdk_text_set_extent(struct vmdk_text *text, size_t extent,
                             uint64_t sectors, struct img_error *err);
/* Behind the others; name stays the caller's. */
int img_vmdk_text_add_extent(struct vmdk_text *text, enum vmdk_type type,
                             uint64_t sectors, const char *name,
                             struct img_error *err);
/* Only the first n extents stay. */
void img_vmdk_text_keep_extents(struct vmdk_text *text, size_t n);
int img_vmdk_text_copy(const struct vmdk_text *text, struct vmdk_text **copy,
                       struct img_error *err);
/* malloc'ed, with a 0 behind it that *len does not count. */
char *img_vmdk_text_print(const struct vmdk_text *text, size_t *len);
const char *img_vmdk_type_name(enum vmdk_type type);
bool img_vmdk_looks_like_text(const uint8_t *head, size_t len);

/* ---- header.c: the headers of sparse extents ---------------------------- */

enum {
    VMDK_MAGIC = 0x564d444b,        /* "KDMV" in the file */
    VMDK_COWD_MAGIC = 0x44574f43    /* "COWD" */
};
enum {
    VMDK_FLAG_NEWLINES = 1, VMDK_FLAG_REDUNDANT = 2, VMDK_FLAG_ZERO_GRAIN = 4,
    VMDK_FLAG_COMPRESSED = 1 << 16, VMDK_FLAG_MARKERS = 1 << 17
};
#define VMDK_GD_AT_END UINT64_MAX
enum { VMDK_MARK_EOS, VMDK_MARK_GT, VMDK_MARK_GD, VMDK_MARK_FOOTER };
enum { VMDK_GRAIN_MARKER = 12 };    /* bytes before a packed grain */

enum vmdk_kind { VMDK_FLAT, VMDK_ZERO, VMDK_SPARSE, VMDK_COWD, VMDK_SE };

struct vmdk_header {
    enum vmdk_kind kind;
    uint32_t version, flags;
    uint64_t capacity, grain;       /* sectors */
    uint32_t gt_entries;
    uint64_t text_off, text_len;    /* sectors */
    uint64_t gd_off, rgd_off;       /* sectors; rgd 0 = none */
    uint64_t overhead;              /* sectors */
    bool unclean, compressed;
    bool footer;                    /* it is the footer that counts */
    uint64_t gd_max;                /* COWD, SE: entries there are */
    uint64_t free_sector;           /* COWD */
    uint64_t tables_off, grains_off;/* SE: sectors */
};

/* What kind of sparse extent head begins, if any. */
bool img_vmdk_is_sparse(const uint8_t *head, size_t len,
                        enum vmdk_kind *kind);
/* Reads and checks the header, the footer where the header refers to it.
 * lenient: a stream's footer may be lost; gd_off then stays GD_AT_END. */
int img_vmdk_header_read(struct img_file *file, uint64_t file_len,
                         bool lenient, struct vmdk_header *h,
                         struct img_error *err);
/* 512 bytes of a hosted sparse header, or of its footer. */
void img_vmdk_header_put(uint8_t *to, const struct vmdk_header *h);

/* ---- an open image ------------------------------------------------------ */

struct vmdk_list {                  /* host offsets of single grains */
    uint64_t *list;
    size_t n, room;
};

struct vmdk_run {
    uint64_t off, len;              /* bytes */
};

struct vmdk_runs {
    struct vmdk_run *list;
    size_t n, room;
};

struct vmdk_sparse {
    struct vmdk_header h;
    struct img_file *file;
    unsigned grain_bits, gt_bits;   /* bytes of a grain; entries of a table */
    unsigned entry;                 /* bytes of a table entry: 4 or 8 */
    uint32_t gt_len;                /* bytes of a table */
    bool markers, zero_grain;
    uint64_t gd_off, rgd_off;       /* bytes; rgd 0 = none in use */
    uint32_t *gd, *rgd;             /* sectors; SE: number of table + 1 */
    size_t n_gd;
    uint64_t file_len;              /* nobody writes beyond it */
    uint64_t next;                  /* bytes: the next fresh place */
    struct vmdk_list freed;         /* still on disk until the next sync: */
    uint64_t freed_from, freed_to;  /* of guest grains in this range */
    struct vmdk_runs free;          /* may be used again */
    bool rgd_broken;                /* there should be one */
    bool gd_broken;                 /* gd is the redundant copy, rgd is not
                                       there */
    bool lost;                      /* packed: no directory can be found; only
                                       for img_vmdk_rebuild */
    size_t gd_from, gd_to;          /* entries not on disk yet: [from, to) */
};

struct vmdk_extent {
    enum vmdk_kind kind;
    enum vmdk_access access;        /* an embedded descriptor's line means
                                       nothing: RW */
    uint64_t start, len;            /* guest bytes */
    unsigned file;                  /* of the layer; not for ZERO */
    uint64_t host;                  /* FLAT: bytes */
    struct vmdk_sparse *sparse;     /* NULL for FLAT and ZERO */
    size_t line;                    /* index into text->extents, or ~0 */
};

struct vmdk_state {
    struct img_rwlock lock;
    struct img_mutex sync_lock;
    struct vmdk_text *text;         /* NULL = none (a bare extent) */
    uint64_t text_off, text_room;   /* embedded: bytes; room 0 = files[0] is
                                       the descriptor and nothing else */
    struct vmdk_extent *extents;
    size_t n_extents;
    uint64_t directory_bytes;
    uint32_t cid, parent_cid;
    bool given_below;               /* the opener put a layer below it */
    bool free_names;                /* names are not looked at here: the
                                       opener does it, or trusts them */
    bool free_devices;              /* extents may be devices */
    bool closed;                    /* extents stay closed: they are only
                                       described */
    bool touched;                   /* under sync_lock */
};

enum {                              /* of cached slices */
    VMDK_KIND_GT = 1, VMDK_KIND_RGT = 2, VMDK_KIND_MARKER = 3
};

/* open.c */
int img_vmdk_probe(const uint8_t *head, size_t len, const char *path);
int img_vmdk_open(struct img_layer *layer,
                  const struct img_open_options *opts, struct img_error *err);
void img_vmdk_close(struct img_layer *layer);
/* A name that can only mean a file in the descriptor's folder or below it. */
bool img_vmdk_name_stays(const char *name);
bool img_vmdk_same_file(const struct img_file *a, const struct img_file *b);
int img_vmdk_check_base(struct img_layer *layer, const struct img_layer *base,
                        struct img_error *err);

/* directory.c: grain directories and tables */
int img_vmdk_sparse_open(struct img_layer *layer, struct img_file *file,
                         struct vmdk_sparse **sparse, struct img_error *err);
void img_vmdk_sparse_free(struct vmdk_sparse *s);
/* Byte where table g is; 0 = there is none.  Called with the lock held. */
uint64_t img_vmdk_table_off(const struct vmdk_sparse *s, const uint32_t *gd,
                            size_t g);
/* The tables that another one of this directory overlaps, malloc'ed and in
 * order; NULL = none. */
int img_vmdk_tables_shared(const struct vmdk_sparse *s, const uint32_t *gd,
                           uint32_t **shared, size_t *n,
                           struct img_error *err);
bool img_vmdk_is_shared(const uint32_t *shared, size_t n, uint32_t table);
/* The length of a device tells nothing: finds s->next, and what is free below
 * it, from the tables. */
int img_vmdk_find_end(struct img_layer *layer, struct vmdk_sparse *s,
                      struct img_error *err);
struct img_slice;
int img_vmdk_table_get(struct img_layer *layer, struct vmdk_sparse *s,
                       size_t g, bool second, struct img_slice **slice,
                       struct img_error *err);

/* sparse.c */
enum vmdk_grain_kind {
    VMDK_GRAIN_ABSENT, VMDK_GRAIN_ZERO, VMDK_GRAIN_DATA, VMDK_GRAIN_BAD
};
/* What entry i of a table says; DATA: *host in bytes. */
enum vmdk_grain_kind img_vmdk_grain(const struct vmdk_sparse *s,
                                    const uint8_t *table, uint32_t i,
                                    uint64_t *host);
struct vmdk_extent *img_vmdk_find(const struct vmdk_state *st, uint64_t off);
int img_vmdk_map(struct img_layer *layer, uint64_t off, uint64_t len,
                 unsigned flags, struct img_run *run, struct img_error *err);
/* Does [host, host + len) lie in the file, as long as it is now? */
bool img_vmdk_in_file(struct img_layer *layer, struct vmdk_sparse *s,
                      uint64_t host, uint64_t len);
bool img_vmdk_has_below(const struct img_layer *layer);

/* write.c */
int img_vmdk_codec(struct img_layer *layer, enum img_codec *codec,
                   struct img_error *err);
int img_vmdk_reserve(struct img_layer *layer, const struct img_want *want,
                     struct img_place *place, struct img_error *err);
int img_vmdk_publish(struct img_layer *layer, const struct img_place *place,
                     struct img_error *err);
void img_vmdk_abandon(struct img_layer *layer, const struct img_place *place);
int img_vmdk_unmap(struct img_layer *layer, uint64_t off, uint64_t len,
                   enum img_unmap how, uint64_t *done, struct img_error *err);
/* Makes the file at least len bytes long.  Called with the lock held. */
int img_vmdk_grow_file(struct vmdk_sparse *s, uint64_t len,
                       struct img_error *err);

/* Both copies of table g, made if need be; slices[1] is NULL where there is
 * no second copy. */
int img_vmdk_tables_get(struct img_layer *layer, struct vmdk_sparse *s,
                        size_t g, struct img_slice *slices[2],
                        struct img_error *err);
void img_vmdk_tables_put(struct img_layer *layer, struct img_slice *slices[2]);
/* These are called with the lock held for writing. */
int img_vmdk_take_grains(struct vmdk_sparse *s, uint32_t n, uint64_t *host,
                         bool *zeroed, struct img_error *err);
void img_vmdk_set_entry(struct img_layer *layer, struct img_slice *slices[2],
                        uint32_t i, uint32_t v);
void img_vmdk_directory_changed(struct vmdk_sparse *s, size_t g);

/* space.c; but for the last, called with the lock held for writing. */
int img_vmdk_list_add(struct vmdk_list *l, uint64_t host);
int img_vmdk_free_add(struct vmdk_sparse *s, uint64_t off, uint64_t len);
bool img_vmdk_free_take(struct vmdk_sparse *s, uint64_t len, uint64_t *host);
/* These grains are pointed to no more, on disk either.  Sorts the list. */
void img_vmdk_release(struct img_layer *layer, struct vmdk_sparse *s,
                      struct vmdk_list *gone);

/* sync.c */
int img_vmdk_sync(struct img_layer *layer, struct img_error *err);
/* Tables and directories only; their order holds all the same. */
int img_vmdk_write_back(struct img_layer *layer, struct img_error *err);

/* store.c */
enum vmdk_move {                    /* may files[0] become another file? */
    VMDK_STAY,                      /* no: requests may be in flight */
    VMDK_MAY_MOVE,
    VMDK_MOVE                       /* even for one sector, where that can be:
                                       then an error cannot leave the new one */
};
/* Durable; takes text over.  *done: it is the image's from now on, whatever
 * the result; else the old one is on disk again, if that can still be. */
int img_vmdk_text_store(struct img_layer *layer, struct vmdk_text *text,
                        enum vmdk_move move, bool *done,
                        struct img_error *err);
/* files[0] becomes one with this text, at once; done as for replace. */
int img_vmdk_text_replace(struct img_layer *layer,
                          const struct vmdk_text *text, bool *done,
                          struct img_error *err);
/* near: the one becomes the other by writing a single sector. */
int img_vmdk_text_is_near(const struct vmdk_text *a,
                          const struct vmdk_text *b, bool *near,
                          struct img_error *err);

/* amend.c */
int img_vmdk_touch(struct img_layer *layer, uint64_t off, uint64_t len,
                   struct img_error *err);
int img_vmdk_set_backing(struct img_layer *layer, const char *name,
                         const char *fmt, const struct img_layer *base,
                         struct img_error *err);
int img_vmdk_amend(struct img_layer *layer, const char *const *settings,
                   const struct img_job *job, struct img_error *err);
/* The content ID of a file that may be a VMDK image, by its first bytes. */
int img_vmdk_read_cid(struct img_file *file, uint32_t *cid,
                      struct img_error *err);

/* resize.c, describe.c, check.c */
/* Capacity (sectors) and places of the directories in the header. */
int img_vmdk_write_header(struct vmdk_sparse *s, uint64_t capacity,
                          uint64_t gd_off, uint64_t rgd_off,
                          struct img_error *err);
int img_vmdk_resize(struct img_layer *layer, uint64_t size,
                    enum img_prealloc prealloc, struct img_error *err);
int img_vmdk_set_cylinders(struct vmdk_text *text, uint64_t size,
                           struct img_error *err);
/* x: as it is in the file, durable when this returns. */
int img_vmdk_grow_flat(struct img_file *file, const struct vmdk_extent *x,
                       uint64_t len, enum img_prealloc prealloc,
                       struct img_error *err);
/* What backs the last extent, for another length; it and the descriptor are
 * the caller's. */
int img_vmdk_grow_last(struct img_layer *layer, uint64_t len,
                       enum img_prealloc prealloc, struct img_error *err);
int img_vmdk_cut_last(struct img_layer *layer, uint64_t len,
                      struct img_error *err);

/* split.c: extents are files of one size, added and dropped as need be */
bool img_vmdk_is_split(const struct vmdk_state *st);
/* How large the disk can get without another extent. */
uint64_t img_vmdk_split_room(const struct img_layer *layer);
int img_vmdk_split_grow(struct img_layer *layer, uint64_t size,
                        enum img_prealloc prealloc, struct img_error *err);
int img_vmdk_split_drop(struct img_layer *layer, uint64_t size,
                        struct img_error *err);
int img_vmdk_describe(struct img_layer *layer, struct img_info *info,
                      struct img_error *err);
/* rebuild.c: new tables of a packed extent with markers, from its grains. */
int img_vmdk_rebuild(struct img_layer *layer, struct vmdk_extent *x,
                     const struct img_job *job, struct img_error *err);
int img_vmdk_check(struct img_layer *layer,
                   const struct img_check_options *opts,
                   const struct img_job *job,
                   struct img_check_result *result, struct img_error *err);

/* options.c: what create, the sink, measure and defaults have in common */
enum vmdk_subformat {
    VMDK_MONOLITHIC_SPARSE, VMDK_MONOLITHIC_FLAT, VMDK_SPLIT_SPARSE,
    VMDK_SPLIT_FLAT, VMDK_STREAM, VMDK_VMFS, VMDK_VMFS_SPARSE
};
struct vmdk_options {
    enum vmdk_subformat subformat;
    uint64_t size;                  /* bytes, whole sectors */
    bool zeroed_grain;
    const char *adapter;
    char hardware[24], tools[24];
    char uuid[48];                  /* as VMware writes it; "" = none */
    uint32_t cid, parent_cid;
    const char *backing;
};
extern const struct img_option_info img_vmdk_create_options[];
int img_vmdk_options(const struct img_create_options *opts,
                     struct vmdk_options *o, struct img_error *err);
int img_vmdk_defaults(const struct img_create_options *opts,
                      struct img_strings *out, struct img_error *err);
int img_vmdk_measure(const struct img_create_options *opts, uint64_t size,
                     uint64_t data_clusters_of(void *, uint32_t),
                     void *opaque, struct img_measure *result,
                     struct img_error *err);
const char *img_vmdk_subformat_name(enum vmdk_subformat subformat);
/* Does the value of cid or uuid ask for one that follows from the settings?
 * Then *word is what the user adds to them. */
bool img_vmdk_is_derived(const char *text, const char **word);
uint32_t img_vmdk_usable_cid(uint64_t h);
int img_vmdk_random_cid(uint32_t *cid, struct img_error *err);
/* uuid: as VMware or as VirtualBox writes it; out has 48 bytes and gets
 * VMware's form. */
bool img_vmdk_uuid(const char *text, char *out);

/* create.c */
int img_vmdk_create(struct img_build *build, struct img_error *err);
/* extents: the lines of the extents, each with its line end. */
char *img_vmdk_compose(const struct vmdk_options *o, const char *extents);
/* The whole descriptor, malloc'ed. */
int img_vmdk_build_text(struct img_build *build, const struct vmdk_options *o,
                        const char *extents, char **text,
                        struct img_error *err);
/* Sets o->parent_cid. */
int img_vmdk_build_parent(struct img_build *build, struct vmdk_options *o,
                          struct img_error *err);
/* Everything before the first grain of an extent like that one, in an empty
 * file; text NULL = no descriptor inside. */
int img_vmdk_make_sparse(struct img_file *f, const struct vmdk_header *like,
                         uint64_t size, const char *text,
                         struct img_error *err);
/* "dir/disk.vmdk" -> "disk-PART.vmdk", malloc'ed */
char *img_vmdk_extent_name(const char *path, const char *part);
char *img_vmdk_own_line(const struct vmdk_options *o, const char *path);

/* vmdk.c */
extern const struct img_format img_format_vmdk;

/* stream.c */
extern const struct img_sink_ops img_vmdk_sink;
#endif
