/* JSON output in qemu-img's style, over jansson. */
#include "json.h"
#include "vimg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

json_t *json_new_object(void)
{
    return need_memory(json_object());
}

json_t *json_new_array(void)
{
    return need_memory(json_array());
}

void json_put(json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, need_memory(value)) < 0)
        need_memory(NULL);
}

void json_add(json_t *array, json_t *value)
{
    if (json_array_append_new(array, need_memory(value)) < 0)
        need_memory(NULL);
}

/* Length of the well-formed UTF-8 character at s; 0 = there is none. */
static size_t utf8_length(const char *s)
{
    static const unsigned char lead[] = { 0x00, 0xc2, 0xe0, 0xf0, 0xf5 };
    size_t n = 0;
    json_t *probe;

    while (n < 4 && (unsigned char)*s >= lead[n])
        n++;
    if ((unsigned char)*s < 0x80)
        return 1;
    if (n < 2 || (unsigned char)*s >= lead[4] || strnlen(s, n) < n)
        return 0;
    probe = json_stringn(s, n);
    json_decref(probe);
    return probe ? n : 0;
}

json_t *json_from_text(const char *text)
{
    json_t *value = json_string(text);
    char *copy, *out;

    if (value)
        return value;
    copy = out = need_memory(malloc(3 * strlen(text) + 1));
    while (*text) {
        size_t n = utf8_length(text);

        memcpy(out, n ? text : "\xef\xbf\xbd", n ? n : 3);
        out += n ? n : 3;
        text += n ? n : 1;
    }
    *out = 0;
    value = need_memory(json_string(copy));
    free(copy);
    return value;
}

void json_put_text(json_t *object, const char *key, const char *text)
{
    json_put(object, key, json_from_text(text));
}

void json_put_number(json_t *object, const char *key, uint64_t number)
{
    json_put(object, key, json_integer((json_int_t)number));
}

void json_put_bool(json_t *object, const char *key, int flag)
{
    json_put(object, key, json_boolean(flag));
}

void json_print(json_t *value)
{
    json_dumpf(value, stdout, JSON_INDENT(4) | JSON_PRESERVE_ORDER);
    putchar('\n');
    json_decref(value);
}

void json_print_text(const char *text)
{
    json_t *value = json_from_text(text);

    json_dumpf(value, stdout, JSON_ENCODE_ANY);
    json_decref(value);
}
