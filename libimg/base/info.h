/* Building a description (struct img_info) piece by piece. */
#ifndef IMG_BASE_INFO_H
#define IMG_BASE_INFO_H
#include "libimg.h"

struct img_info *img_info_new(void);
/* Copies text; NULL stays NULL. */
int img_info_text(const char **field, const char *text,
                  struct img_error *err);

/* These append to a GROUP or LIST (name NULL in a list) and return the new
 * value, or NULL where there is no memory.  It moves with the next append to
 * the same parent. */
struct img_value *img_value_bool(struct img_value *, const char *name, bool);
struct img_value *img_value_uint(struct img_value *, const char *name,
                                 uint64_t);
struct img_value *img_value_text(struct img_value *, const char *name,
                                 const char *);
struct img_value *img_value_list(struct img_value *, const char *name);
struct img_value *img_value_group(struct img_value *, const char *name);
/* The group info->specific, made on first use. */
struct img_value *img_info_specific(struct img_info *);
struct img_snapshot_info *img_info_add_snapshot(struct img_info *);
struct img_bitmap_info *img_info_add_bitmap(struct img_info *);
#endif
