/* Precision MX_X_INT8: scalar code against the text of kernels/int8.h in double, the other tiers against scalar code
 * bit for bit, whatever the number of rows and the ranges (which is batch invariance, too). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "guard.h"
#include "kernels/int8.h"
#include "kernels/mxfp4.h"
#include "support.h"

typedef struct problem {
    weights w;
    int64_t rows, cols;
    float *x, *factor, *before;
    uint8_t *packed;
    mx_matmul call; /* y, scratch and the precision's packing are the tier's */
} problem;

/* A group of 32 activations of one of many kinds, each of which the packing treats in its own way. */
static void fill_group(rng *r, float x[32]) {
    static const float huge = 3.4e38f;
    int kind = (int)rng_below(r, 24);
    for (int i = 0; i < 32; i++) x[i] = rng_normal(r);
    for (int i = 0; i < 32 && kind < 8; i++) {
        if (kind == 0) x[i] = i % 2 ? -0.0f : 0.0f;
        if (kind == 1) x[i] *= 1e-41f;                                 /* subnormal: counts as zero */
        if (kind == 2) x[i] *= 1e-30f;                                 /* on both sides of 2^-100 */
        if (kind == 3) x[i] = i % 2 ? huge : -huge;                    /* the largest */
        if (kind == 4) x[i] = i == 7 ? 1e6f : x[i];                    /* an outlier, the others round to zero */
        if (kind == 5) x[i] = (float)(rng_below(r, 255) - 127) * 0.5f; /* ties once 63.5 is among them */
        if (kind == 6) x[i] *= 1e25f;
        if (kind == 7) x[i] *= 1e-25f;
    }
    if (kind == 5) x[rng_below(r, 32)] = 127.0f;
    if (kind == 8 && rng_below(r, 40) == 0) x[rng_below(r, 32)] = rng_below(r, 2) ? NAN : -INFINITY;
}

static problem problem_make(rng *r, mx_format format, int64_t n, int64_t cols, int64_t rows, weight_kind kind,
                            mx_epilogue epilogue) {
    problem p = {.w = weights_random(r, format, n, cols, kind), .rows = rows, .cols = cols};
    p.x = guarded_floats(rows * cols, "x");
    p.factor = guarded(rows * 4, 4, "factor");
    p.before = guarded_floats(rows * n, "y before");
    for (int64_t i = 0; i < rows * cols; i += 32) fill_group(r, p.x + i);
    for (int64_t i = 0; i < rows; i++) p.factor[i] = rng_uniform(r, 0.0f, 1.0f);
    for (int64_t i = 0; i < rows * n; i++) p.before[i] = rng_normal(r);
    uint8_t *bias = guarded(n * 4, 1, "bias");
    for (int64_t i = 0; i < n; i++) {
        float v = rng_normal(r);
        memcpy(bias + 4 * i, &v, sizeof v);
    }
    p.call = (mx_matmul){.w = p.w.matrix,
                         .rows = rows,
                         .n1 = n,
                         .bias = rng_below(r, 3) ? bias : NULL,
                         .bias_format = MX_F32,
                         .epilogue = epilogue,
                         .factor = p.factor,
                         .limit = 7.0f,
                         .alpha = 1.702f,
                         .y_stride = epilogue == MX_SWIGLU ? n / 2 : n};
    return p;
}

static float *copy_of_before(const problem *p) {
    float *y = guarded_floats(p->rows * p->call.y_stride, "y");
    memcpy(y, p->before, (size_t)(p->rows * p->call.y_stride) * sizeof *y);
    return y;
}

static uint8_t *packed(const mx_product *product, const problem *p) {
    uint8_t *out = guarded(p->rows * product->packed_bytes(p->cols), 64, "packed x");
    product->pack(out, p->x, p->rows, p->cols);
    return out;
}

static bool same(float a, float b) {
    return (isnan(a) && isnan(b)) || !memcmp(&a, &b, sizeof a);
}

