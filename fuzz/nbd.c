/* Fuzz target: the handshake and the transmission phase of vimg-nbd, with
 * whatever bytes as the client's.  The session ends, frees what it took, and
 * what it sends is a row of well-formed messages.
 *
 * The first byte says how many bytes arrive at a time (0 = all). */
#include "fuzz.h"
#include "../nbd/session.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { DISK = 256 << 10 };

struct client {
    struct nbd_stream stream;
    const uint8_t *in;
    size_t len, step;
    uint64_t sent;
};

static ssize_t client_recv(struct nbd_stream *s, void *buf, size_t len)
{
    struct client *c = s->opaque;

    if (len > c->len)
        len = c->len;
    if (c->step && len > c->step)
        len = c->step;
    memcpy(buf, c->in, len);
    c->in += len;
    c->len -= len;
    return (ssize_t)len;
}

static bool client_send(struct nbd_stream *s, struct iovec *iov, int n)
{
    static uint8_t sink[4096];
    struct client *c = s->opaque;

    for (int i = 0; i < n; i++) {
        const uint8_t *p = iov[i].iov_base;

        /* Every byte must be there and defined. */
        for (size_t k = 0; k < iov[i].iov_len; k++)
            sink[k % sizeof sink] ^= p[k];
        c->sent += iov[i].iov_len;
    }
    return c->sent < (UINT64_C(1) << 30);
}

static struct nbd_exports *exports(void)
{
    static struct nbd_exports all;
    struct nbd_image_options o = {
        .format = "raw", .discard = true, .depth = true, .multi_conn = true
    };
    struct img_error err;
    char path[64];
    int fd;

    if (all.catalog.n)
        return &all;
    fd = memfd_create("fuzz", 0);
    FUZZ_ASSERT(fd >= 0 && ftruncate(fd, DISK) == 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    FUZZ_ASSERT(nbd_exports_add(&all, "", "fuzz", path, &o, &err) == 0);
    o.offset = 1000;
    o.detect_zeroes = true;
    FUZZ_ASSERT(nbd_exports_add(&all, "part", NULL, path, &o, &err) == 0);
    return &all;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct nbd_service service = { .catalog = &exports()->catalog };
    struct client c = { .in = data + 1, .len = len ? len - 1 : 0 };

    if (!len)
        return 0;
    c.step = data[0];
    c.stream = (struct nbd_stream){
        .recv = client_recv, .send = client_send, .fd = -1, .opaque = &c
    };
    nbd_session_run(&service, &c.stream);
    FUZZ_ASSERT(c.sent >= 18);
    return 0;
}
