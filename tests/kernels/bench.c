/* checkasm --bench: every kernel of every tier by itself, on one thread and on gpt-oss's shapes. Cycles are seconds
 * times the core's clock, which a chain of dependent additions shows (one a cycle on every core that matters here),
 * since performance counters are often not to be had. A figure is the best of several short runs: noise only ever adds.
 *
 * Weights and the keys of long contexts come from memory, each call taking the next of them; all else is in the caches,
 * as it is in a step. New kernels get a function beside `elementwise` or a line in it. */
#include "bench.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/cpu.h"
#include "kernels/mx.h"
#include "support.h"

enum {
    HIDDEN = 2880,
    VOCABULARY = 201088,
    MAX_ROWS = 256,
    MAX_COLS = 4096,
    HEAD_DIM = 64,
    GROUP = 8,
    WEIGHT_BYTES = 192 << 20, /* many times the last cache */
    CALL_PRODUCTS = 64 << 20, /* multiplications of one call with many rows: the outputs are cut, as in a step */
};

static const char *const precision_names[] = {"fp32", "bf16x2", "bf16", "int8"};

typedef struct bench {
    char **words; /* all must occur in a line's name */
    int word_count;
    mx_arena arena;
    uint8_t *weights, *scales; /* [WEIGHT_BYTES], [WEIGHT_BYTES / 8]: also zeros */
    float *x, *y;              /* [MAX_ROWS, MAX_COLS] or more */
    uint8_t *packed;
    float *scratch;
} bench;

/* ---- time ------------------------------------------------------------------------------------------------------- */

/* Of this core just now. */
static double clock_hz(void) {
    enum { ROUNDS = 10000, ADDS = 16 };
    double best = 0.0;
    for (int run = 0; run < 5; run++) {
        uint64_t sum = 1, step = 3;
        __asm__ volatile("" : "+r"(step));
        double start = mx_seconds();
        for (int i = 0; i < ROUNDS; i++) {
#define ADD                                                                                                            \
    sum += step;                                                                                                       \
    __asm__ volatile("" : "+r"(sum));
            ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD
#undef ADD
        }
        double hz = (double)ROUNDS * ADDS / (mx_seconds() - start);
        if (hz > best) best = hz;
    }
    return best;
}

typedef void run_fn(void *arg);

/* Seconds of one call. */
static double best_of(run_fn *run, void *arg) {
    const double wanted = 0.003;
    double best = 1e9, total = 0.0;
    int64_t calls = 1;
    for (int i = 0; i < 7 && total < 0.25; i++) {
        double start = mx_seconds();
        for (int64_t j = 0; j < calls; j++) run(arg);
        double seconds = mx_seconds() - start;
        total += seconds;
        if (seconds / (double)calls < best) best = seconds / (double)calls;
        if (seconds < wanted / 2) calls = (int64_t)((double)calls * wanted / (seconds + 1e-7)) + 1;
    }
    return best;
}

/* Whether `word` occurs in the line; one that ends with a digit not as the beginning of a longer number. */
static bool occurs(const char *line, const char *word) {
    size_t length = strlen(word);
    for (const char *at = line; (at = strstr(at, word)); at++) {
        if (!length || !isdigit((unsigned char)word[length - 1]) || !isdigit((unsigned char)at[length])) return true;
    }
    return false;
}

static bool wanted(const bench *b, const char *line) {
    for (int i = 0; i < b->word_count; i++) {
        if (!occurs(line, b->words[i])) return false;
    }
    return true;
}

static void heading(const char *what) {
    printf("\n%-60s %10s %11s %11s %8s\n", what, "us", "flops/cycle", "bytes/cycle", "GHz");
}

/* One line. `bytes`: what must be read and written; flops: 0 where they are not what it is about. */
static void measure(bench *b, const char *line, run_fn *run, void *arg, double flops, double bytes) {
    if (!wanted(b, line)) return;
    double before = clock_hz(), seconds = best_of(run, arg), after = clock_hz();
    double hz = before > after ? before : after, cycles = seconds * hz;
    printf("%-60s %10.2f ", line, 1e6 * seconds);
    if (flops > 0) {
        printf("%11.2f ", flops / cycles);
    } else {
        printf("%11s ", "");
    }
    printf("%11.3f %8.2f\n", bytes / cycles, 1e-9 * hz);
    fflush(stdout);
}

/* ---- inputs ------------------------------------------------------------------------------------------------------ */

static uint8_t trained_scale(int64_t i) {
    return (uint8_t)(118 + i % 6);
}

