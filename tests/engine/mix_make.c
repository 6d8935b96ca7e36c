/* Random mixes out of a seed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kv.h"
#include "kernels/kernels.h"
#include "mix.h"
#include "model/sampler.h"

/* ---- chance -------------------------------------------------------------------------------------------------------
 */
typedef struct dice {
    uint64_t seed;
    int64_t thrown;
} dice;

static double uniform(dice *d) {
    return mx_sample_uniform(d->seed, d->thrown++);
}

static int64_t below(dice *d, int64_t n) {
    return (int64_t)(uniform(d) * (double)n);
}

static bool chance(dice *d, double probability) {
    return uniform(d) < probability;
}

static double between(dice *d, double low, double high) {
    return low + uniform(d) * (high - low);
}

static int64_t log_between(dice *d, int64_t low, int64_t high) {
    const int64_t v = (int64_t)((double)low * pow((double)(high + 1) / (double)low, uniform(d)));
    return v < high ? v : high;
}

/* ---- prompts ------------------------------------------------------------------------------------------------------
 */
/* What the requests of a mix have in common. */
typedef struct manner {
    int64_t longest; /* prompt that is not another's with something behind it */
    int64_t spread;  /* steps in which they are submitted */
    bool tight;      /* short prompts with long answers, in memory for a few of these */
} manner;

/* Text in which pieces come again, so that guesses are sometimes right. */
static void write_tokens(dice *d, int32_t *tokens, int64_t from, int64_t count, int32_t vocab) {
    for (int64_t i = from; i < count;) {
        if (i > 4 && chance(d, 0.05)) {
            const int64_t back = 1 + below(d, i), end = i + 3 + below(d, 40);
            for (; i < count && i < end; i++) tokens[i] = tokens[i - back];
        } else {
            tokens[i++] = (int32_t)below(d, vocab);
        }
    }
}

static void new_tail(dice *d, mix_request *r, int64_t count, int32_t vocab) {
    r->tail_count = count;
    r->tail = malloc(sizeof *r->tail * (size_t)count + 1);
    write_tokens(d, r->tail, 0, count, vocab);
}

/* The whole prompt of another, its beginning, its prompt and answer, or nothing of it. */
static void make_prompt(dice *d, mix *m, int i, const manner *how, int32_t vocab) {
    mix_request *r = &m->request[i];
    const int other = (int)below(d, i ? i : 1);
    const mix_request *o = &m->request[other];
    const int64_t most = o->request.prompt_count, answer = o->request.max_tokens;
    const double kind = i ? uniform(d) : 1;
    int64_t n = chance(d, 0.15) ? 1 + below(d, how->longest) : log_between(d, 1, how->longest), common = 0;
    r->follows = -1;
    if (kind < 0.2 && !how->tight && most + answer < MIX_PROMPT) {
        r->follows = other;
        r->kept = chance(d, 0.3) ? uniform(d) : 1;
        new_tail(d, r, log_between(d, 1, 60), vocab);
        n = most + answer + r->tail_count;
    } else if (kind < 0.35 && o->follows < 0) {
        n = common = most;
    } else if (kind < 0.7 && o->follows < 0) {
        common = 1 + below(d, most);
        if (chance(d, 0.4)) common = common / MX_TILE * MX_TILE + below(d, 3) - 1;
        if (common < 0) common = 0;
        if (common > most) common = most;
        n = common + log_between(d, 1, how->longest);
        if (n > MIX_PROMPT) n = MIX_PROMPT;
    }
    r->request.prompt_count = n;
    r->prompt = malloc(sizeof *r->prompt * (size_t)n);
    r->request.prompt = r->prompt;
    if (r->follows >= 0) return;
    if (common > 0) memcpy(r->prompt, o->prompt, sizeof *r->prompt * (size_t)common);
    write_tokens(d, r->prompt, common, n, vocab);
}

/* ---- requests -----------------------------------------------------------------------------------------------------
 */
