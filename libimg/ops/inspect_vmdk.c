/* Rules for VMDK: see inspect.c, which says whose they are.  One file that
 * holds its descriptor and its data, and a descriptor of which every line is
 * understood. */
#include "ops/inspect.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "file/file.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* VMware's Virtual Disk Format 5.0. */
enum {
    V_VERSION = 4, V_CAPACITY = 12, V_TEXT_AT = 28, V_TEXT_LEN = 36,
    V_GD = 56, V_SECTOR = 512, V_HEADER = 64,
    V_TEXT_MAX = (1 << 20) - 1,
    V_MARKER_EOS = 0, V_MARKER_FOOTER = 3,
    V_SEARCHED = 20 * V_SECTOR  /* QEMU looks at so much of a descriptor,
                                   however long that says to be */
};

/* Nothing but text in the first sector, and a type somewhere: QEMU takes such
 * a file for a descriptor when it begins with a certain comment. */
bool img_inspect_is_vmdk_text(const struct img_inspection *in)
{
    static const char first[] = "# Disk DescriptorFile";
    static const char type[] = "createtype=\"";
    size_t n = IMG_MIN(in->head.len, (size_t)V_SECTOR);

    if (n >= sizeof first - 1 && !memcmp(in->head.data, first,
                                         sizeof first - 1))
        return true;
    for (size_t i = 0; i < n; i++)
        if (!isprint(in->head.data[i]) && !isspace(in->head.data[i]))
            return false;
    for (size_t i = 0; i + sizeof type - 1 <= in->head.len; i++)
        if (!strncasecmp((const char *)in->head.data + i, type,
                         sizeof type - 1))
            return true;
    return false;
}

/* ---- the descriptor ---------------------------------------------------- */

static bool begins(const char *line, const char *word)
{
    return !strncasecmp(line, word, strlen(word));
}

static bool is_access(const char *line)
{
    static const char *const words[] = { "rw", "rdonly", "noaccess" };
    size_t n = strcspn(line, " ");

    for (size_t i = 0; i < IMG_COUNT(words); i++)
        if (n == strlen(words[i]) && begins(line, words[i]))
            return true;
    return false;
}

/* What is between the first two quotes. */
static struct img_span quoted(const char *line)
{
    const char *from = strchr(line, '"'), *to;

    to = from ? strchr(from + 1, '"') : NULL;
    return to ? (struct img_span){ (const uint8_t *)from + 1,
                                   (size_t)(to - from) - 1 }
              : (struct img_span){ (const uint8_t *)line, 0 };
}

/* What is to be known of all lines. */
struct seen {
    unsigned extents, hints;
    bool type_ok;
};

static bool is_known_key(const char *line, size_t len)
{
    static const char *const keys[] = {
        "version", "encoding", "CID", "parentCID", "isNativeSnapshot",
        "createType", "parentFileNameHint"
    };

    for (size_t i = 0; i < IMG_COUNT(keys); i++)
        if (len == strlen(keys[i]) && begins(line, keys[i]))
            return true;
    return false;
}

static void look_at_field(struct img_inspection *in, const char *line,
                          struct seen *seen)
{
    static const char *const types[] = { "monolithicSparse",
                                         "streamOptimized" };
    struct img_span value = quoted(line);

    if (!is_known_key(line, strcspn(line, "=")))
        img_inspect_find(in, IMG_FOREIGN, "descriptor", "has a field that is "
                         "not known");
    if (begins(line, "createType="))
        for (size_t i = 0; i < IMG_COUNT(types); i++)
            seen->type_ok |= value.len == strlen(types[i]) &&
                             !strncasecmp((const char *)value.data, types[i],
                                          value.len);
    if (!begins(line, "parentFileNameHint="))
        return;
    seen->hints++;
    if (value.len)
        img_inspect_refer(in, "backing_file", "parent", value.data,
                          value.len);
}

