/* vimg map: which parts of a disk are where. */
#include "open.h"
#include "show.h"
#include "size.h"
#include "vimg.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static struct {
    struct open_how how;
    const char *output, *start, *length;
} args;

static const struct option_def options[] = {
    OPEN_FORMAT_ROW(&args.how),
    { OPTION_TEXT, 0, "output", "HOW", "human or json", &args.output },
    { OPTION_TEXT, 's', "start-offset", "OFFSET", "where to begin",
      &args.start },
    { OPTION_TEXT, 'l', "max-length", "LEN", "how much to look at",
      &args.length },
    OPEN_SHARE_ROW(&args.how),
    OPEN_IMAGE_OPTS_ROW(&args.how),
    OPTIONS_OBJECT_ROW(&args.how.objects),
    OPEN_CONFINE_ROWS,
    OPTIONS_HELP_ROW,
    { 0 }
};

enum { MANY = 8192 };

struct row {
    uint64_t start, length, offset; /* offset ~0 = none */
    unsigned depth;
    bool present, zero, data;
    const char *file;
};

/* printf would take half of the time of a map of a million rows. */
static char *add(char *to, const char *text)
{
    return stpcpy(to, text);
}

static char *add_number(char *to, uint64_t n)
{
    char digits[20];
    size_t at = sizeof digits;

    do
        digits[--at] = (char)('0' + n % 10);
    while (n /= 10);
    memcpy(to, digits + at, sizeof digits - at);
    return to + sizeof digits - at;
}

static char *add_bool(char *to, const char *name, bool value)
{
    return add(add(to, name), value ? "true" : "false");
}

static void show_json(const struct row *r, bool first, bool last)
{
    char text[256], *to = text;

    to = add_number(add(to, first ? "[{ \"start\": " : "{ \"start\": "),
                    r->start);
    to = add_number(add(to, ", \"length\": "), r->length);
    to = add_number(add(to, ", \"depth\": "), r->depth);
    to = add_bool(to, ", \"present\": ", r->present);
    to = add_bool(to, ", \"zero\": ", r->zero);
    to = add_bool(to, ", \"data\": ", r->data);
    if (r->offset != UINT64_MAX)
        to = add_number(add(to, ", \"offset\": "), r->offset);
    to = add(to, last ? "}]\n" : "},\n");
    fwrite(text, 1, (size_t)(to - text), stdout);
}

static bool show_row(const struct row *r, bool json, bool first, bool last)
{
    if (!json) {
        if (!r->data || r->zero || r->length == 0)
            return true;
        if (r->offset == UINT64_MAX || !r->file) {
            complain("File contains external, encrypted or compressed "
                     "clusters.");
            return false;
        }
        printf("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64 "%s\n", r->start,
               r->length, r->offset, r->file);
        return true;
    }
    show_json(r, first, last);
    return true;
}

static bool joins(const struct row *a, const struct row *b)
{
    if (a->present != b->present || a->zero != b->zero ||
        a->data != b->data || a->depth != b->depth || a->file != b->file)
        return false;
    if (a->offset == UINT64_MAX || b->offset == UINT64_MAX)
        return a->offset == b->offset;
    return a->offset + a->length == b->offset;
}

/* QEMU counts what no layer has, and what lies behind the end of a short
 * layer, as unallocated in the layer above. */
static void place_hole(const struct img_info *info, struct row *row)
{
    if (row->present) {
        for (unsigned i = 0; info && i < row->depth; i++)
            info = info->below;
        if (!row->zero || !info)
            return;
        if (row->start < info->size) {
            if (row->length > info->size - row->start)
                row->length = info->size - row->start;
            return;
        }
        row->present = false;
    }
    if (row->depth)
        row->depth--;
}

/* What the library said, extent by extent. */
struct answers {
    struct img_disk *disk;
    const struct img_info *info;
    uint64_t at, end;
    struct img_extent extents[MANY];
    size_t n, next;
};

/* A row may be shorter than the extent; the next one is what is left of it. */
static bool next_row(struct answers *a, struct row *row)
{
    const struct img_extent *e;
    struct img_error err;
    uint64_t skip;

    if (a->next == a->n) {
        a->next = 0;
        if (img_map_list(a->disk, a->at, a->end - a->at,
                         IMG_MAP_EXACT | IMG_MAP_PLACES, a->extents, MANY,
                         &a->n, &err) < 0) {
            complain("%s", err.message);
            return false;
        }
    }
    e = &a->extents[a->next];
    skip = a->at - e->off;
    *row = (struct row){
        .start = a->at, .length = e->len - skip, .depth = e->depth,
        .present = e->kind != IMG_HOLE,
        .zero = e->kind == IMG_HOLE || e->kind == IMG_ZEROS,
        .data = e->kind == IMG_DATA || e->kind == IMG_COMPRESSED || e->sparse,
        .offset = e->host_off == UINT64_MAX ? UINT64_MAX : e->host_off + skip,
        .file = img_file_name(a->disk, e->depth, e->file),
    };
    place_hole(a->info, row);
    a->at += row->length;
    a->next += a->at == e->off + e->len;
    return true;
}

static bool map(struct img_disk *disk, const struct img_info *info,
                uint64_t start, uint64_t end, bool json)
{
    static struct answers answers;
    struct row row = { .start = start, .offset = UINT64_MAX }, next;
    bool first = true;

    answers.disk = disk;
    answers.info = info;
    answers.at = start;
    answers.end = end;
    if (!json)
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to",
               "File");
    while (answers.at < end) {
        if (!next_row(&answers, &next))
            return false;
        if (row.length == 0) {
            row = next;
        } else if (joins(&row, &next)) {
            row.length += next.length;
        } else {
            if (!show_row(&row, json, first, false))
                return false;
            first = false;
            row = next;
        }
    }
    return show_row(&row, json, first, true);
}

static int run(int argc, char **argv)
{
    enum output output = output_argument(args.output);
    uint64_t start = 0, length = UINT64_MAX, end;
    struct img_info *info = NULL;
    struct img_disk *disk;
    struct img_error err;
    bool ok;

    if (output == OUTPUT_BAD)
        return 1;
    if (args.start && !size_argument(args.start, "start offset", &start))
        return 1;
    if (args.length && !size_argument(args.length, "max length", &length))
        return 1;
    if (argc != 1)
        return usage_error("Expecting one image file name");
    if (!open_check(&args.how))
        return 1;
    open_expect(argv[0], &args.how, 0, 0);
    open_enter();
    disk = open_image(argv[0], &args.how, 0);
    if (!disk)
        return 1;
    end = img_size(disk);
    if (start > end)
        end = start;
    if (length < end - start)
        end = start + length;
    ok = img_info_get(disk, &info, &err) == 0;
    if (ok)
        ok = map(disk, info, start, end, output == OUTPUT_JSON);
    else
        complain("%s", err.message);
    img_info_free(info);
    if (!close_image(disk))
        ok = false;
    return ok ? 0 : 1;
}

const struct command command_map = {
    "map", "FILE", "Show which parts of a disk are where", options, run, false
};
