/* Many connections of random mixed requests, each verified.
 *
 *   soak SOCKET [CONNECTIONS [SECONDS]]
 * Every connection has a stripe of the export "" of its own and a copy of it
 * in memory; reads must give the copy.  At the end one connection flushes and
 * reads the stripes of all (multi-conn).
 */
#include <libnbd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { STRIPE = 512 << 10, MOST = 150000 };

static const char *path;
static atomic_bool stop;
static atomic_ulong requests;

struct worker {
    pthread_t thread;
    unsigned index;
    uint64_t seed;
    uint8_t *copy;
};

static void die(const char *what)
{
    fprintf(stderr, "soak: %s: %s\n", what, nbd_get_error());
    exit(1);
}

static uint32_t rnd(struct worker *w)
{
    w->seed = w->seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(w->seed >> 33);
}

static struct nbd_handle *dial(void)
{
    struct nbd_handle *h = nbd_create();

    if (!h || nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0 ||
        nbd_connect_unix(h, path) < 0)
        die("connect");
    if (nbd_can_multi_conn(h) != 1) {
        fprintf(stderr, "soak: multi-conn is not offered\n");
        exit(1);
    }
    return h;
}

static void verify(const uint8_t *got, const uint8_t *want, size_t len,
                   unsigned index, size_t at, const char *when)
{
    for (size_t i = 0; i < len; i++)
        if (got[i] != want[i]) {
            fprintf(stderr, "soak: %s: stripe %u, byte %zu: %02x, not "
                    "%02x\n", when, index, at + i, got[i], want[i]);
            exit(1);
        }
}

static int count_extents(void *opaque, const char *context, uint64_t offset,
                         uint32_t *entries, size_t n, int *error)
{
    uint64_t *total = opaque;

    for (size_t i = 0; i < n; i += 2)
        *total += entries[i];
    return 0;
}

static void one(struct worker *w, struct nbd_handle *h, uint8_t *buf)
{
    size_t at = rnd(w) % STRIPE, len = 1 + rnd(w) % MOST;
    uint64_t base = (uint64_t)w->index * STRIPE, total = 0;
    uint32_t flags = rnd(w) % 16 ? 0 : LIBNBD_CMD_FLAG_FUA;

    if (rnd(w) % 2) {           /* like a guest's */
        at &= ~(size_t)4095;
        len = (1 + len % 8) * 4096;
    }
    if (len > STRIPE - at)
        len = STRIPE - at;
    switch (rnd(w) % 16) {
    case 0:
        if (nbd_zero(h, len, base + at, flags |
                     (rnd(w) % 2 ? LIBNBD_CMD_FLAG_NO_HOLE : 0)) < 0)
            die("zero");
        memset(w->copy + at, 0, len);
        break;
    case 1:                     /* what it reads as is for the server to say */
        if (nbd_trim(h, len, base + at, flags) < 0 ||
            nbd_pread(h, w->copy + at, len, base + at, 0) < 0)
            die("trim");
        break;
    case 2:
        if (rnd(w) % 8 == 0 && nbd_flush(h, 0) < 0)
            die("flush");
        break;
    case 3:
        if (nbd_block_status(h, len, base + at,
                             (nbd_extent_callback){
                                 .callback = count_extents,
                                 .user_data = &total }, 0) < 0 || !total)
            die("block status");
        break;
    case 4: case 5: case 6: case 7: case 8:
        memset(w->copy + at, (int)rnd(w), len);
        w->copy[at] = (uint8_t)at;
        if (nbd_pwrite(h, w->copy + at, len, base + at, flags) < 0)
            die("write");
        break;
    default:
        if (nbd_pread(h, buf, len, base + at, 0) < 0)
            die("read");
        verify(buf, w->copy + at, len, w->index, at, "read");
    }
}

static void *work(void *opaque)
{
    struct worker *w = opaque;
    struct nbd_handle *h = dial();
    uint8_t *buf = malloc(MOST);

    while (!atomic_load(&stop)) {
        one(w, h, buf);
        atomic_fetch_add(&requests, 1);
        if (rnd(w) % 2000 == 0) {
            nbd_close(h);       /* without a goodbye */
            h = dial();
        }
    }
    nbd_shutdown(h, 0);
    nbd_close(h);
    free(buf);
    return NULL;
}

int main(int argc, char **argv)
{
    unsigned n = argc > 2 ? (unsigned)atoi(argv[2]) : 64;
    struct timespec t = { .tv_sec = argc > 3 ? atoi(argv[3]) : 3 };
    struct worker *w = calloc(n, sizeof *w);
    uint8_t *all = malloc(STRIPE);
    struct nbd_handle *h;

    path = argv[1];
    h = dial();
    for (unsigned i = 0; i < n; i++) {
        w[i] = (struct worker){ .index = i, .seed = i * 77 + 1 };
        w[i].copy = malloc(STRIPE);
        if (nbd_pread(h, w[i].copy, STRIPE, (uint64_t)i * STRIPE, 0) < 0)
            die("first read");
        if (pthread_create(&w[i].thread, NULL, work, &w[i]))
            die("thread");
    }
    nanosleep(&t, NULL);
    atomic_store(&stop, true);
    for (unsigned i = 0; i < n; i++)
        pthread_join(w[i].thread, NULL);
    if (nbd_flush(h, 0) < 0)
        die("flush");
    for (unsigned i = 0; i < n; i++) {
        if (nbd_pread(h, all, STRIPE, (uint64_t)i * STRIPE, 0) < 0)
            die("last read");
        verify(all, w[i].copy, STRIPE, i, 0, "at the end");
        free(w[i].copy);
    }
    printf("%lu requests on %u connections\n", atomic_load(&requests), n);
    nbd_shutdown(h, 0);
    nbd_close(h);
    free(all);
    free(w);
    return 0;
}
