/* Precision MX_X_INT8 (kernels/int8.h) for 16 registers, and the packing that all x86 tiers share.
 *
 * A lane is an output row. 8 weight rows times 4 columns are a register of bytes, the activations' 4 bytes are
 * broadcast, a block of 32 columns is eight such steps, and nothing is ever summed across lanes. Byte products add up
 * in 16 bits over half a block (at most 8 * 24 * 127), then in 32. Weights are decoded into the L1 cache, whatever the
 * number of activation rows. */
#include "kernels/int8.h"

#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "kernels/mxfp4.h"
#include "kernels/x86/avx2.h"
#include "kernels/x86/avx2_epilogue.h"

enum {
    BLOCKS = 16, /* blocks of 32 columns in a chunk */
    GROUP = 8,   /* weight rows of a register */
    BLOCK_N = 2 * GROUP,
    TILE = 3,                                  /* activation rows of a tile */
    BLOCK_T = 512,                             /* rows that share a decoded panel */
    CHUNK_BYTES = BLOCKS * MX_MXFP4_GGML_BYTES /* at most */
};

/* A chunk of 8 weight rows. */
typedef struct panel {
    uint8_t w[BLOCKS][8][32];   /* weights + 12: steps 0..3 the low nibbles of 4 bytes, 4..7 the high ones */
    float power[BLOCKS][GROUP]; /* 2^(s - 128) */
} panel;

/* Scratch of one thread. */
typedef struct scratch {
    panel panel[2];
    uint8_t data[GROUP][CHUNK_BYTES], scales[GROUP][CHUNK_BYTES]; /* of a group that is not full, apart or not */
    float sums[BLOCK_T][BLOCK_N];
    float bias[BLOCK_N];
} scratch;

_Static_assert(sizeof(scratch) <= MX_AVX2_MATMUL_SCRATCH * sizeof(float), "the table says how much is needed");

/* ---- activations ------------------------------------------------------------------------------------------------ */

/* The largest magnitude of 32 values; the bits of an infinity or of a NaN where there is one. */
MX_INLINE float magnitude(const __m256 x[4]) {
    const __m256i positive = _mm256_set1_epi32(0x7fffffff);
    __m256i most = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) most = _mm256_max_epu32(most, _mm256_and_si256(_mm256_castps_si256(x[i]), positive));
    __m128i v = _mm_max_epu32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    v = _mm_max_epu32(v, _mm_shuffle_epi32(v, 0x4e));
    v = _mm_max_epu32(v, _mm_shuffle_epi32(v, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(v));
}

MX_INLINE int32_t sum_of_bytes(__m256i q) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
    __m256i v8 = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    __m128i v = _mm_add_epi32(_mm256_castsi256_si128(v8), _mm256_extracti128_si256(v8, 1));
    v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4e));
    v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0xb1));
    return _mm_cvtsi128_si32(v);
}

MX_INLINE void pack_block(mx_int8_block *out, const float *from, mx_format format) {
    const __m256i even_odd =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    __m256 x[4];
    for (int i = 0; i < 4; i++) x[i] = _mm256_loadu_ps(from + 8 * i);
    float most = magnitude(x);
    if (!isfinite(most) || most < 0x1p-100f) {
        memset(out, 0, sizeof *out);
        out->scale = isfinite(most) ? 1.0f : NAN;
        return;
    }
    const __m256 inverse = _mm256_set1_ps(127.0f / most);
    __m256i q[4];
    for (int i = 0; i < 4; i++) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(x[i], inverse));
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)); /* columns in order */
    if (format == MX_MXFP4) bytes = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(bytes, even_odd), 0xd8);
    _mm256_storeu_si256((__m256i *)out->x, bytes);
    out->start = -12 * sum_of_bytes(bytes);
    out->scale = most / 127.0f;
}

MX_INLINE void pack(uint8_t *out, const float *x, int64_t rows, int64_t cols, mx_format format) {
    const int64_t stride = mx_int8_packed_bytes(cols), blocks = cols / 32,
                  used = blocks * (int64_t)sizeof(mx_int8_block);
    for (int64_t t = 0; t < rows; t++, out += stride, x += cols) {
        for (int64_t b = 0; b < blocks; b++) pack_block((mx_int8_block *)out + b, x + 32 * b, format);
        memset(out + used, 0, (size_t)(stride - used));
    }
}

