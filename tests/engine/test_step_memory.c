/* A step neither asks for memory nor gives any back, however many requests there are: on a model of hashes, where
 * pages run short, and on "stories", with all threads. What it does beside the model takes little time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"
#include "engine/engine_internal.h"
#include "fake_model.h"
#include "model/sampler.h"
#include "tests/sanitized.h"

enum { REQUESTS = 256, LATER = 100, PROMPT_MOST = 150 };

/* ---- every call, of every thread, while a step runs ---------------------------------------------------------------
 */
static atomic_bool stepping;
static atomic_int calls;

static void count(void) {
    if (atomic_load_explicit(&stepping, memory_order_relaxed)) atomic_fetch_add(&calls, 1);
}

#define WRAP(result, name, parameters, ...)                                                                            \
    result __real_##name parameters;                                                                                   \
    result __wrap_##name parameters;                                                                                   \
    result __wrap_##name parameters {                                                                                  \
        count();                                                                                                       \
        return __real_##name(__VA_ARGS__);                                                                             \
    }
WRAP(void *, malloc, (size_t size), size)
WRAP(void *, calloc, (size_t n, size_t size), n, size)
WRAP(void *, realloc, (void *old, size_t size), old, size)
WRAP(void, free, (void *old), old)
WRAP(void *, aligned_alloc, (size_t alignment, size_t size), alignment, size)
WRAP(int, posix_memalign, (void **out, size_t alignment, size_t size), out, alignment, size)
WRAP(char *, strdup, (const char *text), text)
WRAP(void *, mmap, (void *at, size_t size, int protection, int flags, int fd, int64_t offset), at, size, protection,
     flags, fd, offset)
/* What the build makes of it where offsets have 64 bits. */
WRAP(void *, mmap64, (void *at, size_t size, int protection, int flags, int fd, int64_t offset), at, size, protection,
     flags, fd, offset)
WRAP(int, munmap, (void *at, size_t size), at, size)

/* Every arena is touched when it is made: what first use costs is the system's affair, which finds and clears a huge
 * page for it, for milliseconds on a virtual machine, and would be counted as the step's where KV pages are first
 * taken. */
mx_status __real_mx_arena_create(size_t size, mx_arena *out, mx_error *error);
mx_status __wrap_mx_arena_create(size_t size, mx_arena *out, mx_error *error);
mx_status __wrap_mx_arena_create(size_t size, mx_arena *out, mx_error *error) {
    const mx_status status = __real_mx_arena_create(size, out, error);
    if (!status) memset(out->base, 0, out->size);
    return status;
}

static void step(mx_engine *e) {
    mx_error error;
    atomic_store(&stepping, true);
    mx_status status = mx_step(e, &error);
    atomic_store(&stepping, false);
    if (status) fail_msg("%s", error.text);
    if (calls) fail_msg("%d calls for memory in step %d", calls, (int)mx_engine_get_stats(e).steps);
}

/* ---- requests -----------------------------------------------------------------------------------------------------
 */
/* One of everything that a request may ask for. Every fourth begins like others, every third is answered at length. */
static void submit(mx_engine *e, int i, int vocab, int longest) {
    int32_t prompt[PROMPT_MOST];
    const mx_logit_bias bias[] = {{i % vocab, -3}, {7, 1.5f}};
    const int32_t stop[] = {5};
    const int length = 1 + i * 37 % PROMPT_MOST;
    for (int t = 0; t < length; t++) {
        const int who = i % 4 == 0 && t < 100 ? 0 : i;
        prompt[t] = (int32_t)(mx_sample_uniform((uint64_t)who, t % 40) * vocab); /* with something to look up */
    }
    mx_request r = {
        .prompt = prompt, .prompt_count = length, .max_tokens = i % 3 ? 3 + i % 12 : longest, .priority = i % 3};
    r.sampling = (mx_sampling){.temperature = i % 5 ? 0.8f : 0, .top_p = 1, .repetition_penalty = 1};
    r.sampling.seed = (uint64_t)i;
    if (i % 3 == 0) r.sampling.top_p = 0.9f, r.sampling.top_k = 20;
    if (i % 6 == 0) r.sampling.repetition_penalty = 1.1f, r.sampling.frequency_penalty = 0.2f;
    if (i % 7 == 0) r.sampling.bias = bias, r.sampling.bias_count = 2;
    if (i % 8 == 0) r.stop = stop, r.stop_count = 1, r.min_tokens = 2;
    if (i % 9 == 0) r.top_logprobs = 5;
    if (i % 11 == 0) r.prompt_logprobs = true;
    if (i % 13 == 0) r.deadline = 0.02;
    mx_handle handle;
    mx_error error;
    if (mx_submit(e, &r, &handle, &error)) fail_msg("%s", error.text);
    if (i % 50 == 49) mx_cancel(e, handle);
}

