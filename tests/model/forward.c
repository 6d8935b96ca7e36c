/* The forward pass against the float64 oracle's goldens: every tier, every length, every way of cutting the prompt.
 *
 * Within one tier and precision all ways must agree bit for bit; against the golden the mean KL must stay below the
 * precision's bound (F32 cache). What is the default on processors with BF16 instructions must stay at or below what
 * others reach in every single case, with the F16 cache, too. Pages are handed out in scrambled order and taken away
 * behind the sliding window, so a step that looks at a wrong one fails. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cpu.h"
#include "golden.h"
#include "kernels/openblas/openblas.h"
#include "kernels/tiers.h"
#include "model/model.h"

enum { MAX_ROWS = 512, MAX_WANTED = 16, FULL_PRODUCT = 300 };

/* Random weights have near-ties in their routers, which the smallest rounding turns: "stories" is the ordinary case. */
static const struct bound {
    const char *name, *precision;
    double random, stories;
    bool openblas; /* dense products by OpenBLAS: cuts of the prompt may differ in bits */
    bool others;   /* the bound of a case that is in `others` is the one there */
} bounds[] = {
    {"fp32", "fp32", 1e-7, 1e-7, false, false}, {"bf16x2", "bf16x2", 1e-6, 1e-9, false, false},
    {"mixed", "mixed", 0.1, 1e-5, false, true}, {"bf16", "bf16", 0.1, 1e-4, false, false},
    {"int8", "int8", 0.3, 1e-4, false, false},  {"openblas", "fp32", 1e-7, 1e-7, true, false},
};
static const struct bound *bound = bounds;

static enum {
    BRIEF,  /* for sanitizers: prompts up to FULL_PRODUCT, two numbers of threads, two ways of cutting */
    NORMAL, /* longer prompts once, the others in every way */
    FULL,   /* all prompts in every way */
} mode = NORMAL;

struct checkpoint {
    const char *name;
    char folder[600], golden[600];
};

/* ---- running a prompt ------------------------------------------------------------------------------------ */

/* NULL: it is not here. "amx model" is the AMX tier on a model of its tiles, which only tests have. */
static const mx_kernels *tier_find(const char *name) {
    const mx_kernels *found;
#ifdef MX_HAS_AMX_MODEL
    if (!strcmp(name, mx_kernels_amx_model.name))
        return mx_cpu_detect() & MX_CPU_AVX512_BF16 ? &mx_kernels_amx_model : NULL;
#endif
    return mx_kernels_get(name, &found, NULL) ? NULL : found;
}

struct runner {
    mx_weights *weights;
    mx_pool *pool;
    mx_backend *backend;
    int tiles; /* of the page tables */
    int32_t *table;
};

static void runner_open(struct runner *r, mx_weights *w, const char *tier, int threads, int positions, mx_format kv) {
    mx_error error;
    r->weights = w;
    r->tiles = (positions + MX_TILE - 1) / MX_TILE;
    mx_precisions precision;
    if (mx_precisions_parse(bound->precision, &precision, &error)) fail_msg("%s", error.text);
    if (mx_pool_create(threads, &r->pool, &error)) fail_msg("%s", error.text);
    mx_backend_options options = {.kv_format = kv,
                                  .pages = (int64_t)r->tiles * w->config.layers,
                                  .max_rows = MAX_ROWS,
                                  .max_wanted = MAX_WANTED,
                                  .precision = &precision,
                                  .openblas = bound->openblas,
                                  .kernels = tier_find(tier)};
    assert_non_null(options.kernels);
    if (mx_cpu_backend_create(w, r->pool, &options, &r->backend, &error)) fail_msg("%s", error.text);
    r->table = calloc((size_t)options.pages, sizeof *r->table);
    assert_non_null(r->table);
}

static void runner_close(struct runner *r) {
    free(r->table);
    r->backend->ops->destroy(r->backend);
    mx_pool_destroy(r->pool);
}

