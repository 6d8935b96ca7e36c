/* The weights on the device: what there are kernels for, where everything lies, and from which tensors it comes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "kernels/mx.h"
#include "model/cuda/loading.h"

/* What the kernels are made for (cuda_kernels.h). */
enum { MOST_HIDDEN = 8192, MOST_HEAD_DIM = 128, HEAD_DIM_STEP = 32, MOST_EXPERTS = 1024, MOST_TOP_K = 32 };
enum { ALIGNMENT = 256 };

static const char another_form[] = "take the model in the form in which it is published, or --device cpu";

/* ---- what is to be loaded -----------------------------------------------------------------------------------------
 */

static mx_experts made_experts(int64_t rows, int64_t cols) {
    return (mx_experts){.matrix = {.format = MX_MXFP4, .rows = rows, .cols = cols}, .bias_format = MX_BF16};
}

/* Of a synthetic model: the tensors of mx_synthetic_plan by their role, without data. Free `layer`. */
static mx_status made_shape(const mx_config *c, mx_weights *out, mx_error *error) {
    const int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim, h = c->hidden;
    *out = (mx_weights){.config = *c, .layer = calloc((size_t)c->layers, sizeof *out->layer)};
    if (!out->layer) return mx_fail(error, MX_NO_MEMORY, "no memory for the list of %d layers", c->layers);
    out->embedding = out->lm_head = (mx_matrix){.format = MX_BF16, .rows = c->vocab, .cols = h};
    for (int i = 0; i < c->layers; i++)
        out->layer[i] = (mx_layer){
            .q = {.format = MX_BF16, .rows = q, .cols = h},
            .k = {.format = MX_BF16, .rows = kv, .cols = h},
            .v = {.format = MX_BF16, .rows = kv, .cols = h},
            .o = {.format = MX_BF16, .rows = h, .cols = q},
            .router = {.format = MX_BF16, .rows = c->experts, .cols = h},
            .gate_up = made_experts(2 * (int64_t)c->intermediate, h),
            .down = made_experts(h, c->intermediate),
        };
    return MX_OK;
}

/* What the device gets of a file's format. F16 and F32 become BF16, which the transfer refuses where it is not exact:
 * GGUF has its routers in F32, and files of F16 were BF16 once. */
static mx_format given(mx_format file) {
    return file == MX_F16 || file == MX_F32 ? MX_BF16 : file;
}

static mx_cuda_format laid(mx_format file) {
    return mx_is_mxfp4(file) ? MX_CUDA_MXFP4 : file == MX_Q8_0 ? MX_CUDA_Q8_0 : MX_CUDA_BF16;
}

/* ---- is there a kernel for all of it ------------------------------------------------------------------------------
 */

/* The file that holds a tensor; where no tensor has that name, the model's first. */
static const char *file_of(const mx_weights *w, const char *name) {
    const mx_tensor *t = w->checkpoint ? mx_checkpoint_find(w->checkpoint, name) : NULL;
    if (!t && w->checkpoint && mx_checkpoint_count(w->checkpoint)) t = mx_checkpoint_at(w->checkpoint, 0);
    return t ? t->file : "the model";
}

static mx_status check_config(const mx_config *c, mx_error *error) {
    if (c->head_dim % HEAD_DIM_STEP || c->head_dim > MOST_HEAD_DIM)
        return mx_fail(error, MX_UNSUPPORTED,
                       "head_dim is %d: CUDA has kernels for multiples of %d up to %d: use --device cpu", c->head_dim,
                       (int)HEAD_DIM_STEP, (int)MOST_HEAD_DIM);
    const struct {
        const char *name;
        int is, most;
    } limits[] = {{"hidden_size", c->hidden, MOST_HIDDEN},
                  {"experts", c->experts, MOST_EXPERTS},
                  {"experts per token", c->top_k, MOST_TOP_K}};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (limits[i].is > limits[i].most)
            return mx_fail(error, MX_UNSUPPORTED, "%s is %d: CUDA has kernels for up to %d: use --device cpu",
                           limits[i].name, limits[i].is, limits[i].most);
    return MX_OK;
}

