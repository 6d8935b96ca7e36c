/* Engines on real weights: the same tokens and log-probabilities, bit for bit, from a cold start and after a cache hit,
 * for every chunk size and number of threads, in every tier; stories says what transformers says; chats share what they
 * begin with. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/json.h"
#include "engine/model_parts.h"
#include "kernels/kernels.h"
#include "model/sampler.h"

enum { MOST = 1024 };

typedef struct answer {
    int count;
    int32_t token[MOST];
    uint32_t logprob[MOST]; /* bits */
    mx_event last;
} answer;

static const char *source_path(const char *name) {
    static char path[4096];
    const char *root = getenv("MXRUN_SOURCE");
    snprintf(path, sizeof path, "%s/%s", root ? root : ".", name);
    return path;
}

static mx_model *open_model(const char *name) {
    mx_model *model;
    mx_error error;
    if (mx_model_open(source_path(name), NULL, &model, &error)) fail_msg("%s", error.text);
    return model;
}

static mx_engine *engine_on(mx_model *model, mx_kv_type type, int batch, int threads) {
    mx_engine_options o = {.threads = threads, .context = MOST, .kv_type = type, .batch_tokens = batch};
    mx_engine *engine;
    mx_error error;
    if (mx_engine_create(model, &o, &engine, &error)) fail_msg("%s", error.text);
    return engine;
}

static void ask(mx_engine *e, const mx_request *request, answer *a) {
    mx_handle handle;
    mx_error error;
    if (mx_submit(e, request, &handle, &error)) fail_msg("%s", error.text);
    a->count = 0;
    while (!mx_engine_idle(e)) {
        assert_int_equal(mx_step(e, &error), MX_OK);
        mx_event event[4];
        int n = mx_poll(e, event, 4);
        for (int i = 0; i < n; i++) {
            if (event[i].type != MX_EVENT_TOKEN) {
                a->last = event[i];
                continue;
            }
            a->token[a->count] = event[i].token;
            memcpy(&a->logprob[a->count++], &event[i].logprob, sizeof(float));
        }
    }
    if (a->last.type == MX_EVENT_FAILED) fail_msg("%s", a->last.error.text);
}

static void assert_same(const answer *a, const answer *b) {
    assert_int_equal(a->count, b->count);
    assert_memory_equal(a->token, b->token, sizeof *a->token * (size_t)a->count);
    assert_memory_equal(a->logprob, b->logprob, sizeof *a->logprob * (size_t)a->count);
}

/* ---- cold and warm ------------------------------------------------------------------------------------------------
 */
/* A conversation as prefixes of one text, the last part now and then different. */
typedef struct turn {
    int prompt, edit_at, answer; /* edit_at: that token and those behind it change; -1: none */
    int cached;                  /* what must come from the cache: all before the first token that differs */
} turn;

static const turn conversation[] = {
    {150, -1, 170, 0},                         /* answers longer than any window, and dropped */
    {230, -1, 140, 150}, {230, -1, 30, 229},   /* again */
    {300, -1, 150, 230}, {260, 245, 140, 245}, /* the last message edited */
    {400, -1, 20, 260},  {400, 390, 20, 390},  /* the window is still there */
    {200, -1, 10, 199},                        /* back into a prompt */
    {64, 3, 10, 3},
};
enum { TURNS = sizeof conversation / sizeof *conversation };

static mx_request turn_request(int i, int vocab, int32_t *text) {
    if (i == 0)
        for (int t = 0; t < MOST; t++) text[t] = (int32_t)(mx_sample_uniform(5, t) * vocab);
    for (int t = conversation[i].edit_at; t >= 0 && t < MOST; t++)
        text[t] = (int32_t)(mx_sample_uniform(6 + (uint64_t)i, t) * vocab);
    mx_request r = {.prompt = text,
                    .prompt_count = conversation[i].prompt,
                    .max_tokens = conversation[i].answer,
                    .sampling = MX_SAMPLING_DEFAULT};
    r.sampling.seed = 7 + (uint64_t)i;
    r.sampling.repetition_penalty = i % 2 ? 1.1f : 1;
    r.sampling.top_p = i % 3 ? 1 : 0.9f;
    return r;
}

/* How an engine cuts its steps. */
typedef struct cut {
    int batch, threads;
} cut;

