/* One run: the image as it was, the actors together, and every byte seen
 * explained.
 *
 * The history has an event for each operation, with the times it began and
 * ended (one counter: the runs are sequential).  An observation of a quarter
 * may show the value of any event that began before the observation ended,
 * unless another one lies wholly between the two.
 */
#include "race.h"
#include "sched.h"
#include "../support.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { EVENTS = 32, GROWN = 160, SHRUNK = 96, BASE_BYTE = 0xbb,
       FIRST_BYTE = 0x10 };

struct event {
    enum what what;
    unsigned off, len;          /* quarters */
    uint8_t value;
    uint64_t began, ended;
};

struct bench {
    const struct shape *shape;
    const struct work *work;
    unsigned quarter;           /* bytes */
    char dir[100], path[140], base[140];
    uint8_t *start;             /* the image file before the actors */
    size_t start_len;
    struct img_disk *disk;
    struct event events[EVENTS];
    unsigned n, n_before;
    struct flushed { uint64_t began, ended; } flushed[4];
    unsigned n_flushed;
    uint64_t time;
    uint8_t applied[GROWN];     /* what the snapshot of `before` shows */
    bool ok;
};

struct actor { struct bench *b; const struct step *steps; };

static bool wrong(struct bench *b, const char *what, const char *why)
{
    if (b->ok)
        fprintf(stderr, "race: %s, %s: %s: %s\n", b->shape->name,
                b->work->name, what, why);
    b->ok = false;
    return false;
}

/* ---- what may be seen -------------------------------------------------- */

static bool covers(const struct event *e, unsigned q)
{
    return q >= e->off && q < e->off + e->len;
}

/* Does it leave no trace of what was there?  A discard may. */
static bool replaces(const struct event *e)
{
    return e->what != DISCARD;
}

static bool is_superseded(const struct bench *b, const struct event *e,
                          unsigned q, uint64_t began)
{
    for (unsigned i = 0; i < b->n; i++) {
        const struct event *y = &b->events[i];

        if (covers(y, q) && replaces(y) && y->began > e->ended &&
            y->ended < began)
            return true;
    }
    return false;
}

static uint8_t value_of(const struct bench *b, const struct event *e,
                        unsigned q)
{
    return e->what == APPLY ? b->applied[q] : e->value;
}

static bool may_show(const struct bench *b, unsigned q, uint8_t value,
                     uint64_t began, uint64_t ended)
{
    for (unsigned i = 0; i < b->n; i++) {
        const struct event *e = &b->events[i];

        if (covers(e, q) && e->began < ended &&
            value_of(b, e, q) == value && !is_superseded(b, e, q, began))
            return true;
    }
    return false;
}

/* Was every byte of buf, quarters [off, off + len), to be expected at some
 * time between the two? */
static bool explain(struct bench *b, const char *what, const uint8_t *buf,
                    unsigned off, unsigned len, uint64_t began,
                    uint64_t ended)
{
    char why[80];

    for (unsigned q = off; q < off + len; q++) {
        const uint8_t *p = buf + (size_t)(q - off) * b->quarter;

        for (unsigned i = 0; i < b->quarter; i++) {
            if (i && p[i] == p[i - 1])
                continue;
            if (may_show(b, q, p[i], began, ended))
                continue;
            snprintf(why, sizeof why, "byte %u of quarter %u is 0x%02x",
                     i, q, p[i]);
            return wrong(b, what, why);
        }
    }
    return true;
}

/* ---- operations -------------------------------------------------------- */

static struct event *add_event(struct bench *b, enum what what, unsigned off,
                               unsigned len, uint8_t value)
{
    struct event *e = &b->events[b->n++];

    *e = (struct event){ what, off, len, value, ++b->time, UINT64_MAX };
    return e;
}

static unsigned quarters(const struct bench *b, const struct img_disk *disk)
{
    return (unsigned)(img_size(disk) / b->quarter);
}

