#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cpu.h"
#include "commands/common.h"
#include "commands/models.h"
#include "commands/official_greedy.h"
#include "model/device.h"
#include "plan/advice.h"

/* mxrun verify: how far this build, on this machine, is from the truth. It calls the model's backend directly: one
 * sequence whose pages it hands out itself. */

enum { MOST_ROWS = 512, MOST_OFFICIAL = 512 }; /* rows of a step; tokens of an official prompt and its answer */
static const double NEAR_TIE = 0.25;           /* logits: closer ones may change places in the official BF16 answers */
static const double DEPARTED = 1e-3; /* relative distance of a residual row at which a layer counts as departed */

/* ---- running one sequence ---------------------------------------------------------------------------------------- */

typedef struct runner {
    mx_pool *pool;
    mx_weights *weights;
    mx_device device;
    uint64_t gpu_memory;  /* --gpu-memory */
    mx_load_options load; /* for the weights' way to a GPU: who is told of progress */
    char tier[24];        /* of what computes, once it is prepared */
    mx_backend *backend;
    int32_t *table; /* [layers, tiles]: page l * tiles + t */
    int64_t tiles;
    mx_precisions precision;
    int chunk; /* rows of one step */
    mx_row *row;
} runner;

static void runner_close(runner *r) {
    if (r->backend) r->backend->ops->destroy(r->backend);
    mx_device_close(&r->device);
    mx_weights_close(r->weights);
    mx_pool_destroy(r->pool);
    free(r->table);
    free(r->row);
}

static mx_status check_memory(const runner *r, uint64_t pages, uint64_t bytes, uint64_t free_bytes, int64_t tokens,
                              mx_error *error) {
    if (pages <= INT32_MAX && bytes <= free_bytes) return MX_OK;
    return mx_fail(error, MX_NO_MEMORY, "the KV cache of %lld tokens takes %.1f GB, %.1f GB are free%s%s",
                   (long long)tokens, (double)bytes / 1e9, (double)free_bytes / 1e9, r->device.plugin ? " on " : "",
                   r->device.info.name);
}

/* Weights on the GPU, and a backend there. */
static mx_status prepare_gpu(runner *r, const mx_backend_options *o, int64_t tokens, uint64_t bytes, mx_error *error) {
    mx_cuda_memory memory;
    char of[40];
    mx_status status = r->device.plugin->memory(r->weights, o, &memory, error);
    if (status) return status;
    snprintf(of, sizeof of, "%lld tokens", (long long)tokens);
    mx_device_tell(&r->device, r->device.info.memory_free, &memory, bytes, of);
    status = check_memory(r, (uint64_t)o->pages, bytes, mx_device_room(&r->device, &memory), tokens, error);
    const mx_cuda_load_options load = {.progress = r->load.progress, .user = r->load.user};
    if (!status) status = mx_device_load(&r->device, r->weights, load, error);
    mx_loading_end(r->load.user);
    return status ? status : mx_device_backend(&r->device, r->weights, r->pool, o, &r->backend, error);
}

/* A backend for sequences of up to `tokens` tokens, `wanted` rows of logits in one step. */
static mx_status runner_prepare(runner *r, mx_format kv, int64_t tokens, int64_t wanted, mx_error *error) {
    const mx_config *c = &r->weights->config;
    const mx_kernels *kernels;
    r->tiles = (tokens + MX_TILE - 1) / MX_TILE;
    int64_t pages = c->layers * r->tiles;
    mx_backend_options options = {.kv_format = kv,
                                  .pages = pages,
                                  .max_rows = r->chunk,
                                  .precision = &r->precision,
                                  .max_wanted = (int)(wanted < r->chunk ? wanted : r->chunk)};
    const uint64_t bytes = (uint64_t)pages * (uint64_t)mx_page_bytes(c, kv);
    mx_status status = mx_kernels_get(NULL, &kernels, error);
    if (status) return status;
    if (r->device.plugin) {
        mx_error why = {0};
        status = prepare_gpu(r, &options, tokens, bytes, &why);
        if (status && !mx_device_fall_back(&r->device, status, &why)) {
            *error = why;
            return status;
        }
    }
    if (!r->device.plugin) {
        status = check_memory(r, (uint64_t)pages, bytes, mx_memory_available(), tokens, error);
        if (!status) status = mx_device_backend(&r->device, r->weights, r->pool, &options, &r->backend, error);
        if (status) return status;
    }
    mx_device_tier(&r->device, kernels, r->tier);
    r->table = malloc((size_t)pages * sizeof *r->table);
    r->row = calloc((size_t)r->chunk, sizeof *r->row);
    if (!r->table || !r->row) return mx_fail(error, MX_NO_MEMORY, "no memory for %lld pages", (long long)pages);
    for (int64_t i = 0; i < pages; i++) r->table[i] = (int32_t)i;
    return MX_OK;
}

