#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "model/checkpoint_private.h"
#include "model/load.h"
#include "model/quantized.h"
#include "model/scales.h"
#include "model/show.h"

/* The checkpoint's tensors by their role. Matrices stay views into the mapped files; the small vectors (norms, biases
 * of attention and router, sinks) are widened to fp32 into one block. */

enum { NAME_ROOM = 160, FLOATS_PER_LINE = 16 };

/* Whose a quantised tensor is, to be told what its bytes say. */
typedef struct block_owner {
    mx_matrix *matrix;
    mx_experts *experts; /* NULL: `matrix` is none of experts */
} block_owner;

typedef struct loader {
    mx_weights *w;
    const char *folder;
    bool *used;            /* by tensor of the checkpoint */
    float *room;           /* the rest of the owned block */
    mx_scale_view *scales; /* of every expert tensor, to be searched for what is no number */
    int scale_count;
    mx_block_tensor *blocks; /* [block_count], and whose they are */
    block_owner *owner;
    int block_count;
    mx_error *error;
} loader;

static mx_status wrong(const loader *l, const mx_tensor *t, mx_status status, const char *expected) {
    char shape[120];
    return mx_fail(l->error, status, "%s: %s: is %s %s, expected %s", t->file, t->name, t->dtype_name,
                   mx_show_shape(shape, sizeof shape, t->shape, t->dims), expected);
}

/* The reason why a gpt-oss folder may lack the usual expert tensors, or NULL. */
static const char *other_layout(const mx_checkpoint *ck, const char *prefix) {
    static const struct {
        const char *name, *text;
    } layouts[] = {
        {"gate_up_projs.0.weight", "its experts lie in one tensor each"},
        {"0.gate_up_proj.weight", "its experts lie in one tensor each"},
    };
    char name[NAME_ROOM];
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        snprintf(name, sizeof name, "%smlp.experts.%s", prefix, layouts[i].name);
        if (mx_checkpoint_find(ck, name)) return layouts[i].text;
    }
    return NULL;
}

static void mark(loader *l, const mx_tensor *t) {
    if (t) l->used[t - mx_checkpoint_at(l->w->checkpoint, 0)] = true;
}

/* The tensor `name`, marked as used. */
static mx_status take(loader *l, const char *name, const mx_tensor **out) {
    mx_checkpoint *ck = l->w->checkpoint;
    *out = mx_checkpoint_find(ck, name);
    if (!*out)
        return mx_fail(l->error, MX_INVALID_FILE, "%s: tensor %s is missing: is the download complete?%s", l->folder,
                       name,
                       mx_checkpoint_layout(ck) == MX_LAYOUT_HF || mx_checkpoint_layout(ck) == MX_LAYOUT_TENSORS
                           ? ""
                           : " (docs/layouts.md has the names that it has in this layout)");
    mark(l, *out);
    return MX_OK;
}

static bool has_shape(const mx_tensor *t, int dims, const int64_t *shape) {
    return t->dims == dims && !memcmp(t->shape, shape, (size_t)dims * sizeof *shape);
}

/* A small vector [n] in fp32; it must be finite. */
static mx_status vector(loader *l, const char *prefix, const char *name, int64_t n, const float **out) {
    char full[NAME_ROOM], expected[80];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    const mx_tensor *t;
    mx_status status = take(l, full, &t);
    if (status) return status;
    bool known = t->dtype == MX_DTYPE_BF16 || t->dtype == MX_DTYPE_F16 || t->dtype == MX_DTYPE_F32;
    if (!known || !has_shape(t, 1, &n)) {
        snprintf(expected, sizeof expected, "BF16, F16 or F32 [%lld]", (long long)n);
        return wrong(l, t, MX_INVALID_FILE, expected);
    }
    float *to = l->room;
    for (int64_t i = 0; i < n; i++) {
        if (t->dtype == MX_DTYPE_F32)
            memcpy(&to[i], t->data + 4 * i, 4);
        else
            to[i] = t->dtype == MX_DTYPE_BF16 ? mx_bf16_to_f32(mx_load_u16(t->data + 2 * i))
                                              : mx_f16_to_f32(mx_load_u16(t->data + 2 * i));
        if (!isfinite(to[i]))
            return mx_fail(l->error, MX_INVALID_FILE, "%s: %s: element %lld is %s, expected a finite number", t->file,
                           t->name, (long long)i, isnan(to[i]) ? "NaN" : "infinite");
    }
    l->room += (n + FLOATS_PER_LINE - 1) / FLOATS_PER_LINE * FLOATS_PER_LINE;
    *out = to;
    return MX_OK;
}

