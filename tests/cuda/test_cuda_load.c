/* Weights on the device: read back from where they lie and compared with the file's numbers, by a reader of
 * layout.h's units that has no code in common with the kernels. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "model/cuda/loading.h"
#include "tests/cuda/target.h"
#include "tests/model/checkpoint_maker.h"
#include "tests/model/layout_maker.h"
#include "tests/sanitized.h"

/* ---- the device's memory ------------------------------------------------------------------------------------------
 */

static uint64_t memory_free(void) {
    mx_gpu_info info;
    mx_error error;
    if (mx_gpu_get_info(0, &info, &error)) fail_msg("%s", error.text);
    return info.memory_free;
}

/* Of a real GPU's memory the driver takes for itself, too. */
static void check_free(uint64_t expected) {
    if (EMULATED) assert_int_equal(memory_free(), expected);
}

/* All of it, in host memory; free it. */
static uint8_t *read_back(const mx_cuda_weights *c) {
    uint8_t *out = malloc(c->bytes);
    mx_gpu_stream *s;
    mx_error error;
    assert_non_null(out);
    if (mx_gpu_stream_create(&s, &error) || mx_gpu_copy(out, c->memory, c->bytes, s, &error) ||
        mx_gpu_stream_wait(s, &error))
        fail_msg("%s", error.text);
    mx_gpu_stream_destroy(s);
    return out;
}

/* What lies at a device pointer, in what read_back gave. */
typedef struct image {
    const mx_cuda_weights *c;
    uint8_t *copy;
} image;

static const uint8_t *at(const image *m, const void *device, int64_t offset, int64_t bytes) {
    const int64_t place = (const uint8_t *)device - (const uint8_t *)m->c->memory + offset;
    assert_true(place >= 0 && (uint64_t)(place + bytes) <= m->c->bytes);
    return m->copy + place;
}

/* ---- layout.h's units ---------------------------------------------------------------------------------------------
 */

/* Bit `bit` (3: the sign) of code j of an MXFP4 word. */
static int bit_of_code(int j, int bit) {
    static const int places[] = {6, 7, 8, 15}; /* as BF16 has them */
    const int spread = places[bit] + 16 * (j % 2);
    switch (j / 2) {
    case 0:
        return spread;
    case 1:
        return spread - 6;
    case 2:
        return (spread + 32 - 10) % 32;
    default:
        return bit ? spread - 4 : spread + 4;
    }
}

/* One number of expert e's matrix, by laid-out row. */
static float number(const image *m, const mx_cuda_matrix *w, int64_t e, int64_t row, int64_t col) {
    static const float values[8] = {0, .5f, 1, 1.5f, 2, 3, 4, 6};
    const int64_t unit = row / MX_UNIT_ROWS * ((w->cols + MX_UNIT_COLS - 1) / MX_UNIT_COLS) + col / MX_UNIT_COLS;
    const int r = (int)(row % MX_UNIT_ROWS), k = (int)(col % MX_UNIT_COLS);
    const int g = r % 8, high = r / 8, b = k / 32, t = k % 32 / 8, j = k % 8, lane = 4 * g + t;
    if (w->format == MX_CUDA_BF16) {
        const uint8_t *p = at(m, w->data, e * w->data_stride + unit * MX_UNIT_BF16, MX_UNIT_BF16);
        return mx_bf16_to_f32(
            mx_load_u16(p + ((b * 2 + j / 4) * 32 + lane) * 16 + j % 4 / 2 * 8 + high * 4 + j % 2 * 2));
    }
    const int which = (g * 2 + b) * 2 + high; /* of the scales */
    if (w->format == MX_CUDA_Q8_0) {
        const uint8_t *p = at(m, w->data, e * w->data_stride + unit * MX_UNIT_Q8_0, MX_UNIT_Q8_0);
        const uint8_t *s = at(m, w->scales, e * w->scale_stride + unit * MX_UNIT_Q8_0_SCALES, MX_UNIT_Q8_0_SCALES);
        const int8_t q = (int8_t)p[((b * 32 + lane) * 2 + high) * 8 + j];
        return mx_f16_to_f32(mx_load_u16(s + 2 * which)) * (float)q;
    }
    const uint8_t *p = at(m, w->data, e * w->data_stride + unit * MX_UNIT_MXFP4, MX_UNIT_MXFP4);
    const uint8_t *s = at(m, w->scales, e * w->scale_stride + unit * MX_UNIT_MXFP4_SCALES, MX_UNIT_MXFP4_SCALES);
    uint32_t word;
    memcpy(&word, p + ((lane * 2 + b) * 2 + high) * 4, 4);
    int code = 0;
    for (int bit = 0; bit < 4; bit++) code |= (int)(word >> bit_of_code(j, bit) & 1) << bit;
    const float size = ldexpf(values[code & 7], s[which] - 127);
    return code & 8 ? -size : size;
}

