/* Every tier's matrix products against sums in double and against scalar code, and batch invariance: the bits of
 * (row, output) may depend on nothing but the row, whatever rows go with it, however the outputs are cut, and whichever
 * threads compute them. Every product that a tier's table has takes part by itself. New shapes go into the tables of
 * test_shapes, new kinds of inputs into weight_kind and x_value; new kinds of cases are functions beside test_shapes,
 * listed at the end. */
#include "support.h"
#include "tests/sanitized.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/threads.h"
#include "kernels/mx.h"
#include "kernels/mxfp4.h"

enum { MAX_THREADS = 3 };

typedef struct test_case {
    mx_format format;
    int64_t n, cols, rows;
    mx_epilogue epilogue;
    int bias; /* -1: none, else an mx_format */
    weight_kind kind;
} test_case;

/* Inputs of one case; all memory is the case's. y is [rows, call.y_stride], of which the first `outputs` are results
 * and the others stay NaN. */
typedef struct problem {
    const test_case *c;
    weights w;
    int64_t outputs;
    float *x, *before;               /* before: y as it is at first */
    double *exact_x;                 /* x as the precision rounds it */
    double *w_norm, *w_sum, *x_norm; /* of each row: root of the sum of squares; sum of magnitudes */
    double *x_sum;
    mx_matmul call; /* without x, y and scratch */
} problem;

static const char *const epilogue_names[] = {"store", "add", "scale", "swiglu", "gated"};
static const char *const kind_names[] = {"ordinary", "extreme", "largest", "wide"};
static const char *const precision_names[] = {"fp32", "bf16x2", "bf16", "int8"};

/* ---- inputs ----------------------------------------------------------------------------------------------------- */

/* Activations that keep every product and sum finite beside the weights of that kind (weights_random). */
static float x_value(rng *r, weight_kind kind) {
    static const float special[] = {0.0f, -0.0f, 1e-40f, -3e-39f, 1e12f, 1.0f};
    static const float tiny[] = {0.0f, -0.0f, 1e-40f, -3e-39f, 0x1p-126f, -0x1.fep-120f};
    switch (kind) {
    case ORDINARY:
        return rng_normal(r);
    case EXTREME:
        return rng_below(r, 8) ? rng_normal(r) : special[rng_below(r, 6)];
    case LARGEST:
        return rng_below(r, 2) ? 1e-5f : -1e-5f;
    case WIDE:
        return rng_below(r, 8) ? rng_normal(r) * 1e-6f : tiny[rng_below(r, 6)];
    }
    return NAN;
}

static uint8_t *bias_random(rng *r, mx_format format, int64_t n) {
    int64_t size = format == MX_BF16 ? 2 : 4;
    uint8_t *bias = guarded(n * size, 1, "bias");
    for (int64_t i = 0; i < n; i++) {
        float v = rng_normal(r);
        uint16_t half = mx_f32_to_bf16(v);
        memcpy(bias + i * size, size == 2 ? (void *)&half : (void *)&v, (size_t)size);
    }
    return bias;
}

static void norms(double *norm, double *sum, const double *values, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; i++) {
        double squares = 0.0;
        sum[i] = 0.0;
        for (int64_t c = 0; c < cols; c++) {
            squares += values[i * cols + c] * values[i * cols + c];
            sum[i] += fabs(values[i * cols + c]);
        }
        norm[i] = sqrt(squares);
    }
}

static problem problem_make(rng *r, const test_case *c) {
    problem p = {.c = c, .w = weights_random(r, c->format, c->n, c->cols, c->kind)};
    int64_t stride;
    p.outputs = c->epilogue == MX_SWIGLU ? c->n / 2 : c->n;
    stride = p.outputs + rng_below(r, 4);
    p.x = guarded_floats(c->rows * c->cols, "x");
    p.before = guarded_floats(c->rows * stride, "y before");
    p.exact_x = guarded(c->rows * c->cols * 8, 8, "exact x");
    p.w_norm = guarded(c->n * 8, 8, "norms");
    p.w_sum = guarded(c->n * 8, 8, "sums");
    p.x_norm = guarded(c->rows * 8, 8, "norms");
    p.x_sum = guarded(c->rows * 8, 8, "sums");
    norms(p.w_norm, p.w_sum, p.w.exact, c->n, c->cols);
    for (int64_t i = 0; i < c->rows * c->cols; i++) p.x[i] = x_value(r, c->kind);
    if (c->kind == EXTREME) p.x[rng_below(r, c->rows * c->cols)] = mx_is_mxfp4(c->format) ? 1e18f : 1e15f;
    const bool gated = c->epilogue == MX_GATED;
    for (int64_t i = 0; i < c->rows * stride && (c->epilogue == MX_ADD || gated); i++) {
        if (i % stride < p.outputs) p.before[i] = rng_normal(r);
    }
    p.call = (mx_matmul){.w = p.w.matrix,
                         .rows = c->rows,
                         .n1 = c->n,
                         .bias = c->bias < 0 ? NULL : bias_random(r, (mx_format)c->bias, c->n),
                         .bias_format = c->bias == MX_BF16 ? MX_BF16 : MX_F32,
                         .epilogue = c->epilogue,
                         .limit = c->epilogue == MX_SWIGLU || gated ? 7.0f : NAN,
                         .alpha = c->epilogue == MX_SWIGLU || gated ? 1.702f : NAN,
                         .y_stride = stride};
    if (c->epilogue == MX_SCALE) {
        float *factor = guarded(c->rows * 4, 4, "factor");
        for (int64_t i = 0; i < c->rows; i++) factor[i] = rng_uniform(r, 0.0f, 1.0f);
        p.call.factor = factor;
    }
    return p;
}

