/* vimg tree: which images rest on which. */
#include "family.h"
#include "json.h"
#include "open.h"
#include "show.h"
#include "size.h"
#include "vimg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct {
    const char *output;
    bool flat;
} args;

static const struct option_def options[] = {
    { OPTION_FLAG, 0, "flat", NULL, "do not look into folders in DIR",
      &args.flat },
    { OPTION_TEXT, 0, "output", "HOW", "human or json", &args.output },
    OPEN_CONFINE_ROWS,
    OPTIONS_HELP_ROW,
    { 0 }
};

enum { MAX_DEPTH = 64 };

static size_t dependants(const struct family *f, const struct member *base)
{
    size_t n = 0;

    for (size_t i = 0; i < f->n; i++)
        n += family_rests_on(f->members[i], base);
    return n;
}

static void show_line(const struct family *f, const struct member *m)
{
    size_t n = dependants(f, m);
    char size[SIZE_TEXT];

    printf("%s", m->path);
    if (m->format)
        printf(" (%s, %s)", m->format, size_human(m->size, size));
    if (n)
        printf(" - changing or removing it breaks %zu %s", n,
               n == 1 ? "image" : "images");
    if (m->note)
        printf(" [%s]", m->note);
    putchar('\n');
}

/* The member after `after` that rests on base; NULL = there is none. */
static const struct member *next_child(const struct family *f,
                                       const struct member *base,
                                       const struct member *after)
{
    bool seen = !after;

    for (size_t i = 0; i < f->n; i++) {
        const struct member *m = f->members[i];

        if (seen && m->base == base)
            return m;
        seen |= m == after;
    }
    return NULL;
}

static void show_below(const struct family *f, const struct member *root)
{
    const struct member *path[MAX_DEPTH + 1] = { root };
    const struct member *child = next_child(f, root, NULL);
    int depth = 1;

    while (depth > 0) {
        if (!child) {
            depth--;
            if (depth > 0)
                child = next_child(f, path[depth - 1], path[depth]);
            continue;
        }
        path[depth] = child;
        for (int i = 1; i < depth; i++)
            fputs(next_child(f, path[i - 1], path[i]) ? "|   " : "    ",
                  stdout);
        fputs(next_child(f, path[depth - 1], child) ? "|-- " : "`-- ",
              stdout);
        show_line(f, child);
        if (depth < MAX_DEPTH) {
            depth++;
            child = next_child(f, child, NULL);
        } else {
            child = next_child(f, path[depth - 1], child);
        }
    }
}

static json_t *member_json(const struct family *f, const struct member *m)
{
    json_t *o = json_new_object(), *list = json_new_array();

    json_put_text(o, "filename", m->path);
    if (m->format) {
        json_put_text(o, "format", m->format);
        json_put_number(o, "virtual-size", m->size);
    }
    if (m->backing)
        json_put_text(o, "backing-filename", m->backing);
    if (m->base)
        json_put_text(o, "full-backing-filename", m->base->path);
    if (m->note)
        json_put_text(o, "note", m->note);
    for (size_t i = 0; i < f->n; i++)
        if (family_rests_on(f->members[i], m))
            json_add(list, json_from_text(f->members[i]->path));
    json_put(o, "dependants", list);
    return o;
}

/* In a loop of backing files nobody is at the bottom; its first member is
 * shown as if it were. */
static bool is_root(const struct member *m)
{
    return !m->base || family_rests_on(m, m);
}

static int run(int argc, char **argv)
{
    enum output output = output_argument(args.output);
    struct family family;
    json_t *list;
    bool ok;

    if (output == OUTPUT_BAD)
        return 1;
    if (argc > 1)
        return usage_error("Expecting one folder");
    confine_path("/", SANDBOX_READ | SANDBOX_LIST);
    open_enter();
    ok = family_scan(argc ? argv[0] : ".", !args.flat, &family);
    if (output == OUTPUT_JSON) {
        list = json_new_array();
        for (size_t i = 0; i < family.n; i++)
            json_add(list, member_json(&family, family.members[i]));
        json_print(list);
    } else {
        for (size_t i = 0; i < family.n; i++) {
            if (!is_root(family.members[i]))
                continue;
            show_line(&family, family.members[i]);
            if (!family.members[i]->base)
                show_below(&family, family.members[i]);
        }
    }
    family_free(&family);
    return ok ? 0 : 1;
}

const struct command command_tree = {
    "tree", "[DIR]", "Show which images rest on which", options, run, false
};
