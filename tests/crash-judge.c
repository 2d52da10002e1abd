/* See crash.h: making images, looking at them, judging them. */
#include "crash.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>

static uint8_t buf[MAX_SECTORS * SECTOR];
unsigned long dirty_images;

uint64_t number_of(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);

    return text ? strtoull(text, NULL, 10) : otherwise;
}

/* ---- files ------------------------------------------------------------- */

static const char *path_in(const char *dir, const char *name)
{
    static char paths[4][PATH_MAX];
    static int next;
    char *path = paths[next++ % 4];

    snprintf(path, PATH_MAX, "%s/%s", dir, name);
    return path;
}

void put_file(const char *dir, const char *name, const uint8_t *data,
              size_t len)
{
    int fd = open(path_in(dir, name), O_RDWR | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, len), len);
    close(fd);
}

void save_images(const char *dir, struct saved *s)
{
    DIR *d = opendir(dir);
    struct dirent *e;

    assert_non_null(d);
    s->n = 0;
    while ((e = readdir(d))) {
        struct stat st;
        int fd;

        if (e->d_name[0] == '.')
            continue;
        assert_true(s->n < IMG_COUNT(s->names));
        fd = open(path_in(dir, e->d_name), O_RDONLY);
        assert_true(fd >= 0 && fstat(fd, &st) == 0);
        s->names[s->n] = strdup(e->d_name);
        s->len[s->n] = (size_t)st.st_size;
        s->data[s->n] = malloc((size_t)st.st_size + 1);
        assert_int_equal(read(fd, s->data[s->n], s->len[s->n]),
                         s->len[s->n]);
        close(fd);
        s->n++;
    }
    closedir(d);
}

void restore_images(const char *dir, const struct saved *s)
{
    for (unsigned i = 0; i < s->n; i++)
        put_file(dir, s->names[i], s->data[i], s->len[i]);
}

void free_saved(struct saved *s)
{
    for (unsigned i = 0; i < s->n; i++) {
        free(s->names[i]);
        free(s->data[i]);
    }
    s->n = 0;
}

/* ---- making ------------------------------------------------------------ */

static void put_backing(const char *dir, const char *name, uint32_t tag)
{
    for (uint64_t i = 0; i < BASE_SECTORS * SECTOR; i += 8) {
        img_put_be32(buf + i, tag);
        img_put_be32(buf + i + 4, (uint32_t)(i / SECTOR));
    }
    put_file(dir, name, buf, BASE_SECTORS * SECTOR);
}

static int open_at(const struct config *c, const char *dir, unsigned flags,
                   const char *snapshot, struct img_disk **d,
                   struct img_error *err)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;

    o.flags = flags;
    o.format = c->format;
    o.snapshot = snapshot;
    o.cache_bytes = 1 << 20;
    return img_open(path_in(dir, "image"), &o, d, err);
}

int open_work(struct work *w)
{
    return open_at(w->c, w->dir, IMG_OPEN_WRITE, NULL, &w->d, &w->err);
}

static void run_rows(struct work *w, const char *const *names)
{
    for (; *names; names++) {
        const struct operation *op = operations;

        while (strcmp(op->name, *names))
            assert_true(++op < operations + n_operations);
        if ((op->needs & w->c->has) == op->needs)
            assert_ok(run_operation(w, op), w->err);
    }
}

void make_images(const struct config *c, const char *dir, struct model *m)
{
    static const char *const history[] = {
        "prepare, data", "prepare, compressed", "prepare, zeros",
        "prepare, to be shared", "snapshot", "write, in place",
        "bitmap, add", "write, in place", NULL
    };
    struct img_create_options o = IMG_CREATE_OPTIONS;
    static struct work w;

    memset(&w, 0, sizeof w);
    put_backing(dir, "base", BASE_TAG);
    put_backing(dir, "other", OTHER_TAG);
    put_backing(dir, "a-backing-file-whose-name-is-a-bit-longer-than-usual",
                OTHER_TAG);
    o.format = c->format;
    o.disk_size = c->size;
    o.has_size = true;
    o.settings = c->settings;
    o.flags = IMG_CREATE_NO_SYNC;
    if (c->has & HAS_BASE) {
        o.backing = "base";
        o.backing_format = "raw";
    }
    assert_ok(img_create(path_in(dir, "image"), &o, &w.err), w.err);
    w.c = c;
    w.dir = dir;
    w.tag = 100;
    assert_ok(open_work(&w), w.err);
    assert_ok(read_disk(w.d, &w.m.disk, &w.err), w.err);
    for (uint64_t s = 0; s < BASE_SECTORS; s++)
        w.m.base[s] = BASE_TAG;
    w.m.base_size = BASE_SECTORS * SECTOR;
    run_rows(&w, history);
    assert_ok(img_close(w.d, &w.err), w.err);
    *m = w.m;
}

