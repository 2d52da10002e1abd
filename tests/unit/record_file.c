#include "record_file.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/iov.h"

#include <stdlib.h>
#include <string.h>

struct recorded {
    struct img_file inner;
    struct img_file_ops ops;
    struct record *record;
    unsigned number;
};

/* ---- the log ----------------------------------------------------------- */

void record_begin(struct record *r)
{
    memset(r, 0, sizeof *r);
    img_mutex_init(&r->lock);
}

void record_end(struct record *r)
{
    for (size_t i = 0; i < r->n; i++)
        free(r->log[i].data);
    for (unsigned i = 0; i < r->n_files; i++)
        free(r->first[i]);
    free(r->log);
    img_mutex_destroy(&r->lock);
}

/* Logged before it happens: from then on it may be there.  Returns its
 * number. */
static size_t add(struct recorded *w, struct record_entry e)
{
    struct record *r = w->record;
    size_t i;

    img_lock(&r->lock);
    if (r->n == r->room) {
        r->room = r->room ? 2 * r->room : 64;
        r->log = realloc(r->log, r->room * sizeof *r->log);
        if (!r->log)
            abort();
    }
    i = r->n++;
    e.file = w->number;
    e.begun = ++r->clock;
    e.ended = 0;
    r->log[i] = e;
    img_unlock(&r->lock);
    return i;
}

static void ended(struct recorded *w, size_t i, int result)
{
    struct record *r = w->record;

    img_lock(&r->lock);
    if (result == 0)
        r->log[i].ended = ++r->clock;
    img_unlock(&r->lock);
}

/* It was refused, so it never happened. */
static void cancel(struct recorded *w, size_t i)
{
    struct record *r = w->record;

    img_lock(&r->lock);
    r->log[i].kind = RECORD_SYNC;
    img_unlock(&r->lock);
}

/* ---- the file ---------------------------------------------------------- */

static int record_preadv(struct img_file *f, const struct iovec *iov, int n,
                         uint64_t off, struct img_error *err)
{
    struct recorded *w = f->state;

    return w->inner.ops->preadv(&w->inner, iov, n, off, err);
}

static int record_pwritev(struct img_file *f, const struct iovec *iov, int n,
                          uint64_t off, struct img_error *err)
{
    struct recorded *w = f->state;
    size_t len = img_iov_total(iov, n), i;
    uint8_t *data = malloc(len ? len : 1);
    int r;

    if (!data)
        return img_fail_nomem(err);
    img_iov_gather(iov, n, 0, data, len);
    i = add(w, (struct record_entry) {
        .kind = RECORD_WRITE, .off = off, .len = len, .data = data
    });
    r = w->inner.ops->pwritev(&w->inner, iov, n, off, err);
    ended(w, i, r);
    return r;
}

static int record_zero(struct img_file *f, uint64_t off, uint64_t len,
                       unsigned flags, struct img_error *err)
{
    struct recorded *w = f->state;
    size_t i = add(w, (struct record_entry) {
        .kind = RECORD_ZERO, .grows = true, .off = off, .len = len
    });
    int r = w->inner.ops->zero(&w->inner, off, len, flags, err);

    if (r == -ENOTSUP)
        cancel(w, i);
    else
        ended(w, i, r);
    return r;
}

static int record_punch(struct img_file *f, uint64_t off, uint64_t len,
                        struct img_error *err)
{
    struct recorded *w = f->state;
    size_t i = add(w, (struct record_entry) {
        .kind = RECORD_ZERO, .off = off, .len = len
    });
    int r = w->inner.ops->punch(&w->inner, off, len, err);

    if (r == -ENOTSUP)
        cancel(w, i);
    else
        ended(w, i, r);
    return r;
}

static int record_truncate(struct img_file *f, uint64_t size,
                           struct img_error *err)
{
    struct recorded *w = f->state;
    size_t i = add(w, (struct record_entry) {
        .kind = RECORD_TRUNCATE, .len = size
    });
    int r = w->inner.ops->truncate(&w->inner, size, err);

    ended(w, i, r);
    return r;
}

static int record_sync(struct img_file *f, struct img_error *err)
{
    struct recorded *w = f->state;
    size_t i = add(w, (struct record_entry) { .kind = RECORD_SYNC });
    int r = w->inner.ops->sync(&w->inner, err);

    ended(w, i, r);
    return r;
}

static int record_size(struct img_file *f, uint64_t *size,
                       struct img_error *err)
{
    struct recorded *w = f->state;

    return w->inner.ops->size(&w->inner, size, err);
}

static int record_lock(struct img_file *f, unsigned perm, unsigned shared,
                       struct img_error *err)
{
    struct recorded *w = f->state;

    return w->inner.ops->lock(&w->inner, perm, shared, err);
}