/* name: the file itself is named, by the descriptor in it. */
static void look_at_extent(struct img_inspection *in, const char *line,
                           unsigned n, bool text)
{
    struct img_span name = quoted(line);

    if (strchr(line, '/'))
        img_inspect_find(in, IMG_FOREIGN, "descriptor", "an extent's name has "
                         "a slash");
    if (n > 1)
        img_inspect_find(in, IMG_FOREIGN, "descriptor", "has more than one "
                         "extent");
    if ((text || n > 1 || strchr(line, '/')) && name.len)
        img_inspect_refer(in, "descriptor", "extent", name.data, name.len);
}

static void look_at_line(struct img_inspection *in, const char *line,
                         struct seen *seen, bool text)
{
    size_t key = strcspn(line, "=");

    if (*line == '#' || !*line || begins(line, "ddb."))
        return;
    if (line[key] && strcspn(line, " ") >= key) {
        look_at_field(in, line, seen);
    } else if (is_access(line)) {
        look_at_extent(in, line, ++seen->extents, text);
    } else {
        img_inspect_find(in, IMG_REJECT, "descriptor", "has a line that is "
                         "not understood");
    }
}

static bool is_word_at(const char *text, size_t len, size_t at,
                       const char *word)
{
    size_t n = strlen(word);

    return img_inside(at, n, len) && !strncasecmp(text + at, word, n);
}

/* QEMU takes the first of these words that it finds, in a comment, within
 * another word or behind the end that the header gives. */
static void search(struct img_inspection *in, const char *text, size_t len,
                   const struct seen *seen)
{
    static const char parent[] = "parentCID", none[] = "=ffffffff";
    unsigned hints = 0;
    bool rests = false;

    for (size_t i = 0; i < len; i++) {
        size_t value = i + sizeof parent - 1, end = value + sizeof none - 1;

        hints += is_word_at(text, len, i, "parentFileNameHint");
        if (is_word_at(text, len, i, parent))
            rests |= !is_word_at(text, len, value, none) ||
                     (end < len && isalnum((unsigned char)text[end]));
    }
    if (hints > seen->hints)
        img_inspect_find(in, IMG_REJECT, "backing_file", "names a parent "
                         "where some programs do not look for it");
    if (rests)
        img_inspect_find(in, IMG_FOREIGN, "backing_file", "holds only what "
                         "changed since a parent");
}

static void look_at_text(struct img_inspection *in, char *text, size_t len,
                         bool alone, struct seen *seen)
{
    char *rest = text, *line;

    for (size_t i = 0; i < len && text[i]; i++)
        if ((unsigned char)text[i] >= 0x80) {
            img_inspect_find(in, IMG_REJECT, "descriptor", "its descriptor "
                             "is no ASCII");
            return;
        }
    for (size_t i = strlen(text); !alone && i < len; i++)
        if (text[i]) {
            img_inspect_find(in, IMG_REJECT, "descriptor", "something "
                             "follows the end of its text");
            break;
        }
    while ((line = strsep(&rest, "\n"))) {
        size_t n;

        while (isspace((unsigned char)*line))
            line++;
        for (n = strlen(line); n && isspace((unsigned char)line[n - 1]);)
            line[--n] = 0;
        look_at_line(in, line, seen, alone);
    }
    if (!seen->type_ok)
        img_inspect_find(in, IMG_FOREIGN, "descriptor", "its createType is "
                         "neither monolithicSparse nor streamOptimized");
    if (!seen->extents)
        img_inspect_find(in, IMG_REJECT, "descriptor", "names no extents");
}

