/* Prompt lookup against a search of the whole sequence, and whether the choice of lengths gains what can be gained and
 * loses little where nothing can. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/speculate.h"
#include "model/sampler.h"

enum { MOST = 4000, LONGEST = 64 };

static uint64_t drawn;
static double uniform(void) {
    return mx_sample_uniform(99, (int64_t)drawn++);
}
static int below(int n) {
    return (int)(uniform() * n);
}

/* ---- allocations, counted through --wrap --------------------------------------------------------------------------
 */
static int64_t allocations;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *at, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *at, size_t size);
void *__wrap_malloc(size_t size) {
    allocations++;
    return __real_malloc(size);
}
void *__wrap_calloc(size_t count, size_t size) {
    allocations++;
    return __real_calloc(count, size);
}
void *__wrap_realloc(void *at, size_t size) {
    allocations++;
    return __real_realloc(at, size);
}

/* ---- lookup -------------------------------------------------------------------------------------------------------
 */
static int matches(const int32_t *tokens, int64_t earlier, int64_t count) {
    int n = 0;
    while (n < LONGEST && n < earlier && tokens[earlier - 1 - n] == tokens[count - 1 - n]) n++;
    return n;
}

static int longest_match(const int32_t *tokens, int64_t count) {
    int longest = 0;
    for (int64_t at = 2; at < count; at++) {
        int n = matches(tokens, at, count);
        if (n >= 2 && n > longest) longest = n;
    }
    return longest;
}

/* What followed the last of the longest matches; a sequence that ends in a period goes on with it. */
static void expect(const int32_t *tokens, int64_t count, const char *what, int most, int matched,
                   const int32_t *expected) {
    mx_lookup l;
    int32_t draft[16];
    int got;
    assert_true(mx_lookup_init(&l, count));
    int n = mx_lookup_draft(&l, tokens, count, draft, most, &got);
    if (n != (expected ? most : 0) || got != matched) fail_msg("%s: %d tokens behind %d", what, n, got);
    for (int i = 0; i < n; i++) {
        if (draft[i] != expected[i]) fail_msg("%s: token %d is %d", what, i, draft[i]);
    }
    mx_lookup_free(&l);
}

static void what_followed(void **state) {
    (void)state;
#define SEQUENCE(...) (int32_t[]){__VA_ARGS__}, sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t)
    expect(SEQUENCE(1, 2, 3, 4, 5, 6, 7, 8), "nothing came twice", 4, 0, NULL);
    expect(SEQUENCE(1, 2, 3, 9, 3), "one token is too little", 4, 0, NULL);
    expect(SEQUENCE(5), "one token", 4, 0, NULL);
    expect(SEQUENCE(1, 2, 3, 4, 5, 6, 1, 2), "two", 3, 2, (int32_t[]){3, 4, 5});
    expect(SEQUENCE(1, 2, 3, 1, 2, 4, 1, 2), "the last place", 2, 2, (int32_t[]){4, 1});
    expect(SEQUENCE(9, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2), "the longest match", 2, 3, (int32_t[]){3, 8});
    expect(SEQUENCE(7, 1, 2, 1, 2), "a period of two", 5, 2, (int32_t[]){1, 2, 1, 2, 1});
    expect(SEQUENCE(6, 6, 6), "a period of one", 4, 2, (int32_t[]){6, 6, 6, 6});
    expect(SEQUENCE(1, 2, 3, 1, 2), "none wanted", 0, 0, NULL);
}

/* Sequences of few different tokens, one after the other in one lookup, which grow by any number of tokens, lose their
 * end and get another, and now and then are not looked at. A draft must follow a place that is there now; the first
 * match of a sequence that only grew is the longest. */