static mx_status check_dense(const mx_weights *w, int layer, const char *name, const mx_matrix *m, mx_error *error) {
    if (!mx_is_mxfp4(m->format) && !mx_is_block_format(m->format)) return MX_OK;
    char full[MX_CUDA_ITEM_NAME], format[MX_WEIGHT_NAME];
    mx_cuda_item_name(&(mx_cuda_item){.name = name, .layer = layer}, full);
    mx_weight_name(format, m);
    return mx_fail(error, MX_UNSUPPORTED, "%s: %s: is %s: CUDA has kernels for it in BF16 and Q8_0 only: %s",
                   file_of(w, full), full, format, another_form);
}

static mx_status check_experts(const mx_weights *w, int layer, const char *name, const mx_experts *e, mx_error *error) {
    if (!mx_is_block_format(e->matrix.format)) return MX_OK;
    char full[MX_CUDA_ITEM_NAME], format[MX_WEIGHT_NAME];
    mx_cuda_item_name(&(mx_cuda_item){.name = name, .layer = layer}, full);
    mx_weight_name(format, &e->matrix);
    return mx_fail(error, MX_UNSUPPORTED,
                   "%s: %s: is %s: CUDA has kernels for experts in MXFP4, BF16 and Q8_0 only: %s", file_of(w, full),
                   full, format, another_form);
}

static mx_status check_layer(const mx_weights *w, int i, mx_error *error) {
    const mx_layer *l = &w->layer[i];
    const struct {
        const char *name;
        const mx_matrix *m;
    } dense[] = {{"self_attn.q_proj.weight", &l->q},
                 {"self_attn.k_proj.weight", &l->k},
                 {"self_attn.v_proj.weight", &l->v},
                 {"self_attn.o_proj.weight", &l->o},
                 {"mlp.router.weight", &l->router}};
    mx_status status = MX_OK;
    for (size_t k = 0; k < sizeof dense / sizeof *dense && !status; k++)
        status = check_dense(w, i, dense[k].name, dense[k].m, error);
    if (!status)
        status = check_experts(w, i, l->up.matrix.rows ? "mlp.experts.gate_proj" : "mlp.experts.gate_up_proj",
                               &l->gate_up, error);
    if (!status) status = check_experts(w, i, "mlp.experts.down_proj", &l->down, error);
    for (size_t k = 1; k < 3 && !status; k++) { /* q, k and v become one matrix */
        if (given(dense[k].m->format) == given(l->q.format)) continue;
        char full[MX_CUDA_ITEM_NAME], is[MX_WEIGHT_NAME], other[MX_WEIGHT_NAME];
        mx_weight_name(is, dense[k].m);
        mx_weight_name(other, &l->q);
        mx_cuda_item_name(&(mx_cuda_item){.name = dense[k].name, .layer = i}, full);
        status = mx_fail(error, MX_UNSUPPORTED,
                         "%s: %s: is %s, but q_proj is %s: CUDA multiplies q, k and v at once, in one type: %s",
                         file_of(w, full), full, is, other, another_form);
    }
    return status;
}

static mx_status check(const mx_weights *w, mx_error *error) {
    mx_status status = check_config(&w->config, error);
    if (!status) status = check_dense(w, -1, "model.embed_tokens.weight", &w->embedding, error);
    if (!status) status = check_dense(w, -1, "lm_head.weight", &w->lm_head, error);
    for (int i = 0; i < w->config.layers && !status; i++) status = check_layer(w, i, error);
    return status;
}

/* ---- where it lies ------------------------------------------------------------------------------------------------
 */

/* Memory that is handed out from its begin; without `base` it is only counted. */
typedef struct room {
    uint8_t *base;
    uint64_t used;
} room;

