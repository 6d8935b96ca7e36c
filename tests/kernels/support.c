#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "kernels/mx.h"
#include "kernels/tiers.h"

test_settings settings;

/* By name; "amx model" is the AMX tier on a model of its tiles, which only the tests have. */
static mx_status tier(const char *name, const mx_kernels **out) {
#ifdef MX_HAS_AMX_MODEL
    if (!strcmp(name, mx_kernels_amx_model.name)) {
        *out = &mx_kernels_amx_model;
        return mx_cpu_detect() & MX_CPU_AVX512_BF16 ? MX_OK : MX_UNSUPPORTED;
    }
#endif
    return mx_kernels_get(name, out, NULL);
}

int tiers_here(const mx_kernels *out[MAX_TIERS]) {
    static const char *const names[MAX_TIERS] = {"scalar",    "avx2", "avx512",  "avx512bf16", "amx",
                                                 "amx model", "neon", "neondot", "neonbf16"};
    static bool told;
    int count = 0;
    for (int i = 0; i < MAX_TIERS; i++) {
        if (settings.tier && strcmp(settings.tier, names[i]) != 0) continue;
        if (tier(names[i], &out[count]) == MX_OK) {
            assert_string_equal(out[count]->name, names[i]);
            count++;
        } else if (!told) {
            print_message("skipped: no tier %s here\n", names[i]);
        }
    }
    told = true;
    return count;
}

rng rng_seeded(uint64_t n) {
    return (rng){n + settings.seed * 0x9e3779b97f4a7c15u};
}

uint32_t rng_bits(rng *r) {
    if (!r->state) r->state = 0x9e3779b97f4a7c15u;
    r->state ^= r->state << 13;
    r->state ^= r->state >> 7;
    r->state ^= r->state << 17;
    return (uint32_t)(r->state * 0x2545f4914f6cdd1du >> 32);
}

float rng_uniform(rng *r, float low, float high) {
    return low + (high - low) * (float)(rng_bits(r) >> 8) * 0x1p-24f;
}

float rng_normal(rng *r) {
    float sum = 0.0f;
    for (int i = 0; i < 4; i++) sum += rng_uniform(r, -1.0f, 1.0f);
    return sum * 0.8660254f;
}

int64_t rng_below(rng *r, int64_t n) {
    return (int64_t)(rng_bits(r) % (uint64_t)n);
}

static int element_size(mx_format format) {
    return format == MX_F32 ? 4 : 2;
}

double exact_f16(uint16_t v) {
    double magnitude = (v >> 10 & 31) ? ldexp(1024 + (v & 1023), (v >> 10 & 31) - 25) : ldexp(v & 1023, -24);
    return v & 0x8000 ? -magnitude : magnitude;
}

double exact_value(const uint8_t *at, mx_format format) {
    uint16_t half;
    uint32_t bits = 0;
    float value;
    if (format == MX_F32) {
        memcpy(&value, at, 4);
        return value;
    }
    memcpy(&half, at, 2);
    if (format == MX_F16) return exact_f16(half);
    bits = (uint32_t)half << 16;
    memcpy(&value, &bits, 4);
    return value;
}

/* Finite BF16 bits. */
static uint16_t random_bf16(rng *r, weight_kind kind) {
    static const uint16_t special[] = {0x0000, 0x8000, 0x0001, 0x8001, 0x007f, 0x0080, 0x3f80, 0x5f7f, 0xdf7f, 0x0040};
    if (kind == LARGEST) return rng_below(r, 2) ? 0x7e7f : 0xfe7f;
    if (kind != ORDINARY && rng_below(r, 4) == 0) return special[rng_below(r, sizeof special / sizeof *special)];
    return mx_f32_to_bf16(rng_normal(r) * 0.1f);
}

static uint8_t random_scale(rng *r, weight_kind kind, int of_row) {
    static const uint8_t special[] = {0, 1, 2, 126, 127, 128, 190};
    static const uint8_t wide[] = {2, 3, 64, 127, 190, 251, 252};
    switch (kind) {
    case ORDINARY:
        return (uint8_t)(118 + rng_below(r, 6));
    case EXTREME:
        return special[rng_below(r, sizeof special)];
    case LARGEST:
        return wide[of_row % (int)sizeof wide];
    case WIDE:
        return of_row < (int)sizeof wide ? wide[of_row] : (uint8_t)(2 + rng_below(r, 251));
    }
    return 0;
}

