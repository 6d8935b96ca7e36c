#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/json.h"
#include "model/config_private.h"
#include "model/gguf_layout.h"
#include "model/metal.h"
#include "model/show.h"

/* config.json, field by field. Whatever the computation depends on must stand in the file and lie in a range in which
 * no later product of sizes overflows; only what transformers' GptOssConfig of old lacked has a default. */

enum { FILE_LIMIT = 16 << 20 };

/* One JSON object of one file while its fields are read. The first failure is kept; what follows it does nothing. */
typedef struct fields {
    const char *path;   /* of the file */
    const char *inside; /* "rope_scaling." or "" */
    const mx_json *object;
    mx_error *error;
    mx_status status;
    const char *const (*names)[2]; /* keys that are called otherwise in this file, {NULL} at the end; NULL: none */
} fields;

static const char *name_of(const fields *f, const char *key) {
    for (const char *const(*n)[2] = f->names; n && **n; n++)
        if (!strcmp((*n)[0], key)) return (*n)[1];
    return key;
}

static void refuse(fields *f, mx_status status, const char *key, const mx_json *found, const char *expected) {
    if (f->status) return;
    char text[80];
    f->status = mx_fail(f->error, status, "%s: %s%s is %s, expected %s", f->path, f->inside, name_of(f, key),
                        found ? mx_show_json(text, sizeof text, found) : "missing", expected);
}

/* The member `key`; NULL when it is absent or null. */
static const mx_json *member(const fields *f, const char *key) {
    const mx_json *v = mx_json_get(f->object, name_of(f, key));
    return v && v->type != MX_JSON_NULL ? v : NULL;
}

/* 150000.0 and 1e5 are whole, too. */
static int whole_in(fields *f, const char *key, int64_t low, int64_t high) {
    const mx_json *v = member(f, key);
    int64_t x = 0;
    if (mx_json_int64(v, &x) && x >= low && x <= high) return (int)x;
    char expected[80];
    snprintf(expected, sizeof expected, "a whole number from %lld to %lld", (long long)low, (long long)high);
    refuse(f, MX_INVALID_FILE, key, v, expected);
    return (int)low;
}

/* `fallback` NAN: the field is required. */
static double real_in(fields *f, const char *key, double low, double high, double fallback) {
    const mx_json *v = member(f, key);
    double x;
    if (!v && !isnan(fallback)) return fallback;
    if (mx_json_double(v, &x) && x >= low && x <= high) return x;
    char expected[80];
    snprintf(expected, sizeof expected, "a number from %g to %g", low, high);
    refuse(f, MX_INVALID_FILE, key, v, expected);
    return low;
}

static bool boolean(fields *f, const char *key, bool fallback) {
    const mx_json *v = member(f, key);
    bool x = fallback;
    if (v && !mx_json_bool(v, &x)) refuse(f, MX_INVALID_FILE, key, v, "true or false");
    return x;
}

static mx_status multiple_of_32(const char *path, const char *what, int64_t value, mx_error *error) {
    if (value % 32 == 0) return MX_OK;
    return mx_fail(error, MX_UNSUPPORTED, "%s: %s is %lld, which is no multiple of 32: MXFP4 blocks hold 32 columns",
                   path, what, (long long)value);
}

mx_status mx_config_check(const mx_config *c, const char *path, mx_error *error) {
    if (c->top_k > c->experts)
        return mx_fail(error, MX_INVALID_FILE, "%s: %d experts a token are %s", path, c->top_k, "more than there are");
    if (c->heads % c->kv_heads)
        return mx_fail(error, MX_INVALID_FILE, "%s: %d attention heads are no multiple of %d key and value heads", path,
                       c->heads, c->kv_heads);
    if (c->head_dim % 2)
        return mx_fail(error, MX_INVALID_FILE, "%s: the head dimension is %d, expected an even number", path,
                       c->head_dim);
    mx_status status = multiple_of_32(path, "hidden_size", c->hidden, error);
    if (!status) status = multiple_of_32(path, "intermediate_size", c->intermediate, error);
    if (!status)
        status = multiple_of_32(path, "num_attention_heads * head_dim", (int64_t)c->heads * c->head_dim, error);
    return status;
}

