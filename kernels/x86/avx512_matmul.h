#ifndef MX_KERNELS_X86_AVX512_MATMUL_H
#define MX_KERNELS_X86_AVX512_MATMUL_H

/* Matrix products. The sum over K has one order, whatever the number of rows: chunks of CHUNK columns; inside a chunk
 * one accumulator of 16 lanes takes 16 columns at a time; the lanes fold in a fixed tree;
 * chunk sums add up in ascending order. Two ways produce it:
 *
 * - few rows: weights are decoded in registers, several weight rows at a time, straight from the file's bytes;
 * - many rows: blocks of weights are widened once into a panel in the L2 cache that up to 256 rows then share.
 *
 * avx512_matmul.c, avx512_blocks.c, avx512_floats.c and avx512_integers.c compile it for formats of their own:
 * compilers take long over it. */
#include <string.h>

#include "base/bytes.h"
#include "kernels/mxfp4.h"
#include "kernels/scalar/scalar.h"
#include "kernels/x86/avx512.h"
#include "kernels/x86/avx512_codes.h"
#include "kernels/x86/avx512_epilogue.h"

enum {
    CHUNK = 576,        /* columns; 2880 = 5 * 576 */
    STEPS = CHUNK / 16, /* vectors of a chunk */
    BLOCK_N = 96,       /* weight rows per panel and per epilogue */
    GROUP = 3,          /* weight rows of a many-rows tile */
    GROUPS = BLOCK_N / GROUP,
    TILE = 8,      /* activation rows of a tile, of either kind */
    BLOCK_T = 256, /* rows that share a panel */
    FEW = 48,      /* up to this many rows the weights are decoded in registers */
    FEW_N = 32,    /* weight rows that meet a chunk of these rows, one chunk after the other */
    TILE_SUMS = GROUP * TILE,
};

/* Scratch of one thread, in floats. */
typedef struct scratch {
    float panel[GROUPS][STEPS][GROUP][16];
    float x[STEPS * TILE * 16];
    float sums[BLOCK_T / TILE][GROUPS][TILE_SUMS]; /* many rows: [tile][group][weight row * tile rows + row] */
    float row[BLOCK_N];                            /* finished sums of one row */
    float bias[BLOCK_N];
    float table[256]; /* codes.table */
} scratch;

_Static_assert(sizeof(scratch) == MX_AVX512_MATMUL_SCRATCH * sizeof(float), "the table says how much is needed");

/* The order of columns in packed rows is COLUMNS for most formats. F16, Q8_0 and element codes of a byte have theirs in
 * order. Of GGML's MXFP4 the 16 columns are 0, 16, 1, 17 ... 7, 23, then 8, 24, 9, 25 ... 15, 31. */

/* ---- weights to fp32 ------------------------------------------------------------------------------------------- */

/* Formats of avx512_codes.h that are not MX_ANY_CODES. */
MX_INLINE bool is_coded(mx_format format) {
    return mx_is_block_format(format) || format == (mx_format)MX_E2M1_SIDES;
}

/* Formats whose scales lie apart, of a matrix that mx_mxfp4_ggml_apart or codes_for was shown. */
MX_INLINE bool has_scales(mx_format format) {
    return mx_is_mxfp4(format) || is_coded(format);
}

MX_INLINE int64_t scale_at(mx_format format, const codes *k, int64_t b) {
    return is_coded(format) ? codes_scale_at(format, k, b) : b * mx_scale_step(format);
}

MX_INLINE int64_t bytes_of(mx_format format, const mx_matrix *w, int64_t columns) {
    return mx_columns_bytes(format >= MX_FORMATS ? w->format : format, columns);
}