void mx_avx2_pack_int8(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pack(out, x, rows, cols, MX_MXFP4);
}
void mx_avx2_pack_int8_ggml(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pack(out, x, rows, cols, MX_MXFP4_GGML);
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

/* One block of 8 rows to the eight steps' weights + 12. */
MX_INLINE void decode(uint8_t w[8][32], const uint8_t *at, int64_t stride) {
    const __m256i twelve = _mm256_set1_epi8(12), nibble = _mm256_set1_epi8(15);
    const __m256i values = _mm256_add_epi8(_mm256_broadcastsi128_si256(_mm_setr_epi8(MX_INT8_WEIGHTS)), twelve);
    __m256i row[4], codes[4]; /* row[i]: 4 l + i in lane l */
    for (int i = 0; i < 4; i++) {
        __m128i low = _mm_loadu_si128((const __m128i *)(at + i * stride));
        row[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(low),
                                         _mm_loadu_si128((const __m128i *)(at + (4 + i) * stride)), 1);
    }
    __m256i a = _mm256_unpacklo_epi32(row[0], row[1]), b = _mm256_unpackhi_epi32(row[0], row[1]);
    __m256i c = _mm256_unpacklo_epi32(row[2], row[3]), d = _mm256_unpackhi_epi32(row[2], row[3]);
    codes[0] = _mm256_unpacklo_epi64(a, c);
    codes[1] = _mm256_unpackhi_epi64(a, c);
    codes[2] = _mm256_unpacklo_epi64(b, d);
    codes[3] = _mm256_unpackhi_epi64(b, d);
    for (int i = 0; i < 4; i++) {
        __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes[i], 4), nibble);
        __m256i low = _mm256_and_si256(codes[i], nibble);
        _mm256_store_si256((__m256i *)w[i], _mm256_shuffle_epi8(values, low));
        _mm256_store_si256((__m256i *)w[4 + i], _mm256_shuffle_epi8(values, high));
    }
}

/* `blocks` blocks of weight rows n ... n + count - 1 from block b0 on. A group that is not full is copied, with zeros
 * for the rows that are not there. */
MX_INLINE void fill_panel(panel *p, const mx_matrix *w, mx_format format, int64_t n, int64_t count, int64_t b0,
                          int64_t blocks, scratch *s) {
    const int64_t step = mx_columns_bytes(format, 32), scale_step = mx_scale_step(format);
    const uint8_t *data = w->data + n * w->row_stride + step * b0,
                  *scales = w->scales + n * w->scale_stride + scale_step * b0;
    int64_t stride = w->row_stride, scale_stride = w->scale_stride;
    if (count < GROUP) {
        memset(s->data, 0, sizeof s->data);
        memset(s->scales, 0, sizeof s->scales);
        for (int64_t i = 0; i < count; i++) {
            for (int64_t b = 0; b < blocks; b++) {
                memcpy(s->data[i] + step * b, data + i * stride + step * b, 16);
                s->scales[i][scale_step * b] = scales[i * scale_stride + scale_step * b];
            }
        }
        data = s->data[0];
        scales = s->scales[0];
        stride = sizeof s->data[0];
        scale_stride = sizeof s->scales[0];
    }
    for (int64_t b = 0; b < blocks; b++) {
        decode(p->w[b], data + step * b, stride);
        for (int i = 0; i < GROUP; i++) p->power[b][i] = mx_int8_power(scales[i * scale_stride + scale_step * b]);
    }
}

/* ---- sums ------------------------------------------------------------------------------------------------------- */

/* sums[t][n] += activation row t, t < R, times both panels; x[t]: the row's first block of this chunk. */
MX_INLINE void multiply(float (*sums)[BLOCK_N], const mx_int8_block *const *x, const panel *p, int R, int64_t blocks) {
    const __m256i one = _mm256_set1_epi16(1);
    for (int64_t b = 0; b < blocks; b++) {
        __m256i dot[2 * TILE], part[2 * TILE];
        for (int i = 0; i < 2 * R; i++) dot[i] = _mm256_set1_epi32(x[i / 2][b].start);
        for (int half = 0; half < 8; half += 4) {
            for (int i = 0; i < 2 * R; i++) part[i] = _mm256_setzero_si256();
            for (int step = half; step < half + 4; step++) {
                const __m256i w0 = _mm256_load_si256((const __m256i *)p[0].w[b][step]);
                const __m256i w1 = _mm256_load_si256((const __m256i *)p[1].w[b][step]);
                for (int t = 0; t < R; t++) {
                    __m256i xt = _mm256_set1_epi32((int)mx_load_u32((const uint8_t *)x[t][b].x + 4 * step));
                    part[2 * t] = _mm256_add_epi16(part[2 * t], _mm256_maddubs_epi16(w0, xt));
                    part[2 * t + 1] = _mm256_add_epi16(part[2 * t + 1], _mm256_maddubs_epi16(w1, xt));
                }
            }
            for (int i = 0; i < 2 * R; i++) dot[i] = _mm256_add_epi32(dot[i], _mm256_madd_epi16(part[i], one));
        }
        for (int i = 0; i < 2 * R; i++) {
            float *sum = &sums[i / 2][i % 2 * GROUP];
            __m256 scale = _mm256_mul_ps(_mm256_set1_ps(x[i / 2][b].scale), _mm256_load_ps(p[i % 2].power[b]));
            _mm256_store_ps(sum, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[i]), scale, _mm256_load_ps(sum)));
        }
    }
}

