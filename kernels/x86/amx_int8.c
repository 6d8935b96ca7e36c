/* Precision MX_X_INT8 (kernels/int8.h) by tiles: TDPBSSD multiplies a block of 32 columns of 16 weight rows with that
 * of 16 activation rows, exactly; the integers leave the tile and join the fp32 sums, block by block, ascending.
 * Weights are decoded once a chunk into a panel that up to 256 activation rows share. */
#include <immintrin.h>
#include <string.h>

#include "kernels/int8.h"
#include "kernels/mxfp4.h"
#include "kernels/x86/amx.h"
#include "kernels/x86/amx_tile.h"
#include "kernels/x86/avx512_epilogue.h"

enum {
    BLOCKS = 32,           /* of 32 columns, in a chunk */
    BLOCK_N = 96,          /* weight rows per panel and per epilogue */
    GROUPS = BLOCK_N / 16, /* of weight rows */
    BLOCK_T = 256,         /* activation rows that share a panel */
    TILES_T = BLOCK_T / 16,
};

/* Scratch of one thread. */
typedef struct scratch {
    int8_t w[GROUPS][BLOCKS][16][32]; /* the columns in the order of mx_int8_block.x */
    float power[GROUPS][BLOCKS][16];  /* 2^(s - 128) */
    int8_t x[BLOCKS][8][16][4];       /* [four columns][activation row] */
    float scale[BLOCKS][16];          /* of the activation rows */
    int32_t dot[16][16];
    float sums[TILES_T][GROUPS][16][16]; /* [weight row][activation row] */
    float row[BLOCK_N], bias[BLOCK_N];
} scratch;

_Static_assert(sizeof(scratch) <= MX_AMX_MATMUL_SCRATCH * sizeof(float), "the table says how much is needed");

/* Blocks b0 ... b0 + blocks - 1 of 16 weight rows from n on; zeros for rows beyond `count`. */
MX_INLINE void decode(int8_t w[BLOCKS][16][32], float power[BLOCKS][16], const mx_matrix *m, mx_format format,
                      int64_t n, int64_t count, int64_t b0, int64_t blocks) {
    const int64_t step = mx_columns_bytes(format, 32), scale_step = mx_scale_step(format);
    const __m128i values = _mm_setr_epi8(MX_INT8_WEIGHTS), nibble = _mm_set1_epi8(15);
    for (int64_t i = 0; i < 16; i++) {
        const uint8_t *codes = m->data + (n + i) * m->row_stride + step * b0, *scales = m->scales;
        scales += (n + i) * m->scale_stride + scale_step * b0;
        for (int64_t b = 0; b < blocks; b++) {
            __m128i low = _mm_setzero_si128(), high = low;
            if (i < count) {
                __m128i pairs = _mm_loadu_si128((const __m128i *)(codes + step * b));
                low = _mm_shuffle_epi8(values, _mm_and_si128(pairs, nibble));
                high = _mm_shuffle_epi8(values, _mm_and_si128(_mm_srli_epi16(pairs, 4), nibble));
            }
            _mm_store_si128((__m128i *)w[b][i], low);
            _mm_store_si128((__m128i *)(w[b][i] + 16), high);
            power[b][i] = i < count ? mx_int8_power(scales[scale_step * b]) : 0.0f;
        }
    }
}

/* The same blocks of activation rows t0 ... t0 + 15, the last row again where there are fewer. */
static void gather_x(scratch *s, const mx_matmul *m, int64_t t0, int64_t b0, int64_t blocks) {
    for (int64_t i = 0; i < 16; i++) {
        int64_t t = t0 + i < m->rows ? t0 + i : m->rows - 1;
        const mx_int8_block *x = (const mx_int8_block *)(m->x + (m->x_row ? m->x_row[t] : t) * m->x_stride) + b0;
        for (int64_t b = 0; b < blocks; b++) {
            for (int j = 0; j < 8; j++) memcpy(s->x[b][j][i], x[b].x + 4 * j, 4);
            s->scale[b][i] = x[b].scale;
        }
    }
}