/* ---- the file's numbers -------------------------------------------------------------------------------------------
 */

/* Row `row` of expert e [cols]. */
static void row_of(const mx_experts *x, int64_t e, int64_t row, float *out) {
    const mx_matrix *m = &x->matrix;
    const uint8_t *p = m->data + e * x->data_stride + row * m->row_stride;
    for (int64_t i = 0; i < m->cols; i++) switch (m->format) {
        case MX_F32:
            memcpy(&out[i], p + 4 * i, 4);
            break;
        case MX_F16:
            out[i] = mx_f16_to_f32(mx_load_u16(p + 2 * i));
            break;
        case MX_BF16:
            out[i] = mx_bf16_to_f32(mx_load_u16(p + 2 * i));
            break;
        case MX_Q8_0:
            if (i % 32 == 0) mx_q8_0_widen(out + i, p + i / 32 * MX_Q8_0_BYTES);
            break;
        case MX_MXFP4_GGML:
            if (i % 32 == 0) mx_mxfp4_ggml_widen(out + i, p + i / 32 * MX_MXFP4_GGML_BYTES);
            break;
        default:
            if (i % 32 == 0)
                mx_mxfp4_widen(out + i, p + i / 2, m->scales[e * x->scale_stride + row * m->scale_stride + i / 32]);
        }
}

static float bias_of(const mx_experts *x, int64_t i) {
    float f;
    if (x->bias_format == MX_BF16) return mx_bf16_to_f32(mx_load_u16(x->bias + 2 * i));
    memcpy(&f, x->bias + 4 * i, 4);
    return f;
}

/* ---- comparing ----------------------------------------------------------------------------------------------------
 */

/* What expert e of a laid-out matrix must be: zeros, then the rows of one or more matrices. */
typedef struct expected {
    float *number, *bias; /* [rows][cols], [rows], padding included */
    int64_t rows, cols;
} expected;

static expected nothing_yet(const mx_cuda_matrix *w) {
    expected x = {.rows = (w->rows + 15) / 16 * 16, .cols = (w->cols + 63) / 64 * 64};
    x.number = calloc((size_t)(x.rows * x.cols), sizeof *x.number);
    x.bias = calloc((size_t)x.rows, sizeof *x.bias);
    assert_non_null(x.number);
    assert_non_null(x.bias);
    return x;
}

/* The rows of expert e in this order from row_base on; bias: fp32, or the experts' own, or none. */
static void put_rows(expected *x, const mx_experts *from, int64_t e, mx_row_order order, int head_dim, int64_t row_base,
                     const float *bias) {
    const mx_matrix *m = &from->matrix;
    for (int64_t r = 0; r < m->rows; r++) {
        const int64_t to = row_base + mx_cuda_row(order, head_dim, r);
        assert_true(to < x->rows);
        row_of(from, e, r, x->number + to * x->cols);
        if (bias)
            x->bias[to] = bias[r];
        else if (from->bias)
            x->bias[to] = bias_of(from, e * m->rows + r);
    }
}

static void put_matrix(expected *x, const mx_matrix *from, mx_row_order order, int head_dim, int64_t row_base,
                       const float *bias) {
    put_rows(x, &(mx_experts){.matrix = *from}, 0, order, head_dim, row_base, bias);
}

static void check_matrix(const image *m, const mx_cuda_matrix *w, int64_t e, expected x, bool bias, const char *what) {
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++) {
            const float is = number(m, w, e, r, c), want = x.number[r * x.cols + c];
            if (memcmp(&is, &want, 4))
                fail_msg("%s: expert %d, laid-out row %d, column %d is %g, not %g", what, (int)e, (int)r, (int)c,
                         (double)is, (double)want);
        }
    assert_int_equal((uintptr_t)w->data % 256, 0);
    if (!bias) assert_null(w->bias);
    if (bias && memcmp(at(m, w->bias, e * w->bias_stride * 4, x.rows * 4), x.bias, (size_t)x.rows * 4))
        fail_msg("%s: other biases of expert %d", what, (int)e);
    free(x.number);
    free(x.bias);
}

static void check_vector(const image *m, const float *device, const float *want, int64_t n, const char *what) {
    if (memcmp(at(m, device, 0, n * 4), want, (size_t)n * 4)) fail_msg("%s: other numbers", what);
}

