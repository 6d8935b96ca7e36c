#ifndef MX_KERNELS_X86_AVX2_H
#define MX_KERNELS_X86_AVX2_H

/* What the files of the AVX2 tier (AVX2, FMA, F16C) share. */

#include <immintrin.h>
#include <stdint.h>

#include "base/bytes.h"
#include "kernels/kernels.h"

#define MX_INLINE static inline __attribute__((always_inline))

extern const mx_product mx_avx2_product[MX_FORMATS][3]; /* MX_X_FP32, MX_X_BF16X2, MX_X_BF16 */
enum { MX_AVX2_MATMUL_SCRATCH = 42928 };                /* floats */
void mx_avx2_matmul_e2m1(const mx_matmul *m);           /* avx2_blocks.c */
void mx_avx2_matmul_e2m3(const mx_matmul *m);
void mx_avx2_matmul_e3m2(const mx_matmul *m);
void mx_avx2_matmul_e4m3(const mx_matmul *m);
void mx_avx2_matmul_e5m2(const mx_matmul *m);
void mx_avx2_matmul_int8(const mx_matmul *m);
void mx_avx2_matmul_int4(const mx_matmul *m);

void mx_avx2_attention(const mx_attention *a);
void mx_avx2_attention_segment(const mx_attention *a, int64_t segment);
void mx_avx2_attention_join(const mx_attention *a);
int64_t mx_avx2_attention_scratch(int head_dim, int group);
void mx_avx2_kv_write(uint8_t *head_tile, mx_format kv, int head_dim, int slot, const float *k, const float *v);
void mx_avx2_rmsnorm(float *out, const float *x, const float *gain, int64_t n, float eps);
void mx_avx2_rope(float *x, const float *cos, const float *sin, int64_t heads, int head_dim);
void mx_avx2_router_topk(const float *logits, int n, int k, int32_t *expert, float *weight);
int64_t mx_avx2_argmax(const float *x, int64_t n);
double mx_avx2_exp_sum(float *p, const float *x, int64_t n, float shift, float scale);
void mx_avx2_widen(float *out, const uint8_t *in, mx_format format, int64_t n);

/* Eight values of a file's format at any address, exactly. */
MX_INLINE __m256 mx_load8(const uint8_t *at, mx_format format) {
    if (format == MX_F32) return _mm256_loadu_ps((const float *)at);
    __m128i half = _mm_loadu_si128((const __m128i *)at);
    if (format == MX_F16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* Eight integers at any address. */
MX_INLINE __m256 mx_load8_int8(const uint8_t *at) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)at)));
}

/* The scale of a block of Q8_0, eight times. */
MX_INLINE __m256 mx_q8_0_scale(const uint8_t *block) {
    return _mm256_cvtph_ps(_mm_set1_epi16((short)mx_load_u16(block)));
}

/* exp(x) within 2^-22.9 of the true value, subnormal results included; NaN stays NaN. x = n ln 2 + r, |r| <= ln 2 / 2,
 * exp(r) = 1 + r + r^2 q(r) with q minimax for the relative error (3.6e-9 before rounding); 2^n in two factors, as it
 * may lie outside the normal range. */
MX_INLINE __m256 mx_exp256(__m256 x) {
    x = _mm256_min_ps(_mm256_set1_ps(100.0f), _mm256_max_ps(_mm256_set1_ps(-110.0f), x));
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
    __m256 q = _mm256_set1_ps(0x1.6a23cep-10f);
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0x1.123a2p-7f));
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0x1.5558f2p-5f));
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0x1.555492p-3f));
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0x1.fffffcp-2f));
    __m256 e = _mm256_add_ps(_mm256_fmadd_ps(q, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
    __m256i all = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(all, 1), rest = _mm256_sub_epi32(all, half);
    const __m256i bias = _mm256_set1_epi32(127);
    e = _mm256_mul_ps(e, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    return _mm256_mul_ps(e, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}

#endif
