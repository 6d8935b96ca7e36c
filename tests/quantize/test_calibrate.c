/* What calibration sees: the rows that enter products against a forward pass written out here, sums against sums of
 * these rows in double, the same bits with any number of threads; and the windows of a text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <math.h>

#include "quantize/calibrate.h"
#include "quantize/forward.h"

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

/* ---- rows --------------------------------------------------------------------------------------------------------
 */

/* Everything that an observer was shown, in order. */
typedef struct seen {
    mx_observed o; /* x owned, rows one behind the other; row: where they were, owned, NULL: nowhere else */
} seen;
typedef struct all_seen {
    seen *at;
    int count;
} all_seen;

static void remember(void *user, const mx_observed *o) {
    all_seen *all = user;
    all->at = realloc(all->at, ((size_t)all->count + 1) * sizeof *all->at);
    assert_non_null(all->at);
    float *x = malloc((size_t)(o->rows * o->cols) * sizeof *x);
    int32_t *row = o->row ? malloc((size_t)o->rows * sizeof *row) : NULL;
    assert_true(x && (row || !o->row));
    for (int64_t i = 0; i < o->rows; i++) {
        memcpy(x + i * o->cols, o->x + (o->row ? o->row[i] : i) * o->cols, (size_t)o->cols * sizeof *x);
        if (row) row[i] = o->row[i];
    }
    all->at[all->count] = (seen){*o};
    all->at[all->count].o.x = x;
    all->at[all->count++].o.row = row;
}

static void forget(all_seen *all) {
    for (int i = 0; i < all->count; i++) {
        free((void *)all->at[i].o.x);
        free((void *)all->at[i].o.row);
    }
    free(all->at);
    *all = (all_seen){0};
}

static const mx_observed *find(const all_seen *all, mx_class class, int layer, int expert) {
    for (int i = 0; i < all->count; i++)
        if (all->at[i].o.class == class && all->at[i].o.layer == layer && all->at[i].o.expert == expert)
            return &all->at[i].o;
    return NULL;
}

static void expect_near(const float *x, const double *y, int64_t n, const char *what) {
    double off = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        off += (x[i] - y[i]) * (x[i] - y[i]);
        size += y[i] * y[i];
    }
    if (!(off <= 1e-10 * size)) fail_msg("%s: off by %g", what, sqrt(off / size));
}

/* x / rms(x) * gain */
static void norm_of(const mx_config *c, const double *x, const float *gain, double *out) {
    double sum = 0;
    for (int i = 0; i < c->hidden; i++) sum += x[i] * x[i];
    for (int i = 0; i < c->hidden; i++)
        out[i] = x[i] / sqrt(sum / c->hidden + (double)c->rms_eps) * (gain ? gain[i] : 1);
}

/* out += W x */
static void add_product(const mx_matrix *w, const float *x, double *out) {
    float *row = malloc((size_t)w->cols * sizeof *row);
    assert_non_null(row);
    for (int64_t n = 0; n < w->rows; n++) {
        mx_matrix_widen_row(row, w, n);
        for (int64_t k = 0; k < w->cols; k++) out[n] += (double)row[k] * x[k];
    }
    free(row);
}

static double bias_of(const mx_experts *e, int expert, int64_t n) {
    const uint8_t *at = e->bias + (expert * e->matrix.rows + n) * (e->bias_format == MX_F32 ? 4 : 2);
    float x;
    if (e->bias_format == MX_BF16) return mx_bf16_to_f32((uint16_t)(at[0] | at[1] << 8));
    memcpy(&x, at, 4);
    return x;
}

static mx_matrix expert_of(const mx_experts *e, int expert) {
    mx_matrix m = e->matrix;
    m.data += expert * e->data_stride;
    if (m.scales) m.scales += expert * e->scale_stride;
    return m;
}

