/* Decode and prompt speed of the forward pass on a checkpoint, each beside the machine's read bandwidth in the same
 * window.
 *
 *     step_bench FOLDER [THREADS [REPETITIONS [PROMPT]]]
 *
 * Repetitions alternate: arithmetic peak (FMA from registers), one prompt of PROMPT rows, read bandwidth over 1 GiB of
 * anonymous huge pages, 5 decoded tokens, bandwidth again. A decoded token's floor is its weight bytes / bandwidth.
 * Products count the multiplications and additions of the matrices that are done: in the last layer a prompt needs
 * keys and values of every row, the rest of one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/cpu.h"
#include "measure.h"
#include "model/model.h"
#include "peak.h"

enum { DECODE = 5, MAX_REPETITIONS = 200, TILES = 64, BUFFER = 1 << 30 };

struct bench {
    mx_weights *weights;
    mx_pool *pool;
    mx_backend *backend;
    int32_t *table;
    int position;
};

static double matrix_bytes(const mx_matrix *m) {
    return (double)m->rows * (double)m->row_stride + (m->scales ? (double)m->rows * (double)m->scale_stride : 0);
}

static double matrix_flops(const mx_matrix *m) {
    return 2.0 * (double)m->rows * (double)m->cols;
}

/* Weight bytes of one decoded token; multiplications and additions of a prompt of `rows`. */
static void count(const mx_weights *w, int rows, double *bytes, double *flops) {
    *bytes = matrix_bytes(&w->lm_head);
    *flops = matrix_flops(&w->lm_head);
    for (int i = 0; i < w->config.layers; i++) {
        const mx_layer *l = &w->layer[i];
        const mx_matrix *expert[] = {&l->gate_up.matrix, &l->down.matrix};
        const mx_matrix *dense[] = {&l->k, &l->v, &l->q, &l->o, &l->router};
        for (int j = 0; j < 5; j++) {
            bool every_row = j < 2 || i + 1 < w->config.layers;
            *bytes += matrix_bytes(dense[j]);
            *flops += (every_row ? rows : 1) * matrix_flops(dense[j]);
        }
        for (int j = 0; j < 2; j++) {
            *bytes += w->config.top_k * matrix_bytes(expert[j]);
            *flops += (i + 1 < w->config.layers ? rows : 1) * w->config.top_k * matrix_flops(expert[j]);
        }
    }
}

static void peak_of_threads(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    double *rate = arg;
    for (int64_t i = begin; i < end; i++)
        rate[i] = mx_peak_run(mx_peak_here(MX_PEAK_FMA512) ? MX_PEAK_FMA512 : MX_PEAK_FMA256, 3);
}

/* FMA from registers, all threads at once. */
static double peak(mx_pool *pool) {
    static double rate[1024];
    double sum = 0;
    mx_parallel_for(pool, mx_pool_threads(pool), 1, peak_of_threads, rate);
    for (int i = 0; i < mx_pool_threads(pool); i++) sum += rate[i];
    return sum;
}

/* `rows` random tokens behind what is there; seconds it took. */
static double step(struct bench *b, int rows) {
    static mx_row row[4096];
    static unsigned seed = 1;
    for (int i = 0; i < rows; i++) {
        seed = seed * 1664525u + 1013904223u;
        row[i] = (mx_row){.token = (int32_t)((seed >> 8) % (unsigned)b->weights->config.vocab),
                          .position = b->position + i,
                          .wanted = i == rows - 1};
    }
    mx_sequence_view view = {b->table, TILES};
    mx_batch batch = {.row = row, .rows = rows, .sequence = &view, .sequences = 1};
    mx_error error;
    double start = mx_seconds();
    if (b->backend->ops->step(b->backend, &batch, &error)) {
        fprintf(stderr, "step_bench: %s\n", error.text);
        exit(1);
    }
    b->position += rows;
    return mx_seconds() - start;
}