/* Finite F16 bits. */
static uint16_t random_f16(rng *r, weight_kind kind) {
    static const uint16_t special[] = {0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x0400, 0x8400, 0x3c00, 0x7bff, 0xfbff};
    if (kind == LARGEST) return rng_below(r, 2) ? 0x7bff : 0xfbff;
    if (kind != ORDINARY && rng_below(r, 4) == 0) return special[rng_below(r, sizeof special / sizeof *special)];
    return mx_f32_to_f16(rng_normal(r) * 0.1f);
}

static void fill_q8_0(rng *r, weights *w, uint8_t *data, weight_kind kind) {
    const mx_matrix *m = &w->matrix;
    for (int64_t i = 0; i < m->rows * m->cols; i += 32) {
        uint8_t *block = data + i / m->cols * m->row_stride + i % m->cols / 32 * MX_Q8_0_BYTES;
        const uint16_t scale = kind == ORDINARY ? mx_f32_to_f16(rng_normal(r) * 0.002f) : random_f16(r, kind);
        memcpy(block, &scale, 2);
        for (int j = 0; j < 32; j++) {
            const int q = kind == LARGEST ? (rng_below(r, 2) ? 127 : -128) : (int)rng_below(r, 256) - 128;
            block[2 + j] = (uint8_t)q;
            w->exact[i + j] = exact_f16(scale) * q;
        }
    }
}

/* Either layout. */
static void fill_mxfp4(rng *r, weights *w, uint8_t *data, uint8_t *scales, weight_kind kind) {
    static const double e2m1[8] = {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0};
    const mx_matrix *m = &w->matrix;
    for (int64_t n = 0; n < m->rows; n++) {
        int of_row = (int)rng_below(r, 9);
        for (int64_t block = 0; block < m->cols / 32; block++) {
            const bool ggml = m->format == MX_MXFP4_GGML;
            uint8_t *at = data + n * m->row_stride + mx_columns_bytes(m->format, 32 * block);
            uint8_t *scale = ggml ? at : scales + n * m->scale_stride + block, *codes = at + ggml;
            *scale = random_scale(r, kind, of_row);
            double factor = ldexp(1.0, *scale - 127);
            for (int j = 0; j < 16; j++) codes[j] = (uint8_t)(rng_bits(r) | (kind == LARGEST ? 0x77 : 0));
            for (int i = 0; i < 32; i++) {
                const bool high = ggml ? i >= 16 : i % 2;
                const int byte = codes[ggml ? i % 16 : i / 2], code = high ? byte >> 4 : byte & 15;
                w->exact[n * m->cols + 32 * block + i] = (code & 8 ? -e2m1[code & 7] : e2m1[code & 7]) * factor;
            }
        }
    }
}

/* ---- element codes ---------------------------------------------------------------------------------------------- */

/* Bits of exponent and mantissa, of E2M1 ... E5M2. */
static const struct { int exponent, mantissa; } float_bits[] = {{2, 1}, {2, 3}, {3, 2}, {4, 3}, {5, 2}};

double exact_element(mx_format format, unsigned code) {
    if (format == MX_INT8) return (int8_t)code;
    if (format == MX_INT4) return (int)(code & 15) - 8;
    const int e = float_bits[format - MX_E2M1].exponent, m = float_bits[format - MX_E2M1].mantissa;
    const int exponent = (int)(code >> m) % (1 << e), fraction = (int)code % (1 << m), bias = (1 << (e - 1)) - 1;
    const double sign = code >> (e + m) & 1 ? -1.0 : 1.0;
    if (format == MX_E4M3 && exponent == 15 && fraction == 7) return NAN;
    if (format == MX_E5M2 && exponent == 31) return fraction ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * ldexp(fraction, 1 - bias - m);
    return sign * ldexp(1.0 + ldexp(fraction, -m), exponent - bias);
}