/* Row t of layer l: what its experts and their down products were shown, given its normed row. */
static void check_experts(const all_seen *all, const mx_weights *w, const mx_batch *b, int l, int t,
                          const double *normed) {
    const mx_config *c = &w->config;
    const mx_layer *layer = &w->layer[l];
    double *gate_up = malloc(2 * (size_t)c->intermediate * sizeof *gate_up),
           *act = malloc((size_t)c->intermediate * sizeof *act);
    assert_true(gate_up && act);
    for (int k = 0; k < c->top_k; k++) {
        const int e = b->experts[(l * b->rows + t) * c->top_k + k];
        const mx_observed *in = find(all, MX_CLASS_GATE_UP, l, e), *down = find(all, MX_CLASS_DOWN, l, e);
        assert_true(in && down && in->row && in->rows == down->rows && down->cols == c->intermediate);
        int64_t at = 0;
        while (at < in->rows && in->row[at] != t) at++;
        assert_true(at < in->rows);
        expect_near(in->x + at * c->hidden, normed, c->hidden, "gate_up");
        const mx_matrix m = expert_of(&layer->gate_up, e);
        for (int n = 0; n < 2 * c->intermediate; n++) gate_up[n] = bias_of(&layer->gate_up, e, n);
        add_product(&m, in->x + at * c->hidden, gate_up);
        for (int n = 0; n < c->intermediate; n++)
            act[n] = mx_swiglu((float)gate_up[2 * n], (float)gate_up[2 * n + 1], c->swiglu_limit, c->swiglu_alpha);
        expect_near(down->x + at * c->intermediate, act, c->intermediate, "down");
    }
    free(gate_up);
    free(act);
}

/* One layer against the residual stream before and after it. */
static void check_layer(const all_seen *all, const mx_weights *w, const mx_batch *b, int l, bool plain) {
    const mx_config *c = &w->config;
    const mx_layer *layer = &w->layer[l];
    const mx_observed *qkv = find(all, MX_CLASS_QKV, l, -1), *o = find(all, MX_CLASS_O, l, -1),
                      *router = find(all, MX_CLASS_ROUTER, l, -1);
    const size_t hidden = (size_t)c->hidden;
    double *x = malloc(hidden * sizeof *x), *normed = malloc(hidden * sizeof *normed);
    assert_true(x && normed && qkv && o && router);
    assert_true(qkv->rows == b->rows && o->rows == b->rows && router->rows == b->rows);
    assert_true(o->cols == c->heads * c->head_dim && qkv->cols == c->hidden && router->cols == c->hidden);
    for (int t = 0; t < b->rows; t++) {
        const float *before = b->residual + ((int64_t)l * b->rows + t) * c->hidden;
        for (size_t i = 0; i < hidden; i++) x[i] = before[i];
        norm_of(c, x, plain ? NULL : layer->attn_norm, normed);
        expect_near(qkv->x + t * c->hidden, normed, c->hidden, "qkv");
        for (size_t i = 0; i < hidden; i++) x[i] += layer->o_bias ? layer->o_bias[i] : 0;
        add_product(&layer->o, o->x + t * o->cols, x);
        norm_of(c, x, plain ? NULL : layer->mlp_norm, normed);
        expect_near(router->x + t * c->hidden, normed, c->hidden, "router");
        if (!plain) check_experts(all, w, b, l, t, normed);
    }
    free(x);
    free(normed);
}

static void check_rows(bool plain) {
    enum { ROWS = 37 };
    mx_pool *pool;
    mx_weights *w;
    all_seen all = {0};
    mx_forward f;
    ok(mx_pool_create(3, &pool, &error));
    ok(mx_weights_open(path_in("MXRUN_SOURCE", "tests/data/base"), pool, &w, &error));
    const mx_config *c = &w->config;
    const mx_observer observer = {remember, &all, plain};
    ok(mx_forward_open(w, pool, &observer, ROWS, 1, &f, &error));
    const mx_sequence_view view = {f.table, f.pages};
    mx_batch b = {.row = f.row, .rows = ROWS, .sequence = &view, .sequences = 1};
    b.residual = malloc((size_t)(c->layers + 1) * ROWS * (size_t)c->hidden * sizeof(float));
    b.experts = malloc((size_t)c->layers * ROWS * (size_t)c->top_k * sizeof(int32_t));
    assert_true(b.residual && b.experts);
    for (int t = 0; t < ROWS; t++) f.row[t] = (mx_row){(t * 37 + 5) % c->vocab, t, 0, t == ROWS - 1};
    ok(f.backend->ops->step(f.backend, &b, &error));
    for (int l = 0; l < c->layers; l++) check_layer(&all, w, &b, l, plain);
    const mx_observed *head = find(&all, MX_CLASS_LM_HEAD, c->layers, -1);
    assert_true(head && head->rows == ROWS);
    for (int t = 0; t < ROWS; t++) {
        double x[1024], normed[1024];
        for (int i = 0; i < c->hidden; i++) x[i] = b.residual[((int64_t)c->layers * ROWS + t) * c->hidden + i];
        norm_of(c, x, plain ? NULL : w->norm, normed);
        expect_near(head->x + t * c->hidden, normed, c->hidden, "lm_head");
    }
    free(b.residual);
    free(b.experts);
    forget(&all);
    mx_forward_close(&f);
    mx_weights_close(w);
    mx_pool_destroy(pool);
}

