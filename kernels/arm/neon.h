#ifndef MX_KERNELS_ARM_NEON_H
#define MX_KERNELS_ARM_NEON_H

/* What the files of the NEON tiers share. "neon" is base ARMv8; "neondot" adds int8 products
 * by SDOT (FEAT_DotProd), "neonbf16" products by BFMMLA and SMMLA (FEAT_BF16, FEAT_I8MM).
 *
 * No speed of these tiers has been measured: they were written and tested under an emulator. The shapes of the loops
 * follow what the cores they are meant for are documented to want (two or four vector units, FMA in four cycles, two or
 * three 16-byte loads a cycle, 32 registers): 16 to 24 independent sums, weights fetched into L2 ahead. */

#include <arm_neon.h>
#include <stdint.h>

#include "base/bytes.h"
#include "kernels/kernels.h"

#define MX_INLINE static inline __attribute__((always_inline))

extern const mx_product mx_neon_product[MX_FORMATS][3]; /* MX_X_FP32, MX_X_BF16X2, MX_X_BF16 */

extern const mx_product mx_neonbf16_dense[2]; /* MX_X_BF16X2, MX_X_BF16 with BF16 weights */
extern const mx_product mx_neonbf16_q8_0[2], mx_neonbf16_mxfp4_ggml[2];
extern const mx_product mx_neondot_int8, mx_neonbf16_int8, mx_neondot_int8_ggml, mx_neonbf16_int8_ggml;
extern const mx_product mx_neonbf16_mxfp4[2];                                /* the same with MXFP4 weights */
enum { MX_NEON_MATMUL_SCRATCH = 29104, MX_NEONBF16_MATMUL_SCRATCH = 32944 }; /* floats */

void mx_neon_attention(const mx_attention *a);
void mx_neon_attention_segment(const mx_attention *a, int64_t segment);
void mx_neon_attention_join(const mx_attention *a);
int64_t mx_neon_attention_scratch(int head_dim, int group);
void mx_neon_kv_write(uint8_t *head_tile, mx_format kv, int head_dim, int slot, const float *k, const float *v);
void mx_neon_rmsnorm(float *out, const float *x, const float *gain, int64_t n, float eps);
void mx_neon_rope(float *x, const float *cos, const float *sin, int64_t heads, int head_dim);
void mx_neon_router_topk(const float *logits, int n, int k, int32_t *expert, float *weight);
int64_t mx_neon_argmax(const float *x, int64_t n);
double mx_neon_exp_sum(float *p, const float *x, int64_t n, float shift, float scale);
void mx_neon_widen(float *out, const uint8_t *in, mx_format format, int64_t n);

/* All entries of a table but its name and its products: whatever the family's tiers multiply with, the rest is this.
 * Needs kernels/scalar/scalar.h. */
#define MX_NEON_BUT_PRODUCTS                                                                                           \
    .attention = mx_neon_attention, .attention_scratch = mx_neon_attention_scratch,                                    \
    .attention_segment = mx_neon_attention_segment, .attention_join = mx_neon_attention_join,                          \
    .kv_write = mx_neon_kv_write, .rmsnorm = mx_neon_rmsnorm, .rope = mx_neon_rope,                                    \
    .router_topk = mx_neon_router_topk, .argmax = mx_neon_argmax, .exp_sum = mx_neon_exp_sum, .add = mx_scalar_add,    \
    .widen = mx_neon_widen

/* Four values of a file's format at any address, exactly. */
MX_INLINE float32x4_t mx_load4(const uint8_t *at, mx_format format) {
    if (format == MX_F32) return vreinterpretq_f32_u8(vld1q_u8(at));
    uint8x8_t half = vld1_u8(at);
    if (format == MX_F16) return vcvt_f32_f16(vreinterpret_f16_u8(half));
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(half), 16));
}

/* Eight columns of a block of Q8_0, from column `first` on; scale: mx_q8_0_scale of the block. */
MX_INLINE void mx_load8_q8_0(float32x4_t out[2], const uint8_t *block, int first, float scale) {
    int16x8_t q = vmovl_s8(vreinterpret_s8_u8(vld1_u8(block + 2 + first)));
    out[0] = vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(q))), scale);
    out[1] = vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(q)), scale);
}

MX_INLINE float mx_q8_0_scale(const uint8_t *block) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(mx_load_u16(block)))), 0);
}

/* exp(x) within 2^-22.9 of the true value, subnormal results included; NaN stays NaN. x = n ln 2 + r, |r| <= ln 2 / 2,
 * exp(r) = 1 + r + r^2 q(r) with q minimax for the relative error (3.6e-9 before rounding); 2^n in two factors, as it
 * may lie outside the normal range. */
MX_INLINE float32x4_t mx_exp128(float32x4_t x) {
    x = vminq_f32(vdupq_n_f32(100.0f), vmaxq_f32(vdupq_n_f32(-110.0f), x));
    float32x4_t n = vrndnq_f32(vmulq_n_f32(x, 0x1.715476p+0f));
    float32x4_t r = vfmsq_f32(x, n, vdupq_n_f32(0x1.62e4p-1f));
    r = vfmsq_f32(r, n, vdupq_n_f32(0x1.7f7d1cp-20f));
    float32x4_t q = vdupq_n_f32(0x1.6a23cep-10f);
    q = vfmaq_f32(vdupq_n_f32(0x1.123a2p-7f), q, r);
    q = vfmaq_f32(vdupq_n_f32(0x1.5558f2p-5f), q, r);
    q = vfmaq_f32(vdupq_n_f32(0x1.555492p-3f), q, r);
    q = vfmaq_f32(vdupq_n_f32(0x1.fffffcp-2f), q, r);
    float32x4_t e = vaddq_f32(vfmaq_f32(r, q, vmulq_f32(r, r)), vdupq_n_f32(1.0f));
    int32x4_t all = vcvtq_s32_f32(n), half = vshrq_n_s32(all, 1), rest = vsubq_s32(all, half);
    const int32x4_t bias = vdupq_n_s32(127);
    e = vmulq_f32(e, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23)));
    return vmulq_f32(e, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, bias), 23)));
}

/* BF16 to nearest even, NaN stays NaN: in the upper half of each lane, the lower one is rubbish. */
MX_INLINE uint32x4_t mx_round_bf16(float32x4_t v) {
    uint32x4_t bits = vreinterpretq_u32_f32(v), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    return vbslq_u32(vceqq_f32(v, v), rounded, vorrq_u32(bits, vdupq_n_u32(0x00400000)));
}

/* What becomes of the finished sums of `count` outputs n0 ... of activation row t, for the products of both tiers.
 * sum and bias hold count rounded up to 8 floats; sum is used up. */
void mx_neon_finish_row(const mx_matmul *m, int64_t t, int64_t n0, int64_t count, float *sum, const float *bias);
/* m's bias for outputs n0 ... n0 + count - 1 as fp32, zeros where it has none. */
void mx_neon_widen_bias(float *bias, const mx_matmul *m, int64_t n0, int64_t count);

#endif
