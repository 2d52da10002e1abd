/* What a file is, by its first bytes, and in words.
 *
 * The end of a file is no part of the guess: the guest of a raw disk may write
 * there what it likes, and has to be able to open its disk afterwards.
 */
#include "core/chain.h"
#include "base/checked.h"
#include "base/error.h"
#include "file/file.h"
#include "foreign.h"

#include <stdlib.h>
#include <string.h>

enum { RAW_SCORE = 1 };

/* The parts of a file by which formats are known. */
struct look {
    uint8_t *head;              /* IMG_PROBE_BYTES, zeros behind len */
    size_t len, tail_len;       /* 0 = not looked at */
    uint8_t tail[512];
};

static int look_at_head(struct img_file *file, struct look *k,
                        struct img_error *err)
{
    uint64_t size;
    int r = img_file_size(file, &size, err);

    if (r < 0)
        return r;
    *k = (struct look){
        .len = (size_t)IMG_MIN(size, (uint64_t)IMG_PROBE_BYTES)
    };
    k->head = calloc(1, IMG_PROBE_BYTES);
    if (!k->head)
        return img_fail_nomem(err);
    return k->len ? img_file_pread(file, k->head, k->len, 0, err) : 0;
}

static int look_at_tail(struct img_file *file, struct look *k,
                        struct img_error *err)
{
    uint64_t size;
    int r = img_file_size(file, &size, err);

    if (r < 0 || size < sizeof k->tail)
        return r;
    k->tail_len = sizeof k->tail;
    return img_file_pread(file, k->tail, sizeof k->tail,
                          size - sizeof k->tail, err);
}

/* ECMA-119: the first descriptor is in the 17th sector. */
static bool is_iso(const struct look *k)
{
    enum { ISO_AT = 16 * 2048 + 1 };

    return k->len >= ISO_AT + 5 && !memcmp(k->head + ISO_AT, "CD001", 5);
}

/* The format that fits best, and another one that fits too: what a file
 * really is cannot be told then. */
static const struct img_format *best_format(const struct look *k,
                                            const char *path, int *score,
                                            const struct img_format **other)
{
    const struct img_format *format = NULL;

    *other = NULL;
    *score = -1;
    for (size_t i = 0; img_formats[i]; i++) {
        int now = img_formats[i]->probe(k->head, k->len, path);

        if (IMG_MIN(now, *score) > RAW_SCORE)
            *other = now > *score ? format : img_formats[i];
        if (now > *score) {
            *score = now;
            format = img_formats[i];
        }
    }
    return format;
}

int img_chain_probe(struct img_file *file, const struct img_format **format,
                    struct img_error *err)
{
    const struct img_format *other;
    const char *foreign;
    struct look k = { 0 };
    int best, r = look_at_head(file, &k, err);

    if (r < 0)
        goto out;
    *format = best_format(&k, file->path, &best, &other);
    foreign = img_foreign_name(k.head, k.len, NULL, 0);
    if (other)
        r = img_fail(err, EINVAL, "%s: looks like %s and like %s; its "
                     "format has to be given", file->path,
                     (*format)->info.name, other->info.name);
    else if (best <= RAW_SCORE && foreign)
        r = img_fail(err, ENOTSUP, "%s: is %s, which cannot be read; with "
                     "its format given as raw it is taken byte by byte",
                     file->path, foreign);
out:
    free(k.head);
    return r;
}

int img_chain_name_mistake(const struct img_layer *l, int result,
                           struct img_error *err)
{
    const struct img_format *real, *other;
    const char *foreign, *want = l->format->info.name;
    struct look k = { 0 };
    int best;

    if (look_at_head(l->files[0], &k, NULL) < 0 ||
        look_at_tail(l->files[0], &k, NULL) < 0 ||
        l->format->probe(k.head, k.len, l->path) > RAW_SCORE)
        goto out;
    real = best_format(&k, l->path, &best, &other);
    foreign = img_foreign_name(k.head, k.len, k.tail, k.tail_len);
    if (best > RAW_SCORE)
        result = img_fail(err, EINVAL, "%s: is no %s image, but %s",
                          l->path, want, real->info.name);
    else if (foreign)
        result = img_fail(err, ENOTSUP, "%s: is no %s image, but %s",
                          l->path, want, foreign);
    else if (is_iso(&k))
        result = img_fail(err, EINVAL, "%s: is no %s image, but an ISO 9660 "
                          "image, whose bytes are the disk (format raw)",
                          l->path, want);
out:
    free(k.head);
    return result;
}

const char *img_chain_recognise(const uint8_t *head, size_t len,
                                const char *path)
{
    for (size_t i = 0; img_formats[i]; i++)
        if (img_formats[i]->probe(head, len, path) > RAW_SCORE)
            return img_formats[i]->info.name;
    return img_foreign_name(head, len, NULL, 0);
}

int img_chain_doubt(struct img_file *file, const char **name,
                    struct img_error *err)
{
    struct look k = { 0 };
    int r = look_at_tail(file, &k, err);

    *name = r == 0 ? img_foreign_name(NULL, 0, k.tail, k.tail_len) : NULL;
    return r;
}

int img_chain_refuse_doubt(struct img_file *file, const char *path,
                           const char *backing, struct img_error *err)
{
    const char *name;
    int r = img_chain_doubt(file, &name, err);

    if (r < 0 || !name)
        return r;
    return img_fail(err, EINVAL, "%s: the backing file '%s' ends as %s does; "
                    "its format has to be given", path, backing, name);
}
