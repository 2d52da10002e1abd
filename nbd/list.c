/* The client's half of the handshake, as far as a list of exports needs it.
 * The server may be anybody's: every length is checked. */
#include <errno.h>
#include <inttypes.h>
#include <libimg.h>
#include <stdio.h>
#include <stdlib.h>
#include "list.h"
#include "objects.h"
#include "tls.h"
#include "wire.h"

enum { MAX_REPLY = 64 << 10, MAX_EXPORTS = 10000, MAX_REPLIES = 20000 };

struct reply {
    uint32_t type, len;
    uint8_t data[MAX_REPLY];
};

struct entry {
    char *name, *description;
};

struct lister {
    struct nbd_stream *stream;
    struct img_error *err;
    struct reply reply;
    struct entry *entries;
    unsigned n;
};

static int get(struct lister *l, void *buf, size_t len)
{
    uint8_t *p = buf;

    while (len) {
        ssize_t r = l->stream->recv(l->stream, p, len);

        if (r <= 0)
            return nbd_fail(l->err, EIO, "the server closed the connection");
        p += r;
        len -= (size_t)r;
    }
    return 0;
}

static int put(struct lister *l, void *buf, size_t len)
{
    struct iovec iov = { buf, len };

    return l->stream->send(l->stream, &iov, 1) ? 0 :
        nbd_fail(l->err, EIO, "the server closed the connection");
}

/* An option whose payload is name with its length before it (unless NULL)
 * and then tail. */
static int ask(struct lister *l, uint32_t option, const char *name,
               const void *tail, size_t tail_len)
{
    size_t n = name ? 4 + strlen(name) : 0;
    size_t len = NBD_OPTION_SIZE + n + tail_len;
    uint8_t *p = calloc(1, len);
    int ret;

    if (!p)
        return nbd_fail(l->err, ENOMEM, "no memory");
    nbd_put64(p, NBD_OPTS_MAGIC);
    nbd_put32(p + 8, option);
    nbd_put32(p + 12, (uint32_t)(n + tail_len));
    if (name) {
        nbd_put32(p + 16, (uint32_t)(n - 4));
        memcpy(p + 20, name, n - 4);
    }
    if (tail_len)
        memcpy(p + NBD_OPTION_SIZE + n, tail, tail_len);
    ret = put(l, p, len);
    free(p);
    return ret;
}

/* The next reply to option, into l->reply. */
static int answer(struct lister *l, uint32_t option)
{
    uint8_t head[NBD_OPT_REPLY_SIZE];
    int ret = get(l, head, sizeof head);

    if (ret < 0)
        return ret;
    l->reply.type = nbd_get32(head + 12);
    l->reply.len = nbd_get32(head + 16);
    if (nbd_get64(head) != NBD_OPT_REPLY_MAGIC ||
        nbd_get32(head + 8) != option || l->reply.len > MAX_REPLY)
        return nbd_fail(l->err, EINVAL, "the server's reply makes no sense");
    return get(l, l->reply.data, l->reply.len);
}

static int refused(struct lister *l, const char *what)
{
    return nbd_fail(l->err, EINVAL, "the server refused %s: %.*s", what,
                    (int)(l->reply.len < 200 ? l->reply.len : 200),
                    (const char *)l->reply.data);
}

static int greet(struct lister *l)
{
    uint8_t head[18], flags[4];
    int ret = get(l, head, sizeof head);

    if (ret < 0)
        return ret;
    if (nbd_get64(head) != NBD_MAGIC || nbd_get64(head + 8) != NBD_OPTS_MAGIC
        || !(nbd_get16(head + 16) & NBD_FIXED_NEWSTYLE))
        return nbd_fail(l->err, EINVAL, "that is no NBD server that can list "
                        "its exports");
    nbd_put32(flags, nbd_get16(head + 16) &
              (NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES));
    return put(l, flags, sizeof flags);
}

static int start_tls(struct lister *l, struct nbd_tls_client *tls)
{
    int ret = ask(l, NBD_OPT_STARTTLS, NULL, NULL, 0);

    if (ret == 0)
        ret = answer(l, NBD_OPT_STARTTLS);
    if (ret == 0 && l->reply.type != NBD_REP_ACK)
        ret = refused(l, "TLS");
    return ret == 0 ? nbd_tls_connect(tls, l->stream, l->err) : ret;
}

static int add_entry(struct lister *l)
{
    const uint8_t *p = l->reply.data;
    struct entry *list;
    uint32_t name;

    if (l->reply.len < 4 || (name = nbd_get32(p)) > l->reply.len - 4 ||
        l->n == MAX_EXPORTS)
        return nbd_fail(l->err, EINVAL, "the server's reply makes no sense");
    list = realloc(l->entries, (l->n + 1) * sizeof *list);
    if (!list)
        return nbd_fail(l->err, ENOMEM, "no memory");
    l->entries = list;
    list[l->n].name = strndup((const char *)p + 4, name);
    list[l->n].description = strndup((const char *)p + 4 + name,
                                     l->reply.len - 4 - name);
    l->n++;
    return list[l->n - 1].name && list[l->n - 1].description ? 0 :
        nbd_fail(l->err, ENOMEM, "no memory");
}

