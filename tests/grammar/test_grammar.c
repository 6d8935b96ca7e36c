#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "grammar/grammar.h"

static uint32_t random_bits(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)(*state >> 16);
}

/* ---- a second opinion: grammars as trees, matched by their definition ----------------------------------------------
 */
typedef enum kind { TEXT, NEVER, SEQUENCE, CHOICE, REPEAT, RULE } kind;
typedef struct node {
    kind kind;
    char text[8];
    int part[4], parts, least, most; /* most -1: no limit */
    mx_expr expr;
} node;
enum { RULES = 4, NODES = 64, LENGTH = 12 };
typedef struct grammar {
    node node[NODES];
    int nodes, body[RULES];
    /* The text at hand: bit e of ends[r][i]: a text of rule r may lie between i and e. open[r][i]: one may begin in i
     * and go on behind the end. */
    uint32_t ends[RULES][LENGTH + 1];
    bool open[RULES][LENGTH + 1], productive[RULES];
    const char *text;
    int length;
} grammar;

static bool productive(const grammar *g, int at) {
    const node *n = &g->node[at];
    bool all = true, any = false;
    for (int i = 0; i < n->parts; i++) {
        const bool one = productive(g, n->part[i]);
        all = all && one;
        any = any || one;
    }
    switch (n->kind) {
    case TEXT:
        return true;
    case NEVER:
        return false;
    case SEQUENCE:
        return all;
    case CHOICE:
        return any;
    case REPEAT:
        return n->least == 0 || any;
    default:
        return g->productive[n->part[0]];
    }
}

/* Where a text of the node that begins in one of `from` may end, and whether it may go on behind the whole text. */
static uint32_t ends_of(const grammar *g, int at, uint32_t from, bool *open) {
    const node *n = &g->node[at];
    uint32_t out = 0, now = from;
    if (!from) return 0;
    switch (n->kind) {
    case TEXT:
        for (int i = 0; i <= g->length; i++) {
            const int size = (int)strlen(n->text), left = g->length - i;
            if (!(from >> i & 1) || memcmp(g->text + i, n->text, (size_t)(size < left ? size : left))) continue;
            if (size <= left) out |= 1u << (i + size);
            if (size > left) *open = true;
        }
        return out;
    case NEVER:
        return 0;
    case SEQUENCE:
        if (!productive(g, at)) return 0;
        for (int i = 0; i < n->parts; i++) now = ends_of(g, n->part[i], now, open);
        return now;
    case CHOICE:
        for (int i = 0; i < n->parts; i++) out |= ends_of(g, n->part[i], from, open);
        return out;
    case REPEAT:
        if (!productive(g, n->part[0])) return n->least == 0 ? from : 0;
        for (int i = 0; i < 400 && now; i++) {
            if (i >= n->least) out |= now;
            if (n->most >= 0 && i == n->most) break;
            now = ends_of(g, n->part[0], now, open);
        }
        return out;
    default:
        for (int i = 0; i <= g->length; i++)
            if (from >> i & 1) {
                out |= g->ends[n->part[0]][i];
                *open = *open || g->open[n->part[0]][i];
            }
        return out;
    }
}

/* Is the text of the grammar, and may it become one? */
static bool judge(grammar *g, int root, const char *text, bool *viable) {
    g->text = text;
    g->length = (int)strlen(text);
    memset(g->ends, 0, sizeof g->ends);
    memset(g->open, 0, sizeof g->open);
    for (bool changed = true; changed;) {
        changed = false;
        for (int r = 0; r < RULES; r++)
            for (int i = 0; i <= g->length; i++) {
                bool open = false;
                const uint32_t ends = ends_of(g, g->body[r], 1u << i, &open);
                if (ends != g->ends[r][i] || open != g->open[r][i]) changed = true;
                g->ends[r][i] = ends;
                g->open[r][i] = open;
            }
    }
    *viable = false;
    const bool whole = ends_of(g, root, 1, viable) >> g->length & 1;
    *viable = *viable || whole;
    return whole;
}