static uint8_t *take(room *r, int64_t bytes) {
    const uint64_t at = r->used;
    r->used += ((uint64_t)bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return r->base ? r->base + at : NULL;
}

static float *take_floats(room *r, int64_t count) {
    return (float *)(void *)take(r, count * (int64_t)sizeof(float));
}

static mx_cuda_matrix take_matrix(room *r, mx_format file, int64_t experts, int64_t rows, int64_t cols, bool bias) {
    mx_cuda_matrix m = {.format = laid(file), .rows = rows, .cols = cols};
    m.data_stride = mx_cuda_data_bytes(m.format, rows, cols);
    m.scale_stride = mx_cuda_scale_bytes(m.format, rows, cols);
    m.bias_stride = mx_cuda_row_tiles(rows) * MX_UNIT_ROWS;
    m.data = take(r, experts * m.data_stride);
    if (m.scale_stride) m.scales = take(r, experts * m.scale_stride);
    if (bias) m.bias = take_floats(r, experts * m.bias_stride);
    return m;
}

static void place_layer(room *r, const mx_weights *w, const mx_layer *from, mx_cuda_layer *to) {
    const mx_config *c = &w->config;
    const int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim, h = c->hidden;
    to->attn_norm = take_floats(r, h);
    to->mlp_norm = take_floats(r, h);
    to->sinks = take_floats(r, c->heads);
    to->qkv = take_matrix(r, from->q.format, 1, q + 2 * kv, h, c->attention_bias);
    to->o = take_matrix(r, from->o.format, 1, h, q, c->attention_bias);
    to->router = take_matrix(r, from->router.format, 1, c->experts, h, true);
    to->gate_up = take_matrix(r, from->gate_up.matrix.format, c->experts, 2 * (int64_t)c->intermediate, h, true);
    to->down = take_matrix(r, from->down.matrix.format, c->experts, h, c->intermediate, true);
}

/* Every pointer of `out`, for `base` of out->bytes, which this finds out. */
static void place(const mx_weights *w, uint8_t *base, mx_cuda_weights *out) {
    const mx_config *c = &w->config;
    room r = {.base = base};
    out->embedding = out->lm_head = take_matrix(&r, w->embedding.format, 1, c->vocab, c->hidden, false);
    if (!c->tied_embeddings) out->lm_head = take_matrix(&r, w->lm_head.format, 1, c->vocab, c->hidden, false);
    out->norm = take_floats(&r, c->hidden);
    for (int i = 0; i < c->layers; i++) place_layer(&r, w, &w->layer[i], &out->layer[i]);
    out->bytes = r.used;
}

/* ---- from which tensors it comes ----------------------------------------------------------------------------------
 */

enum { ITEMS_OF_LAYER = 20, ITEMS_OUTSIDE = 3 };

typedef struct list {
    mx_cuda_item *item;
    int count;
    const mx_config *config;
    bool made;
} list;

/* The device's memory, which the step only reads. */
static uint8_t *writable(const void *p) {
    return (uint8_t *)(uintptr_t)p;
}

static void add_experts(list *l, int layer, const char *name, const mx_experts *from, int64_t experts,
                        mx_row_order order, int64_t row_base, const mx_cuda_matrix *to) {
    const mx_matrix *m = &from->matrix;
    l->item[l->count++] = (mx_cuda_item){.name = name,
                                         .layer = layer,
                                         .file = m->format,
                                         .from = given(m->format),
                                         .experts = experts,
                                         .rows = m->rows,
                                         .cols = m->cols,
                                         .data = m->data,
                                         .scales = m->scales,
                                         .data_stride = from->data_stride,
                                         .scale_stride = from->scale_stride,
                                         .order = order,
                                         .head_dim = l->config->head_dim,
                                         .row_base = row_base,
                                         .to = writable(to->data),
                                         .to_scales = writable(to->scales),
                                         .to_stride = to->data_stride,
                                         .to_scale_stride = to->scale_stride};
}

static void add_matrix(list *l, int layer, const char *name, const mx_matrix *from, mx_row_order order,
                       int64_t row_base, const mx_cuda_matrix *to) {
    add_experts(l, layer, name, &(mx_experts){.matrix = *from}, 1, order, row_base, to);
}

/* `count` values of each expert; `stride`: of `to`, in floats. */
static void add_values(list *l, int layer, const char *name, const void *from, mx_format format, int64_t experts,
                       int64_t count, mx_row_order order, int64_t row_base, const float *to, int64_t stride) {
    if (l->made) format = MX_BF16;
    l->item[l->count++] = (mx_cuda_item){.name = name,
                                         .layer = layer,
                                         .values = true,
                                         .file = format,
                                         .from = format,
                                         .experts = experts,
                                         .rows = count,
                                         .cols = 1,
                                         .data = from,
                                         .data_stride = mx_columns_bytes(format, count),
                                         .order = order,
                                         .head_dim = l->config->head_dim,
                                         .row_base = row_base,
                                         .to = writable(to),
                                         .to_stride = stride * (int64_t)sizeof *to};
}

/* A bias of each expert. */
static void add_biases(list *l, int layer, const char *name, const mx_experts *from, mx_row_order order,
                       const mx_cuda_matrix *to) {
    add_values(l, layer, name, from->bias, from->bias_format, l->config->experts, from->matrix.rows, order, 0, to->bias,
               to->bias_stride);
    if (from->bias_stride) l->item[l->count - 1].data_stride = from->bias_stride;
}

/* A vector that mx_weights holds in fp32. */
static void add_vector(list *l, int layer, const char *name, const float *from, int64_t count, mx_row_order order,
                       int64_t row_base, const float *to) {
    add_values(l, layer, name, from, MX_F32, 1, count, order, row_base, to, 0);
}

static void add_attention(list *l, int i, const mx_layer *from, const mx_cuda_layer *to) {
    const mx_config *c = l->config;
    const int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    const struct {
        const char *weight, *bias_name;
        const mx_matrix *m;
        const float *bias;
        mx_row_order order;
        int64_t base;
        const mx_cuda_matrix *to;
    } parts[] = {
        {"self_attn.q_proj.weight", "self_attn.q_proj.bias", &from->q, from->q_bias, MX_ROWS_ROPE, 0, &to->qkv},
        {"self_attn.k_proj.weight", "self_attn.k_proj.bias", &from->k, from->k_bias, MX_ROWS_ROPE, q, &to->qkv},
        {"self_attn.v_proj.weight", "self_attn.v_proj.bias", &from->v, from->v_bias, MX_ROWS_PLAIN, q + kv, &to->qkv},
        {"self_attn.o_proj.weight", "self_attn.o_proj.bias", &from->o, from->o_bias, MX_ROWS_PLAIN, 0, &to->o}};
    for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
        add_matrix(l, i, parts[k].weight, parts[k].m, parts[k].order, parts[k].base, parts[k].to);
        if (c->attention_bias)
            add_vector(l, i, parts[k].bias_name, parts[k].bias, parts[k].m->rows, parts[k].order, parts[k].base,
                       parts[k].to->bias);
    }
    add_vector(l, i, "self_attn.sinks", from->sinks, c->heads, MX_ROWS_PLAIN, 0, to->sinks);
}

