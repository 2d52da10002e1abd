/* The kernel's NBD client: attaching and detaching /dev/nbdN. */
#ifndef NBD_KERNEL_H
#define NBD_KERNEL_H
#include <stdbool.h>
#include <stdint.h>

struct img_error;

enum { NBD_KERNEL_SOCKETS = 4 };

struct nbd_kernel {
    char device[32];            /* "/dev/nbd0" */
    bool netlink;               /* attached this way, else by ioctl */
    bool taken_over;            /* the device was there, without a server */
    int fd;                     /* of the device, ioctl only */
};

struct nbd_kernel_disk {
    const char *device;         /* "auto" takes a free one */
    uint64_t size;
    uint16_t flags;
    unsigned patience;          /* seconds that the device waits for another
                                   server if this one dies; 0 = it does not,
                                   and none is taken over */
    const char *identity;       /* of what is served; another server of the
                                   same may take the device over */
};

/* The kernel's ends of n socket pairs become the device's connections, in
 * the transmission phase.  The kernel keeps its own references to the
 * sockets; of those it did not want (taken_over) it keeps none. */
int nbd_kernel_attach(struct nbd_kernel *, const struct nbd_kernel_disk *,
                      const int *sockets, unsigned n, struct img_error *);
/* For ioctl: serves the device until it is detached; blocks. */
void nbd_kernel_work(struct nbd_kernel *);
/* Waits until the device has its size and partitions. */
int nbd_kernel_settle(const struct nbd_kernel *, uint64_t size,
                      struct img_error *);
int nbd_kernel_detach(const char *device, struct img_error *);
#endif
