#ifndef MX_BASE_THREADS_H
#define MX_BASE_THREADS_H

#include <stdint.h>

#include "base/status.h"

/* One pool of pinned threads that spin briefly between jobs, then sleep. The calling thread is thread 0 of every
 * job. One caller at a time. */
typedef struct mx_pool mx_pool;

/* threads = 0: mx_cpu_count(). */
mx_status mx_pool_create(int threads, mx_pool **out, mx_error *error);
void mx_pool_destroy(mx_pool *pool); /* NULL allowed */
int mx_pool_threads(const mx_pool *pool);

/* Calls fn(arg, begin, end, thread) for disjoint ranges that cover 0..n, each at most `grain` long, handed out on
 * demand; returns when all are done. Which thread gets which range is not defined: results must not depend on it.
 * Runs on the calling thread alone when n <= grain. Allocates nothing. */
typedef void mx_range_fn(void *arg, int64_t begin, int64_t end, int thread);
void mx_parallel_for(mx_pool *pool, int64_t n, int64_t grain, mx_range_fn *fn, void *arg);

#endif
