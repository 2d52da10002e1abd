/* On the file: magic, size, names of the backing file and its format, then
 * one record for each cluster; clusters behind that.  The table is read at
 * open and written at sync. */
#include "tiny.h"
#include "raw/raw.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/strings.h"
#include "base/sync.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

enum { HEADER = 1024, RECORD = 24, SIZE_AT = 8, NAME_AT = 16, FMT_AT = 512 };
enum { ABSENT, ZERO, DATA };

int tiny_corrupt;
enum tiny_lie tiny_lie;

struct cluster {
    uint64_t host;              /* 0 = none */
    uint32_t packed;            /* > 0: of so many bytes */
    uint8_t state[TINY_BLOCKS];
    bool shared;
};

struct tiny {
    struct img_mutex lock;
    struct cluster *map;
    size_t n;
    uint64_t end;
    uint64_t *unused;
    size_t n_unused;
};

static int tiny_probe(const uint8_t *head, size_t len, const char *path)
{
    return len >= 4 && !memcmp(head, "TINY", 4) ? 100 : 0;
}

static uint64_t table_end(size_t n)
{
    return img_round_up(HEADER + n * RECORD, TINY_CLUSTER);
}

static int corrupt(struct img_layer *l, struct img_error *err)
{
    if (__atomic_load_n(&tiny_corrupt, __ATOMIC_RELAXED) <= 0)
        return 0;
    tiny_corrupt--;
    return img_fail(err, IMG_ECORRUPT, "%s: corrupt on demand", l->path);
}

static int tiny_open(struct img_layer *l, const struct img_open_options *opts,
                     struct img_error *err)
{
    struct tiny *t = calloc(1, sizeof *t);
    uint8_t head[HEADER], *table;
    uint64_t length = 0;
    int r;

    l->state = t;
    img_mutex_init(&t->lock);
    r = img_file_pread(l->files[0], head, sizeof head, 0, err);
    if (r < 0)
        return r;
    if (memcmp(head, "TINY", 4))
        return img_fail(err, EINVAL, "%s: is no tiny image", l->path);
    l->size = img_get_be64(head + SIZE_AT);
    l->cluster_bits = TINY_BITS;
    l->block = TINY_BLOCK;
    if (head[NAME_AT])
        l->backing = strdup((char *)head + NAME_AT);
    if (head[FMT_AT])
        l->backing_format = strdup((char *)head + FMT_AT);
    t->n = img_div_up(l->size, TINY_CLUSTER);
    t->map = calloc(t->n + 1, sizeof *t->map);
    t->unused = calloc(3 * t->n + 64, sizeof *t->unused);
    table = calloc(t->n + 1, RECORD);
    r = img_file_pread(l->files[0], table, t->n * RECORD + 1, HEADER, err);
    for (size_t i = 0; i < t->n; i++) {
        t->map[i].host = img_get_be64(table + i * RECORD);
        t->map[i].packed = img_get_be32(table + i * RECORD + 8);
        memcpy(t->map[i].state, table + i * RECORD + 12, TINY_BLOCKS);
        t->map[i].shared = table[i * RECORD + 16];
    }
    free(table);
    if (r == 0)
        r = img_file_size(l->files[0], &length, err);
    t->end = img_round_up(IMG_MAX(length, table_end(t->n)), TINY_CLUSTER);
    return r;
}

static void tiny_close(struct img_layer *l)
{
    struct tiny *t = l->state;

    img_mutex_destroy(&t->lock);
    free(t->map);
    free(t->unused);
    free(t);
}

static int tiny_create(struct img_build *b, struct img_error *err)
{
    uint8_t head[HEADER] = "TINY";
    size_t n = img_div_up(b->opts->disk_size, TINY_CLUSTER);
    int r;

    img_put_be64(head + SIZE_AT, b->opts->disk_size);
    if (b->opts->backing)
        strcpy((char *)head + NAME_AT, b->opts->backing);
    if (b->opts->backing_format && !img_setting(b->opts->settings, "forget"))
        strcpy((char *)head + FMT_AT, b->opts->backing_format);
    r = img_file_pwrite(b->file, head, sizeof head, 0, err);
    return r < 0 ? r : img_file_truncate(b->file, table_end(n), err);
}

static int tiny_map(struct img_layer *l, uint64_t off, uint64_t len,
                    unsigned flags, struct img_run *run,
                    struct img_error *err)
{
    static const enum img_run_kind kinds[] = {
        IMG_RUN_ABSENT, IMG_RUN_ZERO, IMG_RUN_DATA,
    };
    struct tiny *t = l->state;
    uint64_t in = off % TINY_CLUSTER, end;
    struct cluster c;
    unsigned b = in / TINY_BLOCK, i;
    int r = corrupt(l, err);