static void read_text(struct img_inspection *in, uint64_t off, uint64_t len,
                      bool alone)
{
    img_autofree char *text = NULL, *raw = NULL;
    struct seen seen = { 0 };
    uint64_t all;

    len = IMG_MIN(len, (uint64_t)V_TEXT_MAX);
    if (!len || !img_inside(off, len, in->v->file_length)) {
        img_inspect_find(in, IMG_REJECT, "descriptor", "its descriptor does "
                         "not lie in the file");
        return;
    }
    all = IMG_MIN(IMG_MAX(len, (uint64_t)V_SEARCHED),
                  in->v->file_length - off);
    raw = malloc((size_t)all);
    text = calloc(1, (size_t)len + 1);
    if (!text || !raw) {
        in->no_memory = true;
        return;
    }
    if (img_file_pread(in->file, raw, (size_t)all, off, NULL) < 0) {
        img_inspect_find(in, IMG_REJECT, "descriptor", "its descriptor "
                         "cannot be read");
        return;
    }
    memcpy(text, raw, (size_t)len);
    look_at_text(in, text, (size_t)len, alone, &seen);
    search(in, raw, (size_t)all, &seen);
}

/* ---- the header -------------------------------------------------------- */

static bool is_marker(const uint8_t *p, uint32_t type, bool value)
{
    for (size_t i = 16; i < V_SECTOR; i++)
        if (p[i])
            return false;
    return (value || !img_get_le64(p)) && !img_get_le32(p + 8) &&
           img_get_le32(p + 12) == type;
}

/* The footer at the end counts instead of the header: they have to agree. */
static void check_footer(struct img_inspection *in)
{
    const uint8_t *h = in->head.data, *marker = in->tail.data;
    const uint8_t *f = marker + V_SECTOR;

    if (in->tail.len < 3 * V_SECTOR) {
        img_inspect_find(in, IMG_REJECT, "footer", "is too short for a "
                         "footer");
        return;
    }
    if (memcmp(h, f, V_VERSION + 4) ||
        memcmp(h + V_TEXT_AT, f + V_TEXT_AT, 16))
        img_inspect_find(in, IMG_REJECT, "footer", "header and footer "
                         "differ");
    if (img_get_le64(f + V_GD) == UINT64_MAX)
        img_inspect_find(in, IMG_REJECT, "footer", "the footer refers to "
                         "another footer");
    if (!is_marker(marker, V_MARKER_FOOTER, true) ||
        !is_marker(f + V_SECTOR, V_MARKER_EOS, false))
        img_inspect_find(in, IMG_REJECT, "footer", "the footer's markers are "
                         "not valid");
}

void img_inspect_vmdk(struct img_inspection *in)
{
    uint32_t version = 0;
    uint64_t capacity = 0, text_at = 0, text_len = 0, gd = 0;

    if (in->head.len < 4 || memcmp(in->head.data, "KDMV", 4)) {
        img_inspect_find(in, IMG_FOREIGN, "descriptor", "its data is in other "
                         "files, or of an old kind");
        if (in->head.len >= 4 && memcmp(in->head.data, "COWD", 4))
            read_text(in, 0, in->v->file_length, true);
        return;
    }
    if (in->head.len < V_HEADER) {
        img_inspect_find(in, IMG_REJECT, "header", "is cut off within its "
                         "header");
        return;
    }
    img_span_le32(in->head, V_VERSION, &version);
    img_span_le64(in->head, V_CAPACITY, &capacity);
    img_span_le64(in->head, V_TEXT_AT, &text_at);
    img_span_le64(in->head, V_TEXT_LEN, &text_len);
    img_span_le64(in->head, V_GD, &gd);
    if (version < 1 || version > 3)
        img_inspect_find(in, IMG_REJECT, "header", "VMDK version %u is not "
                         "known", version);
    if (!capacity)
        img_inspect_find(in, IMG_FOREIGN, "descriptor", "has no data of its "
                         "own, only a descriptor");
    if (img_mul(capacity, V_SECTOR, &capacity))
        in->v->size = capacity;
    if (gd == UINT64_MAX)
        check_footer(in);
    if (text_at != 1 || text_len > V_TEXT_MAX)
        img_inspect_find(in, IMG_REJECT, "descriptor", "its descriptor is not "
                         "behind the header");
    else
        read_text(in, V_SECTOR, text_len * V_SECTOR, !capacity);
}
