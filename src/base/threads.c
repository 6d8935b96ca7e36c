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
    YIELDS = 100, /* the same where threads share cores: whom it waits for may need the one it is on */
};

/* The jobs that a worker began and ended last, as generations of the pool. Who sets `entered` to a job's generation
 * first decides whether the worker takes part: the worker, or the caller, who found nothing left to do and does not
 * wait for one that has not come. Only a worker that has entered reads the job. */
struct worker {
    _Alignas(64) atomic_uint entered;
    atomic_uint finished;
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
    int threads, nodes;
    bool crowded;                        /* more threads than cores */
    int first_thread[MX_POOL_NODES + 1]; /* of each node */
    bool pinned, held;                   /* threads have places; the caller is in its own */
    int entered;                         /* mx_pool_enter, less mx_pool_leave */
    cpu_set_t caller, before;            /* thread 0's place; where the caller was */
    struct worker *worker;               /* [threads - 1] */
    /* The job; written by the caller before `generation` moves on. */
    mx_range_fn *fn;
    void *arg;
    int64_t grain;
    bool shrinking;      /* ranges begin long */
    struct share *share; /* [threads] */
    _Alignas(64) atomic_uint generation;
    atomic_bool stop;
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

static void take(mx_pool *p, struct share *share, int thread) {
    enum { PART = 4 }; /* of what is left */
    for (;;) {
        /* Others' shares are mostly empty: a look leaves the cache line where it is. */
        const int64_t left = share->end - atomic_load_explicit(&share->next, memory_order_relaxed);
        if (left <= 0) break;
        const int64_t grains = p->shrinking && left > PART * p->grain ? left / (PART * p->grain) : 1;
        const int64_t wanted = grains * p->grain;
        const int64_t begin = atomic_fetch_add_explicit(&share->next, wanted, memory_order_relaxed);
        if (begin >= share->end) break;
        p->fn(p->arg, begin, share->end - begin < wanted ? share->end : begin + wanted, thread);
    }
}

/* The thread's own share first, then what others of its node have left, then the rest. */
static void work(mx_pool *p, int thread) {
    int node = 0;
    while (thread >= p->first_thread[node + 1]) node++;
    const int begin = p->first_thread[node], own = p->first_thread[node + 1] - begin;
    for (int i = 0; i < own; i++) take(p, &p->share[begin + (thread - begin + i) % own], thread);
    for (int i = own; i < p->threads; i++) take(p, &p->share[(begin + i) % p->threads], thread);
}

/* Waits until the generation is no longer `seen`; returns it. */
static unsigned wait_for_job(mx_pool *p, unsigned seen) {
    unsigned now;
    for (int i = 0; i < (p->crowded ? YIELDS : SPINS); i++) {
        if ((now = atomic_load_explicit(&p->generation, memory_order_acquire)) != seen) return now;
        if (p->crowded)
            sched_yield();
        else
            pause_cpu();
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while ((now = atomic_load(&p->generation)) == seen) pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
    return now;
}

/* false: the other side was first. */
static bool claim(struct worker *w, unsigned generation) {
    unsigned entered = atomic_load(&w->entered);
    return (int)(entered - generation) < 0 && atomic_compare_exchange_strong(&w->entered, &entered, generation);
}

static void *worker_main(void *arg) {
    struct worker *w = arg;
    mx_pool *p = w->pool;
    for (unsigned seen = 0;;) {
        seen = wait_for_job(p, seen);
        if (atomic_load(&p->stop)) return NULL;
        if (!claim(w, seen)) continue;
        work(p, w->index);
        atomic_store_explicit(&w->finished, seen, memory_order_release);
    }
}

/* Cuts begin .. end into neighbouring shares of whole grains for the node's threads. */
static void cut(mx_pool *p, int node, int64_t begin, int64_t end) {
    const int first = p->first_thread[node], threads = p->first_thread[node + 1] - first;
    const int64_t grains = (end - begin + p->grain - 1) / p->grain;
    for (int i = 0; i < threads; i++) {
        int64_t to = begin + grains * (i + 1) / threads * p->grain;
        atomic_store_explicit(&p->share[first + i].next, begin + grains * i / threads * p->grain, memory_order_relaxed);
        p->share[first + i].end = to < end ? to : end;
    }
}

/* Returns the job's generation. */
static unsigned start_job(mx_pool *p) {
    const unsigned generation = atomic_fetch_add(&p->generation, 1) + 1;
    if (atomic_load(&p->sleepers)) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->lock);
    }
    return generation;
}

static void run_job(mx_pool *p) {
    const unsigned generation = start_job(p);
    work(p, 0);
    for (int i = 0, spins = p->crowded ? SPINS : 0; i < p->threads - 1; i++) {
        struct worker *w = &p->worker[i];
        if (claim(w, generation)) continue;
        for (; atomic_load_explicit(&w->finished, memory_order_acquire) != generation; spins++) {
            if (spins < SPINS)
                pause_cpu();
            else
                sched_yield();
        }
    }
}

static bool on_the_caller(mx_pool *p, int64_t n, int64_t grain, bool shrinking, mx_range_fn *fn, void *arg) {
    if (n > grain && p->threads > 1) {
        p->fn = fn;
        p->arg = arg;
        p->grain = grain;
        p->shrinking = shrinking;
        return false;
    }
    if (shrinking && n > 0) fn(arg, 0, n, 0);
    for (int64_t at = 0; at < n && !shrinking; at += grain) fn(arg, at, n - at < grain ? n : at + grain, 0);
    return true;
}

