/* Many requests at once, on a model of hashes (fake_model.h): each gets what it gets alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cpu.h"
#include "check_engine.h"
#include "model/sampler.h"

enum { MANY = 40, LONGEST = 400 };

static mx_config config;
static fake_backend *backend;
static int32_t prompt[MANY][LONGEST];
static answer a[MANY];
static mx_request r[MANY];
static mx_handle handle[MANY];

static int random_to(uint64_t seed, int64_t i, int most) {
    return (int)(mx_sample_uniform(seed, i) * (most + 1));
}

/* Requests of all lengths, some of which begin alike. */
static void make_requests(uint64_t seed, int count, int longest) {
    for (int i = 0; i < count; i++) {
        const int n = 1 + random_to(seed, 10 * i, longest - 1), shared = i ? random_to(seed, 10 * i + 1, n) : 0;
        fill(prompt[i], n, seed * 1000 + (uint64_t)i);
        if (i && random_to(seed, 10 * i + 2, 1))
            memcpy(prompt[i], prompt[random_to(seed, 10 * i + 3, i - 1)], sizeof **prompt * (size_t)shared);
        r[i] = request_for(prompt[i], n, 1 + random_to(seed, 10 * i + 4, 80), &a[i]);
        r[i].sampling.temperature = (float)(i % 2);
        r[i].sampling.seed = seed + (uint64_t)i;
        r[i].priority = random_to(seed, 10 * i + 5, 2);
    }
}

static mx_engine *start(const char *pattern, int64_t context, int64_t pages, int batch) {
    config = fake_config(pattern, 128, FAKE_MOST);
    return fake_engine(&config, context, pages, batch, &backend);
}

static void check_all(int count) {
    for (int i = 0; i < count; i++) check_answer(&a[i], &config, &r[i], (int)r[i].max_tokens, MX_FINISH_LENGTH);
    assert_int_equal(backend->empty_reads, 0);
}

/* ---- the same as alone --------------------------------------------------------------------------------------------
 */
static void each_as_if_alone(void **state) {
    (void)state;
    static const int batches[] = {1, 5, 64, 512};
    static const char *const patterns[] = {"sf", "fsfs", "s", "f"};
    for (int i = 0; i < 4; i++) {
        for (int p = 0; p < 4; p++) {
            mx_engine *e = start(patterns[p], 600, 0, batches[i]);
            make_requests((uint64_t)(1 + i), MANY, LONGEST);
            for (int n = 0; n < MANY; n++) {
                submit(e, &r[n]);
                if (n % 3 == 0) step(e);
            }
            run_until_idle(e);
            check_all(MANY);
            if (batches[i] > 60) assert_true(backend->most_sequences >= 6);
            const mx_engine_stats s = mx_engine_get_stats(e);
            assert_int_equal(s.submitted, MANY);
            assert_int_equal(s.finished, MANY);
            assert_int_equal(s.running + s.waiting, 0);
            assert_int_equal(s.computed_rows, backend->rows);
            assert_true(s.cached_tokens > 0 && s.cached_tokens < s.prompt_tokens);
            mx_engine_destroy(e);
        }
    }
}

/* Memory for hardly more than one of them: they are set back again and again. */
static void little_memory(void **state) {
    (void)state;
    int64_t set_back = 0;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        const char *pattern = seed % 2 ? "sf" : "fsf";
        config = fake_config(pattern, 128, FAKE_MOST);
        const int64_t one = mx_kv_pages_needed(&config, 500, 64);
        mx_engine *e = start(pattern, 500, one + (int64_t)(seed / 2), 64);
        make_requests(seed, MANY, 150);
        for (int n = 0; n < MANY; n++) {
            r[n].max_tokens += 200;
            submit(e, &r[n]);
            if (n % 2) step(e);
        }
        run_until_idle(e);
        check_all(MANY);
        int64_t told = 0;
        for (int n = 0; n < MANY; n++) told += a[n].last.usage.set_back;
        assert_int_equal(told, mx_engine_get_stats(e).set_back);
        set_back += told;
        mx_engine_destroy(e);
    }
    if (set_back < 50) fail_msg("only %d set back", (int)set_back);
}

/* The longest answers that fit, several at once: each needs in the end all the pages there are. */
static void all_become_as_long_as_they_may(void **state) {
    (void)state;
    config = fake_config("sf", 128, FAKE_MOST);
    mx_engine *e = start("sf", 1000, mx_kv_pages_needed(&config, 1000, 64), 64);
    for (int i = 0; i < 4; i++) {
        fill(prompt[i], 50, (uint64_t)i);
        r[i] = request_for(prompt[i], 50, 0, &a[i]);
        submit(e, &r[i]);
    }
    run_until_idle(e);
    for (int i = 0; i < 4; i++) check_answer(&a[i], &config, &r[i], 950, MX_FINISH_CONTEXT);
    assert_int_equal(a[0].last.usage.set_back, 0); /* the oldest never */
    assert_true(a[3].last.usage.set_back > 0);
    mx_engine_destroy(e);
}

