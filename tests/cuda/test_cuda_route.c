/* Routing: the choice against scalar C, the sort against counting one expert after the other. */
#include "device_memory.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const mx_kernels *scalar;

static int setup(void **state) {
    (void)state;
    CHECK(mx_kernels_get("scalar", &scalar, &error_));
    return 0;
}

typedef enum logits_kind {
    ORDINARY,
    EQUAL,      /* all of them */
    FEW_VALUES, /* of which many are the same; both zeros among them */
    INFINITE,   /* mostly -inf */
    NANS,       /* some; in some rows all */
    ONE_EXPERT, /* that every row wants first */
    KINDS
} logits_kind;

typedef struct routing {
    int rows, experts, top_k, tile_rows;
    logits_kind kind;
    int holes; /* every so many-th row; 0: none */
} routing;

/* What comes back, or what is expected. */
typedef struct result {
    int32_t *expert, *slot_row, *row_slot;
    float *weight, *slot_weight;
    mx_cuda_tile *tile;
    int32_t tiles;
} result;

static void *room(size_t count, size_t size) {
    void *p = calloc(count + 1, size);
    assert_non_null(p);
    memset(p, 0xff, count * size);
    return p;
}

static result new_result(const routing *c) {
    const size_t pairs = (size_t)(c->rows * c->top_k);
    const size_t tiles = (size_t)mx_cuda_most_tiles(c->rows, c->top_k, c->experts, c->tile_rows);
    return (result){room(pairs, 4),
                    room(pairs, 4),
                    room(pairs, 4), //
                    room(pairs, 4),
                    room(pairs, 4),
                    room(tiles, sizeof(mx_cuda_tile)),
                    -1};
}

static void free_result(result *r) {
    free(r->expert);
    free(r->slot_row);
    free(r->row_slot);
    free(r->weight);
    free(r->slot_weight);
    free(r->tile);
}

static float random_logit(rng *r, logits_kind kind, int row, int expert) {
    static const float few[] = {-1.5f, -0.0f, 0.0f, 0.25f};
    const bool often = rng_below(r, 4) != 0;
    switch (kind) {
    case EQUAL:
        return 0.5f;
    case FEW_VALUES:
        return few[rng_below(r, 4)];
    case INFINITE:
        return often ? -INFINITY : rng_normal(r);
    case NANS:
        return row % 5 == 0 || !often ? (often ? NAN : -NAN) : rng_normal(r);
    case ONE_EXPERT:
        return expert == 2 ? 50.0f : rng_normal(r);
    default:
        return 3 * rng_normal(r);
    }
}

static bool is_hole(const routing *c, int row) {
    return c->holes && row % c->holes == c->holes - 1;
}

static result expected_of(const routing *c, const float *logits) {
    result e = new_result(c);
    int *filled = calloc((size_t)c->rows, sizeof *filled), slots = 0;
    assert_non_null(filled);
    for (int row = 0; row < c->rows; row++) {
        const int at = row * c->top_k;
        if (!is_hole(c, row))
            scalar->router_topk(logits + (int64_t)row * c->experts, c->experts, c->top_k, e.expert + at, e.weight + at);
    }
    e.tiles = 0;
    for (int expert = 0; expert < c->experts; expert++) {
        const int first = slots;
        for (int pair = 0; pair < c->rows * c->top_k; pair++) {
            const int row = pair / c->top_k;
            if (is_hole(c, row) || e.expert[pair] != expert) continue;
            e.slot_row[slots] = row;
            e.slot_weight[slots] = e.weight[pair];
            e.row_slot[row * c->top_k + filled[row]++] = slots++;
        }
        for (int at = first; at < slots; at += c->tile_rows) {
            const int left = slots - at;
            e.tile[e.tiles++] = (mx_cuda_tile){expert, at, left < c->tile_rows ? left : c->tile_rows};
        }
    }
    assert_true(e.tiles <= mx_cuda_most_tiles(c->rows, c->top_k, c->experts, c->tile_rows));
    free(filled);
    return e;
}

