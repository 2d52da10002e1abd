/* Errors as return values: fill in a message, return a negative errno. */
#ifndef IMG_BASE_ERROR_H
#define IMG_BASE_ERROR_H
#include <errno.h>
#include <stdarg.h>

struct img_error;

#ifndef IMG_ECORRUPT
#define IMG_ECORRUPT 117
#endif

/* code is a positive errno value.  Returns -code. */
int img_fail(struct img_error *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* As img_fail, with ": " and the system's words for code behind it. */
int img_fail_errno(struct img_error *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "words: " before the message that is there.  Returns -code of it. */
int img_fail_prefix(struct img_error *err, int ret, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

int img_fail_nomem(struct img_error *err);
#endif