/* ---- looking ----------------------------------------------------------- */

static uint32_t tag_at(const uint8_t *p, uint64_t sector)
{
    uint32_t tag = img_get_be32(p);

    /* All pieces of 8 bytes are the same. */
    if (img_get_be32(p + 4) != (tag ? (uint32_t)sector : 0) ||
        memcmp(p, p + 8, SECTOR - 8))
        return MIXED;
    return tag;
}

/* Behind the sectors that have tags there are zeros only. */
static int read_rest(struct img_disk *d, uint64_t off, struct img_error *err)
{
    uint64_t size = img_size(d);

    while (off < size) {
        struct img_extent e;
        uint64_t end;
        int r = img_map(d, off, size - off, 0, &e, err);

        if (r < 0)
            return r;
        end = off + e.len;
        while (e.kind != IMG_HOLE && e.kind != IMG_ZEROS && off < end) {
            uint64_t len = IMG_MIN(end - off, sizeof buf);

            r = img_pread(d, buf, len, off, err);
            for (uint64_t i = 0; r == 0 && i < len; i++)
                if (buf[i])
                    return img_fail(err, EBADMSG, "not zero behind the "
                                    "tagged sectors");
            if (r < 0)
                return r;
            off += len;
        }
        off = end;
    }
    return 0;
}

int read_disk(struct img_disk *d, struct view *v, struct img_error *err)
{
    uint64_t size = img_size(d);
    uint64_t len = IMG_MIN(size, sizeof buf);
    int r = img_pread(d, buf, len, 0, err);

    if (r < 0)
        return r;
    memset(v->tags, 0, sizeof v->tags);
    v->size = size;
    for (uint64_t s = 0; s < len / SECTOR; s++)
        v->tags[s] = tag_at(buf + s * SECTOR, s);
    return size > len ? read_rest(d, len, err) : 0;
}

/* The bits of the one bitmap; a bit for each sector. */
int read_bits(struct img_disk *d, uint8_t *bits, struct img_error *err)
{
    uint64_t off = 0, size = IMG_MIN(img_size(d), sizeof buf);

    memset(bits, 0, MAX_SECTORS);
    while (off < size) {
        struct img_extent e;
        int r = img_bitmap_map(d, "bitmap", off, size - off, &e, err);

        if (r < 0)
            return r;
        memset(bits + off / SECTOR, e.dirty, e.len / SECTOR);
        off += e.len;
    }
    return 0;
}

/* ---- judging ----------------------------------------------------------- */

static const char *say(const char *fmt, ...)
{
    static char text[400];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return text;
}

static const char *judge_range(const struct view *v, const struct model *steps,
                               int from, int to)
{
    bool size_fits = false;

    for (int i = from; i <= to; i++)
        size_fits |= v->size == steps[i].disk.size;
    if (!size_fits)
        return say("the size is %lu", (unsigned long)v->size);
    for (uint64_t s = 0; s < IMG_MIN(v->size / SECTOR, MAX_SECTORS); s++) {
        bool fits = false;

        for (int i = from; i <= to; i++)
            fits |= v->tags[s] == steps[i].disk.tags[s];
        if (!fits)
            return say("sector %lu is %u, was %u", (unsigned long)s,
                       v->tags[s], steps[from].disk.tags[s]);
    }
    return NULL;
}

const char *judge_view(const struct view *v, const struct history *h)
{
    const char *wrong;

    if (!h->switches)
        return judge_range(v, h->steps, h->from, h->to);
    wrong = judge_range(v, h->steps, h->from, h->to - 1);
    return wrong ? judge_range(v, h->steps, h->to, h->to) : NULL;
}

static bool has_snapshots(const struct model *m, const struct img_info *info)
{
    if (info->n_snapshots != m->n_snapshots)
        return false;
    for (unsigned i = 0; i < m->n_snapshots; i++)
        if (strcmp(m->snapshots[i].name, info->snapshots[i].name))
            return false;
    return true;
}

static const char *judge_snapshots(const struct config *c, const char *dir,
                                   const struct img_info *info,
                                   const struct history *h)
{
    static struct view v;
    struct img_error err;
    struct img_disk *d;
    int step = h->to;

    while (step >= h->from && !has_snapshots(&h->steps[step], info))
        step--;
    if (step < h->from)
        return say("%zu snapshots", info->n_snapshots);
    for (unsigned i = 0; i < info->n_snapshots; i++) {
        const char *name = info->snapshots[i].name;

        if (h->steps[h->to].snapshots[i].rests)
            continue;
        if (open_at(c, dir, 0, name, &d, &err) < 0)
            return say("snapshot %s: %s", name, err.message);
        if (read_disk(d, &v, &err) < 0)
            return say("snapshot %s: %s", name, err.message);
        img_close(d, NULL);
        if (memcmp(&v, &h->steps[step].snapshots[i].view, sizeof v))
            return say("snapshot %s has changed", name);
    }
    return NULL;
}

