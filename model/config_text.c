#include "model/config_text.h"

static bool add_eos(mx_bytes *out, const mx_config *c) {
    bool ok = mx_bytes_add_string(out, "  \"eos_token_id\": [");
    for (int i = 0; i < c->eos_count; i++) ok = ok && mx_bytes_addf(out, "%s%d", i ? ", " : "", c->eos[i]);
    return ok && mx_bytes_add_string(out, "],\n");
}

static bool add_rope(mx_bytes *out, const mx_config *c) {
    if (!mx_bytes_addf(out, "  \"rope_theta\": %.17g,\n  \"rope_scaling\": {\n", c->rope_theta)) return false;
    if (!c->yarn) return mx_bytes_add_string(out, "    \"rope_type\": \"default\"\n  },\n");
    if (c->yarn_attention_factor > 0 &&
        !mx_bytes_addf(out, "    \"attention_factor\": %.17g,\n", c->yarn_attention_factor))
        return false;
    return mx_bytes_addf(out,
                         "    \"beta_fast\": %.17g,\n    \"beta_slow\": %.17g,\n    \"factor\": %.17g,\n"
                         "    \"original_max_position_embeddings\": %d,\n    \"rope_type\": \"yarn\",\n"
                         "    \"truncate\": %s\n  },\n",
                         c->yarn_beta_fast, c->yarn_beta_slow, c->yarn_factor, c->yarn_original_positions,
                         c->yarn_truncate ? "true" : "false");
}

static bool add_layer_types(mx_bytes *out, const mx_config *c) {
    bool ok = mx_bytes_add_string(out, "  \"layer_types\": [\n");
    for (int i = 0; i < c->layers; i++)
        ok = ok && mx_bytes_addf(out, "    \"%s_attention\"%s\n", c->sliding[i] ? "sliding" : "full",
                                 i + 1 < c->layers ? "," : "");
    return ok && mx_bytes_add_string(out, "  ],\n");
}

bool mx_config_text(mx_bytes *out, const mx_config *c, bool mxfp4) {
    bool ok = mx_bytes_add_string(out, "{\n  \"architectures\": [\n    \"GptOssForCausalLM\"\n  ],\n"
                                       "  \"model_type\": \"gpt_oss\",\n");
    ok = ok && mx_bytes_addf(out, "  \"attention_bias\": %s,\n", c->attention_bias ? "true" : "false");
    ok = ok && (!c->eos_count || add_eos(out, c));
    ok = ok && mx_bytes_addf(out,
                             "  \"experts_per_token\": %d,\n  \"head_dim\": %d,\n  \"hidden_act\": \"silu\",\n"
                             "  \"hidden_size\": %d,\n  \"intermediate_size\": %d,\n",
                             c->top_k, c->head_dim, c->hidden, c->intermediate);
    ok = ok && add_layer_types(out, c);
    ok = ok && mx_bytes_addf(out,
                             "  \"max_position_embeddings\": %d,\n  \"num_attention_heads\": %d,\n"
                             "  \"num_experts_per_tok\": %d,\n  \"num_hidden_layers\": %d,\n"
                             "  \"num_key_value_heads\": %d,\n  \"num_local_experts\": %d,\n",
                             c->max_positions, c->heads, c->top_k, c->layers, c->kv_heads, c->experts);
    if (mxfp4)
        ok =
            ok && mx_bytes_add_string(out, "  \"quantization_config\": {\n    \"modules_to_not_convert\": [\n"
                                           "      \"model.layers.*.self_attn\",\n      \"model.layers.*.mlp.router\",\n"
                                           "      \"model.embed_tokens\",\n      \"lm_head\"\n    ],\n"
                                           "    \"quant_method\": \"mxfp4\"\n  },\n");
    ok = ok && mx_bytes_addf(out, "  \"rms_norm_eps\": %.9g,\n", (double)c->rms_eps) && add_rope(out, c);
    if (c->window) ok = ok && mx_bytes_addf(out, "  \"sliding_window\": %d,\n", c->window);
    return ok && mx_bytes_addf(out,
                               "  \"swiglu_alpha\": %.9g,\n  \"swiglu_limit\": %.9g,\n  \"tie_word_embeddings\": %s,\n"
                               "  \"vocab_size\": %d\n}\n",
                               (double)c->swiglu_alpha, (double)c->swiglu_limit, c->tied_embeddings ? "true" : "false",
                               c->vocab);
}

bool mx_generation_text(mx_bytes *out, const mx_config *c) {
    bool ok = mx_bytes_addf(out, "{\n  \"do_sample\": %s,\n", c->temperature > 0 ? "true" : "false");
    ok = ok && (!c->eos_count || add_eos(out, c));
    if (c->temperature > 0)
        ok = ok && mx_bytes_addf(out, "  \"temperature\": %.9g,\n  \"top_k\": %d,\n  \"top_p\": %.9g,\n",
                                 (double)c->temperature, c->sample_top_k, (double)c->top_p);
    return ok && mx_bytes_add_string(out, "  \"transformers_version\": \"4.55.0\"\n}\n");
}