/* 32 weights in the order of their pack. */
MX_INLINE void decode(__m512 *first, __m512 *second, mx_format format, const uint8_t *at, const uint8_t *scale,
                      const int8_t *zero, const codes *k) {
    if (mx_is_mxfp4(format)) {
        const __m512 values = _mm512_mul_ps(E2M1_VALUES, _mm512_set1_ps(k->table[*scale]));
        *first = look_up_nibbles(at, values);
        *second = look_up_nibbles(at + 8, values);
    } else if (is_coded(format)) {
        decode_codes(first, second, format, at, scale, zero, k);
    } else if (format == MX_BF16) {
        const __m512i halves = _mm512_setr_epi32(0x100000, 0x180008, 0x110001, 0x190009, 0x120002, 0x1a000a, 0x130003,
                                                 0x1b000b, 0x140004, 0x1c000c, 0x150005, 0x1d000d, 0x160006, 0x1e000e,
                                                 0x170007, 0x1f000f); /* low: columns 0 ... 15, high: 16 ... 31 */
        __m512i pairs = _mm512_permutexvar_epi16(halves, _mm512_loadu_si512(at));
        *first = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
        *second = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
    } else if (format == MX_F16) {
        *first = mx_load16(at, MX_F16);
        *second = mx_load16(at + 32, MX_F16);
    } else if (format == MX_Q8_0) {
        const __m512 by = mx_q8_0_scale(at);
        *first = _mm512_mul_ps(by, mx_load16_int8(at + 2));
        *second = _mm512_mul_ps(by, mx_load16_int8(at + 18));
    } else {
        *first = _mm512_permutexvar_ps(COLUMNS, _mm512_loadu_ps(at));
        *second = _mm512_permutexvar_ps(COLUMNS, _mm512_loadu_ps(at + 64));
    }
}

MX_INLINE const float *x_of_row(const mx_matmul *m, int64_t t) {
    return (const float *)(m->x + (m->x_row ? m->x_row[t] : t) * m->x_stride);
}

/* ---- few rows --------------------------------------------------------------------------------------------------- */

/* Into the second cache level: the first one's few outstanding misses would wait for memory too long. */
MX_INLINE void fetch(const char *at) {
    _mm_prefetch(at, _MM_HINT_T1);
}

/* sums[t][at + c] += columns c_begin ... c_end - 1 of R activation rows x[0..R) times C weight rows from row n on, R *
 * C = 8 or 16; the first `keep` of the C are kept. While it works the weight rows behind these (R < 4: all of K) or
 * FEW_N further on (the same columns) are fetched, evenly over the way. */
