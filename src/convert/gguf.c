/* GGUF as llama.cpp's converter writes it (conversion/gpt_oss.py): its keys, its names, vectors and the router in F32,
 * gate and up apart, MXFP4 in ggml's blocks; other matrices stay in the type that they have. */
#include <stdio.h>
#include <string.h>

#include "convert/origin.h"

enum { FILE_TYPE_F32 = 0, FILE_TYPE_F16 = 1, FILE_TYPE_Q8_0 = 7, FILE_TYPE_BF16 = 32, FILE_TYPE_MXFP4_MOE = 38 };

/* ---- keys ---------------------------------------------------------------------------------------------------------
 */

#define OSS(name) "gpt-oss." name

static void put_config(mx_gguf_text *g, const mx_config *c) {
    mx_gguf_put_u32(g, OSS("block_count"), (uint32_t)c->layers);
    mx_gguf_put_u32(g, OSS("context_length"), (uint32_t)c->max_positions);
    mx_gguf_put_u32(g, OSS("embedding_length"), (uint32_t)c->hidden);
    mx_gguf_put_u32(g, OSS("feed_forward_length"), (uint32_t)c->intermediate);
    mx_gguf_put_u32(g, OSS("attention.head_count"), (uint32_t)c->heads);
    mx_gguf_put_u32(g, OSS("attention.head_count_kv"), (uint32_t)c->kv_heads);
    mx_gguf_put_f32(g, OSS("rope.freq_base"), (float)c->rope_theta);
    mx_gguf_put_f32(g, OSS("attention.layer_norm_rms_epsilon"), c->rms_eps);
    mx_gguf_put_u32(g, OSS("expert_count"), (uint32_t)c->experts);
    mx_gguf_put_u32(g, OSS("expert_used_count"), (uint32_t)c->top_k);
    mx_gguf_put_u32(g, OSS("attention.key_length"), (uint32_t)c->head_dim);
    mx_gguf_put_u32(g, OSS("attention.value_length"), (uint32_t)c->head_dim);
    mx_gguf_put_u32(g, OSS("vocab_size"), (uint32_t)c->vocab);
    if (c->window) mx_gguf_put_u32(g, OSS("attention.sliding_window"), (uint32_t)c->window);
    mx_gguf_put_u32(g, OSS("expert_feed_forward_length"), (uint32_t)c->intermediate);
    if (!c->yarn) return;
    mx_gguf_put_string(g, OSS("rope.scaling.type"), "yarn");
    mx_gguf_put_f32(g, OSS("rope.scaling.factor"), (float)c->yarn_factor);
    mx_gguf_put_u32(g, OSS("rope.scaling.original_context_length"), (uint32_t)c->yarn_original_positions);
    if (c->yarn_beta_fast != 32) mx_gguf_put_f32(g, OSS("rope.scaling.yarn_beta_fast"), (float)c->yarn_beta_fast);
    if (c->yarn_beta_slow != 1) mx_gguf_put_f32(g, OSS("rope.scaling.yarn_beta_slow"), (float)c->yarn_beta_slow);
}

/* llama.cpp's number for what most of the bytes are. */
static uint32_t file_type(const mx_origin *o) {
    const mx_tensor *q = mx_checkpoint_find(o->ck, "model.layers.0.self_attn.q_proj.weight");
    if (o->mxfp4) return FILE_TYPE_MXFP4_MOE;
    if (q && q->dtype == MX_DTYPE_F16) return FILE_TYPE_F16;
    if (q && q->dtype == MX_DTYPE_F32) return FILE_TYPE_F32;
    return q && q->dtype == MX_DTYPE_Q8_0 ? FILE_TYPE_Q8_0 : FILE_TYPE_BF16;
}

/* The file's name without its end. */
static void put_name(mx_gguf_text *g, const mx_output *out) {
    char name[MX_PATH];
    const char *slash = strrchr(out->path, '/');
    snprintf(name, sizeof name, "%s", slash ? slash + 1 : out->path);
    const size_t n = strlen(name);
    if (n > 5 && mx_ends_with(name, ".gguf")) name[n - 5] = 0;
    mx_gguf_put_string(g, "general.name", name);
}

/* ---- tensors ------------------------------------------------------------------------------------------------------
 */

typedef struct planner {
    mx_origin *o;
    mx_output *out;
    mx_gguf_text text;
    mx_status status;
} planner;