static bool observe(struct bench *b, const char *what, struct img_disk *disk,
                    unsigned off, unsigned len, uint64_t began,
                    uint64_t ended)
{
    size_t bytes = (size_t)len * b->quarter;
    uint8_t *buf = must_alloc(bytes);
    struct img_error err;
    bool ok;

    if (!ended) {
        began = ++b->time;
        memset(buf, 0xee, bytes);
    }
    ok = img_pread(disk, buf, bytes, (uint64_t)off * b->quarter, &err) == 0;
    if (!ended)
        ended = ++b->time;
    ok = ok ? explain(b, what, buf, off, len, began, ended)
            : wrong(b, what, err.message);
    free(buf);
    return ok;
}

static bool check_image(struct bench *b, const char *what,
                        struct img_disk *disk, bool leaks)
{
    struct img_check_options opts = { .size = sizeof opts };
    struct img_check_result result;
    struct img_error err;
    char why[80];

    if (img_check(disk, &opts, NULL, &result, &err) < 0)
        return err.code == ENOTSUP || wrong(b, what, err.message);
    if (!result.errors && !result.check_errors && (leaks || !result.leaks))
        return true;
    snprintf(why, sizeof why, "check: %llu errors, %llu leaks",
             (unsigned long long)result.errors,
             (unsigned long long)result.leaks);
    return wrong(b, what, why);
}

static bool open_image(struct bench *b, const char *path, unsigned flags,
                       const char *snapshot, struct img_disk **disk)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_error err;

    opts.format = b->shape->format;
    opts.flags = flags | IMG_OPEN_PROBE_BACKING;
    opts.snapshot = snapshot;
    if (b->shape->tiny_cache)
        opts.cache_bytes = 1;
    return img_open(path, &opts, disk, &err) == 0 ||
           wrong(b, path, err.message);
}

static bool close_image(struct bench *b, struct img_disk *disk)
{
    struct img_error err;

    return img_close(disk, &err) == 0 || wrong(b, "close", err.message);
}

static void copy_file(struct bench *b, const char *from, const char *to)
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

static void copy_name(const struct bench *b, unsigned i, char *name,
                      size_t len)
{
    snprintf(name, len, "%s/flushed.%u", b->dir, i);
}

/* Keeps a copy of the file as it is now, to be looked at when all is over:
 * what was flushed has to be in it. */
static bool flush(struct bench *b)
{
    struct flushed f = { .began = ++b->time };
    struct img_error err;
    char name[140];

    if (img_flush(b->disk, &err) < 0)
        return wrong(b, "flush", err.message);
    f.ended = ++b->time;
    copy_name(b, b->n_flushed, name, sizeof name);
    b->flushed[b->n_flushed++] = f;
    copy_file(b, b->path, name);
    return b->ok;
}

static bool check_flushed(struct bench *b, unsigned i)
{
    const struct flushed *f = &b->flushed[i];
    struct img_disk *disk;
    char name[140];
    bool ok;

    copy_name(b, i, name, sizeof name);
    if (!open_image(b, name, 0, NULL, &disk))
        return false;
    ok = observe(b, "after a flush", disk, 0, quarters(b, disk), f->began,
                 f->ended) && check_image(b, "after a flush", disk, true);
    return close_image(b, disk) && ok;
}

static int change(struct bench *b, const struct step *step, uint8_t value,
                  struct img_error *err)
{
    uint64_t off = (uint64_t)step->off * b->quarter;
    uint64_t len = (uint64_t)step->len * b->quarter;
    uint8_t *buf;
    int r;