static int add(grammar *g, node n) {
    assert_true(g->nodes < NODES);
    g->node[g->nodes] = n;
    return g->nodes++;
}

/* `rules`: how many rules may be referred to. */
static int random_node(grammar *g, mx_grammar_builder *b, uint64_t *seed, int depth, const mx_rule *rule) {
    static const char *const texts[] = {"a", "b", "ab", "aa", "ba", "abb", "", "bab"};
    const uint32_t dice = random_bits(seed) % 16;
    node n = {.kind = TEXT};
    mx_expr part[4];
    if (depth == 0 || g->nodes > NODES - 30 || dice < 3) {
        if (dice == 1 && random_bits(seed) % 4 == 0)
            n.kind = NEVER;
        else if (dice >= 8) {
            n.kind = RULE;
            n.part[0] = (int)(random_bits(seed) % RULES);
        } else
            strcpy(n.text, texts[random_bits(seed) % 8]);
    } else if (dice < 7)
        n.kind = SEQUENCE, n.parts = 1 + (int)(random_bits(seed) % 3);
    else if (dice < 11)
        n.kind = CHOICE, n.parts = 1 + (int)(random_bits(seed) % 3);
    else if (dice < 14) {
        n.kind = REPEAT, n.parts = 1;
        n.least = (int)(random_bits(seed) % 4);
        n.most = random_bits(seed) % 3 == 0 ? -1 : n.least + (int)(random_bits(seed) % 4);
        if (random_bits(seed) % 4 == 0 && n.most > 0) n.most += 70;
        if (random_bits(seed) % 8 == 0) n.most = -1, n.least = 80;
    } else {
        n.kind = RULE;
        n.part[0] = (int)(random_bits(seed) % RULES);
    }
    for (int i = 0; i < n.parts; i++) {
        n.part[i] = random_node(g, b, seed, depth - 1, rule);
        part[i] = g->node[n.part[i]].expr;
    }
    switch (n.kind) {
    case TEXT:
        n.expr = mx_expr_string(b, n.text);
        break;
    case NEVER:
        n.expr = mx_expr_never(b);
        break;
    case SEQUENCE:
        n.expr = mx_expr_sequence(b, part, n.parts);
        break;
    case CHOICE:
        n.expr = mx_expr_choice(b, part, n.parts);
        break;
    case REPEAT:
        n.expr = mx_expr_repeat(b, part[0], n.least, n.most);
        break;
    case RULE:
        n.expr = mx_expr_rule(b, rule[n.part[0]]);
        break;
    }
    return add(g, n);
}

static void compare_on_texts(grammar *g, int root, mx_grammar *compiled, uint64_t seed) {
    char text[LENGTH + 1];
    for (int length = 0; length <= 10; length++)
        for (uint32_t bits = 0; bits < 1u << length; bits++) {
            if (length > 5 && random_bits(&seed) % (1u << (length - 4)) != 0) continue;
            for (int i = 0; i < length; i++) text[i] = bits >> i & 1 ? 'b' : 'a';
            text[length] = 0;
            bool viable;
            const bool whole = judge(g, root, text, &viable);
            mx_matcher *m;
            assert_int_equal(mx_matcher_create(compiled, NULL, &m, NULL), MX_OK);
            const bool accepted = mx_matcher_accept(m, text, (size_t)length);
            const bool ends = accepted && mx_matcher_can_end(m);
            mx_matcher_free(m);
            if (accepted != viable || ends != whole)
                fail_msg("\"%s\": viable %d, whole %d; the matcher says %d and %d", text, viable, whole, accepted,
                         ends);
            assert_int_equal(mx_grammar_match(compiled, text, (size_t)length), whole);
        }
}

