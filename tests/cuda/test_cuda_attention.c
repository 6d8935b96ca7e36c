/* Attention on the GPU against scalar C and against doubles; single rows and runs, cut in any way, bit for bit. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/cuda/device_memory.h"

enum {
    PAGES = 72, /* of a sequence, at most */
    SEQUENCES = 2,
    MOST_ROWS = 48,
    MOST_RUNS = 48,
};

typedef struct shape {
    mx_format kv;
    int head_dim, kv_heads, group, window;
    float size; /* of queries */
    float sink;
    int terms;
} shape;

/* Rows of neighbouring positions of one sequence: first to last. The rows of a step are these one behind the other,
 * with a hole in between. */
typedef struct stretch {
    int table, first, last;
} stretch;

typedef struct world {
    shape s;
    int heads, rows, stretches;
    int all_pages; /* of all sequences */
    int positions; /* of a sequence; beyond them is what was there before */
    int64_t head_bytes, page_bytes;
    const stretch *stretch;
    int begin[16]; /* a stretch's first row */
    int32_t position[MOST_ROWS], table_of[MOST_ROWS];
    int32_t table[SEQUENCES][PAGES];
    bool seen[SEQUENCES][PAGES];
    float *q, *sinks;
    uint8_t *pages, *mirrored; /* the CPU's and the GPU's; nothing but NaN in the one before page 0 */
    double *exact;             /* [rows, heads * head_dim] */
    float *scalar;             /* the same */
    device device;
    mx_cuda_attention a;
} world;

static void *take(size_t bytes) {
    void *p = NULL;
    assert_int_equal(posix_memalign(&p, 64, bytes + 64), 0);
    memset(p, 0, bytes + 64);
    return p;
}

static int element(mx_format kv) {
    return kv == MX_F32 ? 4 : 2;
}

/* A head of a page: K [head_dim][64], V [64][head_dim] to K [64][head_dim], V [head_dim][64]. */
static void mirror(uint8_t *to, const uint8_t *from, int head_dim, int bytes) {
    const int64_t half = (int64_t)head_dim * MX_TILE * bytes;
    for (int d = 0; d < head_dim; d++) {
        for (int j = 0; j < MX_TILE; j++) {
            memcpy(to + (j * head_dim + d) * bytes, from + (d * MX_TILE + j) * bytes, (size_t)bytes);
            memcpy(to + half + (d * MX_TILE + j) * bytes, from + half + (j * head_dim + d) * bytes, (size_t)bytes);
        }
    }
}

static const mx_kernels *scalar_kernels(void) {
    const mx_kernels *k = NULL;
    CHECK(mx_kernels_get("scalar", &k, &error_));
    return k;
}

static void see(world *w) {
    for (int i = 0; i < w->stretches; i++) {
        const stretch *s = &w->stretch[i];
        for (int p = s->first; p <= s->last; p++) {
            const int first = w->s.window && p >= w->s.window ? p - w->s.window + 1 : 0;
            for (int page = first / MX_TILE; page <= p / MX_TILE; page++) w->seen[s->table][page] = true;
            w->positions = p + 7 > w->positions ? p + 7 : w->positions;
        }
    }
}

/* Pages in disorder; those that nobody sees are not there. What stands beyond the last position is finite. */
static void make_pages(world *w, rng *r) {
    const mx_kernels *k = scalar_kernels();
    see(w);
    const int pages = (w->positions + MX_TILE - 1) / MX_TILE, all = SEQUENCES * pages, d = w->s.head_dim;
    assert_true(pages < PAGES);
    memset(w->table, 0xff, sizeof w->table);
    w->all_pages = all;
    w->head_bytes = 2 * (int64_t)MX_TILE * d * element(w->s.kv);
    w->page_bytes = w->head_bytes * w->s.kv_heads;
    w->pages = take((size_t)(w->page_bytes * (all + 1)));
    w->mirrored = take((size_t)(w->page_bytes * (all + 1)));
    memset(w->mirrored, 0xff, (size_t)(w->page_bytes * (all + 1)));
    float kv[2][128];
    for (int i = 0; i < all; i++) {
        const int page = (i * 149 + 1) % all; /* a prime beyond them all */
        const int sequence = i / pages, tile = i % pages;
        if (!w->seen[sequence][tile]) continue;
        w->table[sequence][tile] = page;
        for (int h = 0; h < w->s.kv_heads; h++) {
            uint8_t *at = w->pages + w->page_bytes * (page + 1) + w->head_bytes * h;
            for (int slot = 0; slot < MX_TILE; slot++) {
                const bool garbage = tile * MX_TILE + slot >= w->positions;
                for (int e = 0; e < d; e++) {
                    kv[0][e] = garbage ? -3000.0f : rng_normal(r) * (rng_below(r, 50) ? 1.0f : 8.0f);
                    kv[1][e] = garbage ? 60000.0f : rng_normal(r) + 0.25f;
                }
                k->kv_write(at, w->s.kv, d, slot, kv[0], kv[1]);
            }
            mirror(w->mirrored + w->page_bytes * (page + 1) + w->head_bytes * h, at, d, element(w->s.kv));
        }
    }
}

