/* The beginning of a step and RMSNorm, against scalar C. */
#include "device_memory.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/bytes.h"

static const mx_kernels *scalar;

static int setup(void **state) {
    (void)state;
    CHECK(mx_kernels_get("scalar", &scalar, &error_));
    return 0;
}

static void *filled(size_t bytes, int byte) {
    void *p = malloc(bytes);
    assert_non_null(p);
    memset(p, byte, bytes);
    return p;
}

static float float_of(uint16_t bf16) {
    return mx_bf16_to_f32(bf16);
}

/* ---- the embedding ---- */

typedef struct embedding {
    mx_cuda_matrix matrix; /* on the device */
    float *values;         /* [rows, cols] */
} embedding;

/* Random, laid out as layout.h says. */
static embedding make_embedding(device *d, rng *r, mx_cuda_format format, int rows, int cols) {
    const int64_t units = mx_cuda_units(cols), all = mx_cuda_row_tiles(rows) * units;
    const bool q8 = format == MX_CUDA_Q8_0;
    const size_t data_bytes = (size_t)all * (q8 ? MX_UNIT_Q8_0 : MX_UNIT_BF16);
    const size_t scale_bytes = (size_t)all * MX_UNIT_Q8_0_SCALES;
    uint8_t *data = filled(data_bytes, 0), *scales = filled(scale_bytes, 0);
    embedding e = {.values = filled((size_t)rows * (size_t)cols * sizeof(float), 0)};
    for (int row = 0; row < rows; row++) {
        for (int col = 0; col < cols; col++) {
            const int64_t unit = row / 16 * units + col / 64;
            const int g = row % 8, upper = row % 16 / 8, block = col % 64 / 32, lane = 4 * g + col % 32 / 8,
                      i = col % 8;
            uint8_t *scale = scales + unit * MX_UNIT_Q8_0_SCALES + ((g * 2 + block) * 2 + upper) * 2;
            float *value = &e.values[(int64_t)row * cols + col];
            if (q8) {
                const uint16_t of_block = mx_f32_to_f16(rng_normal(r) * 0.01f);
                if (col % 32 == 0) memcpy(scale, &of_block, 2);
                uint8_t q = (uint8_t)rng_bits(r);
                data[unit * MX_UNIT_Q8_0 + ((block * 32 + lane) * 2 + upper) * 8 + i] = q;
                *value = mx_f16_to_f32(mx_load_u16(scale)) * (float)(int8_t)q;
            } else {
                const uint16_t v = mx_f32_to_bf16(rng_normal(r));
                memcpy(data + unit * MX_UNIT_BF16 + ((block * 2 + i / 4) * 32 + lane) * 16 + i % 4 / 2 * 8 + upper * 4 +
                           i % 2 * 2,
                       &v, 2);
                *value = float_of(v);
            }
        }
    }
    e.matrix = (mx_cuda_matrix){.format = format, .rows = rows, .cols = cols};
    e.matrix.data = on_device(d, data, data_bytes);
    if (q8) e.matrix.scales = on_device(d, scales, scale_bytes);
    free(data);
    free(scales);
    return e;
}

enum { MOST_ROWS = 9, DRAWN = 5 };
static const int32_t positions[MOST_ROWS] = {0, 17, -1, 131071, 5, -1, 99999, 4096, 1};

typedef struct beginning {
    int32_t token[MOST_ROWS], drawn[DRAWN], meant[MOST_ROWS];
} beginning;

/* Every third token is one that was drawn; what stands in a hole is nothing. */
static beginning random_tokens(rng *r, int vocab) {
    beginning b;
    for (int i = 0; i < DRAWN; i++) b.drawn[i] = rng_below(r, vocab);
    for (int i = 0; i < MOST_ROWS; i++) {
        const int which = rng_below(r, DRAWN);
        b.token[i] = i % 3 == 1 ? -1 - which : rng_below(r, vocab);
        b.meant[i] = i % 3 == 1 ? b.drawn[which] : b.token[i];
        if (positions[i] < 0) b.token[i] = i % 2 ? INT32_MIN : INT32_MAX;
    }
    b.token[0] = b.meant[0] = vocab - 1;
    return b;
}

/* A GPU's doubles are off by an ulp or two, which now and then makes another float. */
static void check_angle(float found, double expected) {
    assert_true(fabs((double)found - (double)(float)expected) <= (EMULATED ? 0 : FLT_EPSILON * fabs(expected)));
}

