/* Random lives of many sequences on few pages, every slot against a cold run and every count against what it counts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kv_check.h"
#include "model/sampler.h"

enum { SEQUENCES = 5, DOCUMENTS = 4, LENGTH = 420, BOUNDARY = 5, STEPS = 400 };

static uint64_t random_state;
static int64_t below(int64_t n) {
    return (int64_t)(mx_sample_uniform(77, (int64_t)random_state++) * (double)n);
}

typedef struct life {
    mx_sequence s;
    int32_t tokens[KV_MOST];
    int64_t goal; /* 0: at rest */
} life;

typedef struct world {
    kv_fixture f;
    int32_t document[DOCUMENTS][KV_MOST];
    life life[SEQUENCES];
    mx_sequence *all[SEQUENCES];
    int64_t read;                   /* files */
    int64_t resumed, refused, less; /* tokens; times that nothing was to be had, and less than there was */
} world;

static void write_tokens(int32_t *tokens, int64_t begin) {
    for (int64_t i = begin; i < KV_MOST; i++) tokens[i] = (int32_t)below(BOUNDARY + 1);
}

static void begin(world *w, life *x) {
    const int64_t limit = 1 + below(LENGTH);
    x->goal = limit + 1 + below(LENGTH - limit + 1);
    memcpy(x->tokens, w->document[below(DOCUMENTS)], sizeof x->tokens);
    if (below(3)) write_tokens(x->tokens, below(x->goal));
    if (below(5) == 0) memcpy(w->document[below(DOCUMENTS)], x->tokens, sizeof x->tokens);

    while (!mx_kv_fetch(w->f.kv, x->tokens, limit, below(2) * 1e-4)) kv_check_structure(&w->f, w->all, SEQUENCES);
    const int64_t best = kv_best_prefix(&w->f, x->tokens, limit);
    const int64_t promised = mx_kv_cached_tokens(w->f.kv, x->tokens, limit);
    const int64_t room = mx_kv_pages_free(w->f.kv) + mx_kv_pages_cached(w->f.kv);
    const mx_kv_prefix prefix = mx_kv_find_prefix(w->f.kv, x->tokens, limit);
    const int64_t got = mx_sequence_resume(&x->s, x->tokens, limit);
    assert_int_equal(promised, best);
    assert_int_equal(prefix.tokens, promised);
    if (got == promised) {
        assert_int_equal(prefix.tiles, x->s.tiles);
        assert_int_equal(prefix.first_tile, x->s.first_tile);
        assert_int_equal(prefix.taken, room - mx_kv_pages_free(w->f.kv) - mx_kv_pages_cached(w->f.kv));
    }
    assert_true(got <= promised);
    /* less than promised only where a copy of the last tile does not fit beside what it is copied from */
    if (got < promised) assert_true(room < w->f.config.layers * (promised / MX_TILE + 2));
    w->resumed += got;
    w->less += got < promised;
}

static void end(world *w, life *x, bool keep) {
    (void)w;
    mx_sequence_end(&x->s, x->tokens, keep);
    x->goal = 0;
}

/* What a step that failed may leave behind. */
static void spoil(world *w, const life *x, int64_t rows) {
    for (int l = 0; l < w->f.config.layers; l++)
        for (int64_t p = x->s.count; p < x->s.count + rows; p++)
            w->f.backend->slot[x->s.table[l * x->s.stride + p / MX_TILE] * MX_TILE + p % MX_TILE] = 0xbad;
}