/* A bitmap that says it is complete marks all that has changed. */
static const char *judge_bitmap(struct img_disk *d, const struct view *v,
                                const struct img_info *info,
                                const struct history *h)
{
    static uint8_t bits[MAX_SECTORS];
    struct img_error err;
    int step;

    for (step = h->to; step >= h->from; step--)
        if (h->steps[step].has_bitmap == (info->n_bitmaps > 0))
            break;
    if (step < h->from)
        return say("%zu bitmaps", info->n_bitmaps);
    if (!info->n_bitmaps || info->bitmaps[0].inconsistent)
        return NULL;
    if (read_bits(d, bits, &err) < 0)
        return say("bitmap: %s", err.message);
    for (step = h->to; step >= h->from; step--) {
        const struct model *m = &h->steps[step];
        bool fits = m->has_bitmap && !memcmp(bits, m->bits, sizeof bits);

        for (uint64_t s = 0; fits && s < v->size / SECTOR && s < MAX_SECTORS;
             s++)
            fits = bits[s] || v->tags[s] == m->disk.tags[s];
        if (fits)
            return NULL;
    }
    return "the bitmap does not mark all changes";
}

static const char *judge_base(const char *dir, const struct history *h)
{
    int fd = open(path_in(dir, "base"), O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, sizeof buf);
    bool size_fits = false;

    close(fd);
    for (int i = h->from; i <= h->to; i++)
        size_fits |= (uint64_t)n == h->steps[i].base_size;
    if (!size_fits)
        return say("the backing file has %zd bytes", n);
    for (uint64_t s = 0; s < (uint64_t)n / SECTOR; s++) {
        uint32_t tag = tag_at(buf + s * SECTOR, s);
        bool fits = false;

        for (int i = h->from; i <= h->to; i++)
            fits |= tag == h->steps[i].base[s];
        if (!fits)
            return say("backing file, sector %lu is %u", (unsigned long)s,
                       tag);
    }
    return NULL;
}

static char first_error[200];

static void told(void *opaque, const char *message)
{
    if (!strncmp(message, "ERROR", 5) && !first_error[0])
        snprintf(first_error, sizeof first_error, "%s", message);
}

static const char *check(struct img_disk *d)
{
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_check_result result = { 0 };
    struct img_error err;
    int r;

    first_error[0] = 0;
    o.report = told;
    r = img_check(d, &o, NULL, &result, &err);
    if (r == -ENOTSUP)
        return NULL;            /* the format has nothing to check */
    if (r < 0)
        return say("check: %s", err.message);
    return result.errors || result.check_errors
           ? say("check: %s", first_error) : NULL;
}

static const char *judge_open(const struct config *c, const char *dir,
                              struct img_disk *d, const struct history *h)
{
    static struct view v;
    struct img_info *info;
    struct img_error err;
    const char *wrong = check(d);

    if (wrong)
        return wrong;
    if (read_disk(d, &v, &err) < 0 || img_info_get(d, &info, &err) < 0)
        return say("%s", err.message);
    wrong = judge_view(&v, h);
    if (!wrong)
        wrong = judge_bitmap(d, &v, info, h);
    if (!wrong)
        wrong = judge_snapshots(c, dir, info, h);
    if (!wrong && (c->has & HAS_BASE))
        wrong = judge_base(dir, h);
    img_info_free(info);
    return wrong;
}

/* Opens it, once it is repaired if it is marked dirty: whoever opens it to
 * write does that. */
static int open_mended(const struct config *c, const char *dir,
                       struct img_disk **d, struct img_error *err)
{
    struct img_info *info;
    bool dirty;
    int r = open_at(c, dir, 0, NULL, d, err);

    if (r == 0)
        r = img_info_get(*d, &info, err);
    if (r < 0)
        return r;
    dirty = info->dirty;
    img_info_free(info);
    if (!dirty)
        return 0;
    img_close(*d, NULL);
    dirty_images++;
    r = open_at(c, dir, IMG_OPEN_WRITE, NULL, d, err);
    if (r == 0)
        r = img_close(*d, err);
    return r == 0 ? open_at(c, dir, 0, NULL, d, err) : r;
}

const char *judge_images(const struct config *c, const char *dir,
                         const struct history *h)
{
    struct img_error err;
    struct img_disk *d;
    const char *wrong;

    if (open_mended(c, dir, &d, &err) < 0)
        return say("%s", err.message);
    wrong = judge_open(c, dir, d, h);
    img_close(d, NULL);
    return wrong;
}