/* Page tables for a step that begins at `position`: scrambled ids, sliding layers' old tiles gone. */
static void set_tables(struct runner *r, int position) {
    const mx_config *c = &r->weights->config;
    int pages = r->tiles * c->layers;
    for (int layer = 0; layer < c->layers; layer++)
        for (int tile = 0; tile < r->tiles; tile++) {
            int i = layer * r->tiles + tile;
            bool gone = c->sliding[layer] && tile * MX_TILE + MX_TILE - 1 <= position - c->window;
            r->table[i] = gone ? -1 : (int32_t)((i * 7919LL + 13) % pages);
        }
}

/* A kept row's alternatives are those of its own logits, with the sampler's bits. */
static void check_top(struct runner *r, int wanted) {
    const mx_backend_ops *ops = r->backend->ops;
    const float *logits = ops->logits(r->backend, wanted);
    const mx_sample_spec spec = {.temperature = 2, .top_p = 1, .repetition_penalty = 1, .position = wanted};
    mx_sampled sampled;
    mx_alternative top[3];
    float logprob;
    mx_error error;
    if (ops->sample(r->backend, wanted, &spec, &sampled, &error)) fail_msg("%s", error.text);
    if (ops->top(r->backend, wanted, 3, top, sampled.token, &logprob, &error)) fail_msg("%s", error.text);
    assert_memory_equal(&logprob, &sampled.logprob, sizeof logprob);
    int better[3] = {0};
    for (int32_t t = 0; t < r->weights->config.vocab; t++)
        for (int i = 0; i < 3; i++)
            better[i] += logits[t] > logits[top[i].token] || (logits[t] == logits[top[i].token] && t < top[i].token);
    for (int i = 0; i < 3; i++) assert_int_equal(better[i], i);
}

/* Runs `g` in chunks; logits of its rows go to out [row_count, vocab], the experts of all rows to `experts` when it is
 * not NULL. */
static void run_case(struct runner *r, const golden_case *g, int chunk, float *out, int32_t *experts) {
    const mx_config *c = &r->weights->config;
    mx_row row[MAX_ROWS];
    int32_t *routed = malloc((size_t)c->layers * MAX_ROWS * (size_t)c->top_k * sizeof *routed);
    int done = 0; /* golden rows */
    for (int32_t page = 0; page < r->tiles * c->layers; page++) r->backend->ops->page_clear(r->backend, page);
    for (int at = 0; at < g->count; at += chunk) {
        int rows = g->count - at < chunk ? g->count - at : chunk, wanted = 0;
        for (int i = 0; i < rows; i++) {
            bool want = done + wanted < g->row_count && g->rows[done + wanted] == at + i;
            row[i] = (mx_row){.token = g->ids[at + i], .position = at + i, .wanted = want};
            wanted += want;
        }
        set_tables(r, at);
        mx_sequence_view view = {r->table, r->tiles};
        mx_batch batch = {
            .row = row, .rows = rows, .sequence = &view, .sequences = 1, .experts = experts ? routed : NULL};
        mx_error error;
        if (r->backend->ops->step(r->backend, &batch, &error)) fail_msg("%s: %s", g->name, error.text);
        if (wanted) check_top(r, wanted - 1);
        assert_int_equal(r->backend->ops->top(r->backend, wanted, 0, NULL, -1, NULL, &error), MX_INVALID_STATE);
        for (int i = 0; i < wanted; i++)
            memcpy(out + (size_t)(done + i) * (size_t)c->vocab, r->backend->ops->logits(r->backend, i),
                   (size_t)c->vocab * sizeof(float));
        done += wanted;
        for (int l = 0; experts && l < c->layers; l++)
            memcpy(experts + ((size_t)l * (size_t)g->count + (size_t)at) * (size_t)c->top_k,
                   routed + (size_t)l * (size_t)rows * (size_t)c->top_k,
                   (size_t)rows * (size_t)c->top_k * sizeof(int32_t));
    }
    assert_int_equal(done, g->row_count);
    free(routed);
}

/* ---- comparing ------------------------------------------------------------------------------------------- */

