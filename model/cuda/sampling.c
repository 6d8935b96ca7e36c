/* Tokens from logits that stay on the device. A call's draws and what they point to are written to pinned memory and
 * queued; results come back to pinned memory, with an event that says when. There are two sets for draws that are
 * fetched later, and one for those that are waited for at once. */
#include <stdlib.h>
#include <string.h>

#include "model/cuda/backend_private.h"
#include "model/sampler.h"

enum { LIST_ALIGN = 16 };

_Static_assert(sizeof(mx_logit_bias) == sizeof(mx_cuda_token_value), "copied as they are");
_Static_assert(sizeof(mx_token_count) == sizeof(mx_cuda_token_count), "copied as they are");

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static mx_status create_draws(mx_cuda_draws *d, size_t most, mx_error *error) {
    d->status = calloc(most, sizeof *d->status);
    if (!d->status) return mx_fail(error, MX_NO_MEMORY, "no memory for drawing");
    mx_status status = mx_gpu_alloc_host((void **)&d->draw, most * sizeof *d->draw, "draws", error);
    if (!status) status = mx_gpu_alloc_host((void **)&d->drawn, most * sizeof *d->drawn, "drawn tokens", error);
    return status ? status : mx_gpu_event_create(&d->done, error);
}

mx_status mx_cuda_sampling_create(mx_cuda_backend *b, mx_error *error) {
    const size_t vocab = (size_t)b->config.vocab;
    mx_status status = MX_OK;
    for (int i = 0; !status && i <= MX_CUDA_SLOTS; i++)
        status = create_draws(&b->draws[i], (size_t)b->wanted_rows, error);
    if (!status) status = mx_gpu_alloc_host((void **)&b->logits, vocab * sizeof *b->logits, "logits", error);
    if (!status) status = mx_gpu_alloc_host((void **)&b->top, MX_CUDA_MOST_TOP * sizeof *b->top, "logprobs", error);
    if (!status) status = mx_gpu_alloc_host((void **)&b->top_drawn, sizeof *b->top_drawn, "logprobs", error);
    if (status) return status;
    b->top_scratch = aligned_alloc(64, (vocab * sizeof *b->top_scratch + 63) / 64 * 64);
    return b->top_scratch ? MX_OK : mx_fail(error, MX_NO_MEMORY, "no memory for logprobs");
}

void mx_cuda_sampling_destroy(mx_cuda_backend *b) {
    for (int i = 0; i <= MX_CUDA_SLOTS; i++) {
        mx_cuda_draws *d = &b->draws[i];
        mx_gpu_event_destroy(d->done);
        mx_gpu_free_host(d->draw);
        mx_gpu_free_host(d->drawn);
        mx_gpu_free_host(d->lists);
        free(d->status);
    }
    mx_gpu_free_host(b->logits);
    mx_gpu_free_host(b->top);
    mx_gpu_free_host(b->top_drawn);
    free(b->top_scratch);
}

/* ---- what draws point to ----------------------------------------------------------------------------------------- */

/* The lists of one spec that its rules read. */
struct lists {
    size_t bias, seen, generated, mask; /* bytes */
};

static struct lists lists_of(const mx_cuda_backend *b, const mx_sample_spec *s) {
    return (struct lists){
        .bias = (size_t)s->bias_count * sizeof *s->bias,
        .seen = s->repetition_penalty != 1 ? (size_t)s->seen_count * sizeof *s->seen : 0,
        .generated = s->presence_penalty != 0 || s->frequency_penalty != 0
                         ? (size_t)s->generated_count * sizeof *s->generated
                         : 0,
        .mask = s->mask ? ((size_t)b->config.vocab + 31) / 32 * sizeof *s->mask : 0,
    };
}

static size_t aligned(size_t bytes) {
    return (bytes + LIST_ALIGN - 1) / LIST_ALIGN * LIST_ALIGN;
}

static size_t bytes_of(const struct lists *l) {
    return aligned(l->bias) + aligned(l->seen) + aligned(l->generated) + aligned(l->mask);
}

/* Nothing of this set is queued, so its pinned memory may be another. */
static mx_status grow_lists(mx_cuda_draws *d, size_t bytes, mx_error *error) {
    if (bytes <= d->lists_bytes) return MX_OK;
    mx_gpu_free_host(d->lists);
    d->lists = NULL;
    d->lists_bytes = 0;
    const size_t more = bytes + bytes / 2;
    mx_status status = mx_gpu_alloc_host((void **)&d->lists, more, "what sampling reads", error);
    if (!status) d->lists_bytes = more;
    return status;
}

