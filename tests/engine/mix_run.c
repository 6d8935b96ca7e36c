/* Mixes in engines: all at once, and each request alone. */
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "deferred.h"
#include "engine/prefix_tree.h"
#include "mix.h"

/* ---- what the cache does ------------------------------------------------------------------------------------------
 */
static int64_t dropped_pages, copied_pages;
bool __real_mx_prefix_make_room(mx_prefix_tree *tree, int64_t pages);
bool __wrap_mx_prefix_make_room(mx_prefix_tree *tree, int64_t pages);
int32_t __real_mx_page_take_copy(mx_page_pool *pool, int32_t from);
int32_t __wrap_mx_page_take_copy(mx_page_pool *pool, int32_t from);
bool __wrap_mx_prefix_make_room(mx_prefix_tree *tree, int64_t pages) {
    const int64_t before = tree->pool->free_count;
    const bool made = __real_mx_prefix_make_room(tree, pages);
    dropped_pages += tree->pool->free_count - before;
    return made;
}
int32_t __wrap_mx_page_take_copy(mx_page_pool *pool, int32_t from) {
    copied_pages++;
    return __real_mx_page_take_copy(pool, from);
}

/* ---- running ahead ------------------------------------------------------------------------------------------------
 */
static bool defer; /* what the next engine computes */
mx_status __real_mx_cpu_backend_create(const mx_weights *weights, mx_pool *pool, const mx_backend_options *options,
                                       mx_backend **out, mx_error *error);
mx_status __wrap_mx_cpu_backend_create(const mx_weights *weights, mx_pool *pool, const mx_backend_options *options,
                                       mx_backend **out, mx_error *error);
mx_precisions __real_mx_cpu_backend_precision(const mx_backend *b);
mx_precisions __wrap_mx_cpu_backend_precision(const mx_backend *b);
mx_status __wrap_mx_cpu_backend_create(const mx_weights *weights, mx_pool *pool, const mx_backend_options *options,
                                       mx_backend **out, mx_error *error) {
    const mx_status status = __real_mx_cpu_backend_create(weights, pool, options, out, error);
    if (!status && defer) *out = deferred_create(*out, &weights->config);
    return status;
}
mx_precisions __wrap_mx_cpu_backend_precision(const mx_backend *b) {
    return __real_mx_cpu_backend_precision(defer ? deferred_inner(b) : b);
}

/* ---- constraints --------------------------------------------------------------------------------------------------
 */
static uint64_t mixed(uint64_t v) {
    v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9u;
    v = (v ^ (v >> 27)) * 0x94d049bb133111ebu;
    return v ^ (v >> 31);
}

/* Half of the tokens, other ones behind other tokens; now and then nothing. */
static bool rule_mask(void *user, uint32_t *bits, int32_t vocab) {
    const mix_rule *rule = user;
    if (!rule->masks || rule->state % 5 == 0) return false;
    for (int32_t i = 0; i < (vocab + 31) / 32; i++) bits[i] &= (uint32_t)mixed(rule->state + (uint64_t)i);
    return true;
}

static mx_verdict rule_accept(void *user, int32_t token) {
    mix_rule *rule = user;
    const uint64_t next = mixed(rule->state ^ ((uint64_t)token << 20));
    if (rule->refuse_from >= 0 && rule->accepted >= rule->refuse_from) return MX_REJECTED;
    if (rule->rejects && next % 4 == 0) return MX_REJECTED;
    rule->state = next;
    rule->accepted++;
    return rule->accepted == rule->finish_at ? MX_FINISHED : MX_CONTINUE;
}

static void rule_destroy(void *user) {
    ((mix_rule *)user)->destroyed++;
}

static void use_rule(mx_request *q, const mix_rule *from, mix_rule *rule) {
    if (!from->seed) return;
    *rule = *from;
    rule->state = mixed(rule->seed);
    q->constraint = (mx_constraint){.user = rule, .mask = rule_mask, .accept = rule_accept, .destroy = rule_destroy};
}

/* ---- engines and events -------------------------------------------------------------------------------------------
 */
static mx_engine *create(const mix *m, const mx_engine_options *options, bool ahead) {
    mx_engine *engine;
    mx_error error;
    if (m->tier) setenv("MXRUN_CPU", m->tier, 1);
    defer = ahead;
    const mx_status status = mx_engine_create(m->model->model, options, &engine, &error);
    if (m->tier) unsetenv("MXRUN_CPU");
    if (status) fail_msg("mix %llu: %s", (unsigned long long)m->seed, error.text);
    return engine;
}