/* What the precision makes of the activations. */
static void round_x(problem *p, mx_precision precision) {
    int64_t rows = p->c->rows, cols = p->c->cols;
    for (int64_t i = 0; i < rows * cols; i++) {
        float x = p->x[i], hi = mx_bf16_to_f32(mx_f32_to_bf16(x)), lo = mx_bf16_to_f32(mx_f32_to_bf16(x - hi));
        p->exact_x[i] = precision == MX_X_FP32 ? (double)x : precision == MX_X_BF16 ? (double)hi : (double)hi + lo;
    }
    norms(p->x_norm, p->x_sum, p->exact_x, rows, cols);
}

/* ---- values ----------------------------------------------------------------------------------------------------- */

static double bias_of(const problem *p, int64_t n) {
    const mx_matmul *m = &p->call;
    return m->bias ? exact_value(m->bias + n * (m->bias_format == MX_BF16 ? 2 : 4), m->bias_format) : 0.0;
}

/* Sum of row t and output n with its bias, in double; *scale gets the sum of magnitudes. */
static double exact_sum(const problem *p, int64_t t, int64_t n, double *scale) {
    enum { LANES = 8 };
    const int64_t cols = p->c->cols;
    const double *w = p->w.exact + n * cols, *x = p->exact_x + t * cols;
    double sum[LANES] = {0}, magnitude[LANES] = {0}, bias = bias_of(p, n);
    for (int64_t c = 0; c < cols; c += LANES) {
        for (int i = 0; i < LANES; i++) {
            double product = w[c + i] * x[c + i];
            sum[i] += product;
            magnitude[i] += fabs(product);
        }
    }
    for (int i = 1; i < LANES; i++) sum[0] += sum[i], magnitude[0] += magnitude[i];
    *scale = magnitude[0] + fabs(bias);
    return sum[0] + bias;
}

static const double unit = 1e-6; /* of a sum of magnitudes: what fp32 sums may be off by */

/* What a sum may be off by beside rounding. A product that flushes takes weights, activations (both halves), products
 * and sums below 2^-126 for 0; others lose what is below the smallest subnormal. */
static double lost(const problem *p, const mx_product *product, int64_t t, int64_t n) {
    double terms = (double)p->c->cols;
    if (!product->flushes) return 2 * terms * 0x1p-149;
    return 0x1p-126 * (2 * p->w_sum[n] + p->x_sum[t] + 3 * terms);
}

/* gate and up: exact sums; *_off: what they may be off by. */
static double swiglu_bound(const mx_matmul *m, double gate, double up, double gate_off, double up_off) {
    gate = fmin(gate, m->limit);
    up = fmax(fmin(up, m->limit), -m->limit);
    double glu = fabs(gate) / (1.0 + exp(-(double)m->alpha * gate)), linear = fabs(up + 1.0);
    return 1.2 * gate_off * linear + up_off * glu + 2 * gate_off * up_off + unit * glu * linear + 1e-36;
}

static double swiglu(const mx_matmul *m, double gate, double up) {
    gate = fmin(gate, m->limit);
    up = fmax(fmin(up, m->limit), -m->limit);
    return gate / (1.0 + exp(-(double)m->alpha * gate)) * (up + 1.0);
}

/* Result i of row t, exactly, and how far off it may be. */
static double expected_value(const problem *p, const mx_product *product, int64_t t, int64_t i, double *bound) {
    const mx_matmul *m = &p->call;
    double scale;
    if (m->epilogue == MX_SWIGLU) {
        double up_scale, gate = exact_sum(p, t, 2 * i, &scale), up = exact_sum(p, t, 2 * i + 1, &up_scale);
        *bound = swiglu_bound(m, gate, up, unit * scale + lost(p, product, t, 2 * i),
                              unit * up_scale + lost(p, product, t, 2 * i + 1));
        return swiglu(m, gate, up);
    }
    double value = exact_sum(p, t, i, &scale);
    if (m->epilogue == MX_GATED) {
        double gate = p->before[t * m->y_stride + i];
        *bound = swiglu_bound(m, gate, value, unit * fabs(gate), unit * scale + lost(p, product, t, i));
        return swiglu(m, gate, value);
    }
    if (m->epilogue == MX_ADD) {
        double before = p->before[t * m->y_stride + i];
        value += before;
        scale += fabs(before);
    }
    if (m->epilogue == MX_SCALE) value *= m->factor[t];
    *bound = unit * scale + lost(p, product, t, i);
    return value;
}

/* How far two tiers may be apart in result i of row t, by the norms of the vectors instead of their products: larger
 * than expected_value's bound, but quick enough for every result. */
