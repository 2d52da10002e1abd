/* Names of images that are no paths: option lists and "json:{...}".
 *
 * Both become pairs of a dotted key and a text ("file.filename" = "x"), which
 * one table turns into options of img_open.  A key that would change what the
 * guest sees and that we do not know is refused; one that only tunes QEMU is
 * let pass. */
#include "location.h"
#include "json.h"
#include "size.h"
#include "vimg.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum what {
    DRIVER, FILE_DRIVER, PATH, READ_ONLY, SHARE, DIRECT, NO_FLUSH, LOCKING,
    DISCARD, BACKING, BACKING_DRIVER, BACKING_FILE_DRIVER, BACKING_PATH,
    OFFSET, SIZE, CACHE, FREE_NAMES, IGNORE
};

static const struct { const char *key; enum what what; } keys[] = {
    { "driver", DRIVER }, { "file.driver", FILE_DRIVER },
    { "filename", PATH }, { "file.filename", PATH },
    { "read-only", READ_ONLY }, { "file.read-only", READ_ONLY },
    { "auto-read-only", IGNORE }, { "file.auto-read-only", IGNORE },
    { "force-share", SHARE }, { "file.force-share", SHARE },
    { "cache.direct", DIRECT }, { "file.cache.direct", DIRECT },
    { "cache.no-flush", NO_FLUSH }, { "file.cache.no-flush", NO_FLUSH },
    { "cache.writeback", IGNORE },
    { "locking", LOCKING }, { "file.locking", LOCKING },
    { "discard", DISCARD }, { "file.discard", DISCARD },
    { "detect-zeroes", IGNORE }, { "file.detect-zeroes", IGNORE },
    { "node-name", IGNORE }, { "file.node-name", IGNORE },
    { "aio", IGNORE }, { "file.aio", IGNORE },
    { "backing", BACKING }, { "backing.driver", BACKING_DRIVER },
    { "backing.file.driver", BACKING_FILE_DRIVER },
    { "backing.file.filename", BACKING_PATH },
    { "offset", OFFSET }, { "size", SIZE },
    { "cache-size", CACHE }, { "l2-cache-size", CACHE },
    { "free-names", FREE_NAMES },
    { "refcount-cache-size", IGNORE }, { "l2-cache-entry-size", IGNORE },
    { "cache-clean-interval", IGNORE }, { "lazy-refcounts", IGNORE },
    { "pass-discard-request", IGNORE }, { "pass-discard-snapshot", IGNORE },
    { "pass-discard-other", IGNORE }, { "overlap-check", IGNORE },
    { "overlap-check.template", IGNORE },
};

static const char *own(struct location *loc, char *text)
{
    loc->owned = need_memory(realloc(loc->owned, (loc->n_owned + 1) *
                                     sizeof loc->owned[0]));
    loc->owned[loc->n_owned++] = need_memory(text);
    return text;
}

/* Of one key the last value counts.  What several keys ask for is a matter of
 * all of them: see use_switches. */
static bool turn(struct location *loc, size_t key, bool on)
{
    uint64_t bit = UINT64_C(1) << key;

    _Static_assert(sizeof keys / sizeof keys[0] <= 64, "a bit for each");
    loc->on = on ? loc->on | bit : loc->on & ~bit;
    return true;
}

static bool set_switch(struct location *loc, size_t key, const char *value)
{
    if (!strcmp(value, "on") || !strcmp(value, "true") ||
        !strcmp(value, "yes"))
        return turn(loc, key, true);
    if (!strcmp(value, "off") || !strcmp(value, "false") ||
        !strcmp(value, "no"))
        return turn(loc, key, false);
    complain("Parameter '%s' expects 'on' or 'off'", keys[key].key);
    return false;
}

static unsigned flag_of(enum what what)
{
    switch (what) {
    case SHARE:
    case LOCKING:
        return IMG_OPEN_NO_LOCK;
    case DIRECT:
        return IMG_OPEN_DIRECT;
    case NO_FLUSH:
        return IMG_OPEN_NO_SYNC;
    case DISCARD:
        return IMG_OPEN_UNMAP;
    case FREE_NAMES:
        return IMG_OPEN_FREE_NAMES;
    default:
        return 0;
    }
}

