#ifndef TESTS_BAD_IMAGES_H
#define TESTS_BAD_IMAGES_H
#include <stdbool.h>

enum { PATTERN = 0x5a };        /* what is written into them */

struct image {
    const char *name, *format;
    const char *options;        /* of qemu-img create -o; NULL = none */
    const char *size;
    bool backing, snapshot, bitmap, packed;
    const char *spoil;          /* NULL = the file that is opened */
    bool ours;                  /* QEMU cannot make it */
};

extern const struct image images[];
extern const int n_images;

const char *disk_name(const struct image *im);
/* In the current folder, under that name. */
void make_image(const struct image *im);

#endif
