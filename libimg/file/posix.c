/* Files and block devices behind a descriptor.
 *
 * Growing a file never uses ftruncate: between looking at the size and
 * setting it, another thread may have written behind it, and that would be
 * cut off.  With O_DIRECT a write of parts of blocks reads, changes and
 * writes whole ones, so it excludes all other changes (`edge`).
 */
#include "file/file.h"
#include "file/nbd.h"
#include "file/lock.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"
#include "base/sync.h"
#include "libimg.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { DIRECT_ALIGN = 4096, BOUNCE_MAX = 1 << 20 };

struct posix {
    struct img_rwlock edge;     /* changes: shared; of parts of O_DIRECT
                                   blocks: exclusive */
    /* One sync at a time; sync_lock protects the rest. */
    struct img_mutex sync_lock;
    struct img_cond synced;
    bool syncing;
    uint64_t begun, ended;      /* syncs, ever */
    int lost;                   /* errno of one that failed */
    unsigned perm, shared;      /* what is locked */
    /* Where the last data were found.  Finding the end of a long run of data
     * costs the kernel a walk over all of it, and who maps an image asks
     * again and again within one run.  Only data are remembered: what has
     * become a hole since is then read, and reads as zeros. */
    struct img_mutex memory;    /* protects from, to */
    uint64_t from, to;
};

static bool remembers_data(struct img_file *f, uint64_t off, uint64_t *to)
{
    struct posix *p = f->state;
    bool inside;

    img_lock(&p->memory);
    inside = off >= p->from && off < p->to;
    *to = p->to;
    img_unlock(&p->memory);
    return inside;
}

static void remember_data(struct img_file *f, uint64_t from, uint64_t to)
{
    struct posix *p = f->state;

    img_lock(&p->memory);
    p->from = from;
    p->to = to;
    img_unlock(&p->memory);
}

static void change_begin(struct img_file *f)
{
    if (f->align > 1)
        img_read_lock(&((struct posix *)f->state)->edge);
}

static void change_end(struct img_file *f)
{
    if (f->align > 1)
        img_rw_unlock(&((struct posix *)f->state)->edge);
}

/* ---- transfers --------------------------------------------------------- */

typedef ssize_t transfer_fn(int, const struct iovec *, int, off_t);

/* Moves all of iov; returns how much it did, less only at the end of the
 * file or the device, or a negative errno. */
static ssize_t transfer_all(struct img_file *f, transfer_fn *fn,
                            const struct iovec *iov, int n, uint64_t off,
                            size_t total)
{
    img_autofree struct iovec *rest = NULL;
    const struct iovec *now = iov;
    size_t done = 0;
    int left = n;

    while (done < total) {
        ssize_t r = fn(f->fd, now, IMG_MIN(left, IOV_MAX),
                       (off_t)(off + done));
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return -errno;
        if (r == 0)
            break;
        done += (size_t)r;
        if (done == total || !img_is_aligned(off + done, f->align))
            break;
        if (!rest) {
            rest = malloc((size_t)n * sizeof *rest);
            if (!rest)
                return -ENOMEM;
        }
        left = img_iov_slice(iov, n, done, total - done, rest);
        now = rest;
    }
    return (ssize_t)done;
}

static bool is_direct_ready(const struct img_file *f, const struct iovec *iov,
                            int n, uint64_t off)
{
    if (f->align == 1)
        return true;
    if (!img_is_aligned(off, f->align))
        return false;
    for (int i = 0; i < n; i++)
        if (!img_is_aligned((uintptr_t)iov[i].iov_base | iov[i].iov_len,
                            f->align))
            return false;
    return true;
}

/* Reads through an aligned buffer. */
static ssize_t bounce_read(struct img_file *f, const struct iovec *iov, int n,
                           uint64_t off, size_t total)
{
    uint64_t at = img_round_down(off, f->align);
    uint64_t end = img_round_up(off + total, f->align);
    size_t size = (size_t)IMG_MIN(end - at, (uint64_t)BOUNCE_MAX);
    img_autofree char *buf = aligned_alloc(f->align, size);
    size_t done = 0;

    if (!buf)
        return -ENOMEM;
    while (done < total) {
        size_t skip = (size_t)(off + done - at);
        size_t len = (size_t)IMG_MIN(end - at, (uint64_t)size);
        size_t part = IMG_MIN(len - skip, total - done);
        struct iovec one = { buf, len };
        ssize_t r = transfer_all(f, preadv, &one, 1, at, len);

        if (r < 0)
            return r;
        if ((size_t)r < skip + part)
            part = (size_t)r > skip ? (size_t)r - skip : 0;
        img_iov_fill(iov, n, done, buf + skip, part);
        done += part;
        if ((size_t)r < len)
            break;
        at += len;
    }
    return (ssize_t)done;
}

