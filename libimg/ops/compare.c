/* Comparing two disks.
 *
 * The maps are walked in step; what they prove equal (both zeros, or the same
 * bytes of the same file) is not read.  Workers read the rest and keep the
 * lowest offset that differs; nothing behind it is looked at any more.  The
 * answer does not depend on the number of workers, for all below the lowest
 * offset is finished before they end.
 */
#include "core/disk.h"
#include "base/team.h"
#include "ops/source.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/iov.h"

#include <stdlib.h>
#include <string.h>

enum { CLAIM = 1 << 20, ALIGN = 4096 };

struct compare {
    struct img_source a, b;
    uint64_t size;              /* of the longer one */
    bool strict;
    struct img_mutex lock;      /* protects all below */
    struct img_stretch now_a, now_b;
    uint64_t pos;
    uint64_t differ;            /* lowest offset so far; UINT64_MAX = none */
    int verdict;                /* at differ: 1 = content, 2 = allocation */
    uint8_t **buffers;          /* per worker, 2 * CLAIM */
};

struct piece {
    uint64_t off, len, skipped;
    bool zero_a, zero_b;        /* by the map */
};

static int look(const struct img_source *s, uint64_t off,
                struct img_stretch *st, struct img_error *err)
{
    if (st->end > off && st->off <= off)
        return 0;
    return img_source_map(s, off, st, err);
}

static void found(struct compare *c, uint64_t off, int verdict)
{
    if (off < c->differ) {
        c->differ = off;
        c->verdict = verdict;
    }
}

static int rank(const struct img_stretch *st)
{
    return st->kind == IMG_RUN_PACKED ? IMG_RUN_DATA : (int)st->kind;
}

static int next_piece(struct compare *c, struct piece *p,
                      struct img_error *err)
{
    uint64_t from = c->pos, limit = IMG_MIN(c->size, c->differ);

    memset(p, 0, sizeof *p);
    while (c->pos < limit && !p->len) {
        uint64_t off = c->pos, end;
        int r = look(&c->a, off, &c->now_a, err);

        if (r == 0)
            r = look(&c->b, off, &c->now_b, err);
        if (r < 0)
            return r;
        if (c->strict && rank(&c->now_a) != rank(&c->now_b)) {
            found(c, off, 2);
            break;
        }
        end = IMG_MIN(IMG_MIN(c->now_a.end, c->now_b.end), limit);
        p->zero_a = img_stretch_is_zero(&c->now_a);
        p->zero_b = img_stretch_is_zero(&c->now_b);
        if (!(p->zero_a && p->zero_b) &&
            !img_stretch_is_same(&c->now_a, &c->now_b, off)) {
            end = IMG_MIN(end, off + CLAIM);
            p->off = off;
            p->len = end - off;
        }
        c->pos = end;
    }
    p->skipped = c->pos - from - p->len;
    return 0;
}

static size_t first_difference(const uint8_t *a, const uint8_t *b, size_t len)
{
    size_t at = 0;

    while (at < len && !memcmp(a + at, b + at, IMG_MIN(len - at, 512)))
        at += IMG_MIN(len - at, 512);
    while (at < len && a[at] == b[at])
        at++;
    return at;
}

static size_t first_nonzero(const uint8_t *a, size_t len)
{
    size_t at = 0;

    while (at < len && img_is_zero(a + at, IMG_MIN(len - at, 512)))
        at += IMG_MIN(len - at, 512);
    while (at < len && !a[at])
        at++;
    return at;
}

static int compare_piece(struct compare *c, const struct piece *p,
                         uint8_t *buf, struct img_error *err)
{
    size_t len = (size_t)p->len, at;
    uint8_t *a = buf, *b = buf + CLAIM;
    int r = 0;

    if (!p->zero_a)
        r = img_source_read(&c->a, a, len, p->off, err);
    if (r == 0 && !p->zero_b)
        r = img_source_read(&c->b, b, len, p->off, err);
    if (r < 0)
        return r;
    if (p->zero_a || p->zero_b)
        at = img_is_zero(p->zero_a ? b : a, len)
             ? len : first_nonzero(p->zero_a ? b : a, len);
    else
        at = memcmp(a, b, len) ? first_difference(a, b, len) : len;
    if (at < len) {
        img_lock(&c->lock);
        found(c, p->off + at, 1);
        img_unlock(&c->lock);
    }
    return 0;
}

static int step(struct img_team *team, void *opaque, unsigned worker,
                struct img_error *err)
{
    struct compare *c = opaque;
    struct piece p;
    int r;

    img_lock(&c->lock);
    r = next_piece(c, &p, err);
    img_unlock(&c->lock);
    if (r < 0)
        return r;
    if (p.skipped)
        img_team_add(team, p.skipped);
    if (!p.len)
        return 0;
    r = compare_piece(c, &p, c->buffers[worker], err);
    if (r < 0)
        return r;
    img_team_add(team, p.len);
    return 1;
}

static int run(struct compare *c, const struct img_job *job,
               struct img_error *err)
{
    unsigned n = img_team_size(job, 4, img_source_is_remote(&c->a) ||
                               img_source_is_remote(&c->b));
    int r = 0;

    c->buffers = calloc(n, sizeof *c->buffers);
    if (!c->buffers)
        return img_fail_nomem(err);
    for (unsigned i = 0; i < n && r == 0; i++) {
        c->buffers[i] = aligned_alloc(ALIGN, 2 * CLAIM);
        if (!c->buffers[i])
            r = img_fail_nomem(err);
    }
    img_mutex_init(&c->lock);
    if (r == 0)
        r = img_team_run(job, n, c->size, step, c, err);
    img_mutex_destroy(&c->lock);
    for (unsigned i = 0; i < n; i++)
        free(c->buffers[i]);
    free(c->buffers);
    return r;
}

int img_compare(struct img_disk *a, struct img_disk *b, bool strict,
                const struct img_job *job, uint64_t *differ_at,
                struct img_error *err)
{
    struct compare c = { .strict = strict, .differ = UINT64_MAX };
    int r;

    img_read_lock(&a->structure);
    img_read_lock(&b->structure);
    r = img_source_join(&c.a, &a, 1, err);
    if (r == 0)
        r = img_source_join(&c.b, &b, 1, err);
    c.size = IMG_MAX(c.a.size, c.b.size);
    if (r == 0 && strict && c.a.size != c.b.size)
        found(&c, IMG_MIN(c.a.size, c.b.size), 2);
    else if (r == 0)
        r = run(&c, job, err);
    if (r == 0)
        r = img_source_still_whole(&c.a, err);
    if (r == 0)
        r = img_source_still_whole(&c.b, err);
    img_source_free(&c.a);
    img_source_free(&c.b);
    img_rw_unlock(&b->structure);
    img_rw_unlock(&a->structure);
    if (r < 0)
        return r;
    if (differ_at && c.verdict)
        *differ_at = c.differ;
    return c.verdict;
}
