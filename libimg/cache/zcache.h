/* Cache of inflated clusters, shared by all layers of a disk: key (file, host
 * offset).  Single flight: two readers of one cluster inflate it once. */
#ifndef IMG_CACHE_ZCACHE_H
#define IMG_CACHE_ZCACHE_H
#include "codec/codec.h"

struct img_file;
struct img_zcache;

int img_zcache_new(uint64_t budget, struct img_zcache **cache,
                   struct img_error *err);
void img_zcache_free(struct img_zcache *cache);
/* Inflates the cluster that `run` (PACKED) describes, cluster_size bytes, or
 * finds it, and copies [skip, skip + len) of it to iov at its byte at. */
int img_zcache_read(struct img_zcache *cache, struct img_file *file,
                    const struct img_run *run, uint32_t cluster_size,
                    uint32_t skip, uint32_t len, const struct iovec *iov,
                    int n, size_t at, struct img_error *err);
/* The same if it is there already and nobody has to be waited for; else
 * false. */
bool img_zcache_read_now(struct img_zcache *cache, struct img_file *file,
                         const struct img_run *run, uint32_t cluster_size,
                         uint32_t skip, uint32_t len,
                         const struct iovec *iov, int n, size_t at);
/* The cluster at host is no more, or is being written anew. */
void img_zcache_forget(struct img_zcache *cache, struct img_file *file,
                       uint64_t host);
/* Before file is closed. */
void img_zcache_forget_file(struct img_zcache *cache, struct img_file *file);
#endif
