#include "plan/model.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "model/synthetic.h"

/* ---- layouts ----------------------------------------------------------------------------------------------------- */

/* Bytes of a weight of a class. */
static const struct layout {
    mx_plan_formats formats;
    double expert, expert_bias, dense, vector, router, table; /* table: the embedding */
} layouts[MX_PLAN_LAYOUTS] = {
    [MX_PLAN_MXFP4_BF16] = {{MX_MXFP4, MX_BF16, MX_BF16}, 17 / 32.0, 2, 2, 2, 2, 2},
    [MX_PLAN_MXFP4_Q8_0] = {{MX_MXFP4, MX_Q8_0, MX_F32}, 17 / 32.0, 4, 34 / 32.0, 4, 4, 34 / 32.0},
    [MX_PLAN_MXFP4_F32] = {{MX_MXFP4, MX_F32, MX_F32}, 17 / 32.0, 4, 4, 4, 4, 4},
    [MX_PLAN_BF16] = {{MX_BF16, MX_BF16, MX_BF16}, 2, 2, 2, 2, 2, 2},
};

mx_plan_formats mx_plan_formats_of(mx_plan_layout layout) {
    return layouts[layout].formats;
}

/* MXFP4 is called so in either layout. Of the others the elements alone are known. */
static const struct {
    const char *name, *key;
} formats[MX_FORMATS] = {
    [MX_F32] = {"F32", "f32"},       [MX_F16] = {"F16", "f16"},       [MX_BF16] = {"BF16", "bf16"},
    [MX_MXFP4] = {"MXFP4", "mxfp4"}, [MX_Q8_0] = {"Q8_0", "q8_0"},    [MX_MXFP4_GGML] = {"MXFP4", "mxfp4"},
    [MX_E2M1] = {"FP4", "fp4"},      [MX_E2M3] = {"FP6", "fp6_e2m3"}, [MX_E3M2] = {"FP6", "fp6_e3m2"},
    [MX_E4M3] = {"FP8", "fp8_e4m3"}, [MX_E5M2] = {"FP8", "fp8_e5m2"}, [MX_INT8] = {"INT8", "int8"},
    [MX_INT4] = {"INT4", "int4"},
};

const char *mx_plan_format_name(mx_format format) {
    return formats[format].name;
}

void mx_plan_formats_name(char out[MX_PLAN_FORMATS], const mx_plan_formats *f) {
    if (f->experts == f->dense)
        snprintf(out, MX_PLAN_FORMATS, "%s", formats[f->dense].name);
    else
        snprintf(out, MX_PLAN_FORMATS, "%s experts, %s", formats[f->experts].name, formats[f->dense].name);
}

void mx_plan_formats_key(char out[MX_PLAN_FORMATS], const mx_plan_formats *f) {
    if (f->experts == f->dense)
        snprintf(out, MX_PLAN_FORMATS, "%s", formats[f->dense].key);
    else
        snprintf(out, MX_PLAN_FORMATS, "%s_%s", formats[f->experts].key, formats[f->dense].key);
}

/* ---- bytes ------------------------------------------------------------------------------------------------------- */

mx_plan_bytes mx_plan_bytes_of(const mx_config *c, mx_plan_layout layout) {
    const struct layout *l = &layouts[layout];
    const double layers = c->layers, hidden = c->hidden, wide = c->intermediate, experts = c->experts;
    const double q = (double)c->heads * c->head_dim, kv = (double)c->kv_heads * c->head_dim;
    const double vectors = (c->attention_bias ? q + 2 * kv + hidden : 0) + c->heads;
    return (mx_plan_bytes){
        .experts = layers * experts * 3 * wide * hidden * l->expert,
        .expert_biases = layers * experts * (2 * wide + hidden) * l->expert_bias,
        .attention = layers * ((2 * q + 2 * kv) * hidden * l->dense + vectors * l->vector),
        .router = layers * experts * (hidden + 1) * l->router,
        .norms = (2 * layers + 1) * hidden * l->vector,
        .embedding = (double)c->vocab * hidden * l->table,
        .lm_head = c->tied_embeddings ? 0 : (double)c->vocab * hidden * l->dense,
    };
}

double mx_plan_bytes_total(const mx_plan_bytes *b) {
    return b->experts + b->expert_biases + b->attention + b->router + b->norms + b->embedding + b->lm_head;
}

double mx_plan_experts(const mx_config *c, double rows) {
    return c->experts * (1 - pow(1 - (double)c->top_k / c->experts, rows));
}

double mx_plan_step_bytes(const mx_config *c, const mx_plan_bytes *b, double rows, double wanted) {
    const double read = mx_plan_experts(c, rows) / c->experts;
    const double head = wanted > 0 ? (c->tied_embeddings ? b->embedding : b->lm_head) : 0;
    return (b->experts + b->expert_biases) * read + b->attention + b->router + b->norms + head +
           rows * b->embedding / c->vocab;
}

