#include "bench/peak.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "base/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { SUMS = 12, ROUNDS = 200000, TILE_ROUNDS = 20000 };

double mx_thread_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- loops: each returns how many multiplications it did --------------------------------------------------------- */

#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
/* SUMS independent sums. The empty asm keeps them in registers and the loop as it stands. */
#define LOOP(START, ADD, KEEP)                                                                                         \
    EACH(START)                                                                                                        \
    for (int round = 0; round < ROUNDS; round++) {                                                                     \
        EACH(ADD)                                                                                                      \
        EACH(KEEP)                                                                                                     \
    }

#if defined(__x86_64__)
#define KEEP(i) __asm__ volatile("" : "+v"(a##i));

__attribute__((target("avx2,fma"))) static double fma256(void) {
    __m256 x = _mm256_set1_ps(0.5f);
#define START(i)  __m256 a##i = _mm256_set1_ps(i);
#define ADD(i)    a##i = _mm256_fmadd_ps(a##i, x, x);
#define KEEP_Y(i) __asm__ volatile("" : "+x"(a##i));
    LOOP(START, ADD, KEEP_Y)
#undef START
#undef ADD
#undef KEEP_Y
    return 8.0 * SUMS * ROUNDS;
}

__attribute__((target("avx512f"))) static double fma512(void) {
    __m512 x = _mm512_set1_ps(0.5f);
#define START(i) __m512 a##i = _mm512_set1_ps(i);
#define ADD(i)   a##i = _mm512_fmadd_ps(a##i, x, x);
    LOOP(START, ADD, KEEP)
#undef ADD
    return 16.0 * SUMS * ROUNDS;
}

__attribute__((target("avx512f,avx512bf16"))) static double dpbf16(void) {
    __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f));
#define ADD(i) a##i = _mm512_dpbf16_ps(a##i, x, x);
    LOOP(START, ADD, KEEP)
#undef START
#undef ADD
    return 32.0 * SUMS * ROUNDS;
}

__attribute__((target("avx512f,avx512vnni"))) static double vnni(void) {
    __m512i x = _mm512_set1_epi8(3);
#define START(i) __m512i a##i = _mm512_set1_epi32(i);
#define ADD(i)   a##i = _mm512_dpbusd_epi32(a##i, x, x);
    LOOP(START, ADD, KEEP)
#undef START
#undef ADD
    return 64.0 * SUMS * ROUNDS;
}

/* The empty asm on x makes each product a new one. */
__attribute__((target("avx2"))) static double maddubs256(void) {
    __m256i x = _mm256_set1_epi8(3), y = x;
#define START(i) __m256i a##i = _mm256_set1_epi16(i);
#define ADD(i)                                                                                                         \
    __asm__ volatile("" : "+x"(x));                                                                                    \
    a##i = _mm256_add_epi16(a##i, _mm256_maddubs_epi16(x, y));
#define KEEP_Y(i) __asm__ volatile("" : "+x"(a##i));
    LOOP(START, ADD, KEEP_Y)
#undef START
#undef ADD
#undef KEEP_Y
    return 32.0 * SUMS * ROUNDS;
}

__attribute__((target("avx512f,avx512bw"))) static double maddubs512(void) {
    __m512i x = _mm512_set1_epi8(3), y = x;
#define START(i) __m512i a##i = _mm512_set1_epi16(i);
#define ADD(i)                                                                                                         \
    __asm__ volatile("" : "+v"(x));                                                                                    \
    a##i = _mm512_add_epi16(a##i, _mm512_maddubs_epi16(x, y));
    LOOP(START, ADD, KEEP)
#undef START
#undef ADD
    return 64.0 * SUMS * ROUNDS;
}

/* Eight tiles of 16 rows of 64 bytes: four sums, two rows of weights, two of activations. */
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

__attribute__((target("amx-tile"))) static void start_tiles(void) {
    struct tile_config config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int i = 0; i < 8; i++) {
        config.bytes[i] = 64;
        config.rows[i] = 16;
    }
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
}

