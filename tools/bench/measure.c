#include "measure.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { STEP = 256, MAX_STREAMS = 16 };

struct reading {
    const char *buf;
    size_t share; /* bytes of one thread's part */
    int streams, prefetch;
    uint64_t sink; /* keeps the loads alive */
    uint64_t (*sum)(const char *p, size_t part, int streams, int prefetch);
};

/* The xor of `streams` parts of `part` bytes each, read side by side. */
static uint64_t sum_plain(const char *p, size_t part, int streams, int prefetch) {
    uint64_t sum = 0;
    for (size_t at = 0; at < part; at += STEP)
        for (int s = 0; s < streams; s++) {
            const char *q = p + (size_t)s * part + at;
            for (int i = 0; prefetch && i < STEP; i += 64) __builtin_prefetch(q + prefetch + i);
            for (int i = 0; i < STEP; i += 8) {
                uint64_t v;
                memcpy(&v, q + i, 8);
                sum ^= v;
            }
        }
    return sum;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static uint64_t sum_avx2(const char *p, size_t part, int streams, int prefetch) {
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (size_t at = 0; at < part; at += STEP)
        for (int s = 0; s < streams; s++) {
            const char *q = p + (size_t)s * part + at;
            for (int i = 0; prefetch && i < STEP; i += 64) _mm_prefetch(q + prefetch + i, _MM_HINT_T0);
            for (int i = 0; i < STEP; i += 128) {
                a = _mm256_xor_si256(a, _mm256_loadu_si256((const __m256i *)(q + i)));
                b = _mm256_xor_si256(b, _mm256_loadu_si256((const __m256i *)(q + i + 32)));
                c = _mm256_xor_si256(c, _mm256_loadu_si256((const __m256i *)(q + i + 64)));
                d = _mm256_xor_si256(d, _mm256_loadu_si256((const __m256i *)(q + i + 96)));
            }
        }
    a = _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d));
    return (uint64_t)_mm256_extract_epi64(a, 0) ^ (uint64_t)_mm256_extract_epi64(a, 1) ^
           (uint64_t)_mm256_extract_epi64(a, 2) ^ (uint64_t)_mm256_extract_epi64(a, 3);
}

__attribute__((target("avx512f"))) static uint64_t sum_avx512(const char *p, size_t part, int streams, int prefetch) {
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
    for (size_t at = 0; at < part; at += STEP)
        for (int s = 0; s < streams; s++) {
            const char *q = p + (size_t)s * part + at;
            for (int i = 0; prefetch && i < STEP; i += 64) _mm_prefetch(q + prefetch + i, _MM_HINT_T0);
            a = _mm512_xor_si512(a, _mm512_loadu_si512(q));
            b = _mm512_xor_si512(b, _mm512_loadu_si512(q + 64));
            c = _mm512_xor_si512(c, _mm512_loadu_si512(q + 128));
            d = _mm512_xor_si512(d, _mm512_loadu_si512(q + 192));
        }
    return (uint64_t)_mm512_reduce_add_epi64(_mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d)));
}
#endif

static void read_shares(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    struct reading *r = arg;
    for (int64_t i = begin; i < end; i++) {
        uint64_t sum = r->sum(r->buf + (size_t)i * r->share, r->share / (size_t)r->streams, r->streams, r->prefetch);
        __atomic_fetch_xor(&r->sink, sum, __ATOMIC_RELAXED);
    }
}

double mx_measure_read(mx_pool *pool, const void *buf, size_t size, int streams, int prefetch) {
    if (streams < 1 || streams > MAX_STREAMS) return 0;
    size_t threads = (size_t)mx_pool_threads(pool), unit = (size_t)streams * STEP;
    struct reading r = {
        .buf = buf, .share = size / threads / unit * unit, .streams = streams, .prefetch = prefetch, .sum = sum_plain};
#if defined(__x86_64__)
    unsigned cpu = mx_cpu_detect();
    if (cpu & MX_CPU_AVX2) r.sum = sum_avx2;
    if (cpu & MX_CPU_AVX512) r.sum = sum_avx512;
#endif
    double start = mx_seconds();
    mx_parallel_for(pool, (int64_t)threads, 1, read_shares, &r);
    return (double)(r.share * threads) / (mx_seconds() - start);
}

double mx_measure_read_best(mx_pool *pool, const void *buf, size_t size) {
    static const int way[][2] = {{4, 0}, {8, 0}, {4, 2048}, {8, 2048}};
    double best = 0;
    for (size_t i = 0; i < sizeof way / sizeof *way; i++) {
        double rate = mx_measure_read(pool, buf, size, way[i][0], way[i][1]);
        if (rate > best) best = rate;
    }
    return best;
}

int mx_compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double mx_median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, mx_compare_doubles);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}