static void print(const char *what, double *values, int n, double unit, const char *name) {
    double median = mx_median(values, n);
    printf("%-28s median %8.2f  min %8.2f  max %8.2f %s\n", what, median / unit, values[0] / unit, values[n - 1] / unit,
           name);
}

static void run(struct bench *b, const void *buffer, int repetitions, int prompt) {
    static double bandwidth[MAX_REPETITIONS], token[MAX_REPETITIONS], share[MAX_REPETITIONS], prompts[MAX_REPETITIONS],
        products[MAX_REPETITIONS], most[MAX_REPETITIONS], part[MAX_REPETITIONS];
    double bytes, flops;
    count(b->weights, prompt, &bytes, &flops);
    step(b, prompt);
    for (int i = 0; i < repetitions; i++) {
        b->position = 0;
        most[i] = peak(b->pool);
        double seconds = step(b, prompt);
        prompts[i] = prompt / seconds;
        products[i] = flops / seconds;
        part[i] = 100 * products[i] / most[i];
        double before = mx_measure_read_best(b->pool, buffer, BUFFER);
        step(b, 1);
        double decode = 0;
        for (int t = 0; t < DECODE; t++) decode += step(b, 1);
        double after = mx_measure_read_best(b->pool, buffer, BUFFER);
        bandwidth[i] = (before + after) / 2;
        token[i] = DECODE / decode;
        share[i] = 100 * bytes * DECODE / decode / bandwidth[i];
    }
    printf("%d threads; %.1f MB of weights a token, %.1f GFLOP a prompt of %d\n", mx_pool_threads(b->pool), bytes / 1e6,
           flops / 1e9, prompt);
    print("read bandwidth", bandwidth, repetitions, 1e9, "GB/s");
    print("decode", token, repetitions, 1, "tokens/s");
    print("decode, of the bandwidth", share, repetitions, 1, "%");
    char name[60];
    snprintf(name, sizeof name, "prompt of %d", prompt);
    print(name, prompts, repetitions, 1, "tokens/s");
    print("prompt, products", products, repetitions, 1e9, "GFLOP/s");
    print("arithmetic peak", most, repetitions, 1e9, "GFLOP/s");
    print("prompt, of the peak", part, repetitions, 1, "%");
}

int main(int argc, char **argv) {
    int threads = argc > 2 ? atoi(argv[2]) : 0, repetitions = argc > 3 ? atoi(argv[3]) : 10,
        prompt = argc > 4 ? atoi(argv[4]) : 512;
    if (argc < 2 || repetitions < 1 || repetitions > MAX_REPETITIONS || prompt < 1 || prompt > 3000) {
        fprintf(stderr, "usage: step_bench FOLDER [THREADS [REPETITIONS [PROMPT]]]\n");
        return 2;
    }
    struct bench b = {0};
    mx_error error;
    mx_arena arena;
    mx_status status = mx_pool_create(threads, &b.pool, &error);
    if (!status) status = mx_weights_open(argv[1], b.pool, &b.weights, &error);
    if (!status) {
        mx_backend_options options = {.kv_format = MX_F16,
                                      .pages = (int64_t)TILES * b.weights->config.layers,
                                      .max_rows = prompt,
                                      .max_wanted = 1};
        status = mx_cpu_backend_create(b.weights, b.pool, &options, &b.backend, &error);
    }
    if (!status) status = mx_arena_create(BUFFER, &arena, &error);
    if (status) {
        fprintf(stderr, "step_bench: %s\n", error.text);
        return 1;
    }
    memset(arena.base, 1, BUFFER);
    b.table = malloc((size_t)TILES * (size_t)b.weights->config.layers * sizeof *b.table);
    if (!b.table) return 1;
    for (int i = 0; i < TILES * b.weights->config.layers; i++) b.table[i] = i;
    run(&b, arena.base, repetitions, prompt);
    free(b.table);
    mx_arena_destroy(&arena);
    b.backend->ops->destroy(b.backend);
    mx_weights_close(b.weights);
    mx_pool_destroy(b.pool);
    return 0;
}
