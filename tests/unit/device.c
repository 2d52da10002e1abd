/* Block devices: a loop device, as root. */
#include "unit.h"
#include "scratch.h"
#include "file/file.h"

#include <fcntl.h>

enum { SIZE = 4 << 20 };
static char device[64];

static int attach(void **state)
{
    char command[PATH_MAX + 100];
    FILE *p;
    int fd;

    if (scratch_begin(state) < 0)
        return -1;
    fd = open(in_scratch("disk"), O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, SIZE) < 0)
        return -1;
    close(fd);
    snprintf(command, sizeof command,
             "losetup -f --show '%s' 2>/dev/null", in_scratch("disk"));
    p = popen(command, "r");
    if (!p || !fgets(device, sizeof device, p))
        device[0] = 0;
    device[strcspn(device, "\n")] = 0;
    return p ? pclose(p), 0 : -1;
}

static int detach(void **state)
{
    char command[100];

    snprintf(command, sizeof command, "losetup -d %s", device);
    if (device[0] && system(command) != 0)
        return -1;
    return scratch_end(state);
}

static struct img_file *open_device(unsigned flags)
{
    struct img_file *f = NULL;
    struct img_error err;

    if (!device[0])
        skip();
    assert_ok(img_file_open(device, IMG_FILE_WRITE | flags, &f, &err), err);
    assert_true(f->is_device);
    return f;
}

static void check_range(struct img_file *f, uint64_t off, uint32_t len,
                        int value)
{
    struct img_error err;
    uint8_t b[65536];

    assert_ok(img_file_pread(f, b, len, off, &err), err);
    for (uint32_t i = 0; i < len; i++)
        assert_int_equal(b[i], value);
}

static void test_bounds(void **state)
{
    const unsigned flags[] = { 0, IMG_FILE_DIRECT };
    struct img_error err;
    uint64_t size;
    char b[8192] = "x";

    for (size_t i = 0; i < IMG_COUNT(flags); i++) {
        struct img_file *f = open_device(flags[i]);

        assert_ok(img_file_size(f, &size, &err), err);
        assert_int_equal(size, SIZE);
        assert_ok(img_file_truncate(f, SIZE, &err), err);
        assert_ok(img_file_truncate(f, 512, &err), err);
        assert_int_equal(img_file_truncate(f, SIZE + 1, &err), -ENOSPC);
        assert_non_null(strstr(err.message, device));
        assert_int_equal(img_file_pwrite(f, b, 8192, SIZE - 4096, &err),
                         -ENOSPC);
        assert_int_equal(img_file_pwrite(f, b, 10, SIZE, &err), -ENOSPC);
        assert_int_equal(img_file_pwrite(f, b, 10, SIZE - 3, &err), -ENOSPC);
        assert_true(img_file_zero(f, SIZE - 4096, 8192, 0, &err) < 0);
        check_range(f, SIZE, 4096, 0);
        assert_ok(img_file_sync(f, &err), err);
        img_file_close(f);
    }
}

static void test_zeros(void **state)
{
    const unsigned flags[] = { 0, IMG_FILE_DIRECT };
    struct img_error err;
    uint8_t b[65536];

    memset(b, 7, sizeof b);
    for (size_t i = 0; i < IMG_COUNT(flags); i++)
        for (int unmap = 0; unmap < 2; unmap++) {
            struct img_file *f = open_device(flags[i]);
            unsigned how = unmap ? IMG_FILE_MAY_UNMAP : 0;

            assert_ok(img_file_pwrite(f, b, 65536, 65536, &err), err);
            assert_ok(img_file_zero(f, 65536 + 4096, 8192, how, &err), err);
            assert_ok(img_file_zero(f, 65536 + 20001, 999, how, &err), err);
            check_range(f, 65536, 4096, 7);
            check_range(f, 65536 + 4096, 8192, 0);
            check_range(f, 65536 + 12288, 20001 - 12288, 7);
            check_range(f, 65536 + 20001, 999, 0);
            check_range(f, 65536 + 21000, 44536, 7);
            assert_ok(img_file_discard(f, 65536, 32768, &err), err);
            assert_ok(img_file_discard(f, 65536 + 33333, 99, &err), err);
            check_range(f, 65536, 20000, 0);
            check_range(f, 65536 + 34000, 1000, 7);
            img_file_close(f);
        }
}

/* Written in place, and still a device afterwards. */
static void test_output(void **state)
{
    struct img_output *out;
    struct img_error err;
    struct stat st;
    char b[3];

    img_file_close(open_device(0));
    assert_ok(img_output_begin(device, 0, &out, &err), err);
    assert_ok(img_file_pwrite(img_output_file(out), "one", 3, 0, &err), err);
    assert_ok(img_output_finish(out, &err), err);
    assert_ok(img_output_begin(device, IMG_OUTPUT_DIRECT, &out, &err), err);
    assert_ok(img_file_pread(img_output_file(out), b, 3, 0, &err), err);
    assert_memory_equal(b, "one", 3);
    img_output_abandon(out);
    assert_int_equal(stat(device, &st), 0);
    assert_true(S_ISBLK(st.st_mode));

    /* By a link, as /dev/disk/by-id has. */
    assert_int_equal(symlink(device, in_scratch("by-id")), 0);
    assert_ok(img_output_begin(in_scratch("by-id"), 0, &out, &err), err);
    assert_true(img_output_file(out)->is_device);
    assert_ok(img_output_finish(out, &err), err);
    assert_int_equal(lstat(in_scratch("by-id"), &st), 0);
    assert_true(S_ISLNK(st.st_mode));
}

static void test_same_device(void **state)
{
    struct img_file *a = open_device(0), *b = open_device(0);

    assert_true(a->device == b->device && a->device);
    img_file_close(a);
    img_file_close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_zeros),
        cmocka_unit_test(test_output),
        cmocka_unit_test(test_same_device),
    };

    return cmocka_run_group_tests_name("device", tests, attach, detach);
}