/* Equal bits; a SwiGLU's exponential may differ by 2 ulp and by what one rounding of alpha * gate makes of it. */
static void compare(const mx_kernels *k, const problem *p, const float *y, const float *expected, const char *how) {
    for (int64_t i = 0; i < p->rows * p->call.y_stride; i++) {
        bool close = p->call.epilogue == MX_SWIGLU &&
                     fabs((double)y[i] - (double)expected[i]) <= 1.2e-5 * fabs((double)expected[i]) + 1e-36;
        if (!close && !same(y[i], expected[i]))
            fail_msg("%s int8%s [%lld,%lld] rows %lld epilogue %d %s: y[%lld] is %a, scalar code has %a", k->name,
                     p->call.w.format == MX_MXFP4 ? "" : " ggml", (long long)p->call.w.rows, (long long)p->cols,
                     (long long)p->rows, (int)p->call.epilogue, how, (long long)i, (double)y[i], (double)expected[i]);
    }
}

/* The whole product, then in pieces: random ranges of outputs, random groups of rows in reverse order. */
static void check_tier(rng *r, const mx_kernels *k, const problem *p, const float *expected) {
    const mx_product *product = k->product[p->call.w.format][MX_X_INT8];
    int32_t order[700];
    float factor[700];
    mx_matmul m = p->call;
    assert_non_null(product);
    assert_int_equal(product->packed_bytes(p->cols), mx_int8_packed_bytes(p->cols));
    uint8_t *x = packed(product, p);
    if (memcmp(x, p->packed, (size_t)(p->rows * mx_int8_packed_bytes(p->cols))))
        fail_msg("%s int8: packs other bytes than scalar code", k->name);
    m.x = x;
    m.x_stride = product->packed_bytes(p->cols);
    m.scratch = guarded_floats(k->matmul_scratch, "scratch");
    float *whole = m.y = copy_of_before(p);
    product->matmul(&m);
    compare(k, p, whole, expected, "whole");
    float *pieces = m.y = copy_of_before(p);
    for (int64_t t = 0; t < p->rows; t++) {
        order[t] = (int32_t)(p->rows - 1 - t);
        factor[t] = p->factor[order[t]];
    }
    for (int64_t t = 0; t < p->rows; t += m.rows) {
        m.rows = 1 + rng_below(r, p->rows - t < 40 ? p->rows - t : 40);
        m.x_row = m.y_row = order + t;
        m.factor = factor + t;
        for (m.n0 = 0; m.n0 < m.w.rows; m.n0 = m.n1) {
            m.n1 = m.n0 + 1 + rng_below(r, m.w.rows - m.n0);
            if (m.epilogue == MX_SWIGLU) m.n1 += m.n1 & 1;
            product->matmul(&m);
        }
    }
    compare(k, p, pieces, whole, "in pieces");
    if (m.epilogue == MX_SWIGLU) assert_memory_equal(pieces, whole, (size_t)(p->rows * m.y_stride) * sizeof *whole);
}

static void run_case(rng *r, mx_format format, int64_t n, int64_t cols, int64_t rows, weight_kind kind,
                     mx_epilogue epilogue) {
    const mx_kernels *tiers[MAX_TIERS], *scalar;
    mx_error error;
    int count = tiers_here(tiers);
    assert_int_equal(mx_kernels_get("scalar", &scalar, &error), MX_OK);
    case_begin("int8 [%lld,%lld] rows %lld", (long long)n, (long long)cols, (long long)rows);
    problem p = problem_make(r, format, n, cols, rows, kind, epilogue);
    const mx_product *product = scalar->product[format][MX_X_INT8];
    mx_matmul m = p.call;
    m.x = p.packed = packed(product, &p);
    m.x_stride = product->packed_bytes(cols);
    float *expected = m.y = copy_of_before(&p);
    product->matmul(&m);
    for (int i = 0; i < count; i++) {
        int mark = case_mark();
        check_tier(r, tiers[i], &p, expected);
        case_release(mark);
    }
    case_end();
}

#define PICK(table) (table)[rng_below(&r, sizeof(table) / sizeof *(table))]