static result run(const routing *c, const float *logits) {
    const size_t pairs = (size_t)(c->rows * c->top_k) * 4;
    const size_t tiles = (size_t)mx_cuda_most_tiles(c->rows, c->top_k, c->experts, c->tile_rows) * sizeof(mx_cuda_tile);
    int32_t *position = calloc((size_t)c->rows, sizeof *position);
    assert_non_null(position);
    for (int row = 0; row < c->rows; row++) position[row] = is_hole(c, row) ? -1 : row;
    int32_t *stale = calloc((size_t)(c->rows * c->top_k), 4); /* what an earlier step left in holes: an expert */
    assert_non_null(stale);
    device d = device_open();
    mx_cuda_route k = {.logits = on_device(&d, logits, (size_t)(c->rows * c->experts) * 4),
                       .position = on_device(&d, position, (size_t)c->rows * 4),
                       .rows = c->rows,
                       .experts = c->experts,
                       .top_k = c->top_k,
                       .expert = on_device(&d, stale, pairs),
                       .weight = on_device(&d, NULL, pairs),
                       .slot_row = on_device(&d, NULL, pairs),
                       .slot_weight = on_device(&d, NULL, pairs),
                       .row_slot = on_device(&d, NULL, pairs),
                       .tile_rows = c->tile_rows,
                       .tile = on_device(&d, NULL, tiles),
                       .tiles = on_device(&d, NULL, 4)};
    mx_cuda_route_rows(&k, d.stream);
    result r = new_result(c);
    from_device(&d, r.expert, k.expert, pairs);
    from_device(&d, r.weight, k.weight, pairs);
    from_device(&d, r.slot_row, k.slot_row, pairs);
    from_device(&d, r.slot_weight, k.slot_weight, pairs);
    from_device(&d, r.row_slot, k.row_slot, pairs);
    from_device(&d, r.tile, k.tile, tiles);
    from_device(&d, &r.tiles, k.tiles, 4);
    device_close(&d);
    free(position);
    free(stale);
    for (int pair = 0; pair < c->rows * c->top_k; pair++) {
        if (!is_hole(c, pair / c->top_k)) continue;
        assert_int_equal(r.expert[pair], 0);
        r.expert[pair] = -1;
    }
    return r;
}

static void check_same(const int32_t *found, const int32_t *expected, int count, const char *what, const char *where) {
    for (int i = 0; i < count; i++)
        if (found[i] != expected[i]) fail_msg("%s: %s %d is %d, expected %d", where, what, i, found[i], expected[i]);
}

/* The weights of rows that are no holes: as scalar C has them but for the order of the sum, and slots have their bits.
 */
static void check_weights(const routing *c, const result *found, const result *expected, const char *where) {
    for (int pair = 0; pair < c->rows * c->top_k; pair++) {
        const float a = found->weight[pair], b = expected->weight[pair];
        if (is_hole(c, pair / c->top_k) || (isnan(a) && isnan(b))) continue;
        if (!(fabsf(a - b) <= 1e-6f * b))
            fail_msg("%s: weight %d is %g, expected %g", where, pair, (double)a, (double)b);
    }
    for (int row = 0; row < c->rows; row++) {
        for (int i = 0; i < c->top_k && !is_hole(c, row); i++) {
            const int slot = expected->row_slot[row * c->top_k + i];
            bool same = false;
            for (int j = row * c->top_k; j < (row + 1) * c->top_k; j++)
                same = same || !memcmp(&found->slot_weight[slot], &found->weight[j], 4);
            if (!same) fail_msg("%s: slot %d has not its row's weight", where, slot);
        }
    }
}

static bool same_bits(const routing *c, const result *a, const result *b) {
    const size_t pairs = (size_t)(c->rows * c->top_k) * 4;
    return !memcmp(a->expert, b->expert, pairs) && !memcmp(a->weight, b->weight, pairs) &&
           !memcmp(a->slot_row, b->slot_row, pairs) && !memcmp(a->slot_weight, b->slot_weight, pairs) &&
           !memcmp(a->row_slot, b->row_slot, pairs) && a->tiles == b->tiles &&
           !memcmp(a->tile, b->tile, (size_t)a->tiles * sizeof *a->tile);
}

static void check(routing c) {
    char where[160];
    snprintf(where, sizeof where, "rows %d, experts %d, top_k %d, tile_rows %d, kind %d, holes %d", c.rows, c.experts,
             c.top_k, c.tile_rows, c.kind, c.holes);
    rng r = rng_seeded((uint64_t)(c.rows * 1000 + c.experts));
    float *logits = calloc((size_t)(c.rows * c.experts), sizeof *logits);
    assert_non_null(logits);
    for (int i = 0; i < c.rows * c.experts; i++) logits[i] = random_logit(&r, c.kind, i / c.experts, i % c.experts);
    result expected = expected_of(&c, logits), found[MX_EMULATION_ORDERS];
    for (int order = 0; order < MX_EMULATION_ORDERS; order++) {
        mx_emulation_set_order((mx_emulation_order)order);
        found[order] = run(&c, logits);
        if (order && !same_bits(&c, &found[0], &found[order])) fail_msg("%s: order %d has other bits", where, order);
    }
    const int pairs = c.rows * c.top_k;
    int slots = 0;
    for (int row = 0; row < c.rows; row++) slots += is_hole(&c, row) ? 0 : c.top_k;
    check_same(found[0].expert, expected.expert, pairs, "expert", where);
    check_same(found[0].slot_row, expected.slot_row, slots, "the row of slot", where);
    check_same(found[0].row_slot, expected.row_slot, pairs, "the slot of pair", where);
    check_weights(&c, &found[0], &expected, where);
    check_same(&found[0].tiles, &expected.tiles, 1, "tiles", where);
    check_same((int32_t *)found[0].tile, (int32_t *)expected.tile, 3 * expected.tiles, "of tiles, number", where);
    for (int order = 0; order < MX_EMULATION_ORDERS; order++) free_result(&found[order]);
    free_result(&expected);
    free(logits);
}

