#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "grammar/mask_private.h"

static uint32_t random_bits(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)(*state >> 16);
}

static mx_tokenizer *open_tokenizer(const char *variable, const char *relative) {
    char path[4096];
    const char *root = getenv(variable);
    if (!root) fail_msg("%s is not set; run the tests with meson test", variable);
    snprintf(path, sizeof path, "%s/%s", root, relative);
    if (access(path, R_OK) != 0) {
        printf("skipped: %s is not there\n", path);
        return NULL;
    }
    mx_tokenizer *t;
    mx_error error;
    if (mx_tokenizer_open(path, &t, &error) != MX_OK) fail_msg("%s", error.text);
    return t;
}

static mx_tokenizer *stories(void) {
    mx_tokenizer *t = open_tokenizer("MXRUN_SOURCE", "tools/stories/checkpoint/tokenizer.json");
    assert_non_null(t);
    return t;
}

/* ---- grammars ------------------------------------------------------------------------------------------------------
 */
typedef mx_grammar_builder builder;

static mx_expr sequence_of(builder *b, int count, const mx_expr *items) {
    return mx_expr_sequence(b, items, count);
}
#define SEQ(b, ...)                                                                                                    \
    sequence_of(b, (int)(sizeof((mx_expr[]){__VA_ARGS__}) / sizeof(mx_expr)), (const mx_expr[]){__VA_ARGS__})
#define ANY(b, ...)                                                                                                    \
    mx_expr_choice(b, (const mx_expr[]){__VA_ARGS__}, (int)(sizeof((mx_expr[]){__VA_ARGS__}) / sizeof(mx_expr)))
#define S(text) mx_expr_string(b, text)

static mx_expr pattern(builder *b, const char *text) {
    mx_regular *r;
    mx_error error;
    if (mx_regular_parse(text, strlen(text), true, &r, &error) != MX_OK) fail_msg("%s", error.text);
    const mx_expr e = mx_expr_regular(b, r);
    mx_regular_free(r);
    return e;
}

#define CHARACTER "(?:[^\"\\\\\\x00-\\x1f]|\\\\[\"\\\\bfnrt]|\\\\u00[01][0-9a-f])"

static mx_expr json_string(builder *b) {
    return SEQ(b, S("\""), pattern(b, CHARACTER "*"), S("\""));
}

static mx_expr list(builder *b, const char *open, mx_expr item, const char *close) {
    const mx_expr more = mx_expr_repeat(b, SEQ(b, S(","), mx_expr_repeat(b, S(" "), 0, 1), item), 0, -1);
    return SEQ(b, S(open), mx_expr_repeat(b, SEQ(b, item, more), 0, 1), S(close));
}

/* Any JSON value. */
static mx_expr any_value(builder *b) {
    const mx_rule value = mx_rule_add(b, "value");
    const mx_expr again = mx_expr_rule(b, value), string = json_string(b);
    const mx_expr number = pattern(b, "-?(?:0|[1-9][0-9]*)(?:\\.[0-9]+)?(?:[eE][-+]?[0-9]+)?");
    const mx_expr member = SEQ(b, string, S(":"), mx_expr_repeat(b, S(" "), 0, 1), again);
    mx_rule_set(
        b, value,
        ANY(b, string, number, S("true"), S("false"), S("null"), list(b, "{", member, "}"), list(b, "[", again, "]")));
    return again;
}

static mx_expr person(builder *b) {
    return SEQ(b, S("{\"name\": "), json_string(b), S(", \"age\": "), pattern(b, "[1-9][0-9]{0,2}"),
               mx_expr_repeat(b, SEQ(b, S(", \"nick\": "), json_string(b)), 0, 1), S(", \"mood\": \""),
               ANY(b, S("happy"), S("happily married"), S("sad")), S("\"}"));
}

static mx_expr counted(builder *b) {
    const mx_expr c = pattern(b, CHARACTER), item = mx_expr_repeat(b, c, 3, 40);
    const mx_expr x = ANY(b, any_value(b), S("abc"));
    return ANY(b, SEQ(b, S("\""), mx_expr_repeat(b, c, 0, 7), S("\"")), SEQ(b, S("\""), item, S("\"!")),
               SEQ(b, S("["), x, mx_expr_repeat(b, SEQ(b, S(","), x), 11, 13), S("]")),
               mx_expr_repeat(b, SEQ(b, S("<"), item, S(">")), 5, 200));
}

