/* The VMDK descriptor: text to struct and back.
 *
 * Invariant: a line that no call has changed is printed byte for byte as it
 * was read, whatever its encoding; entries are changed where they stand.
 * No I/O and no locks.
 */
#include "vmdk/vmdk.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char *const access_names[] = { "RW", "RDONLY", "NOACCESS" };
static const char *const type_names[] = {
    "FLAT", "SPARSE", "ZERO", "VMFS", "VMFSSPARSE", "SESPARSE", "VMFSRDM",
    "VMFSRAW"
};

const char *img_vmdk_type_name(enum vmdk_type type)
{
    return type_names[type];
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

static const char *skip_blanks(const char *p)
{
    while (is_blank(*p))
        p++;
    return p;
}

/* Length of the line without its end and the blanks before that. */
static size_t line_content(const char *line)
{
    size_t len = strlen(line);

    while (len && strchr("\r\n \t", line[len - 1]))
        len--;
    return len;
}

/* One word; *p moves behind it. */
static bool take_word(const char **p, char *word, size_t room)
{
    size_t len;

    *p = skip_blanks(*p);
    len = strcspn(*p, " \t\r\n");
    if (!len || len >= room)
        return false;
    memcpy(word, *p, len);
    word[len] = 0;
    *p += len;
    return true;
}

static bool take_number(const char **p, uint64_t *number)
{
    char word[24], *end;

    if (!take_word(p, word, sizeof word) || !isdigit((unsigned char)word[0]))
        return false;
    errno = 0;
    *number = strtoull(word, &end, 10);
    return !*end && !errno;
}

static int choose(const char *word, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(word, names[i]))
            return (int)i;
    return -1;
}

/* A name in quotes; there is no way to escape one inside. */
static int take_name(const char **p, char **name)
{
    const char *q = skip_blanks(*p), *end;

    if (*q != '"')
        return -EINVAL;
    end = strchr(++q, '"');
    if (!end || end == q)
        return -EINVAL;
    *name = strndup(q, (size_t)(end - q));
    *p = end + 1;
    return *name ? 0 : -ENOMEM;
}

static bool is_extent_line(const char *line)
{
    char word[12];
    const char *p = line;

    return take_word(&p, word, sizeof word) &&
           choose(word, access_names, IMG_COUNT(access_names)) >= 0;
}

/* RW 4192256 SPARSE "test-s001.vmdk", RW 1048576 FLAT "f001.vmdk" 0,
 * RW 63 ZERO; what follows (a device's partition) is not for us. */
static int parse_extent(const char *path, struct vmdk_text *t, size_t line,
                        struct img_error *err)
{
    const char *p = t->lines[line];
    struct vmdk_extent_line e = { .line = line }, *list;
    int access, type, r;
    bool has_offset;
    char word[16];

    if (!take_word(&p, word, sizeof word))
        goto bad;
    access = choose(word, access_names, IMG_COUNT(access_names));
    if (access < 0 || !take_number(&p, &e.sectors) ||
        !take_word(&p, word, sizeof word))
        goto bad;
    type = choose(word, type_names, IMG_COUNT(type_names));
    if (type < 0)
        return img_fail(err, ENOTSUP, "%s: descriptor line %zu: extents of "
                        "type \"%s\" are not known", path, line + 1, word);
    e.access = (enum vmdk_access)access;
    e.type = (enum vmdk_type)type;
    if (e.sectors > VMDK_SIZE_MAX / VMDK_SECTOR)
        goto bad;
    if (e.type != VMDK_TYPE_ZERO) {
        r = take_name(&p, &e.name);
        if (r == -ENOMEM)
            return img_fail_nomem(err);
        if (r)
            goto bad;
    }
    p = skip_blanks(p);
    has_offset = isdigit((unsigned char)*p);
    if (has_offset && (!take_number(&p, &e.offset) ||
                       e.offset > VMDK_SIZE_MAX / VMDK_SECTOR))
        goto bad;
    if (e.type == VMDK_TYPE_FLAT && !has_offset)
        goto bad;
    if (!(t->n_extents & (t->n_extents - 1))) {
        list = realloc(t->extents,
                       (t->n_extents ? t->n_extents * 2 : 1) * sizeof *list);
        if (!list) {
            free(e.name);
            return img_fail_nomem(err);
        }
        t->extents = list;
    }
    t->extents[t->n_extents++] = e;
    return 0;
bad:
    free(e.name);
    return img_fail(err, IMG_ECORRUPT, "%s: descriptor line %zu is no valid "
                    "extent: %.*s", path, line + 1,
                    (int)IMG_MIN(line_content(t->lines[line]), (size_t)120),
                    t->lines[line]);
}

