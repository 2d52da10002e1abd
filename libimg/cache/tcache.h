/* Cache of metadata tables: fixed slices of files, shared by all layers of a
 * disk under one budget.
 *
 * An entry is found by (file, offset), stays in memory while it is pinned or
 * dirty, and is dropped by CLOCK otherwise.  The cache does not protect the
 * bytes of an entry: the layer's own lock does.  It never writes by itself:
 * owners stage what is dirty and write it in the order their format needs,
 * so eviction needs no write and can break no ordering rule.  When dirty
 * entries fill half the budget img_tcache_is_full says so, and the owner
 * has to write back soon.
 *
 * A file's slices have to be forgotten before it is closed.
 */
#ifndef IMG_CACHE_TCACHE_H
#define IMG_CACHE_TCACHE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct img_error;
struct img_file;
struct img_tcache;

struct img_slice {
    uint8_t *data;
    uint64_t off;               /* in file */
    uint32_t len;
    uint32_t kind;              /* the owner's own mark, set when it is
                                   first got */
    struct img_file *file;
};

int img_tcache_new(uint64_t budget, struct img_tcache **cache,
                   struct img_error *err);
void img_tcache_free(struct img_tcache *cache);

/* Pins the slice [off, off + len) of file, reading it if it is not there;
 * every caller uses the same off and len for the same bytes.  Threads that
 * miss the same slice wait for one read; no lock of the cache is held
 * meanwhile.  -IMG_ECORRUPT: it is there with another len or kind. */
int img_tcache_get(struct img_tcache *cache, struct img_file *file,
                   uint64_t off, uint32_t len, uint32_t kind,
                   struct img_slice **slice, struct img_error *err);
/* The same, only if it is there already; NULL = it is not. */
struct img_slice *img_tcache_peek(struct img_tcache *cache,
                                  struct img_file *file, uint64_t off);
/* A pinned slice of zeros, without reading: the bytes are new, and all of
 * them dirty.  What was there is forgotten. */
int img_tcache_new_slice(struct img_tcache *cache, struct img_file *file,
                         uint64_t off, uint32_t len, uint32_t kind,
                         struct img_slice **slice, struct img_error *err);
void img_tcache_put(struct img_tcache *cache, struct img_slice *slice);
/* The same, and it will hardly be wanted again: it is forgotten, unless it is
 * dirty, being written, or pinned by somebody else. */
void img_tcache_put_last(struct img_tcache *cache, struct img_slice *slice);

/* Bytes [from, from + len) of the slice were changed (it is pinned). */
void img_tcache_dirty(struct img_tcache *cache, struct img_slice *slice,
                      uint32_t from, uint32_t len);
bool img_tcache_is_full(struct img_tcache *cache);

/* Everything dirty of one kind in file, copied out and marked clean but kept
 * in memory until img_stage_done.  The caller holds the lock that protects
 * the slices' bytes; writing needs no lock.  -EBUSY: some of it was staged
 * before and is not done. */
struct img_stage;
int img_tcache_stage(struct img_tcache *cache, struct img_file *file,
                     uint32_t kind, struct img_stage **stage,
                     struct img_error *err);
bool img_stage_is_empty(const struct img_stage *stage);
int img_stage_write(struct img_stage *stage, struct img_error *err);
/* written false: all of it is dirty again. */
void img_stage_done(struct img_stage *stage, bool written);

/* Forgets slices that lie in [off, off + len) of file, dirty or not.  For
 * tables that are no more.  If a stage holds some of them, they are not
 * written any more, or have been when this returns. */
void img_tcache_forget(struct img_tcache *cache, struct img_file *file,
                       uint64_t off, uint64_t len);
#endif
