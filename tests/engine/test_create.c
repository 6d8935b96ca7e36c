/* Engines of a model on a machine whose memory is what the test says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "engine/model_parts.h"
#include "engine/mxrun.h"
#include "model/model.h"

enum { MIB = 1 << 20 };

static unsigned long long memory;
unsigned long long __wrap_mx_memory_available(void);
unsigned long long __wrap_mx_memory_available(void) {
    return memory;
}
unsigned long long __wrap_mx_memory_beside(unsigned long long mapped);
unsigned long long __wrap_mx_memory_beside(unsigned long long mapped) {
    return memory > mapped ? memory - mapped : 0;
}

static mx_backend_options made; /* the last backend's */
static uint64_t scratch;        /* and what it takes beside its pages */
mx_status __real_mx_cpu_backend_create(const mx_weights *weights, mx_pool *pool, const mx_backend_options *options,
                                       mx_backend **out, mx_error *error);
mx_status __wrap_mx_cpu_backend_create(const mx_weights *weights, mx_pool *pool, const mx_backend_options *options,
                                       mx_backend **out, mx_error *error);
mx_status __wrap_mx_cpu_backend_create(const mx_weights *weights, mx_pool *pool, const mx_backend_options *options,
                                       mx_backend **out, mx_error *error) {
    made = *options;
    assert_int_equal(mx_cpu_backend_memory(weights, pool, options, &scratch, error), MX_OK);
    return __real_mx_cpu_backend_create(weights, pool, options, out, error);
}

static mx_model *model;

static int set_up(void **state) {
    (void)state;
    char path[600];
    snprintf(path, sizeof path, "%s/tools/stories/checkpoint", getenv("MXRUN_SOURCE"));
    return mx_model_open(path, NULL, &model, NULL);
}

static int tear_down(void **state) {
    (void)state;
    mx_model_close(model);
    return 0;
}

static uint64_t kv_bytes(int max_running, int batch_tokens, unsigned long long mib) {
    mx_engine *engine;
    mx_error error;
    const mx_engine_options options = {.threads = 2, .max_running = max_running, .batch_tokens = batch_tokens};
    memory = mib * MIB;
    if (mx_engine_create(model, &options, &engine, &error)) fail_msg("%s", error.text);
    const uint64_t bytes = mx_engine_get_info(engine).kv_bytes;
    mx_engine_destroy(engine);
    printf("%d at once, %d tokens a step, of %d MiB: %d for keys and values, %d for steps\n", max_running, batch_tokens,
           (int)mib, (int)(bytes / MIB), (int)(scratch / MIB));
    return bytes;
}

/* Keys and values leave room for what steps compute in. */
static void test_memory_of_steps(void **state) {
    (void)state;
    static const int batches[] = {512, 4096, 16384};
    for (int i = 0; i < 3; i++) {
        const uint64_t bytes = kv_bytes(64, batches[i], 1024);
        if (scratch < 900 * (uint64_t)MIB) assert_true(bytes + scratch <= 1024 * (uint64_t)MIB);
        assert_true(bytes >= 10 * MIB);
    }
    assert_true(kv_bytes(64, 65536, 1024) >= 10 * MIB); /* what is not there cannot be divided */
}

/* No more logits are kept than a step has rows. */
static void test_logits(void **state) {
    (void)state;
    kv_bytes(4096, 512, 1024);
    assert_int_equal(made.max_wanted, 512);
    kv_bytes(64, 512, 1024);
    assert_int_equal(made.max_wanted, 128);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_of_steps),
        cmocka_unit_test(test_logits),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