static void runner_clear(runner *r) {
    int64_t pages = r->weights->config.layers * r->tiles;
    for (int64_t i = 0; i < pages; i++) r->backend->ops->page_clear(r->backend, (int32_t)i);
}

/* Tokens `begin` .. `end` - 1 of `ids` in one step. `wanted` (may be NULL): by token. */
static mx_status runner_step(runner *r, const int32_t *ids, int64_t begin, int64_t end, const bool *wanted,
                             mx_batch *batch, mx_error *error) {
    const mx_sequence_view view = {r->table, r->tiles};
    for (int64_t i = begin; i < end; i++)
        r->row[i - begin] =
            (mx_row){.token = ids[i], .position = (int32_t)i, .wanted = wanted ? wanted[i] : i == end - 1};
    batch->row = r->row;
    batch->rows = (int)(end - begin);
    batch->sequence = &view;
    batch->sequences = 1;
    return r->backend->ops->step(r->backend, batch, error);
}

/* Of the last step. The backend's operation has no words for a failure: those come of drawing from the row. */
static mx_status runner_logits(runner *r, int wanted, const float **out, mx_error *error) {
    const mx_sample_spec greedy = {.top_p = 1, .repetition_penalty = 1};
    mx_sampled unused;
    *out = r->backend->ops->logits(r->backend, wanted);
    if (*out) return MX_OK;
    mx_status status = r->backend->ops->sample(r->backend, wanted, &greedy, &unused, error);
    return status ? status : mx_fail(error, MX_INVALID_STATE, "%s: no logits of row %d", r->backend->ops->name, wanted);
}

/* ---- goldens ----------------------------------------------------------------------------------------------------- */

/* One case of a golden file; the tensors are those of its format (residual, experts: NULL where it has none). */
typedef struct golden {
    char name[64];
    const mx_tensor *ids, *rows, *logits, *residual, *experts;
    int64_t tokens;
} golden;

typedef struct result {
    double logit, kl; /* largest difference; mean KL(golden || ours), nats */
    double top1;      /* share of rows */
    double experts;   /* share of the golden's choices, -1: not in the golden */
    double residual;  /* largest relative distance of a row, -1: not in the golden */
    int departs;      /* first layer beyond DEPARTED, 0: the embedding, -1: none */
} result;

static int32_t int_at(const mx_tensor *t, int64_t i) {
    return (int32_t)mx_load_u32(t->data + 4 * i);
}

static double real_at(const mx_tensor *t, int64_t i) {
    float f;
    memcpy(&f, t->data + 4 * i, 4);
    return f;
}

/* The case's tensor `part`, checked; `dims` 0: as many as the file likes. */
static mx_status find_part(const mx_checkpoint *ck, const char *name, const char *part, mx_dtype dtype, int dims,
                           const int64_t *shape, bool required, const mx_tensor **out, mx_error *error) {
    char full[100];
    snprintf(full, sizeof full, "%s.%s", name, part);
    const mx_tensor *t = *out = mx_checkpoint_find(ck, full);
    if (!t && !required) return MX_OK;
    if (!t) return mx_fail(error, MX_INVALID_FILE, "%s: tensor %s is missing", mx_checkpoint_at(ck, 0)->file, full);
    bool ok = t->dtype == dtype && t->dims == dims;
    for (int i = 0; ok && i < dims; i++) ok = t->shape[i] == shape[i] || shape[i] < 0;
    if (!ok || t->bytes == 0)
        return mx_fail(error, MX_INVALID_FILE, "%s: %s: its type or shape is not that of a golden for this model",
                       t->file, full);
    return MX_OK;
}