    if (r < 0)
        return r;
    img_lock(&t->lock);
    c = t->map[off / TINY_CLUSTER];
    img_unlock(&t->lock);
    *run = (struct img_run){ .off = off, .host = UINT64_MAX };
    if (c.packed) {
        run->kind = IMG_RUN_PACKED;
        run->host = c.host;
        run->host_max = c.packed;
        run->codec = IMG_CODEC_DEFLATE;
        end = TINY_CLUSTER;
    } else {
        for (i = b; i < TINY_BLOCKS && c.state[i] == c.state[b]; i++)
            ;
        end = i * TINY_BLOCK;
        run->kind = kinds[c.state[b]];
        if (c.state[b] != ABSENT && c.host)
            run->host = c.host + in;
    }
    run->len = IMG_MIN(len, end - in);
    if (tiny_lie == TINY_MAP_NOTHING)
        run->len = 0;
    if (tiny_lie == TINY_MAP_LONG)
        run->len = len + 1;
    if (tiny_lie == TINY_MAP_ELSEWHERE)
        run->off++;
    if (tiny_lie == TINY_MAP_NO_FILE)
        run->file = 9;
    return 0;
}

static void lie_of_place(const struct img_want *w, struct img_place *p)
{
    switch (tiny_lie) {
    case TINY_PLACE_NOTHING: p->len = 0; break;
    case TINY_PLACE_LONG: p->len = w->len + 1; break;
    case TINY_PLACE_ELSEWHERE: p->off++; break;
    case TINY_PLACE_NO_FILE: p->file = 9; break;
    case TINY_PLACE_FILLS_LATE: p->fill_off = p->off + 1; break;
    case TINY_PLACE_FILLS_LITTLE: p->fill_len = 1; break;
    case TINY_PLACE_BEFORE_FILE: p->fill_off = 0; p->host = 1; break;
    default: break;
    }
}

static uint64_t take(struct tiny *t, bool *zeroed)
{
    uint64_t host = t->end;

    *zeroed = !t->n_unused;
    if (t->n_unused)
        return t->unused[--t->n_unused];
    t->end += TINY_CLUSTER;
    return host;
}

static void give(struct tiny *t, struct cluster *c)
{
    if (c->host && !c->shared)
        t->unused[t->n_unused++] = c->host;
    c->host = 0;
    c->packed = 0;
    c->shared = false;
}

static void reserve(struct tiny *t, const struct img_layer *l,
                    const struct img_want *w, struct img_place *p)
{
    struct cluster *c = &t->map[w->off / TINY_CLUSTER];
    uint64_t base = img_round_down(w->off, TINY_CLUSTER);
    uint64_t in = w->off - base, end = IMG_MIN(base + TINY_CLUSTER, l->size);
    bool own = c->host && !c->packed && !c->shared;
    unsigned b = in / TINY_BLOCK, i;

    *p = (struct img_place){ .off = w->off, .packed = w->packed };
    if (!w->packed && own && c->state[b] == DATA) {
        for (i = b; i < TINY_BLOCKS && c->state[i] == DATA; i++)
            ;
        p->len = IMG_MIN(w->len, i * TINY_BLOCK - in);
        p->host = c->host + in;
        return;
    }
    if (w->in_place)
        return;
    p->fresh = true;
    p->len = IMG_MIN(w->len, end - w->off);
    p->token = c->host;
    if (w->packed) {
        p->host = p->token = take(t, &p->zeroed);
        p->fill_off = base;
        p->fill_len = end - base;
        return;
    }
    p->fill_off = base;
    p->fill_len = end - base;
    if (!own)
        p->token = take(t, &p->zeroed);
    if (own || !c->host) {
        for (i = b; i < TINY_BLOCKS && c->state[i] != DATA; i++)
            ;
        p->len = IMG_MIN(p->len, i * TINY_BLOCK - in);
        p->fill_off = img_round_down(w->off, TINY_BLOCK);
        p->fill_len = IMG_MIN(img_round_up(w->off + p->len, TINY_BLOCK),
                              l->size) - p->fill_off;
    }
    p->host = p->token + in;
}

static int tiny_reserve(struct img_layer *l, const struct img_want *w,
                        struct img_place *p, struct img_error *err)
{
    struct tiny *t = l->state;
    int r = corrupt(l, err);

    if (r < 0)
        return r;
    img_lock(&t->lock);
    reserve(t, l, w, p);
    img_unlock(&t->lock);
    lie_of_place(w, p);
    return 0;
}

static int tiny_publish(struct img_layer *l, const struct img_place *p,
                        struct img_error *err)
{
    struct tiny *t = l->state;
    struct cluster *c = &t->map[p->off / TINY_CLUSTER];
    int r = corrupt(l, err);

    if (r < 0)
        return r;
    img_lock(&t->lock);
    if (c->host != p->token)
        give(t, c);
    c->host = p->token;
    c->packed = p->packed;
    for (uint64_t at = p->fill_off; at < p->fill_off + p->fill_len;
         at += TINY_BLOCK)
        c->state[at % TINY_CLUSTER / TINY_BLOCK] = DATA;
    img_unlock(&t->lock);
    return 0;
}

