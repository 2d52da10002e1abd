/* One run: the image as it was, the actors together, and every byte seen
 * explained (seen.c).
 *
 * With a fault, whoever is hit says so and everything else is as without:
 * what failed may be there or not, what nobody changed is as it was, and the
 * image is free of errors.
 */
#include "bench.h"
#include "fault.h"
#include "sched.h"
#include "../support.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct actor { struct bench *b; const struct step *steps; };

/* ---- operations -------------------------------------------------------- */

static bool open_image(struct bench *b, const char *path, unsigned flags,
                       const char *snapshot, struct img_disk **disk)
{
    struct img_error err;

    return bench_open(b, path, b->shape->format, flags, snapshot, disk,
                      &err) || wrong(b, path, err.message);
}

static bool close_image(struct bench *b, struct img_disk *disk)
{
    struct img_error err;

    return img_close(disk, &err) == 0 || wrong(b, "close", err.message);
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
        return is_excused(b, "flush", &err);
    f.ended = ++b->time;
    if (f.began > b->durable)
        b->durable = f.began;
    copy_name(b, b->n_flushed, name, sizeof name);
    b->flushed[b->n_flushed++] = f;
    bench_copy_file(b, b->path, name);
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

    if (is_whole(step->what))
        return change_whole(b, step->what, err);
    switch (step->what) {
    case ZERO: return img_zero(b->disk, off, len, IMG_MAY_UNMAP, err);
    case DISCARD: return img_discard(b->disk, off, len, err);
    case SNAPSHOT: return img_snapshot_create(b->disk, "s", err);
    case APPLY: return img_snapshot_apply(b->disk, "s", err);
    case FORGET: return img_snapshot_delete(b->disk, "s", err);
    case GROW: return img_resize(b->disk, (uint64_t)GROWN * b->quarter,
                                 false, IMG_PREALLOC_OFF, NULL, err);
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
    case APPLY: case COPY: case COPY_PACKED:
        return add_event(b, step->what, 0, QUARTERS, 0);
    case SHRINK:
        return add_event(b, SHRINK, SHRUNK, QUARTERS - SHRUNK, 0);
    case SNAPSHOT: case FORGET: case GROW: case COMMIT: case REBASE:
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
    if (step->what == COMPARE)
        return compare_whole(b);
    e = note(b, step);
    e->failed = change(b, step, e->value, &err) < 0;
    e->ended = ++b->time;
    return !e->failed || is_excused(b, "an operation failed", &err);
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

static void make_names(struct bench *b)
{
    make_scratch(b->dir, sizeof b->dir);
    snprintf(b->path, sizeof b->path, "%s/image", b->dir);
    snprintf(b->base, sizeof b->base, "%s/base", b->dir);
    snprintf(b->other, sizeof b->other, "%s/other", b->dir);
    snprintf(b->twin, sizeof b->twin, "%s/twin", b->dir);
}

static void add_first_events(struct bench *b)
{
    if (b->shape->backing) {
        add_event(b, NOTHING, 0, HOLE, BASE_BYTE)->ended = ++b->time;
        add_event(b, NOTHING, HOLE, HOLE_END - HOLE, 0)->ended = ++b->time;
        add_event(b, NOTHING, HOLE_END, QUARTERS - HOLE_END, BASE_BYTE)
            ->ended = ++b->time;
    } else {
        add_event(b, NOTHING, 0, QUARTERS, 0)->ended = ++b->time;
    }
    add_event(b, NOTHING, QUARTERS, GROWN - QUARTERS, 0)->ended = ++b->time;
}

struct bench *bench_new(const struct shape *shape, const struct work *work)
{
    struct bench *b = must_alloc(sizeof *b);
    const struct step *step = work->before;

    memset(b, 0, sizeof *b);
    b->shape = shape;
    b->work = work;
    b->ok = true;
    b->quarter = shape->quarter ? shape->quarter : shape->cluster / 4;
    fault_begin();
    make_names(b);
    bench_make_files(b);
    add_first_events(b);
    if (!open_image(b, b->path, IMG_OPEN_WRITE, NULL, &b->disk))
        exit(99);
    for (; step < work->before + 6 && step->what; step++) {
        if (!do_step(b, step))
            exit(99);
        if (step->what == SNAPSHOT)
            bench_note_disk(b, b->applied);
    }
    bench_note_disk(b, b->shown);
    bench_make_twin(b);
    if (!close_image(b, b->disk))
        exit(99);
    b->n_before = b->n;
    bench_save(&b->image, b->path);
    if (shape->backing)
        bench_save(&b->below, b->base);
    return b;
}

void bench_free(struct bench *b)
{
    remove_scratch(b->dir);
    free(b->image.bytes);
    free(b->below.bytes);
    free(b);
}

/* ---- a run ------------------------------------------------------------- */

static bool begin(struct bench *b)
{
    b->ok = true;
    b->n = b->n_before;
    b->n_flushed = b->n_failed = 0;
    b->lost = false;
    b->durable = b->time;
    b->from = b->same = NULL;
    fault_begin();
    return bench_restore(b, &b->image, b->path) &&
           (!b->work->commits || bench_restore(b, &b->below, b->base)) &&
           open_image(b, b->path, IMG_OPEN_WRITE, NULL, &b->disk);
}

static bool open_others(struct bench *b)
{
    struct img_error err;

    if (!b->work->whole)
        return true;
    if (bench_open(b, b->other, "raw", 0, NULL, &b->from, &err) &&
        bench_open(b, b->twin, "raw", 0, NULL, &b->same, &err))
        return true;
    return wrong(b, "opening", err.message);
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

/* What failed halfway can be run again, unless the kernel has lost writes. */
static void run_again(struct bench *b)
{
    for (unsigned i = b->n_before, n = b->n; i < n && b->ok; i++) {
        const struct step step = { b->events[i].what, 0, 0 };
        struct img_error err;
        struct event *e;

        if (!b->events[i].failed || !is_whole(step.what))
            continue;
        e = note(b, &step);
        if (change(b, &step, 0, &err) < 0)
            wrong(b, "once more", err.message);
        e->ended = ++b->time;
    }
}

static void show_applied(struct bench *b, struct img_disk *disk)
{
    size_t bytes = (size_t)QUARTERS * b->quarter;
    uint8_t *buf = must_alloc(bytes);
    struct img_error err;

    if (img_pread(disk, buf, bytes, 0, &err) < 0)
        wrong(b, "the snapshot that stayed", err.message);
    for (size_t i = 0; i < bytes && b->ok; i++)
        if (buf[i] != b->applied[i / b->quarter])
            wrong(b, "the snapshot that stayed", "shows something else");
    free(buf);
}

/* A snapshot shows the disk at some time between the two, or what it showed
 * before; one that failed to be made, or to go, need not be there. */
static bool check_snapshot(struct bench *b)
{
    for (unsigned i = b->n_before; i < b->n && b->ok; i++) {
        const struct event *e = &b->events[i];
        struct img_disk *disk;
        struct img_error err;

        if (e->what != SNAPSHOT && !(e->what == FORGET && e->failed))
            continue;
        if (!bench_open(b, b->path, b->shape->format, 0, "s", &disk, &err)) {
            if (e->failed && err.code == ENOENT)
                continue;
            return wrong(b, "the snapshot", err.message);
        }
        if (e->what == SNAPSHOT)
            observe(b, "the snapshot", disk, 0, quarters(b, disk), e->began,
                    e->ended);
        else
            show_applied(b, disk);
        close_image(b, disk);
    }
    return b->ok;
}

/* Commit puts below what the overlay shows, and nothing else. */
static void check_base(struct bench *b)
{
    struct img_disk *disk;
    struct img_error err;

    if (!b->work->commits)
        return;
    if (!bench_open(b, b->base, b->shape->image_below ? b->shape->format
                    : "raw", 0, NULL, &disk, &err)) {
        wrong(b, "the base", err.message);
        return;
    }
    observe(b, "the base", disk, 0, quarters(b, disk), 0, b->time + 1);
    if (b->ok)
        check_image(b, "the base", disk, fault_came());
    close_image(b, disk);
}

/* Closes; a failure is for those who were told of none before, and leaves
 * what was flushed. */
static void finish(struct bench *b)
{
    struct img_error err;

    img_close(b->from, NULL);
    img_close(b->same, NULL);
    b->lost = img_close(b->disk, &err) < 0;
    if (b->lost)
        is_excused(b, "close", &err);
    if (b->ok && fault_was_sync() && !b->n_failed)
        wrong(b, "a sync failed", "and nobody was told");
}

/* After a fault the image may be marked dirty; whoever opens it to write
 * mends it. */
static bool check_file(struct bench *b)
{
    unsigned flags = fault_came() ? IMG_OPEN_WRITE : 0;

    if (!open_image(b, b->path, flags, NULL, &b->disk))
        return false;
    observe(b, "the disk, opened again", b->disk, 0, quarters(b, b->disk),
            b->time + 1, b->time + 2);
    b->time += 2;
    if (b->ok)
        check_image(b, "the disk, opened again", b->disk, fault_came());
    close_image(b, b->disk);
    return b->ok;
}

bool bench_run(void *bench)
{
    struct bench *b = bench;

    if (!begin(b))
        return false;
    if (open_others(b))
        run_actors(b);
    if (b->ok)
        observe(b, "the disk", b->disk, 0, quarters(b, b->disk), b->time + 1,
                b->time + 2);
    b->time += 2;
    if (b->ok && fault_came() && !fault_was_sync() && fault_seen() % 2)
        run_again(b);
    finish(b);
    if (!b->ok || !check_file(b))
        return false;
    check_base(b);
    for (unsigned i = 0; i < b->n_flushed && b->ok; i++)
        check_flushed(b, i);
    return b->ok && check_snapshot(b);
}
