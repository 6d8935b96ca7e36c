#include "kernels/mx.h"

#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "kernels/scalar/scalar.h"

/* ---- elements --------------------------------------------------------------------------------------------------- */

/* A float of EXPONENT and MANTISSA bits, bias 2^(EXPONENT - 1) - 1, subnormals where the exponent is 0 (OCP MX
 * v1.0, 5.3): an integer times 2^(exponent - 1) times the smallest subnormal, `least`. */
#define FLOAT_SIGN(c, e, m)     ((c) >> ((e) + (m)) & 1 ? -1.0f : 1.0f)
#define FLOAT_EXPONENT(c, e, m) ((c) >> (m) & ((1 << (e)) - 1))
#define FLOAT_INTEGER(c, e, m)  (((c) & ((1 << (m)) - 1)) + (FLOAT_EXPONENT(c, e, m) ? 1 << (m) : 0))
#define FLOAT_POWER(c, e, m)    (1u << (FLOAT_EXPONENT(c, e, m) ? FLOAT_EXPONENT(c, e, m) - 1 : 0))
#define FLOAT(c, e, m, least)                                                                                          \
    (FLOAT_SIGN(c, e, m) * (float)FLOAT_INTEGER(c, e, m) * (float)FLOAT_POWER(c, e, m) * (least))

#define E2M1(c) FLOAT(c, 2, 1, 0x1p-1f)
#define E2M3(c) FLOAT(c, 2, 3, 0x1p-3f)
#define E3M2(c) FLOAT(c, 3, 2, 0x1p-4f)
#define E4M3(c) (((c)&0x7f) == 0x7f ? NAN : FLOAT(c, 4, 3, 0x1p-9f))
#define E5M2(c) (((c)&0x7c) != 0x7c ? FLOAT(c, 5, 2, 0x1p-16f) : (c)&3 ? NAN : FLOAT_SIGN(c, 5, 2) * INFINITY)

#define VALUES_4(f, c)   f(c), f((c) + 1), f((c) + 2), f((c) + 3)
#define VALUES_16(f, c)  VALUES_4(f, c), VALUES_4(f, (c) + 4), VALUES_4(f, (c) + 8), VALUES_4(f, (c) + 12)
#define VALUES_64(f, c)  VALUES_16(f, c), VALUES_16(f, (c) + 16), VALUES_16(f, (c) + 32), VALUES_16(f, (c) + 48)
#define VALUES_256(f, c) VALUES_64(f, c), VALUES_64(f, (c) + 64), VALUES_64(f, (c) + 128), VALUES_64(f, (c) + 192)

static const float e2m1[16] = {VALUES_16(E2M1, 0)};
static const float e2m3[64] = {VALUES_64(E2M3, 0)};
static const float e3m2[64] = {VALUES_64(E3M2, 0)};
const float mx_e4m3_values[256] = {VALUES_256(E4M3, 0)};
static const float e5m2[256] = {VALUES_256(E5M2, 0)};

int mx_element_bits(mx_format format) {
    return format == MX_E2M1 || format == MX_INT4 ? 4 : format == MX_E2M3 || format == MX_E3M2 ? 6 : 8;
}

float mx_element_value(mx_format format, unsigned code) {
    switch (format) {
    case MX_E2M1:
        return e2m1[code & 15];
    case MX_E2M3:
        return e2m3[code & 63];
    case MX_E3M2:
        return e3m2[code & 63];
    case MX_E4M3:
        return mx_e4m3_values[code & 255];
    case MX_E5M2:
        return e5m2[code & 255];
    case MX_INT8:
        return (float)((int)(code & 127) - (int)(code & 128));
    case MX_INT4:
        return (float)((int)(code & 15) - 8);
    default:
        return NAN;
    }
}

/* Of the floats: bits of the mantissa, exponent of the smallest normal number, and the codes, without sign, of the
 * largest number and of NaN (of infinite ones no encoder makes any). */
typedef struct float_form {
    int mantissa, emin, emax;
    unsigned most, nan;
    float largest;
} float_form;

static const float_form forms[MX_FORMATS] = {
    [MX_E2M1] = {1, 0, 2, 0x7, 0x7, 6.0f},          [MX_E2M3] = {3, 0, 2, 0x1f, 0x1f, 7.5f},
    [MX_E3M2] = {2, -2, 4, 0x1f, 0x1f, 28.0f},      [MX_E4M3] = {3, -6, 8, 0x7e, 0x7f, 448.0f},
    [MX_E5M2] = {2, -14, 15, 0x7b, 0x7e, 57344.0f},
};

