/* The operations of model.c: each is done to the disk and to the array. */
#include "model.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void print_plan(FILE *f, const struct plan *plan)
{
    fprintf(f, "model --format %s", plan->format);
    for (int i = 0; i < plan->n_settings; i++)
        fprintf(f, " --set %s", plan->settings[i]);
    if (plan->data_file)
        fprintf(f, " --data-file");
    if (plan->peer)
        fprintf(f, " --peer");
    fprintf(f, " --backing %d --size %llu --ops %llu --seed %llu\n",
            plan->backing, (unsigned long long)plan->size,
            (unsigned long long)plan->ops, (unsigned long long)plan->seed);
}

int fail(const struct model *m, const char *what, uint64_t off, uint64_t len,
         const struct img_error *err)
{
    fprintf(stderr, "FAIL: %s at %llu+%llu, operation %llu%s%s\n  ", what,
            (unsigned long long)off, (unsigned long long)len,
            (unsigned long long)m->op, err ? ": " : "",
            err ? err->message : "");
    print_plan(stderr, m->plan);
    return -1;
}

static int differ(const struct model *m, const char *what, const uint8_t *got,
                  uint64_t off, uint64_t len)
{
    uint64_t i = 0;

    while (i < len && got[i] == m->flat[off + i])
        i++;
    fprintf(stderr, "byte %llu is %02x, should be %02x\n",
            (unsigned long long)(off + i), got[i], m->flat[off + i]);
    return fail(m, what, off, len, NULL);
}

/* ---- where ------------------------------------------------------------- */

/* Mostly near where the last ones were, and on or next to edges. */
static uint64_t pick_offset(struct model *m)
{
    uint64_t off, unit = m->limits.cluster ? m->limits.cluster : 65536;

    switch (rng_below(&m->rng, 8)) {
    case 0:
        m->hot = rng_below(&m->rng, m->size);
        off = m->hot;
        break;
    case 1:
        off = m->size - 1 - rng_below(&m->rng, unit < m->size ? unit : 1);
        break;
    default:
        off = m->hot + rng_below(&m->rng, 4 * unit);
        break;
    }
    off %= m->size;
    switch (rng_below(&m->rng, 6)) {
    case 0:
        return off - off % unit;
    case 1:
        return off - off % (unit / 32 ? unit / 32 : 1);
    case 2:
    case 3:
        return off - off % 512;
    default:
        return off;
    }
}

static uint64_t pick_length(struct model *m, uint64_t off)
{
    uint64_t unit = m->limits.cluster ? m->limits.cluster : 65536;
    uint64_t len;

    switch (rng_below(&m->rng, 16)) {
    case 0:
        len = 1 + rng_below(&m->rng, 16);
        break;
    case 1:
        len = 1 + rng_below(&m->rng, m->buf_size);
        break;
    case 2:
    case 3:
        len = unit * (1 + rng_below(&m->rng, 3));
        break;
    case 4:
        len = unit - off % unit;
        break;
    case 5:
    case 6:
        len = 1 + rng_below(&m->rng, 3000);
        break;
    default:
        len = 512 * (1 + rng_below(&m->rng, 24));
        break;
    }
    if (len > m->buf_size)
        len = m->buf_size;
    return len < m->size - off ? len : m->size - off;
}

/* Splits buf into up to four vectors. */
static int pick_iov(struct model *m, struct iovec *iov, uint8_t *buf,
                    uint64_t len)
{
    int n = 0;

    while (n < 3 && len > 1 && rng_below(&m->rng, 3)) {
        uint64_t part = 1 + rng_below(&m->rng, len - 1);

        iov[n++] = (struct iovec) { buf, part };
        buf += part;
        len -= part;
    }
    iov[n++] = (struct iovec) { buf, len };
    return n;
}

/* ---- operations -------------------------------------------------------- */

static int read_and_compare(struct model *m, uint64_t off, uint64_t len)
{
    struct img_error err;
    struct iovec iov[4];
    int n, r;

    memset(m->buf, 0xa5, len);
    if (rng_below(&m->rng, 2)) {
        r = img_pread(m->disk, m->buf, len, off, &err);
    } else {
        n = pick_iov(m, iov, m->buf, len);
        r = img_preadv(m->disk, iov, n, off, &err);
    }
    if (r < 0)
        return fail(m, "read", off, len, &err);
    if (memcmp(m->buf, m->flat + off, len))
        return differ(m, "read", m->buf, off, len);
    return 0;
}

void make_content(struct model *m, uint64_t off, uint64_t len)
{
    struct rng content = { rng_next(&m->rng) };

    switch (rng_below(&m->rng, 8)) {
    case 0:
        memset(m->buf, 0, len);
        break;
    case 1:
        memset(m->buf, (int)(m->op & 0xff), len);
        break;
    case 2:
        memcpy(m->buf, m->flat + off, len);
        break;
    default:
        rng_fill(&content, m->buf, len);
        break;
    }
}

static int do_write(struct model *m)
{
    uint64_t off = pick_offset(m), len = pick_length(m, off);
    unsigned flags = rng_below(&m->rng, 32) ? 0 : IMG_FUA;
    struct img_error err;
    struct iovec iov[4];
    int n, r;

    make_content(m, off, len);
    memcpy(m->flat + off, m->buf, len);
    if (rng_below(&m->rng, 2)) {
        r = img_pwrite(m->disk, m->buf, len, off, flags, &err);
    } else {
        n = pick_iov(m, iov, m->buf, len);
        r = img_pwritev(m->disk, iov, n, off, flags, &err);
    }
    if (r < 0)
        return fail(m, "write", off, len, &err);
    if (memcmp(m->flat + off, m->buf, len))
        return differ(m, "write changed the caller's buffer", m->buf, off,
                      len);
    return 0;
}