/* Most of the requests first, the others while they run. */
static mx_engine_stats run(mx_engine *e, int vocab, int longest) {
    int submitted = 0, most = 0;
    for (; submitted < REQUESTS; submitted++) submit(e, submitted, vocab, longest);
    while (!mx_engine_idle(e)) {
        step(e);
        for (int i = 0; i < 8 && submitted < REQUESTS + LATER; i++) submit(e, submitted++, vocab, longest);
        const int running = mx_engine_get_stats(e).running;
        if (running > most) most = running;
        mx_event event[16];
        while (mx_poll(e, event, 16) == 16) {
        }
    }
    const mx_engine_stats stats = mx_engine_get_stats(e);
    assert_int_equal(stats.finished, REQUESTS + LATER);
    printf("%d steps, at most %d requests at once, %d cached tokens, %d set back, %d drafted\n", (int)stats.steps, most,
           (int)stats.cached_tokens, (int)stats.set_back, (int)stats.drafted_tokens);
    assert_true(most > REQUESTS / 8);
    /* 1 % of a second, which is less than gpt-oss-20b takes for so many rows; sanitizers slow it down. */
    const double schedule = stats.schedule_seconds / (double)stats.steps;
    printf("%.2f ms a step beside the model\n", 1000 * schedule);
    assert_true(schedule < (SANITIZED ? 0.2 : 0.01));
    return stats;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* 256 that run in every step: chats behind one system prompt, each with its own end. */
static mx_engine_stats run_all_at_once(mx_engine *e, int vocab) {
    enum { SYSTEM = 64, QUESTION = 20, ANSWER = 80, MOST_STEPS = 1000 };
    static double schedule[MOST_STEPS];
    int32_t prompt[SYSTEM + QUESTION];
    for (int i = 0; i < REQUESTS; i++) {
        for (int t = 0; t < SYSTEM + QUESTION; t++)
            prompt[t] = (int32_t)(mx_sample_uniform(t < SYSTEM ? 1 : 2 + (uint64_t)i, t) * vocab);
        mx_request r = {.prompt = prompt, .prompt_count = SYSTEM + QUESTION, .max_tokens = ANSWER};
        r.sampling = MX_SAMPLING_DEFAULT;
        r.sampling.seed = (uint64_t)i;
        mx_handle handle;
        mx_error error;
        if (mx_submit(e, &r, &handle, &error)) fail_msg("%s", error.text);
    }
    int full = 0;
    for (double before = 0; !mx_engine_idle(e);) {
        step(e);
        mx_event event[16];
        while (mx_poll(e, event, 16) == 16) {
        }
        const mx_engine_stats stats = mx_engine_get_stats(e);
        if (stats.running == REQUESTS && full < MOST_STEPS) schedule[full++] = stats.schedule_seconds - before;
        before = stats.schedule_seconds;
    }
    assert_true(full >= ANSWER / 2);
    qsort(schedule, (size_t)full, sizeof *schedule, ascending);
    printf("%d steps with %d requests, %.2f ms beside the model (median)\n", full, REQUESTS, 1000 * schedule[full / 2]);
    assert_true(schedule[full / 2] < (SANITIZED ? 0.2 : 0.01)); /* as above */
    return mx_engine_get_stats(e);
}

/* `pages` for one request of the longest context, so many times. longest 0: 256 at once, all the time. */
static mx_engine_stats on_hashes(int pages, int longest, mx_speculation speculation) {
    static mx_config config;
    config = fake_config("sf", 100, 1024);
    mx_engine_parts parts = {.config = &config,
                             .batch_tokens = 512,
                             .max_running = REQUESTS,
                             .max_wanted = FAKE_WANTED,
                             .speculation = speculation,
                             .draft_tokens = 4};
    const int64_t page_bytes = MX_TILE * sizeof(uint64_t);
    const int64_t enough = mx_kv_pages_needed(&config, 1024, parts.batch_tokens) * pages;
    mx_engine *e;
    mx_error error;
    if (mx_kv_plan_make(&config, page_bytes, (uint64_t)(enough * page_bytes), 1024, parts.batch_tokens, &parts.plan,
                        &error))
        fail_msg("%s", error.text);
    parts.backend = &fake_backend_create(&config, parts.plan.pages)->base;
    if (mx_engine_assemble(&parts, &e, &error)) fail_msg("%s", error.text);
    const mx_engine_stats stats = longest ? run(e, FAKE_VOCAB, longest) : run_all_at_once(e, FAKE_VOCAB);
    mx_engine_destroy(e);
    return stats;
}

static void with_pages_for_all(void **state) {
    (void)state;
    assert_true(on_hashes(200, 15, MX_SPECULATE_OFF).cached_tokens > 0);
}

static void with_few_pages(void **state) {
    (void)state;
    assert_true(on_hashes(12, 150, MX_SPECULATE_OFF).set_back > 0);
}

static void with_drafts(void **state) {
    (void)state;
    on_hashes(100, 40, MX_SPECULATE_ON);
}

static void all_at_once(void **state) {
    (void)state;
    assert_int_equal(on_hashes(200, 0, MX_SPECULATE_OFF).set_back, 0);
}

static void all_at_once_with_drafts(void **state) {
    (void)state;
    on_hashes(200, 0, MX_SPECULATE_ON);
}

static void on_stories(void **state) {
    (void)state;
    const char *source = getenv("MXRUN_SOURCE");
    char path[4096];
    snprintf(path, sizeof path, "%s/tools/stories/checkpoint", source ? source : ".");
    mx_model *model;
    mx_engine *e;
    mx_error error;
    if (mx_model_open(path, NULL, &model, &error)) fail_msg("%s", error.text);
    const mx_engine_options o = {.threads = 2,
                                 .context = 1024,
                                 .kv_memory = (uint64_t)256 << 20,
                                 .max_running = REQUESTS,
                                 .speculation = MX_SPECULATE_ON};
    if (mx_engine_create(model, &o, &e, &error)) fail_msg("%s", error.text);
    run(e, mx_engine_get_info(e).vocab, 15);
    run_all_at_once(e, mx_engine_get_info(e).vocab);
    mx_engine_destroy(e);
    mx_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(with_pages_for_all), cmocka_unit_test(with_few_pages),          cmocka_unit_test(with_drafts),
        cmocka_unit_test(all_at_once),        cmocka_unit_test(all_at_once_with_drafts), cmocka_unit_test(on_stories)};
    return cmocka_run_group_tests_name("step memory", tests, NULL, NULL);
}