MX_INLINE void few_tile(const mx_matrix *w, mx_format format, int64_t n, const float *const *x, int R, int C,
                        int64_t c_begin, int64_t c_end, float (*sums)[BLOCK_N], int64_t at, int64_t keep,
                        const codes *k) {
    const int64_t stride = w->row_stride, scale_stride = w->scale_stride, bytes = bytes_of(format, w, 32);
    const int lines = (C * (int)bytes + 63) / 64; /* of 64 bytes, per 32 columns */
    const uint8_t *data = w->data + n * stride, *scales = has_scales(format) ? w->scales + n * scale_stride : NULL;
    const int8_t *zeros = mx_is_integer_format(format) ? w->zeros + n * w->zero_stride : NULL;
    const char *ahead = (const char *)data + C * stride;
    const bool apart = has_scales(format) && format != MX_MXFP4_GGML;
    const char *scales_ahead = apart ? (const char *)scales + C * scale_stride : NULL;
    const int64_t scales_step = is_coded(format) ? codes_scale_at(format, k, C) : C; /* per 32 columns */
    const int64_t skip = n + FEW_N + C <= w->rows ? FEW_N * stride : 0;
    float out[16] __attribute__((aligned(64)));
    __m512 total = _mm512_setzero_ps();
    for (int64_t c0 = c_begin; c0 < c_end; c0 += CHUNK) {
        int64_t blocks = (c_end - c0 < CHUNK ? c_end - c0 : CHUNK) / 32;
        __m512 acc[16];
        for (int i = 0; i < 16; i++) acc[i] = _mm512_setzero_ps();
        for (int64_t b = c0 / 32; b < c0 / 32 + blocks; b++) {
            /* two bases and multiples of a stride that addresses can hold: few registers */
            const uint8_t *base = data + bytes * b, *base4 = base + 4 * stride;
            const uint8_t *scale = has_scales(format) ? scales + scale_at(format, k, b) : NULL;
            const uint8_t *scale4 = has_scales(format) ? scale + 4 * scale_stride : NULL;
            const int8_t *zero = mx_is_integer_format(format) ? zeros + (32 * b >> k->zero_shift) : NULL;
            if (R < 4) { /* all activations in registers, weight rows one by one */
                __m512 x0[2], x1[2], first, second;
                for (int i = 0; i < lines; i++) fetch(ahead + 64 * i);
                ahead += C * bytes;
                if (apart) {
                    fetch(scales_ahead);
                    scales_ahead += scales_step;
                }
                for (int t = 0; t < R; t++) {
                    x0[t] = mx_load_once(x[t] + 32 * b);
                    x1[t] = mx_load_once(x[t] + 32 * b + 16);
                }
                for (int c = 0; c < C; c++) {
                    if (format == (mx_format)MX_ANY_CODES)
                        decode_any(&first, &second, w, n + c, b);
                    else
                        decode(&first, &second, format, (c < 4 ? base : base4) + (c & 3) * stride,
                               has_scales(format) ? (c < 4 ? scale : scale4) + (c & 3) * scale_stride : NULL,
                               mx_is_integer_format(format) ? zero + c * w->zero_stride : NULL, k);
                    for (int t = 0; t < R; t++) {
                        acc[c * R + t] = _mm512_fmadd_ps(first, x0[t], acc[c * R + t]);
                        acc[c * R + t] = _mm512_fmadd_ps(second, x1[t], acc[c * R + t]);
                    }
                }
            } else { /* all weights in registers, activation rows one by one */
                __m512 first[4], second[4];
                for (int c = 0; c < C; c++) {
                    const char *next = (const char *)base + skip + c * stride;
                    for (int64_t i = 0; i < bytes && b % (64 / (bytes < 64 ? bytes : 64)) == 0; i += 64)
                        fetch(next + i);
                    if (format == (mx_format)MX_ANY_CODES)
                        decode_any(&first[c], &second[c], w, n + c, b);
                    else
                        decode(&first[c], &second[c], format, base + c * stride,
                               has_scales(format) ? scale + c * scale_stride : NULL,
                               mx_is_integer_format(format) ? zero + c * w->zero_stride : NULL, k);
                }
                for (int t = 0; t < R; t++) {
                    __m512 x0 = mx_load_once(x[t] + 32 * b), x1 = mx_load_once(x[t] + 32 * b + 16);
                    for (int c = 0; c < C; c++) acc[c * R + t] = _mm512_fmadd_ps(first[c], x0, acc[c * R + t]);
                    for (int c = 0; c < C; c++) acc[c * R + t] = _mm512_fmadd_ps(second[c], x1, acc[c * R + t]);
                }
            }
        }
        total = _mm512_add_ps(total, R * C == 16 ? mx_fold16(acc) : _mm512_zextps256_ps512(mx_fold8(acc)));
    }
    _mm512_store_ps(out, total);
    for (int c = 0; c < keep; c++) {
        for (int t = 0; t < R; t++) sums[t][at + c] += out[c * R + t];
    }
}

/* Rows n0 + at ... n0 + end - 1 of w, of which row n0 + i goes to sums[][i]: tiles of C rows, then each row that is
 * left alone in a tile. */
MX_INLINE void few_rows_block(const mx_matrix *w, mx_format format, int64_t n0, int64_t at, int64_t end,
                              const float *const *x, int R, int C, int64_t c_begin, int64_t c_end,
                              float (*sums)[BLOCK_N], const codes *k) {
    int64_t i = at;
    for (; i + C <= end; i += C) few_tile(w, format, n0 + i, x, R, C, c_begin, c_end, sums, i, C, k);
    for (; i < end; i++) {
        mx_matrix row = *w;
        row.row_stride = row.scale_stride = row.zero_stride = 0; /* the same row C times */
        row.data += (n0 + i) * w->row_stride;
        if (w->scales) row.scales += (n0 + i) * w->scale_stride;
        if (w->zeros) row.zeros += (n0 + i) * w->zero_stride;
        few_tile(&row, format, 0, x, R, C, c_begin, c_end, sums, i, 1, k);
    }
}

/* One or two rows meet whole weight rows, as memory likes best. More of them, whose activations do not all fit the
 * first cache level, meet FEW_N weight rows with a chunk of K after the other. */
