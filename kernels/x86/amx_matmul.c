/* Products of BF16 by tiles: TDPBF16PS multiplies 16 rows of 32 columns with 16 columns of 32 rows, pairs of elements
 * side by side. Columns of W and x go by in blocks of 32, ascending, one instruction a block (bf16x2: hi, then lo);
 * sums stay in tiles for CHUNK columns, then wait in memory, exactly.
 *
 * - few rows: weights are the operand of 16 rows as they lie in the file; the activations' side is padded to 16;
 * - many rows: weights are turned once into the operand of columns, in a panel that up to 256 activation rows share.
 *
 * Multiplication commutes, so both make the same sums, bit for bit. */
#include <immintrin.h>
#include <string.h>

#include "kernels/mxfp4.h"
#include "kernels/x86/amx.h"
#include "kernels/x86/amx_tile.h"
#include "kernels/x86/avx512_epilogue.h"
#include "kernels/x86/avx512bf16.h"

enum {
    CHUNK = 1024,          /* columns */
    BLOCKS = CHUNK / 32,   /* of a chunk */
    BLOCK_N = 96,          /* weight rows per panel and per epilogue */
    GROUPS = BLOCK_N / 16, /* of weight rows */
    BLOCK_T = 256,         /* activation rows that share a panel */
    FEW = 16,              /* up to this many rows the weights are the operand of rows */
    PAIR = 32,             /* activation rows of two tiles */
};

typedef uint8_t tile[MX_TILE_ROWS][MX_TILE_BYTES];

/* Scratch of one thread. */
typedef struct scratch {
    tile w[GROUPS][BLOCKS];       /* many rows: [k pair][weight row]; few rows: [weight row][k pair] */
    tile x[2][BLOCKS][2];         /* [tile of rows][block][hi, lo] */
    float sums[BLOCK_T][BLOCK_N]; /* [activation row][weight row] */
    float turned[BLOCK_N][16];    /* few rows: [weight row][activation row] */
    float bias[BLOCK_N];
} scratch;

_Static_assert(sizeof(scratch) <= MX_AMX_MATMUL_SCRATCH * sizeof(float), "the table says how much is needed");

/* ---- activations ------------------------------------------------------------------------------------------------ */

static int64_t packed_bf16(int64_t cols) {
    return 2 * cols;
}
static int64_t packed_bf16x2(int64_t cols) {
    return 4 * cols;
}

/* 32 values to BF16, to nearest even; subnormals are flushed, as the products would. */
MX_INLINE __m512i narrow32(__m512 low, __m512 high) {
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

MX_INLINE __m512 widen16(__m256i bf16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16));
}

static void pack_bf16(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows * cols; i += 32) {
        _mm512_store_si512(out + 2 * i, narrow32(_mm512_loadu_ps(x + i), _mm512_loadu_ps(x + i + 16)));
    }
}

/* Per 32 columns: hi, then lo. */
static void pack_bf16x2(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows * cols; i += 32) {
        __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + 16);
        __m512i hi = narrow32(a, b);
        a = _mm512_sub_ps(a, widen16(_mm512_castsi512_si256(hi)));
        b = _mm512_sub_ps(b, widen16(_mm512_extracti64x4_epi64(hi, 1)));
        _mm512_store_si512(out + 4 * i, hi);
        _mm512_store_si512(out + 4 * i + 64, narrow32(a, b));
    }
}

/* Rows t0 ... t0 + 15 (the last one again where there are fewer) of a chunk into tiles, as they are. */
static void gather_x(tile x[BLOCKS][2], const mx_matmul *m, int64_t t0, int64_t c0, int64_t blocks, int parts) {
    for (int64_t i = 0; i < MX_TILE_ROWS; i++) {
        int64_t t = t0 + i < m->rows ? t0 + i : m->rows - 1;
        const uint8_t *from = m->x + (m->x_row ? m->x_row[t] : t) * m->x_stride + 2 * c0 * parts;
        for (int64_t b = 0; b < blocks; b++) {
            for (int p = 0; p < parts; p++, from += MX_TILE_BYTES) {
                _mm512_store_si512(x[b][p][i], _mm512_load_si512(from));
            }
        }
    }
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

/* Columns 32 b ... 32 b + 31 of weight row n as BF16: exact, since MXFP4's scales lie in 2..252. */
MX_INLINE __m512i decode(const mx_matrix *w, mx_format format, int64_t n, int64_t b) {
    const uint8_t *row = w->data + n * w->row_stride;
    if (format == MX_BF16) return _mm512_loadu_si512(row + 64 * b);
    __m512i values = _mm512_load_si512(mx_e2m1_bf16[w->scales[n * w->scale_stride + b * mx_scale_step(format)]]);
    if (format == MX_MXFP4_GGML) {
        __m256i words =
            _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(row + mx_columns_bytes(format, 32 * b))));
        __m512i codes = _mm512_inserti64x4(_mm512_castsi256_si512(words), _mm256_srli_epi16(words, 4), 1);
        return _mm512_permutexvar_epi16(codes, values); /* looks at 5 bits; values are there twice */
    }
    __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(row + 16 * b)));
    return _mm512_permutexvar_epi16(_mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12)), values);
}

