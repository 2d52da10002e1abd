/* reserve, publish, abandon: where the bytes of a write go.
 *
 * reserve makes every allocation, L2 tables included, under q->lock; the
 * data are written without it; publish enters the new places.  A place lies
 * within one cached slice of an L2 table.
 */
#include "qcow2/qcow2.h"
#include "base/checked.h"
#include "base/error.h"
#include "file/file.h"

#include <sys/types.h>

/* img_place.token: what abandon has to give back */
enum { TOKEN_REUSED, TOKEN_NEW };

static uint64_t block_size(const struct qcow2 *q)
{
    return UINT64_C(1) << q->block_bits;
}

static unsigned sub_of(const struct qcow2 *q, uint64_t off)
{
    return (unsigned)((off & (q->cluster_size - 1)) >> q->block_bits);
}

/* A block whose bytes may be overwritten where they are. */
static bool is_in_place(const struct qcow2 *q, const struct qcow2_entry *e,
                        unsigned sub)
{
    return e->copied && e->has_host &&
           img_qcow2_entry_sub(q, e, sub) == QCOW2_NORMAL;
}

/* How far bytes from off on live in one piece that is ours alone. */
static int in_place_run(struct qcow2 *q, const struct qcow2_cursor *c,
                        const struct img_want *w, struct img_place *p,
                        struct img_error *err)
{
    uint64_t block = block_size(q), at = img_round_down(w->off, block);
    unsigned subs = 1u << (q->cluster_bits - q->block_bits);
    unsigned sub = sub_of(q, w->off);
    uint64_t first = 0;
    bool open = true;

    for (uint32_t i = 0; open && i < c->left && at < w->off + w->len;
         i++, sub = 0) {
        struct qcow2_entry e;
        int r = img_qcow2_entry_decode(q, img_qcow2_cursor_entry(q, c, i),
                                       c->cluster + i, &e, err);
        if (r == 0)
            r = img_qcow2_entry_is_there(q, c->cluster + i, &e, err);
        if (r < 0)
            return r;
        if (i == 0)
            first = e.host;
        if (e.host != first + ((uint64_t)i << q->cluster_bits))
            break;
        for (; sub < subs && open; sub++) {
            open = is_in_place(q, &e, sub) && at < w->off + w->len;
            if (open)
                at += block;
        }
    }
    p->off = w->off;
    p->len = at > w->off ? IMG_MIN(at - w->off, w->len) : 0;
    p->file = q->data;
    p->host = first + (w->off & (q->cluster_size - 1));
    p->fresh = false;
    return 0;
}

/* A cluster that has a host cluster of its own, just not (all of) its bytes:
 * zeros that kept their place, or subclusters that were never written. */
static bool is_reusable(const struct qcow2_entry *e)
{
    return e->has_host && e->copied && e->kind != QCOW2_PACKED_RUN;
}

static void set_place(struct qcow2 *q, const struct img_want *w,
                      uint64_t fill_from, uint64_t fill_to,
                      uint64_t cluster_host, struct img_place *p)
{
    uint64_t base = img_round_down(w->off, q->cluster_size);

    fill_to = IMG_MIN(fill_to, q->layer->size);
    p->off = w->off;
    p->len = IMG_MIN(w->len, fill_to - w->off);
    p->file = q->data;
    p->host = cluster_host + (w->off - base);
    p->fresh = true;
    p->fill_off = fill_from;
    p->fill_len = fill_to - fill_from;
    p->packed = 0;
}

static int reuse(struct qcow2 *q, const struct qcow2_cursor *c,
                 const struct img_want *w, const struct qcow2_entry *first,
                 struct img_place *p, struct img_error *err)
{
    uint64_t end = img_round_up(w->off + w->len, block_size(q));
    uint64_t to = (c->cluster + 1) << q->cluster_bits;
    unsigned sub = sub_of(q, w->off);

    p->token = TOKEN_REUSED;
    p->zeroed = false;
    if (img_qcow2_has_subclusters(q)) {
        uint64_t at = img_round_down(w->off, block_size(q));

        to = at;
        while (sub < QCOW2_SUBCLUSTERS && to < end &&
               img_qcow2_entry_sub(q, first, sub) != QCOW2_NORMAL) {
            to += block_size(q);
            sub++;
        }
        set_place(q, w, at, to, first->host, p);
        return 0;
    }
    for (uint32_t i = 1; i < c->left && to < end; i++) {
        struct qcow2_entry e;
        int r = img_qcow2_entry_decode(q, img_qcow2_cursor_entry(q, c, i),
                                       c->cluster + i, &e, err);
        if (r < 0)
            return r;
        if (!is_reusable(&e) || e.kind != QCOW2_ZEROS ||
            e.host != first->host + ((uint64_t)i << q->cluster_bits))
            break;
        to += q->cluster_size;
    }
    set_place(q, w, img_round_down(w->off, q->cluster_size), to, first->host,
              p);
    return 0;
}

/* How many clusters from the cursor on need a new place, at most max.
 * *whole: one of the ends must be filled wholly, for its old content is in a
 * host cluster that will be left. */
