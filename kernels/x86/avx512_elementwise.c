#include <math.h>
#include <string.h>

#include "kernels/scalar/scalar.h"
#include "kernels/x86/avx512.h"

void mx_avx512_widen(float *out, const uint8_t *in, mx_format format, int64_t n) {
    if (format == MX_Q8_0) {
        for (int64_t i = 0; i < n; i += 16) {
            const uint8_t *block = in + mx_columns_bytes(MX_Q8_0, i);
            _mm512_storeu_ps(out + i, _mm512_mul_ps(mx_q8_0_scale(block), mx_load16_int8(block + 2 + i % 32)));
        }
        return;
    }
    int64_t size = format == MX_F32 ? 4 : 2;
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 mask = mx_first_lanes(n - i);
        _mm512_mask_storeu_ps(out + i, mask, mx_load16_masked(in + i * size, format, mask));
    }
}

void mx_avx512_add(float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 mask = mx_first_lanes(n - i);
        __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y + i), _mm512_maskz_loadu_ps(mask, x + i));
        _mm512_mask_storeu_ps(y + i, mask, sum);
    }
}

/* Squares are summed in double: fp32 would overflow on residuals that the model can hold. */
void mx_avx512_rmsnorm(float *out, const float *x, const float *gain, int64_t n, float eps) {
    __m512d low = _mm512_setzero_pd(), high = low;
    for (int64_t i = 0; i < n; i += 16) {
        __m512 v = _mm512_maskz_loadu_ps(mx_first_lanes(n - i), x + i);
        __m512d a = _mm512_cvtps_pd(_mm512_castps512_ps256(v)), b = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
        low = _mm512_fmadd_pd(a, a, low);
        high = _mm512_fmadd_pd(b, b, high);
    }
    double sum = _mm512_reduce_add_pd(_mm512_add_pd(low, high));
    __m512 factor = _mm512_set1_ps((float)(1.0 / sqrt(sum / (double)n + eps)));
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 mask = mx_first_lanes(n - i);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), factor);
        _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, gain + i)));
    }
}

void mx_avx512_rope(float *x, const float *cos, const float *sin, int64_t heads, int head_dim) {
    int half = head_dim / 2;
    for (int64_t h = 0; h < heads; h++, x += head_dim) {
        for (int d = 0; d < half; d += 16) {
            __mmask16 mask = mx_first_lanes(half - d);
            __m512 a = _mm512_maskz_loadu_ps(mask, x + d), b = _mm512_maskz_loadu_ps(mask, x + half + d);
            __m512 c = _mm512_maskz_loadu_ps(mask, cos + d), s = _mm512_maskz_loadu_ps(mask, sin + d);
            _mm512_mask_storeu_ps(x + d, mask, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
            _mm512_mask_storeu_ps(x + half + d, mask, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
        }
    }
}

double mx_avx512_exp_sum(float *p, const float *x, int64_t n, float shift, float scale) {
    __m512 vshift = _mm512_set1_ps(shift), vscale = _mm512_set1_ps(scale);
    __m512d low = _mm512_setzero_pd(), high = low;
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 mask = mx_first_lanes(n - i);
        __m512 v = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + i), vshift), vscale);
        v = _mm512_maskz_mov_ps(mask, mx_exp512(v));
        _mm512_mask_storeu_ps(p + i, mask, v);
        low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(v)));
        high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
    }
    return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
}

/* Two passes: the largest value, then its first place. NaN is never the largest. */
int64_t mx_avx512_argmax(const float *x, int64_t n) {
    __m512 best = _mm512_set1_ps(-INFINITY);
    for (int64_t i = 0; i < n; i += 16) { /* max_ps(v, best) is best where v is NaN */
        best = _mm512_max_ps(_mm512_mask_loadu_ps(best, mx_first_lanes(n - i), x + i), best);
    }
    __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(best));
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 mask = mx_first_lanes(n - i);
        unsigned found = _mm512_mask_cmp_ps_mask(mask, _mm512_maskz_loadu_ps(mask, x + i), largest, _CMP_EQ_OQ);
        if (found) return i + __builtin_ctz(found);
    }
    return 0;
}

