#ifndef MX_KERNELS_X86_AVX512_CODES_H
#define MX_KERNELS_X86_AVX512_CODES_H

/* Element codes (kernels/mx.h) to fp32, 32 columns at a time, exactly: the element, less its zero, times its scale.
 *
 * Formats of the walk in avx512_matmul.h are MX_E2M1 (scales of a byte, any columns), MX_E4M3 (E5M2 as well: what sets
 * the two apart is in variables), MX_E2M3 (E3M2 as well), both with scales of a byte or none, MX_INT8 and MX_INT4 (BF16
 * scales of 32 columns or more, with zeros and without), MX_E2M1_SIDES (two scales to a block) and MX_ANY_CODES: all
 * else, by the specification in scalar C.
 * Codes that are NaN, which readers refuse, may become numbers. */
#include "base/bytes.h"
#include "kernels/mx.h"
#include "kernels/x86/avx512.h"

enum { MX_ANY_CODES = MX_FORMATS, MX_E2M1_SIDES };

/* How the codes of a matrix become fp32. MXFP4 uses the table alone. */
typedef struct codes {
    const float *table; /* [256]: what a scale byte is worth; integers: a byte of zeros */
    int shift;          /* column k is in block k >> shift of its row, */
    int zero_shift;     /* and has zero k >> zero_shift */
    int64_t second;     /* from the scale of the first 16 of 32 columns to that of the others */
    __m128i up;         /* E4M3, E5M2: so far to the left is a code, less what mask leaves out, an F16, */
    __m512i mask;
    __m512 factor; /* which times this is the element */
    __m512 six[2]; /* E2M3, E3M2: the 32 values of a code less its sign */
} codes;

/* table[s] = 2^(s - 127), exactly (s = 0 is a subnormal). */
MX_INLINE void fill_powers(float table[256]) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int s = 0; s < 256; s += 16) {
        __m512i bits = _mm512_slli_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(s)), 23);
        _mm512_store_si512(table + s, _mm512_max_epu32(bits, _mm512_set1_epi32(0x00400000)));
    }
}

/* table[s]: the scale byte s of E4M3. */
MX_INLINE void fill_e4m3(float table[256]) {
    const __m256i lanes = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int s = 0; s < 256; s += 16) {
        __m256i code = _mm256_add_epi16(lanes, _mm256_set1_epi16((short)(s < 128 ? s : s - 256)));
        __m256i half = _mm256_and_si256(_mm256_slli_epi16(code, 7), _mm256_set1_epi16((short)0xbf80));
        _mm512_store_ps(table + s, _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f)));
    }
}

/* table[z]: the int8 whose byte is z. */
MX_INLINE void fill_integers(float table[256]) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int z = 0; z < 256; z += 16) {
        __m512i value = _mm512_add_epi32(lanes, _mm512_set1_epi32(z < 128 ? z : z - 256));
        _mm512_store_ps(table + z, _mm512_cvtepi32_ps(value));
    }
}

/* Can the walk take the matrix by its own format, or is it one for MX_ANY_CODES? */
MX_INLINE bool mx_codes_are_fast(const mx_matrix *w) {
    const mx_blocks *b = &w->blocks;
    if (b->sides) return w->format == MX_E2M1 && b->scale != MX_SCALE_BF16 && b->columns >= 32;
    if (mx_is_integer_format(w->format)) return b->scale == MX_SCALE_BF16 && b->columns >= 32;
    return b->scale != MX_SCALE_BF16 && !b->zeros;
}

/* Fills `table` and makes of w a matrix with scales, and of integers one with zeros. For those that are fast. */
MX_INLINE codes codes_for(mx_matrix *w, float table[256]) {
    static const uint8_t no_scale = 127;
    static const int8_t no_zero = 0;
    codes k = {.table = table,
               .shift = w->blocks.columns ? __builtin_ctz((unsigned)w->blocks.columns) : 62,
               .second = w->blocks.columns == 16,
               .up = _mm_cvtsi32_si128(w->format == MX_E4M3 ? 7 : 8),
               .mask = _mm512_set1_epi16((short)(w->format == MX_E4M3 ? 0xbf80 : 0xffff)),
               .factor = _mm512_set1_ps(w->format == MX_E4M3 ? 256.0f : 1.0f)};
    if (w->format == MX_E2M3 || w->format == MX_E3M2) {
        float values[32];
        for (unsigned i = 0; i < 32; i++) values[i] = mx_element_value(w->format, i);
        k.six[0] = _mm512_loadu_ps(values);
        k.six[1] = _mm512_loadu_ps(values + 16);
    }
    k.zero_shift = w->blocks.zeros ? k.shift : 62;
    if (mx_is_integer_format(w->format))
        fill_integers(table);
    else if (w->blocks.scale == MX_SCALE_E4M3)
        fill_e4m3(table);
    else
        fill_powers(table);
    if (!w->blocks.columns) {
        w->scales = &no_scale;
        w->scale_stride = 0;
    }
    if (!w->blocks.zeros) {
        w->zeros = &no_zero;
        w->zero_stride = 0;
    }
    return k;
}

/* From the first scale of a row to that of columns 32 b ..., in bytes. */
MX_INLINE int64_t codes_scale_at(mx_format format, const codes *k, int64_t b) {
    const bool two = mx_is_integer_format(format) || format == (mx_format)MX_E2M1_SIDES;
    return (32 * b >> k->shift) * (two ? 2 : 1);
}

/* In each 16 columns lane 2 q + i is column 8 i + q: what shifts make of 8 copies of 8 bytes of nibbles, so that these
 * need no shuffle to come apart. */