static int count_new(struct qcow2 *q, const struct qcow2_cursor *c,
                     uint64_t max, uint64_t *n, bool *whole_first,
                     bool *whole_last, struct img_error *err)
{
    *n = 0;
    while (*n < c->left && *n < max) {
        struct qcow2_entry e;
        int r = img_qcow2_entry_decode(q, img_qcow2_cursor_entry(q, c,
                                                          (uint32_t)*n),
                                       c->cluster + *n, &e, err);
        if (r < 0 && !*n)
            return r;
        if (r < 0 || is_reusable(&e))
            break;
        *whole_last = e.has_host;
        if (!*n)
            *whole_first = e.has_host;
        ++*n;
    }
    return 0;
}

static int take_new(struct qcow2 *q, const struct qcow2_cursor *c,
                    const struct img_want *w, struct img_place *p,
                    struct img_error *err)
{
    uint64_t last = (w->off + w->len - 1) >> q->cluster_bits;
    uint64_t want, got, host, from, to, cut;
    bool whole_first = true, whole_last = true, zeroed = false;
    int r = count_new(q, c, last - c->cluster + 1, &want, &whole_first,
                      &whole_last, err);

    if (r < 0)
        return r;
    if (q->data) {
        host = c->cluster << q->cluster_bits;
        got = want;
    } else {
        r = img_qcow2_take(q, want, &host, &got, &zeroed, err);
        if (r < 0)
            return r;
    }
    if (got < want)
        whole_last = true;      /* the range goes on behind it */
    from = img_round_down(w->off, q->cluster_size);
    to = (c->cluster + got) << q->cluster_bits;
    if (img_qcow2_has_subclusters(q)) {
        if (!whole_first)
            from = img_round_down(w->off, block_size(q));
        cut = img_round_up(w->off + w->len, block_size(q));
        if (!whole_last && cut < to)
            to = cut;
    }
    p->token = TOKEN_NEW;
    p->zeroed = zeroed;
    set_place(q, w, from, to, host, p);
    return 0;
}

static int reserve_fresh(struct qcow2 *q, const struct img_want *w,
                         struct img_place *p, struct img_error *err)
{
    struct qcow2_cursor c;
    struct qcow2_entry e;
    int r = img_qcow2_cursor_get_writable(q, w->off, &c, err);

    if (r < 0)
        return r;
    r = img_qcow2_entry_decode(q, img_qcow2_cursor_entry(q, &c, 0),
                               c.cluster, &e, err);
    if (r == 0 && is_in_place(q, &e, sub_of(q, w->off)))
        r = in_place_run(q, &c, w, p, err);
    else if (r == 0 && is_reusable(&e))
        r = reuse(q, &c, w, &e, p, err);
    else if (r == 0)
        r = take_new(q, &c, w, p, err);
    img_qcow2_cursor_put(q, &c);
    return r;
}

static int reserve_packed(struct qcow2 *q, const struct img_want *w,
                          struct img_place *p, struct img_error *err)
{
    struct qcow2_cursor c;
    uint64_t host;
    int r;

    if (q->data)
        return img_fail(err, ENOTSUP, "%s: an image with an external data "
                        "file cannot hold compressed clusters",
                        q->layer->path);
    r = img_qcow2_cursor_get_writable(q, w->off, &c, err);
    if (r < 0)
        return r;
    img_qcow2_cursor_put(q, &c);
    r = img_qcow2_take_bytes(q, w->packed, &host, err);
    if (r < 0)
        return r;
    p->token = TOKEN_NEW;
    p->zeroed = false;
    set_place(q, w, w->off, w->off + q->cluster_size, host, p);
    p->host = host;
    p->packed = w->packed;
    return 0;
}

static int reserve_in_place(struct qcow2 *q, const struct img_want *w,
                            struct img_place *p, struct img_error *err)
{
    uint64_t clusters = ((w->off + w->len - 1) >> q->cluster_bits) -
                        (w->off >> q->cluster_bits) + 1;
    struct qcow2_cursor c;
    int r = img_qcow2_cursor_get(q, w->off, clusters, false, &c, err);

    if (r < 0)
        return r;
    p->len = 0;
    p->fresh = false;
    if (c.slice)
        r = in_place_run(q, &c, w, p, err);
    img_qcow2_cursor_put(q, &c);
    return r;
}

/* What lies behind the end of the disk in a block that it ends in is zeros:
 * others show it when they make the disk longer. */
static int clear_behind_end(struct qcow2 *q, const struct img_place *p,
                            struct img_error *err)
{
    uint64_t end = p->fill_off + p->fill_len;
    uint64_t upto = img_round_up(end, block_size(q));

    if (end != q->layer->size || upto == end || p->zeroed ||
        (q->data && (q->h.autoclear & QCOW2_DATA_FILE_RAW)))
        return 0;
    return img_file_zero(q->layer->files[p->file], p->host + (end - p->off),
                         upto - end, 0, err);
}

int img_qcow2_reserve(struct img_layer *layer, const struct img_want *w,
                      struct img_place *p, struct img_error *err)
{
    struct qcow2 *q = img_qcow2_of(layer);
    int r;

