/* Opening: which files may be, what does not go together; files that an
 * image wants to have beside it. */
#include "folder.h"
#include "core/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { K = 1024, M = 1024 * K };

static int open_with(const char *name, const char *format, unsigned flags,
                     unsigned allow, const char *dir)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_disk *d = NULL;
    int r;

    o.format = format;
    o.flags = flags;
    o.allow_files = allow;
    o.allow_dir = dir;
    r = img_open(in_folder(name), &o, &d, &err);
    img_close(d, NULL);
    return r;
}

/* ---- which files ------------------------------------------------------- */

static const struct {
    const char *name;
    unsigned allow;
    const char *dir;            /* in the folder; "-" = as it stands; NULL =
                                   none */
    int ret;
    const char *says;
} policies[] = {
    { "in/over", IMG_FILES_LOCAL, NULL, 0, NULL },
    { "in/over", IMG_FILES_ANY, NULL, 0, NULL },
    { "in/over", IMG_FILES_NONE, NULL, -EACCES, "no other file" },
    { "in/over", IMG_FILES_BESIDE, NULL, -EACCES, "not in the folder" },
    { "in/over", IMG_FILES_UNDER, "out", 0, NULL },
    { "in/over", IMG_FILES_UNDER, "in", -EACCES, "not in the folder" },
    { "in/over", IMG_FILES_UNDER, "ou", -ENOENT, "Could not open" },
    { "in/over", IMG_FILES_UNDER, "-/", 0, NULL },
    { "in/over", IMG_FILES_UNDER, "-", -EINVAL, "no folder is given" },
    { "in/over", IMG_FILES_UNDER, NULL, -EINVAL, "no folder is given" },
    { "in/over", IMG_FILES_ANY + 1, NULL, -EINVAL, "unknown policy 5" },
    { "out/over", IMG_FILES_BESIDE, NULL, 0, NULL },
    { "in/link", IMG_FILES_BESIDE, NULL, -EACCES, "not in the folder" },
    { "in/none", IMG_FILES_BESIDE, NULL, -ENOENT, "Could not open" },
    { "in/ssh", IMG_FILES_LOCAL, NULL, -ENOTSUP, "no other protocols" },
    { "in/ssh", IMG_FILES_ANY, NULL, -ENOTSUP, "no other protocols" },
    { "in/ssh", IMG_FILES_BESIDE, NULL, -ENOTSUP, "no other protocols" },
    { "in/ssh", IMG_FILES_UNDER, "out", -ENOTSUP, "no other protocols" },
};

static void overlay(const char *name, const char *backing)
{
    assert_ok(make(name, "qcow2", M, backing, "raw",
                   IMG_CREATE_NO_OPEN_BACKING, NULL), err);
}

static void test_policies(void **state)
{
    assert_int_equal(mkdir(in_folder("in"), 0700), 0);
    assert_int_equal(mkdir(in_folder("out"), 0700), 0);
    assert_ok(make("out/base", "raw", M, NULL, NULL, 0, NULL), err);
    overlay("in/over", "../out/base");
    overlay("out/over", "file:base");
    overlay("in/link", "link-to-base");
    overlay("in/none", "nothing");
    overlay("in/ssh", "ssh://host/base");
    assert_int_equal(symlink("../out/base", in_folder("in/link-to-base")), 0);
    for (unsigned i = 0; i < sizeof policies / sizeof policies[0]; i++) {
        const char *dir = policies[i].dir;
        int r;

        if (dir)
            dir = *dir == '-' ? dir + 1 : in_folder(dir);
        r = open_with(policies[i].name, "qcow2", 0, policies[i].allow, dir);
        if (r != policies[i].ret)
            fail_msg("%u: %d, %s", i, r, r < 0 ? err.message : "");
        if (r < 0)
            assert_says(policies[i].says);
    }
}

/* ---- what does not go together ----------------------------------------- */

