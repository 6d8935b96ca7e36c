/* Speed of the matrix products on gpt-oss shapes, beside the machine's arithmetic peak and read bandwidth of the same
 * run.
 *
 *     matmul_bench [TIER|best [THREADS [SECONDS [PRECISION]]]]
 *
 * PRECISION: 0 fp32, 1 bf16x2, 2 bf16, 3 int8. Where bf16x2 multiplies twice, its peak is half of the instruction's.
 * Each call takes the next of many matrices, so that weights come from memory and not from a cache. GFLOP/s is given by
 * the clock on the wall and per second of processor time (other work on the machine lowers only the first); GB/s
 * counts weight bytes by the clock on the wall. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/cpu.h"
#include "bench/measure.h"
#include "bench/peak.h"
#include "kernels/kernels.h"

enum { MAX_THREADS = 256, MAX_ROWS = 512, WEIGHT_BYTES = 400 << 20, GRAIN = 96, WAIT = 3 };

typedef struct shape {
    const char *name;
    mx_format format;
    int64_t n, cols;
} shape;

typedef struct bench {
    const mx_kernels *kernels;
    mx_pool *pool;
    mx_arena arena;
    uint8_t *weights;
    float *x, *y, *scratch;
    uint8_t *packed;
    mx_precision precision;
    const mx_product *product; /* of the shape measured */
    mx_matmul call;
    double cpu[MAX_THREADS]; /* seconds of each thread in this shape */
} bench;

static void multiply(void *arg, int64_t begin, int64_t end, int thread) {
    bench *b = arg;
    double start = mx_thread_seconds();
    mx_matmul m = b->call;
    m.n0 = begin;
    m.n1 = end;
    m.scratch = b->scratch + thread * b->kernels->matmul_scratch;
    b->product->matmul(&m);
    b->cpu[thread] += mx_thread_seconds() - start;
}

static mx_matrix matrix(const bench *b, const shape *s, int64_t index) {
    int64_t row = mx_columns_bytes(s->format, s->cols), scales = s->format == MX_MXFP4 ? s->cols / 32 : 0;
    int64_t bytes = s->n * (row + scales);
    uint8_t *at = b->weights + index % (WEIGHT_BYTES / bytes) * bytes;
    return (mx_matrix){.format = s->format,
                       .rows = s->n,
                       .cols = s->cols,
                       .data = at,
                       .row_stride = row,
                       .scales = scales ? at + s->n * row : NULL,
                       .scale_stride = scales};
}

static void measure(bench *b, const shape *s, int64_t rows, double seconds, double peak, double bandwidth) {
    mx_matrix w = matrix(b, s, 0);
    b->product = b->kernels->product[s->format][b->precision];
    if (!b->product) return;
    b->product->pack(b->packed, b->x, rows, s->cols);
    double bytes = (double)(s->n * (w.row_stride + w.scale_stride)), flops = 2.0 * (double)(s->n * s->cols * rows);
    memset(b->cpu, 0, sizeof b->cpu);
    double start = mx_seconds(), wall = 0, cpu = 0;
    int64_t calls = 0;
    for (; calls < WAIT || wall < seconds; calls++) {
        b->call = (mx_matmul){.w = matrix(b, s, calls),
                              .x = b->packed,
                              .x_stride = b->product->packed_bytes(s->cols),
                              .rows = rows,
                              .n1 = s->n,
                              .y = b->y,
                              .y_stride = s->n};
        mx_parallel_for(b->pool, s->n, GRAIN, multiply, b);
        wall = mx_seconds() - start;
    }
    for (int i = 0; i < MAX_THREADS; i++) cpu += b->cpu[i];
    double by_wall = flops * (double)calls / wall, by_cpu = flops * (double)calls / cpu,
           rate = bytes * (double)calls / wall;
    printf(
        "%-28s rows %3lld  %8.1f GFLOP/s (%8.1f per CPU second and thread, %5.1f %% of peak)  %6.2f GB/s (%5.1f %%)\n",
        s->name, (long long)rows, by_wall / 1e9, by_cpu / 1e9, 100 * by_cpu / peak, rate / 1e9, 100 * rate / bandwidth);
    fflush(stdout);
}