static double coarse_bound(const problem *p, const mx_product *product, int64_t t, int64_t i) {
    const mx_matmul *m = &p->call;
    double off[2] = {0};
    for (int j = 0; j < 2; j++) {
        int64_t n = m->epilogue == MX_SWIGLU ? 2 * i + j : i;
        double scale = p->w_norm[n] * p->x_norm[t] + fabs(bias_of(p, n));
        if (m->epilogue == MX_ADD) scale += fabs((double)p->before[t * m->y_stride + i]);
        off[j] = 2 * (unit * scale + lost(p, product, t, n));
    }
    if (m->epilogue == MX_GATED) return 7 * off[0] + 60 * unit;
    return m->epilogue == MX_SWIGLU ? 10 * off[0] + 7 * off[1] + 2 * off[0] * off[1] + 60 * unit : off[0];
}

/* Results against sums in double: all of them while that takes little time, else a random choice and the last. */
static void check_values(rng *r, const problem *p, const mx_product *product, const float *y) {
    const int64_t all = p->c->rows * p->outputs, every = all * p->c->cols / (settings.longer ? 20000000 : 2000000) + 1;
    for (int64_t at = every > 1 ? rng_below(r, every) : 0; at < all;) {
        int64_t t = at / p->outputs, i = at % p->outputs;
        double bound, expected = expected_value(p, product, t, i, &bound);
        check_close(y[t * p->call.y_stride + i], expected, bound, "y[%lld][%lld]", (long long)t, (long long)i);
        int64_t step = 1 + rng_below(r, 2 * every - 1);
        at = at < all - 1 && at + step >= all ? all - 1 : at + step;
    }
}

static void check_against(const problem *p, const mx_product *product, const float *y, const float *scalar) {
    for (int64_t t = 0; t < p->c->rows; t++) {
        for (int64_t i = 0; i < p->call.y_stride; i++) {
            int64_t at = t * p->call.y_stride + i;
            if (i >= p->outputs) {
                if (!isnan(y[at])) fail_msg("%s: written behind row %lld of y", case_name(), (long long)t);
            } else {
                check_close(y[at], scalar[at], coarse_bound(p, product, t, i), "y[%lld][%lld] beside scalar",
                            (long long)t, (long long)i);
            }
        }
    }
}

/* ---- batch invariance ------------------------------------------------------------------------------------------- */

static void multiply(const mx_kernels *k, const mx_product *product, const mx_matmul *m) {
    memset(m->scratch, 0xff, (size_t)k->matmul_scratch * sizeof *m->scratch);
    product->matmul(m);
}

static void check_same(const problem *p, const float *found, const float *whole, const char *how) {
    for (int64_t t = 0; t < p->c->rows; t++) {
        for (int64_t i = 0; i < p->call.y_stride; i++) {
            const float *a = found + t * p->call.y_stride + i, *b = whole + t * p->call.y_stride + i;
            if (memcmp(a, b, sizeof *a) != 0) {
                fail_msg("%s: y[%lld][%lld] is %.9g with all rows at once, %.9g %s", case_name(), (long long)t,
                         (long long)i, (double)*b, (double)*a, how);
            }
        }
    }
}

/* A shuffled order of the rows for x_row and y_row, and factors in that order. */
typedef struct order {
    int32_t *row;
    float *factor;
} order;

static order shuffled(rng *r, const problem *p) {
    int64_t rows = p->c->rows;
    order o = {guarded(rows * 4, 4, "row numbers"), guarded(rows * 4, 4, "factors in order")};
    for (int64_t t = 0; t < rows; t++) o.row[t] = (int32_t)t;
    for (int64_t t = rows - 1; t > 0; t--) {
        int64_t other = rng_below(r, t + 1);
        int32_t swapped = o.row[t];
        o.row[t] = o.row[other];
        o.row[other] = swapped;
    }
    for (int64_t t = 0; t < rows && p->call.factor; t++) o.factor[t] = p->call.factor[o.row[t]];
    return o;
}

static float *y_like(const problem *p, const char *what) {
    int64_t size = p->c->rows * p->call.y_stride;
    return memcpy(guarded_floats(size, what), p->before, (size_t)size * sizeof(float));
}

/* The same product in pieces: random groups of rows in random order through x_row and y_row, random cuts of n. */
static void check_pieces(rng *r, const mx_kernels *k, const mx_product *product, const problem *p, const mx_matmul *all,
                         const float *whole) {
    const test_case *c = p->c;
    order o = shuffled(r, p);
    mx_matmul m = *all;
    m.y = y_like(p, "y in pieces");
    for (int64_t t0 = 0, t1; t0 < c->rows; t0 = t1) {
        int64_t most = rng_below(r, 2) ? 3 : c->rows;
        t1 = t0 + 1 + rng_below(r, most < c->rows - t0 ? most : c->rows - t0);
        for (int64_t n0 = 0, n1; n0 < c->n; n0 = n1) {
            n1 = n0 + 1 + rng_below(r, c->n - n0);
            if (c->epilogue == MX_SWIGLU) n1 += n1 & 1;
            m.n0 = n0;
            m.n1 = n1;
            m.rows = t1 - t0;
            m.x_row = o.row + t0;
            m.y_row = o.row + t0;
            m.factor = all->factor ? o.factor + t0 : NULL;
            multiply(k, product, &m);
        }
    }
    check_same(p, m.y, whole, "in pieces");
}

