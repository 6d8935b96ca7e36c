#include "plan/estimate.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/kv.h"
#include "kernels/mx.h"

/* ---- memory -------------------------------------------------------------------------------------------------- */

/* mxrun and its libraries without a model; of its tokenizer for each token of the vocabulary; of requests for each
 * token of theirs. Measured with contexts of 128 to 32,768 tokens on "stories" (4,096 tokens in the vocabulary) and
 * with the published tokenizer (201,088). */
static const double PROGRAM = 14.2e6, OF_VOCABULARY = 80, OF_TOKEN = 330;

/* Of a GPU: activations of a step and the driver's own. A guess of the field (a CUDA context takes 0.3 to 0.5 GB),
 * until mxrun's backend can be measured. */
static const double GPU_SCRATCH = 1e9;

/* The engine keeps logits of so many rows more than it has streams, of tokens that are guessed ahead. */
enum { RUNNING = 64, SCORED = 64, DRAFTS = 4 };

double mx_plan_kv_bytes(const mx_config *c, mx_format kv, int64_t tokens) {
    return (double)mx_kv_pages_needed(c, tokens, MX_PLAN_ROWS) * (double)mx_page_bytes(c, kv);
}

static int64_t context_of(const mx_config *c, const mx_plan_request *r) {
    return r->context < c->max_positions ? r->context : c->max_positions;
}

/* What grows with the context: pages of all streams, and `of_token` bytes for each of their tokens. */
static double growing(const mx_config *c, const mx_plan_request *r, int64_t context, double of_token) {
    const double pages = r->streams * mx_plan_kv_bytes(c, r->kv, context);
    return ceil(pages / MX_HUGE_PAGE) * MX_HUGE_PAGE + of_token * (double)context * r->streams;
}

/* The longest context with which that fits into `room` bytes; 0: none. */
static int64_t most_context(const mx_config *c, const mx_plan_request *r, double room, double of_token) {
    int64_t fits = 0, beyond = (int64_t)c->max_positions + 1;
    while (beyond - fits > 1) {
        const int64_t middle = fits + (beyond - fits) / 2;
        if (growing(c, r, middle, of_token) <= room)
            fits = middle;
        else
            beyond = middle;
    }
    return fits;
}

/* `of_token`: bytes of out->program for each token of the streams; `more`: what steps of full length take beyond
 * out->scratch. */
static void sum_up(const mx_plan_model *m, const mx_plan_request *r, double of_token, double more,
                   mx_plan_memory *out) {
    const int64_t context = context_of(&m->config, r);
    const double all = growing(&m->config, r, context, of_token);
    out->weights = m->weights;
    out->kv = growing(&m->config, r, context, 0);
    out->sum = out->weights + out->kv + out->scratch + out->program;
    out->left = out->room - out->sum;
    const double room = out->left + all - more;
    out->context = room > 0 ? most_context(&m->config, r, room, of_token) : 0;
    if (out->left >= 0 && out->context < context) out->context = context;
}

mx_status mx_plan_memory_cpu(const mx_plan_model *m, const mx_plan_machine *machine, const mx_plan_request *r,
                             mx_plan_memory *out, mx_error *error) {
    const mx_config *c = &m->config;
    const int64_t tokens = context_of(c, r) * r->streams;
    const int rows = tokens < MX_PLAN_ROWS ? (int)tokens : MX_PLAN_ROWS;
    mx_backend_options options = {.kv_format = r->kv,
                                  .max_rows = MX_PLAN_ROWS,
                                  .max_wanted = (r->streams > RUNNING ? r->streams : RUNNING) + SCORED,
                                  .tier = machine->tier,
                                  .precision = &machine->precision};
    uint64_t scratch, longest;
    if (options.max_wanted > MX_PLAN_ROWS) options.max_wanted = MX_PLAN_ROWS;
    const int wanted = r->streams + DRAFTS < options.max_wanted ? r->streams + DRAFTS : options.max_wanted;
    const mx_kernels *here;
    if (mx_kernels_get(options.tier, &here, NULL)) options.tier = "scalar"; /* a made-up machine: nearly the same */
    mx_status status = mx_cpu_backend_resident(c, machine->cores, &options, rows, wanted, &scratch, error);
    if (!status) status = mx_cpu_backend_resident(c, machine->cores, &options, MX_PLAN_ROWS, wanted, &longest, error);
    if (status) return status;
    *out = (mx_plan_memory){.scratch = (double)scratch,
                            .program = PROGRAM + OF_VOCABULARY * c->vocab + OF_TOKEN * (double)tokens,
                            .room = machine->memory_free};
    sum_up(m, r, OF_TOKEN, (double)longest - (double)scratch, out);
    return MX_OK;
}

