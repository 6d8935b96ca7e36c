/* Matrix products for 16 registers of 8 floats. The sum over K has one order, whatever the number of rows: chunks of
 * CHUNK columns; inside a chunk one accumulator of 8 lanes takes 8 columns at a time; the lanes fold in a fixed tree;
 * chunk sums add up in ascending order. As in the AVX-512 tier few rows decode the weights in registers and many rows
 * share a widened panel. */
#include <string.h>

#include "base/bytes.h"
#include "kernels/scalar/scalar.h"
#include "kernels/x86/avx2.h"
#include "kernels/x86/avx2_epilogue.h"

enum {
    CHUNK = 576,       /* columns; 2880 = 5 * 576 */
    STEPS = CHUNK / 8, /* vectors of a chunk */
    BLOCK_N = 48,      /* weight rows per panel and per epilogue */
    GROUP = 3,         /* weight rows of a many-rows tile */
    GROUPS = BLOCK_N / GROUP,
    TILE = 4,      /* activation rows of a many-rows tile */
    BLOCK_T = 256, /* rows that share a panel */
    FEW = 8,       /* up to this many rows the weights are decoded in registers */
    TILE_SUMS = GROUP * TILE,
};

/* Scratch of one thread, in floats. */
typedef struct scratch {
    float panel[GROUPS][STEPS][GROUP][8];
    float x[STEPS * TILE * 8];
    float sums[BLOCK_T / TILE][GROUPS][TILE_SUMS]; /* many rows: [tile][group][weight row * TILE + row] */
    float rows[FEW][BLOCK_N];                      /* finished sums of a few rows, by row */
    float bias[BLOCK_N];
    float power[256]; /* of a scale byte */
} scratch;

_Static_assert(sizeof(scratch) == MX_AVX2_MATMUL_SCRATCH * sizeof(float), "the table says how much is needed");

/* ---- weights to fp32 ------------------------------------------------------------------------------------------- */

/* power[s] = 2^(s - 127), exactly (s = 0 is a subnormal). */
static void fill_powers(float power[256]) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (int s = 0; s < 256; s += 8) {
        __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(lanes, _mm256_set1_epi32(s)), 23);
        _mm256_storeu_si256((__m256i *)(power + s), _mm256_max_epu32(bits, _mm256_set1_epi32(0x00400000)));
    }
}

/* 32 weights in their own order; power: their scale, MXFP4 only. */
MX_INLINE void decode(__m256 out[4], mx_format format, const uint8_t *at, const float *power) {
    if (format == MX_Q8_0) {
        const __m256 scale = mx_q8_0_scale(at);
        for (int i = 0; i < 4; i++) out[i] = _mm256_mul_ps(scale, mx_load8_int8(at + 2 + 8 * i));
        return;
    }
    if (format != MX_MXFP4) {
        for (int i = 0; i < 4; i++) out[i] = mx_load8(at + mx_columns_bytes(format, 8 * i), format);
        return;
    }
    const __m256i nibble = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const __m256 e2m1 = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    __m256 values = _mm256_mul_ps(e2m1, _mm256_set1_ps(*power));
    for (int i = 0; i < 4; i++) { /* 4 bytes are 8 columns; the permute looks at 3 bits, the fourth is the sign */
        __m256i codes = _mm256_srlv_epi32(_mm256_set1_epi32((int)mx_load_u32(at + 4 * i)), nibble);
        __m256i sign = _mm256_slli_epi32(_mm256_and_si256(codes, _mm256_set1_epi32(8)), 28);
        out[i] = _mm256_xor_ps(_mm256_permutevar8x32_ps(values, codes), _mm256_castsi256_ps(sign));
    }
}

/* ---- sums of lanes --------------------------------------------------------------------------------------------- */

/* Per 128-bit half: that half's sums of a[0] ... a[3]. */
MX_INLINE __m256 fold_halves(const __m256 a[4]) {
    return _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
}

/* Lane i of the result: the sum of a[i], by one tree for every i. */
MX_INLINE __m128 fold4(const __m256 a[4]) {
    __m256 v = fold_halves(a);
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}

