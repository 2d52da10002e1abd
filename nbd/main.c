/* vimg-nbd: serves disk images over NBD.
 *
 * One of four things is done: list another server's exports, detach a device
 * of the kernel, attach one, or serve on sockets.  To serve in the
 * background the process forks first of all; the parent waits until the
 * child says that it is ready, or is gone.
 */
#include <errno.h>
#include <fcntl.h>
#include <libimg.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>
#include "device.h"
#include "enter.h"
#include "kernel.h"
#include "list.h"
#include "options.h"
#include "server.h"
#include "spawn.h"
#include "tls.h"
#include "../tools/standard.h"

enum { MOST_CLIENTS = 256 };    /* where the user set no limit */

static int complain(const struct img_error *err)
{
    fprintf(stderr, "vimg-nbd: %s\n", err->message);
    return EXIT_FAILURE;
}

/* ---- background -------------------------------------------------------- */

/* In the parent: waits and returns the exit status.  In the child: -1, and
 * *ready is where to say so. */
static int background(int *ready, struct img_error *err)
{
    const char *activated = getenv("LISTEN_PID");
    bool ours = activated &&
        strtol(activated, NULL, 10) == (long)getpid();
    int p[2], status;
    char byte, text[24];
    pid_t pid;

    if (pipe2(p, O_CLOEXEC) < 0 || (pid = fork()) < 0) {
        nbd_fail(err, errno, "cannot fork: %s", strerror(errno));
        return complain(err);
    }
    if (pid == 0) {
        close(p[0]);
        setsid();
        /* Sockets that systemd passed to us are for the child. */
        snprintf(text, sizeof text, "%ld", (long)getpid());
        if (ours)
            setenv("LISTEN_PID", text, 1);
        *ready = p[1];
        return -1;
    }
    close(p[1]);
    nbd_spawn_forget();
    while ((status = (int)read(p[0], &byte, 1)) < 0 && errno == EINTR)
        ;
    if (status == 1)
        return EXIT_SUCCESS;
    if (waitpid(pid, &status, 0) == pid && WIFEXITED(status))
        return WEXITSTATUS(status);
    return EXIT_FAILURE;
}

static int write_pid(const char *path, struct img_error *err)
{
    FILE *f = fopen(path, "we");

    if (!f || fprintf(f, "%ld\n", (long)getpid()) < 0) {
        nbd_fail(err, errno, "%s: %s", path, strerror(errno));
        if (f)
            fclose(f);
        return -1;
    }
    return fclose(f) == 0 ? 0 :
        nbd_fail(err, errno, "%s: %s", path, strerror(errno));
}

/* The server runs; in the background nobody listens to it any more. */
static int say_ready(const struct nbd_options *o, int ready,
                     struct img_error *err)
{
    int null, ret = o->pid_file ? write_pid(o->pid_file, err) : 0;

    if (ret < 0 || ready < 0)
        return ret;
    fflush(stdout);
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) {
        dup2(null, 0);
        dup2(null, 1);
        dup2(null, 2);
        close(null);
    }
    nbd_spawn_quiet();
    while (write(ready, "", 1) < 0 && errno == EINTR)
        ;
    close(ready);
    return 0;
}

/* SIGTERM, SIGINT and SIGHUP, to be read from the descriptor returned. */
static int catch_signals(void)
{
    sigset_t set;

    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);   /* ulimit -f: an error for the client */
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC);
}

/* ---- what is served ---------------------------------------------------- */

static int open_exports(struct nbd_options *o, struct nbd_exports *all,
                        struct img_error *err)
{
    unsigned n = o->n_exports;
    int ret = 0;

    o->image.multi_conn = o->shared != 1 || o->connect;
    /* What a dead server had not written out is lost, and the kernel, which
     * goes on with the next one, would not know. */
    if (o->reconnect_s)
        o->image.open_flags |= IMG_OPEN_WRITETHROUGH;
    o->image.verbose = o->verbose;
    if (o->file)
        return nbd_exports_add(all, o->name ? o->name : "", o->description,
                               o->file, &o->image, err);
    /* Snapshots last: their image may be open, and locked, by then. */
    for (unsigned i = 0; i < 2 * n && ret == 0; i++) {
        const struct nbd_export_spec *s = &o->exports[i % n];
        struct nbd_image_options image = o->image;

        if ((s->snapshot != NULL) != (i >= n))
            continue;
        image.snapshot = s->snapshot;
        image.partition = s->partition;
        ret = nbd_exports_add(all, s->name, o->description, s->path, &image,
                              err);
    }
    return ret;
}

static int open_sockets(const struct nbd_options *o, struct nbd_listeners *l,
                        struct img_error *err)
{
    int ret = nbd_listen_activated(l, err);

    if (ret < 0)
        return ret;
    if (l->n)
        return o->where_given ?
            nbd_fail(err, EINVAL, "sockets were passed by socket activation: "
                     "not with -b, -k, -p or --vsock") : 0;
    if (o->label && (ret = nbd_listen_label(o->label, err)) < 0)
        return ret;
    if (o->vsock) {
        const char *colon = strchr(o->vsock, ':');
        char cid[16] = "";

        if (colon)
            snprintf(cid, sizeof cid, "%.*s", (int)(colon - o->vsock),
                     o->vsock);
        ret = nbd_listen_vsock(l, cid, colon ? colon + 1 : o->vsock, err);
    }
    if (ret == 0 && o->socket)
        ret = nbd_listen_unix(l, o->socket, err);
    else if (ret == 0 && !o->vsock)
        ret = nbd_listen_tcp(l, o->bind ? o->bind : "0.0.0.0",
                             o->port ? o->port : "10809", err);
    return ret;
}

