/* The sound images that bad-input.c spoils. */
#include "bad-images.h"
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ARGS = 24 };

/* In the order of struct image. */
const struct image images[] = {
    { "qcow2-512", "qcow2", "cluster_size=512", "300k", false, true, true,
      true,
      NULL, false },
    { "qcow2-4k", "qcow2", "cluster_size=4k", "2M", true, true, true, true,
      NULL, false },
    { "qcow2-64k", "qcow2", NULL, "3M", true, true, true, true,
      NULL, false },
    { "qcow2-v2", "qcow2", "compat=0.10,cluster_size=512", "200k", true, true,
      false, true,
      NULL, false },
    { "qcow2-subclusters", "qcow2", "extended_l2=on,cluster_size=16k", "1M",
      true, true, true, true,
      NULL, false },
    { "qcow2-zstd", "qcow2", "compression_type=zstd,cluster_size=4k", "1M",
      false, false, false, true,
      NULL, false },
    { "qcow2-1bit", "qcow2", "refcount_bits=1,cluster_size=512", "200k",
      false, false, false, false,
      NULL, false },
    { "qcow2-64bit", "qcow2",
      "refcount_bits=64,cluster_size=512,lazy_refcounts=on", "200k", false,
      true, false, true,
      NULL, false },
    { "qcow2-data-file", "qcow2", "data_file=data,cluster_size=4k", "1M",
      false, false, true, false,
      NULL, false },
    { "qcow", "qcow", NULL, "1M", true, false, false, false,
      NULL, false },
    { "vdi", "vdi", NULL, "8M", false, false, false, false,
      NULL, false },
    { "vmdk", "vmdk", NULL, "8M", false, false, false, false,
      NULL, false },
    { "vmdk-backed", "vmdk", NULL, "8M", true, false, false, false,
      NULL, false },
    { "vmdk-flat", "vmdk", "subformat=monolithicFlat", "1M", false, false,
      false, false,
      NULL, false },
    { "vmdk-split", "vmdk", "subformat=twoGbMaxExtentSparse", "4M", false,
      false, false, false,
      NULL, false },
    { "vmdk-stream", "vmdk", "subformat=streamOptimized", "1M", false, false,
      false, false, NULL, false },
    { "vdi-static", "vdi", "static=on", "2M", false, false, false, false,
      NULL, false },
    { "vdi-diff", "vdi", "block_size=4k", "1M", true, false, false, false,
      NULL, true },
    { "vdi-parent", "vdi", "block_size=4k", "1M", true, false, false, false,
      "base.vdi", true },
    { "vmdk-extent", "vmdk", "subformat=twoGbMaxExtentSparse", "4M", false,
      false, false, false, "disk-s001", false },
    { "vmdk-zero-grain", "vmdk",
      "subformat=twoGbMaxExtentSparse,zeroed_grain=on", "4M", false, false,
      false, false, "disk-s001", false },
    { "vmdk-flat-extent", "vmdk", "subformat=monolithicFlat", "1M", false,
      false, false, false, "disk-flat", false },
    { "vmdk-vmfs-sparse", "vmdk", "subformat=vmfsSparse", "4M", true, false,
      false, false, "disk-delta", true },
    { "vmdk-parent", "vmdk", NULL, "4M", true, false, false, false, "base",
      false },
    { "vmdk-sesparse", "vmdk", "sesparse", "1M", false, false, false, false,
      "se", true },
};
const int n_images = sizeof(images) / sizeof(images[0]);

static void must_run(const char *const *argv)
{
    int r = run_program("tool.out", argv);

    if (r) {
        run_program("/dev/stderr", (const char *[]) { "cat", "tool.out",
                    NULL });
        fprintf(stderr, "%s %s: exit %d\n", argv[0], argv[1], r);
        exit(99);
    }
}

static void add(const char **argv, int *n, const char *a, const char *b)
{
    argv[(*n)++] = a;
    if (b)
        argv[(*n)++] = b;
    argv[*n] = NULL;
}

/* streamOptimized can only be converted to. */
static void make_stream(const struct image *im)
{
    must_run((const char *[]) { "qemu-img", "create", "-q", "-f", "raw",
             "flat", im->size, NULL });
    must_run((const char *[]) { "qemu-io", "-f", "raw", "-c",
             "write -P 0x5a 1k 200k", "-c", "write -P 0x22 700k 1k", "flat",
             NULL });
    must_run((const char *[]) { "qemu-img", "convert", "-f", "raw", "-O",
             "vmdk", "-o", im->options, "flat", "disk", NULL });
}

static bool is_vdi(const struct image *im)
{
    return !strcmp(im->format, "vdi");
}

/* VDI images find their parents among files *.vdi. */
const char *disk_name(const struct image *im)
{
    return is_vdi(im) ? "disk.vdi" : "disk";
}

static const char *base_format(const struct image *im)
{
    return im->format[0] == 'v' ? im->format : "raw";
}

