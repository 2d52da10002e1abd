/* The sandbox of the server: which files and sockets its options need.
 *
 * The images, with what is below them; the folders of the socket and of the
 * file with the process ID, to make and remove those; keys, which GnuTLS reads
 * again for each client.  A server connects to nobody, unless a name has to be
 * looked up to know where to listen. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../tools/confine.h"
#include "enter.h"

static void add_folder(const char *path, unsigned rights)
{
    const char *slash = strrchr(path, '/');
    char folder[4096];

    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) + 1 :
             1, slash ? path : ".");
    confine_path(folder, rights);
}

static void add_image(const struct nbd_options *o, const char *path,
                      const char *snapshot)
{
    const struct nbd_image_options *im = &o->image;
    struct img_open_options open = IMG_OPEN_OPTIONS;
    bool write = !im->read_only && !im->temporary && !snapshot;

    open.flags = im->open_flags;
    open.format = im->format;
    open.allow_files = im->allow_files;
    open.allow_dir = im->allow_dir;
    confine_image(path, &open, write ? CONFINE_WRITE : 0);
}

static void add_keys(const struct nbd_objects *objects)
{
    for (unsigned i = 0; i < objects->n; i++) {
        const struct nbd_settings *s = &objects->list[i];
        const char *dir = nbd_settings_get(s, "dir");
        const char *file = nbd_settings_get(s, "file");
        const char *list = nbd_settings_get(s, "filename");

        if (dir)
            confine_path(dir, SANDBOX_READ);
        if (file)
            confine_path(file, SANDBOX_READ);
        if (list)               /* it may be replaced */
            add_folder(list, SANDBOX_READ);
    }
}

static void add_sockets(const struct nbd_options *o)
{
    struct in6_addr unused;

    confine_sockets(SANDBOX_SOCKETS);
    if (o->socket)
        add_folder(o->socket, SANDBOX_SOCKET);
    if (o->bind && inet_pton(AF_INET, o->bind, &unused) != 1 &&
        inet_pton(AF_INET6, o->bind, &unused) != 1)
        confine_network();
    if (o->label)
        confine_path("/proc/thread-self/attr/sockcreate", SANDBOX_WRITE);
}

void nbd_enter(const struct nbd_options *o)
{
    if (o->no_sandbox)
        confine_off("--no-sandbox");
    if (o->file)
        add_image(o, o->file, o->image.snapshot);
    for (unsigned i = 0; i < o->n_exports; i++)
        add_image(o, o->exports[i].path, o->exports[i].snapshot);
    if (o->image.temporary)
        confine_temporary();
    if (o->tls_creds)
        add_keys(&o->objects);
    add_sockets(o);
    if (o->connect) {
        confine_path("/dev", SANDBOX_READ | SANDBOX_WRITE | SANDBOX_LIST);
        confine_path("/sys", SANDBOX_READ | SANDBOX_LIST);
    }
    if (o->pid_file)
        add_folder(o->pid_file, SANDBOX_READ | SANDBOX_WRITE | SANDBOX_MAKE);
    confine_path("/dev/null", SANDBOX_READ | SANDBOX_WRITE);
    confine_path("/etc/hosts", SANDBOX_READ);
    confine_path("/etc/services", SANDBOX_READ);
    confine_path("/etc/nsswitch.conf", SANDBOX_READ);
    confine_enter();
    if (confine_short_of())
        fprintf(stderr, "vimg-nbd: warning: %s\n", confine_short_of());
    if (o->verbose)
        fprintf(stderr, "vimg-nbd: confined: %s\n", confine_state());
}