static void warm_equals_cold(const char *name, mx_kv_type type, const cut *cuts, int count) {
    static answer cold[TURNS], warm;
    int32_t text[MOST];
    mx_model *model = open_model(name);
    const int vocab = mx_model_config(model)->vocab;
    for (int i = 0; i < TURNS; i++) {
        mx_engine *e = engine_on(model, type, 512, 1);
        mx_request r = turn_request(i, vocab, text);
        ask(e, &r, &cold[i]);
        assert_int_equal(cold[i].count, conversation[i].answer);
        assert_int_equal(cold[i].last.usage.cached_tokens, 0);
        mx_engine_destroy(e);
    }
    for (int c = 0; c < count; c++) {
        mx_engine *e = engine_on(model, type, cuts[c].batch, cuts[c].threads);
        for (int i = 0; i < TURNS; i++) {
            mx_request r = turn_request(i, vocab, text);
            ask(e, &r, &warm);
            assert_same(&warm, &cold[i]);
            if (warm.last.usage.cached_tokens != conversation[i].cached)
                fail_msg("turn %d: %d tokens cached, %d expected", i, (int)warm.last.usage.cached_tokens,
                         conversation[i].cached);
        }
        mx_engine_destroy(e);
    }
    mx_model_close(model);
}

static void base_some_cuts(void **state) {
    (void)state;
    warm_equals_cold("tests/data/base", MX_KV_F16, (cut[]){{1, 1}, {7, 2}, {512, 4}}, 3);
}

static void base_every_cut(void **state) {
    if (*state) setenv("MXRUN_CPU", *state, 1);
    static const int batches[] = {1, 7, 64, 512};
    cut cuts[16];
    for (int i = 0; i < 16; i++) cuts[i] = (cut){batches[i / 4], 1 + i % 4};
    warm_equals_cold("tests/data/base", MX_KV_F16, cuts, 16);
    warm_equals_cold("tests/data/base", MX_KV_F32, cuts + 5, 1);
    unsetenv("MXRUN_CPU");
}

static void stories_warm_equals_cold(void **state) {
    (void)state;
    warm_equals_cold("tools/stories/checkpoint", MX_KV_BF16, &(cut){100, 2}, 1);
}

/* ---- one system prompt --------------------------------------------------------------------------------------------
 */
enum { CHATS = 64, SYSTEM = 1500, QUESTION_MOST = 60 };

/* Chats that come all at once, from cold: the first computes the system prompt, the others wait for it and then compute
 * their own question alone. */
static void chats_share_a_system_prompt(void **state) {
    (void)state;
    mx_model *model = open_model("tools/stories/checkpoint");
    const int vocab = mx_model_config(model)->vocab;
    const mx_engine_options options = {.threads = 2, .context = 2048, .speculation = MX_SPECULATE_OFF};
    mx_engine *e;
    mx_error error;
    if (mx_engine_create(model, &options, &e, &error)) fail_msg("%s", error.text);
    int32_t prompt[SYSTEM + QUESTION_MOST];
    int index[CHATS];
    for (int t = 0; t < SYSTEM; t++) prompt[t] = (int32_t)(mx_sample_uniform(70, t) * vocab);
    for (int i = 0; i < CHATS; i++) {
        const int question = 20 + i * 7 % 41;
        for (int t = 0; t < question; t++) prompt[SYSTEM + t] = (int32_t)(mx_sample_uniform(71, i * 100 + t) * vocab);
        prompt[SYSTEM] = 100 + i; /* they differ from here on */
        index[i] = i;
        mx_request r = {.prompt = prompt,
                        .prompt_count = SYSTEM + question,
                        .max_tokens = 3,
                        .sampling = MX_SAMPLING_DEFAULT,
                        .user = &index[i]};
        mx_handle handle;
        if (mx_submit(e, &r, &handle, &error)) fail_msg("%s", error.text);
    }
    int64_t asked = 0, cached = 0, generated = 0;
    int finished = 0;
    while (!mx_engine_idle(e)) {
        if (mx_step(e, &error)) fail_msg("%s", error.text);
        for (mx_event event; mx_poll(e, &event, 1) > 0;) {
            if (event.type == MX_EVENT_FAILED) fail_msg("%s", event.error.text);
            if (event.type != MX_EVENT_FINISHED) continue;
            const int i = *(const int *)event.user;
            finished++;
            generated += event.usage.generated_tokens;
            assert_int_equal(event.usage.cached_tokens, i == 0 ? 0 : SYSTEM);
            if (i == 0) continue;
            asked += event.usage.prompt_tokens;
            cached += event.usage.cached_tokens;
        }
    }
    assert_int_equal(finished, CHATS);
    const mx_engine_stats stats = mx_engine_get_stats(e);
    printf("%d of %d prompt tokens behind the first chat's computed\n", (int)(asked - cached), (int)asked);
    assert_true((double)cached >= 0.95 * (double)asked);
    /* what went through the model says the same */
    assert_int_equal(stats.computed_rows, stats.prompt_tokens - stats.cached_tokens + generated - CHATS);
    assert_int_equal(stats.computed_rows, SYSTEM + 20 + asked - cached + generated - CHATS);
    mx_engine_destroy(e);
    mx_model_close(model);
}

