/* The CPU behind mx_backend: memory for KV pages and activations, checks of every batch. */
#include "model/cpu_backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "kernels/mx.h"
#include "kernels/openblas/openblas.h"
#include "model/batch.h"
#include "model/sampler.h"

enum { PART_ROWS = 32 }; /* rows of a full context whose parts have room; more are attended a KV head at a time */

/* Bytes of a packed column at most, in any precision. */
enum { PACKED_MOST = 4 };

static mx_cpu_backend *self(mx_backend *b) {
    return (mx_cpu_backend *)b;
}

static uint8_t *page_at(const mx_cpu_backend *b, int32_t page) {
    return (uint8_t *)b->pages.base + page * b->page_bytes;
}

static int64_t page_bytes(const mx_backend *b) {
    return ((const mx_cpu_backend *)b)->page_bytes;
}
static void page_clear(mx_backend *b, int32_t page) {
    memset(page_at(self(b), page), 0, (size_t)self(b)->page_bytes);
}
static void page_copy(mx_backend *b, int32_t to, int32_t from) {
    memcpy(page_at(self(b), to), page_at(self(b), from), (size_t)self(b)->page_bytes);
}
static mx_status page_read(mx_backend *b, int32_t page, void *out, mx_error *error) {
    (void)error;
    memcpy(out, page_at(self(b), page), (size_t)self(b)->page_bytes);
    return MX_OK;
}
static mx_status page_write(mx_backend *b, int32_t page, const void *in, mx_error *error) {
    (void)error;
    memcpy(page_at(self(b), page), in, (size_t)self(b)->page_bytes);
    return MX_OK;
}

int64_t mx_page_bytes(const mx_config *c, mx_format kv_format) {
    return (int64_t)c->kv_heads * 2 * c->head_dim * MX_TILE * (kv_format == MX_F32 ? 4 : 2);
}

/* ---- checks ---------------------------------------------------------------------------------------------- */

/* The pages of every layer that rows at positions first .. last look at or write. */
static mx_status check_pages(const mx_cpu_backend *b, const mx_sequence_view *sequence, int first, int last,
                             mx_error *error) {
    const mx_config *c = &b->weights->config;
    for (int layer = 0; layer < c->layers; layer++) {
        int oldest = c->sliding[layer] && first >= c->window ? first - c->window + 1 : 0;
        if (last / MX_TILE >= sequence->stride)
            return mx_fail(error, MX_INVALID_ARGUMENT, "batch: position %d lies beyond a page table of %lld pages",
                           last, (long long)sequence->stride);
        for (int tile = oldest / MX_TILE; tile <= last / MX_TILE; tile++) {
            int32_t page = sequence->table[layer * sequence->stride + tile];
            if (page < 0 || page >= b->options.pages)
                return mx_fail(error, MX_INVALID_ARGUMENT,
                               "batch: layer %d, positions from %d: page %d is none of the %lld", layer, tile * MX_TILE,
                               page, (long long)b->options.pages);
        }
    }
    return MX_OK;
}

static mx_status check_batch(const mx_cpu_backend *b, const mx_batch *batch, mx_error *error) {
    mx_status status = mx_rows_check(&b->weights->config, batch, b->options.max_rows, b->options.max_wanted, 0, error);
    const int layers = b->weights->config.layers;
    if (!status && (batch->first < 0 || batch->first > layers || batch->last < 0 || batch->last > layers ||
                    (batch->first && !batch->before)))
        return mx_fail(error, MX_INVALID_ARGUMENT, "batch: layers %d to %d of %d", batch->first, batch->last - 1,
                       layers);
    for (int t = 0, rows; !status && t < batch->rows; t += rows) {
        const mx_row *first = &batch->row[t];
        rows = mx_rows_run(batch, t);
        status = check_pages(b, &batch->sequence[first->sequence], first->position, first[rows - 1].position, error);
    }
    return status;
}

/* ---- operations ------------------------------------------------------------------------------------------ */

static mx_status step(mx_backend *base, const mx_batch *batch, mx_error *error) {
    mx_cpu_backend *b = self(base);
    b->wanted = 0;
    mx_status status = check_batch(b, batch, error);
    if (status) return status;
    mx_pool_enter(b->pool);
    mx_gpt_oss_step(b, batch);
    mx_pool_leave(b->pool);
    return MX_OK;
}

