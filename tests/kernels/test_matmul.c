/* Every tier's matrix products against sums in double, and batch invariance: the bits of (row, output) may depend on
 * nothing but the row. New shapes go into the tables of test_shapes; new kinds of cases are functions beside it, listed
 * at the end. */
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct test_case {
    mx_format format;
    int64_t n, cols, rows;
    mx_epilogue epilogue;
    int bias; /* -1: none, else an mx_format */
    weight_kind kind;
} test_case;

typedef struct problem {
    weights w;
    float *x, *exact_x, *factor, *before; /* exact_x: as the precision rounds it; before: what y holds at first */
    uint8_t *packed;
    uint8_t *bias_memory;
    mx_matmul call;
} problem;

static const char *const format_names[] = {"f32", "f16", "bf16", "mxfp4"};
static const char *const epilogue_names[] = {"store", "add", "scale", "swiglu"};

static problem problem_make(rng *r, const test_case *c) {
    problem p = {.w = weights_random(r, c->format, c->n, c->cols, c->kind)};
    p.x = floats(c->rows * c->cols);
    p.exact_x = floats(c->rows * c->cols);
    p.factor = floats(c->rows);
    p.before = floats(c->rows * c->n);
    p.bias_memory = malloc((size_t)c->n * 4 + 1);
    assert_non_null(p.bias_memory);
    for (int64_t i = 0; i < c->rows * c->cols; i++) {
        static const float special[] = {0.0f, -0.0f, 1e-40f, -3e-39f, 1e12f, 1.0f};
        bool odd = c->kind == EXTREME && rng_below(r, 8) == 0;
        p.x[i] = odd ? special[rng_below(r, 6)] : rng_normal(r);
    }
    if (c->kind == EXTREME) p.x[rng_below(r, c->rows * c->cols)] = c->format == MX_MXFP4 ? 1e18f : 1e15f;
    for (int64_t i = 0; i < c->rows; i++) p.factor[i] = rng_uniform(r, 0.0f, 1.0f);
    for (int64_t i = 0; i < c->rows * c->n; i++) p.before[i] = rng_normal(r);
    for (int64_t i = 0; i < c->n; i++) {
        float v = rng_normal(r);
        uint16_t half = mx_f32_to_bf16(v);
        if (c->bias == MX_BF16) memcpy(p.bias_memory + 1 + 2 * i, &half, 2);
        if (c->bias == MX_F32) memcpy(p.bias_memory + 1 + 4 * i, &v, 4);
    }
    p.call = (mx_matmul){.w = p.w.matrix,
                         .rows = c->rows,
                         .n1 = c->n,
                         .bias = c->bias < 0 ? NULL : p.bias_memory + 1,
                         .bias_format = c->bias == MX_BF16 ? MX_BF16 : MX_F32,
                         .epilogue = c->epilogue,
                         .factor = p.factor,
                         .limit = 7.0f,
                         .alpha = 1.702f,
                         .y_stride = c->epilogue == MX_SWIGLU ? c->n / 2 : c->n};
    return p;
}

static void problem_free(problem *p) {
    weights_free(&p->w);
    free(p->x);
    free(p->exact_x);
    free(p->factor);
    free(p->before);
    free(p->bias_memory);
}

/* Sum of row t and output n with its bias, in double; *scale gets the sum of magnitudes. */
static double exact_sum(const problem *p, int64_t t, int64_t n, double *scale) {
    const mx_matmul *m = &p->call;
    double sum = 0.0;
    *scale = 0.0;
    for (int64_t c = 0; c < m->w.cols; c++) {
        double product = p->w.exact[n * m->w.cols + c] * p->exact_x[t * m->w.cols + c];
        sum += product;
        *scale += fabs(product);
    }
    if (m->bias) {
        double bias = exact_value(m->bias + n * (m->bias_format == MX_BF16 ? 2 : 4), m->bias_format);
        sum += bias;
        *scale += fabs(bias);
    }
    return sum;
}

