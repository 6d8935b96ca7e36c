/* The six calls, on a model of hashes (fake_model.h). */
#include <assert.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "check_engine.h"
#include "model/sampler.h"

static mx_config config;
static fake_backend *backend;

static mx_engine *start(const char *pattern, int64_t context) {
    config = fake_config(pattern, 128, FAKE_MOST);
    return fake_engine(&config, context, 0, 64, &backend);
}

static void expect(const answer *a, const mx_request *r, int count, mx_finish finish) {
    check_answer(a, &config, r, count, finish);
}

static bool readable(const mx_engine *e) {
    struct pollfd p = {.fd = mx_engine_fd(e), .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

/* ---- tests --------------------------------------------------------------------------------------------------------
 */
static void every_length_and_chunk(void **state) {
    (void)state;
    static const int lengths[] = {1, 2, 63, 64, 65, 127, 128, 129, 192, 500, 1500};
    static const int chunks[] = {1, 7, 64, 512};
    static int32_t prompt[1500];
    static answer a;
    fill(prompt, 1500, 1);
    for (int c = 0; c < 4; c++) {
        config = fake_config("sfs", 128, FAKE_MOST);
        mx_engine *e = fake_engine(&config, 2000, 0, chunks[c], &backend);
        for (int l = 0; l < 11; l++) {
            prompt[0] = (prompt[0] + 1) % FAKE_VOCAB; /* nothing is reused */
            mx_request r = request_for(prompt, lengths[l], 20, &a);
            r.sampling.temperature = (float)(l % 2);
            r.sampling.seed = (uint64_t)l;
            backend->rows = backend->largest = 0;
            submit(e, &r);
            run_until_idle(e);
            expect(&a, &r, 20, MX_FINISH_LENGTH);
            assert_int_equal(a.last.usage.prompt_tokens, lengths[l]);
            assert_int_equal(a.last.usage.cached_tokens, 0);
            assert_int_equal(backend->rows, lengths[l] + 19);
            assert_int_equal(backend->largest, lengths[l] < chunks[c] ? lengths[l] : chunks[c]);
        }
        assert_int_equal(backend->empty_reads, 0);
        mx_engine_destroy(e);
    }
}

static void cached_turns(void **state) {
    (void)state;
    static int32_t prompt[1000];
    static answer a;
    mx_engine *e = start("sfsf", 1000);
    fill(prompt, 1000, 2);
    for (int64_t n = 150, before = 0; n <= 750; before = n, n += 200) { /* the answers are dropped */
        mx_request r = request_for(prompt, n, 180, &a);
        r.sampling.temperature = 1;
        r.sampling.seed = (uint64_t)n;
        backend->rows = 0;
        submit(e, &r);
        run_until_idle(e);
        expect(&a, &r, 180, MX_FINISH_LENGTH);
        assert_int_equal(a.last.usage.cached_tokens, before);
        assert_int_equal(backend->rows, n - before + 179);
    }
    memcpy(prompt + 750, a.token, sizeof *a.token * 180); /* the last answer is kept */
    mx_request r = request_for(prompt, 935, 10, &a);
    submit(e, &r);
    run_until_idle(e);
    expect(&a, &r, 10, MX_FINISH_LENGTH);
    assert_int_equal(a.last.usage.cached_tokens, 929);
    assert_true(a.last.usage.prompt_seconds > 0 && a.last.usage.generate_seconds > 0);
    mx_engine_info info = mx_engine_get_info(e);
    assert_true(info.kv_bytes_used > 0 && info.kv_bytes_used <= info.kv_bytes);
    assert_int_equal(info.context, 1000);
    mx_engine_destroy(e);
}

static void how_answers_end(void **state) {
    (void)state;
    static int32_t prompt[300];
    static answer a;
    int32_t expected[50];
    mx_engine *e = start("sf", 300);
    fill(prompt, 300, 3);
    mx_request r = request_for(prompt, 100, 50, &a);
    fake_answer(&config, prompt, 100, &r.sampling, expected, 50);

    int at = 10; /* a token that does not come before */
    for (int i = 0; i < at; i++)
        if (expected[i] == expected[at]) at++, i = -1;
    int32_t stop[2] = {-1, expected[at]};
    r.stop = stop, r.stop_count = 2;
    submit(e, &r);
    stop[1] = -1; /* it was copied */
    run_until_idle(e);
    expect(&a, &r, at + 1, MX_FINISH_STOP);

    r = request_for(prompt, 250, 0, &a);
    submit(e, &r);
    run_until_idle(e);
    expect(&a, &r, 50, MX_FINISH_CONTEXT);
    r = request_for(prompt, 250, 50, &a);
    submit(e, &r);
    run_until_idle(e);
    expect(&a, &r, 50, MX_FINISH_LENGTH);
    r = request_for(prompt, 250, 51, &a);
    submit(e, &r);
    run_until_idle(e);
    expect(&a, &r, 50, MX_FINISH_CONTEXT);
    r = request_for(prompt, 299, 0, &a);
    submit(e, &r);
    run_until_idle(e);
    expect(&a, &r, 1, MX_FINISH_CONTEXT);
    mx_engine_destroy(e);
}

static void refused(mx_engine *e, mx_request r, mx_status status, const char *words) {
    mx_handle handle;
    mx_error error;
    assert_int_equal(mx_submit(e, &r, &handle, &error), status);
    if (!strstr(error.text, words)) fail_msg("'%s' does not say '%s'", error.text, words);
    assert_true(mx_engine_idle(e));
}

static void bad_requests(void **state) {
    (void)state;
    static int32_t prompt[400];
    static answer a;
    mx_engine *e = start("sf", 300);
    fill(prompt, 400, 4);
    const mx_request good = request_for(prompt, 10, 5, &a);
    mx_request r = good;
    r.prompt_count = 300;
    refused(e, r, MX_CONTEXT_FULL, "300 tokens and the context holds 300");
    r.prompt_count = 0;
    refused(e, r, MX_INVALID_ARGUMENT, "empty");
    r = good, r.prompt = NULL;
    refused(e, r, MX_INVALID_ARGUMENT, "empty");
    r = good, r.max_tokens = -1;
    refused(e, r, MX_INVALID_ARGUMENT, "max_tokens -1");
    r = good, r.stop_count = 2;
    refused(e, r, MX_INVALID_ARGUMENT, "stop_count");
    r = good, r.sampling.bias_count = 2;
    refused(e, r, MX_INVALID_ARGUMENT, "bias_count");
    r = good, r.sampling.top_p = 2;
    refused(e, r, MX_INVALID_ARGUMENT, "top_p");
    r = good, r.sampling.temperature = NAN;
    refused(e, r, MX_INVALID_ARGUMENT, "temperature");
    const mx_logit_bias bias = {FAKE_VOCAB, 1};
    r = good, r.sampling.bias = &bias, r.sampling.bias_count = 1;
    refused(e, r, MX_INVALID_ARGUMENT, "token 61");
    prompt[7] = FAKE_VOCAB;
    refused(e, good, MX_INVALID_ARGUMENT, "token 7 of the prompt is 61");
    prompt[7] = -1;
    refused(e, good, MX_INVALID_ARGUMENT, "token 7 of the prompt is -1");
    assert_int_equal(collect(e, 8), 0);
    step(e); /* nothing to do */
    mx_engine_destroy(e);
}

static void penalties_and_bias_reach_the_sampler(void **state) {
    (void)state;
    int32_t prompt[30];
    static answer a;
    mx_engine *e = start("sf", 300);
    fill(prompt, 30, 5);
    mx_logit_bias bias = {17, 100};
    mx_request r = request_for(prompt, 30, 40, &a);
    r.sampling.bias = &bias, r.sampling.bias_count = 1;
    submit(e, &r);
    bias.token = 3; /* it was copied */
    run_until_idle(e);
    for (int i = 0; i < 40; i++) assert_int_equal(a.token[i], 17);

    /* with a presence penalty beyond any logit no token comes twice, whatever the prompt holds */
    r = request_for(prompt, 30, FAKE_VOCAB, &a);
    r.sampling.presence_penalty = 100;
    submit(e, &r);
    run_until_idle(e);
    bool seen[FAKE_VOCAB] = {0};
    for (int i = 0; i < FAKE_VOCAB; i++) {
        assert_false(seen[a.token[i]]);
        seen[a.token[i]] = true;
    }
    /* a frequency penalty evens out how often they come */
    r = request_for(prompt, 30, 2 * FAKE_VOCAB, &a);
    r.sampling.frequency_penalty = 100;
    submit(e, &r);
    run_until_idle(e);
    int count[FAKE_VOCAB] = {0};
    for (int i = 0; i < 2 * FAKE_VOCAB; i++) count[a.token[i]]++;
    for (int i = 0; i < FAKE_VOCAB; i++) assert_int_equal(count[i], 2);
    /* a repetition penalty knows the prompt too: here logits are positive and its tokens come last */
    r = request_for(prompt, 30, 10, &a);
    r.sampling.repetition_penalty = 1e6f;
    submit(e, &r);
    run_until_idle(e);
    for (int i = 0; i < 10; i++) {
        for (int j = 0; j < 30; j++) assert_int_not_equal(a.token[i], prompt[j]);
        for (int j = 0; j < i; j++) assert_int_not_equal(a.token[i], a.token[j]);
    }
    mx_engine_destroy(e);
}

static void order_and_events(void **state) {
    (void)state;
    static int32_t prompt[3][200];
    static answer a[3];
    mx_request r[3];
    mx_engine *e = start("sf", 400);
    assert_true(mx_engine_idle(e));
    assert_false(readable(e));
    for (int i = 0; i < 3; i++) {
        fill(prompt[i], 200, (uint64_t)i + 10);
        r[i] = request_for(prompt[i], 200, 5, &a[i]);
        submit(e, &r[i]);
    }
    assert_false(readable(e));
    assert_false(mx_engine_idle(e));
    for (int i = 0; i < 4; i++) step(e); /* 64 + 64 + 64 + 8 rows: the first token of the first */
    if (fake_engine_runs_ahead()) step(e);
    assert_true(readable(e));
    assert_int_equal(collect(e, 8), 1);
    assert_false(readable(e));
    assert_int_equal(a[0].tokens, 1);
    while (!mx_engine_idle(e)) step(e); /* nobody polls */
    assert_true(readable(e));
    for (int left = 3 * 6 - 1; left > 0; left--) { /* one at a time, first come first */
        assert_true(readable(e));
        assert_int_equal(collect(e, 1), 1);
        assert_true(a[1].tokens == 0 || a[0].ends);
        assert_true(a[2].tokens == 0 || a[1].ends);
    }
    assert_int_equal(collect(e, 8), 0);
    assert_false(readable(e));
    for (int i = 0; i < 3; i++) expect(&a[i], &r[i], 5, MX_FINISH_LENGTH);
    mx_engine_destroy(e);
}

static void cancelling(void **state) {
    (void)state;
    static int32_t prompt[4][200];
    static answer a[4];
    mx_request r[4];
    mx_handle handle[4];
    mx_engine *e = start("sf", 400);
    for (int i = 0; i < 4; i++) {
        fill(prompt[i], 200, (uint64_t)i + 20);
        r[i] = request_for(prompt[i], 200, 5, &a[i]);
        handle[i] = submit(e, &r[i]);
    }
    mx_cancel(e, handle[2]); /* waits still */
    step(e);
    mx_cancel(e, handle[0]); /* in the middle of its prompt */
    mx_cancel(e, 12345);
    run_until_idle(e);
    expect(&a[0], &r[0], 0, MX_FINISH_CANCELLED);
    expect(&a[1], &r[1], 5, MX_FINISH_LENGTH);
    expect(&a[2], &r[2], 0, MX_FINISH_CANCELLED);
    expect(&a[3], &r[3], 5, MX_FINISH_LENGTH);
    mx_cancel(e, handle[3]); /* gone */
    assert_true(mx_engine_idle(e));

    r[0] = request_for(prompt[0], 200, 50, &a[0]); /* in the middle of its answer; what was computed is kept */
    handle[0] = submit(e, &r[0]);
    while (a[0].tokens < 10) {
        step(e);
        collect(e, 8);
    }
    mx_cancel(e, handle[0]);
    run_until_idle(e);
    expect(&a[0], &r[0], 10, MX_FINISH_CANCELLED);
    memcpy(prompt[1], prompt[0], sizeof prompt[0]);
    int32_t longer[220];
    memcpy(longer, prompt[0], sizeof prompt[0]);
    memcpy(longer + 200, a[0].token, sizeof *longer * 10);
    fill(longer + 210, 10, 9);
    r[1] = request_for(longer, 220, 3, &a[1]);
    submit(e, &r[1]);
    run_until_idle(e);
    expect(&a[1], &r[1], 3, MX_FINISH_LENGTH);
    assert_int_equal(a[1].last.usage.cached_tokens, 209);

    submit(e, &r[1]); /* destroyed while one runs and one waits */
    submit(e, &r[1]);
    step(e);
    mx_engine_destroy(e);
}

/* A step that fails is computed again, one request after the other; who fails alone, or has logits that are no numbers,
 * ends. */
static void failures_stay_with_their_request(void **state) {
    (void)state;
    static int32_t prompt[2][300];
    static answer a, b;
    mx_engine *e = start("sf", 400);
    for (int how = 0; how < 6; how++) {
        int32_t *guilty = how < 3 ? &backend->fail_token : &backend->nan_token;
        fill(prompt[0], 300, (uint64_t)how + 30);
        for (int i = 0; i < 300; i++) prompt[0][i] %= FAKE_VOCAB - 1;
        memcpy(prompt[1], prompt[0], sizeof prompt[0]);
        prompt[1][70] = prompt[0][70] ? 0 : 1;
        if (how % 3 < 2) prompt[0][how % 3 || how == 3 ? 299 : 130] = *guilty = FAKE_VOCAB - 1;
        mx_request r = request_for(prompt[0], 300, 30, &a), s = request_for(prompt[1], 250, 30, &b);
        const mx_logit_bias never = {FAKE_VOCAB - 1, -1000};
        r.sampling.bias = s.sampling.bias = &never, r.sampling.bias_count = s.sampling.bias_count = 1;
        submit(e, &r);
        submit(e, &s);
        while (*guilty < 0) { /* in the middle of its answer */
            step(e);
            collect(e, 8);
            if (a.tokens > 5 && b.tokens > 5 && a.token[a.tokens - 1] != b.token[b.tokens - 1])
                *guilty = a.token[a.tokens - 1];
        }
        const int tokens = a.tokens;
        step(e);
        if (fake_engine_runs_ahead()) step(e); /* who fails then is computed again, with the others and alone */
        collect(e, 8);
        if (how % 3 == 2) *guilty = -1;
        run_until_idle(e);
        assert_int_equal(a.ends, 1);
        assert_int_equal(a.tokens, tokens);
        assert_int_equal(a.last.type, MX_EVENT_FAILED);
        assert_int_equal(a.last.error.status, how < 3 ? MX_IO : MX_INVALID_STATE);
        assert_non_null(strstr(a.last.error.text, how < 3 ? "on fire" : "token 7 is"));
        assert_int_equal(b.last.type, MX_EVENT_FINISHED);
        assert_int_equal(b.tokens, 30);

        *guilty = -1;
        a.ends = a.tokens = 0;
        submit(e, &r); /* of what it computed itself nothing is reused */
        run_until_idle(e);
        assert_int_equal(a.last.type, MX_EVENT_FINISHED);
        assert_true(a.last.usage.cached_tokens <= 70);
    }
    mx_engine_destroy(e);
}

/* ---- constraints --------------------------------------------------------------------------------------------------
 */
typedef struct rule {
    int parity;    /* of the tokens allowed */
    bool masks;    /* says so beforehand */
    int finish_at; /* token that is the last; 0: none */
    int accepted, destroyed;
    bool nothing; /* forbids everything */
} rule;

static bool rule_mask(void *user, uint32_t *bits, int32_t vocab) {
    const rule *u = user;
    for (int32_t i = 0; i < vocab; i++)
        if (u->nothing || i % 2 != u->parity) bits[i / 32] &= ~(1u << i % 32);
    return u->masks;
}

static mx_verdict rule_accept(void *user, int32_t token) {
    rule *u = user;
    if (token % 2 != u->parity || (u->nothing && !u->masks)) return MX_REJECTED;
    return ++u->accepted == u->finish_at ? MX_FINISHED : MX_CONTINUE;
}

static void rule_destroy(void *user) {
    ((rule *)user)->destroyed++;
}

static void constraints(void **state) {
    (void)state;
    int32_t prompt[50];
    static answer a[2];
    mx_engine *e = start("sf", 200);
    fill(prompt, 50, 40);
    for (int how = 0; how < 2; how++) { /* by mask, by rejection: greedy, so the same tokens */
        rule u = {.parity = 1, .masks = how == 0, .finish_at = 30};
        mx_request r = request_for(prompt, 50, 0, &a[how]);
        r.constraint = (mx_constraint){
            .user = &u, .mask = how == 0 ? rule_mask : NULL, .accept = rule_accept, .destroy = rule_destroy};
        submit(e, &r);
        run_until_idle(e);
        assert_int_equal(a[how].last.type, MX_EVENT_FINISHED);
        assert_int_equal(a[how].last.finish, MX_FINISH_CONSTRAINT);
        assert_int_equal(a[how].tokens, 30);
        assert_int_equal(u.accepted, 30);
        assert_int_equal(u.destroyed, 1);
        for (int i = 0; i < 30; i++) assert_int_equal(a[how].token[i] % 2, 1);
    }
    assert_memory_equal(a[0].token, a[1].token, sizeof *a[0].token * 30);

    for (int how = 0; how < 2; how++) { /* no way on: this request fails, and only this one */
        rule u = {.masks = how == 0, .nothing = true};
        mx_request r = request_for(prompt, 50, 5, &a[0]);
        r.constraint = (mx_constraint){
            .user = &u, .mask = how == 0 ? rule_mask : NULL, .accept = rule_accept, .destroy = rule_destroy};
        submit(e, &r);
        run_until_idle(e);
        assert_int_equal(a[0].last.type, MX_EVENT_FAILED);
        assert_non_null(strstr(a[0].last.error.text, "constraint"));
        assert_int_equal(u.destroyed, 1);
    }

    rule u[3] = {{0}}; /* cancelled while it runs, while it waits, and unfinished when the engine goes */
    mx_handle handle[3];
    for (int i = 0; i < 3; i++) {
        mx_request r = request_for(prompt, 50, 20, &a[0]);
        r.constraint = (mx_constraint){.user = &u[i], .accept = rule_accept, .destroy = rule_destroy};
        handle[i] = submit(e, &r);
    }
    step(e);
    mx_cancel(e, handle[0]);
    mx_cancel(e, handle[1]);
    step(e);
    assert_int_equal(u[0].destroyed + u[1].destroyed, 2);
    assert_int_equal(u[2].destroyed, 0);
    mx_engine_destroy(e);
    assert_int_equal(u[2].destroyed, 1);
}

static void rejection_draws_from_what_is_left(void **state) {
    (void)state;
    enum { DRAWS = 6000 };
    int32_t prompt[50];
    static answer a;
    int count[2][FAKE_VOCAB] = {{0}};
    mx_engine *e = start("sf", 200);
    fill(prompt, 50, 41);
    for (int i = 0; i < 2 * DRAWS; i++) { /* by mask, by rejection: the same distribution */
        rule u = {.parity = 1, .masks = true};
        mx_request r = request_for(prompt, 50, 1, &a);
        r.sampling.temperature = 1;
        r.sampling.seed = (uint64_t)i;
        r.constraint = (mx_constraint){.user = &u, .mask = i % 2 ? NULL : rule_mask, .accept = rule_accept};
        submit(e, &r);
        run_until_idle(e);
        assert_int_equal(a.tokens, 1);
        count[i % 2][a.token[0]]++;
    }
    double chi = 0; /* of two samples of one size, 29 degrees: P < 1e-6 */
    for (int i = 1; i < FAKE_VOCAB; i += 2) {
        double d = count[0][i] - count[1][i];
        if (d != 0) chi += d * d / (count[0][i] + count[1][i]);
    }
    assert_true(chi < 85);
    mx_engine_destroy(e);
}

/* The odd tokens alone are there, or a mask forbids the others: the likeliest is the same one, step for step. */
static void ids_without_a_token(void **state) {
    (void)state;
    int32_t prompt[50];
    static answer a[2];
    static uint32_t odd[FAKE_MOST / 32 + 1];
    memset(odd, 0xaa, sizeof odd);
    mx_engine *e = start("sf", 200);
    fill(prompt, 50, 43);
    for (int how = 0; how < 2; how++) {
        rule u = {.parity = 1, .masks = true};
        mx_request r = request_for(prompt, 50, 100, &a[how]);
        if (!how) r.constraint = (mx_constraint){.user = &u, .mask = rule_mask, .accept = rule_accept};
        submit(e, &r);
        run_until_idle(e);
        assert_int_equal(a[how].tokens, 100);
        mx_engine_destroy(e);
        const mx_engine_parts parts = {
            .config = &config, .batch_tokens = 64, .speculation = MX_SPECULATE_OFF, .tokens = odd};
        e = how ? NULL : fake_engine_with(&parts, 200, 0, &backend);
    }
    assert_memory_equal(a[0].token, a[1].token, 100 * sizeof *a[0].token);
}

/* ---- threads ------------------------------------------------------------------------------------------------------
 */
enum { CLIENTS = 4, ROUNDS = 40 };

typedef struct client {
    mx_engine *engine;
    int number;
    int finished, cancelled;
} client;

static pthread_mutex_t poll_lock = PTHREAD_MUTEX_INITIALIZER;
static int open_requests;

/* Whoever polls gets everyone's events: `user` tells whose. */
static void poll_once(mx_engine *e) {
    mx_event event[8];
    pthread_mutex_lock(&poll_lock);
    int n = mx_poll(e, event, 8);
    for (int i = 0; i < n; i++) {
        client *c = event[i].user;
        if (event[i].type == MX_EVENT_TOKEN) continue;
        assert(event[i].type == MX_EVENT_FINISHED);
        c->finished++;
        c->cancelled += event[i].finish == MX_FINISH_CANCELLED;
        open_requests--;
    }
    pthread_mutex_unlock(&poll_lock);
}

static void *client_main(void *arg) {
    client *c = arg;
    int32_t prompt[100];
    for (int i = 0; i < ROUNDS; i++) {
        fill(prompt, 100, (uint64_t)(c->number * ROUNDS + i) / 3);
        mx_request r = {.prompt = prompt,
                        .prompt_count = 20 + i,
                        .max_tokens = 1 + i % 9,
                        .sampling = MX_SAMPLING_DEFAULT,
                        .user = c};
        mx_handle handle;
        pthread_mutex_lock(&poll_lock);
        open_requests++;
        pthread_mutex_unlock(&poll_lock);
        mx_status status = mx_submit(c->engine, &r, &handle, NULL);
        assert(status == MX_OK);
        if (i % 3 == 0) mx_cancel(c->engine, handle);
        mx_engine_get_info(c->engine);
        poll_once(c->engine);
    }
    return NULL;
}

static void calls_from_many_threads(void **state) {
    (void)state;
    mx_engine *e = start("sf", 300);
    backend->sleep_us = 20;
    client c[CLIENTS];
    pthread_t thread[CLIENTS];
    open_requests = 1; /* this thread's own, until all clients were started */
    for (int i = 0; i < CLIENTS; i++) {
        c[i] = (client){e, i, 0, 0};
        assert_int_equal(pthread_create(&thread[i], NULL, client_main, &c[i]), 0);
    }
    int finished = 0;
    while (finished < CLIENTS * ROUNDS) {
        mx_error error;
        assert_int_equal(mx_step(e, &error), MX_OK);
        poll_once(e);
        pthread_mutex_lock(&poll_lock);
        finished = 0;
        for (int i = 0; i < CLIENTS; i++) finished += c[i].finished;
        pthread_mutex_unlock(&poll_lock);
    }
    for (int i = 0; i < CLIENTS; i++) pthread_join(thread[i], NULL);
    assert_int_equal(open_requests, 1);
    assert_true(mx_engine_idle(e));
    assert_false(readable(e));
    mx_engine_destroy(e);
}

static mx_handle inner;
static answer inner_answer;

static void call_everything(void *user) {
    int32_t token = 5;
    mx_error error;
    mx_request r = request_for(&token, 1, 3, &inner_answer);
    assert_int_equal(mx_step(user, &error), MX_INVALID_STATE);
    assert_non_null(strstr(error.text, "one caller"));
    if (!inner) inner = submit(user, &r);
    mx_cancel(user, inner);
    mx_poll(user, NULL, 0);
    assert_false(mx_engine_idle(user));
}

static void the_lock_is_free_during_a_step(void **state) {
    (void)state;
    static int32_t prompt[10];
    static answer a;
    mx_engine *e = start("sf", 300);
    backend->during = call_everything;
    backend->user = e;
    mx_request r = request_for(prompt, 10, 4, &a);
    submit(e, &r);
    while (!mx_engine_idle(e)) assert_int_equal(mx_step(e, NULL), MX_OK);
    while (collect(e, 8) > 0) {
    }
    expect(&a, &r, 4, MX_FINISH_LENGTH);
    assert_int_equal(inner_answer.last.finish, MX_FINISH_CANCELLED);
    mx_engine_destroy(e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_length_and_chunk),
        cmocka_unit_test(cached_turns),
        cmocka_unit_test(how_answers_end),
        cmocka_unit_test(bad_requests),
        cmocka_unit_test(penalties_and_bias_reach_the_sampler),
        cmocka_unit_test(order_and_events),
        cmocka_unit_test(cancelling),
        cmocka_unit_test(failures_stay_with_their_request),
        cmocka_unit_test(constraints),
        cmocka_unit_test(rejection_draws_from_what_is_left),
        cmocka_unit_test(ids_without_a_token),
        cmocka_unit_test(calls_from_many_threads),
        cmocka_unit_test(the_lock_is_free_during_a_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