static const float *logits(mx_backend *base, int wanted) {
    mx_cpu_backend *b = self(base);
    return wanted >= 0 && wanted < b->wanted ? b->s.logits + (int64_t)wanted * b->weights->config.vocab : NULL;
}

static mx_status sample(mx_backend *base, int wanted, const mx_sample_spec *spec, mx_sampled *out, mx_error *error) {
    mx_cpu_backend *b = self(base);
    const float *row = logits(base, wanted);
    if (!row)
        return mx_fail(error, MX_INVALID_STATE, "sample: row %d asked for, the last step kept the logits of %d", wanted,
                       b->wanted);
    return mx_sample_logits(b->kernels, b->s.probabilities, row, b->weights->config.vocab, spec, out, error);
}

/* Floats of `probabilities` that one thread has: whole cache lines. */
static int64_t sampler_floats(const mx_cpu_backend *b) {
    return ((int64_t)b->weights->config.vocab + 15) / 16 * 16;
}

struct draws {
    mx_cpu_backend *b;
    mx_draw *draw;
};

static void sample_range(void *arg, int64_t begin, int64_t end, int thread) {
    const struct draws *d = arg;
    mx_cpu_backend *b = d->b;
    for (int64_t i = begin; i < end; i++) {
        mx_draw *draw = &d->draw[i];
        const float *row = logits(&b->base, draw->wanted);
        draw->status = row ? mx_sample_logits(b->kernels, b->s.probabilities + thread * sampler_floats(b), row,
                                              b->weights->config.vocab, &draw->spec, &draw->sampled, NULL)
                           : MX_INVALID_STATE;
    }
}

static void sample_all(mx_backend *base, mx_draw *draw, int count) {
    mx_cpu_backend *b = self(base);
    if (count > 1) mx_pool_enter(b->pool); /* one is drawn by the caller alone */
    mx_parallel_for(b->pool, count, 1, sample_range, &(struct draws){b, draw});
    if (count > 1) mx_pool_leave(b->pool);
}

static mx_status top(mx_backend *base, int wanted, int k, mx_alternative *out, int32_t token, float *logprob,
                     mx_error *error) {
    mx_cpu_backend *b = self(base);
    const float *row = logits(base, wanted);
    if (!row)
        return mx_fail(error, MX_INVALID_STATE, "logprobs: row %d asked for, the last step kept the logits of %d",
                       wanted, b->wanted);
    return mx_top_logits(b->kernels, b->s.probabilities, row, b->weights->config.vocab, k, out, token, logprob, error);
}

static void destroy(mx_backend *base) {
    mx_cpu_backend *b = self(base);
    mx_arena_destroy(&b->pages);
    mx_arena_destroy(&b->memory);
    free(b->inv_freq);
    free(b->ones);
    free(b);
}

static const mx_backend_ops cpu_ops = {
    .name = "cpu",
    .destroy = destroy,
    .page_bytes = page_bytes,
    .page_clear = page_clear,
    .page_copy = page_copy,
    .page_read = page_read,
    .page_write = page_write,
    .step = step,
    .sample = sample,
    .sample_all = sample_all,
    .top = top,
    .logits = logits,
};

/* ---- creation -------------------------------------------------------------------------------------------- */