/* Several readings at once, some of which end where others go on. */
static mx_expr ambiguous(builder *b) {
    const mx_rule r = mx_rule_add(b, "r");
    const mx_expr word = pattern(b, "[a-z]+"), words = mx_expr_repeat(b, SEQ(b, word, S(" ")), 1, -1);
    mx_rule_set(b, r,
                ANY(b, words, SEQ(b, word, S(" "), mx_expr_rule(b, r), S(".")), SEQ(b, S("the "), mx_expr_rule(b, r)),
                    mx_expr_repeat(b, ANY(b, S("a"), S("aa"), S("the"), word), 3, 20)));
    return mx_expr_rule(b, r);
}

static mx_expr prose(builder *b) {
    return pattern(b, "(?:[A-Z][^.\\n]{3,200}\\. ?)*");
}

/* Names that must not be one of a few. */
static mx_expr other_names(builder *b) {
    mx_regular *all, *some, *others, *names;
    assert_int_equal(mx_regular_length(0, -1, &all, NULL), MX_OK);
    static const char words[] = "name|nature|age|the|thing|\"|\\u0001|[,!?]|\\.x";
    assert_int_equal(mx_regular_parse(words, sizeof words - 1, true, &some, NULL), MX_OK);
    assert_int_equal(mx_regular_complement(some, &others, NULL), MX_OK);
    assert_int_equal(mx_regular_quote(others, &names, NULL), MX_OK);
    const mx_expr name = mx_expr_regular(b, names), end = ANY(b, S("\": 1"), S("!"));
    const mx_expr item = SEQ(b, S("\""), name, end);
    mx_regular_free(all);
    mx_regular_free(some);
    mx_regular_free(others);
    mx_regular_free(names);
    return ANY(b, mx_expr_repeat(b, item, 0, -1), SEQ(b, S("#"), name, pattern(b, "[ a-z]+")),
               SEQ(b, S("@"), name, end));
}

/* Automata that differ in nothing but where they may end, and a count that is not to end too early. */
static mx_expr alike(builder *b) {
    const mx_expr even = pattern(b, "(?:[a-z.,!]{2})*"), odd = pattern(b, "[a-z.,!](?:[a-z.,!]{2})*");
    const mx_expr end = ANY(b, S("\""), S("?"));
    const mx_expr some = mx_expr_repeat(b, pattern(b, CHARACTER), 3, 40);
    return ANY(b, SEQ(b, S("("), even, end), SEQ(b, S("["), odd, end), SEQ(b, S("{"), some, end));
}

/* Texts of bounded length: each character leads to a state of its own. */
static mx_expr bounded(builder *b) {
    mx_regular *words, *length, *both, *string;
    static const char pairs[] = "(?:[a-z\xc3\xa9]+ )*[a-z]+";
    assert_int_equal(mx_regular_parse(pairs, sizeof pairs - 1, true, &words, NULL), MX_OK);
    assert_int_equal(mx_regular_length(0, 50, &length, NULL), MX_OK);
    assert_int_equal(mx_regular_intersect(words, length, &both, NULL), MX_OK);
    assert_int_equal(mx_regular_quote(both, &string, NULL), MX_OK);
    const mx_expr text = mx_expr_regular(b, string);
    mx_regular_free(words);
    mx_regular_free(length);
    mx_regular_free(both);
    mx_regular_free(string);
    return ANY(b, SEQ(b, S("\""), text, S("\"")),
               SEQ(b, S("("), pattern(b, "[^<>]{1,45}"), ANY(b, S("!"), S(")"), S(" the"))),
               SEQ(b, S("["), pattern(b, "(?:[a-z]{1,40}[ @]){0,3}[a-z]{2,30}"), S("]")),
               SEQ(b, S("{"), pattern(b, "[ -]{1,45}"), pattern(b, "\\n[ \\n]*"), S("}")));
}

static mx_expr (*const grammars[])(builder *b) = {any_value, person,      counted, ambiguous,
                                                  prose,     other_names, alike,   bounded};