/* Is there a group whose activations are quantised? */
static bool has_activations(const mx_json *groups) {
    for (const mx_json *g = groups && groups->type == MX_JSON_OBJECT ? groups->child : NULL; g; g = g->next) {
        const mx_json *a = mx_json_get(g, "input_activations");
        if (a && a->type != MX_JSON_NULL) return true;
    }
    return false;
}

/* quantization_config: which weights are how its tensors say (docs/quantized.md); here is what they do not. */
static void read_quantization(fields *f, mx_config *c, const mx_json *quantization) {
    static const char *const methods[] = {"mxfp4", "compressed-tensors", "modelopt", "mxrun", "fp8"};
    if (quantization->type != MX_JSON_OBJECT) {
        refuse(f, MX_INVALID_FILE, "quantization_config", quantization, "an object");
        return;
    }
    fields q = {f->path, "quantization_config.", quantization, f->error, f->status, NULL};
    const mx_json *method = member(&q, "quant_method");
    bool known = false;
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) known |= mx_json_is_string(method, methods[i]);
    if (!known)
        refuse(&q, MX_UNSUPPORTED, "quant_method", method,
               "\"mxfp4\", \"compressed-tensors\", \"modelopt\", \"mxrun\" or \"fp8\"");
    const mx_json *transforms = member(&q, "transform_config");
    if (transforms && (transforms->type != MX_JSON_OBJECT || transforms->count))
        refuse(&q, MX_UNSUPPORTED, "transform_config", transforms, "none: mxrun turns no activations on the way");
    const mx_json *algorithm = member(&q, "quant_algo");
    c->activations_quantized = has_activations(member(&q, "config_groups")) || member(&q, "activation_scheme") ||
                               member(&q, "kv_cache_scheme") || mx_json_is_string(algorithm, "NVFP4") ||
                               mx_json_is_string(algorithm, "FP8");
    f->status = q.status;
}

static void read_kind(fields *f, mx_config *c) {
    const mx_json *type = member(f, "model_type");
    if (!mx_json_is_string(type, "gpt_oss"))
        refuse(f, type ? MX_UNSUPPORTED : MX_INVALID_FILE, "model_type", type, "\"gpt_oss\"");
    const mx_json *act = member(f, "hidden_act");
    if (act && !mx_json_is_string(act, "silu")) refuse(f, MX_UNSUPPORTED, "hidden_act", act, "\"silu\"");
    const mx_json *quantization = member(f, "quantization_config");
    if (quantization && !f->status) read_quantization(f, c, quantization);
}

static void read_sizes(fields *f, mx_config *c) {
    c->layers = whole_in(f, "num_hidden_layers", 1, MX_MAX_LAYERS);
    c->hidden = whole_in(f, "hidden_size", 32, 1 << 17);
    c->intermediate = whole_in(f, "intermediate_size", 32, 1 << 17);
    c->heads = whole_in(f, "num_attention_heads", 1, 1 << 12);
    c->kv_heads = whole_in(f, "num_key_value_heads", 1, 1 << 12);
    c->head_dim = whole_in(f, "head_dim", 2, 1 << 10);
    c->experts = whole_in(f, "num_local_experts", 1, 1 << 14);
    c->vocab = whole_in(f, "vocab_size", 1, 1 << 24);

    const char *key = member(f, "num_experts_per_tok") ? "num_experts_per_tok" : "experts_per_token";
    if (!member(f, key)) key = "num_experts_per_tok";
    c->top_k = whole_in(f, key, 1, 1 << 14);
    const mx_json *twin = member(f, "experts_per_token");
    int64_t other;
    if (twin && (!mx_json_int64(twin, &other) || other != c->top_k))
        refuse(f, MX_INVALID_FILE, "experts_per_token", twin, "what num_experts_per_tok says");

    if (c->top_k > c->experts) refuse(f, MX_INVALID_FILE, key, member(f, key), "at most num_local_experts");
    if (c->heads % c->kv_heads)
        refuse(f, MX_INVALID_FILE, "num_attention_heads", member(f, "num_attention_heads"),
               "a multiple of num_key_value_heads");
    if (c->head_dim % 2) refuse(f, MX_INVALID_FILE, "head_dim", member(f, "head_dim"), "an even number");
    if (!f->status) f->status = mx_config_check(c, f->path, f->error);
}

