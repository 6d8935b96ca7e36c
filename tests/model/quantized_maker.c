#include "quantized_maker.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define E8M0(c)                                                                                                        \
    { .columns = (c), .scale = MX_SCALE_E8M0 }
#define TWO(c)                                                                                                         \
    { .columns = (c), .scale = MX_SCALE_E8M0, .sides = true }
#define E4M3(c)                                                                                                        \
    { .columns = (c), .scale = MX_SCALE_E4M3 }
#define BF16(c)                                                                                                        \
    { .columns = (c), .scale = MX_SCALE_BF16 }
#define ZEROS(c)                                                                                                       \
    { .columns = (c), .scale = MX_SCALE_BF16, .zeros = true }
#define NONE                                                                                                           \
    { .columns = 0 }

const q_form q_forms[Q_FORMS] = {
    [Q_BF16] = {"BF16", "weight", "BF16", MX_BF16, NONE, .bf16_safe = true},
    [Q_MXFP4] = {"MXFP4", "weight_packed", "U8", MX_E2M1, E8M0(32), "U8", .bf16_safe = true},
    [Q_MXFP4_16] = {"MXFP4 of 16", "weight_packed", "U8", MX_E2M1, E8M0(16), "F8_E8M0", .bf16_safe = true},
    [Q_MXFP4_64] = {"MXFP4 of 64", "weight_packed", "U8", MX_E2M1, E8M0(64), "U8", .bf16_safe = true},
    [Q_AMXFP4] = {"AMXFP4", "weight_amxfp4", "U8", MX_E2M1, TWO(32), "U8", .bf16_safe = true},
    [Q_NVFP4] = {"NVFP4", "weight_packed", "U8", MX_E2M1, E4M3(16), "F8_E4M3", "weight_global_scale", "F32", 1, true,
                 true},
    [Q_MODELOPT] = {"NVFP4", "weight", "U8", MX_E2M1, E4M3(16), "F8_E4M3", "weight_scale_2", "F32", 0, false, true},
    [Q_E2M3] = {"MXFP6 E2M3", "weight_e2m3", "U8", MX_E2M3, E8M0(32), "U8", .bf16_safe = true},
    [Q_E3M2] = {"MXFP6 E3M2", "weight_e3m2", "U8", MX_E3M2, E8M0(32), "U8", .bf16_safe = true},
    [Q_MXFP8] = {"MXFP8 E4M3", "weight", "F8_E4M3", MX_E4M3, E8M0(32), "F8_E8M0", .bf16_safe = true},
    [Q_MXFP8_E5M2] = {"MXFP8 E5M2", "weight", "F8_E5M2", MX_E5M2, E8M0(32), "U8", .bf16_safe = true},
    [Q_FP8] = {"FP8 E4M3", "weight", "F8_E4M3", MX_E4M3, NONE, NULL, "weight_scale", "F32", 1, false, true},
    [Q_FP8_BF16] = {"FP8 E4M3", "weight", "F8_E4M3", MX_E4M3, NONE, NULL, "weight_scale", "BF16", 0, false, true},
    [Q_FP8_CHANNEL] = {"FP8 E4M3 channel", "weight", "F8_E4M3", MX_E4M3, NONE, NULL, "weight_scale", "F32", 2, false,
                       true},
    [Q_FP8_CHANNEL_BF16] = {"FP8 E4M3 channel", "weight", "F8_E4M3", MX_E4M3, NONE, NULL, "weight_scale", "BF16", 2,
                            false, true},
    [Q_FP8_E5M2] = {"FP8 E5M2", "weight", "F8_E5M2", MX_E5M2, NONE, NULL, "weight_scale", "F32", 1, false, true},
    [Q_INT8_32] = {"INT8 of 32", "weight", "I8", MX_INT8, BF16(32), "BF16", .post = NULL},
    [Q_INT8_64] = {"INT8 of 64", "weight", "I8", MX_INT8, BF16(64), "BF16", .post = NULL},
    [Q_INT8_128] = {"INT8 of 128", "weight", "I8", MX_INT8, BF16(128), "BF16", .post = NULL},
    [Q_INT8_ASYM] = {"INT8 of 64 asymmetric", "weight", "I8", MX_INT8, ZEROS(64), "BF16", .post = NULL},
    [Q_INT4_32] = {"INT4 of 32", "weight_packed", "I32", MX_INT4, BF16(32), "BF16", .post = NULL},
    [Q_INT4_64] = {"INT4 of 64", "weight_packed", "I32", MX_INT4, BF16(64), "BF16", .post = NULL},
    [Q_INT4_128] = {"INT4 of 128", "weight_packed", "I32", MX_INT4, BF16(128), "BF16", .post = NULL},
    [Q_INT4_ASYM] = {"INT4 of 32 asymmetric", "weight_packed", "I32", MX_INT4, ZEROS(32), "BF16", .post = NULL},
};

