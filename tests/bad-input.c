/* Bad input by the hundred thousand.
 *
 * Small images of every structure, made by qemu-img where it can, are spoilt
 * one field at a time, in the image or in an extent or parent of it: each
 * word of the metadata becomes 0, 1, all ones, the sign bit, just past the
 * end of the file or of the disk, one more and one less; and the file is cut
 * at every 512 bytes.  Each is opened, described, mapped,
 * read, checked, and every few opened for repair.  An error is fine; a crash,
 * a hang, an error without a message or memory beyond 256 MiB is not.
 *
 * The cases run in a child process, so that one that kills it is named and
 * the rest goes on.
 *
 *   bad-input [--cases N] [--image NAME] [--only CASE]
 */
#include "bad-images.h"
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ASAN 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define ASAN 1
#endif

enum {
    MEMORY_MIB = 256, SECONDS = 20
};

#ifdef ASAN
/* RLIMIT_AS and ASan do not go together; it has a limit of its own. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "max_allocation_size_mb=256:hard_rss_limit_mb=1200:"
           "allocator_may_return_null=0:quarantine_size_mb=16";
}
#endif

/* ---- the cases --------------------------------------------------------- */

struct word {
    uint64_t off;
    unsigned width;
};

struct subject {
    const struct image *image;
    uint8_t *bytes;             /* the good file */
    uint64_t len;
    struct word *words;
    uint64_t n_words, n_cases;
};

enum { N_VALUES = 12 };

static bool plain(const uint8_t *p, unsigned width, uint8_t byte)
{
    for (unsigned i = 0; i < width; i++)
        if (p[i] != byte)
            return false;
    return true;
}

/* Words that are part of a structure: not the guest's pattern, and not in
 * the middle of a run of zeros. */
static bool interesting(const struct subject *s, uint64_t off, unsigned width)
{
    if (plain(s->bytes + off, width, PATTERN))
        return false;
    if (off < 512 || off % 512 == 0 || !plain(s->bytes + off, width, 0))
        return true;
    return !plain(s->bytes + off - width, width, 0) &&
           !plain(s->bytes + off - width, width, PATTERN);
}

static void find_words(struct subject *s)
{
    static const unsigned widths[] = { 1, 2, 4, 8 };

    s->words = must_alloc(s->len * 2 * sizeof(*s->words));
    s->n_words = 0;
    for (int w = 0; w < 4; w++) {
        unsigned width = widths[w];

        for (uint64_t off = 0; off + width <= s->len; off += width) {
            /* Bytes and halves only where headers and lists are. */
            if (width < 4 && off >= 512 && plain(s->bytes + off, width, 0))
                continue;
            if (interesting(s, off, width))
                s->words[s->n_words++] = (struct word) { off, width };
        }
    }
    s->n_cases = s->n_words * N_VALUES + s->len / 512 + 1;
}

static const char *spoilt_name(const struct image *im)
{
    return im->spoil ? im->spoil : disk_name(im);
}

