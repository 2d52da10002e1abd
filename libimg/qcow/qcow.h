/* qcow version 1: what the files of this folder share.
 *
 * Layout (as in QEMU's own images; all
 * big-endian): a header of 48 bytes, the backing file's name, the first table
 * (L1) of 64-bit offsets of second tables (L2); an L2 entry is 0, or the
 * offset of a cluster, or bit 63, the length of a deflate stream (as many
 * bits as a cluster has, below bit 63) and its offset.  Nothing says what is
 * free: new clusters go to the end of the file.
 */
#ifndef IMG_QCOW_H
#define IMG_QCOW_H
#include "format.h"
#include "base/bytes.h"
#include "base/sync.h"

struct img_slice;

enum {
    QCOW_VERSION_AT = 4,
    QCOW_BACKING_OFF_AT = 8,
    QCOW_BACKING_LEN_AT = 16,
    QCOW_MTIME_AT = 20,
    QCOW_SIZE_AT = 24,
    QCOW_CLUSTER_BITS_AT = 32,
    QCOW_L2_BITS_AT = 33,
    QCOW_CRYPT_AT = 36,
    QCOW_L1_OFF_AT = 40,
    QCOW_HEADER_LEN = 48,

    QCOW_BACKING_MAX = 1023
};

#define QCOW_MAGIC 0x514649fbu  /* "QFI\xfb" */
#define QCOW_PACKED (UINT64_C(1) << 63)
/* Ceiling of what we open: 128 MiB of L1. */
#define QCOW_L1_MAX (UINT64_C(1) << 24)

struct img_qcow {
    uint8_t header[QCOW_HEADER_LEN];
    unsigned cluster_bits, l2_bits;
    uint64_t cluster_size;
    uint32_t l2_bytes;          /* of one table */
    unsigned reach_bits;        /* guest bytes of one L2 table */
    uint64_t l1_off;
    uint64_t l1_n;
    uint64_t *l1;               /* host order; __atomic access */
    uint64_t file_len;          /* as last seen; __atomic access */

    struct img_mutex sync_lock; /* one sync at a time; taken before lock */
    struct img_rwlock lock;     /* protects all below, and the bytes of L2
                                   tables; written for changes */
    uint64_t l1_from, l1_upto;  /* entries to be written; none: from >= upto */
    uint64_t end;               /* nothing is in use from here on */
    uint64_t zero_from;         /* places from here on read as zeros */
    bool grown;
    struct img_qcow_list {
        uint64_t *at;
        size_t n, room;
    } free, freed;              /* clusters; freed: once no table on the disk
                                   names them */
};

/* What an L2 entry says. */
struct img_qcow_entry {
    enum { QCOW_ABSENT, QCOW_PLAIN, QCOW_DEFLATED } kind;
    uint64_t host;
    uint32_t len;               /* DEFLATED: of the stream */
};

static inline uint64_t img_qcow_l1(const struct img_qcow *q, uint64_t i)
{
    return __atomic_load_n(&q->l1[i], __ATOMIC_ACQUIRE);
}

/* Index into its L2 table. */
static inline uint32_t img_qcow_l2_index(const struct img_qcow *q,
                                         uint64_t off)
{
    return (uint32_t)(off >> q->cluster_bits) &
           ((UINT32_C(1) << q->l2_bits) - 1);
}

extern const struct img_format img_format_qcow;

/* table.c */
struct img_qcow_entry img_qcow_decode(const struct img_qcow *q, uint64_t raw);
/* The L2 table that serves off, pinned; NULL = there is none.  cached:
 * -EAGAIN rather than read it. */
int img_qcow_table(struct img_layer *layer, uint64_t off, bool cached,
                   struct img_slice **table, struct img_error *err);
/* Sets an entry; q->lock is held for writing. */
void img_qcow_set(struct img_layer *layer, struct img_slice *table,
                  uint32_t index, uint64_t raw);
/* Is [host, host + len) in the file? */
bool img_qcow_in_file(struct img_layer *layer, uint64_t host, uint64_t len);
int img_qcow_map(struct img_layer *layer, uint64_t off, uint64_t len,
                 unsigned flags, struct img_run *run, struct img_error *err);
/* A run of entries of one kind that lie behind each other, within one table;
 * first is its first entry, checked. */
int img_qcow_run(struct img_layer *layer, struct img_slice *table,
                 uint64_t off, uint64_t len, struct img_qcow_entry *first,
                 uint64_t *run, struct img_error *err);

/* write.c */
int img_qcow_list_push(struct img_qcow_list *list, uint64_t value);
int img_qcow_reserve(struct img_layer *layer, const struct img_want *want,
                     struct img_place *place, struct img_error *err);
int img_qcow_publish(struct img_layer *layer, const struct img_place *place,
                     struct img_error *err);
void img_qcow_abandon(struct img_layer *layer, const struct img_place *place);
int img_qcow_unmap(struct img_layer *layer, uint64_t off, uint64_t len,
                   enum img_unmap kind, uint64_t *done,
                   struct img_error *err);
int img_qcow_sync(struct img_layer *layer, struct img_error *err);
/* Room at the end of the file, cluster aligned, and the file holds it; q->lock
 * is held for writing. */
int img_qcow_append(struct img_layer *layer, uint64_t len, uint64_t *at,
                    struct img_error *err);

/* create.c */
extern const struct img_option_info img_qcow_options[];
int img_qcow_create(struct img_build *build, struct img_error *err);
int img_qcow_defaults(const struct img_create_options *opts,
                      struct img_strings *out, struct img_error *err);
int img_qcow_measure(const struct img_create_options *opts, uint64_t size,
                     uint64_t data_clusters_of(void *, uint32_t),
                     void *opaque, struct img_measure *result,
                     struct img_error *err);

/* change.c */
int img_qcow_resize(struct img_layer *layer, uint64_t size,
                    enum img_prealloc prealloc, struct img_error *err);
int img_qcow_set_backing(struct img_layer *layer, const char *name,
                         const char *fmt, const struct img_layer *base,
                         struct img_error *err);

/* check.c */
int img_qcow_check(struct img_layer *layer,
                   const struct img_check_options *opts,
                   const struct img_job *job, struct img_check_result *result,
                   struct img_error *err);
#endif