/* The kernels' format of a tensor of weights; false: they have none. */
static bool format_of(const mx_tensor *t, mx_format *format) {
    switch (t->dtype) {
    case MX_DTYPE_BF16:
        *format = MX_BF16;
        return true;
    case MX_DTYPE_F16:
        *format = MX_F16;
        return true;
    case MX_DTYPE_F32:
        *format = MX_F32;
        return true;
    case MX_DTYPE_Q8_0:
        *format = MX_Q8_0;
        return true;
    case MX_DTYPE_MXFP4:
        *format = MX_MXFP4_GGML;
        return true;
    default:
        return false;
    }
}

/* Q8_0's scales are searched, too. */
static void note_scales(loader *l, const mx_tensor *t, int64_t experts, int64_t rows, int64_t cols) {
    if (t->dtype == MX_DTYPE_Q8_0)
        l->scales[l->scale_count++] = (mx_scale_view){.tensor = t,
                                                      .scale = t->data,
                                                      .scale_step = 34,
                                                      .scale_stride = mx_tensor_slice_bytes(t),
                                                      .experts = experts,
                                                      .rows = rows,
                                                      .per_row = cols / 32};
}

/* The weight of a module whose tensors are quantised; `experts` 0: of one matrix. */
static mx_status quantized(loader *l, const char *module, int64_t experts, int64_t rows, int64_t cols,
                           block_owner owner) {
    mx_block_tensor *b = &l->blocks[l->block_count];
    mx_status status = mx_module_read(l->w->checkpoint, l->folder, module, experts, rows, cols, b, l->error);
    if (status) return status;
    const mx_tensor *const parts[] = {b->data, b->scale, b->zero, b->post, b->shape};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) mark(l, parts[i]);
    *owner.matrix = b->matrix;
    l->owner[l->block_count++] = owner;
    return MX_OK;
}

/* A dense matrix [rows, cols], in place. */
static mx_status matrix(loader *l, const char *prefix, const char *name, int64_t rows, int64_t cols, mx_matrix *out) {
    char full[NAME_ROOM], expected[80];
    snprintf(full, sizeof full, "%s%.*s", prefix, (int)(strlen(name) - strlen(".weight")), name);
    if (mx_module_quantized(l->w->checkpoint, full)) return quantized(l, full, 0, rows, cols, (block_owner){out, NULL});
    snprintf(full, sizeof full, "%s%s", prefix, name);
    const mx_tensor *t;
    mx_status status = take(l, full, &t);
    if (status) return status;
    snprintf(expected, sizeof expected, "BF16, F16, F32 or Q8_0 [%lld, %lld]", (long long)rows, (long long)cols);
    *out = (mx_matrix){.rows = rows, .cols = cols, .data = t->data, .bf16_safe = true};
    if (!has_shape(t, 2, (int64_t[]){rows, cols}) || !format_of(t, &out->format))
        return wrong(l, t, MX_INVALID_FILE, expected);
    out->row_stride = mx_columns_bytes(out->format, cols);
    note_scales(l, t, 1, rows, cols);
    return MX_OK;
}

