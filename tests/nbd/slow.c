/* A slow request does not hold up those that come behind it on the same
 * connection.
 *
 *   slow SOCKET structured|simple GATE
 *   slow SOCKET stop GATE PID
 *   slow SOCKET order
 * The export is slow from its middle on: everything there waits until there is
 * a file GATE.
 * For each kind of request one of those is sent, and then a read of the first
 * bytes: its reply must come first.
 *
 * stop: the server is told to end while it writes; the write is finished and
 * answered all the same, and then the connection ends.
 *
 * order: of a read that begins with what is at hand and goes on with what is
 * not, the last chunk comes last.  The export is a qcow2 of 64 KiB clusters;
 * every second one is compressed, the others are holes.
 */
#include <fcntl.h>
#include <signal.h>
#include "raw.h"

enum { MIDDLE = 32 << 20, FAST = 99 };

static uint64_t structured_reply(int fd)
{
    static uint8_t data[65536];
    uint8_t h[NBD_CHUNK_SIZE];
    uint32_t len;

    for (;;) {
        if (!raw_recv(fd, h, 4))
            FAIL("the server has closed");
        if (nbd_get32(h) == NBD_SIMPLE_MAGIC) {
            if (!raw_recv(fd, h + 4, NBD_SIMPLE_SIZE - 4))
                FAIL("the server has closed");
            if (nbd_get32(h + 4))
                FAIL("error %u", nbd_get32(h + 4));
            return nbd_get64(h + 8);
        }
        if (!raw_recv(fd, h + 4, sizeof h - 4))
            FAIL("the server has closed");
        len = nbd_get32(h + 16);
        for (uint32_t n; len; len -= n) {
            n = len < sizeof data ? len : (uint32_t)sizeof data;
            raw_recv(fd, data, n);
        }
        if (nbd_get16(h + 6) & 0x8000)
            FAIL("error chunk for request %u", (unsigned)nbd_get64(h + 8));
        if (nbd_get16(h + 4) & NBD_REPLY_DONE)
            return nbd_get64(h + 8);
    }
}

static uint64_t simple_reply(int fd, uint32_t slow_read)
{
    static uint8_t data[1 << 20];
    uint64_t cookie;

    if (raw_simple(fd, &cookie) != 0)
        FAIL("error");
    if (cookie == FAST)
        raw_recv(fd, data, 512);
    else if (slow_read)
        raw_recv(fd, data, slow_read);
    return cookie;
}

/* The slow half waits for this file, so that it is the test that says which
 * request is done first. */
static void open_gate(const char *gate)
{
    int fd = open(gate, O_WRONLY | O_CREAT, 0600);

    if (fd < 0)
        FAIL("%s: %s", gate, strerror(errno));
    close(fd);
}

static void stop(const char *path, const char *gate, pid_t server)
{
    static uint8_t data[4096];
    int fd = raw_go(path, 0);
    uint64_t cookie;
    uint8_t b;

    raw_request(fd, 0, NBD_CMD_WRITE, 1, MIDDLE, sizeof data);
    raw_send(fd, data, sizeof data);
    raw_request(fd, 0, NBD_CMD_READ, FAST, 0, 512);
    if (simple_reply(fd, 0) != FAST)
        FAIL("the slow write came first");
    if (kill(server, SIGTERM) < 0)
        FAIL("kill: %s", strerror(errno));
    open_gate(gate);
    if (raw_simple(fd, &cookie) != 0 || cookie != 1)
        FAIL("the write under way was not answered");
    if (raw_recv(fd, &b, 1))
        FAIL("more than the answer");
}

/* The chunks of one reply; what belongs to other requests is counted. */
static void all_chunks(int fd, uint64_t cookie, uint32_t want,
                       unsigned *others)
{
    uint8_t h[NBD_CHUNK_SIZE], data[8], rest[4096];
    uint32_t seen = 0;

    for (;;) {
        uint32_t len, n;

        if (!raw_recv(fd, h, sizeof h) ||
            nbd_get32(h) != NBD_CHUNK_MAGIC || nbd_get16(h + 6) & 0x8000)
            FAIL("no good chunk");
        len = nbd_get32(h + 16);
        if (len && (len < 8 || !raw_recv(fd, data, 8)))
            FAIL("short chunk");
        len -= len ? 8 : 0;
        if (nbd_get64(h + 8) == cookie) {
            if (nbd_get16(h + 6) == NBD_REPLY_OFFSET_DATA) {
                seen += len;
            } else if (nbd_get16(h + 6) == NBD_REPLY_OFFSET_HOLE) {
                raw_recv(fd, rest, 4);
                seen += nbd_get32(rest);
                len -= 4;
            }
        } else if (nbd_get16(h + 4) & NBD_REPLY_DONE) {
            ++*others;
        }
        for (; len; len -= n) {
            n = len < sizeof rest ? len : (uint32_t)sizeof rest;
            raw_recv(fd, rest, n);
        }
        if (nbd_get64(h + 8) == cookie &&
            (nbd_get16(h + 4) & NBD_REPLY_DONE)) {
            if (seen != want)
                FAIL("%u of %u bytes were there at the end", seen, want);
            return;
        }
    }
}

