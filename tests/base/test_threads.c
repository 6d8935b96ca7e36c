#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cpu.h"
#include "base/threads.h"
#include "tests/two_nodes.h"

enum { MOST = 5000, THREADS = 7 };

/* Counts how often each index was visited, without atomics: ranges must not overlap, and the caller must see every
 * write when mx_parallel_for returns. */
struct job {
    int threads;
    int64_t grain;
    int visits[MOST];
    long by_thread[THREADS];
    int wrong;
};

static void visit(void *arg, int64_t begin, int64_t end, int thread) {
    struct job *job = arg;
    if (thread < 0 || thread >= job->threads || end <= begin || end - begin > job->grain) {
        job->wrong = 1; /* a race only when something is wrong already */
        return;
    }
    for (int64_t i = begin; i < end; i++) job->visits[i]++;
    job->by_thread[thread] += end - begin;
}

static void run(mx_pool *pool, struct job *job, int64_t n, int64_t grain) {
    *job = (struct job){.threads = mx_pool_threads(pool), .grain = grain};
    mx_parallel_for(pool, n, grain, visit, job);
    assert_false(job->wrong);
    long total = 0;
    for (int i = 0; i < THREADS; i++) total += job->by_thread[i];
    assert_int_equal(total, n);
    for (int64_t i = 0; i < MOST; i++) assert_int_equal(job->visits[i], i < n);
}

static void every_index_is_visited_once(void **state) {
    (void)state;
    static const int64_t sizes[] = {0, 1, 2, 3, 63, 64, 65, 1000, MOST}, grains[] = {1, 2, 7, 64, 1000, MOST + 1};
    struct job *job = malloc(sizeof *job);
    assert_non_null(job);
    for (int threads = 1; threads <= THREADS; threads++) {
        mx_pool *pool;
        assert_int_equal(mx_pool_create(threads, &pool, NULL), MX_OK);
        assert_int_equal(mx_pool_threads(pool), threads);
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (size_t g = 0; g < sizeof grains / sizeof *grains; g++) run(pool, job, sizes[s], grains[g]);
        mx_pool_destroy(pool);
    }
    free(job);
}

static void small_jobs_stay_on_the_caller(void **state) {
    (void)state;
    mx_pool *pool;
    assert_int_equal(mx_pool_create(3, &pool, NULL), MX_OK);
    struct job *job = malloc(sizeof *job);
    assert_non_null(job);
    run(pool, job, 64, 64);
    assert_int_equal(job->by_thread[0], 64);
    free(job);
    mx_pool_destroy(pool);
}

static void many_jobs_one_after_the_other(void **state) {
    (void)state;
    mx_pool *pool;
    assert_int_equal(mx_pool_create(2, &pool, NULL), MX_OK);
    struct job job = {.threads = 2, .grain = 1};
    enum { JOBS = 3000 };
    for (int i = 0; i < JOBS; i++) {
        mx_parallel_for(pool, 8, 1, visit, &job);
        if (i % 1000 == 0) usleep(5000); /* long enough for the workers to fall asleep */
    }
    for (int i = 0; i < 8; i++) assert_int_equal(job.visits[i], JOBS);
    mx_pool_destroy(pool);
}

/* Most workers come too late for such jobs, and must then not touch the next one's counters. */
static void tiny_jobs_end_without_late_workers(void **state) {
    (void)state;
    enum { JOBS = 20000 };
    struct job *job = malloc(sizeof *job);
    assert_non_null(job);
    for (int threads = 2; threads <= THREADS; threads++) {
        mx_pool *pool;
        assert_int_equal(mx_pool_create(threads, &pool, NULL), MX_OK);
        *job = (struct job){.threads = threads};
        int expected[10] = {0};
        for (int i = 0; i < JOBS; i++) {
            const int64_t n = 2 + i % 9;
            job->grain = 1 + i % 2;
            mx_parallel_for(pool, n, job->grain, visit, job);
            for (int64_t k = 0; k < n; k++) expected[k]++;
            for (int64_t k = 0; k < n; k++)
                if (job->visits[k] != expected[k]) fail_msg("job %d with %d threads: index %d", i, threads, (int)k);
        }
        assert_false(job->wrong);
        mx_pool_destroy(pool);
    }
    free(job);
}