static void create_ours(const struct image *im, const char *path,
                        const char *options, const char *backing)
{
    struct img_create_options opts = IMG_CREATE_OPTIONS;
    const char *settings[] = { options, NULL };
    struct img_error err;

    opts.format = im->format;
    opts.disk_size = (uint64_t)atoi(im->size) << 20;
    opts.settings = options ? settings : NULL;
    opts.backing = backing;
    opts.flags = IMG_CREATE_NO_SYNC;
    if (img_create(path, &opts, &err) < 0) {
        fprintf(stderr, "%s: %s\n", path, err.message);
        exit(99);
    }
}

/* What QEMU does not write is filled by us. */
static void fill_ours(const struct image *im)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_disk *disk;
    struct img_error err;
    uint8_t buf[9 << 10];

    memset(buf, PATTERN, sizeof(buf));
    opts.format = im->format;
    opts.flags = IMG_OPEN_WRITE | IMG_OPEN_NO_SYNC;
    if (img_open(disk_name(im), &opts, &disk, &err) < 0 ||
        img_pwrite(disk, buf, sizeof(buf), 1 << 10, 0, &err) < 0 ||
        img_pwrite(disk, buf, 1 << 10, 150 << 10, 0, &err) < 0 ||
        img_close(disk, &err) < 0) {
        fprintf(stderr, "%s: %s\n", im->name, err.message);
        exit(99);
    }
}

static void put(uint8_t *p, uint64_t value)
{
    for (unsigned i = 0; i < 8; i++)
        p[i] = (uint8_t)(value >> 8 * i);
}

/* seSparse, of a disk of 1 MiB: header, volatile header, directory, one
 * table, two grains.  Nobody but ESXi writes it; the layout is that of QEMU's
 * documentation of its reader. */
static void make_sesparse(void)
{
    static const struct { unsigned at; uint64_t value; } words[] = {
        { 0, 0xcafebabe }, { 8, 0x200000001 }, { 16, 2048 }, { 24, 8 },
        { 32, 64 }, { 80, 1 }, { 128, 2 }, { 136, 1 }, { 144, 4 },
        { 192, 72 }, { 512, 0xcafecafe }, { 1024, 0x1000000000000000 },
        { 2048, 0x3000000000000000 }, { 2056, 0x3001000000000000 },
        { 2064, 0x2000000000000000 },
    };
    static const char text[] = "# Disk DescriptorFile\nversion=1\nCID=1\n"
        "parentCID=ffffffff\ncreateType=\"seSparse\"\n"
        "RW 2048 SESPARSE \"se\"\n";
    uint8_t *b = must_alloc(72 * 512 + 8192);
    FILE *f = fopen("se", "wb");

    memset(b, 0, 72 * 512);
    memset(b + 72 * 512, PATTERN, 8192);
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        put(b + words[i].at, words[i].value);
    if (!f || fwrite(b, 72 * 512 + 8192, 1, f) != 1 || fclose(f))
        exit(99);
    f = fopen("disk", "wb");
    if (!f || fputs(text, f) < 0 || fclose(f))
        exit(99);
    free(b);
}

void make_image(const struct image *im)
{
    const char *argv[MAX_ARGS], *base = is_vdi(im) ? "base.vdi" : "base";
    int n = 0;

    if (!strcmp(im->name, "vmdk-stream")) {
        make_stream(im);
        return;
    }
    if (!strcmp(im->name, "vmdk-sesparse")) {
        make_sesparse();
        return;
    }
    if (im->ours) {
        if (im->backing)
            create_ours(im, base, NULL, NULL);
        create_ours(im, disk_name(im), im->options,
                    im->backing ? base : NULL);
        fill_ours(im);
        return;
    }
    if (im->backing)
        must_run((const char *[]) { "qemu-img", "create", "-q", "-f",
                 base_format(im), base, im->size, NULL });
    add(argv, &n, "qemu-img", "create");
    add(argv, &n, "-q", NULL);
    add(argv, &n, "-f", im->format);
    if (im->options)
        add(argv, &n, "-o", im->options);
    if (im->backing) {
        add(argv, &n, "-b", base);
        add(argv, &n, "-F", base_format(im));
    }
    add(argv, &n, disk_name(im), im->size);
    must_run(argv);

    n = 0;
    add(argv, &n, "qemu-io", "-f");
    add(argv, &n, im->format, "-c");
    add(argv, &n, "write -P 0x5a 1k 9k", "-c");
    add(argv, &n, "write -P 0x5a 150k 1k", NULL);
    if (!strncmp(im->name, "qcow2", 5) && strcmp(im->name, "qcow2-v2")) {
        add(argv, &n, "-c", "write -z 40k 16k");
        add(argv, &n, "-c", "write -z -u 128k 16k");
    }
    if (im->packed) {
        add(argv, &n, "-c", "write -c -P 0x5a 64k 64k");
        add(argv, &n, "-c", "write -P 0x5a 66k 1k");
    }
    add(argv, &n, disk_name(im), NULL);
    must_run(argv);
    if (im->snapshot) {
        must_run((const char *[]) { "qemu-img", "snapshot", "-c", "one",
                 "disk", NULL });
        must_run((const char *[]) { "qemu-io", "-f", im->format, "-c",
                 "write -P 0x5a 3k 2k", "disk", NULL });
    }
    if (im->bitmap)
        must_run((const char *[]) { "qemu-img", "bitmap", "--add", "-g", "4k",
                 "-f", im->format, "disk", "bits", NULL });
}
