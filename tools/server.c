/* NBD servers as lists of options describe them, see server.h.  All of it
 * ends up in a URI. */
#include "server.h"
#include "options.h"
#include "vimg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- objects ----------------------------------------------------------- */

struct creds {
    char *type, *id, *dir, *username, *other;
    bool not_client;
};

static struct creds *objects;
static size_t n_objects;

static int creds_part(void *opaque, char *key, char *value)
{
    struct creds *c = opaque;
    char **to = !value || !strcmp(key, "qom-type") ? &c->type :
                !strcmp(key, "id") ? &c->id :
                !strcmp(key, "dir") ? &c->dir :
                !strcmp(key, "username") ? &c->username : NULL;
    bool on = value && (!strcmp(value, "on") || !strcmp(value, "yes") ||
                        !strcmp(value, "true"));

    if (!to && !strcmp(key, "endpoint"))
        c->not_client = strcmp(value, "client");
    else if (!to && !(on && !strcmp(key, "verify-peer")))
        to = &c->other;
    if (to) {
        free(*to);
        *to = need_memory(strdup(to == &c->other || !value ? key : value));
    }
    return 0;
}

bool server_add_object(const char *text)
{
    struct creds c = { 0 };

    if (options_split(text, creds_part, &c) < 0) {
        complain("Invalid object definition: %s", text);
        return false;
    }
    if (!c.id)
        complain("Parameter 'id' is missing");
    else if (!c.type || (strcmp(c.type, "tls-creds-x509") &&
                         strcmp(c.type, "tls-creds-psk")))
        complain("object '%s': only secret, tls-creds-x509 and tls-creds-psk "
                 "are supported", c.id);
    else if (c.other)
        complain("object '%s': '%s' is not supported", c.id, c.other);
    else if (!c.dir)
        complain("object '%s': Parameter 'dir' is missing", c.id);
    else if (c.not_client)
        complain("object '%s': Expecting TLS credentials with a client "
                 "endpoint", c.id);
    else {
        objects = need_memory(realloc(objects, (n_objects + 1) *
                                      sizeof *objects));
        objects[n_objects++] = c;
        return true;
    }
    return false;
}

static const struct creds *find_creds(const char *id)
{
    for (size_t i = n_objects; i > 0; i--)
        if (!strcmp(objects[i - 1].id, id))
            return &objects[i - 1];
    complain("No TLS credentials with id '%s'", id);
    return NULL;
}

/* ---- keys -------------------------------------------------------------- */

static char **place(struct server *s, const char *key)
{
    const struct { const char *key; char **to; } keys[] = {
        { "server.type", &s->type }, { "host", &s->host },
        { "server.host", &s->host }, { "port", &s->port },
        { "server.port", &s->port }, { "path", &s->socket },
        { "server.path", &s->socket }, { "server.cid", &s->cid },
        { "export", &s->export_name }, { "tls-creds", &s->tls_creds },
        { "reconnect-delay", &s->reconnect },
        { "open-timeout", &s->open_timeout },
    };

    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (!strcmp(keys[i].key, key))
            return keys[i].to;
    return NULL;
}

bool server_set(struct server *s, const char *key, const char *value)
{
    char **to = place(s, key);

    if (!to)
        return false;
    free(*to);
    *to = need_memory(strdup(value));
    return true;
}

bool server_is_set(const struct server *s)
{
    return s->type || s->host || s->port || s->socket || s->cid ||
           s->export_name || s->tls_creds || s->reconnect ||
           s->open_timeout;
}

void server_free(struct server *s)
{
    char *all[] = { s->type, s->host, s->port, s->socket, s->cid,
                    s->export_name, s->tls_creds, s->reconnect,
                    s->open_timeout };

    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
    *s = (struct server){ 0 };
}

/* ---- the URI ----------------------------------------------------------- */

static char *percent(const char *text)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyz"
                                "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/";
    char *made, *out;

    if (!text)
        text = "";
    made = out = need_memory(malloc(3 * strlen(text) + 1));
    for (; *text; text++)
        out += sprintf(out, strchr(plain, *text) ? "%c" : "%%%02X",
                       (unsigned char)*text);
    *out = 0;
    return made;
}

/* "key=value" behind what is there, the value escaped. */
static void add_query(char **uri, const char *key, const char *value)
{
    char *safe = percent(value);
    char *longer = format_text("%s%c%s=%s", *uri,
                               strchr(*uri, '?') ? '&' : '?', key, safe);

    free(safe);
    free(*uri);
    *uri = longer;
}

/* Which of inet, unix and vsock; NULL: the user was told. */
static const char *kind_of(const struct server *s)
{
    const char *type = s->type ? s->type : s->socket ? "unix" : "inet";

    if (strcmp(type, "inet") && strcmp(type, "unix") &&
        strcmp(type, "vsock")) {
        complain("Parameter 'server.type' does not accept value '%s'", type);
        return NULL;
    }
    if ((*type == 'i' && !s->host) || (*type == 'u' && !s->socket) ||
        (*type == 'v' && !s->cid) || (s->host && s->socket)) {
        complain(s->host && s->socket ?
                 "path and host may not be used at the same time" :
                 "one of path and host must be specified");
        return NULL;
    }
    return type;
}

static char *address(const struct server *s, const char *kind,
                     const char *scheme, const char *user)
{
    const char *at = user ? "@" : "";
    char *name = percent(s->export_name), *who = percent(user), *uri;

    if (*kind == 'u')
        uri = format_text("%s+unix://%s%s/%s", scheme, who, at, name);
    else if (*kind == 'v')
        uri = format_text("%s+vsock://%s%s%s:%s/%s", scheme, who, at, s->cid,
                          s->port ? s->port : "10809", name);
    else
        uri = format_text(strchr(s->host, ':') && s->host[0] != '[' ?
                          "%s://%s%s[%s]:%s/%s" : "%s://%s%s%s:%s/%s",
                          scheme, who, at, s->host,
                          s->port ? s->port : "10809", name);
    free(name);
    free(who);
    if (*kind == 'u')
        add_query(&uri, "socket", s->socket);
    return uri;
}

char *server_uri(const struct server *s)
{
    const struct creds *c = s->tls_creds ? find_creds(s->tls_creds) : NULL;
    const char *kind = kind_of(s);
    bool psk = c && !strcmp(c->type, "tls-creds-psk");
    char *uri, *file;

    if (!kind || (s->tls_creds && !c))
        return NULL;
    uri = address(s, kind, c ? "nbds" : "nbd",
                  !psk ? NULL : c->username ? c->username : "qemu");
    if (psk) {
        file = format_text("%s/keys.psk", c->dir);
        add_query(&uri, "tls-psk-file", file);
        free(file);
    } else if (c) {
        add_query(&uri, "tls-certificates", c->dir);
    }
    if (s->reconnect)
        add_query(&uri, "reconnect-delay", s->reconnect);
    if (s->open_timeout)
        add_query(&uri, "open-timeout", s->open_timeout);
    return uri;
}
