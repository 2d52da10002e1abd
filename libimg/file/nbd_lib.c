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
static const struct { const char *name; void **to; } functions[] = {
#define ENTRY(name) { "nbd_" #name, (void **)&img_nbd_lib.name },
    IMG_NBD_FUNCTIONS(ENTRY)
#undef ENTRY
};

static void load(void)
{
    void *lib = dlopen(SONAME, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);

    if (!lib)
        missing = "the library";
    for (size_t i = 0; !missing && i < sizeof functions / sizeof functions[0];
         i++) {
        *functions[i].to = dlsym(lib, functions[i].name);
        if (!*functions[i].to)
            missing = functions[i].name;
    }
}

int img_nbd_lib_load(const char *path, struct img_error *err)
{
    pthread_once(&once, load);
    return missing ? img_fail(err, ENOTSUP, "%s: " SONAME ", which talks to "
                              "NBD servers, cannot be loaded: %s is missing",
                              path, missing) : 0;
}
#endif
