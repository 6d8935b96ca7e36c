#ifndef MX_KERNELS_X86_AVX2_MATMUL_H
#define MX_KERNELS_X86_AVX2_MATMUL_H

/* Matrix products for 16 registers of 8 floats. The sum over K has one order, whatever the number of rows: chunks of
 * CHUNK columns; inside a chunk one accumulator of 8 lanes takes 8 columns at a time; the lanes fold in a fixed tree;
 * chunk sums add up in ascending order. As in the AVX-512 tier few rows decode the weights in registers and many rows
 * share a widened panel. A header, since products of one kind of weights or another are compiled in several files. */
#include <string.h>

#include "base/bytes.h"
#include "kernels/mx.h"
#include "kernels/mxfp4.h"
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

/* What is known of the weights when a product is compiled. */
typedef struct kind {
    mx_format format;
    /* Of element codes: */
    bool halves;  /* 16 columns to a scale, else a multiple of 32 (or no scales) */
    bool sides;   /* E2M1: two scales to 32 columns, of the positive and the negative elements */
    int shift;    /* log2 of how many times 32; -1: the matrix says it, which takes a register */
    bool scales;  /* E8M0 or E4M3 in floats, BF16 in integers */
    bool zeros;   /* integers */
    bool widened; /* by mx_matrix_widen_32, whatever they are */
} kind;

/* Rows of weights, scales and zeros; the first one's, or one's of them. */
typedef struct place {
    const uint8_t *data, *scales;
    const int8_t *zeros;
    int64_t n;
} place;

_Static_assert(sizeof(scratch) == MX_AVX2_MATMUL_SCRATCH * sizeof(float), "the table says how much is needed");

/* ---- weights to fp32 ------------------------------------------------------------------------------------------- */

/* power[s] = 2^(s - 127 + shift), exactly (s = 0 is a subnormal where shift is 0), or infinite. */
MX_INLINE void fill_powers(float power[256], int shift) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), most = _mm256_set1_epi32(255);
    for (int s = 0; s < 256; s += 8) {
        __m256i bits =
            _mm256_slli_epi32(_mm256_min_epi32(_mm256_add_epi32(lanes, _mm256_set1_epi32(s + shift)), most), 23);
        _mm256_storeu_si256((__m256i *)(power + s), _mm256_max_epu32(bits, _mm256_set1_epi32(0x00400000)));
    }
}

/* Halves (F16) of these formats' bits lack 2^f16_shift, which is put into the power of their scale: scale bytes from
 * 255 - f16_shift on are not for these products. */
MX_INLINE int f16_shift(mx_format format) {
    return format == MX_E2M3 ? 14 : format == MX_E3M2 ? 12 : format == MX_E4M3 ? 8 : 0;
}

/* The floats of scale bytes. */
MX_INLINE const float *scale_table(const mx_matrix *w, kind k, float power[256]) {
    if (mx_is_mxfp4(k.format)) {
        fill_powers(power, 0);
    } else if (k.scales && w->blocks.scale == MX_SCALE_E8M0) {
        fill_powers(power, f16_shift(k.format));
    } else if (k.scales && w->blocks.scale == MX_SCALE_E4M3) {
        return mx_e4m3_values;
    }
    return power;
}

/* log2 of the 32 columns to a scale. */
MX_INLINE int scale_shift(const mx_matrix *w, kind k) {
    return k.shift >= 0 ? k.shift : w->blocks.columns == 128 ? 2 : w->blocks.columns == 64 ? 1 : 0;
}

/* Eight E2M1 codes; values: of codes 0 ... 7. */
MX_INLINE __m256 decode_e2m1(const uint8_t *at, __m256 values) {
    const __m256i nibble = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    /* 4 bytes are 8 columns; the permute looks at 3 bits, the fourth is the sign */
    __m256i codes = _mm256_srlv_epi32(_mm256_set1_epi32((int)mx_load_u32(at)), nibble);
    __m256i sign = _mm256_slli_epi32(_mm256_and_si256(codes, _mm256_set1_epi32(8)), 28);
    return _mm256_xor_ps(_mm256_permutevar8x32_ps(values, codes), _mm256_castsi256_ps(sign));
}

/* The same with other values for the codes 8 ... 15. */
MX_INLINE __m256 decode_sides(const uint8_t *at, __m256 positive, __m256 negative) {
    const __m256i nibble = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    __m256i codes = _mm256_srlv_epi32(_mm256_set1_epi32((int)mx_load_u32(at)), nibble);
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(positive, codes), _mm256_permutevar8x32_ps(negative, codes),
                            _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
}