/* All texts of "a" and "b" of up to 5 characters as tokens, beside the 256 bytes. */
static mx_tokenizer *small_tokenizer(void) {
    char path[] = "/tmp/mxrun-grammar-XXXXXX";
    mx_bytes text = {0};
    int16_t byte_of[MX_BYTE_ALPHABET];
    mx_byte_alphabet(byte_of);
    assert_true(mx_bytes_add_string(
        &text,
        "{\"version\":\"1.0\",\"added_tokens\":[],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Sequence\","
        "\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{L}+|[^\\\\p{L}]\"},\"behavior\":"
        "\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,"
        "\"use_regex\":false}]},\"model\":{\"type\":\"BPE\",\"vocab\":{"));
    for (int c = 0; c < MX_BYTE_ALPHABET; c++) {
        char letter[8];
        mx_bytes one = {0};
        if (byte_of[c] < 0) continue;
        assert_true(mx_bytes_add_utf8(&one, (uint32_t)c));
        snprintf(letter, sizeof letter, "%.*s", (int)one.size, one.data);
        assert_true(mx_bytes_add_json(&text, letter, one.size) && mx_bytes_addf(&text, ":%d,", byte_of[c]));
        mx_bytes_free(&one);
    }
    for (int length = 2, id = 256; length <= 5; length++)
        for (int bits = 0; bits < 1 << length; bits++) {
            char word[8] = "";
            for (int i = 0; i < length; i++) word[i] = bits >> i & 1 ? 'b' : 'a';
            assert_true(mx_bytes_addf(&text, "%s\"%s\":%d", id > 256 ? "," : "", word, id));
            id++;
        }
    assert_true(mx_bytes_add_string(&text, "},\"merges\":[]}}"));
    const int file = mkstemp(path);
    assert_true(file >= 0 && write(file, text.data, text.size) == (ssize_t)text.size);
    close(file);
    mx_tokenizer *t;
    mx_error error;
    const mx_status status = mx_tokenizer_open(path, &t, &error);
    unlink(path);
    mx_bytes_free(&text);
    if (status != MX_OK) fail_msg("%s", error.text);
    return t;
}

/* Masks along a random text are what the matcher takes. */
static void compare_masks(mx_grammar *compiled, mx_vocabulary *v, int32_t vocab, uint64_t seed) {
    uint32_t bits[40];
    mx_matcher *m;
    assert_int_equal(mx_matcher_create(compiled, v, &m, NULL), MX_OK);
    for (int i = 0; i < 12; i++) {
        int32_t count = 0, pick = -1;
        mx_matcher_mask(m, bits);
        for (int32_t id = 'a'; id < vocab; id = id == 'b' ? 256 : id + 1) {
            const bool accepted = mx_matcher_accept_token(m, id);
            if (accepted) assert_true(mx_matcher_rollback(m, 1));
            if (accepted != (bits[id / 32] >> id % 32 & 1)) fail_msg("token %d: accepted %d", (int)id, accepted);
            if (accepted && random_bits(&seed) % (uint32_t)++count == 0) pick = id;
        }
        if (pick < 0) break;
        assert_true(mx_matcher_accept_token(m, pick));
    }
    mx_matcher_free(m);
}