static mx_sampling make_sampling(dice *d, mix_request *r, int32_t vocab) {
    mx_sampling s = MX_SAMPLING_DEFAULT;
    if (chance(d, 0.4))
        s.temperature = 0;
    else if (chance(d, 0.6))
        s.temperature = (float)between(d, 0.1, 1.5);
    if (chance(d, 0.3)) s.top_k = 1 + (int)below(d, 50);
    if (chance(d, 0.3)) s.top_p = (float)between(d, 0.2, 1);
    if (chance(d, 0.2)) s.min_p = (float)between(d, 0, 0.2);
    if (chance(d, 0.25)) s.repetition_penalty = (float)between(d, 0.9, 1.5);
    if (chance(d, 0.2)) s.presence_penalty = (float)between(d, -1, 1.5);
    if (chance(d, 0.2)) s.frequency_penalty = (float)between(d, -0.5, 1);
    s.seed = (uint64_t)below(d, 1000);
    if (chance(d, 0.3)) {
        s.bias_count = 1 + (int)below(d, MIX_BIASES);
        for (int i = 0; i < s.bias_count; i++)
            r->bias[i] = (mx_logit_bias){(int32_t)below(d, vocab), (float)between(d, -10, 12)};
        s.bias = r->bias;
    }
    return s;
}

static void make_rule(dice *d, mix_rule *rule) {
    *rule = (mix_rule){.seed = 1 + (uint64_t)below(d, 1 << 30), .finish_at = -1, .refuse_from = -1};
    rule->masks = chance(d, 0.7);
    rule->rejects = chance(d, 0.5);
    if (chance(d, 0.5)) rule->finish_at = 1 + below(d, 60);
    if (chance(d, 0.1)) rule->refuse_from = below(d, 30);
}

static void make_request(dice *d, mix *m, int i, const manner *how) {
    mix_request *r = &m->request[i];
    mx_request *q = &r->request;
    const int32_t vocab = mx_model_config(m->model->model)->vocab;
    make_prompt(d, m, i, how, vocab);
    if (how->tight)
        q->max_tokens = MIX_TOKENS / 2 + below(d, MIX_TOKENS / 2) + 1;
    else
        q->max_tokens = chance(d, 0.5) ? log_between(d, 1, MIX_TOKENS / 2) : 1 + below(d, MIX_TOKENS / 2);
    q->sampling = make_sampling(d, r, vocab);
    if (chance(d, how->tight ? 0.1 : 0.4)) {
        q->stop = r->stop;
        q->stop_count = 1 + (int)below(d, MIX_STOPS);
        for (int s = 0; s < q->stop_count; s++) r->stop[s] = (int32_t)below(d, vocab);
    }
    if (chance(d, 0.2)) q->min_tokens = below(d, 50);
    if (chance(d, how->tight ? 0.1 : 0.2)) make_rule(d, &r->rule);
    if (chance(d, 0.3)) q->priority = (int)below(d, 3) - 1;
    if (chance(d, 0.06)) q->deadline = pow(10, between(d, -4, 0));
    if (chance(d, 0.25)) q->top_logprobs = 1 + (int)below(d, MX_TOP_LOGPROBS);
    if (chance(d, 0.12)) q->prompt_logprobs = true;

    r->submit_step = below(d, how->spread);
    r->cancel_step = chance(d, 0.07) ? below(d, 2 * how->spread) : -1;
    r->cancel_token = chance(d, 0.07) ? below(d, q->max_tokens) : -1;
}

/* ---- engines ------------------------------------------------------------------------------------------------------
 */
static const mx_format formats[] = {[MX_KV_F16] = MX_F16, [MX_KV_F32] = MX_F32, [MX_KV_BF16] = MX_BF16};

static uint64_t memory_of(const mix *m, int64_t pages) {
    return (uint64_t)pages * (uint64_t)mx_page_bytes(mx_model_config(m->model->model), formats[m->together.kv_type]);
}