/* 32 bytes of E5M2, the upper halves of F16. */
MX_INLINE void decode_e5m2(__m256 out[4], const uint8_t *at) {
    const __m128i zero = _mm_setzero_si128();
    for (int i = 0; i < 2; i++) {
        const __m128i bytes = _mm_loadu_si128((const __m128i *)(at + 16 * i));
        out[2 * i] = _mm256_cvtph_ps(_mm_unpacklo_epi8(zero, bytes));
        out[2 * i + 1] = _mm256_cvtph_ps(_mm_unpackhi_epi8(zero, bytes));
    }
}

/* 32 bytes of E4M3 times 2^-8: the same bits as F16, which has one more of exponent below the sign. */
MX_INLINE void decode_e4m3(__m256 out[4], const uint8_t *at) {
    for (int i = 0; i < 2; i++) {
        __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(at + 16 * i)));
        v = _mm256_and_si256(_mm256_slli_epi16(v, 7), _mm256_set1_epi16((short)0xbf80));
        out[2 * i] = _mm256_cvtph_ps(_mm256_castsi256_si128(v));
        out[2 * i + 1] = _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1));
    }
}

/* 16 columns of E2M3 or E3M2 times 2^-f16_shift. bytes, twice: 16 that hold their 12 from `first` (0 or 4) on. */
MX_INLINE __m256i halves_of_sixes(__m256i bytes, mx_format format, int first) {
    /* Each word gets the two bytes that its six bits are in; the factor brings their sign to the top. */
    const __m256i places = _mm256_setr_epi8(0, 1, 0, 1, 1, 2, 2, -128, 3, 4, 3, 4, 4, 5, 5, -128, 6, 7, 6, 7, 7, 8, 8,
                                            -128, 9, 10, 9, 10, 10, 11, 11, -128);
    const __m256i factors = _mm256_set1_epi64x(0x0100004000100400);
    __m256i v = _mm256_shuffle_epi8(bytes, _mm256_add_epi8(places, _mm256_set1_epi8((char)first)));
    v = _mm256_mullo_epi16(v, factors);
    if (format == MX_E2M3) return _mm256_and_si256(_mm256_srai_epi16(v, 3), _mm256_set1_epi16((short)0x8f80));
    return _mm256_and_si256(_mm256_srai_epi16(v, 2), _mm256_set1_epi16((short)0x9f00));
}

MX_INLINE void decode_sixes(__m256 out[4], mx_format format, const uint8_t *at) {
    const __m128i low = _mm_loadu_si128((const __m128i *)at), high = _mm_loadu_si128((const __m128i *)(at + 8));
    const __m256i v[2] = {halves_of_sixes(_mm256_broadcastsi128_si256(low), format, 0),
                          halves_of_sixes(_mm256_broadcastsi128_si256(high), format, 4)};
    for (int i = 0; i < 2; i++) {
        out[2 * i] = _mm256_cvtph_ps(_mm256_castsi256_si128(v[i]));
        out[2 * i + 1] = _mm256_cvtph_ps(_mm256_extracti128_si256(v[i], 1));
    }
}

/* 32 columns of floats other than E2M1. */
MX_INLINE void decode_floats(__m256 out[4], kind k, const uint8_t *at, const uint8_t *scale, const float *table) {
    if (k.format == MX_E4M3)
        decode_e4m3(out, at);
    else if (k.format == MX_E5M2)
        decode_e5m2(out, at);
    else
        decode_sixes(out, k.format, at);
    const __m256 by = _mm256_set1_ps(k.scales ? table[*scale] : (float)(1 << f16_shift(k.format)));
    for (int i = 0; i < 4 && (k.scales || f16_shift(k.format)); i++) out[i] = _mm256_mul_ps(out[i], by);
}

/* 32 columns of integers; scale: in BF16. */
MX_INLINE void decode_integers(__m256 out[4], kind k, const uint8_t *at, const uint8_t *scale, int zero) {
    const __m256i nibble = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const __m256 by = _mm256_castsi256_ps(_mm256_set1_epi32((int)((uint32_t)mx_load_u16(scale) << 16)));
    const __m256i offset = _mm256_set1_epi32(zero + (k.format == MX_INT4 ? 8 : 0));
    for (int i = 0; i < 4; i++) {
        __m256i q;
        if (k.format == MX_INT4) {
            q = _mm256_srlv_epi32(_mm256_set1_epi32((int)mx_load_u32(at + 4 * i)), nibble);
            q = _mm256_sub_epi32(_mm256_and_si256(q, _mm256_set1_epi32(15)), offset);
        } else {
            q = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(at + 8 * i)));
            if (k.zeros) q = _mm256_sub_epi32(q, offset);
        }
        out[i] = _mm256_mul_ps(_mm256_cvtepi32_ps(q), by);
    }
}

