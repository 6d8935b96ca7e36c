/* Matrix products with vdpbf16ps: BF16 and MXFP4 weights, activations as one BF16 or as hi + lo.
 *
 * The sum over K has one order, whatever the number of rows: one accumulator of 16 lanes takes 32 columns at a time,
 * with hi before lo; the lanes fold in a fixed tree. Weights are never copied: a block of MXFP4 becomes a vector of
 * BF16 with one shift and one permute of a table that holds the block's scale already, and both find room beside the
 * multiplications. A tile of up to 6 activation rows times 4 weight rows runs over the whole of K; the activations of
 * a block of tiles stay in the second cache level, the weight rows in the first. */
#include "kernels/x86/avx512_epilogue.h"
#include "kernels/x86/avx512bf16.h"

enum {
    BLOCK_N = 96,     /* weight rows per epilogue */
    TILE = 6,         /* activation rows of a tile, at most */
    GROUP = 4,        /* weight rows of a tile, */
    GROUP_ALONE = 8,  /* and of a tile for one activation row */
    BLOCK_TILES = 16, /* tiles of BF16 whose activations the second cache level holds; half as many of hi + lo */
};

/* Scratch of one thread, in floats. */
typedef struct scratch {
    float sums[BLOCK_TILES * TILE][BLOCK_N];
    float bias[BLOCK_N];
} scratch;

_Static_assert(sizeof(scratch) <= MX_AVX512_MATMUL_SCRATCH * sizeof(float), "the table says how much is there");

/* ---- activations ------------------------------------------------------------------------------------------------ */

/* Rows are [block of 32 columns][hi, or hi and lo][32]. For BF16 weights the 32 are in their own order. For MXFP4 place
 * 8 q + j holds column 4 j + q, which is what a shift by 4 q leaves in the low bits of word j of a block. */
MX_INLINE void pack_row(uint8_t *out, const float *x, int64_t cols, bool mxfp4, bool split) {
    const __m512i columns = _mm512_set_epi16(31, 27, 23, 19, 15, 11, 7, 3, 30, 26, 22, 18, 14, 10, 6, 2, 29, 25, 21, 17,
                                             13, 9, 5, 1, 28, 24, 20, 16, 12, 8, 4, 0);
    for (int64_t i = 0; i < cols; i += 32, out += split ? 128 : 64) {
        __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + 16);
        __m512i hi = (__m512i)_mm512_cvtne2ps_pbh(b, a);
        _mm512_store_si512(out, mxfp4 ? _mm512_permutexvar_epi16(columns, hi) : hi);
        if (split) {
            a = _mm512_sub_ps(a, mx_load16((const uint8_t *)&hi, MX_BF16));
            b = _mm512_sub_ps(b, mx_load16((const uint8_t *)&hi + 32, MX_BF16));
            __m512i lo = (__m512i)_mm512_cvtne2ps_pbh(b, a);
            _mm512_store_si512(out + 64, mxfp4 ? _mm512_permutexvar_epi16(columns, lo) : lo);
        }
    }
}

/* Rows of BF16 a multiple of 4 KB apart would all want the same few places of the first cache level. */
MX_INLINE int64_t packed_bytes(int64_t cols, bool split) {
    return split ? cols * 4 : cols % 2048 ? cols * 2 : cols * 2 + 64;
}

MX_INLINE void pack(uint8_t *out, const float *x, int64_t rows, int64_t cols, bool mxfp4, bool split) {
    for (int64_t t = 0; t < rows; t++) pack_row(out + t * packed_bytes(cols, split), x + t * cols, cols, mxfp4, split);
}

