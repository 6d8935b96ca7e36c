#ifndef MX_KERNELS_X86_AVX512BF16_MATMUL_H
#define MX_KERNELS_X86_AVX512BF16_MATMUL_H

/* Matrix products with vdpbf16ps: BF16 and MXFP4 weights, activations as one BF16 or as hi + lo.
 *
 * The sum over K has one order, whatever the number of rows. K is cut into even chunks of some blocks of 32 columns.
 * Within a chunk one accumulator of 16 lanes takes a block at a time, hi before lo, and the lanes fold in a fixed tree;
 * the chunks' sums add up from the first to the last. A chunk is so short that the activations of a tile, up to 6 rows
 * and 36 KB, stay in a first cache level of 48 KB (Zen 5, Sapphire Rapids) while 4 rows of weights after the other pass
 * by: twice as many lines from the second level would be more than it has to give. (Zen 4 has 32 KB, and half the
 * multiplications in which to wait for the second level.) Weights are never copied: a block of MXFP4 becomes a vector
 * of BF16 with one shift and one permute of a table that holds the block's scale already.
 *
 * One file compiles it for each format (avx512bf16_matmul.c, _mxfp4.c, _ggml.c): compilers take long over it. */
#include <string.h>

#include "kernels/mxfp4.h"
#include "kernels/x86/avx512_epilogue.h"
#include "kernels/x86/avx512bf16.h"

enum {
    BLOCK_N = 96,  /* weight rows per epilogue, half of them where BF16 in the second cache level takes the room */
    TILE = 6,      /* activation rows of a tile, at most */
    GROUP = 4,     /* weight rows of a tile, */
    GROUP_FEW = 8, /* and of a tile of one or two activation rows */
    FETCHING = 8,  /* tiles during which the next weight rows are fetched */
    CHUNK = 48,    /* blocks of a chunk, at most; twice as many of MXFP4 times single BF16 */
};

/* Scratch of one thread, in floats. The last columns are for weight rows that are no whole group. */
typedef struct scratch {
    float sums[TILE][BLOCK_N + GROUP_FEW];
    float bias[BLOCK_N];
} scratch;

enum { STRIDE = BLOCK_N + GROUP_FEW };

_Static_assert(sizeof(scratch) <= MX_AVX512_MATMUL_SCRATCH * sizeof(float), "the table says how much is there");

/* ---- activations ------------------------------------------------------------------------------------------------ */

/* Rows are [block of 32 columns][hi, or hi and lo][32]. For BF16 weights the 32 are in their own order. For MXFP4 place
 * 8 q + j holds column 4 j + q, which is what a shift by 4 q leaves in the low bits of word j of a block; in GGML's
 * layout that is column 2 j + {0, 16, 1, 17}[q]. */
MX_INLINE void pack_row(uint8_t *out, const float *x, int64_t cols, mx_format format, bool split) {
    const __m512i pairs = _mm512_set_epi16(31, 27, 23, 19, 15, 11, 7, 3, 30, 26, 22, 18, 14, 10, 6, 2, 29, 25, 21, 17,
                                           13, 9, 5, 1, 28, 24, 20, 16, 12, 8, 4, 0);
    const __m512i ggml = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 30, 28, 26, 24, 22,
                                          20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i columns = format == MX_MXFP4_GGML ? ggml : pairs;
    for (int64_t i = 0; i < cols; i += 32, out += split ? 128 : 64) {
        __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + 16);
        __m512i hi = (__m512i)_mm512_cvtne2ps_pbh(b, a);
        _mm512_store_si512(out, mx_is_mxfp4(format) ? _mm512_permutexvar_epi16(columns, hi) : hi);
        if (split) {
            a = _mm512_sub_ps(a, mx_load16((const uint8_t *)&hi, MX_BF16));
            b = _mm512_sub_ps(b, mx_load16((const uint8_t *)&hi + 32, MX_BF16));
            __m512i lo = (__m512i)_mm512_cvtne2ps_pbh(b, a);
            _mm512_store_si512(out + 64, mx_is_mxfp4(format) ? _mm512_permutexvar_epi16(columns, lo) : lo);
        }
    }
}

/* Rows of BF16 a multiple of 4 KB apart would all want the same few places of the first cache level. */
MX_INLINE int64_t packed_bytes(int64_t cols, bool split) {
    return split ? cols * 4 : cols % 2048 ? cols * 2 : cols * 2 + 64;
}

MX_INLINE void pack(uint8_t *out, const float *x, int64_t rows, int64_t cols, mx_format format, bool split) {
    for (int64_t t = 0; t < rows; t++) pack_row(out + t * packed_bytes(cols, split), x + t * cols, cols, format, split);
}

MX_INLINE int64_t packed_bytes_bf16x2(int64_t cols) {
    return packed_bytes(cols, true);
}

