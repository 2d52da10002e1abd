/* The server's half of the handshake.  One call handles one message; every
 * length is checked against the message before it is used. */
#include <stdio.h>
#include <stdlib.h>
#include "handshake.h"

/* ---- output ------------------------------------------------------------ */

static uint8_t *append(struct nbd_bytes *out, size_t len)
{
    if (out->failed)
        return NULL;
    if (len > out->room - out->len) {
        size_t room = (out->len + len) * 2;
        uint8_t *data = realloc(out->data, room);

        if (!data) {
            out->failed = true;
            return NULL;
        }
        out->data = data;
        out->room = room;
    }
    out->len += len;
    return out->data + out->len - len;
}

void nbd_bytes_free(struct nbd_bytes *out)
{
    free(out->data);
    *out = (struct nbd_bytes){ 0 };
}

/* An option reply with room for len bytes, which are returned. */
static uint8_t *reply(struct nbd_bytes *out, uint32_t option, uint32_t type,
                      size_t len)
{
    uint8_t *p = append(out, NBD_OPT_REPLY_SIZE + len);

    if (!p)
        return NULL;
    nbd_put64(p, NBD_OPT_REPLY_MAGIC);
    nbd_put32(p + 8, option);
    nbd_put32(p + 12, type);
    nbd_put32(p + 16, (uint32_t)len);
    return p + NBD_OPT_REPLY_SIZE;
}

static enum nbd_next refuse(struct nbd_bytes *out, uint32_t option,
                            uint32_t type, const char *why)
{
    size_t len = strlen(why);
    uint8_t *p = reply(out, option, type, len);

    if (p)
        memcpy(p, why, len);
    return NBD_NEXT_AGAIN;
}

static enum nbd_next ack(struct nbd_bytes *out, uint32_t option)
{
    reply(out, option, NBD_REP_ACK, 0);
    return NBD_NEXT_AGAIN;
}

/* ---- input ------------------------------------------------------------- */

/* What is left of an option's payload. */
struct part {
    const uint8_t *p;
    size_t len;
};

static bool take32(struct part *in, uint32_t *v)
{
    if (in->len < 4)
        return false;
    *v = nbd_get32(in->p);
    in->p += 4;
    in->len -= 4;
    return true;
}

static bool take16(struct part *in, uint16_t *v)
{
    if (in->len < 2)
        return false;
    *v = nbd_get16(in->p);
    in->p += 2;
    in->len -= 2;
    return true;
}

/* A string with its length before it. */
static bool take_string(struct part *in, struct part *s)
{
    uint32_t len;

    if (!take32(in, &len) || len > in->len || len > NBD_MAX_STRING)
        return false;
    *s = (struct part){ in->p, len };
    in->p += len;
    in->len -= len;
    return true;
}

static bool same(struct part s, const char *text)
{
    return s.len == strlen(text) && !memcmp(s.p, text, s.len);
}

static const struct nbd_export_view *find(const struct nbd_handshake *h,
                                          struct part name)
{
    for (unsigned i = 0; i < h->catalog->n; i++)
        if (same(name, h->catalog->exports[i]->name))
            return h->catalog->exports[i];
    return NULL;
}

/* ---- options ----------------------------------------------------------- */

uint16_t nbd_handshake_flags(const struct nbd_handshake *h,
                             const struct nbd_export_view *e)
{
    uint16_t flags = e->flags;

    if (h->mode != NBD_MODE_SIMPLE)
        flags |= NBD_SEND_DF;
    if (h->mode == NBD_MODE_EXTENDED && h->meta_export == e)
        flags |= NBD_BLOCK_STATUS_PAYLOAD;
    return flags;
}

static void forget_contexts(struct nbd_handshake *h)
{
    h->meta_export = NULL;
    memset(h->selected, 0, sizeof h->selected);
}

static enum nbd_next ready(struct nbd_handshake *h,
                           const struct nbd_export_view *e)
{
    if (h->meta_export != e)
        forget_contexts(h);
    h->chosen = e;
    return NBD_NEXT_READY;
}

