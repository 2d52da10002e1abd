/* Sizes as people write and read them. */
#include "size.h"
#include "vimg.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Power of two of a suffix; -1 = no such suffix. */
static int suffix_shift(const char *s)
{
    static const char letters[] = "bkmgtpe";
    const char *at;

    if (!*s)
        return 0;
    at = strchr(letters, tolower((unsigned char)*s));
    return at && !s[1] ? 10 * (int)(at - letters) : -1;
}

int size_parse(const char *text, uint64_t *value)
{
    bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    unsigned long long whole;
    long double fraction = 0, total;
    char *end;
    int shift;

    if (!isdigit((unsigned char)text[0]) ||
        (hex && !isxdigit((unsigned char)text[2])))
        return -EINVAL;
    errno = 0;
    whole = strtoull(text, &end, hex ? 16 : 10);
    if (errno)
        return -ERANGE;
    if (!hex && *end == '.') {
        long double place = 0.1L;

        for (end++; isdigit((unsigned char)*end); end++, place /= 10)
            fraction += place * (*end - '0');
    }
    shift = suffix_shift(end);
    if (shift < 0 || (hex && *end) || (fraction > 0 && shift == 0))
        return -EINVAL;
    if (whole > (uint64_t)INT64_MAX >> shift)
        return -ERANGE;
    total = fraction * (long double)(UINT64_C(1) << shift);
    *value = ((uint64_t)whole << shift) + (uint64_t)total;
    return *value > INT64_MAX ? -ERANGE : 0;
}

bool size_argument(const char *text, const char *what, uint64_t *value)
{
    int r = size_parse(text, value);

    if (r == -ERANGE)
        complain("Invalid %s specified. Must be between 0 and %" PRId64 ".",
                 what, INT64_MAX);
    else if (r < 0) {
        complain("Invalid %s specified. You may use k, M, G, T, P or E "
                 "suffixes for", what);
        complain("kilobytes, megabytes, gigabytes, terabytes, petabytes and "
                 "exabytes.");
    }
    return r == 0;
}

bool number_argument(const char *text, const char *what, uint64_t min,
                     uint64_t max, uint64_t *value)
{
    char *end;

    errno = 0;
    *value = strtoull(text, &end, 0);
    if (!isdigit((unsigned char)text[0]) || *end || errno || *value < min ||
        *value > max) {
        complain("Invalid %s specified. Must be between %" PRIu64 " and %"
                 PRIu64 ".", what, min, max);
        return false;
    }
    return true;
}

char *size_human(uint64_t size, char buf[SIZE_TEXT])
{
    static const char *const units[] = {
        "", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"
    };
    double v = (double)size;
    unsigned i = 0;

    while (v >= 1000 && i < 6) {
        v /= 1024;
        i++;
    }
    snprintf(buf, SIZE_TEXT, "%0.3g %sB", v, units[i]);
    return buf;
}