static void check_begin(mx_cuda_format format, int vocab, int hidden, int head_dim) {
    const int half = head_dim / 2;
    const double concentration = 1.3465735902799727;
    rng r = rng_seeded((uint64_t)(vocab + hidden));
    device d = device_open();
    embedding e = make_embedding(&d, &r, format, vocab, hidden);
    const beginning tokens = random_tokens(&r, vocab);
    double inv_freq[64];
    for (int i = 0; i < half; i++) inv_freq[i] = pow(150000, -2.0 * i / head_dim) / (i % 2 ? 32 : 1);
    const size_t row_bytes = (size_t)hidden * sizeof(float), angles = (size_t)half * sizeof(float);
    mx_cuda_begin b = {.embedding = e.matrix,
                       .token = on_device(&d, tokens.token, sizeof tokens.token),
                       .position = on_device(&d, positions, sizeof positions),
                       .drawn = on_device(&d, tokens.drawn, sizeof tokens.drawn),
                       .hidden = hidden,
                       .head_dim = head_dim,
                       .inv_freq = on_device(&d, inv_freq, (size_t)half * sizeof *inv_freq),
                       .concentration = concentration};
    float *x = malloc(MOST_ROWS * row_bytes), *cosine = malloc(MOST_ROWS * angles), *sine = malloc(MOST_ROWS * angles);
    assert_true(x && cosine && sine);
    for (int order = 0; order < MX_EMULATION_ORDERS; order++) {
        mx_emulation_set_order((mx_emulation_order)order);
        b.rows = order == 1 ? 1 : MOST_ROWS;
        b.x = on_device(&d, NULL, (size_t)b.rows * row_bytes);
        b.cos = on_device(&d, NULL, (size_t)b.rows * angles);
        b.sin = on_device(&d, NULL, (size_t)b.rows * angles);
        mx_cuda_begin_rows(&b, d.stream);
        from_device(&d, x, b.x, (size_t)b.rows * row_bytes);
        from_device(&d, cosine, b.cos, (size_t)b.rows * angles);
        from_device(&d, sine, b.sin, (size_t)b.rows * angles);
        for (int row = 0; row < b.rows; row++) {
            for (int i = 0; i < hidden; i++) {
                const float expected = positions[row] < 0 ? 0 : e.values[(int64_t)tokens.meant[row] * hidden + i];
                if (x[(int64_t)row * hidden + i] != expected)
                    fail_msg("format %d, hidden %d, row %d, column %d: %g, expected %g", format, hidden, row, i,
                             (double)x[(int64_t)row * hidden + i], (double)expected);
            }
            for (int i = 0; i < half; i++) {
                const double angle = positions[row] < 0 ? 0 : positions[row] * inv_freq[i];
                check_angle(cosine[row * half + i], cos(angle) * concentration);
                check_angle(sine[row * half + i], sin(angle) * concentration);
            }
        }
    }
    free(x);
    free(cosine);
    free(sine);
    free(e.values);
    device_close(&d);
}

static void test_begin(void **state) {
    (void)state;
    check_begin(MX_CUDA_BF16, 512, 192, 64);
    check_begin(MX_CUDA_BF16, 300, 64, 32);
    check_begin(MX_CUDA_BF16, 257, 96, 128);
    check_begin(MX_CUDA_BF16, 33, 2880, 64);
    check_begin(MX_CUDA_Q8_0, 257, 96, 128);
    check_begin(MX_CUDA_Q8_0, 40, 2080, 64);
    check_begin(MX_CUDA_Q8_0, 1, 32, 16);
}

/* ---- RMSNorm ---- */

typedef enum row_kind { ORDINARY, HUGE_ROW, TINY, ZEROS, ONE_LARGE, NOT_A_NUMBER, KINDS } row_kind;

static void random_row(rng *r, float *x, int n, row_kind kind) {
    const float size = kind == HUGE_ROW ? 1e30f : kind == TINY ? 1e-30f : 1.0f;
    for (int i = 0; i < n; i++) x[i] = kind == ZEROS ? 0 : size * rng_normal(r);
    if (kind == ONE_LARGE) x[rng_below(r, n)] = 3e5f;
    if (kind == NOT_A_NUMBER) x[rng_below(r, n)] = NAN;
}

typedef struct norm_case {
    int rows, hidden, top_k; /* top_k 0: no experts */
    int terms;
    bool gain, holes, listed; /* listed: row != NULL, the last rows first */
    float eps;
    row_kind kind;
} norm_case;

/* What is on the host of one case. */
typedef struct norm_data {
    int slots;
    float *x, *expert, *gain;
    int32_t *position, *row, *row_slot;
} norm_data;