/* Weights whose BF16 values lie around 1 and whose scale bytes are those of a trained model. */
static void fill(bench *b, int64_t floats) {
    rng r = rng_seeded(1);
    for (int64_t i = 0; i < WEIGHT_BYTES; i += 4) {
        uint32_t bits = (rng_bits(&r) & 0x80ff80ff) | 0x3c003c00;
        memcpy(b->weights + i, &bits, 4);
    }
    for (int64_t i = 0; i < WEIGHT_BYTES / 8; i++) b->scales[i] = trained_scale(i);
    for (int64_t i = 0; i < floats; i++) b->x[i] = rng_uniform(&r, -1.25f, 1.25f);
}

/* For element codes; E8M0's go for MXFP4, too. */
static void fill_scales(bench *b, mx_scale_type type) {
    for (int64_t i = 0; i < WEIGHT_BYTES / 8; i++)
        b->scales[i] = type == MX_SCALE_E4M3 ? 0x38 : type == MX_SCALE_BF16 ? 0x3c : trained_scale(i);
}

static void fill_ggml_scales(bench *b) {
    for (int64_t i = 0; i < WEIGHT_BYTES / MX_MXFP4_GGML_BYTES; i++)
        b->weights[MX_MXFP4_GGML_BYTES * i] = trained_scale(i);
}

/* ---- products --------------------------------------------------------------------------------------------------- */

typedef struct product_run {
    const bench *b;
    const mx_product *product;
    mx_matmul m;
    int64_t at, call_bytes, call_scales, call_zeros; /* of what one call reads */
} product_run;

static void run_product(void *arg) {
    product_run *p = arg;
    int64_t calls = WEIGHT_BYTES / p->call_bytes, call = p->at++ % calls;
    p->m.w.data = p->b->weights + call * p->call_bytes;
    if (p->call_scales) p->m.w.scales = p->b->scales + call * p->call_scales;
    if (p->call_zeros) p->m.w.zeros = (const int8_t *)p->b->scales + call * p->call_zeros;
    p->product->matmul(&p->m);
}

typedef struct shape {
    mx_format format;
    int64_t n, cols;
    mx_epilogue epilogue;
    const char *name;
    mx_blocks blocks;
} shape;

static void bench_product(bench *b, const mx_kernels *k, const shape *s, mx_precision precision, int64_t rows) {
    static const float post = 0.75f;
    const mx_matrix w = {.format = s->format,
                         .cols = s->cols,
                         .row_stride = mx_columns_bytes(s->format, s->cols),
                         .scale_stride = s->format == MX_MXFP4 ? s->cols / 32 : mx_row_scale_bytes(&s->blocks, s->cols),
                         .blocks = s->blocks,
                         .zero_stride = mx_row_zero_bytes(&s->blocks, s->cols),
                         .post = mx_is_block_format(s->format) ? &post : NULL};
    int64_t n = CALL_PRODUCTS / (s->cols * rows) / 96 * 96;
    n = n < 96 ? 96 : n > s->n ? s->n : n;
    char line[160], size[32];
    snprintf(size, sizeof size, "%lldx%lld", (long long)s->n, (long long)s->cols);
    snprintf(line, sizeof line, "%-9s %-10s %-15s %-6s %-10s rows:%lld", s->name, k->name, matrix_name(&w),
             precision_names[precision], size, (long long)rows);
    if (!wanted(b, line)) return;
    product_run p = {.b = b,
                     .product = k->product[s->format][precision],
                     .m = {.w = w,
                           .x = b->packed,
                           .rows = rows,
                           .n1 = n,
                           .epilogue = s->epilogue,
                           .factor = b->x,
                           .limit = 7.0f,
                           .alpha = 1.702f,
                           .y = b->y,
                           .y_stride = n,
                           .scratch = b->scratch},
                     .call_bytes = n * w.row_stride,
                     .call_scales = n * w.scale_stride,
                     .call_zeros = n * w.zero_stride};
    p.m.w.rows = n;
    p.m.w.data = b->weights;
    p.m.x_stride = p.product->packed_bytes(s->cols);
    p.product->pack(b->packed, b->x, rows, s->cols);
    measure(b, line, run_product, &p, 2.0 * (double)(n * s->cols * rows),
            (double)(p.call_bytes + p.call_scales + p.call_zeros));
}

/* Whether a line before says the same: tiers and precisions often share a function. */
static bool seen(const mx_product *product, const mx_kernels *const *tiers, int tier, mx_format format, int precision) {
    for (int i = 0; i <= tier; i++) {
        for (int j = 0; j < (i < tier ? MX_PRECISIONS : precision); j++) {
            const mx_product *other = tiers[i]->product[format][j];
            if (other && other->matmul == product->matmul) return true;
        }
    }
    return false;
}

