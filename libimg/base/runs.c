/* Lists of runs; see runs.h.  Neighbours of one kind become one run. */
#include "base/runs.h"
#include "base/checked.h"
#include "base/error.h"

#include <stdlib.h>

enum { NUMBER_MAX = 10 };       /* bytes that 64 bits take */

static int put_last(struct img_runs *r, struct img_error *err)
{
    uint64_t number = r->units << 2 | r->kind;
    size_t room;
    uint8_t *more;

    if (!r->units)
        return 0;
    if (r->room - r->n < NUMBER_MAX) {
        room = IMG_MIN(IMG_MAX(r->room * 2, (size_t)256), r->most);
        if (room < r->n + NUMBER_MAX)
            return img_fail(err, EFBIG, "What is where takes more than %zu "
                            "bytes", r->most);
        more = realloc(r->code, room);
        if (!more)
            return img_fail_nomem(err);
        r->code = more;
        r->room = room;
    }
    for (; number > 0x7f; number >>= 7)
        r->code[r->n++] = (uint8_t)(number | 0x80);
    r->code[r->n++] = (uint8_t)number;
    r->units = 0;
    return 0;
}

int img_runs_add(struct img_runs *r, uint64_t units, unsigned kind,
                 struct img_error *err)
{
    int ret = kind == r->kind ? 0 : put_last(r, err);

    if (ret < 0)
        return ret;
    if (r->units + units > UINT64_MAX >> 2)
        return img_fail(err, EFBIG, "A run of too many units");
    r->kind = kind;
    r->units += units;
    return 0;
}

int img_runs_end(struct img_runs *r, struct img_error *err)
{
    return put_last(r, err);
}

void img_runs_free(struct img_runs *r)
{
    free(r->code);
    r->code = NULL;
    r->n = r->room = 0;
}

bool img_runs_more(struct img_runs_at *at)
{
    const struct img_runs *r = at->runs;
    uint64_t number = 0;
    unsigned shift = 0;

    if (at->left)
        return true;
    if (at->at == r->n)
        return false;
    for (; r->code[at->at] & 0x80; shift += 7)
        number |= (uint64_t)(r->code[at->at++] & 0x7f) << shift;
    number |= (uint64_t)r->code[at->at++] << shift;
    at->left = number >> 2;
    at->kind = number & 3;
    return true;
}
