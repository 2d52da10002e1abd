/* The VMDK descriptor: what is read, what is kept, what is refused. */
#include "unit.h"
#include "vmdk/vmdk.h"

static const char foreign[] =
    "# Disk DescriptorFile\r\n"
    "version=1 \r\n"
    "encoding=\"GBK\"\r\n"
    "CID=0fffe\r\n"
    "parentCID=ffffffff\r\n"
    "isNativeSnapshot=\"no\"\r\n"
    "createType=\"twoGbMaxExtentSparse\"\r\n"
    "\r\n"
    "# Extent description\r\n"
    "RW 4192256 SPARSE \"\xb4\xc5\xc5\xcc-s001.vmdk\"\r\n"
    "RDONLY 63 ZERO \r\n"
    "RW 100 FLAT \"two words.vmdk\" 128\r\n"
    "NOACCESS 5 VMFS \"x.vmdk\"\r\n"
    "\r\n"
    "# Change Tracking File\r\n"
    "changeTrackPath=\"x-ctk.vmdk\"\r\n"
    "ddb.longContentID = \"d3e5471e615a8f7ad75b6f551c110279\"\r\n"
    "ddb.adapterType = \"lsilogic\"";

static struct vmdk_text *parse(const char *text, int want)
{
    struct vmdk_text *t = NULL;
    struct img_error err = { 0 };

    assert_int_equal(img_vmdk_text_parse("x", text, strlen(text), &t, &err),
                     want);
    assert_true(want ? err.message[0] != 0 : t != NULL);
    return t;
}

static void assert_prints(const struct vmdk_text *t, const char *want)
{
    size_t len;
    char *text = img_vmdk_text_print(t, &len);

    assert_non_null(text);
    assert_string_equal(text, want);
    assert_int_equal(len, strlen(want));
    free(text);
}

static void assert_value(const struct vmdk_text *t, const char *key,
                         const char *want)
{
    char *v;

    assert_int_equal(img_vmdk_text_get(t, key, &v, NULL), 0);
    if (want)
        assert_string_equal(v, want);
    else
        assert_null(v);
    free(v);
}

static void test_read(void **state)
{
    struct vmdk_text *t = parse(foreign, 0);
    uint32_t id;

    assert_int_equal(t->n_extents, 4);
    assert_int_equal(t->extents[0].sectors, 4192256);
    assert_int_equal(t->extents[0].type, VMDK_TYPE_SPARSE);
    assert_string_equal(t->extents[0].name, "\xb4\xc5\xc5\xcc-s001.vmdk");
    assert_int_equal(t->extents[1].type, VMDK_TYPE_ZERO);
    assert_int_equal(t->extents[1].access, VMDK_RDONLY);
    assert_null(t->extents[1].name);
    assert_string_equal(t->extents[2].name, "two words.vmdk");
    assert_int_equal(t->extents[2].offset, 128);
    assert_int_equal(t->extents[3].access, VMDK_NOACCESS);
    assert_true(img_vmdk_text_get_id(t, "CID", &id));
    assert_int_equal(id, 0xfffe);
    assert_false(img_vmdk_text_get_id(t, "createType", &id));
    assert_value(t, "createtype", "twoGbMaxExtentSparse");
    assert_value(t, "ddb.adapterType", "lsilogic");
    assert_value(t, "ddb.uuid", NULL);
    assert_prints(t, foreign);
    img_vmdk_text_free(t);
}

/* Everything but the lines that were changed stays byte for byte. */
static void test_change(void **state)
{
    struct vmdk_text *t = parse(foreign, 0);
    struct img_error err;
    char want[sizeof foreign + 200], *p;
    size_t len;
    char *text;

    assert_ok(img_vmdk_text_set_id(t, "CID", 0x1234, &err), err);
    assert_ok(img_vmdk_text_set(t, "parentFileNameHint", "base.vmdk", &err),
              err);
    assert_ok(img_vmdk_text_set(t, "ddb.adapterType", "ide", &err), err);
    assert_ok(img_vmdk_text_set(t, "ddb.uuid", "00", &err), err);
    assert_ok(img_vmdk_text_set(t, "isNativeSnapshot", NULL, &err), err);
    assert_ok(img_vmdk_text_set_extent(t, 2, 77, &err), err);
    assert_int_equal(img_vmdk_text_set(t, "ddb.x", "a\"b", &err), -EINVAL);
    assert_int_equal(img_vmdk_text_set(t, "ddb.x", "a\nb", &err), -EINVAL);

    text = img_vmdk_text_print(t, &len);
    assert_non_null(strstr(text, "CID=01234\r\nparentCID=ffffffff\r\n"
                                 "createType="));
    assert_non_null(strstr(text, "changeTrackPath=\"x-ctk.vmdk\"\r\n"
                                 "parentFileNameHint=\"base.vmdk\"\r\n"
                                 "ddb.longContentID"));
    assert_non_null(strstr(text, "ddb.adapterType = \"ide\"\r\n"
                                 "ddb.uuid = \"00\"\r\n"));
    assert_non_null(strstr(text, "RW 77 FLAT \"two words.vmdk\" 128\r\n"));
    assert_non_null(strstr(text, "encoding=\"GBK\"\r\n"));
    free(text);

    /* And back. */
    strcpy(want, foreign);
    p = strstr(want, "isNativeSnapshot");
    memmove(p, strstr(p, "\n") + 1, strlen(strstr(p, "\n")));
    strcat(want, "\r\n");
    assert_ok(img_vmdk_text_set_id(t, "CID", 0xfffe, &err), err);
    assert_ok(img_vmdk_text_set(t, "parentFileNameHint", NULL, &err), err);
    assert_ok(img_vmdk_text_set(t, "ddb.adapterType", "lsilogic", &err), err);
    assert_ok(img_vmdk_text_set(t, "ddb.uuid", NULL, &err), err);
    assert_ok(img_vmdk_text_set_extent(t, 2, 100, &err), err);
    assert_prints(t, want);
    img_vmdk_text_free(t);
}

