/* Every tier's attention against the formula in double, with sink, window and page table, and batch invariance. New
 * cases are functions like test_edges, listed at the end. */
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct test_case {
    mx_format kv;
    int head_dim, group;
    int64_t rows, position, window;
    float amplitude; /* of q and k: large ones make softmax nearly one-hot */
    float sink;      /* of every head; 0: random ones */
} test_case;

typedef struct problem {
    mx_attention call;
    float *q, *sinks;
    uint8_t *pages;
    int32_t *table;
    int64_t tiles;
} problem;

/* Pages in shuffled order; slots beyond the last row hold large finite rubbish, tiles outside every row's sight no
 * page at all. */
static problem problem_make(rng *r, const mx_kernels *k, const test_case *c) {
    int64_t last = c->position + c->rows - 1, tiles = last / MX_TILE + 1, hd = c->head_dim;
    int64_t first = c->window && c->position >= c->window ? (c->position - c->window + 1) / MX_TILE : 0;
    int64_t head_bytes = 2 * hd * MX_TILE * (c->kv == MX_F32 ? 4 : 2);
    problem p = {.tiles = tiles};
    int64_t q_stride = c->group * hd + 7, out_stride = c->group * hd + 3;
    p.q = guarded_floats((c->rows - 1) * q_stride + c->group * hd, "q");
    p.sinks = guarded_row(c->group, "sinks");
    p.pages = guarded((tiles - first) * head_bytes * 2, 64, "pages");
    p.table = guarded(tiles * 4, 4, "page table");
    for (int64_t i = 0; i < (c->rows - 1) * q_stride + c->group * hd; i++) {
        if (i % q_stride < c->group * hd) p.q[i] = rng_normal(r) * c->amplitude;
    }
    for (int i = 0; i < c->group; i++) p.sinks[i] = c->sink ? c->sink : rng_normal(r) * 2.0f;
    float key[256], value[256];
    for (int64_t tile = 0; tile < tiles; tile++) {
        p.table[tile] = tile < first ? -1 : (int32_t)((tile - first + 1) % (tiles - first));
        if (tile < first) continue;
        uint8_t *at = p.pages + p.table[tile] * head_bytes * 2 + head_bytes;
        for (int slot = 0; slot < MX_TILE; slot++) {
            bool future = tile * MX_TILE + slot > last;
            for (int d = 0; d < hd; d++) {
                key[d] = future ? (rng_bits(r) & 1 ? 1e38f : -1e38f) : rng_normal(r) * c->amplitude;
                value[d] = future ? 1e38f : rng_normal(r);
            }
            k->kv_write(at, c->kv, c->head_dim, slot, key, value);
        }
    }
    p.call = (mx_attention){.kv = c->kv,
                            .head_dim = c->head_dim,
                            .group = c->group,
                            .rows = c->rows,
                            .position = c->position,
                            .window = c->window,
                            .q = p.q,
                            .q_stride = q_stride,
                            .sinks = p.sinks,
                            .scale = 1.0f / sqrtf((float)hd),
                            .pages = p.pages,
                            .table = p.table,
                            .page_bytes = head_bytes * 2,
                            .head_offset = head_bytes,
                            .out_stride = out_stride};
    return p;
}

static double element(const problem *p, int64_t position, int64_t d, bool value) {
    const mx_attention *a = &p->call;
    int64_t slot = position % MX_TILE, size = a->kv == MX_F32 ? 4 : 2;
    const uint8_t *tile = a->pages + p->table[position / MX_TILE] * a->page_bytes + a->head_offset;
    int64_t index = value ? (int64_t)a->head_dim * MX_TILE + slot * a->head_dim + d : d * MX_TILE + slot;
    return exact_value(tile + index * size, a->kv);
}