static void check_values(const mx_kernels *k, const test_case *c, const problem *p, const float *y) {
    const mx_matmul *m = &p->call;
    const double unit = 1e-6, tiny = 1e-36;
    for (int64_t t = 0; t < c->rows; t++) {
        for (int64_t i = 0; i < m->y_stride; i++) {
            double scale, expected, bound;
            if (c->epilogue == MX_SWIGLU) {
                double up_scale, gate = exact_sum(p, t, 2 * i, &scale), up = exact_sum(p, t, 2 * i + 1, &up_scale);
                gate = fmin(gate, 7.0);
                up = fmax(fmin(up, 7.0), -7.0);
                double glu = gate / (1.0 + exp(-(double)m->alpha * gate));
                expected = glu * (up + 1.0);
                bound = unit * (1.2 * scale * fabs(up + 1.0) + up_scale * fabs(glu) + fabs(expected)) + tiny +
                        2e-6 * unit * scale * up_scale;
            } else {
                expected = exact_sum(p, t, i, &scale);
                if (c->epilogue == MX_ADD) {
                    expected += p->before[t * c->n + i];
                    scale += fabs((double)p->before[t * c->n + i]);
                }
                if (c->epilogue == MX_SCALE) expected *= p->factor[t];
                bound = unit * scale + tiny;
            }
            check_close(y[t * m->y_stride + i], expected, bound, "%s %s %s [%lld,%lld] rows %lld: y[%lld][%lld]",
                        k->name, format_names[c->format], epilogue_names[c->epilogue], (long long)c->n,
                        (long long)c->cols, (long long)c->rows, (long long)t, (long long)i);
        }
    }
}

/* The same product in pieces: random groups of rows in random order through x_row and y_row, random cuts of n. */
static void check_invariance(rng *r, const mx_kernels *k, const mx_product *product, const test_case *c,
                             const problem *p, const float *whole) {
    int32_t x_row[600], y_row[600];
    mx_matmul m = p->call;
    int64_t size = c->rows * m.y_stride;
    float *y = floats(size), factor[600];
    memcpy(y, p->before, (size_t)size * sizeof *y);
    for (int64_t t = 0; t < c->rows; t++) x_row[t] = (int32_t)t;
    for (int64_t t = c->rows - 1; t > 0; t--) {
        int64_t other = rng_below(r, t + 1);
        int32_t swapped = x_row[t];
        x_row[t] = x_row[other];
        x_row[other] = swapped;
    }
    memcpy(y_row, x_row, sizeof y_row);
    for (int64_t t = 0; t < c->rows; t++) factor[t] = p->factor[x_row[t]];
    m.y = y;
    for (int64_t t0 = 0, t1; t0 < c->rows; t0 = t1) {
        int64_t most = rng_below(r, 2) ? 3 : c->rows;
        t1 = t0 + 1 + rng_below(r, most < c->rows - t0 ? most : c->rows - t0);
        for (int64_t n0 = 0, n1; n0 < c->n; n0 = n1) {
            n1 = n0 + 1 + rng_below(r, c->n - n0);
            if (c->epilogue == MX_SWIGLU) n1 += n1 & 1;
            m.n0 = n0;
            m.n1 = n1;
            m.rows = t1 - t0;
            m.x_row = x_row + t0;
            m.y_row = y_row + t0;
            m.factor = factor + t0;
            product->matmul(&m);
        }
    }
    if (memcmp(y, whole, (size_t)size * sizeof *y) != 0) {
        fail_msg("%s %s [%lld,%lld] rows %lld: bits depend on the batch", k->name, format_names[c->format],
                 (long long)c->n, (long long)c->cols, (long long)c->rows);
    }
    free(y);
}

/* What the precision makes of the activations; int8 is another matter. */
static void round_x(problem *p, int64_t n, mx_precision precision) {
    for (int64_t i = 0; i < n; i++) {
        float x = p->x[i], hi = mx_bf16_to_f32(mx_f32_to_bf16(x)), lo = mx_bf16_to_f32(mx_f32_to_bf16(x - hi));
        p->exact_x[i] = precision == MX_X_FP32 ? x : precision == MX_X_BF16 ? hi : hi + lo;
    }
}

