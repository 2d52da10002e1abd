/* The command line: one table of options, one function for each kind. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "options.h"

enum {
    O_CACHE = 256, O_AIO, O_DISCARD, O_DETECT, O_OBJECT, O_TLS_CREDS,
    O_TLS_AUTHZ, O_TLS_HOSTNAME, O_IMAGE_OPTS, O_FORK, O_PID_FILE, O_LABEL,
    O_HANDSHAKE, O_AWAKE, O_EXPORT, O_VSOCK, O_FILES, O_RECONNECT,
    O_NO_SANDBOX
};

static const char help[] =
"Usage: vimg-nbd [OPTIONS] FILE\n"
"  or:  vimg-nbd [OPTIONS] --export NAME=FILE[@SNAPSHOT|#PARTITION] ...\n"
"  or:  vimg-nbd -L [OPTIONS]\n"
"  or:  vimg-nbd -d DEVICE\n"
"Serves disk images over NBD, the network block device protocol.\n"
"\n"
"  -h, --help                display this help and exit\n"
"  -V, --version             output version information and exit\n"
"\n"
"Connection properties:\n"
"  -p, --port=PORT           port to listen on (default '10809')\n"
"  -b, --bind=IFACE          interface to bind to (default '0.0.0.0')\n"
"  -k, --socket=PATH         path to the unix socket\n"
"      --vsock=[CID:]PORT    listen on a vsock port\n"
"  -e, --shared=NUM          up to NUM clients at once (default 1; 0 = 256)\n"
"  -t, --persistent          do not exit after the last client has left\n"
"  -v, --verbose             say what fails; stay in the foreground\n"
"  -x, --export-name=NAME    name of the export (default is empty)\n"
"  -D, --description=TEXT    export a human-readable description\n"
"      --handshake-limit=N   seconds a client has for the handshake\n"
"                            (default 10; 0 = no limit)\n"
"      --awake=USEC          how long to wait awake for a client that is quick\n"
"                            to ask again (default 50; 0 = not at all)\n"
"\n"
"Exposing part of the image:\n"
"  -o, --offset=OFFSET       offset into the image\n"
"  -A, --allocation-depth    expose the allocation depth\n"
"  -B, --bitmap=NAME         expose a persistent dirty bitmap\n"
"\n"
"General purpose options:\n"
"      --export=NAME=FILE[@SNAPSHOT|#PARTITION]\n"
"                            one of several exports; may be repeated\n"
"  -L, --list                list exports available from another server\n"
"      --object=TYPE,id=ID,...\n"
"                            tls-creds-x509, tls-creds-psk, secret,\n"
"                            authz-simple, authz-list, authz-list-file\n"
"      --tls-creds=ID        speak TLS with the credentials of that object\n"
"      --tls-authz=ID        admit only whom that object admits\n"
"      --tls-hostname=NAME   with -L: the name in the server's certificate\n"
"      --allow-files=WHICH   of the files that an image names, open none,\n"
"                            those in the same-dir, those in the folder WHICH,\n"
"                            or any; local ones when not given\n"
"      --no-sandbox          do without Landlock and seccomp\n"
"  -T, --trace=...           accepted, ignored\n"
"      --fork                serve in the background, return once running\n"
"      --pid-file=PATH       store the server's process ID in that file\n"
"      --selinux-label=LABEL label of the listening socket\n"
"\n"
"Kernel NBD client support:\n"
"  -c, --connect=DEV         attach FILE to the device DEV; 'auto' picks one\n"
"                            and prints it\n"
"      --reconnect=SECONDS   with -c: the device waits so long for another\n"
"                            server if this one dies; and one that has lost\n"
"                            its server is taken over\n"
"  -d, --disconnect          detach the device\n"
"\n"
"Block device options:\n"
"  -f, --format=FORMAT       set image format (raw, qcow2, ...)\n"
"  -r, --read-only           export read-only\n"
"  -s, --snapshot            writes go to a temporary file\n"
"  -l, --load-snapshot=PARAM export an internal snapshot, read-only:\n"
"                            'snapshot.id=ID,snapshot.name=NAME' or ID_OR_NAME\n"
"  -n, --nocache             same as --cache=none\n"
"      --cache=MODE          none, writeback (default), writethrough,\n"
"                            directsync, unsafe\n"
"      --aio=MODE            native, io_uring or threads; accepted\n"
"      --discard=MODE        ignore (default), unmap\n"
"      --detect-zeroes=MODE  off (default), on, unmap\n"
"      --image-opts          FILE is a list of image options\n";

static const char letters[] = "hVb:o:p:k:rsnc:dvf:e:tl:x:T:D:AB:L";
static const struct option table[] = {
    { "help", 0, NULL, 'h' }, { "version", 0, NULL, 'V' },
    { "bind", 1, NULL, 'b' }, { "port", 1, NULL, 'p' },
    { "socket", 1, NULL, 'k' }, { "offset", 1, NULL, 'o' },
    { "read-only", 0, NULL, 'r' }, { "allocation-depth", 0, NULL, 'A' },
    { "bitmap", 1, NULL, 'B' }, { "connect", 1, NULL, 'c' },
    { "disconnect", 0, NULL, 'd' }, { "list", 0, NULL, 'L' },
    { "snapshot", 0, NULL, 's' }, { "load-snapshot", 1, NULL, 'l' },
    { "nocache", 0, NULL, 'n' }, { "cache", 1, NULL, O_CACHE },
    { "aio", 1, NULL, O_AIO }, { "discard", 1, NULL, O_DISCARD },
    { "detect-zeroes", 1, NULL, O_DETECT }, { "shared", 1, NULL, 'e' },
    { "format", 1, NULL, 'f' }, { "persistent", 0, NULL, 't' },
    { "verbose", 0, NULL, 'v' }, { "object", 1, NULL, O_OBJECT },
    { "export-name", 1, NULL, 'x' }, { "description", 1, NULL, 'D' },
    { "tls-creds", 1, NULL, O_TLS_CREDS },
    { "tls-hostname", 1, NULL, O_TLS_HOSTNAME },
    { "tls-authz", 1, NULL, O_TLS_AUTHZ },
    { "image-opts", 0, NULL, O_IMAGE_OPTS }, { "trace", 1, NULL, 'T' },
    { "fork", 0, NULL, O_FORK }, { "pid-file", 1, NULL, O_PID_FILE },
    { "selinux-label", 1, NULL, O_LABEL },
    { "handshake-limit", 1, NULL, O_HANDSHAKE },
    { "awake", 1, NULL, O_AWAKE },
    { "reconnect", 1, NULL, O_RECONNECT },
    { "allow-files", 1, NULL, O_FILES },
    { "no-sandbox", 0, NULL, O_NO_SANDBOX },
    { "export", 1, NULL, O_EXPORT }, { "vsock", 1, NULL, O_VSOCK },
    { 0 }
};

/* What parsing has to remember and nobody else. */
struct parsing {
    struct nbd_options *o;
    struct img_error *err;
    bool image_opts, cache_given;
};

