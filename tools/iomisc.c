/* vimg io: commands that ask, and those that change the whole image. */
#include "io.h"
#include "show.h"
#include "vimg.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* How much from off on has one answer; *here: the top layer has it. */
static int allocated(struct io *io, uint64_t off, uint64_t len, uint64_t *run,
                     bool *here)
{
    struct img_extent e;
    struct img_error err;
    int r;

    for (*run = 0; *run < len; *run += e.len) {
        r = img_map(io->disk, off + *run, len - *run, IMG_MAP_TOP, &e, &err);
        if (r < 0)
            return io_failed("is_allocated", r, err.message);
        if (*run == 0)
            *here = e.kind != IMG_HOLE;
        else if (*here != (e.kind != IMG_HOLE))
            break;
    }
    return 0;
}

int io_alloc(struct io *io, int argc, char **argv)
{
    uint64_t off, len = 512, sum = 0, run, size = img_size(io->disk);
    char text[IO_TEXT];
    bool here = false;

    if (!io_number(argv[1], &off) || (argc == 3 && !io_number(argv[2], &len)))
        return -1;
    if (off > size)
        len = 0;
    else if (len > size - off)
        len = size - off;
    for (uint64_t at = off; at < off + len; at += run) {
        if (allocated(io, at, off + len - at, &run, &here) < 0)
            return -1;
        sum += here ? run : 0;
    }
    printf("%" PRIu64 "/%" PRIu64 " bytes allocated at offset %s\n", sum, len,
           io_size((double)off, text));
    return 0;
}

int io_map(struct io *io, int argc, char **argv)
{
    uint64_t size = img_size(io->disk), run;
    char a[IO_TEXT], b[IO_TEXT];
    bool here = false;

    for (uint64_t at = 0; at < size; at += run) {
        if (allocated(io, at, size - at, &run, &here) < 0)
            return -1;
        printf("%s (0x%" PRIx64 ") bytes %s allocated at offset %s (0x%"
               PRIx64 ")\n", io_size((double)run, a), run,
               here ? "   " : "not", io_size((double)at, b), at);
    }
    return 0;
}

int io_length_command(struct io *io, int argc, char **argv)
{
    char text[IO_TEXT];

    puts(io_size((double)img_size(io->disk), text));
    return 0;
}

/* Where QEMU keeps the VM state: behind the last byte that the L1 entry with
 * the disk's end reaches. */
static uint64_t vm_state_offset(const struct img_info *info)
{
    uint64_t reach = (uint64_t)info->cluster_size * info->cluster_size / 8;

    if (strcmp(info->format, "qcow2"))
        return 0;
    for (size_t i = 0; info->specific && i < info->specific->n_items; i++) {
        const struct img_value *v = &info->specific->items[i];

        if (v->name && !strcmp(v->name, "extended-l2") && v->flag)
            reach /= 2;
    }
    return reach ? (info->size + reach - 1) / reach * reach : 0;
}

int io_info(struct io *io, int argc, char **argv)
{
    struct img_info *info = NULL;
    struct img_error err;
    char text[IO_TEXT];

    if (img_info_get(io->disk, &info, &err) < 0)
        return io_failed("info", err.code, err.message);
    printf("format name: %s\n", info->format);
    printf("cluster size: %s\n", io_size(info->cluster_size, text));
    printf("vm state offset: %s\n",
           io_size((double)vm_state_offset(info), text));
    show_specific(info);
    img_info_free(info);
    return 0;
}

int io_truncate(struct io *io, int argc, char **argv)
{
    static const char *const modes[] = { "off", "metadata", "falloc", "full" };
    struct img_job job = IMG_JOB;
    struct img_error err;
    unsigned mode = 0;
    uint64_t size;
    int c;

    while ((c = getopt(argc, argv, "m:")) != -1) {
        if (c != 'm')
            return -1;
        for (mode = 0; mode < 4 && strcmp(modes[mode], optarg); mode++)
            ;
        if (mode == 4) {
            complain("Invalid preallocation mode '%s'", optarg);
            return -1;
        }
    }
    if (optind != argc - 1) {
        io_usage(io_find("truncate"));
        return -1;
    }
    if (!io_number(argv[optind], &size) || !io_may_write(io))
        return -1;
    io_aio_poll(io, true);
    if (size == img_size(io->disk) ||
        img_resize(io->disk, size, true, (enum img_prealloc)mode, &job,
                   &err) == 0)
        return 0;
    complain("%s", err.message);
    return -1;
}

int io_discard(struct io *io, int argc, char **argv)
{
    bool machine = false, quiet = false;
    uint64_t off, len, size = img_size(io->disk);
    struct timespec start;
    struct img_error err;
    int c, r;

    while ((c = getopt(argc, argv, "Cq")) != -1) {
        machine |= c == 'C';
        quiet |= c == 'q';
        if (c == '?')
            optind = argc;
    }
    if (optind != argc - 2) {
        io_usage(io_find("discard"));
        return -1;
    }
    if (!io_number(argv[optind], &off) || !io_length(argv[optind + 1], &len) ||
        !io_may_write(io))
        return -1;
    clock_gettime(CLOCK_MONOTONIC, &start);
    if (off > size || len > size - off)
        return io_failed("discard", EIO, NULL);
    r = img_discard(io->disk, off, len, &err);
    if (r < 0)
        return io_failed("discard", r, err.message);
    if (!quiet)
        io_report("discard", &start, off, len, len, 1, machine);
    return 0;
}

int io_flush(struct io *io, int argc, char **argv)
{
    struct img_error err;
    int r = img_flush(io->disk, &err);

    return r < 0 ? io_failed("flush", r, err.message) : 0;
}

int io_sleep(struct io *io, int argc, char **argv)
{
    char *end;
    long ms = strtol(argv[1], &end, 0);

    if (*end || end == argv[1] || ms < 0) {
        printf("%s is not a valid sleep time\n", argv[1]);
        return -1;
    }
    fflush(stdout);
    usleep((useconds_t)ms * 1000);
    return 0;
}
