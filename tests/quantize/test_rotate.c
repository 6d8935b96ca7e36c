/* A rotated model computes what it did: the same logits to rounding, from matrices that are others. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "quantize/forward.h"
#include "quantize/rotate.h"

static mx_error error;

static const char *path_in(const char *variable, const char *name) {
    static char paths[4][4096];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, 4096, "%s/%s", getenv(variable), name);
    return path;
}

static void ok(mx_status status) {
    if (status) fail_msg("%s", error.text);
}

/* ---- a source as weights -----------------------------------------------------------------------------------------
 */

enum { MOST_OWNED = 2000 };
typedef struct built {
    mx_weights w; /* layer owned */
    void *owned[MOST_OWNED];
    int count;
} built;

static float *keep(built *b, int64_t floats) {
    float *x = aligned_alloc(64, ((size_t)floats * sizeof *x + 63) / 64 * 64);
    assert_true(x && b->count < MOST_OWNED);
    b->owned[b->count++] = x;
    return x;
}

static void read_into(const mx_module *m, float *to, int64_t step) {
    float *x = malloc((size_t)(m->rows * m->cols) * sizeof *x);
    assert_non_null(x);
    /* In pieces that are no multiples of a block. */
    for (int64_t n = 0; n < m->rows; n += 27) {
        const int64_t count = m->rows - n < 27 ? m->rows - n : 27;
        m->read(m->user, n, count, x + n * m->cols);
    }
    for (int64_t n = 0; n < m->rows; n++) memcpy(to + n * step, x + n * m->cols, (size_t)m->cols * sizeof *x);
    free(x);
}

static mx_matrix dense(const float *x, int64_t rows, int64_t cols) {
    return (mx_matrix){
        .format = MX_F32, .rows = rows, .cols = cols, .data = (const uint8_t *)x, .row_stride = cols * 4};
}

static const mx_module *find(const mx_source *s, const char *format, int layer, int expert) {
    char name[200];
    snprintf(name, sizeof name, format, layer, expert);
    const mx_module *m = mx_source_find(s, name);
    if (!m) fail_msg("%s: not there", name);
    return m;
}

static mx_matrix matrix_of(built *b, const mx_module *m) {
    float *x = keep(b, m->rows * m->cols);
    read_into(m, x, m->cols);
    return dense(x, m->rows, m->cols);
}

/* What the source has in place of the vector; NULL: it has it as it was. */
static const float *changed(const mx_source *s, const char *format, int layer) {
    char name[200];
    snprintf(name, sizeof name, format, layer);
    for (int i = 0; i < s->vectors; i++)
        if (!strcmp(s->vector[i].tensor->name, name)) return s->vector[i].changed;
    fail_msg("%s: not there", name);
    return NULL;
}

static void use(const float **to, const float *x) {
    if (x) *to = x;
}

static void build_layer(built *b, const mx_source *s, int l) {
    const mx_config *c = &s->config;
    mx_layer *layer = &b->w.layer[l];
    const int64_t h = c->hidden, n = c->intermediate;
    layer->q = matrix_of(b, find(s, "model.layers.%d.self_attn.q_proj", l, 0));
    layer->k = matrix_of(b, find(s, "model.layers.%d.self_attn.k_proj", l, 0));
    layer->v = matrix_of(b, find(s, "model.layers.%d.self_attn.v_proj", l, 0));
    layer->o = matrix_of(b, find(s, "model.layers.%d.self_attn.o_proj", l, 0));
    layer->router = matrix_of(b, find(s, "model.layers.%d.mlp.router", l, 0));
    float *gate_up = keep(b, c->experts * 2 * n * h), *down = keep(b, c->experts * n * h);
    for (int e = 0; e < c->experts; e++) {
        read_into(find(s, "model.layers.%d.mlp.experts.%d.gate_proj", l, e), gate_up + e * 2 * n * h, 2 * h);
        read_into(find(s, "model.layers.%d.mlp.experts.%d.up_proj", l, e), gate_up + e * 2 * n * h + h, 2 * h);
        read_into(find(s, "model.layers.%d.mlp.experts.%d.down_proj", l, e), down + e * n * h, n);
    }
    layer->gate_up.matrix = dense(gate_up, 2 * n, h);
    layer->gate_up.data_stride = 2 * n * h * 4;
    layer->down.matrix = dense(down, h, n);
    layer->down.data_stride = n * h * 4;
    layer->gate_up.bf16_safe = layer->down.bf16_safe = true;
    use(&layer->attn_norm, changed(s, "model.layers.%d.input_layernorm.weight", l));
    use(&layer->mlp_norm, changed(s, "model.layers.%d.post_attention_layernorm.weight", l));
    use(&layer->v_bias, changed(s, "model.layers.%d.self_attn.v_proj.bias", l));
    use(&layer->o_bias, changed(s, "model.layers.%d.self_attn.o_proj.bias", l));
    const float *bias = changed(s, "model.layers.%d.mlp.experts.down_proj_bias", l);
    if (bias) {
        layer->down.bias = (const uint8_t *)bias;
        layer->down.bias_format = MX_F32;
        layer->down.bias_stride = 0;
    }
}

