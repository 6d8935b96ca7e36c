/* Pages, cached prefixes and sequences: what is resumed, what is shared and what goes first. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kv_check.h"
#include "model/sampler.h"

enum { BOUNDARY = 60 };

static void fill(int32_t *tokens, int64_t begin, int64_t end, uint64_t seed) {
    for (int64_t i = begin; i < end; i++) tokens[i] = (int32_t)(mx_sample_uniform(seed, i) * BOUNDARY);
}

static void test_goes_on_at_first_difference(void **state) {
    (void)state;
    static const struct {
        const char *pattern;
        int window;
    } models[] = {{"sf", 20}, {"fs", 64}, {"fsf", 65}, {"ff", 1}, {"ss", 100}, {"sf", 1}, {"sfsf", 128}, {"sf", 5000}};
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        kv_fixture f;
        kv_set_up(&f, models[m].pattern, models[m].window, 400, -1);
        int32_t tokens[KV_MOST], other[KV_MOST];
        fill(tokens, 0, 700, 1);
        assert_int_equal(kv_talk(&f, tokens, 700), 0);
        assert_int_equal(kv_talk(&f, tokens, 700), 699);
        assert_int_equal(kv_talk(&f, tokens, 300), 299);
        static const int places[] = {640, 639, 641, 64, 63, 65, 1, 500};
        for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
            memcpy(other, tokens, sizeof other);
            fill(other, places[i], 700, 2 + i);
            other[places[i]] = (tokens[places[i]] + 1) % BOUNDARY;
            assert_int_equal(mx_kv_cached_tokens(f.kv, other, 700), places[i]);
            assert_int_equal(kv_talk(&f, other, 700), places[i]);
        }
        fill(tokens, 700, KV_MOST, 9);
        assert_int_equal(kv_talk(&f, tokens, 900), 700);
        other[0] = (tokens[0] + 1) % BOUNDARY;
        assert_int_equal(kv_talk(&f, other, 100), 0);
        kv_tear_down(&f);
    }
}

/* Answers to one prompt: the prompt's pages are there once. */
static void test_samples_share_prompt(void **state) {
    (void)state;
    kv_fixture f;
    kv_set_up(&f, "ffs", 30, 200, -1);
    enum { SAMPLES = 4, PROMPT = 400 };
    mx_sequence s[SAMPLES], *all[SAMPLES];
    int32_t tokens[SAMPLES][KV_MOST];
    for (int i = 0; i < SAMPLES; i++) {
        fill(tokens[i], 0, PROMPT, 1);
        fill(tokens[i], PROMPT, KV_MOST, (uint64_t)i);
        all[i] = &s[i];
        assert_int_equal(mx_sequence_init(&s[i], f.kv, KV_MOST, NULL), MX_OK);
        assert_int_equal(mx_sequence_resume(&s[i], tokens[i], PROMPT - 1), i ? PROMPT - 1 : 0);
        kv_grow(&f, &s[i], tokens[i], PROMPT, 90);
        mx_sequence_mark(&s[i], tokens[i]);
        kv_check_structure(&f, all, i + 1);
    }
    /* 7 tiles of 2 layers, of which all but the first have the last one of their own; and sliding pages */
    const int64_t used = f.kv->pool.pages - mx_kv_pages_free(f.kv);
    assert_in_range(used, 7 * 2 + (SAMPLES - 1) * 3, 7 * 3 + (SAMPLES - 1) * 3);
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < SAMPLES; i++) kv_grow(&f, &s[i], tokens[i], s[i].count + 33, 90);
        for (int i = 0; i < SAMPLES; i++) kv_check_content(&f, &s[i], tokens[i]);
        kv_check_structure(&f, all, SAMPLES);
    }
    for (int i = 0; i < SAMPLES; i++) {
        mx_sequence_end(&s[i], tokens[i], true);
        assert_int_equal(mx_kv_cached_tokens(f.kv, tokens[i], KV_MOST), PROMPT + 5 * 33);
        mx_sequence_free(&s[i]);
    }
    kv_tear_down(&f);
}

