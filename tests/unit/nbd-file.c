/* file/nbd*.c against servers of every kind: nbdkit plays them. */
#include "unit.h"
#include "scratch.h"
#include "file/nbd.h"
#include "file/nbd_link.h"

#include <signal.h>
#include <sys/wait.h>

enum { K = 1024 };

static struct img_error err;

#define assert_says(words) do {                                           \
        if (!strstr(err.message, words))                                  \
            fail_msg("\"%s\" does not say \"%s\"", err.message, words);   \
    } while (0)

/* ---- names ------------------------------------------------------------- */

static const struct {
    const char *path, *uri;     /* NULL = refused */
    unsigned reconnect_ms, open_ms;
} names[] = {
    { "nbd:host:10809", "nbd://host:10809/", 0, 0 },
    { "nbd:host:10809:exportname=a b", "nbd://host:10809/a%20b", 0, 0 },
    { "nbd:unix:/tmp/s", "nbd+unix:///?socket=/tmp/s", 0, 0 },
    { "NBD:unix:/t?&p:exportname=\xc3\xa4/x",
      "nbd+unix:///%C3%A4/x?socket=/t%3F%26p", 0, 0 },
    { "nbd:exportname=x", "nbd://exportname=x/", 0, 0 },
    { "nbd:unix", "nbd://unix/", 0, 0 },
    { "nbd://h/x", "nbd://h/x", 0, 0 },
    { "nbds://h", "nbds://h", 0, 0 },
    { "nbd+unix:///?socket=s", "nbd+unix:///?socket=s", 0, 0 },
    { "nbd://h/x?reconnect-delay=3", "nbd://h/x", 3000, 0 },
    { "nbd://h/?reconnect-delay=3&a=b&open-timeout=86400", "nbd://h/?a=b",
      3000, 86400000 },
    { "nbd://h/?a=b&open-timeout=0&reconnect-delay=1", "nbd://h/?a=b", 1000,
      0 },
    /* Others that only begin like them are passed on. */
    { "nbd://h/?reconnect-delays=3&open-timeout", /* no value */
      "nbd://h/?reconnect-delays=3&open-timeout", 0, 0 },
    { "nbd://h/?reconnect-delay=", NULL, 0, 0 },
    { "nbd://h/?reconnect-delay=-1", NULL, 0, 0 },
    { "nbd://h/?reconnect-delay=x", NULL, 0, 0 },
    { "nbd://h/?reconnect-delay=5s", NULL, 0, 0 },
    { "nbd://h/?open-timeout=86401", NULL, 0, 0 },
    { "nbd://h/?open-timeout=99999999999999999999&a=b", NULL, 0, 0 },
};

static void test_names(void **state)
{
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct img_nbd_name name;
        int r = img_nbd_name_parse(names[i].path, &name, &err);

        assert_true(img_nbd_is_uri(names[i].path));
        if (!names[i].uri) {
            assert_int_equal(r, -EINVAL);
            assert_says("takes a number of seconds");
            assert_says(names[i].path);
            continue;
        }
        assert_ok(r, err);
        assert_string_equal(name.uri, names[i].uri);
        assert_int_equal(name.reconnect_ms, names[i].reconnect_ms);
        assert_int_equal(name.open_ms, names[i].open_ms);
        free(name.uri);
    }
    assert_false(img_nbd_is_uri("nbd"));
    assert_false(img_nbd_is_uri("./nbd:x"));
}

/* ---- servers ----------------------------------------------------------- */

static char uri[5000];

static int pid;

/* nbdkit writes its number after it has gone to the background. */
static void read_pid(void)
{
    char text[20] = "";

    while (!strchr(text, '\n')) {
        FILE *f = fopen(in_scratch("pid"), "r");

        if (f && !fgets(text, sizeof text, f))
            text[0] = 0;
        if (f)
            fclose(f);
        usleep(1000);
    }
    pid = atoi(text);
    assert_true(pid > 1);
}

