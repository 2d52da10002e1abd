/* New VMDK images.
 *
 * The layout of hosted sparse extents is the usual one: header, descriptor,
 * redundant directory and tables, directory and tables, then grains, all
 * tables being there from the beginning.
 */
#include "vmdk/vmdk.h"
#include "base/cleanup.h"
#include "base/strings.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GRAIN = 128, ENTRIES = 512 };    /* sectors of a grain; of a table */

static int text_too_long(const char *path, struct img_error *err)
{
    return img_fail(err, ENOSPC, "%s: the VMDK descriptor does not fit into "
                    "%d sectors", path, VMDK_TEXT_SECTORS);
}

char *img_vmdk_compose(const struct vmdk_options *o, const char *extents)
{
    bool ide = !strcmp(o->adapter, "ide");
    unsigned heads = ide ? 16 : 255;
    char *text = NULL;

    if (asprintf(&text,
                 "# Disk DescriptorFile\n"
                 "version=1\n"
                 "CID=%08x\n"
                 "parentCID=%08x\n"
                 "createType=\"%s\"\n"
                 "%s%s%s\n"
                 "# Extent description\n"
                 "%s\n"
                 "# The Disk Data Base\n"
                 "#DDB\n\n"
                 "ddb.virtualHWVersion = \"%s\"\n"
                 "ddb.geometry.cylinders = \"%llu\"\n"
                 "ddb.geometry.heads = \"%u\"\n"
                 "ddb.geometry.sectors = \"63\"\n"
                 "ddb.adapterType = \"%s\"\n"
                 "ddb.toolsVersion = \"%s\"\n"
                 "%s%s%s",
                 (unsigned)o->cid, (unsigned)o->parent_cid,
                 img_vmdk_subformat_name(o->subformat),
                 o->backing ? "parentFileNameHint=\"" : "",
                 o->backing ? o->backing : "", o->backing ? "\"" : "",
                 extents, o->hardware,
                 (unsigned long long)(o->size / VMDK_SECTOR / heads / 63),
                 heads, o->adapter, o->tools,
                 *o->uuid ? "ddb.uuid = \"" : "", o->uuid,
                 *o->uuid ? "\"\n" : "") < 0)
        return NULL;
    return text;
}

/* ddb=NAME=VALUE, as amend has it. */
static int add_entries(struct img_build *b, char **text,
                       struct img_error *err)
{
    const char *const *s = b->opts->settings;
    struct vmdk_text *t;
    size_t len;
    int r;

    if (!img_setting(s, "ddb"))
        return 0;
    r = img_vmdk_text_parse(b->path, *text, strlen(*text), &t, err);
    if (r)
        return r;
    for (; *s && r == 0; s++)
        if (!strncmp(*s, "ddb=", 4))
            r = img_vmdk_text_set_ddb(t, *s + 4, err);
    if (r == 0) {
        free(*text);
        *text = img_vmdk_text_print(t, &len);
        r = *text ? 0 : img_fail_nomem(err);
    }
    img_vmdk_text_free(t);
    return r;
}

int img_vmdk_build_text(struct img_build *b, const struct vmdk_options *o,
                        const char *extents, char **text,
                        struct img_error *err)
{
    int r;

    *text = img_vmdk_compose(o, extents);
    if (!*text)
        return img_fail_nomem(err);
    r = add_entries(b, text, err);
    if (r) {
        free(*text);
        *text = NULL;
    }
    return r;
}

/* The parent's content ID, from the parent as it is. */
int img_vmdk_build_parent(struct img_build *b, struct vmdk_options *o,
                          struct img_error *err)
{
    const struct vmdk_state *below;
    struct img_file *file;
    int r;

    if (!o->backing || img_setting(b->opts->settings, "parent_cid"))
        return 0;
    if (b->backing) {
        if (strcmp(b->backing->format->info.name, "vmdk"))
            return img_fail(err, EINVAL, "%s: backing_file must be a vmdk "
                            "image", b->path);
        below = b->backing->state;
        o->parent_cid = below->cid;
        return 0;
    }
    r = b->open_file(b, o->backing, &file, err);
    if (r == 0)
        r = img_vmdk_read_cid(file, &o->parent_cid, err);
    return r ? img_fail_prefix(err, r, "%s: the content ID of the backing "
                               "file is needed (or parent_cid=)", b->path)
             : 0;
}

/* A directory of n consecutive tables from sector `first` on. */
static int put_directory(struct img_file *f, uint64_t at, uint64_t n,
                         uint64_t first, uint64_t table,
                         struct img_error *err)
{
    uint8_t *list = calloc((size_t)n, 4);
    int r;

