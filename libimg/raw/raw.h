#ifndef IMG_RAW_RAW_H
#define IMG_RAW_RAW_H
#include "format.h"

extern const struct img_format img_format_raw;
#endif
