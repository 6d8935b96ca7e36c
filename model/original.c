/* OpenAI's original/ layout: other names, and q, k and v in one tensor. Nothing is copied: the parts of qkv are rows of
 * it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/checkpoint_private.h"
#include "model/show.h"

static const struct {
    const char *original, *name; /* behind "block.N." and "model.layers.N." */
} in_layer[] =
    {
        {"attn.norm.scale", "input_layernorm.weight"},
        {"attn.sinks", "self_attn.sinks"},
        {"attn.out.weight", "self_attn.o_proj.weight"},
        {"attn.out.bias", "self_attn.o_proj.bias"},
        {"mlp.norm.scale", "post_attention_layernorm.weight"},
        {"mlp.gate.weight", "mlp.router.weight"},
        {"mlp.gate.bias", "mlp.router.bias"},
        {"mlp.mlp1_weight.blocks", "mlp.experts.gate_up_proj_blocks"},
        {"mlp.mlp1_weight.scales", "mlp.experts.gate_up_proj_scales"},
        {"mlp.mlp1_bias", "mlp.experts.gate_up_proj_bias"},
        {"mlp.mlp2_weight.blocks", "mlp.experts.down_proj_blocks"},
        {"mlp.mlp2_weight.scales", "mlp.experts.down_proj_scales"},
        {"mlp.mlp2_bias", "mlp.experts.down_proj_bias"},
},
  outside[] = {
      {"embedding.weight", "model.embed_tokens.weight"},
      {"norm.scale", "model.norm.weight"},
      {"unembedding.weight", "lm_head.weight"},
};

/* `t` under its Hugging Face name, which replaces the old one; unchanged where it has none. */
static bool rename_tensor(mx_checkpoint *ck, mx_tensor *t) {
    char name[MX_TENSOR_NAME] = "";
    int layer, end = 0;
    if (sscanf(t->name, "block.%6d.%n", &layer, &end) == 1 && end) {
        for (size_t i = 0; i < sizeof in_layer / sizeof *in_layer; i++)
            if (!strcmp(t->name + end, in_layer[i].original))
                snprintf(name, sizeof name, "model.layers.%d.%s", layer, in_layer[i].name);
    } else {
        for (size_t i = 0; i < sizeof outside / sizeof *outside; i++)
            if (!strcmp(t->name, outside[i].original)) snprintf(name, sizeof name, "%s", outside[i].name);
    }
    if (!*name) return true;
    char *own = mx_checkpoint_alloc(ck, strlen(name) + 1);
    if (own) t->name = memcpy(own, name, strlen(name) + 1);
    return own != NULL;
}

/* Rows of attn.qkv.weight or .bias, tensor `index`: q, k, v, in place. It becomes q itself. */
static mx_status split_qkv(mx_checkpoint *ck, int index, int layer, const char *part, const mx_config *c,
                           mx_error *error) {
    const mx_tensor whole = ck->tensor[index];
    const int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    const int64_t rows[] = {q, kv, kv};
    static const char letters[] = "qkv";
    if (whole.dims < 1 || whole.shape[0] != q + 2 * kv || !whole.bytes) {
        char shape[120];
        return mx_fail(error, MX_INVALID_FILE, "%s: %s: is %s %s, expected %lld rows: those of q, k and v", whole.file,
                       whole.name, whole.dtype_name, mx_show_shape(shape, sizeof shape, whole.shape, whole.dims),
                       (long long)(q + 2 * kv));
    }
    const uint64_t row_bytes = mx_tensor_slice_bytes(&whole);
    const uint8_t *data = whole.data;
    for (int i = 0; i < 3; i++) {
        mx_tensor *t =
            mx_checkpoint_add(ck, whole.file, "model.layers.%d.self_attn.%c_proj.%s", layer, letters[i], part);
        if (!t) return mx_fail(error, MX_NO_MEMORY, "%s: no memory for its tensors", whole.file);
        const char *name = t->name;
        *t = whole;
        t->name = name;
        t->data = data;
        t->shape[0] = rows[i];
        t->bytes = (uint64_t)rows[i] * row_bytes;
        data += t->bytes;
    }
    ck->tensor[index] = ck->tensor[--ck->count];
    return MX_OK;
}

mx_status mx_original_read(mx_checkpoint *ck, const char *path, mx_error *error) {
    mx_config config;
    mx_status status = mx_config_read(path, &config, error);
    for (int i = ck->count - 1; i >= 0 && !status; i--) {
        int layer, end = 0;
        const char *name = ck->tensor[i].name;
        if (sscanf(name, "block.%6d.attn.qkv.%n", &layer, &end) == 1 && end &&
            (!strcmp(name + end, "weight") || !strcmp(name + end, "bias")))
            status = split_qkv(ck, i, layer, name + end, &config, error);
        else if (!rename_tensor(ck, &ck->tensor[i]))
            status = mx_fail(error, MX_NO_MEMORY, "%s: no memory for its tensors", path);
    }
    return status;
}
