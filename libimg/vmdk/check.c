/* Checking sparse extents: every grain inside the file and used once, both
 * copies of the tables equal; and mending that.
 *
 * The file is looked over in windows with one bit per sector, so that the
 * memory is bounded whatever the image says.  A redundant copy that is
 * merely behind or ahead counts as a leak: a crash may leave it so.
 */
#include "vmdk/vmdk.h"
#include "cache/tcache.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE = 4096 };                /* what a host can give back */
#define WINDOW (UINT64_C(1) << 29)          /* sectors: 256 GiB, 64 MiB bits */

struct check {
    struct img_layer *layer;
    const struct img_check_options *opts;
    const struct img_job *job;
    struct img_check_result *res;
    struct vmdk_extent *x;
    struct vmdk_sparse *s;
    bool mend, mend_leaks;
    bool packed;                    /* and can be rebuilt */
    uint64_t sectors;               /* of the file, when we began */
    uint64_t from, to;              /* the window */
    uint8_t *used;
    uint64_t last_host;
    bool empty;                     /* the table is, its other copy is not */
};

static void say(struct check *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static void say(struct check *c, const char *fmt, ...)
{
    char text[400];
    va_list ap;

    if (!c->opts->report)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    c->opts->report(c->opts->report_opaque, text);
}

/* Marks sectors; returns whether one of them was marked already. */
static bool mark(struct check *c, uint64_t first, uint64_t n)
{
    uint64_t end = IMG_MIN(first + n, c->to);
    bool twice = false;

    for (uint64_t i = IMG_MAX(first, c->from); i < end; i++) {
        uint8_t *byte = &c->used[(i - c->from) / 8];
        uint8_t bit = (uint8_t)(1u << (i - c->from) % 8);

        twice |= *byte & bit;
        *byte |= bit;
    }
    return twice;
}

static bool table_inside(const struct check *c, const uint32_t *gd, size_t g)
{
    uint64_t off = img_vmdk_table_off(c->s, gd, g);

    return off >= VMDK_SECTOR && img_inside(off, c->s->gt_len,
                                            c->s->file_len);
}

static void mark_tables(struct check *c, const uint32_t *gd, const char *what)
{
    struct vmdk_sparse *s = c->s;

    for (size_t g = 0; gd && g < s->n_gd; g++) {
        if (!gd[g] || !table_inside(c, gd, g))
            continue;
        if (mark(c, img_vmdk_table_off(s, gd, g) / VMDK_SECTOR,
                 s->gt_len / VMDK_SECTOR)) {
            c->res->errors++;
            say(c, "ERROR %s %zu lies over other metadata", what, g);
        }
    }
}

static void mark_metadata(struct check *c)
{
    struct vmdk_state *st = c->layer->state;
    struct vmdk_sparse *s = c->s;
    uint64_t gd = img_div_up(s->n_gd * (uint64_t)s->entry, VMDK_SECTOR);

    mark(c, 0, s->h.kind == VMDK_COWD ? 4 : 1);
    if (!c->x->file && st->text_room)
        mark(c, st->text_off / VMDK_SECTOR, st->text_room / VMDK_SECTOR);
    mark(c, s->gd_off / VMDK_SECTOR, gd);
    if (s->rgd)
        mark(c, s->rgd_off / VMDK_SECTOR, gd);
    mark_tables(c, s->gd, "Grain table");
    mark_tables(c, s->rgd, "Redundant grain table");
}

/* Header or file end: the directory itself is not there.  A new one at the
 * end of the file, and tables that hold what the other copy's do. */
static int new_directory(struct check *c, struct img_error *err)
{
    struct vmdk_sparse *s = c->s;
    uint64_t len = img_round_up(IMG_MAX(s->n_gd, (size_t)1) * 4, VMDK_SECTOR);
    uint64_t at = s->next, end;
    uint32_t *list = calloc(s->n_gd + 1, sizeof *list);
    int r;

    if (!list)
        return img_fail_nomem(err);
    end = img_round_up(at + len, UINT64_C(1) << s->grain_bits);
    r = img_vmdk_grow_file(s, end, err);
    if (r == 0)
        r = img_file_write_zeros(s->file, at, len, err);
    if (r) {
        free(list);
        return r;
    }
    img_tcache_forget(c->layer->tables, s->file, 0, UINT64_MAX);
    s->next = end;
    if (s->gd_broken) {
        s->rgd = s->gd;
        s->rgd_off = s->gd_off;
        s->gd = list;
        s->gd_off = at;
    } else {
        s->rgd = list;
        s->rgd_off = at;
    }
    return 0;
}

static int mend_table(struct check *c, size_t g, bool second,
                      struct img_error *err);

static int mend_directory(struct check *c, struct img_error *err)
{
    struct vmdk_sparse *s = c->s;
    bool second = s->rgd_broken;
    int r = new_directory(c, err);

    for (size_t g = 0; g < s->n_gd && r == 0; g++) {
        const uint32_t *other = second ? s->gd : s->rgd;

        if (other[g] && table_inside(c, other, g))
            r = mend_table(c, g, second, err);
        if (r == 0 && img_tcache_is_full(c->layer->tables))
            r = img_vmdk_write_back(c->layer, err);
    }
    if (r == 0)
        r = img_vmdk_write_back(c->layer, err);
    if (r == 0)
        r = img_vmdk_write_header(s, s->h.capacity, s->gd_off, s->rgd_off,
                                  err);
    if (r)
        return r;
    s->gd_broken = s->rgd_broken = false;
    c->res->errors_fixed++;
    return 0;
}

/* A directory entry that points outside: a new table, with the other copy's
 * entries where that is there. */
static int mend_table(struct check *c, size_t g, bool second,
                      struct img_error *err)
{
    struct vmdk_state *st = c->layer->state;
    struct vmdk_sparse *s = c->s;
    uint32_t *gd = second ? s->rgd : s->gd;
    const uint32_t *other = second ? s->gd : s->rgd;
    struct img_slice *from = NULL, *slices[2];
    int r = 0;

    if (other && other[g] && table_inside(c, other, g))
        r = img_vmdk_table_get(c->layer, s, g, !second, &from, err);
    if (r)
        return r;
    img_write_lock(&st->lock);
    gd[g] = 0;
    /* The other one's turn would come, but a table is made with both. */
    if (!from && !second && s->rgd && s->rgd[g])
        s->rgd[g] = 0;
    img_rw_unlock(&st->lock);
    r = img_vmdk_tables_get(c->layer, s, g, slices, err);
    if (r == 0) {
        img_write_lock(&st->lock);
        for (uint32_t i = 0; from && i < s->h.gt_entries; i++)
            img_vmdk_set_entry(c->layer, slices, i,
                               img_get_le32(from->data + 4 * (size_t)i));
        img_rw_unlock(&st->lock);
        img_vmdk_tables_put(c->layer, slices);
    }
    if (from)
        img_tcache_put(c->layer->tables, from);
    return r;
}

/* A table is missing that the other copy has: a crash may leave it so, and
 * so does a directory that was overwritten with zeros. */
static int missing_table(struct check *c, size_t g, bool second,
                         struct img_error *err)
{
    int r;

    c->res->leaks++;
    say(c, "Leaked %s %zu is missing, the other copy has one",
        second ? "redundant grain table" : "grain table", g);
    if (!c->mend_leaks)
        return 0;
    r = mend_table(c, g, second, err);
    if (r == 0)
        c->res->leaks_fixed++;
    return r;
}

static int check_directory(struct check *c, bool second,
                           struct img_error *err)
{
    const uint32_t *gd = second ? c->s->rgd : c->s->gd;
    const uint32_t *other = second ? c->s->gd : c->s->rgd;
    int r = 0;

    for (size_t g = 0; gd && g < c->s->n_gd && r == 0; g++) {
        if (!gd[g]) {
            if (other && other[g] && table_inside(c, other, g))
                r = missing_table(c, g, second, err);
            continue;
        }
        if (table_inside(c, gd, g))
            continue;
        c->res->errors++;
        say(c, "ERROR %s %zu at 0x%llx does not lie in the file",
            second ? "redundant grain table" : "grain table", g,
            (unsigned long long)img_vmdk_table_off(c->s, gd, g));
        if (!c->mend)
            continue;
        r = mend_table(c, g, second, err);
        c->res->errors_fixed += r == 0;
    }
    return r;
}

static uint64_t sector_of(const struct check *c, size_t g, uint32_t i)
{
    return (((uint64_t)g << c->s->gt_bits) + i) * c->s->h.grain;
}

/* How many sectors the grain of this sector, at host, takes; 0 = it is not in
 * the file, or packed and another one; UNREAD = nobody knows. */
#define UNREAD UINT64_MAX

static uint64_t grain_sectors(struct check *c, uint64_t sector, uint64_t host)
{
    struct vmdk_sparse *s = c->s;
    uint8_t marker[VMDK_GRAIN_MARKER];
    uint64_t len = UINT64_C(1) << s->grain_bits;

    if (s->h.compressed && s->markers) {
        if (!img_inside(host, sizeof marker, s->file_len))
            return 0;
        if (img_file_pread(s->file, marker, sizeof marker, host, NULL)) {
            c->res->check_errors++;
            return UNREAD;
        }
        if (img_get_le64(marker) != sector || !img_get_le32(marker + 8))
            return 0;
        len = (uint64_t)img_get_le32(marker + 8) + sizeof marker;
    } else if (s->h.compressed) {
        len = VMDK_SECTOR;
    }
    /* The last grain need not be whole. */
    return host < s->file_len && img_inside(host, 1, s->file_len) &&
                   (!s->h.compressed || img_inside(host, len, s->file_len))
               ? img_div_up(len, VMDK_SECTOR) : 0;
}

/* A grain that something else uses too gets a place of its own, with the
 * same bytes. */
static int move_grain(struct check *c, struct img_slice *slices[2],
                      uint32_t i, uint64_t host, struct img_error *err)
{
    struct vmdk_state *st = c->layer->state;
    struct vmdk_sparse *s = c->s;
    size_t len = (size_t)1 << s->grain_bits;
    void *buf = malloc(len);
    uint64_t to = 0;
    bool zeroed;
    int r;

    r = buf ? img_file_pread(s->file, buf, len, host, err)
            : img_fail_nomem(err);
    img_write_lock(&st->lock);
    if (r == 0)
        r = img_vmdk_take_grains(s, 1, &to, &zeroed, err);
    img_rw_unlock(&st->lock);
    if (r == 0)
        r = img_file_pwrite(s->file, buf, len, to, err);
    free(buf);
    if (r)
        return r;
    img_write_lock(&st->lock);
    img_vmdk_set_entry(c->layer, slices, i, (uint32_t)(to / VMDK_SECTOR));
    img_rw_unlock(&st->lock);
    c->res->errors_fixed++;
    return 0;
}

static void set_one(struct check *c, struct img_slice *slice, uint32_t i,
                    uint32_t v)
{
    struct vmdk_state *st = c->layer->state;
    struct img_slice *one[2] = { slice, NULL };

    img_write_lock(&st->lock);
    img_vmdk_set_entry(c->layer, one, i, v);
    img_rw_unlock(&st->lock);
}

/* An entry that says nothing of its own: a place outside the file, or a table
 * that has nothing at all, as one has that never came to the disk or was
 * overwritten with zeros.  What its other copy says is not to be lost then. */
static bool says_nothing(struct check *c, uint64_t sector, uint32_t v)
{
    if (!v)
        return c->empty;
    if (v == 1 && c->s->zero_grain)
        return false;
    return v == 1 || !grain_sectors(c, sector, (uint64_t)v * VMDK_SECTOR);
}

/* Compares entry i of both copies; the first one counts, unless it says
 * nothing. */
static void compare_copies(struct check *c, struct img_slice *slices[2],
                           size_t g, uint32_t i)
{
    uint32_t a, b;
    bool behind;

    if (!slices[1])
        return;
    a = img_get_le32(slices[0]->data + 4 * (size_t)i);
    b = img_get_le32(slices[1]->data + 4 * (size_t)i);
    if (a == b)
        return;
    behind = a <= 1 || b <= 1;
    say(c, "%s grain table %zu, entry %u: %u, but %u in the redundant copy",
        behind ? "Leaked" : "ERROR", g, i, a, b);
    if (behind)
        c->res->leaks++;
    else
        c->res->errors++;
    if (!(behind ? c->mend_leaks : c->mend))
        return;
    if (says_nothing(c, sector_of(c, g, i), a))
        set_one(c, slices[0], i, b);
    else
        set_one(c, slices[1], i, a);
    if (behind)
        c->res->leaks_fixed++;
    else
        c->res->errors_fixed++;
}

static void count(struct check *c, uint64_t host, uint64_t n)
{
    struct img_check_result *res = c->res;

    res->allocated++;
    res->compressed += c->s->h.compressed;
    res->fragmented += c->last_host && host != c->last_host;
    c->last_host = host + n * VMDK_SECTOR;
    res->end_offset = IMG_MAX(res->end_offset, c->last_host);
}

static int check_entry(struct check *c, struct img_slice *slices[2], size_t g,
                       uint32_t i, bool first, struct img_error *err)
{
    uint64_t host = 0, n;
    enum vmdk_grain_kind kind;

    if (first)
        compare_copies(c, slices, g, i);
    kind = img_vmdk_grain(c->s, slices[0]->data, i, &host);
    if (kind == VMDK_GRAIN_ABSENT || kind == VMDK_GRAIN_ZERO)
        return 0;
    n = kind == VMDK_GRAIN_DATA ? grain_sectors(c, sector_of(c, g, i), host)
                                : 0;
    if (n == UNREAD)
        return 0;
    if (!n) {
        if (!first)
            return 0;
        c->res->errors++;
        say(c, "ERROR grain table %zu, entry %u: grain at 0x%llx does not "
            "lie in the file", g, i, (unsigned long long)host);
        if (c->mend) {
            struct vmdk_state *st = c->layer->state;

            img_write_lock(&st->lock);
            img_vmdk_set_entry(c->layer, slices, i, 0);
            img_rw_unlock(&st->lock);
            c->res->errors_fixed++;
        }
        return 0;
    }
    if (first)
        count(c, host, n);
    if (!mark(c, host / VMDK_SECTOR, n))
        return 0;
    c->res->errors++;
    say(c, "ERROR grain table %zu, entry %u: the grain at 0x%llx is used "
        "twice", g, i, (unsigned long long)host);
    return c->mend ? move_grain(c, slices, i, host, err) : 0;
}

static bool is_empty(const struct img_slice *table)
{
    for (uint32_t i = 0; i < table->len; i++)
        if (table->data[i])
            return false;
    return true;
}

static int check_table(struct check *c, size_t g, bool first,
                       struct img_error *err)
{
    struct vmdk_sparse *s = c->s;
    struct img_slice *slices[2] = { NULL, NULL };
    uint64_t left = img_div_up(c->x->len, UINT64_C(1) << s->grain_bits) -
                    ((uint64_t)g << s->gt_bits);
    uint32_t n = (uint32_t)IMG_MIN(left, (uint64_t)s->h.gt_entries);
    int r;

    if (!s->gd[g] || !table_inside(c, s->gd, g))
        return 0;
    r = img_vmdk_table_get(c->layer, s, g, false, &slices[0], err);
    if (r)
        return r;
    if (s->rgd && s->rgd[g] && table_inside(c, s->rgd, g))
        r = img_vmdk_table_get(c->layer, s, g, true, &slices[1], err);
    c->empty = slices[1] && is_empty(slices[0]) && !is_empty(slices[1]);
    for (uint32_t i = 0; i < n && r == 0; i++)
        r = check_entry(c, slices, g, i, first, err);
    if (slices[1])
        img_tcache_put(c->layer->tables, slices[1]);
    img_tcache_put(c->layer->tables, slices[0]);
    if (r == 0 && img_tcache_is_full(c->layer->tables))
        r = img_vmdk_write_back(c->layer, err);
    return r;
}

static int check_tables(struct check *c, bool first, struct img_error *err)
{
    const struct img_job *job = c->job;
    uint64_t windows = img_div_up(c->sectors, WINDOW);
    uint64_t done = c->from / WINDOW * c->s->n_gd;
    int r = 0;

    for (size_t g = 0; g < c->s->n_gd && r == 0; g++) {
        r = check_table(c, g, first, err);
        if (r == 0 && job && job->progress && g % 64 == 0 &&
            job->progress(job->opaque, done + g, windows * c->s->n_gd))
            r = img_fail(err, ECANCELED, "%s: check was stopped",
                         c->layer->path);
    }
    return r;
}

/* Sectors [first, end) belong to nothing: a leak as far as they take space
 * on the host. */
static int check_gap(struct check *c, uint64_t first, uint64_t end,
                     struct img_error *err)
{
    uint64_t off = img_round_up(first * VMDK_SECTOR, PAGE);
    uint64_t to = img_round_down(end * VMDK_SECTOR, PAGE);
    uint64_t left = to > off ? to - off : 0, data = 0, run, n;
    bool is_data;
    int r = 0;

    while (left && r == 0) {
        r = img_file_extent(c->s->file, off, left, &is_data, &run, err);
        if (r == 0 && is_data)
            data += run;
        off += run;
        left -= run;
    }
    n = data >> c->s->grain_bits;
    if (r || !n)
        return r;
    c->res->leaks += n;
    say(c, "Leaked %llu grains at 0x%llx", (unsigned long long)n,
        (unsigned long long)(first * VMDK_SECTOR));
    if (!c->mend_leaks)
        return 0;
    r = img_file_discard(c->s->file, first * VMDK_SECTOR,
                         (end - first) * VMDK_SECTOR, err);
    if (r == 0)
        c->res->leaks_fixed += n;
    return r;
}

static bool is_used(const struct check *c, uint64_t sector)
{
    return c->used[(sector - c->from) / 8] >> (sector - c->from) % 8 & 1;
}

/* The first sector behind `at` that is not as `at` is. */
static uint64_t next_change(const struct check *c, uint64_t at)
{
    bool used = is_used(c, at);
    uint8_t like = used ? 0xff : 0;

    while (++at < c->to && is_used(c, at) == used)
        while ((at - c->from) % 8 == 0 && at + 8 < c->to &&
               c->used[(at - c->from) / 8 + 1] == like &&
               c->used[(at - c->from) / 8] == like)
            at += 8;
    return IMG_MIN(at, c->to);
}

/* Streams have markers between their grains; those are no leaks.  On a device
 * what is between grains is used again after the next opening. */
static int check_gaps(struct check *c, struct img_error *err)
{
    uint64_t at = IMG_MAX(c->from, IMG_MIN(c->s->h.overhead, c->to)), end;
    int r = 0;

    if (c->s->h.compressed || c->s->h.kind == VMDK_SE ||
        c->s->file->is_device)
        return 0;
    while (at < c->to && r == 0) {
        end = next_change(c, at);
        if (is_used(c, at)) {
            at = end;
            continue;
        }
        r = check_gap(c, at, end, err);
        at = end;
    }
    return r;
}

/* Tables of one directory that overlap: what the other directory says of
 * those parts is the only thing that can be true of all of them. */
static int part_tables(struct check *c, bool second, struct img_error *err)
{
    const uint32_t *gd = second ? c->s->rgd : c->s->gd;
    const uint32_t *other = second ? c->s->gd : c->s->rgd;
    uint32_t *shared = NULL, *also = NULL;
    size_t n = 0, n_also = 0;
    int r = 0;

    if (!c->mend || !gd || !other)
        return 0;
    r = img_vmdk_tables_shared(c->s, gd, &shared, &n, err);
    if (r == 0 && n)
        r = img_vmdk_tables_shared(c->s, other, &also, &n_also, err);
    for (size_t g = 0; g < c->s->n_gd && r == 0 && n; g++) {
        if (!img_vmdk_is_shared(shared, n, gd[g]) || !other[g] ||
            img_vmdk_is_shared(also, n_also, other[g]) ||
            !table_inside(c, other, g))
            continue;
        say(c, "ERROR %s %zu lies over another one; the other copy is used",
            second ? "redundant grain table" : "grain table", g);
        c->res->errors++;
        r = mend_table(c, g, second, err);
        c->res->errors_fixed += r == 0;
    }
    free(shared);
    free(also);
    return r;
}

static int check_directories(struct check *c, struct img_error *err)
{
    struct vmdk_sparse *s = c->s;
    int r = 0;

    if (s->gd_broken || s->rgd_broken) {
        c->res->errors++;
        say(c, "ERROR the %sgrain directory does not lie in the file",
            s->rgd_broken ? "redundant " : "");
        if (c->mend)
            r = mend_directory(c, err);
    }
    if (r == 0)
        r = part_tables(c, false, err);
    if (r == 0)
        r = part_tables(c, true, err);
    if (r == 0)
        r = check_directory(c, false, err);
    return r ? r : check_directory(c, true, err);
}

/* VMware marks an extent so while it writes it.  Byte 72 of the header. */
static int check_closed(struct check *c, uint64_t errors_before,
                        struct img_error *err)
{
    struct img_check_result *res = c->res;
    struct vmdk_sparse *s = c->s;
    uint8_t no = 0;
    int r;

    if (!s->h.unclean)
        return 0;
    say(c, "%s was not closed by the program that wrote it last",
        s->file->path);
    if (!c->mend || res->errors - errors_before > res->errors_fixed)
        return 0;
    r = img_vmdk_write_back(c->layer, err);
    if (r == 0)
        r = img_file_pwrite(s->file, &no, 1, 72, err);
    if (r == 0)
        s->h.unclean = false;
    return r;
}

static int check_windows(struct check *c, struct img_error *err)
{
    struct vmdk_sparse *s = c->s;
    int r = 0;

    c->sectors = img_div_up(s->file->is_device ? s->next : s->file_len,
                            VMDK_SECTOR);
    c->used = malloc((size_t)(IMG_MIN(c->sectors, WINDOW) / 8 + 1));
    if (!c->used)
        return img_fail_nomem(err);
    for (c->from = 0; c->from < c->sectors && r == 0; c->from += WINDOW) {
        c->to = IMG_MIN(c->from + WINDOW, c->sectors);
        memset(c->used, 0, (size_t)((c->to - c->from) / 8 + 1));
        mark_metadata(c);
        r = check_tables(c, !c->from, err);
        if (r == 0)
            r = check_gaps(c, err);
    }
    free(c->used);
    return r;
}

/* A packed extent with errors: its tables anew, from the markers.  before:
 * the result without this extent. */
static int rebuild(struct check *c, const struct img_check_result *before,
                   struct img_error *err)
{
    static const struct img_check_options silent = { 0 };
    struct img_check_result *res = c->res, again = { 0 };
    struct check second = *c;
    uint64_t had = res->allocated - before->allocated;
    int r = img_vmdk_rebuild(c->layer, c->x, c->job, err);

    if (r)
        return r;
    second.opts = &silent;
    second.res = &again;
    second.last_host = 0;
    r = check_windows(&second, err);
    if (r)
        return r;
    res->errors_fixed += res->errors - before->errors - IMG_MIN(again.errors,
                         res->errors - before->errors);
    res->check_errors += again.check_errors;
    res->allocated = before->allocated + again.allocated;
    res->compressed = before->compressed + again.compressed;
    res->fragmented = before->fragmented + again.fragmented;
    res->end_offset = IMG_MAX(before->end_offset, again.end_offset);
    say(c, "%s has new grain tables: they name %llu grains, the old ones "
        "named %llu; what no marker leads to reads as zeros",
        c->s->file->path, (unsigned long long)again.allocated,
        (unsigned long long)had);
    return 0;
}

static int check_extent(struct check *c, struct img_error *err)
{
    const struct img_check_result before = *c->res;
    struct vmdk_sparse *s = c->s;
    uint64_t errors = c->res->errors - c->res->errors_fixed;
    int r;

    c->last_host = 0;
    c->res->total += img_div_up(c->x->len, UINT64_C(1) << s->grain_bits);
    if (s->lost) {
        c->res->errors++;
        say(c, "ERROR the grain directory of %s is lost", s->file->path);
    }
    r = check_directories(c, err);
    if (r == 0)
        r = check_windows(c, err);
    if (r == 0 && c->packed && c->opts->repair == IMG_REPAIR_ALL &&
        c->res->errors > before.errors)
        r = rebuild(c, &before, err);
    if (r == 0)
        r = check_closed(c, errors, err);
    if (s->h.compressed && c->opts->repair &&
        c->res->errors - c->res->errors_fixed > errors)
        say(c, "%s: %s", s->file->path, c->packed
            ? "-r all makes new tables from its grains"
            : "is not repaired in place; convert --salvage copies what can "
              "be read");
    return r;
}

int img_vmdk_check(struct img_layer *layer,
                   const struct img_check_options *opts,
                   const struct img_job *job,
                   struct img_check_result *res, struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    int r = 0;

    for (size_t i = 0; i < st->n_extents && r == 0; i++) {
        struct vmdk_extent *x = &st->extents[i];
        bool writes = x->sparse && layer->writable &&
                      x->sparse->file->writable && x->sparse->entry == 4;
        bool may = writes && !x->sparse->h.compressed;
        struct check c = {
            .layer = layer, .opts = opts, .job = job, .res = res, .x = x,
            .s = x->sparse,
            .mend = may && opts->repair == IMG_REPAIR_ALL,
            .mend_leaks = may && (opts->repair & IMG_REPAIR_LEAKS),
            .packed = writes && x->sparse->h.compressed &&
                      x->sparse->markers,
        };

        if (x->sparse)
            r = check_extent(&c, err);
    }
    if (r == 0 && opts->repair && layer->writable)
        r = img_vmdk_sync(layer, err);
    return r;
}
