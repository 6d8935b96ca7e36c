#ifndef MX_KERNELS_X86_AVX2_EPILOGUE_H
#define MX_KERNELS_X86_AVX2_EPILOGUE_H

/* What the AVX2 products do with finished sums. */

#include <string.h>

#include "kernels/x86/avx2.h"

/* bias[i]: that of output n0 + i, i < count. */
static inline void mx_widen_bias(float *bias, const mx_matmul *m, int64_t n0, int64_t count) {
    if (m->bias) {
        mx_avx2_widen(bias, m->bias + n0 * (m->bias_format == MX_BF16 ? 2 : 4), m->bias_format, count);
    } else {
        memset(bias, 0, (size_t)count * sizeof *bias);
    }
}

/* See mx_swiglu. exp(-alpha * gate) may be infinite: 1 / (1 + inf) is 0, and so is the product. */
MX_INLINE __m256 mx_swiglu256(__m256 gate, __m256 up, float limit, float alpha) {
    __m256 most = _mm256_set1_ps(limit), one = _mm256_set1_ps(1.0f);
    gate = _mm256_min_ps(most, gate);
    up = _mm256_max_ps(_mm256_set1_ps(-limit), _mm256_min_ps(most, up));
    __m256 e = mx_exp256(_mm256_mul_ps(_mm256_set1_ps(-alpha), gate));
    __m256 sigmoid = _mm256_div_ps(one, _mm256_add_ps(one, e));
    return _mm256_mul_ps(_mm256_mul_ps(gate, sigmoid), _mm256_add_ps(up, one));
}

/* Whole vectors of the padded sums, so that an output's bits do not depend on where a range ends. */
static inline void mx_finish_swiglu(const mx_matmul *m, float *y, const float *sum, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) {
        float out[8];
        __m256 a = _mm256_loadu_ps(sum + i), b = _mm256_loadu_ps(sum + i + 8);
        __m256d gate = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
        __m256d up = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
        gate = _mm256_permute4x64_pd(gate, 0xd8);
        up = _mm256_permute4x64_pd(up, 0xd8);
        _mm256_storeu_ps(out, mx_swiglu256(_mm256_castpd_ps(gate), _mm256_castpd_ps(up), m->limit, m->alpha));
        memcpy(y + i / 2, out, (count - i < 16 ? (size_t)(count - i) / 2 : 8) * sizeof *y);
    }
}

static inline void mx_finish_gated(const mx_matmul *m, float *y, const float *sum, int64_t count) {
    for (int64_t i = 0; i < count; i += 8) {
        const size_t bytes = (count - i < 8 ? (size_t)(count - i) : 8) * sizeof *y;
        float gate[8] = {0};
        memcpy(gate, y + i, bytes);
        _mm256_storeu_ps(gate, mx_swiglu256(_mm256_loadu_ps(gate), _mm256_loadu_ps(sum + i), m->limit, m->alpha));
        memcpy(y + i, gate, bytes);
    }
}

/* Outputs n0 ... n0 + count - 1 of row t. sum is used up and has room for a multiple of 16. */
static inline void mx_finish_row(const mx_matmul *m, int64_t t, int64_t n0, int64_t count, float *sum,
                                 const float *bias) {
    float *y = m->y + (m->y_row ? m->y_row[t] : t) * m->y_stride;
    for (int64_t i = 0; i < count && m->w.post; i++) sum[i] *= m->w.post[(n0 + i) * m->w.post_step];
    for (int64_t i = 0; i < count; i++) sum[i] += bias[i];
    if (m->epilogue == MX_SWIGLU) {
        memset(sum + count, 0, (size_t)(-count & 15) * sizeof *sum);
        mx_finish_swiglu(m, y + n0 / 2, sum, count);
    } else if (m->epilogue == MX_GATED) {
        memset(sum + count, 0, (size_t)(-count & 7) * sizeof *sum);
        mx_finish_gated(m, y + n0, sum, count);
    } else if (m->epilogue == MX_SCALE) {
        for (int64_t i = 0; i < count; i++) y[n0 + i] = sum[i] * m->factor[t];
    } else if (m->epilogue == MX_ADD) {
        for (int64_t i = 0; i < count; i++) y[n0 + i] += sum[i];
    } else {
        memcpy(y + n0, sum, (size_t)count * sizeof *y);
    }
}

#endif
