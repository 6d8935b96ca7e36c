/* Steps that are queued before the tokens of those before are known (src/engine/ahead.c): each request is told what it
 * is told by an engine that takes one step after the other. On a model of hashes (fake_model.h) whose device does
 * everything as late as it may (deferred.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "check_engine.h"
#include "deferred.h"
#include "engine/engine_state.h"
#include "model/sampler.h"

enum { MANY = 24, LONGEST = 300, CONTEXT = 400 };

static mx_config config;
static fake_backend *backend;
static deferred_device *device; /* of an engine that runs ahead */
static int32_t prompt[MANY][LONGEST];
static answer once[MANY], ahead[MANY]; /* told step by step, and ahead */

/* pages 0: enough. */
static mx_engine *start(bool runs_ahead, mx_speculation speculation, int64_t pages, int batch) {
    config = fake_config("sf", 128, FAKE_MOST);
    const mx_engine_parts parts = {
        .config = &config, .batch_tokens = batch, .max_running = 8, .speculation = speculation, .draft_tokens = 4};
    if (runs_ahead)
        setenv("MXRUN_TEST_AHEAD", "1", 1);
    else
        unsetenv("MXRUN_TEST_AHEAD");
    mx_engine *e = fake_engine_with(&parts, CONTEXT, pages, &backend);
    if (runs_ahead) device = deferred_device_of(fake_engine_backend());
    return e;
}

static int64_t some(uint64_t seed, int64_t i, int64_t n) {
    return (int64_t)(mx_sample_uniform(seed, i) * (double)n);
}

/* ---- constraints --------------------------------------------------------------------------------------------------
 */
typedef struct rule {
    uint64_t state;
    bool masks, rejects;
    int accepted, finish_at, refuse_from; /* -1: never */
    int destroyed;
} rule;

static rule rules[2][MANY];

static uint64_t mixed(uint64_t v) {
    v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9u;
    return v ^ (v >> 31);
}

static bool rule_mask(void *user, uint32_t *bits, int32_t vocab) {
    const rule *u = user;
    if (!u->masks || u->state % 5 == 0) return false;
    for (int32_t i = 0; i < (vocab + 31) / 32; i++) bits[i] &= (uint32_t)mixed(u->state + (uint64_t)i);
    return true;
}

static mx_verdict rule_accept(void *user, int32_t token) {
    rule *u = user;
    const uint64_t next = mixed(u->state * 3 + (uint64_t)token);
    if (u->accepted == u->refuse_from || (u->rejects && next % 3 == 0)) return MX_REJECTED;
    u->state = next;
    return ++u->accepted == u->finish_at ? MX_FINISHED : MX_CONTINUE;
}

static void rule_destroy(void *user) {
    ((rule *)user)->destroyed++;
}

static void use_rule(mx_request *r, rule *u, uint64_t seed) {
    *u = (rule){.state = mixed(seed), .masks = some(seed, 1, 2), .rejects = some(seed, 2, 3) > 0};
    u->finish_at = some(seed, 3, 2) ? 1 + (int)some(seed, 4, 40) : -1;
    u->refuse_from = some(seed, 5, 8) ? -1 : (int)some(seed, 6, 20);
    r->constraint = (mx_constraint){.user = u, .mask = rule_mask, .accept = rule_accept, .destroy = rule_destroy};
}

/* ---- how far ahead ------------------------------------------------------------------------------------------------
 */
static void a_step_is_always_under_way(void **state) {
    (void)state;
    mx_engine *e = start(true, MX_SPECULATE_AUTO, 0, 64);
    fill(prompt[0], 10, 1);
    mx_request r = request_for(prompt[0], 10, 50, &ahead[0]);
    submit(e, &r);
    int calls = 0;
    for (; !mx_engine_idle(e); calls++) {
        step(e);
        while (collect(e, 8) > 0) continue;
        assert_int_equal(ahead[0].tokens, calls); /* told one step later, all of them */
    }
    check_answer(&ahead[0], &config, &r, 50, MX_FINISH_LENGTH);
    assert_int_equal(calls, 51);
    assert_int_equal(device->steps, 50);
    assert_int_equal(device->under_way, 2);
    assert_int_equal(device->drawn_rows, 49); /* of all but the prompt's */
    assert_int_equal(backend->rows, 59);      /* none behind the last token, which is known beforehand */
    const mx_engine_stats s = mx_engine_get_stats(e);
    assert_int_equal(s.steps, 50);
    assert_int_equal(s.computed_rows, 59);
    assert_int_equal(s.drafted_tokens, 0); /* AUTO does not guess here */
    mx_engine_destroy(e);
}