static void check_row(const problem *p, int64_t row, int head, const float *out) {
    const mx_attention *a = &p->call;
    const float *q = a->q + row * a->q_stride + (int64_t)head * a->head_dim;
    int64_t last = a->position + row, first = a->window && last >= a->window ? last - a->window + 1 : 0;
    double *s = malloc((size_t)(last - first + 1) * sizeof *s), m = a->sinks[head], l = 0.0, error = 0.0;
    assert_non_null(s);
    for (int64_t j = first; j <= last; j++) {
        double sum = 0.0, scale = 0.0;
        for (int d = 0; d < a->head_dim; d++) {
            double product = q[d] * element(p, j, d, false);
            sum += product;
            scale += fabs(product);
        }
        s[j - first] = sum * a->scale;
        m = fmax(m, s[j - first]);
        error = fmax(error, scale * a->scale);
    }
    for (int64_t j = first; j <= last; j++) l += exp(s[j - first] - m);
    l += exp(a->sinks[head] - m);
    for (int d = 0; d < a->head_dim; d++) {
        double expected = 0.0, scale = 0.0;
        for (int64_t j = first; j <= last; j++) {
            double term = exp(s[j - first] - m) / l * element(p, j, d, true);
            expected += term;
            scale += fabs(term);
        }
        /* a logit off by `error` ulp moves each weight by as much; then the sums */
        check_close(out[d], expected, scale * (4e-7 * error + 2e-6) + 1e-30, "row %lld head %d [%d]", (long long)row,
                    head, d);
    }
    free(s);
}

static void poison(float *scratch, int64_t n) {
    memset(scratch, 0xff, (size_t)n * sizeof *scratch);
}

/* The same rows as out [rows, out_stride], by segments in any order, bit for bit. */
static void check_segments(rng *r, const mx_kernels *k, mx_attention whole, const float *out) {
    int64_t first = whole.window && whole.position >= whole.window ? whole.position - whole.window + 1 : 0;
    int64_t size = mx_attention_part(whole.head_dim, whole.group), heads = (int64_t)whole.group * whole.head_dim;
    for (int64_t row = 0, n; row < whole.rows; row += n) {
        n = 1 + rng_below(r, whole.rows - row);
        mx_attention a = whole;
        a.rows = n;
        a.position += row;
        a.q += row * a.q_stride;
        a.first_segment = first / MX_SEGMENT;
        a.segments = (a.position + n - 1) / MX_SEGMENT - a.first_segment + 1;
        int mark = case_mark();
        a.parts = guarded_floats(n * a.segments * size, "parts");
        a.out = guarded_floats((n - 1) * a.out_stride + heads, "out of parts");
        int64_t begin = rng_below(r, a.segments);
        for (int64_t s = 0; s < a.segments; s++) {
            poison(a.scratch, k->attention_scratch(a.head_dim, a.group));
            k->attention_segment(&a, a.first_segment + (begin + s) % a.segments);
        }
        poison(a.scratch, k->attention_scratch(a.head_dim, a.group));
        k->attention_join(&a);
        for (int64_t i = 0; i < n; i++) {
            assert_memory_equal(a.out + i * a.out_stride, out + (row + i) * a.out_stride, (size_t)heads * sizeof *out);
        }
        case_release(mark);
    }
}

/* The same rows in groups of any size, bit for bit; and nothing written between the rows. */
static void check_pieces(rng *r, const mx_kernels *k, const mx_attention *whole, const float *out) {
    int64_t heads = (int64_t)whole->group * whole->head_dim, stride = whole->out_stride;
    for (int64_t i = 0, n; i < whole->rows; i += n) {
        int mark = case_mark();
        n = 1 + (rng_below(r, 2) ? rng_below(r, whole->rows - i) : 0);
        mx_attention part = *whole;
        part.rows = n;
        part.position += i;
        part.q += i * part.q_stride;
        part.out = guarded_floats((n - 1) * stride + heads, "out of a few rows");
        poison(part.scratch, k->attention_scratch(part.head_dim, part.group));
        k->attention(&part);
        for (int64_t row = 0; row < n; row++) {
            if (memcmp(part.out + row * stride, out + (i + row) * stride, (size_t)heads * sizeof *out) != 0) {
                fail_msg("%s: row %lld has other bits among %lld rows", case_name(), (long long)(i + row),
                         (long long)n);
            }
            for (int64_t gap = heads; gap < stride && row < n - 1; gap++) {
                assert_true(isnan(part.out[row * stride + gap]));
            }
        }
        case_release(mark);
    }
}