static void run_product(rng *r, const mx_kernels *k, const test_case *c, problem *p, mx_precision precision) {
    const mx_product *product = k->product[c->format][precision];
    if (!product || (product->flushes && c->kind == EXTREME)) return;
    int64_t size = c->rows * p->call.y_stride;
    float *y = floats(size), *scratch = floats(k->matmul_scratch);
    memcpy(y, p->before, (size_t)size * sizeof *y);
    p->call.x_stride = product->packed_bytes(c->cols);
    p->call.x = p->packed = (uint8_t *)floats(c->rows * p->call.x_stride / 4);
    product->pack(p->packed, p->x, c->rows, c->cols);
    round_x(p, c->rows * c->cols, precision);
    p->call.y = y;
    p->call.scratch = scratch;
    product->matmul(&p->call);
    check_values(k, c, p, y);
    check_invariance(r, k, product, c, p, y);
    free(y);
    free(scratch);
    free(p->packed);
}

static void run_case(rng *r, const test_case *c) {
    const mx_kernels *tiers[MAX_TIERS];
    int count = tiers_here(tiers);
    problem p = problem_make(r, c);
    for (int i = 0; i < count; i++)
        for (int precision = MX_X_FP32; precision <= MX_X_BF16; precision++)
            run_product(r, tiers[i], c, &p, (mx_precision)precision);
    problem_free(&p);
}

static void test_shapes(void **state) {
    (void)state;
    static const int64_t cols[] = {32, 64, 96, 160, 512, 544, 576, 608, 1088, 2880, 4096};
    static const int64_t outputs[] = {1, 2, 3, 7, 16, 33, 97, 130};
    static const int64_t rows[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17, 31, 70};
    static const mx_format formats[] = {MX_F32, MX_BF16, MX_MXFP4};
    rng r = rng_seeded(1);
    for (int i = 0; i < 120; i++) {
        test_case c = {.format = formats[i % 3],
                       .cols = cols[rng_below(&r, 11)],
                       .n = outputs[rng_below(&r, 8)],
                       .rows = rows[rng_below(&r, 13)],
                       .epilogue = (mx_epilogue)(i / 3 % 4),
                       .bias = (int[]){-1, MX_F32, MX_BF16}[rng_below(&r, 3)]};
        if (c.cols * c.n * c.rows > 4000000) c.rows = 1 + rng_below(&r, 9);
        if (c.epilogue == MX_SWIGLU) c.n += c.n & 1;
        run_case(&r, &c);
    }
}

static void test_many_rows(void **state) {
    (void)state;
    static const mx_format formats[] = {MX_F32, MX_BF16, MX_MXFP4};
    rng r = rng_seeded(2);
    for (int i = 0; i < 3; i++) {
        run_case(&r, &(test_case){formats[i], 100, 608, 300, MX_SWIGLU, MX_BF16, ORDINARY});
        run_case(&r, &(test_case){formats[i], 31, 96, 521, MX_SCALE, MX_F32, ORDINARY});
    }
}

static void test_extreme_values(void **state) {
    (void)state;
    static const mx_format formats[] = {MX_F32, MX_BF16, MX_MXFP4};
    rng r = rng_seeded(3);
    for (int i = 0; i < 60; i++) {
        run_case(&r, &(test_case){formats[i % 3], 1 + rng_below(&r, 40), 32 + 32 * rng_below(&r, 20),
                                  1 + rng_below(&r, 20), (mx_epilogue)(i % 2 ? MX_STORE : MX_SCALE), -1, EXTREME});
    }
}