    switch (step->what) {
    case ZERO: return img_zero(b->disk, off, len, IMG_MAY_UNMAP, err);
    case DISCARD: return img_discard(b->disk, off, len, err);
    case SNAPSHOT: return img_snapshot_create(b->disk, "s", err);
    case APPLY: return img_snapshot_apply(b->disk, "s", err);
    case FORGET: return img_snapshot_delete(b->disk, "s", err);
    case GROW: return img_resize(b->disk, (uint64_t)GROWN * b->quarter,
                                 false, IMG_PREALLOC_OFF, NULL, err);
    case COMMIT: return img_commit(b->disk, 1, false, NULL, err);
    case SHRINK: return img_resize(b->disk, (uint64_t)SHRUNK * b->quarter,
                                   true, IMG_PREALLOC_OFF, NULL, err);
    default: break;
    }
    buf = must_alloc(len);
    memset(buf, value, len);
    r = img_pwrite(b->disk, buf, len, off,
                   step->what == PACK ? IMG_COMPRESS : 0, err);
    free(buf);
    return r;
}

/* The quarters whose content an operation decides; 0, 0 = none. */
static struct event *note(struct bench *b, const struct step *step)
{
    uint8_t value = (uint8_t)(FIRST_BYTE + b->n);

    switch (step->what) {
    case WRITE: case PACK:
        return add_event(b, step->what, step->off, step->len, value);
    case ZERO: case DISCARD:
        return add_event(b, step->what, step->off, step->len, 0);
    case APPLY:
        return add_event(b, APPLY, 0, QUARTERS, 0);
    case SNAPSHOT: case FORGET: case GROW: case SHRINK: case COMMIT:
        return add_event(b, step->what, 0, 0, 0);
    default:
        return NULL;
    }
}

static bool do_step(struct bench *b, const struct step *step)
{
    struct img_error err;
    struct event *e;

    if (step->what == READ)
        return observe(b, "read", b->disk, step->off, step->len, 0, 0);
    if (step->what == FLUSH)
        return flush(b);
    e = note(b, step);
    if (change(b, step, e->value, &err) < 0)
        return wrong(b, "an operation failed", err.message);
    e->ended = ++b->time;
    return true;
}

static void *act(void *arg)
{
    const struct actor *actor = arg;

    for (unsigned i = 0; i < STEPS && actor->steps[i].what; i++)
        if (!do_step(actor->b, &actor->steps[i]))
            break;
    return NULL;
}

/* ---- before the actors ------------------------------------------------- */

static void must(int r, const struct img_error *err)
{
    if (r == 0)
        return;
    fprintf(stderr, "race: %s\n", err->message);
    exit(99);
}

static void make_base(struct bench *b, uint64_t bytes)
{
    uint8_t *buf = must_alloc(bytes);
    FILE *f = fopen(b->base, "wb");

    memset(buf, BASE_BYTE, bytes);
    if (!f || fwrite(buf, 1, bytes, f) != bytes || fclose(f)) {
        perror(b->base);
        exit(99);
    }
    free(buf);
}

static void make_image(struct bench *b)
{
    struct img_create_options c = IMG_CREATE_OPTIONS;
    struct img_error err;

    c.format = b->shape->format;
    c.settings = b->shape->settings;
    c.disk_size = (uint64_t)QUARTERS * b->quarter;
    c.has_size = true;
    c.flags = IMG_CREATE_NO_SYNC;
    if (b->shape->backing) {
        make_base(b, c.disk_size);
        c.backing = b->base;
        c.backing_format = "raw";
    }
    must(img_create(b->path, &c, &err), &err);
}

/* The values of a snapshot, one for each quarter. */
static void note_snapshot(struct bench *b)
{
    size_t bytes = (size_t)QUARTERS * b->quarter;
    uint8_t *buf = must_alloc(bytes);
    struct img_error err;

    must(img_pread(b->disk, buf, bytes, 0, &err), &err);
    for (unsigned q = 0; q < QUARTERS; q++)
        b->applied[q] = buf[(size_t)q * b->quarter];
    free(buf);
}

static void keep_file(struct bench *b)
{
    FILE *f = fopen(b->path, "rb");
    struct stat st;

    if (!f || stat(b->path, &st) < 0) {
        perror(b->path);
        exit(99);
    }
    b->start_len = (size_t)st.st_size;
    b->start = must_alloc(b->start_len);
    if (fread(b->start, 1, b->start_len, f) != b->start_len)
        exit(99);
    fclose(f);
}