static void random_grammars_match_as_they_are_defined(void **state) {
    (void)state;
    mx_tokenizer *t = small_tokenizer();
    const int32_t vocab = mx_tokenizer_size(t);
    mx_vocabulary *v;
    assert_int_equal(mx_vocabulary_create(t, vocab, &v, NULL), MX_OK);
    int compiled = 0, left = 0, empty = 0;
    for (uint64_t seed = 1; seed <= 250; seed++) {
        uint64_t s = seed * 0x9E3779B97F4A7C15u;
        grammar g = {0};
        mx_grammar_builder *b = mx_grammar_builder_create();
        mx_rule rule[RULES];
        for (int r = 0; r < RULES; r++) rule[r] = mx_rule_add(b, "r");
        for (int r = 0; r < RULES; r++) {
            g.body[r] = random_node(&g, b, &s, r == 3 ? 1 : 2, rule);
            mx_rule_set(b, rule[r], g.node[g.body[r]].expr);
        }
        const int root = random_node(&g, b, &s, 2, rule);
        for (bool changed = true; changed;) {
            changed = false;
            for (int r = 0; r < RULES; r++)
                if (!g.productive[r] && productive(&g, g.body[r])) changed = g.productive[r] = true;
        }
        mx_grammar *out;
        mx_error error;
        const mx_status status = mx_grammar_compile(b, g.node[root].expr, &out, &error);
        mx_grammar_builder_free(b);
        if (!productive(&g, root)) assert_int_equal(status, MX_INVALID_ARGUMENT);
        if (status == MX_INVALID_ARGUMENT) {
            assert_false(productive(&g, root));
            empty++;
        } else if (status == MX_UNSUPPORTED)
            left++;
        else {
            assert_int_equal(status, MX_OK);
            compiled++;
            compare_on_texts(&g, root, out, s);
            for (uint64_t k = 1; k < 6; k++) compare_masks(out, v, vocab, k * s | 1);
        }
        mx_grammar_free(out);
    }
    assert_true(compiled > 100);
    assert_true(left > 5);
    assert_true(empty > 1);
    mx_vocabulary_free(v);
    mx_tokenizer_close(t);
}

/* ---- by hand -------------------------------------------------------------------------------------------------------
 */
static mx_grammar *compile(mx_grammar_builder *b, mx_expr root) {
    mx_grammar *g;
    mx_error error;
    if (mx_grammar_compile(b, root, &g, &error) != MX_OK) fail_msg("%s", error.text);
    mx_grammar_builder_free(b);
    return g;
}

static mx_expr two(mx_grammar_builder *b, mx_expr x, mx_expr y) {
    return mx_expr_sequence(b, (mx_expr[]){x, y}, 2);
}
static mx_expr three(mx_grammar_builder *b, mx_expr x, mx_expr y, mx_expr z) {
    return mx_expr_sequence(b, (mx_expr[]){x, y, z}, 3);
}
static mx_expr either(mx_grammar_builder *b, mx_expr x, mx_expr y) {
    return mx_expr_choice(b, (mx_expr[]){x, y}, 2);
}
static bool matches(mx_grammar *g, const char *text) {
    return mx_grammar_match(g, text, strlen(text));
}

/* p := "(" p ")" p | "" */
static mx_grammar *brackets(void) {
    mx_grammar_builder *b = mx_grammar_builder_create();
    const mx_rule p = mx_rule_add(b, "p");
    const mx_expr again = mx_expr_rule(b, p);
    const mx_expr items[] = {mx_expr_string(b, "("), again, mx_expr_string(b, ")"), again};
    mx_rule_set(b, p, either(b, mx_expr_sequence(b, items, 4), mx_expr_string(b, "")));
    return compile(b, mx_expr_rule(b, p));
}

static void recursion_has_a_stack(void **state) {
    (void)state;
    mx_grammar *g = brackets();
    assert_true(matches(g, ""));
    assert_true(matches(g, "()(())"));
    assert_false(matches(g, "(()"));
    assert_false(matches(g, "())"));
    enum { DEEP = 100000 };
    char *text = malloc(2 * DEEP);
    memset(text, '(', DEEP);
    memset(text + DEEP, ')', DEEP);
    assert_true(mx_grammar_match(g, text, 2 * DEEP));
    assert_false(mx_grammar_match(g, text, 2 * DEEP - 1));
    text[DEEP] = '(';
    assert_false(mx_grammar_match(g, text, 2 * DEEP));
    free(text);
    mx_grammar_free(g);
}

