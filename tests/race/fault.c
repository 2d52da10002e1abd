/* File operations: choices for the scheduler, and one of them fails. */
#include "fault.h"
#include "sched.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

ssize_t __wrap_preadv(int, const struct iovec *, int, off_t);
ssize_t __wrap_pread(int, void *, size_t, off_t);
ssize_t __wrap_pwritev(int, const struct iovec *, int, off_t);
int __wrap_fallocate(int, int, off_t, off_t);
int __wrap_ftruncate(int, off_t);
int __wrap_fdatasync(int);
int __wrap_fsync(int);
off_t __wrap_lseek(int, off_t, int);
int __wrap_fstat(int, struct stat *);
ssize_t __real_preadv(int, const struct iovec *, int, off_t);
ssize_t __real_pread(int, void *, size_t, off_t);
ssize_t __real_pwritev(int, const struct iovec *, int, off_t);
int __real_fallocate(int, int, off_t, off_t);
int __real_ftruncate(int, off_t);
off_t __real_lseek(int, off_t, int);
int __real_fstat(int, struct stat *);

enum { FILES = 8 };

/* files: when each was last changed in this run, in operations.  The true
 * times are of the clock, and images note those of their base. */
static struct {
    unsigned long n, seen, changes;
    const char *came;
    struct { ino_t inode; unsigned long changed; } files[FILES];
} fault;

void fault_plan(unsigned long n)
{
    fault.n = n;
}

void fault_begin(void)
{
    fault.seen = 0;
    fault.came = NULL;
    fault.changes = 0;
    memset(fault.files, 0, sizeof fault.files);
}

unsigned long fault_seen(void)
{
    return fault.seen;
}

const char *fault_came(void)
{
    return fault.came;
}

bool fault_was_sync(void)
{
    return fault.came && !strcmp(fault.came, "sync");
}

/* Another thread may come first; then, is it this one that fails? */
static bool fails(const char *call)
{
    sched_point();
    if (!sched_is_choosing() || ++fault.seen != fault.n)
        return false;
    fault.came = call;
    sched_stir();
    errno = EIO;
    return true;
}

static unsigned long *change_of(ino_t inode)
{
    unsigned i = 0;

    while (i + 1 < FILES && fault.files[i].inode &&
           fault.files[i].inode != inode)
        i++;
    fault.files[i].inode = inode;
    return &fault.files[i].changed;
}

static void note_change(int fd)
{
    struct stat st;

    if (__real_fstat(fd, &st) == 0)
        *change_of(st.st_ino) = ++fault.changes;
}

ssize_t __wrap_preadv(int fd, const struct iovec *iov, int n, off_t off)
{
    return fails("read") ? -1 : __real_preadv(fd, iov, n, off);
}

ssize_t __wrap_pread(int fd, void *buf, size_t len, off_t off)
{
    return fails("read") ? -1 : __real_pread(fd, buf, len, off);
}

/* What a write that failed may have done: some sectors of it. */
static void write_half(int fd, const struct iovec *iov, off_t off)
{
    struct iovec half = { iov->iov_base, iov->iov_len / 2 / 512 * 512 };

    if (half.iov_len && __real_pwritev(fd, &half, 1, off) < 0)
        errno = EIO;
}

ssize_t __wrap_pwritev(int fd, const struct iovec *iov, int n, off_t off)
{
    bool failed = fails("write");

    note_change(fd);
    if (!failed)
        return __real_pwritev(fd, iov, n, off);
    if (fault.n % 2)
        write_half(fd, iov, off);
    errno = EIO;
    return -1;
}

int __wrap_fallocate(int fd, int mode, off_t off, off_t len)
{
    if (fails("fallocate"))
        return -1;
    note_change(fd);
    return __real_fallocate(fd, mode, off, len);
}

int __wrap_ftruncate(int fd, off_t len)
{
    if (fails("truncate"))
        return -1;
    note_change(fd);
    return __real_ftruncate(fd, len);
}

/* Nothing is lost here but time. */
int __wrap_fdatasync(int fd)
{
    (void)fd;
    return fails("sync") ? -1 : 0;
}

int __wrap_fsync(int fd)
{
    return __wrap_fdatasync(fd);
}

off_t __wrap_lseek(int fd, off_t off, int whence)
{
    if ((whence == SEEK_DATA || whence == SEEK_HOLE) && fails("seek"))
        return -1;
    return __real_lseek(fd, off, whence);
}

int __wrap_fstat(int fd, struct stat *st)
{
    int r = __real_fstat(fd, st);

    if (r == 0)
        st->st_mtim = (struct timespec){
            .tv_sec = 1000000000 + (time_t)*change_of(st->st_ino),
        };
    return r;
}
