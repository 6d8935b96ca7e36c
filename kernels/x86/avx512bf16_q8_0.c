/* Products of Q8_0 weights and activations as one BF16, with vdpbf16ps. (With hi + lo it would be two of these for 32
 * columns, as many instructions as FMAs in fp32, which need no more than weights as they come: the AVX-512 tier's.)
 *
 * An integer of 8 bits is exact in BF16; its scale is multiplied onto the sum of a block. So that this is one FMA for
 * 16 sums of a block and not for one, lanes are weight rows: a block of 16 rows becomes 16 vectors, each with a pair of
 * columns of every row, and activations are broadcast pair by pair.
 *
 * The sum over K has one order, whatever the number of rows: the sum of a block of 32 columns starts from zero and
 * takes pair after pair; then one FMA adds it, times its scale, to the sum of the blocks before. Weights pass through a
 * panel in the first cache level, for one row as for many: short, so that while some of them are multiplied the next
 * ones are never long in coming. */
#include <string.h>

#include "kernels/x86/avx512_epilogue.h"
#include "kernels/x86/avx512bf16.h"

enum {
    LANES = 16,               /* weight rows of a vector */
    GROUPS = 2,               /* vectors of a tile */
    BLOCK_N = LANES * GROUPS, /* weight rows of a panel and per epilogue */
    TILE = 6,                 /* activation rows of a tile, at most: 12 sums of a block, 12 in all */
    BLOCK_T = 256,            /* activation rows that share a panel */
    BLOCKS = 6,               /* of 32 columns in a panel: 12 KB */
    PAIRS = 16,               /* of columns in a block */
};

/* Scratch of one thread. */
typedef struct scratch {
    __m512i panel[BLOCKS][PAIRS][GROUPS];
    float scale[BLOCKS][GROUPS][LANES];
    float sums[BLOCK_T][BLOCK_N];
    float bias[BLOCK_N];
    uint8_t rest[LANES][BLOCKS * MX_Q8_0_BYTES]; /* rows that are no whole group */
} scratch;

_Static_assert(sizeof(scratch) <= MX_AVX512_MATMUL_SCRATCH * sizeof(float), "the table says how much is there");

/* ---- weights ---------------------------------------------------------------------------------------------------- */

/* The bytes of 0 ... 127 in BF16. */
#define STEP(first, step)  (first), (first) + (step)
#define STEP4(first, step) STEP(first, step), STEP((first) + 2 * (step), step)
#define STEP16(first, step)                                                                                            \
    STEP4(first, step), STEP4((first) + 4 * (step), step), STEP4((first) + 8 * (step), step),                          \
        STEP4((first) + 12 * (step), step)
#define STEP64(first, step)                                                                                            \
    STEP16(first, step), STEP16((first) + 16 * (step), step), STEP16((first) + 32 * (step), step),                     \
        STEP16((first) + 48 * (step), step)
static const uint8_t low_bytes[128] __attribute__((aligned(64))) = {
    0x00,
    0x80,
    STEP(0x00, 0x40),
    STEP4(0x80, 0x20),
    STEP4(0x00, 0x10),
    STEP4(0x40, 0x10),
    STEP16(0x80, 8),
    STEP16(0x00, 4),
    STEP16(0x40, 4),
    STEP64(0x80, 2),
};
static const uint8_t high_bytes[128] __attribute__((aligned(64))) = {
    0x00,
    0x3f,
    STEP(0x40, 0),
    STEP4(0x40, 0),
    STEP4(0x41, 0),
    STEP4(0x41, 0),
    STEP16(0x41, 0),
    STEP16(0x42, 0),
    STEP16(0x42, 0),
    STEP64(0x42, 0),
};

/* Sixteen rows `stride` bytes apart, by four bases and multiples of a stride that addresses can hold: few registers. */
typedef struct rows16 {
    const uint8_t *base[4];
    int64_t stride;
} rows16;

MX_INLINE rows16 rows_from(const uint8_t *at, int64_t stride) {
    return (rows16){{at, at + 4 * stride, at + 8 * stride, at + 12 * stride}, stride};
}

MX_INLINE const uint8_t *row_of(const rows16 *r, int i) {
    return r->base[i / 4] + i % 4 * r->stride;
}

/* A block as quads[c]: lane i of 128 bits has columns 4 c and 4 c + 1 of rows 4 i ... 4 i + 3, then 4 c + 2 and 4 c + 3
 * of these. */