static void test_same_bits(void **state) {
    (void)state;
    static const int64_t cols[] = {32, 64, 96, 480, 512, 544, 1056, 2880, 2912, 4096};
    static const int64_t outputs[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 50, 98, 193};
    static const int64_t rows[] = {1,  2,  3,  4,  5,  7,  8,  9,  10, 13, 15,  16,  17,
                                   23, 31, 32, 33, 48, 63, 64, 65, 70, 97, 127, 129, 130};
    const int64_t most = settings.longer ? 20000000 : 3000000;
    rng r = rng_seeded(80);
    for (int i = 0; i < (settings.longer ? 1000 : 120); i++) {
        int64_t n = PICK(outputs), k = PICK(cols), t = PICK(rows);
        mx_epilogue epilogue = (mx_epilogue)(i % 4);
        while (n * k * t > most) { /* smaller, now in rows, now in outputs */
            if (rng_below(&r, 2))
                t = 1 + t / 2;
            else
                n = 1 + n / 2;
        }
        run_case(&r, i / 4 % 2 ? MX_MXFP4_GGML : MX_MXFP4, n + (epilogue == MX_SWIGLU ? n & 1 : 0), k, t,
                 i % 3 ? ORDINARY : EXTREME, epilogue);
    }
    for (int i = 0; i < 2; i++) {
        const mx_format format = i ? MX_MXFP4_GGML : MX_MXFP4;
        run_case(&r, format, 6, 4096, 130, ORDINARY, MX_STORE);
        run_case(&r, format, 130, 4096, 3, EXTREME, MX_ADD);
        run_case(&r, format, 34, 64, 600, ORDINARY, MX_SWIGLU);
        run_case(&r, format, 40, 576, 520, LARGEST, MX_ADD);
    }
}

/* q and scale of every value, and the sum's start, as the text has them; the value is at most half a scale off. */
static void test_packing(void **state) {
    (void)state;
    rng r = rng_seeded(81);
    for (int i = 0; i < 3000; i++) {
        const bool ggml = i % 2;
        const mx_product *product = ggml ? &mx_scalar_int8_ggml : &mx_scalar_int8;
        float x[32] __attribute__((aligned(64)));
        mx_int8_block block[2] __attribute__((aligned(64))); /* 64 bytes are written */
        double most = 0.0, sum = 0.0;
        fill_group(&r, x);
        product->pack((uint8_t *)block, x, 1, 32);
        for (int j = 0; j < 32; j++) most = isfinite(x[j]) ? fmax(most, fabs((double)x[j])) : NAN;
        for (int j = 0; j < 32; j++) most = isfinite(x[j]) ? most : NAN;
        if (isnan(most) || most < 0x1p-100) {
            assert_true(isnan(most) ? isnan(block->scale) : block->scale == 1.0f);
            for (int j = 0; j < 32; j++) assert_int_equal(block->x[j], 0);
            assert_int_equal(block->start, 0);
            continue;
        }
        check_close((double)block->scale, most / 127.0, most * 1e-9 + most / 127.0 * 6e-8, "scale");
        for (int j = 0; j < 32; j++) {
            int q = block->x[ggml ? j : j % 2 * 16 + j / 2];
            double exact = (double)x[j] / most * 127.0;
            assert_in_range(q + 127, 0, 254);
            check_close(q, exact, 0.5 + 2e-5, "q of %g", (double)x[j]);
            sum += q;
        }
        assert_int_equal(block->start, -12 * (int)sum);
    }
}