/* Each row alone, x and y that hold nothing else. */
static void check_alone(rng *r, const mx_kernels *k, const mx_product *product, const problem *p, const mx_matmul *all,
                        const float *whole) {
    const test_case *c = p->c;
    float *y = y_like(p, "y of single rows");
    uint8_t *x = guarded(all->x_stride, 64, "packed x of one row");
    float *row = guarded_floats(c->cols, "x of one row");
    mx_matmul m = *all;
    m.rows = 1;
    m.x = x;
    for (int64_t i = 0, count = c->rows < 9 ? c->rows : 9; i < count; i++) {
        int64_t t = count == c->rows ? i : rng_below(r, c->rows);
        memcpy(row, p->x + t * c->cols, (size_t)c->cols * sizeof *row);
        memset(x, 0xff, (size_t)all->x_stride);
        product->pack(x, row, 1, c->cols);
        m.y = y + t * m.y_stride;
        memcpy(m.y, p->before + t * m.y_stride, (size_t)m.y_stride * sizeof *m.y);
        m.factor = all->factor ? all->factor + t : NULL;
        multiply(k, product, &m);
        if (memcmp(m.y, whole + t * m.y_stride, (size_t)m.y_stride * sizeof *m.y) != 0) {
            fail_msg("%s: row %lld has other bits when it is alone", case_name(), (long long)t);
        }
    }
}

/* scalar: what the first tier found, to which the others are compared; that tier (*first) fills it. */
static void run_product(rng *r, const mx_kernels *k, problem *p, mx_precision precision, float *scalar, bool *first) {
    const mx_product *product = k->product[p->c->format][precision];
    int mark = case_mark();
    mx_matmul m = p->call;
    float *y = y_like(p, "y");
    uint8_t *packed;
    m.x_stride = product->packed_bytes(p->c->cols);
    assert_int_equal(m.x_stride % 64, 0);
    m.x = packed = guarded(p->c->rows * m.x_stride, 64, "packed x");
    m.scratch = guarded_floats(k->matmul_scratch, "scratch");
    m.y = y;
    product->pack(packed, p->x, p->c->rows, p->c->cols);
    multiply(k, product, &m);
    check_values(r, p, product, y);
    if (*first) memcpy(scalar, y, (size_t)(p->c->rows * m.y_stride) * sizeof *y);
    *first = false;
    check_against(p, product, y, scalar);
    check_pieces(r, k, product, p, &m, y);
    check_alone(r, k, product, p, &m, y);
    case_release(mark);
}

/* Whether a tier before has the same product and no more scratch: it has been tested then. */
static bool tested(const mx_kernels *const *tiers, int tier, mx_format format, int precision) {
    for (int i = 0; i < tier; i++) {
        if (tiers[i]->product[format][precision] == tiers[tier]->product[format][precision] &&
            tiers[i]->matmul_scratch <= tiers[tier]->matmul_scratch) {
            return true;
        }
    }
    return false;
}

/* Scale bytes outside 2 ... 252 are not for products that flush, nor element codes that BF16 does not hold. */
static bool allowed(const mx_product *product, const problem *p) {
    if (!product || !product->flushes) return product;
    if (mx_is_block_format(p->c->format)) return p->w.matrix.bf16_safe;
    return !(mx_is_mxfp4(p->c->format) && p->c->kind == EXTREME);
}

static void name_case(const mx_kernels *k, const problem *p, mx_precision precision) {
    const test_case *c = p->c;
    static const char *const bias_names[] = {"no bias", "f32 bias", "", "bf16 bias"};
    case_rename("%s %s %s %s, %s, %s: [%lld,%lld], %lld rows", k->name, matrix_name(&p->w.matrix),
                precision_names[precision], epilogue_names[c->epilogue], bias_names[c->bias + 1], kind_names[c->kind],
                (long long)c->n, (long long)c->cols, (long long)c->rows);
}

static void run_case(rng *r, const test_case *c) {
    const mx_kernels *tiers[MAX_TIERS];
    int count = tiers_here(tiers);
    case_begin("inputs of a matrix product");
    problem p = problem_make(r, c);
    float *scalar = y_like(&p, "the first tier's y");
    for (int precision = MX_X_FP32; precision <= MX_X_BF16; precision++) {
        bool first = true;
        round_x(&p, (mx_precision)precision);
        for (int i = 0; i < count; i++) {
            if (!allowed(tiers[i]->product[c->format][precision], &p)) continue;
            if (tested(tiers, i, c->format, precision)) continue;
            name_case(tiers[i], &p, (mx_precision)precision);
            run_product(r, tiers[i], &p, (mx_precision)precision, scalar, &first);
        }
    }
    case_end();
}

/* ---- tests ------------------------------------------------------------------------------------------------------ */

static const mx_format formats[] = {MX_F32,  MX_F16,  MX_BF16, MX_MXFP4, MX_Q8_0, MX_MXFP4_GGML, MX_E2M1,
                                    MX_E2M3, MX_E3M2, MX_E4M3, MX_E5M2,  MX_INT8, MX_INT4};

