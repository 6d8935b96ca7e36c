#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/config_private.h"
#include "model/gguf_layout.h"
#include "model/show.h"

/* Keys of one file while they are read. The first failure is kept; what follows it does nothing. */
typedef struct keys {
    const mx_gguf *g;
    mx_error *error;
    mx_status status;
} keys;

static const mx_gguf_value *find(const keys *k, const char *key) {
    return mx_gguf_find(k->g, key);
}

/* A value as a message shows it, on one line whatever it holds. */
static const char *show(char *out, size_t size, const mx_gguf_value *v) {
    double number;
    int64_t whole;
    if (!v) return "missing";
    if (v->kind == MX_GGUF_STRING && mx_is_one_line(v->as.string.text, v->as.string.size))
        snprintf(out, size, "\"%.*s\"", v->as.string.size > 60 ? 60 : (int)v->as.string.size, v->as.string.text);
    else if (v->kind == MX_GGUF_BOOL)
        snprintf(out, size, "%s", v->as.u ? "true" : "false");
    else if (mx_gguf_int64(v, INT64_MIN, INT64_MAX, &whole))
        snprintf(out, size, "%lld", (long long)whole);
    else if (mx_gguf_double(v, &number))
        snprintf(out, size, "%g", number);
    else
        snprintf(out, size, "%s",
                 v->kind == MX_GGUF_ARRAY    ? "an array"
                 : v->kind == MX_GGUF_STRING ? "a text of several lines"
                                             : "no number");
    return out;
}

static void refuse_as(keys *k, mx_status status, const char *key, const char *expected) {
    char found[80];
    if (!k->status)
        k->status = mx_fail(k->error, status, "%s: %s is %s, expected %s", k->g->file.path, key,
                            show(found, sizeof found, find(k, key)), expected);
}

static void refuse(keys *k, const char *key, const char *expected) {
    refuse_as(k, MX_INVALID_FILE, key, expected);
}

/* `fallback` below `low`: the key is required. */
static int whole(keys *k, const char *key, int64_t low, int64_t high, int64_t fallback) {
    const mx_gguf_value *v = find(k, key);
    int64_t x = 0;
    char expected[80];
    if (!v && fallback >= low) return (int)fallback;
    if (v && mx_gguf_int64(v, low, high, &x)) return (int)x;
    snprintf(expected, sizeof expected, "a whole number from %lld to %lld", (long long)low, (long long)high);
    refuse(k, key, expected);
    return (int)low;
}

/* `fallback` NAN: the key is required. */
static double real(keys *k, const char *key, double low, double high, double fallback) {
    const mx_gguf_value *v = find(k, key);
    double x;
    char expected[80];
    if (!v && !isnan(fallback)) return fallback;
    if (v && mx_gguf_double(v, &x) && x >= low && x <= high) return x;
    snprintf(expected, sizeof expected, "a number from %g to %g", low, high);
    refuse(k, key, expected);
    return low;
}

mx_status mx_gguf_check_architecture(const mx_gguf *g, mx_error *error) {
    const mx_gguf_value *a = mx_gguf_find(g, "general.architecture");
    if (mx_gguf_is_string(a, "gpt-oss")) return MX_OK;
    if (mx_gguf_is_string(a, "gptoss"))
        return mx_fail(
            error, MX_UNSUPPORTED,
            "%s: general.architecture is \"gptoss\": Ollama's own dialect of GGUF, which mxrun does not read; "
            "take the model from its publisher (mxrun pull gpt-oss-20b) or as ggml-org's GGUF",
            g->file.path);
    if (a && a->kind == MX_GGUF_STRING)
        return mx_fail(error, MX_UNSUPPORTED, "%s: general.architecture is \"%.*s\": mxrun runs \"gpt-oss\"",
                       g->file.path, a->as.string.size > 60 ? 60 : (int)a->as.string.size, a->as.string.text);
    return mx_fail(error, MX_INVALID_FILE, "%s: general.architecture is %s, expected \"gpt-oss\"", g->file.path,
                   a ? "no text" : "missing");
}

