/* The disk as a folder, by FUSE.
 *
 * Files: disk, p1, p2 ..., and .vimg, which holds the server's process ID so
 * that vimg umount can wait for its end.  Any number of threads; the disk
 * takes care of itself. */
#define FUSE_USE_VERSION 32
#include "mountfs.h"
#include "vimg.h"
#include "../nbd/partition.h"
#include "../nbd/spawn.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef HAVE_FUSE3
#include <fuse.h>

struct mountfs {
    struct img_disk *disk;
    bool writable;
    struct nbd_partition parts[NBD_PARTITIONS_MAX];
    int n;
};

struct window {
    uint64_t off, len;
};

static struct mountfs *self(void)
{
    return fuse_get_context()->private_data;
}

/* The part of the disk that a file shows. */
static bool find(const struct mountfs *m, const char *path, struct window *w)
{
    char name[16];

    *w = (struct window){ 0, img_size(m->disk) };
    if (!strcmp(path, "/disk"))
        return true;
    for (int i = 0; i < m->n; i++) {
        snprintf(name, sizeof name, "/p%u", m->parts[i].number);
        if (!strcmp(path, name)) {
            *w = (struct window){ m->parts[i].off, m->parts[i].len };
            return true;
        }
    }
    return false;
}

static int pid_text(char *text, size_t room)
{
    return snprintf(text, room, "%ld\n", (long)getpid());
}

static int get_attributes(const char *path, struct stat *st,
                          struct fuse_file_info *fi)
{
    struct mountfs *m = self();
    struct window w;
    char pid[32];

    memset(st, 0, sizeof *st);
    st->st_uid = getuid();
    st->st_gid = getgid();
    st->st_nlink = 1;
    if (!strcmp(path, "/")) {
        st->st_mode = S_IFDIR | 0700;
        st->st_nlink = 2;
    } else if (!strcmp(path, "/.vimg")) {
        st->st_mode = S_IFREG | 0400;
        st->st_size = pid_text(pid, sizeof pid);
    } else if (find(m, path, &w)) {
        st->st_mode = S_IFREG | (m->writable ? 0600 : 0400);
        st->st_size = (off_t)w.len;
        st->st_blocks = (blkcnt_t)(w.len / 512);
    } else {
        return -ENOENT;
    }
    return 0;
}

static int list(const char *path, void *buf, fuse_fill_dir_t fill, off_t off,
                struct fuse_file_info *fi, enum fuse_readdir_flags flags)
{
    struct mountfs *m = self();
    char name[32];

    if (strcmp(path, "/"))
        return -ENOTDIR;
    fill(buf, ".", NULL, 0, 0);
    fill(buf, "..", NULL, 0, 0);
    fill(buf, "disk", NULL, 0, 0);
    for (int i = 0; i < m->n; i++) {
        snprintf(name, sizeof name, "p%u", m->parts[i].number);
        fill(buf, name, NULL, 0, 0);
    }
    return 0;
}

static int open_file(const char *path, struct fuse_file_info *fi)
{
    struct window w;
    bool writes = (fi->flags & O_ACCMODE) != O_RDONLY;

    if (!strcmp(path, "/.vimg"))
        return writes ? -EACCES : 0;
    if (!find(self(), path, &w))
        return -ENOENT;
    return writes && !self()->writable ? -EROFS : 0;
}

static int read_file(const char *path, char *buf, size_t len, off_t at,
                     struct fuse_file_info *fi)
{
    struct mountfs *m = self();
    uint64_t off = (uint64_t)at;
    struct window w;
    char pid[32];
    int r;

    if (!strcmp(path, "/.vimg")) {
        size_t n = (size_t)pid_text(pid, sizeof pid);

        if (off >= n)
            return 0;
        len = len < n - off ? len : n - (size_t)off;
        memcpy(buf, pid + off, len);
        return (int)len;
    }
    if (!find(m, path, &w))
        return -ENOENT;
    if (off >= w.len)
        return 0;
    if (len > w.len - off)
        len = (size_t)(w.len - off);
    r = img_pread(m->disk, buf, len, w.off + off, NULL);
    return r < 0 ? r : (int)len;
}

static int write_file(const char *path, const char *buf, size_t len,
                      off_t at, struct fuse_file_info *fi)
{
    struct mountfs *m = self();
    uint64_t off = (uint64_t)at;
    struct window w;
    int r;

    if (!find(m, path, &w))
        return -ENOENT;
    if (off >= w.len)
        return -ENOSPC;
    if (len > w.len - off)
        len = (size_t)(w.len - off);
    r = img_pwrite(m->disk, buf, len, w.off + off, 0, NULL);
    return r < 0 ? r : (int)len;
}

