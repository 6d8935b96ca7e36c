#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "grammar/regular.h"

static mx_regular *parse_as(const char *pattern, bool whole) {
    mx_regular *r = NULL;
    mx_error error;
    if (mx_regular_parse(pattern, strlen(pattern), whole, &r, &error)) fail_msg("%s: %s", pattern, error.text);
    return r;
}

static mx_regular *parse(const char *pattern) {
    return parse_as(pattern, false);
}

static bool matches(const mx_regular *r, const char *text) {
    return mx_regular_match(r, text, strlen(text));
}

/* What every automaton must be: states in breadth from the start, none useless, no two classes alike. */
static void check_form(const mx_regular *r, const char *name) {
    const mx_regular_view v = mx_regular_look(r);
    assert_true(v.states >= 1 && v.classes >= 1 && v.classes <= 256);
    int seen_class = 0, seen_state = 1;
    for (int b = 0; b < 256; b++) {
        if (v.class_of[b] > seen_class) fail_msg("%s: classes are not in the order of their bytes", name);
        seen_class += v.class_of[b] == seen_class;
    }
    assert_int_equal(seen_class, v.classes);
    for (int s = 0; s < v.states; s++)
        for (int c = 0; c < v.classes; c++) {
            const int32_t to = v.next[s * v.classes + c];
            if (to < -1 || to > seen_state) fail_msg("%s: states are not in the order of their breadth", name);
            seen_state += to == seen_state;
        }
    assert_int_equal(seen_state, v.states);
    bool *live = calloc((size_t)v.states, 1), changed = true;
    memcpy(live, v.accepting, (size_t)v.states);
    while (changed) {
        changed = false;
        for (int s = v.states - 1; s >= 0; s--)
            for (int c = 0; !live[s] && c < v.classes; c++)
                if (v.next[s * v.classes + c] >= 0 && live[v.next[s * v.classes + c]]) live[s] = changed = true;
    }
    for (int s = 0; s < v.states; s++)
        if (!live[s] && v.states > 1) fail_msg("%s: state %d reaches no end", name, s);
    free(live);
}

static void check_same(const mx_regular *a, const mx_regular *b, const char *name) {
    const mx_regular_view x = mx_regular_look(a), y = mx_regular_look(b);
    if (x.states != y.states || x.classes != y.classes || memcmp(x.class_of, y.class_of, 256) != 0 ||
        memcmp(x.next, y.next, sizeof *x.next * (size_t)x.states * (size_t)x.classes) != 0 ||
        memcmp(x.accepting, y.accepting, sizeof *x.accepting * (size_t)x.states) != 0)
        fail_msg("%s: not the same automaton (%d and %d states)", name, x.states, y.states);
    assert_true(mx_regular_hash(a) == mx_regular_hash(b));
}

/* ---- patterns and texts ------------------------------------------------------------------------------------------ */