static norm_data random_norm(rng *r, const norm_case *c) {
    const size_t rows = (size_t)c->rows, hidden = (size_t)c->hidden;
    norm_data n = {.slots = c->rows * c->top_k + 1};
    n.x = filled(rows * hidden * 4, 0);
    n.expert = filled((size_t)n.slots * hidden * 4, 0);
    n.gain = filled(hidden * 4, 0);
    n.position = filled(rows * 4, 0);
    n.row = filled(rows * 4, 0);
    n.row_slot = filled(rows * (size_t)c->top_k * 4 + 4, 0);
    for (int i = 0; i < c->rows; i++) {
        random_row(r, n.x + (int64_t)i * c->hidden, c->hidden, i % 2 ? ORDINARY : c->kind);
        n.position[i] = c->holes && i % 3 == 1 ? -1 : i;
        n.row[i] = c->rows - 1 - i;
        for (int j = 0; j < c->top_k; j++)
            n.row_slot[i * c->top_k + j] = n.position[i] < 0 ? INT32_MAX : rng_below(r, n.slots);
    }
    for (int64_t i = 0; i < (int64_t)n.slots * c->hidden; i++) n.expert[i] = 0.3f * rng_normal(r);
    for (int i = 0; i < c->hidden; i++) n.gain[i] = 1.0f + 0.5f * rng_normal(r);
    return n;
}

static void free_norm(norm_data *n) {
    free(n->x);
    free(n->expert);
    free(n->gain);
    free(n->position);
    free(n->row);
    free(n->row_slot);
}

/* Rows first .. first + rows - 1 of the case (those of its list); x [case rows, hidden] and out [terms][rows][padded]
 * come back, the latter 0x5555 where nothing is written. */
static void run_norm(const norm_case *c, const norm_data *n, int first, int rows, float *x, uint16_t *out) {
    const size_t hidden = (size_t)c->hidden, all = (size_t)c->rows, padded = (size_t)mx_cuda_padded(c->hidden);
    const size_t x_bytes = all * hidden * 4, out_bytes = (size_t)c->terms * (size_t)rows * padded * 2;
    device d = device_open();
    mx_cuda_norm k = {.x = on_device(&d, n->x, x_bytes),
                      .rows = rows,
                      .hidden = c->hidden,
                      .top_k = c->top_k,
                      .eps = c->eps,
                      .out_term = (int64_t)rows * (int64_t)padded,
                      .terms = c->terms};
    uint16_t *pattern = filled(out_bytes, 0x55);
    k.out = on_device(&d, pattern, out_bytes);
    free(pattern);
    if (c->listed || first) {
        int32_t *row = filled(all * 4, 0);
        for (int i = 0; i < rows; i++) row[i] = c->listed ? n->row[first + i] : first + i;
        k.row = on_device(&d, row, (size_t)rows * 4);
        free(row);
    }
    if (c->holes) k.position = on_device(&d, n->position, all * 4);
    if (c->gain) k.gain = on_device(&d, n->gain, hidden * 4);
    if (c->top_k) {
        k.expert_out = on_device(&d, n->expert, (size_t)n->slots * hidden * 4);
        k.row_slot = on_device(&d, n->row_slot, all * (size_t)c->top_k * 4);
    }
    mx_cuda_norm_rows(&k, d.stream);
    from_device(&d, x, k.x, x_bytes);
    from_device(&d, out, k.out, out_bytes);
    device_close(&d);
}

/* The terms of one number: each is what is left, rounded; `y` is what scalar C has, within a few units of fp32. */
static void check_terms(const uint16_t *term, int64_t term_stride, int terms, double y, const char *where) {
    double sum = 0, bound = 4 * FLT_EPSILON * fabs(y) + 2 * FLT_MIN;
    for (int i = 0; i < terms; i++) sum += (double)float_of(term[i * term_stride]);
    if (isnan(y)) {
        assert_true(isnan(sum));
        return;
    }
    for (int i = 0; i < 3 - terms; i++) bound += fabs(y) * (terms == 2 ? 0x1p-17 : 0x1p-8);
    if (!(fabs(sum - y) <= bound)) fail_msg("%s: terms make %.9g, expected %.9g", where, sum, y);
    if (terms < 3 || fabs(sum) < 0x1p-100) return; /* the last terms of such are subnormal */
    float left = (float)sum;                       /* three terms hold all of an fp32 */
    for (int i = 0; i < terms; i++) {
        assert_int_equal(term[i * term_stride], mx_f32_to_bf16(left));
        left -= float_of(term[i * term_stride]);
    }
}

