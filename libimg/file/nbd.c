/* NBD servers as files, over the connections of nbd_link.c.
 *
 * Locks: nbd.lock protects the extents that are remembered; rmw is held
 * around writes that are not aligned as the server wants.
 */
#include "file/nbd.h"
#include "base/error.h"
#include "libimg.h"

#ifndef HAVE_LIBNBD

int img_nbd_open(const char *uri, unsigned flags, struct img_file **file,
                 struct img_error *err)
{
    return img_fail(err, ENOTSUP, "%s: built without libnbd", uri);
}

int img_nbd_share(struct img_file *file, struct img_file **shared,
                  struct img_error *err)
{
    return img_fail(err, ENOTSUP, "%s: has no descriptor", file->path);
}

#else

#include "base/checked.h"
#include "base/iov.h"
#include "base/sync.h"
#include "file/nbd_link.h"

#include <libnbd.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    PIECE = 32 << 20,           /* longest transfer of one request */
    ZERO_PIECE = 1 << 30,
    MAX_ALIGN = 64 << 10,
    EXTENTS = 4096,             /* remembered ... */
    STALE_MS = 1000             /* ... so long */
};

struct nbd {
    atomic_uint users;          /* files */
    struct img_nbd_link *link;
    struct img_nbd_facts facts;
    uint64_t piece;
    struct img_mutex lock, rmw;
    struct img_nbd_extents *known;      /* read-only files alone */
    uint64_t known_ms;          /* since when; others may write there */
};

static int run(struct img_file *f, struct img_nbd_request *r,
               struct img_error *err)
{
    return img_nbd_run(((struct nbd *)f->state)->link, f->path, r, err);
}

/* ---- transfers --------------------------------------------------------- */

/* Aligned, inside the export. */
static int transfer(struct img_file *f, bool write, void *buf, uint64_t len,
                    uint64_t off, struct img_error *err)
{
    struct nbd *s = f->state;
    int ret = 0;

    while (len && ret == 0) {
        uint64_t n = IMG_MIN(len, s->piece);
        struct img_nbd_request r = {
            .op = write ? IMG_NBD_WRITE : IMG_NBD_READ, .buf = buf,
            .off = off, .len = n
        };

        ret = run(f, &r, err);
        buf = (char *)buf + n;
        off += n;
        len -= n;
    }
    return ret;
}

/* The aligned range around [off, off + len), read into memory of its own. */
static int read_around(struct img_file *f, uint64_t off, uint64_t len,
                       uint8_t **buf, uint64_t *from, struct img_error *err)
{
    struct nbd *s = f->state;
    uint64_t end = IMG_MIN(img_round_up(off + len, f->align), s->facts.size);
    int ret;

    *from = img_round_down(off, f->align);
    *buf = malloc(end - *from);
    if (!*buf)
        return img_fail_nomem(err);
    ret = transfer(f, false, *buf, end - *from, *from, err);
    if (ret < 0)
        free(*buf);
    return ret;
}

static bool is_aligned(const struct img_file *f, uint64_t off, uint64_t len)
{
    return img_is_aligned(off | len, f->align);
}

static int read_flat(struct img_file *f, void *buf, uint64_t len,
                     uint64_t off, struct img_error *err)
{
    uint8_t *around;
    uint64_t from;
    int ret;

    if (is_aligned(f, off, len))
        return transfer(f, false, buf, len, off, err);
    ret = read_around(f, off, len, &around, &from, err);
    if (ret < 0)
        return ret;
    memcpy(buf, around + (off - from), len);
    free(around);
    return 0;
}

static int write_flat(struct img_file *f, void *buf, uint64_t len,
                      uint64_t off, struct img_error *err)
{
    struct nbd *s = f->state;
    uint8_t *around;
    uint64_t from, end;
    int ret;

    if (is_aligned(f, off, len))
        return transfer(f, true, buf, len, off, err);
    img_lock(&s->rmw);
    ret = read_around(f, off, len, &around, &from, err);
    if (ret == 0) {
        memcpy(around + (off - from), buf, len);
        end = IMG_MIN(img_round_up(off + len, f->align), s->facts.size);
        ret = transfer(f, true, around, end - from, from, err);
        free(around);
    }
    img_unlock(&s->rmw);
    return ret;
}