/* ---- tiles ------------------------------------------------------------------------------------------------------ */

/* A block of MXFP4 in the order of pack: each weight's code in the low bits of a word, */
MX_INLINE __m512i codes_of(const uint8_t *at) {
    const __m512i nibble = _mm512_set_epi64(0x000c000c000c000c, 0x000c000c000c000c, 0x0008000800080008,
                                            0x0008000800080008, 0x0004000400040004, 0x0004000400040004, 0, 0);
    return _mm512_srlv_epi16(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)at)), nibble);
}

/* and the weights. */
MX_INLINE __m512i look_up(__m512i codes, uint8_t scale) {
    return _mm512_permutexvar_epi16(codes, _mm512_load_si512(mx_e2m1_bf16[scale]));
}

MX_INLINE __m512i decode(mx_format format, const uint8_t *at, const uint8_t *scale) {
    return format == MX_BF16 ? _mm512_loadu_si512(at) : look_up(codes_of(at), *scale);
}

MX_INLINE int64_t x_bytes(bool split) {
    return split ? 128 : 64;
}

/* Memory that is fetched into the second cache level while a tile works: for each block `lines` of 64 bytes, and then
 * `step` bytes further. All at once it would be in the way of what the tile itself reads. */
typedef struct fetch {
    const char *at;
    int lines;
    int64_t step;
} fetch;

/* Adds to the C sums at `to` the first ones of eight accumulators or more, folded: R rows of C. */
MX_INLINE void add_folded(float *to, const __m512 *acc, int R, int C) {
    if (C == GROUP_FEW) {
        for (int t = 0; t < R; t++) {
            float *at = to + t * STRIDE;
            _mm256_storeu_ps(at, _mm256_add_ps(_mm256_loadu_ps(at), mx_fold8(acc + t * C)));
        }
        return;
    }
    __m512 first = mx_fold16(acc), second = R > 4 ? _mm512_castps256_ps512(mx_fold8(acc + 16)) : first;
    const __m128 row[TILE] = {_mm512_castps512_ps128(first),    _mm512_extractf32x4_ps(first, 1),
                              _mm512_extractf32x4_ps(first, 2), _mm512_extractf32x4_ps(first, 3),
                              _mm512_castps512_ps128(second),   _mm512_extractf32x4_ps(second, 1)};
    for (int t = 0; t < R; t++) {
        float *at = to + t * STRIDE;
        _mm_storeu_ps(at, _mm_add_ps(_mm_loadu_ps(at), row[t]));
    }
}

/* sums[t * STRIDE + c] += R activation rows x[t] times the first C rows of w, over so many blocks. */
MX_INLINE void tile(const mx_matrix *w, mx_format format, const uint8_t *const *rows, int R, int C, bool split,
                    int64_t blocks, float *sums, fetch f) {
    const int64_t stride = w->row_stride, scale_stride = w->scale_stride;
    const uint8_t *data = w->data, *scales = w->scales;
    const uint8_t *x[TILE];
    __m512 acc[24];
    for (int t = 0; t < R; t++) x[t] = rows[t];
    for (int i = 0; i < 24; i++) acc[i] = _mm512_setzero_ps();
    for (int64_t b = 0, at = 0; b < blocks; b++, at += x_bytes(split)) {
        __m512i weight[GROUP_FEW];
        for (int i = 0; i < f.lines; i++) _mm_prefetch(f.at + 64 * i, _MM_HINT_T1);
        if (f.lines) f.at += f.step;
        const uint8_t *data4 = data + 4 * stride, *scales4 = mx_is_mxfp4(format) ? scales + 4 * scale_stride : NULL;
        for (int c = 0; c < C; c++) {
            weight[c] = decode(format, (c < 4 ? data : data4) + (c & 3) * stride,
                               mx_is_mxfp4(format) ? (c < 4 ? scales : scales4) + (c & 3) * scale_stride : NULL);
        }
        for (int half = 0; half < (split ? 2 : 1); half++) {
            for (int t = 0; t < R; t++) {
                __m512bh xt = (__m512bh)mx_load_once(x[t] + at + 64 * half);
                for (int c = 0; c < C; c++) {
                    acc[t * C + c] = _mm512_dpbf16_ps(acc[t * C + c], (__m512bh)weight[c], xt);
                }
            }
        }
        data += mx_columns_bytes(format, 32);
        if (mx_is_mxfp4(format)) scales += mx_scale_step(format);
    }
    add_folded(sums, acc, R, C);
}

