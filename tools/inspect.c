/* vimg inspect: whether a file from a stranger may be used as an image. */
#include "confine.h"
#include "open.h"
#include "show.h"
#include "size.h"
#include "vimg.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>

enum { SAFE, FAILED, UNSAFE };

static struct {
    bool untrusted;
    const char *expect, *output, *max_size;
} args;

static const struct option_def options[] = {
    { OPTION_FLAG, 0, "untrusted", NULL,
      "the file is from a stranger: other files that it refers to, and odd "
      "features, are reasons to reject it", &args.untrusted },
    { OPTION_TEXT, 0, "expect", "FORMAT",
      "reject everything but this format", &args.expect },
    { OPTION_TEXT, 0, "max-size", "SIZE", "reject larger disks",
      &args.max_size },
    { OPTION_TEXT, 0, "output", "HOW", "human or json", &args.output },
    OPEN_SANDBOX_ROW,
    OPTIONS_HELP_ROW,
    { 0 }
};

/* What a stranger wrote is not for the terminal to interpret. */
static void put_safely(const char *text)
{
    for (; *text; text++)
        if (isprint((unsigned char)*text) && *text != '\\')
            putchar(*text);
        else
            printf("\\x%02x", (unsigned char)*text);
}

static void show_text(const char *path, const struct img_verdict *v)
{
    char text[SIZE_TEXT];

    printf("image: %s\n", path);
    printf("verdict: %s\n", v->safe ? "safe" : "NOT SAFE");
    printf("file format: %s\n", v->format);
    for (size_t i = 0; i < v->n_matches; i++)
        printf("%s%s%s", i ? ", " : "looks like: ", v->matches[i],
               i + 1 == v->n_matches ? "\n" : "");
    if (v->size)
        printf("virtual size: %s (%" PRIu64 " bytes)\n",
               size_human(v->size, text), v->size);
    printf("encrypted: %s\n", v->encrypted ? "yes" : "no");
    for (size_t i = 0; i < v->n_references; i++) {
        printf("refers to %s: ", v->references[i].kind);
        put_safely(v->references[i].name);
        putchar('\n');
    }
    for (size_t i = 0; i < v->n_findings; i++) {
        printf("%s: %s: ", v->findings[i].rejects ? "rejected" : "note",
               v->findings[i].check);
        put_safely(v->findings[i].text);
        putchar('\n');
    }
    printf("confined: %s\n", confine_state());
}

static void show_json(const char *path, const struct img_verdict *v)
{
    json_t *o = json_new_object(), *list = json_new_array(), *item;

    json_put_text(o, "filename", path);
    json_put_bool(o, "safe", v->safe);
    json_put_text(o, "format", v->format);
    for (size_t i = 0; i < v->n_matches; i++)
        json_add(list, json_from_text(v->matches[i]));
    json_put(o, "matches", list);
    json_put_number(o, "virtual-size", v->size);
    json_put_number(o, "file-length", v->file_length);
    json_put_bool(o, "encrypted", v->encrypted);
    list = json_new_array();
    for (size_t i = 0; i < v->n_references; i++) {
        item = json_new_object();
        json_put_text(item, "kind", v->references[i].kind);
        json_put_text(item, "name", v->references[i].name);
        json_add(list, item);
    }
    json_put(o, "references", list);
    list = json_new_array();
    for (size_t i = 0; i < v->n_findings; i++) {
        item = json_new_object();
        json_put_text(item, "check", v->findings[i].check);
        json_put_bool(item, "rejects", v->findings[i].rejects);
        json_put_text(item, "text", v->findings[i].text);
        json_add(list, item);
    }
    json_put(o, "findings", list);
    json_put_bool(o, "confined", confine_held());
    json_put_text(o, "confinement", confine_state());
    json_print(o);
}

static int run(int argc, char **argv)
{
    struct img_inspect_options opts = IMG_INSPECT_OPTIONS;
    enum output output = output_argument(args.output);
    struct img_verdict *v = NULL;
    struct img_error err;
    const char *path;
    int code;

    if (output == OUTPUT_BAD)
        return FAILED;
    if (argc != 1)
        return usage_error("Expecting one image file name");
    if (args.max_size && !size_argument(args.max_size, "max size",
                                        &opts.max_size))
        return FAILED;
    opts.untrusted = args.untrusted;
    opts.expect = args.expect;
    path = open_plain_path(argv[0]);
    confine_path(path, SANDBOX_READ);
    open_enter();
    if (img_inspect(path, &opts, &v, &err) < 0) {
        complain("%s", err.message);
        return FAILED;
    }
    if (output == OUTPUT_JSON)
        show_json(path, v);
    else
        show_text(path, v);
    code = v->safe ? SAFE : UNSAFE;
    img_verdict_free(v);
    return code;
}

const struct command command_inspect = {
    "inspect", "FILE", "Tell whether a file from a stranger is safe to use",
    options, run, false
};