/* Cuts every scratch array from `arena`; false when it does not fit. */
static bool lay_out(mx_cpu_backend *b, mx_arena *arena) {
    const mx_config *c = &b->weights->config;
    mx_scratch *s = &b->s;
    size_t T = (size_t)b->options.max_rows, S = T * (size_t)c->top_k, W = (size_t)b->options.max_wanted;
    size_t hidden = (size_t)c->hidden, heads = (size_t)c->heads * (size_t)c->head_dim,
           kv = (size_t)c->kv_heads * (size_t)c->head_dim;
    size_t half = (size_t)c->head_dim / 2, jobs = (size_t)(c->experts > 3 ? c->experts : 3),
           threads = (size_t)b->threads;
    bool ok = true;
#define TAKE(field, count) ok = ((s->field = mx_arena_take(arena, (count) * sizeof *s->field)) != NULL) && ok
    TAKE(x, T * hidden);
    for (int i = 0; i < MX_MOST_PACKINGS; i++) TAKE(packed[i], T * (hidden > heads ? hidden : heads) * PACKED_MOST);
    TAKE(q, T * heads);
    TAKE(k, T * kv);
    TAKE(v, T * kv);
    TAKE(attended, T * heads);
    TAKE(cos, T * half);
    TAKE(sin, T * half);
    TAKE(router, T * (size_t)c->experts);
    TAKE(expert, S);
    TAKE(weight, S);
    TAKE(first, (size_t)c->experts + 1);
    TAKE(slot_row, S);
    TAKE(slot_weight, S);
    TAKE(row_slot, S);
    TAKE(row_slots, T);
    TAKE(act, S * (size_t)c->intermediate);
    TAKE(act_packed, S * (size_t)c->intermediate * PACKED_MOST);
    TAKE(expert_out, S * hidden);
    TAKE(run, T);
    TAKE(cut, T);
    TAKE(parts, (size_t)(s->parts_held * mx_attention_part(c->head_dim, c->heads / c->kv_heads)));
    TAKE(kept, W);
    TAKE(wanted, W * hidden);
    TAKE(logits, W * (size_t)c->vocab);
    TAKE(probabilities, threads * (size_t)sampler_floats(b));
    TAKE(job, jobs);
    TAKE(first_tile, jobs * (size_t)b->nodes + 1);
    TAKE(first_of_node, (size_t)b->nodes + 1);
    TAKE(thread, threads * (size_t)s->thread_floats);
#undef TAKE
    return ok;
}

/* Address space for the arrays; pages that are never touched cost nothing, so a generous bound is enough. */
static size_t scratch_bytes(const mx_cpu_backend *b) {
    const mx_config *c = &b->weights->config;
    size_t T = (size_t)b->options.max_rows, W = (size_t)b->options.max_wanted;
    size_t heads = (size_t)c->heads * (size_t)c->head_dim,
           widest = (size_t)c->hidden > heads ? (size_t)c->hidden : heads;
    size_t row = (1 + MX_MOST_PACKINGS) * widest + 2 * heads + 2 * (size_t)c->kv_heads * (size_t)c->head_dim +
                 (size_t)c->head_dim + (size_t)c->experts + 16 +
                 (size_t)c->top_k * (6 + 2 * (size_t)c->intermediate + (size_t)c->hidden);
    size_t floats = T * row + W * ((size_t)c->hidden + (size_t)c->vocab) + 3 * (size_t)c->experts +
                    (size_t)b->threads * (size_t)(b->s.thread_floats + sampler_floats(b));
    floats += (size_t)(b->s.parts_held * mx_attention_part(c->head_dim, c->heads / c->kv_heads));
    return floats * sizeof(float) + ((size_t)c->experts + 4) * (sizeof(mx_job) + (size_t)b->nodes * sizeof(int64_t)) +
           T * (sizeof(mx_run) + sizeof(int32_t)) + W * sizeof(mx_row) + 64 * 64;
}

/* What is asked for, but for INT8 with weights that have no such products: they take BF16. */
static mx_precision precision_for(const mx_cpu_backend *b, mx_class class, mx_format format) {
    const mx_precision asked = b->precision.of[class];
    return asked == MX_X_INT8 && !b->kernels->product[format][asked] ? MX_X_BF16 : asked;
}

const mx_product *mx_cpu_product(const mx_cpu_backend *b, mx_class class, mx_format format, bool bf16_safe) {
    if (b->openblas && !mx_is_mxfp4(format) && !mx_is_block_format(format)) return b->openblas;
    const mx_product *p = b->kernels->product[format][precision_for(b, class, format)];
    return p && p->flushes && !bf16_safe ? b->kernels->product[format][MX_X_FP32] : p;
}

/* What check_products finds. */
typedef struct products {
    int scales, inexact; /* matrices that are multiplied in fp32 though asked for otherwise: for their scales' sake, or
                            because their weights are not exact in BF16 */
    int no_int8;         /* matrices that are multiplied in bf16, having no products with INT8 */
    bool slow_int8;
    char slow[MX_WEIGHT_NAME]; /* a format whose products only scalar code does */
} products;

