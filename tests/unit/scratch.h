/* A folder for a test's files, gone when the test is over. */
#ifndef TESTS_SCRATCH_H
#define TESTS_SCRATCH_H
#include <ftw.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

static char scratch[PATH_MAX - 300];

static inline int scratch_begin(void **state)
{
    const char *base = getenv("TMPDIR");

    snprintf(scratch, sizeof scratch, "%s/vimg-unit.XXXXXX",
             base ? base : "/tmp");
    return mkdtemp(scratch) ? 0 : -1;
}

static inline int scratch_remove(const char *path, const struct stat *st,
                                 int type, struct FTW *ftw)
{
    return remove(path);
}

static inline int scratch_end(void **state)
{
    return nftw(scratch, scratch_remove, 20, FTW_DEPTH | FTW_PHYS);
}

/* Valid until the eighth next call. */
static inline const char *in_scratch(const char *name)
{
    static char paths[8][PATH_MAX];
    static int next;
    char *path = paths[next++ % 8];

    snprintf(path, PATH_MAX, "%s/%s", scratch, name);
    return path;
}

/* How many files there are, hidden ones too. */
static int scratch_count;

static inline int scratch_see(const char *path, const struct stat *st,
                              int type, struct FTW *ftw)
{
    scratch_count += type != FTW_D;
    return 0;
}

static inline int scratch_files(void)
{
    scratch_count = 0;
    nftw(scratch, scratch_see, 20, FTW_PHYS);
    return scratch_count;
}
#endif