/* Products that are exact in fp32 whatever the order: every scale byte, every nibble in both places. */
static void test_mxfp4_exact(void **state) {
    (void)state;
    const mx_kernels *tiers[MAX_TIERS];
    int count = tiers_here(tiers);
    for (int tier = 0; tier < count; tier++) {
        const mx_kernels *k = tiers[tier];
        const mx_product *product = k->product[MX_MXFP4][MX_X_FP32];
        float *x = floats(96 * 96), *packed = floats(96 * 96), *y = floats(96), *scratch = floats(k->matmul_scratch);
        for (int i = 0; i < 96 * 96; i++) x[i] = i % 97 == 0 ? 1.0f : 0.0f; /* unit vectors */
        product->pack((uint8_t *)packed, x, 96, 96);
        for (int scale = 0; scale < 255; scale++) {
            uint8_t data[48], scales[3] = {127, (uint8_t)scale, 1};
            float expected[96];
            for (int i = 0; i < 48; i++) data[i] = (uint8_t)(i * 17 + scale * 31);
            if (scale >= 253) { /* 6 * 2^126 and more are no floats */
                for (int i = 0; i < 48; i++) data[i] &= 0xbb;
            }
            for (int b = 0; b < 3; b++) mx_mxfp4_widen(expected + 32 * b, data + 16 * b, scales[b]);
            for (int rows = 1; rows <= 96; rows += 95) {
                mx_matmul m = {.w = {MX_MXFP4, 1, 96, data, 48, scales, 3},
                               .x = (const uint8_t *)packed,
                               .x_stride = product->packed_bytes(96),
                               .rows = rows,
                               .n1 = 1,
                               .y = y,
                               .y_stride = 1,
                               .scratch = scratch};
                product->matmul(&m);
                for (int i = 0; i < rows; i++)
                    check_close(y[i], expected[i], 0.0, "%s scale %d: %d", k->name, scale, i);
            }
        }
        free(x);
        free(packed);
        free(y);
        free(scratch);
    }
}

/* Gates and ups far outside: clamps, and a sigmoid that neither overflows nor turns into NaN. */
static void test_swiglu_extremes(void **state) {
    (void)state;
    static const float values[] = {0.0f,   -0.0f,  1.0f,   -1.0f, 6.99f, 7.0f,  7.01f,  -7.01f, 30.0f,  -50.0f,
                                   -52.0f, -60.0f, -90.0f, -1e3f, 1e3f,  1e30f, -1e30f, 1e-30f, -1e-39f};
    enum { COUNT = sizeof values / sizeof *values };
    const mx_kernels *tiers[MAX_TIERS];
    int count = tiers_here(tiers);
    float w[COUNT * 2][32] = {{0}};
    for (int tier = 0; tier < count; tier++) {
        const mx_kernels *k = tiers[tier];
        const mx_product *product = k->product[MX_F32][MX_X_FP32];
        float *x = floats(32), *packed = floats(32), *y = floats(COUNT), *scratch = floats(k->matmul_scratch);
        for (int i = 0; i < 32; i++) x[i] = i == 0;
        product->pack((uint8_t *)packed, x, 1, 32);
        for (int up = 0; up < COUNT; up++) {
            for (int i = 0; i < COUNT; i++) {
                w[2 * i][0] = values[i];
                w[2 * i + 1][0] = values[up];
            }
            mx_matmul m = {.w = {MX_F32, COUNT * 2, 32, (const uint8_t *)w, 128, NULL, 0},
                           .x = (const uint8_t *)packed,
                           .x_stride = product->packed_bytes(32),
                           .rows = 1,
                           .n1 = COUNT * 2,
                           .epilogue = MX_SWIGLU,
                           .limit = 7.0f,
                           .alpha = 1.702f,
                           .y = y,
                           .y_stride = COUNT,
                           .scratch = scratch};
            product->matmul(&m);
            for (int i = 0; i < COUNT; i++) {
                double gate = fmin(values[i], 7.0), linear = fmax(fmin(values[up], 7.0), -7.0);
                double expected = gate / (1.0 + exp(-(double)1.702f * gate)) * (linear + 1.0);
                /* 2 ulp of the exponential, and what one rounding of alpha * gate makes of it */
                double bound = fabs(expected) * (6e-7 + 1.2e-7 * fabs(1.702 * gate)) + 1e-37;
                check_close(y[i], expected, bound, "%s gate %g up %g", k->name, (double)values[i], (double)values[up]);
                check_close(mx_swiglu(values[i], values[up], 7.0f, 1.702f), expected, bound, "mx_swiglu gate %g",
                            (double)values[i]);
            }
        }
        free(x);
        free(packed);
        free(y);
        free(scratch);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_shapes),      cmocka_unit_test(test_many_rows),       cmocka_unit_test(test_extreme_values),
    cmocka_unit_test(test_mxfp4_exact), cmocka_unit_test(test_swiglu_extremes),
};

const test_group matmul_group = {"matmul", tests, sizeof tests / sizeof *tests, NULL};
