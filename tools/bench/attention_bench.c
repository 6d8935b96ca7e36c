/* Attention kernels of one layer with gpt-oss's shapes (64 heads, 8 KV heads of 64), cut into tasks as the step does.
 *
 *     attention_bench [THREADS [TIER [REPETITIONS]]]
 *
 * For each KV format: decode of one row (KV bytes per second, from memory larger than the caches) and prompts
 * (multiplications and additions of the visible keys), each beside the FMA peak measured in the same round; medians. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/cpu.h"
#include "base/threads.h"
#include "bench/measure.h"
#include "bench/peak.h"
#include "kernels/kernels.h"

enum { HEADS = 64, KV_HEADS = 8, GROUP = HEADS / KV_HEADS, D = 64, RUN = 16, MAX_ROWS = 2048, MAX_DEPTH = 32768 };
enum { MEMORY = 1 << 28, MAX_REPETITIONS = 200 };

static const struct test {
    const char *name;
    int64_t position, rows, window;
} tests[] = {
    {"decode at 128", 127, 1, 0},      {"decode at 4096", 4095, 1, 0}, {"decode at 32768", 32767, 1, 0},
    {"decode, window", 32767, 1, 128}, {"prompt of 512", 0, 512, 0},   {"prompt of 2048", 0, 2048, 0},
    {"prompt, window", 0, 2048, 128},
};

struct bench {
    const mx_kernels *kernels;
    mx_pool *pool;
    mx_arena pages, scratch, parts;
    float *q, *out, sinks[HEADS];
    int64_t thread_floats, layers, pages_held;
    mx_format kv;
    int32_t *table;
};

struct job {
    const struct bench *b;
    const struct test *t;
    int64_t segments; /* 1: whole rows */
    int64_t layer;
};

static mx_attention call(const struct job *j, int64_t run, int64_t head, int thread) {
    const struct bench *b = j->b;
    int64_t bytes = 2 * D * MX_TILE * (b->kv == MX_F32 ? 4 : 2), row = run * RUN;
    int64_t size = mx_attention_part(D, GROUP);
    return (mx_attention){
        .kv = b->kv,
        .head_dim = D,
        .group = GROUP,
        .rows = j->t->rows - row < RUN ? j->t->rows - row : RUN,
        .position = j->t->position + row,
        .window = j->t->window,
        .q = b->q + (row * HEADS + head * GROUP) * D,
        .q_stride = HEADS * D,
        .sinks = b->sinks + head * GROUP,
        .scale = 0.125f,
        .pages = (const uint8_t *)b->pages.base,
        .table = b->table + j->layer * ((j->t->position + j->t->rows + MX_TILE - 1) / MX_TILE),
        .page_bytes = KV_HEADS * bytes,
        .head_offset = head * bytes,
        .out = b->out + (row * HEADS + head * GROUP) * D,
        .out_stride = HEADS * D,
        .scratch = (float *)b->scratch.base + thread * b->thread_floats,
        .parts = (float *)b->parts.base + head * j->segments * size,
        .segments = j->segments,
    };
}

static void attend(void *arg, int64_t begin, int64_t end, int thread) {
    const struct job *j = arg;
    for (int64_t i = begin; i < end; i++) {
        mx_attention a = call(j, i / j->segments / KV_HEADS, i / j->segments % KV_HEADS, thread);
        if (j->segments == 1)
            j->b->kernels->attention(&a);
        else
            j->b->kernels->attention_segment(&a, i % j->segments);
    }
}

static void join(void *arg, int64_t begin, int64_t end, int thread) {
    const struct job *j = arg;
    for (int64_t i = begin; i < end; i++) {
        mx_attention a = call(j, 0, i, thread);
        j->b->kernels->attention_join(&a);
    }
}

/* Seconds of one layer. */
static double time_layer(struct bench *b, const struct test *t) {
    int64_t tiles = (t->position + t->rows + MX_TILE - 1) / MX_TILE;
    struct job j = {b, t, 1, b->layers++};
    if (b->layers * tiles > b->pages_held) b->layers = 1;
    j.layer = b->layers - 1;
    if (t->rows == 1 && !t->window) j.segments = t->position / MX_SEGMENT + 1;
    double start = mx_seconds();
    mx_parallel_for(b->pool, (t->rows + RUN - 1) / RUN * KV_HEADS * j.segments, 1, attend, &j);
    if (j.segments > 1) mx_parallel_for(b->pool, KV_HEADS, 1, join, &j);
    return mx_seconds() - start;
}

static void peak_of_threads(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    double *rate = arg;
    for (int64_t i = begin; i < end; i++) rate[i] = mx_peak_run(mx_peak_fp32(), 2);
}

static double peak(mx_pool *pool) {
    static double rate[1024];
    double sum = 0;
    mx_parallel_for(pool, mx_pool_threads(pool), 1, peak_of_threads, rate);
    for (int i = 0; i < mx_pool_threads(pool); i++) sum += rate[i];
    return sum;
}

