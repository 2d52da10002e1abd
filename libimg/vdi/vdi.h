/* VDI, the disk image of VirtualBox: what the files of this folder share.
 *
 * Layout (from VirtualBox's own header file, VDICore.h; all little-endian):
 * a text of 64 bytes, signature, version, the header; a map of one 32-bit
 * entry per block of guest bytes; then blocks, each with `extra` bytes of
 * service data before its guest bytes.  An entry is the number of the block
 * in the file, or VDI_FREE, or VDI_ZERO.
 *
 * Other programs append at the block whose number is the header's count of
 * allocated blocks.  So, whenever we leave an image, the blocks in use are
 * 0 .. count - 1 without a hole; and at no moment is a block in use, by the
 * map on the disk, whose number is not below the count on the disk.
 */
#ifndef IMG_VDI_H
#define IMG_VDI_H
#include "format.h"
#include "base/sync.h"

enum {
    VDI_SIGNATURE_AT = 64,
    VDI_VERSION_AT = 68,
    VDI_HEADER_SIZE_AT = 72,
    VDI_TYPE_AT = 76,
    VDI_FLAGS_AT = 80,
    VDI_COMMENT_AT = 84,
    VDI_MAP_OFF_AT = 340,
    VDI_DATA_OFF_AT = 344,
    VDI_CYLINDERS_AT = 348,
    VDI_HEADS_AT = 352,
    VDI_SECTORS_AT = 356,
    VDI_SECTOR_SIZE_AT = 360,
    VDI_SIZE_AT = 368,
    VDI_BLOCK_SIZE_AT = 376,
    VDI_BLOCK_EXTRA_AT = 380,
    VDI_BLOCKS_AT = 384,
    VDI_ALLOCATED_AT = 388,
    VDI_UUID_AT = 392,
    VDI_MODIFIED_AT = 408,
    VDI_PARENT_AT = 424,
    VDI_PARENT_MODIFIED_AT = 440,
    VDI_LCHS_SECTOR_SIZE_AT = 468,

    VDI_COMMENT_LEN = 256,
    VDI_HEADER_MIN = 384,       /* without the geometry that 1.1 added */
    VDI_HEADER_LEN = 400,
    VDI_HEADER_BYTES = 512      /* what we read and write; the header ends
                                   before, and one sector is written whole or
                                   not at all */
};

#define VDI_SIGNATURE 0xbeda107fu
#define VDI_VERSION 0x00010001u
#define VDI_FREE 0xffffffffu    /* not allocated: the parent's, or zeros */
#define VDI_ZERO 0xfffffffeu    /* not allocated: zeros */

/* Ceilings of what we open: 256 MiB of map, blocks that a fill can hold in
 * memory. */
#define VDI_MAX_BLOCKS (UINT32_C(1) << 26)
#define VDI_MAX_BLOCK (UINT32_C(64) << 20)

enum vdi_type { VDI_DYNAMIC = 1, VDI_STATIC = 2, VDI_UNDO = 3, VDI_DIFF = 4 };

enum { VDI_UUID_LEN = 16, VDI_UUID_TEXT = 37 };

enum { VDI_PAGE = 4096 };       /* the map is written in such pieces */

struct img_vdi_list {
    uint32_t *at;
    size_t n, room;
};

struct img_vdi {
    /* Constant but for resize, which comes alone. */
    enum vdi_type type;
    uint32_t map_off, data_off;
    uint32_t block_size, extra, blocks;
    unsigned block_bits;
    uint64_t stride;            /* extra + block_size */

    uint32_t *map;              /* entries, host order; __atomic access */
    uint64_t file_len;          /* as last seen; __atomic access */

    struct img_mutex sync_lock; /* one sync at a time; taken before lock */
    struct img_mutex lock;      /* protects all below, and writing to map */
    uint8_t header[VDI_HEADER_BYTES];
    bool header_dirty;
    bool grown;                 /* by us, perhaps beyond the last block */
    bool touched;               /* the modification UUID is new already */
    uint32_t next;              /* first block behind all that are in use */
    uint64_t zero_from;         /* places from here on read as zeros */
    struct img_vdi_list free;   /* blocks below next that may be taken */
    struct img_vdi_list freed;  /* as free, once the map on the disk no longer
                                   names them */
    uint64_t *dirty;            /* a bit for each page of the map */
    bool map_dirty;
};

static inline uint32_t img_vdi_entry(const struct img_vdi *v, uint32_t block)
{
    return __atomic_load_n(&v->map[block], __ATOMIC_ACQUIRE);
}

static inline bool img_vdi_is_place(uint32_t entry)
{
    return entry < VDI_ZERO;
}

/* Where the guest bytes of block number `entry` begin. */
static inline uint64_t img_vdi_host(const struct img_vdi *v, uint32_t entry)
{
    return v->data_off + entry * v->stride + v->extra;
}