    if (!list)
        return img_fail_nomem(err);
    for (uint64_t i = 0; i < n; i++)
        img_put_le32(list + 4 * i, (uint32_t)(first + i * table));
    r = img_file_pwrite(f, list, 4 * (size_t)n, at * VMDK_SECTOR, err);
    free(list);
    return r;
}

int img_vmdk_make_sparse(struct img_file *f, const struct vmdk_header *like,
                         uint64_t size, const char *text,
                         struct img_error *err)
{
    uint8_t head[(1 + VMDK_TEXT_SECTORS) * VMDK_SECTOR] = { 0 };
    uint64_t capacity = size / VMDK_SECTOR;
    uint64_t table = img_div_up(like->gt_entries * UINT64_C(4), VMDK_SECTOR);
    uint64_t tables = img_div_up(capacity, like->grain * like->gt_entries);
    uint64_t gd = img_div_up(tables * 4, VMDK_SECTOR);
    struct vmdk_header h = {
        .version = like->version, .capacity = capacity,
        .flags = like->flags | VMDK_FLAG_NEWLINES | VMDK_FLAG_REDUNDANT,
        .grain = like->grain, .gt_entries = like->gt_entries,
        .text_off = text ? 1 : 0, .text_len = text ? VMDK_TEXT_SECTORS : 0,
        .rgd_off = 1 + VMDK_TEXT_SECTORS, .compressed = like->compressed,
    };
    int r;

    if (tables * 4 > VMDK_DIRECTORY_MAX / 2)
        return img_fail(err, EFBIG, "%s: %llu bytes are too many for a "
                        "sparse VMDK extent", f->path,
                        (unsigned long long)size);
    h.gd_off = h.rgd_off + gd + tables * table;
    h.overhead = img_round_up(h.gd_off + gd + tables * table, h.grain);
    img_vmdk_header_put(head, &h);
    if (text && strlen(text) >= sizeof head - VMDK_SECTOR)
        return text_too_long(f->path, err);
    if (text)
        memcpy(head + VMDK_SECTOR, text, strlen(text));
    if (f->is_device)
        r = img_file_zero(f, 0, h.overhead * VMDK_SECTOR, 0, err);
    else
        r = img_file_truncate(f, h.overhead * VMDK_SECTOR, err);
    if (r == 0 && tables)
        r = put_directory(f, h.rgd_off, tables, h.rgd_off + gd, table, err);
    if (r == 0 && tables)
        r = put_directory(f, h.gd_off, tables, h.gd_off + gd, table, err);
    return r ? r : img_file_pwrite(f, head, sizeof head, 0, err);
}

/* Everything before the first grain; text NULL = none inside. */
static int make_sparse(struct img_file *f, const struct vmdk_options *o,
                       uint64_t size, const char *text,
                       struct img_error *err)
{
    struct vmdk_header like = {
        .version = 1, .grain = GRAIN, .gt_entries = ENTRIES
    };

    if (o->zeroed_grain) {
        like.version = 2;
        like.flags |= VMDK_FLAG_ZERO_GRAIN;
    }
    if (o->subformat == VMDK_STREAM) {
        like.version = 3;
        like.compressed = true;
        like.flags |= VMDK_FLAG_COMPRESSED | VMDK_FLAG_MARKERS;
    }
    return img_vmdk_make_sparse(f, &like, size, text, err);
}

/* ESX server sparse: a header of 4 sectors, the directory, then tables and
 * grains as they come. */
static int make_cowd(struct img_file *f, uint64_t size, struct img_error *err)
{
    uint8_t h[4 * VMDK_SECTOR] = { 0 };
    uint64_t capacity = size / VMDK_SECTOR;
    uint64_t tables = img_div_up(capacity, 4096);
    uint64_t end = 4 + img_div_up(tables * 4, VMDK_SECTOR);
    int r;

    img_put_le32(h, VMDK_COWD_MAGIC);
    img_put_le32(h + 4, 1);
    img_put_le32(h + 8, 3);
    img_put_le32(h + 12, (uint32_t)capacity);
    img_put_le32(h + 16, 1);
    img_put_le32(h + 20, 4);
    img_put_le32(h + 24, (uint32_t)tables);
    img_put_le32(h + 28, (uint32_t)end);
    r = img_file_truncate(f, end * VMDK_SECTOR, err);
    return r ? r : img_file_pwrite(f, h, sizeof h, 0, err);
}

char *img_vmdk_extent_name(const char *path, const char *part)
{
    const char *base = strrchr(path, '/'), *dot;
    char *name = NULL;

    base = base ? base + 1 : path;
    dot = strrchr(base, '.');
    if (!dot)
        dot = base + strlen(base);
    if (asprintf(&name, "%.*s-%s%s", (int)(dot - base), base, part, dot) < 0)
        return NULL;
    return name;
}