static int do_write_compressed(struct model *m)
{
    uint64_t unit = m->limits.cluster, off = pick_offset(m), len;
    struct rng content = { rng_next(&m->rng) };
    struct img_error err;
    int r;

    off -= off % unit;
    len = unit < m->size - off ? unit : m->size - off;
    if (rng_below(&m->rng, 8))
        memset(m->buf, (int)content.state, len);
    rng_fill(&content, m->buf, rng_below(&content, len / 4 + 1));
    r = img_pwrite(m->disk, m->buf, len, off, IMG_COMPRESS, &err);
    if (r == -ENOTSUP && strcmp(m->plan->format, "qcow2")) {
        m->can_compress = false;
        return 0;
    }
    if (r < 0)
        return fail(m, "compressed write", off, len, &err);
    memcpy(m->flat + off, m->buf, len);
    return 0;
}

/* Each byte of the range may be what it was or zero; from now on it must be
 * what it is. */
static int adopt(struct model *m, uint64_t off, uint64_t len)
{
    struct img_error err;

    while (len) {
        uint64_t n = len < m->buf_size ? len : m->buf_size;

        if (img_pread(m->disk, m->buf, n, off, &err) < 0)
            return fail(m, "read after discard", off, n, &err);
        for (uint64_t i = 0; i < n; i++)
            if (m->buf[i] && m->buf[i] != m->flat[off + i])
                return differ(m, "neither zero nor old after discard",
                              m->buf, off, n);
        memcpy(m->flat + off, m->buf, n);
        off += n;
        len -= n;
    }
    return 0;
}

static uint64_t pick_long(struct model *m, uint64_t off, uint64_t len)
{
    if (rng_below(&m->rng, 32))
        return len;
    return 1 + rng_below(&m->rng, m->size - off);
}

static int do_zero(struct model *m)
{
    uint64_t off = pick_offset(m);
    uint64_t len = pick_long(m, off, pick_length(m, off));
    unsigned flags = 0;
    struct img_error err;
    int r;

    if (rng_below(&m->rng, 2))
        flags |= IMG_MAY_UNMAP;
    if (!rng_below(&m->rng, 8))
        flags |= IMG_FAST_ONLY;
    r = img_zero(m->disk, off, len, flags, &err);
    if (r == -ENOTSUP && (flags & IMG_FAST_ONLY))
        return adopt(m, off, len);
    if (r < 0)
        return fail(m, "zero", off, len, &err);
    memset(m->flat + off, 0, len);
    return 0;
}

static int do_discard(struct model *m)
{
    uint64_t off = pick_offset(m);
    uint64_t len = pick_long(m, off, pick_length(m, off));
    struct img_error err;

    if (img_discard(m->disk, off, len, &err) < 0)
        return fail(m, "discard", off, len, &err);
    return adopt(m, off, len);
}

/* What the map calls zeros must be zeros, and what it says is in a file must
 * be there. */
static int check_extent(struct model *m, const struct img_extent *e)
{
    const char *name;
    int fd;
    uint64_t n = e->len < m->buf_size ? e->len : m->buf_size;
    ssize_t got;

    if ((e->kind == IMG_HOLE || e->kind == IMG_ZEROS) &&
        !all_zero(m->flat + e->off, e->len))
        return fail(m, "map says zeros", e->off, e->len, NULL);
    if (e->kind != IMG_DATA || e->host_off == UINT64_MAX)
        return 0;
    name = img_file_name(m->disk, e->depth, e->file);
    if (!name)
        return fail(m, "map names no file", e->off, e->len, NULL);
    fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail(m, name, e->off, e->len, NULL);
    memset(m->buf, 0, n);
    got = pread(fd, m->buf, n, (off_t)e->host_off);
    close(fd);
    if (got < 0 || memcmp(m->buf, m->flat + e->off, n))
        return differ(m, "map: the file holds something else", m->buf,
                      e->off, n);
    return 0;
}

static int do_map(struct model *m)
{
    uint64_t off = pick_offset(m), end;
    unsigned flags = rng_below(&m->rng, 2) ? IMG_MAP_EXACT : 0;
    struct img_extent e;
    struct img_error err;

    end = off + pick_length(m, off);
    while (off < end) {
        if (img_map(m->disk, off, end - off, flags, &e, &err) < 0)
            return fail(m, "map", off, end - off, &err);
        if (e.off != off || !e.len || e.len > end - off)
            return fail(m, "map: not the range asked for", e.off, e.len,
                        NULL);
        if (check_extent(m, &e) < 0)
            return -1;
        off += e.len;
    }
    return 0;
}

static int do_flush(struct model *m)
{
    struct img_error err;

    if (img_flush(m->disk, &err) < 0)
        return fail(m, "flush", 0, 0, &err);
    return 0;
}

int compare_all(struct model *m)
{
    for (uint64_t off = 0; off < m->size; off += m->buf_size) {
        uint64_t n = m->size - off;

        if (read_and_compare(m, off, n < m->buf_size ? n : m->buf_size) < 0)
            return -1;
    }
    return 0;
}

int one_operation(struct model *m)
{
    uint64_t x = rng_below(&m->rng, 1000), off;

    if (x < 380)
        return do_write(m);
    if (x < 430 && m->can_compress)
        return do_write_compressed(m);
    if (x < 760) {
        off = pick_offset(m);
        return read_and_compare(m, off, pick_length(m, off));
    }
    if (x < 840)
        return do_zero(m);
    if (x < 900)
        return do_discard(m);
    if (x < 980)
        return do_map(m);
    if (x < 992)
        return do_flush(m);
    return do_queue(m);
}
