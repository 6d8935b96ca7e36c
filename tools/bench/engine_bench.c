/* What a step costs outside the model: queue, rows, pages, prefix tree, events. On gpt-oss-20b's layers and vocabulary,
 * with a backend that computes nothing but clears pages of the true size.
 *
 *     engine_bench [REQUESTS [SECONDS]]
 *
 * REQUESTS (256) at once: median and 99th percentile of mx_step and the mx_poll behind it, and, as the engine counts
 * it, what is neither forward pass nor drawing; beside a model's step of SECONDS (1: on 2 cores of Zen 4 a step of
 * gpt-oss-20b takes 1.5 s with 64 rows and 6.2 s with 256). How long it takes here: 256 / tokens/s of
 *
 *     mxrun bench --synthetic gpt-oss-20b -p 0 --depth 0 --streams 256
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "bench/measure.h"
#include "engine/engine_internal.h"

enum { VOCAB = 201088, LAYERS = 24, WINDOW = 128, CONTEXT = 8192, BATCH = 512, SYSTEM = 1500, QUESTION = 200 };
enum { PAGE_BYTES = 8 * 2 * 64 * MX_TILE * 2, CLEARED = 512, MOST_STEPS = 20000 };

/* ---- a backend that computes nothing ------------------------------------------------------------------------------
 */
typedef struct idle_backend {
    mx_backend base;
    char *memory; /* [CLEARED][PAGE_BYTES]: pages are cleared here in turn */
    int cleared;
} idle_backend;

static void destroy(mx_backend *b) {
    free(((idle_backend *)b)->memory);
    free(b);
}
static int64_t page_bytes(const mx_backend *b) {
    (void)b;
    return PAGE_BYTES;
}
static void page_clear(mx_backend *base, int32_t page) {
    idle_backend *b = (idle_backend *)base;
    (void)page;
    memset(b->memory + (size_t)(b->cleared++ % CLEARED) * PAGE_BYTES, 0, PAGE_BYTES);
}
static void page_copy(mx_backend *base, int32_t to, int32_t from) {
    idle_backend *b = (idle_backend *)base;
    memcpy(b->memory + (size_t)(to % CLEARED) * PAGE_BYTES, b->memory + (size_t)(from % CLEARED) * PAGE_BYTES,
           to % CLEARED == from % CLEARED ? 0 : PAGE_BYTES);
}
static mx_status step(mx_backend *b, const mx_batch *batch, mx_error *error) {
    (void)b, (void)batch, (void)error;
    return MX_OK;
}
static mx_status sample(mx_backend *b, int wanted, const mx_sample_spec *spec, mx_sampled *out, mx_error *error) {
    (void)b, (void)wanted, (void)error;
    *out = (mx_sampled){(int32_t)((spec->seed * 7919 + (uint64_t)spec->position * 104729) % VOCAB), -1};
    return MX_OK;
}

static mx_engine *make_engine(int requests, mx_speculation speculation) {
    static const mx_backend_ops ops = {.name = "idle",
                                       .destroy = destroy,
                                       .page_bytes = page_bytes,
                                       .page_clear = page_clear,
                                       .page_copy = page_copy,
                                       .step = step,
                                       .sample = sample};
    static mx_config config = {.layers = LAYERS, .vocab = VOCAB, .window = WINDOW, .max_positions = CONTEXT};
    for (int l = 0; l < LAYERS; l++) config.sliding[l] = l % 2 == 0;
    idle_backend *b = calloc(1, sizeof *b);
    if (!b || !(b->memory = malloc((size_t)CLEARED * PAGE_BYTES))) return NULL;
    b->base.ops = &ops;
    mx_engine_parts parts = {.config = &config,
                             .backend = &b->base,
                             .batch_tokens = BATCH,
                             .max_running = requests,
                             .max_wanted = 2 * requests,
                             .speculation = speculation,
                             .draft_tokens = 4};
    mx_engine *e;
    mx_error error;
    const uint64_t memory = (uint64_t)requests * LAYERS * 48 * PAGE_BYTES; /* counted, not taken */
    mx_status status = mx_kv_plan_make(&config, PAGE_BYTES, memory, CONTEXT, BATCH, &parts.plan, &error);
    if (!status) status = mx_engine_assemble(&parts, &e, &error);
    if (!status) return e;
    fprintf(stderr, "%s\n", error.text);
    destroy(&b->base);
    return NULL;
}

