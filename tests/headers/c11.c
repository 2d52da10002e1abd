/* The public header, alone, in strict C11. */
#include <libimg.h>

int main(void)
{
    struct img_open_options open_options = IMG_OPEN_OPTIONS;

    return img_version() == IMG_VERSION && open_options.size ? 0 : 1;
}
