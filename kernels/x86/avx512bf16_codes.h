#ifndef MX_KERNELS_X86_AVX512BF16_CODES_H
#define MX_KERNELS_X86_AVX512BF16_CODES_H

/* Products with vdpbf16ps of element codes (kernels/mx.h) that are exact in BF16 with their scales
 * (mx_matrix.bf16_safe): E2M1 with scales of E8M0 (one or two) or E4M3, E2M3, E3M2, E4M3 and E5M2 with E8M0, E4M3 and
 * E5M2 without scales, and by the specification in scalar C what is left. A block of 32 columns becomes a vector of
 * BF16; from there on the sums are those of BF16 weights (avx512bf16_matmul.h), in the same order:
 *
 * - few rows: weights are decoded in registers, while they meet a tile;
 * - more: rows of weights are decoded into a panel in the second cache level, which the walk of BF16 weights reads.
 *
 * Tiles are compiled once for each format and precision, and all walks call them: compilers take long over them. */
#include <stddef.h>

#include "kernels/mx.h"
#include "kernels/x86/avx512bf16_matmul.h"

enum {
    E2M1_WIDE = MX_FORMATS, /* E2M1 with a scale for 32 columns or more; MX_E2M1 is that with one for 16 */
    E2M1_SIDES,             /* E2M1 with two scales of E8M0 for 32 columns, of positive and of negative elements */
    ANY_CODES,              /* of all formats those that have no way of their own */
    FEW_TILES = 2,          /* up to so many tiles of activation rows are few */
    TABLE_BYTES = 256 * 64,
    PANEL_BYTES = MX_AVX512_MATMUL_SCRATCH * 4 /* less than what is before it */
                  - (int)((sizeof(scratch) + 63) / 64 * 64) - TABLE_BYTES,
};

/* Scratch of one thread, as the walk of BF16 weights sees it, then ours. */
typedef struct codes_scratch {
    scratch walk;
    uint8_t table[TABLE_BYTES] __attribute__((aligned(64)));
    uint8_t panel[PANEL_BYTES] __attribute__((aligned(64)));
} codes_scratch;

_Static_assert(sizeof(codes_scratch) <= MX_AVX512_MATMUL_SCRATCH * sizeof(float), "the table says how much is there");

/* ---- from codes to BF16 ----------------------------------------------------------------------------------------- */

/* How the codes of a matrix become BF16. */
typedef struct coding {
    const uint8_t *table; /* MX_E2M1: [256][16] BF16, the values of the codes times the scale of that byte; E2M1_WIDE:
                             [256][32], the same twice; MX_E2M3, which is E3M2 as well: [256][32], the values of
                             the codes but for their sign; E4M3 and E5M2: [256] of 32 bits, twice what the scale adds to
                             the exponent */
    int shift;            /* column k is in block k >> shift of its row */
    __m128i up;           /* E4M3, E5M2: so far to the left a code has the places of a BF16, */
    __m512i magnitude;    /* these are its bits there, but for the sign; */
    __m512i normal;       /* of codes without these bits, which are subnormal, */
    __m512i subnormal;    /* [their three bits or two]: is the BF16, but for the sign and what the scale adds */
} coding;

/* All values of E2M1 times each scale, of E4M3 or E8M0, exact in BF16; from one scale to the next `stride` bytes, 32 or
 * 64. */
MX_INLINE void fill_e2m1(uint8_t table[TABLE_BYTES], mx_scale_type type, int stride) {
    const __m512 e2m1 = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f,
                                       -2.0f, -3.0f, -4.0f, -6.0f);
    for (int s = 0; s < 256; s++) {
        const __m256i half = _mm256_set1_epi16((short)(s << 7 & 0x3f80)); /* F16: the scale of E4M3 times 2^-8 */
        const __m512 scale = _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(s < 128 ? 256.0f : -256.0f));
        __m256i values = _mm256_load_si256((const __m256i *)mx_e2m1_bf16[s]);
        if (type == MX_SCALE_E4M3) values = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(e2m1, scale));
        for (int i = 0; i < stride; i += 32) _mm256_store_si256((__m256i *)(table + s * stride + i), values);
    }
}