/* iov as one buffer: its own, or one that the caller frees. */
static void *flatten(const struct iovec *iov, int n, size_t len, void **own)
{
    *own = NULL;
    if (n == 1)
        return iov->iov_base;
    return *own = malloc(len ? len : 1);
}

static int nbd_file_preadv(struct img_file *f, const struct iovec *iov, int n,
                           uint64_t off, struct img_error *err)
{
    struct nbd *s = f->state;
    size_t len = img_iov_total(iov, n), have = len;
    void *own, *buf = flatten(iov, n, len, &own);
    int ret = 0;

    if (!buf)
        return img_fail_nomem(err);
    if (off >= s->facts.size)
        have = 0;
    else if (have > s->facts.size - off)
        have = (size_t)(s->facts.size - off);
    if (have)
        ret = read_flat(f, buf, have, off, err);
    if (ret == 0) {
        memset((char *)buf + have, 0, len - have);
        if (own)
            img_iov_fill(iov, n, 0, own, len);
    }
    free(own);
    return ret;
}

static int inside(struct img_file *f, uint64_t off, uint64_t len,
                  struct img_error *err)
{
    const struct nbd *s = f->state;

    return img_inside(off, len, s->facts.size) ? 0 :
        img_fail(err, ENOSPC, "%s: the server's disk ends at %llu", f->path,
                 (unsigned long long)s->facts.size);
}

static int nbd_file_pwritev(struct img_file *f, const struct iovec *iov,
                            int n, uint64_t off, struct img_error *err)
{
    size_t len = img_iov_total(iov, n);
    void *own, *buf;
    int ret = inside(f, off, len, err);

    if (ret < 0 || !len)
        return ret;
    buf = flatten(iov, n, len, &own);
    if (!buf)
        return img_fail_nomem(err);
    if (own)
        img_iov_gather(iov, n, 0, own, len);
    ret = write_flat(f, buf, len, off, err);
    free(own);
    return ret;
}

/* What is not aligned is left to be written out. */
static int send_zeros(struct img_file *f, uint64_t off, uint64_t len,
                      uint32_t wire, struct img_error *err)
{
    struct nbd *s = f->state;
    int ret = inside(f, off, len, err);

    if (ret < 0)
        return ret;
    if (!s->facts.can_zero || !is_aligned(f, off, len))
        return -ENOTSUP;
    while (len && ret == 0) {
        struct img_nbd_request r = {
            .op = IMG_NBD_ZERO, .off = off,
            .len = IMG_MIN(len, (uint64_t)ZERO_PIECE), .flags = wire
        };

        ret = run(f, &r, err);
        if (r.error == ENOTSUP || r.error == EOPNOTSUPP)
            ret = -ENOTSUP;
        off += r.len;
        len -= r.len;
    }
    return ret;
}

/* However slow the server is with zeros, it is quicker than we with sending
 * them, so FAST_ONLY makes no difference. */
static int nbd_file_zero(struct img_file *f, uint64_t off, uint64_t len,
                         unsigned flags, struct img_error *err)
{
    return send_zeros(f, off, len, flags & IMG_FILE_MAY_UNMAP
                      ? 0 : LIBNBD_CMD_FLAG_NO_HOLE, err);
}

/* TRIM promises nothing of what is read afterwards, so it is the second
 * choice, for servers that cannot zero without writing. */
static int nbd_file_punch(struct img_file *f, uint64_t off, uint64_t len,
                          struct img_error *err)
{
    const struct nbd *s = f->state;
    int ret = !s->facts.can_fast_zero ? -ENOTSUP :
        send_zeros(f, off, len, LIBNBD_CMD_FLAG_FAST_ZERO, err);