static int64_t packed_bytes_bf16(int64_t cols) {
    return packed_bytes(cols, false);
}
static int64_t packed_bytes_bf16x2(int64_t cols) {
    return packed_bytes(cols, true);
}
static void pack_bf16(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pack(out, x, rows, cols, false, false);
}
static void pack_bf16x2(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pack(out, x, rows, cols, false, true);
}
static void pack_mxfp4_bf16(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pack(out, x, rows, cols, true, false);
}
static void pack_mxfp4_bf16x2(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pack(out, x, rows, cols, true, true);
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

MX_INLINE int64_t block_bytes(mx_format format) {
    return format == MX_BF16 ? 64 : 16;
}

/* Memory that is fetched into the second cache level while a tile works: `step` bytes further for each block. */
typedef struct fetch {
    const char *data, *scales;
    int64_t data_step, scales_step;
} fetch;

/* sums[t * BLOCK_N + c] of R activation rows x[t] and the first C rows of w. */
MX_INLINE void tile(const mx_matrix *w, mx_format format, const uint8_t *const *rows, int R, int C, bool split,
                    float *sums, fetch f) {
    const int64_t stride = w->row_stride, scale_stride = w->scale_stride, blocks = w->cols / 32;
    const int lines = C * (int)block_bytes(format) / 64;
    const uint8_t *data = w->data, *scales = w->scales;
    const uint8_t *x[TILE];
    __m512 acc[24];
    for (int t = 0; t < R; t++) x[t] = rows[t];
    for (int i = 0; i < 24; i++) acc[i] = _mm512_setzero_ps();
    for (int64_t b = 0, at = 0; b < blocks; b++, at += split ? 128 : 64) {
        __m512i weight[GROUP_ALONE];
        for (int i = 0; i < lines; i++) _mm_prefetch(f.data + 64 * i, _MM_HINT_T1);
        f.data += f.data_step;
        if (format == MX_MXFP4) {
            _mm_prefetch(f.scales, _MM_HINT_T1);
            f.scales += f.scales_step;
        }
        const uint8_t *data4 = data + 4 * stride, *scales4 = format == MX_MXFP4 ? scales + 4 * scale_stride : NULL;
        for (int c = 0; c < C; c++) {
            weight[c] = decode(format, (c < 4 ? data : data4) + (c & 3) * stride,
                               format == MX_MXFP4 ? (c < 4 ? scales : scales4) + (c & 3) * scale_stride : NULL);
        }
        for (int half = 0; half < (split ? 2 : 1); half++) {
            for (int t = 0; t < R; t++) {
                __m512bh xt = (__m512bh)mx_load_once(x[t] + at + 64 * half);
                for (int c = 0; c < C; c++) {
                    acc[t * C + c] = _mm512_dpbf16_ps(acc[t * C + c], (__m512bh)weight[c], xt);
                }
            }
        }
        data += block_bytes(format);
        if (format == MX_MXFP4) scales++;
    }
    __m512 first = R * C > 8 ? mx_fold16(acc) : _mm512_castps256_ps512(mx_fold8(acc));
    if (C == GROUP_ALONE) {
        _mm256_storeu_ps(sums, _mm512_castps512_ps256(first));
        return;
    }
    _mm_storeu_ps(sums, _mm512_castps512_ps128(first));
    if (R > 1) _mm_storeu_ps(sums + BLOCK_N, _mm512_extractf32x4_ps(first, 1));
    if (R > 2) _mm_storeu_ps(sums + 2 * BLOCK_N, _mm512_extractf32x4_ps(first, 2));
    if (R > 3) _mm_storeu_ps(sums + 3 * BLOCK_N, _mm512_extractf32x4_ps(first, 3));
    if (R > 4) {
        __m256 second = mx_fold8(acc + 16);
        _mm_storeu_ps(sums + 4 * BLOCK_N, _mm256_castps256_ps128(second));
        if (R > 5) _mm_storeu_ps(sums + 5 * BLOCK_N, _mm256_extractf128_ps(second, 1));
    }
}

/* As tile, for one activation row of single BF16 and eight weight rows of MXFP4: here decoding takes longer than
 * memory. A block is multiplied between the shift and the permute of the next one: in that order the pipes are shared
 * best. The empty asm keeps it, and keeps addresses sums of two registers where there are none left for eight. */
MX_INLINE void tile_alone(const mx_matrix *w, const uint8_t *x, float *sums, fetch f) {
    __m512 acc[GROUP_ALONE], x_before = _mm512_setzero_ps();
    __m512i before = _mm512_setzero_si512(); /* the block that is still to be multiplied */
    for (int c = 0; c < GROUP_ALONE; c++) acc[c] = _mm512_setzero_ps();
    for (int64_t b = 0; b < w->cols / 32; b++) {
        const uint8_t *data = w->data + 16 * b, *scale = w->scales + b;
        const __m512 x_now = mx_load_once(x + 64 * b);
        for (int c = 0; c < GROUP_ALONE; c++) {
            const int last = (c + GROUP_ALONE - 1) % GROUP_ALONE;
            __m512i codes = codes_of(data);
            acc[last] = _mm512_dpbf16_ps(acc[last], (__m512bh)before, (__m512bh)(c ? x_now : x_before));
            __asm__ volatile("" : "+v"(acc[last]), "+v"(codes));
            before = look_up(codes, *scale);
            data += w->row_stride;
            scale += w->scale_stride;
            __asm__ volatile("" : "+r"(data), "+r"(scale));
        }
        x_before = x_now;
        _mm_prefetch(f.data, _MM_HINT_T1);
        _mm_prefetch(f.data + 64, _MM_HINT_T1);
        _mm_prefetch(f.scales, _MM_HINT_T1);
        f.data += f.data_step;
        f.scales += f.scales_step;
    }
    acc[GROUP_ALONE - 1] = _mm512_dpbf16_ps(acc[GROUP_ALONE - 1], (__m512bh)before, (__m512bh)x_before);
    _mm256_storeu_ps(sums, mx_fold8(acc));
}

MX_INLINE void tile_of(const mx_matrix *w, mx_format format, const uint8_t *const *x, int64_t rows, int C, bool split,
                       float *sums, fetch f) {
    switch (rows) {
    case 1:
        if (format == MX_MXFP4 && !split && C == GROUP_ALONE)
            tile_alone(w, *x, sums, f);
        else
            tile(w, format, x, 1, C, split, sums, f);
        break;
    case 2:
        tile(w, format, x, 2, GROUP, split, sums, f);
        break;
    case 3:
        tile(w, format, x, 3, GROUP, split, sums, f);
        break;
    case 4:
        tile(w, format, x, 4, GROUP, split, sums, f);
        break;
    case 5:
        tile(w, format, x, 5, GROUP, split, sums, f);
        break;
    default:
        tile(w, format, x, 6, GROUP, split, sums, f);
    }
}

/* ---- the walk --------------------------------------------------------------------------------------------------- */

MX_INLINE int64_t first_row(const mx_matmul *m, int64_t tiles, int64_t tile) {
    return m->rows * tile / tiles;
}

/* sums[t][i] of the rows of the tiles k0 <= k < k1 out of `tiles` and weight rows n0 ... n0 + count - 1. Each group of
 * weight rows meets all tiles, while a group behind it is fetched: the next one, or the one after it where groups are
 * so short (MXFP4) that memory would not answer in time. */
MX_INLINE void multiply(const mx_matmul *m, mx_format format, bool split, int C, int64_t n0, int64_t count,
                        int64_t tiles, int64_t k0, int64_t k1, float (*sums)[BLOCK_N]) {
    mx_matrix w = m->w;
    const int64_t blocks = w.cols / 32, step = C * block_bytes(format) / (k1 - k0), scales_step = C / (k1 - k0);
    int64_t i = 0;
    if (count < C) w.row_stride = w.scale_stride = 0; /* each row C times; the next row's results overwrite it */
    while (i < count) {
        const int64_t n = n0 + i, ahead = n0 + i + (format == MX_MXFP4 ? 2 * C : C);
        w.data = m->w.data + n * m->w.row_stride;
        if (format == MX_MXFP4) w.scales = m->w.scales + n * m->w.scale_stride;
        for (int64_t k = k0; k < k1; k++) {
            const uint8_t *x[TILE];
            int64_t begin = first_row(m, tiles, k), rows = first_row(m, tiles, k + 1) - begin;
            for (int64_t t = 0; t < rows; t++) {
                x[t] = m->x + (m->x_row ? m->x_row[begin + t] : begin + t) * m->x_stride;
            }
            fetch f = {(const char *)m->w.data + ahead * m->w.row_stride + (k - k0) * blocks * step, NULL, step,
                       scales_step};
            if (format == MX_MXFP4) {
                f.scales = (const char *)m->w.scales + ahead * m->w.scale_stride + (k - k0) * blocks * scales_step;
            }
            tile_of(&w, format, x, rows, C, split, &sums[begin - first_row(m, tiles, k0)][i], f);
        }
        i = count < C ? i + 1 : i + C <= count - C ? i + C : i + C < count ? count - C : count;
    }
}

MX_INLINE void matmul(const mx_matmul *m, mx_format format, bool split) {
    scratch *s = (scratch *)m->scratch;
    const int64_t most = split ? BLOCK_TILES / 2 : BLOCK_TILES, tiles = (m->rows + TILE - 1) / TILE,
                  parts = (tiles + most - 1) / most;
    for (int64_t n0 = m->n0; n0 < m->n1; n0 += BLOCK_N) {
        int64_t count = m->n1 - n0 < BLOCK_N ? m->n1 - n0 : BLOCK_N;
        mx_widen_bias(s->bias, m, n0, count);
        for (int64_t part = 0; part < parts; part++) {
            int64_t k0 = tiles * part / parts, k1 = tiles * (part + 1) / parts, t0 = first_row(m, tiles, k0);
            if (m->rows == 1) {
                multiply(m, format, split, GROUP_ALONE, n0, count, 1, 0, 1, s->sums);
            } else {
                multiply(m, format, split, GROUP, n0, count, tiles, k0, k1, s->sums);
            }
            for (int64_t t = t0; t < first_row(m, tiles, k1); t++)
                mx_finish_row(m, t, n0, count, s->sums[t - t0], s->bias);
        }
    }
}

static void matmul_bf16(const mx_matmul *m) {
    matmul(m, MX_BF16, false);
}
static void matmul_bf16_x2(const mx_matmul *m) {
    matmul(m, MX_BF16, true);
}
static void matmul_mxfp4(const mx_matmul *m) {
    matmul(m, MX_MXFP4, false);
}
static void matmul_mxfp4_x2(const mx_matmul *m) {
    matmul(m, MX_MXFP4, true);
}

const mx_product mx_avx512bf16_bf16[3] = {
    [MX_X_BF16X2] = {packed_bytes_bf16x2, pack_bf16x2, matmul_bf16_x2, true},
    [MX_X_BF16] = {packed_bytes_bf16, pack_bf16, matmul_bf16, true},
};

const mx_product mx_avx512bf16_mxfp4[3] = {
    [MX_X_BF16X2] = {packed_bytes_bf16x2, pack_mxfp4_bf16x2, matmul_mxfp4_x2, true},
    [MX_X_BF16] = {packed_bytes_bf16, pack_mxfp4_bf16, matmul_mxfp4, true},
};