static void test_rows(void **state) {
    (void)state;
    check_rows(false);
    check_rows(true);
}

/* With an observer and without, and however many look: the same logits. */
static void test_unseen(void **state) {
    (void)state;
    mx_pool *pool;
    mx_weights *w;
    all_seen all = {0};
    ok(mx_pool_create(1, &pool, &error));
    ok(mx_weights_open(path_in("MXRUN_SOURCE", "tests/data/base"), pool, &w, &error));
    float *logits[2];
    int32_t ids[] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5};
    int64_t first[] = {0, 4, 11};
    const mx_passages text = {{ids, 11, 11}, first, 2};
    for (int i = 0; i < 2; i++) {
        const mx_observer observer = {remember, &all, false};
        mx_forward f;
        int next, wanted;
        ok(mx_forward_open(w, pool, i ? &observer : NULL, 16, 16, &f, &error));
        ok(mx_forward_step(&f, &text, 0, 3, &next, &wanted, &error));
        assert_int_equal(next, 2);
        assert_int_equal(wanted, 3); /* of 0, 6, 9: 3 is the last of its window */
        logits[i] = malloc(3 * (size_t)w->config.vocab * sizeof(float));
        for (int k = 0; k < 3; k++)
            memcpy(logits[i] + (int64_t)k * w->config.vocab, f.backend->ops->logits(f.backend, k),
                   (size_t)w->config.vocab * sizeof(float));
        mx_forward_close(&f);
    }
    /* Every row was seen, also behind the last layer's keys; a window's numbers are its own. */
    assert_int_equal(find(&all, MX_CLASS_O, w->config.layers - 1, -1)->rows, 11);
    assert_int_equal(find(&all, MX_CLASS_LM_HEAD, w->config.layers, -1)->rows, 11);
    const mx_passages second = {{ids + 4, 7, 7}, (int64_t[]){0, 7}, 1};
    mx_forward f;
    int next, wanted;
    ok(mx_forward_open(w, pool, NULL, 16, 16, &f, &error));
    ok(mx_forward_step(&f, &second, 0, 2, &next, &wanted, &error)); /* 0, 2, 4: of these 2 was 6 */
    assert_int_equal(wanted, 3);
    assert_memory_equal(f.backend->ops->logits(f.backend, 1), logits[0] + w->config.vocab,
                        (size_t)w->config.vocab * sizeof(float));
    mx_forward_close(&f);
    assert_memory_equal(logits[0], logits[1], 3 * (size_t)w->config.vocab * sizeof(float));
    free(logits[0]);
    free(logits[1]);
    forget(&all);
    mx_weights_close(w);
    mx_pool_destroy(pool);
}

/* From a layer on, or up to one: the same numbers, and no logits where it is not run to the end. */
static void test_parts(void **state) {
    (void)state;
    mx_pool *pool;
    mx_weights *w;
    mx_forward f;
    all_seen all = {0};
    ok(mx_pool_create(2, &pool, &error));
    ok(mx_weights_open(path_in("MXRUN_SOURCE", "tests/data/base"), pool, &w, &error));
    const mx_observer observer = {remember, &all, false};
    ok(mx_forward_open(w, pool, &observer, 16, 16, &f, &error));
    ok(mx_forward_keep(&f, 11, &error));
    int32_t ids[] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5};
    int64_t first[] = {0, 4, 11};
    const mx_passages text = {{ids, 11, 11}, first, 2};
    const size_t bytes = 3 * (size_t)w->config.vocab * sizeof(float);
    float *whole = malloc(bytes);
    assert_non_null(whole);
    const int layers = w->config.layers;
    for (int from = 0; from <= layers; from++) {
        int next, wanted;
        f.first = from;
        f.keep = !from;
        forget(&all);
        ok(mx_forward_step(&f, &text, 0, 3, &next, &wanted, &error));
        assert_int_equal(find(&all, MX_CLASS_O, from - 1, -1) != NULL, false);
        for (int k = 0; k < wanted; k++) {
            const float *now = f.backend->ops->logits(f.backend, k);
            assert_non_null(now);
            if (!from) memcpy(whole + (int64_t)k * w->config.vocab, now, bytes / 3);
            assert_memory_equal(whole + (int64_t)k * w->config.vocab, now, bytes / 3);
        }
    }
    forget(&all);
    f.first = 1;
    f.last = 2;
    int next, wanted;
    ok(mx_forward_step(&f, &text, 0, 3, &next, &wanted, &error));
    assert_null(f.backend->ops->logits(f.backend, 0));
    assert_non_null(find(&all, MX_CLASS_DOWN, 1, all.at[all.count - 1].o.expert));
    assert_int_equal(all.at[0].o.layer, 1);
    assert_int_equal(all.at[all.count - 1].o.layer, 1);
    f.last = layers + 1;
    assert_int_equal(mx_forward_step(&f, &text, 0, 3, &next, &wanted, &error), MX_INVALID_ARGUMENT);
    free(whole);
    forget(&all);
    mx_forward_close(&f);
    mx_weights_close(w);
    mx_pool_destroy(pool);
}