/* Copies a list behind the others and returns where the device reads it: in its own memory as far as there is room, in
 * the pinned one otherwise. */
static const void *put(const mx_cuda_backend *b, const mx_cuda_draws *d, size_t *at, const void *list, size_t bytes) {
    if (!bytes) return NULL;
    const size_t begin = *at;
    memcpy(d->lists + begin, list, bytes);
    *at += aligned(bytes);
    return *at <= (size_t)b->lists_bytes ? b->s.lists + begin : d->lists + begin;
}

/* ---- draws ------------------------------------------------------------------------------------------------------- */

static mx_status check_wanted(const mx_cuda_backend *b, const char *what, int wanted, mx_error *error) {
    if (wanted >= 0 && wanted < b->wanted) return MX_OK;
    return mx_fail(error, MX_INVALID_STATE, "%s: row %d asked for, the last step kept the logits of %d", what, wanted,
                   b->wanted);
}

static mx_status check_draw(const mx_cuda_backend *b, const mx_draw *draw, mx_error *error) {
    mx_status status = check_wanted(b, "sample", draw->wanted, error);
    return status ? status : mx_sample_spec_check(&draw->spec, b->config.vocab, error);
}

/* Writes the set. A draw that is wrong is done by the plainest rule, since others are known by their number. */
static mx_status fill(mx_cuda_backend *b, mx_cuda_draws *d, const mx_draw *draw, int count, size_t *list_bytes,
                      mx_error *error) {
    size_t bytes = 0, at = 0;
    d->count = count;
    d->error = (mx_error){0};
    for (int i = 0; i < count; i++) {
        d->status[i] = check_draw(b, &draw[i], d->error.status ? NULL : &d->error);
        const struct lists l = lists_of(b, &draw[i].spec);
        if (!d->status[i]) bytes += bytes_of(&l);
    }
    mx_status status = grow_lists(d, bytes, error);
    if (status) return status;
    for (int i = 0; i < count; i++) {
        const mx_sample_spec *s = &draw[i].spec;
        const struct lists l = lists_of(b, s);
        d->draw[i] = (mx_cuda_draw){.top_p = 1, .repetition_penalty = 1};
        if (d->status[i]) continue;
        d->draw[i] = (mx_cuda_draw){
            .wanted = draw[i].wanted,
            .top_k = s->top_k,
            .temperature = s->temperature,
            .top_p = s->top_p,
            .min_p = s->min_p,
            .repetition_penalty = s->repetition_penalty,
            .presence_penalty = s->presence_penalty,
            .frequency_penalty = s->frequency_penalty,
            .uniform = mx_sample_uniform(s->seed, s->position),
            .bias = put(b, d, &at, s->bias, l.bias),
            .bias_count = s->bias_count,
            .seen = put(b, d, &at, s->seen, l.seen),
            .seen_count = l.seen ? s->seen_count : 0,
            .generated = put(b, d, &at, s->generated, l.generated),
            .generated_count = l.generated ? s->generated_count : 0,
            .mask = put(b, d, &at, s->mask, l.mask),
        };
    }
    *list_bytes = at;
    return MX_OK;
}

/* Queues the set's draws; `drawn` and `token` are on the device. */
static mx_status queue(mx_cuda_backend *b, mx_cuda_draws *d, size_t list_bytes, mx_cuda_drawn *drawn, int32_t *token,
                       mx_error *error) {
    const mx_cuda_scratch *s = &b->s;
    const size_t count = (size_t)d->count,
                 here = list_bytes < (size_t)b->lists_bytes ? list_bytes : (size_t)b->lists_bytes;
    mx_status status = MX_OK;
    if (here) status = mx_gpu_copy(s->lists, d->lists, here, b->stream, error);
    if (!status && count) {
        status = mx_gpu_copy(s->draw, d->draw, count * sizeof *d->draw, b->stream, error);
        if (status) return status;
        mx_cuda_mark(b, MX_CUDA_START);
        for (int at = 0; at < d->count; at += MX_CUDA_DRAWS) {
            const int some = d->count - at < MX_CUDA_DRAWS ? d->count - at : MX_CUDA_DRAWS;
            mx_cuda_sample(s->logits, b->config.vocab, s->draw + at, some, s->adjusted, drawn + at, token + at,
                           b->stream);
        }
        mx_cuda_mark(b, MX_CUDA_SAMPLE);
        status = mx_gpu_check("sampling", error);
        if (!status) status = mx_gpu_copy(d->drawn, drawn, count * sizeof *drawn, b->stream, error);
    }
    return status ? status : mx_gpu_event_record(d->done, b->stream, error);
}