/* Where walks begin. */
static const char *const starts[][4] = {{"", "[\"", "{\"a\":-", "[1, {\"\":\"\\"},
                                        {"", "{\"name\": \"", "{\"name\": \"Ida\", \"age\": 3", ""},
                                        {"", "\"", "\"abcdef", "<ab><cd"},
                                        {"", "the ", "a", "the the "},
                                        {"", "A", "The fox. ", "The f"},
                                        {"@", "\"", "\"nam", "#th"},
                                        {"(", "[", "{", "{a"},
                                        {"", "\"the little girl went to the river and saw", "(", "["}};
enum { GRAMMARS = sizeof grammars / sizeof *grammars };

static mx_grammar *grammar(int i) {
    builder *b = mx_grammar_builder_create();
    mx_grammar *g;
    mx_error error;
    if (mx_grammar_compile(b, grammars[i](b), &g, &error) != MX_OK) fail_msg("%s", error.text);
    mx_grammar_builder_free(b);
    return g;
}

/* ---- masks against the matcher -------------------------------------------------------------------------------------
 */
/* Every `step`th token: is its bit what the matcher says? Returns a random token that is allowed, or -1. */
static int32_t compare(mx_matcher *m, const mx_tokenizer *t, int32_t vocab, uint32_t *bits, int step, uint64_t *seed) {
    const size_t words = ((size_t)vocab + 31) / 32;
    memset(bits, 0xA5, words * sizeof *bits);
    mx_matcher_mask(m, bits);
    if (mx_matcher_is_lost(m)) {
        for (size_t i = 0; i < words; i++) assert_int_equal(bits[i], 0);
        assert_false(mx_matcher_can_end(m));
        return -1;
    }
    for (int32_t id = (int32_t)(random_bits(seed) % (uint32_t)step); id < vocab; id += step) {
        const bool accepted = mx_matcher_accept_token(m, id);
        if (accepted) assert_true(mx_matcher_rollback(m, 1));
        if (mx_matcher_is_lost(m)) return -1;
        if (accepted != (bits[id / 32] >> id % 32 & 1)) {
            size_t size = 0;
            const char *text = mx_token_bytes(t, id, &size);
            fail_msg("token %d \"%.*s\": accepted %d, not so in the mask", (int)id, (int)size, text ? text : "",
                     accepted);
        }
    }
    if (vocab % 32) assert_int_equal(bits[words - 1] >> vocab % 32, 0);
    int32_t count = 0, pick = -1;
    for (int32_t id = 0; id < vocab; id++)
        if (bits[id / 32] >> id % 32 & 1 && random_bits(seed) % (uint32_t)++count == 0) pick = id;
    if (pick < 0) assert_true(mx_matcher_can_end(m) || mx_matcher_is_lost(m));
    if (mx_matcher_must_end(m)) assert_int_equal(pick, -1);
    return pick;
}

static bool is_short(const mx_tokenizer *t, int32_t id) {
    size_t size;
    return mx_token_bytes(t, id, &size) && size < 3;
}

static void walk(mx_grammar *g, mx_vocabulary *v, const mx_tokenizer *t, int32_t vocab, int steps, int step,
                 const char *begin, uint64_t seed, bool may_lose) {
    uint32_t *bits = malloc(((size_t)vocab + 31) / 32 * sizeof *bits);
    mx_matcher *m;
    assert_int_equal(mx_matcher_create(g, v, &m, NULL), MX_OK);
    assert_true(mx_matcher_accept(m, begin, strlen(begin)));
    for (int i = 0; i < steps; i++) {
        int32_t pick = compare(m, t, vocab, bits, step, &seed);
        if (pick < 0) {
            assert_true(may_lose || !mx_matcher_is_lost(m));
            break;
        }
        /* Texts that end now and then: short tokens often. */
        for (int tries = 0; tries < 200 && random_bits(&seed) % 2 && !is_short(t, pick); tries++) {
            const int32_t other = (int32_t)(random_bits(&seed) % (uint32_t)vocab);
            if (bits[other / 32] >> other % 32 & 1) pick = other;
        }
        assert_true(mx_matcher_accept_token(m, pick));
        if (i % 5 == 0) {
            mx_matcher *c = mx_matcher_clone(m);
            compare(c, t, vocab, bits, 101, &seed);
            mx_matcher_free(c);
        }
    }
    mx_matcher_free(m);
    free(bits);
}