/* ---- shared prefixes ----------------------------------------------------------------------------------------------
 */
static void samples_of_one_prompt(void **state) {
    (void)state;
    for (int batch = 64; batch <= 512; batch *= 8) {
        mx_engine *e = start("sf", 600, 0, batch);
        fill(prompt[0], 300, 8);
        for (int i = 0; i < 10; i++) {
            r[i] = request_for(prompt[0], 300, 20, &a[i]);
            r[i].sampling.temperature = 1;
            r[i].sampling.seed = (uint64_t)i;
            submit(e, &r[i]);
        }
        run_until_idle(e);
        check_all(10);
        assert_int_equal(backend->rows, 300 + 9 + 10 * 19); /* of each other one the last token of the prompt */
        for (int i = 1; i < 10; i++) assert_int_equal(a[i].last.usage.cached_tokens, 299);
        mx_engine_destroy(e);
    }
}

static void a_shared_beginning(void **state) {
    (void)state;
    mx_engine *e = start("sfs", 600, 0, 64);
    for (int i = 0; i < 20; i++) {
        fill(prompt[i], 320, (uint64_t)i + 50);
        memcpy(prompt[i], prompt[0], sizeof **prompt * 300);
        r[i] = request_for(prompt[i], 320, 10, &a[i]);
        submit(e, &r[i]);
    }
    run_until_idle(e);
    check_all(20);
    for (int i = 1; i < 20; i++) assert_true(a[i].last.usage.cached_tokens >= 256);
    assert_true(mx_engine_get_stats(e).cached_tokens >= 19 * 256);
    mx_engine_destroy(e);
}

/* ---- guessing ahead -----------------------------------------------------------------------------------------------
 */
static void guesses_change_nothing(void **state) {
    (void)state;
    static mx_logit_bias bias[FAKE_VOCAB];
    for (int i = 0; i < 3; i++) bias[i] = (mx_logit_bias){7 * i, 20}; /* answers that repeat themselves */
    config = fake_config("sf", 128, FAKE_MOST);
    for (int pages = 0; pages < 2; pages++) {
        for (int draft = 1; draft <= 16; draft *= 4) {
            const mx_engine_parts parts = {
                .config = &config, .batch_tokens = 64, .speculation = MX_SPECULATE_ON, .draft_tokens = draft};
            mx_engine *e =
                fake_engine_with(&parts, 600, pages ? 2 * mx_kv_pages_needed(&config, 600, 64) : 0, &backend);
            make_requests((uint64_t)draft, MANY, 300);
            for (int i = 0; i < MANY; i++) {
                r[i].sampling.temperature = i % 3 ? 0.3f : 0;
                r[i].sampling.bias = bias, r[i].sampling.bias_count = i % 4;
                r[i].max_tokens += 100;
                submit(e, &r[i]);
            }
            run_until_idle(e);
            check_all(MANY);
            const mx_engine_stats s = mx_engine_get_stats(e);
            assert_true(s.accepted_tokens > 0 && s.accepted_tokens < s.drafted_tokens);
            int64_t drafted = 0, accepted = 0;
            for (int i = 0; i < MANY; i++) {
                drafted += a[i].last.usage.drafted_tokens;
                accepted += a[i].last.usage.accepted_tokens;
            }
            assert_int_equal(drafted, s.drafted_tokens);
            assert_int_equal(accepted, s.accepted_tokens);
            mx_engine_destroy(e);
        }
    }
}

/* One token again and again: a step draws as many as were guessed, and one. */
static void right_guesses_save_steps(void **state) {
    (void)state;
    const mx_logit_bias bias = {5, 100};
    const mx_engine_parts parts = {
        .config = &config, .batch_tokens = 64, .speculation = MX_SPECULATE_ON, .draft_tokens = 4};
    config = fake_config("sf", 128, FAKE_MOST);
    mx_engine *e = fake_engine_with(&parts, 600, 0, &backend);
    fill(prompt[0], 30, 4);
    for (int n = 100; n <= 102; n++) {
        r[0] = request_for(prompt[0], 30, n, &a[0]);
        r[0].sampling.bias = &bias, r[0].sampling.bias_count = 1;
        submit(e, &r[0]);
        const int64_t before = mx_engine_get_stats(e).steps;
        run_until_idle(e);
        check_all(1);
        assert_in_range(mx_engine_get_stats(e).steps - before, 20, 25);
    }
    mx_engine_destroy(e);
}

