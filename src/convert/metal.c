/* OpenAI's model.bin, as gpt_oss/metal/scripts/create-local-model.py makes it. What it has no room for, rows of the
 * vocabulary without a token, goes into MX_RECORD_FILE beside it. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "convert/origin.h"

enum { PAGE = 16384, LINE = 16 };

static const uint8_t model_uuid[16] = {0xdf, 0x52, 0xdc, 0x86, 0x17, 0x89, 0x4e, 0xd0,
                                       0xa2, 0x95, 0x66, 0xf1, 0x05, 0x08, 0x14, 0x5b};
static const uint8_t layout_uuid[16] = {0x22, 0x91, 0x77, 0xa8, 0x57, 0x75, 0x42, 0x68,
                                        0xbf, 0xd8, 0xd5, 0x88, 0xb3, 0x51, 0xc5, 0x6d};

/* ---- header -------------------------------------------------------------------------------------------------------
 */

static bool add_u32(mx_bytes *out, uint32_t v) {
    return mx_bytes_add(out, &v, 4);
}

static bool add_f32(mx_bytes *out, double v) {
    const float f = (float)v;
    return mx_bytes_add(out, &f, 4);
}

/* The pair of dimensions that turns beta times over the original context. */
static double pair_of(const mx_config *c, double beta) {
    const double pi = 3.14159265358979323846;
    return c->head_dim / 2.0 * log(c->yarn_original_positions / (beta * 2 * pi)) / log(c->rope_theta);
}

static bool add_rope(mx_bytes *out, const mx_config *c) {
    if (!c->yarn)
        return add_f32(out, c->rope_theta) && add_f32(out, 1) && add_f32(out, 0) && add_f32(out, 1) && add_f32(out, 1);
    const double low = pair_of(c, c->yarn_beta_fast), high = pair_of(c, c->yarn_beta_slow);
    return add_f32(out, c->rope_theta) && add_f32(out, 1 / c->yarn_factor) && add_f32(out, -low / (high - low)) &&
           add_f32(out, 1 / (high - low)) &&
           add_f32(out, c->yarn_attention_factor > 0 ? c->yarn_attention_factor : 0.1 * log(c->yarn_factor) + 1);
}

static bool add_header(mx_bytes *out, const mx_config *c) {
    return mx_bytes_add(out, "GPT-OSS v1.0\0\0\0", 16) && mx_bytes_add(out, model_uuid, 16) &&
           add_u32(out, (uint32_t)c->max_positions) && add_u32(out, (uint32_t)c->layers) &&
           add_u32(out, (uint32_t)c->experts) && add_u32(out, (uint32_t)c->top_k) &&
           add_u32(out, (uint32_t)c->hidden) && add_u32(out, (uint32_t)c->intermediate) &&
           add_f32(out, (double)c->swiglu_limit) && add_u32(out, (uint32_t)c->head_dim) &&
           add_u32(out, (uint32_t)c->heads) && add_u32(out, (uint32_t)c->kv_heads) &&
           add_u32(out, (uint32_t)(c->window ? c->window : 128)) && add_rope(out, c) &&
           add_f32(out, (double)c->rms_eps) && mx_bytes_add(out, layout_uuid, 16);
}

/* ---- tensors ------------------------------------------------------------------------------------------------------
 */

typedef struct planner {
    mx_origin *o;
    mx_output *out;
    mx_status status;
} planner;

static void put(planner *p, mx_made made, uint64_t align) {
    if (!p->status && !mx_output_add(p->out, &made, align)) p->status = mx_origin_no_memory(p->o);
}

static const mx_tensor *take(planner *p, int layer, const char *name, int dims, const int64_t *shape) {
    return mx_origin_take_bf16(p->o, &p->status, layer, name, dims, shape);
}

static void plain(planner *p, int layer, const char *name, int dims, const int64_t *shape, uint64_t align) {
    const mx_tensor *t = take(p, layer, name, dims, shape);
    if (t) put(p, mx_make_rows(t, NULL, NULL, MX_DTYPE_BF16), align);
}

static void qkv(planner *p, int layer, const char *part, int dims, uint64_t align) {
    const mx_config *c = &p->o->config;
    const int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim, h = c->hidden;
    const int64_t rows[] = {q, kv, kv};
    const mx_tensor *t[3];
    char name[48];
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "self_attn.%c_proj.%s", "qkv"[i], part);
        t[i] = take(p, layer, name, dims, (int64_t[]){rows[i], h});
        if (!t[i]) return;
    }
    mx_made made = mx_make_qkv(t[0], t[1], t[2]);
    made.scratch = 4 * (uint64_t)made.cols;
    put(p, made, align);
}

static void dense(planner *p, int l) {
    const mx_config *c = &p->o->config;
    const int64_t h = c->hidden, e = c->experts, q = (int64_t)c->heads * c->head_dim;
    plain(p, l, "input_layernorm.weight", 1, &h, LINE);
    qkv(p, l, "weight", 2, LINE);
    qkv(p, l, "bias", 1, 1);
    plain(p, l, "self_attn.sinks", 1, (int64_t[]){c->heads}, LINE);
    plain(p, l, "self_attn.o_proj.weight", 2, (int64_t[]){h, q}, LINE);
    plain(p, l, "self_attn.o_proj.bias", 1, &h, 1);
    plain(p, l, "post_attention_layernorm.weight", 1, &h, LINE);
    plain(p, l, "mlp.router.weight", 2, (int64_t[]){e, h}, LINE);
    plain(p, l, "mlp.router.bias", 1, &e, 1);
}

