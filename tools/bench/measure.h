#ifndef MX_BENCH_MEASURE_H
#define MX_BENCH_MEASURE_H

#include <stddef.h>

#include "base/threads.h"

/* What the machine can do at most, measured in the process that measures mxrun, so that both meet the same machine. */

/* Bytes per second of reading buf[0..size) once with every thread of the pool: each thread reads `streams` places at
 * a time, 256 bytes from each in turn, `prefetch` bytes ahead (0: none). Uses AVX-512 or AVX2 loads where they exist.
 * `size` should be many times the largest cache. */
double mx_measure_read(mx_pool *pool, const void *buf, size_t size, int streams, int prefetch);

/* The best of the stream counts and prefetch distances that paid on the machines seen so far, over buf[0..size). */
double mx_measure_read_best(mx_pool *pool, const void *buf, size_t size);

int mx_compare_doubles(const void *a, const void *b);
/* Sorts values[0..n) and returns the median. */
double mx_median(double *values, int n);

#endif
