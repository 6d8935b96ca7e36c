/* Matrix products in fp32 by NEON. The sum over K has one order, whatever the number of rows: chunks of CHUNK columns;
 * inside a chunk one accumulator of 4 lanes takes 4 columns at a time; the lanes fold in a fixed tree; chunk sums add
 * up in ascending order. Few rows decode the weights in registers, many rows share a widened panel. */
#include <string.h>

#include "kernels/arm/neon.h"
#include "kernels/mxfp4.h"
#include "kernels/scalar/scalar.h"

enum {
    CHUNK = 288,       /* columns; 2880 = 10 * 288 */
    STEPS = CHUNK / 4, /* vectors of a chunk */
    BLOCK_N = 48,      /* weight rows per panel and per epilogue */
    GROUP = 3,         /* weight rows of a many-rows tile */
    GROUPS = BLOCK_N / GROUP,
    TILE = 8,      /* activation rows of a many-rows tile: 24 sums, 3 weights and what is loaded fill 32 registers */
    BLOCK_T = 256, /* rows that share a panel */
    FEW = 8,       /* up to this many rows the weights are decoded in registers */
    TILE_SUMS = GROUP * TILE,
};

/* Scratch of one thread, in floats. */
typedef struct scratch {
    float panel[GROUPS][STEPS][GROUP][4];
    float x[STEPS * TILE * 4];
    float sums[BLOCK_T / TILE][GROUPS][TILE_SUMS]; /* many rows: [tile][group][weight row * TILE + row] */
    float rows[FEW][BLOCK_N];                      /* finished sums of a few rows, by row */
    float bias[BLOCK_N];
    float power[256]; /* of a scale byte */
} scratch;

_Static_assert(sizeof(scratch) == MX_NEON_MATMUL_SCRATCH * sizeof(float), "the table says how much is needed");

/* ---- activations ------------------------------------------------------------------------------------------------ */

/* In each 8 columns the even ones, then the odd ones: so the two nibbles of a byte and the two halves of 32 bits need
 * no shuffle to come apart. F16, Q8_0 and GGML's MXFP4 have theirs in order. */
static void reorder(float *out, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i += 8) {
        float32x4x2_t v = vld2q_f32(x + i);
        vst1q_f32(out + i, v.val[0]);
        vst1q_f32(out + i + 4, v.val[1]);
    }
}

static void pack_fp32(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    reorder((float *)out, x, rows * cols);
}

static void pack_bf16x2(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    reorder((float *)out, x, rows * cols);
    mx_round_to_bf16x2((float *)out, (float *)out, rows * cols);
}

static void pack_bf16(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    reorder((float *)out, x, rows * cols);
    mx_round_to_bf16((float *)out, (float *)out, rows * cols);
}

/* ---- weights to fp32 ------------------------------------------------------------------------------------------- */

/* power[s] = 2^(s - 127), exactly (s = 0 is a subnormal). */
static void fill_powers(float power[256]) {
    const uint32_t first[4] = {0, 1, 2, 3};
    for (uint32_t s = 0; s < 256; s += 4) {
        uint32x4_t bits = vshlq_n_u32(vaddq_u32(vld1q_u32(first), vdupq_n_u32(s)), 23);
        vst1q_f32(power + s, vreinterpretq_f32_u32(vmaxq_u32(bits, vdupq_n_u32(0x00400000))));
    }
}

