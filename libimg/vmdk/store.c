/* Writing the descriptor of an open image, so that a crash leaves the old one
 * or the new one.
 *
 * A disk writes a sector of 512 bytes wholly or not at all.  What changes
 * within one sector is written where it is: the file has its new length
 * before or gets it afterwards, and a NUL ends the text meanwhile, for QEMU as
 * for us.  That needs no other file, so devices, descriptors with two names
 * and sandboxes do not matter, and requests may be in flight: a first write
 * changes the content ID so.
 *
 * More than that becomes a new file in place of the old one (core/beside.c);
 * so does any change after which extents go.  Writing the new text behind the
 * old one and switching by one sector would need something in the first
 * sector that says where the text goes on, and a text of lines has nothing of
 * the kind.  Lines in front could hide later ones, as the first line with a
 * key counts for QEMU and for us (others need not agree), but every extent
 * line counts, and no line takes a key away.
 *
 * Left are a descriptor inside a sparse extent, whose place QEMU takes for
 * granted, and a file that cannot be replaced: more than one sector of these
 * is written in place, and a crash amid that may leave some of either.
 */
#include "vmdk/vmdk.h"
#include "base/iov.h"

#include <stdlib.h>
#include <string.h>

/* The bytes of the file that hold the text, as they are and as they are to
 * be; sectors of this room are sectors of the file. */
struct change {
    char *had, *next;
    uint64_t off, room;
    uint64_t had_len, len;      /* of the file, where the text is all of it;
                                   else room */
    uint64_t from, to;          /* of the sectors that differ */
};

static void compare(struct change *c)
{
    c->from = c->to = 0;
    for (uint64_t at = 0; at < c->room; at += VMDK_SECTOR) {
        size_t n = (size_t)IMG_MIN(c->room - at, (uint64_t)VMDK_SECTOR);

        if (!memcmp(c->had + at, c->next + at, n))
            continue;
        if (c->from == c->to)
            c->from = at;
        c->to = at + n;
    }
}

static int take_room(struct change *c, uint64_t room, struct img_error *err)
{
    c->room = room;
    c->had = calloc(1, (size_t)room + 1);
    c->next = calloc(1, (size_t)room + 1);
    return c->had && c->next ? 0 : img_fail_nomem(err);
}

/* Only the sectors that held the text before, and zeros behind them, are
 * written over: what the header calls the descriptor's room may hold tables
 * and grains all the same.  In the text's own last sector there may be the
 * rest of a longer one: QEMU ends the new one with a NUL. */
static int plan_embedded(struct img_layer *layer, const char *text,
                         size_t len, struct change *c, struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    size_t room = (size_t)st->text_room, had, own;
    int r;

    if (len >= room)
        return img_fail(err, ENOSPC, "%s: the descriptor needs %zu bytes, "
                        "there is room for %zu", layer->path, len + 1, room);
    c->off = st->text_off;
    c->had_len = c->len = room;
    r = take_room(c, room, err);
    if (r == 0)
        r = img_file_pread(layer->files[0], c->had, room, c->off, err);
    if (r)
        return r;
    had = strnlen(c->had, room);
    own = (size_t)IMG_MIN(img_round_up(had + 1, VMDK_SECTOR), (uint64_t)room);
    if (len >= own && !img_is_zero(c->had + own, len + 1 - own))
        return img_fail(err, ENOSPC, "%s: the descriptor needs %zu bytes, "
                        "something else begins after %zu",
                        layer->path, len + 1, own);
    memcpy(c->next, c->had, room);
    memset(c->next, 0, IMG_MAX(len + 1, had));
    memcpy(c->next, text, len);
    return 0;
}

static int plan_file(struct img_layer *layer, const char *text, size_t len,
                     struct change *c, struct img_error *err)
{
    int r;

    if (len > VMDK_TEXT_MAX)
        return img_fail(err, EFBIG, "%s: its descriptor would have %zu bytes",
                        layer->path, len);
    r = img_file_size(layer->files[0], &c->had_len, err);
    if (r == 0 && c->had_len > VMDK_TEXT_MAX)
        r = img_fail(err, EFBIG, "%s: its descriptor has %llu bytes by now",
                     layer->path, (unsigned long long)c->had_len);
    if (r)
        return r;
    c->len = len;
    r = take_room(c, img_round_up(IMG_MAX(c->had_len, c->len), VMDK_SECTOR),
                  err);
    if (r == 0)
        r = img_file_pread(layer->files[0], c->had, (size_t)c->had_len, 0,
                           err);
    if (r == 0)
        memcpy(c->next, text, len);
    return r;
}