static void run_case(rng *r, const test_case *c) {
    const mx_kernels *tiers[MAX_TIERS];
    int count = tiers_here(tiers);
    for (int tier = 0; tier < count; tier++) {
        const mx_kernels *k = tiers[tier];
        case_begin("%s kv %d, head_dim %d, group %d, %lld rows from %lld, window %lld", k->name, (int)c->kv,
                   c->head_dim, c->group, (long long)c->rows, (long long)c->position, (long long)c->window);
        problem p = problem_make(r, k, c);
        int64_t stride = p.call.out_stride;
        float *out = guarded_floats((c->rows - 1) * stride + (int64_t)c->group * c->head_dim, "out");
        p.call.scratch = guarded_floats(k->attention_scratch(c->head_dim, c->group), "scratch");
        p.call.out = out;
        k->attention(&p.call);
        for (int64_t i = 0; i < c->rows; i++) {
            bool sampled = c->rows < 8 || i % 9 == 0 || i == c->rows - 1;
            for (int g = 0; g < c->group && sampled; g++) {
                check_row(&p, i, g, out + i * stride + (int64_t)g * c->head_dim);
            }
        }
        check_pieces(r, k, &p.call, out);
        check_segments(r, k, p.call, out);
        case_end();
    }
}

static void test_edges(void **state) {
    (void)state;
    static const int64_t positions[] = {0, 1, 62, 63, 64, 65, 127, 128, 129, 200};
    static const int64_t windows[] = {0, 8, 16, 100, 128};
    static const mx_format formats[] = {MX_F32, MX_F16, MX_BF16};
    rng r = rng_seeded(11);
    for (int p = 0; p < 10; p++) {
        for (int w = 0; w < 5; w++) {
            for (int64_t rows = 1; rows <= 3; rows += 2) {
                run_case(&r, &(test_case){formats[(p + w) % 3], 64, 8, rows, positions[p], windows[w], 1.0f, 0.0f});
            }
        }
    }
}

static void test_shapes(void **state) {
    (void)state;
    static const int head_dims[] = {32, 64, 128, 2, 6, 10, 18, 48, 80, 96, 130, 256};
    static const int groups[] = {1, 2, 3, 8, 16};
    static const int64_t windows[] = {0, 0, 1, 5, 8, 64, 77, 128, 130};
    static const mx_format formats[] = {MX_F32, MX_F16, MX_BF16};
    rng r = rng_seeded(12);
    for (int i = 0; i < (settings.longer ? 300 : 60); i++) {
        run_case(&r, &(test_case){formats[i % 3], head_dims[i % 12], groups[rng_below(&r, 5)], 1 + rng_below(&r, 70),
                                  rng_below(&r, 2) ? rng_below(&r, 300) : 0, windows[rng_below(&r, 9)],
                                  rng_below(&r, 4) ? 1.0f : 6.0f, 0.0f});
    }
}

static void test_long(void **state) {
    (void)state;
    rng r = rng_seeded(13);
    run_case(&r, &(test_case){MX_F16, 64, 8, 1, 4099, 0, 1.0f, 0.0f});
    run_case(&r, &(test_case){MX_BF16, 64, 8, 5, 3000, 128, 1.0f, 0.0f});
    run_case(&r, &(test_case){MX_F16, 64, 2, 200, 0, 0, 1.0f, 0.0f});
}

