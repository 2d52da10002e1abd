/* See shim.h.  The real thing is done by the system call itself. */
#include "shim.h"
#include "record.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct shim_fault *shim_fault;
struct record *shim_record;
atomic_long shim_blocks;
shim_answer *shim_answers;

/* true: *r is what the call returns. */
static bool answered(const char *call, int fd, unsigned long flags, void *arg,
                     int *r)
{
    int code = shim_answers ? shim_answers(call, fd, flags, arg) : 0;

    if (code > 0)
        errno = code;
    *r = code > 0 ? -1 : 0;
    return code;
}

static bool is_due(unsigned kind)
{
    struct shim_fault *t = shim_fault;
    long left;
    bool now;

    if (!t || !(t->kinds & kind))
        return false;
    atomic_fetch_add(&t->seen, 1);
    left = atomic_load(&t->left);
    while (left > 0 && !atomic_compare_exchange_weak(&t->left, &left,
                                                     left - 1))
        ;
    now = left == 1 || (left == 0 && t->for_ever && t->failed &&
                        (!t->times || t->failed < t->times));
    if (now)
        atomic_fetch_add(&t->failed, 1);
    if (now && t->code == SHIM_KILL)
        kill(getpid(), SIGKILL);
    return now;
}

/* For calls that are done or not. */
static bool fails(unsigned kind)
{
    if (!is_due(kind) || !shim_fault->code)
        return false;
    errno = shim_fault->code;
    return true;
}

/* Images are files and devices; what goes to a terminal or a pipe is not
 * ours. */
static bool is_file(int fd)
{
    struct stat st;

    return (shim_fault || shim_record) &&
           syscall(SYS_fstat, fd, &st) == 0 &&
           (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode));
}

/* ---- reading and writing ----------------------------------------------- */

/* The first half of iov, in at most max pieces: whole sectors, unless only a
 * count is short. */
static int half_of(const struct iovec *iov, int n, bool sectors,
                   struct iovec *part, int max)
{
    size_t total = 0, half;
    int k = 0;

    for (int i = 0; i < n; i++)
        total += iov[i].iov_len;
    half = sectors ? total / 2 / 512 * 512 : total / 2;
    for (int i = 0; i < n && i < max && half; i++) {
        part[k] = iov[i];
        if (part[k].iov_len > half)
            part[k].iov_len = half;
        half -= part[k++].iov_len;
    }
    return k;
}

/* flags: of preadv2; the others take none and do not look. */
static ssize_t moved(long call, int fd, const struct iovec *iov, int n,
                     off_t off, int flags, unsigned kind)
{
    struct iovec part[16];
    int k = 0;

    if (!is_file(fd) || !is_due(kind))
        return syscall(call, fd, iov, n, off, 0, flags);
    if (!shim_fault->code || (shim_fault->torn && kind == SHIM_WRITE))
        k = half_of(iov, n, shim_fault->code, part, 16);
    if (!shim_fault->code)
        return k ? syscall(call, fd, part, k, off, 0, flags)
                 : syscall(call, fd, iov, n, off, 0, flags);
    if (k)
        syscall(call, fd, part, k, off, 0, flags);
    errno = shim_fault->code;
    return -1;
}

ssize_t preadv(int fd, const struct iovec *iov, int n, off_t off)
{
    int said;

    if (answered("read", fd, 0, NULL, &said))
        return said;
    return moved(SYS_preadv, fd, iov, n, off, 0, SHIM_READ);
}

ssize_t preadv2(int fd, const struct iovec *iov, int n, off_t off, int flags)
{
    int said;

    if (answered("preadv2", fd, (unsigned)flags, NULL, &said))
        return said;
    return moved(SYS_preadv2, fd, iov, n, off, flags, SHIM_READ);
}

ssize_t splice(int from, off_t *from_off, int to, off_t *to_off, size_t len,
               unsigned flags)
{
    if (is_file(from) && is_due(SHIM_READ)) {
        if (shim_fault->code) {
            errno = shim_fault->code;
            return -1;
        }
        len = len > 1 ? len / 2 : len;
    }
    return syscall(SYS_splice, from, from_off, to, to_off, len, flags);
}

