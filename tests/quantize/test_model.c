/* Whole models into other formats, and back: what is written is what the reader takes it for, and what cannot be is
 * refused by name with nothing left under the name of the output. */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "../commands/support.h"
#include "quantize/model.h"

static mx_error error;
static mx_pool *pool;

static const char *in_folder(const char *name) {
    static char paths[16][400];
    static int next;
    char *path = paths[next++ % 16];
    snprintf(path, 400, "%s/%s", test_folder, name);
    return path;
}

static const char *checkout(const char *name) {
    static char path[4096];
    snprintf(path, sizeof path, "%s/%s", getenv("MXRUN_SOURCE"), name);
    return path;
}

#define TOP1 checkout("tests/data/top1")

static bool exists(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0;
}

static mx_bytes content(const char *path) {
    mx_bytes bytes = {0};
    if (mx_read_file(path, 1 << 30, &bytes, &error)) fail_msg("%s", error.text);
    return bytes;
}

static bool same_content(const char *a, const char *b) {
    mx_bytes x = content(a), y = content(b);
    const bool same = x.size == y.size && !memcmp(x.data, y.data, x.size);
    mx_bytes_free(&x);
    mx_bytes_free(&y);
    return same;
}

static const char *rules(const char *text) {
    static char path[200];
    write_test_file("rules.txt", text, path);
    return path;
}

static mx_model_options as(const char *experts, const char *others) {
    return (mx_model_options){.choice = {.format = {[MX_GROUP_EXPERTS] = experts,
                                                    [MX_GROUP_ATTENTION] = others,
                                                    [MX_GROUP_ROUTER] = others,
                                                    [MX_GROUP_EMBEDDING] = others,
                                                    [MX_GROUP_LM_HEAD] = others}},
                              .force = true,
                              .pool = pool};
}

static mx_model_report quantize(const char *in, const char *out, const mx_model_options *options) {
    mx_model_report report;
    if (mx_quantize_model(in, out, options, &report, &error)) fail_msg("%s: %s", out, error.text);
    assert_true(options->dry_run || exists(out));
    return report;
}

static void make(const char *in, const char *out, const char *experts, const char *others) {
    const mx_model_options o = as(experts, others);
    mx_model_report report = quantize(in, out, &o);
    mx_model_report_free(&report);
}