static void check_layer(const image *m, const mx_weights *w, int i) {
    const mx_config *c = &w->config;
    const mx_layer *f = &w->layer[i];
    const mx_cuda_layer *l = &m->c->layer[i];
    const int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    const int d = c->head_dim;
    check_vector(m, l->attn_norm, f->attn_norm, c->hidden, "attn_norm");
    check_vector(m, l->mlp_norm, f->mlp_norm, c->hidden, "mlp_norm");
    check_vector(m, l->sinks, f->sinks, c->heads, "sinks");
    assert_int_equal(l->qkv.rows, q + 2 * kv);
    expected x = nothing_yet(&l->qkv);
    put_matrix(&x, &f->q, MX_ROWS_ROPE, d, 0, c->attention_bias ? f->q_bias : NULL);
    put_matrix(&x, &f->k, MX_ROWS_ROPE, d, q, c->attention_bias ? f->k_bias : NULL);
    put_matrix(&x, &f->v, MX_ROWS_PLAIN, d, q + kv, c->attention_bias ? f->v_bias : NULL);
    check_matrix(m, &l->qkv, 0, x, c->attention_bias, "qkv");
    x = nothing_yet(&l->o);
    put_matrix(&x, &f->o, MX_ROWS_PLAIN, 0, 0, c->attention_bias ? f->o_bias : NULL);
    check_matrix(m, &l->o, 0, x, c->attention_bias, "o");
    x = nothing_yet(&l->router);
    put_matrix(&x, &f->router, MX_ROWS_PLAIN, 0, 0, f->router_bias);
    check_matrix(m, &l->router, 0, x, true, "router");
    for (int64_t e = 0; e < c->experts; e++) {
        x = nothing_yet(&l->gate_up);
        put_rows(&x, &f->gate_up, e, f->up.matrix.rows ? MX_ROWS_GATE : MX_ROWS_GATE_UP, 0, 0, NULL);
        if (f->up.matrix.rows) put_rows(&x, &f->up, e, MX_ROWS_UP, 0, 0, NULL);
        check_matrix(m, &l->gate_up, e, x, true, "gate_up");
        x = nothing_yet(&l->down);
        put_rows(&x, &f->down, e, MX_ROWS_PLAIN, 0, 0, NULL);
        check_matrix(m, &l->down, e, x, true, "down");
    }
}

/* All of it is what the weights are. */
static void check_all(const image *m, const mx_weights *w) {
    const mx_config *c = &w->config;
    expected x = nothing_yet(&m->c->embedding);
    put_matrix(&x, &w->embedding, MX_ROWS_PLAIN, 0, 0, NULL);
    check_matrix(m, &m->c->embedding, 0, x, false, "embedding");
    if (c->tied_embeddings) {
        assert_ptr_equal(m->c->lm_head.data, m->c->embedding.data);
    } else {
        x = nothing_yet(&m->c->lm_head);
        put_matrix(&x, &w->lm_head, MX_ROWS_PLAIN, 0, 0, NULL);
        check_matrix(m, &m->c->lm_head, 0, x, false, "lm_head");
    }
    check_vector(m, m->c->norm, w->norm, c->hidden, "norm");
    for (int i = 0; i < c->layers; i++) check_layer(m, w, i);
}

/* ---- loading ------------------------------------------------------------------------------------------------------
 */

static const mx_cuda_load_options plainly = {0};

static mx_weights *open_model(const char *path) {
    mx_weights *w;
    mx_error error;
    if (mx_weights_open(path, NULL, &w, &error)) fail_msg("%s", error.text);
    return w;
}

/* Free with put_back. */
static image load_by(const mx_weights *w, const mx_cuda_load_options *options, uint64_t most) {
    mx_cuda_weights *c;
    mx_cuda_loaded loaded;
    mx_error error;
    if (mx_cuda_weights_load_by(w, options, most, &c, &loaded, &error)) fail_msg("%s", error.text);
    uint64_t bytes = 0;
    if (mx_cuda_weights_bytes(w, &bytes, &error)) fail_msg("%s", error.text);
    assert_int_equal(bytes, c->bytes);
    assert_true(loaded.bytes > 0 && loaded.seconds > 0);
    assert_int_equal(c->config.hidden, w->config.hidden);
    return (image){c, read_back(c)};
}

static void put_back(image *m) {
    mx_cuda_weights_free(m->c ? (mx_cuda_weights *)(uintptr_t)m->c : NULL);
    free(m->copy);
}

static const char *path_of(const char *name) {
    static char path[900];
    const char *root = getenv("MXRUN_SOURCE");
    snprintf(path, sizeof path, strcmp(name, "stories") ? "%s/tests/data/%s" : "%s/tools/%s/checkpoint",
             root ? root : ".", name);
    return path;
}