static void counts_cost_no_states(void **state) {
    (void)state;
    for (int form = 0; form < 4; form++) {
        mx_grammar_builder *b = mx_grammar_builder_create();
        const mx_expr x = either(b, mx_expr_string(b, "x"), mx_expr_string(b, "yz"));
        const int64_t least = form == 1 ? 0 : 20000, most = form == 2 ? -1 : 30000;
        const mx_expr item = form == 3 ? either(b, x, mx_expr_string(b, "")) : x;
        mx_grammar *g = compile(b, two(b, mx_expr_repeat(b, item, least, most), mx_expr_string(b, "!")));
        assert_true(mx_grammar_bytes(g) < 20000);
        char *text = malloc(70001);
        static const int counts[] = {0, 1, 19999, 20000, 30000, 30001};
        for (int i = 0; i < 6; i++) {
            size_t size = 0;
            for (int k = 0; k < counts[i]; k++) {
                if (k % 3 == 1)
                    text[size++] = 'y', text[size++] = 'z';
                else
                    text[size++] = 'x';
            }
            text[size++] = '!';
            const bool low = counts[i] >= 20000 || form == 1 || form == 3, high = counts[i] <= 30000 || form == 2;
            assert_int_equal(mx_grammar_match(g, text, size), low && high);
        }
        free(text);
        mx_grammar_free(g);
    }
}

/* Parts that no text is of. */
static void what_cannot_be_is_left_out(void **state) {
    (void)state;
    for (int most = 1; most <= 90; most += 89) {
        mx_grammar_builder *b = mx_grammar_builder_create();
        const mx_expr never = mx_expr_never(b), x = mx_expr_string(b, "xyz");
        const mx_rule r = mx_rule_add(b, "r");
        mx_rule_set(b, r, mx_expr_repeat(b, two(b, x, never), 0, most));
        const mx_expr some = either(b, mx_expr_rule(b, r), three(b, x, x, never));
        const mx_expr loop = mx_expr_repeat(b, mx_expr_repeat(b, two(b, x, never), 0, most), 2, -1);
        mx_grammar *g = compile(b, three(b, some, loop, mx_expr_string(b, "!")));
        mx_matcher *m;
        assert_int_equal(mx_matcher_create(g, NULL, &m, NULL), MX_OK);
        assert_false(mx_matcher_accept(m, "x", 1));
        assert_true(mx_matcher_accept(m, "!", 1));
        assert_true(mx_matcher_must_end(m));
        mx_matcher_free(m);
        mx_grammar_free(g);
    }
}

static void accepts_are_undone(void **state) {
    (void)state;
    mx_grammar *g = brackets();
    mx_matcher *m;
    assert_int_equal(mx_matcher_create(g, NULL, &m, NULL), MX_OK);
    assert_true(mx_matcher_can_end(m));
    assert_false(mx_matcher_must_end(m));
    assert_true(mx_matcher_accept(m, "((", 2));
    assert_false(mx_matcher_can_end(m));
    assert_false(mx_matcher_accept(m, "))) (", 5));
    mx_matcher *c = mx_matcher_clone(m);
    assert_true(mx_matcher_accept(m, "))", 2));
    assert_true(mx_matcher_can_end(m));
    assert_false(mx_matcher_can_end(c));
    assert_true(mx_matcher_rollback(m, 1));
    assert_false(mx_matcher_can_end(m));
    assert_true(mx_matcher_accept(c, ")()(", 4));
    assert_true(mx_matcher_rollback(c, 2));
    assert_true(mx_matcher_can_end(c));
    assert_false(mx_matcher_accept(c, ")", 1));
    assert_false(mx_matcher_rollback(c, 1));
    assert_false(mx_matcher_rollback(c, -1));
    mx_matcher_free(c);
    /* Longer than is remembered, and many frames that nothing needs. */
    for (int i = 0; i < 5000; i++) assert_true(mx_matcher_accept(m, "()((", 4));
    assert_true(mx_matcher_rollback(m, MX_MATCHER_HISTORY));
    for (int i = 0; i < 2 * (5000 - MX_MATCHER_HISTORY) + 2; i++) assert_true(mx_matcher_accept(m, ")", 1));
    assert_true(mx_matcher_can_end(m));
    assert_false(mx_matcher_accept(m, ")", 1));
    while (mx_matcher_rollback(m, 1)) {
    }
    mx_matcher_free(m);
    mx_grammar_free(g);

    mx_grammar_builder *b = mx_grammar_builder_create();
    g = compile(b, mx_expr_string(b, "end"));
    assert_int_equal(mx_matcher_create(g, NULL, &m, NULL), MX_OK);
    assert_true(mx_matcher_accept(m, "en", 2));
    assert_false(mx_matcher_must_end(m));
    assert_true(mx_matcher_accept(m, "d", 1));
    assert_true(mx_matcher_must_end(m));
    assert_false(mx_matcher_accept(m, "d", 1));
    assert_true(mx_matcher_accept(m, "", 0));
    assert_true(mx_matcher_can_end(m));
    mx_matcher_free(m);
    mx_grammar_free(g);
}

