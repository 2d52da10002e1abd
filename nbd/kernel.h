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
    int fd;                     /* of the device, ioctl only */
};

/* The kernel's ends of n socket pairs become the device's connections, in
 * the transmission phase.  device "auto" takes a free one.  The kernel keeps
 * its own references to the sockets. */
int nbd_kernel_attach(struct nbd_kernel *, const char *device,
                      const int *sockets, unsigned n, uint64_t size,
                      uint16_t flags, struct img_error *);
/* For ioctl: serves the device until it is detached; blocks. */
void nbd_kernel_work(struct nbd_kernel *);
/* Waits until the device has its size and partitions. */
void nbd_kernel_settle(const struct nbd_kernel *, uint64_t size);
int nbd_kernel_detach(const char *device, struct img_error *);
#endif
