#include "unit.h"
#include "scratch.h"
#include "file/file.h"

#include <fcntl.h>

static struct img_output *begin(const char *name, unsigned flags)
{
    struct img_output *out = NULL;
    struct img_error err;

    assert_ok(img_output_begin(in_scratch(name), flags, &out, &err), err);
    assert_ok(img_file_pwrite(img_output_file(out), "new", 3, 0, &err), err);
    return out;
}

static void put(const char *name, const char *text, mode_t mode)
{
    int fd = open(in_scratch(name), O_WRONLY | O_CREAT | O_TRUNC, mode);

    assert_true(fd >= 0);
    assert_int_equal(fchmod(fd, mode), 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

static const char *content(const char *name)
{
    static char text[100];
    int fd = open(in_scratch(name), O_RDONLY);
    ssize_t n;

    if (fd < 0)
        return "(none)";
    n = read(fd, text, sizeof text - 1);
    close(fd);
    assert_true(n >= 0);
    text[n] = 0;
    return text;
}

static mode_t mode_of(const char *name)
{
    struct stat st = { 0 };

    stat(in_scratch(name), &st);
    return st.st_mode & 07777;
}

static void clean(void)
{
    scratch_end(NULL);
    mkdir(scratch, 0700);
}

static void test_new(void **state)
{
    mode_t mask = umask(027);
    struct img_error err;

    for (unsigned flags = 0; flags < 4; flags++) {
        struct img_output *out = begin("a", flags);

        if (!(flags & IMG_OUTPUT_IN_PLACE))
            assert_string_equal(content("a"), "(none)");
        assert_ok(img_output_finish(out, &err), err);
        assert_string_equal(content("a"), "new");
        assert_int_equal(mode_of("a"), 0640);
        assert_int_equal(scratch_files(), 1);
        clean();

        out = begin("a", flags);
        img_output_abandon(out);
        assert_int_equal(scratch_files(), 0);
    }
    umask(mask);
    img_output_abandon(NULL);
}

static void test_replace(void **state)
{
    struct img_output *out;
    struct img_error err;
    char long_name[256];
    struct stat st;

    put("a", "old content", 0600);
    if (geteuid() == 0)
        assert_int_equal(chown(in_scratch("a"), 12, 34), 0);
    out = begin("a", 0);
    assert_string_equal(content("a"), "old content");
    assert_int_equal(fstat(img_output_file(out)->fd, &st), 0);
    assert_int_equal(st.st_mode & 077, 0);  /* no one may peep meanwhile */
    img_output_abandon(out);
    assert_string_equal(content("a"), "old content");
    out = begin("a", 0);
    assert_ok(img_output_finish(out, &err), err);
    assert_string_equal(content("a"), "new");
    assert_int_equal(mode_of("a"), 0600);
    assert_int_equal(stat(in_scratch("a"), &st), 0);
    if (geteuid() == 0)
        assert_true(st.st_uid == 12 && st.st_gid == 34);
    assert_int_equal(scratch_files(), 1);

    memset(long_name, 'x', 255);
    long_name[255] = 0;
    put(long_name, "old", 0644);
    out = begin(long_name, 0);
    assert_ok(img_output_finish(out, &err), err);
    assert_string_equal(content(long_name), "new");
    clean();
}

static void test_in_place(void **state)
{
    struct img_output *out;
    struct img_error err;
    struct stat before, after;

    put("a", "old content", 0600);
    stat(in_scratch("a"), &before);
    out = begin("a", IMG_OUTPUT_IN_PLACE);
    assert_string_equal(content("a"), "new");
    assert_ok(img_output_finish(out, &err), err);
    stat(in_scratch("a"), &after);
    assert_int_equal(before.st_ino, after.st_ino);
    clean();
}

/* Somebody else's file that came up in the meantime stays. */
static void test_not_there_before(void **state)
{
    struct img_output *out = begin("a", 0);
    struct img_error err;

    put("a", "precious", 0644);
    assert_int_equal(img_output_finish(out, &err), -EEXIST);
    assert_string_equal(content("a"), "precious");
    assert_int_equal(scratch_files(), 1);

    out = begin("a", 0);
    put("b", "precious too", 0644);
    assert_int_equal(rename(in_scratch("b"), in_scratch("a")), 0);
    assert_int_equal(img_output_finish(out, &err), -EBUSY);
    assert_string_equal(content("a"), "precious too");
    assert_int_equal(scratch_files(), 1);
    clean();
}

static void test_links(void **state)
{
    struct img_output *out;
    struct img_error err;
    struct stat st;

    assert_int_equal(mkdir(in_scratch("d"), 0700), 0);
    put("d/real", "old", 0644);
    assert_int_equal(symlink("d/real", in_scratch("link")), 0);
    out = begin("link", 0);
    assert_ok(img_output_finish(out, &err), err);
    assert_string_equal(content("d/real"), "new");
    assert_int_equal(lstat(in_scratch("link"), &st), 0);
    assert_true(S_ISLNK(st.st_mode));

    /* To what is not there yet, over two links. */
    assert_int_equal(symlink("d/second", in_scratch("first")), 0);
    assert_int_equal(symlink("fresh", in_scratch("d/second")), 0);
    out = begin("first", 0);
    assert_ok(img_output_finish(out, &err), err);
    assert_string_equal(content("d/fresh"), "new");
    assert_int_equal(lstat(in_scratch("first"), &st), 0);
    assert_true(S_ISLNK(st.st_mode));

    /* By a full path; to a folder that is not there; not a folder at all. */
    assert_int_equal(symlink(in_scratch("d/far"), in_scratch("full")), 0);
    assert_ok(img_output_finish(begin("full", 0), &err), err);
    assert_string_equal(content("d/far"), "new");
    assert_int_equal(symlink("no/where", in_scratch("lost")), 0);
    assert_int_equal(img_output_begin(in_scratch("lost"), 0, &out, &err),
                     -ENOENT);
    assert_int_equal(img_output_begin(in_scratch("full/x"), 0, &out, &err),
                     -ENOTDIR);
    assert_int_equal(img_output_begin("/", 0, &out, &err), -EINVAL);
    assert_int_equal(img_output_begin("", 0, &out, &err), -EINVAL);
    assert_int_equal(symlink("loop", in_scratch("loop")), 0);
    assert_int_equal(img_output_begin(in_scratch("loop"), 0, &out, &err),
                     -ELOOP);
    assert_int_equal(img_output_begin(in_scratch("no/a"), 0, &out, &err),
                     -ENOENT);
    assert_int_equal(img_output_begin(in_scratch("d"), 0, &out, &err),
                     -EINVAL);
    clean();
}

/* Names without a folder before them, or none but the root. */
static void test_short_names(void **state)
{
    struct img_output *out = NULL;
    char cwd[PATH_MAX], name[50];
    struct img_error err;
    int r;

    assert_non_null(getcwd(cwd, sizeof cwd));
    assert_int_equal(chdir(scratch), 0);
    for (int again = 0; again < 2; again++) {
        assert_ok(img_output_begin("short", 0, &out, &err), err);
        assert_ok(img_file_pwrite(img_output_file(out), "new", 3, 0, &err),
                  err);
        /* It is known by then where that is. */
        assert_int_equal(chdir(cwd), 0);
        assert_ok(img_output_finish(out, &err), err);
        assert_string_equal(content("short"), "new");
        assert_int_equal(chdir(scratch), 0);
    }
    assert_int_equal(chdir(cwd), 0);
    snprintf(name, sizeof name, "/vimg-unit-%d", (int)getpid());
    r = img_output_begin(name, 0, &out, &err);
    if (r == 0)
        img_output_abandon(out);
    else
        assert_true(r == -EACCES || r == -EROFS);
    assert_int_equal(access(name, F_OK), -1);
    clean();
}

static void test_locked(void **state)
{
    struct img_output *out = NULL;
    struct img_file *user;
    struct img_error err;

    put("a", "old", 0644);
    assert_ok(img_file_open(in_scratch("a"), 0, &user, &err), err);
    assert_ok(img_file_lock(user, IMG_PERM_READ, IMG_PERM_READ, &err), err);
    assert_int_equal(img_output_begin(in_scratch("a"), 0, &out, &err),
                     -EBUSY);
    assert_int_equal(img_output_begin(in_scratch("a"), IMG_OUTPUT_IN_PLACE,
                                      &out, &err), -EBUSY);
    assert_string_equal(content("a"), "old");
    img_file_close(user);

    out = begin("a", 0);
    assert_ok(img_file_open(in_scratch("a"), 0, &user, &err), err);
    assert_int_equal(img_file_lock(user, IMG_PERM_READ, IMG_PERM_READ, &err),
                     -EBUSY);
    img_file_close(user);
    img_output_abandon(out);
    clean();
}

/* In a folder where nothing may be created, a file that may be written is
 * written in place. */
static void test_closed_folder(void **state)
{
    struct img_output *out = NULL;
    struct img_error err;
    int r, missing;

    if (geteuid() != 0)
        skip();
    assert_int_equal(mkdir(in_scratch("d"), 0755), 0);
    put("d/a", "old content", 0666);
    assert_int_equal(chmod(scratch, 0755), 0);
    assert_int_equal(setresuid(1000, 1000, 0), 0);
    r = img_output_begin(in_scratch("d/a"), 0, &out, &err);
    if (r == 0)
        r = img_file_pwrite(img_output_file(out), "new", 3, 0, &err);
    if (r == 0)
        r = img_output_finish(out, &err);
    missing = img_output_begin(in_scratch("d/b"), 0, &out, &err);
    assert_int_equal(setresuid(0, 0, 0), 0);
    assert_int_equal(r, 0);
    assert_int_equal(missing, -EACCES);
    assert_string_equal(content("d/a"), "new");
    clean();
}

static void test_direct(void **state)
{
    struct img_output *out = NULL;
    struct img_error err;
    int r = img_output_begin(in_scratch("a"), IMG_OUTPUT_DIRECT, &out, &err);

    if (r == -EINVAL || r == -EOPNOTSUPP)
        skip();
    assert_ok(r, err);
    assert_ok(img_file_pwrite(img_output_file(out), "odd", 3, 5, &err), err);
    assert_ok(img_output_finish(out, &err), err);
    assert_memory_equal(content("a"), "\0\0\0\0\0odd", 9);
    clean();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_new),
        cmocka_unit_test(test_replace),
        cmocka_unit_test(test_in_place),
        cmocka_unit_test(test_not_there_before),
        cmocka_unit_test(test_links),
        cmocka_unit_test(test_short_names),
        cmocka_unit_test(test_locked),
        cmocka_unit_test(test_closed_folder),
        cmocka_unit_test(test_direct),
    };

    return cmocka_run_group_tests_name("output", tests, scratch_begin,
                                       scratch_end);
}