static void add_mlp(list *l, int i, const mx_layer *from, const mx_cuda_layer *to) {
    const int64_t e = l->config->experts;
    add_matrix(l, i, "mlp.router.weight", &from->router, MX_ROWS_PLAIN, 0, &to->router);
    add_vector(l, i, "mlp.router.bias", from->router_bias, e, MX_ROWS_PLAIN, 0, to->router.bias);
    if (from->up.matrix.rows) {
        const struct {
            const char *weight, *bias;
            const mx_experts *from;
            mx_row_order order;
        } halves[] = {{"mlp.experts.gate_proj.weight", "mlp.experts.gate_proj_bias", &from->gate_up, MX_ROWS_GATE},
                      {"mlp.experts.up_proj.weight", "mlp.experts.up_proj_bias", &from->up, MX_ROWS_UP}};
        for (int k = 0; k < 2; k++) {
            add_experts(l, i, halves[k].weight, halves[k].from, e, halves[k].order, 0, &to->gate_up);
            add_biases(l, i, halves[k].bias, halves[k].from, halves[k].order, &to->gate_up);
        }
    } else {
        const bool mxfp4 = from->gate_up.matrix.format == MX_MXFP4;
        add_experts(l, i, mxfp4 ? "mlp.experts.gate_up_proj_blocks" : "mlp.experts.gate_up_proj.weight", &from->gate_up,
                    e, MX_ROWS_GATE_UP, 0, &to->gate_up);
        add_biases(l, i, "mlp.experts.gate_up_proj_bias", &from->gate_up, MX_ROWS_GATE_UP, &to->gate_up);
    }
    const bool mxfp4 = from->down.matrix.format == MX_MXFP4;
    add_experts(l, i, mxfp4 ? "mlp.experts.down_proj_blocks" : "mlp.experts.down_proj.weight", &from->down, e,
                MX_ROWS_PLAIN, 0, &to->down);
    add_biases(l, i, "mlp.experts.down_proj_bias", &from->down, MX_ROWS_PLAIN, &to->down);
}