/* The host takes less time than the device: then it takes none. */
static double clock_now = 1;
double __wrap_mx_seconds(void);
double __wrap_mx_seconds(void) {
    return clock_now;
}

static void wait_until(double seconds) {
    if (seconds > clock_now) clock_now = seconds;
}

static void the_host_works_beside_the_device(void **state) {
    (void)state;
    const double host[] = {0, 0.004, 0.025}, taken[] = {0.01, 0.01, 0.025};
    for (int i = 0; i < 3; i++) {
        mx_engine *e = start(true, MX_SPECULATE_AUTO, 0, 64);
        device->step_seconds = 0.01;
        device->wait_until = wait_until;
        fill(prompt[0], 10, 1);
        mx_request r = request_for(prompt[0], 10, 50, &ahead[0]);
        submit(e, &r);
        const double begin = clock_now;
        while (!mx_engine_idle(e)) {
            step(e);
            clock_now += host[i]; /* what the caller does between steps */
            while (collect(e, 8) > 0) continue;
        }
        const double all = clock_now - begin;
        assert_true(all > 49 * taken[i] && all < 51 * taken[i] + 0.03);
        /* a step's time is that between the completions of two */
        assert_true(e->scheduler.decode_seconds > 0.99 * taken[i] && e->scheduler.decode_seconds < 1.01 * taken[i]);
        const mx_engine_stats s = mx_engine_get_stats(e);
        assert_true(s.step_seconds <= all && s.forward_seconds <= s.step_seconds && s.forward_seconds >= 0);
        assert_true(i == 2 || s.forward_seconds > 0.9 * (50 * taken[i] - 51 * host[i])); /* waiting for the device */
        mx_engine_destroy(e);
    }
}

/* All that runs is cancelled while its step is under way, and nobody steps for a while. */
static void a_step_that_nobody_wants(void **state) {
    (void)state;
    mx_engine *e = start(true, MX_SPECULATE_OFF, 0, 64);
    mx_handle handle[3];
    mx_request r[6];
    for (int i = 0; i < 6; i++) {
        fill(prompt[i], 100, (uint64_t)i + 20);
        r[i] = request_for(prompt[i], 100, 20, &ahead[i]);
    }
    for (int cancel_at = 1; cancel_at < 9; cancel_at++) {
        for (int i = 0; i < 3; i++) {
            request_for(prompt[i], 100, 20, &ahead[i]);
            handle[i] = submit(e, &r[i]);
        }
        for (int i = 0; i < cancel_at; i++) step(e);
        for (int i = 0; i < 3; i++) mx_cancel(e, handle[i]);
        step(e);
        assert_true(mx_engine_idle(e));
        while (collect(e, 8) > 0) continue;
        for (int i = 0; i < 3; i++) check_answer(&ahead[i], &config, &r[i], ahead[i].tokens, MX_FINISH_CANCELLED);
        for (int i = 3; i < 6; i++) {
            request_for(prompt[i], 100, 20, &ahead[i]);
            submit(e, &r[i]);
        }
        run_until_idle(e);
        for (int i = 3; i < 6; i++) check_answer(&ahead[i], &config, &r[i], 20, MX_FINISH_LENGTH);
    }
    assert_int_equal(mx_engine_get_info(e).kv_bytes_used, mx_engine_get_stats(e).kv_bytes_cached);
    mx_engine_destroy(e);
}

/* ---- what is behind an end ----------------------------------------------------------------------------------------
 */
/* A conversation of two turns: the first answer ends by a stop token, or a constraint, when a row behind it is under
 * way. Returns what the second turn had of the cache. */
