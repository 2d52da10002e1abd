/* Claims: what the maps alone say about the work to do.
 *
 * The source is walked once, from front to back, by whoever asks next;
 * copy->lock is held.  Claims begin and end on units of the target, so that
 * two workers never meet in one of its clusters.  They follow from the maps
 * and the options alone, never from the number of workers.
 */
#include "ops/copy.h"
#include "base/checked.h"
#include "base/error.h"

#include <string.h>

/* The largest range of zeros, or of shared blocks, in one piece: large
 * enough to cost nothing, small enough to be canceled. */
#define STRETCH_MAX (UINT64_C(1) << 30)

static bool covers(const struct img_stretch *st, uint64_t off)
{
    return st->end > off && st->off <= off;
}

/* An unreadable map in salvage mode: one unit of data, whose reading will
 * say what is wrong. */
static int look_at_source(struct img_copy *c, uint64_t off,
                          struct img_error *err)
{
    int r;

    if (covers(&c->now, off))
        return 0;
    r = img_source_map(&c->source, off, &c->now, err);
    if (r < 0 && c->salvage) {
        c->now = (struct img_stretch){
            .off = off, .end = img_round_down(off, c->unit) + c->unit,
            .kind = IMG_RUN_PACKED,
        };
        r = 0;
    }
    return r;
}

static enum img_content need_of(const struct img_copy *c, uint64_t off)
{
    const struct img_stretch *st = &c->now;

    if (st->depth < c->min_depth ||
        (st->depth >= c->max_depth && c->max_depth != UINT32_MAX))
        return IMG_CONTENT_NONE;
    if (c->all)
        return IMG_CONTENT_DATA;
    if (img_stretch_is_zero(st)) {
        if (c->base)
            return img_stretch_is_zero(&c->now_base) ? IMG_CONTENT_NONE
                                                     : IMG_CONTENT_ZEROS;
        return c->target_zero ? IMG_CONTENT_NONE : IMG_CONTENT_ZEROS;
    }
    if (c->base && st->file && img_stretch_is_same(st, &c->now_base, off))
        return IMG_CONTENT_NONE;
    return IMG_CONTENT_DATA;
}

/* What is needed from off on, with one answer up to *end. */
static int look(struct img_copy *c, uint64_t off, uint64_t *end,
                enum img_content *need, struct img_error *err)
{
    int r = look_at_source(c, off, err);

    if (r == 0 && c->base && !covers(&c->now_base, off))
        r = img_source_map(c->base, off, &c->now_base, err);
    if (r < 0)
        return r;
    *need = need_of(c, off);
    *end = IMG_MIN(c->now.end, c->source.size);
    if (c->base)
        *end = IMG_MIN(*end, c->now_base.end);
    return 0;
}

/* See copy.h. */
int img_copy_look(struct img_copy *c, uint64_t off, uint64_t *end,
                  enum img_content *need, struct img_error *err)
{
    uint64_t unit_end = IMG_MIN(off + c->unit, c->source.size), at;
    enum img_content other;
    int r = look(c, off, &at, need, err);

    if (r < 0)
        return r;
    if (at >= unit_end) {
        *end = at == c->source.size ? at : img_round_down(at, c->unit);
        return 0;
    }
    while (at < unit_end) {
        r = look(c, at, &at, &other, err);
        if (r < 0)
            return r;
        if (other != *need)
            *need = IMG_CONTENT_DATA;
    }
    *end = unit_end;
    return 0;
}

/* The same as it was planned; off never goes back. */
static void look_at_plan(struct img_copy *c, uint64_t off, uint64_t *end,
                         enum img_content *need)
{
    while (off >= c->planned_end && img_runs_more(&c->planned)) {
        c->planned_end += c->planned.left * c->unit;
        c->planned.left = 0;
    }
    *end = IMG_MIN(c->planned_end, c->source.size);
    *need = (enum img_content)c->planned.kind;
}

static int look_ahead(struct img_copy *c, uint64_t off, uint64_t *end,
                      enum img_content *need, struct img_error *err)
{
    if (!c->plan)
        return img_copy_look(c, off, end, need, err);
    look_at_plan(c, off, end, need);
    return 0;
}

/* Is the claim's beginning a long enough stretch of shareable blocks? */
static bool claim_shared(struct img_copy *c, struct img_claim *claim,
                         uint64_t end)
{
    const struct img_stretch *st = &c->now;

    if (!c->share || !covers(st, claim->off) || st->kind != IMG_RUN_DATA ||
        (st->host + (claim->off - st->off)) % 4096 || claim->off % 4096)
        return false;
    end = IMG_MIN(end, st->end);
    end = IMG_MIN(end, claim->off + STRETCH_MAX);
    if (end != c->source.size)
        end = img_round_down(end, IMG_MAX(c->unit, 4096u));
    if (end <= claim->off || end % 4096)
        return false;
    claim->len = end - claim->off;
    claim->shared = true;
    claim->from = *st;
    return true;
}

static int claim_data(struct img_copy *c, struct img_claim *claim,
                      uint64_t end, struct img_error *err)
{
    uint64_t most = claim->off + c->claim_max;
    enum img_content need;

    if (claim_shared(c, claim, end))
        return 0;
    while (end < most && end < c->source.size) {
        uint64_t next;
        int r = look_ahead(c, end, &next, &need, err);

        if (r < 0)
            return r;
        if (need != IMG_CONTENT_DATA)
            break;
        end = next;
    }
    claim->len = IMG_MIN(end, most) - claim->off;
    return 0;
}

int img_copy_claim(struct img_copy *c, struct img_claim *claim,
                   struct img_error *err)
{
    uint64_t from = c->pos, end;
    enum img_content need;
    int r = 0;

    memset(claim, 0, sizeof *claim);
    while (c->pos < c->source.size) {
        r = look_ahead(c, c->pos, &end, &need, err);
        if (r < 0)
            return r;
        claim->off = c->pos;
        if (need == IMG_CONTENT_NONE) {
            c->pos = end;
            continue;
        }
        if (need == IMG_CONTENT_ZEROS) {
            claim->zero = true;
            claim->len = IMG_MIN(end - c->pos, STRETCH_MAX);
        } else {
            r = claim_data(c, claim, end, err);
        }
        break;
    }
    if (r < 0)
        return r;
    claim->skipped = (claim->len ? claim->off : c->pos) - from;
    if (claim->len) {
        c->pos = claim->off + claim->len;
        claim->ticket = c->tickets++;
    }
    return 0;
}