/* 32 weights in the order of their pack; power: their scale, MXFP4 only. */
MX_INLINE void decode(float32x4_t out[8], mx_format format, const uint8_t *at, float power) {
    if (mx_is_mxfp4(format)) {
        /* The upper bytes of the 16 values in F16; the lower ones are 0. */
        static const uint8_t e2m1[16] = {0x00, 0x38, 0x3c, 0x3e, 0x40, 0x42, 0x44, 0x46,
                                         0x80, 0xb8, 0xbc, 0xbe, 0xc0, 0xc2, 0xc4, 0xc6};
        const uint8x16_t table = vld1q_u8(e2m1), codes = vld1q_u8(at);
        uint8x16_t even = vqtbl1q_u8(table, vandq_u8(codes, vdupq_n_u8(15)));
        uint8x16_t odd = vqtbl1q_u8(table, vshrq_n_u8(codes, 4));
        float16x8_t half[4] = {vreinterpretq_f16_u16(vshll_n_u8(vget_low_u8(even), 8)),
                               vreinterpretq_f16_u16(vshll_n_u8(vget_low_u8(odd), 8)),
                               vreinterpretq_f16_u16(vshll_high_n_u8(even, 8)),
                               vreinterpretq_f16_u16(vshll_high_n_u8(odd, 8))};
        for (int i = 0; i < 4; i++) {
            const int pairs = i / 2 * 4 + i % 2, halves = i / 2 * 2 + i % 2 * 4;
            const int first = format == MX_MXFP4 ? pairs : halves, second = first + (format == MX_MXFP4 ? 2 : 1);
            out[first] = vmulq_n_f32(vcvt_f32_f16(vget_low_f16(half[i])), power);
            out[second] = vmulq_n_f32(vcvt_high_f32_f16(half[i]), power);
        }
    } else if (format == MX_BF16) {
        for (int i = 0; i < 4; i++) {
            uint32x4_t pairs = vreinterpretq_u32_u8(vld1q_u8(at + 16 * i));
            out[2 * i] = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
            out[2 * i + 1] = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000)));
        }
    } else if (format == MX_F16) {
        for (int i = 0; i < 8; i++) out[i] = mx_load4(at + 8 * i, MX_F16);
    } else if (format == MX_Q8_0) {
        const float scale = mx_q8_0_scale(at);
        for (int i = 0; i < 4; i++) mx_load8_q8_0(out + 2 * i, at, 8 * i, scale);
    } else {
        for (int i = 0; i < 4; i++) {
            float32x4_t low = mx_load4(at + 32 * i, MX_F32), high = mx_load4(at + 32 * i + 16, MX_F32);
            out[2 * i] = vuzp1q_f32(low, high);
            out[2 * i + 1] = vuzp2q_f32(low, high);
        }
    }
}

/* Lane i of the result: the sum of a[i], by one tree for every i. */
MX_INLINE float32x4_t fold4(const float32x4_t a[4]) {
    return vpaddq_f32(vpaddq_f32(a[0], a[1]), vpaddq_f32(a[2], a[3]));
}

/* ---- what is done with a finished sum ---------------------------------------------------------------------------- */

void mx_neon_widen_bias(float *bias, const mx_matmul *m, int64_t n0, int64_t count) {
    memset(bias, 0, (size_t)count * sizeof *bias);
    if (m->bias) mx_neon_widen(bias, m->bias + n0 * (m->bias_format == MX_BF16 ? 2 : 4), m->bias_format, count);
}

/* See mx_swiglu. exp(-alpha * gate) may be infinite: 1 / (1 + inf) is 0, and so is the product. */
MX_INLINE float32x4_t swiglu(float32x4_t gate, float32x4_t up, float limit, float alpha) {
    float32x4_t most = vdupq_n_f32(limit), one = vdupq_n_f32(1.0f);
    gate = vminq_f32(most, gate);
    up = vmaxq_f32(vdupq_n_f32(-limit), vminq_f32(most, up));
    float32x4_t sigmoid = vdivq_f32(one, vaddq_f32(one, mx_exp128(vmulq_n_f32(gate, -alpha))));
    return vmulq_f32(vmulq_f32(gate, sigmoid), vaddq_f32(up, one));
}

/* Whole vectors of the padded sums, so that an output's bits do not depend on where a range ends. */
static void finish_swiglu(const mx_matmul *m, float *y, const float *sum, int64_t count) {
    for (int64_t i = 0; i < count; i += 8) {
        float out[4];
        float32x4x2_t v = vld2q_f32(sum + i);
        vst1q_f32(out, swiglu(v.val[0], v.val[1], m->limit, m->alpha));
        memcpy(y + i / 2, out, (count - i < 8 ? (size_t)(count - i) / 2 : 4) * sizeof *y);
    }
}

