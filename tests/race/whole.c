/* Steps that work on whole images.  The threads of the library's teams are
 * threads of the scheduler, too. */
#include "bench.h"

#include <stdio.h>

static const struct img_job job = { .size = sizeof job, .threads = 2 };

bool is_whole(enum what what)
{
    return what == COMMIT || what == COPY || what == COPY_PACKED ||
           what == REBASE;
}

int change_whole(struct bench *b, enum what what, struct img_error *err)
{
    struct img_convert_options copy = IMG_CONVERT_OPTIONS;
    struct img_rebase_options rebase = IMG_REBASE_OPTIONS;

    if (what == COMMIT)
        return img_commit(b->disk, 1, false, &job, err);
    if (what == REBASE) {
        rebase.backing = b->other;
        rebase.backing_format = "raw";
        return img_rebase(b->disk, &rebase, &job, err);
    }
    copy.target_exists = true;
    copy.compress = what == COPY_PACKED;
    return img_copy(&b->from, 1, b->disk, &copy, &job, err);
}

static bool expect(struct bench *b, struct img_disk *with, int verdict,
                   uint64_t where)
{
    uint64_t at = 0;
    struct img_error err;
    char why[100];
    int r = img_compare(b->disk, with, false, &job, &at, &err);

    if (r < 0)
        return is_excused(b, "compare", &err);
    if (r == verdict && (!r || at == where))
        return true;
    snprintf(why, sizeof why, "%d at %llu, not %d at %llu", r,
             (unsigned long long)at, verdict, (unsigned long long)where);
    return wrong(b, "compare", why);
}

/* With what shows the same, and with what does not; nobody may be
 * writing. */
bool compare_whole(struct bench *b)
{
    unsigned q = 0;

    while (q < QUARTERS && b->shown[q] == other_byte(q))
        q++;
    return expect(b, b->same, 0, 0) &&
           expect(b, b->from, q < QUARTERS, (uint64_t)q * b->quarter);
}