MX_INLINE __m256 fold8(const __m256 a[8]) {
    __m256 low = fold_halves(a), high = fold_halves(a + 4);
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

/* Into a register: compilers would rather load once more for each use, and loads are what is scarce then. */
MX_INLINE __m256 load_once(const float *at) {
    __m256 v = _mm256_loadu_ps(at);
    __asm__("" : "+x"(v));
    return v;
}

MX_INLINE const float *x_of_row(const mx_matmul *m, int64_t t) {
    return (const float *)(m->x + (m->x_row ? m->x_row[t] : t) * m->x_stride);
}

/* ---- few rows --------------------------------------------------------------------------------------------------- */

/* sums[t][at + c]: R activation rows x[0..R) times C weight rows from row n on, R * C = 8; the first `keep` of the C
 * are kept. While it works the C rows behind these are fetched, evenly over the way, into the second cache level: the
 * first one's few outstanding misses would wait for memory too long. */
MX_INLINE void few_tile(const mx_matrix *w, mx_format format, int64_t n, const float *const *x, int R, int C,
                        float sums[FEW][BLOCK_N], int64_t at, int64_t keep, const float *power) {
    const int64_t bytes = C * mx_columns_bytes(format, 32); /* per 32 columns */
    const uint8_t *data = w->data + n * w->row_stride,
                  *scales = format == MX_MXFP4 ? w->scales + n * w->scale_stride : NULL;
    const char *ahead = (const char *)data + C * w->row_stride;
    float out[8];
    __m256 total = _mm256_setzero_ps();
    for (int64_t c0 = 0; c0 < w->cols; c0 += CHUNK) {
        int64_t end = (w->cols - c0 < CHUNK ? w->cols : c0 + CHUNK) / 32;
        __m256 acc[8];
        for (int i = 0; i < 8; i++) acc[i] = _mm256_setzero_ps();
        for (int64_t b = c0 / 32; b < end; b++) {
            for (int64_t i = 0; i < bytes && R <= 4; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
            ahead += bytes;
            for (int c = 0; c < C; c++) {
                __m256 weight[4];
                decode(weight, format, data + c * w->row_stride + mx_columns_bytes(format, 32 * b),
                       format == MX_MXFP4 ? &power[scales[c * w->scale_stride + b]] : NULL);
                for (int i = 0; i < 4; i++) {
                    for (int t = 0; t < R; t++) {
                        __m256 xt = _mm256_loadu_ps(x[t] + 32 * b + 8 * i);
                        acc[c * R + t] = _mm256_fmadd_ps(weight[i], xt, acc[c * R + t]);
                    }
                }
            }
        }
        total = _mm256_add_ps(total, fold8(acc));
    }
    _mm256_storeu_ps(out, total);
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
        few_rows_block(&m->w, format, n0, count, x, 4, 2, s->rows, s->power);
    } else {
        few_rows_block(&m->w, format, n0, count, x, 8, 1, s->rows, s->power);
    }
    for (int64_t i = 0; i < m->rows; i++) mx_finish_row(m, i, n0, count, s->rows[i], s->bias);
}

/* ---- many rows -------------------------------------------------------------------------------------------------- */

MX_INLINE void widen_panel(scratch *s, const mx_matrix *w, mx_format format, int64_t n0, int64_t count, int64_t c0,
                           int64_t blocks) {
    for (int64_t i = 0; i < count; i++) {
        const uint8_t *from = w->data + (n0 + i) * w->row_stride + mx_columns_bytes(format, c0);
        const uint8_t *scale = format == MX_MXFP4 ? w->scales + (n0 + i) * w->scale_stride + c0 / 32 : NULL;
        for (int64_t b = 0; b < blocks; b++) {
            __m256 weight[4];
            decode(weight, format, from + mx_columns_bytes(format, 32 * b),
                   format == MX_MXFP4 ? &s->power[scale[b]] : NULL);
            for (int k = 0; k < 4; k++) _mm256_storeu_ps(s->panel[i / GROUP][4 * b + k][i % GROUP], weight[k]);
        }
    }
}

/* sums[c * TILE + t] += weight row c . activation row t over `steps` vectors, for GROUP weight rows. */
MX_INLINE void many_tile(float sums[TILE_SUMS], const float *x, const float *w, int64_t steps) {
    __m256 acc[TILE_SUMS];
    for (int i = 0; i < TILE_SUMS; i++) acc[i] = _mm256_setzero_ps();
    for (int64_t step = 0; step < steps; step++, x += TILE * 8, w += GROUP * 8) {
        __m256 w0 = _mm256_loadu_ps(w), w1 = _mm256_loadu_ps(w + 8), w2 = _mm256_loadu_ps(w + 16);
        for (int t = 0; t < TILE; t++) {
            __m256 xt = load_once(x + t * 8);
            acc[t] = _mm256_fmadd_ps(w0, xt, acc[t]);
            acc[TILE + t] = _mm256_fmadd_ps(w1, xt, acc[TILE + t]);
            acc[2 * TILE + t] = _mm256_fmadd_ps(w2, xt, acc[2 * TILE + t]);
        }
    }
    _mm256_storeu_ps(sums, _mm256_add_ps(_mm256_loadu_ps(sums), fold8(acc)));
    _mm_storeu_ps(sums + 8, _mm_add_ps(_mm_loadu_ps(sums + 8), fold4(acc + 8)));
}

/* Rows t0 ... t0 + TILE - 1 (the last one again where there are fewer) times the panel's chunk. */
static void multiply_tile(scratch *s, const mx_matmul *m, int64_t t0, int64_t rows, float (*sums)[TILE_SUMS],
                          int64_t groups, int64_t c0, int64_t steps) {
    for (int t = 0; t < TILE; t++) {
        const float *from = x_of_row(m, t0 + (t < rows ? t : rows - 1)) + c0;
        for (int64_t step = 0; step < steps; step++) {
            _mm256_storeu_ps(s->x + (step * TILE + t) * 8, _mm256_loadu_ps(from + step * 8));
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
                multiply_tile(s, m, t0 + t, rows - t, s->sums[t / TILE], groups, c0, columns / 8);
            }
        }
        for (int64_t t = 0; t < rows; t++) {
            for (int64_t i = 0; i < count; i++) {
                s->rows[0][i] = s->sums[t / TILE][i / GROUP][i % GROUP * TILE + t % TILE];
            }
            mx_finish_row(m, t0 + t, n0, count, s->rows[0], s->bias);
        }
    }
}

MX_INLINE void matmul(const mx_matmul *m, mx_format format) {
    scratch *s = (scratch *)m->scratch;
    if (format == MX_MXFP4) fill_powers(s->power);
    for (int64_t n0 = m->n0; n0 < m->n1; n0 += BLOCK_N) {
        int64_t count = m->n1 - n0 < BLOCK_N ? m->n1 - n0 : BLOCK_N;
        mx_widen_bias(s->bias, m, n0, count);
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

const mx_product mx_avx2_product[MX_FORMATS][3] = {
    [MX_F32] = MX_SCALAR_PACKED(matmul_f32),   [MX_F16] = MX_SCALAR_PACKED(matmul_f16),
    [MX_BF16] = MX_SCALAR_PACKED(matmul_bf16), [MX_MXFP4] = MX_SCALAR_PACKED(matmul_mxfp4),
    [MX_Q8_0] = MX_SCALAR_PACKED(matmul_q8_0),
};