/* ---- stories ------------------------------------------------------------------------------------------------------
 */
static int read_ids(const mx_json *list, int32_t *out) {
    int n = 0;
    assert_true(list && list->type == MX_JSON_ARRAY && list->count < MOST);
    for (const mx_json *v = list->child; v; v = v->next) {
        int64_t id;
        assert_true(mx_json_int64(v, &id));
        out[n++] = (int32_t)id;
    }
    return n;
}

static void stories_greedy(void **state) {
    if (*state) setenv("MXRUN_CPU", *state, 1);
    static answer a;
    int32_t prompt[MOST], expected[MOST];
    mx_bytes bytes = {0};
    mx_json_document *document;
    mx_error error;
    if (mx_read_file(source_path("tests/data/stories.greedy.json"), 1 << 24, &bytes, &error) ||
        mx_json_parse("stories.greedy.json", bytes.data, bytes.size, &document, &error))
        fail_msg("%s", error.text);
    mx_model *model = open_model("tools/stories/checkpoint");
    mx_engine *e = engine_on(model, MX_KV_F32, 0, 2);
    const int32_t stop[] = {4089, 4095}; /* return, call */
    int cases = 0;
    for (const mx_json *c = mx_json_root(document)->child; c; c = c->next, cases++) {
        int n = read_ids(mx_json_get(c, "prompt_ids"), prompt), count = read_ids(mx_json_get(c, "ids"), expected);
        mx_request r = {.prompt = prompt,
                        .prompt_count = n,
                        .sampling = {.temperature = 0, .top_p = 1, .repetition_penalty = 1},
                        .stop = stop,
                        .stop_count = 2};
        ask(e, &r, &a);
        assert_int_equal(a.count, count);
        assert_memory_equal(a.token, expected, sizeof *expected * (size_t)count);
        assert_int_equal(a.last.finish, MX_FINISH_STOP);

        /* the next turn, with the analysis dropped and the answer kept: it departs right behind the prompt */
        int final = 0;
        for (int i = 1; i < count; i++)
            if (expected[i - 1] == 4092 && expected[i] == 320) final = i + 1; /* start, assistant */
        if (final == 0) continue;
        int total = n;
        for (int i = final; i < count; i++) prompt[total++] = expected[i];
        r.prompt_count = total;
        r.max_tokens = 5;
        ask(e, &r, &a);
        assert_true(a.last.usage.cached_tokens >= n);
        assert_true(a.last.usage.cached_tokens < n + 3); /* both begin with <|channel|> */
    }
    assert_int_equal(cases, 8);
    mx_engine_destroy(e);
    mx_model_close(model);
    mx_json_free(document);
    mx_bytes_free(&bytes);
    unsetenv("MXRUN_CPU");
}

/* ---- making engines -----------------------------------------------------------------------------------------------
 */
static void refused(mx_model *model, mx_engine_options o, mx_status status, const char *words) {
    mx_engine *engine;
    mx_error error;
    assert_int_equal(mx_engine_create(model, &o, &engine, &error), status);
    if (!strstr(error.text, words)) fail_msg("'%s' does not say '%s'", error.text, words);
}

static void options(void **state) {
    (void)state;
    mx_model *model, *none;
    mx_error error;
    assert_int_not_equal(mx_model_open("/no/such/folder", NULL, &none, &error), MX_OK);
    assert_non_null(strstr(error.text, "/no/such/folder"));

    model = open_model("tools/stories/checkpoint");
    mx_engine *e;
    assert_int_equal(mx_engine_create(model, NULL, &e, &error), MX_OK);
    mx_engine_info info = mx_engine_get_info(e);
    assert_true(info.context > 0 && info.context <= 131072);
    assert_true(info.threads > 0 && info.weight_bytes > 9000000 && info.weight_bytes < 12000000);
    assert_int_equal(info.kv_bytes_used, 0);
    assert_true(info.kv_type == MX_KV_F16 && *info.tier);
    assert_int_equal(info.vocab, mx_model_config(model)->vocab);
    mx_sampling sampling = mx_model_sampling(model);
    assert_true(sampling.temperature == 1 && sampling.top_p == 1 && sampling.top_k == 0);
    assert_true(sampling.repetition_penalty == 1 && sampling.min_p == 0);
    mx_engine_destroy(e);

    /* a page is 32 KiB, 64 KiB in F32 */
    assert_int_equal(mx_engine_create(model, &(mx_engine_options){.kv_memory = 1 << 20}, &e, &error), MX_OK);
    info = mx_engine_get_info(e);
    assert_int_equal(info.context, 8 * 64);
    assert_true(info.kv_bytes <= 1 << 20);
    mx_engine_destroy(e);
    mx_engine_options small = {.kv_memory = 1 << 20, .kv_type = MX_KV_F32};
    assert_int_equal(mx_engine_create(model, &small, &e, &error), MX_OK);
    assert_int_equal(mx_engine_get_info(e).context, 4 * 64);
    mx_engine_destroy(e);

    refused(model, (mx_engine_options){.kv_memory = 1 << 20, .context = 513}, MX_NO_MEMORY, "513 tokens");
    refused(model, (mx_engine_options){.kv_memory = 1000}, MX_NO_MEMORY, "64 tokens");
    refused(model, (mx_engine_options){.context = 131073}, MX_INVALID_ARGUMENT, "131072");
    refused(model, (mx_engine_options){.context = -1}, MX_INVALID_ARGUMENT, "context");
    refused(model, (mx_engine_options){.threads = -1}, MX_INVALID_ARGUMENT, "threads");
    refused(model, (mx_engine_options){.batch_tokens = -1}, MX_INVALID_ARGUMENT, "batch_tokens");
    refused(model, (mx_engine_options){.kv_type = 9}, MX_INVALID_ARGUMENT, "KV type");
    mx_model_close(model);
}

