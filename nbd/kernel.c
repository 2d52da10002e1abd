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

enum { ROOM = 4096, BLOCK = 512, MOST_DEVICES = 256 };

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

static void put_sockets(struct message *m, const int *sockets, unsigned n)
{
    struct nlattr *list = put(m, NBD_ATTR_SOCKETS, NULL, 0);

    for (unsigned i = 0; i < n; i++) {
        struct nlattr *item = put(m, NBD_SOCK_ITEM, NULL, 0);
        uint32_t s = (uint32_t)sockets[i];

        put(m, NBD_SOCK_FD, &s, sizeof s);
        nest(m, item);
    }
    nest(m, list);
}

/* command: CONNECT, or RECONFIGURE for a device whose server is gone.
 * *index: UINT32_MAX = any; becomes the device's. */
static int ask_netlink(uint8_t command, const struct nbd_kernel_disk *disk,
                       const int *sockets, unsigned n, uint32_t *index)
{
    uint64_t block = BLOCK, server = disk->flags, wait = disk->patience;
    struct message m, answer = { 0 };
    uint16_t family = 0;
    const void *found;
    int fd = open_netlink(&family), ret;

    if (fd < 0)
        return fd;
    start(&m, family, command);
    if (*index != UINT32_MAX)
        put(&m, NBD_ATTR_INDEX, index, sizeof *index);
    if (command == NBD_CMD_CONNECT) {
        put(&m, NBD_ATTR_SIZE_BYTES, &disk->size, sizeof disk->size);
        put(&m, NBD_ATTR_BLOCK_SIZE_BYTES, &block, sizeof block);
        put(&m, NBD_ATTR_SERVER_FLAGS, &server, sizeof server);
    }
    if (wait) {
        put(&m, NBD_ATTR_DEAD_CONN_TIMEOUT, &wait, sizeof wait);
        put(&m, NBD_ATTR_BACKEND_IDENTIFIER, disk->identity,
            strnlen(disk->identity, ROOM / 2) + 1);
    }
    put_sockets(&m, sockets, n);
    ret = talk(fd, &m, &answer);
    close(fd);
    if (ret < 0)
        return ret;
    found = find(&answer, NBD_ATTR_INDEX, sizeof *index);
    if (found)
        memcpy(index, found, sizeof *index);
    return 0;
}

/* What the kernel says of a device in /sys/block; 0 = nothing. */
static uint64_t ask_sysfs(uint32_t index, const char *what)
{
    unsigned long long n;
    char path[64];
    FILE *f;

    snprintf(path, sizeof path, "/sys/block/nbd%u/%s", index, what);
    f = fopen(path, "re");
    if (!f)
        return 0;
    if (fscanf(f, "%llu", &n) != 1)
        n = 0;
    fclose(f);
    return n;
}

static int attach_netlink(struct nbd_kernel *k,
                          const struct nbd_kernel_disk *disk,
                          const int *sockets, unsigned n,
                          struct img_error *err)
{
    uint32_t index = UINT32_MAX;
    int ret = 0;

    if (strcmp(disk->device, "auto"))
        ret = device_index(disk->device, &index, err);
    if (ret == 0)
        ret = ask_netlink(NBD_CMD_CONNECT, disk, sockets, n, &index);
    if (ret == -EBUSY && disk->patience && index != UINT32_MAX &&
        ask_sysfs(index, "size") == disk->size / BLOCK) {
        ret = ask_netlink(NBD_CMD_RECONFIGURE, disk, sockets, n, &index);
        k->taken_over = ret == 0;
        if (ret < 0)
            ret = -EBUSY;       /* it serves something else */
    }
    if (ret == 0 && index == UINT32_MAX)
        return nbd_fail(err, EIO, "the kernel did not say which device");
    if (ret == 0) {
        k->netlink = true;
        snprintf(k->device, sizeof k->device, "/dev/nbd%u", index);
    }
    return ret;
}