/* Texts after + match, those after - do not. */
#define YES "+:"
#define NO  "-:"
static const char *const cases[][12] = {
    {"abc", YES, "abc", "xabcx", NO, "", "ab", "ABC"},
    {"^abc$", YES, "abc", NO, "abcd", "xabc", "abc\n"},
    {"^a|b$", YES, "a", "ax", "b", "xb", NO, "xa", "bx", ""},
    {"^(a|b)$", YES, "a", "b", NO, "ab", ""},
    {"(^a|b)c$", YES, "ac", "bc", "xbc", NO, "xac", "c"},
    {"a$b|^$", YES, "", NO, "ab", "a"},
    {"x^a", NO, "xa", "a", "x\na"},
    {"^^a$$", YES, "a", NO, "aa"},
    {"(^)*a($|c)", YES, "a", "xa", "ac", NO, "ab"},
    {"", YES, "", "x", "\xC3\xA4"},
    {"^a*$", YES, "", "aaaa", NO, "ab"},
    {"^(?:ab)+?$", YES, "ab", "abab", NO, "", "aba"},
    {"^a{2,3}$", YES, "aa", "aaa", NO, "a", "aaaa"},
    {"^a{2}$", YES, "aa", NO, "a", "aaa"},
    {"^a{2,}$", YES, "aa", "aaaaaa", NO, "a"},
    {"^(a?b?"
     "?){0}$",
     YES, "", NO, "a"},
    {"^(a{1,2}){2}$", YES, "aa", "aaa", "aaaa", NO, "a", "aaaaa"},
    {"^.$", YES, "a", "\xC3\xA4", "\xF0\x9F\x98\x80", NO, "", "\n", "\r", "\xE2\x80\xA8"},
    {"^[^a-c]$", YES, "d", "\n", "\xC3\xA4", NO, "a", "b", "c", "dd"},
    {"^[a\\-z]$", YES, "a", NO, "b"},
    {"^[-a]+$", YES, "-", "a-a", NO, "b"},
    {"^[\\w-.]+$", YES, "a-b.c", NO, "/"},
    {"^[\\w.-]+$", YES, "a-b.c_9", NO, "/"},
    {"^[]$", NO, "", "]", "a"},
    {"^[^]$", YES, "a", "\n", NO, "", "aa"},
    {"^\\d{3}-\\d{4}$", YES, "555-1212", NO, "5555-1212", "555-121\xD9\xA1"},
    {"^\\w\\W\\s\\S\\D$", YES, "a-\xC2\xA0xy", "_\xC3\xA4\t..", NO, "\xC3\xA4- x.", "a- x1"},
    {"^\\u00e4\\u{1F600}\\ud83d\\ude00\\x41\\t\\cJ\\0?$", YES,
     "\xC3\xA4\xF0\x9F\x98\x80\xF0\x9F\x98\x80"
     "A\t\n"},
    {"^\\ud83d$", NO, "", "\xF0\x9F\x98\x80"},
    {"^[\\u0000-\\u{10FFFF}]$", YES, "\x01", "\xED\x9F\xBF", "\xEE\x80\x80", NO, "\xED\xA0\x80", "\xC0\x80"},
    {"^\\^\\$\\\\\\.\\*\\+\\?\\(\\)\\[\\]\\{\\}\\|\\/\\-\\@$", YES, "^$\\.*+?()[]{}|/-@"},
    {"^(?<year>\\d{4})$", YES, "2024", NO, "24"},
    {"\\bfoo\\b", YES, "foo", "a foo.",
     "\xC3\xA4"
     "foo",
     NO, "food", "_foo"},
    {"^\\b$|^\\Bx", NO, "", "x"},
    {"^\\B$", YES, "", NO, "a"},
    {"a\\Bb", YES, "ab", NO, "a b"},
    {"^(?:\\b\\w+\\b ?)+$", YES, "two words", NO, " x"},
    {"^(?!foo)", YES, "", "bar", "fo", NO, "foo", "food"},
    {"^(?!foo$).*$", YES, "food", "", NO, "foo"},
    {"^(?=.*\\d)(?=.*[a-z]).{4,}$", YES, "abc1", "1aaa", NO, "abcd", "1234", "a1"},
    {"^(?:(?!ab).)*$", YES, "", "ba", "aaa", NO, "ab", "xxabx"},
    {"a(?=b|$)", YES, "ab", "a", "xa", NO, "ac", "b"},
    {"a(?!b)", YES, "a", "aba", NO, "ab", "b"},
    {"^a(?=(?!c)[bc])", YES, "ab", NO, "ac", "a"},
    {"x(?=\\b)", YES, "x", "x y", NO, "xy"},
    {"(?=^a)", YES, "a", "ab", NO, "ba", ""},
    {"\xC3\xA4+", YES, "\xC3\xA4", NO, "\xC3"},
    {"^[\xC3\xA4-\xE2\x82\xAC]$", YES, "\xC3\xA4", "\xE0\xA0\x80", "\xE2\x82\xAC", NO, "\xE2\x82\xAD", "\xC3\xA3"},
    {"a]}", YES, "a]}", NO, "a"},
};

static void patterns_match_what_they_say(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mx_regular *r = parse(cases[i][0]);
        check_form(r, cases[i][0]);
        bool expected = false;
        for (int k = 1; k < 12 && cases[i][k]; k++) {
            const char *text = cases[i][k];
            if (strcmp(text, YES) == 0 || strcmp(text, NO) == 0) {
                expected = *text == '+';
                continue;
            }
            if (matches(r, text) != expected)
                fail_msg("%s: \"%s\" should%s match", cases[i][0], text, expected ? "" : " not");
        }
        mx_regular_free(r);
    }
}