MX_INLINE void few_rows(const mx_matmul *m, mx_format format, int64_t n0, int64_t count, const codes *k, scratch *s) {
    float(*sums)[BLOCK_N] = (float(*)[BLOCK_N])s->sums;
    const float *x[FEW + TILE];
    for (int64_t i = 0; i < m->rows + TILE; i++) x[i] = x_of_row(m, i < m->rows ? i : m->rows - 1);
    memset(sums, 0, (size_t)((m->rows + TILE - 1) / TILE * TILE) * sizeof *sums);
    if (m->rows == 1) {
        few_rows_block(&m->w, format, n0, 0, count, x, 1, 8, 0, m->w.cols, sums, k);
    } else if (m->rows == 2) {
        few_rows_block(&m->w, format, n0, 0, count, x, 2, 8, 0, m->w.cols, sums, k);
    } else {
        for (int64_t at = 0; at < count; at += FEW_N) {
            const int64_t end = count - at < FEW_N ? count : at + FEW_N;
            for (int64_t c0 = 0; c0 < m->w.cols; c0 += CHUNK) {
                const int64_t c1 = m->w.cols - c0 < CHUNK ? m->w.cols : c0 + CHUNK;
                for (int64_t t = 0; t < m->rows; t += TILE) {
                    if (m->rows - t <= 4)
                        few_rows_block(&m->w, format, n0, at, end, x + t, 4, 4, c0, c1, sums + t, k);
                    else
                        few_rows_block(&m->w, format, n0, at, end, x + t, 8, 2, c0, c1, sums + t, k);
                }
            }
        }
    }
    for (int64_t i = 0; i < m->rows; i++) mx_finish_row(m, i, n0, count, sums[i], s->bias);
}

/* ---- many rows -------------------------------------------------------------------------------------------------- */

MX_INLINE void widen_panel(scratch *s, const mx_matrix *w, mx_format format, int64_t n0, int64_t count, int64_t c0,
                           int64_t blocks, const codes *k) {
    for (int64_t i = 0; i < count; i++) {
        const uint8_t *from = w->data + (n0 + i) * w->row_stride + bytes_of(format, w, c0);
        const uint8_t *scales = has_scales(format) ? w->scales + (n0 + i) * w->scale_stride : NULL;
        const int8_t *zeros = mx_is_integer_format(format) ? w->zeros + (n0 + i) * w->zero_stride : NULL;
        for (int64_t b = 0; b < blocks; b++) {
            __m512 first, second;
            if (format == (mx_format)MX_ANY_CODES)
                decode_any(&first, &second, w, n0 + i, c0 / 32 + b);
            else
                decode(&first, &second, format, from + bytes_of(format, w, 32 * b),
                       has_scales(format) ? scales + scale_at(format, k, c0 / 32 + b) : NULL,
                       mx_is_integer_format(format) ? zeros + ((c0 + 32 * b) >> k->zero_shift) : NULL, k);
            _mm512_store_ps(s->panel[i / GROUP][2 * b][i % GROUP], first);
            _mm512_store_ps(s->panel[i / GROUP][2 * b + 1][i % GROUP], second);
        }
    }
}

/* Interleaves R rows' chunk: [step][R][16]. */
MX_INLINE void gather_x(float *out, const float *const *x, int R, int64_t c0, int64_t steps) {
    for (int64_t step = 0; step < steps; step++) {
        for (int t = 0; t < R; t++) {
            _mm512_store_ps(out + (step * R + t) * 16, _mm512_loadu_ps(x[t] + c0 + step * 16));
        }
    }
}

/* sums[c * R + t] += weight row c . activation row t over `steps` vectors, for GROUP weight rows. */
MX_INLINE void many_tile(float sums[TILE_SUMS], const float *x, const float *w, int R, int64_t steps) {
    __m512 acc[TILE_SUMS];
    for (int i = 0; i < TILE_SUMS; i++) acc[i] = _mm512_setzero_ps();
    for (int64_t step = 0; step < steps; step++, x += R * 16, w += GROUP * 16) {
        __m512 w0 = _mm512_load_ps(w), w1 = _mm512_load_ps(w + 16), w2 = _mm512_load_ps(w + 32);
        for (int t = 0; t < R; t++) {
            __m512 xt = mx_load_once(x + t * 16);
            acc[t] = _mm512_fmadd_ps(w0, xt, acc[t]);
            acc[R + t] = _mm512_fmadd_ps(w1, xt, acc[R + t]);
            acc[2 * R + t] = _mm512_fmadd_ps(w2, xt, acc[2 * R + t]);
        }
    }
    _mm512_storeu_ps(sums, _mm512_add_ps(_mm512_loadu_ps(sums), mx_fold16(acc)));
    if (R == TILE) _mm256_storeu_ps(sums + 16, _mm256_add_ps(_mm256_loadu_ps(sums + 16), mx_fold8(acc + 16)));
}