static void submit(mx_engine *engine, const mx_request *request, mix_answer *answer) {
    mx_error error;
    mx_request q = *request;
    q.user = answer;
    if (mx_submit(engine, &q, &answer->handle, &error)) fail_msg("%s", error.text);
}

static void step(mx_engine *engine) {
    mx_error error;
    if (mx_step(engine, &error)) fail_msg("%s", error.text);
}

static void take(const mx_event *event) {
    mix_answer *a = event->user;
    const mx_request *q = &a->of->request;
    assert_int_equal(a->ends, 0);
    if (!a->told) a->told = event->request;
    assert_int_equal(event->request, a->told);
    if (event->type == MX_EVENT_FINISHED || event->type == MX_EVENT_FAILED) {
        a->ends++;
        a->last = *event;
        assert_int_equal(event->usage.generated_tokens, a->tokens);
        assert_int_equal(event->usage.prompt_tokens, q->prompt_count);
        return;
    }
    const int64_t row = a->prompt_rows + a->tokens;
    assert_true(row < a->room);
    mx_alternative *said = a->said + row * (1 + q->top_logprobs);
    said[0] = (mx_alternative){event->token, event->logprob};
    if (event->type == MX_EVENT_PROMPT) {
        assert_true(q->prompt_logprobs && a->tokens == 0 && row < q->prompt_count);
        assert_int_equal(event->token, a->of->prompt[row]);
        assert_int_equal(event->top_count, row ? q->top_logprobs : 0);
        a->prompt_rows++;
    } else {
        assert_int_equal(event->top_count, q->top_logprobs);
        a->tokens++;
    }
    if (event->top_count > 0) memcpy(said + 1, event->top, sizeof *said * (size_t)event->top_count);
}

static int poll_once(mx_engine *engine, int at_once) {
    mx_event event[64];
    const int n = mx_poll(engine, event, at_once);
    for (int i = 0; i < n; i++) take(&event[i]);
    return n;
}

/* ---- all at once --------------------------------------------------------------------------------------------------
 */
/* Whether it can be submitted: the one that it follows has ended, if there is one. */
static bool complete(mix *m, mix_request *r) {
    if (r->follows < 0) return true;
    const mix_request *o = &m->request[r->follows];
    if (!o->together.ends) return false;
    const int64_t kept = (int64_t)(r->kept * (double)o->together.tokens + 0.5);
    int64_t n = o->request.prompt_count;
    memcpy(r->prompt, o->prompt, sizeof *r->prompt * (size_t)n);
    const mx_alternative *said = o->together.said + o->together.prompt_rows * (1 + o->request.top_logprobs);
    for (int64_t i = 0; i < kept; i++) r->prompt[n++] = said[i * (1 + o->request.top_logprobs)].token;
    memcpy(r->prompt + n, r->tail, sizeof *r->prompt * (size_t)r->tail_count);
    r->request.prompt_count = n + r->tail_count;
    return true;
}

static bool is_due(const mix *m, const mix_request *r, int64_t now) {
    if (r->submitted) return false;
    if (r->follows < 0) return r->submit_step <= now;
    const mix_request *o = &m->request[r->follows];
    return o->together.ends && o->ended_step + r->submit_step % 20 <= now;
}

static void submit_due(mix *m, mx_engine *engine, int64_t now) {
    for (int i = 0; i < m->count; i++) {
        mix_request *r = &m->request[i];
        if (!is_due(m, r, now) || !complete(m, r)) continue;
        mx_request q = r->request;
        use_rule(&q, &r->rule, &r->rule_together);
        submit(engine, &q, &r->together);
        r->submitted = true;
        r->submitted_step = now;
    }
}

static void cancel_due(mix *m, mx_engine *engine, int64_t now) {
    for (int i = 0; i < m->count; i++) {
        mix_request *r = &m->request[i];
        if (!r->submitted || r->cancelled) continue;
        const bool step_came = r->cancel_step >= 0 && now >= r->submitted_step + r->cancel_step;
        const bool token_came = r->cancel_token >= 0 && r->together.tokens >= r->cancel_token;
        if (!step_came && !token_came) continue;
        r->cancelled = true;
        mx_cancel(engine, r->together.handle);
    }
}

