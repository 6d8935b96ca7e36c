/* A row of numbers into codes. Compiled for each instruction set (meson.build), in vectors of its width; sums are
 * always taken in 16 parts (of doubles 8), which are added in one order, and products and sums are rounded apart
 * (-ffp-contract=off): every processor gives the same bits.
 *
 * A block's numbers are multiplied by the power of two that makes its largest at least 1 and less than 2^(emax + 1),
 * which is exact and keeps squares in range; below, `a` are magnitudes in such units, and 2^unit is their unit. */
#include <float.h>
#include <limits.h>
#include <math.h>
#include <string.h>

#include "model/quantize/private.h"

/* Everything that takes or returns vectors is inlined: there is no ABI of theirs. */
#pragma GCC diagnostic ignored "-Wpsabi"
#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#define TIER mx_rows_avx512
enum { W = 16 };
#elif defined(__AVX2__)
#define TIER mx_rows_avx2
enum { W = 8 };
#else
#define TIER mx_rows_any
enum { W = 4 };
#endif
enum { LANES = 16, PARTS = LANES / W, WIDEST = 128 /* columns of a block */, MOST = WIDEST / W, WD = W / 2 };

typedef float V __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef double D __attribute__((vector_size(8 * WD)));
typedef int64_t L __attribute__((vector_size(8 * WD)));
typedef uint8_t B __attribute__((vector_size(W)));

/* Element codes that are floats: mantissa bits, the least normal number, the largest, its exponent, bits in all. */
typedef struct element {
    int mantissa;
    float normal, largest;
    int emax, bits;
} element;

#define E2M1                                                                                                           \
    (element) {                                                                                                        \
        1, 1.0f, 6.0f, 2, 4                                                                                            \
    }
#define E4M3                                                                                                           \
    (element) {                                                                                                        \
        3, 0x1p-6f, 448.0f, 8, 8                                                                                       \
    }

INLINE element element_of(mx_format format) {
    switch (format) {
    case MX_E2M3:
        return (element){3, 1.0f, 7.5f, 2, 6};
    case MX_E3M2:
        return (element){2, 0.25f, 28.0f, 4, 6};
    case MX_E4M3:
        return E4M3;
    case MX_E5M2:
        return (element){2, 0x1p-14f, 57344.0f, 15, 8};
    default:
        return E2M1;
    }
}