/* MXFP4: blocks and scales, in place. */
static mx_status mxfp4_experts(loader *l, const char *prefix, const char *name, int64_t rows, int64_t cols,
                               mx_experts *out) {
    const int64_t count = l->w->config.experts, blocks = cols / 32;
    const mx_tensor *data, *scales;
    char full[NAME_ROOM], expected[120];

    snprintf(full, sizeof full, "%smlp.experts.%s_blocks", prefix, name);
    mx_status status = take(l, full, &data);
    if (status) return status;
    if (data->dtype != MX_DTYPE_U8 || !has_shape(data, 4, (int64_t[]){count, rows, blocks, 16})) {
        snprintf(expected, sizeof expected, "U8 [%lld, %lld, %lld, 16]", (long long)count, (long long)rows,
                 (long long)blocks);
        return wrong(l, data, MX_INVALID_FILE, expected);
    }

    snprintf(full, sizeof full, "%smlp.experts.%s_scales", prefix, name);
    if ((status = take(l, full, &scales))) return status;
    if ((scales->dtype != MX_DTYPE_U8 && scales->dtype != MX_DTYPE_F8_E8M0) ||
        !has_shape(scales, 3, (int64_t[]){count, rows, blocks})) {
        snprintf(expected, sizeof expected, "U8 or F8_E8M0 [%lld, %lld, %lld]", (long long)count, (long long)rows,
                 (long long)blocks);
        return wrong(l, scales, MX_INVALID_FILE, expected);
    }
    l->scales[l->scale_count++] = (mx_scale_view){.tensor = scales,
                                                  .scale = scales->data,
                                                  .block = data->data,
                                                  .scale_step = 1,
                                                  .block_step = 16,
                                                  .scale_stride = scales->slice_stride,
                                                  .block_stride = data->slice_stride,
                                                  .experts = count,
                                                  .rows = rows,
                                                  .per_row = blocks,
                                                  .bf16_safe = &out->bf16_safe};

    out->matrix = (mx_matrix){.format = MX_MXFP4,
                              .rows = rows,
                              .cols = cols,
                              .data = data->data,
                              .row_stride = blocks * 16,
                              .scales = scales->data,
                              .scale_stride = blocks};
    out->data_stride = (int64_t)data->slice_stride;
    out->scale_stride = (int64_t)scales->slice_stride;
    return MX_OK;
}

/* Another format, or MXFP4 as GGUF has it: [experts, out, in]. */
static mx_status dense_experts(loader *l, const char *prefix, const char *name, int64_t rows, int64_t cols,
                               mx_experts *out) {
    const int64_t count = l->w->config.experts;
    const mx_tensor *t;
    char full[NAME_ROOM], expected[120];
    snprintf(full, sizeof full, "%smlp.experts.%s.weight", prefix, name);
    mx_status status = take(l, full, &t);
    if (status) return status;
    out->matrix = (mx_matrix){.rows = rows, .cols = cols, .data = t->data};
    if (!has_shape(t, 3, (int64_t[]){count, rows, cols}) || !format_of(t, &out->matrix.format)) {
        snprintf(expected, sizeof expected, "MXFP4, BF16, F16, F32 or Q8_0 [%lld, %lld, %lld]", (long long)count,
                 (long long)rows, (long long)cols);
        return wrong(l, t, MX_INVALID_FILE, expected);
    }
    out->matrix.row_stride = mx_columns_bytes(out->matrix.format, cols);
    out->data_stride = (int64_t)t->slice_stride;
    out->bf16_safe = true;
    note_scales(l, t, count, rows, cols);
    if (out->matrix.format == MX_MXFP4_GGML) /* the scale before its block */
        l->scales[l->scale_count++] = (mx_scale_view){.tensor = t,
                                                      .scale = t->data,
                                                      .block = t->data + 1,
                                                      .scale_step = 17,
                                                      .block_step = 17,
                                                      .scale_stride = t->slice_stride,
                                                      .block_stride = t->slice_stride,
                                                      .experts = count,
                                                      .rows = rows,
                                                      .per_row = cols / 32,
                                                      .bf16_safe = &out->bf16_safe};
    return MX_OK;
}