static void refuse(mx_grammar_builder *b, mx_expr root, mx_status status, const char *word) {
    mx_grammar *g;
    mx_error error;
    assert_int_equal(mx_grammar_compile(b, root, &g, &error), status);
    if (!strstr(error.text, word)) fail_msg("\"%s\" is not in: %s", word, error.text);
    assert_null(g);
    mx_grammar_builder_free(b);
}

static void wrong_grammars_are_refused(void **state) {
    (void)state;
    mx_grammar_builder *b = mx_grammar_builder_create();
    refuse(b, mx_expr_never(b), MX_INVALID_ARGUMENT, "no text");
    b = mx_grammar_builder_create();
    mx_rule r = mx_rule_add(b, "lonely");
    refuse(b, mx_expr_rule(b, r), MX_INVALID_ARGUMENT, "lonely");
    b = mx_grammar_builder_create();
    r = mx_rule_add(b, "endless");
    mx_rule_set(b, r, two(b, mx_expr_string(b, "a"), mx_expr_rule(b, r)));
    refuse(b, mx_expr_rule(b, r), MX_INVALID_ARGUMENT, "no text");
    /* x := y? x "a" | "a", where y may be nothing */
    b = mx_grammar_builder_create();
    r = mx_rule_add(b, "circle");
    const mx_rule y = mx_rule_add(b, "y");
    mx_rule_set(b, y, mx_expr_repeat(b, mx_expr_string(b, "y"), 0, 90));
    mx_rule_set(
        b, r,
        either(b, three(b, mx_expr_rule(b, y), mx_expr_rule(b, r), mx_expr_string(b, "a")), mx_expr_string(b, "a")));
    refuse(b, mx_expr_rule(b, r), MX_UNSUPPORTED, "circle");
    b = mx_grammar_builder_create();
    refuse(b, mx_expr_sequence(b, (mx_expr[]){0, 7}, 2), MX_NO_MEMORY, "memory");
    assert_int_equal(mx_expr_string(NULL, "x"), 0);
    mx_grammar_builder_free(NULL);
    mx_grammar_free(NULL);
    mx_matcher_free(NULL);
}

