/* Whatever runs beside a request, whenever it was set back, wherever its prefix came from: it is told the same tokens
 * and log-probabilities, bit for bit, as alone from cold.
 *
 * test_mixes [threads] [ahead | cuda] [SEED [COUNT]]: with `threads` several of them submit, cancel, poll and step at
 * once; with `ahead` steps are queued before the tokens of those before are known, where requests allow it; with `cuda`
 * they are so on the GPU, of the plugin that MXRUN_CUDA_PLUGIN names. Mixes SEED to SEED + COUNT - 1 on real models, 1
 * to 20 by default. A mix is drawn from its seed alone; of what happens only that depends on time which deadlines and
 * the length of steps decide. Ends with what all of them met. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cpu.h"
#include "kernels/kernels.h"
#include "mix.h"

enum { FULL_RUN = 20, MANY = 50 }; /* so many mixes meet everything at least once; all lengths and sizes of steps */

static uint64_t first_seed = 1;
static int mixes = FULL_RUN;
static bool threads, ahead, cuda;

static mix_model models[] = {{"tools/stories/checkpoint", NULL, 350},
                             {"tests/data/base", NULL, 200},
                             {"tests/data/mqa", NULL, 50},
                             {"tests/data/top1", NULL, 80}};
enum { MODELS = sizeof models / sizeof *models, BASE = 1 };
/* "base" in several files, where it is there: the same shapes, so the mixes are the same. */
static const char shards[] = "checkpoints/random/base-shards";

static int open_models(void **state) {
    (void)state;
    const char *root = getenv("MXRUN_SOURCE"), *shared = getenv("MXRUN_SHARED");
    const mx_load_options options = {.way = MX_LOAD_LAZY, .device = cuda ? "cuda" : NULL};
    char path[4096];
    mx_error error;
    snprintf(path, sizeof path, "%s/%s", shared ? shared : ".", shards);
    if (shared && !access(path, F_OK)) {
        models[BASE].name = shards;
        if (mx_model_open(path, &options, &models[BASE].model, &error)) fail_msg("%s", error.text);
    }
    for (int i = 0; i < MODELS; i++) {
        snprintf(path, sizeof path, "%s/%s", root ? root : ".", models[i].name);
        if (!models[i].model && mx_model_open(path, &options, &models[i].model, &error)) fail_msg("%s", error.text);
    }
    return 0;
}

static int close_models(void **state) {
    (void)state;
    for (int i = 0; i < MODELS; i++) mx_model_close(models[i].model);
    return 0;
}

/* Tiers that this machine has; the one that MXRUN_CPU names is the best of them. */
static int list_tiers(const char **out) {
    static const char *const names[] = {"scalar", "avx2", "avx512", "avx512bf16", "amx", "neon", "neondot", "neonbf16"};
    int n = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const mx_kernels *k;
        if (!mx_kernels_get(names[i], &k, NULL)) out[n++] = names[i];
    }
    return n;
}

/* How the requests ended, and what was needed for it. */
typedef struct totals {
    int64_t requests, tokens, prompt_tokens, shortest, longest, hits, cached, dropped, copied, set_back, were_set_back;
    int64_t drafted, accepted;
    int64_t ended[MX_FINISH_DEADLINE + 1], failed, told_before_cancel;
    int mixes[MODELS], threads[MIX_THREADS + 1], least_rows, most_rows; /* rows: of a step */
} totals;

static void add_request(totals *t, const mix_request *r) {
    const mx_event *last = &r->together.last;
    const int64_t prompt = r->request.prompt_count;
    if (!t->shortest || prompt < t->shortest) t->shortest = prompt;
    if (prompt > t->longest) t->longest = prompt;
    t->hits += last->usage.cached_tokens > 0;
    t->were_set_back += last->usage.set_back > 0;
    if (last->type == MX_EVENT_FAILED)
        t->failed++;
    else
        t->ended[last->finish]++;
    if (last->finish == MX_FINISH_CANCELLED) t->told_before_cancel += r->together.tokens;
}

static void add(totals *t, const mix *m, const mix_counts *c) {
    const int rows = m->together.batch_tokens;
    t->mixes[m->model - models]++;
    t->threads[m->together.threads]++;
    if (!t->least_rows || rows < t->least_rows) t->least_rows = rows;
    if (rows > t->most_rows) t->most_rows = rows;
    t->requests += m->count;
    t->tokens += c->stats.generated_tokens;
    t->prompt_tokens += c->stats.prompt_tokens;
    t->cached += c->stats.cached_tokens;
    t->dropped += c->dropped_pages;
    t->copied += c->copied_pages;
    t->set_back += c->stats.set_back;
    t->drafted += c->stats.drafted_tokens;
    t->accepted += c->stats.accepted_tokens;
    for (int i = 0; i < m->count; i++) add_request(t, &m->request[i]);
}

