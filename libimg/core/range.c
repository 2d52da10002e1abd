/* Locks on ranges of guest bytes.
 *
 * One list in the order of arrival, holders and waiters together.  A range is
 * held as soon as no range before it in the list conflicts with it; nobody
 * overtakes a waiter that it conflicts with, so nobody waits for ever.
 */
#include "core/range.h"

#include <stddef.h>

void img_ranges_init(struct img_ranges *r)
{
    img_mutex_init(&r->lock);
    img_cond_init(&r->gone);
    r->first = r->last = NULL;
    r->waiting = 0;
}

void img_ranges_destroy(struct img_ranges *r)
{
    img_cond_destroy(&r->gone);
    img_mutex_destroy(&r->lock);
}

static bool must_wait(const struct img_range *me)
{
    if (me->off == me->end)
        return false;
    for (const struct img_range *p = me->prev; p; p = p->prev)
        if ((p->exclusive || me->exclusive) && p->off < me->end &&
            me->off < p->end && p->off < p->end)
            return true;
    return false;
}

/* The list's lock is held by the callers of these two. */
static void enter(struct img_ranges *r, struct img_range *me, uint64_t off,
                  uint64_t len, bool exclusive)
{
    me->off = off;
    me->end = off + len;
    me->exclusive = exclusive;
    me->next = NULL;
    me->prev = r->last;
    if (r->last)
        r->last->next = me;
    else
        r->first = me;
    r->last = me;
}

static void leave(struct img_ranges *r, struct img_range *me)
{
    if (me->prev)
        me->prev->next = me->next;
    else
        r->first = me->next;
    if (me->next)
        me->next->prev = me->prev;
    else
        r->last = me->prev;
}

void img_range_lock(struct img_ranges *r, struct img_range *me, uint64_t off,
                    uint64_t len, bool exclusive)
{
    img_lock(&r->lock);
    enter(r, me, off, len, exclusive);
    while (must_wait(me)) {
        r->waiting++;
        img_wait(&r->gone, &r->lock);
        r->waiting--;
    }
    img_unlock(&r->lock);
}

bool img_range_try(struct img_ranges *r, struct img_range *me, uint64_t off,
                   uint64_t len, bool exclusive)
{
    bool held;

    img_lock(&r->lock);
    enter(r, me, off, len, exclusive);
    held = !must_wait(me);
    if (!held)
        leave(r, me);
    img_unlock(&r->lock);
    return held;
}

void img_range_unlock(struct img_ranges *r, struct img_range *me)
{
    img_lock(&r->lock);
    leave(r, me);
    if (r->waiting)
        img_wake_all(&r->gone);
    img_unlock(&r->lock);
}