static void properties_are_those_of_unicode(void **state) {
    (void)state;
    static const struct {
        const char *pattern;
        const char *yes, *no;
    } all[] = {
        {"^\\p{L}+$", "a\xC3\xA4\xCE\xB1\xE4\xB8\x80", "a1"},
        {"^\\p{Letter}+$", "a\xC3\xA4", "1"},
        {"^\\P{L}+$", "1 \xF0\x9F\x98\x80", "a"},
        {"^\\p{Lu}\\p{Ll}+$", "\xC3\x84pfel", "\xC3\xA4pfel"},
        {"^\\p{gc=Uppercase_Letter}$", "\xC3\x84", "\xC3\xA4"},
        {"^\\p{LC}$", "\xC3\x84", "\xE4\xB8\x80"},
        {"^\\p{digit}+$", "42\xE0\xA7\xAA", "-1"},
        {"^\\p{Script=Greek}+$", "\xCE\xB1\xCE\xA9", "a"},
        {"^\\p{sc=Grek}+$", "\xCE\xB1\xCE\xA9", "a"},
        {"^\\p{scx=Deva}$", "\xE0\xA5\xA4", "a"},
        {"^\\p{Emoji_Presentation}$", "\xF0\x9F\x98\x80", "1"},
        {"^\\p{ASCII}$", "~", "\xC3\xA4"},
        {"^\\p{Assigned}$", "a", "\xCD\xB8"},
        {"^\\p{Any}$", "\xCD\xB8", ""},
        {"^[\\p{L}\\p{N}_-]+$", "\xC3\xA4-1_", "a b"},
        {"^[^\\p{L}\\P{ASCII}]+$", "1-", "a"},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        mx_regular *r = parse(all[i].pattern);
        check_form(r, all[i].pattern);
        if (!matches(r, all[i].yes)) fail_msg("%s: \"%s\" should match", all[i].pattern, all[i].yes);
        if (matches(r, all[i].no)) fail_msg("%s: \"%s\" should not match", all[i].pattern, all[i].no);
        mx_regular_free(r);
    }
    static const char *const wrong[] = {"\\p{Greek}", "\\p{l}",   "\\p{sc=Nope}", "\\p{gc=Alphabetic}",
                                        "\\p{}",      "\\pL",     "\\p{L",        "\\p{L&}",
                                        "\\p{^L}",    "\\p{Xan}", "\\p{=L}",      "\\p{sc=}"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        mx_regular *r = NULL;
        mx_error error;
        if (mx_regular_parse(wrong[i], strlen(wrong[i]), false, &r, &error) != MX_INVALID_ARGUMENT)
            fail_msg("%s was not refused", wrong[i]);
    }
}

/* Every character, by a property that PCRE2 is asked about one at a time. */
static void a_property_holds_of_the_same_characters_as_in_pcre2(void **state) {
    (void)state;
    int code;
    PCRE2_SIZE where;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR) "\\A\\p{Lu}\\z", PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code, &where, NULL);
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    mx_regular *r = parse("^\\p{Lu}$");
    int count = 0;
    for (uint32_t c = 0; c <= 0x10FFFF; c += c < 0x3000 || c > 0x1F000 ? 1 : 7) {
        if (c >= 0xD800 && c < 0xE000) continue;
        if (c == 0x20000) c = 0x10FFFF;
        char buffer[64];
        mx_bytes one = {.data = buffer, .size = 0, .capacity = sizeof buffer};
        mx_bytes_add_utf8(&one, c);
        const bool expected = pcre2_match(re, (PCRE2_SPTR)one.data, one.size, 0, 0, data, NULL) >= 0;
        if (mx_regular_match(r, one.data, one.size) != expected) fail_msg("U+%04X", c);
        count += expected;
    }
    assert_true(count > 500);
    mx_regular_free(r);
    pcre2_code_free(re);
    pcre2_match_data_free(data);
}

static void a_whole_expression_is_bound_at_both_ends(void **state) {
    (void)state;
    mx_regular *r = parse_as("a|b.", true);
    assert_true(matches(r, "a"));
    assert_true(matches(r, "bx"));
    assert_false(matches(r, "ab"));
    assert_false(matches(r, "xa"));
    assert_false(matches(r, "b"));
    mx_regular_free(r);
}