static void load(struct subject *s, const struct image *im)
{
    struct stat st;
    int fd;

    s->image = im;
    make_image(im);
    fd = open(spoilt_name(im), O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        exit(99);
    s->len = (uint64_t)st.st_size;
    s->bytes = must_alloc(s->len);
    if (read(fd, s->bytes, s->len) != (ssize_t)s->len)
        exit(99);
    close(fd);
    find_words(s);
}

static void put(uint8_t *p, unsigned width, uint64_t value, bool little)
{
    for (unsigned i = 0; i < width; i++)
        p[little ? i : width - 1 - i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get(const uint8_t *p, unsigned width, bool little)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < width; i++)
        value |= (uint64_t)p[little ? i : width - 1 - i] << (8 * i);
    return value;
}

static uint64_t spoil_value(const struct subject *s, const struct word *w,
                            unsigned which, bool little)
{
    uint64_t old = get(s->bytes + w->off, w->width, little);
    uint64_t ones = w->width == 8 ? ~0ull : (1ull << (8 * w->width)) - 1;

    switch (which) {
    case 0: return 0;
    case 1: return 1;
    case 2: return ones;
    case 3: return (ones >> 1) + 1;
    case 4: return ones >> 1;
    case 5: return s->len;
    case 6: return (s->len + 65535) / 65536 * 65536;
    case 7: return s->len / 512 + 1;
    case 8: return old + 1;
    case 9: return old - 1;
    case 10: return old ^ 1ull << (w->off * 7 % (8 * w->width));
    default: return old | ((ones >> 1) + 1);
    }
}

/* Writes the spoilt file; says in text what was done to it. */
static void write_case(const struct subject *s, uint64_t number, int fd,
                       char *text, size_t text_size)
{
    uint64_t len = s->len;
    uint8_t bytes[8];

    if (pwrite(fd, s->bytes, s->len, 0) != (ssize_t)s->len)
        exit(99);
    if (number >= s->n_words * N_VALUES) {
        len = (number - s->n_words * N_VALUES) * 512;
        snprintf(text, text_size, "cut at %llu", (unsigned long long)len);
    } else {
        const struct word *w = &s->words[number / N_VALUES];
        bool little = s->image->format[0] == 'v';
        uint64_t value = spoil_value(s, w, (unsigned)(number % N_VALUES),
                                     little);

        put(bytes, w->width, value, little);
        if (pwrite(fd, bytes, w->width, (off_t)w->off) !=
            (ssize_t)w->width)
            exit(99);
        snprintf(text, text_size, "%u bytes at %llu = 0x%llx", w->width,
                 (unsigned long long)w->off, (unsigned long long)value);
    }
    if (ftruncate(fd, (off_t)len) < 0)
        exit(99);
}

/* ---- one case ---------------------------------------------------------- */

/* Names in a spoilt image lead nowhere but to this folder. */
static int resolve(void *opaque, const char *referrer, const char *name,
                   bool writable)
{
    const char *last = strrchr(name, '/');
    int fd;

    last = last ? last + 1 : name;
    if (!strcmp(last, ".") || !strcmp(last, ".."))
        return -ENOENT;
    fd = open(last, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

static bool explained(int r, const struct img_error *err, const char *what)
{
    if (r >= 0)
        return true;
    if (r == -ENOMEM) {
        fprintf(stderr, "%s wants too much memory: %s\n", what,
                err->message);
        return false;
    }
    if (!err->message[0] || err->code != -r) {
        fprintf(stderr, "%s: error %d without a word, or with the wrong "
                "code %d: %s\n", what, r, err->code, err->message);
        return false;
    }
    return true;
}

static bool read_some(struct img_disk *disk)
{
    static uint8_t buf[256 << 10];
    uint64_t size = img_size(disk);
    uint64_t at[] = { 0, 256 << 10, size / 2, size - sizeof(buf), size - 1 };
    struct img_error err = { 0 };

    for (int i = 0; i < 5; i++) {
        uint64_t n;

        if (at[i] >= size)
            continue;
        n = size - at[i] < sizeof(buf) ? size - at[i] : sizeof(buf);
        if (!explained(img_pread(disk, buf, n, at[i], &err), &err, "read"))
            return false;
    }
    return true;
}

static bool map_some(struct img_disk *disk)
{
    uint64_t off = 0, size = img_size(disk);
    struct img_error err = { 0 };
    struct img_extent e;

    for (int i = 0; off < size && i < 1000; i++) {
        int r = img_map(disk, off, size - off, 0, &e, &err);

        if (!explained(r, &err, "map"))
            return false;
        if (r < 0)
            break;
        if (e.off != off || !e.len || e.len > size - off) {
            fprintf(stderr, "map: extent %llu+%llu for %llu\n",
                    (unsigned long long)e.off, (unsigned long long)e.len,
                    (unsigned long long)off);
            return false;
        }
        off += e.len;
    }
    return true;
}

static bool check_disk(struct img_disk *disk, unsigned repair)
{
    struct img_check_options opts = IMG_CHECK_OPTIONS;
    struct img_check_result result;
    struct img_error err = { 0 };
    int r;

    opts.repair = repair;
    r = img_check(disk, &opts, NULL, &result, &err);
    return r == -ENOTSUP || explained(r, &err, "check");
}

static bool try_reading(const struct image *im, uint64_t *opened)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_info *info = NULL;
    struct img_error err = { 0 };
    struct img_disk *disk;
    bool ok;
    int r;

    opts.format = im->format;
    opts.flags = IMG_OPEN_PROBE_BACKING;
    opts.resolve = resolve;
    r = img_open(disk_name(im), &opts, &disk, &err);
    if (r < 0)
        return explained(r, &err, "open");
    ++*opened;
    r = img_info_get(disk, &info, &err);
    ok = explained(r, &err, "info") && map_some(disk) && read_some(disk) &&
         check_disk(disk, 0);
    if (r >= 0)
        img_info_free(info);
    img_close(disk, NULL);
    return ok;
}

static bool try_repair(const struct image *im)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_error err = { 0 };
    struct img_disk *disk;
    bool ok;
    int r;

    opts.format = im->format;
    opts.flags = IMG_OPEN_REPAIR | IMG_OPEN_WRITE | IMG_OPEN_NO_SYNC |
                 IMG_OPEN_NO_BACKING;
    opts.resolve = resolve;
    r = img_open(disk_name(im), &opts, &disk, &err);
    if (r < 0)
        return explained(r, &err, "open for repair");
    ok = check_disk(disk, IMG_REPAIR_ALL) && read_some(disk);
    r = img_close(disk, &err);
    return ok && explained(r, &err, "close after repair");
}

static bool try_writing(const struct image *im)
{
    static uint8_t buf[5000];
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_error err = { 0 };
    struct img_disk *disk;
    uint64_t size;
    int r;

    opts.format = im->format;
    opts.flags = IMG_OPEN_WRITE | IMG_OPEN_NO_SYNC | IMG_OPEN_PROBE_BACKING;
    opts.resolve = resolve;
    r = img_open(disk_name(im), &opts, &disk, &err);
    if (r < 0)
        return explained(r, &err, "open for writing");
    size = img_size(disk);
    memset(buf, 0x33, sizeof(buf));
    for (uint64_t off = 700; r >= 0 && off + sizeof(buf) < size &&
         off < 400000; off += 29000)
        r = img_pwrite(disk, buf, sizeof(buf), off, 0, &err);
    if (explained(r, &err, "write") && r >= 0 && size > 60000)
        r = img_zero(disk, 3000, 50000, IMG_MAY_UNMAP, &err);
    if (!explained(r, &err, "write or zero")) {
        img_close(disk, NULL);
        return false;
    }
    r = img_close(disk, &err);
    return explained(r, &err, "close after writing");
}

/* ---- all of them ------------------------------------------------------- */

struct board {
    uint64_t next, done, failed, opened;
    char text[200];
    double slowest;
    char slowest_text[200];
};

static void limit_memory(void)
{
#ifndef ASAN
    struct rlimit limit = { 0 };
    char line[256];
    unsigned long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    if (f && fgets(line, sizeof(line), f))
        pages = strtoul(line, NULL, 10);
    if (f)
        fclose(f);
    limit.rlim_cur = limit.rlim_max = pages * 4096 +
                                      ((rlim_t)MEMORY_MIB << 20);
    setrlimit(RLIMIT_AS, &limit);
#endif
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void one_case(const struct subject *s, struct board *b, int fd)
{
    const struct image *im = s->image;
    double began = now(), took;
    bool ok;

    alarm(SECONDS);
    write_case(s, b->next, fd, b->text, sizeof(b->text));
    ok = try_reading(im, &b->opened);
    if (ok && b->done % 4 == 0)
        ok = try_repair(im);
    else if (ok && b->done % 4 == 1)
        ok = try_writing(im);
    if (!ok) {
        fprintf(stderr, "FAIL: %s, case %llu: %s\n", s->image->name,
                (unsigned long long)b->next, b->text);
        b->failed++;
    }
    took = now() - began;
    if (took > b->slowest) {
        b->slowest = took;
        memcpy(b->slowest_text, b->text, sizeof(b->text));
    }
    alarm(0);
}

/* Headers get all their cases, the rest every stride-th. */
static uint64_t next_case(const struct subject *s, uint64_t number,
                          uint64_t stride)
{
    const struct word *w = &s->words[number / N_VALUES];

    if (number < s->n_words * N_VALUES && w->off < 256 && w->width >= 4)
        return number + 1;
    return number + stride;
}

static void run_cases(const struct subject *s, struct board *b,
                      uint64_t stride)
{
    int fd = open(spoilt_name(s->image), O_RDWR | O_CLOEXEC);

    if (fd < 0)
        exit(99);
    limit_memory();
    for (; b->next < s->n_cases; b->next = next_case(s, b->next, stride)) {
        one_case(s, b, fd);
        b->done++;
    }
    exit(0);
}

static void run_image(const struct subject *s, struct board *b,
                      uint64_t stride)
{
    int status;

    b->next = stride > 1 ? (s->len * 31) % stride : 0;
    while (b->next < s->n_cases && b->failed < 50) {
        pid_t pid = fork();

        if (pid == 0)
            run_cases(s, b, stride);
        if (pid < 0 || waitpid(pid, &status, 0) < 0)
            exit(99);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
            break;
        fprintf(stderr, "FAIL: %s, case %llu: %s: %s %d\n", s->image->name,
                (unsigned long long)b->next, b->text,
                WIFEXITED(status) ? "exit" : "signal",
                WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
        b->failed++;
        b->done++;
        b->next = next_case(s, b->next, stride);
    }
}

static uint64_t run_all(const char *only_image, uint64_t cases,
                        struct board *b)
{
    uint64_t done = 0, failed = 0, share = cases;

    for (int i = 0; i < n_images; i++) {
        struct subject s = { 0 };
        uint64_t stride;

        if (!img_format_by_name(images[i].format) ||
            (only_image && strcmp(only_image, images[i].name)))
            continue;
        if (!only_image)
            share = cases / n_images + 1;
        load(&s, &images[i]);
        stride = s.n_cases / share ? s.n_cases / share : 1;
        /* Values are the inner index: every one must get its turn. */
        while (stride > 1 && (stride % 2 == 0 || stride % 3 == 0))
            stride--;
        memset(b, 0, sizeof(*b));
        run_image(&s, b, stride);
        printf("%-18s %7llu of %7llu cases, %llu opened, %llu failed, "
               "slowest %.2f s (%s)\n", images[i].name,
               (unsigned long long)b->done, (unsigned long long)s.n_cases,
               (unsigned long long)b->opened, (unsigned long long)b->failed,
               b->slowest, b->slowest_text);
        fflush(stdout);
        done += b->done;
        failed += b->failed;
        free(s.bytes);
        free(s.words);
    }
    printf("%llu cases, %llu failed\n", (unsigned long long)done,
           (unsigned long long)failed);
    return done ? failed : 1;
}

/* One case, in this process, for a debugger. */
static int run_one(const char *name, uint64_t number)
{
    struct board b = { .next = number };
    struct subject s = { 0 };
    int fd;

    for (int i = 0; i < n_images; i++)
        if (!strcmp(images[i].name, name))
            load(&s, &images[i]);
    fd = s.image ? open(spoilt_name(s.image), O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        exit(99);
    limit_memory();
    for (b.done = 0; b.done < 4; b.done++)
        one_case(&s, &b, fd);
    printf("%s\n", b.text);
    free(s.bytes);
    free(s.words);
    return b.failed != 0;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "cases", 1, NULL, 'c' }, { "image", 1, NULL, 'i' },
        { "only", 1, NULL, 'o' }, { NULL, 0, NULL, 0 }
    };
    const char *env = getenv("BAD_INPUT_CASES"), *image = NULL, *only = NULL;
    uint64_t cases = env ? strtoull(env, NULL, 0) : 30000;
    struct board *b;
    char dir[4000];
    int c, r;

    while ((c = getopt_long(argc, argv, "c:i:o:", options, NULL)) != -1) {
        switch (c) {
        case 'c': cases = strtoull(optarg, NULL, 0); break;
        case 'i': image = optarg; break;
        case 'o': only = optarg; break;
        default: return 2;
        }
    }
    if (!have_program("qemu-img") || !have_program("qemu-io")) {
        fprintf(stderr, "SKIP: qemu-img and qemu-io are not installed\n");
        return 77;
    }
    make_scratch(dir, sizeof(dir));
    if (chdir(dir) < 0)
        return 99;
    b = mmap(NULL, sizeof(*b), PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (b == MAP_FAILED)
        return 99;
    if (image && only)
        r = run_one(image, strtoull(only, NULL, 0));
    else
        r = run_all(image, cases, b) != 0;
    remove_scratch(dir);
    return r;
}
