/* vimg io: qemu-io's commands on one image; shared by its files. */
#ifndef IO_H
#define IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include <libimg.h>

#include "open.h"

struct io_aio;                  /* requests in flight */

struct io {
    struct img_disk *disk;      /* NULL = none is open */
    struct open_how how;        /* how it was opened */
    char *name, *cache;         /* texts of ours; how.cache is this one */
    bool read_only, copy_on_read;
    char *scratch;              /* overlay of -s; removed at close */
    struct io_aio *aio;
    bool quit;
};

struct io_command {
    const char *name, *other;   /* other: short name or NULL */
    int min_args, max_args;     /* -1 = any number */
    bool needs_disk;
    const char *usage;          /* what follows the name */
    const char *summary;
    const char *details;        /* of help NAME; NULL = none */
    /* argv[0] is the name.  0, or -1 after complaining. */
    int (*run)(struct io *io, int argc, char **argv);
};

extern const struct io_command io_commands[];       /* ends with name NULL */
void io_usage(const struct io_command *cmd);
const struct io_command *io_find(const char *name);

/* iobase.c */
enum { IO_TEXT = 64 };
char *io_size(double size, char buf[IO_TEXT]);      /* "1.5 MiB" */
/* Parses an argument of a command; complains on standard output. */
bool io_number(const char *text, uint64_t *value);
bool io_length(const char *text, uint64_t *value);  /* at most 2 GiB - 512 */
bool io_pattern(const char *text, int *pattern);
void io_report(const char *verb, const struct timespec *start, uint64_t off,
               uint64_t count, uint64_t total, unsigned ops, bool machine);
void io_dump(const char *buf, size_t len, uint64_t off);
/* Complains of a failed request in qemu-io's words; returns -1. */
int io_failed(const char *verb, int code, const char *message);

/* iorw.c */
int io_read(struct io *io, int argc, char **argv);
int io_readv(struct io *io, int argc, char **argv);
int io_write(struct io *io, int argc, char **argv);
int io_writev(struct io *io, int argc, char **argv);
bool io_may_write(const struct io *io);

/* ioaio.c */
int io_aio_read(struct io *io, int argc, char **argv);
int io_aio_write(struct io *io, int argc, char **argv);
int io_aio_flush(struct io *io, int argc, char **argv);
/* Reports what is complete; all: waits until everything is. */
void io_aio_poll(struct io *io, bool all);
void io_aio_close(struct io *io);

/* iomisc.c */
int io_alloc(struct io *io, int argc, char **argv);
int io_map(struct io *io, int argc, char **argv);
int io_length_command(struct io *io, int argc, char **argv);
int io_info(struct io *io, int argc, char **argv);
int io_truncate(struct io *io, int argc, char **argv);
int io_discard(struct io *io, int argc, char **argv);
int io_flush(struct io *io, int argc, char **argv);
int io_sleep(struct io *io, int argc, char **argv);

/* ioopen.c */
int io_open(struct io *io, int argc, char **argv);
int io_close(struct io *io, int argc, char **argv);
int io_reopen(struct io *io, int argc, char **argv);
/* how and flags are filled in; takes copies of name and how.cache. */
int io_open_named(struct io *io, const char *name, bool scratch);

#endif
