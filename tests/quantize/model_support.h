#ifndef TESTS_QUANTIZE_MODEL_SUPPORT_H
#define TESTS_QUANTIZE_MODEL_SUPPORT_H

/* Whole models that are quantised, and what the reader makes of them. */
#include <errno.h>
#include <math.h>
#include <sys/stat.h>

#include "../commands/support.h"
#include "quantize/model.h"

static mx_error error;
static mx_pool *pool;

static inline const char *in_folder(const char *name) {
    static char paths[16][400];
    static int next;
    char *path = paths[next++ % 16];
    snprintf(path, 400, "%s/%s", test_folder, name);
    return path;
}

static inline const char *checkout(const char *name) {
    static char path[4096];
    snprintf(path, sizeof path, "%s/%s", getenv("MXRUN_SOURCE"), name);
    return path;
}

#define TOP1 checkout("tests/data/top1")

static inline bool exists(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0;
}

static inline mx_bytes content(const char *path) {
    mx_bytes bytes = {0};
    if (mx_read_file(path, 1 << 30, &bytes, &error)) fail_msg("%s", error.text);
    return bytes;
}

static inline bool same_content(const char *a, const char *b) {
    mx_bytes x = content(a), y = content(b);
    const bool same = x.size == y.size && !memcmp(x.data, y.data, x.size);
    mx_bytes_free(&x);
    mx_bytes_free(&y);
    return same;
}

static inline const char *rules(const char *text) {
    static char path[200];
    write_test_file("rules.txt", text, path);
    return path;
}

static inline mx_model_options as(const char *experts, const char *others) {
    return (mx_model_options){.choice = {.format = {[MX_GROUP_EXPERTS] = experts,
                                                    [MX_GROUP_ATTENTION] = others,
                                                    [MX_GROUP_ROUTER] = others,
                                                    [MX_GROUP_EMBEDDING] = others,
                                                    [MX_GROUP_LM_HEAD] = others}},
                              .force = true,
                              .pool = pool};
}

static inline mx_model_report quantize(const char *in, const char *out, const mx_model_options *options) {
    mx_model_report report;
    if (mx_quantize_model(in, out, options, &report, &error)) fail_msg("%s: %s", out, error.text);
    assert_true(options->dry_run || exists(out));
    return report;
}

static inline void make(const char *in, const char *out, const char *experts, const char *others) {
    const mx_model_options o = as(experts, others);
    mx_model_report report = quantize(in, out, &o);
    mx_model_report_free(&report);
}

static inline void refuse(const char *in, const char *out, const mx_model_options *options, mx_status status,
                          const char *part) {
    mx_model_report report;
    char grows[420];
    const bool there = exists(out);
    const mx_status found = mx_quantize_model(in, out, options, &report, &error);
    if (found != status || !strstr(error.text, part) || strchr(error.text, '\n'))
        fail_msg("%s: %s; expected %s with \"%s\"", mx_status_name(found), error.text, mx_status_name(status), part);
    snprintf(grows, sizeof grows, "%s.incomplete", out);
    assert_int_equal(exists(out), there);
    assert_false(exists(grows));
    mx_model_report_free(&report);
}

/* ---- numbers ------------------------------------------------------------------------------------------------------
 */

static inline float *numbers(const mx_module *m) {
    float *x = malloc((size_t)(m->rows * m->cols) * sizeof *x);
    m->read(m->user, 0, m->rows, x);
    return x;
}

static inline void expect_same_numbers(const char *a, const char *b) {
    mx_source x, y;
    if (mx_source_open(a, &x, &error) || mx_source_open(b, &y, &error)) fail_msg("%s", error.text);
    assert_int_equal(x.modules, y.modules);
    for (int i = 0; i < x.modules; i++) {
        const mx_module *m = &x.module[i], *n = mx_source_find(&y, m->name);
        assert_non_null(n);
        float *p = numbers(m), *q = numbers(n);
        for (int64_t k = 0; k < m->rows * m->cols; k++)
            if (p[k] != q[k])
                fail_msg("%s: number %lld is %g and %g", m->name, (long long)k, (double)p[k], (double)q[k]);
        free(p);
        free(q);
    }
    const bool vectors = mx_checkpoint_layout(y.checkpoint) == MX_LAYOUT_HF; /* GGUF widens them */
    for (int i = 0; i < x.vectors && vectors; i++) {
        const mx_tensor *t = x.vector[i].tensor, *u = mx_checkpoint_find(y.checkpoint, t->name);
        assert_true(u && u->bytes == t->bytes && !memcmp(t->data, u->data, t->bytes));
    }
    mx_source_close(&x);
    mx_source_close(&y);
}

static inline mx_matrix expert_of(const mx_experts *e, int64_t index) {
    mx_matrix w = e->matrix;
    w.data += index * e->data_stride;
    if (w.scales) w.scales += index * e->scale_stride;
    if (w.zeros) w.zeros += index * e->zero_stride;
    if (w.post) w.post += index * e->post_stride;
    return w;
}

