/* Regular expressions: a pattern, a zero byte, and a text. What is of a language is not of its complement, and is as a
 * JSON string of the quoted one. */
#include <stdlib.h>
#include <string.h>

#include "grammar/regular.h"
#include "input.h"

static void must(bool holds) {
    if (!holds) abort();
}

static void check_quoted(const mx_regular *r, const char *text, size_t size, bool in) {
    mx_regular *quoted;
    mx_error error;
    if (memchr(size ? text : "", 0x7F, size) || mx_regular_quote(r, &quoted, &error)) return;
    mx_bytes json = {0};
    must(mx_bytes_add_json(&json, text, size));
    must(mx_regular_match(quoted, json.data + 1, json.size - 2) == in);
    mx_bytes_free(&json);
    mx_regular_free(quoted);
}

static void check(const char *pattern, size_t pattern_size, bool whole, const char *text, size_t size) {
    mx_regular *r, *other;
    mx_error error;
    if (mx_regular_parse(pattern, pattern_size, whole, &r, &error)) return;
    const bool in = mx_regular_match(r, text, size), utf8 = mx_is_utf8(size ? text : "", size);
    must(utf8 || !in);
    if (!mx_regular_complement(r, &other, &error)) {
        must(mx_regular_match(other, text, size) == (utf8 && !in));
        mx_regular_free(other);
    }
    if (utf8) check_quoted(r, text, size, in);
    mx_regular_free(r);
}

/* Three digits in a row are mostly many repetitions, and these slow: test_regular has such. */
static bool has_number(const char *text, size_t size) {
    size_t digits = 0;
    for (size_t i = 0; i < size && digits < 3; i++) digits = text[i] >= '0' && text[i] <= '9' ? digits + 1 : 0;
    return digits == 3;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *pattern = (const char *)data, *zero = size ? memchr(data, 0, size) : NULL;
    const size_t pattern_size = zero ? (size_t)(zero - pattern) : size;
    const char *text = zero ? zero + 1 : "";
    const size_t text_size = zero ? size - pattern_size - 1 : 0;
    if (pattern_size > 100 || text_size > 100 || has_number(pattern, pattern_size)) return -1;
    check(pattern, pattern_size, false, text, text_size);
    check(pattern, pattern_size, true, text, text_size);
    return 0;
}
