/* nbd/: the handshake and the requests, as functions of bytes. */
#include "unit.h"
#include "../../nbd/handshake.h"
#include "../../nbd/request.h"

static const struct nbd_export_view one = {
    .name = "one", .description = "first", .size = 1 << 20,
    .flags = NBD_HAS_FLAGS | NBD_SEND_FLUSH, .min_block = 1,
    .preferred_block = 4096,
    .contexts = { "base:allocation", "qemu:dirty-bitmap:b" },
    .n_contexts = 2
};
static const struct nbd_export_view two = {
    .name = "", .size = 512, .flags = NBD_HAS_FLAGS | NBD_READ_ONLY,
    .contexts = { "base:allocation" }, .n_contexts = 1
};
static const struct nbd_export_view *const both[] = { &one, &two };

struct talk {
    struct nbd_catalog catalog;
    struct nbd_handshake h;
    struct nbd_bytes out;
    size_t read;                /* of out */
};

static void start(struct talk *t, bool tls)
{
    uint8_t flags[4];
    size_t used;

    *t = (struct talk){ .catalog = { both, 2, tls } };
    nbd_handshake_begin(&t->h, &t->catalog, &t->out);
    assert_int_equal(t->out.len, 18);
    assert_memory_equal(t->out.data, "NBDMAGICIHAVEOPT\0\3", 18);
    t->read = 18;
    nbd_put32(flags, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    assert_int_equal(nbd_handshake_step(&t->h, flags, 4, &used, &t->out),
                     NBD_NEXT_AGAIN);
    assert_int_equal(used, 4);
}

/* Sends an option byte by byte: nothing must happen before the last one. */
static enum nbd_next send_option(struct talk *t, uint32_t option,
                                 const void *data, uint32_t len)
{
    uint8_t *m = malloc(NBD_OPTION_SIZE + len + 1);
    enum nbd_next next = NBD_NEXT_MORE;
    size_t used, n;

    nbd_put64(m, NBD_OPTS_MAGIC);
    nbd_put32(m + 8, option);
    nbd_put32(m + 12, len);
    if (len)
        memcpy(m + NBD_OPTION_SIZE, data, len);
    for (n = 0; n < NBD_OPTION_SIZE + len; n++) {
        /* Memory of just that length, for the sanitizer. */
        uint8_t *part = malloc(n ? n : 1);

        memcpy(part, m, n);
        next = nbd_handshake_step(&t->h, part, n, &used, &t->out);
        free(part);
        assert_int_equal(next, NBD_NEXT_MORE);
        assert_int_equal(used, 0);
    }
    next = nbd_handshake_step(&t->h, m, n, &used, &t->out);
    assert_int_equal(used, n);
    free(m);
    return next;
}

static uint32_t answer(struct talk *t, const uint8_t **data, uint32_t *len)
{
    const uint8_t *p = t->out.data + t->read;

    assert_true(t->out.len - t->read >= NBD_OPT_REPLY_SIZE);
    assert_int_equal(nbd_get64(p), NBD_OPT_REPLY_MAGIC);
    *len = nbd_get32(p + 16);
    *data = p + NBD_OPT_REPLY_SIZE;
    t->read += NBD_OPT_REPLY_SIZE + *len;
    assert_true(t->read <= t->out.len);
    return nbd_get32(p + 12);
}

static void expect(struct talk *t, uint32_t type)
{
    const uint8_t *data;
    uint32_t len;

    assert_int_equal(answer(t, &data, &len), type);
    assert_int_equal(t->read, t->out.len);
}

static void stop(struct talk *t)
{
    nbd_bytes_free(&t->out);
}

static void test_list(void **state)
{
    const uint8_t *data;
    struct talk t;
    uint32_t len;

    start(&t, false);
    assert_int_equal(send_option(&t, NBD_OPT_LIST, "", 0), NBD_NEXT_AGAIN);
    assert_int_equal(answer(&t, &data, &len), NBD_REP_SERVER);
    assert_int_equal(len, 12);
    assert_memory_equal(data, "\0\0\0\3onefirst", 12);
    assert_int_equal(answer(&t, &data, &len), NBD_REP_SERVER);
    assert_int_equal(len, 4);
    expect(&t, NBD_REP_ACK);
    stop(&t);
}

static void test_go(void **state)
{
    const uint8_t *data;
    struct talk t;
    uint32_t len;

    start(&t, false);
    assert_int_equal(send_option(&t, NBD_OPT_GO, "\0\0\0\3two\0\0", 9),
                     NBD_NEXT_AGAIN);
    expect(&t, NBD_REP_ERR_UNKNOWN);
    assert_int_equal(send_option(&t, NBD_OPT_GO, "\0\0\0\3one\0\2\0\2\0\3",
                                 13), NBD_NEXT_READY);
    assert_int_equal(answer(&t, &data, &len), NBD_REP_INFO);
    assert_memory_equal(data, "\0\2first", 7);
    assert_int_equal(answer(&t, &data, &len), NBD_REP_INFO);
    assert_int_equal(len, 14);
    assert_memory_equal(data, "\0\3\0\0\0\1\0\0\x10\0\2\0\0\0", 14);
    assert_int_equal(answer(&t, &data, &len), NBD_REP_INFO);
    assert_memory_equal(data, "\0\0\0\0\0\0\0\x10\0\0\0\5", 12);
    expect(&t, NBD_REP_ACK);
    assert_ptr_equal(t.h.chosen, &one);
    assert_int_equal(t.h.mode, NBD_MODE_SIMPLE);
    stop(&t);
}

static void test_export_name(void **state)
{
    struct talk t;

    start(&t, false);
    assert_int_equal(send_option(&t, NBD_OPT_EXPORT_NAME, "", 0),
                     NBD_NEXT_READY);
    assert_int_equal(t.out.len - t.read, 10);
    assert_memory_equal(t.out.data + t.read, "\0\0\0\0\0\0\2\0\0\3", 10);
    stop(&t);
    start(&t, false);
    assert_int_equal(send_option(&t, NBD_OPT_EXPORT_NAME, "none", 4),
                     NBD_NEXT_CLOSE);
    stop(&t);
}

static void test_contexts(void **state)
{
    static const char set[] = "\0\0\0\3one\0\0\0\2\0\0\0\x13"
        "qemu:dirty-bitmap:b\0\0\0\5nope:";
    const uint8_t *data;
    struct talk t;
    uint32_t len;

    start(&t, false);
    send_option(&t, NBD_OPT_SET_META_CONTEXT, set, sizeof set - 1);
    expect(&t, NBD_REP_ERR_INVALID);    /* no structured replies yet */
    send_option(&t, NBD_OPT_LIST_META_CONTEXT,
                "\0\0\0\3one\0\0\0\1\0\0\0\5qemu:", 20);
    assert_int_equal(answer(&t, &data, &len), NBD_REP_META_CONTEXT);
    assert_int_equal(len, 4 + 19);
    expect(&t, NBD_REP_ACK);
    send_option(&t, NBD_OPT_STRUCTURED_REPLY, "", 0);
    expect(&t, NBD_REP_ACK);
    send_option(&t, NBD_OPT_SET_META_CONTEXT, set, sizeof set - 1);
    assert_int_equal(answer(&t, &data, &len), NBD_REP_META_CONTEXT);
    assert_int_equal(nbd_get32(data), 1);
    expect(&t, NBD_REP_ACK);
    assert_true(t.h.selected[1] && !t.h.selected[0]);
    /* Of another export they are worth nothing. */
    assert_int_equal(send_option(&t, NBD_OPT_GO, "\0\0\0\0\0\0", 6),
                     NBD_NEXT_READY);
    assert_null(t.h.meta_export);
    assert_false(t.h.selected[1]);
    stop(&t);
}

static void test_modes(void **state)
{
    struct talk t;

    start(&t, false);
    send_option(&t, NBD_OPT_EXTENDED_HEADERS, "", 0);
    expect(&t, NBD_REP_ACK);
    send_option(&t, NBD_OPT_STRUCTURED_REPLY, "", 0);
    expect(&t, NBD_REP_ERR_EXT_HEADER_REQD);
    send_option(&t, NBD_OPT_EXTENDED_HEADERS, "", 0);
    expect(&t, NBD_REP_ERR_INVALID);
    send_option(&t, NBD_OPT_EXTENDED_HEADERS, "x", 1);
    expect(&t, NBD_REP_ERR_INVALID);
    send_option(&t, 77, "x", 1);
    expect(&t, NBD_REP_ERR_UNSUP);
    assert_int_equal(send_option(&t, NBD_OPT_ABORT, "", 0), NBD_NEXT_CLOSE);
    stop(&t);
}

static void test_tls(void **state)
{
    struct talk t;

    start(&t, true);
    send_option(&t, NBD_OPT_LIST, "", 0);
    expect(&t, NBD_REP_ERR_TLS_REQD);
    send_option(&t, NBD_OPT_STRUCTURED_REPLY, "", 0);
    expect(&t, NBD_REP_ERR_TLS_REQD);
    assert_int_equal(send_option(&t, NBD_OPT_STARTTLS, "", 0), NBD_NEXT_TLS);
    expect(&t, NBD_REP_ACK);
    nbd_handshake_secured(&t.h);
    send_option(&t, NBD_OPT_STARTTLS, "", 0);
    expect(&t, NBD_REP_ERR_INVALID);
    assert_int_equal(send_option(&t, NBD_OPT_GO, "\0\0\0\0\0\0", 6),
                     NBD_NEXT_READY);
    stop(&t);
    start(&t, true);
    assert_int_equal(send_option(&t, NBD_OPT_EXPORT_NAME, "", 0),
                     NBD_NEXT_CLOSE);
    stop(&t);
}

static void test_too_long(void **state)
{
    static uint8_t m[NBD_OPTION_SIZE + 100000];
    struct talk t;
    size_t used, at = NBD_OPTION_SIZE;

    start(&t, false);
    nbd_put64(m, NBD_OPTS_MAGIC);
    nbd_put32(m + 8, NBD_OPT_LIST);
    nbd_put32(m + 12, 100000);
    assert_int_equal(nbd_handshake_step(&t.h, m, NBD_OPTION_SIZE, &used,
                                        &t.out), NBD_NEXT_AGAIN);
    expect(&t, NBD_REP_ERR_TOO_BIG);
    while (at < sizeof m) {
        size_t n = sizeof m - at < 999 ? sizeof m - at : 999;

        assert_int_equal(nbd_handshake_step(&t.h, m + at, n, &used, &t.out),
                         at + n == sizeof m ? NBD_NEXT_AGAIN :
                         NBD_NEXT_MORE);
        at += used;
    }
    send_option(&t, NBD_OPT_STRUCTURED_REPLY, "", 0);
    expect(&t, NBD_REP_ACK);
    stop(&t);
}

static void test_requests(void **state)
{
    static const uint8_t read[NBD_REQUEST_SIZE] =
        "\x25\x60\x95\x13\0\1\0\0cookie78\0\0\0\0\0\0\x10\0\0\0\2";
    struct nbd_request r;
    const char *why;

    assert_true(nbd_request_parse(read, NBD_MODE_SIMPLE, &r));
    assert_int_equal(r.type, NBD_CMD_READ);
    assert_int_equal(r.flags, NBD_FLAG_FUA);
    assert_int_equal(r.off, 4096);
    assert_int_equal(r.len, 512);
    assert_false(nbd_request_parse(read, NBD_MODE_EXTENDED, &r));
    assert_int_equal(nbd_request_check(&r, NBD_MODE_SIMPLE, 4608,
                                       NBD_HAS_FLAGS, &why), 0);
    assert_int_equal(nbd_request_check(&r, NBD_MODE_SIMPLE, 4607,
                                       NBD_HAS_FLAGS, &why), NBD_EINVAL);
    r.type = NBD_CMD_WRITE;
    assert_int_equal(nbd_request_payload(&r, NBD_MODE_SIMPLE), 512);
    assert_int_equal(nbd_request_check(&r, NBD_MODE_SIMPLE, 4607,
                                       NBD_HAS_FLAGS, &why), NBD_ENOSPC);
    assert_int_equal(nbd_request_check(&r, NBD_MODE_SIMPLE, 4608,
                                       NBD_HAS_FLAGS | NBD_READ_ONLY, &why),
                     NBD_EPERM);
    r.type = NBD_CMD_TRIM;
    assert_int_equal(nbd_request_check(&r, NBD_MODE_SIMPLE, 4608,
                                       NBD_HAS_FLAGS, &why), NBD_EINVAL);
    r.off = UINT64_MAX;
    r.len = UINT64_MAX;
    assert_int_equal(nbd_request_check(&r, NBD_MODE_EXTENDED, UINT64_MAX - 1,
                                       NBD_HAS_FLAGS | NBD_SEND_TRIM, &why),
                     NBD_EINVAL);
    assert_int_equal(nbd_error_of(EROFS), NBD_EPERM);
    assert_int_equal(nbd_error_of(ENOSPC), NBD_ENOSPC);
    assert_int_equal(nbd_error_of(IMG_ECORRUPT), NBD_EIO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_list), cmocka_unit_test(test_go),
        cmocka_unit_test(test_export_name), cmocka_unit_test(test_contexts),
        cmocka_unit_test(test_modes), cmocka_unit_test(test_tls),
        cmocka_unit_test(test_too_long), cmocka_unit_test(test_requests)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