/* Experts of modules of their own, quantised. */
static mx_status block_experts(loader *l, const char *module, int64_t rows, int64_t cols, mx_experts *out) {
    const mx_config *c = &l->w->config;
    char full[NAME_ROOM + 8];
    mx_status status = quantized(l, module, c->experts, rows, cols, (block_owner){&out->matrix, out});
    if (status) return status;
    const mx_block_tensor *b = &l->blocks[l->block_count - 1];
    out->data_stride = b->data_stride;
    out->scale_stride = b->scale_stride;
    out->zero_stride = b->zero_stride;
    out->post_stride = b->post_stride;
    snprintf(full, sizeof full, "%s_bias", module);
    if (mx_checkpoint_find(l->w->checkpoint, full)) return MX_OK;
    const char *kind = strrchr(module, '.'); /* its name in the file */
    return mx_fail(l->error, MX_INVALID_FILE, "%s: tensor %.*s.0%s.bias is missing: is the download complete?",
                   l->folder, (int)(kind - module), module, kind);
}

/* One of a layer's two expert matrices and its bias. `name`: "gate_up_proj" or "down_proj"; or "gate_proj" or
 * "up_proj".
 */
static mx_status experts(loader *l, const char *prefix, const char *name, int64_t rows, int64_t cols, mx_experts *out) {
    const mx_checkpoint *ck = l->w->checkpoint;
    const int64_t count = l->w->config.experts;
    const mx_tensor *bias;
    char full[NAME_ROOM + 8], expected[120];
    *out = (mx_experts){0};

    char module[NAME_ROOM];
    snprintf(module, sizeof module, "%smlp.experts.%s", prefix, name);
    snprintf(full, sizeof full, "%s_blocks", module);
    const bool mxfp4 = mx_checkpoint_find(ck, full) != NULL, blocks = !mxfp4 && mx_module_quantized(ck, module);
    const bool apart = !strcmp(name, "gate_proj") || !strcmp(name, "up_proj");
    const char *other = mxfp4 || blocks ? NULL : other_layout(ck, prefix);
    if (other)
        return mx_fail(l->error, MX_UNSUPPORTED,
                       "%s: %s (no %s): mxrun reads experts as gpt-oss is published, *_blocks and *_scales, in BF16 "
                       "[experts, in, out], or as docs/quantized.md says",
                       l->folder, other, full);
    snprintf(full, sizeof full, "%s.weight", module);
    mx_status status = blocks ? block_experts(l, module, rows, cols, out)
                       : mxfp4 || (!apart && !mx_checkpoint_find(ck, full))
                           ? mxfp4_experts(l, prefix, name, rows, cols, out)
                           : dense_experts(l, prefix, name, rows, cols, out);
    if (status) return status;

    snprintf(full, sizeof full, "%smlp.experts.%s_bias", prefix, name);
    if ((status = take(l, full, &bias))) return status;
    if ((bias->dtype != MX_DTYPE_BF16 && bias->dtype != MX_DTYPE_F32) ||
        !has_shape(bias, 2, (int64_t[]){count, rows})) {
        snprintf(expected, sizeof expected, "BF16 or F32 [%lld, %lld]", (long long)count, (long long)rows);
        return wrong(l, bias, MX_INVALID_FILE, expected);
    }
    out->bias = bias->data;
    out->bias_stride = (int64_t)bias->slice_stride;
    out->bias_format = bias->dtype == MX_DTYPE_BF16 ? MX_BF16 : MX_F32;
    return MX_OK;
}

