/* The public header, alone, in C++17, where designated initialisers of the
 * IMG_..._OPTIONS macros are not to be had: size is set by hand. */
#include <libimg.h>

int main()
{
    img_open_options open_options = {};

    open_options.size = sizeof open_options;
    return img_version() == IMG_VERSION && open_options.size ? 0 : 1;
}