static int names(struct lister *l)
{
    int ret = ask(l, NBD_OPT_LIST, NULL, NULL, 0);

    while (ret == 0) {
        ret = answer(l, NBD_OPT_LIST);
        if (ret < 0 || l->reply.type == NBD_REP_ACK)
            return ret;
        if (l->reply.type != NBD_REP_SERVER)
            return refused(l, "to list its exports");
        ret = add_entry(l);
    }
    return ret;
}

/* Control characters would reach the user's terminal. */
static void print_clean(const char *text)
{
    for (; *text; text++)
        putchar((unsigned char)*text < 32 || *text == 127 ? '?' : *text);
}

static void print_flags(uint16_t flags)
{
    static const char *const words[] = {
        NULL, "readonly", "flush", "fua", "rotational", "trim", "zeroes",
        "df", "multi", "resize", "cache", "fast-zero", "block-status-payload"
    };

    printf("  flags: 0x%x (", flags);
    for (unsigned i = 1; i < sizeof words / sizeof words[0]; i++)
        if (flags & 1u << i)
            printf(" %s", words[i]);
    printf(" )\n");
}

static void print_info(const struct reply *r)
{
    uint16_t type = r->len >= 2 ? nbd_get16(r->data) : 0xffff;

    if (type == NBD_INFO_EXPORT && r->len == 12) {
        printf("  size:  %" PRIu64 "\n", nbd_get64(r->data + 2));
        print_flags(nbd_get16(r->data + 10));
    }
}

static void print_blocks(const uint8_t *p)
{
    printf("  min block: %u\n", nbd_get32(p + 2));
    printf("  opt block: %u\n", nbd_get32(p + 6));
    printf("  max block: %u\n", nbd_get32(p + 10));
}

static int info(struct lister *l, const char *name)
{
    uint8_t wanted[4] = { 0, 1, 0, NBD_INFO_BLOCK_SIZE }, blocks[14] = { 0 };
    bool has_blocks = false;
    int ret = ask(l, NBD_OPT_INFO, name, wanted, sizeof wanted);

    for (unsigned i = 0; ret == 0 && i < MAX_REPLIES; i++) {
        ret = answer(l, NBD_OPT_INFO);
        if (ret < 0 || l->reply.type == NBD_REP_ACK ||
            l->reply.type & NBD_REP_ERROR)
            break;
        if (l->reply.len == sizeof blocks &&
            nbd_get16(l->reply.data) == NBD_INFO_BLOCK_SIZE) {
            memcpy(blocks, l->reply.data, sizeof blocks);
            has_blocks = true;
        }
        print_info(&l->reply);
    }
    if (ret == 0 && has_blocks)
        print_blocks(blocks);
    return ret;
}

static int contexts(struct lister *l, const char *name)
{
    static const uint8_t all[4];
    struct nbd_settings found = { 0 };
    int ret = ask(l, NBD_OPT_LIST_META_CONTEXT, name, all, sizeof all);

    for (unsigned i = 0; ret == 0 && i < MAX_REPLIES; i++) {
        char *text;

        ret = answer(l, NBD_OPT_LIST_META_CONTEXT);
        if (ret < 0 || l->reply.type != NBD_REP_META_CONTEXT ||
            l->reply.len < 4)
            break;
        text = strndup((const char *)l->reply.data + 4, l->reply.len - 4);
        if (!text)
            return nbd_fail(l->err, ENOMEM, "no memory");
        for (char *p = text; *p; p++)
            if (*p == ',' || *p == '=')
                *p = '?';
        ret = nbd_settings_parse(&found, text, NULL, l->err);
        free(text);
    }
    if (ret == 0 && found.n)
        printf("  available meta contexts: %u\n", found.n);
    for (unsigned i = 0; ret == 0 && i < found.n; i++) {
        printf("   ");
        print_clean(found.keys[i]);
        putchar('\n');
    }
    nbd_settings_free(&found);
    return ret;
}

static int show(struct lister *l)
{
    bool structured;
    int ret = ask(l, NBD_OPT_STRUCTURED_REPLY, NULL, NULL, 0);

    if (ret == 0)
        ret = answer(l, NBD_OPT_STRUCTURED_REPLY);
    structured = ret == 0 && l->reply.type == NBD_REP_ACK;
    if (ret == 0)
        ret = names(l);
    if (ret == 0)
        printf("exports available: %u\n", l->n);
    for (unsigned i = 0; i < l->n && ret == 0; i++) {
        printf(" export: '");
        print_clean(l->entries[i].name);
        printf("'\n");
        if (*l->entries[i].description) {
            printf("  description: ");
            print_clean(l->entries[i].description);
            putchar('\n');
        }
        ret = info(l, l->entries[i].name);
        if (ret == 0 && structured)
            ret = contexts(l, l->entries[i].name);
    }
    if (ret == 0)
        ask(l, NBD_OPT_ABORT, NULL, NULL, 0);
    return ret;
}

int nbd_list(struct nbd_stream *stream, struct nbd_tls_client *tls,
             struct img_error *err)
{
    struct lister *l = calloc(1, sizeof *l);
    int ret;

    if (!l)
        return nbd_fail(err, ENOMEM, "no memory");
    l->stream = stream;
    l->err = err;
    ret = greet(l);
    if (ret == 0 && tls)
        ret = start_tls(l, tls);
    if (ret == 0)
        ret = show(l);
    for (unsigned i = 0; i < l->n; i++) {
        free(l->entries[i].name);
        free(l->entries[i].description);
    }
    free(l->entries);
    free(l);
    return ret;
}
