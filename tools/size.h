/* Sizes as people write and read them. */
#ifndef SIZE_H
#define SIZE_H

#include <stdbool.h>
#include <stdint.h>

enum { SIZE_TEXT = 32 };

/* "10G", "1.5T", "0x200", "512"; suffixes b k K M G T P E of powers of 1024.
 * 0, -EINVAL, or -ERANGE above 2^63 - 1. */
int size_parse(const char *text, uint64_t *value);
/* The same, with a complaint that names `what`. */
bool size_argument(const char *text, const char *what, uint64_t *value);
/* A plain number within [min, max]. */
bool number_argument(const char *text, const char *what, uint64_t min,
                     uint64_t max, uint64_t *value);

/* "196 KiB": three digits.  Returns buf. */
char *size_human(uint64_t size, char buf[SIZE_TEXT]);

#endif