/* What could take for ever, or all memory. */
static void hostile_grammars_are_bounded(void **state) {
    (void)state;
    const clock_t start = clock();
    char text[4000];
    memset(text, 'a', sizeof text);
    /* e = ee of itself 60 times: 2^60 "a" */
    mx_grammar_builder *b = mx_grammar_builder_create();
    mx_expr e = mx_expr_string(b, "a");
    for (int i = 0; i < 60; i++) e = two(b, e, e);
    mx_grammar *g = compile(b, e);
    mx_matcher *m;
    assert_int_equal(mx_matcher_create(g, NULL, &m, NULL), MX_OK);
    assert_true(mx_matcher_accept(m, text, sizeof text));
    assert_false(mx_matcher_can_end(m));
    mx_matcher_free(m);
    mx_grammar_free(g);
    /* ((a|b)* a (a|b){n}): 2^n states, if each had to be one */
    b = mx_grammar_builder_create();
    const mx_expr any = either(b, mx_expr_string(b, "a"), mx_expr_string(b, "b"));
    g = compile(
        b,
        mx_expr_repeat(
            b, three(b, mx_expr_repeat(b, any, 0, -1), mx_expr_string(b, "a"), mx_expr_repeat(b, any, 20, 20)), 0, -1));
    text[100] = 'b';
    assert_true(mx_grammar_match(g, text, 1000));
    assert_false(mx_grammar_match(g, text, 121));
    assert_true(mx_grammar_match(g, text, 122));
    mx_grammar_free(g);
    text[100] = 'a';
    /* s := "a" s "a" | "a" s "b" | "a": as many stacks as bytes */
    b = mx_grammar_builder_create();
    const mx_rule s = mx_rule_add(b, "s");
    const mx_expr again = mx_expr_rule(b, s), a = mx_expr_string(b, "a");
    const mx_expr items[] = {three(b, a, again, a), three(b, a, again, mx_expr_string(b, "b")), a};
    mx_rule_set(b, s, mx_expr_choice(b, items, 3));
    g = compile(b, again);
    assert_true(mx_grammar_match(g, text, 301));
    assert_false(mx_grammar_match(g, text, 300));
    text[299] = 'b';
    assert_true(mx_grammar_match(g, text, 301));
    mx_grammar_free(g);
    text[299] = 'a';
    /* loops of what may be nothing, counted and not */
    b = mx_grammar_builder_create();
    e = mx_expr_repeat(b, mx_expr_repeat(b, mx_expr_repeat(b, mx_expr_string(b, "a"), 0, 90), 0, -1), 0, 1000);
    g = compile(b, mx_expr_repeat(b, e, 0, -1));
    assert_true(mx_grammar_match(g, text, 60));
    assert_true(mx_grammar_match(g, text, 0));
    mx_grammar_free(g);
    /* 5000 levels of expressions, and as many rules that each are the next */
    b = mx_grammar_builder_create();
    e = mx_expr_string(b, "a");
    for (int i = 0; i < 5000; i++) e = two(b, mx_expr_string(b, "a"), mx_expr_repeat(b, e, 0, 1));
    mx_rule last = mx_rule_add(b, "last");
    mx_rule_set(b, last, e);
    for (int i = 0; i < 5000; i++) {
        const mx_rule rule = mx_rule_add(b, "more");
        mx_rule_set(b, rule, i % 2 ? two(b, mx_expr_string(b, "b"), mx_expr_rule(b, last)) : mx_expr_rule(b, last));
        last = rule;
    }
    g = compile(b, mx_expr_rule(b, last));
    memset(text, 'b', 2500);
    assert_true(mx_grammar_match(g, text, 3500));
    assert_false(mx_grammar_match(g, text, 2500));
    assert_false(mx_grammar_match(g, text + 1, 2500));
    mx_grammar_free(g);
    /* 20000 words with one beginning */
    b = mx_grammar_builder_create();
    mx_expr *words = malloc(20000 * sizeof *words);
    for (int i = 0; i < 20000; i++) {
        snprintf(text, sizeof text, "a long beginning, and word %d", i);
        words[i] = mx_expr_string(b, text);
    }
    g = compile(b, mx_expr_choice(b, words, 20000));
    assert_true(matches(g, "a long beginning, and word 17654"));
    assert_false(matches(g, "a long beginning, and word 20000"));
    free(words);
    mx_grammar_free(g);
    assert_true((double)(clock() - start) / CLOCKS_PER_SEC < 30); /* of the processor */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_grammars_match_as_they_are_defined),
        cmocka_unit_test(recursion_has_a_stack),
        cmocka_unit_test(counts_cost_no_states),
        cmocka_unit_test(what_cannot_be_is_left_out),
        cmocka_unit_test(accepts_are_undone),
        cmocka_unit_test(wrong_grammars_are_refused),
        cmocka_unit_test(hostile_grammars_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