static void masks_are_what_the_matcher_takes(void **state) {
    (void)state;
    mx_tokenizer *t = stories();
    /* Ids that have no token, at the end and in the padding. */
    const int32_t vocab = mx_tokenizer_size(t) + 45;
    mx_vocabulary *v;
    assert_int_equal(mx_vocabulary_create(t, vocab, &v, NULL), MX_OK);
    for (int i = 0; i < GRAMMARS; i++) {
        mx_grammar *g = grammar(i);
        for (uint64_t seed = 1; seed <= 4; seed++)
            walk(g, v, t, vocab, i == 3 ? 8 : 25, 1, starts[i][seed - 1], seed * 0x9E3779B97F4A7C15u, i == 3 || i == 5);
        mx_grammar_free(g);
    }
    mx_vocabulary_free(v);
    /* Fewer logits than tokens. */
    mx_grammar *g = grammar(0);
    assert_int_equal(mx_vocabulary_create(t, 501, &v, NULL), MX_OK);
    walk(g, v, t, 501, 10, 1, "", 77, false);
    mx_vocabulary_free(v);
    mx_grammar_free(g);
    mx_tokenizer_close(t);
}

static void masks_of_the_published_vocabulary(void **state) {
    (void)state;
    mx_tokenizer *t = open_tokenizer("MXRUN_SHARED", "data/tokenizer/tokenizer.json");
    if (!t) skip();
    mx_vocabulary *v;
    assert_int_equal(mx_vocabulary_create(t, 201088, &v, NULL), MX_OK);
    for (int i = 0; i < GRAMMARS; i++) {
        mx_grammar *g = grammar(i);
        for (uint64_t seed = 1; seed <= 4; seed++)
            walk(g, v, t, 201088, i == 3 ? 2 : 4, 61, starts[i][seed - 1], seed * 0x9E3779B97F4A7C15u,
                 i == 3 || i == 5);
        mx_grammar_free(g);
    }
    mx_vocabulary_free(v);
    mx_tokenizer_close(t);
}

/* Along texts up to their bound, byte by byte. Most masks are to cost a small part of a walk through the tree. */
static void walk_to_bound(const mx_tokenizer *t, int32_t vocab, int step) {
    static const char *const texts[] = {
        "\"the caf\xc3\xa9 \xc3\xa9\xc3\xa9 by the river was closed and so it remained a",
        "(the caf\xc3\xa9 <by the river",
        "(the caf\xc3\xa9 by the river was closed and there it went",
        "[the friend@internationalization of responsibilities whichisratherlong",
        "{                                              ",
    };
    uint32_t *bits = malloc(((size_t)vocab + 31) / 32 * sizeof *bits);
    uint64_t seed = 99;
    int masks = 0, dear = 0;
    mx_grammar *g = grammar(GRAMMARS - 1);
    mx_vocabulary *v;
    assert_int_equal(mx_vocabulary_create(t, vocab, &v, NULL), MX_OK);
    assert_non_null(g->alike);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        mx_matcher *m;
        assert_int_equal(mx_matcher_create(g, v, &m, NULL), MX_OK);
        for (int at = 0; at < 80; at++) {
            const uint64_t before = v->looks;
            /* Spaces and a line's end leave the last text behind exactly as many as a level of `alike` has. */
            const bool all = i == 4 && (at == 46 - 8 || at == 46 - 12);
            compare(m, t, vocab, bits, all ? 1 : step, &seed);
            masks++;
            dear += v->looks - before > v->nodes / 10;
            if (!texts[i][at] || !mx_matcher_accept(m, texts[i] + at, 1)) break;
        }
        mx_matcher_free(m);
    }
    if (dear * 3 > masks) fail_msg("%d of %d masks were dear", dear, masks);
    free(bits);
    mx_vocabulary_free(v);
    mx_grammar_free(g);
}

static void bounded_texts_have_cheap_masks(void **state) {
    (void)state;
    mx_tokenizer *t = stories();
    walk_to_bound(t, mx_tokenizer_size(t), 1);
    mx_tokenizer_close(t);
    t = open_tokenizer("MXRUN_SHARED", "data/tokenizer/tokenizer.json");
    if (!t) skip();
    walk_to_bound(t, 201088, 97);
    mx_tokenizer_close(t);
}