/* ---- sums --------------------------------------------------------------------------------------------------------
 */

static char folder[] = "/tmp/mxrun-calibrate-XXXXXX";

static const char *write_file(const char *name, const char *text) {
    static char paths[4][200];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, 200, "%s/%s", folder, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
    return path;
}

static const char *story(void) {
    static char text[8000];
    *text = 0;
    for (int i = 0; i < 40; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text),
                 "%d foxes there were who had a lamp.\nAnd the %s and the bear said %d words.\n", i,
                 i % 2 ? "owl" : "hen", i * i);
    return write_file("story.txt", text);
}

static mx_module module(mx_kind kind, int layer, int expert) {
    return (mx_module){.kind = kind, .layer = layer, .expert = expert};
}

/* In two steps a run. */
static mx_calibration *open_with(const char *text, mx_pool *pool, bool rotated, uint64_t room) {
    const char *path = path_in("MXRUN_SOURCE", "tools/stories/checkpoint");
    const mx_calibrate_options o = {
        .text_path = text, .tokens = 560, .window = 280, .rotated = rotated, .room = room, .pool = pool};
    mx_config config;
    mx_calibration *c;
    ok(mx_config_read(path, &config, &error));
    ok(mx_calibration_open(path, &config, &o, &c, &error));
    return c;
}

/* Everything of layers first .. last - 1 is wanted, and there. */
static mx_calibration *calibrate(const char *text, mx_pool *pool, bool rotated, int first, int last, int layers,
                                 int experts) {
    mx_calibration *c = open_with(text, pool, rotated, UINT64_MAX);
    mx_module m = module(MX_KIND_LM_HEAD, -1, -1);
    if (last > layers) mx_calibration_want(c, &m, true);
    for (int l = first; l < last && l < layers; l++)
        for (int kind = MX_KIND_Q; kind <= MX_KIND_DOWN; kind++)
            for (int e = 0; e < (kind < MX_KIND_GATE ? 1 : experts); e++) {
                m = module((mx_kind)kind, l, e);
                mx_calibration_want(c, &m, true);
            }
    if (first < layers) m = module(MX_KIND_Q, first, -1);
    ok(mx_calibration_run(c, &m, &error));
    return c;
}

/* The same windows in one step, seen by us. */
static void see_all(const char *text, bool plain, all_seen *all, mx_config *config) {
    const char *path = path_in("MXRUN_SOURCE", "tools/stories/checkpoint");
    mx_pool *pool;
    mx_weights *w;
    mx_tokenizer *tokenizer;
    mx_passages windows;
    mx_forward f;
    ok(mx_pool_create(2, &pool, &error));
    ok(mx_weights_open(path, pool, &w, &error));
    ok(mx_tokenizer_open(path, &tokenizer, &error));
    ok(mx_passages_read(text, tokenizer, 560, 280, &windows, &error));
    assert_int_equal(windows.count, 2);
    const mx_observer observer = {remember, all, plain};
    ok(mx_forward_open(w, pool, &observer, 560, 1, &f, &error));
    int next, wanted;
    ok(mx_forward_step(&f, &windows, 0, 0, &next, &wanted, &error));
    assert_int_equal(next, 2);
    *config = w->config;
    mx_forward_close(&f);
    mx_passages_free(&windows);
    mx_tokenizer_close(tokenizer);
    mx_weights_close(w);
    mx_pool_destroy(pool);
}