    if (ret != -ENOTSUP || !s->facts.can_trim || !is_aligned(f, off, len))
        return ret;
    for (ret = 0; len && ret == 0;) {
        struct img_nbd_request r = {
            .op = IMG_NBD_TRIM, .off = off,
            .len = IMG_MIN(len, (uint64_t)ZERO_PIECE)
        };

        ret = run(f, &r, err);
        if (r.error == ENOTSUP || r.error == EOPNOTSUPP)
            ret = -ENOTSUP;
        off += r.len;
        len -= r.len;
    }
    return ret;
}

static int nbd_file_sync(struct img_file *f, struct img_error *err)
{
    struct img_nbd_request r = { .op = IMG_NBD_FLUSH };

    return f->writable ? run(f, &r, err) : 0;
}

/* As with a device: it only has to be large enough. */
static int nbd_file_truncate(struct img_file *f, uint64_t size,
                             struct img_error *err)
{
    return inside(f, 0, size, err);
}

static int nbd_file_size(struct img_file *f, uint64_t *size,
                         struct img_error *err)
{
    *size = ((struct nbd *)f->state)->facts.size;
    return 0;
}

/* ---- extents ----------------------------------------------------------- */

static uint64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void extents_free(struct img_nbd_extents *k)
{
    if (!k)
        return;
    free(k->len);
    free(k->data);
    free(k);
}

static struct img_nbd_extents *extents_new(void)
{
    struct img_nbd_extents *k = calloc(1, sizeof *k);

    if (!k)
        return NULL;
    k->room = EXTENTS;
    k->len = malloc(EXTENTS * sizeof *k->len);
    k->data = malloc(EXTENTS * sizeof *k->data);
    if (k->len && k->data)
        return k;
    extents_free(k);
    return NULL;
}

/* The answer for off from what is known, if it is. */
static bool look_up(const struct img_nbd_extents *k, uint64_t off,
                    uint64_t len, bool *is_data, uint64_t *run)
{
    uint64_t at = k->off;
    unsigned i = 0;

    while (i < k->n && at + k->len[i] <= off)
        at += k->len[i++];
    if (i == k->n || off < at)
        return false;
    *is_data = k->data[i];
    *run = at + k->len[i] - off;
    while (++i < k->n && *run < len && k->data[i] == *is_data)
        *run += k->len[i];
    if (*run > len)
        *run = len;
    return *run > 0;
}

static int ask(struct img_file *f, struct img_nbd_extents *k, uint64_t off,
               uint64_t len, struct img_error *err)
{
    struct nbd *s = f->state;
    uint64_t from = img_round_down(off, f->align);
    uint64_t end = IMG_MIN(off + len, s->facts.size);
    struct img_nbd_request r = {
        .op = IMG_NBD_STATUS, .off = from, .extents = k,
        .len = IMG_MIN(IMG_MIN(img_round_up(end, f->align),
                               s->facts.size) - from, (uint64_t)ZERO_PIECE)
    };

    return run(f, &r, err);
}

static int nbd_file_extent(struct img_file *f, uint64_t off, uint64_t len,
                           bool *is_data, uint64_t *length,
                           struct img_error *err)
{
    struct nbd *s = f->state;
    struct img_nbd_extents *k;
    bool found = false;
    int ret = 0;

    if (off >= s->facts.size) {
        *is_data = false;
        *length = len;
        return 0;
    }
    if (!s->facts.has_status)
        return -ENOTSUP;
    len = IMG_MIN(len, s->facts.size - off);
    img_lock(&s->lock);
    if (s->known && now_ms() - s->known_ms < STALE_MS)
        found = look_up(s->known, off, len, is_data, length);
    img_unlock(&s->lock);
    if (found)
        return 0;
    k = extents_new();
    if (!k)
        return img_fail_nomem(err);
    /* Of a disk that we do not change, as much as the server will tell. */
    ret = ask(f, k, off, f->writable ? len : s->facts.size - off, err);
    if (ret == 0 && !look_up(k, off, len, is_data, length))
        ret = img_fail(err, EIO, "%s: the server does not say what is at "
                       "%llu", f->path, (unsigned long long)off);
    if (ret == 0 && !f->writable) {
        struct img_nbd_extents *old;

        img_lock(&s->lock);
        old = s->known;
        s->known = k;
        s->known_ms = now_ms();
        img_unlock(&s->lock);
        k = old;
    }
    extents_free(k);
    return ret;
}