    img_lock(&q->lock);
    if (w->in_place)
        r = reserve_in_place(q, w, p, err);
    else if (w->packed)
        r = reserve_packed(q, w, p, err);
    else
        r = reserve_fresh(q, w, p, err);
    img_unlock(&q->lock);
    if (r == 0 && p->fresh && !p->packed) {
        r = clear_behind_end(q, p, err);
        if (r < 0)
            img_qcow2_abandon(layer, p);
    }
    return img_qcow2_result(q, r);
}

/* ---- publish ----------------------------------------------------------- */

/* Bits of the subclusters of guest cluster that [from, to) covers. */
static uint32_t sub_mask(const struct qcow2 *q, uint64_t cluster,
                         uint64_t from, uint64_t to)
{
    uint64_t start = cluster << q->cluster_bits;
    uint64_t first = from > start ? (from - start) >> q->block_bits : 0;
    uint64_t last = QCOW2_SUBCLUSTERS;

    if (to - start < q->cluster_size)
        last = img_div_up(to - start, block_size(q));
    return (uint32_t)((UINT64_C(1) << last) - (UINT64_C(1) << first));
}

static void store_new(struct qcow2 *q, const struct qcow2_cursor *c,
                      uint32_t i, const struct qcow2_entry *old,
                      const struct img_place *p, uint64_t host)
{
    uint64_t to = p->fill_off + p->fill_len, bitmap = 0;
    uint32_t mask;

    if (img_qcow2_has_subclusters(q)) {
        bool keeps = old->kind != QCOW2_PACKED_RUN &&
                     (p->token == TOKEN_REUSED || !old->has_host);

        mask = sub_mask(q, c->cluster + i, p->fill_off, to);
        bitmap = keeps ? old->bitmap : 0;
        bitmap &= ~((uint64_t)mask << 32);
        bitmap |= mask;
    }
    img_qcow2_entry_store(q, img_qcow2_cursor_entry(q, c, i),
                          host | QCOW2_COPIED, bitmap);
}

static int publish(struct qcow2 *q, const struct qcow2_cursor *c,
                   const struct img_place *p, struct img_error *err)
{
    uint64_t base = c->cluster << q->cluster_bits;
    uint64_t host = p->host - (p->off - base);
    uint64_t n = img_div_up(p->fill_off + p->fill_len - base,
                            q->cluster_size);
    struct qcow2_entry e;
    int r = img_qcow2_frees_room(q, (size_t)n, err);

    for (uint32_t i = 0; i < n && r == 0; i++)
        r = img_qcow2_entry_decode(q, img_qcow2_cursor_entry(q, c, i),
                                   c->cluster + i, &e, err);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < n; i++) {
        img_qcow2_entry_decode(q, img_qcow2_cursor_entry(q, c, i),
                               c->cluster + i, &e, NULL);
        if (p->packed)
            img_qcow2_entry_store(q, img_qcow2_cursor_entry(q, c, i),
                                  img_qcow2_entry_packed(q, p->host,
                                                         p->packed), 0);
        else
            store_new(q, c, i, &e, p,
                      host + ((uint64_t)i << q->cluster_bits));
        if (p->token == TOKEN_NEW)
            img_qcow2_entry_free(q, &e, q->discard, NULL);
    }
    img_qcow2_cursor_dirty(q, c, 0, (uint32_t)n);
    return 0;
}

int img_qcow2_publish(struct img_layer *layer, const struct img_place *p,
                      struct img_error *err)
{
    struct qcow2 *q = img_qcow2_of(layer);
    struct qcow2_cursor c;
    int r;

    img_lock(&q->lock);
    r = img_qcow2_cursor_get_writable(q, p->fill_off, &c, err);
    if (r == 0) {
        r = publish(q, &c, p, err);
        img_qcow2_cursor_put(q, &c);
    }
    img_unlock(&q->lock);
    if (r == 0)
        img_qcow2_relieve(q, NULL);     /* what fails stays for the flush */
    return img_qcow2_result(q, r);
}

void img_qcow2_abandon(struct img_layer *layer, const struct img_place *p)
{
    struct qcow2 *q = img_qcow2_of(layer);
    uint64_t base = img_round_down(p->fill_off, q->cluster_size);
    uint64_t host = p->host - (p->off - base), len;

    if (!p->fresh || p->token != TOKEN_NEW || q->data)
        return;
    len = img_round_up(p->fill_off + p->fill_len - base, q->cluster_size);
    if (p->packed) {
        host = p->host;
        len = p->packed;
    }
    img_lock(&q->lock);
    /* If this fails the clusters leak, and check finds them. */
    img_qcow2_give_back(q, host, len, NULL);
    img_unlock(&q->lock);
}

int img_qcow2_touch(struct img_layer *layer, uint64_t off, uint64_t len,
                    struct img_error *err)
{
    return layer->in_vm_state ? 0 :
        img_qcow2_bitmaps_touch(img_qcow2_of(layer), off, len, err);
}
