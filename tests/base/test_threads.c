#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cpu.h"
#include "base/threads.h"

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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_index_is_visited_once),    cmocka_unit_test(small_jobs_stay_on_the_caller),
        cmocka_unit_test(many_jobs_one_after_the_other),  cmocka_unit_test(pools_end_whatever_their_threads_do),
        cmocka_unit_test(numbers_of_threads_are_checked), cmocka_unit_test(workers_get_a_core_each),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
