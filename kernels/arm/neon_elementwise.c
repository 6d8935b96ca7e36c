/* Adding is the scalar function: compilers make the same NEON of it. */
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "kernels/arm/neon.h"
#include "kernels/scalar/scalar.h"

void mx_neon_widen(float *out, const uint8_t *in, mx_format format, int64_t n) {
    if (format == MX_F32) {
        memcpy(out, in, (size_t)n * sizeof *out);
        return;
    }
    if (format == MX_Q8_0) {
        for (int64_t i = 0; i < n; i += 8) {
            const uint8_t *block = in + mx_columns_bytes(MX_Q8_0, i);
            float32x4_t v[2];
            mx_load8_q8_0(v, block, i % 32, mx_q8_0_scale(block));
            vst1q_f32(out + i, v[0]);
            vst1q_f32(out + i + 4, v[1]);
        }
        return;
    }
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        vst1q_f32(out + i, format == MX_F16 ? mx_load4(in + 2 * i, MX_F16) : mx_load4(in + 2 * i, MX_BF16));
    }
    for (; i < n; i++) {
        uint16_t half = mx_load_u16(in + 2 * i);
        out[i] = format == MX_F16 ? mx_f16_to_f32(half) : mx_bf16_to_f32(half);
    }
}

/* Squares are summed in double: fp32 would overflow on residuals that the model can hold. */
void mx_neon_rmsnorm(float *out, const float *x, const float *gain, int64_t n, float eps) {
    float64x2_t sums[4] = {vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0)};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        for (int k = 0; k < 2; k++) {
            float32x4_t v = vld1q_f32(x + i + 4 * k);
            float64x2_t a = vcvt_f64_f32(vget_low_f32(v)), b = vcvt_high_f64_f32(v);
            sums[2 * k] = vfmaq_f64(sums[2 * k], a, a);
            sums[2 * k + 1] = vfmaq_f64(sums[2 * k + 1], b, b);
        }
    }
    double sum = vaddvq_f64(vaddq_f64(vaddq_f64(sums[0], sums[1]), vaddq_f64(sums[2], sums[3])));
    for (; i < n; i++) sum += (double)x[i] * x[i];
    float factor = (float)(1.0 / sqrt(sum / (double)n + eps));
    for (i = 0; i < n; i++) out[i] = x[i] * factor * gain[i];
}

void mx_neon_rope(float *x, const float *cos, const float *sin, int64_t heads, int head_dim) {
    const int half = head_dim / 2;
    for (int64_t h = 0; h < heads; h++, x += head_dim) {
        int d = 0;
        for (; d + 4 <= half; d += 4) {
            float32x4_t a = vld1q_f32(x + d), b = vld1q_f32(x + half + d), c = vld1q_f32(cos + d),
                        s = vld1q_f32(sin + d);
            vst1q_f32(x + d, vfmsq_f32(vmulq_f32(a, c), b, s));
            vst1q_f32(x + half + d, vfmaq_f32(vmulq_f32(b, c), a, s));
        }
        for (; d < half; d++) {
            const float a = x[d], b = x[half + d];
            x[d] = a * cos[d] - b * sin[d];
            x[half + d] = b * cos[d] + a * sin[d];
        }
    }
}

double mx_neon_exp_sum(float *p, const float *x, int64_t n, float shift, float scale) {
    float64x2_t low = vdupq_n_f64(0), high = low;
    for (int64_t i = 0; i < n; i += 4) {
        float last[4] = {0};
        size_t count = n - i < 4 ? (size_t)(n - i) : 4;
        memcpy(last, x + i, count * sizeof *x);
        vst1q_f32(last, mx_exp128(vmulq_n_f32(vsubq_f32(vld1q_f32(last), vdupq_n_f32(shift)), scale)));
        memcpy(p + i, last, count * sizeof *p);
        memset(last + count, 0, (4 - count) * sizeof *last);
        float32x4_t e = vld1q_f32(last);
        low = vaddq_f64(low, vcvt_f64_f32(vget_low_f32(e)));
        high = vaddq_f64(high, vcvt_high_f64_f32(e));
    }
    return vaddvq_f64(vaddq_f64(low, high));
}

/* Two passes: the largest value, then its first place. NaN is never the largest: "maximum number" passes over it. */
int64_t mx_neon_argmax(const float *x, int64_t n) {
    float32x4_t best[4];
    for (int k = 0; k < 4; k++) best[k] = vdupq_n_f32(-INFINITY);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int k = 0; k < 4; k++) best[k] = vmaxnmq_f32(best[k], vld1q_f32(x + i + 4 * k));
    }
    float largest = vmaxvq_f32(vmaxq_f32(vmaxq_f32(best[0], best[1]), vmaxq_f32(best[2], best[3])));
    for (; i < n; i++) largest = x[i] > largest ? x[i] : largest;
    float32x4_t wanted = vdupq_n_f32(largest);
    for (i = 0; i + 4 <= n; i += 4) {
        uint32x4_t equal = vceqq_f32(vld1q_f32(x + i), wanted);
        if (vmaxvq_u32(equal)) break;
    }
    for (; i < n; i++) {
        if (x[i] == largest) return i;
    }
    return 0;
}