static int64_t two_turns(bool runs_ahead, int length, int kind, answer *out) {
    static answer first;
    static int32_t next[CONTEXT];
    mx_engine *e = start(runs_ahead, MX_SPECULATE_OFF, 0, 32);
    int32_t stop[8];
    rule u;
    fill(prompt[0], length, 3);
    for (int i = 0; i < 8; i++) stop[i] = (int32_t)some(4, i, FAKE_VOCAB);
    mx_request r = request_for(prompt[0], length, 60, &first);
    r.stop = stop, r.stop_count = 8;
    r.min_tokens = 3;
    if (kind) use_rule(&r, &u, 18);
    if (kind) u.rejects = true, u.finish_at = 9, u.refuse_from = -1;
    submit(e, &r);
    run_until_idle(e);
    assert_int_equal(first.last.type, MX_EVENT_FINISHED);
    assert_true(first.last.finish == MX_FINISH_STOP || first.last.finish == MX_FINISH_CONSTRAINT);
    int64_t n = length;
    memcpy(next, prompt[0], sizeof *next * (size_t)length);
    memcpy(next + n, first.token, sizeof *next * (size_t)first.tokens);
    n += first.tokens;
    fill(next + n, 5, 5);
    r = request_for(next, n + 5, 70, out);
    submit(e, &r);
    run_until_idle(e);
    check_answer(out, &config, &r, 70, MX_FINISH_LENGTH);
    assert_int_equal(out->last.usage.cached_tokens, n - 1); /* all but the stop token */
    assert_int_equal(backend->empty_reads, 0);
    mx_engine_destroy(e);
    return out->last.usage.cached_tokens;
}

static void what_is_behind_an_end_is_forgotten(void **state) {
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        for (int length = 45; length <= 130; length += length > 70 && length < 110 ? 7 : 1) {
            const int64_t cached = two_turns(false, length, kind, &once[0]);
            assert_int_equal(two_turns(true, length, kind, &ahead[0]), cached);
            assert_memory_equal(ahead[0].token, once[0].token, sizeof *once[0].token * 70);
            assert_memory_equal(ahead[0].logprob, once[0].logprob, sizeof *once[0].logprob * 70);
        }
    }
}

/* ---- the same as step by step -------------------------------------------------------------------------------------
 */
/* Requests of all kinds, several of which begin alike. `plain`: none that the engine cannot run ahead for. */
static mx_request make_request(uint64_t seed, int i, bool plain, bool runs_ahead, answer *a) {
    const uint64_t s = seed * 1000 + (uint64_t)i;
    static int32_t stop[MANY][2];
    const int64_t n = 1 + some(s, 0, LONGEST - 1);
    if (i > 0 && some(s, 1, 2)) {
        const int other = (int)some(s, 2, i);
        memcpy(prompt[i], prompt[other], sizeof prompt[i]);
        if (some(s, 3, 2)) fill(prompt[i] + n / 2, LONGEST - n / 2, s);
    } else {
        fill(prompt[i], LONGEST, s);
    }
    mx_request r = request_for(prompt[i], n, some(s, 4, 5) ? 1 + some(s, 5, 80) : 0, a);
    if (!r.max_tokens && n < LONGEST * 2 / 3) r.max_tokens = 100 + some(s, 6, 100);
    r.sampling.temperature = some(s, 7, 3) ? 1 : 0;
    r.sampling.seed = s;
    if (some(s, 8, 3) == 0) r.sampling.repetition_penalty = 1.2f;
    if (some(s, 9, 3) == 0) r.sampling.presence_penalty = 0.5f;
    if (some(s, 10, 3) == 0) r.sampling.frequency_penalty = 0.3f;
    for (int k = 0; k < 2; k++) stop[i][k] = (int32_t)some(s, 11 + k, FAKE_VOCAB);
    if (some(s, 13, 2)) r.stop = stop[i], r.stop_count = 2;
    if (some(s, 14, 3) == 0) r.min_tokens = some(s, 15, 30);
    r.priority = (int)some(s, 16, 5) / 2 - 1;
    if (some(s, 17, 3) == 0) use_rule(&r, &rules[runs_ahead][i], s);
    if (!plain && some(s, 18, 3) == 0) r.top_logprobs = 1 + (int)some(s, 19, 4);
    if (!plain && some(s, 20, 4) == 0) r.prompt_logprobs = true;
    return r;
}