/* layer_types; without it even layers slide (the default of transformers). */
static void read_layers(fields *f, mx_config *c) {
    const mx_json *types = member(f, "layer_types");
    bool any = false;
    if (types && (types->type != MX_JSON_ARRAY || types->count != (uint32_t)c->layers)) {
        refuse(f, MX_INVALID_FILE, "layer_types", types, "an array with one entry for each of num_hidden_layers");
        return;
    }
    const mx_json *type = types ? types->child : NULL;
    for (int i = 0; i < c->layers; i++) {
        c->sliding[i] = types ? mx_json_is_string(type, "sliding_attention") : i % 2 == 0;
        if (types && !c->sliding[i] && !mx_json_is_string(type, "full_attention")) {
            char key[40];
            snprintf(key, sizeof key, "layer_types[%d]", i);
            refuse(f, type->type == MX_JSON_STRING ? MX_UNSUPPORTED : MX_INVALID_FILE, key, type,
                   "\"sliding_attention\" or \"full_attention\"");
            return;
        }
        any |= c->sliding[i];
        if (types) type = type->next;
    }
    if (any || member(f, "sliding_window")) c->window = whole_in(f, "sliding_window", 1, 1 << 24);
}

static void read_yarn(fields *f, mx_config *c) {
    c->yarn_factor = real_in(f, "factor", 1, 1e6, NAN);
    c->yarn_beta_fast = real_in(f, "beta_fast", 1e-6, 1e6, 32);
    c->yarn_beta_slow = real_in(f, "beta_slow", 1e-6, 1e6, 1);
    c->yarn_original_positions = whole_in(f, "original_max_position_embeddings", 1, 1 << 24);
    c->yarn_truncate = boolean(f, "truncate", true);
    c->yarn_attention_factor = real_in(f, "attention_factor", 1e-6, 1e6, 0);
    if (c->yarn_beta_fast < c->yarn_beta_slow)
        refuse(f, MX_INVALID_FILE, "beta_fast", member(f, "beta_fast"), "at least beta_slow");
    static const char *const unknown[] = {"mscale", "mscale_all_dim"};
    for (int i = 0; i < 2; i++)
        if (member(f, unknown[i]))
            refuse(f, MX_UNSUPPORTED, unknown[i], member(f, unknown[i]), "no such field in gpt-oss");
}

/* Either rope_parameters with rope_theta inside (newer transformers) or rope_scaling beside rope_theta. */
static void read_rope(fields *f, mx_config *c) {
    const char *key = member(f, "rope_parameters") ? "rope_parameters" : "rope_scaling";
    const mx_json *rope = member(f, key);
    if (rope && rope->type != MX_JSON_OBJECT) {
        refuse(f, MX_INVALID_FILE, key, rope, "an object");
        return;
    }
    char inside[40];
    snprintf(inside, sizeof inside, "%s.", key);
    fields r = {f->path, inside, rope, f->error, f->status, NULL};
    /* theta 1 has no logarithm to divide by. */
    c->rope_theta = real_in(member(&r, "rope_theta") ? &r : f, "rope_theta", 1.001, 1e15, NAN);
    if (!r.status) r.status = f->status;

    const mx_json *type = member(&r, "rope_type");
    if (!type) type = member(&r, "type");
    if (!type) {
        /* A factor without a type would silently be ignored as plain RoPE. */
        if (member(&r, "factor") || member(&r, "full_attention") || member(&r, "sliding_attention"))
            refuse(&r, MX_INVALID_FILE, "rope_type", NULL, "\"yarn\" or \"default\"");
    } else if (mx_json_is_string(type, "yarn")) {
        c->yarn = true;
        read_yarn(&r, c);
    } else if (!mx_json_is_string(type, "default")) {
        refuse(&r, MX_UNSUPPORTED, "rope_type", type, "\"yarn\" or \"default\"");
    }
    f->status = r.status;
}