/* The values without sign of E2M3 or E3M2 times each scale of E8M0. */
MX_INLINE void fill_fp6(uint8_t table[TABLE_BYTES], mx_format format) {
    float values[32] __attribute__((aligned(64)));
    for (unsigned i = 0; i < 32; i++) values[i] = mx_element_value(format, i);
    for (int s = 0; s < 256; s++) {
        const uint8_t byte = (uint8_t)s;
        const __m512 scale = _mm512_set1_ps(mx_scale_value(MX_SCALE_E8M0, &byte));
        const __m512 low = _mm512_mul_ps(_mm512_load_ps(values), scale);
        const __m512 high = _mm512_mul_ps(_mm512_load_ps(values + 16), scale);
        _mm512_store_si512(table + 64 * s, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

/* Of E4M3 (bias 7) or E5M2 (bias 15): an exponent of e and the scale 2^(s - 127) are BF16's exponent e + s - bias. */
MX_INLINE void fill_exponents(uint8_t table[TABLE_BYTES], int bias) {
    for (int s = 0; s < 256; s++) {
        const uint16_t add = (uint16_t)((unsigned)(s - bias) << 7);
        const uint32_t twice = add | (uint32_t)add << 16;
        memcpy(table + 4 * s, &twice, sizeof twice);
    }
}

/* What the walks call the format of these weights. */
static inline mx_format coded_format(const mx_matrix *w) {
    const mx_blocks *b = &w->blocks;
    if (b->sides && w->format == MX_E2M1 && b->scale == MX_SCALE_E8M0 && b->columns == 32) return (mx_format)E2M1_SIDES;
    if (b->sides || b->zeros) return (mx_format)ANY_CODES;
    if (w->format == MX_E2M1 && (b->scale == MX_SCALE_E8M0 || b->scale == MX_SCALE_E4M3))
        return b->columns == 16 ? MX_E2M1 : (mx_format)E2M1_WIDE;
    const bool fp8 = w->format == MX_E4M3 || w->format == MX_E5M2;
    if (fp8 && (b->scale == MX_SCALE_NONE || (b->scale == MX_SCALE_E8M0 && b->columns >= 32))) return MX_E4M3;
    const bool fp6 = w->format == MX_E2M3 || w->format == MX_E3M2;
    if (fp6 && b->scale == MX_SCALE_E8M0 && b->columns >= 32) return MX_E2M3;
    return (mx_format)ANY_CODES;
}

/* Fills the table of `s` where one is needed, and makes of w, which is not for ANY_CODES, a matrix with scales. */
static inline coding coding_for(mx_matrix *w, codes_scratch *s) {
    static const uint8_t no_scale = 127;
    const bool e4m3 = w->format == MX_E4M3;
    coding k = {.table = s->table,
                .shift = w->blocks.columns ? __builtin_ctz((unsigned)w->blocks.columns) : 62,
                .up = _mm_cvtsi32_si128(e4m3 ? 4 : 5),
                .magnitude = _mm512_set1_epi16(e4m3 ? 0x07f0 : 0x0fe0),
                .normal = _mm512_set1_epi16(e4m3 ? 0x78 : 0x7c)};
    /* 1 to 7 times 2^-9, 1 to 3 times 2^-16, beside an exponent of 0 and its bias */
    k.subnormal = _mm512_castsi128_si512(e4m3 ? _mm_setr_epi16(0, -0x100, -0x80, -0x40, 0, 0x20, 0x40, 0x60)
                                              : _mm_setr_epi16(0, -0x80, 0, 0x40, 0, 0, 0, 0));
    if (w->format == MX_E2M3 || w->format == MX_E3M2)
        fill_fp6(s->table, w->format);
    else if (w->format != MX_E2M1)
        fill_exponents(s->table, e4m3 ? 7 : 15);
    else if (w->blocks.columns == 16)
        fill_e2m1(s->table, w->blocks.scale, 32);
    else if (w->blocks.scale == MX_SCALE_E4M3)
        fill_e2m1(s->table, w->blocks.scale, 64);
    else
        k.table = (const uint8_t *)mx_e2m1_bf16;
    if (!w->blocks.columns) {
        w->scales = &no_scale;
        w->scale_stride = 0;
    }
    return k;
}

/* From a row's first scale to that of columns 32 b ... */
MX_INLINE int64_t coded_scale_at(mx_format format, int64_t b, const coding *k) {
    return format == MX_E2M1 || format == (mx_format)E2M1_SIDES ? 2 * b
           : format == (mx_format)ANY_CODES                     ? 0
                                                                : 32 * b >> k->shift;
}

MX_INLINE int64_t code_bytes(mx_format format, const mx_matrix *w, int64_t columns) {
    if (format == (mx_format)ANY_CODES) format = w->format;
    return mx_columns_bytes(format >= MX_FORMATS ? MX_E2M1 : format, columns);
}

/* 32 codes of six bits, each in the low bits of a word. Four of them are three bytes: each begins in one of these and
 * ends there or in the next. */
MX_INLINE __m512i sixes_of(const uint8_t *at) {
    const __m512i bytes =
        _mm512_setr_epi64(0x1802020101000100, 0x1805050404030403, 0x1808080707060706, 0x180b0b0a0a090a09,
                          0x180e0e0d0d0c0d0c, 0x18111110100f100f, 0x1814141313121312, 0x1817171616151615);
    const __m512i shifts = _mm512_set1_epi64(0x0002000400060000);
    const __m512i all = _mm512_castsi256_si512(_mm256_maskz_loadu_epi8(0xffffff, at));
    return _mm512_srlv_epi16(_mm512_permutexvar_epi8(bytes, all), shifts);
}

/* A block in the order of pack, see pack_row; E4M3 and E5M2 in their own. */
MX_INLINE __m512i decode_codes(mx_format format, const uint8_t *at, const uint8_t *scale, const coding *k) {
    if (format == (mx_format)E2M1_WIDE)
        return _mm512_permutexvar_epi16(codes_of(at), _mm512_load_si512(k->table + ((size_t)*scale << 6)));
    if (format == (mx_format)E2M1_SIDES) {
        const __m512i positive = _mm512_load_si512(k->table + ((size_t)scale[0] << 6));
        const __m512i negative = _mm512_load_si512(k->table + ((size_t)scale[1] << 6));
        return _mm512_permutexvar_epi16(codes_of(at), _mm512_mask_blend_epi16(0xff00ff00, positive, negative));
    }
    if (format == MX_E2M1) { /* both scales' values as one table; of each 8 words the last 4 are columns 16 ... 31 */
        const __m256i *first = (const __m256i *)(k->table + ((size_t)scale[0] << 5));
        const __m256i *second = (const __m256i *)(k->table + ((size_t)scale[1] << 5));
        const __m512i values = _mm512_mask_broadcast_i64x4(_mm512_castsi256_si512(_mm256_load_si256(first)), 0xf0,
                                                           _mm256_load_si256(second));
        const __m512i halves = _mm512_broadcast_i32x4(_mm_set_epi64x(0x0010001000100010, 0));
        const __m512i index = /* codes & 15 | halves */
            _mm512_ternarylogic_epi64(codes_of(at), _mm512_set1_epi16(15), halves, 0xea);
        return _mm512_permutexvar_epi16(index, values);
    }
    if (format == MX_E2M3) {
        const __m512i found = sixes_of(at);
        const __m512i value = _mm512_permutexvar_epi16(found, _mm512_load_si512(k->table + ((size_t)*scale << 6)));
        return _mm512_ternarylogic_epi32(value, _mm512_slli_epi16(found, 10), _mm512_set1_epi16((short)0x8000), 0xf8);
    }
    const __m512i codes = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)at));
    const __m512i add = _mm512_set1_epi32((int)mx_load_u32(k->table + 4 * *scale));
    const __m512i normal = _mm512_add_epi16(_mm512_and_si512(_mm512_sll_epi16(codes, k->up), k->magnitude), add);
    const __m512i subnormal = _mm512_maskz_add_epi16(0xfe, k->subnormal, add);
    const __m512i bits =
        _mm512_mask_permutexvar_epi16(normal, _mm512_testn_epi16_mask(codes, k->normal), codes, subnormal);
    return _mm512_ternarylogic_epi32(bits, codes, _mm512_set1_epi16((short)0x8000), 0xf8); /* bits | (codes & sign) */
}