static mx_status list_items(const mx_weights *w, const mx_cuda_weights *to, bool made, list *l, mx_error *error) {
    const mx_config *c = &w->config;
    *l = (list){.config = c, .made = made};
    l->item = calloc((size_t)c->layers * ITEMS_OF_LAYER + ITEMS_OUTSIDE, sizeof *l->item);
    if (!l->item) return mx_fail(error, MX_NO_MEMORY, "no memory for the list of tensors");
    add_matrix(l, -1, "model.embed_tokens.weight", &w->embedding, MX_ROWS_PLAIN, 0, &to->embedding);
    for (int i = 0; i < c->layers; i++) {
        add_vector(l, i, "input_layernorm.weight", w->layer[i].attn_norm, c->hidden, MX_ROWS_PLAIN, 0,
                   to->layer[i].attn_norm);
        add_attention(l, i, &w->layer[i], &to->layer[i]);
        add_vector(l, i, "post_attention_layernorm.weight", w->layer[i].mlp_norm, c->hidden, MX_ROWS_PLAIN, 0,
                   to->layer[i].mlp_norm);
        add_mlp(l, i, &w->layer[i], &to->layer[i]);
    }
    add_vector(l, -1, "model.norm.weight", w->norm, c->hidden, MX_ROWS_PLAIN, 0, to->norm);
    if (!c->tied_embeddings) add_matrix(l, -1, "lm_head.weight", &w->lm_head, MX_ROWS_PLAIN, 0, &to->lm_head);
    return MX_OK;
}

void mx_cuda_item_name(const mx_cuda_item *item, char out[MX_CUDA_ITEM_NAME]) {
    if (item->layer < 0)
        snprintf(out, MX_CUDA_ITEM_NAME, "%s", item->name);
    else
        snprintf(out, MX_CUDA_ITEM_NAME, "model.layers.%d.%s", item->layer, item->name);
}

/* ---- made-up weights ----------------------------------------------------------------------------------------------
 */

static const mx_synthetic_tensor *find_made(const mx_synthetic_tensor *t, int count, const char *name) {
    for (int i = 0; i < count; i++)
        if (!strcmp(t[i].name, name)) return &t[i];
    return NULL;
}

/* Each item's numbers. */
static mx_status attach_made(list *l, const mx_synthetic_tensor *t, int count, mx_error *error) {
    for (int i = 0; i < l->count; i++) {
        mx_cuda_item *item = &l->item[i];
        char name[MX_CUDA_ITEM_NAME];
        mx_cuda_item_name(item, name);
        item->made = find_made(t, count, name);
        if (mx_is_mxfp4(item->from)) {
            strcpy(name + strlen(name) - strlen("blocks"), "scales");
            item->made_scales = find_made(t, count, name);
        }
        if (!item->made || (mx_is_mxfp4(item->from) && !item->made_scales))
            return mx_fail(error, MX_INVALID_STATE, "%s: no synthetic model has it", name);
    }
    return MX_OK;
}

/* ---- loading ------------------------------------------------------------------------------------------------------
 */

/* What MX_LOAD_LOOK leaves unmade cannot be loaded. */
static mx_status check_made(const mx_weights *w, mx_error *error) {
    if (!w->layer) return mx_fail(error, MX_INVALID_ARGUMENT, "no weights to load, a configuration alone");
    for (int i = 0; w->checkpoint && i < mx_checkpoint_count(w->checkpoint); i++) {
        const mx_tensor *t = mx_checkpoint_at(w->checkpoint, i);
        if (t->recipe)
            return mx_fail(error, MX_INVALID_STATE, "%s: %s: the weights were opened to be looked at, not to be loaded",
                           t->file, t->name);
    }
    return MX_OK;
}

/* A description of `w` on no device yet. */
static mx_status create(const mx_weights *w, mx_cuda_weights **out, mx_error *error) {
    *out = NULL;
    mx_status status = check(w, error);
    if (status) return status;
    mx_cuda_weights *c = calloc(1, sizeof *c);
    if (c) c->layer = calloc((size_t)w->config.layers, sizeof *c->layer);
    if (!c || !c->layer) {
        free(c);
        return mx_fail(error, MX_NO_MEMORY, "no memory for the list of %d layers", w->config.layers);
    }
    c->config = w->config;
    place(w, NULL, c);
    *out = c;
    return MX_OK;
}

void mx_cuda_weights_free(mx_cuda_weights *w) {
    if (!w) return;
    if (w->memory && !mx_gpu_use(w->device, NULL)) mx_gpu_free(w->memory);
    free(w->layer);
    free(w);
}

