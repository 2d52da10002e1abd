/* Names of files as images have them. */
#ifndef IMG_CORE_PATH_H
#define IMG_CORE_PATH_H
#include <stdbool.h>

/* Does it begin with "word:"? */
bool img_path_has_protocol(const char *name);
/* Where the file is that the image at `referrer` calls `name`: next to the
 * image unless it is absolute.  malloc'ed. */
char *img_path_beside(const char *referrer, const char *name);
#endif
