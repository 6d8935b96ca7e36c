#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"

static mx_json_document *parse(const char *text) {
    mx_json_document *d;
    mx_error error;
    if (mx_json_parse("test", text, strlen(text), &d, &error)) fail_msg("%s: %s", text, error.text);
    return d;
}

static void a_tree_keeps_order_and_types(void **state) {
    (void)state;
    mx_json_document *d = parse(" {\"b\": [1, \"two\", null, true, false, {}], \"a\": {\"x\": -0.5e3}} ");
    const mx_json *root = mx_json_root(d), *list = mx_json_get(root, "b");
    assert_int_equal(root->type, MX_JSON_OBJECT);
    assert_int_equal(root->count, 2);
    assert_string_equal(root->child->key, "b");
    assert_string_equal(root->child->next->key, "a");
    assert_null(root->child->next->next);
    assert_int_equal(list->count, 6);
    static const mx_json_type types[] = {MX_JSON_NUMBER, MX_JSON_STRING, MX_JSON_NULL,
                                         MX_JSON_BOOL,   MX_JSON_BOOL,   MX_JSON_OBJECT};
    int i = 0;
    for (const mx_json *v = list->child; v; v = v->next) {
        assert_int_equal(v->type, types[i++]);
        assert_null(v->key);
    }
    assert_true(mx_json_is_string(list->child->next, "two"));
    double x;
    assert_true(mx_json_double(mx_json_get(mx_json_get(root, "a"), "x"), &x));
    assert_true(x == -500);
    assert_null(mx_json_get(root, "c"));
    assert_null(mx_json_get(list, "b"));
    assert_null(mx_json_get(NULL, "b"));
    mx_json_free(d);
    mx_json_free(NULL);
}

static void strings_may_hold_nul_and_escapes(void **state) {
    (void)state;
    mx_json_document *d = parse("{\"k\\u0000ey\": \"a\\u0000b\\n\\ud83d\\ude00\\u20ac\"}");
    const mx_json *v = mx_json_root(d)->child;
    assert_int_equal(v->key_size, 4);
    assert_memory_equal(v->key, "k\0ey", 5);
    static const char expected[] = "a\0b\n\xF0\x9F\x98\x80\xE2\x82\xAC";
    assert_int_equal(v->size, sizeof expected - 1);
    assert_memory_equal(v->text, expected, sizeof expected);
    assert_null(mx_json_get(mx_json_root(d), "k"));
    assert_false(mx_json_is_string(v, "a"));
    mx_json_free(d);
}

/* Halves of pairs alone are U+FFFD, and what stands behind them stays. */
static void surrogates_come_in_pairs(void **state) {
    (void)state;
    static const char *const text[][2] = {
        {"\\ud83d\\u0041", "\xEF\xBF\xBD"
                           "A"},
        {"\\uD800x", "\xEF\xBF\xBDx"},
        {"\\udc00\\ud800", "\xEF\xBF\xBD\xEF\xBF\xBD"},
        {"\\ud83d\\ud83d\\ude00.", "\xEF\xBF\xBD\xF0\x9F\x98\x80."},
        {"\\\\ud83d \\ud83d", "\\ud83d \xEF\xBF\xBD"},
        {"\\ud83d\\n\\\\", "\xEF\xBF\xBD\n\\"},
        {"\\uD83D\\uDE00", "\xF0\x9F\x98\x80"},
    };
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        char json[80];
        snprintf(json, sizeof json, "{\"%s\":\"%s\"}", text[i][0], text[i][0]);
        mx_json_document *d = parse(json);
        assert_true(mx_json_is_string(mx_json_root(d)->child, text[i][1]));
        assert_non_null(mx_json_get(mx_json_root(d), text[i][1]));
        mx_json_free(d);
    }
    static const char *const wrong[] = {"\"\\ud8", "\"\\ud83d", "\\ud83d", "\"\\ud83d\\", "\"\\ud83dx\\u12\"", "\\"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        mx_json_document *d;
        assert_int_not_equal(mx_json_parse("x", wrong[i], strlen(wrong[i]), &d, NULL), MX_OK);
    }
}

static void numbers_keep_their_text(void **state) {
    (void)state;
    static const char *const text[] = {"1.0",    "18446744073709551616",          "-0", "1e400",
                                       "0.1000", "123456789012345678901234567890"};
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        mx_json_document *d = parse(text[i]);
        mx_bytes out = {0};
        assert_string_equal(mx_json_root(d)->text, text[i]);
        assert_true(mx_json_write(&out, mx_json_root(d)));
        assert_string_equal(out.data, text[i]);
        mx_bytes_free(&out);
        mx_json_free(d);
    }
}