static mx_status attention(loader *l, const char *prefix, mx_layer *layer) {
    const mx_config *c = &l->w->config;
    int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim, h = c->hidden;
    const struct {
        const char *weight, *bias;
        int64_t rows, cols;
        mx_matrix *to;
        const float **to_bias;
    } parts[] = {
        {"self_attn.q_proj.weight", "self_attn.q_proj.bias", q, h, &layer->q, &layer->q_bias},
        {"self_attn.k_proj.weight", "self_attn.k_proj.bias", kv, h, &layer->k, &layer->k_bias},
        {"self_attn.v_proj.weight", "self_attn.v_proj.bias", kv, h, &layer->v, &layer->v_bias},
        {"self_attn.o_proj.weight", "self_attn.o_proj.bias", h, q, &layer->o, &layer->o_bias},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        mx_status status = matrix(l, prefix, parts[i].weight, parts[i].rows, parts[i].cols, parts[i].to);
        if (!status && c->attention_bias) status = vector(l, prefix, parts[i].bias, parts[i].rows, parts[i].to_bias);
        if (status) return status;
    }
    return vector(l, prefix, "self_attn.sinks", c->heads, &layer->sinks);
}

static bool same_type(const mx_matrix *a, const mx_matrix *b) {
    const mx_blocks *x = &a->blocks, *y = &b->blocks;
    return a->format == b->format && x->columns == y->columns && x->scale == y->scale && x->sides == y->sides &&
           x->zeros == y->zeros;
}

static mx_status one_layer(loader *l, int index) {
    const mx_config *c = &l->w->config;
    mx_layer *layer = &l->w->layer[index];
    char prefix[40];
    snprintf(prefix, sizeof prefix, "model.layers.%d.", index);
    mx_status status = vector(l, prefix, "input_layernorm.weight", c->hidden, &layer->attn_norm);
    if (!status) status = attention(l, prefix, layer);
    if (!status) status = vector(l, prefix, "post_attention_layernorm.weight", c->hidden, &layer->mlp_norm);
    if (!status) status = matrix(l, prefix, "mlp.router.weight", c->experts, c->hidden, &layer->router);
    if (!status) status = vector(l, prefix, "mlp.router.bias", c->experts, &layer->router_bias);
    char apart[NAME_ROOM], module[NAME_ROOM];
    snprintf(module, sizeof module, "%smlp.experts.gate_proj", prefix);
    snprintf(apart, sizeof apart, "%smlp.experts.gate_proj.weight", prefix);
    layer->up = (mx_experts){0};
    if (status) return status;
    if (mx_checkpoint_find(l->w->checkpoint, apart) || mx_module_quantized(l->w->checkpoint, module)) {
        status = experts(l, prefix, "gate_proj", c->intermediate, c->hidden, &layer->gate_up);
        if (!status) status = experts(l, prefix, "up_proj", c->intermediate, c->hidden, &layer->up);
        if (!status && !same_type(&layer->up.matrix, &layer->gate_up.matrix))
            status = mx_fail(l->error, MX_UNSUPPORTED, "%s: %smlp.experts: gate and up have different types", l->folder,
                             prefix);
    } else {
        status = experts(l, prefix, "gate_up_proj", 2 * (int64_t)c->intermediate, c->hidden, &layer->gate_up);
    }
    if (!status) status = experts(l, prefix, "down_proj", c->hidden, c->intermediate, &layer->down);
    return status;
}

static mx_status all_tensors(loader *l) {
    mx_weights *w = l->w;
    const mx_config *c = &w->config;
    mx_status status = matrix(l, "", "model.embed_tokens.weight", c->vocab, c->hidden, &w->embedding);
    for (int i = 0; i < c->layers && !status; i++) status = one_layer(l, i);
    if (!status) status = vector(l, "", "model.norm.weight", c->hidden, &w->norm);
    if (status) return status;
    return c->tied_embeddings ? MX_OK : matrix(l, "", "lm_head.weight", c->vocab, c->hidden, &w->lm_head);
}

