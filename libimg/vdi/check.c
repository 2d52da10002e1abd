/* VDI: is the image sound, and making it so.
 *
 * Two guest blocks in one place are parted: each gets what both have shown.
 * A place beyond the end of the file is given up; what was there is lost.  A
 * block that the file holds in part is completed with zeros.
 */
#include "vdi/vdi.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "file/file.h"

#include <stdio.h>
#include <stdlib.h>

enum { BUFFER = 1 << 20 };

/* An image has no more places than blocks, but for one that was interrupted
 * while blocks made room for a longer map (change.c): so many. */
enum { MORE_PLACES = 1 << 20 };

enum fault { SOUND, OUTSIDE, PARTLY, TWICE };

/* The places seen so far. */
struct seen {
    uint64_t *bits;
    uint32_t limit;             /* places that begin in the file */
    uint32_t next;              /* behind the last one */
    uint32_t used;
};

static int seen_init(struct seen *s, const struct img_vdi *v,
                     struct img_error *err)
{
    uint64_t room = v->file_len > v->data_off ?
                    img_div_up(v->file_len - v->data_off, v->stride) : 0;

    room = IMG_MIN(room, (uint64_t)v->blocks + MORE_PLACES);
    *s = (struct seen){ .limit = (uint32_t)room };
    s->bits = calloc((size_t)s->limit / 64 + 1, sizeof *s->bits);
    return s->bits ? 0 : img_fail_nomem(err);
}

/* Guest bytes that block `block` of the disk has. */
static uint64_t bytes_of(const struct img_layer *layer, uint32_t block)
{
    const struct img_vdi *v = layer->state;
    uint64_t begin = (uint64_t)block << v->block_bits;

    return begin >= layer->size ? 0
                                : IMG_MIN(layer->size - begin,
                                          (uint64_t)v->block_size);
}

static enum fault look(const struct img_layer *layer, struct seen *s,
                       uint32_t block)
{
    const struct img_vdi *v = layer->state;
    uint32_t entry = v->map[block];
    uint64_t bit;

    if (!img_vdi_is_place(entry))
        return SOUND;
    if (entry >= s->limit)
        return OUTSIDE;
    bit = UINT64_C(1) << entry % 64;
    if (s->bits[entry / 64] & bit)
        return TWICE;
    s->bits[entry / 64] |= bit;
    s->used++;
    s->next = IMG_MAX(s->next, entry + 1);
    return img_inside(img_vdi_host(v, entry), bytes_of(layer, block),
                      v->file_len) ? SOUND : PARTLY;
}

static const char *fault_text(enum fault f)
{
    switch (f) {
    case OUTSIDE:
        return "lies beyond the end of the file";
    case PARTLY:
        return "goes beyond the end of the file";
    default:
        return "is in use by another entry too";
    }
}

int img_vdi_scan(struct img_layer *layer, struct img_error *err)
{
    const struct img_vdi *v = layer->state;
    struct seen s;
    int r = seen_init(&s, v, err);

    for (uint32_t i = 0; i < v->blocks && r == 0; i++) {
        enum fault f = look(layer, &s, i);

        if (f != SOUND)
            r = img_fail(err, IMG_ECORRUPT, "%s: block map, entry %u: block "
                         "%u %s; it is not safe to write, check with repair "
                         "first", layer->path, i, v->map[i], fault_text(f));
    }
    free(s.bits);
    return r;
}

/* ---- check -------------------------------------------------------------- */

struct checking {
    struct img_layer *layer;
    const struct img_check_options *opts;
    struct img_check_result *result;
    struct seen seen;
    struct img_vdi_list twice;  /* guest blocks to get a place of their own */
    uint64_t file_end;          /* for the blocks that are there in part */
    bool repair_all;
};

__attribute__((format(printf, 2, 3)))
static void report(const struct checking *c, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    if (!c->opts->report)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    c->opts->report(c->opts->report_opaque, text);
}

static int note_fault(struct checking *c, uint32_t block, enum fault f,
                      struct img_error *err)
{
    struct img_vdi *v = c->layer->state;
    uint32_t entry = v->map[block];
    uint64_t end = v->data_off + ((uint64_t)entry + 1) * v->stride;

