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
} layouts[MX_PLAN_LAYOUTS + 1] = {
    [MX_PLAN_MXFP4_BF16] = {"MXFP4 experts, BF16", "mxfp4_bf16", 17 / 32.0, 2, 2, 2, 2, 2},
    [MX_PLAN_MXFP4_Q8_0] = {"MXFP4 experts, Q8_0", "mxfp4_q8_0", 17 / 32.0, 4, 34 / 32.0, 4, 4, 34 / 32.0},
    [MX_PLAN_MXFP4_F32] = {"MXFP4 experts, F32", "mxfp4_f32", 17 / 32.0, 4, 4, 4, 4, 4},
    [MX_PLAN_BF16] = {"BF16", "bf16", 2, 2, 2, 2, 2, 2},
    [MX_PLAN_UNKNOWN] = {"layout unknown", "unknown", 17 / 32.0, 2, 2, 2, 2, 2},
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
        {"gpt-oss-20b, GGUF", "gpt-oss-20b", MX_PLAN_MXFP4_Q8_0},
        {"gpt-oss-120b", "gpt-oss-120b", MX_PLAN_MXFP4_BF16},
        {"gpt-oss-120b, GGUF", "gpt-oss-120b", MX_PLAN_MXFP4_Q8_0},
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

static bool ends_in(const char *name, const char *end) {
    const size_t n = strlen(name), tail = strlen(end);
    return n > tail && !strcmp(name + n - tail, end);
}

double mx_plan_files(const char *path, char *largest, size_t size) {
    struct stat info;
    double sum = 0;
    off_t most = 0;
    if (largest) *largest = 0;
    if (!stat(path, &info) && S_ISREG(info.st_mode)) {
        if (largest) snprintf(largest, size, "%s", path);
        return (double)info.st_size;
    }
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        char file[MX_PLAN_NAME + 300];
        if (!ends_in(entry->d_name, ".safetensors") && !ends_in(entry->d_name, ".gguf")) continue;
        snprintf(file, sizeof file, "%s/%s", path, entry->d_name);
        if (stat(file, &info) || !S_ISREG(info.st_mode)) continue; /* through the links of a cache, too */
        sum += (double)info.st_size;
        if (info.st_size > most && largest) {
            most = info.st_size;
            snprintf(largest, size, "%s", file);
        }
    }
    if (folder) closedir(folder);
    return sum;
}

/* The files of a layout are larger than its tensors, by names and a vocabulary: up to a fiftieth, or a MB of a small
 * one. */
static mx_plan_layout nearest_layout(const mx_config *c, double size) {
    mx_plan_layout best = MX_PLAN_UNKNOWN;
    double least = size / 50 > 1e6 ? size / 50 : 1e6;
    for (int i = 0; i < MX_PLAN_LAYOUTS; i++) {
        const mx_plan_bytes b = mx_plan_bytes_of(c, (mx_plan_layout)i);
        const double apart = fabs(size - mx_plan_bytes_total(&b));
        if (apart >= least) continue;
        least = apart;
        best = (mx_plan_layout)i;
    }
    return best;
}

mx_status mx_plan_model_read(const char *path, mx_plan_model *out, mx_error *error) {
    *out = (mx_plan_model){.here = true};
    snprintf(out->name, sizeof out->name, "%s", path);
    mx_status status = mx_config_read(path, &out->config, error);
    if (status) return status;
    out->weights = mx_plan_files(path, NULL, 0);
    if (!(out->weights > 0))
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: it holds no .safetensors and no .gguf file, whose size could be planned with", path);
    out->layout = nearest_layout(&out->config, out->weights);
    out->bytes = mx_plan_bytes_of(&out->config, out->layout);
    return MX_OK;
}