/* `layer`: -1 where the matrix is in none. */
static mx_status check_product(const mx_cpu_backend *b, int layer, mx_class class, const mx_matrix *w, bool bf16_safe,
                               products *found, mx_error *error) {
    const mx_format f = w->format;
    const mx_product *p = mx_cpu_product(b, class, f, bf16_safe);
    const mx_kernels *scalar;
    char name[MX_PRECISION_NAME], format[MX_WEIGHT_NAME], where[24] = "lm_head";
    if (layer >= 0) snprintf(where, sizeof where, "layer %d", layer);
    mx_weight_name(format, w);
    mx_precisions_name(name, &b->precision);
    mx_status status = mx_kernels_get("scalar", &scalar, error);
    if (status) return status;
    if (!p)
        return mx_fail(error, MX_UNSUPPORTED, "%s: the %s kernels have no product for %s weights at precision %s%s",
                       where, b->kernels->name, f == MX_MXFP4_GGML ? "GGUF's MXFP4" : format, name,
                       b->kernels->product[f][MX_X_FP32] ? ": try --precision fp32" : "");
    const mx_precision precision = precision_for(b, class, f);
    found->no_int8 += precision != b->precision.of[class];
    if (!mx_is_mxfp4(f) && !mx_is_block_format(f)) return MX_OK;
    const bool exact = p != b->kernels->product[f][precision];
    found->scales += exact && mx_is_mxfp4(f);
    found->inexact += exact && !mx_is_mxfp4(f);
    if (b->kernels == scalar) return MX_OK;
    found->slow_int8 |= mx_is_mxfp4(f) && p == scalar->product[f][MX_X_INT8];
    if (mx_is_block_format(f) && p->matmul == scalar->product[f][MX_X_FP32]->matmul)
        snprintf(found->slow, sizeof found->slow, "%s", format);
    return MX_OK;
}

static void tell_of_products(const mx_cpu_backend *b, const products *found) {
    char name[MX_PRECISION_NAME];
    mx_precisions_name(name, &b->precision);
    if (found->scales)
        mx_log(MX_LOG_WARNING,
               "%d matri%s scales outside 2^-125..2^125, which %s would not multiply exactly: %s multiplied in fp32, "
               "which is slower",
               found->scales, found->scales == 1 ? "x has" : "ces have", name,
               found->scales == 1 ? "it is" : "they are");
    if (found->inexact)
        mx_log(MX_LOG_INFO,
               "%d matri%s weights that BF16 does not hold exactly (integers times their scales, or too small or "
               "large ones): %s multiplied in fp32, not in %s",
               found->inexact, found->inexact == 1 ? "x has" : "ces have", found->inexact == 1 ? "it is" : "they are",
               name);
    if (found->no_int8)
        mx_log(MX_LOG_INFO, "%d matri%s not MXFP4: only that is multiplied in INT8, %s in bf16 instead", found->no_int8,
               found->no_int8 == 1 ? "x of experts is" : "ces of experts are",
               found->no_int8 == 1 ? "it is" : "they are");
    if (found->slow_int8)
        mx_log(MX_LOG_WARNING,
               "the %s kernels have no INT8 products of their own: scalar code does them, slowly; try another "
               "--precision",
               b->kernels->name);
    if (*found->slow)
        mx_log(MX_LOG_WARNING,
               "the %s kernels have no products of %s weights of their own: scalar code does them, slowly",
               b->kernels->name, found->slow);
}