static inline size_t img_vdi_pages(uint32_t blocks)
{
    return ((size_t)blocks * 4 + VDI_PAGE - 1) / VDI_PAGE;
}

extern const struct img_format img_format_vdi;

/* header.c */
/* Is it a VDI file?  Says nothing of whether its header is sound. */
bool img_vdi_is_vdi(const uint8_t *head, size_t len);
/* Checks head (VDI_HEADER_BYTES) and fills in the constant fields. */
int img_vdi_parse(struct img_layer *layer, struct img_vdi *v,
                  uint64_t *disk_size, struct img_error *err);
bool img_vdi_uuid_is_nil(const uint8_t *uuid);
int img_vdi_uuid_random(uint8_t *uuid, struct img_error *err);
/* A UUID that follows from another one and a word. */
void img_vdi_uuid_derive(const uint8_t *from, const char *word,
                         uint8_t *uuid);
/* Does the setting uuid ask for one that follows from the image's shape, as
 * "", "derived" or "derived:WORD"?  Then *uuid is that. */
bool img_vdi_uuid_derived(const char *const *settings, enum vdi_type type,
                          uint64_t size, uint32_t block_size,
                          const uint8_t *parent, uint8_t *uuid);
void img_vdi_uuid_print(const uint8_t *uuid, char text[VDI_UUID_TEXT]);
/* The setting `key` as a UUID; *given says whether there is one. */
int img_vdi_uuid_setting(const char *const *settings, const char *key,
                         uint8_t *uuid, bool *given, struct img_error *err);
int img_vdi_describe(struct img_layer *layer, struct img_info *info,
                     struct img_error *err);

/* alloc.c */
int img_vdi_list_push(struct img_vdi_list *list, uint32_t value);
/* Guest bytes from off on, at most len, that lie behind each other in the
 * file, or that all have the same entry VDI_FREE or VDI_ZERO. */
uint64_t img_vdi_run(const struct img_vdi *v, uint64_t off, uint64_t len);
/* Sets an entry and marks its page; v->lock is held. */
void img_vdi_set(struct img_vdi *v, uint32_t block, uint32_t entry);
int img_vdi_reserve(struct img_layer *layer, const struct img_want *want,
                    struct img_place *place, struct img_error *err);
int img_vdi_publish(struct img_layer *layer, const struct img_place *place,
                    struct img_error *err);
void img_vdi_abandon(struct img_layer *layer, const struct img_place *place);
int img_vdi_unmap(struct img_layer *layer, uint64_t off, uint64_t len,
                  enum img_unmap kind, uint64_t *done, struct img_error *err);

/* sync.c */
int img_vdi_sync(struct img_layer *layer, struct img_error *err);
int img_vdi_touch(struct img_layer *layer, uint64_t off, uint64_t len,
                  struct img_error *err);
/* Moves blocks from the end into holes, cuts the file; no request may be in
 * flight. */
int img_vdi_pack(struct img_layer *layer, const struct img_job *job,
                 struct img_error *err);
/* Finds out `next` and the holes from a map that has no place twice; without
 * requests in flight. */
void img_vdi_count(struct img_vdi *v);
void img_vdi_recount(struct img_vdi *v);
/* Copies one block (extra bytes too) from number `from` to number `to`. */
int img_vdi_copy_block(struct img_layer *layer, uint32_t from, uint32_t to,
                       void *buf, size_t buf_len, struct img_error *err);
int img_vdi_write_header(struct img_layer *layer, struct img_error *err);

/* parent.c */
int img_vdi_find_parent(struct img_layer *layer,
                        const struct img_open_options *opts,
                        struct img_error *err);
int img_vdi_check_base(struct img_layer *layer, const struct img_layer *base,
                       struct img_error *err);
int img_vdi_set_backing(struct img_layer *layer, const char *name,
                        const char *fmt, const struct img_layer *base,
                        struct img_error *err);
/* Would an image at `path` find its parent under `name`? */
int img_vdi_beside(const char *path, const char *name, struct img_error *err);

/* create.c */
extern const struct img_option_info img_vdi_options[];
int img_vdi_create(struct img_build *build, struct img_error *err);
int img_vdi_defaults(const struct img_create_options *opts,
                     struct img_strings *out, struct img_error *err);
int img_vdi_measure(const struct img_create_options *opts, uint64_t size,
                    uint64_t data_clusters_of(void *, uint32_t), void *opaque,
                    struct img_measure *result, struct img_error *err);

/* change.c */
int img_vdi_resize(struct img_layer *layer, uint64_t size,
                   enum img_prealloc prealloc, struct img_error *err);
int img_vdi_amend(struct img_layer *layer, const char *const *settings,
                  const struct img_job *job, struct img_error *err);

/* check.c */
int img_vdi_check(struct img_layer *layer,
                  const struct img_check_options *opts,
                  const struct img_job *job, struct img_check_result *result,
                  struct img_error *err);
/* Is it safe to write? */
int img_vdi_scan(struct img_layer *layer, struct img_error *err);
#endif
