#include "base/error.h"
#include "libimg.h"

#include <stdio.h>
#include <string.h>

static void fill(struct img_error *err, int code, const char *fmt, va_list ap)
{
    if (!err)
        return;
    err->code = code;
    vsnprintf(err->message, sizeof err->message, fmt, ap);
    for (char *p = err->message; *p; p++)
        if (*p == '\n' || *p == '\r')
            *p = ' ';
}

int img_fail(struct img_error *err, int code, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fill(err, code, fmt, ap);
    va_end(ap);
    return -code;
}

int img_fail_errno(struct img_error *err, int code, const char *fmt, ...)
{
    char text[128];
    size_t used;
    va_list ap;

    va_start(ap, fmt);
    fill(err, code, fmt, ap);
    va_end(ap);
    if (err) {
        used = strlen(err->message);
        snprintf(err->message + used, sizeof err->message - used, ": %s",
                 strerror_r(code, text, sizeof text));
    }
    return -code;
}

int img_fail_prefix(struct img_error *err, int ret, const char *fmt, ...)
{
    char words[256], old[sizeof err->message];
    va_list ap;

    if (!err)
        return ret;
    va_start(ap, fmt);
    vsnprintf(words, sizeof words, fmt, ap);
    va_end(ap);
    memcpy(old, err->message, sizeof old);
    return img_fail(err, -ret, "%s: %s", words, old);
}

int img_fail_nomem(struct img_error *err)
{
    return img_fail(err, ENOMEM, "out of memory");
}
