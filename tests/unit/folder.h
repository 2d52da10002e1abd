/* A scratch folder for a test program, and images in it. */
#ifndef TESTS_UNIT_FOLDER_H
#define TESTS_UNIT_FOLDER_H
#include "unit.h"

static char folder[64];
static struct img_error err;

static inline char *in_folder(const char *name)
{
    static char path[8][300];
    static int turn;

    turn = (turn + 1) % 8;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

static int folder_set_up(void **state)
{
    snprintf(folder, sizeof folder, "/tmp/vimg-unit-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int folder_tear_down(void **state)
{
    char cmd[100];

    snprintf(cmd, sizeof cmd, "rm -rf %s", folder);
    return system(cmd);
}

/* size 0 = that of the backing file. */
static inline int make(const char *name, const char *format, uint64_t size,
                       const char *backing, const char *backing_format,
                       unsigned flags, const char *setting)
{
    const char *settings[] = { setting, NULL };
    struct img_create_options o = IMG_CREATE_OPTIONS;

    o.format = format;
    o.disk_size = size;
    o.backing = backing;
    o.backing_format = backing_format;
    o.flags = flags | IMG_CREATE_NO_SYNC;
    o.settings = settings;
    return img_create(in_folder(name), &o, &err);
}

static inline struct img_disk *open_as(const char *name, const char *format,
                                       unsigned flags)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_disk *d;

    o.format = format;
    o.flags = flags;
    assert_ok(img_open(in_folder(name), &o, &d, &err), err);
    return d;
}

/* What opening it says. */
static inline int try_open(const char *name, const char *format,
                           unsigned flags)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_disk *d = NULL;
    int r;

    o.format = format;
    o.flags = flags;
    r = img_open(in_folder(name), &o, &d, &err);
    img_close(d, NULL);
    return r;
}

#define assert_says(words) do {                                           \
        if (!strstr(err.message, words))                                  \
            fail_msg("\"%s\" does not say \"%s\"", err.message, words);   \
    } while (0)
#endif
