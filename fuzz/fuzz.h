/* What the fuzz targets share. */
#ifndef FUZZ_FUZZ_H
#define FUZZ_FUZZ_H
#include <stddef.h>
#include <stdint.h>
#include <libimg.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* Opens bytes as an image of that format; files that it names are not to be
 * had.  NULL = refused. */
struct img_disk *fuzz_open(const char *format, unsigned flags,
                           const uint8_t *data, size_t len);

#define FUZZ_ASSERT(x) \
    do { \
        if (!(x)) { \
            fprintf(stderr, "%s:%d: not %s\n", __FILE__, __LINE__, #x); \
            abort(); \
        } \
    } while (0)
#endif