/* Statistics against means of the rows, `turn`ed by blocks. */
static void expect_means(const mx_statistics *s, const mx_observed *o, int turn) {
    assert_non_null(s);
    assert_int_equal(s->rows, o ? o->rows : 0);
    if (!o) return;
    const int64_t n = o->cols;
    assert_int_equal(s->cols, n);
    float *x = malloc((size_t)(o->rows * n) * sizeof *x);
    double *h = calloc((size_t)n, sizeof *h);
    assert_true(x && h);
    memcpy(x, o->x, (size_t)(o->rows * n) * sizeof *x);
    if (turn > 1) mx_hadamard(x, o->rows * n, turn);
    for (int64_t i = 0; i < n; i += 5) { /* rows of the Hessian, not all of them, for the time */
        memset(h, 0, (size_t)n * sizeof *h);
        for (int64_t t = 0; t < o->rows; t++)
            for (int64_t k = 0; k < n; k++) h[k] += (double)x[t * n + i] * x[t * n + k] / (double)o->rows;
        expect_near(s->hessian + i * n, h, n, "hessian");
        if (!(fabs(s->square[i] - h[i]) <= 1e-9 * h[i] + 1e-300)) fail_msg("square %d", (int)i);
        for (int64_t k = 0; k < n; k++) assert_true(s->hessian[i * n + k] == s->hessian[k * n + i]);
    }
    free(x);
    free(h);
}

static void check_sums(bool rotated) {
    const char *text = story();
    all_seen all = {0};
    mx_config c;
    see_all(text, rotated, &all, &c);
    mx_pool *pool;
    ok(mx_pool_create(2, &pool, &error));
    mx_calibration *sums = calibrate(text, pool, rotated, c.layers - 1, c.layers + 1, c.layers, c.experts);
    const int l = c.layers - 1, hidden = rotated ? mx_hadamard_size(c.hidden, 128) : 1,
              head = rotated ? mx_hadamard_size(c.head_dim, 128) : 1;
    mx_module m = module(MX_KIND_V, l, -1);
    expect_means(mx_calibration_of(sums, &m), find(&all, MX_CLASS_QKV, l, -1), hidden);
    m = module(MX_KIND_O, l, -1);
    expect_means(mx_calibration_of(sums, &m), find(&all, MX_CLASS_O, l, -1), head);
    m = module(MX_KIND_LM_HEAD, -1, -1);
    expect_means(mx_calibration_of(sums, &m), find(&all, MX_CLASS_LM_HEAD, c.layers, -1), hidden);
    int chosen = 0;
    for (int e = 0; e < c.experts && chosen < 3; e++) {
        const mx_observed *in = find(&all, MX_CLASS_GATE_UP, l, e);
        chosen += in != NULL;
        m = module(MX_KIND_UP, l, e);
        expect_means(mx_calibration_of(sums, &m), in, hidden);
        m = module(MX_KIND_DOWN, l, e);
        expect_means(mx_calibration_of(sums, &m), find(&all, MX_CLASS_DOWN, l, e), 1);
    }
    m = module(MX_KIND_Q, l - 1, -1); /* not asked for */
    assert_null(mx_calibration_of(sums, &m));
    m = module(MX_KIND_EMBEDDING, -1, -1);
    assert_null(mx_calibration_of(sums, &m));
    mx_calibration_free(sums);
    sums = calibrate(text, pool, rotated, 1, 2, c.layers, c.experts); /* the model is run that far only */
    assert_int_equal(mx_calibration_layers(sums), 2);
    m = module(MX_KIND_K, 1, -1);
    expect_means(mx_calibration_of(sums, &m), find(&all, MX_CLASS_QKV, 1, -1), hidden);
    mx_calibration_free(sums);
    mx_pool_destroy(pool);
    forget(&all);
}

static void test_sums(void **state) {
    (void)state;
    check_sums(false);
    check_sums(true);
}

