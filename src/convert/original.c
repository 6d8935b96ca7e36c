/* OpenAI's original/: their names, q, k and v in one tensor, one file; their config.json and dtypes.json. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "convert/origin.h"

enum { PER_LAYER = 15 };

/* ---- texts --------------------------------------------------------------------------------------------------------
 */

static bool config_text(mx_bytes *out, const mx_config *c) {
    return mx_bytes_addf(
        out,
        "{\n  \"num_hidden_layers\": %d,\n  \"num_experts\": %d,\n  \"experts_per_token\": %d,\n"
        "  \"vocab_size\": %d,\n  \"hidden_size\": %d,\n  \"intermediate_size\": %d,\n"
        "  \"swiglu_limit\": %.9g,\n  \"head_dim\": %d,\n  \"num_attention_heads\": %d,\n"
        "  \"num_key_value_heads\": %d,\n  \"sliding_window\": %d,\n"
        "  \"initial_context_length\": %d,\n  \"rope_theta\": %.17g,\n"
        "  \"rope_scaling_factor\": %.17g,\n  \"rope_ntk_alpha\": %.17g,\n  \"rope_ntk_beta\": %.17g\n"
        "}\n",
        c->layers, c->experts, c->top_k, c->vocab, c->hidden, c->intermediate, (double)c->swiglu_limit, c->head_dim,
        c->heads, c->kv_heads, c->window ? c->window : 128, c->yarn ? c->yarn_original_positions : c->max_positions,
        c->rope_theta, c->yarn ? c->yarn_factor : 1, c->yarn ? c->yarn_beta_slow : 1, c->yarn ? c->yarn_beta_fast : 32);
}

static bool dtypes_text(mx_bytes *out, const mx_entry *entry, int count) {
    bool ok = mx_bytes_add_string(out, "{\n");
    for (int i = 0; i < count && ok; i++) {
        const char *dtype = entry[i].dtype;
        if (!strcmp(dtype, "U8")) dtype = strstr(entry[i].name, ".scales") ? "UE8" : "FP4";
        ok = mx_bytes_addf(out, "  \"%s\": \"%s\"%s\n", entry[i].name, dtype, i + 1 < count ? "," : "");
    }
    return ok && mx_bytes_add_string(out, "}\n");
}

/* ---- tensors ------------------------------------------------------------------------------------------------------
 */

typedef struct planner {
    mx_origin *o;
    mx_entry *entry;
    int count;
    mx_status status;
} planner;

static void put(planner *p, int layer, const char *as, const char *dtype, int dims, const int64_t *shape,
                mx_made made) {
    mx_entry *e = &p->entry[p->count++];
    *e = (mx_entry){.dims = dims, .made = made};
    if (layer < 0)
        snprintf(e->name, sizeof e->name, "%s", as);
    else
        snprintf(e->name, sizeof e->name, "block.%d.%s", layer, as);
    snprintf(e->dtype, sizeof e->dtype, "%s", dtype);
    memcpy(e->shape, shape, (size_t)dims * sizeof *shape);
}

static const mx_tensor *take(planner *p, int layer, const char *name, int dims, const int64_t *shape) {
    return mx_origin_take_bf16(p->o, &p->status, layer, name, dims, shape);
}

static void plain(planner *p, int layer, const char *name, const char *as, int dims, const int64_t *shape) {
    const mx_tensor *t = take(p, layer, name, dims, shape);
    if (t) put(p, layer, as, "BF16", dims, shape, mx_make_rows(t, mx_origin_more(p->o, t), NULL, MX_DTYPE_BF16));
}

static void qkv(planner *p, int layer, const char *part, const char *as, int dims) {
    const mx_config *c = &p->o->config;
    const int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim, h = c->hidden;
    const int64_t rows[] = {q, kv, kv};
    const mx_tensor *t[3];
    char name[48];
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "self_attn.%c_proj.%s", "qkv"[i], part);
        t[i] = take(p, layer, name, dims, (int64_t[]){rows[i], h});
        if (!t[i]) return;
        if (t[i]->dtype == t[0]->dtype) continue;
        p->status = mx_fail(p->o->error, MX_UNSUPPORTED, "%s: %s: is %s, but %s is %s", t[i]->file, t[i]->name,
                            t[i]->dtype_name, t[0]->name, t[0]->dtype_name);
        return;
    }
    put(p, layer, as, "BF16", dims, (int64_t[]){q + 2 * kv, h}, mx_make_rows(t[0], t[1], t[2], MX_DTYPE_BF16));
}