/* Everything from one arena; weights are any bytes whose BF16, F16 and E8M0 values are finite. */
static mx_status prepare(bench *b, const char *tier, int threads, mx_error *error) {
    mx_status status = mx_kernels_get(tier, &b->kernels, error);
    if (!status) status = mx_pool_create(threads, &b->pool, error);
    if (status) return status;
    size_t scratch = (size_t)mx_pool_threads(b->pool) * (size_t)b->kernels->matmul_scratch * sizeof(float);
    size_t x = MAX_ROWS * 4096 * sizeof(float), y = MAX_ROWS * 8192 * sizeof(float);
    if (mx_pool_threads(b->pool) > MAX_THREADS)
        return mx_fail(error, MX_UNSUPPORTED, "at most %d threads", MAX_THREADS);
    status = mx_arena_create(WEIGHT_BYTES + 2 * x + y + scratch + 4096, &b->arena, error);
    if (status) return status;
    b->weights = mx_arena_take(&b->arena, WEIGHT_BYTES);
    b->x = mx_arena_take(&b->arena, x);
    b->packed = mx_arena_take(&b->arena, x);
    b->y = mx_arena_take(&b->arena, y);
    b->scratch = mx_arena_take(&b->arena, scratch);
    unsigned seed = 1;
    for (int64_t i = 0; i < WEIGHT_BYTES; i++) {
        seed = seed * 1664525u + 1013904223u;
        b->weights[i] = (uint8_t)(seed >> 24 & 0xbf);
    }
    for (int64_t i = 0; i < MAX_ROWS * 4096; i++) b->x[i] = (float)(i % 251) * 0.01f - 1.25f;
    return MX_OK;
}

/* The instruction that the tier multiplies with at this precision. */
static mx_peak_loop peak_loop(const bench *b) {
    if (!strcmp(b->kernels->name, "avx512bf16") && b->precision != MX_X_FP32) return MX_PEAK_DPBF16;
    return !strcmp(b->kernels->name, "avx2") ? MX_PEAK_FMA256 : mx_peak_fp32(); /* also of the scalar tier */
}

int main(int argc, char **argv) {
    static const shape shapes[] = {
        {"MXFP4 expert 2880 x 2880", MX_MXFP4, 2880, 2880}, {"MXFP4 gate_up 5760 x 2880", MX_MXFP4, 5760, 2880},
        {"BF16 q_proj 4096 x 2880", MX_BF16, 4096, 2880},   {"BF16 o_proj 2880 x 4096", MX_BF16, 2880, 4096},
        {"Q8_0 q_proj 4096 x 2880", MX_Q8_0, 4096, 2880},   {"Q8_0 o_proj 2880 x 4096", MX_Q8_0, 2880, 4096},
    };
    static const int64_t rows[] = {1, 2, 4, 8, 16, 32, 64, 128, 512};
    static bench b;
    mx_error error;
    double seconds = argc > 3 ? atof(argv[3]) : 0.5;
    b.precision = argc > 4 ? (mx_precision)atoi(argv[4]) : MX_X_FP32;
    if (b.precision >= MX_PRECISIONS ||
        prepare(&b, argc > 1 && strcmp(argv[1], "best") ? argv[1] : NULL, argc > 2 ? atoi(argv[2]) : 0, &error)) {
        fprintf(stderr, "matmul_bench: %s\nusage: matmul_bench [TIER|best [THREADS [SECONDS [PRECISION]]]]\n",
                error.text);
        return 1;
    }
    mx_peak_loop loop = peak_loop(&b);
    printf("tier %s, %d threads\n", b.kernels->name, mx_pool_threads(b.pool));
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const int times = loop == MX_PEAK_DPBF16 && b.precision == MX_X_BF16X2 ? 2 : 1;
        double peak = mx_peak_run(loop, 20) / times, bandwidth = mx_measure_read_best(b.pool, b.weights, WEIGHT_BYTES);
        printf("%s%s: %.1f GFLOP/s per thread; reading: %.2f GB/s\n", mx_peak_name(loop), times > 1 ? " / 2" : "",
               peak / 1e9, bandwidth / 1e9);
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
            measure(&b, &shapes[i], rows[r], seconds, peak, bandwidth);
    }
    mx_arena_destroy(&b.arena);
    mx_pool_destroy(b.pool);
    return 0;
}
