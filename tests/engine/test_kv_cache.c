/* Pages, checkpoints and resumed prefixes: every token against a model that has no pages, every reference counted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/kv_cache.h"
#include "fake_model.h"
#include "model/sampler.h"

static uint64_t random_state;
static int below(int n) {
    return (int)(mx_sample_uniform(99, (int64_t)random_state++) * n);
}

static const mx_sampling GREEDY = {.temperature = 0, .top_p = 1, .repetition_penalty = 1};

typedef struct fixture {
    mx_config config;
    fake_backend *backend;
    mx_page_pool pool;
    mx_kv_cache cache;
    int batch;
} fixture;

static void set_up(fixture *f, const char *pattern, int window, int64_t context, int batch, bool spare) {
    f->config = fake_config(pattern, window, FAKE_MOST);
    f->batch = batch;
    int64_t pages = mx_kv_pages_needed(&f->config, context, batch);
    if (spare) pages *= 4;
    f->backend = fake_backend_create(&f->config, pages);
    assert_int_equal(mx_page_pool_init(&f->pool, &f->backend->base, pages, NULL), MX_OK);
    assert_int_equal(mx_kv_cache_init(&f->cache, &f->config, &f->pool, context, NULL), MX_OK);
}

static void tear_down(fixture *f) {
    mx_kv_cache_free(&f->cache);
    assert_int_equal(f->pool.free_count, f->pool.pages); /* nothing leaked */
    mx_page_pool_free(&f->pool);
    f->backend->base.ops->destroy(&f->backend->base);
}

static void check_references(const fixture *f) {
    const mx_kv_cache *c = &f->cache;
    int32_t *seen = calloc((size_t)f->pool.pages, sizeof *seen);
    for (int64_t i = 0; i < f->config.layers * c->stride; i++)
        if (c->table[i] >= 0) seen[c->table[i]]++;
    for (int i = 0; i < c->checkpoints; i++) {
        const mx_kv_checkpoint *p = &c->checkpoint[i];
        assert_true(p->position <= c->count && (i == 0 || p[-1].position < p->position));
        int64_t n = c->sliding_layers * ((p->position + MX_TILE - 1) / MX_TILE - p->first_tile);
        for (int64_t j = 0; j < n; j++) seen[p->page[j]]++;
    }
    int64_t used = 0;
    for (int64_t i = 0; i < f->pool.pages; i++) {
        assert_int_equal(seen[i], f->pool.reference[i]);
        used += seen[i] > 0;
    }
    assert_int_equal(used, f->pool.pages - f->pool.free_count);
    for (int64_t i = 0; i < f->pool.free_count; i++) assert_int_equal(f->pool.reference[f->pool.free[i]], 0);
    free(seen);
    /* sliding layers hold no tile that the next row does not see, every layer all that it does */
    for (int l = 0; l < f->config.layers; l++) {
        int64_t first = f->config.sliding[l] ? c->count - f->config.window + 1 : 0;
        for (int64_t t = 0; t < c->stride; t++) {
            bool needed = t * MX_TILE < c->count && (t + 1) * MX_TILE > first;
            bool held = c->table[l * c->stride + t] >= 0;
            if (t * MX_TILE < c->count && needed != held)
                fail_msg("layer %d tile %d at %d: %d", l, (int)t, (int)c->count, held);
        }
    }
}

/* Rows until every known token is computed, then `answer` greedy ones. Stops early, in the middle of the prompt, when
 * answer < 0. Returns the tokens that came from the cache. */
static int64_t talk(fixture *f, const int32_t *prompt, int64_t n, int answer, int32_t *out) {
    mx_kv_cache *c = &f->cache;
    mx_row row[512];
    int64_t cached = mx_kv_cache_resume(c, prompt, n), known = n;
    check_references(f);
    while (known < n + answer || (answer < 0 && c->count < n / 2)) {
        int64_t rows = known - c->count < f->batch ? known - c->count : f->batch;
        bool last = c->count + rows == known;
        assert_true(mx_kv_cache_reserve(c, rows));
        for (int64_t i = 0; i < rows; i++)
            row[i] = (mx_row){c->tokens[c->count + i], (int32_t)(c->count + i), 0, last && i == rows - 1};
        mx_sequence_view view = {c->table, c->stride};
        mx_batch batch = {.row = row, .rows = (int)rows, .sequence = &view, .sequences = 1};
        assert_int_equal(f->backend->base.ops->step(&f->backend->base, &batch, NULL), MX_OK);
        mx_kv_cache_advance(c, rows, known > n ? MX_KV_IN_ANSWER : last ? MX_KV_PROMPT_END : MX_KV_IN_PROMPT);
        check_references(f);
        if (!last) continue;
        mx_sample_spec spec = {.top_p = 1, .repetition_penalty = 1};
        mx_sampled sampled;
        assert_int_equal(f->backend->base.ops->sample(&f->backend->base, 0, &spec, &sampled, NULL), MX_OK);
        out[known - n] = sampled.token;
        if (known < c->context) c->tokens[known] = sampled.token;
        known++;
    }
    assert_int_equal(f->backend->empty_reads, 0);
    return cached;
}

