/* Standard input, output and error: see standard.h. */
#include "standard.h"

#include <fcntl.h>

int standard_take(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/", O_PATH) != fd)
            return -1;
    return 0;
}
