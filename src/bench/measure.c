#include "bench/measure.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { STEP = 256, MAX_STREAMS = 16 };

const mx_read_way mx_read_ways[MX_READ_WAYS] = {
    {1, 0, 256, MX_FETCH_NONE},    {2, 0, 256, MX_FETCH_NONE},    {4, 0, 256, MX_FETCH_NONE},
    {8, 0, 256, MX_FETCH_NONE},    {16, 0, 256, MX_FETCH_NONE},   {1, 2048, 256, MX_FETCH_L1},
    {4, 2048, 256, MX_FETCH_L1},   {8, 1024, 256, MX_FETCH_L1},   {8, 2048, 256, MX_FETCH_L1},
    {4, 2048, 256, MX_FETCH_ONCE}, {8, 2048, 256, MX_FETCH_ONCE}, {4, 0, 4096, MX_FETCH_NONE},
    {8, 0, 4096, MX_FETCH_NONE},   {16, 0, 1024, MX_FETCH_NONE},  {8, 4096, 4096, MX_FETCH_L1},
    {4, 4096, 256, MX_FETCH_L2},   {8, 4096, 256, MX_FETCH_L2},
};

void mx_read_way_name(char out[60], const mx_read_way *way) {
    const int n = snprintf(out, 60, "%d stream%s of %d B", way->streams, way->streams > 1 ? "s" : "", way->chunk);
    if (way->fetch == MX_FETCH_L1) snprintf(out + n, 60 - (size_t)n, ", prefetch %d", way->distance);
    if (way->fetch == MX_FETCH_L2) snprintf(out + n, 60 - (size_t)n, ", prefetch %d to L2", way->distance);
    if (way->fetch == MX_FETCH_ONCE) snprintf(out + n, 60 - (size_t)n, ", prefetch %d once", way->distance);
}

/* The xor of `way->streams` parts of `part` bytes each, read side by side. */
typedef uint64_t sum_fn(const char *p, size_t part, const mx_read_way *way);

struct reading {
    const char *buf;
    size_t share; /* bytes of one thread's part */
    const mx_read_way *way;
    uint64_t sink; /* keeps the loads alive */
    sum_fn *sum;
};

static uint64_t sum_plain(const char *p, size_t part, const mx_read_way *way) {
    uint64_t sum = 0;
    for (size_t at = 0; at < part; at += (size_t)way->chunk)
        for (int s = 0; s < way->streams; s++) {
            const char *q = p + (size_t)s * part + at;
            for (int i = 0; i < way->chunk; i += 8) {
                uint64_t v;
                if (way->fetch && i % 64 == 0) __builtin_prefetch(q + way->distance + i);
                memcpy(&v, q + i, 8);
                sum ^= v;
            }
        }
    return sum;
}

#if defined(__x86_64__)
/* The hint must be a constant, so there is one loop for each. FETCH is a statement for the 256 bytes at q + i. */
#define AHEAD(hint)                                                                                                    \
    do {                                                                                                               \
        const char *ahead = q + i + way->distance;                                                                     \
        _mm_prefetch(ahead, hint);                                                                                     \
        _mm_prefetch(ahead + 64, hint);                                                                                \
        _mm_prefetch(ahead + 128, hint);                                                                               \
        _mm_prefetch(ahead + 192, hint);                                                                               \
    } while (0)
#define WALK(FETCH, READ)                                                                                              \
    for (size_t at = 0; at < part; at += (size_t)way->chunk)                                                           \
        for (int s = 0; s < way->streams; s++) {                                                                       \
            const char *q = p + (size_t)s * part + at;                                                                 \
            for (int i = 0; i < way->chunk; i += STEP) {                                                               \
                FETCH;                                                                                                 \
                READ;                                                                                                  \
            }                                                                                                          \
        }
#define WALK_WITH_HINT(READ)                                                                                           \
    if (way->fetch == MX_FETCH_L1) {                                                                                   \
        WALK(AHEAD(_MM_HINT_T0), READ)                                                                                 \
    } else if (way->fetch == MX_FETCH_L2) {                                                                            \
        WALK(AHEAD(_MM_HINT_T1), READ)                                                                                 \
    } else if (way->fetch == MX_FETCH_ONCE) {                                                                          \
        WALK(AHEAD(_MM_HINT_NTA), READ)                                                                                \
    } else {                                                                                                           \
        WALK((void)0, READ)                                                                                            \
    }

__attribute__((target("avx2"))) static uint64_t sum_avx2(const char *p, size_t part, const mx_read_way *way) {
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
#define LOAD(offset) _mm256_loadu_si256((const __m256i *)(q + i + (offset)))
#define READ                                                                                                           \
    a = _mm256_xor_si256(_mm256_xor_si256(a, LOAD(0)), LOAD(128));                                                     \
    b = _mm256_xor_si256(_mm256_xor_si256(b, LOAD(32)), LOAD(160));                                                    \
    c = _mm256_xor_si256(_mm256_xor_si256(c, LOAD(64)), LOAD(192));                                                    \
    d = _mm256_xor_si256(_mm256_xor_si256(d, LOAD(96)), LOAD(224))
    WALK_WITH_HINT(READ)
#undef READ
#undef LOAD
    a = _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d));
    return (uint64_t)_mm256_extract_epi64(a, 0) ^ (uint64_t)_mm256_extract_epi64(a, 1) ^
           (uint64_t)_mm256_extract_epi64(a, 2) ^ (uint64_t)_mm256_extract_epi64(a, 3);
}

