/* What may be seen.
 *
 * The history has an event for each operation, with the times it began and
 * ended (one counter: the runs are sequential).  An observation of a quarter
 * may show the value of any event that began before the observation ended,
 * unless another one lies wholly between the two.  What failed may have been
 * done in part, until it returned; what was not flushed may be gone where
 * closing failed.
 */
#include "bench.h"
#include "fault.h"
#include "../support.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool wrong(struct bench *b, const char *what, const char *why)
{
    const char *came = fault_came();

    if (b->ok)
        fprintf(stderr, "race: %s, %s%s%s: %s: %s\n", b->shape->name,
                b->work->name, came ? ", failing " : "", came ? came : "",
                what, why);
    b->ok = false;
    return false;
}

bool is_excused(struct bench *b, const char *what,
                const struct img_error *err)
{
    /* After a header that could not be written nothing else is. */
    bool told = err->code == EIO || (err->code == IMG_ECORRUPT &&
                strstr(err->message, "is not written any more"));

    if (!fault_came() || !told)
        return wrong(b, what, err->message);
    b->n_failed++;
    return true;
}

static bool covers(const struct event *e, unsigned q)
{
    return q >= e->off && q < e->off + e->len;
}

/* Does it leave no trace of what was there?  A discard may. */
static bool replaces(const struct bench *b, const struct event *e)
{
    return e->what != DISCARD && !e->failed &&
           (!b->lost || e->ended < b->durable);
}

static bool is_superseded(const struct bench *b, const struct event *e,
                          unsigned q, uint64_t began)
{
    for (unsigned i = 0; i < b->n; i++) {
        const struct event *y = &b->events[i];

        if (covers(y, q) && replaces(b, y) && y->began > e->ended &&
            y->ended < began)
            return true;
    }
    return false;
}

static uint8_t value_of(const struct bench *b, const struct event *e,
                        unsigned q)
{
    switch (e->what) {
    case APPLY: return b->applied[q];
    case COPY: case COPY_PACKED: return other_byte(q);
    default: return e->value;
    }
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

struct event *add_event(struct bench *b, enum what what, unsigned off,
                        unsigned len, uint8_t value)
{
    struct event *e = &b->events[b->n++];

    *e = (struct event){ what, off, len, value, ++b->time, UINT64_MAX,
                         false };
    return e;
}

unsigned quarters(const struct bench *b, const struct img_disk *disk)
{
    return (unsigned)(img_size(disk) / b->quarter);
}

bool observe(struct bench *b, const char *what, struct img_disk *disk,
             unsigned off, unsigned len, uint64_t began, uint64_t ended)
{
    size_t bytes = (size_t)len * b->quarter;
    uint8_t *buf = must_alloc(bytes);
    struct img_error err;
    bool now = !ended, ok;

    if (now) {
        began = ++b->time;
        memset(buf, 0xee, bytes);
    }
    ok = img_pread(disk, buf, bytes, (uint64_t)off * b->quarter, &err) == 0;
    if (now)
        ended = ++b->time;
    if (ok)
        explain(b, what, buf, off, len, began, ended);
    else if (now)
        is_excused(b, what, &err);
    else
        wrong(b, what, err.message);
    free(buf);
    return b->ok;
}

static void keep_first(void *opaque, const char *message)
{
    char *first = opaque;

    if (!*first)
        snprintf(first, 200, "%s", message);
}

bool check_image(struct bench *b, const char *what, struct img_disk *disk,
                 bool leaks)
{
    char first[200] = "", why[300];
    struct img_check_options opts = {
        .size = sizeof opts, .report = keep_first, .report_opaque = first,
    };
    struct img_check_result result;
    struct img_error err;

    if (img_check(disk, &opts, NULL, &result, &err) < 0)
        return err.code == ENOTSUP || wrong(b, what, err.message);
    if (!result.errors && !result.check_errors && (leaks || !result.leaks))
        return true;
    snprintf(why, sizeof why, "check: %llu errors, %llu leaks: %s",
             (unsigned long long)result.errors,
             (unsigned long long)result.leaks, first);
    return wrong(b, what, why);
}