static void test_threads(void **state) {
    (void)state;
    const char *text = story();
    mx_pool *single, *several;
    ok(mx_pool_create(1, &single, &error));
    ok(mx_pool_create(3, &several, &error));
    mx_calibration *one = calibrate(text, single, false, 0, 2, 4, 2),
                   *more = calibrate(text, several, false, 0, 2, 4, 2);
    for (int l = 0; l < 2; l++)
        for (int kind = MX_KIND_Q; kind <= MX_KIND_DOWN; kind++) {
            const mx_module m = module((mx_kind)kind, l, kind >= MX_KIND_GATE ? 1 : -1);
            const mx_statistics *a = mx_calibration_of(one, &m), *b = mx_calibration_of(more, &m);
            assert_true(a && b && a->rows == b->rows);
            assert_memory_equal(a->square, b->square, (size_t)a->cols * sizeof *a->square);
            assert_memory_equal(a->hessian, b->hessian, (size_t)(a->cols * a->cols) * sizeof *a->hessian);
        }
    mx_calibration_free(one);
    mx_calibration_free(more);
    mx_pool_destroy(single);
    mx_pool_destroy(several);
}

static void expect_same(const mx_statistics *a, const mx_statistics *b) {
    assert_true(a && b && a->rows == b->rows && a->cols == b->cols && a->rows);
    assert_memory_equal(a->square, b->square, (size_t)a->cols * sizeof *a->square);
    assert_true(!a->hessian == !b->hessian);
    if (a->hessian) assert_memory_equal(a->hessian, b->hessian, (size_t)(a->cols * a->cols) * sizeof *a->hessian);
}

/* Layer by layer, each from where the one before ended: the bits of one run, and nothing that nobody wants. */
static void test_resumed(void **state) {
    (void)state;
    const char *text = story();
    mx_pool *pool;
    ok(mx_pool_create(2, &pool, &error));
    mx_calibration *whole = open_with(text, pool, false, UINT64_MAX), *parts = open_with(text, pool, false, 1);
    const mx_module wanted[] = {module(MX_KIND_Q, 0, -1), module(MX_KIND_DOWN, 2, 1), module(MX_KIND_LM_HEAD, -1, -1)};
    const mx_module others[] = {module(MX_KIND_O, 0, -1), module(MX_KIND_GATE, 2, 1), module(MX_KIND_DOWN, 2, 0),
                                module(MX_KIND_Q, 1, -1)};
    for (int i = 0; i < 3; i++) {
        mx_calibration_want(whole, &wanted[i], i != 1);
        mx_calibration_want(parts, &wanted[i], i != 1);
    }
    const int64_t steps[] = {1, 3, 4}; /* layers that were run by then: none twice */
    for (int i = 0; i < 3; i++) {
        ok(mx_calibration_run(whole, &wanted[i], &error));
        ok(mx_calibration_run(parts, &wanted[i], &error));
        expect_same(mx_calibration_of(whole, &wanted[i]), mx_calibration_of(parts, &wanted[i]));
        assert_int_equal(mx_calibration_layers(whole), 4);
        assert_int_equal(mx_calibration_layers(parts), steps[i]);
        for (int k = 0; k < 4; k++) assert_null(mx_calibration_of(whole, &others[k]));
        if (i) assert_null(mx_calibration_of(parts, &wanted[i - 1]));
    }
    const mx_statistics *q = mx_calibration_of(whole, &wanted[0]), *down = mx_calibration_of(whole, &wanted[1]);
    assert_null(down->hessian);
    /* Two Hessians and three rows of squares. */
    assert_true(mx_calibration_memory(whole) <= (uint64_t)(2 * q->cols * q->cols * 4 + 4 * q->cols * 8 + 512));
    ok(mx_calibration_run(parts, &wanted[0], &error)); /* from the beginning again */
    expect_same(q, mx_calibration_of(parts, &wanted[0]));
    assert_int_equal(mx_calibration_layers(parts), 5);
    ok(mx_calibration_run(parts, &wanted[1], &error));
    ok(mx_calibration_run(parts, &wanted[0], &error)); /* and back, though layers behind were reached */
    expect_same(q, mx_calibration_of(parts, &wanted[0]));
    assert_int_equal(mx_calibration_layers(parts), 8);
    assert_int_equal(mx_calibration_run(parts, &others[0], &error), MX_INVALID_STATE);
    mx_calibration_free(whole);
    mx_calibration_free(parts);
    mx_pool_destroy(pool);
}