enum {
    FORMATS = sizeof formats / sizeof *formats,
    CODES = 6, /* where the element codes begin */
};

/* Sanitizers, and the emulator that aarch64 is tested with, take 10 to 30 times as long. */
#ifdef __aarch64__
enum { SLOW = 1 };
#else
enum { SLOW = SANITIZED };
#endif

#define PICK(table) (table)[rng_below(&r, sizeof(table) / sizeof *(table))]

/* Each of `count` formats with every epilogue and bias `times` times, on random shapes of at
 * most that many products. */
static void run_shapes(uint64_t seed, const mx_format *of, int count, int times, int64_t most) {
    static const int64_t cols[] = {32, 64, 96, 160, 512, 544, 576, 608, 1088, 1152, 2880, 2912, 4096};
    static const int64_t outputs[] = {1, 2, 3, 7, 15, 16, 17, 31, 33, 64, 95, 97, 130, 193};
    static const int64_t rows[] = {1,  2,  3,  4,  5,  6,  7,  8,  9,  12, 15,  16,  17,  24,
                                   25, 31, 32, 33, 48, 63, 64, 65, 70, 96, 100, 127, 129, 130};
    if (settings.longer) most = 80000000;
    rng r = rng_seeded(seed);
    for (int i = 0; i < MX_EPILOGUES * 3 * count * times; i++) {
        test_case c = {.format = of[i % count],
                       .cols = PICK(cols),
                       .n = PICK(outputs),
                       .rows = PICK(rows),
                       .epilogue = (mx_epilogue)(i / count % MX_EPILOGUES),
                       .bias = (int[]){-1, MX_F32, MX_BF16}[i / (MX_EPILOGUES * count) % 3]};
        while (c.cols * c.n * c.rows > most) c.rows = 1 + c.rows / 2, c.n = 1 + c.n * 2 / 3;
        if (c.epilogue == MX_SWIGLU) c.n += c.n & 1;
        run_case(&r, &c);
    }
}

static void test_shapes(void **state) {
    (void)state;
    run_shapes(1, formats, CODES, settings.longer ? 33 : SLOW ? 1 : 2, SLOW ? 1000000 : 8000000);
}

static void test_block_shapes(void **state) {
    (void)state;
    run_shapes(11, formats + CODES, FORMATS - CODES, settings.longer ? 33 : 1, SLOW ? 300000 : 5000000);
}

/* More rows than any tier takes at once. */
static void test_many_rows(void **state) {
    (void)state;
    rng r = rng_seeded(2);
    for (int i = 0; i < FORMATS; i++) {
        if (i < CODES || !SLOW) run_case(&r, &(test_case){formats[i], 100, 608, 300, MX_SWIGLU, MX_BF16, ORDINARY});
        run_case(&r, &(test_case){formats[i], 31, 96, 521, MX_SCALE, MX_F32, ORDINARY});
    }
}

/* Columns around which tiers begin another chunk of K (48 or 96 blocks of 32). */
static const int64_t chunk_cols[] = {1536, 1568, 3072, 3104};

/* Codes and scales at the ends of their ranges, subnormals, zeros of both signs, sums that cancel. */
static void run_extremes(uint64_t seed, const mx_format *of, int count, int times, int most) {
    static const weight_kind kinds[] = {EXTREME, LARGEST, WIDE};
    rng r = rng_seeded(seed);
    for (int i = 0; i < 3 * MX_EPILOGUES * count * times; i++) {
        test_case c = {.format = of[i % count],
                       .n = 1 + rng_below(&r, most),
                       .cols = i / count % 4 ? 32 + 32 * rng_below(&r, 40) : chunk_cols[i / (4 * count) % 4],
                       .rows = 1 + rng_below(&r, most),
                       .epilogue = (mx_epilogue)(i / (3 * count) % MX_EPILOGUES),
                       .bias = i % 7 ? -1 : MX_F32,
                       .kind = kinds[i / count % 3]};
        if (c.epilogue == MX_SWIGLU) c.n += c.n & 1;
        run_case(&r, &c);
    }
}

static void test_extreme_values(void **state) {
    (void)state;
    run_extremes(3, formats, CODES, settings.longer ? 25 : SLOW ? 1 : 2, 40);
}

static void test_block_extremes(void **state) {
    (void)state;
    run_extremes(12, formats + CODES, FORMATS - CODES, settings.longer ? 25 : 1, SLOW ? 20 : 40);
}

