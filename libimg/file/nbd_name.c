/* Names of NBD servers: URIs, QEMU's older spelling, and what we take out of
 * a URI ourselves.
 *
 * The NBD URI specification has readers ignore parameters that they do not
 * know; reconnect-delay and open-timeout, in seconds, are named after QEMU's
 * options. */
#include "file/nbd.h"
#include "file/nbd_link.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "libimg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { MOST_SECONDS = 24 * 3600 };

bool img_nbd_is_uri(const char *path)
{
    static const char *const schemes[] = {
        "nbd:", "nbds:", "nbd+unix:", "nbds+unix:", "nbd+vsock:",
        "nbds+vsock:"
    };

    for (unsigned i = 0; i < sizeof schemes / sizeof schemes[0]; i++)
        if (!strncasecmp(path, schemes[i], strlen(schemes[i])))
            return true;
    return false;
}

/* FNV-1a, 64 bit (RFC 9923). */
static uint64_t hash(const char *text, uint64_t start)
{
    for (; *text; text++)
        start = (start ^ (uint8_t)*text) * UINT64_C(0x100000001b3);
    return start;
}

void img_nbd_identify(const char *uri, struct img_file *file)
{
    file->device = hash(uri, UINT64_C(0xcbf29ce484222325));
    file->inode = hash(uri, UINT64_C(0x84222325cbf29ce4)) | 1;
    file->is_device = true;     /* its size is fixed, its bytes are old */
}

/* The first len bytes of text, so that a URI's parser gives them back. */
static char *escape(const char *text, size_t len)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyz"
                                "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/";
    char *made = malloc(3 * len + 1), *out = made;

    if (!made)
        return NULL;
    for (; len; len--, text++)
        out += sprintf(out, strchr(plain, *text) ? "%c" : "%%%02X",
                       (unsigned char)*text);
    *out = 0;
    return made;
}

/* nbd:HOST:PORT[:exportname=NAME] and nbd:unix:PATH[:exportname=NAME] as a
 * URI; others are copied. */
static char *to_uri(const char *path)
{
    const char *rest = path + 4, *name = strstr(rest, ":exportname=");
    size_t len = name ? (size_t)(name - rest) : strlen(rest);
    img_autofree char *export = NULL, *socket = NULL;
    char *uri = NULL;
    int n;

    if (strncasecmp(path, "nbd:", 4) || !strncmp(rest, "//", 2))
        return strdup(path);
    export = escape(name ? name + 12 : "", name ? strlen(name + 12) : 0);
    if (!export)
        return NULL;
    if (len >= 5 && !strncmp(rest, "unix:", 5)) {
        socket = escape(rest + 5, len - 5);
        n = socket ? asprintf(&uri, "nbd+unix:///%s?socket=%s", export,
                              socket) : -1;
    } else {
        n = asprintf(&uri, "nbd://%.*s/%s", (int)len, rest, export);
    }
    return n < 0 ? NULL : uri;
}

static int seconds(const char *path, const char *key, const char *text,
                   unsigned *ms, struct img_error *err)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);

    if (*text < '0' || *text > '9' || (*end && *end != '&') ||
        n > MOST_SECONDS)
        return img_fail(err, EINVAL, "%s: %s takes a number of seconds, at "
                        "most %d", path, key, MOST_SECONDS);
    *ms = (unsigned)n * 1000;
    return 0;
}

/* Takes KEY=SECONDS out of the query. */
static int take(char *uri, const char *path, const char *key, unsigned *ms,
                struct img_error *err)
{
    char *query = strchr(uri, '?'), *at = query ? query + 1 : NULL;
    size_t len = strlen(key);
    int ret = 0;

    while (at && ret == 0) {
        char *next = strchr(at, '&');

        if (!strncmp(at, key, len) && at[len] == '=') {
            ret = seconds(path, key, at + len + 1, ms, err);
            if (next)
                memmove(at, next + 1, strlen(next + 1) + 1);
            else
                at[-1] = 0;
            if (!next)
                break;
        } else {
            at = next ? next + 1 : NULL;
        }
    }
    return ret;
}

int img_nbd_name_parse(const char *path, struct img_nbd_name *name,
                       struct img_error *err)
{
    int ret;

    *name = (struct img_nbd_name){ .uri = to_uri(path) };
    if (!name->uri)
        return img_fail_nomem(err);
    ret = take(name->uri, path, "reconnect-delay", &name->reconnect_ms, err);
    if (ret == 0)
        ret = take(name->uri, path, "open-timeout", &name->open_ms, err);
    if (ret < 0) {
        free(name->uri);
        name->uri = NULL;
    }
    return ret;
}