/* Starts it with these words of a shell; it listens afterwards. */
static void kit(const char *words)
{
    char *command;

    unlink(in_scratch("sock"));
    unlink(in_scratch("pid"));
    assert_true(asprintf(&command, "exec nbdkit -U %s/sock -P %s/pid %s",
                         scratch, scratch, words) > 0);
    assert_int_equal(system(command), 0);
    free(command);
    read_pid();
    snprintf(uri, sizeof uri, "nbd+unix:///?socket=%s/sock", scratch);
}

/* Its connections are gone afterwards. */
static void unkit(void)
{
    char path[40], state = 0;

    kill(pid, SIGKILL);
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    while (state != 'Z') {
        FILE *f = fopen(path, "r");

        if (!f)
            break;
        if (fscanf(f, "%*d %*s %c", &state) != 1)
            state = 'Z';
        fclose(f);
        usleep(1000);
    }
    pid = 0;
}

/* Nothing stays behind where a test failed. */
static int kit_end(void **state)
{
    if (pid)
        unkit();
    return 0;
}

static struct img_file *open_kit(const char *words, unsigned flags)
{
    struct img_file *f = NULL;

    kit(words);
    assert_ok(img_file_open(uri, flags | IMG_FILE_BY_USER, &f, &err), err);
    return f;
}

static void end(struct img_file *f)
{
    img_file_close(f);
    unkit();
}

static bool can_serve(void)
{
    struct img_file *f;

    return system("nbdkit --version >/dev/null 2>&1") == 0 &&
           img_file_open("nbd://[", IMG_FILE_BY_USER, &f, &err) != -ENOTSUP;
}

static void test_transfers(void **state)
{
    struct img_file *f, *g, *memory;
    char a[300], b[500], c[9] = "........", all[800];
    struct iovec two[] = { { a, sizeof a }, { b, sizeof b } };
    uint64_t size;

    if (!can_serve())
        skip();
    memset(a, 'a', sizeof a);
    memset(b, 'b', sizeof b);
    f = open_kit("memory 64K", IMG_FILE_WRITE);
    assert_ok(img_file_size(f, &size, &err), err);
    assert_int_equal(size, 64 * K);
    assert_ok(img_file_pwritev(f, two, 2, 1000, &err), err);
    assert_ok(img_file_pread(f, all, 800, 1000, &err), err);
    assert_memory_equal(all, a, 300);
    assert_memory_equal(all + 300, b, 500);
    memset(a, 1, sizeof a);
    memset(b, 1, sizeof b);
    assert_ok(img_file_preadv(f, two, 2, 1000, &err), err);
    assert_memory_equal(all, a, 300);
    assert_memory_equal(all + 300, b, 500);

    /* Beyond the end are zeros, and nothing is written. */
    assert_ok(img_file_pwrite(f, "end", 3, 64 * K - 3, &err), err);
    assert_ok(img_file_pread(f, c, 8, 64 * K - 3, &err), err);
    assert_memory_equal(c, "end\0\0\0\0\0", 8);
    memset(c, '.', 8);
    assert_ok(img_file_pread(f, c, 8, 64 * K, &err), err);
    assert_memory_equal(c, "\0\0\0\0\0\0\0\0", 8);
    assert_int_equal(img_file_pwrite(f, "x", 1, 64 * K, &err), -ENOSPC);
    assert_says("ends at 65536");
    assert_int_equal(img_file_zero(f, 64 * K - 1, 2, 0, &err), -ENOSPC);
    assert_int_equal(img_file_truncate(f, 64 * K + 1, &err), -ENOSPC);
    assert_ok(img_file_truncate(f, 1, &err), err);
    assert_ok(img_file_pwrite(f, "", 0, 64 * K, &err), err);
    assert_ok(img_file_pread(f, c, 0, 5, &err), err);
    assert_ok(img_file_preadv(f, NULL, 0, 5, &err), err);
    assert_ok(img_file_sync(f, &err), err);

    /* A second file on the same connection outlives the first. */
    assert_ok(img_nbd_share(f, &g, &err), err);
    img_file_close(f);
    assert_ok(img_file_pread(g, c, 3, 64 * K - 3, &err), err);
    assert_memory_equal(c, "end", 3);
    end(g);
    assert_ok(img_file_in_memory("m", &memory, &err), err);
    assert_int_equal(img_nbd_share(memory, &g, &err), -ENOTSUP);
    assert_says("has no descriptor");
    img_file_close(memory);
}

