/* A model as modules: the same numbers whatever layout they come from, by the same names. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "quantize/source.h"

static mx_error error;

static const char *path_in(const char *variable, const char *name) {
    static char paths[4][4096];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, 4096, "%s/%s", getenv(variable), name);
    return path;
}

static mx_source open_source(const char *path) {
    mx_source s;
    if (mx_source_open(path, &s, &error)) fail_msg("%s", error.text);
    return s;
}

static float *numbers(const mx_module *m) {
    float *x = malloc((size_t)(m->rows * m->cols) * sizeof *x);
    assert_non_null(x);
    /* In two pieces, neither of which is a multiple of anything. */
    const int64_t first = m->rows / 3;
    m->read(m->user, first, m->rows - first, x + first * m->cols);
    m->read(m->user, 0, first, x);
    return x;
}

static void expect_same_numbers(const char *a, const char *b) {
    mx_source x = open_source(a), y = open_source(b);
    assert_true(x.gpt_oss && y.gpt_oss);
    assert_int_equal(x.modules, y.modules);
    for (int i = 0; i < x.modules; i++) {
        const mx_module *m = &x.module[i], *n = mx_source_find(&y, m->name);
        if (!n) fail_msg("%s: not in %s", m->name, b);
        assert_int_equal(m->kind, n->kind);
        assert_int_equal(m->layer, n->layer);
        assert_int_equal(m->expert, n->expert);
        assert_int_equal(m->rows, n->rows);
        assert_int_equal(m->cols, n->cols);
        float *p = numbers(m), *q = numbers(n);
        if (memcmp(p, q, (size_t)(m->rows * m->cols) * sizeof *p)) fail_msg("%s: other numbers", m->name);
        free(p);
        free(q);
    }
    mx_source_close(&x);
    mx_source_close(&y);
}

static void test_layouts(void **state) {
    (void)state;
    const char *gguf = path_in("MXRUN_SHARED", "checkpoints/stories.gguf");
    if (access(gguf, R_OK)) skip();
    expect_same_numbers(path_in("MXRUN_SHARED", "checkpoints/stories"), gguf);
}

/* Experts of 16 bits: column n of a stored expert is row n of gate_up, of which gate has the even ones. */
static void test_experts16(void **state) {
    (void)state;
    const char *path = path_in("MXRUN_SHARED", "checkpoints/stories-bf16");
    if (access(path, R_OK)) skip();
    mx_source s = open_source(path);
    assert_int_equal(s.modules, 4 * (5 + 16 * 3) + 2);
    const mx_tensor *t = mx_checkpoint_find(s.checkpoint, "model.layers.2.mlp.experts.gate_up_proj");
    const mx_tensor *d = mx_checkpoint_find(s.checkpoint, "model.layers.2.mlp.experts.down_proj");
    const mx_module *gate = mx_source_find(&s, "model.layers.2.mlp.experts.7.gate_proj"),
                    *up = mx_source_find(&s, "model.layers.2.mlp.experts.7.up_proj"),
                    *down = mx_source_find(&s, "model.layers.2.mlp.experts.7.down_proj");
    float *g = numbers(gate), *u = numbers(up), *w = numbers(down);
    const int64_t hidden = s.config.hidden, inner = s.config.intermediate;
    for (int64_t n = 0; n < inner; n++)
        for (int64_t k = 0; k < hidden; k++) {
            const uint8_t *at = t->data + 7 * t->slice_stride + (size_t)(k * 2 * inner + 2 * n) * 2;
            assert_true(g[n * hidden + k] == mx_bf16_to_f32(mx_load_u16(at)));
            assert_true(u[n * hidden + k] == mx_bf16_to_f32(mx_load_u16(at + 2)));
            at = d->data + 7 * d->slice_stride + (size_t)(n * hidden + k) * 2;
            assert_true(w[k * inner + n] == mx_bf16_to_f32(mx_load_u16(at)));
        }
    free(g);
    free(u);
    free(w);
    mx_source_close(&s);
}

/* A file without a configuration: names and matrices, nothing else. */
static void test_other_models(void **state) {
    (void)state;
    mx_source s = open_source(path_in("MXRUN_SOURCE", "tools/stories/checkpoint/model.safetensors"));
    assert_false(s.gpt_oss);
    const mx_module *q = mx_source_find(&s, "model.layers.0.self_attn.q_proj");
    assert_non_null(q);
    assert_int_equal(q->kind, MX_KIND_OTHER);
    assert_null(mx_source_find(&s, "model.layers.0.mlp.experts.0.gate_proj"));
    for (int i = 0; i < s.vectors; i++)
        assert_false(s.vector[i].tensor->dims == 2 && !strcmp(s.vector[i].tensor->dtype_name, "BF16") &&
                     mx_ends_with(s.vector[i].tensor->name, ".weight"));
    mx_source_close(&s);
    assert_int_equal(mx_source_open("/nowhere", &s, &error), MX_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_experts16),
        cmocka_unit_test(test_other_models),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
