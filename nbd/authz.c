/* Policies.  A list in a file, in JSON, becomes the settings that authz-list
 * has on the command line; there is one matcher for both. */
#include <errno.h>
#include <fnmatch.h>
#include <jansson.h>
#include <libimg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "authz.h"

struct nbd_authz {
    const struct nbd_settings *object;
    struct nbd_settings file;   /* of authz-list-file */
    bool is_file, refresh;
};

static const char *rule(const struct nbd_settings *a, unsigned i,
                        const char *key)
{
    char name[40];

    snprintf(name, sizeof name, "rules.%u.%s", i, key);
    return nbd_settings_get(a, name);
}

/* ---- looking ----------------------------------------------------------- */

static bool list_admits(const struct nbd_settings *a, const char *identity)
{
    const char *policy = nbd_settings_get(a, "policy"), *match;

    for (unsigned i = 0; (match = rule(a, i, "match")); i++) {
        const char *format = rule(a, i, "format");
        bool glob = format && !strcmp(format, "glob");

        if (glob ? !fnmatch(match, identity, 0) : !strcmp(match, identity))
            return !strcmp(rule(a, i, "policy"), "allow");
    }
    return policy && !strcmp(policy, "allow");
}

/* ---- checking ---------------------------------------------------------- */

static int one_of(const char *key, const char *value, const char *a,
                  const char *b, struct img_error *err)
{
    if (!value || !strcmp(value, a) || !strcmp(value, b))
        return 0;
    return nbd_fail(err, EINVAL, "%s=%s: must be %s or %s", key, value, a, b);
}

static bool is_rule_key(const char *key, unsigned n)
{
    unsigned long i;
    char *end;

    if (strncmp(key, "rules.", 6))
        return false;
    i = strtoul(key + 6, &end, 10);
    return end != key + 6 && i < n &&
           (!strcmp(end, ".match") || !strcmp(end, ".policy") ||
            !strcmp(end, ".format"));
}

/* Every rule is complete, and nothing is there that would be passed over. */
static int check_list(const struct nbd_settings *a, struct img_error *err)
{
    unsigned n = 0;
    int ret = one_of("policy", nbd_settings_get(a, "policy"), "allow",
                     "deny", err);

    for (; ret == 0 && rule(a, n, "match"); n++) {
        if (!rule(a, n, "policy"))
            ret = nbd_fail(err, EINVAL, "rules.%u.policy is missing", n);
        else
            ret = one_of("rules: policy", rule(a, n, "policy"), "allow",
                         "deny", err);
        if (ret == 0)
            ret = one_of("rules: format", rule(a, n, "format"), "exact",
                         "glob", err);
    }
    for (unsigned i = 0; i < a->n && ret == 0; i++)
        if (!strncmp(a->keys[i], "rules", 5) && !is_rule_key(a->keys[i], n))
            ret = nbd_fail(err, EINVAL, "%s is not expected", a->keys[i]);
    return ret;
}

/* ---- a list in a file -------------------------------------------------- */

static int add_rule(struct nbd_settings *s, size_t i, json_t *item,
                    struct img_error *err)
{
    const char *key;
    json_t *value;
    int ret = json_is_object(item) ? 0 :
        nbd_fail(err, EINVAL, "rule %zu is no object", i);

    json_object_foreach(item, key, value) {
        char name[80];

        if (ret < 0)
            break;
        snprintf(name, sizeof name, "rules.%zu.%.40s", i, key);
        ret = json_is_string(value) ?
            nbd_settings_add(s, name, json_string_value(value), err) :
            nbd_fail(err, EINVAL, "%s is no string", name);
    }
    return ret;
}

static int take_json(struct nbd_settings *s, json_t *root,
                     struct img_error *err)
{
    const char *key;
    json_t *value, *item;
    size_t i;
    int ret = json_is_object(root) ? 0 :
        nbd_fail(err, EINVAL, "must be a JSON object");

    json_object_foreach(root, key, value) {
        if (ret < 0)
            break;
        if (!strcmp(key, "policy") && json_is_string(value)) {
            ret = nbd_settings_add(s, key, json_string_value(value), err);
        } else if (!strcmp(key, "rules") && json_is_array(value)) {
            json_array_foreach(value, i, item)
                if (ret == 0)
                    ret = add_rule(s, i, item, err);
        } else {
            ret = nbd_fail(err, EINVAL, "\"%s\" is not expected", key);
        }
    }
    return ret == 0 ? check_list(s, err) : ret;
}

static int load(struct nbd_settings *s, const char *path,
                struct img_error *err)
{
    struct img_error why = { 0 };
    json_error_t bad;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &bad);
    int ret;

    if (!root)
        return nbd_fail(err, EINVAL, "%s: line %d: %s", path, bad.line,
                        bad.text);
    ret = take_json(s, root, &why);
    json_decref(root);
    if (ret < 0) {
        nbd_settings_free(s);
        nbd_fail(err, -ret, "%s: %s", path, why.message);
    }
    return ret;
}

/* ---- the policy -------------------------------------------------------- */

static int begin(struct nbd_authz *a, const char *id, struct img_error *err)
{
    const char *type = nbd_settings_get(a->object, "qom-type"), *file;
    int ret;

    if (!strcmp(type, "authz-simple"))
        return nbd_settings_get(a->object, "identity") ? 0 :
            nbd_fail(err, EINVAL, "authz-simple needs identity=");
    if (!strcmp(type, "authz-list"))
        return check_list(a->object, err);
    if (strcmp(type, "authz-list-file"))
        return nbd_fail(err, EINVAL, "--tls-authz: '%s' is no authz object",
                        id);
    file = nbd_settings_get(a->object, "filename");
    if (!file)
        return nbd_fail(err, EINVAL, "authz-list-file needs filename=");
    a->is_file = a->refresh = true;
    ret = nbd_settings_bool(a->object, "refresh", &a->refresh, err);
    return ret == 0 ? load(&a->file, file, err) : ret;
}

int nbd_authz_new(const struct nbd_objects *objects, const char *id,
                  struct nbd_authz **out, struct img_error *err)
{
    struct nbd_authz *a = calloc(1, sizeof *a);
    int ret;

    if (!a)
        return nbd_fail(err, ENOMEM, "no memory");
    a->object = nbd_objects_find(objects, id);
    ret = a->object ? begin(a, id, err) :
        nbd_fail(err, ENOENT, "--tls-authz: there is no object '%s'", id);
    if (ret < 0) {
        nbd_authz_free(a);
        return ret;
    }
    *out = a;
    return 0;
}

void nbd_authz_free(struct nbd_authz *a)
{
    if (!a)
        return;
    nbd_settings_free(&a->file);
    free(a);
}

static bool file_admits(const struct nbd_authz *a, const char *identity)
{
    struct nbd_settings now = { 0 };
    struct img_error err;
    bool ok;

    if (!a->refresh)
        return list_admits(&a->file, identity);
    if (load(&now, nbd_settings_get(a->object, "filename"), &err) < 0) {
        fprintf(stderr, "vimg-nbd: nobody is admitted: %s\n", err.message);
        return false;
    }
    ok = list_admits(&now, identity);
    nbd_settings_free(&now);
    return ok;
}

bool nbd_authz_admits(const struct nbd_authz *a, const char *identity)
{
    const char *only = nbd_settings_get(a->object, "identity");

    if (a->is_file)
        return file_admits(a, identity);
    if (!strcmp(nbd_settings_get(a->object, "qom-type"), "authz-simple"))
        return !strcmp(only, identity);
    return list_admits(a->object, identity);
}