/* `more`: bytes of address space beyond what is in use; 0: as before. */
static void limit_memory(uint64_t more) {
    static struct rlimit before;
    unsigned long long pages = 0;
    if (!more) {
        assert_int_equal(setrlimit(RLIMIT_AS, &before), 0);
        return;
    }
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%llu", &pages), 1);
    fclose(f);
    assert_int_equal(getrlimit(RLIMIT_AS, &before), 0);
    const struct rlimit limit = {pages * (uint64_t)sysconf(_SC_PAGESIZE) + more, before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_AS, &limit), 0);
}

/* A context that was asked for may take what is free, not only what a context that was not asked for would take. */
static void chosen_context(void **state) {
    (void)state;
    mx_model *model = open_model("tools/stories/checkpoint");
    mx_engine_options o = {.threads = 1, .kv_type = MX_KV_F32, .context = 131072}; /* 257 MiB */
    mx_engine *e;
    mx_error error = {.text = ""};
    limit_memory((uint64_t)100 << 20);
    mx_status status = mx_engine_create(model, &o, &e, &error);
    limit_memory(0);
    assert_int_equal(status, MX_NO_MEMORY);
    if (!strstr(error.text, "of memory is free now")) fail_msg("\"%s\"", error.text);

    limit_memory((uint64_t)450 << 20);
    status = mx_engine_create(model, &(mx_engine_options){.threads = 1, .kv_type = MX_KV_F32}, &e, &error);
    const int64_t guess = status ? 0 : mx_engine_get_info(e).context;
    if (!status) mx_engine_destroy(e);
    status = mx_engine_create(model, &o, &e, &error);
    limit_memory(0);
    if (status) fail_msg("%s", error.text);
    assert_int_equal(mx_engine_get_info(e).context, 131072);
    assert_in_range(guess, 1, 131071);
    mx_engine_destroy(e);
    mx_model_close(model);
}

/* Runs a group in one tier, where the machine has it. */
static int in_tier(const char *tier, const struct CMUnitTest *tests, size_t count) {
    const mx_kernels *k;
    if (tier && mx_kernels_get(tier, &k, NULL)) {
        printf("skipped: no %s tier here\n", tier);
        return 0;
    }
    struct CMUnitTest group[8];
    for (size_t i = 0; i < count; i++) {
        group[i] = tests[i];
        group[i].initial_state = (void *)(uintptr_t)tier;
    }
    return _cmocka_run_group_tests(tier ? tier : "best tier", group, count, NULL, NULL);
}

/* Argument "full": every chunk size with every number of threads, in every tier. */
int main(int argc, char **argv) {
    const struct CMUnitTest every[] = {cmocka_unit_test(base_every_cut), cmocka_unit_test(stories_greedy),
                                       cmocka_unit_test(stories_warm_equals_cold)};
    const struct CMUnitTest some[] = {cmocka_unit_test(stories_greedy), cmocka_unit_test(base_some_cuts),
                                      cmocka_unit_test(chats_share_a_system_prompt), cmocka_unit_test(options),
                                      cmocka_unit_test(chosen_context)};
    if (argc > 1 && !strcmp(argv[1], "full"))
        return in_tier("scalar", every, 3) + in_tier("avx2", every, 3) + in_tier(NULL, every, 3);
    return in_tier("scalar", some, 1) + in_tier(NULL, some, 5);
}
