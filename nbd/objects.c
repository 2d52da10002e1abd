/* Settings of the form key=value,... and the objects made of them. */
#include <errno.h>
#include <libimg.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "objects.h"

int nbd_fail(struct img_error *err, int code, const char *fmt, ...)
{
    va_list ap;

    err->code = code;
    va_start(ap, fmt);
    vsnprintf(err->message, sizeof err->message, fmt, ap);
    va_end(ap);
    return -code;
}

static int append(struct nbd_settings *s, char *key, char *value,
                  struct img_error *err)
{
    char **keys = realloc(s->keys, (s->n + 1) * sizeof *keys);
    char **values;

    if (keys)
        s->keys = keys;
    values = realloc(s->values, (s->n + 1) * sizeof *values);
    if (values)
        s->values = values;
    if (!keys || !values || !key || !value) {
        free(key);
        free(value);
        return nbd_fail(err, ENOMEM, "no memory");
    }
    s->keys[s->n] = key;
    s->values[s->n++] = value;
    return 0;
}

int nbd_settings_add(struct nbd_settings *s, const char *key,
                     const char *value, struct img_error *err)
{
    return append(s, strdup(key), strdup(value), err);
}

/* One part up to a lone comma, with ",," made ','.  *text moves behind it. */
static char *next_part(const char **text)
{
    const char *p = *text;
    char *out = malloc(strlen(p) + 1), *q = out;

    while (out && *p && !(p[0] == ',' && p[1] != ',')) {
        p += p[0] == ',';
        *q++ = *p++;
    }
    if (out)
        *q = '\0';
    *text = *p ? p + 1 : p;
    return out;
}

int nbd_settings_parse(struct nbd_settings *s, const char *text,
                       const char *first, struct img_error *err)
{
    int ret = 0;

    while (*text && ret == 0) {
        char *part = next_part(&text), *eq;

        if (!part)
            return nbd_fail(err, ENOMEM, "no memory");
        eq = strchr(part, '=');
        if (eq)
            ret = append(s, strndup(part, (size_t)(eq - part)),
                         strdup(eq + 1), err);
        else if (first)
            ret = append(s, strdup(first), strdup(part), err);
        else
            ret = append(s, strdup(part), strdup("on"), err);
        first = NULL;
        free(part);
    }
    return ret;
}

const char *nbd_settings_get(const struct nbd_settings *s, const char *key)
{
    for (unsigned i = s->n; i-- > 0;)
        if (!strcmp(s->keys[i], key))
            return s->values[i];
    return NULL;
}

int nbd_settings_bool(const struct nbd_settings *s, const char *key,
                      bool *value, struct img_error *err)
{
    static const char *const words[] = {
        "off", "on", "no", "yes", "false", "true", "n", "y"
    };
    const char *text = nbd_settings_get(s, key);

    if (!text)
        return 0;
    for (unsigned i = 0; i < sizeof words / sizeof words[0]; i++)
        if (!strcmp(text, words[i])) {
            *value = i & 1;
            return 0;
        }
    return nbd_fail(err, EINVAL, "%s=%s: must be on or off", key, text);
}

void nbd_settings_free(struct nbd_settings *s)
{
    for (unsigned i = 0; i < s->n; i++) {
        free(s->keys[i]);
        free(s->values[i]);
    }
    free(s->keys);
    free(s->values);
    *s = (struct nbd_settings){ 0 };
}

/* ---- objects ----------------------------------------------------------- */

/* The types that are known, and their settings beside qom-type and id; one
 * that ends with '.' stands for all that begin so. */
static const struct { const char *type, *keys; } types[] = {
    { "tls-creds-x509",
      "endpoint dir verify-peer priority passwordid sanity-check" },
    { "tls-creds-psk", "endpoint dir verify-peer priority username" },
    { "secret", "data file format" },
    { "authz-simple", "identity" },
    { "authz-list", "policy rules." },
    { "authz-list-file", "filename refresh" }
};

static bool is_among(const char *keys, const char *key)
{
    while (*keys) {
        size_t n = strcspn(keys, " ");

        if (!strncmp(keys, key, n) && (keys[n - 1] == '.' || !key[n]))
            return true;
        keys += n + (keys[n] == ' ');
    }
    return false;
}

static int check(const struct nbd_settings *s, const char *text,
                 struct img_error *err)
{
    const char *type = nbd_settings_get(s, "qom-type"), *keys = NULL;

    if (!type || !nbd_settings_get(s, "id"))
        return nbd_fail(err, EINVAL, "--object %s: needs a type and an id",
                        text);
    for (unsigned i = 0; i < sizeof types / sizeof types[0]; i++)
        if (!strcmp(type, types[i].type))
            keys = types[i].keys;
    if (!keys)
        return nbd_fail(err, ENOTSUP, !strcmp(type, "authz-pam") ?
                        "--object %s: PAM is not supported here; use "
                        "authz-list or authz-list-file" :
                        "--object %s: that type is not known", type);
    for (unsigned i = 0; i < s->n; i++)
        if (strcmp(s->keys[i], "qom-type") && strcmp(s->keys[i], "id") &&
            !is_among(keys, s->keys[i]))
            return nbd_fail(err, EINVAL, "--object %s: '%s' is not expected",
                            type, s->keys[i]);
    return 0;
}

int nbd_objects_add(struct nbd_objects *o, const char *text,
                    struct img_error *err)
{
    struct nbd_settings s = { 0 }, *list;
    int ret = nbd_settings_parse(&s, text, "qom-type", err);

    if (ret == 0)
        ret = check(&s, text, err);
    if (ret == 0 && nbd_objects_find(o, nbd_settings_get(&s, "id")))
        ret = nbd_fail(err, EEXIST, "--object: two have the id '%s'",
                       nbd_settings_get(&s, "id"));
    list = ret == 0 ? realloc(o->list, (o->n + 1) * sizeof *list) : NULL;
    if (!list) {
        nbd_settings_free(&s);
        return ret < 0 ? ret : nbd_fail(err, ENOMEM, "no memory");
    }
    o->list = list;
    o->list[o->n++] = s;
    return 0;
}

const struct nbd_settings *nbd_objects_find(const struct nbd_objects *o,
                                            const char *id)
{
    for (unsigned i = 0; i < o->n; i++)
        if (!strcmp(nbd_settings_get(&o->list[i], "id"), id))
            return &o->list[i];
    return NULL;
}

void nbd_objects_free(struct nbd_objects *o)
{
    for (unsigned i = 0; i < o->n; i++)
        nbd_settings_free(&o->list[i]);
    free(o->list);
    *o = (struct nbd_objects){ 0 };
}