/* Two that guess right, in memory that is enough until one of them ends: a guess that would need a page more is not
 * computed, but sets nobody back. */
static void guesses_set_nobody_back(void **state) {
    (void)state;
    const mx_logit_bias bias = {5, 100};
    config = fake_config("sf", 128, FAKE_MOST);
    const mx_engine_parts parts = {
        .config = &config, .batch_tokens = 64, .speculation = MX_SPECULATE_ON, .draft_tokens = 4};
    for (int most = 55; most <= 68; most++) {
        for (int longer = 0; longer < 2; longer++) { /* the elder, or the younger one */
            mx_engine *e = fake_engine_with(&parts, 200, 8, &backend);
            for (int i = 0; i < 2; i++) {
                fill(prompt[i], 40, (uint64_t)i + 1);
                for (int n = 40; n < 60; n++) prompt[i][n] = 5;
                r[i] = request_for(prompt[i], 60, i == longer ? 140 : most, &a[i]);
                r[i].sampling.bias = &bias, r[i].sampling.bias_count = 1;
                submit(e, &r[i]);
            }
            run_until_idle(e);
            check_all(2);
            assert_int_equal(mx_engine_get_stats(e).set_back, 0);
            assert_true(mx_engine_get_stats(e).steps < 80);
            mx_engine_destroy(e);
        }
    }
}

/* ---- order --------------------------------------------------------------------------------------------------------
 */
static void the_higher_priority_first(void **state) {
    (void)state;
    mx_engine *e = start("sf", 600, 0, 64);
    for (int i = 0; i < 30; i++) { /* more than run at once */
        fill(prompt[i], 200, (uint64_t)i + 90);
        r[i] = request_for(prompt[i], 200, 60, &a[i]);
        r[i].priority = i == 28 ? 5 : i == 29 ? 3 : 0;
        if (i == 28) step(e);
        submit(e, &r[i]);
    }
    for (bool first = true; !mx_engine_idle(e);) {
        step(e);
        while (collect(e, 8) > 0) {
        }
        if (a[29].tokens) assert_true(a[28].tokens);
        if (first && a[29].tokens) {
            for (int i = 16; i < 28; i++) assert_int_equal(a[i].tokens, 0);
            first = false;
        }
    }
    check_all(30);
    mx_engine_destroy(e);
}

/* Where more decode than a step has rows, one that comes late has its part of them. */
static void turns_are_taken(void **state) {
    (void)state;
    config = fake_config("sf", 128, FAKE_MOST);
    const mx_engine_parts parts = {
        .config = &config, .batch_tokens = 8, .max_running = 24, .speculation = MX_SPECULATE_OFF};
    mx_engine *e = fake_engine_with(&parts, 600, 400, &backend);
    for (int i = 0; i < 24; i++) {
        fill(prompt[i], 5, (uint64_t)i + 1);
        r[i] = request_for(prompt[i], 5, 300, &a[i]);
        for (int n = 0; i == 23 && n < 500; n++) { /* the last one comes late */
            step(e);
            while (collect(e, 8) > 0) continue;
        }
        submit(e, &r[i]);
    }
    while (a[23].tokens == 0) {
        step(e);
        while (collect(e, 8) > 0) continue;
    }
    int before[24];
    for (int i = 0; i < 24; i++) before[i] = a[i].tokens;
    assert_true(before[0] > 100);
    for (int n = 0; n < 30; n++) {
        step(e);
        while (collect(e, 8) > 0) continue;
    }
    for (int i = 0; i < 24; i++) assert_in_range(a[i].tokens - before[i], 9, 11);
    run_until_idle(e);
    check_all(24);
    mx_engine_destroy(e);
}

/* ---- cancels and deadlines ----------------------------------------------------------------------------------------
 */
static void cancelled_at_every_step(void **state) {
    (void)state;
    for (int at = 0; at < 60; at++) {
        config = fake_config("sf", 128, FAKE_MOST);
        mx_engine *e = start("sf", 500, mx_kv_pages_needed(&config, 500, 64) * 2, 64);
        make_requests(77, 12, LONGEST);
        for (int i = 0; i < 12; i++) handle[i] = submit(e, &r[i]);
        for (int i = 0; i < at && !mx_engine_idle(e); i++) {
            step(e);
            while (collect(e, 8) > 0) {
            }
        }
        for (int i = 0; i < 12; i += 2) mx_cancel(e, handle[i]);
        run_until_idle(e);
        for (int i = 0; i < 12; i++) {
            const bool cut = a[i].last.finish == MX_FINISH_CANCELLED;
            assert_true(i % 2 == 0 || !cut);
            check_answer(&a[i], &config, &r[i], cut ? a[i].tokens : (int)r[i].max_tokens,
                         cut ? MX_FINISH_CANCELLED : MX_FINISH_LENGTH);
        }
        assert_int_equal(backend->empty_reads, 0);
        mx_engine_destroy(e);
    }
}