/* ---- opening ----------------------------------------------------------- */

static void nbd_file_close(struct img_file *f)
{
    struct nbd *s = f->state;

    if (atomic_fetch_sub(&s->users, 1) > 1)
        return;
    if (s->link)
        img_nbd_link_close(s->link);
    img_mutex_destroy(&s->lock);
    img_mutex_destroy(&s->rmw);
    extents_free(s->known);
    free(s);
}

static const struct img_file_ops nbd_ops = {
    .kind = "nbd", .preadv = nbd_file_preadv, .pwritev = nbd_file_pwritev,
    .zero = nbd_file_zero, .punch = nbd_file_punch, .sync = nbd_file_sync,
    .truncate = nbd_file_truncate, .size = nbd_file_size,
    .extent = nbd_file_extent, .close = nbd_file_close,
};

/* Makes of f what the server says. */
static int take_facts(struct img_file *f, struct nbd *s, unsigned flags,
                      struct img_error *err)
{
    uint64_t align = s->facts.align ? s->facts.align : 1;
    uint64_t most = s->facts.most;

    if (!img_is_pow2(align) || align > MAX_ALIGN)
        return img_fail(err, ENOTSUP, "%s: the server wants blocks of %llu "
                        "bytes", f->path, (unsigned long long)align);
    if ((flags & IMG_FILE_WRITE) && s->facts.read_only)
        return img_fail(err, EROFS, "%s: the server serves it read-only",
                        f->path);
    s->piece = most && most < PIECE ? img_round_down(most, align) : PIECE;
    if (!s->piece)
        s->piece = align;
    f->align = (uint32_t)align;
    f->writable = flags & IMG_FILE_WRITE;
    f->no_sync = flags & IMG_FILE_NO_SYNC;
    return 0;
}

static struct img_file *file_new(const char *path)
{
    struct img_file *f = calloc(1, sizeof *f);
    struct nbd *s = calloc(1, sizeof *s);

    if (f)
        f->path = strdup(path);
    if (!f || !s || !f->path) {
        if (f)
            free(f->path);
        free(s);
        free(f);
        return NULL;
    }
    img_mutex_init(&s->lock);
    img_mutex_init(&s->rmw);
    atomic_init(&s->users, 1);
    f->ops = &nbd_ops;
    f->state = s;
    f->fd = -1;
    return f;
}

int img_nbd_open(const char *uri, unsigned flags, struct img_file **file,
                 struct img_error *err)
{
    struct img_nbd_name name;
    struct img_file *f;
    struct nbd *s;
    int ret = img_nbd_name_parse(uri, &name, err);

    if (ret < 0)
        return ret;
    f = file_new(uri);
    if (!f) {
        free(name.uri);
        return img_fail_nomem(err);
    }
    img_nbd_identify(name.uri, f);
    s = f->state;
    ret = img_nbd_link_open(&name, uri, flags & IMG_FILE_WRITE, &s->link,
                            &s->facts, err);
    if (ret == 0)
        ret = take_facts(f, s, flags, err);
    if (ret < 0) {
        img_file_close(f);
        return ret;
    }
    *file = f;
    return 0;
}

int img_nbd_share(struct img_file *file, struct img_file **shared,
                  struct img_error *err)
{
    struct img_file *f = malloc(sizeof *f);
    struct nbd *s = file->state;

    if (file->ops != &nbd_ops) {
        free(f);
        return img_fail(err, ENOTSUP, "%s: has no descriptor", file->path);
    }
    if (f) {
        *f = *file;
        f->path = strdup(file->path);
    }
    if (!f || !f->path) {
        free(f);
        return img_fail_nomem(err);
    }
    atomic_fetch_add(&s->users, 1);
    *shared = f;
    return 0;
}
#endif