/* Lists of lists of different lengths: all of them may be meant, until the end. */
static mx_grammar *many_readings(int count) {
    builder *b = mx_grammar_builder_create();
    mx_expr *item = malloc((size_t)count * sizeof *item);
    const mx_expr value = any_value(b), more = SEQ(b, S(","), value);
    for (int i = 0; i < count; i++)
        item[i] = SEQ(b, S("["), list(b, "[", SEQ(b, value, mx_expr_repeat(b, more, 0, 100 + i)), "]"), S("]"));
    mx_grammar *g;
    mx_error error;
    if (mx_grammar_compile(b, mx_expr_choice(b, item, count), &g, &error) != MX_OK) fail_msg("%s", error.text);
    free(item);
    mx_grammar_builder_free(b);
    return g;
}

/* What is too ambiguous is given up: it costs a bounded number of steps, nothing may come, and the text is not whole.
 * No reading is left out silently. */
static void too_many_readings_are_given_up(void **state) {
    (void)state;
    mx_tokenizer *t = stories();
    const int32_t vocab = mx_tokenizer_size(t);
    uint32_t *bits = malloc(((size_t)vocab + 31) / 32 * sizeof *bits);
    mx_vocabulary *v;
    assert_int_equal(mx_vocabulary_create(t, vocab, &v, NULL), MX_OK);
    uint64_t seed = 3;
    for (int few = 0; few < 2; few++) {
        mx_grammar *g = many_readings(few ? 20 : 3000);
        mx_matcher *m;
        assert_int_equal(mx_matcher_create(g, v, &m, NULL), MX_OK);
        bool lost = false;
        for (const char *at = "[[\"the\",1"; *at && !lost; at++) {
            compare(m, t, vocab, bits, 7, &seed);
            assert_true(m->stack.work <= 2 * MX_WORK);
            lost = mx_matcher_is_lost(m) || !mx_matcher_accept(m, at, 1);
        }
        assert_int_equal(lost, !few);
        assert_int_equal(mx_matcher_is_lost(m), !few);
        if (lost) {
            mx_matcher *c = mx_matcher_clone(m);
            assert_true(mx_matcher_is_lost(c));
            assert_false(mx_matcher_accept(c, "1", 1));
            mx_matcher_mask(c, bits);
            for (int32_t i = 0; i < (vocab + 31) / 32; i++) assert_int_equal(bits[i], 0);
            assert_false(mx_matcher_can_end(c) || mx_matcher_must_end(c));
            if (mx_matcher_rollback(c, 1)) assert_false(mx_matcher_is_lost(c));
            mx_matcher_free(c);
        }
        mx_matcher_free(m);
        mx_grammar_free(g);
    }
    /* So many at the very beginning that it is no grammar to begin with. */
    builder *b = mx_grammar_builder_create();
    mx_expr item[MX_PLACES + 1];
    for (int i = 0; i <= MX_PLACES; i++) item[i] = mx_expr_repeat(b, pattern(b, "a|bc"), 50, 100 + i);
    mx_grammar *g;
    mx_error error;
    assert_int_equal(mx_grammar_compile(b, mx_expr_choice(b, item, MX_PLACES + 1), &g, &error), MX_UNSUPPORTED);
    assert_non_null(strstr(error.text, "in too many ways at its beginning"));
    mx_grammar_builder_free(b);
    free(bits);
    mx_vocabulary_free(v);
    mx_tokenizer_close(t);
}

/* What a text may go on with, spelled out. */
static void special_tokens_and_ends(void **state) {
    (void)state;
    mx_tokenizer *t = stories();
    const int32_t vocab = mx_tokenizer_size(t);
    mx_vocabulary *v;
    assert_int_equal(mx_vocabulary_create(t, vocab, &v, NULL), MX_OK);
    builder *b = mx_grammar_builder_create();
    mx_grammar *g;
    assert_int_equal(mx_grammar_compile(b, pattern(b, "[^]*"), &g, NULL), MX_OK);
    mx_grammar_builder_free(b);
    mx_matcher *m;
    assert_int_equal(mx_matcher_create(g, v, &m, NULL), MX_OK);
    uint32_t *bits = malloc(((size_t)vocab + 31) / 32 * sizeof *bits);
    mx_matcher_mask(m, bits);
    int allowed = 0;
    for (int32_t id = 0; id < vocab; id++) {
        const bool bit = bits[id / 32] >> id % 32 & 1;
        if (mx_is_special(t, id)) assert_false(bit);
        allowed += bit;
    }
    assert_true(allowed > vocab / 2);
    assert_false(mx_matcher_accept_token(m, -1));
    assert_false(mx_matcher_accept_token(m, vocab));
    mx_grammar_prepare(g, v, 1);
    free(bits);
    mx_matcher_free(m);
    mx_grammar_free(g);
    mx_vocabulary_free(v);
    mx_tokenizer_close(t);
}