static void deadlines(void **state) {
    (void)state;
    mx_engine *e = start("sf", 600, 0, 64);
    backend->sleep_us = 1000;
    for (int i = 0; i < 30; i++) {
        fill(prompt[i], 100, (uint64_t)i);
        r[i] = request_for(prompt[i], 100, 0, &a[i]);
        r[i].deadline = i % 3 == 2 ? 0 : 0.002 + 0.004 * i;
        if (!r[i].deadline) r[i].max_tokens = 70;
        handle[i] = submit(e, &r[i]);
    }
    const double begin = mx_seconds();
    while (!mx_engine_idle(e)) {
        step(e);
        while (collect(e, 8) > 0) {
        }
        for (int i = 0; i < 30; i++) /* late by a step at most; this machine may be slow, too */
            if (r[i].deadline > 0 && !a[i].ends) assert_true(mx_seconds() - begin < r[i].deadline + 5);
    }
    for (int i = 0; i < 30; i++) {
        const bool cut = r[i].deadline > 0;
        check_answer(&a[i], &config, &r[i], cut ? a[i].tokens : 70, cut ? MX_FINISH_DEADLINE : MX_FINISH_LENGTH);
    }
    mx_engine_destroy(e);
}

/* ---- what else a request can ask for ------------------------------------------------------------------------------
 */
static void min_tokens(void **state) {
    (void)state;
    int32_t stop[FAKE_VOCAB], expected[100];
    mx_engine *e = start("sf", 600, 0, 64);
    fill(prompt[0], 30, 3);
    r[0] = request_for(prompt[0], 30, 100, &a[0]);
    fake_answer(&config, prompt[0], 30, &r[0].sampling, expected, 100);
    for (int i = 0; i < FAKE_VOCAB; i++) stop[i] = i;
    r[0].stop = stop;
    for (int most = 1; most <= 60; most += 59) { /* the first token that would come; nearly all tokens */
        for (int least = 0; least < 5; least++) {
            r[0] = request_for(prompt[0], 30, 100, &a[0]);
            r[0].stop = most == 1 ? expected : stop;
            r[0].stop_count = most;
            r[0].min_tokens = least;
            submit(e, &r[0]);
            run_until_idle(e);
            assert_true(a[0].tokens > least);
            for (int i = 0; i < a[0].tokens; i++) {
                bool stops = false;
                for (int j = 0; j < most; j++) stops |= a[0].token[i] == r[0].stop[j];
                assert_int_equal(stops, i == a[0].tokens - 1 && a[0].last.finish == MX_FINISH_STOP);
            }
            if (least == 0) assert_int_equal(a[0].token[0], expected[0]);
            if (most == 60) assert_int_equal(a[0].last.finish, MX_FINISH_STOP);
        }
    }
    mx_engine_destroy(e);
}

static void logprobs(void **state) {
    (void)state;
    static float alone[200];
    mx_engine *e = start("sf", 600, 0, 64);
    fill(prompt[0], 200, 5);
    for (int round = 0; round < 3; round++) { /* alone, after others that computed the same, among others */
        for (int i = 0; round == 2 && i < 10; i++) {
            r[i + 1] = request_for(prompt[0], 190 - i, 30, &a[i + 1]);
            submit(e, &r[i + 1]);
        }
        r[0] = request_for(prompt[0], 200, 20, &a[0]);
        r[0].prompt_logprobs = true;
        r[0].top_logprobs = 3;
        submit(e, &r[0]);
        int prompt_events = 0, tokens = 0;
        bool done = false;
        while (!done) {
            step(e);
            mx_event event[8];
            for (int n; (n = mx_poll(e, event, 8)) > 0;) {
                for (int i = 0; i < n; i++) {
                    const mx_event *v = &event[i];
                    if (v->user != &a[0]) continue;
                    if (v->type == MX_EVENT_FINISHED) {
                        done = true;
                        assert_int_equal(v->usage.cached_tokens, 0);
                        continue;
                    }
                    if (v->type == MX_EVENT_PROMPT) {
                        assert_int_equal(tokens, 0);
                        assert_int_equal(v->token, prompt[0][prompt_events]);
                        assert_int_equal(v->top_count, prompt_events ? 3 : 0);
                        if (round) assert_true(v->logprob == alone[prompt_events]);
                        alone[prompt_events++] = v->logprob;
                    } else {
                        assert_int_equal(v->type, MX_EVENT_TOKEN);
                        assert_int_equal(v->top_count, 3);
                        assert_int_equal(v->top[0].token, v->token); /* greedy */
                        assert_true(v->top[0].logprob == v->logprob);
                        tokens++;
                    }
                    for (int k = 1; k < v->top_count; k++) assert_true(v->top[k].logprob <= v->top[k - 1].logprob);
                }
            }
        }
        assert_int_equal(prompt_events, 200);
        assert_int_equal(tokens, 20);
        assert_true(alone[0] == 0 && alone[1] < 0);
        mx_event rest[8];
        do step(e);
        while (mx_poll(e, rest, 8) > 0 || !mx_engine_idle(e));
    }
    mx_engine_destroy(e);
}

