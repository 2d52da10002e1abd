/* Cache of inflated clusters.
 *
 * One lock protects everything but the bytes of a cluster, which are written
 * once, while it is LOADING, and only read afterwards.  No lock is held while
 * a file is read or data is inflated or copied.  Whoever uses an entry has
 * pinned it; the least recently used one without pins goes first.  A whole
 * cluster wanted in one piece of memory is inflated straight into that and
 * leaves the cache as it is: what is copied once is not read again soon.
 */
#include "cache/zcache.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/iov.h"
#include "base/sync.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

enum { CHAINS = 1024, IDLE_MAX = 16 };

struct entry {
    struct entry *chain;
    struct entry *newer, *older;
    struct img_file *file;
    uint64_t host;
    enum img_codec codec;
    unsigned pins;
    bool loading;
    bool gone;                  /* not in the cache any more: the last user
                                   frees it */
    uint32_t len;
    uint8_t data[];
};

/* What a thread needs to inflate. */
struct worker {
    struct worker *next;
    struct img_unpacker *unpacker;
    void *packed;
    size_t room;
};

struct img_zcache {
    struct img_mutex lock;
    struct img_cond loaded;
    unsigned waiting;
    struct entry *chains[CHAINS];
    struct entry *newest, *oldest;
    uint64_t budget, bytes;
    struct worker *idle;
    unsigned n_idle;
};

static struct entry **chain_of(struct img_zcache *c,
                               const struct img_file *file, uint64_t host)
{
    uint64_t h = host ^ ((uint64_t)(uintptr_t)file << 20);

    h *= UINT64_C(0x9e3779b97f4a7c15);
    return &c->chains[(h >> 40) % CHAINS];
}

static struct entry *find(struct img_zcache *c, const struct img_file *file,
                          uint64_t host)
{
    struct entry *e = *chain_of(c, file, host);

    while (e && (e->host != host || e->file != file))
        e = e->chain;
    return e;
}

static void list_remove(struct img_zcache *c, struct entry *e)
{
    *(e->newer ? &e->newer->older : &c->newest) = e->older;
    *(e->older ? &e->older->newer : &c->oldest) = e->newer;
}

static void list_add(struct img_zcache *c, struct entry *e)
{
    e->newer = NULL;
    e->older = c->newest;
    *(c->newest ? &c->newest->newer : &c->oldest) = e;
    c->newest = e;
}

static void drop(struct img_zcache *c, struct entry *e)
{
    struct entry **p = chain_of(c, e->file, e->host);

    while (*p != e)
        p = &(*p)->chain;
    *p = e->chain;
    list_remove(c, e);
    c->bytes -= e->len;
    e->gone = true;
    if (!e->pins)
        free(e);
}

static void make_room(struct img_zcache *c, uint64_t len)
{
    struct entry *e = c->oldest, *newer;

    for (; e && c->bytes + len > c->budget; e = newer) {
        newer = e->newer;
        if (!e->pins)
            drop(c, e);
    }
}

/* ---- inflating --------------------------------------------------------- */

static void worker_free(struct worker *w)
{
    if (!w)
        return;
    img_unpacker_free(w->unpacker);
    free(w->packed);
    free(w);
}

static struct worker *worker_get(struct img_zcache *c, struct img_error *err)
{
    struct worker *w;

    img_lock(&c->lock);
    w = c->idle;
    if (w) {
        c->idle = w->next;
        c->n_idle--;
    }
    img_unlock(&c->lock);
    if (w)
        return w;
    w = calloc(1, sizeof *w);
    if (!w) {
        img_fail_nomem(err);
        return NULL;
    }
    if (img_unpacker_new(&w->unpacker, err) < 0) {
        free(w);
        return NULL;
    }
    return w;
}

static void worker_put(struct img_zcache *c, struct worker *w)
{
    img_lock(&c->lock);
    if (c->n_idle < IDLE_MAX) {
        w->next = c->idle;
        c->idle = w;
        c->n_idle++;
        w = NULL;
    }
    img_unlock(&c->lock);
    worker_free(w);
}

static int inflate_with(struct worker *w, struct img_file *file,
                        const struct img_run *run, void *out, uint32_t len,
                        struct img_error *err)
{
    int r;

    if (w->room < run->host_max) {
        free(w->packed);
        w->packed = malloc(run->host_max);
        w->room = w->packed ? run->host_max : 0;
        if (!w->packed)
            return img_fail_nomem(err);
    }
    r = img_file_pread(file, w->packed, run->host_max, run->host, err);
    if (r < 0)
        return r;
    r = img_unpack_short(w->unpacker, run->codec, w->packed, run->host_max,
                         out, len, run->unpacked_min ? run->unpacked_min : len,
                         err);
    if (r < 0)
        img_fail_prefix(err, r, "%s: compressed cluster at offset 0x%llx",
                        file->path, (unsigned long long)run->host);
    return r;
}

static int inflate_run(struct img_zcache *c, struct img_file *file,
                       const struct img_run *run, void *out, uint32_t len,
                       struct img_error *err)
{
    struct worker *w;
    int r;

    /* Deflate cannot make data much longer, and qcow2's field for the length
     * ends at twice the cluster size. */
    if (!run->host_max || run->host_max > 2 * (uint64_t)len + 65536)
        return img_fail(err, IMG_ECORRUPT, "%s: compressed cluster at offset "
                        "0x%llx has a length of %u bytes", file->path,
                        (unsigned long long)run->host, run->host_max);
    w = worker_get(c, err);
    if (!w)
        return -ENOMEM;
    r = inflate_with(w, file, run, out, len, err);
    worker_put(c, w);
    return r;
}

/* ---- entries ----------------------------------------------------------- */