static void use_switches(struct location *loc)
{
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (!(loc->on >> i & 1))
            continue;
        loc->opts.flags |= flag_of(keys[i].what);
        loc->read_only |= keys[i].what == READ_ONLY;
    }
}

static bool is_file_driver(const char *name)
{
    return !strcmp(name, "file") || !strcmp(name, "host_device");
}

static bool set_driver(struct location *loc, const char *value, bool backing)
{
    struct server *server = backing ? &loc->below : &loc->server;

    if (is_file_driver(value) || !strcmp(value, "nbd")) {
        server->wanted |= !strcmp(value, "nbd");
        value = "raw";
    } else if (!img_format_by_name(value)) {
        complain("Unknown driver '%s'", value);
        return false;
    }
    if (backing)
        loc->opts.backing_format = own(loc, strdup(value));
    else
        loc->opts.format = own(loc, strdup(value));
    return true;
}

static bool set_locking(struct location *loc, size_t key, const char *value)
{
    bool off = !strcmp(value, "off");

    if (off || !strcmp(value, "on") || !strcmp(value, "auto"))
        return turn(loc, key, off);
    complain("Parameter 'locking' does not accept value '%s'", value);
    return false;
}

static bool set_discard(struct location *loc, size_t key, const char *value)
{
    bool unmap = !strcmp(value, "unmap") || !strcmp(value, "on");

    if (unmap || !strcmp(value, "ignore") || !strcmp(value, "off"))
        return turn(loc, key, unmap);
    complain("Parameter 'discard' does not accept value '%s'", value);
    return false;
}

static bool set_backing(struct location *loc, const char *value)
{
    if (*value) {
        complain("A backing file is given as backing.file.filename=PATH; "
                 "there is no node '%s'", value);
        return false;
    }
    loc->opts.backing = "";
    return true;
}

/* Keys of a server, behind any "backing." and "file.". */
static bool set_server(struct location *loc, const char *key,
                       const char *value)
{
    struct server *server = &loc->server;

    if (!strncmp(key, "backing.", 8)) {
        server = &loc->below;
        key += 8;
    }
    return server_set(server, strncmp(key, "file.", 5) ? key : key + 5,
                      value);
}

static bool set_file_driver(struct location *loc, const char *key,
                            const char *value, struct server *server)
{
    server->wanted |= !strcmp(value, "nbd");
    if (server->wanted || is_file_driver(value))
        return true;
    complain("The option '%s' does not support the value '%s'", key, value);
    return false;
}

static bool set_pair(struct location *loc, const char *key, const char *value)
{
    size_t i = 0, n = sizeof keys / sizeof keys[0];

    if (set_server(loc, key, value))
        return true;
    while (i < n && strcmp(keys[i].key, key))
        i++;
    if (i == n) {
        complain("The option '%s' is not supported", key);
        return false;
    }
    switch (keys[i].what) {
    case DRIVER:
        return set_driver(loc, value, false);
    case FILE_DRIVER:
        return set_file_driver(loc, key, value, &loc->server);
    case BACKING_FILE_DRIVER:
        return set_file_driver(loc, key, value, &loc->below);
    case PATH:
        loc->path = own(loc, strdup(value));
        return true;
    case READ_ONLY:
    case SHARE:
    case DIRECT:
    case NO_FLUSH:
    case FREE_NAMES:
        return set_switch(loc, i, value);
    case LOCKING:
        return set_locking(loc, i, value);
    case DISCARD:
        return set_discard(loc, i, value);
    case BACKING:
        return set_backing(loc, value);
    case BACKING_DRIVER:
        return set_driver(loc, value, true);
    case BACKING_PATH:
        loc->opts.backing = own(loc, strdup(value));
        return true;
    case OFFSET:
        return size_argument(value, "offset", &loc->opts.window_offset);
    case SIZE:
        return size_argument(value, "size", &loc->opts.window_size);
    case CACHE:
        return size_argument(value, key, &loc->opts.cache_bytes);
    case IGNORE:
        break;
    }
    return true;
}