/* The same for writing.  Blocks of which only a part is written are read
 * first; the caller has made sure that nobody else changes them. */
static ssize_t bounce_write(struct img_file *f, const struct iovec *iov,
                            int n, uint64_t off, size_t total)
{
    uint64_t at = img_round_down(off, f->align);
    uint64_t end = img_round_up(off + total, f->align);
    size_t size = (size_t)IMG_MIN(end - at, (uint64_t)BOUNCE_MAX);
    img_autofree char *buf = aligned_alloc(f->align, size);
    size_t done = 0;

    if (!buf)
        return -ENOMEM;
    while (done < total) {
        size_t skip = (size_t)(off + done - at);
        size_t len = (size_t)IMG_MIN(end - at, (uint64_t)size);
        size_t part = IMG_MIN(len - skip, total - done);
        struct iovec one = { buf, len };
        ssize_t r = 0;

        if (part < len) {
            r = transfer_all(f, preadv, &one, 1, at, len);
            if (r < 0)
                return r;
            memset(buf + r, 0, len - (size_t)r);
        }
        img_iov_gather(iov, n, done, buf + skip, part);
        r = transfer_all(f, pwritev, &one, 1, at, len);
        if (r < 0)
            return r;
        if ((size_t)r < len)
            break;
        done += part;
        at += len;
    }
    return (ssize_t)done;
}

/* Writing parts of blocks; the file must not become longer than if it had
 * been written byte by byte: for a raw image that is the disk's size. */
static ssize_t write_parts(struct img_file *f, const struct iovec *iov, int n,
                           uint64_t off, size_t total)
{
    struct posix *p = f->state;
    struct stat before = { 0 };
    uint64_t want;
    ssize_t r;

    img_write_lock(&p->edge);
    r = fstat(f->fd, &before) < 0 ? -errno : 0;
    if (r == 0)
        r = bounce_write(f, iov, n, off, total);
    want = IMG_MAX(off + (uint64_t)IMG_MAX(r, 0), (uint64_t)before.st_size);
    if (r >= 0 && !f->is_device && want < img_round_up(off + total, f->align))
        while (ftruncate(f->fd, (off_t)want) < 0) {
            if (errno == EINTR)
                continue;
            r = -errno;
            break;
        }
    img_rw_unlock(&p->edge);
    return r;
}

static int posix_preadv(struct img_file *f, const struct iovec *iov, int n,
                        uint64_t off, struct img_error *err)
{
    size_t total = img_iov_total(iov, n);
    ssize_t r;

    if (off > INT64_MAX || total > INT64_MAX - off) {
        img_iov_clear(iov, n, 0, total);
        return 0;
    }
    if (is_direct_ready(f, iov, n, off))
        r = transfer_all(f, preadv, iov, n, off, total);
    else
        r = bounce_read(f, iov, n, off, total);
    if (r < 0)
        return img_fail_errno(err, (int)-r, "%s: reading %zu bytes at 0x%llx",
                              f->path, total, (unsigned long long)off);
    if ((size_t)r < total)
        img_iov_clear(iov, n, (size_t)r, total - (size_t)r);
    return 0;
}

/* RWF_NOWAIT is not known here.  Files in memory need not be asked. */
static void without_nowait(struct img_file *f)
{
    struct statfs fs;
    bool *what = &f->never_now;

    if (fstatfs(f->fd, &fs) == 0 &&
        (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC))
        what = &f->in_memory;
    __atomic_store_n(what, true, __ATOMIC_RELAXED);
}

