/* Parsing and help from option tables, see options.h. */
#include "vimg.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_OPTIONS = 48, LONG_ONLY = 256, HELP_COLUMN = 34, HELP_WIDTH = 79 };

static void store(const struct option_def *def, const char *text)
{
    struct option_list *list;

    switch (def->kind) {
    case OPTION_FLAG:
        *(bool *)def->to = true;
        break;
    case OPTION_TEXT:
        *(const char **)def->to = text;
        break;
    case OPTION_LIST:
        list = def->to;
        list->uses = need_memory(realloc(list->uses, (list->n + 1) *
                                         sizeof list->uses[0]));
        list->uses[list->n++] = (struct option_use){
            def->name, text ? text : def->name
        };
        break;
    case OPTION_END:
        break;
    }
}

/* getopt's own tables; returns the number of rows. */
static int prepare(const struct option_def *defs, struct option *longs,
                   char *shorts)
{
    int n = 0;

    *shorts++ = ':';
    for (; n < MAX_OPTIONS - 1 && defs[n].kind != OPTION_END; n++) {
        longs[n] = (struct option){
            defs[n].name, defs[n].argument ? required_argument : no_argument,
            NULL, LONG_ONLY + n
        };
        if (!defs[n].letter)
            continue;
        *shorts++ = defs[n].letter;
        if (defs[n].argument)
            *shorts++ = ':';
    }
    longs[n] = (struct option){ 0 };
    *shorts = 0;
    return n;
}

static const struct option_def *find(const struct option_def *defs, int n,
                                     int c)
{
    if (c >= LONG_ONLY)
        return &defs[c - LONG_ONLY];
    for (int i = 0; i < n; i++)
        if (defs[i].letter == c)
            return &defs[i];
    return NULL;
}

int options_parse(const struct command *cmd, int *argc, char ***argv)
{
    const struct option_def *defs = cmd->options, *def;
    struct option longs[MAX_OPTIONS];
    char shorts[2 * MAX_OPTIONS + 2];
    char *last = NULL;
    int n = prepare(defs, longs, shorts), c;

    if (cmd->signed_last && *argc > 2 && (*argv)[*argc - 1][0] == '-' &&
        (*argv)[*argc - 1][1] >= '0' && (*argv)[*argc - 1][1] <= '9') {
        last = (*argv)[--*argc];
        (*argv)[*argc] = NULL;
    }
    optind = 0;
    while ((c = getopt_long(*argc, *argv, shorts, longs, NULL)) != -1) {
        if (c == ':') {
            usage_error("missing argument for option '%s'",
                        (*argv)[optind - 1]);
            return OPTIONS_BAD;
        }
        def = c == '?' ? NULL : find(defs, n, c);
        if (!def) {
            usage_error("unrecognized option '%s'", (*argv)[optind - 1]);
            return OPTIONS_BAD;
        }
        if (!def->to)
            return OPTIONS_HELP;
        store(def, optarg);
    }
    if (last) {
        if (optind == *argc && (*argv)[*argc - 1] &&
            !strcmp((*argv)[*argc - 1], "--"))
            (*argv)[*argc] = NULL;
        (*argv)[(*argc)++] = last;
        (*argv)[*argc] = NULL;
    }
    *argc -= optind;
    *argv += optind;
    return OPTIONS_OK;
}

static void print_wrapped(const char *text, int column)
{
    while (*text) {
        size_t len = strcspn(text, " ");

        if (column > HELP_COLUMN && column + 1 + len > HELP_WIDTH) {
            printf("\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
        }
        if (column > HELP_COLUMN)
            column += printf(" ");
        column += printf("%.*s", (int)len, text);
        text += len;
        text += *text == ' ';
    }
    putchar('\n');
}

void options_help(const struct command *cmd)
{
    printf("Usage: vimg %s [OPTION]... %s\n%s.\n\nOptions:\n", cmd->name,
           cmd->arguments, cmd->summary);
    for (const struct option_def *d = cmd->options; d->kind != OPTION_END;
         d++) {
        int column = d->letter ? printf("  -%c, --%s", d->letter, d->name)
                               : printf("      --%s", d->name);

        if (d->argument)
            column += printf("=%s", d->argument);
        if (column >= HELP_COLUMN - 1) {
            putchar('\n');
            column = 0;
        }
        printf("%*s", HELP_COLUMN - column, "");
        print_wrapped(d->help, HELP_COLUMN);
    }
    printf("\nThe manual page is vimg-%s(1).\n", cmd->name);
}

int options_split(const char *text,
                  int (*part)(void *opaque, char *key, char *value),
                  void *opaque)
{
    char *copy = need_memory(malloc(strlen(text) + 1)), *out, *value;
    int ret = *text ? 0 : -1;

    while (*text && ret == 0) {
        out = copy;
        value = NULL;
        while (*text && (*text != ',' || text[1] == ',')) {
            if (*text == '=' && !value && out > copy) {
                *out++ = 0;
                value = out;
                text++;
                continue;
            }
            text += *text == ',';
            *out++ = *text++;
        }
        *out = 0;
        if (out == copy && !value)
            ret = -1;
        else
            ret = part(opaque, copy, value);
        text += *text == ',';
    }
    free(copy);
    return ret;
}