static void run_all(uint64_t seed, bool plain, bool runs_ahead, answer *out, int64_t *set_back, int64_t *drawn) {
    config = fake_config("sf", 128, FAKE_MOST);
    const int batch = 1 + (int)some(seed, 0, 80);
    const int64_t least = mx_kv_pages_needed(&config, CONTEXT, batch), more = some(seed, 1, 3) * least;
    mx_engine *e = start(runs_ahead, MX_SPECULATE_OFF, least + more, batch);
    mx_handle handle[MANY];
    int submitted = 0;
    for (int now = 0; submitted < MANY || !mx_engine_idle(e); now++) {
        while (submitted < MANY && some(seed, 2 + submitted, 60) <= now % 61) {
            const mx_request r = make_request(seed, submitted, plain, runs_ahead, &out[submitted]);
            handle[submitted] = submit(e, &r);
            submitted++;
        }
        if (now % 50 == 49) mx_cancel(e, handle[some(seed, now, submitted)]);
        step(e);
        while (collect(e, 8) > 0) continue;
    }
    *set_back += mx_engine_get_stats(e).set_back;
    if (runs_ahead) *drawn += device->drawn_rows;
    assert_int_equal(backend->empty_reads, 0);
    assert_int_equal(mx_engine_get_info(e).kv_bytes_used, mx_engine_get_stats(e).kv_bytes_cached);
    mx_engine_destroy(e);
}

static void as_if_step_by_step(void **state) {
    (void)state;
    int64_t set_back = 0, set_back_once = 0, drawn = 0;
    int ends[MX_FINISH_DEADLINE + 1] = {0}, failures = 0;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        const bool plain = seed % 4 != 0;
        run_all(seed, plain, false, once, &set_back_once, &drawn);
        run_all(seed, plain, true, ahead, &set_back, &drawn);
        for (int i = 0; i < MANY; i++) {
            const answer *a = &ahead[i], *b = &once[i];
            const bool cut = a->last.finish == MX_FINISH_CANCELLED || b->last.finish == MX_FINISH_CANCELLED;
            const int tokens = a->tokens < b->tokens ? a->tokens : b->tokens;
            assert_memory_equal(a->token, b->token, sizeof *a->token * (size_t)tokens);
            assert_memory_equal(a->logprob, b->logprob, sizeof *a->logprob * (size_t)tokens);
            assert_int_equal(rules[1][i].destroyed, rules[0][i].destroyed);
            if (cut) continue;
            assert_int_equal(a->tokens, b->tokens);
            assert_int_equal(a->prompt_tokens, b->prompt_tokens);
            assert_int_equal(a->last.type, b->last.type);
            assert_int_equal(a->last.finish, b->last.finish);
            assert_int_equal(a->last.usage.prompt_tokens, b->last.usage.prompt_tokens);
            if (a->last.type == MX_EVENT_FAILED) assert_string_equal(a->last.error.text, b->last.error.text);
            failures += a->last.type == MX_EVENT_FAILED;
            ends[a->last.finish]++;
        }
    }
    print_message("%lld rows of tokens that were not known; set back %lld times, step by step %lld; ends: stop %d, "
                  "constraint %d, length %d, context %d, failure %d\n",
                  (long long)drawn, (long long)set_back, (long long)set_back_once, ends[MX_FINISH_STOP],
                  ends[MX_FINISH_CONSTRAINT], ends[MX_FINISH_LENGTH], ends[MX_FINISH_CONTEXT], failures);
    assert_true(drawn > 1000 && set_back > 5 && failures > 2);
    assert_true(ends[MX_FINISH_STOP] > 5 && ends[MX_FINISH_CONSTRAINT] > 5 && ends[MX_FINISH_LENGTH] > 5 &&
                ends[MX_FINISH_CONTEXT] > 5);
}

