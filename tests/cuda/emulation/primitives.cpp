/* The warp primitives that are more than a move, and conversions. */
#include "emulation.h"

uint32_t mx_ballot(bool v) {
    struct Lane {
        bool in;
        uint32_t out;
    } mine = {v, 0};
    mx_emulated_warp("mx_ballot", &mine, [](void *const lanes[32]) {
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

/* The products of two 11-bit numbers are exact in double, their sums nearly so. */
template <bool F16> inline __attribute__((always_inline)) void multiply(void *const lanes[32]) {
    double a[16][16];
    Row b[16];
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

template <bool F16> void (*choose())(void *const lanes[32]) {
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

void mx_mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    mma<false>("mx_mma_bf16", c, a, b);
}

void mx_mma_f16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    mma<true>("mx_mma_f16", c, a, b);
}
