#include "core/path.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool img_path_has_protocol(const char *name)
{
    return name[strcspn(name, ":/")] == ':';
}

char *img_path_beside(const char *referrer, const char *name)
{
    const char *slash = strrchr(referrer, '/');
    char *path = NULL;

    if (!strncmp(name, "file:", 5))
        name += 5;
    else if (img_path_has_protocol(name))
        return strdup(name);
    if (*name == '/' || !slash)
        return strdup(name);
    if (asprintf(&path, "%.*s/%s", (int)(slash - referrer), referrer,
                 name) < 0)
        return NULL;
    return path;
}