/* k times the largest of those that are left, then its first place. What has been chosen becomes -infinity and loses
 * its index, which tells it from logits that are; NaN ranks with these. */
void mx_neon_router_topk(const float *logits, int n, int k, int32_t *expert, float *weight) {
    enum { MOST = 256, STEP = 16 };
    float v[MOST];
    uint32_t index[MOST];
    const float32x4_t lowest = vdupq_n_f32(-INFINITY);
    const int padded = (n + STEP - 1) / STEP * STEP;
    if (n > MOST) {
        mx_scalar_router_topk(logits, n, k, expert, weight);
        return;
    }
    int at = 0;
    for (; at + 4 <= n; at += 4) {
        float32x4_t x = vld1q_f32(logits + at);
        vst1q_f32(v + at, vbslq_f32(vceqq_f32(x, x), x, lowest));
    }
    for (; at < n; at++) v[at] = isnan(logits[at]) ? -INFINITY : logits[at];
    for (; at < padded; at++) v[at] = -INFINITY;
    for (int i = 0; i < padded; i++) index[i] = i < n ? (uint32_t)i : UINT32_MAX;
    for (int j = 0; j < k; j++) {
        float32x4_t best[4] = {lowest, lowest, lowest, lowest};
        uint32x4_t first[4];
        for (int i = 0; i < padded; i += STEP) {
            for (int part = 0; part < 4; part++) best[part] = vmaxq_f32(best[part], vld1q_f32(v + i + 4 * part));
        }
        const float32x4_t largest =
            vdupq_n_f32(vmaxvq_f32(vmaxq_f32(vmaxq_f32(best[0], best[1]), vmaxq_f32(best[2], best[3]))));
        for (int part = 0; part < 4; part++) first[part] = vdupq_n_u32(UINT32_MAX);
        for (int i = 0; i < padded; i += STEP) {
            for (int part = 0; part < 4; part++) {
                uint32x4_t equal = vceqq_f32(vld1q_f32(v + i + 4 * part), largest);
                first[part] = vminq_u32(first[part], vornq_u32(vld1q_u32(index + i + 4 * part), equal));
            }
        }
        const uint32_t chosen = vminvq_u32(vminq_u32(vminq_u32(first[0], first[1]), vminq_u32(first[2], first[3])));
        expert[j] = (int32_t)chosen;
        v[chosen] = -INFINITY;
        index[chosen] = UINT32_MAX;
    }
    mx_router_weights(logits, k, expert, weight);
}

/* F16 saturating, BF16 to nearest even; NaN stays NaN. */
static uint16x4_t narrow4(float32x4_t v, mx_format format) {
    if (format == MX_F16) {
        v = vminq_f32(vdupq_n_f32(65504.0f), vmaxq_f32(vdupq_n_f32(-65504.0f), v));
        return vreinterpret_u16_f16(vcvt_f16_f32(v));
    }
    return vshrn_n_u32(mx_round_bf16(v), 16);
}

void mx_neon_kv_write(uint8_t *head_tile, mx_format kv, int head_dim, int slot, const float *k, const float *v) {
    int64_t size = kv == MX_F32 ? 4 : 2;
    uint8_t *to_k = head_tile + slot * size, *to_v = head_tile + (MX_TILE + slot) * head_dim * size;
    if (kv == MX_F32) {
        for (int64_t d = 0; d < head_dim; d++) memcpy(to_k + d * MX_TILE * 4, k + d, 4);
        memcpy(to_v, v, (size_t)head_dim * 4);
        return;
    }
    for (int d = 0; d < head_dim; d += 4) {
        float in[2][4] = {{0}};
        uint16_t out[2][4];
        size_t count = head_dim - d < 4 ? (size_t)(head_dim - d) : 4;
        memcpy(in[0], k + d, count * sizeof(float));
        memcpy(in[1], v + d, count * sizeof(float));
        vst1_u16(out[0], narrow4(vld1q_f32(in[0]), kv));
        vst1_u16(out[1], narrow4(vld1q_f32(in[1]), kv));
        memcpy(to_v + 2 * d, out[1], count * sizeof(uint16_t));
        for (size_t i = 0; i < count; i++) memcpy(to_k + ((size_t)d + i) * MX_TILE * 2, &out[0][i], 2);
    }
}
