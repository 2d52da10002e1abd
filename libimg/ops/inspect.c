/* Judging a file that a stranger sent.
 *
 * What the bytes look like is asked of all formats, not of the first that
 * matches; then each rule of the format is applied, and the library has to be
 * able to open the image, which it does without opening any other file.  The
 * rules reject whatever OpenStack's inspector rejects (oslo.utils,
 * oslo_utils/imageutils/format_inspector.py, and its users' handling of
 * "gpt" as raw), under the names of its checks; some rules are ours.
 */
#include "ops/inspect.h"
#include "core/disk.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/options.h"
#include "file/file.h"
#include "foreign.h"
#include "format.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the verdict ------------------------------------------------------- */

/* list has n entries of `size` bytes; room for one more. */
static bool grow(struct img_inspection *in, void *list, size_t n, size_t size)
{
    void *more, *now;

    memcpy(&now, list, sizeof now);
    more = realloc(now, (n + 1) * size);
    if (more)
        memcpy(list, &more, sizeof more);
    else
        in->no_memory = true;
    return more;
}

void img_inspect_find(struct img_inspection *in, enum img_weight weight,
                      const char *check, const char *fmt, ...)
{
    struct img_verdict *v = in->v;
    bool rejects = weight == IMG_REJECT ||
                   (weight == IMG_FOREIGN && in->untrusted);
    char *text = NULL;
    va_list ap;

    va_start(ap, fmt);
    if (vasprintf(&text, fmt, ap) < 0)
        text = NULL;
    va_end(ap);
    if (rejects)
        v->safe = false;
    if (!text || !grow(in, &v->findings, v->n_findings, sizeof *v->findings)) {
        in->no_memory = true;
        free(text);
        return;
    }
    v->findings[v->n_findings++] = (struct img_finding){ check, text,
                                                         rejects };
}

void img_inspect_refer(struct img_inspection *in, const char *check,
                       const char *kind, const void *name, size_t len)
{
    struct img_verdict *v = in->v;
    char *copy = strndup(name, len);

    if (!copy || !grow(in, &v->references, v->n_references,
                       sizeof *v->references)) {
        in->no_memory = true;
        free(copy);
        return;
    }
    v->references[v->n_references++] = (struct img_reference){ kind, copy };
    img_inspect_find(in, IMG_FOREIGN, check, "refers to another file "
                     "(%s)", kind);
}

void img_verdict_free(struct img_verdict *v)
{
    if (!v)
        return;
    for (size_t i = 0; i < v->n_findings; i++)
        free((char *)v->findings[i].text);
    for (size_t i = 0; i < v->n_references; i++)
        free((char *)v->references[i].name);
    free(v->matches);
    free(v->findings);
    free(v->references);
    free(v);
}

/* ---- what it looks like ------------------------------------------------ */

static bool at(struct img_span s, size_t off, const char *bytes, size_t len)
{
    return img_inside(off, len, s.len) && !memcmp(s.data + off, bytes, len);
}

static bool is_iso(const struct img_inspection *in)
{
    enum { DESCRIPTOR = 32 * 1024 + 1 };

    return at(in->head, DESCRIPTOR, "CD001", 5) ||
           at(in->head, DESCRIPTOR, "NSR02", 5) ||
           at(in->head, DESCRIPTOR, "NSR03", 5);
}

/* The signature of a master boot record, which a FAT boot sector has too:
 * two FATs and the media descriptor of a fixed disk tell that one. */
static bool is_mbr(const struct img_inspection *in)
{
    return at(in->head, 510, "\x55\xaa", 2) &&
           !(in->head.data[0x10] == 2 && in->head.data[0x15] == 0xf8);
}

bool img_inspect_matches(const struct img_inspection *in, const char *name)
{
    for (size_t i = 0; i < in->v->n_matches; i++)
        if (!strcmp(in->v->matches[i], name))
            return true;
    return false;
}

static void match(struct img_inspection *in, bool does, const char *name)
{
    struct img_verdict *v = in->v;

    if (does && grow(in, &v->matches, v->n_matches, sizeof *v->matches))
        v->matches[v->n_matches++] = name;
}

/* Whatever a format of ours claims may be opened as that; QEMU's rules for
 * the same formats ask no less. */
static void match_ours(struct img_inspection *in)
{
    for (size_t i = 0; img_formats[i]; i++) {
        const char *name = img_formats[i]->info.name;

        if (strcmp(name, "raw") && !img_inspect_matches(in, name))
            match(in, img_formats[i]->probe(in->head.data, in->head.len,
                                            in->file->path) > 0, name);
    }
}

/* QEMU knows DMG files by their names alone. */
static bool is_dmg_name(const char *path)
{
    size_t n = strlen(path);

    return n > 4 && !strcmp(path + n - 4, ".dmg");
}

static const char *other_name(const struct img_inspection *in)
{
    const char *name = img_foreign_name(in->head.data, in->head.len, NULL, 0);

    return name || !is_dmg_name(in->file->path)
           ? name : "an Apple disk image (DMG) by its name";
}

