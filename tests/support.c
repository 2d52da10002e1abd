/* What the test programs share; see support.h. */
#include "support.h"

#include <dirent.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* splitmix64, by Sebastiano Vigna, https://prng.di.unimi.it (public
 * domain): every seed is a good one. */
uint64_t rng_next(struct rng *rng)
{
    uint64_t z = rng->state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t rng_below(struct rng *rng, uint64_t n)
{
    return rng_next(rng) % n;
}

void rng_fill(struct rng *rng, void *buf, size_t len)
{
    uint8_t *p = buf;

    while (len) {
        uint64_t x = rng_next(rng);
        size_t n = len < sizeof(x) ? len : sizeof(x);

        memcpy(p, &x, n);
        p += n;
        len -= n;
    }
}

void *must_alloc(size_t len)
{
    void *p = malloc(len ? len : 1);

    if (!p) {
        fprintf(stderr, "no memory for %zu bytes\n", len);
        exit(99);
    }
    return p;
}

const char *make_scratch(char *buf, size_t len)
{
    const char *top = getenv("TMPDIR");

    snprintf(buf, len, "%s/vimg-test.XXXXXX", top && *top ? top : "/tmp");
    if (!mkdtemp(buf)) {
        perror(buf);
        exit(99);
    }
    return buf;
}

void remove_scratch(const char *dir)
{
    DIR *d = opendir(dir);
    struct dirent *e;

    if (!d)
        return;
    while ((e = readdir(d)))
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
            unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    rmdir(dir);
}

/* Spawned, not forked: copying the tables of a large process costs more than
 * what it runs. */
int run_program(const char *output, const char *const *argv)
{
    posix_spawn_file_actions_t actions;
    int status, r;
    pid_t pid;

    if (posix_spawn_file_actions_init(&actions))
        return 127;
    r = posix_spawn_file_actions_addopen(&actions, 1,
                                         output ? output : "/dev/null",
                                         O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(&actions, 1, 2);
    if (r == 0)
        r = posix_spawnp(&pid, argv[0], &actions, NULL, (char *const *)argv,
                         environ);
    posix_spawn_file_actions_destroy(&actions);
    if (r || waitpid(pid, &status, 0) < 0)
        return 127;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

bool have_program(const char *name)
{
    return run_program(NULL, (const char *[]) { name, "--version", NULL }) ==
           0;
}

bool all_zero(const void *buf, size_t len)
{
    const uint8_t *p = buf;

    return !len || (!p[0] && !memcmp(p, p + 1, len - 1));
}

static bool any_begins(const char *const *settings, const char *with)
{
    for (; *settings; settings++)
        if (!strncmp(*settings, with, strlen(with)))
            return true;
    return false;
}

bool qemu_reads(const char *format, const char *const *settings,
                bool backing)
{
    return strcmp(format, "vdi") ||
           (!backing && !any_begins(settings, "block_size="));
}

bool qemu_creates(const char *format, const char *const *settings,
                  bool backing)
{
    return qemu_reads(format, settings, backing) &&
           !any_begins(settings, "subformat=vmfs");
}