/* Every product of the model can be done; says so where some are done in another precision than asked for. */
static mx_status check_products(const mx_cpu_backend *b, mx_error *error) {
    const mx_weights *w = b->weights;
    products found = {0};
    for (int i = 0; i < w->config.layers; i++) {
        const mx_layer *l = &w->layer[i];
        const struct {
            mx_class class;
            const mx_matrix *matrix;
            bool bf16_safe;
        } all[] = {
            {MX_CLASS_QKV, &l->q, l->q.bf16_safe},
            {MX_CLASS_QKV, &l->k, l->k.bf16_safe},
            {MX_CLASS_QKV, &l->v, l->v.bf16_safe},
            {MX_CLASS_O, &l->o, l->o.bf16_safe},
            {MX_CLASS_ROUTER, &l->router, l->router.bf16_safe},
            {MX_CLASS_GATE_UP, &l->gate_up.matrix, l->gate_up.bf16_safe},
            {MX_CLASS_GATE_UP, &l->up.matrix, l->up.bf16_safe},
            {MX_CLASS_DOWN, &l->down.matrix, l->down.bf16_safe},
            {MX_CLASS_LM_HEAD, &w->lm_head, w->lm_head.bf16_safe},
        };
        for (size_t j = 0; j < sizeof all / sizeof *all; j++) {
            if ((all[j].class == MX_CLASS_LM_HEAD && i) || !all[j].matrix->rows) continue; /* up: where it is apart */
            mx_status status = check_product(b, all[j].class == MX_CLASS_LM_HEAD ? -1 : i, all[j].class, all[j].matrix,
                                             all[j].bf16_safe, &found, error);
            if (status) return status;
        }
    }
    tell_of_products(b, &found);
    return MX_OK;
}

static mx_status use_openblas(mx_cpu_backend *b, int64_t *scratch, mx_error *error) {
    const mx_config *c = &b->weights->config;
    mx_status status = mx_openblas_open(mx_pool_threads(b->pool), &b->openblas, scratch, error);
    if (status) return status;
    if (c->hidden > MX_OPENBLAS_COLS || c->heads * c->head_dim > MX_OPENBLAS_COLS)
        return mx_fail(error, MX_UNSUPPORTED, "OpenBLAS: matrices of %d columns, at most %d possible",
                       c->hidden > c->heads * c->head_dim ? c->hidden : c->heads * c->head_dim, MX_OPENBLAS_COLS);
    for (int i = 0; i < MX_CLASSES; i++)
        if (i != MX_CLASS_GATE_UP && i != MX_CLASS_DOWN) b->precision.of[i] = MX_X_FP32;
    mx_log(MX_LOG_WARNING,
           "dense products by OpenBLAS, in fp32: a token's numbers may depend on what else is computed with it");
    return MX_OK;
}

/* What the scratch arrays' sizes follow from. `openblas`: floats that a thread of it wants. */
static void measure(mx_cpu_backend *b, int64_t openblas) {
    const mx_config *c = &b->weights->config;
    int64_t attention = b->kernels->attention_scratch(c->head_dim, c->heads / c->kv_heads);
    attention += MX_RUN_ROWS * (int64_t)(c->heads / c->kv_heads) * c->head_dim; /* and the queries of a task */
    int64_t segments = (c->max_positions + MX_SEGMENT - 1) / MX_SEGMENT;
    b->s.parts_held = (b->options.max_rows < PART_ROWS ? b->options.max_rows : PART_ROWS) * segments * c->kv_heads;
    b->s.thread_floats = (attention > b->kernels->matmul_scratch ? attention : b->kernels->matmul_scratch) + 15;
    if (b->s.thread_floats < openblas + 15) b->s.thread_floats = openblas + 15;
    if (b->s.thread_floats < c->hidden + 15) b->s.thread_floats = c->hidden + 15; /* a row between norm and pack */
    b->s.thread_floats -= b->s.thread_floats % 16;                                /* 64 bytes */
}