/* Weights of the source's numbers; everything else is the model's own. */
static void build(built *b, const mx_source *s, const mx_weights *own) {
    b->w = *own;
    b->w.layer = calloc((size_t)own->config.layers, sizeof *b->w.layer);
    assert_non_null(b->w.layer);
    for (int l = 0; l < own->config.layers; l++) {
        b->w.layer[l] = own->layer[l];
        build_layer(b, s, l);
    }
    use(&b->w.norm, changed(s, "model.norm.weight", 0));
    b->w.embedding = matrix_of(b, find(s, "model.embed_tokens", 0, 0));
    b->w.lm_head = s->config.tied_embeddings && !s->untied ? b->w.embedding : matrix_of(b, find(s, "lm_head", 0, 0));
}

static void built_free(built *b) {
    for (int i = 0; i < b->count; i++) free(b->owned[i]);
    free(b->w.layer);
    free(b);
}

static float *logits_of(const mx_weights *w, mx_pool *pool, int rows) {
    mx_forward f;
    int next, wanted;
    int32_t ids[64];
    int64_t first[] = {0, rows};
    for (int i = 0; i < rows; i++) ids[i] = (i * 97 + 13) % w->config.vocab;
    const mx_passages text = {{ids, rows, rows}, first, 1};
    ok(mx_forward_open(w, pool, NULL, rows, rows, &f, &error));
    ok(mx_forward_step(&f, &text, 0, 1, &next, &wanted, &error));
    assert_int_equal(wanted, rows - 1);
    float *out = malloc((size_t)wanted * (size_t)w->config.vocab * sizeof *out);
    assert_non_null(out);
    for (int i = 0; i < wanted; i++)
        memcpy(out + (int64_t)i * w->config.vocab, f.backend->ops->logits(f.backend, i),
               (size_t)w->config.vocab * sizeof *out);
    mx_forward_close(&f);
    return out;
}

/* ---- tests -------------------------------------------------------------------------------------------------------
 */

enum { ROWS = 40 };

/* Mean relative square of the difference between logits. */
static double distance(const mx_weights *a, const mx_weights *b, mx_pool *pool) {
    const int64_t n = (int64_t)(ROWS - 1) * a->config.vocab;
    float *x = logits_of(a, pool, ROWS), *y = logits_of(b, pool, ROWS);
    double off = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        off += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        size += (double)x[i] * x[i];
    }
    free(x);
    free(y);
    return sqrt(off / size);
}

static void check(const char *path, bool tied) {
    mx_pool *pool;
    mx_weights *w;
    mx_source plain, source;
    mx_rotation *rotation;
    ok(mx_pool_create(2, &pool, &error));
    ok(mx_weights_open(path, pool, &w, &error));
    ok(mx_source_open(path, &source, &error));
    ok(mx_source_open(path, &plain, &error));
    source.config.tied_embeddings = plain.config.tied_embeddings = tied;
    if (tied) w->lm_head = w->embedding;
    ok(mx_rotate(&source, false, &rotation, &error));
    assert_int_equal(source.untied, tied);
    built *same = calloc(1, sizeof *same), *rotated = calloc(1, sizeof *rotated);
    assert_true(same && rotated);
    build(same, &plain, w);
    build(rotated, &source, w);
    assert_true(distance(w, &same->w, pool) == 0); /* the test itself */
    const double off = distance(w, &rotated->w, pool);
    if (!(off < 2e-5)) fail_msg("%s: logits differ by %g", path, off);
    assert_true(off > 0);
    for (int i = 0; i < w->config.hidden; i++) assert_true(rotated->w.layer[0].attn_norm[i] == 1);

    for (int i = 0; i < source.modules; i++) { /* and back */
        const mx_module *m = &source.module[i];
        const mx_module *was =
            mx_source_find(&plain, tied && m->kind == MX_KIND_LM_HEAD ? "model.embed_tokens" : m->name);
        float *x = malloc((size_t)(m->rows * m->cols) * sizeof *x),
              *y = malloc((size_t)(m->rows * m->cols) * sizeof *y);
        assert_true(x && y && was);
        read_into(m, x, m->cols);
        read_into(was, y, m->cols);
        double difference = 0, back = 0, size = 0;
        for (int64_t k = 0; k < m->rows * m->cols; k++) difference += fabs((double)x[k] - y[k]);
        mx_rotation_undo(m, x);
        for (int64_t k = 0; k < m->rows * m->cols; k++) {
            back += fabs((double)x[k] - y[k]);
            size += fabs((double)y[k]);
        }
        if (!(difference > 0.1 * size) || !(back < 1e-5 * size))
            fail_msg("%s: %g, %g of %g", m->name, difference, back, size);
        free(x);
        free(y);
    }
    built_free(same);
    built_free(rotated);
    mx_source_close(&source);
    mx_source_close(&plain);
    mx_rotation_free(rotation);
    mx_weights_close(w);
    mx_pool_destroy(pool);
}

