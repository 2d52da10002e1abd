/* The kernel's NBD client, by generic netlink (Linux 4.12 and later) and by
 * ioctl where that is missing.  The interface is that of
 * <linux/nbd-netlink.h>. */
#include <errno.h>
#include <fcntl.h>
#include <libimg.h>
#include <linux/fs.h>
#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <linux/nbd.h>
#include <linux/netlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "kernel.h"
#include "objects.h"

enum { ROOM = 4096, BLOCK = 512 };

/* ---- netlink messages -------------------------------------------------- */

struct message {
    union {
        struct nlmsghdr head;
        char bytes[ROOM];
    };
};

static struct nlattr *put(struct message *m, uint16_t type, const void *data,
                          size_t len)
{
    struct nlattr *a = (struct nlattr *)(m->bytes +
                                         NLMSG_ALIGN(m->head.nlmsg_len));

    a->nla_type = type;
    a->nla_len = (uint16_t)(NLA_HDRLEN + len);
    if (len)
        memcpy((char *)a + NLA_HDRLEN, data, len);
    m->head.nlmsg_len = NLMSG_ALIGN(m->head.nlmsg_len) +
                        (uint32_t)NLA_ALIGN(a->nla_len);
    return a;
}

/* What was put after open belongs into it. */
static void nest(struct message *m, struct nlattr *open)
{
    open->nla_type |= NLA_F_NESTED;
    open->nla_len = (uint16_t)(m->bytes + m->head.nlmsg_len - (char *)open);
}

static void start(struct message *m, uint16_t family, uint8_t command)
{
    struct genlmsghdr *g = NLMSG_DATA(&m->head);

    memset(m, 0, sizeof *m);
    m->head.nlmsg_len = NLMSG_LENGTH(GENL_HDRLEN);
    m->head.nlmsg_type = family;
    m->head.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
    g->cmd = command;
    g->version = 1;
}

/* Sends m.  The first reply that is not the acknowledgement goes to answer,
 * unless NULL.  Returns 0 or a negative errno. */
static int talk(int fd, struct message *m, struct message *answer)
{
    struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
    struct message in;

    if (sendto(fd, m->bytes, m->head.nlmsg_len, 0,
               (struct sockaddr *)&kernel, sizeof kernel) < 0)
        return -errno;
    for (;;) {
        ssize_t n = recv(fd, in.bytes, sizeof in.bytes, 0);
        struct nlmsghdr *h = &in.head;

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        for (int left = (int)n; left > 0 && NLMSG_OK(h, (unsigned)left);
             h = NLMSG_NEXT(h, left)) {
            if (h->nlmsg_type == NLMSG_ERROR)
                return ((struct nlmsgerr *)NLMSG_DATA(h))->error;
            if (answer)
                memcpy(answer->bytes, h, h->nlmsg_len);
        }
    }
}

static const void *find(const struct message *m, uint16_t type, size_t size)
{
    const char *p = m->bytes + NLMSG_LENGTH(GENL_HDRLEN);
    const char *end = m->bytes + m->head.nlmsg_len;

    while (end - p >= NLA_HDRLEN) {
        const struct nlattr *a = (const struct nlattr *)p;

        if (a->nla_len < NLA_HDRLEN || a->nla_len > end - p)
            return NULL;
        if ((a->nla_type & NLA_TYPE_MASK) == type &&
            a->nla_len >= NLA_HDRLEN + size)
            return p + NLA_HDRLEN;
        p += NLA_ALIGN(a->nla_len);
    }
    return NULL;
}

/* A netlink socket and the number of the family "nbd". */
static int open_netlink(uint16_t *family)
{
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
    struct message m, answer = { 0 };
    const void *id;
    int ret;

    if (fd < 0)
        return -errno;
    start(&m, GENL_ID_CTRL, CTRL_CMD_GETFAMILY);
    put(&m, CTRL_ATTR_FAMILY_NAME, NBD_GENL_FAMILY_NAME,
        sizeof NBD_GENL_FAMILY_NAME);
    ret = talk(fd, &m, &answer);
    id = ret == 0 ? find(&answer, CTRL_ATTR_FAMILY_ID, 2) : NULL;
    if (!id) {
        close(fd);
        return ret ? ret : -ENOENT;
    }
    memcpy(family, id, sizeof *family);
    return fd;
}

/* ---- devices ----------------------------------------------------------- */

/* The N of /dev/nbdN. */
static int device_index(const char *device, uint32_t *index,
                        struct img_error *err)
{
    char end;

    if (sscanf(device, "/dev/nbd%u%c", index, &end) != 1)
        return nbd_fail(err, EINVAL, "%s: is not of the form /dev/nbdN",
                        device);
    return 0;
}

