/* VMDK as a format of libimg: the table of its functions. */
#include "vmdk/vmdk.h"

const struct img_format img_format_vmdk = {
    .info = {
        .name = "vmdk",
        .features = IMG_CAN_WRITE | IMG_CAN_CREATE | IMG_CAN_BACK |
                    IMG_CAN_RESIZE | IMG_CAN_COMPRESS | IMG_CAN_CHECK |
                    IMG_CAN_AMEND | IMG_SEQUENTIAL,
        .create_options = img_vmdk_create_options,
    },
    .probe = img_vmdk_probe, .open = img_vmdk_open, .close = img_vmdk_close,
    .check_base = img_vmdk_check_base, .create = img_vmdk_create,
    .codec = img_vmdk_codec, .map = img_vmdk_map,
    .reserve = img_vmdk_reserve, .publish = img_vmdk_publish,
    .abandon = img_vmdk_abandon, .unmap = img_vmdk_unmap,
    .sync = img_vmdk_sync, .touch = img_vmdk_touch,
    .resize = img_vmdk_resize, .set_backing = img_vmdk_set_backing,
    .amend = img_vmdk_amend, .check = img_vmdk_check,
    .measure = img_vmdk_measure, .describe = img_vmdk_describe,
    .defaults = img_vmdk_defaults, .sink = &img_vmdk_sink,
};