static void check_end(const mix *m, mx_engine *engine, const mx_engine_stats *s) {
    const mx_engine_info info = mx_engine_get_info(engine);
    int64_t cached = 0, generated = 0, set_back = 0, drafted = 0, accepted = 0;
    for (int i = 0; i < m->count; i++) {
        const mix_request *r = &m->request[i];
        const struct mx_usage *u = &r->together.last.usage;
        assert_int_equal(r->together.ends, 1);
        assert_int_equal(r->together.told, r->together.handle);
        assert_int_equal(r->rule_together.destroyed, r->rule.seed != 0);
        cached += u->cached_tokens;
        generated += u->generated_tokens;
        set_back += u->set_back;
        drafted += u->drafted_tokens;
        accepted += u->accepted_tokens;
    }
    assert_int_equal(s->submitted, m->count);
    assert_int_equal(s->finished, m->count);
    assert_int_equal(s->running + s->waiting, 0);
    assert_int_equal(s->cached_tokens, cached);
    assert_int_equal(s->generated_tokens, generated);
    assert_int_equal(s->set_back, set_back);
    assert_int_equal(s->drafted_tokens, drafted);
    assert_int_equal(s->accepted_tokens, accepted);
    assert_int_equal(info.kv_bytes_used, s->kv_bytes_cached); /* no page is held by nobody */
}

void mix_run_together(mix *m, mix_counts *counts) {
    mx_engine *engine = create(m, &m->together, m->ahead);
    dropped_pages = copied_pages = 0;
    int64_t submitted = 0;
    for (int64_t now = 0; submitted < m->count || !mx_engine_idle(engine); now++) {
        submit_due(m, engine, now);
        cancel_due(m, engine, now);
        step(engine);
        while (now % m->poll_every == 0 && poll_once(engine, m->at_once) > 0) cancel_due(m, engine, now);
        submitted = 0;
        for (int i = 0; i < m->count; i++) {
            mix_request *r = &m->request[i];
            submitted += r->submitted;
            if (r->together.ends && !r->ended_step) r->ended_step = now;
        }
    }
    while (poll_once(engine, m->at_once) > 0) continue;
    *counts = (mix_counts){mx_engine_get_stats(engine), dropped_pages, copied_pages};
    check_end(m, engine, &counts->stats);
    mx_engine_destroy(engine);
}

/* ---- many threads -------------------------------------------------------------------------------------------------
 */
/* An assertion that fails in one of them ends the program. */
enum { SUBMITTERS = 3, POLLERS = 2 };

typedef struct crowd {
    mix *m;
    mx_engine *engine;
    pthread_mutex_t told; /* guards what requests were told: `top` of an event is gone with the next mx_poll */
    atomic_bool done;
    atomic_int submitters;
} crowd;

static bool may_submit(crowd *c, mix_request *r, int64_t now) {
    pthread_mutex_lock(&c->told);
    const bool may = is_due(c->m, r, now) && complete(c->m, r);
    pthread_mutex_unlock(&c->told);
    return may;
}

static void cancel_if_due(crowd *c, mix_request *r, int64_t now) {
    if (!r->submitted || r->cancelled) return;
    pthread_mutex_lock(&c->told);
    const bool token_came = r->cancel_token >= 0 && r->together.tokens >= r->cancel_token;
    pthread_mutex_unlock(&c->told);
    if (!token_came && (r->cancel_step < 0 || now < r->submitted_step + r->cancel_step)) return;
    r->cancelled = true;
    mx_cancel(c->engine, r->together.handle);
}

/* Has every third request, and cancels it. */
static void *submits(void *user) {
    crowd *c = user;
    const int first = atomic_fetch_add(&c->submitters, 1);
    for (int64_t now = 0; !atomic_load(&c->done); now++) {
        for (int i = first; i < c->m->count; i += SUBMITTERS) {
            mix_request *r = &c->m->request[i];
            if (may_submit(c, r, now)) {
                mx_request q = r->request;
                use_rule(&q, &r->rule, &r->rule_together);
                submit(c->engine, &q, &r->together);
                r->submitted = true;
                r->submitted_step = now;
            }
            cancel_if_due(c, r, now);
        }
        usleep(200);
    }
    return NULL;
}

static void *polls(void *user) {
    crowd *c = user;
    struct pollfd fd = {.fd = mx_engine_fd(c->engine), .events = POLLIN};
    while (!atomic_load(&c->done)) {
        poll(&fd, 1, 1);
        pthread_mutex_lock(&c->told);
        while (poll_once(c->engine, c->m->at_once) > 0) continue;
        int ended = 0;
        for (int i = 0; i < c->m->count; i++) ended += c->m->request[i].together.ends;
        pthread_mutex_unlock(&c->told);
        if (ended == c->m->count) atomic_store(&c->done, true);
        assert_true(mx_engine_get_info(c->engine).kv_bytes_used <= mx_engine_get_info(c->engine).kv_bytes);
        assert_true(mx_engine_get_stats(c->engine).finished <= c->m->count);
    }
    return NULL;
}