static void test_options(void **state)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_disk *d = NULL;

    assert_ok(make("q", "qcow2", M, NULL, NULL, 0, NULL), err);
    assert_ok(make("raw", "raw", M, NULL, NULL, 0, NULL), err);
    assert_int_equal(open_with("q", "qcow2", IMG_OPEN_WRITE |
                               IMG_OPEN_DESCRIBE, 0, NULL), -EINVAL);
    assert_says("only described");
    assert_int_equal(open_with("q", NULL, 0, 0, NULL), -EINVAL);
    o.format = "qcow2";
    o.snapshot = "s";
    o.flags = IMG_OPEN_WRITE;
    assert_int_equal(img_open(in_folder("q"), &o, &d, &err), -EINVAL);
    assert_says("a snapshot can only be read");
    o.flags = 0;
    assert_true(img_open(in_folder("q"), &o, &d, &err) < 0);
    o.snapshot = NULL;
    o.window_offset = 512;
    assert_int_equal(img_open(in_folder("q"), &o, &d, &err), -EINVAL);
    assert_says("only a raw image can have a window");
    o.window_offset = 0;
    o.window_size = 512;
    assert_int_equal(img_open(in_folder("q"), &o, &d, &err), -EINVAL);
    o.format = "raw";
    assert_ok(img_open(in_folder("raw"), &o, &d, &err), err);
    assert_int_equal(img_size(d), 512);
    assert_null(img_file_name(d, 1, 0));
    assert_null(img_file_name(d, 0, 1));
    img_close(d, NULL);
    /* QEMU's names for what raw is. */
    assert_ok(open_with("raw", "file", 0, 0, NULL), err);
    assert_ok(open_with("raw", "host_device", 0, 0, NULL), err);
    for (size_t i = 0; img_format(i); i++)
        assert_ptr_equal(img_format_by_name(img_format(i)->name),
                         img_format(i));
    assert_null(img_format_by_name("none"));
}

/* A disk whose format was guessed to be raw does not become another. */
static void test_guessed(void **state)
{
    struct img_disk *d;
    char b[2048] = "";

    assert_ok(make("guess", "raw", M, NULL, NULL, 0, NULL), err);
    d = open_as("guess", NULL, IMG_OPEN_WRITE | IMG_OPEN_PROBE);
    assert_int_equal(img_pwrite(d, "QFI\xfb\0\0\0\3", 8, 0, 0, &err), -EPERM);
    assert_int_equal(img_pwrite(d, "FI\xfb\0\0\0\3", 7, 1, 0, &err), 0);
    assert_int_equal(img_pwrite(d, "Q", 1, 0, 0, &err), -EPERM);
    assert_ok(img_zero(d, 0, 4096, 0, &err), err);
    assert_ok(img_pwrite(d, b, sizeof b, 0, 0, &err), err);
    assert_ok(img_pwrite(d, "QFI\xfb", 4, M - 4, 0, &err), err);
    assert_ok(img_close(d, &err), err);
}

/* ---- the state of a virtual machine ------------------------------------ */

static void test_vmstate(void **state)
{
    struct img_disk *d;
    char b[8] = "";

    assert_ok(make("vm", "qcow2", M, NULL, NULL, 0, NULL), err);
    d = open_as("vm", "qcow2", 0);
    assert_int_equal(img_vmstate_pwrite(d, "state", 5, 0, &err), -EROFS);
    assert_ok(img_vmstate_pread(d, b, 5, 0, &err), err);
    assert_memory_equal(b, "\0\0\0\0\0", 5);
    img_close(d, NULL);
    d = open_as("vm", "qcow2", IMG_OPEN_WRITE);
    assert_ok(img_vmstate_pwrite(d, "state", 5, 100000, &err), err);
    assert_ok(img_vmstate_pread(d, b, 5, 100000, &err), err);
    assert_string_equal(b, "state");
    assert_int_equal(img_vmstate_pread(d, b, 5, UINT64_MAX - 2, &err),
                     -EFBIG);
    assert_int_equal(img_vmstate_pread(d, b, 5, INT64_MAX, &err), -EFBIG);
    assert_true(img_vmstate_pwrite(d, b, 5, UINT64_MAX - 2, &err) < 0);
    assert_true(img_vmstate_pwrite(d, b, 5, INT64_MAX - M, &err) < 0);
    assert_int_equal(img_size(d), M);
    assert_ok(img_pread(d, b, 5, 0, &err), err);
    assert_memory_equal(b, "\0\0\0\0\0", 5);
    assert_ok(img_close(d, &err), err);
    d = open_as("vm", "qcow2", 0);
    assert_ok(img_vmstate_pread(d, b, 5, 100000, &err), err);
    assert_string_equal(b, "state");
    img_close(d, NULL);
}