/* ---- measuring ----------------------------------------------------------------------------------------------------
 */
typedef struct times {
    double of[MOST_STEPS], scheduling[MOST_STEPS]; /* seconds */
    int count;
} times;

static void report(const char *what, times *t, double model_seconds) {
    const double median = mx_median(t->of, t->count), late = t->of[t->count * 99 / 100];
    const double scheduling = mx_median(t->scheduling, t->count);
    printf("%-46s %6d steps  %8.1f us  99th %8.1f us  scheduling %8.1f us: %.3f %% of a step of %g s\n", what, t->count,
           median * 1e6, late * 1e6, scheduling * 1e6, 100 * scheduling / model_seconds, model_seconds);
}

/* Chats behind one system prompt, `count` of them from number `first` on. */
static mx_status submit(mx_engine *e, int first, int count, int64_t answer, mx_error *error) {
    int32_t prompt[SYSTEM + QUESTION];
    mx_status status = MX_OK;
    for (int i = first; i < first + count && !status; i++) {
        for (int t = 0; t < SYSTEM + QUESTION; t++)
            prompt[t] = (int32_t)(((t < SYSTEM ? 1 : (uint64_t)i + 2) * 2654435761u + (uint64_t)t * 40503u) % VOCAB);
        mx_request r = {.prompt = prompt, .prompt_count = SYSTEM + QUESTION, .max_tokens = answer};
        r.sampling = MX_SAMPLING_DEFAULT;
        r.sampling.seed = (uint64_t)i;
        mx_handle handle;
        status = mx_submit(e, &r, &handle, error);
    }
    return status;
}

/* One step and what it tells; `t` NULL: not measured. */
static mx_status one_step(mx_engine *e, times *t, mx_error *error) {
    mx_event event[64];
    const double before = mx_engine_get_stats(e).schedule_seconds, start = mx_seconds();
    mx_status status = mx_step(e, error);
    while (mx_poll(e, event, 64) == 64) {
    }
    if (!t || t->count == MOST_STEPS) return status;
    t->of[t->count] = mx_seconds() - start;
    t->scheduling[t->count++] = mx_engine_get_stats(e).schedule_seconds - before;
    return status;
}

static mx_status measure(mx_engine *e, int requests, double model_seconds, const char *how, mx_error *error) {
    static times prompts, decode, churn;
    char what[100];
    prompts.count = decode.count = churn.count = 0;
    mx_status status = submit(e, 0, requests, 600, error);
    while (!status && mx_engine_get_stats(e).generated_tokens < requests * 20) status = one_step(e, &prompts, error);
    for (int i = 0; i < 400 && !status; i++) status = one_step(e, &decode, error);
    /* Each step one request ends and another comes, and as many wait as run. */
    if (!status) status = submit(e, requests, requests, 100, error);
    for (int i = 0; i < 2000 && !status; i++) {
        status = submit(e, 2 * requests + i, 1, 100, error);
        if (!status) status = one_step(e, &churn, error);
    }
    if (status) return status;
    snprintf(what, sizeof what, "%d requests%s: prompts, then decode", requests, how);
    report(what, &prompts, model_seconds);
    snprintf(what, sizeof what, "%d requests%s: decode", requests, how);
    report(what, &decode, model_seconds);
    snprintf(what, sizeof what, "%d requests%s: coming and going", requests, how);
    report(what, &churn, model_seconds);
    return MX_OK;
}

int main(int argc, char **argv) {
    const int requests = argc > 1 ? atoi(argv[1]) : 256;
    const double seconds = argc > 2 ? atof(argv[2]) : 1;
    static const struct way {
        mx_speculation speculation;
        const char *how;
    } ways[] = {{MX_SPECULATE_OFF, ""}, {MX_SPECULATE_ON, ", drafting"}};
    if (requests < 1 || requests > BATCH || !(seconds > 0)) {
        fprintf(stderr, "engine_bench [REQUESTS (1 to %d) [SECONDS]]\n", BATCH);
        return 2;
    }
    for (int i = 0; i < 2; i++) {
        mx_error error;
        mx_engine *e = make_engine(requests, ways[i].speculation);
        if (!e) return 1;
        mx_status status = measure(e, requests, seconds, ways[i].how, &error);
        if (status) fprintf(stderr, "%s\n", error.text);
        mx_engine_destroy(e);
        if (status) return 1;
    }
    return 0;
}
