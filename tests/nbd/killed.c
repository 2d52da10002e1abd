/* The server is killed while many connections write; what was flushed must be
 * there afterwards.
 *
 *   killed SOCKET PID STATE     writes for a second, kill -9, says in STATE
 *                               what may be there
 *   killed SOCKET verify STATE  looks
 * Each block that is written holds its number and a version, over and over.
 * Of each the version that was flushed last and the one that was sent last
 * are known: whatever is found must be one of those or between.
 */
#include "raw.h"
#include <pthread.h>
#include <signal.h>
#include <time.h>

enum { CONNECTIONS = 16, BLOCK = 4096, BLOCKS = 256 };

struct range {
    uint32_t flushed, sent;
};

struct writer {
    pthread_t thread;
    const char *path;
    unsigned index;
    uint32_t seed;
    uint64_t flushes;
    struct range state[BLOCKS];
};

/* No raw_recv: that the server goes away is what is expected. */
static bool get(int fd, void *buf, size_t len)
{
    return recv(fd, buf, len, MSG_WAITALL) == (ssize_t)len;
}

static bool done(int fd)
{
    uint8_t r[NBD_SIMPLE_SIZE];

    if (!get(fd, r, sizeof r))
        return false;
    if (nbd_get32(r) != NBD_SIMPLE_MAGIC || nbd_get32(r + 4))
        FAIL("error %u", nbd_get32(r + 4));
    return true;
}

static uint64_t place(unsigned writer, unsigned block)
{
    /* Interleaved, so that they share clusters. */
    return ((uint64_t)block * CONNECTIONS + writer) * BLOCK;
}

static void *work(void *opaque)
{
    struct writer *w = opaque;
    uint32_t data[BLOCK / 4], version = 0;
    int fd = raw_go(w->path, 0);

    for (;;) {
        unsigned b;

        w->seed = w->seed * 1664525 + 1013904223;
        b = (w->seed >> 16) % BLOCKS;
        if ((w->seed >> 8) % 32 == 0) {
            struct range then[BLOCKS];

            memcpy(then, w->state, sizeof then);
            if (!raw_request(fd, 0, NBD_CMD_FLUSH, 1, 0, 0) || !done(fd))
                break;
            for (unsigned i = 0; i < BLOCKS; i++)
                w->state[i].flushed = then[i].sent;
            w->flushes++;
            continue;
        }
        w->state[b].sent = ++version;
        for (unsigned i = 0; i < BLOCK / 4; i += 2) {
            data[i] = w->index * BLOCKS + b;
            data[i + 1] = version;
        }
        if (!raw_request(fd, 0, NBD_CMD_WRITE, 1, place(w->index, b), BLOCK)
            || !raw_send(fd, data, sizeof data) || !done(fd))
            break;
    }
    close(fd);
    return NULL;
}

static void verify(const char *path, FILE *f)
{
    int fd = raw_go(path, 0);
    unsigned long found = 0;

    for (unsigned w = 0; w < CONNECTIONS; w++)
        for (unsigned b = 0; b < BLOCKS; b++) {
            uint32_t data[BLOCK / 4], version;
            struct range r;

            if (fread(&r, sizeof r, 1, f) != 1)
                FAIL("the state is cut off");
            if (!raw_request(fd, 0, NBD_CMD_READ, 1, place(w, b), BLOCK) ||
                !done(fd) || !get(fd, data, sizeof data))
                FAIL("read");
            version = data[1];
            for (unsigned i = 0; i < BLOCK / 4; i += 2)
                if (data[i + 1] != version ||
                    data[i] != (version ? w * BLOCKS + b : 0))
                    FAIL("block %u of %u: torn, or another's", b, w);
            if (version < r.flushed || version > r.sent)
                FAIL("block %u of %u: version %u is not in %u..%u", b, w,
                     version, r.flushed, r.sent);
            found += version > 0;
        }
    printf("%lu blocks\n", found);
}

int main(int argc, char **argv)
{
    static struct writer w[CONNECTIONS];
    struct timespec second = { .tv_sec = 1 };
    uint64_t flushes = 0;
    FILE *f;

    if (argc < 4 || !(f = fopen(argv[3], strcmp(argv[2], "verify") ? "w"
                                                                   : "r")))
        FAIL("killed SOCKET PID|verify STATE");
    if (!strcmp(argv[2], "verify")) {
        verify(argv[1], f);
        return 0;
    }
    for (unsigned i = 0; i < CONNECTIONS; i++) {
        w[i].path = argv[1];
        w[i].index = i;
        w[i].seed = i * 7919 + (unsigned)getpid();
        if (pthread_create(&w[i].thread, NULL, work, &w[i]))
            FAIL("thread");
    }
    nanosleep(&second, NULL);
    if (kill((pid_t)atoi(argv[2]), SIGKILL) < 0)
        FAIL("kill: %s", strerror(errno));
    for (unsigned i = 0; i < CONNECTIONS; i++) {
        pthread_join(w[i].thread, NULL);
        flushes += w[i].flushes;
        fwrite(w[i].state, sizeof w[i].state, 1, f);
    }
    if (fclose(f) || !flushes)
        FAIL("nothing was flushed");
    return 0;
}