/* The lock is held.  What is there, pinned and loaded; or NULL. */
static struct entry *find_loaded(struct img_zcache *c, struct img_file *file,
                                 const struct img_run *run, uint32_t len)
{
    struct entry *e;

    while ((e = find(c, file, run->host)) && e->loading) {
        c->waiting++;
        img_wait(&c->loaded, &c->lock);
        c->waiting--;
    }
    if (e && (e->len != len || e->codec != run->codec)) {
        drop(c, e);
        e = NULL;
    }
    if (e) {
        e->pins++;
        list_remove(c, e);
        list_add(c, e);
    }
    return e;
}

static void unpin(struct img_zcache *c, struct entry *e)
{
    img_lock(&c->lock);
    if (!--e->pins && e->gone)
        free(e);
    img_unlock(&c->lock);
}

static void add(struct img_zcache *c, struct entry *e)
{
    struct entry **chain = chain_of(c, e->file, e->host);

    make_room(c, e->len);
    e->chain = *chain;
    *chain = e;
    list_add(c, e);
    c->bytes += e->len;
}

/* The memory for a cluster is made before it is known to be needed, so that
 * nobody waits for malloc; *spare is what was not needed. */
static struct entry *get(struct img_zcache *c, struct img_file *file,
                         const struct img_run *run, uint32_t len,
                         struct entry **spare)
{
    struct entry *e;

    img_lock(&c->lock);
    e = find_loaded(c, file, run, len);
    if (!e && *spare) {
        e = *spare;
        *spare = NULL;
        e->file = file;
        e->host = run->host;
        e->codec = run->codec;
        e->len = len;
        e->pins = 1;
        e->loading = true;
        e->gone = false;
        add(c, e);
    }
    img_unlock(&c->lock);
    return e;
}

static int load(struct img_zcache *c, struct entry *e,
                const struct img_run *run, struct img_error *err)
{
    int r = inflate_run(c, e->file, run, e->data, e->len, err);

    img_lock(&c->lock);
    e->loading = false;
    if (r < 0 && !e->gone)
        drop(c, e);
    if (c->waiting)
        img_wake_all(&c->loaded);
    img_unlock(&c->lock);
    return r;
}

/* Where bytes [at, at + len) of iov are, if they are in one piece. */
static void *one_piece(const struct iovec *iov, int n, size_t at, size_t len)
{
    for (int i = 0; i < n; i++) {
        if (at < iov[i].iov_len)
            return len <= iov[i].iov_len - at ? (char *)iov[i].iov_base + at
                                              : NULL;
        at -= iov[i].iov_len;
    }
    return NULL;
}

int img_zcache_read(struct img_zcache *c, struct img_file *file,
                    const struct img_run *run, uint32_t cluster_size,
                    uint32_t skip, uint32_t len, const struct iovec *iov,
                    int n, size_t at, struct img_error *err)
{
    void *whole = len == cluster_size ? one_piece(iov, n, at, len) : NULL;
    struct entry *e, *spare = NULL;
    int r = 0;

    if (!img_inside(skip, len, cluster_size))
        return img_fail(err, EINVAL, "%s: compressed cluster at offset "
                        "0x%llx has no bytes at %u", file->path,
                        (unsigned long long)run->host, skip);
    e = get(c, file, run, cluster_size, &spare);
    if (!e && whole)
        return inflate_run(c, file, run, whole, cluster_size, err);
    if (!e) {
        spare = malloc(sizeof *spare + cluster_size);
        if (!spare)
            return img_fail_nomem(err);
        e = get(c, file, run, cluster_size, &spare);
    }
    free(spare);
    if (e->loading)             /* only ever seen by whoever is to load it */
        r = load(c, e, run, err);
    if (r == 0)
        img_iov_fill(iov, n, at, e->data + skip, len);
    unpin(c, e);
    return r;
}

bool img_zcache_read_now(struct img_zcache *c, struct img_file *file,
                         const struct img_run *run, uint32_t cluster_size,
                         uint32_t skip, uint32_t len,
                         const struct iovec *iov, int n, size_t at)
{
    struct entry *e;

    if (!img_inside(skip, len, cluster_size))
        return false;
    img_lock(&c->lock);
    e = find(c, file, run->host);
    e = e && !e->loading ? find_loaded(c, file, run, cluster_size) : NULL;
    img_unlock(&c->lock);
    if (!e)
        return false;
    img_iov_fill(iov, n, at, e->data + skip, len);
    unpin(c, e);
    return true;
}

void img_zcache_forget(struct img_zcache *c, struct img_file *file,
                       uint64_t host)
{
    struct entry *e;

    img_lock(&c->lock);
    e = find(c, file, host);
    if (e)
        drop(c, e);
    img_unlock(&c->lock);
}

void img_zcache_forget_file(struct img_zcache *c, struct img_file *file)
{
    struct entry *e, *older;

    img_lock(&c->lock);
    for (e = c->newest; e; e = older) {
        older = e->older;
        if (e->file == file)
            drop(c, e);
    }
    img_unlock(&c->lock);
}

int img_zcache_new(uint64_t budget, struct img_zcache **cache,
                   struct img_error *err)
{
    struct img_zcache *c = calloc(1, sizeof *c);

    if (!c)
        return img_fail_nomem(err);
    img_mutex_init(&c->lock);
    img_cond_init(&c->loaded);
    c->budget = budget;
    *cache = c;
    return 0;
}

void img_zcache_free(struct img_zcache *c)
{
    if (!c)
        return;
    while (c->oldest)
        drop(c, c->oldest);
    while (c->idle) {
        struct worker *w = c->idle;

        c->idle = w->next;
        worker_free(w);
    }
    img_cond_destroy(&c->loaded);
    img_mutex_destroy(&c->lock);
    free(c);
}
