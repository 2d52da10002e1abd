/* What the parts of the bench share: the run that is going on, its history,
 * its files. */
#ifndef TESTS_RACE_BENCH_H
#define TESTS_RACE_BENCH_H
#include "race.h"
#include <libimg.h>

#include <stddef.h>

enum { EVENTS = 32, GROWN = 160, SHRUNK = 96, BASE_BYTE = 0xbb,
       FIRST_BYTE = 0x10, HOLE = 64, HOLE_END = 96 };

/* failed: some of it may have been done, or nothing. */
struct event {
    enum what what;
    unsigned off, len;          /* quarters */
    uint8_t value;
    uint64_t began, ended;
    bool failed;
};

/* A file as it is before the actors begin. */
struct saved { uint8_t *bytes; size_t len; };

struct bench {
    const struct shape *shape;
    const struct work *work;
    unsigned quarter;           /* bytes */
    char dir[100], path[140], base[140];
    char other[140];            /* to copy from, or to rest on */
    char twin[140];             /* shows what the disk does */
    struct saved image, below;
    struct img_disk *disk, *from, *same;
    struct event events[EVENTS];
    unsigned n, n_before;
    struct flushed { uint64_t began, ended; } flushed[4];
    unsigned n_flushed, n_failed;
    uint64_t time;
    uint64_t durable;           /* what ended before is on the disk, */
    bool lost;                  /* and of the rest nobody knows */
    uint8_t applied[GROWN];     /* what the snapshot of `before` shows */
    uint8_t shown[GROWN];       /* what the disk shows before the actors */
    bool ok;
};

bool wrong(struct bench *b, const char *what, const char *why);

/* seen.c: what may be seen. */
struct event *add_event(struct bench *b, enum what what, unsigned off,
                        unsigned len, uint8_t value);
unsigned quarters(const struct bench *b, const struct img_disk *disk);
/* Reads and explains; ended 0 = now, and a read that fails may. */
bool observe(struct bench *b, const char *what, struct img_disk *disk,
             unsigned off, unsigned len, uint64_t began, uint64_t ended);
bool check_image(struct bench *b, const char *what, struct img_disk *disk,
                 bool leaks);
/* The error of a step: the fault's, or is there something wrong? */
bool is_excused(struct bench *b, const char *what,
                const struct img_error *err);

/* files.c */
uint8_t other_byte(unsigned q);
void bench_make_files(struct bench *b);
void bench_note_disk(struct bench *b, uint8_t *values);
void bench_make_twin(struct bench *b);
void bench_save(struct saved *s, const char *path);
bool bench_restore(struct bench *b, const struct saved *s, const char *path);
void bench_copy_file(struct bench *b, const char *from, const char *to);
void bench_fatal(int r, const struct img_error *err);
bool bench_open(struct bench *b, const char *path, const char *format,
                unsigned flags, const char *snapshot, struct img_disk **disk,
                struct img_error *err);

/* whole.c: steps that work on whole images, with two threads. */
bool is_whole(enum what what);
int change_whole(struct bench *b, enum what what, struct img_error *err);
bool compare_whole(struct bench *b);

#endif