/* The same tokens are forbidden beforehand and rejected afterwards: the likeliest of the others is the same one. */
static mx_verdict obey(void *user, int32_t token) {
    rule *u = user;
    if (u->state % 5 && !((uint32_t)mixed(u->state + (uint64_t)token / 32) >> token % 32 & 1)) return MX_REJECTED;
    u->state = mixed(u->state * 3 + (uint64_t)token);
    return MX_CONTINUE;
}

static void rejected_or_forbidden(void **state) {
    (void)state;
    rule u[3];
    static answer masked[3];
    for (int how = 0; how < 3; how++) { /* by the mask, by rejection, and that where steps are taken at once */
        mx_engine *e = start(true, how == 2 ? MX_SPECULATE_ON : MX_SPECULATE_OFF, 0, 64);
        answer *out = how ? ahead : masked;
        for (int i = 0; i < 3; i++) {
            fill(prompt[i], 70, (uint64_t)i + 30);
            u[i] = (rule){.state = mixed((uint64_t)i), .masks = true};
            mx_request r = request_for(prompt[i], 63 + i, 100, &out[i]);
            r.constraint = (mx_constraint){.user = &u[i], .mask = how ? NULL : rule_mask, .accept = obey};
            submit(e, &r);
        }
        run_until_idle(e);
        for (int i = 0; i < 3; i++) {
            assert_int_equal(out[i].last.type, MX_EVENT_FINISHED);
            assert_int_equal(out[i].tokens, 100);
            assert_memory_equal(out[i].token, masked[i].token, sizeof *masked[i].token * 100);
            assert_memory_equal(out[i].logprob, masked[i].logprob, sizeof *masked[i].logprob * 100);
        }
        mx_engine_destroy(e);
    }
}

/* Several samples of one prompt: it is computed once. */
static void samples_of_one_prompt(void **state) {
    (void)state;
    mx_engine *e = start(true, MX_SPECULATE_OFF, 0, 64);
    mx_request r[8];
    fill(prompt[0], 200, 60);
    for (int i = 0; i < 8; i++) {
        r[i] = request_for(prompt[0], 200, 30, &ahead[i]);
        r[i].sampling.temperature = 1;
        r[i].sampling.seed = (uint64_t)i;
        submit(e, &r[i]);
    }
    run_until_idle(e);
    for (int i = 0; i < 8; i++) {
        check_answer(&ahead[i], &config, &r[i], 30, MX_FINISH_LENGTH);
        assert_int_equal(ahead[i].last.usage.cached_tokens, i ? 199 : 0);
    }
    assert_int_equal(backend->rows, 200 + 7 + 8 * 29);
    mx_engine_destroy(e);
}

/* ---- what fails ---------------------------------------------------------------------------------------------------
 */
/* A device that fails once: whatever was under way is computed again. */
static void what_fails_once_is_computed_again(void **state) {
    (void)state;
    for (int how = 0; how < 4; how++) {
        for (int at = 1; at < 25; at++) {
            mx_engine *e = start(true, MX_SPECULATE_OFF, 0, 40);
            *(how == 0   ? &device->fail_queue_in
              : how == 1 ? &device->fail_draw_in
              : how == 2 ? &backend->fail_in
                         : &backend->nan_in) = at;
            mx_request r[4];
            for (int i = 0; i < 4; i++) {
                fill(prompt[i], 70, (uint64_t)i + 50);
                r[i] = request_for(prompt[i], 40 + 10 * i, 15, &ahead[i]);
                submit(e, &r[i]);
            }
            run_until_idle(e);
            for (int i = 0; i < 4; i++) check_answer(&ahead[i], &config, &r[i], 15, MX_FINISH_LENGTH);
            assert_int_equal(backend->empty_reads, 0);
            mx_engine_destroy(e);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_is_always_under_way), cmocka_unit_test(the_host_works_beside_the_device),
        cmocka_unit_test(a_step_that_nobody_wants),   cmocka_unit_test(what_is_behind_an_end_is_forgotten),
        cmocka_unit_test(as_if_step_by_step),         cmocka_unit_test(rejected_or_forbidden),
        cmocka_unit_test(samples_of_one_prompt),      cmocka_unit_test(what_fails_once_is_computed_again),
    };
    return cmocka_run_group_tests_name("ahead", tests, NULL, NULL);
}