static double visible_keys(const struct test *t) {
    double sum = 0;
    for (int64_t i = 0; i < t->rows; i++) {
        int64_t keys = t->position + i + 1;
        sum += (double)(t->window && keys > t->window ? t->window : keys);
    }
    return sum;
}

static void run(struct bench *b, const struct test *t, int repetitions) {
    double rate[MAX_REPETITIONS], share[MAX_REPETITIONS], keys = visible_keys(t), flops = keys * HEADS * D * 4;
    double bytes = keys * KV_HEADS * D * 2 * (b->kv == MX_F32 ? 4 : 2);
    b->layers = 0;
    for (int i = 0; i < repetitions; i++) {
        double most = peak(b->pool), seconds = 0;
        int64_t layers = 0;
        for (; seconds < 4e-3; layers++) seconds += time_layer(b, t);
        rate[i] = (double)layers * (t->rows == 1 ? bytes : flops) / seconds / 1e9;
        share[i] = 100 * (double)layers * flops / seconds / most;
    }
    printf("  %-16s %8.2f %-8s %5.1f %% of the FMA peak", t->name, mx_median(rate, repetitions),
           t->rows == 1 ? "GB/s" : "GFLOP/s", mx_median(share, repetitions));
    printf("  (%.1f-%.1f)\n", share[0], share[repetitions - 1]);
}

/* One tile of random keys and values, the same in every page. */
static void fill(struct bench *b) {
    static float key[D], value[D];
    int64_t bytes = 2 * D * MX_TILE * (b->kv == MX_F32 ? 4 : 2);
    unsigned seed = 1;
    for (int slot = 0; slot < MX_TILE; slot++) {
        for (int d = 0; d < D; d++) {
            seed = seed * 1664525u + 1013904223u;
            key[d] = (float)(seed >> 8) * 0x1p-23f - 1;
            value[d] = (float)(seed >> 20) * 0x1p-11f - 1;
        }
        b->kernels->kv_write((uint8_t *)b->pages.base, b->kv, D, slot, key, value);
    }
    for (int64_t at = bytes; at + bytes <= MEMORY; at += bytes)
        memcpy(b->pages.base + at, b->pages.base, (size_t)bytes);
    b->pages_held = MEMORY / (bytes * KV_HEADS);
}

int main(int argc, char **argv) {
    static const mx_format formats[] = {MX_F16, MX_BF16, MX_F32};
    static const char *const names[] = {"F16", "BF16", "F32"};
    int repetitions = argc > 3 ? atoi(argv[3]) : 15;
    struct bench b = {0};
    mx_error error;
    if (repetitions < 1 || repetitions > MAX_REPETITIONS) {
        fprintf(stderr, "usage: attention_bench [THREADS [TIER [REPETITIONS]]]\n");
        return 2;
    }
    mx_status status = mx_pool_create(argc > 1 ? atoi(argv[1]) : 0, &b.pool, &error);
    if (!status) status = mx_kernels_get(argc > 2 ? argv[2] : NULL, &b.kernels, &error);
    if (!status) status = mx_arena_create(MEMORY, &b.pages, &error);
    if (!status) {
        b.thread_floats = (b.kernels->attention_scratch(D, GROUP) + 15) / 16 * 16;
        status = mx_arena_create((size_t)mx_pool_threads(b.pool) * (size_t)b.thread_floats * sizeof(float), &b.scratch,
                                 &error);
    }
    size_t parts = (size_t)mx_attention_part(D, GROUP) * KV_HEADS * (MAX_DEPTH / MX_SEGMENT);
    if (!status) status = mx_arena_create(parts * sizeof(float), &b.parts, &error);
    if (status) {
        fprintf(stderr, "attention_bench: %s\n", error.text);
        return 1;
    }
    int64_t most_pages = MEMORY / (2 * D * MX_TILE * 2 * KV_HEADS);
    b.q = aligned_alloc(64, (size_t)MAX_ROWS * HEADS * D * sizeof(float));
    b.out = aligned_alloc(64, (size_t)MAX_ROWS * HEADS * D * sizeof(float));
    b.table = malloc((size_t)most_pages * sizeof *b.table);
    if (!b.q || !b.out || !b.table) return 1;
    for (int64_t i = 0; i < (int64_t)MAX_ROWS * HEADS * D; i++) b.q[i] = (float)(i * 2654435761 % 1024) / 512 - 1;
    for (int64_t i = 0; i < most_pages; i++) b.table[i] = (int32_t)i;
    printf("%s, %d threads\n", b.kernels->name, mx_pool_threads(b.pool));
    for (int f = 0; f < 3; f++) {
        b.kv = formats[f];
        fill(&b);
        printf("%s\n", names[f]);
        for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) run(&b, &tests[i], repetitions);
    }
    free(b.q);
    free(b.out);
    free(b.table);
    mx_arena_destroy(&b.pages);
    mx_arena_destroy(&b.scratch);
    mx_arena_destroy(&b.parts);
    mx_pool_destroy(b.pool);
    return 0;
}