/* Weights 32 b ... 32 b + 31 of the row at p, in the order of their pack. */
MX_INLINE void decode(__m256 out[4], kind k, const mx_matrix *w, place p, int64_t b, int shift, const float *table) {
    const __m256 e2m1 = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    const uint8_t *at = p.data + mx_columns_bytes(k.format, 32 * b);
    if (k.widened) {
        float values[32];
        mx_matrix_widen_32(values, w, p.n, 32 * b);
        for (int i = 0; i < 4; i++) out[i] = _mm256_loadu_ps(values + 8 * i);
    } else if (k.sides) {
        const uint8_t *scale = p.scales + 2 * b;
        const __m256 positive = _mm256_mul_ps(e2m1, _mm256_set1_ps(table[scale[0]]));
        const __m256 negative = _mm256_mul_ps(e2m1, _mm256_set1_ps(-table[scale[1]]));
        for (int i = 0; i < 4; i++) out[i] = decode_sides(at + 4 * i, positive, negative);
    } else if (mx_is_mxfp4(k.format) || k.format == MX_E2M1) {
        const uint8_t *scale = p.scales + (k.halves              ? 2 * b
                                           : k.format == MX_E2M1 ? b >> shift
                                                                 : b * mx_scale_step(k.format));
        __m256 values = _mm256_mul_ps(e2m1, _mm256_set1_ps(table[*scale]));
        for (int i = 0; i < 4; i++) {
            if (k.halves && i == 2) values = _mm256_mul_ps(e2m1, _mm256_set1_ps(table[scale[1]]));
            out[i] = decode_e2m1(at + 4 * i, values);
        }
    } else if (k.format == MX_E2M3 || k.format == MX_E3M2 || k.format == MX_E4M3 || k.format == MX_E5M2) {
        decode_floats(out, k, at, k.scales ? p.scales + (b >> shift) : NULL, table);
    } else if (mx_is_integer_format(k.format)) {
        decode_integers(out, k, at, p.scales + 2 * (b >> shift), k.zeros ? p.zeros[b >> shift] : 0);
    } else if (k.format == MX_Q8_0) {
        const __m256 scale = mx_q8_0_scale(at);
        for (int i = 0; i < 4; i++) out[i] = _mm256_mul_ps(scale, mx_load8_int8(at + 2 + 8 * i));
    } else {
        for (int i = 0; i < 4; i++) out[i] = mx_load8(at + mx_columns_bytes(k.format, 8 * i), k.format);
    }
}

