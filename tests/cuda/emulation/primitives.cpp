/* The warp primitives that are more than a move, and conversions. */
#include "emulation.h"

#include <stdio.h>
#include <stdlib.h>

uint32_t mx_emulated_ballot(const char *what, bool v) {
    struct Lane {
        bool in;
        uint32_t out;
    } mine = {v, 0};
    mx_emulated_warp(what, &mine, [](void *const lanes[32]) {
        uint32_t bits = 0;
        for (int i = 0; i < 32; i++) bits |= (uint32_t)((Lane *)lanes[i])->in << i;
        for (int i = 0; i < 32; i++) ((Lane *)lanes[i])->out = bits;
    });
    return mine.out;
}

uint32_t mx_emulated_to_f16(float v) {
    if (v != v) return 0x7fffu;
    v = fminf(fmaxf(v, -65504.0f), 65504.0f);
    const uint32_t bits = mx_bits(v), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size < 0x38800000u) { /* below 2^-14: multiples of 2^-24, the sum's last bit */
        const float sum = mx_float(size) + 0.5f;
        return sign | (mx_bits(sum) - 0x3f000000u);
    }
    return sign | ((size - 0x38000000u + 0xfffu + (size >> 13 & 1)) >> 13);
}

float mx_emulated_from_f16(uint32_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, size = half & 0x7fffu;
    if (size < 0x0400u) return mx_float(sign | mx_bits((float)size * 0x1p-24f));
    if (size >= 0x7c00u) return mx_float(sign | 0x7f800000u | (size & 0x3ffu) << 13);
    return mx_float(sign | ((size << 13) + 0x38000000u));
}

/* ---- tensor core ---- */
namespace {

struct Mma {
    float *c;
    const uint32_t *a, *b;
};
typedef double Row __attribute__((vector_size(64))); /* eight columns */

template <bool F16> inline __attribute__((always_inline)) double half_of(uint32_t word, int high) {
    const uint32_t v = high ? word >> 16 : word & 0xffff;
    return F16 ? (double)mx_emulated_from_f16(v) : (double)mx_float(v << 16);
}

/* The fragments of all lanes as matrices. */
template <bool F16>
inline __attribute__((always_inline)) void gather(void *const lanes[32], double a[16][16], Row b[16]) {
    for (int lane = 0; lane < 32; lane++) {
        const Mma *m = (const Mma *)lanes[lane];
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++) {
            for (int j = 0; j < 2; j++) a[g + i % 2 * 8][2 * t + j + i / 2 * 8] = half_of<F16>(m->a[i], j);
        }
        for (int i = 0; i < 2; i++) {
            for (int j = 0; j < 2; j++) b[2 * t + j + i * 8][g] = half_of<F16>(m->b[i], j);
        }
    }
}

/* The products of two 11-bit numbers are exact in double, their sums nearly so. */
template <bool F16> inline __attribute__((always_inline)) void multiply(void *const lanes[32]) {
    double a[16][16];
    Row b[16];
    gather<F16>(lanes, a, b);
    for (int row = 0; row < 16; row++) {
        Row sum = {};
        for (int k = 0; k < 16; k++) sum += a[row][k] * b[k];
        for (int t = 0; t < 4; t++) {
            float *c = ((const Mma *)lanes[row % 8 * 4 + t])->c + row / 8 * 2;
            c[0] = (float)(sum[2 * t] + (double)c[0]);
            c[1] = (float)(sum[2 * t + 1] + (double)c[1]);
        }
    }
}

template <bool F16> void multiply_plain(void *const lanes[32]) {
    multiply<F16>(lanes);
}
#if defined(__x86_64__)
template <bool F16> __attribute__((target("avx2"))) void multiply_avx2(void *const lanes[32]) {
    multiply<F16>(lanes);
}
template <bool F16> __attribute__((target("avx512f"))) void multiply_avx512(void *const lanes[32]) {
    multiply<F16>(lanes);
}
#endif

/* MX_EMULATION_MMA=truncate. Of a number, 2^exponent is the weight of the bit before the point of its significand,
 * which subnormal ones begin with 0. */
inline int exponent_of(double v, int least) {
    uint64_t bits;
    memcpy(&bits, &v, 8);
    const int exponent = (int)(bits >> 52 & 0x7ff) - 1023;
    return exponent > least ? exponent : least;
}
inline double two_to(int exponent) { /* of normal numbers */
    const uint64_t bits = (uint64_t)(exponent + 1023) << 52;
    double v;
    memcpy(&v, &bits, 8);
    return v;
}
float toward_zero(double v) {
    const float f = (float)v;
    if (fabs((double)f) <= fabs(v)) return f;
    return fabs(v) < 0x1p128 ? nextafterf(f, 0) : f;
}

constexpr int PRODUCTS = 8, EXTRA_BITS = 1; /* of an A100 */

/* c plus PRODUCTS products. */
template <bool F16> float truncated_sum(float c, const double *a, const Row *b, int column) {
    constexpr int LEAST = F16 ? -14 : -126, NONE = -100000;
    int most = c != 0 ? exponent_of((double)c, -126) : NONE;
    double plain = 0;
    for (int k = 0; k < PRODUCTS; k++) {
        const double product = a[k] * b[k][column];
        plain += product;
        if (product == 0) continue;
        const int exponent = exponent_of(a[k], LEAST) + exponent_of(b[k][column], LEAST);
        if (exponent > most) most = exponent;
    }
    if (most == NONE || !isfinite(plain) || !isfinite(c)) return (float)(plain + (double)c);
    const double units = two_to(23 + EXTRA_BITS - most); /* in 1 */
    int64_t sum = (int64_t)((double)c * units);
    for (int k = 0; k < PRODUCTS; k++) sum += (int64_t)(a[k] * b[k][column] * units);
    return toward_zero((double)sum / units);
}

template <bool F16> void multiply_truncated(void *const lanes[32]) {
    double a[16][16];
    Row b[16];
    gather<F16>(lanes, a, b);
    for (int lane = 0; lane < 32; lane++) {
        float *c = ((const Mma *)lanes[lane])->c;
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            for (int k = 0; k < 16; k += PRODUCTS) c[i] = truncated_sum<F16>(c[i], &a[row][k], &b[k], column);
        }
    }
}

bool truncates() {
    const char *text = getenv("MX_EMULATION_MMA");
    if (!text || !strcmp(text, "exact")) return false;
    if (!strcmp(text, "truncate")) return true;
    fprintf(stderr, "mxrun emulation: MX_EMULATION_MMA is \"%s\", not exact or truncate\n", text);
    abort();
}

template <bool F16> void (*choose())(void *const lanes[32]) {
    if (truncates()) return multiply_truncated<F16>;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return multiply_avx512<F16>;
    if (__builtin_cpu_supports("avx2")) return multiply_avx2<F16>;
#endif
    return multiply_plain<F16>;
}

template <bool F16> void mma(const char *what, float c[4], const uint32_t a[4], const uint32_t b[2]) {
    static void (*const work)(void *const lanes[32]) = choose<F16>();
    Mma mine = {c, a, b};
    mx_emulated_warp(what, &mine, work);
}

} // namespace

void mx_emulated_mma_bf16(const char *what, float c[4], const uint32_t a[4], const uint32_t b[2]) {
    mma<false>(what, c, a, b);
}

void mx_emulated_mma_f16(const char *what, float c[4], const uint32_t a[4], const uint32_t b[2]) {
    mma<true>(what, c, a, b);
}
