/* What other kernels and file systems refuse: outputs, locks, space.  The
 * shim plays them. */
#include "unit.h"
#include "scratch.h"
#include "file/file.h"
#include "../shim.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>

/* The next `times` calls of this name whose flags have all of `with` get this
 * answer. */
struct refusal { const char *call; unsigned long with; int code, times; };
static struct refusal refusals[4];

static int answer(const char *call, int fd, unsigned long flags, void *arg)
{
    for (int i = 0; i < 4 && refusals[i].call; i++) {
        struct refusal *r = &refusals[i];

        if (strcmp(r->call, call) || (flags & r->with) != r->with ||
            !r->times)
            continue;
        r->times--;
        return r->code;
    }
    return 0;
}

static void refuse(const char *call, unsigned long with, int code, int times)
{
    int i = 0;

    while (refusals[i].call)
        i++;
    assert_true(i < 4);
    refusals[i] = (struct refusal){ call, with, code, times };
    shim_answers = answer;
}

static int allow(void **state)
{
    memset(refusals, 0, sizeof refusals);
    shim_answers = NULL;
    return 0;
}

enum { ALWAYS = 1 << 30 };

static void put(const char *name, const char *text, mode_t mode)
{
    int fd = open(in_scratch(name), O_WRONLY | O_CREAT | O_TRUNC, mode);

    assert_true(fd >= 0);
    assert_int_equal(fchmod(fd, mode), 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

static bool is_there(const char *name)
{
    struct stat st;

    return lstat(in_scratch(name), &st) == 0;
}

static void assert_content(const char *name, const char *text)
{
    char has[100] = "";
    int fd = open(in_scratch(name), O_RDONLY);

    assert_true(fd >= 0);
    assert_int_equal(read(fd, has, sizeof has - 1), strlen(text));
    close(fd);
    assert_string_equal(has, text);
}

static mode_t mode_of(const char *name)
{
    struct stat st = { 0 };

    assert_int_equal(stat(in_scratch(name), &st), 0);
    return st.st_mode & 07777;
}

static void clean(void)
{
    allow(NULL);
    scratch_end(NULL);
    assert_int_equal(mkdir(scratch, 0700), 0);
}

static struct img_output *begin(const char *name, unsigned flags)
{
    struct img_output *out = NULL;
    struct img_error err;

    assert_ok(img_output_begin(in_scratch(name), flags, &out, &err), err);
    assert_ok(img_file_pwrite(img_output_file(out), "new", 3, 0, &err), err);
    return out;
}

/* ---- outputs ----------------------------------------------------------- */

#define STRAY(name) "." name ".0123456789abcdef.part"

/* Only what a killed run of ours left, for this target, goes. */
static void test_strays(void **state)
{
    static const char *const stay[] = {
        STRAY("b"), ".a.0123456789abcde.part", ".a.0123456789abcdeF.part",
        ".a.0123456789abcdef.par", ".a.0123456789abcdef.part~",
        "a.0123456789abcdef.part", ".a-0123456789abcdef.part", "other"
    };
    struct img_output *out;
    struct img_file *held;
    struct img_error err;

    for (unsigned i = 0; i < sizeof stay / sizeof stay[0]; i++)
        put(stay[i], "x", 0600);
    put(STRAY("a"), "left over", 0600);
    put(".a.1111111111111111.part", "being written", 0600);
    put(".a.2222222222222222.part", "only read", 0400);
    assert_int_equal(symlink("other", in_scratch(".a.3333333333333333.part")),
                     0);
    assert_int_equal(mkfifo(in_scratch(".a.4444444444444444.part"), 0600), 0);
    assert_int_equal(mkdir(in_scratch(".a.5555555555555555.part"), 0700), 0);
    assert_ok(img_file_open(in_scratch(".a.1111111111111111.part"),
                            IMG_FILE_WRITE, &held, &err), err);
    assert_ok(img_file_lock(held, IMG_PERM_WRITE, 0, &err), err);
    out = begin("a", 0);
    img_file_close(held);
    assert_false(is_there(STRAY("a")));
    assert_true(is_there(".a.1111111111111111.part"));
    for (unsigned i = 0; i < sizeof stay / sizeof stay[0]; i++)
        assert_true(is_there(stay[i]));
    assert_true(is_there(".a.3333333333333333.part"));
    assert_true(is_there(".a.4444444444444444.part"));
    assert_true(is_there(".a.5555555555555555.part"));
    assert_ok(img_output_finish(out, &err), err);
    assert_content("a", "new");
    clean();
}

/* Where nothing can be locked nobody can tell a stray from what is being
 * written. */
static void test_strays_without_locks(void **state)
{
    static const int codes[] = { ENOLCK, EINVAL, EOPNOTSUPP };

    for (unsigned i = 0; i < 3; i++) {
        put(STRAY("a"), "somebody's", 0600);
        refuse("fcntl", F_OFD_SETLK, codes[i], ALWAYS);
        img_output_abandon(begin("a", 0));
        assert_content(STRAY("a"), "somebody's");
        clean();
    }
}

/* Ways to a name, from the best to the poorest file system. */
static const struct {
    const char *what, *call[3];
    unsigned long with;         /* of the first */
    int code;
} poor[] = {
    { "all of it", { NULL }, 0, 0 },
    { "no O_TMPFILE", { "open" }, O_TMPFILE, EOPNOTSUPP },
    { "no /proc", { "access" }, X_OK, ENOENT },
    { "no RENAME_NOREPLACE", { "open", "renameat2" }, O_TMPFILE, EINVAL },
    { "no renameat2", { "open", "renameat2" }, O_TMPFILE, ENOSYS },
    { "no links", { "open", "renameat2", "link" }, O_TMPFILE, EINVAL },
};

static void make_poor(unsigned i, int link_code)
{
    for (int k = 0; k < 3 && poor[i].call[k]; k++)
        refuse(poor[i].call[k], k ? 0 : poor[i].with,
               k == 2 ? link_code : poor[i].code, ALWAYS);
}

static void test_poor(void **state)
{
    static const int link_codes[] = { EPERM, EOPNOTSUPP, ENOSYS };
    struct img_output *out;
    struct img_error err;

    for (unsigned i = 0; i < sizeof poor / sizeof poor[0]; i++)
        for (unsigned k = 0; k < 3; k++) {
            make_poor(i, link_codes[k]);
            out = begin("a", 0);
            assert_false(is_there("a"));
            assert_int_equal(scratch_files(), i > 0);
            img_output_abandon(out);
            assert_int_equal(scratch_files(), 0);

            /* It appears, and replaces. */
            for (int again = 0; again < 2; again++) {
                out = begin("a", 0);
                assert_ok(img_output_finish(out, &err), err);
                assert_content("a", "new");
                assert_int_equal(scratch_files(), 1);
                put("a", "older", 0600);
            }
            assert_int_equal(unlink(in_scratch("a")), 0);

            /* What came up meanwhile stays. */
            out = begin("a", 0);
            put("a", "precious", 0600);
            assert_int_equal(img_output_finish(out, &err), -EEXIST);
            assert_non_null(strstr(err.message, "Could not create"));
            assert_content("a", "precious");
            assert_int_equal(scratch_files(), 1);
            clean();
        }
}

/* Two at a time: neither takes the other's for a stray. */
static void test_two(void **state)
{
    struct img_output *one, *two;
    struct img_error err;

    refuse("open", O_TMPFILE, EISDIR, ALWAYS);
    one = begin("a", 0);
    two = begin("a", 0);
    assert_int_equal(scratch_files(), 2);
    assert_ok(img_output_finish(one, &err), err);
    assert_int_equal(img_output_finish(two, &err), -EEXIST);
    assert_int_equal(scratch_files(), 1);
    clean();
}

static void test_refused(void **state)
{
    struct img_output *out = NULL;
    struct img_error err;

    refuse("open", O_TMPFILE, EOPNOTSUPP, ALWAYS);
    refuse("open", O_CREAT, EDQUOT, ALWAYS);
    assert_int_equal(img_output_begin(in_scratch("a"), 0, &out, &err),
                     -EDQUOT);
    assert_non_null(strstr(err.message, "Could not create"));
    assert_int_equal(scratch_files(), 0);
    allow(NULL);

    /* A rename that fails for another reason is not tried by a link. */
    refuse("open", O_TMPFILE, EOPNOTSUPP, ALWAYS);
    refuse("renameat2", 0, EIO, ALWAYS);
    assert_int_equal(img_output_finish(begin("a", 0), &err), -EIO);
    assert_int_equal(scratch_files(), 0);
    allow(NULL);
    refuse("open", O_TMPFILE, EOPNOTSUPP, ALWAYS);
    refuse("renameat2", 0, EINVAL, ALWAYS);
    refuse("link", 0, ENOSPC, ALWAYS);
    assert_int_equal(img_output_finish(begin("a", 0), &err), -ENOSPC);
    assert_int_equal(scratch_files(), 0);
    allow(NULL);

    put("a", "old", 0600);
    refuse("linkat", 0, EPERM, ALWAYS);     /* no name to rename from */
    assert_int_equal(img_output_finish(begin("a", 0), &err), -EPERM);
    assert_content("a", "old");
    allow(NULL);
    refuse("rename", 0, EIO, ALWAYS);
    assert_int_equal(img_output_finish(begin("a", 0), &err), -EIO);
    assert_non_null(strstr(err.message, "renaming"));
    assert_content("a", "old");
    assert_int_equal(scratch_files(), 1);

    /* It is to be new; nothing is looked at more closely. */
    assert_int_equal(img_output_begin(in_scratch("a"), IMG_OUTPUT_NEW, &out,
                                      &err), -EEXIST);
    assert_non_null(strstr(err.message, "is there already"));
    clean();
}

/* A mode that cannot be set matters where it would let others in. */
static void test_modes(void **state)
{
    mode_t mask = umask(0);
    struct img_output *out = NULL;
    struct img_error err;

    put("a", "old", 0600);
    refuse("fchmod", 0, EPERM, ALWAYS);
    assert_int_equal(img_output_begin(in_scratch("a"), 0, &out, &err),
                     -EPERM);
    assert_non_null(strstr(err.message, "keeping its mode"));
    assert_content("a", "old");
    umask(077);
    assert_ok(img_output_finish(begin("a", 0), &err), err);
    assert_content("a", "new");
    assert_int_equal(mode_of("a"), 0600);
    allow(NULL);

    /* Nor may a set-user-id bit pass to another owner's file. */
    if (geteuid() == 0) {
        put("a", "old", 04755);
        assert_int_equal(chown(in_scratch("a"), 12, 34), 0);
        assert_int_equal(chmod(in_scratch("a"), 04755), 0);
        refuse("fchown", 0, EPERM, ALWAYS);
        assert_ok(img_output_finish(begin("a", 0), &err), err);
        assert_content("a", "new");
        assert_int_equal(mode_of("a"), 0755);
    }
    umask(mask);
    clean();
}

/* A folder that may be written and searched, but not read. */
static void test_unreadable_folder(void **state)
{
    struct img_output *out = NULL;
    struct img_error err;
    int r;

    if (geteuid() != 0)
        skip();
    assert_int_equal(mkdir(in_scratch("d"), 0700), 0);
    assert_int_equal(chown(in_scratch("d"), 1000, 1000), 0);
    assert_int_equal(chmod(in_scratch("d"), 0300), 0);
    assert_int_equal(chmod(scratch, 0755), 0);
    for (int fails = 0; fails < 3; fails++) {
        static const int codes[] = { 0, EIO, EINVAL };

        refuse("syncfs", 0, codes[fails], ALWAYS);
        assert_int_equal(setresuid(1000, 1000, 0), 0);
        r = img_output_begin(in_scratch("d/a"), 0, &out, &err);
        if (r == 0)
            r = img_file_pwrite(img_output_file(out), "new", 3, 0, &err);
        if (r == 0)
            r = img_output_finish(out, &err);
        assert_int_equal(setresuid(0, 0, 0), 0);
        allow(NULL);
        assert_int_equal(r, fails == 1 ? -EIO : 0);
        if (r < 0)
            assert_non_null(strstr(err.message, "making it durable"));
        assert_content("d/a", "new");
        assert_int_equal(unlink(in_scratch("d/a")), 0);
    }
    clean();
}

/* Kept open: where only durability is in doubt, the caller has the file. */
static void test_kept(void **state)
{
    struct img_file *file;
    struct img_error err;
    char text[4] = "";

    refuse("open", O_DIRECTORY, EACCES, ALWAYS);
    refuse("syncfs", 0, EIO, 1);
    refuse("open", O_TMPFILE, 0, ALWAYS);
    /* O_TMPFILE has O_DIRECTORY's bits. */
    assert_int_equal(img_output_keep(begin("a", 0), &file, &err), -EIO);
    assert_non_null(file);
    assert_ok(img_file_pread(file, text, 3, 0, &err), err);
    assert_string_equal(text, "new");
    img_file_close(file);
    allow(NULL);
    assert_ok(img_output_keep(begin("a", 0), &file, &err), err);
    assert_non_null(file);
    img_file_close(file);
    refuse("rename", 0, EIO, 1);
    assert_int_equal(img_output_keep(begin("a", 0), &file, &err), -EIO);
    assert_null(file);
    clean();
}

/* Replaced or nothing: not where it could only be written in place. */
static void test_held(void **state)
{
    struct img_output *out = NULL;
    struct img_error err;

    put("a", "old", 0600);
    for (int i = 0; i < 2; i++) {
        refuse("access", W_OK | X_OK, i ? EROFS : EACCES, ALWAYS);
        assert_int_equal(img_output_begin(in_scratch("a"), IMG_OUTPUT_HELD,
                                          &out, &err), -EACCES);
        assert_non_null(strstr(err.message, "cannot be replaced"));
        allow(NULL);
    }
    refuse("access", W_OK | X_OK, EIO, ALWAYS);
    assert_ok(img_output_finish(begin("a", IMG_OUTPUT_HELD), &err), err);
    assert_content("a", "new");
    clean();
}

/* ---- locks ------------------------------------------------------------- */

static void test_locks(void **state)
{
    struct img_file *f, *g;
    struct img_error err;

    put("a", "x", 0600);
    assert_ok(img_file_open(in_scratch("a"), 0, &f, &err), err);
    assert_ok(img_file_open(in_scratch("a"), 0, &g, &err), err);
    assert_ok(img_file_lock(g, IMG_PERM_READ, IMG_PERM_ALL, &err), err);
    for (int code = EAGAIN;; code = EACCES) {
        refuse("fcntl", F_OFD_SETLK, code, 1);
        assert_int_equal(img_file_lock(f, IMG_PERM_READ, IMG_PERM_READ, &err),
                         -EBUSY);
        assert_non_null(strstr(err.message, "consistent read"));
        allow(NULL);
        if (code == EACCES)
            break;
    }
    refuse("fcntl", F_OFD_SETLK, EIO, 1);
    assert_int_equal(img_file_lock(f, IMG_PERM_READ, IMG_PERM_READ, &err),
                     -EIO);
    assert_non_null(strstr(err.message, "locking"));
    allow(NULL);
    /* None of these failures left anything locked. */
    assert_ok(img_file_lock(g, IMG_PERM_READ | IMG_PERM_WRITE, 0, &err), err);
    img_file_close(f);
    img_file_close(g);
    clean();
}

/* ---- one file ---------------------------------------------------------- */

static struct img_file *new_file(const char *name, unsigned flags)
{
    struct img_file *f;
    struct img_error err;

    assert_ok(img_file_open(in_scratch(name),
                            flags | IMG_FILE_WRITE | IMG_FILE_CREATE, &f,
                            &err), err);
    return f;
}

/* A signal in between is no error. */
static void test_interrupted(void **state)
{
    static const char *const calls[] = {
        "open", "read", "write", "fallocate", "ftruncate", "sync"
    };
    struct img_error err;

    for (unsigned i = 0; i < 6; i++) {
        struct img_file *f;
        char text[5] = "";

        refuse(calls[i], 0, EINTR, 2);
        f = new_file("a", 0);
        assert_ok(img_file_pwrite(f, "text", 4, 0, &err), err);
        assert_ok(img_file_allocate(f, 0, 8192, &err), err);
        assert_ok(img_file_truncate(f, 4096, &err), err);
        assert_ok(img_file_sync(f, &err), err);
        assert_ok(img_file_pread(f, text, 4, 0, &err), err);
        assert_string_equal(text, "text");
        assert_int_equal(refusals[0].times, 0);
        img_file_close(f);
        clean();
    }
}

static void test_space(void **state)
{
    static const int codes[] = { EOPNOTSUPP, ENOSYS, ENOTTY, EINVAL, ENODEV };
    static const char old[8192] = { [0] = 1, [5000] = 2, [8191] = 3 };
    static const char zeros[8192];
    struct img_file *f = new_file("a", 0);
    struct img_error err;
    char now[8192];

    for (unsigned i = 0; i < 5; i++) {
        refuse("fallocate", 0, codes[i], ALWAYS);
        assert_int_equal(img_file_allocate(f, 0, 8192, &err), -ENOTSUP);
        assert_non_null(strstr(err.message, "not supported here"));
        assert_ok(img_file_pwrite(f, old, 8192, 0, &err), err);
        assert_int_equal(img_file_zero(f, 0, 8192, IMG_FILE_FAST_ONLY, &err),
                         -ENOTSUP);
        assert_ok(img_file_discard(f, 0, 8192, &err), err);
        assert_ok(img_file_pread(f, now, 8192, 0, &err), err);
        assert_memory_equal(now, old, 8192);
        assert_ok(img_file_zero(f, 0, 8192, i & 1 ? IMG_FILE_MAY_UNMAP : 0,
                                &err), err);
        assert_ok(img_file_pread(f, now, 8192, 0, &err), err);
        assert_memory_equal(now, zeros, 8192);
        allow(NULL);
    }
    /* An error is none of these. */
    refuse("fallocate", 0, EIO, ALWAYS);
    assert_int_equal(img_file_zero(f, 0, 8192, 0, &err), -EIO);
    assert_int_equal(img_file_discard(f, 0, 8192, &err), -EIO);
    allow(NULL);
    /* Holes cannot be punched, but zeros be laid. */
    assert_ok(img_file_pwrite(f, old, 8192, 0, &err), err);
    refuse("fallocate", FALLOC_FL_PUNCH_HOLE, EOPNOTSUPP, ALWAYS);
    assert_ok(img_file_zero(f, 4096, 4096, IMG_FILE_MAY_UNMAP, &err), err);
    assert_ok(img_file_pread(f, now, 8192, 0, &err), err);
    assert_memory_equal(now, old, 4096);
    assert_memory_equal(now + 4096, zeros, 4096);
    img_file_close(f);
    clean();
}

/* What can be made durable nowhere is fine; what was lost is not, and never
 * again. */
static void test_sync(void **state)
{
    struct img_file *f = new_file("a", 0);
    struct img_error err;

    refuse("sync", 0, EINVAL, 1);
    assert_ok(img_file_sync(f, &err), err);
    allow(NULL);
    refuse("sync", 0, ENOSYS, 1);
    assert_ok(img_file_sync(f, &err), err);
    allow(NULL);
    refuse("sync", 0, EIO, 1);
    assert_int_equal(img_file_sync(f, &err), -EIO);
    assert_non_null(strstr(err.message, "making it durable"));
    assert_int_equal(img_file_sync(f, &err), -EIO);
    assert_non_null(strstr(err.message, "an earlier write was lost"));
    img_file_close(f);
    clean();
}

static void test_reflink(void **state)
{
    static const int soft[] = { EOPNOTSUPP, EXDEV, EPERM, ETXTBSY, EISDIR };
    struct img_file *a = new_file("a", 0), *b = new_file("b", 0), *m;
    struct img_error err;

    for (unsigned i = 0; i < 5; i++) {
        refuse("ioctl", FICLONERANGE, soft[i], 1);
        assert_int_equal(img_file_reflink(a, 0, b, 0, 4096, &err), -ENOTSUP);
        assert_non_null(strstr(err.message, "cannot share blocks"));
        allow(NULL);
    }
    refuse("ioctl", FICLONERANGE, EDQUOT, 1);
    assert_int_equal(img_file_reflink(a, 0, b, 0, 4096, &err), -EDQUOT);
    allow(NULL);
    refuse("ioctl", FICLONERANGE, SHIM_DONE, 1);
    assert_ok(img_file_reflink(a, 0, b, 0, 4096, &err), err);
    assert_ok(img_file_in_memory("m", &m, &err), err);
    assert_int_equal(img_file_reflink(a, 0, m, 0, 4096, &err), -ENOTSUP);
    assert_int_equal(img_file_reflink(m, 0, m, 0, 4096, &err), -ENOTSUP);
    a->writable = false;
    assert_int_equal(img_file_reflink(a, 0, b, 0, 4096, &err), -ENOTSUP);
    img_file_close(m);
    img_file_close(a);
    img_file_close(b);
    clean();
}

/* A file system that knows no holes: all is data. */
static void test_extents(void **state)
{
    struct img_file *f = new_file("a", 0);
    struct img_error err;
    uint64_t run = 0;
    bool data = false;

    assert_ok(img_file_truncate(f, 8192, &err), err);
    refuse("lseek", SEEK_DATA, EINVAL, 1);
    assert_ok(img_file_extent(f, 0, 8192, &data, &run, &err), err);
    assert_true(data && run == 8192);
    allow(NULL);
    assert_ok(img_file_pwrite(f, "x", 1, 0, &err), err);
    refuse("lseek", SEEK_HOLE, EINVAL, 1);  /* it has SEEK_DATA's bit not */
    assert_ok(img_file_extent(f, 0, 8192, &data, &run, &err), err);
    assert_true(data && run == 8192);
    allow(NULL);
    assert_ok(img_file_extent(f, UINT64_MAX - 1, 1, &data, &run, &err), err);
    assert_true(!data && run == 1);
    img_file_close(f);
    clean();
}

/* ---- sharing blocks ---------------------------------------------------- */

static int shares;              /* so many more are done */
static int shares_end;          /* then this is said */
static int shared;              /* so many were */

/* A file system that shares blocks, in the way of one that copies them. */
static int play_sharing(const char *call, int fd, unsigned long flags,
                        void *arg)
{
    const struct file_clone_range *range = arg;
    char *buf;
    ssize_t n;

    if (strcmp(call, "ioctl") || flags != FICLONERANGE)
        return 0;
    if (!shares)
        return shares_end;
    if (shares > 0)
        shares--;
    shared++;
    shim_answers = NULL;
    buf = malloc(range->src_length);
    n = pread((int)range->src_fd, buf, range->src_length,
              (off_t)range->src_offset);
    assert_true(n >= 0);
    memset(buf + n, 0, range->src_length - (size_t)n);
    assert_int_equal(pwrite(fd, buf, range->src_length,
                            (off_t)range->dest_offset), range->src_length);
    free(buf);
    shim_answers = play_sharing;
    return SHIM_DONE;
}

static struct img_disk *open_disk(const char *name, const char *format,
                                  unsigned flags)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_disk *d = NULL;
    struct img_error err;

    o.format = format;
    o.flags = flags;
    assert_ok(img_open(in_scratch(name), &o, &d, &err), err);
    return d;
}

/* Data and holes in turn, so that there are several claims. */
static void put_disk(const char *name)
{
    static unsigned char data[1 << 20];
    struct img_file *f = new_file(name, 0);
    struct img_error err;

    for (unsigned i = 0; i < 6; i++) {
        memset(data, 'a' + (int)i, sizeof data);
        assert_ok(img_file_pwrite(f, data, sizeof data - i * 4096,
                                  (uint64_t)i * 2 * sizeof data, &err), err);
    }
    assert_ok(img_file_truncate(f, 12 * sizeof data, &err), err);
    img_file_close(f);
}

static int convert_shared(const char *format, int times, int end)
{
    struct img_convert_options o = IMG_CONVERT_OPTIONS;
    struct img_create_options c = IMG_CREATE_OPTIONS;
    struct img_disk *from = open_disk("from", "raw", 0);
    struct img_job job = IMG_JOB;
    struct img_error err;
    int r;

    c.format = format;
    o.create = &c;
    o.no_sync = true;
    job.threads = 1;
    shares = times;
    shares_end = end;
    shared = 0;
    shim_answers = play_sharing;
    r = img_convert(&from, 1, in_scratch("to"), &o, &job, &err);
    shim_answers = NULL;
    img_close(from, NULL);
    return r;
}

/* It shared the first blocks and refuses a later one: that is copied, and the
 * disk is the same in the end. */
static void test_sharing(void **state)
{
    static const char *const formats[] = { "raw", "qcow2" };
    struct img_disk *a, *b;
    struct img_error err;
    uint64_t at;

    put_disk("from");
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(convert_shared(formats[i], -1, 0), 0);
        if (shared < 3)
            fail_msg("%s: %d", formats[i], shared);
        for (int times = 0; times < 5; times++) {
            assert_int_equal(convert_shared(formats[i], times, EXDEV), 0);
            assert_int_equal(shared, times);
            a = open_disk("from", "raw", 0);
            b = open_disk("to", formats[i], 0);
            assert_int_equal(img_compare(a, b, false, NULL, &at, &err), 0);
            img_close(a, NULL);
            img_close(b, NULL);
        }
        unlink(in_scratch("to"));
        assert_int_equal(convert_shared(formats[i], 2, EIO), -EIO);
        assert_false(is_there("to"));
    }
    clean();
}

