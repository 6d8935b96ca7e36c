/* The GPU behind mx_backend: its memory, and the operations that concern it as a whole. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "model/cuda/backend_private.h"

enum {
    PART_PAIRS = 4096, /* (row, span) pairs of one call of attention: 70 MB in gpt-oss */
    CHANGES = 1 << 16, /* entries of page tables that travel with one block of input */
    LISTS = 8 << 20,   /* bytes of what sampling reads on the device, beside masks; more stays in pinned memory */
    LEAST_TERMS = 1,
};

/* ---- errors ------------------------------------------------------------------------------------------------------ */

mx_status mx_cuda_enter(mx_cuda_backend *b, mx_error *error) {
    if (b->lost.status) return mx_fail(error, b->lost.status, "%s", b->lost.text);
    return mx_gpu_use(b->weights->device, error);
}

mx_status mx_cuda_note(mx_cuda_backend *b, mx_status status, mx_error *error) {
    if (status && !b->lost.status) {
        b->lost = *error;
        b->lost.status = status;
        b->wanted = 0;
    }
    return status;
}

/* ---- pages ------------------------------------------------------------------------------------------------------- */

static uint8_t *page_at(const mx_cuda_backend *b, int32_t page) {
    return b->pages + page * b->page_bytes;
}

static int64_t page_bytes(const mx_backend *b) {
    return ((const mx_cuda_backend *)b)->page_bytes;
}

static mx_status clear_now(mx_cuda_backend *b, mx_error *error) {
    mx_status status = MX_OK;
    for (int i = 0; !status && i < b->clears; i++)
        status = mx_gpu_fill(page_at(b, b->cleared[i]), 0, (size_t)b->page_bytes, b->stream, error);
    b->clears = 0;
    return status;
}

/* A prompt's step takes a thousand new pages: they are cleared by one launch in front of it. */
static void page_clear(mx_backend *base, int32_t page) {
    mx_cuda_backend *b = mx_cuda_self(base);
    mx_error error;
    if (mx_cuda_enter(b, &error)) return;
    if (b->clears == MX_CUDA_CLEARS && mx_cuda_note(b, clear_now(b, &error), &error)) return;
    b->cleared[b->clears++] = page;
}

static void page_move(mx_cuda_backend *b, void *to, const void *from, bool wait) {
    mx_error error;
    if (mx_cuda_enter(b, &error)) return;
    mx_status status = clear_now(b, &error);
    if (!status) status = mx_gpu_copy(to, from, (size_t)b->page_bytes, b->stream, &error);
    if (!status && wait) status = mx_gpu_stream_wait(b->stream, &error);
    mx_cuda_note(b, status, &error);
}

static void page_copy(mx_backend *b, int32_t to, int32_t from) {
    page_move(mx_cuda_self(b), page_at(mx_cuda_self(b), to), page_at(mx_cuda_self(b), from), false);
}

static void page_read(mx_backend *b, int32_t page, void *out) {
    page_move(mx_cuda_self(b), out, page_at(mx_cuda_self(b), page), true);
}

static void page_write(mx_backend *b, int32_t page, const void *in) {
    page_move(mx_cuda_self(b), page_at(mx_cuda_self(b), page), in, true);
}

/* ---- the step ---------------------------------------------------------------------------------------------------- */

