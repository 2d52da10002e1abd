/* Whole-image operations of libimg from the command line, for the scripts
 * beside this file.  Images are written FORMAT:PATH. */
#include <libimg.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct img_error err;
static struct img_job job = IMG_JOB;
static unsigned long long stop_after = ~0ull;
static const char *shorten;     /* this file, by a byte, when all is read */

static int progress(void *opaque, uint64_t done, uint64_t total)
{
    if (opaque && !img_size(opaque))
        exit(9);
    if (done > total) {
        fprintf(stderr, "progress beyond the total\n");
        exit(9);
    }
    if (shorten && done == total) {
        struct stat st;

        if (stat(shorten, &st) < 0 || truncate(shorten, st.st_size - 1) < 0)
            exit(9);
        shorten = NULL;
    }
    return done >= stop_after;
}

static void die(int r)
{
    fprintf(stderr, "imgop: %s (%d)\n", err.message, r);
    exit(r == -ECANCELED ? 3 : 1);
}

static void warn(void *opaque, const char *message)
{
    (void)opaque;
    fprintf(stderr, "warning: %s\n", message);
}

static struct img_disk *open_disk(const char *name, unsigned flags)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    const char *colon = strchr(name, ':');
    struct img_disk *disk = NULL;
    char format[32];
    int r;

    snprintf(format, sizeof format, "%.*s", (int)(colon - name), name);
    o.format = format;
    o.flags = flags | IMG_OPEN_PROBE_BACKING;
    r = img_open(colon + 1, &o, &disk, &err);
    if (r < 0)
        die(r);
    return disk;
}

static void close_disk(struct img_disk *disk)
{
    int r = img_close(disk, &err);

    if (r < 0)
        die(r);
}

static void print_measure(struct img_disk *disk,
                          const struct img_create_options *create)
{
    struct img_measure m;
    int r = img_measure(disk, create, &m, &err);

    if (r < 0)
        die(r);
    printf("required size: %llu\n", (unsigned long long)m.required);
    printf("fully allocated size: %llu\n",
           (unsigned long long)m.fully_allocated);
    if (m.has_bitmaps)
        printf("bitmaps size: %llu\n", (unsigned long long)m.bitmaps);
}

/* convert FROM... TO; a TO of "-" is standard output; with -n TO is opened */
static int convert(char **names, int n, struct img_convert_options *o,
                   const char *verb)
{
    struct img_disk *from[16], *to;
    const char *target = names[n - 1];
    char format[32];
    struct img_create_options create = *o->create;
    int r;

    for (int i = 0; i < n - 1; i++)
        from[i] = open_disk(names[i], 0);
    if (!strcmp(verb, "copy")) {
        to = open_disk(target, IMG_OPEN_WRITE);
        r = img_copy(from, (size_t)n - 1, to, o, &job, &err);
        if (r < 0)
            die(r);
        close_disk(to);
    } else {
        const char *colon = strchr(target, ':');

        snprintf(format, sizeof format, "%.*s", (int)(colon - target),
                 target);
        create.format = format;
        o->create = &create;
        if (!strcmp(colon + 1, "-"))
            r = img_convert_fd(from, (size_t)n - 1, 1, o, &job, &err);
        else
            r = img_convert(from, (size_t)n - 1, colon + 1, o, &job, &err);
        if (r < 0)
            die(r);
    }
    for (int i = 0; i < n - 1; i++)
        close_disk(from[i]);
    return 0;
}

int main(int argc, char **argv)
{
    struct img_create_options create = IMG_CREATE_OPTIONS;
    struct img_convert_options o = IMG_CONVERT_OPTIONS;
    struct img_rebase_options rb = IMG_REBASE_OPTIONS;
    const char *settings[16] = { NULL }, *verb = argv[1];
    bool keep = false, strict = false, shrink = false;
    unsigned long long differ = 0;
    struct img_disk *disk;
    uint64_t at = 0;
    int c, n = 0, r = 0;

    if (argc < 3)
        return 2;
    o.create = &create;
    o.warn = warn;
    job.progress = progress;
    create.settings = settings;
    optind = 2;
    while ((c = getopt(argc, argv, "cj:r:S:B:F:o:x:t:ukszbLd")) != -1)
        switch (c) {
        case 'c': o.compress = rb.compress = true; break;
        case 'j': job.threads = (unsigned)atoi(optarg); break;
        case 'r': job.bytes_per_second = strtoull(optarg, NULL, 0); break;
        case 'S': o.sparse_bytes = (uint32_t)atoi(optarg);
                  o.no_sparse = !o.sparse_bytes; break;
        case 'B': create.backing = rb.backing = optarg; break;
        case 'F': create.backing_format = rb.backing_format = optarg; break;
        case 'o': settings[n++] = optarg; break;
        case 'x': stop_after = strtoull(optarg, NULL, 0); break;
        case 't': shorten = optarg; break;
        case 'u': rb.unsafe = true; break;
        case 'k': keep = true; break;
        case 's': strict = shrink = true; break;
        case 'z': o.target_is_zero = true; break;
        case 'b': o.bitmaps = true; break;
        case 'd': o.direct = true; break;
        case 'L': o.salvage = true; break;
        default: return 2;
        }
    argv += optind;
    argc -= optind;
    if (!strcmp(verb, "convert") || !strcmp(verb, "copy"))
        return convert(argv, argc, &o, verb);
    if (!strcmp(verb, "compare")) {
        struct img_disk *a = open_disk(argv[0], 0);
        struct img_disk *b = open_disk(argv[1], 0);

        r = img_compare(a, b, strict, &job, &at, &err);
        if (r < 0)
            die(r);
        differ = at;
        if (r)
            printf("%d %llu\n", r, differ);
        close_disk(a);
        close_disk(b);
        return r ? 1 : 0;
    }
    if (!strcmp(verb, "measure")) {
        create.format = argv[1];
        disk = open_disk(argv[0], 0);
        print_measure(disk, &create);
        close_disk(disk);
        return 0;
    }
    disk = open_disk(argv[0], IMG_OPEN_WRITE |
                     (rb.unsafe ? IMG_OPEN_NO_BACKING : 0));
    job.opaque = disk;
    if (!strcmp(verb, "commit"))
        r = img_commit(disk, (unsigned)atoi(argv[1]), keep, &job, &err);
    else if (!strcmp(verb, "rebase"))
        r = img_rebase(disk, &rb, &job, &err);
    else if (!strcmp(verb, "resize"))
        r = img_resize(disk, strtoull(argv[1], NULL, 0), shrink,
                       IMG_PREALLOC_OFF, &job, &err);
    else if (!strcmp(verb, "amend"))
        r = img_amend(disk, settings, &job, &err);
    else if (!strcmp(verb, "write")) {
        /* write IMAGE OFFSET LENGTH BYTE */
        size_t len = strtoull(argv[2], NULL, 0);
        char *buf = malloc(len);

        memset(buf, atoi(argv[3]), len);
        r = img_pwrite(disk, buf, len, strtoull(argv[1], NULL, 0), 0, &err);
        free(buf);
    } else {
        return 2;
    }
    if (r < 0) {
        img_close(disk, NULL);
        die(r);
    }
    close_disk(disk);
    return 0;
}
