#include "record.h"
#include "base/checked.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

void record_begin(struct record *r)
{
    memset(r, 0, sizeof *r);
    pthread_mutex_init(&r->lock, NULL);
}

void record_end(struct record *r)
{
    for (size_t i = 0; i < r->n; i++)
        free(r->log[i].data);
    for (unsigned i = 0; i < r->n_files; i++)
        free(r->first[i]);
    for (unsigned i = 0; i < r->n_names; i++)
        free(r->name[i]);
    free(r->log);
    pthread_mutex_destroy(&r->lock);
}

int record_watch(struct record *r, const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    unsigned i = r->n_files;
    struct stat st;

    if (fd < 0 || i == RECORD_FILES || fstat(fd, &st) < 0)
        abort();
    r->device[i] = st.st_dev;
    r->inode[i] = st.st_ino;
    r->first_len[i] = (uint64_t)st.st_size;
    r->first[i] = malloc((size_t)st.st_size + 1);
    if (!r->first[i] || read(fd, r->first[i], (size_t)st.st_size) !=
                        (ssize_t)st.st_size)
        abort();
    close(fd);
    r->n_files++;
    return (int)i;
}

/* An empty file, or a folder, of which only syncs count. */
static unsigned watch_empty(struct record *r, const struct stat *st)
{
    unsigned i = r->n_files;

    if (i == RECORD_FILES)
        abort();
    r->device[i] = st->st_dev;
    r->inode[i] = st->st_ino;
    r->n_files++;
    return i;
}

int record_watch_name(struct record *r, const char *path, int file)
{
    unsigned i = r->n_names;
    struct stat st;
    char *folder;

    if (i == RECORD_NAMES)
        abort();
    r->name[i] = strdup(path);
    folder = strdup(path);
    if (!folder || !r->name[i] || stat(dirname(folder), &st) < 0)
        abort();
    free(folder);
    r->had[i] = (unsigned)file;
    r->folder[i] = watch_empty(r, &st);
    r->n_names++;
    return (int)i;
}

void record_new_file(struct record *r, int fd)
{
    struct stat st;

    if (r && r->n_names && syscall(SYS_fstat, fd, &st) == 0)
        watch_empty(r, &st);
}

/* ---- the log ----------------------------------------------------------- */

/* The number of the file behind fd, and how long it is. */
static int file_of(struct record *r, int fd, uint64_t *len)
{
    struct stat st;

    if (!r || syscall(SYS_fstat, fd, &st) < 0)
        return RECORD_NONE;
    *len = (uint64_t)st.st_size;
    for (unsigned i = 0; i < r->n_files; i++)
        if (r->device[i] == st.st_dev && r->inode[i] == st.st_ino)
            return (int)i;
    return RECORD_NONE;
}

/* Logged before it happens: from then on it may be there. */
static size_t add(struct record *r, int file, struct record_entry e)
{
    size_t i;

    pthread_mutex_lock(&r->lock);
    if (r->n == r->room) {
        r->room = r->room ? 2 * r->room : 64;
        r->log = realloc(r->log, r->room * sizeof *r->log);
        if (!r->log)
            abort();
    }
    i = r->n++;
    e.file = (unsigned)file;
    e.begun = ++r->clock;
    e.ended = 0;
    r->log[i] = e;
    pthread_mutex_unlock(&r->lock);
    return i;
}

/* What failed may have happened all the same. */
void record_ended(struct record *r, size_t i, bool done)
{
    if (!r || i == (size_t)RECORD_NONE)
        return;
    pthread_mutex_lock(&r->lock);
    if (done)
        r->log[i].ended = ++r->clock;
    else if (errno == EOPNOTSUPP || errno == EINTR)
        r->log[i].kind = RECORD_SYNC;   /* refused: it did not happen */
    pthread_mutex_unlock(&r->lock);
}

size_t record_begin_write(struct record *r, int fd, const struct iovec *iov,
                          int n, off_t off)
{
    uint64_t size, len = 0;
    int file = file_of(r, fd, &size);
    uint8_t *data;

    if (file < 0)
        return (size_t)RECORD_NONE;
    for (int i = 0; i < n; i++)
        len += iov[i].iov_len;
    data = malloc(len + 1);
    if (!data)
        abort();
    len = 0;
    for (int i = 0; i < n; i++) {
        memcpy(data + len, iov[i].iov_base, iov[i].iov_len);
        len += iov[i].iov_len;
    }
    return add(r, file, (struct record_entry) {
        .kind = RECORD_WRITE, .off = (uint64_t)off, .len = len, .data = data
    });
}

size_t record_begin_space(struct record *r, int fd, int mode, off_t off,
                          off_t len)
{
    uint64_t size, end = (uint64_t)off + (uint64_t)len;
    int file = file_of(r, fd, &size);
    bool grows = !(mode & FALLOC_FL_KEEP_SIZE);

    if (file < 0)
        return (size_t)RECORD_NONE;
    if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
        return add(r, file, (struct record_entry) {
            .kind = RECORD_ZERO, .grows = grows, .off = (uint64_t)off,
            .len = (uint64_t)len
        });
    return !grows || end <= size ? (size_t)RECORD_NONE :
        add(r, file, (struct record_entry) {
            .kind = RECORD_TRUNCATE, .len = end
        });
}

size_t record_begin_truncate(struct record *r, int fd, off_t len)
{
    uint64_t size;
    int file = file_of(r, fd, &size);

    return file < 0 ? (size_t)RECORD_NONE :
        add(r, file, (struct record_entry) {
            .kind = RECORD_TRUNCATE, .len = (uint64_t)len
        });
}

