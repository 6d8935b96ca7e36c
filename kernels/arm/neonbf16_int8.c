/* Precision MX_X_INT8 as kernels/int8.h specifies it, by SMMLA: two weight rows times two activation rows over eight
 * columns. Dots are exact, so every order gives the same bits; each output's fp32 sum goes over the blocks in ascending
 * order. Weights are decoded for every TILE activation rows: next to 16 SMMLAs the 12 instructions are a fair price for
 * having no panel. */
#include "kernels/arm/neon.h"
#include "kernels/int8.h"
#include "kernels/mxfp4.h"

enum {
    BLOCK_N = 48, /* weight rows of an epilogue */
    TILE = 8,     /* activation rows at a time */
    X_PAIRS = TILE / 2,
    PAIRS = 4, /* of weight rows at a time, at most */
    QUARTERS = 4,
};

/* Scratch of one thread. */
typedef struct scratch {
    float rows[TILE][BLOCK_N]; /* finished sums, by row */
    float bias[BLOCK_N];
    float power[256]; /* mx_int8_power of a scale byte */
} scratch;

_Static_assert(sizeof(scratch) <= MX_NEONBF16_MATMUL_SCRATCH * sizeof(float), "the table says how much there is");

/* First halves of a and b, or their second halves. */
MX_INLINE int8x16_t halves(int8x16_t a, int8x16_t b, int second) {
    int64x2_t low = vreinterpretq_s64_s8(a), high = vreinterpretq_s64_s8(b);
    return vreinterpretq_s8_s64(second ? vzip2q_s64(low, high) : vzip1q_s64(low, high));
}

/* A block of two weight rows: even columns 0 ... 14 of both, 16 ... 30, then the odd ones (GGML: columns 0 ... 7, 8 ...
 * 15, then 16 more). */
MX_INLINE void decode(int8x16_t out[QUARTERS], const uint8_t *first, const uint8_t *second) {
    static const int8_t weights[16] = {MX_INT8_WEIGHTS};
    const int8x16_t table = vld1q_s8(weights);
    int8x16_t a = vreinterpretq_s8_u8(vld1q_u8(first)), b = vreinterpretq_s8_u8(vld1q_u8(second));
    for (int half = 0; half < 2; half++) {
        uint8x16_t codes = vreinterpretq_u8_s8(halves(a, b, half));
        out[half] = vqtbl1q_s8(table, vandq_u8(codes, vdupq_n_u8(15)));
        out[2 + half] = vqtbl1q_s8(table, vshrq_n_u8(codes, 4));
    }
}

MX_INLINE int64_t row_of(int64_t n, int64_t i, int64_t keep) {
    return n + (i < keep ? i : keep - 1);
}

/* sums[t][at + c] for x[t], t < 2 * P, and the `keep` rows of w from row n on, of N pairs. While it works the rows
 * behind these are fetched into L2, evenly over the way, when the weights go by only once. */