static void *steps(void *user) {
    crowd *c = user;
    while (!atomic_load(&c->done))
        if (mx_engine_wait(c->engine, 0.001)) step(c->engine);
    return NULL;
}

void mix_run_threads(mix *m, mix_counts *counts) {
    pthread_t thread[1 + SUBMITTERS + POLLERS];
    crowd c = {.m = m, .engine = create(m, &m->together, m->ahead), .told = PTHREAD_MUTEX_INITIALIZER};
    dropped_pages = copied_pages = 0;
    const int threads = sizeof thread / sizeof *thread;
    for (int i = 0; i < threads; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, i == 0 ? steps : i <= SUBMITTERS ? submits : polls, &c), 0);
    for (int i = 0; i < threads; i++) assert_int_equal(pthread_join(thread[i], NULL), 0);
    assert_true(mx_engine_idle(c.engine));
    *counts = (mix_counts){mx_engine_get_stats(c.engine), dropped_pages, copied_pages};
    check_end(m, c.engine, &counts->stats);
    mx_engine_destroy(c.engine);
}

/* ---- alone --------------------------------------------------------------------------------------------------------
 */
void mix_run_alone(mix *m, int request) {
    mix_request *r = &m->request[request];
    mx_engine *engine = create(m, &m->alone, false);
    mx_request q = r->request;
    q.deadline = 0;
    q.priority = 0;
    use_rule(&q, &r->rule, &r->rule_alone);
    submit(engine, &q, &r->alone);
    while (!mx_engine_idle(engine)) {
        step(engine);
        while (poll_once(engine, 64) > 0) continue;
    }
    mx_engine_destroy(engine);
    assert_int_equal(r->alone.ends, 1);
    assert_int_equal(r->alone.last.usage.cached_tokens + r->alone.last.usage.set_back, 0);
}

/* ---- comparing ----------------------------------------------------------------------------------------------------
 */
static bool was_cut_short(const mix_request *r) {
    const mx_event *end = &r->together.last;
    if (end->type != MX_EVENT_FINISHED) return false;
    return (end->finish == MX_FINISH_CANCELLED && r->cancelled) ||
           (end->finish == MX_FINISH_DEADLINE && r->request.deadline > 0);
}

static void mismatch(const mix *m, int request, const char *what, int64_t row) {
    mix_print(m);
    mix_print_request(m, request);
    fail_msg("mix %llu, request %d: %s, at row %lld of what was said: not as alone", (unsigned long long)m->seed,
             request, what, (long long)row);
}

static void compare_rows(const mix *m, int request, int64_t rows) {
    const mix_request *r = &m->request[request];
    const int width = 1 + r->request.top_logprobs;
    for (int64_t row = 0; row < rows; row++) {
        const mx_alternative *a = r->together.said + row * width, *b = r->alone.said + row * width;
        if (!memcmp(a, b, sizeof *a * (size_t)width)) continue;
        for (int i = 0; i < width; i++)
            printf("  %d: together token %d, logprob %.9g; alone token %d, logprob %.9g\n", i, a[i].token, a[i].logprob,
                   b[i].token, b[i].logprob);
        mismatch(m, request, a->token != b->token ? "token" : "logprobs", row);
    }
}

void mix_compare(const mix *m, int request) {
    const mix_request *r = &m->request[request];
    const mix_answer *a = &r->together, *b = &r->alone;
    const int64_t rows = a->prompt_rows + a->tokens, rows_alone = b->prompt_rows + b->tokens;
    compare_rows(m, request, rows < rows_alone ? rows : rows_alone);
    if (was_cut_short(r)) {
        if (a->prompt_rows > b->prompt_rows || a->tokens > b->tokens) mismatch(m, request, "more tokens", rows_alone);
        return;
    }
    if (a->prompt_rows != b->prompt_rows || a->tokens != b->tokens)
        mismatch(m, request, "number of tokens", rows < rows_alone ? rows : rows_alone);
    if (a->last.type != b->last.type || a->last.finish != b->last.finish) mismatch(m, request, "end", rows);
    if (a->last.type == MX_EVENT_FAILED && strcmp(a->last.error.text, b->last.error.text)) {
        printf("  together: %s\n  alone: %s\n", a->last.error.text, b->last.error.text);
        mismatch(m, request, "error", rows);
    }
}