static void wrong_patterns_are_refused_by_name(void **state) {
    (void)state;
    static const struct {
        const char *pattern;
        mx_status status;
        const char *says;
    } all[] = {
        {"(", MX_INVALID_ARGUMENT, "byte 0: ( without )"},
        {"a)", MX_INVALID_ARGUMENT, "byte 1: ) without ("},
        {"[a", MX_INVALID_ARGUMENT, "byte 0: [ without ]"},
        {"[a\\", MX_INVALID_ARGUMENT, "\\ at the end"},
        {"*a", MX_INVALID_ARGUMENT, "byte 0"},
        {"a**", MX_INVALID_ARGUMENT, "byte 2"},
        {"^*", MX_INVALID_ARGUMENT, "byte 1: an assertion cannot be repeated"},
        {"(?=a)*", MX_INVALID_ARGUMENT, "an assertion"},
        {"a{2,1}", MX_INVALID_ARGUMENT, "less than"},
        {"a{,3}", MX_INVALID_ARGUMENT, "byte 1: {"},
        {"{", MX_INVALID_ARGUMENT, "byte 0: {"},
        {"[b-a]", MX_INVALID_ARGUMENT, "byte 1: the end of a range"},
        {"\\a", MX_INVALID_ARGUMENT, "\\a is no escape"},
        {"\\", MX_INVALID_ARGUMENT, "\\ at the end"},
        {"\\u12", MX_INVALID_ARGUMENT, "\\u is followed"},
        {"\\u{110000}", MX_INVALID_ARGUMENT, "10FFFF"},
        {"\\x1", MX_INVALID_ARGUMENT, "\\x"},
        {"\\01", MX_INVALID_ARGUMENT, "octal"},
        {"(?P<a>b)", MX_INVALID_ARGUMENT, "(?"},
        {"(?<1>b)", MX_INVALID_ARGUMENT, "name of a group"},
        {"a\xFF", MX_INVALID_ARGUMENT, "byte 1: not UTF-8"},
        {"(a)\\1", MX_UNSUPPORTED, "byte 3: references"},
        {"(?<a>b)\\k<a>", MX_UNSUPPORTED, "references"},
        {"(?<=a)b", MX_UNSUPPORTED, "lookbehind"},
        {"(?<!a)b", MX_UNSUPPORTED, "lookbehind"},
        {"(?i)a", MX_UNSUPPORTED, "flags"},
        {"(?P<a>b)", MX_INVALID_ARGUMENT, "write (?<name>...)"},
        {"\\Aa", MX_INVALID_ARGUMENT, "write ^"},
        {"a\\Z", MX_INVALID_ARGUMENT, "write $"},
        {"x[a[:alpha:]]", MX_UNSUPPORTED, "byte 3: [:alpha:] is no class of ECMA-262"},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        mx_regular *r = NULL;
        mx_error error = {0};
        const mx_status status = mx_regular_parse(all[i].pattern, strlen(all[i].pattern), false, &r, &error);
        if (status != all[i].status || !strstr(error.text, all[i].says))
            fail_msg("%s: status %d, \"%s\"", all[i].pattern, status, error.text);
        assert_null(r);
    }
}

/* ---- against PCRE2 ----------------------------------------------------------------------------------------------- */

static uint32_t seed = 1;
static uint32_t draw(uint32_t below) {
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % below;
}

typedef struct sample {
    char data[400];
    size_t size;
} sample;

static void put(sample *t, const char *s) {
    const size_t n = strlen(s);
    if (t->size + n < sizeof t->data) memcpy(t->data + t->size, s, n + 1), t->size += n;
}

