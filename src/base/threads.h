#ifndef MX_BASE_THREADS_H
#define MX_BASE_THREADS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/numa.h"
#include "base/status.h"

/* One pool of threads that spin briefly between jobs, then sleep. They are pinned to a core each where the pool is as
 * large as the set of cores, to their node's cores where it is bound to several nodes, and left to the scheduler
 * elsewhere. The calling thread is thread 0 of every job. One caller at a time. */
typedef struct mx_pool mx_pool;

enum { MX_POOL_NODES = 64 }; /* at most */

/* threads = 0: mx_cpu_count(). */
mx_status mx_pool_create(int threads, mx_pool **out, mx_error *error);
/* The same with threads bound to NUMA nodes where `numa` says so: thread 0 .. of the first, the next of the second, as
 * many of each as it has of the cores. mx_pool_create is MX_NUMA_OFF. */
mx_status mx_pool_create_on(int threads, mx_numa numa, mx_pool **out, mx_error *error);
void mx_pool_destroy(mx_pool *pool); /* NULL allowed */
int mx_pool_threads(const mx_pool *pool);
int mx_pool_nodes(const mx_pool *pool); /* NUMA nodes among which work is cut; 1: none */
/* The first of n things that is node's share, in proportion to its threads; node = mx_pool_nodes: n. */
int64_t mx_pool_share(const mx_pool *pool, int node, int64_t n);

/* Between these two calls the calling thread is pinned as thread 0, where the pool's threads are pinned at all;
 * afterwards it may go where it could before. One that may not use thread 0's core stays where it is, and may be in a
 * worker's way there. Pairs may be nested. */
void mx_pool_enter(mx_pool *pool);
void mx_pool_leave(mx_pool *pool);

/* Calls fn(arg, begin, end, thread) for disjoint ranges that cover 0..n, each at most `grain` long, handed out on
 * demand; returns when all are done. Which thread gets which range is not defined: results must not depend on it.
 * Runs on the calling thread alone when n <= grain. Allocates nothing. */
typedef void mx_range_fn(void *arg, int64_t begin, int64_t end, int thread);
void mx_parallel_for(mx_pool *pool, int64_t n, int64_t grain, mx_range_fn *fn, void *arg);
/* The same where the node's threads begin with the indices first[node] .. first[node + 1], of which first[0] is 0 and
 * first[mx_pool_nodes] is n; they take others' only when those are done. `shrinking`: a range is a quarter of what its
 * thread's share has left, if that is more than `grain`: long ones cost little, and the last ones are as short. */
void mx_parallel_for_nodes(mx_pool *pool, const int64_t *first, int64_t grain, bool shrinking, mx_range_fn *fn,
                           void *arg);

#endif