static void finish_gated(const mx_matmul *m, float *y, const float *sum, int64_t count) {
    for (int64_t i = 0; i < count; i += 4) {
        const size_t bytes = (count - i < 4 ? (size_t)(count - i) : 4) * sizeof *y;
        float gate[4] = {0};
        memcpy(gate, y + i, bytes);
        vst1q_f32(gate, swiglu(vld1q_f32(gate), vld1q_f32(sum + i), m->limit, m->alpha));
        memcpy(y + i, gate, bytes);
    }
}

void mx_neon_finish_row(const mx_matmul *m, int64_t t, int64_t n0, int64_t count, float *sum, const float *bias) {
    float *y = m->y + (m->y_row ? m->y_row[t] : t) * m->y_stride;
    for (int64_t i = 0; i < count; i++) sum[i] += bias[i];
    if (m->epilogue == MX_SWIGLU) {
        for (int64_t i = count; i % 8; i++) sum[i] = 0.0f;
        finish_swiglu(m, y + n0 / 2, sum, count);
    } else if (m->epilogue == MX_GATED) {
        for (int64_t i = count; i % 4; i++) sum[i] = 0.0f;
        finish_gated(m, y + n0, sum, count);
    } else if (m->epilogue == MX_SCALE) {
        for (int64_t i = 0; i < count; i++) y[n0 + i] = sum[i] * m->factor[t];
    } else if (m->epilogue == MX_ADD) {
        for (int64_t i = 0; i < count; i++) y[n0 + i] += sum[i];
    } else {
        memcpy(y + n0, sum, (size_t)count * sizeof *y);
    }
}

/* ---- few rows --------------------------------------------------------------------------------------------------- */

MX_INLINE const float *x_of_row(const mx_matmul *m, int64_t t) {
    return (const float *)(m->x + (m->x_row ? m->x_row[t] : t) * m->x_stride);
}

/* sums[t][at + c]: R activation rows x[0..R) times C weight rows from row n on, R * C = 8 or 16; the first `keep` of
 * the C are kept. While it works the C rows behind these are fetched into L2, evenly over the way. */
MX_INLINE void few_tile(const mx_matrix *w, mx_format format, int64_t n, const float *const *x, int R, int C,
                        float sums[FEW][BLOCK_N], int64_t at, int64_t keep, const float *power) {
    const int64_t bytes = C * mx_columns_bytes(format, 32); /* per 32 columns */
    const uint8_t *data = w->data + n * w->row_stride,
                  *scales = mx_is_mxfp4(format) ? w->scales + n * w->scale_stride : NULL;
    const uint8_t *ahead = data + C * w->row_stride;
    float out[16];
    float32x4_t total[4];
    for (int i = 0; i < 4; i++) total[i] = vdupq_n_f32(0);
    for (int64_t c0 = 0; c0 < w->cols; c0 += CHUNK) {
        int64_t end = (w->cols - c0 < CHUNK ? w->cols : c0 + CHUNK) / 32;
        float32x4_t acc[16];
        for (int i = 0; i < R * C; i++) acc[i] = vdupq_n_f32(0);
        for (int64_t b = c0 / 32; b < end; b++) {
            for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(ahead + i, 0, 2);
            ahead += bytes;
            for (int c = 0; c < C; c++) {
                float32x4_t weight[8];
                decode(weight, format, data + c * w->row_stride + mx_columns_bytes(format, 32 * b),
                       mx_is_mxfp4(format) ? power[scales[c * w->scale_stride + b * mx_scale_step(format)]] : 1.0f);
                for (int i = 0; i < 8; i++) {
                    for (int t = 0; t < R; t++) {
                        acc[c * R + t] = vfmaq_f32(acc[c * R + t], weight[i], vld1q_f32(x[t] + 32 * b + 4 * i));
                    }
                }
            }
        }
        for (int i = 0; i < R * C / 4; i++) total[i] = vaddq_f32(total[i], fold4(acc + 4 * i));
    }
    for (int i = 0; i < R * C / 4; i++) vst1q_f32(out + 4 * i, total[i]);
    for (int c = 0; c < keep; c++) {
        for (int t = 0; t < R; t++) sums[t][at + c] = out[c * R + t];
    }
}