static void checkpoints_lie_as_they_should(void **state) {
    (void)state;
    static const char *const names[] = {"base", "mqa", "top1", "stories"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const uint64_t before = memory_free();
        mx_weights *w = open_model(path_of(names[i]));
        image m = load_by(w, &plainly, 0);
        check_free(before - m.c->bytes); /* nothing else stays */
        check_all(&m, w);
        for (int l = 0; l < w->config.layers; l++) {
            assert_false(m.c->layer[l].gate_up.wide_scales);
            assert_false(m.c->layer[l].down.wide_scales);
        }
        put_back(&m);
        mx_weights_close(w);
        check_free(before);
    }
}

/* ---- layouts ------------------------------------------------------------------------------------------------------
 */

static char folder[200];

static const char *write_gguf(const source *s, const char *name, uint32_t dense, uint32_t experts, bool tied) {
    gguf *g = calloc(1, sizeof *g);
    assert_non_null(g);
    gguf_from(g, s, &(gguf_form){.dense = dense, .experts = experts, .tied = tied});
    const char *path = made_path(folder, name);
    gguf_write(g, path);
    gguf_free(g);
    free(g);
    return path;
}

/* Checks the model at `path`, and that its memory is that of `same`, if given. */
static image check_model(const char *path, const image *same) {
    mx_weights *w = open_model(path);
    image m = load_by(w, &plainly, 3000);
    check_all(&m, w);
    if (same) {
        assert_int_equal(m.c->bytes, same->c->bytes);
        if (memcmp(m.copy, same->copy, m.c->bytes)) fail_msg("%s: other bytes on the device", path);
    }
    mx_weights_close(w);
    return m;
}

static void check_same(const char *path, const image *same) {
    image m = check_model(path, same);
    put_back(&m);
}

/* base in every layout; what was the same in the files is the same on the device. */
static void layouts_make_no_difference(void **state) {
    (void)state;
    source s;
    source_open(&s, "base");
    made_folder(folder);
    image base = check_model(s.folder, NULL);
    original_write(made_path(folder, "original"), &s);
    check_same(made_path(folder, "original"), &base);
    mx_bytes file = {0};
    metal_from(&file, &s, NULL);
    made_file(folder, "model.bin", file.data, file.size);
    mx_bytes_free(&file);
    check_same(made_path(folder, "model.bin"), &base);
    check_same(write_gguf(&s, "bf16.gguf", MADE_BF16, MADE_MXFP4, false), &base);
    check_same(write_gguf(&s, "f16.gguf", MADE_F16, MADE_MXFP4, false), NULL); /* its least numbers are rounded */
    check_same(write_gguf(&s, "f32.gguf", MADE_F32, MADE_MXFP4, false), &base);
    bf16_experts_write(made_path(folder, "experts"), &s);
    image wide = check_model(made_path(folder, "experts"), NULL);
    assert_int_equal(wide.c->layer[0].down.format, MX_CUDA_BF16);
    check_same(write_gguf(&s, "experts.gguf", MADE_BF16, MADE_BF16, false), &wide);
    check_same(write_gguf(&s, "f16-experts.gguf", MADE_BF16, MADE_F16, false), NULL);
    image eight = check_model(write_gguf(&s, "q8_0.gguf", MADE_Q8_0, MADE_MXFP4, false), NULL);
    assert_int_equal(eight.c->embedding.format, MX_CUDA_Q8_0);
    image all_eight = check_model(write_gguf(&s, "all-q8_0.gguf", MADE_Q8_0, MADE_Q8_0, false), NULL);
    assert_int_equal(all_eight.c->layer[0].gate_up.format, MX_CUDA_Q8_0);
    image tied = check_model(write_gguf(&s, "tied.gguf", MADE_BF16, MADE_MXFP4, true), NULL);
    assert_true(tied.c->bytes < base.c->bytes);
    put_back(&base);
    put_back(&wide);
    put_back(&eight);
    put_back(&all_eight);
    put_back(&tied);
    source_close(&s);
    maker_remove(folder);
}