/* One or two rows times eight weight rows, three to six rows times four. */
MX_INLINE void tile_of(const mx_matrix *w, mx_format format, const uint8_t *const *x, int64_t rows, int C, bool split,
                       int64_t blocks, float *sums, fetch f) {
    if (C == GROUP_FEW) {
        if (rows == 1)
            tile(w, format, x, 1, C, split, blocks, sums, f);
        else
            tile(w, format, x, 2, C, split, blocks, sums, f);
    } else if (rows == 3) {
        tile(w, format, x, 3, C, split, blocks, sums, f);
    } else if (rows == 4) {
        tile(w, format, x, 4, C, split, blocks, sums, f);
    } else if (rows == 5) {
        tile(w, format, x, 5, C, split, blocks, sums, f);
    } else {
        tile(w, format, x, 6, C, split, blocks, sums, f);
    }
}

/* ---- the walk --------------------------------------------------------------------------------------------------- */

/* Activation rows begin ... begin + rows - 1 in their tile. */
typedef struct x_rows {
    int64_t begin, rows;
} x_rows;

MX_INLINE x_rows rows_of(const mx_matmul *m, int64_t tiles, int64_t k) {
    const int64_t begin = m->rows * k / tiles;
    return (x_rows){begin, m->rows * (k + 1) / tiles - begin};
}

MX_INLINE int64_t chunks_of(const mx_matmul *m, mx_format format, bool split) {
    const int64_t most = mx_is_mxfp4(format) && !split ? 2 * CHUNK : CHUNK;
    return (m->w.cols / 32 + most - 1) / most;
}

/* The rows of a tile from the first block of a chunk on, and how many blocks that has. */
typedef struct piece {
    const uint8_t *x[TILE];
    int64_t rows, first, blocks;
} piece;

MX_INLINE piece piece_of(const mx_matmul *m, mx_format format, bool split, x_rows r, int64_t chunk) {
    const int64_t blocks = m->w.cols / 32, chunks = chunks_of(m, format, split), first = blocks * chunk / chunks;
    piece p = {.rows = r.rows, .first = first, .blocks = blocks * (chunk + 1) / chunks - first};
    for (int64_t t = 0; t < r.rows; t++) {
        const int64_t row = m->x_row ? m->x_row[r.begin + t] : r.begin + t;
        p.x[t] = m->x + row * m->x_stride + first * x_bytes(split);
    }
    return p;
}

/* sums += the piece times the weight rows from n on. repeat: row n again and again. */
MX_INLINE void multiply(const mx_matmul *m, mx_format format, bool split, const piece *p, int C, int64_t n, bool repeat,
                        float *sums, fetch f) {
    mx_matrix w = m->w;
    w.data += n * w.row_stride + p->first * mx_columns_bytes(format, 32);
    if (mx_is_mxfp4(format)) w.scales += n * w.scale_stride + p->first * mx_scale_step(format);
    if (repeat) w.row_stride = w.scale_stride = 0;
    tile_of(&w, format, p->x, p->rows, C, split, p->blocks, sums, f);
}

/* The weight rows behind the last whole group: the last C once more, or each by itself where there are fewer. */
MX_INLINE void multiply_rest(const mx_matmul *m, mx_format format, bool split, x_rows r, int C, int64_t n0,
                             int64_t count, float (*sums)[STRIDE]) {
    const bool repeat = count < C;
    for (int64_t i = count / C * C; i < count; i += repeat ? 1 : C) {
        for (int64_t t = 0; t < r.rows; t++) memset(&sums[t][BLOCK_N], 0, GROUP_FEW * sizeof **sums);
        for (int64_t chunk = 0; chunk < chunks_of(m, format, split); chunk++) {
            const piece p = piece_of(m, format, split, r, chunk);
            multiply(m, format, split, &p, C, n0 + (repeat ? i : count - C), repeat, &sums[0][BLOCK_N], (fetch){0});
        }
        for (int64_t t = 0; t < r.rows; t++) {
            const float *at = &sums[t][BLOCK_N];
            if (repeat)
                sums[t][i] = *at;
            else
                memcpy(&sums[t][i], at + C - (count - i), (size_t)(count - i) * sizeof *at);
        }
    }
}

/* The first of C rows to be fetched: n, or the last ones of the matrix, which are there already, instead of others'. */
MX_INLINE int64_t rows_ahead(const mx_matmul *m, int64_t n, int C) {
    const int64_t last = m->w.rows > C ? m->w.rows - C : 0;
    return n < last ? n : last;
}

/* Fetches `bytes` from `at` on. */
MX_INLINE void fetch_all(const uint8_t *at, int64_t bytes) {
    for (int64_t i = 0; i < bytes + 63; i += 64) _mm_prefetch((const char *)at + i, _MM_HINT_T1);
}

/* Bytes of a block that are fetched evenly over the way. Of MXFP4 the 17th is fetched with those of all other blocks,
 * from rest_of on: its scale, or, where scales lie between the codes, what C rows one behind the other end with. */
MX_INLINE int64_t even_bytes(mx_format format) {
    return format == MX_BF16 ? 64 : 16;
}