static uint64_t random_state;

static uint32_t next_random(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

/* Of low .. high. */
static float uniform(float low, float high) {
    return low + (high - low) * (float)(next_random() % 65536) / 65536;
}

static maker_tensor *add(maker *m, const char *module, const char *part, const char *dtype, int dims, int64_t a,
                         int64_t b) {
    char name[200];
    snprintf(name, sizeof name, "%s.%s", module, part);
    assert_true(strlen(name) < sizeof m->tensor->name);
    return maker_add(m, name, dtype, dims, (int64_t[]){a, b});
}

/* A vector of about +-`size`, the same in both. */
static void add_vector(maker *q, maker *twin, const char *name, int64_t n, float base, float size) {
    maker_tensor *t = maker_add(q, name, "BF16", 1, &n);
    for (int64_t i = 0; i < n; i++) {
        const uint16_t v = mx_f32_to_bf16(base + uniform(-size, size));
        memcpy(t->data + 2 * i, &v, 2);
    }
    if (!twin) return;
    maker_tensor *other = maker_add(twin, name, "BF16", 1, &n);
    memcpy(other->data, t->data, t->bytes);
}

/* Codes whose values are of the order of 1, some of them far smaller. */
static void fill_data(const q_form *f, uint8_t *data, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows * cols; i++) {
        uint16_t v;
        if (f->format == MX_BF16) {
            v = mx_f32_to_bf16(uniform(-0.2f, 0.2f));
            memcpy(data + 2 * i, &v, 2);
        } else if (f->format == MX_E4M3 || f->format == MX_E5M2) {
            data[i] = (uint8_t)mx_element_code(f->format, uniform(-4, 4) * (next_random() % 8 ? 1 : uniform(0, 1e-3f)));
        } else {
            mx_element_put(f->format, data, i, next_random()); /* rows end with a byte */
        }
    }
}

/* Weights become of the order of 0.1. */
static void fill_scales(const q_form *f, uint8_t *scales, int64_t count) {
    const int wide = f->format == MX_E3M2 ? 3 : 0;
    for (int64_t i = 0; i < count; i++) {
        const uint16_t v = mx_f32_to_bf16(uniform(0.5f, 1.0f) * (f->format == MX_INT8 ? 0.003f : 0.04f));
        switch (f->blocks.scale) {
        case MX_SCALE_E8M0:
            scales[i] = (uint8_t)(121 - wide + (int)(next_random() % 4));
            break;
        case MX_SCALE_E4M3:
            scales[i] = (uint8_t)(next_random() % 16 ? 0x30 + next_random() % 16 : next_random() % 8);
            break;
        default:
            memcpy(scales + 2 * i, &v, 2);
        }
    }
}

