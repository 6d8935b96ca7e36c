#include <stdint.h>
#include <time.h>

#include "base/cpu.h"
#include "peak.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { SUMS = 12, ROUNDS = 200000 };

double mx_thread_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

const char *mx_peak_name(mx_peak_loop loop) {
    static const char *const names[] = {"FMA 256 bit fp32", "FMA 512 bit fp32", "DPBF16 512 bit"};
    return names[loop];
}

_Bool mx_peak_here(mx_peak_loop loop) {
    static const unsigned needs[] = {MX_CPU_AVX2, MX_CPU_AVX512, MX_CPU_AVX512_BF16};
    return (mx_cpu_detect() & needs[loop]) != 0;
}

#if defined(__x86_64__)
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)

/* The empty asm keeps the sums in registers and the loop as it stands. */
__attribute__((target("avx2,fma"))) static void fma256(void) {
    __m256 x = _mm256_set1_ps(0.5f);
#define START(i) __m256 a##i = _mm256_set1_ps(i);
#define ADD(i)   a##i = _mm256_fmadd_ps(a##i, x, x);
#define KEEP(i)  __asm__ volatile("" : "+x"(a##i));
    EACH(START)
    for (int round = 0; round < ROUNDS; round++) {
        EACH(ADD)
        EACH(KEEP)
    }
#undef START
#undef ADD
#undef KEEP
}

__attribute__((target("avx512f"))) static void fma512(void) {
    __m512 x = _mm512_set1_ps(0.5f);
#define START(i) __m512 a##i = _mm512_set1_ps(i);
#define ADD(i)   a##i = _mm512_fmadd_ps(a##i, x, x);
#define KEEP(i)  __asm__ volatile("" : "+v"(a##i));
    EACH(START)
    for (int round = 0; round < ROUNDS; round++) {
        EACH(ADD)
        EACH(KEEP)
    }
#undef ADD
}

__attribute__((target("avx512f,avx512bf16"))) static void dpbf16(void) {
    __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f));
#define ADD(i) a##i = _mm512_dpbf16_ps(a##i, x, x);
    EACH(START)
    for (int round = 0; round < ROUNDS; round++) {
        EACH(ADD)
        EACH(KEEP)
    }
#undef START
#undef ADD
#undef KEEP
}
#endif

double mx_peak_run(mx_peak_loop loop, int repetitions) {
    double best = 0;
#if defined(__x86_64__)
    static void (*const run[])(void) = {fma256, fma512, dpbf16};
    static const int multiplications[] = {8, 16, 32};
    for (int i = 0; i < repetitions && mx_peak_here(loop); i++) {
        double start = mx_thread_seconds();
        run[loop]();
        double rate = 2.0 * multiplications[loop] * SUMS * ROUNDS / (mx_thread_seconds() - start);
        if (rate > best) best = rate;
    }
#else
    (void)loop;
    (void)repetitions;
#endif
    return best;
}