static int posix_preadv_now(struct img_file *f, const struct iovec *iov,
                            int n, uint64_t off)
{
    size_t total = img_iov_total(iov, n);
    ssize_t r;

    if (f->align > 1 || n > IOV_MAX || off > INT64_MAX)
        return -EAGAIN;
    r = preadv2(f->fd, iov, n, (off_t)off,
                __atomic_load_n(&f->in_memory, __ATOMIC_RELAXED) ? 0 :
                RWF_NOWAIT);
    if (r < 0 && (errno == EOPNOTSUPP || errno == ENOSYS))
        without_nowait(f);
    return r >= 0 && (size_t)r == total ? 0 : -EAGAIN;
}

/* Since Linux 6.5; the C library's headers may be older.  The number is the
 * same everywhere but on Alpha (the kernel's syscall tables). */
#if !defined(SYS_cachestat) && !defined(__alpha__)
#define SYS_cachestat 451
#endif

/* Is all of it in the page cache?  Older kernels do not say. */
static bool is_in_cache(struct img_file *f, uint64_t off, size_t len)
{
#ifdef SYS_cachestat
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t range[2] = { off, len };
    uint64_t stat[5] = { 0 };   /* the first: pages in the cache */

    return syscall(SYS_cachestat, f->fd, range, stat, 0) == 0 &&
           stat[0] >= (off + len - 1) / page - off / page + 1;
#else
    return false;
#endif
}

static int posix_splice_now(struct img_file *f, int pipe, size_t len,
                            uint64_t off)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    off_t at = (off_t)off;
    size_t done = 0;
    int room = fcntl(pipe, F_GETPIPE_SZ);

    if (f->align > 1 || off > INT64_MAX - len || room < 0 ||
        off % page + len > (size_t)room ||
        (!__atomic_load_n(&f->in_memory, __ATOMIC_RELAXED) &&
         !is_in_cache(f, off, len)))
        return -EAGAIN;
    while (done < len) {
        ssize_t r = splice(f->fd, &at, pipe, NULL, len - done,
                           SPLICE_F_NONBLOCK);

        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0)
            return -EAGAIN;
        done += (size_t)r;
    }
    return 0;
}

static int posix_pwritev(struct img_file *f, const struct iovec *iov, int n,
                         uint64_t off, struct img_error *err)
{
    size_t total = img_iov_total(iov, n);
    ssize_t r;

    if (off > INT64_MAX || total > INT64_MAX - off)
        return img_fail(err, EFBIG, "%s: writing at 0x%llx: too far",
                        f->path, (unsigned long long)off);
    if (img_is_aligned(off | total, f->align)) {
        change_begin(f);
        if (is_direct_ready(f, iov, n, off))
            r = transfer_all(f, pwritev, iov, n, off, total);
        else
            r = bounce_write(f, iov, n, off, total);
        change_end(f);
    } else {
        r = write_parts(f, iov, n, off, total);
    }
    if (r >= 0 && (size_t)r < total)
        r = -ENOSPC;
    if (r < 0)
        return img_fail_errno(err, (int)-r, "%s: writing %zu bytes at 0x%llx",
                              f->path, total, (unsigned long long)off);
    return 0;
}

/* ---- space ------------------------------------------------------------- */

static bool is_unsupported(int code)
{
    return code == EOPNOTSUPP || code == ENOSYS || code == ENOTTY ||
           code == EINVAL || code == ENODEV;
}

static int try_fallocate(struct img_file *f, int mode, uint64_t off,
                         uint64_t len, struct img_error *err)
{
    int r, code;

    remember_data(f, 0, 0);
    change_begin(f);
    do
        r = fallocate(f->fd, mode, (off_t)off, (off_t)len);
    while (r < 0 && errno == EINTR);
    code = errno;
    change_end(f);
    if (r == 0)
        return 0;
    if (is_unsupported(code))
        return img_fail(err, ENOTSUP, "%s: fallocate mode 0x%x is not "
                        "supported here", f->path, mode);
    return img_fail_errno(err, code, "%s: fallocate at 0x%llx", f->path,
                          (unsigned long long)off);
}

/* Makes the file at least `end` long by writing the last bytes of a range
 * that is the caller's. */
static int grow(struct img_file *f, uint64_t end, struct img_error *err)
{
    static const char zeros[DIRECT_ALIGN];

    return img_file_pwrite(f, zeros, f->align, end - f->align, err);
}