static int set_up(struct nbd_kernel *k, int socket, uint64_t size,
                  uint16_t flags)
{
    int ret = 0;

    k->fd = open(k->device, O_RDWR | O_CLOEXEC);
    if (k->fd < 0)
        return -errno;
    if ((ioctl(k->fd, NBD_SET_SOCK, (unsigned long)socket) < 0 ||
         ioctl(k->fd, NBD_SET_BLKSIZE, (unsigned long)BLOCK) < 0 ||
         ioctl(k->fd, NBD_SET_SIZE_BLOCKS,
               (unsigned long)(size / BLOCK)) < 0 ||
         ioctl(k->fd, NBD_SET_FLAGS, (unsigned long)flags) < 0))
        ret = -errno;
    if (ret < 0)
        close(k->fd);
    return ret;
}

static int attach_ioctl(struct nbd_kernel *k, const char *device,
                        const int *sockets, uint64_t size, uint16_t flags)
{
    int ret;

    if (strcmp(device, "auto")) {
        snprintf(k->device, sizeof k->device, "%s", device);
        return set_up(k, sockets[0], size, flags);
    }
    for (uint32_t i = 0; i < MOST_DEVICES; i++) {
        snprintf(k->device, sizeof k->device, "/dev/nbd%u", i);
        if (access(k->device, F_OK) < 0)
            break;
        if (ask_sysfs(i, "pid"))
            continue;           /* in use */
        ret = set_up(k, sockets[0], size, flags);
        if (ret != -EBUSY)      /* else somebody was quicker */
            return ret;
    }
    return -ENODEV;
}

int nbd_kernel_attach(struct nbd_kernel *k,
                      const struct nbd_kernel_disk *disk,
                      const int *sockets, unsigned n, struct img_error *err)
{
    const char *device = disk->device;
    int ret, second;

    *k = (struct nbd_kernel){ .fd = -1 };
    *err = (struct img_error){ 0 };
    ret = attach_netlink(k, disk, sockets, n, err);
    if (ret == 0 || err->code)
        return ret;
    if (ret == -EBUSY)
        return nbd_fail(err, EBUSY, "%s: is in use", device);
    if (disk->patience)
        return nbd_fail(err, -ret, "%s: the kernel's netlink interface is "
                        "needed to reconnect: %s", device, strerror(-ret));
    second = attach_ioctl(k, device, sockets, disk->size, disk->flags);
    if (second == -EBUSY)
        return nbd_fail(err, EBUSY, "%s: is in use", device);
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

/* The kernel reads the partitions when the device is first opened, and who
 * opens it meanwhile waits for that.  By ioctl a device has its size before
 * it works, so it is told to read them when it does. */
static bool is_settled(const struct nbd_kernel *k, uint32_t index,
                       uint64_t size)
{
    uint64_t seen = 0;
    bool there;
    int fd;

    if (!ask_sysfs(index, "pid"))
        return false;
    fd = open(k->device, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    there = ioctl(fd, BLKGETSIZE64, &seen) == 0 &&
            seen == size / BLOCK * BLOCK;
    if (there && !k->netlink)
        ioctl(fd, BLKRRPART);   /* fails where they are in use already */
    close(fd);
    return there;
}

int nbd_kernel_settle(const struct nbd_kernel *k, uint64_t size,
                      struct img_error *err)
{
    const struct timespec tick = { .tv_nsec = 10 * 1000 * 1000 };
    uint32_t index;
    int ret = device_index(k->device, &index, err);

    if (ret < 0)
        return ret;
    for (unsigned i = 0; i < 1000; i++) {
        if (is_settled(k, index, size))
            return 0;
        nanosleep(&tick, NULL);
    }
    return nbd_fail(err, ETIMEDOUT, "%s: does not get its size", k->device);
}

static int detach_netlink(const char *device, struct img_error *err)
{
    struct message m;
    uint16_t family = 0;
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