static void integers_are_exact_or_refused(void **state) {
    (void)state;
    static const struct {
        const char *text;
        bool ok;
        int64_t value;
    } c[] = {
        {"0", true, 0},
        {"-7", true, -7},
        {"9223372036854775807", true, INT64_MAX},
        {"-9223372036854775808", true, INT64_MIN},
        {"9223372036854775808", false, 0},
        {"128.0", true, 128},
        {"1e5", true, 100000},
        {"1.5", false, 0},
        {"1e30", false, 0},
        {"9007199254740991.0", true, 9007199254740991},
        {"9007199254740993.0", false, 0}, /* no double holds it */
        {"1e400", false, 0},
        {"\"5\"", false, 0},
        {"true", false, 0},
        {"null", false, 0},
    };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        mx_json_document *d = parse(c[i].text);
        int64_t value = 0;
        if (mx_json_int64(mx_json_root(d), &value) != c[i].ok) fail_msg("%s", c[i].text);
        if (c[i].ok) assert_true(value == c[i].value);
        mx_json_free(d);
    }
    int64_t value;
    assert_false(mx_json_int64(NULL, &value));
}

static void doubles_and_booleans(void **state) {
    (void)state;
    mx_json_document *d = parse("[0.1, 1e400, true, false, \"x\"]");
    const mx_json *v = mx_json_root(d)->child;
    double x;
    bool b;
    assert_true(mx_json_double(v, &x));
    assert_true(x == 0.1);
    assert_false(mx_json_bool(v, &b));
    assert_false(mx_json_double(v->next, &x)); /* infinite */
    v = v->next->next;
    assert_true(mx_json_bool(v, &b));
    assert_true(b);
    assert_true(mx_json_bool(v->next, &b));
    assert_false(b);
    assert_false(mx_json_bool(v->next->next, &b));
    assert_false(mx_json_double(v->next->next, &x));
    assert_false(mx_json_bool(NULL, &b));
    assert_false(mx_json_double(NULL, &x));
    mx_json_free(d);
}

static void the_last_of_equal_keys_counts(void **state) {
    (void)state;
    mx_json_document *d = parse("{\"a\": 1, \"a\": 2}");
    int64_t value;
    assert_true(mx_json_int64(mx_json_get(mx_json_root(d), "a"), &value));
    assert_int_equal(value, 2);
    mx_json_free(d);
}

static void writing_is_compact_and_reads_back(void **state) {
    (void)state;
    static const char text[] = "{\"a\":[1.0,{\"b\\u0000\":\"\\u0001\\\"\\\\\"},[],{}],\"c\":null,\"d\":[true,false]}";
    mx_json_document *d = parse(text);
    mx_bytes out = {0};
    assert_true(mx_json_write(&out, mx_json_root(d)));
    assert_string_equal(out.data, text);
    mx_bytes_free(&out);
    mx_json_free(d);
}

/* A text of `depth` nested arrays, closed or not. */
static char *nest(size_t depth, bool closed) {
    char *text = malloc(2 * depth + 1);
    assert_non_null(text);
    memset(text, '[', depth);
    memset(text + depth, closed ? ']' : 0, depth);
    text[2 * depth] = 0;
    return text;
}

static void depth_is_limited(void **state) {
    (void)state;
    char *text = nest(512, true);
    mx_json_free(parse(text));
    free(text);
    static const size_t bombs[] = {513, 10000, 2000000};
    for (size_t i = 0; i < 3; i++) {
        mx_json_document *d;
        mx_error error;
        text = nest(bombs[i], i % 2);
        assert_int_equal(mx_json_parse("bomb", text, strlen(text), &d, &error), MX_INVALID_FILE);
        assert_null(d);
        assert_non_null(strstr(error.text, "bomb: "));
        assert_non_null(strstr(error.text, "512"));
        free(text);
    }
}