static int sync_file(const char *path, int data_only,
                     struct fuse_file_info *fi)
{
    return self()->writable ? img_flush(self()->disk, NULL) : 0;
}

/* Punching holes and zeroing: what mkfs, fstrim and loop devices ask for. */
static int allocate(const char *path, int mode, off_t at, off_t length,
                    struct fuse_file_info *fi)
{
    struct mountfs *m = self();
    uint64_t off = (uint64_t)at, len = (uint64_t)length;
    struct window w;

    if (!find(m, path, &w))
        return -ENOENT;
    if (!(mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)))
        return -EOPNOTSUPP;
    if (off >= w.len)
        return 0;
    if (len > w.len - off)
        len = w.len - off;
    return img_zero(m->disk, w.off + off, len,
                    mode & FALLOC_FL_PUNCH_HOLE ? IMG_MAY_UNMAP : 0, NULL);
}

/* Disks do not change their size; opening one with O_TRUNC does nothing, as
 * with a block device. */
static int truncate_file(const char *path, off_t size,
                         struct fuse_file_info *fi)
{
    return self()->writable ? 0 : -EROFS;
}

/* The files of partitions are parts of the file disk, and the kernel keeps
 * pages for each file by itself: of what can be written it must keep none.
 * The high-level library hands back what this returns as private data. */
static void *begin(struct fuse_conn_info *conn, struct fuse_config *cfg)
{
    cfg->nullpath_ok = 0;
    cfg->kernel_cache = !self()->writable;
    cfg->direct_io = self()->writable;
    return self();
}

static const struct fuse_operations operations = {
    .getattr = get_attributes, .readdir = list, .open = open_file,
    .read = read_file, .write = write_file, .fsync = sync_file,
    .fallocate = allocate, .truncate = truncate_file, .init = begin,
};

static struct fuse *make(struct mountfs *m)
{
    char name[600], *p;
    char *argv[] = { "vimg", "-o", name, NULL };
    struct fuse_args args = { 3, argv, 0 };
    struct fuse *f;

    snprintf(name, sizeof name, "subtype=vimg,default_permissions,%s,fsname=",
             m->writable ? "rw" : "ro");
    p = name + strlen(name);
    snprintf(p, sizeof name - (size_t)(p - name), "%s", img_path(m->disk));
    for (; *p; p++)
        if (*p == ',' || *p == '\\')
            *p = '_';           /* they would mean something to mount */
    f = fuse_new(&args, &operations, sizeof operations, m);
    fuse_opt_free_args(&args);
    return f;
}

/* libfuse ends by cancelling its threads, for which glibc loads a library:
 * without memory for that it would abort, before the image is closed. */
static bool can_end(void)
{
#ifdef __GLIBC__
    if (!dlopen("libgcc_s.so.1", RTLD_NOW | RTLD_NODELETE)) {
        complain("%s", dlerror());
        return false;
    }
#endif
    return true;
}

static int loop(struct fuse *f, bool foreground)
{
    struct fuse_loop_config config = { .clone_fd = 0,
                                       .max_idle_threads = 10 };
    struct fuse_session *s = fuse_get_session(f);
    int r;

    if (fuse_daemonize(foreground) < 0 || fuse_set_signal_handlers(s) < 0)
        return -1;
    if (!foreground)
        nbd_spawn_quiet();
    r = fuse_loop_mt(f, &config);
    fuse_remove_signal_handlers(s);
    return r < 0 ? -1 : 0;
}

int mountfs_serve(struct img_disk *disk, const char *folder, bool writable,
                  bool foreground)
{
    struct mountfs *m = need_memory(calloc(1, sizeof *m));
    struct img_error err;
    struct fuse *f = NULL;
    int code = 1;

    m->disk = disk;
    m->writable = writable;
    m->n = nbd_partitions(disk, m->parts, &err);
    if (m->n < 0)
        complain("%s", err.message);
    else if (!can_end())
        code = 1;
    else if (!(f = make(m)) || fuse_mount(f, folder) < 0)
        complain("%s: could not mount there", folder);
    else
        code = 0;
    if (code == 0) {
        code = loop(f, foreground) < 0;
        if (code)
            complain("%s: had to end before it was unmounted", folder);
        fuse_unmount(f);
    }
    if (f)
        fuse_destroy(f);
    free(m);
    return code;
}

#else

int mountfs_serve(struct img_disk *disk, const char *folder, bool writable,
                  bool foreground)
{
    complain("built without FUSE");
    return 1;
}
#endif