/* One row and KV head in doubles. */
static void attend_exactly(world *w, int row, int kv_head) {
    const int d = w->s.head_dim, position = w->position[row];
    const int first = w->s.window && position >= w->s.window ? position - w->s.window + 1 : 0;
    const int keys = position - first + 1, all = d * MX_TILE;
    float *k = take((size_t)keys * (size_t)d * 8), *v = k + (int64_t)keys * d, tile[2 * 128 * MX_TILE];
    for (int j = first; j <= position; j++) {
        if (j == first || j % MX_TILE == 0) {
            const int32_t page = w->table[w->table_of[row]][j / MX_TILE];
            scalar_kernels()->widen(tile, w->pages + w->page_bytes * (page + 1) + w->head_bytes * kv_head, w->s.kv,
                                    2 * all);
        }
        for (int e = 0; e < d; e++) {
            k[(j - first) * d + e] = tile[e * MX_TILE + j % MX_TILE];
            v[(j - first) * d + e] = tile[all + j % MX_TILE * d + e];
        }
    }
    double *s = take((size_t)keys * 8);
    for (int g = 0; g < w->s.group; g++) {
        const int head = kv_head * w->s.group + g;
        const float *q = w->q + (row * w->heads + head) * d;
        double most = (double)w->sinks[head], l, o[128] = {0};
        for (int j = 0; j < keys; j++) {
            s[j] = 0;
            for (int e = 0; e < d; e++) s[j] += (double)q[e] * (double)k[j * d + e];
            s[j] *= (double)w->a.scale;
            most = fmax(most, s[j]);
        }
        l = exp((double)w->sinks[head] - most);
        for (int j = 0; j < keys; j++) {
            const double p = exp(s[j] - most);
            l += p;
            for (int e = 0; e < d; e++) o[e] += p * (double)v[j * d + e];
        }
        for (int e = 0; e < d; e++) w->exact[(row * w->heads + head) * d + e] = o[e] / l;
    }
    free(s);
    free(k);
}

static void attend_scalar(world *w, int row, int kv_head) {
    const mx_kernels *k = scalar_kernels();
    const int64_t at = ((int64_t)row * w->heads + kv_head * w->s.group) * w->s.head_dim;
    float *scratch = take((size_t)k->attention_scratch(w->s.head_dim, w->s.group) * 4);
    const mx_attention a = {.kv = w->s.kv,
                            .head_dim = w->s.head_dim,
                            .group = w->s.group,
                            .rows = 1,
                            .position = w->position[row],
                            .window = w->s.window,
                            .q = w->q + at,
                            .sinks = w->sinks + kv_head * w->s.group,
                            .scale = w->a.scale,
                            .pages = w->pages + w->page_bytes,
                            .table = w->table[w->table_of[row]],
                            .page_bytes = w->page_bytes,
                            .head_offset = w->head_bytes * kv_head,
                            .out = w->scalar + at,
                            .scratch = scratch};
    k->attention(&a);
    free(scratch);
}

static void make_rows(world *w, rng *r) {
    const int d = w->s.head_dim;
    for (int i = 0; i < w->stretches; i++) {
        w->begin[i] = w->rows;
        for (int p = w->stretch[i].first; p <= w->stretch[i].last; p++) {
            w->table_of[w->rows] = w->stretch[i].table;
            w->position[w->rows++] = p;
        }
        w->table_of[w->rows] = 0;
        w->position[w->rows++] = -1;
    }
    assert_true(w->rows <= MOST_ROWS);
    w->q = take((size_t)(w->rows * w->heads * d) * 4);
    w->sinks = take((size_t)w->heads * 4);
    for (int h = 0; h < w->heads; h++) w->sinks[h] = w->s.sink + rng_normal(r);
    for (int i = 0; i < w->rows; i++) {
        for (int e = 0; e < w->heads * d; e++)
            w->q[i * w->heads * d + e] = w->position[i] < 0 ? NAN : rng_normal(r) * w->s.size;
    }
    if (w->rows > 2) memset(w->q + w->heads * d, 0, (size_t)d * 4); /* a query of nothing but zeros */
}