static int put_sectors(struct img_layer *layer, const struct change *c,
                       const char *from, struct img_error *err)
{
    uint64_t end = IMG_MIN(c->to, IMG_MAX(c->had_len, c->len));

    if (c->from >= end)
        return 0;
    return img_file_pwrite(layer->files[0], from + c->from,
                           (size_t)(end - c->from), c->off + c->from, err);
}

static int put_in_place(struct img_layer *layer, const struct change *c,
                        bool *done, struct img_error *err)
{
    struct img_file *f = layer->files[0];
    bool longer = c->len > c->had_len;
    int r = 0;

    if (longer) {
        r = img_file_truncate(f, c->len, err);
        if (r == 0)
            r = img_file_sync(f, err);
    }
    if (r == 0)
        r = put_sectors(layer, c, c->next, err);
    if (r == 0)
        r = img_file_sync(f, err);
    *done = r == 0;
    if (r) {
        put_sectors(layer, c, c->had, NULL);
        if (longer)
            img_file_truncate(f, c->had_len, NULL);
        return r;
    }
    /* Where it stays as long (a device), the NULs do: QEMU leaves them. */
    if (c->len < c->had_len)
        img_file_truncate(f, c->len, NULL);
    return 0;
}

static int put_anew(struct img_layer *layer, const struct change *c,
                    bool *done, struct img_error *err)
{
    const struct vmdk_state *st = layer->state;
    int r;

    if (st->text_room || !layer->replace)
        return -ENOTSUP;
    r = layer->replace(layer, c->next, (size_t)c->len, done, err);
    return r == -EACCES || r == -EPERM || r == -EROFS ? -ENOTSUP : r;
}

int img_vmdk_text_store(struct img_layer *layer, struct vmdk_text *text,
                        enum vmdk_move move, bool *done,
                        struct img_error *err)
{
    struct vmdk_state *st = layer->state;
    struct change c = { 0 };
    size_t len;
    char *printed = img_vmdk_text_print(text, &len);
    int r;

    *done = false;
    if (!printed)
        r = img_fail_nomem(err);
    else if (st->text_room)
        r = plan_embedded(layer, printed, len, &c, err);
    else
        r = plan_file(layer, printed, len, &c, err);
    if (r == 0) {
        compare(&c);
        r = -ENOTSUP;
        if (move == VMDK_MOVE ||
            (move == VMDK_MAY_MOVE && c.to - c.from > VMDK_SECTOR))
            r = put_anew(layer, &c, done, err);
        if (r == -ENOTSUP && !*done)
            r = put_in_place(layer, &c, done, err);
    }
    free(printed);
    free(c.had);
    free(c.next);
    img_vmdk_text_free(*done ? st->text : text);
    if (*done)
        st->text = text;
    return r;
}

int img_vmdk_text_replace(struct img_layer *layer,
                          const struct vmdk_text *text, bool *done,
                          struct img_error *err)
{
    size_t len;
    char *buf = img_vmdk_text_print(text, &len);
    int r;

    *done = false;
    if (!buf)
        r = img_fail_nomem(err);
    else if (len > VMDK_TEXT_MAX)
        r = img_fail(err, EFBIG, "%s: too many extents", layer->path);
    else
        r = layer->replace(layer, buf, len, done, err);
    free(buf);
    return r;
}

int img_vmdk_text_is_near(const struct vmdk_text *a,
                          const struct vmdk_text *b, bool *near,
                          struct img_error *err)
{
    size_t n, m;
    char *p = img_vmdk_text_print(a, &n), *q = img_vmdk_text_print(b, &m);
    struct change c = { 0 };
    int r = p && q ? 0 : img_fail_nomem(err);

    if (r == 0)
        r = take_room(&c, img_round_up(IMG_MAX(n, m), VMDK_SECTOR), err);
    if (r == 0) {
        memcpy(c.had, p, n);
        memcpy(c.next, q, m);
        compare(&c);
        *near = c.to - c.from <= VMDK_SECTOR;
    }
    free(p);
    free(q);
    free(c.had);
    free(c.next);
    return r;
}