    report(c, "%s block map, entry %u: block %u %s",
           c->repair_all ? "Repairing" : "ERROR", block, entry,
           fault_text(f));
    if (!c->repair_all) {
        c->result->errors++;
        return 0;
    }
    c->result->errors_fixed++;
    if (f == OUTSIDE)
        img_vdi_set(v, block, VDI_FREE);
    else if (f == PARTLY)
        c->file_end = IMG_MAX(c->file_end, end);
    else if (img_vdi_list_push(&c->twice, block) < 0)
        return img_fail_nomem(err);
    return 0;
}

static int look_at_map(struct checking *c, const struct img_job *job,
                       struct img_error *err)
{
    struct img_vdi *v = c->layer->state;
    int r = 0;

    for (uint32_t i = 0; i < v->blocks && r == 0; i++) {
        enum fault f = look(c->layer, &c->seen, i);

        if (f != SOUND)
            r = note_fault(c, i, f, err);
        if (r == 0 && i % (1 << 16) == 0 && job && job->progress &&
            job->progress(job->opaque, i, v->blocks))
            r = img_fail(err, ECANCELED, "cancelled");
    }
    return r;
}

/* The header's count against what is in use: others append there. */
static bool look_at_count(struct checking *c)
{
    struct img_vdi *v = c->layer->state;
    uint32_t count = img_get_le32(v->header + VDI_ALLOCATED_AT);
    uint64_t lost;

    if (count < c->seen.next) {
        report(c, "%s header: %u blocks are in use, but block %u is among "
               "them", c->repair_all ? "Repairing" : "ERROR", count,
               c->seen.next - 1);
        if (c->repair_all)
            c->result->errors_fixed++;
        else
            c->result->errors++;
        return true;
    }
    lost = count - c->seen.used;
    if (!lost)
        return false;
    report(c, "%s header: %u blocks are in use, but the map has %u",
           c->opts->repair & IMG_REPAIR_LEAKS ? "Repairing" : "Leaked",
           count, c->seen.used);
    if (c->opts->repair & IMG_REPAIR_LEAKS)
        c->result->leaks_fixed += lost;
    else
        c->result->leaks += lost;
    return true;
}

static int hold(struct img_layer *layer, uint64_t end, struct img_error *err)
{
    struct img_vdi *v = layer->state;
    int r;

    if (end <= v->file_len)
        return 0;
    r = img_file_truncate(layer->files[0], end, err);
    if (r == 0)
        v->file_len = end;
    return r;
}

static int part_twice(struct checking *c, struct img_error *err)
{
    struct img_vdi *v = c->layer->state;
    img_autofree uint8_t *buf = malloc(BUFFER);
    int r = buf ? 0 : img_fail_nomem(err);

    for (size_t i = 0; i < c->twice.n && r == 0; i++) {
        uint32_t block = c->twice.at[i], to = v->next;

        r = hold(c->layer, v->data_off + ((uint64_t)to + 1) * v->stride, err);
        if (r == 0)
            r = img_vdi_copy_block(c->layer, v->map[block], to, buf, BUFFER,
                                   err);
        if (r == 0) {
            img_vdi_set(v, block, to);
            v->next++;
        }
    }
    return r;
}

static int repair(struct checking *c, struct img_error *err)
{
    struct img_vdi *v = c->layer->state;
    int r = hold(c->layer, c->file_end, err);

    if (r < 0)
        return r;
    v->next = c->seen.next;
    v->free.n = v->freed.n = 0;
    r = part_twice(c, err);
    return r < 0 ? r : img_vdi_pack(c->layer, NULL, err);
}

int img_vdi_check(struct img_layer *layer,
                  const struct img_check_options *opts,
                  const struct img_job *job, struct img_check_result *result,
                  struct img_error *err)
{
    struct img_vdi *v = layer->state;
    struct checking c = {
        .layer = layer, .opts = opts, .result = result,
        .repair_all = opts->repair == IMG_REPAIR_ALL,
    };
    bool count_wrong;
    int r;

    if (opts->repair) {
        r = img_vdi_sync(layer, err);
        if (r < 0)
            return r;
    }
    r = seen_init(&c.seen, v, err);
    if (r == 0)
        r = look_at_map(&c, job, err);
    if (r == 0) {
        count_wrong = look_at_count(&c);
        if (opts->repair && !result->errors &&
            (count_wrong || result->errors_fixed))
            r = repair(&c, err);
        else
            result->leaks += result->leaks_fixed, result->leaks_fixed = 0;
    }
    free(c.seen.bits);
    free(c.twice.at);
    return r;
}