/* The module's matrix as the reader has it; rows are every step-th from *first on. */
static inline mx_matrix matrix_of(const mx_weights *w, const mx_module *m, int64_t *first, int64_t *step) {
    const mx_layer *layer = m->layer >= 0 ? &w->layer[m->layer] : NULL;
    *first = 0;
    *step = 1;
    switch (m->kind) {
    case MX_KIND_Q:
        return layer->q;
    case MX_KIND_K:
        return layer->k;
    case MX_KIND_V:
        return layer->v;
    case MX_KIND_O:
        return layer->o;
    case MX_KIND_ROUTER:
        return layer->router;
    case MX_KIND_EMBEDDING:
        return w->embedding;
    case MX_KIND_LM_HEAD:
        return w->lm_head;
    case MX_KIND_DOWN:
        return expert_of(&layer->down, m->expert);
    default:
        if (layer->up.matrix.rows) return expert_of(m->kind == MX_KIND_UP ? &layer->up : &layer->gate_up, m->expert);
        *first = m->kind == MX_KIND_UP;
        *step = 2;
        return expert_of(&layer->gate_up, m->expert);
    }
}

static inline float bias_at(const mx_experts *x, int64_t expert, int64_t n) {
    const bool single = x->bias_format == MX_F32;
    const int64_t size = single ? 4 : 2, stride = x->bias_stride ? x->bias_stride : x->matrix.rows * size;
    const uint8_t *at = x->bias + expert * stride + n * size;
    float value;
    memcpy(&value, at, single ? 4 : 1);
    return single ? value : mx_bf16_to_f32(mx_load_u16(at));
}

/* From a tensor of BF16. */
static inline void expect_biases(const mx_source *s, const mx_weights *w, int layer) {
    const int64_t inner = w->config.intermediate;
    char name[100];
    snprintf(name, sizeof name, "model.layers.%d.mlp.experts.gate_up_proj_bias", layer);
    const mx_tensor *t = mx_checkpoint_find(s->checkpoint, name);
    const mx_experts *gate = &w->layer[layer].gate_up, *up = &w->layer[layer].up;
    assert_int_equal(t->dtype, MX_DTYPE_BF16);
    for (int e = 0; e < w->config.experts; e++)
        for (int64_t i = 0; i < 2 * inner; i++) {
            const float was = mx_bf16_to_f32(mx_load_u16(t->data + (size_t)(e * 2 * inner + i) * 2));
            const bool apart = up->matrix.rows > 0;
            assert_true(was == bias_at(apart && i % 2 ? up : gate, e, apart ? i / 2 : i));
        }
}

/* The reader's numbers are as far from the source's as the report says. */
static inline void expect_as_reported(const char *in, const char *out, const mx_model_report *report) {
    mx_source s;
    mx_weights *w;
    if (mx_source_open(in, &s, &error) || mx_weights_open(out, pool, &w, &error)) fail_msg("%s", error.text);
    for (int i = 0; i < report->matrices; i++) {
        const mx_model_matrix *line = &report->matrix[i];
        char name[200];
        double far = 0;
        snprintf(name, sizeof name, "%s", line->name);
        char *pair = strstr(name, "gate_up_proj");
        for (int part = 0; part < (pair ? 2 : 1); part++) {
            if (pair) strcpy(pair, part ? "up_proj" : "gate_proj");
            const mx_module *m = mx_source_find(&s, name);
            assert_non_null(m);
            int64_t first, step;
            const mx_matrix x = matrix_of(w, m, &first, &step);
            assert_int_equal(x.cols, m->cols);
            assert_int_equal(x.rows, m->rows * step);
            float *was = numbers(m), *is = malloc((size_t)m->cols * sizeof *is);
            for (int64_t n = 0; n < m->rows; n++) {
                mx_matrix_widen_row(is, &x, first + n * step);
                for (int64_t k = 0; k < m->cols; k++) far += pow((double)was[n * m->cols + k] - is[k], 2);
            }
            free(was);
            free(is);
        }
        if (fabs(far - line->report.error) > 1e-5 * line->report.error + 1e-12)
            fail_msg("%s: squared error %g, reported %g", line->name, far, line->report.error);
    }
    for (int layer = 0; layer < w->config.layers; layer++) expect_biases(&s, w, layer);
    mx_weights_close(w);
    mx_source_close(&s);
}

/* ---- models ----
 */

static inline void copy_file(const char *from, const char *to) {
    mx_bytes bytes = content(from);
    FILE *f = fopen(to, "wb");
    assert_int_equal(fwrite(bytes.data, 1, bytes.size, f), bytes.size);
    assert_int_equal(fclose(f), 0);
    mx_bytes_free(&bytes);
}

