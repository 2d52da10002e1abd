/* Loading libnbd: see nbd_lib.h.  It stays until the process ends. */
#ifdef HAVE_LIBNBD

#include "file/nbd_lib.h"
#include "base/error.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>

/* Its interface is stable (libnbd(3), "ABI compatibility"). */
#define SONAME "libnbd.so.0"

struct img_nbd_lib img_nbd_lib;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static const char *missing;     /* NULL = nothing */

/* The way of dlsym(3) around converting a pointer to one to a function. */
#define LOAD(name) \
    if (!missing && !(*(void **)&img_nbd_lib.name = \
                      dlsym(lib, "nbd_" #name))) \
        missing = "nbd_" #name;

static void load(void)
{
    void *lib = dlopen(SONAME, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);

    if (!lib)
        missing = "the library";
    IMG_NBD_FUNCTIONS(LOAD)
}

int img_nbd_lib_load(const char *path, struct img_error *err)
{
    pthread_once(&once, load);
    return missing ? img_fail(err, ENOTSUP, "%s: " SONAME ", which talks to "
                              "NBD servers, cannot be loaded: %s is missing",
                              path, missing) : 0;
}
#endif