float mx_element_largest(mx_format format) {
    return format == MX_INT8 ? 127.0f : format == MX_INT4 ? 7.0f : forms[format].largest;
}

int mx_element_emax(mx_format format) {
    return format == MX_INT8 ? 6 : format == MX_INT4 ? 2 : forms[format].emax;
}

/* 2^n, -1022 <= n <= 1023. */
static double power_of_two(int n) {
    const uint64_t bits = (uint64_t)(n + 1023) << 52;
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* floor(log2 x), x > 0 and normal; something below -1000 for what is not. */
static int exponent_of(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (int)(bits >> 52 & 2047) - 1023;
}

/* To nearest, ties to even, |x| < 2^31: doubles from 2^52 on are 1 apart. */
static int32_t nearest_integer(double x) {
    const double rounded = (x + 0x1.8p52) - 0x1.8p52;
    return (int32_t)rounded;
}

static unsigned float_code(mx_format format, double x) {
    const float_form *f = &forms[format];
    const unsigned sign = signbit(x) ? 1u << (mx_element_bits(format) - 1) : 0;
    const double magnitude = fabs(x);
    if (isnan(x)) return sign | f->nan;
    if (magnitude >= (double)f->largest) return sign | f->most;
    int e = exponent_of(magnitude);
    if (e < f->emin) e = f->emin;
    /* Steps of 2^(e - mantissa); one too many for this exponent is the first of the next. */
    const unsigned steps = (unsigned)nearest_integer(magnitude * power_of_two(f->mantissa - e));
    return sign | (((unsigned)(e - f->emin) << f->mantissa) + steps);
}

static unsigned integer_code(mx_format format, double x) {
    const int most = format == MX_INT8 ? 127 : 7, least = -most - 1;
    const int q = !(x < most) ? most : x < least ? least : nearest_integer(x); /* NaN: the largest */
    return format == MX_INT8 ? (uint8_t)q : (unsigned)(q + 8);
}

static unsigned code_of(mx_format format, double x) {
    return mx_is_integer_format(format) ? integer_code(format, x) : float_code(format, x);
}

unsigned mx_element_code(mx_format format, float x) {
    return code_of(format, x);
}

/* Six bits lie in one byte or in two. */
unsigned mx_element_get(mx_format format, const uint8_t *row, int64_t k) {
    const int bits = mx_element_bits(format), shift = (int)(k * bits % 8);
    const uint8_t *at = row + k * bits / 8;
    unsigned v = at[0];
    if (shift + bits > 8) v |= (unsigned)at[1] << 8;
    return v >> shift & ((1u << bits) - 1);
}

void mx_element_put(mx_format format, uint8_t *row, int64_t k, unsigned code) {
    const int bits = mx_element_bits(format), shift = (int)(k * bits % 8);
    const unsigned mask = ((1u << bits) - 1) << shift, v = code << shift & mask;
    uint8_t *at = row + k * bits / 8;
    at[0] = (uint8_t)((at[0] & ~mask) | v);
    if (shift + bits > 8) at[1] = (uint8_t)((at[1] & ~(mask >> 8)) | v >> 8);
}

/* ---- scales ----------------------------------------------------------------------------------------------------- */

float mx_scale_value(mx_scale_type type, const uint8_t *at) {
    switch (type) {
    case MX_SCALE_E8M0:
        return *at == 255 ? NAN : (float)power_of_two(*at - 127);
    case MX_SCALE_E4M3:
        return mx_e4m3_values[*at];
    case MX_SCALE_BF16:
        return mx_bf16_to_f32(mx_load_u16(at));
    default:
        return 1.0f;
    }
}

unsigned mx_scale_code(mx_scale_type type, float x) {
    int e;
    uint16_t half;
    switch (type) {
    case MX_SCALE_E8M0:
        e = exponent_of(x);
        return (unsigned)(e < -127 ? 0 : e > 127 ? 254 : e + 127);
    case MX_SCALE_E4M3:
        return float_code(MX_E4M3, x);
    case MX_SCALE_BF16:
        half = mx_f32_to_bf16(x);
        return half == 0x7f80 ? 0x7f7f : half;
    default:
        return 0;
    }
}

void mx_scale_put(mx_scale_type type, uint8_t *at, float x) {
    const unsigned code = mx_scale_code(type, x);
    for (int i = 0; i < mx_scale_bytes(type); i++) at[i] = (uint8_t)(code >> 8 * i);
}

/* ---- in BF16 ---------------------------------------------------------------------------------------------------- */

/* Of the elements: significant bits at most, the smallest that is not 0, the largest. */
static const struct {
    int bits;
    double least, most;
} reach[MX_FORMATS] = {
    [MX_E2M1] = {2, 0.5, 6},      [MX_E2M3] = {4, 0.125, 7.5},     [MX_E3M2] = {3, 0.0625, 28},
    [MX_E4M3] = {4, 0x1p-9, 448}, [MX_E5M2] = {3, 0x1p-16, 57344}, [MX_INT8] = {7, 1, 128},
    [MX_INT4] = {3, 1, 8},
};

static const double bf16_least = 0x1p-126, bf16_most = 0x1.FEp127;

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

bool mx_scale_bf16_safe(const mx_matrix *w, const uint8_t *at) {
    const float scale = fabsf(mx_scale_value(w->blocks.scale, at));
    const uint32_t fraction = bits_of(scale) & 0x7fffff;
    const int scale_bits = fraction ? 24 - __builtin_ctz(fraction) : 0; /* a power of two adds none */
    /* An int8 taken off: -255 .. 255. */
    const int bits = w->blocks.zeros ? 8 : reach[w->format].bits;
    const double most = w->blocks.zeros ? 255 : reach[w->format].most;
    return bits + scale_bits <= 8 && reach[w->format].least * (double)scale >= bf16_least &&
           most * (double)scale <= bf16_most;
}

static bool is_bf16(double x) {
    const double size = fabs(x);
    return size == 0.0 ||
           (size >= bf16_least && size <= bf16_most && (double)(float)x == x && !(bits_of((float)x) & 0xffff));
}

/* The elements of a block of row n, its first scale at `at`. */
static bool block_is_bf16(const mx_matrix *w, int64_t n, int64_t block, const uint8_t *at) {
    const int columns = w->blocks.columns;
    const double zero = w->blocks.zeros ? (double)w->zeros[n * w->zero_stride + block] : 0.0;
    const double positive = (double)mx_scale_value(w->blocks.scale, at);
    const double negative =
        w->blocks.sides ? (double)mx_scale_value(w->blocks.scale, at + mx_scale_bytes(w->blocks.scale)) : positive;
    for (int64_t k = block * columns; k < (block + 1) * columns; k++) {
        const unsigned code = mx_element_get(w->format, w->data + n * w->row_stride, k);
        const double x = (double)mx_element_value(w->format, code) - zero;
        if (!is_bf16(x * (signbit(x) ? negative : positive))) return false;
    }
    return true;
}

bool mx_rows_bf16_safe(const mx_matrix *from, int64_t n0, int64_t n1) {
    mx_matrix w = *from;
    if (w.format == MX_MXFP4) {
        w.format = MX_E2M1;
        w.blocks = (mx_blocks){.columns = 32, .scale = MX_SCALE_E8M0};
    }
    if (!mx_is_block_format(w.format) || !w.blocks.columns) return true; /* E4M3 and E5M2 are numbers of BF16 */
    const int bytes = mx_scale_bytes(w.blocks.scale), sides = w.blocks.sides ? 2 : 1;
    bool safe[256]; /* by the scale's byte */
    for (int i = 0; i < 256 && bytes == 1; i++) safe[i] = mx_scale_bf16_safe(&w, &(uint8_t){(uint8_t)i});
    for (int64_t n = n0; n < n1; n++)
        for (int64_t block = 0; block < w.cols / w.blocks.columns; block++) {
            const uint8_t *at = w.scales + n * w.scale_stride + block * bytes * sides;
            bool fine = true;
            for (int i = 0; i < sides; i++) fine &= bytes == 1 ? safe[at[i]] : mx_scale_bf16_safe(&w, at + i * bytes);
            if (!fine && !block_is_bf16(&w, n, block, at)) return false;
        }
    return true;
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */

/* 32 elements of which the first begins a byte. */
static void widen_elements(float out[32], mx_format format, const uint8_t *at) {
    switch (format) {
    case MX_E2M1:
        for (int i = 0; i < 16; i++) {
            out[2 * i] = e2m1[at[i] & 15];
            out[2 * i + 1] = e2m1[at[i] >> 4];
        }
        break;
    case MX_INT4:
        for (int i = 0; i < 16; i++) {
            out[2 * i] = (float)((at[i] & 15) - 8);
            out[2 * i + 1] = (float)((at[i] >> 4) - 8);
        }
        break;
    case MX_E2M3:
    case MX_E3M2:
        for (int i = 0; i < 8; i++) {
            const float *values = format == MX_E2M3 ? e2m3 : e3m2;
            const unsigned four = at[3 * i] | (unsigned)at[3 * i + 1] << 8 | (unsigned)at[3 * i + 2] << 16;
            for (int j = 0; j < 4; j++) out[4 * i + j] = values[four >> 6 * j & 63];
        }
        break;
    case MX_INT8:
        for (int i = 0; i < 32; i++) out[i] = (float)(int8_t)at[i];
        break;
    default:
        for (int i = 0; i < 32; i++) out[i] = (format == MX_E4M3 ? mx_e4m3_values : e5m2)[at[i]];
    }
}

/* x [count] within one block of row n, whose number is `block`: from elements to weights. */
static void scale_elements(float *x, int count, const mx_matrix *w, int64_t n, int64_t block) {
    const mx_scale_type type = w->blocks.scale;
    const int bytes = mx_scale_bytes(type), sides = w->blocks.sides ? 2 : 1;
    const uint8_t *at = w->scales + n * w->scale_stride + block * bytes * sides;
    const float positive = mx_scale_value(type, at),
                negative = sides == 2 ? mx_scale_value(type, at + bytes) : positive;
    const float zero = w->blocks.zeros ? (float)w->zeros[n * w->zero_stride + block] : 0.0f;
    if (w->blocks.zeros) {
        for (int i = 0; i < count; i++) x[i] -= zero;
    }
    for (int i = 0; i < count; i++) x[i] *= sides == 2 && signbit(x[i]) ? negative : positive;
}

static void widen_blocks(float out[32], const mx_matrix *w, int64_t n, int64_t k0) {
    const int columns = w->blocks.columns, step = columns && columns < 32 ? columns : 32;
    widen_elements(out, w->format, w->data + n * w->row_stride + mx_columns_bytes(w->format, k0));
    if (!columns) return;
    for (int i = 0; i < 32; i += step) scale_elements(out + i, step, w, n, (k0 + i) / columns);
}

void mx_matrix_widen_32(float out[32], const mx_matrix *w, int64_t n, int64_t k0) {
    const uint8_t *row = w->data + n * w->row_stride;
    if (mx_is_block_format(w->format)) {
        widen_blocks(out, w, n, k0);
    } else if (w->format == MX_MXFP4) {
        mx_mxfp4_widen(out, row + k0 / 2, w->scales[n * w->scale_stride + k0 / 32]);
    } else if (w->format == MX_MXFP4_GGML) {
        mx_mxfp4_ggml_widen(out, row + k0 / 32 * MX_MXFP4_GGML_BYTES);
    } else {
        mx_scalar_widen(out, row + mx_columns_bytes(w->format, k0), w->format, 32);
    }
}

void mx_matrix_widen_row(float *out, const mx_matrix *w, int64_t n) {
    if (w->format == MX_F32 || w->format == MX_F16 || w->format == MX_BF16) { /* of any number of columns */
        mx_scalar_widen(out, w->data + n * w->row_stride, w->format, w->cols);
    } else {
        for (int64_t k = 0; k < w->cols; k += 32) mx_matrix_widen_32(out + k, w, n, k);
    }
    if (w->post) {
        const float post = w->post[n * w->post_step];
        for (int64_t k = 0; k < w->cols; k++) out[k] *= post;
    }
}

void mx_block_encode(mx_format format, uint8_t *row, int64_t k0, int columns, const float *x, float scale,
                     float negative_scale, int zero) {
    const unsigned nothing = code_of(format, zero);
    for (int i = 0; i < columns; i++) {
        const double by = signbit(x[i]) ? negative_scale : scale;
        mx_element_put(format, row, k0 + i, by == 0.0 ? nothing : code_of(format, x[i] / by + zero));
    }
}
