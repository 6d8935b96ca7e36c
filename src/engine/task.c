#include "engine/task.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"

static mx_status check(const mx_request *r, int64_t context, int32_t vocab, mx_error *error) {
    if (r->prompt_count < 1 || !r->prompt)
        return mx_fail(error, MX_INVALID_ARGUMENT, "the prompt is empty: at least one token is needed");
    if (r->prompt_count >= context + r->prompt_only)
        return mx_fail(error, MX_CONTEXT_FULL,
                       "the prompt has %lld tokens and the context holds %lld, the answer included: shorten the prompt "
                       "or choose a larger context",
                       (long long)r->prompt_count, (long long)context);
    for (int64_t i = 0; i < r->prompt_count; i++) {
        if (r->prompt[i] < 0 || r->prompt[i] >= vocab)
            return mx_fail(error, MX_INVALID_ARGUMENT, "token %lld of the prompt is %d: the vocabulary ends at %d",
                           (long long)i, r->prompt[i], vocab - 1);
    }
    if (r->prompt_logits && (r->logits_from < 0 || r->logits_from >= r->prompt_count))
        return mx_fail(error, MX_INVALID_ARGUMENT, "logits_from %lld: expected 0 to %lld, the prompt's last position",
                       (long long)r->logits_from, (long long)r->prompt_count - 1);
    if (r->max_tokens < 0)
        return mx_fail(error, MX_INVALID_ARGUMENT, "max_tokens %lld: expected 0 (until the context is full) or more",
                       (long long)r->max_tokens);
    if (r->stop_count < 0 || (r->stop_count > 0 && !r->stop))
        return mx_fail(error, MX_INVALID_ARGUMENT, "stop_count %d without stop tokens", r->stop_count);
    if (r->sampling.bias_count < 0 || (r->sampling.bias_count > 0 && !r->sampling.bias))
        return mx_fail(error, MX_INVALID_ARGUMENT, "bias_count %d without biases", r->sampling.bias_count);
    if (r->min_tokens < 0)
        return mx_fail(error, MX_INVALID_ARGUMENT, "min_tokens %lld: expected 0 or more", (long long)r->min_tokens);
    if (!(r->deadline >= 0) || isinf(r->deadline))
        return mx_fail(error, MX_INVALID_ARGUMENT, "a deadline in %g seconds: expected 0 (none) or more", r->deadline);
    if (r->top_logprobs < 0 || r->top_logprobs > MX_TOP_LOGPROBS)
        return mx_fail(error, MX_INVALID_ARGUMENT, "top_logprobs %d: expected 0 to %d", r->top_logprobs,
                       MX_TOP_LOGPROBS);
    mx_task probe = {.request = *r};
    mx_sample_spec spec = mx_task_sample_spec(&probe, 0);
    return mx_sample_spec_check(&spec, vocab, error);
}

/* A copy of count elements; also for none of them something to free. */
static void *copy(const void *from, int64_t count, size_t size) {
    void *to = malloc((size_t)count * size + 1);
    if (to && count > 0) memcpy(to, from, (size_t)count * size);
    return to;
}

static bool tally_create(mx_tally *tally, int64_t tokens, int32_t vocab) {
    tally->item = malloc(sizeof *tally->item * (size_t)(tokens < vocab ? tokens : vocab));
    tally->index = calloc((size_t)vocab, sizeof *tally->index);
    return tally->item && tally->index;
}

static void tally_add(mx_tally *tally, int32_t token) {
    if (!tally->index) return;
    if (!tally->index[token]) {
        tally->item[tally->count++] = (mx_token_count){token, 0};
        tally->index[token] = (int32_t)tally->count;
    }
    tally->item[tally->index[token] - 1].count++;
}

static bool allocate(mx_task *task, int32_t vocab) {
    const mx_request *r = &task->request;
    const mx_sampling *s = &r->sampling;
    const size_t most = (size_t)(r->prompt_count + task->limit); /* not touched before it is used */
    task->tokens = malloc(sizeof *task->tokens * most);
    task->logprob = malloc(sizeof *task->logprob * most);
    if (task->top_count) task->top = malloc(sizeof *task->top * most * (size_t)task->top_count);
    task->stop = copy(r->stop, r->stop_count, sizeof *task->stop);
    task->bias = copy(s->bias, s->bias_count, sizeof *task->bias);
    if (!task->tokens || !task->logprob || !task->stop || !task->bias || (task->top_count && !task->top)) return false;
    memcpy(task->tokens, r->prompt, sizeof *task->tokens * (size_t)r->prompt_count);
    if (s->repetition_penalty != 1 && !tally_create(&task->seen, (int64_t)most, vocab)) return false;
    bool counts = s->presence_penalty != 0 || s->frequency_penalty != 0;
    return !counts || tally_create(&task->generated, task->limit, vocab);
}