INLINE float float_of_bits(uint32_t bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

INLINE uint32_t bits_of_float(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

/* 2^e, -149 <= e <= 127. */
INLINE float power(int e) {
    return float_of_bits(e >= -126 ? (uint32_t)(e + 127) << 23 : 1u << (e + 149));
}

/* The same in double, -1022 <= e <= 1023. */
INLINE double wide_power(int e) {
    const uint64_t bits = (uint64_t)(e + 1023) << 52;
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

INLINE int exponent_of(float x) { /* floor(log2 x), x > 0 */
    const int e = (int)(bits_of_float(x) >> 23);
    return e ? e - 127 : (int)(31 - __builtin_clz(bits_of_float(x))) - 149;
}

/* The element nearest to q >= 0, ties to the even code, at most the largest. Adding a number whose last bit is worth
 * what the element's last bit is worth rounds so. */
INLINE float nearest_one(float q, const element f) {
    const float base = q > f.normal ? q : f.normal;
    const float magic = float_of_bits((bits_of_float(base) & 0x7F800000) + ((uint32_t)(23 - f.mantissa) << 23));
    const float v = (q + magic) - magic;
    return v < f.largest ? v : f.largest;
}

/* E4M3's value of a code 0 .. 126, and the code of x > 0: never 0, for a block that is not zeros. */
INLINE float value_of_e4m3(int code) {
    return code < 8 ? (float)code * 0x1p-9f : float_of_bits((uint32_t)(code + (120 << 3)) << 20);
}

INLINE int e4m3_of(float x) {
    const float v = nearest_one(x < 1000.0f ? x : 1000.0f, E4M3);
    const int code = v < 0x1p-6f ? (int)(v * 0x1p9f) : (int)(bits_of_float(v) >> 20) - (120 << 3);
    return code ? code : 1;
}

/* ---- vectors ----------------------------------------------------------------------------------------------------- */

INLINE V load(const float *p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE V all(float x) {
    return x - (V){0};
}

INLINE V pick(I mask, V yes, V no) {
    return (V)((mask & (I)yes) | (~mask & (I)no));
}

INLINE V magnitude(V x) {
    return (V)((I)x & 0x7FFFFFFF);
}

INLINE V greater(V a, V b) { /* of numbers that are not negative */
    return pick((I)a > (I)b, a, b);
}

INLINE V nearest(V q, const element f) {
    const V base = greater(q, all(f.normal));
    const V magic = (V)(((I)base & 0x7F800000) + ((23 - f.mantissa) << 23));
    const V v = (q + magic) - magic;
    return pick(v < all(f.largest), v, all(f.largest));
}

/* The codes of elements v >= 0, with x's signs. */
INLINE B codes_of(V v, V x, const element f) {
    const I below = v < all(f.normal);
    const V t = v + (V)(below & (I)all(f.normal));
    const I code = (((I)t - (I)all(f.normal)) >> (23 - f.mantissa)) + (~below & (1 << f.mantissa));
    return __builtin_convertvector(code | (((I)x >> 31) & (1 << (f.bits - 1))), B);
}

typedef float V4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));

/* The four quarters of 16 lanes. */
INLINE void quarters(V4 q[4], const V part[PARTS]) {
#if defined(__AVX512F__)
    q[0] = __builtin_shufflevector(part[0], part[0], 0, 1, 2, 3);
    q[1] = __builtin_shufflevector(part[0], part[0], 4, 5, 6, 7);
    q[2] = __builtin_shufflevector(part[0], part[0], 8, 9, 10, 11);
    q[3] = __builtin_shufflevector(part[0], part[0], 12, 13, 14, 15);
#elif defined(__AVX2__)
    q[0] = __builtin_shufflevector(part[0], part[0], 0, 1, 2, 3);
    q[1] = __builtin_shufflevector(part[0], part[0], 4, 5, 6, 7);
    q[2] = __builtin_shufflevector(part[1], part[1], 0, 1, 2, 3);
    q[3] = __builtin_shufflevector(part[1], part[1], 4, 5, 6, 7);
#else
    for (int i = 0; i < 4; i++) q[i] = part[i];
#endif
}

/* Of the 16 parts of a sum, part[0] the first: (0 + 8) + (4 + 12) and so on, whatever the width. */
INLINE float sum_of(const V part[PARTS]) {
    V4 q[4];
    quarters(q, part);
    const V4 sum = (q[0] + q[2]) + (q[1] + q[3]);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

INLINE V4 greater_of_4(V4 a, V4 b) {
    const I4 more = (I4)a > (I4)b;
    return (V4)((more & (I4)a) | (~more & (I4)b));
}

INLINE float largest_in(V v) { /* none is negative */
    V all_parts[PARTS];
    V4 q[4];
    for (int i = 0; i < PARTS; i++) all_parts[i] = v;
    quarters(q, all_parts);
    const V4 most = greater_of_4(greater_of_4(q[0], q[1]), greater_of_4(q[2], q[3]));
    const V4 pairs = greater_of_4(most, __builtin_shufflevector(most, most, 2, 3, 0, 1));
    return greater_of_4(pairs, __builtin_shufflevector(pairs, pairs, 1, 0, 3, 2))[0];
}

INLINE float largest_of(const float *x, int n) {
    V most = magnitude(load(x));
    for (int i = W; i < n; i += W) most = greater(magnitude(load(x + i)), most);
    return largest_in(most);
}

/* ---- blocks of floats -------------------------------------------------------------------------------------------- */

/* How a block's elements are scaled, in its units. */
typedef struct scaling {
    float per;   /* elements are the nearest to a / per; with `divide` false to a * per */
    float scale; /* and worth (element * scale) * post, each product rounded to fp32 as the kernels do */
    float post;
} scaling;

INLINE float block_error(const V *a, const float *w, int n, const element f, const scaling s, bool divide) {
    V sum[PARTS] = {{0}};
    for (int i = 0; i < n / W; i++) {
        const V v = nearest(divide ? a[i] / s.per : a[i] * s.per, f), d = a[i] - v * s.scale * s.post;
        sum[i % PARTS] += w ? load(w + W * i) * (d * d) : d * d;
    }
    return sum_of(sum);
}

/* 8 bytes of 4 bits to 4 bytes. */
INLINE uint32_t nibbles(const uint8_t *code) {
    uint64_t x;
    memcpy(&x, code, 8);
    x = (x | x >> 4) & 0x00FF00FF00FF00FF;
    x = (x | x >> 8) & 0x0000FFFF0000FFFF;
    return (uint32_t)(x | x >> 16);
}

/* One code of `bits` bits after the other; n a multiple of 16. */
INLINE void pack(uint8_t *out, const uint8_t *code, int n, int bits) {
    if (bits == 8) {
        memcpy(out, code, (size_t)n);
    } else if (bits == 4) {
        for (int i = 0; i < n / 8; i++) {
            const uint32_t eight = nibbles(code + 8 * i);
            memcpy(out + 4 * i, &eight, 4);
        }
    } else {
        for (int i = 0; i < n / 4; i++) {
            const uint32_t four = (uint32_t)(code[4 * i] | code[4 * i + 1] << 6 | code[4 * i + 2] << 12) |
                                  (uint32_t)code[4 * i + 3] << 18;
            out[3 * i] = (uint8_t)four;
            out[3 * i + 1] = (uint8_t)(four >> 8);
            out[3 * i + 2] = (uint8_t)(four >> 16);
        }
    }
}

/* Codes of a block and what is lost; sums NULL: nobody wants to know. */
INLINE void code_block(uint8_t *code, const float *x, const V *a, const float *w, int n, const element f,
                       const scaling s, bool divide, int unit, mx_row_sums *sums) {
    V square[PARTS] = {{0}}, error[PARTS] = {{0}}, objective[PARTS] = {{0}}, most = {0};
    I beyond = {0};
    for (int i = 0; i < n / W; i++) {
        const V q = divide ? a[i] / s.per : a[i] * s.per, v = nearest(q, f);
        const V d = magnitude(a[i] - v * s.scale * s.post), lost = d * d;
        const B codes = codes_of(v, load(x + W * i), f);
        memcpy(code + W * i, &codes, W);
        square[i % PARTS] += a[i] * a[i];
        error[i % PARTS] += lost;
        if (w) objective[i % PARTS] += load(w + W * i) * lost;
        most = greater(d, most);
        beyond += q > all(f.largest);
    }
    if (!sums) return;
    const double squared = wide_power(2 * unit);
    sums->square += squared * (double)sum_of(square);
    sums->error += squared * (double)sum_of(error);
    if (w) sums->objective += squared * (double)sum_of(objective);
    int32_t count = 0;
    for (int i = 0; i < W; i++) count -= beyond[i];
    sums->saturated += count;
    const double largest = (double)largest_in(most) * wide_power(unit);
    sums->largest = largest > sums->largest ? largest : sums->largest;
    /* Units may lose what is far below the largest: a number that is not 0, but codes as 0. */
    for (int i = 0; unit > 0 && i < n; i++) sums->lossy |= a[i / W][i % W] <= 0 && fabsf(x[i]) > 0;
}

/* Would q round beyond the largest element, had the code more exponents? In the middle to the even one, which is the
 * one beyond but for E4M3, whose largest has an even code. */
INLINE bool overflows(float q, const element f) {
    const float step = power(f.emax - f.mantissa), middle = f.largest + step / 2;
    return f.mantissa == 3 && f.emax == 8 ? q > middle : q >= middle;
}

INLINE void to_units(V *a, const float *x, int n, int unit) {
    /* In two steps where one number cannot say the power. */
    const int most = unit < -120 ? -120 : unit;
    const float first = power(-most), second = power(most - unit);
    for (int i = 0; i < n / W; i++) a[i] = magnitude(load(x + W * i)) * first * second;
}

/* ---- E8M0 -------------------------------------------------------------------------------------------------------- */

/* May the scale be 2^e? Not where the largest would become infinite. */
INLINE bool is_finite(float largest, int e, const element f, int unit) {
    if (e < -127 || e > 127) return false;
    if (e + f.emax < 120) return true;
    return (double)nearest_one(largest * power(unit - e), f) * wide_power(e) <= (double)FLT_MAX;
}

/* Chooses the exponent of a block's scale; `a` are its numbers over 2^unit, unit being OCP's exponent. */
INLINE int choose_e8m0(const V *a, float largest, const float *w, int n, const element f, int unit,
                       mx_scale_rule rule) {
    if (rule == MX_RULE_OVERFLOW)
        return overflows(largest, f) && is_finite(largest, unit + 1, f, unit) ? unit + 1 : unit;
    if (rule != MX_RULE_SEARCH && rule != MX_RULE_WEIGHTED) return unit;
    static const int steps[] = {0, 1, -1, 2, -2};
    int best = unit;
    float least = INFINITY;
    for (int i = 0; i < 5; i++) {
        const int e = unit + steps[i];
        if (!is_finite(largest, e, f, unit)) continue;
        const float error = block_error(a, w, n, f, (scaling){power(-steps[i]), power(steps[i]), 1}, false);
        if (error < least) {
            least = error;
            best = e;
        }
    }
    return best;
}

INLINE uint8_t e8m0_block(uint8_t *code, const float *x, const float *w, int n, const element f, mx_scale_rule rule,
                          mx_row_sums *sums) {
    V a[MOST];
    const float largest = largest_of(x, n);
    int unit = largest > 0 ? exponent_of(largest) - f.emax : 0;
    if (unit < -127) unit = -127;
    to_units(a, x, n, unit);
    const float in_units = (float)((double)largest * wide_power(-unit));
    const int e = largest > 0 ? choose_e8m0(a, in_units, w, n, f, unit, rule) : 0;
    if (sums) sums->zero_blocks += !(largest > 0);
    code_block(code, x, a, w, n, f, (scaling){power(unit - e), power(e - unit), 1}, false, unit, sums);
    return (uint8_t)(e + 127);
}

INLINE void e8m0_row(const float *x, const float *weight, int64_t cols, int n, const element f, mx_scale_rule rule,
                     uint8_t *data, uint8_t *scales, mx_row_sums *sums) {
    uint8_t code[WIDEST];
    for (int64_t b = 0; b < cols / n; b++) {
        scales[b] = e8m0_block(code, x + b * n, weight ? weight + b * n : NULL, n, f, rule, sums);
        pack(data + b * n * f.bits / 8, code, n, f.bits);
    }
}

/* A block's positive numbers and its negative ones, each side with zeros in the other's places. */
INLINE void sides_row(const mx_coder *c, const float *x, const float *weight, int64_t cols, uint8_t *data,
                      uint8_t *scales, mx_row_sums *sums) {
    const element f = element_of(c->form.format);
    const int n = c->form.blocks.columns;
    for (int64_t b = 0; b < cols / n; b++) {
        float part[2][WIDEST];
        uint8_t code[2][WIDEST];
        const int64_t zero_blocks = sums->zero_blocks;
        for (int i = 0; i < n; i++) {
            const bool negative = signbit(x[b * n + i]);
            part[0][i] = negative ? 0 : x[b * n + i];
            part[1][i] = negative ? x[b * n + i] : 0;
        }
        for (int side = 0; side < 2; side++)
            scales[2 * b + side] =
                e8m0_block(code[side], part[side], weight ? weight + b * n : NULL, n, f, c->rule, sums);
        sums->zero_blocks = zero_blocks + (sums->zero_blocks == zero_blocks + 2);
        for (int i = 0; i < n; i++)
            if (signbit(x[b * n + i])) code[0][i] = code[1][i];
        pack(data + b * n * f.bits / 8, code[0], n, f.bits);
    }
}

/* ---- E4M3 -------------------------------------------------------------------------------------------------------- */

/* As compressed-tensors has it, the scale that elements are divided by is the stored one over `gain`. */
INLINE scaling e4m3_scaling(const mx_coder *c, int code, int unit) {
    const float value = value_of_e4m3(code);
    const double units = wide_power(-unit);
    return (scaling){(float)((double)(value / c->gain) * units), value, (float)((double)c->post * units)};
}

INLINE int try_e4m3(const mx_coder *c, const V *a, const float *w, int n, const element f, int unit, int code, int best,
                    float *least) {
    const float error = block_error(a, w, n, f, e4m3_scaling(c, code, unit), true);
    if (error < *least) {
        *least = error;
        return code;
    }
    return best;
}

INLINE int choose_e4m3(const mx_coder *c, const V *a, const float *w, int n, const element f, int unit, float largest,
                       mx_scale_rule rule, bool four_over_six) {
    enum { LAST = 126 };
    /* OCP's, or the least that E4M3 has. */
    if (c->powers) return e4m3_of(power(exponent_of(largest) - f.emax - exponent_of(c->post)));
    const int ocp = e4m3_of(c->gain * (largest / f.largest));
    const bool search = rule == MX_RULE_SEARCH || rule == MX_RULE_WEIGHTED;
    float least = INFINITY;
    int best = ocp;
    if (rule == MX_RULE_OVERFLOW && ocp < LAST && overflows(largest / (value_of_e4m3(ocp) / c->gain), f)) best++;
    if (search || four_over_six) best = try_e4m3(c, a, w, n, f, unit, best, best, &least);
    for (int code = ocp - 4 > 1 ? ocp - 4 : 1; search && code <= ocp + 7 && code <= LAST; code++)
        if (code != ocp) best = try_e4m3(c, a, w, n, f, unit, code, best, &least);
    if (four_over_six) best = try_e4m3(c, a, w, n, f, unit, e4m3_of(c->gain * (largest / 4.0f)), best, &least);
    return best;
}

INLINE void e4m3_row(const mx_coder *c, const float *x, const float *weight, int64_t cols, int n, const element f,
                     mx_scale_rule rule, bool four_over_six, uint8_t *data, uint8_t *scales, mx_row_sums *sums) {
    /* Units are not so small that the tensor's scale could not be said in them. */
    const int least = exponent_of(c->post) - 60;
    for (int64_t b = 0; b < cols / n; b++) {
        uint8_t code[WIDEST];
        V a[MOST];
        const float *from = x + b * n, *w = weight ? weight + b * n : NULL;
        const float largest = largest_of(from, n);
        int unit = largest > 0 ? exponent_of(largest) - f.emax : 0;
        if (unit < -127) unit = -127;
        if (unit < least) unit = least;
        to_units(a, from, n, unit);
        sums->zero_blocks += !(largest > 0);
        /* Zeros: 2^-3, as compressed-tensors has it. */
        const int scale = largest > 0 ? choose_e4m3(c, a, w, n, f, unit, largest, rule, four_over_six) : 0x20;
        code_block(code, from, a, w, n, f, e4m3_scaling(c, scale, unit), true, unit, sums);
        scales[b] = (uint8_t)scale;
        pack(data + b * n * f.bits / 8, code, n, f.bits);
    }
}

/* ---- no blocks: FP8 ---------------------------------------------------------------------------------------------- */

enum { SPAN = 32 }; /* cols is a multiple of it */

INLINE void span_row(const float *x, const float *weight, int64_t cols, const element f, float post, uint8_t *data,
                     mx_row_sums *sums) {
    const int unit = exponent_of(post);
    const float in_units = (float)((double)post * wide_power(-unit));
    for (int64_t k = 0; k < cols; k += SPAN) {
        uint8_t code[SPAN];
        V a[SPAN / W];
        to_units(a, x + k, SPAN, unit);
        code_block(code, x + k, a, weight ? weight + k : NULL, SPAN, f, (scaling){in_units, 1, in_units}, true, unit,
                   sums);
        pack(data + k * f.bits / 8, code, SPAN, f.bits);
    }
}

/* The objective of a row with one scale. */
INLINE double span_error(const float *x, const float *weight, int64_t cols, const element f, float post) {
    const int unit = exponent_of(post);
    const float in_units = (float)((double)post * wide_power(-unit));
    double sum = 0;
    for (int64_t k = 0; k < cols; k += SPAN) {
        V a[SPAN / W];
        to_units(a, x + k, SPAN, unit);
        sum += wide_power(2 * unit) *
               (double)block_error(a, weight ? weight + k : NULL, SPAN, f, (scaling){in_units, 1, in_units}, true);
    }
    return sum;
}

/* A channel's scale, for the largest of its numbers: never so small that it were not exact. */
INLINE float channel_scale(const mx_coder *c, const float *x, const float *weight, int64_t cols, const element f) {
    const float largest = largest_of(x, (int)cols);
    if (!(largest > 0)) return 1;
    const float exact = (largest > 0x1p-100f ? largest : 0x1p-100f) / f.largest;
    const float whole = exact * f.largest > FLT_MAX ? nextafterf(exact, 0) : exact;
    if (c->rule != MX_RULE_SEARCH && c->rule != MX_RULE_WEIGHTED) return whole;
    float best = whole;
    double least = INFINITY;
    for (int i = 0; i <= 10; i++) {
        const float post = whole * (1 - 0.03f * (float)i);
        const double error = span_error(x, weight, cols, f, post);
        if (error < least) {
            least = error;
            best = post;
        }
    }
    return best;
}

/* ---- integers ---------------------------------------------------------------------------------------------------- */

/* In double: x / scale + zero, to nearest, ties to even, within low..high. */
INLINE double integer_one(double x, double scale, double zero, double low, double high) {
    const double magic = 0x1.8p52;
    double q = x / scale + zero;
    q = q < low ? low : q > high ? high : q;
    return (q + magic) - magic;
}

typedef struct integers {
    double low, high; /* codes */
    bool zeros;
} integers;

INLINE D pick_wide(L mask, D yes, D no) {
    return (D)((mask & (L)yes) | (~mask & (L)no));
}

INLINE D within(D q, const integers limits) {
    const D low = limits.low - (D){0}, high = limits.high - (D){0};
    q = pick_wide(q < low, low, q);
    q = pick_wide(q > high, high, q);
    return (q + 0x1.8p52) - 0x1.8p52;
}

INLINE D load_wide(const float *p) {
    typedef float H __attribute__((vector_size(4 * WD)));
    H v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, D);
}

/* The scale in BF16, positive, as a number: of a block from `least` <= 0 to `most` >= 0, `factor` of what it needs. */
INLINE float integer_scale(const integers q, float least, float most, float factor) {
    const double range = q.zeros ? (double)most - (double)least : fmax((double)most, -(double)least);
    const double steps = q.zeros ? q.high - q.low : q.high;
    uint16_t bits = mx_f32_to_bf16((float)(range / steps) * factor);
    if (!bits) bits = 1;
    /* No weight is infinite, whatever the code. */
    while ((q.zeros ? q.high - q.low : -q.low) * (double)mx_bf16_to_f32(bits) > (double)FLT_MAX) bits--;
    return mx_bf16_to_f32(bits);
}

INLINE double integer_zero(const integers q, float least, float scale) {
    return q.zeros ? integer_one(-(double)least, (double)scale, q.low, q.low, q.high) : 0;
}

enum { WIDE_PARTS = 8 / WD };

INLINE double sum_wide(const D part[WIDE_PARTS]) {
    double lane[8];
    memcpy(lane, part, sizeof lane);
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

INLINE double integer_error(const float *x, const float *w, int n, const integers q, double scale, double zero) {
    D sum[WIDE_PARTS] = {{0}};
    for (int i = 0; i < n / WD; i++) {
        const D v = load_wide(x + i * WD), d = v - (within(v / scale + zero, q) - zero) * scale;
        sum[i % WIDE_PARTS] += w ? load_wide(w + i * WD) * (d * d) : d * d;
    }
    return sum_wide(sum);
}

INLINE float choose_integer(const float *x, const float *w, int n, const integers q, float least, float most,
                            mx_scale_rule rule) {
    float best = integer_scale(q, least, most, 1);
    if (rule != MX_RULE_SEARCH && rule != MX_RULE_WEIGHTED) return best;
    double smallest = INFINITY;
    for (int i = 0; i <= 10; i++) {
        const float scale = integer_scale(q, least, most, 1 - 0.03f * (float)i);
        const double error = integer_error(x, w, n, q, (double)scale, integer_zero(q, least, scale));
        if (error < smallest) {
            smallest = error;
            best = scale;
        }
    }
    return best;
}

INLINE void code_integers(uint8_t *code, const float *x, const float *w, int n, const integers q, double scale,
                          double zero, mx_row_sums *sums) {
    D square[WIDE_PARTS] = {{0}}, error[WIDE_PARTS] = {{0}}, objective[WIDE_PARTS] = {{0}}, most = {0};
    L beyond = {0};
    int32_t codes[WIDEST];
    for (int i = 0; i < n / WD; i++) {
        typedef int32_t H __attribute__((vector_size(4 * WD)));
        const D v = load_wide(x + i * WD), wanted = v / scale + zero, r = within(wanted, q);
        const D d = v - (r - zero) * scale, distance = pick_wide(d < 0, -d, d);
        const H integer = __builtin_convertvector(r, H);
        memcpy(codes + i * WD, &integer, sizeof integer);
        square[i % WIDE_PARTS] += v * v;
        error[i % WIDE_PARTS] += d * d;
        if (w) objective[i % WIDE_PARTS] += load_wide(w + i * WD) * (d * d);
        most = pick_wide(distance > most, distance, most);
        beyond += (wanted > q.high + 0.5) | (wanted < q.low - 0.5);
    }
    for (int i = 0; i < n; i++) code[i] = (uint8_t)codes[i];
    sums->square += sum_wide(square);
    sums->error += sum_wide(error);
    if (w) sums->objective += sum_wide(objective);
    for (int i = 0; i < WD; i++) {
        sums->saturated -= beyond[i];
        sums->largest = most[i] > sums->largest ? most[i] : sums->largest;
    }
}

INLINE void integer_row(const mx_coder *c, const float *x, const float *weight, int64_t cols, uint8_t *data,
                        uint8_t *scales, int8_t *zeros, mx_row_sums *sums) {
    const bool four = c->form.format == MX_INT4;
    const integers q = {four ? -8 : -128, four ? 7 : 127, c->form.blocks.zeros};
    const int n = c->form.blocks.columns;
    for (int64_t b = 0; b < cols / n; b++) {
        uint8_t code[WIDEST];
        const float *from = x + b * n, *w = weight ? weight + b * n : NULL;
        V down = {0}, up = {0};
        for (int i = 0; i < n; i += W) {
            const V v = load(from + i);
            down = greater((V)((I)v & ((I)v >> 31) & 0x7FFFFFFF), down);
            up = greater((V)((I)v & ~((I)v >> 31)), up);
        }
        const float least = -largest_in(down), most = largest_in(up);
        const bool none = !(most > least);
        const float scale = none ? 1 : choose_integer(from, w, n, q, least, most, c->rule);
        const double zero = none ? 0 : integer_zero(q, least, scale);
        sums->zero_blocks += none;
        code_integers(code, from, w, n, q, (double)scale, zero, sums);
        for (int i = 0; four && i < n; i++) code[i] = (uint8_t)((code[i] + 8) & 15);
        pack(data + b * n * (four ? 4 : 8) / 8, code, n, four ? 4 : 8);
        const uint16_t bits = mx_f32_to_bf16(scale);
        memcpy(scales + 2 * b, &bits, 2);
        if (q.zeros) zeros[b] = (int8_t)zero;
    }
}

/* ---- any row ----------------------------------------------------------------------------------------------------- */

static void bf16_row(const float *x, int64_t cols, uint8_t *data, mx_row_sums *sums) {
    for (int64_t k = 0; k < cols; k++) {
        uint16_t bits = mx_f32_to_bf16(x[k]);
        if ((bits & 0x7FFF) == 0x7F80) { /* rounded to infinity */
            bits--;
            sums->saturated++;
        }
        memcpy(data + 2 * k, &bits, 2);
        const double d = fabs((double)x[k] - (double)mx_bf16_to_f32(bits));
        sums->square += (double)x[k] * (double)x[k];
        sums->error += d * d;
        sums->largest = fmax(sums->largest, d);
        sums->lossy |= d > 0;
    }
}

/* What is common is compiled for its sizes. */
static void code_row(const mx_coder *coder, const float *x, const float *weight, int64_t cols, uint8_t *data,
                     uint8_t *scales, int8_t *zeros, float *post, mx_row_sums *sums) {
    /* Of their own, so that storing bytes cannot change them. */
    const mx_coder own = *coder, *c = &own;
    mx_row_sums t = *sums;
    const element f = element_of(c->form.format);
    const int n = c->form.blocks.columns;
    if (c->form.format == MX_BF16) {
        bf16_row(x, cols, data, sums);
        return;
    }
    const bool plain = !weight && c->rule != MX_RULE_WEIGHTED;
    if (mx_is_integer_format(c->form.format))
        integer_row(c, x, weight, cols, data, scales, zeros, &t);
    else if (!n) {
        if (c->form.post == MX_POST_ROW) *post = channel_scale(c, x, weight, cols, f);
        span_row(x, weight, cols, f, c->form.post == MX_POST_ROW ? *post : c->post, data, &t);
    } else if (c->form.blocks.sides)
        sides_row(c, x, weight, cols, data, scales, &t);
    else if (c->form.blocks.scale == MX_SCALE_E4M3) {
        if (n == 16 && plain && c->form.format == MX_E2M1 && c->rule == MX_RULE_OCP && !c->four_over_six)
            e4m3_row(c, x, NULL, cols, 16, E2M1, MX_RULE_OCP, false, data, scales, &t);
        else if (n == 16 && plain && c->form.format == MX_E2M1)
            e4m3_row(c, x, NULL, cols, 16, E2M1, c->rule, c->four_over_six, data, scales, &t);
        else
            e4m3_row(c, x, weight, cols, n, f, c->rule, c->four_over_six, data, scales, &t);
    } else if (n == 32 && plain && c->form.format == MX_E2M1) {
        if (c->rule == MX_RULE_SEARCH)
            e8m0_row(x, NULL, cols, 32, E2M1, MX_RULE_SEARCH, data, scales, &t);
        else
            e8m0_row(x, NULL, cols, 32, E2M1, c->rule == MX_RULE_OVERFLOW ? MX_RULE_OVERFLOW : MX_RULE_OCP, data,
                     scales, &t);
    } else if (n == 32 && plain && c->form.format == MX_E4M3)
        e8m0_row(x, NULL, cols, 32, E4M3, c->rule, data, scales, &t);
    else
        e8m0_row(x, weight, cols, n, f, c->rule, data, scales, &t);
    t.lossy |= t.largest > 0;
    *sums = t;
}

/* Of any number of columns. */
static float row_largest(const float *x, int64_t cols) {
    V most = {0};
    int64_t k = 0;
    for (; k + W <= cols; k += W) most = greater(magnitude(load(x + k)), most);
    int32_t bits = (int32_t)bits_of_float(largest_in(most));
    for (; k < cols; k++) {
        const int32_t one = (int32_t)(bits_of_float(x[k]) & 0x7FFFFFFF);
        bits = one > bits ? one : bits;
    }
    return float_of_bits((uint32_t)bits);
}

/* At a block's least exponent its largest number has code 4 or 6; each one more halves all codes, as long as that is
 * exact: until one of them is odd, in halves. */
static bool is_e2m1(const float *x, int64_t cols, int columns, int *low, int *high) {
    for (int64_t k = 0; k < cols; k += columns) {
        const float largest = largest_of(x + k, columns);
        if (!(largest > 0)) continue;
        const int e = exponent_of(largest) - 2;
        unsigned halves = 0; /* of all codes */
        for (int i = 0; i < columns; i++) {
            const double q = (double)fabsf(x[k + i]) * wide_power(-e);
            const float v = nearest_one((float)q, E2M1);
            if ((double)v > q || (double)v < q) return false;
            halves |= (unsigned)(2 * v);
        }
        const int most = e + __builtin_ctz(halves);
        *low = most < *low ? most : *low;
        *high = e > *high ? e : *high;
    }
    return true;
}

INLINE void mxfp4_blocks(const uint16_t (*x)[32], int count, mx_scale_rule rule, uint8_t *data, int64_t data_step,
                         uint8_t *scales, int64_t scale_step) {
    for (int b = 0; b < count; b++) {
        float wide[32];
        uint8_t code[32];
        for (int i = 0; i < 32; i++) wide[i] = float_of_bits((uint32_t)x[b][i] << 16);
        if (!isfinite(largest_of(wide, 32))) {
            if (scales) scales[b * scale_step] = 255;
            if (data) memset(data + b * data_step, 0, 16);
            continue;
        }
        const uint8_t scale = e8m0_block(code, wide, NULL, 32, E2M1, rule, NULL);
        if (scales) scales[b * scale_step] = scale;
        if (data) pack(data + b * data_step, code, 32, 4);
    }
}

static void mxfp4(const uint16_t (*x)[32], int count, mx_scale_rule rule, uint8_t *data, int64_t data_step,
                  uint8_t *scales, int64_t scale_step) {
    if (rule == MX_RULE_SEARCH)
        mxfp4_blocks(x, count, MX_RULE_SEARCH, data, data_step, scales, scale_step);
    else if (rule == MX_RULE_OVERFLOW)
        mxfp4_blocks(x, count, MX_RULE_OVERFLOW, data, data_step, scales, scale_step);
    else
        mxfp4_blocks(x, count, MX_RULE_OCP, data, data_step, scales, scale_step);
}

const mx_rows TIER = {code_row, row_largest, is_e2m1, mxfp4};