/* Where the key of `key = "value"` ends, 0 = it is no such line; *value is
 * where the value begins, quotes and all. */
static size_t line_key(const char *line, const char **key,
                       const char **value)
{
    const char *eq;
    size_t len;

    *key = skip_blanks(line);
    if (**key == '#' || is_extent_line(line))
        return 0;
    eq = strchr(*key, '=');
    if (!eq)
        return 0;
    len = (size_t)(eq - *key);
    while (len && is_blank((*key)[len - 1]))
        len--;
    *value = skip_blanks(eq + 1);
    return len;
}

static size_t find(const struct vmdk_text *t, const char *key)
{
    size_t want = strlen(key), i;

    for (i = 0; i < t->n_lines; i++) {
        const char *k, *v;

        if (line_key(t->lines[i], &k, &v) == want &&
            !strncasecmp(k, key, want))
            break;
    }
    return i;
}

const char *img_vmdk_text_look(const struct vmdk_text *t, const char *key,
                               size_t *len)
{
    size_t i = find(t, key);
    const char *k, *v = "";

    if (i == t->n_lines)
        return NULL;
    line_key(t->lines[i], &k, &v);
    *len = line_content(v);
    if (*len >= 2 && v[0] == '"' && v[*len - 1] == '"') {
        v++;
        *len -= 2;
    }
    return v;
}

int img_vmdk_text_get(const struct vmdk_text *t, const char *key,
                      char **value, struct img_error *err)
{
    size_t len;
    const char *v = img_vmdk_text_look(t, key, &len);

    *value = v ? strndup(v, len) : NULL;
    return v && !*value ? img_fail_nomem(err) : 0;
}

bool img_vmdk_id(const char *text, size_t len, uint32_t *id)
{
    if (len < 1 || len > 8 || strspn(text, "0123456789abcdefABCDEF") < len)
        return false;
    *id = (uint32_t)strtoul(text, NULL, 16);
    return true;
}

bool img_vmdk_text_get_id(const struct vmdk_text *t, const char *key,
                          uint32_t *id)
{
    size_t len;
    const char *v = img_vmdk_text_look(t, key, &len);

    return v && img_vmdk_id(v, len, id);
}

static int insert_line(struct vmdk_text *t, size_t at, char *line)
{
    char **list;

    if (!line)
        return -ENOMEM;
    list = realloc(t->lines, (t->n_lines + 1) * sizeof *list);
    if (!list) {
        free(line);
        return -ENOMEM;
    }
    memmove(list + at + 1, list + at, (t->n_lines - at) * sizeof *list);
    list[at] = line;
    t->lines = list;
    t->n_lines++;
    for (size_t i = 0; i < t->n_extents; i++)
        if (t->extents[i].line >= at)
            t->extents[i].line++;
    return 0;
}

static void remove_line(struct vmdk_text *t, size_t at)
{
    free(t->lines[at]);
    memmove(t->lines + at, t->lines + at + 1,
            (t->n_lines - at - 1) * sizeof *t->lines);
    t->n_lines--;
    for (size_t i = 0; i < t->n_extents; i++)
        if (t->extents[i].line > at)
            t->extents[i].line--;
}

static char *format(const char *fmt, ...)
    __attribute__((format(printf, 1, 2)));

static char *format(const char *fmt, ...)
{
    char *text = NULL;
    va_list ap;
    int r;

    va_start(ap, fmt);
    r = vasprintf(&text, fmt, ap);
    va_end(ap);
    return r < 0 ? NULL : text;
}

static const char *line_end(const struct vmdk_text *t)
{
    return t->n_lines && strstr(t->lines[0], "\r\n") ? "\r\n" : "\n";
}

/* A new entry goes behind the last of its kind: ddb entries at the end, the
 * others behind the last of the head. */
static size_t place_for(const struct vmdk_text *t, bool ddb)
{
    size_t i, last = 0;

    for (i = 0; i < t->n_lines; i++) {
        const char *k, *v;

        if (line_key(t->lines[i], &k, &v) &&
            ddb == !strncasecmp(k, "ddb.", 4))
            last = i + 1;
    }
    return ddb && !last ? t->n_lines : last;
}

