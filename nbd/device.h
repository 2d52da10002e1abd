/* An export as a device of this machine. */
#ifndef NBD_DEVICE_H
#define NBD_DEVICE_H
#include "export.h"
#include "kernel.h"

struct nbd_service;

/* Serves until the device is detached, or a signal comes, which detaches it.
 * ready is called when the device has its partitions, on a thread of its
 * own. */
int nbd_device_serve(const struct nbd_kernel_disk *, struct nbd_service *,
                     struct nbd_export *, int signal_fd,
                     int (*ready)(void *opaque, const char *device,
                                  struct img_error *),
                     void *opaque, struct img_error *);
#endif
