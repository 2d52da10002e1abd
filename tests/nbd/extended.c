/* A client of our own that speaks extended headers, for libnbd before 1.18
 * does not: the same disk by 32 and by 64 bit.
 *
 *   extended SOCKET
 * The export is an empty qcow2 of 16 GiB but for 1 MiB at 5 GiB; contexts
 * base:allocation and qemu:allocation-depth.
 */
#include "raw.h"

#define GIB (UINT64_C(1) << 30)

struct extents {
    uint32_t context;
    unsigned n;
    uint64_t len[64];
    uint32_t flags[64];
};

struct reply {                  /* one chunk */
    uint16_t flags, type;
    uint64_t cookie, off, len;
    uint8_t data[1 << 16];
};

static bool wide;

static void chunk(int fd, struct reply *r)
{
    uint8_t h[NBD_EXT_CHUNK_SIZE];

    if (!raw_recv(fd, h, wide ? NBD_EXT_CHUNK_SIZE : NBD_CHUNK_SIZE))
        FAIL("the server has closed");
    if (nbd_get32(h) != (wide ? NBD_EXT_CHUNK_MAGIC : NBD_CHUNK_MAGIC))
        FAIL("chunk magic %x", nbd_get32(h));
    r->flags = nbd_get16(h + 4);
    r->type = nbd_get16(h + 6);
    r->cookie = nbd_get64(h + 8);
    r->off = wide ? nbd_get64(h + 16) : 0;
    r->len = wide ? nbd_get64(h + 24) : nbd_get32(h + 16);
    if (r->len > sizeof r->data || !raw_recv(fd, r->data, (size_t)r->len))
        FAIL("chunk of %llu bytes", (unsigned long long)r->len);
}

static void request(int fd, uint16_t flags, uint16_t type, uint64_t cookie,
                    uint64_t off, uint64_t len)
{
    uint8_t h[NBD_EXT_REQUEST_SIZE];

    if (!wide) {
        raw_request(fd, flags, type, cookie, off, (uint32_t)len);
        return;
    }
    nbd_put32(h, NBD_EXT_REQUEST_MAGIC);
    nbd_put16(h + 4, flags);
    nbd_put16(h + 6, type);
    nbd_put64(h + 8, cookie);
    nbd_put64(h + 16, off);
    nbd_put64(h + 24, len);
    raw_send(fd, h, sizeof h);
}

/* The last chunk; what a simple reply would be. */
static void done(int fd, uint64_t cookie, uint64_t off)
{
    static struct reply r;

    chunk(fd, &r);
    if (r.type != NBD_REPLY_NONE || !(r.flags & NBD_REPLY_DONE) || r.len ||
        r.cookie != cookie || r.off != off)
        FAIL("request %u: chunk type %x", (unsigned)cookie, r.type);
}

static int dial(const char *path, uint32_t option)
{
    static const uint8_t query[] = "\0\0\0\0\0\0\0\2"
        "\0\0\0\17base:allocation" "\0\0\0\25qemu:allocation-depth";
    uint8_t info[65536];
    uint32_t type, len;
    uint16_t flags = 0;
    int fd = raw_greet(path);

    raw_option(fd, option, "", 0);
    if (raw_verdict(fd) != NBD_REP_ACK)
        FAIL("option %u refused", option);
    raw_option(fd, NBD_OPT_SET_META_CONTEXT, query, sizeof query - 1);
    for (unsigned i = 0; i < 2; i++)
        if (raw_answer(fd, info, &len) != NBD_REP_META_CONTEXT ||
            nbd_get32(info) != i)
            FAIL("context %u", i);
    if (raw_verdict(fd) != NBD_REP_ACK)
        FAIL("contexts refused");
    raw_option(fd, NBD_OPT_GO, "\0\0\0\0\0\0", 6);
    while ((type = raw_answer(fd, info, &len)) == NBD_REP_INFO)
        if (nbd_get16(info) == NBD_INFO_EXPORT)
            flags = nbd_get16(info + 10);
    if (type != NBD_REP_ACK)
        FAIL("GO refused");
    wide = option == NBD_OPT_EXTENDED_HEADERS;
    if (!(flags & NBD_SEND_DF) ||
        !(flags & NBD_BLOCK_STATUS_PAYLOAD) == wide)
        FAIL("flags %x", flags);
    return fd;
}

static void take(const struct reply *r, struct extents *x)
{
    size_t head = wide ? 8 : 4, each = wide ? 16 : 8;

    if (r->type != (wide ? NBD_REPLY_BLOCK_STATUS_EXT :
                    NBD_REPLY_BLOCK_STATUS) || r->len < head + each ||
        (r->len - head) % each)
        FAIL("chunk type %x, %llu bytes", r->type,
             (unsigned long long)r->len);
    x->context = nbd_get32(r->data);
    x->n = (unsigned)((r->len - head) / each);
    if (x->n > 64 || (wide && nbd_get32(r->data + 4) != x->n))
        FAIL("%u extents", x->n);
    for (unsigned i = 0; i < x->n; i++) {
        const uint8_t *p = r->data + head + i * each;

        x->len[i] = wide ? nbd_get64(p) : nbd_get32(p);
        x->flags[i] = wide ? (uint32_t)nbd_get64(p + 8) : nbd_get32(p + 4);
    }
}

/* One request; x[0] and x[1] are the contexts', n of them. */
static void status(int fd, uint16_t flags, uint64_t off, uint64_t len,
                   struct extents *x, unsigned n)
{
    static struct reply r;

