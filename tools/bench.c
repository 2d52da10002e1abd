/* vimg bench: many equal requests, as fast as they go. */
#include "open.h"
#include "size.h"
#include "vimg.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct {
    struct open_how how;
    const char *count, *depth, *flush, *offset, *pattern, *size, *step, *aio;
    bool native, no_drain, quiet, write;
} args;

static const struct option_def options[] = {
    { OPTION_TEXT, 'c', "count", "COUNT", "requests, 75000 when not given",
      &args.count },
    { OPTION_TEXT, 'd', "depth", "DEPTH",
      "requests at a time, 64 when not given", &args.depth },
    OPEN_FORMAT_ROW(&args.how),
    { OPTION_FLAG, 'w', "write", NULL, "write instead of read", &args.write },
    { OPTION_TEXT, 's', "buffer-size", "SIZE",
      "bytes per request, 4k when not given", &args.size },
    { OPTION_TEXT, 'S', "step-size", "SIZE",
      "from one request to the next; the buffer size when not given",
      &args.step },
    { OPTION_TEXT, 'o', "offset", "OFFSET", "where to begin", &args.offset },
    { OPTION_TEXT, 0, "pattern", "BYTE", "what to write, 0 when not given",
      &args.pattern },
    { OPTION_TEXT, 0, "flush-interval", "COUNT",
      "with -w: flush after so many requests", &args.flush },
    { OPTION_FLAG, 0, "no-drain", NULL,
      "do not wait for the requests in flight before a flush",
      &args.no_drain },
    { OPTION_TEXT, 'i', "aio", "AIO",
      "threads, native or io_uring; accepted for qemu-img's sake",
      &args.aio },
    { OPTION_FLAG, 'n', "native", NULL,
      "the same as --aio=native", &args.native },
    OPEN_CACHE_ROW('t', "cache", &args.how),
    { OPTION_FLAG, 'q', "quiet", NULL, "print nothing but errors",
      &args.quiet },
    OPEN_SHARE_ROW(&args.how),
    OPEN_IMAGE_OPTS_ROW(&args.how),
    OPEN_CONFINE_ROWS,
    OPTIONS_HELP_ROW,
    { 0 }
};

struct bench {
    uint64_t count, depth, interval, offset, size, step, pattern;
    struct img_disk *disk;
    struct img_queue *queue;
    char *buffers;              /* depth of them */
    struct iovec *iovs;         /* one per buffer; user points here */
    struct iovec **idle;
    uint64_t n_idle, in_flight, left;
    bool flush_due;
};

static bool parse_numbers(struct bench *b)
{
    struct { const char *text; const char *what; uint64_t *to, min, max;
             bool size; } rows[] = {
        { args.count, "request count", &b->count, 0, INT32_MAX, false },
        { args.depth, "queue depth", &b->depth, 1, 65536, false },
        { args.flush, "flush interval", &b->interval, 0, INT32_MAX, false },
        { args.pattern, "pattern byte", &b->pattern, 0, 255, false },
        { args.size, "buffer size", &b->size, 1, INT32_MAX, true },
        { args.step, "step size", &b->step, 0, INT32_MAX, true },
        { args.offset, "offset", &b->offset, 0, INT64_MAX, true },
    };

    b->count = 75000;
    b->depth = 64;
    b->size = 4096;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (!rows[i].text)
            continue;
        if (!rows[i].size) {
            if (!number_argument(rows[i].text, rows[i].what, rows[i].min,
                                 rows[i].max, rows[i].to))
                return false;
            continue;
        }
        if (!size_argument(rows[i].text, rows[i].what, rows[i].to))
            return false;
        if (*rows[i].to < rows[i].min || *rows[i].to > rows[i].max) {
            complain("Invalid %s specified. Must be between %" PRIu64 " and %"
                     PRIu64 ".", rows[i].what, rows[i].min, rows[i].max);
            return false;
        }
    }
    if (b->step == 0)
        b->step = b->size;
    return true;
}

static bool check_combination(const struct bench *b)
{
    static const char *const modes[] = { "threads", "native", "io_uring" };
    const char *wrong = NULL;
    bool known = !args.aio;

    for (int i = 0; i < 3; i++)
        known |= args.aio && !strcmp(args.aio, modes[i]);
    if (!known) {
        complain("Invalid aio option: %s", args.aio);
        return false;
    }
    if (!args.write && b->interval)
        wrong = "--flush-interval is only available in write tests";
    else if (b->interval && b->interval < b->depth)
        wrong = "Flush interval can't be smaller than depth";
    else if (b->size * b->depth > (UINT64_C(1) << 32))
        wrong = "The buffers would need more than 4 GiB; use a smaller depth "
                "or buffer size";
    if (wrong)
        complain("%s", wrong);
    return !wrong;
}