static void fill_posts(const q_form *f, maker_tensor *t, float *posts) {
    const bool bf16 = !strcmp(f->as, "BF16");
    const int64_t count = (int64_t)t->bytes / (bf16 ? 2 : 4);
    for (int64_t i = 0; i < count; i++) {
        float x = f->divides ? uniform(15, 25) : uniform(0.04f, 0.06f);
        const uint16_t half = mx_f32_to_bf16(x);
        if (bf16) x = mx_bf16_to_f32(half);
        memcpy(t->data + i * (bf16 ? 2 : 4), bf16 ? (const void *)&half : &x, bf16 ? 2 : 4);
        posts[i] = f->divides ? 1.0f / x : x;
    }
}

/* Zeros [rows, per_row], also as the file has them: INT4's packed by eight rows, plus 8. */
static void fill_zeros(const q_form *f, maker_tensor *t, int8_t *zeros, int64_t rows, int64_t per_row) {
    for (int64_t i = 0; i < rows * per_row; i++) {
        if (f->format == MX_INT8) {
            zeros[i] = (int8_t)(next_random() % 256);
            t->data[i] = (uint8_t)zeros[i];
            continue;
        }
        zeros[i] = (int8_t)(next_random() % 16 - 8);
        const int64_t row = i / per_row, word = row / 8 * per_row + i % per_row, bit = 4 * (row % 8);
        uint8_t *at = t->data + 4 * word + bit / 8;
        if (row % 8 == 0) memset(t->data + 4 * word, 0, 4);
        *at = (uint8_t)(*at | (zeros[i] + 8) << bit % 8);
    }
}

static void add_twin(maker *twin, const char *module, const mx_matrix *w) {
    maker_tensor *t = add(twin, module, "weight", "F32", 2, w->rows, w->cols);
    float row[256];
    for (int64_t n = 0; n < w->rows; n++) {
        mx_matrix_widen_row(row, w, n);
        memcpy(t->data + 4 * n * w->cols, row, 4 * (size_t)w->cols);
    }
}

static void add_module(maker *q, maker *twin, const char *module, int64_t rows, int64_t cols, q_choose *choose) {
    const q_form *f = &q_forms[choose(module)];
    const int64_t width = mx_columns_bytes(f->format, cols), per_row = f->blocks.columns ? cols / f->blocks.columns : 0;
    const int64_t elements = !strcmp(f->dtype, "I32") ? width / 4 : f->format == MX_BF16 ? cols : width;
    mx_matrix w = {.format = f->format, .rows = rows, .cols = cols, .row_stride = width, .blocks = f->blocks};
    float posts[512];
    int8_t *zeros = calloc((size_t)(rows * (per_row + 1)), 1);
    assert_non_null(zeros);
    maker_tensor *t = add(q, module, f->part, f->dtype, 2, rows, elements);
    fill_data(f, t->data, rows, cols);
    w.data = t->data;
    if (per_row) {
        t = add(q, module, "weight_scale", f->scale, 2, rows, per_row * (f->blocks.sides ? 2 : 1));
        fill_scales(f, t->data, rows * per_row * (f->blocks.sides ? 2 : 1));
        w.scales = t->data;
        w.scale_stride = mx_row_scale_bytes(&f->blocks, cols);
    }
    if (f->blocks.zeros) {
        const bool packed = f->format == MX_INT4;
        t = add(q, module, "weight_zero_point", packed ? "I32" : "I8", 2, packed ? (rows + 7) / 8 : rows, per_row);
        fill_zeros(f, t, zeros, rows, per_row);
        w.zeros = zeros;
        w.zero_stride = per_row;
    }
    if (f->format == MX_INT4) {
        t = add(q, module, "weight_shape", "I64", 1, 2, 0);
        memcpy(t->data, (int64_t[]){rows, cols}, 16);
    }
    if (f->post) {
        t = add(q, module, f->post, f->as, f->post_dims, f->post_dims == 2 ? rows : 1, 1);
        assert_true(rows <= 512);
        fill_posts(f, t, posts);
        w.post = posts;
        w.post_step = f->post_dims == 2;
    }
    if (twin) add_twin(twin, module, &w);
    free(zeros);
}

