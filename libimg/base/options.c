#include "base/options.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/iov.h"

#include <string.h>

int img_options_take(void *to, size_t known, const void *from,
                     struct img_error *err)
{
    size_t size;

    memset(to, 0, known);
    if (from) {
        memcpy(&size, from, sizeof size);
        if (size < sizeof size)
            return img_fail(err, EINVAL, "the options structure says that it "
                            "has %zu bytes", size);
        if (size > known &&
            !img_is_zero((const char *)from + known, size - known))
            return img_fail(err, EINVAL, "an option is set that this version "
                            "of the library does not know");
        memcpy(to, from, IMG_MIN(size, known));
    }
    memcpy(to, &known, sizeof known);
    return 0;
}