struct busy {
    pthread_t thread;
    atomic_bool stop;
};

static void *be_busy(void *arg) {
    struct busy *b = arg;
    while (!atomic_load(&b->stop)) continue;
    return NULL;
}

/* A worker whose core others use gets on it now and then only: jobs end with what the caller does alone. */
static void jobs_end_beside_busy_cores(void **state) {
    (void)state;
    enum { BUSY = 3, JOBS = 2000 };
    int cpu[CPU_SETSIZE], cores = mx_cpu_list(cpu, CPU_SETSIZE);
    if (cores < 2 || cores > THREADS) skip();
    mx_pool *pool;
    assert_int_equal(mx_pool_create(cores, &pool, NULL), MX_OK);
    struct busy busy[BUSY] = {0};
    cpu_set_t last;
    CPU_ZERO(&last);
    CPU_SET(cpu[cores - 1], &last);
    for (int i = 0; i < BUSY; i++) {
        assert_int_equal(pthread_create(&busy[i].thread, NULL, be_busy, &busy[i]), 0);
        assert_int_equal(pthread_setaffinity_np(busy[i].thread, sizeof last, &last), 0);
    }
    struct job *job = malloc(sizeof *job);
    assert_non_null(job);
    for (int i = 0; i < JOBS; i++) run(pool, job, 2 + i % 100, 1);
    for (int i = 0; i < BUSY; i++) {
        atomic_store(&busy[i].stop, true);
        pthread_join(busy[i].thread, NULL);
    }
    free(job);
    mx_pool_destroy(pool);
}

static void pools_end_whatever_their_threads_do(void **state) {
    (void)state;
    for (int i = 0; i < 50; i++) {
        mx_pool *pool;
        assert_int_equal(mx_pool_create(1 + i % 4, &pool, NULL), MX_OK);
        if (i % 3 == 0) usleep(1000);
        mx_pool_destroy(pool);
    }
    mx_pool_destroy(NULL);
}

static void numbers_of_threads_are_checked(void **state) {
    (void)state;
    mx_pool *pool;
    mx_error error;
    assert_int_equal(mx_pool_create(-1, &pool, &error), MX_INVALID_ARGUMENT);
    assert_null(pool);
    assert_int_equal(mx_pool_create(1 << 30, &pool, &error), MX_INVALID_ARGUMENT);
    assert_null(pool);
    assert_int_equal(mx_pool_create(0, &pool, &error), MX_OK);
    assert_int_equal(mx_pool_threads(pool), mx_cpu_count());
    mx_pool_destroy(pool);
}

struct places {
    int cpus[CPU_SETSIZE]; /* by thread: how many CPUs it may use, 0: has not run */
    int cpu[CPU_SETSIZE];
};

static void note_place(void *arg, int64_t begin, int64_t end, int thread) {
    (void)begin;
    (void)end;
    struct places *p = arg;
    cpu_set_t mine;
    if (sched_getaffinity(0, sizeof mine, &mine)) return;
    p->cpus[thread] = CPU_COUNT(&mine);
    for (p->cpu[thread] = 0; !CPU_ISSET(p->cpu[thread], &mine);) p->cpu[thread]++;
    usleep(200); /* something is left for the others */
}

