#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "batch/batch_private.h"

/* What a batch will take: its tokens counted, and the first requests tried. */

static int64_t shared(const mx_ids *a, const mx_ids *b) {
    int64_t n = 0;
    while (n < a->count && n < b->count && a->data[n] == b->data[n]) n++;
    return n;
}

/* ---- tokens ------------------------------------------------------------------------------------------------------ */
static void count_request(const mx_api_request *r, mx_ids *previous, mx_batch_total *out) {
    for (int i = 0; i < r->prompt_count; i++) {
        out->prompt_tokens += r->prompts[i].count;
        out->shared_tokens += shared(&r->prompts[i], i ? &r->prompts[i - 1] : previous);
        out->answers += r->best_of;
        if (!r->max_tokens) continue;
        out->limited += r->best_of;
        out->most_tokens += r->best_of * (r->no_answer ? 0 : r->max_tokens);
    }
}

mx_status mx_batch_count(mx_batch *b, const mx_api_settings *settings, mx_batch_total *out, mx_error *error) {
    const mx_api_reader reader = {.settings = settings};
    mx_ids previous = {0};
    *out = (mx_batch_total){0};
    mx_status status = MX_OK;
    while (!status) {
        mx_line line;
        mx_next next;
        mx_api_request request = {0};
        status = mx_batch_next(b, true, &line, &next, error);
        if (status || next == MX_NEXT_END) break;
        if (next == MX_NEXT_LATER) continue;
        out->lines++;
        status = mx_batch_read_line(&reader, &line, &request, error);
        if (request.problem.http_status) {
            out->wrong++;
        } else if (!status) {
            count_request(&request, &previous, out);
            mx_ids last = request.prompts[request.prompt_count - 1];
            request.prompts[request.prompt_count - 1] = previous;
            previous = last;
        }
        mx_api_request_free(&request);
    }
    out->answered = b->before;
    out->lines += b->before;
    mx_ids_free(&previous);
    if (!status && b->lines.regular) status = mx_lines_rewind(&b->lines, error);
    return status;
}

/* ---- time -------------------------------------------------------------------------------------------------------- */
static const double PROMPT_SECONDS = 20, GENERATE_SECONDS = 5;

typedef struct trial {
    const mx_batch_work *work;
    const mx_api_settings *settings;
    mx_api_request *requests; /* [count] */
    int64_t count;
    mx_handle *handles; /* of those that run; 0: ended */
    int64_t tokens;     /* generated since the phase began */
    int64_t computed;   /* prompt tokens of requests that ended in it */
} trial;

/* Reads the first requests that can be answered. */
static mx_status read_first(trial *t, mx_batch *b, mx_error *error) {
    const mx_api_reader reader = {.settings = t->settings};
    mx_status status = MX_OK;
    while (!status && t->count < t->work->max_in_flight) {
        mx_line line;
        mx_next next;
        mx_api_request *request = &t->requests[t->count];
        status = mx_batch_next(b, true, &line, &next, error);
        if (status || next != MX_NEXT_LINE) break;
        status = mx_batch_read_line(&reader, &line, request, error);
        if (status || request->problem.http_status)
            mx_api_request_free(request);
        else
            t->count++;
    }
    return status;
}

/* Each request's first prompt, all at once, for `max_tokens` each (what the request says, where that is less) and
 * `seconds` at most. */
static mx_status run_phase(trial *t, int64_t max_tokens, double seconds, double *took, mx_error *error) {
    mx_engine *engine = t->work->engine;
    int64_t running = 0;
    t->tokens = t->computed = 0;
    for (int64_t i = 0; i < t->count; i++) {
        const mx_api_request *r = &t->requests[i];
        const mx_request request = {.prompt = r->prompts[0].data,
                                    .prompt_count = r->prompts[0].count,
                                    .max_tokens =
                                        r->max_tokens && r->max_tokens < max_tokens ? r->max_tokens : max_tokens,
                                    .sampling = r->sampling,
                                    .user = &t->handles[i]};
        t->handles[i] = 0;
        if (mx_submit(engine, &request, &t->handles[i], NULL) == MX_OK) running++;
    }
    const double start = mx_seconds();
    bool cancelled = false;
    *took = 0;
    while (running) {
        mx_event events[64];
        mx_status status = mx_step(engine, error);
        if (status) return status;
        const bool late = mx_seconds() - start > seconds;
        for (int n; (n = mx_poll(engine, events, 64)) > 0;) {
            for (int i = 0; i < n; i++) {
                const bool ended = events[i].type == MX_EVENT_FINISHED || events[i].type == MX_EVENT_FAILED;
                t->tokens += events[i].type == MX_EVENT_TOKEN && !cancelled;
                if (!ended) continue;
                running--;
                *(mx_handle *)events[i].user = 0;
                if (!cancelled) t->computed += events[i].usage.prompt_tokens - events[i].usage.cached_tokens;
            }
        }
        if (!cancelled) *took = mx_seconds() - start;
        for (int64_t i = 0; i < t->count && late && !cancelled; i++)
            if (t->handles[i]) mx_cancel(engine, t->handles[i]);
        cancelled |= late;
    }
    return MX_OK;
}

mx_status mx_batch_measure(mx_batch *b, const mx_api_settings *settings, const mx_batch_work *work, mx_batch_speed *out,
                           mx_error *error) {
    enum { TOKENS = 512 };
    const size_t most = (size_t)work->max_in_flight;
    const double start = mx_seconds();
    *out = (mx_batch_speed){0};
    trial t = {.work = work, .settings = settings};
    t.requests = calloc(most, sizeof *t.requests);
    t.handles = calloc(most, sizeof *t.handles);
    mx_status status =
        t.requests && t.handles ? read_first(&t, b, error) : mx_fail(error, MX_NO_MEMORY, "no memory for a trial");
    double seconds;
    if (!status) status = run_phase(&t, 1, PROMPT_SECONDS, &seconds, error);
    if (!status && seconds > 0 && t.computed) out->prompt_tokens_second = (double)t.computed / seconds;
    /* What the prompts need is cached now, or soon computed again. */
    if (!status) status = run_phase(&t, TOKENS, GENERATE_SECONDS, &seconds, error);
    if (!status && seconds > 0) out->generated_tokens_second = (double)t.tokens / seconds;
    out->prompts = t.count;
    out->seconds = mx_seconds() - start;
    for (int64_t i = 0; i < t.count; i++) mx_api_request_free(&t.requests[i]);
    free(t.requests);
    free(t.handles);
    if (!status && b->lines.regular) status = mx_lines_rewind(&b->lines, error);
    return status;
}