static void what_is_no_json_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t size;
    } c[] = {
        {"", 0},          {"   ", 3},          {"{", 1},         {"[1,", 3},        {"[1 2]", 5},
        {"{\"a\"}", 5},   {"{\"a\":}", 6},     {"{a:1}", 5},     {"'a'", 3},        {"nul", 3},
        {"\"abc", 4},     {"\"\\x\"", 4},      {"\"\\u12\"", 6}, {"\"\xFF\"", 3},   {"\"\xED\xA0\x80\"", 5},
        {"\"a\nb\"", 5},  {"\"a\0b\"", 5},     {"1\0", 2},       {"1 2", 3},        {"{} x", 4},
        {"-", 1},         {"01", 2},           {"1.", 2},        {"+1", 2},         {"1e", 2},
        {".5", 2},        {"NaN", 3},          {"[1,]", 4},      {"{\"a\":1,}", 8}, {"]", 1},
        {"/* c */ 1", 9}, {"\xEF\xBB\xBF", 3}, {"\"\\u12", 5},   {"{\"a\" 1}", 7},  {"[1}", 3},
    };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        mx_json_document *d = NULL;
        mx_error error = {0};
        mx_status status = mx_json_parse("wrong.json", c[i].text, c[i].size, &d, &error);
        if (status != MX_INVALID_FILE) fail_msg("\"%s\" gave \"%s\"", c[i].text, mx_status_name(status));
        assert_null(d);
        assert_memory_equal(error.text, "wrong.json: ", 12);
        assert_null(strchr(error.text, '\n'));
        assert_int_equal(mx_json_parse("wrong.json", c[i].text, c[i].size, &d, NULL), MX_INVALID_FILE);
    }
}

static void every_cut_of_a_document_is_refused(void **state) {
    (void)state;
    static const char text[] = "{\"a\": [1, -2.5e-3, \"x\\u00e9\\n\", true, null], \"b\": {\"c\": []}}";
    for (size_t size = 0; size < sizeof text - 1; size++) {
        char *copy = malloc(size ? size : 1); /* so that the sanitizer sees a read behind the end */
        assert_non_null(copy);
        memcpy(copy, text, size);
        mx_json_document *d;
        assert_int_equal(mx_json_parse("cut", copy, size, &d, NULL), MX_INVALID_FILE);
        free(copy);
    }
}

static void large_documents_are_kept(void **state) {
    (void)state;
    mx_bytes text = {0};
    assert_true(mx_bytes_add_string(&text, "[\""));
    for (int i = 0; i < 300000; i++) assert_true(mx_bytes_add_string(&text, "ab"));
    assert_true(mx_bytes_add_string(&text, "\""));
    for (int i = 0; i < 100000; i++) assert_true(mx_bytes_addf(&text, ",%d", i));
    assert_true(mx_bytes_add_string(&text, "]"));
    mx_json_document *d = parse(text.data);
    const mx_json *root = mx_json_root(d), *v = root->child;
    assert_int_equal(root->count, 100001);
    assert_int_equal(v->size, 600000);
    for (int i = 0; i < 100000; i++) {
        int64_t value;
        v = v->next;
        assert_true(mx_json_int64(v, &value));
        assert_int_equal(value, i);
    }
    mx_json_free(d);
    mx_bytes_free(&text);
}

static void a_tree_is_limited(void **state) {
    (void)state;
    enum { COUNT = 100000, MOST = 2000000 };
    char *text = malloc(2 * COUNT + 1);
    assert_non_null(text);
    for (int i = 0; i < COUNT; i++) memcpy(text + 2 * i, i ? ",1" : "[1", 2);
    text[2 * COUNT] = ']';
    mx_json_document *d;
    mx_error error;
    assert_int_equal(mx_json_parse_limited("many", text, 2 * COUNT + 1, MOST, &d, &error), MX_INVALID_FILE);
    assert_null(d);
    assert_non_null(strstr(error.text, "many: JSON at byte "));
    assert_non_null(strstr(error.text, "too many values"));
    assert_int_equal(mx_json_parse_limited("many", text, 2 * COUNT + 1, 10 * MOST, &d, &error), MX_OK);
    assert_int_equal(mx_json_root(d)->count, COUNT);
    mx_json_free(d);
    free(text);
    /* Strings count, too. */
    assert_int_equal(mx_json_parse_limited("long", "\"0123456789012345678901234567890123456789\"", 42, 100, &d, NULL),
                     MX_INVALID_FILE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_tree_keeps_order_and_types),
        cmocka_unit_test(strings_may_hold_nul_and_escapes),
        cmocka_unit_test(surrogates_come_in_pairs),
        cmocka_unit_test(numbers_keep_their_text),
        cmocka_unit_test(integers_are_exact_or_refused),
        cmocka_unit_test(doubles_and_booleans),
        cmocka_unit_test(the_last_of_equal_keys_counts),
        cmocka_unit_test(writing_is_compact_and_reads_back),
        cmocka_unit_test(depth_is_limited),
        cmocka_unit_test(what_is_no_json_is_refused),
        cmocka_unit_test(every_cut_of_a_document_is_refused),
        cmocka_unit_test(large_documents_are_kept),
        cmocka_unit_test(a_tree_is_limited),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