static void refuse(const char *in, const char *out, const mx_model_options *options, mx_status status,
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

static float *numbers(const mx_module *m) {
    float *x = malloc((size_t)(m->rows * m->cols) * sizeof *x);
    m->read(m->user, 0, m->rows, x);
    return x;
}

static void expect_same_numbers(const char *a, const char *b) {
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

static mx_matrix expert_of(const mx_experts *e, int64_t index) {
    mx_matrix w = e->matrix;
    w.data += index * e->data_stride;
    if (w.scales) w.scales += index * e->scale_stride;
    if (w.zeros) w.zeros += index * e->zero_stride;
    if (w.post) w.post += index * e->post_stride;
    return w;
}

/* The module's matrix as the reader has it; rows are every step-th from *first on. */
static mx_matrix matrix_of(const mx_weights *w, const mx_module *m, int64_t *first, int64_t *step) {
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

static float bias_at(const mx_experts *x, int64_t expert, int64_t n) {
    const bool single = x->bias_format == MX_F32;
    const int64_t size = single ? 4 : 2, stride = x->bias_stride ? x->bias_stride : x->matrix.rows * size;
    const uint8_t *at = x->bias + expert * stride + n * size;
    float value;
    memcpy(&value, at, single ? 4 : 1);
    return single ? value : mx_bf16_to_f32(mx_load_u16(at));
}

/* From a tensor of BF16. */
static void expect_biases(const mx_source *s, const mx_weights *w, int layer) {
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
static void expect_as_reported(const char *in, const char *out, const mx_model_report *report) {
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

/* ---- formats ------------------------------------------------------------------------------------------------------
 */

static void test_formats(void **state) {
    (void)state;
    static const struct {
        const char *experts, *others;
    } cases[] = {
        {"mxfp4", "nvfp4"},           {"nvfp4", "mxfp4"},        {"mxfp4:16", "int4:32:asym"}, {"amxfp4", "mxfp6_e2m3"},
        {"mxfp6_e3m2", "mxfp8_e5m2"}, {"mxfp8", "amxfp4"},       {"fp8", "fp8:channel"},       {"fp8:channel", "fp8"},
        {"int8:32", "int8:32:asym"},  {"int4:32:asym", "mxfp8"}, {"int8:32:asym", "int4:32"},  {"bf16", "mxfp4:16"},
    };
    make(TOP1, in_folder("bf16"), "bf16", "keep");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const mx_model_options o = as(cases[i].experts, cases[i].others);
        mx_model_report report = quantize(in_folder("bf16"), in_folder("made"), &o);
        expect_as_reported(in_folder("bf16"), in_folder("made"), &report);
        mx_model_report_free(&report);
    }
    mx_model_options o = as("nvfp4", "nvfp4");
    o.modelopt = true;
    mx_model_report report = quantize(in_folder("bf16"), in_folder("made"), &o);
    expect_as_reported(in_folder("bf16"), in_folder("made"), &report);
    assert_true(exists(in_folder("made/hf_quant_config.json")));
    mx_model_report_free(&report);
    o = as("nvfp4", "mxfp8");
    o.modelopt = true;
    refuse(in_folder("bf16"), in_folder("none"), &o, MX_INVALID_ARGUMENT, "ModelOpt's names are for NVFP4 alone");
    const mx_model_options large = as("int8:64", NULL), unknown = as("mxfp5", NULL);
    refuse(TOP1, in_folder("none"), &large, MX_INVALID_ARGUMENT, "has 160 columns, no multiple of 64");
    refuse(TOP1, in_folder("none"), &unknown, MX_INVALID_ARGUMENT, "mxfp5");
}

static void expect_method(const char *folder, const char *method) {
    char text[100];
    mx_bytes config = content(in_folder(folder));
    snprintf(text, sizeof text, "\"quant_method\": \"%s\"", method);
    if (!strstr(config.data, text)) fail_msg("%s: no %s", config.data, text);
    mx_bytes_free(&config);
}

/* transformers' mxfp4 is all experts and nothing else; for compressed-tensors each has tensors of its own. */
static void test_methods(void **state) {
    (void)state;
    make(TOP1, in_folder("wide"), "bf16", "keep");
    make(in_folder("wide"), in_folder("made"), "mxfp4", "keep");
    expect_method("made/config.json", "mxfp4");
    for (int i = 0; i < 2; i++) { /* made of BF16, and the bytes that were there */
        make(in_folder(i ? "made" : "wide"), in_folder("apart"), i ? "keep" : "mxfp4", "nvfp4");
        expect_method("apart/config.json", "compressed-tensors");
        mx_source s;
        mx_weights *w;
        mx_checkpoint *ck;
        if (mx_checkpoint_open(in_folder("apart"), &ck, &error)) fail_msg("%s", error.text);
        assert_null(mx_checkpoint_find(ck, "model.layers.1.mlp.experts.down_proj_blocks"));
        assert_non_null(mx_checkpoint_find(ck, "model.layers.1.mlp.experts.1.up_proj.weight_packed"));
        mx_checkpoint_close(ck);
        if (mx_source_open(TOP1, &s, &error) || mx_weights_open(in_folder("apart"), pool, &w, &error))
            fail_msg("%s", error.text);
        assert_true(w->layer[1].up.matrix.format == MX_MXFP4 && w->layer[1].down.matrix.format == MX_MXFP4);
        for (int m = 0; m < s.modules; m++) {
            if (s.module[m].expert < 0) continue;
            int64_t first, step;
            const mx_matrix x = matrix_of(w, &s.module[m], &first, &step);
            float *was = numbers(&s.module[m]), row[256];
            assert_true(step == 1 && x.cols <= 256);
            for (int64_t n = 0; n < x.rows; n++) {
                mx_matrix_widen_row(row, &x, n);
                for (int64_t k = 0; k < x.cols; k++) assert_true(row[k] == was[n * x.cols + k]);
            }
            free(was);
        }
        for (int layer = 0; layer < w->config.layers; layer++) expect_biases(&s, w, layer);
        mx_weights_close(w);
        mx_source_close(&s);
    }
    mx_model_options o = as("keep", "keep");
    o.choice.rules = rules("*.layers.1.mlp.experts.*.down_proj mxfp4\n");
    mx_model_report report = quantize(in_folder("wide"), in_folder("some"), &o);
    expect_method("some/config.json", "compressed-tensors");
    expect_as_reported(in_folder("wide"), in_folder("some"), &report);
    mx_model_report_free(&report);
    o = as("mxfp4", "mxfp8_e5m2"); /* a name of our own: only we read it */
    report = quantize(in_folder("made"), in_folder("own"), &o);
    expect_method("own/config.json", "mxrun");
    expect_as_reported(in_folder("made"), in_folder("own"), &report);
    mx_model_report_free(&report);
    o = as("keep", "keep");
    o.modelopt = true;
    refuse(in_folder("wide"), in_folder("none"), &o, MX_INVALID_ARGUMENT, "nothing is to be quantised");
}

static void copy_file(const char *from, const char *to) {
    mx_bytes bytes = content(from);
    FILE *f = fopen(to, "wb");
    assert_int_equal(fwrite(bytes.data, 1, bytes.size, f), bytes.size);
    assert_int_equal(fclose(f), 0);
    mx_bytes_free(&bytes);
}

/* A copy of the folder `from`, all of BF16, in F16 or F32. */
static void write_twin(const char *from, const char *name, bool single) {
    char path[420];
    mx_checkpoint *ck;
    mx_bytes header = {0}, data = {0};
    uint64_t at = 0;
    if (mx_checkpoint_open_as(in_folder(from), MX_EXPERTS_STORED, &ck, &error)) fail_msg("%s", error.text);
    mx_bytes_add(&header, &at, 8);
    for (int i = 0; i < mx_checkpoint_count(ck); i++) {
        const mx_tensor *t = mx_checkpoint_at(ck, i);
        assert_int_equal(t->dtype, MX_DTYPE_BF16);
        mx_bytes_addf(&header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "{", t->name,
                      single ? "F32" : "F16");
        for (int k = 0; k < t->dims; k++) mx_bytes_addf(&header, "%s%lld", k ? "," : "", (long long)t->shape[k]);
        mx_bytes_addf(&header, "],\"data_offsets\":[%llu,", (unsigned long long)data.size);
        for (uint64_t k = 0; k < t->bytes; k += 2) {
            const float x = mx_bf16_to_f32(mx_load_u16(t->data + k));
            const uint16_t half = mx_f32_to_f16(x);
            mx_bytes_add(&data, single ? (const void *)&x : (const void *)&half, single ? 4 : 2);
        }
        mx_bytes_addf(&header, "%llu]}", (unsigned long long)data.size);
    }
    mx_bytes_add_string(&header, "}");
    const uint64_t length = header.size - 8;
    memcpy(header.data, &length, 8);
    mkdir(in_folder(name), 0777);
    snprintf(path, sizeof path, "%s/config.json", in_folder(from));
    char to[420];
    snprintf(to, sizeof to, "%s/config.json", in_folder(name));
    copy_file(path, to);
    snprintf(path, sizeof path, "%s/model.safetensors", in_folder(name));
    FILE *f = fopen(path, "wb");
    assert_int_equal(fwrite(header.data, 1, header.size, f), header.size);
    assert_int_equal(fwrite(data.data, 1, data.size, f), data.size);
    assert_int_equal(fclose(f), 0);
    mx_bytes_free(&header);
    mx_bytes_free(&data);
    mx_checkpoint_close(ck);
}

/* Writes over the first bytes of a tensor in NAME/model.safetensors. */
static void overwrite(const char *name, const char *tensor, const void *bytes, size_t size) {
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

/* A copy of top1 with a block whose largest code is 0.5, which OCP's rule gives another scale. */
static void write_odd(void) {
    char from[4200], block[16];
    mkdir(in_folder("odd"), 0777);
    snprintf(from, sizeof from, "%s/config.json", TOP1);
    copy_file(from, in_folder("odd/config.json"));
    snprintf(from, sizeof from, "%s/model.safetensors", TOP1);
    copy_file(from, in_folder("odd/model.safetensors"));
    memset(block, 0x91, sizeof block);
    overwrite("odd", "model.layers.1.mlp.experts.down_proj_blocks", block, sizeof block);
}

static void write_nan(const char *name) {
    overwrite(name, "model.layers.1.mlp.experts.down_proj", "\xC0\x7F", 2);
}

/* MXFP4 as numbers and back, and into itself: the same values, with "keep" the same bytes. */
static void test_again(void **state) {
    (void)state;
    write_odd();
    make(in_folder("odd"), in_folder("wide"), "bf16", "keep");
    make(in_folder("wide"), in_folder("back"), "mxfp4", "keep");
    expect_same_numbers(in_folder("odd"), in_folder("wide"));
    expect_same_numbers(in_folder("odd"), in_folder("back"));
    const mx_model_options plain = as("mxfp4", NULL);
    mx_model_options keep = plain;
    keep.choice.recipe.rule = MX_RULE_KEEP;
    mx_model_report report = quantize(in_folder("odd"), in_folder("again"), &plain);
    expect_same_numbers(in_folder("odd"), in_folder("again"));
    for (int i = 0; i < report.matrices; i++)
        assert_true(report.matrix[i].kept || (report.matrix[i].was_mxfp4 && report.matrix[i].report.lossless));
    mx_model_report_free(&report);
    report = quantize(in_folder("odd"), in_folder("kept"), &keep);
    mx_model_report_free(&report);
    mx_checkpoint *x, *y;
    if (mx_checkpoint_open(in_folder("odd"), &x, &error) || mx_checkpoint_open(in_folder("kept"), &y, &error))
        fail_msg("%s", error.text);
    assert_int_equal(mx_checkpoint_count(x), mx_checkpoint_count(y));
    for (int i = 0; i < mx_checkpoint_count(x); i++) {
        const mx_tensor *t = mx_checkpoint_at(x, i), *u = mx_checkpoint_at(y, i);
        assert_string_equal(t->name, u->name);
        assert_true(t->bytes == u->bytes && !memcmp(t->data, u->data, t->bytes));
    }
    mx_checkpoint_close(y);
    if (mx_checkpoint_open(in_folder("again"), &y, &error)) fail_msg("%s", error.text);
    const char *name = "model.layers.1.mlp.experts.down_proj_scales";
    assert_true(*mx_checkpoint_find(x, name)->data == *mx_checkpoint_find(y, name)->data + 3);
    mx_checkpoint_close(x);
    mx_checkpoint_close(y);
}

/* Codes and scales; vectors may have another type. */
static void expect_same_codes(const char *a, const char *b) {
    mx_checkpoint *x, *y;
    int compared = 0;
    if (mx_checkpoint_open(a, &x, &error) || mx_checkpoint_open(b, &y, &error)) fail_msg("%s", error.text);
    for (int i = 0; i < mx_checkpoint_count(x); i++) {
        const mx_tensor *t = mx_checkpoint_at(x, i), *u = mx_checkpoint_find(y, t->name);
        assert_non_null(u);
        if (t->dtype != MX_DTYPE_U8 && t->dtype != MX_DTYPE_I8 && !mx_ends_with(t->name, "_scale")) continue;
        assert_true(t->bytes == u->bytes && !memcmp(t->data, u->data, t->bytes));
        compared++;
    }
    assert_true(compared > 20);
    mx_checkpoint_close(x);
    mx_checkpoint_close(y);
}

static float global_scale(const mx_checkpoint *ck, const char *module) {
    char name[200];
    float value;
    snprintf(name, sizeof name, "model.layers.1.%s.weight_global_scale", module);
    const mx_tensor *t = mx_checkpoint_find(ck, name);
    assert_non_null(t);
    memcpy(&value, t->data, sizeof value);
    return value;
}

/* NVFP4's tensor scale is one for what vLLM joins, that of the largest number. */
static void test_shared_scale(void **state) {
    (void)state;
    make(TOP1, in_folder("wide"), "bf16", "keep");
    const uint16_t numbers[2] = {0x40CA, 0x4049}; /* 6.3125 and 3.140625 in row 0 of expert 0's gate and up */
    overwrite("wide", "model.layers.1.mlp.experts.gate_up_proj", numbers, sizeof numbers);
    overwrite("wide", "model.layers.1.self_attn.k_proj.weight", numbers, sizeof numbers);
    mx_model_options o = as("nvfp4", "nvfp4");
    for (int search = 0; search < 2; search++) {
        o.choice.recipe.tensor_search = search;
        mx_model_report report = quantize(in_folder("wide"), in_folder("made"), &o);
        expect_as_reported(in_folder("wide"), in_folder("made"), &report);
        mx_model_report_free(&report);
        mx_checkpoint *ck;
        if (mx_checkpoint_open(in_folder("made"), &ck, &error)) fail_msg("%s", error.text);
        const float expected = 448 * 6 / 6.3125f;
        static const char *const same[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                           "mlp.experts.0.gate_proj", "mlp.experts.0.up_proj"};
        int found = 0;
        for (size_t i = 0; i < sizeof same / sizeof *same; i++)
            found += fabsf(global_scale(ck, same[i]) - expected) < 1e-5f * expected;
        assert_true(search ? found < 5 : found == 5);
        assert_true(global_scale(ck, "self_attn.o_proj") > 2 * expected);
        const float power = global_scale(ck, "mlp.experts.1.up_proj"); /* loses nothing */
        assert_true(exp2f(rintf(log2f(power))) == power);
        mx_checkpoint_close(ck);
    }
}

/* F16 and F32: the same result as of BF16. What rotation makes of F16 is said as it is. */
static void test_halves(void **state) {
    (void)state;
    make(TOP1, in_folder("wide"), "bf16", "keep");
    make(in_folder("wide"), in_folder("of-bf16"), "mxfp4", "int8:32");
    for (int single = 0; single < 2; single++) {
        write_twin("wide", "twin", single);
        make(in_folder("twin"), in_folder("of-twin"), "mxfp4", "int8:32");
        expect_same_codes(in_folder("of-bf16"), in_folder("of-twin"));
        mx_model_options o = as("keep", "keep");
        o.choice.recipe.hadamard = true;
        mx_model_report report = quantize(in_folder("twin"), in_folder("turned"), &o);
        for (int i = 0; i < report.classes; i++) {
            const mx_model_class *c = &report.of_class[i];
            assert_true(c->form.format == (single ? MX_F32 : MX_F16) && c->sum.square > 0);
            assert_true(c->sum.lossless == single && (c->sum.error > 0) == !single);
            assert_true(c->sum.error < 1e-6 * c->sum.square);
        }
        mx_model_report_free(&report);
        write_twin("wide", "twin", single);
        const char *name = "model.layers.1.self_attn.q_proj.weight";
        o.choice.format[MX_GROUP_EXPERTS] = "mxfp4";
        if (!single) {
            uint16_t halves[32]; /* 65504, which rotation adds up */
            for (int i = 0; i < 32; i++) halves[i] = 0x7BFF;
            overwrite("twin", name, halves, sizeof halves);
            refuse(in_folder("twin"), in_folder("none"), &o, MX_INVALID_FILE, "after rotation, more than F16 holds");
            assert_non_null(strstr(error.text, "model.layers.1.self_attn.q_proj: row 0, column 0"));
            o.choice.format[MX_GROUP_ATTENTION] = "bf16";
            report = quantize(in_folder("twin"), in_folder("turned"), &o);
            mx_model_report_free(&report);
        }
        o.choice.format[MX_GROUP_ATTENTION] = "keep";
        overwrite("twin", name, single ? (const void *)(float[]){NAN} : (const void *)(uint16_t[]){0x7E00},
                  2 + 2 * single);
        refuse(in_folder("twin"), in_folder("none"), &o, MX_INVALID_FILE, "q_proj: row 0, column 0: is NaN");
        o.allow_nonfinite = true;
        report = quantize(in_folder("twin"), in_folder("turned"), &o);
        mx_model_report_free(&report);
    }
}

static void test_threads(void **state) {
    (void)state;
    mx_pool *one;
    assert_int_equal(mx_pool_create(1, &one, &error), MX_OK);
    mx_model_options o = as("nvfp4", "int4:32:asym");
    mx_model_report report = quantize(TOP1, in_folder("two"), &o);
    mx_model_report_free(&report);
    o.pool = one;
    report = quantize(TOP1, in_folder("one"), &o);
    mx_model_report_free(&report);
    assert_true(same_content(in_folder("one/model.safetensors"), in_folder("two/model.safetensors")));
    assert_true(same_content(in_folder("one/config.json"), in_folder("two/config.json")));
    mx_pool_destroy(one);
}

/* ---- rules --------------------------------------------------------------------------------------------------------
 */

static void test_rules(void **state) {
    (void)state;
    mx_model_options o = as(NULL, NULL);
    o.choice.rules = rules("# first match wins\n"
                           "*.layers.0.mlp.experts.*.down_proj  mxfp8  search\n"
                           "*.down_proj nvfp4 # others\n\n"
                           "\tmodel.layers.1.self_attn.[qk]_proj\tint4:32 \r\n"
                           "lm_head keep");
    mx_model_report report = quantize(TOP1, in_folder("mixed"), &o);
    expect_as_reported(TOP1, in_folder("mixed"), &report);
    static const struct {
        const char *name, *form;
    } expected[] = {{"model.layers.0.mlp.experts.1.down_proj", "mxfp8_e4m3"},
                    {"model.layers.2.mlp.experts.3.down_proj", "nvfp4"},
                    {"model.layers.0.mlp.experts.2.gate_proj", "mxfp4"},
                    {"model.layers.1.self_attn.k_proj", "int4:32"},
                    {"model.layers.1.self_attn.v_proj", "bf16"},
                    {"lm_head", "bf16"}};
    int found = 0;
    for (int i = 0; i < report.matrices; i++)
        for (size_t k = 0; k < sizeof expected / sizeof *expected; k++) {
            char form[MX_FORM_NAME];
            mx_form_name(form, &report.matrix[i].form);
            if (strcmp(report.matrix[i].name, expected[k].name)) continue;
            assert_string_equal(form, expected[k].form);
            found++;
        }
    assert_int_equal(found, sizeof expected / sizeof *expected);
    mx_model_report_free(&report);
    static const struct {
        const char *text, *part;
    } wrong[] = {{"lm_head", "rules.txt:1: expected GLOB FORMAT [RECIPE]"},
                 {"\n* mxfp4 ocp more", "rules.txt:2: expected GLOB"},
                 {"* mxfp5", "rules.txt:1: "},
                 {"* mxfp4 best", "rules.txt:1: "},
                 {"lm_head mxfp4\nlm_heat mxfp4", "rules.txt:2: lm_heat fits no matrix"},
                 {"*.2.gate_proj mxfp8", "share one format for gate and up"},
                 {"*.experts.2.* mxfp8", "share one format for gate and up"},
                 {"lm_head mxfp8 search+gptq", "lm_head"},
                 {"lm_head mxfp4 weighted", "need a text: --calibrate FILE"},
                 {"lm_head mxfp4 hadamard+search", "give it with --recipe"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        o.choice.rules = rules(wrong[i].text);
        refuse(TOP1, in_folder("none"), &o, MX_INVALID_ARGUMENT, wrong[i].part);
    }
    o.choice.rules = rules("*.gate_up_proj mxfp8\n*.down_proj mxfp4 search\n* keep");
    o.choice.recipe.hadamard = o.dry_run = true; /* which rules inherit */
    for (int i = 0; i < 2; i++) {
        report = quantize(TOP1, in_folder("none"), &o);
        for (int c = 0; c < report.classes; c++)
            if (report.of_class[c].group == MX_GROUP_EXPERTS)
                assert_int_equal(report.of_class[c].matrices, report.of_class[c].form.format == MX_E4M3 ? 24 : 12);
        mx_model_report_free(&report);
        o.choice.rules = rules("*.gate_up_proj mxfp8\n*.down_proj mxfp4 hadamard+search\n* keep");
    }
    o.choice.rules = rules("*.experts.*.gate_up_proj mxfp4\n*.down_proj keep\n* keep");
    report = quantize(TOP1, in_folder("none"), &o);
    for (int c = 0; c < report.classes; c++)
        if (report.of_class[c].group == MX_GROUP_EXPERTS) assert_int_equal(report.of_class[c].matrices, 36);
    mx_model_report_free(&report);
    o.choice.recipe.hadamard = o.dry_run = false;
    o.choice.rules = in_folder("nothing");
    refuse(TOP1, in_folder("none"), &o, MX_IO, "nothing");
}

/* ---- other models -------------------------------------------------------------------------------------------------
 */

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
static const char *write_llama(const char *name, int bad, int64_t bad_at, float value, const char *config) {
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
        if (i) fputs(config, f);
        if (!i) fwrite(header.data, 1, header.size, f);
        if (!i) fwrite(data.data, 1, data.size, f);
        assert_int_equal(fclose(f), 0);
    }
    mx_bytes_free(&header);
    mx_bytes_free(&data);
    return in_folder(name);
}

static void expect_tensor(const mx_checkpoint *ck, const char *name, const char *dtype, int64_t rows, int64_t cols) {
    const mx_tensor *t = mx_checkpoint_find(ck, name);
    if (!t) fail_msg("%s is not there", name);
    if (strcmp(t->dtype_name, dtype) || t->shape[0] != rows || (t->dims > 1 && t->shape[1] != cols))
        fail_msg("%s: %s [%lld, %lld]", name, t->dtype_name, (long long)t->shape[0], (long long)t->shape[1]);
}

static void test_other_models(void **state) {
    (void)state;
    const char *config = "{\"model_type\": \"llama\", \"big\": 12345678901234567890, \"x\": {\"y\": [1.50, null]}, "
                         "\"quantization_config\": null}";
    const char *in = write_llama("llama", -1, 0, 0, config);
    const mx_model_options o = as("nvfp4", "int4:32:asym");
    mx_model_report report = quantize(in, in_folder("llama.out"), &o);
    assert_int_equal(report.others, 5);
    mx_model_report_free(&report);
    mx_checkpoint *x, *y;
    if (mx_checkpoint_open_as(in, MX_EXPERTS_STORED, &x, &error) ||
        mx_checkpoint_open_as(in_folder("llama.out"), MX_EXPERTS_STORED, &y, &error))
        fail_msg("%s", error.text);
    expect_tensor(y, "model.embed_tokens.weight_packed", "I32", 40, 8);
    expect_tensor(y, "model.embed_tokens.weight_zero_point", "I32", 5, 2);
    expect_tensor(y, "model.embed_tokens.weight_scale", "BF16", 40, 2);
    expect_tensor(y, "model.embed_tokens.weight_shape", "I64", 2, 0);
    expect_tensor(y, "model.layers.0.self_attn.o_proj.weight_packed", "I32", 64, 12);
    expect_tensor(y, "model.layers.0.mlp.gate_proj.weight_packed", "U8", 33, 32);
    expect_tensor(y, "model.layers.0.mlp.gate_proj.weight_scale", "F8_E4M3", 33, 4);
    expect_tensor(y, "model.layers.0.block_sparse_moe.experts.3.w2.weight_packed", "U8", 64, 64);
    expect_tensor(y, "model.layers.0.block_sparse_moe.gate.weight_packed", "I32", 8, 8);
    static const int same[] = {1, 7, 8, 9, 10, 11};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        const mx_tensor *t = mx_checkpoint_find(x, llama[same[i]].name),
                        *u = mx_checkpoint_find(y, llama[same[i]].name);
        assert_true(u && t->dims == u->dims && t->bytes == u->bytes);
        assert_true(!t->bytes || !memcmp(t->data, u->data, t->bytes));
    }
    mx_checkpoint_close(x);
    mx_checkpoint_close(y);
    mx_bytes text = content(in_folder("llama.out/config.json"));
    assert_non_null(strstr(text.data, "\"big\": 12345678901234567890"));
    assert_non_null(strstr(text.data, "{\"y\":[1.50,null]}"));
    assert_non_null(strstr(text.data, "\"quant_method\": \"compressed-tensors\""));
    assert_null(strstr(strstr(text.data, "quantization_config") + 1, "quantization_config"));
    mx_bytes_free(&text);
    refuse(in_folder("llama.out"), in_folder("none"), &o, MX_UNSUPPORTED, "is quantised already");
    unlink(in_folder("llama.out/config.json"));
    refuse(in_folder("llama.out"), in_folder("none"), &o, MX_UNSUPPORTED, "is quantised already");
    mx_model_options all = as(NULL, NULL);
    all.choice.rules = rules("* mxfp4");
    refuse(in, in_folder("none"), &all, MX_INVALID_ARGUMENT, "vision.position: has 30 columns, no multiple of 32");
    all.choice.recipe.gptq = true;
    all.choice.rules = NULL;
    refuse(in, in_folder("none"), &all, MX_UNSUPPORTED, "mxrun runs gpt-oss alone");
    all.choice.recipe = (mx_quantize_recipe){.hadamard = true};
    refuse(in, in_folder("none"), &all, MX_UNSUPPORTED, "gpt-oss");
    make(in_folder("llama/model.safetensors"), in_folder("alone"), "mxfp4", "keep");
    assert_true(exists(in_folder("alone/model.safetensors")));
}

static void test_bad_numbers(void **state) {
    (void)state;
    mx_model_options o = as("mxfp4", NULL);
    refuse(write_llama("nan", 4, 5 * 64 + 7, NAN, NULL), in_folder("none"), &o, MX_INVALID_FILE,
           "model.layers.0.mlp.gate_proj");
    refuse(write_llama("inf", 5, 130, INFINITY, NULL), in_folder("none"), &o, MX_INVALID_FILE, "experts.3.w2");
    o.allow_nonfinite = true;
    make(TOP1, in_folder("wide"), "bf16", "keep"); /* the way to a model that can be calibrated */
    write_nan("wide");
    mx_model_options clean = as("bf16", "keep");
    clean.allow_nonfinite = true;
    mx_model_report cleaned = quantize(in_folder("wide"), in_folder("clean"), &clean);
    mx_model_report_free(&cleaned);
    make(in_folder("clean"), in_folder("finite"), "nvfp4", "keep");
    mx_model_report report = quantize(in_folder("nan"), in_folder("finite"), &o);
    int64_t found = 0;
    for (int i = 0; i < report.classes; i++) found += report.of_class[i].sum.nonfinite;
    assert_int_equal(found, 1);
    mx_model_report_free(&report);
}

/* ---- places -------------------------------------------------------------------------------------------------------
 */

static void test_places(void **state) {
    (void)state;
    mx_model_options o = as(NULL, NULL);
    o.force = false;
    make(TOP1, in_folder("there"), "keep", "keep");
    refuse(TOP1, in_folder("there"), &o, MX_INVALID_ARGUMENT, "is there already; --force replaces it");
    mx_model_options late = o; /* said before anything is measured */
    late.target_bits = 5;
    late.calibrate = in_folder("nowhere");
    memset(late.choice.format, 0, sizeof late.choice.format);
    refuse(TOP1, in_folder("there"), &late, MX_INVALID_ARGUMENT, "is there already; --force replaces it");
    refuse(TOP1, in_folder("name.safetensors"), &o, MX_INVALID_ARGUMENT, "give a folder's");
    refuse(in_folder("there"), in_folder("there/inside"), &o, MX_INVALID_ARGUMENT, "is inside the folder");
    refuse(TOP1, in_folder("there/model.safetensors/x"), &o, MX_IO, "cannot be made");
    refuse(in_folder("nowhere"), in_folder("none"), &o, MX_IO, "nowhere");
    o.force = true;
    refuse(in_folder("there"), in_folder("there"), &o, MX_INVALID_ARGUMENT, "holds what is to be converted");
}

static void die(void *user, const char *label, bool bytes, uint64_t done, uint64_t total) {
    (void)user;
    (void)label;
    (void)bytes;
    if (done > total * 3 / 4) raise(SIGKILL);
}

/* A child that quantises, with files of `limit` bytes at most (0: any). Its wait status. */
static int in_child(const char *out, bool dies, rlim_t limit) {
    const pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        mx_pool *own;
        mx_error why = {0};
        mx_model_report report;
        const struct rlimit size = {limit, limit};
        signal(SIGXFSZ, SIG_IGN);
        if (limit) setrlimit(RLIMIT_FSIZE, &size);
        if (mx_pool_create(1, &own, &why)) _exit(99);
        mx_model_options o = as("nvfp4", "mxfp8");
        o.pool = own;
        if (dies) o.progress = die;
        const mx_status status = mx_quantize_model(TOP1, out, &o, &report, &why);
        _exit(status == MX_IO && !strstr(why.text, "File too large") ? 98 : (int)status);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void test_kill_and_full_disk(void **state) {
    (void)state;
    int status = in_child(in_folder("killed"), true, 0);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_false(exists(in_folder("killed")));
    assert_true(exists(in_folder("killed.incomplete")));
    make(TOP1, in_folder("killed"), "nvfp4", "mxfp8"); /* takes it over */
    assert_false(exists(in_folder("killed.incomplete")));
    make(TOP1, in_folder("whole"), "nvfp4", "mxfp8");
    assert_true(same_content(in_folder("killed/model.safetensors"), in_folder("whole/model.safetensors")));
    status = in_child(in_folder("limited"), false, 100000);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), MX_IO);
    assert_false(exists(in_folder("limited")));
    assert_false(exists(in_folder("limited.incomplete")));
}

static volatile sig_atomic_t stop;
static void stop_late(void *user, const char *label, bool bytes, uint64_t done, uint64_t total) {
    (void)user;
    (void)label;
    (void)bytes;
    if (done > total / 2) stop = 1;
}

static void test_stop(void **state) {
    (void)state;
    mx_model_options o = as("nvfp4", "mxfp8");
    o.stop = &stop;
    o.progress = stop_late;
    refuse(TOP1, in_folder("stopped"), &o, MX_CANCELLED, "interrupted");
}

/* ---- the command --------------------------------------------------------------------------------------------------
 */

static void expect_usage(const char *part, const char *const *arguments) {
    outcome o = run_with(&(surroundings){0}, arguments);
    expect_code(&o, 2);
    expect_text(&o.err, part);
    outcome_free(&o);
}
#define usage(part, ...) expect_usage(part, (const char *const[]){"quantize", __VA_ARGS__, NULL})

static void test_command(void **state) {
    (void)state;
    const char *out = in_folder("by-command");
    char model[4096];
    snprintf(model, sizeof model, "%s", TOP1);
    outcome o = run("quantize", model, "--dry-run", "--verbose", "--lm-head", "nvfp4");
    expect_code(&o, 0);
    expect_text(&o.out, "model.layers.2.self_attn.o_proj");
    expect_text(&o.out, "lm_head    nvfp4");
    outcome_free(&o);
    assert_false(exists(out));
    o = run("quantize", model, out, "--json", "--experts", "int4:32", "--recipe", "search");
    expect_code(&o, 0);
    mx_json_document *document = parse_output(&o);
    const mx_json *root = mx_json_root(document);
    assert_true(mx_json_is_string(mx_json_get(root, "out"), out));
    double bits = 0;
    for (const mx_json *c = mx_json_get(root, "classes")->child; c; c = c->next)
        if (mx_json_is_string(mx_json_get(c, "class"), "experts"))
            mx_json_double(mx_json_get(c, "bits_per_weight"), &bits);
    assert_true(bits == 4.5);
    mx_json_free(document);
    outcome_free(&o);
    o = run("quantize", model, out);
    expect_code(&o, 2);
    expect_text(&o.err, "--force replaces it");
    outcome_free(&o);
    o = run("quantize", model, in_folder("no.gguf"), "--lm-head", "nvfp4");
    expect_code(&o, 2);
    expect_text(&o.err, "GGUF holds experts in mxfp4");
    outcome_free(&o);
    usage("expected a model", model);
    usage("expected hf or gguf", model, out, "--to", "metal");
    usage("--recipe", model, out, "--recipe", "best");
    usage("--target-bits measures on a text", model, out, "--target-bits", "5");
    usage("leave the formats", model, out, "--target-bits", "5", "--calibrate", model, "--experts", "mxfp4");
    usage("--calibrate-tokens is of a text", model, out, "--calibrate-tokens", "5");
    usage("--allow-loss is for GGUF", model, out, "--allow-loss");
    usage("first write it with --allow-nonfinite", model, out, "--allow-nonfinite", "--recipe", "gptq", "--calibrate",
          model);
    o = run("quantize", model, in_folder("little"), "--dry-run", "--lm-head", "nvfp4", "--embedding", "mxfp8");
    expect_code(&o, 0);
    assert_null(strstr(o.err.data, "has no matrix"));
    outcome_free(&o);
    char alone[420];
    snprintf(alone, sizeof alone, "%s", write_llama("headless", -1, 0, 0, NULL));
    o = run("quantize", alone, "--dry-run", "--lm-head", "nvfp4");
    expect_code(&o, 0);
    expect_text(&o.err, "has no matrix of class lm_head, which was to be nvfp4");
    outcome_free(&o);
    usage("--calibrate is for the recipes", model, out, "--calibrate", model);
}

static void test_gguf(void **state) {
    (void)state;
    char base[4200];
    snprintf(base, sizeof base, "%s", checkout("tests/data/base"));
    make(base, in_folder("plain"), "bf16", "keep");
    for (int i = 0; i < 2; i++) {
        outcome o =
            run("quantize", i ? base : in_folder("plain"), in_folder("made.gguf"), "--force", "--experts", "mxfp4");
        expect_code(&o, 0);
        expect_text(&o.out, "made.gguf: ");
        outcome_free(&o);
        expect_same_numbers(base, in_folder("made.gguf"));
    }
    write_nan("plain");
    outcome o = run("quantize", in_folder("plain"), in_folder("nan.gguf"));
    expect_code(&o, 1);
    expect_text(&o.err, "down_proj_blocks: holds a block that is NaN");
    outcome_free(&o);
    assert_false(exists(in_folder("nan.gguf")));
    make(in_folder("made.gguf"), in_folder("from-gguf"), "nvfp4", "keep");
    assert_true(exists(in_folder("from-gguf/config.json")));
    const mx_model_options all = as("mxfp8", "int8:32");
    mx_model_report report = quantize(in_folder("made.gguf"), in_folder("from-gguf"), &all);
    expect_as_reported(base, in_folder("from-gguf"), &report);
    mx_model_report_free(&report);
}

/* Rotation and statistics. What they do to a model is looked at elsewhere; here, that all of it is written. */
static void test_recipes(void **state) {
    (void)state;
    mx_model_options o = as("keep", "keep");
    o.choice.recipe.hadamard = true;
    mx_model_report report = quantize(TOP1, in_folder("rotated"), &o);
    for (int i = 0; i < report.classes; i++) assert_false(report.of_class[i].kept);
    mx_model_report_free(&report);
    mx_weights *w;
    if (mx_weights_open(in_folder("rotated"), pool, &w, &error)) fail_msg("%s", error.text);
    for (int i = 0; i < w->config.hidden; i++) assert_true(w->norm[i] == 1 && w->layer[1].attn_norm[i] == 1);
    mx_weights_close(w);
    char text[200];
    write_test_file("text.txt", "Once upon a time there was a fox who lived in a wood beside a lake.\n", text);
    char stories[4200];
    snprintf(stories, sizeof stories, "%s", checkout("tools/stories/checkpoint"));
    outcome done = run("quantize", stories, in_folder("calibrated"), "--experts", "keep", "--attention", "int4:32",
                       "--recipe", "search+gptq", "--calibrate", text, "--json");
    expect_code(&done, 0);
    expect_text(&done.out, "int4:32");
    outcome_free(&done);
    if (mx_weights_open(in_folder("calibrated"), pool, &w, &error)) fail_msg("%s", error.text);
    assert_int_equal(w->layer[0].q.format, MX_INT4);
    mx_weights_close(w);
}

static int set_up(void **state) {
    return program_set_up(state) || mx_pool_create(2, &pool, &error) ? -1 : 0;
}

static int tear_down(void **state) {
    mx_pool_destroy(pool);
    return program_tear_down(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_methods),
        cmocka_unit_test(test_again),
        cmocka_unit_test(test_halves),
        cmocka_unit_test(test_shared_scale),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_rules),
        cmocka_unit_test(test_other_models),
        cmocka_unit_test(test_bad_numbers),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_kill_and_full_disk),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_recipes),
        cmocka_unit_test(test_command),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
