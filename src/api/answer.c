#include "api/answer.h"

#include <math.h>
#include <stdlib.h>

#include "api/rules.h"

static const double PREPARE_SECONDS = 0.05;

static mx_status no_memory(mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "no memory for an answer");
}

static mx_status constrain(mx_api_answer *a, const mx_api_settings *settings, mx_rules *rules, mx_error *error) {
    mx_vocabulary *vocabulary = settings->vocabulary;
    if (!vocabulary && settings->later) {
        if (!*settings->later) {
            mx_status status = mx_vocabulary_create(settings->tokenizer, settings->vocab, settings->later, error);
            if (status) return status;
        }
        vocabulary = *settings->later;
    }
    if (!vocabulary) return mx_fail(error, MX_UNSUPPORTED, "an answer has rules, but there are no grammars here");
    /* Where others wait for steps, they do not wait for this; a batch makes no more than it uses. */
    if (settings->vocabulary) mx_api_rules_prepare(rules, vocabulary, PREPARE_SECONDS);
    return mx_rules_constraint(rules, settings->tokenizer, vocabulary, settings->stop_tokens, &a->constraint, error);
}

mx_status mx_api_answer_init(mx_api_answer *a, const mx_api_settings *settings, const mx_api_request *r,
                             bool (*piece)(void *answer, const mx_piece *piece), mx_error *error) {
    const mx_turn_options options = {
        .tokenizer = settings->tokenizer,
        .raw = !r->chat,
        .stop_tokens = settings->stop_tokens,
        .stop = (const char *const *)r->stop,
        .stop_count = r->stop_count,
        .min_tokens = r->min_tokens,
        .piece = piece,
        .user = a,
    };
    mx_status status = mx_turn_create(&options, &a->turn, error);
    if (!status && r->rules && mx_rules_bind(r->rules)) status = constrain(a, settings, r->rules, error);
    if (status) mx_api_answer_free(a);
    return status;
}

static void free_tokens(mx_api_tokens *t) {
    free(t->item);
    free(t->top);
}

void mx_api_answer_free(mx_api_answer *a) {
    mx_turn_free(a->turn);
    a->turn = NULL;
    if (!a->handle && a->constraint.destroy) a->constraint.destroy(a->constraint.user);
    a->constraint = (mx_constraint){0};
    free_tokens(&a->tokens);
    free_tokens(&a->prompt_tokens);
    a->tokens = a->prompt_tokens = (mx_api_tokens){0};
}

mx_request mx_api_answer_request(mx_api_answer *a, const mx_api_settings *settings, const mx_api_request *r) {
    mx_request request = {
        .prompt = r->prompts[a->prompt].data,
        .prompt_count = r->prompts[a->prompt].count,
        .max_tokens = r->max_tokens,
        .sampling = r->sampling,
        .stop = settings->stop_tokens->data,
        .stop_count = (int)settings->stop_tokens->count,
        .min_tokens = r->min_tokens,
        .priority = r->priority,
        .deadline = r->deadline,
        .top_logprobs = r->logprobs > 0 ? r->logprobs : 0,
        /* One of the answers to a prompt is enough to learn it. */
        .prompt_logprobs = r->echo && r->logprobs >= 0 && a->index == 0,
        .constraint = a->constraint,
        .user = a,
    };
    request.sampling.seed = mx_api_seed(r, a->prompt, a->index);
    return request;
}

/* ---- tokens ------------------------------------------------------------------------------------------------------ */
static bool grow(void **data, int count, int more, int *capacity, size_t size) {
    if (count + more <= *capacity) return true;
    const int wanted = count + more > 2 * *capacity ? count + more + 64 : 2 * *capacity;
    void *p = realloc(*data, (size_t)wanted * size);
    if (!p) return false;
    *data = p;
    *capacity = wanted;
    return true;
}

static mx_api_token *keep(mx_api_tokens *t, const mx_event *e) {
    if (!grow((void **)&t->item, t->count, 1, &t->capacity, sizeof *t->item)) return NULL;
    if (!grow((void **)&t->top, t->top_count, e->top_count, &t->top_capacity, sizeof *t->top)) return NULL;
    mx_api_token *token = &t->item[t->count++];
    *token = (mx_api_token){e->token, e->logprob, .top_first = t->top_count, .top_count = e->top_count};
    for (int i = 0; i < e->top_count; i++) t->top[t->top_count++] = e->top[i];
    return token;
}

static size_t bytes_of(const mx_api_settings *settings, int32_t token) {
    size_t size;
    mx_token_bytes(settings->tokenizer, token, &size);
    return size;
}

static mx_status take_token(mx_api_answer *a, const mx_api_settings *settings, const mx_api_request *r,
                            const mx_event *e, mx_error *error) {
    mx_piece_kind kind;
    if (mx_turn_over(a->turn)) return MX_OK; /* it is cancelled; how far it got meanwhile is chance */
    mx_status status = mx_turn_push(a->turn, e->token, error);
    if (status) return status;
    a->logprob_sum += e->logprob;
    const bool content = mx_turn_token_kind(a->turn, &kind);
    a->thinking_tokens += content && kind == MX_PIECE_THINKING;
    if (r->logprobs < 0) return MX_OK;
    mx_api_token *token = keep(&a->tokens, e);
    if (!token) return no_memory(error);
    token->shown = content && kind == MX_PIECE_TEXT;
    token->message = mx_turn_token_message(a->turn);
    const mx_api_token *before = a->tokens.count > 1 ? token - 1 : NULL;
    if (before && before->message == token->message)
        token->offset = before->offset + (before->shown ? (int64_t)bytes_of(settings, before->token) : 0);
    return MX_OK;
}

/* Of what a stop string cut, the tokens that begin behind the cut are not shown. */
static void cut_tokens(mx_api_answer *a) {
    size_t size;
    if (!mx_turn_get_result(a->turn)->stop_string) return;
    mx_turn_cut_text(a->turn, &size);
    const mx_api_tokens *t = &a->tokens;
    for (int i = t->count - 1; i >= 0 && t->item[i].message == t->item[t->count - 1].message; i--)
        if (t->item[i].offset >= (int64_t)size) t->item[i].shown = false;
}

mx_status mx_api_answer_take(mx_api_answer *a, const mx_api_settings *settings, const mx_api_request *r,
                             const mx_event *e, mx_error *error) {
    if (e->type == MX_EVENT_PROMPT) return keep(&a->prompt_tokens, e) ? MX_OK : no_memory(error);
    if (e->type == MX_EVENT_TOKEN) return r->no_answer ? MX_OK : take_token(a, settings, r, e, error);
    a->ended = true;
    a->finish = e->finish;
    a->usage = e->usage;
    mx_status status = mx_turn_end(a->turn, e->finish, error);
    cut_tokens(a);
    return status;
}

int64_t mx_api_answer_count(const mx_api_answer *a) {
    return mx_turn_get_result(a->turn)->ids.count;
}

double mx_api_answer_mean(const mx_api_answer *a) {
    const int64_t count = mx_api_answer_count(a);
    return count ? a->logprob_sum / (double)count : -INFINITY;
}

const char *mx_api_answer_finish(const mx_api_answer *a, bool openai) {
    const mx_turn_finish finish = mx_turn_get_result(a->turn)->finish;
    if (finish == MX_TURN_CANCELLED && a->finish == MX_FINISH_DEADLINE) return openai ? "length" : "deadline";
    return finish == MX_TURN_CONTEXT ? "length" : mx_turn_finish_name(finish);
}
