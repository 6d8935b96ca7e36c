#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"

enum {
    MAX_THREADS = 1024,
    SPINS = 4000, /* pauses before a waiting thread sleeps: about 100 us */
};

struct worker {
    pthread_t thread;
    mx_pool *pool;
    int index;
};

/* A thread's share of the job: neighbouring indices, so that it reads memory in one direction. */
struct share {
    _Alignas(64) atomic_llong next; /* first index nobody has taken */
    int64_t end;
};

struct mx_pool {
    int threads;
    struct worker *worker; /* [threads - 1] */
    /* The job; written by the caller before `generation` moves on. */
    mx_range_fn *fn;
    void *arg;
    int64_t n, grain;
    bool stop;
    struct share *share; /* [threads] */
    _Alignas(64) atomic_uint generation;
    _Alignas(64) atomic_int busy; /* workers still inside the job */
    _Alignas(64) atomic_int sleepers;
    pthread_mutex_t lock;
    pthread_cond_t wake;
};

static inline void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* The thread's own share first, then what others have left. */
static void work(mx_pool *p, int thread) {
    for (int i = 0; i < p->threads; i++) {
        struct share *share = &p->share[(thread + i) % p->threads];
        for (;;) {
            int64_t begin = atomic_fetch_add_explicit(&share->next, p->grain, memory_order_relaxed);
            if (begin >= share->end) break;
            p->fn(p->arg, begin, share->end - begin < p->grain ? share->end : begin + p->grain, thread);
        }
    }
}

/* Returns once the generation is no longer `seen`. */
static void wait_for_job(mx_pool *p, unsigned seen) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&p->generation, memory_order_acquire) != seen) return;
        pause_cpu();
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load(&p->generation) == seen) pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

static void *worker_main(void *arg) {
    struct worker *w = arg;
    mx_pool *p = w->pool;
    for (unsigned seen = 0;; seen++) {
        wait_for_job(p, seen);
        if (p->stop) return NULL;
        work(p, w->index);
        atomic_fetch_sub_explicit(&p->busy, 1, memory_order_release);
    }
}

static void start_job(mx_pool *p) {
    int64_t grains = (p->n + p->grain - 1) / p->grain;
    for (int i = 0; i < p->threads; i++) {
        int64_t begin = grains * i / p->threads * p->grain, end = grains * (i + 1) / p->threads * p->grain;
        atomic_store_explicit(&p->share[i].next, begin, memory_order_relaxed);
        p->share[i].end = end < p->n ? end : p->n;
    }
    atomic_store_explicit(&p->busy, p->threads - 1, memory_order_relaxed);
    atomic_fetch_add(&p->generation, 1);
    if (atomic_load(&p->sleepers)) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->lock);
    }
}

void mx_parallel_for(mx_pool *p, int64_t n, int64_t grain, mx_range_fn *fn, void *arg) {
    if (n <= 0) return;
    if (n <= grain || p->threads == 1) {
        for (int64_t at = 0; at < n; at += grain) fn(arg, at, n - at < grain ? n : at + grain, 0);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    p->n = n;
    p->grain = grain;
    start_job(p);
    work(p, 0);
    for (int i = 0; atomic_load_explicit(&p->busy, memory_order_acquire); i++) {
        if (i < SPINS)
            pause_cpu();
        else
            sched_yield();
    }
}

/* Workers get a core each when the pool is as large as the set of cores; the caller stays where it is. */
static void pin(mx_pool *p) {
    int cpu[CPU_SETSIZE];
    if (mx_cpu_list(cpu, CPU_SETSIZE) != p->threads) return;
    for (int i = 1; i < p->threads; i++) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu[i], &one);
        pthread_setaffinity_np(p->worker[i - 1].thread, sizeof one, &one);
    }
}

static void stop_workers(mx_pool *p, int started) {
    p->stop = true;
    atomic_fetch_add(&p->generation, 1);
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < started; i++) pthread_join(p->worker[i].thread, NULL);
}

void mx_pool_destroy(mx_pool *p) {
    if (!p) return;
    stop_workers(p, p->threads - 1);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->wake);
    free(p->worker);
    free(p->share);
    free(p);
}

mx_status mx_pool_create(int threads, mx_pool **out, mx_error *error) {
    *out = NULL;
    if (threads < 0 || threads > MAX_THREADS)
        return mx_fail(error, MX_INVALID_ARGUMENT, "threads: %d given, 1 to %d possible (0: all cores)", threads,
                       MAX_THREADS);
    if (!threads) threads = mx_cpu_count();
    mx_pool *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
    struct worker *worker = calloc((size_t)threads, sizeof *worker);
    struct share *share = aligned_alloc(64, (size_t)threads * sizeof *share);
    if (!p || !worker || !share) {
        free(p);
        free(worker);
        free(share);
        return mx_fail(error, MX_NO_MEMORY, "no memory for a pool of %d threads", threads);
    }
    memset(p, 0, sizeof *p);
    p->threads = threads;
    p->worker = worker;
    p->share = share;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    for (int i = 1; i < threads; i++) {
        worker[i - 1] = (struct worker){.pool = p, .index = i};
        int failed = pthread_create(&worker[i - 1].thread, NULL, worker_main, &worker[i - 1]);
        if (failed) {
            p->threads = i;
            mx_pool_destroy(p);
            return mx_fail(error, MX_NO_MEMORY, "thread %d of %d cannot be started: %s; try fewer with --threads",
                           i + 1, threads, strerror(failed));
        }
    }
    pin(p);
    *out = p;
    return MX_OK;
}

int mx_pool_threads(const mx_pool *pool) {
    return pool->threads;
}