/* The case's place among what others reach; -1: it has none, or does not count. */
static int others_of(const char *checkpoint, const char *name) {
    return bound->others ? golden_others_of(checkpoint, name) : -1;
}

static double most_of(const char *checkpoint, const char *name) {
    const int i = others_of(checkpoint, name);
    return i >= 0 ? golden_others[i].kl : strcmp(checkpoint, "stories") ? bound->random : bound->stories;
}

static void check_kl(const struct runner *r, const golden_case *g, const char *how, double most, const float *logits) {
    const double kl = golden_mean_kl(g->logits, logits, g->row_count, r->weights->config.vocab);
    if (!(kl <= most)) fail_msg("%s %s %s: mean KL %.3g, at most %.3g allowed", how, bound->name, g->name, kl, most);
}

static void check_case(struct runner *r, const golden_case *g, const char *tier, double most, float *first) {
    const mx_config *c = &r->weights->config;
    size_t pairs = (size_t)c->layers * (size_t)g->count * (size_t)c->top_k;
    int32_t *experts = g->experts ? malloc(pairs * sizeof *experts) : NULL;
    run_case(r, g, MAX_ROWS, first, experts);
    check_kl(r, g, tier, most, first);
    size_t other = 0;
    for (size_t i = 0; experts && i < pairs; i++) other += experts[i] != g->experts[i];
    if (other && bound == bounds) fail_msg("%s %s: %zu of %zu chosen experts differ", tier, g->name, other, pairs);
    free(experts);
}

static void check_cuts(struct runner *r, const golden_case *g, const char *tier, const float *first, float *again,
                       int threads) {
    static const int cut[] = {512, 64, 7, 1};
    size_t bytes = (size_t)g->row_count * (size_t)r->weights->config.vocab * sizeof(float);
    for (size_t i = 0; i < sizeof cut / sizeof *cut; i++) {
        if (cut[i] != 512 && cut[i] >= g->count) continue;
        if (mode == BRIEF && cut[i] != 512 && cut[i] != 7) continue;
        run_case(r, g, cut[i], again, NULL);
        if (memcmp(first, again, bytes))
            fail_msg("%s %s: chunks of %d on %d threads differ from the whole prompt on one", tier, g->name, cut[i],
                     threads);
    }
}

/* As users run it: the F16 cache. */
static void check_default(mx_weights *w, const golden_case *g, const char *checkpoint, const char *tier,
                          float *logits) {
    struct runner r;
    char how[60];
    snprintf(how, sizeof how, "%s, F16 cache", tier);
    runner_open(&r, w, tier, 2, g->count, MX_F16);
    run_case(&r, g, MAX_ROWS, logits, NULL);
    check_kl(&r, g, how, most_of(checkpoint, g->name), logits);
    runner_close(&r);
}

static void check_checkpoint(const struct checkpoint *ck, const char *tier) {
    mx_error error;
    if (!tier_find(tier)) {
        print_message("skipped: no tier %s here\n", tier);
        skip();
    }
    const mx_product *product;
    int64_t scratch;
    if (bound->openblas && mx_openblas_open(4, &product, &scratch, &error)) {
        print_message("skipped: %s\n", error.text);
        skip();
    }
    mx_weights *w;
    mx_checkpoint *goldens;
    if (mx_weights_open(ck->folder, NULL, &w, &error)) fail_msg("%s", error.text);
    if (mx_checkpoint_open(ck->golden, &goldens, &error)) fail_msg("%s", error.text);
    golden_case g;
    bool met[GOLDEN_OTHERS] = {false};
    for (int index = 0; golden_next(goldens, &index, &g);) {
        if (others_of(ck->name, g.name) >= 0) met[others_of(ck->name, g.name)] = true;
        if (mode == BRIEF && g.count > FULL_PRODUCT) continue;
        size_t floats = (size_t)g.row_count * (size_t)w->config.vocab;
        float *first = malloc(floats * sizeof *first), *again = malloc(floats * sizeof *again);
        assert_true(first && again && g.row_count <= MAX_WANTED);
        for (int threads = 1; threads <= 4; threads += mode == BRIEF ? 2 : 1) {
            if (threads > 1 && g.count > FULL_PRODUCT && mode != FULL) break;
            struct runner r;
            runner_open(&r, w, tier, threads, g.count, MX_F32);
            if (threads == 1) check_case(&r, &g, tier, most_of(ck->name, g.name), first);
            if (!bound->openblas && (g.count <= FULL_PRODUCT || mode == FULL))
                check_cuts(&r, &g, tier, first, again, threads);
            runner_close(&r);
        }
        if (bound->others) check_default(w, &g, ck->name, tier, again);
        free(first);
        free(again);
    }
    for (int i = 0; i < GOLDEN_OTHERS; i++)
        if (bound->others && !strcmp(golden_others[i].checkpoint, ck->name) && !met[i])
            fail_msg("%s has no case %s", ck->golden, golden_others[i].name);
    mx_checkpoint_close(goldens);
    mx_weights_close(w);
}

