#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "kernels/scalar/scalar.h"
#include "kernels/x86/avx2.h"

void mx_avx2_widen(float *out, const uint8_t *in, mx_format format, int64_t n) {
    if (format == MX_F32) {
        memcpy(out, in, (size_t)n * sizeof *out);
        return;
    }
    if (format == MX_Q8_0) {
        for (int64_t i = 0; i < n; i += 8) {
            const uint8_t *block = in + mx_columns_bytes(MX_Q8_0, i);
            _mm256_storeu_ps(out + i, _mm256_mul_ps(mx_q8_0_scale(block), mx_load8_int8(block + 2 + i % 32)));
        }
        return;
    }
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 v = format == MX_F16 ? mx_load8(in + 2 * i, MX_F16) : mx_load8(in + 2 * i, MX_BF16);
        _mm256_storeu_ps(out + i, v);
    }
    for (; i < n; i++) {
        uint16_t half = mx_load_u16(in + 2 * i);
        out[i] = format == MX_F16 ? mx_f16_to_f32(half) : mx_bf16_to_f32(half);
    }
}

/* Squares are summed in double: fp32 would overflow on residuals that the model can hold. */
void mx_avx2_rmsnorm(float *out, const float *x, const float *gain, int64_t n, float eps) {
    __m256d low = _mm256_setzero_pd(), high = low;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256d a = _mm256_cvtps_pd(_mm_loadu_ps(x + i)), b = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4));
        low = _mm256_fmadd_pd(a, a, low);
        high = _mm256_fmadd_pd(b, b, high);
    }
    double part[4], sum = 0.0;
    _mm256_storeu_pd(part, _mm256_add_pd(low, high));
    for (; i < n; i++) sum += (double)x[i] * x[i];
    sum += (part[0] + part[1]) + (part[2] + part[3]);
    float factor = (float)(1.0 / sqrt(sum / (double)n + eps));
    for (i = 0; i < n; i++) out[i] = x[i] * factor * gain[i];
}

void mx_avx2_rope(float *x, const float *cos, const float *sin, int64_t heads, int head_dim) {
    const int half = head_dim / 2;
    for (int64_t h = 0; h < heads; h++, x += head_dim) {
        int d = 0;
        for (; d + 8 <= half; d += 8) {
            __m256 a = _mm256_loadu_ps(x + d), b = _mm256_loadu_ps(x + half + d);
            __m256 c = _mm256_loadu_ps(cos + d), s = _mm256_loadu_ps(sin + d);
            _mm256_storeu_ps(x + d, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
            _mm256_storeu_ps(x + half + d, _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)));
        }
        for (; d < half; d++) {
            const float a = x[d], b = x[half + d];
            x[d] = a * cos[d] - b * sin[d];
            x[half + d] = b * cos[d] + a * sin[d];
        }
    }
}

double mx_avx2_exp_sum(float *p, const float *x, int64_t n, float shift, float scale) {
    __m256 vshift = _mm256_set1_ps(shift), vscale = _mm256_set1_ps(scale);
    __m256d low = _mm256_setzero_pd(), high = low;
    for (int64_t i = 0; i < n; i += 8) {
        float last[8] = {0};
        size_t count = n - i < 8 ? (size_t)(n - i) : 8;
        memcpy(last, x + i, count * sizeof *x);
        _mm256_storeu_ps(last, mx_exp256(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(last), vshift), vscale)));
        memcpy(p + i, last, count * sizeof *p);
        memset(last + count, 0, (8 - count) * sizeof *last);
        low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm_loadu_ps(last)));
        high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm_loadu_ps(last + 4)));
    }
    double part[4];
    _mm256_storeu_pd(part, _mm256_add_pd(low, high));
    return (part[0] + part[1]) + (part[2] + part[3]);
}

/* Two passes: the largest value, then its first place. NaN is never the largest. */
int64_t mx_avx2_argmax(const float *x, int64_t n) {
    __m256 best = _mm256_set1_ps(-INFINITY);
    float part[8], largest = -INFINITY;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) best = _mm256_max_ps(_mm256_loadu_ps(x + i), best); /* best where x is NaN */
    _mm256_storeu_ps(part, best);
    for (int k = 0; k < 8; k++) largest = part[k] > largest ? part[k] : largest;
    for (; i < n; i++) largest = x[i] > largest ? x[i] : largest;
    __m256 wanted = _mm256_set1_ps(largest);
    for (i = 0; i + 8 <= n; i += 8) {
        int found = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i), wanted, _CMP_EQ_OQ));
        if (found) return i + __builtin_ctz((unsigned)found);
    }
    for (; i < n; i++) {
        if (x[i] == largest) return i;
    }
    return 0;
}

