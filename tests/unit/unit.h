/* What every unit test starts with. */
#ifndef TESTS_UNIT_H
#define TESTS_UNIT_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "libimg.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/error.h"

#define assert_ok(call, err) do {                                         \
        int unit_r = (call);                                              \
        if (unit_r < 0)                                                   \
            fail_msg("%s: %d, %s", #call, unit_r, (err).message);         \
    } while (0)

/* The same numbers in every run. */
static inline uint32_t unit_random(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}
#endif