static int64_t talk_and_compare(fixture *f, const int32_t *prompt, int64_t n, int answer, int32_t *out) {
    int32_t expected[FAKE_MOST];
    int64_t cached = talk(f, prompt, n, answer, out);
    if (answer > 0) {
        fake_answer(&f->config, prompt, n, &GREEDY, expected, answer);
        assert_memory_equal(out, expected, sizeof *out * (size_t)answer);
    }
    return cached;
}

static void fill(int32_t *tokens, int64_t n) {
    for (int64_t i = 0; i < n; i++) tokens[i] = below(FAKE_VOCAB);
}

/* ---- what is resumed ----------------------------------------------------------------------------------------------
 */
static void a_turn_without_its_analysis(void **state) {
    (void)state;
    fixture f;
    int32_t prompt[2000], out[400];
    set_up(&f, "sfsf", 128, 2000, 64, true);
    fill(prompt, 2000);
    const int64_t ends[] = {130, 300, 301, 640, 1000};
    int64_t before = 0;
    for (int i = 0; i < 5; i++) {
        assert_int_equal(talk(&f, prompt, ends[i], 300, out), before); /* longer than the window */
        before = ends[i];
    }
    /* the last turn again, then an earlier one, then with everything of an answer kept (its last token is not computed)
     */
    assert_int_equal(talk(&f, prompt, 1000, 200, out), 999);
    assert_int_equal(talk(&f, prompt, 640, 150, out), 639);
    assert_int_equal(talk(&f, prompt, 301, 140, out), 300);
    memcpy(prompt + 301, out, sizeof *out * 140);
    assert_int_equal(talk(&f, prompt, 600, 1, out), 440);
    /* different from the middle on: back to a checkpoint at or before it */
    prompt[310] ^= 1;
    assert_int_equal(talk(&f, prompt, 600, 1, out), 301);
    prompt[0] ^= 1;
    assert_int_equal(talk(&f, prompt, 600, 1, out), 0);
    tear_down(&f);
}

static void long_prompts_are_resumed_inside(void **state) {
    (void)state;
    fixture f;
    int32_t prompt[4000], out[1];
    set_up(&f, "sf", 128, 4000, 512, true);
    fill(prompt, 4000);
    talk(&f, prompt, 4000, 1, out);
    for (int64_t cut = 3900; cut > 600; cut -= 700) { /* a document, then another question */
        prompt[cut] ^= 1;
        int64_t cached = talk(&f, prompt, 4000, 1, out);
        assert_true(cached <= cut && cached > cut - 512 - 128);
    }
    tear_down(&f);
}

static void checkpoints_are_bounded(void **state) {
    (void)state;
    fixture f;
    int32_t prompt[4000], out[1];
    set_up(&f, "sf", 16, 4000, 512, true);
    fill(prompt, 4000);
    for (int64_t n = 20; n < 4000; n += 20) {
        assert_int_equal(talk(&f, prompt, n, 1, out), n == 20 ? 0 : n - 20);
        assert_true(f.cache.checkpoints <= MX_KV_CHECKPOINTS);
    }
    assert_int_equal(f.cache.checkpoints, MX_KV_CHECKPOINTS);
    assert_int_equal(f.cache.checkpoint[0].position, 3980 - 63 * 20); /* the oldest went first */
    tear_down(&f);
}

static void without_spare_pages_checkpoints_give_way(void **state) {
    (void)state;
    fixture f;
    int32_t prompt[2000], out[300];
    set_up(&f, "ssf", 128, 2000, 64, false);
    fill(prompt, 2000);
    for (int64_t n = 300; n <= 1500; n += 300) talk_and_compare(&f, prompt, n, 250, out);
    talk_and_compare(&f, prompt, 1999, 1, out);
    tear_down(&f);
}

static void the_same_prompt_again(void **state) {
    (void)state;
    fixture f;
    int32_t prompt[400], out[140];
    set_up(&f, "sf", 64, 600, 64, true);
    fill(prompt, 400);
    for (int64_t n = 120; n < 330; n++) { /* wherever the window's edge falls within a page */
        mx_kv_cache_reset(&f.cache);
        talk(&f, prompt, n, 140, out);
        assert_int_equal(talk(&f, prompt, n, 140, out), n - 1);
    }
    tear_down(&f);
}

