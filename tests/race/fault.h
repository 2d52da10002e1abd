/* One file operation of a run that fails.
 *
 * Put under the library by the linker, like the scheduler: every read, write,
 * sync, change of length or of space and every question for holes is also a
 * place where another thread may get in between, and the n-th of them while
 * there are choices returns EIO, once; a write may have done half of it.
 */
#ifndef TESTS_RACE_FAULT_H
#define TESTS_RACE_FAULT_H
#include <stdbool.h>

/* From the next run on the n-th fails; 0 = none. */
void fault_plan(unsigned long n);
void fault_begin(void);         /* a run begins */

/* Of this run: how many there were, and what failed (NULL: nothing). */
unsigned long fault_seen(void);
const char *fault_came(void);
bool fault_was_sync(void);
#endif
