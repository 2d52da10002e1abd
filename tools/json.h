/* JSON output in qemu-img's style, over jansson. */
#ifndef JSON_H
#define JSON_H

#include <jansson.h>
#include <stdint.h>

/* These exit when memory is out. */
json_t *json_new_object(void);
json_t *json_new_array(void);
void json_put(json_t *object, const char *key, json_t *value);
void json_add(json_t *array, json_t *value);
/* Bytes that are not UTF-8 become U+FFFD. */
void json_put_text(json_t *object, const char *key, const char *text);
void json_put_number(json_t *object, const char *key, uint64_t number);
void json_put_bool(json_t *object, const char *key, int flag);
json_t *json_from_text(const char *text);

/* Prints with four spaces per level and a newline, and drops the value. */
void json_print(json_t *value);
/* A quoted string, for output that is built by hand. */
void json_print_text(const char *text);

#endif