static void add_eos(fields *f, mx_config *c, const mx_json *v) {
    int64_t id;
    if (!mx_json_int64(v, &id) || id < 0 || id >= c->vocab) {
        refuse(f, MX_INVALID_FILE, "eos_token_id", v, "token ids from 0 to vocab_size - 1");
        return;
    }
    for (int i = 0; i < c->eos_count; i++)
        if (c->eos[i] == id) return;
    if (c->eos_count == (int)(sizeof c->eos / sizeof *c->eos))
        refuse(f, MX_UNSUPPORTED, "eos_token_id", v, "at most 8 different ids");
    else
        c->eos[c->eos_count++] = (int)id;
}

static void read_eos(fields *f, mx_config *c) {
    const mx_json *v = member(f, "eos_token_id");
    if (!v) return;
    if (v->type != MX_JSON_ARRAY) {
        add_eos(f, c, v);
        return;
    }
    for (const mx_json *e = v->child; e && !f->status; e = e->next) add_eos(f, c, e);
}

static void read_generation(fields *f, mx_config *c) {
    read_eos(f, c);
    const bool sample = boolean(f, "do_sample", true);
    const double temperature = real_in(f, "temperature", 0, 100, 1), top_p = real_in(f, "top_p", 0, 1, 1);
    const int top_k = member(f, "top_k") ? whole_in(f, "top_k", 0, 1 << 30) : 0;
    if (!sample) {
        c->temperature = 0;
        return;
    }
    c->temperature = (float)temperature;
    c->top_p = (float)top_p;
    c->sample_top_k = top_k;
}

static void read_config(fields *f, mx_config *c) {
    read_kind(f, c);
    if (f->status) return;
    read_sizes(f, c);
    c->max_positions = whole_in(f, "max_position_embeddings", 1, 1 << 24);
    if (f->status) return; /* the rest counts with these sizes */
    read_layers(f, c);
    read_rope(f, c);
    c->rms_eps = (float)real_in(f, "rms_norm_eps", 1e-12, 1, NAN);
    c->swiglu_limit = (float)real_in(f, "swiglu_limit", 1e-3, 1e6, 7.0);
    c->swiglu_alpha = (float)real_in(f, "swiglu_alpha", 1e-3, 1e3, 1.702);
    c->attention_bias = boolean(f, "attention_bias", true);
    c->tied_embeddings = boolean(f, "tie_word_embeddings", false);
    read_eos(f, c);
}

/* OpenAI's original/config.json. What it lacks is hard-coded in their program (gpt_oss/torch/model.py): eps, and that
 * every second layer slides, beginning with the first; and what ends an answer. */
static void read_original(fields *f, mx_config *c) {
    static const char *const names[][2] = {
        {"num_local_experts", "num_experts"}, {"num_experts_per_tok", "experts_per_token"}, {NULL, NULL}};
    f->names = names;
    read_sizes(f, c);
    if (f->status) return;
    read_layers(f, c);
    c->yarn_original_positions = whole_in(f, "initial_context_length", 1, 1 << 24);
    c->rope_theta = real_in(f, "rope_theta", 1.001, 1e15, NAN);
    c->yarn_factor = real_in(f, "rope_scaling_factor", 1, 4096, 1);
    c->yarn = c->yarn_factor > 1;
    c->yarn_beta_slow = real_in(f, "rope_ntk_alpha", 1e-6, 1e6, 1);
    c->yarn_beta_fast = real_in(f, "rope_ntk_beta", 1e-6, 1e6, 32);
    if (c->yarn_beta_fast < c->yarn_beta_slow)
        refuse(f, MX_INVALID_FILE, "rope_ntk_beta", member(f, "rope_ntk_beta"), "at least rope_ntk_alpha");
    const double positions = c->yarn_original_positions * c->yarn_factor;
    c->max_positions = positions < 1 << 24 ? (int)positions : 1 << 24;
    c->rms_eps = 1e-5f;
    c->swiglu_limit = (float)real_in(f, "swiglu_limit", 1e-3, 1e6, 7.0);
    c->swiglu_alpha = 1.702f;
    c->attention_bias = true;
    mx_config_harmony_eos(c);
}