/* k times the largest of those that are left, then its first place. What has been chosen becomes -infinity and loses
 * its bit in `left`, which tells it from logits that are; NaN ranks with these. */
void mx_avx2_router_topk(const float *logits, int n, int k, int32_t *expert, float *weight) {
    enum { MOST = 256, WORD = 64 };
    float v[MOST] __attribute__((aligned(32)));
    uint64_t left[MOST / WORD];
    const __m256 lowest = _mm256_set1_ps(-INFINITY);
    const int words = (n + WORD - 1) / WORD;
    if (n > MOST) {
        mx_scalar_router_topk(logits, n, k, expert, weight);
        return;
    }
    int at = 0;
    for (; at + 8 <= n; at += 8) _mm256_store_ps(v + at, _mm256_max_ps(_mm256_loadu_ps(logits + at), lowest));
    for (; at < n; at++) v[at] = logits[at] > -INFINITY ? logits[at] : -INFINITY;
    for (; at < words * WORD; at++) v[at] = -INFINITY;
    for (int w = 0; w < words; w++) left[w] = n - w * WORD >= WORD ? ~0ull : (1ull << (n - w * WORD)) - 1;
    for (int j = 0; j < k; j++) {
        __m256 a = lowest, b = lowest, c = lowest, d = lowest;
        for (int i = 0; i < words * WORD; i += 32) {
            a = _mm256_max_ps(a, _mm256_load_ps(v + i));
            b = _mm256_max_ps(b, _mm256_load_ps(v + i + 8));
            c = _mm256_max_ps(c, _mm256_load_ps(v + i + 16));
            d = _mm256_max_ps(d, _mm256_load_ps(v + i + 24));
        }
        a = _mm256_max_ps(_mm256_max_ps(a, b), _mm256_max_ps(c, d));
        a = _mm256_max_ps(a, _mm256_permute2f128_ps(a, a, 1));
        a = _mm256_max_ps(a, _mm256_permute_ps(a, 0x4e));
        a = _mm256_max_ps(a, _mm256_permute_ps(a, 0xb1));
        for (int w = 0; w < words; w++) {
            uint64_t found = 0;
            for (int i = 0; i < WORD; i += 8) {
                __m256 equal = _mm256_cmp_ps(a, _mm256_load_ps(v + w * WORD + i), _CMP_EQ_OQ);
                found |= (uint64_t)(unsigned)_mm256_movemask_ps(equal) << i;
            }
            found &= left[w];
            if (!found) continue;
            left[w] &= ~(found & -found);
            expert[j] = w * WORD + __builtin_ctzll(found);
            break;
        }
        v[expert[j]] = -INFINITY;
    }
    mx_router_weights(logits, k, expert, weight);
}

/* F16 saturating (min and max return their second operand where it is NaN), BF16 to nearest even. */
static void narrow8(uint16_t out[8], const float *in, mx_format format) {
    __m256 v = _mm256_loadu_ps(in);
    if (format == MX_F16) {
        v = _mm256_min_ps(_mm256_set1_ps(65504.0f), _mm256_max_ps(_mm256_set1_ps(-65504.0f), v));
        _mm_storeu_si128((__m128i *)out, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        return;
    }
    for (int i = 0; i < 8; i++) out[i] = mx_f32_to_bf16(in[i]);
}

void mx_avx2_kv_write(uint8_t *head_tile, mx_format kv, int head_dim, int slot, const float *k, const float *v) {
    int64_t size = kv == MX_F32 ? 4 : 2;
    uint8_t *to_k = head_tile + slot * size, *to_v = head_tile + (MX_TILE + slot) * head_dim * size;
    if (kv == MX_F32) {
        for (int64_t d = 0; d < head_dim; d++) memcpy(to_k + d * MX_TILE * 4, k + d, 4);
        memcpy(to_v, v, (size_t)head_dim * 4);
        return;
    }
    for (int d = 0; d < head_dim; d += 8) {
        float in[8] = {0};
        uint16_t out[8];
        size_t count = head_dim - d < 8 ? (size_t)(head_dim - d) : 8;
        memcpy(in, v + d, count * sizeof *in);
        narrow8(out, in, kv);
        memcpy(to_v + 2 * d, out, count * sizeof *out);
        memcpy(in, k + d, count * sizeof *in);
        narrow8(out, in, kv);
        for (size_t i = 0; i < count; i++) memcpy(to_k + ((size_t)d + i) * MX_TILE * 2, &out[i], 2);
    }
}