static void workers_get_a_core_each(void **state) {
    (void)state;
    int cpu[CPU_SETSIZE], cores = mx_cpu_list(cpu, CPU_SETSIZE);
    if (cores < 2) skip();
    cpu_set_t all;
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    struct places *p = malloc(sizeof *p);
    assert_non_null(p);
    for (int threads = cores - 1; threads <= cores + 1; threads++) {
        mx_pool *pool;
        assert_int_equal(mx_pool_create(threads, &pool, NULL), MX_OK);
        memset(p, 0, sizeof *p);
        int missing = threads;
        for (int round = 0; missing && round < 1000; round++) {
            mx_parallel_for(pool, 4 * threads, 1, note_place, p);
            missing = 0;
            for (int i = 0; i < threads; i++) missing += !p->cpus[i];
        }
        assert_int_equal(p->cpus[0], CPU_COUNT(&all)); /* the caller stays where it is */
        for (int i = 1; i < threads; i++) {
            if (!p->cpus[i]) continue;
            assert_int_equal(p->cpus[i], threads == cores ? 1 : CPU_COUNT(&all));
            if (threads == cores) assert_int_equal(p->cpu[i], cpu[i]);
        }
        mx_pool_destroy(pool);
    }
    free(p);
}

static cpu_set_t allowed_now(void) {
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    return set;
}

static bool only(const cpu_set_t *set, int cpu) {
    return CPU_COUNT(set) == 1 && CPU_ISSET(cpu, set);
}

/* No worker's core: the first. */
static void the_caller_gets_a_core_between_enter_and_leave(void **state) {
    (void)state;
    int cpu[CPU_SETSIZE], cores = mx_cpu_list(cpu, CPU_SETSIZE);
    if (cores < 2) skip();
    const cpu_set_t all = allowed_now();
    for (int threads = cores - 1; threads <= cores + 1; threads++) {
        mx_pool *pool;
        cpu_set_t now;
        assert_int_equal(mx_pool_create(threads, &pool, NULL), MX_OK);
        mx_pool_enter(pool);
        now = allowed_now();
        if (threads == cores)
            assert_true(only(&now, cpu[0]));
        else
            assert_true(CPU_EQUAL(&now, &all)); /* too few or too many to give each a core */
        mx_pool_enter(pool);
        mx_pool_leave(pool);
        now = allowed_now();
        assert_true(threads != cores || only(&now, cpu[0])); /* still within */
        mx_pool_leave(pool);
        now = allowed_now();
        assert_true(CPU_EQUAL(&now, &all));
        mx_pool_enter(pool); /* again */
        now = allowed_now();
        assert_true(threads != cores || only(&now, cpu[0]));
        mx_pool_leave(pool);
        now = allowed_now();
        assert_true(CPU_EQUAL(&now, &all));
        mx_pool_destroy(pool);
    }
}

/* A caller that was sent elsewhere after the pool was made does not go back. */
static void a_caller_bound_elsewhere_stays_there(void **state) {
    (void)state;
    int cpu[CPU_SETSIZE], cores = mx_cpu_list(cpu, CPU_SETSIZE);
    if (cores < 2) skip();
    const cpu_set_t all = allowed_now();
    mx_pool *pool;
    cpu_set_t last, now;
    CPU_ZERO(&last);
    CPU_SET(cpu[cores - 1], &last);
    assert_int_equal(mx_pool_create(cores, &pool, NULL), MX_OK);
    assert_int_equal(sched_setaffinity(0, sizeof last, &last), 0);
    mx_pool_enter(pool);
    now = allowed_now();
    assert_true(CPU_EQUAL(&now, &last));
    mx_pool_leave(pool);
    now = allowed_now();
    assert_true(CPU_EQUAL(&now, &last));
    assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
    mx_pool_destroy(pool);
}

/* ---- NUMA, on a made-up machine of two nodes ------------------------------------------------------------------ */

static two_nodes made_up;

static int begin(void **state) {
    (void)state;
    if (!two_nodes_begin(&made_up)) made_up.cpu[1] = 0;
    return 0;
}

static int end(void **state) {
    (void)state;
    if (made_up.cpu[1]) two_nodes_end(&made_up);
    return 0;
}

