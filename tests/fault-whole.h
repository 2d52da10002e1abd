/* Whole-image operations as lines of text, and the table of them that
 * fault-whole.c runs. */
#ifndef TESTS_FAULT_WHOLE_H
#define TESTS_FAULT_WHOLE_H
#include "unit/unit.h"
#include "unit/scratch.h"
#include "libimg.h"

enum {
    RESUMES = 1,                /* where it failed, it can be run again */
    DAMAGED = 2,                /* the images are, until it is done */
    FACTS = 4,                  /* what info says of the format is judged */
    VERDICT = 16,               /* a file that cannot be read has one, too */
    UNTIES = 32,                /* if it fails, "o.vmdk" may have to be told
                                   that it rests on "m.vmdk" */
    REFUSED = 8,                /* it cannot be done, and says so */
};

/* Steps are separated by ';', their words by blanks.  The format of a file is
 * the end of its name.  Files are in the working folder. */
struct recipe {
    const char *name;
    const char *prepare;        /* makes the images; without faults */
    const char *run;
    unsigned flags;
};

extern const struct recipe recipes[];
extern const size_t n_recipes;

/* Runs steps until one fails; *digest: what they told. */
int run_steps(const char *steps, uint64_t *digest, struct img_error *err);

/* What is being tried, for messages. */
extern char fault_run[200];

const char *format_of(const char *file);
uint64_t hash_bytes(uint64_t h, const void *data, size_t len);
uint64_t hash_text(uint64_t h, const char *text);
uint64_t hash_specific(uint64_t h, const struct img_value *v);
#endif