/* sums += 16 weight rows times the gathered activation rows over a chunk. */
static void multiply(scratch *s, int group, int64_t blocks, float sums[16][16], bool first) {
    __m512 sum[16];
    for (int i = 0; i < 16; i++) sum[i] = first ? _mm512_setzero_ps() : _mm512_load_ps(sums[i]);
    for (int64_t b = 0; b < blocks; b++) {
        mx_tile_zero(0);
        mx_tile_load(4, s->w[group][b], 32);
        mx_tile_load(6, s->x[b], 64);
        mx_tile_dpbssd(0, 4, 6);
        mx_tile_store(0, s->dot, 64);
        __m512 scale = _mm512_load_ps(s->scale[b]);
        for (int i = 0; i < 16; i++) {
            __m512 dot = _mm512_cvtepi32_ps(_mm512_load_si512(s->dot[i]));
            sum[i] = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, _mm512_set1_ps(s->power[group][b][i])), sum[i]);
        }
    }
    for (int i = 0; i < 16; i++) _mm512_store_ps(sums[i], sum[i]);
}

/* Activation rows t0 ... t0 + rows - 1, at most BLOCK_T. */
MX_INLINE void multiply_rows(const mx_matmul *m, mx_format format, int64_t n0, int64_t count, int64_t t0, int64_t rows,
                             scratch *s) {
    const int64_t all = m->w.cols / 32;
    const int groups = (int)(count + 15) / 16;
    for (int64_t b0 = 0; b0 < all; b0 += BLOCKS) {
        int64_t blocks = all - b0 < BLOCKS ? all - b0 : BLOCKS;
        for (int g = 0; g < groups; g++)
            decode(s->w[g], s->power[g], &m->w, format, n0 + 16 * g, count - 16 * g, b0, blocks);
        for (int64_t t = 0; t < rows; t += 16) {
            gather_x(s, m, t0 + t, b0, blocks);
            for (int g = 0; g < groups; g++) multiply(s, g, blocks, s->sums[t / 16][g], b0 == 0);
        }
    }
}

MX_INLINE void matmul(const mx_matmul *m, mx_format format) {
    scratch *s = (scratch *)m->scratch;
    mx_tiles_begin_blocks();
    for (int64_t n0 = m->n0; n0 < m->n1; n0 += BLOCK_N) {
        int64_t count = m->n1 - n0 < BLOCK_N ? m->n1 - n0 : BLOCK_N;
        mx_widen_bias(s->bias, m, n0, count);
        for (int64_t t0 = 0; t0 < m->rows; t0 += BLOCK_T) {
            int64_t rows = m->rows - t0 < BLOCK_T ? m->rows - t0 : BLOCK_T;
            multiply_rows(m, format, n0, count, t0, rows, s);
            for (int64_t t = 0; t < rows; t++) {
                for (int64_t i = 0; i < count; i++) s->row[i] = s->sums[t / 16][i / 16][i % 16][t % 16];
                mx_finish_row(m, t0 + t, n0, count, s->row, s->bias);
            }
        }
    }
    mx_tiles_end();
}

static void matmul_mxfp4(const mx_matmul *m) {
    matmul(m, MX_MXFP4);
}
static void matmul_mxfp4_ggml(const mx_matmul *m) {
    mx_matmul apart = mx_mxfp4_ggml_apart(m);
    matmul(&apart, MX_MXFP4_GGML);
}

const mx_product MX_AMX(int8_product) = {mx_int8_packed_bytes, mx_avx2_pack_int8, matmul_mxfp4, false};
const mx_product MX_AMX(int8_ggml_product) = {mx_int8_packed_bytes, mx_avx2_pack_int8_ggml, matmul_mxfp4_ggml, false};