/* Rows and windows on both sides of a segment's border. */
static void test_segments(void **state) {
    (void)state;
    static const int64_t positions[] = {MX_SEGMENT - 70, MX_SEGMENT - 2, MX_SEGMENT - 1, MX_SEGMENT,
                                        2 * MX_SEGMENT - 3};
    static const int64_t windows[] = {0, 1, 2, 128, MX_SEGMENT, MX_SEGMENT + 100};
    static const mx_format formats[] = {MX_F32, MX_F16, MX_BF16};
    static const int groups[] = {8, 1, 3};
    rng r = rng_seeded(14);
    for (int i = 0; i < (settings.longer ? 120 : 30); i++) {
        run_case(&r, &(test_case){formats[i % 3], 32, groups[i % 3], 1 + rng_below(&r, 140), positions[i % 5],
                                  windows[i % 6], rng_below(&r, 4) ? 1.0f : 6.0f, 0.0f});
    }
}

/* Sinks far above and below every score, and none at all. */
static void test_sinks(void **state) {
    (void)state;
    static const float sinks[] = {-INFINITY, -1e38f, -200.0f, -90.0f, 90.0f, 3e4f};
    rng r = rng_seeded(15);
    for (int i = 0; i < 24; i++) {
        run_case(&r, &(test_case){.kv = MX_F16,
                                  .head_dim = 64,
                                  .group = i % 2 ? 8 : 3,
                                  .rows = 20,
                                  .position = i % 4 < 2 ? 0 : MX_SEGMENT - 10,
                                  .window = i % 8 < 4 ? 0 : 5,
                                  .amplitude = 1.0f,
                                  .sink = sinks[i % 6]});
    }
}

/* Large keys saturate in F16 and large values stay what they are: no infinity comes of it. */
static void test_saturation(void **state) {
    (void)state;
    const mx_kernels *tiers[MAX_TIERS];
    int count = tiers_here(tiers);
    for (int tier = 0; tier < count; tier++) {
        const mx_kernels *k = tiers[tier];
        const int64_t bytes = 2 * 32 * MX_TILE * 2;
        case_begin("%s saturation", k->name);
        uint16_t *tile = guarded(bytes, 64, "page");
        float *key = guarded_floats(32, "k"), *value = guarded_floats(32, "v"), *q = guarded_floats(32, "q");
        float *out = guarded_floats(32, "out"), sink = 0.0f;
        memset(tile, 0, (size_t)bytes);
        for (int d = 0; d < 32; d++) {
            key[d] = d % 2 ? 1e6f : -1e6f;
            value[d] = d == 3 ? -1e6f : 65504.0f;
            q[d] = d == 1 ? 1.0f : 0.0f;
        }
        k->kv_write((uint8_t *)tile, MX_F16, 32, 0, key, value);
        assert_int_equal(tile[MX_TILE], 0x7bff);
        assert_int_equal(tile[0], 0xfbff);
        float *scratch = guarded_floats(k->attention_scratch(32, 1), "scratch");
        int32_t table[1] = {0};
        mx_attention a = {.kv = MX_F16,
                          .head_dim = 32,
                          .group = 1,
                          .rows = 1,
                          .q = q,
                          .q_stride = 32,
                          .sinks = &sink,
                          .scale = 1.0f,
                          .pages = (uint8_t *)tile,
                          .table = table,
                          .page_bytes = bytes,
                          .out = out,
                          .out_stride = 32,
                          .scratch = scratch};
        k->attention(&a);
        for (int d = 0; d < 32; d++) check_close(out[d], d == 3 ? -65504.0 : 65504.0, 0.0, "[%d]", d);
        case_end();
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_edges),    cmocka_unit_test(test_shapes), cmocka_unit_test(test_long),
    cmocka_unit_test(test_segments), cmocka_unit_test(test_sinks),  cmocka_unit_test(test_saturation),
};

const test_group attention_group = {"attention", tests, sizeof tests / sizeof *tests, NULL};