static mx_status result(const mx_cuda_backend *b, const mx_cuda_drawn *drawn, mx_sampled *out, mx_error *error) {
    switch (drawn->state) {
    case MX_CUDA_DRAWN:
        *out = (mx_sampled){drawn->token, drawn->logprob};
        return MX_OK;
    case MX_CUDA_NOT_FINITE:
        return mx_sample_not_finite(drawn->token, drawn->logprob, error);
    default:
        return mx_sample_none_left(b->config.vocab, error);
    }
}

/* Waits for the set and gives what came of its draws. Returns the first one's failure. */
static mx_status fetch(mx_cuda_backend *b, mx_cuda_draws *d, mx_draw *draw, mx_error *error) {
    mx_status lost = mx_cuda_note(b, mx_gpu_event_wait(d->done, error), error), first = lost;
    for (int i = 0; i < d->count; i++) {
        mx_error *to = first ? NULL : error;
        if (lost)
            draw[i].status = lost;
        else if (d->status[i])
            draw[i].status = to ? mx_fail(to, d->status[i], "%s", d->error.text) : d->status[i];
        else
            draw[i].status = result(b, &d->drawn[i], &draw[i].sampled, to);
        if (!first) first = draw[i].status;
    }
    return first;
}

/* ---- running ahead ----------------------------------------------------------------------------------------------- */

mx_status mx_cuda_op_draw(mx_backend *base, const mx_draw *draw, int count, mx_error *error) {
    mx_cuda_backend *b = mx_cuda_self(base);
    mx_error own;
    size_t lists;
    error = error ? error : &own;
    mx_status status = mx_cuda_enter(b, error);
    if (status) return status;
    if (count < 0 || count > b->wanted_rows)
        return mx_fail(error, MX_INVALID_ARGUMENT, "draw: %d draws, 0 to %d possible", count, b->wanted_rows);
    if (b->queued_draws == MX_CUDA_SLOTS)
        return mx_fail(error, MX_INVALID_STATE, "draw: %d draws are queued, fetch the oldest first", MX_CUDA_SLOTS);
    mx_cuda_draws *d = &b->draws[(b->first_draws + b->queued_draws) % MX_CUDA_SLOTS];
    status = fill(b, d, draw, count, &lists, error);
    if (status) return status;
    status = mx_cuda_note(b, queue(b, d, lists, b->s.drawn, b->s.token, error), error);
    if (status) return status;
    b->queued_draws++;
    b->drawn = count;
    return MX_OK;
}

mx_status mx_cuda_op_drawn(mx_backend *base, mx_draw *draw, int count, mx_error *error) {
    mx_cuda_backend *b = mx_cuda_self(base);
    mx_error own;
    error = error ? error : &own;
    if (!b->queued_draws) return mx_fail(error, MX_INVALID_STATE, "drawn: no draw is queued");
    mx_cuda_draws *d = &b->draws[b->first_draws];
    if (count != d->count)
        return mx_fail(error, MX_INVALID_ARGUMENT, "drawn: %d draws asked for, the oldest queued are %d", count,
                       d->count);
    b->first_draws = (b->first_draws + 1) % MX_CUDA_SLOTS;
    b->queued_draws--;
    mx_status status = mx_cuda_enter(b, error);
    for (int i = 0; status && i < count; i++) draw[i].status = status;
    return status ? status : fetch(b, d, draw, error);
}

/* ---- at once ----------------------------------------------------------------------------------------------------- */

/* At most wanted_rows draws. */
static mx_status sample_some(mx_cuda_backend *b, mx_draw *draw, int count, mx_error *error) {
    mx_cuda_draws *d = &b->draws[MX_CUDA_SLOTS];
    size_t lists;
    mx_status status = mx_cuda_enter(b, error);
    if (!status) status = fill(b, d, draw, count, &lists, error);
    if (!status)
        status =
            mx_cuda_note(b, queue(b, d, lists, b->s.drawn + b->wanted_rows, b->s.token + b->wanted_rows, error), error);
    for (int i = 0; status && i < count; i++) draw[i].status = status;
    return status ? status : fetch(b, d, draw, error);
}