static int attach_netlink(struct nbd_kernel *k, const char *device,
                          const int *sockets, unsigned n, uint64_t size,
                          uint16_t flags, struct img_error *err)
{
    uint64_t block = BLOCK, server = flags;
    struct message m, answer = { 0 };
    struct nlattr *list;
    uint16_t family;
    uint32_t index;
    const void *found;
    int fd = open_netlink(&family), ret;

    if (fd < 0)
        return fd;
    start(&m, family, NBD_CMD_CONNECT);
    if (strcmp(device, "auto")) {
        ret = device_index(device, &index, err);
        if (ret < 0) {
            close(fd);
            return ret;
        }
        put(&m, NBD_ATTR_INDEX, &index, sizeof index);
    }
    put(&m, NBD_ATTR_SIZE_BYTES, &size, sizeof size);
    put(&m, NBD_ATTR_BLOCK_SIZE_BYTES, &block, sizeof block);
    put(&m, NBD_ATTR_SERVER_FLAGS, &server, sizeof server);
    list = put(&m, NBD_ATTR_SOCKETS, NULL, 0);
    for (unsigned i = 0; i < n; i++) {
        struct nlattr *item = put(&m, NBD_SOCK_ITEM, NULL, 0);
        uint32_t s = (uint32_t)sockets[i];

        put(&m, NBD_SOCK_FD, &s, sizeof s);
        nest(&m, item);
    }
    nest(&m, list);
    ret = talk(fd, &m, &answer);
    close(fd);
    if (ret < 0)
        return ret;
    found = find(&answer, NBD_ATTR_INDEX, 4);
    if (found)
        memcpy(&index, found, sizeof index);
    else if (!strcmp(device, "auto"))
        return nbd_fail(err, EIO, "the kernel did not say which device");
    k->netlink = true;
    snprintf(k->device, sizeof k->device, "/dev/nbd%u", index);
    return 0;
}

/* Attaching needs a device of its own; those in use have a pid. */
static int free_device(char *device, size_t room)
{
    for (unsigned i = 0; i < 256; i++) {
        char path[64];

        snprintf(device, room, "/dev/nbd%u", i);
        snprintf(path, sizeof path, "/sys/block/nbd%u/pid", i);
        if (access(device, F_OK) < 0)
            return -ENOENT;
        if (access(path, F_OK) < 0)
            return 0;
    }
    return -ENOENT;
}

static int attach_ioctl(struct nbd_kernel *k, const char *device,
                        const int *sockets, uint64_t size, uint16_t flags)
{
    int ret = 0;

    if (!strcmp(device, "auto"))
        ret = free_device(k->device, sizeof k->device);
    else
        snprintf(k->device, sizeof k->device, "%s", device);
    k->fd = ret < 0 ? -1 : open(k->device, O_RDWR | O_CLOEXEC);
    if (ret == 0 && k->fd < 0)
        ret = -errno;
    if (ret == 0 &&
        (ioctl(k->fd, NBD_SET_SOCK, (unsigned long)sockets[0]) < 0 ||
         ioctl(k->fd, NBD_SET_BLKSIZE, (unsigned long)BLOCK) < 0 ||
         ioctl(k->fd, NBD_SET_SIZE_BLOCKS,
               (unsigned long)(size / BLOCK)) < 0 ||
         ioctl(k->fd, NBD_SET_FLAGS, (unsigned long)flags) < 0))
        ret = -errno;
    if (ret < 0 && k->fd >= 0)
        close(k->fd);
    return ret;
}

int nbd_kernel_attach(struct nbd_kernel *k, const char *device,
                      const int *sockets, unsigned n, uint64_t size,
                      uint16_t flags, struct img_error *err)
{
    int ret, second;

    *k = (struct nbd_kernel){ .fd = -1 };
    *err = (struct img_error){ 0 };
    ret = attach_netlink(k, device, sockets, n, size, flags, err);
    if (ret == 0 || err->code)
        return ret;
    if (ret == -EBUSY)
        return nbd_fail(err, EBUSY, "%s: is in use", device);
    second = attach_ioctl(k, device, sockets, size, flags);
    if (second < 0)
        return nbd_fail(err, -second, "%s: %s (and by netlink: %s). Is the "
                        "kernel's nbd module loaded?", device,
                        strerror(-second), strerror(-ret));
    return 0;
}

void nbd_kernel_work(struct nbd_kernel *k)
{
    ioctl(k->fd, NBD_DO_IT);
    ioctl(k->fd, NBD_CLEAR_QUE);
    ioctl(k->fd, NBD_CLEAR_SOCK);
    close(k->fd);
}

void nbd_kernel_settle(const struct nbd_kernel *k, uint64_t size)
{
    const struct timespec tick = { .tv_nsec = 10 * 1000 * 1000 };

    /* The kernel reads the partitions when the device is first opened. */
    for (unsigned i = 0; i < 500; i++) {
        int fd = open(k->device, O_RDONLY | O_CLOEXEC);
        uint64_t seen = 0;
        bool there = fd >= 0 && ioctl(fd, BLKGETSIZE64, &seen) == 0 &&
                     seen == size / BLOCK * BLOCK;

        if (fd >= 0)
            close(fd);
        if (there)
            return;
        nanosleep(&tick, NULL);
    }
}

static int detach_netlink(const char *device, struct img_error *err)
{
    struct message m;
    uint16_t family;
    uint32_t index;
    int ret = device_index(device, &index, err), fd;

    if (ret < 0)
        return ret;
    fd = open_netlink(&family);
    if (fd < 0)
        return fd;
    start(&m, family, NBD_CMD_DISCONNECT);
    put(&m, NBD_ATTR_INDEX, &index, sizeof index);
    ret = talk(fd, &m, NULL);
    close(fd);
    return ret;
}

int nbd_kernel_detach(const char *device, struct img_error *err)
{
    int ret, fd;

    *err = (struct img_error){ 0 };
    ret = detach_netlink(device, err);
    if (ret == 0 || err->code)
        return ret;
    fd = open(device, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return nbd_fail(err, errno, "%s: %s", device, strerror(errno));
    ret = ioctl(fd, NBD_CLEAR_QUE) < 0 || ioctl(fd, NBD_DISCONNECT) < 0 ||
          ioctl(fd, NBD_CLEAR_SOCK) < 0 ?
        nbd_fail(err, errno, "%s: %s", device, strerror(errno)) : 0;
    close(fd);
    return ret;
}