static char *own(struct nbd_options *o, char *text)
{
    if (text && o->n_owned < sizeof o->owned / sizeof o->owned[0])
        o->owned[o->n_owned++] = text;
    return text;
}

/* ---- kinds of values --------------------------------------------------- */

static int number(const char *option, const char *text, uint64_t max,
                  uint64_t *value, struct img_error *err)
{
    char *end;
    unsigned long long v;

    errno = 0;
    v = strtoull(text, &end, 0);
    if (errno || end == text || *end || *text == '-' || v > max)
        return nbd_fail(err, EINVAL, "%s: '%s' is no number from 0 to %llu",
                        option, text, (unsigned long long)max);
    *value = v;
    return 0;
}

static int size(const char *option, const char *text, uint64_t *value,
                struct img_error *err)
{
    static const char units[] = "bkMGTPE";
    const char *unit = units;
    char *end;
    unsigned long long v;
    unsigned shift;

    errno = 0;
    v = strtoull(text, &end, 0);
    if (*end)
        unit = strchr(units, *end == 'K' ? 'k' : *end == 'B' ? 'b' : *end);
    shift = unit ? (unsigned)(unit - units) * 10 : 0;
    if (errno || end == text || *text == '-' || !unit || (*end && end[1]) ||
        v > (UINT64_MAX >> 1) >> shift)
        return nbd_fail(err, EINVAL, "%s: '%s' is no size", option, text);
    *value = (uint64_t)v << shift;
    return 0;
}