/* A random pattern in an alphabet of a, b, e acute and space; depth bounds it. */
static void random_pattern(sample *t, int depth) {
    static const char *const atoms[] = {"a", "b", "\xC3\xA9", ".", "[ab]", "[^a]", "\\w", "\\W", " ", "[\xC3\xA9 ]"};
    static const char *const marks[] = {"^", "$", "\\b", "\\B"};
    static const char *const often[] = {"*", "+", "?", "{2}", "{0,2}", "{1,}", "*?"};
    static const char *const opens[] = {"(", "(?:", "(", "(?:", "(?=", "(?!"};
    for (uint32_t terms = 1 + draw(3); terms; terms--) {
        const uint32_t what = draw(10);
        if (what == 0) {
            put(t, marks[draw(4)]);
            continue;
        }
        if (what == 1 && depth) {
            random_pattern(t, depth - 1);
            put(t, "|");
            continue;
        }
        bool look = false;
        if (what < 5 && depth) {
            const uint32_t open = draw(6);
            look = open > 3;
            put(t, opens[open]);
            random_pattern(t, depth - 1);
            put(t, ")");
        } else {
            put(t, atoms[draw(sizeof atoms / sizeof *atoms)]);
        }
        if (!look && draw(3) == 0) put(t, often[draw(7)]);
    }
}

static void random_patterns_match_as_in_pcre2(void **state) {
    (void)state;
    static const char *const letters[] = {"a", "b", "\xC3\xA9", " ", "\n"};
    static sample texts[800];
    int count = 0;
    texts[count++] = (sample){0};
    for (int i = 0; count + 5 < 800; i++)
        for (int k = 0; k < 5; k++) {
            texts[count] = texts[i];
            put(&texts[count++], letters[k]);
        }
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    int checked = 0;
    for (int i = 0; i < 700; i++) {
        sample pattern = {0};
        random_pattern(&pattern, 3);
        int code;
        PCRE2_SIZE where;
        /* PCRE2's \w is ASCII without UCP; its . excludes \n alone with this newline, and texts hold no others. */
        pcre2_code *re = pcre2_compile((PCRE2_SPTR)pattern.data, pattern.size, PCRE2_UTF | PCRE2_DOLLAR_ENDONLY, &code,
                                       &where, NULL);
        if (!re) fail_msg("PCRE2 does not take %s", pattern.data);
        mx_regular *r = NULL;
        mx_error error;
        const mx_status status = mx_regular_parse(pattern.data, pattern.size, false, &r, &error);
        if (status) fail_msg("%s: %s", pattern.data, error.text);
        check_form(r, pattern.data);
        for (int k = 0; k < count; k++) {
            const int rc = pcre2_match(re, (PCRE2_SPTR)texts[k].data, texts[k].size, 0, 0, data, NULL);
            if (rc < -2) continue; /* PCRE2 gave up */
            checked++;
            if ((rc >= 0) != mx_regular_match(r, texts[k].data, texts[k].size))
                fail_msg("%s: PCRE2 says %s of \"%s\"", pattern.data, rc >= 0 ? "yes" : "no", texts[k].data);
        }
        mx_regular_free(r);
        pcre2_code_free(re);
    }
    pcre2_match_data_free(data);
    assert_true(checked > 500000);
}

/* ---- operations -------------------------------------------------------------------------------------------------- */

static mx_regular *apply(mx_status (*f)(const mx_regular *, const mx_regular *, mx_regular **, mx_error *),
                         const mx_regular *a, const mx_regular *b) {
    mx_regular *r = NULL;
    mx_error error;
    if (f(a, b, &r, &error)) fail_msg("%s", error.text);
    check_form(r, "operation");
    return r;
}

static mx_regular *not_in(const mx_regular *a) {
    mx_regular *r = NULL;
    mx_error error;
    if (mx_regular_complement(a, &r, &error)) fail_msg("%s", error.text);
    check_form(r, "complement");
    return r;
}

static mx_regular *length(int64_t least, int64_t most) {
    mx_regular *r = NULL;
    mx_error error;
    if (mx_regular_length(least, most, &r, &error)) fail_msg("%s", error.text);
    check_form(r, "length");
    return r;
}

static const char *const languages[] = {"^[a-z]+$", "foo|bar", "^(ab)*$", "\\d{3}", "^[^\xC3\xA4]{0,4}$", "[]", ""};
enum { LANGUAGES = sizeof languages / sizeof *languages };

