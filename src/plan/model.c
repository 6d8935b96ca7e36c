#include "plan/model.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "model/synthetic.h"

/* ---- layouts ----------------------------------------------------------------------------------------------------- */

/* Bytes of a weight of a class. */
static const struct layout {
    const char *name, *key;
    double expert, expert_bias, dense, vector, router, table; /* table: the embedding */
} layouts[MX_PLAN_LAYOUTS] = {
    [MX_PLAN_MXFP4_BF16] = {"MXFP4 experts, BF16", "mxfp4_bf16", 17 / 32.0, 2, 2, 2, 2, 2},
    [MX_PLAN_MXFP4_Q8_0] = {"MXFP4 experts, Q8_0", "mxfp4_q8_0", 17 / 32.0, 4, 34 / 32.0, 4, 4, 34 / 32.0},
    [MX_PLAN_MXFP4_F32] = {"MXFP4 experts, F32", "mxfp4_f32", 17 / 32.0, 4, 4, 4, 4, 4},
    [MX_PLAN_BF16] = {"BF16", "bf16", 2, 2, 2, 2, 2, 2},
};

const char *mx_plan_layout_name(mx_plan_layout layout) {
    return layouts[layout].name;
}

const char *mx_plan_layout_key(mx_plan_layout layout) {
    return layouts[layout].key;
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
    *out = (mx_plan_model){.layout = known[index].layout};
    mx_status status = mx_synthetic_config(known[index].shape, 0, &out->config, error);
    if (status) return status;
    snprintf(out->name, sizeof out->name, "%s", known[index].name);
    out->bytes = mx_plan_bytes_of(&out->config, out->layout);
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

static mx_plan_layout layout_of(const mx_checkpoint *ck) {
    const mx_tensor *q = mx_checkpoint_find(ck, "model.layers.0.self_attn.q_proj.weight");
    const mx_tensor *down = mx_checkpoint_find(ck, "model.layers.0.mlp.experts.down_proj.weight"); /* no blocks */
    if (down && down->dtype != MX_DTYPE_MXFP4) return MX_PLAN_BF16;
    if (q && q->dtype == MX_DTYPE_Q8_0) return MX_PLAN_MXFP4_Q8_0;
    return q && q->dtype == MX_DTYPE_F32 ? MX_PLAN_MXFP4_F32 : MX_PLAN_MXFP4_BF16;
}

mx_status mx_plan_model_read(const char *path, mx_expert_form form, mx_plan_model *out, mx_error *error) {
    mx_checkpoint *ck;
    *out = (mx_plan_model){.here = true};
    snprintf(out->name, sizeof out->name, "%s", path);
    mx_status status = mx_config_read(path, &out->config, error);
    if (!status) status = mx_checkpoint_open_as(path, form, &ck, error);
    if (status) return status;
    for (int i = 0; i < mx_checkpoint_count(ck); i++) {
        const mx_tensor *t = mx_checkpoint_at(ck, i);
        double *sum = class_of(&out->bytes, t->name);
        if (sum) *sum += (double)t->bytes;
        out->weights += (double)t->bytes;
    }
    out->layout = layout_of(ck);
    mx_checkpoint_close(ck);
    return MX_OK;
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
