/* vimg io: read, readv, write, writev. */
#include "io.h"
#include "vimg.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FILL_READ = 0xab, FILL_WRITE = 0xcd };

struct request {
    bool machine, quiet, verbose, vector, zeroes, vm_state;
    bool has_off, has_len;      /* of the pattern's range */
    int pattern;                /* -1 = none */
    unsigned flags;
    const char *source;         /* -s of write */
    uint64_t off, len, pattern_off, pattern_len;
    struct iovec *iov;
    int n_iov;
    char *buf;
};

bool io_may_write(const struct io *io)
{
    if (io->read_only)
        complain("Block node is read-only");
    return !io->read_only;
}

static int usage_of(const char *name)
{
    io_usage(io_find(name));
    return -1;
}

static bool read_option(struct request *r, int c)
{
    switch (c) {
    case 'b':
        r->vm_state = true;
        return true;
    case 'C':
        r->machine = true;
        return true;
    case 'l':
        r->has_len = true;
        return io_length(optarg, &r->pattern_len);
    case 's':
        r->has_off = true;
        return io_number(optarg, &r->pattern_off);
    case 'P':
        return io_pattern(optarg, &r->pattern);
    case 'q':
        r->quiet = true;
        return true;
    case 'v':
        r->verbose = true;
        return true;
    case 'a':
    case 'p':
        return true;
    default:
        return false;
    }
}

static bool write_option(struct request *r, int c)
{
    switch (c) {
    case 'b':
        r->vm_state = true;
        return true;
    case 'c':
        r->flags |= IMG_COMPRESS;
        return true;
    case 'C':
        r->machine = true;
        return true;
    case 'f':
        r->flags |= IMG_FUA;
        return true;
    case 'n':
        r->flags |= IMG_FAST_ONLY;
        return true;
    case 'u':
        r->flags |= IMG_MAY_UNMAP;
        return true;
    case 'z':
        r->zeroes = true;
        return true;
    case 'q':
        r->quiet = true;
        return true;
    case 'P':
        return io_pattern(optarg, &r->pattern);
    case 's':
        r->source = optarg;
        return true;
    case 'p':
        return true;
    default:
        return false;
    }
}

/* Offset and lengths; a vector has one buffer for each length. */
static bool parse_range(struct request *r, int argc, char **argv)
{
    uint64_t len;

    if (!io_number(argv[optind++], &r->off))
        return false;
    r->n_iov = argc - optind;
    r->iov = need_memory(calloc((size_t)r->n_iov, sizeof r->iov[0]));
    for (int i = 0; i < r->n_iov; i++) {
        if (r->zeroes && (r->flags & IMG_FAST_ONLY)) {
            if (!io_number(argv[optind + i], &len))
                return false;
        } else if (!io_length(argv[optind + i], &len)) {
            return false;
        }
        r->iov[i].iov_len = (size_t)len;
        r->len += len;
    }
    return true;
}

/* Real memory for everything but zeroes. */
static void make_buffers(struct request *r, int fill)
{
    void *memory = NULL;
    char *at;

    if (posix_memalign(&memory, 4096, r->len ? r->len : 1))
        memory = NULL;
    at = r->buf = need_memory(memory);
    memset(r->buf, fill, r->len);
    for (int i = 0; i < r->n_iov; i++) {
        r->iov[i].iov_base = at;
        at += r->iov[i].iov_len;
    }
}

static void release(struct request *r)
{
    free(r->buf);
    free(r->iov);
}

/* ---- reading ----------------------------------------------------------- */

static bool verify(const struct request *r)
{
    uint64_t off = r->pattern_off;
    uint64_t len = r->has_len ? r->pattern_len : r->len - off;

    for (uint64_t i = off; i < off + len; i++)
        if ((unsigned char)r->buf[i] != r->pattern) {
            printf("Pattern verification failed at offset %" PRIu64 ", %"
                   PRIu64 " bytes\n", r->off + off, len);
            return false;
        }
    return true;
}

/* Writes into the top layer what a read found below it. */
static int copy_up(struct io *io, const struct request *r)
{
    uint64_t at = r->off, end = r->off + r->len;
    struct img_extent e;
    int ret = 0;

    while (ret == 0 && at < end) {
        ret = img_map(io->disk, at, end - at, IMG_MAP_TOP, &e, NULL);
        if (ret == 0 && e.kind == IMG_HOLE)
            ret = img_pwrite(io->disk, r->buf + (at - r->off), e.len, at, 0,
                             NULL);
        at += ret == 0 ? e.len : 0;
    }
    return ret;
}

static int do_read(struct io *io, struct request *r)
{
    struct timespec start;
    struct img_error err;
    int ret;

    make_buffers(r, FILL_READ);
    clock_gettime(CLOCK_MONOTONIC, &start);
    if (!r->vm_state && (r->off > img_size(io->disk) ||
                         r->len > img_size(io->disk) - r->off))
        return io_failed("read", EIO, NULL);
    if (r->vm_state)
        ret = img_vmstate_pread(io->disk, r->buf, r->len, r->off, &err);
    else
        ret = img_preadv(io->disk, r->iov, r->n_iov, r->off, &err);
    if (ret < 0)
        return io_failed("read", ret, err.message);
    if (io->copy_on_read && !r->vm_state && copy_up(io, r) < 0)
        complain("what was read could not be copied into the image");
    if (r->pattern >= 0 && !verify(r))
        ret = -1;
    if (!r->quiet && r->verbose)
        io_dump(r->buf, r->len, r->off);
    if (!r->quiet)
        io_report("read", &start, r->off, r->len, r->len, 1, r->machine);
    return ret < 0 ? -1 : 0;
}