static void operations_have_their_laws(void **state) {
    (void)state;
    for (int i = 0; i < LANGUAGES; i++) {
        mx_regular *a = parse(languages[i]), *na = not_in(a), *nna = not_in(na);
        check_same(a, nna, "complement twice");
        mx_regular *none = apply(mx_regular_intersect, a, na), *all = apply(mx_regular_union, a, na);
        mx_regular *any = length(0, -1);
        assert_true(mx_regular_is_empty(none));
        check_same(all, any, "all texts");
        for (int k = 0; k < LANGUAGES; k++) {
            mx_regular *b = parse(languages[k]), *nb = not_in(b);
            mx_regular *both = apply(mx_regular_intersect, a, b), *neither = apply(mx_regular_union, na, nb);
            mx_regular *demorgan = not_in(neither);
            check_same(both, demorgan, "De Morgan");
            mx_regular *seq = apply(mx_regular_concat, a, b);
            if (mx_regular_is_empty(a) || mx_regular_is_empty(b)) assert_true(mx_regular_is_empty(seq));
            mx_regular_free(b), mx_regular_free(nb), mx_regular_free(both), mx_regular_free(neither);
            mx_regular_free(demorgan), mx_regular_free(seq);
        }
        mx_regular_free(a), mx_regular_free(na), mx_regular_free(nna), mx_regular_free(none), mx_regular_free(all);
        mx_regular_free(any);
    }
}

static void equal_languages_are_the_same_automaton(void **state) {
    (void)state;
    static const char *const pairs[][2] = {{"^(a|b)*$", "^(a*b*)*$"},     {"^a+$", "^aa*$"},
                                           {"^(a|aa)*$", "^a*$"},         {"a", "^[^]*a[^]*$"},
                                           {"^(?!a)[ab]$", "^b$"},        {"^[\\s\\S]{3}$", "^[^][^][^]$"},
                                           {"^(?:a{2}){3}$", "^aaaaaa$"}, {"x*", ""}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        mx_regular *a = parse(pairs[i][0]), *b = parse(pairs[i][1]);
        check_same(a, b, pairs[i][0]);
        mx_regular_free(a), mx_regular_free(b);
    }
    mx_regular *a = parse("^a$"), *b = parse("^b$"), *c = parse("^aa$");
    assert_true(mx_regular_hash(a) != mx_regular_hash(b) && mx_regular_hash(a) != mx_regular_hash(c));
    assert_ptr_equal(mx_regular_keep(a), a);
    mx_regular_free(a), mx_regular_free(a), mx_regular_free(b), mx_regular_free(c);
    assert_null(mx_regular_keep(NULL));
    mx_regular_free(NULL);
}

static void lengths_count_characters(void **state) {
    (void)state;
    mx_regular *r = length(2, 3), *bare = parse("^[^]{2,3}$"), *none = length(0, 0), *large = length(5000, 12000);
    check_same(r, bare, "length");
    assert_true(matches(r, "\xF0\x9F\x98\x80\n"));
    assert_false(matches(r, "\xF0\x9F\x98\x80"));
    assert_false(matches(r, "abcd"));
    assert_true(matches(none, ""));
    assert_false(matches(none, "a"));
    char *text = malloc(12001);
    memset(text, 'a', 12001);
    assert_false(mx_regular_match(large, text, 4999));
    assert_true(mx_regular_match(large, text, 5000));
    assert_true(mx_regular_match(large, text, 12000));
    assert_false(mx_regular_match(large, text, 12001));
    free(text);
    mx_regular *word = parse("^[a-z]+$"), *short_word = apply(mx_regular_intersect, word, r),
               *want = parse("^[a-z]{2,3}$");
    check_same(short_word, want, "intersection with a length");
    mx_regular_free(r), mx_regular_free(bare), mx_regular_free(none), mx_regular_free(large);
    mx_regular_free(word), mx_regular_free(short_word), mx_regular_free(want);
    mx_error error = {0};
    assert_int_equal(mx_regular_length(0, 1000000, &r, &error), MX_UNSUPPORTED);
    assert_int_equal(mx_regular_length(3, 2, &r, &error), MX_INVALID_ARGUMENT);
}

