/* --object TYPE,id=ID,KEY=VALUE,...: named groups of settings. */
#ifndef NBD_OBJECTS_H
#define NBD_OBJECTS_H
#include <stdbool.h>

struct img_error;

struct nbd_settings {           /* "key=value,key=value", ",," is a comma */
    char **keys, **values;
    unsigned n;
};
/* first: the key of a part without '=' at the front, NULL = there is none;
 * later parts without '=' mean "on". */
int nbd_settings_parse(struct nbd_settings *, const char *text,
                       const char *first, struct img_error *);
/* Both are copied. */
int nbd_settings_add(struct nbd_settings *, const char *key,
                     const char *value, struct img_error *);
/* NULL = it is not there. */
const char *nbd_settings_get(const struct nbd_settings *, const char *key);
/* Takes "on", "yes", "true" and their opposites. */
int nbd_settings_bool(const struct nbd_settings *, const char *key,
                      bool *value, struct img_error *);
void nbd_settings_free(struct nbd_settings *);

struct nbd_objects {
    struct nbd_settings *list;
    unsigned n;
};
int nbd_objects_add(struct nbd_objects *, const char *text,
                    struct img_error *);
/* NULL = there is none of that id. */
const struct nbd_settings *nbd_objects_find(const struct nbd_objects *,
                                            const char *id);
void nbd_objects_free(struct nbd_objects *);

/* Fills in err and returns -code. */
int nbd_fail(struct img_error *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
#endif