/* The same of columns 32 b ... of row n of any matrix. */
MX_INLINE __m512i decode_any(const mx_matrix *w, int64_t n, int64_t b) {
    float x[32] __attribute__((aligned(64)));
    uint8_t bits[64] __attribute__((aligned(64)));
    mx_matrix_widen_32(x, w, n, 32 * b);
    pack_row(bits, x, 32, w->format == MX_E2M1 ? MX_MXFP4 : MX_BF16, false);
    return _mm512_load_si512(bits);
}

/* ---- few rows --------------------------------------------------------------------------------------------------- */

/* sums[t * STRIDE + c] += R activation rows, a piece, times C weight rows from n on, or C times row n (repeat). As
 * tile() of avx512bf16_matmul.h. For each block as many bytes as these rows have are fetched from `ahead` on. */
MX_INLINE void coded_tile(const mx_matrix *w, mx_format format, const piece *p, int R, int C, bool split, int64_t n,
                          bool repeat, float *sums, const char *ahead, const coding *k) {
    const int64_t stride = repeat ? 0 : w->row_stride, scale_stride = repeat ? 0 : w->scale_stride;
    const int64_t bytes = code_bytes(format, w, 32);
    const uint8_t *data = w->data + n * w->row_stride + p->first * bytes, *x[TILE];
    const uint8_t *scales = format == (mx_format)ANY_CODES ? data : w->scales + n * w->scale_stride;
    __m512 acc[24];
    for (int t = 0; t < R; t++) x[t] = p->x[t];
    for (int i = 0; i < 24; i++) acc[i] = _mm512_setzero_ps();
    for (int64_t b = 0, at = 0; b < p->blocks; b++, at += x_bytes(split), data += bytes, ahead += C * bytes) {
        const uint8_t *data4 = data + 4 * stride, *scale = scales + coded_scale_at(format, p->first + b, k);
        const uint8_t *scale4 = scale + 4 * scale_stride;
        __m512i weight[GROUP_FEW];
        for (int64_t i = 0; i < C * bytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
        for (int c = 0; c < C; c++) {
            weight[c] = format == (mx_format)ANY_CODES
                            ? decode_any(w, repeat ? n : n + c, p->first + b)
                            : decode_codes(format, (c < 4 ? data : data4) + (c & 3) * stride,
                                           (c < 4 ? scale : scale4) + (c & 3) * scale_stride, k);
        }
        for (int half = 0; half < (split ? 2 : 1); half++) {
            for (int t = 0; t < R; t++) {
                __m512bh xt = (__m512bh)mx_load_once(x[t] + at + 64 * half);
                for (int c = 0; c < C; c++) acc[t * C + c] = _mm512_dpbf16_ps(acc[t * C + c], (__m512bh)weight[c], xt);
            }
        }
    }
    add_folded(sums, acc, R, C);
}

/* One or two rows times eight weight rows, three to six rows times four. ANY_CODES: one row only. */
typedef void tile_fn(const mx_matrix *w, const piece *p, int64_t n, bool repeat, float *sums, const char *ahead,
                     const coding *k);

#define DEFINE_TILES(name, format, split)                                                                              \
    static __attribute__((noinline)) void name(const mx_matrix *w, const piece *p, int64_t n, bool repeat,             \
                                               float *sums, const char *ahead, const coding *k) {                      \
        coded_tiles(w, format, split, p, n, repeat, sums, ahead, k);                                                   \
    }

MX_INLINE void coded_tiles(const mx_matrix *w, mx_format format, bool split, const piece *p, int64_t n, bool repeat,
                           float *sums, const char *ahead, const coding *k) {
    if (format == (mx_format)ANY_CODES || p->rows == 1)
        coded_tile(w, format, p, 1, GROUP_FEW, split, n, repeat, sums, ahead, k);
    else if (p->rows == 2)
        coded_tile(w, format, p, 2, GROUP_FEW, split, n, repeat, sums, ahead, k);
    else if (p->rows == 3)
        coded_tile(w, format, p, 3, GROUP, split, n, repeat, sums, ahead, k);
    else if (p->rows == 4)
        coded_tile(w, format, p, 4, GROUP, split, n, repeat, sums, ahead, k);
    else if (p->rows == 5)
        coded_tile(w, format, p, 5, GROUP, split, n, repeat, sums, ahead, k);
    else
        coded_tile(w, format, p, 6, GROUP, split, n, repeat, sums, ahead, k);
}

/* How the products of a format at a precision go. */
typedef struct coded_way {
    mx_format format; /* coded_format */
    bool split;
    tile_fn *tiles;
    int64_t bytes, scales; /* of 32 columns; of a row */
    coding k;
} coded_way;

/* C sums, of weight rows from n on, at `sums`. What is fetched meanwhile: the same of rows from `next` on. */
static void multiply_group(const mx_matmul *m, const coded_way *way, x_rows r, int64_t n, bool repeat, int64_t next,
                           float *sums) {
    const int C = r.rows <= 2 ? GROUP_FEW : GROUP;
    const int64_t chunks = chunks_of(m, MX_BF16, way->split);
    const char *ahead = (const char *)m->w.data + next * m->w.row_stride;
    if (way->scales) fetch_all(m->w.scales + next * m->w.scale_stride, C * way->scales);
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        const piece p = piece_of(m, MX_BF16, way->split, r, chunk);
        way->tiles(&m->w, &p, n, repeat, sums, ahead + C * p.first * way->bytes, &way->k);
    }
}