/* A weight of the model that is no number is named, where it is, and not what it makes of statistics. */
static void expect_named(const mx_weights *w, const char *text, mx_pool *pool, const char *says) {
    const mx_calibrate_options o = {.text_path = text, .tokens = 60, .window = 60, .pool = pool, .weights = w};
    const mx_module m = module(MX_KIND_DOWN, 2, 1);
    mx_calibration *c;
    ok(mx_calibration_open(path_in("MXRUN_SOURCE", "tools/stories/checkpoint"), &w->config, &o, &c, &error));
    mx_calibration_want(c, &m, true);
    assert_int_equal(mx_calibration_run(c, &m, &error), MX_INVALID_FILE);
    if (!strstr(error.text, says)) fail_msg("%s: no \"%s\"", error.text, says);
    assert_null(mx_calibration_of(c, &m));
    mx_calibration_free(c);
}

static void test_not_finite(void **state) {
    (void)state;
    const char *text = story();
    mx_pool *pool;
    mx_weights *w;
    ok(mx_pool_create(2, &pool, &error));
    ok(mx_weights_open(path_in("MXRUN_SOURCE", "tools/stories/checkpoint"), pool, &w, &error));
    mx_layer *l = &w->layer[1];
    const mx_matrix q = l->q;
    float *numbers = malloc((size_t)(q.rows * q.cols) * sizeof *numbers);
    assert_non_null(numbers);
    for (int64_t n = 0; n < q.rows; n++) mx_matrix_widen_row(numbers + n * q.cols, &q, n);
    numbers[3 * q.cols + 5] = INFINITY;
    l->q = (mx_matrix){.format = MX_F32,
                       .rows = q.rows,
                       .cols = q.cols,
                       .data = (const uint8_t *)numbers,
                       .row_stride = q.cols * 4,
                       .bf16_safe = true};
    expect_named(w, text, pool, "model.layers.1.self_attn.q_proj: row 3, column 5 is infinite");
    for (int64_t k = 0; k < q.cols; k++) numbers[3 * q.cols + k] = k % 2 ? 3e38f : -3e38f; /* finite, and too large */
    expect_named(w, text, pool, "all of its weights are finite");
    l->q = q;
    const mx_experts up = l->gate_up;
    const size_t bytes = (size_t)w->config.experts * (size_t)up.matrix.rows;
    float *bias = calloc(bytes, sizeof *bias);
    assert_non_null(bias);
    for (int e = 0; e < w->config.experts; e++) bias[e * up.matrix.rows + 4] = NAN;
    l->gate_up.bias = (const uint8_t *)bias;
    l->gate_up.bias_stride = 0;
    l->gate_up.bias_format = MX_F32;
    expect_named(w, text, pool, "model.layers.1.mlp.experts.gate_up_proj_bias: row 0, column 4 is NaN");
    l->gate_up = up;
    free(bias);
    free(numbers);
    mx_weights_close(w);
    mx_pool_destroy(pool);
}

/* ---- windows -----------------------------------------------------------------------------------------------------
 */

static mx_tokenizer *tokenizer_of_stories(void) {
    mx_tokenizer *t;
    ok(mx_tokenizer_open(path_in("MXRUN_SOURCE", "tools/stories/checkpoint"), &t, &error));
    return t;
}

static void test_windows(void **state) {
    (void)state;
    mx_tokenizer *t = tokenizer_of_stories();
    mx_passages w;
    ok(mx_passages_read(story(), t, 1 << 20, 50, &w, &error)); /* all of it */
    mx_bytes text = {0};
    mx_ids ids = {0};
    ok(mx_read_file(story(), 1 << 20, &text, &error));
    ok(mx_encode(t, text.data, text.size, &ids, &error));
    assert_int_equal(w.count, (ids.count + 49) / 50);
    assert_memory_equal(w.ids.data, ids.data, (size_t)w.ids.count * sizeof *ids.data);
    assert_int_equal(w.first[w.count], w.ids.count);
    mx_passages_free(&w);

    ok(mx_passages_read(story(), t, 25, 10, &w, &error)); /* a few places of it */
    assert_int_equal(w.count, 3);
    assert_int_equal(w.ids.count, 25);
    assert_memory_equal(w.ids.data, ids.data, 10 * sizeof *ids.data);
    int number = 0; /* the last window begins with a line of the text's last third */
    for (int i = 20; i < 25; i++) {
        size_t size;
        const char *bytes = mx_token_bytes(t, w.ids.data[i], &size);
        for (size_t k = 0; k < size; k++)
            number = bytes[k] < '0' || bytes[k] > '9' ? number : 10 * number + bytes[k] - '0';
        if (number >= 20) break;
    }
    assert_true(number >= 20 && number < 40);
    mx_passages_free(&w);
    mx_ids_free(&ids);
    mx_bytes_free(&text);

    const char *lines =
        write_file("lines.jsonl", "{\"text\": \"A fox and a lamp.\"}\n\n{\"messages\": [{\"role\": \"system\", "
                                  "\"content\": \"Be kind.\"}, {\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": "
                                  "\"assistant\", \"content\": \"Once\", \"thinking\": \"Hm\"}]}");
    ok(mx_passages_read(lines, t, 1000, 500, &w, &error));
    assert_int_equal(w.count, 2);
    assert_int_equal(w.ids.data[w.first[1]], mx_special_id(t, "<|start|>"));
    mx_bytes shown = {0};
    for (int64_t i = w.first[1]; i < w.first[2]; i++) {
        size_t size;
        const char *bytes = mx_token_bytes(t, w.ids.data[i], &size);
        mx_bytes_add(&shown, bytes, size);
    }
    assert_non_null(strstr(shown.data, "Be kind."));
    assert_non_null(strstr(shown.data, "<|start|>user<|message|>Hi<|end|>"));
    assert_non_null(strstr(shown.data, "analysis<|message|>Hm<|end|>"));
    assert_non_null(strstr(shown.data, "final<|message|>Once"));
    mx_bytes_free(&shown);
    mx_passages_free(&w);
    mx_tokenizer_close(t);
}

