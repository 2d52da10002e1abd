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

struct row {
    uint64_t start, length, offset; /* offset ~0 = none */
    unsigned depth;
    bool present, zero, data;
    const char *file;
};

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
    printf("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64
           ", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s",
           first ? "[" : "", r->start, r->length, r->depth,
           r->present ? "true" : "false", r->zero ? "true" : "false",
           r->data ? "true" : "false");
    if (r->offset != UINT64_MAX)
        printf(", \"offset\": %" PRIu64, r->offset);
    puts(last ? "}]" : "},");
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

static bool next_row(struct img_disk *disk, const struct img_info *info,
                     uint64_t at, uint64_t end, struct row *row)
{
    struct img_extent extent;
    struct img_error err;

    if (img_map(disk, at, end - at, IMG_MAP_EXACT | IMG_MAP_PLACES, &extent,
                &err) < 0) {
        complain("%s", err.message);
        return false;
    }
    *row = (struct row){
        .start = at, .length = extent.len, .depth = extent.depth,
        .present = extent.kind != IMG_HOLE,
        .zero = extent.kind == IMG_HOLE || extent.kind == IMG_ZEROS,
        .data = extent.kind == IMG_DATA || extent.kind == IMG_COMPRESSED ||
                extent.sparse,
        .offset = extent.host_off,
        .file = img_file_name(disk, extent.depth, extent.file),
    };
    place_hole(info, row);
    return true;
}

static bool map(struct img_disk *disk, const struct img_info *info,
                uint64_t start, uint64_t end, bool json)
{
    struct row row = { .start = start, .offset = UINT64_MAX }, next;
    uint64_t at = start;
    bool first = true;

    if (!json)
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to",
               "File");
    while (at < end) {
        if (!next_row(disk, info, at, end, &next))
            return false;
        at += next.length;
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