static void repetition_and_texts(void **state) {
    (void)state;
    mx_regular *a = NULL, *r = NULL, *want = parse("^(?:a\xC3\xA4){2,}$");
    mx_error error;
    assert_int_equal(mx_regular_text("a\xC3\xA4", 3, &a, &error), MX_OK);
    assert_int_equal(mx_regular_repeat(a, 2, -1, &r, &error), MX_OK);
    check_same(r, want, "repeat without end");
    mx_regular_free(r), mx_regular_free(want);
    assert_int_equal(mx_regular_repeat(a, 0, 3, &r, &error), MX_OK);
    want = parse("^(?:a\xC3\xA4){0,3}$");
    check_same(r, want, "repeat");
    mx_regular_free(r), mx_regular_free(want), mx_regular_free(a);
    assert_int_equal(mx_regular_text(NULL, 0, &a, &error), MX_OK);
    want = parse("^$");
    check_same(a, want, "no text");
    mx_regular_free(a), mx_regular_free(want);
    assert_int_equal(mx_regular_text("\xED\xA0\x80", 3, &a, &error), MX_INVALID_ARGUMENT);
    assert_int_equal(mx_regular_text("a\0b", 3, &a, &error), MX_OK);
    assert_true(mx_regular_match(a, "a\0b", 3));
    mx_regular_free(a);
}

/* ---- JSON strings ------------------------------------------------------------------------------------------------ */

static mx_regular *quoted(const mx_regular *a) {
    mx_regular *r = NULL;
    mx_error error;
    if (mx_regular_quote(a, &r, &error)) fail_msg("%s", error.text);
    check_form(r, "quote");
    return r;
}

static void texts_are_quoted_as_json_is_written(void **state) {
    (void)state;
    mx_regular *any = length(0, -1), *all = quoted(any), *dot = parse("^.$"), *one = quoted(dot), *two = length(2, 2),
               *q2 = quoted(two);
    for (uint32_t c = 0; c <= 0x10FFFF; c += c < 0x900 ? 1 : 4093) {
        if ((c >= 0xD800 && c < 0xE000) || c == 0x7F)
            continue; /* DEL stands as it is here; mx_bytes_add_json escapes it */
        mx_bytes text = {0}, json = {0};
        mx_bytes_add_utf8(&text, c);
        mx_bytes_add_json(&json, text.data, text.size);
        if (!mx_regular_match(all, json.data + 1, json.size - 2)) fail_msg("U+%04X: %s", c, json.data);
        const bool in_line = c != '\n' && c != '\r' && c != 0x2028 && c != 0x2029;
        assert_int_equal(mx_regular_match(one, json.data + 1, json.size - 2), in_line);
        assert_false(mx_regular_match(q2, json.data + 1, json.size - 2));
        mx_bytes_free(&text), mx_bytes_free(&json);
    }
    static const char *const other[] = {"\"",    "\\", "\\/",  "\\u0041", "\\u000a", "\\u001F",
                                        "\\u00", "\n", "\x01", "\\x",     "\\u007f"};
    for (size_t i = 0; i < sizeof other / sizeof *other; i++)
        if (matches(all, other[i])) fail_msg("%s is another spelling", other[i]);
    assert_true(matches(q2, "\\u0000\\\""));
    assert_true(matches(q2, "\x7F\\\\"));
    mx_regular_free(any), mx_regular_free(all), mx_regular_free(dot), mx_regular_free(one), mx_regular_free(two),
        mx_regular_free(q2);
}

/* ---- UTF-8 ------------------------------------------------------------------------------------------------------- */

static void no_word_is_other_than_utf8(void **state) {
    (void)state;
    mx_regular *any = parse("^[^]$");
    int count = 0;
    for (uint32_t b = 0; b < 0x1000000; b++) {
        /* All of three bytes; of four, with one that can end it. */
        if ((b & 0xFF0000) == 0 && b > 0xFFFF) continue;
        const uint8_t bytes[4] = {(uint8_t)(b >> 16), (uint8_t)(b >> 8), (uint8_t)b, 0x80};
        const bool expected = mx_utf8_length(bytes, 3) == 3;
        if (mx_regular_match(any, bytes, 3) != expected) fail_msg("%02x %02x %02x", bytes[0], bytes[1], bytes[2]);
        if (bytes[0] >= 0xF0 && mx_regular_match(any, bytes, 4) != (mx_utf8_length(bytes, 4) == 4))
            fail_msg("%02x %02x %02x 80", bytes[0], bytes[1], bytes[2]);
        count += expected;
    }
    assert_int_equal(count, 0x10000 - 0x800 - 0x800);
    mx_regular_free(any);
}