mx_status mx_cuda_op_sample(mx_backend *base, int wanted, const mx_sample_spec *spec, mx_sampled *out,
                            mx_error *error) {
    mx_cuda_backend *b = mx_cuda_self(base);
    mx_error own;
    mx_draw draw = {.wanted = wanted, .spec = *spec};
    error = error ? error : &own;
    mx_status status = b->lost.status ? MX_OK : check_draw(b, &draw, error);
    if (!status) status = sample_some(b, &draw, 1, error);
    if (!status) *out = draw.sampled;
    return status;
}

void mx_cuda_op_sample_all(mx_backend *base, mx_draw *draw, int count) {
    mx_cuda_backend *b = mx_cuda_self(base);
    mx_error error;
    for (int at = 0; at < count; at += b->wanted_rows)
        sample_some(b, draw + at, count - at < b->wanted_rows ? count - at : b->wanted_rows, &error);
}

/* ---- logits and logprobs ----------------------------------------------------------------------------------------- */

/* A row to pinned memory. NULL: it is not there, or the device is lost. */
static const float *fetch_logits(mx_cuda_backend *b, int wanted, mx_error *error) {
    const size_t vocab = (size_t)b->config.vocab;
    if (mx_cuda_enter(b, error) || check_wanted(b, "logits", wanted, error)) return NULL;
    mx_status status =
        mx_gpu_copy(b->logits, b->s.logits + (size_t)wanted * vocab, vocab * sizeof(float), b->stream, error);
    if (!status) status = mx_gpu_stream_wait(b->stream, error);
    return mx_cuda_note(b, status, error) ? NULL : b->logits;
}

const float *mx_cuda_op_logits(mx_backend *base, int wanted) {
    mx_error error;
    return fetch_logits(mx_cuda_self(base), wanted, &error);
}

/* The k <= MX_CUDA_MOST_TOP likeliest on the device; what state the row is in, to b->top_drawn. */
static mx_status top_there(mx_cuda_backend *b, int wanted, int k, int32_t token, mx_error *error) {
    const mx_cuda_scratch *s = &b->s;
    mx_cuda_top(s->logits + (int64_t)wanted * b->config.vocab, b->config.vocab, k, s->top, token, s->top_drawn,
                s->adjusted, b->stream);
    mx_status status = mx_gpu_check("logprobs", error);
    if (!status && k) status = mx_gpu_copy(b->top, s->top, (size_t)k * sizeof *b->top, b->stream, error);
    if (!status) status = mx_gpu_copy(b->top_drawn, s->top_drawn, sizeof *b->top_drawn, b->stream, error);
    if (!status) status = mx_gpu_stream_wait(b->stream, error);
    mx_sampled sampled;
    status = mx_cuda_note(b, status, error);
    return status ? status : result(b, b->top_drawn, &sampled, error);
}

/* More than the device lists: on the CPU. What the device says too has its bits. */
static mx_status top_here(mx_cuda_backend *b, int wanted, int k, mx_alternative *out, mx_error *error) {
    const mx_kernels *scalar;
    mx_status status = mx_kernels_get("scalar", &scalar, error);
    const float *logits = status ? NULL : fetch_logits(b, wanted, error);
    if (!logits) return error->status;
    return mx_top_logits(scalar, b->top_scratch, logits, b->config.vocab, k, out, -1, NULL, error);
}

mx_status mx_cuda_op_top(mx_backend *base, int wanted, int k, mx_alternative *out, int32_t token, float *logprob,
                         mx_error *error) {
    mx_cuda_backend *b = mx_cuda_self(base);
    mx_error own;
    error = error ? error : &own;
    const int there = k < MX_CUDA_MOST_TOP ? k : MX_CUDA_MOST_TOP;
    mx_status status = mx_cuda_enter(b, error);
    if (!status) status = check_wanted(b, "logprobs", wanted, error);
    if (!status) status = mx_top_check(b->config.vocab, k, token, error);
    if (!status) status = top_there(b, wanted, there, token, error);
    if (!status && k > there) status = top_here(b, wanted, k, out, error);
    if (status) return status;
    for (int i = 0; i < there; i++) out[i] = (mx_alternative){b->top[i].token, b->top[i].value};
    for (int i = there; i < k && token >= 0; i++)
        if (out[i].token == token) out[i].logprob = b->top_drawn->logprob;
    if (token >= 0) *logprob = b->top_drawn->logprob;
    return MX_OK;
}
