/* Precision MX_X_INT8 as kernels/int8.h specifies it, by SDOT: sums of four products of bytes in each of four lanes.
 * Dots are exact, so every order gives the same bits; each output's fp32 sum goes over the blocks in ascending order.
 * With one activation row the lanes of a sum are columns of one weight row and are added up; with more of them four
 * weight rows are turned once, and each lane is a row of its own. */
#include "kernels/arm/neon.h"
#include "kernels/int8.h"
#include "kernels/mxfp4.h"

enum {
    BLOCK_N = 48, /* weight rows of an epilogue */
    TILE = 8,     /* activation rows at a time, at most */
    ROWS = 4,     /* weight rows at a time */
};

/* Scratch of one thread. */
typedef struct scratch {
    float rows[TILE][BLOCK_N]; /* finished sums, by row */
    float bias[BLOCK_N];
    float power[256]; /* mx_int8_power of a scale byte */
} scratch;

_Static_assert(sizeof(scratch) <= MX_NEON_MATMUL_SCRATCH * sizeof(float), "the table says how much there is");

/* Four columns in each lane: those of row i in out[i] to those of row j in out[.][j]. */
MX_INLINE void turn(int8x16_t out[ROWS]) {
    int32x4_t a = vreinterpretq_s32_s8(out[0]), b = vreinterpretq_s32_s8(out[1]);
    int32x4_t c = vreinterpretq_s32_s8(out[2]), d = vreinterpretq_s32_s8(out[3]);
    int64x2_t even = vreinterpretq_s64_s32(vtrn1q_s32(a, b)), odd = vreinterpretq_s64_s32(vtrn2q_s32(a, b));
    int64x2_t even2 = vreinterpretq_s64_s32(vtrn1q_s32(c, d)), odd2 = vreinterpretq_s64_s32(vtrn2q_s32(c, d));
    out[0] = vreinterpretq_s8_s64(vzip1q_s64(even, even2));
    out[1] = vreinterpretq_s8_s64(vzip1q_s64(odd, odd2));
    out[2] = vreinterpretq_s8_s64(vzip2q_s64(even, even2));
    out[3] = vreinterpretq_s8_s64(vzip2q_s64(odd, odd2));
}

/* A block of four weight rows: their even columns, then their odd ones (GGML: their first 16, then the others). */
MX_INLINE void decode(int8x16_t even[ROWS], int8x16_t odd[ROWS], const uint8_t *const *row, int64_t at) {
    static const int8_t weights[16] = {MX_INT8_WEIGHTS};
    const int8x16_t table = vld1q_s8(weights);
    for (int i = 0; i < ROWS; i++) {
        uint8x16_t codes = vld1q_u8(row[i] + at);
        even[i] = vqtbl1q_s8(table, vandq_u8(codes, vdupq_n_u8(15)));
        odd[i] = vqtbl1q_s8(table, vshrq_n_u8(codes, 4));
    }
}

/* The dots of four weight rows with a block of activations. */
MX_INLINE int32x4_t dots(const int8x16_t even[ROWS], const int8x16_t odd[ROWS], const mx_int8_block *x, int turned) {
    const int8x16_t low = vld1q_s8(x->x), high = vld1q_s8(x->x + 16);
    if (turned) {
        int32x4_t first = vdotq_laneq_s32(vdupq_n_s32(0), even[0], low, 0);
        int32x4_t second = vdotq_laneq_s32(vdupq_n_s32(0), odd[0], high, 0);
        first = vdotq_laneq_s32(first, even[1], low, 1);
        second = vdotq_laneq_s32(second, odd[1], high, 1);
        first = vdotq_laneq_s32(first, even[2], low, 2);
        second = vdotq_laneq_s32(second, odd[2], high, 2);
        first = vdotq_laneq_s32(first, even[3], low, 3);
        second = vdotq_laneq_s32(second, odd[3], high, 3);
        return vaddq_s32(first, second);
    }
    int32x4_t sum[ROWS];
    for (int i = 0; i < ROWS; i++) sum[i] = vdotq_s32(vdotq_s32(vdupq_n_s32(0), even[i], low), odd[i], high);
    return vpaddq_s32(vpaddq_s32(sum[0], sum[1]), vpaddq_s32(sum[2], sum[3]));
}

MX_INLINE int64_t row_of(int64_t n, int64_t i, int64_t keep) {
    return n + (i < keep ? i : keep - 1);
}

/* sums[t][at + c] for x[t], t < T, and rows n + c of w, c < keep <= ROWS. While it works the rows behind these are
 * fetched into L2, evenly over the way, when the weights go by only once. */
MX_INLINE void tile(const mx_matrix *w, mx_format format, int64_t n, const mx_int8_block *const *x, int T, bool once,
                    float sums[TILE][BLOCK_N], int64_t at, int64_t keep, const float *power) {
    const uint8_t *row[ROWS], *scales[ROWS], *ahead = w->data + (n + ROWS) * w->row_stride;
    const int64_t step = mx_columns_bytes(format, 32);
    float32x4_t total[TILE];
    for (int t = 0; t < T; t++) total[t] = vdupq_n_f32(0);
    for (int i = 0; i < ROWS; i++) {
        row[i] = w->data + row_of(n, i, keep) * w->row_stride;
        scales[i] = w->scales + row_of(n, i, keep) * w->scale_stride;
    }
    for (int64_t b = 0; b < w->cols / 32; b++) {
        int8x16_t even[ROWS], odd[ROWS];
        for (int64_t i = 0; i < ROWS * step && once; i += 64) __builtin_prefetch(ahead + b * ROWS * step + i, 0, 2);
        decode(even, odd, row, step * b);
        if (T > 1) {
            turn(even);
            turn(odd);
        }
        const int64_t at_scale = b * mx_scale_step(format);
        const float scale[ROWS] = {power[scales[0][at_scale]], power[scales[1][at_scale]], power[scales[2][at_scale]],
                                   power[scales[3][at_scale]]};
        for (int t = 0; t < T; t++) {
            const int32x4_t dot = dots(even, odd, x[t] + b, T > 1);
            total[t] = vfmaq_f32(total[t], vcvtq_f32_s32(dot), vmulq_n_f32(vld1q_f32(scale), x[t][b].scale));
        }
    }
    for (int t = 0; t < T; t++) {
        float out[ROWS];
        vst1q_f32(out, total[t]);
        for (int c = 0; c < keep; c++) sums[t][at + c] = out[c];
    }
}

MX_INLINE void rows_block(const mx_matrix *w, mx_format format, int64_t n0, int64_t count,
                          const mx_int8_block *const *x, int T, bool once, scratch *s) {
    for (int64_t i = 0; i < count; i += ROWS)
        tile(w, format, n0 + i, x, T, once, s->rows, i, count - i < ROWS ? count - i : ROWS, s->power);
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
            const bool once = m->rows <= TILE;
            if (rows == 1) {
                rows_block(&m->w, format, n0, count, x, 1, once, s);
            } else if (rows == 2) {
                rows_block(&m->w, format, n0, count, x, 2, once, s);
            } else if (rows <= 4) {
                rows_block(&m->w, format, n0, count, x, 4, once, s);
            } else {
                rows_block(&m->w, format, n0, count, x, TILE, once, s);
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

const mx_product mx_neondot_int8 = {mx_int8_packed_bytes, pack, matmul_mxfp4, false};
const mx_product mx_neondot_int8_ggml = {mx_int8_packed_bytes, pack_ggml, matmul_mxfp4_ggml, false};