ssize_t pwritev(int fd, const struct iovec *iov, int n, off_t off)
{
    size_t i = record_begin_write(shim_record, fd, iov, n, off);
    int said;
    ssize_t r;

    if (answered("write", fd, 0, NULL, &said))
        r = said;
    else
        r = moved(SYS_pwritev, fd, iov, n, off, 0, SHIM_WRITE);
    record_ended(shim_record, i, r >= 0);
    return r;
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t off)
{
    struct iovec one = { (void *)buf, len };

    return pwritev(fd, &one, 1, off);
}

ssize_t read(int fd, void *buf, size_t len)
{
    if (is_file(fd) && fails(SHIM_READ))
        return -1;
    return syscall(SYS_read, fd, buf, len);
}

ssize_t write(int fd, const void *buf, size_t len)
{
    if (is_file(fd) && fails(SHIM_WRITE))
        return -1;
    return syscall(SYS_write, fd, buf, len);
}

/* ---- space ------------------------------------------------------------- */

int fallocate(int fd, int mode, off_t off, off_t len)
{
    size_t i;
    long r;
    int said;

    if (answered("fallocate", fd, (unsigned)mode, NULL, &said))
        return said;
    if (is_file(fd) && fails(SHIM_SPACE))
        return -1;
    i = record_begin_space(shim_record, fd, mode, off, len);
    r = syscall(SYS_fallocate, fd, mode, off, len);
    record_ended(shim_record, i, r >= 0);
    return (int)r;
}

int ftruncate(int fd, off_t len)
{
    size_t i;
    long r;
    int said;

    if (answered("ftruncate", fd, 0, NULL, &said))
        return said;
    if (is_file(fd) && fails(SHIM_SPACE))
        return -1;
    i = record_begin_truncate(shim_record, fd, len);
    r = syscall(SYS_ftruncate, fd, len);
    record_ended(shim_record, i, r >= 0);
    return (int)r;
}

static int sync_by(long call, int fd)
{
    size_t i;
    long r;
    int said;

    if (answered("sync", fd, 0, NULL, &said))
        return said;
    if (is_file(fd) && fails(SHIM_SYNC))
        return -1;
    i = record_begin_sync(shim_record, fd);
    r = syscall(call, fd);
    record_ended(shim_record, i, r >= 0);
    return (int)r;
}

int fdatasync(int fd)
{
    return sync_by(SYS_fdatasync, fd);
}

int fsync(int fd)
{
    return sync_by(SYS_fsync, fd);
}

/* ---- looking, names ---------------------------------------------------- */

int fstat(int fd, struct stat *st)
{
    int said;

    if (answered("fstat", fd, 0, st, &said))
        return said;
    if (is_file(fd) && fails(SHIM_LOOK))
        return -1;
    return (int)syscall(SYS_fstat, fd, st);
}

off_t lseek(int fd, off_t off, int whence)
{
    int said;

    if (answered("lseek", fd, (unsigned)whence, &off, &said))
        return said;
    if (is_file(fd) && fails(SHIM_LOOK))
        return -1;
    return syscall(SYS_lseek, fd, off, whence);
}

int open(const char *path, int flags, ...)
{
    mode_t mode = 0;
    int said, fd;

    if (flags & (O_CREAT | O_TMPFILE)) {
        va_list ap;

        va_start(ap, flags);
        mode = va_arg(ap, mode_t);
        va_end(ap);
    }
    if (answered("open", -1, (unsigned)flags, (void *)path, &said))
        return said;
    if (fails(SHIM_NAME))
        return -1;
    fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (fd >= 0 && ((flags & O_TMPFILE) == O_TMPFILE || flags & O_EXCL))
        record_new_file(shim_record, fd);
    return fd;
}

