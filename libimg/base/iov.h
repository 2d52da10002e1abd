/* Scattered buffers: the parts of one request. */
#ifndef IMG_BASE_IOV_H
#define IMG_BASE_IOV_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

size_t img_iov_total(const struct iovec *iov, int n);

/* Describes bytes [off, off + len) of iov in out, which has room for n
 * entries; returns how many it used. */
int img_iov_slice(const struct iovec *iov, int n, size_t off, size_t len,
                  struct iovec *out);

/* Copies len bytes into or out of iov, beginning at its byte off. */
void img_iov_fill(const struct iovec *iov, int n, size_t off,
                  const void *from, size_t len);
void img_iov_gather(const struct iovec *iov, int n, size_t off, void *to,
                    size_t len);
void img_iov_clear(const struct iovec *iov, int n, size_t off, size_t len);

bool img_is_zero(const void *buf, size_t len);
bool img_iov_is_zero(const struct iovec *iov, int n);
#endif
