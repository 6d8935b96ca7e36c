/* A folder in the Hugging Face layout whose one .safetensors is the input: quantised modules, experts' among them, and
 * experts of 16 bits in every form. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "input.h"
#include "kernels/mx.h"
#include "model/model.h"

enum { MOST = 1 << 20, WIDEST = 128 };

static const char config[] =
    "{\"model_type\":\"gpt_oss\",\"num_hidden_layers\":1,\"hidden_size\":128,\"intermediate_size\":32,"
    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"head_dim\":32,\"num_local_experts\":2,"
    "\"num_experts_per_tok\":1,\"vocab_size\":16,\"sliding_window\":8,\"layer_types\":[\"sliding_attention\"],"
    "\"max_position_embeddings\":4096,\"rms_norm_eps\":1e-05,\"swiglu_limit\":7.0,\"eos_token_id\":3,"
    "\"rope_theta\":150000,\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":32.0,\"beta_fast\":32.0,"
    "\"beta_slow\":1.0,\"truncate\":false,\"original_max_position_embeddings\":128},"
    "\"quantization_config\":{\"quant_method\":\"mxrun\"}}";

static char folder[] = "/tmp/fuzz-quantized-XXXXXX", config_path[60], tensors_path[60];

static void clean(void) {
    unlink(config_path);
    unlink(tensors_path);
    rmdir(folder);
}

static void write_file(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    if (!file || fputs(text, file) < 0 || fclose(file) != 0) abort();
}

/* Once: config.json, and a file for the name of the input, whose content is the input's (fuzz_file). */
static void make_folder(void) {
    if (*config_path) return;
    if (!mkdtemp(folder)) abort();
    snprintf(config_path, sizeof config_path, "%s/config.json", folder);
    snprintf(tensors_path, sizeof tensors_path, "%s/model.safetensors", folder);
    write_file(config_path, config);
    write_file(tensors_path, "");
    atexit(clean);
}

static void make_tensors(const mx_checkpoint *ck) {
    for (int i = 0; i < mx_checkpoint_count(ck); i++) {
        const mx_tensor *t = mx_checkpoint_at(ck, i);
        const uint64_t slice = mx_tensor_slice_bytes(t);
        if (!t->bytes || !slice || slice > MOST) continue;
        uint8_t *out = malloc(slice);
        if (!out) abort();
        mx_tensor_slices(t, (int64_t)(t->bytes / slice) - 1, 1, out);
        free(out);
    }
}

static void read_rows(const mx_matrix *w) {
    float row[WIDEST];
    if (w->cols > WIDEST) abort();
    mx_matrix_widen_row(row, w, 0);
    mx_matrix_widen_row(row, w, w->rows - 1);
}

static void read_experts(const mx_experts *e, int count) {
    mx_matrix w = e->matrix;
    if (!w.rows) return;
    w.data += (count - 1) * e->data_stride;
    if (w.scales) w.scales += (count - 1) * e->scale_stride;
    if (w.zeros) w.zeros += (count - 1) * e->zero_stride;
    if (w.post) w.post += (count - 1) * e->post_stride;
    read_rows(&e->matrix);
    read_rows(&w);
    const int64_t bias = e->bias_stride ? e->bias_stride : w.rows * (e->bias_format == MX_BF16 ? 2 : 4);
    fuzz_touch(e->bias + (count - 1) * bias, (uint64_t)(w.rows * (e->bias_format == MX_BF16 ? 2 : 4)));
}

static void read_weights(const mx_weights *w) {
    const mx_layer *l = w->layer;
    const mx_matrix *const all[] = {&w->embedding, &w->lm_head, &l->q, &l->k, &l->v, &l->o, &l->router};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) read_rows(all[i]);
    read_experts(&l->gate_up, w->config.experts);
    read_experts(&l->up, w->config.experts);
    read_experts(&l->down, w->config.experts);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mx_error error;
    make_folder();
    fuzz_file(data, size);
    for (int rounding = MX_ROUND_NONE; rounding <= MX_ROUND_OCP; rounding++) {
        /* without the loading itself, which starts threads: what it makes is made here */
        const mx_load_options options = {.way = MX_LOAD_LOOK, .quantize_experts = (mx_rounding)rounding};
        mx_weights *w;
        if (mx_weights_load(folder, &options, NULL, &w, &error) != MX_OK) continue;
        make_tensors(w->checkpoint);
        read_weights(w);
        mx_weights_close(w);
    }
    return 0;
}