    request(fd, flags, NBD_CMD_BLOCK_STATUS, 5, off, len);
    for (unsigned i = 0; i < n; i++) {
        chunk(fd, &r);
        take(&r, &x[i]);
        if (r.cookie != 5 || r.off != (wide ? off : 0) ||
            (r.flags & NBD_REPLY_DONE) != (i == n - 1))
            FAIL("chunk %u of a status", i);
    }
}

static void expect(const struct extents *x, unsigned i, uint64_t len,
                   uint32_t flags)
{
    if (i >= x->n || x->len[i] != len || x->flags[i] != flags)
        FAIL("context %u, extent %u: %llu bytes, flags %u", x->context, i,
             (unsigned long long)x->len[i], x->flags[i]);
}

static void narrow(const char *path)
{
    struct extents x[2];
    int fd = dial(path, NBD_OPT_STRUCTURED_REPLY);

    status(fd, 0, 4 * GIB, 2 * GIB, x, 2);
    expect(&x[0], 0, GIB, NBD_STATE_HOLE | NBD_STATE_ZERO);
    expect(&x[0], 1, 1 << 20, 0);
    expect(&x[0], 2, GIB - (1 << 20), NBD_STATE_HOLE | NBD_STATE_ZERO);
    expect(&x[1], 0, GIB, 0);
    expect(&x[1], 1, 1 << 20, 1);
    status(fd, NBD_FLAG_REQ_ONE, 4 * GIB, 2 * GIB, x, 2);
    if (x[0].n != 1 || x[1].n != 1)
        FAIL("REQ_ONE: %u and %u extents", x[0].n, x[1].n);
    raw_request(fd, 0, NBD_CMD_DISC, 0, 0, 0);
    close(fd);
}

static void payload(int fd)
{
    static struct reply r;
    struct extents x;
    uint8_t p[16];

    nbd_put64(p, 16 * GIB);
    nbd_put32(p + 8, 1);
    request(fd, NBD_FLAG_PAYLOAD_LEN, NBD_CMD_BLOCK_STATUS, 6, 0, 12);
    raw_send(fd, p, 12);
    chunk(fd, &r);
    take(&r, &x);
    if (x.context != 1 || !(r.flags & NBD_REPLY_DONE))
        FAIL("the context that was not asked for");
    expect(&x, 0, 5 * GIB, 0);
    expect(&x, 1, 1 << 20, 1);
    /* The same context twice; an ID that there is not. */
    for (uint32_t id = 1; id < 3; id++) {
        nbd_put32(p + 12, id);
        request(fd, NBD_FLAG_PAYLOAD_LEN, NBD_CMD_BLOCK_STATUS, 7, 0, 16);
        raw_send(fd, p, 16);
        chunk(fd, &r);
        if (r.type != NBD_REPLY_ERROR || nbd_get32(r.data) != NBD_EINVAL)
            FAIL("context %u: chunk type %x", id, r.type);
    }
}

static void read_back(int fd, uint64_t off, uint32_t len, uint8_t want)
{
    static struct reply r;

    request(fd, NBD_FLAG_DF, NBD_CMD_READ, 8, off, len);
    chunk(fd, &r);
    if (r.type != NBD_REPLY_OFFSET_DATA || r.len != 8 + len ||
        nbd_get64(r.data) != off || r.off != off)
        FAIL("read: chunk type %x", r.type);
    for (uint32_t i = 0; i < len; i++)
        if (r.data[8 + i] != want)
            FAIL("byte %u is %02x", i, r.data[8 + i]);
}

static void broad(const char *path)
{
    static uint8_t data[4096];
    struct extents x[2];
    int fd = dial(path, NBD_OPT_EXTENDED_HEADERS);

    status(fd, 0, 0, 16 * GIB, x, 2);
    expect(&x[0], 0, 5 * GIB, NBD_STATE_HOLE | NBD_STATE_ZERO);
    expect(&x[0], 1, 1 << 20, 0);
    expect(&x[0], 2, 11 * GIB - (1 << 20), NBD_STATE_HOLE | NBD_STATE_ZERO);
    expect(&x[1], 0, 5 * GIB, 0);
    expect(&x[1], 1, 1 << 20, 1);
    payload(fd);
    read_back(fd, 5 * GIB, 4096, 0x5a);

    memset(data, 0xa5, sizeof data);
    request(fd, NBD_FLAG_PAYLOAD_LEN | NBD_FLAG_FUA, NBD_CMD_WRITE, 9,
            5 * GIB, sizeof data);
    raw_send(fd, data, sizeof data);
    done(fd, 9, 5 * GIB);
    read_back(fd, 5 * GIB, 4096, 0xa5);
    /* Longer than 32 bits can say. */
    request(fd, 0, NBD_CMD_WRITE_ZEROES, 10, GIB, 10 * GIB);
    done(fd, 10, GIB);
    read_back(fd, 5 * GIB, 4096, 0);
    request(fd, 0, NBD_CMD_TRIM, 11, 0, 16 * GIB);
    done(fd, 11, 0);
    request(fd, 0, NBD_CMD_FLUSH, 12, 0, 0);
    done(fd, 12, 0);
    status(fd, 0, 0, 16 * GIB, x, 2);
    expect(&x[0], 0, 16 * GIB, NBD_STATE_HOLE | NBD_STATE_ZERO);
    request(fd, 0, NBD_CMD_DISC, 0, 0, 0);
    close(fd);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        FAIL("extended SOCKET");
    narrow(argv[1]);
    broad(argv[1]);
    return 0;
}