/* Ordinary sums against double, with the packed activations taken at their word. */
static void test_scalar_sums(void **state) {
    (void)state;
    rng r = rng_seeded(82);
    for (int i = 0; i < 20; i++) {
        case_begin("int8 sums %d", i);
        int64_t n = 1 + rng_below(&r, 20), cols = 32 * (1 + rng_below(&r, 40));
        const bool ggml = i % 2;
        const mx_product *product = ggml ? &mx_scalar_int8_ggml : &mx_scalar_int8;
        weights w = weights_random(&r, ggml ? MX_MXFP4_GGML : MX_MXFP4, n, cols, ORDINARY);
        float *x = guarded_floats(cols, "x"), *y = guarded_floats(n, "y");
        for (int64_t c = 0; c < cols; c++) x[c] = rng_normal(&r);
        uint8_t *bytes = guarded(mx_int8_packed_bytes(cols), 64, "packed x");
        product->pack(bytes, x, 1, cols);
        const mx_int8_block *block = (const mx_int8_block *)bytes;
        mx_matmul m = {.w = w.matrix,
                       .x = bytes,
                       .x_stride = mx_int8_packed_bytes(cols),
                       .rows = 1,
                       .n1 = n,
                       .y = y,
                       .y_stride = n};
        product->matmul(&m);
        for (int64_t row = 0; row < n; row++) {
            double sum = 0.0, size = 0.0;
            for (int64_t c = 0; c < cols; c++) {
                const mx_int8_block *b = &block[c / 32];
                const int place = (int)(ggml ? c % 32 : c % 2 * 16 + c % 32 / 2);
                double v = w.exact[row * cols + c] * b->x[place] * (double)b->scale;
                sum += v;
                size += fabs(v);
            }
            check_close((double)y[row], sum, 1e-6 * size, "row %d", (int)row);
        }
        case_end();
    }
}

/* Every scale byte and every code in every place: exact in every tier. Activations 127 * 2^-20 quantise to 127. */
static void test_exact(void **state) {
    (void)state;
    const mx_kernels *tiers[MAX_TIERS];
    int count = tiers_here(tiers);
    for (int at = 0; at < 2 * count; at++) {
        const bool ggml = at >= count;
        const mx_kernels *k = tiers[at % count];
        const mx_product *product = k->product[ggml ? MX_MXFP4_GGML : MX_MXFP4][MX_X_INT8];
        case_begin("%s int8 exact", k->name);
        float *x = guarded_floats(32 * 32, "x"), *y = guarded_floats(32 * 16, "y");
        float *scratch = guarded_floats(k->matmul_scratch, "scratch");
        uint8_t *bytes = guarded(32 * product->packed_bytes(32), 64, "packed x");
        for (int i = 0; i < 32 * 32; i++) x[i] = i % 33 == 0 ? 127.0f * 0x1p-20f : 0.0f; /* unit vectors */
        product->pack(bytes, x, 32, 32);
        for (int scale = 0; scale < 255; scale++) {
            uint8_t data[16][16], scales[16], blocks[16][MX_MXFP4_GGML_BYTES];
            for (int n = 0; n < 16; n++) {
                scales[n] = (uint8_t)scale;
                for (int i = 0; i < 16; i++) data[n][i] = (uint8_t)((n + i) % 16 | (n + 3 * i + 5) % 16 << 4);
                blocks[n][0] = (uint8_t)scale;
                memcpy(blocks[n] + 1, data[n], 16);
            }
            const mx_matrix apart = {.format = MX_MXFP4,
                                     .rows = 16,
                                     .cols = 32,
                                     .data = data[0],
                                     .row_stride = 16,
                                     .scales = scales,
                                     .scale_stride = 1};
            const mx_matrix between = {
                .format = MX_MXFP4_GGML, .rows = 16, .cols = 32, .data = blocks[0], .row_stride = MX_MXFP4_GGML_BYTES};
            for (int rows = 1; rows <= 32; rows += 31) {
                mx_matmul m = {.w = ggml ? between : apart,
                               .x = bytes,
                               .x_stride = product->packed_bytes(32),
                               .rows = rows,
                               .n1 = 16,
                               .y = y,
                               .y_stride = 16,
                               .scratch = scratch};
                product->matmul(&m);
                for (int i = 0; i < rows * 16; i++) {
                    static const int e2m1[16] = {MX_INT8_WEIGHTS};
                    int t = i / 16, n = i % 16, byte = data[n][ggml ? t % 16 : t / 2];
                    int code = (ggml ? t / 16 : t % 2) ? byte >> 4 : byte & 15;
                    double expected = ldexp(127.0 * e2m1[code], scale - 128 - 20);
                    check_close((double)y[i], expected, 0.0, "scale %d, row %d, output %d", scale, t, n);
                }
            }
        }
        case_end();
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_packing),
    cmocka_unit_test(test_scalar_sums),
    cmocka_unit_test(test_same_bits),
    cmocka_unit_test(test_exact),
};

const test_group int8_group = {"int8", tests, sizeof tests / sizeof *tests, NULL};
