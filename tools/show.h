/* What img_info_get tells, as text and as JSON. */
#ifndef SHOW_H
#define SHOW_H

#include <libimg.h>
#include "json.h"

enum output { OUTPUT_TEXT, OUTPUT_JSON, OUTPUT_BAD };
/* The argument of --output; NULL is text.  BAD: the user was told. */
enum output output_argument(const char *text);

/* chain: everything below it too.  name: what to call the top image; NULL =
 * its path. */
void show_info(const struct img_info *info, const char *name, bool chain);
json_t *show_info_json(const struct img_info *info, const char *name);
/* "Format specific information:", if there is some. */
void show_specific(const struct img_info *info);
/* Nothing when there are no snapshots. */
void show_snapshots(const struct img_info *info);

#endif
