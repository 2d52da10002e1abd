/* Replays files, or folders of files, through a fuzz target, so that what a
 * fuzzer once found stays tested with any compiler.  Also spoils each file a
 * few thousand times in ways that a number reproduces: --spoil N,
 * or for as long as is asked for: --seconds N. */
#include "fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { MAX_FILE = 4 << 20 };

static unsigned long spoils, first, inputs;

static uint64_t mix(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    return z ^ (z >> 29);
}

/* Changes up to four words. */
static void spoil(uint8_t *p, size_t len, uint64_t seed)
{
    static const uint8_t values[] = { 0, 1, 2, 0x7f, 0x80, 0xff };

    for (unsigned n = 1 + seed % 4; n && len > 8; n--) {
        size_t off = mix(&seed) % (mix(&seed) % 2 ? len : 512 < len ? 512
                                                                   : len);
        size_t width = 1u << mix(&seed) % 4;

        for (size_t i = 0; i < width && off + i < len; i++)
            p[off + i] = mix(&seed) % 3 ? values[mix(&seed) % 6]
                                        : (uint8_t)mix(&seed);
    }
}

static int replay(const char *path)
{
    uint8_t *good, *bad;
    size_t len;
    FILE *f = fopen(path, "rb");

    if (!f) {
        perror(path);
        return 1;
    }
    good = malloc(MAX_FILE);
    len = good ? fread(good, 1, MAX_FILE, f) : 0;
    fclose(f);
    for (unsigned long i = 0; good && i <= spoils; i++) {
        bad = malloc(len ? len : 1);
        if (!bad)
            break;
        memcpy(bad, good, len);
        if (i)
            spoil(bad, len, first + i);
        LLVMFuzzerTestOneInput(bad, len);
        inputs++;
        free(bad);
    }
    free(good);
    return 0;
}

static int replay_all(const char *path)
{
    struct dirent *e;
    struct stat st;
    char name[4096];
    int bad = 0;
    DIR *d;

    if (stat(path, &st) < 0) {
        perror(path);
        return 1;
    }
    if (!S_ISDIR(st.st_mode))
        return replay(path);
    d = opendir(path);
    if (!d)
        return 1;
    while ((e = readdir(d))) {
        if (e->d_name[0] == '.')
            continue;
        snprintf(name, sizeof(name), "%s/%s", path, e->d_name);
        bad |= replay(name);
    }
    closedir(d);
    return bad;
}

int main(int argc, char **argv)
{
    int bad = argc < 2, i = 1;

    time_t end = 0;

    if (argc > 2 && !strcmp(argv[1], "--spoil")) {
        spoils = strtoul(argv[2], NULL, 0);
        i = 3;
    } else if (argc > 2 && !strcmp(argv[1], "--seconds")) {
        end = time(NULL) + strtol(argv[2], NULL, 0);
        spoils = 500;
        i = 3;
    }
    do {
        for (int k = i; k < argc; k++)
            bad |= replay_all(argv[k]);
        first += spoils;
    } while (!bad && time(NULL) < end);
    printf("%lu inputs\n", inputs);
    return bad || !inputs;
}
