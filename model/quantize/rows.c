/* A row of numbers into codes. Written for compilers to make vectors of, and compiled for the instruction sets that
 * there are; sums are taken in MX_LANES parts, products and sums are rounded apart (-ffp-contract=off), so that every
 * one of them gives the same bits.
 *
 * A block's numbers are multiplied by the power of two that makes its largest at least 1 and less than 2^(emax + 1)
 * (block_unit), which is exact and keeps squares in range; below, `a` are magnitudes in such units. */
#include <float.h>
#include <limits.h>
#include <math.h>
#include <string.h>

#include "base/cpu.h"
#include "model/quantize/private.h"

#define INLINE static inline __attribute__((always_inline))

enum { WIDEST = 128 }; /* columns of a block */

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

static element element_of(mx_format format) {
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

/* The element nearest to q >= 0, ties to the even code, at most the largest. Adding a number whose last bit is worth
 * what the element's last bit is worth rounds so. */
INLINE float nearest(float q, const element f) {
    const float base = q > f.normal ? q : f.normal;
    const float magic = float_of_bits((bits_of_float(base) & 0x7F800000) + ((uint32_t)(23 - f.mantissa) << 23));
    const float v = (q + magic) - magic;
    return v < f.largest ? v : f.largest;
}

/* The code, without sign, of an element v >= 0. */
INLINE uint32_t code_of(float v, const element f) {
    const bool below = v < f.normal;
    const float t = v + (below ? f.normal : 0.0f);
    return ((bits_of_float(t) - bits_of_float(f.normal)) >> (23 - f.mantissa)) + (below ? 0u : 1u << f.mantissa);
}

INLINE float value_of_e4m3(int code) {
    return code < 8 ? (float)code * 0x1p-9f : float_of_bits((uint32_t)(code + (120 << 3)) << 20);
}

/* Of x > 0; never 0, for a block that is not zeros. */
INLINE int e4m3_of(float x) {
    const int code = (int)code_of(nearest(x < 1000.0f ? x : 1000.0f, E4M3), E4M3);
    return code ? code : 1;
}

/* ---- blocks of floats -------------------------------------------------------------------------------------------- */

INLINE float largest_of(const float *x, int n) {
    int32_t most = 0;
    for (int i = 0; i < n; i++) {
        const int32_t bits = (int32_t)(bits_of_float(x[i]) & 0x7FFFFFFF);
        most = bits > most ? bits : most;
    }
    return float_of_bits((uint32_t)most);
}

INLINE float sum_lanes(const float lane[MX_LANES]) {
    float half[8], quarter[4];
    for (int j = 0; j < 8; j++) half[j] = lane[j] + lane[j + 8];
    for (int j = 0; j < 4; j++) quarter[j] = half[j] + half[j + 4];
    return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

/* How a block's elements are scaled, in its units. */
typedef struct scaling {
    float per;   /* elements are the nearest to a / per; with `divide` false to a * per */
    float scale; /* and worth (element * scale) * post, each product rounded to fp32 as the kernels do */
    float post;
} scaling;

INLINE float block_error(const float *a, const float *w, int n, const element f, const scaling s, bool divide) {
    float lane[MX_LANES] = {0};
    for (int i = 0; i < n; i += MX_LANES)
        for (int j = 0; j < MX_LANES; j++) {
            const float q = divide ? a[i + j] / s.per : a[i + j] * s.per;
            const float d = a[i + j] - nearest(q, f) * s.scale * s.post;
            lane[j] += w ? w[i + j] * (d * d) : d * d;
        }
    return sum_lanes(lane);
}

/* One code of `bits` bits after the other; n a multiple of 16. */
INLINE void pack(uint8_t *out, const uint8_t *code, int n, int bits) {
    if (bits == 8) {
        memcpy(out, code, (size_t)n);
    } else if (bits == 4) {
        for (int i = 0; i < n / 2; i++) out[i] = (uint8_t)(code[2 * i] | code[2 * i + 1] << 4);
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

/* Codes of a block and what is lost. `unit`: exponent of the units. */
INLINE void code_block(uint8_t *code, const float *x, const float *a, const float *w, int n, const element f,
                       const scaling s, bool divide, int unit, mx_row_sums *sums) {
    float square[MX_LANES] = {0}, error[MX_LANES] = {0}, objective[MX_LANES] = {0};
    float most[MX_LANES] = {0};
    int32_t beyond[MX_LANES] = {0};
    for (int i = 0; i < n; i += MX_LANES)
        for (int j = 0; j < MX_LANES; j++) {
            const float q = divide ? a[i + j] / s.per : a[i + j] * s.per, v = nearest(q, f);
            const float d = fabsf(a[i + j] - v * s.scale * s.post);
            square[j] += a[i + j] * a[i + j];
            error[j] += d * d;
            if (w) objective[j] += w[i + j] * (d * d);
            most[j] = d > most[j] ? d : most[j];
            beyond[j] += q > f.largest;
            code[i + j] = (uint8_t)(code_of(v, f) | bits_of_float(x[i + j]) >> 31 << (f.bits - 1));
        }
    const double squared = wide_power(2 * unit);
    float largest = 0;
    for (int j = 0; j < MX_LANES; j++) {
        sums->square[j] += squared * (double)square[j];
        sums->error[j] += squared * (double)error[j];
        sums->objective[j] += squared * (double)(w ? objective[j] : error[j]);
        sums->saturated += beyond[j];
        largest = most[j] > largest ? most[j] : largest;
    }
    sums->largest = fmax(sums->largest, (double)largest * wide_power(unit));
    sums->lossy |= largest > 0;
    /* Units may have lost what is far below the largest: a number that is not 0 then, but codes as 0. */
    for (int i = 0; unit > 0 && i < n; i++) sums->lossy |= a[i] <= 0 && fabsf(x[i]) > 0;
}

INLINE int exponent_of(float x) { /* floor(log2 x), x > 0 */
    const int e = (int)(bits_of_float(x) >> 23);
    return e ? e - 127 : (int)(31 - __builtin_clz(bits_of_float(x))) - 149;
}

/* Would q round beyond the largest element, had the code more exponents? In the middle to the even one, which is the
 * one beyond but for E4M3, whose largest has an even code. */
INLINE bool overflows(float q, const element f) {
    const float step = power(f.emax - f.mantissa), middle = f.largest + step / 2;
    return f.mantissa == 3 && f.emax == 8 ? q > middle : q >= middle;
}

INLINE void to_units(float *a, const float *x, int n, int unit) {
    /* In two steps where one number cannot say the power. */
    const int half = unit < -120 ? -120 : unit;
    const float first = power(-half), second = power(half - unit);
    for (int i = 0; i < n; i++) a[i] = fabsf(x[i]) * first * second;
}

/* ---- E8M0 -------------------------------------------------------------------------------------------------------- */

/* May the scale be 2^e? Not where the largest would become infinite. */
INLINE bool is_finite(float largest, int e, const element f, int unit) {
    if (e < -127 || e > 127) return false;
    const float v = nearest(largest * power(unit - e < 126 ? unit - e : 126), f);
    return (double)v * wide_power(e) <= (double)FLT_MAX;
}

/* Chooses the exponent of a block's scale; `a` are its numbers over 2^unit, unit being OCP's exponent. */
INLINE int choose_e8m0(const float *a, const float *w, int n, const element f, int unit, mx_scale_rule rule) {
    const float largest = largest_of(a, n);
    if (rule == MX_RULE_OVERFLOW)
        return overflows(largest, f) && is_finite(largest, unit + 1, f, unit) ? unit + 1 : unit;
    if (rule != MX_RULE_SEARCH && rule != MX_RULE_WEIGHTED) return unit;
    static const int steps[] = {0, 1, -1, 2, -2};
    int best = unit;
    float least = INFINITY;
    for (int i = 0; i < 5; i++) {
        const int e = unit + steps[i];
        if (!is_finite(largest, e, f, unit)) continue;
        const scaling s = {power(-steps[i]), power(steps[i]), 1};
        const float error = block_error(a, w, n, f, s, false);
        if (error < least) {
            least = error;
            best = e;
        }
    }
    return best;
}

INLINE uint8_t e8m0_block(uint8_t *code, const float *x, const float *w, int n, const element f, mx_scale_rule rule,
                          mx_row_sums *sums) {
    float a[WIDEST];
    const float largest = largest_of(x, n);
    int unit = largest > 0 ? exponent_of(largest) - f.emax : 0;
    if (unit < -127) unit = -127;
    to_units(a, x, n, unit);
    const int e = largest > 0 ? choose_e8m0(a, w, n, f, unit, rule) : 0;
    sums->zero_blocks += !(largest > 0);
    const scaling s = {power(unit - e), power(e - unit), 1};
    code_block(code, x, a, w, n, f, s, false, unit, sums);
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
        mx_row_sums apart = {0};
        for (int i = 0; i < n; i++) {
            const bool negative = signbit(x[b * n + i]);
            part[0][i] = negative ? 0 : x[b * n + i];
            part[1][i] = negative ? x[b * n + i] : 0;
        }
        for (int side = 0; side < 2; side++)
            scales[2 * b + side] =
                e8m0_block(code[side], part[side], weight ? weight + b * n : NULL, n, f, c->rule, &apart);
        for (int i = 0; i < n; i++)
            if (signbit(x[b * n + i])) code[0][i] = code[1][i];
        pack(data + b * n * f.bits / 8, code[0], n, f.bits);
        for (int j = 0; j < MX_LANES; j++) {
            sums->square[j] += apart.square[j];
            sums->error[j] += apart.error[j];
            sums->objective[j] += apart.objective[j];
        }
        sums->largest = fmax(sums->largest, apart.largest);
        sums->saturated += apart.saturated;
        sums->zero_blocks += apart.zero_blocks == 2;
        sums->lossy |= apart.lossy;
    }
}

/* ---- E4M3 -------------------------------------------------------------------------------------------------------- */

/* As compressed-tensors has it, the scale that elements are divided by is the stored one over `gain`. */
INLINE scaling e4m3_scaling(const mx_coder *c, int code, int unit) {
    const float value = value_of_e4m3(code);
    return (scaling){(float)((double)(value / c->gain) * wide_power(-unit)), value,
                     (float)((double)c->post * wide_power(-unit))};
}

INLINE int try_e4m3(const mx_coder *c, const float *a, const float *w, int n, const element f, int unit, int code,
                    int best, float *least) {
    const float error = block_error(a, w, n, f, e4m3_scaling(c, code, unit), true);
    if (error < *least) {
        *least = error;
        return code;
    }
    return best;
}

INLINE int choose_e4m3(const mx_coder *c, const float *a, const float *w, int n, const element f, int unit,
                       float largest, mx_scale_rule rule, bool four_over_six) {
    enum { MOST = 126 };
    if (c->powers) {
        return e4m3_of(power(exponent_of(largest) - f.emax - exponent_of(c->post)));
    }
    const int ocp = e4m3_of(c->gain * (largest / f.largest));
    float least = INFINITY;
    int best = ocp;
    if (rule == MX_RULE_OVERFLOW) {
        const scaling s = e4m3_scaling(c, ocp, 0);
        if (ocp < MOST && overflows(largest / s.per, f)) best++;
    }
    if (rule == MX_RULE_SEARCH || rule == MX_RULE_WEIGHTED || four_over_six)
        best = try_e4m3(c, a, w, n, f, unit, best, best, &least);
    if (rule == MX_RULE_SEARCH || rule == MX_RULE_WEIGHTED)
        for (int code = ocp - 4 > 1 ? ocp - 4 : 1; code <= ocp + 7 && code <= MOST; code++)
            if (code != ocp) best = try_e4m3(c, a, w, n, f, unit, code, best, &least);
    if (four_over_six) best = try_e4m3(c, a, w, n, f, unit, e4m3_of(c->gain * (largest / 4.0f)), best, &least);
    return best;
}

INLINE void e4m3_row(const mx_coder *c, const float *x, const float *weight, int64_t cols, int n, const element f,
                     mx_scale_rule rule, bool four_over_six, uint8_t *data, uint8_t *scales, mx_row_sums *sums) {
    for (int64_t b = 0; b < cols / n; b++) {
        uint8_t code[WIDEST];
        float a[WIDEST];
        const float *from = x + b * n, *w = weight ? weight + b * n : NULL;
        const float largest = largest_of(from, n);
        /* Not so small that the tensor's scale could not be said in such units. */
        const int floor = exponent_of(c->post) - 60;
        int unit = largest > 0 ? exponent_of(largest) - f.emax : 0;
        if (unit < -127) unit = -127;
        if (unit < floor) unit = floor;
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

/* Codes with one scale; data NULL: the objective alone. */
INLINE void span_row(const float *x, const float *weight, int64_t cols, const element f, float post, uint8_t *data,
                     mx_row_sums *sums) {
    int unit = exponent_of(post);
    for (int64_t k = 0; k < cols; k += SPAN) {
        uint8_t code[SPAN];
        float a[SPAN];
        to_units(a, x + k, SPAN, unit);
        const float in_units = (float)((double)post * wide_power(-unit));
        code_block(code, x + k, a, weight ? weight + k : NULL, SPAN, f, (scaling){in_units, 1, in_units}, true, unit,
                   sums);
        if (data) pack(data + k * f.bits / 8, code, SPAN, f.bits);
    }
}

static double lanes(const double lane[MX_LANES]) {
    double sum = 0;
    for (int j = 0; j < MX_LANES; j++) sum += lane[j];
    return sum;
}

/* A channel's scale, for the largest of its numbers: never so small that it were not exact. */
INLINE float channel_scale(const mx_coder *c, const float *x, const float *weight, int64_t cols, const element f) {
    const float largest = largest_of(x, (int)cols);
    if (!(largest > 0)) return 1;
    const float ocp = (largest > 0x1p-100f ? largest : 0x1p-100f) / f.largest;
    const float whole = ocp * f.largest > FLT_MAX ? nextafterf(ocp, 0) : ocp;
    if (c->rule != MX_RULE_SEARCH && c->rule != MX_RULE_WEIGHTED) return whole;
    float best = whole;
    double least = INFINITY;
    for (int i = 0; i <= 10; i++) {
        const float post = whole * (1 - 0.03f * (float)i);
        mx_row_sums sums = {0};
        span_row(x, weight, cols, f, post, NULL, &sums);
        const double error = lanes(sums.objective);
        if (error < least) {
            least = error;
            best = post;
        }
    }
    return best;
}

/* ---- integers ---------------------------------------------------------------------------------------------------- */

/* In double: x / scale + zero, to nearest, ties to even, within low..high. */
INLINE double integer(double x, double scale, double zero, double low, double high) {
    const double magic = 0x1.8p52;
    double q = x / scale + zero;
    q = q < low ? low : q > high ? high : q;
    return (q + magic) - magic;
}

typedef struct integers {
    double low, high; /* codes */
    bool zeros;
} integers;

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
    return q.zeros ? integer(-(double)least, (double)scale, q.low, q.low, q.high) : 0;
}

INLINE double integer_error(const float *x, const float *w, int n, const integers q, float scale, double zero) {
    double lane[8] = {0};
    for (int i = 0; i < n; i += 8)
        for (int j = 0; j < 8; j++) {
            const double d = (double)x[i + j] -
                             (integer((double)x[i + j], (double)scale, zero, q.low, q.high) - zero) * (double)scale;
            lane[j] += w ? (double)w[i + j] * (d * d) : d * d;
        }
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

INLINE float choose_integer(const float *x, const float *w, int n, const integers q, float least, float most,
                            mx_scale_rule rule) {
    float best = integer_scale(q, least, most, 1);
    if (rule != MX_RULE_SEARCH && rule != MX_RULE_WEIGHTED) return best;
    double smallest = INFINITY;
    for (int i = 0; i <= 10; i++) {
        const float scale = integer_scale(q, least, most, 1 - 0.03f * (float)i);
        const double error = integer_error(x, w, n, q, scale, integer_zero(q, least, scale));
        if (error < smallest) {
            smallest = error;
            best = scale;
        }
    }
    return best;
}

INLINE void code_integers(uint8_t *code, const float *x, const float *w, int n, const integers q, float scale,
                          double zero, mx_row_sums *sums) {
    double most = 0;
    for (int i = 0; i < n; i += MX_LANES)
        for (int j = 0; j < MX_LANES; j++) {
            const double v = (double)x[i + j], r = integer(v, (double)scale, zero, q.low, q.high);
            const double d = fabs(v - (r - zero) * (double)scale), wanted = v / (double)scale + zero;
            sums->square[j] += v * v;
            sums->error[j] += d * d;
            sums->objective[j] += w ? (double)w[i + j] * (d * d) : d * d;
            most = d > most ? d : most;
            sums->saturated += wanted > q.high + 0.5 || wanted < q.low - 0.5;
            code[i + j] = (uint8_t)(int)r;
        }
    sums->largest = fmax(sums->largest, most);
    sums->lossy |= most > 0;
}

INLINE void integer_row(const mx_coder *c, const float *x, const float *weight, int64_t cols, uint8_t *data,
                        uint8_t *scales, int8_t *zeros, mx_row_sums *sums) {
    const bool four = c->form.format == MX_INT4;
    const integers q = {four ? -8 : -128, four ? 7 : 127, c->form.blocks.zeros};
    const int n = c->form.blocks.columns;
    for (int64_t b = 0; b < cols / n; b++) {
        uint8_t code[WIDEST];
        const float *from = x + b * n, *w = weight ? weight + b * n : NULL;
        float least = 0, most = 0;
        for (int i = 0; i < n; i++) {
            least = from[i] < least ? from[i] : least;
            most = from[i] > most ? from[i] : most;
        }
        const bool none = !(most > least);
        const float scale = none ? 1 : choose_integer(from, w, n, q, least, most, c->rule);
        const double zero = none ? 0 : integer_zero(q, least, scale);
        sums->zero_blocks += none;
        code_integers(code, from, w, n, q, scale, zero, sums);
        for (int i = 0; four && i < n; i++) code[i] = (uint8_t)((code[i] + 8) & 15);
        pack(data + b * n * (four ? 4 : 8) / 8, code, n, four ? 4 : 8);
        mx_scale_put(MX_SCALE_BF16, scales + 2 * b, scale);
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
        sums->square[k % MX_LANES] += (double)x[k] * (double)x[k];
        sums->error[k % MX_LANES] += d * d;
        sums->largest = fmax(sums->largest, d);
        sums->lossy |= d > 0;
    }
}

/* What is common is compiled for its sizes. */
INLINE void code_row(const mx_coder *c, const float *x, const float *weight, int64_t cols, uint8_t *data,
                     uint8_t *scales, int8_t *zeros, float *post, mx_row_sums *sums) {
    const element f = element_of(c->form.format);
    const int n = c->form.blocks.columns;
    const bool plain = !weight && c->rule != MX_RULE_WEIGHTED;
    if (mx_is_integer_format(c->form.format))
        integer_row(c, x, weight, cols, data, scales, zeros, sums);
    else if (!n) {
        if (c->form.post == MX_POST_ROW) *post = channel_scale(c, x, weight, cols, f);
        span_row(x, weight, cols, f, c->form.post == MX_POST_ROW ? *post : c->post, data, sums);
    } else if (c->form.blocks.sides)
        sides_row(c, x, weight, cols, data, scales, sums);
    else if (c->form.blocks.scale == MX_SCALE_E4M3) {
        if (n == 16 && plain && c->form.format == MX_E2M1 && c->rule == MX_RULE_OCP && !c->four_over_six)
            e4m3_row(c, x, NULL, cols, 16, E2M1, MX_RULE_OCP, false, data, scales, sums);
        else if (n == 16 && c->form.format == MX_E2M1)
            e4m3_row(c, x, weight, cols, 16, E2M1, c->rule, c->four_over_six, data, scales, sums);
        else
            e4m3_row(c, x, weight, cols, n, f, c->rule, c->four_over_six, data, scales, sums);
    } else if (n == 32 && plain && c->form.format == MX_E2M1) {
        if (c->rule == MX_RULE_SEARCH)
            e8m0_row(x, NULL, cols, 32, E2M1, MX_RULE_SEARCH, data, scales, sums);
        else
            e8m0_row(x, NULL, cols, 32, E2M1, c->rule == MX_RULE_OVERFLOW ? MX_RULE_OVERFLOW : MX_RULE_OCP, data,
                     scales, sums);
    } else if (n == 32 && c->form.format == MX_E4M3)
        e8m0_row(x, weight, cols, 32, E4M3, c->rule, data, scales, sums);
    else
        e8m0_row(x, weight, cols, n, f, c->rule, data, scales, sums);
}

#define TIER(name)                                                                                                     \
    static void row_##name(const mx_coder *c, const float *x, const float *weight, int64_t cols, uint8_t *data,        \
                           uint8_t *scales, int8_t *zeros, float *post, mx_row_sums *sums) {                           \
        code_row(c, x, weight, cols, data, scales, zeros, post, sums);                                                 \
    }
TIER(any)
#if defined(__x86_64__)
__attribute__((target("avx2"))) TIER(avx2) __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))) TIER(avx512)
#endif

    void mx_code_row(const mx_coder *c, const float *x, const float *weight, int64_t cols, uint8_t *data,
                     uint8_t *scales, int8_t *zeros, float *post, mx_row_sums *sums) {
    if (c->form.format == MX_BF16) {
        bf16_row(x, cols, data, sums);
        return;
    }
#if defined(__x86_64__)
    if (c->cpu & MX_CPU_AVX512) {
        row_avx512(c, x, weight, cols, data, scales, zeros, post, sums);
        return;
    }
    if (c->cpu & MX_CPU_AVX2) {
        row_avx2(c, x, weight, cols, data, scales, zeros, post, sums);
        return;
    }
#endif
    row_any(c, x, weight, cols, data, scales, zeros, post, sums);
}

float mx_row_largest(const float *x, int64_t cols, bool *finite) {
    int32_t most = 0;
    for (int64_t k = 0; k < cols; k++) {
        const int32_t bits = (int32_t)(bits_of_float(x[k]) & 0x7FFFFFFF);
        most = bits > most ? bits : most;
    }
    *finite = most < 0x7F800000;
    return float_of_bits((uint32_t)most);
}

/* The exponents with which a block is exact: at the smallest the largest has code 4 or 6, at the others less. */
bool mx_row_is_e2m1(const float *x, int64_t cols, int columns, int *low, int *high) {
    for (int64_t k = 0; k < cols; k += columns) {
        const float largest = largest_of(x + k, columns);
        if (!(largest > 0)) continue;
        const int e = exponent_of(largest) - 2;
        for (int i = 0; i < columns; i++) {
            const double q = (double)fabsf(x[k + i]) * wide_power(-e);
            const float v = nearest((float)q, E2M1);
            if ((double)v > q || (double)v < q) return false;
        }
        *low = e < *low ? e : *low;
        *high = e > *high ? e : *high;
    }
    return true;
}
