/* NBD servers as files, by libnbd.
 *
 * A file has one connection, and up to CONNS where the server says that it
 * keeps them coherent (multi-conn); more are opened only when requests meet.
 * Any number of requests is in flight on a connection: whoever waits for one
 * becomes the connection's reader if it has none, and moves everybody's
 * bytes; the others sleep until their request is done or the reader leaves.
 *
 * Locks: conn.lock protects the handle and the requests on it; the reader
 * lets go of it while it polls.  nbd.lock protects the list of connections
 * and the extents that are remembered; rmw is held around writes that are
 * not aligned as the server wants.  A broken connection stays broken: its
 * requests fail, for nobody knows which writes were done.
 */
#include "file/nbd.h"
#include "base/error.h"

#include <string.h>
#include <strings.h>

bool img_nbd_is_uri(const char *path)
{
    static const char *const schemes[] = {
        "nbd:", "nbds:", "nbd+unix:", "nbds+unix:", "nbd+vsock:",
        "nbds+vsock:"
    };

    for (unsigned i = 0; i < sizeof schemes / sizeof schemes[0]; i++)
        if (!strncasecmp(path, schemes[i], strlen(schemes[i])))
            return true;
    return false;
}

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
#include "base/cleanup.h"
#include "base/iov.h"
#include "base/sync.h"
#include "libimg.h"

#include <libnbd.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    CONNS = 4,
    BUSY = 2,                   /* requests on each before one more is made */
    DIAL_MS = 1000,             /* for connections beyond the first */
    PIECE = 32 << 20,           /* longest transfer of one request */
    ZERO_PIECE = 1 << 30,
    MAX_ALIGN = 64 << 10,
    EXTENTS = 4096              /* remembered */
};

struct conn {
    struct img_mutex lock;
    struct img_cond moved;      /* requests are done, or the reader left */
    struct nbd_handle *h;
    int kick;                   /* eventfd: the reader must look again */
    bool reading;               /* somebody is the reader */
    atomic_uint busy;
};

struct known {                  /* a row of extents the server told of */
    uint64_t off;
    uint32_t len[EXTENTS];
    bool data[EXTENTS];
    unsigned n;
};

struct nbd {
    atomic_uint users;          /* files */
    struct img_mutex lock;
    struct conn *conns[CONNS];
    unsigned n;
    bool more;                  /* further connections may be tried */
    char *uri;
    uint64_t size;
    struct img_mutex rmw;
    bool has_flush, has_zero, has_fast_zero, has_status;
    uint64_t piece;
    struct known *known;        /* read-only files alone */
};

/* One request that somebody waits for. */
struct request {
    enum { READ, WRITE, ZERO, FLUSH, STATUS } op;
    void *buf;
    uint64_t off, len;
    uint32_t flags;
    struct known *extents;      /* STATUS */
    bool done;
    int error;
};

/* ---- connections ------------------------------------------------------- */

static int fail_nbd(struct img_error *err, const char *path, int fall_back)
{
    int code = nbd_get_errno();
    const char *text = nbd_get_error();

    return img_fail(err, code > 0 ? code : fall_back, "%s: %s", path,
                    text ? text : "unknown error");
}

static void conn_free(struct conn *c)
{
    if (!c)
        return;
    if (c->h)
        nbd_close(c->h);
    if (c->kick >= 0)
        close(c->kick);
    img_mutex_destroy(&c->lock);
    img_cond_destroy(&c->moved);
    free(c);
}

static struct conn *conn_new(void)
{
    struct conn *c = calloc(1, sizeof *c);

    if (!c)
        return NULL;
    img_mutex_init(&c->lock);
    img_cond_init(&c->moved);
    c->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    c->h = nbd_create();
    if (c->kick >= 0 && c->h &&
        nbd_set_uri_allow_local_file(c->h, true) == 0 &&
        nbd_add_meta_context(c->h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0)
        return c;
    conn_free(c);
    return NULL;
}

static struct conn *dial_first(const char *uri, struct img_error *err)
{
    struct conn *c = conn_new();

    if (!c) {
        img_fail_nomem(err);
    } else if (nbd_connect_uri(c->h, uri) < 0) {
        fail_nbd(err, uri, EIO);
        conn_free(c);
        c = NULL;
    }
    return c;
}

/* A server may say multi-conn and yet take no further client, so this does
 * not wait for ever. */
static struct conn *dial_more(const char *uri)
{
    struct conn *c = conn_new();
    int left = DIAL_MS / 50;