/* As others wrote them. */
static void layouts_of_the_reference(void **state) {
    (void)state;
    const char *shared = getenv("MXRUN_SHARED");
    static const struct {
        const char *name;
        bool same;
    } models[] = {{"base-original", true},
                  {"base-bf16.gguf", true},
                  {"base-shards", true},
                  {"base-q8_0.gguf", false},
                  {"base-bf16-experts", false}};
    char path[900];
    snprintf(path, sizeof path, "%s/checkpoints/random/base/config.json", shared ? shared : "../shared");
    FILE *f = fopen(path, "r");
    if (!f) skip();
    fclose(f);
    image base = check_model(path_of("base"), NULL);
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        snprintf(path, sizeof path, "%s/checkpoints/random/%s", shared ? shared : "../shared", models[i].name);
        check_same(path, models[i].same ? &base : NULL);
    }
    put_back(&base);
}

/* ---- pieces, progress, stopping -----------------------------------------------------------------------------------
 */

/* Smaller than an expert, than a matrix, than a row tile, than a row; with many readers and one. */
static void pieces_make_no_difference(void **state) {
    (void)state;
    static const struct {
        const char *model;
        uint64_t most;
        int readers;
    } cases[] = {{"top1", 1, 1},      {"top1", 1000, 7},   {"top1", 20000, 3},   {"mqa", 5000, 2},
                 {"base", 40000, 64}, {"base", 100000, 1}, {"base", 1000000, 2}, {"stories", 70000, 4}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mx_weights *w = open_model(path_of(cases[i].model));
        image whole = load_by(w, &plainly, 0), cut;
        cut = load_by(w, &(mx_cuda_load_options){.readers = cases[i].readers}, cases[i].most);
        if (memcmp(whole.copy, cut.copy, whole.c->bytes)) fail_msg("case %d: other bytes", (int)i);
        put_back(&whole);
        put_back(&cut);
        mx_weights_close(w);
    }
}

typedef struct watcher {
    uint64_t last, total;
    int calls, stop_at;
    volatile sig_atomic_t stop;
} watcher;

static void watch(void *user, uint64_t done, uint64_t total) {
    watcher *v = user;
    assert_true(done >= v->last && done <= total);
    v->last = done;
    v->total = total;
    if (++v->calls == v->stop_at) v->stop = 1;
}

static void progress_and_rates_are_reported(void **state) {
    (void)state;
    mx_weights *w = open_model(path_of("stories"));
    watcher v = {0};
    mx_cuda_weights *c;
    mx_cuda_loaded loaded;
    mx_error error;
    const mx_cuda_load_options options = {.progress = watch, .user = &v, .stop = &v.stop};
    if (mx_cuda_weights_load(w, &options, &c, &loaded, &error)) fail_msg("%s", error.text);
    assert_true(v.calls > 10);
    assert_int_equal(v.last, v.total);
    assert_int_equal(loaded.bytes, v.total);
    assert_true(loaded.copy_rate > 0); /* the embedding has 2 MiB */
    mx_cuda_weights_free(c);
    mx_weights_close(w);
}

static void loading_can_be_stopped(void **state) {
    (void)state;
    mx_weights *w = open_model(path_of("top1"));
    const uint64_t before = memory_free();
    for (int made = 0; made < 2; made++)
        for (int at_call = 0; at_call < 40; at_call += 13) {
            watcher v = {.stop_at = at_call, .stop = at_call == 0};
            mx_cuda_weights *c;
            mx_error error;
            const mx_cuda_load_options options = {.progress = watch, .user = &v, .stop = &v.stop, .synthetic = made};
            assert_int_equal(mx_cuda_weights_load_by(w, &options, 20000, &c, NULL, &error), MX_CANCELLED);
            assert_null(c);
            assert_int_equal(v.calls, at_call); /* not a piece later */
            check_free(before);
        }
    mx_weights_close(w);
}

static void too_small_a_device_is_told(void **state) {
    (void)state;
    if (!EMULATED) skip(); /* of a real one nobody takes all but so many bytes */
    mx_weights *w = open_model(path_of("base"));
    const uint64_t room = memory_free();
    uint64_t bytes = 0;
    mx_error error;
    mx_cuda_weights *c;
    void *hog;
    char text[80];
    assert_int_equal(mx_cuda_weights_bytes(w, &bytes, &error), MX_OK);
    for (int i = 0; i < 2; i++) { /* too little for the weights; for them but not for what loading needs */
        const uint64_t left = i ? bytes : bytes - 1;
        assert_int_equal(mx_gpu_alloc(&hog, room - left, "the test", &error), MX_OK);
        assert_int_equal(mx_cuda_weights_load(w, &plainly, &c, NULL, &error), MX_NO_MEMORY);
        assert_null(c);
        snprintf(text, sizeof text, "%llu", (unsigned long long)bytes);
        if (!i && !strstr(error.text, text)) fail_msg("says \"%s\"", error.text);
        snprintf(text, sizeof text, "%llu of", (unsigned long long)(i ? 0 : left));
        if (!strstr(error.text, text)) fail_msg("says \"%s\"", error.text);
        check_free(left);
        mx_gpu_free(hog);
    }
    mx_weights_close(w);
}