struct bench *bench_new(const struct shape *shape, const struct work *work)
{
    struct bench *b = must_alloc(sizeof *b);
    const struct step *step = work->before;

    memset(b, 0, sizeof *b);
    b->shape = shape;
    b->work = work;
    b->ok = true;
    b->quarter = shape->cluster / 4;
    make_scratch(b->dir, sizeof b->dir);
    snprintf(b->path, sizeof b->path, "%s/image", b->dir);
    snprintf(b->base, sizeof b->base, "%s/base", b->dir);
    make_image(b);
    add_event(b, NOTHING, 0, QUARTERS, shape->backing ? BASE_BYTE : 0)
        ->ended = ++b->time;
    add_event(b, NOTHING, QUARTERS, GROWN - QUARTERS, 0)->ended = ++b->time;
    if (!open_image(b, b->path, IMG_OPEN_WRITE, NULL, &b->disk))
        exit(99);
    for (; step < work->before + 6 && step->what; step++) {
        if (!do_step(b, step))
            exit(99);
        if (step->what == SNAPSHOT)
            note_snapshot(b);
    }
    if (!close_image(b, b->disk))
        exit(99);
    b->n_before = b->n;
    keep_file(b);
    return b;
}

void bench_free(struct bench *b)
{
    remove_scratch(b->dir);
    free(b->start);
    free(b);
}

/* ---- a run ------------------------------------------------------------- */

static bool restore(struct bench *b)
{
    int fd = open(b->path, O_WRONLY | O_TRUNC);
    bool ok = fd >= 0 && write(fd, b->start, b->start_len) ==
              (ssize_t)b->start_len;

    if (fd >= 0)
        close(fd);
    b->n = b->n_before;
    b->n_flushed = 0;
    if (b->work->commits)
        make_base(b, (uint64_t)QUARTERS * b->quarter);
    return ok || wrong(b, b->path, "cannot be written");
}

static void run_actors(struct bench *b)
{
    struct actor actors[ACTORS];
    void *args[ACTORS];
    unsigned n = 0;

    for (; n < ACTORS && b->work->actors[n][0].what; n++) {
        actors[n] = (struct actor){ b, b->work->actors[n] };
        args[n] = &actors[n];
    }
    sched_together(act, args, n);
}

/* The snapshot that an actor made shows the disk at some time in between. */
static bool check_snapshot(struct bench *b)
{
    struct img_disk *disk;
    bool ok = true;

    for (unsigned i = b->n_before; i < b->n && ok; i++) {
        const struct event *e = &b->events[i];

        if (e->what != SNAPSHOT)
            continue;
        if (!open_image(b, b->path, 0, "s", &disk))
            return false;
        ok = observe(b, "the snapshot", disk, 0, quarters(b, disk), e->began,
                     e->ended);
        ok = close_image(b, disk) && ok;
    }
    return ok;
}

static bool check_result(struct bench *b, const char *what, bool structure)
{
    bool ok = observe(b, what, b->disk, 0, quarters(b, b->disk), 0, 0);

    return ok && (!structure || check_image(b, what, b->disk, false));
}

bool bench_run(void *bench)
{
    struct bench *b = bench;

    b->ok = true;
    if (!restore(b) ||
        !open_image(b, b->path, IMG_OPEN_WRITE, NULL, &b->disk))
        return false;
    run_actors(b);
    if (b->ok)
        check_result(b, "the disk", false);
    close_image(b, b->disk);
    if (!b->ok || !open_image(b, b->path, 0, NULL, &b->disk))
        return false;
    check_result(b, "the disk, opened again", true);
    close_image(b, b->disk);
    for (unsigned i = 0; i < b->n_flushed && b->ok; i++)
        check_flushed(b, i);
    return b->ok && check_snapshot(b);
}