/* Logits of fewer rows are kept than requests run, or than rows of prompts are wanted. */
static void few_logits_are_kept(void **state) {
    (void)state;
    static const int batches[] = {8, 40, 64}, kept[] = {8, 20, 20};
    for (int i = 0; i < 6; i++) {
        config = fake_config("sf", 128, FAKE_MOST);
        const mx_engine_parts parts = {.config = &config,
                                       .batch_tokens = batches[i / 2],
                                       .max_wanted = kept[i / 2],
                                       .speculation = i % 2 ? MX_SPECULATE_ON : MX_SPECULATE_OFF,
                                       .draft_tokens = 4};
        mx_engine *e = fake_engine_with(&parts, 600, 0, &backend);
        make_requests(7, MANY, LONGEST);
        for (int n = 0; n < MANY; n++) {
            r[n].prompt_logprobs = n % 3 == 0;
            submit(e, &r[n]);
        }
        run_until_idle(e);
        check_all(MANY);
        for (int n = 0; n < MANY; n += 3) assert_int_equal(a[n].prompt_tokens, r[n].prompt_count);
        assert_in_range(backend->most_wanted, kept[i / 2] - 4, kept[i / 2]);
        mx_engine_destroy(e);
    }
}

/* One whose every row is wanted leaves to another what of the step it cannot have. */
static void what_is_not_kept_is_of_use(void **state) {
    (void)state;
    config = fake_config("sf", 128, FAKE_MOST);
    const mx_engine_parts parts = {
        .config = &config, .batch_tokens = 200, .max_wanted = 40, .speculation = MX_SPECULATE_OFF};
    mx_engine *e = fake_engine_with(&parts, 600, 0, &backend);
    for (int i = 0; i < 2; i++) {
        fill(prompt[i], LONGEST, 1 + (uint64_t)i);
        r[i] = request_for(prompt[i], LONGEST, 2, &a[i]);
        r[i].prompt_logprobs = i == 0;
        submit(e, &r[i]);
    }
    step(e);
    assert_int_equal(backend->rows, 200);
    assert_int_equal(backend->most_wanted, 39);
    run_until_idle(e);
    check_all(2);
    mx_engine_destroy(e);
}

static void waiting_for_work(void **state) {
    (void)state;
    mx_engine *e = start("sf", 600, 0, 64);
    const double begin = mx_seconds();
    assert_false(mx_engine_wait(e, 0));
    assert_false(mx_engine_wait(e, 0.02));
    assert_true(mx_seconds() - begin >= 0.02);
    r[0] = request_for(prompt[0], 5, 1, &a[0]);
    submit(e, &r[0]);
    assert_true(mx_engine_wait(e, 1e12));
    run_until_idle(e);
    mx_engine_destroy(e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_as_if_alone),
        cmocka_unit_test(little_memory),
        cmocka_unit_test(all_become_as_long_as_they_may),
        cmocka_unit_test(samples_of_one_prompt),
        cmocka_unit_test(a_shared_beginning),
        cmocka_unit_test(guesses_change_nothing),
        cmocka_unit_test(right_guesses_save_steps),
        cmocka_unit_test(guesses_set_nobody_back),
        cmocka_unit_test(the_higher_priority_first),
        cmocka_unit_test(turns_are_taken),
        cmocka_unit_test(cancelled_at_every_step),
        cmocka_unit_test(deadlines),
        cmocka_unit_test(min_tokens),
        cmocka_unit_test(logprobs),
        cmocka_unit_test(few_logits_are_kept),
        cmocka_unit_test(what_is_not_kept_is_of_use),
        cmocka_unit_test(waiting_for_work),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