static void tiny_abandon(struct img_layer *l, const struct img_place *p)
{
    struct tiny *t = l->state;

    img_lock(&t->lock);
    if (t->map[p->off / TINY_CLUSTER].host != p->token)
        t->unused[t->n_unused++] = p->token;
    img_unlock(&t->lock);
}

static int change(struct tiny *t, struct cluster *c, unsigned from,
                  unsigned to, bool whole, enum img_unmap mode)
{
    if (mode == IMG_UNMAP_DROP) {
        if (!whole)
            return -EINVAL;
        give(t, c);
        memset(c->state, ABSENT, sizeof c->state);
        return 0;
    }
    if (!whole && (c->packed || c->shared))
        return -ENOTSUP;
    if (!whole && mode == IMG_UNMAP_DISCARD)
        return 0;
    if (whole && (mode != IMG_UNMAP_ZERO_KEEP || c->packed || c->shared))
        give(t, c);
    for (unsigned b = from; b < to; b++)
        c->state[b] = ZERO;
    return 0;
}

/* One cluster at a time, so that callers have to come again. */
static int tiny_unmap(struct img_layer *l, uint64_t off, uint64_t len,
                      enum img_unmap mode, uint64_t *done,
                      struct img_error *err)
{
    struct tiny *t = l->state;
    uint64_t base = img_round_down(off, TINY_CLUSTER);
    uint64_t end = IMG_MIN(off + len, base + TINY_CLUSTER);
    bool whole = off == base &&
                 (end == l->size || end == base + TINY_CLUSTER);
    int r = corrupt(l, err);

    if (r < 0)
        return r;
    if (off % TINY_BLOCK || (end % TINY_BLOCK && end != l->size))
        return img_fail(err, EINVAL, "%s: unmap is not aligned", l->path);
    *done = end - off;
    img_lock(&t->lock);
    r = change(t, &t->map[off / TINY_CLUSTER], (off - base) / TINY_BLOCK,
               whole ? TINY_BLOCKS
                     : (unsigned)img_div_up(end - base, TINY_BLOCK),
               whole, mode);
    img_unlock(&t->lock);
    if (tiny_lie == TINY_UNMAP_NOTHING)
        *done = 0;
    if (tiny_lie == TINY_UNMAP_LONG)
        *done = len + 1;
    return r < 0 ? img_fail(err, -r, "%s: unmap", l->path) : 0;
}

static int tiny_sync(struct img_layer *l, struct img_error *err)
{
    struct tiny *t = l->state;
    uint8_t *table = calloc(t->n + 1, RECORD);
    int r;

    img_lock(&t->lock);
    for (size_t i = 0; i < t->n; i++) {
        img_put_be64(table + i * RECORD, t->map[i].host);
        img_put_be32(table + i * RECORD + 8, t->map[i].packed);
        memcpy(table + i * RECORD + 12, t->map[i].state, TINY_BLOCKS);
        table[i * RECORD + 16] = t->map[i].shared;
    }
    img_unlock(&t->lock);
    r = img_file_pwrite(l->files[0], table, t->n * RECORD + 1, HEADER, err);
    free(table);
    return r < 0 ? r : img_file_sync(l->files[0], err);
}

static int tiny_codec(struct img_layer *l, enum img_codec *codec,
                      struct img_error *err)
{
    *codec = IMG_CODEC_DEFLATE;
    return 0;
}

void tiny_share(struct img_layer *l)
{
    struct tiny *t = l->state;

    for (size_t i = 0; i < t->n; i++)
        t->map[i].shared = t->map[i].host != 0;
}

unsigned tiny_used(struct img_layer *l)
{
    struct tiny *t = l->state;
    unsigned used = 0;

    for (size_t i = 0; i < t->n; i++)
        used += t->map[i].host != 0;
    return used;
}

static const struct img_option_info tiny_options[] = {
    { "size", "size", "Virtual disk size", 0 },
    { "backing_file", "str", "Backing file", 0 },
    { "backing_fmt", "str", "Its format", 0 },
    { "forget", "on|off", "Does not record the backing format", 0 },
    { NULL, NULL, NULL, 0 }
};

const struct img_format tiny_format = {
    .info = { "tiny", IMG_CAN_WRITE | IMG_CAN_CREATE | IMG_CAN_BACK |
              IMG_CAN_COMPRESS, tiny_options },
    .probe = tiny_probe, .open = tiny_open, .close = tiny_close,
    .create = tiny_create, .codec = tiny_codec, .map = tiny_map,
    .reserve = tiny_reserve, .publish = tiny_publish,
    .abandon = tiny_abandon, .unmap = tiny_unmap, .sync = tiny_sync,
};

/* Instead of libimg/formats.c. */
const struct img_format *const img_formats[] = {
    &img_format_raw, &tiny_format, NULL
};

const struct img_format *img_format_find(const char *name)
{
    for (size_t i = 0; img_formats[i]; i++)
        if (!strcmp(img_formats[i]->info.name, name))
            return img_formats[i];
    return NULL;
}
