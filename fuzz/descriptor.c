/* Fuzz target: the text of a VMDK descriptor.  Whatever it is, reading it
 * ends; what was read is printed and read again as the same; what is set is
 * found. */
#include "fuzz.h"
#include "vmdk/vmdk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check_same(const struct vmdk_text *a, const struct vmdk_text *b)
{
    FUZZ_ASSERT(a->n_extents == b->n_extents);
    for (size_t i = 0; i < a->n_extents; i++) {
        const struct vmdk_extent_line *x = &a->extents[i];
        const struct vmdk_extent_line *y = &b->extents[i];

        FUZZ_ASSERT(x->access == y->access && x->type == y->type &&
                    x->sectors == y->sectors && x->offset == y->offset &&
                    !x->name == !y->name &&
                    (!x->name || !strcmp(x->name, y->name)));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct vmdk_text *a = NULL, *b = NULL;
    struct img_error err = { 0 };
    char *text, *value;
    size_t n;

    img_vmdk_looks_like_text(data, len);
    if (img_vmdk_text_parse("fuzz", data, len, &a, &err) < 0) {
        FUZZ_ASSERT(err.message[0]);
        img_vmdk_text_free(a);
        return 0;
    }
    text = img_vmdk_text_print(a, &n);
    FUZZ_ASSERT(text);
    FUZZ_ASSERT(img_vmdk_text_parse("again", text, n, &b, &err) == 0);
    check_same(a, b);
    free(text);
    if (img_vmdk_text_set(a, "parentFileNameHint", "x.vmdk", &err) == 0) {
        FUZZ_ASSERT(img_vmdk_text_get(a, "parentFileNameHint", &value,
                                      &err) == 0);
        FUZZ_ASSERT(value && !strcmp(value, "x.vmdk"));
        free(value);
    }
    if (img_vmdk_text_get(a, "createType", &value, &err) == 0)
        free(value);
    img_vmdk_text_free(a);
    img_vmdk_text_free(b);
    return 0;
}