MX_INLINE const uint8_t *rest_of(const mx_matmul *m, mx_format format, int64_t n, int C) {
    if (format == MX_MXFP4) return m->w.scales + n * m->w.scale_stride;
    return m->w.data + n * m->w.row_stride + C * (m->w.cols / 32) * even_bytes(format);
}

/* Outputs n0 ... n0 + count - 1 of one or two rows: whole, they fit the first cache level beside eight weight rows. A
 * group of these meets them before the next one; memory likes that best. A group behind it is fetched: the next one, or
 * the one after it where groups are so short (MXFP4) that memory would not answer in time. */
MX_INLINE void multiply_few(const mx_matmul *m, mx_format format, bool split, int64_t n0, int64_t count, scratch *s) {
    enum { C = GROUP_FEW };
    const int64_t chunks = chunks_of(m, format, split), step = C * even_bytes(format);
    const x_rows r = {0, m->rows};
    for (int64_t i = 0; i + C <= count; i += C) {
        const int64_t next = rows_ahead(m, n0 + i + (mx_is_mxfp4(format) ? 2 * C : C), C);
        fetch f = {(const char *)m->w.data + next * m->w.row_stride, (int)step / 64, step};
        if (mx_is_mxfp4(format)) fetch_all(rest_of(m, format, next, C), C * (m->w.cols / 32));
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const piece p = piece_of(m, format, split, r, chunk);
            multiply(m, format, split, &p, C, n0 + i, false, &s->sums[0][i], f);
            f.at += p.blocks * step;
        }
    }
    multiply_rest(m, format, split, r, C, n0, count, s->sums);
}

/* Outputs n0 ... n0 + count - 1 of one tile of several: a chunk of it meets all weight rows. While the last tiles work,
 * the weight rows behind are fetched, `lines` for each block of a group: earlier ones would lose them again to all the
 * activations that pass through the second cache level. */
MX_INLINE void multiply_many(const mx_matmul *m, mx_format format, bool split, int lines, int64_t tiles, int64_t k,
                             int64_t n0, int64_t count, scratch *s) {
    enum { C = GROUP };
    const int64_t chunks = chunks_of(m, format, split), fetching = tiles < FETCHING ? tiles : FETCHING;
    const int64_t parts = fetching * chunks, rest = C * (m->w.cols / 32), bytes = rest * even_bytes(format);
    const x_rows r = rows_of(m, tiles, k);
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        const piece p = piece_of(m, format, split, r, chunk);
        const int64_t part = (k - (tiles - fetching)) * chunks + chunk, at = bytes * part / parts,
                      rest_at = rest * part / parts, step = (bytes / parts + p.blocks - 1) / p.blocks,
                      rest_bytes = rest / parts;
        for (int64_t i = 0; i + C <= count; i += C) {
            const int64_t next = rows_ahead(m, n0 + count + i, C);
            const fetch f = {(const char *)m->w.data + next * m->w.row_stride + at, lines, step};
            if (mx_is_mxfp4(format) && lines) fetch_all(rest_of(m, format, next, C) + rest_at, rest_bytes);
            multiply(m, format, split, &p, C, n0 + i, false, &s->sums[0][i], f);
        }
    }
    multiply_rest(m, format, split, r, C, n0, count, s->sums);
}

MX_INLINE void matmul(const mx_matmul *m, mx_format format, bool split) {
    scratch *s = (scratch *)m->scratch;
    const int64_t tiles = m->rows <= 2 ? 1 : (m->rows + TILE - 1) / TILE;
    const int64_t block_n = format == MX_BF16 ? BLOCK_N / 2 : BLOCK_N;
    const int lines = (int)even_bytes(format) * GROUP / 64;
    for (int64_t n0 = m->n0; n0 < m->n1; n0 += block_n) {
        const int64_t count = m->n1 - n0 < block_n ? m->n1 - n0 : block_n;
        mx_widen_bias(s->bias, m, n0, count);
        for (int64_t k = 0; k < tiles; k++) {
            const x_rows r = rows_of(m, tiles, k);
            memset(s->sums, 0, (size_t)r.rows * sizeof s->sums[0]);
            if (m->rows <= 2)
                multiply_few(m, format, split, n0, count, s);
            else if (tiles == 1)
                multiply_many(m, format, split, lines, tiles, k, n0, count, s);
            else if (tiles < 4)
                multiply_many(m, format, split, (lines + 1) / 2, tiles, k, n0, count, s);
            else if (k < tiles - FETCHING)
                multiply_many(m, format, split, 0, tiles, k, n0, count, s);
            else
                multiply_many(m, format, split, 1, tiles, k, n0, count, s);
            for (int64_t t = 0; t < r.rows; t++) mx_finish_row(m, r.begin + t, n0, count, s->sums[t], s->bias);
        }
    }
}

#endif