    if (!c)
        return NULL;
    if (nbd_aio_connect_uri(c->h, uri) == 0)
        while (nbd_aio_is_connecting(c->h) == 1 && left-- > 0)
            if (nbd_poll(c->h, 50) < 0)
                break;
    if (nbd_aio_is_ready(c->h) == 1)
        return c;
    conn_free(c);
    return NULL;
}

/* The least busy connection; perhaps a new one. */
static struct conn *pick(struct nbd *s)
{
    struct conn *best;

    img_lock(&s->lock);
    best = s->conns[0];
    for (unsigned i = 1; i < s->n; i++)
        if (atomic_load(&s->conns[i]->busy) < atomic_load(&best->busy))
            best = s->conns[i];
    if (s->more && atomic_load(&best->busy) >= BUSY) {
        struct conn *c = dial_more(s->uri);

        if (c)
            best = s->conns[s->n++] = c;
        s->more = c && s->n < CONNS;
    }
    atomic_fetch_add(&best->busy, 1);
    img_unlock(&s->lock);
    return best;
}

/* ---- requests ---------------------------------------------------------- */

static int completed(void *opaque, int *error)
{
    struct request *r = opaque;

    r->error = *error;
    r->done = true;
    return 1;                   /* libnbd forgets the request */
}

static int told_extents(void *opaque, const char *context, uint64_t off,
                        uint32_t *entries, size_t n, int *error)
{
    struct known *k = ((struct request *)opaque)->extents;

    if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION))
        return 0;
    k->off = off;
    k->n = 0;
    for (size_t i = 0; i + 1 < n && k->n < EXTENTS; i += 2) {
        k->len[k->n] = entries[i];
        k->data[k->n++] = !(entries[i + 1] & LIBNBD_STATE_ZERO);
    }
    return 0;
}

static int64_t issue(struct conn *c, struct request *r)
{
    nbd_completion_callback done = { .callback = completed, .user_data = r };
    nbd_extent_callback extent = { .callback = told_extents, .user_data = r };

    switch (r->op) {
    case READ:
        return nbd_aio_pread(c->h, r->buf, r->len, r->off, done, r->flags);
    case WRITE:
        return nbd_aio_pwrite(c->h, r->buf, r->len, r->off, done, r->flags);
    case ZERO:
        return nbd_aio_zero(c->h, r->len, r->off, done, r->flags);
    case FLUSH:
        return nbd_aio_flush(c->h, done, r->flags);
    case STATUS:
        return nbd_aio_block_status(c->h, r->len, r->off, extent, done,
                                    r->flags);
    }
    return -1;
}