size_t record_begin_sync(struct record *r, int fd)
{
    uint64_t size;
    int file = file_of(r, fd, &size);

    return file < 0 ? (size_t)RECORD_NONE :
        add(r, file, (struct record_entry) { .kind = RECORD_SYNC });
}

size_t record_begin_rename(struct record *r, const char *from,
                           const char *to)
{
    uint64_t size;
    int fd, file;

    for (unsigned i = 0; r && i < r->n_names; i++) {
        if (strcmp(r->name[i], to))
            continue;
        fd = (int)syscall(SYS_openat, AT_FDCWD, from, O_PATH | O_CLOEXEC);
        file = file_of(r, fd, &size);
        close(fd);
        if (file < 0)
            abort();
        return add(r, (int)r->folder[i], (struct record_entry) {
            .kind = RECORD_RENAME, .off = i, .len = (uint64_t)file
        });
    }
    return (size_t)RECORD_NONE;
}

/* ---- states ------------------------------------------------------------ */

bool record_is_durable(const struct record *r, size_t i, size_t n)
{
    const struct record_entry *e = &r->log[i];

    for (size_t k = i + 1; k < n && e->ended; k++) {
        const struct record_entry *s = &r->log[k];

        if (s->kind == RECORD_SYNC && s->file == e->file && s->ended &&
            s->begun > e->ended)
            return true;
    }
    return false;
}

struct state {
    uint8_t *data;
    uint64_t len, room;         /* what is between them is zero */
};

static void set_length(struct state *s, uint64_t len)
{
    if (len > s->room) {
        uint64_t room = img_round_up(len + len / 4, 65536);

        s->data = realloc(s->data, (size_t)room);
        if (!s->data)
            abort();
        memset(s->data + s->room, 0, (size_t)(room - s->room));
        s->room = room;
    }
    if (len < s->len)
        memset(s->data + len, 0, (size_t)(s->len - len));
    s->len = len;
}

/* Sectors are the disk's, not the request's. */
static void apply(struct state *s, const struct record_entry *e,
                  size_t number, record_choose_fn *choose, void *opaque)
{
    uint64_t end = e->off + e->len, next;

    if (e->kind == RECORD_TRUNCATE) {
        if (!choose || choose(opaque, number, RECORD_LENGTH))
            set_length(s, e->len);
        return;
    }
    if (end > s->len && (e->kind == RECORD_WRITE || e->grows) &&
        (!choose || choose(opaque, number, RECORD_LENGTH)))
        set_length(s, end);
    for (uint64_t at = e->off; at < IMG_MIN(end, s->len); at = next) {
        uint64_t upto;

        next = IMG_MIN(img_round_down(at, RECORD_SECTOR) + RECORD_SECTOR,
                       end);
        upto = IMG_MIN(next, s->len);
        if (choose && !choose(opaque, number,
                              (int64_t)(at / RECORD_SECTOR)))
            continue;
        if (e->kind == RECORD_WRITE)
            memcpy(s->data + at, e->data + (at - e->off),
                   (size_t)(upto - at));
        else
            memset(s->data + at, 0, (size_t)(upto - at));
    }
}

static bool concerns(const struct record_entry *e, unsigned file)
{
    return e->file == file && e->kind != RECORD_SYNC;
}

bool record_has_changed(const struct record *r, unsigned file)
{
    for (size_t i = 0; i < r->n; i++)
        if (concerns(&r->log[i], file))
            return true;
    return false;
}

void record_point_begin(struct record_point *p, const struct record *r,
                        unsigned file, size_t n)
{
    struct state s = { 0 };
    size_t i;

    *p = (struct record_point){ .r = r, .file = file, .n = n };
    set_length(&s, r->first_len[file]);
    if (s.len)
        memcpy(s.data, r->first[file], (size_t)s.len);
    for (i = 0; i < n; i++) {
        if (!concerns(&r->log[i], file))
            continue;
        if (!record_is_durable(r, i, n))
            break;
        apply(&s, &r->log[i], i, NULL, NULL);
    }
    p->from = i;
    p->data = s.data;
    p->len = s.len;
    for (; i < n; i++)
        p->open += concerns(&r->log[i], file) &&
                   !record_is_durable(r, i, n);
}

void record_point_end(struct record_point *p)
{
    free(p->data);
}

void record_state(const struct record_point *p, record_choose_fn *choose,
                  void *opaque, uint8_t **data, uint64_t *len)
{
    struct state s = { 0 };

    set_length(&s, p->len);
    if (s.len)
        memcpy(s.data, p->data, (size_t)s.len);
    for (size_t i = p->from; i < p->n; i++)
        if (concerns(&p->r->log[i], p->file))
            apply(&s, &p->r->log[i], i,
                  record_is_durable(p->r, i, p->n) ? NULL : choose, opaque);
    *data = s.data;
    *len = s.len;
}

unsigned record_named(const struct record *r, unsigned name, size_t n,
                      record_choose_fn *choose, void *opaque)
{
    unsigned file = r->had[name];

    for (size_t i = 0; i < n; i++) {
        const struct record_entry *e = &r->log[i];

        if (e->kind == RECORD_RENAME && e->off == name &&
            (record_is_durable(r, i, n) || choose(opaque, i, 0)))
            file = (unsigned)e->len;
    }
    return file;
}