/* Of one launch and of two, of each number of experts that a lane may hold, of warps with a row and with many. */
static void test_shapes(void **state) {
    (void)state;
    static const routing shapes[] = {
        {.rows = 1, .experts = 32, .top_k = 4, .tile_rows = 8},
        {.rows = 1, .experts = 128, .top_k = 4, .tile_rows = 8},
        {.rows = 1, .experts = 1, .top_k = 1, .tile_rows = 8},
        {.rows = 2, .experts = 4, .top_k = 1, .tile_rows = 8},
        {.rows = 7, .experts = 8, .top_k = 8, .tile_rows = 16},
        {.rows = 33, .experts = 16, .top_k = 4, .tile_rows = 16, .holes = 3},
        {.rows = 64, .experts = 128, .top_k = 4, .tile_rows = 8},
        {.rows = 64, .experts = 33, .top_k = 32, .tile_rows = 32, .holes = 7},
        {.rows = 65, .experts = 128, .top_k = 4, .tile_rows = 64},
        {.rows = 100, .experts = 4, .top_k = 1, .tile_rows = 64, .holes = 2},
        {.rows = 5, .experts = 129, .top_k = 3, .tile_rows = 8},
        {.rows = 20, .experts = 1024, .top_k = 32, .tile_rows = 8, .holes = 4},
        {.rows = 1024, .experts = 128, .top_k = 4, .tile_rows = 128},
        {.rows = 300, .experts = 32, .top_k = 4, .tile_rows = 32, .holes = 5},
        {.rows = 40, .experts = 8, .top_k = 4, .tile_rows = 8, .holes = 1},
        {.rows = 70, .experts = 8, .top_k = 4, .tile_rows = 8, .holes = 1},
    };
    for (int i = 0; i < (int)(sizeof shapes / sizeof *shapes); i++) check(shapes[i]);
}

static void test_extremes(void **state) {
    (void)state;
    for (logits_kind kind = EQUAL; kind < KINDS; kind++) {
        check((routing){.rows = 9, .experts = 32, .top_k = 4, .tile_rows = 8, .kind = kind});
        check((routing){.rows = 90, .experts = 128, .top_k = 4, .tile_rows = 16, .kind = kind, .holes = 9});
        check((routing){.rows = 6, .experts = 200, .top_k = 10, .tile_rows = 8, .kind = kind});
        check((routing){.rows = 3, .experts = 5, .top_k = 5, .tile_rows = 8, .kind = kind});
    }
    check((routing){.rows = 600, .experts = 4, .top_k = 1, .tile_rows = 8, .kind = ONE_EXPERT});
}

/* A row's choice is the same alone, among others, and in the kernel for many rows. */
static void test_batch_invariance(void **state) {
    (void)state;
    enum { ROWS = 80, EXPERTS = 128, TOP_K = 4 };
    static float logits[ROWS * EXPERTS];
    rng r = rng_seeded(5);
    for (int i = 0; i < ROWS * EXPERTS; i++) logits[i] = rng_normal(&r);
    mx_emulation_set_order(MX_EMULATION_UP);
    const routing all = {.rows = ROWS, .experts = EXPERTS, .top_k = TOP_K, .tile_rows = 16};
    result many = run(&all, logits);
    for (int rows = 1; rows <= 40; rows += 39) {
        const routing some = {.rows = rows, .experts = EXPERTS, .top_k = TOP_K, .tile_rows = 8};
        result few = run(&some, logits + 17 * EXPERTS);
        assert_memory_equal(few.expert, many.expert + 17 * TOP_K, (size_t)rows * TOP_K * 4);
        assert_memory_equal(few.weight, many.weight + 17 * TOP_K, (size_t)rows * TOP_K * 4);
        free_result(&few);
    }
    free_result(&many);
}

static void test_most_tiles(void **state) {
    (void)state;
    assert_int_equal(mx_cuda_most_tiles(1, 4, 128, 8), 4);
    assert_int_equal(mx_cuda_most_tiles(64, 4, 32, 8), 64);
    assert_int_equal(mx_cuda_most_tiles(8192, 4, 128, 128), 384);
    assert_int_equal(mx_cuda_most_tiles(0, 4, 128, 8), 0);
}

int main(void) {
    if (no_device()) return SKIPPED;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shapes), cmocka_unit_test(test_extremes),
                                       cmocka_unit_test(test_batch_invariance), cmocka_unit_test(test_most_tiles)};
    return cmocka_run_group_tests(tests, setup, NULL);
}