static void read_sizes(keys *k, mx_config *c) {
    c->layers = whole(k, "gpt-oss.block_count", 1, MX_MAX_LAYERS, 0);
    c->hidden = whole(k, "gpt-oss.embedding_length", 32, 1 << 17, 0);
    c->intermediate = whole(k,
                            find(k, "gpt-oss.expert_feed_forward_length") ? "gpt-oss.expert_feed_forward_length"
                                                                          : "gpt-oss.feed_forward_length",
                            32, 1 << 17, 0);
    c->heads = whole(k, "gpt-oss.attention.head_count", 1, 1 << 12, 0);
    c->kv_heads = whole(k, "gpt-oss.attention.head_count_kv", 1, 1 << 12, c->heads);
    c->head_dim = whole(k, "gpt-oss.attention.key_length", 2, 1 << 10, c->hidden / c->heads);
    c->experts = whole(k, "gpt-oss.expert_count", 1, 1 << 14, 0);
    c->top_k = whole(k, "gpt-oss.expert_used_count", 1, 1 << 14, 0);
    c->max_positions = whole(k, "gpt-oss.context_length", 1, 1 << 24, 0);
    if (!k->status && whole(k, "gpt-oss.attention.value_length", 2, 1 << 10, c->head_dim) != c->head_dim)
        refuse(k, "gpt-oss.attention.value_length", "what gpt-oss.attention.key_length says");
}

/* Rows of token_embd.weight; in a split model it may lie in any file, then the vocabulary says it. */
static void read_vocabulary(keys *k, mx_config *c) {
    const mx_gguf_tensor *t = mx_gguf_find_tensor(k->g, "token_embd.weight");
    const mx_gguf_value *tokens = find(k, "tokenizer.ggml.tokens");
    if (t && t->dims == 2 && t->ne[1] >= 1 && t->ne[1] <= 1 << 24)
        c->vocab = (int)t->ne[1];
    else if (find(k, "gpt-oss.vocab_size") || !tokens || tokens->kind != MX_GGUF_ARRAY ||
             tokens->as.array.count > 1 << 24)
        c->vocab = whole(k, "gpt-oss.vocab_size", 1, 1 << 24, 0);
    else
        c->vocab = (int)tokens->as.array.count;
}

static void read_rope(keys *k, mx_config *c) {
    c->rope_theta = real(k, "gpt-oss.rope.freq_base", 1.001, 1e15, NAN);
    const mx_gguf_value *type = find(k, "gpt-oss.rope.scaling.type");
    if (!type || mx_gguf_is_string(type, "none")) return;
    if (!mx_gguf_is_string(type, "yarn")) {
        refuse_as(k, type->kind == MX_GGUF_STRING ? MX_UNSUPPORTED : MX_INVALID_FILE, "gpt-oss.rope.scaling.type",
                  "\"yarn\" or \"none\"");
        return;
    }
    c->yarn = true;
    c->yarn_factor = real(k, "gpt-oss.rope.scaling.factor", 1, 1e6, NAN);
    c->yarn_original_positions = whole(k, "gpt-oss.rope.scaling.original_context_length", 1, 1 << 24, 0);
    c->yarn_beta_fast = real(k, "gpt-oss.rope.scaling.yarn_beta_fast", 1e-6, 1e6, 32);
    c->yarn_beta_slow = real(k, "gpt-oss.rope.scaling.yarn_beta_slow", 1e-6, 1e6, 1);
}

/* What ends an answer: the end of text as eos and, in raw text, padding, which is <|endoftext|> in gpt-oss. */
static void read_eos(keys *k, mx_config *c) {
    static const char *const names[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                        "tokenizer.ggml.padding_token_id"};
    for (size_t i = 0; i < sizeof names / sizeof *names && !k->status; i++) {
        if (!find(k, names[i])) continue;
        const int id = whole(k, names[i], 0, c->vocab - 1, -1);
        bool had = false;
        for (int j = 0; j < c->eos_count; j++) had |= c->eos[j] == id;
        if (!had) c->eos[c->eos_count++] = id;
    }
}

/* Every second layer slides, beginning with the first; or as sliding_window_pattern says: of each N layers all but the
 * last, or a flag for each layer. */