/* The line before `at` may be the last one and have no end. */
static int end_line(struct vmdk_text *t, size_t at)
{
    char *whole;

    if (!at || strchr(t->lines[at - 1], '\n'))
        return 0;
    whole = format("%s%s", t->lines[at - 1], line_end(t));
    if (!whole)
        return -ENOMEM;
    free(t->lines[at - 1]);
    t->lines[at - 1] = whole;
    return 0;
}

static int add_entry(struct vmdk_text *t, const char *key, const char *value,
                     bool quoted)
{
    bool ddb = !strncasecmp(key, "ddb.", 4);
    size_t at = place_for(t, ddb);
    const char *q = quoted ? "\"" : "", *gap = ddb ? " " : "";

    if (end_line(t, at))
        return -ENOMEM;
    return insert_line(t, at, format("%s%s=%s%s%s%s%s", key, gap, gap, q,
                                     value, q, line_end(t)));
}

static int set_entry(struct vmdk_text *t, const char *key, const char *value,
                     bool quoted, struct img_error *err)
{
    size_t i = find(t, key);
    const char *k, *v, *tail, *q;
    char *line;

    if (value && strpbrk(value, "\"\r\n"))
        return img_fail(err, EINVAL, "descriptor entry %s cannot hold quotes "
                        "or line ends", key);
    if (!value) {
        if (i < t->n_lines)
            remove_line(t, i);
        return 0;
    }
    if (i == t->n_lines)
        return add_entry(t, key, value, quoted) ? img_fail_nomem(err) : 0;
    line_key(t->lines[i], &k, &v);
    tail = v + line_content(v);
    q = quoted || *v == '"' ? "\"" : "";
    line = format("%.*s%s%s%s%s", (int)(v - t->lines[i]), t->lines[i], q,
                  value, q, tail);
    if (!line)
        return img_fail_nomem(err);
    free(t->lines[i]);
    t->lines[i] = line;
    return 0;
}

int img_vmdk_text_set(struct vmdk_text *t, const char *key, const char *value,
                      struct img_error *err)
{
    return set_entry(t, key, value, true, err);
}

int img_vmdk_text_set_id(struct vmdk_text *t, const char *key, uint32_t id,
                         struct img_error *err)
{
    char value[12];
    uint32_t had;
    size_t len;
    const char *v = img_vmdk_text_look(t, key, &len);
    bool fits = v && img_vmdk_id(v, len, &had) &&
                (len == 8 || id < UINT32_C(1) << 4 * len);

    snprintf(value, sizeof value, "%0*x", fits ? (int)len : 8, (unsigned)id);
    return set_entry(t, key, value, false, err);
}

int img_vmdk_text_set_ddb(struct vmdk_text *text, const char *entry,
                          struct img_error *err)
{
    const char *eq = strchr(entry, '=');
    char key[128];
    int n;

    n = eq ? (int)(eq - entry) : 0;
    if (n < 1 || n > 100 || strcspn(entry, " \t\"#\r\n") < (size_t)n)
        return img_fail(err, EINVAL, "ddb expects NAME=VALUE, not '%s'",
                        entry);
    snprintf(key, sizeof key, "ddb.%.*s", n, entry);
    return img_vmdk_text_set(text, key, eq[1] ? eq + 1 : NULL, err);
}

int img_vmdk_text_set_extent(struct vmdk_text *t, size_t extent,
                             uint64_t sectors, struct img_error *err)
{
    struct vmdk_extent_line *e = &t->extents[extent];
    const char *old = t->lines[e->line], *p;
    char *line;

    p = skip_blanks(old);
    p = skip_blanks(p + strcspn(p, " \t"));
    line = format("%.*s%llu%s", (int)(p - old), old,
                  (unsigned long long)sectors, p + strspn(p, "0123456789"));
    if (!line)
        return img_fail_nomem(err);
    free(t->lines[e->line]);
    t->lines[e->line] = line;
    e->sectors = sectors;
    return 0;
}

int img_vmdk_text_add_extent(struct vmdk_text *t, enum vmdk_type type,
                             uint64_t sectors, const char *name,
                             struct img_error *err)
{
    bool flat = type == VMDK_TYPE_FLAT || type == VMDK_TYPE_VMFS;
    size_t at = t->extents[t->n_extents - 1].line + 1;

    if (strpbrk(name, "\"\r\n"))
        return img_fail(err, EINVAL, "a VMDK descriptor cannot hold the name "
                        "'%s'", name);
    if (end_line(t, at) ||
        insert_line(t, at, format("RW %llu %s \"%s\"%s%s",
                                  (unsigned long long)sectors,
                                  type_names[type], name, flat ? " 0" : "",
                                  line_end(t))))
        return img_fail_nomem(err);
    return parse_extent("new extent", t, at, err);
}

