/* Lists of strings, and "key=value" settings. */
#ifndef IMG_BASE_STRINGS_H
#define IMG_BASE_STRINGS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct img_error;
struct img_option_info;

struct img_strings {
    char **list;                /* ends with NULL once it has an entry */
    size_t n;
};

int img_strings_addf(struct img_strings *, struct img_error *err,
                     const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void img_strings_free(struct img_strings *);

/* The last value of key in settings ("key=value", ends with NULL; NULL is
 * fine), or NULL.  A setting without '=' has the value "on". */
const char *img_setting(const char *const *settings, const char *key);
/* These leave *value alone where key is not set. */
int img_setting_bool(const char *const *settings, const char *key,
                     bool *value, struct img_error *err);
/* A number of bytes with an optional suffix b, k, M, G, T, P, E (1024s). */
int img_setting_size(const char *const *settings, const char *key,
                     uint64_t *value, struct img_error *err);
int img_setting_number(const char *const *settings, const char *key,
                       uint64_t *value, struct img_error *err);
/* names ends with NULL; *value becomes the index. */
int img_setting_choice(const char *const *settings, const char *key,
                       const char *const *names, unsigned *value,
                       struct img_error *err);
/* Refuses a key that is not in the table. */
int img_settings_check(const char *const *settings,
                       const struct img_option_info *known,
                       const char *format, struct img_error *err);
bool img_parse_size(const char *text, uint64_t *value);
#endif