/* What is not in whole blocks is read, changed and written. */
static void test_blocks(void **state)
{
    static unsigned char flat[64 * K], now[64 * K], some[20 * K];
    struct img_file *f;
    uint64_t seed = 3;

    if (!can_serve())
        skip();
    f = open_kit("--filter=blocksize-policy memory 64K "
                 "blocksize-minimum=4096 blocksize-maximum=8192 "
                 "blocksize-error-policy=error", IMG_FILE_WRITE);
    assert_int_equal(f->align, 4096);
    for (int i = 0; i < 60; i++) {
        size_t len = 1 + unit_random(&seed) % sizeof some;
        uint64_t off = unit_random(&seed) % (sizeof flat - len);

        for (size_t k = 0; k < len; k++)
            some[k] = (unsigned char)unit_random(&seed);
        if (i % 3 == 2)
            memset(some, 0, len);
        memcpy(flat + off, some, len);
        if (i % 3 == 2)
            assert_ok(img_file_zero(f, off, len, 0, &err), err);
        else
            assert_ok(img_file_pwrite(f, some, len, off, &err), err);
        assert_ok(img_file_pread(f, now, len, off, &err), err);
        assert_memory_equal(now, some, len);
    }
    assert_ok(img_file_pread(f, now, sizeof now, 0, &err), err);
    assert_memory_equal(now, flat, sizeof flat);
    end(f);
}

/* eval: a server that does what these scripts say. */
#define DISK "$tmpdir/disk"
#define EVAL "eval after_fork='truncate -s 1M " DISK "' get_size='echo 1M' " \
    "pread='dd if=" DISK " bs=1 skip=$4 count=$3 status=none' " \
    "pwrite='dd of=" DISK " bs=1 seek=$4 conv=notrunc status=none' "
#define LOG(what) "'echo " what " $3 $4 >>$LOG' "
#define CAN "'exit 0' "
#define CANNOT "'exit 3' "
#define REFUSES "'echo ENOTSUP no >&2; exit 1' "
#define FAILS "'echo EIO broken >&2; exit 1' "

static void assert_log(const char *lines)
{
    char has[300] = "";
    FILE *f = fopen(in_scratch("log"), "r");
    size_t n = f ? fread(has, 1, sizeof has - 1, f) : 0;

    has[n] = 0;
    if (f)
        fclose(f);
    unlink(in_scratch("log"));
    assert_string_equal(has, lines);
}

/* Giving space back: quick zeros, else TRIM, else nothing. */
static const struct {
    const char *server;
    int ret;
    const char *log;
} discards[] = {
    { "can_zero=" CAN "can_fast_zero=" CAN "zero=" LOG("zero")
      "can_trim=" CAN "trim=" LOG("trim"), 0, "zero 8192 4096\n" },
    { "can_zero=" CAN "can_fast_zero=" CAN "zero=" REFUSES
      "can_trim=" CAN "trim=" LOG("trim"), 0, "trim 8192 4096\n" },
    { "can_zero=" CAN "can_fast_zero=" CANNOT "zero=" LOG("zero")
      "can_trim=" CAN "trim=" LOG("trim"), 0, "trim 8192 4096\n" },
    { "can_zero=" CAN "can_fast_zero=" CANNOT "zero=" LOG("zero")
      "can_trim=" CANNOT, 0, "" },
    /* nbdkit says EINVAL: the protocol has ENOTSUP for quick zeros only. */
    { "can_zero=" CANNOT "can_trim=" CAN "trim=" REFUSES, -EINVAL, "" },
    { "can_zero=" CANNOT "can_trim=" CAN "trim=" FAILS, -EIO, "" },
    { "can_zero=" CAN "can_fast_zero=" CAN "zero=" FAILS
      "can_trim=" CAN "trim=" LOG("trim"), -EIO, "" },
};