static void products(bench *b, const mx_kernels *const *tiers, int count) {
    static const shape shapes[] = {
        {MX_MXFP4, 5760, HIDDEN, MX_SWIGLU, "gate_up", {0}},
        {MX_MXFP4, 2880, HIDDEN, MX_SCALE, "down", {0}},
        {MX_BF16, 4096, HIDDEN, MX_STORE, "q", {0}},
        {MX_BF16, HIDDEN, 4096, MX_ADD, "o", {0}},
        {MX_BF16, VOCABULARY, HIDDEN, MX_STORE, "out", {0}},
        {MX_Q8_0, 4096, HIDDEN, MX_STORE, "q", {0}},
        {MX_Q8_0, HIDDEN, 4096, MX_ADD, "o", {0}},
        {MX_Q8_0, VOCABULARY, HIDDEN, MX_STORE, "out", {0}},
        {MX_F16, 4096, HIDDEN, MX_STORE, "q", {0}},
        {MX_MXFP4, HIDDEN, 4096, MX_ADD, "o", {0}},
        {MX_E2M1, HIDDEN, 4096, MX_ADD, "o", {16, MX_SCALE_E4M3, false, false}},
        {MX_E2M1, HIDDEN, 4096, MX_ADD, "o", {64, MX_SCALE_E8M0, false, false}},
        {MX_E2M1, HIDDEN, 4096, MX_ADD, "o", {32, MX_SCALE_E8M0, true, false}},
        {MX_E2M3, HIDDEN, 4096, MX_ADD, "o", {32, MX_SCALE_E8M0, false, false}},
        {MX_E4M3, HIDDEN, 4096, MX_ADD, "o", {32, MX_SCALE_E8M0, false, false}},
        {MX_E4M3, HIDDEN, 4096, MX_ADD, "o", {0, MX_SCALE_NONE, false, false}},
        {MX_E5M2, HIDDEN, 4096, MX_ADD, "o", {32, MX_SCALE_E8M0, false, false}},
        {MX_INT8, HIDDEN, 4096, MX_ADD, "o", {32, MX_SCALE_BF16, false, false}},
        {MX_INT8, HIDDEN, 4096, MX_ADD, "o", {128, MX_SCALE_BF16, false, true}},
        {MX_INT4, HIDDEN, 4096, MX_ADD, "o", {32, MX_SCALE_BF16, false, false}},
        {MX_INT4, HIDDEN, 4096, MX_ADD, "o", {128, MX_SCALE_BF16, false, true}},
        {MX_MXFP4_GGML, 2880, HIDDEN, MX_SCALE, "down", {0}}, /* the last: its scales are poor weights for others */
    };
    static const int64_t rows[] = {1, 2, 4, 8, 16, 64, 256};
    heading("products");
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        if (shapes[s].format == MX_MXFP4_GGML) fill_ggml_scales(b);
        fill_scales(b, shapes[s].blocks.scale);
        for (int tier = 0; tier < count; tier++) {
            for (int precision = 0; precision < MX_PRECISIONS; precision++) {
                const mx_product *product = tiers[tier]->product[shapes[s].format][precision];
                if (!product || seen(product, tiers, tier, shapes[s].format, precision)) continue;
                for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
                    bench_product(b, tiers[tier], &shapes[s], (mx_precision)precision, rows[r]);
                }
            }
        }
    }
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

typedef struct attention_run {
    const mx_kernels *k;
    mx_attention a;
    int64_t head, heads, head_bytes;
} attention_run;

/* Each call takes the next KV head of the pages. */
static void run_attention(void *arg) {
    attention_run *p = arg;
    p->a.head_offset = p->head++ % p->heads * p->head_bytes;
    p->k->attention(&p->a);
}