/* Masks that were dropped from a full cache are made again. */
static void caches_are_bounded(void **state) {
    (void)state;
    mx_tokenizer *t = stories();
    const int32_t vocab = mx_tokenizer_size(t);
    mx_vocabulary *v;
    assert_int_equal(mx_vocabulary_create(t, vocab, &v, NULL), MX_OK);
    v->cache.most_bytes = 5000;
    for (int i = 0; i < GRAMMARS; i++) {
        if (i == 3) continue;
        mx_grammar *g = grammar(i);
        walk(g, v, t, vocab, 10, 7, starts[i][1], 5, i == 3 || i == 5);
        mx_grammar_free(g);
    }
    assert_true(v->cache.masks <= 20);
    assert_true(v->cache.masks == 1 || v->cache.bytes <= 5000);
    v->cache.most_bytes = 1 << 20;
    for (int i = 0; i < 6000; i++) {
        const mx_state_key key = {(uint64_t)i * 77, (uint64_t)i};
        mx_mask *m = calloc(1, sizeof *m);
        *m = (mx_mask){.key = key, .bytes = 100};
        mx_mask_release(&v->cache, mx_mask_insert(&v->cache, m));
        m = mx_mask_find(&v->cache, key);
        assert_non_null(m);
        mx_mask_release(&v->cache, m);
    }
    assert_true(v->cache.masks > 5000); /* and its table has grown */
    mx_mask *m = mx_mask_find(&v->cache, (mx_state_key){77 * 1000, 1000});
    assert_non_null(m);
    mx_mask_release(&v->cache, m);
    mx_vocabulary_free(v);
    mx_tokenizer_close(t);
}

/* ---- threads -------------------------------------------------------------------------------------------------------
 */
typedef struct shared {
    mx_tokenizer *t;
    mx_vocabulary *v;
    mx_grammar *g[GRAMMARS];
    uint64_t seed;
} shared;

static void *work(void *arg) {
    const shared *s = arg;
    for (int i = 0; i < GRAMMARS; i++) {
        mx_grammar *g = mx_grammar_keep(s->g[i]);
        if (s->seed == 1) mx_grammar_prepare(g, s->v, 0.02);
        walk(g, s->v, s->t, mx_tokenizer_size(s->t), i == 3 ? 2 : 10, 501, starts[i][s->seed],
             s->seed * 0x9E3779B97F4A7C15u, i == 3 || i == 5);
        mx_grammar_free(g);
    }
    return NULL;
}

static void threads_share_grammars_and_masks(void **state) {
    (void)state;
    shared s = {.t = stories()};
    assert_int_equal(mx_vocabulary_create(s.t, mx_tokenizer_size(s.t), &s.v, NULL), MX_OK);
    for (int i = 0; i < GRAMMARS; i++) s.g[i] = grammar(i);
    shared each[4];
    pthread_t thread[4];
    for (int i = 0; i < 4; i++) {
        each[i] = s;
        each[i].seed = 1 + (uint64_t)i / 2; /* two of them do the same at the same time */
        assert_int_equal(pthread_create(&thread[i], NULL, work, &each[i]), 0);
    }
    for (int i = 0; i < 4; i++) pthread_join(thread[i], NULL);
    for (int i = 0; i < GRAMMARS; i++) mx_grammar_free(s.g[i]);
    mx_vocabulary_free(s.v);
    mx_tokenizer_close(s.t);
}

int main(int count, char **word) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(masks_are_what_the_matcher_takes), cmocka_unit_test(masks_of_the_published_vocabulary),
        cmocka_unit_test(bounded_texts_have_cheap_masks),   cmocka_unit_test(too_many_readings_are_given_up),
        cmocka_unit_test(special_tokens_and_ends),          cmocka_unit_test(caches_are_bounded),
    };
    const struct CMUnitTest threads[] = {
        cmocka_unit_test(threads_share_grammars_and_masks),
    };
    if (count > 1 && !strcmp(word[1], "threads")) return cmocka_run_group_tests(threads, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