static void open_world(world *w, const shape *s, const stretch *stretches, int count) {
    rng r = rng_seeded((uint64_t)(s->head_dim * 100 + s->group));
    *w = (world){.s = *s, .heads = s->kv_heads * s->group, .stretch = stretches, .stretches = count};
    w->a.scale = 1.0f / sqrtf((float)s->head_dim);
    if (s->size > 1000.0f) w->a.scale *= 10.0f / s->size; /* scores of which fp32 holds the differences */
    make_rows(w, &r);
    make_pages(w, &r);
    w->exact = take((size_t)(w->rows * w->heads * s->head_dim) * 8);
    w->scalar = take((size_t)(w->rows * w->heads * s->head_dim) * 4);
    for (int i = 0; i < w->rows; i++) {
        for (int h = 0; h < s->kv_heads && w->position[i] >= 0; h++) {
            attend_exactly(w, i, h);
            attend_scalar(w, i, h);
        }
    }
    w->device = device_open();
    device *d = &w->device;
    const int padded = (int)mx_cuda_padded(w->heads * s->head_dim);
    const uint8_t *pages = on_device(d, w->mirrored, (size_t)(w->page_bytes * (w->all_pages + 1)));
    w->a.pages = (mx_cuda_pages){.kv = s->kv,
                                 .pages = (uint8_t *)(uintptr_t)pages + w->page_bytes,
                                 .page_bytes = w->page_bytes,
                                 .tables = on_device(d, w->table, sizeof w->table),
                                 .table_stride = PAGES,
                                 .table = on_device(d, w->table_of, (size_t)w->rows * 4),
                                 .position = on_device(d, w->position, (size_t)w->rows * 4)};
    w->a.heads = w->heads;
    w->a.kv_heads = s->kv_heads;
    w->a.head_dim = s->head_dim;
    w->a.window = s->window;
    w->a.q = on_device(d, w->q, (size_t)(w->rows * w->heads * s->head_dim) * 4);
    w->a.sinks = on_device(d, w->sinks, (size_t)w->heads * 4);
    w->a.out_term = (int64_t)w->rows * padded;
    w->a.terms = s->terms;
}

static void close_world(world *w) {
    device_close(&w->device);
    free(w->q);
    free(w->sinks);
    free(w->pages);
    free(w->mirrored);
    free(w->exact);
    free(w->scalar);
}

/* ---- the two ways ---- */
static size_t out_bytes(const world *w) {
    return (size_t)(w->a.out_term * w->s.terms) * 2;
}

/* Single rows in some order, holes among them. Out of what is in `out` already. */
static void attend_rows(world *w, const int32_t *row, int rows, uint16_t *out) {
    mx_cuda_attention a = w->a;
    const int sight = w->s.window ? w->s.window : w->positions;
    a.spans = (sight - 1) / MX_CUDA_SPAN + 2;
    device d = device_open();
    a.row = row ? on_device(&d, row, (size_t)rows * 4) : NULL;
    a.rows = rows;
    a.parts =
        on_device(&d, NULL, (size_t)(rows * a.spans * a.kv_heads * mx_cuda_attention_part(a.head_dim, w->s.group)) * 4);
    a.out = on_device(&d, out, out_bytes(w));
    mx_cuda_attention_rows(&a, d.stream);
    from_device(&d, out, a.out, out_bytes(w));
    device_close(&d);
}

static void attend_runs(world *w, const mx_cuda_run *run, int runs, uint16_t *out) {
    mx_cuda_attention a = w->a;
    device d = device_open();
    a.run = on_device(&d, run, (size_t)runs * sizeof *run);
    a.runs = runs;
    a.out = on_device(&d, out, out_bytes(w));
    mx_cuda_attention_runs(&a, d.stream);
    from_device(&d, out, a.out, out_bytes(w));
    device_close(&d);
}

/* Cuts the stretches into runs, the first of each `first` rows, the others `most`; holes are runs too. */
static int cut(const world *w, mx_cuda_run *run, int first, int most) {
    int runs = 0;
    for (int i = 0; i < w->stretches; i++) {
        const int end = w->begin[i] + w->stretch[i].last - w->stretch[i].first + 1;
        for (int at = w->begin[i], next; at < end; at = next) {
            next = at + (at == w->begin[i] ? first : most) < end ? at + (at == w->begin[i] ? first : most) : end;
            run[runs++] = (mx_cuda_run){at, next - at};
        }
        run[runs++] = (mx_cuda_run){end, 1}; /* the hole */
    }
    run[runs++] = (mx_cuda_run){0, 0};
    assert_true(runs <= MOST_RUNS);
    return runs;
}