/* Moves bytes until r is done.  Called, and returns, with the lock held. */
static void be_reader(struct conn *c, const struct request *r)
{
    c->reading = true;
    while (!r->done) {
        unsigned way = nbd_aio_get_direction(c->h);
        struct pollfd p[2] = {
            { .fd = nbd_aio_get_fd(c->h) },
            { .fd = c->kick, .events = POLLIN }
        };
        uint64_t count;

        if (p[0].fd < 0 || nbd_aio_is_dead(c->h) ||
            nbd_aio_is_closed(c->h))
            break;
        p[0].events = (way & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                      (way & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
        img_unlock(&c->lock);
        poll(p, 2, -1);
        img_lock(&c->lock);
        if (p[1].revents && read(c->kick, &count, sizeof count) < 0)
            continue;           /* somebody else was kicked */
        way = nbd_aio_get_direction(c->h);
        if ((way & LIBNBD_AIO_DIRECTION_READ) &&
            (p[0].revents & (POLLIN | POLLHUP | POLLERR)))
            nbd_aio_notify_read(c->h);
        else if ((way & LIBNBD_AIO_DIRECTION_WRITE) &&
                 (p[0].revents & (POLLOUT | POLLHUP | POLLERR)))
            nbd_aio_notify_write(c->h);
        img_wake_all(&c->moved);
    }
    c->reading = false;
    img_wake_all(&c->moved);
}

static void kick(struct conn *c)
{
    uint64_t one = 1;

    /* It fails only when it is full, and then it is readable already. */
    if (write(c->kick, &one, sizeof one) < 0)
        return;
}

static int run_on(struct conn *c, const char *path, struct request *r,
                  struct img_error *err)
{
    int ret = 0;

    img_lock(&c->lock);
    if (issue(c, r) < 0) {
        ret = fail_nbd(err, path, EIO);
        r->done = true;
    } else if (c->reading) {
        kick(c);
    }
    while (!r->done) {
        if (c->reading) {
            img_wait(&c->moved, &c->lock);
            continue;
        }
        be_reader(c, r);
        if (!r->done) {
            r->done = true;
            r->error = EIO;
        }
    }
    img_unlock(&c->lock);
    if (ret == 0 && r->error)
        ret = img_fail_errno(err, r->error, "%s: the server failed a request "
                             "at %llu", path, (unsigned long long)r->off);
    return ret;
}

static int run(struct img_file *f, struct request *r, struct img_error *err)
{
    struct nbd *s = f->state;
    struct conn *c = pick(s);
    int ret = run_on(c, f->path, r, err);

    atomic_fetch_sub(&c->busy, 1);
    return ret;
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
        struct request r = {
            .op = write ? WRITE : READ, .buf = buf, .off = off, .len = n
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
    uint64_t end = IMG_MIN(img_round_up(off + len, f->align), s->size);
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
        end = IMG_MIN(img_round_up(off + len, f->align), s->size);
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
    if (off >= s->size)
        have = 0;
    else if (have > s->size - off)
        have = (size_t)(s->size - off);
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

    return img_inside(off, len, s->size) ? 0 :
        img_fail(err, ENOSPC, "%s: the server's disk ends at %llu", f->path,
                 (unsigned long long)s->size);
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
static int nbd_file_zero(struct img_file *f, uint64_t off, uint64_t len,
                         unsigned flags, struct img_error *err)
{
    struct nbd *s = f->state;
    uint32_t wire = flags & IMG_FILE_MAY_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE;
    int ret = inside(f, off, len, err);

    if (ret < 0)
        return ret;
    if (!s->has_zero || !is_aligned(f, off, len) ||
        ((flags & IMG_FILE_FAST_ONLY) && !s->has_fast_zero))
        return -ENOTSUP;
    if (flags & IMG_FILE_FAST_ONLY)
        wire |= LIBNBD_CMD_FLAG_FAST_ZERO;
    while (len && ret == 0) {
        struct request r = {
            .op = ZERO, .off = off, .len = IMG_MIN(len, (uint64_t)ZERO_PIECE),
            .flags = wire
        };

        ret = run(f, &r, err);
        if (r.error == ENOTSUP || r.error == EOPNOTSUPP)
            ret = -ENOTSUP;
        off += r.len;
        len -= r.len;
    }
    return ret;
}

/* TRIM promises nothing of what is read afterwards; this does. */
static int nbd_file_punch(struct img_file *f, uint64_t off, uint64_t len,
                          struct img_error *err)
{
    return nbd_file_zero(f, off, len,
                         IMG_FILE_MAY_UNMAP | IMG_FILE_FAST_ONLY, err);
}

static int nbd_file_sync(struct img_file *f, struct img_error *err)
{
    struct nbd *s = f->state;
    struct request r = { .op = FLUSH };

    return s->has_flush && f->writable ? run(f, &r, err) : 0;
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
    *size = ((struct nbd *)f->state)->size;
    return 0;
}

/* ---- extents ----------------------------------------------------------- */

/* The answer for off from what is known, if it is. */
static bool look_up(const struct known *k, uint64_t off, uint64_t len,
                    bool *is_data, uint64_t *run)
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

static int ask(struct img_file *f, struct known *k, uint64_t off,
               uint64_t len, struct img_error *err)
{
    struct nbd *s = f->state;
    uint64_t from = img_round_down(off, f->align);
    uint64_t end = IMG_MIN(off + len, s->size);
    struct request r = {
        .op = STATUS, .off = from, .extents = k,
        .len = IMG_MIN(IMG_MIN(img_round_up(end, f->align), s->size) - from,
                       (uint64_t)ZERO_PIECE)
    };

    return run(f, &r, err);
}

static int nbd_file_extent(struct img_file *f, uint64_t off, uint64_t len,
                           bool *is_data, uint64_t *length,
                           struct img_error *err)
{
    struct nbd *s = f->state;
    struct known *k;
    bool found = false;
    int ret = 0;

    if (off >= s->size) {
        *is_data = false;
        *length = len;
        return 0;
    }
    if (!s->has_status)
        return -ENOTSUP;
    if (s->known) {
        img_lock(&s->lock);
        found = look_up(s->known, off, len, is_data, length);
        img_unlock(&s->lock);
    }
    if (found)
        return 0;
    k = calloc(1, sizeof *k);
    if (!k)
        return img_fail_nomem(err);
    /* Of a disk that we do not change, as much as the server will tell. */
    ret = ask(f, k, off, s->known ? s->size - off : len, err);
    if (ret == 0 && !look_up(k, off, len, is_data, length))
        ret = img_fail(err, EIO, "%s: the server does not say what is at "
                       "%llu", f->path, (unsigned long long)off);
    if (ret == 0 && s->known) {
        img_lock(&s->lock);
        *s->known = *k;
        img_unlock(&s->lock);
    }
    free(k);
    return ret;
}

/* ---- opening ----------------------------------------------------------- */

static void nbd_file_close(struct img_file *f)
{
    struct nbd *s = f->state;

    if (atomic_fetch_sub(&s->users, 1) > 1)
        return;
    for (unsigned i = 0; i < s->n; i++) {
        nbd_shutdown(s->conns[i]->h, 0);
        conn_free(s->conns[i]);
    }
    img_mutex_destroy(&s->lock);
    img_mutex_destroy(&s->rmw);
    free(s->known);
    free(s->uri);
    free(s);
}

static const struct img_file_ops nbd_ops = {
    .kind = "nbd", .preadv = nbd_file_preadv, .pwritev = nbd_file_pwritev,
    .zero = nbd_file_zero, .punch = nbd_file_punch, .sync = nbd_file_sync,
    .truncate = nbd_file_truncate, .size = nbd_file_size, .extent = nbd_file_extent,
    .close = nbd_file_close,
};

/* nbd:HOST:PORT[:exportname=NAME] and nbd:unix:PATH[:exportname=NAME] as a
 * URI; others are copied. */
static char *to_uri(const char *path)
{
    const char *rest = path + 4, *name = strstr(path, ":exportname=");
    int len = name ? (int)(name - rest) : (int)strlen(rest);
    const char *export = name ? name + 12 : "";
    char *uri = NULL;
    int n;

    if (strncasecmp(path, "nbd:", 4) || !strncmp(rest, "//", 2))
        return strdup(path);
    if (!strncmp(rest, "unix:", 5))
        n = asprintf(&uri, "nbd+unix:///%s?socket=%.*s", export, len - 5,
                     rest + 5);
    else
        n = asprintf(&uri, "nbd://%.*s/%s", len, rest, export);
    return n < 0 ? NULL : uri;
}

static int learn(struct img_file *f, struct nbd *s, unsigned flags,
                 struct img_error *err)
{
    struct nbd_handle *h = s->conns[0]->h;
    int64_t size = nbd_get_size(h);
    int64_t align = nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM);
    int64_t most = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM);

    if (size < 0)
        return fail_nbd(err, f->path, EIO);
    if (align <= 0)
        align = 1;
    if (!img_is_pow2((uint64_t)align) || align > MAX_ALIGN)
        return img_fail(err, ENOTSUP, "%s: the server wants blocks of %lld "
                        "bytes", f->path, (long long)align);
    if ((flags & IMG_FILE_WRITE) && nbd_is_read_only(h) == 1)
        return img_fail(err, EROFS, "%s: the server serves it read-only",
                        f->path);
    s->size = (uint64_t)size;
    s->piece = most > 0 && most < PIECE ? (uint64_t)most : PIECE;
    s->piece = img_round_down(s->piece, (uint64_t)align);
    if (!s->piece)
        s->piece = (uint64_t)align;
    s->more = nbd_can_multi_conn(h) == 1;
    s->has_flush = nbd_can_flush(h) == 1;
    s->has_zero = nbd_can_zero(h) == 1;
    s->has_fast_zero = nbd_can_fast_zero(h) == 1;
    s->has_status =
        nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
    f->align = (uint32_t)align;
    f->writable = flags & IMG_FILE_WRITE;
    f->no_sync = flags & IMG_FILE_NO_SYNC;
    if (!f->writable && s->has_status)
        s->known = calloc(1, sizeof *s->known);
    return 0;
}

int img_nbd_open(const char *uri, unsigned flags, struct img_file **file,
                 struct img_error *err)
{
    struct img_file *f = calloc(1, sizeof *f);
    struct nbd *s = calloc(1, sizeof *s);
    int ret = 0;

    if (f)
        f->path = strdup(uri);
    if (s)
        s->uri = to_uri(uri);
    if (!f || !s || !f->path || !s->uri) {
        if (s)
            free(s->uri);
        if (f)
            free(f->path);
        free(s);
        free(f);
        return img_fail_nomem(err);
    }
    img_mutex_init(&s->lock);
    img_mutex_init(&s->rmw);
    atomic_init(&s->users, 1);
    f->ops = &nbd_ops;
    f->state = s;
    f->fd = -1;
    f->is_device = true;        /* its size is fixed, its bytes are old */
    s->conns[0] = dial_first(s->uri, err);
    if (s->conns[0])
        s->n = 1;
    ret = s->n ? learn(f, s, flags, err) : -EIO;
    if (ret < 0) {
        ret = err && err->code ? -err->code : ret;
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