static int choice(const char *option, const char *text,
                  const char *const *words, unsigned *value,
                  struct img_error *err)
{
    for (*value = 0; words[*value]; ++*value)
        if (!strcmp(words[*value], text))
            return 0;
    return nbd_fail(err, EINVAL, "%s: '%s' is not one of its modes", option,
                    text);
}

/* ---- options that take some work --------------------------------------- */

static int cache_mode(struct parsing *p, const char *text)
{
    static const char *const words[] = {
        "none", "off", "writeback", "writethrough", "directsync", "unsafe",
        NULL
    };
    static const unsigned flags[] = {
        IMG_OPEN_DIRECT, IMG_OPEN_DIRECT, 0, IMG_OPEN_WRITETHROUGH,
        IMG_OPEN_DIRECT | IMG_OPEN_WRITETHROUGH, IMG_OPEN_NO_SYNC
    };
    unsigned i;
    int ret = choice("--cache", text, words, &i, p->err);

    if (ret < 0)
        return ret;
    if (p->cache_given)
        return nbd_fail(p->err, EINVAL,
                        "-n and --cache can only be specified once");
    p->cache_given = true;
    p->o->image.open_flags |= flags[i];
    return 0;
}

static int aio_mode(struct parsing *p, const char *text)
{
    static const char *const words[] = { "native", "threads", "io_uring",
                                         NULL };
    unsigned i;

    return choice("--aio", text, words, &i, p->err);
}

static int discard_mode(struct parsing *p, const char *text)
{
    static const char *const words[] = { "ignore", "off", "unmap", "on",
                                         NULL };
    unsigned i;
    int ret = choice("--discard", text, words, &i, p->err);

    p->o->image.discard = i >= 2;
    return ret;
}

static int detect_mode(struct parsing *p, const char *text)
{
    static const char *const words[] = { "off", "on", "unmap", NULL };
    unsigned i;
    int ret = choice("--detect-zeroes", text, words, &i, p->err);

    p->o->image.detect_zeroes = i == 1;
    p->o->image.detect_unmap = i == 2;
    return ret;
}

static int load_snapshot(struct parsing *p, const char *text)
{
    struct nbd_settings s = { 0 };
    const char *found;
    int ret = 0;

    if (strncmp(text, "snapshot.", 9)) {
        p->o->image.snapshot = text;
        return 0;
    }
    ret = nbd_settings_parse(&s, text, NULL, p->err);
    if (ret == 0) {
        found = nbd_settings_get(&s, "snapshot.id");
        if (!found)
            found = nbd_settings_get(&s, "snapshot.name");
        p->o->image.snapshot = found ? own(p->o, strdup(found)) : NULL;
        if (!p->o->image.snapshot)
            ret = nbd_fail(p->err, EINVAL, "-l %s: names no snapshot", text);
    }
    nbd_settings_free(&s);
    return ret;
}

static int add_bitmap(struct parsing *p, const char *name)
{
    struct nbd_image_options *im = &p->o->image;
    const char **list = realloc((void *)(uintptr_t)im->bitmaps,
                                (im->n_bitmaps + 1) * sizeof *list);

    if (!list)
        return nbd_fail(p->err, ENOMEM, "no memory");
    list[im->n_bitmaps++] = name;
    im->bitmaps = list;
    return 0;
}