static void test_ddb(void **state)
{
    struct vmdk_text *t = parse("version=1\nCID=1\nRW 1 ZERO\n", 0);
    struct img_error err;

    assert_ok(img_vmdk_text_set_ddb(t, "comment=a=b", &err), err);
    assert_value(t, "ddb.comment", "a=b");
    assert_prints(t, "version=1\nCID=1\nRW 1 ZERO\nddb.comment = \"a=b\"\n");
    assert_ok(img_vmdk_text_set_ddb(t, "comment=", &err), err);
    assert_prints(t, "version=1\nCID=1\nRW 1 ZERO\n");
    assert_int_equal(img_vmdk_text_set_ddb(t, "comment", &err), -EINVAL);
    assert_int_equal(img_vmdk_text_set_ddb(t, "=x", &err), -EINVAL);
    assert_int_equal(img_vmdk_text_set_ddb(t, "a b=x", &err), -EINVAL);
    img_vmdk_text_free(t);
}

static void test_refused(void **state)
{
    static const char *const bad[] = {
        "CID=1\n", "", "\n\n\n",
        "version=1\nRW SPARSE \"x\"\n",
        "version=1\nRW -1 SPARSE \"x\"\n",
        "version=1\nRW 99999999999999999999 SPARSE \"x\"\n",
        "version=1\nRW 9999999999999999999 SPARSE \"x\"\n",
        "version=1\nRW 1 SPARSE x\n",
        "version=1\nRW 1 SPARSE \"x\n",
        "version=1\nRW 1 SPARSE \"\"\n",
        "version=1\nRW 1 FLAT \"x\"\n",
        "version=1\nRW 1 FLAT \"x\" 99999999999999999999\n",
        "version=1\nRW 1\n", "version=1\nRW\n",
    };

    for (size_t i = 0; i < IMG_COUNT(bad); i++)
        parse(bad[i], -IMG_ECORRUPT);
    parse("version=4\nRW 1 ZERO\n", -ENOTSUP);
    parse("version=1\nRW 1 FANCY \"x\"\n", -ENOTSUP);
}

static void test_probe(void **state)
{
    static const char *const yes[] = {
        "version=1\n", "# a\n\n  # b\r\n\r\n version=3\n", "VERSION=2\n"
    };
    static const char *const no[] = {
        "", "#", "# version=1", "version=4\n", "version 1\n", "KDM",
        "x\nversion=1\n"
    };

    for (size_t i = 0; i < IMG_COUNT(yes); i++)
        assert_true(img_vmdk_looks_like_text((const uint8_t *)yes[i],
                                             strlen(yes[i])));
    for (size_t i = 0; i < IMG_COUNT(no); i++)
        assert_false(img_vmdk_looks_like_text((const uint8_t *)no[i],
                                              strlen(no[i])));
}

static void test_uuid(void **state)
{
    char out[48];

    assert_true(img_vmdk_uuid("428fbafb-8694-4ee2-9ce8-333D77f90140", out));
    assert_string_equal(out,
                        "42 8f ba fb 86 94 4e e2-9c e8 33 3d 77 f9 01 40");
    assert_false(img_vmdk_uuid("428fbafb", out));
    assert_false(img_vmdk_uuid("428fbafb-8694-4ee2-9ce8-333d77f901400", out));
    assert_false(img_vmdk_uuid("zz8fbafb-8694-4ee2-9ce8-333d77f90140", out));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read), cmocka_unit_test(test_change),
        cmocka_unit_test(test_ddb), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_probe), cmocka_unit_test(test_uuid),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