/* Expert for expert, all six tensors of one before the next one's. */
static void experts(planner *p, int l) {
    const mx_config *c = &p->o->config;
    const int64_t e = c->experts, up = 2 * (int64_t)c->intermediate, h = c->hidden, f = c->intermediate;
    static const char *const names[] = {"gate_up_proj_blocks", "gate_up_proj_scales", "gate_up_proj_bias",
                                        "down_proj_blocks",    "down_proj_scales",    "down_proj_bias"};
    const int64_t shapes[6][4] = {{e, up, h / 32, 16}, {e, up, h / 32}, {e, up},
                                  {e, h, f / 32, 16},  {e, h, f / 32},  {e, h}};
    static const int dims[] = {4, 3, 2, 4, 3, 2};
    mx_made made[6];
    uint64_t stride = 0;
    char name[60];
    for (int i = 0; i < 6 && !p->status; i++) {
        snprintf(name, sizeof name, "mlp.experts.%s", names[i]);
        const mx_tensor *t = i % 3 == 2 ? take(p, l, name, dims[i], shapes[i])
                                        : mx_origin_take(p->o, &p->status, l, name, dims[i], shapes[i]);
        if (!t) return;
        made[i] = i % 3 == 1   ? mx_make_raised(t)
                  : i % 3 == 0 ? mx_make_rows(t, NULL, NULL, t->dtype)
                               : mx_make_rows(t, NULL, NULL, MX_DTYPE_BF16);
        made[i].at = stride;
        stride += (made[i].slice_bytes + LINE - 1) / LINE * LINE;
    }
    const uint64_t begin = (p->out->file[0].size + PAGE - 1) / PAGE * PAGE;
    for (int i = 0; i < 6 && !p->status; i++) {
        made[i].stride = stride;
        if (!mx_output_place(p->out, &made[i], begin + made[i].at)) p->status = mx_origin_no_memory(p->o);
    }
}

/* ---- vocabulary ---------------------------------------------------------------------------------------------------
 */

/* The embedding or lm_head: rows before `rows`, and in cut[] those behind. */
static void vocabulary_rows(planner *p, int which, const char *name, int rows, uint64_t align) {
    const mx_config *c = &p->o->config;
    mx_tensor *front = &p->o->cut[which], *tail = &p->o->cut[2 + which];
    const mx_tensor *t = take(p, -1, name, 2, (int64_t[]){c->vocab, c->hidden});
    if (!t) return;
    if (t->recipe) {
        p->status = mx_fail(p->o->error, MX_UNSUPPORTED, "%s: %s: is made of parts", t->file, t->name);
        return;
    }
    *front = *tail = *t;
    front->shape[0] = rows;
    front->bytes = (uint64_t)rows * t->slice_stride;
    tail->shape[0] = c->vocab - rows;
    tail->bytes = t->bytes - front->bytes;
    tail->data = t->data + front->bytes;
    put(p, mx_make_rows(front, NULL, NULL, MX_DTYPE_BF16), align);
}

/* Beside the model: what it carries, and the rows that it has no place for. */
static void sidecar(planner *p, int rows) {
    static const char *const names[] = {"model.embed_tokens.weight", "lm_head.weight"};
    const mx_config *c = &p->o->config;
    const int64_t shape[] = {c->vocab - rows, c->hidden};
    mx_gguf_text text = {0};
    int file;
    for (int i = 0; i < 2 && shape[0]; i++)
        mx_gguf_put_tensor(&text, names[i], MX_GGUF_TENSOR_BF16, 2, shape, (uint64_t)(shape[0] * shape[1]) * 2);
    if (!p->status) p->status = mx_put_sidecar(p->o, p->out, &text, &file);
    for (int i = 0; i < 2 && shape[0] && !p->status; i++) {
        mx_made made = mx_make_rows(&p->o->cut[2 + i], NULL, NULL, MX_DTYPE_BF16);
        made.file = file;
        put(p, made, MX_GGUF_ALIGNMENT);
    }
    mx_gguf_text_free(&text);
    if (!p->status && shape[0])
        mx_log(MX_LOG_INFO,
               "%s: model.bin has %d of the %d rows of the vocabulary, those with a token; the others are "
               "in " MX_RECORD_FILE " beside it",
               p->out->path, rows, c->vocab);
}

mx_status mx_metal_plan(mx_origin *o, mx_output *out) {
    const mx_config *c = &o->config;
    planner p = {.o = o, .out = out};
    int rows = 0;
    if (mx_output_add_file(out, "model.bin") != 0) return mx_origin_no_memory(o);
    if (!add_header(&out->file[0].head, c)) return mx_origin_no_memory(o);
    p.status = mx_metal_put_vocabulary(o, &out->file[0].head, &rows);
    vocabulary_rows(&p, 0, "model.embed_tokens.weight", rows, PAGE);
    for (int i = 0; i < c->layers && !p.status; i++) dense(&p, i);
    plain(&p, -1, "model.norm.weight", 1, (int64_t[]){c->hidden}, LINE);
    vocabulary_rows(&p, 1, "lm_head.weight", rows, LINE);
    for (int i = 0; i < c->layers && !p.status; i++) experts(&p, i);
    if (!p.status) sidecar(&p, rows);
    return p.status;
}