static int files_policy(struct parsing *p, const char *which)
{
    static const struct { const char *name; unsigned policy; } words[] = {
        { "local", IMG_FILES_LOCAL }, { "none", IMG_FILES_NONE },
        { "same-dir", IMG_FILES_BESIDE }, { "any", IMG_FILES_ANY },
    };
    struct nbd_image_options *im = &p->o->image;

    im->allow_files = IMG_FILES_UNDER;
    im->allow_dir = which;
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (!strcmp(which, words[i].name))
            im->allow_files = words[i].policy;
    return 0;
}

/* NAME=FILE, FILE@SNAPSHOT or FILE#PARTITION; a file of the whole name comes
 * first. */
static int add_export(struct parsing *p, char *text)
{
    struct nbd_export_spec *list, *s;
    char *eq = strchr(text, '='), *mark;
    uint64_t n = 0;
    int ret = 0;

    if (!eq)
        return nbd_fail(p->err, EINVAL, "--export %s: must be NAME=FILE",
                        text);
    list = realloc(p->o->exports, (p->o->n_exports + 1) * sizeof *list);
    if (!list)
        return nbd_fail(p->err, ENOMEM, "no memory");
    p->o->exports = list;
    s = &list[p->o->n_exports++];
    *s = (struct nbd_export_spec){ .name = text };
    *eq = '\0';
    s->path = strdup(eq + 1);
    if (!s->path)
        return nbd_fail(p->err, ENOMEM, "no memory");
    mark = s->path + strlen(s->path);
    while (mark > s->path && *mark != '@' && *mark != '#')
        mark--;
    if (mark == s->path || access(s->path, F_OK) == 0)
        return 0;
    if (*mark == '#') {
        ret = number("partition", mark + 1, 1 << 16, &n, p->err);
        if (ret == 0 && !n)
            ret = nbd_fail(p->err, EINVAL, "partitions count from 1");
        s->partition = (unsigned)n;
    } else if (!(s->snapshot = strdup(mark + 1))) {
        ret = nbd_fail(p->err, ENOMEM, "no memory");
    }
    *mark = '\0';
    return ret;
}

/* FILE as driver=qcow2,file.filename=... */
static int image_settings(struct parsing *p, const struct nbd_settings *s)
{
    struct nbd_image_options *im = &p->o->image;
    bool no_flush = false, direct = false, share = false;
    int ret = 0;

    for (unsigned i = 0; i < s->n && ret == 0; i++) {
        const char *key = s->keys[i], *value = s->values[i];

        if (!strcmp(key, "driver") || !strcmp(key, "format"))
            im->format = own(p->o, strdup(value));
        else if (!strcmp(key, "file.filename") || !strcmp(key, "filename"))
            p->o->file = own(p->o, strdup(value));
        else if (!strcmp(key, "file.driver"))
            ret = strcmp(value, "file") && strcmp(value, "host_device") ?
                nbd_fail(p->err, ENOTSUP, "file.driver=%s is not known",
                         value) : 0;
        else if (!strcmp(key, "offset"))
            ret = size(key, value, &im->window_offset, p->err);
        else if (!strcmp(key, "size"))
            ret = size(key, value, &im->window_size, p->err);
        else if (!strcmp(key, "discard"))
            ret = discard_mode(p, value);
        else if (!strcmp(key, "detect-zeroes"))
            ret = detect_mode(p, value);
        else if (!strcmp(key, "read-only"))
            ret = nbd_settings_bool(s, key, &im->read_only, p->err);
        else if (!strcmp(key, "cache.direct"))
            ret = nbd_settings_bool(s, key, &direct, p->err);
        else if (!strcmp(key, "cache.no-flush"))
            ret = nbd_settings_bool(s, key, &no_flush, p->err);
        else if (!strcmp(key, "force-share"))
            ret = nbd_settings_bool(s, key, &share, p->err);
        else
            ret = nbd_fail(p->err, ENOTSUP, "--image-opts: '%s' is not known",
                           key);
    }
    im->open_flags |= (direct ? IMG_OPEN_DIRECT : 0) |
                      (no_flush ? IMG_OPEN_NO_SYNC : 0) |
                      (share ? IMG_OPEN_NO_LOCK : 0);
    return ret;
}

