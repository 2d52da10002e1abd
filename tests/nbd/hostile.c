/* Clients that no server should meet.  After each of them the server must
 * serve an honest one.
 *
 *   hostile SOCKET          all cases, against an export "" of 16 MiB
 *   hostile SOCKET silent   opens 40 connections that say nothing and half
 *                           an option, prints "ready" and waits for the end
 *   hostile SOCKET more N   N clients are served, one more has to wait
 */
#include "raw.h"

enum { DISK = 16 << 20 };

static const char *path;

static void honest(const char *after)
{
    int fd = raw_go(path, 0);
    uint8_t data[4096];
    uint64_t cookie;

    if (!raw_request(fd, 0, NBD_CMD_READ, 7, 4096, sizeof data) ||
        raw_simple(fd, &cookie) != 0 || cookie != 7 ||
        !raw_recv(fd, data, sizeof data))
        FAIL("the server does not serve any more after %s", after);
    raw_request(fd, 0, NBD_CMD_DISC, 0, 0, 0);
    close(fd);
}

static void expect(int fd, uint32_t want, const char *what)
{
    uint32_t got = raw_verdict(fd);

    if (got != want)
        FAIL("%s: reply %x, not %x", what, got, want);
}

static void expect_end(int fd, const char *what)
{
    uint8_t b;

    while (raw_recv(fd, &b, 1))
        ;
    (void)what;
    close(fd);
}

/* A payload with a name of n bytes and no requests for information. */
static uint32_t name_option(uint8_t *p, uint32_t n)
{
    nbd_put32(p, n);
    memset(p + 4, 'x', n);
    nbd_put16(p + 4 + n, 0);
    return n + 6;
}

/* CVE-2017-15118: a name longer than the buffer for names. */
static void cve_2017_15118(void)
{
    static uint8_t p[65536];
    uint32_t sizes[] = { 4097, 8192, 60000 };

    for (unsigned i = 0; i < 3; i++) {
        int fd = raw_greet(path);

        raw_option(fd, NBD_OPT_GO, p, name_option(p, sizes[i]));
        expect(fd, NBD_REP_ERR_INVALID, "long name");
        raw_option(fd, NBD_OPT_INFO, p, name_option(p, sizes[i]));
        expect(fd, NBD_REP_ERR_INVALID, "long name");
        memset(p, 'x', sizeof p);
        raw_option(fd, NBD_OPT_EXPORT_NAME, p, sizes[i]);
        expect_end(fd, "long name");
    }
}

/* CVE-2017-15119: options as long as the protocol lets them be. */
static void cve_2017_15119(void)
{
    static uint8_t big[1 << 20];
    uint8_t h[NBD_OPTION_SIZE];
    int fd = raw_greet(path);

    /* In batches: who never reads fills the socket both ways, and is sent
     * away when the handshake's time is up. */
    for (unsigned n = 0; n < 10; n++) {
        for (unsigned i = 0; i < 20; i++)
            raw_option(fd, 0x12345678 + i, big, 1000);
        for (unsigned i = 0; i < 20; i++)
            expect(fd, NBD_REP_ERR_UNSUP, "unknown option");
    }
    raw_option(fd, NBD_OPT_LIST, big, sizeof big);
    expect(fd, NBD_REP_ERR_TOO_BIG, "1 MiB option");
    raw_option(fd, NBD_OPT_LIST, "", 0);
    expect(fd, NBD_REP_ACK, "the option after it");
    nbd_put64(h, NBD_OPTS_MAGIC);
    nbd_put32(h + 8, NBD_OPT_LIST);
    nbd_put32(h + 12, UINT32_MAX);
    raw_send(fd, h, sizeof h);
    expect_end(fd, "4 GiB option");
}

/* CVE-2020-10761: an unknown name of the greatest length, which an error
 * message that quotes it cannot hold. */
static void cve_2020_10761(void)
{
    static uint8_t p[8192];
    int fd = raw_greet(path);

    raw_option(fd, NBD_OPT_GO, p, name_option(p, 4096));
    expect(fd, NBD_REP_ERR_UNKNOWN, "unknown name");
    raw_option(fd, NBD_OPT_ABORT, "", 0);
    expect_end(fd, "abort");
}

