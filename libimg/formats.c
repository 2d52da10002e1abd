/* The table of formats; the only file that names them all. */
#include "format.h"
#include "qcow2/qcow2.h"
#include "raw/raw.h"
#include "qcow/qcow.h"
#include "vdi/vdi.h"
#include "vmdk/vmdk.h"

#include <string.h>

const struct img_format *const img_formats[] = {
    &img_qcow2,
    &img_format_raw,
    &img_format_qcow,
    &img_format_vdi,
    &img_format_vmdk,
    NULL
};

const struct img_format *img_format_find(const char *name)
{
    for (size_t i = 0; img_formats[i]; i++)
        if (!strcmp(img_formats[i]->info.name, name))
            return img_formats[i];
    return NULL;
}