/* Finds and checks the tensors of case `g->name`. */
static mx_status read_golden(const mx_checkpoint *ck, const mx_config *c, golden *g, mx_error *error) {
    const char *n = g->name;
    mx_status s = find_part(ck, n, "ids", MX_DTYPE_I32, 1, (int64_t[]){-1}, true, &g->ids, error);
    if (s) return s;
    g->tokens = g->ids->shape[0];
    if (g->tokens > c->max_positions)
        return mx_fail(error, MX_INVALID_FILE, "%s: %s: %lld tokens, more than the model's %d positions", g->ids->file,
                       g->ids->name, (long long)g->tokens, c->max_positions);
    s = find_part(ck, n, "rows", MX_DTYPE_I32, 1, (int64_t[]){-1}, true, &g->rows, error);
    if (s) return s;
    int64_t rows = g->rows->shape[0];
    s = find_part(ck, n, "logits", MX_DTYPE_F32, 2, (int64_t[]){rows, c->vocab}, true, &g->logits, error);
    if (!s)
        s = find_part(ck, n, "residual", MX_DTYPE_F32, 3, (int64_t[]){c->layers + 1, g->tokens, c->hidden}, false,
                      &g->residual, error);
    if (!s)
        s = find_part(ck, n, "experts", MX_DTYPE_I32, 3, (int64_t[]){c->layers, g->tokens, c->top_k}, false,
                      &g->experts, error);
    if (s) return s;
    for (int64_t i = 0; i < g->tokens; i++)
        if (int_at(g->ids, i) < 0 || int_at(g->ids, i) >= c->vocab)
            return mx_fail(error, MX_INVALID_FILE, "%s: %s: token %d is not in the vocabulary of %d", g->ids->file,
                           g->ids->name, int_at(g->ids, i), c->vocab);
    for (int64_t i = 0, before = -1; i < rows; before = int_at(g->rows, i++))
        if (int_at(g->rows, i) <= before || int_at(g->rows, i) >= g->tokens)
            return mx_fail(error, MX_INVALID_FILE, "%s: %s: row %d is out of order or beyond the %lld tokens",
                           g->rows->file, g->rows->name, int_at(g->rows, i), (long long)g->tokens);
    return MX_OK;
}

/* Not a number is worse than any number. */
static bool is_worse(double x, double than) {
    return isnan(x) || x > than;
}

/* log(sum(exp(x))) */
static double log_sum(const float *x, int64_t n) {
    double top = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) top = fmax(top, (double)x[i]);
    for (int64_t i = 0; i < n; i++) sum += exp(x[i] - top);
    return top + log(sum);
}

