/* The engine of copying: what one worker does with one claim.
 *
 * A claim's ticket is passed on exactly once, also when something failed
 * before its turn: the error stops the team, and with it all who wait.
 */
#include "ops/copy.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/iov.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CLAIM_PLAIN = 1 << 20,      /* two of these stay in a core's L2 cache */
    CLAIM_MAX = 2 << 20,
    SALVAGE_STEP = 4096,
    GLANCE = 4096,
    ALIGN = 4096
};

/* ---- reading ----------------------------------------------------------- */

static void say(struct img_copy *c, uint64_t off, const char *why)
{
    char line[700];

    if (!c->warn)
        return;
    snprintf(line, sizeof line, "offset %llu: %s; zeros are written instead",
             (unsigned long long)off, why);
    img_lock(&c->lock);
    c->warn(c->warn_opaque, line);
    img_unlock(&c->lock);
}

/* Reads what can be read, in small steps. */
static void salvage(struct img_copy *c, uint8_t *buf, uint64_t off,
                    uint64_t len)
{
    while (len) {
        size_t now = (size_t)IMG_MIN(len, (uint64_t)SALVAGE_STEP);
        struct img_error err;

        if (img_source_read(&c->source, buf, now, off, &err) < 0) {
            memset(buf, 0, now);
            say(c, off, err.message);
        }
        buf += now;
        off += now;
        len -= now;
    }
}

static int read_claim(struct img_copy *c, struct img_batch *b,
                      struct img_error *err)
{
    int r = img_source_read(&c->source, b->in, b->len, b->off, err);

    if (r < 0 && c->salvage) {
        salvage(c, b->in, b->off, b->len);
        r = 0;
    }
    b->below_to = b->off;
    return r;
}

/* ---- deciding ---------------------------------------------------------- */

/* Appends a piece, or makes the last one longer. */
static void add_piece(struct img_batch *b, enum img_piece_kind kind,
                      uint64_t off, uint64_t len)
{
    struct img_piece *last = b->n ? &b->pieces[b->n - 1] : NULL;

    if (last && last->kind == kind && last->off + last->len == off) {
        last->len += len;
        return;
    }
    b->pieces[b->n++] = (struct img_piece){
        .kind = kind, .off = off, .len = len,
        .data = b->in + (off - b->off),
    };
}

/* Packs one unit to `at` in b->out; a unit cut short by the end of the source
 * is packed with zeros behind it, if that is what the target has there.
 * Returns the packed length, 0 = it is no shorter. */
static uint32_t pack_unit(struct img_copy *c, struct img_batch *b,
                          uint64_t off, uint64_t len, size_t at)
{
    uint8_t *in = b->in + (off - b->off);
    size_t room = c->slack ? c->unit + c->slack : c->unit - 1u;

    if (len < c->unit && !c->target_zero)
        return 0;
    if (len < c->unit)
        memset(in + len, 0, c->unit - len);
    return (uint32_t)img_pack(b->packer, in, c->unit, b->out + at, room);
}

/* Is this unit below already?  As long as units differ, their first bytes
 * mostly tell, and the rest is not read. */
static int is_below(struct img_copy *c, struct img_batch *b, uint64_t off,
                    uint64_t len, bool *same, struct img_error *err)
{
    uint64_t at = off - b->off, read = 0;
    int r = 0;

    if (off >= b->below_to && b->differs) {
        read = IMG_MIN(len, (uint64_t)GLANCE);
        r = img_source_read(c->base, b->below + at, (size_t)read, off, err);
        *same = r == 0 && !memcmp(b->in + at, b->below + at, (size_t)read);
        if (!*same)
            return r;
    }
    if (off >= b->below_to) {
        r = img_source_read(c->base, b->below + at + read,
                            (size_t)(b->len - at - read), off + read, err);
        if (r < 0)
            return r;
        b->below_to = b->off + b->len;
    }
    *same = !memcmp(b->in + at, b->below + at, (size_t)len);
    b->differs = !*same;
    return 0;
}

/* Unit by unit: is it there already, is it zeros, can it be packed?  By a
 * plan it is neither. */
static int decide(struct img_copy *c, struct img_batch *b,
                  struct img_error *err)
{
    uint64_t end = b->off + b->len, len;
    size_t packed = 0;

    b->n = 0;
    if (c->plan) {
        add_piece(b, IMG_PIECE_PLAIN, b->off, b->len);
        return 0;
    }
    for (uint64_t off = b->off; off < end; off += len) {
        const uint8_t *in = b->in + (off - b->off);
        uint32_t n = 0;
        bool same = false;
        int r = 0;

        len = IMG_MIN((uint64_t)c->unit, end - off);
        if (b->below)
            r = is_below(c, b, off, len, &same, err);
        if (r < 0)
            return r;
        if (same)
            continue;
        if (!c->all && img_is_zero(in, len)) {
            if (!c->target_zero || c->base)
                add_piece(b, IMG_PIECE_ZERO, off, len);
            continue;
        }
        if (c->pack)
            n = pack_unit(c, b, off, len, packed);
        if (!n) {
            add_piece(b, IMG_PIECE_PLAIN, off, len);
            continue;
        }
        b->pieces[b->n++] = (struct img_piece){
            .kind = IMG_PIECE_PACKED, .off = off, .len = len,
            .data = b->out + packed, .packed = n,
        };
        packed += n;
    }
    return 0;
}