/* Row n of w. */
MX_INLINE place place_of(const mx_matrix *w, kind k, int64_t n) {
    place p = {.data = w->data + n * w->row_stride, .n = n};
    if (k.scales || mx_is_mxfp4(k.format)) p.scales = w->scales + n * w->scale_stride;
    if (k.zeros) p.zeros = w->zeros + n * w->zero_stride;
    return p;
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

/* sums[t][at + c]: R activation rows x[0..R) times the first C weight rows of w, R * C = 8; the first `keep` of the C
 * are kept. While it works the C rows behind these are fetched, evenly over the way, into the second cache level: the
 * first one's few outstanding misses would wait for memory too long. */
MX_INLINE void few_tile(const mx_matrix *w, kind k, const float *const *x, int R, int C, float sums[FEW][BLOCK_N],
                        int64_t at, int64_t keep, const float *table) {
    const int64_t bytes = k.widened ? 0 : C * mx_columns_bytes(k.format, 32); /* per 32 columns */
    const int shift = scale_shift(w, k);
    const place first = place_of(w, k, 0);
    const char *ahead = (const char *)first.data + C * w->row_stride;
    /* Fewer than two bytes of scales to 32 columns are not worth it. */
    const bool dense = R <= 4 && (k.halves || k.sides || (k.scales && k.shift == 0 && mx_is_integer_format(k.format)));
    const char *scales_ahead = dense ? (const char *)first.scales + C * w->scale_stride : NULL;
    float out[8];
    __m256 total = _mm256_setzero_ps();
    for (int64_t c0 = 0; c0 < w->cols; c0 += CHUNK) {
        int64_t end = (w->cols - c0 < CHUNK ? w->cols : c0 + CHUNK) / 32;
        __m256 acc[8];
        for (int i = 0; i < 8; i++) acc[i] = _mm256_setzero_ps();
        for (int64_t b = c0 / 32; b < end; b++) {
            for (int64_t i = 0; i < bytes && R <= 4; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
            ahead += bytes;
            if (dense) {
                _mm_prefetch(scales_ahead, _MM_HINT_T1);
                scales_ahead += 2 * C;
            }
            for (int c = 0; c < C; c++) {
                place p = {.data = first.data + c * w->row_stride, .n = keep == C ? c : 0};
                if (k.scales || mx_is_mxfp4(k.format)) p.scales = first.scales + c * w->scale_stride;
                if (k.zeros) p.zeros = first.zeros + c * w->zero_stride;
                __m256 weight[4];
                decode(weight, k, w, p, b, shift, table);
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

/* Rows n0 ... n0 + count - 1 of w: tiles of C rows, then each row that is left alone in a tile, C times the same. One
 * few_tile for both: it is what takes compilers their time. */
MX_INLINE void few_rows_block(const mx_matrix *w, kind k, int64_t n0, int64_t count, const float *const *x, int R,
                              int C, float sums[FEW][BLOCK_N], const float *table) {
    mx_matrix rows = *w;
    for (int64_t i = 0; i < count;) {
        const int64_t n = n0 + i, keep = i + C <= count ? C : 1;
        if (keep < C) rows.row_stride = rows.scale_stride = rows.zero_stride = 0;
        rows.data = w->data + n * w->row_stride;
        if (w->scales) rows.scales = w->scales + n * w->scale_stride;
        if (w->zeros) rows.zeros = w->zeros + n * w->zero_stride;
        few_tile(&rows, k, x, R, C, sums, i, keep, table);
        i += keep;
    }
}

MX_INLINE void few_rows(const mx_matmul *m, kind k, int64_t n0, int64_t count, scratch *s, const float *table) {
    const float *x[FEW];
    for (int64_t i = 0; i < FEW; i++) x[i] = x_of_row(m, i < m->rows ? i : m->rows - 1);
    if (m->rows == 1) {
        few_rows_block(&m->w, k, n0, count, x, 1, 8, s->rows, table);
    } else if (m->rows == 2) {
        few_rows_block(&m->w, k, n0, count, x, 2, 4, s->rows, table);
    } else if (m->rows <= 4) {
        few_rows_block(&m->w, k, n0, count, x, 4, 2, s->rows, table);
    } else {
        few_rows_block(&m->w, k, n0, count, x, 8, 1, s->rows, table);
    }
    for (int64_t i = 0; i < m->rows; i++) mx_finish_row(m, i, n0, count, s->rows[i], s->bias);
}

/* ---- many rows -------------------------------------------------------------------------------------------------- */

MX_INLINE void widen_panel(scratch *s, const mx_matrix *w, kind k, int64_t n0, int64_t count, int64_t c0,
                           int64_t blocks, const float *table) {
    const int shift = scale_shift(w, k);
    for (int64_t i = 0; i < count; i++) {
        const place p = place_of(w, k, n0 + i);
        for (int64_t b = 0; b < blocks; b++) {
            __m256 weight[4];
            decode(weight, k, w, p, c0 / 32 + b, shift, table);
            for (int j = 0; j < 4; j++) _mm256_storeu_ps(s->panel[i / GROUP][4 * b + j][i % GROUP], weight[j]);
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

MX_INLINE void many_rows(const mx_matmul *m, kind k, int64_t n0, int64_t count, scratch *s, const float *table) {
    int64_t groups = (count + GROUP - 1) / GROUP;
    for (int64_t t0 = 0; t0 < m->rows; t0 += BLOCK_T) {
        int64_t rows = m->rows - t0 < BLOCK_T ? m->rows - t0 : BLOCK_T;
        memset(s->sums, 0, (size_t)((rows + TILE - 1) / TILE) * sizeof s->sums[0]);
        for (int64_t c0 = 0; c0 < m->w.cols; c0 += CHUNK) {
            int64_t columns = m->w.cols - c0 < CHUNK ? m->w.cols - c0 : CHUNK;
            widen_panel(s, &m->w, k, n0, count, c0, columns / 32, table);
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

MX_INLINE void matmul(const mx_matmul *m, kind k) {
    scratch *s = (scratch *)m->scratch;
    const float *table = scale_table(&m->w, k, s->power);
    for (int64_t n0 = m->n0; n0 < m->n1; n0 += BLOCK_N) {
        int64_t count = m->n1 - n0 < BLOCK_N ? m->n1 - n0 : BLOCK_N;
        mx_widen_bias(s->bias, m, n0, count);
        if (m->rows <= FEW) {
            few_rows(m, k, n0, count, s, table);
        } else {
            many_rows(m, k, n0, count, s, table);
        }
    }
}

#endif