/* Fetches a chunk of weight rows n + from ... n + to - 1 into L2; addresses behind the matrix do no harm. Inline, as
 * gcc drops calls of functions that only fetch. */
MX_INLINE void fetch_rows(const mx_matrix *w, mx_format format, int64_t n, int64_t b0, int64_t from, int64_t to) {
    const int64_t bytes = BLOCKS * mx_columns_bytes(format, 32);
    for (int64_t i = n + from; i < n + to; i++) {
        const char *data = (const char *)w->data + i * w->row_stride + mx_columns_bytes(format, 32 * b0);
        for (int64_t line = 0; line < bytes; line += 64) _mm_prefetch(data + line, _MM_HINT_T1);
        _mm_prefetch(data + bytes - 1, _MM_HINT_T1);
        if (format == MX_MXFP4) _mm_prefetch((const char *)w->scales + i * w->scale_stride + b0, _MM_HINT_T1);
    }
}

/* Rows t0 ... t0 + rows - 1 times weight rows n0 ... n0 + count - 1, to s->sums. */
MX_INLINE void sum_rows(const mx_matmul *m, mx_format format, int64_t t0, int64_t rows, int64_t n0, int64_t count,
                        scratch *s) {
    const int64_t all = m->w.cols / 32;
    memset(s->sums, 0, (size_t)rows * sizeof s->sums[0]);
    for (int64_t b0 = 0; b0 < all; b0 += BLOCKS) {
        int64_t blocks = all - b0 < BLOCKS ? all - b0 : BLOCKS;
        bool last = b0 + BLOCKS >= all;
        fill_panel(&s->panel[0], &m->w, format, n0, count, b0, blocks, s);
        if (count > GROUP) fill_panel(&s->panel[1], &m->w, format, n0 + GROUP, count - GROUP, b0, blocks, s);
        for (int64_t t = 0; t < rows; t += TILE) {
            const mx_int8_block *x[TILE];
            int64_t here = rows - t < TILE ? rows - t : TILE;
            for (int64_t i = 0; i < here; i++) {
                int64_t row = m->x_row ? m->x_row[t0 + t + i] : t0 + t + i;
                x[i] = (const mx_int8_block *)(m->x + row * m->x_stride) + b0;
            }
            fetch_rows(&m->w, format, last ? n0 + BLOCK_N : n0, last ? 0 : b0 + BLOCKS, t * BLOCK_N / rows,
                       (t + here) * BLOCK_N / rows);
            if (here == 1) multiply(s->sums + t, x, s->panel, 1, blocks);
            if (here == 2) multiply(s->sums + t, x, s->panel, 2, blocks);
            if (here == 3) multiply(s->sums + t, x, s->panel, 3, blocks);
        }
    }
}

MX_INLINE void matmul(const mx_matmul *m, mx_format format) {
    scratch *s = (scratch *)m->scratch;
    for (int64_t n0 = m->n0; n0 < m->n1; n0 += BLOCK_N) {
        int64_t count = m->n1 - n0 < BLOCK_N ? m->n1 - n0 : BLOCK_N;
        mx_widen_bias(s->bias, m, n0, count);
        for (int64_t t0 = 0; t0 < m->rows; t0 += BLOCK_T) {
            int64_t rows = m->rows - t0 < BLOCK_T ? m->rows - t0 : BLOCK_T;
            sum_rows(m, format, t0, rows, n0, count, s);
            for (int64_t t = 0; t < rows; t++) mx_finish_row(m, t0 + t, n0, count, s->sums[t], s->bias);
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

const mx_product mx_avx2_int8 = {mx_int8_packed_bytes, mx_avx2_pack_int8, matmul_mxfp4, false};
const mx_product mx_avx2_int8_ggml = {mx_int8_packed_bytes, mx_avx2_pack_int8_ggml, matmul_mxfp4_ggml, false};