static void step(world *w, life *x) {
    int64_t rows = 1 + below(below(3) ? 4 : 130);
    if (rows > x->goal - x->s.count) rows = x->goal - x->s.count;
    if (!mx_sequence_reserve(&x->s, rows)) {
        w->refused++;
        end(w, x, true);
        return;
    }
    /* some rows were guessed, and not all of them right */
    const int64_t right = below(3) ? rows : below(rows + 1);
    int32_t tokens[KV_MOST];
    memcpy(tokens, x->tokens, sizeof tokens);
    for (int64_t i = right; i < rows; i++) tokens[x->s.count + i] = (x->tokens[x->s.count + i] + 1) % FAKE_VOCAB;
    kv_compute(&w->f, &x->s, tokens, rows);
    if (below(60) == 0) {
        spoil(w, x, rows);
        end(w, x, false);
        return;
    }
    mx_sequence_advance(&x->s, x->tokens, right);
    if (below(10) == 0) mx_sequence_mark(&x->s, x->tokens);
    if (below(12) == 0) kv_check_content(&w->f, &x->s, x->tokens);
    if (x->s.count == x->goal || below(40) == 0) end(w, x, true);
}

static world w;

/* `folder`: where one life leaves something to the next of the same model; NULL: nowhere. */
static void live(const char *pattern, int window, int64_t pages, uint64_t seed, const char *folder) {
    random_state = 1;
    kv_set_up(&w.f, pattern, window, pages, BOUNDARY);
    for (int d = 0; d < DOCUMENTS; d++) {
        memcpy(w.document[d], w.document[0], sizeof w.document[d]);
        write_tokens(w.document[d], d * 70);
    }
    random_state = seed << 32;
    if (folder) kv_renew(&w.f, kv_open_store(&w.f, folder, (uint64_t)below(100000) + 1));
    for (int i = 0; i < SEQUENCES; i++) {
        w.life[i].goal = 0;
        w.all[i] = &w.life[i].s;
        assert_int_equal(mx_sequence_init(&w.life[i].s, w.f.kv, LENGTH + 2, NULL), MX_OK);
    }
    for (int i = 0; i < STEPS; i++) {
        life *x = &w.life[below(SEQUENCES)];
        if (x->goal)
            step(&w, x);
        else
            begin(&w, x);
        kv_check_structure(&w.f, w.all, SEQUENCES);
        if (below(100) == 0) mx_kv_forget(w.f.kv);
    }
    for (int i = 0; i < SEQUENCES; i++) {
        if (w.life[i].goal) kv_check_content(&w.f, &w.life[i].s, w.life[i].tokens);
        end(&w, &w.life[i], below(2));
        mx_sequence_free(&w.life[i].s);
    }
    if (folder) w.read += mx_prefix_store_get_stats(w.f.kv->store).read;
    kv_tear_down(&w.f);
}

static int rounds = 2;

static const char *patterns[] = {"f", "s", "sf", "fss", "sfsf"};
static const int windows[] = {1, 3, 63, 64, 65, 100, 128, 300, 5000};

static void live_many(int count, const char *folder) {
    w.resumed = w.refused = w.less = w.read = 0;
    for (int r = 0; r < count; r++) {
        for (size_t p = 0; p < sizeof patterns / sizeof *patterns; p++) {
            for (size_t i = 0; i < sizeof windows / sizeof *windows; i++) {
                const int64_t layers = (int64_t)strlen(patterns[p]);
                const uint64_t seed = (uint64_t)((r * 10 + (int)p) * 10) + i;
                const int64_t pages = layers * (8 + (int64_t)(mx_sample_uniform(5, (int64_t)seed) * 40));
                live(patterns[p], windows[i], pages, seed, folder);
            }
        }
    }
}

static void test_random(void **state) {
    (void)state;
    live_many(rounds, NULL);
    assert_true(w.resumed > rounds * 10000 && w.refused > rounds * 10 && w.less > rounds);
}

static void test_random_with_store(void **state) {
    (void)state;
    char folder[] = "/tmp/mxrun-store-XXXXXX", command[100];
    assert_non_null(mkdtemp(folder));
    live_many(rounds, folder);
    assert_true(w.read > rounds * 100);
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    assert_int_equal(system(command), 0);
}

int main(int argc, char **argv) {
    if (argc > 1) rounds = atoi(argv[1]);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random), cmocka_unit_test(test_random_with_store)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