static void make_engines(dice *d, mix *m) {
    static const char *const precisions[] = {NULL,   NULL,   "fp32", "bf16x2",           "mixed",
                                             "bf16", "int8", "bf16", "bf16,router=fp32", "int8,lm_head=bf16x2"};
    const mx_config *config = mx_model_config(m->model->model);
    m->together = (mx_engine_options){.threads = 1 + (int)below(d, MIX_THREADS),
                                      .kv_type = (mx_kv_type)below(d, 3),
                                      .batch_tokens = (int)log_between(d, 1, MIX_ROWS),
                                      .precision = precisions[below(d, 10)],
                                      .max_running = 1 + (int)below(d, 16),
                                      .speculation = (mx_speculation)below(d, 3),
                                      .draft_tokens = 1 + (int)below(d, 8),
                                      .boundary = m->boundary,
                                      .boundary_count = (int)below(d, 3)};
    if (chance(d, 0.2)) m->together.batch_tokens = 1 + (int)below(d, MIX_ROWS);
    m->together.step_seconds = chance(d, 0.5) ? 0 : chance(d, 0.5) ? 1e-4 : 1000;
    for (int i = 0; i < 2; i++) m->boundary[i] = (int32_t)below(d, config->vocab);
    m->at_once = (int)log_between(d, 1, 64);
    m->poll_every = chance(d, 0.7) ? 1 : 1 + (int)below(d, 20);
    m->alone = (mx_engine_options){.threads = 1,
                                   .kv_type = m->together.kv_type,
                                   .batch_tokens = (int)log_between(d, 16, MIX_ROWS),
                                   .precision = m->together.precision,
                                   .max_running = 1,
                                   .speculation = MX_SPECULATE_OFF};
}

/* As many tokens as the longest request takes, hardly more memory than it needs, or plenty. One that may have it all is
 * not told where to stop. */
static void make_memory(dice *d, mix *m, bool tight) {
    const mx_config *config = mx_model_config(m->model->model);
    int64_t context = 0;
    for (int i = 0; i < m->count; i++) {
        const mx_request *q = &m->request[i].request;
        if (q->prompt_count + q->max_tokens > context) context = q->prompt_count + q->max_tokens;
    }
    for (int i = 0; i < m->count; i++) {
        mx_request *q = &m->request[i].request;
        if (q->prompt_count + q->max_tokens == context && m->request[i].follows < 0) q->max_tokens = 0;
    }
    const int64_t least = mx_kv_pages_needed(config, context, m->together.batch_tokens);
    const double kind = uniform(d);
    m->pages = least;
    if (tight)
        m->pages += below(d, 2 * least);
    else if (kind < 0.35)
        m->pages += below(d, 4 * config->layers);
    else if (kind < 0.7)
        m->pages += below(d, 2 * least);
    else
        m->pages *= 12;
    m->together.context = m->alone.context = context;
    m->together.kv_memory = memory_of(m, m->pages);
    m->alone.kv_memory = memory_of(m, mx_kv_pages_needed(config, context, m->alone.batch_tokens));
}

/* ---- the mix ------------------------------------------------------------------------------------------------------
 */
static void choose(dice *d, mix *m, const mix_choice *choice, double *token_seconds) {
    m->model = &choice->model[m->seed % (uint64_t)choice->models];
    const char *tier = choice->tier[below(d, choice->tiers)];
    if (chance(d, 0.3)) m->tier = tier;
    const bool scalar = m->tier && !strcmp(m->tier, "scalar");
    if (scalar) m->model = choice->least;
    *token_seconds = m->model->token_us * 1e-6 * (scalar ? 50 : m->tier ? 2 : 1);
}

static void make_answer(mix_request *r, mix_answer *answer) {
    const mx_request *q = &r->request;
    answer->of = r;
    answer->room = (q->max_tokens ? q->max_tokens : MIX_TOKENS) + (q->prompt_logprobs ? q->prompt_count : 0);
    answer->said = calloc((size_t)(answer->room * (1 + q->top_logprobs)), sizeof *answer->said);
}