static void test_same(void **state) {
    (void)state;
    check(path_in("MXRUN_SOURCE", "tests/data/base"), false);
    check(path_in("MXRUN_SOURCE", "tests/data/mqa"), false);
}

static void test_tied(void **state) {
    (void)state;
    check(path_in("MXRUN_SOURCE", "tests/data/base"), true);
}

static void test_refused(void **state) {
    (void)state;
    mx_rotation *rotation;
    mx_source s = {.path = "llama"};
    assert_int_equal(mx_rotate(&s, false, &rotation, &error), MX_UNSUPPORTED);
    assert_null(rotation);
    mx_rotation_free(rotation);
    ok(mx_source_open(path_in("MXRUN_SOURCE", "tests/data/base"), &s, &error));
    for (int i = 0; i < s.vectors; i++) /* one is gone */
        if (!strcmp(s.vector[i].tensor->name, "model.layers.1.self_attn.o_proj.bias"))
            s.vector[i] = s.vector[--s.vectors];
    assert_int_equal(mx_rotate(&s, false, &rotation, &error), MX_INVALID_FILE);
    assert_non_null(strstr(error.text, "o_proj.bias"));
    assert_null(rotation);
    mx_source_close(&s);
}

/* One weight of o in layer 1, and one number of its bias. */
static float bad_weight;
static mx_read_rows *read_before;
static void read_bad(void *user, int64_t first, int64_t count, float *out) {
    read_before(user, first, count, out);
    if (first <= 5 && first + count > 5) out[(5 - first) * 512 + 7] = bad_weight;
}

static mx_module *open_bad(mx_source *s, float weight, float bias) {
    ok(mx_source_open(path_in("MXRUN_SOURCE", "tests/data/base"), s, &error));
    mx_module *o = mx_source_find(s, "model.layers.1.self_attn.o_proj");
    assert_non_null(o);
    bad_weight = weight;
    read_before = o->read;
    if (isnan(weight) || isinf(weight)) o->read = read_bad;
    for (int i = 0; i < s->vectors; i++) {
        mx_vector *v = &s->vector[i];
        if (strcmp(v->tensor->name, "model.layers.1.self_attn.o_proj.bias")) continue;
        v->changed = calloc((size_t)s->config.hidden, sizeof *v->changed);
        assert_non_null(v->changed);
        for (int k = 0; k < s->config.hidden; k++) v->changed[k] = k % 3;
        v->changed[4] = bias;
    }
    return o;
}

/* NaN and infinity are refused before they spread, or mended before. */
static void test_not_finite(void **state) {
    (void)state;
    mx_source s;
    mx_rotation *rotation;
    mx_pool *pool;
    ok(mx_pool_create(2, &pool, &error));
    const float bad[] = {NAN, INFINITY, -INFINITY}, mended[] = {0, 2, -2};
    for (int i = 0; i < 3; i++) {
        open_bad(&s, 0, bad[i]);
        assert_int_equal(mx_rotate(&s, false, &rotation, &error), MX_INVALID_FILE);
        assert_non_null(strstr(error.text, "o_proj.bias: element 4 is"));
        mx_source_close(&s);
        mx_module *o = open_bad(&s, bad[i], bad[i]);
        const int64_t rows = o->rows, cols = o->cols;
        float *x = malloc((size_t)(rows * cols) * sizeof *x), *was = malloc((size_t)(rows * cols) * sizeof *was);
        assert_true(x && was && cols == 512);
        o->read(o->user, 0, rows, was);
        ok(mx_rotate(&s, true, &rotation, &error));
        assert_int_equal(mx_rotation_mended(o, pool), 1);
        assert_int_equal(mx_rotation_mended(mx_source_find(&s, "model.layers.1.self_attn.q_proj"), pool), 0);
        o->read(o->user, 0, rows, x);
        mx_rotation_undo(o, x);
        float largest = 0;
        for (int64_t k = 0; k < cols; k++)
            if (k != 7) largest = fmaxf(largest, fabsf(was[5 * cols + k]));
        was[5 * cols + 7] = isnan(bad[i]) ? 0 : copysignf(largest, bad[i]);
        for (int64_t k = 0; k < rows * cols; k++)
            if (!(fabsf(x[k] - was[k]) < 1e-5f * largest)) fail_msg("%d: %g, not %g", (int)k, x[k], was[k]);
        for (int v = 0; v < s.vectors; v++)
            if (!strcmp(s.vector[v].tensor->name, "model.layers.1.self_attn.o_proj.bias")) {
                float *bias = s.vector[v].changed;
                mx_hadamard(bias, s.config.hidden, mx_hadamard_size(s.config.hidden, 128));
                assert_true(fabsf(bias[4] - mended[i]) < 1e-5f && fabsf(bias[5] - 2) < 1e-5f);
            }
        free(x);
        free(was);
        mx_source_close(&s);
        mx_rotation_free(rotation);
    }
    mx_pool_destroy(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same),
        cmocka_unit_test(test_tied),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