/* Two that compute the same at the same time end up on the same pages. */
static void test_equal_tiles_become_one(void **state) {
    (void)state;
    kv_fixture f;
    kv_set_up(&f, "fs", 100, 100, -1);
    int32_t tokens[KV_MOST];
    fill(tokens, 0, KV_MOST, 1);
    mx_sequence a, b, *both[] = {&a, &b};
    mx_sequence_init(&a, f.kv, KV_MOST, NULL);
    mx_sequence_init(&b, f.kv, KV_MOST, NULL);
    for (int64_t n = 50; n <= 700; n += 50) {
        kv_grow(&f, &a, tokens, n, 50);
        if (n == 150) mx_sequence_mark(&a, tokens);
        kv_grow(&f, &b, tokens, n + 64 < 700 ? n + 64 : 700, 25); /* before the other */
        kv_check_structure(&f, both, 2);
        for (int64_t t = 0; t < n / MX_TILE; t++) {
            assert_int_equal(a.table[t], b.table[t]);
            if (t >= b.first_tile) assert_int_equal(a.table[a.stride + t], b.table[b.stride + t]);
        }
    }
    const mx_kv_node *node = &f.kv->tree.node[f.kv->pool.node[a.table[2]] - 1];
    assert_int_equal(node->marks, (uint64_t)1 << (150 - 2 * MX_TILE - 1)); /* it stays where the tile is another's */
    kv_check_content(&f, &a, tokens);
    kv_check_content(&f, &b, tokens);
    mx_sequence_end(&a, tokens, true);
    mx_sequence_end(&b, tokens, true);
    assert_int_equal(mx_kv_pages_cached(f.kv), 2 * 11);
    mx_sequence_free(&a);
    mx_sequence_free(&b);
    kv_tear_down(&f);
}

/* What is gone on with at its end is not copied. */
static void test_turns_copy_nothing(void **state) {
    (void)state;
    kv_fixture f;
    kv_set_up(&f, "fs", 40, 100, -1);
    int32_t tokens[KV_MOST];
    fill(tokens, 0, KV_MOST, 1);
    for (int64_t n = 30; n < KV_MOST; n += 30) {
        assert_int_equal(kv_talk(&f, tokens, n), n - 30);
        const int64_t tiles = (n + MX_TILE - 1) / MX_TILE;
        assert_int_equal(mx_kv_pages_cached(f.kv), 2 * tiles);
    }
    kv_tear_down(&f);
}

/* The order in which things go: plain sliding pages; then leaves and windows before marks, by age. */
static void test_what_goes_first(void **state) {
    (void)state;
    kv_fixture f;
    kv_set_up(&f, "fs", 65, 100, BOUNDARY);
    int32_t old[KV_MOST], young[KV_MOST];
    fill(old, 0, KV_MOST, 1);
    fill(young, 0, KV_MOST, 2);
    old[319] = BOUNDARY; /* position 320 is marked: it needs tile 4, and 3 for its last row again */
    kv_talk(&f, old, 640);
    kv_talk(&f, young, 640);
    assert_int_equal(mx_kv_pages_cached(f.kv), 40);
    assert_int_equal(mx_kv_cached_tokens(f.kv, old, 200), 200);

    /* sliding: old needs tiles 3, 4, 8, 9 for its marks, young 8 and 9: 14 are plain, old's are older */
    assert_true(mx_prefix_make_room(&f.kv->tree, 60 + 6));
    assert_int_equal(mx_kv_cached_tokens(f.kv, old, 200), 0);
    assert_int_equal(mx_kv_cached_tokens(f.kv, old, 320), 320);
    assert_int_equal(mx_kv_cached_tokens(f.kv, young, 200), 200);
    assert_true(mx_prefix_make_room(&f.kv->tree, 60 + 14));
    assert_int_equal(mx_kv_cached_tokens(f.kv, young, 200), 0);
    assert_int_equal(mx_kv_cached_tokens(f.kv, old, 320), 320);
    assert_int_equal(mx_kv_cached_tokens(f.kv, old, 319), 319);
    assert_int_equal(mx_kv_cached_tokens(f.kv, old, 640), 640);

    /* the window in the middle is older than the end */
    assert_true(mx_prefix_make_room(&f.kv->tree, 60 + 16));
    assert_int_equal(mx_kv_cached_tokens(f.kv, old, 320), 0);
    assert_int_equal(mx_kv_cached_tokens(f.kv, old, 640), 640);

    /* then all of the old one, from its end */
    assert_true(mx_prefix_make_room(&f.kv->tree, 60 + 18));
    assert_int_equal(mx_kv_cached_tokens(f.kv, old, 640), 0);
    assert_true(mx_prefix_make_room(&f.kv->tree, 60 + 28));
    assert_int_equal(mx_kv_cached_tokens(f.kv, young, 640), 640);
    assert_int_equal(mx_kv_pages_cached(f.kv), 12);
    assert_true(mx_prefix_make_room(&f.kv->tree, 100));
    assert_false(mx_prefix_make_room(&f.kv->tree, 101));
    kv_tear_down(&f);
}