/* Rows n0 ... n0 + count - 1 of w: tiles of C rows, then each row that is left alone in a tile. */
MX_INLINE void few_rows_block(const mx_matrix *w, mx_format format, int64_t n0, int64_t count, const float *const *x,
                              int R, int C, float sums[FEW][BLOCK_N], const float *power) {
    int64_t i = 0;
    for (; i + C <= count; i += C) few_tile(w, format, n0 + i, x, R, C, sums, i, C, power);
    for (; i < count; i++) {
        mx_matrix row = *w;
        row.row_stride = row.scale_stride = 0; /* the same row C times */
        row.data += (n0 + i) * w->row_stride;
        if (w->scales) row.scales += (n0 + i) * w->scale_stride;
        few_tile(&row, format, 0, x, R, C, sums, i, 1, power);
    }
}

MX_INLINE void few_rows(const mx_matmul *m, mx_format format, int64_t n0, int64_t count, scratch *s) {
    const float *x[FEW];
    for (int64_t i = 0; i < FEW; i++) x[i] = x_of_row(m, i < m->rows ? i : m->rows - 1);
    if (m->rows == 1) {
        few_rows_block(&m->w, format, n0, count, x, 1, 8, s->rows, s->power);
    } else if (m->rows == 2) {
        few_rows_block(&m->w, format, n0, count, x, 2, 4, s->rows, s->power);
    } else if (m->rows <= 4) {
        few_rows_block(&m->w, format, n0, count, x, 4, 4, s->rows, s->power);
    } else {
        few_rows_block(&m->w, format, n0, count, x, 8, 2, s->rows, s->power);
    }
    for (int64_t i = 0; i < m->rows; i++) mx_neon_finish_row(m, i, n0, count, s->rows[i], s->bias);
}

/* ---- many rows -------------------------------------------------------------------------------------------------- */

MX_INLINE void widen_panel(scratch *s, const mx_matrix *w, mx_format format, int64_t n0, int64_t count, int64_t c0,
                           int64_t blocks) {
    for (int64_t i = 0; i < count; i++) {
        const uint8_t *from = w->data + (n0 + i) * w->row_stride + mx_columns_bytes(format, c0);
        const uint8_t *scale = NULL;
        if (mx_is_mxfp4(format)) scale = w->scales + (n0 + i) * w->scale_stride + c0 / 32 * mx_scale_step(format);
        for (int64_t b = 0; b < blocks; b++) {
            float32x4_t weight[8];
            decode(weight, format, from + mx_columns_bytes(format, 32 * b),
                   mx_is_mxfp4(format) ? s->power[scale[b * mx_scale_step(format)]] : 1.0f);
            for (int k = 0; k < 8; k++) vst1q_f32(s->panel[i / GROUP][8 * b + k][i % GROUP], weight[k]);
        }
    }
}

/* sums[c * TILE + t] += weight row c . activation row t over `steps` vectors, for GROUP weight rows. */
MX_INLINE void many_tile(float sums[TILE_SUMS], const float *x, const float *w, int64_t steps) {
    float32x4_t acc[TILE_SUMS];
    for (int i = 0; i < TILE_SUMS; i++) acc[i] = vdupq_n_f32(0);
    for (int64_t step = 0; step < steps; step++, x += TILE * 4, w += GROUP * 4) {
        float32x4_t w0 = vld1q_f32(w), w1 = vld1q_f32(w + 4), w2 = vld1q_f32(w + 8);
        for (int t = 0; t < TILE; t++) {
            float32x4_t xt = vld1q_f32(x + t * 4);
            acc[t] = vfmaq_f32(acc[t], w0, xt);
            acc[TILE + t] = vfmaq_f32(acc[TILE + t], w1, xt);
            acc[2 * TILE + t] = vfmaq_f32(acc[2 * TILE + t], w2, xt);
        }
    }
    for (int i = 0; i < TILE_SUMS; i += 4) vst1q_f32(sums + i, vaddq_f32(vld1q_f32(sums + i), fold4(acc + i)));
}

