/* The files of a bench: made once, put back before each run. */
#include "bench.h"
#include "../support.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void bench_fatal(int r, const struct img_error *err)
{
    if (r == 0)
        return;
    fprintf(stderr, "race: %s\n", err->message);
    exit(99);
}

/* What the other file holds: stretches, and holes as long as a block. */
uint8_t other_byte(unsigned q)
{
    if (q >= QUARTERS || (q / 32) % 2)
        return 0;
    return (uint8_t)(0x80 + q / 8);
}

static uint8_t base_byte(unsigned q)
{
    return q >= HOLE && q < HOLE_END ? 0 : BASE_BYTE;
}

/* A raw file; zeros are holes. */
static void make_raw(struct bench *b, const char *path, uint8_t byte(unsigned))
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    uint8_t *buf = must_alloc(b->quarter);
    bool ok = fd >= 0 &&
              ftruncate(fd, (off_t)QUARTERS * b->quarter) == 0;

    for (unsigned q = 0; q < QUARTERS && ok; q++) {
        memset(buf, byte(q), b->quarter);
        if (byte(q))
            ok = pwrite(fd, buf, b->quarter, (off_t)q * b->quarter) ==
                 (ssize_t)b->quarter;
    }
    free(buf);
    if (!ok || close(fd) < 0) {
        perror(path);
        exit(99);
    }
}

static struct img_create_options like(const struct bench *b)
{
    struct img_create_options c = IMG_CREATE_OPTIONS;

    c.format = b->shape->format;
    c.settings = b->shape->settings;
    c.disk_size = (uint64_t)QUARTERS * b->quarter;
    c.has_size = true;
    c.flags = IMG_CREATE_NO_SYNC;
    return c;
}

/* The same as the raw base, in an image. */
static void make_base_image(struct bench *b)
{
    struct img_create_options c = like(b);
    struct img_open_options o = IMG_OPEN_OPTIONS;
    unsigned q = b->quarter;
    size_t first = (size_t)HOLE * q, rest = (size_t)(QUARTERS - HOLE_END) * q;
    uint8_t *buf = must_alloc(first + rest);
    struct img_disk *d = NULL;
    struct img_error err;
    int r = img_create(b->base, &c, &err);

    memset(buf, BASE_BYTE, first + rest);
    o.format = b->shape->format;
    o.flags = IMG_OPEN_WRITE;
    if (r == 0)
        r = img_open(b->base, &o, &d, &err);
    if (r == 0)
        r = img_pwrite(d, buf, first, 0, 0, &err);
    if (r == 0)
        r = img_pwrite(d, buf, rest, (uint64_t)HOLE_END * q, 0, &err);
    if (r == 0)
        r = img_close(d, &err);
    bench_fatal(r, &err);
    free(buf);
}

void bench_make_files(struct bench *b)
{
    struct img_create_options c = like(b);
    struct img_error err;

    make_raw(b, b->other, other_byte);
    if (b->shape->backing) {
        if (b->shape->image_below)
            make_base_image(b);
        else
            make_raw(b, b->base, base_byte);
        c.backing = b->base;
        c.backing_format = b->shape->image_below ? b->shape->format : "raw";
    }
    bench_fatal(img_create(b->path, &c, &err), &err);
}

/* The values of the open disk, one for each quarter. */
void bench_note_disk(struct bench *b, uint8_t *values)
{
    size_t bytes = (size_t)QUARTERS * b->quarter;
    uint8_t *buf = must_alloc(bytes);
    struct img_error err;

    bench_fatal(img_pread(b->disk, buf, bytes, 0, &err), &err);
    for (unsigned q = 0; q < QUARTERS; q++)
        values[q] = buf[(size_t)q * b->quarter];
    free(buf);
}

void bench_make_twin(struct bench *b)
{
    int fd = open(b->twin, O_RDWR | O_CREAT | O_TRUNC, 0600);
    uint8_t *buf = must_alloc(b->quarter);

    for (unsigned q = 0; q < QUARTERS; q++) {
        memset(buf, b->shown[q], b->quarter);
        if (fd < 0 || write(fd, buf, b->quarter) != (ssize_t)b->quarter) {
            perror(b->twin);
            exit(99);
        }
    }
    close(fd);
    free(buf);
}

void bench_save(struct saved *s, const char *path)
{
    FILE *f = fopen(path, "rb");
    struct stat st;

    if (!f || stat(path, &st) < 0) {
        perror(path);
        exit(99);
    }
    s->len = (size_t)st.st_size;
    s->bytes = must_alloc(s->len);
    if (fread(s->bytes, 1, s->len, f) != s->len)
        exit(99);
    fclose(f);
}

/* Blocks of zeros are holes, as they were. */
bool bench_restore(struct bench *b, const struct saved *s, const char *path)
{
    int fd = open(path, O_WRONLY | O_TRUNC);
    bool ok = fd >= 0 && ftruncate(fd, (off_t)s->len) == 0;
    size_t now;

    for (size_t at = 0; at < s->len && ok; at += now) {
        now = s->len - at < 4096 ? s->len - at : 4096;
        while (!all_zero(s->bytes + at, now) && at + now < s->len &&
               s->len - at - now >= 4096 &&
               !all_zero(s->bytes + at + now, 4096))
            now += 4096;
        if (!all_zero(s->bytes + at, now))
            ok = pwrite(fd, s->bytes + at, now, (off_t)at) == (ssize_t)now;
    }
    if (fd >= 0)
        close(fd);
    return ok || wrong(b, path, "cannot be written");
}

void bench_copy_file(struct bench *b, const char *from, const char *to)
{
    int in = open(from, O_RDONLY), out = open(to, O_RDWR | O_CREAT | O_TRUNC,
                                              0600);
    struct stat st;
    void *all;

    if (in < 0 || out < 0 || fstat(in, &st) < 0) {
        wrong(b, from, "cannot be copied");
    } else {
        all = must_alloc((size_t)st.st_size);
        if (read(in, all, (size_t)st.st_size) != st.st_size ||
            write(out, all, (size_t)st.st_size) != st.st_size)
            wrong(b, from, "cannot be copied");
        free(all);
    }
    close(in);
    close(out);
}

bool bench_open(struct bench *b, const char *path, const char *format,
                unsigned flags, const char *snapshot, struct img_disk **disk,
                struct img_error *err)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;

    opts.format = format;
    opts.flags = flags | IMG_OPEN_PROBE_BACKING;
    opts.snapshot = snapshot;
    if (b->shape->tiny_cache)
        opts.cache_bytes = 1;
    return img_open(path, &opts, disk, err) == 0;
}