void img_vmdk_text_keep_extents(struct vmdk_text *t, size_t n)
{
    while (t->n_extents > n) {
        struct vmdk_extent_line *e = &t->extents[--t->n_extents];

        remove_line(t, e->line);
        free(e->name);
    }
}

char *img_vmdk_text_print(const struct vmdk_text *t, size_t *len)
{
    size_t total = 0, at = 0;
    char *out;

    for (size_t i = 0; i < t->n_lines; i++)
        total += strlen(t->lines[i]);
    out = malloc(total + 1);
    if (!out)
        return NULL;
    for (size_t i = 0; i < t->n_lines; i++) {
        size_t part = strlen(t->lines[i]);

        memcpy(out + at, t->lines[i], part);
        at += part;
    }
    out[at] = 0;
    *len = at;
    return out;
}

void img_vmdk_text_free(struct vmdk_text *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n_lines; i++)
        free(t->lines[i]);
    for (size_t i = 0; i < t->n_extents; i++)
        free(t->extents[i].name);
    free(t->extents);
    free(t->lines);
    free(t);
}

static int split_lines(struct vmdk_text *t, const char *p, size_t len)
{
    const char *end = p + len;
    size_t n = 0;

    for (size_t i = 0; i < len; i++)
        n += p[i] == '\n';
    t->lines = calloc(n + 1, sizeof *t->lines);
    if (!t->lines)
        return -ENOMEM;
    while (p < end) {
        const char *nl = memchr(p, '\n', (size_t)(end - p));
        size_t part = (size_t)((nl ? nl + 1 : end) - p);

        t->lines[t->n_lines] = strndup(p, part);
        if (!t->lines[t->n_lines])
            return -ENOMEM;
        t->n_lines++;
        p += part;
    }
    return 0;
}

static int parse_lines(const char *path, struct vmdk_text *t,
                       struct img_error *err)
{
    size_t len;
    const char *version = img_vmdk_text_look(t, "version", &len);
    int r = 0;

    if (!version)
        r = img_fail(err, IMG_ECORRUPT, "%s: the VMDK descriptor has no "
                     "version", path);
    else if (len != 1 || *version < '1' || *version > '3')
        r = img_fail(err, ENOTSUP, "%s: VMDK descriptor version \"%.*s\"",
                     path, (int)IMG_MIN(len, (size_t)20), version);
    for (size_t i = 0; i < t->n_lines && r == 0; i++)
        if (is_extent_line(t->lines[i]))
            r = parse_extent(path, t, i, err);
    return r;
}

int img_vmdk_text_parse(const char *path, const void *buf, size_t len,
                        struct vmdk_text **text, struct img_error *err)
{
    struct vmdk_text *t;
    int r;

    *text = NULL;
    len = strnlen(buf, len);        /* an embedded one is padded with zeros */
    if (len > VMDK_TEXT_MAX)
        return img_fail(err, IMG_ECORRUPT, "%s: VMDK descriptor of %zu bytes",
                        path, len);
    t = calloc(1, sizeof *t);
    if (!t || split_lines(t, buf, len))
        r = img_fail_nomem(err);
    else
        r = parse_lines(path, t, err);
    if (r) {
        img_vmdk_text_free(t);
        t = NULL;
    }
    *text = t;
    return r;
}

int img_vmdk_text_copy(const struct vmdk_text *text, struct vmdk_text **copy,
                       struct img_error *err)
{
    size_t len;
    char *buf = img_vmdk_text_print(text, &len);
    int r = buf ? img_vmdk_text_parse("descriptor", buf, len, copy, err)
                : img_fail_nomem(err);

    if (!buf)
        *copy = NULL;
    free(buf);
    return r;
}

/* Comments and empty lines, then a version this format has had. */
bool img_vmdk_looks_like_text(const uint8_t *head, size_t len)
{
    const char *p = (const char *)head, *end = p + len;

    while (p < end) {
        const char *nl = memchr(p, '\n', (size_t)(end - p));

        while (p < end && (is_blank(*p) || *p == '\r'))
            p++;
        if (p < end && *p != '#' && *p != '\n')
            break;
        if (!nl)
            return false;
        p = nl + 1;
    }
    return end - p >= 9 && !strncasecmp(p, "version=", 8) &&
           p[8] >= '1' && p[8] <= '3';
}
