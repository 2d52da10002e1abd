/* nbdload: how many requests a second does an NBD server answer?
 *
 * As lean as a client can be, so that the server is what is measured: one
 * thread per connection, `depth` requests in flight, many requests per send
 * and many replies per recv, nothing looked at but headers.  With -V the
 * data is looked at: every 8 bytes of the disk must hold their own offset
 * (-W writes that first); random writes keep it that way.  Of each sector the
 * first and the last 8 bytes are compared, so that it is not the client that
 * is measured.
 *
 *   nbdload -k SOCKET | -p PORT [-x EXPORT] [-m randread|randwrite|read|write]
 *           [-n CONNECTIONS] [-d DEPTH] [-s BYTES] [-t SECONDS] [-P PID]
 *           [-r RANGE] [-S] [-V] [-W]
 * prints one line: requests/s, MB/s, and with -P the server's CPU
 * microseconds per request.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "../../nbd/wire.h"

enum { BUFFER = 1 << 20, MAX_DEPTH = 256 };

static const char *path, *export_name = "";
static int port, depth = 1, n_conns = 1, seconds = 3, pid;
static uint32_t length = 4096;
static bool writing, sequential, structured, verify, fill;
static uint64_t range;
static atomic_bool stop;

struct conn {
    pthread_t thread;
    int fd, index;
    uint64_t size, seed, next, done;
    uint64_t offs[MAX_DEPTH];
    uint8_t *in, *out;
    size_t in_len, in_pos, out_len;
};

static void die(const char *what)
{
    fprintf(stderr, "nbdload: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* User and system time of the server, in seconds. */
static double cpu_of(int p)
{
    char name[64], line[1024], *s;
    unsigned long u = 0, k = 0;
    FILE *f;

    snprintf(name, sizeof name, "/proc/%d/stat", p);
    f = fopen(name, "r");
    if (!f || !fgets(line, sizeof line, f))
        die(name);
    fclose(f);
    s = strrchr(line, ')');
    if (sscanf(s + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu",
               &u, &k) != 2)
        die(name);
    return (double)(u + k) / (double)sysconf(_SC_CLK_TCK);
}

static void send_all(int fd, const void *buf, size_t len)
{
    const char *p = buf;

    while (len) {
        ssize_t r = send(fd, p, len, MSG_NOSIGNAL);

        if (r < 0 && errno != EINTR)
            die("send");
        if (r > 0) {
            p += r;
            len -= (size_t)r;
        }
    }
}

static void recv_all(int fd, void *buf, size_t len)
{
    char *p = buf;

    while (len) {
        ssize_t r = recv(fd, p, len, 0);

        if (r == 0)
            errno = EPIPE;
        if (r == 0 || (r < 0 && errno != EINTR))
            die("recv");
        if (r > 0) {
            p += r;
            len -= (size_t)r;
        }
    }
}

static int dial(void)
{
    struct sockaddr_un sun = { .sun_family = AF_UNIX };
    struct sockaddr_in sin = { .sin_family = AF_INET };
    int one = 1;
    int fd = socket(path ? AF_UNIX : AF_INET, SOCK_STREAM, 0);

    if (path)
        snprintf(sun.sun_path, sizeof sun.sun_path, "%s", path);
    sin.sin_port = htons((uint16_t)port);
    sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, path ? (void *)&sun : (void *)&sin,
                          path ? sizeof sun : sizeof sin) < 0)
        die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void option(int fd, uint32_t opt, const void *data, uint32_t len)
{
    uint8_t h[NBD_OPTION_SIZE];

    nbd_put64(h, NBD_OPTS_MAGIC);
    nbd_put32(h + 8, opt);
    nbd_put32(h + 12, len);
    send_all(fd, h, sizeof h);
    send_all(fd, data, len);
}