/* The first R of the `rows` rows from t0 on (the last one again where there are fewer) times the panel's chunk. The
 * activations of the tile behind it are fetched meanwhile. */
MX_INLINE void multiply_tile(scratch *s, const mx_matmul *m, int64_t t0, int64_t rows, int R, float (*sums)[TILE_SUMS],
                             int64_t groups, int64_t c0, int64_t steps) {
    const float *x[TILE], *next[TILE];
    for (int64_t i = 0; i < TILE; i++) {
        x[i] = x_of_row(m, t0 + (i < rows ? i : rows - 1));
        next[i] = x_of_row(m, t0 + (i + TILE < rows ? i + TILE : rows - 1)) + c0;
    }
    gather_x(s->x, x, R, c0, steps);
    for (int64_t g = 0; g < groups; g++) {
        for (int64_t step = g * steps / groups; step < (g + 1) * steps / groups; step++) {
            for (int i = 0; i < TILE; i++) _mm_prefetch((const char *)(next[i] + step * 16), _MM_HINT_T1);
        }
        many_tile(sums[g], s->x, s->panel[g][0][0], R, steps);
    }
}

MX_INLINE void many_rows(const mx_matmul *m, mx_format format, int64_t n0, int64_t count, const codes *k, scratch *s) {
    int64_t groups = (count + GROUP - 1) / GROUP;
    for (int64_t t0 = 0; t0 < m->rows; t0 += BLOCK_T) {
        int64_t rows = m->rows - t0 < BLOCK_T ? m->rows - t0 : BLOCK_T;
        memset(s->sums, 0, (size_t)((rows + TILE - 1) / TILE) * sizeof s->sums[0]);
        for (int64_t c0 = 0; c0 < m->w.cols; c0 += CHUNK) {
            int64_t columns = m->w.cols - c0 < CHUNK ? m->w.cols - c0 : CHUNK;
            widen_panel(s, &m->w, format, n0, count, c0, columns / 32, k);
            for (int64_t t = 0; t < rows; t += TILE) {
                if (rows - t > 4) {
                    multiply_tile(s, m, t0 + t, rows - t, 8, s->sums[t / TILE], groups, c0, columns / 16);
                } else {
                    multiply_tile(s, m, t0 + t, rows - t, 4, s->sums[t / TILE], groups, c0, columns / 16);
                }
            }
        }
        for (int64_t t = 0; t < rows; t++) {
            int R = rows - t / TILE * TILE > 4 ? 8 : 4;
            for (int64_t i = 0; i < count; i++) {
                s->row[i] = s->sums[t / TILE][i / GROUP][i % GROUP * R + t % TILE];
            }
            mx_finish_row(m, t0 + t, n0, count, s->row, s->bias);
        }
    }
}

MX_INLINE void matmul(const mx_matmul *m, mx_format format) {
    scratch *s = (scratch *)m->scratch;
    codes k = {.table = s->table};
    mx_matmul with_scales;
    if (mx_is_mxfp4(format)) fill_powers(s->table);
    if (is_coded(format)) {
        with_scales = *m;
        k = codes_for(&with_scales.w, s->table);
        m = &with_scales;
    }
    for (int64_t n0 = m->n0; n0 < m->n1; n0 += BLOCK_N) {
        int64_t count = m->n1 - n0 < BLOCK_N ? m->n1 - n0 : BLOCK_N;
        mx_widen_bias(s->bias, m, n0, count);
        if (m->rows <= FEW) {
            few_rows(m, format, n0, count, &k, s);
        } else {
            many_rows(m, format, n0, count, &k, s);
        }
    }
}

#endif