static int64_t largest(const float *x, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* Adds one row of logits to the sums of `out`. `truth`: scratch of [vocab]. */
static void compare_logits(const mx_tensor *logits, int64_t row, const float *ours, int64_t vocab, float *truth,
                           result *out) {
    memcpy(truth, logits->data + 4 * row * vocab, (size_t)vocab * 4);
    double lt = log_sum(truth, vocab), lo = log_sum(ours, vocab), kl = 0;
    for (int64_t i = 0; i < vocab; i++) {
        double difference = fabs((double)truth[i] - ours[i]), p = truth[i] - lt;
        if (is_worse(difference, out->logit)) out->logit = difference;
        kl += exp(p) * (p - (ours[i] - lo));
    }
    out->kl += kl;
    out->top1 += largest(truth, vocab) == largest(ours, vocab);
}

/* Rows `begin` .. `begin` + `rows` - 1 of every layer's residual [layers + 1, rows, hidden] against the golden's. */
static void compare_residual(const golden *g, const mx_config *c, const float *ours, int64_t begin, int64_t rows,
                             result *out) {
    for (int layer = 0; layer <= c->layers; layer++)
        for (int64_t t = 0; t < rows; t++) {
            double off = 0, norm = 0;
            for (int64_t i = 0; i < c->hidden; i++) {
                double truth = real_at(g->residual, (layer * g->tokens + begin + t) * c->hidden + i);
                double d = ours[(layer * rows + t) * c->hidden + i] - truth;
                off += d * d;
                norm += truth * truth;
            }
            double relative = sqrt(off / fmax(norm, 1e-60));
            if (is_worse(relative, out->residual)) out->residual = relative;
            if (!(relative <= DEPARTED) && (out->departs < 0 || layer < out->departs)) out->departs = layer;
        }
}

/* Counts the golden's choices that are among ours [layers, rows, top_k]. */
static int64_t compare_experts(const golden *g, const mx_config *c, const int32_t *ours, int64_t begin, int64_t rows) {
    int64_t same = 0, k = c->top_k;
    for (int layer = 0; layer < c->layers; layer++)
        for (int64_t t = 0; t < rows; t++)
            for (int64_t i = 0; i < k; i++) {
                int32_t truth = int_at(g->experts, (layer * g->tokens + begin + t) * k + i);
                bool found = false;
                for (int64_t j = 0; j < k; j++) found |= ours[(layer * rows + t) * k + j] == truth;
                same += found;
            }
    return same;
}

/* What a case needs beside the backend. */
typedef struct scratch {
    int32_t *ids;
    bool *wanted;
    float *truth, *residual; /* [vocab], [layers + 1, chunk, hidden] */
    int32_t *experts;        /* [layers, chunk, top_k] */
} scratch;

static void scratch_free(scratch *s) {
    free(s->ids);
    free(s->wanted);
    free(s->truth);
    free(s->residual);
    free(s->experts);
}

static mx_status scratch_make(scratch *s, const golden *g, const mx_config *c, int chunk, mx_error *error) {
    *s = (scratch){0};
    s->ids = malloc((size_t)g->tokens * sizeof *s->ids);
    s->wanted = calloc((size_t)g->tokens, sizeof *s->wanted);
    s->truth = malloc((size_t)c->vocab * sizeof *s->truth);
    bool ok = s->ids && s->wanted && s->truth;
    if (g->residual)
        ok = (s->residual = malloc((size_t)(c->layers + 1) * (size_t)chunk * (size_t)c->hidden * sizeof(float))) && ok;
    if (g->experts)
        ok = (s->experts = malloc((size_t)c->layers * (size_t)chunk * (size_t)c->top_k * sizeof(int32_t))) && ok;
    if (!ok) return mx_fail(error, MX_NO_MEMORY, "%s: no memory for this case", g->name);
    for (int64_t i = 0; i < g->tokens; i++) s->ids[i] = int_at(g->ids, i);
    for (int64_t i = 0; i < g->rows->shape[0]; i++) s->wanted[int_at(g->rows, i)] = true;
    return MX_OK;
}

/* The golden's rows *row .. that were wanted of tokens up to `end`. */
static mx_status compare_rows(runner *r, const golden *g, int64_t end, int64_t *row, float *truth, result *out,
                              mx_error *error) {
    const int64_t rows = g->rows->shape[0];
    for (int wanted = 0; *row < rows && int_at(g->rows, *row) < end; wanted++) {
        const float *logits;
        mx_status status = runner_logits(r, wanted, &logits, error);
        if (status) return status;
        compare_logits(g->logits, (*row)++, logits, r->weights->config.vocab, truth, out);
    }
    return MX_OK;
}

/* One case through the model, chunk by chunk. */
static mx_status run_case(runner *r, const golden *g, result *out, mx_error *error) {
    const mx_config *c = &r->weights->config;
    scratch s;
    mx_status status = scratch_make(&s, g, c, r->chunk, error);
    *out = (result){.experts = g->experts ? 0 : -1, .residual = g->residual ? 0 : -1, .departs = -1};
    if (!status) runner_clear(r);
    int64_t row = 0, same = 0;
    for (int64_t begin = 0; begin < g->tokens && !status; begin += r->chunk) {
        int64_t end = begin + r->chunk < g->tokens ? begin + r->chunk : g->tokens;
        mx_batch batch = {.residual = s.residual, .experts = s.experts};
        status = runner_step(r, s.ids, begin, end, s.wanted, &batch, error);
        if (!status) status = compare_rows(r, g, end, &row, s.truth, out, error);
        if (status) break;
        if (s.residual) compare_residual(g, c, s.residual, begin, end - begin, out);
        if (s.experts) same += compare_experts(g, c, s.experts, begin, end - begin);
    }
    const double rows = (double)g->rows->shape[0];
    out->kl = isnan(out->kl) ? NAN : out->kl / rows; /* prints as nan, never -nan */
    out->top1 /= rows;
    if (g->experts) out->experts = (double)same / ((double)c->layers * (double)g->tokens * c->top_k);
    scratch_free(&s);
    return status;
}

/* ---- what is printed --------------------------------------------------------------------------------------------- */

static const char *percent(char *out, double share) {
    if (share < 0)
        strcpy(out, "-");
    else if (share == 1)
        strcpy(out, "100 %");
    else
        snprintf(out, 16, "%.2f %%", 100 * share);
    return out;
}

static void print_row(const golden *g, const result *r) {
    char top1[16], experts[16], residual[16] = "-", departs[24] = "-";
    if (r->residual >= 0 || isnan(r->residual)) snprintf(residual, sizeof residual, "%.1e", r->residual);
    if (r->departs == 0) strcpy(departs, "embedding");
    if (r->departs > 0) snprintf(departs, sizeof departs, "layer %d", r->departs - 1);
    printf("%-14s %6lld %5lld %12.2e %10.2e %9s %9s %9s  %s\n", g->name, (long long)g->tokens,
           (long long)g->rows->shape[0], r->logit, r->kl, percent(top1, r->top1), percent(experts, r->experts),
           residual, departs);
    fflush(stdout);
}

static void add_number(mx_bytes *out, const char *key, double value) {
    if (isfinite(value))
        mx_bytes_addf(out, ",\"%s\":%.6g", key, value);
    else
        mx_bytes_addf(out, ",\"%s\":null", key);
}

static void add_row(mx_bytes *out, const golden *g, const result *r) {
    mx_bytes_add_string(out, out->size ? ",{\"case\":" : "{\"case\":");
    mx_bytes_add_json(out, g->name, strlen(g->name));
    mx_bytes_addf(out, ",\"tokens\":%lld,\"rows\":%lld", (long long)g->tokens, (long long)g->rows->shape[0]);
    add_number(out, "max_logit_difference", r->logit);
    add_number(out, "mean_kl", r->kl);
    add_number(out, "top1_agreement", r->top1);
    if (g->experts) add_number(out, "expert_agreement", r->experts);
    if (g->residual) add_number(out, "residual_distance", r->residual);
    if (g->residual && r->departs >= 0)
        mx_bytes_addf(out, ",\"first_departing_layer\":%d", r->departs - 1); /* -1: the embedding */
    mx_bytes_add_string(out, "}");
}

/* ---- the command ------------------------------------------------------------------------------------------------- */

static const char *option_model, *option_kv, *option_precision, *option_load, *option_numa, *option_quantize,
    *option_cases, *option_device, *option_gpu_memory;
static int option_json;
static mx_number option_threads = {"--threads", NULL, 0, 1, MX_MOST_THREADS, true, false};
static mx_number option_chunk = {"--chunk", NULL, MOST_ROWS, 1, MOST_ROWS, true, false};
static double option_max_kl;

/* What a run is made with, for the last line. */
typedef struct setting {
    const char *tier, *kv, *precision;
    int threads, chunk;
} setting;

/* True when `name` stands in the comma-separated list (NULL: everything does). */
static bool listed(const char *list, const char *name) {
    size_t n = strlen(name);
    for (const char *p = list; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
        if (!strncmp(p, name, n) && (p[n] == ',' || !p[n])) return true;
    return !list;
}

/* t2 before t17: numbers in names by their value. */
static int by_case(const void *a, const void *b) {
    return strverscmp(((const golden *)a)->name, ((const golden *)b)->name);
}

static mx_status list_cases(const mx_checkpoint *ck, const mx_config *c, const char *path, golden **out, int *count,
                            mx_error *error) {
    golden *g = *out = calloc((size_t)mx_checkpoint_count(ck) + 1, sizeof *g);
    if (!g) return mx_fail(error, MX_NO_MEMORY, "%s: no memory for its cases", path);
    for (int i = 0; i < mx_checkpoint_count(ck); i++) {
        const char *name = mx_checkpoint_at(ck, i)->name, *dot = strrchr(name, '.');
        if (!dot || strcmp(dot, ".ids") || dot - name >= (long)sizeof g->name) continue;
        snprintf(g[*count].name, sizeof g->name, "%.*s", (int)(dot - name), name);
        if (!listed(option_cases, g[*count].name)) continue;
        mx_status status = read_golden(ck, c, &g[(*count)++], error);
        if (status) return status;
    }
    if (!*count)
        return mx_fail(error, option_cases ? MX_INVALID_ARGUMENT : MX_INVALID_FILE, "%s: %s%s", path,
                       option_cases ? "no case of these names: " : "not a golden: it holds no tensor NAME.ids",
                       option_cases ? option_cases : "");
    qsort(g, (size_t)*count, sizeof *g, by_case);
    return MX_OK;
}

/* `limit`: the name of the bound that decided. */
static void print_json(const setting *set, const char *limit, double bound, bool passed, const mx_bytes *cases) {
    printf(
        "{\"passed\":%s,\"%s\":%g,\"tier\":\"%s\",\"kv_type\":\"%s\",\"precision\":\"%s\",\"threads\":%d,\"chunk\":%d,"
        "\"cases\":[%s]}\n",
        passed ? "true" : "false", limit, bound, set->tier, set->kv, set->precision, set->threads, set->chunk,
        cases->data ? cases->data : "");
}

static void print_verdict(const setting *set, bool passed, int cases, double worst) {
    if (option_json) return;
    printf("\n%s: worst mean KL %.2e of %d case%s, at most %.2g allowed (%s kernels, %s, %s cache, %d thread%s, steps "
           "of up "
           "to %d rows)\n",
           passed ? "passed" : "FAILED", worst, cases, cases == 1 ? "" : "s", option_max_kl, set->tier, set->precision,
           set->kv, set->threads, set->threads == 1 ? "" : "s", set->chunk);
}

/* Every case of the golden file. *passed: all within --max-kl. */
static mx_status verify_golden(runner *r, const char *path, mx_format kv, const setting *set, bool *passed,
                               mx_error *error) {
    mx_checkpoint *ck = NULL;
    golden *cases = NULL;
    int count = 0;
    mx_bytes json = {0};
    mx_status status = mx_checkpoint_open(path, &ck, error);
    if (!status) status = list_cases(ck, &r->weights->config, path, &cases, &count, error);
    int64_t tokens = 0, wanted = 0;
    for (int i = 0; i < count && !status; i++) {
        if (cases[i].tokens > tokens) tokens = cases[i].tokens;
        if (cases[i].rows->shape[0] > wanted) wanted = cases[i].rows->shape[0];
    }
    if (!status) status = runner_prepare(r, kv, tokens, wanted, error);
    if (!status && !option_json)
        printf("%-14s %6s %5s %12s %10s %9s %9s %9s  %s\n", "case", "tokens", "rows", "logits differ", "mean KL",
               "top-1", "experts", "residual", "departs at");
    double worst = 0;
    *passed = true;
    for (int i = 0; i < count && !status; i++) {
        result now;
        status = run_case(r, &cases[i], &now, error);
        if (status) break;
        if (is_worse(now.kl, worst)) worst = now.kl;
        if (!(now.kl <= option_max_kl) || isnan(now.logit) || isnan(now.residual)) *passed = false;
        if (option_json)
            add_row(&json, &cases[i], &now);
        else
            print_row(&cases[i], &now);
    }
    if (!status) print_verdict(set, *passed, count, worst);
    if (!status && option_json) print_json(set, "max_kl", option_max_kl, *passed, &json);
    mx_bytes_free(&json);
    free(cases);
    mx_checkpoint_close(ck);
    return status;
}

/* One official prompt and its answer, each step given the official tokens before it, so that one near tie does not
 * spoil the rest. *same: tokens that agree; *passed: these and the near ties; `where` gets a line about the others. */
static mx_status run_official(runner *r, const mx_official_greedy *g, int *same, int *passed, mx_bytes *where,
                              mx_error *error) {
    int32_t ids[MOST_OFFICIAL];
    int64_t prompt = g->prompt_count, vocab = r->weights->config.vocab, end;
    memcpy(ids, g->prompt, (size_t)prompt * sizeof *ids);
    memcpy(ids + prompt, g->answer, sizeof g->answer);
    runner_clear(r);
    for (int64_t begin = 0; begin < prompt + MX_OFFICIAL_GREEDY_TOKENS - 1; begin = end) {
        end = begin + (begin < prompt ? r->chunk : 1);
        if (begin < prompt && end > prompt) end = prompt;
        mx_batch batch = {0};
        mx_status status = runner_step(r, ids, begin, end, NULL, &batch, error);
        if (status) return status;
        if (end < prompt) continue;
        const float *logits;
        status = runner_logits(r, 0, &logits, error);
        if (status) return status;
        int64_t best = largest(logits, vocab), official = g->answer[end - prompt];
        double gap = (double)logits[best] - logits[official];
        if (best == official) ++*same;
        if (gap < NEAR_TIE) ++*passed;
        if (best != official)
            mx_bytes_addf(where, "%stoken %lld: %lld for %lld, logits %.3f apart", where->size ? "; " : "",
                          (long long)(end - prompt), (long long)best, (long long)official, gap);
    }
    return MX_OK;
}

/* The published model's greedy answers. */
static mx_status verify_official(runner *r, const char *model, mx_format kv, const setting *set, bool *passed,
                                 mx_error *error) {
    const mx_config *c = &r->weights->config;
    int agree = 0, good = 0, total = MX_OFFICIAL_GREEDY_COUNT * MX_OFFICIAL_GREEDY_TOKENS;
    if (c->vocab != MX_OFFICIAL_GREEDY_VOCAB || c->layers != MX_OFFICIAL_GREEDY_LAYERS ||
        c->experts != MX_OFFICIAL_GREEDY_EXPERTS)
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "%s: without a golden file only gpt-oss-20b can be checked (%d layers, %d experts, vocabulary "
                       "%d; this model has %d, %d, %d): give a golden made for this model",
                       model, MX_OFFICIAL_GREEDY_LAYERS, MX_OFFICIAL_GREEDY_EXPERTS, MX_OFFICIAL_GREEDY_VOCAB,
                       c->layers, c->experts, c->vocab);
    mx_status status = runner_prepare(r, kv, MOST_OFFICIAL, 1, error);
    if (!status && !option_json) printf("%-18s %6s %7s  %s\n", "prompt", "tokens", "agree", "where not");
    mx_bytes json = {0};
    for (int i = 0; i < MX_OFFICIAL_GREEDY_COUNT && !status; i++) {
        const mx_official_greedy *g = &mx_official_greedy_20b[i];
        mx_bytes where = {0};
        int same = 0;
        status = run_official(r, g, &same, &good, &where, error);
        agree += same;
        if (!status && option_json)
            mx_bytes_addf(&json, "%s{\"case\":\"%s\",\"tokens\":%d,\"agree\":%d}", i ? "," : "", g->name,
                          g->prompt_count, same);
        else if (!status)
            printf("%-18s %6d %3d / %d  %s\n", g->name, g->prompt_count, same, MX_OFFICIAL_GREEDY_TOKENS,
                   where.data ? where.data : "");
        fflush(stdout);
        mx_bytes_free(&where);
    }
    *passed = good == total;
    if (!status && option_json)
        print_json(set, "near_tie", NEAR_TIE, *passed, &json);
    else if (!status)
        printf(
            "\n%s: %d of %d greedy tokens are those of OpenAI's implementation in BF16; %d others are near ties, less "
            "than %g apart, which pass (%s kernels, %s, %s cache)\n",
            *passed ? "passed" : "FAILED", agree, total, good - agree, NEAR_TIE, set->tier, set->precision, set->kv);
    mx_bytes_free(&json);
    return status;
}

/* The weights; for a GPU as they lie in the files, from where runner_prepare brings them there. */
static mx_status open_model(runner *r, const char *folder, const mx_device_choice *choice, mx_load_options *load,
                            mx_format kv, mx_error *error) {
    if (mx_device_wanted(choice)) {
        mx_load_options lazy = *load;
        lazy.way = MX_LOAD_LAZY;
        mx_status status = mx_weights_load(folder, &lazy, r->pool, &r->weights, error);
        const mx_backend_options shape = {
            .kv_format = kv, .max_rows = r->chunk, .max_wanted = r->chunk, .precision = &r->precision};
        if (!status) status = mx_device_open(choice, r->gpu_memory, r->weights, &shape, &r->device, error);
        if (status || r->device.plugin) return status;
        mx_weights_close(r->weights);
        r->weights = NULL;
    }
    if (load->way != MX_LOAD_LAZY)
        load->told = mx_plan_warn(&(mx_plan_load){.path = folder,
                                                  .kv = kv,
                                                  .form = mx_experts_form(load->quantize_experts),
                                                  .copied = load->way == MX_LOAD_READ,
                                                  .threads = load->threads});
    return mx_weights_load(folder, load, r->pool, &r->weights, error);
}

static int run(const mx_command *self, int argc, const char **argv) {
    static const struct poptOption options[] = {
        {"model", 'm', POPT_ARG_STRING, &option_model, 0,
         "The model: a name (\"mxrun list\"), a path, or ORG/NAME of the hub", "MODEL"},
        {NULL, 0, POPT_ARG_INCLUDE_TABLE, (void *)mx_hub_options, 0, NULL, NULL},
        {"device", 'd', POPT_ARG_STRING, &option_device, 0,
         "auto (default: a GPU that holds the model, else the CPU; the CPU too with --load, --numa or int8), cpu, cuda "
         "or "
         "cuda:N",
         "WHERE"},
        {"gpu-memory", 0, POPT_ARG_STRING, &option_gpu_memory, 0, "Of the GPU's memory at most so much: 20G", "SIZE"},
        {"max-kl", 0, POPT_ARG_DOUBLE, &option_max_kl, 0, "Largest mean KL that passes (default 1e-5)", "X"},
        {"cases", 0, POPT_ARG_STRING, &option_cases, 0, "Only these cases of the golden", "NAME,..."},
        {"kv-type", 0, POPT_ARG_STRING, &option_kv, 0, "Type of the KV cache: f32 (default), f16, bf16", "TYPE"},
        {"precision", 0, POPT_ARG_STRING, &option_precision, 0,
         "Of activations in products: fp32 (default), bf16x2, mixed, bf16, int8", "NAME"},
        {"chunk", 0, POPT_ARG_STRING, &option_chunk.text, 0, "Most rows of a step, 1 to 512 (default 512)", "N"},
        {"load", 0, POPT_ARG_STRING, &option_load, 0, "Weights: map (default), read or lazy", "WAY"},
        {"quantize-experts", 0, POPT_ARG_STRING, &option_quantize, 0,
         "Round BF16 experts when loading: mxfp4, or mxfp4:RECIPE", "FORMAT"},
        {"numa", 0, POPT_ARG_STRING, &option_numa, 0, "auto (default), off, interleave or spread", "HOW"},
        {"threads", 't', POPT_ARG_STRING, &option_threads.text, 0, "Threads (default: all physical cores)", "N"},
        {"json", 0, POPT_ARG_NONE, &option_json, 0, "One JSON object instead of the table", NULL},
        POPT_TABLEEND,
    };
    option_model = option_cases = NULL;
    option_load = option_numa = option_device = option_quantize = option_gpu_memory = NULL;
    option_kv = "f32";
    option_precision = "fp32";
    option_json = 0;
    option_max_kl = 1e-5;
    const char *const *positional = NULL;
    int code = MX_EXIT_OK;
    if (!mx_command_parse(self, options, argc, argv, &positional, &code)) return code;
    const mx_kv_name *kv = mx_kv_find(self, option_kv);
    if (!kv || !mx_number_check(self, &option_chunk) || !mx_number_check(self, &option_threads)) return MX_EXIT_USAGE;
    mx_loading loading = {0};
    mx_load_options load = {.threads = (int)option_threads.value, .progress = mx_loading_shown, .user = &loading};
    if (option_quantize && !mx_quantize_find(self, option_quantize, &load.quantize_experts)) return MX_EXIT_USAGE;
    if (option_load && !mx_load_find(self, option_load, &load.way)) return MX_EXIT_USAGE;
    if (option_numa && !mx_numa_find(self, option_numa, &load.numa)) return MX_EXIT_USAGE;
    if (!(option_max_kl >= 0)) return mx_command_usage(self, "--max-kl: expected a number from 0");
    if (positional && positional[0] && positional[1]) return mx_command_usage(self, "more than one golden file");

    mx_error error = {0};
    char folder[4096];
    const char *name;
    runner r = {.chunk = (int)option_chunk.value, .load = load};
    mx_device_choice choice;
    if (mx_precisions_parse(option_precision, &r.precision, &error))
        return mx_command_usage(self, "--precision: %s", error.text);
    const mx_device_given device = {.device = option_device,
                                    .gpu_memory = option_gpu_memory,
                                    .load = option_load,
                                    .numa = option_numa,
                                    .precision = &r.precision,
                                    .precisions = 1};
    if (!mx_device_find(self, &device, &choice, &name, &r.gpu_memory)) return MX_EXIT_USAGE;
    bool passed = false;
    mx_status status = mx_resolve_model(option_model, folder, sizeof folder, &error);
    if (!status) status = mx_pool_create_on((int)option_threads.value, load.numa, &r.pool, &error);
    if (!status) status = open_model(&r, folder, &choice, &load, kv->format, &error);
    mx_loading_end(&loading);
    if (!status) {
        setting set = {r.tier, option_kv, option_precision, mx_pool_threads(r.pool), r.chunk};
        status = positional && positional[0] ? verify_golden(&r, positional[0], kv->format, &set, &passed, &error)
                                             : verify_official(&r, folder, kv->format, &set, &passed, &error);
    }
    runner_close(&r);
    if (!status && (fflush(stdout) != 0 || ferror(stdout)))
        status = mx_fail(&error, MX_IO, "cannot write to stdout: %s", strerror(errno));
    if (status) return mx_command_fail(self, &error);
    return passed ? MX_EXIT_OK : MX_EXIT_FAILED;
}

const mx_command mx_command_verify = {
    .name = "verify",
    .arguments = "-m MODEL [GOLDEN.safetensors] [OPTION]...",
    .summary = "Compare the model's numbers with a reference",
    .description = "Runs the prompts of a golden file (the reference implementation's logits in\n"
                   "float64) and prints, for each, the largest difference of a logit, the mean\n"
                   "KL divergence (reference || mxrun) in nats, how often the best token and the\n"
                   "chosen experts agree, the largest relative distance of the residual stream,\n"
                   "and the first layer where it passes 1e-3. Exit code 1 when a mean KL is above\n"
                   "--max-kl or anything is not a number.\n"
                   "\n"
                   "Without a golden it checks gpt-oss-20b: 56 greedy tokens of OpenAI's own\n"
                   "implementation in BF16. Another token passes where its logit is less than 0.25\n"
                   "above the official one's: there BF16 rounding may have decided. The environment\n"
                   "variable MXRUN_CPU chooses the kernels; mxrun --help has its words.\n"
                   "\n"
                   "Examples:\n"
                   "  $ mxrun verify -m stories tests/data/stories.golden.safetensors\n"
                   "  $ mxrun verify -m gpt-oss-20b --kv-type f16",
    .run = run,
};