/* Even rows as gate and odd ones as up, one after the other: the same bits as MX_SWIGLU. */
static void test_gated(void **state) {
    (void)state;
    const mx_kernels *tiers[MAX_TIERS];
    const int count = tiers_here(tiers);
    rng r = rng_seeded(9);
    for (int i = 0; i < 2 * FORMATS; i++) {
        const test_case c = {formats[i % FORMATS],
                             2 * (1 + rng_below(&r, 60)),
                             32 + 32 * rng_below(&r, 20),
                             1 + rng_below(&r, 40),
                             MX_SWIGLU,
                             -1,
                             ORDINARY};
        case_begin("gate and up apart");
        problem p = problem_make(&r, &c);
        for (int k = 0; k < count; k++) {
            const mx_product *product = tiers[k]->product[c.format][MX_X_BF16];
            mx_matmul m = p.call;
            const int mark = case_mark();
            uint8_t *packed = guarded(c.rows * product->packed_bytes(c.cols), 64, "packed x");
            float *once = y_like(&p, "y at once"), *twice = y_like(&p, "y by two");
            product->pack(packed, p.x, c.rows, c.cols);
            m.x = packed;
            m.x_stride = product->packed_bytes(c.cols);
            m.scratch = guarded_floats(tiers[k]->matmul_scratch, "scratch");
            m.y = once;
            multiply(tiers[k], product, &m);
            m.y = twice;
            m.n1 = m.w.rows = c.n / 2;
            m.w.row_stride *= 2;
            m.w.scale_stride *= 2;
            m.w.zero_stride *= 2;
            m.w.post_step *= 2;
            m.epilogue = MX_STORE;
            multiply(tiers[k], product, &m);
            m.w.data = p.w.matrix.data + p.w.matrix.row_stride;
            if (m.w.scales) m.w.scales += p.w.matrix.scale_stride;
            if (m.w.zeros) m.w.zeros += p.w.matrix.zero_stride;
            if (m.w.post) m.w.post += p.w.matrix.post_step;
            m.epilogue = MX_GATED;
            multiply(tiers[k], product, &m);
            check_same(&p, twice, once, "by two products");
            case_release(mark);
        }
        case_end();
    }
}

/* As the model cuts a product: tiles of output rows that the threads of a pool take on demand. */
typedef struct cut {
    const mx_kernels *k;
    const mx_product *product;
    mx_matmul m;
    int64_t tile_rows;
    float *scratch[MAX_THREADS];
} cut;

static void multiply_tiles(void *arg, int64_t begin, int64_t end, int thread) {
    const cut *c = arg;
    for (int64_t tile = begin; tile < end; tile++) {
        mx_matmul m = c->m;
        m.n0 = tile * c->tile_rows;
        m.n1 = m.n0 + c->tile_rows < m.w.rows ? m.n0 + c->tile_rows : m.w.rows;
        m.scratch = c->scratch[thread];
        multiply(c->k, c->product, &m);
    }
}

static void check_threads(rng *r, const mx_kernels *k, problem *p, mx_precision precision,
                          mx_pool *const pools[MAX_THREADS]) {
    const mx_product *product = k->product[p->c->format][precision];
    int mark = case_mark();
    order o = shuffled(r, p);
    cut c = {.k = k, .product = product, .m = p->call};
    uint8_t *packed;
    c.m.x_stride = product->packed_bytes(p->c->cols);
    c.m.x = packed = guarded(p->c->rows * c.m.x_stride, 64, "packed x");
    product->pack(packed, p->x, p->c->rows, p->c->cols);
    for (int i = 0; i < MAX_THREADS; i++) c.scratch[i] = guarded_floats(k->matmul_scratch, "a thread's scratch");
    mx_matmul m = c.m;
    float *whole = m.y = y_like(p, "y");
    m.scratch = c.scratch[0];
    multiply(k, product, &m);
    c.m.x_row = c.m.y_row = o.row;
    c.m.factor = p->call.factor ? o.factor : NULL;
    for (int threads = 1; threads <= MAX_THREADS; threads++) {
        c.tile_rows = threads == 2 ? 16 : 96;
        c.m.y = y_like(p, "y of threads");
        mx_parallel_for(pools[threads - 1], (p->c->n + c.tile_rows - 1) / c.tile_rows, 1, multiply_tiles, &c);
        check_same(p, c.m.y, whole, "by threads");
    }
    case_release(mark);
}

static void test_threads(void **state) {
    (void)state;
    static const int64_t rows[] = {1, 3, 16, 40};
    mx_pool *pools[MAX_THREADS];
    const mx_kernels *tiers[MAX_TIERS];
    int count = tiers_here(tiers);
    for (int i = 0; i < MAX_THREADS; i++) assert_int_equal(mx_pool_create(i + 1, &pools[i], NULL), MX_OK);
    rng r = rng_seeded(4);
    for (int i = 0; i < (SLOW ? 1 : 2) * FORMATS; i++) {
        const int64_t cols = i / FORMATS ? chunk_cols[i % 4] : 288;
        test_case c = {formats[i % FORMATS], 700,     cols, rows[i % 4], (mx_epilogue)(i / 3 % 4),
                       i % 2 ? MX_BF16 : -1, ORDINARY};
        case_begin("inputs of a matrix product");
        problem p = problem_make(&r, &c);
        for (int tier = 0; tier < count; tier++) {
            for (int precision = 0; precision < MX_PRECISIONS; precision++) {
                if (!tiers[tier]->product[c.format][precision] || tested(tiers, tier, c.format, precision)) continue;
                name_case(tiers[tier], &p, (mx_precision)precision);
                check_threads(&r, tiers[tier], &p, (mx_precision)precision, pools);
            }
        }
        case_end();
    }
    for (int i = 0; i < MAX_THREADS; i++) mx_pool_destroy(pools[i]);
}