static void places_are_sorted_by_node(void **state) {
    (void)state;
    if (!made_up.cpu[1]) skip(); /* a single core */
    mx_place place[CPU_SETSIZE];
    assert_int_equal(mx_numa_places(place, CPU_SETSIZE), 2);
    assert_true(place[0].cpu == made_up.cpu[0] && place[0].node == 0);
    assert_true(place[1].cpu == made_up.cpu[1] && place[1].node == 1);
    assert_int_equal(mx_numa_nodes(), 2);
    char topology[100];
    snprintf(topology, sizeof topology, "numa:2 core:%d pu:1", made_up.cpu[1] + 1); /* both CPUs on the first node */
    setenv("HWLOC_SYNTHETIC", topology, 1);
    assert_int_equal(mx_numa_places(place, CPU_SETSIZE), 2);
    assert_true(place[0].node == 0 && place[1].node == 0);
    assert_int_equal(mx_numa_nodes(), 1);
}

static void threads_are_cut_by_node(void **state) {
    (void)state;
    if (!made_up.cpu[1]) skip(); /* a single core */
    static const struct {
        int threads, nodes;
        int64_t half; /* of 100 things, those of node 0 */
        mx_numa numa;
    } cases[] = {{2, 2, 50, MX_NUMA_SPREAD}, {2, 2, 50, MX_NUMA_AUTO},       {2, 1, 100, MX_NUMA_OFF},
                 {6, 2, 50, MX_NUMA_SPREAD}, {5, 2, 60, MX_NUMA_SPREAD},     {1, 1, 100, MX_NUMA_SPREAD},
                 {3, 2, 66, MX_NUMA_AUTO},   {2, 1, 100, MX_NUMA_INTERLEAVE}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mx_pool *pool;
        assert_int_equal(mx_pool_create_on(cases[i].threads, cases[i].numa, &pool, NULL), MX_OK);
        assert_int_equal(mx_pool_nodes(pool), cases[i].nodes);
        assert_int_equal(mx_pool_share(pool, 0, 100), 0);
        assert_int_equal(mx_pool_share(pool, 1, 100), cases[i].half);
        assert_int_equal(mx_pool_share(pool, cases[i].nodes, 100), 100);
        mx_pool_destroy(pool);
    }
}

static void threads_stay_on_their_node(void **state) {
    (void)state;
    if (!made_up.cpu[1]) skip(); /* a single core */
    cpu_set_t all, now;
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    struct places *p = malloc(sizeof *p);
    assert_non_null(p);
    for (int threads = 2; threads <= 4; threads += 2) {
        mx_pool *pool;
        assert_int_equal(mx_pool_create_on(threads, MX_NUMA_SPREAD, &pool, NULL), MX_OK);
        memset(p, 0, sizeof *p);
        mx_pool_enter(pool);
        for (int round = 0, missing = 1; missing && round < 1000; round++) {
            mx_parallel_for(pool, 4 * threads, 1, note_place, p);
            missing = 0;
            for (int i = 0; i < threads; i++) missing += !p->cpus[i];
        }
        mx_pool_leave(pool);
        for (int i = 0; i < threads; i++) {
            if (!p->cpus[i]) continue;
            assert_int_equal(p->cpus[i], 1);
            assert_int_equal(p->cpu[i], made_up.cpu[i >= threads / 2]);
        }
        assert_int_equal(sched_getaffinity(0, sizeof now, &now), 0);
        assert_true(CPU_EQUAL(&all, &now)); /* the caller is as free as before */
        mx_pool_destroy(pool);
    }
    free(p);
}

struct regions {
    int64_t first[3];
    int visits[100];
    int thread_of_first[2];
};

static void visit_region(void *arg, int64_t begin, int64_t end, int thread) {
    struct regions *r = arg;
    for (int64_t i = begin; i < end; i++) r->visits[i]++;
    for (int node = 0; node < 2; node++)
        if (begin == r->first[node]) r->thread_of_first[node] = thread;
    usleep(thread == 1 && begin == r->first[1] ? 20000 : 50);
}

