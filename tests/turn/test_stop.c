#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "turn/stop.h"

static uint32_t state = 1;
static uint32_t random_below(uint32_t n) {
    state = state * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)state * n) >> 32);
}

/* Bytes of `text` before the first stop string to be complete, by trying every end and every string. */
static size_t brute_force(const char *text, const char *const *stops, int count, bool *found) {
    size_t size = strlen(text);
    for (size_t end = 1; end <= size; end++) {
        for (size_t begin = 0; begin < end; begin++) {
            for (int i = 0; i < count; i++) {
                if (strlen(stops[i]) == end - begin && memcmp(text + begin, stops[i], end - begin) == 0) {
                    *found = true;
                    return begin;
                }
            }
        }
    }
    *found = false;
    return size;
}

/* Feeds `text` in random pieces; what comes out must be a beginning of `text` at every moment. */
static size_t in_pieces(mx_stop *stop, const char *text, bool *found) {
    mx_bytes out = {0};
    size_t size = strlen(text);
    *found = false;
    for (size_t i = 0; i < size && !*found;) {
        size_t n = 1 + random_below(5);
        if (n > size - i) n = size - i;
        assert_true(mx_stop_add(stop, text + i, n, &out, found));
        i += n;
        assert_true(out.size <= size);
        assert_memory_equal(out.data, text, out.size);
    }
    if (!*found) assert_true(mx_stop_end(stop, &out));
    size_t shown = out.size;
    if (shown) assert_memory_equal(out.data, text, shown);
    mx_bytes_free(&out);
    return shown;
}

static void random_word(char *out, uint32_t longest) {
    uint32_t length = 1 + random_below(longest);
    for (uint32_t i = 0; i < length; i++) out[i] = (char)('a' + random_below(2 + random_below(2)));
    out[length] = 0;
}

static void test_against_brute_force(void **unused) {
    (void)unused;
    int with = 0;
    for (int round = 0; round < 20000; round++) {
        char words[4][8], text[64];
        const char *stops[4];
        int count = (int)random_below(5);
        for (int i = 0; i < count; i++) {
            random_word(words[i], 6);
            stops[i] = words[i];
        }
        random_word(text, 60);
        mx_stop stop;
        assert_int_equal(mx_stop_create(stops, count, &stop, NULL), MX_OK);
        bool expected, found;
        size_t before = brute_force(text, stops, count, &expected);
        size_t shown = in_pieces(&stop, text, &found);
        assert_int_equal(found, expected);
        assert_int_equal(shown, before);
        with += found;
        mx_stop_free(&stop);
    }
    assert_in_range(with, 5000, 19000); /* both kinds were tried */
}

/* Nothing is held back longer than it must be: only an end that begins a stop string. */
static void test_holds_no_more_than_needed(void **unused) {
    (void)unused;
    const char *stops[] = {"END.", "\n\nUser:"};
    mx_stop stop;
    mx_bytes out = {0};
    bool found;
    assert_int_equal(mx_stop_create(stops, 2, &stop, NULL), MX_OK);
    assert_true(mx_stop_add(&stop, "The EN", 6, &out, &found));
    assert_string_equal(out.data, "The ");
    assert_true(mx_stop_add(&stop, "E", 1, &out, &found));
    assert_string_equal(out.data, "The EN");
    assert_true(mx_stop_add(&stop, "\n\n", 2, &out, &found));
    assert_string_equal(out.data, "The ENE");
    assert_true(mx_stop_add(&stop, "User:x", 6, &out, &found));
    assert_true(found);
    assert_string_equal(out.data, "The ENE");
    mx_bytes_free(&out);
    mx_stop_free(&stop);
}

static void test_empty_string_is_refused(void **unused) {
    (void)unused;
    const char *stops[] = {"a", ""};
    mx_stop stop;
    mx_error error;
    assert_int_equal(mx_stop_create(stops, 2, &stop, &error), MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "empty"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_brute_force),
        cmocka_unit_test(test_holds_no_more_than_needed),
        cmocka_unit_test(test_empty_string_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