static bool type_of(mx_dtype dtype, uint32_t *out) {
    switch (dtype) {
    case MX_DTYPE_F32:
        *out = MX_GGUF_TENSOR_F32;
        return true;
    case MX_DTYPE_F16:
        *out = MX_GGUF_TENSOR_F16;
        return true;
    case MX_DTYPE_BF16:
        *out = MX_GGUF_TENSOR_BF16;
        return true;
    case MX_DTYPE_Q8_0:
        *out = MX_GGUF_TENSOR_Q8_0;
        return true;
    default:
        return false;
    }
}

/* One more tensor of the file. Places in the file follow from those of all before, as GGUF wants them. */
static void put(planner *p, int layer, const char *name, uint32_t type, int dims, const int64_t *shape, mx_made made) {
    char full[100];
    if (p->status) return;
    if (layer < 0)
        snprintf(full, sizeof full, "%s", name);
    else
        snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    mx_gguf_put_tensor(&p->text, full, type, dims, shape, (uint64_t)made.slices * made.slice_bytes);
    made.file = 0;
    if (!mx_output_add(p->out, &made, MX_GGUF_ALIGNMENT)) p->status = mx_origin_no_memory(p->o);
}

static void wrong_type(planner *p, const mx_tensor *t) {
    if (!p->status)
        p->status = mx_fail(p->o->error, MX_UNSUPPORTED, "%s: %s: is %s, expected BF16, F16 or F32", t->file, t->name,
                            t->dtype_name);
}

/* A vector or the router: F32. */
static void single(planner *p, int layer, const char *name, const char *as, int dims, const int64_t *shape) {
    const mx_tensor *t = mx_origin_take(p->o, &p->status, layer, name, dims, shape);
    if (!t) return;
    if (t->dtype == MX_DTYPE_BF16 || t->dtype == MX_DTYPE_F16 || t->dtype == MX_DTYPE_F32 ||
        (t->dtype == MX_DTYPE_Q8_0 && dims == 2))
        put(p, layer, as, MX_GGUF_TENSOR_F32, dims, shape, mx_make_rows(t, NULL, NULL, MX_DTYPE_F32));
    else
        wrong_type(p, t);
}

/* A matrix in the type that it has. */
static void matrix(planner *p, int layer, const char *name, const char *as, int64_t rows, int64_t cols) {
    const int64_t shape[] = {rows, cols};
    uint32_t type;
    const mx_tensor *t = mx_origin_take(p->o, &p->status, layer, name, 2, shape);
    if (!t) return;
    if (type_of(t->dtype, &type))
        put(p, layer, as, type, 2, shape, mx_make_rows(t, mx_origin_more(p->o, t), NULL, t->dtype));
    else
        wrong_type(p, t);
}

/* The parts of one expert matrix: `names` [parts]. */
static void experts(planner *p, int layer, const char *name, const char *const *names, int parts, int64_t rows,
                    int64_t cols) {
    const int64_t e = p->o->config.experts;
    char full[80], as[80];
    uint32_t type = MX_GGUF_TENSOR_MXFP4;
    const mx_tensor *scales = NULL, *t;
    snprintf(full, sizeof full, "mlp.experts.%s%s", name, p->o->mxfp4 ? "_blocks" : ".weight");
    t = mx_origin_take(p->o, &p->status, layer, full, p->o->mxfp4 ? 4 : 3,
                       p->o->mxfp4 ? (int64_t[]){e, rows, cols / 32, 16} : (int64_t[]){e, rows, cols});
    snprintf(full, sizeof full, "mlp.experts.%s_scales", name);
    if (p->o->mxfp4) scales = mx_origin_take(p->o, &p->status, layer, full, 3, (int64_t[]){e, rows, cols / 32});
    if (p->status) return;
    if (p->o->mxfp4 ? t->dtype != MX_DTYPE_U8 || (scales->dtype != MX_DTYPE_U8 && scales->dtype != MX_DTYPE_F8_E8M0)
                    : !type_of(t->dtype, &type)) {
        wrong_type(p, t);
        return;
    }
    for (int i = 0; i < parts; i++) {
        snprintf(as, sizeof as, "%s.weight", names[i]);
        put(p, layer, as, type, 3, (int64_t[]){e, rows / parts, cols},
            scales ? mx_make_mxfp4(t, scales, i, parts) : mx_make_every(t, i, parts, t->dtype));
    }
    snprintf(full, sizeof full, "mlp.experts.%s_bias", name);
    const mx_tensor *bias = mx_origin_take(p->o, &p->status, layer, full, 2, (int64_t[]){e, rows});
    if (!bias) return;
    if (bias->dtype != MX_DTYPE_BF16 && bias->dtype != MX_DTYPE_F16 && bias->dtype != MX_DTYPE_F32) {
        wrong_type(p, bias);
        return;
    }
    for (int i = 0; i < parts; i++) {
        snprintf(as, sizeof as, "%s.bias", names[i]);
        put(p, layer, as, MX_GGUF_TENSOR_F32, 2, (int64_t[]){e, rows / parts},
            mx_make_every(bias, i, parts, MX_DTYPE_F32));
    }
}