/* 16 weight rows from n on (zeros where `count` is fewer), one block, as they are. */
MX_INLINE void fill_rows(tile out, const mx_matrix *w, mx_format format, int64_t n, int64_t count, int64_t b) {
    for (int64_t i = 0; i < 16; i++) {
        _mm512_store_si512(out[i], i < count ? decode(w, format, n + i, b) : _mm512_setzero_si512());
    }
}

/* Transposes 16 x 16 elements of 32 bits. */
static void transpose(tile out, const tile in) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_load_si512(in[i]);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) { /* lane l of a[i + j]: element 4 l + j of rows i ... i + 3 */
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int j = 0; j < 4; j++) { /* lanes l of four groups of rows side by side */
        __m512i low01 = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x44), high01 = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xee);
        __m512i low23 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x44),
                high23 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xee);
        _mm512_store_si512(out[j], _mm512_shuffle_i32x4(low01, low23, 0x88));
        _mm512_store_si512(out[4 + j], _mm512_shuffle_i32x4(low01, low23, 0xdd));
        _mm512_store_si512(out[8 + j], _mm512_shuffle_i32x4(high01, high23, 0x88));
        _mm512_store_si512(out[12 + j], _mm512_shuffle_i32x4(high01, high23, 0xdd));
    }
}

/* ---- few rows --------------------------------------------------------------------------------------------------- */

/* Two groups of 16 weight rows times 16 activation rows over a chunk. Tiles: 0, 1 sums, 2, 3 weights, 4 activations. */
static void few_tiles(scratch *s, int group, int64_t blocks, int parts, bool first) {
    float(*sums)[16] = &s->turned[16 * group];
    if (first) {
        mx_tile_zero(0);
        mx_tile_zero(1);
    } else {
        mx_tile_load(0, sums[0], 64);
        mx_tile_load(1, sums[16], 64);
    }
    for (int64_t b = 0; b < blocks; b++) {
        mx_tile_load(2, s->w[group][b], 64);
        mx_tile_load(3, s->w[group + 1][b], 64);
        for (int p = 0; p < parts; p++) {
            mx_tile_load(4, s->x[0][b][p], 64);
            mx_tile_dpbf16(0, 2, 4);
            mx_tile_dpbf16(1, 3, 4);
        }
    }
    mx_tile_store(0, sums[0], 64);
    mx_tile_store(1, sums[16], 64);
}

/* All rows, at most 16. */
MX_INLINE void few_rows(const mx_matmul *m, mx_format format, int parts, int64_t n0, int64_t count, scratch *s) {
    int groups = (int)(count + 31) / 32 * 2;
    for (int64_t c0 = 0; c0 < m->w.cols; c0 += CHUNK) {
        int64_t blocks = (m->w.cols - c0 < CHUNK ? m->w.cols - c0 : CHUNK) / 32;
        gather_x(s->x[1], m, 0, c0, blocks, parts);
        for (int64_t b = 0; b < blocks; b++) {
            for (int p = 0; p < parts; p++) transpose(s->x[0][b][p], s->x[1][b][p]);
        }
        for (int g = 0; g < groups; g += 2) {
            for (int64_t b = 0; b < blocks; b++) {
                fill_rows(s->w[g][b], &m->w, format, n0 + 16 * g, count - 16 * g, c0 / 32 + b);
                fill_rows(s->w[g + 1][b], &m->w, format, n0 + 16 * g + 16, count - 16 * g - 16, c0 / 32 + b);
            }
            few_tiles(s, g, blocks, parts, c0 == 0);
        }
    }
    for (int64_t n = 0; n < 16 * groups; n++) {
        for (int64_t t = 0; t < m->rows; t++) s->sums[t][n] = s->turned[n][t];
    }
}

/* ---- many rows -------------------------------------------------------------------------------------------------- */

/* 32 activation rows times two groups of 16 weight rows over a chunk. Tiles: 0 ... 3 sums, 4, 5 activations, 6, 7
 * weights. `sums`: [32][BLOCK_N]. */