static void taken_pages_are_clear(void **state) {
    (void)state;
    mx_config config = fake_config("f", 1, 100);
    fake_backend *backend = fake_backend_create(&config, 3);
    mx_page_pool pool;
    assert_int_equal(mx_page_pool_init(&pool, &backend->base, 3, NULL), MX_OK);
    for (int round = 0; round < 2; round++) {
        for (int32_t i = 0; i < 3; i++) {
            int32_t page = mx_page_take(&pool);
            assert_in_range(page, 0, 2);
            for (int s = 0; s < MX_TILE; s++) assert_true(backend->slot[page * MX_TILE + s]++ == 0);
        }
        assert_int_equal(mx_page_take(&pool), -1);
        mx_page_retain(&pool, 1);
        mx_page_release(&pool, 1);
        assert_int_equal(mx_page_take(&pool), -1);
        for (int32_t i = 0; i < 3; i++) mx_page_release(&pool, i);
    }
    mx_page_pool_free(&pool);
    backend->base.ops->destroy(&backend->base);
}

/* ---- anything -----------------------------------------------------------------------------------------------------
 */
static void random_conversations(void **state) {
    (void)state;
    static const char *patterns[] = {"sfsf", "f", "s", "ssf", "ff", "sss"};
    static const int windows[] = {1, 2, 8, 63, 64, 65, 100, 128, 129, 5000};
    static const int batches[] = {1, 7, 64, 65, 512};
    int64_t reused = 0, known = 0;
    for (int round = 0; round < 60; round++) {
        fixture f;
        const int64_t context = 200 + below(600);
        random_state = (uint64_t)round * 1000000;
        set_up(&f, patterns[below(6)], windows[below(10)], context, batches[below(5)], below(2));
        int32_t history[FAKE_MOST], out[FAKE_MOST];
        int64_t length = 0, ends[16] = {0};
        int turns = 0;
        for (int turn = 0; turn < 14; turn++) {
            int64_t keep = length; /* everything, as in a tool loop */
            switch (below(6)) {
            case 0:
                keep = turns ? ends[turns - 1] : 0;
                break; /* the analysis dropped */
            case 1:
                keep = turns ? ends[below(turns)] : 0;
                break; /* an earlier turn */
            case 2:
                keep = length ? below((int)length + 1) : 0;
                break; /* an edit anywhere */
            case 3:
                keep = below(4) ? length : 0;
                break; /* another conversation */
            }
            int64_t n = keep + below(4) * below(60);
            if (n < 1) n = 1;
            if (n >= context) n = keep = 1 + below((int)context / 2);
            int64_t kept = keep < length ? keep : length;
            fill(history + kept, n - kept);
            int answer = below(8) == 0 ? -1 : 1 + below((int)(context - n) < 200 ? (int)(context - n) : 200);
            reused += talk_and_compare(&f, history, n, answer, out);
            known += kept < n ? kept : n - 1;
            while (turns > 0 && ends[turns - 1] >= n) turns--;
            ends[turns++] = n;
            length = n;
            if (answer > 0) {
                memcpy(history + n, out, sizeof *out * (size_t)answer);
                length += answer;
            }
        }
        tear_down(&f);
    }
    printf("%d of %d known tokens came from the cache\n", (int)reused, (int)known);
    assert_true(reused > known / 2);
}

/* ---- how much -----------------------------------------------------------------------------------------------------
 */
static void plans(void **state) {
    (void)state;
    mx_config c = fake_config("sfsf", 128, 131072);
    mx_kv_plan plan;
    mx_error error;
    /* two full layers of 2048 tiles, two sliding ones of a window and a step */
    assert_int_equal(mx_kv_pages_needed(&c, 131072, 512), 2 * 2048 + 2 * 11);
    assert_int_equal(mx_kv_pages_needed(&c, 64, 512), 4);
    assert_int_equal(mx_kv_pages_needed(&c, 65, 512), 8);
    assert_int_equal(mx_kv_plan_make(&c, 1000, (uint64_t)1 << 40, 0, 512, &plan, &error), MX_OK);
    assert_int_equal(plan.context, 131072);
    assert_int_equal(plan.pages, 2 * 2048 + 2 * 11 + 64 * 2 * 3);
    for (uint64_t pages = 4; pages < 300; pages++) { /* the most that fits: one token more does not */
        assert_int_equal(mx_kv_plan_make(&c, 1000, pages * 1000 + 999, 0, 512, &plan, &error), MX_OK);
        assert_true(plan.pages <= (int64_t)pages);
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
        cmocka_unit_test(a_turn_without_its_analysis), cmocka_unit_test(the_same_prompt_again),
        cmocka_unit_test(taken_pages_are_clear),       cmocka_unit_test(long_prompts_are_resumed_inside),
        cmocka_unit_test(checkpoints_are_bounded),     cmocka_unit_test(without_spare_pages_checkpoints_give_way),
        cmocka_unit_test(random_conversations),        cmocka_unit_test(plans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