/* Who wants extended headers has to use GO. */
static enum nbd_next do_export_name(struct nbd_handshake *h, struct part in,
                                    struct nbd_bytes *out)
{
    const struct nbd_export_view *e = find(h, in);
    size_t len = h->no_zeroes ? 10 : 134;
    uint8_t *p;

    if (!e || h->mode == NBD_MODE_EXTENDED || !(p = append(out, len)))
        return NBD_NEXT_CLOSE;
    memset(p, 0, len);
    nbd_put64(p, e->size);
    nbd_put16(p + 8, nbd_handshake_flags(h, e));
    return ready(h, e);
}

static enum nbd_next do_list(struct nbd_handshake *h, struct nbd_bytes *out)
{
    for (unsigned i = 0; i < h->catalog->n; i++) {
        const struct nbd_export_view *e = h->catalog->exports[i];
        size_t name = strlen(e->name);
        size_t more = e->description ? strlen(e->description) : 0;
        uint8_t *p = reply(out, NBD_OPT_LIST, NBD_REP_SERVER,
                           4 + name + more);

        if (!p)
            return NBD_NEXT_CLOSE;
        nbd_put32(p, (uint32_t)name);
        memcpy(p + 4, e->name, name);
        if (more)
            memcpy(p + 4 + name, e->description, more);
    }
    return ack(out, NBD_OPT_LIST);
}

static void info_text(struct nbd_bytes *out, uint32_t option, uint16_t type,
                      const char *text)
{
    size_t len = strlen(text);
    uint8_t *p = reply(out, option, NBD_REP_INFO, 2 + len);

    if (!p)
        return;
    nbd_put16(p, type);
    memcpy(p + 2, text, len);
}

static void info_sizes(struct nbd_handshake *h, struct nbd_bytes *out,
                       uint32_t option, const struct nbd_export_view *e,
                       bool blocks)
{
    uint8_t *p;

    if (blocks && (p = reply(out, option, NBD_REP_INFO, 14))) {
        nbd_put16(p, NBD_INFO_BLOCK_SIZE);
        nbd_put32(p + 2, e->min_block);
        nbd_put32(p + 6, e->preferred_block);
        nbd_put32(p + 10, NBD_MAX_REQUEST);
    }
    p = reply(out, option, NBD_REP_INFO, 12);
    if (!p)
        return;
    nbd_put16(p, NBD_INFO_EXPORT);
    nbd_put64(p + 2, e->size);
    nbd_put16(p + 10, nbd_handshake_flags(h, e));
}

static enum nbd_next do_info(struct nbd_handshake *h, uint32_t option,
                             struct part in, struct nbd_bytes *out)
{
    const struct nbd_export_view *e;
    bool name = false, description = false, blocks = option == NBD_OPT_INFO;
    struct part wanted;
    uint16_t n, type;

    if (!take_string(&in, &wanted) || !take16(&in, &n) ||
        in.len != (size_t)n * 2)
        return refuse(out, option, NBD_REP_ERR_INVALID,
                      "the option's lengths contradict each other");
    while (take16(&in, &type)) {
        name |= type == NBD_INFO_NAME;
        description |= type == NBD_INFO_DESCRIPTION;
        blocks |= type == NBD_INFO_BLOCK_SIZE;
    }
    e = find(h, wanted);
    if (!e)
        return refuse(out, option, NBD_REP_ERR_UNKNOWN,
                      "there is no export of that name");
    if (name)
        info_text(out, option, NBD_INFO_NAME, e->name);
    if (description && e->description)
        info_text(out, option, NBD_INFO_DESCRIPTION, e->description);
    info_sizes(h, out, option, e, blocks);
    ack(out, option);
    return option == NBD_OPT_GO ? ready(h, e) : NBD_NEXT_AGAIN;
}

/* Does the query ask for this context?  LIST takes a namespace or a prefix
 * that ends with a colon too. */
static bool asks_for(struct part query, const char *context, bool list)
{
    if (same(query, context))
        return true;
    return list && query.len && query.p[query.len - 1] == ':' &&
           query.len <= strlen(context) &&
           !memcmp(query.p, context, query.len);
}