__attribute__((target("avx512f"))) static uint64_t sum_avx512(const char *p, size_t part, const mx_read_way *way) {
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
#define READ                                                                                                           \
    a = _mm512_xor_si512(a, _mm512_loadu_si512(q + i));                                                                \
    b = _mm512_xor_si512(b, _mm512_loadu_si512(q + i + 64));                                                           \
    c = _mm512_xor_si512(c, _mm512_loadu_si512(q + i + 128));                                                          \
    d = _mm512_xor_si512(d, _mm512_loadu_si512(q + i + 192))
    WALK_WITH_HINT(READ)
#undef READ
    return (uint64_t)_mm512_reduce_add_epi64(_mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d)));
}
#endif

static void read_shares(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    struct reading *r = arg;
    for (int64_t i = begin; i < end; i++) {
        uint64_t sum = r->sum(r->buf + (size_t)i * r->share, r->share / (size_t)r->way->streams, r->way);
        __atomic_fetch_xor(&r->sink, sum, __ATOMIC_RELAXED);
    }
}

double mx_measure_read(mx_pool *pool, const void *buf, size_t size, const mx_read_way *way) {
    if (way->streams < 1 || way->streams > MAX_STREAMS || way->chunk < STEP || way->chunk % STEP) return 0;
    size_t threads = (size_t)mx_pool_threads(pool), unit = (size_t)way->streams * (size_t)way->chunk;
    struct reading r = {.buf = buf, .share = size / threads / unit * unit, .way = way, .sum = sum_plain};
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
    static const mx_read_way way[] = {{4, 0, 256, MX_FETCH_NONE},
                                      {8, 0, 256, MX_FETCH_NONE},
                                      {4, 2048, 256, MX_FETCH_L1},
                                      {8, 2048, 256, MX_FETCH_L1}};
    double best = 0;
    for (size_t i = 0; i < sizeof way / sizeof *way; i++) {
        double rate = mx_measure_read(pool, buf, size, &way[i]);
        if (rate > best) best = rate;
    }
    return best;
}

/* ---- bandwidth in short samples ---------------------------------------------------------------------------------- */

size_t mx_bandwidth_bytes(void) {
    const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    const size_t least = (size_t)1 << 30, most = (size_t)8 << 30, wanted = cache > 0 ? 4 * (size_t)cache : 0;
    return wanted < least ? least : wanted > most ? most : wanted;
}

static void touch(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    memset((char *)arg + begin, 1, (size_t)(end - begin));
}

mx_status mx_bandwidth_open(mx_pool *pool, mx_bandwidth *out, mx_error *error) {
    *out = (mx_bandwidth){0};
    mx_status status = mx_arena_create(mx_bandwidth_bytes(), &out->buffer, error);
    if (!status) mx_parallel_for(pool, (int64_t)out->buffer.size, 8 << 20, touch, out->buffer.base);
    return status;
}

void mx_bandwidth_choose(const mx_bandwidth *b, mx_pool *pool, double seconds, mx_bandwidth_ways *out) {
    enum { MOST = 9, PART = 2 }; /* half of the buffer is still larger than the caches */
    double rate[MX_READ_WAYS][MOST], median[MX_READ_WAYS];
    int passes = 0, first = 0, second = 1;
    const double end = mx_seconds() + seconds;
    for (; passes < MOST && (!passes || mx_seconds() < end); passes++)
        for (int w = 0; w < MX_READ_WAYS; w++)
            rate[w][passes] = mx_measure_read(pool, b->buffer.base, b->buffer.size / PART, &mx_read_ways[w]);
    for (int w = 0; w < MX_READ_WAYS; w++) median[w] = mx_median(rate[w], passes);
    if (median[second] > median[first]) {
        first = 1;
        second = 0;
    }
    for (int w = 2; w < MX_READ_WAYS; w++) {
        if (median[w] > median[first]) {
            second = first;
            first = w;
        } else if (median[w] > median[second]) {
            second = w;
        }
    }
    *out = (mx_bandwidth_ways){{mx_read_ways[first], mx_read_ways[second]}, median[first]};
}

/* The buffer is cut into equal slices of which each takes about half the time, so that all of it comes in turn. */
double mx_bandwidth_sample(mx_bandwidth *b, mx_bandwidth_ways *ways, mx_pool *pool, double seconds) {
    enum { LEAST = 16 << 20 }; /* waking the threads does not count beside it */
    const size_t size = b->buffer.size, aim = (size_t)(ways->rate * seconds / 2), wanted = aim > LEAST ? aim : LEAST;
    const size_t slice = wanted < size ? size / ((size + wanted - 1) / wanted) / 4096 * 4096 : size;
    double best = 0;
    for (int i = 0; i < 2; i++) {
        if (b->at + slice > size) b->at = 0;
        const double rate = mx_measure_read(pool, (const char *)b->buffer.base + b->at, slice, &ways->way[i]);
        b->at += slice;
        if (rate > best) best = rate;
    }
    return ways->rate = best;
}

void mx_bandwidth_close(mx_bandwidth *b) {
    mx_arena_destroy(&b->buffer);
}

int mx_compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double mx_median(double *values, int n) {
    if (n < 1) return 0;
    qsort(values, (size_t)n, sizeof *values, mx_compare_doubles);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}