int linkat(int from_dir, const char *from, int to_dir, const char *to,
           int flags)
{
    int said;

    if (answered("linkat", -1, (unsigned)flags, NULL, &said))
        return said;
    if (fails(SHIM_NAME))
        return -1;
    return (int)syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
}

int link(const char *from, const char *to)
{
    int said;

    if (answered("link", -1, 0, NULL, &said))
        return said;
    if (fails(SHIM_NAME))
        return -1;
    return (int)syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int rename(const char *from, const char *to)
{
    int said, r;
    size_t i;

    if (answered("rename", -1, 0, NULL, &said))
        return said;
    if (fails(SHIM_NAME))
        return -1;
    i = record_begin_rename(shim_record, from, to);
    r = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    record_ended(shim_record, i, r >= 0);
    return r;
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to,
              unsigned flags)
{
    int said;

    if (answered("renameat2", -1, flags, NULL, &said))
        return said;
    if (fails(SHIM_NAME))
        return -1;
    return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
}

/* ---- what is only answered --------------------------------------------- */

int access(const char *path, int mode)
{
    int said;

    if (answered("access", -1, (unsigned)mode, (void *)path, &said))
        return said;
    return (int)syscall(SYS_faccessat, AT_FDCWD, path, mode);
}

int fchmod(int fd, mode_t mode)
{
    int said;

    if (answered("fchmod", fd, mode, NULL, &said))
        return said;
    return (int)syscall(SYS_fchmod, fd, mode);
}

int fchown(int fd, uid_t uid, gid_t gid)
{
    int said;

    if (answered("fchown", fd, 0, NULL, &said))
        return said;
    return (int)syscall(SYS_fchown, fd, uid, gid);
}

int syncfs(int fd)
{
    int said;

    if (answered("syncfs", fd, 0, NULL, &said))
        return said;
    return (int)syscall(SYS_syncfs, fd);
}

/* Both take at most one argument, which a register holds. */
int fcntl(int fd, int command, ...)
{
    va_list ap;
    void *arg;
    int said;

    va_start(ap, command);
    arg = va_arg(ap, void *);
    va_end(ap);
    if (answered("fcntl", fd, (unsigned)command, arg, &said))
        return said;
    return (int)syscall(SYS_fcntl, fd, command, arg);
}

int ioctl(int fd, unsigned long command, ...)
{
    va_list ap;
    void *arg;
    int said;

    va_start(ap, command);
    arg = va_arg(ap, void *);
    va_end(ap);
    if (answered("ioctl", fd, command, arg, &said))
        return said;
    return (int)syscall(SYS_ioctl, fd, command, arg);
}

/* ---- memory ------------------------------------------------------------ */

#ifndef SHIM_SANITIZED
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
void __libc_free(void *);

static bool may_have(void)
{
    if (!is_due(SHIM_MEMORY))
        return true;
    errno = ENOMEM;
    return false;
}

static void *count(void *p)
{
    if (p)
        atomic_fetch_add(&shim_blocks, 1);
    return p;
}

void *malloc(size_t n)
{
    return may_have() ? count(__libc_malloc(n)) : NULL;
}

void *calloc(size_t n, size_t size)
{
    return may_have() ? count(__libc_calloc(n, size)) : NULL;
}

void *realloc(void *p, size_t n)
{
    if (!may_have())
        return NULL;
    return p ? __libc_realloc(p, n) : count(__libc_malloc(n));
}

void *aligned_alloc(size_t align, size_t n)
{
    return may_have() ? count(__libc_memalign(align, n)) : NULL;
}

int posix_memalign(void **p, size_t align, size_t n)
{
    void *got = may_have() ? count(__libc_memalign(align, n)) : NULL;

    if (!got)
        return ENOMEM;
    *p = got;
    return 0;
}

void free(void *p)
{
    if (p)
        atomic_fetch_sub(&shim_blocks, 1);
    __libc_free(p);
}
#endif

int shim_descriptors(void)
{
    DIR *d = opendir("/proc/self/fd");
    int n = 0;

    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}