/* ---- what is refused ----------------------------------------------------------------------------------------------
 */

/* A copy of the weights' description whose layers may be changed. */
static mx_weights changeable(const mx_weights *w) {
    mx_weights copy = *w;
    copy.layer = malloc((size_t)w->config.layers * sizeof *copy.layer);
    assert_non_null(copy.layer);
    memcpy(copy.layer, w->layer, (size_t)w->config.layers * sizeof *copy.layer);
    return copy;
}

static void check_refused(const mx_weights *w, mx_status status, const char *first, const char *second) {
    mx_cuda_weights *c;
    mx_error error = {0};
    const uint64_t before = memory_free();
    assert_int_equal(mx_cuda_weights_load_by(w, &plainly, 5000, &c, NULL, &error), status);
    assert_null(c);
    if (!strstr(error.text, first) || !strstr(error.text, second)) fail_msg("says \"%s\"", error.text);
    check_free(before);
}

static void what_no_kernel_is_for_is_refused_by_name(void **state) {
    (void)state;
    mx_weights *w = open_model(path_of("base")), x;
    uint64_t bytes;
    mx_error error;
    const struct {
        size_t field;
        int value;
        const char *says;
    } limits[] = {{offsetof(mx_config, head_dim), 48, "head_dim is 48"},
                  {offsetof(mx_config, head_dim), 160, "head_dim is 160"},
                  {offsetof(mx_config, hidden), 8224, "hidden_size is 8224"},
                  {offsetof(mx_config, experts), 1056, "experts is 1056"},
                  {offsetof(mx_config, top_k), 33, "experts per token is 33"}};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        x = (mx_weights){.config = w->config}; /* a shape alone */
        memcpy((char *)&x.config + limits[i].field, &limits[i].value, sizeof limits[i].value);
        assert_int_equal(mx_cuda_weights_bytes(&x, &bytes, &error), MX_UNSUPPORTED);
        if (!strstr(error.text, limits[i].says)) fail_msg("says \"%s\"", error.text);
    }
    check_refused(&x, MX_INVALID_ARGUMENT, "configuration alone", "");
    x = changeable(w);
    x.layer[2].o.format = MX_MXFP4_GGML;
    check_refused(&x, MX_UNSUPPORTED, "model.layers.2.self_attn.o_proj.weight: is MXFP4", "model.safetensors");
    free(x.layer);
    x = changeable(w);
    x.layer[1].v.format = MX_Q8_0;
    check_refused(&x, MX_UNSUPPORTED, "model.layers.1.self_attn.v_proj.weight: is Q8_0, but q_proj is BF16", "");
    free(x.layer);
    x = changeable(w);
    x.lm_head.format = MX_MXFP4;
    check_refused(&x, MX_UNSUPPORTED, "lm_head.weight: is MXFP4", "");
    free(x.layer);
    x = changeable(w);
    x.layer[0].q.format = MX_INT4;
    x.layer[0].q.blocks = (mx_blocks){.columns = 64, .scale = MX_SCALE_BF16};
    check_refused(&x, MX_UNSUPPORTED, "model.layers.0.self_attn.q_proj.weight: is INT4 of 64", "--device cpu");
    free(x.layer);
    x = changeable(w);
    x.layer[1].down.matrix.format = MX_E2M1;
    x.layer[1].down.matrix.blocks = (mx_blocks){.columns = 16, .scale = MX_SCALE_E4M3};
    check_refused(&x, MX_UNSUPPORTED, "model.layers.1.mlp.experts.down_proj: is NVFP4", "model.safetensors");
    free(x.layer);
    mx_weights_close(w);
}