static int zero_file(struct img_file *f, uint64_t off, uint64_t len,
                     unsigned flags, struct img_error *err)
{
    uint64_t size;
    int r = img_file_size(f, &size, err);

    if (r < 0)
        return r;
    if (flags & IMG_FILE_MAY_UNMAP) {
        if (off < size)
            r = try_fallocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                              off, len, err);
        if (r == 0 && off + len > size)
            r = grow(f, off + len, err);
        if (r != -ENOTSUP)
            return r;
    }
    return try_fallocate(f, FALLOC_FL_ZERO_RANGE, off, len, err);
}

/* On a device the kernel may write zeros itself when the range has to keep
 * its place, which is what FAST_ONLY does not want. */
static int zero_device(struct img_file *f, uint64_t off, uint64_t len,
                       unsigned flags, struct img_error *err)
{
    int r = -ENOTSUP;

    if (flags & IMG_FILE_MAY_UNMAP)
        r = try_fallocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off,
                          len, err);
    if (r == -ENOTSUP && !(flags & IMG_FILE_FAST_ONLY))
        r = try_fallocate(f, FALLOC_FL_ZERO_RANGE, off, len, err);
    return r;
}

static int posix_zero(struct img_file *f, uint64_t off, uint64_t len,
                      unsigned flags, struct img_error *err)
{
    if (!img_is_aligned(off | len, f->align) || off > INT64_MAX ||
        len > INT64_MAX - off)
        return -ENOTSUP;
    return f->is_device ? zero_device(f, off, len, flags, err)
                        : zero_file(f, off, len, flags, err);
}

static int posix_punch(struct img_file *f, uint64_t off, uint64_t len,
                       struct img_error *err)
{
    return try_fallocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off,
                         len, err);
}

static int posix_allocate(struct img_file *f, uint64_t off, uint64_t len,
                          struct img_error *err)
{
    return try_fallocate(f, 0, off, len, err);
}

static int posix_truncate(struct img_file *f, uint64_t size,
                          struct img_error *err)
{
    int r, code;

    if (f->is_device) {
        uint64_t has;

        r = img_file_size(f, &has, err);
        if (r == 0 && size > has)
            r = img_fail(err, ENOSPC, "%s: the device has %llu bytes, "
                         "%llu are needed", f->path, (unsigned long long)has,
                         (unsigned long long)size);
        return r;
    }
    if (size > INT64_MAX)
        return img_fail(err, EFBIG, "%s: %llu bytes are too many", f->path,
                        (unsigned long long)size);
    remember_data(f, 0, 0);
    change_begin(f);
    do
        r = ftruncate(f->fd, (off_t)size);
    while (r < 0 && errno == EINTR);
    code = errno;
    change_end(f);
    return r == 0 ? 0 : img_fail_errno(err, code, "%s: setting its size to "
                                       "%llu", f->path,
                                       (unsigned long long)size);
}

/* 0, or an errno. */
static int sync_now(const struct img_file *f)
{
    while (fdatasync(f->fd) < 0)
        if (errno == EINVAL || errno == ENOSYS)
            return 0;           /* nothing that could be made durable */
        else if (errno != EINTR)
            return errno;
    return 0;
}

/* The kernel reports a lost write to one sync only and then forgets it: no
 * later sync of ours may say that all is well, nor one that ran beside it.
 * So there is one at a time, and it is for all who asked before it began. */
static int posix_sync(struct img_file *f, struct img_error *err)
{
    struct posix *p = f->state;
    bool first = false;
    uint64_t mine;
    int code;

    img_lock(&p->sync_lock);
    mine = p->begun + 1;
    while (!p->lost && p->ended < mine) {
        if (p->syncing) {
            img_wait(&p->synced, &p->sync_lock);
            continue;
        }
        p->syncing = true;
        p->begun++;
        img_unlock(&p->sync_lock);
        code = sync_now(f);
        img_lock(&p->sync_lock);
        p->syncing = false;
        p->ended = p->begun;
        p->lost = code;
        first = code;
        img_wake_all(&p->synced);
    }
    code = p->lost;
    img_unlock(&p->sync_lock);
    if (!code)
        return 0;
    return img_fail_errno(err, code, first ? "%s: making it durable" :
                          "%s: an earlier write was lost", f->path);
}

static int posix_size(struct img_file *f, uint64_t *size,
                      struct img_error *err)
{
    struct stat st;