static void read_pattern(keys *k, mx_config *c) {
    static const char key[] = "gpt-oss.attention.sliding_window_pattern";
    const mx_gguf_value *v = find(k, key);
    int every = 2;
    if (v && v->kind == MX_GGUF_ARRAY) {
        if (v->as.array.kind != MX_GGUF_BOOL || v->as.array.count != (uint64_t)c->layers) {
            refuse(k, key, "a whole number, or a flag for each layer");
            return;
        }
        for (int i = 0; i < c->layers; i++) c->sliding[i] = v->as.array.data[i] != 0;
        return;
    }
    if (v) every = whole(k, key, 1, MX_MAX_LAYERS, 0);
    for (int i = 0; i < c->layers; i++) c->sliding[i] = i % every < every - 1;
}

/* Keys that llama.cpp has for other models of its kind and that would change what is computed: their value must be the
 * one that gpt-oss has. */
static void check_neutral(keys *k, const mx_config *c) {
    const struct {
        const char *key;
        double value;
    } neutral[] = {{"gpt-oss.rope.scaling.attn_factor", 1},
                   {"gpt-oss.rope.scaling.yarn_attn_factor", 1},
                   {"gpt-oss.rope.scaling.yarn_ext_factor", 1},
                   {"gpt-oss.rope.scaling.yarn_log_multiplier", 0},
                   {"gpt-oss.rope.dimension_count", c->head_dim},
                   {"gpt-oss.expert_weights_scale", 1},
                   {"gpt-oss.expert_shared_count", 0},
                   {"gpt-oss.leading_dense_block_count", 0},
                   {"gpt-oss.attn_logit_softcapping", 0},
                   {"gpt-oss.router_logit_softcapping", 0},
                   {"gpt-oss.final_logit_softcapping", 0},
                   {"gpt-oss.logit_scale", 1},
                   {"gpt-oss.embedding_scale", 1},
                   {"gpt-oss.residual_scale", 1}};
    for (size_t i = 0; i < sizeof neutral / sizeof *neutral && !k->status; i++) {
        const mx_gguf_value *v = find(k, neutral[i].key);
        double x;
        if (!v || (mx_gguf_double(v, &x) && x == neutral[i].value)) continue;
        char expected[40];
        snprintf(expected, sizeof expected, "%g, as in gpt-oss", neutral[i].value);
        refuse_as(k, MX_UNSUPPORTED, neutral[i].key, expected);
    }
    static const char *const unknown[] = {"gpt-oss.swiglu_clamp_exp", "gpt-oss.swiglu_clamp_shexp",
                                          "gpt-oss.attention.scale", "gpt-oss.attention.clamp_kqv",
                                          "gpt-oss.rope.dimension_sections"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown && !k->status; i++)
        if (find(k, unknown[i])) refuse_as(k, MX_UNSUPPORTED, unknown[i], "no such key in gpt-oss");
}

mx_status mx_gguf_config(const mx_gguf *g, mx_config *c, mx_error *error) {
    keys k = {g, error, mx_gguf_check_architecture(g, error)};
    *c =
        (mx_config){.temperature = 1, .top_p = 1, .swiglu_limit = 7.0f, .swiglu_alpha = 1.702f, .attention_bias = true};
    if (!k.status) read_sizes(&k, c);
    if (!k.status) read_vocabulary(&k, c);
    if (!k.status) read_rope(&k, c);
    if (!k.status) read_eos(&k, c);
    c->rms_eps = (float)real(&k, "gpt-oss.attention.layer_norm_rms_epsilon", 1e-12, 1, 1e-5);
    c->window = whole(&k, "gpt-oss.attention.sliding_window", 1, 1 << 24, 128);
    if (!k.status) read_pattern(&k, c);
    if (!k.status) check_neutral(&k, c);
    if (k.status) return k.status;
    /* A file without it has the embedding there, as the converters write it for tied ones; a split file may hold it
     * elsewhere, which the reader of all files knows. */
    int64_t parts;
    const bool split = mx_gguf_int64(mx_gguf_find(g, "split.count"), 2, INT32_MAX, &parts);
    c->tied_embeddings = !split && !mx_gguf_find_tensor(g, "output.weight");
    return mx_config_check(c, g->file.path, error);
}
