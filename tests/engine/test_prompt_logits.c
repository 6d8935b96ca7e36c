/* Requests that want to see the logits of their prompts (mx_request.prompt_logits), and such as are a prompt alone, on
 * a model of hashes (fake_model.h): each position is shown once, and says what it says without an engine. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "check_engine.h"
#include "model/sampler.h"

enum { MANY = 30, LONGEST = 300 };

static mx_config config;
static fake_backend *backend;
static int32_t prompt[MANY][LONGEST];
static answer a[MANY];
static mx_request r[MANY];

/* What each request was shown. `user` is the answer, as events want it. */
static struct {
    float expected[LONGEST][FAKE_VOCAB];
    int times[LONGEST];
    int wrong;
} seen[MANY];

static void see(void *user, int64_t position, const float *logits, int32_t vocab) {
    const int i = (int)((answer *)user - a);
    seen[i].times[position]++;
    seen[i].wrong += vocab != FAKE_VOCAB || memcmp(logits, seen[i].expected[position], sizeof *seen[i].expected) != 0;
}

static void want(int i, int64_t from) {
    memset(&seen[i], 0, sizeof seen[i]);
    fake_logits(&config, r[i].prompt, r[i].prompt_count, seen[i].expected);
    r[i].prompt_logits = see;
    r[i].logits_from = from;
}

static void check_seen(int i) {
    assert_int_equal(seen[i].wrong, 0);
    for (int64_t p = 0; p < LONGEST; p++)
        if (seen[i].times[p] != (p >= r[i].logits_from && p < r[i].prompt_count))
            fail_msg("request %d: position %d was shown %d times", i, (int)p, seen[i].times[p]);
}

static mx_engine *start(int64_t context, int64_t pages, int batch) {
    config = fake_config("sf", 128, FAKE_MOST);
    return fake_engine(&config, context, pages, batch, &backend);
}

static int random_to(uint64_t seed, int64_t i, int most) {
    return (int)(mx_sample_uniform(seed, i) * (most + 1));
}

/* All kinds at once: some see all, some a part, some nothing; some draw, some not; some have logprobs, too. */
static void make_requests(uint64_t seed, int count, int longest) {
    for (int i = 0; i < count; i++) {
        const int n = 1 + random_to(seed, 10 * i, longest - 1);
        fill(prompt[i], n, seed * 1000 + (uint64_t)i);
        if (i % 4 == 1) memcpy(prompt[i], prompt[i - 1], sizeof **prompt * (size_t)(n / 2)); /* begins as another */
        r[i] = request_for(prompt[i], n, 1 + random_to(seed, 10 * i + 1, 40), &a[i]);
        if (i % 5) want(i, i % 3 ? random_to(seed, 10 * i + 2, n - 1) : 0);
        r[i].prompt_only = i % 2;
        r[i].prompt_logprobs = i % 7 == 3;
    }
}

static void check_all(int count) {
    for (int i = 0; i < count; i++) {
        if (r[i].prompt_logits) check_seen(i);
        if (!r[i].prompt_only) {
            check_answer(&a[i], &config, &r[i], (int)r[i].max_tokens, MX_FINISH_LENGTH);
            continue;
        }
        assert_int_equal(a[i].ends, 1);
        assert_int_equal(a[i].tokens, 0);
        assert_int_equal(a[i].last.type, MX_EVENT_FINISHED);
        assert_int_equal(a[i].last.finish, MX_FINISH_LENGTH);
        assert_int_equal(a[i].prompt_tokens, r[i].prompt_logprobs ? r[i].prompt_count : 0);
    }
    assert_int_equal(backend->empty_reads, 0);
}

static void each_position_is_shown_once(void **state) {
    (void)state;
    static const int batches[] = {1, 5, 64, 512};
    for (int b = 0; b < 4; b++) {
        mx_engine *e = start(LONGEST + 50, 0, batches[b]);
        make_requests((uint64_t)b + 1, MANY, LONGEST);
        for (int i = 0; i < MANY; i++) {
            submit(e, &r[i]);
            if (i % 3 == 0) step(e);
        }
        run_until_idle(e);
        check_all(MANY);
        if (batches[b] == 512) assert_in_range(backend->most_wanted, 17, 64); /* of fake_engine, 16 + 48 */
        mx_engine_destroy(e);
    }
}

/* They are set back again and again, and what they saw is not shown again. */
static void little_memory(void **state) {
    (void)state;
    int64_t set_back = 0;
    config = fake_config("sf", 128, FAKE_MOST);
    for (uint64_t seed = 1; seed <= 6; seed++) {
        const int batch = seed % 2 ? 64 : 1;
        const int64_t one = mx_kv_pages_needed(&config, LONGEST + 50, batch);
        mx_engine *e = start(LONGEST + 50, one + (int64_t)seed, batch);
        make_requests(seed, MANY, LONGEST);
        for (int i = 0; i < MANY; i++) {
            r[i].priority = i / 3;
            submit(e, &r[i]);
            if (i % 2) step(e);
        }
        run_until_idle(e);
        check_all(MANY);
        set_back += mx_engine_get_stats(e).set_back;
        mx_engine_destroy(e);
    }
    if (set_back < 10) fail_msg("only %d set back", (int)set_back);
}