/* All outputs of one tile. */
static void multiply_tile(const mx_matmul *m, const coded_way *way, x_rows r, scratch *s) {
    const int C = r.rows <= 2 ? GROUP_FEW : GROUP;
    for (int64_t n0 = m->n0; n0 < m->n1; n0 += BLOCK_N) {
        const int64_t count = m->n1 - n0 < BLOCK_N ? m->n1 - n0 : BLOCK_N;
        mx_widen_bias(s->bias, m, n0, count);
        memset(s->sums, 0, (size_t)r.rows * sizeof s->sums[0]);
        for (int64_t i = 0; i + C <= count; i += C)
            multiply_group(m, way, r, n0 + i, false, rows_ahead(m, n0 + i + 2 * C, C), &s->sums[0][i]);
        for (int64_t i = count / C * C; i < count; i++) {
            multiply_group(m, way, r, n0 + i, true, n0 + i, &s->sums[0][BLOCK_N]);
            for (int64_t t = 0; t < r.rows; t++) {
                s->sums[t][i] = s->sums[t][BLOCK_N];
                memset(&s->sums[t][BLOCK_N], 0, GROUP_FEW * sizeof s->sums[t][0]);
            }
        }
        for (int64_t t = 0; t < r.rows; t++) mx_finish_row(m, r.begin + t, n0, count, s->sums[t], s->bias);
    }
}