static void test_discard(void **state)
{
    if (!can_serve())
        skip();
    setenv("LOG", in_scratch("log"), 1);
    for (unsigned i = 0; i < sizeof discards / sizeof discards[0]; i++) {
        char words[2000];
        struct img_file *f;
        int r;

        snprintf(words, sizeof words, EVAL "can_write=" CAN "%s",
                 discards[i].server);
        f = open_kit(words, IMG_FILE_WRITE);
        r = img_file_discard(f, 4096, 8192, &err);
        if (r != discards[i].ret)
            fail_msg("%u: %d, %s", i, r, err.message);
        if (discards[i].ret < 0)
            assert_says("the server failed a request at 4096");
        assert_log(discards[i].log);
        end(f);
    }
}

/* Zeros that the server cannot lay are written. */
static void test_zeros(void **state)
{
    static const char *const servers[] = {
        "can_zero=" CANNOT, "can_zero=" CAN "zero=" REFUSES
    };
    char was[8], now[8];

    if (!can_serve())
        skip();
    memset(was, 'x', 8);
    for (unsigned i = 0; i < 2; i++) {
        char words[2000];
        struct img_file *f;

        /* nozero: nbdkit itself would write them. */
        snprintf(words, sizeof words, "%s" EVAL "can_write=" CAN "%s",
                 i ? "" : "--filter=nozero ", servers[i]);
        f = open_kit(words, IMG_FILE_WRITE);
        assert_ok(img_file_pwrite(f, was, 8, 996, &err), err);
        assert_ok(img_file_zero(f, 1000, 2, 0, &err), err);
        assert_ok(img_file_pread(f, now, 8, 996, &err), err);
        assert_memory_equal(now, "xxxx\0\0xx", 8);
        /* nbdkit itself writes zeros for the second. */
        assert_int_equal(img_file_zero(f, 0, 512, IMG_FILE_FAST_ONLY, &err),
                         i ? 0 : -ENOTSUP);
        end(f);
    }
}

static void test_read_only(void **state)
{
    struct img_file *f;
    bool data;
    uint64_t run;

    if (!can_serve())
        skip();
    kit("-r memory 1M");
    assert_int_equal(img_file_open(uri, IMG_FILE_WRITE | IMG_FILE_BY_USER,
                                   &f, &err), -EROFS);
    assert_says("serves it read-only");
    assert_ok(img_file_open(uri, IMG_FILE_BY_USER, &f, &err), err);
    assert_ok(img_file_sync(f, &err), err);
    assert_int_equal(img_file_pwrite(f, "x", 1, 0, &err), -EROFS);
    assert_ok(img_file_extent(f, 2000 * K, 5, &data, &run, &err), err);
    assert_true(!data && run == 5);         /* behind its end */
    end(f);
    /* Nor is a name opened as a server that the user did not give. */
    assert_int_equal(img_file_open(uri, 0, &f, &err), -ENOENT);
    assert_int_equal(img_file_open("nbd+unix:///?socket=/nonexistent",
                                   IMG_FILE_BY_USER, &f, &err), -ENOENT);
}

/* ---- extents ----------------------------------------------------------- */

struct extent { uint64_t off, len; bool data; uint64_t run; };

static void assert_extents(struct img_file *f, const struct extent *e,
                           unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        uint64_t run = 0;
        bool data = !e[i].data;

        assert_ok(img_file_extent(f, e[i].off, e[i].len, &data, &run, &err),
                  err);
        if (data != e[i].data || run != e[i].run)
            fail_msg("%u: %d, %llu", i, data, (unsigned long long)run);
    }
}

/* 4K of data, a hole, zeros that take space, data up to the end. */
#define EXTENTS "extents='echo 0 4096; echo 4096 61440 hole,zero; " \
    "echo 65536 4096 zero; echo 69632 979 ; echo 70611 977965 ' "