/* The tensors that no role was found for, in one line. Scales of activations are spoken of in one of their own. */
static void warn_unused(const loader *l) {
    const mx_checkpoint *ck = l->w->checkpoint;
    int unused = 0;
    bool activations = l->w->config.activations_quantized;
    const char *first = NULL;
    for (int i = 0; i < mx_checkpoint_count(ck); i++) {
        const char *name = mx_checkpoint_at(ck, i)->name;
        if (l->used[i]) continue;
        const bool input = mx_ends_with(name, ".input_scale") || mx_ends_with(name, ".input_global_scale");
        activations |= input;
        if (!input && !unused++) first = name;
    }
    if (activations)
        mx_log(MX_LOG_WARNING,
               "%s: it was made for programs that quantise activations (or keys and values), too: mxrun multiplies its "
               "weights with activations as --precision says",
               l->folder);
    if (unused)
        mx_log(MX_LOG_WARNING, "%s: %d tensor%s no part of gpt-oss and ignored: %s%s", l->folder, unused,
               unused == 1 ? " is" : "s are", first, unused > 1 ? ", ..." : "");
}

/* ---- opening --------------------------------------------------------------------------------------------- */

/* Floats of all small vectors, each rounded up to a cache line. */
static size_t small_floats(const mx_config *c) {
    int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    const int64_t per_layer[] = {c->hidden, c->hidden, q, kv, kv, c->hidden, c->experts, c->heads};
    int64_t total = c->hidden;
    for (size_t i = 0; i < sizeof per_layer / sizeof *per_layer; i++)
        total += c->layers * ((per_layer[i] + FLOATS_PER_LINE - 1) / FLOATS_PER_LINE * FLOATS_PER_LINE);
    return (size_t)total;
}

/* What the bytes of quantised weights say goes to their matrices. */
static mx_status finish_blocks(loader *l, bool elements, mx_pool *pool) {
    mx_status status = mx_blocks_finish(l->blocks, l->block_count, elements, pool, l->error);
    for (int i = 0; i < l->block_count && !status; i++) {
        const block_owner *o = &l->owner[i];
        o->matrix->bf16_safe = l->blocks[i].bf16_safe;
        if (o->experts) o->experts->bf16_safe = l->blocks[i].bf16_safe;
    }
    return status;
}

/* Gives every tensor of w->checkpoint its role. `name`: the model's, for messages. What only needs the headers comes
 * before the bytes are brought in, for that takes long: `options` says how; NULL: they are there. */
static mx_status assign(mx_weights *w, const char *name, const mx_load_options *options, mx_pool *pool,
                        mx_error *error) {
    const mx_config *c = &w->config;
    size_t owned = small_floats(c) * sizeof(float);
    int tensors = mx_checkpoint_count(w->checkpoint);
    loader l = {.w = w, .folder = name, .error = error};
    mx_status status = MX_OK;
    w->layer = calloc((size_t)c->layers, sizeof *w->layer);
    w->owned = aligned_alloc(64, (owned + 63) / 64 * 64);
    l.used = calloc((size_t)tensors + 1, sizeof *l.used);
    const size_t most = 8 * (size_t)c->layers + 2; /* matrices: q k v o, router, gate, up, down */
    l.scales = calloc(most, sizeof *l.scales);
    l.blocks = calloc(most, sizeof *l.blocks);
    l.owner = calloc(most, sizeof *l.owner);
    l.room = w->owned;
    if (!w->layer || !w->owned || !l.used || !l.scales || !l.blocks || !l.owner)
        status = mx_fail(error, MX_NO_MEMORY, "%s: no memory for %zu bytes of norms and biases", name, owned);
    if (!status) status = mx_checkpoint_make_room(w->checkpoint, name, error);
    if (!status) status = all_tensors(&l);
    const bool look = options && options->way == MX_LOAD_LOOK;
    if (!status && !look) status = mx_load_checkpoint(w->checkpoint, options, error);
    if (!status && !(look && mx_checkpoint_made(w->checkpoint))) {
        status = mx_scales_check(l.scales, l.scale_count, pool, error);
        if (!status) status = finish_blocks(&l, !look, pool);
    }
    if (c->tied_embeddings) w->lm_head = w->embedding;
    for (int i = 0; i < c->layers && !status; i++) { /* multiplied in the same way */
        mx_layer *layer = &w->layer[i];
        if (layer->up.matrix.rows)
            layer->gate_up.bf16_safe = layer->up.bf16_safe = layer->gate_up.bf16_safe && layer->up.bf16_safe;
    }
    if (!status) warn_unused(&l);
    free(l.used);
    free(l.scales);
    free(l.blocks);
    free(l.owner);
    return status;
}