static void multiply_few_tiles(const mx_matmul *m, const coded_way *way, scratch *s) {
    const int64_t most = way->format == (mx_format)ANY_CODES ? 1 : m->rows == 2 ? 2 : TILE;
    const int64_t tiles = (m->rows + most - 1) / most;
    for (int64_t k = 0; k < tiles; k++) multiply_tile(m, way, rows_of(m, tiles, k), s);
}

/* ---- more rows -------------------------------------------------------------------------------------------------- */

/* Row n. */
static void decode_row(uint8_t *out, const mx_matrix *w, mx_format format, int64_t n, const coding *k) {
    const int64_t blocks = w->cols / 32, bytes = mx_columns_bytes(w->format, 32);
    const uint8_t *data = w->data + n * w->row_stride;
    if (format == (mx_format)ANY_CODES) {
        for (int64_t b = 0; b < blocks; b++) _mm512_store_si512(out + 64 * b, decode_any(w, n, b));
        return;
    }
    for (int64_t b = 0; b < blocks; b++, data += bytes, out += 64) {
        const uint8_t *scale = w->scales + n * w->scale_stride + coded_scale_at(format, b, k);
        _mm_prefetch((const char *)data + 2048, _MM_HINT_T0);
        if (format == MX_E2M1)
            _mm512_store_si512(out, decode_codes(MX_E2M1, data, scale, k));
        else if (format == MX_E4M3)
            _mm512_store_si512(out, decode_codes(MX_E4M3, data, scale, k));
        else if (format == MX_E2M3)
            _mm512_store_si512(out, decode_codes(MX_E2M3, data, scale, k));
        else if (format == (mx_format)E2M1_SIDES)
            _mm512_store_si512(out, decode_codes((mx_format)E2M1_SIDES, data, scale, k));
        else
            _mm512_store_si512(out, decode_codes((mx_format)E2M1_WIDE, data, scale, k));
    }
}