    if (f->is_device) {
        if (ioctl(f->fd, BLKGETSIZE64, size) < 0)
            return img_fail_errno(err, errno, "%s: its size", f->path);
        return 0;
    }
    if (fstat(f->fd, &st) < 0)
        return img_fail_errno(err, errno, "%s", f->path);
    *size = (uint64_t)st.st_size;
    return 0;
}

uint64_t img_file_modified(const struct img_file *f)
{
    struct stat st;

    if (f->fd < 0 || f->is_device || fstat(f->fd, &st) < 0 ||
        st.st_mtim.tv_sec <= 0)
        return 0;
    return (uint64_t)st.st_mtim.tv_sec * 1000000000 +
           (uint64_t)st.st_mtim.tv_nsec;
}

static int posix_extent(struct img_file *f, uint64_t off, uint64_t len,
                        bool *is_data, uint64_t *run, struct img_error *err)
{
    off_t data, hole;
    uint64_t to;

    if (off > INT64_MAX) {
        *is_data = false;
        *run = len;
        return 0;
    }
    if (remembers_data(f, off, &to)) {
        *is_data = true;
        *run = IMG_MIN(to - off, len);
        return 0;
    }
    data = lseek(f->fd, (off_t)off, SEEK_DATA);
    if (data < 0 && errno == ENXIO) {
        *is_data = false;       /* nothing but hole up to the end */
        *run = len;
        return 0;
    }
    if (data < 0)
        return -ENOTSUP;
    if ((uint64_t)data > off) {
        *is_data = false;
        *run = IMG_MIN((uint64_t)data - off, len);
        return 0;
    }
    hole = lseek(f->fd, (off_t)off, SEEK_HOLE);
    if (hole < 0 || (uint64_t)hole <= off)
        return -ENOTSUP;        /* the file changed under us */
    remember_data(f, off, (uint64_t)hole);
    *is_data = true;
    *run = IMG_MIN((uint64_t)hole - off, len);
    return 0;
}

static int posix_reflink(struct img_file *to, uint64_t to_off,
                         struct img_file *from, uint64_t from_off,
                         uint64_t len, struct img_error *err)
{
    struct file_clone_range range = {
        .src_fd = from->fd, .src_offset = from_off,
        .src_length = len, .dest_offset = to_off,
    };

    if (ioctl(to->fd, FICLONERANGE, &range) == 0)
        return 0;
    if (is_unsupported(errno) || errno == EXDEV || errno == EPERM ||
        errno == ETXTBSY || errno == EISDIR)
        return img_fail(err, ENOTSUP, "%s: cannot share blocks with %s",
                        to->path, from->path);
    return img_fail_errno(err, errno, "%s: sharing blocks with %s", to->path,
                          from->path);
}

static uint64_t posix_allocated(struct img_file *f)
{
    struct stat st;

    return fstat(f->fd, &st) < 0 ? 0 : (uint64_t)st.st_blocks * 512;
}

static int posix_lock(struct img_file *f, unsigned perm, unsigned shared,
                      struct img_error *err)
{
    struct posix *p = f->state;
    int r = img_lock_apply(f->fd, f->path, p->perm, p->shared, perm, shared,
                           err);

    if (r == 0) {
        p->perm = perm;
        p->shared = shared;
    }
    return r;
}

static void posix_close(struct img_file *f)
{
    struct posix *p = f->state;

    close(f->fd);
    img_rwlock_destroy(&p->edge);
    img_mutex_destroy(&p->memory);
    img_mutex_destroy(&p->sync_lock);
    img_cond_destroy(&p->synced);
    free(p);
}

static const struct img_file_ops posix_ops = {
    .kind = "file", .preadv = posix_preadv,
    .preadv_now = posix_preadv_now, .splice_now = posix_splice_now,
    .pwritev = posix_pwritev,
    .zero = posix_zero, .punch = posix_punch, .allocate = posix_allocate,
    .truncate = posix_truncate, .sync = posix_sync, .size = posix_size,
    .extent = posix_extent, .reflink = posix_reflink, .lock = posix_lock,
    .allocated = posix_allocated, .close = posix_close,
};

/* ---- opening ----------------------------------------------------------- */