const mx_blocks *blocks_of(mx_format format, int *count) {
    static const mx_blocks fours[] = {
        {16, MX_SCALE_E4M3, false, false}, {16, MX_SCALE_E4M3, false, false}, {16, MX_SCALE_E8M0, false, false},
        {32, MX_SCALE_E8M0, false, false}, {64, MX_SCALE_E8M0, false, false}, {32, MX_SCALE_E8M0, true, false},
        {32, MX_SCALE_E4M3, false, false}, {64, MX_SCALE_E4M3, false, false}, {16, MX_SCALE_BF16, true, false},
        {128, MX_SCALE_E8M0, true, false}, {0, MX_SCALE_NONE, false, false},
    };
    static const mx_blocks floats[] = {
        {32, MX_SCALE_E8M0, false, false}, {32, MX_SCALE_E8M0, false, false},  {32, MX_SCALE_E8M0, false, false},
        {0, MX_SCALE_NONE, false, false},  {0, MX_SCALE_NONE, false, false},   {16, MX_SCALE_E8M0, false, false},
        {64, MX_SCALE_E4M3, false, false}, {128, MX_SCALE_BF16, false, false}, {32, MX_SCALE_E8M0, true, false},
    };
    static const mx_blocks integers[] = {
        {32, MX_SCALE_BF16, false, false}, {64, MX_SCALE_BF16, false, false},  {128, MX_SCALE_BF16, false, false},
        {32, MX_SCALE_BF16, false, true},  {64, MX_SCALE_BF16, false, true},   {128, MX_SCALE_BF16, false, true},
        {32, MX_SCALE_E8M0, false, false}, {16, MX_SCALE_BF16, false, true},   {64, MX_SCALE_E4M3, false, true},
        {0, MX_SCALE_NONE, false, false},  {128, MX_SCALE_E8M0, false, false}, {64, MX_SCALE_BF16, true, false},
    };
    if (mx_is_integer_format(format)) {
        *count = sizeof integers / sizeof *integers;
        return integers;
    }
    *count = format == MX_E2M1 ? sizeof fours / sizeof *fours : sizeof floats / sizeof *floats;
    return format == MX_E2M1 ? fours : floats;
}

mx_blocks blocks_random(rng *r, mx_format format, int64_t cols) {
    int count;
    const mx_blocks *all = blocks_of(format, &count);
    for (;;) {
        const mx_blocks b = all[rng_below(r, count)];
        if (!b.columns || cols % b.columns == 0) return b;
    }
}

const char *matrix_name(const mx_matrix *w) {
    static const char *const formats[MX_FORMATS] = {"f32",  "f16",  "bf16", "mxfp4", "q8_0", "mxfp4_ggml", "e2m1",
                                                    "e2m3", "e3m2", "e4m3", "e5m2",  "int8", "int4"};
    static const char *const scales[] = {"", ":e8m0", ":e4m3", ":bf16"};
    static char name[64];
    char columns[16] = "";
    if (w->blocks.columns) snprintf(columns, sizeof columns, ":%d", w->blocks.columns);
    snprintf(name, sizeof name, "%s%s%s%s%s%s", formats[w->format], columns, scales[w->blocks.scale],
             w->blocks.sides ? ":sides" : "", w->blocks.zeros ? ":zeros" : "",
             !w->post       ? ""
             : w->post_step ? ":posts"
                            : ":post");
    return name;
}

/* An E8M0 scale with which no element (`most`: exponent of the largest, `least`: of the smallest) is infinite, and,
 * unless the kind is EXTREME, none subnormal. */
static int random_e8m0(rng *r, weight_kind kind, int of_row, int least, int most) {
    const int byte = random_scale(r, kind, of_row), low = kind == EXTREME ? 0 : 1 - least, high = 254 - most;
    if (kind == ORDINARY || byte == 190) return byte + 2 - most; /* MXFP4's sizes: its largest is below 2^3 */
    return byte < low ? low : byte > high ? high : byte;
}

static uint16_t random_bf16_scale(rng *r, weight_kind kind, int of_row, int least, int most) {
    const int low = 1 - least, high = 253 - most; /* biased exponents */
    switch (kind) {
    case ORDINARY:
        return mx_f32_to_bf16(ldexpf(rng_uniform(r, 0.01f, 0.2f), -most));
    case EXTREME:
        return random_bf16(r, kind);
    case LARGEST:
        return (uint16_t)(of_row % 3 ? high << 7 | 0x7f : low << 7);
    default: /* powers of two, so that integers times scales are exact in BF16 */
        return (uint16_t)((of_row < 3 ? low : of_row < 6 ? high : low + (int)rng_below(r, high - low)) << 7);
    }
}

