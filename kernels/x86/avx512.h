#ifndef MX_KERNELS_X86_AVX512_H
#define MX_KERNELS_X86_AVX512_H

/* What the files of the AVX-512 tier (F, BW, VL, DQ; FMA and F16C) share. */

#include <immintrin.h>
#include <stdint.h>

#include "base/bytes.h"
#include "kernels/kernels.h"

#define MX_INLINE static inline __attribute__((always_inline))

void mx_avx512_matmul_mxfp4(const mx_matmul *m), mx_avx512_matmul_q8_0(const mx_matmul *m),
    mx_avx512_matmul_ggml(const mx_matmul *m);
/* Of element codes: E2M3 and E3M2; E4M3 and E5M2; all of them, by kernels/mx.h. */
void mx_avx512_matmul_e2m1(const mx_matmul *m), mx_avx512_matmul_fp6(const mx_matmul *m),
    mx_avx512_matmul_fp8(const mx_matmul *m), mx_avx512_matmul_int8(const mx_matmul *m),
    mx_avx512_matmul_int4(const mx_matmul *m), mx_avx512_matmul_any(const mx_matmul *m);
extern const mx_product mx_avx512_product[MX_FORMATS][3]; /* MX_X_FP32, MX_X_BF16X2, MX_X_BF16 */
enum { MX_AVX512_MATMUL_SCRATCH = 84928 };                /* floats */
void mx_avx512_attention(const mx_attention *a);
void mx_avx512_attention_segment(const mx_attention *a, int64_t segment);
void mx_avx512_attention_join(const mx_attention *a);
int64_t mx_avx512_attention_scratch(int head_dim, int group);
void mx_avx512_kv_write(uint8_t *head_tile, mx_format kv, int head_dim, int slot, const float *k, const float *v);
void mx_avx512_rmsnorm(float *out, const float *x, const float *gain, int64_t n, float eps);
void mx_avx512_rope(float *x, const float *cos, const float *sin, int64_t heads, int head_dim);
void mx_avx512_router_topk(const float *logits, int n, int k, int32_t *expert, float *weight);
int64_t mx_avx512_argmax(const float *x, int64_t n);
double mx_avx512_exp_sum(float *p, const float *x, int64_t n, float shift, float scale);
void mx_avx512_add(float *y, const float *x, int64_t n);
void mx_avx512_widen(float *out, const uint8_t *in, mx_format format, int64_t n);

/* All entries of a table but its name and its products: whatever the family's tiers multiply with, the rest is this.
 * Needs kernels/scalar/scalar.h. */
#define MX_AVX512_BUT_PRODUCTS                                                                                         \
    .attention = mx_avx512_attention, .attention_scratch = mx_avx512_attention_scratch,                                \
    .attention_segment = mx_avx512_attention_segment, .attention_join = mx_avx512_attention_join,                      \
    .kv_write = mx_avx512_kv_write, .rmsnorm = mx_avx512_rmsnorm, .rope = mx_avx512_rope,                              \
    .router_topk = mx_avx512_router_topk, .argmax = mx_avx512_argmax, .exp_sum = mx_avx512_exp_sum,                    \
    .add = mx_avx512_add, .widen = mx_avx512_widen

/* The first n lanes, all of them when n >= 16. */
MX_INLINE __mmask16 mx_first_lanes(int64_t n) {
    return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
}

/* Sixteen values of a file's format at any address, exactly. */
MX_INLINE __m512 mx_load16(const uint8_t *at, mx_format format) {
    if (format == MX_F32) return _mm512_loadu_ps(at);
    __m256i half = _mm256_loadu_si256((const __m256i *)at);
    if (format == MX_F16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* The same for the lanes of `mask`; the others are zero and their memory is not touched. */
MX_INLINE __m512 mx_load16_masked(const uint8_t *at, mx_format format, __mmask16 mask) {
    if (format == MX_F32) return _mm512_maskz_loadu_ps(mask, at);
    __m256i half = _mm256_maskz_loadu_epi16(mask, at);
    if (format == MX_F16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* Sixteen integers at any address. */
MX_INLINE __m512 mx_load16_int8(const uint8_t *at) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)at)));
}

/* The scale of a block of Q8_0, sixteen times. */
MX_INLINE __m512 mx_q8_0_scale(const uint8_t *block) {
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)mx_load_u16(block)));
}

/* exp(x) within 2^-22.9 of the true value, subnormal results included; NaN stays NaN. x = n ln 2 + r, |r| <= ln 2 / 2,
 * exp(r) = 1 + r + r^2 q(r) with q minimax for the relative error (3.6e-9 before rounding). */
MX_INLINE __m512 mx_exp512(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(100.0f), _mm512_max_ps(_mm512_set1_ps(-110.0f), x));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
    __m512 q = _mm512_set1_ps(0x1.6a23cep-10f);
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0x1.123a2p-7f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0x1.5558f2p-5f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0x1.555492p-3f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0x1.fffffcp-2f));
    __m512 e = _mm512_fmadd_ps(q, _mm512_mul_ps(r, r), r);
    return _mm512_scalef_ps(_mm512_add_ps(e, _mm512_set1_ps(1.0f)), n);
}

/* The sum of 16 lanes in one fixed order. */
MX_INLINE float mx_sum512(__m512 v) {
    v = _mm512_add_ps(v, _mm512_shuffle_f32x4(v, v, 0x4e));
    v = _mm512_add_ps(v, _mm512_shuffle_f32x4(v, v, 0xb1));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0x4e));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0xb1));
    return _mm512_cvtss_f32(v);
}

#endif
