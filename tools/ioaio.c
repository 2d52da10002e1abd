/* vimg io: requests that do not wait, over the library's queue. */
#include "io.h"
#include "vimg.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DEPTH = 128 };

struct io_aio {
    struct img_queue *queue;
    unsigned in_flight;
};

struct pending {
    bool machine, quiet, verbose, is_write, invalid;
    int pattern;                /* -1 = none; of reads */
    uint64_t off, len;
    unsigned flags;
    bool zeroes;
    struct iovec *iov;
    int n_iov;
    char *buf;
    struct timespec start;
};

static void release(struct pending *p)
{
    free(p->buf);
    free(p->iov);
    free(p);
}

static void finish(struct pending *p, int result, const char *message)
{
    if (result < 0) {
        printf("aio_%s failed: %s\n", p->is_write ? "write" : "read",
               strerror(-result));
        fflush(stdout);
        if (message)
            complain("%s", message);
        release(p);
        return;
    }
    if (p->pattern >= 0 && !p->is_write)
        for (uint64_t i = 0; i < p->len; i++)
            if ((unsigned char)p->buf[i] != p->pattern) {
                printf("Pattern verification failed at offset %" PRIu64
                       ", %" PRIu64 " bytes\n", p->off, p->len);
                break;
            }
    if (!p->quiet && p->verbose)
        io_dump(p->buf, p->len, p->off);
    if (!p->quiet)
        io_report(p->is_write ? "wrote" : "read", &p->start, p->off, p->len,
                  p->len, 1, p->machine);
    release(p);
}

void io_aio_poll(struct io *io, bool all)
{
    struct img_completion done[16];
    int n = 1;

    while (io->aio && io->aio->in_flight && n > 0) {
        n = img_queue_reap(io->aio->queue, done, all ? 1 : 0, 16,
                           all ? -1 : 0);
        for (int i = 0; i < n; i++) {
            io->aio->in_flight--;
            finish(done[i].user, done[i].result, done[i].message);
        }
    }
}

void io_aio_close(struct io *io)
{
    if (!io->aio)
        return;
    io_aio_poll(io, true);
    img_queue_close(io->aio->queue);
    free(io->aio);
    io->aio = NULL;
}

static bool have_queue(struct io *io)
{
    struct img_error err;

    if (io->aio)
        return true;
    io->aio = need_memory(calloc(1, sizeof *io->aio));
    if (img_queue_open(io->disk, DEPTH, &io->aio->queue, &err) == 0)
        return true;
    complain("%s", err.message);
    free(io->aio);
    io->aio = NULL;
    return false;
}

static void submit(struct io *io, struct pending *p)
{
    struct img_request req = {
        .op = p->zeroes ? IMG_ZERO : p->is_write ? IMG_WRITE : IMG_READ,
        .flags = p->flags, .off = p->off, .len = p->len, .user = p,
    };
    uint64_t size = img_size(io->disk);

    clock_gettime(CLOCK_MONOTONIC, &p->start);
    if (p->off > size || p->len > size - p->off) {
        finish(p, -EIO, NULL);
        return;
    }
    if (!p->zeroes) {
        req.iov = p->iov;
        req.iovcnt = p->n_iov;
    }
    while (img_queue_submit(io->aio->queue, &req, 1) != 1)
        io_aio_poll(io, true);
    io->aio->in_flight++;
}

static bool option(struct pending *p, int c)
{
    switch (c) {
    case 'C':
        p->machine = true;
        return true;
    case 'f':
        p->flags |= IMG_FUA;
        return true;
    case 'i':
        p->invalid = true;
        return true;
    case 'P':
        return io_pattern(optarg, &p->pattern);
    case 'q':
        p->quiet = true;
        return true;
    case 'u':
        p->flags |= IMG_MAY_UNMAP;
        return true;
    case 'v':
        p->verbose = true;
        return true;
    case 'z':
        p->zeroes = true;
        return true;
    default:
        return false;
    }
}

static bool parse_range(struct pending *p, int argc, char **argv)
{
    uint64_t len;
    void *memory = NULL;
    char *at;

    if (!io_number(argv[optind++], &p->off))
        return false;
    p->n_iov = argc - optind;
    p->iov = need_memory(calloc((size_t)p->n_iov, sizeof p->iov[0]));
    for (int i = 0; i < p->n_iov; i++) {
        if (!io_length(argv[optind + i], &len))
            return false;
        p->iov[i].iov_len = (size_t)len;
        p->len += len;
    }
    if (p->zeroes)
        return true;
    if (posix_memalign(&memory, 4096, p->len ? p->len : 1))
        memory = NULL;
    at = p->buf = need_memory(memory);
    memset(p->buf, !p->is_write ? 0xab : p->pattern < 0 ? 0xcd : p->pattern,
           p->len);
    for (int i = 0; i < p->n_iov; i++) {
        p->iov[i].iov_base = at;
        at += p->iov[i].iov_len;
    }
    return true;
}

static int command(struct io *io, int argc, char **argv, const char *letters,
                   bool is_write)
{
    struct pending *p = need_memory(calloc(1, sizeof *p));
    int c = 0;

    p->pattern = -1;
    p->is_write = is_write;
    while ((c = getopt(argc, argv, letters)) != -1)
        if (!option(p, c))
            goto fail;
    if (optind > argc - 2) {
        c = '?';
        goto fail;
    }
    if (p->zeroes && p->pattern >= 0) {
        puts("-z and -P cannot be specified at the same time");
        goto fail;
    }
    if ((p->flags & IMG_MAY_UNMAP) && !p->zeroes) {
        puts("-u requires -z to be specified");
        goto fail;
    }
    if (p->zeroes && optind != argc - 2) {
        puts("-z supports only a single length parameter");
        goto fail;
    }
    if (!parse_range(p, argc, argv) || (is_write && !io_may_write(io)))
        goto fail;
    if (p->invalid) {
        printf("injecting invalid %s request\n", is_write ? "write" : "read");
        release(p);
        return 0;
    }
    if (!have_queue(io))
        goto fail;
    submit(io, p);
    return 0;
fail:
    if (c == '?')
        io_usage(io_find(argv[0]));
    release(p);
    return -1;
}

int io_aio_read(struct io *io, int argc, char **argv)
{
    return command(io, argc, argv, "CP:iqv", false);
}

int io_aio_write(struct io *io, int argc, char **argv)
{
    return command(io, argc, argv, "CfiP:quz", true);
}

int io_aio_flush(struct io *io, int argc, char **argv)
{
    struct img_error err;

    io_aio_poll(io, true);
    if (img_flush(io->disk, &err) == 0)
        return 0;
    return io_failed("flush", err.code, err.message);
}
