#include "base/strings.h"
#include "base/checked.h"
#include "base/error.h"
#include "libimg.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

int img_strings_addf(struct img_strings *s, struct img_error *err,
                     const char *fmt, ...)
{
    char **list = realloc(s->list, (s->n + 2) * sizeof *list);
    char *text = NULL;
    va_list ap;
    int r;

    if (!list)
        return img_fail_nomem(err);
    s->list = list;
    list[s->n] = NULL;
    va_start(ap, fmt);
    r = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (r < 0)
        return img_fail_nomem(err);
    list[s->n++] = text;
    list[s->n] = NULL;
    return 0;
}

void img_strings_free(struct img_strings *s)
{
    for (size_t i = 0; i < s->n; i++)
        free(s->list[i]);
    free(s->list);
    *s = (struct img_strings){ NULL, 0 };
}

const char *img_setting(const char *const *settings, const char *key)
{
    size_t len = strlen(key);
    const char *value = NULL;

    for (; settings && *settings; settings++) {
        if (strncmp(*settings, key, len))
            continue;
        if ((*settings)[len] == '=')
            value = *settings + len + 1;
        else if (!(*settings)[len])
            value = "on";
    }
    return value;
}

int img_setting_bool(const char *const *settings, const char *key,
                     bool *value, struct img_error *err)
{
    const char *text = img_setting(settings, key);

    if (!text)
        return 0;
    if (!strcmp(text, "on") || !strcmp(text, "yes") || !strcmp(text, "true") ||
        !strcmp(text, "y"))
        *value = true;
    else if (!strcmp(text, "off") || !strcmp(text, "no") ||
             !strcmp(text, "false") || !strcmp(text, "n"))
        *value = false;
    else
        return img_fail(err, EINVAL, "Parameter '%s' expects 'on' or 'off', "
                        "not '%s'", key, text);
    return 0;
}

bool img_parse_size(const char *text, uint64_t *value)
{
    static const char suffixes[] = "bkmgtpe";
    unsigned long long whole;
    double fraction = 0;
    const char *suffix;
    char *end;
    uint64_t unit = 1;

    if (!isdigit((unsigned char)*text))
        return false;
    errno = 0;
    whole = strtoull(text, &end, strncasecmp(text, "0x", 2) ? 10 : 16);
    if (errno)
        return false;
    if (*end == '.') {
        const char *digits = end + 1;

        if (!isdigit((unsigned char)*digits))
            return false;
        for (double place = 0.1; isdigit((unsigned char)*digits);
             place /= 10)
            fraction += place * (*digits++ - '0');
        end = (char *)digits;
    }
    if (*end) {
        suffix = strchr(suffixes, tolower((unsigned char)*end));
        if (!suffix || end[1])
            return false;
        unit = UINT64_C(1) << (10 * (suffix - suffixes));
    }
    if (fraction > 0 && unit == 1)
        return false;
    return img_mul(whole, unit, value) &&
           img_add(*value, (uint64_t)(fraction * (double)unit), value);
}

int img_setting_size(const char *const *settings, const char *key,
                     uint64_t *value, struct img_error *err)
{
    const char *text = img_setting(settings, key);

    if (text && !img_parse_size(text, value))
        return img_fail(err, EINVAL, "Parameter '%s' expects a size, such as "
                        "65536, 64k or 1.5G, not '%s'", key, text);
    return 0;
}

int img_setting_number(const char *const *settings, const char *key,
                       uint64_t *value, struct img_error *err)
{
    const char *text = img_setting(settings, key);
    unsigned long long number;
    char *end;

    if (!text)
        return 0;
    errno = 0;
    number = strtoull(text, &end, 0);
    if (errno || *end || !isdigit((unsigned char)*text))
        return img_fail(err, EINVAL, "Parameter '%s' expects a number, not "
                        "'%s'", key, text);
    *value = number;
    return 0;
}

int img_setting_choice(const char *const *settings, const char *key,
                       const char *const *names, unsigned *value,
                       struct img_error *err)
{
    const char *text = img_setting(settings, key);

    if (!text)
        return 0;
    for (unsigned i = 0; names[i]; i++) {
        if (!strcmp(names[i], text)) {
            *value = i;
            return 0;
        }
    }
    return img_fail(err, EINVAL, "Invalid parameter '%s' for '%s'", text,
                    key);
}

int img_settings_check(const char *const *settings,
                       const struct img_option_info *known,
                       const char *format, struct img_error *err)
{
    for (; settings && *settings; settings++) {
        size_t len = strcspn(*settings, "=");
        const struct img_option_info *o;

        for (o = known; o && o->name; o++)
            if (strlen(o->name) == len && !strncmp(o->name, *settings, len))
                break;
        if (!o || !o->name)
            return img_fail(err, EINVAL, "Format '%s' has no option '%.*s'",
                            format, (int)len, *settings);
    }
    return 0;
}