__attribute__((target("amx-tile,amx-bf16"))) static double amx_bf16(void) {
    start_tiles();
    for (int round = 0; round < TILE_ROUNDS; round++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return 4.0 * 16 * 16 * 32 * TILE_ROUNDS;
}

__attribute__((target("amx-tile,amx-int8"))) static double amx_int8(void) {
    start_tiles();
    for (int round = 0; round < TILE_ROUNDS; round++) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_release();
    return 4.0 * 16 * 16 * 64 * TILE_ROUNDS;
}

static bool has_vnni(void) {
    return (mx_cpu_detect() & MX_CPU_AVX512) && __builtin_cpu_supports("avx512vnni");
}

static bool has_bf16(void) {
    return (mx_cpu_detect() & MX_CPU_AVX512) && __builtin_cpu_supports("avx512bf16");
}
#elif defined(__aarch64__)
/* Each of these keeps two sums where x86 keeps one: four units with a latency of four cycles want more than 12. */
static double fma128(void) {
    float32x4_t x = vdupq_n_f32(0.5f);
#define START(i) float32x4_t a##i = vdupq_n_f32(i), b##i = a##i;
#define ADD(i)   a##i = vfmaq_f32(x, a##i, x), b##i = vfmaq_f32(x, b##i, x);
#define KEEP(i)  __asm__ volatile("" : "+w"(a##i), "+w"(b##i));
    LOOP(START, ADD, KEEP)
#undef START
#undef ADD
    return 4.0 * 2 * SUMS * ROUNDS;
}

#if !defined(__clang__) /* which assembles only what the whole file is compiled for */
/* BF16 2.0 and int8 3. */
#define START(i) float32x4_t a##i = vdupq_n_f32(i), b##i = a##i;
static double bfmmla(void) {
    const uint16x8_t x = vdupq_n_u16(0x4000);
#define ADD(i)                                                                                                         \
    __asm__(".arch armv8.2-a+bf16\n\tbfmmla %0.4s, %2.8h, %2.8h\n\tbfmmla %1.4s, %2.8h, %2.8h"                         \
            : "+w"(a##i), "+w"(b##i)                                                                                   \
            : "w"(x));
    LOOP(START, ADD, KEEP)
#undef ADD
    return 16.0 * 2 * SUMS * ROUNDS;
}

static double sdot(void) {
    const int8x16_t x = vdupq_n_s8(3);
#define ADD(i)                                                                                                         \
    __asm__(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %2.16b, %2.16b\n\tsdot %1.4s, %2.16b, %2.16b"                      \
            : "+w"(a##i), "+w"(b##i)                                                                                   \
            : "w"(x));
    LOOP(START, ADD, KEEP)
#undef ADD
    return 16.0 * 2 * SUMS * ROUNDS;
}

static double smmla(void) {
    const int8x16_t x = vdupq_n_s8(3);
#define ADD(i)                                                                                                         \
    __asm__(".arch armv8.2-a+i8mm\n\tsmmla %0.4s, %2.16b, %2.16b\n\tsmmla %1.4s, %2.16b, %2.16b"                       \
            : "+w"(a##i), "+w"(b##i)                                                                                   \
            : "w"(x));
    LOOP(START, ADD, KEEP)
#undef ADD
    return 32.0 * 2 * SUMS * ROUNDS;
}
#undef START
#endif
#undef KEEP
#endif

/* ---- the table --------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name, *key;
    double (*run)(void); /* NULL: not on this architecture */
} loops[MX_PEAK_LOOPS] = {
#if defined(__x86_64__)
    [MX_PEAK_FMA128] = {"FMA 128", "fma128", NULL},
    [MX_PEAK_FMA256] = {"FMA 256", "fma256", fma256},
    [MX_PEAK_FMA512] = {"FMA 512", "fma512", fma512},
    [MX_PEAK_MADDUBS256] = {"maddubs 256", "maddubs256", maddubs256},
    [MX_PEAK_MADDUBS512] = {"maddubs 512", "maddubs512", maddubs512},
    [MX_PEAK_DPBF16] = {"dpbf16", "dpbf16", dpbf16},
    [MX_PEAK_VNNI] = {"VNNI", "vnni", vnni},
    [MX_PEAK_AMX_BF16] = {"AMX bf16", "amx_bf16", amx_bf16},
    [MX_PEAK_AMX_INT8] = {"AMX int8", "amx_int8", amx_int8},
#elif defined(__aarch64__)
    [MX_PEAK_FMA128] = {"FMA 128", "fma128", fma128},
#if !defined(__clang__)
    [MX_PEAK_SDOT] = {"SDOT", "sdot", sdot},
    [MX_PEAK_BFMMLA] = {"BFMMLA", "bfmmla", bfmmla},
    [MX_PEAK_SMMLA] = {"SMMLA", "smmla", smmla},
#endif
#endif
    [MX_PEAK_MMA] = {"mma.sync BF16", "mma_bf16", NULL},
};

const char *mx_peak_name(mx_peak_loop loop) {
    return loops[loop].name;
}

const char *mx_peak_key(mx_peak_loop loop) {
    return loops[loop].key;
}

_Bool mx_peak_here(mx_peak_loop loop) {
    if (!loops[loop].run) return false;
#if defined(__x86_64__)
    const unsigned cpu = mx_cpu_detect();
    if (loop == MX_PEAK_FMA256 || loop == MX_PEAK_MADDUBS256) return (cpu & MX_CPU_AVX2) != 0;
    if (loop == MX_PEAK_FMA512 || loop == MX_PEAK_MADDUBS512) return (cpu & MX_CPU_AVX512) != 0;
    if (loop == MX_PEAK_DPBF16) return has_bf16();
    if (loop == MX_PEAK_VNNI) return has_vnni();
    return (cpu & MX_CPU_AMX) != 0;
#else
    if (loop == MX_PEAK_SDOT) return (mx_cpu_detect() & MX_CPU_NEON_DOT) != 0;
    return loop == MX_PEAK_FMA128 || (mx_cpu_detect() & MX_CPU_NEON_BF16);
#endif
}

mx_peak_loop mx_peak_fp32(void) {
    for (int loop = MX_PEAK_FMA512; loop >= MX_PEAK_FMA128; loop--)
        if (mx_peak_here((mx_peak_loop)loop)) return (mx_peak_loop)loop;
    return MX_PEAK_LOOPS;
}

double mx_peak_run(mx_peak_loop loop, int repetitions) {
    double best = 0;
    const bool here = mx_peak_here(loop);
    for (int i = 0; i < repetitions && here; i++) {
        const double start = mx_thread_seconds(), multiplications = loops[loop].run();
        const double rate = 2 * multiplications / (mx_thread_seconds() - start);
        if (rate > best) best = rate;
    }
    return best;
}

enum { MAX_THREADS = 1024 };
struct pool_peak {
    mx_peak_loop loop;
    int repetitions;
    double rate[MAX_THREADS];
};

static void run_one(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    struct pool_peak *p = arg;
    for (int64_t i = begin; i < end; i++) p->rate[i] = mx_peak_run(p->loop, p->repetitions);
}

double mx_peak_pool(mx_pool *pool, mx_peak_loop loop, int repetitions) {
    struct pool_peak p = {.loop = loop, .repetitions = repetitions};
    double sum = 0;
    mx_parallel_for(pool, mx_pool_threads(pool), 1, run_one, &p);
    for (int i = 0; i < mx_pool_threads(pool); i++) sum += p.rate[i];
    return sum;
}