/* ---- the four jobs ----------------------------------------------------- */

static int serve_sockets(const struct nbd_options *o,
                         struct nbd_service *service, int signals, int ready,
                         struct img_error *err)
{
    struct nbd_server_options so = {
        .max_clients = o->shared ? o->shared : MOST_CLIENTS,
        .persistent = o->persistent
    };
    struct nbd_listeners l = { 0 };
    int ret = open_sockets(o, &l, err);

    if (ret == 0)
        ret = say_ready(o, ready, err);
    if (ret == 0)
        ret = nbd_server_run(service, &l, signals, &so, err);
    nbd_listen_close(&l);
    return ret;
}

struct waiting {
    const struct nbd_options *o;
    int ready;
};

static int attached(void *opaque, const char *device, struct img_error *err)
{
    struct waiting *w = opaque;

    if (!strcmp(w->o->connect, "auto"))
        puts(device);
    return say_ready(w->o, w->ready, err);
}

static int serve_device(const struct nbd_options *o,
                        struct nbd_service *service,
                        struct nbd_exports *all, int signals, int ready,
                        struct img_error *err)
{
    struct waiting w = { o, ready };
    struct nbd_kernel_disk disk = {
        .device = o->connect, .size = all->list[0]->view.size,
        .flags = all->list[0]->view.flags, .patience = o->reconnect_s
    };
    char *real = o->file ? realpath(o->file, NULL) : NULL;
    int ret;

    disk.identity = real ? real : o->file;
    ret = nbd_device_serve(&disk, service, all->list[0], signals, attached,
                           &w, err);
    free(real);
    return ret;
}

static unsigned processors(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof set, &set) == 0
        ? (unsigned)CPU_COUNT(&set) : 1;
}

static int serve(struct nbd_options *o, int ready)
{
    struct nbd_service service = {
        .handshake_ms = o->handshake_ms, .verbose = o->verbose,
        .awake_us = o->awake_us, .processors = processors()
    };
    struct nbd_exports all = { 0 };
    struct img_error err = { 0 }, last = { 0 };
    int signals = catch_signals(), ret = 0, closed;

    if (o->tls_creds)
        ret = nbd_tls_server_new(&o->objects, o->tls_creds, o->tls_authz,
                                 &service.tls, &err);
    if (o->socket && !o->connect)
        nbd_remove_stale(o->socket);
    nbd_enter(o);
    if (ret == 0)
        ret = open_exports(o, &all, &err);
    if (ret == 0) {
        all.catalog.tls = service.tls != NULL;
        service.catalog = &all.catalog;
        ret = o->connect ?
            serve_device(o, &service, &all, signals, ready, &err) :
            serve_sockets(o, &service, signals, ready, &err);
    }
    closed = nbd_exports_close(&all, &last);
    nbd_tls_server_free(service.tls);
    if (o->pid_file && ret == 0)
        unlink(o->pid_file);
    if (ret < 0)
        complain(&err);
    if (closed < 0)
        complain(&last);
    return ret < 0 || closed < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

static int list(const struct nbd_options *o)
{
    const char *host = o->bind ? o->bind : "localhost";
    struct nbd_tls_client *tls = NULL;
    struct nbd_stream stream = { .fd = -1 };
    struct img_error err;
    int fd = -1, ret = 0;

    signal(SIGPIPE, SIG_IGN);
    if (o->tls_creds)
        ret = nbd_tls_client_new(&o->objects, o->tls_creds, o->tls_hostname ?
                                 o->tls_hostname : o->socket ? NULL : host,
                                 &tls, &err);
    if (ret == 0) {
        fd = o->socket ? nbd_connect_unix(o->socket, &err) :
            nbd_connect_tcp(host, o->port ? o->port : "10809", &err);
        ret = fd < 0 ? fd : 0;
    }
    if (ret == 0) {
        nbd_stream_plain(&stream, fd);
        ret = nbd_list(&stream, tls, &err);
        nbd_tls_end(&stream);
        close(fd);
    }
    nbd_tls_client_free(tls);
    return ret < 0 ? complain(&err) : EXIT_SUCCESS;
}

static int run(struct nbd_options *o)
{
    struct img_error err = { 0 };
    int ready = -1, status;

    if (o->list)
        return list(o);
    if (o->disconnect)
        return nbd_kernel_detach(o->file, &err) < 0 ? complain(&err) :
            EXIT_SUCCESS;
    if (o->fork || (o->connect && !o->verbose)) {
        status = background(&ready, &err);
        if (status >= 0)
            return status;
    }
    return serve(o, ready);
}

int main(int argc, char **argv)
{
    struct nbd_options o;
    struct img_error err = { 0 };
    enum nbd_parsed parsed = NBD_PARSED_WRONG;
    int status = EXIT_SUCCESS;

    if (standard_take() < 0)
        return EXIT_FAILURE;
    if (nbd_spawn_servers(&argc, &argv, &err) < 0)
        return complain(&err);
    parsed = nbd_options_parse(&o, argc, argv, &err);
    if (parsed == NBD_PARSED_WRONG)
        status = complain(&err);
    else if (parsed == NBD_PARSED_GO)
        status = run(&o);
    nbd_options_free(&o);
    nbd_spawn_end();
    return status;
}