static void layer_tensors(planner *p, int l) {
    const mx_config *c = &p->o->config;
    const int64_t h = c->hidden, q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    static const char *const gate_up[] = {"ffn_gate_exps", "ffn_up_exps"}, *const down[] = {"ffn_down_exps"};
    single(p, l, "input_layernorm.weight", "attn_norm.weight", 1, &h);
    single(p, l, "post_attention_layernorm.weight", "post_attention_norm.weight", 1, &h);
    matrix(p, l, "self_attn.q_proj.weight", "attn_q.weight", q, h);
    single(p, l, "self_attn.q_proj.bias", "attn_q.bias", 1, &q);
    matrix(p, l, "self_attn.k_proj.weight", "attn_k.weight", kv, h);
    single(p, l, "self_attn.k_proj.bias", "attn_k.bias", 1, &kv);
    matrix(p, l, "self_attn.v_proj.weight", "attn_v.weight", kv, h);
    single(p, l, "self_attn.v_proj.bias", "attn_v.bias", 1, &kv);
    matrix(p, l, "self_attn.o_proj.weight", "attn_output.weight", h, q);
    single(p, l, "self_attn.o_proj.bias", "attn_output.bias", 1, &h);
    single(p, l, "self_attn.sinks", "attn_sinks.weight", 1, (int64_t[]){c->heads});
    single(p, l, "mlp.router.weight", "ffn_gate_inp.weight", 2, (int64_t[]){c->experts, h});
    single(p, l, "mlp.router.bias", "ffn_gate_inp.bias", 1, (int64_t[]){c->experts});
    experts(p, l, "gate_up_proj", gate_up, 2, 2 * (int64_t)c->intermediate, h);
    experts(p, l, "down_proj", down, 1, h, c->intermediate);
}

/* The size of the beginning moves the tensors: it is known when all are described. */
static mx_status place_tensors(planner *p) {
    mx_output_file *f = &p->out->file[0];
    if (!mx_gguf_text_end(&p->text, &f->head)) return mx_origin_no_memory(p->o);
    for (int i = 0; i < p->out->mades; i++) p->out->made[i].at += f->head.size;
    f->size += f->head.size;
    f->size = (f->size + MX_GGUF_ALIGNMENT - 1) / MX_GGUF_ALIGNMENT * MX_GGUF_ALIGNMENT;
    return MX_OK;
}

mx_status mx_gguf_plan(mx_origin *o, mx_output *out) {
    planner p = {.o = o, .out = out};
    const mx_config *c = &o->config;
    if (mx_output_add_file(out, "") < 0) return mx_origin_no_memory(o);
    mx_gguf_put_string(&p.text, "general.architecture", "gpt-oss");
    mx_gguf_put_string(&p.text, "general.type", "model");
    put_name(&p.text, out);
    put_config(&p.text, c);
    mx_gguf_put_u32(&p.text, "general.file_type", file_type(o));
    mx_gguf_put_u32(&p.text, "general.quantization_version", 2);
    p.status = mx_gguf_put_vocabulary(o, &p.text);
    mx_record_put(&o->record, &p.text);
    matrix(&p, -1, "model.embed_tokens.weight", "token_embd.weight", c->vocab, c->hidden);
    single(&p, -1, "model.norm.weight", "output_norm.weight", 1, (int64_t[]){c->hidden});
    if (!c->tied_embeddings) matrix(&p, -1, "lm_head.weight", "output.weight", c->vocab, c->hidden);
    for (int i = 0; i < c->layers && !p.status; i++) layer_tensors(&p, i);
    if (!p.status) p.status = place_tensors(&p);
    mx_gguf_text_free(&p.text);
    return p.status;
}