/* Products that are exact in fp32 whatever the order: every scale byte, every nibble in both places, both layouts. */
static void test_mxfp4_exact(void **state) {
    (void)state;
    const mx_kernels *tiers[MAX_TIERS];
    int count = tiers_here(tiers);
    for (int at = 0; at < 2 * count; at++) {
        const bool ggml = at >= count;
        const mx_kernels *k = tiers[at % count];
        const mx_product *product = k->product[ggml ? MX_MXFP4_GGML : MX_MXFP4][MX_X_FP32];
        case_begin("%s mxfp4%s of every scale", k->name, ggml ? "_ggml" : "");
        uint8_t *blocks = guarded(3 * MX_MXFP4_GGML_BYTES, 1, "row of GGML's blocks");
        float *x = guarded_floats(96 * 96, "x"), *y = guarded_floats(96, "y");
        float *scratch = guarded_floats(k->matmul_scratch, "scratch");
        uint8_t *packed = guarded(96 * product->packed_bytes(96), 64, "packed x");
        for (int i = 0; i < 96 * 96; i++) x[i] = i % 97 == 0 ? 1.0f : 0.0f; /* unit vectors */
        product->pack(packed, x, 96, 96);
        for (int scale = 0; scale < 255; scale++) {
            uint8_t data[48], scales[3] = {127, (uint8_t)scale, 1};
            float expected[96];
            for (int i = 0; i < 48; i++) data[i] = (uint8_t)(i * 17 + scale * 31);
            if (scale >= 253) { /* 6 * 2^126 and more are no floats */
                for (int i = 0; i < 48; i++) data[i] &= 0xbb;
            }
            for (int b = 0; b < 3; b++) {
                uint8_t *block = blocks + MX_MXFP4_GGML_BYTES * b;
                block[0] = scales[b];
                memcpy(block + 1, data + 16 * b, 16);
                if (ggml)
                    mx_mxfp4_ggml_widen(expected + 32 * b, block);
                else
                    mx_mxfp4_widen(expected + 32 * b, data + 16 * b, scales[b]);
            }
            const mx_matrix apart = {.format = MX_MXFP4,
                                     .rows = 1,
                                     .cols = 96,
                                     .data = data,
                                     .row_stride = 48,
                                     .scales = scales,
                                     .scale_stride = 3};
            const mx_matrix between = {
                .format = MX_MXFP4_GGML, .rows = 1, .cols = 96, .data = blocks, .row_stride = 3 * MX_MXFP4_GGML_BYTES};
            for (int rows = 1; rows <= 96; rows += 95) {
                mx_matmul m = {.w = ggml ? between : apart,
                               .x = packed,
                               .x_stride = product->packed_bytes(96),
                               .rows = rows,
                               .n1 = 1,
                               .y = y,
                               .y_stride = 1,
                               .scratch = scratch};
                product->matmul(&m);
                for (int i = 0; i < rows; i++) check_close(y[i], expected[i], 0.0, "scale %d: %d", scale, i);
            }
        }
        case_end();
    }
}

/* Weights in GGML's layout from those of the other, the last byte of the last row the last that may be read. */
static mx_matrix to_ggml(const mx_matrix *w) {
    const int64_t stride = mx_columns_bytes(MX_MXFP4_GGML, w->cols);
    uint8_t *data = guarded(w->rows * stride, 1, "weights in GGML's layout");
    for (int64_t n = 0; n < w->rows; n++) {
        for (int64_t b = 0; b < w->cols / 32; b++) {
            const uint8_t *codes = w->data + n * w->row_stride + 16 * b;
            uint8_t *block = data + n * stride + MX_MXFP4_GGML_BYTES * b;
            block[0] = w->scales[n * w->scale_stride + b];
            for (int i = 0; i < 16; i++) {
                int low = codes[i / 2] >> i % 2 * 4 & 15, high = codes[8 + i / 2] >> i % 2 * 4 & 15;
                block[1 + i] = (uint8_t)(low | high << 4);
            }
        }
    }
    return (mx_matrix){.format = MX_MXFP4_GGML, .rows = w->rows, .cols = w->cols, .data = data, .row_stride = stride};
}

/* The same weights in both layouts: what differs is the order of a sum; integers have none. */
static void compare_layouts(const mx_kernels *k, problem *p, const mx_matrix *ggml, mx_precision precision) {
    const mx_matrix *layouts[2] = {&p->w.matrix, ggml};
    const int mark = case_mark();
    float *y[2];
    for (int i = 0; i < 2; i++) {
        const mx_product *product = k->product[layouts[i]->format][precision];
        uint8_t *packed = guarded(p->c->rows * product->packed_bytes(p->c->cols), 64, "packed x");
        mx_matmul m = p->call;
        product->pack(packed, p->x, p->c->rows, p->c->cols);
        m.w = *layouts[i];
        m.x = packed;
        m.x_stride = product->packed_bytes(p->c->cols);
        m.scratch = guarded_floats(k->matmul_scratch, "scratch");
        y[i] = m.y = y_like(p, "y");
        multiply(k, product, &m);
    }
    if (precision == MX_X_INT8)
        check_same(p, y[1], y[0], "in GGML's layout");
    else
        check_against(p, k->product[MX_MXFP4][precision], y[1], y[0]);
    case_release(mark);
}

