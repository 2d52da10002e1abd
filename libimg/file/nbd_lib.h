/* The functions of libnbd, which is loaded when the first server is opened:
 * with the libraries that it needs in turn (libxml2, ICU) it would be half of
 * the time that a short command takes to start. */
#ifndef IMG_FILE_NBD_LIB_H
#define IMG_FILE_NBD_LIB_H
#include <libnbd.h>

struct img_error;

/* Without the nbd_ before them. */
#define IMG_NBD_FUNCTIONS(X) \
    X(add_meta_context) X(aio_block_status) X(aio_connect_uri) X(aio_flush) \
    X(aio_get_direction) X(aio_get_fd) X(aio_is_closed) \
    X(aio_is_connecting) X(aio_is_dead) X(aio_is_ready) \
    X(aio_notify_read) X(aio_notify_write) X(aio_pread) X(aio_pwrite) \
    X(aio_trim) X(aio_zero) X(can_fast_zero) X(can_flush) X(can_fua) \
    X(can_meta_context) X(can_multi_conn) X(can_trim) X(can_zero) X(close) \
    X(connect_uri) X(create) X(get_block_size) X(get_errno) X(get_error) \
    X(get_size) X(is_read_only) X(poll) X(set_uri_allow_local_file) \
    X(shutdown)

struct img_nbd_lib {
#define IMG_NBD_POINTER(name) __typeof__(nbd_##name) *name;
    IMG_NBD_FUNCTIONS(IMG_NBD_POINTER)
#undef IMG_NBD_POINTER
};

/* Does not change once it was loaded. */
extern struct img_nbd_lib img_nbd_lib;

int img_nbd_lib_load(const char *path, struct img_error *err);
#endif
