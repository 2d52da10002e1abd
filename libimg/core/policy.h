/* Which of the files that an image names may be opened. */
#ifndef IMG_CORE_POLICY_H
#define IMG_CORE_POLICY_H
#include "libimg.h"

/* Is the policy one that can be followed? */
int img_policy_check(unsigned allow_files, const char *allow_dir,
                     struct img_error *err);

/* May a file that the image `referrer` names as `name` be opened?  path is
 * that name, as seen from here.  *real becomes what to open instead, malloc'ed,
 * where links were looked through; else NULL. */
int img_policy_ask(const struct img_open_options *opts, const char *referrer,
                   const char *name, const char *path, char **real,
                   struct img_error *err);
/* May a file be made there that is not there yet? */
int img_policy_ask_new(const struct img_open_options *opts,
                       const char *referrer, const char *name,
                       const char *path, struct img_error *err);
#endif