/* One number that BF16 has not, in a router and in an expert. */
static void nothing_is_rounded(void **state) {
    (void)state;
    mx_weights *w = open_model(path_of("top1")), x = changeable(w);
    const mx_matrix *r = &w->layer[1].router;
    const int64_t n = r->rows * r->cols;
    float *values = calloc((size_t)n, sizeof *values);
    assert_non_null(values);
    x.layer[1].router.format = MX_F32;
    x.layer[1].router.data = (const uint8_t *)values;
    values[2 * r->cols + 5] = 0.1f;
    check_refused(&x, MX_UNSUPPORTED, "model.layers.1.mlp.router.weight: row 2, column 5: a number of F32", "--device");
    values[2 * r->cols + 5] = NAN;
    check_refused(&x, MX_UNSUPPORTED, "row 2, column 5", "");
    free(values);
    free(x.layer);
    x = changeable(w);
    const int64_t rows = w->config.hidden, cols = w->config.intermediate;
    uint16_t *halves = calloc((size_t)(rows * cols * w->config.experts), 2);
    assert_non_null(halves);
    x.layer[0].down.matrix = (mx_matrix){
        .format = MX_F16, .rows = rows, .cols = cols, .data = (const uint8_t *)halves, .row_stride = 2 * cols};
    x.layer[0].down.data_stride = 2 * rows * cols;
    halves[(3 * rows + 70) * cols + 31] = 0x3c01; /* 1 + 2^-10 */
    check_refused(&x, MX_UNSUPPORTED, "down_proj.weight: expert 3, row 70, column 31: a number of F16", "");
    free(halves);
    free(x.layer);
    mx_weights_close(w);
}

static void weights_to_look_at_are_refused(void **state) {
    (void)state;
    source s;
    mx_weights *w;
    mx_error error;
    uint64_t bytes = 0;
    source_open(&s, "top1");
    made_folder(folder);
    bf16_experts_write(made_path(folder, "experts"), &s);
    if (mx_weights_load(made_path(folder, "experts"), &(mx_load_options){.way = MX_LOAD_LOOK}, NULL, &w, &error))
        fail_msg("%s", error.text);
    assert_int_equal(mx_cuda_weights_bytes(w, &bytes, &error), MX_OK);
    assert_true(bytes > 0);
    check_refused(w, MX_INVALID_STATE, "experts", "looked at");
    mx_weights_close(w);
    source_close(&s);
    maker_remove(folder);
}

/* ---- scales, biases -----------------------------------------------------------------------------------------------
 */

static void wide_scales_are_found(void **state) {
    (void)state;
    mx_weights *w = open_model(path_of("top1"));
    static const int largest[] = {128, 129, 254};
    for (int k = 0; k < 3; k++) {
        mx_weights x = changeable(w);
        mx_experts *e = &x.layer[1].down;
        const int64_t n = w->config.experts * e->matrix.rows * e->matrix.cols / 32;
        uint8_t *scales = malloc((size_t)n);
        assert_non_null(scales);
        memcpy(scales, e->matrix.scales, (size_t)n);
        scales[n - 1] = (uint8_t)largest[k];
        e->matrix.scales = scales;
        image m = load_by(&x, &plainly, 0);
        for (int i = 0; i < w->config.layers; i++) {
            assert_false(m.c->layer[i].gate_up.wide_scales);
            assert_int_equal(m.c->layer[i].down.wide_scales, i == 1 && largest[k] > 128);
        }
        check_all(&m, &x);
        put_back(&m);
        free(scales);
        free(x.layer);
    }
    mx_weights_close(w);
}

static void attention_may_lack_biases(void **state) {
    (void)state;
    mx_weights *w = open_model(path_of("top1")), x = changeable(w);
    x.config.attention_bias = false;
    for (int i = 0; i < w->config.layers; i++)
        x.layer[i].q_bias = x.layer[i].k_bias = x.layer[i].v_bias = x.layer[i].o_bias = NULL;
    image m = load_by(&x, &plainly, 0);
    check_all(&m, &x);
    put_back(&m);
    free(x.layer);
    mx_weights_close(w);
}

/* ---- made-up weights ----------------------------------------------------------------------------------------------
 */

/* The same as making them in host memory and loading those, whatever the pieces. */
static void synthetic_weights_are_the_same(void **state) {
    (void)state;
    mx_config c;
    mx_error error;
    mx_pool *pool;
    if (mx_synthetic_config("gpt-oss-20b", 2, &c, &error) || mx_pool_create(2, &pool, &error))
        fail_msg("%s", error.text);
    c.hidden = 288;
    c.intermediate = 96;
    c.heads = 4;
    c.kv_heads = 2;
    c.experts = 6;
    c.vocab = 331;
    for (int i = 0; i < 3; i++) {
        mx_weights *w;
        c.tied_embeddings = i == 1;
        c.attention_bias = i != 2;
        if (mx_synthetic_weights(&c, 5, pool, MX_NUMA_OFF, NULL, NULL, &w, &error)) fail_msg("%s", error.text);
        image loaded = load_by(w, &plainly, 0);
        check_all(&loaded, w);
        const mx_weights shape = {.config = c};
        for (uint64_t most = i ? 30000 : 0; most < 90000; most += 30000) {
            image made = load_by(&shape, &(mx_cuda_load_options){.synthetic = true, .seed = 5}, most);
            assert_int_equal(made.c->bytes, loaded.c->bytes);
            if (memcmp(made.copy, loaded.copy, made.c->bytes)) fail_msg("other bytes, in pieces of %d", (int)most);
            put_back(&made);
            if (i) break;
        }
        put_back(&loaded);
        mx_weights_close(w);
    }
    mx_pool_destroy(pool);
}