static void raw(planner *p, int layer, const char *name, const char *as, int dims, const int64_t *shape) {
    const mx_tensor *t = mx_origin_take(p->o, &p->status, layer, name, dims, shape);
    if (!t) return;
    if (t->dtype == MX_DTYPE_U8 || t->dtype == MX_DTYPE_F8_E8M0)
        put(p, layer, as, "U8", dims, shape, mx_make_rows(t, NULL, NULL, t->dtype));
    else
        p->status =
            mx_fail(p->o->error, MX_INVALID_FILE, "%s: %s: is %s, expected U8", t->file, t->name, t->dtype_name);
}

static void layer_tensors(planner *p, int l) {
    const mx_config *c = &p->o->config;
    const int64_t h = c->hidden, f = c->intermediate, e = c->experts, q = (int64_t)c->heads * c->head_dim;
    plain(p, l, "input_layernorm.weight", "attn.norm.scale", 1, &h);
    qkv(p, l, "weight", "attn.qkv.weight", 2);
    qkv(p, l, "bias", "attn.qkv.bias", 1);
    plain(p, l, "self_attn.sinks", "attn.sinks", 1, (int64_t[]){c->heads});
    plain(p, l, "self_attn.o_proj.weight", "attn.out.weight", 2, (int64_t[]){h, q});
    plain(p, l, "self_attn.o_proj.bias", "attn.out.bias", 1, &h);
    plain(p, l, "post_attention_layernorm.weight", "mlp.norm.scale", 1, &h);
    plain(p, l, "mlp.router.weight", "mlp.gate.weight", 2, (int64_t[]){e, h});
    plain(p, l, "mlp.router.bias", "mlp.gate.bias", 1, &e);
    raw(p, l, "mlp.experts.gate_up_proj_blocks", "mlp.mlp1_weight.blocks", 4, (int64_t[]){e, 2 * f, h / 32, 16});
    raw(p, l, "mlp.experts.gate_up_proj_scales", "mlp.mlp1_weight.scales", 3, (int64_t[]){e, 2 * f, h / 32});
    plain(p, l, "mlp.experts.gate_up_proj_bias", "mlp.mlp1_bias", 2, (int64_t[]){e, 2 * f});
    raw(p, l, "mlp.experts.down_proj_blocks", "mlp.mlp2_weight.blocks", 4, (int64_t[]){e, h, f / 32, 16});
    raw(p, l, "mlp.experts.down_proj_scales", "mlp.mlp2_weight.scales", 3, (int64_t[]){e, h, f / 32});
    plain(p, l, "mlp.experts.down_proj_bias", "mlp.mlp2_bias", 2, (int64_t[]){e, h});
}

static bool put_texts(const planner *p, mx_output *out) {
    mx_bytes text = {0};
    bool ok = mx_put_safetensors(out, "model.safetensors", p->entry, p->count, NULL) &&
              config_text(&text, &p->o->config) && mx_output_add_text(out, "config.json", text.data, text.size);
    mx_bytes_clear(&text);
    ok = ok && dtypes_text(&text, p->entry, p->count) && mx_output_add_text(out, "dtypes.json", text.data, text.size);
    mx_bytes_free(&text);
    return ok;
}

mx_status mx_original_plan(mx_origin *o, mx_output *out) {
    const mx_config *c = &o->config;
    planner p = {.o = o};
    int file;
    p.entry = calloc((size_t)c->layers * PER_LAYER + 3, sizeof *p.entry);
    if (!p.entry) return mx_origin_no_memory(o);
    plain(&p, -1, "model.embed_tokens.weight", "embedding.weight", 2, (int64_t[]){c->vocab, c->hidden});
    for (int i = 0; i < c->layers && !p.status; i++) layer_tensors(&p, i);
    plain(&p, -1, "model.norm.weight", "norm.scale", 1, (int64_t[]){c->hidden});
    plain(&p, -1, "lm_head.weight", "unembedding.weight", 2, (int64_t[]){c->vocab, c->hidden});
    if (!p.status && !put_texts(&p, out)) p.status = mx_origin_no_memory(o);
    free(p.entry);
    mx_gguf_text record = {0};
    if (!p.status) p.status = mx_put_sidecar(o, out, &record, &file);
    mx_gguf_text_free(&record);
    return p.status;
}
