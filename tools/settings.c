/* -o key=value,... of create, convert, measure, amend and dd. */
#include "settings.h"
#include "size.h"
#include "vimg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct parse {
    struct settings *to;
    enum settings_kind kind;
};

static void add(struct settings *s, char *text)
{
    s->list = need_memory(realloc(s->list, (s->n + 2) * sizeof s->list[0]));
    s->list[s->n++] = text;
    s->list[s->n] = NULL;
}

static int set_size(struct settings *s, const char *value)
{
    if (size_parse(value, &s->size) < 0) {
        complain("Parameter 'size' expects a non-negative number below 2^64");
        fputs("Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, "
              "tera-, peta-\nand exabytes, respectively.\n", stderr);
        return 1;
    }
    s->has_size = true;
    return 0;
}

static int one(void *opaque, char *key, char *value)
{
    struct parse *parse = opaque;
    struct settings *s = parse->to;
    char *text = value ? value : "on";

    if (!value && (!strcmp(key, "help") || !strcmp(key, "?"))) {
        s->help = true;
        return 0;
    }
    if (parse->kind == SETTINGS_CREATE) {
        if (!strcmp(key, "size"))
            return set_size(s, text);
        if (!strcmp(key, "backing_file")) {
            free(s->backing);
            s->backing = need_memory(strdup(text));
            return 0;
        }
        if (!strcmp(key, "backing_fmt")) {
            free(s->backing_format);
            s->backing_format = need_memory(strdup(text));
            return 0;
        }
    }
    add(s, format_text("%s=%s", key, text));
    return 0;
}

bool settings_parse(const struct option_list *uses, enum settings_kind kind,
                    struct settings *settings)
{
    struct parse parse = { settings, kind };

    *settings = (struct settings){ 0 };
    for (size_t i = 0; i < uses->n; i++) {
        int r = options_split(uses->uses[i].text, one, &parse);

        if (r < 0)
            complain("Invalid option list: %s", uses->uses[i].text);
        if (r != 0)
            return false;
    }
    return true;
}

void settings_target(struct settings *settings, const char *product,
                     const char **format)
{
    if (!product)
        return;
    add(settings, format_text("target=%s", product));
    if (!*format)
        *format = "vmdk";
}

static const char *kind_of(const struct img_option_info *option)
{
    static const struct { const char *ours, *shown; } kinds[] = {
        { "size", "size" }, { "num", "num" }, { "on|off", "bool (on/off)" },
    };

    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (!strcmp(kinds[i].ours, option->values))
            return kinds[i].shown;
    return "str";
}

int settings_help(const char *format, enum settings_kind kind, bool with_file)
{
    const struct img_format_info *info = img_format_by_name(format);

    if (!info) {
        complain("Unknown file format '%s'", format);
        return 1;
    }
    if (kind == SETTINGS_AMEND && !(info->features & IMG_CAN_AMEND)) {
        complain("Format driver '%s' does not support option amendment",
                 format);
        return 1;
    }
    if (kind == SETTINGS_AMEND)
        printf("Amend options for '%s':\n", format);
    else if (with_file)
        puts("Supported options:");
    else
        printf("Supported %s options:\n", format);
    for (const struct img_option_info *o = info->create_options;
         o && o->name; o++) {
        char text[80];

        if (kind == SETTINGS_AMEND && !(o->flags & IMG_OPTION_AMEND))
            continue;
        snprintf(text, sizeof text, "%s=<%s>", o->name, kind_of(o));
        printf("  %-22s - %s\n", text, o->summary);
    }
    return 0;
}

bool settings_check(const struct settings *settings, const char *format,
                    const char *prefix)
{
    const struct img_format_info *info = img_format_by_name(format);
    const struct img_option_info *o;

    if (!info) {
        complain("%sUnknown file format '%s'", prefix, format);
        return false;
    }
    for (size_t i = 0; i < settings->n; i++) {
        size_t len = strcspn(settings->list[i], "=");

        for (o = info->create_options; o && o->name; o++)
            if (strlen(o->name) == len &&
                !strncmp(o->name, settings->list[i], len))
                break;
        if (!o || !o->name) {
            complain("%sInvalid parameter '%.*s'", prefix, (int)len,
                     settings->list[i]);
            return false;
        }
    }
    return true;
}

void settings_print(const char *path, const char *format, char **settings)
{
    printf("Formatting '%s', fmt=%s", path, format);
    for (; settings && *settings; settings++) {
        putchar(' ');
        for (const char *p = *settings; *p; p++) {
            putchar(*p);
            if (*p == ',')
                putchar(',');
        }
    }
    putchar('\n');
}