/* ---- the table of tests ---------------------------------------------------------------------------------- */

struct job {
    struct checkpoint checkpoint;
    const char *tier;
    char title[100];
};

static void run_job(void **state) {
    const struct job *job = *state;
    struct stat s;
    if (stat(job->checkpoint.folder, &s) || stat(job->checkpoint.golden, &s)) {
        print_message("skipped: %s or %s is not there\n", job->checkpoint.folder, job->checkpoint.golden);
        skip();
    }
    check_checkpoint(&job->checkpoint, job->tier);
}

/* forward TIER PRECISION|openblas [brief|full [CHECKPOINT]] */
int main(int argc, char **argv) {
    const char *tier = argc > 1 ? argv[1] : "scalar";
    for (size_t i = 0; argc > 2 && i < sizeof bounds / sizeof *bounds; i++)
        if (!strcmp(argv[2], bounds[i].name)) bound = &bounds[i];
    if (argc > 3) mode = strcmp(argv[3], "full") ? BRIEF : FULL;
    const char *source = getenv("MXRUN_SOURCE"), *shared = getenv("MXRUN_SHARED"), *wide2 = getenv("MXRUN_WIDE2");
    struct checkpoint checkpoint[5];
    int checkpoints = 0;
    static const char *const small[] = {"base", "mqa", "top1"};
    for (int i = 0; i < 3; i++) {
        struct checkpoint *c = &checkpoint[checkpoints++];
        c->name = small[i];
        snprintf(c->folder, sizeof c->folder, "%s/tests/data/%s", source ? source : ".", c->name);
        snprintf(c->golden, sizeof c->golden, "%s/tests/data/%s.golden.safetensors", source ? source : ".", c->name);
    }
    struct checkpoint *c = &checkpoint[checkpoints++];
    c->name = "stories";
    snprintf(c->folder, sizeof c->folder, "%s/tools/stories/checkpoint", source ? source : ".");
    snprintf(c->golden, sizeof c->golden, "%s/tests/data/stories.golden.safetensors", source ? source : ".");
    if (wide2) {
        c = &checkpoint[checkpoints++];
        c->name = "wide2";
        snprintf(c->folder, sizeof c->folder, "%s", wide2);
        snprintf(c->golden, sizeof c->golden, "%s/checkpoints/random/wide2.golden.safetensors",
                 shared ? shared : "../shared");
    }
    static struct job jobs[5];
    struct CMUnitTest tests[5];
    int count = 0;
    for (int i = 0; i < checkpoints; i++) {
        if (argc > 4 && strcmp(argv[4], checkpoint[i].name) != 0) continue;
        jobs[count] = (struct job){.checkpoint = checkpoint[i], .tier = tier};
        snprintf(jobs[count].title, sizeof jobs[count].title, "goldens of %s, %s %s", checkpoint[i].name, tier,
                 bound->name);
        tests[count] = (struct CMUnitTest){jobs[count].title, run_job, NULL, NULL, &jobs[count]};
        count++;
    }
    if (!count) return 2;
    return _cmocka_run_group_tests("forward", tests, (size_t)count, NULL, NULL);
}