static void test_extents(void **state)
{
    static const struct extent e[] = {
        { 0, 100, true, 100 }, { 0, 1024 * K, true, 4096 },
        { 5000, 1024 * K, false, 64632 }, { 65536, 10000, false, 4096 },
        { 69632, 1024 * K, true, 978944 }, { 1048575, 10, true, 1 },
        { 4096, 61440, false, 61440 }, { 1048576, 7, false, 7 },
    };
    const unsigned n = sizeof e / sizeof e[0];
    struct img_file *f;

    if (!can_serve())
        skip();
    f = open_kit(EVAL "can_extents=" CAN EXTENTS, 0);
    assert_extents(f, e, n);
    end(f);
    f = open_kit(EVAL "can_write=" CAN "can_extents=" CAN EXTENTS,
                 IMG_FILE_WRITE);
    assert_extents(f, e, n);
    end(f);
    /* Asked for whole blocks. */
    f = open_kit("--filter=blocksize-policy " EVAL "can_extents=" CAN EXTENTS
                 "blocksize-minimum=4096 blocksize-error-policy=error", 0);
    assert_extents(f, e, n);
    end(f);
}

static void test_no_extents(void **state)
{
    static const struct extent all[] = {
        { 0, 100, true, 100 }, { 4096, 64 * K, true, 64 * K },
    };
    uint64_t run;
    struct img_file *f;
    bool data;

    if (!can_serve())
        skip();
    f = open_kit("--no-sr memory 1M", 0);
    assert_extents(f, all, 2);
    end(f);
    f = open_kit("--filter=noextents memory 1M", 0);
    assert_extents(f, all, 2);
    end(f);
    f = open_kit(EVAL "can_extents=" CAN "extents=" FAILS, 0);
    assert_int_equal(img_file_extent(f, 0, 4096, &data, &run, &err), -EIO);
    end(f);
}

/* More of them than are remembered, and more than one answer holds. */
static void test_many_extents(void **state)
{
    static const char words[] = EVAL "can_extents=" CAN
        "extents='i=0; while [ $i -lt 4096 ]; do "
        "echo $((i*256)) 128; echo $((i*256+128)) 128 hole,zero; "
        "i=$((i+1)); done' ";
    struct img_file *f;

    if (!can_serve())
        skip();
    for (unsigned flags = 0; flags <= IMG_FILE_WRITE; flags++) {
        char all[3000];

        snprintf(all, sizeof all, "%scan_write=" CAN, words);
        f = open_kit(all, flags);
        /* Behind the 4096 first ones the server is asked again. */
        for (uint64_t off = 0; off < K; off += 128)
            for (uint64_t far = 0; far < 600 * K; far += 516 * K) {
                struct extent e = { far + off, 1024 * K - far - off,
                                    off / 128 % 2 == 0, 128 };

                if (!flags || off < 256)
                    assert_extents(f, &e, 1);
            }
        end(f);
    }
}

/* ---- connections ------------------------------------------------------- */

/* A server that is started later, or anew. */
static void test_patience(void **state)
{
    struct img_file *f;
    char name[5100], c[4] = "";
    pid_t child;
    int status;

    if (!can_serve())
        skip();
    kit("memory 64K");
    unkit();
    unlink(in_scratch("pid"));
    snprintf(name, sizeof name, "%s&open-timeout=20&reconnect-delay=20", uri);
    child = fork();
    if (child == 0) {
        char *command;

        /* Mostly after the first attempt. */
        usleep(200000);
        unlink(in_scratch("sock"));
        if (asprintf(&command, "exec nbdkit -U %s/sock -P %s/pid memory 64K",
                     scratch, scratch) > 0)
            execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(1);
    }
    assert_ok(img_file_open(name, IMG_FILE_WRITE | IMG_FILE_BY_USER, &f,
                            &err), err);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    read_pid();
    assert_ok(img_file_pwrite(f, "one", 3, 0, &err), err);
    assert_ok(img_file_sync(f, &err), err);

    /* Gone and there again: requests are done, on the new one. */
    unkit();
    kit("memory 64K");
    assert_ok(img_file_pwrite(f, "two", 3, 10, &err), err);
    assert_ok(img_file_pread(f, c, 3, 10, &err), err);
    assert_string_equal(c, "two");
    assert_ok(img_file_sync(f, &err), err);

    /* Another disk is not what was open. */
    unkit();
    img_file_close(f);
    kit("memory 64K");
    snprintf(name, sizeof name, "%s&reconnect-delay=1", uri);
    assert_ok(img_file_open(name, IMG_FILE_BY_USER, &f, &err), err);
    unkit();
    kit("memory 128K");
    assert_int_equal(img_file_pread(f, c, 3, 10, &err) < 0, 1);
    assert_int_equal(img_file_pread(f, c, 3, 10, &err) < 0, 1);
    end(f);
}