static void bad_options(void)
{
    static const uint8_t lens[] = { 0xff, 0xff, 0xff, 0xff, 0, 0 };
    static const uint8_t meta[] = { 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff };
    static const uint8_t meta2[] = { 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9, 'b' };
    int fd = raw_greet(path);

    for (uint32_t o = NBD_OPT_INFO; o <= NBD_OPT_GO; o++)
        for (uint32_t n = 0; n < sizeof lens; n++) {
            raw_option(fd, o, lens, n);
            expect(fd, NBD_REP_ERR_INVALID, "short GO");
        }
    raw_option(fd, NBD_OPT_SET_META_CONTEXT, meta, sizeof meta);
    expect(fd, NBD_REP_ERR_INVALID, "context before structured replies");
    raw_option(fd, NBD_OPT_STRUCTURED_REPLY, "xx", 2);
    expect(fd, NBD_REP_ERR_INVALID, "payload where there is none");
    raw_option(fd, NBD_OPT_STRUCTURED_REPLY, "", 0);
    expect(fd, NBD_REP_ACK, "structured replies");
    raw_option(fd, NBD_OPT_STRUCTURED_REPLY, "", 0);
    expect(fd, NBD_REP_ERR_INVALID, "structured replies again");
    raw_option(fd, NBD_OPT_SET_META_CONTEXT, meta, sizeof meta);
    expect(fd, NBD_REP_ERR_INVALID, "too many queries");
    raw_option(fd, NBD_OPT_LIST_META_CONTEXT, meta2, sizeof meta2);
    expect(fd, NBD_REP_ERR_INVALID, "short query");
    raw_option(fd, NBD_OPT_STARTTLS, "", 0);
    expect(fd, NBD_REP_ERR_POLICY, "TLS without credentials");
    raw_send(fd, "garbage that is no option", 25);
    expect_end(fd, "bad magic");
    fd = raw_dial(path);
    raw_send(fd, "\xff\xff\xff\xff", 4);
    expect_end(fd, "bad client flags");
}

static void flood(void)
{
    int fd = raw_greet(path);

    for (unsigned i = 0; i < 20000; i++)
        if (!raw_option(fd, NBD_OPT_LIST, "", 0))
            break;
    close(fd);
}

static void bad_requests(void)
{
    static const struct {
        uint16_t flags, type;
        uint64_t off;
        uint32_t len, error;
    } r[] = {
        { 0, NBD_CMD_READ, DISK, 1, NBD_EINVAL },
        { 0, NBD_CMD_READ, DISK - 1, 2, NBD_EINVAL },
        { 0, NBD_CMD_READ, UINT64_MAX, UINT32_MAX, NBD_EINVAL },
        { 0, NBD_CMD_READ, 0, UINT32_MAX, NBD_EINVAL },
        { 0, NBD_CMD_TRIM, DISK - 1, 2, NBD_EINVAL },
        { 0, NBD_CMD_WRITE_ZEROES, DISK - 1, 2, NBD_ENOSPC },
        { 0, NBD_CMD_WRITE_ZEROES, UINT64_MAX - 1, 8, NBD_ENOSPC },
        { 0, NBD_CMD_CACHE, DISK, 2, NBD_EINVAL },
        { 0, NBD_CMD_BLOCK_STATUS, 0, 4096, NBD_EINVAL },
        { 0, 8, 0, 4096, NBD_EINVAL },
        { 0, 0xffff, 0, 4096, NBD_EINVAL },
        { 0xffff, NBD_CMD_READ, 0, 4096, NBD_EINVAL },
        { NBD_FLAG_DF, NBD_CMD_READ, 0, 4096, NBD_EINVAL },
        { NBD_FLAG_REQ_ONE, NBD_CMD_FLUSH, 0, 0, NBD_EINVAL }
    };
    int fd = raw_go(path, 0);

    for (unsigned i = 0; i < sizeof r / sizeof r[0]; i++) {
        uint64_t cookie = 0;
        int64_t error;

        raw_request(fd, r[i].flags, r[i].type, i + 1, r[i].off, r[i].len);
        error = raw_simple(fd, &cookie);
        if (error != r[i].error || cookie != i + 1)
            FAIL("request %u: error %d, not %u", i, (int)error, r[i].error);
    }
    close(fd);
}

static void big_writes(void)
{
    static uint8_t zeros[1 << 20];
    uint32_t sizes[] = { 64 << 20, UINT32_MAX };

    for (unsigned i = 0; i < 2; i++) {
        int fd = raw_go(path, 0);
        uint32_t left = sizes[i];

        raw_request(fd, 0, NBD_CMD_WRITE, 1, 0, left);
        while (left && raw_send(fd, zeros, left < sizeof zeros ? left :
                                sizeof zeros))
            left -= left < sizeof zeros ? left : (uint32_t)sizeof zeros;
        if (i == 0 && raw_simple(fd, NULL) != NBD_ENOSPC)
            FAIL("a write of 64 MiB into 16 MiB");
        close(fd);
    }
}