#define COLUMNS _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15)

/* 16 of `values` [16], in the order of COLUMNS. */
MX_INLINE __m512 look_up_nibbles(const uint8_t *at, __m512 values) {
    const __m512i nibble = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
    __m512i indices = _mm512_srlv_epi32(_mm512_set1_epi64((long long)mx_load_u64(at)), nibble);
    return _mm512_permutexvar_ps(indices, values); /* looks at 4 bits of an index */
}

/* 16 codes of six bits, the first of them in the `skip`th of 16 bytes, and what they are worth. Four codes are three
 * bytes: each begins in one of them and ends there or in the next. */
MX_INLINE __m512 look_up_sixes(const uint8_t *at, int skip, const codes *k, __m512 by) {
    const __m512i bytes = _mm512_setr_epi32(0x80800100, 0x80800100, 0x80800201, 0x80808002, 0x80800403, 0x80800403,
                                            0x80800504, 0x80808005, 0x80800706, 0x80800706, 0x80800807, 0x80808008,
                                            0x80800a09, 0x80800a09, 0x80800b0a, 0x8080800b);
    const __m512i shifts = _mm512_setr_epi32(0, 6, 4, 2, 0, 6, 4, 2, 0, 6, 4, 2, 0, 6, 4, 2);
    const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)at));
    const __m512i places = _mm512_add_epi8(bytes, _mm512_set1_epi8((char)skip)); /* 0x80 + skip: none, too */
    const __m512i found = _mm512_srlv_epi32(_mm512_shuffle_epi8(all, places), shifts);
    const __m512i value = _mm512_castps_si512(_mm512_permutex2var_ps(k->six[0], found, k->six[1])); /* by 5 bits */
    const __m512i sign = _mm512_slli_epi32(found, 26), mask = _mm512_set1_epi32((int)0x80000000);
    return _mm512_mul_ps(_mm512_castsi512_ps(_mm512_ternarylogic_epi32(value, sign, mask, 0xf8)), by);
}

#define E2M1_VALUES                                                                                                    \
    _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f,    \
                   -6.0f)

/* 32 weights whose codes begin at `at`, the first one's scale and zero at `scale` and `zero`: E2M1 and INT4 in the
 * order of COLUMNS, the others in their own. */
MX_INLINE void decode_codes(__m512 *first, __m512 *second, mx_format format, const uint8_t *at, const uint8_t *scale,
                            const int8_t *zero, const codes *k) {
    if (format == (mx_format)MX_E2M1_SIDES) {
        const __m512 by =
            _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(k->table[scale[0]]), _mm512_set1_ps(k->table[scale[1]]));
        const __m512 values = _mm512_mul_ps(E2M1_VALUES, by);
        *first = look_up_nibbles(at, values);
        *second = look_up_nibbles(at + 8, values);
    } else if (format == MX_E2M1) {
        *first = _mm512_mul_ps(look_up_nibbles(at, E2M1_VALUES), _mm512_set1_ps(k->table[scale[0]]));
        *second = _mm512_mul_ps(look_up_nibbles(at + 8, E2M1_VALUES), _mm512_set1_ps(k->table[scale[k->second]]));
    } else if (format == MX_E2M3) {
        *first = look_up_sixes(at, 0, k, _mm512_set1_ps(k->table[scale[0]]));
        *second = look_up_sixes(at + 8, 4, k, _mm512_set1_ps(k->table[scale[k->second]]));
    } else if (format == MX_E4M3) {
        __m512i half = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)at));
        half = _mm512_and_si512(_mm512_sll_epi16(half, k->up), k->mask);
        __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(half));
        __m512 high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1));
        /* not factor times scale, which may be beyond what fp32 has */
        *first = _mm512_mul_ps(_mm512_mul_ps(low, k->factor), _mm512_set1_ps(k->table[scale[0]]));
        *second = _mm512_mul_ps(_mm512_mul_ps(high, k->factor), _mm512_set1_ps(k->table[scale[k->second]]));
    } else {
        const __m512 by = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_set1_epi16((short)mx_load_u16(scale)), 16));
        const __m512 less = _mm512_set1_ps(k->table[(uint8_t)*zero]);
        if (format == MX_INT4) {
            const __m512 integers = _mm512_setr_ps(-8.0f, -7.0f, -6.0f, -5.0f, -4.0f, -3.0f, -2.0f, -1.0f, 0.0f, 1.0f,
                                                   2.0f, 3.0f, 4.0f, 5.0f, 6.0f, 7.0f);
            const __m512 values = _mm512_mul_ps(_mm512_sub_ps(integers, less), by);
            *first = look_up_nibbles(at, values);
            *second = look_up_nibbles(at + 8, values);
        } else {
            *first = _mm512_mul_ps(_mm512_sub_ps(mx_load16_int8(at), less), by);
            *second = _mm512_mul_ps(_mm512_sub_ps(mx_load16_int8(at + 16), less), by);
        }
    }
}

/* The same of columns 32 b ... of row n of any matrix. */
MX_INLINE void decode_any(__m512 *first, __m512 *second, const mx_matrix *w, int64_t n, int64_t b) {
    float x[32] __attribute__((aligned(64)));
    const bool nibbles = mx_columns_bytes(w->format, 32) == 16;
    mx_matrix_widen_32(x, w, n, 32 * b);
    *first = _mm512_load_ps(x);
    *second = _mm512_load_ps(x + 16);
    if (nibbles) {
        *first = _mm512_permutexvar_ps(COLUMNS, *first);
        *second = _mm512_permutexvar_ps(COLUMNS, *second);
    }
}

#endif