MX_INLINE void tile(const mx_matrix *w, mx_format format, int64_t n, const mx_int8_block *const *x, int P, int N,
                    float sums[TILE][BLOCK_N], int64_t at, int64_t keep, const float *power) {
    const uint8_t *row[2 * PAIRS], *scales[2 * PAIRS], *ahead = w->data + (n + 2 * N) * w->row_stride;
    const int64_t step = mx_columns_bytes(format, 32), scale_step = mx_scale_step(format);
    float32x4_t total[PAIRS * X_PAIRS];
    for (int i = 0; i < N * P; i++) total[i] = vdupq_n_f32(0);
    for (int i = 0; i < 2 * N; i++) {
        row[i] = w->data + row_of(n, i, keep) * w->row_stride;
        scales[i] = w->scales + row_of(n, i, keep) * w->scale_stride;
    }
    for (int64_t b = 0; b < w->cols / 32; b++) {
        int8x16_t xs[X_PAIRS][QUARTERS];
        float32x4_t x_scale[X_PAIRS];
        for (int i = 0; i < 2 * N * step && P < X_PAIRS; i += 64) __builtin_prefetch(ahead + i, 0, 2);
        ahead += 2 * N * step;
        for (int p = 0; p < P; p++) {
            const mx_int8_block *first = x[2 * p] + b, *second = x[2 * p + 1] + b;
            for (int i = 0; i < QUARTERS; i++) {
                xs[p][i] = halves(vld1q_s8(first->x + i / 2 * 16), vld1q_s8(second->x + i / 2 * 16), i % 2);
            }
            float32x2_t pair = vset_lane_f32(second->scale, vdup_n_f32(first->scale), 1);
            x_scale[p] = vcombine_f32(pair, pair);
        }
        for (int i = 0; i < N; i++) {
            int8x16_t weight[QUARTERS];
            decode(weight, row[2 * i] + step * b, row[2 * i + 1] + step * b);
            float32x4_t scale = vcombine_f32(vdup_n_f32(power[scales[2 * i][scale_step * b]]),
                                             vdup_n_f32(power[scales[2 * i + 1][scale_step * b]]));
            for (int p = 0; p < P; p++) {
                int32x4_t dot = vdupq_n_s32(0);
                for (int q = 0; q < QUARTERS; q++) dot = vmmlaq_s32(dot, weight[q], xs[p][q]);
                total[i * P + p] = vfmaq_f32(total[i * P + p], vcvtq_f32_s32(dot), vmulq_f32(x_scale[p], scale));
            }
        }
    }
    for (int i = 0; i < N * P; i++) {
        float out[4];
        int c = 2 * (i / P), t = 2 * (i % P);
        vst1q_f32(out, total[i]);
        for (int k = 0; k < 4; k++) {
            if (c + k / 2 < keep) sums[t + k % 2][at + c + k / 2] = out[k];
        }
    }
}

MX_INLINE void rows_block(const mx_matrix *w, mx_format format, int64_t n0, int64_t count,
                          const mx_int8_block *const *x, int P, int N, scratch *s) {
    int64_t i = 0;
    for (; i + 2 * N <= count; i += 2 * N) tile(w, format, n0 + i, x, P, N, s->rows, i, 2 * N, s->power);
    for (; i < count; i += 2) tile(w, format, n0 + i, x, P, 1, s->rows, i, count - i < 2 ? 1 : 2, s->power);
}

MX_INLINE void matmul(const mx_matmul *m, mx_format format) {
    scratch *s = (scratch *)m->scratch;
    for (int i = 0; i < 256; i++) s->power[i] = mx_int8_power((uint8_t)i);
    for (int64_t n0 = m->n0; n0 < m->n1; n0 += BLOCK_N) {
        int64_t count = m->n1 - n0 < BLOCK_N ? m->n1 - n0 : BLOCK_N;
        mx_neon_widen_bias(s->bias, m, n0, count);
        for (int64_t t0 = 0; t0 < m->rows; t0 += TILE) {
            int64_t rows = m->rows - t0 < TILE ? m->rows - t0 : TILE;
            const mx_int8_block *x[TILE];
            for (int64_t i = 0; i < TILE; i++) {
                int64_t t = row_of(t0, i, rows);
                x[i] = (const mx_int8_block *)(m->x + (m->x_row ? m->x_row[t] : t) * m->x_stride);
            }
            if (rows <= 2) {
                rows_block(&m->w, format, n0, count, x, 1, 4, s);
            } else if (rows <= 4) {
                rows_block(&m->w, format, n0, count, x, 2, 4, s);
            } else {
                rows_block(&m->w, format, n0, count, x, 4, 2, s); /* 8 sums, 16 operands of x and 4 of weights */
            }
            for (int64_t i = 0; i < rows; i++) mx_neon_finish_row(m, t0 + i, n0, count, s->rows[i], s->bias);
        }
    }
}

static void matmul_mxfp4(const mx_matmul *m) {
    matmul(m, MX_MXFP4);
}
static void matmul_mxfp4_ggml(const mx_matmul *m) {
    mx_matmul apart = mx_mxfp4_ggml_apart(m);
    matmul(&apart, MX_MXFP4_GGML);
}
static void pack(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    mx_scalar_int8.pack(out, x, rows, cols);
}
static void pack_ggml(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    mx_scalar_int8_ggml.pack(out, x, rows, cols);
}

const mx_product mx_neonbf16_int8 = {mx_int8_packed_bytes, pack, matmul_mxfp4, false};
const mx_product mx_neonbf16_int8_ggml = {mx_int8_packed_bytes, pack_ggml, matmul_mxfp4_ggml, false};