static void print_totals(const totals *t) {
    printf("%d mixes:", mixes);
    for (int i = 0; i < MODELS; i++) printf("%s %d on %s", i ? "," : "", t->mixes[i], models[i].name);
    printf("\nwith");
    for (int i = 1; i <= MIX_THREADS; i++) printf("%s %d: %d", i > 1 ? "," : " threads", i, t->threads[i]);
    printf("; %d to %d prompt tokens in a step\n", t->least_rows, t->most_rows);
    printf("%lld requests with prompts of %lld to %lld, %lld tokens of prompts, %lld generated\n",
           (long long)t->requests, (long long)t->shortest, (long long)t->longest, (long long)t->prompt_tokens,
           (long long)t->tokens);
    printf("%lld requests began with %lld tokens from the cache; %lld pages dropped, %lld copied; %lld requests set "
           "back, %lld times; %lld tokens drafted, %lld accepted\n",
           (long long)t->hits, (long long)t->cached, (long long)t->dropped, (long long)t->copied,
           (long long)t->were_set_back, (long long)t->set_back, (long long)t->drafted, (long long)t->accepted);
    printf("ended by stop %lld, constraint %lld, length %lld, context %lld, cancel %lld (after %lld tokens), deadline "
           "%lld, failure %lld\n",
           (long long)t->ended[MX_FINISH_STOP], (long long)t->ended[MX_FINISH_CONSTRAINT],
           (long long)t->ended[MX_FINISH_LENGTH], (long long)t->ended[MX_FINISH_CONTEXT],
           (long long)t->ended[MX_FINISH_CANCELLED], (long long)t->told_before_cancel,
           (long long)t->ended[MX_FINISH_DEADLINE], (long long)t->failed);
}

/* A run that did not meet all of this proves little. */
static void check_totals(const totals *t) {
    assert_true(t->hits > t->requests / 20);
    assert_true(t->cached > t->prompt_tokens / 20 && t->cached < t->prompt_tokens);
    assert_true(t->dropped > 100);
    assert_true(t->copied > 100);
    assert_true(t->set_back > 5);
    assert_true(ahead || cuda || (t->drafted > t->accepted && t->accepted > 100));
    assert_true(t->told_before_cancel > 10);
    for (int i = 0; i <= MX_FINISH_DEADLINE; i++) assert_true(t->ended[i] > 0);
    assert_true(t->failed > 0);
    for (int i = 0; i < MODELS; i++) assert_true(t->mixes[i] > 0);
    for (int i = 1; i <= MIX_THREADS; i++) assert_true(t->threads[i] > 0);
    if (mixes < MANY) return;
    assert_true(t->shortest == 1 && t->longest > MIX_PROMPT * 9 / 10);
    assert_true(t->least_rows == 1 && t->most_rows > MIX_ROWS * 3 / 4);
}

/* Running ahead, but for one mix of four no request asks for what keeps the engine from it, and none is guessed. */
static void make_ahead(mix *m) {
    if (cuda) m->tier = m->together.precision = m->alone.precision = NULL; /* it has its own */
    m->ahead = ahead;
    if (m->seed % 4 == 0) return;
    if (m->together.speculation == MX_SPECULATE_ON) m->together.speculation = MX_SPECULATE_AUTO;
    for (int i = 0; i < m->count; i++) {
        m->request[i].request.top_logprobs = 0;
        m->request[i].request.prompt_logprobs = false;
    }
}

static void as_if_alone(void **state) {
    (void)state;
    const char *tier[8];
    const mix_choice choice = {models, MODELS, &models[2], tier, list_tiers(tier), cuda ? 0.15 : threads ? 0.3 : 1.5};
    totals t = {0};
    for (int i = 0; i < mixes; i++) {
        const double start = mx_seconds();
        mix *m = mix_make(first_seed + (uint64_t)i, &choice);
        mix_counts counts;
        if (ahead || cuda) make_ahead(m);
        if (threads)
            mix_run_threads(m, &counts);
        else
            mix_run_together(m, &counts);
        const double met = mx_seconds();
        for (int r = 0; r < m->count; r++) {
            mix_run_alone(m, r);
            mix_compare(m, r);
        }
        if (mixes == 1) mix_print(m);
        printf("mix %llu: %d requests, %.2f + %.2f s, %lld set back\n", (unsigned long long)m->seed, m->count,
               met - start, mx_seconds() - met, (long long)counts.stats.set_back);
        fflush(stdout);
        add(&t, m, &counts);
        mix_free(m);
    }
    print_totals(&t);
    if (mixes >= FULL_RUN) check_totals(&t);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "threads")) {
        threads = true;
        argc--, argv++;
    }
    if (argc > 1 && (!strcmp(argv[1], "ahead") || !strcmp(argv[1], "cuda"))) {
        ahead = !strcmp(argv[1], "ahead");
        cuda = !ahead;
        argc--, argv++;
    }
    if (argc > 1) first_seed = strtoull(argv[1], NULL, 10);
    if (argc > 1) mixes = argc > 2 ? atoi(argv[2]) : 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(as_if_alone)};
    return cmocka_run_group_tests(tests, open_models, close_models);
}
