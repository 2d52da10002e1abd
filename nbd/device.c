/* An export as a device of this machine: the kernel's client at one end of
 * some socket pairs, our sessions at the other. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <libimg.h>
#include "device.h"
#include "objects.h"
#include "server.h"

enum { TAKE_OVER_TRIES = 20, TAKE_OVER_MS = 100 };

struct device {
    struct nbd_kernel kernel;
    const struct nbd_kernel_disk *disk;
    int ours[NBD_KERNEL_SOCKETS];
    unsigned n;
    int (*ready)(void *opaque, const char *device, struct img_error *err);
    void *opaque;
    int ret;
    struct img_error err;
};

static void close_all(const int *fds, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        close(fds[i]);
}

/* Those whose other end nobody has go. */
static void drop_unwanted(struct device *d)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < d->n; i++) {
        struct pollfd p = { .fd = d->ours[i], .events = POLLIN };

        if (poll(&p, 1, 0) > 0 && (p.revents & POLLHUP))
            close(d->ours[i]);
        else
            d->ours[kept++] = d->ours[i];
    }
    d->n = kept;
}

static int attach_once(struct device *d, struct img_error *err)
{
    int theirs[NBD_KERNEL_SOCKETS], pair[2], ret;

    d->n = 0;
    while (d->n < NBD_KERNEL_SOCKETS &&
           socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0) {
        d->ours[d->n] = pair[0];
        theirs[d->n++] = pair[1];
    }
    ret = d->n ? nbd_kernel_attach(&d->kernel, d->disk, theirs, d->n, err) :
        nbd_fail(err, errno, "socketpair: %s", strerror(errno));
    close_all(theirs, d->n);
    if (ret < 0) {
        close_all(d->ours, d->n);
    } else if (!d->kernel.netlink) {
        close_all(d->ours + 1, d->n - 1);
        d->n = 1;
    } else if (d->kernel.taken_over) {
        drop_unwanted(d);
    }
    return ret;
}

/* The kernel may need a moment to see that the last server is gone. */
static int attach(struct device *d, struct img_error *err)
{
    const struct timespec tick = { .tv_nsec = TAKE_OVER_MS * 1000000 };
    int ret = attach_once(d, err);

    for (unsigned i = 1; i < TAKE_OVER_TRIES && ret == 0 && d->n == 0; i++) {
        nanosleep(&tick, NULL);
        ret = attach_once(d, err);
    }
    return ret == 0 && d->n == 0 ?
        nbd_fail(err, EBUSY, "%s: is in use", d->disk->device) : ret;
}

static void *work(void *opaque)
{
    nbd_kernel_work(opaque);
    return NULL;
}

/* Has the kernel say goodbye on every connection. */
static void detach(void *opaque)
{
    struct nbd_kernel *k = opaque;
    struct img_error err;

    nbd_kernel_detach(k->device, &err);
}

/* Reading the partitions needs a server that answers, so this runs beside
 * it. */
static void *settle(void *opaque)
{
    struct device *d = opaque;

    d->ret = nbd_kernel_settle(&d->kernel, d->disk->size, &d->err);
    if (d->ret == 0)
        d->ret = d->ready(d->opaque, d->kernel.device, &d->err);
    if (d->ret < 0)
        detach(&d->kernel);
    return NULL;
}

int nbd_device_serve(const struct nbd_kernel_disk *disk,
                     struct nbd_service *service, struct nbd_export *export,
                     int signal_fd,
                     int (*ready)(void *opaque, const char *device,
                                  struct img_error *err),
                     void *opaque, struct img_error *err)
{
    struct device d = { .disk = disk, .ready = ready, .opaque = opaque };
    bool working = false, settling;
    pthread_t worker, settler;
    int ret = attach(&d, err);

    if (ret < 0)
        return ret;
    if (!d.kernel.netlink)
        working = pthread_create(&worker, NULL, work, &d.kernel) == 0;
    settling = pthread_create(&settler, NULL, settle, &d) == 0;
    if (!settling || (!d.kernel.netlink && !working))
        detach(&d.kernel);              /* which ends the server */
    ret = nbd_server_transmit(service, export, d.ours, d.n, signal_fd, detach,
                              &d.kernel, err);
    if (settling)
        pthread_join(settler, NULL);
    if (working)
        pthread_join(worker, NULL);
    if (ret == 0 && !settling)
        ret = nbd_fail(err, EAGAIN, "cannot start a thread");
    if (ret == 0 && d.ret < 0) {
        *err = d.err;
        ret = d.ret;
    }
    return ret;
}
