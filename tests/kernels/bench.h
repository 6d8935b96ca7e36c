#ifndef TESTS_KERNELS_BENCH_H
#define TESTS_KERNELS_BENCH_H

#include <stdbool.h>

/* Measures every kernel of the tiers that settings name whose line holds all of `words`, and prints a table. False:
 * memory is short, which has been said. */
bool bench_run(char **words, int count);

#endif