/* Rows t0 ... t0 + TILE - 1 (the last one again where there are fewer) times the panel's chunk. */
static void multiply_tile(scratch *s, const mx_matmul *m, int64_t t0, int64_t rows, float (*sums)[TILE_SUMS],
                          int64_t groups, int64_t c0, int64_t steps) {
    for (int t = 0; t < TILE; t++) {
        const float *from = x_of_row(m, t0 + (t < rows ? t : rows - 1)) + c0;
        for (int64_t step = 0; step < steps; step++) {
            vst1q_f32(s->x + (step * TILE + t) * 4, vld1q_f32(from + step * 4));
        }
    }
    for (int64_t g = 0; g < groups; g++) many_tile(sums[g], s->x, s->panel[g][0][0], steps);
}

MX_INLINE void many_rows(const mx_matmul *m, mx_format format, int64_t n0, int64_t count, scratch *s) {
    int64_t groups = (count + GROUP - 1) / GROUP;
    for (int64_t t0 = 0; t0 < m->rows; t0 += BLOCK_T) {
        int64_t rows = m->rows - t0 < BLOCK_T ? m->rows - t0 : BLOCK_T;
        memset(s->sums, 0, (size_t)((rows + TILE - 1) / TILE) * sizeof s->sums[0]);
        for (int64_t c0 = 0; c0 < m->w.cols; c0 += CHUNK) {
            int64_t columns = m->w.cols - c0 < CHUNK ? m->w.cols - c0 : CHUNK;
            widen_panel(s, &m->w, format, n0, count, c0, columns / 32);
            for (int64_t t = 0; t < rows; t += TILE) {
                multiply_tile(s, m, t0 + t, rows - t, s->sums[t / TILE], groups, c0, columns / 4);
            }
        }
        for (int64_t t = 0; t < rows; t++) {
            for (int64_t i = 0; i < count; i++) {
                s->rows[0][i] = s->sums[t / TILE][i / GROUP][i % GROUP * TILE + t % TILE];
            }
            mx_neon_finish_row(m, t0 + t, n0, count, s->rows[0], s->bias);
        }
    }
}

MX_INLINE void matmul(const mx_matmul *m, mx_format format) {
    scratch *s = (scratch *)m->scratch;
    if (mx_is_mxfp4(format)) fill_powers(s->power);
    for (int64_t n0 = m->n0; n0 < m->n1; n0 += BLOCK_N) {
        int64_t count = m->n1 - n0 < BLOCK_N ? m->n1 - n0 : BLOCK_N;
        mx_neon_widen_bias(s->bias, m, n0, count);
        if (m->rows <= FEW) {
            few_rows(m, format, n0, count, s);
        } else {
            many_rows(m, format, n0, count, s);
        }
    }
}

static void matmul_f32(const mx_matmul *m) {
    matmul(m, MX_F32);
}
static void matmul_f16(const mx_matmul *m) {
    matmul(m, MX_F16);
}
static void matmul_bf16(const mx_matmul *m) {
    matmul(m, MX_BF16);
}
static void matmul_mxfp4(const mx_matmul *m) {
    matmul(m, MX_MXFP4);
}
static void matmul_q8_0(const mx_matmul *m) {
    matmul(m, MX_Q8_0);
}
static void matmul_mxfp4_ggml(const mx_matmul *m) {
    mx_matmul apart = mx_mxfp4_ggml_apart(m);
    matmul(&apart, MX_MXFP4_GGML);
}

#define PACKED(matmul)                                                                                                 \
    {                                                                                                                  \
        [MX_X_FP32] = {mx_packed_floats, pack_fp32, matmul, false},                                                    \
        [MX_X_BF16X2] = {mx_packed_floats, pack_bf16x2, matmul, false},                                                \
        [MX_X_BF16] = {mx_packed_floats, pack_bf16, matmul, false},                                                    \
    }

const mx_product mx_neon_product[MX_FORMATS][3] = {
    [MX_F32] = PACKED(matmul_f32),
    [MX_F16] = MX_SCALAR_PACKED(matmul_f16),
    [MX_BF16] = PACKED(matmul_bf16),
    [MX_MXFP4] = PACKED(matmul_mxfp4),
    [MX_Q8_0] = MX_SCALAR_PACKED(matmul_q8_0),
    [MX_MXFP4_GGML] = MX_SCALAR_PACKED(matmul_mxfp4_ggml),
};