static int image_opts(struct parsing *p)
{
    struct nbd_settings s = { 0 };
    const char *text = p->o->file;
    int ret;

    if (p->o->image.format)
        return nbd_fail(p->err, EINVAL, "--image-opts and -f are mutually "
                        "exclusive");
    p->o->file = NULL;
    ret = nbd_settings_parse(&s, text, NULL, p->err);
    if (ret == 0)
        ret = image_settings(p, &s);
    if (ret == 0 && (!p->o->file || !p->o->image.format))
        ret = nbd_fail(p->err, EINVAL, "--image-opts %s: needs driver= and "
                       "file.filename=", text);
    nbd_settings_free(&s);
    return ret;
}

/* ---- the table --------------------------------------------------------- */

static int take_number(struct parsing *p, int c, const char *arg)
{
    uint64_t v;
    int ret;

    if (c == 'o')
        return size("-o", arg, &p->o->image.offset, p->err);
    if (c == 'p') {
        p->o->port = arg;
        p->o->where_given = true;
        return number("-p", arg, 65535, &v, p->err);
    }
    ret = number(c == 'e' ? "-e" : c == O_RECONNECT ? "--reconnect" :
                 c == O_AWAKE ? "--awake" : "--handshake-limit", arg, 1 << 20,
                 &v, p->err);
    if (ret < 0)
        return ret;
    if (c == 'e')
        p->o->shared = (unsigned)v;
    else if (c == O_RECONNECT)
        p->o->reconnect_s = (unsigned)v;
    else if (c == O_AWAKE)
        p->o->awake_us = (unsigned)v;
    else
        p->o->handshake_ms = (int)v * 1000;
    return 0;
}

static int take_string(struct parsing *p, int c, char *arg)
{
    struct nbd_options *o = p->o;
    struct { int c; const char **to; } where[] = {
        { 'b', &o->bind }, { 'k', &o->socket }, { 'c', &o->connect },
        { 'f', &o->image.format }, { 'x', &o->name },
        { 'D', &o->description }, { O_TLS_CREDS, &o->tls_creds },
        { O_TLS_AUTHZ, &o->tls_authz }, { O_TLS_HOSTNAME, &o->tls_hostname },
        { O_PID_FILE, &o->pid_file }, { O_LABEL, &o->label },
        { O_VSOCK, &o->vsock }
    };

    for (unsigned i = 0; i < sizeof where / sizeof where[0]; i++)
        if (where[i].c == c) {
            *where[i].to = arg;
            o->where_given |= c == 'b' || c == 'k' || c == O_VSOCK;
            return 0;
        }
    return 1;
}

static int take_flag(struct parsing *p, int c)
{
    struct nbd_options *o = p->o;
    struct { int c; bool *to; } where[] = {
        { 'r', &o->image.read_only }, { 's', &o->image.temporary },
        { 'A', &o->image.depth }, { 't', &o->persistent },
        { 'v', &o->verbose }, { 'L', &o->list }, { 'd', &o->disconnect },
        { O_FORK, &o->fork }, { O_NO_SANDBOX, &o->no_sandbox },
        { O_IMAGE_OPTS, &p->image_opts }
    };

    for (unsigned i = 0; i < sizeof where / sizeof where[0]; i++)
        if (where[i].c == c) {
            *where[i].to = true;
            return 0;
        }
    return 1;
}