static int make_extent(struct img_build *b, const struct vmdk_options *o,
                       uint64_t size, const char *part, char **lines,
                       struct img_error *err)
{
    static const char *const types[] = {
        [VMDK_MONOLITHIC_FLAT] = "FLAT", [VMDK_SPLIT_SPARSE] = "SPARSE",
        [VMDK_SPLIT_FLAT] = "FLAT", [VMDK_VMFS] = "VMFS",
        [VMDK_VMFS_SPARSE] = "VMFSSPARSE"
    };
    bool flat = *types[o->subformat] == 'F';
    img_autofree char *name = img_vmdk_extent_name(b->path, part);
    img_autofree char *before = *lines;
    struct img_file *file;
    int r;

    *lines = NULL;
    if (!name || asprintf(lines, "%sRW %llu %s \"%s\"%s\n", before,
                          (unsigned long long)(size / VMDK_SECTOR),
                          types[o->subformat], name, flat ? " 0" : "") < 0) {
        *lines = NULL;
        return img_fail_nomem(err);
    }
    if (strpbrk(name, "\"\r\n"))
        return img_fail(err, EINVAL, "%s: a VMDK descriptor cannot hold this "
                        "name", b->path);
    r = b->add_file(b, name, &file, err);
    if (r)
        return r;
    if (o->subformat == VMDK_SPLIT_SPARSE)
        return make_sparse(file, o, size, NULL, err);
    if (o->subformat == VMDK_VMFS_SPARSE)
        return make_cowd(file, size, err);
    return img_file_truncate(file, size, err);
}

static int make_extents(struct img_build *b, const struct vmdk_options *o,
                        char **lines, struct img_error *err)
{
    bool split = o->subformat == VMDK_SPLIT_SPARSE ||
                 o->subformat == VMDK_SPLIT_FLAT;
    uint64_t left = o->size;
    char part[16];
    int r = 0;

    if (!split)
        return make_extent(b, o, o->size,
                           o->subformat == VMDK_VMFS_SPARSE ? "delta"
                                                            : "flat",
                           lines, err);
    for (unsigned n = 1; r == 0 && (left || n == 1); n++) {
        uint64_t now = IMG_MIN(left, VMDK_SPLIT);

        snprintf(part, sizeof part, "%c%03u",
                 o->subformat == VMDK_SPLIT_FLAT ? 'f' : 's', n);
        r = make_extent(b, o, now, part, lines, err);
        left -= now;
    }
    return r;
}

/* The extent line of an image that is one file. */
char *img_vmdk_own_line(const struct vmdk_options *o, const char *path)
{
    const char *base = strrchr(path, '/');
    char *line = NULL;

    base = base ? base + 1 : path;
    if (!strcmp(base, "-"))             /* a stream has no name */
        base = "disk.vmdk";
    if (asprintf(&line, "RW %llu SPARSE \"%s\"\n",
                 (unsigned long long)(o->size / VMDK_SECTOR), base) < 0)
        return NULL;
    return line;
}

static int create_single(struct img_build *b, const struct vmdk_options *o,
                         struct img_error *err)
{
    img_autofree char *line = img_vmdk_own_line(o, b->path);
    char *text = NULL;
    int r;

    if (!line)
        return img_fail_nomem(err);
    r = img_vmdk_build_text(b, o, line, &text, err);
    if (r == 0)
        r = make_sparse(b->file, o, o->size, text, err);
    free(text);
    return r;
}

static int create_several(struct img_build *b, const struct vmdk_options *o,
                          struct img_error *err)
{
    char *lines = strdup(""), *text = NULL;
    int r;

    if (!lines)
        return img_fail_nomem(err);
    r = make_extents(b, o, &lines, err);
    if (r == 0)
        r = img_vmdk_build_text(b, o, lines, &text, err);
    if (r == 0 && strlen(text) > VMDK_TEXT_MAX)
        r = img_fail(err, EFBIG, "%s: too many extents", b->path);
    if (r == 0)
        r = img_file_pwrite(b->file, text, strlen(text), 0, err);
    free(text);
    free(lines);
    return r;
}

int img_vmdk_create(struct img_build *b, struct img_error *err)
{
    struct vmdk_options o;
    int r;

    r = img_vmdk_options(b->opts, &o, err);
    if (r == 0)
        r = img_vmdk_build_parent(b, &o, err);
    if (r)
        return r;
    if (o.subformat == VMDK_MONOLITHIC_SPARSE || o.subformat == VMDK_STREAM)
        return create_single(b, &o, err);
    return create_several(b, &o, err);
}