static void many_tiles(scratch *s, float *sums, int group, int64_t blocks, int parts, bool first) {
    const int64_t stride = BLOCK_N * sizeof(float);
    float *second = sums + 16 * BLOCK_N;
    if (first) {
        mx_tile_zero(0);
        mx_tile_zero(1);
        mx_tile_zero(2);
        mx_tile_zero(3);
    } else {
        mx_tile_load(0, sums, stride);
        mx_tile_load(1, sums + 16, stride);
        mx_tile_load(2, second, stride);
        mx_tile_load(3, second + 16, stride);
    }
    for (int64_t b = 0; b < blocks; b++) {
        mx_tile_load(6, s->w[group][b], 64);
        mx_tile_load(7, s->w[group + 1][b], 64);
        for (int p = 0; p < parts; p++) {
            mx_tile_load(4, s->x[0][b][p], 64);
            mx_tile_load(5, s->x[1][b][p], 64);
            mx_tile_dpbf16(0, 4, 6);
            mx_tile_dpbf16(1, 4, 7);
            mx_tile_dpbf16(2, 5, 6);
            mx_tile_dpbf16(3, 5, 7);
        }
    }
    mx_tile_store(0, sums, stride);
    mx_tile_store(1, sums + 16, stride);
    mx_tile_store(2, second, stride);
    mx_tile_store(3, second + 16, stride);
}

/* Rows t0 ... t0 + rows - 1, at most BLOCK_T. */
MX_INLINE void many_rows(const mx_matmul *m, mx_format format, int parts, int64_t n0, int64_t count, int64_t t0,
                         int64_t rows, scratch *s) {
    int groups = (int)(count + 31) / 32 * 2;
    for (int64_t c0 = 0; c0 < m->w.cols; c0 += CHUNK) {
        int64_t blocks = (m->w.cols - c0 < CHUNK ? m->w.cols - c0 : CHUNK) / 32;
        for (int g = 0; g < groups; g++) {
            for (int64_t b = 0; b < blocks; b++) {
                tile straight __attribute__((aligned(64)));
                fill_rows(straight, &m->w, format, n0 + 16 * g, count - 16 * g, c0 / 32 + b);
                transpose(s->w[g][b], straight);
            }
        }
        for (int64_t t = 0; t < rows; t += PAIR) {
            gather_x(s->x[0], m, t0 + t, c0, blocks, parts);
            gather_x(s->x[1], m, t0 + t + 16, c0, blocks, parts);
            for (int g = 0; g < groups; g += 2) many_tiles(s, &s->sums[t][16 * g], g, blocks, parts, c0 == 0);
        }
    }
}

MX_INLINE void matmul(const mx_matmul *m, mx_format format, int parts) {
    scratch *s = (scratch *)m->scratch;
    mx_tiles_begin();
    for (int64_t n0 = m->n0; n0 < m->n1; n0 += BLOCK_N) {
        int64_t count = m->n1 - n0 < BLOCK_N ? m->n1 - n0 : BLOCK_N;
        mx_widen_bias(s->bias, m, n0, count);
        for (int64_t t0 = 0; t0 < m->rows; t0 += BLOCK_T) {
            int64_t rows = m->rows - t0 < BLOCK_T ? m->rows - t0 : BLOCK_T;
            if (m->rows <= FEW)
                few_rows(m, format, parts, n0, count, s);
            else
                many_rows(m, format, parts, n0, count, t0, rows, s);
            for (int64_t t = 0; t < rows; t++) mx_finish_row(m, t0 + t, n0, count, s->sums[t], s->bias);
        }
    }
    mx_tiles_end();
}

static void matmul_bf16x2(const mx_matmul *m) {
    matmul(m, MX_BF16, 2);
}
static void matmul_bf16(const mx_matmul *m) {
    matmul(m, MX_BF16, 1);
}
static void matmul_mxfp4_bf16x2(const mx_matmul *m) {
    matmul(m, MX_MXFP4, 2);
}
static void matmul_mxfp4_bf16(const mx_matmul *m) {
    matmul(m, MX_MXFP4, 1);
}
static void matmul_mxfp4_ggml_bf16x2(const mx_matmul *m) {
    mx_matmul apart = mx_mxfp4_ggml_apart(m);
    matmul(&apart, MX_MXFP4_GGML, 2);
}
static void matmul_mxfp4_ggml_bf16(const mx_matmul *m) {
    mx_matmul apart = mx_mxfp4_ggml_apart(m);
    matmul(&apart, MX_MXFP4_GGML, 1);
}

const mx_product MX_AMX(bf16_product)[2] = {
    {packed_bf16x2, pack_bf16x2, matmul_bf16x2, true},
    {packed_bf16, pack_bf16, matmul_bf16, true},
};
const mx_product MX_AMX(mxfp4_product)[2] = {
    {packed_bf16x2, pack_bf16x2, matmul_mxfp4_bf16x2, true},
    {packed_bf16, pack_bf16, matmul_mxfp4_bf16, true},
};
const mx_product MX_AMX(mxfp4_ggml_product)[2] = {
    {packed_bf16x2, pack_bf16x2, matmul_mxfp4_ggml_bf16x2, true},
    {packed_bf16, pack_bf16, matmul_mxfp4_ggml_bf16, true},
};
