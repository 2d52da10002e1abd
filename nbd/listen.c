/* Sockets: made, taken over from systemd, or connected. */
#include <errno.h>
#include <fcntl.h>
#include <libimg.h>
#include <linux/vm_sockets.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "listen.h"
#include "objects.h"

enum { BACKLOG = 128, FIRST_ACTIVATED = 3 };

static int add(struct nbd_listeners *l, int fd, struct img_error *err)
{
    if (l->n == NBD_LISTENERS_MAX) {
        close(fd);
        return nbd_fail(err, EINVAL, "too many sockets to listen on");
    }
    l->fds[l->n++] = fd;
    return 0;
}

static int unix_address(struct sockaddr_un *sun, const char *path,
                        struct img_error *err)
{
    if (strlen(path) >= sizeof sun->sun_path)
        return nbd_fail(err, ENAMETOOLONG, "%s: a socket's path has at most "
                        "%zu bytes", path, sizeof sun->sun_path - 1);
    memset(sun, 0, sizeof *sun);
    sun->sun_family = AF_UNIX;
    memcpy(sun->sun_path, path, strlen(path));
    return 0;
}

void nbd_remove_stale(const char *path)
{
    struct sockaddr_un sun;
    struct img_error err;
    struct stat st;
    int fd;

    if (unix_address(&sun, path, &err) < 0 || lstat(path, &st) < 0 ||
        !S_ISSOCK(st.st_mode))
        return;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return;
    if (connect(fd, (const struct sockaddr *)&sun, sizeof sun) < 0 &&
        errno == ECONNREFUSED)
        unlink(path);
    close(fd);
}

int nbd_listen_unix(struct nbd_listeners *l, const char *path,
                    struct img_error *err)
{
    struct sockaddr_un sun;
    char *real = NULL;
    bool bound = false;
    int fd, ret = unix_address(&sun, path, err);

    if (ret < 0)
        return ret;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 ||
        !(bound = bind(fd, (struct sockaddr *)&sun, sizeof sun) == 0) ||
        listen(fd, BACKLOG) < 0 || !(real = realpath(path, NULL))) {
        ret = nbd_fail(err, errno, "%s: %s", path, strerror(errno));
        if (bound)
            unlink(path);
        if (fd >= 0)
            close(fd);
        return ret;
    }
    free(l->unlink);
    l->unlink = real;
    return add(l, fd, err);
}

static int listen_on(const struct addrinfo *a)
{
    int one = 1, saved;
    int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC |
                    SOCK_NONBLOCK, a->ai_protocol);

    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (a->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    saved = errno;
    close(fd);
    return -saved;
}

static int look_up(const char *host, const char *port, int flags,
                   struct addrinfo **list, struct img_error *err)
{
    struct addrinfo hints = {
        .ai_flags = flags, .ai_socktype = SOCK_STREAM
    };
    int r = getaddrinfo(host, port, &hints, list);

    return r ? nbd_fail(err, EINVAL, "%s:%s: %s", host, port,
                        gai_strerror(r)) : 0;
}

int nbd_listen_tcp(struct nbd_listeners *l, const char *host,
                   const char *port, struct img_error *err)
{
    struct addrinfo *list, *a;
    unsigned before = l->n;
    int ret = look_up(host, port, AI_PASSIVE, &list, err), code = 0;

    if (ret < 0)
        return ret;
    for (a = list; a && ret == 0; a = a->ai_next) {
        int fd = listen_on(a);

        if (fd < 0)
            code = -fd;
        else
            ret = add(l, fd, err);
    }
    freeaddrinfo(list);
    if (ret == 0 && l->n == before)
        ret = nbd_fail(err, code, "%s:%s: %s", host, port, strerror(code));
    return ret;
}

int nbd_listen_vsock(struct nbd_listeners *l, const char *cid,
                     const char *port, struct img_error *err)
{
    struct sockaddr_vm vm = { .svm_family = AF_VSOCK };
    int fd, code;

    vm.svm_cid = *cid ? (unsigned)strtoul(cid, NULL, 10) : VMADDR_CID_ANY;
    vm.svm_port = (unsigned)strtoul(port, NULL, 10);
    fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && bind(fd, (struct sockaddr *)&vm, sizeof vm) == 0 &&
        listen(fd, BACKLOG) == 0)
        return add(l, fd, err);
    code = errno;
    if (fd >= 0)
        close(fd);
    return nbd_fail(err, code, "vsock port %s: %s", port, strerror(code));
}

static int check_activated(int fd, struct img_error *err)
{
    int listens = 0;
    socklen_t len = sizeof listens;

    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) < 0 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ||
        fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
        return nbd_fail(err, errno, "LISTEN_FDS: descriptor %d: %s", fd,
                        strerror(errno));
    if (!listens)
        return nbd_fail(err, EINVAL, "LISTEN_FDS: descriptor %d: the socket "
                        "does not listen", fd);
    return 0;
}

int nbd_listen_activated(struct nbd_listeners *l, struct img_error *err)
{
    const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");
    long n;
    int ret = 0;

    if (!pid || !fds || strtol(pid, NULL, 10) != (long)getpid())
        return 0;
    n = strtol(fds, NULL, 10);
    if (n < 0 || n > NBD_LISTENERS_MAX)
        return nbd_fail(err, EINVAL, "LISTEN_FDS=%s: out of range", fds);
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    for (int i = 0; i < n && ret == 0; i++) {
        ret = check_activated(FIRST_ACTIVATED + i, err);
        if (ret == 0)
            ret = add(l, FIRST_ACTIVATED + i, err);
    }
    return ret;
}

void nbd_listen_close(struct nbd_listeners *l)
{
    if (l->unlink)
        unlink(l->unlink);
    free(l->unlink);
    l->unlink = NULL;
    for (unsigned i = 0; i < l->n; i++)
        close(l->fds[i]);
    l->n = 0;
}

int nbd_connect_unix(const char *path, struct img_error *err)
{
    struct sockaddr_un sun;
    int fd, ret = unix_address(&sun, path, err);

    if (ret < 0)
        return ret;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&sun, sizeof sun) == 0)
        return fd;
    ret = nbd_fail(err, errno, "%s: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
    return ret;
}

int nbd_connect_tcp(const char *host, const char *port, struct img_error *err)
{
    struct addrinfo *list, *a;
    int fd = -1, ret = look_up(host, port, 0, &list, err);

    if (ret < 0)
        return ret;
    for (a = list; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC,
                    a->ai_protocol);
        if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) < 0) {
            ret = nbd_fail(err, errno, "%s:%s: %s", host, port,
                           strerror(errno));
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(list);
    return fd >= 0 ? fd : ret < 0 ? ret :
        nbd_fail(err, EINVAL, "%s:%s: no address", host, port);
}

int nbd_listen_label(const char *label, struct img_error *err)
{
    int fd = open("/proc/thread-self/attr/sockcreate", O_WRONLY | O_CLOEXEC);
    bool ok = fd >= 0 && write(fd, label, strlen(label)) ==
        (ssize_t)strlen(label);
    int code = errno;

    if (fd >= 0)
        close(fd);
    return ok ? 0 : nbd_fail(err, code, "--selinux-label=%s: %s", label,
                             strerror(code));
}