/* ---- models that are known --------------------------------------------------------------------------------------- */

mx_status mx_plan_known(int index, mx_plan_model *out, mx_error *error) {
    static const struct {
        const char *name, *shape;
        mx_plan_layout layout;
    } known[MX_PLAN_KNOWN] = {
        {"gpt-oss-20b", "gpt-oss-20b", MX_PLAN_MXFP4_BF16},
        {"gpt-oss-20b-gguf", "gpt-oss-20b", MX_PLAN_MXFP4_Q8_0},
        {"gpt-oss-120b", "gpt-oss-120b", MX_PLAN_MXFP4_BF16},
        {"gpt-oss-120b-gguf", "gpt-oss-120b", MX_PLAN_MXFP4_Q8_0},
    };
    *out = (mx_plan_model){.formats = mx_plan_formats_of(known[index].layout)};
    mx_status status = mx_synthetic_config(known[index].shape, 0, &out->config, error);
    if (status) return status;
    snprintf(out->name, sizeof out->name, "%s", known[index].name);
    out->bytes = mx_plan_bytes_of(&out->config, known[index].layout);
    out->weights = mx_plan_bytes_total(&out->bytes);
    return MX_OK;
}

/* ---- models in files --------------------------------------------------------------------------------------------- */

static bool has(const char *name, const char *part) {
    return strstr(name, part) != NULL;
}

/* Every layout's tensors have the names of the Hugging Face layout. */
static double *class_of(mx_plan_bytes *b, const char *name) {
    if (has(name, "mlp.experts.")) return has(name, "_bias") ? &b->expert_biases : &b->experts;
    if (has(name, "self_attn.")) return &b->attention;
    if (has(name, "mlp.router.")) return &b->router;
    if (has(name, "embed_tokens.")) return &b->embedding;
    if (has(name, "lm_head.")) return &b->lm_head;
    return has(name, "norm.") ? &b->norms : NULL; /* nothing reads it */
}

/* Of the experts' down_proj, which stands for all. */
static mx_format format_of_experts(const mx_checkpoint *ck) {
    const mx_tensor *down = mx_checkpoint_find(ck, "model.layers.0.mlp.experts.down_proj_blocks");
    const mx_format format = mx_checkpoint_format(ck, "model.layers.0.mlp.experts.down_proj");
    return down ? MX_MXFP4 : format == MX_MXFP4_GGML ? MX_MXFP4 : format;
}

mx_status mx_plan_model_read(const char *path, mx_expert_form form, mx_plan_model *out, mx_error *error) {
    mx_checkpoint *ck;
    *out = (mx_plan_model){.here = true};
    snprintf(out->name, sizeof out->name, "%s", path);
    mx_status status = mx_checkpoint_open_model(path, form, &out->config, &ck, error);
    for (int i = 0; !status && i < mx_checkpoint_count(ck); i++) {
        const mx_tensor *t = mx_checkpoint_at(ck, i);
        double *sum = class_of(&out->bytes, t->name);
        /* INT4's zeros, packed by eight in 4 bytes, are unpacked into memory, a byte each, beside those of the file. */
        const double bytes =
            (double)t->bytes * (mx_ends_with(t->name, "weight_zero_point") && t->dtype == MX_DTYPE_I32 ? 3 : 1);
        if (sum) *sum += bytes;
        out->weights += bytes;
    }
    if (!status)
        out->formats =
            (mx_plan_formats){format_of_experts(ck), mx_checkpoint_format(ck, "model.layers.0.self_attn.q_proj"),
                              mx_checkpoint_format(ck, "model.layers.0.mlp.router")};
    mx_checkpoint_close(ck);
    return status;
}

void mx_plan_largest_file(const char *path, char *out, size_t size) {
    static const char end[] = ".safetensors";
    mx_location location;
    struct stat info;
    off_t most = 0;
    *out = 0;
    if (mx_location_find(path, &location, NULL)) return;
    if (!stat(location.path, &info) && S_ISREG(info.st_mode)) snprintf(out, size, "%s", location.path);
    DIR *folder = *out ? NULL : opendir(location.path);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        char file[MX_PLAN_NAME + 300];
        const size_t n = strlen(entry->d_name), tail = sizeof end - 1;
        if (n <= tail || strcmp(entry->d_name + n - tail, end) != 0) continue;
        snprintf(file, sizeof file, "%s/%s", location.path, entry->d_name);
        if (stat(file, &info) || !S_ISREG(info.st_mode) || info.st_size <= most) continue; /* through a cache's links */
        most = info.st_size;
        snprintf(out, size, "%s", file);
    }
    if (folder) closedir(folder);
}