/* Writes over the first bytes of a tensor in NAME/model.safetensors. */
static inline void overwrite(const char *name, const char *tensor, const void *bytes, size_t size) {
    char path[420];
    mx_checkpoint *ck;
    uint64_t header;
    snprintf(path, sizeof path, "%s/model.safetensors", in_folder(name));
    if (mx_checkpoint_open_as(path, MX_EXPERTS_STORED, &ck, &error)) fail_msg("%s", error.text);
    const mx_tensor *t = mx_checkpoint_find(ck, tensor);
    const uint8_t *lowest = t->data;
    for (int i = 0; i < mx_checkpoint_count(ck); i++)
        if (mx_checkpoint_at(ck, i)->data < lowest) lowest = mx_checkpoint_at(ck, i)->data;
    FILE *f = fopen(path, "r+b");
    assert_int_equal(fread(&header, 8, 1, f), 1);
    assert_int_equal(fseek(f, (long)(8 + header + (uint64_t)(t->data - lowest)), SEEK_SET), 0);
    assert_int_equal(fwrite(bytes, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
    mx_checkpoint_close(ck);
}

static inline void write_nan(const char *name) {
    overwrite(name, "model.layers.1.mlp.experts.down_proj", "\xC0\x7F", 2);
}

typedef struct tensor {
    const char *name, *dtype, *shape;
    int width;
    int64_t count;
} tensor;

static const tensor llama[] = {
    {"model.embed_tokens.weight", "BF16", "[40, 64]", 2, 40 * 64},
    {"model.layers.0.input_layernorm.weight", "BF16", "[64]", 2, 64},
    {"model.layers.0.self_attn.q_proj.weight", "BF16", "[96, 64]", 2, 96 * 64},
    {"model.layers.0.self_attn.o_proj.weight", "F16", "[64, 96]", 2, 64 * 96},
    {"model.layers.0.mlp.gate_proj.weight", "F32", "[33, 64]", 4, 33 * 64},
    {"model.layers.0.block_sparse_moe.experts.3.w2.weight", "BF16", "[64, 128]", 2, 64 * 128},
    {"model.layers.0.block_sparse_moe.gate.weight", "BF16", "[8, 64]", 2, 8 * 64},
    {"model.layers.0.mlp.experts.gate_up_proj", "BF16", "[2, 4, 8]", 2, 64}, /* of no gpt-oss: a tensor like others */
    {"vision.conv.weight", "BF16", "[4, 3, 2, 2]", 2, 48},
    {"vision.position.weight", "BF16", "[4, 30]", 2, 120},
    {"model.layers.0.self_attn.index", "I64", "[2, 3]", 8, 6},
    {"empty.weight", "BF16", "[0, 64]", 2, 0},
};
enum { LLAMA = sizeof llama / sizeof *llama };

/* A folder; number `bad_at` of tensor `bad` is infinite or NaN. bad -1: none. */
static inline const char *write_llama(const char *name, int bad, int64_t bad_at, float value, const char *config) {
    char path[500];
    mx_bytes header = {0}, data = {0};
    uint64_t at = 0;
    mx_bytes_add(&header, &at, 8);
    for (int i = 0; i < LLAMA; i++) {
        const tensor *t = &llama[i];
        const uint64_t size = (uint64_t)t->count * (uint64_t)t->width;
        mx_bytes_addf(&header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%llu,%llu]}", i ? "," : "{",
                      t->name, t->dtype, t->shape, (unsigned long long)at, (unsigned long long)(at + size));
        at += size;
        for (int64_t k = 0; k < t->count; k++) {
            const float x = i == bad && k == bad_at ? value : sinf((float)(k * (i + 1))) / 8;
            const uint16_t half = !strcmp(t->dtype, "F16") ? mx_f32_to_f16(x) : mx_f32_to_bf16(x);
            const int64_t whole = k;
            mx_bytes_add(&data,
                         t->width == 8   ? (const void *)&whole
                         : t->width == 4 ? (const void *)&x
                                         : &half,
                         (size_t)t->width);
        }
    }
    mx_bytes_add_string(&header, "}");
    const uint64_t length = header.size - 8;
    memcpy(header.data, &length, 8);
    mkdir(in_folder(name), 0777);
    for (int i = 0; i < (config ? 2 : 1); i++) {
        snprintf(path, sizeof path, "%s/%s", in_folder(name), i ? "config.json" : "model.safetensors");
        FILE *f = fopen(path, "wb");
        if (i && config) fputs(config, f);
        if (!i) fwrite(header.data, 1, header.size, f);
        if (!i) fwrite(data.data, 1, data.size, f);
        assert_int_equal(fclose(f), 0);
    }
    mx_bytes_free(&header);
    mx_bytes_free(&data);
    return in_folder(name);
}

static inline int set_up(void **state) {
    return program_set_up(state) || mx_pool_create(2, &pool, &error) ? -1 : 0;
}

static inline int tear_down(void **state) {
    mx_pool_destroy(pool);
    return program_tear_down(state);
}

#endif