/* ---- comparing ---- */
static uint16_t *blank(const world *w) {
    uint16_t *out = take(out_bytes(w));
    memset(out, 0x5a, out_bytes(w));
    return out;
}

static float out_at(const world *w, const uint16_t *out, int row, int e) {
    float v = 0;
    for (int i = w->s.terms - 1; i >= 0; i--) {
        v += mx_bf16_to_f32(out[i * w->a.out_term + row * mx_cuda_padded(w->heads * w->s.head_dim) + e]);
    }
    return v;
}

/* Holes and padding were left alone. */
static void check_untouched(const world *w, const uint16_t *out) {
    const int64_t width = (int64_t)w->heads * w->s.head_dim, padded = mx_cuda_padded(width);
    for (int i = 0; i < w->rows * w->s.terms; i++) {
        const int64_t from = w->position[i % w->rows] < 0 ? 0 : width;
        for (int64_t e = from; e < padded; e++) assert_int_equal(out[i * padded + e], 0x5a5a);
    }
}

/* What may be off beside scalar C. Emulated tensor cores keep to 2.5 of it; real ones truncate (device.cuh), and their
 * errors, all towards zero, add up instead of cancelling. A weight is off by as much as its score is in absolute terms:
 * queries of 500 make scores of up to 2000 and more, whose ulp is 2^-13 and of which a sum of several mma may lose a
 * few. */
static double allowed(const world *w, double scalar, double rounding) {
    return 4.0 * scalar + (w->s.size == 500.0f ? 5e-4 : 1e-6) + rounding;
}

/* The largest differences from doubles, beside the head's largest number. */
static void check_numbers(const world *w, const uint16_t *out, double rounding, double *worst, double *worst_scalar) {
    double most = 0, most_scalar = 0;
    const int d = w->s.head_dim;
    for (int i = 0; i < w->rows; i++) {
        for (int h = 0; h < w->heads && w->position[i] >= 0; h++) {
            double size = 1e-30, far = 0, far_scalar = 0; /* beside the sink all may be nothing */
            for (int e = h * d; e < (h + 1) * d; e++) {
                const double exact = w->exact[i * w->heads * d + e], ours = (double)out_at(w, out, i, e);
                assert_true(isfinite(ours));
                size = fmax(size, fabs(exact));
                far = fmax(far, fabs(ours - exact));
                far_scalar = fmax(far_scalar, fabs((double)w->scalar[i * w->heads * d + e] - exact));
            }
            most = fmax(most, far / size);
            most_scalar = fmax(most_scalar, far_scalar / size);
        }
    }
    if (getenv("MXRUN_SHOW"))
        printf("kv %d dim %d group %d window %d size %g sink %g: %.2e, scalar C %.2e\n", (int)w->s.kv, d, w->s.group,
               w->s.window, (double)w->s.size, (double)w->s.sink, most, most_scalar);
    if (most > allowed(w, most_scalar, rounding))
        fail_msg("kv %d, head_dim %d, group %d, window %d, size %g: %.2e, scalar C %.2e", (int)w->s.kv, d, w->s.group,
                 w->s.window, (double)w->s.size, most, most_scalar);
    if (w->s.terms < 3) return;
    *worst = fmax(*worst, most);
    *worst_scalar = fmax(*worst_scalar, most_scalar);
}