static bool check_pattern_range(const struct request *r)
{
    if (r->pattern < 0 && (r->has_off || r->has_len))
        return false;
    if (r->pattern_off > r->len ||
        (r->has_len && r->pattern_len > r->len - r->pattern_off)) {
        puts("pattern verification range exceeds end of read data");
        return false;
    }
    return true;
}

/* Compressed clusters and the VM state go by sectors. */
static bool check_sectors(const struct request *r)
{
    if (r->off % 512)
        printf("%" PRIu64 " is not a sector-aligned value for 'offset'\n",
               r->off);
    else if (r->len % 512)
        printf("%" PRIu64 " is not a sector-aligned value for 'count'\n",
               r->len);
    return r->off % 512 == 0 && r->len % 512 == 0;
}

static int read_command(struct io *io, int argc, char **argv,
                        const char *letters, bool vector)
{
    struct request r = { .pattern = -1, .vector = vector };
    int c, ret = -1;

    while ((c = getopt(argc, argv, letters)) != -1)
        if (!read_option(&r, c))
            return c == '?' ? usage_of(argv[0]) : -1;
    if (vector ? optind > argc - 2 : optind != argc - 2)
        return usage_of(argv[0]);
    if (parse_range(&r, argc, argv)) {
        if (r.pattern < 0 && (r.has_off || r.has_len))
            usage_of(argv[0]);
        else if (check_pattern_range(&r) &&
                 (!r.vm_state || check_sectors(&r)))
            ret = do_read(io, &r);
    }
    release(&r);
    return ret;
}

int io_read(struct io *io, int argc, char **argv)
{
    return read_command(io, argc, argv, "abCl:pP:qs:v", false);
}

int io_readv(struct io *io, int argc, char **argv)
{
    return read_command(io, argc, argv, "CP:qv", true);
}

/* ---- writing ----------------------------------------------------------- */

/* Repeats the file's content over the buffer. */
static bool fill_from_file(struct request *r)
{
    FILE *f = fopen(r->source, "rb");
    size_t n;

    if (!f) {
        printf("%s: %s\n", r->source, strerror(errno));
        return false;
    }
    n = fread(r->buf, 1, r->len, f);
    if (ferror(f))
        n = 0;
    fclose(f);
    if (n == 0 && r->len) {
        printf("%s: file is empty or cannot be read\n", r->source);
        return false;
    }
    for (uint64_t i = n; i < r->len; i++)
        r->buf[i] = r->buf[i - n];
    return true;
}

static int do_write(struct io *io, struct request *r)
{
    struct timespec start;
    struct img_error err;
    uint64_t size = img_size(io->disk);
    int ret;

    if (!r->zeroes) {
        make_buffers(r, r->pattern < 0 ? FILL_WRITE : r->pattern);
        if (r->source && !fill_from_file(r))
            return -1;
    }
    clock_gettime(CLOCK_MONOTONIC, &start);
    if (!r->vm_state && (r->off > size || r->len > size - r->off))
        return io_failed("write", EIO, NULL);
    if (r->vm_state)
        ret = img_vmstate_pwrite(io->disk, r->buf, r->len, r->off, &err);
    else if (r->zeroes)
        ret = img_zero(io->disk, r->off, r->len, r->flags & ~IMG_COMPRESS,
                       &err);
    else
        ret = img_pwritev(io->disk, r->iov, r->n_iov, r->off, r->flags, &err);
    if (ret < 0)
        return io_failed("write", ret, err.message);
    if (!r->quiet)
        io_report("wrote", &start, r->off, r->len, r->len, 1, r->machine);
    return 0;
}

static bool check_write(const struct request *r)
{
    const char *wrong = NULL;

    if (r->vm_state && r->zeroes)
        wrong = "-b and -z cannot be specified at the same time";
    else if ((r->flags & IMG_FUA) &&
             (r->vm_state || (r->flags & IMG_COMPRESS)))
        wrong = "-f and -b or -c cannot be specified at the same time";
    else if (r->zeroes + (r->pattern >= 0) + (r->source != NULL) > 1)
        wrong = "Only one of -z, -P, and -s can be specified at the same "
                "time";
    else if ((r->flags & IMG_FAST_ONLY) && !r->zeroes)
        wrong = "-n requires -z to be specified";
    else if ((r->flags & IMG_MAY_UNMAP) && !r->zeroes)
        wrong = "-u requires -z to be specified";
    if (wrong)
        puts(wrong);
    return !wrong;
}

static int write_command(struct io *io, int argc, char **argv,
                         const char *letters, bool vector)
{
    struct request r = { .pattern = -1, .vector = vector };
    int c, ret = -1;

    while ((c = getopt(argc, argv, letters)) != -1)
        if (!write_option(&r, c))
            return c == '?' ? usage_of(argv[0]) : -1;
    if (vector ? optind > argc - 2 : optind != argc - 2)
        return usage_of(argv[0]);
    if (!check_write(&r))
        return -1;
    if (parse_range(&r, argc, argv)) {
        bool by_sectors = r.vm_state || (r.flags & IMG_COMPRESS);

        if ((!by_sectors || check_sectors(&r)) && io_may_write(io))
            ret = do_write(io, &r);
    }
    release(&r);
    return ret;
}

int io_write(struct io *io, int argc, char **argv)
{
    return write_command(io, argc, argv, "bcCfnpP:qs:uz", false);
}

int io_writev(struct io *io, int argc, char **argv)
{
    return write_command(io, argc, argv, "CfP:q", true);
}