void mx_parallel_for(mx_pool *p, int64_t n, int64_t grain, mx_range_fn *fn, void *arg) {
    if (on_the_caller(p, n, grain, false, fn, arg)) return;
    const int64_t grains = (n + grain - 1) / grain;
    for (int node = 0; node < p->nodes; node++) {
        int64_t end = mx_pool_share(p, node + 1, grains) * grain;
        cut(p, node, mx_pool_share(p, node, grains) * grain, end < n ? end : n);
    }
    run_job(p);
}

void mx_parallel_for_nodes(mx_pool *p, const int64_t *first, int64_t grain, bool shrinking, mx_range_fn *fn,
                           void *arg) {
    if (on_the_caller(p, first[p->nodes], grain, shrinking, fn, arg)) return;
    for (int node = 0; node < p->nodes; node++) cut(p, node, first[node], first[node + 1]);
    run_job(p);
}

/* Threads get a core each when the pool is as large as the set of cores; on several nodes all cores of their node
 * otherwise. On one node a smaller pool is left to the scheduler: two processes with half of the threads each would
 * take the same cores while the others are idle. */
static void pin(mx_pool *p, const mx_place *place, int cores) {
    if (cores != p->threads && p->nodes == 1) return;
    p->pinned = true;
    for (int node = 0; node < p->nodes; node++)
        for (int i = p->first_thread[node]; i < p->first_thread[node + 1]; i++) {
            const int home = place[(int64_t)i * cores / p->threads].node;
            cpu_set_t set;
            CPU_ZERO(&set);
            for (int k = 0; k < cores; k++)
                if (cores == p->threads ? k == i : place[k].node == home) CPU_SET(place[k].cpu, &set);
            if (i)
                pthread_setaffinity_np(p->worker[i - 1].thread, sizeof set, &set);
            else
                p->caller = set;
        }
}

/* Which threads belong together: as many to a node as it has of the cores. */
static void assign_nodes(mx_pool *p, mx_numa numa, const mx_place *place, int cores) {
    p->nodes = 1;
    p->first_thread[0] = 0;
    if (numa == MX_NUMA_AUTO || numa == MX_NUMA_SPREAD)
        for (int i = 1; i < p->threads && cores; i++) {
            int before = place[(int64_t)(i - 1) * cores / p->threads].node;
            if (place[(int64_t)i * cores / p->threads].node != before && p->nodes < MX_POOL_NODES)
                p->first_thread[p->nodes++] = i;
        }
    p->first_thread[p->nodes] = p->threads;
}

void mx_pool_enter(mx_pool *p) {
    cpu_set_t place;
    if (p->entered++ || !p->pinned || pthread_getaffinity_np(pthread_self(), sizeof p->before, &p->before)) return;
    CPU_AND(&place, &p->caller, &p->before);
    p->held = CPU_COUNT(&place) && !pthread_setaffinity_np(pthread_self(), sizeof place, &place);
}

void mx_pool_leave(mx_pool *p) {
    if (--p->entered || !p->held) return;
    pthread_setaffinity_np(pthread_self(), sizeof p->before, &p->before);
    p->held = false;
}

int mx_pool_nodes(const mx_pool *p) {
    return p->nodes;
}

int64_t mx_pool_share(const mx_pool *p, int node, int64_t n) {
    return n * p->first_thread[node] / p->threads;
}

static void stop_workers(mx_pool *p, int started) {
    atomic_store(&p->stop, true);
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

mx_status mx_pool_create_on(int threads, mx_numa numa, mx_pool **out, mx_error *error) {
    *out = NULL;
    if (threads < 0 || threads > MAX_THREADS)
        return mx_fail(error, MX_INVALID_ARGUMENT, "threads: %d given, 1 to %d possible (0: all cores)", threads,
                       MAX_THREADS);
    if (!threads) threads = mx_cpu_count();
    mx_pool *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
    struct worker *worker = aligned_alloc(64, (size_t)threads * sizeof *worker);
    struct share *share = aligned_alloc(64, (size_t)threads * sizeof *share);
    if (!p || !worker || !share) {
        free(p);
        free(worker);
        free(share);
        return mx_fail(error, MX_NO_MEMORY, "no memory for a pool of %d threads", threads);
    }
    memset(p, 0, sizeof *p);
    memset(worker, 0, (size_t)threads * sizeof *worker);
    mx_place place[CPU_SETSIZE];
    const int cores = mx_numa_places(place, CPU_SETSIZE);
    p->threads = threads;
    p->crowded = threads > mx_cpu_count();
    assign_nodes(p, numa, place, cores);
    p->worker = worker;
    p->share = share;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    for (int i = 1; i < threads; i++) {
        worker[i - 1].pool = p;
        worker[i - 1].index = i;
        int failed = pthread_create(&worker[i - 1].thread, NULL, worker_main, &worker[i - 1]);
        if (failed) {
            p->threads = i;
            mx_pool_destroy(p);
            return mx_fail(error, MX_NO_MEMORY, "thread %d of %d cannot be started: %s; try fewer with --threads",
                           i + 1, threads, strerror(failed));
        }
    }
    pin(p, place, cores);
    *out = p;
    return MX_OK;
}

mx_status mx_pool_create(int threads, mx_pool **out, mx_error *error) {
    return mx_pool_create_on(threads, MX_NUMA_OFF, out, error);
}

int mx_pool_threads(const mx_pool *pool) {
    return pool->threads;
}