/* ---- one claim --------------------------------------------------------- */

static int prepare(struct img_copy *c, struct img_batch *b,
                   const struct img_claim *claim, struct img_error *err)
{
    int r;

    b->off = claim->off;
    b->len = claim->len;
    b->ticket = claim->ticket;
    b->n = b->n_places = 0;
    if (claim->zero) {
        add_piece(b, IMG_PIECE_ZERO, b->off, b->len);
        b->pieces[0].data = NULL;
        return 0;
    }
    if (claim->shared) {
        add_piece(b, IMG_PIECE_SHARED, b->off, b->len);
        b->pieces[0].data = NULL;
        b->pieces[0].file = claim->from.file;
        b->pieces[0].host = claim->from.host + (b->off - claim->from.off);
        return 0;
    }
    r = read_claim(c, b, err);
    return r == 0 ? decide(c, b, err) : r;
}

static int put(struct img_copy *c, struct img_batch *b, int placed,
               struct img_error *err)
{
    int r;

    if (!b->n || !c->outlet->put)
        return placed;
    r = c->outlet->put(c, b, placed < 0, err);
    return placed < 0 ? placed : r;
}

static int place_and_put(struct img_team *team, struct img_copy *c,
                         struct img_batch *b, struct img_error *err)
{
    int r = c->ordered ? img_team_turn(team, b->ticket) : 0;

    if (r < 0)
        return r;
    if (b->n)
        r = c->outlet->place(c, b, err);
    if (r == 0 && c->ordered)
        img_team_pass(team, b->ticket);
    return put(c, b, r, err);
}

static int step(struct img_team *team, void *opaque, unsigned worker,
                struct img_error *err)
{
    struct img_copy *c = opaque;
    struct img_batch *b = &c->batches[worker];
    struct img_claim claim;
    int r;

    img_lock(&c->lock);
    r = img_copy_claim(c, &claim, err);
    img_unlock(&c->lock);
    if (r < 0)
        return r;
    if (claim.skipped)
        img_team_add(team, claim.skipped);
    if (!claim.len)
        return 0;
    r = prepare(c, b, &claim, err);
    if (r == 0)
        r = place_and_put(team, c, b, err);
    if (r < 0)
        return r;
    img_team_add(team, claim.len);
    return 1;
}

/* ---- set-up ------------------------------------------------------------ */

static void free_batch(struct img_batch *b)
{
    free(b->pieces);
    free(b->places);
    free(b->in);
    free(b->below);
    free(b->out);
    img_packer_free(b->packer);
}

static int make_batch(struct img_copy *c, struct img_batch *b,
                      struct img_error *err)
{
    size_t units = c->claim_max / c->unit;

    b->max = b->max_places = (unsigned)units;
    b->pieces = calloc(units, sizeof *b->pieces);
    b->places = calloc(units, sizeof *b->places);
    b->in = aligned_alloc(ALIGN, c->claim_max);
    if (!b->pieces || !b->places || !b->in)
        return img_fail_nomem(err);
    if (c->base && !c->plan) {
        b->below = aligned_alloc(ALIGN, c->claim_max);
        if (!b->below)
            return img_fail_nomem(err);
    }
    if (!c->pack)
        return 0;
    b->out_room = units * ((size_t)c->unit + c->slack);
    b->out = malloc(b->out_room);
    return b->out ? img_packer_new(c->codec, 0, 0, &b->packer, err)
                  : img_fail_nomem(err);
}

int img_copy_run(struct img_copy *c, const struct img_job *job,
                 struct img_error *err)
{
    unsigned n = img_team_size(job, c->pack ? 8 : 4,
                               img_source_is_remote(&c->source) ||
                               (c->to && img_chain_is_remote(c->to->chain)));
    int r = 0;

    c->claim_max = IMG_MAX((uint32_t)CLAIM_PLAIN, c->unit);
    c->claim_max = IMG_MAX(c->claim_max, (uint32_t)ALIGN);
    if (c->claim_max > CLAIM_MAX)
        return img_fail(err, EINVAL, "A unit of %u bytes is too large",
                        c->unit);
    c->pos = c->tickets = 0;
    c->now = c->now_base = (struct img_stretch){ 0 };
    c->planned = (struct img_runs_at){ .runs = c->plan };
    c->planned_end = 0;
    c->batches = calloc(n, sizeof *c->batches);
    if (!c->batches)
        return img_fail_nomem(err);
    c->n_batches = n;
    img_mutex_init(&c->lock);
    for (unsigned i = 0; i < n && r == 0; i++)
        r = make_batch(c, &c->batches[i], err);
    if (r == 0)
        r = img_team_run(job, n, c->source.size, step, c, err);
    if (r == 0 && !c->salvage)
        r = img_source_still_whole(&c->source, err);
    if (r == 0 && !c->salvage && c->base)
        r = img_source_still_whole(c->base, err);
    for (unsigned i = 0; i < n; i++)
        free_batch(&c->batches[i]);
    free(c->batches);
    c->batches = NULL;
    img_mutex_destroy(&c->lock);
    return r;
}
