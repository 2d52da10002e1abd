/* QEMU's image locks: our opens against each other, and against qemu-io. */
#include "unit.h"
#include "scratch.h"
#include "file/file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

enum {
    READER = IMG_PERM_READ,
    WRITER = IMG_PERM_READ | IMG_PERM_WRITE | IMG_PERM_RESIZE,
    SHARE = IMG_PERM_READ | IMG_PERM_WRITE_UNCHANGED
};

static struct img_file *open_image(void)
{
    struct img_file *f = NULL;
    struct img_error err;

    assert_ok(img_file_open(in_scratch("disk.img"), IMG_FILE_WRITE, &f, &err),
              err);
    return f;
}

static int make_image(void **state)
{
    int fd;

    if (scratch_begin(state) < 0)
        return -1;
    fd = open(in_scratch("disk.img"), O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, 1 << 20) < 0)
        return -1;
    return close(fd);
}

static void test_ours(void **state)
{
    struct img_file *a = open_image(), *b = open_image(), *c = open_image();
    struct img_error err;

    /* Readers live together; a writer is refused, says so, and holds
     * nothing afterwards. */
    assert_ok(img_file_lock(a, READER, SHARE, &err), err);
    assert_ok(img_file_lock(b, READER, SHARE, &err), err);
    assert_int_equal(img_file_lock(c, WRITER, SHARE, &err), -EBUSY);
    assert_non_null(strstr(err.message, "disk.img: Failed to get \"write\" "
                           "lock"));
    assert_ok(img_file_lock(b, READER, SHARE, &err), err);

    /* Upgrading needs the others gone; what was held before stays. */
    assert_int_equal(img_file_lock(a, WRITER, SHARE, &err), -EBUSY);
    img_file_close(b);
    assert_int_equal(img_file_lock(c, WRITER, SHARE, &err), -EBUSY);
    assert_ok(img_file_lock(a, WRITER, SHARE, &err), err);
    assert_int_equal(img_file_lock(c, READER, SHARE, &err), -EBUSY);
    assert_non_null(strstr(err.message, "Failed to get shared \"write\""));

    /* One that minds nothing (-U) gets in, and a lowered lock lets in. */
    assert_ok(img_file_lock(c, READER, IMG_PERM_ALL, &err), err);
    assert_ok(img_file_lock(a, READER, SHARE, &err), err);
    assert_ok(img_file_lock(c, READER, SHARE, &err), err);
    assert_ok(img_file_lock(a, 0, IMG_PERM_ALL, &err), err);
    assert_ok(img_file_lock(c, WRITER, SHARE, &err), err);
    img_file_close(a);
    img_file_close(c);
}

/* ---- with qemu-io ------------------------------------------------------ */

struct qemu {
    pid_t pid;
    FILE *to, *from;
};

static void start(struct qemu *q, char *const argv[])
{
    int in[2], out[2];

    assert_int_equal(pipe(in) | pipe(out), 0);
    q->pid = fork();
    assert_true(q->pid >= 0);
    if (q->pid == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        dup2(out[1], 2);
        close(in[1]);
        close(out[0]);
        execvp(argv[0], argv);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    q->to = fdopen(in[1], "w");
    q->from = fdopen(out[0], "r");
}

static int finish(struct qemu *q)
{
    int status = -1;

    fclose(q->to);
    while (fgetc(q->from) != EOF)
        ;
    fclose(q->from);
    waitpid(q->pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Is it up with the image open?  It answers when it is. */
static bool is_open(struct qemu *q)
{
    char line[500];

    fputs("length\n", q->to);
    fflush(q->to);
    while (fgets(line, sizeof line, q->from)) {
        if (strstr(line, "1 MiB"))
            return true;
        if (strstr(line, "lock"))
            return false;
    }
    return false;
}

static void start_io(struct qemu *q, bool writes)
{
    char path[PATH_MAX];
    char *w[] = { "qemu-io", "-f", "qcow2", path, NULL };
    char *r[] = { "qemu-io", "-r", "-f", "qcow2", path, NULL };

    snprintf(path, sizeof path, "%s", in_scratch("disk.img"));
    start(q, writes ? w : r);
}

static void need(const char *program)
{
    char command[100];

    snprintf(command, sizeof command, "command -v %s >/dev/null", program);
    if (system(command) != 0)
        skip();
}

static void make_qcow2(void)
{
    char command[PATH_MAX + 100];

    need("qemu-img");
    snprintf(command, sizeof command, "qemu-img create -q -f qcow2 '%s' 1M",
             in_scratch("disk.img"));
    assert_int_equal(system(command), 0);
}

/* What we may do while QEMU has it open for reading or writing, and what
 * QEMU may while we have. */
static void test_qemu_io(void **state)
{
    struct img_error err;

    need("qemu-io");
    make_qcow2();
    for (int writes = 0; writes < 2; writes++) {
        struct img_file *f = open_image();
        struct qemu q;

        start_io(&q, writes);
        assert_true(is_open(&q));
        assert_int_equal(img_file_lock(f, WRITER, SHARE, &err), -EBUSY);
        assert_int_equal(img_file_lock(f, READER, SHARE, &err),
                         writes ? -EBUSY : 0);
        assert_ok(img_file_lock(f, 0, IMG_PERM_ALL, &err), err);
        assert_int_equal(finish(&q), 0);

        assert_ok(img_file_lock(f, writes ? WRITER : READER, SHARE, &err),
                  err);
        start_io(&q, true);
        assert_false(is_open(&q));
        assert_int_not_equal(finish(&q), 0);
        start_io(&q, false);
        assert_int_equal(is_open(&q), !writes);
        finish(&q);
        img_file_close(f);
    }
}

/* A running machine.  Its monitor answers when it is up. */
static bool is_running(struct qemu *q)
{
    char line[1000];

    fputs("{\"execute\":\"qmp_capabilities\"}\n", q->to);
    fflush(q->to);
    while (fgets(line, sizeof line, q->from)) {
        if (strstr(line, "return"))
            return true;
        if (strstr(line, "Failed to get"))
            return false;
    }
    return false;
}

static void test_qemu_system(void **state)
{
    char drive[PATH_MAX + 50];
    char *argv[] = {
        "qemu-system-x86_64", "-accel", "tcg", "-S", "-display", "none",
        "-m", "32", "-nodefaults", "-drive", drive, "-qmp", "stdio", NULL
    };
    struct img_file *f = open_image();
    struct img_error err;
    struct qemu q;

    need("qemu-system-x86_64");
    snprintf(drive, sizeof drive, "if=virtio,format=raw,file=%s",
             in_scratch("disk.img"));
    start(&q, argv);
    assert_true(is_running(&q));
    assert_int_equal(img_file_lock(f, READER, SHARE, &err), -EBUSY);
    assert_int_equal(img_file_lock(f, WRITER, SHARE, &err), -EBUSY);
    assert_ok(img_file_lock(f, READER, IMG_PERM_ALL, &err), err);
    fputs("{\"execute\":\"quit\"}\n", q.to);
    assert_int_equal(finish(&q), 0);

    assert_ok(img_file_lock(f, READER, SHARE, &err), err);
    start(&q, argv);
    assert_false(is_running(&q));
    assert_int_not_equal(finish(&q), 0);
    img_file_close(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ours),
        cmocka_unit_test(test_qemu_io),
        cmocka_unit_test(test_qemu_system),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests_name("lock", tests, make_image,
                                       scratch_end);
}