/* The last `rows` of `depth` positions. Bytes: keys and values that the rows see, each read once. */
static void bench_attention(bench *b, const mx_kernels *k, mx_format kv, int64_t rows, int64_t depth, int64_t window) {
    static int32_t table[65536 / MX_TILE];
    static const float sinks[GROUP] = {0.5f, 1.0f, -1.0f};
    int64_t size = kv == MX_F32 ? 4 : 2, head_bytes = 2 * HEAD_DIM * MX_TILE * size,
            tiles = (depth + MX_TILE - 1) / MX_TILE;
    int64_t heads = WEIGHT_BYTES / (tiles * head_bytes) < 8 ? WEIGHT_BYTES / (tiles * head_bytes) : 8;
    double keys = 0.0, seen_keys = (double)(window && window < depth - rows ? window + rows - 1 : depth);
    char line[160];
    for (int64_t t = 0; t < tiles; t++) table[t] = (int32_t)t;
    for (int64_t i = 0; i < rows; i++) {
        int64_t position = depth - rows + i;
        keys += (double)(window && window <= position ? window : position + 1);
    }
    snprintf(line, sizeof line, "%-9s %-10s %-5s depth:%-6lld window:%-4lld rows:%lld", "attention", k->name,
             matrix_name(&(mx_matrix){.format = kv}), (long long)depth, (long long)window, (long long)rows);
    attention_run p = {.k = k,
                       .a = {.kv = kv,
                             .head_dim = HEAD_DIM,
                             .group = GROUP,
                             .rows = rows,
                             .position = depth - rows,
                             .window = window,
                             .q = b->x,
                             .q_stride = GROUP * HEAD_DIM,
                             .sinks = sinks,
                             .scale = 0.125f,
                             .pages = b->weights,
                             .table = table,
                             .page_bytes = heads * head_bytes,
                             .out = b->y,
                             .out_stride = GROUP * HEAD_DIM,
                             .scratch = b->scratch},
                       .heads = heads,
                       .head_bytes = head_bytes};
    measure(b, line, run_attention, &p, 4.0 * HEAD_DIM * GROUP * keys, seen_keys * 2 * HEAD_DIM * (double)size);
}

static void attention(bench *b, const mx_kernels *const *tiers, int count) {
    static const mx_format formats[] = {MX_F16, MX_BF16, MX_F32};
    static const struct {
        int64_t rows, depth, window;
    } cases[] = {{1, 128, 0},     {1, 4096, 128}, {1, 4096, 0}, {1, 32768, 0},
                 {16, 4096, 128}, {16, 4096, 0},  {64, 512, 0}};
    heading("attention, one KV head of 8 query heads of 64");
    for (int tier = 0; tier < count; tier++) {
        if (tier > 0 && tiers[tier]->attention == tiers[tier - 1]->attention) continue;
        for (int f = 0; f < 3; f++) {
            for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
                bench_attention(b, tiers[tier], formats[f], cases[i].rows, cases[i].depth, cases[i].window);
            }
        }
    }
}

/* ---- all else --------------------------------------------------------------------------------------------------- */

typedef struct small_run {
    bench *b;
    const mx_kernels *k;
    const mx_product *product;
    int64_t n;
    mx_format format;
    int32_t expert[8];
    float weight[8];
    int64_t index;
    double sum;
} small_run;

static void run_rmsnorm(void *arg) {
    small_run *p = arg;
    p->k->rmsnorm(p->b->y, p->b->x, p->b->x + p->n, p->n, 1e-5f);
}

static void run_rope(void *arg) {
    small_run *p = arg;
    p->k->rope(p->b->y, p->b->x, p->b->x + HEAD_DIM / 2, p->n / HEAD_DIM, HEAD_DIM);
}

static void run_router(void *arg) {
    small_run *p = arg;
    p->k->router_topk(p->b->x + p->index++ % 1024 * p->n, (int)p->n, 4, p->expert, p->weight);
}

static void run_argmax(void *arg) {
    small_run *p = arg;
    p->index = p->k->argmax(p->b->x, p->n);
}

static void run_exp_sum(void *arg) {
    small_run *p = arg;
    p->sum = p->k->exp_sum(p->b->y, p->b->x, p->n, 2.0f, 1.0f);
}

static void run_add(void *arg) {
    small_run *p = arg;
    p->k->add(p->b->y, p->b->x, p->n);
}

static void run_widen(void *arg) {
    small_run *p = arg;
    p->k->widen(p->b->y, p->b->weights + 1, p->format, p->n);
}

static void run_kv_write(void *arg) {
    small_run *p = arg;
    p->k->kv_write(p->b->packed, p->format, HEAD_DIM, (int)(p->index++ % MX_TILE), p->b->x, p->b->x + HEAD_DIM);
}

static void run_pack(void *arg) {
    small_run *p = arg;
    p->product->pack(p->b->packed, p->b->x, 1, p->n);
}

/* One operation over n elements; `bytes` of each are read and written. */
static void bench_small(bench *b, const mx_kernels *k, const char *name, const char *format, run_fn *run, small_run p,
                        double bytes) {
    char line[160];
    p.b = b;
    p.k = k;
    snprintf(line, sizeof line, "%-9s %-10s %-12s n:%lld", name, k->name, format, (long long)p.n);
    measure(b, line, run, &p, 0.0, bytes * (double)p.n);
}

