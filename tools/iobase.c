/* What vimg io's commands share: numbers, reports, dumps. */
#include "io.h"
#include "size.h"
#include "vimg.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char *io_size(double size, char buf[IO_TEXT])
{
    static const char *const units[] = {
        "bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"
    };
    unsigned i = 0;
    char *dot;

    while (size >= 1024 && i < 6) {
        size /= 1024;
        i++;
    }
    snprintf(buf, IO_TEXT, "%.*f", i ? 3 : 6, size);
    dot = strchr(buf, '.');
    if (dot && !dot[1 + strspn(dot + 1, "0")])
        *dot = 0;
    snprintf(buf + strlen(buf), IO_TEXT - strlen(buf), " %s", units[i]);
    return buf;
}

bool io_number(const char *text, uint64_t *value)
{
    int r = size_parse(text, value);

    if (r == 0)
        return true;
    if (r == -ERANGE)
        printf("Parsing error: argument too large -- %s\n", text);
    else
        printf("Parsing error: non-numeric argument, or extraneous/"
               "unrecognized suffix -- %s\n", text);
    return false;
}

bool io_length(const char *text, uint64_t *value)
{
    const uint64_t most = (UINT64_C(1) << 31) - 512;

    if (!io_number(text, value))
        return false;
    if (*value <= most)
        return true;
    printf("length cannot exceed %" PRIu64 ", given %s\n", most, text);
    return false;
}

bool io_pattern(const char *text, int *pattern)
{
    char *end;
    long n = strtol(text, &end, 0);

    if (end == text || *end || n < 0 || n > 255) {
        printf("%s is not a valid pattern byte\n", text);
        return false;
    }
    *pattern = (int)n;
    return true;
}

static void time_text(double seconds, bool fixed, char *buf, size_t size)
{
    uint64_t hundredths = (uint64_t)(seconds * 100);
    uint64_t s = hundredths / 100;

    hundredths %= 100;
    if (fixed || s >= 3600)
        snprintf(buf, size, "%" PRIu64 ":%02" PRIu64 ":%02" PRIu64 ".%02"
                 PRIu64, s / 3600, s / 60 % 60, s % 60, hundredths);
    else if (s >= 60)
        snprintf(buf, size, "%02" PRIu64 ":%02" PRIu64 ".%02" PRIu64, s / 60,
                 s % 60, hundredths);
    else
        snprintf(buf, size, "%02" PRIu64 ".%02" PRIu64 " sec", s, hundredths);
}

void io_report(const char *verb, const struct timespec *start, uint64_t off,
               uint64_t count, uint64_t total, unsigned ops, bool machine)
{
    char taken[IO_TEXT], done[IO_TEXT], speed[IO_TEXT];
    struct timespec now;
    double t;

    clock_gettime(CLOCK_MONOTONIC, &now);
    t = (double)(now.tv_sec - start->tv_sec) +
        (double)(now.tv_nsec - start->tv_nsec) / 1e9;
    if (t <= 0)
        t = 1e-9;
    time_text(t, machine, taken, sizeof taken);
    if (machine) {
        printf("%" PRIu64 ",%u,%s,%.3f,%.3f\n", total, ops, taken,
               (double)total / t, (double)ops / t);
        return;
    }
    printf("%s %" PRIu64 "/%" PRIu64 " bytes at offset %" PRIu64 "\n", verb,
           total, count, off);
    printf("%s, %u ops; %s (%s/sec and %.4f ops/sec)\n",
           io_size((double)total, done), ops, taken,
           io_size((double)total / t, speed), (double)ops / t);
}

void io_dump(const char *buf, size_t len, uint64_t off)
{
    for (size_t i = 0; i < len; i += 16) {
        size_t n = len - i < 16 ? len - i : 16;

        printf("%08" PRIx64 ":  ", off + i);
        for (size_t j = 0; j < n; j++)
            printf("%02x ", (unsigned char)buf[i + j]);
        putchar(' ');
        for (size_t j = 0; j < n; j++)
            putchar(isalnum((unsigned char)buf[i + j]) ? buf[i + j] : '.');
        putchar('\n');
    }
}

int io_failed(const char *verb, int code, const char *message)
{
    printf("%s failed: %s\n", verb, strerror(code < 0 ? -code : code));
    fflush(stdout);
    if (message && *message)
        complain("%s", message);
    return -1;
}
