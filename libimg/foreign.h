/* Image formats that libimg does not read, by their signatures. */
#ifndef IMG_FOREIGN_H
#define IMG_FOREIGN_H
#include <stddef.h>
#include <stdint.h>

/* What the file is, in words for a message ("a VHDX image"), if its first or
 * last bytes say that it is an image in a format that libimg does not read;
 * NULL = they do not.  head: at least 4 KiB unless the file is shorter.
 * tail: the last 512 bytes; 0 of them if they are not known. */
const char *img_foreign_name(const uint8_t *head, size_t head_len,
                             const uint8_t *tail, size_t tail_len);
#endif