/* 1 = sent, 0 = nothing to send now. */
static int send_one(struct bench *b)
{
    struct img_request req = { .op = args.write ? IMG_WRITE : IMG_READ };
    uint64_t end = img_size(b->disk);

    if (b->flush_due) {
        if (!args.no_drain && b->in_flight)
            return 0;
        req.op = IMG_FLUSH;
        if (img_queue_submit(b->queue, &req, 1) != 1)
            return 0;
        b->flush_due = false;
        b->in_flight++;
        return 1;
    }
    if (b->left == 0 || b->n_idle == 0)
        return 0;
    if (b->offset + b->size > end && b->offset > 0 && b->offset <= end)
        b->offset = 0;
    req.off = b->offset;
    req.iov = b->idle[b->n_idle - 1];
    req.iovcnt = 1;
    req.user = b->idle[b->n_idle - 1];
    if (img_queue_submit(b->queue, &req, 1) != 1)
        return 0;
    b->n_idle--;
    b->left--;
    b->in_flight++;
    b->offset += b->step;
    b->flush_due = b->interval && b->left % b->interval == 0;
    return 1;
}

static bool reap(struct bench *b)
{
    struct img_completion done[32];
    int n = img_queue_reap(b->queue, done, 1, 32, -1);

    for (int i = 0; i < n; i++) {
        b->in_flight--;
        if (done[i].user)
            b->idle[b->n_idle++] = done[i].user;
        if (done[i].result < 0) {
            complain("Failed request: %s", done[i].message);
            return false;
        }
    }
    return n >= 0;
}

static bool run_all(struct bench *b)
{
    b->left = b->count;
    while (b->left || b->in_flight || b->flush_due) {
        while (send_one(b))
            ;
        if (b->in_flight && !reap(b))
            return false;
    }
    return true;
}

static void prepare(struct bench *b)
{
    void *memory = NULL;

    if (posix_memalign(&memory, 4096, b->size * b->depth))
        memory = NULL;
    b->buffers = need_memory(memory);
    memset(b->buffers, (int)b->pattern, b->size * b->depth);
    b->iovs = need_memory(calloc(b->depth, sizeof b->iovs[0]));
    b->idle = need_memory(calloc(b->depth, sizeof b->idle[0]));
    for (uint64_t i = 0; i < b->depth; i++) {
        b->iovs[i] = (struct iovec){ b->buffers + i * b->size, b->size };
        b->idle[b->n_idle++] = &b->iovs[i];
    }
}

static int bench(struct bench *b)
{
    struct timespec start, end;
    struct img_error err;
    bool ok;

    if (!args.quiet) {
        printf("Sending %" PRIu64 " %s requests, %" PRIu64 " bytes each, %"
               PRIu64 " in parallel (starting at offset %" PRIu64
               ", step size %" PRIu64 ")\n", b->count,
               args.write ? "write" : "read", b->size, b->depth, b->offset,
               b->step);
        if (b->interval)
            printf("Sending flush every %" PRIu64 " requests\n",
                   b->interval);
    }
    if (img_queue_open(b->disk, (unsigned)b->depth + 1, &b->queue, &err) < 0) {
        complain("%s", err.message);
        return 1;
    }
    prepare(b);
    clock_gettime(CLOCK_MONOTONIC, &start);
    ok = run_all(b);
    clock_gettime(CLOCK_MONOTONIC, &end);
    img_queue_close(b->queue);
    if (ok && !args.quiet)
        printf("Run completed in %3.3f seconds.\n",
               (double)(end.tv_sec - start.tv_sec) +
               (double)(end.tv_nsec - start.tv_nsec) / 1e9);
    free(b->buffers);
    free(b->iovs);
    free(b->idle);
    return ok ? 0 : 1;
}

static int run(int argc, char **argv)
{
    struct bench b = { 0 };
    int code;

    if (!parse_numbers(&b))
        return 1;
    if (argc != 1)
        return usage_error("Expecting one image file name");
    if (!open_check(&args.how) || !check_combination(&b))
        return 1;
    open_expect(argv[0], &args.how, args.write ? IMG_OPEN_WRITE : 0, 0);
    open_enter();
    b.disk = open_image(argv[0], &args.how, args.write ? IMG_OPEN_WRITE : 0);
    if (!b.disk)
        return 1;
    code = bench(&b);
    return close_image(b.disk) ? code : 1;
}

const struct command command_bench = {
    "bench", "FILE", "Send many equal requests and take the time", options,
    run, false
};