static void check_norm(const norm_case *c) {
    char where[160];
    snprintf(where, sizeof where, "rows %d, hidden %d, top_k %d, terms %d, kind %d, eps %g%s%s", c->rows, c->hidden,
             c->top_k, c->terms, c->kind, (double)c->eps, c->holes ? ", holes" : "", c->listed ? ", listed" : "");
    rng r = rng_seeded((uint64_t)(c->hidden * 7 + c->rows));
    norm_data n = random_norm(&r, c);
    const int64_t hidden = c->hidden, padded = mx_cuda_padded(hidden), term = c->rows * padded;
    const size_t x_bytes = (size_t)(c->rows * hidden) * 4, out_bytes = (size_t)(c->terms * term) * 2;
    float *x = malloc(x_bytes), *again = malloc(x_bytes), *expected = malloc(x_bytes), *y = malloc((size_t)hidden * 4);
    uint16_t *out = malloc(out_bytes), *out_again = malloc(out_bytes);
    assert_true(x && again && expected && y && out && out_again);
    memcpy(expected, n.x, x_bytes);
    for (int t = 0; t < c->rows; t++) {
        if (!c->top_k || n.position[t] < 0) continue;
        for (int64_t i = 0; i < hidden; i++) {
            float sum = n.expert[n.row_slot[t * c->top_k] * hidden + i];
            for (int j = 1; j < c->top_k; j++) sum += n.expert[n.row_slot[t * c->top_k + j] * hidden + i];
            expected[t * hidden + i] += sum;
        }
    }
    mx_emulation_set_order(MX_EMULATION_UP);
    run_norm(c, &n, 0, c->rows, x, out);
    if (memcmp(x, expected, x_bytes)) fail_msg("%s: the residual differs", where);
    for (int i = 0; i < c->rows; i++) {
        const int t = c->listed ? n.row[i] : i;
        const bool written = c->gain && n.position[t] >= 0;
        if (written) scalar->rmsnorm(y, expected + t * hidden, n.gain, hidden, c->eps);
        for (int64_t j = 0; j < padded; j++) {
            for (int k = 0; k < c->terms && (!written || j >= hidden); k++)
                assert_int_equal(out[k * term + i * padded + j], 0x5555);
            if (written && j < hidden) check_terms(out + i * padded + j, term, c->terms, (double)y[j], where);
        }
    }
    for (int order = 1; order < MX_EMULATION_ORDERS; order++) {
        mx_emulation_set_order((mx_emulation_order)order);
        run_norm(c, &n, 0, c->rows, again, out_again);
        assert_memory_equal(again, x, x_bytes);
        assert_memory_equal(out_again, out, out_bytes);
    }
    for (int i = 0; i < c->rows; i += 3) { /* a row by itself */
        const int t = c->listed ? n.row[i] : i;
        run_norm(c, &n, i, 1, again, out_again);
        assert_memory_equal(again + t * hidden, x + t * hidden, (size_t)hidden * 4);
        for (int k = 0; k < c->terms; k++)
            assert_memory_equal(out_again + k * padded, out + k * term + i * padded, (size_t)padded * 2);
    }
    free(x);
    free(again);
    free(expected);
    free(y);
    free(out);
    free(out_again);
    free_norm(&n);
}

static void test_norm_shapes(void **state) {
    (void)state;
    static const int hidden[] = {32, 64, 96, 192, 256, 2880, 4096, 4128, 8192};
    for (int i = 0; i < (int)(sizeof hidden / sizeof *hidden); i++) {
        for (int terms = 1; terms <= 3; terms++) {
            const int top_k = (i + terms) % 4 == 0 ? 0 : (i + terms) % 4 == 1 ? 1 : (i + terms) % 4 == 2 ? 4 : 6;
            check_norm(&(norm_case){.rows = hidden[i] > 2000 ? 2 : 5,
                                    .hidden = hidden[i],
                                    .top_k = top_k,
                                    .terms = terms,
                                    .gain = true,
                                    .holes = (i + terms) % 2 == 0,
                                    .listed = i % 2 == 0,
                                    .eps = 1e-5f});
        }
    }
    check_norm(&(norm_case){.rows = 3, .hidden = 160, .top_k = 32, .terms = 2, .gain = true, .eps = 1e-5f});
    check_norm(&(norm_case){.rows = 4, .hidden = 96, .top_k = 4, .terms = 3, .holes = true}); /* the sum alone */
}

static void test_norm_extremes(void **state) {
    (void)state;
    for (row_kind kind = ORDINARY; kind < KINDS; kind++) {
        for (int i = 0; i < 3; i++)
            check_norm(&(norm_case){.rows = 3,
                                    .hidden = i == 1 ? 4160 : 192,
                                    .terms = 3,
                                    .gain = true,
                                    .eps = i == 0   ? 1e-5f
                                           : i == 1 ? 0.0f
                                                    : 1.0f,
                                    .kind = kind});
    }
}

int main(void) {
    if (no_device()) return SKIPPED;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_begin), cmocka_unit_test(test_norm_shapes),
                                       cmocka_unit_test(test_norm_extremes)};
    return cmocka_run_group_tests(tests, setup, NULL);
}
