#ifndef MX_BENCH_MEASURE_H
#define MX_BENCH_MEASURE_H

#include <stddef.h>

#include "base/arena.h"
#include "base/threads.h"

/* What the machine's memory can do at most, measured in the process that measures mxrun, so that both meet the same
 * machine. */

/* A way of reading memory from front to back: each thread reads `streams` places side by side, `chunk` bytes from each
 * in turn. */
typedef enum mx_fetch { MX_FETCH_NONE, MX_FETCH_L1, MX_FETCH_L2, MX_FETCH_ONCE } mx_fetch; /* prefetch into */
typedef struct mx_read_way {
    int streams;
    int distance; /* bytes that prefetching is ahead */
    int chunk;    /* a multiple of 256 */
    mx_fetch fetch;
} mx_read_way;

/* Ways of which one or the other has been the fastest on the machines seen so far. */
enum { MX_READ_WAYS = 17 };
extern const mx_read_way mx_read_ways[MX_READ_WAYS];
void mx_read_way_name(char out[60], const mx_read_way *way); /* "8 streams of 256 B, prefetch 2048" */

/* Bytes per second of reading buf[0..size) once with every thread of the pool, with AVX-512 or AVX2 loads where they
 * exist. `size` should be many times the largest cache. */
double mx_measure_read(mx_pool *pool, const void *buf, size_t size, const mx_read_way *way);

/* The best of a few good ways, over buf[0..size). */
double mx_measure_read_best(mx_pool *pool, const void *buf, size_t size);

/* ---- bandwidth in short samples ---------------------------------------------------------------------------------- */
/* A buffer much larger than the caches, on huge pages. Samples walk through it, so that none meets in a cache what an
 * earlier one has read. */
typedef struct mx_bandwidth {
    mx_arena buffer;
    size_t at; /* where the next sample begins */
} mx_bandwidth;

/* The two ways of reading that are the fastest with one pool, and how fast they were last. */
typedef struct mx_bandwidth_ways {
    mx_read_way way[2];
    double rate; /* bytes a second */
} mx_bandwidth_ways;

/* Bytes that mx_bandwidth_open takes. */
size_t mx_bandwidth_bytes(void);
mx_status mx_bandwidth_open(mx_pool *pool, mx_bandwidth *out, mx_error *error);
/* Tries all ways with this pool for about `seconds`. */
void mx_bandwidth_choose(const mx_bandwidth *b, mx_pool *pool, double seconds, mx_bandwidth_ways *out);
/* Bytes per second of the better of the two ways in about `seconds` of reading, half of it each; less on a machine that
 * reads the whole buffer sooner. */
double mx_bandwidth_sample(mx_bandwidth *b, mx_bandwidth_ways *ways, mx_pool *pool, double seconds);
void mx_bandwidth_close(mx_bandwidth *b); /* all zeros is allowed */

int mx_compare_doubles(const void *a, const void *b);
/* Sorts values[0..n) and returns the median; 0 of none. */
double mx_median(double *values, int n);

#endif