/* Outputs n ... n + count - 1 of m are outputs 0 ... count - 1 of what is returned. */
static inline mx_matmul outputs_of(const mx_matmul *m, int64_t n, int64_t count) {
    mx_matmul part = *m;
    part.n0 = 0;
    part.n1 = part.w.rows = count;
    part.y += m->epilogue == MX_SWIGLU ? n / 2 : n;
    if (m->bias) part.bias += n * (m->bias_format == MX_BF16 ? 2 : 4);
    if (m->w.post) part.w.post += n * m->w.post_step;
    return part;
}

/* stride: from row to row of the panel; rows: so many of them. */
static void multiply_panels(const mx_matmul *m, const coded_way *way, codes_scratch *s, int64_t stride, int64_t rows) {
    for (int64_t n = m->n0; n < m->n1; n += rows) {
        const int64_t count = m->n1 - n < rows ? m->n1 - n : rows;
        mx_matmul part = outputs_of(m, n, count);
        for (int64_t i = 0; i < count; i++) decode_row(s->panel + i * stride, &m->w, way->format, n + i, &way->k);
        part.w.format = MX_BF16;
        part.w.data = s->panel;
        part.w.row_stride = stride;
        part.w.scales = NULL;
        mx_avx512bf16_bf16[way->split ? MX_X_BF16X2 : MX_X_BF16].matmul(&part);
    }
}

/* format: coded_format; tiles: of it. */
static void matmul_codes(const mx_matmul *m, mx_format format, bool split, tile_fn *tiles) {
    codes_scratch *s = (codes_scratch *)m->scratch;
    const bool any = format == (mx_format)ANY_CODES;
    const int64_t stride = packed_bytes(m->w.cols, false), fit = PANEL_BYTES / stride / GROUP * GROUP;
    const int64_t rows = fit < BLOCK_N / 2 ? fit : BLOCK_N / 2;
    mx_matmul with_scales = *m;
    coded_way way = {.format = format, .split = split, .tiles = tiles, .bytes = mx_columns_bytes(m->w.format, 32)};
    if (!any) {
        way.k = coding_for(&with_scales.w, s);
        way.scales = coded_scale_at(format, m->w.cols / 32, &way.k);
    }
    if (m->rows > (any ? 1 : FEW_TILES * TILE) && rows > 0)
        multiply_panels(&with_scales, &way, s, stride, rows);
    else
        multiply_few_tiles(&with_scales, &way, &s->walk);
}

#endif