void mx_plan_memory_gpu(const mx_plan_model *m, const mx_plan_gpu *gpu, const mx_plan_request *r, mx_plan_memory *out) {
    *out = (mx_plan_memory){.scratch = GPU_SCRATCH, .room = gpu->memory_free};
    sum_up(m, r, 0, 0, out);
}

/* ---- work of a step ---------------------------------------------------------------------------------------------- */

/* Keys that a row at `position` sees, over all layers. */
static double sight(const mx_config *c, double position) {
    double sum = 0;
    for (int i = 0; i < c->layers; i++)
        sum += c->sliding[i] && c->window < position + 1 ? (double)c->window : position + 1;
    return sum;
}

/* Multiplications and additions of matrices for `rows` rows, `wanted` of them with logits; attention's own come extra.
 * In the last layer rows without logits need keys and values only. */
static void count_products(const mx_plan_model *m, double rows, double wanted, mx_cost *cost) {
    const mx_config *c = &m->config;
    const double q = (double)c->heads * c->head_dim, kv = (double)c->kv_heads * c->head_dim, hidden = c->hidden;
    const double on = (c->layers - 1) * rows + wanted; /* rows that go through what follows keys and values */
    const double pairs = on * c->top_k, wide = c->intermediate;
    *cost = (mx_cost){0};
    cost->flops[MX_CLASS_QKV] = 2 * hidden * (c->layers * rows * 2 * kv + on * q);
    cost->flops[MX_CLASS_O] = 2 * hidden * on * q;
    cost->flops[MX_CLASS_ROUTER] = 2 * hidden * on * c->experts;
    cost->flops[MX_CLASS_GATE_UP] = 2 * hidden * pairs * 2 * wide;
    cost->flops[MX_CLASS_DOWN] = 2 * hidden * pairs * wide;
    cost->flops[MX_CLASS_LM_HEAD] = 2 * hidden * wanted * c->vocab;
    for (int i = 0; i < MX_CLASSES; i++) {
        const mx_format format = i == MX_CLASS_GATE_UP || i == MX_CLASS_DOWN ? m->formats.experts
                                 : i == MX_CLASS_ROUTER                      ? m->formats.router
                                                                             : m->formats.dense;
        if (format == MX_F32 || format == MX_F16 || mx_is_integer_format(format)) cost->exact[i] = cost->flops[i];
        if (format == MX_Q8_0) cost->q8_0[i] = cost->flops[i];
    }
}

/* Rows at once: of one prompt from its beginning, or one of each of `streams` sequences at `depth`. */
static mx_plan_step step_of(const mx_plan_model *m, const mx_plan_machine *machine, const mx_plan_request *r, int rows,
                            bool prompt, double depth, mx_cost *cost) {
    const mx_config *c = &m->config;
    const double wanted = prompt ? 1 : rows, element = r->kv == MX_F32 ? 4 : 2;
    const double of_position = 2 * element * c->kv_heads * c->head_dim, heads = 4.0 * c->heads * c->head_dim;
    count_products(m, rows, wanted, cost);
    double kv = 0;
    if (prompt) {
        for (int i = 0; i < rows; i++) cost->attention += heads * sight(c, i);
        kv = rows * c->layers * of_position;
    } else {
        cost->attention = rows * heads * sight(c, depth);
        kv = rows * sight(c, depth) * of_position;
    }
    mx_plan_step s = {.rows = rows, .bytes = mx_plan_step_bytes(c, &m->bytes, rows, wanted) + kv};
    s.operations = mx_cost_operations(cost, machine->tier, &machine->precision);
    s.by_operations = mx_cost_seconds(cost, machine->tier, &machine->precision, &machine->peaks);
    const mx_cost attention = {.attention = cost->attention};
    const double attending = mx_cost_seconds(&attention, machine->tier, &machine->precision, &machine->peaks);
    if (s.by_operations > 0)
        s.slowness =
            ((MX_PLAN_MANY + MX_PLAN_ONE / rows) * (s.by_operations - attending) + MX_PLAN_ATTENTION * attending) /
            s.by_operations;
    return s;
}