/* The URI of the server that the keys describe, in place of a path. */
static bool use_server(struct location *loc, const struct server *server,
                       const char **path)
{
    char *uri;

    if (server->wanted && *path && !server_is_set(server))
        return true;            /* driver=nbd,filename=nbd://... */
    if (!server->wanted) {
        complain("host, port, path, export and so on are of driver=nbd");
        return false;
    }
    uri = server_uri(server);
    if (uri)
        *path = own(loc, uri);
    return uri;
}

static int list_part(void *opaque, char *key, char *value)
{
    struct location *loc = opaque;

    if (!value && !loc->path && loc->n_owned == 0) {
        loc->path = own(loc, strdup(key));
        return 0;
    }
    return set_pair(loc, key, value ? value : "on") ? 0 : 1;
}

static bool set_json(struct location *loc, const char *key, json_t *value)
{
    char number[32];

    switch (json_typeof(value)) {
    case JSON_STRING:
        return set_pair(loc, key, json_string_value(value));
    case JSON_TRUE:
        return set_pair(loc, key, "on");
    case JSON_FALSE:
        return set_pair(loc, key, "off");
    case JSON_NULL:
        return set_pair(loc, key, "");
    case JSON_INTEGER:
        snprintf(number, sizeof number, "%" JSON_INTEGER_FORMAT,
                 json_integer_value(value));
        return set_pair(loc, key, number);
    default:
        complain("The option '%s' has a value that is not supported", key);
        return false;
    }
}

/* {"file": {"filename": "x"}} and {"file.filename": "x"} are the same.
 * jansson limits the depth of what it parses. */
static bool flatten(struct location *loc, const char *prefix, json_t *object)
{
    const char *key;
    json_t *value;

    json_object_foreach(object, key, value) {
        char *full = format_text("%s%s", prefix, key), *inner;
        bool ok;

        if (json_is_object(value)) {
            inner = format_text("%s.", full);
            ok = flatten(loc, inner, value);
            free(inner);
        } else {
            ok = set_json(loc, full, value);
        }
        free(full);
        if (!ok)
            return false;
    }
    return true;
}

static bool parse_json(struct location *loc, const char *text)
{
    json_error_t error;
    json_t *object = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    bool ok;

    if (!json_is_object(object)) {
        complain("Could not parse the JSON options: %s",
                 object ? "not an object" : error.text);
        json_decref(object);
        return false;
    }
    ok = flatten(loc, "", object);
    json_decref(object);
    return ok;
}

bool location_parse(const char *name, bool image_opts, struct location *loc)
{
    int r;

    *loc = (struct location){ .opts = IMG_OPEN_OPTIONS };
    if (image_opts) {
        r = options_split(name, list_part, loc);
        if (r < 0)
            complain("Invalid option list: %s", name);
        if (r != 0)
            return false;
    } else if (!strncmp(name, "json:", 5)) {
        if (!parse_json(loc, name + 5))
            return false;
    } else {
        loc->path = strncmp(name, "file:", 5) ? name : name + 5;
        return true;
    }
    use_switches(loc);
    if ((loc->server.wanted || server_is_set(&loc->server)) &&
        !use_server(loc, &loc->server, &loc->path))
        return false;
    if ((loc->below.wanted || server_is_set(&loc->below)) &&
        !use_server(loc, &loc->below, &loc->opts.backing))
        return false;
    if (!loc->path)
        complain("Could not open '%s': no file name is given "
                 "(file.filename=PATH)", name);
    return loc->path;
}

void location_free(struct location *loc)
{
    for (size_t i = 0; i < loc->n_owned; i++)
        free(loc->owned[i]);
    free(loc->owned);
    server_free(&loc->server);
    server_free(&loc->below);
    *loc = (struct location){ .opts = IMG_OPEN_OPTIONS };
}