static void order(const char *path)
{
    enum { PAIR = 128 << 10, PAIRS = 200, MORE = 60 };
    int fd = raw_go(path, NBD_OPT_STRUCTURED_REPLY);
    uint8_t burst[(MORE + 1) * NBD_REQUEST_SIZE];

    for (unsigned i = 0; i < PAIRS; i++) {
        unsigned others = 0;

        for (unsigned k = 0; k <= MORE; k++) {
            uint8_t *r = burst + k * NBD_REQUEST_SIZE;

            memset(r, 0, NBD_REQUEST_SIZE);
            nbd_put32(r, NBD_REQUEST_MAGIC);
            nbd_put64(r + 8, k ? 1000 + k : i);
            nbd_put64(r + 16, (uint64_t)i * PAIR);
            nbd_put32(r + 24, k ? 512 : PAIR);
        }
        raw_send(fd, burst, sizeof burst);
        all_chunks(fd, i, PAIR, &others);
        while (others < MORE)
            if (structured_reply(fd) > 1000)
                others++;
    }
    close(fd);
}

int main(int argc, char **argv)
{
    static const uint8_t query[] =
        "\0\0\0\0\0\0\0\1\0\0\0\17base:allocation";
    static uint8_t data[1 << 20];
    static const struct { uint16_t type, flags; uint32_t len; } slow[] = {
        { NBD_CMD_READ, 0, 4096 }, { NBD_CMD_READ, 0, 1 << 20 },
        { NBD_CMD_WRITE, 0, 4096 }, { NBD_CMD_WRITE, 0, 1 << 20 },
        { NBD_CMD_WRITE, NBD_FLAG_FUA, 512 },
        { NBD_CMD_WRITE_ZEROES, 0, 65536 }, { NBD_CMD_CACHE, 0, 4096 },
        { NBD_CMD_FLUSH, 0, 0 }, { NBD_CMD_BLOCK_STATUS, 0, 65536 }
    };
    bool structured;
    int fd;

    if (argc == 3 && !strcmp(argv[2], "order")) {
        order(argv[1]);
        return 0;
    }
    if (argc < 4)
        FAIL("slow SOCKET structured|simple|stop GATE [PID]");
    if (!strcmp(argv[2], "stop") && argc == 5) {
        stop(argv[1], argv[3], (pid_t)atoi(argv[4]));
        return 0;
    }
    structured = !strcmp(argv[2], "structured");
    fd = raw_greet(argv[1]);
    if (structured) {
        raw_option(fd, NBD_OPT_STRUCTURED_REPLY, "", 0);
        if (raw_verdict(fd) != NBD_REP_ACK)
            FAIL("structured replies");
        raw_option(fd, NBD_OPT_SET_META_CONTEXT, query, sizeof query - 1);
        if (raw_verdict(fd) != NBD_REP_ACK)
            FAIL("base:allocation");
    }
    raw_option(fd, NBD_OPT_GO, "\0\0\0\0\0\0", 6);
    if (raw_verdict(fd) != NBD_REP_ACK)
        FAIL("GO");
    for (unsigned i = 0; i < sizeof slow / sizeof slow[0]; i++) {
        uint64_t first, second;
        uint32_t reads = slow[i].type == NBD_CMD_READ ? slow[i].len : 0;

        if (slow[i].type == NBD_CMD_BLOCK_STATUS && !structured)
            break;
        raw_request(fd, slow[i].flags, slow[i].type, i,
                    slow[i].type == NBD_CMD_FLUSH ? 0 : MIDDLE, slow[i].len);
        if (slow[i].type == NBD_CMD_WRITE)
            raw_send(fd, data, slow[i].len);
        raw_request(fd, 0, NBD_CMD_READ, FAST, 0, 512);
        first = structured ? structured_reply(fd) : simple_reply(fd, reads);
        open_gate(argv[3]);
        second = structured ? structured_reply(fd) : simple_reply(fd, reads);
        if (first != FAST || second != i)
            FAIL("request %u (type %u): the replies came as %u, %u", i,
                 slow[i].type, (unsigned)first, (unsigned)second);
        unlink(argv[3]);
    }
    raw_request(fd, 0, NBD_CMD_DISC, 0, 0, 0);
    return 0;
}