/* ---- speed ------------------------------------------------------------------------------------------------------- */

/* What a speed may differ from the formula's by, to either side, beside the bandwidth. Tiers that are not here: nobody
 * ever measured them with a model of such a size. */
static const double SPREAD = 0.1;
static const struct fitted {
    const char *tier;
    double below; /* what it may be lower by */
    bool borrowed;
} fitted[] = {{"avx512bf16", 0.1, false}, {"avx512", 0.35, true}, {"avx2", 0.35, true}};

static const struct fitted *find_fitted(const char *tier) {
    for (size_t i = 0; i < sizeof fitted / sizeof *fitted; i++)
        if (!strcmp(tier, fitted[i].tier)) return &fitted[i];
    return NULL;
}

/* Why there are no rates; true: there are. */
static bool is_known(const mx_plan_machine *machine, const mx_cost *cost, char out[MX_PLAN_TEXT]) {
    const char *lacking = mx_cost_lacking(cost, machine->tier, &machine->precision, &machine->peaks);
    *out = 0;
    if (!find_fitted(machine->tier))
        snprintf(out, MX_PLAN_TEXT, "the speed of the kernels \"%s\" was never measured: mxrun bench does it",
                 machine->tier);
    else if (!(machine->bandwidth.median > 0))
        snprintf(out, MX_PLAN_TEXT, "the bandwidth of the memory was not measured (--bandwidth tells it)");
    else if (lacking)
        snprintf(out, MX_PLAN_TEXT, "the peak of %s is not known%s", *lacking ? lacking : "its products",
                 machine->given && *lacking ? ": --peak has to name it, too" : "");
    return !*out;
}

static double seconds_at(const mx_plan_step *s, double bandwidth) {
    return hypot(s->bytes / bandwidth, s->slowness * s->by_operations);
}

/* Fills in the times; returns `tokens` over them. `below`: what it may be lower by. */
static mx_plan_range rates(mx_plan_step *s, const mx_plan_range *bandwidth, double tokens, double below) {
    s->by_bytes = s->bytes / bandwidth->median;
    s->seconds = seconds_at(s, bandwidth->median);
    return (mx_plan_range){.low = tokens / seconds_at(s, bandwidth->low) * (1 - below),
                           .median = tokens / s->seconds,
                           .high = tokens / seconds_at(s, bandwidth->high) * (1 + SPREAD)};
}

void mx_plan_speed_cpu(const mx_plan_model *m, const mx_plan_machine *machine, const mx_plan_request *r,
                       mx_plan_speed *out) {
    const int64_t context = context_of(&m->config, r);
    const int rows = context < MX_PLAN_ROWS ? (int)context : MX_PLAN_ROWS;
    const struct fitted *f = find_fitted(machine->tier);
    mx_cost cost;
    *out = (mx_plan_speed){.prompt = step_of(m, machine, r, rows, true, 0, &cost)};
    out->decode = step_of(m, machine, r, r->streams, false, (double)(context / 2), &cost);
    if (machine->disk > 0) out->cold_start = m->weights / machine->disk;
    if (!is_known(machine, &cost, out->unknown)) {
        out->prompt.slowness = out->decode.slowness = 0;
        return;
    }
    out->borrowed = f->borrowed;
    out->prompt_rate = rates(&out->prompt, &machine->bandwidth, rows, f->below);
    out->decode_rate = rates(&out->decode, &machine->bandwidth, r->streams, f->below);
}

void mx_plan_speed_from_disk(const mx_plan_model *m, const mx_plan_machine *machine, const mx_plan_memory *memory,
                             mx_plan_speed *out) {
    const double lacking = fmin(1, -memory->left / m->weights), streams = out->decode.rows;
    out->from_disk = true;
    out->prompt_rate = (mx_plan_range){0};
    if (!(machine->disk > 0) || !(out->decode_rate.median > 0)) {
        if (!*out->unknown) snprintf(out->unknown, sizeof out->unknown, "the rate of the disk was not measured");
        out->decode_rate = (mx_plan_range){0};
        return;
    }
    const double all = out->decode.bytes / machine->disk, least = all * lacking;
    out->decode_rate =
        (mx_plan_range){streams / (all + out->decode.seconds), streams / ((all + least) / 2 + out->decode.seconds),
                        streams / (least + out->decode.seconds)};
}