/* A place where a prompt was resumed is one where the next will be. */
static void test_resumed_place_is_kept(void **state) {
    (void)state;
    kv_fixture f;
    kv_set_up(&f, "fs", 65, 100, -1);
    int32_t a[KV_MOST], b[KV_MOST];
    fill(a, 0, KV_MOST, 1);
    memcpy(b, a, sizeof b);
    fill(b, 300, KV_MOST, 2);
    b[300] = (a[300] + 1) % BOUNDARY;
    kv_talk(&f, a, 640);
    assert_int_equal(kv_talk(&f, b, 640), 300);
    const int64_t plain = 10 - 5 + 10 - 6; /* of a: tiles 3, 4, 8, 9 are near, of b: 8, 9 */
    assert_true(mx_prefix_make_room(&f.kv->tree, mx_kv_pages_free(f.kv) + plain));
    b[310] = (b[310] + 1) % BOUNDARY;
    assert_int_equal(mx_kv_cached_tokens(f.kv, b, 300), 300);
    kv_tear_down(&f);
}

/* A prompt that ends where an older one went on, and whose sliding pages went: all of it can be resumed. */
static void test_end_in_a_tile_without_window(void **state) {
    (void)state;
    kv_fixture f;
    kv_set_up(&f, "fs", 65, 100, -1);
    int32_t tokens[KV_MOST];
    fill(tokens, 0, KV_MOST, 1);
    kv_talk(&f, tokens, 640);
    assert_true(mx_prefix_make_room(&f.kv->tree, mx_kv_pages_free(f.kv) + 7)); /* all but the last windows */
    assert_int_equal(mx_kv_cached_tokens(f.kv, tokens, 400), 0);
    mx_sequence s[2], *both[] = {&s[0], &s[1]};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(mx_sequence_init(&s[i], f.kv, KV_MOST, NULL), MX_OK);
        assert_int_equal(mx_sequence_resume(&s[i], tokens, 299), i ? 299 : 0);
        kv_grow(&f, &s[i], tokens, 300, 100);
        mx_sequence_mark(&s[i], tokens);
        kv_check_structure(&f, both, i + 1);
        assert_int_equal(mx_kv_cached_tokens(f.kv, tokens, 400), 300);
    }
    kv_grow(&f, &s[0], tokens, 320, 100); /* the whole tile is there, and gets its window back */
    kv_check_structure(&f, both, 2);
    assert_int_equal(mx_kv_cached_tokens(f.kv, tokens, 400), 320);
    kv_grow(&f, &s[0], tokens, 350, 100);
    for (int i = 0; i < 2; i++) kv_check_content(&f, &s[i], tokens);
    for (int i = 0; i < 2; i++) mx_sequence_end(&s[i], tokens, true);
    assert_int_equal(mx_kv_cached_tokens(f.kv, tokens, 400), 350);
    for (int i = 0; i < 2; i++) mx_sequence_free(&s[i]);
    kv_tear_down(&f);
}

/* Running sequences keep theirs; what cannot be had changes nothing. */
static void test_running_are_safe(void **state) {
    (void)state;
    kv_fixture f;
    kv_set_up(&f, "fs", 64, 24, -1);
    int32_t a[KV_MOST], b[KV_MOST];
    fill(a, 0, KV_MOST, 1);
    fill(b, 0, KV_MOST, 2);
    mx_sequence s, t, *both[] = {&s, &t};
    mx_sequence_init(&s, f.kv, KV_MOST, NULL);
    mx_sequence_init(&t, f.kv, KV_MOST, NULL);
    kv_grow(&f, &s, a, 512, 64); /* 8 full pages, of the sliding ones it wants 1 */
    assert_int_equal(mx_kv_pages_cached(f.kv), 7);
    kv_grow(&f, &t, b, 400, 64); /* 7 full pages and 2 */
    const int64_t cached = mx_kv_pages_cached(f.kv), free_pages = mx_kv_pages_free(f.kv);
    assert_false(mx_sequence_reserve(&t, 500));
    assert_int_equal(mx_kv_pages_cached(f.kv), cached);
    assert_int_equal(mx_kv_pages_free(f.kv), free_pages);
    kv_check_structure(&f, both, 2);
    kv_check_content(&f, &s, a);
    mx_sequence_end(&s, a, true);
    kv_grow(&f, &t, b, 700, 64);
    kv_check_content(&f, &t, b);
    mx_sequence_end(&t, b, false);
    mx_sequence_free(&s);
    mx_sequence_free(&t);
    kv_tear_down(&f);
}