/* gpt-oss-20b and -120b take little more than their files. */
static void published_models_take_their_bytes(void **state) {
    (void)state;
    static const char *const names[] = {"gpt-oss-20b", "gpt-oss-120b"};
    for (int i = 0; i < 2; i++) {
        mx_weights shape = {0};
        mx_error error;
        uint64_t bytes = 0;
        if (mx_synthetic_config(names[i], 0, &shape.config, &error) || mx_cuda_weights_bytes(&shape, &bytes, &error))
            fail_msg("%s", error.text);
        const uint64_t file = mx_synthetic_bytes(&shape.config);
        print_message("%s: %llu bytes, %llu in its files\n", names[i], (unsigned long long)bytes,
                      (unsigned long long)file);
        assert_true(bytes > file && (double)bytes < 1.004 * (double)file);
    }
}

/* ---- the plugin's table -------------------------------------------------------------------------------------------
 */

static char said[200];

static void keep(void *user, mx_log_level level, const char *line) {
    assert_ptr_equal(user, said);
    assert_int_equal(level, MX_LOG_WARNING);
    snprintf(said, sizeof said, "%s", line);
}

/* Another version is no plugin; this one asks for what it said that it would, and speaks through the host. */
static void the_plugin_keeps_its_word(void **state) {
    (void)state;
    mx_cuda_plugin_open_fn *const open = mx_cuda_plugin_open;
    mx_cuda_host host = {.abi = MX_CUDA_ABI + 1, .log = keep, .user = said, .level = MX_LOG_WARNING};
    assert_null(open(&host));
    host.abi = MX_CUDA_ABI;
    const mx_cuda_plugin *p = open(&host);
    assert_non_null(p);
    assert_int_equal(p->abi, MX_CUDA_ABI);
    mx_log(MX_LOG_INFO, "nothing");
    mx_log(MX_LOG_WARNING, "%d words", 2);
    mx_log_set_sink(NULL, NULL);
    mx_log_set_level(MX_LOG_INFO);
    assert_string_equal(said, "2 words");

    enum { PAGES = 5 };
    mx_weights *w = open_model(path_of("top1"));
    const mx_backend_options options = {.kv_format = MX_F16, .pages = PAGES, .max_rows = 32, .max_wanted = 4};
    mx_cuda_weights *c = NULL;
    mx_backend *b;
    mx_cuda_memory memory;
    mx_error error;
    int count = 0;
    const uint64_t before = memory_free();
    if (p->count(&count, &error) || p->memory(w, &options, &memory, &error) || p->load(w, &plainly, &c, NULL, &error))
        fail_msg("%s", error.text);
    assert_true(EMULATED ? count == 1 : count > 0);
    check_free(before - memory.weights);
    if (p->create(c, &options, &b, &error)) fail_msg("%s", error.text);
    assert_int_equal(memory.page, b->ops->page_bytes(b));
    check_free(before - memory.weights - memory.scratch - PAGES * memory.page);
    assert_int_equal(p->precision(b).of[MX_CLASS_GATE_UP], MX_X_BF16);
    b->ops->destroy(b);
    p->unload(c);
    check_free(before);
    p->unload(NULL);
    mx_weights_close(w);
}

int main(void) {
    if (no_device()) return SKIPPED;
    setenv("MX_EMULATION_MEMORY", "134217728", 1); /* so that a test can take nearly all of it */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checkpoints_lie_as_they_should),
        cmocka_unit_test(layouts_make_no_difference),
        cmocka_unit_test(layouts_of_the_reference),
        cmocka_unit_test(pieces_make_no_difference),
        cmocka_unit_test(progress_and_rates_are_reported),
        cmocka_unit_test(loading_can_be_stopped),
        cmocka_unit_test(too_small_a_device_is_told),
        cmocka_unit_test(what_no_kernel_is_for_is_refused_by_name),
        cmocka_unit_test(nothing_is_rounded),
        cmocka_unit_test(weights_to_look_at_are_refused),
        cmocka_unit_test(wide_scales_are_found),
        cmocka_unit_test(attention_may_lack_biases),
        cmocka_unit_test(synthetic_weights_are_the_same),
        cmocka_unit_test(published_models_take_their_bytes),
        cmocka_unit_test(the_plugin_keeps_its_word),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