static void bench_pack(bench *b, const mx_kernels *k, mx_format format, int precision) {
    const mx_product *product = k->product[format][precision];
    char what[32];
    if (!product) return;
    for (int f = 0; f < (int)format; f++) {
        if (k->product[f][precision] && k->product[f][precision]->pack == product->pack) return;
    }
    snprintf(what, sizeof what, "%s %s", matrix_name(&(mx_matrix){.format = format}), precision_names[precision]);
    bench_small(b, k, "pack", what, run_pack, (small_run){.product = product, .n = HIDDEN},
                4.0 + (double)product->packed_bytes(HIDDEN) / HIDDEN);
}

static void elementwise(bench *b, const mx_kernels *const *tiers, int count) {
    heading("all else, in the caches");
    for (int tier = 0; tier < count; tier++) {
        const mx_kernels *k = tiers[tier];
        bench_small(b, k, "rmsnorm", "", run_rmsnorm, (small_run){.n = HIDDEN}, 12);
        bench_small(b, k, "rope", "64 heads", run_rope, (small_run){.n = 64 * HEAD_DIM}, 8);
        bench_small(b, k, "router", "best 4", run_router, (small_run){.n = 32}, 4);
        bench_small(b, k, "router", "best 4", run_router, (small_run){.n = 128}, 4);
        bench_small(b, k, "argmax", "", run_argmax, (small_run){.n = VOCABULARY}, 4);
        bench_small(b, k, "exp_sum", "", run_exp_sum, (small_run){.n = VOCABULARY}, 8);
        bench_small(b, k, "add", "", run_add, (small_run){.n = HIDDEN}, 12);
        for (int f = MX_F32; f <= MX_BF16; f++) {
            double size = f == MX_F32 ? 4 : 2;
            small_run p = {.n = HIDDEN, .format = (mx_format)f}, one = {.n = HEAD_DIM, .format = (mx_format)f};
            bench_small(b, k, "widen", matrix_name(&(mx_matrix){.format = (mx_format)f}), run_widen, p, 4 + size);
            bench_small(b, k, "kv_write", matrix_name(&(mx_matrix){.format = (mx_format)f}), run_kv_write, one,
                        8 + 2 * size);
        }
        for (int f = 0; f < MX_FORMATS; f++) {
            for (int precision = 0; precision < MX_PRECISIONS; precision++) bench_pack(b, k, (mx_format)f, precision);
        }
    }
}

/* ---- all of it -------------------------------------------------------------------------------------------------- */

static int64_t most_scratch(const mx_kernels *const *tiers, int count) {
    int64_t most = 0;
    for (int i = 0; i < count; i++) {
        int64_t of_attention = tiers[i]->attention_scratch(HEAD_DIM, GROUP);
        if (tiers[i]->matmul_scratch > most) most = tiers[i]->matmul_scratch;
        if (of_attention > most) most = of_attention;
    }
    return most;
}

bool bench_run(char **words, int word_count) {
    const mx_kernels *tiers[MAX_TIERS];
    int count = tiers_here(tiers);
    bench b = {.words = words, .word_count = word_count};
    const int64_t floats = (int64_t)MAX_ROWS * MAX_COLS;
    size_t scratch = (size_t)most_scratch(tiers, count) * sizeof(float), values = (size_t)floats * sizeof(float);
    mx_error error = {0};
    if (mx_arena_create(WEIGHT_BYTES + WEIGHT_BYTES / 8 + 4 * values + scratch + 4096, &b.arena, &error)) {
        fprintf(stderr, "checkasm: %s\n", error.text);
        return false;
    }
    b.weights = mx_arena_take(&b.arena, WEIGHT_BYTES);
    b.scales = mx_arena_take(&b.arena, WEIGHT_BYTES / 8);
    b.x = mx_arena_take(&b.arena, values);
    b.y = mx_arena_take(&b.arena, 2 * values); /* a call's outputs: at most CALL_PRODUCTS / HIDDEN, or a few rows */
    b.packed = mx_arena_take(&b.arena, values);
    b.scratch = mx_arena_take(&b.arena, scratch);
    fill(&b, floats);
    printf("one thread; core clock %.2f GHz\n", 1e-9 * clock_hz());
    products(&b, tiers, count);
    fill(&b, floats);
    attention(&b, tiers, count);
    elementwise(&b, tiers, count);
    mx_arena_destroy(&b.arena);
    return true;
}