static void test_wrong_texts(void **state) {
    (void)state;
    static const char *const wrong[][2] = {
        {"a.txt", ""},
        {"a.jsonl", "\n \n"},
        {"a.jsonl", "{\"text\": 1}"},
        {"a.jsonl", "{\"text\": \"x y z\"}\nnonsense"},
        {"a.jsonl", "{\"messages\": [{\"role\": \"user\"}]}"},
        {"a.jsonl", "{\"messages\": [{\"role\": \"robot\", \"content\": \"\"}]}"},
        {"a.jsonl", "{\"messages\": [1]}"},
        {"a.jsonl", "{\"messages\": [{\"role\": \"system\", \"content\": \"a\\u0000b\"}]}"},
    };
    mx_tokenizer *t = tokenizer_of_stories();
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        mx_passages w;
        const char *path = write_file(wrong[i][0], wrong[i][1]);
        assert_int_equal(mx_passages_read(path, t, 1000, 100, &w, &error), MX_INVALID_FILE);
        assert_non_null(strstr(error.text, wrong[i][0]));
        assert_null(w.first);
    }
    mx_passages w;
    assert_int_equal(mx_passages_read("/nowhere/at.all", t, 1000, 100, &w, &error), MX_IO);
    mx_tokenizer_close(t);
    mx_pool *pool;
    mx_config config;
    mx_calibration *c;
    const char *model = path_in("MXRUN_SOURCE", "tools/stories/checkpoint");
    ok(mx_pool_create(1, &pool, &error));
    ok(mx_config_read(model, &config, &error));
    mx_calibrate_options o = {.text_path = "/nowhere/at.all", .pool = pool};
    assert_int_equal(mx_calibration_open(model, &config, &o, &c, &error), MX_IO);
    assert_null(c);
    const volatile sig_atomic_t stop = 1;
    o = (mx_calibrate_options){.text_path = story(), .pool = pool, .stop = &stop};
    ok(mx_calibration_open(model, &config, &o, &c, &error));
    const mx_module m = module(MX_KIND_Q, 0, -1);
    mx_calibration_want(c, &m, false);
    assert_int_equal(mx_calibration_run(c, &m, &error), MX_CANCELLED);
    assert_null(mx_calibration_of(c, &m));
    mx_calibration_free(c);
    mx_pool_destroy(pool);
}

static int open_folder(void **state) {
    (void)state;
    return !mkdtemp(folder);
}

static int close_folder(void **state) {
    (void)state;
    static const char *const names[] = {"story.txt", "lines.jsonl", "a.txt", "a.jsonl"};
    char path[200];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    return rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),       cmocka_unit_test(test_unseen),  cmocka_unit_test(test_parts),
        cmocka_unit_test(test_sums),       cmocka_unit_test(test_threads), cmocka_unit_test(test_resumed),
        cmocka_unit_test(test_not_finite), cmocka_unit_test(test_windows), cmocka_unit_test(test_wrong_texts),
    };
    return cmocka_run_group_tests(tests, open_folder, close_folder);
}