static void report_contexts(const struct nbd_export_view *e,
                            const bool *selected, uint32_t option,
                            struct nbd_bytes *out)
{
    for (unsigned i = 0; i < e->n_contexts; i++) {
        size_t len = strlen(e->contexts[i]);
        uint8_t *p;

        if (!selected[i])
            continue;
        p = reply(out, option, NBD_REP_META_CONTEXT, 4 + len);
        if (!p)
            return;
        nbd_put32(p, option == NBD_OPT_SET_META_CONTEXT ? i : 0);
        memcpy(p + 4, e->contexts[i], len);
    }
}

static enum nbd_next do_contexts(struct nbd_handshake *h, uint32_t option,
                                 struct part in, struct nbd_bytes *out)
{
    static const char bad[] = "the option's lengths contradict each other";
    bool list = option == NBD_OPT_LIST_META_CONTEXT;
    bool selected[NBD_MAX_CONTEXTS] = { false };
    const struct nbd_export_view *e;
    struct part name, query;
    uint32_t n;

    if (!list)
        forget_contexts(h);
    if (!list && h->mode == NBD_MODE_SIMPLE)
        return refuse(out, option, NBD_REP_ERR_INVALID,
                      "ask for structured replies first");
    if (!take_string(&in, &name) || !take32(&in, &n) || n > in.len / 4)
        return refuse(out, option, NBD_REP_ERR_INVALID, bad);
    e = find(h, name);
    if (!e)
        return refuse(out, option, NBD_REP_ERR_UNKNOWN,
                      "there is no export of that name");
    for (unsigned i = 0; list && !n && i < e->n_contexts; i++)
        selected[i] = true;
    while (n--) {
        if (!take_string(&in, &query))
            return refuse(out, option, NBD_REP_ERR_INVALID, bad);
        for (unsigned i = 0; i < e->n_contexts; i++)
            selected[i] |= asks_for(query, e->contexts[i], list);
    }
    if (in.len)
        return refuse(out, option, NBD_REP_ERR_INVALID, bad);
    report_contexts(e, selected, option, out);
    if (!list) {
        h->meta_export = e;
        memcpy(h->selected, selected, sizeof selected);
    }
    return ack(out, option);
}

static enum nbd_next do_mode(struct nbd_handshake *h, uint32_t option,
                             struct nbd_bytes *out)
{
    enum nbd_mode wanted = option == NBD_OPT_EXTENDED_HEADERS ?
        NBD_MODE_EXTENDED : NBD_MODE_STRUCTURED;

    if (h->mode == wanted)
        return refuse(out, option, NBD_REP_ERR_INVALID,
                      "that has been agreed on already");
    if (h->mode > wanted)
        return refuse(out, option, NBD_REP_ERR_EXT_HEADER_REQD,
                      "extended headers have been agreed on already");
    h->mode = wanted;
    return ack(out, option);
}

static enum nbd_next do_starttls(struct nbd_handshake *h,
                                 struct nbd_bytes *out)
{
    if (!h->catalog->tls)
        return refuse(out, NBD_OPT_STARTTLS, NBD_REP_ERR_POLICY,
                      "TLS is not configured");
    if (h->secured)
        return refuse(out, NBD_OPT_STARTTLS, NBD_REP_ERR_INVALID,
                      "TLS is on already");
    ack(out, NBD_OPT_STARTTLS);
    return NBD_NEXT_TLS;
}

static bool has_no_payload(uint32_t option)
{
    return option == NBD_OPT_LIST || option == NBD_OPT_STARTTLS ||
           option == NBD_OPT_STRUCTURED_REPLY ||
           option == NBD_OPT_EXTENDED_HEADERS;
}