mix *mix_make(uint64_t seed, const mix_choice *choice) {
    mix *m = calloc(1, sizeof *m);
    dice d = {.seed = seed};
    double token_seconds, left = choice->most_seconds;
    m->seed = seed;
    choose(&d, m, choice, &token_seconds);
    make_engines(&d, m);
    manner how = {.tight = chance(&d, 0.4)};
    how.spread = log_between(&d, 1, how.tight ? 20 : 300);
    const bool any_length = !how.tight && chance(&d, 0.3);
    const int64_t longest = any_length ? MIX_PROMPT : log_between(&d, how.tight ? 5 : 50, how.tight ? 150 : MIX_PROMPT);
    const int64_t most = 2 + below(&d, MIX_MOST - 1);
    /* a token of a prompt takes a fifth of one that is generated, where many are computed at once */
    const double prompt_part = m->together.batch_tokens < 16 ? 0.6 : 0.2;
    for (int i = 0; i < most && (i < 2 || left > 0); i++) {
        const int64_t room = (int64_t)(left / token_seconds / prompt_part);
        how.longest = room < 10 ? 10 : room < longest ? room : longest;
        make_request(&d, m, i, &how);
        const mx_request *q = &m->request[i].request;
        left -= token_seconds * ((double)q->prompt_count * prompt_part + (double)q->max_tokens);
        m->count++;
    }
    if (how.tight && m->together.max_running < 6) m->together.max_running += 6;
    make_memory(&d, m, how.tight);
    for (int i = 0; i < m->count; i++) {
        make_answer(&m->request[i], &m->request[i].together);
        make_answer(&m->request[i], &m->request[i].alone);
    }
    return m;
}

void mix_free(mix *m) {
    for (int i = 0; i < m->count; i++) {
        mix_request *r = &m->request[i];
        free(r->prompt);
        free(r->tail);
        free(r->together.said);
        free(r->alone.said);
    }
    free(m);
}

/* ---- for people ---------------------------------------------------------------------------------------------------
 */
void mix_print_request(const mix *m, int i) {
    const mix_request *r = &m->request[i];
    const mx_request *q = &r->request;
    const mx_sampling *s = &q->sampling;
    printf("  request %d: prompt %lld", i, (long long)q->prompt_count);
    if (r->follows >= 0) printf(" (%d and %.2f of its answer)", r->follows, r->kept);
    printf(", max_tokens %lld, step %lld, priority %d, temperature %g, seed %llu", (long long)q->max_tokens,
           (long long)r->submit_step, q->priority, s->temperature, (unsigned long long)s->seed);
    if (s->top_k || s->top_p < 1 || s->min_p > 0)
        printf(", top_k %d, top_p %g, min_p %g", s->top_k, s->top_p, s->min_p);
    if (s->repetition_penalty != 1 || s->presence_penalty != 0 || s->frequency_penalty != 0)
        printf(", penalties %g %g %g", s->repetition_penalty, s->presence_penalty, s->frequency_penalty);
    if (s->bias_count) printf(", %d biases", s->bias_count);
    if (q->stop_count) printf(", %d stop tokens", q->stop_count);
    if (q->min_tokens) printf(", min_tokens %lld", (long long)q->min_tokens);
    if (q->top_logprobs) printf(", top_logprobs %d", q->top_logprobs);
    if (q->prompt_logprobs) printf(", prompt_logprobs");
    if (r->rule.seed) printf(", constraint");
    if (q->deadline > 0) printf(", deadline %g", q->deadline);
    if (r->cancel_step >= 0) printf(", cancelled in step %lld", (long long)r->cancel_step);
    if (r->cancel_token >= 0) printf(", cancelled at token %lld", (long long)r->cancel_token);
    const struct mx_usage *u = &r->together.last.usage;
    printf("; %lld told, finish %d, cached %lld, set back %d, drafted %lld, accepted %lld\n",
           (long long)r->together.tokens, (int)r->together.last.finish, (long long)u->cached_tokens, u->set_back,
           (long long)u->drafted_tokens, (long long)u->accepted_tokens);
}

void mix_print(const mix *m) {
    static const char *const kv[] = {"f16", "f32", "bf16"}, *const speculation[] = {"auto", "off", "on"};
    const mx_engine_options *o = &m->together;
    printf("mix %llu: %s, tier %s, precision %s, KV %s, %d threads, batch_tokens %d (alone %d), max_running %d, "
           "context %lld, %lld pages, speculation %s (%d), step_seconds %g\n",
           (unsigned long long)m->seed, m->model->name, m->tier ? m->tier : "best",
           o->precision ? o->precision : "default", kv[o->kv_type], o->threads, o->batch_tokens, m->alone.batch_tokens,
           o->max_running, (long long)o->context, (long long)m->pages, speculation[o->speculation], o->draft_tokens,
           o->step_seconds);
    for (int i = 0; i < m->count; i++) mix_print_request(m, i);
}