/* ---- bounds ------------------------------------------------------------------------------------------------------ */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void hostile_patterns_end_soon(void **state) {
    (void)state;
    static const struct {
        const char *pattern;
        bool refused;
    } all[] = {
        {"(a{1000}){1000}", true},
        {"^(a{1000}){1000}$", true},
        {"^(a|aa)*$", false},
        {"^(a*)*$", false},
        {"^(((((a?)?)?)?)?){500}$", false},
        {"[\\s\\S]{0,5000}a{5000}", true},
        {"^[\\s\\S]*a[\\s\\S]{5000}$", true},
        {"(a|b)*a(a|b){30}$", true},
        {"^(?:(?:){1000000000}){1000000000}$", false},
        {"(?:a{0,2147483647}){0,2147483647}", true},
        {"^(?:^){2000000}a", true},
        {"^((a|b)?){5000}$", true},
        {"(?=(?=(?=(?=(?=(?=^a))))))b", true},
        {"(?=.*a.{20})(?=.*b.{20})(?=.*c.{20})x", true},
        {"^(?:(?=.*a.{9}b)[^])*$", false},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        mx_regular *r = NULL;
        mx_error error = {0};
        const double begin = now();
        const mx_status status = mx_regular_parse(all[i].pattern, strlen(all[i].pattern), false, &r, &error);
        const double seconds = now() - begin;
        if (getenv("MX_TEST_TIMES"))
            print_message("%-40s %.3f s %s\n", all[i].pattern, seconds, status ? error.text : "ok");
        mx_regular_free(r);
        if (status && status != MX_UNSUPPORTED && status != MX_INVALID_ARGUMENT)
            fail_msg("%s: %s", all[i].pattern, error.text);
        if ((status != MX_OK) != all[i].refused) fail_msg("%s: status %d (%s)", all[i].pattern, status, error.text);
        if (seconds > 20) fail_msg("%s: %.1f s", all[i].pattern, seconds);
    }
    /* Very many different characters, and the same ones again. */
    mx_bytes many = {0};
    for (uint32_t c = 0; c < 60000; c++) mx_bytes_add_utf8(&many, 0x4E00 + c % 20000);
    mx_regular *r = NULL;
    mx_error error = {0};
    double begin = now();
    assert_int_equal(mx_regular_parse(many.data, many.size, false, &r, &error), MX_UNSUPPORTED);
    if (getenv("MX_TEST_TIMES")) print_message("%-40s %.3f s %s\n", "60000 characters", now() - begin, error.text);
    assert_true(now() - begin < 20);
    mx_bytes_clear(&many);
    for (int i = 0; i < 5000; i++) mx_bytes_addf(&many, "[\\p{L}%d]", i);
    begin = now();
    assert_int_equal(mx_regular_parse(many.data, many.size, false, &r, &error), MX_UNSUPPORTED);
    if (getenv("MX_TEST_TIMES")) print_message("%-40s %.3f s %s\n", "5000 classes", now() - begin, error.text);
    assert_true(now() - begin < 20);
    mx_bytes_free(&many);
    char deep[4001];
    memset(deep, '(', 2000), memset(deep + 2000, ')', 2000), deep[4000] = 0;
    assert_int_equal(mx_regular_parse(deep, 4000, false, &r, &error), MX_UNSUPPORTED);
    assert_non_null(strstr(error.text, "200 groups"));
    assert_int_equal(mx_regular_parse(deep + 1800, 400, false, &r, &error), MX_OK);
    mx_regular_free(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(patterns_match_what_they_say),
        cmocka_unit_test(properties_are_those_of_unicode),
        cmocka_unit_test(a_property_holds_of_the_same_characters_as_in_pcre2),
        cmocka_unit_test(a_whole_expression_is_bound_at_both_ends),
        cmocka_unit_test(wrong_patterns_are_refused_by_name),
        cmocka_unit_test(random_patterns_match_as_in_pcre2),
        cmocka_unit_test(operations_have_their_laws),
        cmocka_unit_test(equal_languages_are_the_same_automaton),
        cmocka_unit_test(lengths_count_characters),
        cmocka_unit_test(repetition_and_texts),
        cmocka_unit_test(texts_are_quoted_as_json_is_written),
        cmocka_unit_test(no_word_is_other_than_utf8),
        cmocka_unit_test(hostile_patterns_end_soon),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