static int look_at(struct img_file *f, unsigned flags, struct img_error *err)
{
    struct stat st;
    int fl, sector = 512;

    if (fstat(f->fd, &st) < 0)
        return img_fail_errno(err, errno, "%s", f->path);
    if (S_ISDIR(st.st_mode))
        return img_fail(err, EISDIR, "%s: is a folder", f->path);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return img_fail(err, EINVAL, "%s: neither a file nor a block device",
                        f->path);
    fl = fcntl(f->fd, F_GETFL);
    if (fl < 0)
        return img_fail_errno(err, errno, "%s", f->path);
    if ((flags & IMG_FILE_WRITE) && (fl & O_ACCMODE) != O_RDWR)
        return img_fail(err, EACCES, "%s: the descriptor is not open for "
                        "reading and writing", f->path);
    if ((fl & O_ACCMODE) == O_WRONLY || (fl & O_PATH))
        return img_fail(err, EACCES, "%s: the descriptor is not open for "
                        "reading", f->path);
    if ((flags & IMG_FILE_WRITE) && (fl & O_APPEND))
        return img_fail(err, EINVAL, "%s: the descriptor is open for "
                        "appending: all writes would go to the end", f->path);
    f->writable = flags & IMG_FILE_WRITE;
    f->no_sync = flags & IMG_FILE_NO_SYNC;
    f->is_device = S_ISBLK(st.st_mode);
    f->device = f->is_device ? st.st_rdev : st.st_dev;
    f->inode = f->is_device ? 0 : st.st_ino;
    f->align = 1;
    if (fl & O_DIRECT)
        f->align = DIRECT_ALIGN;
    if (f->is_device && ioctl(f->fd, BLKSSZGET, &sector) == 0 && sector > 0 &&
        (fl & O_DIRECT))
        f->align = IMG_MAX((uint32_t)sector, f->align);
    return 0;
}

int img_file_use_page_cache(struct img_file *f, struct img_error *err)
{
    int flags;

    if (f->ops != &posix_ops || f->align == 1)
        return 0;
    flags = fcntl(f->fd, F_GETFL);
    if (flags < 0 || fcntl(f->fd, F_SETFL, flags & ~O_DIRECT) < 0)
        return img_fail_errno(err, errno, "%s: leaving O_DIRECT", f->path);
    f->align = 1;
    return 0;
}

int img_file_from_fd(int fd, const char *path, unsigned flags,
                     struct img_file **file, struct img_error *err)
{
    struct img_file *f = calloc(1, sizeof *f);
    struct posix *p = calloc(1, sizeof *p);
    int r;

    if (f)
        f->path = strdup(path);
    if (!f || !p || !f->path) {
        free(p);
        if (f)
            free(f->path);
        free(f);
        close(fd);
        return img_fail_nomem(err);
    }
    img_rwlock_init(&p->edge);
    img_mutex_init(&p->memory);
    img_mutex_init(&p->sync_lock);
    img_cond_init(&p->synced);
    p->shared = IMG_PERM_ALL;
    f->state = p;
    f->ops = &posix_ops;
    f->fd = fd;
    r = look_at(f, flags, err);
    if (r < 0) {
        img_file_close(f);
        return r;
    }
    *file = f;
    return 0;
}

int img_file_open(const char *path, unsigned flags, struct img_file **file,
                  struct img_error *err)
{
    int mode = flags & IMG_FILE_WRITE ? O_RDWR : O_RDONLY;
    int fd;

    if ((flags & IMG_FILE_BY_USER) && img_nbd_is_uri(path))
        return img_nbd_open(path, flags, file, err);
    /* O_NONBLOCK: a FIFO must not make us wait before it is refused. */
    mode |= O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    if (flags & IMG_FILE_CREATE)
        mode |= O_CREAT | O_EXCL;
    if (flags & IMG_FILE_DIRECT)
        mode |= O_DIRECT;
    do
        fd = open(path, mode, 0666);
    while (fd < 0 && errno == EINTR);
    if (fd < 0 && errno == EINVAL && (flags & IMG_FILE_DIRECT))
        return img_fail(err, EINVAL, "%s: the file system cannot bypass the "
                        "page cache (O_DIRECT)", path);
    if (fd < 0)
        return img_fail_errno(err, errno, "Could not open '%s'", path);
    return img_file_from_fd(fd, path, flags, file, err);
}