/* A step that failed: nothing of the sequence is found again, what it had found is. */
static void test_failed_leaves_nothing(void **state) {
    (void)state;
    kv_fixture f;
    kv_set_up(&f, "fs", 64, 100, -1);
    int32_t a[KV_MOST];
    fill(a, 0, KV_MOST, 1);
    kv_talk(&f, a, 200);
    mx_sequence s;
    mx_sequence_init(&s, f.kv, KV_MOST, NULL);
    assert_int_equal(mx_sequence_resume(&s, a, 150), 150);
    kv_grow(&f, &s, a, 192, 64); /* the tile is there already */
    a[195]++;
    kv_grow(&f, &s, a, 300, 64);
    mx_sequence_mark(&s, a);
    assert_int_equal(mx_kv_cached_tokens(f.kv, a, 300), 300);
    mx_sequence_end(&s, a, false);
    assert_int_equal(mx_kv_cached_tokens(f.kv, a, 300), 195);
    mx_sequence_free(&s);
    kv_tear_down(&f);
}

/* What one sequence needs is enough for it, whatever the cache is full of. */
static void test_plan_is_enough(void **state) {
    (void)state;
    static const char *patterns[] = {"f", "s", "sf", "ssf", "ffs"};
    static const int windows[] = {1, 2, 63, 64, 65, 128, 130, 5000};
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        for (size_t w = 0; w < sizeof windows / sizeof *windows; w++) {
            for (int batch = 1; batch <= 193; batch += 64) {
                mx_config config = fake_config(patterns[i], windows[w], KV_MOST);
                kv_fixture f;
                kv_set_up(&f, patterns[i], windows[w], mx_kv_pages_needed(&config, 500, batch), 3);
                int32_t tokens[KV_MOST];
                for (int round = 0; round < 6; round++) {
                    fill(tokens, round % 3 * 100, KV_MOST, (uint64_t)round);
                    mx_sequence s, *one = &s;
                    mx_sequence_init(&s, f.kv, 500, NULL);
                    mx_sequence_resume(&s, tokens, 499);
                    kv_grow(&f, &s, tokens, 500, batch);
                    kv_check_content(&f, &s, tokens);
                    kv_check_structure(&f, &one, 1);
                    mx_sequence_end(&s, tokens, true);
                    mx_sequence_free(&s);
                }
                kv_tear_down(&f);
            }
        }
    }
}

static void test_plan(void **state) {
    (void)state;
    mx_config c = fake_config("sfsf", 128, 131072);
    mx_kv_plan plan;
    mx_error error;
    /* two full layers of 2048 tiles, two sliding ones of a window and a step */
    assert_int_equal(mx_kv_pages_needed(&c, 131072, 512), 2 * 2048 + 2 * 11);
    assert_int_equal(mx_kv_pages_needed(&c, 64, 512), 4);
    assert_int_equal(mx_kv_pages_needed(&c, 65, 512), 8);
    assert_int_equal(mx_kv_plan_make(&c, 1000, (uint64_t)1 << 60, 0, 512, &plan, &error), MX_OK);
    assert_int_equal(plan.context, 131072);
    assert_int_equal(plan.pages, INT32_MAX - 1);
    for (uint64_t pages = 4; pages < 300; pages++) { /* the most that fits: one token more does not */
        assert_int_equal(mx_kv_plan_make(&c, 1000, pages * 1000 + 999, 0, 512, &plan, &error), MX_OK);
        assert_int_equal(plan.pages, pages);
        assert_true(mx_kv_pages_needed(&c, plan.context, 512) <= (int64_t)pages);
        assert_true(mx_kv_pages_needed(&c, plan.context + 1, 512) > (int64_t)pages);
        assert_int_equal(mx_kv_plan_make(&c, 1000, pages * 1000, plan.context + 1, 512, &plan, &error), MX_NO_MEMORY);
    }
    assert_int_equal(mx_kv_plan_make(&c, 1000, 3999, 0, 512, &plan, &error), MX_NO_MEMORY);
    assert_non_null(strstr(error.text, "64 tokens"));
    assert_int_equal(mx_kv_plan_make(&c, 1000, 1 << 30, 131073, 512, &plan, &error), MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "131072"));
    assert_int_equal(mx_kv_plan_make(&c, 1000, 1 << 30, -1, 512, &plan, &error), MX_INVALID_ARGUMENT);
    c.max_positions = 40;
    assert_int_equal(mx_kv_plan_make(&c, 1000, 1 << 30, 0, 512, &plan, &error), MX_OK);
    assert_int_equal(plan.context, 40);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goes_on_at_first_difference),
        cmocka_unit_test(test_samples_share_prompt),
        cmocka_unit_test(test_equal_tiles_become_one),
        cmocka_unit_test(test_turns_copy_nothing),
        cmocka_unit_test(test_what_goes_first),
        cmocka_unit_test(test_resumed_place_is_kept),
        cmocka_unit_test(test_end_in_a_tile_without_window),
        cmocka_unit_test(test_running_are_safe),
        cmocka_unit_test(test_failed_leaves_nothing),
        cmocka_unit_test(test_plan_is_enough),
        cmocka_unit_test(test_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