static mx_status create(mx_cpu_backend *b, mx_error *error) {
    int64_t openblas = 0;
    const mx_config *c = &b->weights->config;
    const mx_backend_options *o = &b->options;
    b->kernels = o->kernels;
    mx_status status = o->kernels ? MX_OK : mx_kernels_get(o->tier, &b->kernels, error);
    if (status) return status;
    b->precision = o->precision ? *o->precision : mx_precisions_default(b->kernels);
    if (o->openblas && (status = use_openblas(b, &openblas, error))) return status;
    if ((status = check_products(b, error))) return status;
    if (o->max_rows < 1 || o->max_wanted < 1 || o->pages < 1 || o->pages > INT32_MAX)
        return mx_fail(error, MX_INVALID_ARGUMENT, "backend: %d rows, %d wanted, %lld pages: each must be at least 1",
                       o->max_rows, o->max_wanted, (long long)o->pages);
    if (o->kv_format != MX_F16 && o->kv_format != MX_F32 && o->kv_format != MX_BF16)
        return mx_fail(error, MX_INVALID_ARGUMENT, "backend: keys and values are kept as F16, BF16 or F32");
    b->page_bytes = mx_page_bytes(c, o->kv_format);
    b->head_bytes = b->page_bytes / c->kv_heads;
    measure(b, openblas);
    b->inv_freq = malloc((size_t)c->head_dim / 2 * sizeof *b->inv_freq);
    if (!b->inv_freq) return mx_fail(error, MX_NO_MEMORY, "no memory for the RoPE table");
    mx_config_rope(c, b->inv_freq, &b->concentration);
    if (o->observer && o->observer->plain) {
        b->ones = malloc((size_t)c->hidden * sizeof *b->ones);
        if (!b->ones) return mx_fail(error, MX_NO_MEMORY, "no memory for %d numbers", c->hidden);
        for (int i = 0; i < c->hidden; i++) b->ones[i] = 1;
    }
    status = mx_arena_create((size_t)o->pages * (size_t)b->page_bytes, &b->pages, error);
    /* Every thread reads them all. */
    if (!status && mx_pool_nodes(b->pool) > 1 && !mx_numa_interleave_area(b->pages.base, b->pages.size))
        mx_log(MX_LOG_WARNING, "%d memory nodes: the KV cache cannot be taken from all in turn, the system refuses",
               mx_pool_nodes(b->pool));
    if (!status) status = mx_arena_create(scratch_bytes(b), &b->memory, error);
    if (!status && !lay_out(b, &b->memory))
        status = mx_fail(error, MX_NO_MEMORY, "backend: the activations do not fit their %zu bytes", b->memory.size);
    return status;
}

mx_status mx_cpu_backend_create(const mx_weights *weights, mx_pool *pool, const mx_backend_options *options,
                                mx_backend **out, mx_error *error) {
    *out = NULL;
    mx_cpu_backend *b = calloc(1, sizeof *b);
    if (!b) return mx_fail(error, MX_NO_MEMORY, "no memory for the CPU backend");
    b->base.ops = &cpu_ops;
    b->weights = weights;
    b->pool = pool;
    b->threads = mx_pool_threads(pool);
    b->nodes = mx_pool_nodes(pool);
    b->options = *options;
    mx_status status = create(b, error);
    if (status)
        destroy(&b->base);
    else
        *out = &b->base;
    return status;
}

mx_status mx_cpu_backend_memory(const mx_weights *weights, mx_pool *pool, const mx_backend_options *options,
                                uint64_t *out, mx_error *error) {
    mx_cpu_backend b = {
        .weights = weights, .threads = mx_pool_threads(pool), .nodes = mx_pool_nodes(pool), .options = *options};
    mx_status status = mx_kernels_get(options->tier, &b.kernels, error);
    if (status) return status;
    measure(&b, 0);
    *out = scratch_bytes(&b);
    return MX_OK;
}

/* ---- what of it becomes resident --------------------------------------------------------------------------------- */

/* Huge pages of the arena, a byte each. */
struct touched {
    const char *base;
    size_t blocks;
    unsigned char *block;
};

static void touch(struct touched *t, const void *array, size_t bytes) {
    if (!bytes) return;
    const size_t at = (size_t)((const char *)array - t->base);
    for (size_t i = at / MX_HUGE_PAGE; i <= (at + bytes - 1) / MX_HUGE_PAGE && i < t->blocks; i++) t->block[i] = 1;
}

/* Bytes of a packed row of the widest of `count` classes; *forms: in how many forms rows of these classes are packed,
 * and kept beside each other. */
static size_t packed_row(const mx_cpu_backend *b, const mx_class *class, int count, int64_t cols, int *forms) {
    const mx_product *seen[MX_CLASSES];
    size_t most = 0;
    *forms = 0;
    for (int i = 0; i < count; i++) {
        const bool experts = class[i] == MX_CLASS_GATE_UP || class[i] == MX_CLASS_DOWN;
        const mx_product *p = b->kernels->product[experts ? MX_MXFP4 : MX_BF16][b->precision.of[class[i]]];
        if (!p) p = b->kernels->product[experts ? MX_MXFP4 : MX_BF16][MX_X_FP32];
        int k = 0;
        while (k < *forms && seen[k]->pack != p->pack) k++;
        if (k == *forms) seen[(*forms)++] = p;
        if ((size_t)p->packed_bytes(cols) > most) most = (size_t)p->packed_bytes(cols);
    }
    return most;
}

