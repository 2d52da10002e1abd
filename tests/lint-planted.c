/* Never compiled into anything: a defect for each tool of make lint to find.
 * A tool that misses its own fails make lint. */
#include <stdlib.h>
#include <string.h>

int planted_null(int wanted);
int planted_bound(void);
void planted_free(void *block);

/* clang-tidy: the pointer is null where it is followed */
int planted_null(int wanted)
{
    int *p = wanted ? &wanted : NULL;
    return wanted ? 0 : *p;
}

/* cppcheck: one behind the end */
int planted_bound(void)
{
    int v[4];

    memset(v, 0, sizeof v);
    return v[4];
}

/* gcc -fanalyzer: used after it was freed */
void planted_free(void *block)
{
    free(block);
    memset(block, 0, 4);
}