/* Half a request, half a payload, then gone; or nonsense. */
static void torn(void)
{
    struct linger reset = { 1, 0 };
    uint8_t bytes[NBD_REQUEST_SIZE + 100] = { 0 };

    for (size_t n = 1; n < sizeof bytes; n += 9) {
        int fd = raw_go(path, 0);

        nbd_put32(bytes, NBD_REQUEST_MAGIC);
        nbd_put16(bytes + 6, NBD_CMD_WRITE);
        nbd_put64(bytes + 16, DISK - 4096);
        nbd_put32(bytes + 24, 4096);
        raw_send(fd, bytes, n);
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(fd);
    }
    for (unsigned i = 0; i < 20; i++) {
        int fd = raw_go(path, i % 2 ? NBD_OPT_STRUCTURED_REPLY :
                        NBD_OPT_EXTENDED_HEADERS);

        memset(bytes, (int)(i * 37), sizeof bytes);
        raw_send(fd, bytes, sizeof bytes);
        expect_end(fd, "nonsense");
    }
}

/* Asks for much, takes nothing. */
static void deaf(void)
{
    int fds[8];

    for (unsigned i = 0; i < 8; i++) {
        struct timeval t = { .tv_usec = 200000 };

        fds[i] = raw_go(path, 0);
        setsockopt(fds[i], SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t);
        for (unsigned k = 0; k < 100; k++)
            if (!raw_request(fds[i], 0, NBD_CMD_READ, k, 0, 8 << 20))
                break;
    }
    honest("deaf clients, while they are there");
    for (unsigned i = 0; i < 8; i++)
        close(fds[i]);
}

static void extended_nonsense(void)
{
    uint8_t r[NBD_EXT_REQUEST_SIZE] = { 0 }, reply[NBD_EXT_CHUNK_SIZE];
    int fd = raw_go(path, NBD_OPT_EXTENDED_HEADERS);

    nbd_put32(r, NBD_EXT_REQUEST_MAGIC);
    nbd_put16(r + 4, NBD_FLAG_PAYLOAD_LEN);
    nbd_put16(r + 6, NBD_CMD_BLOCK_STATUS);
    nbd_put64(r + 24, 16);
    raw_send(fd, r, sizeof r);
    raw_send(fd, "\0\0\0\0\0\0\x10\0\0\0\0\x63\0\0\0\x63", 16);
    if (!raw_recv(fd, reply, sizeof reply) ||
        nbd_get32(reply) != NBD_EXT_CHUNK_MAGIC ||
        nbd_get16(reply + 6) != NBD_REPLY_ERROR)
        FAIL("BLOCK_STATUS with contexts nobody agreed on");
    close(fd);
    fd = raw_go(path, NBD_OPT_EXTENDED_HEADERS);
    nbd_put16(r + 6, NBD_CMD_WRITE);
    nbd_put64(r + 24, UINT64_MAX);
    raw_send(fd, r, sizeof r);
    expect_end(fd, "a payload without end");
}

static void silent(void)
{
    uint8_t b;

    for (unsigned i = 0; i < 40; i++) {
        int fd = raw_greet(path);

        if (i % 2)
            raw_send(fd, "IHAVEOPT\0\0", 10);
        if (i == 39) {
            puts("ready");
            fflush(stdout);
            while (raw_recv(fd, &b, 1))
                ;
        }
    }
}

/* Connects; whether the server says anything within so long. */
static bool is_greeted(int *fd, int ms)
{
    struct pollfd p = { .events = POLLIN };

    if (*fd < 0)
        *fd = raw_dial(path);
    p.fd = *fd;
    return poll(&p, 1, ms) == 1;
}

static void more(int n)
{
    int fds[64], last = -1;

    for (int i = 0; i < n && i < 64; i++) {
        fds[i] = -1;
        if (!is_greeted(&fds[i], 20000))
            FAIL("client %d is not served", i + 1);
    }
    if (is_greeted(&last, 300))
        FAIL("client %d is served too", n + 1);
    close(fds[0]);
    if (!is_greeted(&last, 20000))
        FAIL("one has left, and the next one is not served");
}

int main(int argc, char **argv)
{
    static const struct { const char *name; void (*run)(void); } cases[] = {
        { "CVE-2017-15118", cve_2017_15118 },
        { "CVE-2017-15119", cve_2017_15119 },
        { "CVE-2020-10761", cve_2020_10761 },
        { "bad options", bad_options }, { "flood of options", flood },
        { "bad requests", bad_requests }, { "big writes", big_writes },
        { "torn requests", torn }, { "deaf clients", deaf },
        { "extended nonsense", extended_nonsense }
    };

    if (argc < 2)
        FAIL("hostile SOCKET [silent]");
    path = argv[1];
    if (argc > 3) {
        more(atoi(argv[3]));
        return 0;
    }
    if (argc > 2) {
        silent();
        return 0;
    }
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        printf("%s\n", cases[i].name);
        fflush(stdout);
        cases[i].run();
        honest(cases[i].name);
    }
    return 0;
}