static void with_bias(maker *q, maker *twin, const char *module, int64_t rows, int64_t cols, q_choose *choose) {
    char name[300];
    snprintf(name, sizeof name, "%s.bias", module);
    add_module(q, twin, module, rows, cols, choose);
    add_vector(q, twin, name, rows, 0, 0.1f);
}

static void add_layer(maker *q, maker *twin, int layer, q_choose *choose) {
    char name[200];
    const int begin = snprintf(name, sizeof name, "model.layers.%d.", layer);
#define NAME(...) (snprintf(name + begin, sizeof name - (size_t)begin, __VA_ARGS__), name)
    add_vector(q, twin, NAME("input_layernorm.weight"), Q_HIDDEN, 1, 0.1f);
    with_bias(q, twin, NAME("self_attn.q_proj"), Q_HEADS * Q_HEAD, Q_HIDDEN, choose);
    with_bias(q, twin, NAME("self_attn.k_proj"), Q_KV_HEADS * Q_HEAD, Q_HIDDEN, choose);
    with_bias(q, twin, NAME("self_attn.v_proj"), Q_KV_HEADS * Q_HEAD, Q_HIDDEN, choose);
    with_bias(q, twin, NAME("self_attn.o_proj"), Q_HIDDEN, Q_HEADS * Q_HEAD, choose);
    add_vector(q, twin, NAME("self_attn.sinks"), Q_HEADS, 0, 1);
    add_vector(q, twin, NAME("post_attention_layernorm.weight"), Q_HIDDEN, 1, 0.1f);
    with_bias(q, twin, NAME("mlp.router"), Q_EXPERTS, Q_HIDDEN, choose);
    for (int e = 0; e < Q_EXPERTS; e++) {
        with_bias(q, twin, NAME("mlp.experts.%d.gate_proj", e), Q_INTERMEDIATE, Q_HIDDEN, choose);
        with_bias(q, twin, NAME("mlp.experts.%d.up_proj", e), Q_INTERMEDIATE, Q_HIDDEN, choose);
        with_bias(q, twin, NAME("mlp.experts.%d.down_proj", e), Q_HIDDEN, Q_INTERMEDIATE, choose);
    }
#undef NAME
}

static void begin(maker *m, bool tied) {
    static const char *const fields[][2] = {{"hidden_size", "128"},       {"intermediate_size", "128"},
                                            {"num_attention_heads", "4"}, {"num_key_value_heads", "2"},
                                            {"num_local_experts", "4"},   {"num_experts_per_tok", "2"},
                                            {"vocab_size", "48"}};
    maker_open(m);
    for (int i = 0; i < m->tensors; i++) free(m->tensor[i].data);
    m->tensors = 0;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) maker_set(m, fields[i][0], fields[i][1]);
    if (tied) maker_set(m, "tie_word_embeddings", "true");
}

void q_make(maker *q, maker *twin, q_choose *choose, bool tied) {
    random_state = 7;
    begin(q, tied);
    if (twin) begin(twin, tied);
    maker_set(q, "quantization_config", "{\"quant_method\":\"mxrun\"}");
    add_module(q, twin, "model.embed_tokens", Q_VOCAB, Q_HIDDEN, choose);
    for (int i = 0; i < Q_LAYERS; i++) add_layer(q, twin, i, choose);
    add_vector(q, twin, "model.norm.weight", Q_HIDDEN, 1, 0.1f);
    if (!tied) add_module(q, twin, "lm_head", Q_VOCAB, Q_HIDDEN, choose);
}

maker_tensor *q_part(maker *q, const char *module, const char *part) {
    char name[200];
    snprintf(name, sizeof name, "%s.%s", module, part);
    return maker_find(q, name);
}

void q_scatter(maker *q, int files) {
    q->files = files;
    for (int i = q->tensors - 1; i >= 0; i--) {
        const int other = (int)(next_random() % (uint32_t)(i + 1));
        const maker_tensor t = q->tensor[i];
        q->tensor[i] = q->tensor[other];
        q->tensor[other] = t;
        q->tensor[i].file = (int)(next_random() % (uint32_t)files);
    }
}