static void match_all(struct img_inspection *in)
{
    struct img_span h = in->head;
    bool known;

    match(in, at(h, 0, "QFI\xfb\0\0\0\x01", 8), "qcow");
    match(in, at(h, 0, "QFI\xfb", 4) && !img_inspect_matches(in, "qcow"),
          "qcow2");
    match(in, at(h, 0, "KDMV", 4) || at(h, 0, "COWD", 4) ||
          img_inspect_is_vmdk_text(in), "vmdk");
    match(in, at(h, 64, "\x7f\x10\xda\xbe", 4), "vdi");
    match_ours(in);
    match(in, at(h, 0, "conectix", 8), "vhd");
    match(in, at(h, 0, "vhdxfile", 8), "vhdx");
    match(in, at(h, 0, "QED\0", 4), "qed");
    match(in, at(h, 0, "LUKS\xba\xbe", 6), "luks");
    known = in->v->n_matches;
    match(in, !known && other_name(in), "other");
    match(in, is_iso(in), "iso");
    match(in, is_mbr(in), "gpt");
    if (img_inspect_matches(in, "other"))
        img_inspect_find(in, IMG_REJECT, "banned", "is %s, which cannot be "
                         "judged", other_name(in));
    if (img_inspect_matches(in, "qed"))
        img_inspect_find(in, IMG_REJECT, "banned", "QED images are not "
                         "allowed");
}

static bool is_container(const char *name)
{
    return strcmp(name, "gpt") && strcmp(name, "iso") &&
           strcmp(name, "luks") && strcmp(name, "other");
}

/* A CD image that boots from a disk has a boot record too; whoever expects a
 * CD image means that. */
static bool is_hybrid(const struct img_inspection *in, const char *expect)
{
    return in->v->n_matches == 2 && expect && !strcmp(expect, "iso") &&
           img_inspect_matches(in, "iso") && img_inspect_matches(in, "gpt");
}

static void choose_format(struct img_inspection *in, const char *expect)
{
    struct img_verdict *v = in->v;
    char names[200] = "";
    size_t used = 0;

    v->format = "raw";
    for (size_t i = v->n_matches; i-- > 0;)
        if (is_container(v->matches[i]))
            v->format = v->matches[i];
    if (v->n_matches < 2 || is_hybrid(in, expect))
        return;
    for (size_t i = 0; i < v->n_matches && used < sizeof names; i++)
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s",
                                 i ? ", " : "", v->matches[i]);
    img_inspect_find(in, IMG_REJECT, "polyglot", "looks like several formats "
                     "at once: %s", names);
}

static void check_expected(struct img_inspection *in, const char *expect)
{
    const struct img_verdict *v = in->v;
    const char *found = v->n_matches ? v->matches[0] : "raw";

    if (!expect || (v->n_matches < 2 && !strcmp(found, expect)) ||
        is_hybrid(in, expect))
        return;
    /* A disk with partitions is a raw disk. */
    if (!strcmp(expect, "raw") && v->n_matches == 1 && !strcmp(found, "gpt"))
        return;
    img_inspect_find(in, IMG_REJECT, "expected_format", "%s was expected, "
                     "but it is %s", expect, found);
}

/* A raw disk that ends as a fixed VHD or a DMG does is one or the other,
 * depending on who looks. */
static void check_tail(struct img_inspection *in, const char *expect)
{
    const char *name = img_foreign_name(NULL, 0, in->tail.data, in->tail.len);
    enum img_weight weight = IMG_FOREIGN;

    if (!name)
        return;
    if (strcmp(in->v->format, "raw"))
        weight = IMG_NOTE;
    else if (expect && !strcmp(expect, "raw"))
        weight = IMG_REJECT;
    img_inspect_find(in, weight, "tail", "ends as %s does", name);
}

/* ---- what the library says --------------------------------------------- */

/* One level is where formats tell of what they depend on. */
static const char *find_text(const struct img_info *info, const char *name)
{
    for (size_t i = 0; info->specific && i < info->specific->n_items; i++)
        if (!strcmp(info->specific->items[i].name, name))
            return info->specific->items[i].text;
    return NULL;
}

static void take_info(struct img_inspection *in, const struct img_info *info)
{
    const char *uuid = find_text(info, "parent-uuid");

    in->v->size = info->size;
    in->v->encrypted |= info->encrypted;
    if (info->dirty)
        img_inspect_find(in, IMG_NOTE, "dirty", "was not closed cleanly");
    if (info->corrupt)
        img_inspect_find(in, IMG_REJECT, "corrupt", "is marked corrupt");
    if (info->n_snapshots)
        img_inspect_find(in, IMG_NOTE, "snapshots", "has %zu internal "
                         "snapshots", info->n_snapshots);
    if (info->n_bitmaps)
        img_inspect_find(in, IMG_NOTE, "bitmaps", "has %zu bitmaps",
                         info->n_bitmaps);
    if (uuid)
        img_inspect_refer(in, "backing_file", "parent", uuid, strlen(uuid));
}