static void random_sequences(void **state) {
    (void)state;
    static int32_t tokens[MOST];
    int found = 0, longest_found = 0;
    mx_lookup l;
    assert_true(mx_lookup_init(&l, 600));
    for (int round = 0; round < 300; round++) {
        const int vocab = (int[]){2, 3, 10, 60}[below(4)];
        const bool grows = round % 2;
        int64_t count = 0;
        const int64_t before = allocations;
        mx_lookup_reset(&l);
        for (int call = 0; call < 60; call++) {
            if (!grows && below(4) == 0) count = below((int)count + 1);
            for (int more = below(2) ? 1 : below(25); more > 0 && count < 600; more--) {
                const bool copy = count > 40 && below(3);
                tokens[count] = copy ? tokens[count - 40] : below(vocab);
                count++;
            }
            int32_t draft[8] = {-5, -5, -5, -5, -5, -5, -5, -5};
            const int most = below(8);
            int matched = -1;
            int n = mx_lookup_draft(&l, tokens, count, draft, most, &matched);
            assert_int_equal(draft[n], -5);
            if (n == 0) {
                assert_int_equal(matched, 0);
                continue;
            }
            assert_int_equal(n, most);
            assert_in_range(matched, 2, LONGEST);
            bool follows = false;
            for (int64_t at = 2; at < count && !follows; at++) {
                follows = matches(tokens, at, count) == matched;
                for (int i = 0; i < n && follows; i++)
                    follows = draft[i] == (at + i < count ? tokens[at + i] : draft[at + i - count]);
            }
            assert_true(follows);
            found++;
            longest_found += matched == longest_match(tokens, count);
            if (grows && vocab == 60) assert_int_equal(matched, longest_match(tokens, count));
        }
        assert_true(allocations == before);
    }
    mx_lookup_free(&l);
    assert_true(found > 8000);
    if (longest_found < found * 9 / 10) fail_msg("only %d of %d were the longest", longest_found, found);
}

/* An answer is written anew from the middle: what it said before is forgotten, what stayed is found. */
static void another_end(void **state) {
    (void)state;
    int32_t tokens[20] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2}, draft[4];
    mx_lookup l;
    int matched;
    assert_true(mx_lookup_init(&l, 20));
    assert_int_equal(mx_lookup_draft(&l, tokens, 11, draft, 4, &matched), 4);
    assert_int_equal(draft[0], 3);
    assert_int_equal(mx_lookup_draft(&l, tokens, 11, draft, 4, &matched), 4); /* again, nothing new */
    assert_int_equal(draft[0], 3);
    tokens[4] = 1, tokens[5] = 2;
    assert_int_equal(mx_lookup_draft(&l, tokens, 6, draft, 2, &matched), 2);
    assert_int_equal(draft[0], 3);
    assert_int_equal(draft[1], 4);
    tokens[6] = 7, tokens[7] = 8, tokens[8] = 5, tokens[9] = 6;
    assert_int_equal(mx_lookup_draft(&l, tokens, 10, draft, 2, &matched), 0); /* 5 6 stood there and does no more */
    assert_int_equal(mx_lookup_draft(&l, tokens, 21, draft, 2, &matched), 0); /* more than it was made for */
    mx_lookup_free(&l);
    mx_lookup_free(&l);
}

/* ---- what pays ----------------------------------------------------------------------------------------------------
 */
static double flat(int rows) {
    return 0.1 + 0.001 * rows;
}
static double experts(int rows) {
    return 0.1 * (1 + 0.25 * (rows - 1));
}
static double steep(int rows) {
    return 0.1 * rows;
}

typedef struct world {
    double (*seconds)(int rows);
    int others;              /* rows of other requests */
    double right[2];         /* how often a drafted token is right: in the first half, in the second */
    int matched;             /* -1: no matches */
    double least, most_gain; /* tokens a second against plain decoding, in the second half */
} world;

/* Decodes in a world whose memory is at times half as fast, and returns this request's tokens a second against plain
 * decoding, in the second half. */
static double gain_of(const world *w) {
    enum { STEPS = 6000, DRAFT = 8 };
    mx_draft_cost cost = {0};
    mx_draft_luck luck = {0};
    double seconds = 0, tokens = 0;
    for (int step = 0; step < STEPS; step++) {
        const bool second = step >= STEPS / 2;
        int n = below(2) ? mx_draft_length(&cost, &luck, w->matched, 1 + w->others, DRAFT) : 0, accepted = 0;
        assert_in_range(n, 0, DRAFT);
        while (accepted < n && uniform() < w->right[second]) accepted++;
        if (n) mx_draft_checked(&luck, w->matched, n, accepted);
        const double took = w->seconds(1 + w->others + n) * (step / 40 % 2 ? 2 : 1);
        mx_draft_measured(&cost, 1 + w->others + n, took * (0.9 + 0.2 * uniform()));
        if (!second) continue;
        seconds += took;
        tokens += 1 + accepted;
    }
    return tokens / seconds * w->seconds(1 + w->others) * 1.5;
}

