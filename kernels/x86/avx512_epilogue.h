#ifndef MX_KERNELS_X86_AVX512_EPILOGUE_H
#define MX_KERNELS_X86_AVX512_EPILOGUE_H

/* What the AVX-512 products share: sums of lanes, and what is done with a finished sum. */

#include <string.h>

#include "kernels/x86/avx512.h"

/* ---- sums of lanes --------------------------------------------------------------------------------------------- */

/* Per 128-bit lane: that lane's sums of a, b, c and d. */
MX_INLINE __m512 mx_fold4(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}

MX_INLINE __m512 mx_fold_lanes(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

/* Lane i of the result: the sum of a[i], by one tree for every i. */
MX_INLINE __m512 mx_fold16(const __m512 a[16]) {
    __m512 low = mx_fold_lanes(mx_fold4(a[0], a[1], a[2], a[3]), mx_fold4(a[4], a[5], a[6], a[7]));
    __m512 high = mx_fold_lanes(mx_fold4(a[8], a[9], a[10], a[11]), mx_fold4(a[12], a[13], a[14], a[15]));
    return mx_fold_lanes(low, high);
}

MX_INLINE __m256 mx_fold8(const __m512 a[8]) {
    __m512 low = mx_fold_lanes(mx_fold4(a[0], a[1], a[2], a[3]), mx_fold4(a[4], a[5], a[6], a[7]));
    return _mm512_castps512_ps256(mx_fold_lanes(low, low));
}

/* 64 bytes into a register: compilers would rather load once more for each use, and loads are what is scarce then. */
MX_INLINE __m512 mx_load_once(const void *at) {
    __m512 v = _mm512_loadu_ps(at);
    __asm__("" : "+v"(v));
    return v;
}

/* ---- what is done with a finished sum ---------------------------------------------------------------------------- */

/* bias[i]: that of output n0 + i, i < count. */
static inline void mx_widen_bias(float *bias, const mx_matmul *m, int64_t n0, int64_t count) {
    if (m->bias) {
        mx_avx512_widen(bias, m->bias + n0 * (m->bias_format == MX_BF16 ? 2 : 4), m->bias_format, count);
    } else {
        memset(bias, 0, (size_t)count * sizeof *bias);
    }
}

/* See mx_swiglu. exp(-alpha * gate) may be infinite: 1 / (1 + inf) is 0, and so is the product. */
MX_INLINE __m512 mx_swiglu512(__m512 gate, __m512 up, float limit, float alpha) {
    __m512 most = _mm512_set1_ps(limit), one = _mm512_set1_ps(1.0f);
    gate = _mm512_min_ps(most, gate);
    up = _mm512_max_ps(_mm512_set1_ps(-limit), _mm512_min_ps(most, up));
    __m512 e = mx_exp512(_mm512_mul_ps(_mm512_set1_ps(-alpha), gate));
    __m512 sigmoid = _mm512_div_ps(one, _mm512_add_ps(one, e));
    return _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid), _mm512_add_ps(up, one));
}

/* The finished sums of outputs n ... n + 15 that are in the mask: times post, where there is one, plus bias. */
MX_INLINE __m512 mx_finished_sums(const mx_matmul *m, int64_t n, const float *sum, const float *bias, __mmask16 mask) {
    __m512 v = _mm512_maskz_loadu_ps(mask, sum);
    if (m->w.post) {
        const float *post = m->w.post + n * m->w.post_step;
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512i at = _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int)m->w.post_step));
        v = _mm512_mul_ps(v, _mm512_mask_i32gather_ps(v, mask, at, post, 4));
    }
    return _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, bias));
}

static inline void mx_finish_swiglu(const mx_matmul *m, float *y, int64_t n0, const float *sum, const float *bias,
                                    int64_t count) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    for (int64_t i = 0; i < count; i += 32) {
        __mmask16 first = mx_first_lanes(count - i), second = count - i > 16 ? mx_first_lanes(count - i - 16) : 0;
        __m512 a = mx_finished_sums(m, n0 + i, sum + i, bias + i, first);
        __m512 b = mx_finished_sums(m, n0 + i + 16, sum + i + 16, bias + i + 16, second);
        __m512 gate = _mm512_permutex2var_ps(a, even, b), up = _mm512_permutex2var_ps(a, odd, b);
        _mm512_mask_storeu_ps(y + i / 2, mx_first_lanes((count - i) / 2), mx_swiglu512(gate, up, m->limit, m->alpha));
    }
}

/* Outputs n0 ... n0 + count - 1 of row t. */
static inline void mx_finish_row(const mx_matmul *m, int64_t t, int64_t n0, int64_t count, const float *sum,
                                 const float *bias) {
    float *y = m->y + (m->y_row ? m->y_row[t] : t) * m->y_stride;
    if (m->epilogue == MX_SWIGLU) {
        mx_finish_swiglu(m, y + n0 / 2, n0, sum, bias, count);
        return;
    }
    __m512 factor = _mm512_set1_ps(m->epilogue == MX_SCALE ? m->factor[t] : 1.0f);
    for (int64_t i = 0; i < count; i += 16) {
        __mmask16 mask = mx_first_lanes(count - i);
        __m512 v = mx_finished_sums(m, n0 + i, sum + i, bias + i, mask);
        if (m->epilogue == MX_SCALE) v = _mm512_mul_ps(v, factor);
        if (m->epilogue == MX_GATED) v = mx_swiglu512(_mm512_maskz_loadu_ps(mask, y + n0 + i), v, m->limit, m->alpha);
        if (m->epilogue == MX_ADD) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y + n0 + i), v);
        _mm512_mask_storeu_ps(y + n0 + i, mask, v);
    }
}

#endif