/* A prompt alone may fill the context, and what is in the cache is computed again as far as it is to be seen. */
static void a_prompt_alone(void **state) {
    (void)state;
    mx_engine *e = start(200, 0, 64);
    mx_handle handle;
    mx_error error;
    for (int round = 0; round < 3; round++) {
        fill(prompt[0], 200, 1);
        r[0] = request_for(prompt[0], 200, 0, &a[0]);
        r[0].prompt_only = true;
        want(0, 150);
        const int64_t rows = backend->rows;
        submit(e, &r[0]);
        run_until_idle(e);
        check_all(1);
        assert_int_equal(a[0].last.usage.cached_tokens, round ? 150 : 0);
        assert_int_equal(backend->rows - rows, round ? 50 : 200);
    }
    r[0].prompt_count = 201;
    assert_int_equal(mx_submit(e, &r[0], &handle, &error), MX_CONTEXT_FULL);
    r[0].prompt_count = 200;
    r[0].prompt_only = false;
    assert_int_equal(mx_submit(e, &r[0], &handle, &error), MX_CONTEXT_FULL);
    r[0] = request_for(prompt[0], 1, 0, &a[0]);
    r[0].prompt_only = true;
    want(0, 0);
    submit(e, &r[0]);
    run_until_idle(e);
    check_all(1);
    mx_engine_destroy(e);
}

static void what_is_refused(void **state) {
    (void)state;
    mx_engine *e = start(200, 0, 64);
    mx_handle handle;
    mx_error error;
    fill(prompt[0], 10, 1);
    static const int64_t from[] = {-1, 10, INT64_MAX};
    for (int i = 0; i < 3; i++) {
        r[0] = request_for(prompt[0], 10, 1, &a[0]);
        want(0, from[i]);
        assert_int_equal(mx_submit(e, &r[0], &handle, &error), MX_INVALID_ARGUMENT);
        assert_non_null(strstr(error.text, "logits_from"));
    }
    mx_backend *shown = fake_engine_backend();
    const mx_backend_ops *ops = shown->ops;
    mx_backend_ops without = *ops;
    without.logits = NULL;
    shown->ops = &without;
    r[0].logits_from = 0;
    assert_int_equal(mx_submit(e, &r[0], &handle, &error), MX_UNSUPPORTED);
    shown->ops = ops;
    assert_true(mx_engine_idle(e));
    mx_engine_destroy(e);
}

/* As where a token would be drawn. */
static void what_is_no_number_fails(void **state) {
    (void)state;
    mx_engine *e = start(200, 0, 64);
    fill(prompt[0], 100, 1);
    r[0] = request_for(prompt[0], 100, 1, &a[0]);
    r[0].prompt_only = true;
    want(0, 90);
    backend->nan_in = 2;
    submit(e, &r[0]);
    run_until_idle(e);
    assert_int_equal(a[0].last.type, MX_EVENT_FAILED);
    want(0, 90); /* nothing of it was kept */
    memset(&a[0], 0, sizeof a[0]);
    submit(e, &r[0]);
    run_until_idle(e);
    check_all(1);
    mx_engine_destroy(e);
}

static void cancelled(void **state) {
    (void)state;
    mx_engine *e = start(LONGEST + 50, 0, 16);
    fill(prompt[0], 200, 1);
    for (int steps = 0; steps < 13; steps++) {
        r[0] = request_for(prompt[0], 200, 1, &a[0]);
        prompt[0][0] = steps; /* nothing is cached */
        r[0].prompt_only = true;
        want(0, 0);
        const mx_handle handle = submit(e, &r[0]);
        for (int i = 0; i < steps; i++) step(e);
        mx_cancel(e, handle);
        run_until_idle(e);
        assert_int_equal(a[0].ends, 1);
        assert_int_equal(a[0].last.finish, MX_FINISH_CANCELLED);
        assert_int_equal(seen[0].wrong, 0);
    }
    mx_engine_destroy(e);
}

/* One that was set back after an answer drawn ahead, and goes on beside one with alternatives, so at once: all it wants
 * is its last row. */
static void set_back_and_at_once(void **state) {
    (void)state;
    enum { ANSWER = 300, RUNNING = 220 };
    config = fake_config("sf", 128, FAKE_MOST);
    mx_engine *e = start(400, mx_kv_pages_needed(&config, 400, 512) + 2, 512);
    static const int count[] = {50, 280, 5};
    for (int i = 0; i < 3; i++) fill(prompt[i], count[i], (uint64_t)i + 1);
    r[0] = request_for(prompt[0], count[0], ANSWER, &a[0]);
    submit(e, &r[0]);
    while (a[0].tokens < RUNNING) {
        step(e);
        while (collect(e, 8)) {
        }
    }
    r[1] = request_for(prompt[1], count[1], 100, &a[1]);
    r[1].priority = 5;
    submit(e, &r[1]);
    while (a[1].tokens < 50) {
        step(e);
        while (collect(e, 8)) {
        }
    }
    assert_true(mx_engine_get_stats(e).set_back > 0);
    r[2] = request_for(prompt[2], count[2], ANSWER, &a[2]);
    r[2].top_logprobs = 2;
    submit(e, &r[2]);
    backend->most_wanted = 0;
    run_until_idle(e);
    assert_true(backend->most_wanted <= 3);
    check_answer(&a[0], &config, &r[0], ANSWER, MX_FINISH_LENGTH);
    mx_engine_destroy(e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_position_is_shown_once),
        cmocka_unit_test(little_memory),
        cmocka_unit_test(a_prompt_alone),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(what_is_no_number_fails),
        cmocka_unit_test(cancelled),
        cmocka_unit_test(set_back_and_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