static void write_scale(rng *r, mx_format format, const mx_blocks *b, uint8_t *at, weight_kind kind, int of_row) {
    static const int smallest[] = {-1, -3, -4, -9, -16, 0, 0};
    /* Integers less a zero are 255 at most, in INT4 255 - 8 too. */
    const int most = mx_is_integer_format(format) ? (b->zeros || format == MX_INT8 ? 7 : 3) : mx_element_emax(format);
    const int least = smallest[format - MX_E2M1];
    const uint16_t half = random_bf16_scale(r, kind, of_row, least, most);
    switch (b->scale) {
    case MX_SCALE_E8M0:
        *at = (uint8_t)random_e8m0(r, kind, of_row, least, most);
        break;
    case MX_SCALE_E4M3:
        *at = (uint8_t)(kind == LARGEST    ? (of_row % 2 ? 0x7e : 1)
                        : kind == ORDINARY ? 0x18 + rng_below(r, 0x30)
                                           : rng_below(r, 0x7f));
        if (kind == WIDE && mx_is_integer_format(format))
            *at = (uint8_t)((*at & 0x78) ? *at & 0x78 : 8); /* 2^n, as above */
        break;
    default:
        memcpy(at, &half, 2);
    }
}

double exact_scale(mx_scale_type type, const uint8_t *at) {
    return type == MX_SCALE_E8M0   ? ldexp(1.0, *at - 127)
           : type == MX_SCALE_E4M3 ? exact_element(MX_E4M3, *at)
                                   : exact_value(at, MX_BF16);
}

/* Finite. */
static unsigned random_code(rng *r, mx_format format, weight_kind kind) {
    static const unsigned largest[] = {0x7, 0x1f, 0x1f, 0x7e, 0x7b};
    const int bits = mx_element_bits(format);
    unsigned code = rng_bits(r) & ((1u << bits) - 1), sign = 1u << (bits - 1);
    if (format == MX_INT8) return kind == LARGEST ? (code & 1 ? 0x7f : 0x80) : code;
    if (format == MX_INT4) return kind == LARGEST ? (code & 1 ? 15 : 0) : code;
    if (kind == LARGEST || (code & (sign - 1)) > largest[format - MX_E2M1])
        code = (code & sign) | largest[format - MX_E2M1];
    return code;
}

static int random_zero(rng *r, mx_format format, weight_kind kind) {
    if (kind == LARGEST) return rng_below(r, 2) ? (format == MX_INT8 ? 127 : 7) : format == MX_INT8 ? -128 : -8;
    if (kind == EXTREME || format == MX_INT8) return (int)rng_below(r, 256) - 128;
    return (int)rng_below(r, 16) - 8;
}

/* 0, or a normal float of 8 significant bits? */
static bool safe_in_bf16(double value) {
    int e;
    const double fraction = frexp(value, &e);
    return value == 0.0 || (e > -126 && e <= 128 && ldexp(fraction, 8) == rint(ldexp(fraction, 8)));
}

/* The elements of one row and one block, and what they are worth. */
static void fill_block(rng *r, weights *w, uint8_t *row, int64_t n, int64_t k0, int64_t k1, const uint8_t *scale,
                       int zero, weight_kind kind) {
    mx_matrix *m = &w->matrix;
    const mx_blocks *b = &m->blocks;
    for (int64_t k = k0; k < k1; k++) {
        const unsigned code = random_code(r, m->format, kind);
        double value = exact_element(m->format, code) - zero;
        mx_element_put(m->format, row, k, code);
        if (scale) value *= exact_scale(b->scale, scale + (b->sides && signbit(value) ? mx_scale_bytes(b->scale) : 0));
        m->bf16_safe = m->bf16_safe && safe_in_bf16(value);
        w->exact[n * m->cols + k] = value * (m->post ? (double)m->post[n * m->post_step] : 1.0);
    }
}

static void fill_blocks(rng *r, weights *w, uint8_t *data, uint8_t *scales, int8_t *zeros, weight_kind kind) {
    mx_matrix *m = &w->matrix;
    const mx_blocks *b = &m->blocks;
    const int64_t columns = b->columns ? b->columns : m->cols;
    const int bytes = mx_scale_bytes(b->scale), sides = b->sides ? 2 : 1;
    m->bf16_safe = true;
    for (int64_t n = 0; n < m->rows; n++) {
        const int of_row = (int)rng_below(r, 9);
        for (int64_t block = 0; block < m->cols / columns; block++) {
            uint8_t *at = scales ? scales + n * m->scale_stride + block * bytes * sides : NULL;
            const int zero = zeros ? random_zero(r, m->format, kind) : 0;
            for (int i = 0; at && i < sides; i++) write_scale(r, m->format, b, at + i * bytes, kind, of_row);
            if (zeros) zeros[n * m->zero_stride + block] = (int8_t)zero;
            fill_block(r, w, data + n * m->row_stride, n, block * columns, (block + 1) * columns, at, zero, kind);
        }
    }
    if (kind == WIDE) assert_true(m->bf16_safe);
}