static void test_mxfp4_layouts(void **state) {
    (void)state;
    static const int64_t rows[] = {1, 2, 3, 5, 9, 17, 40};
    const mx_kernels *tiers[MAX_TIERS];
    const int count = tiers_here(tiers);
    rng r = rng_seeded(10);
    for (int i = 0; i < 14; i++) {
        const test_case c = {
            MX_MXFP4, 1 + rng_below(&r, 70), 32 + 32 * rng_below(&r, 60), rows[i % 7], MX_STORE, MX_F32, ORDINARY};
        case_begin("both layouts of MXFP4");
        problem p = problem_make(&r, &c);
        const mx_matrix ggml = to_ggml(&p.w.matrix);
        for (int precision = 0; precision < MX_PRECISIONS; precision++) {
            round_x(&p, (mx_precision)precision);
            for (int k = 0; k < count; k++) {
                name_case(tiers[k], &p, (mx_precision)precision);
                compare_layouts(tiers[k], &p, &ggml, (mx_precision)precision);
            }
        }
        case_end();
    }
}

/* The same of Q8_0: every integer, scales of every exponent and sign, at every precision. */
static void test_q8_0_exact(void **state) {
    (void)state;
    enum { COLS = 256, ROW = COLS / 32 * MX_Q8_0_BYTES };
    const mx_kernels *tiers[MAX_TIERS];
    int count = tiers_here(tiers);
    for (int at = 0; at < count * (MX_X_BF16 + 1); at++) {
        const mx_kernels *k = tiers[at % count];
        const mx_product *product = k->product[MX_Q8_0][at / count];
        case_begin("%s q8_0 %s of every integer", k->name, precision_names[at / count]);
        float *x = guarded_floats(COLS * COLS, "x"), *y = guarded_floats(COLS, "y");
        float *scratch = guarded_floats(k->matmul_scratch, "scratch");
        uint8_t *packed = guarded(COLS * product->packed_bytes(COLS), 64, "packed x"), *row = guarded(ROW, 1, "row");
        for (int i = 0; i < COLS * COLS; i++) x[i] = i % (COLS + 1) == 0 ? 1.0f : 0.0f; /* unit vectors */
        product->pack(packed, x, COLS, COLS);
        for (int scale = 0; scale < 0x10000; scale += 0x3ff) {
            if ((scale & 0x7c00) == 0x7c00) continue; /* no number */
            for (int i = 0; i < COLS; i++) {
                memcpy(row + i / 32 * MX_Q8_0_BYTES, &(uint16_t){(uint16_t)(scale ^ i / 32)}, 2);
                row[i / 32 * MX_Q8_0_BYTES + 2 + i % 32] = (uint8_t)(37 * i); /* odd: all of them */
            }
            for (int rows = 1; rows <= COLS; rows += COLS - 1) {
                mx_matmul m = {.w = {.format = MX_Q8_0, .rows = 1, .cols = COLS, .data = row, .row_stride = ROW},
                               .x = packed,
                               .x_stride = product->packed_bytes(COLS),
                               .rows = rows,
                               .n1 = 1,
                               .y = y,
                               .y_stride = 1,
                               .scratch = scratch};
                product->matmul(&m);
                for (int i = 0; i < rows; i++) {
                    double expected = exact_f16((uint16_t)(scale ^ i / 32)) * (int8_t)(37 * i);
                    check_close(y[i], expected, 0.0, "scale %#x: %d", (unsigned)scale, i);
                }
            }
        }
        case_end();
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
        case_begin("%s swiglu", k->name);
        float *x = guarded_floats(32, "x"), *y = guarded_floats(COUNT, "y");
        float *scratch = guarded_floats(k->matmul_scratch, "scratch");
        uint8_t *packed = guarded(product->packed_bytes(32), 64, "packed x");
        for (int i = 0; i < 32; i++) x[i] = i == 0;
        product->pack(packed, x, 1, 32);
        for (int up = 0; up < COUNT; up++) {
            for (int i = 0; i < COUNT; i++) {
                w[2 * i][0] = values[i];
                w[2 * i + 1][0] = values[up];
            }
            mx_matmul m = {
                .w = {.format = MX_F32, .rows = COUNT * 2, .cols = 32, .data = (const uint8_t *)w, .row_stride = 128},
                .x = packed,
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
                check_close(y[i], expected, bound, "gate %g up %g", (double)values[i], (double)values[up]);
                check_close(mx_swiglu(values[i], values[up], 7.0f, 1.702f), expected, bound, "mx_swiglu gate %g",
                            (double)values[i]);
            }
        }
        case_end();
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_shapes),          cmocka_unit_test(test_block_shapes),
    cmocka_unit_test(test_block_extremes),  cmocka_unit_test(test_many_rows),
    cmocka_unit_test(test_threads),         cmocka_unit_test(test_gated),
    cmocka_unit_test(test_extreme_values),  cmocka_unit_test(test_mxfp4_exact),
    cmocka_unit_test(test_mxfp4_layouts),   cmocka_unit_test(test_q8_0_exact),
    cmocka_unit_test(test_swiglu_extremes),
};

const test_group matmul_group = {"matmul", tests, sizeof tests / sizeof *tests, NULL};
