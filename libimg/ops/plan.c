/* Plans: what the maps say before anything is read or written, for targets
 * that have to tell it first.  The plan is kept, and not made again, because
 * the answer may differ a moment later: a file system calls a hole data as
 * soon as somebody looked at it.  Afterwards it is compared with what the maps
 * say then; where they know of more, that is read. */
#include "ops/copy.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/iov.h"

#include <stdlib.h>
#include <string.h>

enum { PIECE = 1 << 20 };

int img_plan_make(struct img_copy *c, struct img_pace *pace,
                  struct img_runs *plan, struct img_error *err)
{
    enum img_content what;
    uint64_t end = 0;
    int r = 0;

    for (uint64_t off = 0; r == 0 && off < c->source.size; off = end) {
        r = img_pace_tell(pace, err);
        if (r == 0)
            r = img_copy_look(c, off, &end, &what, err);
        if (r == 0)
            r = img_runs_add(plan, img_div_up(end - off, c->unit), what,
                             err);
    }
    return r == 0 ? img_runs_end(plan, err) : r;
}

/* Does the source still show there what the target shows, to which nothing
 * (NONE) or zeros were written?  b has room for two pieces. */
static int compare(struct img_copy *c, struct img_pace *pace, uint64_t off,
                   uint64_t end, enum img_content planned, uint8_t *b,
                   struct img_error *err)
{
    bool base = planned == IMG_CONTENT_NONE && c->base;
    int r = 0;

    while (r == 0 && off < end) {
        size_t n = (size_t)IMG_MIN((uint64_t)PIECE, end - off);

        r = img_pace_tell(pace, err);
        if (r == 0)
            r = img_source_read(&c->source, b, n, off, err);
        if (r == 0 && base)
            r = img_source_read(c->base, b + PIECE, n, off, err);
        if (r == 0 && (base ? memcmp(b, b + PIECE, n) != 0
                            : !img_is_zero(b, n)))
            r = img_fail(err, EIO, "The source was written to while it was "
                         "read, behind offset %llu: what was written out is "
                         "no image of it", (unsigned long long)off);
        off += n;
    }
    return r;
}

int img_plan_still_holds(struct img_copy *c, struct img_pace *pace,
                         struct img_error *err)
{
    struct img_runs_at at = { .runs = c->plan };
    uint8_t *b = malloc(2 * PIECE);
    uint64_t off = 0, end;
    enum img_content what;
    int r = b ? 0 : img_fail_nomem(err);

    c->now = c->now_base = (struct img_stretch){ 0 };
    while (r == 0 && off < c->source.size && img_runs_more(&at)) {
        uint64_t run = off + at.left * c->unit;

        if (at.kind != IMG_CONTENT_DATA)
            r = img_pace_tell(pace, err);
        if (r == 0 && at.kind != IMG_CONTENT_DATA) {
            r = img_copy_look(c, off, &end, &what, err);
            if (r < 0)
                break;
            run = IMG_MIN(run, end);
            if (what != (enum img_content)at.kind)
                r = compare(c, pace, off, run, (enum img_content)at.kind, b,
                            err);
        }
        at.left -= img_div_up(run - off, c->unit);
        off = run;
    }
    free(b);
    return r;
}