mx_status mx_task_create(const mx_request *request, const mx_task_options *o, mx_task **out, mx_error *error) {
    mx_status status = check(request, o->context, o->vocab, error);
    if (status) return status;
    mx_task *task = calloc(1, sizeof *task);
    if (!task) return mx_fail(error, MX_NO_MEMORY, "no memory for a request");
    task->request = *request;
    task->limit = o->context - request->prompt_count;
    if (request->max_tokens > 0 && request->max_tokens < task->limit) task->limit = request->max_tokens;
    if (request->prompt_only) task->limit = 0;
    task->top_count = request->top_logprobs < o->vocab ? request->top_logprobs : o->vocab;
    if (!allocate(task, o->vocab))
        status =
            mx_fail(error, MX_NO_MEMORY, "no memory for a request of %lld tokens", (long long)request->prompt_count);
    if (!status) status = mx_sequence_init(&task->sequence, o->kv, request->prompt_count + task->limit, error);
    if (status) {
        mx_task_free(task);
        return status;
    }
    task->request.prompt = task->tokens;
    task->request.stop = task->stop;
    task->request.sampling.bias = task->bias;
    task->known = request->prompt_count;
    task->scored = task->visible = task->polled = request->prompt_logprobs ? 0 : task->known;
    task->observed = request->prompt_logits ? request->logits_from : task->known;
    task->submit_time = mx_seconds();
    if (request->deadline > 0) task->deadline = task->submit_time + request->deadline;
    task->usage.prompt_tokens = request->prompt_count;
    for (int64_t i = 0; i < request->prompt_count; i++) tally_add(&task->seen, task->tokens[i]);
    *out = task;
    return MX_OK;
}

void mx_task_free(mx_task *task) {
    if (!task) return;
    mx_sequence_free(&task->sequence);
    free(task->tokens);
    free(task->logprob);
    free(task->top);
    free(task->stop);
    free(task->bias);
    free(task->seen.item);
    free(task->seen.index);
    free(task->generated.item);
    free(task->generated.index);
    free(task);
}

int64_t mx_task_wanted_from(const mx_task *task) {
    int64_t from = task->known - 1;
    if (task->scored < task->request.prompt_count) from = task->scored > 0 ? task->scored - 1 : 0;
    return task->observed < task->request.prompt_count && task->observed < from ? task->observed : from;
}

bool mx_task_is_scored(const mx_task *task) {
    return task->scored < task->request.prompt_count || task->observed < task->request.prompt_count;
}

int64_t mx_task_unknown(const mx_task *task) {
    const bool drawing = task->ahead > 0 && task->draw >= 0;
    if (drawing && task->known + 1 == task->request.prompt_count + task->limit) return 0; /* the last needs no row */
    return task->known + drawing - task->sequence.count - task->ahead;
}

bool mx_task_decodes(const mx_task *task) {
    return !task->reading && mx_task_unknown(task) == 1;
}

mx_sample_spec mx_task_sample_spec(const mx_task *task, int64_t position) {
    const mx_sampling *s = &task->request.sampling;
    return (mx_sample_spec){
        .temperature = s->temperature,
        .top_k = s->top_k,
        .top_p = s->top_p,
        .min_p = s->min_p,
        .repetition_penalty = s->repetition_penalty,
        .presence_penalty = s->presence_penalty,
        .frequency_penalty = s->frequency_penalty,
        .seed = s->seed,
        .position = position,
        .bias = s->bias,
        .bias_count = s->bias_count,
        .seen = task->seen.item,
        .seen_count = task->seen.count,
        .generated = task->generated.item,
        .generated_count = task->generated.count,
    };
}

void mx_task_count(mx_task *task, int32_t token) {
    tally_add(&task->seen, token);
    tally_add(&task->generated, token);
}

bool mx_task_may_stop(const mx_task *task) {
    const mx_request *r = &task->request;
    return task->known - r->prompt_count >= r->min_tokens || !r->stop_count;
}

bool mx_task_stops_at(const mx_task *task, int32_t token) {
    for (int i = 0; i < task->request.stop_count; i++) {
        if (task->stop[i] == token) return true;
    }
    return false;
}

bool mx_task_is_senior(const mx_task *a, const mx_task *b) {
    return a->request.priority != b->request.priority ? a->request.priority > b->request.priority
                                                      : a->handle < b->handle;
}
