/* Masks of constraints made by the pool, by a thread beside the forward pass, and by neither: the same tokens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cpu.h"
#include "engine/mxrun.h"

enum { REQUESTS = 12, TOKENS = 40 };

/* Allows a third of the tokens, by the seed and those before. */
typedef struct rule {
    uint64_t seed, state;
    double seconds; /* that a mask takes at least */
} rule;

static bool allows(const rule *r, int32_t token) {
    return (r->state + (uint64_t)token) * 0x9e3779b97f4a7c15u % 3 == 0;
}

static bool mask(void *user, uint32_t *bits, int32_t vocab) {
    const rule *r = user;
    const double start = mx_seconds();
    for (int32_t t = 0; t < vocab; t++)
        if (!allows(r, t)) bits[t >> 5] &= ~(1u << (t & 31));
    while (mx_seconds() - start < r->seconds) continue;
    return true;
}

static mx_verdict accept(void *user, int32_t token) {
    rule *r = user;
    if (!allows(r, token)) return MX_REJECTED;
    r->state = (r->state + (uint64_t)token) * 0x5851f42d4c957f2du + r->seed;
    return MX_CONTINUE;
}

static void run(int threads, double seconds, int32_t out[REQUESTS][TOKENS]) {
    static const int32_t prompt[] = {1, 2, 3};
    char path[4096];
    rule rules[REQUESTS];
    int count[REQUESTS] = {0}, left = REQUESTS;
    mx_model *model;
    mx_engine *engine;
    mx_error error;
    const char *root = getenv("MXRUN_SOURCE");
    snprintf(path, sizeof path, "%s/tests/data/base", root ? root : ".");
    const mx_engine_options options = {.threads = threads, .context = 256, .speculation = MX_SPECULATE_OFF};
    if (mx_model_open(path, NULL, &model, &error) || mx_engine_create(model, &options, &engine, &error))
        fail_msg("%s", error.text);
    for (int i = 0; i < REQUESTS; i++) {
        mx_handle handle;
        rules[i] = (rule){(uint64_t)i, (uint64_t)i, seconds};
        mx_request r = {.prompt = prompt,
                        .prompt_count = 3,
                        .max_tokens = TOKENS,
                        .sampling = MX_SAMPLING_DEFAULT,
                        .constraint = {.user = &rules[i], .mask = mask, .accept = accept},
                        .user = out[i]};
        r.sampling.seed = (uint64_t)i;
        r.sampling.temperature = 2;
        assert_int_equal(mx_submit(engine, &r, &handle, &error), MX_OK);
    }
    while (left) {
        mx_event events[16];
        assert_int_equal(mx_step(engine, &error), MX_OK);
        for (int n; (n = mx_poll(engine, events, 16)) > 0;)
            for (int k = 0; k < n; k++) {
                const int i = (int)((int32_t(*)[TOKENS])events[k].user - out);
                if (events[k].type == MX_EVENT_FAILED) fail_msg("%s", events[k].error.text);
                if (events[k].type == MX_EVENT_TOKEN) out[i][count[i]++] = events[k].token;
                left -= events[k].type == MX_EVENT_FINISHED;
            }
    }
    mx_engine_destroy(engine);
    mx_model_close(model);
}

static void same_tokens(void **state) {
    static int32_t first[REQUESTS][TOKENS], other[REQUESTS][TOKENS];
    (void)state;
    run(1, 0, first);
    run(2, 0, other); /* the pool */
    assert_memory_equal(first, other, sizeof first);
    run(1, 100e-6, other); /* on a machine of two processors a thread beside the one that computes */
    assert_memory_equal(first, other, sizeof first);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_tokens)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