static void open_it(struct img_inspection *in)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_disk *disk = NULL;
    struct img_info *info = NULL;
    struct img_error err = { 0 };
    int fd, r;

    if (!img_format_by_name(in->v->format))
        return;
    opts.format = in->v->format;
    opts.flags = IMG_OPEN_NO_BACKING | IMG_OPEN_NO_LOCK | IMG_OPEN_DESCRIBE;
    opts.allow_files = IMG_FILES_NONE;
    fd = fcntl(in->file->fd, F_DUPFD_CLOEXEC, 3);
    r = fd < 0 ? -errno : img_disk_open(in->file->path, fd, NULL, &opts,
                                        &disk, &err);
    if (r == 0)
        r = img_info_get(disk, &info, &err);
    if (r == -ENOMEM)
        in->no_memory = true;
    else if (r < 0 && !in->v->encrypted)
        img_inspect_find(in, IMG_REJECT, "open", "cannot be opened: %s",
                         err.message);
    else if (r == 0)
        take_info(in, info);
    img_info_free(info);
    img_close(disk, NULL);
}

/* ---- putting it together ----------------------------------------------- */

static int read_ends(struct img_inspection *in, uint8_t *buf,
                     struct img_error *err)
{
    uint64_t size;
    size_t head, tail;
    int r = img_file_size(in->file, &size, err);

    if (r < 0)
        return r;
    in->v->file_length = size;
    head = (size_t)IMG_MIN(size, (uint64_t)IMG_INSPECT_HEAD);
    tail = (size_t)IMG_MIN(size, (uint64_t)IMG_INSPECT_TAIL);
    in->head = (struct img_span){ buf, head };
    in->tail = (struct img_span){ buf + IMG_INSPECT_HEAD, tail };
    r = head ? img_file_pread(in->file, buf, head, 0, err) : 0;
    if (r == 0 && tail)
        r = img_file_pread(in->file, buf + IMG_INSPECT_HEAD, tail,
                           size - tail, err);
    return r;
}

static void judge(struct img_inspection *in,
                  const struct img_inspect_options *opts)
{
    static const struct {
        const char *name;
        void (*look)(struct img_inspection *);
    } rules[] = {
        { "qcow2", img_inspect_qcow2 }, { "vmdk", img_inspect_vmdk },
        { "vhd", img_inspect_vhd }, { "vhdx", img_inspect_vhdx },
        { "gpt", img_inspect_gpt }, { "luks", img_inspect_luks },
    };

    match_all(in);
    choose_format(in, opts->expect);
    check_expected(in, opts->expect);
    check_tail(in, opts->expect);
    in->v->size = strcmp(in->v->format, "raw") ? 0 : in->v->file_length;
    /* The boot record of a CD image need not be that of a disk. */
    for (size_t i = 0; i < IMG_COUNT(rules); i++)
        if (img_inspect_matches(in, rules[i].name) &&
            !(rules[i].look == img_inspect_gpt &&
              is_hybrid(in, opts->expect)))
            rules[i].look(in);
    if (img_inspect_matches(in, "qcow"))
        img_inspect_find(in, IMG_FOREIGN, "unknown_features",
                         "qcow version 1 is not in use any more");
    open_it(in);
    if (opts->max_size && in->v->size > opts->max_size)
        img_inspect_find(in, IMG_REJECT, "virtual_size", "the disk has %llu "
                         "bytes, %llu are allowed",
                         (unsigned long long)in->v->size,
                         (unsigned long long)opts->max_size);
}

static int check_options(const struct img_inspect_options *o,
                         struct img_error *err)
{
    static const char *const others[] = {
        "iso", "vhd", "vhdx", "gpt", "luks", "qed"
    };

    if (!o->expect || img_format_by_name(o->expect))
        return 0;
    for (size_t i = 0; i < IMG_COUNT(others); i++)
        if (!strcmp(o->expect, others[i]))
            return 0;
    return img_fail(err, EINVAL, "unknown format '%s'", o->expect);
}

int img_inspect(const char *path, const struct img_inspect_options *opts,
                struct img_verdict **verdict, struct img_error *err)
{
    struct img_inspect_options o;
    struct img_inspection in = { 0 };
    img_autofree uint8_t *buf = NULL;
    int r = img_options_take(&o, sizeof o, opts, err);

    if (r == 0)
        r = check_options(&o, err);
    if (r < 0)
        return r;
    buf = calloc(1, IMG_INSPECT_HEAD + IMG_INSPECT_TAIL);
    in.v = calloc(1, sizeof *in.v);
    in.untrusted = o.untrusted;
    r = buf && in.v ? img_file_open(path, 0, &in.file, err)
                    : img_fail_nomem(err);
    if (r == 0)
        r = read_ends(&in, buf, err);
    if (r == 0) {
        in.v->safe = true;
        judge(&in, &o);
        if (in.no_memory)
            r = img_fail_nomem(err);
    }
    img_file_close(in.file);
    if (r < 0)
        img_verdict_free(in.v);
    else
        *verdict = in.v;
    return r;
}