/* ---- files beside it --------------------------------------------------- */

static int give(void *opaque, const char *referrer, const char *name,
                bool writable)
{
    char path[300];
    int fd;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* A VMDK in pieces of 2 GiB grows by one. */
static void test_beside(void **state)
{
    const uint64_t large = UINT64_C(3) << 30;
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_disk *d = NULL;
    struct stat first, second;
    char b[8] = "";
    int fd;

    umask(022);
    assert_ok(make("v.vmdk", "vmdk", M, NULL, NULL, 0,
                   "subformat=twoGbMaxExtentSparse"), err);
    assert_int_equal(chmod(in_folder("v-s001.vmdk"), 0600), 0);
    /* Whose files come from somebody else. */
    o.format = "vmdk";
    o.flags = IMG_OPEN_WRITE;
    o.resolve = give;
    for (int i = 0; i < 2; i++) {
        fd = open(in_folder("v.vmdk"), O_RDWR | O_CLOEXEC);
        assert_ok(i ? img_open(in_folder("v.vmdk"), &o, &d, &err)
                    : img_open_fd(fd, &o, &d, &err), err);
        if (i)
            close(fd);
        assert_int_equal(img_resize(d, large, false, IMG_PREALLOC_OFF, NULL,
                                    &err), -ENOTSUP);
        assert_says("come from whoever opened it");
        assert_int_equal(img_size(d), M);
        img_close(d, NULL);
    }
    /* Names that are taken are left alone. */
    assert_ok(make("v-s002.vmdk", "raw", 512, NULL, NULL, 0, NULL), err);
    assert_int_equal(symlink("none", in_folder("v-s003.vmdk")), 0);
    /* Where files may only be in this folder: it is. */
    o.resolve = NULL;
    o.allow_files = IMG_FILES_UNDER;
    o.allow_dir = folder;
    assert_ok(img_open(in_folder("v.vmdk"), &o, &d, &err), err);
    assert_ok(img_resize(d, large, false, IMG_PREALLOC_OFF, NULL, &err), err);
    assert_ok(img_pwrite(d, "end", 3, large - 3, 0, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_int_equal(stat(in_folder("v-s001.vmdk"), &first), 0);
    assert_int_equal(stat(in_folder("v-s004.vmdk"), &second), 0);
    assert_int_equal(second.st_mode, first.st_mode);
    d = open_as("v.vmdk", "vmdk", IMG_OPEN_WRITE);
    assert_int_equal(img_size(d), large);
    assert_ok(img_pread(d, b, 3, large - 3, &err), err);
    assert_string_equal(b, "end");
    assert_ok(img_resize(d, M, true, IMG_PREALLOC_OFF, NULL, &err), err);
    assert_ok(img_close(d, &err), err);
    assert_int_equal(access(in_folder("v-s004.vmdk"), F_OK), -1);
    assert_int_equal(access(in_folder("none"), F_OK), -1);
    assert_int_equal(stat(in_folder("v-s002.vmdk"), &second), 0);
    assert_int_equal(second.st_size, 512);
    d = open_as("v.vmdk", "vmdk", 0);
    assert_int_equal(img_size(d), M);
    img_close(d, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_policies), cmocka_unit_test(test_options),
        cmocka_unit_test(test_guessed), cmocka_unit_test(test_vmstate),
        cmocka_unit_test(test_beside),
    };

    return cmocka_run_group_tests(tests, folder_set_up, folder_tear_down);
}