static enum nbd_next do_option(struct nbd_handshake *h, uint32_t option,
                               struct part in, struct nbd_bytes *out)
{
    if (option == NBD_OPT_ABORT) {
        ack(out, option);
        return NBD_NEXT_CLOSE;
    }
    if (h->catalog->tls && !h->secured && option != NBD_OPT_STARTTLS) {
        if (option == NBD_OPT_EXPORT_NAME)
            return NBD_NEXT_CLOSE;      /* it has no error reply */
        return refuse(out, option, NBD_REP_ERR_TLS_REQD,
                      "this server speaks TLS only");
    }
    if (in.len && has_no_payload(option))
        return refuse(out, option, NBD_REP_ERR_INVALID,
                      "the option takes no data");
    switch (option) {
    case NBD_OPT_EXPORT_NAME:
        return do_export_name(h, in, out);
    case NBD_OPT_LIST:
        return do_list(h, out);
    case NBD_OPT_STARTTLS:
        return do_starttls(h, out);
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return do_info(h, option, in, out);
    case NBD_OPT_STRUCTURED_REPLY:
    case NBD_OPT_EXTENDED_HEADERS:
        return do_mode(h, option, out);
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        return do_contexts(h, option, in, out);
    default:
        return refuse(out, option, NBD_REP_ERR_UNSUP,
                      "the option is not known here");
    }
}

/* ---- the machine ------------------------------------------------------- */

void nbd_handshake_begin(struct nbd_handshake *h,
                         const struct nbd_catalog *catalog,
                         struct nbd_bytes *out)
{
    uint8_t *p = append(out, 18);

    *h = (struct nbd_handshake){ .catalog = catalog };
    if (!p)
        return;
    nbd_put64(p, NBD_MAGIC);
    nbd_put64(p + 8, NBD_OPTS_MAGIC);
    nbd_put16(p + 16, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
}

void nbd_handshake_secured(struct nbd_handshake *h)
{
    h->secured = true;
    h->mode = NBD_MODE_SIMPLE;
    forget_contexts(h);
}

static enum nbd_next client_flags(struct nbd_handshake *h, const uint8_t *in,
                                  size_t len, size_t *used)
{
    uint32_t flags;

    if (len < 4)
        return NBD_NEXT_MORE;
    *used = 4;
    flags = nbd_get32(in);
    if (flags & ~(uint32_t)(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES))
        return NBD_NEXT_CLOSE;
    h->has_flags = true;
    h->no_zeroes = flags & NBD_NO_ZEROES;
    return NBD_NEXT_AGAIN;
}

/* An option whose payload is longer than anything we know is answered at
 * once and its payload thrown away as it comes. */
static enum nbd_next too_long(struct nbd_handshake *h, uint32_t option,
                              uint32_t size, size_t *used,
                              struct nbd_bytes *out)
{
    if (option == NBD_OPT_EXPORT_NAME || size > NBD_MAX_REQUEST)
        return NBD_NEXT_CLOSE;
    *used = NBD_OPTION_SIZE;
    h->skip = size;
    return refuse(out, option, NBD_REP_ERR_TOO_BIG, "the option is too long");
}

static enum nbd_next step(struct nbd_handshake *h, const uint8_t *in,
                          size_t len, size_t *used, struct nbd_bytes *out)
{
    uint32_t option, size;

    if (h->skip) {
        *used = h->skip < len ? (size_t)h->skip : len;
        h->skip -= *used;
        return h->skip ? NBD_NEXT_MORE : NBD_NEXT_AGAIN;
    }
    if (!h->has_flags)
        return client_flags(h, in, len, used);
    if (len < NBD_OPTION_SIZE)
        return NBD_NEXT_MORE;
    if (nbd_get64(in) != NBD_OPTS_MAGIC)
        return NBD_NEXT_CLOSE;
    option = nbd_get32(in + 8);
    size = nbd_get32(in + 12);
    if (size > NBD_MAX_OPTION ||
        (option == NBD_OPT_EXPORT_NAME && size > NBD_MAX_STRING))
        return too_long(h, option, size, used, out);
    if (len < NBD_OPTION_SIZE + (size_t)size)
        return NBD_NEXT_MORE;
    *used = NBD_OPTION_SIZE + (size_t)size;
    return do_option(h, option, (struct part){ in + NBD_OPTION_SIZE, size },
                     out);
}

enum nbd_next nbd_handshake_step(struct nbd_handshake *h, const uint8_t *in,
                                 size_t len, size_t *used,
                                 struct nbd_bytes *out)
{
    enum nbd_next next;

    *used = 0;
    next = step(h, in, len, used, out);
    return out->failed ? NBD_NEXT_CLOSE : next;
}