/* ---- reading without waiting ------------------------------------------- */

static void test_read_now(void **state)
{
    static const int codes[] = { EOPNOTSUPP, ENOSYS };
    struct img_error err;
    char text[5] = "";
    struct iovec iov = { text, 4 };

    for (unsigned i = 0; i < 2; i++) {
        struct img_file *f = new_file("a", 0);
        int r;

        assert_ok(img_file_pwrite(f, "text", 4, 0, &err), err);
        refuse("preadv2", 0, codes[i], 1);
        assert_int_equal(img_file_preadv_now(f, &iov, 1, 0), -EAGAIN);
        /* In memory it works another way; else it is not tried again. */
        r = img_file_preadv_now(f, &iov, 1, 0);
        assert_int_equal(r, f->never_now ? -EAGAIN : 0);
        assert_true(f->never_now || f->in_memory);
        img_file_close(f);
        clean();
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_teardown(name, allow)
    const struct CMUnitTest tests[] = {
        TEST(test_strays), TEST(test_strays_without_locks), TEST(test_poor),
        TEST(test_two), TEST(test_refused), TEST(test_modes),
        TEST(test_unreadable_folder), TEST(test_kept), TEST(test_held),
        TEST(test_locks), TEST(test_interrupted), TEST(test_space),
        TEST(test_sync), TEST(test_reflink), TEST(test_extents),
        TEST(test_sharing), TEST(test_read_now),
    };

    return cmocka_run_group_tests_name("refused", tests, scratch_begin,
                                       scratch_end);
}