void mx_config_harmony_eos(mx_config *c) {
    static const int ids[] = {200002, 199999}; /* <|return|>, <|endoftext|> */
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
        if (ids[i] < c->vocab) c->eos[c->eos_count++] = ids[i];
}

/* Parses the file and hands its fields to `read`. */
static mx_status read_fields(const char *path, void (*read)(fields *, mx_config *), mx_config *c, mx_error *error) {
    mx_bytes text = {0};
    mx_json_document *document = NULL;
    mx_status status = mx_read_regular_file(path, FILE_LIMIT, &text, error);
    if (!status) status = mx_json_parse(path, text.data ? text.data : "", text.size, &document, error);
    if (!status) {
        fields f = {path, "", mx_json_root(document), error, MX_OK, NULL};
        if (f.object->type != MX_JSON_OBJECT)
            f.status = mx_fail(error, MX_INVALID_FILE, "%s: the file is no JSON object", path);
        else
            read(&f, c);
        status = f.status;
    }
    mx_json_free(document);
    mx_bytes_free(&text);
    return status;
}

static mx_status read_folder(const char *folder, mx_config *out, mx_error *error) {
    char path[MX_PATH + 40];
    struct stat info;
    snprintf(path, sizeof path, "%s/generation_config.json", folder);
    bool generation = stat(path, &info) == 0;
    snprintf(path, sizeof path, "%s/config.json", folder);
    mx_status status = read_fields(path, read_config, out, error);
    if (status || !generation) return status;
    snprintf(path, sizeof path, "%s/generation_config.json", folder);
    return read_fields(path, read_generation, out, error);
}

static mx_status read_gguf(const char *path, mx_config *out, mx_error *error) {
    mx_gguf g;
    mx_status status = mx_gguf_open(path, &g, error);
    if (!status) status = mx_gguf_config(&g, out, error);
    mx_gguf_close(&g);
    return status;
}

mx_status mx_config_read(const char *path, mx_config *out, mx_error *error) {
    mx_location place;
    char file[MX_PATH + 40];
    *out = (mx_config){.temperature = 1, .top_p = 1};
    mx_status status = mx_location_find(path, &place, error);
    if (status) return status;
    switch (place.layout) {
    case MX_LAYOUT_HF:
        return read_folder(place.path, out, error);
    case MX_LAYOUT_ORIGINAL:
        snprintf(file, sizeof file, "%s/config.json", place.path);
        return read_fields(file, read_original, out, error);
    case MX_LAYOUT_GGUF:
        return read_gguf(place.path, out, error);
    case MX_LAYOUT_METAL:
        return mx_metal_config(place.path, out, error);
    default:
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "%s: a file, expected a model: the folder that holds config.json and .safetensors, a .gguf "
                       "file, or a model.bin",
                       path);
    }
}

void mx_config_rope(const mx_config *c, double *inv_freq, double *concentration) {
    const double pi = 3.14159265358979323846;
    int d = c->head_dim;
    for (int i = 0; i < d / 2; i++) inv_freq[i] = pow(c->rope_theta, -2.0 * i / d);
    *concentration = 1;
    if (!c->yarn) return;

    /* The pair that turns beta times over the original context: below `low` pairs keep their frequency, above `high`
     * it is divided by the factor, between them it is mixed. */
    double low = d * log(c->yarn_original_positions / (c->yarn_beta_fast * 2 * pi)) / (2 * log(c->rope_theta));
    double high = d * log(c->yarn_original_positions / (c->yarn_beta_slow * 2 * pi)) / (2 * log(c->rope_theta));
    if (c->yarn_truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, d - 1);
    double width = high - low != 0 ? high - low : 0.001;
    for (int i = 0; i < d / 2; i++) {
        double ramp = fmin(fmax((i - low) / width, 0), 1);
        inv_freq[i] *= (1 - ramp) + ramp / c->yarn_factor;
    }
    *concentration = c->yarn_attention_factor > 0 ? c->yarn_attention_factor : 0.1 * log(c->yarn_factor) + 1;
}