static void shake(struct conn *c)
{
    uint8_t b[4096];
    uint32_t n = (uint32_t)strlen(export_name), type;

    recv_all(c->fd, b, 18);
    nbd_put32(b, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    send_all(c->fd, b, 4);
    if (structured) {
        option(c->fd, NBD_OPT_STRUCTURED_REPLY, "", 0);
        recv_all(c->fd, b, NBD_OPT_REPLY_SIZE);
    }
    nbd_put32(b, n);
    memcpy(b + 4, export_name, n);
    nbd_put16(b + 4 + n, 0);
    option(c->fd, NBD_OPT_GO, b, n + 6);
    do {
        uint32_t len;

        recv_all(c->fd, b, NBD_OPT_REPLY_SIZE);
        type = nbd_get32(b + 12);
        len = nbd_get32(b + 16);
        if (type & NBD_REP_ERROR || len > sizeof b) {
            errno = EINVAL;
            die("handshake");
        }
        recv_all(c->fd, b, len);
        if (type == NBD_REP_INFO && nbd_get16(b) == NBD_INFO_EXPORT)
            c->size = nbd_get64(b + 2);
    } while (type != NBD_REP_ACK);
}

static uint64_t random64(struct conn *c)
{
    c->seed ^= c->seed << 13;
    c->seed ^= c->seed >> 7;
    c->seed ^= c->seed << 17;
    return c->seed;
}

static uint64_t choose(struct conn *c)
{
    uint64_t end = range && range < c->size ? range : c->size;
    uint64_t units = end / length;

    if (!sequential)
        return random64(c) % units * length;
    return (c->next++ * (uint64_t)n_conns + (uint64_t)c->index) % units *
           length;
}

static void pattern(uint8_t *p, uint64_t off, uint32_t len)
{
    for (uint32_t i = 0; i + 8 <= len; i += 8)
        nbd_put64(p + i, off + i);
}

static void flush_out(struct conn *c)
{
    send_all(c->fd, c->out, c->out_len);
    c->out_len = 0;
}

static void request(struct conn *c, uint64_t cookie, uint64_t off)
{
    size_t n = NBD_REQUEST_SIZE + (writing ? length : 0);
    uint8_t *p;

    if (c->out_len + n > BUFFER + MAX_DEPTH * 64)
        flush_out(c);
    p = c->out + c->out_len;
    nbd_put32(p, NBD_REQUEST_MAGIC);
    nbd_put16(p + 4, 0);
    nbd_put16(p + 6, writing ? NBD_CMD_WRITE : NBD_CMD_READ);
    nbd_put64(p + 8, cookie);
    nbd_put64(p + 16, off);
    nbd_put32(p + 24, length);
    if (writing && verify)
        pattern(p + NBD_REQUEST_SIZE, off, length);
    c->offs[cookie] = off;
    c->out_len += n;
}

static void more(struct conn *c)
{
    ssize_t r;

    if (c->in_pos) {
        memmove(c->in, c->in + c->in_pos, c->in_len - c->in_pos);
        c->in_len -= c->in_pos;
        c->in_pos = 0;
    }
    r = recv(c->fd, c->in + c->in_len, 2 * BUFFER - c->in_len, 0);
    if (r <= 0)
        die("recv");
    c->in_len += (size_t)r;
}

static void need(struct conn *c, size_t n)
{
    while (c->in_len - c->in_pos < n)
        more(c);
}

/* n bytes of data of the disk at off. */
static void data(struct conn *c, uint64_t off, uint64_t n)
{
    need(c, n);
    for (uint64_t i = 0; verify && i + 8 <= n; i += i % 512 ? 8 : 504)
        if (nbd_get64(c->in + c->in_pos + i) != off + i) {
            fprintf(stderr, "nbdload: wrong data at %llu\n",
                    (unsigned long long)(off + i));
            exit(2);
        }
    c->in_pos += n;
}

/* One reply, or chunk of one.  Returns its cookie once it is complete, else
 * MAX_DEPTH. */
static uint64_t reply(struct conn *c)
{
    uint8_t *p;
    uint64_t cookie;
    uint32_t len;
    uint16_t flags, type;

    need(c, NBD_SIMPLE_SIZE);
    p = c->in + c->in_pos;
    cookie = nbd_get64(p + 8);
    if (nbd_get32(p) == NBD_SIMPLE_MAGIC) {
        if (nbd_get32(p + 4) || cookie >= MAX_DEPTH) {
            errno = (int)nbd_get32(p + 4);
            die("the server says");
        }
        c->in_pos += NBD_SIMPLE_SIZE;
        if (!writing)
            data(c, c->offs[cookie], length);
        return cookie;
    }
    need(c, NBD_CHUNK_SIZE);
    p = c->in + c->in_pos;
    flags = nbd_get16(p + 4);
    type = nbd_get16(p + 6);
    len = nbd_get32(p + 16);
    if (nbd_get32(p) != NBD_CHUNK_MAGIC || type & 0x8000 ||
        cookie >= MAX_DEPTH) {
        errno = EPROTO;
        die("reply");
    }
    c->in_pos += NBD_CHUNK_SIZE;
    if (type == NBD_REPLY_OFFSET_DATA) {
        need(c, 8);
        c->in_pos += 8;
        data(c, nbd_get64(c->in + c->in_pos - 8), len - 8);
    } else {
        need(c, len);
        c->in_pos += len;
    }
    return flags & NBD_REPLY_DONE ? cookie : MAX_DEPTH;
}

static void *load(void *opaque)
{
    struct conn *c = opaque;
    int flying = depth;

    for (int i = 0; i < depth; i++)
        request(c, (uint64_t)i, choose(c));
    while (flying) {
        uint64_t cookie;

        if (c->in_pos == c->in_len && c->out_len)
            flush_out(c);
        cookie = reply(c);
        if (cookie == MAX_DEPTH)
            continue;
        c->done++;
        if (atomic_load_explicit(&stop, memory_order_relaxed) ||
            (fill && c->next * (uint64_t)n_conns * length >= c->size))
            flying--;
        else
            request(c, cookie, choose(c));
        if (c->out_len > BUFFER / 2)
            flush_out(c);
    }
    return NULL;
}

static void options(int argc, char **argv)
{
    int c;

    while ((c = getopt(argc, argv, "k:p:x:m:n:d:s:t:P:r:SVW")) != -1)
        switch (c) {
        case 'k': path = optarg; break;
        case 'p': port = atoi(optarg); break;
        case 'x': export_name = optarg; break;
        case 'm':
            writing = strstr(optarg, "write");
            sequential = strncmp(optarg, "rand", 4);
            break;
        case 'n': n_conns = atoi(optarg); break;
        case 'd': depth = atoi(optarg); break;
        case 's': length = (uint32_t)strtoul(optarg, NULL, 0); break;
        case 't': seconds = atoi(optarg); break;
        case 'P': pid = atoi(optarg); break;
        case 'r': range = strtoull(optarg, NULL, 0); break;
        case 'S': structured = true; break;
        case 'V': verify = true; break;
        case 'W': fill = verify = writing = sequential = true; break;
        default: exit(1);
        }
    if ((!path && !port) || depth < 1 || depth > MAX_DEPTH || n_conns < 1 ||
        length < 1 || length > BUFFER) {
        fprintf(stderr, "nbdload: see the head of tests/bench/nbdload.c\n");
        exit(1);
    }
}

int main(int argc, char **argv)
{
    struct conn *conns;
    double begin, took, cpu;
    uint64_t done = 0;

    options(argc, argv);
    conns = calloc((size_t)n_conns, sizeof *conns);
    for (int i = 0; i < n_conns; i++) {
        struct conn *c = &conns[i];

        c->fd = dial();
        c->index = i;
        c->seed = 88172645463325252ULL + (uint64_t)i * 7919;
        c->in = malloc(2 * BUFFER);
        c->out = calloc(1, BUFFER + MAX_DEPTH * 64 + length);
        shake(c);
    }
    begin = now();
    cpu = pid ? cpu_of(pid) : 0;
    for (int i = 0; i < n_conns; i++)
        if (pthread_create(&conns[i].thread, NULL, load, &conns[i]))
            die("thread");
    if (!fill) {
        struct timespec t = { .tv_sec = seconds };

        nanosleep(&t, NULL);
        atomic_store(&stop, true);
    }
    for (int i = 0; i < n_conns; i++)
        pthread_join(conns[i].thread, NULL);
    took = now() - begin;
    cpu = pid ? cpu_of(pid) - cpu : 0;
    for (int i = 0; i < n_conns; i++) {
        uint8_t d[NBD_REQUEST_SIZE] = { 0 };

        done += conns[i].done;
        nbd_put32(d, NBD_REQUEST_MAGIC);
        nbd_put16(d + 6, NBD_CMD_DISC);
        send_all(conns[i].fd, d, sizeof d);
        close(conns[i].fd);
    }
    printf("%.0f requests/s %.0f MB/s", (double)done / took,
           (double)done * length / took / 1e6);
    if (pid)
        printf(" %.2f us of server CPU per request",
               cpu * 1e6 / (double)done);
    putchar('\n');
    return 0;
}