static int take(struct parsing *p, int c, char *arg)
{
    int ret;

    switch (c) {
    case 'o':
    case 'p':
    case 'e':
    case O_HANDSHAKE:
    case O_AWAKE:
    case O_RECONNECT:
        return take_number(p, c, arg);
    case 'n':
        return cache_mode(p, "none");
    case O_CACHE:
        return cache_mode(p, arg);
    case O_AIO:
        return aio_mode(p, arg);
    case O_DISCARD:
        return discard_mode(p, arg);
    case O_DETECT:
        return detect_mode(p, arg);
    case 'l':
        return load_snapshot(p, arg);
    case 'B':
        return add_bitmap(p, arg);
    case O_EXPORT:
        return add_export(p, arg);
    case O_FILES:
        return files_policy(p, arg);
    case O_OBJECT:
        return nbd_objects_add(&p->o->objects, arg, p->err);
    case 'T':
        return 0;
    }
    ret = take_flag(p, c);
    return ret == 1 ? take_string(p, c, arg) : ret;
}

/* What goes with what. */
static int agree(struct parsing *p)
{
    struct nbd_options *o = p->o;
    struct img_error *err = p->err;

    if (o->connect && o->where_given)
        return nbd_fail(err, EINVAL, "-c serves a device of this machine, "
                        "not a socket: not with -b, -k, -p or --vsock");
    if (o->socket && (o->bind || o->port))
        return nbd_fail(err, EINVAL, "-k is not for use with -b or -p");
    if (o->reconnect_s && !o->connect)
        return nbd_fail(err, EINVAL, "--reconnect is for use with -c");
    if (o->connect && o->tls_creds)
        return nbd_fail(err, EINVAL, "TLS is not supported with a host "
                        "device");
    if (o->list || o->disconnect) {
        if (o->n_exports || (o->list && o->file) ||
            (o->disconnect && !o->file))
            return nbd_fail(err, EINVAL, o->list ?
                            "List mode is incompatible with a file name" :
                            "-d needs a device");
        return 0;
    }
    if (!o->file == !o->n_exports)
        return nbd_fail(err, EINVAL, o->file ? "either FILE or --export" :
                        "Invalid number of arguments");
    if (o->connect && o->n_exports)
        return nbd_fail(err, EINVAL, "-c attaches one FILE");
    if (o->n_exports && o->image.snapshot)
        return nbd_fail(err, EINVAL, "--export NAME=FILE@SNAPSHOT, not -l");
    if (o->tls_authz && !o->tls_creds)
        return nbd_fail(err, EINVAL, "--tls-authz needs --tls-creds");
    if (o->image.detect_unmap && !o->image.discard)
        return nbd_fail(err, EINVAL, "setting detect-zeroes to unmap is not "
                        "allowed without setting discard operation to unmap");
    return 0;
}

enum nbd_parsed nbd_options_parse(struct nbd_options *o, int argc,
                                  char **argv, struct img_error *err)
{
    struct parsing p = { .o = o, .err = err };
    int c, ret = 0;

    *o = (struct nbd_options){ .shared = 1, .handshake_ms = 10000,
                                .awake_us = 50 };
    while (ret == 0 &&
           (c = getopt_long(argc, argv, letters, table, NULL)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            return NBD_PARSED_DONE;
        }
        if (c == 'V') {
            printf("vimg-nbd " PACKAGE_VERSION "\n");
            return NBD_PARSED_DONE;
        }
        ret = c == '?' ? nbd_fail(err, EINVAL, "try 'vimg-nbd --help'") :
            take(&p, c, optarg);
    }
    if (ret == 0 && optind + 1 < argc)
        ret = nbd_fail(err, EINVAL, "Invalid number of arguments");
    if (ret == 0 && optind < argc)
        o->file = argv[optind];
    if (ret == 0 && p.image_opts && o->file)
        ret = image_opts(&p);
    if (ret == 0)
        ret = agree(&p);
    return ret < 0 ? NBD_PARSED_WRONG : NBD_PARSED_GO;
}

void nbd_options_free(struct nbd_options *o)
{
    for (unsigned i = 0; i < o->n_exports; i++) {
        free(o->exports[i].path);
        free(o->exports[i].snapshot);
    }
    free(o->exports);
    free((void *)(uintptr_t)o->image.bitmaps);
    for (unsigned i = 0; i < o->n_owned; i++)
        free(o->owned[i]);
    nbd_objects_free(&o->objects);
}