/* `checkpoint` becomes the weights', also when this fails. */
static mx_status create(const char *name, const mx_config *config, mx_checkpoint *checkpoint,
                        const mx_load_options *options, mx_pool *pool, mx_weights **out, mx_error *error) {
    *out = NULL;
    mx_weights *w = calloc(1, sizeof *w);
    if (!w) {
        mx_checkpoint_close(checkpoint);
        return mx_fail(error, MX_NO_MEMORY, "%s: no memory to open it", name);
    }
    w->config = *config;
    w->checkpoint = checkpoint;
    mx_status status = assign(w, name, options, pool, error);
    if (status == MX_INVALID_FILE) status = mx_experts16_blame(checkpoint, status, error);
    if (status)
        mx_weights_close(w);
    else
        *out = w;
    return status;
}

/* What became of --quantize-experts. */
static void say_rounded(const char *path, const mx_checkpoint *ck, mx_rounding rounding, const char *kept) {
    if (mx_checkpoint_layout(ck) != MX_LAYOUT_HF)
        mx_log(MX_LOG_WARNING, "%s: experts are rounded in the Hugging Face layout only: these stay as they are", path);
    else if (!mx_checkpoint_rounded(ck))
        mx_log(MX_LOG_WARNING, "%s: no expert is BF16: there is nothing to round to MXFP4", path);
    else
        mx_log(MX_LOG_INFO, "%s: %d expert tensors are rounded from BF16 to MXFP4 (%s)%s", path,
               mx_checkpoint_rounded(ck), mx_rounding_name(rounding), kept);
}

mx_status mx_weights_load(const char *path, const mx_load_options *options, mx_pool *pool, mx_weights **out,
                          mx_error *error) {
    *out = NULL;
    mx_checkpoint *checkpoint;
    mx_config config;
    const mx_rounding rounding = options ? options->quantize_experts : MX_ROUND_NONE;
    mx_status status = mx_checkpoint_open_model(path, mx_experts_form(rounding), &config, &checkpoint, error);
    if (status || rounding == MX_ROUND_NONE)
        return status ? status : create(path, &config, checkpoint, options, pool, out, error);
    mx_expert_cache *cache = calloc(1, sizeof *cache);
    if (!cache) {
        mx_checkpoint_close(checkpoint);
        return mx_fail(error, MX_NO_MEMORY, "%s: no memory to open it", path);
    }
    mx_expert_cache_find(cache, checkpoint, options);
    status = create(path, &config, checkpoint, options, pool, out, error);
    if (!status) {
        mx_expert_cache_keep(cache, checkpoint, options);
        say_rounded(path, checkpoint, rounding, cache->said);
    }
    mx_expert_cache_free(cache);
    free(cache);
    return status;
}

mx_status mx_weights_open(const char *path, mx_pool *pool, mx_weights **out, mx_error *error) {
    return mx_weights_load(path, NULL, pool, out, error);
}

mx_status mx_weights_from(const char *name, const mx_config *config, mx_checkpoint *checkpoint, mx_pool *pool,
                          mx_weights **out, mx_error *error) {
    return create(name, config, checkpoint, NULL, pool, out, error);
}

void mx_weights_close(mx_weights *w) {
    if (!w) return;
    mx_checkpoint_close(w->checkpoint);
    free(w->layer);
    free(w->owned);
    free(w);
}
