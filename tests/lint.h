/* What the analyzers are told: a failure is negative, which a compiler finds
 * out when it links.  make lint includes it before each file. */
#include <errno.h>
#include "base/error.h"
#include "objects.h"

#define img_fail(...) (img_fail(__VA_ARGS__), -EIO)
#define img_fail_nomem(err) (img_fail_nomem(err), -ENOMEM)
#define nbd_fail(...) (nbd_fail(__VA_ARGS__), -EIO)
