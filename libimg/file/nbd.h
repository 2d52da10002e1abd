/* NBD servers as files. */
#ifndef IMG_FILE_NBD_H
#define IMG_FILE_NBD_H
#include "file/file.h"

/* nbd://, nbds://, nbd+unix://, nbds+unix://, nbd+vsock://, nbds+vsock://,
 * and QEMU's older nbd:HOST:PORT and nbd:unix:PATH. */
bool img_nbd_is_uri(const char *path);
/* Sets what tells files apart: two of one URI are one, as two of one inode
 * are. */
void img_nbd_identify(const char *uri, struct img_file *file);
/* flags as for img_file_open. */
int img_nbd_open(const char *uri, unsigned flags, struct img_file **file,
                 struct img_error *err);
/* Another file on the same connections; file is an NBD server's. */
int img_nbd_share(struct img_file *file, struct img_file **shared,
                  struct img_error *err);
#endif
