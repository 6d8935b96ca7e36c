#include "check_engine.h"

#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/sampler.h"

/* ---- memory: mx_step must not ask for any -------------------------------------------------------------------------
 */
static _Thread_local int allocations;
void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size) {
    allocations++;
    return __real_malloc(size);
}
void *__wrap_calloc(size_t count, size_t size) {
    allocations++;
    return __real_calloc(count, size);
}
void *__wrap_realloc(void *old, size_t size) {
    allocations++;
    return __real_realloc(old, size);
}

/* ---- requests -----------------------------------------------------------------------------------------------------
 */
mx_request request_for(const int32_t *prompt, int64_t n, int64_t max_tokens, answer *a) {
    memset(a, 0, sizeof *a);
    return (mx_request){.prompt = prompt,
                        .prompt_count = n,
                        .max_tokens = max_tokens,
                        .sampling = {.temperature = 0, .top_p = 1, .repetition_penalty = 1},
                        .user = a};
}

void fill(int32_t *tokens, int64_t n, uint64_t seed) {
    for (int64_t i = 0; i < n; i++) tokens[i] = (int32_t)(mx_sample_uniform(seed, i) * FAKE_VOCAB);
}

mx_handle submit(mx_engine *e, const mx_request *r) {
    mx_handle handle;
    mx_error error;
    if (mx_submit(e, r, &handle, &error)) fail_msg("%s", error.text);
    assert_true(handle != 0);
    return handle;
}

void step(mx_engine *e) {
    mx_error error;
    int before = allocations;
    if (mx_step(e, &error)) fail_msg("%s", error.text);
    assert_int_equal(allocations, before);
}

int collect(mx_engine *e, int at_once) {
    mx_event event[8];
    struct pollfd fd = {.fd = mx_engine_fd(e), .events = POLLIN};
    const int readable = poll(&fd, 1, 0);
    int n = mx_poll(e, event, at_once);
    assert_int_equal(readable, n > 0);
    for (int i = 0; i < n; i++) {
        answer *a = event[i].user;
        assert_int_equal(a->ends, 0);
        if (event[i].type == MX_EVENT_PROMPT) {
            a->prompt_tokens++;
            continue;
        }
        if (event[i].type == MX_EVENT_TOKEN) {
            assert_true(event[i].logprob <= 0);
            a->logprob[a->tokens] = event[i].logprob;
            a->token[a->tokens++] = event[i].token;
            continue;
        }
        a->ends++;
        a->last = event[i];
        assert_int_equal(event[i].usage.generated_tokens, a->tokens);
    }
    return n;
}

void run_until_idle(mx_engine *e) {
    while (!mx_engine_idle(e)) {
        step(e);
        while (collect(e, 8) > 0) {
        }
    }
}

void check_answer(const answer *a, const mx_config *config, const mx_request *r, int count, mx_finish finish) {
    int32_t expected[FAKE_MOST];
    assert_int_equal(a->ends, 1);
    if (a->last.type == MX_EVENT_FAILED) fail_msg("%s", a->last.error.text);
    assert_int_equal(a->last.finish, finish);
    assert_int_equal(a->tokens, count);
    if (count == 0) return;
    fake_answer(config, r->prompt, r->prompt_count, &r->sampling, expected, count);
    assert_memory_equal(a->token, expected, sizeof *expected * (size_t)count);
}