static const int64_t pads[] = {0, 0, 1, 2, 16};

/* At most 1, so that what is lost below the smallest floats stays as little. */
static void random_post(rng *r, mx_matrix *m) {
    m->post_step = rng_below(r, 2);
    float *post = guarded_row(m->post_step ? m->rows : 1, "post");
    for (int64_t n = 0; n < (m->post_step ? m->rows : 1); n++) post[n] = rng_uniform(r, 0.1f, 1.0f);
    m->post = post;
}

weights weights_of_blocks(rng *r, mx_format format, mx_blocks blocks, int64_t rows, int64_t cols, weight_kind kind) {
    weights w = {.matrix = {.format = format, .rows = rows, .cols = cols, .blocks = blocks}};
    mx_matrix *m = &w.matrix;
    const int64_t row = mx_columns_bytes(format, cols), scale_row = mx_row_scale_bytes(&blocks, cols),
                  zero_row = mx_row_zero_bytes(&blocks, cols);
    uint8_t *scales = NULL;
    int8_t *zeros = NULL;
    w.exact = guarded(rows * cols * (int64_t)sizeof *w.exact, 8, "exact weights");
    m->row_stride = row + pads[rng_below(r, 5)];
    uint8_t *data = guarded((rows - 1) * m->row_stride + row, 1, "weights");
    m->data = data;
    if (blocks.columns) {
        m->scale_stride = scale_row + pads[rng_below(r, 5)];
        m->scales = scales = guarded((rows - 1) * m->scale_stride + scale_row, 1, "scales");
    }
    if (blocks.zeros) {
        m->zero_stride = zero_row + pads[rng_below(r, 5)];
        m->zeros = zeros = guarded((rows - 1) * m->zero_stride + zero_row, 1, "zeros");
    }
    if (rng_below(r, 4)) random_post(r, m);
    fill_blocks(r, &w, data, scales, zeros, kind);
    return w;
}

weights weights_random(rng *r, mx_format format, int64_t rows, int64_t cols, weight_kind kind) {
    if (mx_is_block_format(format)) {
        return weights_of_blocks(r, format, blocks_random(r, format, cols), rows, cols, kind);
    }
    weights w = {.matrix = {.format = format, .rows = rows, .cols = cols}};
    int64_t row = mx_columns_bytes(format, cols);
    w.matrix.row_stride = row + pads[rng_below(r, 5)];
    w.exact = guarded(rows * cols * (int64_t)sizeof *w.exact, 8, "exact weights");
    uint8_t *data = guarded((rows - 1) * w.matrix.row_stride + row, 1, "weights");
    w.matrix.data = data;
    if (format == MX_MXFP4) {
        w.matrix.scale_stride = cols / 32 + pads[rng_below(r, 5)];
        uint8_t *scales = guarded((rows - 1) * w.matrix.scale_stride + cols / 32, 1, "scales");
        w.matrix.scales = scales;
        fill_mxfp4(r, &w, data, scales, kind);
        return w;
    }
    assert_null(w.matrix.scales); /* as in a checkpoint: kernels must not even add to it */
    if (format == MX_MXFP4_GGML) {
        fill_mxfp4(r, &w, data, NULL, kind);
        return w;
    }
    if (format == MX_Q8_0) {
        fill_q8_0(r, &w, data, kind);
        return w;
    }
    for (int64_t i = 0; i < rows * cols; i++) {
        uint8_t *at = data + i / cols * w.matrix.row_stride + i % cols * element_size(format);
        uint16_t half = format == MX_F16 ? random_f16(r, kind) : random_bf16(r, kind);
        float f32 = mx_bf16_to_f32(half) * 1.01f;
        memcpy(at, format == MX_F32 ? (void *)&f32 : (void *)&half, (size_t)element_size(format));
        w.exact[i] = exact_value(at, format);
    }
    return w;
}

void check_close(double found, double expected, double bound, const char *format, ...) {
    if (fabs(found - expected) <= bound) return; /* false for NaN */
    char what[200];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    fail_msg("%s%s%s: found %.9g, expected %.9g within %.3g", case_name(), *case_name() ? ": " : "", what, found,
             expected, bound);
}
