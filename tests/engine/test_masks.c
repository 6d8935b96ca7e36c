/* Masks of constraints made by the pool, by a thread beside the forward pass, and by neither: the same tokens. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
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

static pthread_t stepping;
static atomic_int elsewhere; /* masks that another thread made */

static bool allows(const rule *r, int32_t token) {
    return (r->state + (uint64_t)token) * 0x9e3779b97f4a7c15u % 3 == 0;
}

static bool mask(void *user, uint32_t *bits, int32_t vocab) {
    const rule *r = user;
    const double start = mx_seconds();
    atomic_fetch_add(&elsewhere, !pthread_equal(pthread_self(), stepping));
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

/* What is drawn under rules, or, `ruled` false, without any. `tokens`: as mx_engine_options has it. */
static void run(int threads, double seconds, bool ruled, const uint32_t *tokens, int32_t out[REQUESTS][TOKENS]) {
    static const int32_t prompt[] = {1, 2, 3};
    char path[4096];
    rule rules[REQUESTS];
    int count[REQUESTS] = {0}, left = REQUESTS;
    mx_model *model;
    mx_engine *engine;
    mx_error error;
    const char *root = getenv("MXRUN_SOURCE");
    snprintf(path, sizeof path, "%s/tests/data/base", root ? root : ".");
    const mx_engine_options options = {
        .threads = threads, .context = 256, .speculation = MX_SPECULATE_OFF, .tokens = tokens};
    stepping = pthread_self();
    elsewhere = 0;
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
        if (!ruled) r.constraint = (mx_constraint){0};
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
    run(1, 0, true, NULL, first);
    run(2, 0, true, NULL, other); /* the pool */
    assert_memory_equal(first, other, sizeof first);
    run(1, 100e-6, true, NULL, other); /* on a machine of two processors a thread beside the one that computes */
    assert_memory_equal(first, other, sizeof first);
    cpu_set_t processors;
    if (!sched_getaffinity(0, sizeof processors, &processors) && CPU_COUNT(&processors) > 1) assert_true(elsewhere > 0);
}

/* Ids without a token are not drawn, and what is drawn does not change where none of them would have been. */
static void only_tokens(void **state) {
    static int32_t all[REQUESTS][TOKENS], some[REQUESTS][TOKENS];
    static uint32_t tokens[1 << 16];
    (void)state;
    for (int ruled = 0; ruled < 2; ruled++) {
        run(1, 0, ruled, NULL, all);
        memset(tokens, 0xff, sizeof tokens);
        run(1, 0, ruled, tokens, some);
        assert_memory_equal(all, some, sizeof all);
        for (int t = 0; t < 1 << 21; t++)
            if (t % 5 == 0) tokens[t >> 5] &= ~(1u << (t & 31));
        run(1, 0, ruled, tokens, some);
        for (int i = 0; i < REQUESTS; i++) {
            bool same = true;
            for (int k = 0; k < TOKENS; k++) {
                assert_true(some[i][k] % 5 != 0);
                same = same && all[i][k] % 5 != 0;
                if (same) assert_int_equal(some[i][k], all[i][k]);
            }
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_tokens), cmocka_unit_test(only_tokens)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