/* Without patience a lost connection stays lost. */
static void test_lost(void **state)
{
    struct img_file *f;
    char c[4];

    if (!can_serve())
        skip();
    f = open_kit("memory 64K", IMG_FILE_WRITE);
    unkit();
    kit("memory 64K");
    assert_true(img_file_pread(f, c, 3, 0, &err) < 0);
    assert_int_equal(img_file_pread(f, c, 3, 0, &err), -ENOTCONN);
    assert_says("is broken");
    assert_true(img_file_sync(f, &err) < 0);
    end(f);
}

/* A server without FUA may have lost what no flush covered. */
static void test_doubt(void **state)
{
    static const char server[] = EVAL "can_write=" CAN "can_flush=" CAN
        "flush=" CAN "can_fua='echo none' ";
    char name[5100];
    struct img_file *f;

    if (!can_serve())
        skip();
    kit(server);
    snprintf(name, sizeof name, "%s&reconnect-delay=20", uri);
    assert_ok(img_file_open(name, IMG_FILE_WRITE | IMG_FILE_BY_USER, &f,
                            &err), err);
    assert_ok(img_file_pwrite(f, "one", 3, 0, &err), err);
    assert_ok(img_file_sync(f, &err), err);
    unkit();
    kit(server);
    assert_ok(img_file_sync(f, &err), err);     /* it was flushed before */
    assert_ok(img_file_pwrite(f, "two", 3, 0, &err), err);
    unkit();
    kit(server);
    assert_int_equal(img_file_sync(f, &err), -EIO);
    assert_says("not flushed");
    assert_int_equal(img_file_sync(f, &err), -EIO);
    end(f);
}

/* The kernel of the server tells of a lost write once: that its next flush
 * succeeds says nothing. */
static void test_failed_flush(void **state)
{
    char server[5100];
    struct img_file *f;

    if (!can_serve())
        skip();
    snprintf(server, sizeof server, "%s%s",
             EVAL "can_write=" CAN "can_flush=" CAN,
             "flush='[ -e $tmpdir/once ] || { touch $tmpdir/once; "
             "echo EIO >&2; exit 1; }' ");
    f = open_kit(server, IMG_FILE_WRITE);
    assert_ok(img_file_pwrite(f, "one", 3, 0, &err), err);
    assert_int_equal(img_file_sync(f, &err), -EIO);
    assert_says("the server failed a request");
    assert_int_equal(img_file_sync(f, &err), -EIO);
    assert_says("an earlier write was lost");
    end(f);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_teardown(name, kit_end)
    const struct CMUnitTest tests[] = {
        TEST(test_names), TEST(test_transfers),
        TEST(test_blocks), TEST(test_discard),
        TEST(test_zeros), TEST(test_read_only),
        TEST(test_extents), TEST(test_no_extents),
        TEST(test_many_extents), TEST(test_patience),
        TEST(test_lost), TEST(test_doubt),
        TEST(test_failed_flush),
    };

    return cmocka_run_group_tests_name("nbd-file", tests, scratch_begin,
                                       scratch_end);
}