/* All ways of computing the same rows. */
static void check_shape(const shape *s, const stretch *stretches, int count, double *worst, double *worst_scalar) {
    static const double rounding[4] = {0, 4e-3, 1.6e-5, 0}; /* of one, two, three terms */
    world w;
    mx_cuda_run run[MOST_RUNS];
    int32_t reversed[MOST_ROWS];
    open_world(&w, s, stretches, count);
    for (int i = 0; i < w.rows; i++) reversed[i] = w.rows - 1 - i;

    const int most = mx_cuda_run_rows(s->group);
    uint16_t *first = NULL;
    for (int order = 0; order < MX_EMULATION_ORDERS; order++) {
        mx_emulation_set_order((mx_emulation_order)order);
        for (int way = order == 0 ? 0 : 1; way < (order == 0 ? 5 : 3); way++) {
            uint16_t *out = blank(&w);
            if (way == 0) attend_rows(&w, NULL, w.rows, out);
            if (way == 1) attend_rows(&w, reversed, w.rows, out);
            if (way == 2) attend_runs(&w, run, cut(&w, run, most, most), out);
            if (way == 3) attend_runs(&w, run, cut(&w, run, 1, most < 3 ? most : 3), out);
            if (way == 4) attend_runs(&w, run, cut(&w, run, 2, most), out);
            check_untouched(&w, out);
            if (!first) {
                check_numbers(&w, out, rounding[s->terms], worst, worst_scalar);
                first = out;
                continue;
            }
            for (size_t i = 0; i < out_bytes(&w) / 2; i++) {
                if (out[i] != first[i])
                    fail_msg("kv %d, head_dim %d, group %d, window %d: order %d, way %d differs at %d", (int)s->kv,
                             s->head_dim, s->group, s->window, order, way, (int)i);
            }
            free(out);
        }
    }
    mx_emulation_set_order(MX_EMULATION_UP);
    free(first);
    close_world(&w);
}

/* ---- tests ---- */
/* Contexts of 1, 63, 64, 65, 255, 256, 257, 700, 1100. */
static const stretch EDGES[] = {{0, 0, 1}, {0, 61, 65}, {1, 253, 257}, {1, 698, 699}, {0, 1098, 1099}};
static const stretch SHORT[] = {{0, 0, 2}, {0, 63, 64}, {1, 254, 256}};
static const stretch FAR[] = {{0, 4477, 4478}};
static const stretch FEW[] = {{1, 63, 65}};
static const stretch LONG[] = {{1, 44, 82}}; /* more than a run, of one sequence */
#define ALL(stretches) stretches, (int)(sizeof(stretches) / sizeof *(stretches))

static void check_format(mx_format kv, const char *name) {
    double worst = 0, scalar = 0;
    /* head_dim, KV heads, group, window, size, sink, terms */
    check_shape(&(shape){kv, 64, 2, 8, 0, 1.0f, 0.0f, 3}, ALL(EDGES), &worst, &scalar);
    check_shape(&(shape){kv, 64, 1, 4, 128, 3.0f, -20.0f, 3}, ALL(EDGES), &worst, &scalar);
    check_shape(&(shape){kv, 64, 1, 3, 8, 1.0f, 20.0f, 3}, ALL(EDGES), &worst, &scalar);
    check_shape(&(shape){kv, 32, 1, 16, 16, 1.0f, 1.0f, 2}, ALL(EDGES), &worst, &scalar);
    check_shape(&(shape){kv, 32, 2, 20, 0, 2.0f, -1e30f, 3}, ALL(SHORT), &worst, &scalar);
    check_shape(&(shape){kv, 128, 2, 1, 8, 1.0f, 0.0f, 3}, ALL(SHORT), &worst, &scalar);
    check_shape(&(shape){kv, 128, 1, 4, 0, 2.0f, 2.0f, 3}, ALL(SHORT), &worst, &scalar);
    check_shape(&(shape){kv, 96, 1, 3, 0, 1.0f, 0.0f, 1}, ALL(SHORT), &worst, &scalar);
    check_shape(&(shape){kv, 64, 1, 8, 16, 1.0f, 0.0f, 3}, ALL(LONG), &worst, &scalar);
    check_shape(&(shape){kv, 32, 1, 64, 8, 1.0f, 0.0f, 3}, ALL(FEW), &worst, &scalar);
    check_shape(&(shape){kv, 64, 1, 2, 0, 1.0f, 0.0f, 3}, ALL(FAR), &worst, &scalar);
    print_message("%s: at most %.1e from doubles, scalar C %.1e\n", name, worst, scalar);
}

static void test_f16(void **state) {
    (void)state;
    check_format(MX_F16, "F16");
}
static void test_bf16(void **state) {
    (void)state;
    check_format(MX_BF16, "BF16");
}
static void test_f32(void **state) {
    (void)state;
    check_format(MX_F32, "F32");
}

/* Scores of thousands, and queries so small or large that F16 would not hold them. */
static void test_sizes(void **state) {
    (void)state;
    static const float sizes[] = {1e-42f, 1e-30f, 1e-6f, 500.0f, 2e5f};
    for (int kv = MX_F32; kv <= MX_BF16; kv++) {
        double worst = 0, scalar = 0;
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            check_shape(&(shape){(mx_format)kv, 64, 1, 8, 0, sizes[i], 0.0f, 3}, ALL(SHORT), &worst, &scalar);
    }
}

int main(void) {
    if (no_device()) return SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f16),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
