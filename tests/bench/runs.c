/* Several runs of a bench, of which one fails. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bench/bench.h"

enum { RUNS = 3 };

/* The second model ends at position 3: its fourth step fails, and no other's. */
static void the_run_that_fails_is_marked(void **state) {
    (void)state;
    char path[4096];
    mx_error error;
    mx_pool *pool;
    mx_weights *weights;
    mx_bandwidth bandwidth = {0};
    const mx_bench_test test = {false, 0, 1, 6};
    mx_bench_run run[RUNS];
    mx_bench_machine machine[RUNS];
    mx_bench_result result[RUNS];
    snprintf(path, sizeof path, "%s/tools/stories/checkpoint", getenv("MXRUN_SOURCE"));
    assert_int_equal(mx_pool_create(2, &pool, &error), MX_OK);
    assert_int_equal(mx_weights_load(path, &(mx_load_options){.threads = 2}, pool, &weights, &error), MX_OK);
    assert_int_equal(mx_bandwidth_open(pool, &bandwidth, &error), MX_OK);
    mx_weights shorter = *weights;
    shorter.config.max_positions = 3;
    for (int k = 0; k < RUNS; k++)
        run[k] = (mx_bench_run){
            .weights = k == 1 ? &shorter : weights, .pool = pool, .machine = &machine[k], .result = &result[k]};
    const mx_bench_options o = {.weights = weights,
                                .kv = MX_F16,
                                .batch = 8,
                                .test = &test,
                                .tests = 1,
                                .repetitions = 1,
                                .bandwidth = &bandwidth};
    assert_int_equal(mx_bench_measure(&o, run, RUNS, &error), MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "position 3"));
    assert_true(!machine[0].failed && machine[1].failed && !machine[2].failed);
    run[1] = run[2];
    assert_int_equal(mx_bench_measure(&o, run, 2, &error), MX_OK);
    assert_true(!machine[0].failed && !machine[2].failed && result[2].speed.median > 0);
    mx_bandwidth_close(&bandwidth);
    mx_weights_close(weights);
    mx_pool_destroy(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_run_that_fails_is_marked)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
