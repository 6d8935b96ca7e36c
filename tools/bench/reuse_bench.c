/* What chats with one system prompt save: prompt tokens that are computed, and the time to their first token.
 *
 *     reuse_bench MODEL [REQUESTS [SHARED [QUESTION]]]
 *
 * REQUESTS (64) prompts of SHARED (1500) and QUESTION (30) tokens come at once, then one more to the idle engine: first
 * with the same SHARED tokens in all, then with others in each, so that nothing can be reused. Each time to a new
 * engine. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "bench/measure.h"
#include "engine/mxrun.h"

enum { ANSWER = 2 };

typedef struct load {
    int requests;
    int64_t shared, question;
    bool reuse;
    int32_t *prompt; /* [shared + question] */
    double *first;   /* [requests]: seconds to the first token */
} load;

typedef struct totals {
    int64_t asked, cached;
    double seconds;
} totals;

/* Tokens that look like any others; `what` tells texts apart. */
static int32_t token_at(uint64_t what, int64_t position, int32_t vocab) {
    uint64_t h = (what + 1) * 0x9e3779b97f4a7c15u + (uint64_t)position * 0xd6e8feb86659fd93u;
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93u;
    return (int32_t)((h >> 32) % (uint64_t)vocab);
}

static mx_status submit(mx_engine *e, const load *l, int number, double *first, mx_error *error) {
    const int32_t vocab = mx_engine_get_info(e).vocab;
    const uint64_t own = (uint64_t)number + 1;
    for (int64_t t = 0; t < l->shared; t++) l->prompt[t] = token_at(l->reuse ? 0 : own, t, vocab);
    for (int64_t t = 0; t < l->question; t++) l->prompt[l->shared + t] = token_at(own, l->shared + t, vocab);
    const mx_request r = {.prompt = l->prompt,
                          .prompt_count = l->shared + l->question,
                          .max_tokens = ANSWER,
                          .sampling = MX_SAMPLING_DEFAULT,
                          .user = first};
    mx_handle handle;
    *first = 0;
    return mx_submit(e, &r, &handle, error);
}

/* Until all that was submitted has ended. */
static mx_status finish(mx_engine *e, double start, totals *total, mx_error *error) {
    mx_status status = MX_OK;
    *total = (totals){0};
    while (!status && !mx_engine_idle(e)) {
        mx_event event;
        status = mx_step(e, error);
        while (!status && mx_poll(e, &event, 1) > 0) {
            double *first = event.user;
            if (event.type == MX_EVENT_TOKEN && *first <= 0) *first = mx_seconds() - start;
            if (event.type == MX_EVENT_FAILED) status = mx_fail(error, event.error.status, "%s", event.error.text);
            if (event.type != MX_EVENT_FINISHED) continue;
            total->asked += event.usage.prompt_tokens;
            total->cached += event.usage.cached_tokens;
        }
    }
    total->seconds = mx_seconds() - start;
    return status;
}

static void report(const load *l, const totals *all, double alone) {
    const int64_t computed = all->asked - all->cached;
    const int64_t others = all->asked - all->asked / l->requests; /* somebody must compute it once */
    const double median = mx_median(l->first, l->requests);       /* sorts them */
    printf("%-13s %8lld of %lld prompt tokens computed (behind the first %.1f %% saved)  first token %.3f s, median "
           "%.3f s, last %.3f s  "
           "one more, alone: %.3f s\n",
           l->reuse ? "with reuse" : "without reuse", (long long)computed, (long long)all->asked,
           others ? 100.0 * (double)all->cached / (double)others : 0, l->first[0], median, l->first[l->requests - 1],
           alone);
}

static mx_status measure(mx_model *model, const load *l, mx_error *error) {
    const mx_engine_options options = {.context = l->shared + l->question + ANSWER, .max_running = l->requests};
    mx_engine *e;
    mx_status status = mx_engine_create(model, &options, &e, error);
    if (status) return status;
    totals all, one;
    double alone = 0, start = mx_seconds();
    for (int i = 0; i < l->requests && !status; i++) status = submit(e, l, i, &l->first[i], error);
    if (!status) status = finish(e, start, &all, error);
    start = mx_seconds();
    if (!status) status = submit(e, l, l->requests, &alone, error);
    if (!status) status = finish(e, start, &one, error);
    if (!status) report(l, &all, alone);
    mx_engine_destroy(e);
    return status;
}

int main(int argc, char **argv) {
    load l = {.requests = argc > 2 ? atoi(argv[2]) : 64,
              .shared = argc > 3 ? atoi(argv[3]) : 1500,
              .question = argc > 4 ? atoi(argv[4]) : 30};
    mx_error error;
    mx_model *model = NULL;
    if (argc < 2 || l.requests < 1 || l.requests > 4096 || l.shared < 0 || l.question < 1) {
        fprintf(stderr, "reuse_bench MODEL [REQUESTS [SHARED [QUESTION]]]\n");
        return 2;
    }
    l.prompt = calloc((size_t)(l.shared + l.question), sizeof *l.prompt);
    l.first = calloc((size_t)l.requests, sizeof *l.first);
    mx_status status = l.prompt && l.first ? MX_OK : mx_fail(&error, MX_NO_MEMORY, "no memory");
    if (!status) status = mx_model_open(argv[1], &(mx_load_options){.way = MX_LOAD_MAP}, &model, &error);
    for (int i = 0; i < 2 && !status; i++) {
        l.reuse = i == 0;
        status = measure(model, &l, &error);
        fflush(stdout);
    }
    if (status) fprintf(stderr, "%s\n", error.text);
    mx_model_close(model);
    free(l.prompt);
    free(l.first);
    return status ? 1 : 0;
}
