/* The command line of vimg-nbd. */
#ifndef NBD_OPTIONS_H
#define NBD_OPTIONS_H
#include "export.h"
#include "objects.h"

struct nbd_export_spec {
    const char *name;           /* these point into the command line ... */
    char *path, *snapshot;      /* ... and these are malloc'ed */
    unsigned partition;
};

struct nbd_options {
    const char *bind, *port, *socket, *vsock;
    unsigned shared;            /* 0 = as many as we allow */
    bool persistent, verbose, fork, list, disconnect;
    bool no_sandbox;
    bool where_given;           /* any of bind, port, socket, vsock */
    const char *pid_file, *label;
    const char *name, *description;
    const char *connect;
    unsigned reconnect_s;       /* with connect */
    const char *tls_creds, *tls_authz, *tls_hostname;
    int handshake_ms;
    unsigned awake_us;
    struct nbd_image_options image;
    struct nbd_export_spec *exports;
    unsigned n_exports;
    struct nbd_objects objects;
    const char *file;           /* the image, or the device for -d */
    char *owned[8];             /* strings made while parsing */
    unsigned n_owned;
};

enum nbd_parsed { NBD_PARSED_GO, NBD_PARSED_DONE, NBD_PARSED_WRONG };

/* DONE: help or version was asked for and printed. */
enum nbd_parsed nbd_options_parse(struct nbd_options *, int argc,
                                  char **argv, struct img_error *);
void nbd_options_free(struct nbd_options *);
#endif
