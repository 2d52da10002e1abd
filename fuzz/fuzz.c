/* An image made of bytes in memory, for the fuzz targets. */
#include "fuzz.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static int refuse(void *opaque, const char *referrer, const char *name,
                  bool writable)
{
    return -EACCES;
}

struct img_disk *fuzz_open(const char *format, unsigned flags,
                           const uint8_t *data, size_t len)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_error err = { 0 };
    struct img_disk *disk = NULL;
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    int r;

    FUZZ_ASSERT(fd >= 0);
    FUZZ_ASSERT(write(fd, data, len) == (ssize_t)len);
    opts.format = format;
    opts.flags = flags | IMG_OPEN_NO_SYNC | IMG_OPEN_NO_LOCK |
                 IMG_OPEN_NO_BACKING;
    opts.resolve = refuse;
    r = img_open_fd(fd, &opts, &disk, &err);
    if (r >= 0)
        return disk;
    FUZZ_ASSERT(err.message[0] && err.code == -r && r != -ENOMEM);
    return NULL;
}