/* k times the largest of those that are left, then its first place. What has been chosen becomes -infinity and loses
 * its bit in `left`, which tells it from logits that are; NaN ranks with these. */
void mx_avx512_router_topk(const float *logits, int n, int k, int32_t *expert, float *weight) {
    enum { WORDS = 4, WORD = 64 }; /* vectors of 16, four to a word of bits */
    __m512 v[WORDS * 4];
    uint64_t left[WORDS];
    const __m512 lowest = _mm512_set1_ps(-INFINITY);
    const int words = (n + WORD - 1) / WORD;
    if (words > WORDS) {
        mx_scalar_router_topk(logits, n, k, expert, weight);
        return;
    }
    for (int i = 0; i < 4 * words; i++) { /* max_ps(v, lowest) is lowest where v is NaN */
        const __mmask16 there = 16 * i < n ? mx_first_lanes(n - 16 * i) : 0;
        v[i] = _mm512_max_ps(_mm512_mask_loadu_ps(lowest, there, logits + (there ? 16 * i : 0)), lowest);
    }
    for (int w = 0; w < words; w++) left[w] = n - w * WORD >= WORD ? ~0ull : (1ull << (n - w * WORD)) - 1;
    for (int j = 0; j < k; j++) {
        __m512 best = lowest;
        for (int w = 0; w < words; w++) {
            best = _mm512_max_ps(
                best, _mm512_max_ps(_mm512_max_ps(v[4 * w], v[4 * w + 1]), _mm512_max_ps(v[4 * w + 2], v[4 * w + 3])));
        }
        best = _mm512_max_ps(best, _mm512_shuffle_f32x4(best, best, 0x4e));
        best = _mm512_max_ps(best, _mm512_shuffle_f32x4(best, best, 0xb1));
        best = _mm512_max_ps(best, _mm512_permute_ps(best, 0x4e));
        best = _mm512_max_ps(best, _mm512_permute_ps(best, 0xb1));
        for (int w = 0; w < words; w++) {
            uint64_t found = 0;
            for (int i = 0; i < 4; i++)
                found |= (uint64_t)_mm512_cmp_ps_mask(v[4 * w + i], best, _CMP_EQ_OQ) << (16 * i);
            found &= left[w];
            if (!found) continue;
            const uint64_t first = found & -found;
            left[w] &= ~first;
            expert[j] = w * WORD + __builtin_ctzll(found);
            for (int i = 0; i < 4; i++)
                v[4 * w + i] = _mm512_mask_mov_ps(v[4 * w + i], (__mmask16)(first >> (16 * i)), lowest);
            break;
        }
    }
    mx_router_weights(logits, k, expert, weight);
}

/* F16 saturating (min and max return their second operand where it is NaN), BF16 to nearest even. */
static __m256i narrow(__m512 v, mx_format format) {
    if (format == MX_F16) {
        v = _mm512_min_ps(_mm512_set1_ps(65504.0f), _mm512_max_ps(_mm512_set1_ps(-65504.0f), v));
        return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    __m512i bits = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x00400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

void mx_avx512_kv_write(uint8_t *head_tile, mx_format kv, int head_dim, int slot, const float *k, const float *v) {
    int64_t size = kv == MX_F32 ? 4 : 2;
    uint8_t *to_k = head_tile + slot * size, *to_v = head_tile + (MX_TILE + slot) * head_dim * size;
    if (kv == MX_F32) {
        for (int64_t d = 0; d < head_dim; d++) memcpy(to_k + d * MX_TILE * 4, k + d, 4);
        memcpy(to_v, v, (size_t)head_dim * 4);
        return;
    }
    for (int d = 0; d < head_dim; d += 16) {
        uint16_t column[16];
        int count = head_dim - d < 16 ? head_dim - d : 16;
        __mmask16 mask = mx_first_lanes(count);
        _mm256_mask_storeu_epi16(to_v + 2 * d, mask, narrow(_mm512_maskz_loadu_ps(mask, v + d), kv));
        _mm256_storeu_si256((__m256i *)column, narrow(_mm512_maskz_loadu_ps(mask, k + d), kv));
        for (int i = 0; i < count; i++) memcpy(to_k + (int64_t)(d + i) * MX_TILE * 2, &column[i], 2);
    }
}
