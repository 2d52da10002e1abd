/* What the test programs share: random numbers that a seed reproduces, a
 * scratch folder, the peer's programs. */
#ifndef TESTS_SUPPORT_H
#define TESTS_SUPPORT_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <libimg.h>

struct rng {
    uint64_t state;
};

uint64_t rng_next(struct rng *rng);
uint64_t rng_below(struct rng *rng, uint64_t n);    /* n > 0 */
void rng_fill(struct rng *rng, void *buf, size_t len);

void *must_alloc(size_t len);

/* A new scratch folder, below TMPDIR or /tmp; remove_scratch empties it and
 * takes it away. */
const char *make_scratch(char *buf, size_t len);
void remove_scratch(const char *dir);

/* Exit code of a program, its output in the file `output` (NULL: dropped);
 * 127 where there is no such program. */
int run_program(const char *output, const char *const *argv);
bool have_program(const char *name);

bool all_zero(const void *buf, size_t len);

/* What QEMU 7.2 has: no differencing VDI, and of VDI only blocks of 1 MiB;
 * VMDK's vmfs... it reads only. */
bool qemu_reads(const char *format, const char *const *settings,
                bool backing);
bool qemu_creates(const char *format, const char *const *settings,
                  bool backing);

#endif