/* Each node begins with its own part; what a slow thread leaves is done by the other. */
static void regions_begin_at_home_and_are_helped(void **state) {
    (void)state;
    if (!made_up.cpu[1]) skip(); /* a single core */
    mx_pool *pool;
    assert_int_equal(mx_pool_create_on(2, MX_NUMA_SPREAD, &pool, NULL), MX_OK);
    static const int64_t cuts[] = {0, 1, 30, 50, 99, 100};
    for (size_t i = 0; i < 2 * sizeof cuts / sizeof *cuts; i++) {
        const bool shrinking = i % 2;
        struct regions r = {.first = {0, cuts[i / 2], 100}, .thread_of_first = {-1, -1}};
        mx_parallel_for_nodes(pool, r.first, 1, shrinking, visit_region, &r);
        for (int k = 0; k < 100; k++) assert_int_equal(r.visits[k], 1);
        if (cuts[i / 2] == 50) assert_int_equal(r.thread_of_first[0], 0);
    }
    mx_pool_destroy(pool);
}

struct ranges {
    struct {
        int64_t begin, end;
    } range[400];
    atomic_int count;
};

static void note_range(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    struct ranges *r = arg;
    const int i = atomic_fetch_add(&r->count, 1);
    r->range[i].begin = begin;
    r->range[i].end = end;
}

/* A quarter of what the share has left, in whole grains; a grain at least, but for what is left behind the last one. */
static void ranges_begin_long_and_end_short(void **state) {
    (void)state;
    static const struct {
        int threads;
        int64_t n, grain, longest;
    } cases[] = {{1, 1000, 7, 1000}, {2, 1600, 1, 200}, {2, 1601, 16, 192},
                 {4, 1600, 1, 100},  {4, 30, 4, 4},     {3, 2, 1, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mx_pool *pool;
        assert_int_equal(mx_pool_create(cases[i].threads, &pool, NULL), MX_OK);
        const int64_t first[2] = {0, cases[i].n}, grain = cases[i].grain;
        struct ranges r = {.count = 0};
        int64_t next[1601] = {0}, longest = 0, at = 0;
        mx_parallel_for_nodes(pool, first, grain, true, note_range, &r);
        for (int k = 0; k < r.count; k++) {
            next[r.range[k].begin] = r.range[k].end;
            const int64_t length = r.range[k].end - r.range[k].begin;
            longest = length > longest ? length : longest;
            assert_true(length % grain == 0 || r.range[k].end == cases[i].n);
        }
        while (at < cases[i].n && next[at] > at) at = next[at];
        assert_int_equal(at, cases[i].n);
        assert_int_equal(longest, cases[i].longest);
        mx_pool_destroy(pool);
    }
}

/* ---- at rest --------------------------------------------------------------------------------------------------- */

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void a_pool_without_work_sleeps(void **state) {
    (void)state;
    mx_pool *pool;
    assert_int_equal(mx_pool_create(4, &pool, NULL), MX_OK);
    struct job job = {.threads = 4, .grain = 1};
    mx_parallel_for(pool, 8, 1, visit, &job);
    usleep(50000);
    const double before = cpu_seconds();
    usleep(300000);
    assert_true(cpu_seconds() - before < 0.01);
    mx_pool_destroy(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_index_is_visited_once),
        cmocka_unit_test(small_jobs_stay_on_the_caller),
        cmocka_unit_test(many_jobs_one_after_the_other),
        cmocka_unit_test(tiny_jobs_end_without_late_workers),
        cmocka_unit_test(jobs_end_beside_busy_cores),
        cmocka_unit_test(pools_end_whatever_their_threads_do),
        cmocka_unit_test(numbers_of_threads_are_checked),
        cmocka_unit_test(workers_get_a_core_each),
        cmocka_unit_test(the_caller_gets_a_core_between_enter_and_leave),
        cmocka_unit_test(a_caller_bound_elsewhere_stays_there),
        cmocka_unit_test_setup_teardown(places_are_sorted_by_node, begin, end),
        cmocka_unit_test_setup_teardown(threads_are_cut_by_node, begin, end),
        cmocka_unit_test_setup_teardown(threads_stay_on_their_node, begin, end),
        cmocka_unit_test_setup_teardown(regions_begin_at_home_and_are_helped, begin, end),
        cmocka_unit_test(ranges_begin_long_and_end_short),
        cmocka_unit_test(a_pool_without_work_sleeps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