static void record_close(struct img_file *f)
{
    struct recorded *w = f->state;

    w->inner.ops->close(&w->inner);
    free(w);
}

static int keep_first(struct img_file *file, struct record *r, unsigned i)
{
    int ret = img_file_size(file, &r->first_len[i], NULL);

    if (ret < 0)
        return ret;
    r->first[i] = malloc((size_t)r->first_len[i] + 1);
    if (!r->first[i])
        return -ENOMEM;
    if (!r->first_len[i])
        return 0;
    return img_file_pread(file, r->first[i], (size_t)r->first_len[i], 0,
                          NULL);
}

int record_wrap(struct img_file *file, struct record *r)
{
    struct recorded *w = calloc(1, sizeof *w);
    const struct img_file_ops *has = file->ops;
    int ret;

    if (!w || r->n_files == RECORD_FILES) {
        free(w);
        return -ENOMEM;
    }
    w->number = r->n_files++;
    ret = keep_first(file, r, w->number);
    if (ret < 0) {
        free(w);
        return ret;
    }
    w->inner = *file;
    w->record = r;
    /* What would change the file unseen (allocate, reflink) is left out. */
    w->ops = (struct img_file_ops) {
        .kind = has->kind,
        .preadv = record_preadv,
        .pwritev = has->pwritev ? record_pwritev : NULL,
        .zero = has->zero ? record_zero : NULL,
        .punch = has->punch ? record_punch : NULL,
        .truncate = has->truncate ? record_truncate : NULL,
        .sync = record_sync,
        .size = record_size,
        .lock = has->lock ? record_lock : NULL,
        .close = record_close,
    };
    file->ops = &w->ops;
    file->state = w;
    return (int)w->number;
}

/* ---- states ------------------------------------------------------------ */

bool record_is_durable(const struct record *r, size_t i, size_t n)
{
    const struct record_entry *e = &r->log[i];

    for (size_t k = i + 1; k < n && e->ended; k++) {
        const struct record_entry *s = &r->log[k];

        if (s->kind == RECORD_SYNC && s->file == e->file && s->ended &&
            s->begun > e->ended)
            return true;
    }
    return false;
}

struct state {
    uint8_t *data;
    uint64_t len, room;         /* what is between them is zero */
};

static int set_length(struct state *s, uint64_t len)
{
    if (len > s->room) {
        uint64_t room = img_round_up(len + len / 4, 65536);
        uint8_t *data = realloc(s->data, (size_t)room);

        if (!data)
            return -ENOMEM;
        memset(data + s->room, 0, (size_t)(room - s->room));
        s->data = data;
        s->room = room;
    }
    if (len < s->len)
        memset(s->data + len, 0, (size_t)(s->len - len));
    s->len = len;
    return 0;
}

/* Sectors are the disk's, not the request's. */
static int apply(struct state *s, const struct record_entry *e, size_t number,
                 record_choose_fn *choose, void *opaque)
{
    uint64_t end = e->off + e->len, at = e->off, next;
    int r = 0;

    if (e->kind == RECORD_TRUNCATE)
        return choose && !choose(opaque, number, RECORD_LENGTH)
               ? 0 : set_length(s, e->len);
    if (end > s->len && (e->kind == RECORD_WRITE || e->grows) &&
        (!choose || choose(opaque, number, RECORD_LENGTH)))
        r = set_length(s, end);
    for (; r == 0 && at < end; at = next) {
        next = IMG_MIN(img_round_down(at, RECORD_SECTOR) + RECORD_SECTOR,
                       end);
        if (at >= s->len)
            break;
        if (choose && !choose(opaque, number,
                              (int64_t)(at / RECORD_SECTOR)))
            continue;
        if (e->kind == RECORD_WRITE)
            memcpy(s->data + at, e->data + (at - e->off),
                   (size_t)(IMG_MIN(next, s->len) - at));
        else
            memset(s->data + at, 0, (size_t)(IMG_MIN(next, s->len) - at));
    }
    return r;
}

int record_state(const struct record *r, unsigned file, size_t n,
                 record_choose_fn *choose, void *opaque, uint8_t **data,
                 uint64_t *len)
{
    struct state s = { 0 };
    int ret = set_length(&s, r->first_len[file]);

    if (ret == 0 && s.len)
        memcpy(s.data, r->first[file], (size_t)s.len);
    for (size_t i = 0; i < n && ret == 0; i++) {
        const struct record_entry *e = &r->log[i];

        if (e->file != file || e->kind == RECORD_SYNC)
            continue;
        ret = apply(&s, e, i, record_is_durable(r, i, n) ? NULL : choose,
                    opaque);
    }
    if (ret < 0) {
        free(s.data);
        return ret;
    }
    *data = s.data;
    *len = s.len;
    return 0;
}