static void what_pays(void **state) {
    (void)state;
    static const world worlds[] = {
        {flat, 0, {0.9, 0.9}, 10, 3, 9},          /* half of the steps have a match of 4 tokens and more */
        {flat, 0, {0, 0}, 10, 0.98, 1},           /* never right */
        {flat, 0, {0, 0.9}, 10, 2, 9},            /* it changes: tried again */
        {experts, 0, {0.95, 0.95}, 10, 1.8, 2.2}, /* what 20b's experts cost */
        {experts, 0, {0.95, 0}, 10, 0.97, 1},     /* it changes: given up */
        {experts, 0, {0, 0.95}, 10, 1.5, 2.2},    /* and the other way: tried again */
        {experts, 0, {0.1, 0.1}, 2, 0.98, 1.02},  /* short matches, prose */
        {experts, 3, {0.8, 0.8}, 10, 1.2, 2},     /* beside others a row costs less than it brings */
        {steep, 0, {0.9, 0.9}, 10, 0.98, 1.02},   /* rows that cost what they bring */
        {steep, 15, {1, 1}, 64, 1, 1},            /* a full step */
        {experts, 40, {1, 1}, 64, 1, 1},          /* and a fuller one */
        {experts, 0, {1, 1}, 0, 1, 1},            /* no match */
    };
    for (size_t i = 0; i < sizeof worlds / sizeof *worlds; i++) {
        const double gain = gain_of(&worlds[i]);
        printf("world %d: %.3f\n", (int)i, gain);
        if (gain < worlds[i].least - 0.005 || gain > worlds[i].most_gain + 0.005)
            fail_msg("world %d: %g, expected %g to %g", (int)i, gain, worlds[i].least, worlds[i].most_gain);
    }
}

/* What was never right is given up, and tried again much later. */
static void tried_again(void **state) {
    (void)state;
    mx_draft_cost cost = {0};
    mx_draft_luck luck = {0};
    int refused = 0;
    mx_draft_measured(&cost, 1, 0.1);
    assert_int_equal(mx_draft_length(&cost, &luck, 10, 1, 4), 3);
    for (int i = 0; i < 200; i++) mx_draft_checked(&luck, 10, 4, 0);
    while (refused < 5000 && mx_draft_length(&cost, &luck, 10, 1, 4) == 0) refused++;
    assert_in_range(refused, 100, 1000);
    mx_draft_checked(&luck, 10, 1, 0);
    assert_int_equal(mx_draft_length(&cost, &luck, 10, 1, 4), 0);
}

/* The first step tells nothing of others yet, and no odd figure does harm. */
static void odd_figures(void **state) {
    (void)state;
    mx_draft_cost cost = {0};
    mx_draft_luck luck = {0};
    assert_in_range(mx_draft_length(&cost, &luck, 30, 1, 8), 1, 8);
    mx_draft_measured(&cost, 0, 1);
    mx_draft_measured(&cost, 17, 1);
    mx_draft_measured(&cost, 1, 0);
    mx_draft_measured(&cost, 1, -1);
    assert_true(cost.level == 0);
    mx_draft_measured(&cost, 1, 0.1);
    for (int i = 0; i < 1000; i++) mx_draft_measured(&cost, 1 + i % 16, i % 3 ? 1e-9 : 1e9);
    for (int rows = 1; rows <= 16; rows++) assert_true(cost.shape[rows] > 0 && cost.shape[rows] < 1e300);
    mx_draft_checked(&luck, 2, 0, 0);
    mx_draft_checked(&luck, 100, 8, 8);
    assert_int_equal(mx_draft_length(&cost, &luck, 30, 1, 0), 0);
    assert_int_equal(mx_draft_length(&cost, &luck, 1, 1, 4), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_followed), cmocka_unit_test(random_sequences),
                                       cmocka_unit_test(another_end),   cmocka_unit_test(what_pays),
                                       cmocka_unit_test(tried_again),   cmocka_unit_test(odd_figures)};
    return cmocka_run_group_tests_name("speculate", tests, NULL, NULL);
}