static mx_status step(mx_backend *base, const mx_batch *batch, mx_error *error) {
    mx_cuda_backend *b = mx_cuda_self(base);
    mx_error own;
    mx_cuda_plan plan;
    error = error ? error : &own;
    b->wanted = 0;
    mx_status status = mx_cuda_enter(b, error);
    if (!status) status = mx_cuda_input(b, batch, &plan, error);
    mx_gpu_overlap(b->overlap);
    if (!status) status = mx_cuda_note(b, mx_cuda_forward(b, &plan, error), error);
    mx_gpu_overlap(false);
    if (status) return status;
    for (int t = 0; t < batch->rows; t++) b->wanted += batch->row[t].wanted;
    return MX_OK;
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

int mx_cuda_bucket(int rows, int *of) {
    static const int bucket[MX_CUDA_BUCKETS] = {1, 2, 4, 8, 16, 24, 32, 48, MX_CUDA_GRAPH_ROWS};
    int i = 0;
    while (i < MX_CUDA_BUCKETS && bucket[i] < rows) i++;
    *of = i < MX_CUDA_BUCKETS ? bucket[i] : rows;
    return i < MX_CUDA_BUCKETS ? i : -1;
}

/* The arrays one behind the other, 256-byte aligned. base NULL: they are only counted. */
struct area {
    uint8_t *base;
    uint64_t bytes;
};

static void *take(struct area *a, uint64_t bytes) {
    const uint64_t at = (a->bytes + 255) / 256 * 256;
    a->bytes = at + bytes;
    return a->base ? a->base + at : NULL;
}

/* Terms of T rows; *term: numbers from one to the next. */
static uint16_t *take_terms(struct area *a, int terms, uint64_t rows, int64_t cols, int64_t *term) {
    *term = (int64_t)rows * mx_cuda_padded(cols);
    return take(a, (uint64_t)terms * (uint64_t)*term * sizeof(uint16_t));
}

static int most_terms(const mx_cuda_backend *b, int count, const mx_class *class) {
    int most = LEAST_TERMS;
    for (int i = 0; i < count; i++)
        if (b->terms[class[i]] > most) most = b->terms[class[i]];
    return most;
}

/* Lays the scratch out from `base` on and returns its bytes. */
static uint64_t lay_out(mx_cuda_backend *b, uint8_t *base) {
    static const mx_class normed[] = {MX_CLASS_QKV, MX_CLASS_ROUTER, MX_CLASS_GATE_UP, MX_CLASS_LM_HEAD},
                          attended[] = {MX_CLASS_O}, act[] = {MX_CLASS_DOWN};
    const mx_config *c = &b->config;
    mx_cuda_scratch *s = &b->s;
    struct area a = {.base = base};
    const uint64_t T = (uint64_t)b->rows, W = (uint64_t)b->wanted_rows, top_k = (uint64_t)c->top_k, S = T * top_k,
                   hidden = (uint64_t)c->hidden, heads = (uint64_t)c->heads * (uint64_t)c->head_dim,
                   half = (uint64_t)c->head_dim / 2, experts = (uint64_t)c->experts, vocab = (uint64_t)c->vocab;
    s->normed = take_terms(&a, most_terms(b, 4, normed), T, c->hidden, &s->normed_term);
    s->attended = take_terms(&a, most_terms(b, 1, attended), T, (int64_t)heads, &s->attended_term);
    s->act = take_terms(&a, most_terms(b, 1, act), S, c->intermediate, &s->act_term);
    s->tables = take(&a, (uint64_t)b->sequences * (uint64_t)c->layers * (uint64_t)b->tiles * sizeof *s->tables);
    b->zeroed = (int64_t)a.bytes;
#define TAKE(field, count) s->field = take(&a, (count) * sizeof *s->field)
    TAKE(inv_freq, half);
    TAKE(ascending, T);
    TAKE(x, T * hidden);
    TAKE(q, T * heads);
    TAKE(cos, T * half);
    TAKE(sin, T * half);
    TAKE(x_kept, W * hidden);
    TAKE(q_kept, W * heads);
    TAKE(router, T * experts);
    TAKE(expert, S);
    TAKE(weight, S);
    TAKE(slot_row, S);
    TAKE(slot_weight, S);
    TAKE(row_slot, S);
    TAKE(tile, (uint64_t)mx_cuda_most_tiles(b->rows, c->top_k, c->experts, 8));
    TAKE(tiles, 1);
    TAKE(expert_out, S * hidden);
    TAKE(parts, (uint64_t)b->part_pairs * (uint64_t)c->kv_heads *
                    (uint64_t)mx_cuda_attention_part(c->head_dim, c->heads / c->kv_heads));
    TAKE(logits, W * vocab);
    TAKE(input, (uint64_t)b->input_bytes + (uint64_t)b->most_changes * sizeof(mx_cuda_entry));
    TAKE(adjusted, (W < MX_CUDA_DRAWS ? W : MX_CUDA_DRAWS) * (uint64_t)mx_cuda_sample_scratch(c->vocab));
    TAKE(draw, W);
    TAKE(lists, (uint64_t)b->lists_bytes);
    TAKE(drawn, 2 * W);
    TAKE(token, 2 * W);
    TAKE(top, MX_CUDA_MOST_TOP);
    TAKE(top_drawn, 1);
#undef TAKE
    return a.bytes;
}

static int64_t spans_of(int64_t positions) {
    return (positions + MX_CUDA_SPAN - 1) / MX_CUDA_SPAN;
}

/* What the arrays' sizes follow from, of configuration and options alone. */
static mx_status measure(mx_cuda_backend *b, const mx_config *config, const mx_backend_options *o, mx_error *error) {
    static const int terms[MX_PRECISIONS] = {[MX_X_FP32] = 3, [MX_X_BF16X2] = 2, [MX_X_BF16] = 1, [MX_X_INT8] = 0};
    b->config = *config;
    b->options = *o;
    if (o->tier || o->kernels)
        return mx_fail(error, MX_INVALID_ARGUMENT, "GPU: tiers of kernels are the CPU's, \"%s\" was asked for",
                       o->tier ? o->tier : o->kernels->name);
    if (o->openblas)
        return mx_fail(error, MX_UNSUPPORTED, "OpenBLAS multiplies on the CPU: leave it out, or choose --device cpu");
    if (o->max_rows < 1 || o->max_wanted < 1)
        return mx_fail(error, MX_INVALID_ARGUMENT, "backend: %d rows, %d wanted: each must be at least 1", o->max_rows,
                       o->max_wanted);
    if (o->kv_format != MX_F16 && o->kv_format != MX_F32 && o->kv_format != MX_BF16)
        return mx_fail(error, MX_INVALID_ARGUMENT, "backend: keys and values are kept as F16, BF16 or F32");
    if (config->vocab > MX_CUDA_MOST_VOCAB)
        return mx_fail(error, MX_UNSUPPORTED, "GPU: a vocabulary of %d tokens, at most %d possible: --device cpu",
                       config->vocab, MX_CUDA_MOST_VOCAB);
    if (o->precision)
        b->precision = *o->precision;
    else if (mx_precisions_parse("mixed", &b->precision, error))
        return error ? error->status : MX_INVALID_ARGUMENT;
    for (int i = 0; i < MX_CLASSES; i++) b->terms[i] = terms[b->precision.of[i]];
    if (!b->terms[MX_CLASS_GATE_UP] || !b->terms[MX_CLASS_DOWN])
        return mx_fail(error, MX_UNSUPPORTED,
                       "GPU: activations cannot enter the experts as int8: choose --precision bf16, which is as fast");

    mx_cuda_bucket(o->max_wanted, &b->wanted_rows);
    b->rows = o->max_rows > b->wanted_rows ? o->max_rows : b->wanted_rows;
    b->page_bytes = mx_page_bytes(config, o->kv_format);
    b->sequences = b->wanted_rows;
    b->tiles = (config->max_positions + MX_TILE - 1) / MX_TILE;
    const int64_t entries = b->sequences * (int64_t)config->layers * b->tiles;
    if (entries > INT32_MAX)
        return mx_fail(error, MX_UNSUPPORTED,
                       "GPU: page tables of %d sequences x %d layers x %d positions: choose fewer sequences",
                       b->sequences, config->layers, config->max_positions);
    b->most_changes = entries < CHANGES ? (int)entries : CHANGES;
    b->input_bytes = mx_cuda_input_bytes(b);
    int64_t spans = 1;
    while (spans < spans_of(config->max_positions)) spans *= 2; /* as many as a graph may be made for */
    b->part_pairs = spans * b->wanted_rows < PART_PAIRS ? spans * b->wanted_rows : PART_PAIRS;
    if (b->part_pairs < spans) b->part_pairs = spans;
    b->lists_bytes = (int64_t)b->wanted_rows * ((config->vocab + 31) / 32) * 4 + LISTS;
    return MX_OK;
}

mx_status mx_cuda_backend_bytes(const mx_config *config, const mx_backend_options *options, uint64_t *bytes,
                                mx_error *error) {
    mx_cuda_backend *b = calloc(1, sizeof *b);
    if (!b) return mx_fail(error, MX_NO_MEMORY, "no memory for the GPU's backend");
    mx_status status = measure(b, config, options, error);
    *bytes = status ? 0 : lay_out(b, NULL);
    free(b);
    return status;
}

/* ---- creation ---------------------------------------------------------------------------------------------------- */

static void destroy(mx_backend *base) {
    mx_cuda_backend *b = mx_cuda_self(base);
    if (b->stream) {
        mx_gpu_use(b->weights->device, NULL);
        mx_gpu_stream_wait(b->stream, NULL);
    }
    for (int i = 0; i < MX_CUDA_BUCKETS; i++)
        for (int j = 0; j < MX_CUDA_SPAN_BUCKETS; j++) mx_gpu_graph_destroy(b->graph[i][j]);
    mx_cuda_sampling_destroy(b);
    for (int i = 0; i < MX_CUDA_SLOTS; i++) {
        mx_gpu_event_destroy(b->input_copied[i]);
        mx_gpu_free_host(b->input[i]);
    }
    mx_gpu_stream_destroy(b->stream);
    mx_gpu_free(b->memory);
    mx_gpu_free(b->pages);
    free(b->mirror);
    free(b->place);
    free(b->cleared);
    free(b);
}

/* What never changes, and the zeros that nobody writes. */
static mx_status fill(mx_cuda_backend *b, mx_error *error) {
    const size_t half = (size_t)b->config.head_dim / 2, rows = (size_t)b->rows;
    double *inv_freq = malloc(half * sizeof *inv_freq);
    int32_t *ascending = malloc(rows * sizeof *ascending);
    mx_status status = MX_OK;
    if (!inv_freq || !ascending) status = mx_fail(error, MX_NO_MEMORY, "no memory for the RoPE table");
    if (!status) {
        mx_config_rope(&b->config, inv_freq, &b->concentration);
        for (size_t i = 0; i < rows; i++) ascending[i] = (int32_t)i;
        status = mx_gpu_fill(b->memory, 0, (size_t)b->zeroed, b->stream, error);
    }
    if (!status) status = mx_gpu_copy(b->s.inv_freq, inv_freq, half * sizeof *inv_freq, b->stream, error);
    if (!status) status = mx_gpu_copy(b->s.ascending, ascending, rows * sizeof *ascending, b->stream, error);
    if (!status) status = mx_gpu_stream_wait(b->stream, error);
    free(inv_freq);
    free(ascending);
    return status;
}

static mx_status allocate(mx_cuda_backend *b, mx_error *error) {
    const uint64_t pages = (uint64_t)b->options.pages * (uint64_t)b->page_bytes, scratch = lay_out(b, NULL);
    const size_t input = (size_t)b->input_bytes + (size_t)b->most_changes * sizeof(mx_cuda_entry);
    b->mirror = calloc((size_t)b->sequences * (size_t)b->config.layers * (size_t)b->tiles, sizeof *b->mirror);
    b->place = calloc((size_t)b->sequences, sizeof *b->place);
    b->cleared = calloc(MX_CUDA_CLEARS, sizeof *b->cleared);
    if (!b->mirror || !b->place || !b->cleared) return mx_fail(error, MX_NO_MEMORY, "no memory for page tables");
    mx_status status = mx_gpu_stream_create(&b->stream, error);
    if (!status) status = mx_gpu_alloc((void **)&b->pages, (size_t)pages, "keys and values", error);
    if (!status) status = mx_gpu_alloc(&b->memory, (size_t)scratch, "activations", error);
    for (int i = 0; !status && i < MX_CUDA_SLOTS; i++) {
        status = mx_gpu_alloc_host((void **)&b->input[i], input, "a step's input", error);
        if (!status) status = mx_gpu_event_create(&b->input_copied[i], error);
    }
    if (status) return status;
    lay_out(b, b->memory);
    status = mx_cuda_sampling_create(b, error);
    return status ? status : fill(b, error);
}

static mx_status read_switch(const char *name, bool otherwise, bool *out, mx_error *error) {
    const char *text = getenv(name);
    if (text && strcmp(text, "0") != 0 && strcmp(text, "1") != 0)
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s=%s: expected 0 (off) or 1 (on)", name, text);
    *out = text ? *text == '1' : otherwise;
    return MX_OK;
}

/* Kernels that begin while others end save most of a launch each, but no GPU has run them so yet: on request. */
static mx_status read_environment(mx_cuda_backend *b, mx_error *error) {
    mx_status status = read_switch("MXRUN_CUDA_GRAPHS", true, &b->graphs, error);
    return status ? status : read_switch("MXRUN_CUDA_OVERLAP", false, &b->overlap, error);
}

static const mx_backend_ops cuda_ops = {
    .name = "cuda",
    .destroy = destroy,
    .page_bytes = page_bytes,
    .page_clear = page_clear,
    .page_copy = page_copy,
    .page_read = page_read,
    .page_write = page_write,
    .step = step,
    .sample = mx_cuda_op_sample,
    .sample_all = mx_cuda_op_sample_all,
    .top = mx_cuda_op_top,
    .logits = mx_cuda_op_logits,
    .draw = mx_cuda_op_draw,
    .drawn = mx_cuda_op_drawn,
};

mx_status mx_cuda_backend_create(mx_cuda_weights *w, const mx_backend_options *options, mx_backend **out,
                                 mx_error *error) {
    *out = NULL;
    mx_cuda_backend *b = calloc(1, sizeof *b);
    if (!b) return mx_fail(error, MX_NO_MEMORY, "no memory for the GPU's backend");
    b->base.ops = &cuda_ops;
    b->weights = w;
    mx_status status = measure(b, &w->config, options, error);
    if (!status && (options->pages < 1 || options->pages > INT32_MAX))
        status = mx_fail(error, MX_INVALID_ARGUMENT, "backend: %lld pages: expected 1 to %d", (long long)options->pages,
                         INT32_MAX);
    if (!status) status = read_environment(b, error);
    if (!status) status = mx_cuda_matmul_choose(error);
    if (!status) status = mx_gpu_use(w->device, error);
    if (!status) status = allocate(b, error);
    if (status)
        destroy(&b->base);
    else
        *out = &b->base;
    return status;
}

mx_precisions mx_cuda_backend_precision(const mx_backend *b) {
    return ((const mx_cuda_backend *)b)->precision;
}