mx_status mx_cuda_weights_bytes(const mx_weights *w, uint64_t *bytes, mx_error *error) {
    mx_weights shape = {0};
    mx_status status = w->layer ? MX_OK : made_shape(&w->config, &shape, error);
    mx_cuda_weights *c = NULL;
    if (!status) status = create(w->layer ? w : &shape, &c, error);
    if (!status) *bytes = c->bytes;
    mx_cuda_weights_free(c);
    free(shape.layer);
    return status;
}

/* Which experts have scales that one multiplication does not widen. They are looked at where they lie now: padding is
 * 0. */
static mx_status find_wide(mx_cuda_weights *w, mx_error *error) {
    enum { MOST_NARROW = 128 };
    const int count = 2 * w->config.layers;
    const size_t bytes = (size_t)count * sizeof(uint32_t);
    uint32_t *host = malloc(bytes), *found = NULL;
    mx_gpu_stream *s = NULL;
    mx_status status = host ? MX_OK : mx_fail(error, MX_NO_MEMORY, "no memory to look at scales");
    if (!status) status = mx_gpu_alloc((void **)&found, bytes, "a look at scales", error);
    if (!status) status = mx_gpu_stream_create(&s, error);
    if (!status) status = mx_gpu_fill(found, 0, bytes, s, error);
    for (int i = 0; i < count && !status; i++) {
        const mx_cuda_matrix *m = i % 2 ? &w->layer[i / 2].down : &w->layer[i / 2].gate_up;
        if (m->format == MX_CUDA_MXFP4)
            mx_cuda_largest_scale(m->scales, w->config.experts * m->scale_stride, &found[i], s);
    }
    if (!status) status = mx_gpu_check("a look at scales", error);
    if (!status) status = mx_gpu_copy(host, found, bytes, s, error);
    if (!status) status = mx_gpu_stream_wait(s, error);
    for (int i = 0; i < count && !status; i++)
        (i % 2 ? &w->layer[i / 2].down : &w->layer[i / 2].gate_up)->wide_scales = host[i] > MOST_NARROW;
    mx_gpu_stream_destroy(s);
    mx_gpu_free(found);
    free(host);
    return status;
}

/* `w` as it is on the device: memory, and all that lies in it. */
static mx_status fill(const mx_weights *w, const mx_cuda_load_options *options, uint64_t most, mx_cuda_weights *to,
                      mx_cuda_loaded *loaded, mx_error *error) {
    list l = {0};
    mx_synthetic_tensor *made = NULL;
    int mades = 0;
    to->device = options->device;
    mx_status status = mx_gpu_use(options->device, error);
    if (!status) status = mx_gpu_alloc(&to->memory, to->bytes, "the weights", error);
    if (status) return status;
    place(w, to->memory, to);
    status = list_items(w, to, options->synthetic, &l, error);
    if (!status && options->synthetic) status = mx_synthetic_plan(&w->config, &made, &mades, error);
    if (!status && options->synthetic) status = attach_made(&l, made, mades, error);
    if (!status)
        status = mx_cuda_transfer(l.item, l.count, to->memory, to->bytes, most, w->checkpoint, options, loaded, error);
    if (!status) status = find_wide(to, error);
    free(made);
    free(l.item);
    return status;
}

mx_status mx_cuda_weights_load_by(const mx_weights *w, const mx_cuda_load_options *options, uint64_t most,
                                  mx_cuda_weights **out, mx_cuda_loaded *loaded, mx_error *error) {
    const double begin = mx_seconds();
    mx_weights shape = {0};
    mx_cuda_weights *c = NULL;
    mx_cuda_loaded how = {0};
    *out = NULL;
    mx_status status = options->synthetic ? made_shape(&w->config, &shape, error) : check_made(w, error);
    const mx_weights *from = options->synthetic ? &shape : w;
    if (!status) status = create(from, &c, error);
    if (!status) status = fill(from, options, most, c, &how, error);
    free(shape.layer);
    if (status) {
        mx_cuda_weights_free(c);
        return status;
    }
    how.seconds = mx_seconds() - begin;
    if (loaded) *loaded = how;
    *out = c;
    return MX_OK;
}

mx_status mx_cuda_weights_load(const mx_weights *w, const mx_cuda_load_options *options, mx_cuda_weights **out,
                               mx_cuda_loaded *loaded, mx_error *error) {
    return mx_cuda_weights_load_by(w, options, 0, out, loaded, error);
}