/* What a step writes of each array of lay_out. Drawing uses a row of probabilities for each thread at work. */
static void touch_all(const mx_cpu_backend *b, struct touched *t, size_t rows, size_t wanted) {
    static const mx_class input[] = {MX_CLASS_QKV, MX_CLASS_O, MX_CLASS_ROUTER, MX_CLASS_GATE_UP, MX_CLASS_LM_HEAD},
                          down[] = {MX_CLASS_DOWN};
    const mx_config *c = &b->weights->config;
    const mx_scratch *s = &b->s;
    const size_t hidden = (size_t)c->hidden, heads = (size_t)c->heads * (size_t)c->head_dim,
                 kv = (size_t)c->kv_heads * (size_t)c->head_dim, half = (size_t)c->head_dim / 2,
                 slots = rows * (size_t)c->top_k, drawing = wanted < (size_t)b->threads ? wanted : (size_t)b->threads;
    int forms;
    const size_t in = packed_row(b, input, 5, (int64_t)(hidden > heads ? hidden : heads), &forms);
    touch(t, s->x, 4 * rows * hidden);
    for (int i = 0; i < forms && i < MX_MOST_PACKINGS; i++) touch(t, s->packed[i], rows * in);
    touch(t, s->q, 4 * rows * heads);
    touch(t, s->k, 4 * rows * kv);
    touch(t, s->v, 4 * rows * kv);
    touch(t, s->attended, 4 * rows * heads);
    touch(t, s->cos, 4 * rows * half);
    touch(t, s->sin, 4 * rows * half);
    touch(t, s->router, 4 * rows * (size_t)c->experts);
    touch(t, s->act, 4 * slots * (size_t)c->intermediate);
    touch(t, s->act_packed, slots * packed_row(b, down, 1, c->intermediate, &forms));
    touch(t, s->expert_out, 4 * slots * hidden);
    touch(t, s->run, rows * sizeof *s->run);
    touch(t, s->wanted, 4 * wanted * hidden);
    touch(t, s->logits, 4 * wanted * (size_t)c->vocab);
    touch(t, s->probabilities, 4 * drawing * (size_t)sampler_floats(b));
    touch(t, s->thread, 4 * (size_t)b->threads * (size_t)s->thread_floats);
}

mx_status mx_cpu_backend_resident(const mx_config *config, int threads, const mx_backend_options *options, int rows,
                                  int wanted, uint64_t *out, mx_error *error) {
    const mx_weights shape = {.config = *config};
    mx_cpu_backend b = {.weights = &shape, .threads = threads, .nodes = 1, .options = *options};
    mx_status status = mx_kernels_get(options->tier, &b.kernels, error);
    if (status) return status;
    b.precision = options->precision ? *options->precision : mx_precisions_default(b.kernels);
    measure(&b, 0);
    const size_t size = (scratch_bytes(&b) + MX_HUGE_PAGE - 1) / MX_HUGE_PAGE * MX_HUGE_PAGE;
    mx_arena arena = {.base = NULL, .size = size};
    struct touched t = {.blocks = size / MX_HUGE_PAGE};
    t.block = calloc(t.blocks, 1);
    /* Address space alone, for the places of the arrays: nothing is written there. */
    if (t.block) status = mx_arena_create(size, &arena, error);
    if (!t.block || (!status && !lay_out(&b, &arena)))
        status = mx_fail(error, MX_NO_MEMORY, "no memory to lay the activations out");
    *out = 0;
    if (!status) {
        t.base = arena.base;
        touch_all(&b, &t, (size_t)rows, (size_t)wanted);
        for (size_t i = 0; i < t.blocks; i++) *out += t.block[i] ? MX_HUGE_PAGE : 0;
    }
    mx_arena_destroy(&arena);
    free(t.block);
    return status;
}

mx_precisions mx_cpu_backend_precision(const mx_backend *b) {
    return ((const mx_cpu_backend *)b)->precision;
}