MX_INLINE void transpose(__m512i quads[8], const rows16 *r, int64_t at) {
    __m512i a[8], b[8];
    for (int i = 0; i < 8; i++) { /* i < 4: rows i and 4 + i; else 4 + i and 8 + i */
        const uint8_t *low = row_of(r, i < 4 ? i : 4 + i) + at, *high = row_of(r, i < 4 ? 4 + i : 8 + i) + at;
        a[i] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)low)),
                                  _mm256_loadu_si256((const __m256i *)high), 1);
    }
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm512_unpacklo_epi16(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi16(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8;
         i += 4) { /* a[i + j]: pairs 2 j, 2 j + 1 and pairs 8 + 2 j, 9 + 2 j by turns, of four rows */
        a[i] = _mm512_unpacklo_epi32(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi32(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi32(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi32(b[i + 1], b[i + 3]);
    }
    for (int j = 0; j < 4; j++) {
        quads[j] = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88);
        quads[4 + j] = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
    }
}

/* Integers to BF16: of each 16 bytes the first 8, then the others. The two bytes of a BF16 come from tables of 0 ...
 * 127; -128, which looks like 0 to them, differs from it in the upper byte. */
MX_INLINE void convert(__m512i out[2], __m512i q) {
    const __m512i *low = (const __m512i *)low_bytes, *high = (const __m512i *)high_bytes;
    const __m512i sign = _mm512_set1_epi8((char)0x80), magnitude = _mm512_abs_epi8(q);
    __m512i lo = _mm512_permutex2var_epi8(low[0], magnitude, low[1]);
    __m512i hi = _mm512_permutex2var_epi8(high[0], magnitude, high[1]);
    hi = _mm512_ternarylogic_epi32(hi, q, sign, 0xf8); /* hi | (q & sign) */
    hi = _mm512_mask_mov_epi8(hi, _mm512_cmpeq_epi8_mask(q, sign), _mm512_set1_epi8((char)0xc3));
    out[0] = _mm512_unpacklo_epi8(lo, hi);
    out[1] = _mm512_unpackhi_epi8(lo, hi);
}

/* The scales of 16 rows' blocks at `at`. */
MX_INLINE __m512 scales_of(const rows16 *r, int64_t at) {
    uint16_t h[LANES];
    for (int i = 0; i < LANES; i++) h[i] = mx_load_u16(row_of(r, i) + at);
    return _mm512_cvtph_ps(_mm256_setr_epi16(
        (short)h[0], (short)h[1], (short)h[2], (short)h[3], (short)h[4], (short)h[5], (short)h[6], (short)h[7],
        (short)h[8], (short)h[9], (short)h[10], (short)h[11], (short)h[12], (short)h[13], (short)h[14], (short)h[15]));
}

/* So many blocks of 16 rows into group g of the panel. As many bytes from `ahead` on are fetched meanwhile into the
 * second cache level. */
MX_INLINE void fill_group(scratch *s, int g, const uint8_t *data, int64_t stride, int64_t blocks, const char *ahead) {
    const rows16 r = rows_from(data, stride);
    for (int64_t b = 0; b < blocks; b++) {
        __m512i quads[8];
        for (int i = 0; i < LANES * MX_Q8_0_BYTES; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
        ahead += LANES * MX_Q8_0_BYTES;
        transpose(quads, &r, b * MX_Q8_0_BYTES + 2);
        for (int i = 0; i < 8; i++) {
            __m512i pair[2];
            convert(pair, quads[i]);
            s->panel[b][2 * i][g] = pair[0];
            s->panel[b][2 * i + 1][g] = pair[1];
        }
        _mm512_store_ps(s->scale[b][g], scales_of(&r, b * MX_Q8_0_BYTES));
    }
}

/* So many blocks, from block `first` of K on, of `count` rows from row n on; the last row again up to BLOCK_N. What is
 * fetched meanwhile is the same part of the memory of the next rows. */
static void fill_panel(scratch *s, const mx_matrix *w, int64_t n, int64_t count, int64_t first, int64_t blocks) {
    const int64_t stride = w->row_stride, bytes = blocks * MX_Q8_0_BYTES;
    const uint8_t *data = w->data + n * stride + first * MX_Q8_0_BYTES;
    const int64_t last = w->rows > BLOCK_N ? w->rows - BLOCK_N : 0, next = n + BLOCK_N < last ? n + BLOCK_N : last;
    const char *ahead = (const char *)w->data + next * stride + BLOCK_N * first * MX_Q8_0_BYTES;
    for (int g = 0; g < GROUPS; g++, ahead += LANES * bytes) {
        if (count >= (g + 1) * LANES) {
            fill_group(s, g, data + g * LANES * stride, stride, blocks, ahead);
            continue;
        }
        for (int64_t i = 0; i < LANES; i++) {
            const int64_t row = g * LANES + i < count ? g * LANES + i : count - 1;
            memcpy(s->rest[i], data + row * stride, (size_t)bytes);
        }
        fill_group(s, g, s->rest[0], sizeof s->rest[0], blocks, ahead);
    }
}

/* ---- tiles ------------------------------------------------------------------------------------------------------ */

/* Four bytes, in every lane; once, as mx_load_once. */
MX_INLINE __m512bh broadcast(const uint8_t *at) {
    __m512i v = _mm512_set1_epi32((int)mx_load_u32(at));
    __asm__("" : "+v"(v));
    return (__m512bh)v;
}

/* total[GROUPS * t + g], of R activation rows and the groups of the panel, go on by U blocks from b on. Blocks' sums do
 * not wait for each other: so that there are enough of them, U is more than one where R is small. */
MX_INLINE void add_blocks(__m512 *total, const scratch *s, const uint8_t *const *x, int R, int U, int64_t b) {
    __m512 sum[GROUPS * TILE];
    for (int i = 0; i < GROUPS * R * U; i++) sum[i] = _mm512_setzero_ps();
#pragma GCC unroll 16 /* a loop would copy registers, for which there is no room */
    for (int p = 0; p < PAIRS; p++) {
        for (int u = 0; u < U; u++) {
            const __m512bh w0 = (__m512bh)mx_load_once(&s->panel[b + u][p][0]);
            const __m512bh w1 = (__m512bh)mx_load_once(&s->panel[b + u][p][1]);
            for (int t = 0; t < R; t++) {
                const __m512bh xt = broadcast(x[t] + (b + u) * 64 + 4 * p);
                __m512 *to = sum + GROUPS * (R * u + t);
                to[0] = _mm512_dpbf16_ps(to[0], w0, xt);
                to[1] = _mm512_dpbf16_ps(to[1], w1, xt);
            }
        }
    }
    for (int u = 0; u < U; u++) {
        for (int g = 0; g < GROUPS; g++) {
            const __m512 scale = _mm512_load_ps(s->scale[b + u][g]);
            for (int t = 0; t < R; t++) {
                const int i = GROUPS * t + g;
                total[i] = _mm512_fmadd_ps(sum[GROUPS * R * u + i], scale, total[i]);
            }
        }
    }
}

/* sums[t][0 ... BLOCK_N - 1] go on by so many blocks of the panel, for R activation rows. */
MX_INLINE void tile(const scratch *s, const uint8_t *const *rows, int R, int64_t blocks, float (*sums)[BLOCK_N]) {
    const int U = R == 1 ? 4 : TILE / R;
    const uint8_t *x[TILE];
    __m512 total[GROUPS * TILE];
    int64_t b = 0;
    for (int t = 0; t < R; t++) {
        x[t] = rows[t];
        for (int g = 0; g < GROUPS; g++) total[GROUPS * t + g] = _mm512_load_ps(&sums[t][g * LANES]);
    }
    for (; b + U <= blocks; b += U) add_blocks(total, s, x, R, U, b);
    for (; U > 1 && b < blocks; b++) add_blocks(total, s, x, R, 1, b);
    for (int t = 0; t < R; t++) {
        for (int g = 0; g < GROUPS; g++) _mm512_store_ps(&sums[t][g * LANES], total[GROUPS * t + g]);
    }
}

MX_INLINE void tile_of(const scratch *s, const uint8_t *const *x, int64_t rows, int64_t blocks,
                       float (*sums)[BLOCK_N]) {
    if (rows == 1)
        tile(s, x, 1, blocks, sums);
    else if (rows == 2)
        tile(s, x, 2, blocks, sums);
    else if (rows == 3)
        tile(s, x, 3, blocks, sums);
    else if (rows == 4)
        tile(s, x, 4, blocks, sums);
    else if (rows == 5)
        tile(s, x, 5, blocks, sums);
    else
        tile(s, x, 6, blocks, sums);
}

/* ---- the walk --------------------------------------------------------------------------------------------------- */

/* `rows` activation rows from t0 on times the panel, whose blocks are those of K from block `first` on. */
static void multiply(scratch *s, const mx_matmul *m, int64_t t0, int64_t rows, int64_t first, int64_t blocks) {
    const int64_t tiles = (rows + TILE - 1) / TILE;
    for (int64_t k = 0; k < tiles; k++) {
        const int64_t begin = rows * k / tiles, count = rows * (k + 1) / tiles - begin;
        const uint8_t *x[TILE];
        for (int64_t t = 0; t < count; t++) {
            const int64_t row = m->x_row ? m->x_row[t0 + begin + t] : t0 + begin + t;
            x[t] = m->x + row * m->x_stride + first * 64;
        }
        tile_of(s, x, count, blocks, s->sums + begin);
    }
}

static void matmul(const mx_matmul *m) {
    scratch *s = (scratch *)m->scratch;
    const int64_t all = m->w.cols / 32;
    for (int64_t n0 = m->n0; n0 < m->n1; n0 += BLOCK_N) {
        const int64_t count = m->n1 - n0 < BLOCK_N ? m->n1 - n0 : BLOCK_N;
        mx_widen_bias(s->bias, m, n0, count);
        for (int64_t t0 = 0; t0 < m->rows; t0 += BLOCK_T) {
            const int64_t rows = m->rows - t0 < BLOCK_T ? m->rows - t0 : BLOCK_T;
            memset(s->sums, 0, (size_t)rows * sizeof s->sums[0]);
            for (int64_t first = 0; first < all; first += BLOCKS) {
                const int64_t blocks = all - first < BLOCKS ? all - first : BLOCKS;
                fill_panel(s, &m->w, n0, count, first, blocks);
                multiply(s, m, t0, rows, first, blocks);
            }
            for (int64_t t = 0; t < rows; t++) mx_finish_row(m, t0 + t, n0, count, s->sums[t], s->bias);
        }
    }
}

const mx_product mx_avx512bf16_q8_0 = {mx_avx512bf16_packed_bf16, mx_avx512bf16_pack_bf16, matmul, true};
